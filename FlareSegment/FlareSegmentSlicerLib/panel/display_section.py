"""The panel's section "3D view": surfaces, opacity, volume rendering of the CT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.i18n import tr as _

from FlareSegmentSlicerLib.scene import display, segmentation_nodes


class DisplaySection:
    """Follows the display of the result, and changes it."""

    def __init__(self, ui: Any, output: Callable[[], slicer.vtkMRMLSegmentationNode | None]) -> None:
        """output: gives the result, or None."""
        self._ui, self._output = ui, output
        ui.smoothingSlider.connect("valueChanged(double)", self._onSmoothing)
        ui.opacitySlider.connect("valueChanged(double)", self._onOpacity)
        ui.volumeRenderingCheckBox.connect("toggled(bool)", self._onVolumeRendering)

    def update(self) -> None:
        """Show how the result is displayed."""
        node = self._output()
        if node is None or node.GetDisplayNode() is None:
            return
        volume = segmentation_nodes.reference_volume(node)
        for widget, name, value in (
            (self._ui.smoothingSlider, "value", display.smoothing(node)),
            (self._ui.opacitySlider, "value", node.GetDisplayNode().GetOpacity()),
            (self._ui.volumeRenderingCheckBox, "checked", display.is_volume_rendered(volume)),
        ):
            blocked = widget.blockSignals(True)
            setattr(widget, name, value)
            widget.blockSignals(blocked)
        self._ui.volumeRenderingCheckBox.enabled = volume is not None

    def _onSmoothing(self, value: float) -> None:
        node = self._output()
        if node is not None and abs(value - display.smoothing(node)) > 1e-6:
            with slicer.util.tryWithErrorDisplay(_("The 3D surfaces could not be made."), waitCursor=True):
                display.set_smoothing(node, value)

    def _onOpacity(self, value: float) -> None:
        if self._output() is not None:
            display.set_opacity(self._output(), value)

    def _onVolumeRendering(self, checked: bool) -> None:
        node = self._output()
        volume = segmentation_nodes.reference_volume(node) if node else None
        if volume is not None:
            with slicer.util.tryWithErrorDisplay(_("The CT could not be rendered."), waitCursor=True):
                display.show_volume_rendering(volume, checked)
