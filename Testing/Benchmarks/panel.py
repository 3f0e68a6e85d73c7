"""What the panel adds to the engine's own time: `python3 flare.py bench panel`.

In the embedded Slicer, with the bundled model and a CT of 512x512x200 voxels, 0.8 x 0.8 x 2.5 mm: a click on Segment
with a cold worker (torch is not loaded yet), then warm ones, without and with 3D surfaces. What is counted: from the
click until the segmentation node is there; the engine's own time is what the worker reports for checking, networks and
cleaning. Shown in 3D: from the click until the 3D view was drawn with all four organs, less the same without 3D.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from measuring import RUNS, Row, ct, matrix_gflops, report, tell, told

ROOT = Path(__file__).resolve().parents[2]
ENGINE_STEPS = ("preprocess", "network", "postprocess")


def import_seconds() -> float:
    """Seconds that a new Python needs to load torch, the median of three."""
    command = [sys.executable, "-c", "import torch"]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


class Click:
    """The opened panel with a CT, and a hand that clicks on Segment."""

    def __init__(self) -> None:
        import slicer

        from slicerhost import boot
        from slicerhost.scripted_modules import load_scripted_module

        self.app = boot(main_window=True, testing=True)
        self.app._main_window.show()
        load_scripted_module(ROOT / "FlareSegment" / "FlareSegment.py")
        slicer.util.selectModule("FlareSegment")
        self.widget = slicer.util.getModuleWidget("FlareSegment")
        volume, _ = ct(200, 2.5)
        node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name="CT")
        slicer.util.setSliceViewerLayers(background=node, fit=True)
        self.widget.ui.inputSelector.setCurrentNode(node)
        self.app.processEvents()

    def __call__(self, then: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Seconds until the result is there and `then` was done, and the engine's own."""
        import json

        import slicer

        logic = self.widget.logic
        start = time.perf_counter()
        self.widget.ui.segmentButton.click()
        while logic.isRunning:
            self.app.processEvents()
            time.sleep(0.002)  # an idle window leaves the cores to the worker
        then()
        seconds = time.perf_counter() - start
        result = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
        reported = json.loads(result.GetAttribute("FlareSegment.Seconds"))
        return seconds, sum(reported[step] for step in ENGINE_STEPS)

    def draw(self) -> None:
        """Let the 3D view be drawn."""
        import slicer

        slicer.app.layoutManager().threeDWidget(0).threeDView().forceRender()

    def close(self) -> None:
        self.widget.logic.close()


def main() -> None:
    """Measure, print and write the table."""
    tell("importing torch, three times")
    loading = import_seconds()
    tell("opening the panel with a CT of 512x512x200 voxels")
    click = Click()
    show_3d = click.widget.ui.autoShow3DCheckBox
    try:
        show_3d.setChecked(False)
        click.widget.logic.close()  # opening the panel has warmed a worker up
        tell("first click, with a cold worker")
        cold, _ = click()
        plain = [click() for _ in told(RUNS + 1, "click without 3D")][1:]
        show_3d.setChecked(True)
        shown = [click(click.draw) for _ in told(RUNS + 1, "click with 3D")][1:]
    finally:
        click.close()
    warm = statistics.median(seconds for seconds, _ in plain)
    overhead = statistics.median(seconds - own for seconds, own in plain)
    rows = [
        Row("engine's own time", "s", [own for _, own in plain]),
        Row("click to segmentation node, warm", "s", [seconds for seconds, _ in plain]),
        Row("panel's overhead", "s", [seconds - own for seconds, own in plain], at_most=0.3),
        Row("torch's import in a new process", "s", [loading]),
        Row("first click, cold worker", "s", [cold], at_most=round(2 * warm + loading, 2)),
        Row("3D surfaces made and shown", "s", [seconds - own - overhead for seconds, own in shown], at_most=0.5),
    ]
    report("panel", rows, [f"Matrix product: {matrix_gflops():.0f} GFLOP/s"])


if __name__ == "__main__":
    main()
