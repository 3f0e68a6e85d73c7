"""The options by which every script says where its cases are worked on; without one of them nothing changes."""

from __future__ import annotations

import argparse
from pathlib import Path

from FlareSegmentLib.errors import InputError

CLUSTERS = ("slurm", "pbs", "sge", "lsf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a script's parser; `check_arguments` looks at what was given, `connect` uses it."""
    group = parser.add_argument_group(
        "several cases at a time",
        "By Dask: on this computer, on a Dask cluster that runs, or in jobs of a batch system.",
    )
    group.add_argument("--workers", type=int, metavar="N", help="worker processes; with --cluster: of each job")
    group.add_argument("--threads-per-worker", type=int, metavar="N", help="processors that each worker computes with")
    group.add_argument(
        "--memory-limit", metavar="SIZE", help="memory that each worker may use, as 6GB; a case that takes more fails"
    )
    group.add_argument("--scheduler", metavar="ADDRESS", help="scheduler of a Dask cluster, as tcp://node01:8786")
    group.add_argument("--cluster", choices=CLUSTERS, help="start workers as jobs of this batch system")
    group.add_argument("--jobs", type=int, metavar="N", help="jobs to keep running with --cluster")
    group.add_argument("--partition", metavar="NAME", help="partition (queue) of the jobs")
    group.add_argument(
        "--cluster-options", type=Path, metavar="FILE", help="YAML file with any options of dask-jobqueue's cluster"
    )


def wanted(options: argparse.Namespace) -> bool:
    """Whether a command line asks for workers."""
    return any(value is not None for value in _given(options).values())


def check_arguments(options: argparse.Namespace) -> None:
    """Raise InputError where the options contradict each other or make no sense."""
    given = {name for name, value in _given(options).items() if value is not None}
    for name in ("workers", "threads_per_worker", "jobs"):
        number = getattr(options, name)
        if number is not None and number < 1:
            raise InputError(f"--{name.replace('_', '-')} {number}: at least 1 is needed.")
    if options.scheduler is not None:
        others = sorted(given - {"scheduler"})
        if others:
            raise InputError(
                f"--scheduler takes the workers of a cluster that runs; leave out --{others[0].replace('_', '-')}."
            )
        if "://" not in options.scheduler:
            raise InputError(f"--scheduler {options.scheduler}: give the address as tcp://HOST:PORT.")
    if options.cluster is None:
        for name in ("jobs", "partition", "cluster_options"):
            if name in given:
                raise InputError(f"--{name.replace('_', '-')} belongs to --cluster: name {', '.join(CLUSTERS)}.")
    elif options.jobs is None:
        raise InputError(f"--cluster {options.cluster} needs --jobs N: how many jobs to keep running.")


def _given(options: argparse.Namespace) -> dict[str, object]:
    names = (
        "workers",
        "threads_per_worker",
        "memory_limit",
        "scheduler",
        "cluster",
        "jobs",
        "partition",
        "cluster_options",
    )
    return {name: getattr(options, name) for name in names}
