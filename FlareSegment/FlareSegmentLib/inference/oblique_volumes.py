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
    place = _place_of(volume, straight, box)
    rest = np.ones(result[place].shape, np.float32)
    best = np.zeros_like(rest)
    for organ in organs:
        mask = labels == organ.label
        if not mask.any():
            continue
        share = _on_part(volume, place, straight, mask.astype(np.float32), 0.0)
        result[place][share > best] = organ.label
        np.maximum(best, share, out=best)
        rest -= share
    result[place][rest >= best] = 0
    return result


def values_on_grid_of(
    volume: Volume, straight: Volume, array: np.ndarray, box: tuple[slice, ...], outside: int
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Values (uint8) in a box of the straightened grid on the volume's own, interpolated linearly, and their box there.

    outside: of what lies outside the box.
    """
    if not array.size:
        return array, box
    place = _place_of(volume, straight, box)
    return _on_part(volume, place, straight.part(box), array, outside), place


def _place_of(volume: Volume, straight: Volume, box: tuple[slice, ...]) -> tuple[slice, ...]:
    """The box of the volume's grid around a box of the straightened one."""
    corners = np.array(
        [[(s.start - 1, s.stop)[bit] for s, bit in zip(box[::-1], bits)] + [1] for bits in np.ndindex(2, 2, 2)],
        float,
    )
    indices = (np.linalg.inv(volume.affine_lps) @ straight.affine_lps @ corners.T)[:3]
    size = np.array(volume.array.shape[::-1])
    low = np.clip(np.floor(indices.min(axis=1)), 0, size - 1).astype(int)
    high = np.clip(np.ceil(indices.max(axis=1)) + 1, low + 1, size).astype(int)
    return tuple(slice(a, b) for a, b in zip(low[::-1].tolist(), high[::-1].tolist()))


def _on_part(volume: Volume, place: tuple[slice, ...], source: Volume, array: np.ndarray, outside: float) -> np.ndarray:
    """An array of the source's grid on a part of the volume's, interpolated linearly."""
    part = volume.part(place)
    return sitk.GetArrayFromImage(
        sitk.Resample(
            _image_of(source, array),
            part.array.shape[::-1],
            sitk.Transform(),
            sitk.sitkLinear,
            part.origin,
            part.spacing,
            part.direction.ravel().tolist(),
            outside,
        )
    )


def _image_of(volume: Volume, array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.ravel().tolist())
    return image
