"""--cluster slurm on a real Slurm, which each test session starts for itself."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")

import cohort
import evaluate
import prepare
import slurm

from FlareSegmentTrainingLib.scheduling import job_cluster

pytestmark = pytest.mark.skipif(
    bool(slurm.missing()), reason=f"not installed: {', '.join(slurm.missing())} (Debian: slurm-wlm munge)"
)
JOBS = ("--cluster", "slurm", "--partition", slurm.PARTITION, "--threads-per-worker", "1", "--memory-limit", "3GiB")


@pytest.fixture(scope="module")
def batch_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(autouse=True)
def at_the_batch_system(batch_system, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CONF", batch_system["SLURM_CONF"])
    monkeypatch.setattr(job_cluster, "_LOOK_SECONDS", 1)
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_an_evaluation_and_a_cohort(tmp_path: Path, batch_system, capsys: pytest.CaptureFixture) -> None:
    assert prepare.main(["--data", "phantom:2", "--output", "data", "--json", *JOBS, "--jobs", "2"]) == 0
    arguments = ["--model", "bundled", "--device", "cpu", "--data", "data", "--output", "evaluation"]
    assert evaluate.main([*arguments, *JOBS, "--jobs", "2"]) == 0
    assert len(json.loads(Path("evaluation/evaluation.json").read_text(encoding="utf-8"))["cases"]) == 2
    (tmp_path / "cts").mkdir()
    for file in (tmp_path / "data").glob("*_ct.nii.gz"):
        file.rename(tmp_path / "cts" / file.name)
    assert cohort.main(["cts", "--output", "results", *JOBS, "--jobs", "1"]) == 0
    assert len(list((tmp_path / "results" / "labels").glob("*.nii.gz"))) == 2
    output = capsys.readouterr().out
    assert output.count("of slurm with 1 processor and 3GiB of memory each") == 3
    assert list((tmp_path / "results" / "logs").glob("flaresegment-*"))  # what the jobs printed
    _wait_for_no_job(batch_system)


def test_a_job_that_is_cancelled_is_submitted_again(batch_system, capsys: pytest.CaptureFixture) -> None:
    def cancel() -> None:
        while not list(Path("out").glob("*_ct.nii.gz")):
            time.sleep(0.1)
        subprocess.run(["scancel", *slurm.jobs(batch_system)], env=batch_system, check=True)

    thread = threading.Thread(target=cancel)
    thread.start()
    try:
        assert prepare.main(["--data", "phantom:6", "--output", "out", *JOBS, "--jobs", "1"]) == 0
    finally:
        thread.join()
    assert "6 cases taken" in capsys.readouterr().out
    _wait_for_no_job(batch_system)


def test_jobs_that_never_work_are_told(batch_system, capsys: pytest.CaptureFixture) -> None:
    Path("options.yaml").write_text("python: /nowhere/python\n", encoding="utf-8")
    arguments = ["--data", "phantom:1", "--output", "out", "--jobs", "1"]
    assert prepare.main([*arguments, *JOBS, "--cluster-options", "options.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: All jobs of slurm ended before a worker began (") and told.count("\n") == 1
    assert any("/nowhere/python" in file.read_text(encoding="utf-8") for file in Path("out/logs").iterdir())
    assert prepare.main([*arguments, "--cluster", "slurm", "--partition", "nowhere"]) == 2
    assert "sbatch takes no job: sbatch: error: invalid partition specified: nowhere" in capsys.readouterr().err


def test_a_job_that_waits_is_told(batch_system, capsys: pytest.CaptureFixture) -> None:
    Path("options.yaml").write_text("job_extra_directives: [--hold]\n", encoding="utf-8")

    def release() -> None:
        while not slurm.jobs(batch_system):
            time.sleep(0.1)
        time.sleep(3)
        subprocess.run(["scontrol", "release", *slurm.jobs(batch_system)], env=batch_system, check=True)

    thread = threading.Thread(target=release)
    thread.start()
    arguments = ["--data", "phantom:1", "--output", "out", "--jobs", "1", "--cluster-options", "options.yaml"]
    try:
        assert prepare.main([*arguments, *JOBS]) == 0
    finally:
        thread.join()
    assert "No job runs yet; slurm says PENDING (JobHeldUser)." in capsys.readouterr().out


def _wait_for_no_job(environment: dict[str, str]) -> None:
    end = time.monotonic() + 30
    while slurm.jobs(environment):
        assert time.monotonic() < end, "a job is left"
        time.sleep(0.2)
