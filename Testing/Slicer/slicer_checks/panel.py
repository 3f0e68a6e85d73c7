"""The panel: open, segment, cancel, again, undo, edit, options, several CTs, sequences."""

from __future__ import annotations

import unittest

import numpy as np
import qt
import slicer
import vtk

from slicer_checks.hand import (
    PanelCheck,
    add_ct,
    open_module,
    process_events,
    segment_names,
    segmentations,
    take_picture,
    voxels,
)

WIDEST_MINIMUM = 340
"""The panel reads from 300 px on; with a scroll bar and the frame of the dock."""


def dock():
    return slicer.util.findChildren(slicer.util.mainWindow(), "PanelDockWidget")[0]


class TestPanel(PanelCheck):
    def test_open(self):
        self.assertTrue(self.ui.segmentButton.visible)
        self.assertFalse(self.ui.segmentButton.enabled)
        self.assertTrue(self.ui.hintLabel.visible)
        self.assertTrue(self.ui.sampleButton.visible)
        ct = add_ct()
        process_events()
        self.assertEqual(self.ui.inputSelector.currentNode(), ct)
        self.assertTrue(self.ui.segmentButton.enabled)
        take_picture("open")

    def test_open_again_after_another_module(self):
        add_ct()
        open_module("FlareSegmentTraining")
        open_module("FlareSegment")
        self.assertTrue(self.ui.segmentButton.enabled)

    def test_segment(self):
        ct = add_ct()
        self.segment()
        (node,) = segmentations()
        self.assertEqual(self.output, node)
        self.assert_all_organs(node)
        self.assertGreater(voxels(node, "liver", ct), voxels(node, "spleen", ct))
        self.assertEqual(self.ui.organTable.rowCount, 4)
        self.assertIn("Done in", self.message)
        terminology = vtk.reference("")
        segment = node.GetSegmentation().GetNthSegment(0)
        self.assertTrue(segment.GetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), terminology))
        self.assertIn("10200004", str(terminology))
        self.assertTrue(self.ui.show3DButton.checked)
        take_picture("segmented")

    def test_cancel(self):
        add_ct()
        self.start()
        self.assertEqual(self.ui.segmentButton.text, "Cancel")
        self.assertTrue(self.ui.progressBar.visible)
        take_picture("running")
        self.click(self.ui.segmentButton)
        self.until(lambda: not self.widget.logic.isRunning)
        self.assertEqual(segmentations(), [])
        self.assertEqual(self.ui.segmentButton.text, "Segment")

    def test_the_next_run_replaces_its_own_result_and_undo_brings_it_back(self):
        ct = add_ct()
        self.segment()
        first = voxels(self.output, "liver", ct)
        array = slicer.util.arrayFromVolume(ct)
        array[array == 1001] = 40
        array[20, 20, 20] = 1001
        slicer.util.arrayFromVolumeModified(ct)
        self.segment()
        self.assertEqual(len(segmentations()), 1)
        self.assertEqual(voxels(self.output, "liver", ct), 1)
        self.assertEqual(self.questions, [])
        self.click(self.ui.undoButton)
        self.assertEqual(voxels(self.output, "liver", ct), first)
        self.click(self.ui.undoButton)
        self.assertEqual(voxels(self.output, "liver", ct), 1)

    def test_edit_in_the_segment_editor(self):
        if getattr(slicer.modules, "segmenteditor", None) is None:
            raise unittest.SkipTest("there is no Segment Editor here")
        ct = add_ct()
        self.segment()
        node, before = self.output, voxels(self.output, "liver", ct)
        slicer.util.selectModule("SegmentEditor")
        process_events(0.2)
        editor = slicer.modules.SegmentEditorWidget.editor
        editor.setSegmentationNode(node)
        editor.setSourceVolumeNode(ct)
        editor.setCurrentSegmentID(node.GetSegmentation().GetSegmentIdBySegmentName("liver"))
        editor.setActiveEffectByName("Margin")
        effect = editor.activeEffect()
        effect.setParameter("MarginSizeMm", "6")
        effect.self().onApply()
        process_events(0.2)
        take_picture("segment_editor")
        self.assertGreater(voxels(node, "liver", ct), before)
        editor.setActiveEffectByName("")
        self.attach(open_module("FlareSegment"))
        self.until(lambda: "dited" in self.table_text())
        self.segment()
        self.assertEqual(len(self.questions), 1, "edited organs are replaced only after asking")
        self.assertEqual(voxels(node, "liver", ct), before)

    def test_an_edited_organ_is_noted(self):
        ct = add_ct()
        self.segment()
        node = self.output
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct).copy()
        array[:20] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "liver", ct)
        self.until(lambda: "dited" in self.table_text())
        self.segment()
        self.assertEqual(len(self.questions), 1)

    def table_text(self):
        table = self.ui.organTable
        cells = [table.item(row, column) for row in range(table.rowCount) for column in range(table.columnCount)]
        return "\n".join(cell.text() + cell.toolTip() for cell in cells if cell is not None)

    def test_a_removed_choice_is_none_and_not_its_neighbor(self):
        add_ct()
        self.segment()
        own, region = self.output, slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "first region")
        others = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name) for name in ("mine", "theirs")]
        slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "second region")
        self.ui.roiSelector.setCurrentNode(region)
        self.ui.referenceSelector.setCurrentNode(others[0])
        process_events()
        for node in (own, region, others[0]):
            slicer.mrmlScene.RemoveNode(node)
        process_events()
        self.assertIsNone(self.output)
        self.assertIsNone(self.ui.roiSelector.currentNode())
        self.assertIsNone(self.ui.referenceSelector.currentNode())

    def test_region_of_interest(self):
        ct = add_ct()
        self.ui.advancedCollapsibleButton.collapsed = False
        region = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsROINode", "region")
        bounds = [0.0] * 6
        ct.GetRASBounds(bounds)
        region.SetCenterWorld((bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2, bounds[5])
        region.SetSizeWorld(bounds[1] - bounds[0], bounds[3] - bounds[2], bounds[5] - bounds[4])
        self.ui.roiSelector.setCurrentNode(region)
        self.segment()
        inside = slicer.util.arrayFromSegmentBinaryLabelmap(self.output, "liver", ct)
        marked = slicer.util.arrayFromVolume(ct) == 1001
        half = marked.shape[0] // 2
        self.assertEqual(int((inside[: half - 1] > 0).sum()), 0)
        self.assertEqual(int((inside[half + 1 :] > 0).sum()), int(marked[half + 1 :].sum()))

    def test_chosen_organs(self):
        add_ct()
        self.ui.advancedCollapsibleButton.collapsed = False
        for action in self.ui.organsButton.menu().actions():
            if action.text != "Spleen":
                action.setChecked(False)
        process_events()
        self.segment()
        self.assertEqual(segment_names(self.output), ["Spleen"])

    def test_several_cts(self):
        first = add_ct("first")
        add_ct("second", seed=1)
        self.ui.inputSelector.setCurrentNode(first)
        self.ui.advancedCollapsibleButton.collapsed = False
        menu = self.ui.volumesButton.menu()
        menu.popup(self.ui.volumesButton.mapToGlobal(qt.QPoint(0, 0)))
        process_events(0.05)
        for action in menu.actions():
            action.setChecked(True)
        menu.hide()
        process_events()
        self.segment()
        self.assertEqual(len(segmentations()), 2)
        for node in segmentations():
            self.assert_all_organs(node)

    def test_sequence(self):
        first = add_ct("Perfusion")
        sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "Frames")
        array = slicer.util.arrayFromVolume(first)
        for index in range(3):
            array[index, 0, 0] = 1004
            sequence.SetDataNodeAtValue(first, str(index))
        slicer.mrmlScene.RemoveNode(first)
        browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "Browser")
        browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
        slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
        ct = browser.GetProxyNode(sequence)
        self.ui.inputSelector.setCurrentNode(ct)
        self.ui.advancedCollapsibleButton.collapsed = False
        process_events()
        self.click(self.ui.sequenceCheckBox)
        self.segment()
        (node,) = segmentations()
        counts = []
        for index in range(3):
            browser.SetSelectedItemNumber(index)
            slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
            process_events()
            counts.append(voxels(node, "spleen", ct))
        self.assertEqual(np.diff(counts).tolist(), [1, 1])

    def test_python_and_panel_share_a_result(self):
        ct = add_ct()
        node = self.widget.logic.segment(ct)
        process_events(0.1)
        self.assertEqual(self.output, node, "a result that Python made is the open panel's")
        self.assertEqual(self.ui.organTable.rowCount, 4)

    def test_the_panel_keeps_its_width(self):
        slicer.util.mainWindow().resizeDocks([dock()], [400], qt.Qt.Horizontal)
        process_events(0.1)
        width = dock().width
        self.assertLessEqual(width, 410, "the empty panel can be made 400 pixels wide")
        add_ct("kits_case_00012_portal_venous_phase_of_the_abdomen_ct")
        self.segment()
        for button in ("advanced", "result", "display", "compare", "export"):
            section = getattr(self.ui, f"{button}CollapsibleButton")
            section.collapsed = False
            process_events(0.05)
            self.assertEqual(dock().width, width, f"after opening {button}")
        open_module("FlareSegmentTraining")
        open_module("FlareSegment")
        self.assertEqual(dock().width, width, "after another visit")
        slicer.util.mainWindow().resizeDocks([dock()], [100], qt.Qt.Horizontal)
        process_events(0.1)
        take_picture("narrow")
        self.assertLessEqual(dock().width, WIDEST_MINIMUM)

    def test_a_long_message_gives_its_place_back(self):
        self.widget._showMessage("word " * 150)
        process_events(0.1)
        tall = self.ui.messageFrame.height
        self.widget._showMessage("short")
        process_events(0.1)
        self.assertLess(self.ui.messageFrame.height, tall / 2)

    def test_opacity_is_what_the_slider_says(self):
        add_ct()
        self.segment()
        self.ui.displayCollapsibleButton.collapsed = False
        self.ui.opacitySlider.value = 0.4
        process_events()
        display = self.output.GetDisplayNode()
        segment_id = self.output.GetSegmentation().GetNthSegmentID(0)
        opacity = display.GetOpacity3D() * display.GetSegmentOpacity3D(segment_id) * display.GetOpacity()
        self.assertAlmostEqual(opacity, 0.4, places=5, msg="Slicer's 3D view multiplies all three")

    def test_a_declined_installation_is_no_error(self):
        import slicer.packaging

        self.addCleanup(setattr, slicer.packaging, "pip_check", slicer.packaging.pip_check)
        slicer.packaging.pip_check = lambda *arguments: False
        self.answer = False
        self.widget.onInstallTorchButton()
        process_events()
        self.assertEqual(len(self.questions), 1)
        self.assertNotIn("could not", self.message)

    def test_the_phantom_is_a_sample_by_name(self):
        import SampleData

        from FlareSegmentSlicerLib.scene.sample_data import PHANTOM

        node = SampleData.downloadSample(PHANTOM)
        process_events()
        self.assertTrue(node.IsA("vtkMRMLScalarVolumeNode"))
        self.assertEqual(self.ui.inputSelector.currentNode(), node)
