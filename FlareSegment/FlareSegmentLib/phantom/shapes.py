"""Implicit shapes: signed distances in mm, exact near the surface, which is where the partial volume needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Points = tuple[np.ndarray, np.ndarray, np.ndarray]
Shape = Callable[[Points], np.ndarray]


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


def within(shape: Shape, container: Shape, depth: float = 0.0) -> Shape:
    """The part of `shape` that lies at least `depth` mm under the surface of `container`."""
    return lambda points: np.maximum(shape(points), container(points) + depth)


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
        """Values (channels, z, y, x) on the grid of three coordinate vectors in mm, each within 320 mm of 0."""
        values = self._lattice
        for axis, coordinates in enumerate((z, y, x), start=1):
            position = (np.asarray(coordinates, float) + 320) / self._cell + 1
            node = np.floor(position).astype(int)
            u = position - node
            weights = (1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3
            shape = [-1 if other == axis else 1 for other in range(4)]
            values = sum(
                (weight / 6).astype(np.float32).reshape(shape)
                * values.take(np.clip(node + shift, 0, self._lattice.shape[1] - 1), axis)
                for shift, weight in zip((-1, 0, 1, 2), weights, strict=True)
            )
        return values
