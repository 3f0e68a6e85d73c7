"""The embedded Slicer is not kinder than Slicer: what Slicer refuses, reports or leaves undone, it does too.

The rules were read in Slicer's source and seen in Slicer. Parameter nodes have a file of their own, and so has Reload
(`test_slicerhost_modules.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("slicer_core", reason="slicer-core is not installed")

MODULE = """
import sys
from slicer.ScriptedLoadableModule import *

class {name}(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "{title}"
        parent.dependencies = {dependencies}
        print("instantiated {name}", file=sys.stderr)

    def setup(self):
        print("set up {name}", file=sys.stderr)
"""


def write_module(folder, name, title="A title", dependencies=()):
    text = MODULE.format(name=name, title=title, dependencies=list(dependencies))
    (folder / f"{name}.py").write_text(text, encoding="utf-8")


@pytest.fixture
def run(repository, tmp_path):
    """Starts the application without a window, with the test's folder as a module path."""

    def start(code, *words, **variables):
        environment = {**os.environ, "PYTHONPATH": str(repository / "Testing"), **variables}
        command = [sys.executable, "-m", "slicerhost", "--no-main-window", *words]
        command += ["--additional-module-path", str(tmp_path), "--python-code", f"{code}\nexit(0)"]
        return subprocess.run(command, env=environment, text=True, capture_output=True, timeout=300)

    return start


def test_every_python_file_of_a_module_path_is_taken_for_a_module(run, tmp_path):
    write_module(tmp_path, "Good")
    (tmp_path / "train.py").write_text("import logging\n", encoding="utf-8")
    (tmp_path / "program.py").write_text("#!/usr/bin/env python\nraise RuntimeError\n", encoding="utf-8")
    process = run("import sys; print('train' in sys.modules, 'program' in sys.modules)")
    assert process.returncode == 0
    assert process.stdout.split() == ["True", "False"], "its name is taken in Python; a program's is not"
    assert "class train was not found in file" in process.stderr
    assert "The following modules failed to be instantiated:\n   train" in process.stderr
    assert run("pass", "--testing").returncode == 1
    ignoring = run("pass", "--testing", "--modules-to-ignore", "train,other")
    assert ignoring.returncode == 0, ignoring.stderr
    assert "train" not in ignoring.stderr


def test_modules_are_instantiated_first_and_set_up_behind_their_dependencies(run, tmp_path):
    write_module(tmp_path, "Above", dependencies=["Below", "Segmentations"])
    write_module(tmp_path, "Below")
    write_module(tmp_path, "Lost", dependencies=["Nowhere"])
    write_module(tmp_path, "Nameless", title="")
    process = run("print(slicer.app.moduleManager().module('Lost'), slicer.app.moduleManager().module('Nameless'))")
    words = [line for line in process.stderr.splitlines() if line.startswith(("instantiated", "set up"))]
    assert words == [
        "instantiated Above", "instantiated Below", "instantiated Lost", "instantiated Nameless",
        "set up Below", "set up Above",
    ]  # fmt: skip
    assert process.stdout.split() == ["None", "None"]
    assert "the dependency 'Nowhere' failed to be loaded" in process.stderr
    assert "Failed to retrieve module title" in process.stderr


def test_an_installed_extension_is_found_by_its_own_folder(run, tmp_path):
    folder = tmp_path / "lib" / "Slicer-5.12" / "qt-scripted-modules"
    folder.mkdir(parents=True)
    write_module(folder, "Installed")
    assert "set up Installed" in run("pass").stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Slicer does so on Linux and macOS")
def test_the_application_and_what_it_starts_run_at_the_least_priority(run, repository):
    code = "import os, subprocess\nprint(os.nice(0), subprocess.check_output(['nice'], text=True))"
    least = f"from slicerhost.command_line import lower_priority\nlower_priority()\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(repository / "Testing")}
    del environment["SLICER_BACKGROUND_THREAD_PRIORITY"]
    alone = subprocess.run([sys.executable, "-S", "-c", least], env=environment, capture_output=True, text=True)
    assert alone.stdout.split() == ["19", "19"], alone.stderr
    asked = str(min(os.nice(0) + 1, 19))
    assert run(code, SLICER_BACKGROUND_THREAD_PRIORITY=asked).stdout.split() == [asked, asked]


def test_without_a_window_there_is_no_layout(run):
    code = (
        "print(slicer.app.layoutManager(), slicer.mrmlScene.GetFirstNodeByClass('vtkMRMLLayoutNode'))\n"
        "slicer.mrmlScene.AddNewNodeByClass('vtkMRMLLayoutNode').SetViewArrangement(36)"
    )
    process = run(code)
    assert process.stdout.split() == ["None", "None"]
    assert "Can't find layout:36" in process.stderr


def test_layouts_are_chosen_by_the_layout_node(slicer_app):
    import slicer

    manager = slicer_app.layoutManager()
    node = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    before = manager.layout
    node.SetViewArrangement(slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView)
    assert manager.layout == slicer.vtkMRMLLayoutNode.SlicerLayoutOneUpRedSliceView
    assert not manager.threeDWidget(0).visible
    manager.setLayout(before)
    assert node.GetViewArrangement() == before


@pytest.mark.parametrize(("points", "complains"), [(1, True), (2, False)])
def test_a_line_of_one_point_is_an_error_of_the_plot_view(slicer_app, capfd, points, complains):
    import slicer

    manager = slicer_app.layoutManager()
    before = manager.layout
    table = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTableNode")
    slicer.util.updateTableFromArray(table, np.ones((points, 2)), ["Epoch", "Loss"])
    series = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotSeriesNode", "Loss")
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName("Epoch")
    series.SetYColumnName("Loss")
    series.SetPlotType(slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter)
    chart = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLPlotChartNode")
    chart.AddAndObservePlotSeriesNodeID(series.GetID())
    slicer.modules.plots.logic().ShowChartInLayout(chart)
    assert manager.plotWidget(0).mrmlPlotViewNode().GetPlotChartNodeID() == chart.GetID()
    manager.plotWidget(0).grab()
    manager.setLayout(before)
    assert ("Attempted to paint a line with <2 points" in capfd.readouterr().err) == complains


@pytest.fixture
def dock(slicer_app, load_module, tmp_path):
    """The dock, with the panel of a module in it that holds one widget, and that widget."""
    import slicer

    if slicer.app.moduleManager().module("Wide") is None:
        write_module(tmp_path, "Wide")
        with open(tmp_path / "Wide.py", "a", encoding="utf-8") as file:
            file.write("\nclass WideWidget(ScriptedLoadableModuleWidget):\n    pass\n")
        load_module(tmp_path / "Wide.py")
    slicer.util.selectModule("Wide")
    import qt

    child = qt.QLabel("panel")
    slicer.util.getModuleWidget("Wide").layout.addWidget(child)
    yield slicer.util.mainWindow().findChild(qt.QDockWidget, "PanelDockWidget"), child
    child.setParent(None)
    slicer_app._main_window._leave_module()


def settle(application):
    for _ in range(5):
        application.processEvents()


def width_of(widget):
    return widget.size.width()


def test_the_panels_least_width_is_the_docks_and_is_never_given_back(dock, slicer_app):
    import qt
    import slicer

    dock, child = dock
    child.setMinimumWidth(300)
    settle(slicer_app)
    slicer.util.mainWindow().resizeDocks([dock], [400], qt.Qt.Horizontal)
    settle(slicer_app)
    assert width_of(dock) == 400, "the width that the user chose is kept"
    child.setMinimumWidth(500)
    settle(slicer_app)
    assert width_of(dock) >= 500 + 10, "the panel and a scroll bar"
    slicer.util.mainWindow().resizeDocks([dock], [400], qt.Qt.Horizontal)
    settle(slicer_app)
    assert width_of(dock) >= 500, "it cannot be dragged narrower"
    child.setMinimumWidth(300)
    settle(slicer_app)
    assert width_of(dock) >= 500, "and does not become narrower by itself"


def test_a_selector_moves_to_the_neighbor_before_its_node_is_gone(slicer_app):
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLSegmentationNode"]
    box.noneEnabled = True
    box.setMRMLScene(slicer.mrmlScene)
    nodes = [slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name) for name in "abc"]
    box.setCurrentNode(nodes[0])
    told = []
    leaving = nodes[0].GetID()
    box.connect(
        "currentNodeChanged(vtkMRMLNode*)", lambda node: told.append((node, slicer.mrmlScene.GetNodeByID(leaving)))
    )
    slicer.mrmlScene.RemoveNode(nodes[0])
    assert told == [(nodes[1], nodes[0])], "the removed node is still in the scene when the selector moves"
    assert box.currentNode() is nodes[1]


def test_selectors_do_not_know_imported_nodes_before_the_end(slicer_app):
    import slicer

    box, optional = slicer.qMRMLNodeComboBox(), slicer.qMRMLNodeComboBox()
    optional.noneEnabled = True
    before = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "before")
    for one in (box, optional):
        one.nodeTypes = ["vtkMRMLSegmentationNode"]
        one.setMRMLScene(slicer.mrmlScene)
        one.setCurrentNode(before)
    slicer.mrmlScene.StartState(slicer.vtkMRMLScene.ImportState)
    imported = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "imported")
    for one in (box, optional):
        one.setCurrentNode(imported)
        assert one.currentNode() is None
    slicer.mrmlScene.EndState(slicer.vtkMRMLScene.ImportState)
    assert box.currentNode() is before, "the first row of those that are there then"
    assert optional.currentNode() is None
    box.setCurrentNode(imported)
    assert box.currentNode() is imported


def test_a_declined_installation_is_an_exception(slicer_app, monkeypatch):
    import slicer
    from slicer.packaging import pip_ensure

    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *arguments, **keywords: False)
    with pytest.raises(RuntimeError, match="declined"):
        pip_ensure("package-that-nobody-has>=1", requester="Test", skip_in_testing=False)


def test_a_sample_with_a_downloader_alone_cannot_be_downloaded_by_name(slicer_app, tmp_path):
    import SampleData
    import slicer

    asked = []
    register = SampleData.SampleDataLogic.registerCustomSampleDataSource
    register(category="Rules", sampleName="own", uris=[], fileNames=[], customDownloader=asked.append)
    with pytest.raises(IndexError):
        SampleData.downloadSample("own")
    assert not asked
    volume = slicer.util.addVolumeFromArray(np.zeros((3, 4, 5), np.int16), name="CT")
    file = tmp_path / "ct.nrrd"
    assert slicer.util.saveNode(volume, str(file), {})
    register(category="Rules", sampleName="file", uris=[file.as_uri()], fileNames=["sample.nrrd"], nodeNames=["Sample"])
    assert SampleData.downloadSample("file").GetName() == "Sample"
    with pytest.raises(ValueError, match="lengths"):
        register(category="Rules", sampleName="bad", uris=["a", "b"], fileNames=["a"])
