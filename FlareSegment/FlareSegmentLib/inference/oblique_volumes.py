"""CTs whose axes lie askew of the patient's: straightened for the networks, and labels brought back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.measures.organ_statistics import bounding_box
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume


def straighten(volume: Volume, outside: float) -> Volume:
    """The volume on a grid along the patient's axes, of about its own spacing."""
    view, _ = volume.to_lps_view()
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(view.array.shape[::-1]) - 1
    places = (view.affine_lps @ corners.T)[:3]
    origin, spacing = places.min(axis=1), np.array(view.spacing)
    size = np.ceil((places.max(axis=1) - origin) / spacing).astype(int) + 1
    moved = sitk.Resample(
        _image_of(volume, volume.array if volume.array.dtype == np.int16 else volume.array.astype(np.float32)),
        size.tolist(),
        sitk.Transform(),
        sitk.sitkLinear,
        origin.tolist(),
        spacing.tolist(),
        np.eye(3).ravel().tolist(),
        outside,
    )
    return Volume(sitk.GetArrayFromImage(moved), tuple(spacing), tuple(origin), np.eye(3), volume.name)


def labels_on_grid_of(volume: Volume, straight: Volume, labels: np.ndarray, organs: Sequence[Organ]) -> np.ndarray:
    """Labels of the straightened grid on the volume's own: shares are interpolated linearly, the largest wins."""
    result = np.zeros(volume.array.shape, np.uint8)
    box = bounding_box(labels)
    if not labels[box].size:
        return result
    corners = np.array(
        [[(s.start - 1, s.stop)[bit] for s, bit in zip(box[::-1], bits)] + [1] for bits in np.ndindex(2, 2, 2)],
        float,
    )
    indices = (np.linalg.inv(volume.affine_lps) @ straight.affine_lps @ corners.T)[:3]
    size = np.array(volume.array.shape[::-1])
    low = np.clip(np.floor(indices.min(axis=1)), 0, size - 1).astype(int)
    high = np.clip(np.ceil(indices.max(axis=1)) + 1, low + 1, size).astype(int)
    place = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1]))
    origin = (volume.affine_lps @ [*low, 1])[:3]
    rest = np.ones(result[place].shape, np.float32)
    best = np.zeros_like(rest)
    for organ in organs:
        mask = labels == organ.label
        if not mask.any():
            continue
        share = sitk.GetArrayFromImage(
            sitk.Resample(
                _image_of(straight, mask.astype(np.float32)),
                (high - low).tolist(),
                sitk.Transform(),
                sitk.sitkLinear,
                origin.tolist(),
                volume.spacing,
                volume.direction.ravel().tolist(),
                0.0,
            )
        )
        result[place][share > best] = organ.label
        np.maximum(best, share, out=best)
        rest -= share
    result[place][rest >= best] = 0
    return result


def _image_of(volume: Volume, array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.ravel().tolist())
    return image
