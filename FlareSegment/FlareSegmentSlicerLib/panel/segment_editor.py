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
    button = slicer.util.findChild(module.parent, _BACK_BUTTON) if _has_button(module) else None
    if button is None:
        button = qt.QPushButton(_("Back to FlareSegment"))
        button.objectName = _BACK_BUTTON
        button.toolTip = _(
            "What was edited stays as it is. FlareSegment marks the organs and asks before it replaces them."
        )
        button.connect("clicked(bool)", _back)
        module.layout.insertWidget(0, button)
    button.show()


def _has_button(module) -> bool:
    return bool(slicer.util.findChildren(module.parent, _BACK_BUTTON))


def _back(checked: bool = False) -> None:
    module = slicer.modules.segmenteditor.widgetRepresentation().self()
    slicer.util.findChild(module.parent, _BACK_BUTTON).hide()
    slicer.util.selectModule("FlareSegment")
