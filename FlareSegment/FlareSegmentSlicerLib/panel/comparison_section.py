"""The panel's section "Compare with a reference"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from FlareSegmentSlicerLib.scene import comparison


class ComparisonSection:
    """Starts and cancels a comparison; its scores go into the table, its difference into the slices."""

    def __init__(
        self,
        ui: Any,
        output: Callable[[], slicer.vtkMRMLSegmentationNode | None],
        start: Callable[..., None],
        cancel: Callable[[], None],
        say: Callable[[str, str], None],
        onCompared: Callable[[], None],
    ) -> None:
        """output: gives the result; start, cancel: the logic's `startComparison` and `cancelComparison`; onCompared:
        the table has news.
        """
        self._ui, self._output, self._start, self._say, self._onCompared = ui, output, start, say, onCompared
        self._cancel = cancel
        self._underWay = False
        ui.referenceSelector.connect("currentNodeChanged(vtkMRMLNode*)", self._onReference)
        ui.compareButton.connect("clicked(bool)", self._onCompare)
        ui.differenceCheckBox.connect("toggled(bool)", self._onDifference)

    def update(self, running: bool = False) -> None:
        """Enable and explain what can be done."""
        ui, output, reference = self._ui, self._output(), self._ui.referenceSelector.currentNode()
        difference = comparison.difference_node(output)
        ready = bool(output and reference and reference is not output and not running)
        ui.compareButton.enabled = ready or self._underWay
        if self._underWay:
            ui.compareButton.toolTip = _("Stop the comparison. The scene stays as it is.")
        elif reference is None:
            ui.compareButton.toolTip = _("Choose a reference first.")
        elif reference is output:
            ui.compareButton.toolTip = _("This is the result itself: choose another segmentation.")
        else:
            ui.compareButton.toolTip = _("Dice, Normalized Surface Dice and HD95 of every organ, in the table.")
        ui.compareButton.text = _("Cancel") if self._underWay else _("Compare")
        ui.differenceCheckBox.enabled = difference is not None
        blocked = ui.differenceCheckBox.blockSignals(True)
        ui.differenceCheckBox.checked = bool(
            difference and difference.GetDisplayNode() and difference.GetDisplayNode().GetVisibility()
        )
        ui.differenceCheckBox.blockSignals(blocked)

    def _onReference(self, node: slicer.vtkMRMLNode) -> None:
        self.update()

    def _onCompare(self) -> None:
        if self._underWay:
            self._cancel()
            return
        reference = self._ui.referenceSelector.currentNode()
        self._underWay = True
        self._say(_("Comparing with {name}…").format(name=reference.GetName()), "information")
        self.update()
        for widget in (self._ui.compareButton, self._ui.messageLabel):
            widget.repaint()  # the label maps are made in this very turn of the event loop
        with slicer.util.WaitCursor():
            ends = {"onFinished": self._onFinished, "onError": self._onError, "onCancelled": self._onCancelled}
            self._start(self._output(), reference, **ends)

    def _onFinished(self, scores: dict) -> None:
        self._underWay = False
        self._say("", "information")
        self._onCompared()
        self.update()

    def _onError(self, message: str) -> None:
        self._underWay = False
        self._say(message, "error")
        self.update()

    def _onCancelled(self, message: str) -> None:
        self._underWay = False
        self._say(message, "information")
        self.update()

    def _onDifference(self, checked: bool) -> None:
        node = comparison.difference_node(self._output())
        if node is not None:
            node.GetDisplayNode().SetVisibility(checked)
