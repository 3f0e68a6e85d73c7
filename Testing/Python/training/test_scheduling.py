"""Workers: how many there are, what each gets, and what is said where they cannot be had or end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

pytest.importorskip("distributed", reason="Dask is not installed")

from FlareSegmentLib.command_line import ArgumentParser
from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentTrainingLib.scheduling import (
    connection,
    interrupts,
    job_cluster,
    machine,
    running_cluster,
    tasks,
    worker_setup,
)
from FlareSegmentTrainingLib.scheduling.options import add_arguments, check_arguments, wanted
from FlareSegmentTrainingLib.scheduling.tasks import WorkerLost, outcomes, outcomes_in_order

GIB = 2**30
pytestmark = pytest.mark.at_most(180)


def options(*words: object):
    parser = ArgumentParser()
    add_arguments(parser)
    parsed = parser.parse_args([str(word) for word in words])
    check_arguments(parsed)
    return parsed


def work(number: int, deadly: int = -1) -> tuple[int, int, str, bool]:
    """What a worker is like; number 3 cannot be worked on."""
    if number == deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 3:
        raise InputError("three")
    time.sleep(0.05)
    return number, os.getpid(), os.environ["OMP_NUM_THREADS"], "slicer" in sys.modules


# Options and numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--workers", 0], "--workers 0: at least 1"),
        (["--jobs", 3], "--jobs belongs to --cluster"),
        (["--cluster-options", "x.yaml"], "--cluster-options belongs to --cluster"),
        (["--cluster", "slurm"], "needs --jobs N"),
        (["--cluster", "condor", "--jobs", 1], "invalid choice"),
        (["--scheduler", "node01:8786"], "as tcp://HOST:PORT"),
        (["--scheduler", "tcp://node01:8786", "--workers", 2], "leave out --workers"),
    ],
)
def test_options_that_make_no_sense(words: list, told: str) -> None:
    with pytest.raises(InputError, match=told):
        options(*words)


def test_without_an_option_nobody_wants_workers() -> None:
    assert not wanted(options())
    assert wanted(options("--memory-limit", "4GB"))
    with connection.client_if_wanted(options()) as client:
        assert client is None


@pytest.mark.parametrize(
    ("processors", "memory_gib", "asked", "count", "threads", "limit_gib"),
    [
        (2, 21, {}, 2, 1, 9.975),
        (16, 64, {}, 16, 1, 3.8),
        (16, 16, {}, 5, 3, 3.04),  # memory is short: fewer workers, more threads
        (2, 2, {}, 1, 2, 1.9),
        (16, 64, {"threads": 4}, 4, 4, 15.2),
        (16, 64, {"count": 2}, 2, 8, 30.4),
        (16, 64, {"memory_limit": 16 * GIB}, 3, 5, 16),
        (16, 64, {"gpus": ("0", "1")}, 2, 8, 30.4),
        (16, 64, {"gpus": ("4",), "count": 2}, 2, 8, 30.4),
    ],
)
def test_a_computer_is_divided(processors, memory_gib, asked, count, threads, limit_gib) -> None:
    workers = machine.choose_workers(processors, memory_gib * GIB, **asked)
    assert (workers.count, workers.threads) == (count, threads)
    assert workers.memory_bytes == pytest.approx(limit_gib * GIB)
    assert len(workers.gpus) == (count if asked.get("gpus") else 0)
    assert f"{count} worker" in workers.in_words()


def test_too_little_memory_is_said() -> None:
    with pytest.raises(InputError, match=r"use --workers 3"):
        machine.choose_workers(8, 4 * GIB, count=8)
    with pytest.raises(InputError, match="at least 1 GiB"):
        machine.choose_workers(8, 64 * GIB, memory_limit=GIB // 4)
    with pytest.raises(InputError, match="give a size as 6GB"):
        machine.parse_memory("much")
    with (
        pytest.raises(InputError, match="100TB: this computer has"),
        connection.connect(options("--memory-limit", "100TB")),
    ):
        pass


def test_workers_that_are_gone_for_good_end_the_wait() -> None:
    local = SimpleNamespace(cluster=SimpleNamespace())
    tasks._check(local, 1, 1000.0)
    tasks._check(local, 0, 1.0)
    with pytest.raises(FlareSegmentError, match="none came back"):
        tasks._check(local, 0, 1000.0)
    tasks._check(SimpleNamespace(cluster=None), 0, 1000.0)  # of a cluster that runs, others may come


@pytest.mark.parametrize("version", [1, 2])
def test_a_control_group_bounds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    root = tmp_path / "cgroup"
    inside = root / ("memory/slurm/job" if version == 1 else "slurm/job")
    inside.mkdir(parents=True)
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if version == 1 else ("memory.max", "memory.current")
    cache = "total_inactive_file" if version == 1 else "inactive_file"
    for name, text in ((names[0], 3 * GIB), (names[1], 2 * GIB), ("memory.stat", f"anon 5\n{cache} {GIB}\n")):
        (inside / name).write_text(f"{text}\n", encoding="utf-8")
    (inside.parent / names[0]).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n", encoding="utf-8")
    membership = tmp_path / "membership"
    membership.write_text("4:cpu:/x\n9:memory:/slurm/job\n" if version == 1 else "0::/slurm/job\n", encoding="utf-8")
    monkeypatch.setattr(machine, "_CGROUPS", root)
    monkeypatch.setattr(machine, "_MEMBERSHIP", membership)
    assert machine.free_memory() == 2 * GIB  # 3 allowed, 2 used, of which 1 can be given up


def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(machine, "_is_there", lambda driver: driver == "libcuda.so.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_gpus() == ("0", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    assert machine.visible_gpus() == ("3", "GPU-abc")
    assert machine.gpu_environment(("3", "GPU-abc"), 1) == {"CUDA_VISIBLE_DEVICES": "GPU-abc"}
    monkeypatch.setattr(machine, "_is_there", lambda driver: False)
    assert machine.visible_gpus() == ()  # without a driver PyTorch is not asked


def test_workers_of_a_job_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "signal", lambda *what: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, gpus, own in (
        ("SLURMCluster-7-0", "2,3", "2"),
        ("SLURMCluster-7-1", "2,3", "3"),
        ("SLURMCluster-7", "GPU-a", "GPU-a"),
        ("tcp://n:1", "2,3", "2,3"),
    ):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        worker_setup.dask_setup(SimpleNamespace(name=name))
        assert os.environ["CUDA_VISIBLE_DEVICES"] == own


def test_slicers_launcher_is_not_what_workers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher, real = tmp_path / "PythonSlicer", tmp_path / "python-real"
    for file in (launcher, real):
        file.touch()
    monkeypatch.setattr(sys, "executable", str(launcher))
    assert connection._worker_python() == str(real)
    monkeypatch.setattr(sys, "executable", str(real))
    assert job_cluster._job_python() == str(launcher)  # a node of a cluster has nothing of Slicer's environment


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match="package distributed is missing: install"), connection.connect(options()):
        pass


# Workers of this computer -------------------------------------------------------------------------


def test_cases_on_workers_of_this_computer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before, said = dict(os.environ), []
    with connection.connect(options("--workers", 2, "--threads-per-worker", 1), said.append, "cpu") as client:
        found = {outcome.item: outcome for outcome in outcomes(client, work, iter(range(8)), 1, alone=True)}
        in_order = list(outcomes_in_order(client, work, [5, 3, 4]))
        with pytest.raises(ZeroDivisionError):
            list(outcomes_in_order(client, divmod, [0], 0))
    assert len(said) == 1 and said[0].startswith("2 workers with 1 thread and up to ")
    assert isinstance(found[1].error, WorkerLost) and "ended 3 times" in str(found[1].error)
    assert isinstance(found[3].error, InputError) and str(found[3].error) == "three"
    done = [found[number].value for number in (0, 2, 4, 5, 6, 7)]
    assert [value[0] for value in done] == [0, 2, 4, 5, 6, 7]
    assert {value[2:] for value in done} == {("1", False)}  # threads as asked for, and no Slicer in a worker
    assert os.getpid() not in {value[1] for value in done}
    assert [outcome.item for outcome in in_order] == [5, 3, 4] and in_order[1].error is not None
    assert dict(os.environ) == before


def test_without_a_client_cases_are_worked_on_here() -> None:
    found = list(outcomes_in_order(None, abs, [-2, 5]))
    assert [outcome.value for outcome in found] == [2, 5]


# A cluster that runs ------------------------------------------------------------------------------


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """A scheduler and a worker as somebody else starts them: nothing of the project is on their path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    file = tmp_path / "scheduler.json"
    processes = []

    def start(program: str, *words: object) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--scheduler-file", str(file)]
        command += ["--no-dashboard", *map(str, words)]
        with open(tmp_path / f"{program}.txt", "wb") as output:
            processes.append(subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output))

    try:
        start("scheduler", "--port", 0, "--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0")
        start("worker", "--nthreads", 1, "--no-nanny", "--host", "127.0.0.1")
        end = time.monotonic() + 60
        while not file.is_file() or not file.read_text(encoding="utf-8").strip():
            assert processes[0].poll() is None, (tmp_path / "scheduler.txt").read_text(errors="replace")
            assert time.monotonic() < end, "the scheduler does not come up"
            time.sleep(0.1)
        yield json.loads(file.read_text(encoding="utf-8"))["address"], processes
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_cluster_that_runs(cluster) -> None:
    address, processes = cluster
    said: list[str] = []
    with connection.connect(options("--scheduler", address), said.append) as client:
        client.wait_for_workers(1, timeout=60)
        one = machine.Workers(1, 1, GIB)  # nothing of the project can be imported where the scheduler is
        (outcome,) = outcomes(client, machine.Workers.in_words, [one])
        assert (outcome.error, outcome.value) == (None, one.in_words())
        with pytest.raises(FileNotFoundError, match="does not see /nowhere"):
            client.register_plugin(running_cluster._paths_plugin(["/nowhere"]), name="other")
        with pytest.raises(FlareSegmentError, match="scheduler is gone; the same command goes on"):
            for _ in outcomes(client, time.sleep, [0.01, 30]):
                processes[0].kill()
    assert len(said) == 1 and address in said[0]


def test_a_scheduler_that_cannot_be_reached() -> None:
    begun = time.monotonic()
    with (
        pytest.raises(InputError, match="No Dask scheduler answers at tcp://127.0.0.1:9:"),
        connection.connect(options("--scheduler", "tcp://127.0.0.1:9")),
    ):
        pass
    assert time.monotonic() - begun < 60


def test_other_versions_are_named() -> None:
    def facts(python: str = "3.12.1.final.0", **packages: str | None) -> dict:
        installed = {"dask": "2026.8.0", "distributed": "2026.8.0", "torch": "2", "SimpleITK": "2", "scipy": "1"}
        return {"host": {"python": python}, "packages": {**installed, **packages}}

    def told(scheduler: dict, worker: dict) -> str:
        versions = {"client": facts(), "scheduler": scheduler, "workers": {"tcp://n1": worker}}
        client = SimpleNamespace(get_versions=lambda packages: versions)
        try:
            running_cluster._compare_versions(client, "tcp://s")
        except InputError as error:
            return str(error)
        return ""

    assert told(facts(torch=None), facts()) == ""  # a scheduler computes nothing
    assert "its worker tcp://n1 runs Python 3.11, this command 3.12" in told(facts(), facts("3.11.9.final.0"))
    assert "its scheduler runs distributed 2025.1.0" in told(facts(distributed="2025.1.0"), facts())
    assert "has no torch; install it there" in told(facts(), facts(torch=None))


# Jobs, as far as they go without a batch system ---------------------------------------------------


def dask_jobqueue() -> ModuleType:
    with interrupts.handler_kept():  # other tests in this process press Ctrl-C
        return pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("walltime: '01:00:00'\nnodes: 3\n", "knows no option nodes"),
        ("jobqueue:\n  slurm:\n    nodes: 3\n", "knows no option nodes"),
        ("[1, 2]\n", "must hold options"),
        ("cores: many\n", "--cluster slurm: invalid literal"),
        ("scheduler_options: 3\n", "--cluster slurm: "),
        ("[", "is no YAML"),
        (None, "cannot be read"),
    ],
)
def test_options_of_jobs_that_cannot_be_used(tmp_path: Path, monkeypatch, text: str | None, told: str) -> None:
    dask_jobqueue()
    monkeypatch.setattr(job_cluster.shutil, "which", lambda name: f"/usr/bin/{name}")
    file = tmp_path / "options.yaml"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    asked = options("--cluster", "slurm", "--jobs", 1, "--cluster-options", file)
    with pytest.raises(InputError, match=told), connection.connect(asked):
        pass


@pytest.mark.parametrize("kind", ["slurm", "pbs", "sge", "lsf"])
def test_what_jobs_are_asked_for(tmp_path: Path, kind: str) -> None:
    jobqueue = dask_jobqueue()
    file = tmp_path / "options.yaml"
    file.write_text("walltime: '02:00'\njob-script-prologue: [module load cuda]\nmemory: 1GB\n", encoding="utf-8")
    words = ["--jobs", 3, "--partition", "ct", "--workers", 2, "--threads-per-worker", 3, "--memory-limit", "4GiB"]
    asked = options("--cluster", kind, "--cluster-options", file, *words)
    settings = job_cluster._settings(asked, ["/opt/a b", "/opt/c"], tmp_path / "logs")
    script = (
        getattr(jobqueue, f"{kind.upper()}Cluster").job_cls("tcp://s:1", name="n", **_of_a_job(settings)).job_script()
    )
    assert "export PYTHONPATH='/opt/a b':/opt/c${PYTHONPATH:+:$PYTHONPATH}" in script
    assert "export OMP_NUM_THREADS=3" in script and "module load cuda" in script
    assert "--nworkers 2" in script and "--nthreads 3" in script and "02:00" in script and " ct" in script
    assert "--memory-limit 4.00GiB" in script and "FlareSegmentTrainingLib.scheduling.worker_setup" in script


def _of_a_job(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in ("scheduler_options", "silence_logs")}


def test_a_batch_system_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    dask_jobqueue()
    monkeypatch.setattr(job_cluster.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="no bsub here"), connection.connect(options("--cluster", "lsf", "--jobs", 1)):
        pass


def test_jobs_leave_ctrl_c_as_it_was() -> None:
    dask_jobqueue()
    program = (
        "import signal\nfrom FlareSegmentTrainingLib.scheduling import connection\nconnection._require_dask(True)\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(connection.library_folders())}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=120)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for others")
def test_ctrl_c_waits_for_a_cluster_that_is_half_made() -> None:
    seen: list[str] = []
    with pytest.raises(KeyboardInterrupt), interrupts.interrupts_wait():
        os.kill(os.getpid(), signal.SIGINT)
        seen.append("whole")
    assert seen == ["whole"]
    with interrupts.interrupts_ignored():
        os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_run_that_fails_does_not_wait_for_what_is_in_work() -> None:
    begun = time.monotonic()
    with pytest.raises(ZeroDivisionError), connection.connect(options("--workers", 1), device="cpu") as client:
        for number, _ in enumerate(outcomes(client, time.sleep, [0.01, 60])):
            begun = time.monotonic()
            1 / number
    assert time.monotonic() - begun < 30
