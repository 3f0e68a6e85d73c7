"""The folder of a training run: what is in it, and who is writing it.

``config.json``      the whole configuration, the data, and what was chosen on this machine (device, precision)
``split.json``       which cases train and which validate
``cases.json``       the content of these cases, by which they are known again wherever they lie
``log.csv``          one row for each epoch; ``curves.png`` draws it, ``tensorboard/`` holds it for TensorBoard
``validation.csv``   Dice of each validation case and organ of the best model
``best/``, ``last/`` models (model.json, weights.pt), which `segment.py --model` takes
``last/training.pt`` what continues the run
``checkpoints/``     full-precision weights of each stage, the best and those of every N epochs
``progress.json``    how far the run is, for whoever watches; its process, or from elsewhere its age, tells whether the
                     run lives
``stop``             a file of this name asks the run to save and end

Every file appears whole or not at all. Only standard library and torch's tensors: nothing is pickled.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from pathlib import Path

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.processes import PROGRESS_FILE, STOP_FILE, age_seconds, identity, reported_progress

CONFIGURATION_FILE = "config.json"
LOG_FILE = "log.csv"
CURVES_FILE = "curves.png"
VALIDATION_FILE = "validation.csv"
BEATS_EVERY_SECONDS = 2.0
FRESH_REQUEST_SECONDS = 30.0


class RunFolder:
    """Paths, safe writing and reading of a run's files.

    Args:
        path: the folder; made when something is written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.state_file = self.last / "training.pt"
        self.checkpoints = self.path / "checkpoints"
        self.stop_file = self.path / STOP_FILE
        self.progress_file = self.path / PROGRESS_FILE

    def exists(self) -> bool:
        """Whether a run was configured here."""
        return (self.path / CONFIGURATION_FILE).is_file()

    def began(self) -> bool:
        """Whether there is a run to continue: one that ended by an error before its first checkpoint is none, and
        leaves the folder free for another attempt.
        """
        return self.exists() and (self.state_file.is_file() or self.progress().get("state") not in ("failed", "lost"))

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

    def save_tensors(self, file: Path, content: dict) -> None:
        """Write tensors and plain values. Raises FlareSegmentError when the disk does not take them."""
        import torch

        save_whole(file, lambda place: torch.save(content, place))

    def load_tensors(self, file: Path) -> dict:
        """Read what `save_tensors` wrote. Raises InputError when it is missing or damaged."""
        import torch

        from FlareSegmentLib.model.model_file import UNLOADABLE

        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except UNLOADABLE as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise InputError(f"{file} cannot be loaded: {reason}. The model in {self.best} stands.") from error

    def progress(self) -> dict:
        """Return the last reported progress, empty where there is none; "state" is "running", "finished", "stopped" or
        "failed".

        A run whose process is gone without a word has the state "lost".
        """
        return reported_progress(self.progress_file)

    def is_running(self) -> bool:
        """Whether a process is training here now."""
        return self.progress().get("state") == "running"

    def forget_old_stop(self) -> None:
        """Remove a request that no process has obeyed any more; one of the last seconds is meant for who starts now."""
        with contextlib.suppress(OSError):
            if age_seconds(self.stop_file) > FRESH_REQUEST_SECONDS:
                self.stop_file.unlink()


class ProgressReporter:
    """Keeps `progress.json` fresh while a run lives.

    A thread touches the file, so that a long step or a slow disk does not look like a dead process.
    """

    def __init__(self, folder: RunFolder):
        self._folder = folder
        process = {"pid": os.getpid(), "host": socket.gethostname(), "process": identity(os.getpid())}
        self._content = {"state": "running", **process, "message": "Starting"}
        self._written = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def begin(self) -> None:
        """Write the first report; from now on the run counts as running."""
        self._write()
        self._thread.start()

    def update(self, **content: object) -> None:
        """Change parts of the report; written at most every half second."""
        self._content.update(content)
        if time.monotonic() - self._written > 0.5:
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
            with contextlib.suppress(OSError):
                os.utime(self._folder.progress_file)


def save_whole(file: Path, write) -> None:
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
            f"{file} could not be written: {reason}. Free some space or mend the folder, then run it again (a training "
            "with --resume)."
        ) from error
