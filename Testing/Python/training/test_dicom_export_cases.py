"""Cases of a DICOM export one by one: label objects that contradict each other or are damaged, and what is left out."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")

from dicom_files import change, ct_and_labels, outline, patient, structure_set  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.files.dicom_segmentation import write_dicom_segmentation  # noqa: E402
from FlareSegmentTrainingLib.dicom import dicom_export  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_export import DicomCase, look_through, write_mapping  # noqa: E402


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tmp_path / "export"


def one_case(export: Path, training: bool = True) -> DicomCase:
    (case,) = look_through(export, training=training, say=lambda line: None)[0]
    return case


def test_of_two_label_objects_the_segmentation_counts(export: Path) -> None:
    """The structure set has a liver of its own and a spleen that the segmentation lacks."""
    volume, labels, files = patient(export / "ct", "p")
    drawn = np.where(labels == 4, 0, labels).astype(np.uint8)
    write_dicom_segmentation(export / "seg.dcm", volume.with_array(drawn), files)
    other = np.zeros_like(labels)
    other[3:6, 10:12, 5:7] = 1
    structure_set(
        export / "rs.dcm", files[0], {"Liver": outline(volume, other == 1), "Spleen": outline(volume, labels == 4)}
    )
    case = one_case(export)
    _, truth, remarks = case.read()
    np.testing.assert_array_equal(truth == 1, labels == 1)
    np.testing.assert_array_equal(truth == 4, labels == 4)
    assert any("liver is in two label objects" in remark for remark in remarks)
    assert case.labeled >= {"liver", "spleen"}


def test_labels_that_cannot_be_read_are_told_without_their_place(export: Path) -> None:
    volume, labels, files = patient(export / "ct", "p")
    write_dicom_segmentation(export / "seg.dcm", volume.with_array(labels), files)
    structure_set(export / "rs.dcm", files[0], {"Spleen": outline(volume, labels == 4)})
    case = one_case(export)
    (export / "seg.dcm").write_bytes((export / "seg.dcm").read_bytes()[:3000])
    _, truth, remarks = case.read()
    assert set(np.unique(truth)) == {0, 4} and case.labeled == {"spleen"}
    assert any("Its DICOM Segmentation" in remark for remark in remarks)
    assert not any(str(export) in remark for remark in remarks)
    (export / "rs.dcm").write_bytes(b"")
    with pytest.raises(InputError, match="no usable labels") as error:
        case.read()
    assert str(export) not in str(error.value)


def test_a_file_that_went_away_is_an_input_error(export: Path) -> None:
    volume, labels, files = patient(export / "ct", "p")
    write_dicom_segmentation(export / "seg.dcm", volume.with_array(labels), files)
    case = one_case(export)
    before = case.content_hash()
    assert before == one_case(export).content_hash()
    files[3].unlink()
    with pytest.raises(InputError, match="a file cannot be read: No such file"):
        case.content_hash()


@pytest.mark.parametrize("training", [True, False])
def test_labels_of_a_series_with_two_volumes_belong_to_neither(export: Path, training: bool) -> None:
    """Two reconstructions of other extents in one series: which of them was drawn on is not said."""
    volume, labels, files = patient(export / "a", "p", 1)
    write_dicom_segmentation(export / "seg.dcm", volume.with_array(labels), files)
    _, _, second = patient(export / "b", "p", 2, seed=1)
    uid = pydicom.dcmread(files[0]).SeriesInstanceUID
    change(second, SeriesInstanceUID=uid, ImageOrientationPatient=[1, 0, 0, 0, 0.98480775, 0.17364818])
    cases, left_out = look_through(export, training=training, say=lambda line: None)
    if training:
        assert cases == [] and sum("holds several volumes" in item.reason for item in left_out) >= 1
    else:
        assert cases and all(case.label_objects == () and not case.labeled for case in cases)


def test_labels_without_their_series_are_left_out_with_the_reason(export: Path, tmp_path: Path) -> None:
    _, labels, files = patient(export / "ct", "p")
    volume, _, lost = patient(tmp_path / "lost", "q", seed=1)
    write_dicom_segmentation(export / "lost.dcm", volume.with_array(labels), lost)
    structure_set(export / "rs.dcm", files[0], {"Spleen": outline(volume, labels == 4)})
    change([export / "rs.dcm"], ReferencedFrameOfReferenceSequence=None)
    said: list[str] = []
    cases, left_out = look_through(export, training=False, say=said.append)
    assert len(cases) == 1
    assert sorted(item.reason for item in left_out) == [
        "DICOM Segmentation: the series it was drawn on is not there",
        "structure set: it does not name its series",
    ]
    assert all(item.name.startswith("labels_") for item in left_out) and any("lost.dcm" in line for line in said)


def test_labels_that_name_no_organ_are_not_for_training(export: Path) -> None:
    volume, labels, files = patient(export / "ct", "p")
    structure_set(export / "rs.dcm", files[0], {"PTV": outline(volume, labels == 1)})
    cases, left_out = look_through(export, training=True, say=lambda line: None)
    assert cases == [] and "name none of the organs" in left_out[0].reason


def test_sagittal_slices_are_not_for_training(export: Path) -> None:
    volume, labels, files = patient(export / "ct", "p")
    write_dicom_segmentation(export / "seg.dcm", volume.with_array(labels), files)
    for number, file in enumerate(files):
        change([file], ImageOrientationPatient=[0, 1, 0, 0, 0, -1], ImagePositionPatient=[2.5 * number, 0, 0])
    assert "its slices are not axial" in [
        item.reason.split(": ")[1] for item in look_through(export, training=True, say=lambda line: None)[1]
    ]


def test_two_series_of_one_place_have_two_names(export: Path) -> None:
    patient(export, "p", 1)
    volume, _ = ct_and_labels(seed=1)
    _, _, second = patient(export / "more", "p", 1, seed=1)
    for file in second:
        os.replace(file, export / f"second_{file.name}")
    names = [case.name for case in look_through(export, training=False, say=lambda line: None)[0]]
    assert len(names) == len(set(names)) == 2 and names[1].endswith("(2)")


def test_the_mapping_is_its_owners_alone_and_replaces_nothing(export: Path, tmp_path: Path, monkeypatch) -> None:
    patient(export / "ct", "DOERINGER")
    rows = [("case_1", one_case(export, training=False))]
    write_mapping(tmp_path / "mapping.csv", rows)
    text = (tmp_path / "mapping.csv").read_text()
    assert text.splitlines()[1].startswith("case_1,DOERINGER,")
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "mapping.csv").stat().st_mode) == 0o600
    with pytest.raises(InputError, match="is there already"):
        write_mapping(tmp_path / "mapping.csv", [])
    assert (tmp_path / "mapping.csv").read_text() == text
    with pytest.raises(InputError, match="cannot be written"):
        write_mapping(tmp_path / "nowhere" / "mapping.csv", rows)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dicom_export.os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        write_mapping(tmp_path / "second.csv", rows)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["export", "mapping.csv"], "it names patients"
