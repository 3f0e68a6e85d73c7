"""Workers as jobs of a batch system (Slurm, PBS, SGE, LSF), by dask-jobqueue."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import re
import shlex
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.processes import python_executable
from FlareSegmentTrainingLib.scheduling import worker_setup
from FlareSegmentTrainingLib.scheduling.interrupts import interrupts_ignored, interrupts_wait
from FlareSegmentTrainingLib.scheduling.machine import parse_memory, thread_environment

SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub", "lsf": "bsub"}
CORES, MEMORY = 4, "8GiB"
"""Of each job, where nobody says otherwise."""

_LOOK_SECONDS = 10
_LOOKS = 3
_STATE = {
    "slurm": ("squeue", "--noheader", "--format=%T (%r)", "--jobs"),
    "pbs": ("qstat",),
    "sge": ("qstat", "-j"),
    "lsf": ("bjobs", "-noheader", "-o", "stat"),
}
_ENDED = ("DONE", "EXIT")  # which LSF still tells of, an hour long


@contextlib.contextmanager
def job_cluster(
    options: argparse.Namespace, folders: list[str], log_folder: Path | None, say: Callable[[str], None]
) -> Iterator[Any]:
    """Yield a cluster whose jobs are submitted again when they end, and cancelled afterwards.

    Args:
        options: see `options.add_arguments`.
        folders: what workers import this project from.
        log_folder: where the batch system puts what the jobs print.

    Raises:
        InputError: the batch system is not here, or takes no such options.
    """
    import dask_jobqueue

    kind = options.cluster
    if shutil.which(SUBMIT[kind]) is None:
        raise InputError(f"--cluster {kind}: there is no {SUBMIT[kind]} here. Run this where jobs are submitted from.")
    cluster_class = getattr(dask_jobqueue, f"{kind.upper()}Cluster")
    try:
        settings = _settings(options, folders, log_folder)
        with interrupts_wait():
            cluster = cluster_class(**settings)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise InputError(f"--cluster {kind}: {_reason(error)}") from error
    try:
        _submit(cluster, options)
        cores, memory = settings["cores"], settings["memory"]
        jobs = "1 job" if options.jobs == 1 else f"{options.jobs} jobs"
        processors = "1 processor" if cores == 1 else f"{cores} processors"
        say(f"{jobs} of {kind} with {processors} and {memory} of memory each; work begins when the first runs.")
        watch = JobWatch(cluster, options, log_folder, say)
        cluster.flaresegment_problem, cluster.flaresegment_stop = watch.problem, watch.stop
        with watch.running():
            yield cluster
    finally:
        with interrupts_ignored(), contextlib.suppress(Exception):  # jobs whose scheduler is gone end by themselves
            cluster.close(timeout=30)


def _submit(cluster: Any, options: argparse.Namespace) -> None:
    """Submit the jobs. Raises InputError where the batch system refuses them."""

    async def submitted() -> None:
        cluster.scale(jobs=options.jobs)  # it only asks; what goes wrong is told to the one who waits
        await cluster

    try:
        cluster.sync(submitted)
    except (RuntimeError, ValueError, OSError) as error:
        told = re.search(r"stderr:\n(.*)", str(error), re.DOTALL)
        reason = " ".join((told[1] if told else str(error)).split())
        raise InputError(f"--cluster {options.cluster}: {SUBMIT[options.cluster]} takes no job: {reason}") from error


def _settings(options: argparse.Namespace, folders: list[str], log_folder: Path | None) -> dict[str, Any]:
    """Keywords of dask-jobqueue's cluster: ours, and on top of them the file's."""
    given = _read_options(options.cluster_options, options.cluster) if options.cluster_options else {}
    processes = int(options.workers or given.get("processes") or 1)
    threads = options.threads_per_worker
    cores = int(threads * processes if threads else given.get("cores") or CORES)
    limit = parse_memory(options.memory_limit)
    memory = f"{limit * processes / 2**30:.4g}GiB" if limit else given.get("memory") or MEMORY
    variables = thread_environment(max(1, cores // processes))
    paths = ":".join(shlex.quote(folder) for folder in folders)
    prologue = [f"export PYTHONPATH={paths}${{PYTHONPATH:+:$PYTHONPATH}}"]
    prologue += [f"export {name}={value}" for name, value in variables.items()]
    preloading = ["--preload", worker_setup.__name__]
    settings: dict[str, Any] = {
        "python": shlex.quote(_job_python()),
        "scheduler_options": {"dashboard": False, "dashboard_address": None, **given.pop("scheduler_options", {})},
        "job_name": "flaresegment",
        "silence_logs": "critical",
        **({"log_directory": str(log_folder.absolute())} if log_folder else {}),
        **given,
        "cores": cores,
        "memory": memory,
        "processes": processes,
        "job_script_prologue": [*prologue, *given.get("job_script_prologue", [])],
        "worker_extra_args": [*preloading, "--no-dashboard", *given.get("worker_extra_args", [])],
    }
    if options.partition:
        settings["queue"] = options.partition
    return settings


def _job_python() -> str:
    """Slicer's PythonSlicer, on a node where nothing of Slicer's environment is set."""
    python = Path(python_executable())
    launcher = python.with_name(f"PythonSlicer{python.suffix}")
    return str(launcher if python.stem == "python-real" and launcher.is_file() else python)


def _read_options(file: Path, kind: str) -> dict[str, Any]:
    """Options of a YAML file: dask-jobqueue's keywords, or a file as dask-jobqueue's own configuration."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is no YAML: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("jobqueue"), dict):
        content = content["jobqueue"].get(kind)
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold options of dask-jobqueue, one a line, such as walltime: '08:00:00'.")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def _reason(error: Exception) -> str:
    """What is wrong, without the listing of all that was given."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown:
        return f"dask-jobqueue knows no option {unknown[1]} (--cluster-options)."
    return " ".join(str(error).split())


class JobWatch:
    """Looks after the jobs every few seconds, which dask-jobqueue leaves to its user.

    Jobs whose workers were there and went, by the end of their wall time or of a node, are submitted again. Jobs that
    went before a worker of theirs came are not: something is wrong with them.
    """

    def __init__(
        self, cluster: Any, options: argparse.Namespace, log_folder: Path | None, say: Callable[[str], None]
    ) -> None:
        self._cluster, self._kind, self._jobs = cluster, options.cluster, options.jobs
        self._log_folder, self._say = log_folder, say
        self._came: set[str] = set()
        self._gone: Counter[str] = Counter()
        self._said = ""
        self._stopped = False

    def problem(self) -> str:
        """Why there will never be a worker, in one line; empty as long as there may be one."""
        jobs = [str(job.job_id) for job in list(self._cluster.workers.values())]
        if not jobs or any(job in self._came or self._gone[job] < _LOOKS for job in jobs):
            return ""
        where = f"; what they printed lies in {self._log_folder}" if self._log_folder else ""
        return f"All jobs of {self._kind} ended before a worker began ({', '.join(jobs)}){where}."

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Look after the jobs as long as this lasts."""
        from tornado.ioloop import PeriodicCallback

        looking = PeriodicCallback(self._look, _LOOK_SECONDS * 1000)
        self._cluster.loop.add_callback(looking.start)
        try:
            yield
        finally:
            self._cluster.loop.add_callback(looking.stop)

    def stop(self) -> None:
        """Submit no more jobs."""
        self._stopped = True

    async def _look(self) -> None:
        if self._stopped:
            return
        names = {str(worker.name) for worker in self._cluster.scheduler.workers.values()}
        for name, job in list(self._cluster.workers.items()):
            if job.job_id is None:
                self._tell(f"{self._kind} takes no more jobs; asking again.")
                del self._cluster.workers[name]
            elif any(one == str(name) or one.startswith(f"{name}-") for one in names):
                self._came.add(str(job.job_id))
        self._cluster.scale(jobs=self._jobs)
        states = set()
        for job in list(self._cluster.workers.values()):
            if job.job_id is not None and str(job.job_id) not in self._came:
                state = await self._state(str(job.job_id))
                self._gone[str(job.job_id)] = 0 if state else self._gone[str(job.job_id)] + 1
                states.add(state)
        told = ", ".join(sorted(state for state in states if state))
        if told and not names:
            self._tell(f"No job runs yet; {self._kind} says {told}.")

    def _tell(self, line: str) -> None:
        """Say a line, but not again and again."""
        if line != self._said:
            self._say(line)
            self._said = line

    async def _state(self, job: str) -> str:
        """What the batch system says of a job; empty where it is gone."""
        process = await asyncio.create_subprocess_exec(
            *_STATE[self._kind], job, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        output, errors = (text.decode(errors="replace").strip() for text in await process.communicate())
        if self._kind == "slurm" and process.returncode and "Invalid job id" not in errors:
            return "nothing"  # its controller does not answer
        state = output.splitlines()[-1].strip() if output and not process.returncode else ""
        return "" if state in _ENDED else state
