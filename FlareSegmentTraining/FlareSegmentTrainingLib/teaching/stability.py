"""What a model must not lose by being taught: made-up torsos, plain and as scanners and operators make them hard.

The scans that the bundled model was trained on are not shipped. These are made anew on every computer, voxel by voxel
the same, and the truth about their organs is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from FlareSegmentLib.model.intensity import Intensity, window
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.lumps import paint_bowel
from FlareSegmentTrainingLib.datasets.cases import FIRST_VALIDATION_PHANTOM, Case

_INTENSITY = Intensity(-200.0, 300.0)
_LOOPS = 6
_FIRST_SEED = FIRST_VALIDATION_PHANTOM + 1000  # away from those that a training validates on
_VERSION = 1

Scan = tuple[Volume, np.ndarray]


def _noisy(seed: int) -> Scan:
    volume, labels = make_phantom(seed)
    noise = np.random.default_rng(seed).normal(0.0, 60.0, labels.shape)
    return volume.with_array((volume.array + noise).round().astype(np.int16)), labels


def _with_bowel(seed: int) -> Scan:
    volume, labels = make_phantom(seed)
    before = window(volume.array.astype(np.float32), _INTENSITY).astype(np.float32)
    keys, generator = [organ.key for organ in ORGANS], np.random.default_rng(seed)
    scan = LabeledScan(
        torch.from_numpy(before.copy()), torch.from_numpy(labels), volume.spacing, keys, _INTENSITY, generator
    )
    for _ in range(_LOOPS):
        paint_bowel(scan)
    after = scan.image.numpy()
    hounsfield = (after + 1.0) * 0.5 * (_INTENSITY.upper - _INTENSITY.lower) + _INTENSITY.lower
    return volume.with_array(np.where(after != before, hounsfield, volume.array).astype(np.int16)), labels


_KINDS: Mapping[str, Callable[[int], Scan]] = {
    "phantom": make_phantom,
    "phantom-second": make_phantom,
    "phantom-noisy": _noisy,
    "phantom-bowel-contrast": _with_bowel,
    "phantom-thick-slices": lambda seed: make_phantom(seed, spacing=(2.0, 2.0, 5.0)),
    "phantom-cut-above": lambda seed: make_phantom(seed, z_range=(-125.0, 20.0)),
    "phantom-cut-below": lambda seed: make_phantom(seed, z_range=(-10.0, 140.0)),
}


@dataclass(frozen=True)
class MadeScan(Case):
    """A case of the stability set, made when it is read."""

    def read(self) -> tuple[Volume, np.ndarray, list[str]]:
        """As `Case.read`."""
        assert self.phantom_seed is not None
        return (*_KINDS[self.name](self.phantom_seed), [])

    def content_hash(self) -> str:
        """As `Case.content_hash`."""
        return hashlib.sha256(repr((_VERSION, self.name, self.phantom_seed)).encode()).hexdigest()


def stability_set() -> list[Case]:
    """The made-up scans on which a taught model is compared with the old one; none of them is ever learned."""
    known = {organ.key for organ in ORGANS}
    weights = {organ.key: float(organ.key in known) for organ in FLARE22_ORGANS}
    return [
        MadeScan(name, None, None, weights, phantom_seed=_FIRST_SEED + number) for number, name in enumerate(_KINDS)
    ]
