"""What asks a run to save and end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentTrainingLib.runs.watched_folder import WatchedFolder


class Stopped(FlareSegmentError):
    """The run was asked to stop; its state is saved."""


class NotSaved(FlareSegmentError):
    """The run's state could not be written; what was saved before stands."""


class StopRequest:
    """Ctrl-C, SIGTERM or the run folder's stop file: asks the run to save and end at the next step. Used in a `with`
    statement.
    """

    def __init__(self, folder: WatchedFolder):
        self._file = folder.stop_file
        self._signaled = False
        self._former: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._signaled and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C ends at once
        self._signaled = True

    def __bool__(self) -> bool:
        return self._signaled or self._file.exists()
