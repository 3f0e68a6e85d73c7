"""A patient of ellipsoids with fat, bones and noise, and a network that is sure of him only where he lies right."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from test_pipeline import BODY_HU, ORGAN_HU, AnatomyNetwork, FakeModel

from FlareSegmentLib.model.description import Stage
from FlareSegmentLib.volume import Volume

COARSE_KNOWING = Stage("coarse", "volume", {}, (8.0, 8.0, 8.0))
FINE_KNOWING = Stage("fine", "organs", {}, (5.0, 5.0, 5.0), margin_mm=10.0)
ORGANS_AT = (
    (1, (-60, -25, 50), (60, 55, 50)),
    (2, (-60, 50, -70), (25, 22, 38)),
    (3, (60, 50, -62), (25, 22, 38)),
    (4, (85, 25, 55), (28, 34, 40)),
)
"""Label, center and radii (LPS, mm)."""


class KnowingNetwork(AnatomyNetwork):
    """As AnatomyNetwork, but sure only of a patient whose bright mass lies as in ORGANS_AT."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = super().forward(x)
        bright = (x[0, 0] > ((BODY_HU + ORGAN_HU) / 2 + 200) / 250 - 1) & (x[0, 0] < 0.9)
        return scores if self.lies_right(bright) else scores * 0.03

    @staticmethod
    def lies_right(bright: torch.Tensor) -> bool:
        hit = torch.nonzero(bright).float()
        if len(hit) < 50:
            return True
        middle = (hit.amin(dim=0) + hit.amax(dim=0)) / 2
        upper = hit[hit[:, 0] > middle[0]]
        lower = hit[hit[:, 0] <= middle[0]]
        if not len(lower) or not len(upper):
            return True
        liver_right = (upper[:, 2] < middle[2]).float().mean() > 0.5
        return bool(len(upper) > len(lower) and liver_right and lower[:, 1].mean() > upper[:, 1].mean())


class KnowingModel(FakeModel):
    """A FakeModel of KnowingNetworks."""

    def __init__(self, *stages: Stage) -> None:
        super().__init__(*stages, kind=KnowingNetwork)


@cache
def scan_of_patient(spacing: float = 6.0) -> tuple[Volume, np.ndarray]:
    """CT of the patient, and his labels (z, y, x)."""
    limits = np.array([[-170, 170], [-130, 130], [-160, 160]])
    x, y, z = (np.arange(low, high + 1, spacing) for low, high in limits)
    points = np.stack(np.meshgrid(z, y, x, indexing="ij")[::-1], axis=-1)

    def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return (((points - center) / radii) ** 2).sum(axis=-1) < 1

    hounsfield = np.full(points.shape[:-1], -1000.0)
    hounsfield[ellipsoid((0, 0, 0), (165, 120, 500))] = -100
    hounsfield[ellipsoid((0, 0, 0), (145, 100, 500))] = BODY_HU + 20
    hounsfield[ellipsoid((0, 75, 0), (20, 20, 500))] = 700
    labels = np.zeros(hounsfield.shape, np.uint8)
    for label, center, radii in ORGANS_AT:
        inside = ellipsoid(center, radii)
        hounsfield[inside], labels[inside] = ORGAN_HU, label
    noise = np.random.default_rng(0).normal(0, 8, hounsfield.shape)
    array = np.rint(hounsfield + noise).astype(np.int16)
    return Volume(array, (spacing,) * 3, tuple(limits[:, 0].astype(float))), labels
