"""What can be done with a result in the panel: look, measure, compare, undo, export; and what can be chosen before."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from panel_driver import add_ct, segmentations

from FlareSegmentLib.measures.result_table import COLUMNS
from FlareSegmentLib.organs import ORGANS

pytest_plugins = ("panel_driver",)


def center_of_cell(table, row, column):
    return table.visualItemRect(table.item(row, column)).center()


def click_cell(panel, row, column=1):
    import qt
    from PyQt5.QtTest import QTest

    table = panel.ui.organTable
    QTest.mouseClick(table.viewport(), qt.Qt.LeftButton, pos=center_of_cell(table, row, column))
    panel.app.processEvents()


def press(panel, widget, key):
    from PyQt5.QtTest import QTest

    QTest.keyClick(widget, key)
    panel.app.processEvents()


def choose(panel, button, text):
    """Open a button's menu and trigger the entry with this text."""
    menu = button.menu()
    menu.aboutToShow.emit()
    action = next(action for action in menu.actions() if action.text == text)
    action.trigger()
    panel.app.processEvents()


def slice_centers():
    import slicer

    found = []
    for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
        matrix = node.GetSliceToRAS()
        found.append([matrix.GetElement(row, 3) for row in range(3)])
    return found


def expected_center(ct, label):
    import slicer

    index = np.mean(np.nonzero(slicer.util.arrayFromVolume(ct) == 1000 + label), axis=1)[::-1]
    return np.diag([-5.0, -5.0, 5.0]) @ index


def test_a_click_on_an_organ_shows_it_in_all_views(panel):
    ct = add_ct()
    panel.run()
    for row, organ in enumerate(ORGANS):
        click_cell(panel, row)
        for center in slice_centers():
            np.testing.assert_allclose(center, expected_center(ct, organ.label), atol=6)


def test_the_table_works_with_the_keyboard_alone(panel):
    import qt

    ct = add_ct()
    panel.run()
    names = panel.ui.organNames
    names.setFocus()
    names.setCurrentIndex(names.model().index(0, 0))
    press(panel, names, qt.Qt.Key_Down)
    press(panel, names, qt.Qt.Key_Down)
    press(panel, names, qt.Qt.Key_Return)
    for center in slice_centers():
        np.testing.assert_allclose(center, expected_center(ct, ORGANS[2].label), atol=6)
    press(panel, names, qt.Qt.Key_Space)
    display = segmentations()[0].GetDisplayNode()
    assert [display.GetSegmentVisibility(organ.key) for organ in ORGANS] == [True, True, False, True]


def test_the_check_box_hides_an_organ(panel):
    from PyQt5.QtCore import QPoint, Qt
    from PyQt5.QtTest import QTest

    add_ct()
    panel.run()
    rect = panel.name_rect(3)
    place = QPoint(rect.left() + 10, rect.center().y())
    QTest.mouseClick(panel.ui.organNames.viewport(), Qt.LeftButton, pos=place)
    display = segmentations()[0].GetDisplayNode()
    assert [display.GetSegmentVisibility(organ.key) for organ in ORGANS] == [True, True, True, False]


def test_the_table_says_what_was_measured(panel):
    import slicer

    ct = add_ct()
    array = slicer.util.arrayFromVolume(ct)
    array[0, 10:14, 10:12] = 1002
    array[array == 1003] = 40
    panel.run()
    liver = array == 1001
    extent = [int((np.ptp(np.nonzero(liver)[axis]) + 1) * 5) for axis in (2, 1, 0)]
    assert panel.table[0] == ["Liver", f"{liver.sum() * 0.125:.1f}", "1001 ± 0", " × ".join(map(str, extent)), ""]
    assert panel.table[1][-1] == "cut by the edge" and panel.table[1][1].startswith("≥ ")
    assert panel.table[2] == ["Left kidney", "–", "–", "–", "not found"]


def test_the_table_goes_to_the_clipboard_and_into_a_file(panel, tmp_path, monkeypatch):
    import qt

    add_ct()
    panel.run()
    panel.click(panel.ui.copyTableButton)
    lines = [line.split("\t") for line in qt.QApplication.clipboard().text().splitlines()]
    assert lines[0] == ["Organ", "mL", "HU", "Extent (mm)"]
    assert lines[1:] == panel.table
    path = tmp_path / "ein Ergebnis ö.csv"
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *arguments: str(path))
    panel.click(panel.ui.saveTableButton)
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["organ"] for row in rows] == ["liver", "right_kidney", "left_kidney", "spleen"]
    assert list(rows[0]) == ["organ", *COLUMNS]  # as the headless script writes it
    assert f"{float(rows[0]['volume_ml']):.1f}" == lines[1][1].removeprefix("≥ ")
    assert all(value == "" or float(value) >= -1024 for row in rows for key, value in row.items() if key != "organ")
    assert str(path) in panel.message
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *arguments: str(tmp_path / "no" / "place.csv"))
    panel.click(panel.ui.saveTableButton)
    assert "cannot be written" in panel.message


def test_undo_brings_back_the_organs_and_their_numbers(panel):
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    ct = add_ct()
    panel.run()
    assert not panel.ui.undoButton.visible
    first = panel.table
    array = slicer.util.arrayFromVolume(ct)
    array[:, :, :20][array[:, :, :20] == 1001] = 40
    slicer.util.arrayFromVolumeModified(ct)
    panel.run()
    second = panel.table
    assert first[0] != second[0]
    panel.click(panel.ui.undoButton)
    assert panel.table == first
    (node,) = segmentations()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct)
    assert f"{mask.sum() * 0.125:.1f}" == first[0][1]
    assert not segmentation_nodes.edited_organs(node)
    panel.click(panel.ui.undoButton)
    assert panel.table == second
    assert len(segmentations()) == 1


def test_an_undo_never_reaches_another_scene(panel):
    import slicer

    add_ct()
    panel.run()
    panel.run()
    assert panel.ui.undoButton.visible
    slicer.mrmlScene.Clear(False)
    add_ct()
    panel.run()
    assert not panel.ui.undoButton.visible


def test_an_edited_organ_is_noted_in_the_table(panel):
    import slicer

    ct = add_ct()
    panel.run()
    (node,) = segmentations()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "spleen", ct).copy()
    mask[20:22, 20:22, 20:22] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "spleen", ct)
    panel.until(lambda: [row[-1] for row in panel.table] == ["", "", "", "edited since"])


def reference_of(ct, shift):
    """A segmentation by hand: the organs of the CT, moved along x by some voxels; no left kidney."""
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    array = slicer.util.arrayFromVolume(ct)
    labels = np.roll(np.where(array >= 1000, array - 1000, 0), shift, axis=2).astype(np.uint8)
    labels[labels == 3] = 0
    node = segmentation_nodes.create_segmentation(ct, labels)
    node.SetName("Drawn by hand")
    segmentation = node.GetSegmentation()
    for index in range(segmentation.GetNumberOfSegments()):
        segmentation.GetNthSegment(index).RemoveTag(segmentation_nodes.ORGAN_TAG)
    return node, labels


def test_a_reference_gives_scores_and_a_difference(panel, tmp_path, screenshots):
    import slicer

    from FlareSegmentLib.measures.metrics import evaluate
    from FlareSegmentSlicerLib.scene import comparison

    ct = add_ct()
    panel.run()
    node = panel.ui.outputSelector.currentNode()
    reference, labels = reference_of(ct, 1)
    panel.ui.compareCollapsibleButton.collapsed = False
    assert not panel.ui.compareButton.enabled
    panel.ui.referenceSelector.setCurrentNode(node)
    assert not panel.ui.compareButton.enabled
    panel.ui.referenceSelector.setCurrentNode(reference)
    panel.click(panel.ui.compareButton)
    panel.until(lambda: panel.ui.compareButton.text == "Compare")
    array = slicer.util.arrayFromVolume(ct)
    found = np.where(array >= 1000, array - 1000, 0).astype(np.uint8)
    scores = evaluate(found, labels, ct.GetSpacing())
    for row, organ in zip(panel.table, ORGANS, strict=True):
        values = [f"{scores[organ.key][name]:{form}}" for name, form in (("dice", ".3f"), ("nsd", ".3f"))]
        expected = [*values, f"{scores[organ.key]['hd95_mm']:.1f}"] if organ.key != "left_kidney" else ["", "", ""]
        assert row[3:6] == expected
    difference = comparison.difference_node(node)
    counts = {}
    for index in range(difference.GetSegmentation().GetNumberOfSegments()):
        segment_id = difference.GetSegmentation().GetNthSegmentID(index)
        name = difference.GetSegmentation().GetSegment(segment_id).GetName()
        counts[name] = int(slicer.util.arrayFromSegmentBinaryLabelmap(difference, segment_id, ct).sum())
    found[found == 3] = 0
    assert counts == {
        "Only in the reference": int(((labels > 0) & (found == 0)).sum()),
        "Only in the result": int(((labels == 0) & (found > 0)).sum()),
    }
    assert panel.ui.differenceCheckBox.checked
    click_cell(panel, 0)
    panel.grab(screenshots / "panel_comparison.png")
    panel.click(panel.ui.differenceCheckBox)
    assert not difference.GetDisplayNode().GetVisibility()
    table = panel.table
    file = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(file)
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(file)
    panel.app.processEvents()
    assert panel.table == table
    assert panel.ui.referenceSelector.currentNode().GetName() == "Drawn by hand"
    panel.run()
    assert len(panel.table[0]) == 4  # the scores were those of the result that is no more


def test_a_label_map_on_another_grid_with_the_values_of_flare22_is_a_reference(panel):
    import slicer

    ct = add_ct()
    panel.run()
    array = slicer.util.arrayFromVolume(ct)
    values = np.array([0, 1, 2, 13, 3], np.uint8)[np.where(array >= 1000, array - 1000, 0)]
    part = values[2:, 1:, 3:]
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLabelMapVolumeNode", "FLARE22_labels")
    slicer.util.updateVolumeFromArray(node, part)
    matrix = np.diag([-5.0, -5.0, 5.0, 1.0])
    matrix[:3, 3] = [-15.0, -5.0, 10.0]
    import vtk

    ijk_to_ras = vtk.vtkMatrix4x4()
    ijk_to_ras.DeepCopy(matrix.ravel().tolist())
    node.SetIJKToRASMatrix(ijk_to_ras)
    panel.ui.referenceSelector.setCurrentNode(node)
    panel.click(panel.ui.compareButton)
    panel.until(lambda: panel.ui.compareButton.text == "Compare")
    assert [row[3] for row in panel.table] == ["1.000"] * 4, panel.message


def test_a_comparison_can_be_cancelled(panel):
    import slicer

    from FlareSegmentSlicerLib.scene import comparison

    ct = add_ct()
    panel.run()
    node = panel.ui.outputSelector.currentNode()
    reference, _ = reference_of(ct, 1)
    segmentation = reference.GetSegmentation()
    for name in ("Liver", "Right kidney", "Left kidney"):
        segmentation.RemoveSegment(segmentation.GetSegmentIdBySegmentName(name))
    panel.ui.compareCollapsibleButton.collapsed = False
    panel.ui.referenceSelector.setCurrentNode(reference)
    panel.click(panel.ui.compareButton)  # of the spleen alone, which this worker never ends
    assert panel.ui.compareButton.text == "Cancel" and panel.ui.compareButton.enabled
    assert panel.message == "Comparing with Drawn by hand…"
    panel.until(lambda: any(one.waiting for one in panel.logic._worker._conversations))
    table = panel.table
    panel.click(panel.ui.compareButton)
    assert (panel.ui.compareButton.text, panel.message) == (
        "Compare",
        "The comparison was cancelled. Nothing was changed.",
    )
    assert comparison.difference_node(node) is None and panel.table == table
    liver, _ = reference_of(ct, 1)
    panel.ui.referenceSelector.setCurrentNode(liver)
    panel.click(panel.ui.compareButton)
    panel.until(lambda: panel.ui.compareButton.text == "Compare")  # once the deaf worker has been replaced
    assert comparison.difference_node(node) is not None and panel.message == ""
    # a segmentation that is cancelled takes a comparison with it, which is said to the one who waits
    told = []
    panel.logic.startComparison(node, reference, onCancelled=told.append)
    panel.use("slow")
    panel.click(panel.ui.segmentButton)
    assert panel.logic.isRunning and not told
    panel.click(panel.ui.segmentButton)
    assert told == ["The comparison was cancelled. Nothing was changed."]
    assert slicer.mrmlScene.GetNodeByID(node.GetID()) is node


def test_a_reference_without_organs_is_said(panel):
    import slicer

    add_ct()
    panel.run()
    other = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "Bones")
    panel.ui.referenceSelector.setCurrentNode(other)
    panel.click(panel.ui.compareButton)
    assert "Bones holds none of the organs" in panel.message
    assert panel.ui.compareButton.text == "Compare"


def shown_opacities():
    """Opacities with which the 3D view draws surfaces."""
    import slicer

    actors = slicer.app.layoutManager().activeThreeDRenderer().GetActors()
    shown = [actors.GetItemAsObject(index) for index in range(actors.GetNumberOfItems())]
    return [actor.GetProperty().GetOpacity() for actor in shown if is_surface(actor)]


def is_surface(actor):
    data = actor.GetMapper().GetInput() if actor.GetVisibility() and actor.GetMapper() else None
    return data is not None and data.GetNumberOfPolys() > 100


def test_smoothing_opacity_and_volume_rendering(panel, screenshots):
    import slicer

    from FlareSegmentSlicerLib.scene import display

    ct = add_ct()
    panel.run()
    node = segmentations()[0]
    panel.ui.displayCollapsibleButton.collapsed = False
    panel.app.processEvents()
    assert panel.ui.smoothingSlider.value == 0.5

    def corner_points():
        return node.GetSegmentation().GetSegment("liver").GetRepresentation("Closed surface").GetBounds()

    before = corner_points()
    panel.ui.smoothingSlider.value = 1.0
    assert display.smoothing(node) == 1.0
    assert corner_points() != before
    panel.ui.opacitySlider.value = 0.4
    panel.app.processEvents()
    assert shown_opacities() == pytest.approx([0.4] * 4)
    panel.click(panel.ui.volumeRenderingCheckBox)
    rendering = slicer.modules.volumerendering.logic().GetFirstVolumeRenderingDisplayNode(ct)
    assert rendering.GetVisibility()
    panel.grab(screenshots / "panel_volume_rendering.png")
    panel.click(panel.ui.volumeRenderingCheckBox)
    assert not rendering.GetVisibility()


def test_surfaces_come_with_the_result_or_not_at_all(panel):
    add_ct()
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.app.processEvents()
    panel.click(panel.ui.autoShow3DCheckBox)
    assert not panel.ui.autoShow3DCheckBox.checked
    panel.run()
    (node,) = segmentations()
    assert not node.GetSegmentation().ContainsRepresentation("Closed surface")
    panel.click(panel.ui.show3DButton)
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    panel.click(panel.ui.autoShow3DCheckBox)
    panel.run()
    assert node.GetDisplayNode().GetVisibility3D()


def test_the_3d_views_show_all_of_a_new_result_and_are_left_alone_later(panel):
    import slicer

    from FlareSegmentSlicerLib.scene import display

    add_ct()
    camera = slicer.app.layoutManager().threeDWidget(0).threeDView().cameraNode()
    camera.SetFocalPoint(1000.0, 2000.0, 3000.0)
    panel.run()
    (node,) = segmentations()
    bounds = np.zeros(6)
    node.GetRASBounds(bounds)
    center, radius = (bounds[::2] + bounds[1::2]) / 2, np.linalg.norm(bounds[1::2] - bounds[::2]) / 2
    np.testing.assert_allclose(camera.GetFocalPoint(), center, atol=1e-6)
    distance = np.linalg.norm(np.subtract(camera.GetPosition(), center))
    assert distance * np.sin(np.radians(camera.GetViewAngle() / 2)) == pytest.approx(radius)
    camera.SetFocalPoint(1000.0, 2000.0, 3000.0)
    panel.run()
    assert segmentations() == [node] and node.GetDisplayNode().GetVisibility3D()
    assert camera.GetFocalPoint() == (1000.0, 2000.0, 3000.0)
    display.show_all_of(slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode"))
    assert camera.GetFocalPoint() == (1000.0, 2000.0, 3000.0)


def test_the_only_organ_of_a_model_is_named(panel, tmp_path):
    import json

    content = {"name": "one", "version": "1", "license": "none", "labels": {"1": "spleen"}}
    (tmp_path / "model.json").write_text(json.dumps(content))
    panel.ui.modelPathEdit.currentPath = str(tmp_path)
    panel.app.processEvents()
    assert panel.ui.organsButton.text == "Spleen"


def test_only_chosen_organs_are_kept(panel):
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    add_ct()
    panel.ui.modelPathEdit.currentPath = str(Path(__file__).parents[3] / "FlareSegment/Resources/Models/abdomen")
    panel.app.processEvents()
    assert panel.ui.organsButton.text == "All 4"
    assert "Liver 0." in panel.ui.modelSummaryLabel.toolTip
    choose(panel, panel.ui.organsButton, "Left kidney")
    choose(panel, panel.ui.organsButton, "Spleen")
    assert panel.ui.organsButton.text == "Liver, Right kidney"
    model = panel.widget._options.model
    assert model.name == "abdomen"
    found = []
    worker = panel.logic._worker
    segment = worker.segment
    worker.segment = lambda volume, request, listener: (
        found.append(request),
        segment(volume, replace(request, model=Path("good")), listener),
    )
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: not panel.logic.isRunning)
    assert found[0].model == model and found[0].organs == ("liver", "right_kidney")
    (node,) = segmentations()
    assert list(segmentation_nodes.organ_segments(node)) == ["liver", "right_kidney"]
    assert segmentation_nodes.read_description(node)["Settings"]["organs"] == ["liver", "right_kidney"]
    choose(panel, panel.ui.organsButton, "Liver")
    choose(panel, panel.ui.organsButton, "Right kidney")
    assert panel.ui.organsButton.text == "All 4"


def test_the_card_of_the_model_is_shown(panel, tmp_path):
    panel.ui.modelPathEdit.currentPath = str(Path(__file__).parents[3] / "FlareSegment/Resources/Models/abdomen")
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.app.processEvents()
    panel.click(panel.ui.modelCardButton)
    window = panel.widget._options._cardWindow
    assert window.visible
    assert "trained" in panel.widget._options._cardText.toPlainText()
    window.close()
    panel.ui.modelPathEdit.currentPath = str(tmp_path)
    panel.app.processEvents()
    assert not panel.ui.modelCardButton.enabled
    assert "No model in" in panel.ui.modelSummaryLabel.text


def add_region(ct, center, size):
    import slicer

    roi = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "Region")
    roi.SetCenterWorld(*center)
    roi.SetSizeWorld(*size)
    return roi


def test_organs_are_kept_inside_the_region(panel):
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    ct = add_ct()
    center = expected_center(ct, 1)
    size = np.array([61.3, 52.1, 71.7])
    roi = add_region(ct, center, size)
    panel.ui.roiSelector.setCurrentNode(roi)
    panel.run()
    (node,) = segmentations()
    array = slicer.util.arrayFromVolume(ct)
    k, j, i = np.indices(array.shape)
    ras = np.stack([-5.0 * i, -5.0 * j, 5.0 * k], axis=-1)
    inside = np.all(np.abs(ras - center) <= size / 2, axis=-1)
    expected = (array == 1001) & inside
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct) > 0
    assert 0 < expected.sum() < (array == 1001).sum()
    np.testing.assert_array_equal(mask, expected)
    assert set(segmentation_nodes.organ_segments(node)) == {"liver"}
    assert not segmentation_nodes.edited_organs(node)
    assert panel.table[0][-1] == "cut by the edge"
    assert segmentation_nodes.read_description(node)["Settings"]["region"] == "Region"


def test_a_region_under_transforms_is_found_in_the_ct(slicer_app):
    import slicer
    import vtk

    from FlareSegmentSlicerLib.scene.region_of_interest import region_of_interest
    from FlareSegmentSlicerLib.scene.segmentation_nodes import volume_from_node

    matrix = np.diag([-2.0, -2.0, 4.0, 1.0])
    ct = slicer.util.addVolumeFromArray(np.zeros((40, 60, 80), np.int16), ijkToRAS=matrix, name="CT")
    roi = add_region(ct, (-60.0, -40.0, 80.0), (39.0, 19.0, 27.0))
    expected = region_of_interest(ct, volume_from_node(ct), roi)
    kept = [slice(a.start + b.start, a.start + b.stop) for a, b in zip(expected.seen, expected.kept, strict=True)]
    assert kept == [slice(17, 24), slice(16, 25), slice(21, 40)]
    transform = vtk.vtkMatrix4x4()
    transform.DeepCopy([0, -1, 0, 11, 1, 0, 0, -7, 0, 0, 1, 3, 0, 0, 0, 1])
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "Turned")
    node.SetMatrixTransformToParent(transform)
    for moved in (ct, roi):
        moved.SetAndObserveTransformNodeID(node.GetID())
    assert region_of_interest(ct, volume_from_node(ct), roi) == expected


@pytest.mark.parametrize("case", ["outside", "flat"])
def test_a_region_that_cannot_be_used_is_said(panel, case):
    ct = add_ct()
    roi = add_region(
        ct,
        (900.0, 0.0, 0.0) if case == "outside" else (0.0, 0.0, 0.0),
        (10.0, 10.0, 10.0) if case == "outside" else (0.0, 0.0, 0.0),
    )
    panel.ui.roiSelector.setCurrentNode(roi)
    panel.click(panel.ui.segmentButton)
    assert not panel.logic.isRunning
    assert "Region" in panel.message and ("outside" in panel.message or "no size" in panel.message)


def test_several_cts_are_segmented_one_after_another(panel):
    add_ct("First")
    second, third = add_ct("Second"), add_ct("Third")
    choose(panel, panel.ui.volumesButton, "Second")
    choose(panel, panel.ui.volumesButton, "Third")
    assert panel.ui.volumesButton.text == "2 more"
    stages = set()

    def ended():
        stages.add(panel.ui.progressBar.format.split(" of ")[0])
        return not panel.logic.isRunning

    panel.use("good")
    panel.click(panel.ui.segmentButton)
    panel.until(ended, pause=0.0)
    assert stages >= {"1", "2", "3"}
    assert sorted(node.GetName() for node in segmentations()) == ["First organs", "Second organs", "Third organs"]
    assert panel.ui.outputSelector.currentNode().GetName() == "First organs"
    for ct in (second, third):
        panel.ui.inputSelector.setCurrentNode(ct)
        assert panel.ui.outputSelector.currentNode().GetName() == f"{ct.GetName()} organs"


def test_one_ct_that_fails_does_not_stop_the_others(panel):
    import slicer

    add_ct("First")
    slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "Empty")
    add_ct("Third")
    choose(panel, panel.ui.volumesButton, "Empty")
    choose(panel, panel.ui.volumesButton, "Third")
    panel.run()
    assert sorted(node.GetName() for node in segmentations()) == ["First organs", "Third organs"]
    assert "Empty holds no image" in panel.message


def test_cancelling_several_cts_keeps_what_was_done(panel):
    add_ct("First")
    add_ct("Second")
    choose(panel, panel.ui.volumesButton, "Second")
    worker = panel.logic._worker
    segment, kinds = worker.segment, iter(["good", "slow"])
    worker.segment = lambda volume, request, listener: segment(
        volume, replace(request, model=Path(next(kinds))), listener
    )
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: panel.ui.progressBar.value > 51)
    panel.click(panel.ui.segmentButton)
    assert not panel.logic.isRunning
    assert [node.GetName() for node in segmentations()] == ["First organs"]
    assert panel.message == "Cancelled after 1 of 2; what was done is kept."


def add_sequence(count=3):
    """A CT that changes over time, shown by a sequence browser."""
    import slicer

    first = add_ct("Perfusion")
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Frames")
    sequence.SetIndexName("time")
    sequence.SetIndexUnit("s")
    array = slicer.util.arrayFromVolume(first)
    for index in range(count):
        array[index, 0, 0] = 1004
        sequence.SetDataNodeAtValue(first, str(index * 10))
    slicer.mrmlScene.RemoveNode(first)
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    return browser, browser.GetProxyNode(sequence)


def test_a_sequence_is_segmented_frame_by_frame(panel):
    import slicer

    add_ct("Another")
    assert not panel.ui.sequenceCheckBox.isVisibleTo(panel.ui.advancedCollapsibleButton)
    browser, ct = add_sequence()
    panel.ui.advancedCollapsibleButton.collapsed = False
    panel.ui.inputSelector.setCurrentNode(ct)
    panel.app.processEvents()
    assert panel.ui.sequenceCheckBox.visible
    panel.click(panel.ui.sequenceCheckBox)
    panel.run()
    (node,) = segmentations()
    assert panel.ui.outputSelector.currentNode() is node
    counts = []
    for index in range(3):
        browser.SetSelectedItemNumber(index)
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "spleen", ct)
        counts.append(int(mask.sum()))
    assert counts[1] - counts[0] == 1 and counts[2] - counts[1] == 1


def test_python_segments_several_cts_and_sequences(panel):
    import slicer

    logic = slicer.util.getModuleLogic("FlareSegment")
    panel.use("good")
    cts = [add_ct("First"), add_ct("Second")]
    nodes = logic.segmentVolumes(cts, organs=["liver"])
    assert [node.GetName() for node in nodes] == ["First organs", "Second organs"]
    _browser, ct = add_sequence(2)
    node = logic.segmentSequence(ct)
    assert node.GetSegmentation().GetNumberOfSegments() == 4


def test_another_modality_is_warned_of(panel, screenshots):
    import slicer

    ct = add_ct()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    hierarchy.SetItemAttribute(hierarchy.GetItemByDataNode(ct), "DICOM.Modality", "MR")
    panel.run()
    assert "tagged as MR, not as CT" in panel.warning
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    description = segmentation_nodes.read_description(segmentations()[0])
    assert "tagged as MR" in description["Warnings"][0]
    assert description["Version"] and description["Model"] == "fake 1"
    assert description["Settings"] == {"device": "auto", "organs": None, "region": None}
    panel.grab(screenshots / "panel_warning.png")


def export_as(panel, monkeypatch, kind, place):
    import qt

    combo = panel.ui.formatComboBox
    panel.ui.exportCollapsibleButton.collapsed = False
    combo.setCurrentIndex(combo.findData(kind))
    monkeypatch.setattr(qt.QFileDialog, "getSaveFileName", lambda *arguments: str(place))
    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *arguments: str(place))
    panel.app.processEvents()
    panel.click(panel.ui.exportButton)


@pytest.mark.parametrize(
    ("table", "values"), [("flaresegment", (1, 2, 3, 4)), ("flare22", (1, 2, 13, 3)), ("custom", (9, 8, 7, 60))]
)
def test_a_label_map_is_exported_with_the_chosen_values(panel, tmp_path, monkeypatch, table, values):
    import SimpleITK as sitk
    import slicer

    ct = add_ct()
    panel.run()
    combo = panel.ui.labelValuesComboBox
    combo.setCurrentIndex(combo.findData(table))
    panel.ui.labelValuesEdit.text = "9, 8 7,60"
    export_as(panel, monkeypatch, "labels", tmp_path / "out")
    image = sitk.ReadImage(str(tmp_path / "out.nii.gz"))
    array = slicer.util.arrayFromVolume(ct)
    expected = np.array([0, *values])[np.where(array >= 1000, array - 1000, 0)]
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), expected)
    np.testing.assert_allclose(image.GetDirection(), np.eye(3).ravel())
    assert [file.name for file in tmp_path.iterdir()] == ["out.nii.gz"]
    assert "out.nii.gz" in panel.message


@pytest.mark.parametrize("text", ["1, 2, 3", "1 2 3 three", "1 1 2 3", "1 2 3 300"])
def test_label_values_that_cannot_be_are_refused(panel, tmp_path, monkeypatch, text):
    add_ct()
    panel.run()
    panel.ui.labelValuesComboBox.setCurrentIndex(2)
    panel.ui.labelValuesEdit.text = text
    export_as(panel, monkeypatch, "labels", tmp_path / "out.nii.gz")
    assert "numbers" in panel.message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("kind", "endings"), [("STL", {".stl"}), ("OBJ", {".obj", ".mtl"})])
def test_surfaces_are_exported_where_the_patient_is(panel, tmp_path, monkeypatch, kind, endings):
    import vtk

    ct = add_ct()
    panel.run()
    export_as(panel, monkeypatch, kind, tmp_path)
    files = sorted(tmp_path.iterdir())
    assert {file.suffix for file in files} == endings
    reader = vtk.vtkSTLReader() if kind == "STL" else vtk.vtkOBJReader()
    liver = next(file for file in files if file.suffix != ".mtl" and ("Liver" in file.name or kind == "OBJ"))
    reader.SetFileName(str(liver))
    reader.Update()
    bounds = np.array(reader.GetOutput().GetBounds()).reshape(3, 2)
    center = expected_center(ct, 1) * [-1, -1, 1]  # LPS
    assert np.all(bounds[:, 0] < center) and np.all(bounds[:, 1] > center)


def test_a_dicom_segmentation_needs_a_ct_from_dicom(panel, tmp_path, monkeypatch):
    add_ct()
    panel.run()
    export_as(panel, monkeypatch, "dicom", tmp_path / "seg.dcm")
    assert "was not loaded from DICOM" in panel.message
    assert not list(tmp_path.iterdir())


def test_pictures_are_exported(panel, tmp_path, monkeypatch):
    add_ct()
    panel.run()
    export_as(panel, monkeypatch, "pictures", tmp_path)
    assert len(list(tmp_path.glob("*.png"))) == 2, panel.message


@pytest.mark.parametrize(("asked", "written"), [("turn.mp4", "turn.mp4"), ("turn.GIF", "turn.GIF"), ("a.b", "a.b.mp4")])
def test_a_video_shows_its_progress(panel, tmp_path, monkeypatch, asked, written):
    from FlareSegmentSlicerLib.rendering import videos

    add_ct()
    panel.run()
    seen = []

    def write(path, volume, labels, *, organs, progress):
        for fraction in (0.0, 0.5, 1.0):
            progress(fraction)
            seen.append((panel.ui.progressBar.visible, panel.ui.progressBar.value))
        Path(path).write_bytes(b"video")

    monkeypatch.setattr(videos, "write_turntable_video", write)
    export_as(panel, monkeypatch, "turntable", tmp_path / asked)
    assert seen == [(True, 0), (True, 50), (True, 100)]
    assert not panel.ui.progressBar.visible
    assert [file.name for file in tmp_path.iterdir()] == [written]


@pytest.mark.parametrize("kind", ["pictures", "turntable", "STL"])
def test_a_place_that_takes_no_files_is_said_in_words(panel, tmp_path, monkeypatch, kind):
    add_ct()
    panel.run()
    place = tmp_path / "gone"
    export_as(panel, monkeypatch, kind, place / "turn.gif" if kind == "turntable" else place)
    assert panel.message.endswith("gone cannot be written: No such file or directory"), panel.message


def test_a_video_can_be_cancelled_and_nothing_else_is_heard_meanwhile(panel, tmp_path, monkeypatch):
    from PyQt5.QtCore import Qt
    from PyQt5.QtTest import QTest

    from FlareSegmentSlicerLib.rendering import videos

    add_ct()
    panel.run()
    panel.widget._progress._started -= 480.0  # the run was eight minutes ago
    told = []

    def write(path, volume, labels, *, organs, progress):
        for fraction in (0.25, 0.5, 0.75):
            progress(fraction)
            told.append((fraction, panel.ui.progressBar.format))
            assert panel.ui.exportButton.text == "Cancel"
            if fraction == 0.5:
                QTest.mouseClick(panel.ui.segmentButton, Qt.LeftButton)
                assert not panel.logic.isRunning
                QTest.mouseClick(panel.ui.exportButton, Qt.LeftButton)
        raise AssertionError("went on")

    monkeypatch.setattr(videos, "write_turntable_video", write)
    export_as(panel, monkeypatch, "turntable", tmp_path / "turn.gif")
    assert [fraction for fraction, _ in told] == [0.25, 0.5]
    assert not any("min" in text for _, text in told)
    assert "Cancelled" in panel.message and not list(tmp_path.iterdir())
    assert panel.ui.exportButton.text == "Export…" and panel.ui.exportButton.enabled


def test_pictures_can_be_cancelled_and_then_there_is_none(panel, tmp_path, monkeypatch):
    from PyQt5.QtCore import Qt
    from PyQt5.QtTest import QTest

    from FlareSegmentSlicerLib.rendering import pictures

    add_ct()
    panel.run()
    ticks = []

    def draw_slices(path, volume, labels, organs):
        Path(path).write_bytes(b"slices")

    def draw_surfaces(path, volume, labels, organs, tick):
        for organ in organs:
            ticks.append(organ.key)
            if len(ticks) == 2:
                assert panel.ui.exportButton.text == "Cancel" and panel.ui.progressBar.visible
                QTest.mouseClick(panel.ui.exportButton, Qt.LeftButton)
            tick()

    monkeypatch.setattr(pictures, "slices_png", draw_slices)
    monkeypatch.setattr(pictures, "surfaces_png", draw_surfaces)
    export_as(panel, monkeypatch, "pictures", tmp_path)
    assert len(ticks) == 2
    assert "Cancelled" in panel.message and not list(tmp_path.iterdir())
    assert panel.ui.exportButton.text == "Export…" and not panel.ui.progressBar.visible


def test_choices_outlive_scene_and_panel(panel):
    import slicer

    panel.until(lambda: panel.ui.deviceComboBox.count == 4)
    combo = panel.ui.deviceComboBox
    combo.setFocus()
    import qt

    press(panel, combo, qt.Qt.Key_Down)
    assert combo.itemData(combo.currentIndex) == "cpu"
    slicer.mrmlScene.Clear(False)
    panel.app.processEvents()
    assert combo.itemData(combo.currentIndex) == "cpu"
    slicer.util.reloadScriptedModule("FlareSegment")
    widget = slicer.util.getModuleWidget("FlareSegment")
    slicer.mrmlScene.Clear(False)
    slicer.util.selectModule("FlareSegment")
    panel.app.processEvents()
    again = widget.ui.deviceComboBox
    assert again.itemData(again.currentIndex) == "cpu"
    widget.logic.close()


def test_a_second_run_knows_how_long_it_will_take(panel):
    from FlareSegmentSlicerLib.panel.running_times import RunningTimes

    add_ct()
    RunningTimes().learn("slow on auto", 0.12, 60.0)
    panel.start("slow")
    panel.until(lambda: "left" in panel.ui.progressBar.text)
    assert "about" in panel.ui.progressBar.text
    panel.click(panel.ui.segmentButton)
    panel.run("good")
    assert RunningTimes().expected("good on auto", 0.12) == pytest.approx(1.0, abs=20)
    assert RunningTimes().expected("other on auto", 0.12) is None


def test_remaining_time():
    pytest.importorskip("slicer_core", reason="slicer-core is not installed")
    from FlareSegmentSlicerLib.panel.running_times import remaining_seconds, remaining_text

    assert remaining_seconds(0.0, 0.5, None) is None
    assert remaining_seconds(0.5, 10.0, None) == 10.0
    assert remaining_seconds(0.0, 2.0, 20.0) == 18.0
    assert remaining_seconds(0.9, 90.0, 20.0) == pytest.approx(9.0, abs=1.5)  # slower than ever: its own pace counts
    assert remaining_text(None) == remaining_text(0.4) == ""
    assert remaining_text(3.2) == "about 3 s left"
    assert remaining_text(43.0) == "about 45 s left"
    assert remaining_text(400.0) == "about 7 min left"


def test_buttons_do_not_jump(panel):
    """Neither when a message comes and goes, nor the progress bar, nor Undo."""
    import qt

    add_ct()
    panel.run()
    ui = panel.ui

    def places():
        panel.app.processEvents()
        buttons = (
            ui.segmentButton,
            ui.show3DButton,
            ui.copyTableButton,
            ui.saveTableButton,
            ui.compareCollapsibleButton,
        )
        return [(button.mapTo(ui.FlareSegment, qt.QPoint(0, 0)), button.width) for button in buttons]

    before = places()
    panel.click(ui.copyTableButton)
    assert panel.message and places() == before
    panel.widget._showMessage("")
    assert places() == before
    ui.progressBar.setVisible(True)
    assert places() == before
    ui.undoButton.setVisible(not ui.undoButton.visible)
    assert places() == before


def test_a_sample_is_one_click_away(panel):
    import slicer

    assert panel.ui.sampleButton.visible
    panel.widget._samples.load("CTLiver")
    assert "CTLiver could not be loaded" in panel.message and "phantom" in panel.message
    choose(panel, panel.ui.sampleButton, "Torso phantom (no download)")
    assert panel.message == ""
    assert panel.ui.inputSelector.currentNode().GetName() == "Torso phantom"
    assert not panel.ui.sampleButton.visible
    panel.module.register_sample_data()
    names = [source.sampleName for source in slicer.modules.sampleDataSources["FlareSegment"]]
    assert "FlareSegmentTorsoPhantom" in names


def test_samples_that_this_slicer_cannot_load_are_grey(panel):
    menu = panel.ui.sampleButton.menu()
    menu.aboutToShow.emit()
    offered = {action.text: action.enabled for action in menu.actions()}
    assert offered["Torso phantom (no download)"]
    assert not offered["CTLiver (this Slicer downloads nothing)"]
    assert "Sample Data" not in panel.ui.hintLabel.text and "DICOM" not in panel.ui.hintLabel.text


def test_a_ct_and_a_reference_are_loaded_where_slicer_has_no_dialog(panel, tmp_path, monkeypatch):
    import qt
    import SimpleITK as sitk

    values = np.full((30, 60, 60), -1000, np.int16)
    values[:, 10:50, 10:50] = np.random.default_rng(0).integers(-120, 200, (30, 40, 40))
    for name, array in (("ct.nii.gz", values), ("reference.nii.gz", (values > 100).astype(np.uint8))):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((5.0, 5.0, 8.0))
        sitk.WriteImage(image, str(tmp_path / name))
    (tmp_path / "damaged.nii.gz").write_bytes((tmp_path / "ct.nii.gz").read_bytes()[:2000])
    chosen = ["damaged.nii.gz"]
    monkeypatch.setattr(qt.QFileDialog, "getOpenFileName", lambda *arguments: str(tmp_path / chosen[0]))
    assert panel.ui.loadButton.visible
    choose(panel, panel.ui.loadButton, "File…")
    assert "damaged.nii.gz" in panel.message and panel.ui.inputSelector.currentNode() is None
    add_ct()
    chosen[0] = "ct.nii.gz"
    choose(panel, panel.ui.loadButton, "File…")
    ct = panel.ui.inputSelector.currentNode()
    assert ct.GetName() == "ct" and "damaged" not in panel.message
    display = ct.GetDisplayNode()
    assert (display.GetWindow(), display.GetLevel(), display.GetAutoWindowLevel()) == (400, 40, 0)
    chosen[0] = "reference.nii.gz"
    panel.ui.loadReferenceButton.click()
    reference = panel.ui.referenceSelector.currentNode()
    assert reference.GetName() == "reference" and reference.IsA("vtkMRMLLabelMapVolumeNode")


def test_slicers_own_loading_is_not_doubled(panel, monkeypatch):
    import slicer

    from FlareSegmentSlicerLib.panel.load_section import LoadSection

    with monkeypatch.context() as patch:
        patch.setattr(type(slicer.app.ioManager()), "openAddDataDialog", lambda self: True, raising=False)
        LoadSection(panel.ui, None, None, None)
        panel.widget._updateState()
        assert not panel.ui.loadButton.visible and "Sample Data" in panel.ui.hintLabel.text
    LoadSection(panel.ui, None, None, None)
    assert panel.ui.loadButton.visible


def test_the_way_without_network_is_told(panel, monkeypatch):
    monkeypatch.setattr(panel.module.installation, "torch_installed", lambda: False)
    panel.widget._updateState()
    panel.click(panel.ui.offlineButton)
    assert "pip download" in panel.message and "--no-index" in panel.message


def test_the_result_describes_itself_as_json(panel):
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    add_ct()
    panel.run()
    (node,) = segmentations()
    table = json.loads(node.GetAttribute("FlareSegment.OrganTable"))
    assert set(table) == {organ.key for organ in ORGANS}
    assert segmentation_nodes.read_description(node)["Warnings"] == ["The slices are thick."]


def test_a_dicom_segmentation_of_a_ct_from_dicom_comes_back(panel, tmp_path, monkeypatch):
    pytest.importorskip("highdicom", reason="highdicom is not installed")
    import slicer
    from dicom_files import patient

    from FlareSegmentLib.files.dicom_segmentation import read_dicom_segmentation
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    volume, labels, files = patient(tmp_path / "ct", "Doe^Jane")
    ct = slicer.util.loadVolume(str(files[0]))
    scan = segmentation_nodes.volume_from_node(ct)
    assert scan.same_grid(volume)
    segmentation_nodes.create_segmentation(ct, labels, description={"OrganTable": {"liver": {"volume_ml": 0.0}}})
    panel.widget.onParameterNodeModified()
    panel.ui.outputSelector.setCurrentNode(segmentations()[0])
    export_as(panel, monkeypatch, "dicom", tmp_path / "organs")
    assert "organs.dcm" in panel.message
    read = read_dicom_segmentation(tmp_path / "organs.dcm", like=scan)
    np.testing.assert_array_equal(read.organ_labels().array, labels)


def test_an_organ_with_another_name_is_still_known_as_edited(panel):
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    ct = add_ct()
    panel.run()
    (node,) = segmentations()
    segment = node.GetSegmentation().GetSegment(segmentation_nodes.organ_segments(node)["spleen"])
    segment.SetName("Splen")
    assert segmentation_nodes.edited_organ_keys(node) == []
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, "spleen", ct).copy()
    mask[20:22, 20:22, 20:22] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, "spleen", ct)
    panel.until(lambda: [row[-1] for row in panel.table] == ["", "", "", "edited since"])


def offered(selector):
    """Names that a node selector offers."""
    return [selector.nodeFromIndex(index).GetName() for index in range(selector.nodeCount())]


def test_differences_are_neither_output_nor_reference_and_the_result_is_not_its_own_reference(panel):
    ct = add_ct()
    panel.run()
    node = panel.ui.outputSelector.currentNode()
    reference, _labels = reference_of(ct, 1)
    assert offered(panel.ui.referenceSelector) == ["Drawn by hand"]
    panel.ui.referenceSelector.setCurrentNode(reference)
    panel.click(panel.ui.compareButton)
    panel.until(lambda: panel.ui.compareButton.text == "Compare")
    assert len(segmentations()) == 3
    assert offered(panel.ui.referenceSelector) == ["Drawn by hand"]
    assert offered(panel.ui.outputSelector) == [node.GetName(), "Drawn by hand"]
    assert panel.ui.referenceSelector.currentNode() is reference
    assert panel.ui.outputSelector.currentNode() is node
    panel.ui.outputSelector.setCurrentNode(reference)
    assert panel.ui.referenceSelector.currentNode() is None
    assert offered(panel.ui.referenceSelector) == [node.GetName()]


@pytest.mark.parametrize("entered", [True, False])
def test_what_was_chosen_and_is_removed_is_none_and_not_its_neighbor(panel, entered):
    """The next click must not write into a segmentation of the user's own that happened to be next in the list."""
    import slicer

    add_ct()
    chosen = {}
    for name, class_name in (
        ("output", "vtkMRMLSegmentationNode"),
        ("reference", "vtkMRMLSegmentationNode"),
        ("roi", "vtkMRMLMarkupsROINode"),
    ):
        for number in range(3):
            node = slicer.mrmlScene.AddNewNodeByClass(class_name, f"{name} {number}")
            if number == 1:
                chosen[name] = node
    for name, node in chosen.items():
        getattr(panel.ui, f"{name}Selector").setCurrentNode(node)
    panel.app.processEvents()
    if not entered:
        panel.app._main_window._leave_module()
    for name, node in chosen.items():
        assert getattr(panel.ui, f"{name}Selector").currentNode() is node
        slicer.mrmlScene.RemoveNode(node)
        panel.app.processEvents()
    slicer.util.selectModule("FlareSegment")
    parameters = panel.logic.getParameterNode()
    assert (parameters.outputSegmentation, parameters.reference, parameters.roi) == (None, None, None)
    for name in chosen:
        assert getattr(panel.ui, f"{name}Selector").currentNode() is None


def test_a_scene_read_twice_keeps_each_difference_with_its_own_result(panel, tmp_path):
    import slicer

    from FlareSegmentSlicerLib.scene import comparison, segmentation_nodes

    ct = add_ct()
    panel.run()
    reference, _labels = reference_of(ct, 1)
    panel.ui.referenceSelector.setCurrentNode(reference)
    panel.click(panel.ui.compareButton)
    panel.until(lambda: panel.ui.compareButton.text == "Compare")
    file = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(file)
    slicer.util.loadScene(file)
    results = [node for node in segmentations() if segmentation_nodes.read_description(node)]
    assert len(results) == 2
    differences = [comparison.difference_node(node) for node in results]
    assert None not in differences and differences[0] is not differences[1]
    assert [node.GetNodeReference(comparison.DIFFERENCE) for node in differences] == results
    for node, difference in zip(results, differences, strict=True):
        volume = segmentation_nodes.reference_volume
        assert volume(difference) is volume(node)


def test_a_result_that_python_made_is_taken_over_by_the_open_panel(panel):
    ct = add_ct()
    panel.use("good")
    made = panel.logic.segment(ct, model=Path("good"))
    panel.until(lambda: panel.ui.outputSelector.currentNode() is made)
    assert [row[0] for row in panel.table] == [organ.name for organ in ORGANS]
    newer = panel.logic.segment(ct, model=Path("good"))
    panel.until(lambda: panel.ui.outputSelector.currentNode() is newer)
    own, _labels = reference_of(ct, 1)
    panel.ui.outputSelector.setCurrentNode(own)
    panel.logic.segment(ct, model=Path("good"))
    panel.app.processEvents()
    assert panel.ui.outputSelector.currentNode() is own


def test_nothing_is_kept_for_undo_of_nodes_that_are_gone(panel):
    import slicer

    add_ct()
    panel.run()
    panel.run()
    (node,) = segmentations()
    assert panel.logic.canUndo(node) and panel.logic._undo
    slicer.mrmlScene.RemoveNode(node)
    assert not panel.logic._undo
    panel.run()
    panel.run()
    assert panel.logic._undo
    slicer.mrmlScene.Clear(False)
    assert not panel.logic._undo


def test_surfaces_of_another_kind_than_the_workers_are_made_by_slicer(panel):
    """Decimation and joint smoothing of the output are kept: the worker knows neither."""
    import slicer

    add_ct()
    panel.run()
    (node,) = segmentations()
    segmentation = node.GetSegmentation()
    surface = slicer.vtkSegmentationConverter.GetSegmentationClosedSurfaceRepresentationName()
    whole = segmentation.GetSegment("liver").GetRepresentation(surface).GetNumberOfPolys()
    rule = slicer.vtkBinaryLabelmapToClosedSurfaceConversionRule
    segmentation.SetConversionParameter(rule.GetDecimationFactorParameterName(), "0.8")
    panel.run()
    assert segmentation.GetSegment("liver").GetRepresentation(surface).GetNumberOfPolys() < 0.5 * whole


def test_organs_have_names_that_translators_see():
    import ast
    import inspect

    from FlareSegmentLib.organs import FLARE22_ORGANS
    from FlareSegmentSlicerLib.scene import organ_names

    calls = [node for node in ast.walk(ast.parse(inspect.getsource(organ_names))) if isinstance(node, ast.Call)]
    texts = [call.args[0].value for call in calls if getattr(call.func, "id", "") == "_"]
    assert texts == [organ.name for organ in FLARE22_ORGANS]
    assert [organ_names.organ_name(organ) for organ in FLARE22_ORGANS] == texts


def test_a_label_that_has_become_wider_asks_for_no_more_height_than_its_text_needs(slicer_app):
    """Qt's label goes on telling layouts a height that counted the minimum which it had when it was narrow."""
    import qt

    from FlareSegmentSlicerLib.panel.message_area import WrappedLabel

    label = qt.QLabel()
    label.wordWrap = True
    wrapped = WrappedLabel(label)
    label.resize(100, 30)
    wrapped.setText("some words " * 30)
    tall = label.minimumSizeHint().height()
    label.resize(400, 500)
    label.show()
    slicer_app.processEvents()
    assert label.minimumSizeHint().height() == label.minimumHeight < 0.5 * tall
    label.close()
