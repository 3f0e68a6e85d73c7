"""The FlareSegment module of 3D Slicer: a CT in, abdominal organs as segments out, at one click.

Only what Slicer expects in a module file is here: module, parameter node, panel, logic and self test. The panel's
sections (`FlareSegmentSlicerLib.panel`), and what the logic does (`FlareSegmentSlicerLib.logic`), have files of their
own; numerics are in `FlareSegmentLib` and run in the worker's process.
"""

import functools
import logging
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Union

import qt
import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkSegmentation,
)
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from FlareSegmentLib import HOMEPAGE
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.worker.protocol import Failure, Ready
from FlareSegmentSlicerLib.logic.segmentation_logic import SegmentationLogic
from FlareSegmentSlicerLib.logic.segmentation_run import Callbacks
from FlareSegmentSlicerLib.logic.volume_queue import VolumeQueue
from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess
from FlareSegmentSlicerLib.panel import installation
from FlareSegmentSlicerLib.panel.comparison_section import ComparisonSection
from FlareSegmentSlicerLib.panel.display_section import DisplaySection
from FlareSegmentSlicerLib.panel.export_section import ExportSection
from FlareSegmentSlicerLib.panel.load_section import LoadSection
from FlareSegmentSlicerLib.panel.message_area import MESSAGE_LINES, MessageArea, breakable, keep_place
from FlareSegmentSlicerLib.panel.options_section import OptionsSection, candidate_volumes
from FlareSegmentSlicerLib.panel.organ_table import OrganTable
from FlareSegmentSlicerLib.panel.progress_display import ProgressDisplay
from FlareSegmentSlicerLib.rendering.segment_surfaces import DEFAULT_SMOOTHING
from FlareSegmentSlicerLib.scene import comparison, display, export, segmentation_nodes
from FlareSegmentSlicerLib.scene.file_loading import slicer_loads_files
from FlareSegmentSlicerLib.scene.sample_data import (
    PHANTOM,
    SLICER_SAMPLES,
    can_load,
    load_sample,
    register_sample_data,
)

MODEL_FOLDER = bundled_model_folder()
DEFAULTS_APPLIED = "FlareSegment.DefaultsApplied"
LIBRARIES = ("FlareSegmentLib", "FlareSegmentSlicerLib")
OPTIONAL_NODES = ("outputSegmentation", "roi", "reference")
EDITED_AFTER_MS = 300


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


class FlareSegmentWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel. Its sections are in `FlareSegmentSlicerLib`; here they are put together and kept in step."""

    def __init__(self, parent=None) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: FlareSegmentLogic | None = None
        self._parameterNode: FlareSegmentParameterNode | None = None
        self._parameterNodeGuiTag: int | None = None
        self._inputOfOutput: vtkMRMLScalarVolumeNode | None = None
        self._shownOutput: vtkMRMLSegmentationNode | None = None
        self._shownSegmentation: vtkSegmentation | None = None
        self._queue: VolumeQueue | None = None
        self._added: list[str] = []

    def setup(self) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/FlareSegment.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiWidget.setMRMLScene(slicer.mrmlScene)

        self.logic = FlareSegmentLogic()
        self._torch = installation.Torch()
        self._options = OptionsSection(
            self.ui, lambda: self._parameterNode, lambda: MODEL_FOLDER, self.onBackgroundChosen
        )
        self._progress = ProgressDisplay(self.ui.progressBar)
        self._message = MessageArea(self.ui.messageFrame, self.ui.messageBar, self.ui.messageLabel, MESSAGE_LINES)
        for widget in (self.ui.progressBar, self.ui.undoButton):
            keep_place(widget)
        self._warning = MessageArea(self.ui.warningFrame, self.ui.warningBar, self.ui.warningLabel)
        self._table = OrganTable(self.ui.organNames, self.ui.organTable, self._onJump)
        self._display = DisplaySection(self.ui, self._output)
        self._comparison = ComparisonSection(
            self.ui,
            self._output,
            self.logic.startComparison,
            self.logic.cancelComparison,
            self._showMessage,
            self._onCompared,
        )
        self._export = ExportSection(self.ui, self._output, self._showMessage, self._onExportProgress)
        self._editedTimer = qt.QTimer()
        self._editedTimer.setSingleShot(True)
        self._editedTimer.setInterval(EDITED_AFTER_MS)
        self._editedTimer.connect("timeout()", self._onEditedTimer)
        self._adoptTimer = qt.QTimer()
        self._adoptTimer.setSingleShot(True)
        self._adoptTimer.setInterval(0)
        self._adoptTimer.connect("timeout()", self._onAdoptTimer)
        self._loading = LoadSection(self.ui, self._showMessage, self._onVolumeLoaded, self._onReferenceLoaded)
        self._fillSampleMenu()
        self._fillOrganTable()
        self._showMessage("")

        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartImportEvent, self.onSceneStartImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAddedEvent, self.onNodeAdded)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self.onNodeAboutToBeRemoved)

        self.ui.segmentButton.connect("clicked(bool)", self.onSegmentButton)
        self.ui.show3DButton.connect("clicked(bool)", self.onShow3DButton)
        self.ui.undoButton.connect("clicked(bool)", self.onUndoButton)
        self.ui.copyTableButton.connect("clicked(bool)", self.onCopyTableButton)
        self.ui.saveTableButton.connect("clicked(bool)", self.onSaveTableButton)
        self.ui.installTorchButton.connect("clicked(bool)", self.onInstallTorchButton)
        self.ui.offlineButton.connect("clicked(bool)", self.onOfflineButton)

        self.initializeParameterNode()
        if getattr(self.parent, "isEntered", False):  # the panel was reloaded while it was open
            self._warmUp()

    def cleanup(self) -> None:
        """Called when the application closes or the module is reloaded, and the module widget is destroyed."""
        self.setParameterNode(None)
        self.removeObservers()
        self._editedTimer.stop()
        self._adoptTimer.stop()
        self.logic.close()

    def onReload(self) -> None:
        """Read the module's libraries anew, too: what is imported already would be taken again."""
        for name in [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

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
        if self.parent.isEntered:
            self.initializeParameterNode()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAdded(self, caller, event, node) -> None:
        """A first CT that is loaded while the panel is open is chosen, as it would have been on opening, and a result
        that was made without the panel is shown.
        """
        if not self._parameterNode or slicer.mrmlScene.IsImporting():
            return
        if node.IsA("vtkMRMLScalarVolumeNode"):
            self._chooseFirstVolume()
        elif node.IsA("vtkMRMLSegmentationNode"):
            self._added.append(node.GetID())
            self._adoptTimer.start()  # what it holds is known only after it has been added

    def _onAdoptTimer(self) -> None:
        """Show a result that Python code has just made of the chosen CT."""
        added, self._added = [slicer.mrmlScene.GetNodeByID(one) for one in self._added], []
        parameters = self._parameterNode
        volume = parameters.inputVolume if parameters else None
        if volume is None or self.logic.isRunning:
            return
        results = [node for node in added if node is not None and segmentation_nodes.is_result_of(node, volume)]
        output = parameters.outputSegmentation
        if results and (output is None or segmentation_nodes.is_result_of(output, volume)):
            parameters.outputSegmentation = results[-1]

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def onNodeAboutToBeRemoved(self, caller, event, node) -> None:
        """What was chosen and is removed is none from now on: a selector would move on to its neighbor, and the next
        run would write into somebody's own segmentation.
        """
        for name in OPTIONAL_NODES if self._parameterNode else ():
            if self._parameterNode.getValue(name) is node:
                self._parameterNode.setValue(name, None)

    def initializeParameterNode(self) -> None:
        """Ensure parameter node exists and observed."""
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
        self._updateOffers()
        self._options.update()
        self._observeOutput(parameters.outputSegmentation)
        self._updateState()

    def _updateOffers(self) -> None:
        """Offer no segmentation that is made of differences, and no result as its own reference."""
        parameters, differences = self._parameterNode, comparison.difference_nodes()
        for selector, name, unfit in (
            (self.ui.outputSelector, "outputSegmentation", differences),
            (self.ui.referenceSelector, "reference", [*differences, parameters.outputSegmentation]),
        ):
            unfit = [node for node in unfit if node is not None]
            if parameters.getValue(name) in unfit:
                parameters.setValue(name, None)
                selector.setCurrentNode(None)  # a node that is no longer offered would give way to its neighbor
            selector.sortFilterProxyModel().hiddenNodeIDs = [node.GetID() for node in unfit]

    def onSegmentButton(self) -> None:
        """Start, or give up what runs."""
        if self.logic.isRunning:
            self.logic.cancel()
            return
        parameters, options = self._parameterNode, self._options
        if parameters.outputSegmentation and not self._mayReplace(parameters.outputSegmentation):
            return
        smoothing = display.smoothing(self._output()) if self._output() else DEFAULT_SMOOTHING
        request = options.request(smoothing if options.show3D else None)
        callbacks = Callbacks(self._progress.show, self.onFinished, self.onError, self.onCancelled)
        self._showMessage("")
        self._progress.start()
        more = options.moreVolumes()
        self._queue = None
        if more:
            self._queue = self.logic.volumesQueue([parameters.inputVolume, *more], request, callbacks, parameters.roi)
        elif options.wholeSequence:
            self._queue = self.logic.sequenceQueue(parameters.inputVolume, request, callbacks, parameters.roi)
        if self._queue:
            self._queue.start()
        else:
            self.logic.start(parameters.inputVolume, parameters.outputSegmentation, request, callbacks, parameters.roi)
            self._progress.expect(str(request.model), request.device, self.logic.megavoxels)
        self._updateState()

    def onShow3DButton(self, checked: bool) -> None:
        """Show or hide the organs' surfaces."""
        with slicer.util.tryWithErrorDisplay(_("The 3D surfaces could not be made."), waitCursor=True):
            segmentation_nodes.show_3d(self._parameterNode.outputSegmentation, checked)
        self._updateState()

    def onUndoButton(self) -> None:
        """Bring back what the last run replaced."""
        output = self._output()
        if output is not None and self._mayReplace(output):
            self.logic.undo(output)
            self._fillOrganTable()
            self._showMessage(_("The organs from before the run are back. Undo again for the new ones."))
            self._updateState()

    def onCopyTableButton(self) -> None:
        """Copy the table."""
        self._table.copy()
        self._showMessage(_("The table is in the clipboard."))

    def onSaveTableButton(self) -> None:
        """Save the table as CSV."""
        proposal = Path.home() / export.default_name(self._output(), ".csv")
        path = qt.QFileDialog.getSaveFileName(self.ui.organTable.window(), _("Save the table"), str(proposal), "*.csv")
        if not path:
            return
        try:
            export.write_text(Path(path), self._table.csv())
        except OSError as error:
            self._showMessage(_("{path} cannot be written: {reason}").format(path=path, reason=error.strerror), "error")
        else:
            self._showMessage(_("Wrote {files}").format(files=path))

    def onInstallTorchButton(self) -> None:
        """Install PyTorch; the extension or pip asks before anything is downloaded."""
        self._showMessage(_("Installing PyTorch. This takes some minutes."))
        self.ui.installTorchButton.enabled = False
        slicer.app.processEvents()
        try:
            with slicer.util.WaitCursor():
                self.logic.close()
                self._torch.install()
        except Exception as error:  # whatever pip or the extension stumbles over: the user must know it
            logging.exception("PyTorch could not be installed")
            self._showMessage(_("PyTorch could not be installed: {reason}").format(reason=error), "error")
        else:
            self._showMessage("" if self._torch.usable else _("PyTorch was not installed."))
        self.ui.installTorchButton.enabled = True
        self._updateState()
        self._warmUp()

    def onOfflineButton(self) -> None:
        """Say how to install without network."""
        self._showMessage(installation.offline_instructions())

    def onSample(self, name: str) -> None:
        """Load a CT to try with."""
        self._showMessage("")
        reason = _("the download failed")
        node = None
        try:
            with slicer.util.WaitCursor():
                node = load_sample(name)
        except Exception as error:  # whatever the download stumbles over: the user must know it
            logging.info("The sample %s could not be loaded", name, exc_info=True)
            reason = str(error).rstrip(".")
        if node is None:
            text = _("{name} could not be loaded: {reason}. The torso phantom needs no network.")
            self._showMessage(text.format(name=name, reason=reason), "error")

    def onBackgroundChosen(self, background: bool) -> None:
        """Let other programs go before the worker, or not."""
        self.logic.setBackground(background)
        if self._parameterNode:
            self._warmUp()

    def onWorkerReady(self, ready: Ready) -> None:
        """Offer the devices that the worker found."""
        self._options.offerDevices(ready.devices)
        self._options.showPriority(ready.niceness)

    def onWarmUpFailed(self, failure: Failure) -> None:
        """Say what is wrong; PyTorch that is there and cannot be loaded is as good as none."""
        if failure.kind != "torch":
            self.onError(failure.message)
            return
        logging.info("PyTorch cannot be loaded: %s\n%s", failure.message, failure.details)
        self._torch.problem = failure.message
        self._updateState()

    def _warmUp(self) -> None:
        if self._torch.usable:
            self.logic.warmUp(self.onWorkerReady, self.onWarmUpFailed)

    def onFinished(self, segmentationNode: vtkMRMLSegmentationNode) -> None:
        """Show the organs."""
        self._progress.finish(learn=True)
        parameters = self._parameterNode or self.logic.getParameterNode()
        isNew = parameters.outputSegmentation is not segmentationNode
        if parameters.inputVolume is segmentation_nodes.reference_volume(segmentationNode):
            parameters.outputSegmentation = segmentationNode
        elif self._queue is not None and parameters.inputVolume:
            parameters.outputSegmentation = segmentation_nodes.find_result(parameters.inputVolume)
        self._fillOrganTable()
        self._showOutcome(segmentationNode)
        self._updateState()
        if self._options.show3D:
            with slicer.util.tryWithErrorDisplay(_("The 3D surfaces could not be made."), waitCursor=True):
                segmentation_nodes.show_3d(segmentationNode, True)
                if isNew:
                    display.show_all_of(segmentationNode)
            self._updateState()

    def onError(self, message: str) -> None:
        """Say calmly what went wrong."""
        self._progress.finish()
        self._showMessage(message, "error")
        self._updateState()

    def onCancelled(self, reason: str) -> None:
        """Say why nothing was made."""
        self._progress.finish()
        self._showMessage(reason)
        self._updateState()

    def _output(self) -> vtkMRMLSegmentationNode | None:
        return self._parameterNode.outputSegmentation if self._parameterNode else None

    def _chooseFirstVolume(self) -> None:
        if not self._parameterNode.inputVolume:
            self._parameterNode.inputVolume = next(iter(candidate_volumes()), None)

    def _fillSampleMenu(self) -> None:
        menu = qt.QMenu(self.ui.sampleButton)
        for name in (PHANTOM, *SLICER_SAMPLES):
            text = _("Torso phantom (no download)") if name == PHANTOM else name
            action = menu.addAction(text)
            action.setData(name)
            action.connect("triggered(bool)", functools.partial(self._onSampleAction, name))
        menu.connect("aboutToShow()", self._onSampleMenu)
        self.ui.sampleButton.setMenu(menu)

    def _onSampleMenu(self) -> None:
        """Offer what this Slicer can load."""
        for action in self.ui.sampleButton.menu().actions():
            if not can_load(action.data()):
                action.setEnabled(False)
                action.text = _("{name} (this Slicer downloads nothing)").format(name=action.data())

    def _onSampleAction(self, name: str, checked: bool = False) -> None:
        self.onSample(name)

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
        edited = slicer.vtkSegmentation.SourceRepresentationModified
        displayed = slicer.vtkMRMLDisplayableNode.DisplayModifiedEvent
        if self._shownOutput:
            self.removeObserver(self._shownOutput, vtk.vtkCommand.ModifiedEvent, self._updateState)
            self.removeObserver(self._shownOutput, displayed, self._updateState)
            self.removeObserver(self._shownSegmentation, edited, self._onEdited)
        self._shownOutput = segmentationNode
        if segmentationNode:
            self._shownSegmentation = segmentationNode.GetSegmentation()
            self.addObserver(segmentationNode, vtk.vtkCommand.ModifiedEvent, self._updateState)
            self.addObserver(segmentationNode, displayed, self._updateState)
            self.addObserver(self._shownSegmentation, edited, self._onEdited)
            self._editedTimer.start()
        self._fillOrganTable()

    def _onEdited(self, caller, event) -> None:
        """Somebody draws in the result, stroke by stroke: its numbers are no longer those of its organs."""
        self._editedTimer.start()

    def _onEditedTimer(self) -> None:
        if self._shownOutput and not self.logic.isRunning:
            self._fillOrganTable(segmentation_nodes.edited_organ_keys(self._shownOutput))

    def _updateState(self, caller=None, event=None) -> None:
        """Enable, label and explain the buttons."""
        ui, parameters = self.ui, self._parameterNode
        running = self.logic.isRunning
        ready = self._torch.usable
        volume = parameters.inputVolume if parameters else None
        output = self._output()
        ui.torchFrame.setVisible(not ready)
        if self._torch.problem:
            text = _("PyTorch is installed but cannot be loaded: {reason}. Install it anew.")
            ui.torchLabel.text = breakable(text.format(reason=self._torch.problem.rstrip(".")))
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
            if not slicer_loads_files():
                hint = _("Load an abdominal CT first, or take a sample.")
        else:
            hint = _("Find the organs in {name}.").format(name=volume.GetName())
        ui.segmentButton.toolTip = hint
        ui.hintLabel.text = hint
        ui.hintLabel.setVisible(not ui.segmentButton.enabled and ready)
        ui.sampleButton.setVisible(not volume and not running)
        hasOrgans = bool(output and output.GetSegmentation().GetNumberOfSegments())
        ui.show3DButton.enabled = hasOrgans and not running
        ui.show3DButton.checked = segmentation_nodes.is_shown_in_3d(output)
        ui.show3DButton.toolTip = (
            _("Show the organs' surfaces in the 3D view.") if hasOrgans else _("There are no organs to show yet.")
        )
        ui.undoButton.setVisible(self.logic.canUndo(output))
        ui.undoButton.enabled = not running
        for section in (ui.displayCollapsibleButton, ui.compareCollapsibleButton, ui.exportCollapsibleButton):
            section.setVisible(hasOrgans and not self._table.isEmpty)
            section.enabled = not running
        self._display.update()
        self._comparison.update(running)

    def _fillOrganTable(self, edited: Collection[str] = ()) -> None:
        self._table.show(self._shownOutput, edited)
        description = segmentation_nodes.read_description(self._shownOutput)
        self._warning.show("\n".join(description.get(segmentation_nodes.WARNINGS, [])), "warning")
        self.ui.resultCollapsibleButton.setVisible(not self._table.isEmpty)

    def _onVolumeLoaded(self, node: vtkMRMLScalarVolumeNode) -> None:
        if self._parameterNode:
            self._parameterNode.inputVolume = node

    def _onReferenceLoaded(self, node: vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode) -> None:
        if self._parameterNode:
            self._parameterNode.reference = node

    def _onCompared(self) -> None:
        if self._parameterNode:
            self._updateOffers()
        self._fillOrganTable(segmentation_nodes.edited_organ_keys(self._shownOutput) if self._shownOutput else ())

    def _onJump(self, organ: str) -> None:
        segmentID = segmentation_nodes.organ_segments(self._shownOutput).get(organ)
        if segmentID:
            display.jump_to_organ(self._shownOutput, segmentID)

    def _onExportProgress(self, fraction: float, stage: str) -> None:
        if stage and not self.ui.progressBar.visible:
            self._progress.start()
        self.ui.progressBar.setVisible(bool(stage))
        self._progress.show(fraction, stage)

    def _showOutcome(self, segmentationNode: vtkMRMLSegmentationNode) -> None:
        failures = self._queue.failures if self._queue is not None else []
        if failures:
            self._showMessage("\n".join(failures), "error")
            return
        description = segmentation_nodes.read_description(segmentationNode)
        self._showMessage(
            _("Done in {seconds:.1f} s on {device}.").format(
                seconds=description["Seconds"]["total"], device=description["Device"].upper()
            )
        )

    def _showMessage(self, text: str, kind: str = "information") -> None:
        self._message.show(text, kind)


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
