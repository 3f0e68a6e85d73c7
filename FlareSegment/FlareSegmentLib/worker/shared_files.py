"""Arrays in files that the panel and the worker both reach: voxels do not travel through their pipe.

Either side writes into the first folder of a request that has room and tells the other one the path. Plain .npy files
were chosen over ``multiprocessing.shared_memory`` because a full ``/dev/shm`` then raises an OSError instead of killing
Slicer with SIGBUS, no resource tracker is started from the Slicer executable, and what a crash leaves is found and
removed when the next folder is made.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from FlareSegmentLib.processes import private_folder
from FlareSegmentLib.volume import Volume

Outcome = TypeVar("Outcome")
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class SharedBox:
    """A file with what lies in a box (z, y, x) of a volume; outside of it all is 0."""

    path: str
    box: tuple[slice, slice, slice]


@dataclass(frozen=True)
class SharedVolume:
    """A volume whose voxels lie in a file; the rest is as in `Volume`, the direction's nine numbers by rows."""

    voxels: str
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @staticmethod
    def write(folders: Sequence[str], volume: Volume) -> Generator[None, None, SharedVolume]:
        """The volume in a new file, see `write_file`."""
        voxels = yield from write_array(folders, volume.array)
        return SharedVolume(voxels, volume.spacing, volume.origin, tuple(volume.direction.ravel().tolist()))

    def map(self) -> Volume:
        """The volume mapped read-only, without copying. Raises InputError, and what `map_array` does."""
        return Volume(map_array(self.voxels), self.spacing, self.origin, np.array(self.direction))


@contextlib.contextmanager
def shared_folders() -> Iterator[tuple[str, ...]]:
    """Private folders for a request, the best one first: on Linux in ``/dev/shm``, which is memory."""
    with contextlib.ExitStack() as stack:
        folders = []
        for parent in _parent_folders():
            with contextlib.suppress(OSError):
                folders.append(stack.enter_context(private_folder(parent)))
        yield tuple(folders)


def map_array(path: str) -> np.ndarray:
    """The array of a file mapped read-only, without copying. Raises OSError, or ValueError if the file is too short."""
    return np.lib.format.open_memmap(path, mode="r")


def read_array(path: str) -> np.ndarray:
    """The array of a file, not mapped: Windows cannot remove what somebody maps. Raises as `map_array` does."""
    with open(path, "rb") as file:
        return np.lib.format.read_array(file)


def write_array(folders: Sequence[str], array: np.ndarray) -> Generator[None, None, str]:
    """Path of a new file with an array, see `write_file`."""
    return write_file(folders, partial(_pieces, array))


def write_file(
    folders: Sequence[str], pieces: Callable[[], Iterable[bytes | np.ndarray]]
) -> Generator[None, None, str]:
    """Path of a new file in the first folder that has room for all pieces; nothing of it is left in the others.

    It is a generator that writes a piece at each step, so that an event loop can go on in between; `finish` runs it to
    its end. Raises OSError when no folder has room.
    """
    problem = OSError("no folder for temporary files")
    for folder in folders:
        handle, path = tempfile.mkstemp(dir=folder)
        try:
            with open(handle, "wb") as file:
                for piece in pieces():
                    file.write(piece)
                    yield
            return path
        except OSError as error:
            os.unlink(path)
            problem = error
    raise problem


def finish(steps: Generator[None, None, Outcome]) -> Outcome:
    """Run all steps of a generator at once and return its value."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def _pieces(array: np.ndarray) -> Iterator[bytes | np.ndarray]:
    """An .npy file in C order, whatever the array's own is."""
    header = io.BytesIO()
    description = {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(header, description)
    yield header.getvalue()
    rows = max(1, _PIECE_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows])


def _parent_folders() -> list[Path]:
    memory = Path("/dev/shm")
    temporary = Path(tempfile.gettempdir())
    return [memory, temporary] if sys.platform == "linux" and os.access(memory, os.W_OK) else [temporary]
