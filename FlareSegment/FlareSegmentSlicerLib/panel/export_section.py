"""The panel's section "Export"."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.organs import FLARE22_ORGANS, LABEL_TABLES
from FlareSegmentSlicerLib.scene import export

FOLDER_SETTING = "FlareSegment/ExportFolder"
_CUSTOM = "custom"
_INPUT = (
    qt.QEvent.MouseButtonPress,
    qt.QEvent.MouseButtonRelease,
    qt.QEvent.MouseButtonDblClick,
    qt.QEvent.MouseMove,
    qt.QEvent.Wheel,
    qt.QEvent.KeyPress,
    qt.QEvent.KeyRelease,
    qt.QEvent.ShortcutOverride,
    qt.QEvent.ContextMenu,
    qt.QEvent.Drop,
    qt.QEvent.Close,
)


class _Cancelled(Exception):
    """The user does not want the files any more."""


class _OnlyInput(qt.QObject):
    """Lets one widget alone of the whole application hear what the user does."""

    def __init__(self, widget: qt.QWidget) -> None:
        qt.QObject.__init__(self)
        self._widget = widget

    def eventFilter(self, watched, event) -> bool:
        return event.type() in _INPUT and watched.isWidgetType() and watched != self._widget


class ExportSection:
    """Asks for a place, writes, and says what was written."""

    def __init__(
        self,
        ui: Any,
        output: Callable[[], slicer.vtkMRMLSegmentationNode | None],
        say: Callable[[str, str], None],
        onProgress: Callable[[float, str], None],
    ) -> None:
        """output: gives the result; say: shows a line of a kind ("information", "error")."""
        self._ui, self._output, self._say, self._onProgress = ui, output, say, onProgress
        self._drawing, self._cancelled = False, False
        formats = (
            (_("Label map (NIfTI)"), "labels"),
            (_("Surfaces (STL)"), "STL"),
            (_("Surfaces (OBJ)"), "OBJ"),
            (_("DICOM segmentation"), "dicom"),
            (_("Pictures (PNG)"), "pictures"),
            (_("Turntable video (MP4, GIF)"), "turntable"),
            (_("Slices video (MP4, GIF)"), "slices"),
        )
        for text, kind in formats:
            ui.formatComboBox.addItem(text, kind)
        ui.labelValuesComboBox.addItem("FlareSegment (1, 2, 3, 4)", "flaresegment")
        ui.labelValuesComboBox.addItem("FLARE22 (1, 2, 13, 3)", "flare22")
        ui.labelValuesComboBox.addItem(_("Own values"), _CUSTOM)
        ui.formatComboBox.connect("currentIndexChanged(int)", self._update)
        ui.labelValuesComboBox.connect("currentIndexChanged(int)", self._update)
        ui.exportButton.connect("clicked(bool)", self._onExport)
        self._update()

    def _update(self, index: int = 0) -> None:
        labels = self._kind == "labels"
        self._ui.labelValuesLabel.setVisible(labels)
        self._ui.labelValuesComboBox.setVisible(labels)
        self._ui.labelValuesEdit.setVisible(labels and self._values == _CUSTOM)

    @property
    def _kind(self) -> str:
        return self._ui.formatComboBox.itemData(self._ui.formatComboBox.currentIndex)

    @property
    def _values(self) -> str:
        return self._ui.labelValuesComboBox.itemData(self._ui.labelValuesComboBox.currentIndex)

    def _onExport(self) -> None:
        if self._drawing:
            self._cancelled = True
            return
        node = self._output()
        place = self._ask_for_place(node)
        if not place:
            return
        qt.QSettings().setValue(FOLDER_SETTING, str(place.parent))
        self._ui.exportButton.enabled = False
        self._say("", "information")
        try:
            if self._kind in ("turntable", "slices", "pictures"):
                files = self._draw(node, place)
            else:
                with slicer.util.WaitCursor():
                    files = self._write(node, place)
        except _Cancelled:
            self._say(_("Cancelled. Nothing was written."), "information")
        except (FlareSegmentError, OSError) as error:
            self._say(str(error), "error")
        else:
            self._say(_("Wrote {files}").format(files="\n".join(str(file) for file in files)), "information")
        finally:
            self._ui.exportButton.enabled = True
            self._onProgress(1.0, "")

    def _write(self, node: slicer.vtkMRMLSegmentationNode, place: Path) -> list[Path]:
        kind = self._kind
        if kind == "labels":
            if self._values == _CUSTOM:
                values = export.parse_label_values(self._ui.labelValuesEdit.text, export.present_organs(node))
            else:
                values = {organ.key: LABEL_TABLES[self._values][organ.key] for organ in FLARE22_ORGANS}
            return export.export_label_map(node, place, values)
        if kind in ("STL", "OBJ"):
            return export.export_surfaces(node, place, kind)
        return export.export_dicom(node, place)

    def _draw(self, node: slicer.vtkMRMLSegmentationNode, place: Path) -> list[Path]:
        """Draw pictures or a video; meanwhile the window lives, but hears of the button Cancel alone."""
        button = self._ui.exportButton
        text, button.text, button.enabled = button.text, _("Cancel"), True
        self._drawing, self._cancelled = True, False
        only = _OnlyInput(button)
        slicer.app.installEventFilter(only)
        try:
            self._onFrame(0.0)
            if self._kind == "pictures":
                return export.export_pictures(node, place, self._onFrame)
            return export.export_video(node, place, self._kind, self._onFrame)
        finally:
            slicer.app.removeEventFilter(only)
            self._drawing = False
            button.text = text

    def _onFrame(self, fraction: float) -> None:
        self._onProgress(fraction, _("Drawing"))
        slicer.app.processEvents()
        if self._cancelled:
            raise _Cancelled

    def _ask_for_place(self, node: slicer.vtkMRMLSegmentationNode) -> Path | None:
        """The file or folder that the user chose."""
        kind, start = self._kind, Path(slicer.util.settingsValue(FOLDER_SETTING, str(Path.home())))
        window = self._ui.exportButton.window()
        if kind in ("STL", "OBJ", "pictures"):
            folder = qt.QFileDialog.getExistingDirectory(window, _("Folder for the files"), str(start))
            return Path(folder) if folder else None
        suffix = {"labels": ".nii.gz", "dicom": ".dcm", "turntable": "_turntable.mp4", "slices": "_slices.mp4"}[kind]
        ending = "." + suffix.partition(".")[2]
        endings, kinds = (ending,), ""
        if ending == ".mp4":
            endings, kinds = (".mp4", ".gif"), ";;".join((_("Video (*.mp4)"), _("Animation (*.gif)")))
        proposal = start / export.default_name(node, suffix)
        name = qt.QFileDialog.getSaveFileName(window, _("Export"), str(proposal), kinds)
        if not name:
            return None
        return Path(name if name.lower().endswith(endings) else name + ending)
