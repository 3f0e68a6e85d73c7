"""Label maps become Slicer segmentations: names, colors, terminology, geometry, place in the scene, 3D.

Segments that FlareSegment made carry tags, so that a later run knows which ones it may replace and whether somebody has
edited them; segments of other origin are never touched. How a result was made (model, device, organ table, warnings)
is kept in attributes of the segmentation node and is saved with the scene.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS, Organ, terminology_entry
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.scene.kept_display import Look, make_visible
from FlareSegmentSlicerLib.scene.organ_labels import OrganLabels
from FlareSegmentSlicerLib.scene.organ_names import organ_name

ORGAN_TAG = "FlareSegment.Organ"
FINGERPRINT_TAG = "FlareSegment.Fingerprint"
ATTRIBUTE_PREFIX = "FlareSegment."
CT_ROLE = "FlareSegmentCT"
"""Role of the node reference from a result to its CT; the reference geometry may belong to somebody else's segments."""
ORGAN_TABLE = "OrganTable"
RUN = "Run"
"""A number drawn by chance that tells the result of one run from that of another."""
WARNINGS = "Warnings"
COMPARISON = "Comparison"


def volume_from_node(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> Volume:
    """The node's voxels and the geometry of the scan itself.

    The array is a view of the node's memory, (z, y, x). A parent transform is not applied: `parent_transform` tells
    what it does, and the labels come back on the same voxels and follow it. Raises InputError for a node without a
    three-dimensional image.
    """
    image = volumeNode.GetImageData()
    if image is None or image.GetNumberOfPoints() == 0:
        raise InputError(_("{name} holds no image. Choose another volume.").format(name=volumeNode.GetName()))
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    return Volume.from_ijk_to_ras(
        slicer.util.arrayFromVolume(volumeNode), slicer.util.arrayFromVTKMatrix(matrix), volumeNode.GetName()
    )


def create_segmentation(
    volumeNode: slicer.vtkMRMLScalarVolumeNode,
    labels: np.ndarray | OrganLabels,
    segmentationNode: slicer.vtkMRMLSegmentationNode | None = None,
    description: Mapping[str, Any] | None = None,
) -> slicer.vtkMRMLSegmentationNode:
    """Put the organs of a label map into a segmentation node; one segment for each organ that is there.

    Args:
        volumeNode: the CT.
        labels: what was found, or its label map (z, y, x) uint8 on the whole grid of the CT.
        segmentationNode: where to put them; None makes a new node. Segments that an earlier run made in it are
            replaced, all others stay as they are (see `check_output` and `edited_organs`).
        description: facts to keep as attributes ``FlareSegment.<key>``: text as it is, anything else as JSON.

    Returns the segmentation node: reference geometry, parent transform and parent in the subject hierarchy are those
    of the CT.
    Raises InputError if the labels do not fit the CT or the node cannot take them; nothing is changed then.
    """
    image = volumeNode.GetImageData()
    shape = tuple(reversed(image.GetDimensions())) if image is not None else ()
    if isinstance(labels, np.ndarray):
        fits = labels.shape == shape
        labels = OrganLabels.of(labels)
    else:
        fits = len(shape) == 3 and all(extent.stop <= size for extent, size in zip(labels.box, shape, strict=True))
    if not fits:
        raise InputError(
            _("The labels do not have the grid of {name}: the volume was changed.").format(name=volumeNode.GetName())
        )
    check_output(volumeNode, segmentationNode)
    if labels.organs:
        present = {facts["label"] for facts in labels.organs.values() if facts["voxels"]}
    else:
        counts = sum((np.bincount(part.ravel(), minlength=256) for part in labels.array), np.zeros(256, int))
        present = {int(value) for value in np.flatnonzero(counts)} - {0}
    organs = [organ for organ in FLARE22_ORGANS if organ.label in present]
    if len(organs) != len(present):
        raise InputError(_("The labels hold values that stand for no organ."))
    if segmentationNode is None:
        name = slicer.mrmlScene.GenerateUniqueName(_("{name} organs").format(name=volumeNode.GetName()))
        segmentationNode = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    with slicer.util.NodeModify(segmentationNode):
        segmentationNode.CreateDefaultDisplayNodes()
        segmentation = segmentationNode.GetSegmentation()
        own = organ_segments(segmentationNode)
        if segmentation.GetNumberOfSegments() == len(own) or _geometry_volume(segmentationNode) is None:
            segmentationNode.SetReferenceImageGeometryParameterFromVolumeNode(volumeNode)
        segmentationNode.SetNodeReferenceID(CT_ROLE, volumeNode.GetID())
        segmentationNode.SetAndObserveTransformNodeID(volumeNode.GetTransformNodeID())
        looks = {key: Look.of(segmentationNode, segment_id) for key, segment_id in own.items()}
        for segment_id in own.values():
            _remove_segment(segmentation, segment_id)
        if organs:
            labelmap = oriented_image(volumeNode, labels.array, labels.box)
            for organ in organs:
                _add_segment(segmentation, organ, labelmap, labels)
        made = organ_segments(segmentationNode)
        for key in made.keys() & looks.keys():
            looks[key].give(segmentationNode, made[key])
        make_visible(segmentationNode, list(made.values()))
        _set_description(segmentationNode, description or {})
    _place_beside(volumeNode, segmentationNode)
    return segmentationNode


class Snapshot:
    """The organs of a segmentation as they are now, to be brought back after a later run replaced them."""

    def __init__(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        segmentation = segmentationNode.GetSegmentation()
        self.node = segmentationNode
        ids = organ_segments(segmentationNode).values()
        self._segments = [(segment_id, _shallow_copy(segmentation.GetSegment(segment_id))) for segment_id in ids]
        self._attributes = {name: segmentationNode.GetAttribute(name) for name in _attribute_names(segmentationNode)}

    @property
    def isEmpty(self) -> bool:
        """Whether there were no organs."""
        return not self._segments

    def restore(self) -> Snapshot:
        """Bring the organs back; returns the snapshot of those that were there until now."""
        replaced = Snapshot(self.node)
        segmentation = self.node.GetSegmentation()
        with slicer.util.NodeModify(self.node):
            for segment_id, _segment in replaced._segments:
                _remove_segment(segmentation, segment_id)
            for segment_id, segment in self._segments:
                segmentation.AddSegment(_shallow_copy(segment), segment_id)
            for name in _attribute_names(self.node):
                self.node.RemoveAttribute(name)
            for name, value in self._attributes.items():
                self.node.SetAttribute(name, value)
        return replaced


def check_output(
    volumeNode: slicer.vtkMRMLScalarVolumeNode, segmentationNode: slicer.vtkMRMLSegmentationNode | None
) -> None:
    """Raise InputError if organs of the CT cannot be put into this segmentation without harm to what it holds."""
    if segmentationNode is None:
        return
    segmentation = segmentationNode.GetSegmentation()
    foreign = segmentation.GetNumberOfSegments() - len(organ_segments(segmentationNode))
    if not foreign:
        return
    name = segmentationNode.GetName()
    if segmentation.GetSourceRepresentationName() != _binary_labelmap():
        raise InputError(_("{name} is made of surfaces. Choose another segmentation or create one.").format(name=name))
    if segmentationNode.GetTransformNodeID() != volumeNode.GetTransformNodeID():
        raise InputError(
            _("{name} is under another transform than {volume}. Choose another segmentation or create one.").format(
                name=name, volume=volumeNode.GetName()
            )
        )


def organ_segments(segmentationNode: slicer.vtkMRMLSegmentationNode) -> dict[str, str]:
    """Organ key -> segment ID of the segments that FlareSegment made in this node."""
    found = {}
    segmentation = segmentationNode.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        segment_id = segmentation.GetNthSegmentID(index)
        key = tag(segmentation.GetSegment(segment_id), ORGAN_TAG)
        if key:
            found[key] = segment_id
    return found


def add_empty_organ(segmentationNode: slicer.vtkMRMLSegmentationNode, organ: Organ) -> str:
    """Add a segment without a voxel, for somebody to draw an organ that was not found; returns its ID."""
    segmentation = segmentationNode.GetSegmentation()
    segment_id = segmentation.AddEmptySegment(organ.key)
    segment = segmentation.GetSegment(segment_id)
    _name_segment(segment, organ)
    segment.SetTag(FINGERPRINT_TAG, _fingerprint(segment))
    return segment_id


def result_identity(segmentationNode: slicer.vtkMRMLSegmentationNode) -> tuple[str | None, ...]:
    """What tells one run's result from another's in the same node, or in a node of the same ID after the scene was
    closed; editing does not change it.
    """
    return segmentationNode.GetID(), segmentationNode.GetAttribute(ATTRIBUTE_PREFIX + RUN)


def edited_organs(segmentationNode: slicer.vtkMRMLSegmentationNode) -> list[str]:
    """Names of the segments that FlareSegment made and that somebody has changed since."""
    segmentation, segments = segmentationNode.GetSegmentation(), organ_segments(segmentationNode)
    return [segmentation.GetSegment(segments[key]).GetName() for key in edited_organ_keys(segmentationNode)]


def edited_organ_keys(segmentationNode: slicer.vtkMRMLSegmentationNode) -> list[str]:
    """Keys of the organs whose segments somebody has changed since; another name or color is no change."""
    segmentation = segmentationNode.GetSegmentation()
    segments = organ_segments(segmentationNode)
    return [key for key, one in segments.items() if not _is_untouched(segmentation.GetSegment(one))]


def find_result(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> slicer.vtkMRMLSegmentationNode | None:
    """The newest segmentation that FlareSegment made of this CT, if the scene has one."""
    for node in reversed(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")):
        if is_result_of(node, volumeNode):
            return node
    return None


def is_result_of(segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLScalarVolumeNode) -> bool:
    """Whether FlareSegment made the segmentation of this CT."""
    return reference_volume(segmentationNode) is volumeNode and bool(read_description(segmentationNode))


def reference_volume(segmentationNode: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    """The CT that the organs were found in; of a segmentation of another origin, the volume whose grid it refers to."""
    return segmentationNode.GetNodeReference(CT_ROLE) or _geometry_volume(segmentationNode)


def _geometry_volume(segmentationNode: slicer.vtkMRMLSegmentationNode) -> slicer.vtkMRMLScalarVolumeNode | None:
    return segmentationNode.GetNodeReference(slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole())


def modality(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> str:
    """The DICOM modality that Slicer's DICOM module noted when it loaded the volume; empty if there is none."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    item = hierarchy.GetItemByDataNode(volumeNode) if hierarchy is not None else 0
    name = slicer.vtkMRMLSubjectHierarchyConstants.GetDICOMSeriesModalityAttributeName()
    return hierarchy.GetItemAttribute(item, name) if item else ""


def read_description(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> dict[str, Any]:
    """What `create_segmentation` was given as description; empty for any other segmentation."""
    description = {}
    for key in _attribute_names(segmentationNode) if segmentationNode else ():
        text = segmentationNode.GetAttribute(key)
        try:
            description[key.removeprefix(ATTRIBUTE_PREFIX)] = json.loads(text)
        except ValueError:
            description[key.removeprefix(ATTRIBUTE_PREFIX)] = text
    return description


def set_fact(segmentationNode: slicer.vtkMRMLSegmentationNode, key: str, value: Any) -> None:
    """Add one fact to what `read_description` reads: text as it is, anything else as JSON."""
    segmentationNode.SetAttribute(ATTRIBUTE_PREFIX + key, value if isinstance(value, str) else json.dumps(value))


def show_3d(segmentationNode: slicer.vtkMRMLSegmentationNode, visible: bool) -> None:
    """Show or hide the organs' surfaces in the 3D views; surfaces that do not exist yet are made.

    The 3D views are centered on the patient when surfaces are made.
    """
    made = False
    if visible and not segmentationNode.GetSegmentation().ContainsRepresentation(_closed_surface()):
        made = bool(segmentationNode.CreateClosedSurfaceRepresentation())
    segmentationNode.CreateDefaultDisplayNodes()
    segmentationNode.GetDisplayNode().SetVisibility3D(visible)
    if made and slicer.app.layoutManager() is not None:
        slicer.util.resetThreeDViews()


def is_shown_in_3d(segmentationNode: slicer.vtkMRMLSegmentationNode | None) -> bool:
    """Whether surfaces of the node exist and are switched on."""
    if segmentationNode is None or segmentationNode.GetDisplayNode() is None:
        return False
    has_surfaces = segmentationNode.GetSegmentation().ContainsRepresentation(_closed_surface())
    return bool(has_surfaces and segmentationNode.GetDisplayNode().GetVisibility3D())


def _binary_labelmap() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationBinaryLabelmapRepresentationName()


def _closed_surface() -> str:
    return slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()


def oriented_image(
    volumeNode: slicer.vtkMRMLScalarVolumeNode, labels: np.ndarray, box: tuple[slice, slice, slice]
) -> slicer.vtkOrientedImageData:
    """The part of the label map inside the box, at its place on the CT's grid."""
    image = slicer.vtkOrientedImageData()
    image.SetExtent([limit for part in reversed(box) for limit in (part.start, part.stop - 1)])
    scalars = vtk.vtkUnsignedCharArray()
    scalars.SetNumberOfTuples(labels.size)
    numpy_support.vtk_to_numpy(scalars).reshape(labels.shape)[:] = labels
    image.GetPointData().SetScalars(scalars)
    matrix = vtk.vtkMatrix4x4()
    volumeNode.GetIJKToRASMatrix(matrix)
    image.SetGeometryFromImageToWorldMatrix(matrix)
    return image


def _set_description(segmentationNode: slicer.vtkMRMLSegmentationNode, description: Mapping[str, Any]) -> None:
    for key in _attribute_names(segmentationNode):
        segmentationNode.RemoveAttribute(key)
    for key, value in description.items():
        set_fact(segmentationNode, key, value)


def _add_segment(
    segmentation: slicer.vtkSegmentation, organ: Organ, labelmap: slicer.vtkOrientedImageData, labels: OrganLabels
) -> None:
    # All organs share one label map and keep their label values, as segments of one layer do. Slicer's import function
    # would number the segments anew and take their names from a color table.
    segment = slicer.vtkSegment()
    _name_segment(segment, organ)
    segment.SetLabelValue(organ.label)
    segment.SetTag("DICOM.SegmentAlgorithmType", "AUTOMATIC")
    segment.SetTag("DICOM.SegmentAlgorithmName", "FlareSegment")
    segment.AddRepresentation(_binary_labelmap(), labelmap)
    facts = labels.organs.get(organ.key)
    segment.SetTag(FINGERPRINT_TAG, _known_fingerprint(labelmap, facts) if facts else _fingerprint(segment))
    if organ.key in labels.surfaces:
        segment.AddRepresentation(_closed_surface(), labels.surfaces[organ.key])
    segment_id = organ.key if segmentation.GetSegment(organ.key) is None else ""
    segmentation.AddSegment(segment, segment_id or segmentation.GenerateUniqueSegmentID(organ.key))


def _name_segment(segment: slicer.vtkSegment, organ: Organ) -> None:
    segment.SetName(organ_name(organ))
    segment.SetColor([value / 255 for value in organ.color])
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology_entry(organ))
    segment.SetTag(ORGAN_TAG, organ.key)


def _shallow_copy(segment: slicer.vtkSegment) -> slicer.vtkSegment:
    """A segment with the same representations, not copies of them."""
    copy = slicer.vtkSegment()
    copy.DeepCopyMetadata(segment)
    for name in (_binary_labelmap(), _closed_surface()):
        if segment.GetRepresentation(name) is not None:
            copy.AddRepresentation(name, segment.GetRepresentation(name))
    return copy


def _remove_segment(segmentation: slicer.vtkSegmentation, segment_id: str) -> None:
    # A segment with voxels would first be given a label map of its own, which takes long and is of no use.
    segmentation.GetSegment(segment_id).RemoveAllRepresentations()
    segmentation.RemoveSegment(segment_id)


def _is_untouched(segment: slicer.vtkSegment) -> bool:
    now, then = (np.array(text.split(), float) for text in (_fingerprint(segment), tag(segment, FINGERPRINT_TAG)))
    return now.size == then.size and now[0] == then[0] and np.allclose(now[1:], then[1:], rtol=0, atol=0.01)


def _fingerprint(segment: slicer.vtkSegment) -> str:
    """Number of voxels and center of mass (RAS, mm) of the segment: tells an edited segment from an untouched one.

    It does not depend on how far the label map is cropped, so saving and loading keep it.
    """
    image = slicer.vtkOrientedImageData.SafeDownCast(segment.GetRepresentation(_binary_labelmap()))
    if image is None or image.GetNumberOfPoints() == 0:
        return "0"
    extent = image.GetExtent()
    shape = extent[5] - extent[4] + 1, extent[3] - extent[2] + 1, extent[1] - extent[0] + 1
    mask = numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(shape) == segment.GetLabelValue()
    plane = mask.view(np.uint8).sum(axis=0, dtype=np.uint16)  # a sum of bytes is vectorized, one of truth values is not
    counts = mask.sum(axis=(1, 2)), plane.sum(axis=1), plane.sum(axis=0)
    number = int(counts[0].sum())
    if not number:
        return "0"
    center = [
        float(extent[2 * axis] + count @ np.arange(count.size) / number) for axis, count in enumerate(reversed(counts))
    ]
    return _fingerprint_text(image, number, center)


def _known_fingerprint(image: slicer.vtkOrientedImageData, facts: Mapping[str, Any]) -> str:
    """The same from facts of `organ_statistics`."""
    return _fingerprint_text(image, facts["voxels"], facts["center"])


def _fingerprint_text(image: slicer.vtkOrientedImageData, number: int, center: Sequence[float]) -> str:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    position = matrix.MultiplyPoint([*center, 1.0])
    return " ".join([str(number), *(f"{value:.3f}" for value in position[:3])])


def tag(segment: slicer.vtkSegment, name: str) -> str:
    """A tag of a segment; empty if it has none of that name."""
    value = vtk.reference("")
    return str(value) if segment.GetTag(name, value) else ""


def _attribute_names(segmentationNode: slicer.vtkMRMLSegmentationNode) -> Sequence[str]:
    return [name for name in segmentationNode.GetAttributeNames() if name.startswith(ATTRIBUTE_PREFIX)]


def _place_beside(volumeNode: slicer.vtkMRMLScalarVolumeNode, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
    """Give the segmentation the CT's parent (its DICOM study, a folder) in the subject hierarchy."""
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    volume_item = hierarchy.GetItemByDataNode(volumeNode)
    segmentation_item = hierarchy.GetItemByDataNode(segmentationNode)
    if volume_item and segmentation_item:
        hierarchy.SetItemParent(segmentation_item, hierarchy.GetItemParent(volume_item))
