"""Which CTs a person means who names files and folders, and what their results are called."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.file_headers import file_type

LONGEST_NAME = 255 - len("_organs.seg.nrrd")
_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
_LABELS = ("_labels", "_label", "_seg", "_segmentation")


class Source(NamedTuple):
    """A CT as it was named, and the name of its results."""

    path: str
    name: str


def ct_sources(words: Sequence[str]) -> list[Source]:
    """The CTs of a command line: image files, DICOM folders, and folders of image files.

    A folder stands for the image files in it; label maps, told by their names, are left out. One without image files,
    or with DICOM files, is a DICOM folder and stands for the CT in it. Whether a file is a CT is found out later.

    Raises:
        InputError: a name is empty or too long.
    """
    paths = list(dict.fromkeys(path for word in words for path in _expanded(word)))
    plain = [case_name(Path(path)) for path in paths]
    for path, name in zip(paths, plain):
        if len(os.fsencode(name)) > LONGEST_NAME:
            raise InputError(f"{path}: the name is too long for those of the results; rename the file.")
    return [Source(path, name) for path, name in zip(paths, _distinct(paths, plain))]


def case_name(path: Path) -> str:
    """The file's name without its format's suffix; a folder's own name."""
    path = path.resolve()
    lower = path.name.lower()
    suffix = next((suffix for suffix in _SUFFIXES if lower.endswith(suffix) and not path.is_dir()), "")
    return path.name[: len(path.name) - len(suffix)] or "ct"


def _expanded(word: str) -> list[str]:
    if not word.strip():
        raise InputError("The name of the CT is empty: name a file or a folder, or leave it out for the phantom.")
    folder = Path(word)
    try:
        files = sorted(file for file in folder.iterdir() if file.is_file() and not file.name.startswith("."))
        if any(_is_dicom(file) for file in files if not file_type(file)):
            return [word]
    except (OSError, ValueError):  # no folder, or none that can be read: said when it is read
        return [word]
    scans = [file for file in files if file_type(file) and not _is_label_map(file)]
    return [str(file) for file in scans] or [word]


def _is_dicom(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _is_label_map(file: Path) -> bool:
    return file.name.lower().endswith(".seg.nrrd") or case_name(file).lower().endswith(_LABELS)


def _distinct(paths: Sequence[str], names: Sequence[str]) -> list[str]:
    """The names; those that several CTs have, in whatever letter case, with their folders' names and numbers."""
    counts = Counter(name.casefold() for name in names)
    result: list[str] = []
    taken: set[str] = set()
    for path, name in zip(paths, names):
        longer = f"{Path(path).resolve().parent.name}_{name}".lstrip("_")
        if counts[name.casefold()] > 1 and len(os.fsencode(longer)) <= LONGEST_NAME - 8:
            name = longer
        unique, number = name, 1
        while unique.casefold() in taken:
            number += 1
            unique = f"{name}-{number}"
        taken.add(unique.casefold())
        result.append(unique)
    return result
