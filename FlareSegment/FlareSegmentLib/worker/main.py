"""The worker process: keeps torch and the model warm, segments one CT after another, may die without harming Slicer.

Two threads: one reads requests, so that `Cancel` is heard while the other one computes. The process ends by itself when
its stdin closes or its parent is gone, also in the middle of a segmentation: nothing but files in the request's folders
is ever written.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, BinaryIO

from FlareSegmentLib.errors import Cancelled, FlareSegmentError
from FlareSegmentLib.processes import keep_freed_memory, set_priority
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker import protocol
from FlareSegmentLib.worker.protocol import Compare, Event, Failure, Hello, Progress, Segment
from FlareSegmentLib.worker.shared_files import SharedBox, finish, map_array, write_array, write_file

if TYPE_CHECKING:
    from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter

_PARENT_CHECK_SECONDS = 1.0
_PROGRESS_SECONDS = 0.05
_TRACE_CALLS = -6
_SURFACES_SHARE = 0.08


class Worker:
    """Answers requests from one stream with events on another; when the requests end, the process ends at once.

    Args:
        make_surfaces: the organs' surfaces as a file's bytes, of (labels (z, y, x), boxes, label values, 4x4 matrix to
            RAS in mm, smoothing 0 ... 1, tick); raises ImportError where there is no VTK.
        niceness: of this process, as `processes.set_priority` returned it.
    """

    def __init__(
        self, requests: BinaryIO, events: BinaryIO, make_surfaces: Callable[..., bytes], niceness: int = 0
    ) -> None:
        self._requests, self._events = requests, events
        self._make_surfaces = make_surfaces
        self._niceness = niceness
        self._sending = threading.Lock()
        self._waiting: queue.Queue[Hello | Segment | Compare] = queue.Queue()
        self._cancelled: set[int] = set()
        self._segmenter: Segmenter | None = None
        self._loaded: tuple[Any, ...] = ()

    def run(self) -> None:
        """Serve until the process ends."""
        threading.Thread(target=self._read, daemon=True).start()
        while True:
            self._send(self._answer(self._waiting.get()))

    def _read(self) -> None:
        for line in filter(bytes.strip, self._requests):
            try:
                request = protocol.decode_request(line)
            except protocol.ProtocolError as error:
                self._send(Failure(None, f"The worker did not understand a request: {error}"))
                continue
            if isinstance(request, protocol.Cancel):
                self._cancelled.add(request.id)
            else:
                self._waiting.put(request)
        os._exit(0)

    def _send(self, event: Event) -> None:
        with self._sending:
            try:
                self._events.write(protocol.encode(event))
                self._events.flush()
            except OSError:  # nobody listens any more
                os._exit(0)

    def _answer(self, request: Hello | Segment | Compare) -> Event:
        try:
            self._check(request.id)
            if isinstance(request, Segment):
                return self._segment(request)
            return self._compare(request) if isinstance(request, Compare) else self._hello(request)
        except FlareSegmentError as error:
            return Failure(request.id, str(error))
        except Exception as error:  # noqa: BLE001 - whatever it is, the panel must hear of it
            message = f"The segmentation failed: {_first_line(error)}"
            if isinstance(error, MemoryError):
                message = "There is not enough memory for this CT: close other programs, or crop the CT."
            return Failure(request.id, message, traceback.format_exc(_TRACE_CALLS))

    def _check(self, number: int) -> None:
        if number in self._cancelled:
            raise Cancelled("It was cancelled.")

    def _hello(self, hello: Hello) -> Event:
        try:
            import torch  # noqa: F401
        except Exception as error:  # noqa: BLE001 - not there, or a library of it cannot be loaded: whatever it raises
            return Failure(hello.id, _first_line(error), traceback.format_exc(_TRACE_CALLS), without_torch=True)
        from FlareSegmentLib.inference.compute_devices import compute_devices

        if hello.request is not None:
            self._segmenter_for(hello.request)
        return protocol.Ready(hello.id, compute_devices(), self._niceness)

    def _segment(self, message: Segment) -> Event:
        from FlareSegmentLib.measures.organ_statistics import bounding_box, organ_statistics

        start, sent = time.perf_counter(), 0.0
        request = message.request
        share = 1.0 if request.smoothing is None else 1.0 - _SURFACES_SHARE

        def progress(fraction: float, stage: str) -> None:
            nonlocal sent
            if time.perf_counter() - sent >= _PROGRESS_SECONDS:
                sent = time.perf_counter()
                self._send(Progress(message.id, share * fraction, stage))

        volume = message.volume.map()
        self._send(Progress(message.id, 0.0, "Loading the model" if self._segmenter is None else "Checking the CT"))
        segmenter = self._segmenter_for(request)
        found = segmenter.segment(volume, request, progress, lambda: message.id in self._cancelled)
        organs = organ_statistics(volume, found.labels, found.organs, request.region)
        self._check(message.id)
        surfaces = self._surfaces(message, volume, found)
        box = bounding_box(found.labels)
        return protocol.Result(
            message.id,
            found.seconds | {"total": time.perf_counter() - start},
            found.warnings,
            found.device,
            found.model,
            organs,
            SharedBox(finish(write_array(message.folders, found.labels[box])), box),
            surfaces,
            [asdict(place) for place in found.places] if request.review else None,
            _confidence(message, found),
        )

    def _surfaces(self, message: Segment, volume: Volume, found: Segmentation) -> str | None:
        """File of the surfaces, where they were asked for; without VTK, or without room, Slicer makes them itself."""
        smoothing = message.request.smoothing
        if smoothing is None:
            return None

        def tick(fraction: float) -> None:
            self._check(message.id)
            self._send(Progress(message.id, 1 - _SURFACES_SHARE * (1 - fraction), "Making the 3D surfaces"))

        values = {organ.key: organ.label for organ in found.organs}
        try:
            file = self._make_surfaces(found.labels, found.boxes, values, volume.affine_ras, smoothing, tick)
        except ImportError:
            return None
        return _written(message.folders, file)

    def _compare(self, request: Compare) -> Event:
        from FlareSegmentLib.measures.metrics import difference, evaluate
        from FlareSegmentLib.measures.organ_statistics import bounding_box
        from FlareSegmentLib.organs import organ_by_key

        labels, reference = map_array(request.labels), map_array(request.reference)
        scores = evaluate(labels, reference, request.spacing, [organ_by_key(key) for key in request.organs])
        differing = difference(labels, reference)
        box = bounding_box(differing)
        path = finish(write_array(request.folders, differing[box]))
        return protocol.Compared(request.id, scores, SharedBox(path, box))

    def _segmenter_for(self, request: SegmentationRequest) -> Segmenter:
        wanted = request.model, request.device, request.threads
        if self._segmenter is None or self._loaded != wanted:
            from FlareSegmentLib.inference.pipeline import Segmenter

            self._segmenter = None  # two models need not fit into memory at once
            self._segmenter = Segmenter.of(request)
            self._loaded = wanted
        return self._segmenter


def _confidence(message: Segment, found: Segmentation) -> SharedBox | None:
    if found.confidence is None:
        return None
    path = _written(message.folders, zlib.compress(found.confidence.array.tobytes(), 1))
    z, y, x = found.confidence.box
    return None if path is None else SharedBox(path, (z, y, x))


def _written(folders: Sequence[str], file: bytes) -> str | None:
    """Path of the file; None without room: the labels are worth showing without it."""
    try:
        return finish(write_file(folders, lambda: [file]))
    except OSError:
        return None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _keep_stdout_for_events() -> BinaryIO:
    """The stream for events; whatever else is printed from now on, by C code too, goes to stderr."""
    sys.stdout.flush()
    events = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.stdout = sys.stderr
    return events


def _end_with_parent() -> None:
    """On POSIX an orphan gets another parent; its stdin may stay open in a process that inherited the other end."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_CHECK_SECONDS)
        os._exit(0)

    if os.name == "posix":
        threading.Thread(target=watch, daemon=True).start()


def main(make_surfaces: Callable[..., bytes], background: bool) -> None:
    """Serve stdin and stdout; `make_surfaces` as in `Worker`. background: let other programs go first."""
    events = _keep_stdout_for_events()
    niceness = set_priority(background)
    keep_freed_memory()
    _end_with_parent()
    Worker(sys.stdin.buffer, events, make_surfaces, niceness).run()
