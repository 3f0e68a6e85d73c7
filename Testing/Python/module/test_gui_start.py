"""What `flare.py gui CT` does with a file that is none, and what it leaves behind when its window is closed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time

import pytest

from FlareSegmentLib.processes import is_running


@pytest.fixture
def start_gui(repository):
    """Function that starts the embedded Slicer as `flare.py gui` does, with this code behind the panel's."""
    pytest.importorskip("slicer_core", reason="slicer-core is not installed")
    pytest.importorskip("PyQt5", reason="PyQt5 is not installed")
    specification = importlib.util.spec_from_file_location("flare_of_gui", repository / "flare.py")
    flare = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(flare)

    def start(path, code=""):
        code = flare.SHOW_PANEL + (flare.SHOW_CT.format(path=str(path)) if path else "\n") + code
        options = [*map(str, flare.module_options(repository)), "--python-code", code]
        environment = {**os.environ, "PYTHONPATH": str(repository / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
        command = [sys.executable, "-m", "slicerhost", "--no-splash", *options]
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, check=False)

    return start


def test_a_damaged_file_is_refused_as_by_segment(start_gui, tmp_path):
    file = tmp_path / "damaged.nii.gz"
    file.write_bytes(b"\x1f\x8b no CT at all")
    done = start_gui(file)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "damaged.nii.gz" in line]
    assert len(lines) == 1 and lines[0].startswith("Error: ")


def test_a_window_that_is_closed_leaves_no_words(start_gui):
    code = "import qt; qt.QTimer.singleShot(500, slicer.app._main_window.close)"
    done = start_gui(None, code)
    words = [line for line in done.stderr.splitlines() if "propagateSizeHints" not in line]  # of Qt's offscreen plugin
    assert (done.returncode, words) == (0, [])


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are told by /proc")
def test_a_window_that_is_closed_while_it_segments_leaves_no_words_and_no_process(start_gui):
    code = """
import glob, qt
from FlareSegmentSlicerLib.scene.sample_data import PHANTOM
widget = slicer.util.getModuleWidget("FlareSegment")
widget._samples.load(PHANTOM)
widget.ui.segmentButton.click()
def look():
    if widget.ui.progressBar.value > 0:
        timer.stop()
        print(*(open(file).read() for file in glob.glob("/proc/self/task/*/children")), flush=True)
        slicer.app._main_window.close()
timer = qt.QTimer()
timer.setInterval(10)
timer.connect("timeout()", look)
timer.start()
"""
    done = start_gui(None, code)
    words = [line for line in done.stderr.splitlines() if "propagateSizeHints" not in line]  # of Qt's offscreen plugin
    assert (done.returncode, words) == (0, [])
    children = done.stdout.split()
    assert children
    end = time.monotonic() + 20
    while any(is_running(int(pid)) for pid in children) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in children if is_running(int(pid))]
