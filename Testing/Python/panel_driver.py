"""The hand that clicks in FlareSegment's panel, shared by the tests of the panel."""

from __future__ import annotations

import time
from pathlib import Path


class Panel:
    """The opened panel, and a hand that clicks in it."""

    def __init__(self, app, module, widget):
        self.app, self.module, self.widget, self.ui, self.logic = app, module, widget, widget.ui, widget.logic

    def click(self, button):
        import qt
        from PyQt5.QtTest import QTest

        QTest.mouseClick(button, qt.Qt.LeftButton)
        self.app.processEvents()

    def until(self, condition, seconds=10.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain; the panel says: {self.message!r}"
            self.app.processEvents()
            time.sleep(0.005)

    def run(self, kind="good"):
        """Click Segment and wait for the end."""
        self.use(kind)
        self.click(self.ui.segmentButton)
        self.until(lambda: not self.logic.isRunning)

    def start(self, kind="slow"):
        """Click Segment and wait until the worker is at it."""
        self.use(kind)
        self.click(self.ui.segmentButton)
        self.until(lambda: self.ui.progressBar.value > 0)

    def use(self, kind):
        self.module.MODEL_FOLDER = Path(kind)

    def grab(self, path):
        self.app.processEvents()
        assert self.app._main_window.grab().save(str(path))

    @property
    def message(self):
        return self.ui.messageLabel.text.replace("\u200b", "") if self.ui.messageLabel.visible else ""

    @property
    def table(self):
        """What the table shows, without its titles."""
        table = self.ui.organTable
        columns = [column for column in range(table.columnCount) if not table.isColumnHidden(column)]
        return [[table.item(row, column).text() for column in columns] for row in range(table.rowCount)]


def segmentations():
    """The scene's segmentation nodes."""
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")
