"""What every reading by ITK needs, of image files and of DICOM: names that it can open, silence, a header's size."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import SimpleITK as sitk

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.file_headers import check_size


def can_be_opened(path: Path) -> bool:
    """Whether ITK and VTK can open a file of this name: one whose bytes are no text ends the process in them."""
    try:
        return b"\0" not in str(path).encode()
    except UnicodeEncodeError:
        return False


@contextmanager
def quiet_itk() -> Iterator[None]:
    """Keeps ITK's own warnings, and what its C libraries print, from stderr: what matters is said in our words."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        with _silence:
            yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


class _Silence:
    """Standard error goes nowhere while any thread is inside; a context manager for several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside, self._kept = 0, -1

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                with suppress(OSError):  # a program without a console may have no standard error
                    self._kept = os.dup(2)
                    nowhere = os.open(os.devnull, os.O_WRONLY)
                    os.dup2(nowhere, 2)
                    os.close(nowhere)

    def __exit__(self, *_error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._kept >= 0:
                os.dup2(self._kept, 2)
                os.close(self._kept)
                self._kept = -1


_silence = _Silence()


def check_header(reader: sitk.ImageFileReader, path: Path, bytes_at_hand: int) -> int:
    """Check an image's header before memory is taken; returns how many bytes its voxels need. Raises InputError."""
    size, dimension = list(reader.GetSize()), reader.GetDimension()
    shape = " x ".join(str(n) for n in size)
    if dimension > 3 and math.prod(size[3:]) > 1:
        raise InputError(f"{path} holds several volumes ({shape}): export the one to segment as a file of its own.")
    if dimension < 3 or min(size[:3]) < 2:
        if min(size, default=0) == 0:
            raise InputError(f"{path} is empty: its size is {shape}.")
        raise InputError(f"{path} is a two-dimensional image ({shape}): a CT volume with many slices is needed.")
    if reader.GetNumberOfComponents() > 1:
        kind = "complex" if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelIDValue()) else "color or vector"
        raise InputError(f"{path} is a {kind} image: a CT has one number per voxel. Choose the CT itself.")
    voxel_bytes = bytes_per_voxel(reader.GetPixelIDValue())
    check_size(path, size, voxel_bytes, bytes_at_hand)
    return math.prod(size) * voxel_bytes


def bytes_per_voxel(pixel_id: int) -> int:
    """Bytes of a voxel of one of ITK's types of pixels."""
    one = sitk.Image([1, 1, 1], pixel_id) if pixel_id >= 0 else None
    return one.GetSizeOfPixelComponent() if one is not None else 1
