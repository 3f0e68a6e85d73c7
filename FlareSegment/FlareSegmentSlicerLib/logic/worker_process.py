"""The panel's end of the worker process: starts it, keeps it warm, feeds it, and survives its death.

It speaks as `FlareSegmentLib.worker.protocol` says, through QProcess: everything happens in the event loop of the main
thread, nothing here blocks it, and no other thread touches Qt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
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
from FlareSegmentLib.worker import protocol
from FlareSegmentLib.worker.protocol import Compare, Compared, Event, Failure, Hello, Ready, Request, Result, Segment
from FlareSegmentLib.worker.shared_files import SharedVolume, read_array, shared_folders, write_array
from FlareSegmentSlicerLib.logic import worker_entry
from FlareSegmentSlicerLib.rendering.segment_surfaces import read_surfaces, to_polydata
from FlareSegmentSlicerLib.scene.organ_labels import KeptConfidence, OrganLabels

CANCEL_PATIENCE_MS = 2000
WARM_UP_PATIENCE_MS = 60_000
_KEPT_ERROR_LINES = 40

Steps = Generator[Request | None, Event | None, Callable[[], None]]
"""A conversation: yields None where the event loop may go on, and its request to be sent the answer; returns what is to
be done when nothing of it is left."""


@dataclass(eq=False)
class _Conversation:
    """One of those under way.

    Attributes:
        on_progress: is told the share of the work that is done and what is being done.
        kept: `cancel` does not mean it.
        waiting: for the answer to its request.
    """

    number: int
    steps: Steps
    on_progress: Callable[[float, str], None] = lambda fraction, stage: None
    kept: bool = False
    waiting: bool = False
    cancelled: bool = False


class WorkerProcess:
    """The engine in a process of its own, with which one conversation is held after the other.

    The process starts with the first one and stays warm. `cancel` takes effect at once for the caller; a worker that
    does not stop within `CANCEL_PATIENCE_MS`, or then does not get warm within `WARM_UP_PATIENCE_MS`, is killed. If the
    process dies, whoever waits for it is told why and the next conversation starts another.
    """

    def __init__(self, command: list[str] | None = None) -> None:
        """command: program and arguments; by default the worker in the Python that Slicer itself uses."""
        self._command = command or [python_executable(), worker_entry.__file__]
        self._background = False
        self._process: qt.QProcess | None = None
        self._ended_process: qt.QProcess | None = None
        self._conversations: list[_Conversation] = []
        self._numbers = count(1)
        self._step_timer = qt.QTimer()
        self._step_timer.setInterval(0)
        self._step_timer.connect("timeout()", self._on_step_timer)

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

        def steps(number: int) -> Steps:
            answer = yield Hello(number, request)
            return partial(on_ready if isinstance(answer, Ready) else on_failure, answer)

        self._begin(steps, kept=True)

    def segment(self, volume: Volume, request: SegmentationRequest, listener: Any) -> None:
        """Segment a volume. Its voxels are copied piece by piece while the event loop goes on: keep them unchanged.

        listener is told as `SegmentationRun` is: `onProgress`, and in the end either `onResult` or `onFailure`; nothing
        after `cancel`.
        """

        def ask(number: int, folders: tuple[str, ...]) -> Generator[None, None, Segment]:
            return Segment(number, request, (yield from SharedVolume.write(folders, volume)), folders)

        listener.onProgress(0.0, _("Copying the CT"))
        steps = partial(_exchange, ask, _read, listener.onResult, listener.onFailure)
        self._begin(steps, on_progress=listener.onProgress)

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

        def ask(number: int, folders: tuple[str, ...]) -> Generator[None, None, Compare]:
            first = yield from write_array(folders, labels)
            second = yield from write_array(folders, reference)
            return Compare(number, first, second, spacing, organs, folders)

        self._begin(partial(_exchange, ask, _read_difference, on_compared, on_failure))

    def cancel(self) -> None:
        """Give up all segmentations and comparisons under way: who waits for them hears nothing more."""
        for one in [one for one in self._conversations if not one.kept and not one.cancelled]:
            if one.waiting:
                one.cancelled = True
                self._running().write(protocol.encode(protocol.Cancel(one.number)))
                qt.QTimer.singleShot(CANCEL_PATIENCE_MS, partial(self._on_patience_lost, one))
            else:
                self._drop(one)
        for one in self._conversations:
            if one.kept and one.waiting:
                qt.QTimer.singleShot(WARM_UP_PATIENCE_MS, partial(self._on_patience_lost, one))

    def close(self) -> None:
        """End the process and remove what it shared. The object can be used again."""
        self._kill()
        for one in list(self._conversations):
            self._drop(one)

    def _end_if_outdated(self) -> None:
        if self._process is None or self._conversations:
            return
        if self._background != (worker_entry.IN_BACKGROUND in self._process.arguments()):
            self._kill()

    def _begin(self, steps: Callable[[int], Steps], **options: Any) -> None:
        """Begin a conversation when those before it are done, with a part whenever the event loop has nothing to do."""
        self._end_if_outdated()
        number = next(self._numbers)
        self._conversations.append(_Conversation(number, steps(number), **options))
        self._running()
        self._step_timer.start()

    def _on_step_timer(self) -> None:
        if self._conversations and not self._conversations[0].waiting:
            self._go_on(self._conversations[0])
        else:
            self._step_timer.stop()

    def _go_on(self, one: _Conversation, answer: Event | None = None) -> None:
        self._step_timer.start()
        try:
            request = one.steps.send(answer)
        except StopIteration as end:
            self._conversations.remove(one)
            end.value()
        else:
            one.waiting = request is not None
            if request is not None:
                self._running().write(protocol.encode(request))

    def _drop(self, one: _Conversation) -> None:
        self._conversations.remove(one)
        one.steps.close()
        self._step_timer.start()

    def _running(self) -> qt.QProcess:
        """The process, which is started where there is none."""
        if self._process is None:
            self._process = process = qt.QProcess()
            process.connect("readyReadStandardOutput()", self._on_output)
            process.connect("finished(int,QProcess::ExitStatus)", self._on_finished)
            process.connect("errorOccurred(QProcess::ProcessError)", self._on_process_error)
            options = [worker_entry.IN_BACKGROUND] if self._background else []
            process.start(self._command[0], self._command[1:] + options)
            process.write(protocol.encode(Hello(0)))  # it loads PyTorch while the voxels are copied
            return process
        return self._process

    def _kill(self) -> None:
        """End the process at once; behind Slicer's launcher, the worker ends because its stdin does."""
        if self._process is None:
            return
        # Kept until the next one ends: this may run in a slot of the object, which must not be deleted there.
        self._ended_process, self._process = self._process, None
        self._ended_process.blockSignals(True)
        self._ended_process.kill()
        self._ended_process.waitForFinished(1000)

    def _on_patience_lost(self, one: _Conversation) -> None:
        """Where what was cancelled still runs, or what it waited for, end the process."""
        if one not in self._conversations:
            return
        self._kill()
        if one.kept:
            self._end(one, Failure(one.number, _("PyTorch and the model took too long to load; try again.")))
        else:
            self._running()
            self._drop(one)

    def _on_output(self) -> None:
        process = self._process
        while self._process is process and process.canReadLine():
            line = process.readLine().data()
            try:
                event = protocol.decode_event(line)
            except protocol.ProtocolError as error:
                logging.warning("FlareSegment worker: %s: %s", error, line[:200])
            else:
                self._on_event(event)

    def _on_event(self, event: Event) -> None:
        one = next((one for one in self._conversations if one.number == event.id), None)
        if one is None:
            return
        if not isinstance(event, protocol.Progress):
            self._end(one, event)
        elif not one.cancelled:
            one.on_progress(event.fraction, event.stage)

    def _end(self, one: _Conversation, answer: Event) -> None:
        if one.cancelled:
            self._drop(one)
        else:
            self._go_on(one, answer)

    def _on_process_error(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:
            self._on_death(_("The worker process could not be started: {program}").format(program=self._command[0]))

    def _on_finished(self, exit_code: int, exit_status: int) -> None:
        text = self._process.readAllStandardError().data().decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        words = lines[-1] if lines else _("it left no message; it may have run out of memory")
        if exit_status == qt.QProcess.CrashExit:
            end = _("was ended by the system")
        else:
            end = _("ended with status {status}").format(status=exit_code)
        message = _("The segmentation stopped, its worker process {end}: {words}. Nothing was changed; try again.")
        self._on_death(message.format(end=end, words=words.rstrip(".")), lines[-_KEPT_ERROR_LINES:])

    def _on_death(self, message: str, last_words: Sequence[str] = ()) -> None:
        logging.error("%s\n%s", message, "\n".join(last_words))
        self._kill()
        for one in [one for one in self._conversations if one.waiting]:
            self._end(one, Failure(one.number, message))


def _exchange(
    ask: Callable[[int, tuple[str, ...]], Generator[None, None, Request]],
    read: Callable[[Any], Generator[None, None, Any]],
    on_result: Callable[[Any, Any], None],
    on_failure: Callable[[str], None],
    number: int,
) -> Steps:
    """The conversation about a request whose arrays, and those of its answer, lie in shared files."""
    with shared_folders() as folders:
        try:
            request = yield from ask(number, folders)
        except (OSError, MemoryError) as error:
            return partial(on_failure, _("There is no room for the volume's copy: {reason}").format(reason=_why(error)))
        answer = yield request
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
