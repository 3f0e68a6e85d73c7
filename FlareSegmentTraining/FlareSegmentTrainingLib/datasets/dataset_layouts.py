"""The ways in which data sets lie on a disk, found out by looking: which image goes with which labels, and what the
values mean.

Each layout is one function that looks at a folder and returns what it found there, or None when the folder is not
laid out that way; `LAYOUTS` lists them, the most telling first. Nothing but names and small lists is read here; whether
labels fit their image is seen when a case is read (`cases.Case.read`).

Layouts: `msd` (dataset.json with a list of pairs: Medical Segmentation Decathlon, MONAI, nnU-Net version 1), `nnunet`
(imagesTr/, labelsTr/ and dataset.json), `flare22`, `folders`, `flat`, `beside` and `monailabel` (`folder_layouts`),
`subjects`, `chaos` and `ircad` (`mask_layouts`), and `list` (a CSV or JSON file of pairs, `listed_layouts`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.archives import ARCHIVE_SUFFIXES
from FlareSegmentTrainingLib.datasets.class_tables import DATASET_FILE, LABEL_MAP_FILE
from FlareSegmentTrainingLib.datasets.file_pairs import (
    Found,
    LeftOut,
    Pair,
    case_key,
    check_names,
    entries_of,
    folders_in,
    is_volume_name,
    volume_files,
    volume_stem,
)
from FlareSegmentTrainingLib.datasets.folder_layouts import (
    IMAGE_SUFFIX,
    LABELS_SUFFIX,
    QUALITY_FILE,
    beside,
    flare22,
    flat,
    folders,
    monai_label,
    read_quality,
    with_label_map,
)
from FlareSegmentTrainingLib.datasets.listed_layouts import dataset_json, list_of_pairs, nnunet
from FlareSegmentTrainingLib.datasets.mask_layouts import chaos, ircad, subjects
from FlareSegmentTrainingLib.datasets.parts import TEST, TRAINING, VALIDATION, side_of_folder

__all__ = [
    "IMAGE_SUFFIX",
    "LABELS_SUFFIX",
    "LABEL_MAP_FILE",
    "LAYOUTS",
    "QUALITY_FILE",
    "TRAINING",
    "VALIDATION",
    "Found",
    "LeftOut",
    "Pair",
    "case_key",
    "find_pairs",
    "read_quality",
    "volume_files",
    "volume_stem",
    "with_label_map",
]

FOLDER_LAYOUTS: dict[str, Callable[[Path], Found | None]] = {
    "msd": dataset_json,
    "nnunet": nnunet,
    "flare22": flare22,
    "monailabel": monai_label,
    "folders": folders,
    "flat": flat,
    "ircad": ircad,
    "chaos": chaos,
    "subjects": subjects,
    "beside": beside,
}
LAYOUTS = (*FOLDER_LAYOUTS, "list")
_DEPTH = 3
_LISTS = (".csv", ".tsv", ".json")


def find_pairs(location: Path, layout: str | None = None) -> Found:
    """Look at a folder, or at a CSV or JSON list, and return its cases, sorted by name.

    layout: the only layout to look for; by default all, the most telling first. A folder that only holds other
    folders is looked into.

    Raises:
        InputError: nothing is found, several data sets are, or a list cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"--layout {layout} is unknown; known: {', '.join(LAYOUTS)}.")
    if location.name == DATASET_FILE:
        location = location.parent
    if location.is_file():
        if location.suffix.lower() not in _LISTS:
            raise _no_list(location)
        return check_names(list_of_pairs(location))
    if not location.is_dir():
        raise InputError(f"{location} is missing; name a folder, an archive, a CSV or JSON list, or phantom:N.")
    found = _find(location, layout, _DEPTH)
    if found is None:
        sought = f"as {layout}" if layout else "in any known layout"
        packed = [entry.name for entry in entries_of(location) if entry.name.lower().endswith(ARCHIVE_SUFFIXES)]
        hint = f" It holds archives ({', '.join(packed[:3])}): unpack them, or name them with --data." if packed else ""
        raise InputError(
            f"No case in {location} {sought}: <case>{IMAGE_SUFFIX} with <case>{LABELS_SUFFIX}, images/ with labels/, "
            f"imagesTr/ with labelsTr/, <case>/ct.nii.gz with <case>/segmentations/, or a dataset.json is needed.{hint}"
        )
    return check_names(found)


def _no_list(file: Path) -> InputError:
    """What is said of a file that is neither a list nor an archive that is read."""
    if is_volume_name(file.name):
        return InputError(f"{file} is one volume: name the folder that holds images and labels, or a list of pairs.")
    return InputError(
        f"{file} is neither a list ({', '.join(_LISTS)}) nor an archive that can be read ({', '.join(ARCHIVE_SUFFIXES)}"
        "): unpack it and name the folder."
    )


def _find(folder: Path, layout: str | None, depth: int) -> Found | None:
    for name, look in FOLDER_LAYOUTS.items():
        if layout in (None, name) and (found := look(folder)) is not None:
            return found
    inner = folders_in(folder)
    sets = [entry for entry in inner if side_of_folder(entry.name)]
    if sets and (found := _in_sets(sets, layout)) is not None:
        return found
    if depth == 0:
        return None
    hits = [(entry, found) for entry in inner if (found := _find(entry, layout, depth - 1)) is not None]
    if len(hits) > 1:
        names = ", ".join(entry.name for entry, _ in hits[:6])
        raise InputError(f"{folder} holds several data sets ({names}); name each with its own --data.")
    return hits[0][1] if hits else None


def _in_sets(parts: list[Path], layout: str | None) -> Found | None:
    """Folders train/ and val/: each laid out in one way, and the split is fixed."""
    hits = [(entry, found) for entry in parts if (found := _find(entry, layout, 0)) is not None]
    tests = [entry for entry, _ in hits if side_of_folder(entry.name) == TEST]
    used = [(entry, found) for entry, found in hits if entry not in tests]
    if not used:
        return None
    pairs = [replace(pair, fixed_set=side_of_folder(entry.name)) for entry, found in used for pair in found.pairs]
    unused = [f"{entry.name}/ holds {len(found.pairs)} labeled test cases" for entry, found in hits if entry in tests]
    unused += [f"{entry.name}/" for entry in parts if entry not in [hit for hit, _ in hits]]
    unused += [text for _, found in used for text in found.unused]
    return Found(used[0][1].layout, tuple(pairs), tuple(i for _, found in used for i in found.left_out), tuple(unused))
