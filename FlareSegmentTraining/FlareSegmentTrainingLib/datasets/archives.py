"""Zip and tar files of data sets, unpacked as a stranger's file must be: checked whole before the first byte is
written.

Refused: entries that would land outside the folder, links and devices, encrypted or overlapping entries, two entries
for one file, and more bytes than the limits allow (counted while unpacking, whatever the archive claims). Only volumes
and the lists beside them are unpacked. Every file appears whole or not at all, and a second run unpacks only what is
missing.

Opened by zipfile and tarfile, checked and written here: tarfile's data filter lets links inside the folder, names that
Windows takes for devices and bombs pass and only strips a leading slash, and zipfile has no filter.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from FlareSegmentLib.errors import InputError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
_VOLUMES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".raw", ".zraw", ".dcm", ".png")
DATA_SUFFIXES = (*_VOLUMES, ".json", ".csv", ".tsv", ".txt", ".ctbl", ".label")
_OTHER_ARCHIVES = (".7z", ".rar", ".gz", ".bz2", ".xz", ".001")
PUBLISHED_SHA256 = {
    # Zenodo record 7860267
    "FLARE22Train.zip": "d57e201dc9002bd4a6fc1f5e0d4525285f46bcc5be1a3c8f12543151e6675154",
}
_CHUNK = 1 << 20
_LONGEST_READ = 1 << 24
_WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What an archive may hold.

    Attributes:
        files: number of entries.
        file_bytes, total_bytes: unpacked sizes.
        ratio: unpacked by packed size of the whole archive; an archive that stays below `small_bytes` may exceed it,
            as label maps of few values do.
    """

    files: int = 100_000
    file_bytes: int = 8 << 30
    total_bytes: int = 500 << 30
    ratio: float = 200.0
    small_bytes: int = 2 << 30


@dataclass(frozen=True)
class Unpacked:
    """What `unpack` did: the folder, and how many files it wrote now, found there already, and left in the archive;
    archives among these.
    """

    folder: Path
    written: int
    present: int
    skipped: int
    archives: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Entry:
    path: PurePosixPath
    size: int
    source: zipfile.ZipInfo | tarfile.TarInfo


def is_archive(path: Path) -> bool:
    """Whether the name is that of an archive that `unpack` reads."""
    return path.is_file() and path.name.lower().endswith(ARCHIVE_SUFFIXES)


def archive_stem(path: Path) -> str:
    """The archive's name without its suffix."""
    suffix = max((suffix for suffix in ARCHIVE_SUFFIXES if path.name.lower().endswith(suffix)), key=len)
    return path.name[: -len(suffix)]


def sha256(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def unpack(
    archive: Path, folder: Path, limits: Limits | None = None, say: Callable[[str], None] | None = None
) -> Unpacked:
    """Unpack the volumes and lists of a zip or tar file into a folder, which is made; files of the right size there
    are kept.

    Raises:
        InputError: the archive is damaged or unsafe (nothing is written when its list of contents shows it), or the
            disk is full.
    """
    limits = limits or Limits()
    opener = _open_zip if archive.name.lower().endswith(".zip") else _open_tar
    try:
        with opener(archive) as reader:
            entries = _checked(archive, reader.entries(), limits)
            wanted = [entry for entry in entries if _is_data(entry.path)]
            missing = [entry for entry in wanted if not _is_present(folder, entry)]
            needed = sum(entry.size for entry in missing)
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if needed > free:
                raise InputError(
                    f"{archive.name} needs {_gigabytes(needed)} in {folder}, where {_gigabytes(free)} are free; "
                    "choose another folder."
                )
            with tempfile.TemporaryDirectory(dir=folder, prefix=".unpacking-") as private:
                for number, entry in enumerate(missing, start=1):
                    _write(reader, entry, folder, Path(private) / "file")
                    if say and (number == len(missing) or number % 10 == 0):
                        say(f"Unpacked {number} of {len(missing)} files of {archive.name}")
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        lzma.LZMAError,
        EOFError,
        NotImplementedError,
        UnicodeError,
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{archive} is damaged or of an unknown kind ({reason}); download it again.") from error
    except OSError as error:
        raise InputError(f"{archive} cannot be unpacked to {folder}: {error.strerror or error}.") from error
    inner = tuple(str(entry.path) for entry in entries if _is_other_archive(entry.path))
    return Unpacked(folder, len(missing), len(wanted) - len(missing), len(entries) - len(wanted), inner)


class _ZipReader:
    def __init__(self, file: zipfile.ZipFile, archive: Path):
        self._file, self._archive = file, archive

    def entries(self) -> Iterator[_Entry]:
        end = 0
        for info in sorted(self._file.infolist(), key=lambda info: info.header_offset):
            if info.header_offset < end:
                raise InputError(f"{self._archive} is refused: its entries overlap (a zip bomb).")
            end = info.header_offset + info.compress_size
            if info.flag_bits & 1:
                raise InputError(f"{self._archive} is encrypted: unpack it yourself and name the folder.")
            kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise InputError(f"{self._archive} is refused: {_shown(info.filename)} is a link or a device.")
            # orig_filename is what the archive says; filename was already cut at a null character
            path = _safe_path(self._archive, info.orig_filename)
            # Compress-Archive of Windows PowerShell 5 ends the names of folders with a backslash
            if not info.is_dir() and not (info.file_size == 0 and info.orig_filename.endswith("\\")):
                yield _Entry(path, info.file_size, info)

    def open(self, entry: _Entry) -> IO[bytes]:
        assert isinstance(entry.source, zipfile.ZipInfo)
        return self._file.open(entry.source)


class _TarReader:
    def __init__(self, file: tarfile.TarFile, archive: Path):
        self._file, self._archive = file, archive

    def entries(self) -> Iterator[_Entry]:
        for member in self._file:
            path = _safe_path(self._archive, member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise InputError(f"{self._archive} is refused: {_shown(member.name)} is a link, a device or sparse.")
            yield _Entry(path, member.size, member)

    def open(self, entry: _Entry) -> IO[bytes]:
        assert isinstance(entry.source, tarfile.TarInfo)
        stream = self._file.extractfile(entry.source)
        assert stream is not None  # it is a regular file
        return stream


@contextmanager
def _open_zip(archive: Path) -> Iterator[_ZipReader]:
    with zipfile.ZipFile(archive) as file:
        yield _ZipReader(file, archive)


@contextmanager
def _open_tar(archive: Path) -> Iterator[_TarReader]:
    with (
        _unpacked_stream(archive) as stream,
        tarfile.open(fileobj=_InPieces(stream, archive), mode="r:") as file,
    ):
        yield _TarReader(file, archive)


def _unpacked_stream(archive: Path) -> io.BufferedIOBase:
    """The tar file inside of what gzip, bzip2 or xz made of it, told by its first bytes."""
    with open(archive, "rb") as raw:
        start = raw.read(6)
    if start.startswith(b"\x1f\x8b"):
        return gzip.open(archive, "rb")
    if start.startswith(b"BZh"):
        return bz2.open(archive, "rb")
    return lzma.open(archive, "rb") if start.startswith(b"\xfd7zXZ\0") else open(archive, "rb")


class _InPieces(io.BufferedIOBase):
    """A stream for tarfile that refuses to read very much at once: tarfile takes a header's word for its length."""

    def __init__(self, stream: io.BufferedIOBase, archive: Path):
        self._stream, self._archive = stream, archive

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_READ:
            raise InputError(f"{self._archive} is refused: a header of it has {_gigabytes(size or 0)} (a bomb).")
        return self._stream.read(size)

    def seek(self, place: int, whence: int = 0) -> int:
        return self._stream.seek(place, whence)

    def tell(self) -> int:
        return self._stream.tell()


def _safe_path(archive: Path, name: str) -> PurePosixPath:
    """The entry's path below the folder. Raises InputError for a name that leaves it on any system."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    unsafe = (
        name.startswith(("/", "\\"))
        or ".." in parts
        or len(name) > 1000
        or any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts)
        or any(ord(character) < 32 or character in ':*?"<>|' or "\ud800" <= character <= "\udfff" for character in name)
        or any(_WINDOWS_DEVICE.fullmatch(part) or part.endswith((" ", ".")) for part in parts)
    )
    if unsafe:
        raise InputError(
            f"{archive} is refused: the entry {_shown(name)} has a name that could leave the folder or harm."
        )
    return PurePosixPath(*parts)


def _checked(archive: Path, entries: Iterator[_Entry], limits: Limits) -> list[_Entry]:
    """All entries, in the archive's order, once they keep the limits. Raises InputError."""
    packed = max(1, archive.stat().st_size)
    result: list[_Entry] = []
    seen: set[str] = set()
    total = 0
    for entry in entries:
        total += entry.size
        # "A.nii" and "a.nii" are one file on Windows and macOS
        key = str(entry.path).casefold()
        problem = None
        if key in seen or any(str(parent).casefold() in seen for parent in entry.path.parents):
            problem = f"{_shown(str(entry.path))} is there twice"
        elif len(result) >= limits.files:
            problem = f"it has more than {limits.files} files"
        elif entry.size > limits.file_bytes:
            problem = (
                f"{_shown(str(entry.path))} unpacks to {_gigabytes(entry.size)}, above {_gigabytes(limits.file_bytes)}"
            )
        elif total > limits.total_bytes:
            problem = f"it unpacks to more than {_gigabytes(limits.total_bytes)}"
        elif total > limits.small_bytes and total > limits.ratio * packed:
            problem = f"it unpacks to more than {limits.ratio:g} times its size (a bomb)"
        if problem:
            raise InputError(f"{archive} is refused: {problem}.")
        seen.add(key)
        result.append(entry)
    return result


def _is_hidden(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def _is_data(path: PurePosixPath) -> bool:
    return not _is_hidden(path) and path.name.lower().endswith(DATA_SUFFIXES)


def _is_other_archive(path: PurePosixPath) -> bool:
    return not (_is_hidden(path) or _is_data(path)) and path.name.lower().endswith(
        (*ARCHIVE_SUFFIXES, *_OTHER_ARCHIVES)
    )


def _is_present(folder: Path, entry: _Entry) -> bool:
    target = folder / entry.path
    return target.is_file() and not target.is_symlink() and target.stat().st_size == entry.size


def _write(reader: _ZipReader | _TarReader, entry: _Entry, folder: Path, temporary: Path) -> None:
    written = 0
    with reader.open(entry) as source, open(temporary, "wb") as target:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > entry.size:
                raise InputError(f"{_shown(str(entry.path))} unpacks to more than the archive says; it is refused.")
            target.write(chunk)
    if written != entry.size:
        raise InputError(f"{_shown(str(entry.path))} is cut short in the archive; download it again.")
    target_path = folder / entry.path
    target_path.parent.mkdir(parents=True, exist_ok=True)
    if not target_path.parent.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"{target_path.parent} is a link out of {folder}; remove it.")
    os.replace(temporary, target_path)


def _shown(name: str) -> str:
    """A name for a message: no control characters, not endless."""
    text = name.encode("ascii", "backslashreplace").decode() if not name.isprintable() else name
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
