"""What the panel and the worker process say to each other: the schema, and the only code that writes and reads it.

The client (the panel, through QProcess) and the worker (``main.py``) both import this file, so nothing of the schema
is written twice. It needs the standard library and numpy only: no torch, no slicer.

Transport
---------
The client starts the worker's process. Requests go to the worker's stdin, events come from its stdout: one JSON
object per line, ASCII. Whatever libraries print inside the worker goes to stderr. No port is opened and no shell is
involved. The worker answers requests one after another; ``cancel`` alone is handled while a segmentation runs. It ends
on ``shutdown``, when its stdin closes or when its parent process is gone.

Voxels do not travel through the pipe: the client writes them to a file of a private directory (``SharedFolder``), the
worker maps that file into memory. On Linux the directory lies in ``/dev/shm``, which is memory, and anywhere else (or
when that is full) in the folder for temporary files. The client reserves the room for the answer as well, so that it is
the client who moves to the disk and the worker always finds room. Plain files were chosen over
``multiprocessing.shared_memory`` because a full ``/dev/shm`` then raises an OSError instead of killing Slicer with
SIGBUS, no resource tracker is started from the Slicer executable, and blocks left by a crash are found and removed by
the next ``SharedFolder``.

Requests
--------
===========  ==================================================================================================
command      other fields
===========  ==================================================================================================
``hello``    ``model`` folder or null, ``device``, ``threads``: loads torch and, if a model is named, the model
``segment``  ``volume`` {``path``, ``dtype``, ``shape`` (z, y, x), ``spacing`` (x, y, z) mm, ``origin`` mm,
             ``direction`` nine numbers by rows, LPS}, ``labels`` {``path``, ``dtype`` "uint8", ``shape``},
             ``model`` folder, ``device`` "auto" | "cpu" | "cuda" | "cuda:N" | "mps", ``threads`` number or null (all
             cores), ``organs`` keys to keep or null, ``region`` [[start, stop] of z, y, x] to keep labels in or null,
             ``surfaces`` {``path``, ``smoothing``} or null: also write the organs' surfaces there
``compare``  ``labels`` and ``reference`` (as ``volume``), ``difference`` (as ``labels``), ``spacing``, ``organs`` keys
``cancel``   ``target``: the id of the segmentation to give up
``shutdown``
===========  ==================================================================================================
Every request has an ``id`` (any integer the client has not used before).

Events
------
=============  ================================================================================================
event          other fields; ``id`` is the request's, or null when a line could not be read
=============  ================================================================================================
``ready``      answers ``hello``: ``protocol``, ``pid``, ``torch`` version, ``device``, ``threads``, ``model`` or null,
               ``devices`` (see ``compute_devices``), ``niceness`` of the process (see ``processes.set_priority``)
``progress``   ``fraction`` 0 to 1 (true share of the work, rising), ``stage`` (text for the user); at most every 50 ms
``result``     ``seconds`` {``preprocess``, ``network``, ``postprocess``, ``total``}, ``warnings`` (texts for the user),
               ``device``, ``model``, ``organs`` (see ``organ_statistics``), ``box`` [[start, stop] of z, y, x]: the
               label file now holds the labels inside the box, all others are 0; ``surfaces``: whether they were written
``compared``   answers ``compare``: ``organs`` (see ``metrics.evaluate``), ``box``: inside it the difference file now
               holds 1 where only the reference has an organ, 2 where only the labels have one, 3 for different ones
``cancelled``  the segmentation was given up; the label file holds nothing of use
``error``      ``kind`` "input" | "model" | "memory" | "torch" (``hello``: torch cannot be loaded) | "internal",
               ``message`` (one line for the user), ``details`` (last lines of the trace, for a log)
=============  ================================================================================================
A request gets exactly one of ``ready``, ``result``, ``compared``, ``cancelled`` and ``error``; ``cancel`` and
``shutdown`` get no answer of their own. A worker that ends without one (killed, out of memory) is known from the
process's end.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import numpy as np

from FlareSegmentLib.processes import remove_abandoned
from FlareSegmentLib.volume import Volume

Outcome = TypeVar("Outcome")
PROTOCOL_VERSION = 2
PROGRESS_INTERVAL_SECONDS = 0.05
ERROR_KINDS = ("input", "model", "memory", "torch", "internal")
_FOLDER_PREFIX = "flaresegment-"
_PIECE_BYTES = 8 << 20


class ProtocolError(ValueError):
    """A line that is not a message of this protocol."""


@dataclass(frozen=True)
class SharedArray:
    """An array in a file that both processes can reach: raw bytes in C order."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def map(self) -> np.ndarray:
        """The array mapped read-only, without copying. Raises OSError, or ValueError if the file is too short."""
        return np.memmap(self.path, dtype=np.dtype(self.dtype), mode="r", shape=self.shape)

    def write_box(self, array: np.ndarray, box: Sequence[slice]) -> list[list[int]]:
        """Fills the file with a box of an array of this shape and type, gives back what room it does not need; returns
        the box for an event.

        Raises OSError when there is no room, ValueError for another shape or type.
        """
        if array.shape != self.shape or array.dtype != np.dtype(self.dtype):
            raise ValueError(f"expected {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        part = array[tuple(box)]
        with open(self.path, "r+b") as file:
            _write(file, part)
            file.truncate(part.nbytes)
        return [[extent.start, extent.stop] for extent in box]

    def read_box(self, box: Sequence[Sequence[int]]) -> np.ndarray:
        """The box that `write_box` wrote. Raises OSError, or ValueError if the file is too short.

        It is read and not mapped: Windows cannot remove a file while somebody holds a mapping of it.
        """
        shape = tuple(stop - start for start, stop in box)
        return np.fromfile(self.path, np.dtype(self.dtype), math.prod(shape)).reshape(shape)

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> SharedArray:
        return SharedArray(str(data["path"]), np.dtype(data["dtype"]).str, tuple(int(n) for n in data["shape"]))


class SharedFolder:
    """The client's private directory for the arrays of its requests; a context manager.

    Only the user can read it (mode 0700). ``close`` removes everything in it. Making one also removes directories left
    by processes that no longer run (see `processes`).
    """

    def __init__(self) -> None:
        self._folders: list[Path] = []
        for parent in _parent_folders():
            remove_abandoned(parent, _FOLDER_PREFIX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def put(self, array: np.ndarray) -> SharedArray:
        """A block that holds a copy of the array. Raises OSError when no place has room for it."""
        return finish(self.put_in_pieces(array))

    def put_in_pieces(self, array: np.ndarray) -> Generator[None, None, SharedArray]:
        """As `put`, a few megabytes at each step, so that an event loop can go on in between (see `finish`)."""
        rows = max(1, _PIECE_BYTES // max(1, array[:1].nbytes))

        def copy(file: BinaryIO) -> Iterator[None]:
            for start in range(0, len(array), rows):
                _write(file, array[start : start + rows])
                yield

        path = yield from self._new_file(copy)
        return SharedArray(path, array.dtype.str, array.shape)

    def reserve_in_pieces(self, size: int) -> Generator[None, None, str]:
        """Path of a new file with room for `size` bytes, for the worker to fill. Raises OSError without the room.

        Memory and disk really are set aside: a file that only claims its size would, once the place is full, make
        whoever reads it through a mapping die of SIGBUS.
        """

        def reserve(file: BinaryIO) -> Iterator[None]:
            for start in range(0, size, _PIECE_BYTES):
                _reserve(file, start, min(_PIECE_BYTES, size - start))
                yield

        return (yield from self._new_file(reserve))

    def _new_file(self, fill: Callable[[BinaryIO], Iterator[None]]) -> Generator[None, None, str]:
        """A file in the first place where it can be filled; nothing of it is left in the others, or when given up."""
        problem: OSError | None = None
        for parent in _parent_folders():
            path = ""
            try:
                handle, path = tempfile.mkstemp(suffix=".raw", dir=self._folder_in(parent))
                with os.fdopen(handle, "w+b") as file:
                    yield from fill(file)
                return path
            except OSError as error:
                problem = error
                _remove_file(path)
            except GeneratorExit:
                _remove_file(path)
                raise
        raise problem if problem is not None else OSError("no folder for temporary files")

    def remove(self, path: str) -> None:
        """Removes one file; nothing happens if it is gone already or still held by a process on Windows."""
        _remove_file(path)

    def close(self) -> None:
        """Removes all blocks."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    def _folder_in(self, parent: Path) -> Path:
        for folder in self._folders:
            if folder.parent == parent:
                return folder
        folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=parent))
        self._folders.append(folder)
        return folder


@dataclass(frozen=True)
class Request:
    """A request without voxels: ``hello``, ``cancel`` (with ``target``) or ``shutdown``."""

    id: int
    command: str
    model: str | None = None
    device: str = "auto"
    threads: int | None = None
    target: int | None = None


@dataclass(frozen=True)
class SegmentRequest:
    """Segment the volume and leave the labels in the given block."""

    id: int
    volume: SharedArray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: np.ndarray
    labels: SharedArray
    model: str
    device: str = "auto"
    threads: int | None = None
    organs: tuple[str, ...] | None = None
    region: tuple[slice, slice, slice] | None = None
    surfaces: str | None = None
    smoothing: float = 0.5
    command: str = "segment"

    @staticmethod
    def prepare(
        id: int,
        volume: Volume,
        folder: SharedFolder,
        model: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
    ) -> SegmentRequest:
        """The client's way to make one: copies the voxels into the folder. Raises OSError when there is no room."""
        return finish(SegmentRequest.prepare_in_pieces(id, volume, folder, model, device, threads))

    @staticmethod
    def prepare_in_pieces(
        id: int,
        volume: Volume,
        folder: SharedFolder,
        model: str | os.PathLike[str],
        device: str = "auto",
        threads: int | None = None,
        organs: Sequence[str] | None = None,
        region: tuple[slice, slice, slice] | None = None,
        smoothing: float | None = None,
    ) -> Generator[None, None, SegmentRequest]:
        """As `prepare`, a piece of the voxels at each step (see `finish`). A smoothing factor asks for surfaces."""
        with _all_or_none(folder) as made:
            voxels = yield from folder.put_in_pieces(volume.array)
            made.append(voxels.path)
            room = yield from folder.reserve_in_pieces(volume.array.size)
            made.append(room)
            surfaces = None if smoothing is None else (yield from folder.reserve_in_pieces(0))
        labels = SharedArray(room, np.dtype(np.uint8).str, volume.array.shape)
        return SegmentRequest(
            id,
            voxels,
            volume.spacing,
            volume.origin,
            volume.direction,
            labels,
            str(model),
            device,
            threads,
            None if organs is None else tuple(organs),
            region,
            surfaces,
            0.5 if smoothing is None else smoothing,
        )

    @property
    def files(self) -> list[str]:
        """Everything of the request that lies in the shared folder."""
        return [self.volume.path, self.labels.path, *([self.surfaces] if self.surfaces else [])]

    def map_volume(self) -> Volume:
        """The worker's view of the volume: mapped, read-only, not copied."""
        return Volume(self.volume.map(), self.spacing, self.origin, self.direction)


@dataclass(frozen=True)
class CompareRequest:
    """Compare a label map with a reference of the same shape."""

    id: int
    labels: SharedArray
    reference: SharedArray
    difference: SharedArray
    spacing: tuple[float, ...]
    organs: tuple[str, ...]
    command: str = "compare"

    @staticmethod
    def prepare_in_pieces(
        id: int,
        labels: np.ndarray,
        reference: np.ndarray,
        spacing: tuple[float, ...],
        organs: Sequence[str],
        folder: SharedFolder,
    ) -> Generator[None, None, CompareRequest]:
        """The client's way to make one (see `finish`): both label maps are uint8 (z, y, x). Raises OSError."""
        with _all_or_none(folder) as made:
            first = yield from folder.put_in_pieces(labels)
            made.append(first.path)
            second = yield from folder.put_in_pieces(reference)
            made.append(second.path)
            room = yield from folder.reserve_in_pieces(labels.size)
        difference = SharedArray(room, np.dtype(np.uint8).str, labels.shape)
        return CompareRequest(id, first, second, difference, spacing, tuple(organs))

    @property
    def files(self) -> list[str]:
        """Everything of the request that lies in the shared folder."""
        return [self.labels.path, self.reference.path, self.difference.path]


def finish(steps: Generator[None, None, Outcome]) -> Outcome:
    """Run all steps of a generator at once and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


@dataclass(frozen=True)
class Ready:
    id: int | None
    protocol: int
    pid: int
    torch: str
    device: str
    threads: int
    model: str | None
    devices: list[dict[str, Any]] = field(default_factory=list)
    niceness: int = 0


@dataclass(frozen=True)
class Progress:
    id: int | None
    fraction: float
    stage: str


@dataclass(frozen=True)
class Result:
    id: int | None
    seconds: dict[str, float]
    warnings: list[str]
    device: str
    model: str
    organs: dict[str, dict[str, Any]] = field(default_factory=dict)
    box: list[list[int]] = field(default_factory=lambda: [[0, 0], [0, 0], [0, 0]])
    surfaces: bool = False


@dataclass(frozen=True)
class Compared:
    """The comparison is done (event ``compared``)."""

    id: int | None
    organs: dict[str, dict[str, float | None]]
    box: list[list[int]]


@dataclass(frozen=True)
class Stopped:
    """The segmentation was cancelled (event ``cancelled``)."""

    id: int | None


@dataclass(frozen=True)
class Failure:
    """The request failed (event ``error``)."""

    id: int | None
    kind: str
    message: str
    details: str = ""


Event = Ready | Progress | Result | Compared | Stopped | Failure
AnyRequest = Request | SegmentRequest | CompareRequest
_EVENTS: dict[str, type] = {
    "ready": Ready,
    "progress": Progress,
    "result": Result,
    "compared": Compared,
    "cancelled": Stopped,
    "error": Failure,
}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}


def encode_request(request: AnyRequest) -> bytes:
    """The request as one line, with its line feed."""
    if isinstance(request, SegmentRequest):
        volume = request.volume.to_json() | {
            "spacing": [float(v) for v in request.spacing],
            "origin": [float(v) for v in request.origin],
            "direction": [float(v) for v in np.asarray(request.direction).ravel()],
        }
        message: dict[str, Any] = {
            "id": request.id,
            "command": request.command,
            "volume": volume,
            "labels": request.labels.to_json(),
            "model": request.model,
            "device": request.device,
            "threads": request.threads,
            "organs": None if request.organs is None else list(request.organs),
            "region": None if request.region is None else [[axis.start, axis.stop] for axis in request.region],
            "surfaces": request.surfaces and {"path": request.surfaces, "smoothing": float(request.smoothing)},
        }
    elif isinstance(request, CompareRequest):
        message = {
            "id": request.id,
            "command": request.command,
            "labels": request.labels.to_json(),
            "reference": request.reference.to_json(),
            "difference": request.difference.to_json(),
            "spacing": [float(v) for v in request.spacing],
            "organs": list(request.organs),
        }
    else:
        message = {name: value for name, value in vars(request).items() if value is not None}
    return _encode(message)


def decode_request(line: bytes | str) -> AnyRequest:
    """The request in a line. Raises ProtocolError."""
    message = _decode(line)
    try:
        model = None if message.get("model") is None else str(message["model"])
        device = str(message.get("device", "auto"))
        threads = None if message.get("threads") is None else max(1, int(message["threads"]))
        if message["command"] == "segment":
            volume, labels = message["volume"], SharedArray.from_json(message["labels"])
            voxels = SharedArray.from_json(volume)
            if len(voxels.shape) != 3 or labels.shape != voxels.shape or labels.dtype != np.dtype(np.uint8).str:
                raise ProtocolError("the label block must be uint8 and have the volume's shape")
            if model is None:
                raise ProtocolError("a segmentation needs a model folder")
            return SegmentRequest(
                int(message["id"]),
                voxels,
                _three(volume["spacing"]),
                _three(volume["origin"]),
                np.asarray(volume["direction"], float).reshape(3, 3),
                labels,
                model,
                device,
                threads,
                _keys(message.get("organs")),
                _region(message.get("region")),
                *_surfaces(message.get("surfaces")),
            )
        if message["command"] == "compare":
            first, second, difference = (
                SharedArray.from_json(message[name]) for name in ("labels", "reference", "difference")
            )
            if not first.shape == second.shape == difference.shape:
                raise ProtocolError("the label maps must have one shape")
            spacing, keys = _three(message["spacing"]), _keys(message["organs"]) or ()
            return CompareRequest(int(message["id"]), first, second, difference, spacing, keys)
        if message["command"] not in ("hello", "cancel", "shutdown"):
            raise ProtocolError(f"unknown command {message['command']!r}")
        target = message.get("target")
        target = None if target is None else int(target)
        return Request(int(message["id"]), message["command"], model, device, threads, target)
    except (KeyError, TypeError, ValueError) as error:
        raise error if isinstance(error, ProtocolError) else ProtocolError(f"malformed request: {error!r}") from error


def encode_event(event: Event) -> bytes:
    """The event as one line, with its line feed."""
    return _encode({"event": _EVENT_NAMES[type(event)]} | vars(event))


def decode_event(line: bytes | str) -> Event:
    """The event in a line. Raises ProtocolError."""
    message = _decode(line)
    kind = _EVENTS.get(str(message.pop("event", "")))
    if kind is None:
        raise ProtocolError("not an event of this protocol")
    try:
        return kind(**message)
    except TypeError as error:
        raise ProtocolError(f"malformed event: {error}") from error


def _encode(message: dict[str, Any]) -> bytes:
    # JSON has no infinity: a number that is not finite must never reach a strict reader on the other side.
    return (json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")) + "\n").encode("ascii")


def _decode(line: bytes | str) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("not a JSON object")
    return message


def _three(values: Sequence[float]) -> tuple[float, ...]:
    x, y, z = (float(v) for v in values)
    return x, y, z


def _keys(values: Sequence[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(str(value) for value in values)


def _region(values: Sequence[Sequence[int]] | None) -> tuple[slice, slice, slice] | None:
    if values is None:
        return None
    z, y, x = (slice(int(start), int(stop)) for start, stop in values)
    return z, y, x


def _surfaces(values: dict[str, Any] | None) -> tuple[str | None, float]:
    return (None, 0.5) if values is None else (str(values["path"]), float(values["smoothing"]))


def _parent_folders() -> list[Path]:
    memory = Path("/dev/shm")
    temporary = Path(tempfile.gettempdir())
    return [memory, temporary] if sys.platform == "linux" and os.access(memory, os.W_OK) else [temporary]


def _write(file: Any, array: np.ndarray) -> None:
    np.ascontiguousarray(array).tofile(file)


def _reserve(file: BinaryIO, start: int, size: int) -> None:
    """Make a file longer by bytes that are really there. Raises OSError when there is no room for them."""
    if sys.platform == "linux":
        try:
            os.posix_fallocate(file.fileno(), start, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # what file systems say that cannot
                raise
    file.seek(start)
    file.write(bytes(size))
    file.flush()


@contextlib.contextmanager
def _all_or_none(folder: SharedFolder) -> Iterator[list[str]]:
    """Removes the files that were entered in the list when the block is left by an exception or given up."""
    made: list[str] = []
    try:
        yield made
    except BaseException:
        for path in made:
            folder.remove(path)
        raise


def _remove_file(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)
