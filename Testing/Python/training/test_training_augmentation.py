"""Augmentation: nothing changes when everything is off, left stays left, labels move with the image, intensities stay
in the window.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FlareSegmentLib.model.intensity import AIR, Intensity, window
from FlareSegmentTrainingLib.augmentation.patches import Cut, sample_patches
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings
from FlareSegmentTrainingLib.training.configuration import parse
from FlareSegmentTrainingLib.training.presets import read_preset

INTENSITY = Intensity(-200.0, 300.0)
ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")


def scene(shape=(24, 32, 40)):
    """Two boxes: label 2 at low x (the patient's right), label 3 at high x; the image shows where they are."""
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[8:16, 10:22, 6:14] = 2
    labels[8:16, 10:22, 26:34] = 3
    image = torch.full(shape, float(window(np.float64(-100.0), INTENSITY)))
    image[labels > 0] = float(window(np.float64(150.0), INTENSITY))
    return image, labels


def draw(image, labels, settings, seed=0, patch=None, spacing=(2.0, 2.0, 3.0)):
    center = (np.array(image.shape) - 1) / 2
    cut = Cut(image, labels, spacing, center, np.random.default_rng(seed))
    patches, truths = sample_patches([cut], patch or tuple(image.shape), ORGANS, INTENSITY, settings)
    return patches[0], truths[0]


def test_nothing_on_changes_nothing():
    image, labels = scene()
    image += 0.1 * torch.randn(image.shape)
    patch, truth = draw(image.clamp_(-1, 1), labels, AugmentationSettings())
    torch.testing.assert_close(patch, image, atol=1e-5, rtol=0)
    assert torch.equal(truth, labels)


def test_outside_the_scan_is_air_without_labels():
    image, labels = scene()
    patch, truth = draw(image, labels, AugmentationSettings(), patch=(48, 32, 40))
    assert torch.all(patch[:10] == AIR) and not truth[:10].any()


def test_the_same_seed_gives_the_same_patch_and_another_another():
    settings = parse(read_preset("flare-organs")).stages[0].augmentation
    image, labels = scene()
    first, again, other = (draw(image, labels, settings, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_the_right_kidney_stays_on_the_right():
    settings = parse(read_preset("flare-organs")).stages[0].augmentation
    image, labels = scene()
    seen = 0
    for seed in range(40):
        _, truth = draw(image, labels, settings, seed)
        x = [torch.nonzero(truth == label)[:, 2].float() for label in (2, 3)]
        if min(len(v) for v in x) > 50:
            assert x[0].mean() < x[1].mean()
            seen += 1
    assert seen > 20


def test_labels_move_with_the_image():
    settings = AugmentationSettings(
        rotation_degrees=(10, 10, 20), scale=(0.8, 1.2), stretch=0.1, elastic_mm=8, elastic_probability=1
    )
    image, labels = scene()
    for seed in range(5):
        patch, truth = draw(image, labels, settings, seed)
        middle = 0.5 * (image.max() + image[0, 0, 0])
        bright, marked = patch > middle, truth > 0
        overlap = 2 * (bright & marked).sum() / (bright.sum() + marked.sum())
        assert overlap > 0.93
        assert not torch.equal(truth, labels)


def test_a_turn_keeps_lengths_where_voxels_are_not_cubes():
    """A rod of 60 mm along y, turned by up to 90 degrees about x on a grid with slices twice as thick, stays 60 mm
    long.
    """
    labels = torch.zeros((40, 60, 9), dtype=torch.uint8)
    labels[19:21, 15:45, 3:6] = 1
    settings = AugmentationSettings(rotation_degrees=(90.0, 0.0, 0.0))
    for seed in range(4):
        _, truth = draw(torch.zeros(labels.shape), labels, settings, seed, spacing=(2.0, 2.0, 4.0))
        points = torch.nonzero(truth)[:, :2] * torch.tensor([4.0, 2.0])
        length = torch.cdist(points, points).max().item()
        assert length == pytest.approx(60.0, abs=6.0)


def test_a_contrast_phase_moves_organs_and_both_kidneys_alike():
    settings = AugmentationSettings(phase_probability=1.0)
    image, labels = scene()
    seen = set()
    for seed in range(30):
        patch, _ = draw(image, labels, settings, seed)
        torch.testing.assert_close(patch[labels == 0], image[labels == 0], atol=1e-5, rtol=0)
        right, left = patch[12, 15, 10].item(), patch[12, 15, 30].item()
        assert abs(right - left) < window(np.float64(17), INTENSITY) - window(np.float64(0), INTENSITY)
        assert window(np.float64(22 - 9), INTENSITY) < right < window(np.float64(220 + 9), INTENSITY)
        seen.add(round(right, 1))
    assert len(seen) > 4


def test_a_dimmed_organ_leaves_no_bright_rim():
    settings = AugmentationSettings(phase_probability=1.0)
    image, labels = scene()
    fat, partial, kidney = (float(window(np.float64(hu), INTENSITY)) for hu in (-100.0, 90.0, 180.0))
    grown = torch.nn.functional.max_pool3d((labels > 0).float()[None, None], 3, stride=1, padding=1)[0, 0]
    blurred = torch.where(labels > 0, kidney, torch.where(grown > 0, partial, fat))
    limit, dimmed = window(np.float64(56), INTENSITY), 0
    for seed in range(30):
        patch, _ = draw(blurred, labels, settings, seed)
        if patch[labels > 0].median() < limit:
            dimmed += 1
            assert patch[labels == 0].max() <= limit < blurred[labels == 0].max()
            assert patch[labels > 0].min() >= fat - 1e-3
    assert dimmed > 5


def test_a_plain_phase_dims_vessels_and_leaves_bone_and_fat():
    settings = AugmentationSettings(phase_probability=1.0)
    image, labels = scene()
    vessel, bone = (slice(4, 20), slice(14, 18), slice(18, 22)), (slice(4, 20), slice(24, 30), slice(17, 23))
    image[vessel], image[bone] = (float(window(np.float64(hu), INTENSITY)) for hu in (180.0, 290.0))
    phases = [draw(image, labels, settings, seed)[0] for seed in range(30)]
    assert min(float(patch[vessel].median()) for patch in phases) < window(np.float64(70), INTENSITY)
    for patch in phases:
        assert patch[vessel].max() <= image[vessel].max() + 1e-5
        torch.testing.assert_close(patch[bone], image[bone], atol=1e-5, rtol=0)
        torch.testing.assert_close(patch[0], image[0], atol=1e-5, rtol=0)


def test_a_round_field_of_view_leaves_a_cylinder():
    settings = AugmentationSettings(field_of_view_probability=1.0, round_field_of_view=1.0)
    image, labels = torch.zeros((8, 160, 160)), torch.ones((8, 160, 160), dtype=torch.uint8)
    patch, truth = draw(image, labels, settings, seed=1)
    assert torch.equal(patch == AIR, truth == 0) and torch.equal(patch[0], patch[7])
    radius = float(np.sqrt(4.0 * int(truth[0].sum()) / np.pi))
    assert 40.0 < radius < 131.0


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(gamma_probability=1.0),
        AugmentationSettings(noise_probability=1.0),
        AugmentationSettings(strong_noise_probability=1.0),
        AugmentationSettings(contrast_probability=1.0),
        AugmentationSettings(blur_probability=1.0),
        AugmentationSettings(thick_slices_probability=1.0),
        AugmentationSettings(field_of_view_probability=1.0),
    ],
    ids=["gamma", "noise", "strong noise", "contrast", "blur", "thick slices", "field of view"],
)
def test_every_scanner_effect_acts_and_stays_in_the_window(settings):
    image, labels = scene()
    patch, truth = draw(image, labels, settings, seed=3)
    assert patch.min() >= -1 and patch.max() <= 1
    assert (patch - image).abs().max() > 0.01
    if settings.field_of_view_probability:
        assert truth.sum() < labels.sum() or (patch == AIR).any()
    else:
        assert torch.equal(truth, labels)
