"""The hand that clicks in Slicer, for all checks; nothing here needs more than Slicer's own Python."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import time
import unittest
from pathlib import Path

import numpy as np
import qt
import slicer

from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.phantom.torso import make_phantom

ROOT = Path(__file__).resolve().parents[3]
FAKE_WORKER = ROOT / "Testing" / "Python" / "helpers" / "fake_worker.py"
COARSE_MM = 6.0
ORGAN_MARK = 1000
"""The worker without networks takes voxels of this many HU and more for organs: 1000 + label."""


def output_folder() -> Path:
    """Folder for what a check writes; the pictures in it are for people to look at."""
    folder = Path(os.environ["FLARE_CHECK_OUTPUT"])
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def process_events(seconds: float = 0.0) -> None:
    """Let the application work for a while."""
    end = time.monotonic() + seconds
    while True:
        slicer.app.processEvents()
        if time.monotonic() >= end:
            return
        time.sleep(0.005)


def open_module(name: str):
    """Open a module's panel as the module menu does; returns its Python object."""
    slicer.util.mainWindow().resize(1400, 1000)
    slicer.util.selectModule(name)
    process_events(0.1)
    return slicer.util.getModuleWidget(name)


def take_picture(name: str) -> None:
    """Leave a picture of the whole window."""
    process_events(0.2)
    slicer.util.mainWindow().grab().save(str(output_folder() / f"{name}.png"))


@functools.cache
def coarse_phantom(seed: int):
    """The phantom of a seed, (volume, labels): made once."""
    return make_phantom(seed, (COARSE_MM,) * 3)


def add_ct(name: str = "CT", organs_marked: bool = True, seed: int = 0):
    """The phantom as a volume node, coarse; its organs have the HU that the worker without networks looks for."""
    volume, labels = coarse_phantom(seed)
    array = np.where(labels > 0, ORGAN_MARK + labels.astype(np.int16), volume.array) if organs_marked else volume.array
    node = slicer.util.addVolumeFromArray(array.astype(np.int16), ijkToRAS=volume.affine_ras, name=name)
    node.CreateDefaultDisplayNodes()
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node


def segmentations() -> list:
    """The scene's segmentation nodes."""
    return slicer.util.getNodesByClass("vtkMRMLSegmentationNode")


def segment_names(node) -> list[str]:
    """Names of a segmentation's segments."""
    segmentation = node.GetSegmentation()
    return [segmentation.GetNthSegment(index).GetName() for index in range(segmentation.GetNumberOfSegments())]


def voxels(node, name: str, ct) -> int:
    """Voxels of a segment on the CT's grid."""
    segment_id = node.GetSegmentation().GetSegmentIdBySegmentName(name)
    return int((slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, ct) > 0).sum())


class Answers:
    """File dialogs that are answered at once, in a module that asks through its name `qt`."""

    def __init__(self, module, answer: Path) -> None:
        self._module, self._answer = module, str(answer)

    def __enter__(self):
        self._module.qt = self
        return self

    def __exit__(self, *reason):
        self._module.qt = qt

    def __getattr__(self, name):
        return getattr(qt, name)

    @property
    def QFileDialog(self):
        return self

    def getSaveFileName(self, *arguments):
        return self._answer

    getExistingDirectory = getSaveFileName


class PanelCheck(unittest.TestCase):
    """A check with FlareSegment's panel open, an empty scene, and a worker without networks behind it."""

    networks = False

    def setUp(self):
        slicer.mrmlScene.Clear(False)
        qt.QSettings().remove("FlareSegment")
        self.questions, self.answer = [], True
        slicer.util.confirmOkCancelDisplay = self._ask
        self.attach(open_module("FlareSegment"))

    def attach(self, widget):
        """Take a (reloaded) panel."""
        self.widget, self.ui = widget, widget.ui
        if not self.networks:
            from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

            widget.logic.close()
            widget.logic._worker = WorkerProcess([sys.executable, str(FAKE_WORKER)])
            self.use("good")
        process_events()

    def tearDown(self):
        widget = slicer.util.getModuleWidget("FlareSegment")
        if widget.logic.isRunning:
            widget.ui.segmentButton.click()
            self.until(lambda: not widget.logic.isRunning)
        widget.logic.close()
        slicer.mrmlScene.Clear(False)
        process_events()

    def _ask(self, text, *arguments, **options):
        self.questions.append(text)
        return self.answer

    def use(self, kind):
        """What the worker without networks shall do, said by its model's name: see fake_worker.py."""
        folder = output_folder() / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        for file in (bundled_model_folder() / "model.json", bundled_model_folder() / "MODEL_CARD.md"):
            shutil.copy(file, folder)
        sys.modules["FlareSegment"].MODEL_FOLDER = folder

    def click(self, button):
        self.assertTrue(button.enabled, f"{button.objectName} is not enabled: {self.ui.hintLabel.text}")
        button.click()
        process_events()

    def press(self, widget, key):
        """Press and release a key as the keyboard does."""
        for kind in (qt.QEvent.KeyPress, qt.QEvent.KeyRelease):
            qt.QApplication.sendEvent(widget, qt.QKeyEvent(kind, key, qt.Qt.NoModifier))
        process_events()

    def until(self, condition, seconds=120.0):
        end = time.monotonic() + seconds
        while not condition():
            self.assertLess(time.monotonic(), end, f"waited in vain; the panel says: {self.message!r}")
            process_events(0.01)

    def segment(self):
        """Click Segment and wait for the end."""
        self.click(self.ui.segmentButton)
        self.until(lambda: not self.widget.logic.isRunning)
        process_events(0.1)

    def start(self, kind="slow"):
        """Click Segment and wait until the worker is at it."""
        self.use(kind)
        self.click(self.ui.segmentButton)
        self.until(lambda: self.ui.progressBar.value > 0)

    @property
    def message(self):
        return self.ui.messageLabel.text.replace("\u200b", "") if self.ui.messageLabel.visible else ""

    @property
    def output(self):
        return self.ui.outputSelector.currentNode()

    def assert_all_organs(self, node):
        self.assertEqual(segment_names(node), [organ.name for organ in ORGANS])


def choose(combo, data) -> None:
    """Choose an entry of a combo box by its data."""
    combo.setCurrentIndex(combo.findData(data))
    process_events()
