"""Masses that augmentation grows from organs: in place, labeled as the organ, pushing and not covering."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FlareSegmentLib.model.intensity import Intensity, window
from FlareSegmentTrainingLib.augmentation.changed_cases import change_case
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.masses import add_mass
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings

WINDOW = Intensity(-200.0, 300.0)
SPACING = (2.5, 2.5, 2.5)
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
FAT, TISSUE, KIDNEY = (float(window(np.float64(hu), WINDOW)) for hu in (-100.0, 40.0, 160.0))


def scene() -> tuple[torch.Tensor, torch.Tensor]:
    """A kidney of 60 mm in a block of fat."""
    z, y, x = np.indices((56, 56, 56)) - 28
    kidney = torch.from_numpy(z**2 + (1.6 * y) ** 2 + (1.6 * x) ** 2 < 12**2)
    image = torch.full(kidney.shape, FAT)
    image[kidney] = KIDNEY
    return image, kidney.to(torch.uint8) * 3


def grown(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    image, labels = scene()
    add_mass(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)))
    return image, labels


def test_a_mass_is_labeled_as_its_organ_and_nothing_else_is() -> None:
    before = int((scene()[1] == 3).sum())
    volumes = []
    for seed in range(30):
        image, labels = grown(seed)
        assert set(torch.unique(labels).tolist()) == {0, 3}
        assert bool(image.isfinite().all())
        assert float(image.min()) >= -1 and float(image.max()) <= 1
        volumes.append(int((labels == 3).sum()) - before)
    # Small to large, and the organ itself is pushed, not eaten.
    assert min(volumes) >= -0.05 * before
    assert max(volumes) > before
    assert sum(volume > 0 for volume in volumes) >= 20


def test_the_kidneys_tissue_is_still_there_beside_its_mass() -> None:
    tissue = int((scene()[0] > KIDNEY - 0.05).sum())
    for seed in range(30):
        image, labels = grown(seed)
        left = int(((image > KIDNEY - 0.12) & (labels == 3)).sum())
        assert left > 0.35 * tissue


def test_far_from_the_mass_nothing_changes() -> None:
    image, labels = scene()
    for seed in range(10):
        changed = (grown(seed)[0] != image).nonzero()
        assert len(changed) < 0.8 * image.numel()


def test_the_same_seed_grows_the_same_mass() -> None:
    for one, other in zip(grown(5), grown(5)):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_bone_and_air_are_not_covered() -> None:
    for fill in (1.0, -1.0):
        image, labels = scene()
        image[labels == 0] = fill
        before = image.clone()
        add_mass(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(1)))
        new = (labels == 3) & (before == fill)
        assert int(new.sum()) <= 0.05 * max(1, int((labels == 3).sum()))


def test_without_an_organ_nothing_happens() -> None:
    image, labels = torch.full((20, 20, 20), FAT), torch.zeros((20, 20, 20), dtype=torch.uint8)
    add_mass(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(0)))
    assert bool((image == FAT).all())
    assert not bool(labels.any())


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_changed_cases_have_masses_as_often_as_asked_and_cases_keep_theirs(probability: float) -> None:
    image, labels = scene()
    originals = image.clone(), labels.clone()
    settings = AugmentationSettings(mass_probability=probability)
    volumes = set()
    for seed in range(8):
        patch = change_case(LabeledScan(image, labels, SPACING, ORGANS, WINDOW, np.random.default_rng(seed)), settings)
        volumes.add(int((patch[1] == 3).sum()))
    assert (len(volumes) > 3) == (probability == 1.0)
    torch.testing.assert_close(image, originals[0], rtol=0, atol=0)
    assert bool((labels == originals[1]).all())
