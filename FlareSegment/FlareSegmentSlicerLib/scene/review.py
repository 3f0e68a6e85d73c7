"""Where a person should look first in a result, which of these places looked right, and the confidence in the views.

The places are an attribute of the segmentation node and are saved with the scene; of one that looked right the day is
kept, and nobody's name. The confidence is in the scene only as long as it is shown, as a volume that is not saved.
"""

from __future__ import annotations

import datetime
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk

from FlareSegmentSlicerLib.scene import display, segmentation_nodes

PLACES = "Places"
REVIEWED = "reviewed"
_OVERLAY_ROLE = "FlareSegmentConfidence"
_BEFORE = "FlareSegment.ForegroundBefore"
_COLORS = "vtkMRMLColorTableNodeRainbow"
_SHOWN_BELOW_PERCENT = 95
_COLORED_FROM_PERCENT = 50
_OPACITY = 0.6


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


def moved(found: Sequence[dict[str, Any]], first: Sequence[int]) -> list[dict[str, Any]]:
    """Places of a part of the CT that begins at `first`, (z, y, x), in the CT."""
    return [
        {
            **place,
            "center": place["center"]
            and [value + n for value, n in zip(place["center"], reversed(first), strict=True)],
            "box": place["box"] and [[a + n, b + n] for (a, b), n in zip(place["box"], first, strict=True)],
        }
        for place in found
    ]


def places(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> list[dict[str, Any]]:
    """The places of a result (`review_places.Place` as dictionaries), worst first; "reviewed" is the day (ISO) on which
    one looked right.
    """
    return segmentation_nodes.read_description(segmentationNode).get(PLACES, [])


def set_reviewed(segmentationNode: slicer.vtkMRMLSegmentationNode, index: int, reviewed: bool) -> None:
    """Keep that a place looks right, with today's date, or that it does not."""
    changed = places(segmentationNode)
    changed[index][REVIEWED] = datetime.date.today().isoformat() if reviewed else None
    segmentation_nodes.set_fact(segmentationNode, PLACES, changed)


def jump_to(segmentationNode: slicer.vtkMRMLSegmentationNode, place: dict[str, Any]) -> None:
    """Center all views, and the crosshair, on a place; without a place in the scan nothing moves."""
    volume = segmentation_nodes.reference_volume(segmentationNode)
    if volume is None or not place.get("center"):
        return
    position = _in_world(volume, place["center"])
    display.jump_to(position)
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if crosshair is not None:
        crosshair.SetCrosshairRAS(position)


def _in_world(volume: slicer.vtkMRMLScalarVolumeNode, voxel: Sequence[float]) -> list[float]:
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    world = [0.0, 0.0, 0.0]
    volume.TransformPointToWorld(matrix.MultiplyPoint([*voxel, 1.0])[:3], world)
    return world


def overlay(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The volume that shows the confidence, if it is shown.

    A scene that was saved meanwhile still names it; another volume may have got its ID since.
    """
    node = segmentationNode.GetNodeReference(_OVERLAY_ROLE) if segmentationNode is not None else None
    return node if node is not None and node.GetAttribute(_BEFORE) else None


def show_confidence(segmentationNode: slicer.vtkMRMLSegmentationNode, confidence: KeptConfidence) -> None:
    """Show the confidence over the CT in all slices: percent, red up to 50, blue at 95, and nothing above."""
    hide_confidence(segmentationNode)
    volume = segmentation_nodes.reference_volume(segmentationNode)
    if volume is None or not confidence.data or any(extent.stop == extent.start for extent in confidence.box):
        return
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{volume.GetName()} confidence")
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    slicer.util.updateVolumeFromArray(node, confidence.percent())
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    corner = matrix.MultiplyPoint([*(float(extent.start) for extent in reversed(confidence.box)), 1.0])
    for row in range(3):
        matrix.SetElement(row, 3, corner[row])
    node.SetIJKToRASMatrix(matrix)
    node.SetAndObserveTransformNodeID(volume.GetTransformNodeID())
    node.CreateDefaultDisplayNodes()
    shown = node.GetDisplayNode()
    shown.SetSaveWithScene(False)
    shown.SetAndObserveColorNodeID(_COLORS)
    shown.SetAutoWindowLevel(False)
    shown.SetWindowLevelMinMax(_COLORED_FROM_PERCENT, 100)
    shown.SetAutoThreshold(False)
    shown.SetThreshold(0, _SHOWN_BELOW_PERCENT - 1)
    shown.SetApplyThreshold(True)
    segmentationNode.SetNodeReferenceID(_OVERLAY_ROLE, node.GetID())
    before = {}
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        before[composite.GetID()] = [composite.GetForegroundVolumeID(), composite.GetForegroundOpacity()]
        composite.SetForegroundVolumeID(node.GetID())
        composite.SetForegroundOpacity(_OPACITY)
    node.SetAttribute(_BEFORE, json.dumps(before))


def hide_confidence(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> None:
    """Take the confidence out of the scene; slices show again what they showed before."""
    node = overlay(segmentationNode)
    if node is None:
        return
    before = json.loads(node.GetAttribute(_BEFORE) or "{}")
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetForegroundVolumeID() == node.GetID():
            volume, opacity = before.get(composite.GetID(), (None, 0.0))
            there = volume is not None and slicer.mrmlScene.GetNodeByID(volume) is not None
            composite.SetForegroundVolumeID(volume if there else None)
            composite.SetForegroundOpacity(opacity)
    segmentationNode.RemoveNodeReferenceIDs(_OVERLAY_ROLE)
    slicer.mrmlScene.RemoveNode(node)


def hide_confidence_of_others(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> None:
    """Take the confidence of every other result out of the scene: nobody could tell whose it is."""
    for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
        if node is not segmentationNode:
            hide_confidence(node)
