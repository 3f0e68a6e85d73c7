"""What Ctrl-C does to Dask's clusters: it waits until one is whole, then ends it at once, without a word of Dask's."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

_CLOSE_SECONDS = 10


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Obey Ctrl-C when this is over, as a cluster that is half made cannot be ended; a third one is obeyed at once."""
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(former):
        yield
        return
    came = 0

    def note(number: int, frame: Any) -> None:
        nonlocal came
        came += 1
        if came > 2:
            former(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if came:
        former(signal.SIGINT, None)


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Pay no attention to Ctrl-C, in a process that is about to end what it has started, which takes a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)


@contextlib.contextmanager
def handler_kept() -> Iterator[None]:
    """Keep what Ctrl-C does: importing dask_jobqueue makes it end the program as if all was done."""
    former = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, former)


def end_at_once(cluster: Any) -> None:
    """End a cluster of this computer without waiting for what its workers are at; one of jobs cancels them."""
    with interrupts_ignored(), contextlib.suppress(Exception):
        for nanny in list(cluster.workers.values()):
            process = getattr(nanny, "pid", None)
            if process is not None:
                nanny.auto_restart = False
                with contextlib.suppress(OSError):
                    os.kill(process, getattr(signal, "SIGKILL", signal.SIGTERM))
        cluster.close(timeout=_CLOSE_SECONDS)


@contextlib.contextmanager
def closing(cluster: Any) -> Iterator[None]:
    """End a cluster afterwards: in order, and at once where something went wrong."""
    try:
        yield
    except BaseException:
        end_at_once(cluster)
        raise
    with interrupts_ignored(), contextlib.suppress(Exception):  # what cannot be ended ends with this process
        cluster.close(timeout=_CLOSE_SECONDS)
