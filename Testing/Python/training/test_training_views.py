"""Batches of several patches: each patch is what it would be alone, on a CPU and on a GPU alike; slabs and half bodies
end where their scans end.
"""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from test_training_augmentation import INTENSITY, ORGANS, scene  # noqa: E402

from FlareSegmentLib.model.intensity import AIR  # noqa: E402
from FlareSegmentTrainingLib.augmentation.patches import SHORTS, Cut, sample_patches  # noqa: E402
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings  # noqa: E402
from FlareSegmentTrainingLib.training.configuration import parse  # noqa: E402
from FlareSegmentTrainingLib.training.presets import read_preset  # noqa: E402

SETTINGS = parse(read_preset("flare-organs")).stages[0].augmentation
PATCH = (20, 28, 32)


def cuts(device: str = "cpu", shorts: bool = False) -> list[Cut]:
    """Six patches about different voxels of the scene with noise."""
    image, labels = scene()
    image = (image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(3))).clamp_(-1, 1)
    if shorts:
        image = (image * SHORTS).round().to(torch.int16)
    image, labels = image.to(device), labels.to(device)
    return [
        Cut(image, labels, (2.0, 2.0, 3.0), np.array([12.0, 14.0 + n, 12.0 + 3 * n]), np.random.default_rng(n))
        for n in range(6)
    ]


def sampled(several: list[Cut], view: str = "whole", settings: AugmentationSettings = SETTINGS):
    return sample_patches(several, PATCH, ORGANS, INTENSITY, settings, view)


@pytest.mark.parametrize("view", ["whole", "slab"])
def test_a_patch_is_the_same_alone_and_among_others(view: str) -> None:
    together = sampled(cuts(), view)
    for number, cut in enumerate(cuts()):
        alone = sampled([cut], view)
        torch.testing.assert_close(alone[0][0], together[0][number], atol=1e-4, rtol=0)
        assert torch.equal(alone[1][0], together[1][number])


def test_cases_kept_as_int16_give_the_same_patches() -> None:
    settings = AugmentationSettings(rotation_degrees=(10, 10, 10), scale=(0.8, 1.2), noise_probability=1.0)
    plain, short = (sampled(cuts(shorts=shorts), settings=settings) for shorts in (False, True))
    torch.testing.assert_close(plain[0], short[0], atol=1e-4, rtol=0)
    assert torch.equal(plain[1], short[1])


@pytest.mark.gpu
def test_a_gpu_gives_the_same_patches() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    here, there = sampled(cuts(shorts=True)), sampled(cuts("cuda", shorts=True))
    far = (here[0] - there[0].cpu()).abs() > 1e-4
    assert far.float().mean() < 1e-3  # voxels at a label's border may fall to the other side
    assert (here[1] != there[1].cpu()).float().mean() < 1e-3


def test_a_slab_has_as_many_slices_as_its_scan() -> None:
    image, labels = torch.full((60, 28, 32), 0.3), torch.ones((60, 28, 32), dtype=torch.uint8)
    lengths = set()
    for seed in range(12):
        cut = Cut(image, labels, (2.0, 2.0, 2.0), np.array([29.5, 13.5, 15.5]), np.random.default_rng(seed))
        images, truths = sampled([cut], "slab", AugmentationSettings())
        filled = (truths[0] > 0).flatten(1).all(1)
        assert torch.equal(filled, (images[0] > AIR).flatten(1).all(1))
        places = torch.nonzero(filled).flatten()
        assert len(places) == places[-1] - places[0] + 1
        lengths.add(len(places))
    assert min(lengths) >= PATCH[0] // 2 and max(lengths) <= PATCH[0] and len(lengths) > 3
