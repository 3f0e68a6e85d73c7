"""The panel's section "Review": from one doubtful place to another, ticked off, kept; the confidence in the views."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pytest
from panel_driver import add_ct, segmentations
from test_panel_results import add_region, add_sequence, expected_center, press, slice_centers

from FlareSegmentLib.organs import ORGANS

pytest_plugins = ("panel_driver",)


def rows(panel):
    table = panel.ui.reviewTable
    return [[table.item(row, column).text() for column in range(3)] for row in range(table.rowCount)]


def opened(panel):
    """A result with its section open."""
    ct = add_ct()
    panel.run()
    panel.ui.reviewCollapsibleButton.collapsed = False
    panel.app.processEvents()
    return ct


def confidence_node(ct):
    """The volume that shows the confidence."""
    import slicer

    (node,) = [one for one in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") if one is not ct]
    return node


def composites():
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode")


def test_places_are_listed_worst_first_and_the_buttons_lead_there(panel, screenshots):
    import slicer

    ct = opened(panel)
    listed = rows(panel)
    assert [row[0] for row in listed][:1] == ["Liver"] and len(listed) == len(ORGANS) + 1
    assert listed[-1] == ["Scan", "The slices are thick.", ""]
    amounts = [float(row[2]) for row in listed[:-1]]
    assert amounts == sorted(amounts, reverse=True)
    assert panel.ui.reviewProgressLabel.text == f"0 of {len(listed)} looked at"
    assert not panel.ui.looksRightButton.enabled
    panel.click(panel.ui.nextPlaceButton)
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, 1), atol=1)
    crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
    np.testing.assert_allclose(crosshair.GetCrosshairRAS(), expected_center(ct, 1), atol=1)
    assert not panel.ui.previousPlaceButton.enabled
    panel.click(panel.ui.nextPlaceButton)
    second = [organ for organ in ORGANS if organ.name == listed[1][0]][0]
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, second.label), atol=1)
    panel.click(panel.ui.previousPlaceButton)
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, 1), atol=1)
    panel.grab(screenshots / "panel_review.png")


def test_all_of_the_section_is_in_view_when_it_is_opened(panel):
    from PyQt5.QtWidgets import QScrollArea

    window = panel.app._main_window
    before = window.size
    window.resize(1280, 800)
    panel.ui.reviewCollapsibleButton.collapsed = True
    add_ct()
    panel.run()
    panel.ui.reviewCollapsibleButton.collapsed = False
    for _ in range(3):
        panel.app.processEvents()
    area = panel.ui.reviewCollapsibleButton
    while not isinstance(area, QScrollArea):
        area = area.parent()
    for widget in (panel.ui.reviewTable, panel.ui.editButton, panel.ui.confidenceCheckBox):
        bottom = widget.mapTo(area.viewport(), widget.rect.bottomLeft())
        assert 0 <= bottom.y() < area.viewport().height, widget.objectName
    window.resize(before)


def test_the_arrow_keys_lead_from_place_to_place(panel):
    import qt

    ct = opened(panel)
    panel.click(panel.ui.nextPlaceButton)
    press(panel, panel.ui.reviewTable, qt.Qt.Key_Down)
    second = [organ for organ in ORGANS if organ.name == rows(panel)[1][0]][0]
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, second.label), atol=1)
    press(panel, panel.ui.reviewTable, qt.Qt.Key_Up)
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, 1), atol=1)


def test_places_follow_a_transform_above_the_ct(panel):
    import slicer
    import vtk

    ct = add_ct()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    for row, shift in enumerate((10.0, -20.0, 30.0)):
        matrix.SetElement(row, 3, shift)
    transform.SetMatrixTransformToParent(matrix)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    panel.run()
    panel.ui.reviewCollapsibleButton.collapsed = False
    panel.click(panel.ui.nextPlaceButton)
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, 1) + (10.0, -20.0, 30.0), atol=1)


def test_what_looked_right_is_ticked_off_with_the_day_and_survives_the_scene(panel, tmp_path):
    import slicer

    from FlareSegmentSlicerLib.scene import review

    opened(panel)
    count = len(rows(panel))
    panel.click(panel.ui.nextPlaceButton)
    panel.click(panel.ui.looksRightButton)
    assert panel.ui.reviewProgressLabel.text == f"1 of {count} looked at"
    assert panel.ui.reviewTable.currentRow() == 1
    (node,) = segmentations()
    today = datetime.date.today().isoformat()
    assert [place["reviewed"] for place in review.places(node) if place.get("reviewed")] == [today]
    assert today in panel.ui.reviewTable.item(0, 0).toolTip()
    kept = json.loads(node.GetAttribute("FlareSegment.Places"))
    assert set(kept[0]) == {"kind", "organ", "side", "ml", "center", "box", "text", "reviewed"}, "a day, and no name"
    scene = tmp_path / "scene.mrb"
    assert slicer.util.saveScene(str(scene))
    slicer.mrmlScene.Clear(False)
    panel.app.processEvents()
    assert not panel.ui.reviewCollapsibleButton.visible
    slicer.util.loadScene(str(scene))
    panel.until(lambda: panel.ui.reviewProgressLabel.text == f"1 of {count} looked at")
    assert panel.ui.reviewTable.rowCount == count
    assert not panel.ui.confidenceCheckBox.enabled and "Segment again" in panel.ui.confidenceCheckBox.toolTip


def test_a_tick_is_taken_back_in_the_table(panel):
    import qt

    opened(panel)
    panel.click(panel.ui.nextPlaceButton)
    panel.click(panel.ui.looksRightButton)
    item = panel.ui.reviewTable.item(0, 0)
    assert item.checkState() == qt.Qt.Checked
    item.setCheckState(qt.Qt.Unchecked)
    panel.app.processEvents()
    assert panel.ui.reviewProgressLabel.text.startswith("0 of")


def test_a_click_on_a_box_makes_its_place_the_one_that_the_buttons_mean(panel):
    import qt
    from PyQt5.QtTest import QTest

    ct = opened(panel)
    panel.click(panel.ui.nextPlaceButton)
    table = panel.ui.reviewTable
    row = table.visualItemRect(table.item(2, 0))
    QTest.mouseClick(table.viewport(), qt.Qt.LeftButton, pos=qt.QPoint(row.left() + 10, row.center().y()))
    panel.app.processEvents()
    assert table.item(2, 0).checkState() == qt.Qt.Checked
    assert table.currentRow() == 2
    third = [organ for organ in ORGANS if organ.name == rows(panel)[2][0]][0]
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, third.label), atol=1)


def test_the_confidence_is_shown_on_request_and_leaves_nothing(panel, screenshots):
    import slicer

    ct = opened(panel)
    before = [(one.GetForegroundVolumeID(), one.GetForegroundOpacity()) for one in composites()]
    volumes = len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"))
    assert volumes == 1, "it is no node before somebody asks"
    panel.click(panel.ui.nextPlaceButton)
    panel.click(panel.ui.confidenceCheckBox)
    overlay = confidence_node(ct)
    assert {one.GetForegroundVolumeID() for one in composites()} == {overlay.GetID()}
    assert panel.ui.inputSelector.currentNode() is ct
    organs = slicer.util.arrayFromVolume(ct) >= 1000
    low = [int(hits.min()) for hits in np.nonzero(organs)]
    array = slicer.util.arrayFromVolume(overlay)
    assert array.shape == tuple(int(hits.max() - hits.min() + 1) for hits in np.nonzero(organs))
    assert set(np.unique(array)) == {50}, "percent"
    np.testing.assert_allclose(overlay.GetOrigin(), np.diag([-5.0, -5.0, 5.0]) @ low[::-1])
    panel.grab(screenshots / "panel_confidence.png")
    panel.click(panel.ui.confidenceCheckBox)
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1
    assert [(one.GetForegroundVolumeID(), one.GetForegroundOpacity()) for one in composites()] == before


def test_a_new_run_takes_the_old_confidence_out_of_the_views(panel):
    import slicer

    opened(panel)
    panel.click(panel.ui.confidenceCheckBox)
    panel.run()
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1
    assert not panel.ui.confidenceCheckBox.checked and panel.ui.confidenceCheckBox.enabled
    panel.click(panel.ui.confidenceCheckBox)
    slicer.mrmlScene.RemoveNode(segmentations()[0])
    panel.app.processEvents()
    assert len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == 1
    assert {one.GetForegroundVolumeID() for one in composites()} == {None}


def test_a_scene_saved_with_the_confidence_shown_gives_the_slices_what_they_had(panel, tmp_path):
    import slicer

    ct = opened(panel)
    other = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(ct) // 2, name="Other")
    slicer.util.setSliceViewerLayers(background=ct, foreground=other, foregroundOpacity=0.25)
    panel.ui.outputSelector.setCurrentNode(segmentations()[0])
    panel.click(panel.ui.confidenceCheckBox)
    assert slicer.util.saveScene(str(tmp_path / "scene.mrb"))
    assert {one.GetForegroundOpacity() for one in composites()} == {0.6}, "saving changes nothing that is seen"
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(str(tmp_path / "scene.mrb"))
    panel.app.processEvents()
    assert sorted(one.GetName() for one in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")) == [
        "CT of the abdomen",
        "Other",
    ]
    other = slicer.util.getNode("Other")
    assert {(one.GetForegroundVolumeID(), one.GetForegroundOpacity()) for one in composites()} == {
        (other.GetID(), 0.25)
    }
    panel.run()
    panel.click(panel.ui.confidenceCheckBox)
    panel.click(panel.ui.confidenceCheckBox)
    assert {one.GetForegroundVolumeID() for one in composites()} == {other.GetID()}


def test_the_confidence_stays_on_its_ct_when_that_is_moved(panel):
    import slicer
    import vtk

    ct = opened(panel)
    panel.click(panel.ui.confidenceCheckBox)
    node = confidence_node(ct)
    box = panel.logic.confidence(segmentations()[0]).box
    corner = np.array([extent.start for extent in reversed(box)], float)

    def distance():
        places = []
        for volume, voxel in ((ct, corner), (node, (0.0, 0.0, 0.0))):
            matrix, world = vtk.vtkMatrix4x4(), [0.0] * 3
            volume.GetIJKToRASMatrix(matrix)
            volume.TransformPointToWorld(matrix.MultiplyPoint([*voxel, 1.0])[:3], world)
            places.append(world)
        return np.linalg.norm(np.subtract(*places))

    assert distance() == 0
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
    matrix = vtk.vtkMatrix4x4()
    matrix.SetElement(0, 3, 40.0)
    transform.SetMatrixTransformToParent(matrix)
    ct.SetAndObserveTransformNodeID(transform.GetID())
    assert node.GetTransformNodeID() == transform.GetID() and distance() == 0
    ct.SetOrigin(7.0, 8.0, 9.0)
    assert distance() < 1e-6
    ct.SetAndObserveTransformNodeID(None)
    assert node.GetTransformNodeID() is None
    panel.click(panel.ui.confidenceCheckBox)
    ct.SetOrigin(0.0, 0.0, 0.0)


def test_the_confidence_goes_with_its_ct_and_is_no_clones(panel):
    import slicer

    ct = opened(panel)
    (node,) = segmentations()
    panel.click(panel.ui.confidenceCheckBox)
    clone = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Clone")
    clone.Copy(node)
    clone.SetName("Clone")
    panel.ui.outputSelector.setCurrentNode(clone)
    panel.app.processEvents()
    assert panel.ui.reviewTable.rowCount and not panel.ui.confidenceCheckBox.checked
    assert {one.GetForegroundVolumeID() for one in composites()} == {None}
    panel.ui.outputSelector.setCurrentNode(node)
    panel.click(panel.ui.confidenceCheckBox)
    assert panel.ui.confidenceCheckBox.checked
    slicer.mrmlScene.RemoveNode(ct)
    assert slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode") == []
    assert {one.GetForegroundVolumeID() for one in composites()} == {None}


def test_without_the_option_nothing_is_asked(panel):
    import slicer

    add_ct()
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.click(panel.ui.reviewCheckBox)
    panel.run()
    (node,) = segmentations()
    assert node.GetAttribute("FlareSegment.Places") is None
    assert panel.logic.confidence(node) is None
    assert not panel.ui.reviewCollapsibleButton.visible
    assert slicer.util.settingsValue("FlareSegment/FindPlaces", True, slicer.util.toBool) is False
    panel.click(panel.ui.reviewCheckBox)


def test_places_of_a_region_lie_where_they_are_in_the_ct(panel):
    from FlareSegmentSlicerLib.scene import review

    ct = add_ct()
    center = expected_center(ct, 1)
    panel.widget._parameterNode.roi = add_region(ct, center, (60.0, 60.0, 60.0))
    panel.run()
    (node,) = segmentations()
    first = review.places(node)[0]
    assert first["organ"] == "liver"
    np.testing.assert_allclose(np.diag([-5.0, -5.0, 5.0]) @ first["center"], center, atol=15)
    box = panel.logic.confidence(node).box
    assert all(extent.start <= value <= extent.stop for extent, value in zip(box, first["center"][::-1], strict=True))


def test_where_there_is_no_segment_editor_the_button_says_so(panel):
    opened(panel)
    assert not panel.ui.editButton.enabled
    assert "no Segment Editor" in panel.ui.editButton.toolTip


def test_undo_takes_the_places_back_too(panel):
    opened(panel)
    panel.click(panel.ui.nextPlaceButton)
    panel.click(panel.ui.looksRightButton)
    panel.run()
    assert panel.ui.reviewProgressLabel.text.startswith("0 of")
    panel.click(panel.ui.undoButton)
    assert panel.ui.reviewProgressLabel.text.startswith("1 of")


def test_the_confidence_is_undone_and_done_again_with_its_result(panel):
    opened(panel)
    (node,) = segmentations()
    first = panel.logic.confidence(node)
    panel.run()
    second = panel.logic.confidence(node)
    assert second is not None and second is not first
    panel.click(panel.ui.confidenceCheckBox)
    panel.click(panel.ui.undoButton)
    assert panel.logic.confidence(node) is first
    assert panel.ui.confidenceCheckBox.enabled and not panel.ui.confidenceCheckBox.checked
    panel.click(panel.ui.undoButton)
    assert panel.logic.confidence(node) is second
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.click(panel.ui.reviewCheckBox)
    panel.run()
    assert panel.logic.confidence(node) is None
    panel.click(panel.ui.undoButton)
    assert panel.logic.confidence(node) is second
    panel.click(panel.ui.reviewCheckBox)


def test_a_sequence_has_no_places_for_a_frame_is_not_the_others(panel):
    _browser, ct = add_sequence(2)
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.ui.inputSelector.setCurrentNode(ct)
    panel.app.processEvents()
    panel.click(panel.ui.sequenceCheckBox)
    panel.run()
    (node,) = segmentations()
    assert node.GetAttribute("FlareSegment.Seconds")
    assert node.GetAttribute("FlareSegment.Places") is None
    panel.click(panel.ui.sequenceCheckBox)


def test_what_is_drawn_of_an_organ_that_was_not_found_becomes_no_other_organs(panel, monkeypatch):
    """Slicer's own editor is not there: the segment that it would be opened on is."""
    import slicer

    from FlareSegmentSlicerLib.panel import segment_editor
    from FlareSegmentSlicerLib.scene import review, segmentation_nodes

    edited = []
    monkeypatch.setattr(segment_editor, "missing_reason", lambda: "")
    monkeypatch.setattr(segment_editor, "edit", lambda node, volume, segment: edited.append(segment))
    ct = opened(panel)
    (node,) = segmentations()
    node.GetSegmentation().RemoveSegment("spleen")
    place = {"kind": "missing", "organ": "spleen", "side": "", "ml": 0.0, "center": None, "box": None, "text": ""}
    segmentation_nodes.set_fact(node, review.PLACES, [place])
    panel.click(panel.ui.nextPlaceButton)
    panel.click(panel.ui.editButton)
    panel.click(panel.ui.editButton)
    assert edited == ["spleen", "spleen"]
    assert node.GetSegmentation().GetNumberOfSegments() == len(ORGANS)
    assert segmentation_nodes.edited_organs(node) == []
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "spleen", ct)
    assert not array.any()
    array[:2, :4, :4] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "spleen", ct)
    assert segmentation_nodes.edited_organs(node) == ["Spleen"], "another run asks"


def test_what_is_edited_is_shown(panel, monkeypatch):
    from FlareSegmentSlicerLib.panel import segment_editor

    monkeypatch.setattr(segment_editor, "missing_reason", lambda: "")
    monkeypatch.setattr(segment_editor, "edit", lambda *_: None)
    opened(panel)
    (node,) = segmentations()
    display = node.GetDisplayNode()
    panel.click(panel.ui.nextPlaceButton)
    display.SetVisibility(False)
    for organ in ("liver", "spleen"):
        display.SetSegmentVisibility(organ, False)
    panel.click(panel.ui.editButton)
    shown = [display.GetSegmentVisibility(organ) for organ in ("liver", "spleen", "left_kidney")]
    assert display.GetVisibility() and shown == [True, False, True]


def test_nothing_is_ticked_off_or_edited_that_a_run_is_about_to_replace(panel):
    opened(panel)
    panel.click(panel.ui.nextPlaceButton)
    panel.start()
    assert not panel.ui.looksRightButton.enabled
    panel.click(panel.ui.segmentButton)
    assert panel.ui.looksRightButton.enabled


def test_the_confidence_goes_with_the_result_that_is_chosen(panel):
    ct = opened(panel)
    (first,) = segmentations()
    panel.click(panel.ui.confidenceCheckBox)
    shown = {one.GetForegroundVolumeID() for one in composites()}
    assert shown != {None}
    panel.widget.exit()
    panel.widget.enter()
    panel.app.processEvents()
    assert {one.GetForegroundVolumeID() for one in composites()} == shown, "another module was open meanwhile"
    panel.ui.outputSelector.setCurrentNode(None)
    panel.app.processEvents()
    assert {one.GetForegroundVolumeID() for one in composites()} == {None}
    panel.ui.outputSelector.setCurrentNode(first)
    panel.click(panel.ui.confidenceCheckBox)
    panel.ui.inputSelector.setCurrentNode(add_ct("another CT"))
    panel.app.processEvents()
    assert {one.GetForegroundVolumeID() for one in composites()} == {None}
    panel.ui.inputSelector.setCurrentNode(ct)
    panel.app.processEvents()
    assert panel.ui.outputSelector.currentNode() is first
    assert not panel.ui.confidenceCheckBox.checked


def test_without_its_ct_a_result_offers_neither_editing_nor_its_confidence(panel):
    import slicer

    ct = opened(panel)
    (node,) = segmentations()
    slicer.mrmlScene.RemoveNode(ct)
    panel.ui.outputSelector.setCurrentNode(node)
    panel.app.processEvents()
    assert panel.ui.reviewTable.rowCount
    panel.click(panel.ui.nextPlaceButton)
    assert "CT of this result is gone" in panel.ui.reviewProgressLabel.text
    assert not panel.ui.confidenceCheckBox.enabled and "CT" in panel.ui.confidenceCheckBox.toolTip
    assert not panel.ui.editButton.enabled
    hint = panel.ui.hintLabel
    assert hint.visible and hint.height >= hint.minimumHeight >= hint.heightForWidth(hint.width) > 0, (
        "a layout that is short of room would lay the list over it"
    )


def test_edited_organs_that_undo_brings_back_are_marked(panel, monkeypatch):
    import slicer

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text: True)
    ct = opened(panel)
    (node,) = segmentations()
    array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct).copy()
    array[:2, :4, :4] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "liver", ct)
    panel.until(lambda: "edited" in panel.table[0][-1])
    panel.run()
    assert "edited" not in panel.table[0][-1]
    panel.click(panel.ui.undoButton)
    assert "edited" in panel.table[0][-1]


def test_what_has_no_place_in_the_scan_says_so(panel):
    ct = opened(panel)
    last = panel.ui.reviewTable.rowCount - 1
    for _ in range(last):
        panel.click(panel.ui.nextPlaceButton)
    before = slice_centers()
    assert "no place" not in panel.ui.reviewProgressLabel.text
    panel.click(panel.ui.nextPlaceButton)
    assert panel.ui.reviewTable.currentRow() == last and not panel.ui.nextPlaceButton.enabled
    assert "no place" in panel.ui.reviewProgressLabel.text
    np.testing.assert_allclose(slice_centers(), before)
    panel.click(panel.ui.previousPlaceButton)
    assert "no place" not in panel.ui.reviewProgressLabel.text
    assert ct is panel.ui.inputSelector.currentNode()


TURNED = {
    "RAS": np.diag([5.0, 5.0, 5.0]),
    "LPS, feet first": np.diag([-5.0, -5.0, -5.0]),
    "sagittal": np.array([[0.0, 0.0, 5.0], [5.0, 0.0, 0.0], [0.0, -5.0, 0.0]]),
    "oblique": np.array([[-4.0, 3.0, 0.0], [-3.0, -4.0, 0.0], [0.0, 0.0, 5.0]]),
}


@pytest.mark.parametrize("directions", TURNED.values(), ids=TURNED)
def test_the_views_go_to_the_organ_however_the_ct_is_stored(panel, directions):
    import slicer
    import vtk

    ct = add_ct()
    matrix = vtk.vtkMatrix4x4()
    for row, shift in enumerate((100.0, -50.0, 30.0)):
        for column in range(3):
            matrix.SetElement(row, column, directions[row, column])
        matrix.SetElement(row, 3, shift)
    ct.SetIJKToRASMatrix(matrix)
    panel.run()
    panel.ui.reviewCollapsibleButton.collapsed = False
    panel.click(panel.ui.nextPlaceButton)
    voxels = np.argwhere(slicer.util.arrayFromVolume(ct) == 1001)[:, ::-1]
    expected = voxels.mean(axis=0) @ directions.T + (100.0, -50.0, 30.0)
    for center in slice_centers():
        np.testing.assert_allclose(center, expected, atol=1)


@pytest.mark.parametrize("damage", ["text", {}, [3], [{"kind": "doubtful"}], [{"kind": "odd", "organ": "heart"}]])
def test_places_that_nobody_can_read_are_none(panel, damage):
    from FlareSegmentSlicerLib.scene import review, segmentation_nodes

    opened(panel)
    (node,) = segmentations()
    good = review.places(node)
    segmentation_nodes.set_fact(node, review.PLACES, damage)
    panel.app.processEvents()
    assert review.places(node) == [] and not panel.ui.reviewCollapsibleButton.visible
    wrong = [{**good[0], "organ": "unheard"}, {**good[0], "center": [1.0, 2.0]}, {**good[0], "ml": "3"}]
    segmentation_nodes.set_fact(node, review.PLACES, [*wrong, good[1]])
    panel.app.processEvents()
    assert review.places(node) == [good[1]] and len(rows(panel)) == 1
