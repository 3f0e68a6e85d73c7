"""A CT of a cohort as its list holds it: where its files are, what its results are called, whether they changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import files_below
from FlareSegmentTrainingLib.datasets.archives import sha256

_DETACHED = (".nhdr", ".mhd")
_LONGEST_PART = 150  # bytes of a folder's or file's name, before what the results add to it


@dataclass(frozen=True)
class CohortCase:
    """A CT that was listed.

    Attributes:
        case: its name or place, or the id that a list gives it.
        name: of its result files, without what tells them apart; / stands between folders.
        source: the image file or DICOM folder; of a series, the folder that holds its files.
        files: of a series, its slices below `source`; empty where `source` says all.
        damaged: files beside them that cannot be read, likewise.
        labels: a label map or folder of masks to measure against.
        label_map: what the values of the labels mean, as --label-map names it; by default what the files say.
        state: of the files when they were listed; another one where one of them was written since.
        problem: why this can be no result, where the list already shows it.
    """

    case: str
    name: str
    source: str
    files: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    labels: str | None = None
    label_map: str | None = None
    state: str = ""
    problem: str | None = None

    def image_files(self) -> list[Path]:
        """The files of the image."""
        source = Path(self.source)
        if self.files:
            return [source / name for name in self.files]
        return _files_of(source)

    def all_files(self) -> list[Path]:
        """The files of image and labels, and the one that says what these mean."""
        labels = _files_of(Path(self.labels)) if self.labels else []
        meaning = [Path(self.label_map)] if self.label_map and os.path.isfile(self.label_map) else []
        return [*self.image_files(), *labels, *meaning]

    def state_now(self) -> str:
        """What changes when one of the files is written, another one takes its place in the list (in archives many
        have the same name, size and time), or the list says something else of them. Raises OSError.
        """
        digest = hashlib.sha256(self._said())
        for path in self.all_files():
            digest.update(state_line(path, str(path)))
        return digest.hexdigest()[:32]

    def _said(self) -> bytes:
        return json.dumps([self.labels is not None, self.label_map]).encode()

    def content_hash(self) -> str:
        """SHA-256 of all files and what the list says of them. Raises InputError where one cannot be read."""
        digest = hashlib.sha256(self._said())
        try:
            for path in self.all_files():
                digest.update(sha256(path).encode())
        except OSError as error:
            raise vanished(error) from error
        return digest.hexdigest()

    def as_line(self) -> str:
        """One line of JSON, without what is not there."""
        return json.dumps({key: value for key, value in asdict(self).items() if value not in (None, (), "")})

    @staticmethod
    def of_line(line: str) -> CohortCase:
        """What `as_line` wrote. Raises ValueError, TypeError."""
        content = json.loads(line)
        for key in ("files", "damaged"):
            content[key] = tuple(content.get(key, ()))
        return CohortCase(**content)


def vanished(error: OSError) -> InputError:
    """The error for a file that was listed and cannot be read now."""
    return InputError(f"{error.filename} cannot be read ({error.strerror}): it was listed, check whether it is there.")


def state_line(path: Path, name: str) -> bytes:
    """A file's name, size and time of change. Raises OSError."""
    facts = path.stat()
    return f"{name}\t{facts.st_size}\t{facts.st_mtime_ns}\n".encode(errors="surrogateescape")


def _files_of(path: Path) -> list[Path]:
    """All that a volume is read from."""
    if path.is_dir():
        return list(files_below(path))
    if path.suffix.lower() in _DETACHED:
        stem = f"{path.stem}."
        try:
            return [
                path,
                *sorted(file for file in path.parent.iterdir() if file.name.startswith(stem) and file != path),
            ]
        except OSError:
            return [path]
    return [path]


class ResultNames:
    """Names of result files: valid on every system, never two alike, not even but for letter case."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._cases: set[str] = set()

    def told_apart(self, case: str, source: str) -> str:
        """What a case is called in tables and report: where another one is called so, with a hash of its source."""
        if case in self._cases:
            case = f"{case}_{_short_hash(source)}"
        self._cases.add(case)
        return case

    def of(self, case: str, source: str) -> str:
        """The name of a case's results, / between folders."""
        parts = [_plain(part) for part in case.split("/") if part] or [_plain("")]
        name = "/".join(parts)
        if not self._take(name):
            name = f"{name}_{_short_hash(source)}"
            number = 1
            while not self._take(name if number == 1 else f"{name}-{number}"):
                number += 1
            name = name if number == 1 else f"{name}-{number}"
        return name

    def _take(self, name: str) -> bool:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in self._taken:
            return False
        self._taken.add(key)
        return True


def _plain(part: str) -> str:
    """A file name's part without what some system does not take, told apart by a hash where something was changed."""
    readable = os.fsencode(part).decode("utf-8", "replace").replace("\ufffd", "_")
    plain = re.sub(r'[\\/:*?"<>|\x00-\x1f\x7f]', "_", readable).strip(". ") or "ct"
    if len(plain.encode()) > _LONGEST_PART:
        plain = plain.encode()[:_LONGEST_PART].decode(errors="ignore").rstrip(". ")
    if re.fullmatch(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?", plain):
        plain = f"_{plain}"
    return plain if plain == part else f"{plain}_{_short_hash(part)}"


def printable(text: str) -> str:
    """Text of one line without the bytes and control characters of names that are no text."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f]", lambda found: found[0].encode("unicode_escape").decode(), text)


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:8]


def read_cases(file: Path) -> Iterator[CohortCase]:
    """The cases of a list, one after the other. Raises InputError where the list is damaged."""
    try:
        with open(file, encoding="utf-8") as stream:
            for line in stream:
                yield CohortCase.of_line(line)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read as a list of CTs: remove it, and it is made anew.") from error
