"""The embedded Slicer's modules, files and Python layer: what scripted modules rest on."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
import pytest

MODULE = """
    from typing import Annotated

    import qt
    import slicer
    from slicer import vtkMRMLScalarVolumeNode
    from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper, parameterPack
    from slicer.ScriptedLoadableModule import *

    class HostSample(ScriptedLoadableModule):
        def __init__(self, parent):
            ScriptedLoadableModule.__init__(self, parent)
            parent.title = "Sample"

    @parameterPack
    class Window:
        width: Annotated[float, WithinRange(1, 4000)] = 400.0
        level: float = 40.0

    @parameterNodeWrapper
    class HostSampleParameterNode:
        inputVolume: vtkMRMLScalarVolumeNode
        threshold: Annotated[float, WithinRange(0, 100)] = 10.0
        window: Window

    class HostSampleWidget(ScriptedLoadableModuleWidget):
        def setup(self):
            super().setup()
            self.events = []
            self.logic = HostSampleLogic()
            self.threshold = qt.QDoubleSpinBox()
            self.threshold.setProperty("SlicerParameterName", "threshold")
            self.width = qt.QDoubleSpinBox()
            self.width.setProperty("SlicerParameterName", "window.width")
            for widget in (self.threshold, self.width):
                self.layout.addWidget(widget)

        def enter(self):
            self.events.append("enter")
            self.parameters = self.logic.getParameterNode()
            self.tag = self.parameters.connectGui(self.parent)

        def exit(self):
            self.events.append("exit")
            if hasattr(self, "parameters"):
                self.parameters.disconnectGui(self.tag)

        def cleanup(self):
            self.events.append("cleanup")

    class HostSampleLogic(ScriptedLoadableModuleLogic):
        def getParameterNode(self):
            return HostSampleParameterNode(super().getParameterNode())

    class HostSampleTest(ScriptedLoadableModuleTest):
        def test_first(self):
            slicer.hostSampleRan = True
"""


@pytest.fixture
def widget(load_module, tmp_path):
    import slicer

    path = tmp_path / "HostSample.py"
    path.write_text(textwrap.dedent(MODULE), encoding="utf-8")
    if slicer.app.moduleManager().module("HostSample") is None:
        load_module(path)
    slicer.util.selectModule("HostSample")
    return slicer.util.getModuleWidget("HostSample")


def test_module_is_entered_and_left_with_its_panel(widget, slicer_app):
    import slicer

    assert slicer.modules.hostsample.title == "Sample"
    assert slicer.modules.HostSampleWidget is widget
    assert slicer.util.getModuleLogic("HostSample") is widget.logic
    assert widget.events[-1] == "enter"
    assert widget.parent.isEntered
    assert widget.threshold.visible
    slicer_app._main_window._leave_module()
    assert widget.events[-1] == "exit"
    assert not widget.parent.isEntered


def test_panel_and_parameter_node_follow_each_other(widget):
    widget.threshold.value = 25
    assert widget.parameters.threshold == 25
    widget.parameters.threshold = 70.5
    assert widget.threshold.value == 70.5
    widget.width.value = 1500
    assert widget.parameters.window.width == 1500
    assert widget.parameters.parameterNode.GetParameter("window.width") == "1500.0"
    with pytest.raises(ValueError, match="within range"):
        widget.parameters.threshold = 101
    assert widget.threshold.maximum == 100


def test_parameters_survive_saving_and_loading(widget, tmp_path):
    import slicer

    widget.parameters.inputVolume = slicer.util.addVolumeFromArray(np.zeros((4, 5, 6), np.int16), name="CT")
    widget.parameters.threshold = 33
    path = str(tmp_path / "scene.mrb")
    assert slicer.util.saveScene(path, {})
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(path, {})
    again = widget.logic.getParameterNode()
    assert again.threshold == 33
    assert again.inputVolume.GetName() == "CT"
    assert slicer.util.arrayFromVolume(again.inputVolume).shape == (4, 5, 6)


def test_own_test_of_a_module_runs(widget):
    import slicer

    slicer.hostSampleRan = False
    slicer.modules.HostSampleInstance.runTest(msec=0)
    assert slicer.hostSampleRan
    del slicer.hostSampleRan


def test_reloading_makes_a_new_panel_after_cleaning_up_the_old(widget, tmp_path):
    import slicer

    Path(slicer.modules.hostsample.path).parent.mkdir(exist_ok=True)
    Path(slicer.modules.hostsample.path).write_text(textwrap.dedent(MODULE), encoding="utf-8")
    slicer.util.reloadScriptedModule("HostSample")
    fresh = slicer.util.getModuleWidget("HostSample")
    assert fresh is not widget
    assert widget.events[-1] == "cleanup"
    assert fresh.events == [], "Slicer does not enter a panel again that was reloaded while it is shown"


def test_names_of_slicer_util_are_not_in_slicer(slicer_app):
    import slicer

    leaked = [name for name in slicer.util.__all__ if hasattr(slicer, name)]
    assert leaked == ["moduleNames"]  # Slicer's own object of that name


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_volumes_are_written_and_read(slicer_app, tmp_path, suffix):
    import slicer
    import vtk

    voxels = np.random.default_rng(1).integers(-1000, 1000, (6, 7, 8)).astype(np.int16)
    node = slicer.util.addVolumeFromArray(voxels, name="CT")
    node.SetSpacing(0.7, 0.8, 2.5)
    node.SetOrigin(-10, 20, 30)
    path = str(tmp_path / f"ct{suffix}")
    assert slicer.util.saveNode(node, path, {})
    loaded = slicer.util.loadVolume(path, {})
    assert np.array_equal(slicer.util.arrayFromVolume(loaded), voxels)
    matrices = [vtk.vtkMatrix4x4(), vtk.vtkMatrix4x4()]
    for one, matrix in zip((node, loaded), matrices):
        one.GetIJKToRASMatrix(matrix)
    assert np.allclose(*(slicer.util.arrayFromVTKMatrix(matrix) for matrix in matrices), atol=1e-5)
    assert loaded.GetName() == "ct"


def test_missing_file_raises(slicer_app, tmp_path):
    import slicer

    with pytest.raises(RuntimeError, match=r"nothing\.nii"):
        slicer.util.loadVolume(str(tmp_path / "nothing.nii"), {})


def test_terminologies_of_slicer_are_loaded(slicer_app):
    import slicer
    import vtk

    logic = slicer.app.moduleLogic("Terminologies")
    names = vtk.vtkStringArray()
    logic.GetLoadedTerminologyNames(names)
    loaded = {names.GetValue(index) for index in range(names.GetNumberOfValues())}
    assert "Segmentation category and type - DICOM master list" in loaded
    name = "Segmentation category and type - DICOM master list"
    codes = {}
    category, kind = slicer.vtkSlicerTerminologyCategory(), slicer.vtkSlicerTerminologyType()
    for index in range(logic.GetNumberOfCategoriesInTerminology(name)):
        logic.GetNthCategoryInTerminology(name, index, category)
        if category.GetCodeMeaning() == "Anatomical Structure":
            for position in range(logic.GetNumberOfTypesInTerminologyCategory(name, category)):
                logic.GetNthTypeInTerminologyCategory(name, category, position, kind)
                codes[kind.GetCodeMeaning()] = kind.GetCodeValue()
    assert (codes["Spleen"], codes["Liver"], codes["Kidney"]) == ("78961009", "10200004", "64033007")


def test_nodes_have_subject_hierarchy_items(slicer_app):
    import slicer

    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT")
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "organs")
    study = hierarchy.CreateStudyItem(hierarchy.GetSceneItemID(), "study")
    hierarchy.SetItemParent(hierarchy.GetItemByDataNode(volume), study)
    item = hierarchy.GetItemByDataNode(segmentation)
    hierarchy.SetItemParent(item, hierarchy.GetItemParent(hierarchy.GetItemByDataNode(volume)))
    assert hierarchy.GetItemParent(item) == study
    slicer.mrmlScene.RemoveNode(volume)
    assert hierarchy.GetItemByDataNode(segmentation) == item


def test_dialogs_do_not_wait_in_testing_mode(slicer_app):
    import slicer

    slicer.util.errorDisplay("no CT")
    assert slicer.util.confirmOkCancelDisplay("Install?") in (True, False)


def test_translation_keeps_the_text_and_knows_the_context(slicer_app):
    from slicer.i18n import getContext, tr, translate

    assert tr("Segment {count} organs") == "Segment {count} organs"
    assert translate("FlareSegment", "Spleen") == "Spleen"
    assert getContext(__file__) == "test_slicerhost_modules"


def test_closing_the_scene_gives_a_connected_panel_its_defaults(widget):
    import slicer

    widget.parameters.threshold = 90
    slicer.mrmlScene.Clear(False)
    assert widget.parameters.threshold == 10
    assert widget.threshold.value == 10
