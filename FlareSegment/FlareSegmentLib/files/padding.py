"""Regions of a CT in which nothing was measured: padding, masks, blank slices, all of one value.

A scanner's values waver from voxel to voxel in any tissue. Where a voxel and its eight neighbors in the plane all have
the same value that is not far below that of tissue, a program has written it: resampling, registration, a crop that
was enlarged, a body or face mask. A network takes such a region for a large smooth organ.
"""

from __future__ import annotations

import numpy as np

from FlareSegmentLib.volume import Volume

AIR_HU = -1000
_DARK_HU = -400.0  # what is padded with less looks like air already
_SAMPLES = (128, 64, 64)
_LEAST_SHARE = 5e-5  # of the sample
_LEAST_COUNT = 3
_OUTER_SHARE, _INNER_SHARE = 0.1, 0.5  # of a plane, for the largest value: bone and metal are cut off there, too
_NEARLY_HU, _FEW = 50.0, 0.05
_SLAB_VOXELS = 1 << 24


def without_padding(volume: Volume) -> tuple[Volume, list[str]]:
    """The CT with air where a program has written one constant value.

    What is padded with the lowest value, or with less than tissue has, stays as it is: that is air to a network.

    Returns:
        The same volume, or one with other voxels, and warnings for the user.
    """
    if volume.array.dtype.kind not in "if":
        return volume, []
    values = _constant_values(volume.array)
    if not values:
        return volume, []
    array, warnings = volume.array.copy(), []
    air = max(AIR_HU, np.iinfo(array.dtype).min) if array.dtype.kind == "i" else AIR_HU
    for value in values:
        share = _replace_regions(array, value, air) / array.size
        if share:
            percent = f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.2g}"
            warnings.append(
                f"{percent} % of the scan has the constant value {value:g}: padding or a mask, not tissue. It was "
                "treated as air."
            )
    return volume.with_array(array), warnings


def _constant_values(array: np.ndarray) -> list[float]:
    """The values of constant regions that could pass for tissue, found on a sample of the voxels."""
    if min(array.shape[1:]) < 3:
        return []
    places = [_places(size, count, rim) for size, count, rim in zip(array.shape, _SAMPLES, (0, 1, 1))]
    center = array[np.ix_(*places)]
    same = np.ones(center.shape, bool)
    for row, column in ((0, 1), (1, 0), (1, 1), (-1, 1), (0, -1), (-1, 0), (-1, -1), (1, -1)):
        same &= array[np.ix_(places[0], places[1] + row, places[2] + column)] == center
    found, counts = np.unique(center[same & (center > _DARK_HU)], return_counts=True)
    lowest, highest = center.min(), center.max()
    enough = counts >= max(_LEAST_COUNT, _LEAST_SHARE * center.size)
    return [
        float(value)
        for value in found[enough]
        if np.isfinite(value) and value > lowest and (value < highest or _is_written(center, same & (center == value)))
    ]


def _places(size: int, count: int, rim: int) -> np.ndarray:
    """Indices along an axis, its ends among them; `rim` voxels at both ends are left out."""
    return np.unique(np.linspace(rim, size - 1 - rim, min(count, size - 2 * rim)).round().astype(int))


def _is_written(sample: np.ndarray, constant: np.ndarray) -> bool:
    """Whether the largest value of a sample was written, rather than measured and cut off: then it fills planes, or
    hardly anything is nearly as large.
    """
    value = float(sample.max())
    nearly = sample > value - max(_NEARLY_HU, 0.25 * (value - 300))
    if np.count_nonzero(nearly & (sample < value)) < _FEW * np.count_nonzero(constant):
        return True
    for axis in range(3):
        shares = constant.mean(axis=tuple(other for other in range(3) if other != axis))
        if max(shares[0], shares[-1]) >= _OUTER_SHARE or shares.max() >= _INNER_SHARE:
            return True
    return False


def _replace_regions(array: np.ndarray, value: float, air: float) -> int:
    """Write air over regions of the value that hold a square of 3 x 3 voxels in a plane; returns how many voxels."""
    count = 0
    thickness = max(1, _SLAB_VOXELS // (array.shape[1] * array.shape[2]))
    for start in range(0, len(array), thickness):
        slab = array[start : start + thickness]
        region = slab == value
        if not region.any():
            continue
        for combine in (np.logical_and, np.logical_or):  # erosion, then dilation
            for axis in (1, 2):
                moved = np.moveaxis(region, axis, 0)
                before = moved.copy()
                combine(moved[1:], before[:-1], out=moved[1:])
                combine(moved[:-1], before[1:], out=moved[:-1])
        region &= slab == value
        slab[region] = air
        count += int(np.count_nonzero(region))
    return count
