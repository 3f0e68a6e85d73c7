"""Rotations of patches and organs, for augmentation."""

from __future__ import annotations

import numpy as np


def rotation(about_z: float, about_y: float, about_x: float) -> np.ndarray:
    """The 3x3 matrix that turns (z, y, x) offsets in mm about x, then y, then z; angles in radians."""
    matrix = np.eye(3)
    for angle, (first, second) in ((about_z, (1, 2)), (about_y, (0, 2)), (about_x, (0, 1))):
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix
