"""The worker process: keeps torch and the model warm, segments one CT after another, may die without harming Slicer.

Whoever starts the process calls `main` and may give it a way to make surfaces. What is said over stdin and stdout is
written down in ``protocol.py``.

Two threads: one reads requests, so that ``cancel`` is heard while the other one computes. The process ends by itself
when its stdin closes or its parent is gone, also in the middle of a segmentation: nothing but the label file of the
request is ever written.
"""

from __future__ import annotations

import ctypes
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from FlareSegmentLib.errors import Cancelled, FlareSegmentError, ModelError
from FlareSegmentLib.processes import set_priority
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import (
    PROGRESS_INTERVAL_SECONDS,
    PROTOCOL_VERSION,
    AnyRequest,
    Compared,
    CompareRequest,
    Event,
    Failure,
    Progress,
    ProtocolError,
    Ready,
    Request,
    Result,
    SegmentRequest,
    Stopped,
    decode_request,
    encode_event,
)

if TYPE_CHECKING:
    from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter

_PARENT_CHECK_SECONDS = 1.0
_TRACE_LINES = 12
_SURFACES_SHARE = 0.08


class Worker:
    """Answers requests from one stream with events on another until the stream ends or ``shutdown`` comes.

    Args:
        requests: lines of JSON in.
        events: lines of JSON out.
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
        self._waiting: queue.Queue[AnyRequest] = queue.Queue()
        self._cancelled: set[int] = set()
        self._segmenter: Segmenter | None = None
        self._loaded: tuple[str, str, int | None] | None = None

    def run(self) -> None:
        """Serve until ``shutdown``; when the stream of requests ends, the process ends at once."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            request = self._waiting.get()
            if request.command == "shutdown":
                return
            self._answer(request)
            self._cancelled.discard(request.id)

    def _read(self) -> None:
        for line in self._requests:
            if not line.strip():
                continue
            try:
                request = decode_request(line)
            except ProtocolError as error:
                self._send(Failure(None, "internal", f"The worker did not understand a request: {error}"))
                continue
            if isinstance(request, Request) and request.command == "cancel":
                if request.target is not None:
                    self._cancelled.add(request.target)
            else:
                self._waiting.put(request)
        if self._waiting.empty() or self._waiting.queue[-1].command != "shutdown":
            os._exit(0)

    def _send(self, event: Event) -> None:
        with self._sending:
            try:
                self._events.write(encode_event(event))
                self._events.flush()
            except OSError:  # nobody listens any more
                os._exit(0)

    def _answer(self, request: AnyRequest) -> None:
        try:
            if isinstance(request, SegmentRequest):
                self._send(self._segment(request))
            elif isinstance(request, CompareRequest):
                self._send(self._compare(request))
            else:
                self._send(self._hello(request))
        except Cancelled:
            self._send(Stopped(request.id))
        except FlareSegmentError as error:
            self._send(Failure(request.id, "model" if isinstance(error, ModelError) else "input", str(error)))
        except MemoryError:
            message = "There is not enough memory for this CT: close other programs, or crop the CT."
            self._send(Failure(request.id, "memory", message, _trace()))
        except Exception as error:  # noqa: BLE001 - whatever it is, the client must hear of it
            reason = str(error).strip().splitlines()
            message = f"The segmentation failed: {reason[0] if reason else type(error).__name__}"
            self._send(Failure(request.id, "internal", message, _trace()))

    def _hello(self, request: Request) -> Ready | Failure:
        try:
            import torch
        except Exception as error:  # noqa: BLE001 - not there, or a library of it cannot be loaded: whatever it raises
            reason = str(error).strip().splitlines()
            return Failure(request.id, "torch", reason[0] if reason else type(error).__name__, _trace())
        from FlareSegmentLib.inference.compute_devices import compute_devices

        name = None
        device = request.device
        if request.model is not None:
            segmenter = self._segmenter_for(request.model, request.device, request.threads)
            device, name = segmenter.device, segmenter.name
        threads = request.threads or torch.get_num_threads()
        version = torch.__version__
        devices = compute_devices()
        return Ready(request.id, PROTOCOL_VERSION, os.getpid(), version, device, threads, name, devices, self._niceness)

    def _segment(self, request: SegmentRequest) -> Result:
        from FlareSegmentLib.measures.organ_statistics import bounding_box, organ_statistics

        start = time.perf_counter()
        sent = 0.0

        def cancelled() -> bool:
            return request.id in self._cancelled

        def progress(fraction: float, stage: str) -> None:
            nonlocal sent
            now = time.perf_counter()
            if now - sent >= PROGRESS_INTERVAL_SECONDS:
                sent = now
                self._send(Progress(request.id, share * fraction, stage))

        if cancelled():
            raise Cancelled
        share = 1.0 if request.surfaces is None else 1.0 - _SURFACES_SHARE
        volume = request.map_volume()
        self._send(Progress(request.id, 0.0, "Loading the model" if self._segmenter is None else "Checking the CT"))
        segmenter = self._segmenter_for(request.model, request.device, request.threads)
        found = segmenter.segment(volume, progress, cancelled, request.organs, request.region)
        box = bounding_box(found.labels)
        region = request.region or tuple(slice(0, n) for n in found.labels.shape)
        organs = offset(organ_statistics(volume.part(region), found.labels[region], found.organs), region)
        if cancelled():
            raise Cancelled
        surfaces = self._write_surfaces(request, volume, found, cancelled)
        sides = request.labels.write_box(found.labels, box)
        seconds = found.seconds | {"total": time.perf_counter() - start}
        device = request.device if found.device == "cuda" and request.device != "auto" else found.device
        return Result(request.id, seconds, found.warnings, device, found.model, organs, sides, surfaces)

    def _write_surfaces(
        self, request: SegmentRequest, volume: Volume, found: Segmentation, cancelled: Callable[[], bool]
    ) -> bool:
        """Write the surfaces that were asked for; without VTK, or without room, there are none."""
        if request.surfaces is None or self._surface_writer is None:
            return False

        def tick(fraction: float) -> None:
            if cancelled():
                raise Cancelled
            self._send(Progress(request.id, 1 - _SURFACES_SHARE * (1 - fraction), "Making the 3D surfaces"))

        values = {organ.key: organ.label for organ in found.organs}
        try:
            self._surface_writer(
                request.surfaces, found.labels, found.boxes, values, volume.affine_ras, request.smoothing, tick
            )
        except ImportError:
            return False
        except OSError:  # no room: Slicer makes them itself
            os.truncate(request.surfaces, 0)
            return False
        return True

    def _compare(self, request: CompareRequest) -> Compared:
        from FlareSegmentLib.measures.metrics import evaluate
        from FlareSegmentLib.measures.organ_statistics import bounding_box
        from FlareSegmentLib.organs import organ_by_key

        if request.id in self._cancelled:
            raise Cancelled
        labels, reference = request.labels.map(), request.reference.map()
        organs = [organ_by_key(key) for key in request.organs]
        scores = evaluate(labels, reference, request.spacing, organs)
        difference = np.zeros(labels.shape, np.uint8)
        difference[(reference > 0) & (labels == 0)] = 1
        difference[(reference == 0) & (labels > 0)] = 2
        difference[(reference > 0) & (labels > 0) & (reference != labels)] = 3
        return Compared(request.id, scores, request.difference.write_box(difference, bounding_box(difference)))

    def _segmenter_for(self, model: str, device: str, threads: int | None) -> Segmenter:
        if self._segmenter is None or self._loaded != (model, device, threads):
            from FlareSegmentLib.inference.compute_devices import use_device
            from FlareSegmentLib.inference.pipeline import Segmenter
            from FlareSegmentLib.model.model_file import load_model

            self._segmenter = None  # two models need not fit into memory at once
            self._segmenter = Segmenter(load_model(model), use_device(device), threads)
            self._loaded = (model, device, threads)
        return self._segmenter


def offset(organs: dict[str, dict[str, Any]], region: tuple[slice, ...]) -> dict[str, dict[str, Any]]:
    """Statistics of a part of the volume with centers in indices of the whole one."""
    for facts in organs.values():
        if facts["center"] is not None:
            facts["center"] = [value + extent.start for value, extent in zip(facts["center"], reversed(region))]
    return organs


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
    os._exit(0)  # a normal end would wait for the reading thread, which waits for stdin
