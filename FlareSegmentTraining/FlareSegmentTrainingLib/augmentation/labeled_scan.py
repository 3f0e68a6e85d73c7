"""A labeled scan in the making: what every change of a whole case is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from FlareSegmentLib.model.intensity import Intensity, window


@dataclass(frozen=True)
class LabeledScan:
    """A scan whose voxels are changed in place.

    Attributes:
        image: (z, y, x) windowed intensities, -1 ... 1, axes along LPS.
        labels: (z, y, x) uint8.
        spacing_mm: (x, y, z).
        organs: keys of the labels 1, 2, ...
        intensity: the window that was mapped to -1 ... 1.
        generator: all that varies is drawn from it.
    """

    image: torch.Tensor
    labels: torch.Tensor
    spacing_mm: Sequence[float]
    organs: Sequence[str]
    intensity: Intensity
    generator: np.random.Generator

    @cached_property
    def spacing(self) -> np.ndarray:
        """(z, y, x), mm."""
        return np.asarray(self.spacing_mm, float)[::-1]

    def shade(self, hu: float) -> float:
        """Windowed intensity of a value in HU."""
        return float(window(np.float64(hu), self.intensity))
