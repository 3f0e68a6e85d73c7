"""One segmentation under way: from a volume node to the worker, and from the worker's answer to a segmentation node."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import slicer
from slicer.i18n import tr as _

from FlareSegmentLib import __version__
from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.measures.organ_statistics import in_whole_volume
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import Result
from FlareSegmentSlicerLib.scene import display, review, segmentation_nodes
from FlareSegmentSlicerLib.scene.organ_labels import KeptConfidence, OrganLabels, shifted
from FlareSegmentSlicerLib.scene.parent_transform import Pose, pose_in_scene
from FlareSegmentSlicerLib.scene.region_of_interest import Region, region_of_interest
from FlareSegmentSlicerLib.scene.segmentation_nodes import Snapshot


def _ignore(*arguments: Any) -> None:
    pass


@dataclass(frozen=True)
class Callbacks:
    """Who is told. Exactly one of the last three is called, with the segmentation node or with a line for the user."""

    onProgress: Callable[[float, str], None] = _ignore
    onFinished: Callable[[slicer.vtkMRMLSegmentationNode], None] = _ignore
    onError: Callable[[str], None] = _ignore
    onCancelled: Callable[[str], None] = _ignore


@dataclass
class SegmentationRun:
    """Prepares what the worker needs, listens to it, and puts its result into the scene.

    Attributes:
        volumeNode: the CT; its segmentation refers to it.
        frameNode: where the voxels are, if not in the CT itself (a frame of its sequence).
        segmentationNode: receives the organs; None makes a new node.
        request: what the user chose; the run adds the region of `roiNode`.
        roiNode: organs are kept inside it only.
        onConfidence: is given the result and its confidence, None where nobody asked.
    """

    volumeNode: slicer.vtkMRMLScalarVolumeNode
    segmentationNode: slicer.vtkMRMLSegmentationNode | None
    request: SegmentationRequest
    callbacks: Callbacks
    onEnd: Callable[[], None]
    onReplaced: Callable[[Snapshot], None]
    onConfidence: Callable[[slicer.vtkMRMLSegmentationNode, KeptConfidence | None], None] = _ignore
    roiNode: slicer.vtkMRMLMarkupsROINode | None = None
    frameNode: slicer.vtkMRMLScalarVolumeNode | None = None
    megavoxels: float = 0.0
    _outputID: str | None = None
    _region: Region | None = None
    _pose: Pose | None = None
    _shape: tuple[int, ...] = ()
    _warnings: list[str] = field(default_factory=list)

    def prepare(self) -> tuple[Volume, SegmentationRequest]:
        """What to send to the worker. Raises InputError."""
        if self.volumeNode is None:
            raise InputError(_("Choose a CT first."))
        segmentation_nodes.check_output(self.volumeNode, self.segmentationNode)
        self._outputID = self.segmentationNode.GetID() if self.segmentationNode else None
        volume = segmentation_nodes.volume_from_node(self.frameNode or self.volumeNode)
        self._shape = volume.array.shape
        modality = segmentation_nodes.modality(self.volumeNode)
        if modality not in ("", "CT"):
            self._warnings.append(
                _("{name} is tagged as {modality}, not as CT: look at the result.").format(
                    name=self.volumeNode.GetName(), modality=modality
                )
            )
        self._pose = pose_in_scene(self.volumeNode, volume)
        self._warnings += self._pose.warnings
        seen = self._pose.turned(volume)
        # The places of one frame would be shown with all of them.
        review_wanted = self.request.review and self.frameNode is None
        request = replace(self.request, smoothing=self._smoothing(), review=review_wanted)
        if self.roiNode is not None:
            self._region = region_of_interest(self.volumeNode, volume, self.roiNode)
            seen = self._region.crop(seen)
            request = replace(request, region=self._region.kept)
        self.megavoxels = seen.array.size / 1e6
        return seen, request

    def onProgress(self, fraction: float, stage: str) -> None:
        self.callbacks.onProgress(fraction, stage)

    def onResult(self, labels: OrganLabels, result: Result) -> None:
        self.onEnd()
        # An output that was removed in the meantime is replaced by a new one.
        output = slicer.mrmlScene.GetNodeByID(self._outputID) if self._outputID else None
        before = Snapshot(output) if output else None
        try:
            self._check_unchanged()
            labels = self._in_whole_volume(labels)
            segmentationNode = segmentation_nodes.create_segmentation(
                self.volumeNode, labels, output, self._description(result)
            )
        except FlareSegmentError as error:
            self.callbacks.onError(str(error))
            return
        if before is not None and not before.isEmpty:
            self.onReplaced(before)
        self.onConfidence(segmentationNode, labels.confidence)
        self.callbacks.onFinished(segmentationNode)

    def onFailure(self, message: str) -> None:
        self.onEnd()
        self.callbacks.onError(message)

    def _smoothing(self) -> float | None:
        """Smoothing of the surfaces that the worker shall make: those that it can make are Slicer's own by default.

        Where the output's surfaces are decimated, or made with another method, Slicer makes them when they are shown.
        """
        if self.segmentationNode is not None and not display.has_default_surfaces(self.segmentationNode):
            return None
        return self.request.smoothing

    def _check_unchanged(self) -> None:
        image = (self.frameNode or self.volumeNode).GetImageData()
        if image is None or tuple(reversed(image.GetDimensions())) != self._shape:
            raise InputError(
                _("{name} was changed while it was segmented. Segment it again.").format(name=self.volumeNode.GetName())
            )

    def _in_whole_volume(self, labels: OrganLabels) -> OrganLabels:
        if self._pose is not None:
            labels = replace(labels, surfaces={key: self._pose.back(one) for key, one in labels.surfaces.items()})
        if self._region is None:
            return labels
        first = [extent.start for extent in self._region.seen]
        z, y, x = shifted(labels.box, first)
        organs = in_whole_volume(labels.organs, first)
        confidence = labels.confidence and replace(labels.confidence, box=shifted(labels.confidence.box, first))
        return replace(labels, box=(z, y, x), organs=organs, confidence=confidence)

    def _description(self, result: Result) -> Mapping[str, Any]:
        region = self.roiNode.GetName() if self.roiNode else None
        first = [extent.start for extent in self._region.seen] if self._region else [0, 0, 0]
        places = {} if result.places is None else {review.PLACES: review.moved(result.places, first)}
        return {
            "Version": __version__,
            "Model": result.model,
            "Device": result.device,
            "Settings": {"device": self.request.device, "organs": self.request.organs, "region": region},
            "Seconds": result.seconds,
            segmentation_nodes.RUN: secrets.token_hex(8),
            segmentation_nodes.ORGAN_TABLE: result.organs,
            segmentation_nodes.WARNINGS: self._warnings + result.warnings,
            **places,
        }
