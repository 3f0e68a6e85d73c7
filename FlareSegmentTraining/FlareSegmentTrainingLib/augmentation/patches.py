"""Augmentation of CT patches: where the patch lies, how it is bent, and how it was scanned.

Never mirrors left and right. Everything is drawn from one `numpy.random.Generator`, so a step's patch depends on the
seed and the step's number alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from FlareSegmentLib.model.intensity import AIR, Intensity, window
from FlareSegmentTrainingLib.augmentation.contrast_phases import draw_phase
from FlareSegmentTrainingLib.augmentation.masses import add_mass
from FlareSegmentTrainingLib.augmentation.patch_geometry import grown, rotation
from FlareSegmentTrainingLib.augmentation.perirenal_fat import embed_kidney
from FlareSegmentTrainingLib.training.configuration import AugmentationSettings


def sample_patch(
    image: torch.Tensor,
    labels: torch.Tensor,
    center: np.ndarray,
    patch: tuple[int, int, int],
    spacing_mm: Sequence[float],
    organs: Sequence[str],
    intensity: Intensity,
    settings: AugmentationSettings,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut a bent and re-scanned patch out of a prepared case.

    Args:
        image: (z, y, x) windowed intensities, -1 ... 1.
        labels: (z, y, x) uint8.
        center: (z, y, x) voxel about which the patch lies.
        patch: (z, y, x) extents of the result.
        spacing_mm: (x, y, z) of the case's grid.
        organs: keys of the labels 1, 2, ...
        intensity: the window that was mapped to -1 ... 1.

    Returns:
        (image, labels) of the patch's shape, float32 and uint8; the image still windowed, -1 ... 1.
    """
    image = _contrast_phase(image, labels, center, patch, organs, intensity, settings, generator)
    if generator.random() < settings.perirenal_fat_probability:
        image, labels = image.clone(), labels.clone()
        embed_kidney(image, labels, spacing_mm, organs, intensity, generator)
    if generator.random() < settings.mass_probability:
        near = tuple(slice(max(0, int(c - 0.65 * n)), int(c + 0.65 * n) + 1) for c, n in zip(center, patch))
        image, labels = image.clone(), labels.clone()
        add_mass(image[near], labels[near], spacing_mm, organs, intensity, generator)
    grid = _sampling_grid(center, patch, spacing_mm, settings, generator)
    low = grid.amin(dim=(0, 1, 2)).floor().long() - 1
    high = grid.amax(dim=(0, 1, 2)).ceil().long() + 2
    low = torch.minimum(low.clamp(min=0), torch.tensor(image.shape) - 1)
    high = torch.maximum(torch.minimum(high, torch.tensor(image.shape)), low + 1)
    block = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    extent = (high - low).float()
    normalized = (2.0 * (grid - low.float()) + 1.0) / extent - 1.0
    normalized = normalized.flip(-1).unsqueeze(0)
    # Shifted so that grid_sample's zero padding stands for air.
    shifted = (image[block] - AIR)[None, None]
    bent = F.grid_sample(shifted, normalized, mode="bilinear", padding_mode="zeros", align_corners=False)[0, 0] + AIR
    truth = F.grid_sample(
        labels[block].float()[None, None], normalized, mode="nearest", padding_mode="zeros", align_corners=False
    )[0, 0]
    bent, truth = _cut_field_of_view(bent, truth, spacing_mm, settings, generator)
    return _rescan(bent, settings, generator), truth.to(torch.uint8)


def _sampling_grid(
    center: np.ndarray,
    patch: tuple[int, int, int],
    spacing_mm: Sequence[float],
    settings: AugmentationSettings,
    generator: np.random.Generator,
) -> torch.Tensor:
    """Return (z, y, x, 3) source voxel coordinates (z, y, x) of the patch's voxels."""
    spacing = np.asarray(spacing_mm, dtype=float)[::-1]
    about_x, about_y, about_z = np.radians([generator.uniform(-angle, angle) for angle in settings.rotation_degrees])
    turn = rotation(about_z, about_y, about_x)
    zoom = generator.uniform(*settings.scale) * generator.uniform(1 - settings.stretch, 1 + settings.stretch, size=3)
    # Turned in mm, so that voxels of any shape stay right-angled; columns are scaled by each patch axis's zoom.
    matrix = torch.from_numpy((turn * zoom * spacing / spacing[:, None]).astype(np.float32))
    axes = [torch.arange(count, dtype=torch.float32) - (count - 1) / 2 for count in patch]
    # The affine map of a regular grid is a sum of three rows, one per axis.
    grid = (
        axes[0][:, None, None, None] * matrix[:, 0]
        + axes[1][None, :, None, None] * matrix[:, 1]
        + axes[2][None, None, :, None] * matrix[:, 2]
    )
    if generator.random() < settings.elastic_probability:
        strength = (generator.uniform(0.0, settings.elastic_mm) / spacing)[None, :, None, None, None]
        offsets = strength * generator.uniform(-1.0, 1.0, size=(1, 3, 4, 5, 5))
        points = torch.from_numpy(offsets.astype(np.float32))
        field_ = F.interpolate(points, size=patch, mode="trilinear", align_corners=True)[0]
        grid = grid + field_.permute(1, 2, 3, 0)
    return grid + torch.from_numpy(np.asarray(center, dtype=np.float32))


def _contrast_phase(
    image: torch.Tensor,
    labels: torch.Tensor,
    center: np.ndarray,
    patch: tuple[int, int, int],
    organs: Sequence[str],
    intensity: Intensity,
    settings: AugmentationSettings,
    generator: np.random.Generator,
) -> torch.Tensor:
    """Take the scan to another contrast phase: each organ's median and texture, and the blood in the vessels."""
    if generator.random() >= settings.phase_probability:
        return image
    phase = draw_phase(generator)
    reach = [int(0.75 * count) for count in patch]
    block = tuple(slice(max(0, int(middle) - half), int(middle) + half + 1) for middle, half in zip(center, reach))
    image = image.clone()
    part, truth = image[block], labels[block]
    _dim_vessels(part, truth, phase.artery, intensity)
    fat, soft = (float(window(np.float64(hu), intensity)) for hu in (-100.0, 55.0))
    for label, box in enumerate(ndimage.find_objects(truth.numpy(), max_label=len(organs)), start=1):
        target = phase.organ(organs[label - 1])
        if target is None or box is None:
            continue
        with_rim = tuple(slice(max(0, extent.start - 1), extent.stop + 1) for extent in box)
        tissue, mask, outside = part[with_rim], truth[with_rim] == label, truth[with_rim] == 0
        target = float(window(np.float64(target + generator.uniform(-8.0, 8.0)), intensity))
        median = float(tissue[mask].median())
        if median <= fat:
            continue
        # Without contrast agent cortex and medulla look alike, and vessels inside the liver vanish.
        contrast = float(generator.uniform(0.3, 1.0)) if target < median else float(generator.uniform(0.8, 1.3))
        shade = target + (tissue - median) * contrast
        # Voxels at the border are part fat and keep their share of it: a rim would tell where the organ is.
        partial = fat + (tissue - fat) * (target - fat) / (median - fat)
        border = mask & grown(~mask) & (tissue > fat) & (tissue < median)
        rim = grown(mask) & outside
        tissue[mask & ~border] = shade[mask & ~border]
        tissue[border] = partial[border]
        if target < median:
            tissue[rim] = tissue[rim].clamp(max=max(target, soft))
    return image.clamp_(-1.0, 1.0)


def _dim_vessels(part: torch.Tensor, truth: torch.Tensor, artery_hu: float, intensity: Intensity) -> None:
    """Bring what is brighter than soft tissue, but no organ and no bone, down towards soft tissue, in place; vessels
    are found by threshold, and made less bright only: where a scan has no contrast agent, none can be seen.
    """
    soft, blood, bone = (float(window(np.float64(hu), intensity)) for hu in (55.0, 150.0, 250.0))
    share = float(np.clip((window(np.float64(artery_hu), intensity) - soft) / (blood - soft), 0.05, 1.0))
    vessels = (part > soft) & ~grown(part > bone) & (truth == 0)
    part[vessels] = soft + share * (part[vessels] - soft)


def _cut_field_of_view(
    image: torch.Tensor,
    labels: torch.Tensor,
    spacing_mm: Sequence[float],
    settings: AugmentationSettings,
    generator: np.random.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """End the scan at a plane through the patch, above or below, or in front, behind or at a side; or at the round
    border of a small reconstructed field of view.
    """
    if generator.random() >= settings.field_of_view_probability:
        return image, labels
    if generator.random() < settings.round_field_of_view:
        y, x = (
            (torch.arange(count) - count * generator.uniform(0.35, 0.65)) * mm
            for count, mm in zip(image.shape[1:], (spacing_mm[1], spacing_mm[0]))
        )
        outside = torch.hypot(y[:, None], x[None]) > generator.uniform(55.0, 130.0)
        return image.masked_fill(outside, AIR), labels.masked_fill(outside, 0)
    axis = int(generator.choice(3, p=(0.7, 0.15, 0.15)))
    count = image.shape[axis]
    position = int(count * generator.uniform(0.15, 0.4))
    start, length = (0, position) if generator.random() < 0.5 else (count - position, position)
    image, labels = image.clone(), labels.clone()
    image.narrow(axis, start, length).fill_(AIR)
    labels.narrow(axis, start, length).zero_()
    return image, labels


def _rescan(image: torch.Tensor, settings: AugmentationSettings, generator: np.random.Generator) -> torch.Tensor:
    """Thick slices or blur, contrast and brightness, gamma, noise."""
    inside = image > AIR
    if generator.random() < settings.thick_slices_probability:
        slices = max(2, int(image.shape[0] / generator.uniform(1.3, 3.0)))
        thick = F.adaptive_avg_pool3d(image[None, None], (slices, image.shape[1], image.shape[2]))
        image = F.interpolate(thick, size=image.shape, mode="trilinear", align_corners=False)[0, 0]
    elif generator.random() < settings.blur_probability:
        smooth = F.avg_pool3d(image[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
        image = torch.lerp(image, smooth, float(generator.uniform(0.3, 1.0)))
    if generator.random() < settings.contrast_probability:
        image = image * float(generator.uniform(0.8, 1.25)) + float(generator.uniform(-0.18, 0.18))
    if generator.random() < settings.gamma_probability:
        exponent = float(np.exp(generator.uniform(*np.log(settings.gamma))))
        image = 2.0 * (0.5 * (image.clamp(-1.0, 1.0) + 1.0)) ** exponent - 1.0
    if generator.random() < settings.noise_probability:
        seed = torch.Generator().manual_seed(int(generator.integers(2**62)))
        noise = torch.randn(image.shape, generator=seed)
        if generator.random() < 0.5:
            # Noise of a soft kernel is correlated between neighbors.
            noise = 2.0 * F.avg_pool3d(noise[None, None], 3, stride=1, padding=1)[0, 0]
        image = image + float(generator.uniform(0.0, settings.noise)) * noise
    return torch.where(inside, image, AIR).clamp_(-1.0, 1.0)
