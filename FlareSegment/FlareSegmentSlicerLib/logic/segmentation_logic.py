"""What the module can do, with or without the panel: segment, compare, undo. The one place that Python code calls."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import qt
import slicer
import vtk
from slicer import (
    vtkMRMLLabelMapVolumeNode,
    vtkMRMLMarkupsROINode,
    vtkMRMLScalarVolumeNode,
    vtkMRMLSegmentationNode,
)
from slicer.i18n import tr as _
from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic
from slicer.util import VTKObservationMixin

from FlareSegmentLib.errors import Cancelled, FlareSegmentError, InputError
from FlareSegmentLib.measures.organ_statistics import keep_only
from FlareSegmentLib.organs import FLARE22_ORGANS
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.worker.protocol import Compared, Failure, Ready
from FlareSegmentSlicerLib.logic.segmentation_run import Callbacks, SegmentationRun
from FlareSegmentSlicerLib.logic.volume_queue import QueueItem, VolumeQueue
from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess
from FlareSegmentSlicerLib.scene import comparison, confidence, segmentation_nodes
from FlareSegmentSlicerLib.scene.organ_labels import KeptConfidence
from FlareSegmentSlicerLib.scene.volume_sequences import frame_sequence


class SegmentationLogic(ScriptedLoadableModuleLogic, VTKObservationMixin):
    """Segments a CT of the scene, with or without the panel.

    From Python::

        segmentationNode = slicer.util.getModuleLogic("FlareSegment").segment(volumeNode)

    The networks run in a worker process that stays warm; one segmentation runs at a time. Closing the scene,
    removing the CT, or the death of the worker ends it cleanly: the scene is changed only by a finished result.
    """

    def __init__(self, bundledModel: Callable[[], Path], worker: WorkerProcess | None = None) -> None:
        """
        :param bundledModel: gives the folder of the model that is taken when none is named
        :param worker: what computes; by default a process of its own that starts with the first segmentation
        """
        ScriptedLoadableModuleLogic.__init__(self)
        VTKObservationMixin.__init__(self)
        self._bundledModel = bundledModel
        self._worker = worker or WorkerProcess()
        self._run: SegmentationRun | None = None
        self._warm = False
        self._undo: dict[str, tuple[segmentation_nodes.Snapshot, KeptConfidence | None]] = {}
        self._onComparisonCancelled: Callable[[str], None] | None = None
        self._confidence: dict[str, KeptConfidence] = {}

    @property
    def isRunning(self) -> bool:
        """Whether a segmentation is under way."""
        return self._run is not None

    @property
    def megavoxels(self) -> float:
        """Size of what is segmented now, in millions of voxels; 0 if nothing is."""
        return self._run.megavoxels if self._run else 0.0

    def setBackground(self, background: bool) -> None:
        """Let other programs go before the worker, or not (as at first): for what is started from now on."""
        self._worker.set_background(background)
        self._warm = False

    def warmUp(self, onReady: Callable[[Ready], None], onError: Callable[[Failure], None]) -> None:
        """Start the worker once, so that the first segmentation does not wait for it."""
        if self._warm:
            return
        self._warm = True
        self._worker.warm_up(SegmentationRequest(self._bundledModel()), onReady, onError)

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
        organs: Sequence[str] | None = None,
        roiNode: vtkMRMLMarkupsROINode | None = None,
        smoothing: float | None = None,
        review: bool = False,
    ) -> None:
        """Segment the organs of a CT and return at once.

        Exactly one of onFinished (with the segmentation node), onError and onCancelled (each with one line for the
        user) is called, later from the event loop or before this returns.

        :param volumeNode: the CT
        :param segmentationNode: receives the organs; those of an earlier run are replaced (`undo` brings them back),
            other segments stay. None creates one.
        :param device: "auto", "cpu", "cuda", "cuda:1" ... or "mps"
        :param model: model folder; None takes the bundled one
        :param organs: keys of the organs to keep, such as ["liver", "spleen"]; None keeps all that the model knows
        :param roiNode: organs are kept inside this region only
        :param smoothing: also make the 3D surfaces, with Slicer's smoothing factor (0 to 1)
        :param review: also find the places to look at first (`scene.review.places`)
        """
        request = self._request(device, model, organs, smoothing, review)
        callbacks = Callbacks(onProgress, onFinished, onError, onCancelled)
        self.start(volumeNode, segmentationNode, request, callbacks, roiNode)

    def segment(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        segmentationNode: vtkMRMLSegmentationNode | None = None,
        device: str = "auto",
        model: Path | None = None,
        onProgress: Callable[[float, str], None] = lambda fraction, stage: None,
        organs: Sequence[str] | None = None,
        roiNode: vtkMRMLMarkupsROINode | None = None,
        smoothing: float | None = None,
        review: bool = False,
    ) -> vtkMRMLSegmentationNode:
        """Segment the organs of a CT and return the segmentation node.

        This is `startSegmentation`, waited for in the event loop: the window keeps answering meanwhile. Raises
        Cancelled if the segmentation was given up and FlareSegmentError, with one clear line, if it failed.
        """
        request = self._request(device, model, organs, smoothing, review)
        return _waitedFor(
            lambda callbacks: self.start(volumeNode, segmentationNode, request, callbacks, roiNode), onProgress
        )

    def start(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        segmentationNode: vtkMRMLSegmentationNode | None,
        request: SegmentationRequest,
        callbacks: Callbacks,
        roiNode: vtkMRMLMarkupsROINode | None = None,
        frameNode: vtkMRMLScalarVolumeNode | None = None,
    ) -> None:
        """Segment a CT, or a frame of its sequence that is not in the scene, and return at once.

        The organs are kept inside the region only, if there is one. The callbacks are as in `startSegmentation`.
        """
        if self._run is not None:
            callbacks.onError(_("A segmentation is already running."))
            return
        run = SegmentationRun(
            volumeNode,
            segmentationNode,
            request,
            callbacks,
            self._finish,
            self._keepForUndo if frameNode is None else lambda snapshot: None,
            self._keepConfidence,
            roiNode,
            frameNode,
        )
        try:
            volume, request = run.prepare()
        except FlareSegmentError as error:
            callbacks.onError(str(error))
            return
        self._run = run
        self._observeScene()
        self._worker.segment(volume, request, run)

    def volumesQueue(
        self,
        volumeNodes: Sequence[vtkMRMLScalarVolumeNode],
        request: SegmentationRequest,
        callbacks: Callbacks,
        roiNode: vtkMRMLMarkupsROINode | None = None,
    ) -> VolumeQueue:
        """Several CTs, to be segmented one after another.

        A result that an earlier run left in the scene is replaced, unless it was edited: then a new one is made.
        """
        return VolumeQueue(
            [
                QueueItem(node.GetName(), functools.partial(self._startUnattended, node, request, roiNode))
                for node in volumeNodes
            ],
            callbacks,
        )

    def segmentVolumes(
        self,
        volumeNodes: Sequence[vtkMRMLScalarVolumeNode],
        device: str = "auto",
        model: Path | None = None,
        onProgress: Callable[[float, str], None] = lambda fraction, stage: None,
        organs: Sequence[str] | None = None,
    ) -> list[vtkMRMLSegmentationNode | None]:
        """Segment several CTs one after another; returns their segmentation nodes, None for a CT that failed.

        Raises Cancelled if it was given up, and FlareSegmentError if all failed.
        """
        request = self._request(device, model, organs)
        _waitedFor(lambda callbacks: self.volumesQueue(volumeNodes, request, callbacks).start(), onProgress)
        return [segmentation_nodes.find_result(node) for node in volumeNodes]

    def segmentSequence(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        device: str = "auto",
        model: Path | None = None,
        onProgress: Callable[[float, str], None] = lambda fraction, stage: None,
        organs: Sequence[str] | None = None,
    ) -> vtkMRMLSegmentationNode:
        """Segment all frames of the sequence that a CT is shown from.

        The result is one segmentation node that plays along with the CT. Raises as `segment` does.
        """
        request = self._request(device, model, organs)
        return _waitedFor(lambda callbacks: self.sequenceQueue(volumeNode, request, callbacks).start(), onProgress)

    def sequenceQueue(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        request: SegmentationRequest,
        callbacks: Callbacks,
        roiNode: vtkMRMLMarkupsROINode | None = None,
    ) -> VolumeQueue:
        """The frames of a CT's sequence, to be segmented one after another. Raises InputError if it has none."""
        frames = frame_sequence(volumeNode)
        if frames is None:
            raise InputError(_("{name} is not a sequence.").format(name=volumeNode.GetName()))
        outputs: list[vtkMRMLSegmentationNode] = []

        def start(index: int, frameCallbacks: Callbacks) -> None:
            def onFinished(segmentationNode: vtkMRMLSegmentationNode) -> None:
                outputs[:] = [segmentationNode]
                frames.keep(index, segmentationNode)
                if index == len(frames) - 1:
                    frames.show_with(segmentationNode)
                frameCallbacks.onFinished(segmentationNode)

            self.start(
                volumeNode,
                outputs[0] if outputs else None,
                request,
                replace(frameCallbacks, onFinished=onFinished),
                roiNode,
                frames.frame(index),
            )

        return VolumeQueue(
            [QueueItem(frames.name(index), functools.partial(start, index)) for index in range(len(frames))], callbacks
        )

    def canUndo(self, segmentationNode: vtkMRMLSegmentationNode | None) -> bool:
        """Whether `undo` could bring back what a run replaced in this segmentation."""
        before = self._undo.get(segmentationNode.GetID()) if segmentationNode else None
        return before is not None and before[0].node is segmentationNode

    def confidence(self, segmentationNode: vtkMRMLSegmentationNode) -> KeptConfidence | None:
        """The confidence of a result that was made with it, as long as this program runs."""
        return self._confidence.get(segmentationNode.GetID())

    def undo(self, segmentationNode: vtkMRMLSegmentationNode) -> None:
        """Bring back the organs that the last run replaced; once more, and the new ones are there again."""
        snapshot, kept = self._undo[segmentationNode.GetID()]
        self._undo[segmentationNode.GetID()] = snapshot.restore(), self.confidence(segmentationNode)
        self._keepConfidence(segmentationNode, kept)

    def startComparison(
        self,
        segmentationNode: vtkMRMLSegmentationNode,
        referenceNode: vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode,
        onFinished: Callable[[dict], None] = lambda scores: None,
        onError: Callable[[str], None] = logging.error,
        onCancelled: Callable[[str], None] = logging.info,
    ) -> None:
        """Compare a result with a reference and return at once.

        onFinished is given {organ key: {"dice", "nsd", "hd95_mm"}} of the organs that the reference has; the same is
        kept with the segmentation, and a second segmentation node shows the difference. onCancelled is told that the
        comparison was given up, by `cancelComparison` or with a segmentation that was cancelled.
        """
        volumeNode = segmentation_nodes.reference_volume(segmentationNode)
        try:
            if volumeNode is None:
                raise InputError(_("The CT of {name} is gone.").format(name=segmentationNode.GetName()))
            labels = comparison.label_map(segmentationNode, volumeNode)
            reference = comparison.label_map(referenceNode, volumeNode, labels)
        except FlareSegmentError as error:
            onError(str(error))
            return
        organs = [organ for organ in FLARE22_ORGANS if (reference == organ.label).any()]
        # Organs that the reference does not have were not drawn, rather than not there.
        labels = keep_only(labels, organs)
        result, volume = segmentationNode.GetID(), volumeNode.GetID()
        name = referenceNode.GetName()

        def onFailed(message: str) -> None:
            self._onComparisonCancelled = None
            onError(message)

        def onCompared(difference: np.ndarray, compared: Compared) -> None:
            self._onComparisonCancelled = None
            node, ct = slicer.mrmlScene.GetNodeByID(result), slicer.mrmlScene.GetNodeByID(volume)
            if node is None or ct is None:
                onError(_("The comparison was stopped: its segmentation is gone."))
                return
            comparison.show_difference(node, ct, difference, compared.difference.box)
            facts = {"reference": name, "organs": compared.organs}
            segmentation_nodes.set_fact(node, segmentation_nodes.COMPARISON, facts)
            onFinished(compared.organs)

        self._onComparisonCancelled = onCancelled
        keys = tuple(organ.key for organ in organs)
        self._worker.compare(labels, reference, tuple(volumeNode.GetSpacing()), keys, onCompared, onFailed)

    def cancelComparison(self) -> None:
        """Give up the comparison under way, if any; the scene stays as it is."""
        if self._onComparisonCancelled is not None:
            self._cancelWork()

    def _cancelWork(self) -> None:
        self._worker.cancel()
        onCancelled, self._onComparisonCancelled = self._onComparisonCancelled, None
        if onCancelled is not None:
            onCancelled(_("The comparison was cancelled. Nothing was changed."))

    def cancel(self, reason: str = "") -> None:
        """Give up the segmentation that runs, if any; the scene stays as it is."""
        run = self._run
        if run is None:
            return
        self._cancelWork()
        self._finish()
        run.callbacks.onCancelled(reason or _("Cancelled. Nothing was changed."))

    def close(self) -> None:
        """End the worker process; another segmentation would start it again."""
        self.cancel()
        self._onComparisonCancelled = None
        self._undo.clear()
        self._confidence.clear()
        self._finish()
        self._worker.close()
        self._warm = False

    def _startUnattended(
        self,
        volumeNode: vtkMRMLScalarVolumeNode,
        request: SegmentationRequest,
        roiNode: vtkMRMLMarkupsROINode | None,
        callbacks: Callbacks,
    ) -> None:
        existing = segmentation_nodes.find_result(volumeNode)
        if existing is not None and segmentation_nodes.edited_organs(existing):
            existing = None
        self.start(volumeNode, existing, request, callbacks, roiNode)

    def _request(
        self,
        device: str,
        model: Path | None,
        organs: Sequence[str] | None,
        smoothing: float | None = None,
        review: bool = False,
    ) -> SegmentationRequest:
        keys = None if organs is None else tuple(organs)
        return SegmentationRequest(
            model or self._bundledModel(), device, organs=keys, smoothing=smoothing, review=review
        )

    def _keepForUndo(self, snapshot: segmentation_nodes.Snapshot) -> None:
        self._undo[snapshot.node.GetID()] = snapshot, self.confidence(snapshot.node)
        self._observeScene()

    def _keepConfidence(self, segmentationNode: vtkMRMLSegmentationNode, kept: KeptConfidence | None) -> None:
        confidence.hide(segmentationNode)
        self._confidence.pop(segmentationNode.GetID(), None)
        if kept is not None:
            self._confidence[segmentationNode.GetID()] = kept
            self._observeScene()

    def _observeScene(self) -> None:
        """Follow what happens to the CT that is segmented and to the nodes of which organs are kept."""
        self.removeObservers()
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeAboutToBeRemovedEvent, self._onNodeRemoved)

    def _finish(self) -> None:
        self._run = None
        if not self._undo and not self._confidence:
            self.removeObservers()

    def _onSceneStartClose(self, caller, event) -> None:
        self._undo.clear()
        self._confidence.clear()
        self.cancel(_("The scene was closed; the segmentation was stopped."))
        self._finish()

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _onNodeRemoved(self, caller, event, node) -> None:
        if self._run is not None and node is self._run.volumeNode:
            self.cancel(_("The CT was removed; the segmentation was stopped."))
        self._undo.pop(node.GetID(), None)
        self._confidence.pop(node.GetID(), None)
        confidence.hide_of(node)


def _waitedFor(start: Callable[[Callbacks], Any], onProgress: Callable[[float, str], None]) -> vtkMRMLSegmentationNode:
    """Start something and let the event loop go on until it ends. Raises what it ended with."""
    outcome: list[vtkMRMLSegmentationNode | FlareSegmentError] = []
    loop = qt.QEventLoop()

    def end(value: vtkMRMLSegmentationNode | FlareSegmentError) -> None:
        outcome.append(value)
        loop.quit()

    start(
        Callbacks(
            onProgress,
            onFinished=end,
            onError=lambda message: end(FlareSegmentError(message)),
            onCancelled=lambda reason: end(Cancelled(reason)),
        )
    )
    if not outcome:
        loop.exec_()
    if isinstance(outcome[0], FlareSegmentError):
        raise outcome[0]
    return outcome[0]
