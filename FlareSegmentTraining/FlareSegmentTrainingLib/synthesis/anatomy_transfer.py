"""New patients out of few: a labeled CT deformed so that its organs take the shapes and places of another person's.

Expert label maps without images say how organs vary between people; a few CTs say what tissue looks like. Registering
the CT's organs to such a label map and moving CT and labels along gives real texture on expert anatomy. The labels of
the result are the CT's own, deformed with it, so an imperfect registration costs variety and never correctness.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import distance_transform_edt

REACH_MM = 40.0
"""Distances to an organ's surface are clipped here: farther away an organ does not pull."""


@dataclass(frozen=True)
class TransferSettings:
    """How a registration proceeds.

    Attributes:
        control_points: (z, y, x) numbers of control points of each refinement of the displacement.
        iterations: gradient steps for each refinement.
        stiffness: weight of the displacement's second differences.
    """

    control_points: tuple[tuple[int, int, int], ...] = ((5, 6, 6), (9, 11, 11), (15, 18, 18))
    iterations: int = 60
    stiffness: float = 0.02


def signed_distances(labels: np.ndarray, organs: list[int], spacing_mm: float) -> torch.Tensor:
    """Return (organ, z, y, x) signed distances to the organs' surfaces in units of `REACH_MM`, negative inside."""
    maps = []
    for label in organs:
        mask = labels == label
        outside = distance_transform_edt(~mask) if mask.any() else np.full(labels.shape, np.inf)
        signed = (outside - distance_transform_edt(mask)) * spacing_mm / REACH_MM
        maps.append(np.clip(signed, -1.0, 1.0))
    return torch.from_numpy(np.stack(maps).astype(np.float32))


def register(source: torch.Tensor, target: torch.Tensor, settings: TransferSettings | None = None) -> torch.Tensor:
    """Return the map that carries the source's organs onto the target's.

    Args:
        source: (organ, z, y, x) signed distances of the labeled CT.
        target: the same organs of the label map, on a grid of the same spacing and any extent.

    Returns:
        (z, y, x, 3) source voxel coordinates (z, y, x) of each voxel of the target's grid.
    """
    settings = settings or TransferSettings()
    shape = target.shape[1:]
    base = _affine_start(source, target)
    weights = torch.exp(-4.0 * target.abs())
    weights = weights / weights.sum(dim=(1, 2, 3), keepdim=True)
    scale = (torch.tensor(source.shape[1:]) - 1) / 2.0
    displacement = torch.zeros((1, 3, *settings.control_points[0]))
    for points in settings.control_points:
        displacement = F.interpolate(displacement, size=points, mode="trilinear", align_corners=True)
        displacement = displacement.detach().requires_grad_()
        optimizer = torch.optim.Adam([displacement], lr=0.4)
        for _ in range(settings.iterations):
            field = F.interpolate(displacement, size=shape, mode="trilinear", align_corners=True)[0]
            coordinates = base + field.permute(1, 2, 3, 0)
            moved = F.grid_sample(
                source[None],
                (coordinates / scale - 1.0).flip(-1)[None],
                mode="bilinear",
                padding_mode="border",
                align_corners=True,
            )[0]
            misfit = ((moved - target).square() * weights).sum()
            bending = sum(torch.diff(displacement, n=2, dim=axis).square().mean() for axis in (2, 3, 4))
            loss = misfit + settings.stiffness * bending
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        field = F.interpolate(displacement, size=shape, mode="trilinear", align_corners=True)[0]
        return base + field.permute(1, 2, 3, 0)


def _affine_start(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Shift and zoom each axis so that the organs' common extent agrees."""
    limits = []
    for distances in (source, target):
        inside = (distances < 0).any(dim=0).nonzero().float()
        limits.append((inside.mean(dim=0), inside.std(dim=0)))
    (source_mean, source_spread), (target_mean, target_spread) = limits
    zoom = (source_spread / target_spread).clamp(0.7, 1.4)
    grid = torch.stack(
        torch.meshgrid(*(torch.arange(count, dtype=torch.float32) for count in target.shape[1:]), indexing="ij"), dim=-1
    )
    return source_mean + (grid - target_mean) * zoom


def deform(
    image: torch.Tensor, labels: torch.Tensor, coordinates: torch.Tensor, refinement: float, outside: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply a map to a CT and its labels that may be finer than the grid the map was found on.

    Args:
        image, labels: (z, y, x), voxels `refinement` times smaller than those of the coordinates.
        coordinates: from `register`.
        outside: intensity where the map leaves the image.

    Returns:
        (image, labels) with voxels `refinement` times smaller than those of the coordinates' grid.
    """
    shape = [round(count * refinement) for count in coordinates.shape[:3]]
    fine = F.interpolate(coordinates.permute(3, 0, 1, 2)[None], size=shape, mode="trilinear", align_corners=False)
    fine = (fine[0].permute(1, 2, 3, 0) + 0.5) * refinement - 0.5
    normalized = ((2.0 * fine + 1.0) / torch.tensor(image.shape) - 1.0).flip(-1)[None]
    moved = F.grid_sample((image - outside)[None, None], normalized, mode="bilinear", align_corners=False)[0, 0]
    truth = F.grid_sample(labels.float()[None, None], normalized, mode="nearest", align_corners=False)[0, 0]
    return moved + outside, truth.to(labels.dtype)
