"""A client of Dask: of workers on this computer, of a cluster that runs already, or of jobs of a batch system.

Workers are processes that a nanny starts anew when they end. Each works on one case at a time, so that one that is
killed costs no other case, and computes with its own threads. On Linux they can be forked from one process that has
imported what all of them need: it starts while the command has other things to do, and its memory is shared.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import multiprocessing.spawn
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import FlareSegmentLib
from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.processes import python_executable
from FlareSegmentTrainingLib.scheduling import worker_setup
from FlareSegmentTrainingLib.scheduling.interrupts import closing, handler_kept, interrupts_ignored, interrupts_wait
from FlareSegmentTrainingLib.scheduling.machine import (
    Workers,
    choose_workers,
    free_memory,
    gpu_environment,
    parse_memory,
    thread_environment,
    visible_gpus,
)
from FlareSegmentTrainingLib.scheduling.options import wanted

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_CONNECT = 15
_SECONDS_TO_START = 300
_SETTINGS = {
    "distributed.scheduler.allowed-failures": 2,
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.comm.timeouts.connect": "10s",
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.tick.limit": "1h",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.disk": False,
    "distributed.admin.system-monitor.gil.enabled": False,
    "distributed.admin.log-length": 1000,
    "distributed.worker.profile.enabled": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.pause": False,
}
"""Results are small, so nothing is ever spilled to a disk, and a worker that needs much for one case goes on with it
until the limit ends it. A case may end three workers before it is given up. Nobody looks at Dask's dashboard, so what
it would show is not gathered: that takes the processors some percent of their time.
"""


@contextlib.contextmanager
def connect(
    options: argparse.Namespace,
    say: Callable[[str], None] = print,
    device: str = "auto",
    log_folder: Path | None = None,
    read_ahead: bool = False,
    modules: Sequence[str] = (),
) -> Iterator[Client]:
    """Yield a client whose workers can import this project; they are ended afterwards, unless they were there before.

    Args:
        options: what `options.add_arguments` added.
        say: told in one line which workers there are.
        device: where networks run, as --device names it; GPUs get a worker each unless it is "cpu".
        log_folder: where a batch system puts what its jobs print.
        read_ahead: give a worker with a GPU a second case, which it can read while the GPU works on the first one. The
            function that works on cases must allow two at once.
        modules: what the workers of this computer import beside Dask; see `warm_up`.

    Raises:
        InputError: Dask is missing, the options cannot be met, or the scheduler cannot be reached or is of another
            version.
        FlareSegmentError: the workers do not start.
    """
    _require_dask(options.cluster is not None)
    import dask

    _silence_dask()
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_SETTINGS))
        if options.scheduler is not None:
            from FlareSegmentTrainingLib.scheduling.running_cluster import join

            yield stack.enter_context(join(options.scheduler, library_folders(), say))
            return
        if options.cluster is not None:
            from FlareSegmentTrainingLib.scheduling.job_cluster import job_cluster

            cluster = stack.enter_context(job_cluster(options, library_folders(), log_folder, say))
        else:
            cluster = stack.enter_context(_local_cluster(options, device, read_ahead, modules, say))
        yield stack.enter_context(_client(cluster))


def warm_up(options: argparse.Namespace, device: str, modules: Sequence[str]) -> None:
    """Start the process that this computer's workers will be forked from, which imports `modules` at once; where a
    system has no such thing, or workers are elsewhere, nothing is done.

    Args:
        modules: they must start no threads and use no GPU when they are imported.

    Raises:
        InputError: this computer has no room for the workers.
    """
    here = options.scheduler is None and options.cluster is None
    if _forks() and here and importlib.util.find_spec("distributed") is not None:
        _start_fork_server(_chosen(options, device), modules)


def let_go(client: Client) -> None:
    """Have the workers end, or the jobs that they are, while there is something else to do."""
    cluster = client.cluster
    if cluster is not None:
        getattr(cluster, "flaresegment_stop", bool)()
        cluster.scale(0)


@contextlib.contextmanager
def client_if_wanted(
    options: argparse.Namespace,
    say: Callable[[str], None] = print,
    device: str = "auto",
    log_folder: Path | None = None,
) -> Iterator[Client | None]:
    """As `connect`; None where the command line asks for no workers."""
    if not wanted(options):
        yield None
        return
    with connect(options, say, device, log_folder) as client:
        yield client


def library_folders() -> list[str]:
    """The folders that workers import this project from: two in a working tree, one in an installed extension."""
    here = Path(__file__).resolve().parents[2]
    engine = Path(FlareSegmentLib.__file__).resolve().parents[1]
    return [str(folder) for folder in dict.fromkeys((here, engine))]


def _require_dask(jobs: bool) -> None:
    try:
        import distributed  # noqa: F401

        if jobs:
            with handler_kept():
                import dask_jobqueue  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"The Python package {error.name} is missing: install dask, distributed and dask-jobqueue, in Slicer with "
            "PythonSlicer -m pip install dask distributed dask-jobqueue."
        ) from error


def _silence_dask() -> None:
    """Silence what Dask logs in this process: what matters of it is said by this project, in one line. For good, as a
    thread of Dask's writes on after its cluster is closed.
    """
    names = ["distributed", "asyncio", "tornado", "dask_jobqueue"]
    names += [name for name in list(logging.root.manager.loggerDict) if name.startswith("distributed.")]
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _worker_python() -> str:
    """The Python that starts workers here. Slicer's PythonSlicer only starts another one, whose process a nanny would
    neither watch nor end; within Slicer that other one finds all it needs in the environment.
    """
    python = Path(python_executable())
    real = python.with_name(f"python-real{python.suffix}")
    return str(real if real.is_file() else python)


def _forks() -> bool:
    """Whether forking a process that has imported PyTorch is safe: macOS's libraries do not take it."""
    return sys.platform == "linux"


def _chosen(options: argparse.Namespace, device: str) -> Workers:
    """The workers of this computer. Raises InputError."""
    import psutil
    from dask.system import CPU_COUNT

    gpus = visible_gpus() if device in ("auto", "cuda") else ()
    limit, most = parse_memory(options.memory_limit), psutil.virtual_memory().total
    if limit is not None and limit > most:
        raise InputError(f"--memory-limit {options.memory_limit}: this computer has {most / 2**30:.0f} GiB.")
    return choose_workers(CPU_COUNT, free_memory(), gpus, options.workers, options.threads_per_worker, limit)


def _start_fork_server(workers: Workers, modules: Sequence[str]) -> None:
    from multiprocessing import forkserver

    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed.nanny", *modules])
    path = os.pathsep.join([*library_folders(), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**thread_environment(workers.threads), "PYTHONPATH": path}
    with interrupts_ignored(), _started_with(_worker_python()), _environment(variables):
        forkserver.ensure_running()  # it ignores Ctrl-C as long as it lives, too


@contextlib.contextmanager
def _local_cluster(
    options: argparse.Namespace, device: str, read_ahead: bool, modules: Sequence[str], say: Callable[[str], None]
) -> Iterator[Any]:
    import dask

    workers = _chosen(options, device)
    method = "forkserver" if _forks() else "spawn"
    if _forks():
        _start_fork_server(workers, modules)
    threads = thread_environment(workers.threads)
    variables = {**threads, worker_setup.QUIET: "1"}
    common = {
        "nthreads": 2 if read_ahead and workers.gpus else 1,
        "host": "127.0.0.1",
        "memory_limit": workers.memory_bytes,
        "silence_logs": logging.CRITICAL + 1,
        "preload": [worker_setup.__name__],
        "dashboard": False,
        "death_timeout": _SECONDS_TO_START,
    }
    with dask.config.set({"distributed.worker.multiprocessing-method": method}):
        from distributed import Nanny, Scheduler
        from distributed.deploy.spec import SpecCluster

        specification = {
            number: {"cls": Nanny, "options": {**common, "env": {**variables, **gpu_environment(workers.gpus, number)}}}
            for number in range(workers.count)
        }
        addresses = {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
        scheduler = {"cls": Scheduler, "options": addresses}
        with _started_with(_worker_python()), _environment(threads):
            try:
                with interrupts_wait():
                    cluster = SpecCluster(specification, scheduler, name="FlareSegment", silence_logs=False)
            except (RuntimeError, OSError) as error:
                raise FlareSegmentError(f"The workers cannot be started: {error}") from error
            with closing(cluster):
                say(f"{workers.in_words()}.")
                yield cluster


@contextlib.contextmanager
def _started_with(python: str) -> Iterator[None]:
    """Within, processes are started with this Python."""
    former = multiprocessing.spawn.get_executable()
    multiprocessing.spawn.set_executable(python)
    try:
        yield
    finally:
        multiprocessing.spawn.set_executable(former)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Change this process's environment, which the workers inherit whenever they start; Dask sets some more."""
    former = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


@contextlib.contextmanager
def _client(cluster: Any) -> Iterator[Client]:
    from distributed import Client

    try:
        with interrupts_wait():
            client = Client(cluster, timeout=_SECONDS_TO_CONNECT)
    except (OSError, RuntimeError) as error:
        raise FlareSegmentError(f"Dask's scheduler does not answer: {error}") from error
    try:
        yield client
    finally:
        with interrupts_ignored(), contextlib.suppress(Exception):  # what cannot be ended ends with this process
            client.close(timeout=5)
