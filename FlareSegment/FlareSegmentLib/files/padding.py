"""Regions of a CT in which nothing was measured: padding, masks, blank slices, all of one value.

A scanner's values waver from voxel to voxel in any tissue. Where a voxel and its eight neighbors in a plane all have
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
_LEAST_SHARE_OF_SCAN = 1e-4  # less is a speck, such as clipped values in bowel gas
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
    replaced = 0
    for value in values:
        before, replaced = replaced, _replace_regions(volume.array, array, value, air)
        share = (replaced - before) / array.size
        if share < _LEAST_SHARE_OF_SCAN:
            np.copyto(array, volume.array, where=volume.array == value)
            replaced = before
        else:
            percent = f"{100 * share:.0f}" if share >= 0.01 else f"{100 * share:.2g}"
            warnings.append(
                f"{percent} % of the scan has the constant value {value:g}: padding or a mask, not tissue. It was "
                "treated as air."
            )
    return (volume.with_array(array) if warnings else volume), warnings


def _constant_values(array: np.ndarray) -> list[float]:
    """The values of constant regions that could pass for tissue, found on a sample of the voxels of planes in all three
    directions: in which one a file stores its voxels does not matter.
    """
    samples = []
    for axis in range(3):
        planes = np.moveaxis(array, axis, 0)
        if min(planes.shape[1:]) >= 3:
            samples.append(_constant_in_planes(planes))
    written: list[float] = []
    # From above: where the padding is larger than the scan, the scan's own largest value comes next.
    for value in sorted({value for _, _, values in samples for value in values}, reverse=True):
        for sample, same, values in samples:
            if value in values and _is_no_measurement(value, sample, same, written):
                written.append(value)
                break
    return written[::-1]


def _constant_in_planes(planes: np.ndarray) -> tuple[np.ndarray, tuple[np.ndarray, ...], set[float]]:
    """A sample of planes (the first axis counts them), where its voxels have their neighbors' value, and the values
    that this happens to more often than by chance.
    """
    places = [_places(size, count, rim) for size, count, rim in zip(planes.shape, _SAMPLES, (0, 1, 1))]
    center = planes[np.ix_(*places)]
    same = np.nonzero(center > _DARK_HU)
    for row, column in ((0, 1), (1, 0), (1, 1), (-1, 1), (0, -1), (-1, 0), (-1, -1), (1, -1)):
        z, y, x = (axis[index] for axis, index in zip(places, same))
        kept = planes[z, y + row, x + column] == center[same]
        same = tuple(index[kept] for index in same)
    values, counts = np.unique(center[same], return_counts=True)
    enough = counts >= max(_LEAST_COUNT, _LEAST_SHARE * center.size)
    lowest = center.min()
    return center, same, {float(value) for value in values[enough] if np.isfinite(value) and value > lowest}


def _is_no_measurement(value: float, sample: np.ndarray, same: tuple[np.ndarray, ...], written: list[float]) -> bool:
    """Whether a constant value was written, where the values `written` are known to be."""
    measured = ~np.isin(sample, written)
    if value < sample[measured].max():
        return True
    constant = np.zeros(sample.shape, bool)
    constant[same] = sample[same] == value
    return _is_written(sample, measured, constant)


def _places(size: int, count: int, rim: int) -> np.ndarray:
    """Indices along an axis, its ends among them; `rim` voxels at both ends are left out."""
    return np.unique(np.linspace(rim, size - 1 - rim, min(count, size - 2 * rim)).round().astype(int))


def _is_written(sample: np.ndarray, measured: np.ndarray, constant: np.ndarray) -> bool:
    """Whether the largest value of the measured part of a sample was written, rather than measured and cut off: then it
    fills planes, or hardly anything is nearly as large.
    """
    value = float(sample[constant][0])
    nearly = measured & (sample > value - max(_NEARLY_HU, 0.25 * (value - 300)))
    if np.count_nonzero(nearly & (sample < value)) < _FEW * np.count_nonzero(constant):
        return True
    for axis in range(3):
        shares = constant.mean(axis=tuple(other for other in range(3) if other != axis))
        if max(shares[0], shares[-1]) >= _OUTER_SHARE or shares.max() >= _INNER_SHARE:
            return True
    return False


def _replace_regions(source: np.ndarray, array: np.ndarray, value: float, air: float) -> int:
    """Write air into `array` where `source` has the value in a square of 3 x 3 voxels of a plane in any direction.

    Returns:
        How many voxels that are.
    """
    for normal in range(3):
        planes, target = np.moveaxis(source, normal, 0), np.moveaxis(array, normal, 0)
        thickness = max(1, _SLAB_VOXELS // (planes.shape[1] * planes.shape[2]))
        for start in range(0, len(planes), thickness):
            slab = planes[start : start + thickness] == value
            if not slab.any():
                continue
            region = slab.copy()
            for combine in (np.logical_and, np.logical_or):  # erosion, then dilation
                for axis in (1, 2):
                    moved = np.moveaxis(region, axis, 0)
                    before = moved.copy()
                    combine(moved[1:], before[:-1], out=moved[1:])
                    combine(moved[:-1], before[1:], out=moved[:-1])
            target[start : start + thickness][region & slab] = air
    return sum(int(np.count_nonzero(new != old)) for new, old in zip(array, source))
