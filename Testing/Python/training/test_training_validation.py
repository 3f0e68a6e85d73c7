"""Validation counts an organ where there is truth, and tells the volume of what is drawn without any."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase
from FlareSegmentTrainingLib.training.trainer import Scores, StageTrainer

ORGANS = ("liver", "spleen")


class Draws:
    """A network that draws each organ in its own slices."""

    multiple = 1

    def __init__(self, *slices: slice):
        self.slices = slices

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 1 + len(self.slices), *images.shape[2:])
        logits[:, 0] = 0.5
        for number, part in enumerate(self.slices, start=1):
            logits[:, number, part] = 1.0
        return logits


def scores(network: Draws, weights: dict[str, float] | None = None) -> list[float]:
    """Dice and false ml of liver and spleen; the liver is in slices 0 and 1, of spleen there is none."""
    labels = torch.zeros(4, 10, 10, dtype=torch.uint8)
    labels[:2] = 1
    case = PreparedCase(
        "a", torch.zeros(4, 10, 10), labels, (10.0, 10.0, 10.0), weights or dict.fromkeys(ORGANS, 1.0), [], 1.0
    )
    trainer = SimpleNamespace(organs=ORGANS, _intensity=Intensity(-200.0, 300.0), _device=torch.device("cpu"))
    return StageTrainer._score(trainer, network, case)[:4].tolist()  # type: ignore[arg-type]


def test_no_truth_no_figure_but_the_false_volume() -> None:
    nothing = slice(0, 0)
    liver, spleen, *false = scores(Draws(slice(0, 2), slice(3, 4)))
    assert (liver, false) == (1.0, [0.0, 100.0]) and math.isnan(spleen)
    liver, spleen, *false = scores(Draws(slice(0, 2), nothing))
    assert (liver, false) == (1.0, [0.0, 0.0]) and math.isnan(spleen)
    liver, _, *false = scores(Draws(nothing, nothing))
    assert (liver, false) == (0.0, [0.0, 0.0])
    unlabeled = scores(Draws(slice(0, 2), slice(3, 4)), {"liver": 1.0, "spleen": 0.0})
    assert unlabeled[3] == 0.0 and math.isnan(unlabeled[1])


def test_an_epoch_that_rightly_draws_nothing_is_not_worse_than_one_that_draws_falsely() -> None:
    drawn = Scores({"a": {"liver": math.nan}}, 0.9, {"a": {"liver": 12.5}})
    right = Scores({"a": {"liver": math.nan}}, 1.0, {"a": {"liver": 0.0}})
    assert math.isnan(drawn.mean()) and math.isnan(right.mean())  # so that both rank by their loss
    assert (drawn.false_ml(), right.false_ml()) == (12.5, pytest.approx(0.0))
