"""Implicit shapes: signed distances in mm, exact near the surface, which is where the partial volume needs them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np


class Points:
    """Coordinates of voxels in mm, read as (x, y, z), and the distances that several shapes ask for.

    `reach` is the distance in mm up to which a shape is seen; where it is farther away, any distance above it will do.
    """

    def __init__(self, axes: Sequence[np.ndarray], reach: float, whole: Points | None = None, where: Any = ()) -> None:
        self.x, self.y, self.z = axes
        self.reach = reach
        self._whole, self._where = whole, where
        self._known: dict[Shape, np.ndarray] = {}

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.x, self.y, self.z))

    def part(self, where: Any) -> Points:
        """Those of an index: slices or a mask."""
        return Points([axis[where] for axis in self], self.reach, self, where)

    def known(self, shape: Shape) -> np.ndarray:
        """The shape's distances, evaluated once for all points that these are a part of."""
        if self._whole is not None:
            return self._whole.known(shape)[self._where]
        if shape not in self._known:
            self._known[shape] = shape(self)
            self._known[shape].flags.writeable = False  # others ask for it as well
        return self._known[shape]


Shape = Callable[[Points], np.ndarray]


def once(shape: Shape) -> Shape:
    """The same shape, evaluated once for a whole slab: one that many others ask for."""
    return lambda points: points.known(shape)


def ellipsoid(center: Sequence[float], radii: Sequence[float], axes: np.ndarray | None = None) -> Shape:
    """Rows of `axes` are the directions of the radii."""
    axes = np.eye(3) if axes is None else axes
    rows = [tuple(float(v) for v in row) for row in axes]

    def distance(points: Points) -> np.ndarray:
        offset = [axis - float(c) for axis, c in zip(points, center, strict=True)]
        scaled = scaled_twice = 0.0
        for row, radius in zip(rows, radii, strict=True):
            along = sum(weight * part for weight, part in zip(row, offset, strict=True) if weight) / float(radius)
            scaled = scaled + along * along
            scaled_twice = scaled_twice + (along / float(radius)) ** 2
        k = np.sqrt(scaled)
        return k * (k - 1) / np.maximum(np.sqrt(scaled_twice), 1e-6)

    return distance


def tube(points_mm: Sequence[Sequence[float]], radii: Sequence[float] | float) -> Shape:
    """A chain of round cones through `points_mm`."""
    nodes = np.asarray(points_mm, float)
    sizes = np.broadcast_to(np.asarray(radii, float), len(nodes))

    def distance(points: Points) -> np.ndarray:
        nearest = None
        for a, b, ra, rb in zip(nodes[:-1], nodes[1:], sizes[:-1], sizes[1:], strict=True):
            along, offset = b - a, [axis - float(c) for axis, c in zip(points, a, strict=True)]
            t = sum(float(w) * part for w, part in zip(along, offset, strict=True)) / float(along @ along + 1e-9)
            t = np.clip(t, 0, 1)
            squared = sum((part - float(w) * t) ** 2 for w, part in zip(along, offset, strict=True))
            d = np.sqrt(squared) - (float(ra) + float(rb - ra) * t)
            nearest = d if nearest is None else np.minimum(nearest, d)
        return nearest

    return distance


def bounded(bound: Shape, shape: Shape) -> Shape:
    """The same shape, evaluated only where `bound` is seen: a cheaper distance, which is nowhere more than its own."""

    def distance(points: Points) -> np.ndarray:
        d = bound(points)
        near = d <= points.reach
        d[near] = shape(points.part(near))
        return d

    return distance


def within(shape: Shape, container: Shape, depth: float = 0.0) -> Shape:
    """The part of `shape` that lies at least `depth` mm under the surface of `container`, which is asked there only."""

    def distance(points: Points) -> np.ndarray:
        d = shape(points)
        near = d <= points.reach
        d[near] = np.maximum(d[near], container(points.part(near)) + depth)
        return d

    return distance


def join(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union with a fillet of about `blend` mm (polynomial smooth minimum)."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    return np.minimum(a, b) - h * h * (blend / 4)


def common(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Intersection with a rounded edge."""
    return -join(-a, -b, blend)


def rotation(degrees_xyz: Sequence[float]) -> np.ndarray:
    """Rotation matrix about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees_xyz)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


class SmoothField:
    """A random smooth function of space, about unit variance: cubic B-splines on a lattice of `cell` mm."""

    def __init__(self, rng: np.random.Generator, cell: float, channels: int = 1) -> None:
        self._cell = cell
        count = int(np.ceil(640 / cell)) + 4
        self._lattice = rng.standard_normal((channels, count, count, count), dtype=np.float32) * 2.1

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values (channels, x, z, y) on the grid of three coordinate vectors in mm, each within 320 mm of 0."""
        values = self._lattice.transpose(0, 3, 1, 2)
        for axis, coordinates in ((2, z), (3, y), (1, x)):  # x last: whole planes are added
            position = (np.asarray(coordinates, float) + 320) / self._cell + 1
            node = np.floor(position).astype(int)
            u = position - node
            weights = (1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3
            shape = [-1 if other == axis else 1 for other in range(4)]
            total = None
            for shift, weight in zip((-1, 0, 1, 2), weights, strict=True):
                part = values.take(np.clip(node + shift, 0, self._lattice.shape[1] - 1), axis)
                part *= (weight / 6).astype(np.float32).reshape(shape)
                total = part if total is None else np.add(total, part, out=total)
            values = total
        return values
