"""The panel under an X server, with a real pointer: clicks go through X and Qt to the worker and back.

Skipped where Xvfb or xdotool is not installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

DRIVER = """
import subprocess, sys, time, os
sys.path[:0] = ['Testing', 'FlareSegment', 'Testing/Python/helpers']
from slicerhost import boot
app = boot(main_window=True)
window = app._main_window
window.move(0, 0)
window.show()
from slicerhost.scripted_modules import load_scripted_module
load_scripted_module('FlareSegment/FlareSegment.py')
import panel_driver, qt, slicer
from pathlib import Path
from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess
module = sys.modules['FlareSegment']
widget = slicer.util.getModuleWidget('FlareSegment')
widget.logic._worker = WorkerProcess([sys.executable, str(panel_driver.FAKE_WORKER)])
slicer.util.selectModule('FlareSegment')
panel_driver.add_ct()

def settle(condition, seconds=40):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'waited in vain'
        app.processEvents()
        time.sleep(0.01)

def click(target, place=None):
    for _ in range(20):
        app.processEvents()
        time.sleep(0.01)
    point = target.mapToGlobal(place or target.rect.center())
    subprocess.run(['xdotool', 'mousemove', str(point.x()), str(point.y()), 'click', '1'], check=True, timeout=30)

def centers():
    return [node.GetSliceToRAS().GetElement(0, 3) for node in slicer.util.getNodesByClass('vtkMRMLSliceNode')]

assert qt.QApplication.platformName() == 'xcb'
ui, logic, table = widget.ui, widget.logic, widget.ui.organTable
module.MODEL_FOLDER = Path('good')
click(ui.segmentButton)
settle(lambda: logic.isRunning)
settle(lambda: not logic.isRunning and table.rowCount == 4)
click(table.viewport(), table.visualItemRect(table.item(3, 1)).center())
settle(lambda: all(abs(center + 210) < 6 for center in centers()))
names = ui.organNames
box = names.visualRect(names.model().index(0, 0))
click(names.viewport(), qt.QPoint(box.left() + 10, box.center().y()))
display = panel_driver.segmentations()[0].GetDisplayNode()
settle(lambda: not display.GetSegmentVisibility('liver'))
module.MODEL_FOLDER = Path('slow')
click(ui.segmentButton)
settle(lambda: ui.progressBar.value > 3)
click(ui.segmentButton)
settle(lambda: not logic.isRunning)
window.grab().save(sys.argv[1])
logic.close()
print('all clicks did what they should', flush=True)
os._exit(0)
"""


@pytest.mark.slow
def test_the_panel_with_an_x_pointer(repository, screenshots):
    pytest.importorskip("slicer_core", reason="slicer-core is not installed")
    missing = [tool for tool in ("xvfb-run", "xdotool") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian packages xvfb, xauth, xdotool)")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("QT_QPA", "VTK_DEFAULT"))}
    screen = ["xvfb-run", "-a", "-s", "-screen 0 1400x900x24"]
    picture = str(screenshots / "panel_x11.png")
    done = subprocess.run(
        [*screen, sys.executable, "-c", DRIVER, picture],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "all clicks did what they should" in done.stdout, done.stdout + done.stderr
