"""What the panel and the worker process say to each other: the schema, and the only code that writes and reads it.

The client (the panel, through QProcess) and the worker (``worker.py``) both import this file, so nothing of the schema
is written twice. It needs the standard library and numpy only: no torch, no slicer.

Transport
---------
The client starts ``worker_command(python)``. Requests go to the worker's stdin, events come from its stdout: one JSON
object per line, ASCII. Whatever libraries print inside the worker goes to stderr. No port is opened and no shell is
involved. The worker answers requests one after another; ``cancel`` alone is handled while a segmentation runs. It ends
on ``shutdown``, when its stdin closes or when its parent process is gone.

Voxels do not travel through the pipe: the client writes them to a file of a private directory (``SharedFolder``), the
worker maps that file into memory. On Linux the directory lies in ``/dev/shm``, which is memory, and anywhere else (or
when that is full) in the folder for temporary files. Plain files were chosen over ``multiprocessing.shared_memory``
because a full ``/dev/shm`` then raises an OSError instead of killing Slicer with SIGBUS, no resource tracker is started
from the Slicer executable, and blocks left by a crash are found and removed by the next ``SharedFolder``.

Requests
--------
===========  ==================================================================================================
command      other fields
===========  ==================================================================================================
``hello``    ``model`` folder or null, ``device``, ``threads``: loads torch and, if a model is named, the model
``segment``  ``volume`` {``path``, ``dtype``, ``shape`` (z, y, x), ``spacing`` (x, y, z) mm, ``origin`` mm,
             ``direction`` nine numbers by rows, LPS}, ``labels`` {``path``, ``dtype`` "uint8", ``shape``},
             ``model`` folder, ``device`` "auto" | "cpu" | "cuda" | "mps", ``threads`` number or null (all cores)
``cancel``   ``target``: the id of the segmentation to give up
``shutdown``
===========  ==================================================================================================
Every request has an ``id`` (any integer the client has not used before).

Events
------
=============  ================================================================================================
event          other fields; ``id`` is the request's, or null when a line could not be read
=============  ================================================================================================
``ready``      answers ``hello``: ``protocol``, ``pid``, ``torch`` version, ``device``, ``threads``, ``model`` or null
``progress``   ``fraction`` 0 to 1 (true share of the work, rising), ``stage`` (text for the user); at most every 50 ms
``result``     ``seconds`` {``preprocess``, ``network``, ``postprocess``, ``total``}, ``warnings`` (texts for the user),
               ``device``, ``model``, ``organs`` (see ``organ_statistics``): the label file now holds the labels
``cancelled``  the segmentation was given up; the label file holds nothing of use
``error``      ``kind`` "input" | "model" | "memory" | "internal", ``message`` (one line for the user), ``details``
               (last lines of the trace, for a log)
=============  ================================================================================================
A request gets exactly one of ``ready``, ``result``, ``cancelled`` and ``error``; ``cancel`` and ``shutdown`` get no
answer of their own. A worker that ends without one (killed, out of memory) is known from the process's end.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from .volume import Volume

PROTOCOL_VERSION = 1
PROGRESS_INTERVAL_SECONDS = 0.05
ERROR_KINDS = ("input", "model", "memory", "internal")
_FOLDER_PREFIX = "flaresegment-"


class ProtocolError(ValueError):
    """A line that is not a message of this protocol."""


def worker_command(python: str | os.PathLike[str]) -> list[str]:
    """Program and arguments that start the worker with the given Python (Slicer's PythonSlicer, or sys.executable)."""
    return [str(python), str(Path(__file__).with_name("worker.py"))]


@dataclass(frozen=True)
class SharedArray:
    """An array in a file that both processes can reach: raw bytes in C order."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size_in_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def map(self) -> np.ndarray:
        """The array mapped read-only, without copying. Raises OSError, or ValueError if the file is too short."""
        return np.memmap(self.path, dtype=np.dtype(self.dtype), mode="r", shape=self.shape)

    def read(self) -> np.ndarray:
        """The array as a copy that outlives the file. Raises OSError, or ValueError if the file is too short."""
        return np.fromfile(self.path, dtype=np.dtype(self.dtype), count=math.prod(self.shape)).reshape(self.shape)

    def write(self, array: np.ndarray) -> None:
        """Fills the file. Raises OSError when there is no room, ValueError for another shape or type."""
        if array.shape != self.shape or array.dtype != np.dtype(self.dtype):
            raise ValueError(f"expected {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        with open(self.path, "r+b") as file:
            np.ascontiguousarray(array).tofile(file)

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype, "shape": list(self.shape)}

    @staticmethod
    def from_json(data: dict[str, Any]) -> SharedArray:
        return SharedArray(str(data["path"]), np.dtype(data["dtype"]).str, tuple(int(n) for n in data["shape"]))


class SharedFolder:
    """The client's private directory for the arrays of its requests; a context manager.

    Only the user can read it (mode 0700). ``close`` removes everything in it. Making one also removes directories left
    by processes that no longer run.
    """

    def __init__(self) -> None:
        self._folders: list[Path] = []
        for parent in _parent_folders():
            _remove_abandoned(parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def allocate(self, shape: Sequence[int], dtype: Any = np.uint8) -> SharedArray:
        """A block of the given shape with its room reserved. Raises OSError when no place has room for it."""
        shape = tuple(int(n) for n in shape)
        return self._place(shape, np.dtype(dtype), _reserve)

    def put(self, array: np.ndarray) -> SharedArray:
        """A block that holds a copy of the array. Raises OSError when no place has room for it."""
        array = np.ascontiguousarray(array)
        return self._place(array.shape, array.dtype, lambda file, _: array.tofile(file))

    def remove(self, block: SharedArray) -> None:
        """Removes one block; nothing happens if it is gone already or still held by a process on Windows."""
        _remove_file(block.path)

    def close(self) -> None:
        """Removes all blocks."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    def _place(self, shape: tuple[int, ...], dtype: np.dtype, fill: Any) -> SharedArray:
        problem: OSError | None = None
        for parent in _parent_folders():
            path = None
            try:
                handle, path = tempfile.mkstemp(suffix=".raw", dir=self._folder_in(parent))
                with os.fdopen(handle, "w+b") as file:
                    fill(file, math.prod(shape) * dtype.itemsize)
                return SharedArray(path, dtype.str, shape)
            except OSError as error:
                problem = error
                if path is not None:
                    _remove_file(path)
        raise problem if problem is not None else OSError("no folder for temporary files")

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
        voxels = folder.put(volume.array)
        try:
            labels = folder.allocate(volume.array.shape, np.uint8)
        except OSError:
            folder.remove(voxels)
            raise
        return SegmentRequest(
            id, voxels, volume.spacing, volume.origin, volume.direction, labels, str(model), device, threads
        )

    def map_volume(self) -> Volume:
        """The worker's view of the volume: mapped, read-only, not copied."""
        return Volume(self.volume.map(), self.spacing, self.origin, self.direction)


@dataclass(frozen=True)
class Ready:
    id: int | None
    protocol: int
    pid: int
    torch: str
    device: str
    threads: int
    model: str | None


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


Event = Ready | Progress | Result | Stopped | Failure
_EVENTS: dict[str, type] = {
    "ready": Ready,
    "progress": Progress,
    "result": Result,
    "cancelled": Stopped,
    "error": Failure,
}
_EVENT_NAMES = {kind: name for name, kind in _EVENTS.items()}


def encode_request(request: Request | SegmentRequest) -> bytes:
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
        }
    else:
        message = {name: value for name, value in vars(request).items() if value is not None}
    return _encode(message)


def decode_request(line: bytes | str) -> Request | SegmentRequest:
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
            )
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
    kind = _EVENTS.get(message.pop("event", ""))
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


def _parent_folders() -> list[Path]:
    memory = Path("/dev/shm")
    temporary = Path(tempfile.gettempdir())
    return [memory, temporary] if sys.platform == "linux" and os.access(memory, os.W_OK) else [temporary]


def _reserve(file: Any, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        if size:
            os.posix_fallocate(file.fileno(), 0, size)
        return
    zeros = bytes(1 << 20)
    for start in range(0, size, len(zeros)):
        file.write(zeros[: size - start])


def _remove_file(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{_FOLDER_PREFIX}*-*"):
        pid = folder.name.removeprefix(_FOLDER_PREFIX).split("-")[0]
        if pid.isdigit() and int(pid) != os.getpid() and not _is_running(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return kernel.GetLastError() == 5  # access denied: it runs, for somebody else
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
