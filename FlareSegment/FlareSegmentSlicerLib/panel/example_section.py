"""The panel's section "Keep as example": a corrected result and its CT go into the folder that teaches the model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.organs import ORGANS, organ_by_key
from FlareSegmentSlicerLib.panel.message_area import MessageArea
from FlareSegmentSlicerLib.scene import segmentation_nodes
from FlareSegmentSlicerLib.scene.organ_names import organ_name

FOLDER_SETTING = "FlareSegment/ExamplesFolder"
_TRAINING = "FlareSegmentTraining"


class ExampleSection:
    """Asks which organs were looked at; what keeps the example is the training module's logic."""

    def __init__(
        self,
        ui: Any,
        output: Callable[[], slicer.vtkMRMLSegmentationNode | None],
    ) -> None:
        """output: gives the result."""
        self._ui, self._output = ui, output
        self._message = MessageArea(ui.exampleMessageFrame, ui.exampleMessageBar, ui.exampleMessageLabel)
        self._message.show("")
        self._of: object = None
        self._edited: frozenset[str] = frozenset()
        self._menu = qt.QMenu(ui.lookedAtButton)
        ui.lookedAtButton.setMenu(self._menu)
        ui.exampleFolderEdit.connect("currentPathChanged(QString)", self._onFolder)
        ui.exampleFolderEdit.connect("validInputChanged(bool)", self._onFolderValid)
        ui.exampleCollapsibleButton.connect("contentsCollapsed(bool)", self._onOpened)
        ui.keepExampleButton.connect("clicked(bool)", self._onKeep)
        ui.openTeachingButton.connect("clicked(bool)", self._onTeach)
        self._updateState()

    @property
    def available(self) -> bool:
        """Whether the training module is there, which keeps examples and teaches."""
        return slicer.app.moduleManager().module(_TRAINING) is not None

    def update(self, edited: Collection[str] = ()) -> None:
        """Offer the organs of the result; another result starts anew, and an organ that was edited was looked at."""
        output = self._output()
        one = segmentation_nodes.result_identity(output) if output is not None else None
        if one != self._of:
            self._of, self._edited = one, frozenset()
            self._message.show("")
            self._menu.clear()
            for organ in ORGANS:
                action = self._menu.addAction(organ_name(organ))
                action.setCheckable(True)
                action.setData(organ.key)
                action.connect("toggled(bool)", self._updateState)
        for action in self._menu.actions():
            if action.data() in edited and action.data() not in self._edited:
                action.setChecked(True)
        self._edited |= frozenset(edited)
        self._updateState()

    def _chosen(self) -> list[str]:
        return [action.data() for action in self._menu.actions() if action.checked]

    def _updateState(self, checked: bool = False) -> None:
        ui, chosen = self._ui, self._chosen()
        names = [action.text for action in self._menu.actions() if action.checked]
        if chosen and len(chosen) == len(self._menu.actions()):
            ui.lookedAtButton.text = _("All {count}").format(count=len(chosen))
        else:
            ui.lookedAtButton.text = ", ".join(names[:2]) + (" …" if len(names) > 2 else "") if names else _("None yet")
        if not chosen:
            hint = _("Choose the organs that you have looked at.")
        elif not ui.exampleFolderEdit.currentPath:
            hint = _("Choose a folder for the examples.")
        else:
            hint = ""
        ui.keepExampleButton.enabled = not hint
        ui.keepExampleButton.toolTip = hint or _("Keep this CT and its organs, without names, dates and identifiers.")

    def _onOpened(self, collapsed: bool) -> None:
        if not collapsed:
            output = self._output()
            if output is not None:
                self.update(segmentation_nodes.edited_organ_keys(output))
            if not self._ui.exampleFolderEdit.currentPath:
                self._ui.exampleFolderEdit.currentPath = slicer.util.settingsValue(FOLDER_SETTING, "")

    def _onFolder(self, path: str) -> None:
        qt.QSettings().setValue(FOLDER_SETTING, path)
        self._updateState()

    def _onFolderValid(self, valid: bool) -> None:
        """The path was cleared, of which currentPathChanged does not tell."""
        if not valid:
            self._onFolder(self._ui.exampleFolderEdit.currentPath)

    def _onKeep(self) -> None:
        logic = slicer.util.getModuleLogic(_TRAINING)
        try:
            with slicer.util.WaitCursor():
                logic.openExamples(self._ui.exampleFolderEdit.currentPath)
                name = logic.keepExample(self._output(), self._chosen())
                examples = logic.examples()
        except FlareSegmentError as error:
            logging.info("The example could not be kept: %s", error)
            self._message.show(str(error), "error")
            return
        text = _("Kept as {name}; the folder holds {count} now.").format(name=name, count=len(examples))
        absent = [key for one in examples if one.name == name for key, grade in one.organs.items() if grade == "absent"]
        if absent:
            names = ", ".join(organ_name(organ_by_key(key)) for key in absent)
            text += " " + _("It teaches that there is none of: {organs}.").format(organs=names)
        self._message.show(text)

    def _onTeach(self) -> None:
        """Go to the training module, which shows the folder that is in the settings."""
        qt.QSettings().setValue(FOLDER_SETTING, self._ui.exampleFolderEdit.currentPath)
        slicer.util.selectModule(_TRAINING)
        slicer.util.getModuleWidget(_TRAINING).ui.teachCollapsibleButton.collapsed = False
