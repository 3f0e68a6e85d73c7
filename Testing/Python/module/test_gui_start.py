"""What `flare.py gui CT` does with a file that is none, and what it leaves behind when its window is closed."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest


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
