"""`prepare.py` with DICOM: an export with all sorts of files becomes cases that tell of nobody; blocks and back."""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
import stat
from pathlib import Path

import numpy as np
import prepare
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
pytest.importorskip("highdicom", reason="highdicom is not installed")

from dicom_files import change, ct_and_labels, outline, patient, structure_set  # noqa: E402
from test_volume import rotation  # noqa: E402

from FlareSegmentLib.files.dicom_segmentation import write_dicom_segmentation  # noqa: E402
from FlareSegmentLib.files.image_io import read_labels, read_volume, write_labels  # noqa: E402
from FlareSegmentLib.organs import ORGANS  # noqa: E402
from FlareSegmentLib.volume import Volume  # noqa: E402
from FlareSegmentTrainingLib.datasets.cases import find_cases  # noqa: E402
from FlareSegmentTrainingLib.datasets.conversion import write_nifti  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series  # noqa: E402


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, dict, str]:
    status = prepare.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1]) if "--json" in arguments and status == 0 else {}
    return status, result, captured.out + captured.err


def rows(folder: Path) -> dict[str, dict[str, str]]:
    with open(folder / "report.csv", newline="", encoding="utf-8") as stream:
        return {row["case"]: row for row in csv.DictReader(stream)}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Two patients: DOERINGER with a DICOM Segmentation and much else, ROEMER with a structure set."""
    folder = tmp_path / "export"
    volume, labels, files = patient(folder / "DOERINGER" / "S1", "DOERINGER", 1)
    seg = folder / "DOERINGER" / "seg" / "DOERINGER-seg"
    seg.parent.mkdir()
    write_dicom_segmentation(seg, volume.with_array(labels), files)
    for number, (name, seed) in enumerate((("thin", 2), ("mpr", 3), ("second", 4), ("gap", 5), ("scout", 6)), start=2):
        _, _, made = patient(folder / "DOERINGER" / name, "DOERINGER", number, seed, 30 if name == "mpr" else 20)
        if name == "mpr":
            change(made, ImageType=["DERIVED", "PRIMARY", "MPR"])
        elif name == "second":
            change(made, ImageType=["DERIVED", "SECONDARY", "AXIAL"])
        elif name == "gap":
            for file in made[8:11]:
                file.unlink()
        elif name == "scout":
            change(made, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    patient(folder / "DOERINGER" / "short", "DOERINGER", 9, 7, 10)
    _, _, mr = patient(folder / "DOERINGER" / "mr", "DOERINGER", 10, 8)
    change(mr, Modality="MR")
    # labels of a series that is not there
    _, lost_labels, lost = patient(tmp_path / "lost", "DOERINGER", 11, 9)
    write_dicom_segmentation(folder / "DOERINGER" / "lost.dcm", volume.with_array(lost_labels), lost)
    (folder / "README.txt").write_text("hello")
    (folder / "DICOMDIR").write_bytes(b"index")
    volume, labels, files = patient(folder / "ROEMER", "ROEMER", 1, 20)
    names = {"Leber": 1, "Niere re": 2, "Niere li": 3, "Milz": 4}
    drawn = np.where((np.indices(labels.shape)[0] == 8) & (labels == 0), 0, labels)
    drawn[8, 14, 9] = 1
    structures = {name: outline(volume, drawn == value) for name, value in names.items()}
    structures["Niere li"] = structures["Niere li"][::2]
    structure_set(folder / "ROEMER" / "RS.dcm", files[0], structures)
    for file in (folder / "DOERINGER" / "S1").iterdir():
        change([file], PatientBirthDate="19580203", ReferringPhysicianName="DR^GEHEIM", PatientName="DOERINGER^JOHANN")
    return folder


def test_an_export_becomes_a_training_folder(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    output, mapping = tmp_path / "out", tmp_path / "mapping.csv"
    arguments = ("from-dicom", export, "--output", output, "--training", "--json")
    status, result, said = run(capsys, *arguments)
    assert status == 0 and result["taken"] == 2, said
    cases = find_cases(output)
    assert len(cases) == 2 and all(case.name.startswith("case_") for case in cases)
    volume, labels = ct_and_labels(seed=0)
    (segmented,) = (case for case in cases if len(case.labeled) == 4)
    (contoured,) = (case for case in cases if case is not segmented)
    read, truth, _ = segmented.read()
    np.testing.assert_array_equal(read.array, volume.array)
    np.testing.assert_array_equal(truth, labels)
    assert read.same_grid(volume, 1e-3)
    # the left kidney has contours on every second slice: it is not labeled, and training ignores it
    assert contoured.labeled == {"liver", "right_kidney", "spleen"}
    truth = contoured.read()[1]
    expected = ct_and_labels(seed=20)[1]
    expected[8, 14, 9] = 1  # structures were drawn without the hole
    np.testing.assert_array_equal(truth, np.where(expected == 3, 0, expected))
    reasons = " | ".join(row["reason"] for row in rows(output).values())
    for words in (
        "CT, 20 slices: no DICOM Segmentation or structure set refers to it",
        "reconstruction (mpr)",
        "derived secondary",
        "localizer",
        "CT, 10 slices: it has fewer than 16 slices",
        "modality is MR",
        "DICOM Segmentation: the series it was drawn on is not there",
    ):
        assert words in reasons, words
    remarks = {name: row["remarks"] for name, row in rows(output).items()}
    assert "left_kidney is not taken: 2 slices between its contours have none" in remarks[contoured.name]
    assert "1 files are no DICOM" in said or "2 files are no DICOM" in said
    assert not mapping.exists()

    status, result, _ = run(capsys, *arguments, "--keep-mapping", mapping)
    assert (status, result["taken"], result["present"]) == (0, 0, 2)
    if os.name == "posix":
        assert stat.S_IMODE(mapping.stat().st_mode) == 0o600
    with open(mapping, newline="", encoding="utf-8") as stream:
        assert {row["case"]: row["patient_id"] for row in csv.DictReader(stream)} == {
            segmented.name: "DOERINGER",
            contoured.name: "ROEMER",
        }


def test_nothing_tells_of_a_patient(export: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert run(capsys, "from-dicom", export, "--output", tmp_path / "out")[0] == 0
    uids = {str(pydicom.dcmread(file).SeriesInstanceUID) for file in (export / "ROEMER").iterdir()}
    for path in (tmp_path / "out").iterdir():
        content = path.read_bytes()
        content = (gzip.decompress(content) if path.suffix == ".gz" else content).lower()
        for word in ("doeringer", "johann", "roemer", "1958", "geheim", "s1", "2.25.", *uids):
            assert word.encode() not in content or (word == "s1" and path.suffix == ".gz"), (path.name, word)
            assert word not in path.name.lower()


def test_without_training_every_ct_volume_is_converted(export: Path, tmp_path: Path, capsys) -> None:
    status, result, _ = run(capsys, "from-dicom", export, "--output", tmp_path / "out", "--json")
    assert status == 0 and result["taken"] == 6  # S1, thin, mpr, second, short, ROEMER
    labeled = [case for case in result["cases"] if case["facts"].get("organs_ml")]
    assert len(labeled) == 2
    assert len(list((tmp_path / "out").glob("*_ct.nii.gz"))) == 6
    assert len(list((tmp_path / "out").glob("*_labels.nii.gz"))) == 2
    reasons = " | ".join(row["reason"] for row in rows(tmp_path / "out").values())
    assert "about 3 slices are missing" in reasons and "localizer" in reasons
    patients = {entry["patient"] for entry in json.loads((tmp_path / "out/quality.json").read_text()).values()}
    assert len(patients) == 2 and all(name.startswith("case_") for name in patients)
    assert run(capsys, "from-dicom", export, "--output", tmp_path / "out", "--json")[1]["present"] == 6


def test_repeated_slices_and_tilt_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volume, labels, files = patient(tmp_path / "export/a", "A")
    write_dicom_segmentation(tmp_path / "export/a.dcm", volume.with_array(labels), files)
    for number, file in enumerate(files[:5]):
        copy = tmp_path / "export/a" / f"again{number}.dcm"
        shutil.copy(file, copy)
        change([copy], AcquisitionNumber=2, SOPInstanceUID=f"1.2.3.{number + 1}")
    step = rotation(12, (1, 0, 0))[:, 2]
    volume, labels = ct_and_labels(seed=3)
    tilted = Volume(
        volume.array, volume.spacing, volume.origin, np.column_stack([np.eye(3)[:, 0], np.eye(3)[:, 1], step])
    )
    files = write_series(tmp_path / "export/b", tilted, Identity("B"))
    write_dicom_segmentation(tmp_path / "export/b.dcm", tilted.with_array(labels), files)
    assert run(capsys, "from-dicom", tmp_path / "export", "--output", tmp_path / "out", "--training")[0] == 0
    remarks = " | ".join(row["remarks"] for row in rows(tmp_path / "out").values())
    assert "5 slices lie at the place of another one" in remarks
    assert "gantry tilt of 12.0 degrees straightened; values were interpolated" in remarks
    for case in find_cases(tmp_path / "out"):
        read, truth, _ = case.read()
        np.testing.assert_allclose(read.direction, np.eye(3), atol=1e-5)
        for organ in ORGANS:
            assert (truth == organ.label).sum() == pytest.approx((labels == organ.label).sum(), rel=0.15), organ.key


def test_to_dicom_and_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volumes = {}
    for name, seed in (("one", 1), ("two words/../x", 2)):
        folder = tmp_path / "cases"
        folder.mkdir(exist_ok=True)
        volumes[name], labels = ct_and_labels(seed=seed)
        write_nifti(folder / f"{name.replace('/', '_')}_ct.nii.gz", volumes[name].array, volumes[name])
        write_labels(folder / f"{name.replace('/', '_')}_labels.nii.gz", labels, volumes[name])
    assert run(capsys, "to-dicom", tmp_path / "cases", "--output", tmp_path / "dicom")[0] == 0
    assert sorted(entry.name for entry in (tmp_path / "dicom").iterdir()) == ["one", "two_words_.._x"]
    studies = {pydicom.dcmread(file).StudyInstanceUID for file in (tmp_path / "dicom").rglob("*.dcm")}
    assert len(studies) == 2
    assert run(capsys, "from-dicom", tmp_path / "dicom", "--output", tmp_path / "out", "--training")[0] == 0
    arrays = [case.read()[0].array for case in find_cases(tmp_path / "out")]
    assert all(any(np.array_equal(volume.array, array) for array in arrays) for volume in volumes.values())
    assert all(len(case.labeled) == 4 for case in find_cases(tmp_path / "out"))


@pytest.mark.parametrize("form", ["nifti", "dicom"])
@pytest.mark.parametrize(("slices", "sizes"), [(64, [20]), (8, [8, 8, 4]), (19, [20]), (10, [10, 10])])
def test_blocks_and_back(tmp_path: Path, capsys, form: str, slices: int, sizes: list[int]) -> None:
    volume, labels = ct_and_labels(direction=rotation(9, (1, 2, 0)))
    (tmp_path / "in").mkdir()
    write_nifti(tmp_path / "in/a_ct.nii.gz", volume.array, volume)
    write_labels(tmp_path / "in/a_labels.nii.gz", labels, volume)
    arguments = ("--output", tmp_path / "blocks", "--slices", slices, "--format", form, "--json")
    status, result, _ = run(capsys, "blocks", tmp_path / "in", *arguments)
    assert status == 0
    manifest = json.loads((tmp_path / "blocks/blocks.json").read_text())["a"]
    assert [block["slices"] for block in manifest["blocks"]] == sizes and len(result["blocks"]["a"]) == len(sizes)
    if form == "nifti":
        blocks = find_cases(tmp_path / "blocks", left_out=print)
        assert {case.patient for case in blocks} == {"a"} and len(blocks) == len(sizes)
    else:
        studies = {pydicom.dcmread(file).StudyInstanceUID for file in (tmp_path / "blocks").rglob("*.dcm")}
        assert len(studies) == 1
    assert run(capsys, "join", tmp_path / "blocks", "--output", tmp_path / "whole")[0] == 0
    back, _ = read_volume(tmp_path / "whole/a_ct.nii.gz")
    before, _ = read_volume(tmp_path / "in/a_ct.nii.gz")
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.array.dtype == volume.array.dtype and back.same_grid(before, 1e-4)
    if form == "nifti":
        np.testing.assert_array_equal(read_labels(tmp_path / "whole/a_labels.nii.gz", like=back).array, labels)


def test_a_dicom_folder_in_blocks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volume, _, _ = patient(tmp_path / "dicom", "DOERINGER")
    arguments = ("--output", tmp_path / "blocks", "--slices", 8)
    assert run(capsys, "blocks", tmp_path / "dicom", *arguments)[0] == 0
    assert run(capsys, "join", tmp_path / "blocks", "--output", tmp_path / "whole")[0] == 0
    (file,) = (tmp_path / "whole").glob("case_*_ct.nii.gz")
    back, _ = read_volume(file)
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.same_grid(volume, 1e-3)


@pytest.mark.parametrize("damage", ["missing", "changed", "outside", "exists"])
def test_blocks_that_do_not_fit_are_refused(tmp_path: Path, capsys, damage: str) -> None:
    volume, _ = ct_and_labels()
    write_nifti(tmp_path / "a_ct.nii.gz", volume.array, volume)
    assert run(capsys, "blocks", tmp_path / "a_ct.nii.gz", "--output", tmp_path / "blocks", "--slices", 8)[0] == 0
    target = tmp_path / "blocks/a_block02_ct.nii.gz"
    if damage == "missing":
        target.unlink()
    elif damage == "changed":
        shutil.copy(tmp_path / "blocks/a_block01_ct.nii.gz", target)
    elif damage == "outside":
        text = (tmp_path / "blocks/blocks.json").read_text()
        (tmp_path / "blocks/blocks.json").write_text(text.replace("a_block02", "../a_block02"))
    else:
        (tmp_path / "whole").mkdir()
        (tmp_path / "whole/a_ct.nii.gz").write_text("mine")
    status, _, said = run(capsys, "join", tmp_path / "blocks", "--output", tmp_path / "whole")
    assert status == 2 and said.count("\n") == 1
    left = [entry.name for entry in (tmp_path / "whole").iterdir()]
    assert left == (["a_ct.nii.gz"] if damage == "exists" else [])


def test_seg_verbs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volume, labels, files = patient(tmp_path / "ct", "p")
    write_labels(tmp_path / "labels.nii.gz", labels, volume)
    assert (
        run(capsys, "to-seg", tmp_path / "labels.nii.gz", "--ct", tmp_path / "ct", "--output", tmp_path / "s.dcm")[0]
        == 0
    )
    arguments = ("--ct", tmp_path / "ct", "--output", tmp_path / "back.nii.gz", "--label-ids", "flare22", "--json")
    status, result, _ = run(capsys, "from-seg", tmp_path / "s.dcm", *arguments)
    assert status == 0 and result["organs"] == [organ.key for organ in ORGANS]
    back = read_labels(tmp_path / "back.nii.gz", like=volume).array
    for organ in ORGANS:
        np.testing.assert_array_equal(back == organ.flare22_label, labels == organ.label)
    structure_set(tmp_path / "rs.dcm", files[0], {"Milz": outline(volume, labels == 4)})
    arguments = ("from-seg", tmp_path / "rs.dcm", "--output", tmp_path / "rs.nii.gz")
    assert run(capsys, *arguments, "--ct", tmp_path / "ct")[0] == 0
    np.testing.assert_array_equal(read_labels(tmp_path / "rs.nii.gz", like=volume).array == 4, labels == 4)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["from-dicom", "missing", "--output", "out"], "no folder"),
        (["from-dicom", "empty", "--output", "out"], "no DICOM files"),
        (["from-dicom", "ct"], "--output"),
        (["from-dicom", "ct", "--output", "text"], "is a file"),
        (["from-dicom", "ct", "--output", "out", "--training"], "None of the 1 cases"),
        (["from-dicom", "ct", "--output", "out", "--keep-mapping", "text"], "is there already"),
        (["to-dicom", "missing.nii.gz", "--output", "out"], "does not exist"),
        (["to-dicom", "text", "--output", "out"], "not of a readable type"),
        (["to-dicom", "empty", "--output", "out"], "empty"),
        (["blocks", "empty", "--output", "out"], "empty"),
        (["blocks", "ct", "--output", "out", "--slices", "1"], "at least 2 slices"),
        (["blocks", "ct", "--output", "out", "--slices", "x"], "--slices"),
        (["join", "empty", "--output", "out"], "blocks.json"),
        (["to-seg", "labels.nii.gz", "--ct", "empty", "--output", "s.dcm"], "no CT series"),
        (["to-seg", "labels.nii.gz", "--ct", "other", "--output", "s.dcm"], "do not lie on the slices"),
        (["to-seg", "labels.nii.gz", "--ct", "ct", "--output", "text"], "is there already"),
        (["to-seg", "labels.nii.gz", "--ct", "ct", "--output", "no/s.dcm"], "no folder"),
        (["from-seg", "text", "--output", "l.nii.gz"], "no DICOM file"),
        (["from-seg", "ct/slice0001.dcm", "--output", "l.nii.gz"], "no DICOM Segmentation"),
        (["from-seg", "rs.dcm", "--output", "l.nii.gz"], "--ct"),
        (["from-seg", "rs.dcm", "--ct", "ct", "--output", "l.nii.gz"], "none of the organs"),
    ],
)
def test_bad_usage_gives_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    volume, labels, files = patient(tmp_path / "ct", "p")
    other = Volume(volume.array, volume.spacing, (0, 0, 0), volume.direction)
    write_series(tmp_path / "other", other, Identity("q"))
    write_labels(tmp_path / "labels.nii.gz", labels, volume)
    structure_set(tmp_path / "rs.dcm", files[0], {"PTV": outline(volume, labels == 4)})
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("text")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status = prepare.main(arguments)
    errors = capsys.readouterr().err
    assert status == 2 and errors.startswith("Error: ") and errors.count("\n") == 1 and words in errors, errors
    assert {path: path.read_bytes() for path in before} == before
    assert not list(tmp_path.rglob(".writing-*")) and not list(tmp_path.glob("*/*_ct.nii.gz"))


def test_started_in_slicer(tmp_path: Path, start_script) -> None:
    patient(tmp_path / "ct", "p")
    arguments = ("from-dicom", tmp_path / "ct", "--output", tmp_path / "out")
    done = start_script("slicer", "FlareSegmentTraining/Scripts/prepare.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("case_*_ct.nii.gz"))) == 1


def test_labels_of_a_tilted_ct_need_nrrd(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    volume, labels = ct_and_labels()
    axes = np.column_stack([np.eye(3)[:, 0], np.eye(3)[:, 1], rotation(12, (1, 0, 0))[:, 2]])
    tilted = Volume(volume.array, volume.spacing, volume.origin, axes)
    files = write_series(tmp_path / "ct", tilted, Identity("p"))
    write_dicom_segmentation(tmp_path / "s.dcm", tilted.with_array(labels), files)
    arguments = ("from-seg", tmp_path / "s.dcm", "--ct", tmp_path / "ct", "--output")
    status, _, said = run(capsys, *arguments, tmp_path / "back.nii.gz")
    assert status == 2 and "tilted gantry" in said and not (tmp_path / "back.nii.gz").exists()
    assert run(capsys, *arguments, tmp_path / "back.nrrd")[0] == 0
    back, _ = read_volume(tmp_path / "back.nrrd")
    np.testing.assert_array_equal(back.array, labels)
    assert back.same_grid(tilted, 1e-3)
