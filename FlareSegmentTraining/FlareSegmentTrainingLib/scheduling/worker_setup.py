"""What a worker does first: Dask calls `dask_setup` in each process that it starts for this project."""

from __future__ import annotations

import os
import signal
import sys

QUIET = "FLARESEGMENT_QUIET_WORKER"
"""Variable of the environment of workers that share the command's terminal."""


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C, which every process of a terminal gets, to the command: it ends its workers in order. Compute with
    as many threads as the environment says, also where PyTorch was imported before it said so. What libraries print,
    such as about files that a run which ends takes away from under them, is no line of the command.
    """
    _take_own_gpu(str(getattr(worker, "name", "")))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get(QUIET) and not os.environ.get("FLARESEGMENT_DEBUG"):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdigit():
        sys.modules["torch"].set_num_threads(max(1, int(threads)))


def _take_own_gpu(name: str) -> None:
    """Of a job's GPUs see one alone: Dask numbers the workers of a job at the end of their names."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    number = name.rpartition("-")[2]
    if len(gpus) > 1 and number.isdigit():
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[int(number) % len(gpus)].strip()
