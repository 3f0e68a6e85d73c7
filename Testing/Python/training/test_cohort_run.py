"""A cohort's run: what is left to do, kills, stops, locks, tables and report; with stand-ins for segmenting."""

from __future__ import annotations

import csv
import json
import re
from argparse import Namespace
from pathlib import Path

import cohort
import pytest
from bad_input import ct_image, save
from cohort_stand_in import by_name, job, record_of
from test_evaluation_script import Page

pytest.importorskip("distributed", reason="Dask is not installed")

from FlareSegmentCohortLib.case_task import CannotWork
from FlareSegmentCohortLib.cohort_cases import CohortCase
from FlareSegmentCohortLib.cohort_run import Counts, cases_left, duration, work_through
from FlareSegmentCohortLib.command import run_cohort
from FlareSegmentCohortLib.listing import Listing
from FlareSegmentCohortLib.output_folder import (
    FAILED_FILE,
    PARQUET_FILE,
    REPORT_FILE,
    TABLE_FILE,
    OutputFolder,
    write_record,
)
from FlareSegmentCohortLib.report import write_report
from FlareSegmentCohortLib.tables import kind_of_reason, write_tables
from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.scheduling import connection

pytestmark = pytest.mark.at_most(240)


def cases_of(*names: str) -> list[CohortCase]:
    return [CohortCase(name, name, f"/data/{name}.nii.gz", state=f"state of {name}") for name in names]


def folder_of(path: Path, cases: list[CohortCase]) -> OutputFolder:
    folder = OutputFolder(path)
    folder.prepare()
    folder.write_list(cases)
    return folder


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def client():
    from distributed import Client

    workers = {"processes": False, "n_workers": 1, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    with Client(**workers) as one:
        yield one


def test_only_what_is_not_done_is_left(tmp_path: Path) -> None:
    cases = cases_of("new", "done", "other state", "other model", "failed", "out of reach")
    folder = folder_of(tmp_path, cases)
    for case in cases[1:4]:
        write_record(tmp_path, case.name, record_of(case, job(tmp_path)))
    write_record(tmp_path, "other state", record_of(cases[2], job(tmp_path), state="before"))
    write_record(tmp_path, "other model", record_of(cases[3], job(tmp_path), settings="before"))
    write_record(tmp_path, "failed", {"settings": "s", "state": cases[4].state, "error": "no"})
    write_record(tmp_path, "out of reach", {"settings": "s", "state": "", "error": "no"})
    counts = Counts(len(cases))
    left = [case.case for case in cases_left(folder, job(tmp_path), counts, retry_failed=False)]
    assert left == ["new", "other state", "other model", "out of reach"]
    assert counts.present == 2
    left = [case.case for case in cases_left(folder, job(tmp_path), Counts(len(cases)), retry_failed=True)]
    assert left == ["new", "other state", "other model", "failed", "out of reach"]
    (tmp_path / "stop").touch()
    assert not list(cases_left(folder, job(tmp_path), Counts(len(cases)), retry_failed=True))


def test_what_workers_did_is_counted(client, tmp_path: Path) -> None:
    told = []
    counts = Counts(4)
    cases = cases_of("a", "b fails", "c", "d")
    work_through(client, iter(cases), job(tmp_path), counts, by_name, lambda case, result: told.append(case.case))
    assert sorted(told) == sorted(case.case for case in cases)
    assert (counts.done, counts.failed, counts.left) == (3, 1, 0)
    assert counts.as_json()["seconds_left"] == 0


@pytest.mark.parametrize(("name", "message"), [("full", "the disk is full"), ("strange", "nobody expects it")])
def test_what_no_worker_can_do_ends_the_run(client, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(CannotWork, match=message):
        work_through(client, iter(cases_of(name)), job(tmp_path), Counts(1), by_name, lambda case, result: None)


def test_a_case_that_kills_its_workers_costs_itself_alone(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(connection._SETTINGS, "distributed.scheduler.allowed-failures", 0)  # each death takes seconds
    (tmp_path / "in").mkdir()
    names = ("a", "b", "c kills", "d", "e fails", "f")
    for name in names:
        (tmp_path / "in" / f"{name}.nii.gz").touch()
    arguments = [str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--workers", "1", "--device", "cpu"]
    result, failure = run_cohort(cohort.parse_arguments(arguments), lambda line: None, by_name)
    assert (result["segmented"], result["failed_in_all"], result["pending"]) == (4, 2, 0)
    assert "2 of 6 CTs failed" in str(failure)
    failed = {row["case"]: row["reason"] for row in rows(tmp_path / "out" / FAILED_FILE)}
    assert list(failed) == ["c kills", "e fails"] and "--memory-limit" in failed["c kills"]
    assert sorted((tmp_path / "out" / "done.txt").read_text().split()) == ["a", "b", "d", "f"]
    progress = json.loads((tmp_path / "out" / "progress.json").read_text())
    assert (progress["state"], progress["done"], progress["failed"]) == ("finished", 4, 2)
    # What is done and what failed is not done again: no worker is even started.
    monkeypatch.setattr("FlareSegmentCohortLib.command.connect", None)
    again, _ = run_cohort(cohort.parse_arguments(arguments), lambda line: None, by_name)
    assert (again["segmented"], again["done"], again["present"]) == (4, 0, 6)


def test_two_runs_refuse_each_other_and_a_dead_one_does_not_count(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path)
    with folder.locked(), pytest.raises(InputError, match="Another cohort runs"), OutputFolder(tmp_path).locked():
        pass
    dead = {"pid": 2**22 + 1, "host": __import__("socket").gethostname(), "process": "long ago"}
    (tmp_path / "cohort.lock").write_text(json.dumps(dead))
    with folder.locked():
        pass
    elsewhere = {"pid": 1, "host": "another computer", "process": None}
    (tmp_path / "cohort.lock").write_text(json.dumps(elsewhere))
    with folder.locked():  # it has not reported for long
        pass
    (tmp_path / "cohort.lock").write_text(json.dumps(elsewhere))
    (tmp_path / "progress.json").write_text("{}")
    with pytest.raises(InputError, match="another computer"), folder.locked():
        pass


def test_what_killed_processes_had_begun_is_removed(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, cases_of("ward/a"))
    for name in ("cases/ward/.saving-7-a.json", "labels/.flaresegment-h-7-x/a.nii.gz", "labels/a_labels.nii.gz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    folder.remove_leftovers()
    left = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(left) == ["labels/a_labels.nii.gz", "list.jsonl"]


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cases").mkdir()
    with pytest.raises(InputError, match="not of a cohort"):
        OutputFolder(tmp_path).prepare()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        OutputFolder(tmp_path / "file").prepare()


def test_tables_and_report_tell_what_came_of_it(tmp_path: Path) -> None:
    import pyarrow.parquet

    cases = cases_of(*(f"case {number:02}" for number in range(30)), "huge <b>", "no CT", "no CT 2", "left")
    folder = folder_of(tmp_path, cases)
    here = job(tmp_path)
    for case in cases[:30]:
        write_record(tmp_path, case.name, record_of(case, here))
    write_record(tmp_path, "huge <b>", record_of(cases[30], here, volume=9000.0, warnings=["one, two", 'three "3"']))
    for case in cases[31:33]:
        error = f"{case.source} is no CT: {len(case.case)}.5 x 7 mm"
        write_record(tmp_path, case.name, {"settings": "s", "state": case.state, "error": error})

    figures = write_tables(folder, here)

    table = rows(tmp_path / TABLE_FILE)
    assert len(table) == 31 * 4 and (figures.done, figures.failed, figures.pending) == (31, 2, 1)
    liver = next(row for row in table if row["case"] == "huge <b>" and row["organ"] == "liver")
    assert (liver["volume_ml"], liver["warnings"], liver["model"]) == ("9000.0", 'one, two | three "3"', "stand-in")
    parquet = pyarrow.parquet.read_table(tmp_path / PARQUET_FILE).to_pylist()
    assert [str(row["volume_ml"]) for row in parquet] == [row["volume_ml"] for row in table]
    assert [row["reason"] for row in rows(tmp_path / FAILED_FILE)][0] == "/data/no CT.nii.gz is no CT: 5.5 x 7 mm"

    report = write_report(folder, "/data", "stand-in 1.0", Listing(34, {"label maps": 3}), figures)

    text = report.read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and all(address.startswith("data:") for address in page.loads)
    assert "huge &lt;b&gt;" in text and "huge <b>" not in text
    assert re.search(r"is no CT: # mm</td><td>2</td>", text)
    assert text.index("<h3>huge &lt;b&gt;</h3>") < text.index("<h3>case ")  # the most doubtful comes first
    assert "Liver is large: 9000 mL" in text and report.name == REPORT_FILE


def test_tables_of_no_result_at_all(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, cases_of("a"))
    figures = write_tables(folder, job(tmp_path))
    report = write_report(folder, "/data", "m", Listing(1, {}), figures)
    assert rows(tmp_path / TABLE_FILE) == [] and "not done yet" in report.read_text(encoding="utf-8")


def test_reasons_without_what_is_special_to_one_case() -> None:
    (case,) = cases_of("a")
    one = kind_of_reason("/data/a.nii.gz is damaged: 12 x 3.5 voxels, see /tmp/x y", case)
    assert one == "is damaged: # voxels, see y"
    assert kind_of_reason("/data/a.nii.gz (series 5) is incomplete.", case) == "(series #) is incomplete"


@pytest.mark.parametrize(("seconds", "text"), [(5, "5 s"), (600, "10 min"), (36000, "10 h 0 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.slow
def test_cohort_as_people_run_it(start_script, tmp_path: Path) -> None:
    (tmp_path / "in" / "größe 1").mkdir(parents=True)
    save(tmp_path / "in" / "größe 1" / "a b.nii.gz")
    save(tmp_path / "in" / "bad.nii.gz", ct_image() + 5000)
    arguments = ("in", "--output", "out", "--workers", "1", "--device", "cpu", "--json")
    script = "FlareSegmentTraining/Scripts/cohort.py"
    run = start_script("python", script, *arguments)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("Error: 1 of 2 CTs failed") and run.stderr.count("\n") == 1
    assert json.loads(run.stdout.splitlines()[-1])["done"] == 1
    assert (tmp_path / "out" / "labels" / "größe 1" / "a b_labels.nii.gz").is_file()
    before = (tmp_path / "out" / TABLE_FILE).read_bytes()
    again = start_script("slicer", script, *arguments)
    assert json.loads(again.stdout.splitlines()[-1])["present"] == 2
    assert (tmp_path / "out" / TABLE_FILE).read_bytes() == before


def test_usage_errors_are_one_line(capsys, tmp_path: Path) -> None:
    output = ["--output", str(tmp_path / "o")]
    for arguments in (["x"], [str(tmp_path / "gone"), *output], ["x", *output, "--jobs", "2"]):
        assert cohort.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    options = cohort.parse_arguments(["x", "--output", "y"])
    assert isinstance(options, Namespace) and options.label_ids == "flaresegment"


def test_a_mistyped_folder_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cohort.main([str(tmp_path / "typo"), "--output", str(tmp_path / "out")]) == 2
    assert "typo does not exist: name a folder of CTs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
