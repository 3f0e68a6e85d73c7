"""The panel's progress bar: the worker's own stages, and how long it will still take."""

from __future__ import annotations

import time

import qt

from FlareSegmentSlicerLib.panel.running_times import RunningTimes, remaining_seconds, remaining_text


class ProgressDisplay:
    """Shows a fraction, a stage and the time left; learns from every run that ends well."""

    def __init__(self, progressBar: qt.QProgressBar) -> None:
        self._bar = progressBar
        self._times = RunningTimes()
        self._started = 0.0
        self._kind = ""
        self._megavoxels = 0.0
        self._expected: float | None = None

    def start(self) -> None:
        """Something begins of which nothing is known yet."""
        self._started, self._kind, self._expected = time.monotonic(), "", None
        self.show(0.0, "")

    def expect(self, model: str, device: str, megavoxels: float) -> None:
        """What was started last: runs of the same model, device and size tell how long it will take."""
        self._kind, self._megavoxels = f"{model} on {device}", megavoxels
        self._expected = self._times.expected(self._kind, megavoxels)

    def show(self, fraction: float, stage: str) -> None:
        """How far it is, 0 to 1, and what is being done."""
        left = remaining_text(remaining_seconds(fraction, time.monotonic() - self._started, self._expected))
        self._bar.value = round(100 * fraction)
        self._bar.format = f"{stage}  %p%" + (f", {left}" if left else "")

    def finish(self, learn: bool = False) -> None:
        """It is over. learn: it ended well, and its time tells something about the next one."""
        if learn and self._kind:
            self._times.learn(self._kind, self._megavoxels, time.monotonic() - self._started)
        self._kind = ""
