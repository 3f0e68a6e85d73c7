"""What a worker does with one CT of a cohort: its record and files, what is done again, what ends case or run."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dicom_files
import numpy as np
import pytest
from bad_input import LIVER, ct_image, liver_dice, save, use_known_model
from cohort_stand_in import job

from FlareSegmentCohortLib import case_task
from FlareSegmentCohortLib.case_task import DONE, FAILED, PRESENT, CannotWork, is_failure, is_result, work_on
from FlareSegmentCohortLib.cohort_cases import CohortCase
from FlareSegmentCohortLib.output_folder import read_record
from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels


@pytest.fixture(autouse=True)
def known_model(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("vtkmodules", reason="VTK is not installed")
    use_known_model(monkeypatch)
    monkeypatch.setattr("FlareSegmentCohortLib.case_task.keep_freed_memory", lambda: None)
    monkeypatch.setattr(case_task, "model_identity", lambda folder: "m")
    case_task._loaded.cache_clear()
    yield
    case_task._loaded.cache_clear()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The cohort's folder, which is there before any worker begins."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def case_of(path: Path, **facts: object) -> CohortCase:
    case = CohortCase("c", "c", str(path), **facts)
    return CohortCase(**{**case.__dict__, "state": case.state_now()})


def test_a_record_and_a_label_map_come_of_a_ct(tmp_path: Path, out: Path) -> None:
    case = case_of(save(tmp_path / "ct.nii.gz"))

    assert work_on(case, job(out))["result"] == DONE

    record = read_record(out, "c")
    assert liver_dice(read_labels(out / record["files"]["labels"]).array) > 0.8
    assert record["organs"]["liver"]["volume_ml"] > 50 and record["state"] == case.state
    assert 0.5 < record["organs"]["liver"]["confidence"] <= 1 and "confidence" not in record["organs"]["spleen"]
    assert set(record["seconds"]) == {"read", "preprocess", "network", "postprocess", "measure", "write"}
    assert (out / record["files"]["thumbnails"]).stat().st_size > 500
    assert not list(out.rglob(".*"))


def test_the_same_content_is_not_done_again(tmp_path: Path, out: Path) -> None:
    path = save(tmp_path / "ct.nii.gz")
    work_on(case_of(path), job(out))
    os.utime(path, (1, 1))
    touched = case_of(path)
    assert work_on(touched, job(out))["result"] == PRESENT
    assert read_record(out, "c")["state"] == touched.state
    assert work_on(touched, job(out, settings="others"))["result"] == DONE
    (out / "labels" / "c_labels.nii.gz").unlink()
    assert work_on(touched, job(out, settings="others"))["result"] == DONE


def test_another_ct_of_the_same_name_size_and_time_is_not_taken_for_the_first(tmp_path: Path, out: Path) -> None:
    cases = []
    for patient, shift in (("p1", 0), ("p2", 1)):
        (tmp_path / patient).mkdir()
        path = save(tmp_path / patient / "ct.nii", ct_image() + shift)
        os.utime(path, (1, 1))
        cases.append(case_of(path))
    assert len({Path(case.source).stat().st_size for case in cases}) == 1
    assert cases[0].state != cases[1].state
    assert [work_on(case, job(out))["result"] for case in cases] == [DONE, DONE]


def test_label_values_and_files_on_request(tmp_path: Path, out: Path) -> None:
    files = dicom_files.patient(tmp_path / "series", "p")[2]
    case = case_of(tmp_path / "series", files=tuple(file.name for file in files))
    work_on(case, job(out, kinds=("segmentations", "dicom", "pictures"), label_ids="flare22"))
    record = read_record(out, "c")
    assert {"labels", "segmentations", "pictures", "thumbnails"} <= set(record["files"])
    found = any(row["volume_ml"] for row in record["organs"].values())
    assert ("dicom" in record["files"]) == found
    assert record["organs"]["left_kidney"]["label"] == 13


def test_a_reference_is_measured(tmp_path: Path, out: Path) -> None:
    labels = np.zeros(ct_image().GetSize()[::-1], np.uint8)
    labels[LIVER] = 6
    import SimpleITK

    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(ct_image())
    save(tmp_path / "reference.nii.gz", image)
    case = case_of(save(tmp_path / "ct.nii.gz"), labels=str(tmp_path / "reference.nii.gz"), label_map="6=liver")
    work_on(case, job(out))
    rows = read_record(out, "c")["organs"]
    assert rows["liver"]["dice"] > 0.8 and rows["liver"]["reference_ml"] > 50
    assert rows["spleen"]["dice"] is None

    wrong = case_of(tmp_path / "ct.nii.gz", labels=str(tmp_path / "reference.nii.gz"))
    result = work_on(wrong, job(out))
    assert result["result"] == FAILED and "6" in result["error"]


def test_a_reference_with_left_and_right_exchanged_is_said(tmp_path: Path, out: Path) -> None:
    import SimpleITK

    labels = np.zeros(ct_image().GetSize()[::-1], np.uint8)
    labels[6:16, 20:28, -10:-4], labels[6:16, 20:28, 4:10] = 2, 3
    image = SimpleITK.GetImageFromArray(labels)
    image.CopyInformation(ct_image())
    save(tmp_path / "reference.nii.gz", image)
    meaning = "2=right_kidney,3=left_kidney"
    case = case_of(save(tmp_path / "ct.nii.gz"), labels=str(tmp_path / "reference.nii.gz"), label_map=meaning)
    work_on(case, job(out))
    assert any("Reference: Left and right are in doubt" in text for text in read_record(out, "c")["warnings"])


@pytest.mark.parametrize("kind", ["damaged", "no ct"])
def test_a_bad_ct_costs_itself_alone_and_its_old_results(tmp_path: Path, out: Path, kind: str) -> None:
    path = save(tmp_path / "ct.nii.gz")
    work_on(case_of(path), job(out))
    if kind == "damaged":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        save(path, ct_image() + 5000)
    case = case_of(path)

    result = work_on(case, job(out))

    assert result["result"] == FAILED and str(path) in result["error"]
    record = read_record(out, "c")
    assert record["error"] == result["error"] and "\n" not in record["error"]
    assert record["state"] == case.state
    assert not [file for file in out.rglob("*") if file.is_file() and file.name != "c.json"]


def test_a_ct_out_of_reach_keeps_its_results_until_it_is_back(tmp_path: Path, out: Path) -> None:
    path = save(tmp_path / "ct.nii.gz")
    case = case_of(path)
    work_on(case, job(out))
    made, written = read_record(out, "c"), {file: file.read_bytes() for file in (out / "labels").iterdir()}
    path.rename(tmp_path / "away")

    for _ in range(2):
        result = work_on(case, job(out))
        record = read_record(out, "c")
        assert result["result"] == FAILED and str(path) in record["error"] == result["error"]
        assert record["state"] == "" and is_failure(record, job(out)) and not is_result(record, job(out), out)
        assert {file: file.read_bytes() for file in (out / "labels").iterdir()} == written

    (tmp_path / "away").rename(path)
    assert work_on(case, job(out))["result"] == PRESENT and read_record(out, "c") == made

    path.unlink()
    assert work_on(case, job(out, settings="others"))["result"] == FAILED
    assert not list((out / "labels").iterdir())  # of other options, and so no result of this run


def test_a_reference_that_cannot_be_used_is_told_before_the_network_runs(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(case_task._Engine, "_segment", None)
    (tmp_path / "reference.nii.gz").write_bytes(b"none")
    case = case_of(save(tmp_path / "ct.nii.gz"), labels=str(tmp_path / "reference.nii.gz"))
    result = work_on(case, job(out))
    assert result["result"] == FAILED and "reference.nii.gz" in result["error"]


def test_a_full_disk_ends_the_run_and_not_the_case(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise InputError("cannot be written") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("FlareSegmentLib.files.image_io.write_labels", full)
    with pytest.raises(CannotWork, match="no space left"):
        work_on(case_of(save(tmp_path / "ct.nii.gz")), job(out))
    assert read_record(out, "c") is None


def test_another_model_on_a_worker_ends_the_run(tmp_path: Path, out: Path) -> None:
    with pytest.raises(CannotWork, match="another one"):
        work_on(case_of(save(tmp_path / "ct.nii.gz")), job(out, model_identity="other"))


def test_a_worker_that_does_not_see_the_results_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(CannotWork, match="does not see"):
        work_on(CohortCase("c", "c", "/x.nii.gz"), job(tmp_path / "elsewhere"))


def test_two_cases_at_once_share_a_model_and_take_turns(
    tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside: list[int] = []
    real = case_task._Engine._segment

    def alone(engine, volume):
        inside.append(1)
        assert sum(inside) == 1
        try:
            return real(engine, volume)
        finally:
            inside.append(-1)

    monkeypatch.setattr(case_task._Engine, "_segment", alone)
    loaded: list[str] = []
    known = case_task._Engine.__init__
    monkeypatch.setattr(case_task._Engine, "__init__", lambda *them: loaded.append("") or known(*them))
    path = save(tmp_path / "ct.nii.gz")
    cases = [CohortCase(**{**case_of(path).__dict__, "name": name}) for name in "abcd"]
    with ThreadPoolExecutor(2) as threads:
        results = [threads.submit(work_on, case, job(out)) for case in cases]
    assert [result.result()["result"] for result in results] == [DONE] * 4
    assert len(loaded) == 1 and len(inside) == 8


def test_a_defect_costs_one_case(tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(case_task, "_rows", broken)
    result = work_on(case_of(save(tmp_path / "ct.nii.gz")), job(out))
    assert result["result"] == FAILED and "ZeroDivisionError" in result["error"]


def test_slicer_opens_the_segmentation_as_its_own(slicer_app, tmp_path: Path) -> None:
    import slicer
    import vtk

    from FlareSegmentCohortLib.result_files import write_segmentation_file
    from FlareSegmentLib.organs import ORGANS
    from FlareSegmentLib.volume import Volume
    from FlareSegmentSlicerLib.scene.result_files import write_segmentation

    direction = np.array([[0, -1.0, 0], [1, 0, 0], [0, 0, 1]])
    labels = np.zeros((9, 8, 7), np.uint8)
    for organ in ORGANS[:3]:
        labels[organ.label : organ.label + 2, 2:5, organ.label : 6] = organ.label
    volume = Volume(labels, (1.5, 2.0, 2.5), (-11.0, 12.0, 13.0), direction, "ct")
    found = []
    for name, write in (("slicer", write_segmentation), ("ours", lambda p, v: write_segmentation_file(p, v, ORGANS))):
        path = tmp_path / f"{name}.seg.nrrd"
        write(path, volume)
        node = slicer.util.loadSegmentation(str(path))
        segmentation = node.GetSegmentation()
        facts = {}
        for number in range(segmentation.GetNumberOfSegments()):
            segment = segmentation.GetNthSegment(number)
            terminology = vtk.reference("")
            segment.GetTag(segment.GetTerminologyEntryTagName(), terminology)
            color = tuple(round(value, 3) for value in segment.GetColor())
            facts[segment.GetName()] = color, str(terminology)
        array = slicer.util.arrayFromSegmentInternalBinaryLabelmap(node, segmentation.GetNthSegmentID(0))
        facts["voxels"] = np.unique(array, return_counts=True)[1].tolist()[1:]
        bounds = [0.0] * 6
        node.GetRASBounds(bounds)
        found.append((facts, np.round(bounds, 3).tolist()))
    assert found[0] == found[1]
    assert found[1][0]["voxels"] == [int((labels == organ.label).sum()) for organ in ORGANS[:3]]
