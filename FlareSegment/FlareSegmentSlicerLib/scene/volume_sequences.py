"""CTs over time (sequences): their frames, and a sequence of segmentations that plays along with them."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _


class FrameSequence:
    """The frames of a CT that a sequence browser shows, and where their segmentations go.

    The browser is not moved: frames are read from the sequence itself.
    """

    def __init__(self, browserNode: slicer.vtkMRMLSequenceBrowserNode, volumeNode: slicer.vtkMRMLVolumeNode) -> None:
        self._browser = browserNode
        self._frames = browserNode.GetSequenceNode(volumeNode)
        self._name = volumeNode.GetName()
        self._results: slicer.vtkMRMLSequenceNode | None = None

    def __len__(self) -> int:
        return self._frames.GetNumberOfDataNodes()

    def frame(self, index: int) -> slicer.vtkMRMLVolumeNode:
        """The volume of a frame; it is not in the scene."""
        return self._frames.GetNthDataNode(index)

    def name(self, index: int) -> str:
        """What the user calls a frame."""
        return f"{self._name} [{self._frames.GetNthIndexValue(index)}]"

    def keep(self, index: int, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        """Keep a copy of the segmentation as that of a frame."""
        if self._results is None:
            name = slicer.mrmlScene.GenerateUniqueName(_("{name} sequence").format(name=segmentationNode.GetName()))
            self._results = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", name)
            self._results.SetIndexName(self._frames.GetIndexName())
            self._results.SetIndexUnit(self._frames.GetIndexUnit())
            self._results.SetIndexType(self._frames.GetIndexType())
        self._results.SetDataNodeAtValue(segmentationNode, self._frames.GetNthIndexValue(index))

    def show_with(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        """Let the segmentation node follow the browser from now on."""
        if self._results is None:
            return
        logic = slicer.modules.sequences.logic()
        with slicer.util.NodeModify(self._browser):  # else a proxy node of its own would be made in between
            logic.AddSynchronizedNode(self._results, segmentationNode, self._browser)
        logic.UpdateProxyNodesFromSequences(self._browser)


def frame_sequence(volumeNode: slicer.vtkMRMLVolumeNode | None) -> FrameSequence | None:
    """The sequence that a volume is shown from, if it has more than one frame."""
    if volumeNode is None:
        return None
    browser = slicer.modules.sequences.logic().GetFirstBrowserNodeForProxyNode(volumeNode)
    if browser is None or browser.GetSequenceNode(volumeNode) is None:
        return None
    found = FrameSequence(browser, volumeNode)
    return found if len(found) > 1 else None
