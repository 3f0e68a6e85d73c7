"""One scan is one scan whatever it is called, one patient stays on one side: in prepare, train, resume, evaluate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
import SimpleITK

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.organs import ORGANS
from FlareSegmentTrainingLib.datasets import scan_identity
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.conversion import Settings, convert_cases
from FlareSegmentTrainingLib.datasets.scan_identity import ScanHashes, scan_hash, without_twins
from FlareSegmentTrainingLib.datasets.splits import Split, split_cases
from FlareSegmentTrainingLib.evaluation.label_folders import LabelFolder
from FlareSegmentTrainingLib.evaluation.measurements import evaluate_cases
from FlareSegmentTrainingLib.evaluation.predictors import Prediction
from FlareSegmentTrainingLib.evaluation.roles import made_with
from FlareSegmentTrainingLib.training.run_cases import CASES_FILE, cases_of_run, check_no_twins
from FlareSegmentTrainingLib.training.run_folder import RunFolder


def prepared(data: Path, output: Path, **options: object) -> dict[str, tuple[str, str]]:
    """{source name: (result, reason)} of a preparation."""
    said: list[str] = []
    settings = Settings(ORGANS, **options)  # type: ignore[arg-type]
    outcomes = convert_cases(find_cases(data), output, settings, say=said.append)
    result = {outcome.source: (outcome.result, outcome.reason) for outcome in outcomes}
    result["said"] = ("", " ".join(said))
    return result


def copies(folder: Path) -> Path:
    """Case a under five names: as another file type, turned, as float, moved, and once more; and case z."""
    layouts.flat(folder, ("a", "z"))
    image, labels = (SimpleITK.ReadImage(str(folder / f"a_{kind}.nii.gz")) for kind in ("ct", "labels"))

    def write(name: str, suffix: str, change) -> None:
        for kind, part in (("ct", image), ("labels", labels)):
            SimpleITK.WriteImage(change(part, kind), str(folder / f"{name}_{kind}{suffix}"))

    def moved(part, kind):
        part = SimpleITK.Image(part)
        part.SetOrigin((0.0, 0.0, 0.0))
        return part

    write("b", ".nrrd", lambda part, kind: part)
    write("c", ".nii", lambda part, kind: SimpleITK.DICOMOrient(part, "RAS"))
    write("d", ".mha", lambda part, kind: SimpleITK.Cast(part, SimpleITK.sitkFloat32) if kind == "ct" else part)
    write("e", ".nii.gz", moved)
    return folder


def test_a_scan_under_other_names_is_found_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = find_cases(copies(tmp_path / "data"))
    left_out: list = []
    (tmp_path / "run").mkdir()
    memory = tmp_path / "run" / "scans.json"
    assert [case.name for case in without_twins(cases, left_out.append, memory)] == ["a", "z"]
    assert [str(item) for item in left_out] == [f"{name} is left out: its image is that of a" for name in "bcde"]
    monkeypatch.setattr(scan_identity, "read_volume", lambda path: pytest.fail("read again"))
    assert len(without_twins(cases, left_out.append, memory)) == 2
    (tmp_path / "data/b_ct.nrrd").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        ScanHashes(memory).of(cases[1])


def test_only_scans_of_one_size_and_spacing_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, spacing in enumerate(((3.0, 2.5, 4.0), (3.0, 2.5, 4.2), (3.1, 2.5, 4.0))):
        ct, labels = layouts.ct_and_labels(number)
        layouts.write(tmp_path / f"{number}_ct.nii.gz", ct, spacing)
        layouts.write(tmp_path / f"{number}_labels.nii.gz", labels, spacing)
    monkeypatch.setattr(scan_identity, "read_volume", lambda path: pytest.fail("read"))
    assert len(without_twins(find_cases(tmp_path), print)) == 3


def test_a_prepared_copy_is_the_same_scan(tmp_path: Path) -> None:
    ct, labels = layouts.ct_and_labels(0)
    layouts.write(tmp_path / "data/a_ct.nrrd", np.where(ct < -900, -3024, ct).astype(np.float32) + np.float32(0.2))
    layouts.write(tmp_path / "data/a_labels.nrrd", labels)
    prepared(tmp_path / "data", tmp_path / "out")
    (case,) = find_cases(tmp_path / "out")
    assert case.name.startswith("case_")
    assert scan_hash(case.read()[0]) == scan_hash(read_volume(tmp_path / "data/a_ct.nrrd")[0])


def test_corrected_labels_replace_the_earlier_ones(tmp_path: Path) -> None:
    source, output = layouts.flat(tmp_path / "data", ("a", "b", "c")), tmp_path / "out"
    truth = layouts.ct_and_labels(1)[1]
    layouts.write(source / "b_labels.nii.gz", np.where(truth == 4, 0, truth).astype(np.uint8))
    prepared(source, output)
    before = sorted(path.name for path in output.glob("*.nii.gz"))
    layouts.write(source / "b_labels.nii.gz", truth)
    (source / "c_ct.nii.gz").unlink(), (source / "c_labels.nii.gz").unlink()
    again = prepared(source, output)
    assert {name: result for name, (result, _) in again.items() if name != "said"} == {"a": "present", "b": "updated"}
    assert "1 cases in" in again["said"][1] and "are of earlier runs and not in these data" in again["said"][1]
    assert sorted(path.name for path in output.glob("*.nii.gz")) == before
    hashes = {scan_hash(case.read()[0]): case for case in find_cases(output)}
    case = hashes[scan_hash(read_volume(source / "b_ct.nii.gz")[0])]
    np.testing.assert_array_equal(read_labels(case.labels).array, truth)
    assert case.grades.get("spleen") is None
    assert prepared(source, output)["b"][0] == "present"
    (source / "quality.json").write_text('{"b": {"liver": {"grade": "ignore"}}}')
    assert prepared(source, output)["b"][0] == "updated"
    (case,) = (case for case in find_cases(output) if case.grades.get("liver") == "ignore")
    assert case.labeled == {"right_kidney", "left_kidney", "spleen"}
    assert prepared(source, output)["b"][0] == "present"


def test_the_same_scan_of_other_data_replaces_nothing(tmp_path: Path) -> None:
    output = tmp_path / "out"
    prepared(layouts.flat(tmp_path / "one", ("a",)), output)
    layouts.write_pair(tmp_path / "two/x_ct.nii.gz", tmp_path / "two/x_labels.nii.gz", 0, (2, 1, 3, 4))
    (tmp_path / "two/labels.json").write_text('{"1": "right_kidney", "2": "liver", "3": "left_kidney", "4": "spleen"}')
    assert prepared(tmp_path / "two", output)["x"] == ("left out", prepared(tmp_path / "two", output)["x"][1])
    assert "its image is that of case_" in prepared(tmp_path / "two", output)["x"][1]
    named = tmp_path / "named"
    prepared(tmp_path / "one", named, keep_names=True)
    layouts.flat(tmp_path / "three", ("a",), first_seed=7)
    assert "another scan called a is there" in prepared(tmp_path / "three", named, keep_names=True)["a"][1]


def test_one_patient_is_one_patient_in_every_run(tmp_path: Path) -> None:
    from FlareSegmentTrainingLib.datasets.cases import patient_pattern, with_patients

    pattern = r"^(P\d+)_"
    for number, batch in enumerate(("first", "second")):
        layouts.flat(tmp_path / batch, (f"P0_{batch}", f"P1_{batch}"), first_seed=10 * number)
        cases = with_patients(find_cases(tmp_path / batch), patient_pattern(pattern))
        convert_cases(cases, tmp_path / "out", Settings(ORGANS, patient_pattern=pattern), say=lambda line: None)
    patients = [case.patient for case in find_cases(tmp_path / "out")]
    assert len(set(patients)) == 2 and all(patients.count(patient) == 2 for patient in patients)
    assert "P0" not in (tmp_path / "out/quality.json").read_text() + (tmp_path / "out/report.json").read_text()
    split = split_cases(find_cases(tmp_path / "out"))
    assert len(split.training) == len(split.validation) == 2
    with pytest.raises(InputError, match="was prepared with --patient-pattern"):
        convert_cases(cases, tmp_path / "out", Settings(ORGANS), say=lambda line: None)


# Runs and models ----------------------------------------------------------------------------------


def run_of(folder: Path, cases, split: Split) -> RunFolder:
    """A run folder that knows these cases, as `write_cases` leaves it."""
    entries = {
        case.name: {
            "side": "training" if case.name in split.training else "validation",
            "patient": case.patient,
            "content_sha256": case.content_hash(),
            "scan_sha256": scan_hash(case.read()[0]),
        }
        for case in cases
    }
    RunFolder(folder).write_json(CASES_FILE, entries)
    return RunFolder(folder)


def test_a_run_knows_its_cases_by_content(tmp_path: Path) -> None:
    layouts.flat(tmp_path / "here", ("a", "b"))
    cases, split = find_cases(tmp_path / "here"), Split(("a",), ("b",), "by hand")
    folder = run_of(tmp_path / "run", cases, split)
    (tmp_path / "here").rename(tmp_path / "there")
    for kind in ("ct", "labels"):
        (tmp_path / f"there/a_{kind}.nii.gz").rename(tmp_path / f"there/other_{kind}.nii.gz")
    layouts.flat(tmp_path / "there", ("new",), first_seed=9)
    said: list[str] = []
    found = cases_of_run(folder, split, find_cases(tmp_path / "there"), said.append)
    assert [(case.name, case.image.name) for case in found] == [("a", "other_ct.nii.gz"), ("b", "b_ct.nii.gz")]
    assert said == ["Warning: new is not in this run and not used."]

    content = json.loads((folder.path / CASES_FILE).read_text())
    folder.write_json(CASES_FILE, {name: {**e, "weights": dict(cases[0].weights)} for name, e in content.items()})
    assert len(cases_of_run(folder, split, find_cases(tmp_path / "there"))) == 2
    (tmp_path / "there/quality.json").write_text('{"b": {"liver": {"grade": "ignore"}}}')
    with pytest.raises(InputError, match="grades of the labels changed of b. Put them back"):
        cases_of_run(folder, split, find_cases(tmp_path / "there"))

    layouts.write_pair(tmp_path / "there/b_ct.nii.gz", tmp_path / "there/b_labels.nii.gz", 1, (1, 2, 3, 0))
    for kind in ("ct", "labels"):
        (tmp_path / f"there/other_{kind}.nii.gz").unlink()
    with pytest.raises(InputError, match=r"meaning changed of b; missing: a. Put them back, or train on with --start"):
        cases_of_run(folder, split, find_cases(tmp_path / "there"))


def test_twins_on_both_sides_end_a_run(tmp_path: Path) -> None:
    from types import SimpleNamespace

    one, same, other = (SimpleNamespace(name=name, scan=scan) for name, scan in (("a", "1"), ("b", "1"), ("c", "2")))
    check_no_twins([one], [other])
    with pytest.raises(InputError, match="never be trained on: b is a"):
        check_no_twins([one], [same])


def test_trained_scans_are_known_after_prepare_and_under_other_names(tmp_path: Path) -> None:
    layouts.flat(tmp_path / "data", ("P1_a", "P2_b"))
    cases = find_cases(tmp_path / "data")
    folder = run_of(tmp_path / "run", cases, Split(("P1_a",), ("P2_b",), "by hand"))
    prepared(tmp_path / "data", tmp_path / "out")
    layouts.flat(tmp_path / "out2", ("P1_a",), first_seed=8)  # the name of a trained case, another scan
    known = made_with(folder.best, {})
    roles = {}
    for case in (*find_cases(tmp_path / "out"), *find_cases(tmp_path / "out2")):
        roles[scan_hash(case.read()[0])] = known.role_of(scan_hash(case.read()[0]), case.patient, case.name)
    assert sorted(roles.values()) == ["new", "trained on", "validated on"]
    assert made_with(tmp_path / "elsewhere/model", {}) is None
    scan = scan_hash(cases[0].read()[0])
    told = {"scans": {"trained": [scan[:16]], "validated": []}}
    assert made_with(tmp_path / "elsewhere/model", told).role_of(scan, "x", "x") == "trained on"


def test_another_scan_of_a_trained_patient_is_not_new(tmp_path: Path) -> None:
    facts = {"side": "training", "content_sha256": "", "scan_sha256": "1" * 64}
    entries = {"a": {**facts, "patient": "P1"}, "case_1": {**facts, "patient": "case_1"}}
    RunFolder(tmp_path).write_json(CASES_FILE, entries)
    known = made_with(tmp_path / "best", {})
    assert (known.role_of("2" * 64, "P1", "b"), known.role_of("2" * 64, "P2", "b")) == ("patient trained on", "new")
    # a prepared folder calls a patient after the first scan; a case of the same name elsewhere is not that patient's
    followed = [known.role_of("2" * 64, "case_1", name) for name in ("case_2", "case_1")]
    assert followed == ["patient trained on", "new"]


class Nothing:
    """Predicts nothing."""

    kind, name, identity, organs = "model", "nothing", "0" * 64, frozenset(organ.key for organ in ORGANS)

    def identity_of(self, case: str) -> str:
        return self.identity

    def role_of(self, case: str) -> None:
        return None

    def predict(self, case: str, volume) -> Prediction:
        return Prediction(np.zeros(volume.array.shape, np.uint8))


def test_an_evaluation_counts_a_scan_once(tmp_path: Path) -> None:
    data = layouts.flat(tmp_path / "data", ("a", "b"))
    for kind in ("ct", "labels"):
        shutil.copy(data / f"a_{kind}.nii.gz", data / f"c_{kind}.nii.gz")
    found = evaluate_cases(find_cases(data), Nothing(), ORGANS, tmp_path / "out", None, say=lambda line: None)
    assert sorted(found.cases) == ["a", "b"]
    assert [str(item) for item in found.left_out] == ["c is left out: its image is that of a"]


# Predictions --------------------------------------------------------------------------------------


def test_what_segment_wrote_fits_its_case(tmp_path: Path) -> None:
    truth = layouts.ct_and_labels(0)[1]
    for name in ("x_ct_labels.nii.gz", "x_ct_organs.seg.nrrd", "y_labels.nii.gz", "strange.nii.gz"):
        layouts.write(tmp_path / name, truth)
    folder = LabelFolder(tmp_path)
    assert (folder.stem_of("x"), folder.stem_of("x_ct")) == ("x_ct_labels", "x_ct_labels")
    assert (folder.stem_of("y"), folder.stem_of("z")) == ("y_labels", None)
    assert folder.extra(["x", "y"]) == ["strange.nii.gz"]
    layouts.write(tmp_path / "y_seg.nii.gz", truth)
    with pytest.raises(InputError, match="several label maps could be its own"):
        LabelFolder(tmp_path).stem_of("y")


def test_nnunets_own_description_lies_beside_its_predictions(tmp_path: Path) -> None:
    truth = layouts.ct_and_labels(0)[1]
    values = np.array([0, 4, 2, 3, 1], np.uint8)  # spleen 1, kidneys as they are, liver 4
    layouts.write(tmp_path / "a.nii.gz", values[truth])
    (tmp_path / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "spleen": 1, "right kidney": 2, "left kidney": 3, "liver": 4}})
    )
    folder = LabelFolder(tmp_path)
    np.testing.assert_array_equal(folder.meaning(tmp_path / "a.nii.gz").apply(values[truth]), truth)
    assert "dataset.json" in folder.meanings()[0]
