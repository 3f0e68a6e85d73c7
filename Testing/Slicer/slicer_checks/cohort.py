"""The section "Many CTs" with the real script and workers behind it. That needs PyTorch and Dask."""

from __future__ import annotations

import importlib.util
import shutil
import time
import unittest

import slicer

from FlareSegmentLib.organs import ORGANS
from FlareSegmentSlicerLib.logic import cohort_process
from slicer_checks.hand import coarse_phantom, open_module, output_folder, process_events, take_picture

NEEDED = ("torch", *cohort_process.PACKAGES)
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


class TestManyCTs(unittest.TestCase):
    def setUp(self):
        slicer.mrmlScene.Clear(False)
        self.ui = open_module("FlareSegment").ui

    def until(self, condition, seconds=240.0):
        end = time.monotonic() + seconds
        longest, last = 0.0, time.monotonic()
        while not condition():
            self.assertLess(time.monotonic(), end, f"waited in vain; it says: {self.ui.cohortMessageLabel.text!r}")
            process_events(0.1)
            now = time.monotonic()
            longest, last = max(longest, now - last), now
        return longest

    def test_nothing_can_be_started_without_a_folder(self):
        self.ui.cohortCollapsibleButton.collapsed = False
        self.ui.cohortSourcePathEdit.currentPath = ""
        process_events()
        self.assertFalse(self.ui.cohortStartButton.enabled)
        self.assertTrue(self.ui.cohortMessageLabel.text)

    @unittest.skipIf(LACKING, f"not installed in this Slicer: {', '.join(LACKING)}")
    def test_two_cts_and_what_is_none(self):
        from FlareSegmentTrainingLib.datasets.conversion import write_nifti

        source, output = output_folder() / "cts", output_folder() / "cohort"
        for folder in (source, output):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir()
        for seed in (1, 2):
            volume, _labels = coarse_phantom(seed)
            write_nifti(source / f"ct{seed}.nii.gz", volume.array, volume)
        write_nifti(source / "no_ct.nii.gz", volume.array.clip(0), volume)
        ui = self.ui
        ui.cohortCollapsibleButton.collapsed = False
        ui.cohortSourcePathEdit.currentPath = str(source)
        ui.cohortOutputPathEdit.currentPath = str(output)
        process_events()
        self.assertTrue(ui.cohortStartButton.enabled, ui.cohortMessageLabel.text)
        ui.cohortStartButton.click()
        self.until(lambda: ui.cohortTable.rowCount > 0)
        self.until(lambda: ui.cohortStartButton.text == "Segment all")
        self.until(lambda: ui.cohortTable.rowCount == 3)
        table = ui.cohortTable
        rows = {table.item(row, 0).text(): row for row in range(3)}
        self.assertEqual(table.item(rows["no_ct"], 1).text(), "failed")
        self.assertTrue(ui.cohortReportButton.enabled)
        slicer.util.getModuleWidget("FlareSegment")._cohort._onRow(rows["ct1"], 0)
        process_events()
        (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(segmentation.GetSegmentation().GetNumberOfSegments(), len(ORGANS))
        take_picture("cohort")
