"""Kidneys laid elsewhere in fat by augmentation: the same tissue, its labels with it, and nothing covered."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FlareSegmentLib.model.intensity import Intensity, window
from FlareSegmentTrainingLib.augmentation.changed_cases import change_case
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.perirenal_fat import embed_kidney
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings

WINDOW = Intensity(-200.0, 300.0)
SPACING = (2.0, 2.0, 4.0)
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
RIGHT, LEFT, SPLEEN = 2, 3, 4
TISSUE, KIDNEY = (float(window(np.float64(hu), WINDOW)) for hu in (50.0, 160.0))


def scene(label: int = LEFT) -> tuple[torch.Tensor, torch.Tensor]:
    """A kidney of 24x32x64 mm in the middle of soft tissue, with noise that tells its voxels apart."""
    z, y, x = np.indices((48, 80, 80))
    inside = ((z - 24) * 4 / 32) ** 2 + ((y - 40) * 2 / 16) ** 2 + ((x - 40) * 2 / 12) ** 2 < 1
    noise = np.random.default_rng(0).normal(0.0, 0.02, inside.shape)
    image = torch.from_numpy((np.where(inside, KIDNEY, TISSUE) + noise).astype(np.float32))
    return image, torch.from_numpy(inside.astype(np.uint8) * label)


def moved(seed: int, label: int = LEFT) -> tuple[torch.Tensor, torch.Tensor]:
    image, labels = scene(label)
    embed_kidney(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
    return image, labels


def center_mm(mask: torch.Tensor) -> np.ndarray:
    """(z, y, x)"""
    return mask.nonzero().numpy().mean(axis=0) * SPACING[::-1]


@pytest.mark.parametrize("label", [RIGHT, LEFT])
def test_the_kidney_keeps_its_label_and_its_look(label: int) -> None:
    before = scene(label)[1] > 0
    volumes, ways = [], []
    for seed in range(16):
        image, labels = moved(seed, label)
        mask = labels == label
        assert set(torch.unique(labels).tolist()) == {0, label}
        assert float(image.min()) >= -1
        assert float(image.max()) <= 1
        assert float(image[mask].median()) == pytest.approx(KIDNEY, abs=0.05)
        volumes.append(float(mask.sum() / before.sum()))
        ways.append(center_mm(mask) - center_mm(before))
    # Smaller and larger: 0.8 to 1.45 times as long.
    assert 0.45 < min(volumes) < 0.9
    assert 1.8 < max(volumes) < 3.2
    mean = np.mean(ways, axis=0)
    assert mean[1] < -5, "forward, away from the back"
    assert mean[2] * (1 if label == LEFT else -1) > 1, "outwards, as often as not"


def test_fat_lies_about_it_and_where_it_was() -> None:
    fat = float(window(np.float64(-85.0), WINDOW)) + 0.25
    before = scene()[1] > 0
    for seed in range(10):
        image, labels = moved(seed)
        left = before & (labels == 0)
        assert float((image[left] < fat).float().mean()) > 0.8
        assert int((image < fat).sum()) > 100


def test_other_organs_bone_and_air_keep_their_voxels() -> None:
    for fill, value in ((1.0, 0), (-1.0, 0), (0.1, SPLEEN)):
        for seed in range(10):
            image, labels = scene()
            image[:, :26], labels[:, :26] = fill, value
            expected = image[:, :26].clone(), labels[:, :26].clone()
            embed_kidney(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
            torch.testing.assert_close(image[:, :26], expected[0], rtol=0, atol=0)
            assert bool((labels[:, :26] == expected[1]).all())


def test_where_nothing_fits_nothing_changes() -> None:
    image, labels = scene()
    image[labels == 0] = 1.0
    before = image.clone(), labels.clone()
    for seed in range(10):
        embed_kidney(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
        kept = (labels == before[1]) | (before[1] == LEFT)
        assert bool(kept.all()), "bone never becomes kidney"


def test_a_kidney_that_the_scan_cuts_stays_at_the_cut() -> None:
    for seed in range(10):
        image, labels = (part[24:].clone() for part in scene())
        area = int((labels[0] == LEFT).sum())
        embed_kidney(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
        assert int((labels[0] == LEFT).sum()) > 0.5 * area


def test_scans_without_a_kidney_and_slivers_of_one_stay_as_they_are() -> None:
    for keep in (0, 60):
        image, labels = scene()
        places = (labels == LEFT).nonzero()
        labels.zero_()
        for z, y, x in places[:keep]:
            labels[z, y, x] = LEFT
        before = image.clone(), labels.clone()
        embed_kidney(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(0)))
        torch.testing.assert_close(image, before[0], rtol=0, atol=0)
        assert bool((labels == before[1]).all())


def test_the_same_seed_moves_it_the_same_way() -> None:
    for one, other in zip(moved(5), moved(5)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert bool((moved(5)[1] != moved(6)[1]).any())


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_changed_cases_show_it_as_often_as_asked_and_cases_keep_theirs(probability: float) -> None:
    image, labels = scene()
    before = image.clone(), labels.clone()
    settings = AugmentationSettings(perirenal_fat_probability=probability)
    volumes = set()
    for seed in range(8):
        patch = change_case(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)), settings)
        volumes.add(int((patch[1] == LEFT).sum()))
    assert (len(volumes) > 3) == (probability == 1.0)
    torch.testing.assert_close(image, before[0], rtol=0, atol=0)
    assert bool((labels == before[1]).all())
