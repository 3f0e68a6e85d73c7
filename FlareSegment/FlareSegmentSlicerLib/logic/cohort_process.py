"""A cohort (`Scripts/cohort.py`) as a process of its own: it outlives the panel and Slicer, and is found again by the
folder of its results. It reports into `progress.json`, prints into `output.txt`; a file named `stop` asks it to end.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.processes import last_error, python_executable, reported_progress, start_detached

NOT_BEGUN, STARTING, RUNNING, FINISHED, STOPPED, FAILED, LOST = (
    "not begun",
    "starting",
    "running",
    "finished",
    "stopped",
    "failed",
    "lost",
)
PACKAGES = ("dask", "distributed", "pyarrow", "jinja2", "matplotlib")
"""What the script imports and Slicer does not bring; asked for when a cohort is started."""

PROGRESS_FILE, OUTPUT_FILE, STOP_FILE, REPORT_FILE = "progress.json", "output.txt", "stop", "report.html"
SERIES_FILE = "selected_series.json"
_MODULE = Path(__file__).resolve().parents[2]


def cohort_script() -> Path | None:
    """The script, which comes with the module FlareSegment Training: in a folder beside this module's in a working
    tree, in the same one where the extension is installed; None where it is not there.
    """
    for folder in (_MODULE, _MODULE.parent / "FlareSegmentTraining"):
        script = folder / "Scripts" / "cohort.py"
        if script.is_file():
            return script
    return None


class CohortProcess:
    """The cohort of one folder of results, whoever started it.

    Args:
        python: program that runs it; by default the Python that Slicer itself uses.
    """

    def __init__(self, folder: str | os.PathLike[str], python: str | None = None) -> None:
        self.folder = Path(folder)
        self._python = python or python_executable()
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[str, Any] = {}

    def start(self, source: str | Sequence[tuple[str, Sequence[str]]], more: Sequence[str] = ()) -> None:
        """Begin, or go on with what is in the folder already.

        Args:
            source: a folder of CTs or a list of them, or DICOM series as (name, files).
            more: further options of the script.

        Raises:
            InputError: the script is not installed, or a cohort runs in the folder.
            FlareSegmentError: the process cannot be started, or the folder not be written.
        """
        script = cohort_script()
        if script is None:
            raise InputError("Install the module FlareSegment Training, which brings the script for many CTs.")
        if self.state() in (STARTING, RUNNING):
            raise InputError(f"A cohort runs in {self.folder} already.")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / STOP_FILE).unlink(missing_ok=True)
            if not isinstance(source, str):
                listed = [{"case": name, "files": list(files)} for name, files in source]
                (self.folder / SERIES_FILE).write_text(json.dumps(listed), encoding="utf-8")
                source = str(self.folder / SERIES_FILE)
            self._before = self.progress()
            command = [self._python, str(script), source, "--output", str(self.folder), *more]
            self._process = start_detached(command, self.folder / OUTPUT_FILE)
        except OSError as error:
            raise FlareSegmentError(f"Nothing can be started in {self.folder}: {error.strerror or error}.") from error

    def request_stop(self) -> None:
        """Ask it to end after the CTs that are in work. Raises FlareSegmentError."""
        try:
            (self.folder / STOP_FILE).touch()
        except OSError as error:
            raise FlareSegmentError(f"{self.folder} cannot be written: {error.strerror}.") from error

    @property
    def stop_requested(self) -> bool:
        """Whether it was asked to end and has not yet."""
        return (self.folder / STOP_FILE).exists()

    def progress(self) -> dict[str, Any]:
        """The last report: "state", "message", and how many CTs there are ("total"), are "done", "failed", "present"
        from an earlier run and "left"; empty where there is none.
        """
        return reported_progress(self.folder / PROGRESS_FILE)

    def state(self) -> str:
        """One of this file's states."""
        progress = self.progress()
        state = progress.get("state")
        launched = self._process is not None and self._process.poll() is None
        if launched and (state is None or progress == self._before):
            return STARTING  # what an earlier process reported, or nothing yet
        if self._process is not None and not launched and (progress == self._before or state in (None, LOST, RUNNING)):
            return FAILED if self._process.returncode else FINISHED
        return state or NOT_BEGUN

    def message(self) -> str:
        """One line about how far it is, or why it ended."""
        told = self.progress().get("message") or ""
        if self.state() != FAILED:
            return told
        return last_error(self.folder / OUTPUT_FILE) or told
