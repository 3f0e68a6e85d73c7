"""Slices that were not scanned on a straight grid, brought onto one: tilted, unevenly spaced, moved in their planes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from FlareSegmentLib.volume import Volume


@dataclass(frozen=True)
class SeriesVolume:
    """A series that was read.

    Attributes:
        volume: the CT in HU. Slices at uneven distances are given the mean one; those of a tilted gantry lie on a
            sheared grid.
        positions: (z, 3) where the first pixel of every slice of the volume really lies, LPS, mm.
        files: the file of every slice; one file for all slices where it has several frames.
        warnings: for the user.
    """

    volume: Volume
    positions: np.ndarray
    files: tuple[Path, ...]
    warnings: list[str]

    @property
    def farthest_mm(self) -> float:
        """How far a slice lies off its place in the volume, at most."""
        count = len(self.positions)
        steps = np.outer(np.arange(count), self.volume.affine_lps[:3, 2])
        return float(np.linalg.norm(self.positions - self.volume.origin - steps, axis=1).max())


def straight(series: SeriesVolume, labels: np.ndarray | None = None) -> tuple[Volume, np.ndarray | None, str | None]:
    """A series on a grid with right angles and one distance of slices, with labels that were drawn on its slices.

    What lies on such a grid already is returned as it is. Otherwise slices of a tilted gantry are moved in their plane
    and unevenly spaced ones resampled along their normal: CT values linearly, labels from the nearest voxel, outside
    the lowest value and 0. Slicer's DICOM import does the same by its "acquisition geometry regularization" transform
    (DICOMScalarVolumePlugin), when it is hardened.

    Returns:
        The volume, the labels, and what was done in half a line; None where nothing was.
    """
    volume, positions = series.volume, series.positions
    count, height, width = volume.array.shape
    places = positions @ _normal(volume)
    regular = places[0] + np.arange(count) * (places[-1] - places[0]) / (count - 1)
    rows = volume.direction[:, :2]
    moved = (positions - positions[0]) @ rows / np.array(volume.spacing[:2])  # (z, 2), in voxels along x and y
    # NIfTI files are compared at a hundredth of a voxel; positions are often written with few digits
    tolerance = 0.01 * min(volume.spacing)
    uneven = float(np.abs(places - regular).max())
    tilted = float(np.abs(moved * volume.spacing[:2]).max())
    if tilted <= tolerance and uneven <= 0.1 * volume.spacing[2]:
        direction = np.column_stack([*rows.T, _normal(volume)])
        grid = Volume(volume.array, volume.spacing, tuple(positions[0]), direction, volume.name)
        return grid, labels, None
    from scipy.ndimage import shift

    def plane(array: np.ndarray, index: int, order: int, outside: float) -> np.ndarray:
        offset = (moved[index, 1], moved[index, 0])
        if max(abs(value) for value in offset) * min(volume.spacing[:2]) <= tolerance:
            return array[index]
        return shift(array[index].astype(np.float32), offset, order=order, mode="constant", cval=outside)

    lowest = float(volume.array.min())
    result = np.empty((count, height, width), np.float32)
    marked = None if labels is None else np.zeros_like(labels)
    upper = np.clip(np.searchsorted(places, regular), 1, count - 1)
    for k in range(count):
        b = int(upper[k])
        share = float(np.clip((regular[k] - places[b - 1]) / (places[b] - places[b - 1]), 0, 1))
        parts = [(index, weight) for index, weight in ((b - 1, 1 - share), (b, share)) if weight > 1e-6]
        result[k] = sum(weight * plane(volume.array, index, 1, lowest) for index, weight in parts)
        if labels is not None and marked is not None:
            marked[k] = plane(labels, max(parts, key=lambda part: part[1])[0], 0, 0)
    if volume.array.dtype.kind in "iu":
        result = np.rint(result).astype(volume.array.dtype)
    direction = np.column_stack([*rows.T, _normal(volume)])
    spacing = (*volume.spacing[:2], float(places[-1] - places[0]) / (count - 1))
    done = []
    if tilted > tolerance:
        lean = moved[-1] / (places[-1] - places[0])
        beside = (moved - np.outer(places - places[0], lean)) * volume.spacing[:2]
        if np.abs(beside).max() > max(tolerance, 0.02 * volume.spacing[2]):
            done.append(f"slices up to {tilted:.1f} mm beside the first one put in their place")
        else:
            degrees = np.degrees(np.arctan(np.linalg.norm(lean * volume.spacing[:2])))
            done.append(f"gantry tilt of {degrees:.1f} degrees straightened")
    if uneven > 0.1 * volume.spacing[2]:
        gaps = np.diff(places)
        done.append(f"slices {gaps.min():.2f} to {gaps.max():.2f} mm apart brought to {spacing[2]:.2f} mm")
    return Volume(result, spacing, tuple(positions[0]), direction, volume.name), marked, " and ".join(done)


def _normal(volume: Volume) -> np.ndarray:
    normal = np.cross(volume.direction[:, 0], volume.direction[:, 1])
    return normal / np.linalg.norm(normal)
