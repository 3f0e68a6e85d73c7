"""Kinds of CT that the bundled model is bad at, made from real ones. In those, the stored x runs from side to side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from scipy import ndimage

from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.volume import Volume

STREAK_HU, STREAK_MM = 140.0, 25.0
GRAIN_HU, GRAIN_MM = 160.0, 1.2


def streaked(volume: Volume, seed: int) -> Volume:
    """With horizontal streaks of photon starvation, as in low-dose scans of wide patients or with arms at the side:
    noise of STREAK_HU, drawn out over STREAK_MM from side to side.
    """
    noise = np.random.default_rng(seed).normal(0.0, 1.0, volume.array.shape)
    return _with_noise(volume, ndimage.gaussian_filter(noise, [0.0, 0.8, STREAK_MM / volume.spacing[0]]), STREAK_HU)


def grainy(volume: Volume, seed: int) -> Volume:
    """With grain, as a low dose gives it: noise of GRAIN_HU, smoothed over GRAIN_MM."""
    noise = np.random.default_rng(seed).normal(0.0, 1.0, volume.array.shape)
    return _with_noise(
        volume, ndimage.gaussian_filter(noise, [GRAIN_MM / step for step in volume.spacing[::-1]]), GRAIN_HU
    )


KINDS: Mapping[str, Callable[[Volume, int], Volume]] = {"streaks": streaked, "grain": grainy}


def read_case(data: Path, name: str, kind: str | None = None) -> tuple[Volume, np.ndarray]:
    """A case's CT, changed to a kind or as it is, and its labels."""
    file = next(data.glob(f"*/{name}_ct.nii.gz"))
    volume, labels = read_volume(file)[0], read_labels(file.with_name(f"{name}_labels.nii.gz")).array
    return KINDS[kind](volume, sum(map(ord, name))) if kind else volume, labels


def _with_noise(volume: Volume, noise: np.ndarray, standard_deviation: float) -> Volume:
    array = np.rint(volume.array + noise * (standard_deviation / noise.std()))
    return volume.with_array(np.clip(array, -1024, 3071).astype(np.int16))
