"""Edits of one CT, as strangers' programs make them: the right organs, a refusal, or a warning that names the edit.

FLARE_STRANGERS sets how many edits of a file are drawn (default 420; a quarter as many of a DICOM series). With
FLARE_STRANGERS_CT=FILE, a real CT, the bundled model looks at it instead of a network whose answer is known.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from known_patient import COARSE_KNOWING, FINE_KNOWING, KnowingModel, scan_of_patient

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume

DRAWS = int(os.environ.get("FLARE_STRANGERS", "420"))
REAL = os.environ.get("FLARE_STRANGERS_CT")
SPACING = 8.0
LEAST_DICE = 0.95
QUICK = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
TALLY: Counter[str] = Counter()


@dataclass(frozen=True)
class Edit:
    """A changed CT.

    Attributes:
        kind: what was done.
        words: one of them is in a warning that names the edit.
        volume: what the file would say; None where `path` is to be read.
        inside: the part of the edited volume that is the CT.
    """

    kind: str
    words: tuple[str, ...]
    volume: Volume
    inside: tuple[slice, ...] = (slice(None),) * 3


@cache
def segmenter() -> Segmenter:
    if REAL:
        return Segmenter(load_model(bundled_model_folder()), "cpu")
    return Segmenter(KnowingModel(COARSE_KNOWING, FINE_KNOWING), "cpu", threads=1)


@cache
def original() -> tuple[Volume, np.ndarray]:
    """The CT and its organs as they are found in it."""
    volume = read_volume(REAL)[0] if REAL else scan_of_patient(SPACING)[0]
    return volume, segmenter().segment(volume).labels


def edited(volume: Volume, array: np.ndarray) -> Volume:
    return Volume(array, volume.spacing, volume.origin, volume.direction, "ct")


PADDINGS = st.one_of(st.sampled_from([0, 1, -100, 60, 1000, 3071, 32767]), st.integers(-390, 3000))


@st.composite
def padding(draw) -> Edit:
    volume, _ = original()
    value = draw(PADDINGS)
    sides = [(draw(st.integers(0, 12)), draw(st.integers(0, 12))) for _ in range(3)]
    sides[draw(st.integers(0, 2))] = (draw(st.integers(3, 12)), draw(st.integers(0, 12)))
    inside = tuple(slice(low, low + size) for (low, _), size in zip(sides, volume.array.shape))
    return Edit("padding", ("padding",), edited(volume, np.pad(volume.array, sides, constant_values=value)), inside)


@st.composite
def mask(draw) -> Edit:
    volume, _ = original()
    value, array = draw(PADDINGS), volume.array.copy()
    if draw(st.booleans()):
        array[array < -700] = value
        return Edit("body mask", ("padding", "shifted", "Hardly any"), edited(volume, array))
    box = tuple(
        slice(s, s + n) for s, n in ((draw(st.integers(0, k // 2)), draw(st.integers(4, k // 2))) for k in array.shape)
    )
    array[box] = value
    return Edit("box mask", ("padding",), edited(volume, array))


@st.composite
def not_finite(draw) -> Edit:
    volume, _ = original()
    array = volume.array.astype(np.float32)
    low = draw(st.integers(0, array.shape[0] - 1))
    array[low : low + draw(st.integers(1, 9))] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return Edit("not finite", ("NaN", "padding"), edited(volume, array))


@st.composite
def flip(draw) -> Edit:
    volume, _ = original()
    axes = draw(st.sampled_from([(2,), (1,), (0,), (1, 2), (0, 2), (0, 1), (0, 1, 2)]))
    words = ("in doubt", "orientation", "is sure of", "upside down")
    return Edit(f"flip of {axes}", words, edited(volume, np.flip(volume.array, axes)))


@st.composite
def scale(draw) -> Edit:
    volume, _ = original()
    kind = draw(st.sampled_from(["shift", "scale", "invert"]))
    array = volume.array.astype(np.float32)
    if kind == "shift":
        amount = draw(st.one_of(st.integers(-1100, -130), st.integers(130, 1100)))
        array = array + amount
    elif kind == "scale":
        array = array * draw(st.sampled_from([0.25, 0.5, 2.0, 3.0]))
    else:
        array = -array
    words = ("Hounsfield", "HU", "is sure of")
    return Edit(f"values: {kind}", words, edited(volume, np.rint(array).astype(np.int16)))


@st.composite
def nothing(draw) -> Edit:
    volume, _ = original()
    array = volume.array.astype(draw(st.sampled_from(["<i2", ">i2", "<i4", "<f4", "<f8"])))
    return Edit("number type", (), edited(volume, array))


EDITS = st.one_of(padding(), padding(), mask(), not_finite(), flip(), scale(), nothing())


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    scores = []
    for organ in ORGANS:
        one, other = found == organ.label, truth == organ.label
        if other.any():
            scores.append(2 * np.sum(one & other) / (one.sum() + other.sum()))
    return float(min(scores))


def judge(kind: str, words: tuple[str, ...], found, inside, said: list[str]) -> None:
    """Count how it ended; a wrong result without a word about the edit is the one ending that must not be."""
    truth = original()[1]
    if found is not None and dice(found[inside], truth) >= LEAST_DICE:
        TALLY["right organs"] += 1
        return
    assert any(word in line for line in said for word in words), f"{kind}: wrong without a word: {said}"
    TALLY["named by a warning"] += 1


@settings(parent=QUICK, max_examples=DRAWS)
@given(edit=EDITS)
def test_an_edited_ct_is_right_refused_or_named(edit: Edit) -> None:
    try:
        result = segmenter().segment(edit.volume)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        TALLY["refused"] += 1
        return
    judge(edit.kind, edit.words, result.labels, edit.inside, result.warnings)


@st.composite
def two_forms(draw) -> np.ndarray:
    """An affine that contradicts that of the CT."""
    affine = original()[0].affine_ras
    kind = draw(st.sampled_from(["shift", "turn", "mirror", "scale", "rounding"]))
    change = np.eye(4)
    axis = draw(st.integers(0, 2))
    if kind == "shift":
        change[axis, 3] = draw(st.sampled_from([-50.0, -1.0, 0.6, 1.0, 50.0]))
    elif kind == "turn":
        angle = np.radians(draw(st.floats(0.5, 180)))
        a, b = [other for other in range(3) if other != axis]
        change[a, a] = change[b, b] = np.cos(angle)
        change[a, b], change[b, a] = -np.sin(angle), np.sin(angle)
    elif kind == "mirror":
        change[axis, axis] = -1
    elif kind == "scale":
        change[axis, axis] = draw(st.sampled_from([0.7, 1.37]))
    else:
        change[axis, 3] = 1e-3
    return change @ affine


@settings(parent=QUICK, max_examples=max(20, DRAWS // 8))
@given(other=two_forms(), sform_first=st.booleans())
def test_contradicting_forms_are_named_with_their_distance(
    tmp_path_factory: pytest.TempPathFactory, other: np.ndarray, sform_first: bool
) -> None:
    volume, _ = original()
    path = tmp_path_factory.mktemp("forms") / "ct.nii"
    sform, qform = (other, volume.affine_ras) if sform_first else (volume.affine_ras, other)
    image = nibabel.Nifti1Image(volume.array.T, sform)
    image.header.set_sform(sform, 1)
    image.header.set_qform(qform, 1)
    nibabel.save(image, path)
    found, said = read_volume(path)
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)], float) * [
        *(n - 1 for n in volume.array.shape[::-1]),
        1,
    ]
    distance = np.linalg.norm(((sform - qform) @ corners.T)[:3], axis=0).max()
    np.testing.assert_allclose(found.affine_ras, sform, atol=1e-3)
    assert any(f"disagree by up to {distance:.1f} mm" in line for line in said) == (distance > 0.5)
    TALLY["named by a warning" if said else "right organs"] += 1


@settings(parent=QUICK, max_examples=max(40, DRAWS // 5))
@given(data=st.data())
def test_an_edited_series_is_in_place_refused_or_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Voxels carry their own place: 8 values in x, y and z tell where each must lie."""
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
    count, spacing = 10, 3.0
    folder = tmp_path_factory.mktemp("series")
    heights = np.arange(count) * spacing
    beside = np.zeros((count, 2))
    lost: set[int] = set()
    kind = data.draw(st.sampled_from(["moved", "lost", "uneven", "two phases", "damaged"]))
    if kind == "moved":
        first = data.draw(st.integers(1, count - 1))
        beside[first : data.draw(st.integers(first, count)), data.draw(st.integers(0, 1))] = data.draw(
            st.sampled_from([-12.0, 4.0, 8.0])
        )
    elif kind == "lost":
        lost = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
    elif kind == "uneven":
        steps = data.draw(st.lists(st.floats(2.5, 3.6), min_size=count - 1, max_size=count - 1))
        heights = np.concatenate([[0.0], np.cumsum(steps)])
    phases = 2 if kind == "two phases" else 1
    tag = data.draw(
        st.sampled_from(
            ["AcquisitionNumber", "AcquisitionTime", "ContentTime", "TriggerTime", "InstanceNumber", "none"]
        )
    )
    for phase in range(phases):
        for k in set(range(count)) - lost:
            write_slice(pydicom, folder / f"{(k * 7) % 10}{phase}.dcm", k, phase, heights[k], beside[k], tag, count)
    if kind == "damaged":
        victims = data.draw(st.sets(st.integers(0, count - 1), min_size=1, max_size=3))
        for k in victims:
            path = folder / f"{(k * 7) % 10}0.dcm"
            path.write_bytes(path.read_bytes()[: data.draw(st.sampled_from([0, 200, 700]))])
    try:
        volume, said = read_volume(folder)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        TALLY["refused"] += 1
        return
    k = np.arange(len(volume.array))
    places = (volume.affine_lps @ np.stack([k * 0 + 8, k * 0 + 8, k, k * 0 + 1]).astype(float))[2]
    values = volume.array[:, 8, 8].astype(float)
    phase = int(values[0] >= 500)
    expected = 10 * places + 500 * phase
    right = np.abs(values - expected).max() <= 3  # 0.3 mm, a tenth of the slices' distance
    whole = lost or kind == "damaged" or len(volume.array) == count
    assert right and whole, f"{kind} by {tag}: {said}"
    words = {"moved": "in their planes", "uneven": "unevenly", "two phases": "acquisition", "damaged": "damaged"}
    gone_at_the_ends = kind == "lost"  # nothing in the files tells
    if (
        kind in words
        and not (kind == "uneven" and np.ptp(np.diff(heights)) <= 0.3)
        and beside.any() == (kind == "moved")
    ):
        assert any(words[kind] in line for line in said), f"{kind} by {tag}: {said}"
    TALLY["in place" if gone_at_the_ends else "named by a warning" if said else "right organs"] += 1


def write_slice(
    pydicom, path: Path, k: int, phase: int, height: float, beside: np.ndarray, tag: str, count: int
) -> None:
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"2.25.9.{phase}.{k + 1}"
    dataset.Modality, dataset.SeriesInstanceUID, dataset.StudyInstanceUID = "CT", "2.25.1", "2.25.2"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.Rows = dataset.Columns = 16
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit, dataset.PixelRepresentation = 15, 1
    dataset.RescaleIntercept, dataset.RescaleSlope = 0, 1
    dataset.PixelSpacing = [2, 2]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [f"{beside[0]:.4f}", f"{beside[1]:.4f}", f"{height:.4f}"]
    dataset.InstanceNumber = 1
    if tag == "InstanceNumber":
        dataset.InstanceNumber = 1 + k + phase * count
    elif tag.endswith("Time") and tag != "TriggerTime":
        setattr(dataset, tag, f"1010{10 + 20 * phase}")
    elif tag != "none":
        setattr(dataset, tag, 1 + phase)
    dataset.PixelData = np.full((16, 16), round(10 * height) + 500 * phase, "<i2").tobytes()
    dataset.save_as(path, enforce_file_format=True)


def test_at_least_500_edits_were_tried(figures: dict[str, str]) -> None:
    """Runs last in this file."""
    figures["Edits of one CT"] = f"{TALLY.total()}: " + ", ".join(f"{count} {how}" for how, count in TALLY.items())
    if DRAWS >= 420:
        assert TALLY.total() >= 500
