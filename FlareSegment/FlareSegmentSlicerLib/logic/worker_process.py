"""The panel's end of the worker process: starts it, keeps it warm, feeds it, and survives its death.

One `WorkerProcess` runs one Python process with the engine and talks to it as `FlareSegmentLib.worker.protocol` says,
through QProcess: everything happens in the event loop of the main thread, nothing here blocks it, and no other thread
touches Qt.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import qt
from slicer.i18n import tr as _

from FlareSegmentLib.processes import python_executable
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import (
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
    SharedFolder,
    decode_event,
    encode_request,
)
from FlareSegmentSlicerLib.logic.worker_entry import IN_BACKGROUND, worker_command
from FlareSegmentSlicerLib.rendering.segment_surfaces import read_surfaces, to_polydata
from FlareSegmentSlicerLib.scene.segmentation_nodes import OrganLabels

CANCEL_PATIENCE_MS = 2000
_KEPT_ERROR_LINES = 40


class SegmentationListener(Protocol):
    """What a segmentation reports. Exactly one of the last two is called, none of them after `cancel`."""

    def onProgress(self, fraction: float, stage: str) -> None:
        """Share of the work that is done (0 to 1) and what is being done, for the user."""

    def onResult(self, labels: OrganLabels, result: Result) -> None:
        """Labels on the volume's grid."""

    def onFailure(self, message: str) -> None:
        """One line for the user."""


@dataclass(frozen=True)
class SegmentationSettings:
    """How to segment.

    Attributes:
        model: folder of the model.
        device: "auto", or an id of `compute_devices`.
        organs: keys of the organs to keep; None keeps all.
        region: (z, y, x) part of the volume to keep labels in; None keeps all.
        smoothing: Slicer's smoothing factor of the surfaces to make in the worker; None makes none.
    """

    model: Path
    device: str = "auto"
    organs: tuple[str, ...] | None = None
    region: tuple[slice, slice, slice] | None = None
    smoothing: float | None = None


class SegmentationWorker(Protocol):
    """What the module's logic needs of a worker."""

    def set_background(self, background: bool) -> None: ...

    def warm_up(
        self, model: Path, on_ready: Callable[[Ready], None], on_failure: Callable[[Failure], None]
    ) -> None: ...

    def segment(self, volume: Volume, settings: SegmentationSettings, listener: SegmentationListener) -> None: ...

    def compare(
        self,
        labels: np.ndarray,
        reference: np.ndarray,
        spacing: tuple[float, ...],
        organs: tuple[str, ...],
        on_compared: Callable[[Compared, np.ndarray], None],
        on_failure: Callable[[str], None],
    ) -> None: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class _Task:
    """A request that the worker has not answered yet; one without `on_event` was given up.

    What `on_event` returns is left to do until the request's files may go.
    """

    request: AnyRequest
    on_event: Callable[[Event], _Piecework | None] | None


@dataclass
class _Piecework:
    """Work of the main thread that is done one piece in each turn of the event loop, so that the window lives on.

    Attributes:
        pieces: does one piece at a time and returns what was made.
        on_end: is given that, in a turn of its own.
        on_failure: is given the words of an OSError, ValueError or MemoryError of a piece.
        on_dropped: called instead of both when the work is given up.
    """

    pieces: Generator[None, None, Any]
    on_end: Callable[[Any], None]
    on_failure: Callable[[str], None]
    on_dropped: Callable[[], None] = lambda: None


class WorkerProcess:
    """The engine in a process of its own.

    The process starts with the first request and stays warm. `cancel` takes effect at once for the caller; a worker
    that does not stop within `CANCEL_PATIENCE_MS` is killed and started anew. If the process dies, whoever waits for it
    is told why and the next request starts another.
    """

    def __init__(self, command: list[str] | None = None) -> None:
        """command: program and arguments; by default the worker in the Python that Slicer itself uses."""
        self._command = command or worker_command(python_executable())
        self._background = False
        self._outdated = False
        self._process: qt.QProcess | None = None
        self._ended_process: qt.QProcess | None = None
        self._worker_pid = 0
        self._output = b""
        self._error_lines: deque[str] = deque(maxlen=_KEPT_ERROR_LINES)
        self._tasks: dict[int, _Task] = {}
        self._last_id = 0
        self._folder: SharedFolder | None = None
        self._piecework: list[_Piecework] = []
        self._piece_timer = qt.QTimer()
        self._piece_timer.setInterval(0)
        self._piece_timer.connect("timeout()", self._on_piece_timer)
        self._patience = qt.QTimer()
        self._patience.setSingleShot(True)
        self._patience.setInterval(CANCEL_PATIENCE_MS)
        self._patience.connect("timeout()", self._on_patience_lost)

    def set_background(self, background: bool) -> None:
        """Whether the process shall let other programs go first. One that runs is replaced as soon as it is idle: a
        process may lower its priority, but not take that back.
        """
        self._outdated = self._outdated or background != self._background
        self._background = background
        self._replace_outdated()

    def warm_up(self, model: Path, on_ready: Callable[[Ready], None], on_failure: Callable[[Failure], None]) -> None:
        """Let the process load torch and the model folder, so that the next segmentation begins at once."""
        self._replace_outdated()

        def on_event(event: Event) -> None:
            if isinstance(event, Ready):
                on_ready(event)
            elif isinstance(event, Failure):
                on_failure(event)

        self._send(Request(self._next_id(), "hello", model=str(model)), on_event)

    def segment(self, volume: Volume, settings: SegmentationSettings, listener: SegmentationListener) -> None:
        """Segment a volume. Its voxels are copied piece by piece while the event loop goes on: keep them unchanged."""

        def on_event(request: SegmentRequest, event: Event) -> _Piecework | None:
            if isinstance(event, Progress):
                listener.onProgress(event.fraction, event.stage)
            elif isinstance(event, Result):
                return _Piecework(
                    _read(request, event),
                    lambda found: listener.onResult(found, event),
                    lambda reason: listener.onFailure(
                        _("The result could not be read: {reason}").format(reason=reason)
                    ),
                )
            elif isinstance(event, Failure):
                if event.details:
                    logging.error(event.details)
                listener.onFailure(event.message)
            else:
                listener.onFailure(_("The segmentation was stopped."))
            return None

        pieces = SegmentRequest.prepare_in_pieces(
            self._next_id(),
            volume,
            self._shared_folder(),
            settings.model,
            settings.device,
            None,
            settings.organs,
            settings.region,
            settings.smoothing,
        )
        listener.onProgress(0.0, _("Copying the CT"))
        self._replace_outdated()
        if self._process is None:
            self._start()
        self._copy(pieces, on_event, listener.onFailure)

    def compare(
        self,
        labels: np.ndarray,
        reference: np.ndarray,
        spacing: tuple[float, ...],
        organs: tuple[str, ...],
        on_compared: Callable[[Compared, np.ndarray], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Compare two label maps (z, y, x) uint8 of voxels of `spacing` (x, y, z) mm, organ by organ.

        on_compared is given the scores and the difference inside their box (see `FlareSegmentLib.worker.protocol`).
        """

        def on_event(request: CompareRequest, event: Event) -> None:
            if isinstance(event, Compared):
                on_compared(event, request.difference.read_box(event.box))
            elif isinstance(event, Failure):
                on_failure(event.message)
            elif not isinstance(event, Progress):
                on_failure(_("The comparison was stopped."))

        pieces = CompareRequest.prepare_in_pieces(
            self._next_id(), labels, reference, spacing, organs, self._shared_folder()
        )
        self._copy(pieces, on_event, on_failure)

    def cancel(self) -> None:
        """Give up all segmentations and comparisons under way: who waits for them hears nothing more."""
        self._drop_piecework()
        for task in list(self._tasks.values()):
            if isinstance(task.request, (SegmentRequest, CompareRequest)) and task.on_event is not None:
                task.on_event = None
                self._write(Request(self._next_id(), "cancel", target=task.request.id))
                self._patience.start()

    def close(self) -> None:
        """End the process and remove what it shared. The object can be used again."""
        self._drop_piecework()
        self._kill()
        self._tasks.clear()
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def process_id(self) -> int:
        """The operating system's number of the worker process, 0 while there is none."""
        return self._worker_pid or (int(self._process.processId()) if self._process is not None else 0)

    def _replace_outdated(self) -> None:
        if self._outdated and not self._tasks and not self._piecework:
            self._kill()
            self._outdated = False

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _shared_folder(self) -> SharedFolder:
        if self._folder is None:
            self._folder = SharedFolder()
        return self._folder

    def _copy(
        self,
        pieces: Generator[None, None, Any],
        on_event: Callable[[Any, Event], _Piecework | None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Copy voxels into the shared folder and send the request that the last piece gives; `on_event` is given that
        request and an answer to it.
        """
        self._do_in_pieces(
            _Piecework(
                pieces,
                lambda request: self._send(request, partial(on_event, request)),
                lambda reason: on_failure(_("There is no room for the volume's copy: {reason}").format(reason=reason)),
            )
        )

    def _do_in_pieces(self, work: _Piecework) -> None:
        self._piecework.append(work)
        self._piece_timer.start()

    def _drop_piecework(self) -> None:
        while self._piecework:
            work = self._piecework[-1]
            self._end_piecework(work)
            work.pieces.close()
            work.on_dropped()

    def _on_piece_timer(self) -> None:
        work = self._piecework[0]
        try:
            next(work.pieces)
        except StopIteration as end:
            self._end_piecework(work)
            work.on_end(end.value)
        except (OSError, ValueError, MemoryError) as error:
            self._end_piecework(work)
            work.on_failure(str(error) or type(error).__name__)

    def _end_piecework(self, work: _Piecework) -> None:
        self._piecework.remove(work)
        if not self._piecework:
            self._piece_timer.stop()

    def _send(self, request: AnyRequest, on_event: Callable[[Event], _Piecework | None]) -> None:
        self._tasks[request.id] = _Task(request, on_event)
        if self._process is None:
            self._start()
        else:
            self._write(request)

    def _write(self, request: AnyRequest) -> None:
        self._process.write(encode_request(request))

    def _start(self) -> None:
        """Start a process and give it all requests that wait for an answer."""
        self._output = b""
        self._error_lines.clear()
        self._process = qt.QProcess()
        self._process.connect("readyReadStandardOutput()", self._on_output)
        self._process.connect("readyReadStandardError()", self._on_error_output)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._on_finished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._on_process_error)
        self._outdated = False
        options = [IN_BACKGROUND] if self._background else []
        self._process.start(self._command[0], self._command[1:] + options)
        # The first answer names the worker's own process: behind Slicer's launcher it is not the one QProcess started.
        self._write(Request(self._next_id(), "hello"))
        for task in self._tasks.values():
            self._write(task.request)

    def _kill(self) -> None:
        process, pid = self._process, self._worker_pid
        self._process, self._worker_pid = None, 0
        self._patience.stop()
        if process is None:
            return
        # Kept until the next one ends: this may run in a slot of the object, which must not be deleted there.
        self._ended_process = process
        process.disconnect("readyReadStandardOutput()", self._on_output)
        process.disconnect("readyReadStandardError()", self._on_error_output)
        process.disconnect("finished(int,QProcess::ExitStatus)", self._on_finished)
        process.disconnect("errorOccurred(QProcess::ProcessError)", self._on_process_error)
        if pid and pid != process.processId() and process.state() != qt.QProcess.NotRunning:
            with contextlib.suppress(OSError):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.kill()
        process.waitForFinished(1000)

    def _on_patience_lost(self) -> None:
        """What was cancelled still runs: replace the process, and give the new one what else was asked for."""
        self._kill()
        for task in list(self._tasks.values()):
            if task.on_event is None:
                self._forget(task)
        self._start()

    def _on_output(self) -> None:
        process = self._process
        self._output += process.readAllStandardOutput().data()
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            if self._process is not process:
                return
            try:
                event = decode_event(line)
            except ProtocolError as error:
                logging.warning("FlareSegment worker: %s: %s", error, line[:200])
                continue
            self._handle(event)

    def _handle(self, event: Event) -> None:
        if isinstance(event, Ready):
            self._worker_pid = event.pid
        task = self._tasks.get(event.id)
        if task is None:
            return
        if not isinstance(event, Progress):
            del self._tasks[event.id]
            if not any(other.on_event is None for other in self._tasks.values()):
                self._patience.stop()
        rest: _Piecework | None = None
        try:
            if task.on_event is not None:
                rest = task.on_event(event)
        finally:
            if not isinstance(event, Progress) and rest is None:
                self._forget(task)
        if rest is not None:
            self._do_in_pieces(self._then_forgotten(rest, task))

    def _then_forgotten(self, work: _Piecework, task: _Task) -> _Piecework:
        """The work, whose last act, whatever its end, is to remove the request's files."""

        def and_forget(act: Callable[..., None]) -> Callable[..., None]:
            def do(*arguments: Any) -> None:
                try:
                    act(*arguments)
                finally:
                    self._forget(task)

            return do

        ends = (and_forget(act) for act in (work.on_end, work.on_failure, work.on_dropped))
        return _Piecework(work.pieces, *ends)

    def _forget(self, task: _Task) -> None:
        self._tasks.pop(task.request.id, None)
        if self._folder is not None and not isinstance(task.request, Request):
            for path in task.request.files:
                self._folder.remove(path)

    def _on_error_output(self) -> None:
        text = self._process.readAllStandardError().data().decode(errors="replace")
        self._error_lines.extend(line for line in text.splitlines() if line.strip())

    def _on_process_error(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:
            self._on_death(_("The worker process could not be started: {program}").format(program=self._command[0]))

    def _on_finished(self, exit_code: int, exit_status: int) -> None:
        process = self._process
        self._on_output()
        if self._process is not process:
            return
        self._on_error_output()
        words = self._error_lines[-1] if self._error_lines else _("it left no message; it may have run out of memory")
        if exit_status == qt.QProcess.CrashExit:
            end = _("was ended by the system")
        else:
            end = _("ended with status {status}").format(status=exit_code)
        self._on_death(
            _("The segmentation stopped, its worker process {end}: {words}. Nothing was changed; try again.").format(
                end=end, words=words.rstrip(".")
            )
        )

    def _on_death(self, message: str) -> None:
        logging.error("%s\n%s", message, "\n".join(self._error_lines))
        waiting = list(self._tasks.values())
        self._kill()
        for task in waiting:
            self._forget(task)
        for task in waiting:
            if task.on_event is not None:
                task.on_event(Failure(task.request.id, "internal", message))


def _read(request: SegmentRequest, result: Result) -> Generator[None, None, OrganLabels]:
    """Give what the worker left in the shared folder, read in pieces. Raises OSError or ValueError."""
    z, y, x = (slice(start, stop) for start, stop in result.box)
    labels = request.labels.read_box(result.box)
    yield
    surfaces = {}
    if result.surfaces and request.surfaces:
        for key, surface in read_surfaces(request.surfaces):
            surfaces[key] = to_polydata(surface)
            yield
    return OrganLabels(labels, (z, y, x), result.organs, surfaces)
