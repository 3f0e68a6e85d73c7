"""Whether a CT's values are Hounsfield units: air, fat and muscle have known places on that scale."""

from __future__ import annotations

import numpy as np

NOISE_WORTH_A_WARNING_HU = 75.0

_BINS = np.arange(-4500.0, 4501.0, 20.0)
_CENTERS = (_BINS[:-1] + _BINS[1:]) / 2
_PARTS = ((0.30, -1000.0, 35.0), (0.20, -100.0, 30.0), (0.30, 50.0, 40.0), (0.05, 250.0, 150.0), (0.12, -750.0, 150.0))
"""Share, mean and standard deviation (HU) of air, fat, soft tissue, contrast medium with bone, and lung in a body."""
_ELSEWHERE = 0.03 / 9000.0  # share per HU of anything else
_SHIFTS = np.arange(-1500.0, 1501.0, 20.0)
_SLOPES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, -1.0)
_LEAST_SHIFT = 80.0
_LEAST_GAIN = 0.5  # of the mean logarithmic likelihood of a voxel
_TISSUE_HU = (-30.0, 200.0)


def scale_doubts(sample: np.ndarray) -> list[str]:
    """What speaks against the values of a sample of voxels being Hounsfield units.

    The histogram is compared with that of a body, shifted, scaled and inverted; the best fit tells by how much.
    """
    values = sample.ravel()
    lowest = values.min()
    if np.mean(values == lowest) > 0.01 and not -1100 < lowest < -900:  # padding
        values = values[values > lowest]
    counts = np.histogram(values, _BINS)[0]
    total = int(counts.sum())
    if not total:
        return []
    used = counts > 0
    shares, centers = counts[used] / total, _CENTERS[used]
    as_it_is = float(shares @ _log_density(centers))
    best = max(
        (
            float(shares @ _log_density((centers - shift) / slope)) - float(np.log(abs(slope))),
            slope,
            float(shift),
        )
        for slope in _SLOPES
        for shift in _SHIFTS
    )
    gain, slope, shift = best[0] - as_it_is, best[1], best[2]
    if gain < _LEAST_GAIN or (slope == 1.0 and abs(shift) < _LEAST_SHIFT):
        return []
    if slope == 1.0:
        off = f"shifted by about {shift:+.0f} HU"
    elif slope == -1.0:
        off = "inverted"
    else:
        off = f"scaled by about {slope:g}" + (
            f" and shifted by about {shift:+.0f}" if abs(shift) >= _LEAST_SHIFT else ""
        )
    return [
        f"The values seem to be {off}: air, fat and muscle are not at -1000, -100 and 50. Check that this is a CT in "
        "Hounsfield units."
    ]


def _log_density(hounsfield: np.ndarray) -> np.ndarray:
    density = np.full(hounsfield.shape, _ELSEWHERE)
    for share, mean, deviation in _PARTS:
        density += share / (deviation * 2.5066) * np.exp(-0.5 * ((hounsfield - mean) / deviation) ** 2)
    return np.log(density)


def noise_hu(array: np.ndarray) -> float:
    """Standard deviation of the noise in soft tissue, HU: the median difference of voxels beside each other."""
    if array.shape[2] < 2:
        return 0.0
    steps = [max(1, size // 64) for size in array.shape]
    one = array[:: steps[0], :: steps[1], :-1][:, :, :: steps[2]].astype(np.float32)
    other = array[:: steps[0], :: steps[1], 1:][:, :, :: steps[2]].astype(np.float32)
    middle = (one + other) / 2
    tissue = (middle > _TISSUE_HU[0]) & (middle < _TISSUE_HU[1])
    if np.count_nonzero(tissue) < 100:
        return 0.0
    return float(np.median(np.abs(one - other)[tissue])) / 0.6745 / 2**0.5
