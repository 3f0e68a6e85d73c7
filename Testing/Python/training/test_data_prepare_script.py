"""`prepare.py` as people run it: every kind of input, bad input, stopping and going on, and nothing that tells of a
patient.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import shutil
from functools import partial
from pathlib import Path

import data_layouts as layouts
import numpy as np
import prepare
import pytest
import SimpleITK

from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS
from FlareSegmentTrainingLib.datasets import cases, conversion
from FlareSegmentTrainingLib.datasets.cases import find_cases


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, dict, str]:
    """Exit status, the JSON object if it was asked for, and standard error."""
    status = prepare.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1]) if "--json" in arguments and status == 0 else {}
    return status, result, captured.err


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_flare22_zip_becomes_the_plain_layout(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    layouts.flare22(tmp_path / "source/FLARE22Train", 3)
    archive = shutil.make_archive(str(tmp_path / "FLARE22Train"), "zip", tmp_path / "source")
    output = tmp_path / "out"
    status, result, errors = run(capsys, "--data", archive, "--output", output, "--json")
    assert (status, result["taken"], result["left_out"], errors) == (0, 3, 0, "")
    names = [f"FLARE22_Tr_{number:04d}" for number in (1, 2, 3)]
    lists = ["labels.json", "quality.json", "report.csv", "report.json"]
    assert files(output) == sorted([f"{n}{s}.nii.gz" for n in names for s in ("_ct", "_labels")] + lists)
    volume, _ = read_volume(output / "FLARE22_Tr_0002_ct.nii.gz")
    ct, truth = layouts.ct_and_labels(2, tuple(range(1, 14)))
    np.testing.assert_array_equal(volume.array, ct)
    assert volume.array.dtype == np.int16 and volume.spacing == layouts.SPACING
    labels = read_labels(output / "FLARE22_Tr_0002_labels.nii.gz", like=volume).array
    for organ in ORGANS:
        np.testing.assert_array_equal(labels == organ.label, truth == organ.flare22_label)
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    assert [case.labeled for case in find_cases(output)] == [{organ.key for organ in ORGANS}] * 3
    with open(output / "report.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["case"], row["result"]) for row in rows] == [(name, "taken") for name in names]
    assert float(rows[0]["liver_ml"]) == pytest.approx(48 * 30 / 1000)


@pytest.mark.parametrize("table", ["flaresegment", "flare22"])
def test_all_organs_in_either_table_read_back(tmp_path: Path, capsys: pytest.CaptureFixture, table: str) -> None:
    source = layouts.flare22(tmp_path / "source", 1)
    arguments = ("--data", source, "--output", tmp_path / "out", "--organs", "all", "--label-ids", table)
    assert run(capsys, *arguments)[0] == 0
    (before,), (after,) = find_cases(source), find_cases(tmp_path / "out")
    np.testing.assert_array_equal(after.read()[1], before.read()[1])
    assert after.labeled == {organ.key for organ in FLARE22_ORGANS}
    stored = read_labels(tmp_path / "out/FLARE22_Tr_0001_labels.nii.gz").array
    (kidney,) = (organ for organ in FLARE22_ORGANS if organ.key == "left_kidney")
    assert stored[after.read()[1] == kidney.label].max() == {"flaresegment": kidney.label, "flare22": 13}[table]


def test_partly_labeled_sets_together(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    layouts.decathlon(tmp_path / "Task03_Liver", "liver", 2)
    layouts.decathlon(tmp_path / "Task09_Spleen", "spleen", 2)
    for number in (0, 1):  # other patients than in the liver task
        layouts.write_pair(
            tmp_path / f"Task09_Spleen/imagesTr/spleen_{number}.nii.gz",
            tmp_path / f"Task09_Spleen/labelsTr/spleen_{number}.nii.gz", 10 + number, (1,),
        )  # fmt: skip
    sources = ("--data", tmp_path / "Task03_Liver", "--data", tmp_path / "Task09_Spleen")
    assert run(capsys, *sources, "--output", tmp_path / "out")[0] == 0
    found = {case.name: case.labeled for case in find_cases(tmp_path / "out")}
    assert found == {"liver_0": {"liver"}, "liver_1": {"liver"}, "spleen_0": {"spleen"}, "spleen_1": {"spleen"}}
    status, result, _ = run(capsys, *sources, "--output", tmp_path / "liver", "--organs", "liver", "--json")
    assert (status, result["taken"], result["left_out"]) == (0, 2, 2)


def test_cases_that_do_not_fit_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = layouts.flat(tmp_path / "source", ("good", "shape", "value", "the_copy", "alone"))
    layouts.write(source / "shape_labels.nii.gz", layouts.ct_and_labels(1)[1][1:])
    layouts.write(source / "value_labels.nii.gz", np.full(layouts.SHAPE, 9, np.uint8))
    shutil.copy(source / "good_ct.nii.gz", source / "the_copy_ct.nii.gz")
    (source / "alone_labels.nii.gz").unlink()
    status = prepare.main(["--data", str(source), "--output", str(tmp_path / "out"), "--keep-names"])
    out = capsys.readouterr().out
    assert status == 0
    for name, reason in (
        ("shape", "24 x 20 x 11"),
        ("value", "label value 9"),
        ("the_copy", "is that of good"),
        ("alone", "missing"),
    ):
        assert any(line.startswith(name) and "left out" in line and reason in line for line in out.splitlines()), name
    assert len(find_cases(tmp_path / "out")) == 1
    with open(tmp_path / "out/report.csv", newline="", encoding="utf-8") as stream:
        report = {row["case"]: row["result"] for row in csv.DictReader(stream)}
    assert [result for name, result in report.items() if result != "left out"] == ["taken"] and len(report) == 5


def test_nothing_tells_of_a_patient(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "Doeringer Johann 1958"
    for number, name in enumerate(("DOERINGER_JOHANN_1", "DOERINGER_JOHANN_2", "ROEMER_JANE")):
        ct, labels = layouts.ct_and_labels(number)
        for array, suffix in ((ct, "ct"), (labels, "labels")):
            image = SimpleITK.GetImageFromArray(array)
            image.SetSpacing(layouts.SPACING)
            for field in ("descrip", "aux_file", "db_name", "intent_name"):
                image.SetMetaData(field, "DOERINGER^JOHANN")
            image.SetMetaData("ITK_FileNotes", "DOERINGER^JOHANN")
            source.mkdir(exist_ok=True)
            SimpleITK.WriteImage(image, str(source / f"{name}_{suffix}.nii.gz"))
    assert b"DOERINGER^JOHANN" in gzip.decompress((source / "DOERINGER_JOHANN_1_ct.nii.gz").read_bytes())
    layouts.write(source / "ROEMER_JANE_labels.nii.gz", np.zeros(layouts.SHAPE, np.uint8))
    layouts.write(source / "ALONE_DOERINGER_ct.nii.gz", layouts.ct_and_labels(9)[0])
    output = tmp_path / "out"
    status, result, _ = run(
        capsys, "--data", source, "--output", output, "--patient-pattern", r"([A-Z]+_[A-Z]+)", "--json"
    )
    assert (status, result["taken"], result["left_out"]) == (0, 2, 2)
    for path in output.iterdir():
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        for word in ("doeringer", "johann", "roemer", "jane", "1958"):
            assert word.encode() not in content.lower(), (path.name, word)
            assert word not in path.name.lower()
    first, second = find_cases(output)
    assert first.patient == second.patient and first.patient.startswith("case_")

    assert run(capsys, "--data", source, "--output", tmp_path / "named", "--keep-names")[0] == 0
    assert [case.name for case in find_cases(tmp_path / "named")] == ["DOERINGER_JOHANN_1", "DOERINGER_JOHANN_2"]


def test_a_second_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    source = layouts.flat(tmp_path / "source", ("a", "b", "c"))
    arguments = ("--data", source, "--output", tmp_path / "out", "--json")
    write = conversion.write_nifti
    calls = 0

    def stop(path: Path, array: np.ndarray, volume) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        write(path, array, volume)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_nifti", stop)
        status, _, errors = run(capsys, *arguments)
    assert (status, errors) == (1, "Error: Stopped; the same command goes on.\n")
    assert not [name for name in files(tmp_path / "out") if "preparing" in name]

    status, result, _ = run(capsys, *arguments)
    assert (status, result["taken"], result["present"]) == (0, 2, 1)
    times = {
        name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out") if name.endswith("gz")
    }
    status, result, _ = run(capsys, *arguments)
    assert (result["taken"], result["present"]) == (0, 3)
    assert times == {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in times}
    assert len(find_cases(tmp_path / "out")) == 3

    changed = sorted(path for path in (tmp_path / "out").glob("*_ct.nii.gz"))[0]
    changed.unlink()
    assert run(capsys, *arguments)[1]["taken"] == 1 and changed.is_file()
    status, _, errors = run(capsys, *arguments, "--organs", "liver")
    assert status == 2 and "other organs" in errors


@pytest.mark.parametrize("damage", ["cut", "wrong"])
def test_a_full_disk_leaves_whole_cases_only(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    source = layouts.flat(tmp_path / "source", ("a", "b"))
    write = SimpleITK.WriteImage
    calls = 0

    def fail_at_fourth(image, path: str, **options) -> None:
        nonlocal calls
        calls += 1
        write(image + 1 if calls == 4 and damage == "wrong" else image, path, **options)
        if calls == 4 and damage == "cut":
            os.truncate(path, 100)

    with monkeypatch.context() as patch:
        patch.setattr(conversion.SimpleITK, "WriteImage", fail_at_fourth)
        status, _, errors = run(capsys, "--data", source, "--output", tmp_path / "out")
    assert status == 2 and "disk may be full" in errors and errors.count("\n") == 1
    for path in (tmp_path / "out").glob("*.nii.gz"):
        read_volume(path)
    assert run(capsys, "--data", source, "--output", tmp_path / "out")[0] == 0
    assert len(find_cases(tmp_path / "out")) == 2


def test_phantoms_keep_their_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cases, "make_phantom", partial(cases.make_phantom, spacing=(5.0, 5.0, 5.0)))
    assert run(capsys, "--data", "phantom:2", "--output", tmp_path / "out")[0] == 0
    found = find_cases(tmp_path / "out")
    assert [(case.name, case.fixed_set) for case in found] == [("phantom0000000", "train"), ("phantom1000000", "val")]
    np.testing.assert_array_equal(found[0].read()[1], find_cases("phantom:2")[0].read()[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--data"),
        (["--data", "x"], "--output"),
        (["--data", "missing", "--output", "out"], "missing"),
        (["--data", "empty", "--output", "out"], "No case"),
        (["--data", "phantom:1", "--output", "out"], "phantom:1"),
        (["--data", "good", "--output", "file"], "is a file"),
        (["--data", "good", "--output", "file/sub"], "cannot be written"),
        (["--data", "good", "--output", "out", "--organs", "lever"], "lever"),
        (["--data", "good", "--output", "out", "--organs", ""], "--organs"),
        (["--data", "good", "--output", "out", "--label-map", "x"], "--label-map x"),
        (["--data", "good", "--output", "out", "--label-map", "1=livre"], "livre"),
        (["--data", "good", "--output", "out", "--label-ids", "x"], "--label-ids"),
        (["--data", "good", "--output", "out", "--layout", "x"], "--layout"),
        (["--data", "good", "--output", "out", "--layout", "msd"], "as msd"),
        (["--data", "good", "--output", "out", "--patient-pattern", "("], "regular expression"),
        (["--data", "good", "--output", "out", "--patient-pattern", "x"], "one group"),
        (["--data", "good", "--output", "out", "--unknown"], "--unknown"),
        (["--data", "broken.zip", "--output", "out"], "broken.zip"),
        (["--data", "unusable", "--output", "out"], "None of the 1 cases"),
    ],
)
def test_bad_usage_gives_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    layouts.flat(tmp_path / "good", ("a",))
    layouts.flat(tmp_path / "unusable", ("a",), (200,))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    (tmp_path / "broken.zip").write_text("text")
    status, _, errors = run(capsys, *arguments)
    assert status == 2
    assert errors.startswith("Error: ") and errors.count("\n") == 1 and words in errors
    assert (tmp_path / "file").read_text() == "text"
    assert not list(tmp_path.glob("out/*.nii.gz"))


def test_an_output_of_someone_else_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.json").write_text('["mine"]')
    status, _, errors = run(capsys, "--data", layouts.flat(tmp_path / "source"), "--output", tmp_path / "out")
    assert status == 2 and "report.json" in errors
    assert files(tmp_path / "out") == ["report.json"]


@pytest.mark.parametrize("host", ["python", "slicer"])
def test_started_as_people_do(tmp_path: Path, start_script, host: str) -> None:
    source = layouts.flat(tmp_path / "source", ("a",))
    for data, status in ((source, 0), (tmp_path / "nothing", 2)):
        arguments = ("--data", data, "--output", tmp_path / "out")
        done = start_script(host, "FlareSegmentTraining/Scripts/prepare.py", *arguments)
        assert done.returncode == status, done.stderr
        assert ("Error: " in done.stderr) == (status == 2)
    assert len(find_cases(tmp_path / "out")) == 1


def test_real_cases(tmp_path: Path, flare_data: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("kits00072_slab", "crlm1004"):
        for suffix in ("_ct.nii.gz", "_labels.nii.gz"):
            (tmp_path / "source").mkdir(exist_ok=True)
            (tmp_path / "source" / (name + suffix)).symlink_to(flare_data / "train" / (name + suffix))
    shutil.copy(flare_data / "quality.json", tmp_path / "source")
    arguments = ("--data", tmp_path / "source", "--output", tmp_path / "out", "--keep-names", "--json")
    status, result, _ = run(capsys, *arguments)
    assert (status, result["taken"]) == (0, 2)
    for before, after in zip(find_cases(tmp_path / "source"), find_cases(tmp_path / "out")):
        assert (before.name, before.weights, before.fixed_set) == (after.name, after.weights, after.fixed_set)
        (volume, labels, _), (written, written_labels, _) = before.read(), after.read()
        np.testing.assert_array_equal(volume.array, written.array)
        np.testing.assert_array_equal(labels, written_labels)
        assert volume.same_grid(written)


def test_an_organ_that_is_in_no_case_is_said(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(2):
        layouts.write_pair(tmp_path / f"in/images/{number}.nii.gz", tmp_path / f"in/labels/{number}.nii.gz", number)
    arguments = ("--data", tmp_path / "in", "--output", tmp_path / "out", "--label-map")
    status, _, errors = run(capsys, *arguments, "amos")
    assert status == 0 and "in: liver is in none of its cases; check what the label values mean." in errors
    shutil.rmtree(tmp_path / "out")
    assert "none of its cases" not in run(capsys, *arguments, "flaresegment")[2]
