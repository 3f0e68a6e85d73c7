"""Several segmentations one after another, as one piece of work with one progress and one end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import slicer
from slicer.i18n import tr as _

from FlareSegmentSlicerLib.logic.segmentation_run import Callbacks


@dataclass(frozen=True)
class QueueItem:
    """A segmentation to come: what the user calls it, and the function that starts it."""

    name: str
    start: Callable[[Callbacks], None]


class VolumeQueue:
    """Runs its items in order. One that fails does not stop the others; cancelling stops them all.

    Finished results stay in the scene. callbacks: onFinished is given the last result, after all have ended; if none
    succeeded, onError is called with the reasons instead.
    """

    def __init__(self, items: Sequence[QueueItem], callbacks: Callbacks) -> None:
        self._items = list(items)
        self._callbacks = callbacks
        self._position = 0
        self._starting = False
        self._done: list[slicer.vtkMRMLSegmentationNode] = []
        self.failures: list[str] = []

    def start(self) -> None:
        """Start the first item."""
        self._go_on()

    def _go_on(self) -> None:
        """Start items until one runs. Those that end before their start returns come back here: they must not nest."""
        if self._starting:
            return
        self._starting = True
        try:
            position = None
            while position != self._position < len(self._items):
                position = self._position
                self._start(self._items[position])
        finally:
            self._starting = False
        if self._position == len(self._items):
            if self._done:
                self._callbacks.onFinished(self._done[-1])
            else:
                self._callbacks.onError("\n".join(self.failures) or _("There is nothing to segment."))

    def _start(self, item: QueueItem) -> None:
        item.start(
            Callbacks(
                onProgress=self._on_progress,
                onFinished=self._on_finished,
                onError=lambda message: self._on_error(item.name, message),
                onCancelled=self._on_cancelled,
            )
        )

    def _on_progress(self, fraction: float, stage: str) -> None:
        count = len(self._items)
        text = _("{number} of {count}: {stage}").format(number=self._position + 1, count=count, stage=stage)
        self._callbacks.onProgress((self._position + fraction) / count, text)

    def _on_finished(self, segmentationNode: slicer.vtkMRMLSegmentationNode) -> None:
        self._done.append(segmentationNode)
        self._position += 1
        self._go_on()

    def _on_error(self, name: str, message: str) -> None:
        self.failures.append(message if name in message else f"{name}: {message}")
        self._position += 1
        self._go_on()

    def _on_cancelled(self, reason: str) -> None:
        if self._done:
            reason = _("Cancelled after {done} of {count}; what was done is kept.").format(
                done=len(self._done), count=len(self._items)
            )
        self._callbacks.onCancelled(reason)
