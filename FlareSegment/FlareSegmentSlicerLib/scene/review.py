"""Where a person should look first in a result, and which of these places looked right.

The places are an attribute of the segmentation node and are saved with the scene; of one that looked right the day is
kept, and nobody's name.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Sequence
from typing import Any

import slicer
import vtk

from FlareSegmentLib.organs import FLARE22_ORGANS
from FlareSegmentSlicerLib.scene import display, segmentation_nodes

PLACES = "Places"
REVIEWED = "reviewed"
KINDS = ("doubtful", "missing", "cut", "remark")


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
    found = segmentation_nodes.read_description(segmentationNode).get(PLACES)
    return [place for place in found if _is_place(place)] if isinstance(found, list) else []


def set_reviewed(segmentationNode: slicer.vtkMRMLSegmentationNode, index: int, reviewed: bool) -> None:
    """Keep that a place looks right, with today's date, or that it does not."""
    changed = places(segmentationNode)
    changed[index][REVIEWED] = datetime.date.today().isoformat() if reviewed else None
    segmentation_nodes.set_fact(segmentationNode, PLACES, changed)


def jump_to(segmentationNode: slicer.vtkMRMLSegmentationNode, place: dict[str, Any]) -> bool:
    """Center all views, and the crosshair, on a place; False where nothing can move: the place is nowhere in the scan,
    or the CT is gone.
    """
    volume = segmentation_nodes.reference_volume(segmentationNode)
    if volume is None or not place["center"]:
        return False
    position = _in_world(volume, place["center"])
    display.jump_to(position)
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    if crosshair is not None:
        crosshair.SetCrosshairRAS(position)
    return True


def _is_place(place: Any) -> bool:
    """Whether it can be shown: scenes come from elsewhere, too."""
    if not isinstance(place, dict) or place.get("kind") not in KINDS:
        return False
    center, reviewed = place.get("center", ()), place.get(REVIEWED)
    return (
        (place.get("organ") is None or place["organ"] in [organ.key for organ in FLARE22_ORGANS])
        and place.get("side") in ("left", "right", "")
        and _is_number(place.get("ml"))
        and (center is None or (isinstance(center, list) and len(center) == 3 and all(map(_is_number, center))))
        and isinstance(place.get("text"), str)
        and (reviewed is None or isinstance(reviewed, str))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _in_world(volume: slicer.vtkMRMLScalarVolumeNode, voxel: Sequence[float]) -> list[float]:
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    world = [0.0, 0.0, 0.0]
    volume.TransformPointToWorld(matrix.MultiplyPoint([*voxel, 1.0])[:3], world)
    return world
