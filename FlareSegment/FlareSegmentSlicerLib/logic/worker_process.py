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
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import qt
from slicer.i18n import tr as _

from FlareSegmentLib.processes import python_executable
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import (
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
    decode_event,
    encode,
)
from FlareSegmentLib.worker.shared_files import SharedFolders, read_array
from FlareSegmentSlicerLib.logic.worker_entry import IN_BACKGROUND, worker_command
from FlareSegmentSlicerLib.rendering.segment_surfaces import read_surfaces, to_polydata
from FlareSegmentSlicerLib.scene.confidence import KeptConfidence
from FlareSegmentSlicerLib.scene.segmentation_nodes import OrganLabels

CANCEL_PATIENCE_MS = 2000
_KEPT_ERROR_LINES = 40

Steps = Generator[Request | None, Event | None, Callable[[], None]]
"""A conversation: yields None where the event loop may go on, and its request to be sent the answer; returns what is to
be done when nothing of it is left."""


@dataclass
class _Conversation:
    """One of those under way.

    Attributes:
        on_progress: is told the share of the work that is done and what is being done.
        kept: `cancel` does not mean it.
        request: waits for its answer.
    """

    steps: Steps
    on_progress: Callable[[float, str], None] = lambda fraction, stage: None
    kept: bool = False
    request: Request | None = None
    cancelled: bool = False


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
        self._runs_in_background = False
        self._process: qt.QProcess | None = None
        self._ended_process: qt.QProcess | None = None
        self._worker_pid = 0
        self._output = b""
        self._error_lines: deque[str] = deque(maxlen=_KEPT_ERROR_LINES)
        self._conversations: dict[int, _Conversation] = {}
        self._ids = count(1)
        self._step_timer = qt.QTimer()
        self._step_timer.setInterval(0)
        self._step_timer.connect("timeout()", self._on_step_timer)
        self._patience = qt.QTimer()
        self._patience.setSingleShot(True)
        self._patience.setInterval(CANCEL_PATIENCE_MS)
        self._patience.connect("timeout()", self._on_patience_lost)

    def set_background(self, background: bool) -> None:
        """Whether the process shall let other programs go first. One that runs is replaced as soon as it is idle: a
        process may lower its priority, but not take that back.
        """
        self._background = background
        self._end_if_outdated()

    def warm_up(
        self, request: SegmentationRequest, on_ready: Callable[[Ready], None], on_failure: Callable[[Failure], None]
    ) -> None:
        """Let the process load torch and the request's model, so that the next segmentation begins at once."""

        def steps() -> Steps:
            answer = yield Hello(number, request)
            return partial(on_ready if isinstance(answer, Ready) else on_failure, answer)

        number = next(self._ids)
        self._begin(number, _Conversation(steps(), kept=True))

    def segment(self, volume: Volume, request: SegmentationRequest, listener: Any) -> None:
        """Segment a volume. Its voxels are copied piece by piece while the event loop goes on: keep them unchanged.

        listener is told as `SegmentationRun` is: `onProgress`, and in the end either `onResult` or `onFailure`; nothing
        after `cancel`.
        """
        listener.onProgress(0.0, _("Copying the CT"))
        number = next(self._ids)
        steps = _exchange(
            partial(Segment.prepare, number, request, volume), _read, listener.onResult, listener.onFailure
        )
        self._begin(number, _Conversation(steps, listener.onProgress))

    def compare(
        self,
        labels: np.ndarray,
        reference: np.ndarray,
        spacing: tuple[float, ...],
        organs: tuple[str, ...],
        on_compared: Callable[[np.ndarray, Compared], None],
        on_failure: Callable[[str], None],
    ) -> None:
        """Compare two label maps (z, y, x) uint8 of voxels of `spacing` (x, y, z) mm, organ by organ.

        on_compared is given the difference inside its box, and the scores.
        """
        number = next(self._ids)
        prepare = partial(Compare.prepare, number, labels, reference, spacing, organs)
        self._begin(number, _Conversation(_exchange(prepare, _read_difference, on_compared, on_failure)))

    def cancel(self) -> None:
        """Give up all segmentations and comparisons under way: who waits for them hears nothing more."""
        for number, one in list(self._conversations.items()):
            if one.kept or one.cancelled:
                continue
            if one.request is None:
                self._drop(number)
            else:
                one.cancelled = True
                self._write(Cancel(number))
                self._patience.start()

    def close(self) -> None:
        """End the process and remove what it shared. The object can be used again."""
        self._kill()
        for number in list(self._conversations):
            self._drop(number)

    def process_id(self) -> int:
        """The operating system's number of the worker process, 0 while there is none."""
        return self._worker_pid or (int(self._process.processId()) if self._process is not None else 0)

    def _end_if_outdated(self) -> None:
        if self._background != self._runs_in_background and not self._conversations:
            self._kill()

    def _begin(self, number: int, conversation: _Conversation) -> None:
        """Begin a conversation, of which a part is done whenever the event loop has nothing else to do."""
        self._end_if_outdated()
        self._conversations[number] = conversation
        if self._process is None:
            self._start()
        self._step_timer.start()

    def _on_step_timer(self) -> None:
        for number, one in self._conversations.items():
            if one.request is None:
                self._go_on(number)
                return
        self._step_timer.stop()

    def _go_on(self, number: int, answer: Event | None = None) -> None:
        one = self._conversations[number]
        try:
            one.request = one.steps.send(answer)
        except StopIteration as end:
            del self._conversations[number]
            end.value()
        else:
            if one.request is None:
                self._step_timer.start()
            elif self._process is None:
                self._start()
            else:
                self._write(one.request)

    def _drop(self, number: int) -> None:
        self._conversations.pop(number).steps.close()

    def _write(self, request: Request) -> None:
        self._process.write(encode(request))

    def _start(self) -> None:
        """Start a process and give it all requests that wait for an answer."""
        self._output = b""
        self._error_lines.clear()
        self._process = qt.QProcess()
        self._process.connect("readyReadStandardOutput()", self._on_output)
        self._process.connect("readyReadStandardError()", self._on_error_output)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._on_finished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._on_process_error)
        self._runs_in_background = self._background
        options = [IN_BACKGROUND] if self._background else []
        self._process.start(self._command[0], self._command[1:] + options)
        # The first answer names the worker's own process: behind Slicer's launcher it is not the one QProcess started.
        self._write(Hello(0))
        for one in self._conversations.values():
            if one.request is not None:
                self._write(one.request)

    def _kill(self) -> None:
        process, pid = self._process, self._worker_pid
        self._process, self._worker_pid = None, 0
        if process is None:
            return
        # Kept until the next one ends: this may run in a slot of the object, which must not be deleted there.
        self._ended_process = process
        process.blockSignals(True)
        if pid and pid != process.processId() and process.state() != qt.QProcess.NotRunning:
            with contextlib.suppress(OSError):
                os.kill(pid, getattr(signal, "SIGKILL", signal.SIGTERM))
        process.kill()
        process.waitForFinished(1000)

    def _on_patience_lost(self) -> None:
        """Where what was cancelled still runs, replace the process, and give the new one what else was asked for."""
        cancelled = [number for number, one in self._conversations.items() if one.cancelled]
        if cancelled:
            self._kill()
            for number in cancelled:
                self._drop(number)
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
        one = self._conversations.get(event.id)
        if one is None:
            return
        if isinstance(event, Progress):
            if not one.cancelled:
                one.on_progress(event.fraction, event.stage)
        elif one.cancelled:
            self._drop(event.id)
        else:
            self._go_on(event.id, event)

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
        waiting = [number for number, one in self._conversations.items() if one.request is not None]
        self._kill()
        for number in waiting:
            if self._conversations[number].cancelled:
                self._drop(number)
            else:
                self._go_on(number, Failure(number, message))


def _exchange(
    prepare: Callable[[SharedFolders], Generator[None, None, Request]],
    read: Callable[[Any], Generator[None, None, Any]],
    on_result: Callable[[Any, Any], None],
    on_failure: Callable[[str], None],
) -> Steps:
    """The conversation about a request whose arrays, and those of its answer, lie in shared files."""
    with SharedFolders() as folders:
        try:
            request = yield from prepare(folders)
        except (OSError, MemoryError) as error:
            return partial(on_failure, _("There is no room for the volume's copy: {reason}").format(reason=_why(error)))
        answer = yield request
        if isinstance(answer, Cancelled):
            return partial(on_failure, _("The segmentation was stopped."))
        if isinstance(answer, Failure):
            if answer.details:
                logging.error(answer.details)
            return partial(on_failure, answer.message)
        try:
            found = yield from read(answer)
        except (OSError, ValueError, MemoryError) as error:
            return partial(on_failure, _("The result could not be read: {reason}").format(reason=_why(error)))
    return partial(on_result, found, answer)


def _read(result: Result) -> Generator[None, None, OrganLabels]:
    """What the worker left in the shared folders, read in pieces. Raises OSError or ValueError."""
    labels = read_array(result.labels.path)
    yield
    surfaces = {}
    for key, surface in read_surfaces(result.surfaces) if result.surfaces else ():
        surfaces[key] = to_polydata(surface)
        yield
    confidence = result.confidence and KeptConfidence(Path(result.confidence.path).read_bytes(), result.confidence.box)
    return OrganLabels(labels, result.labels.box, result.organs, surfaces, confidence)


def _read_difference(compared: Compared) -> Generator[None, None, np.ndarray]:
    yield
    return read_array(compared.difference.path)


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
