"""A training run as a process of its own: it outlives the panel and Slicer, and is found again by its run folder.

Nothing is kept open between the two: the run reports into `progress.json` and what it prints goes to `output.txt`; a
file named `stop` asks it to end. See FlareSegmentTrainingLib/training/run_folder.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.processes import last_error, start_detached
from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE, OUTPUT_FILE, RunFolder

TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "Scripts" / "train.py"
PRESET_FILE = "preset.json"
NOT_BEGUN, STARTING, RUNNING, FINISHED, STOPPED, FAILED, LOST = (
    "not begun",
    "starting",
    "running",
    "finished",
    "stopped",
    "failed",
    "lost",
)


def next_folder(path: Path) -> Path:
    """The first folder beside `path`, of its name and a number, that is not there yet."""
    stem, _, number = path.name.rpartition("_")
    stem, count = (stem, int(number)) if stem and number.isdigit() else (path.name, 1)
    while path.with_name(f"{stem}_{count + 1}").exists():
        count += 1
    return path.with_name(f"{stem}_{count + 1}")


class TrainingProcess:
    """The run of one folder, whoever started it.

    Args:
        python: program that runs the training; by default the Python that Slicer itself uses.

    Attributes:
        background: whether a training that is started lets other programs go first.
    """

    _what = "training"

    def __init__(self, folder: str | os.PathLike, python: str | None = None):
        self.folder = RunFolder(folder)
        self._python = python or sys.executable
        self._process: subprocess.Popen | None = None
        self._before: dict = {}
        self._failure_forgotten = False
        self.background = False

    def start(self, preset: str, data: Sequence[str], epochs: int | None = None, more: Sequence[str] = ()) -> None:
        """Begin a new run in the folder.

        Raises:
            InputError: when something trains there already, or nothing may be written there.
            FlareSegmentError: when the process cannot be started.
        """
        self._check_free()
        if self.folder.began():
            raise InputError(f"{self.folder.path} holds a run already. Continue it, or choose another folder.")
        arguments = ["--preset", preset, *(word for place in data for word in ("--data", place))]
        self._launch([*arguments, *(["--epochs", str(epochs)] if epochs else []), *more])

    def start_from(self, former: RunFolder, epochs: int | None = None) -> None:
        """Begin a new run with a finished one's best model, data, split and prepared cases. Raises as `start` does."""
        from FlareSegmentTrainingLib.datasets.splits import SPLIT_FILE  # brings scipy, which nobody waits for at start

        settings = former.read_json(CONFIGURATION_FILE)
        self.folder.write_json(PRESET_FILE, settings.get("configuration", {}))
        more = ["--start-from", str(former.best), "--split", str(former.path / SPLIT_FILE)]
        more += ["--cache", settings.get("cache") or str(former.path / "prepared")]
        for option in ("label_map", "patient_pattern"):
            more += [f"--{option.replace('_', '-')}", settings[option]] if settings.get(option) else []
        self.start(str(self.folder.path / PRESET_FILE), settings.get("data", []), epochs, more)

    def resume(self) -> None:
        """Continue the folder's run. Raises as `start` does."""
        self._check_free()
        self._launch(["--resume"])

    def request_stop(self) -> None:
        """Ask the run to save and end; it does so after its current step."""
        self.folder.request_stop()

    def forget_failure(self) -> None:
        """A run that failed before it began is over and done with: something else is about to be tried."""
        self._failure_forgotten = True

    @property
    def begun(self) -> bool:
        """Whether there is a run to watch or to continue. One that failed before its first checkpoint is none."""
        return self.state() in (STARTING, RUNNING) or self.folder.began()

    def state(self) -> str:
        """Return one of this file's states."""
        state = self._state()
        return NOT_BEGUN if self._failure_forgotten and state in (FAILED, LOST) and not self.folder.began() else state

    def _state(self) -> str:
        progress = self.folder.progress()
        state = progress.get("state")
        if self._launched and (state is None or progress == self._before):
            return STARTING  # what an earlier process reported, or nothing yet
        if self._process is not None and not self._launched and state in (None, LOST, RUNNING):
            return FAILED
        if state is None:
            return STOPPED if self.folder.exists() else NOT_BEGUN
        return state

    def message(self) -> str:
        """Return one line about how far the run is or why it ended."""
        if self.state() == FAILED:
            return last_error(self.folder.path / OUTPUT_FILE) or self.folder.progress().get("message", "")
        return self.folder.progress().get("message", "")

    @property
    def _launched(self) -> bool:
        """Whether a process that was started here is still there."""
        return self._process is not None and self._process.poll() is None

    def _script(self) -> Path:
        """The script that does the work."""
        return TRAIN_SCRIPT

    def _check_free(self) -> None:
        """Raise InputError while a process trains in the folder, or is ending."""
        if self.state() in (STARTING, RUNNING):
            raise InputError(f"A process is {self._what} in {self.folder.path} already.")
        if self._launched:
            raise InputError(f"The {self._what} in {self.folder.path} is just ending. Start it again in a moment.")

    def _launch(self, arguments: Sequence[str]) -> None:
        self._failure_forgotten = False
        folder = self.folder.path
        priority = "background" if self.background else "normal"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.folder.stop_file.unlink(missing_ok=True)
            self._before = self.folder.progress()
            command = [self._python, str(self._script()), *arguments, "--output", str(folder), "--priority", priority]
            self._process = start_detached(command, folder / OUTPUT_FILE)
        except OSError as error:
            raise FlareSegmentError(
                f"The {self._what} cannot be started in {folder}: {error.strerror or error}."
            ) from error
