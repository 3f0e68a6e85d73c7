"""Hounsfield units to network input: the one mapping that training and inference share.

Two steps. `window` clips HU and maps them to -1 ... 1; resampling, padding (with `AIR`) and augmentation work on that.
`network_input` then gives a network what it was trained on: -1 ... 1 as it is, another range such as 0 ... 1, or zero
mean and unit variance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AIR = -1.0
"""Windowed intensity of air and of everything outside the scan."""


@dataclass(frozen=True)
class Intensity:
    """What a network's input means.

    Attributes:
        lower, upper: Hounsfield units at the ends of the window; values beyond are clipped.
        output: values that `lower` and `upper` become.
        standardize: afterwards shift and scale each input, padding included, to mean 0 and variance 1 (z-score).
    """

    lower: float
    upper: float
    output: tuple[float, float] = (-1.0, 1.0)
    standardize: bool = False


def window(hounsfield, intensity: Intensity):
    """Map HU linearly to -1 (`lower` and below) ... 1 (`upper` and above); a floating point array or tensor of any
    shape.
    """
    scale = 2.0 / (intensity.upper - intensity.lower)
    return (hounsfield.clip(intensity.lower, intensity.upper) - intensity.lower) * scale - 1.0


def network_input(windowed, intensity: Intensity):
    """Turn one windowed image, -1 ... 1, into the network's values; an array or tensor of any shape, taken as one
    image.
    """
    low, high = intensity.output
    if (low, high) != (-1.0, 1.0):
        windowed = (windowed + 1.0) * (0.5 * (high - low)) + low
    if intensity.standardize:
        centered = windowed - windowed.mean()
        deviation = float((centered * centered).mean()) ** 0.5
        windowed = centered / max(deviation, 1e-6)
    return windowed


def body_box(hounsfield: np.ndarray, intensity: Intensity) -> tuple[slice, slice, slice]:
    """Return the smallest box, as slices of the (z, y, x) array, of all voxels above the window's lower end; all when
    there is none.
    """
    above = hounsfield > intensity.lower
    box: list[slice] = []
    for axis in range(3):
        hit = np.flatnonzero(above.any(axis=tuple(other for other in range(3) if other != axis)))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, hounsfield.shape[axis]))
    return box[0], box[1], box[2]
