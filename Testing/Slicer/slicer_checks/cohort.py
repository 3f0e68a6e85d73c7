"""The section "Many CTs" with the real script and workers behind it. That needs PyTorch and Dask."""

from __future__ import annotations

import importlib.util
import shutil
import time
import unittest

import qt
import slicer

from FlareSegmentLib.organs import ORGANS
from FlareSegmentSlicerLib.logic import cohort_process
from slicer_checks.hand import coarse_phantom, open_module, output_folder, process_events, take_picture

NEEDED = ("torch", *cohort_process.PACKAGES)
LACKING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def click(widget, place=None):
    """A press and a release of the mouse, as a hand does it."""
    place = qt.QPointF(place or widget.rect.center())
    for kind, held in ((qt.QEvent.MouseButtonPress, qt.Qt.LeftButton), (qt.QEvent.MouseButtonRelease, qt.Qt.NoButton)):
        event = qt.QMouseEvent(kind, place, qt.Qt.LeftButton, held, qt.Qt.NoModifier)
        qt.QCoreApplication.sendEvent(widget, event)
    process_events(0.2)


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

    def ask(self, name, seeds=()):
        """Open the section and name a new folder for the results; returns it and that of a coarse CT for each seed,
        named too if there are any.
        """
        from FlareSegmentTrainingLib.datasets.conversion import write_nifti

        source, output = output_folder() / f"{name}_cts", output_folder() / f"{name}_cohort"
        for folder in (source, output):
            shutil.rmtree(folder, ignore_errors=True)
        source.mkdir()
        for seed in seeds:
            volume, _labels = coarse_phantom(seed)
            write_nifti(source / f"ct{seed}.nii.gz", volume.array, volume)
        self.ui.cohortCollapsibleButton.collapsed = False
        if seeds:
            self.ui.cohortSourcePathEdit.currentPath = str(source)
        self.ui.cohortOutputPathEdit.currentPath = str(output)
        process_events(0.2)
        return source, output

    def until_done(self, count):
        """Wait for the end of a run with so many rows."""
        self.until(lambda: self.ui.cohortTable.rowCount > 0)
        self.until(lambda: self.ui.cohortStartButton.text == "Segment all")
        self.until(lambda: self.ui.cohortTable.rowCount == count)

    def assert_segmented(self):
        """One segmentation with all organs is in the scene."""
        (segmentation,) = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
        self.assertEqual(segmentation.GetSegmentation().GetNumberOfSegments(), len(ORGANS))

    def test_nothing_can_be_started_without_a_folder(self):
        self.ui.cohortCollapsibleButton.collapsed = False
        self.ui.cohortSourcePathEdit.currentPath = ""
        process_events()
        self.assertFalse(self.ui.cohortStartButton.enabled)
        self.assertTrue(self.ui.cohortMessageLabel.text)

    @unittest.skipIf(LACKING, f"not installed in this Slicer: {', '.join(LACKING)}")
    def test_two_cts_and_what_is_none(self):
        from FlareSegmentTrainingLib.datasets.conversion import write_nifti

        ui = self.ui
        source, _output = self.ask("two", seeds=(1, 2))
        volume, _labels = coarse_phantom(2)
        write_nifti(source / "no_ct.nii.gz", volume.array.clip(0), volume)
        self.assertTrue(ui.cohortStartButton.enabled, ui.cohortMessageLabel.text)
        ui.cohortStartButton.click()
        self.until_done(3)
        table = ui.cohortTable
        rows = {table.item(row, 0).text(): row for row in range(3)}
        self.assertEqual(table.item(rows["no_ct"], 1).text(), "failed")
        self.assertTrue(ui.cohortReportButton.enabled)
        slicer.util.getModuleWidget("FlareSegment")._cohort._onRow(rows["ct1"], 0)
        process_events()
        self.assert_segmented()
        take_picture("cohort")

    @unittest.skipIf(LACKING, f"not installed in this Slicer: {', '.join(LACKING)}")
    def test_a_run_goes_on_while_the_panel_is_left_and_a_click_on_a_row_loads_it(self):
        ui = self.ui
        slicer.util.mainWindow().resize(1280, 800)
        _source, output = self.ask("left", seeds=(1, 2, 3))
        click(ui.cohortStartButton)
        self.assertEqual(ui.cohortStartButton.text, "Cancel")
        take_picture("cohort_running")
        slicer.util.selectModule("FlareSegmentTraining")
        process_events(0.5)
        self.until(lambda: (output / "progress.json").is_file())
        slicer.util.selectModule("FlareSegment")
        process_events(0.2)
        self.until_done(3)
        self.assertIn("3 segmented", ui.cohortMessageLabel.text.replace("\u200b", ""))
        table = ui.cohortTable
        table.scrollToItem(table.item(1, 0))
        bounds = table.visualItemRect(table.item(1, 0))
        click(table.viewport(), bounds.center())
        self.assert_segmented()
        (ct,) = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        self.assertEqual(ct.GetName(), table.item(1, 0).text())
        take_picture("cohort_row")

    @unittest.skipIf(LACKING, f"not installed in this Slicer: {', '.join(LACKING)}")
    @unittest.skipUnless(hasattr(slicer.modules, "dicom"), "this Slicer has no DICOM module")
    def test_series_that_are_selected_in_the_database(self):
        import ctk
        from DICOMLib import DICOMUtils

        from FlareSegmentTrainingLib.dicom.dicom_patients import write_patient

        series = output_folder() / "series"
        shutil.rmtree(series, ignore_errors=True)
        volume, _labels = coarse_phantom(4)
        write_patient(series, "p4", volume, None)
        ui = self.ui
        with DICOMUtils.TemporaryDICOMDatabase():
            DICOMUtils.importDicom(str(series))
            slicer.util.selectModule("DICOM")
            process_events(0.5)
            browser = slicer.modules.DICOMWidget.browserWidget
            slicer.modules.DICOMWidget.onOpenBrowserWidget()
            process_events(0.5)
            studies = [study for patient in slicer.dicomDatabase.patients()
                       for study in slicer.dicomDatabase.studiesForPatient(patient)]  # fmt: skip
            series_uids = [uid for study in studies for uid in slicer.dicomDatabase.seriesForStudy(study)]
            browser.dicomBrowser.setSelectedItems(ctk.ctkDICOMModel.SeriesType, series_uids)
            process_events(0.5)
            slicer.util.selectModule("FlareSegment")
            self.ask("series")
            click(ui.cohortSeriesCheckBox, qt.QPoint(8, ui.cohortSeriesCheckBox.height // 2))
            process_events(0.2)
            self.assertTrue(ui.cohortStartButton.enabled, ui.cohortMessageLabel.text)
            click(ui.cohortStartButton)
            self.until_done(1)
            take_picture("cohort_series")
            slicer.util.getModuleWidget("FlareSegment")._cohort._onRow(0, 0)
            self.assert_segmented()
            click(ui.cohortSeriesCheckBox, qt.QPoint(8, ui.cohortSeriesCheckBox.height // 2))
