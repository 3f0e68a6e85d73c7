"""A script's run as a process of its own: it outlives the panel and Slicer, and is found again by its folder.

Nothing is kept open between the two: the run reports into `progress.json`, prints into `output.txt`, and a file named
`stop` asks it to end.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.processes import (
    OUTPUT_FILE,
    PROGRESS_FILE,
    STOP_FILE,
    last_error,
    python_executable,
    reported_progress,
    start_detached,
)

NOT_BEGUN, STARTING, RUNNING, FINISHED, STOPPED, FAILED, LOST = (
    "not begun",
    "starting",
    "running",
    "finished",
    "stopped",
    "failed",
    "lost",
)


class ScriptProcess:
    """The run of one folder, whoever started it.

    Args:
        python: program that runs the script; by default the Python that Slicer itself uses.
    """

    what = "script"
    """What messages call the run."""

    def __init__(self, folder: str | os.PathLike[str], python: str | None = None) -> None:
        self.path = Path(folder)
        self._python = python or python_executable()
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[str, Any] = {}

    def progress(self) -> dict[str, Any]:
        """The last report, with "state" and "message"; empty where there is none."""
        return reported_progress(self.path / PROGRESS_FILE)

    def state(self) -> str:
        """One of this file's states."""
        progress = self.progress()
        state, old = progress.get("state"), progress == self._before
        if self._launched and (state is None or old):
            return STARTING  # what an earlier process reported, or nothing yet
        if self._process is not None and not self._launched and (old or state in (None, LOST, RUNNING)):
            return FAILED if self._process.returncode else FINISHED
        return state or NOT_BEGUN

    @property
    def active(self) -> bool:
        """Whether it is at work, or just about to be."""
        return self.state() in (STARTING, RUNNING)

    @property
    def ending(self) -> bool:
        """Whether it has reported its end, while its process takes a moment to end: nothing can be started yet."""
        return self._launched and not self.active

    def message(self) -> str:
        """One line about how far it is, or why it ended."""
        told = self.progress().get("message") or ""
        return last_error(self.path / OUTPUT_FILE) or told if self.state() == FAILED else told

    def request_stop(self) -> None:
        """Ask it to save and end, after its current step. Raises FlareSegmentError."""
        try:
            (self.path / STOP_FILE).touch()
        except OSError as error:
            raise FlareSegmentError(f"{self.path} cannot be written: {error.strerror}.") from error

    @property
    def stop_requested(self) -> bool:
        """Whether it was asked to end and has not yet."""
        return (self.path / STOP_FILE).exists()

    @property
    def _launched(self) -> bool:
        """Whether a process that was started here is still there."""
        return self._process is not None and self._process.poll() is None

    def _check_free(self) -> None:
        """Raise InputError while a process works in the folder, or is ending."""
        if self.active:
            raise InputError(f"A {self.what} runs in {self.path} already.")
        if self.ending:
            raise InputError(f"The {self.what} in {self.path} is just ending. Start it again in a moment.")

    def _launch(self, script: Path, arguments: Sequence[str]) -> None:
        """Start the script, which the arguments tell to work in the folder. Raises FlareSegmentError."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / STOP_FILE).unlink(missing_ok=True)
            self._before = self.progress()
            self._process = start_detached([self._python, str(script), *arguments], self.path / OUTPUT_FILE)
        except OSError as error:
            raise self._not_started(error) from error

    def _not_started(self, error: OSError) -> FlareSegmentError:
        return FlareSegmentError(f"Nothing can be started in {self.path}: {error.strerror or error}.")
