"""Arrays in files that the panel and the worker both reach: voxels do not travel through their pipe.

The client makes a private folder for each request; the worker maps what lies there into memory. On Linux the folder
lies in ``/dev/shm``, which is memory, and anywhere else (or when that is full) in the folder for temporary files. The
client sets aside the room for the answer as well, so that it is the client who moves to the disk and the worker always
finds room. Plain files were chosen over ``multiprocessing.shared_memory`` because a full ``/dev/shm`` then raises an
OSError instead of killing Slicer with SIGBUS, no resource tracker is started from the Slicer executable, and what a
crash leaves is found and removed by the next `SharedFolder`.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

import numpy as np

from FlareSegmentLib.processes import remove_abandoned
from FlareSegmentLib.volume import Volume

Outcome = TypeVar("Outcome")
_FOLDER_PREFIX = "flaresegment-"
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class SharedArray:
    """An array in a file: raw bytes in C order."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def map(self) -> np.ndarray:
        """The array mapped read-only, without copying. Raises OSError, or ValueError if the file is too short."""
        return np.memmap(self.path, dtype=np.dtype(self.dtype), mode="r", shape=self.shape)

    def write_box(self, array: np.ndarray, box: tuple[slice, ...]) -> None:
        """Fill the file with a box of an array of this shape and type, and give back what room that does not need.

        Raises OSError when there is no room, ValueError for another shape or type.
        """
        if array.shape != self.shape or array.dtype != np.dtype(self.dtype):
            raise ValueError(f"expected {self.dtype} {self.shape}, got {array.dtype} {array.shape}")
        part = array[box]
        with open(self.path, "r+b") as file:
            _write(file, part)
            file.truncate(part.nbytes)

    def read_box(self, box: tuple[slice, ...]) -> np.ndarray:
        """The box that `write_box` wrote. Raises OSError, or ValueError if the file is too short.

        It is read and not mapped: Windows cannot remove a file while somebody holds a mapping of it.
        """
        shape = tuple(extent.stop - extent.start for extent in box)
        return np.fromfile(self.path, np.dtype(self.dtype), math.prod(shape)).reshape(shape)


@dataclass(frozen=True)
class SharedVolume:
    """A volume whose voxels are shared; the rest is as in `Volume`, the direction's nine numbers by rows."""

    voxels: SharedArray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def map(self) -> Volume:
        """The volume mapped read-only, without copying. Raises InputError, and what `SharedArray.map` does."""
        return Volume(self.voxels.map(), self.spacing, self.origin, np.array(self.direction))


class SharedFolder:
    """The client's private folder for the arrays of a request, which only the user can read; a context manager.

    `close` removes it with all that is in it. Making one also removes those of processes that no longer run.

    Copying is done by generators, a few megabytes at each step, so that an event loop can go on in between; `finish`
    runs one to its end. They raise OSError when no place has room.
    """

    def __init__(self) -> None:
        self._folders: list[Path] = []
        for parent in _parent_folders():
            remove_abandoned(parent, _FOLDER_PREFIX)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove everything."""
        while self._folders:
            shutil.rmtree(self._folders.pop(), ignore_errors=True)

    def put(self, array: np.ndarray) -> Generator[None, None, SharedArray]:
        """A copy of an array."""
        rows = max(1, _PIECE_BYTES // max(1, array[:1].nbytes))

        def copy(file: BinaryIO) -> Iterator[None]:
            for start in range(0, len(array), rows):
                _write(file, array[start : start + rows])
                yield

        path = yield from self._new_file(copy)
        return SharedArray(path, array.dtype.str, array.shape)

    def put_volume(self, volume: Volume) -> Generator[None, None, SharedVolume]:
        """A copy of a volume."""
        voxels = yield from self.put(volume.array)
        return SharedVolume(voxels, volume.spacing, volume.origin, tuple(volume.direction.ravel().tolist()))

    def room_for_labels(self, shape: tuple[int, ...]) -> Generator[None, None, SharedArray]:
        """Room for labels (uint8) of a shape, for the worker to fill."""
        path = yield from self.reserve(math.prod(shape))
        return SharedArray(path, np.dtype(np.uint8).str, shape)

    def reserve(self, size: int) -> Generator[None, None, str]:
        """Path of a new file with room for `size` bytes.

        Memory and disk really are set aside: a file that only claims its size would, once the place is full, make
        whoever reads it through a mapping die of SIGBUS.
        """

        def fill(file: BinaryIO) -> Iterator[None]:
            for start in range(0, size, _PIECE_BYTES):
                _reserve(file, start, min(_PIECE_BYTES, size - start))
                yield

        return (yield from self._new_file(fill))

    def _new_file(self, fill: Callable[[BinaryIO], Iterator[None]]) -> Generator[None, None, str]:
        """A file in the first place where it can be filled; nothing of it is left in the others, or when given up."""
        problem = OSError("no folder for temporary files")
        for parent in _parent_folders():
            path = ""
            try:
                handle, path = tempfile.mkstemp(suffix=".raw", dir=self._folder_in(parent))
                with os.fdopen(handle, "w+b") as file:
                    yield from fill(file)
                return path
            except (OSError, GeneratorExit) as error:
                with contextlib.suppress(OSError):
                    os.unlink(path)
                if not isinstance(error, OSError):
                    raise
                problem = error
        raise problem

    def _folder_in(self, parent: Path) -> Path:
        for folder in self._folders:
            if folder.parent == parent:
                return folder
        folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir=parent))
        self._folders.append(folder)
        return folder


def finish(steps: Generator[None, None, Outcome]) -> Outcome:
    """Run all steps of a generator at once and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _parent_folders() -> list[Path]:
    memory = Path("/dev/shm")
    temporary = Path(tempfile.gettempdir())
    return [memory, temporary] if sys.platform == "linux" and os.access(memory, os.W_OK) else [temporary]


def _write(file: BinaryIO, array: np.ndarray) -> None:
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
