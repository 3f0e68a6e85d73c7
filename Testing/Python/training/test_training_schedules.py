"""Learning rates and averaged weights against the formulas that the configuration promises, and a checkpoint that knows
nothing of torch's schedules.
"""

from __future__ import annotations

import copy
import math

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.model.intensity import Intensity  # noqa: E402
from FlareSegmentTrainingLib.training.batches import Batch  # noqa: E402
from FlareSegmentTrainingLib.training.configuration import parse  # noqa: E402
from FlareSegmentTrainingLib.training.distributed import Group  # noqa: E402
from FlareSegmentTrainingLib.training.trainer import StageTrainer  # noqa: E402

STEPS = 8
RATE = 0.02
NETWORK = {
    "architecture": "vnet",
    "base_channels": 2,
    "kernel_size": 3,
    "normalization": "batch",
    "wide_decoder": False,
    "encoder_convolutions": [1, 1],
    "decoder_convolutions": [1],
}


def make_trainer(steps: int | None = STEPS, **training: object) -> StageTrainer:
    content = {
        "organs": ["liver"],
        "intensity": {"lower": -200.0, "upper": 300.0},
        "training": {"patch": [8, 8, 8], "learning_rate": RATE, "optimizer": "sgd", **training},
        "stages": {"only": {"spacing_mm": [8, 8, 8], "network": NETWORK}},
    }
    settings, cpu = parse(content).stages[0], torch.device("cpu")
    return StageTrainer(settings, steps, Intensity(-200.0, 300.0), ("liver",), 3, cpu, "fp32", False, Group("gloo"))


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(2, 1, 8, 8, 8, generator=generator)
    labels = torch.randint(0, 2, (2, 8, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, labels, torch.ones(2, 1))


def rates(trainer: StageTrainer, shares: list[float] | None = None) -> list[float]:
    taken = []
    for number in range(STEPS):
        if shares:
            trainer.progress = shares[number]
        trainer.train_step(batch(number))
        taken.append(trainer.learning_rate())
    return taken


@pytest.mark.parametrize(
    ("training", "factor"),
    [
        ({"schedule": "constant"}, lambda step: 1.0),
        ({"schedule": "cosine"}, lambda step: 0.5 * (1 + math.cos(math.pi * step / STEPS))),
        ({"schedule": "poly", "power": 0.9}, lambda step: (1 - step / STEPS) ** 0.9),
        ({"schedule": "step", "step_every": 3, "step_factor": 0.1}, lambda step: 0.1 ** (step // 3)),
        ({"schedule": "poly", "warmup_steps": 4}, lambda step: min(1, (step + 1) / 4) * (1 - step / STEPS) ** 0.9),
    ],
)
def test_rates_follow_their_formula(training, factor) -> None:
    expected = [RATE * factor(step) for step in range(STEPS)]
    assert rates(make_trainer(**training)) == pytest.approx(expected, rel=1e-9)


def test_rates_follow_the_clock_where_minutes_say_the_length() -> None:
    shares = [0.0, 0.1, 0.15, 0.5, 0.55, 0.9, 0.99, 1.0]
    taken = rates(make_trainer(steps=None, schedule="cosine", minutes=1.0), shares)
    assert taken == pytest.approx([RATE * 0.5 * (1 + math.cos(math.pi * share)) for share in shares], rel=1e-9)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_averages_begin_with_the_first_weights(decay: float) -> None:
    trainer = make_trainer(average_decay=decay)
    averages = {key: value.clone() for key, value in trainer.network.state_dict().items()}
    for step in range(STEPS):
        trainer.train_step(batch(step))
        kept = min(decay, (step + 1) / (step + 10))
        for key, value in trainer.network.state_dict().items():
            mean = averages[key] * kept + value * (1 - kept)
            averages[key] = mean if value.is_floating_point() else value.clone()
    found = trainer.average()
    assert list(found) == list(averages)
    for key, value in averages.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-7)


def test_a_state_from_before_torchs_schedules_continues_the_run() -> None:
    settings = {"schedule": "cosine", "warmup_steps": 3, "average_decay": 0.9}
    whole, first, second = (make_trainer(**settings) for _ in range(3))
    for step in range(STEPS):
        whole.train_step(batch(step))
    for step in range(4):
        first.train_step(batch(step))
    state = copy.deepcopy(first.state())
    assert set(state) == {"step", "model", "average", "optimizer", "scaler", "statistics_are_fresh"}
    for group in state["optimizer"]["param_groups"]:
        group.pop("initial_lr", None)
    second.load_state(state)
    for step in range(4, STEPS):
        second.train_step(batch(step))
    assert second.learning_rate() == whole.learning_rate()
    for key, value in whole.average().items():
        assert torch.equal(second.average()[key], value), key
