"""The panel's section "Many CTs": a folder or DICOM series segmented by a process of its own, and what it found."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.organs import ORGANS
from FlareSegmentSlicerLib.logic import cohort_process, script_process
from FlareSegmentSlicerLib.logic.cohort_process import CohortProcess, cohort_script
from FlareSegmentSlicerLib.panel.message_area import WrappedLabel, breakable
from FlareSegmentSlicerLib.scene.cohort_results import CohortResult, CohortResults
from FlareSegmentSlicerLib.scene.organ_names import organ_name

SOURCE_SETTING, OUTPUT_SETTING = "FlareSegment/CohortSource", "FlareSegment/CohortOutput"
UPDATE_MS = 1000
RECORDS_AT_ONCE = 200
"""Looked at with each update, in some milliseconds: thousands come in bit by bit, and the panel stays at hand."""


class CohortSection:
    """Starts, watches and stops the cohort of the chosen folder, and lists its results. It is only watched while the
    section is open; the process goes on by itself.
    """

    def __init__(self, ui: Any) -> None:
        self._ui = ui
        self._process: CohortProcess | None = None
        self._results: CohortResults | None = None
        self._rows: dict[str, tuple[int, CohortResult]] = {}
        self._problem = ""
        self._message = WrappedLabel(ui.cohortMessageLabel)
        ui.cohortSourcePathEdit.currentPath = slicer.util.settingsValue(SOURCE_SETTING, "")
        ui.cohortOutputPathEdit.currentPath = slicer.util.settingsValue(OUTPUT_SETTING, "")
        ui.cohortSeriesCheckBox.setVisible(hasattr(slicer.modules, "dicom"))
        columns = [_("CT"), *(organ_name(organ) for organ in ORGANS)]
        ui.cohortTable.setColumnCount(len(columns))
        ui.cohortTable.setHorizontalHeaderLabels(columns)
        ui.cohortTable.horizontalHeader().setStretchLastSection(True)
        ui.cohortTable.verticalHeader().setVisible(False)
        self._timer = qt.QTimer()
        self._timer.setInterval(UPDATE_MS)
        self._timer.connect("timeout()", self.update)
        ui.cohortCollapsibleButton.connect("contentsCollapsed(bool)", self._onCollapsed)
        ui.cohortStartButton.connect("clicked(bool)", self._onStart)
        ui.cohortReportButton.connect("clicked(bool)", self._onReport)
        ui.cohortSeriesCheckBox.connect("toggled(bool)", self._onChanged)
        ui.cohortTable.connect("cellClicked(int,int)", self._onRow)
        for edit in (ui.cohortSourcePathEdit, ui.cohortOutputPathEdit):
            edit.connect("currentPathChanged(QString)", self._onChanged)
            edit.connect("validInputChanged(bool)", self._onChanged)  # a path that is cleared tells of itself only here
        self._onCollapsed(ui.cohortCollapsibleButton.collapsed)

    def close(self) -> None:
        """Look no more; what runs goes on."""
        self._timer.stop()

    def update(self) -> None:
        """Show how the cohort in the chosen folder stands, what it has found, and what can be done."""
        self._open(self._ui.cohortOutputPathEdit.currentPath)
        ui, process = self._ui, self._process
        state = process.state() if process else script_process.NOT_BEGUN
        progress = process.progress() if process else {}
        active = state in (script_process.STARTING, script_process.RUNNING)
        stopping = active and process.stop_requested
        ui.cohortSourcePathEdit.enabled = not active and not self._fromDatabase()
        for widget in (ui.cohortOutputPathEdit, ui.cohortSeriesCheckBox):
            widget.enabled = not active
        hint = "" if active else self._hint()
        ui.cohortStartButton.text = _("Cancel") if active else _("Segment all")
        ui.cohortStartButton.enabled = not hint and not stopping and not (process is not None and process.ending)
        ui.cohortStartButton.toolTip = hint or _("It runs on its own and goes on when Slicer is closed.")
        total = progress.get("total") or 0
        ui.cohortProgressBar.setVisible(active)
        ui.cohortProgressBar.setMaximum(total)  # without a number yet the bar shows that something runs
        ui.cohortProgressBar.setValue(sum(progress.get(name) or 0 for name in ("done", "failed", "present")))
        ui.cohortReportButton.enabled = process is not None and (process.path / cohort_process.REPORT_FILE).is_file()
        self._message.setText(breakable(self._problem or self._describe(state, stopping) or hint))
        self._list()

    def _open(self, folder: str) -> None:
        """Take the cohort of a folder, which need not exist yet; an empty name takes none."""
        if not folder:
            self._process = self._results = None
        elif self._process is None or self._process.path != Path(folder):
            self._process, self._results = CohortProcess(folder), CohortResults(folder)
        else:
            return
        self._rows.clear()
        self._ui.cohortTable.setRowCount(0)

    def _hint(self) -> str:
        """Why nothing can be started; empty where it can."""
        if cohort_script() is None:
            return _("Install the module FlareSegment Training, which brings what many CTs need.")
        if self._fromDatabase() and not _selection():
            return _("Select series of CTs in the DICOM module first.")
        if not self._fromDatabase() and not self._ui.cohortSourcePathEdit.currentPath:
            return _("Choose a folder of CTs.")
        if not self._ui.cohortOutputPathEdit.currentPath:
            return _("Choose a folder for the results.")
        return ""

    def _describe(self, state: str, stopping: bool) -> str:
        if stopping:
            return _("Stopping after the CTs that are in work. Start it again to go on.")
        if state == script_process.STARTING:
            return _("Starting.")
        if state == script_process.LOST:
            return _("The process is gone without a word, as after a crash. Start it again to go on.")
        return self._process.message() if self._process else ""

    def _fromDatabase(self) -> bool:
        return bool(self._ui.cohortSeriesCheckBox.checked)

    def _onCollapsed(self, collapsed: bool) -> None:
        if collapsed:
            self._timer.stop()
        else:
            self.update()
            self._timer.start()

    def _onChanged(self, _value: object = None) -> None:
        self._problem = ""
        self.update()

    def _onStart(self) -> None:
        self._problem = ""
        process = self._process
        try:
            if process.active:
                process.request_stop()
            elif _ensure_packages():
                source = self._ui.cohortSourcePathEdit.currentPath
                settings = slicer.app.settings()
                settings.setValue(SOURCE_SETTING, source)
                settings.setValue(OUTPUT_SETTING, str(process.path))
                process.start(_selected_series() if self._fromDatabase() else source)
                self._timer.start()
        except FlareSegmentError as error:
            self._problem = str(error)
        self.update()

    def _onReport(self) -> None:
        file = self._process.path / cohort_process.REPORT_FILE
        qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(file)))

    def _onRow(self, row: int, _column: int) -> None:
        """Load a row's CT and organs; says why where it failed."""
        name = self._ui.cohortTable.item(row, 0).data(qt.Qt.UserRole)
        result = self._rows[name][1]
        self._problem = result.error
        if not result.error:
            try:
                with slicer.util.WaitCursor():
                    self._results.load(result)
            except (FlareSegmentError, OSError) as error:
                self._problem = str(error)
        self.update()

    def _list(self) -> None:
        """Add what is new to the table."""
        for result in self._results.next_changed(RECORDS_AT_ONCE) if self._results else ():
            table = self._ui.cohortTable
            if result.name not in self._rows:
                table.setRowCount(table.rowCount + 1)
                self._rows[result.name] = table.rowCount - 1, result
            row = self._rows[result.name][0]
            self._rows[result.name] = row, result
            volumes = [result.volumes_ml.get(organ.key) for organ in ORGANS]
            cells = [result.case, *("" if ml is None else f"{ml:.0f}" for ml in volumes)]
            if result.error:
                cells = [result.case, _("failed"), *[""] * (len(ORGANS) - 1)]
            for column, text in enumerate(cells):
                item = qt.QTableWidgetItem(text)
                said = [result.error] if result.error else result.warnings or [_("Volumes in mL")]
                item.setToolTip("\n".join([result.case, *said]))
                item.setData(qt.Qt.UserRole, result.name)
                table.setItem(row, column, item)


def _selection() -> list[str]:
    """UIDs of the series that are selected in the DICOM module; none where it was not opened yet."""
    browser = getattr(getattr(slicer.modules, "DICOMWidget", None), "browserWidget", None)
    return list(browser.dicomBrowser.dicomTableManager().currentSeriesSelection()) if browser is not None else []


def _selected_series() -> list[tuple[str, tuple[str, ...]]]:
    """(name, files) of the series that are selected in the DICOM module."""
    return [(uid, tuple(slicer.dicomDatabase.filesForSeries(uid))) for uid in _selection()]


def _ensure_packages() -> bool:
    """Whether the packages of the script are there; asks before it installs. Raises FlareSegmentError."""
    missing = [name for name in cohort_process.PACKAGES if importlib.util.find_spec(name) is None]
    if not missing:
        return True
    try:
        from slicer.packaging import pip_ensure
    except ModuleNotFoundError:  # Slicer before 5.11
        question = _("These Python packages will be downloaded and installed: {names}").format(names=", ".join(missing))
        if slicer.util.confirmOkCancelDisplay(question):
            slicer.util.pip_install(missing)
    else:
        # Its one RuntimeError in the main thread says that the user declined; pip's own failures are of another class.
        with contextlib.suppress(RuntimeError):
            pip_ensure(missing, requester="FlareSegment")
    importlib.invalidate_caches()
    still = [name for name in missing if importlib.util.find_spec(name) is None]
    if still:
        raise FlareSegmentError(
            _("Many CTs need Python packages that are not installed: {names}").format(names=", ".join(still))
        )
    return True
