"""A result beside a reference: both as label maps on the CT's grid, and where they differ as a segmentation."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import slicer
from slicer.i18n import tr as _
from vtk.util import numpy_support

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.measures.reference_values import contradictions, organs_by_overlap
from FlareSegmentLib.organs import FLARE22_ORGANS, LABEL_TABLES, ORGANS, Organ
from FlareSegmentSlicerLib.scene import segmentation_nodes

DIFFERENCE = "FlareSegmentDifference"
"""Attribute of a segmentation that shows differences, and role of its node reference to the result they are of: a scene
that is read into another one gets new node IDs, which only references follow.
"""


def label_map(
    node: slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode,
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    result: np.ndarray | None = None,
) -> np.ndarray:
    """The organs of a node as labels (z, y, x) uint8 of `organs.FLARE22_ORGANS` on the CT's grid.

    Segments are recognized by FlareSegment's own tag, their terminology or their name; the values of a label map volume
    by the names in its color table, else as FlareSegment's (1 to 4) or, with a 13 among 1, 2, 3, as FLARE22's, unless
    they lie on other organs of the result, else by the organs that they lie on. Raises InputError if there is no organ
    in it, or nobody can tell what its values stand for.

    result: labels to compare with, on the CT's grid.
    """
    if node.IsA("vtkMRMLSegmentationNode"):
        labels = organ_labels(node, volumeNode)
    else:
        labels = _of_volume(node, volumeNode, result)
    if not labels.any():
        text = _("{name} holds none of the organs: they are recognized by terminology or name.")
        raise InputError(text.format(name=node.GetName()))
    return labels


def show_difference(
    segmentationNode: slicer.vtkMRMLSegmentationNode,
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    difference: np.ndarray,
    box: Sequence[slice],
) -> slicer.vtkMRMLSegmentationNode:
    """Show the difference of the worker's comparison over the CT; one made before is replaced."""
    node = difference_node(segmentationNode)
    if node is None:
        name = _("{name} difference").format(name=segmentationNode.GetName())
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.SetAttribute(DIFFERENCE, "1")
        node.SetNodeReferenceID(DIFFERENCE, segmentationNode.GetID())
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
    node.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
    with slicer.util.NodeModify(node):
        node.GetSegmentation().RemoveAllSegments()
        names = (
            (1, _("Only in the reference"), (0.15, 0.55, 1.0)),
            (2, _("Only in the result"), (1.0, 0.35, 0.1)),
            (3, _("Another organ"), (1.0, 0.2, 0.9)),
        )
        if difference.size:
            image = segmentation_nodes.oriented_image(volumeNode, difference, tuple(box))
            for value, name, color in names:
                if not np.any(difference == value):
                    continue
                segment = slicer.vtkSegment()
                segment.SetName(name)
                segment.SetColor(color)
                segment.SetLabelValue(value)
                segment.AddRepresentation(
                    slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName(), image
                )
                node.GetSegmentation().AddSegment(segment)
    node.GetDisplayNode().SetVisibility3D(False)
    node.GetDisplayNode().SetOpacity2DFill(0.7)
    return node


def difference_node(
    segmentationNode: slicer.vtkMRMLSegmentationNode | None,
) -> slicer.vtkMRMLSegmentationNode | None:
    """The node that `show_difference` made for a segmentation, if there is one."""
    if segmentationNode is None:
        return None
    for node in difference_nodes():
        if node.GetNodeReference(DIFFERENCE) is segmentationNode:
            return node
    return None


def difference_nodes() -> list[slicer.vtkMRMLSegmentationNode]:
    """All nodes of the scene that `show_difference` made: they are neither results nor references."""
    nodes = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
    return [node for node in nodes if node.GetAttribute(DIFFERENCE) is not None]


def organ_of_segment(segment: slicer.vtkSegment) -> Organ | None:
    """The organ that a segment stands for, by FlareSegment's tag, its terminology or its name."""
    key = segmentation_nodes.tag(segment, segmentation_nodes.ORGAN_TAG)
    parts = segmentation_nodes.tag(segment, slicer.vtkSegment.GetTerminologyEntryTagName()).split("~")
    codes = tuple(part.split("^")[1] if part.count("^") == 2 else "" for part in parts[2:4])
    for organ in FLARE22_ORGANS:
        if key == organ.key or codes == (organ.type_code, organ.modifier_code or ""):
            return organ
    return _organ_by_name(segment.GetName() or "")


def _organ_by_name(name: str) -> Organ | None:
    words = sorted(re.findall(r"[a-z]+", name.lower()))
    shapes = {tuple(sorted(organ.key.split("_"))): organ for organ in FLARE22_ORGANS}
    return shapes.get(tuple(words))


def organ_labels(node: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> np.ndarray:
    """The organs of a segmentation as `label_map` gives them; nothing but zeros where it holds none."""
    segmentation = node.GetSegmentation()
    result = np.zeros(slicer.util.arrayFromVolume(volumeNode).shape, np.uint8)
    for index in range(segmentation.GetNumberOfSegments()):
        segment_id = segmentation.GetNthSegmentID(index)
        organ = organ_of_segment(segmentation.GetSegment(segment_id))
        if organ is not None:
            mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, volumeNode)
            result[mask > 0] = organ.label
    return result


def _of_volume(
    node: slicer.vtkMRMLLabelMapVolumeNode, volumeNode: slicer.vtkMRMLScalarVolumeNode, found: np.ndarray | None
) -> np.ndarray:
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    transform = volumeNode.GetParentTransformNode()
    labels = logic.CreateOrientedImageDataFromVolumeNode(node, transform)
    grid = logic.CreateOrientedImageDataFromVolumeNode(volumeNode, transform)
    resampled = slicer.vtkOrientedImageData()
    if labels is None or not slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        labels, grid, resampled
    ):
        raise InputError(_("{name} could not be brought onto the CT's grid.").format(name=node.GetName()))
    shape = tuple(reversed(resampled.GetDimensions()))
    values = numpy_support.vtk_to_numpy(resampled.GetPointData().GetScalars()).reshape(shape)
    result = np.zeros(shape, np.uint8)
    for value, organ in _organs_of_values(node, values, found).items():
        result[values == value] = organ.label
    return result


def _organs_of_values(
    node: slicer.vtkMRMLLabelMapVolumeNode, labels: np.ndarray, result: np.ndarray | None
) -> dict[int, Organ]:
    values = {int(value) for value in np.unique(labels)} - {0}
    colors = node.GetDisplayNode().GetColorNode() if node.GetDisplayNode() else None
    if colors is not None and not colors.GetSingletonTag():  # Slicer's own tables say nothing about these values
        named = {value: _organ_by_name(colors.GetColorName(value) or "") for value in values}
        found = {value: organ for value, organ in named.items() if organ is not None}
        if found:
            return found
    table = "flare22" if 13 in values and values <= {1, 2, 3, 13} else "flaresegment"
    known = ORGANS if table == "flaresegment" else FLARE22_ORGANS
    meaning = {LABEL_TABLES[table][organ.key]: organ for organ in known}
    explained = values <= set(meaning)
    if explained and (result is None or not contradictions(labels, result, meaning, FLARE22_ORGANS)):
        return {value: meaning[value] for value in values}
    try:
        if result is None:
            raise InputError(_("its values are not 1 to 4"))
        return organs_by_overlap(labels, result, FLARE22_ORGANS)
    except InputError as error:
        text = _("Nobody can tell what the values of {name} stand for: {reason}. Give it a color table with names.")
        raise InputError(text.format(name=node.GetName(), reason=error)) from error


def remove_differences() -> None:
    """Remove the differences before a scene is closed: Slicer would tell of their segments after the subject hierarchy,
    in which it looks for them, has gone.
    """
    for node in difference_nodes():
        slicer.mrmlScene.RemoveNode(node)
