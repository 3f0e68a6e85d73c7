"""The training panel's section "Teach": the examples of a folder, the teaching with them, and what came out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentSlicerLib.logic import script_process
from FlareSegmentSlicerLib.panel.message_area import MESSAGE_LINES, MessageArea, keep_place
from FlareSegmentSlicerLib.scene.organ_names import organ_name

EXAMPLES_SETTING = "FlareSegment/ExamplesFolder"
_LEAST_EXAMPLES = 2


class TeachingSection:
    """Widgets of the section. What they do is the logic's."""

    def __init__(self, ui: Any, logic: Any, torchInstalled: Callable[[], bool]) -> None:
        self._ui, self._logic, self._torchInstalled = ui, logic, torchInstalled
        self._message = MessageArea(ui.teachMessageFrame, ui.teachMessageBar, ui.teachMessageLabel, MESSAGE_LINES)
        self._shown: Any = None
        self._failure = ""
        keep_place(ui.teachProgressBar)
        ui.examplesPathEdit.connect("currentPathChanged(QString)", self._onFolder)
        ui.examplesPathEdit.connect("validInputChanged(bool)", self._onFolderValid)
        ui.examplesList.connect("itemSelectionChanged()", self.update)
        ui.openExampleButton.connect("clicked(bool)", self._onOpen)
        ui.removeExampleButton.connect("clicked(bool)", self._onRemove)
        ui.teachButton.connect("clicked(bool)", self._onTeach)
        ui.useTaughtButton.connect("clicked(bool)", self._onUse)
        ui.formerModelButton.connect("clicked(bool)", self._onBack)

    def enter(self) -> None:
        """Show the folder that was chosen last, here or where examples are kept."""
        self._ui.examplesPathEdit.currentPath = slicer.util.settingsValue(EXAMPLES_SETTING, "")
        self._logic.openExamples(self._ui.examplesPathEdit.currentPath)
        self._fillList()
        self.update()

    def update(self) -> None:
        """Show how the teaching stands, and what can be done."""
        ui, teaching = self._ui, self._logic.teaching
        examples = self._examples()
        if [example.name for example in examples] != self._names():
            self._fillList()
        active = teaching is not None and teaching.active
        chosen = bool(ui.examplesList.selectedItems())
        ui.examplesPathEdit.enabled = not active
        ui.openExampleButton.enabled = chosen
        ui.removeExampleButton.enabled = chosen and not active
        if not self._torchInstalled():
            hint = _("Install PyTorch first: open the FlareSegment module, which offers it.")
        elif not ui.examplesPathEdit.currentPath:
            hint = _("Choose the folder of the examples. The FlareSegment module keeps corrected results in it.")
        elif len(examples) < _LEAST_EXAMPLES:
            hint = _("At least two examples of different patients are needed; three or more are better.")
        else:
            hint = ""
        stopping = active and teaching.stop_requested
        ending = teaching is not None and teaching.ending
        ui.teachButton.enabled = active and not stopping or not (active or ending or hint)
        if active:
            ui.teachButton.text = _("Stop")
        else:
            ui.teachButton.text = _("Continue teaching") if self._logic.canContinueTeaching() else _("Teach")
        ui.teachButton.toolTip = hint or _(
            "Teach the model that the FlareSegment module segments with. It runs on its own and goes on when Slicer is "
            "closed; the model in use stays as it is."
        )
        progress = teaching.progress() if teaching is not None else {}
        begun = teaching is not None and teaching.begun
        ui.teachProgressBar.setVisible(active)
        ui.teachProgressBar.value = round(100 * (progress.get("fraction") or 0.0))
        self._showMessage(hint, stopping, active, progress, begun)
        self._showResult(active)

    def _showMessage(self, hint: str, stopping: bool, active: bool, progress: dict, begun: bool) -> None:
        teaching = self._logic.teaching
        state = teaching.state() if teaching is not None else script_process.NOT_BEGUN
        kind = "information"
        if self._failure:
            text, kind = self._failure, "error"
        elif stopping:
            text = _("Stopping: after the current step, which is saved.")
        elif state == script_process.STARTING:
            text = _("Starting to teach.")
        elif active:
            left = progress.get("remaining_seconds")
            text = progress.get("message", "")
            if left is not None:
                text += "\n" + _("About {minutes} min left in all.").format(minutes=max(1, round(left / 60)))
        elif state == script_process.LOST:
            text, kind = _("The teaching is gone without a word, as after a crash. Continue it."), "error"
        elif state == script_process.FAILED:
            text, kind = teaching.message(), "error"
        else:
            text = hint or (progress.get("message", "") if begun else "")
        self._message.show(text, kind)

    def _showResult(self, active: bool) -> None:
        ui, teaching = self._ui, self._logic.teaching
        text = teaching.report_text() if teaching is not None else ""
        curves = teaching.curves() if teaching is not None and active else None
        shown = (text, str(curves), curves.stat().st_mtime if curves else 0.0, ui.teachCurvesLabel.width)
        if shown != self._shown:
            self._shown = shown
            ui.teachReport.setMarkdown(text)
            pixmap = qt.QPixmap(str(curves)) if curves else qt.QPixmap()
            if curves:
                pixmap = pixmap.scaledToWidth(max(100, ui.teachCurvesLabel.width), qt.Qt.SmoothTransformation)
            ui.teachCurvesLabel.setPixmap(pixmap)
            ui.teachCurvesLabel.setMinimumHeight(pixmap.height())
        ui.teachReport.setVisible(bool(text) and not active)
        ui.teachCurvesLabel.setVisible(bool(curves))
        ui.useTaughtButton.setVisible(bool(text) and not active)
        offered, used = teaching is not None and teaching.model is not None, self._logic.usesTaught()
        back = self._logic.canGoBack()
        ui.formerModelButton.setVisible((bool(text) or back) and not active)
        ui.useTaughtButton.enabled = offered and not used
        ui.formerModelButton.enabled = back
        ui.useTaughtButton.toolTip = (
            _("Segment with the taught model from now on, in the FlareSegment module.")
            if offered
            else _("The taught model is not better: the report says why.")
        )

    def _examples(self) -> list[Any]:
        """The folder's examples; what is wrong with it is said."""
        try:
            return self._logic.examples()
        except FlareSegmentError as error:
            self._failure = str(error)
            return []

    def _names(self) -> list[str]:
        rows = self._ui.examplesList
        return [rows.topLevelItem(row).text(0) for row in range(rows.topLevelItemCount)]

    def _fillList(self) -> None:
        rows = self._ui.examplesList
        rows.clear()
        for example in self._examples():
            item = qt.QTreeWidgetItem(rows)
            item.setText(0, example.name)
            organs = [
                organ_name(organ_by_key(key)) + (_(" (absent)") if grade == "absent" else "")
                for key, grade in example.organs.items()
            ]
            item.setText(1, ", ".join(organs))
            item.setToolTip(0, " x ".join(str(count) for count in example.size))
            item.setToolTip(1, item.text(1))
        rows.resizeColumnToContents(0)

    def _selected(self) -> str:
        return self._ui.examplesList.selectedItems()[0].text(0)

    def _onFolder(self, path: str) -> None:
        qt.QSettings().setValue(EXAMPLES_SETTING, path)
        self._failure = ""
        self._logic.openExamples(path)
        self._fillList()
        self.update()

    def _onFolderValid(self, valid: bool) -> None:
        """The path was cleared, of which currentPathChanged does not tell."""
        if not valid:
            self._onFolder(self._ui.examplesPathEdit.currentPath)

    def _onOpen(self) -> None:
        self._do(lambda: self._logic.openExample(self._selected()))

    def _onRemove(self) -> None:
        name = self._selected()
        question = _("Remove {name} from {folder}? Its CT and labels are deleted there.")
        if slicer.util.confirmOkCancelDisplay(
            question.format(name=name, folder=Path(self._ui.examplesPathEdit.currentPath).name)
        ):
            self._do(lambda: self._logic.removeExample(name))

    def _onTeach(self) -> None:
        teaching = self._logic.teaching
        if teaching is not None and teaching.active:
            self._do(teaching.request_stop)
        else:
            self._do(self._logic.teach)

    def _onUse(self) -> None:
        self._do(self._logic.useTaught)

    def _onBack(self) -> None:
        self._do(self._logic.useFormer)

    def _do(self, work: Callable[[], object]) -> None:
        """Do what was asked for, and say calmly why it cannot be done."""
        self._failure = ""
        try:
            with slicer.util.WaitCursor():
                work()
        except FlareSegmentError as error:
            self._failure = str(error)
        self.update()
