"""The built-in phantom: a CT of a torso made from formulas, with the organs' labels known exactly.

It is what `segment.py` runs on when no CT is given, what the tests run on (no patient data in the repository), and,
seeded, a set of torsos to train and validate on. Only numpy is needed.

How it is made: `Anatomy` draws the sizes, positions and tissue values of one patient from the seed and lists the
organs as painting steps, from the body wall inwards; each step is an implicit shape (a signed distance in mm,
negative inside; see `shapes`). `_render` paints them slab by slab onto the voxel grid. A step covers a voxel by the
fraction that its distance gives (partial volume), and owns the voxel's label from one half on. The patient's
coordinates are warped smoothly before the shapes are evaluated, so no two patients share an outline.

Coordinates are LPS in mm: x to the patient's left, y to the back, z to the head; the origin lies inside the body in
the midline, at the height of the first lumbar vertebra. The liver is therefore at low x.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from FlareSegmentLib.phantom import shapes
from FlareSegmentLib.phantom.anatomy import AIR_HU, Anatomy
from FlareSegmentLib.volume import Volume

_LOWEST_HU, _HIGHEST_HU = -1024, 3071
_SLAB_VOXELS = 400_000


def make_phantom(
    seed: int = 0,
    spacing: Sequence[float] | None = (2.5, 2.5, 2.5),
    z_range: tuple[float, float] | None = (-125.0, 140.0),
) -> tuple[Volume, np.ndarray]:
    """A CT of a torso and the labels of its organs.

    seed: the patient. The same arguments give the same voxels.
    spacing: (x, y, z) in mm, at least 0.5; None draws 0.8 to 2 mm in plane and 1 to 5 mm between slices.
    z_range: lowest and highest slice in mm, 0 at the first lumbar vertebra: lungs begin at about 100, kidneys end at
        about -75. None draws one: most show all organs, some cut through them.

    Returns (volume, labels): the volume holds int16 HU and labels are uint8, both (z, y, x), direction identity in
    LPS; labels are those of `organs.ORGANS`. Raises ValueError for a spacing or a range that makes no image.
    """
    rng = np.random.default_rng(seed)
    anatomy = Anatomy(rng)
    drawn_spacing = (*(2 * [rng.uniform(0.8, 2.0)]), rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0]))
    drawn_range = (rng.uniform(-200, -95), rng.uniform(105, 210))
    if rng.random() < 0.25:  # a scan that ends within the organs
        bottom = rng.uniform(-110, 40)
        drawn_range = (bottom, bottom + rng.uniform(60, 160))
    spacing = tuple(float(value) for value in (drawn_spacing if spacing is None else spacing))
    low, high = drawn_range if z_range is None else z_range
    if len(spacing) != 3 or not min(spacing) >= 0.5:
        raise ValueError(f"A phantom needs three spacings of at least 0.5 mm, not {spacing}.")
    if not high - low >= spacing[2]:
        raise ValueError(f"A phantom needs a z range of at least one slice, not {low} to {high} mm.")

    # The field of view of a real scan: the body plus a margin that reaches the table, seldom well centered.
    margin = rng.uniform(8, 40)
    center = rng.uniform(-8, 8), rng.uniform(-4, 14)
    half = anatomy.half_width + margin, anatomy.half_depth + margin
    size = [max(1, round(2 * half[axis] / spacing[axis])) for axis in (0, 1)] + [
        max(1, round((high - low) / spacing[2]))
    ]
    origin = (
        center[0] - spacing[0] * (size[0] - 1) / 2,
        center[1] - spacing[1] * (size[1] - 1) / 2,
        low + spacing[2] / 2,
    )
    hounsfield, labels = _render(anatomy, size, spacing, origin, rng)
    volume = Volume(hounsfield, spacing, origin, np.eye(3), name="phantom" if seed == 0 else f"phantom{seed}")
    return volume, labels


def _render(
    anatomy: Anatomy, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the anatomy onto a grid of `size` (x, y, z) voxels: (int16 HU, uint8 labels), both (z, y, x).

    Thick slices are painted as an odd number of thin ones whose HU are averaged, as a scanner does; labels are those
    of the middle one.
    """
    thin = 1 + 2 * int(np.ceil((spacing[2] / 2.6 - 1) / 2)) if spacing[2] > 2.6 else 1
    x, y = (origin[axis] + spacing[axis] * np.arange(size[axis]) for axis in (0, 1))
    hounsfield = np.empty((size[2], size[1], size[0]), np.int16)
    labels = np.empty(hounsfield.shape, np.uint8)
    slab = max(1, int(_SLAB_VOXELS / (thin * size[0] * size[1])))
    for first in range(0, size[2], slab):
        last = min(first + slab, size[2])
        steps = (np.arange((last - first) * thin) - (thin - 1) / 2) / thin
        z = origin[2] + spacing[2] * (first + steps)
        values, owners = _paint_slab(anatomy, x, y, z, max(spacing[0], spacing[2] / thin))
        values = values.reshape(last - first, thin, size[1], size[0]).mean(1)
        owners = owners.reshape(last - first, thin, size[1], size[0])[:, thin // 2]
        labels[first:last] = owners
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        if spacing[0] < 1.6:  # the noise of a reconstruction is correlated over about 2 mm
            noise = (np.roll(noise, 1, 1) + 2 * noise + np.roll(noise, -1, 1)) / 6**0.5
            noise = (np.roll(noise, 1, 2) + 2 * noise + np.roll(noise, -1, 2)) / 6**0.5
        values += noise * anatomy.noise
        hounsfield[first:last] = np.clip(np.rint(values), _LOWEST_HU, _HIGHEST_HU)
    if anatomy.round_view:
        radius = min(size[0] * spacing[0], size[1] * spacing[1]) / 2 + 12
        center = origin[0] + spacing[0] * (size[0] - 1) / 2, origin[1] + spacing[1] * (size[1] - 1) / 2
        outside = np.hypot((x - center[0])[None], (y - center[1])[:, None]) > radius
        hounsfield[:, outside] = _LOWEST_HU
        labels[:, outside] = 0
    return hounsfield, labels


def _paint_slab(
    anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray, voxel_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """HU (float32) and labels of the voxels at the scanner coordinates x, y, z in mm, both (z, y, x).

    Arrays within are (x, z, y), the order in which the smooth fields are made fastest.
    """
    world = x.astype(np.float32)[:, None, None], y.astype(np.float32), z.astype(np.float32)[:, None]
    turn = anatomy.rotation.astype(np.float32)
    warp = anatomy.warp(x, y, z) * np.float32(anatomy.warp_mm) + anatomy.ripple(x, y, z) * np.float32(0.9)
    for row in range(3):
        warp[row] += sum(turn[row, axis] * world[axis] for axis in range(3)) / np.float32(anatomy.scale[row])
    blur = np.float32(np.hypot(1.4, voxel_mm) / float(np.mean(anatomy.scale)))
    points = shapes.Points(warp, blur / 2)
    values = np.full(warp.shape[1:], AIR_HU, np.float32)
    labels = np.zeros(values.shape, np.uint8)
    _paint_table(anatomy, values, world, voxel_mm)

    for step, where in zip(anatomy.steps, _voxels_in_boxes(anatomy, x, y, z), strict=True):
        if where is None:
            continue
        part, below = points.part(where), values[where]
        distance = step.shape(part)
        near = distance <= points.reach
        if not near.any():
            continue
        cover = np.minimum(0.5 - distance[near] / blur, 1)
        value = step.value(part.part(near)) if callable(step.value) else step.value
        old = below[near]
        below[near] = old + cover * (value - old)
        if step.label is not None:
            labels[where][distance <= 0] = step.label
    mottle, strands = anatomy.mottle(x, y, z)[0], anatomy.strands(x, y, z)[0]
    soft = (values > -140) & (values < 260)
    values += np.where(soft, 4.0 * mottle + 2.5 * strands, 0)
    fat = (values < -60) & (values > -140)
    values += np.where(fat, 55 * np.clip(strands - 1.2, 0, 1.5), 0)
    return values.transpose(1, 2, 0), labels.transpose(1, 2, 0)


def _paint_table(anatomy: Anatomy, values: np.ndarray, world: Sequence[np.ndarray], voxel_mm: float) -> None:
    """A curved table top of carbon fiber and foam under the patient, in the scanner's coordinates."""
    x, y, _ = world
    depth = y - (anatomy.half_depth - 4 + anatomy.table_gap) + (x / 330.0) ** 2 * 70
    blur = max(1.4, voxel_mm)
    shell = np.minimum(np.abs(depth), np.abs(depth - 26)) - 1.2
    inside = np.abs(x) < 215
    values += np.where(inside & (depth > 0) & (depth < 26), 45, 0)
    values += np.where(inside, np.clip(0.5 - shell / blur, 0, 1) * 780, 0)


def _voxels_in_boxes(
    anatomy: Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> Iterator[tuple[slice, ...] | None]:
    """The voxels (x, z, y) that may lie in each step's box, given in the patient's coordinates; None where none do."""
    slack = 3.2 * (anatomy.warp_mm + 0.9)
    boxes = np.array([step.box for step in anatomy.steps])
    corners = np.stack([boxes[:, [(i >> axis) & 1 for axis in range(3)], range(3)] for i in range(8)], 1)
    scanner = (corners * anatomy.scale) @ anatomy.rotation
    ends = np.stack([scanner.min(1) - slack, scanner.max(1) + slack], 1)
    limits = [np.searchsorted(line, ends[:, :, axis]).tolist() for axis, line in ((0, x), (2, z), (1, y))]
    for box in zip(*limits, strict=True):
        yield tuple(slice(first, last) for first, last in box) if all(first < last for first, last in box) else None
