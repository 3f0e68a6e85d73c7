"""What ITK's readers do not check in strangers' NRRD and MetaImage files, and what all readers say of a bad file.

Before ITK sees a file its header is read here: ITK's parsers end the process on some damaged headers, follow them to
files anywhere on the computer, and take nonsense for a default (a pixel size of 0 for 1 mm, an axis that is no number
for 0). After ITK has read the voxels they are held against the checksum that compressed files carry: ITK fills what it
cannot unpack with whatever the memory holds, without an error.
"""

from __future__ import annotations

import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from FlareSegmentLib.errors import InputError

KINDS = {
    ".nii": "NIfTI",
    ".nii.gz": "NIfTI",
    ".nrrd": "NRRD",
    ".nhdr": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
"""The file types that are read, by extension."""

MAXIMUM_VOXELS = 1 << 30
GZIP_LIMIT = 1032
"""Deflate cannot shrink data further than this."""

_LONGEST_HEADER = 1 << 20
_SPARE_BYTES = 1 << 24
_UNITS_MM = {
    **dict.fromkeys(("", "?", "mm", "millimeter", "millimeters", "millimetre", "millimetres"), 1.0),
    **dict.fromkeys(("cm", "centimeter", "centimeters", "centimetre", "centimetres"), 10.0),
    **dict.fromkeys(("m", "meter", "meters", "metre", "metres"), 1000.0),
    **dict.fromkeys(("um", "µm", "μm", "micron", "microns", "micrometer", "micrometers"), 0.001),
}


class Header(Protocol):
    """A file's header that holds nothing that ITK would stumble over.

    Attributes:
        unit_mm: what the header's lengths are measured in.
        oriented: whether the file says how the patient lies.
    """

    unit_mm: float
    oriented: bool

    def check(self, array: np.ndarray) -> None:
        """Hold the voxels that ITK read against the file. Raises InputError if it is damaged."""


def read_header(path: Path) -> Header:
    """Read and check the header of a NRRD or MetaImage file. Raises InputError."""
    try:
        return _NrrdHeader(path) if kind_of(path) == "NRRD" else _MetaHeader(path)
    except (OSError, EOFError, zlib.error, struct.error, ValueError, LookupError) as error:
        raise unreadable(path) from error


def file_type(path: str | os.PathLike[str]) -> str | None:
    """The extension by which a file is read (a key of KINDS), or None."""
    name = Path(path).name.lower()
    return next((extension for extension in sorted(KINDS, key=len, reverse=True) if name.endswith(extension)), None)


def kind_of(path: Path) -> str:
    """What a file of one of the KINDS is called."""
    return KINDS[file_type(path) or ""]


def is_gzipped(path: Path) -> bool:
    """Whether a file's name says that all of it is packed."""
    return path.name.lower().endswith(".gz")


def unreadable(path: Path) -> InputError:
    """The error for a file that is not of the type that its name says."""
    return InputError(
        f"{path} is not a readable {kind_of(path)} file: it is damaged, incomplete or of another type. "
        "Copy or export it again."
    )


def damaged(path: Path) -> InputError:
    """The error for a file whose voxels are not whole."""
    return InputError(f"{path} is damaged or incomplete: its voxels cannot be unpacked. Copy or export it again.")


def check_size(path: Path, shape: Sequence[int], voxel_bytes: int, bytes_at_hand: int) -> None:
    """Refuse, before memory is taken, more voxels than can be used or than the file can hold. Raises InputError."""
    text = " x ".join(str(size) for size in shape)
    if math.prod(shape) > MAXIMUM_VOXELS:
        raise InputError(
            f"{path} has {text} voxels according to its header, more than can be segmented ({MAXIMUM_VOXELS:,}): "
            "crop it, or replace the file if it is damaged."
        )
    if math.prod(shape) * voxel_bytes > bytes_at_hand:
        raise InputError(
            f"{path} is damaged or incomplete: its header promises {text} voxels, the file is too small for them."
        )


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
        directions = "space directions" in fields
        self.oriented = directions and fields.get("space", "").lower() in _NRRD_SPACES
        units = fields.get("space units" if directions else "units", "")
        self.unit_mm = _unit_mm(path, re.findall(r'"([^"]*)"', units) or units.split())
        detached = fields.get("data file", fields.get("datafile"))
        self._data = _beside(path, detached) if detached is not None else path
        if detached is not None:
            self._data_start = 0
        skips = any(fields.get(key, "0") != "0" for key in ("line skip", "lineskip", "byte skip", "byteskip"))
        self._packed = fields.get("encoding", "").lower() in ("gzip", "gz") and not skips

    def check(self, array: np.ndarray) -> None:
        if self._packed and not _packed_well(self._data, self._data_start, array, gzipped=True):
            raise damaged(self._path)


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
        self.oriented = bool({"TransformMatrix", "Rotation", "Orientation"} & set(fields))
        self.unit_mm = _unit_mm(path, [fields.get("DistanceUnits", "")])
        place = fields["ElementDataFile"]
        self._data = path if place.upper() == "LOCAL" else _beside(path, place)
        if self._data != path:
            self._data_start = 0
        self._packed = fields.get("CompressedData", "").lower() in ("true", "1")

    def check(self, array: np.ndarray) -> None:
        if self._packed and not _packed_well(self._data, self._data_start, array, gzipped=False):
            raise damaged(self._path)


def _unit_mm(path: Path, units: Sequence[str]) -> float:
    """The one unit of a header's lengths, mm. Raises InputError."""
    names = {unit.strip().lower() for unit in units}
    sizes = {_UNITS_MM.get(name) for name in names} or {1.0}
    size = sizes.pop()
    if sizes or size is None:
        raise InputError(f"{path} cannot be used: its lengths are in {', '.join(sorted(names))}, not in mm; repair it.")
    return size


_NRRD_SPACES = {
    *("right-anterior-superior", "ras", "left-anterior-superior", "las", "left-posterior-superior", "lps"),
    *("right-anterior-superior-time", "rast", "left-anterior-superior-time", "last"),
    *("left-posterior-superior-time", "lpst"),
}

_META_NUMBERS = {
    **dict.fromkeys(("ElementSpacing", "ElementSize"), True),
    **dict.fromkeys(("TransformMatrix", "Rotation", "Orientation", "Offset", "Position", "Origin"), False),
}
"""Keys of a MetaImage header that hold at least one number for each axis, and whether these must be positive."""


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
