"""Labels become segments: names, codes, colors, geometry, place in the scene, and what a second run may replace."""

from __future__ import annotations

import numpy as np
import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import ORGANS

OBLIQUE = np.array([[-0.9, 0.1, 0.0, 30.0], [0.1, -0.9, 0.2, -20.0], [0.0, 0.2, 2.5, 10.0], [0, 0, 0, 1]])


@pytest.fixture
def nodes(slicer_app):
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    return segmentation_nodes


@pytest.fixture
def ct(slicer_app):
    import slicer

    return slicer.util.addVolumeFromArray(np.zeros((12, 20, 16), np.int16), ijkToRAS=OBLIQUE, name="Patient 7")


@pytest.fixture
def labels():
    volume = np.zeros((12, 20, 16), np.uint8)
    volume[2:8, 3:12, 1:7] = 1
    volume[1:5, 13:17, 2:5] = 2
    volume[1:5, 13:17, 10:14] = 3
    volume[6:10, 10:15, 12:15] = 4
    return volume


def segment_array(node, key, ct):
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    return slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation_nodes.organ_segments(node)[key], ct)


def test_every_organ_is_named_colored_and_coded(nodes, ct, labels):
    import slicer
    import vtk

    node = nodes.create_segmentation(ct, labels)
    segmentation = node.GetSegmentation()
    assert segmentation.GetNumberOfSegments() == 4
    codes = {}
    for index, organ in enumerate(ORGANS):
        segment = segmentation.GetNthSegment(index)
        assert segment.GetName() == organ.name
        assert np.allclose(np.array(segment.GetColor()) * 255, organ.color)
        assert segment.GetLabelValue() == organ.label
        text = vtk.reference("")
        assert segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), text)
        parts = str(text).split("~")
        assert len(parts) == 7
        codes[organ.key] = parts[2].split("^")[1], parts[3].split("^")[1]
        entry = slicer.vtkSlicerTerminologyEntry()
        logic = slicer.modules.terminologies.logic()
        assert logic.DeserializeTerminologyEntry(str(text), entry)
        assert entry.GetTypeObject().GetCodeMeaning() == organ.type_meaning
    assert codes == {
        "liver": ("10200004", ""),
        "right_kidney": ("64033007", "24028007"),
        "left_kidney": ("64033007", "7771000"),
        "spleen": ("78961009", ""),
    }


def test_the_same_voxels_come_back_on_an_oblique_grid(nodes, ct, labels):
    node = nodes.create_segmentation(ct, labels)
    for organ in ORGANS:
        np.testing.assert_array_equal(segment_array(node, organ.key, ct), labels == organ.label)
    assert nodes.reference_volume(node) is ct
    assert node.GetName() == "Patient 7 organs"


def test_label_values_survive_a_label_map_export(nodes, ct, labels):
    import slicer

    labels[labels == 2] = 0  # a missing organ must not shift the values of the others
    node = nodes.create_segmentation(ct, labels)
    merged = slicer.util.arrayFromSegmentBinaryLabelmap(node, "spleen", ct)
    assert merged.sum() == (labels == 4).sum()
    values = [node.GetSegmentation().GetNthSegment(i).GetLabelValue() for i in range(3)]
    assert values == [1, 3, 4]
    assert node.GetSegmentation().GetNumberOfLayers() == 1


def test_the_segmentation_stands_where_the_ct_stands(nodes, ct, labels):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "Study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(ct), study)
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    ct.SetAndObserveTransformNodeID(transform.GetID())
    node = nodes.create_segmentation(ct, labels)
    assert node.GetParentTransformNode() is transform
    assert hierarchy.GetItemParent(hierarchy.GetItemByDataNode(node)) == study


def test_an_organ_that_is_not_there_makes_no_segment(nodes, ct, labels):
    labels[labels == 4] = 0
    node = nodes.create_segmentation(ct, labels)
    assert list(nodes.organ_segments(node)) == ["liver", "right_kidney", "left_kidney"]
    empty = nodes.create_segmentation(ct, np.zeros_like(labels))
    assert empty.GetSegmentation().GetNumberOfSegments() == 0


def test_a_second_run_replaces_its_own_segments_only(nodes, ct, labels):
    import slicer

    node = nodes.create_segmentation(ct, labels)
    mine = np.zeros(labels.shape, np.uint8)
    mine[0:2, 0:2, 0:2] = 1
    lesion = node.GetSegmentation().AddEmptySegment("lesion", "Lesion")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mine, node, lesion, ct)
    nodes.show_3d(node, True)
    moved = np.roll(labels, 1, axis=2)
    assert nodes.create_segmentation(ct, moved, node) is node
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 1
    np.testing.assert_array_equal(slicer.util.arrayFromSegmentBinaryLabelmap(node, lesion, ct), mine)
    for organ in ORGANS:
        np.testing.assert_array_equal(segment_array(node, organ.key, ct), moved == organ.label)
    assert node.GetSegmentation().GetNumberOfSegments() == 5
    assert nodes.is_shown_in_3d(node)


def test_a_segment_of_the_same_id_by_somebody_else_stays(nodes, ct, labels):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
    node.CreateDefaultDisplayNodes()
    node.GetSegmentation().AddEmptySegment("liver", "Liver")
    nodes.create_segmentation(ct, labels, node)
    assert node.GetSegmentation().GetNumberOfSegments() == 5
    assert nodes.organ_segments(node)["liver"] != "liver"
    assert slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct).sum() == 0


def test_edits_are_noticed_also_after_saving_and_loading(nodes, ct, labels, tmp_path):
    import slicer

    node = nodes.create_segmentation(ct, labels)
    assert nodes.edited_organs(node) == []
    file = str(tmp_path / "organs.seg.nrrd")
    assert slicer.util.saveNode(node, file, {})
    loaded = slicer.util.loadSegmentation(file)
    assert nodes.edited_organs(loaded) == []
    spleen = (labels == 4).astype(np.uint8)
    spleen[6, 10, 12] = 0
    slicer.util.updateSegmentBinaryLabelmapFromArray(spleen, loaded, nodes.organ_segments(loaded)["spleen"], ct)
    assert nodes.edited_organs(loaded) == ["Spleen"]
    assert nodes.edited_organs(node) == []


def test_what_the_run_was_is_kept_with_the_node(nodes, ct, labels):
    facts = {"Model": "abdomen 1", "Seconds": {"total": 2.5}, "Warnings": ["thick slices"]}
    node = nodes.create_segmentation(ct, labels, None, facts)
    assert node.GetAttribute("FlareSegment.Model") == "abdomen 1"
    assert nodes.read_description(node) == facts
    assert nodes.find_result(ct) is node
    nodes.create_segmentation(ct, labels, node, {"Model": "abdomen 2"})
    assert nodes.read_description(node) == {"Model": "abdomen 2"}


def test_surfaces_are_shown_and_hidden(nodes, ct, labels):
    node = nodes.create_segmentation(ct, labels)
    assert not nodes.is_shown_in_3d(node)
    nodes.show_3d(node, True)
    assert nodes.is_shown_in_3d(node)
    assert node.GetClosedSurfaceInternalRepresentation("liver").GetNumberOfPoints() > 50
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    import slicer

    view = slicer.app.layoutManager().threeDWidget(0).threeDView()
    focal_point = np.array(view.cameraNode().GetFocalPoint())
    center = np.array([(bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2, (bounds[4] + bounds[5]) / 2])
    assert np.linalg.norm(focal_point - center) < 5
    nodes.show_3d(node, False)
    assert not nodes.is_shown_in_3d(node)


def test_labels_that_do_not_fit_change_nothing(nodes, ct, labels):
    import slicer

    with pytest.raises(InputError, match="grid"):
        nodes.create_segmentation(ct, labels[1:])
    bad = labels.copy()
    bad[0, 0, 0] = 99
    with pytest.raises(InputError, match="no organ"):
        nodes.create_segmentation(ct, bad)
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode") == 0


def test_foreign_content_that_would_suffer_is_refused(nodes, ct, labels):
    import slicer

    node = nodes.create_segmentation(ct, labels)
    node.GetSegmentation().AddEmptySegment("lesion", "Lesion")
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    node.SetAndObserveTransformNodeID(transform.GetID())
    with pytest.raises(InputError, match="transform"):
        nodes.create_segmentation(ct, labels, node)


def test_volume_of_a_node(nodes, ct):
    import slicer

    volume = nodes.volume_from_node(ct)
    np.testing.assert_allclose(volume.affine_ras, OBLIQUE, atol=1e-6)
    assert np.shares_memory(volume.array, slicer.util.arrayFromVolume(ct))
    empty = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Nothing")
    with pytest.raises(InputError, match="Nothing"):
        nodes.volume_from_node(empty)
