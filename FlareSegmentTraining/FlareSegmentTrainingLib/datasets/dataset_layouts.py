"""The ways in which data sets lie on a disk, found out by looking: which image goes with which labels, and what the
values mean.

Each layout is one function that looks at a folder and returns what it found there, or None when the folder is not
laid out that way. Nothing but names and small lists is read here; whether labels fit their image is seen when a case
is read (`cases.Case.read`).

Layouts: `msd` (Medical Segmentation Decathlon: dataset.json with a list of pairs), `nnunet` (imagesTr/, labelsTr/ and
dataset.json, versions 1 and 2), `flare22` (FLARE22_Tr_0001_0000.nii.gz in images/, FLARE22_Tr_0001.nii.gz in labels/),
`folders` (images/ and labels/), `flat` (<case>_ct.nii.gz beside <case>_labels.nii.gz; the project's own), and `list` (a
CSV or JSON file of pairs).
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.label_maps import (
    LABEL_MAPS,
    LabelMap,
    label_map_of_names,
    parse_label_map,
    read_label_map,
)

IMAGE_SUFFIX = "_ct.nii.gz"
LABELS_SUFFIX = "_labels.nii.gz"
QUALITY_FILE = "quality.json"
LABEL_MAP_FILE = "labels.json"
VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
TRAINING, VALIDATION = "train", "val"
_SET_FOLDERS = {"train": TRAINING, "training": TRAINING, "val": VALIDATION, "validation": VALIDATION}
_IMAGE_FOLDERS = ("images", "imagesTr", "image", "img", "volumes")
_LABEL_FOLDERS = ("labels", "labelsTr", "label", "masks", "segmentations")
_AFFIX = re.compile(
    r"^(images?|img|volumes?|vol|ct|labels?|lbl|segmentations?|seg|masks?)(?=[-_.\d])[-_.]?", re.IGNORECASE
)
_ENDING = re.compile(r"[-_.](images?|img|volume|ct|labels?|segmentation|seg|mask|gt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """An image and its labels as a data set names them.

    Attributes:
        label_map: what the labels' values mean, or None when the data set does not say.
        patient: whose scan it is, where the data set says so.
        fixed_set: "train" or "val" where the data set fixes it.
        grades: the case's entry in quality.json.
    """

    name: str
    image: Path
    labels: Path
    label_map: LabelMap | None = None
    patient: str | None = None
    fixed_set: str | None = None
    grades: Mapping[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A case that cannot be used, and the reason in half a line."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is left out: {self.reason}"


@dataclass(frozen=True)
class Found:
    """What a layout found: its name, the pairs, and cases it cannot use."""

    layout: str
    pairs: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...] = ()


def find_pairs(location: Path, layout: str | None = None) -> Found:
    """Look at a folder, or at a CSV or JSON list, and return its cases, sorted by name.

    layout: the only layout to look for; by default all, the most telling first. A folder that only holds other
    folders is looked into.

    Raises:
        InputError: nothing is found, several data sets are, or a list cannot be read.
    """
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"--layout {layout} is unknown; known: {', '.join(LAYOUTS)}.")
    if location.name == "dataset.json":
        location = location.parent
    if location.is_file():
        return _sorted(_list_of_pairs(location))
    if not location.is_dir():
        raise InputError(f"{location} is missing; name a folder, an archive, a CSV or JSON list, or phantom:N.")
    found = _find(location, layout, depth=2)
    if found is None:
        sought = f"as {layout}" if layout else "in any known layout"
        raise InputError(
            f"No case in {location} {sought}: <case>{IMAGE_SUFFIX} with <case>{LABELS_SUFFIX}, images/ with labels/, "
            "imagesTr/ with labelsTr/, or a dataset.json is needed."
        )
    return _sorted(found)


def _find(folder: Path, layout: str | None, depth: int) -> Found | None:
    for name, look in FOLDER_LAYOUTS.items():
        if layout in (None, name) and (found := look(folder)) is not None:
            return found
    inner = [entry for entry in _entries(folder) if entry.is_dir() and not _is_volume_name(entry.name)]
    sets = [entry for entry in inner if entry.name.lower() in _SET_FOLDERS]
    if sets:
        return _in_sets(sets, layout)
    if depth == 0:
        return None
    hits = [(entry, found) for entry in inner if (found := _find(entry, layout, depth - 1)) is not None]
    if len(hits) > 1:
        names = ", ".join(entry.name for entry, _ in hits[:6])
        raise InputError(f"{folder} holds several data sets ({names}); name each with its own --data.")
    return hits[0][1] if hits else None


def _in_sets(folders: list[Path], layout: str | None) -> Found | None:
    """Folders train/ and val/: each laid out in one way, and the split is fixed."""
    hits = [(entry, found) for entry in folders if (found := _find(entry, layout, 0)) is not None]
    if not hits:
        return None
    pairs = [replace(pair, fixed_set=_SET_FOLDERS[entry.name.lower()]) for entry, found in hits for pair in found.pairs]
    return Found(hits[0][1].layout, tuple(pairs), tuple(item for _, found in hits for item in found.left_out))


def _sorted(found: Found) -> Found:
    names = [pair.name for pair in found.pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"The case {twice[0]} is there twice; give every case its own name.")
    return Found(found.layout, tuple(sorted(found.pairs, key=lambda pair: pair.name)), found.left_out)


# Layouts ------------------------------------------------------------------------------------------


def _dataset_json(folder: Path) -> Found | None:
    """Medical Segmentation Decathlon, and nnU-Net's dataset.json where it lists files that are there."""
    content = _read_dataset_json(folder)
    listed = content.get("training") if content else None
    if not content or not isinstance(listed, list):
        return None
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    for item in listed:
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("image", "label")):
            return None
        name = volume_stem(_within(folder, item["label"]).name)
        image, labels = (_tolerant(_within(folder, item[key])) for key in ("image", "label"))
        if image is None:
            return None  # nnU-Net lists images without the _0000 they have
        if labels is None:
            left_out.append(LeftOut(name, "its labels are missing"))
            continue
        pairs.append(Pair(name, image, labels))
    return with_label_map(Found("msd", tuple(pairs), tuple(left_out)), content["labels"], folder) if pairs else None


def _nnunet(folder: Path) -> Found | None:
    """nnU-Net's raw data: imagesTr/<case>_0000.*, labelsTr/<case>.*, dataset.json of version 1 or 2."""
    content = _read_dataset_json(folder)
    if not content:
        return None
    channels = content.get("channel_names") or content.get("modality") or {}
    if len(channels) > 1:
        raise InputError(f"{folder}: its images have {len(channels)} channels; FlareSegment trains on CT alone.")
    pairs, left_out = [], []
    listed = content.get("dataset")
    if isinstance(listed, dict):  # nnU-Net 2.3: explicit files
        for name, item in listed.items():
            try:
                image, labels = _within(folder, item["images"][0]), _within(folder, item["label"])
            except (KeyError, IndexError, TypeError) as error:
                raise InputError(f"{folder / 'dataset.json'}: the entry {name!r} names no images and label.") from error
            pairs.append(Pair(name, image, labels))
    else:
        found = _paired(folder, "imagesTr", "labelsTr", "nnunet")
        if found is None:
            return None
        pairs, left_out = list(found.pairs), list(found.left_out)
    return with_label_map(Found("nnunet", tuple(pairs), tuple(left_out)), content["labels"], folder)


def _flare22(folder: Path) -> Found | None:
    """FLARE22Train: images/FLARE22_Tr_0001_0000.nii.gz, labels/FLARE22_Tr_0001.nii.gz."""
    found = _paired(folder, "images", "labels", "flare22")
    if found is None or not all(re.fullmatch(r"FLARE22_Tr_\d{4}", pair.name) for pair in found.pairs):
        return None
    return with_label_map(found, LABEL_MAPS["flare22"], folder)


def _folders(folder: Path) -> Found | None:
    """Two folders, one of images and one of labels; images in imagesVa with labels in labelsVa are validation cases."""
    for images in _IMAGE_FOLDERS:
        for labels in _LABEL_FOLDERS:
            found = _paired(folder, images, labels, "folders")
            if found is None:
                continue
            validation = _paired(folder, "imagesVa", "labelsVa", "folders")
            if validation is not None:
                sides = ((found, TRAINING), (validation, VALIDATION))
                pairs = [replace(pair, fixed_set=side) for part, side in sides for pair in part.pairs]
                found = Found("folders", tuple(pairs), (*found.left_out, *validation.left_out))
            return with_label_map(found, _map_by_names(found.pairs), folder)
    return None


def _flat(folder: Path) -> Found | None:
    """The project's own layout: <case>_ct.nii.gz beside <case>_labels.nii.gz, with quality.json and labels.json here
    or one folder above.
    """
    volumes = volume_files(folder)
    names = [stem.removesuffix("_ct") for stem in volumes if stem.endswith("_ct")]
    if not any(name + "_labels" in volumes for name in names):
        return None
    quality = read_quality(folder)
    pairs, left_out = [], []
    for name in names:
        if name + "_labels" not in volumes:
            left_out.append(LeftOut(name, f"{name}{LABELS_SUFFIX} is missing beside its image"))
            continue
        entry = quality.get(name, {})
        side = entry.get("set") if entry.get("set") in (TRAINING, VALIDATION) else None
        pairs.append(
            Pair(name, volumes[name + "_ct"], volumes[name + "_labels"], None, entry.get("patient"), side, entry)
        )
    return with_label_map(Found("flat", tuple(pairs), tuple(left_out)), LABEL_MAPS["flaresegment"], folder)


def _list_of_pairs(file: Path) -> Found:
    """A list: CSV with the columns image, labels and, if wanted, case, patient, set, label_map; or JSON objects with
    the same keys.

    JSON may be an array, or an object with arrays named cases, training and validation. Paths are relative to the
    list's folder.
    """
    rows = _rows_of_csv(file) if file.suffix.lower() == ".csv" else _rows_of_json(file)
    pairs, left_out = [], []
    for number, row in enumerate(rows, start=1):
        image, labels = row.get("image"), row.get("labels") or row.get("label")
        if not image or not labels or not isinstance(image, str) or not isinstance(labels, str):
            raise InputError(f"{file}: entry {number} needs image and labels.")
        image_path, labels_path = file.parent / image, file.parent / labels
        name = str(row.get("case") or _ENDING.sub("", volume_stem(image_path.name)))
        if re.search(r"[\\/:*?\"<>|\x00-\x1f]", name) or name.startswith("."):
            raise InputError(f"{file}: entry {number} has the case name {name!r}, which cannot be a file name.")
        side = str(row.get("set") or "").lower()
        if side and side not in _SET_FOLDERS:
            raise InputError(f"{file}: entry {number} has the set {side!r}; train or val is meant.")
        missing = [what for what, path in (("image", image_path), ("labels", labels_path)) if not path.exists()]
        if missing:
            left_out.append(LeftOut(name, f"missing: its {' and its '.join(missing)}"))
            continue
        label_map = parse_label_map(str(row["label_map"])) if row.get("label_map") else None
        patient = str(row["patient"]) if row.get("patient") else None
        pairs.append(Pair(name, image_path, labels_path, label_map, patient, _SET_FOLDERS.get(side)))
    if not pairs and not left_out:
        raise InputError(f"{file} lists no case.")
    return Found("list", tuple(pairs), tuple(left_out))


FOLDER_LAYOUTS: dict[str, Callable[[Path], Found | None]] = {
    "msd": _dataset_json,
    "nnunet": _nnunet,
    "flare22": _flare22,
    "folders": _folders,
    "flat": _flat,
}
LAYOUTS = (*FOLDER_LAYOUTS, "list")


# Help ---------------------------------------------------------------------------------------------


def volume_stem(name: str) -> str:
    """A volume's file name without its suffix."""
    suffix = next((suffix for suffix in VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def _is_volume_name(name: str) -> bool:
    return name.lower().endswith(VOLUME_SUFFIXES)


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files such as the ._ files of macOS."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from error


def _tolerant(path: Path) -> Path | None:
    """The file, or the one in a folder of its name (copies unpacked to X.nii/X.nii); None when it is missing."""
    if path.is_file():
        return path
    if path.name.lower().endswith(".nii.gz") and (plain := path.with_name(path.name[:-3])).exists():
        return _tolerant(plain)
    if path.is_dir() and _is_volume_name(path.name):
        inner = [entry for entry in _entries(path) if entry.is_file() and _is_volume_name(entry.name)]
        return inner[0] if len(inner) == 1 else None
    return None


def volume_files(folder: Path) -> dict[str, Path]:
    """The volumes of a folder by their names without suffix."""
    result: dict[str, Path] = {}
    for entry in _entries(folder):
        if not _is_volume_name(entry.name) or (file := _tolerant(entry)) is None:
            continue
        stem = volume_stem(entry.name)
        if stem in result:
            raise InputError(f"{folder}: {result[stem].name} and {entry.name} are one case twice; remove one of them.")
        result[stem] = file
    inner = [entry for entry in _entries(folder) if entry.is_dir()]
    if not result and len(inner) == 1:  # images.zip unpacked to images/images/
        return volume_files(inner[0])
    return result


def _paired(folder: Path, images: str, labels: str, layout: str) -> Found | None:
    """Pair the volumes of two folders by name: the same name, nnU-Net's channel taken off, or what says "image" and
    "label" taken off.
    """
    if not (folder / images).is_dir() or not (folder / labels).is_dir():
        return None
    image_files, label_files = volume_files(folder / images), volume_files(folder / labels)
    if any(re.search(r"_000[1-9]$", stem) and stem[:-1] + "0" in image_files for stem in image_files):
        raise InputError(f"{folder / images} has images of several channels; FlareSegment trains on CT alone.")
    by_key = {case_key(stem): stem for stem in label_files}
    pairs, left_out = [], []
    for stem, image in image_files.items():
        candidates = (stem, stem.removesuffix("_0000"), by_key.get(case_key(stem.removesuffix("_0000"))))
        match = next((name for name in candidates if name in label_files), None)
        if match is None:
            left_out.append(LeftOut(stem, f"no labels of its name in {labels}/"))
            continue
        name = match if stem.startswith(match) else case_key(match)
        pairs.append(Pair(name, image, label_files.pop(match)))
    left_out += [LeftOut(stem, f"no image of its name in {images}/") for stem in label_files]
    return Found(layout, tuple(pairs), tuple(left_out)) if pairs else None


def case_key(stem: str) -> str:
    """A file's name without what tells images from labels: the same for both files of a case."""
    key = _ENDING.sub("", stem)
    return _AFFIX.sub("", key) or key


def _map_by_names(pairs: Iterable[Pair]) -> LabelMap | None:
    """The table of a data set whose file names give it away."""
    tables = {
        r"img\d{4}\.": "btcv",
        r"amos_\d{4}\.": "amos",
        r"volume-\d+\.": "msd-liver",
        r"FLARE22_Tr_\d{4}_0000\.": "flare22",
    }
    for pattern, name in tables.items():
        if all(re.match(pattern, pair.image.name) for pair in pairs):
            return LABEL_MAPS[name]
    return None


def with_label_map(found: Found, label_map: LabelMap | Mapping | None, folder: Path) -> Found:
    """Give the pairs a label map: labels.json in the folder or above it wins over what the layout says."""
    for place in (folder, folder.parent):
        if (place / LABEL_MAP_FILE).is_file():
            label_map = read_label_map(place / LABEL_MAP_FILE)
            break
    if label_map is not None and not isinstance(label_map, LabelMap):
        label_map = label_map_of_names(str(folder / "dataset.json"), label_map)
    return replace(found, pairs=tuple(replace(pair, label_map=label_map) for pair in found.pairs))


def _read_dataset_json(folder: Path) -> dict | None:
    file = folder / "dataset.json"
    if not file.is_file():
        return None
    content = _read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise InputError(f"{file} does not say what the labels mean; it is no data set of MSD or nnU-Net.")
    return content


def _within(folder: Path, name: str) -> Path:
    """A file named by a data set's own list. Raises InputError when it lies outside of the data set."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise InputError(f"{folder / 'dataset.json'} names a file outside of its folder: {name!r}.")
    return path


def read_quality(folder: Path) -> dict[str, dict]:
    """Case name -> what quality.json in the folder or above it says of it; empty where there is none. Raises
    InputError.
    """
    for place in (folder, folder.parent):
        if (place / QUALITY_FILE).is_file():
            content = _read_json(place / QUALITY_FILE)
            if not isinstance(content, dict) or not all(isinstance(entry, dict) for entry in content.values()):
                raise InputError(f"{place / QUALITY_FILE} does not hold grades: case -> organ -> grade is needed.")
            return content
    return {}


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error


def _rows_of_csv(file: Path) -> list[dict]:
    try:
        with open(file, newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            rows = [
                {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if key} for row in reader
            ]
            columns = {str(name).strip().lower() for name in reader.fieldnames or ()}
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a CSV list: {error}.") from error
    if "image" not in columns or not columns & {"labels", "label"}:
        raise InputError(f"{file} needs the columns image and labels in its first line.")
    return rows


def _rows_of_json(file: Path) -> list[dict]:
    content = _read_json(file)
    if isinstance(content, dict):
        parts = [("cases", None), ("training", TRAINING), ("validation", VALIDATION)]
        rows = [(row, side) for key, side in parts for row in _array(content.get(key, []), file)]
        fixed = bool(content.get("validation"))
        content = [{"set": side, **row} if fixed and side else row for row, side in rows if isinstance(row, dict)]
    return [row for row in _array(content, file) if isinstance(row, dict)]


def _array(value: object, file: Path) -> list:
    if not isinstance(value, list):
        raise InputError(f"{file} is no list of cases: an array of objects with image and labels is needed.")
    return value
