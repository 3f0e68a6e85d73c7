"""What happens in FlareSegment's panel: its sections are put together and kept in step, a click becomes a segmentation.

`FlareSegmentWidget` adds what Slicer calls: opening, leaving and reloading the panel, scenes that close and load.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import qt
import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
    vtkSegmentation,
)
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleWidget
from slicer.util import VTKObservationMixin

from FlareSegmentLib.worker.protocol import Failure, Ready
from FlareSegmentSlicerLib.logic.segmentation_logic import SegmentationLogic
from FlareSegmentSlicerLib.logic.segmentation_run import Callbacks
from FlareSegmentSlicerLib.logic.volume_queue import VolumeQueue
from FlareSegmentSlicerLib.panel import installation
from FlareSegmentSlicerLib.panel.cohort_section import CohortSection
from FlareSegmentSlicerLib.panel.comparison_section import ComparisonSection
from FlareSegmentSlicerLib.panel.display_section import DisplaySection
from FlareSegmentSlicerLib.panel.example_section import ExampleSection
from FlareSegmentSlicerLib.panel.export_section import ExportSection
from FlareSegmentSlicerLib.panel.load_section import LoadSection
from FlareSegmentSlicerLib.panel.message_area import (
    MESSAGE_LINES,
    MessageArea,
    WrappedLabel,
    breakable,
    keep_place,
)
from FlareSegmentSlicerLib.panel.options_section import OptionsSection, candidate_volumes
from FlareSegmentSlicerLib.panel.organ_table import OrganTable
from FlareSegmentSlicerLib.panel.progress_display import ProgressDisplay
from FlareSegmentSlicerLib.panel.review_section import ReviewSection
from FlareSegmentSlicerLib.panel.sample_menu import SampleMenu
from FlareSegmentSlicerLib.rendering.segment_surfaces import DEFAULT_SMOOTHING
from FlareSegmentSlicerLib.scene import comparison, confidence, display, export, segmentation_nodes
from FlareSegmentSlicerLib.scene.file_loading import slicer_loads_files

OPTIONAL_NODES = ("outputSegmentation", "roi", "reference")
EDITED_AFTER_MS = 300


class SegmentationPanel(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel without what Slicer calls of it."""

    def __init__(self, parent=None) -> None:
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.logic: SegmentationLogic | None = None
        self._parameterNode: Any = None
        self._parameterNodeGuiTag: int | None = None
        self._inputOfOutput: vtkMRMLScalarVolumeNode | None = None
        self._shownOutput: vtkMRMLSegmentationNode | None = None
        self._shownSegmentation: vtkSegmentation | None = None
        self._queue: VolumeQueue | None = None
        self._added: list[str] = []

    def addSections(self, bundledModel: Callable[[], Path]) -> None:
        """Give the widgets of `ui` their meaning; the logic is there.

        :param bundledModel: gives the folder of the model that needs no choice
        """
        self._torch = installation.Torch()
        self._options = OptionsSection(self.ui, lambda: self._parameterNode, bundledModel, self.onBackgroundChosen)
        self._progress = ProgressDisplay(self.ui.progressBar)
        self._message = MessageArea(self.ui.messageFrame, self.ui.messageBar, self.ui.messageLabel, MESSAGE_LINES)
        for widget in (self.ui.progressBar, self.ui.undoButton):
            keep_place(widget)
        self._hint, self._torchText = WrappedLabel(self.ui.hintLabel), WrappedLabel(self.ui.torchLabel)
        self._warning = MessageArea(self.ui.warningFrame, self.ui.warningBar, self.ui.warningLabel)
        self._table = OrganTable(self.ui.organNames, self.ui.organTable, self._onJump)
        self._review = ReviewSection(self.ui, self._output, self.logic.confidence)
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
        self._example = ExampleSection(self.ui, self._output)
        self._editedTimer = qt.QTimer()
        self._editedTimer.setSingleShot(True)
        self._editedTimer.setInterval(EDITED_AFTER_MS)
        self._editedTimer.connect("timeout()", self._onEditedTimer)
        self._adoptTimer = qt.QTimer()
        self._adoptTimer.setSingleShot(True)
        self._adoptTimer.setInterval(0)
        self._adoptTimer.connect("timeout()", self._onAdoptTimer)
        self._loading = LoadSection(self.ui, self._showMessage, self._onVolumeLoaded, self._onReferenceLoaded)
        self._cohort = CohortSection(self.ui)
        self._samples = SampleMenu(self.ui.sampleButton, self._showMessage)
        self._fillOrganTable()
        self._showMessage("")
        self.ui.segmentButton.connect("clicked(bool)", self.onSegmentButton)
        self.ui.show3DButton.connect("clicked(bool)", self.onShow3DButton)
        self.ui.undoButton.connect("clicked(bool)", self.onUndoButton)
        self.ui.copyTableButton.connect("clicked(bool)", self.onCopyTableButton)
        self.ui.saveTableButton.connect("clicked(bool)", self.onSaveTableButton)
        self.ui.installTorchButton.connect("clicked(bool)", self.onInstallTorchButton)
        self.ui.offlineButton.connect("clicked(bool)", self.onOfflineButton)

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
        if parameters.outputSegmentation is not self._shownOutput:
            confidence.hide_others(parameters.outputSegmentation)
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
            self._fillOrganTable(segmentation_nodes.edited_organ_keys(output))
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
        if not failure.without_torch:
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
            self._torchText.setText(breakable(text.format(reason=self._torch.problem.rstrip("."))))
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
        self._hint.setText(hint)
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
        self._review.update(running)
        ui.exampleCollapsibleButton.setVisible(hasOrgans and not self._table.isEmpty and self._example.available)
        ui.exampleCollapsibleButton.enabled = not running
        self._display.update()
        self._comparison.update(running)

    def _fillOrganTable(self, edited: Collection[str] = ()) -> None:
        self._table.show(self._shownOutput, edited)
        self._example.update(edited)
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
