"""Cases as training reads them: LPS axes, one isotropic spacing, intensities in -1 ... 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import SimpleITK
import torch
from FlareSegmentLib.model_file import Intensity
from FlareSegmentLib.organs import ORGANS

from .cases import Case


@dataclass(frozen=True)
class PreparedCase:
    """A case on a stage's grid.

    Attributes:
        image: (z, y, x) float32 in -1 ... 1.
        labels: (z, y, x) uint8.
        weights: organ key -> weight of its labels in the loss.
        organ_voxels: one (n, 3) array of (z, y, x) voxels for each organ present.
        sampling_weight: how often the case is drawn, relative to the others.
    """

    name: str
    image: torch.Tensor
    labels: torch.Tensor
    weights: dict[str, float]
    organ_voxels: list[np.ndarray]
    sampling_weight: float


def prepare_case(case: Case, spacing_mm: float, intensity: Intensity) -> PreparedCase:
    """Read, reorient to LPS and resample a case; labels by the largest share of each organ (linear, then majority)."""
    image = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(case.image), SimpleITK.sitkFloat32), "LPS")
    labels = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(case.labels), SimpleITK.sitkUInt8), "LPS")
    reference = _grid(image, spacing_mm)
    array = SimpleITK.GetArrayFromImage(_resample(image, reference, default=-1024.0))
    scaled = (np.clip(array, intensity.lower, intensity.upper) - intensity.lower) / (intensity.upper - intensity.lower)
    best = np.full(array.shape, 0.5, np.float32)
    truth = np.zeros(array.shape, np.uint8)
    for organ in ORGANS:
        mask = SimpleITK.Cast(labels == organ.label, SimpleITK.sitkFloat32)
        share = SimpleITK.GetArrayFromImage(_resample(mask, reference, default=0.0))
        chosen = share >= best
        truth[chosen] = organ.label
        best = np.maximum(best, share)
    voxels = [np.argwhere(truth == organ.label) for organ in ORGANS]
    voxels = [v for v in voxels if len(v)]
    return PreparedCase(
        case.name,
        torch.from_numpy(np.ascontiguousarray(2.0 * scaled - 1.0, dtype=np.float32)),
        torch.from_numpy(truth),
        case.weights,
        voxels,
        sampling_weight=0.25 + sum(case.weights[organ.key] for organ in ORGANS if (truth == organ.label).any()) / 4,
    )


def _grid(image: SimpleITK.Image, spacing_mm: float) -> SimpleITK.Image:
    extent = np.array(image.GetSize()) * np.array(image.GetSpacing())
    size = np.maximum(1, np.round(extent / spacing_mm)).astype(int)
    reference = SimpleITK.Image(size.tolist(), SimpleITK.sitkUInt8)
    reference.SetSpacing([spacing_mm] * 3)
    reference.SetDirection(image.GetDirection())
    offset = [0.5 * (spacing_mm / s - 1) for s in image.GetSpacing()]
    reference.SetOrigin(image.TransformContinuousIndexToPhysicalPoint(offset))
    return reference


def _resample(image: SimpleITK.Image, reference: SimpleITK.Image, default: float) -> SimpleITK.Image:
    """Linear interpolation after a Gaussian that removes what the coarser grid cannot hold."""
    for axis, (fine, coarse) in enumerate(zip(image.GetSpacing(), reference.GetSpacing())):
        if coarse > 1.1 * fine:
            sigma = 0.4 * np.sqrt(coarse**2 - fine**2)
            image = SimpleITK.RecursiveGaussian(image, sigma=float(sigma), direction=axis)
    return SimpleITK.Resample(image, reference, SimpleITK.Transform(), SimpleITK.sitkLinear, default)
