"""Data sets that list their own cases: dataset.json of the Medical Segmentation Decathlon, MONAI and nnU-Net, and CSV
or JSON lists by hand.

The list decides which cases and which labels count, and on which side they stand; files beside it that it does not name
are told as left out.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.class_tables import DATASET_FILE, decoded, read_dataset_json, read_json
from FlareSegmentTrainingLib.datasets.file_pairs import (
    CHANNEL,
    Found,
    LeftOut,
    Pair,
    case_key,
    composed,
    entries_of,
    is_volume_name,
    volume_file,
    volume_stem,
)
from FlareSegmentTrainingLib.datasets.folder_layouts import paired_folders, with_label_map
from FlareSegmentTrainingLib.datasets.label_maps import LabelMap, label_map_of_names, parse_label_map
from FlareSegmentTrainingLib.datasets.parts import TEST, TRAINING, VALIDATION, side_of_word

_DELIMITERS = ",;\t|"


def dataset_json(folder: Path) -> Found | None:
    """A folder with a dataset.json that lists pairs: training, validation, and what else it calls parts.

    Images may be listed without the _0000 that their files have (nnU-Net version 1).
    """
    content = read_dataset_json(folder)
    if not content or not isinstance(content.get("training"), list):
        return None
    _check_one_channel(folder, content)
    parts = {side: content[key] for key in content if (side := side_of_word(key)) and isinstance(content[key], list)}
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    unused: list[str] = []
    for side, listed in parts.items():
        whole = [item for item in listed if isinstance(item, dict) and _text(item, "image") and _text(item, "label")]
        if side == TEST:
            unused += [f"{len(whole)} labeled test cases of its list"] if whole else []
            continue
        if side == TRAINING and not whole:
            return None
        if side == TRAINING:
            incomplete = [(number, item) for number, item in enumerate(listed, start=1) if item not in whole]
            left_out += [_incomplete(number, item, DATASET_FILE) for number, item in incomplete]
        else:
            unused += (
                [f"{len(listed) - len(whole)} {side} cases of its list, without labels"] if whole != listed else []
            )
        for item in whole:
            pair = _listed_pair(folder, _text(item, "image"), _text(item, "label"), side)
            (pairs if isinstance(pair, Pair) else left_out).append(pair)  # type: ignore[arg-type]
    if not pairs:
        return None
    if all(pair.fixed_set != VALIDATION for pair in pairs):
        pairs = [replace(pair, fixed_set=None) for pair in pairs]
    left_out += _not_listed(pairs, left_out)
    return with_label_map(Found("msd", tuple(pairs), tuple(left_out), (*unused, *_folds(folder))), folder)


def _folds(folder: Path) -> tuple[str, ...]:
    """What is said of nnU-Net's folds, of which any may be meant."""
    name = "splits_final.json"
    return (f"the folds in {name} (--split chooses cases to validate on)",) if (folder / name).is_file() else ()


def nnunet(folder: Path) -> Found | None:
    """nnU-Net's raw data: imagesTr/<case>_0000.*, labelsTr/<case>.*, dataset.json of version 1 or 2."""
    content = read_dataset_json(folder)
    if not content:
        return None
    _check_one_channel(folder, content)
    listed = content.get("dataset")
    if not isinstance(listed, dict):
        found = paired_folders(folder)
        if found is None:
            return None
        unused = found.unused
        if isinstance(content.get("training"), list) and content["training"]:
            unused = (*unused, f"the list in {DATASET_FILE}, for its files are not there")
        return with_label_map(replace(found, layout="nnunet", unused=(*unused, *_folds(folder))), folder)
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    for name, item in listed.items():  # nnU-Net 2.3: explicit files
        try:
            pair = _listed_pair(folder, item["images"][0], item["label"], None, name)
        except (KeyError, IndexError, TypeError) as error:
            raise InputError(f"{folder / DATASET_FILE}: the entry {name!r} names no images and label.") from error
        (pairs if isinstance(pair, Pair) else left_out).append(pair)  # type: ignore[arg-type]
    left_out += _not_listed(pairs, left_out)
    return with_label_map(Found("nnunet", tuple(pairs), tuple(left_out), _folds(folder)), folder)


def list_of_pairs(file: Path) -> Found:
    """A list: CSV with the columns image, labels and, if wanted, case, patient, set, label_map; or JSON objects with
    the same keys.

    JSON may be an array, or an object with arrays named cases, training and validation, and the values' names as
    labels. Paths are relative to the list's folder. Entries without image or labels are left out. Raises InputError.
    """
    rows, names = (list(_rows_of_csv(file)), None) if file.suffix.lower() != ".json" else _rows_of_json(file)
    pairs, left_out = [], []
    tables: dict[str, LabelMap] = {}
    tests, folds = 0, any("fold" in row for row in rows)
    for number, row in enumerate(rows, start=1):
        image, labels = row.get("image"), row.get("labels") or row.get("label")
        if not image or not labels or not isinstance(image, str) or not isinstance(labels, str):
            left_out.append(_incomplete(number, row, file.name))
            continue
        image_path, labels_path = listed_path(file.parent, image), listed_path(file.parent, labels)
        name = composed(str(row.get("case") or _case_name(image_path)))
        if re.search(r"[\\/:*?\"<>|\x00-\x1f]", name) or name.startswith("."):
            raise InputError(f"{file}: entry {number} has the case name {name!r}, which cannot be a file name.")
        word = str(row.get("set") or "").lower()
        side = side_of_word(word)
        if side == TEST:
            tests += 1
            continue
        if word and side is None:
            raise InputError(f"{file}: entry {number} has the set {word!r}; train, val or test is meant.")
        missing = [text for text, path in ((image, image_path), (labels, labels_path)) if not path.exists()]
        if missing:
            left_out.append(LeftOut(name, f"{' and '.join(missing)}: missing in {file.parent}"))
            continue
        given = str(row.get("label_map") or "")
        if given and given not in tables:
            tables[given] = parse_label_map(listed_label_map(file, number, given)).from_source(
                f"{given} in {file.name}"
            )
        patient = str(row["patient"]) if row.get("patient") else None
        pairs.append(Pair(name, image_path, labels_path, tables.get(given, names), patient, side))
    if not pairs and not left_out:
        raise InputError(f"{file} lists no case.")
    unused = [f"{tests} test cases of the list"] if tests else []
    unused += ["the folds of the list (--fold or --split choose cases to validate on)"] if folds else []
    return with_label_map(Found("list", tuple(pairs), tuple(left_out), tuple(unused)), file.parent)


def _incomplete(number: int, item: object, listed: str) -> LeftOut:
    """What is said of an entry that names no image or no labels."""
    row = item if isinstance(item, dict) else {}
    image, labels = _text(row, "image"), _text(row, "labels") or _text(row, "label")
    name = str(row.get("case") or "") or volume_stem(Path((image or labels).replace("\\", "/")).name)
    missing = " and no ".join(word for word, text in (("image", image), ("labels", labels)) if not text)
    return LeftOut(name or f"entry {number} of {listed}", f"entry {number} of {listed} names no {missing}")


def listed_label_map(file: Path, number: int, given: str) -> str:
    """What an entry of a list says of its labels' values, for `parse_label_map`; a file by its whole path.

    Raises:
        InputError: it says nothing.
    """
    path = listed_path(file.parent, given)
    text = str(path.absolute()) if path.is_file() else given
    try:
        parse_label_map(text)
    except InputError as error:
        raise InputError(f"{file}, label_map of entry {number}: {str(error).removeprefix('--label-map ')}") from error
    return text


def _check_one_channel(folder: Path, content: dict) -> None:
    channels = content.get("channel_names") or content.get("modality") or {}
    if isinstance(channels, dict) and len(channels) > 1:
        raise InputError(f"{folder}: its images have {len(channels)} channels; FlareSegment trains on CT alone.")


def _text(item: dict, key: str) -> str:
    value = item.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value if isinstance(value, str) else ""


def _listed_pair(folder: Path, image: str, labels: str, side: str | None, name: str = "") -> Pair | LeftOut:
    """A pair as a data set's list names it, or why it cannot be used."""
    image_path, labels_path = listed_path(folder, image), listed_path(folder, labels)
    for text, path in ((image, image_path), (labels, labels_path)):
        if not path.is_relative_to(os.path.normpath(folder)):
            raise InputError(f"{folder / DATASET_FILE} names a file outside of its folder: {text!r}.")
    name = name or volume_stem(labels_path.name)
    found = [volume_file(path) for path in (_with_channel(image_path), labels_path)]
    missing = {what: text for what, text, file in zip(("image", "labels"), (image, labels), found) if file is None}
    if missing:
        verb = "is" if list(missing) == ["image"] else "are"
        return LeftOut(name, f"its {' and its '.join(missing)} {verb} missing: {' and '.join(missing.values())}")
    assert found[0] is not None and found[1] is not None
    return Pair(name, found[0], found[1], fixed_set=side)


def _with_channel(path: Path) -> Path:
    """The path, or the file with nnU-Net's channel number where only that is there."""
    stem = volume_stem(path.name)
    numbered = listed_path(path.parent, f"{stem}{CHANNEL}{composed(path.name).removeprefix(stem)}")
    return numbered if volume_file(path) is None and volume_file(numbered) is not None else path


def _not_listed(pairs: Iterable[Pair], left_out: Iterable[LeftOut]) -> list[LeftOut]:
    """The images beside the listed ones."""
    pairs = list(pairs)
    listed = {pair.image for pair in pairs}
    named = {item.name for item in left_out} | {pair.name for pair in pairs}
    result = []
    for folder in sorted({pair.image.parent for pair in pairs if not is_volume_name(pair.image.parent.name)}):
        for entry in entries_of(folder):
            if not is_volume_name(entry.name) or (file := volume_file(entry)) is None or file in listed:
                continue
            name = volume_stem(entry.name).removesuffix(CHANNEL)
            if name not in named and not any(file == pair.labels for pair in pairs):
                result.append(LeftOut(name, f"it is not in {DATASET_FILE}'s list"))
    return result


def listed_path(folder: Path, text: str) -> Path:
    """The file that a list means: with Windows' separators, and with an umlaut in the other of its two spellings."""
    path = Path(os.path.normpath(folder / text))
    if path.exists():
        return path
    if "\\" in text:
        path = Path(os.path.normpath(folder / text.replace("\\", "/")))
    if not path.exists() and not path.name.isascii() and path.parent.is_dir():
        same = [entry for entry in entries_of(path.parent) if composed(entry.name) == composed(path.name)]
        return same[0] if len(same) == 1 else path
    return path


def _case_name(image: Path) -> str:
    return re.sub(r"[-_.](images?|img|volume|ct)$", "", volume_stem(image.name), flags=re.IGNORECASE) or case_key(
        image.name
    )


def listed_rows(file: Path) -> Iterator[dict]:
    """The entries of a CSV or JSON list of CTs, whose labels may be missing. Raises InputError."""
    return iter(_rows_of_json(file)[0]) if file.suffix.lower() == ".json" else _rows_of_csv(file, labels=False)


def _rows_of_csv(file: Path, labels: bool = True) -> Iterator[dict]:
    """The rows of a table with the column image and, unless they may be missing, labels. Raises InputError."""
    try:
        text = decoded(file.read_bytes())
        first = text.split("\n", 1)[0]
        delimiter = max(_DELIMITERS, key=lambda character: (len(_columns(first, character)), first.count(character)))
        reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=delimiter)
        columns = {str(name).strip().lower() for name in reader.fieldnames or ()}
        if "image" not in columns or (labels and not columns & {"labels", "label"}):
            needed = "columns image and labels" if labels else "column image"
            raise InputError(f"{file} needs the {needed} in its first line.")
        for row in reader:
            yield {str(key).strip().lower(): (value or "").strip() for key, value in row.items() if key}
    except (OSError, UnicodeError, csv.Error, AttributeError) as error:
        raise InputError(f"{file} cannot be read as a CSV list: {error}.") from error


def _columns(line: str, delimiter: str) -> set[str]:
    return {cell.strip().strip('"').lower() for cell in line.split(delimiter)} & {
        "image",
        "labels",
        "label",
        "case",
        "id",
    }


def _rows_of_json(file: Path) -> tuple[list[dict], LabelMap | None]:
    """The rows of a JSON list, and what it says about the values."""
    content = read_json(file)
    names = None
    if isinstance(content, dict):
        if isinstance(content.get("labels"), dict):
            names = label_map_of_names(str(file), content["labels"]).from_source(file.name)
        parts: list[tuple[str | None, object]] = [(None, content.get("cases", []))]
        parts += [(side, content[key]) for key in content if (side := side_of_word(key)) in (TRAINING, VALIDATION)]
        rows = [(row, side) for side, listed in parts for row in _array(listed, file)]
        fixed = any(side == VALIDATION for _, side in rows)
        content = [{"set": side, **row} if fixed and side and isinstance(row, dict) else row for row, side in rows]
    return [row if isinstance(row, dict) else {} for row in _array(content, file)], names


def _array(value: object, file: Path) -> list:
    if not isinstance(value, list):
        raise InputError(f"{file} is no list of cases: an array of objects with image and labels is needed.")
    return value
