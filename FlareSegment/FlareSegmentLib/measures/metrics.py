"""Dice, Normalized Surface Dice and 95th percentile Hausdorff distance of label maps.

The surface measures are those of Nikolov et al. 2018 (https://arxiv.org/abs/1809.04430, section "Volumetric and surface
performance metrics") that FLARE22's evaluation uses: the surface is made of elements between voxel centers, one for
each 2x2x2 neighborhood that the border passes through, and each element counts with its area. Results agree with
DeepMind's ``surface-distance`` package.

Conventions, everywhere: when both masks are empty, Dice and NSD are 1 and HD95 is 0 (nothing was to be found and
nothing was); when one is empty, Dice and NSD are 0 and HD95 is infinite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from scipy.ndimage import find_objects
from scipy.spatial import cKDTree

from FlareSegmentLib.organs import ORGANS, Organ


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two masks of equal shape, 0 to 1. Raises ValueError for different shapes."""
    a, b = _masks(a, b)
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 1.0 if total == 0 else 2.0 * int(np.count_nonzero(a & b)) / total


def nsd(a: np.ndarray, b: np.ndarray, spacing: Sequence[float], tolerance_mm: float) -> float:
    """Normalized Surface Dice: the share of both surfaces that lies within the tolerance of the other one, 0 to 1.

    Args:
        a, b: (z, y, x) masks.
        spacing: (x, y, z) mm.

    Raises ValueError for different shapes.
    """
    return _compare_surfaces(a, b, spacing).within(tolerance_mm)


def hd95(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> float:
    """95th percentile of the surface distances in mm, the larger of both directions; may be infinite.

    Args:
        a, b: (z, y, x) masks.
        spacing: (x, y, z) mm.

    Raises ValueError for different shapes.
    """
    return _compare_surfaces(a, b, spacing).percentile(0.95)


def evaluate(
    labels: np.ndarray, reference: np.ndarray, spacing: Sequence[float], organs: Sequence[Organ] = ORGANS
) -> dict[str, dict[str, float | None]]:
    """Dice, NSD at FLARE22's tolerances and HD95 of every organ.

    Args:
        labels, reference: (z, y, x) integer label maps.
        spacing: (x, y, z) mm.
        organs: what to compare; their labels are the label maps' values.

    Returns:
        {organ key: {"dice", "nsd", "hd95_mm"}}; an infinite HD95 is None, so that the result is valid JSON.

    Raises:
        ValueError: the shapes differ.
    """
    if labels.shape != reference.shape:
        raise ValueError(f"shapes differ: {labels.shape} and {reference.shape}")
    largest = max(organ.label for organ in organs)
    boxes = [find_objects(array, largest) for array in (labels, reference)]
    result: dict[str, dict[str, float | None]] = {}
    for organ in organs:
        box = _union(boxes[0][organ.label - 1], boxes[1][organ.label - 1])
        a, b = labels[box] == organ.label, reference[box] == organ.label
        surfaces = _compare_surfaces(a, b, spacing)
        distance = surfaces.percentile(0.95)
        result[organ.key] = {
            "dice": dice(a, b),
            "nsd": surfaces.within(organ.nsd_tolerance_mm),
            "hd95_mm": distance if math.isfinite(distance) else None,
        }
    return result


def difference(labels: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """uint8, 1 where only the reference has an organ, 2 where only the labels have one, 3 where they are different."""
    result = np.zeros(labels.shape, np.uint8)
    result[(reference > 0) & (labels == 0)] = 1
    result[(reference == 0) & (labels > 0)] = 2
    result[(reference > 0) & (labels > 0) & (reference != labels)] = 3
    return result


@dataclass(frozen=True)
class _Surfaces:
    """Distance (mm) and area (mm²) of each surface element of a to the surface of b, and of b to a."""

    distances: tuple[np.ndarray, np.ndarray]
    areas: tuple[np.ndarray, np.ndarray]

    def within(self, tolerance_mm: float) -> float:
        total = sum(float(area.sum()) for area in self.areas)
        if total == 0:
            return 1.0
        near = sum(float(a[d <= tolerance_mm].sum()) for d, a in zip(self.distances, self.areas))
        return near / total

    def percentile(self, share: float) -> float:
        if not len(self.areas[0]) and not len(self.areas[1]):
            return 0.0
        if not len(self.areas[0]) or not len(self.areas[1]):
            return math.inf
        values = []
        for distance, area in zip(self.distances, self.areas):
            order = np.argsort(distance)
            cumulative = np.cumsum(area[order]) / area.sum()
            values.append(float(distance[order[np.searchsorted(cumulative, share)]]))
        return max(values)


def _compare_surfaces(a: np.ndarray, b: np.ndarray, spacing: Sequence[float]) -> _Surfaces:
    a, b = _masks(a, b)
    steps = np.asarray(spacing, float)[::-1]
    table = _element_areas(tuple(steps))
    (points_a, areas_a), (points_b, areas_b) = (_surface_elements(mask, table) for mask in (a, b))
    distances = _nearest(points_a, points_b, steps), _nearest(points_b, points_a, steps)
    return _Surfaces(distances, (areas_a, areas_b))


def _nearest(points: np.ndarray, others: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Distance (mm) of each point to the nearest of the others; both as voxel indices."""
    if not len(points) or not len(others):
        return np.full(len(points), math.inf)
    index = cKDTree(others * steps).query(points * steps)[1]
    # From the whole numbers: a distance of exactly the tolerance must not be lost to rounding.
    return np.sqrt((((points - others[index]) * steps) ** 2).sum(axis=1))


def _surface_elements(mask: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and areas (mm²) of the 2x2x2 neighborhoods that hold voxels of both kinds."""
    box = find_objects(mask.astype(np.uint8), 1)[0]
    if box is None:
        return np.zeros((0, 3), int), np.zeros(0)
    padded = np.pad(mask[box], 1).astype(np.uint8)
    code = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for bit, corner in enumerate(_CORNERS):
        code |= padded[tuple(slice(c, n - 1 + c) for c, n in zip(corner, padded.shape))] << bit
    positions = np.argwhere((code != 0) & (code != 255))
    return positions + [extent.start for extent in box], table[code[tuple(positions.T)]]


_CORNERS = tuple(product((0, 1), repeat=3))
_Edge = tuple[tuple[int, ...], ...]


@cache
def _element_areas(steps: tuple[float, float, float]) -> np.ndarray:
    """Area of the surface element of each of the 256 neighborhoods, mm², for a (z, y, x) spacing."""
    scale = np.array([steps[1] * steps[2], steps[0] * steps[2], steps[0] * steps[1]])
    return np.array([np.linalg.norm(normals * scale, axis=1).sum() for normals in _element_normals()])


@cache
def _element_normals() -> tuple[np.ndarray, ...]:
    """Area vectors of the triangles of each neighborhood's surface element, for unit spacing: (triangles, 3) each.

    The element is a closed polygon (or several) through the middles of the edges between inside and outside corners:
    marching cubes (Lorensen and Cline 1987) at half height. Where a face has its inside corners on a diagonal, the
    corners of the minority (of the cube's eight) are cut off from each other; a polygon is divided into the triangles
    with the largest area. These two rules give the areas that DeepMind's package has in a table.
    """
    normals = []
    for code in range(256):
        inside = {corner for bit, corner in enumerate(_CORNERS) if code >> bit & 1}
        if len(inside) > 4:  # a surface is the same seen from its other side
            inside = set(_CORNERS) - inside
        triangles = [triangle for polygon in _polygons(inside) for triangle in _largest_triangulation(polygon)]
        normals.append(np.array(triangles).reshape(-1, 3))
    return tuple(normals)


def _polygons(inside: set[tuple[int, ...]]) -> list[np.ndarray]:
    neighbors: dict[_Edge, list[_Edge]] = {}
    for face in _faces():
        edges = [tuple(sorted((face[i], face[(i + 1) % 4]))) for i in range(4)]
        crossed = [edge for edge in edges if (edge[0] in inside) != (edge[1] in inside)]
        if len(crossed) == 4:
            pairs = [[edges[i - 1], edges[i]] for i in range(4) if face[i] in inside]
        else:
            pairs = [crossed] if crossed else []
        for first, second in pairs:
            neighbors.setdefault(first, []).append(second)
            neighbors.setdefault(second, []).append(first)
    polygons = []
    while neighbors:
        first, (current, _) = neighbors.popitem()
        polygon = [first]
        while current != first:
            onward = [edge for edge in neighbors.pop(current) if edge != polygon[-1]]
            polygon.append(current)
            current = onward[0]
        polygons.append(np.mean(polygon, axis=1))
    return polygons


def _faces() -> Iterator[list[tuple[int, ...]]]:
    for axis, side in product(range(3), (0, 1)):
        for_plane = [(0, 0), (0, 1), (1, 1), (1, 0)]
        yield [tuple(np.insert(np.array(corner), axis, side).tolist()) for corner in for_plane]


def _largest_triangulation(polygon: np.ndarray) -> list[np.ndarray]:
    def largest(first: int, last: int) -> list[np.ndarray]:
        divisions = [
            [
                *largest(first, middle),
                *largest(middle, last),
                np.cross(polygon[middle] - polygon[first], polygon[last] - polygon[first]) / 2,
            ]
            for middle in range(first + 1, last)
        ]
        return max(divisions, key=lambda part: sum(np.linalg.norm(normal) for normal in part), default=[])

    return largest(0, len(polygon) - 1)


def _union(a: tuple[slice, ...] | None, b: tuple[slice, ...] | None) -> tuple[slice, ...]:
    if a is None or b is None:
        return a or b or (slice(0),) * 3
    return tuple(slice(min(i.start, j.start), max(i.stop, j.stop)) for i, j in zip(a, b))


def _masks(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape != b.shape:
        raise ValueError(f"shapes differ: {a.shape} and {b.shape}")
    return a.astype(bool, copy=False), b.astype(bool, copy=False)
