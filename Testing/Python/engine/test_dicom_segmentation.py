"""DICOM Segmentations: out and in with identical labels, read by highdicom too, with codes of Slicer's terminology."""

from __future__ import annotations

import builtins
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
highdicom = pytest.importorskip("highdicom", reason="highdicom is not installed")

from dicom_files import OBLIQUE, change, ct_and_labels, enhanced, patient  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.files import dicom_segmentation  # noqa: E402
from FlareSegmentLib.files.dicom_segmentation import read_dicom_segmentation, write_dicom_segmentation  # noqa: E402
from FlareSegmentLib.files.image_io import read_labels, read_volume  # noqa: E402
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS  # noqa: E402
from FlareSegmentLib.volume import Volume  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series  # noqa: E402


def as_highdicom_sees_it(path: Path, volume: Volume) -> np.ndarray:
    """The labels of a file, read and placed by highdicom alone, on the volume's grid in FlareSegment's values."""
    file = highdicom.seg.segread(path)
    result = np.zeros(volume.array.shape, np.uint8)
    inverse = np.linalg.inv(volume.affine_lps)
    for number in file.segment_numbers:
        description = file.get_segment_description(number)
        (organ,) = (organ for organ in FLARE22_ORGANS if organ.name == description.segment_label)
        part = file.get_volume(segment_numbers=[number], combine_segments=True, relabel=True)
        indices = np.argwhere(part.array > 0)
        places = (indices @ part.affine[:3, :3].T + part.affine[:3, 3]) @ inverse[:3, :3].T + inverse[:3, 3]
        assert np.abs(places - np.rint(places)).max() < 0.01
        i, j, k = np.rint(places).astype(int).T
        result[k, j, i] = organ.label
    return result


@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), OBLIQUE], ids=["axial", "prone", "oblique"]
)
def test_round_trip(tmp_path: Path, direction: np.ndarray) -> None:
    volume, labels = ct_and_labels(direction=direction)
    files = write_series(tmp_path / "ct", volume, Identity("p"))
    shuffled = [files[index] for index in np.random.default_rng(1).permutation(len(files))]
    path = tmp_path / "seg.dcm"
    write_dicom_segmentation(path, volume.with_array(labels), shuffled, algorithm=("abdomen", "1.2"))
    ct, _ = read_volume(tmp_path / "ct")
    back = read_dicom_segmentation(path, ct)
    np.testing.assert_array_equal(back.organ_labels().array, labels)
    assert back.labels.same_grid(volume, 1e-4) and back.warnings == []
    assert back.series_uid == pydicom.dcmread(files[0]).SeriesInstanceUID
    np.testing.assert_array_equal(as_highdicom_sees_it(path, volume), labels)
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["seg.dcm"]


@pytest.mark.parametrize("case", ["c3l00189", "matrad_pat001"])
def test_real_round_trip(tmp_path: Path, flare_data: Path, case: str, capsys: pytest.CaptureFixture) -> None:
    volume, _ = read_volume(flare_data / "val" / f"{case}_ct.nii.gz")
    labels = read_labels(flare_data / "val" / f"{case}_labels.nii.gz", like=volume)
    files = write_series(tmp_path / "ct", volume, Identity(case))
    write_dicom_segmentation(tmp_path / "seg.dcm", labels, files)
    back = read_dicom_segmentation(tmp_path / "seg.dcm", volume).organ_labels()
    other = as_highdicom_sees_it(tmp_path / "seg.dcm", volume)
    with capsys.disabled():
        wrong = [int(np.count_nonzero(array != labels.array)) for array in (back.array, other)]
        print(
            f"\n{case}: {np.count_nonzero(labels.array)} voxels of organs, wrong after the round trip {wrong[0]}, as "
            f"highdicom reads it {wrong[1]}; {(tmp_path / 'seg.dcm').stat().st_size / 1e6:.1f} MB"
        )
    assert wrong == [0, 0] and back.same_grid(volume, 1e-4)


def test_labels_in_another_order_of_axes(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    turned = Volume(
        np.ascontiguousarray(labels.transpose(2, 1, 0)[::-1]),
        volume.spacing[::-1],
        tuple((volume.affine_lps @ [39, 0, 0, 1])[:3]),
        np.column_stack([[0, 0, 1], [0, 1, 0], [-1, 0, 0]]),
    )
    write_dicom_segmentation(tmp_path / "seg.dcm", turned, files)
    np.testing.assert_array_equal(read_dicom_segmentation(tmp_path / "seg.dcm", volume).organ_labels().array, labels)
    back = read_dicom_segmentation(tmp_path / "seg.dcm", turned.with_array(turned.array)).organ_labels()
    np.testing.assert_array_equal(back.array, turned.array)


def test_without_its_ct_the_grid_is_that_of_the_frames(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(labels), files)
    back = read_dicom_segmentation(tmp_path / "seg.dcm")
    first, last = np.flatnonzero(labels.any(axis=(1, 2)))[[0, -1]]
    np.testing.assert_array_equal(back.organ_labels().array, labels[first : last + 1])
    np.testing.assert_allclose(back.labels.origin, (volume.affine_lps @ [0, 0, first, 1])[:3], atol=1e-4)
    np.testing.assert_allclose(back.labels.spacing, volume.spacing, atol=1e-4)


def test_codes_patient_and_references(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "case_7")
    write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(labels), files, algorithm=("abdomen", "3"))
    file = pydicom.dcmread(tmp_path / "seg.dcm")
    source = pydicom.dcmread(files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert file[keyword].value == source[keyword].value
    assert file.SOPClassUID.name == "Segmentation Storage" and file.SegmentationType == "BINARY"
    referenced = {
        str(item.ReferencedSOPInstanceUID) for item in file.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    }
    assert referenced <= {str(pydicom.dcmread(path).SOPInstanceUID) for path in files} and len(referenced) > 10
    for organ, item in zip(ORGANS, file.SegmentSequence, strict=True):
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        assert (kind.CodingSchemeDesignator, kind.CodeValue, kind.CodeMeaning) == (
            "SCT",
            organ.type_code,
            organ.type_meaning,
        )
        assert item.SegmentedPropertyCategoryCodeSequence[0].CodeValue == "123037004"
        modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence") or []
        assert [m.CodeValue for m in modifiers] == ([organ.modifier_code] if organ.modifier_code else [])
        assert item.SegmentLabel == organ.name and item.SegmentAlgorithmType == "AUTOMATIC"
        assert item.SegmentAlgorithmName == "abdomen" and len(item.RecommendedDisplayCIELabValue) == 3
    # white is L* = 100, a* = b* = 0
    np.testing.assert_allclose(dicom_segmentation._cielab((255, 255, 255)), (65535, 32896, 32896), atol=40)


def test_a_ct_without_what_anonymizing_removes(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    removed = (
        "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientName", "PatientID",
        "PatientBirthDate", "PatientSex", "SliceThickness", "Manufacturer", "PositionReferenceIndicator", "KVP",
    )  # fmt: skip
    change(files, **dict.fromkeys(removed))
    write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(labels), files)
    np.testing.assert_array_equal(read_dicom_segmentation(tmp_path / "seg.dcm", volume).organ_labels().array, labels)
    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert measures.SliceThickness == 2.5


def recoded(path: Path, number: int, **codes: object) -> None:
    dataset = pydicom.dcmread(path)
    kind = dataset.SegmentSequence[number].SegmentedPropertyTypeCodeSequence[0]
    for keyword, value in codes.items():
        if value is None:
            del kind[keyword]
        else:
            setattr(kind, keyword, value)
    dataset.save_as(path)


def test_other_ways_to_code_an_organ(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    path = tmp_path / "seg.dcm"
    write_dicom_segmentation(path, volume.with_array(labels), files)
    recoded(path, 0, CodeValue="T-62000", CodingSchemeDesignator="SRT")
    recoded(path, 1, CodeValue="9846003", SegmentedPropertyTypeModifierCodeSequence=None)
    recoded(path, 2, SegmentedPropertyTypeModifierCodeSequence=None)  # a kidney without its side
    recoded(path, 3, CodeValue="113345001")  # abdomen
    segments = read_dicom_segmentation(path, volume).segments
    assert [segment.organ and segment.organ.key for segment in segments] == ["liver", "right_kidney", None, None]
    assert [segment.name for segment in segments] == [organ.name for organ in ORGANS]


def test_all_thirteen_organs_and_absent_ones(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    labels = np.zeros_like(labels)
    for organ in FLARE22_ORGANS[1:]:
        labels[5:8, 2 * organ.label : 2 * organ.label + 2, 4:9] = organ.label
    write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(labels), files, organs=FLARE22_ORGANS)
    back = read_dicom_segmentation(tmp_path / "seg.dcm", volume)
    np.testing.assert_array_equal(back.organ_labels().array, labels)
    assert [segment.organ for segment in back.segments] == list(FLARE22_ORGANS[1:])


def test_sizes_that_do_not_fill_bytes(tmp_path: Path) -> None:
    volume, labels = ct_and_labels()
    volume = Volume(volume.array[:, :31, :37], volume.spacing, volume.origin, volume.direction)
    files = write_series(tmp_path / "ct", volume, Identity("p"))
    cut = np.ascontiguousarray(labels[:, :31, :37])
    write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(cut), files)
    np.testing.assert_array_equal(read_dicom_segmentation(tmp_path / "seg.dcm", volume).organ_labels().array, cut)


def test_enhanced_ct_as_source(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    enhanced(tmp_path / "enhanced" / "ct.dcm", files, [3, 1, 0, 2, *range(19, 3, -1)])
    write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(labels), [tmp_path / "enhanced" / "ct.dcm"])
    np.testing.assert_array_equal(read_dicom_segmentation(tmp_path / "seg.dcm", volume).organ_labels().array, labels)


@pytest.mark.parametrize("kind", ["fractional", "labelmap", "rle"])
def test_other_kinds_of_segmentation(tmp_path: Path, kind: str) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    headers = [pydicom.dcmread(file) for file in files]
    present = [organ for organ in ORGANS if (labels == organ.label).any()]
    descriptions = [dicom_segmentation._description(highdicom, organ, n, None) for n, organ in enumerate(present, 1)]
    masks = np.stack([labels == organ.label for organ in present], axis=-1)
    kinds = {"fractional": "FRACTIONAL", "labelmap": "LABELMAP", "rle": "FRACTIONAL"}
    pixels = labels if kind == "labelmap" else np.where(masks, 0.7, 0.2).astype(np.float32)
    syntax = "1.2.840.10008.1.2.5" if kind == "rle" else "1.2.840.10008.1.2.1"
    file = highdicom.seg.Segmentation(
        headers, pixels, kinds[kind], descriptions, highdicom.UID(), 1, highdicom.UID(), 1, "x", "x", "1", "1",
        transfer_syntax_uid=syntax, omit_empty_frames=False,
    )  # fmt: skip
    file.save_as(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(read_dicom_segmentation(tmp_path / "seg.dcm", volume).organ_labels().array, labels)


def test_overlapping_segments_are_told(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    headers = [pydicom.dcmread(file) for file in files]
    masks = np.stack([labels == 1, labels > 0], axis=-1).astype(np.uint8)
    descriptions = [dicom_segmentation._description(highdicom, organ, n, None) for n, organ in enumerate(ORGANS[:2], 1)]
    highdicom.seg.Segmentation(
        headers, masks, "BINARY", descriptions, highdicom.UID(), 1, highdicom.UID(), 1, "x", "x", "1", "1"
    ).save_as(tmp_path / "seg.dcm")
    back = read_dicom_segmentation(tmp_path / "seg.dcm", volume)
    np.testing.assert_array_equal(back.labels.array, np.where(labels == 1, 1, np.where(labels > 0, 2, 0)))
    assert back.warnings == [
        f"{np.count_nonzero(labels == 1)} voxels belong to two segments: the first one keeps them."
    ]


def test_another_grid_is_refused(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    path = tmp_path / "seg.dcm"
    write_dicom_segmentation(path, volume.with_array(labels), files)
    moved = [
        Volume(volume.array, volume.spacing, (volume.origin[0] + 0.3, *volume.origin[1:]), volume.direction, "other"),
        Volume(volume.array, volume.spacing, (*volume.origin[:2], volume.origin[2] + 1.25), volume.direction, "other"),
        Volume(volume.array, (0.81, *volume.spacing[1:]), volume.origin, volume.direction, "other"),
        Volume(volume.array[:10], volume.spacing, volume.origin, volume.direction, "other"),
        Volume(volume.array, volume.spacing, volume.origin, OBLIQUE, "other"),
    ]
    for other in moved:
        with pytest.raises(InputError, match="does not lie on the grid of other"):
            read_dicom_segmentation(path, other)
        if other is not moved[3]:
            with pytest.raises(InputError, match="do not lie on the slices"):
                write_dicom_segmentation(tmp_path / "no.dcm", other.with_array(labels), files)
    assert not (tmp_path / "no.dcm").exists()


def test_bad_input_gives_one_line(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    good = volume.with_array(labels)
    path = tmp_path / "seg.dcm"
    with pytest.raises(InputError, match="hold none of the organs"):
        write_dicom_segmentation(path, volume.with_array(np.zeros_like(labels)), files)
    with pytest.raises(InputError, match="needs the DICOM files"):
        write_dicom_segmentation(path, good, [])
    with pytest.raises(InputError, match="do not lie on the slices"):
        write_dicom_segmentation(path, good, files[:8])
    with pytest.raises(InputError, match="cannot be written"):
        write_dicom_segmentation(tmp_path / "missing" / "seg.dcm", good, files)
    (tmp_path / "text").write_text("hello")
    for file, words in (
        (tmp_path / "text", "no DICOM file"),
        (files[0], "no DICOM Segmentation"),
        (tmp_path / "x", "cannot be"),
    ):
        with pytest.raises(InputError, match=words):
            read_dicom_segmentation(file)
    change(files, FrameOfReferenceUID=None)
    with pytest.raises(InputError, match="lacks what a DICOM Segmentation needs"):
        write_dicom_segmentation(path, good, files)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["ct", "text"]


def test_damaged_files_give_one_line(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    path = tmp_path / "seg.dcm"
    write_dicom_segmentation(path, volume.with_array(labels), files)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    messages = []
    for attempt in range(60):
        data = bytearray(whole[: random.integers(200, len(whole))] if attempt % 2 else whole)
        for place in random.integers(132, min(len(data), 9000), 12):
            data[place] = random.integers(0, 256)
        path.write_bytes(data)
        try:
            read_dicom_segmentation(path, volume)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 30 and not any("\n" in message for message in messages)
    path.write_bytes(whole)
    dataset = pydicom.dcmread(path)  # a header that promises more than there is
    dataset.Rows = dataset.Columns = 60000
    dataset.save_as(path)
    with pytest.raises(InputError, match="damaged"):
        read_dicom_segmentation(path, volume)


@pytest.mark.parametrize("package", ["pydicom", "highdicom"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    real = builtins.__import__

    def without(name: str, *arguments, **options):
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=rf"package {package}.*pip.*install"):
        write_dicom_segmentation(tmp_path / "seg.dcm", volume.with_array(labels), files)


@pytest.mark.parametrize("name", ["liver_1frame.dcm", "liver_expb_1frame.dcm"])
def test_segmentations_of_pydicom(tmp_path: Path, name: str) -> None:
    """Both describe three frames and hold one; cut to that one, they are read, in either byte order."""
    file = Path(pydicom.__file__).parent / "data" / "test_files" / name
    with pytest.raises(InputError, match="promises 3 frames and holds fewer"):
        read_dicom_segmentation(file)
    dataset = pydicom.dcmread(file)
    del dataset.PerFrameFunctionalGroupsSequence[1:]
    dataset.save_as(tmp_path / "seg.dcm")
    back = read_dicom_segmentation(tmp_path / "seg.dcm")
    np.testing.assert_array_equal(back.labels.array[0] > 0, dataset.pixel_array)
    assert back.labels.array.any() and back.labels.array.shape == (1, 512, 512)
