"""The whole way with the bundled networks and real CTs, as a person goes it: segment, look at the first doubtful place,
correct it with the Segment Editor's brush, keep, teach, use the taught model, segment again, go back.

It takes minutes, so it is asked for: FLARE_CORRECTING=quick (few steps) or full (the default recipe), with FLARE_DATA.
Of the second CT, and of what lies far from the place in the first, the labels are taken over as drawn.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
import unittest
from pathlib import Path

import numpy as np
import qt
import slicer
import vtk

from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.organs import ORGANS
from slicer_checks.hand import ROOT, PanelCheck, output_folder, process_events, take_picture
from slicer_checks.teaching import end_teaching

IS_QUICK = os.environ.get("FLARE_CORRECTING") != "full"
CASES = ("crlm1004", "c3l00189")
AROUND_MM = 30.0
QUICK = ("epochs=1", "steps_per_epoch=25", "learning_rate=0.0005", "taught_share=0.7")
IS_READY = bool(importlib.util.find_spec("torch") and os.environ.get("FLARE_DATA"))


@unittest.skipUnless(IS_READY, "PyTorch or FLARE_DATA is missing")
class TestCorrecting(PanelCheck):
    networks = True

    def setUp(self):
        super().setUp()
        self.folder = output_folder() / "examples ä"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        slicer.util.mainWindow().resize(1280, 800)
        process_events(0.2)

    def tearDown(self):
        end_teaching()
        training = slicer.util.getModuleWidget("FlareSegmentTraining")
        training.ui.examplesPathEdit.currentPath = ""
        slicer.util.selectModule("FlareSegment")
        qt.QSettings().remove("FlareSegment")
        super().tearDown()

    def load(self, name):
        """A CT with streaks, which the bundled model is bad at, and the organs as they are drawn."""
        sys.path.insert(0, str(ROOT / "Testing" / "Benchmarks"))
        try:
            from measuring.hard_kinds import read_case
        finally:
            sys.path.remove(str(ROOT / "Testing" / "Benchmarks"))
        volume, truth = read_case(Path(os.environ["FLARE_DATA"]), name, "streaks")
        node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name=name)
        node.CreateDefaultDisplayNodes()
        node.GetDisplayNode().SetAutoWindowLevel(False)
        node.GetDisplayNode().SetWindowLevel(500, 50)
        slicer.util.setSliceViewerLayers(background=node, fit=True)
        self.ui.inputSelector.setCurrentNode(node)
        process_events(0.2)
        return node, truth

    def organ(self, node, volume, key):
        """Where an organ is now, (z, y, x)."""
        return slicer.util.arrayFromSegmentBinaryLabelmap(node, self.segment_of(node, key), volume) > 0

    def segment_of(self, node, key):
        from FlareSegmentSlicerLib.scene import segmentation_nodes

        return segmentation_nodes.organ_segments(node)[key]

    def take_over(self, node, volume, truth):
        """Correct all organs."""
        for organ in ORGANS:
            mask = (truth == organ.label).astype(np.uint8)
            segment = self.segment_of(node, organ.key)
            slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)
        process_events(1.0)

    def keep(self, picture):
        self.ui.exampleCollapsibleButton.collapsed = False
        process_events(0.3)
        self.assertEqual(self.ui.lookedAtButton.text, "All 4")
        self.ui.exampleFolderEdit.currentPath = str(self.folder)
        process_events()
        self.click(self.ui.keepExampleButton)
        self.assertIn("Kept as example", self.ui.exampleMessageLabel.text)
        show(self.ui.exampleCollapsibleButton)
        take_picture(picture)

    def paint(self, node, volume, key, missing, center):
        """Draw the brush over the missing part of an organ that is nearest to a place, with the mouse in the axial
        view; returns how many missing voxels it covered.
        """
        spots = np.argwhere(missing)
        spot = spots[np.linalg.norm((spots - center) * np.array(volume.GetSpacing())[::-1], axis=1).argmin()]
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        ras = matrix.MultiplyPoint([*map(float, spot[::-1]), 1.0])[:3]
        slicer.vtkMRMLSliceNode.JumpAllSlices(slicer.mrmlScene, *ras, slicer.vtkMRMLSliceNode.CenteredJumpSlice)
        process_events(0.3)
        widget = slicer.app.layoutManager().sliceWidget("Red")
        to_screen = vtk.vtkMatrix4x4()
        vtk.vtkMatrix4x4.Invert(widget.mrmlSliceNode().GetXYToRAS(), to_screen)
        x, y = to_screen.MultiplyPoint([*ras, 1.0])[:2]
        view = widget.sliceView()
        press(view, [(x - 4, y), (x - 2, y), (x, y), (x + 2, y), (x + 4, y)])
        process_events(0.5)
        return int((self.organ(node, volume, key) & missing).sum())

    def test_from_a_doubtful_place_to_a_model_that_knows_better(self):
        volume, truth = self.load(CASES[0])
        self.segment()
        node = self.output
        self.assert_all_organs(node)
        self.assertTrue(self.ui.reviewCollapsibleButton.visible)
        self.ui.reviewCollapsibleButton.collapsed = False
        process_events(0.2)
        self.click(self.ui.nextPlaceButton)
        show(self.ui.reviewCollapsibleButton)
        take_picture("1_first_place")
        from FlareSegmentSlicerLib.scene import review

        place = review.places(node)[0]
        key, center = place["organ"], np.array(place["center"])[::-1]
        label = next(organ.label for organ in ORGANS if organ.key == key)
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode").GetCrosshairRAS()
        matrix = vtk.vtkMatrix4x4()
        volume.GetIJKToRASMatrix(matrix)
        wanted = matrix.MultiplyPoint([*map(float, center[::-1]), 1.0])[:3]
        np.testing.assert_allclose(crosshair, wanted, atol=0.01)
        spacing = np.array(volume.GetSpacing())[::-1]
        near = np.linalg.norm((np.indices(truth.shape).T - center) * spacing, axis=-1).T < AROUND_MM
        before = self.organ(node, volume, key)
        wrong = near & (before != (truth == label))
        self.assertGreater(wrong.sum(), 20, "the first place is wrong")
        missing = near & (truth == label) & ~before
        if hasattr(slicer.modules, "segmenteditor"):
            self.click(self.ui.editButton)
            self.assertEqual(slicer.util.selectedModule(), "SegmentEditor")
            editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
            self.assertEqual(editor.activeEffect().name, "Paint")
            self.assertEqual(editor.currentSegmentID(), self.segment_of(node, key))
            covered = self.paint(node, volume, key, missing, center)
            take_picture("2_painted")
            self.assertGreater(covered, 5, "the brush drew")
            self.take_over(node, volume, truth)
            module = slicer.modules.segmenteditor.widgetRepresentation().self()
            slicer.util.findChild(module.parent, "FlareSegmentBackButton").click()
            process_events(0.5)
        else:
            self.assertFalse(self.ui.editButton.enabled)
            self.take_over(node, volume, truth)
        self.assertEqual(slicer.util.selectedModule(), "FlareSegment")
        self.keep("3_kept")
        other, other_truth = self.load(CASES[1])
        self.segment()
        self.take_over(self.output, other, other_truth)
        self.keep("4_second_kept")

        self.click(self.ui.openTeachingButton)
        slicer.util.mainWindow().resize(1280, 800)
        training = slicer.util.getModuleWidget("FlareSegmentTraining").ui
        self.assertEqual(training.examplesList.topLevelItemCount, 2)
        self.teach(training)
        self.assertTrue(training.useTaughtButton.enabled, training.teachReport.toPlainText())
        self.click(training.useTaughtButton)
        take_picture("6_used")

        slicer.util.selectModule("FlareSegment")
        self.ui.inputSelector.setCurrentNode(volume)
        self.ui.outputSelector.setCurrentNode(None)
        process_events(0.2)
        self.segment()
        self.assertIsNot(self.output, node)
        after = self.organ(self.output, volume, key)
        scores = [float(dice(mask & near, (truth == label) & near)) for mask in (before, after)]
        print(
            f"{key}, within {AROUND_MM:.0f} mm of the first place: Dice {scores[0]:.3f} before, {scores[1]:.3f} after"
        )
        (output_folder() / "place.txt").write_text(f"{key} {scores[0]:.4f} {scores[1]:.4f}\n", encoding="utf-8")
        slicer.util.setSliceViewerLayers(background=volume, fit=True)
        for one in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            one.SetDisplayVisibility(one is self.output)
        review.jump_to(node, place)
        show(self.ui.segmentButton)
        take_picture("7_segmented_again")
        self.assertGreater(scores[1], scores[0] + 0.01)

        self.click(self.ui.openTeachingButton)
        self.click(training.formerModelButton)
        self.assertEqual(self.widget.logic.getParameterNode().modelFolder, "")
        slicer.util.selectModule("FlareSegment")
        self.ui.outputSelector.setCurrentNode(None)
        process_events(0.2)
        self.segment()
        self.assertTrue((self.organ(self.output, volume, key) == before).all(), "as before the teaching")

    def teach(self, training):
        """Click Teach and wait for the report."""
        from FlareSegmentTrainingSlicerLib.teaching_process import TeachingProcess

        begin = TeachingProcess._begin
        changes = [word for change in QUICK for word in ("--set", change)] if IS_QUICK else []
        TeachingProcess._begin = lambda process, arguments: begin(process, [*arguments, *changes])
        try:
            began = time.monotonic()
            self.click(training.teachButton)
        finally:
            TeachingProcess._begin = begin
        pictured = False
        while not training.teachReport.visible:
            self.assertLess(time.monotonic(), began + 3000, training.teachMessageLabel.text)
            self.assertNotIn(training.teachButton.text, ("Continue teaching",), training.teachMessageLabel.text)
            if not pictured and "min left" in training.teachMessageLabel.text and training.teachProgressBar.value > 20:
                pictured = True
                take_picture("5_teaching")
            process_events(0.5)
        print(f"taught in {time.monotonic() - began:.0f} s: {training.teachMessageLabel.text}")
        take_picture("5_taught")


def show(widget):
    """Scroll the panel to a widget, as people do."""
    area = widget.parent()
    while area is not None and not hasattr(area, "ensureWidgetVisible"):
        area = area.parent()
    if area is not None:
        process_events(0.2)
        area.ensureWidgetVisible(widget)


def press(view, points):
    """Press the left button at the first point of a view, move over the others and let it go: Qt events, as the window
    system sends them. Points from the lower left corner.
    """
    target = view.VTKWidget()
    places = [qt.QPoint(round(x), target.height - 1 - round(y)) for x, y in points]
    send(target, qt.QEvent.MouseMove, places[0], qt.Qt.NoButton, qt.Qt.NoButton)
    send(target, qt.QEvent.MouseButtonPress, places[0], qt.Qt.LeftButton, qt.Qt.LeftButton)
    for place in places[1:]:
        send(target, qt.QEvent.MouseMove, place, qt.Qt.NoButton, qt.Qt.LeftButton)
    send(target, qt.QEvent.MouseButtonRelease, places[-1], qt.Qt.LeftButton, qt.Qt.NoButton)


def send(target, kind, place, button, buttons):
    screen = qt.QPointF(target.mapToGlobal(place))
    event = qt.QMouseEvent(kind, qt.QPointF(place), screen, button, buttons, qt.Qt.NoModifier)
    qt.QCoreApplication.sendEvent(target, event)
    process_events()
