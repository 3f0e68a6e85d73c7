"""The confidence of a result over its CT in the slice views.

It is in the scene only as long as it is shown, as a volume that is not saved. What the slices showed before is kept
with the slices themselves: they get it back when the confidence is hidden, and when a scene is loaded that was saved
meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import slicer
import vtk

from FlareSegmentSlicerLib.scene import segmentation_nodes
from FlareSegmentSlicerLib.scene.organ_labels import KeptConfidence

_RESULT_ROLE = "FlareSegmentConfidenceOf"
_OBSERVERS = "FlareSegment.Observers"
_BEFORE_ROLE = "FlareSegmentForegroundBefore"
_BEFORE = "FlareSegment.ForegroundBefore"
_COLORS = "vtkMRMLColorTableNodeRainbow"
_SHOWN_BELOW_PERCENT = 95
_COLORED_FROM_PERCENT = 50
_OPACITY = 0.6


def overlay(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The volume that shows the confidence, if it is shown."""
    if segmentationNode is None:
        return None
    return next((node for node in _overlays() if node.GetNodeReference(_RESULT_ROLE) is segmentationNode), None)


def show(segmentationNode: slicer.vtkMRMLSegmentationNode, confidence: KeptConfidence) -> None:
    """Show the confidence over the CT in all slices: percent, red up to 50, blue at 95, and nothing above."""
    hide(segmentationNode)
    volume = segmentation_nodes.reference_volume(segmentationNode)
    if volume is None or not confidence.data or any(extent.stop == extent.start for extent in confidence.box):
        return
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"{volume.GetName()} confidence")
    node.SetHideFromEditors(True)
    node.SetSaveWithScene(False)
    node.SetNodeReferenceID(_RESULT_ROLE, segmentationNode.GetID())
    node.SetNodeReferenceID(segmentation_nodes.CT_ROLE, volume.GetID())
    slicer.util.updateVolumeFromArray(node, confidence.percent())
    _keep_in_place(node, volume, [extent.start for extent in reversed(confidence.box)])
    node.CreateDefaultDisplayNodes()
    shown = node.GetDisplayNode()
    shown.SetSaveWithScene(False)
    shown.SetAndObserveColorNodeID(_COLORS)
    shown.SetAutoWindowLevel(False)
    shown.SetWindowLevelMinMax(_COLORED_FROM_PERCENT, 100)
    shown.SetAutoThreshold(False)
    shown.SetThreshold(0, _SHOWN_BELOW_PERCENT - 1)
    shown.SetApplyThreshold(True)
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetNodeReferenceID(_BEFORE_ROLE, composite.GetForegroundVolumeID())
        composite.SetAttribute(_BEFORE, json.dumps([node.GetID(), composite.GetForegroundOpacity()]))
        composite.SetForegroundVolumeID(node.GetID())
        composite.SetForegroundOpacity(_OPACITY)


def hide(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> None:
    """Take the confidence out of the scene; slices show again what they showed before."""
    node = overlay(segmentationNode)
    if node is not None:
        _remove(node)


def hide_others(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> None:
    """Take the confidence of every other result out of the scene: nobody could tell whose it is."""
    for node in _overlays():
        if segmentationNode is None or node.GetNodeReference(_RESULT_ROLE) is not segmentationNode:
            _remove(node)


def hide_of(removed: slicer.vtkMRMLNode) -> None:
    """Take the confidence out of the scene that belongs to a result, or lies over a CT, about to be removed."""
    for node in _overlays():
        if removed in (node.GetNodeReference(_RESULT_ROLE), node.GetNodeReference(segmentation_nodes.CT_ROLE)):
            _remove(node)


def give_back_foregrounds() -> None:
    """Give slices of a scene that was saved with a confidence in them what they had before."""
    shown = [node.GetID() for node in _overlays()]
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetAttribute(_BEFORE) and composite.GetForegroundVolumeID() not in shown:
            _give_back(composite)


def _overlays() -> list[slicer.vtkMRMLScalarVolumeNode]:
    volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
    return [node for node in volumes if node.GetNodeReferenceID(_RESULT_ROLE)]


def _keep_in_place(
    node: slicer.vtkMRMLScalarVolumeNode, volume: slicer.vtkMRMLScalarVolumeNode, voxel: Sequence[int]
) -> None:
    """Let the node's first voxel lie on a voxel (i, j, k) of the volume, also when that is moved or transformed."""
    node_id = node.GetID()

    def follow(caller, event) -> None:
        follower = slicer.mrmlScene.GetNodeByID(node_id)
        if follower is None:
            return
        matrix = vtk.vtkMatrix4x4()
        caller.GetIJKToRASMatrix(matrix)
        corner = matrix.MultiplyPoint([*(float(index) for index in voxel), 1.0])
        for row in range(3):
            matrix.SetElement(row, 3, corner[row])
        follower.SetIJKToRASMatrix(matrix)
        follower.SetAndObserveTransformNodeID(caller.GetTransformNodeID())

    follow(volume, None)
    events = (vtk.vtkCommand.ModifiedEvent, slicer.vtkMRMLTransformableNode.TransformModifiedEvent)
    node.SetAttribute(_OBSERVERS, json.dumps([volume.AddObserver(event, follow) for event in events]))


def _remove(node: slicer.vtkMRMLScalarVolumeNode) -> None:
    volume = node.GetNodeReference(segmentation_nodes.CT_ROLE)
    if volume is not None:
        for observer in json.loads(node.GetAttribute(_OBSERVERS)):
            volume.RemoveObserver(observer)
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        if composite.GetAttribute(_BEFORE):
            _give_back(composite)
    slicer.mrmlScene.RemoveNode(node)


def _give_back(composite: slicer.vtkMRMLSliceCompositeNode) -> None:
    """Let a slice show again what it showed before the confidence, unless somebody has chosen another volume since."""
    confidence_id, opacity = json.loads(composite.GetAttribute(_BEFORE))
    if composite.GetForegroundVolumeID() in (confidence_id, None, ""):
        before = composite.GetNodeReference(_BEFORE_ROLE)
        composite.SetForegroundVolumeID(before.GetID() if before is not None else None)
        composite.SetForegroundOpacity(opacity)
    composite.RemoveNodeReferenceIDs(_BEFORE_ROLE)
    composite.RemoveAttribute(_BEFORE)
