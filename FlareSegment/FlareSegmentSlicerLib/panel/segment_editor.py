"""The way to Slicer's own Segment Editor and back."""

from __future__ import annotations

import qt
import slicer
from slicer.i18n import tr as _

EFFECT = "Paint"
_BACK_BUTTON = "FlareSegmentBackButton"


def missing_reason() -> str:
    """Why there is no Segment Editor here; empty where there is one."""
    if hasattr(slicer.modules, "segmenteditor"):
        return ""
    return _("This Slicer has no Segment Editor: edit the segmentation in an installed Slicer.")


def edit(
    segmentationNode: slicer.vtkMRMLSegmentationNode, volumeNode: slicer.vtkMRMLScalarVolumeNode, segmentID: str
) -> None:
    """Open the Segment Editor on a segment, with its CT and the paint brush; a button above it leads back here."""
    slicer.util.selectModule("SegmentEditor")
    module = slicer.modules.segmenteditor.widgetRepresentation().self()
    editor = module.editor
    editor.setSegmentationNode(segmentationNode)
    editor.setSourceVolumeNode(volumeNode)
    if segmentID:
        editor.setCurrentSegmentID(segmentID)
        editor.setActiveEffectByName(EFFECT)
    if not slicer.util.findChildren(module.parent, _BACK_BUTTON):
        button = qt.QPushButton(_("Back to FlareSegment"))
        button.objectName = _BACK_BUTTON
        button.toolTip = _(
            "What was edited stays as it is. FlareSegment marks the organs and asks before it replaces them."
        )
        button.connect("clicked(bool)", _back)
        module.layout.insertWidget(0, button)
        slicer.util.moduleSelector().connect("moduleSelected(QString)", _onModuleSelected)
    slicer.util.findChild(module.parent, _BACK_BUTTON).show()


def _back(checked: bool = False) -> None:
    slicer.util.selectModule("FlareSegment")


def _onModuleSelected(name: str) -> None:
    """Who leaves the editor has no way back to go when opening it for something else."""
    if name != "SegmentEditor" and not missing_reason():  # there is none any more while Slicer ends
        slicer.util.findChild(slicer.modules.segmenteditor.widgetRepresentation(), _BACK_BUTTON).hide()
