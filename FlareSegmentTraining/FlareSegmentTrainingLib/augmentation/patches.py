"""Augmentation of CT patches: where a patch lies, how it is bent, and how it was scanned.

What varies is drawn patch by patch from one `numpy.random.Generator` each, so a step's patches depend on the seed and
the step's number alone, not on who else is in the batch. What is computed is computed for the whole batch, on whatever
device the cases lie; the same numbers come out on a CPU and on a GPU. Never mirrors left and right.

Own code because batchgeneratorsv2, MONAI and TorchIO take 2.4 times as long and more, two of them turn voxels instead
of millimeters, and none computes a batch at once (figures in Docs/training.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from FlareSegmentLib.model.intensity import AIR, Intensity, window
from FlareSegmentTrainingLib.augmentation.contrast_phases import DrawnPhase, draw_phase
from FlareSegmentTrainingLib.augmentation.patch_geometry import rotation
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED

SHORTS = 32767.0
"""Windowed intensities kept as int16 are this many times as large."""
_NOISE_VALUES = 1 << 23
_THINNEST_SLAB = 5
_BORDER = 3


@dataclass(frozen=True)
class Cut:
    """Where one patch comes from.

    Attributes:
        image: (z, y, x) windowed intensities of a case, -1 ... 1: float32, or int16 (times `SHORTS`).
        labels: (z, y, x) uint8, on the same device; `label_maps.IGNORED` where nobody looked.
        spacing_mm: (x, y, z) of the case's grid.
        center: (z, y, x) voxel about which the patch lies.
        generator: all that varies about this patch is drawn from it.
    """

    image: torch.Tensor
    labels: torch.Tensor
    spacing_mm: Sequence[float]
    center: np.ndarray
    generator: np.random.Generator


@dataclass(frozen=True)
class _Plan:
    """What was drawn for one patch.

    Attributes:
        matrix: (3, 3) from the patch's voxels to the case's, (z, y, x); offsets: (3, 4, 5, 5) voxels by which the
            control points of a smooth deformation are moved, or None.
        phase: the contrast phase and the HU added to each organ, or None; contrasts: factors of the texture, for
            organs that become darker and brighter.
        limits: (z, y, x) first and last voxel + 1 inside the scan; circle: (y, x, radius) in mm of a round field of
            view, or None.
        slices: number of thick slices, or 0; smooth: share of a smoothed image.
        gain, offset, exponent: of the window. noise: standard deviation; soft: noise of a soft kernel; place: where in
            the store of noise.
    """

    matrix: np.ndarray
    offsets: np.ndarray | None
    phase: DrawnPhase | None
    shifts: np.ndarray
    contrasts: np.ndarray
    limits: np.ndarray
    circle: tuple[float, float, float] | None
    slices: int
    smooth: float
    gain: float
    offset: float
    exponent: float
    noise: float
    soft: bool
    place: int


def sample_patches(
    cuts: Sequence[Cut],
    patch: tuple[int, int, int],
    organs: Sequence[str],
    intensity: Intensity,
    settings: AugmentationSettings,
    view: str = "whole",
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut bent and re-scanned patches out of prepared cases.

    Args:
        patch: (z, y, x) extents of each.
        organs: keys of the labels 1, 2, ...
        intensity: the window that was mapped to -1 ... 1.
        view: "whole", "half" or "slab" (see `configuration.BatchShape`): a slab's scan is thinner than the patch now
            and then.
        device: where to compute; None: where the first case lies.

    Returns:
        (images, labels), (n, z, y, x), float32 and uint8; the images still windowed, -1 ... 1.
    """
    device = device or cuts[0].image.device
    plans = [_draw(cut, patch, len(organs), settings, view) for cut in cuts]
    images, labels = _bent(cuts, plans, patch, device)
    images = _with_phases(images, labels.masked_fill(labels == IGNORED, 0), plans, organs, intensity)
    spacings = [cut.spacing_mm for cut in cuts]
    inside = _field_of_view(plans, spacings, patch, device)
    if inside is not None:
        images, labels = images.masked_fill(~inside, AIR), labels.masked_fill(~inside, 0)
    return _rescanned(images, plans), labels


# What varies --------------------------------------------------------------------------------------


def _draw(cut: Cut, patch: tuple[int, int, int], organs: int, settings: AugmentationSettings, view: str) -> _Plan:
    generator = cut.generator
    spacing = np.asarray(cut.spacing_mm, dtype=float)[::-1]
    about_x, about_y, about_z = np.radians([generator.uniform(-angle, angle) for angle in settings.rotation_degrees])
    zoom = generator.uniform(*settings.scale) * generator.uniform(1 - settings.stretch, 1 + settings.stretch, size=3)
    # Turned in mm, so that voxels of any shape stay right-angled; columns are scaled by each patch axis's zoom.
    matrix = rotation(about_z, about_y, about_x) * zoom * spacing / spacing[:, None]
    offsets = None
    if generator.random() < settings.elastic_probability:
        strength = (generator.uniform(0.0, settings.elastic_mm) / spacing)[:, None, None, None]
        offsets = strength * generator.uniform(-1.0, 1.0, size=(3, 4, 5, 5))
    phase, shifts, contrasts = None, np.zeros(organs), np.ones((2, organs))
    if generator.random() < settings.phase_probability:
        phase = draw_phase(generator)
        shifts = generator.uniform(-8.0, 8.0, organs)
        # Without contrast agent cortex and medulla look alike, and vessels inside the liver vanish.
        contrasts = np.stack([generator.uniform(0.3, 1.0, organs), generator.uniform(0.8, 1.3, organs)])
    limits, circle = _drawn_view(patch, settings, view, generator)
    slices, smooth = 0, 0.0
    if generator.random() < settings.thick_slices_probability:
        slices = max(2, int(patch[0] / generator.uniform(1.3, 3.0)))
    elif generator.random() < settings.blur_probability:
        smooth = float(generator.uniform(0.3, 1.0))
    gain, offset, exponent, noise, soft, place = 1.0, 0.0, 1.0, 0.0, False, 0
    if generator.random() < settings.contrast_probability:
        gain, offset = float(generator.uniform(0.8, 1.25)), float(generator.uniform(-0.18, 0.18))
    if generator.random() < settings.gamma_probability:
        exponent = float(np.exp(generator.uniform(*np.log(settings.gamma))))
    strong = generator.random() < settings.strong_noise_probability
    if strong or generator.random() < settings.noise_probability:
        noise = float(generator.uniform(settings.noise, settings.strong_noise) if strong
                      else generator.uniform(0.0, settings.noise))  # fmt: skip
        soft = bool(generator.random() < 0.5)
        place = int(generator.integers(_NOISE_VALUES))
    return _Plan(
        matrix, offsets, phase, shifts, contrasts, limits, circle, slices, smooth, gain, offset, exponent, noise,
        soft, place,
    )  # fmt: skip


def _drawn_view(
    patch: tuple[int, int, int], settings: AugmentationSettings, view: str, generator: np.random.Generator
) -> tuple[np.ndarray, tuple[float, float, float] | None]:
    """Where the scan ends inside the patch: at a plane above or below, in front, behind or at a side; at the round
    border of a small reconstructed field of view; or, for slabs, after fewer slices than the patch has.
    """
    limits, circle = np.array([(0, count) for count in patch]), None
    if view == "slab":
        length = int(generator.integers(min(patch[0], max(_THINNEST_SLAB, patch[0] // 2)), patch[0] + 1))
        first = 0 if generator.random() < 0.75 else int(generator.integers(0, patch[0] - length + 1))
        limits[0] = first, first + length
    if generator.random() < settings.field_of_view_probability:
        if generator.random() < settings.round_field_of_view:
            y, x, radius = generator.uniform(0.35, 0.65, 2).tolist() + [generator.uniform(55.0, 130.0)]
            circle = (y, x, radius)
        else:
            axis = int(generator.choice(3, p=(0.7, 0.15, 0.15)))
            position = int(patch[axis] * generator.uniform(0.15, 0.4))
            low = generator.random() < 0.5
            limits[axis] = (
                (max(limits[axis][0], position), limits[axis][1])
                if low
                else (limits[axis][0], min(limits[axis][1], patch[axis] - position))
            )
    return limits, circle


# Where the patch lies -----------------------------------------------------------------------------


def _bent(
    cuts: Sequence[Cut], plans: Sequence[_Plan], patch: tuple[int, int, int], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches (n, z, y, x) of the images, and their labels, before anything else was done to them; beyond the scans
    is air.
    """
    blocks = [_reached(cut, plan, patch) for cut, plan in zip(cuts, plans)]
    low, high = (np.stack([block[end] for block in blocks]) for end in (0, 1))
    matrices = sent(np.stack([plan.matrix for plan in plans]), device)[:, None, None, None]
    axes = [torch.arange(extent, dtype=torch.float32, device=device) - (extent - 1) / 2 for extent in patch]
    # The affine map of a regular grid is a sum of three rows, one per axis.
    grid = (
        axes[0][:, None, None, None] * matrices[..., 0]
        + axes[1][None, :, None, None] * matrices[..., 1]
        + axes[2][None, None, :, None] * matrices[..., 2]
    )
    offsets = {number: plan.offsets for number, plan in enumerate(plans) if plan.offsets is not None}
    if offsets:
        points = sent(np.stack(list(offsets.values())), device)
        moved = F.interpolate(points, size=patch, mode="trilinear", align_corners=True)
        grid[_places(list(offsets), device)] += moved.permute(0, 2, 3, 4, 1)
    shifts = sent(np.stack([cut.center for cut in cuts]) - low + 0.5, device)[:, None, None, None]
    extents = sent((high - low) / 2.0, device)[:, None, None, None]
    normalized = ((grid + shifts) / extents - 1.0).flip(-1)
    images, labels = [], []
    for number, cut in enumerate(cuts):
        block = tuple(slice(int(a), int(b)) for a, b in zip(low[number], high[number]))
        image, truth = cut.image[block].to(device, non_blocking=True), cut.labels[block].to(device, non_blocking=True)
        if image.dtype == torch.int16:
            image = image.float() / SHORTS
        # Shifted so that grid_sample's zero padding stands for air.
        images.append(_sampled(image - AIR, normalized[number], "bilinear"))
        labels.append(_sampled(truth.float(), normalized[number], "nearest"))
    return torch.stack(images) + AIR, torch.stack(labels).to(torch.uint8)


def _reached(cut: Cut, plan: _Plan, patch: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """First voxel and last + 1 of the part of a case that a patch can reach, told by its corners without the device."""
    half = (np.array(patch) - 1) / 2
    reach = np.abs(plan.matrix) @ half + (0.0 if plan.offsets is None else np.abs(plan.offsets).max(axis=(1, 2, 3)))
    count = np.array(cut.image.shape)
    low = np.clip(np.floor(cut.center - reach).astype(int) - 1, 0, count - 1)
    return low, np.maximum(np.clip(np.ceil(cut.center + reach).astype(int) + 2, 0, count), low + 1)


def _sampled(volume: torch.Tensor, places: torch.Tensor, mode: str) -> torch.Tensor:
    return F.grid_sample(volume[None, None], places[None], mode=mode, padding_mode="zeros", align_corners=False)[0, 0]


def _field_of_view(
    plans: Sequence[_Plan], spacings: Sequence[Sequence[float]], patch: tuple[int, int, int], device: torch.device
) -> torch.Tensor | None:
    """(n, z, y, x), True inside the scans; None where nothing was cut."""
    whole = np.array([(0, count) for count in patch])
    if all(plan.circle is None and np.array_equal(plan.limits, whole) for plan in plans):
        return None
    limits = sent(np.stack([plan.limits for plan in plans]), device)
    inside = torch.ones((len(plans), *patch), dtype=torch.bool, device=device)
    places = [torch.arange(count, dtype=torch.float32, device=device) for count in patch]
    for axis, place in enumerate(places):
        within = (place >= limits[:, axis, :1]) & (place < limits[:, axis, 1:])
        inside &= within.view(len(plans), *(-1 if other == axis else 1 for other in range(3)))
    for number, (plan, spacing) in enumerate(zip(plans, spacings)):
        if plan.circle is not None:
            y, x = ((places[axis] - patch[axis] * plan.circle[axis - 1]) * float(spacing[2 - axis]) for axis in (1, 2))
            inside[number] &= torch.hypot(y[:, None], x[None]) <= plan.circle[2]
    return inside


# Contrast phases ----------------------------------------------------------------------------------


def _with_phases(
    images: torch.Tensor,
    labels: torch.Tensor,
    plans: Sequence[_Plan],
    organs: Sequence[str],
    intensity: Intensity,
) -> torch.Tensor:
    """Take scans to another contrast phase: each organ's mean and texture, and the blood in the vessels."""
    chosen = [number for number, plan in enumerate(plans) if plan.phase is not None]
    if not chosen:
        return images
    which = _places(chosen, images.device)
    result = images.clone()
    result[which] = _in_phase(images[which], labels[which], [plans[number] for number in chosen], organs, intensity)
    return result


def _in_phase(
    image: torch.Tensor, labels: torch.Tensor, plans: Sequence[_Plan], organs: Sequence[str], intensity: Intensity
) -> torch.Tensor:
    fat, soft, blood, bone = (float(window(np.float64(hu), intensity)) for hu in (-100.0, 55.0, 150.0, 250.0))
    drawn = [[_target(plan, number, key) for number, key in enumerate(organs)] for plan in plans]
    arteries = [window(np.float64(plan.phase.artery), intensity) for plan in plans if plan.phase is not None]

    def table(values: object, first: float = 0.0) -> torch.Tensor:
        """(n, organs) as (n, 1 + organs) on the device: a value for each label."""
        return sent(np.pad(np.asarray(values, np.float32), ((0, 0), (1, 0)), constant_values=first), image.device)

    targets = table([[0.0 if hu is None else window(np.float64(hu), intensity) for hu in row] for row in drawn])
    known = table([[float(hu is not None) for hu in row] for row in drawn])
    darker, brighter = (table([plan.contrasts[row] for plan in plans], 1.0) for row in (0, 1))
    index = labels.flatten(1).long()

    def of_each_voxel(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, index).view_as(image)

    # Vessels are found by threshold, and made less bright only: where a scan has no contrast agent, none can be seen.
    share = ((torch.tensor(np.array(arteries, np.float32)) - soft) / (blood - soft)).clamp(0.05, 1.0)
    share = sent(share, image.device).view(-1, 1, 1, 1)
    vessels = (image > soft) & ~(_highest(image) > bone) & (labels == 0)
    image = torch.where(vessels, soft + share * (image - soft), image)
    marks = labels.float()
    border = _highest(marks) != -_highest(-marks)
    means = _organ_means(image, labels, border, len(organs))
    changed = known * (means > fat)
    mean, target = of_each_voxel(means), of_each_voxel(targets)
    contrast = of_each_voxel(torch.where(targets < means, darker, brighter))
    shade = target + (image - mean) * contrast
    # Voxels at the border are part fat and keep their share of it: a rim would tell where the organ is.
    partial = fat + (image - fat) * (target - fat) / (mean - fat).clamp(min=1e-3)
    shade = torch.where(border & (image > fat) & (image < mean), partial, shade)
    # Around an organ that became darker nothing stays brighter than it, soft tissue aside.
    limits = torch.where(
        (changed > 0) & (targets < means), targets.clamp(min=soft), torch.full_like(targets, float(_BORDER))
    )
    rim = -_highest(-of_each_voxel(limits))
    result = torch.where(of_each_voxel(changed) > 0, shade, image)
    result = torch.where(labels == 0, torch.minimum(result, rim), result)
    return result.clamp_(-1.0, 1.0)


def _target(plan: _Plan, number: int, key: str) -> float | None:
    hu = plan.phase.organ(key) if plan.phase is not None else None
    return None if hu is None else hu + float(plan.shifts[number])


def _organ_means(image: torch.Tensor, labels: torch.Tensor, border: torch.Tensor, organs: int) -> torch.Tensor:
    """(n, 1 + organs): mean of each organ within its border, of thin ones with it; -1 where there is none."""
    rows = [torch.full((len(image),), -1.0, device=image.device)]
    for label in range(1, organs + 1):
        mask = labels == label
        inner = mask & ~border
        inner = torch.where(inner.flatten(1).any(1).view(-1, 1, 1, 1), inner, mask)
        count = inner.sum((1, 2, 3))
        rows.append(torch.where(count > 0, (image * inner).sum((1, 2, 3)) / count.clamp(min=1), -1.0))
    return torch.stack(rows, dim=1)


def _highest(images: torch.Tensor) -> torch.Tensor:
    """The highest value among each voxel and its 26 neighbors, (n, z, y, x)."""
    for kernel, edge in (((3, 1, 1), (1, 0, 0)), ((1, 3, 1), (0, 1, 0)), ((1, 1, 3), (0, 0, 1))):
        images = F.max_pool3d(images, kernel, stride=1, padding=edge)
    return images


# How it was scanned -------------------------------------------------------------------------------


def _rescanned(images: torch.Tensor, plans: Sequence[_Plan]) -> torch.Tensor:
    """Thick slices or blur, contrast and brightness, gamma, noise; air stays air."""
    air = images <= AIR
    device = images.device

    def where(condition: Callable[[_Plan], bool]) -> list[int]:
        return [number for number, plan in enumerate(plans) if condition(plan)]

    def column(values: Sequence[float]) -> torch.Tensor:
        return sent(list(values), device).view(-1, 1, 1, 1)

    thick = where(lambda plan: plan.slices > 0)
    if thick:
        count = images.shape[1]
        matrices = sent(np.stack([_thick_slices(count, plans[n].slices) for n in thick]), device)
        which = _places(thick, device)
        images = images.clone()
        images[which] = torch.bmm(matrices, images[which].flatten(2)).view(-1, *images.shape[1:])
    smooth = where(lambda plan: plan.smooth > 0)
    if smooth:
        which = _places(smooth, device)
        part = images[which]
        soft = F.avg_pool3d(part[:, None], 3, stride=1, padding=1, count_include_pad=False)[:, 0]
        images = images.clone()
        images[which] = torch.lerp(part, soft, column([plans[n].smooth for n in smooth]))
    images = images * column([plan.gain for plan in plans]) + column([plan.offset for plan in plans])
    curved = where(lambda plan: plan.exponent != 1.0)
    if curved:
        which = _places(curved, device)
        part = 0.5 * (images[which].clamp(-1.0, 1.0) + 1.0)
        images[which] = 2.0 * part ** column([plans[n].exponent for n in curved]) - 1.0
    noisy = where(lambda plan: plan.noise > 0)
    if noisy:
        noise = torch.stack([_noise(plans[n].place, images.shape[1:], device) for n in noisy])
        soft_kernel = [at for at, n in enumerate(noisy) if plans[n].soft]
        if soft_kernel:
            # Noise of a soft kernel is correlated between neighbors.
            which = _places(soft_kernel, device)
            noise[which] = 2.0 * F.avg_pool3d(noise[which][:, None], 3, stride=1, padding=1)[:, 0]
        images[_places(noisy, device)] += column([plans[n].noise for n in noisy]) * noise
    return images.clamp_(-1.0, 1.0).masked_fill_(air, AIR)


@lru_cache(maxsize=512)
def _thick_slices(count: int, slices: int) -> np.ndarray:
    """(count, count) matrix: `count` slices averaged to fewer, and interpolated back linearly."""
    identity = torch.eye(count)[None]
    return F.interpolate(F.adaptive_avg_pool1d(identity, slices), size=count, mode="linear")[0].T.numpy().copy()


@lru_cache(maxsize=8)
def _noise_values(device: torch.device) -> torch.Tensor:
    """Normally distributed numbers, the same on every device: devices' own generators differ."""
    return torch.randn(_NOISE_VALUES, generator=torch.Generator().manual_seed(0)).to(device)


def _noise(place: int, shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """White noise (z, y, x) of variance 1, taken from a place in the store of it."""
    values, count = _noise_values(device), int(np.prod(shape))
    parts = [values[place : place + count]]
    while (missing := count - sum(len(part) for part in parts)) > 0:
        parts.append(values[:missing])
    return torch.cat(parts).view(*shape)


# To the device ------------------------------------------------------------------------------------


def sent(values: object, device: torch.device) -> torch.Tensor:
    """Numbers as float32 on the device. Nobody waits until they were copied: on a GPU that is to wait for all that was
    given to it before.
    """
    return torch.from_numpy(np.asarray(values, np.float32)).to(device, non_blocking=device.type != "mps")


def _places(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """Positions in a batch, to index with: of a list torch makes a tensor itself, and waits for its copy."""
    return torch.tensor(numbers).to(device, non_blocking=device.type != "mps")
