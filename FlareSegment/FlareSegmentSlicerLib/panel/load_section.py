"""The panel's buttons that load a CT or a reference, for a Slicer that has no dialog for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentSlicerLib.scene.file_loading import load_ct, load_reference, slicer_loads_files

FOLDER_SETTING = "FlareSegment/LoadFolder"


class LoadSection:
    """Asks for a file, loads it and hands the node on; what cannot be loaded is said in one line."""

    def __init__(
        self,
        ui: Any,
        say: Callable[[str, str], None],
        onVolume: Callable[[slicer.vtkMRMLScalarVolumeNode], None],
        onReference: Callable[[slicer.vtkMRMLNode], None],
    ) -> None:
        """say: shows a line of a kind; onVolume, onReference: are given what was loaded."""
        self._ui, self._say, self._onVolume, self._onReference = ui, say, onVolume, onReference
        for button in (ui.loadButton, ui.loadReferenceButton):
            button.setVisible(not slicer_loads_files())
        menu = qt.QMenu(ui.loadButton)
        for text, folder in ((_("File…"), False), (_("DICOM folder…"), True)):
            menu.addAction(text).connect("triggered(bool)", functools.partial(self._onLoad, folder))
        ui.loadButton.setMenu(menu)
        ui.loadReferenceButton.connect("clicked(bool)", self._onLoadReference)

    def _onLoad(self, folder: bool, checked: bool = False) -> None:
        window, start = self._ui.loadButton.window(), self._start()
        if folder:
            place = qt.QFileDialog.getExistingDirectory(window, _("Load a CT"), start)
        else:
            place = qt.QFileDialog.getOpenFileName(window, _("Load a CT"), start)
        if place:
            self._load(place, self._load_ct)

    def _onLoadReference(self, checked: bool = False) -> None:
        window = self._ui.loadReferenceButton.window()
        place = qt.QFileDialog.getOpenFileName(window, _("Load a reference"), self._start())
        if place:
            self._load(place, self._load_reference)

    def _load_ct(self, place: str) -> list[str]:
        node, warnings = load_ct(place)
        self._onVolume(node)
        return warnings

    def _load_reference(self, place: str) -> list[str]:
        self._onReference(load_reference(place))
        return []

    def _load(self, place: str, load: Callable[[str], list[str]]) -> None:
        qt.QSettings().setValue(FOLDER_SETTING, str(Path(place).parent))
        self._say("", "information")
        try:
            with slicer.util.WaitCursor():
                warnings = load(place)
        except (FlareSegmentError, OSError) as error:
            self._say(str(error), "error")
        else:
            self._say("\n".join(warnings), "warning")

    def _start(self) -> str:
        return slicer.util.settingsValue(FOLDER_SETTING, str(Path.home()))
