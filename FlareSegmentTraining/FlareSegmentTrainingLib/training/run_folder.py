"""The folder of a training run: what is in it.

``config.json``      the whole configuration, the data, and what was chosen on this machine (device, precision)
``split.json``       which cases train and which validate
``cases.json``       the content of these cases, by which they are known again wherever they lie
``log.csv``          one row for each epoch; ``curves.png`` draws it, ``tensorboard/`` holds it for TensorBoard
``validation.csv``   Dice of each validation case and organ of the best model
``best/``, ``last/`` models (model.json, weights.pt), which `segment.py --model` takes
``last/training.pt`` what continues the run
``checkpoints/``     full-precision weights of each stage, the best and those of every N epochs

and what `runs.watched_folder` tells of. Only standard library and torch's tensors: nothing is pickled.
"""

from __future__ import annotations

import os
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.runs.watched_folder import WatchedFolder, save_whole

CONFIGURATION_FILE = "config.json"
LOG_FILE = "log.csv"
CURVES_FILE = "curves.png"
VALIDATION_FILE = "validation.csv"


class RunFolder(WatchedFolder):
    """Paths, safe writing and reading of a training's files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.best = self.path / "best"
        self.last = self.path / "last"
        self.state_file = self.last / "training.pt"
        self.checkpoints = self.path / "checkpoints"

    def exists(self) -> bool:
        """Whether a run was configured here."""
        return (self.path / CONFIGURATION_FILE).is_file()

    def began(self) -> bool:
        """Whether there is a run to continue: one that ended by an error before its first checkpoint is none, and
        leaves the folder free for another attempt.
        """
        return self.exists() and (self.state_file.is_file() or self.progress().get("state") not in ("failed", "lost"))

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
