"""A training run as a process of its own; see `training.run_folder` for what is in its folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentSlicerLib.logic.script_process import FAILED, LOST, NOT_BEGUN, STOPPED, ScriptProcess
from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE, RunFolder

TRAIN_SCRIPT = Path(__file__).resolve().parents[1] / "Scripts" / "train.py"
PRESET_FILE = "preset.json"


def next_folder(path: Path) -> Path:
    """The first folder beside `path`, of its name and a number, that is not there yet."""
    stem, _, number = path.name.rpartition("_")
    stem, count = (stem, int(number)) if stem and number.isdigit() else (path.name, 1)
    while path.with_name(f"{stem}_{count + 1}").exists():
        count += 1
    return path.with_name(f"{stem}_{count + 1}")


class TrainingProcess(ScriptProcess):
    """The training run of one folder, whoever started it.

    Attributes:
        folder: what the run writes.
        background: whether a training that is started lets other programs go first.
    """

    what = "training"

    def __init__(self, folder: str | os.PathLike[str], python: str | None = None) -> None:
        super().__init__(folder, python)
        self.folder = RunFolder(folder)
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
        self._begin([*arguments, *(["--epochs", str(epochs)] if epochs else []), *more])

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
        self._begin(["--resume"])

    def settings(self) -> dict:
        """What it was begun with; empty where there is none."""
        try:
            return self.folder.read_json(CONFIGURATION_FILE)
        except InputError:
            return {}

    def forget_failure(self) -> None:
        """A run that failed before it began is over and done with: something else is about to be tried."""
        self._failure_forgotten = True

    @property
    def begun(self) -> bool:
        """Whether there is a run to watch or to continue. One that failed before its first checkpoint is none."""
        return self.active or self.folder.began()

    def state(self) -> str:
        """One of `script_process`'s states."""
        state = super().state()
        if state == NOT_BEGUN and self.folder.exists():
            return STOPPED
        return NOT_BEGUN if self._failure_forgotten and state in (FAILED, LOST) and not self.folder.began() else state

    def _script(self) -> Path:
        return TRAIN_SCRIPT

    def _begin(self, arguments: Sequence[str]) -> None:
        self._failure_forgotten = False
        priority = "background" if self.background else "normal"
        self._launch(self._script(), [*arguments, "--output", str(self.path), "--priority", priority])
