"""Data sets laid out as folders of images and folders of labels, told apart by the names of files and folders alone.

Layouts: `flare22` (FLARE22_Tr_0001_0000.nii.gz in images/, FLARE22_Tr_0001.nii.gz in labels/), `folders` (images/ and
labels/, in parts where there are some), `flat` (<case>_ct.nii.gz beside <case>_labels.nii.gz; the project's own),
`beside` (other images with their labels in one folder), `monailabel` (images, and labels/final as MONAI Label keeps
them). Each function returns None where a folder is not laid out its way.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.class_tables import label_map_of_folder, read_json
from FlareSegmentTrainingLib.datasets.file_pairs import (
    Found,
    LeftOut,
    Pair,
    composed,
    folders_in,
    pair_files,
    volume_files,
    volume_stem,
)
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS, LabelMap, label_map_of_names
from FlareSegmentTrainingLib.datasets.parts import TEST, TRAINING, VALIDATION, side_of_folder, side_of_word

IMAGE_SUFFIX = "_ct.nii.gz"
LABELS_SUFFIX = "_labels.nii.gz"
QUALITY_FILE = "quality.json"
DATASTORE_FILES = ("datastore_v2.json", "datastore.json")
_IMAGES, _LABELS = "images?|imgs?|volumes?|scans?|ct", "labels?|masks?|segmentations?|seg|gt|ground[-_ ]?truth"
_LABEL_NAME = re.compile(r"(\.seg|[-_.](labels?|lbl|segmentation|seg|mask|gt))$|^(labels?|seg|mask)[-_]", re.IGNORECASE)
_IMAGE_LIKE, _LABEL_LIKE = (re.compile(rf"(?:{words})(?=[-_A-Z0-9])") for words in (_IMAGES, _LABELS))
_IMAGE_FOLDER = re.compile(rf"(?:([a-z]+)[-_ ])?(?:{_IMAGES})[-_ ]?([a-z]*)", re.IGNORECASE)
_LABEL_FOLDER = re.compile(rf"(?:([a-z]+)[-_ ])?(?:{_LABELS})[-_ ]?([a-z]*)", re.IGNORECASE)


def paired_folders(folder: Path) -> Found | None:
    """Folders of images and of labels: images/ with labels/, imagesTr/ with labelsTr/, and their parts imagesVa/,
    imagesVal/ and the like, or images/train/ with labels/train/.
    """
    inner = folders_in(folder)
    images, labels = _by_part(inner, _IMAGE_FOLDER), _by_part(inner, _LABEL_FOLDER)
    unused: list[str] = []
    if None in images and None in labels and _has_parts(images[None]) and _has_parts(labels[None]):
        strange = [e for e in folders_in(images[None]) if side_of_folder(e.name) is None and volume_files(e)]
        unused += [f"{entry.relative_to(folder)}/" for entry in strange]
        images, labels = _parts_within(images[None]), _parts_within(labels[None])
    elif not set(images) & set(labels) and len(images) == len(labels) == 1:
        images, labels = {None: next(iter(images.values()))}, {None: next(iter(labels.values()))}
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    for part in (part for part in (None, TRAINING, VALIDATION, TEST) if part in images and part in labels):
        names = tuple(str(place[part].relative_to(folder)) for place in (images, labels))
        found, missing = pair_files(volume_files(images[part]), volume_files(labels[part]), (names[0], names[1]))
        if part == TEST:
            unused += [f"{names[0]}/ with {names[1]}/ holds {len(found)} labeled test cases"] if found else []
            continue
        pairs += [replace(pair, fixed_set=part) for pair in found]
        left_out += missing
    if all(pair.fixed_set != VALIDATION for pair in pairs):  # a training part alone fixes nothing
        pairs = [replace(pair, fixed_set=None) for pair in pairs]
    taken = {*images.values(), *labels.values()}
    others = [e.name for e in inner if e not in taken and (_IMAGE_LIKE.match(e.name) or _LABEL_LIKE.match(e.name))]
    alone = [place.name for part, place in {**labels, **images}.items() if part in (TRAINING, VALIDATION)]
    paired = {
        place[part].name
        for part in (TRAINING, VALIDATION)
        for place in (images, labels)
        if part in images and part in labels
    }
    unused += [f"{name}/" for name in sorted({*others, *alone} - paired)]
    return Found("folders", tuple(pairs), tuple(left_out), tuple(unused)) if pairs else None


def names_labels(place: Path) -> bool:
    """Whether a volume's name, or that of a folder on the way to it, says that it is a label map.

    place: the file below the folder that is looked through.
    """
    folders = place.parts[:-1]
    return bool(_LABEL_NAME.search(volume_stem(place.name))) or any(_part(name, _LABEL_FOLDER)[0] for name in folders)


def _by_part(folders: list[Path], pattern: re.Pattern) -> dict[str | None, Path]:
    """Folders of one kind by their part; None for the one without a part."""
    result: dict[str | None, Path] = {}
    for entry in folders:
        matches, side = _part(entry.name, pattern)
        if matches:
            result.setdefault(side, entry)
    return result


def _part(name: str, pattern: re.Pattern) -> tuple[bool, str | None]:
    """Whether a folder's name is one of a kind, and the part that it names besides."""
    match = pattern.fullmatch(name)
    words = [word for word in match.groups() if word] if match else []
    side = side_of_word(words[0]) if len(words) == 1 else None
    return match is not None and (side is not None or not words), side


def _has_parts(folder: Path) -> bool:
    return any(side_of_folder(entry.name) for entry in folders_in(folder))


def _parts_within(folder: Path) -> dict[str | None, Path]:
    return {side: entry for entry in folders_in(folder) if (side := side_of_folder(entry.name)) is not None}


def flare22(folder: Path) -> Found | None:
    """FLARE22Train: images/FLARE22_Tr_0001_0000.nii.gz, labels/FLARE22_Tr_0001.nii.gz."""
    found = paired_folders(folder)
    if found is None or not all(re.fullmatch(r"FLARE22_Tr_\d{4}", pair.name) for pair in found.pairs):
        return None
    table = LABEL_MAPS["flare22"].from_source("files called FLARE22_Tr_0001, as in FLARE22", conventional=True)
    return with_label_map(replace(found, layout="flare22"), folder, table)


def folders(folder: Path) -> Found | None:
    """As `paired_folders`, with what the data set says about its values."""
    found = paired_folders(folder)
    return None if found is None else with_label_map(found, folder)


def flat(folder: Path) -> Found | None:
    """The project's own layout: <case>_ct.nii.gz beside <case>_labels.nii.gz, with quality.json and labels.json here
    or one folder above.
    """
    volumes = volume_files(folder)
    plain = {stem.removesuffix(".seg"): stem for stem in volumes}
    names = [stem.removesuffix("_ct") for stem in volumes if stem.endswith("_ct")]
    if not any(name + "_labels" in plain for name in names):
        return None
    quality = read_quality(folder)
    pairs, left_out = [], []
    for name in names:
        labels = plain.get(name + "_labels")
        if labels is None:
            left_out.append(LeftOut(name, f"{name}{LABELS_SUFFIX} is missing beside its image"))
            continue
        entry = quality.get(name, {})
        side = entry.get("set") if entry.get("set") in (TRAINING, VALIDATION) else None
        pairs.append(Pair(name, volumes[name + "_ct"], volumes[labels], None, entry.get("patient"), side, entry))
    table = LABEL_MAPS["flaresegment"].from_source("files called <case>_ct and <case>_labels", conventional=True)
    return with_label_map(Found("flat", tuple(pairs), tuple(left_out)), folder, table)


def beside(folder: Path) -> Found | None:
    """Images and labels in one folder, the labels told by their names: x.nrrd with x.seg.nrrd, x.nii.gz with
    x_seg.nii.gz or x_mask.nii.gz.
    """
    volumes = volume_files(folder)
    labels = {stem: file for stem, file in volumes.items() if _LABEL_NAME.search(stem)}
    images = {stem: file for stem, file in volumes.items() if stem not in labels}
    if not labels or not images:
        return None
    pairs, left_out = pair_files(images, labels, (folder.name, folder.name))
    return with_label_map(Found("beside", tuple(pairs), tuple(left_out)), folder) if pairs else None


def monai_label(folder: Path) -> Found | None:
    """A data folder of MONAI Label: images, their finished labels in labels/final, drafts in labels/original."""
    final = folder / "labels" / "final"
    if not final.is_dir():
        return None
    images = volume_files(folder / "images" if (folder / "images").is_dir() else folder)
    images = {stem: file for stem, file in images.items() if folder / "labels" not in file.parents}
    pairs, left_out = pair_files(images, volume_files(final), (folder.name, "labels/final"))
    drafts = volume_files(folder / "labels" / "original") if (folder / "labels" / "original").is_dir() else {}
    unused = (f"labels/original/ holds {len(drafts)} drafts",) if drafts else ()
    if not pairs:
        return None
    names = _names_in_datastore(folder)
    found = with_label_map(Found("monailabel", tuple(pairs), tuple(left_out), unused), folder)
    return found if names is None else replace(found, pairs=tuple(replace(p, label_map=names) for p in found.pairs))


def _names_in_datastore(folder: Path) -> LabelMap | None:
    """The label names that MONAI Label keeps with its labels, where all of them agree."""
    tables: list[LabelMap] = []
    for file in (folder / name for name in DATASTORE_FILES if (folder / name).is_file()):
        content = read_json(file)
        objects = content.get("objects", {}) if isinstance(content, dict) else {}
        for entry in objects.values() if isinstance(objects, dict) else ():
            info = _value(entry, "labels", "final", "info")
            for place in (info, _value(info, "params")):
                names = _value(place, "label_names")
                listed = _value(place, "label_info")
                if isinstance(listed, list):
                    names = {i.get("name"): i.get("idx") for i in listed if isinstance(i, dict) and i.get("idx")}
                if isinstance(names, dict) and names:
                    tables.append(label_map_of_names(file.name, names))
    if not tables or len({table.organs for table in tables}) > 1:
        return None
    return tables[0]


def _value(content: object, *keys: str) -> object:
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def with_label_map(found: Found, folder: Path, otherwise: LabelMap | None = None) -> Found:
    """Give the pairs without a label map what the data set says (`class_tables`), else a table."""
    label_map = label_map_of_folder(folder)
    if label_map is None:
        inner = {pair.labels.parent for pair in found.pairs} - {folder}
        label_map = label_map_of_folder(inner.pop()) if len(inner) == 1 else None
    label_map = label_map or otherwise
    return replace(found, pairs=tuple(replace(p, label_map=p.label_map or label_map) for p in found.pairs))


def read_quality(folder: Path) -> dict[str, dict]:
    """Case name -> what quality.json in the folder or above it says of it; empty where there is none. Raises
    InputError.
    """
    for place in (folder, folder.parent):
        if (place / QUALITY_FILE).is_file():
            content = read_json(place / QUALITY_FILE)
            if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
                raise InputError(f"{place / QUALITY_FILE} does not hold grades: case -> organ -> grade is needed.")
            return {composed(name): entry for name, entry in content.items()}
    return {}
