"""The FlareSegment module of 3D Slicer: a CT in, abdominal organs as segments out, at one click.

Only what Slicer expects in a module file is here: module, parameter node, panel, logic and self test. The panel
knows the logic, the logic knows a worker (`FlareSegmentSlicerLib.worker_process`) and the scene
(`FlareSegmentSlicerLib.segmentation_nodes`); numerics are in `FlareSegmentLib` and run in the worker's process.
"""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import qt
import slicer
import vtk
from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from FlareSegmentLib.errors import Cancelled, FlareSegmentError, InputError
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.worker_protocol import Ready, Result
from FlareSegmentSlicerLib import segmentation_nodes
from FlareSegmentSlicerLib.worker_process import SegmentationWorker, WorkerProcess

TORCH_REQUIREMENT = ">=2.4"
MODEL_FOLDER = Path(__file__).resolve().parent / "Resources" / "Models" / "abdomen"


class FlareSegment(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("FlareSegment")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = []
        self.parent.contributors = ["FlareSegment contributors"]
        self.parent.helpText = _("""
Segments liver, kidneys and spleen in an abdominal CT within seconds: offline, on a laptop's CPU or on a GPU.
Choose the CT, click <b>Segment</b>.
""")
        self.parent.acknowledgementText = _("""
The networks are V-Nets (Milletari, Navab, Ahmadi 2016). Organs and tolerances follow the FLARE22 challenge
(Ma et al. 2022).
""")


@parameterNodeWrapper
class FlareSegmentParameterNode:
    """
    What the user has chosen; saved with the scene.

    inputVolume - The CT.
    outputSegmentation - Receives the organs; None creates a segmentation.
    device - Where the networks run: "auto", "cpu", "cuda", "mps".
    modelFolder - The model; empty for the bundled one.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    outputSegmentation: vtkMRMLSegmentationNode
    device: str = "auto"
    modelFolder: str = ""


class FlareSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel."""

    def __init__(self, parent=None) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: FlareSegmentLogic | None = None
        self._parameterNode: FlareSegmentParameterNode | None = None
        self._parameterNodeGuiTag: int | None = None
        self._inputOfOutput: vtkMRMLScalarVolumeNode | None = None
        self._shownOutput: vtkMRMLSegmentationNode | None = None

    def setup(self) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/FlareSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = FlareSegmentLogic()

        self.ui.deviceComboBox.addItem(_("Automatic"), "auto")
        self.ui.deviceComboBox.addItem(_("CPU"), "cpu")
        columns = {
            _("Organ"): "",
            _("mL"): _("Volume of the organ as it was segmented, in milliliters"),
            _("HU"): _("Mean of the CT in the organ, in Hounsfield units"),
        }
        self.ui.organTable.setColumnCount(len(columns))
        for column, (text, toolTip) in enumerate(columns.items()):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(toolTip)
            self.ui.organTable.setHorizontalHeaderItem(column, item)
        header = self.ui.organTable.horizontalHeader()
        header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
        header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
        self.ui.organTable.verticalHeader().setVisible(False)
        self._fillOrganTable(None)
        self._showMessage("")

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)

        self.ui.segmentButton.connect("clicked(bool)", self.onSegmentButton)
        self.ui.show3DButton.connect("clicked(bool)", self.onShow3DButton)
        self.ui.installTorchButton.connect("clicked(bool)", self.onInstallTorchButton)
        self.ui.deviceComboBox.connect("activated(int)", self.onDeviceActivated)
        self.ui.modelPathEdit.connect("currentPathChanged(QString)", self.onModelChanged)

        self.initializeParameterNode()

    def cleanup(self) -> None:
        """Called when the application closes or the module is reloaded, and the module widget is destroyed."""
        self.setParameterNode(None)
        self.removeObservers()
        self.logic.close()

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.initializeParameterNode()
        if torchInstalled():
            self.logic.warmUp(self.onWorkerReady, self.onError)

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self.setParameterNode(None)

    def onSceneStartClose(self, caller, event) -> None:
        """Called just before the scene is closed."""
        self.setParameterNode(None)

    def onSceneEndClose(self, caller, event) -> None:
        """Called just after the scene is closed."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    def onSceneEndImport(self, caller, event) -> None:
        """Called after a scene was loaded: what was chosen in it is taken over as a whole."""
        if self.parent.isEntered:
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller, event, node) -> None:
        """A first CT that is loaded while the panel is open is chosen, as it would have been on opening."""
        if self._parameterNode and node.IsA("vtkMRMLScalarVolumeNode") and not slicer.mrmlScene.IsImporting():
            self._chooseFirstVolume()

    def initializeParameterNode(self) -> None:
        """Ensure parameter node exists and observed."""
        self.setParameterNode(self.logic.getParameterNode())
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

    def onParameterNodeModified(self, caller=None, event=None) -> None:
        """Bring the panel in line with what is chosen."""
        parameters = self._parameterNode
        if not parameters or slicer.mrmlScene.IsImporting():
            return
        if parameters.inputVolume is not self._inputOfOutput:
            # Another CT must never overwrite the organs of the CT before.
            self._inputOfOutput = parameters.inputVolume
            result = segmentation_nodes.find_result(parameters.inputVolume) if parameters.inputVolume else None
            parameters.outputSegmentation = result
        self.ui.deviceComboBox.setCurrentIndex(max(0, self.ui.deviceComboBox.findData(parameters.device)))
        self.ui.modelPathEdit.currentPath = parameters.modelFolder
        self._observeOutput(parameters.outputSegmentation)
        self._updateState()

    def onSegmentButton(self) -> None:
        """Start, or give up what runs."""
        if self.logic.isRunning:
            self.logic.cancel()
            return
        parameters = self._parameterNode
        if parameters.outputSegmentation and not self._mayReplace(parameters.outputSegmentation):
            return
        self._showMessage("")
        self.onProgress(0.0, _("Starting"))
        self.logic.startSegmentation(
            parameters.inputVolume,
            parameters.outputSegmentation,
            device=parameters.device,
            model=Path(parameters.modelFolder) if parameters.modelFolder else None,
            onProgress=self.onProgress,
            onFinished=self.onFinished,
            onError=self.onError,
            onCancelled=self.onCancelled,
        )
        self._updateState()

    def onShow3DButton(self, checked: bool) -> None:
        """Show or hide the organs' surfaces."""
        with slicer.util.tryWithErrorDisplay(_("The 3D surfaces could not be made."), waitCursor=True):
            segmentation_nodes.show_3d(self._parameterNode.outputSegmentation, checked)
        self._updateState()

    def onDeviceActivated(self, index: int) -> None:
        """The user chose where to compute."""
        if self._parameterNode:
            self._parameterNode.device = self.ui.deviceComboBox.itemData(index)

    def onModelChanged(self, path: str) -> None:
        """The user chose a model of their own, or with an empty path the bundled one."""
        if self._parameterNode and self._parameterNode.modelFolder != path:
            self._parameterNode.modelFolder = path

    def onInstallTorchButton(self) -> None:
        """Install PyTorch; the extension or pip asks before anything is downloaded."""
        self._showMessage(_("Installing PyTorch. This takes some minutes."))
        self.ui.installTorchButton.enabled = False
        slicer.app.processEvents()
        try:
            with slicer.util.WaitCursor():
                installTorch()
        except Exception as error:  # whatever pip or the extension stumbles over: the user must know it
            logging.exception("PyTorch could not be installed")
            self._showMessage(_("PyTorch could not be installed: {reason}").format(reason=error), "error")
        else:
            self._showMessage("")
        self.ui.installTorchButton.enabled = True
        self._updateState()
        if torchInstalled():
            self.logic.warmUp(self.onWorkerReady, self.onError)

    def onWorkerReady(self, ready: Ready) -> None:
        """Offer the accelerator that the worker found."""
        if ready.device != "cpu" and self.ui.deviceComboBox.findData(ready.device) < 0:
            text = {"cuda": _("GPU (CUDA)"), "mps": _("GPU (Apple)")}.get(ready.device, ready.device)
            self.ui.deviceComboBox.addItem(text, ready.device)
            self.onParameterNodeModified()

    def onProgress(self, fraction: float, stage: str) -> None:
        """Show how far the segmentation is."""
        self.ui.progressBar.value = round(100 * fraction)
        self.ui.progressBar.format = f"{stage}  %p%"

    def onFinished(self, segmentationNode: vtkMRMLSegmentationNode) -> None:
        """Show the organs."""
        parameters = self._parameterNode or self.logic.getParameterNode()
        if parameters.inputVolume is segmentation_nodes.reference_volume(segmentationNode):
            parameters.outputSegmentation = segmentationNode
        self._showOutcome(segmentationNode)
        self._updateState()
        with slicer.util.tryWithErrorDisplay(_("The 3D surfaces could not be made."), waitCursor=True):
            segmentation_nodes.show_3d(segmentationNode, True)
        self._updateState()

    def onError(self, message: str) -> None:
        """Say calmly what went wrong."""
        self._showMessage(message, "error")
        self._updateState()

    def onCancelled(self, reason: str) -> None:
        """Say why nothing was made."""
        self._showMessage(reason)
        self._updateState()

    def _chooseFirstVolume(self) -> None:
        if self._parameterNode.inputVolume:
            return
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode"):
            # Label maps and color images are of derived classes.
            if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetHideFromEditors():
                self._parameterNode.inputVolume = node
                return

    def _mayReplace(self, segmentationNode: vtkMRMLSegmentationNode) -> bool:
        """Ask before work is lost: organs that somebody edited, or that are another CT's."""
        name = segmentationNode.GetName()
        edited = segmentation_nodes.edited_organs(segmentationNode)
        reference = segmentation_nodes.reference_volume(segmentationNode)
        if edited:
            question = _("{organs} in {name} were edited. Replace them by a new result?").format(
                organs=", ".join(edited), name=name
            )
        elif reference is not self._parameterNode.inputVolume and segmentation_nodes.organ_segments(segmentationNode):
            question = _("{name} holds the organs of another volume. Replace them by a new result?").format(name=name)
        else:
            return True
        return slicer.util.confirmOkCancelDisplay(question)

    def _observeOutput(self, segmentationNode: vtkMRMLSegmentationNode | None) -> None:
        if segmentationNode is self._shownOutput:
            return
        if self._shownOutput:
            self.removeObserver(self._shownOutput, vtk.vtkCommand.ModifiedEvent, self._updateState)
            self.removeObserver(
                self._shownOutput, slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent, self._updateState
            )
        self._shownOutput = segmentationNode
        if segmentationNode:
            self.addObserver(segmentationNode, vtk.vtkCommand.ModifiedEvent, self._updateState)
            self.addObserver(segmentationNode, slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent, self._updateState)
        self._fillOrganTable(segmentationNode)

    def _updateState(self, caller=None, event=None) -> None:
        """Enable, label and explain the buttons."""
        ui, parameters = self.ui, self._parameterNode
        running = self.logic.isRunning
        ready = torchInstalled()
        volume = parameters.inputVolume if parameters else None
        output = parameters.outputSegmentation if parameters else None
        ui.torchFrame.setVisible(not ready)
        ui.inputCollapsibleButton.enabled = not running
        ui.advancedCollapsibleButton.enabled = not running
        ui.progressBar.setVisible(running)
        ui.segmentButton.text = _("Cancel") if running else _("Segment")
        ui.segmentButton.enabled = running or bool(ready and volume)
        if running:
            hint = _("Stop the segmentation. The scene stays as it is.")
        elif not ready:
            hint = _("Install PyTorch first: it runs the networks.")
        elif not volume:
            hint = _("Load an abdominal CT first: drag files into Slicer, or use the DICOM or Sample Data module.")
        else:
            hint = _("Find the organs in {name}.").format(name=volume.GetName())
        ui.segmentButton.toolTip = hint
        ui.hintLabel.text = hint
        ui.hintLabel.setVisible(not ui.segmentButton.enabled and ready)
        hasOrgans = bool(output and output.GetSegmentation().GetNumberOfSegments())
        ui.show3DButton.enabled = hasOrgans and not running
        ui.show3DButton.checked = segmentation_nodes.is_shown_in_3d(output)
        ui.show3DButton.toolTip = (
            _("Show the organs' surfaces in the 3D view.") if hasOrgans else _("There are no organs to show yet.")
        )

    def _fillOrganTable(self, segmentationNode: vtkMRMLSegmentationNode | None) -> None:
        table = self.ui.organTable
        organs = segmentation_nodes.read_description(segmentationNode).get(segmentation_nodes.ORGAN_TABLE, {})
        table.setRowCount(len(organs))
        for row, (key, facts) in enumerate(organs.items()):
            organ = organ_by_key(key)
            swatch = qt.QPixmap(12, 12)
            swatch.fill(qt.QColor(*organ.color))
            nameItem = qt.QTableWidgetItem(_(organ.name))
            nameItem.setIcon(qt.QIcon(swatch))
            table.setItem(row, 0, nameItem)
            found = bool(facts.get("volume_ml"))
            texts = [f"{facts['volume_ml']:.1f}" if found else _("not found")]
            texts.append(f"{facts['mean_hu']:.0f}" if found else "")
            for column, text in enumerate(texts, start=1):
                item = qt.QTableWidgetItem(text)
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
                table.setItem(row, column, item)
        table.resizeRowsToContents()
        self.ui.resultCollapsibleButton.setVisible(bool(organs))

    def _showOutcome(self, segmentationNode: vtkMRMLSegmentationNode) -> None:
        self._fillOrganTable(segmentationNode)
        description = segmentation_nodes.read_description(segmentationNode)
        warnings = description.get(segmentation_nodes.WARNINGS, [])
        if warnings:
            self._showMessage("\n".join(warnings), "warning")
        else:
            self._showMessage(
                _("Done in {seconds:.1f} s on {device}.").format(
                    seconds=description["Seconds"]["total"], device=description["Device"].upper()
                )
            )

    def _showMessage(self, text: str, kind: str = "information") -> None:
        color = {"information": "#4a90c2", "warning": "#d99a1c", "error": "#c8453b"}[kind]
        self.ui.messageLabel.styleSheet = f"border: none; border-left: 3px solid {color}; padding: 3px 8px;"
        # Paths are long words: a label breaks them only where it may.
        self.ui.messageLabel.text = text.replace("/", "/\u200b").replace("\\", "\\\u200b")
        self.ui.messageLabel.setVisible(bool(text))


class FlareSegmentLogic(ScriptedLoadableModuleLogic, VTKObservationMixin):
    """Segments a CT of the scene, with or without the panel.

    From Python::

        segmentationNode = slicer.util.getModuleLogic("FlareSegment").segment(volumeNode)

    The networks run in a worker process that stays warm; one segmentation runs at a time. Closing the scene,
    removing the CT, or the death of the worker ends it cleanly: the scene is changed only by a finished result.
    """

    def __init__(self, worker: SegmentationWorker | None = None) -> None:
        """worker: what computes; by default a process of its own that starts with the first segmentation."""
        ScriptedLoadableModuleLogic.__init__(self)
        VTKObservationMixin.__init__(self)
        self._worker = worker or WorkerProcess()
        self._run: _Run | None = None
        self._warm = False

    def getParameterNode(self) -> FlareSegmentParameterNode:
        return FlareSegmentParameterNode(super().getParameterNode())

    @property
    def isRunning(self) -> bool:
        """Whether a segmentation is under way."""
        return self._run is not None

    def warmUp(self, onReady: Callable[[Ready], None], onError: Callable[[str], None]) -> None:
        """Start the worker once, so that the first segmentation does not wait for it."""
        if self._warm:
            return
        self._warm = True
        self._worker.warm_up(MODEL_FOLDER, onReady, onError)

    def startSegmentation(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        segmentationNode: vtkMRMLSegmentationNode | None = None,
        device: str = "auto",
        model: Path | None = None,
        onProgress: Callable[[float, str], None] = lambda fraction, stage: None,
        onFinished: Callable[[vtkMRMLSegmentationNode], None] = lambda segmentationNode: None,
        onError: Callable[[str], None] = logging.error,
        onCancelled: Callable[[str], None] = lambda reason: None,
    ) -> None:
        """Segment the organs of a CT and return at once.

        Exactly one of onFinished (with the segmentation node), onError and onCancelled (each with one line for the
        user) is called, later from the event loop or before this returns.

        :param volumeNode: the CT
        :param segmentationNode: receives the organs; those of an earlier run are replaced, other segments stay.
            None creates one.
        :param device: "auto", "cpu", "cuda" or "mps"
        :param model: model folder; None takes the bundled one
        """
        if self._run is not None:
            onError(_("A segmentation is already running."))
            return
        run = _Run(self, volumeNode, segmentationNode, onProgress, onFinished, onError, onCancelled)
        try:
            if volumeNode is None:
                raise InputError(_("Choose a CT first."))
            segmentation_nodes.check_output(volumeNode, segmentationNode)
            volume = segmentation_nodes.volume_from_node(volumeNode)
            self._run = run
            self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onSceneStartClose)
            self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self._onNodeRemoved)
            self._worker.segment(volume, model or MODEL_FOLDER, device, run)
        except FlareSegmentError as error:
            self._finish()
            onError(str(error))
        except OSError as error:
            self._finish()
            onError(_("There is no room for the volume's copy: {reason}").format(reason=error))

    def segment(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        segmentationNode: vtkMRMLSegmentationNode | None = None,
        device: str = "auto",
        model: Path | None = None,
        onProgress: Callable[[float, str], None] = lambda fraction, stage: None,
    ) -> vtkMRMLSegmentationNode:
        """Segment the organs of a CT and return the segmentation node.

        This is `startSegmentation`, waited for in the event loop: the window keeps answering meanwhile. Raises
        Cancelled if the segmentation was given up and FlareSegmentError, with one clear line, if it failed.
        """
        outcome: list[vtkMRMLSegmentationNode | FlareSegmentError] = []
        loop = qt.QEventLoop()

        def end(value: vtkMRMLSegmentationNode | FlareSegmentError) -> None:
            outcome.append(value)
            loop.quit()

        self.startSegmentation(
            volumeNode,
            segmentationNode,
            device,
            model,
            onProgress,
            onFinished=end,
            onError=lambda message: end(FlareSegmentError(message)),
            onCancelled=lambda reason: end(Cancelled(reason)),
        )
        if not outcome:
            loop.exec_()
        if isinstance(outcome[0], FlareSegmentError):
            raise outcome[0]
        return outcome[0]

    def cancel(self, reason: str = "") -> None:
        """Give up the segmentation that runs, if any; the scene stays as it is."""
        run = self._run
        if run is None:
            return
        self._worker.cancel()
        self._finish()
        run.onCancelled(reason or _("Cancelled. Nothing was changed."))

    def close(self) -> None:
        """End the worker process; another segmentation would start it again."""
        self.cancel()
        self._worker.close()
        self._warm = False

    def _finish(self) -> None:
        self._run = None
        self.removeObservers()

    def _onSceneStartClose(self, caller, event) -> None:
        self.cancel(_("The scene was closed; the segmentation was stopped."))

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, caller, event, node) -> None:
        if self._run is not None and node is self._run.volumeNode:
            self.cancel(_("The CT was removed; the segmentation was stopped."))


class _Run:
    """One segmentation: listens to the worker and puts the result into the scene."""

    def __init__(self, logic, volumeNode, segmentationNode, onProgress, onFinished, onError, onCancelled) -> None:
        self.volumeNode = volumeNode
        self.onProgress = onProgress
        self.onCancelled = onCancelled
        self._logic = logic
        self._outputID = segmentationNode.GetID() if segmentationNode else None
        self._onFinished = onFinished
        self._onError = onError

    def onResult(self, labels: np.ndarray, result: Result) -> None:
        self._logic._finish()
        # An output that was removed in the meantime is replaced by a new one.
        output = slicer.mrmlScene.GetNodeByID(self._outputID) if self._outputID else None
        try:
            segmentationNode = segmentation_nodes.create_segmentation(
                self.volumeNode,
                labels,
                output,
                {
                    "Model": result.model,
                    "Device": result.device,
                    "Seconds": result.seconds,
                    segmentation_nodes.ORGAN_TABLE: result.organs,
                    segmentation_nodes.WARNINGS: result.warnings,
                },
            )
        except FlareSegmentError as error:
            self._onError(str(error))
            return
        self._onFinished(segmentationNode)

    def onFailure(self, message: str) -> None:
        self._logic._finish()
        self._onError(message)


def torchInstalled() -> bool:
    """Whether PyTorch is there, without importing it."""
    return importlib.util.find_spec("torch") is not None


def installTorch() -> None:
    """Install PyTorch through the PyTorch extension, which picks the build for this computer.

    Where that extension is absent, pip does it. Asks before it downloads; raises an exception that says why it failed.
    """
    try:
        import PyTorchUtils
    except ModuleNotFoundError:
        _installTorchByPip()
    else:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(
            askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT
        )
    importlib.invalidate_caches()


def _installTorchByPip() -> None:
    requirement = "torch" + TORCH_REQUIREMENT
    try:
        from slicer.packaging import pip_ensure
    except ModuleNotFoundError:  # Slicer before 5.11
        question = _("PyTorch will be downloaded and installed. This takes some minutes.")
        if slicer.util.confirmOkCancelDisplay(question):
            slicer.util.pip_install([requirement])
    else:
        pip_ensure(requirement, requester="FlareSegment")


class FlareSegmentTest(ScriptedLoadableModuleTest):
    """The self test: the bundled model on the built-in torso phantom, without a network."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_SegmentTorsoPhantom()

    def test_SegmentTorsoPhantom(self):
        from FlareSegmentLib.organs import ORGANS
        from FlareSegmentLib.phantom import make_phantom

        self.delayDisplay(_("Making the torso phantom"))
        volume, _labels = make_phantom()
        volumeNode = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name="Phantom")
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
        self.delayDisplay(_("Segmenting"))
        logic = FlareSegmentLogic()
        try:
            segmentationNode = logic.segment(volumeNode, device="cpu")
        finally:
            logic.close()
        names = [organ.name for organ in ORGANS]
        segmentation = segmentationNode.GetSegmentation()
        found = [segmentation.GetNthSegment(index).GetName() for index in range(segmentation.GetNumberOfSegments())]
        assert found == [_(name) for name in names]
        assert segmentation_nodes.find_result(volumeNode) is segmentationNode
        segmentation_nodes.show_3d(segmentationNode, True)
        assert segmentation_nodes.is_shown_in_3d(segmentationNode)
        self.delayDisplay(_("Test passed"))
