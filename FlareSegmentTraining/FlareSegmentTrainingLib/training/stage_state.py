"""A stage under way: what it has reached, how long it has been trained, and how fast its steps are."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import torch

from FlareSegmentTrainingLib.datasets.preparation import PreparedCase
from FlareSegmentTrainingLib.training.batches import BatchSource
from FlareSegmentTrainingLib.training.configuration import StageSettings
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.trainer import Scores, StageTrainer

REPORT_EVERY_SECONDS = 10.0


class Clock:
    """How long a stage has been trained, stops aside, and which share of its minutes that is."""

    def __init__(self, minutes: float | None, seconds_before: float, group: Group, device: torch.device):
        self._minutes, self._before, self._group, self._device = minutes, seconds_before, group, device
        self._start = time.monotonic()

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def share(self) -> float:
        """0 to 1; the first process's clock, so that all processes end at the same step; 0 without minutes."""
        if self._minutes is None:
            return 0.0
        share = self.seconds() / (60.0 * self._minutes)
        if self._group.size == 1:
            return share
        value = torch.tensor(share if self._group.is_first else 0.0, device=self._device)
        return float(self._group.total(value))


class Preparing:
    """Counts the cases that are brought to a stage's grid. Cases that are dealt out anew are counted again."""

    def __init__(self, stage: str, count: int):
        self._stage, self._count, self._number = stage, count, 0
        self._said = time.monotonic()

    def next(self) -> tuple[str, bool]:
        """What is said of the next case, and whether people have waited long enough to read it."""
        self._number += 1
        worth_saying = time.monotonic() - self._said >= REPORT_EVERY_SECONDS
        if worth_saying:
            self._said = time.monotonic()
        return f"Preparing case {min(self._number, self._count)} of {self._count} for stage {self._stage}", worth_saying


class Meter:
    """Measures steps of a stage: seconds, the loader's share of them, and when to report."""

    def __init__(self, trainer: StageTrainer, source: BatchSource):
        self.trainer, self._source = trainer, source
        self._start, self._first = time.monotonic(), trainer.step
        self._reported = self._start
        self.begin_epoch()

    def seconds_per_step(self) -> float:
        return (time.monotonic() - self._start) / max(1, self.trainer.step - self._first)

    def time_to_report(self) -> bool:
        if time.monotonic() - self._reported < REPORT_EVERY_SECONDS:
            return False
        self._reported = time.monotonic()
        return True

    def begin_epoch(self) -> None:
        self._epoch_start, self._epoch_first = time.monotonic(), self.trainer.step
        self._epoch_waited = self._source.waited_seconds

    def epoch(self) -> dict[str, float]:
        """Return the seconds per step and the loader's share of them since `begin_epoch`."""
        seconds = time.monotonic() - self._epoch_start
        return {
            "seconds_per_step": seconds / max(1, self.trainer.step - self._epoch_first),
            "loader_wait": (self._source.waited_seconds - self._epoch_waited) / seconds,
        }


@dataclass
class StageState:
    """A stage under way.

    Attributes:
        number: among the configuration's stages.
        losses: of the steps since the last epoch ended.
        best: the highest merit (Dice, or the negative loss where no organ is to be seen) of an epoch, and its scores.
    """

    number: int
    settings: StageSettings
    trainer: StageTrainer
    source: BatchSource
    validation_cases: list[PreparedCase]
    clock: Clock
    meter: Meter
    losses: list[float] = field(default_factory=list)
    best: float = -math.inf
    best_scores: Scores = field(default_factory=lambda: Scores({}, math.nan))

    @property
    def step(self) -> str:
        """Where it is, for the user."""
        return f"{self.trainer.step}{f' of {self.trainer.steps}' if self.trainer.steps else ''}"
