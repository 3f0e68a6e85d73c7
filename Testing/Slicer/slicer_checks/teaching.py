"""From a corrected result to examples, and a teaching that is stopped: the panels' way, as a person goes it."""

from __future__ import annotations

import importlib.util
import shutil
import time
import unittest

import qt
import slicer

from slicer_checks.hand import PanelCheck, add_ct, open_module, output_folder, process_events, take_picture

HAS_TORCH = importlib.util.find_spec("torch") is not None


def end_teaching():
    """Leave no teaching behind, whatever became of the check: it would go on without Slicer."""
    teaching = slicer.util.getModuleWidget("FlareSegmentTraining").logic.teaching
    end = time.monotonic() + 20
    while teaching is not None and teaching.active and time.monotonic() < end:
        teaching.request_stop()
        process_events(0.2)
    if teaching is not None and teaching._launched:
        teaching._process.kill()
        teaching._process.wait(20)


class TestTeaching(PanelCheck):
    def setUp(self):
        super().setUp()
        self.folder = output_folder() / "examples"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def tearDown(self):
        end_teaching()
        slicer.util.getModuleWidget("FlareSegmentTraining").ui.examplesPathEdit.currentPath = ""
        qt.QSettings().remove("FlareSegment")
        super().tearDown()

    def keep(self, name, seed):
        """Segment a CT, correct its liver, and keep it."""
        ct = add_ct(name, seed=seed)
        self.ui.inputSelector.setCurrentNode(ct)
        process_events()
        self.segment()
        node = self.output
        array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct).copy()
        array[:, :, : array.shape[2] // 4] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "liver", ct)
        process_events(0.5)
        self.ui.exampleCollapsibleButton.collapsed = False
        process_events(0.1)
        self.assertEqual(self.ui.lookedAtButton.text, "Liver")
        self.ui.exampleFolderEdit.currentPath = str(self.folder)
        process_events()
        self.click(self.ui.keepExampleButton)
        self.assertIn("Kept as example", self.ui.exampleMessageLabel.text)
        return array

    def test_keep_open_and_remove(self):
        array = self.keep("First CT", 0)
        take_picture("example_kept")
        self.keep("Second CT", 1)
        self.click(self.ui.openTeachingButton)
        self.assertEqual(slicer.util.selectedModule(), "FlareSegmentTraining")
        training = slicer.util.getModuleWidget("FlareSegmentTraining").ui
        self.assertEqual(training.examplesList.topLevelItemCount, 2)
        training.examplesList.topLevelItem(0).setSelected(True)
        process_events()
        take_picture("examples_listed")
        self.click(training.openExampleButton)
        volume = slicer.util.getNode("example-001")
        opened = next(
            node
            for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
            if node.GetNodeReference("FlareSegmentCT") is volume
        )
        found = slicer.util.arrayFromSegmentBinaryLabelmap(opened, "liver", volume)
        self.assertEqual(int((found > 0).sum()), int((array > 0).sum()))
        training.examplesList.topLevelItem(0).setSelected(True)
        process_events()
        self.click(training.removeExampleButton)
        self.assertEqual(training.examplesList.topLevelItemCount, 1)
        self.assertFalse((self.folder / "example-001_ct.nii.gz").exists())

    @unittest.skipUnless(HAS_TORCH, "PyTorch is not installed in this Slicer")
    def test_teach_and_stop(self):
        self.keep("First CT", 0)
        self.keep("Second CT", 1)
        self.click(self.ui.openTeachingButton)
        widget = open_module("FlareSegmentTraining")
        training = widget.ui
        self.click(training.teachButton)
        end = time.monotonic() + 120
        while training.teachProgressBar.value == 0 and "easuring" not in training.teachMessageLabel.text:
            self.assertLess(time.monotonic(), end, training.teachMessageLabel.text)
            self.assertNotEqual(widget.logic.teaching.state(), "failed", training.teachMessageLabel.text)
            process_events(0.1)
        self.assertEqual(training.teachButton.text, "Stop")
        take_picture("teaching")
        self.click(training.teachButton)
        while training.teachButton.text != "Continue teaching":
            self.assertLess(time.monotonic(), end + 120, training.teachMessageLabel.text)
            process_events(0.1)
        self.assertIn("Stopped", training.teachMessageLabel.text)
        self.assertFalse(list(self.folder.glob("taught/*/model")))
