"""The training panel: a small training from Start to its curves and its model. The training needs PyTorch."""

from __future__ import annotations

import importlib.util
import time
import unittest

import slicer

from slicer_checks.hand import ROOT, open_module, output_folder, process_events, take_picture

SMALL_PRESET = str(ROOT / "Testing" / "Slicer" / "small_training.json")
AS_SMALL = """
import os, runpy, sys
if __name__ == "__main__":
    sys.argv[sys.argv.index("--preset") + 1] = {preset!r}
    sys.argv += ["--device", "cpu"]
    sys.argv[0] = {train!r}
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""The training script with a preset that takes seconds; the panel offers those of the module only."""
HAS_TORCH = importlib.util.find_spec("torch") is not None


class TestTrainingPanel(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(False)
        self.widget = open_module("FlareSegmentTraining")
        self.ui = self.widget.ui

    def until(self, condition, seconds=300.0):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, f"waited in vain; the panel says: {self.ui.messageLabel.text!r}")
            process_events(0.1)

    def test_open(self):
        self.ui.dataPathEdit.currentPath = ""
        self.ui.outputPathEdit.currentPath = ""
        process_events()
        self.assertGreaterEqual(self.ui.presetComboBox.count, 6)
        self.assertFalse(self.ui.startButton.enabled)
        self.assertTrue(self.ui.messageLabel.text)
        take_picture("training_open")

    def test_bad_data_is_said(self):
        if not HAS_TORCH:
            raise unittest.SkipTest("PyTorch is not installed in this Slicer")
        self.ui.dataPathEdit.currentPath = str(output_folder() / "no such folder")
        self.ui.outputPathEdit.currentPath = str(output_folder() / "bad run")
        process_events()
        self.ui.startButton.click()
        self.until(lambda: "no such folder" in self.ui.messageLabel.text)

    @unittest.skipUnless(HAS_TORCH, "PyTorch is not installed in this Slicer")
    def test_train_and_look_at_the_curves_of_one_epoch(self):
        from FlareSegmentTrainingSlicerLib import training_process

        run = output_folder() / "panel run"
        script = output_folder() / "small_training.py"
        train = str(training_process.TRAIN_SCRIPT)
        script.write_text(AS_SMALL.format(preset=SMALL_PRESET, train=train), encoding="utf-8")
        before, training_process.TRAIN_SCRIPT = training_process.TRAIN_SCRIPT, script
        self.addCleanup(setattr, training_process, "TRAIN_SCRIPT", before)
        self.ui.dataPathEdit.currentPath = "phantom:2"
        self.ui.outputPathEdit.currentPath = str(run)
        self.ui.presetComboBox.setCurrentIndex(self.ui.presetComboBox.findData("dice-vnet"))
        self.ui.epochsSpinBox.value = 1
        process_events()
        self.assertTrue(self.ui.startButton.enabled, self.ui.messageLabel.text)
        self.ui.startButton.click()
        self.until(lambda: self.widget.logic.state() == "finished")
        self.assertTrue(self.ui.useModelButton.enabled)
        self.ui.plotButton.click()
        process_events(0.5)
        take_picture("training_curves")
        self.assertEqual(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLPlotChartNode"), 1)
        self.ui.useModelButton.click()
        process_events(0.1)
        self.assertEqual(slicer.util.selectedModule(), "FlareSegment")
        self.ui.outputPathEdit.currentPath = ""
