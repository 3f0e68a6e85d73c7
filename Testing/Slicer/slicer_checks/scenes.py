"""Scenes and the module's life: saved, loaded, imported twice, closed in mid-run; left and reloaded."""

from __future__ import annotations

import slicer

from slicer_checks.hand import PanelCheck, add_ct, open_module, output_folder, process_events, segmentations, voxels


class TestScenes(PanelCheck):
    def saved(self):
        ct = add_ct()
        self.segment()
        file = output_folder() / "scene.mrb"
        self.assertTrue(slicer.util.saveScene(str(file), {}))
        return file, voxels(self.output, "liver", ct)

    def test_save_and_load(self):
        file, liver = self.saved()
        slicer.mrmlScene.Clear(False)
        process_events()
        self.assertIsNone(self.output)
        slicer.util.loadScene(str(file), {})
        process_events(0.1)
        self.assertIsNotNone(self.output, "the chosen output is kept with the scene")
        self.assert_all_organs(self.output)
        self.assertEqual(voxels(self.output, "liver", self.ui.inputSelector.currentNode()), liver)
        self.assertEqual(self.ui.organTable.rowCount, 4)

    def test_import_twice(self):
        file, liver = self.saved()
        slicer.mrmlScene.Clear(False)
        for _ in range(2):
            slicer.util.loadScene(str(file), {})
            process_events(0.1)
        self.assertEqual(len(segmentations()), 2)
        for node in segmentations():
            ct = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
            self.ui.inputSelector.setCurrentNode(ct)
            process_events()
            self.assertEqual(self.output, node, "each CT has the result that came with it")
            self.assertEqual(voxels(node, "liver", ct), liver)

    def test_close_in_mid_run(self):
        add_ct()
        self.start()
        slicer.mrmlScene.Clear(False)
        self.until(lambda: not self.widget.logic.isRunning)
        self.assertEqual(segmentations(), [])
        self.assertFalse(self.ui.segmentButton.enabled)
        self.use("good")
        add_ct()
        self.segment()
        self.assert_all_organs(self.output)

    def test_remove_the_ct_in_mid_run(self):
        ct = add_ct()
        self.start()
        slicer.mrmlScene.RemoveNode(ct)
        self.until(lambda: not self.widget.logic.isRunning)
        self.assertEqual(segmentations(), [])

    def test_leave_in_mid_run(self):
        add_ct()
        self.start()
        open_module("FlareSegmentTraining")
        self.assertTrue(self.widget.logic.isRunning)
        open_module("FlareSegment")
        self.click(self.ui.segmentButton)
        self.until(lambda: not self.widget.logic.isRunning)

    def test_undo_is_gone_with_the_scene(self):
        self.saved()
        self.segment()
        self.assertTrue(self.ui.undoButton.visible)
        slicer.mrmlScene.Clear(False)
        process_events()
        self.assertFalse(self.ui.undoButton.visible)

    def test_reload(self):
        add_ct()
        slicer.util.reloadScriptedModule("FlareSegment")
        process_events(0.1)
        widget = slicer.util.getModuleWidget("FlareSegment")
        self.assertIsNot(widget, self.widget)
        self.attach(widget)
        self.segment()
        self.assert_all_organs(self.output)

    def test_reload_in_mid_run(self):
        add_ct()
        self.start()
        slicer.util.reloadScriptedModule("FlareSegment")
        process_events(0.1)
        self.attach(slicer.util.getModuleWidget("FlareSegment"))
        self.assertEqual(self.ui.segmentButton.text, "Segment")
        self.segment()
        self.assert_all_organs(self.output)
