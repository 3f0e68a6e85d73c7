"""Label maps out as DICOM Segmentation objects and in again, with codes that Slicer and every PACS understand.

Written files are binary segmentations (DICOM PS3.3, A.51 and C.8.20) with one segment per organ: SNOMED CT category,
type and laterality as Slicer's terminology has them, the CT's slices as source images, the patient and study of the CT.
Reading needs pydicom, writing highdicom (https://highdicom.readthedocs.io); Slicer 5.12 brings both, Slicer 5.10 only
pydicom. Neither is imported before it is needed. highdicom's own reader takes as long (0.9 s and 1.0 s for
208 frames), but it drops voxels of a segment that the file does not describe without a word, and refuses files that
only lack dimension indices or a segment's algorithm.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import frame_facts, quiet_pydicom
from FlareSegmentLib.files.file_headers import MAXIMUM_VOXELS
from FlareSegmentLib.organs import CATEGORY, FLARE22_ORGANS, ORGANS, Organ
from FlareSegmentLib.volume import Volume

_LATERALITY = {"24028007": "Right", "7771000": "Left"}
_KIDNEYS = {"9846003": "right_kidney", "18639004": "left_kidney"}
"""SNOMED CT codes that name the side themselves."""
_MAY_BE_EMPTY = (
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
    "PatientBirthDate", "PatientSex",
)  # fmt: skip
"""Attributes that every DICOM object must have, if only empty, and that anonymized CTs often lack."""


@dataclass(frozen=True)
class DicomSegment:
    """One segment of a file: its number, its label for people, and the organ that its codes mean, if any."""

    number: int
    name: str
    organ: Organ | None


@dataclass(frozen=True, eq=False)
class DicomSegmentation:
    """A segmentation that was read.

    Attributes:
        labels: segment numbers, uint8 or uint16. Where segments overlap, the one with the lower number is kept.
        segments: all that the file describes, also empty ones.
        series_uid: the series it was drawn on, "" where the file does not say.
        warnings: for the user.
    """

    labels: Volume
    segments: tuple[DicomSegment, ...]
    series_uid: str
    warnings: list[str]

    def organ_labels(self, organs: Mapping[int, Organ] | None = None) -> Volume:
        """The labels as uint8 in FlareSegment's values; segments that are no organ become background.

        organs: organ by segment number; by default what the segments' codes mean.
        """
        if organs is None:
            organs = {segment.number: segment.organ for segment in self.segments if segment.organ is not None}
        table = np.zeros(int(np.iinfo(self.labels.array.dtype).max) + 1, np.uint8)
        for number, organ in organs.items():
            table[number] = organ.label
        return self.labels.with_array(table[self.labels.array])


def write_dicom_segmentation(
    path: str | os.PathLike[str],
    labels: Volume,
    source_files: Sequence[str | os.PathLike[str]],
    *,
    organs: Sequence[Organ] = ORGANS,
    algorithm: tuple[str, str] | None = ("FlareSegment", "1"),
    description: str = "FlareSegment organs",
) -> None:
    """Write a label map as a DICOM Segmentation of the CT it was drawn on; the file appears whole or not at all.

    The file carries the patient's identity as its CT does: a PACS finds it by that.

    Args:
        labels: FlareSegment's label values on the CT's grid, in any order of its axes.
        source_files: the CT's DICOM files in any order; those beyond the labels are no source images.
        organs: those to write; organs without a voxel are left out.
        algorithm: name and version of what drew the labels, None where a person did.
        description: the new series' description.

    Raises:
        InputError: highdicom is missing, there is nothing to write, the files are not the labels' CT or lack what a
            DICOM Segmentation needs, or the file cannot be written.
    """
    highdicom, pydicom = _highdicom(), _pydicom()
    path = Path(path)
    present = [organ for organ in organs if np.any(labels.array == organ.label)]
    if not present:
        raise InputError("The labels hold none of the organs: there is nothing to write as DICOM Segmentation.")
    sources, frames = _source_frames(pydicom, labels, source_files)
    pixels = np.zeros((*frames.shape, len(present)), np.uint8)
    for index, organ in enumerate(present):
        pixels[..., index] = frames == organ.label
    codes = pydicom.sr.codedict.codes
    identification = None
    if algorithm is not None:
        name, version = algorithm
        family = codes.DCM.ArtificialIntelligence
        identification = highdicom.AlgorithmIdentificationSequence(name=name, family=family, version=version)
    descriptions = [_description(highdicom, organ, n, identification) for n, organ in enumerate(present, start=1)]
    try:
        with quiet_pydicom():
            dataset = highdicom.seg.Segmentation(
                source_images=sources,
                pixel_array=pixels,
                segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=descriptions,
                series_instance_uid=highdicom.UID(),
                series_number=9000,
                sop_instance_uid=highdicom.UID(),
                instance_number=1,
                manufacturer="FlareSegment",
                manufacturer_model_name="FlareSegment",
                software_versions="1",
                device_serial_number="1",
                content_label="ORGANS",
                content_description="Abdominal organs",
                content_creator_name="FlareSegment^",
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error.name}" if isinstance(error, AttributeError) else " ".join(str(error).split())
        raise InputError(
            f"{Path(source_files[0]).parent}: its CT lacks what a DICOM Segmentation needs ({reason}). Save the "
            "segmentation as NIfTI or NRRD instead."
        ) from error
    dataset.SeriesDescription = description
    write_dataset(dataset, path)


def read_dicom_segmentation(path: str | os.PathLike[str], like: Volume | None = None) -> DicomSegmentation:
    """Read a DICOM Segmentation: binary, fractional (from half of the maximum on) or label map.

    like: the volume it was drawn on, whose grid the labels are put on. Without it the grid is that of the file's own
        frames, from the first to the last.

    Raises:
        InputError: one clear line: pydicom is missing, the file is none or damaged, or it lies on another grid.
    """
    pydicom = _pydicom()
    path = Path(path)
    with quiet_pydicom():
        try:
            dataset = pydicom.dcmread(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
        except Exception as error:  # pydicom raises nearly anything at what is not DICOM
            raise InputError(f"{path} is no DICOM file, or it is damaged: export it again.") from error
        try:
            if dataset.get("Modality") != "SEG" or "SegmentSequence" not in dataset:
                kind = re.sub(r"[^A-Z]", "", str(dataset.get("Modality") or "unknown"))[:16]
                raise InputError(f"{path} is no DICOM Segmentation (its modality is {kind}).")
            return _read(dataset, path, like)
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{path} is damaged: it lacks what a DICOM Segmentation must have. Export it again."
            ) from error


def referenced_series(dataset) -> str:
    """The UID of the series that a pydicom data set of a DICOM Segmentation was drawn on, "" where it does not say."""
    sequence = dataset.get("ReferencedSeriesSequence")
    return str(sequence[0].get("SeriesInstanceUID", "")) if sequence else ""


def describe_segments(dataset) -> tuple[DicomSegment, ...]:
    """The segments of a pydicom data set of a DICOM Segmentation. Raises AttributeError, TypeError, ValueError."""
    return tuple(
        DicomSegment(int(item.SegmentNumber), str(item.get("SegmentLabel", "")), _organ_of_codes(item))
        for item in dataset.SegmentSequence
    )


def frame_place(
    inverse: np.ndarray,
    shape: Sequence[int],
    position: Sequence[float],
    orientation: np.ndarray,
    spacing: Sequence[float],
    size: tuple[int, int],
    slack: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Where a frame's pixels lie in a volume's (z, y, x) array: three index arrays that broadcast to (rows, columns).

    Args:
        inverse: 4x4 from LPS to the volume's voxel indices.
        shape: of the array.
        position, orientation, spacing: of the frame, as `frame_facts` gives them.
        size: rows and columns.
        slack: how far across its plane the frame may lie off the voxels' centers, in voxels; in its plane a tenth.

    Returns:
        None where the pixels are not the volume's voxels, or lie outside.
    """
    start = inverse[:3] @ [*position, 1.0]
    along_row = inverse[:3, :3] @ (orientation[0] * spacing[1])
    down_column = inverse[:3, :3] @ (orientation[1] * spacing[0])
    steps = np.stack([down_column, along_row])
    whole = np.rint(steps)
    if np.abs(whole).sum(axis=1).tolist() != [1, 1] or (whole[0] * whole[1]).any():
        return None
    across = 1 - np.abs(whole).sum(axis=0)
    allowed = np.where(across > 0, slack, 0.1)
    for row, column in ((0, 0), (size[0] - 1, 0), (0, size[1] - 1)):
        off = start + row * steps[0] + column * steps[1] - np.rint(start) - row * whole[0] - column * whole[1]
        if np.any(np.abs(off) > allowed):
            return None
    ways = np.arange(size[0])[:, None], np.arange(size[1])[None, :]
    indices = [
        sum((way * int(step) for way, step in zip(ways, whole[:, axis]) if step), np.array(round(start[axis])))
        for axis in (2, 1, 0)
    ]
    if any(index.min() < 0 or index.max() >= count for index, count in zip(indices, shape)):
        return None
    return indices[0], indices[1], indices[2]


def save_dataset(dataset, path: Path) -> None:
    """Save a pydicom data set with preamble and file meta information, in pydicom 2 (Slicer 5.10) and 3."""
    try:
        dataset.save_as(path, enforce_file_format=True)
    except TypeError:
        dataset.is_little_endian, dataset.is_implicit_VR = True, False
        dataset.save_as(path, write_like_original=False)


def write_dataset(dataset, path: Path) -> None:
    """Write a pydicom data set; the file appears whole or not at all. Raises InputError."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            part = Path(folder) / "file.dcm"
            save_dataset(dataset, part)
            os.replace(part, path)
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or 'the disk may be full'}): choose another output folder."
        ) from error


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.sr.codedict
    except ImportError as error:
        raise InputError("DICOM Segmentations need the package pydicom: pip install pydicom.") from error
    return pydicom


def _highdicom() -> Any:
    try:
        import highdicom
        import highdicom.seg
    except ImportError as error:
        raise InputError(
            "Writing DICOM Segmentations needs the package highdicom: slicer.util.pip_install('highdicom') in Slicer's "
            "Python console, pip install highdicom elsewhere."
        ) from error
    return highdicom


# Writing ------------------------------------------------------------------------------------------


def _source_frames(pydicom: Any, labels: Volume, files: Sequence[str | os.PathLike[str]]) -> tuple[list, np.ndarray]:
    """The CT's headers and, frame by frame in their order, its labels (n, rows, columns). Raises InputError."""
    if not files:
        raise InputError("A DICOM Segmentation needs the DICOM files of its CT.")
    inverse = np.linalg.inv(labels.affine_lps)
    taken: dict[tuple, tuple] = {}
    for file in files:
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
            if "PerFrameFunctionalGroupsSequence" in header:
                shared = header.SharedFunctionalGroupsSequence[0]
                facts = [frame_facts(frame, shared)[:3] for frame in header.PerFrameFunctionalGroupsSequence]
            else:
                orientation = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
                facts = [([float(v) for v in header.ImagePositionPatient], orientation, list(header.PixelSpacing))]
            size = (int(header.Rows), int(header.Columns))
        except Exception as error:  # pydicom raises nearly anything at damaged files
            raise InputError(f"{file} is no DICOM slice of a CT: name the files that the CT was read from.") from error
        places = [frame_place(inverse, labels.array.shape, *frame, size, slack=0.45) for frame in facts]
        inside = [place for place in places if place is not None]
        if not inside:
            continue
        if len(facts) > 1 and (len(inside) < len(facts) or len(files) > 1):
            raise InputError(f"{file} and the labels do not cover the same slices: name the CT they were drawn on.")
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
        if len(facts) == 1 and not header.get("SliceThickness"):
            across = np.abs(np.cross(*facts[0][1]) @ labels.direction).argmax()
            header.SliceThickness = round(labels.spacing[across], 6)
        taken.setdefault(tuple(int(index.ravel()[0]) for index in inside[0]), (header, inside))
    frames = [labels.array[place] for _, places in taken.values() for place in places]
    covered = sum(int(np.count_nonzero(frame)) for frame in frames)
    if not frames or covered < np.count_nonzero(labels.array):
        raise InputError("The labels do not lie on the slices of these DICOM files: name the CT they were drawn on.")
    return [header for header, _ in taken.values()], np.stack(frames)


def _description(highdicom: Any, organ: Organ, number: int, identification: Any) -> Any:
    def coded(code: str, meaning: str) -> Any:
        return highdicom.sr.CodedConcept(code, "SCT", meaning)

    kinds = highdicom.seg.SegmentAlgorithmTypeValues
    description = highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=organ.name,
        segmented_property_category=coded(CATEGORY[1], CATEGORY[2]),
        segmented_property_type=coded(organ.type_code, organ.type_meaning),
        algorithm_type=kinds.MANUAL if identification is None else kinds.AUTOMATIC,
        algorithm_identification=identification,
        tracking_uid=highdicom.UID(),
        tracking_id=organ.name,
    )
    if organ.modifier_code:
        modifier = coded(organ.modifier_code, organ.modifier_meaning or "")
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    description.RecommendedDisplayCIELabValue = _cielab(organ.color)
    return description


def _cielab(color: tuple[int, int, int]) -> list[int]:
    """A color (0 to 255) as DICOM's CIELab, 0 to 65535 (PS3.3, C.10.7.1.1): sRGB with its white point, D65."""
    rgb = np.array(color) / 255
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    ratios = matrix @ linear / [0.9505, 1.0, 1.089]
    x, y, z = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    scaled = [(116 * y - 16) * 655.35, (500 * (x - y) + 128) * 257, (200 * (y - z) + 128) * 257]
    return [int(np.clip(round(float(value)), 0, 65535)) for value in scaled]


# Reading ------------------------------------------------------------------------------------------


def _read(dataset: Any, path: Path, like: Volume | None) -> DicomSegmentation:
    segments = describe_segments(dataset)
    highest = max(segment.number for segment in segments)
    if not 0 < highest <= 65535:
        raise InputError(f"{path} is damaged: it has a segment number {highest}.")
    size = (int(dataset.Rows), int(dataset.Columns))
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [type(dataset.SegmentSequence[0])()])[0]
    items = list(dataset.PerFrameFunctionalGroupsSequence)
    facts = [frame_facts(frame, shared)[:3] for frame in items]
    grid = _own_grid(path, facts, size) if like is None else like
    pixels = _frame_reader(dataset, path, len(items), size)
    label_map = dataset.SegmentationType == "LABELMAP"
    inverse = np.linalg.inv(grid.affine_lps)
    labels = np.zeros(grid.array.shape, np.uint8 if highest < 256 else np.uint16)
    overlap = 0
    for index, (frame, fact) in enumerate(zip(items, facts)):
        values = pixels(index)
        place = frame_place(inverse, labels.shape, *fact, size, slack=0.1)
        if place is None:
            if not values.any():
                continue
            raise InputError(
                f"{path} does not lie on the grid of {grid.name or 'the CT'} (other spacing, position or extent): "
                "name the CT it was drawn on."
            )
        if not label_map:
            number = (frame.get("SegmentIdentificationSequence") or shared.SegmentIdentificationSequence)[0]
            values = values * np.uint16(number.ReferencedSegmentNumber)
        drawn = [np.flatnonzero(values.any(axis=axis)) for axis in (1, 0)]
        if not drawn[0].size:
            continue
        window = tuple(slice(line[0], line[-1] + 1) for line in drawn)
        values = values[window]
        voxels = tuple(np.broadcast_to(index, size)[window] for index in place)
        before = labels[voxels]
        overlap += int(np.count_nonzero((before > 0) & (values > 0)))
        kept = np.where((before > 0) & ((values == 0) | (before < values)), before, values)
        labels[voxels] = kept.astype(labels.dtype)
    known = {0, *(segment.number for segment in segments)}
    if not set(np.unique(labels).tolist()) <= known:
        raise InputError(f"{path} is damaged: it holds voxels of segments that it does not describe.")
    remarks = [f"{overlap} voxels belong to two segments: the first one keeps them."] if overlap else []
    return DicomSegmentation(grid.with_array(labels), segments, referenced_series(dataset), remarks)


def _organ_of_codes(item: Any) -> Organ | None:
    """The organ of a segment's type and laterality; older SNOMED RT codes are understood too."""
    from pydicom.sr.coding import Code

    kind = (item.get("SegmentedPropertyTypeCodeSequence") or [None])[0]
    if kind is None or not kind.get("CodeValue"):
        return None
    code = Code(str(kind.CodeValue), str(kind.get("CodingSchemeDesignator", "")), "")
    modifier = (kind.get("SegmentedPropertyTypeModifierCodeSequence") or [None])[0]
    side = None
    if modifier is not None:
        side_code = Code(str(modifier.get("CodeValue", "")), str(modifier.get("CodingSchemeDesignator", "")), "")
        side = next((key for key in _LATERALITY if side_code == Code(key, "SCT", "")), "another")
    for organ in FLARE22_ORGANS:
        if _KIDNEYS.get(code.value) == organ.key:
            return organ
        if code == Code(organ.type_code, "SCT", "") and side == organ.modifier_code:
            return organ
    return None


def _own_grid(path: Path, facts: Sequence[tuple], size: tuple[int, int]) -> Volume:
    """The grid of a file's frames, from the first to the last place. Raises InputError."""
    orientation, spacing = facts[0][1], facts[0][2]
    normal = np.cross(*orientation)
    positions = np.array([fact[0] for fact in facts])
    places, first = np.unique(np.round(positions @ normal, 2), return_index=True)
    step = float(np.diff(places).min()) if len(places) > 1 else 1.0
    steps = (places - places[0]) / step
    count = int(round(steps[-1])) + 1
    if np.abs(steps - np.rint(steps)).max() > 0.1:
        raise InputError(f"{path} has slices at uneven distances: name the CT it was drawn on.")
    if count * size[0] * size[1] > MAXIMUM_VOXELS:
        raise InputError(f"{path} covers more voxels than can be used ({MAXIMUM_VOXELS:,}).")
    path_vector = positions[first[-1]] - positions[first[0]] if count > 1 else normal
    length = float(np.linalg.norm(path_vector))
    direction = np.column_stack([*orientation, path_vector / length])
    spacing_z = length / (count - 1) if count > 1 else 1.0
    empty = np.broadcast_to(np.uint8(0), (count, *size))
    return Volume(empty, (spacing[1], spacing[0], spacing_z), tuple(positions[first[0]]), direction, str(path))


def _frame_reader(dataset: Any, path: Path, count: int, size: tuple[int, int]) -> Callable[[int], np.ndarray]:
    """Function that gives a frame by its index: (rows, columns) uint16, 1 inside a segment or, in label maps, its
    number. Uncompressed frames are unpacked one at a time. Raises InputError.
    """
    bits, pixels = int(dataset.BitsAllocated), size[0] * size[1]
    kind = dataset.SegmentationType
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP") or bits not in (1, 8, 16):
        raise InputError(f"{path} is of a kind of segmentation that is not supported ({bits} bits per pixel).")
    half = 0.5 * float(dataset.get("MaximumFractionalValue", 1)) if kind == "FRACTIONAL" else None
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed and not syntax.is_deflated:
        if count * pixels > MAXIMUM_VOXELS:
            raise InputError(f"{path} is compressed and too large to be unpacked at once: save it uncompressed.")
        try:
            unpacked = dataset.pixel_array.reshape(count, *size)
        except Exception as error:  # whatever a decoder raises
            raise InputError(f"{path}: its compression cannot be read here; save it uncompressed.") from error

        def stored(index: int) -> np.ndarray:
            return unpacked[index]
    else:
        data = dataset.PixelData
        if len(data) * 8 < count * pixels * bits:
            raise InputError(f"{path} is damaged: it promises {count} frames and holds fewer. Export it again.")
        order = "<" if syntax.is_little_endian else ">"

        def stored(index: int) -> np.ndarray:
            if bits > 1:
                kind = np.uint8 if bits == 8 else np.dtype(f"{order}u2")
                return np.frombuffer(data, kind, pixels, index * pixels * bits // 8).reshape(size)
            begin = index * pixels
            packed = np.frombuffer(data, np.uint8)[begin // 8 : (begin + pixels + 7) // 8]
            return np.unpackbits(packed, bitorder="little")[begin % 8 : begin % 8 + pixels].reshape(size)

    def frame(index: int) -> np.ndarray:
        values = stored(index)
        return (values >= half if half is not None else values).astype(np.uint16)

    return frame
