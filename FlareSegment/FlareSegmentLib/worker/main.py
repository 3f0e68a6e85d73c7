"""The worker process: keeps torch and the model warm, segments one CT after another, may die without harming Slicer.

Whoever starts the process calls `main` and may give it a way to make surfaces. Two threads: one reads requests, so that
`Cancel` is heard while the other one computes. The process ends by itself when its stdin closes or its parent is gone,
also in the middle of a segmentation: nothing but the files of the request is ever written.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from FlareSegmentLib import errors
from FlareSegmentLib.processes import set_priority
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import (
    Box,
    Cancel,
    Cancelled,
    Compare,
    Compared,
    Event,
    Failure,
    Hello,
    Progress,
    ProtocolError,
    Ready,
    Request,
    Result,
    Segment,
    decode_request,
    encode,
)

if TYPE_CHECKING:
    from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter

_PARENT_CHECK_SECONDS = 1.0
_PROGRESS_SECONDS = 0.05
_TRACE_LINES = 12
_SURFACES_SHARE = 0.08


class Worker:
    """Answers requests from one stream with events on another; when the requests end, the process ends at once.

    Args:
        write_surfaces: writes the organs' surfaces into a file (path, labels (z, y, x), boxes, label values, 4x4 matrix
            to RAS in mm, smoothing 0 ... 1, tick); raises ImportError where there is no VTK. None: no surfaces.
        niceness: of this process, as `processes.set_priority` returned it.
    """

    def __init__(
        self,
        requests: BinaryIO,
        events: BinaryIO,
        write_surfaces: Callable[..., None] | None = None,
        niceness: int = 0,
    ) -> None:
        self._requests, self._events = requests, events
        self._niceness = niceness
        self._surface_writer = write_surfaces
        self._sending = threading.Lock()
        self._waiting: queue.Queue[Request] = queue.Queue()
        self._cancelled: set[int] = set()
        self._segmenter: Segmenter | None = None
        self._loaded: tuple[Any, ...] = ()

    def run(self) -> None:
        """Serve until the process ends."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            request = self._waiting.get()
            self._answer(request)
            self._cancelled.discard(request.id)

    def _read(self) -> None:
        for line in filter(bytes.strip, self._requests):
            try:
                request = decode_request(line)
            except ProtocolError as error:
                self._send(Failure(None, "internal", f"The worker did not understand a request: {error}"))
                continue
            if isinstance(request, Cancel):
                self._cancelled.add(request.id)
            else:
                self._waiting.put(request)
        os._exit(0)

    def _send(self, event: Event) -> None:
        with self._sending:
            try:
                self._events.write(encode(event))
                self._events.flush()
            except OSError:  # nobody listens any more
                os._exit(0)

    def _answer(self, request: Request) -> None:
        try:
            if isinstance(request, Segment):
                self._send(self._segment(request))
            elif isinstance(request, Compare):
                self._send(self._compare(request))
            elif isinstance(request, Hello):
                self._send(self._hello(request))
        except errors.Cancelled:
            self._send(Cancelled(request.id))
        except errors.FlareSegmentError as error:
            self._send(Failure(request.id, "model" if isinstance(error, errors.ModelError) else "input", str(error)))
        except MemoryError:
            message = "There is not enough memory for this CT: close other programs, or crop the CT."
            self._send(Failure(request.id, "memory", message, _trace()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            message = f"The segmentation failed: {_first_line(error)}"
            self._send(Failure(request.id, "internal", message, _trace()))

    def _hello(self, hello: Hello) -> Ready | Failure:
        try:
            import torch  # noqa: F401
        except Exception as error:  # noqa: BLE001 - not there, or a library of it cannot be loaded: whatever it raises
            return Failure(hello.id, "torch", _first_line(error), _trace())
        from FlareSegmentLib.inference.compute_devices import compute_devices

        if hello.request is not None:
            self._segmenter_for(hello.request)
        return Ready(hello.id, os.getpid(), compute_devices(), self._niceness)

    def _segment(self, message: Segment) -> Result:
        from FlareSegmentLib.measures.organ_statistics import bounding_box, organ_statistics

        start = time.perf_counter()
        sent = 0.0
        request = message.request
        share = 1.0 if request.smoothing is None else 1.0 - _SURFACES_SHARE

        def cancelled() -> bool:
            return message.id in self._cancelled

        def progress(fraction: float, stage: str) -> None:
            nonlocal sent
            now = time.perf_counter()
            if now - sent >= _PROGRESS_SECONDS:
                sent = now
                self._send(Progress(message.id, share * fraction, stage))

        if cancelled():
            raise errors.Cancelled
        volume = message.volume.map()
        self._send(Progress(message.id, 0.0, "Loading the model" if self._segmenter is None else "Checking the CT"))
        found = self._segmenter_for(request).segment(volume, request, progress, cancelled)
        region = request.region or tuple(slice(0, n) for n in found.labels.shape)
        organs = offset(organ_statistics(volume.part(region), found.labels[region], found.organs), region)
        if cancelled():
            raise errors.Cancelled
        surfaces = self._write_surfaces(message, volume, found, cancelled)
        box = bounding_box(found.labels)
        message.labels.write_box(found.labels, box)
        places = [asdict(place) for place in found.places] if request.review else None
        confidence_box = self._write_confidence(message, found)
        seconds = found.seconds | {"total": time.perf_counter() - start}
        return Result(
            message.id,
            seconds,
            found.warnings,
            found.device,
            found.model,
            organs,
            box,
            surfaces,
            places,
            confidence_box,
        )

    def _write_confidence(self, message: Segment, found: Segmentation) -> Box | None:
        """Write the confidence if it was asked for, and say where it lies; without room there is none."""
        if message.confidence is None or found.confidence is None:
            return None
        try:
            Path(message.confidence).write_bytes(zlib.compress(np.ascontiguousarray(found.confidence.array), 1))
        except OSError:
            os.truncate(message.confidence, 0)
            return None
        z, y, x = found.confidence.box
        return z, y, x

    def _write_surfaces(
        self, message: Segment, volume: Volume, found: Segmentation, cancelled: Callable[[], bool]
    ) -> bool:
        """Write the surfaces that were asked for; without VTK, or without room, there are none."""
        if message.surfaces is None or self._surface_writer is None:
            return False

        def tick(fraction: float) -> None:
            if cancelled():
                raise errors.Cancelled
            self._send(Progress(message.id, 1 - _SURFACES_SHARE * (1 - fraction), "Making the 3D surfaces"))

        values = {organ.key: organ.label for organ in found.organs}
        smoothing = message.request.smoothing
        try:
            self._surface_writer(
                message.surfaces, found.labels, found.boxes, values, volume.affine_ras, smoothing, tick
            )
        except ImportError:
            return False
        except OSError:  # no room: Slicer makes them itself
            os.truncate(message.surfaces, 0)
            return False
        return True

    def _compare(self, request: Compare) -> Compared:
        from FlareSegmentLib.measures.metrics import evaluate
        from FlareSegmentLib.measures.organ_statistics import bounding_box
        from FlareSegmentLib.organs import organ_by_key

        if request.id in self._cancelled:
            raise errors.Cancelled
        labels, reference = request.labels.map(), request.reference.map()
        organs = [organ_by_key(key) for key in request.organs]
        scores = evaluate(labels, reference, request.spacing, organs)
        difference = np.zeros(labels.shape, np.uint8)
        difference[(reference > 0) & (labels == 0)] = 1
        difference[(reference == 0) & (labels > 0)] = 2
        difference[(reference > 0) & (labels > 0) & (reference != labels)] = 3
        box = bounding_box(difference)
        request.difference.write_box(difference, box)
        return Compared(request.id, scores, box)

    def _segmenter_for(self, request: SegmentationRequest) -> Segmenter:
        wanted = request.model, request.device, request.threads
        if self._segmenter is None or self._loaded != wanted:
            from FlareSegmentLib.inference.pipeline import Segmenter

            self._segmenter = None  # two models need not fit into memory at once
            self._segmenter = Segmenter.of(request)
            self._loaded = wanted
        return self._segmenter


def offset(organs: dict[str, dict[str, Any]], region: tuple[slice, ...]) -> dict[str, dict[str, Any]]:
    """Statistics of a part of the volume with centers in indices of the whole one."""
    for facts in organs.values():
        if facts["center"] is not None:
            facts["center"] = [value + extent.start for value, extent in zip(facts["center"], reversed(region))]
    return organs


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _trace() -> str:
    return "\n".join(traceback.format_exc().splitlines()[-_TRACE_LINES:])


def _keep_stdout_for_events() -> BinaryIO:
    """The stream for events; whatever else is printed from now on, by C code too, goes to stderr."""
    sys.stdout.flush()
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    return events


def keep_freed_memory() -> None:
    """Stop glibc from giving large blocks back to the kernel and taking them again at every layer.

    ``mallopt`` changes the whole process, so it is done only here. M_MMAP_MAX is -4 and M_TRIM_THRESHOLD -1 in
    malloc.h.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):  # another C library
            return
        mallopt(-4, 0)
        mallopt(-1, 2**31 - 1)


def _end_with_parent() -> None:
    """On POSIX an orphan gets another parent; its stdin may stay open in a process that inherited the other end."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(0)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def main(write_surfaces: Callable[..., None] | None = None, background: bool = False) -> None:
    """Serve stdin and stdout; `write_surfaces` as in `Worker`. background: let other programs go first."""
    events = _keep_stdout_for_events()
    niceness = set_priority(background)
    keep_freed_memory()
    _end_with_parent()
    Worker(sys.stdin.buffer, events, write_surfaces, niceness).run()
