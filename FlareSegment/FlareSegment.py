"""The FlareSegment module of 3D Slicer: a CT in, abdominal organs as segments out, at one click.

Only what Slicer expects in a module file is here: module, parameter node, panel, logic and self test. What happens in
the panel (`FlareSegmentSlicerLib.panel`), and what the logic does (`FlareSegmentSlicerLib.logic`), have files of their
own; numerics are in `FlareSegmentLib` and run in the worker's process.
"""

import sys
import time
from typing import Union

import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import ScriptedLoadableModule, ScriptedLoadableModuleTest

from FlareSegmentLib import HOMEPAGE
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentSlicerLib.logic.segmentation_logic import SegmentationLogic
from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess
from FlareSegmentSlicerLib.panel import installation
from FlareSegmentSlicerLib.panel.segmentation_panel import SegmentationPanel
from FlareSegmentSlicerLib.scene import comparison, confidence, segmentation_nodes
from FlareSegmentSlicerLib.scene.sample_data import register_sample_data

MODEL_FOLDER = bundled_model_folder()
DEFAULTS_APPLIED = "FlareSegment.DefaultsApplied"
LIBRARIES = ("FlareSegmentLib", "FlareSegmentSlicerLib")


class FlareSegment(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("FlareSegment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["Segmentations", "Sequences", "VolumeRendering"]
        self.parent.contributors = ["FlareSegment contributors"]
        self.parent.helpText = _("""
Segments liver, kidneys and spleen in an abdominal CT within seconds: offline, on a laptop's CPU or on a GPU.
Choose the CT, click <b>Segment</b>.
""")
        self.parent.helpText += f'<p><a href="{HOMEPAGE}">{HOMEPAGE}</a></p>'
        self.parent.acknowledgementText = _("""
The networks are V-Nets (Milletari, Navab, Ahmadi 2016). Organs and tolerances follow the FLARE22 challenge
(Ma et al. 2022).
""")
        slicer.app.connect("startupCompleted()", register_sample_data)


@parameterNodeWrapper
class FlareSegmentParameterNode:
    """
    What the user has chosen; saved with the scene.

    inputVolume - The CT.
    outputSegmentation - Receives the organs; None creates a segmentation.
    device - Where the networks run: "auto", "cpu", "cuda:0", "mps".
    modelFolder - The model; empty for the bundled one.
    organs - Keys of the organs to keep; empty for all.
    roi - Organs are kept inside this region only.
    reference - What the result is compared with.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    outputSegmentation: vtkMRMLSegmentationNode
    device: str = "auto"
    modelFolder: str = ""
    organs: list[str]
    roi: vtkMRMLMarkupsROINode
    reference: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]  # noqa: UP007  as the wrapper reads it


class FlareSegmentWidget(SegmentationPanel):
    """The panel, as Slicer opens, leaves and reloads it; what happens in it is in `SegmentationPanel`."""

    def setup(self) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        SegmentationPanel.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/FlareSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = FlareSegmentLogic()
        self.addSections(lambda: MODEL_FOLDER)

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)

        self.initializeParameterNode()
        if getattr(self.parent, "isEntered", False):  # the panel was reloaded while it was open
            self._warmUp()

    def cleanup(self) -> None:
        """Called when the application closes or the module is reloaded, and the module widget is destroyed."""
        self.setParameterNode(None)
        self.removeObservers()
        self._editedTimer.stop()
        self._adoptTimer.stop()
        self._cohort.close()
        self.logic.close()

    def onReload(self) -> None:
        """Read the module's libraries anew, too: what is imported already would be taken again."""
        confidence.hide_others(None)
        for name in [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]:
            del sys.modules[name]
        SegmentationPanel.onReload(self)

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()
        self._warmUp()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event) -> None:
        """Called just before the scene is closed."""
        self.setParameterNode(None)
        comparison.remove_differences()

    def onSceneEndClose(self, caller, event) -> None:
        """Called just after the scene is closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneStartImport(self, caller, event) -> None:
        """Called before a scene is loaded: selectors do not know its nodes until its end, and would choose others."""
        self.setParameterNode(None)

    def onSceneEndImport(self, caller, event) -> None:
        """Called after a scene was loaded: what was chosen in it is taken over as a whole."""
        confidence.give_back_foregrounds()
        if self.parent.isEntered:
            self.initializeParameterNode()

    def initializeParameterNode(self) -> None:
        """Ensure parameter node exists and observed."""
        confidence.give_back_foregrounds()
        self.setParameterNode(self.logic.getParameterNode())
        node = self._parameterNode.parameterNode
        if not node.GetAttribute(DEFAULTS_APPLIED):
            node.SetAttribute(DEFAULTS_APPLIED, "1")
            self._options.applyDefaults()
        self._chooseFirstVolume()

    def setParameterNode(self, inputParameterNode: FlareSegmentParameterNode | None) -> None:
        """Set and observe parameter node."""
        if self._parameterNode:
            self._parameterNode.disconnectGui(self._parameterNodeGuiTag)
            self._parameterNodeGuiTag = None
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified)
        self._observeOutput(None)
        self._parameterNode = inputParameterNode
        if self._parameterNode:
            self._inputOfOutput = self._parameterNode.inputVolume
            self._parameterNodeGuiTag = self._parameterNode.connectGui(self.ui)
            self.addObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified)
            self.onParameterNodeModified()


class FlareSegmentLogic(SegmentationLogic):
    """Segments CTs of the scene; see `SegmentationLogic.segment` for the one call that Python code needs."""

    def __init__(self, worker: WorkerProcess | None = None) -> None:
        """worker: what computes; by default a process of its own that starts with the first segmentation."""
        super().__init__(lambda: MODEL_FOLDER, worker)

    def getParameterNode(self) -> FlareSegmentParameterNode:
        return FlareSegmentParameterNode(super().getParameterNode())


class FlareSegmentTest(ScriptedLoadableModuleTest):
    """The self test: the panel is opened and segments the built-in torso phantom with the bundled model, offline.

    Without PyTorch, as on the machines that build extensions, nothing is segmented and the test says so.
    """

    PATIENCE_SECONDS = 300

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_SegmentTorsoPhantom()

    def test_SegmentTorsoPhantom(self):
        from FlareSegmentLib.organs import ORGANS
        from FlareSegmentSlicerLib.scene.organ_names import organ_name
        from FlareSegmentSlicerLib.scene.sample_data import add_phantom

        self.delayDisplay(_("Opening the panel"))
        widget = slicer.util.getModuleWidget("FlareSegment")
        if slicer.util.mainWindow() is not None:
            slicer.util.selectModule("FlareSegment")
        else:
            widget.enter()
        ui = widget.ui
        assert not ui.segmentButton.enabled
        volumeNode = add_phantom()
        assert ui.inputSelector.currentNode() is volumeNode
        if not installation.torch_installed():
            assert not ui.segmentButton.enabled
            self.delayDisplay(_("Nothing was segmented: PyTorch is not installed. The panel's own test passed."))
            return
        self.delayDisplay(_("Segmenting"))
        assert ui.segmentButton.enabled
        ui.segmentButton.click()
        assert widget.logic.isRunning, ui.messageLabel.text
        self._wait(lambda: not widget.logic.isRunning)
        segmentationNode = ui.outputSelector.currentNode()
        assert segmentationNode is not None, ui.messageLabel.text
        names = [organ_name(organ) for organ in ORGANS]
        segmentation = segmentationNode.GetSegmentation()
        found = [segmentation.GetNthSegment(index).GetName() for index in range(segmentation.GetNumberOfSegments())]
        assert found == names
        assert [ui.organTable.item(row, 0).text() for row in range(ui.organTable.rowCount)] == names
        assert segmentation_nodes.find_result(volumeNode) is segmentationNode
        assert segmentation_nodes.is_shown_in_3d(segmentationNode) == ui.autoShow3DCheckBox.checked
        self.delayDisplay(_("Test passed"))

    def _wait(self, condition):
        end = time.monotonic() + self.PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < end, "the segmentation did not end"
            slicer.app.processEvents()
            time.sleep(0.01)
