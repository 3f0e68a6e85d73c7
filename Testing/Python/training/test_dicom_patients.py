"""Single cases between label maps and DICOM: what cannot be written or read is one line, and nothing half is left."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")

from dicom_files import change, ct_and_labels, outline, patient, structure_set  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.files.dicom_segmentation import write_dicom_segmentation  # noqa: E402
from FlareSegmentLib.files.image_io import read_volume  # noqa: E402
from FlareSegmentLib.organs import ORGANS  # noqa: E402
from FlareSegmentTrainingLib.dicom import dicom_patients  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_patients import (  # noqa: E402
    read_labels_of,
    write_patient,
    write_segmentation_of,
)


def test_a_patient_has_a_ct_and_its_organs(tmp_path: Path) -> None:
    volume, labels = ct_and_labels()
    folder = write_patient(tmp_path, "case 1", volume, labels)
    assert sorted(entry.name for entry in folder.iterdir()) == ["ct", "organs.dcm"]
    read, remarks = read_labels_of(folder / "organs.dcm", folder / "ct")
    np.testing.assert_array_equal(read.array, labels)
    assert read.same_grid(volume, 1e-3) and remarks == []
    bare = write_patient(tmp_path, "case 2", volume, None)
    assert [entry.name for entry in bare.iterdir()] == ["ct"]
    back, _ = read_volume(bare)
    np.testing.assert_array_equal(back.array, volume.array)


def test_a_patient_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        write_patient(tmp_path, "case", volume, None)
    assert [entry.name for entry in tmp_path.rglob("*")] == ["case", "notes.txt"]


def test_a_place_that_takes_nothing_is_one_line(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written .*choose another folder"):
        write_patient(tmp_path / "file", "case", volume, None)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("step", ["write_series", "write_dicom_segmentation"])
def test_a_disk_that_fills_up_leaves_no_half_patient(
    tmp_path: Path, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume, labels = ct_and_labels()

    def full(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dicom_patients, step, full)
    with pytest.raises(InputError, match="No space left"):
        write_patient(tmp_path / "out", "case", volume, labels)
    assert not list((tmp_path / "out").iterdir())


def test_a_segmentation_finds_the_series_that_it_was_drawn_on(tmp_path: Path) -> None:
    """Two series in one folder: of those with as many slices, the one on whose slices the labels lie."""
    volume, labels, _ = patient(tmp_path / "ct" / "a", "p", 1)
    patient(tmp_path / "ct" / "b", "p", 2, slices=12)
    write_segmentation_of(tmp_path / "ct", volume.with_array(labels), tmp_path / "s.dcm", ORGANS, manual=True)
    read, _ = read_labels_of(tmp_path / "s.dcm", tmp_path / "ct" / "a")
    np.testing.assert_array_equal(read.array, labels)
    first = pydicom.dcmread(tmp_path / "s.dcm").SegmentSequence[0]
    assert first.SegmentAlgorithmType == "MANUAL"


def test_labels_that_lie_on_no_series_are_refused(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no CT series"):
        write_segmentation_of(tmp_path / "empty", volume.with_array(labels), tmp_path / "s.dcm", ORGANS, manual=False)
    moved, _ = ct_and_labels()
    shifted = type(moved)(labels, moved.spacing, (0.0, 0.0, 0.0), moved.direction, "labels")
    with pytest.raises(InputError):
        write_segmentation_of(tmp_path / "ct", shifted, tmp_path / "s.dcm", ORGANS, manual=False)
    assert not (tmp_path / "s.dcm").exists()


def test_a_structure_set_needs_its_ct(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    structure_set(tmp_path / "rs.dcm", files[0], {"Milz": outline(volume, labels == 4)})
    with pytest.raises(InputError, match="has no grid: name its CT"):
        read_labels_of(tmp_path / "rs.dcm", None)
    read, _ = read_labels_of(tmp_path / "rs.dcm", tmp_path / "ct")
    np.testing.assert_array_equal(read.array == 4, labels == 4)


@pytest.mark.parametrize(
    ("damage", "words"), [("missing", "cannot be read: No such file"), ("text", "no DICOM file, or it is damaged")]
)
def test_what_is_no_dicom_file_is_one_line(tmp_path: Path, damage: str, words: str) -> None:
    if damage == "text":
        (tmp_path / "s.dcm").write_text("labels")
    with pytest.raises(InputError, match=words):
        read_labels_of(tmp_path / "s.dcm", None)


def test_labels_of_no_organ_are_refused(tmp_path: Path) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    structure_set(tmp_path / "rs.dcm", files[0], {"PTV": outline(volume, labels == 1)})
    with pytest.raises(InputError, match="none of the organs"):
        read_labels_of(tmp_path / "rs.dcm", tmp_path / "ct")
    write_dicom_segmentation(tmp_path / "s.dcm", volume.with_array(labels), files)

    def rename(dataset):
        for number, segment in enumerate(dataset.SegmentSequence):
            segment.SegmentLabel = f"Tumor {number}"
            segment.SegmentedPropertyTypeCodeSequence[0].CodeValue = f"9{number}"
        return dataset.SegmentSequence

    change([tmp_path / "s.dcm"], SegmentSequence=rename)
    with pytest.raises(InputError, match="none of the organs"):
        read_labels_of(tmp_path / "s.dcm", tmp_path / "ct")
