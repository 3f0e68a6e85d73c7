"""What a worker does first: Dask calls `dask_setup` in each process that it starts for this project."""

from __future__ import annotations

import signal


def dask_setup(worker: object) -> None:
    """Leave Ctrl-C, which every process of a terminal gets, to the command: it ends its workers in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
