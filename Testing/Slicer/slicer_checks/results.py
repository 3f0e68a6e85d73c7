"""What is done with a result: comparison, and export of each kind."""

from __future__ import annotations

import importlib.util
import sys
import unittest
from pathlib import Path

import numpy as np
import qt
import slicer

from slicer_checks.hand import (
    Answers,
    PanelCheck,
    add_ct,
    choose,
    coarse_phantom,
    output_folder,
    process_events,
    take_picture,
    voxels,
)


class TestResults(PanelCheck):
    def test_compare(self):
        ct = add_ct()
        self.segment()
        own = self.output
        reference = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "reference")
        reference.CreateDefaultDisplayNodes()
        reference.GetSegmentation().DeepCopy(own.GetSegmentation())
        reference.SetReferenceImageGeometryParameterFromVolumeNode(ct)
        array = slicer.util.arrayFromSegmentBinaryLabelmap(reference, "liver", ct).copy()
        array[::2] = 0
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, reference, "liver", ct)
        self.ui.compareCollapsibleButton.collapsed = False
        self.ui.referenceSelector.setCurrentNode(reference)
        process_events()
        self.click(self.ui.compareButton)
        self.until(lambda: self.ui.differenceCheckBox.enabled)
        table = self.ui.organTable
        texts = [
            table.item(row, column).text()
            for row in range(table.rowCount)
            for column in range(table.columnCount)
            if table.item(row, column) is not None
        ]
        self.assertIn("1.000", texts)
        self.assertEqual(self.ui.referenceSelector.currentNode(), reference)
        self.assertEqual(self.output, own)
        take_picture("compared")

    def test_review_leads_to_the_segment_editor_and_back(self):
        ct = add_ct()
        self.segment()
        self.ui.reviewCollapsibleButton.collapsed = False
        process_events(0.1)
        self.assertGreater(self.ui.reviewTable.rowCount, 4)
        self.click(self.ui.nextPlaceButton)
        self.assertEqual(self.ui.reviewTable.item(0, 0).text(), "Liver")
        self.click(self.ui.confidenceCheckBox)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 2)
        take_picture("review with confidence")
        self.click(self.ui.confidenceCheckBox)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")), 1)
        self.ui.reviewTable.setFocus()
        self.press(self.ui.reviewTable, qt.Qt.Key_Down)
        self.assertEqual(self.ui.reviewTable.currentRow(), 1)
        self.press(self.ui.reviewTable, qt.Qt.Key_Up)
        self.assertEqual(self.ui.reviewTable.currentRow(), 0)
        self.click(self.ui.looksRightButton)
        self.assertEqual(self.ui.reviewTable.currentRow(), 1)
        self.click(self.ui.previousPlaceButton)
        node, before = self.output, voxels(self.output, "Liver", ct)
        if not hasattr(slicer.modules, "segmenteditor"):
            self.assertFalse(self.ui.editButton.enabled)
            array = slicer.util.arrayFromSegmentBinaryLabelmap(node, "liver", ct).copy()
            array[:2, :4, :4] = 1
            slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, "liver", ct)
        else:
            self.paint(node, ct)
        process_events(1.0)
        self.assertGreater(voxels(node, "Liver", ct), before)
        notes = [self.ui.organTable.item(row, self.ui.organTable.columnCount - 1).text() for row in range(4)]
        self.assertEqual([("edited" in note) for note in notes], [True, False, False, False])
        self.assertIs(self.output, node)
        take_picture("edited")
        after, self.answer = voxels(node, "Liver", ct), False
        self.click(self.ui.segmentButton)
        self.assertIn("were edited", self.questions[-1])
        self.assertEqual(voxels(node, "Liver", ct), after)

    def paint(self, node, ct):
        """Draw a stroke from the place outwards with the Segment Editor's brush, and come back."""
        node.GetDisplayNode().SetSegmentVisibility("liver", False)
        self.click(self.ui.editButton)
        self.assertEqual(slicer.util.moduleSelector().selectedModule, "SegmentEditor")
        editor = slicer.modules.segmenteditor.widgetRepresentation().self().editor
        self.assertIs(editor.segmentationNode(), node)
        self.assertIs(editor.sourceVolumeNode(), ct)
        self.assertEqual(editor.currentSegmentID(), "liver")
        self.assertTrue(node.GetDisplayNode().GetSegmentVisibility("liver"))
        self.assertEqual(editor.activeEffect().name, "Paint")
        process_events(0.3)
        view = slicer.app.layoutManager().sliceWidget("Red")
        width, height = view.sliceView().renderWindow().GetSize()
        slicer.util.clickAndDrag(view, start=(width // 2, height // 2), end=(width // 2, height - 8))
        process_events(0.3)
        take_picture("painted")
        back = slicer.util.findChild(slicer.modules.segmenteditor.widgetRepresentation(), "FlareSegmentBackButton")
        self.assertTrue(back.visible)
        back.click()
        process_events(0.3)
        self.assertEqual(slicer.util.moduleSelector().selectedModule, "FlareSegment")
        self.assertFalse(back.visible)
        self.click(self.ui.editButton)
        slicer.util.selectModule("Volumes")
        slicer.util.selectModule("SegmentEditor")
        process_events(0.3)
        self.assertFalse(back.visible, "who opens the editor for something else came from elsewhere")
        slicer.util.selectModule("FlareSegment")
        process_events(0.3)

    def test_a_scene_saved_with_the_confidence_shown_gives_the_slices_what_they_had(self):
        ct = add_ct()
        other = slicer.util.addVolumeFromArray(slicer.util.arrayFromVolume(ct) // 2, name="Other")
        slicer.util.setSliceViewerLayers(background=ct, foreground=other, foregroundOpacity=0.25)
        self.ui.inputSelector.setCurrentNode(ct)
        self.segment()
        self.ui.reviewCollapsibleButton.collapsed = False
        process_events(0.1)
        self.click(self.ui.confidenceCheckBox)
        overlay = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")[-1]
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode")
        ct.SetAndObserveTransformNodeID(transform.GetID())
        self.assertEqual(overlay.GetTransformNodeID(), transform.GetID())
        ct.SetAndObserveTransformNodeID(None)
        self.assertIsNone(overlay.GetTransformNodeID())
        self.click(self.ui.nextPlaceButton)
        self.click(self.ui.looksRightButton)
        file = output_folder() / "reviewed.mrb"
        self.assertTrue(slicer.util.saveScene(str(file)))
        slicer.mrmlScene.Clear(False)
        slicer.util.loadScene(str(file))
        process_events(0.5)
        volumes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        self.assertEqual({one.GetName() for one in volumes}, {"CT", "Other"})
        other = slicer.util.getNode("Other")
        for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
            self.assertEqual(composite.GetForegroundVolumeID(), other.GetID())
            self.assertEqual(composite.GetForegroundOpacity(), 0.25)
        self.assertTrue(self.ui.reviewProgressLabel.text.startswith("1 of"))

    def export(self, kind, place):
        import FlareSegmentSlicerLib.panel.export_section as section

        add_ct()
        self.segment()
        self.ui.exportCollapsibleButton.collapsed = False
        choose(self.ui.formatComboBox, kind)
        with Answers(section, place):
            self.click(self.ui.exportButton)
        process_events()
        return place

    def test_export_label_map(self):
        file = self.export("labels", output_folder() / "organs.nii.gz")
        self.assertIn("Wrote", self.message)
        from FlareSegmentLib.files.image_io import read_labels

        found = set(np.unique(read_labels(file).array).tolist())
        self.assertEqual(found, {0, 1, 2, 3, 4})

    def test_export_stl(self):
        folder = output_folder() / "stl"
        folder.mkdir(exist_ok=True)
        self.export("STL", folder)
        self.assertEqual(len(list(folder.glob("*.stl"))), 4, self.message)

    def test_export_obj(self):
        folder = output_folder() / "obj"
        folder.mkdir(exist_ok=True)
        self.export("OBJ", folder)
        self.assertTrue(list(folder.glob("*.obj")), self.message)

    def test_export_pictures(self):
        folder = output_folder() / "pictures"
        folder.mkdir(exist_ok=True)
        self.export("pictures", folder)
        self.assertTrue(list(folder.glob("*.png")), self.message)

    def test_export_video(self):
        file = self.export("slices", output_folder() / "slices.gif")
        self.assertTrue(file.is_file(), self.message)

    def test_export_dicom_segmentation(self):
        if importlib.util.find_spec("highdicom") is None:
            raise unittest.SkipTest("the package highdicom is not installed")
        import FlareSegmentSlicerLib.panel.export_section as section
        from FlareSegmentLib.files.dicom_segmentation import read_dicom_segmentation
        from FlareSegmentSlicerLib.scene import segmentation_nodes
        from FlareSegmentTrainingLib.dicom.dicom_patients import write_patient

        volume, labels = coarse_phantom(0)
        folder = write_patient(output_folder() / "patients", "Doe", volume, None)
        files = sorted(Path(folder).rglob("*.dcm"))
        ct = slicer.util.loadVolume(str(files[0]))
        array = slicer.util.arrayFromVolume(ct)
        labels = labels if np.array_equal(array, volume.array) else labels[::-1]
        node = segmentation_nodes.create_segmentation(
            ct, labels, description={"OrganTable": {"liver": {"volume_ml": 0.0}}}
        )
        self.ui.outputSelector.setCurrentNode(node)
        self.widget.onParameterNodeModified()
        process_events()
        choose(self.ui.formatComboBox, "dicom")
        file = output_folder() / "organs.dcm"
        with Answers(section, file):
            self.click(self.ui.exportButton)
        read = read_dicom_segmentation(file, like=segmentation_nodes.volume_from_node(ct))
        np.testing.assert_array_equal(read.organ_labels().array, labels)

    def test_save_the_table(self):
        add_ct()
        self.segment()
        file = output_folder() / "organs.csv"
        with Answers(sys.modules["FlareSegmentSlicerLib.panel.segmentation_panel"], file):
            self.click(self.ui.saveTableButton)
        self.assertIn("liver", file.read_text(encoding="utf-8-sig").lower())
