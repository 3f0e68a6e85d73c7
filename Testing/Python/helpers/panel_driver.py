"""The hand that clicks in FlareSegment's panel, shared by the tests of the panel."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from FlareSegmentLib.organs import ORGANS

FAKE_WORKER = Path(__file__).with_name("fake_worker.py")


class Panel:
    """The opened panel, and a hand that clicks in it."""

    def __init__(self, app, module, widget):
        self.app, self.module, self.widget, self.ui, self.logic = app, module, widget, widget.ui, widget.logic

    def click(self, button):
        import qt
        from PyQt5.QtTest import QTest

        self.app.processEvents()
        self.app.processEvents()  # a section that has just been opened lays out what is in it, and then that
        place = qt.QPoint(8, button.height // 2) if isinstance(button, qt.QCheckBox) else button.rect.center()
        QTest.mouseClick(button, qt.Qt.LeftButton, pos=place)
        self.app.processEvents()

    def until(self, condition, seconds=30.0, pause=0.005):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"waited in vain; the panel says: {self.message!r}"
            self.app.processEvents()
            time.sleep(pause)

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
    def warning(self):
        return self.ui.warningLabel.text.replace("\u200b", "") if self.ui.warningLabel.visible else ""

    def name_rect(self, row):
        """Where the name of an organ stands, in the viewport of `ui.organNames`."""
        return self.ui.organNames.visualRect(self.ui.organNames.model().index(row, 0))

    @property
    def minimum_width(self):
        """The width below which Slicer's module panel cannot be drawn: it gives a module the width that its layout
        would like to have.
        """
        import slicer

        hints = slicer.app.moduleManager().module("FlareSegment").widgetRepresentation().layout()
        return max(hints.totalSizeHint().width(), hints.totalMinimumSize().width())

    @property
    def table(self):
        """What names and table show, without the titles."""
        table = self.ui.organTable
        columns = [column for column in range(table.columnCount) if column == 0 or not table.isColumnHidden(column)]
        return [[table.item(row, column).text() for column in columns] for row in range(table.rowCount)]


def process_id(worker):
    """The operating system's number of a `WorkerProcess`'s process, 0 while there is none."""
    return 0 if worker._process is None else worker._process.processId()


def segmentations():
    """The scene's segmentation nodes."""
    import slicer

    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


@pytest.fixture
def panel(slicer_app, load_module, repository, monkeypatch):
    """The opened panel with a worker without networks behind it, and none of an earlier test's settings."""
    import qt
    import slicer

    from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

    qt.QSettings().remove("FlareSegment")
    load_module(repository / "FlareSegment" / "FlareSegment.py")
    module = sys.modules["FlareSegment"]
    monkeypatch.setattr(module, "MODEL_FOLDER", Path("good"))
    widget = slicer.util.getModuleWidget("FlareSegment")
    widget.logic.close()
    monkeypatch.setattr(widget.logic, "_worker", WorkerProcess([sys.executable, str(FAKE_WORKER)]))
    slicer.util.selectModule("FlareSegment")
    slicer_app.processEvents()
    opened = Panel(slicer_app, module, widget)
    yield opened
    widget = slicer.util.getModuleWidget("FlareSegment")
    widget.logic.close()
    widget._showMessage("")


def add_ct(name="CT of the abdomen", shape=(40, 50, 60)):
    """A volume in which 1000 HU and more stand for the organ that the worker without networks shall find."""
    import slicer

    z, y, x = np.indices(shape)
    array = np.where((z - 20) ** 2 + (y - 25) ** 2 + (x - 30) ** 2 < 400, 40, -1000).astype(np.int16)
    for organ, (cz, cy, cx, radius) in zip(
        ORGANS, ((24, 20, 20, 9), (12, 32, 22, 5), (13, 32, 38, 5), (26, 28, 42, 5)), strict=True
    ):
        array[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < radius**2] = 1000 + organ.label
    matrix = np.diag([-5.0, -5.0, 5.0, 1.0])
    node = slicer.util.addVolumeFromArray(array, ijkToRAS=matrix, name=name)
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(2400, 200)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node
