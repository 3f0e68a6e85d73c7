"""What the table of results says about each organ: volume, density, and whether the scan cuts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from .organs import ORGANS, Organ
from .volume import Volume


def organ_statistics(volume: Volume, labels: np.ndarray, organs: Sequence[Organ] = ORGANS) -> dict[str, dict[str, Any]]:
    """Measure every organ of a label map.

    Args:
        volume: the CT, in HU.
        labels: (z, y, x) integers on the CT's grid.
        organs: what to measure; their labels are the label map's values.

    Returns:
        {organ key: {"label", "found", "volume_ml", "mean_hu", "sd_hu", "touches_border"}}. ``touches_border`` says that
        the organ reaches the first or last voxel of the scan along an axis, so that its volume may be too small. An
        organ that is not there has a volume of 0 and None for its HU.

    Raises:
        ValueError: the label map does not have the CT's shape.
    """
    if labels.shape != volume.array.shape:
        raise ValueError(f"the labels' shape {labels.shape} is not the volume's, {volume.array.shape}")
    boxes = find_objects(labels, max(organ.label for organ in organs))
    result = {}
    for organ in organs:
        box = boxes[organ.label - 1]
        values = np.zeros(0) if box is None else volume.array[box][labels[box] == organ.label]
        found = values.size > 0
        result[organ.key] = {
            "label": organ.label,
            "found": found,
            "volume_ml": values.size * volume.voxel_volume_ml,
            "mean_hu": float(values.mean(dtype=float)) if found else None,
            "sd_hu": float(values.std(dtype=float)) if found else None,
            "touches_border": box is not None and touches_border(box, labels.shape),
        }
    return result


def touches_border(box: tuple[slice, ...], shape: tuple[int, ...]) -> bool:
    """Whether a box of slices reaches the first or last voxel of an array of the given shape along any axis."""
    return any(extent.start == 0 or extent.stop == n for extent, n in zip(box, shape))
