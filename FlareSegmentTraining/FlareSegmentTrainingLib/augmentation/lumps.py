"""What lies beside organs and deceives: bowel full of oral contrast, with air levels, and masses of other origin.

Few training cases have them, and a network that saw none takes a bright loop for a kidney and a tumor for the organ
that it touches. They are painted over background only: no organ, bone or label changes.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from FlareSegmentLib.model.intensity import AIR, window
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan

_ATTEMPTS = 8
_LEAST_VOXELS = 60
_DISTANCE_MM = (10.0, 75.0)
"""From a voxel of an organ to the middle of what is painted."""
_KIDNEYS_SHARE = 2.0
_MASS_RADIUS_MM, _BOWEL_RADIUS_MM = (10.0, 60.0), (7.0, 24.0)
_LOBES = 0.13


def paint_bowel(scan: LabeledScan) -> None:
    """Paint a bowel loop full of oral contrast (110 to 1500 HU, now and then with an air level) near an organ, in
    place; nothing changes where none fits.
    """
    generator = scan.generator
    start = _place(scan, lung=False)
    if start is None:
        return
    radius = generator.uniform(*_BOWEL_RADIUS_MM)
    points, heading = [start], generator.normal(0.0, 1.0, 3)
    for _ in range(int(generator.integers(0, 7))):
        heading = heading + generator.normal(0.0, 0.7, 3)
        heading /= np.linalg.norm(heading) + 1e-6
        points.append(points[-1] + heading * 0.7 * radius / scan.spacing)
    bright = generator.random() < 0.55
    hu = generator.uniform(110.0, 320.0) if bright else float(np.exp(generator.uniform(*np.log((200.0, 1500.0)))))
    texture = generator.uniform(3.0, 40.0) if generator.random() < 0.7 else generator.uniform(40.0, 120.0)
    level = generator.uniform(0.1, 0.6) if generator.random() < 0.4 else None
    wall = generator.uniform(20.0, 60.0)
    _paint(scan, np.array(points), radius, hu, texture, wall=wall, level=level)


def paint_mass(scan: LabeledScan) -> None:
    """Paint a mass of 2 to 12 cm that belongs to none of the organs, in the abdomen or in the lung, in place; nothing
    changes where none fits.
    """
    generator = scan.generator
    lung = generator.random() < 0.3
    start = _place(scan, lung)
    if start is None:
        return
    radius = generator.uniform(*_MASS_RADIUS_MM) * generator.uniform(0.5, 1.0)
    hu = generator.uniform(-5.0, 25.0) if generator.random() < 0.25 else generator.uniform(15.0, 110.0)
    texture = generator.uniform(3.0, 18.0)
    _paint(scan, start[None], radius, hu, texture, over_lung=lung)


def _place(scan: LabeledScan, lung: bool) -> np.ndarray | None:
    """A voxel (z, y, x) of soft tissue or fat, or of lung, some way off an organ and rather in front of it."""
    image, labels, generator = scan.image, scan.labels, scan.generator
    low, high = (scan.shade(hu) for hu in (-150.0, 160.0))
    thinned = labels[::3, ::3, ::3].numpy()
    present = [label for label in range(1, len(scan.organs) + 1) if (thinned == label).any()]
    shares = np.array([_KIDNEYS_SHARE if scan.organs[label - 1].endswith("_kidney") else 1.0 for label in present])
    shape = np.array(labels.shape)
    for _ in range(_ATTEMPTS):
        if present:
            voxels = np.argwhere(thinned == int(generator.choice(present, p=shares / shares.sum())))
            towards = generator.normal(0.0, 1.0, 3)
            towards /= np.linalg.norm(towards) + 1e-6
            towards += (generator.uniform(0.0, 1.0), 0.0, 0.0) if lung else (0.0, -generator.uniform(0.0, 1.0), 0.0)
            voxel = voxels[generator.integers(len(voxels))] * 3.0
            center = voxel + towards * generator.uniform(*_DISTANCE_MM) / scan.spacing
        else:
            center = generator.uniform(0.15, 0.85, 3) * shape
        at = tuple(np.rint(center).astype(int))
        if min(at) < 0 or (np.array(at) >= shape).any() or labels[at]:
            continue
        if float(image[at]) < low if lung else low < float(image[at]) < high:
            return center
    return None


def _paint(
    scan: LabeledScan,
    points: np.ndarray,
    radius: float,
    hu: float,
    texture: float,
    wall: float | None = None,
    level: float | None = None,
    over_lung: bool = False,
) -> None:
    """Paint lobed balls about the points, joined, over background, in place.

    Args:
        points: (n, 3) voxels (z, y, x); radius in mm.
        hu, texture: mean and standard deviation of what is inside.
        wall: HU of a wall around it; level: share of the height, from the front, that is air.
        over_lung: also over lung and air; else over soft tissue and fat alone.
    """
    generator, spacing = scan.generator, scan.spacing
    reach = 1.45 * radius / spacing
    low = np.maximum(0, np.floor(points.min(0) - reach)).astype(int)
    high = np.minimum(scan.labels.shape, np.ceil(points.max(0) + reach) + 1).astype(int)
    if (high - low < 3).any():
        return
    block = tuple(slice(int(a), int(b)) for a, b in zip(low, high))
    part, truth = scan.image[block].numpy(), scan.labels[block].numpy()
    axes = np.meshgrid(*(np.arange(a, b, dtype=np.float32) for a, b in zip(low, high)), indexing="ij", sparse=True)
    radii = radius * generator.uniform(0.75, 1.25, 3)
    distance = np.full(part.shape, np.inf, np.float32)
    for point in points:
        squares = (((axis - c) * mm / r) ** 2 for axis, c, mm, r in zip(axes, point, spacing, radii))
        np.minimum(distance, np.sqrt(sum(squares)), out=distance)
    lobes = ndimage.zoom(generator.normal(0.0, _LOBES, (5, 5, 5)), np.array(part.shape) / 5.0, order=1)
    distance *= 1.0 + lobes.astype(np.float32)
    bone = ndimage.binary_dilation(part > scan.shade(230.0))
    allowed = (truth == 0) & ~bone
    if not over_lung:
        allowed &= part > AIR + 1e-3
    inside = (distance < 1.0) & allowed
    if np.count_nonzero(inside) < _LEAST_VOXELS:
        return
    if wall is not None:
        share = np.clip(1.0 - np.abs(distance - 1.12) / 0.2, 0.0, 1.0) * allowed * (distance >= 1.0)
        part += share * (scan.shade(wall) - part)
    noise = generator.normal(0.0, texture, part.shape)
    if generator.random() < 0.5:
        noise = ndimage.uniform_filter(noise, 3) * 3.0
    value = window(hu + noise, scan.intensity)
    if level is not None:
        rows = np.flatnonzero(inside.any(axis=(0, 2)))
        value[:, : int(round(rows[0] + (rows[-1] - rows[0]) * level))] = AIR
    share = np.clip((1.0 - distance) * radius / float(spacing.mean()) + 0.5, 0.0, 1.0) * allowed
    part += (share * (value - part)).astype(np.float32)
    np.clip(part, -1.0, 1.0, out=part)
