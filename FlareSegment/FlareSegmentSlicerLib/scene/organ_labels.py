"""What a segmentation found, before it is in the scene."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import vtk

from FlareSegmentLib.measures.organ_statistics import bounding_box


@dataclass(frozen=True)
class KeptConfidence:
    """The confidence of a result as the worker gave it, compressed: nearly all of it is the same.

    Attributes:
        data: zlib of (z, y, x) uint8, 255ths, in the box.
        box: (z, y, x) of the CT.
    """

    data: bytes
    box: tuple[slice, ...]

    def percent(self) -> np.ndarray:
        """(z, y, x) uint8 in the box, percent."""
        shape = [extent.stop - extent.start for extent in self.box]
        array = np.frombuffer(zlib.decompress(self.data), np.uint8).reshape(shape)
        return np.rint(np.arange(256) * (100 / 255)).astype(np.uint8)[array]


def shifted(box: Sequence[slice], first: Sequence[int]) -> tuple[slice, ...]:
    """A box of a part of the CT that begins at `first`, (z, y, x), in the CT."""
    return tuple(slice(extent.start + n, extent.stop + n) for extent, n in zip(box, first, strict=True))


@dataclass(frozen=True)
class OrganLabels:
    """What a segmentation found, on the grid of its CT.

    Attributes:
        array: (z, y, x) uint8 with the label values of `organs.FLARE22_ORGANS`, inside the box only.
        box: (z, y, x) where the array lies in the CT; everything outside is 0.
        organs: {organ key: facts of `organ_statistics`}; may be empty, then what is needed is measured.
        surfaces: {organ key: closed surface in the CT's own RAS}; may be empty, then Slicer makes them when needed.
        confidence: how sure the model is, where somebody asked.
    """

    array: np.ndarray
    box: tuple[slice, slice, slice]
    organs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    surfaces: Mapping[str, vtk.vtkPolyData] = field(default_factory=dict)
    confidence: KeptConfidence | None = None

    @staticmethod
    def of(labels: np.ndarray) -> OrganLabels:
        """Of a label map on the whole grid."""
        box = bounding_box(labels)
        return OrganLabels(labels[box], box)
