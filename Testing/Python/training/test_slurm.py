"""--cluster slurm on a real Slurm, which each test session starts for itself."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="Dask is not installed")

import cohort
import evaluate
import prepare
import slurm

from FlareSegmentTrainingLib.scheduling import connection, job_cluster

pytestmark = [
    pytest.mark.skipif(
        bool(slurm.missing()), reason=f"not installed: {', '.join(slurm.missing())} (Debian: slurm-wlm munge)"
    ),
    pytest.mark.skipif(find_spec("dask_jobqueue") is None, reason="dask-jobqueue is not installed"),
    pytest.mark.at_most(280),
]
JOBS = ("--cluster", "slurm", "--partition", slurm.PARTITION, "--threads-per-worker", "1", "--memory-limit", "3GiB")


@pytest.fixture(scope="module")
def batch_system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm.running(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(autouse=True)
def at_the_batch_system(batch_system, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SLURM_CONF", batch_system["SLURM_CONF"])
    monkeypatch.setattr(job_cluster, "_LOOK_SECONDS", 1)
    monkeypatch.setitem(connection._SETTINGS, "distributed.deploy.lost-worker-timeout", "1s")
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
    with _meanwhile(lambda: list(Path("out").glob("*_ct.nii.gz")), lambda: _command("scancel", batch_system)):
        assert prepare.main(["--data", "phantom:3", "--output", "out", *JOBS, "--jobs", "1"]) == 0
    assert "3 cases taken" in capsys.readouterr().out
    _wait_for_no_job(batch_system)


def test_jobs_that_never_work_are_told(batch_system, capsys: pytest.CaptureFixture) -> None:
    Path("options.yaml").write_text("python: /nowhere/python\n", encoding="utf-8")
    arguments = ["--data", "phantom:2", "--output", "out", "--jobs", "1"]
    assert prepare.main([*arguments, *JOBS, "--cluster-options", "options.yaml"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("Error: All jobs of slurm ended before a worker began (") and told.count("\n") == 1
    assert any("/nowhere/python" in file.read_text(encoding="utf-8") for file in Path("out/logs").iterdir())
    assert prepare.main([*arguments, "--cluster", "slurm", "--partition", "nowhere"]) == 2
    assert "sbatch takes no job: sbatch: error: invalid partition specified: nowhere" in capsys.readouterr().err


def test_a_job_that_waits_is_told(batch_system, capsys: pytest.CaptureFixture) -> None:
    Path("options.yaml").write_text("job_extra_directives: [--hold]\n", encoding="utf-8")

    arguments = ["--data", "phantom:2", "--output", "out", "--jobs", "1", "--cluster-options", "options.yaml"]
    told: list[str] = []

    def is_told() -> bool:
        told.append(capsys.readouterr().out)
        return "No job runs yet; slurm says PENDING (JobHeldUser)." in "".join(told)

    with _meanwhile(is_told, lambda: _command("scontrol release", batch_system)):
        assert prepare.main([*arguments, *JOBS]) == 0


@contextlib.contextmanager
def _meanwhile(condition: Callable[[], object], act: Callable[[], None]) -> Iterator[None]:
    """Act as soon as the condition holds, while the test goes on; it must have come to that."""
    over, acted = threading.Event(), threading.Event()

    def wait() -> None:
        while not over.wait(0.1):
            if condition():
                act()
                acted.set()
                return

    thread = threading.Thread(target=wait)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)
    assert acted.is_set()


def _command(words: str, environment: dict[str, str]) -> None:
    subprocess.run([*words.split(), *slurm.jobs(environment)], env=environment, check=True, timeout=60)


def _wait_for_no_job(environment: dict[str, str]) -> None:
    end = time.monotonic() + 30
    while slurm.jobs(environment):
        assert time.monotonic() < end, "a job is left"
        time.sleep(0.2)
