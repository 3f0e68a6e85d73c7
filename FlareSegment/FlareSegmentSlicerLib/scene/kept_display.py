"""What the user made of an organ's look: a later result of the same organ looks the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import slicer

_PROPERTIES = (
    "Visibility",
    "Visibility3D",
    "Visibility2DFill",
    "Visibility2DOutline",
    "Opacity3D",
    "Opacity2DFill",
    "Opacity2DOutline",
)


@dataclass(frozen=True)
class Look:
    """Name, color (0 to 1) and the display node's properties of a segment."""

    name: str
    color: tuple[float, float, float]
    properties: Mapping[str, Any]

    @staticmethod
    def of(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentID: str) -> Look:
        """How a segment looks now."""
        segment = segmentationNode.GetSegmentation().GetSegment(segmentID)
        display = segmentationNode.GetDisplayNode()
        found = {}
        if display is not None:
            found = {name: getattr(display, f"GetSegment{name}")(segmentID) for name in _PROPERTIES}
        return Look(segment.GetName(), tuple(segment.GetColor()), found)

    def give(self, segmentationNode: slicer.vtkMRMLSegmentationNode, segmentID: str) -> None:
        """Make a segment look so."""
        segment = segmentationNode.GetSegmentation().GetSegment(segmentID)
        segment.SetName(self.name)
        segment.SetColor(self.color)
        display = segmentationNode.GetDisplayNode()
        for name, value in self.properties.items():
            getattr(display, f"SetSegment{name}")(segmentID, value)


def make_visible(segmentationNode: slicer.vtkMRMLSegmentationNode, segmentIDs: list[str]) -> None:
    """Show a segmentation; where all of these segments are hidden, show them, too."""
    display = segmentationNode.GetDisplayNode()
    display.SetVisibility(True)
    if not any(display.GetSegmentVisibility(segmentID) for segmentID in segmentIDs):
        for segmentID in segmentIDs:
            display.SetSegmentVisibility(segmentID, True)
