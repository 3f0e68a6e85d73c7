"""The folder of a run that lasts, with its progress for whoever watches, and the files that appear in it.

``progress.json``    how far the run is; its process, or from elsewhere its age, tells whether the run lives
``stop``             a file of this name asks the run to save and end

Every file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.processes import PROGRESS_FILE, STOP_FILE, age_seconds, identity, reported_progress

BEATS_EVERY_SECONDS = 2.0
_WRITTEN_EVERY_SECONDS = 0.5
FRESH_REQUEST_SECONDS = 30.0


class WatchedFolder:
    """Paths, safe writing and reading of a run's files.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.stop_file = self.path / STOP_FILE
        self.progress_file = self.path / PROGRESS_FILE

    def write_json(self, name: str, content: dict) -> None:
        """Write a JSON file of the folder. Raises FlareSegmentError when the disk does not take it."""
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        save_whole(self.path / name, lambda file: file.write_text(text, encoding="utf-8"))

    def read_json(self, name: str) -> dict:
        """Read a JSON file of the folder. Raises InputError when it is missing or damaged."""
        file = self.path / name
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be read ({error}): this is no run folder, or it is damaged.") from error
        if not isinstance(content, dict):
            raise InputError(f"{file} is damaged: it holds no JSON object.")
        return content

    def progress(self) -> dict:
        """Return the last reported progress, empty where there is none; "state" is "running", "finished", "stopped" or
        "failed".

        A run whose process is gone without a word has the state "lost".
        """
        return reported_progress(self.progress_file)

    def is_running(self) -> bool:
        """Whether a process is at work here now."""
        return self.progress().get("state") == "running"

    def forget_old_stop(self) -> None:
        """Remove a request that no process has obeyed any more; one of the last seconds is meant for who starts now."""
        with contextlib.suppress(OSError):
            if age_seconds(self.stop_file) > FRESH_REQUEST_SECONDS:
                self.stop_file.unlink()


class ProgressReporter:
    """Keeps `progress.json` fresh while a run lives.

    A thread touches the file, so that a long step or a slow disk does not look like a dead process, and writes what
    came too soon after the report before.
    """

    def __init__(self, folder: WatchedFolder):
        self._folder = folder
        process = {"pid": os.getpid(), "host": socket.gethostname(), "process": identity(os.getpid())}
        self._content = {"state": "running", **process, "message": "Starting"}
        self._written, self._late = 0.0, False
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def begin(self) -> None:
        """Write the first report; from now on the run counts as running."""
        self._write()
        self._thread.start()

    def update(self, **content: object) -> None:
        """Change parts of the report. What comes within half a second of the last writing is written a little later."""
        with self._lock:
            self._content.update(content)
            self._late = time.monotonic() - self._written <= _WRITTEN_EVERY_SECONDS
            if not self._late:
                self._write()

    def end(self, state: str, message: str) -> None:
        """Write the last report."""
        self._ended.set()
        self._thread.join()
        self._content.update(state=state, message=message)
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        try:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in self._content.items()}
            self._folder.write_json(PROGRESS_FILE, finite)
        except FlareSegmentError:
            pass  # a full disk ends the run where a checkpoint cannot be saved, not where it is only talked about

    def _beat(self) -> None:
        while not self._ended.wait(BEATS_EVERY_SECONDS):
            with self._lock, contextlib.suppress(OSError):
                if self._late:
                    self._late = False
                    self._write()
                else:
                    os.utime(self._folder.progress_file)


def save_whole(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write(path)` make a file beside its place, then move it there.

    Raises:
        FlareSegmentError: when the disk is full or the place cannot be written; what stood there stands.
    """
    temporary = file.with_name(f".saving-{os.getpid()}-{file.name}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, file)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or why_not_written(file.parent, error)
        with contextlib.suppress(OSError):  # a parent that is a file has nothing in it
            temporary.unlink(missing_ok=True)
        raise FlareSegmentError(
            f"{file} could not be written: {reason}. Free some space or mend the folder, then run it again or continue "
            "the training."
        ) from error
