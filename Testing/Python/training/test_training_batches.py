"""Which patches a step sees: the same for the same seed, shared between processes, made ahead in order."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from test_training_run import PRESET  # noqa: E402

from FlareSegmentLib.model.intensity import Intensity  # noqa: E402
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase, slabs_of  # noqa: E402
from FlareSegmentTrainingLib.training.batches import AHEAD, BatchSource  # noqa: E402
from FlareSegmentTrainingLib.training.configuration import StageSettings, parse  # noqa: E402

ORGANS = ("liver", "spleen")
SHAPE = (40, 44, 48)


def case(number: int, organ: bool = True, location: int = 0) -> PreparedCase:
    """A case of one gray value of its own, with a small block of liver in a corner."""
    labels = torch.zeros(SHAPE, dtype=torch.uint8)
    labels[4:8, 4:8, 4:8] = int(organ)
    return PreparedCase(
        f"case{number}",
        torch.full(SHAPE, number / 10),
        labels,
        (8.0, 8.0, 8.0),
        {"liver": 1.0, "spleen": 0.5 * (number % 2)},
        [np.argwhere(labels.numpy() == 1)] if organ else [],
        1.0,
        location,
    )


def settings(**training: object) -> StageSettings:
    """The first stage of the tests' preset without augmentation."""
    stage = parse({**PRESET, "augmentation": {}}).stages[0]
    return replace(stage, training=replace(stage.training, patch=(16, 12, 8), batch=4, **training))


def source(cases: list[PreparedCase], group=(0, 1), stage: StageSettings | None = None, seed: int = 3) -> BatchSource:
    rank, size = group
    intensity = Intensity(-200, 300)
    return BatchSource(
        settings(steps_per_epoch=5) if stage is None else stage,
        cases, ORGANS, intensity, seed, 0, SimpleNamespace(rank=rank, size=size),
    )  # fmt: skip


@pytest.fixture(scope="module")
def cases() -> list[PreparedCase]:
    return [case(number) for number in range(5)]


def drawn(batch) -> list[int]:
    """Numbers of the cases that a batch was taken from."""
    return [round(10 * float(image.max())) for image in batch.images]


def test_a_batch_has_the_shapes_that_training_expects(cases) -> None:
    batch = source(cases).batch(0)
    assert batch.images.shape == (4, 1, 8, 12, 16) and batch.images.dtype == torch.float32
    assert batch.labels.shape == (4, 8, 12, 16) and batch.labels.dtype == torch.uint8
    numbers = drawn(batch)
    np.testing.assert_array_equal(batch.weights, [[1.0, 0.5 * (number % 2)] for number in numbers])


def test_a_batch_is_a_function_of_seed_and_step(cases) -> None:
    first, again = source(cases).batch(7), source(cases).batch(7)
    torch.testing.assert_close(first.images, again.images, rtol=0, atol=0)
    others = [source(cases, seed=4).batch(7), source(cases).batch(8)]
    assert all(not torch.equal(first.labels, other.labels) or drawn(first) != drawn(other) for other in others)


def test_processes_share_the_very_same_batch(cases) -> None:
    whole = source(cases).batch(2)
    parts = [source(cases, (rank, 2)).batch(2) for rank in range(2)]
    for rank, part in enumerate(parts):
        torch.testing.assert_close(part.images, whole.images[rank::2], rtol=0, atol=0)
        torch.testing.assert_close(part.labels, whole.labels[rank::2], rtol=0, atol=0)


def test_without_steps_an_epoch_is_one_pass_over_the_cases(cases) -> None:
    """Five cases in batches of four: two steps, in which each case comes once before one comes again."""
    made = source(cases, stage=settings(steps_per_epoch=None))
    assert made.steps_per_epoch == 2
    epochs = [[*drawn(made.batch(2 * epoch)), *drawn(made.batch(2 * epoch + 1))] for epoch in range(4)]
    for numbers in epochs:
        assert sorted(numbers[:5]) == [0, 1, 2, 3, 4]
    assert len({tuple(numbers) for numbers in epochs}) > 1


def test_patches_lie_about_organs_as_often_as_was_said(cases) -> None:
    """The organ is in a corner: patches drawn anywhere seldom show it, those about it nearly always."""
    shares = []
    for organ_centers in (0.0, 1.0):
        made = source(cases, stage=settings(steps_per_epoch=5, organ_centers=organ_centers))
        labels = torch.cat([made.batch(step).labels for step in range(20)])
        shares.append(float((labels > 0).flatten(1).any(1).float().mean()))
    assert shares[0] < 0.25 and shares[1] > 0.9


def test_slabs_of_a_validation_case_count_organs_of_ten_milliliters() -> None:
    whole = case(1)
    whole.labels[0:6, 4:12, 4:12] = 1  # the upper end of it is 2 slices of 32.8 ml each
    whole.labels[30:38, 10:11, 10:12] = 2  # 1 ml a slice
    slabs = slabs_of(whole, 32.0)
    assert [slab.image.shape[0] for slab in slabs] == [4, 4, 4]
    assert torch.equal(slabs[0].labels, whole.labels[0:4]) and torch.equal(slabs[2].labels, whole.labels[34:38])
    assert [slab.weights["liver"] for slab in slabs] == [1.0, 0.0, 0.0]
    assert [slab.weights["spleen"] for slab in slabs] == [0.0, 0.0, 0.0]
    assert len({slab.name for slab in slabs}) == 3 and slabs_of(whole, 320.0) == []


def test_a_case_without_organs_is_drawn_anywhere() -> None:
    batch = source([case(1, organ=False)], stage=settings(steps_per_epoch=5, organ_centers=1.0)).batch(0)
    assert not batch.labels.any()


def test_a_stage_of_a_fixed_shape_sees_the_middle() -> None:
    stage = settings(steps_per_epoch=5, organ_centers=1.0)
    stage = replace(
        stage,
        stage=replace(stage.stage, shape=SHAPE[::-1], spacing_mm=None),
        training=replace(stage.training, patch=None, batch=1),
    )
    one = case(3)
    one.image[20, 22, 24] = 0.9
    batch = source([one], stage=stage).batch(0)
    assert batch.images.shape == (1, 1, *SHAPE)
    torch.testing.assert_close(batch.labels[0], one.labels)
    torch.testing.assert_close(batch.images[0, 0], one.image)


def test_batches_that_were_made_ahead_come_in_order(cases) -> None:
    made = source(cases)
    ahead = list(made.prefetched(3, 3 + 2 * AHEAD))
    assert len(ahead) == 2 * AHEAD
    for step, batch in enumerate(ahead, start=3):
        torch.testing.assert_close(batch.images, made.batch(step).images, rtol=0, atol=0)
    assert made.waited_seconds > 0
    assert list(made.prefetched(5, 5)) == []


def test_an_error_in_the_background_reaches_the_training(cases, monkeypatch: pytest.MonkeyPatch) -> None:
    made = source(cases)
    real = made._made

    def making(step: int):
        if step == 2:
            raise ValueError("a case is gone")
        return real(step)

    monkeypatch.setattr(made, "_made", making)
    steps = made.prefetched(0, 10)
    next(steps), next(steps)
    with pytest.raises(ValueError, match="a case is gone"):
        next(steps)


def test_who_stops_early_leaves_no_work_behind(cases, monkeypatch: pytest.MonkeyPatch) -> None:
    made, started = source(cases), []
    real = made._made

    def making(step: int):
        started.append(step)
        return real(step)

    monkeypatch.setattr(made, "_made", making)
    steps = made.prefetched(0, 1000)
    next(steps)
    steps.close()
    assert len(started) <= 1 + AHEAD + 1
