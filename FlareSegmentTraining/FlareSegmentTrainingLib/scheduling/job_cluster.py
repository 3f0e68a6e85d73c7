"""Workers as jobs of a batch system (Slurm, PBS, SGE, LSF), by dask-jobqueue."""

from __future__ import annotations

import argparse
import contextlib
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.processes import python_executable

SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub", "lsf": "bsub"}
CORES, MEMORY = 4, "8GiB"
"""Of each job, where nobody says otherwise."""

_RENEW_SECONDS = 30


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
    settings = _settings(options, folders, log_folder)
    try:
        cluster = cluster_class(**settings)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        raise InputError(f"--cluster {kind}: {_reason(error)}") from error
    try:
        cores, memory = settings["cores"], settings["memory"]
        say(
            f"{options.jobs} job{'' if options.jobs == 1 else 's'} of {kind} with {cores} processors and {memory} of "
            "memory each are asked for; cases begin as soon as the first runs."
        )
        cluster.scale(jobs=options.jobs)
        with _renewing(cluster, options.jobs):
            yield cluster
    finally:
        with contextlib.suppress(Exception):  # jobs whose scheduler is gone end by themselves
            cluster.close(timeout=30)


def _settings(options: argparse.Namespace, folders: list[str], log_folder: Path | None) -> dict[str, Any]:
    """Keywords of dask-jobqueue's cluster: ours, and on top of them the file's."""
    from FlareSegmentTrainingLib.scheduling.connection import WORKER_SETUP, parse_memory, thread_environment

    given = _read_options(options.cluster_options, options.cluster) if options.cluster_options else {}
    processes = int(options.workers or given.get("processes") or 1)
    threads = options.threads_per_worker
    cores = int(threads * processes if threads else given.get("cores") or CORES)
    limit = parse_memory(options.memory_limit)
    memory = f"{limit * processes / 2**30:g}GiB" if limit else given.get("memory") or MEMORY
    variables = thread_environment(max(1, cores // processes))
    paths = ":".join(shlex.quote(folder) for folder in folders)
    prologue = [f"export PYTHONPATH={paths}${{PYTHONPATH:+:$PYTHONPATH}}"]
    prologue += [f"export {name}={value}" for name, value in variables.items()]
    settings: dict[str, Any] = {
        "python": shlex.quote(_job_python()),
        "scheduler_options": {"dashboard": False, "dashboard_address": None, **given.pop("scheduler_options", {})},
        "job_name": "flaresegment",
        "silence_logs": "critical",
        **({"log_directory": str(log_folder)} if log_folder else {}),
        **given,
        "cores": cores,
        "memory": memory,
        "processes": processes,
        "job_script_prologue": [*prologue, *given.get("job_script_prologue", [])],
        "worker_extra_args": ["--preload", WORKER_SETUP, "--no-dashboard", *given.get("worker_extra_args", [])],
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


@contextlib.contextmanager
def _renewing(cluster: Any, jobs: int) -> Iterator[None]:
    """Submit jobs that ended, by their wall time or a node that failed, again."""
    from tornado.ioloop import PeriodicCallback

    renewal = PeriodicCallback(lambda: cluster.scale(jobs=jobs), _RENEW_SECONDS * 1000)
    cluster.loop.add_callback(renewal.start)
    try:
        yield
    finally:
        cluster.loop.add_callback(renewal.stop)
