"""What ITK's readers do not check in strangers' NIfTI, NRRD and MetaImage files.

Before ITK sees a file its header is read here: ITK's parsers end the process on some damaged headers, follow them to
files anywhere on the computer, and take nonsense for a default (a pixel size of 0 for 1 mm, an axis that is no number
for 0). After ITK has read the voxels they are held against the checksum that compressed files carry: ITK fills what it
cannot unpack with whatever the memory holds, without an error.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.volume import Volume

KINDS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
"""The file types that are read, by extension."""

_LONGEST_HEADER = 1 << 20
_SPARE_BYTES = 1 << 24


class Header(Protocol):
    """A file's header that holds nothing that ITK would stumble over."""

    def check(self, volume: Volume) -> list[str]:
        """Warnings about the volume that ITK made of the file. Raises InputError if the file is damaged."""


def read_header(path: Path, extension: str) -> Header:
    """Read and check the header of a file of one of the KINDS. Raises InputError."""
    kind = KINDS[extension]
    try:
        if kind == "NIfTI":
            return _NiftiHeader(path)
        return _NrrdHeader(path) if kind == "NRRD" else _MetaHeader(path)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, LookupError) as error:
        raise unreadable(path, extension) from error


def unreadable(path: Path, extension: str) -> InputError:
    """The error for a file that is not of the type that its name says."""
    return InputError(
        f"{path} is not a readable {KINDS[extension]} file: it is damaged, incomplete or of another type. "
        "Copy or export it again."
    )


def _damaged(path: Path) -> InputError:
    return InputError(f"{path} is damaged or incomplete: its voxels cannot be unpacked. Copy or export it again.")


class _NiftiHeader:
    """https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h and nifti2.h."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with _opened(path) as file:
            header = file.read(540)
        order = "<" if header[:4] in (struct.pack("<i", 348), struct.pack("<i", 540)) else ">"
        second = struct.unpack_from(f"{order}i", header)[0] == 540
        if not second and struct.unpack_from(f"{order}i", header)[0] != 348:
            raise ValueError("size of the header")
        if header[4 if second else 344 :][:4] != (b"n+2\0" if second else b"n+1\0"):
            raise ValueError("magic")

        def field(first: tuple[str, int], other: tuple[str, int]) -> tuple:
            layout, place = other if second else first
            return struct.unpack_from(order + layout, header, place)

        dimensions = field(("8h", 40), ("8q", 16))
        if not 1 <= dimensions[0] <= 7 or min(dimensions[1 : dimensions[0] + 1]) < 1:
            raise ValueError("dimensions")
        self._data_start = int(field(("f", 108), ("q", 168))[0])  # raises what read_header expects, for NaN too
        self._slope, self._intercept = field(("2f", 112), ("2d", 176))
        self._qform, self._sform = field(("2h", 252), ("2i", 344))
        self._matrix = np.array(field(("12f", 280), ("12d", 400))).reshape(3, 4)
        datatype = field(("h", 70), ("h", 12))[0]
        if datatype not in _NIFTI_BYTES or self._data_start < 0:
            raise ValueError("type or start of the voxels")
        self._bytes_per_voxel = _NIFTI_BYTES[datatype]
        self._little_endian = order == "<"
        if not all(0 < size < math.inf for size in field(("8f", 76), ("8d", 104))[1:4]):
            raise InputError(f"{path} cannot be used: a voxel size in its header is not positive; repair the header.")
        placed = field(("6f", 256), ("6d", 352))
        if (self._qform > 0 and not np.all(np.isfinite(placed))) or (
            self._sform > 0 and not (np.all(np.isfinite(self._matrix)) and abs(np.linalg.det(self._matrix[:, :3])) > 0)
        ):
            raise InputError(
                f"{path} cannot be used: the position or the axes in its header are no numbers or singular; "
                "repair the header."
            )

    def check(self, volume: Volume) -> list[str]:
        if self._path.name.lower().endswith(".gz"):
            complete = self._checksum_agrees(volume.array) or self._unpacks(volume.array.size)
        else:
            needed = self._data_start + self._bytes_per_voxel * volume.array.size
            complete = self._path.stat().st_size >= needed
        if not complete:
            raise InputError(f"{self._path} is damaged or incomplete: it ends early. Copy or export it again.")
        if self._qform <= 0 and self._sform <= 0:
            return ["The file does not say how the patient lies: left and right may be swapped. Check the orientation."]
        if self._sform > 0:
            corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
            corners[:, :3] *= np.array(volume.array.shape[::-1]) - 1
            offset = np.abs((self._matrix - volume.affine_ras[:3]) @ corners.T).max()
            if offset > max(volume.spacing) and self._qform <= 0:
                return [
                    f"The axes are not at right angles and were straightened: places are up to {offset:.0f} mm off."
                ]
        return []

    def _checksum_agrees(self, array: np.ndarray) -> bool:
        """The quick way: the voxels as read have the checksum at the file's end."""
        if not self._little_endian or self._slope not in (0.0, 1.0) or self._intercept != 0.0:
            return False
        if array.dtype.itemsize != self._bytes_per_voxel:
            return False
        with gzip.open(self._path) as file:
            head = file.read(self._data_start)
        with open(self._path, "rb") as file:
            file.seek(-8, os.SEEK_END)
            checksum, size = struct.unpack("<II", file.read(8))
        return size == (self._data_start + array.nbytes) % (1 << 32) and checksum == zlib.crc32(array, zlib.crc32(head))

    def _unpacks(self, voxels: int) -> bool:
        """The slow way: the whole file can be unpacked and is long enough."""
        left = self._data_start + self._bytes_per_voxel * voxels
        try:
            with gzip.open(self._path) as file:
                while left >= -_SPARE_BYTES and (chunk := file.read(1 << 20)):
                    left -= len(chunk)
        except (OSError, EOFError, zlib.error):
            return False
        return left <= 0


_NIFTI_BYTES = {
    **dict.fromkeys((2, 256), 1),
    **dict.fromkeys((4, 512), 2),
    128: 3,
    **dict.fromkeys((8, 16, 768, 2304), 4),
    **dict.fromkeys((32, 64, 1024, 1280), 8),
    **dict.fromkeys((1536, 1792), 16),
    2048: 32,
}
"""Bytes per voxel of NIfTI's types, also of those that are no CT and are refused later in better words."""


class _NrrdHeader:
    """https://teem.sourceforge.net/nrrd/format.html."""

    def __init__(self, path: Path) -> None:
        self._path = path
        fields, self._data_start = _lines(path, ":", ends=lambda line: not line)
        if not fields.pop("", "").startswith("NRRD000"):
            raise ValueError("magic")
        dimension = int(fields["dimension"]) if "dimension" in fields else 0
        sizes = [int(word) for word in fields.get("sizes", "").split()]
        if not 1 <= dimension <= 16 or len(sizes) != dimension or min(sizes) < 1:
            raise ValueError("sizes")
        if dimension == 3 and "none" in fields.get("space directions", "").split():
            raise InputError(f"{path} is no volume: one of its axes is none of space. Export the CT again.")
        detached = fields.get("data file", fields.get("datafile"))
        self._data = _beside(path, detached) if detached is not None else path
        if detached is not None:
            self._data_start = 0
        skips = any(fields.get(key, "0") != "0" for key in ("line skip", "lineskip", "byte skip", "byteskip"))
        self._packed = fields.get("encoding", "").lower() in ("gzip", "gz") and not skips

    def check(self, volume: Volume) -> list[str]:
        if self._packed and not _packed_well(self._data, self._data_start, volume.array, gzipped=True):
            raise _damaged(self._path)
        return []


class _MetaHeader:
    """https://itk.org/Wiki/ITK/MetaIO/Documentation."""

    def __init__(self, path: Path) -> None:
        self._path = path
        fields, self._data_start = _lines(path, "=:", ends=lambda line: line.startswith("ElementDataFile"))
        dimensions = int(fields["NDims"]) if "NDims" in fields else 0
        sizes = [int(word) for word in fields.get("DimSize", "").split()]
        if not 1 <= dimensions <= 10 or len(sizes) != dimensions or min(sizes) < 1:
            raise ValueError("sizes")
        for key, positive in _META_NUMBERS.items():
            values = [float(word) for word in fields.get(key, "").split()]
            if key in fields and len(values) < dimensions:
                raise ValueError(key)
            if not all(math.isfinite(value) and (value > 0 or not positive) for value in values):
                reason = "positive" if positive else "a number"
                raise InputError(f"{path} cannot be used: {key} in its header is not {reason}; repair the header.")
        place = fields["ElementDataFile"]
        self._data = path if place.upper() == "LOCAL" else _beside(path, place)
        if self._data != path:
            self._data_start = 0
        self._packed = fields.get("CompressedData", "").lower() in ("true", "1")

    def check(self, volume: Volume) -> list[str]:
        if self._packed and not _packed_well(self._data, self._data_start, volume.array, gzipped=False):
            raise _damaged(self._path)
        return []


_META_NUMBERS = {
    **dict.fromkeys(("ElementSpacing", "ElementSize"), True),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin"), False),
}
"""Keys of a MetaImage header that hold at least one number for each axis, and whether these must be positive."""


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.name.lower().endswith(".gz") else open(path, "rb")  # type: ignore[return-value]


def _lines(path: Path, separators: str, ends: Callable[[str], bool]) -> tuple[dict[str, str], int]:
    """The fields of a text header ('' is the key of lines without a separator) and the place behind it.

    Raises ValueError where there is no end within reason: then the file is none of text.
    """
    fields: dict[str, str] = {}
    with open(path, "rb") as file:
        while file.tell() < _LONGEST_HEADER:
            raw = file.readline(_LONGEST_HEADER)
            line = raw.decode(errors="surrogateescape").strip()
            parts = re.split(f"[{separators}]", line, maxsplit=1)
            key, value = parts if len(parts) == 2 else ("", line)
            fields.setdefault(key.strip(), value.strip())
            if ends(line):
                return fields, file.tell()
            if not raw:
                if path.suffix.lower() == ".nhdr":  # a header alone may end with its file
                    return fields, file.tell()
                break
    raise ValueError("no end of the header")


def _beside(path: Path, name: str) -> Path:
    """The file with a header's voxels. Raises InputError if it is not one file in the header's own folder."""
    if name.upper().startswith("LIST") or "%" in name:
        raise InputError(f"{path} names its voxels in several files: save it as one file (.nrrd or .mha).")
    file = Path(os.path.normpath(path.parent / name))
    if not file.absolute().is_relative_to(path.parent.absolute()):
        raise InputError(f"{path} points at voxels outside of its folder ({name}): put both files into one folder.")
    if not file.is_file():
        raise InputError(f"{path} points at {name}, which is not there: copy both files into one folder.")
    if file == path:
        raise ValueError("points at itself")
    return file


def packed_completely(path: Path) -> bool:
    """Whether all of a gzip-compressed NRRD file is there, for writers that do not notice a full disk."""
    with open(path, "rb") as stream:
        while line := stream.readline(_LONGEST_HEADER):
            if not line.strip():
                return _unpacks(stream)
    return False


def _packed_well(file: Path, start: int, array: np.ndarray, gzipped: bool) -> bool:
    """Whether compressed voxels hold what was read from them; `start` is their place in the file."""
    with open(file, "rb") as stream:
        stream.seek(-8, os.SEEK_END)
        tail = stream.read(8)
        if gzipped:
            agrees = struct.unpack("<II", tail) == (zlib.crc32(array), array.nbytes % (1 << 32))
        else:
            agrees = struct.unpack(">I", tail[4:])[0] == zlib.adler32(array)
        if agrees:
            return True
        stream.seek(start)
        return _unpacks(stream, 8 * array.size + _SPARE_BYTES)


def _unpacks(stream: IO[bytes], most: float = math.inf) -> bool:
    """Whether the rest of a file is a whole zlib or gzip stream with the right checksum, of not far more than `most`
    bytes.
    """
    unpacker = zlib.decompressobj(47)
    count = 0
    try:
        while not unpacker.eof and count <= most and (packed := stream.read(1 << 14)):
            count += len(unpacker.decompress(packed))
    except zlib.error:
        return False
    return unpacker.eof
