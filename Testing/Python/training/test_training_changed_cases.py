"""Changed cases: painted bowel and masses leave organs alone, and a round of steps sees the same ones in every run."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from FlareSegmentLib.model.intensity import AIR, Intensity, window  # noqa: E402
from FlareSegmentTrainingLib.augmentation.changed_cases import ChangedCases  # noqa: E402
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan  # noqa: E402
from FlareSegmentTrainingLib.augmentation.lumps import paint_bowel, paint_mass  # noqa: E402
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings  # noqa: E402
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase  # noqa: E402

WINDOW = Intensity(-200.0, 300.0)
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
SPACING = (2.5, 2.5, 2.5)
FAT, KIDNEY, BONE = (float(window(np.float64(hu), WINDOW)) for hu in (-100.0, 150.0, 295.0))


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A kidney and a spine in a body of fat, air around it."""
    image, labels = torch.full((48, 72, 72), AIR), torch.zeros((48, 72, 72), dtype=torch.uint8)
    image[:, 6:66, 6:66] = FAT
    image[:, 48:58, 32:42] = BONE
    labels[14:34, 36:48, 14:26] = 2
    image[labels == 2] = KIDNEY
    return image, labels


@pytest.mark.parametrize("paint", [paint_bowel, paint_mass])
def test_only_background_is_painted(paint) -> None:
    painted = 0
    for seed in range(12):
        image, labels = scene()
        before = image.clone(), labels.clone()
        paint(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
        assert torch.equal(labels, before[1])
        different = image != before[0]
        assert not different[(labels > 0) | (before[0] == BONE)].any()
        assert image.min() >= -1 and image.max() <= 1
        if different.any():
            painted += 1
            assert not different[before[0] == AIR].any() or paint is paint_mass
    assert painted > 6


def test_bowel_is_as_bright_as_contrast_and_has_air_levels() -> None:
    bright = levels = 0
    for seed in range(25):
        image, labels = scene()
        before = image.clone()
        paint_bowel(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
        different = image != before
        bright += bool((image[different] > window(np.float64(105.0), WINDOW)).sum() > 60)
        air = (image == AIR) & (before == FAT)
        if air.any():
            levels += 1
            rows, filled = torch.nonzero(air)[:, 1], torch.nonzero((image > 0.2) & different)[:, 1]
            assert rows.float().mean() < filled.float().mean(), "air is in front of what is fluid"
    assert bright > 12 and 3 < levels < 18


def cases(count: int = 3) -> list[PreparedCase]:
    made = []
    for number in range(count):
        image, labels = scene()
        voxels = [np.argwhere(labels.numpy() == 2)]
        weights = dict.fromkeys(ORGANS, 1.0)
        made.append(PreparedCase(f"case{number}", image, labels, SPACING, weights, voxels, 1.0))
    return made


def source(processes: int = 0, place=lambda *arrays: arrays, **settings: object) -> ChangedCases:
    chosen = AugmentationSettings(**{"changed_cases": 4, "changed_steps": 10, "bowel_probability": 1.0, **settings})
    return ChangedCases(cases(), ORGANS, WINDOW, chosen, np.full(3, 1 / 3), (5, 0), processes, place)


def test_a_round_sees_the_same_changed_cases_whenever_it_begins() -> None:
    through, resumed = source(), source()
    assert through.at(0) == through.at(9) == []
    first, second = through.at(10), through.at(25)
    assert len(first) == len(second) == 4 and through.at(19) is first
    for one, other in zip(second, resumed.at(27)):
        assert one.number == other.number
        assert torch.equal(one.image, other.image) and torch.equal(one.labels, other.labels)
    assert any(not torch.equal(one.image, other.image) for one, other in zip(first, second))
    through.close(), resumed.close()


def test_worker_processes_make_the_same_and_one_that_dies_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = source(), source(processes=1)

    def check(step: int) -> None:
        for one, other in zip(here.at(step), there.at(step), strict=True):
            assert torch.equal(one.image, other.image) and torch.equal(one.labels, other.labels)
            assert all(np.array_equal(*voxels) for voxels in zip(one.organ_voxels, other.organ_voxels, strict=True))

    check(10)
    assert there._workers is not None
    dying: Future = Future()
    dying.set_exception(BrokenProcessPool())
    monkeypatch.setattr(there._workers, "submit", lambda *job: dying)
    check(30)

    def refuse(*job: object) -> Future:
        raise BrokenProcessPool

    monkeypatch.setattr(there._workers, "submit", refuse)
    check(60)
    here.close(), there.close()


def test_the_next_round_is_placed_before_its_steps_begin() -> None:
    placed: list[threading.Thread] = []

    def place(image: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        placed.append(threading.current_thread())
        return image.half(), labels

    made = source(place=place)
    made.at(0)
    for future in made._pending[1]:
        future.result(timeout=60)
    assert len(placed) == 4 and threading.current_thread() not in placed, "a step does not wait for the placing"
    assert all(case.image.dtype == torch.float16 for case in made.at(10))
    made.close()


def test_without_changes_none_are_made() -> None:
    assert source(bowel_probability=0.0).at(50) == [] and source(changed_share=0.0).at(50) == []
