"""How a result looks: surfaces, opacity, single organs, the CT behind them, and the way to an organ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import slicer

_SMOOTHING = "Smoothing factor"
_VOLUME_RENDERING_PRESET = "CT-Bones"


def smoothing(segmentationNode: slicer.vtkMRMLSegmentationNode) -> float:
    """Slicer's smoothing factor of the node's surfaces, 0 to 1."""
    return float(segmentationNode.GetSegmentation().GetConversionParameter(_SMOOTHING) or 0.5)


def set_smoothing(segmentationNode: slicer.vtkMRMLSegmentationNode, factor: float) -> None:
    """Set Slicer's smoothing factor, 0 to 1; surfaces that exist are made anew."""
    segmentation = segmentationNode.GetSegmentation()
    segmentation.SetConversionParameter(_SMOOTHING, f"{factor:g}")
    surfaces = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    if segmentation.ContainsRepresentation(surfaces):
        segmentation.RemoveRepresentation(surfaces)
        segmentationNode.CreateClosedSurfaceRepresentation()


def has_default_surfaces(segmentationNode: slicer.vtkMRMLSegmentationNode) -> bool:
    """Whether the node's surfaces are made as Slicer makes them by default, whatever their smoothing factor."""
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule
    names = (
        rule.GetComputeSurfaceNormalsParameterName(),
        rule.GetConversionMethodParameterName(),
        rule.GetDecimationFactorParameterName(),
        rule.GetJointSmoothingParameterName(),
    )
    segmentation, default = segmentationNode.GetSegmentation(), slicer.vtkSegmentation()
    return all(_number(segmentation, one) == _number(default, one) for one in names)


def _number(segmentation: slicer.vtkSegmentation, parameter: str) -> float:
    return float(segmentation.GetConversionParameter(parameter) or 0)


def set_opacity(segmentationNode: slicer.vtkMRMLSegmentationNode, opacity: float) -> None:
    """Opacity of the surfaces and of the slices' fill and outline, 0 to 1.

    The node's own opacity is the factor that slices and 3D views have in common; each has one more of its own.
    """
    segmentationNode.GetDisplayNode().SetOpacity(opacity)


def set_organ_visible(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentID: str, visible: bool) -> None:
    """Show or hide a segment in slices and 3D."""
    segmentationNode.GetDisplayNode().SetSegmentVisibility(segmentID, visible)


def show_volume_rendering(volumeNode: slicer.vtkMRMLScalarVolumeNode, visible: bool) -> None:
    """Show or hide the CT itself in the 3D views, with a preset of Slicer's that lets the organs be seen."""
    logic = slicer.modules.volumerendering.logic()
    display = logic.GetFirstVolumeRenderingDisplayNode(volumeNode)
    if display is None:
        if not visible:
            return
        display = logic.CreateDefaultVolumeRenderingNodes(volumeNode)
        preset = logic.GetPresetByName(_VOLUME_RENDERING_PRESET)
        if preset is not None:
            display.GetVolumePropertyNode().Copy(preset)
    display.SetVisibility(visible)


def is_volume_rendered(volumeNode: slicer.vtkMRMLScalarVolumeNode | None) -> bool:
    """Whether the CT itself is shown in the 3D views."""
    if volumeNode is None:
        return False
    display = slicer.modules.volumerendering.logic().GetFirstVolumeRenderingDisplayNode(volumeNode)
    return bool(display and display.GetVisibility())


def jump_to_organ(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentID: str) -> None:
    """Center all slice views and the 3D views on a segment."""
    center = segmentationNode.GetSegmentCenterRAS(segmentID)
    if center is not None:
        jump_to(center)


def jump_to(center: Sequence[float]) -> None:
    """Center all slice views and the 3D views on a place (RAS of the scene, mm)."""
    slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *center, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
    for camera in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
        _look_at(camera, center)


def show_all_of(segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
    """Move the 3D views' cameras, without turning them, so that the segmentation fills the view.

    Unlike `slicer.util.resetThreeDViews` it does not draw the views at once, which may take long without a GPU.
    """
    bounds = [0.0] * 6
    segmentationNode.GetRASBounds(bounds)
    low, high = bounds[::2], bounds[1::2]
    if low[0] > high[0]:  # nothing in it
        return
    radius = math.dist(low, high) / 2
    for camera in slicer.util.getNodesByClass("vtkMRMLCameraNode"):
        distance = radius / math.sin(math.radians(camera.GetViewAngle()) / 2)
        _look_at(camera, [(a + b) / 2 for a, b in zip(low, high, strict=True)], distance)
        camera.SetParallelScale(radius)
    for view in slicer.util.getNodesByClass("vtkMRMLViewNode"):
        view.InvokeEvent(slicer.vtkMRMLViewNode.ResetFocalPointRequestedEvent)  # fits the box and its letters


def _look_at(camera: slicer.vtkMRMLCameraNode, center: Sequence[float], distance: float | None = None) -> None:
    """Move a camera, without turning it, to look at a place (RAS, mm), from as far as before or from a distance."""
    position, focus = camera.GetPosition(), camera.GetFocalPoint()
    share = 1.0 if distance is None else distance / (math.dist(position, focus) or 1.0)
    camera.SetPosition(*(c + share * (p - f) for c, p, f in zip(center, position, focus, strict=True)))
    camera.SetFocalPoint(*center)
    camera.ResetClippingRange()
