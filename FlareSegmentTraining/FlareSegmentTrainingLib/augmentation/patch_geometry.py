"""What the augmentations share: rotations, and masks that grow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def rotation(about_z: float, about_y: float, about_x: float) -> np.ndarray:
    """The 3x3 matrix that turns (z, y, x) offsets in mm about x, then y, then z; angles in radians."""
    matrix = np.eye(3)
    for angle, (first, second) in ((about_z, (1, 2)), (about_y, (0, 2)), (about_x, (0, 1))):
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def grown(mask: torch.Tensor, reach: Sequence[int] = (1, 1, 1)) -> torch.Tensor:
    """The mask (z, y, x) and all within so many voxels of it along each axis, also across corners."""
    extent = [2 * voxels + 1 for voxels in reach]
    return F.max_pool3d(mask.float()[None, None], extent, stride=1, padding=list(reach))[0, 0] > 0
