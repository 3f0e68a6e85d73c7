"""Kidneys as they lie in people with much fat about them: larger or smaller, turned, and away from the back.

Few training cases show few places of a kidney, and a network that saw them only against the back takes the front half
of a kidney deep in fat for bowel. A kidney is lifted out with its texture and laid into a bed of fat nearby.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from FlareSegmentLib.intensity import AIR, Intensity, window

_ATTEMPTS = 10
_MOST_COVERED = 0.04
_LEAST_ML = 10.0
_FORWARD_MM, _OUTWARD_MM, _UPWARD_MM = (-10.0, 55.0), (-20.0, 30.0), (-20.0, 20.0)
_SCALE = (0.8, 1.45)
_TURN_DEGREES = (40.0, 20.0, 20.0)
"""About the patient's z, y and x axes."""
_BED_MM = (2.0, 28.0)
_BONE_MARGIN_MM = 6.0


def embed_kidney(
    image: torch.Tensor,
    labels: torch.Tensor,
    spacing_mm: Sequence[float],
    organs: Sequence[str],
    intensity: Intensity,
    generator: np.random.Generator,
) -> None:
    """Move, turn and scale one of the labeled kidneys within a bed of fat, in place; nothing changes where it would
    cover another organ, bone or air. A kidney that the scan cuts stays at the cut.

    Args:
        image: (z, y, x) windowed intensities, -1 ... 1, axes along LPS.
        labels: (z, y, x) uint8.
        spacing_mm: (x, y, z).
        organs: keys of the labels 1, 2, ...
        intensity: the window that was mapped to -1 ... 1.
    """
    spacing = np.asarray(spacing_mm, float)[::-1]
    kidneys = [label for label, key in enumerate(organs, start=1) if key.endswith("_kidney")]
    generator.shuffle(kidneys)
    boxes = ndimage.find_objects(labels.numpy(), max_label=max(kidneys, default=0))
    for label in kidneys:
        box = boxes[label - 1]
        if box is None:
            continue
        organ = (labels[box] == label).float()
        if float(organ.sum()) * float(np.prod(spacing)) / 1000.0 >= _LEAST_ML:
            break
    else:
        return
    low = np.array([extent.start for extent in box], float)
    count = np.array(organ.shape, float)
    pivot = low + (count - 1.0) / 2.0
    cut = low[0] == 0 or low[0] + count[0] == labels.shape[0]
    if cut:
        pivot[0] = 0.0 if low[0] == 0 else labels.shape[0] - 1.0
    outward = 1.0 if organs[label - 1].startswith("left") else -1.0
    bone = float(window(np.float64(250.0), intensity))
    scale = generator.uniform(*_SCALE)
    for _ in range(_ATTEMPTS):
        shift = np.array(
            [
                0.0 if cut else generator.uniform(*_UPWARD_MM),
                -generator.uniform(*_FORWARD_MM),
                outward * generator.uniform(*_OUTWARD_MM),
            ]
        )
        turns = np.radians([generator.uniform(-angle, angle) for angle in _TURN_DEGREES])
        pose = _rotation(turns * (1.0, not cut, not cut)) * scale
        bed_mm = generator.uniform(*_BED_MM)
        reach = np.abs(pose) @ (count * spacing / 2.0 + np.abs(low + (count - 1.0) / 2.0 - pivot) * spacing) + bed_mm
        first = np.minimum(pivot + (shift - reach) / spacing, low) - 3.0
        last = np.maximum(pivot + (shift + reach) / spacing, low + count) + 3.0
        block = tuple(slice(max(0, int(a)), min(n, int(b) + 1)) for a, b, n in zip(first, last, labels.shape))
        part, truth = image[block], labels[block]
        grid = _source_grid(part.shape, block, pivot, shift, pose, spacing, low, count)
        share = F.grid_sample(organ[None, None], grid, "bilinear", "zeros", align_corners=False)[0, 0]
        inside = share >= 0.5
        bones = (part > bone) & (truth != label)
        blocked = ((truth != 0) & (truth != label)) | ((part <= AIR + 0.02) & (truth != label)) | bones
        if not bool(inside.any()) or float(blocked[inside].float().mean()) > _MOST_COVERED:
            continue
        moved = F.grid_sample(image[box][None, None], grid, "bilinear", "border", align_corners=False)[0, 0]
        bed = _bed(inside, truth == label, bed_mm, spacing, generator) & ~blocked & ~_near(bones, spacing)
        fat = float(window(np.float64(generator.uniform(-115.0, -85.0)), intensity))
        noise = generator.normal(0.0, generator.uniform(0.01, 0.08), part.shape).astype(np.float32)
        soft = F.avg_pool3d(bed.float()[None, None], 3, stride=1, padding=1)[0, 0] * bed
        filled = torch.lerp(part, (fat + torch.from_numpy(noise)).clamp(-1.0, 1.0), soft)
        share = torch.where(blocked, torch.zeros_like(share), share)
        image[block] = torch.lerp(filled, moved, share)
        truth[truth == label] = 0
        truth[inside & ~blocked] = label
        return


def _rotation(turns: np.ndarray) -> np.ndarray:
    """Matrix of (z, y, x) offsets for angles about z, y and x."""
    matrix = np.eye(3)
    for angle, (first, second) in zip(turns, ((1, 2), (0, 2), (0, 1))):
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _source_grid(shape, block, pivot, shift, pose, spacing, low, count) -> torch.Tensor:
    """`grid_sample`'s grid into the organ's box for each voxel of a block: where each voxel's content comes from."""
    axes = [
        (np.arange(n) + extent.start - middle) * mm - move
        for n, extent, middle, mm, move in zip(shape, block, pivot, spacing, shift)
    ]
    inverse = np.linalg.inv(pose) / spacing[:, None]
    source = (
        axes[0][:, None, None, None] * inverse[:, 0]
        + axes[1][None, :, None, None] * inverse[:, 1]
        + axes[2][None, None, :, None] * inverse[:, 2]
        + (pivot - low)
    )
    return torch.from_numpy(((2.0 * source + 1.0) / count - 1.0)[..., ::-1].astype(np.float32).copy())[None]


def _bed(inside: torch.Tensor, before: torch.Tensor, bed_mm: float, spacing, generator) -> torch.Tensor:
    """What turns to fat: within some bed_mm of the organ's new place, unevenly, and its old place with a rim."""
    distance = torch.from_numpy(ndimage.distance_transform_edt(~inside.numpy(), sampling=spacing).astype(np.float32))
    uneven = torch.from_numpy(generator.uniform(0.6, 1.4, (1, 1, 4, 4, 4)).astype(np.float32))
    limit = bed_mm * F.interpolate(uneven, size=tuple(inside.shape), mode="trilinear", align_corners=True)[0, 0]
    rim = F.max_pool3d(before.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
    return (distance < limit) | rim


def _near(bones: torch.Tensor, spacing) -> torch.Tensor:
    reach = [2 * max(1, round(_BONE_MARGIN_MM / mm)) + 1 for mm in spacing]
    return F.max_pool3d(bones.float()[None, None], reach, stride=1, padding=[n // 2 for n in reach])[0, 0] > 0
