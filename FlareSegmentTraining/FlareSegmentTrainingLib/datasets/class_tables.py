"""What a data set itself says about its label values, in a file beside the label maps or one folder above.

Read are, the first one found: `labels.json` (a map by hand), `dataset.json` (Medical Segmentation Decathlon, nnU-Net
1 and 2; nnU-Net leaves it beside its predictions too), and tables of classes: `<label map>_classes.tsv`, `classes.*`,
`labels.*`, Slicer's color tables (.ctbl) and ITK-SNAP's label descriptions.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.label_maps import LabelMap, label_map_of_names, read_label_map

LABEL_MAP_FILE = "labels.json"
DATASET_FILE = "dataset.json"
_TABLE_NAMES = re.compile(
    r"(classes|class_?names|labels?|label_?names|label_?map|label_?table|names|color_?table)\.(tsv|csv|txt|ctbl|label|lbl)"
    r"|.*\.(ctbl|label)",
    re.IGNORECASE,
)
_SNAP = "ITK-SnAP Label Description"
_VALUE_FIRST = re.compile(r"(\d{1,5})\s*[\s,;:=]\s*(\S.*)")
_NAME_FIRST = re.compile(r"([^\d\s][^,;\t:=]*?)\s*[,;\t:=]\s*(\d{1,5})\b.*")
_LARGEST_TABLE = 1 << 20


def label_map_of_folder(folder: Path) -> LabelMap | None:
    """What a folder of label maps, or the folder above it, says about the values; None where neither does.

    Raises:
        InputError: what says it cannot be understood.
    """
    for place in (folder, folder.parent):
        if (place / LABEL_MAP_FILE).is_file():
            return read_label_map(place / LABEL_MAP_FILE).from_source(LABEL_MAP_FILE)
        content = read_dataset_json(place) if place == folder else _dataset_json_above(place)
        if content is not None:
            return label_map_of_names(str(place / DATASET_FILE), content["labels"]).from_source(DATASET_FILE)
        tables = [table for table in map(_read_table, _candidates(place)) if table is not None]
        if len({table.organs for table in tables}) == 1:
            return tables[0]
        if tables:
            names = ", ".join(table.name for table in tables)
            raise InputError(f"{place} holds several tables of classes that differ ({names}): choose with --label-map.")
    return None


def label_map_of_file(labels: Path) -> LabelMap | None:
    """The table `<label map>_classes.tsv` (or .csv) that lies beside one label map and holds for it alone."""
    stem = labels.name.split(".")[0]
    for base in (stem, re.sub(r"[-_.](full|labels?|seg|segmentation|organs|mask)$", "", stem)):
        for suffix in ("tsv", "csv"):
            file = labels.with_name(f"{base}_classes.{suffix}")
            if file.is_file():
                return _read_table(file)
    return None


def read_dataset_json(folder: Path) -> dict | None:
    """The content of the folder's dataset.json; None where there is none. Raises InputError."""
    file = folder / DATASET_FILE
    if not file.is_file():
        return None
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise InputError(f"{file} does not say what the labels mean; it is no data set of MSD or nnU-Net.")
    return content


def _dataset_json_above(folder: Path) -> dict | None:
    """As `read_dataset_json`; one that says nothing of labels may belong to something else."""
    try:
        return read_dataset_json(folder)
    except InputError:
        return None


def read_json(file: Path) -> object:
    """The content of a JSON file, in UTF-8 or UTF-16, with or without a mark. Raises InputError."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is not valid JSON: {error}.") from error


def decoded(content: bytes) -> str:
    """Text of a list or table: UTF-8, UTF-16 with its mark, or what Windows programs write in Western Europe.

    Raises:
        UnicodeError: it is none of these.
    """
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16")
    try:
        return content.decode("utf-8-sig")
    except UnicodeError:
        return content.decode("cp1252")


def _candidates(folder: Path) -> list[Path]:
    try:
        files = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []
    return [file for file in files if _TABLE_NAMES.fullmatch(file.name) or _is_snap(file)]


def _is_snap(file: Path) -> bool:
    if file.suffix.lower() != ".txt":
        return False
    try:
        with open(file, "rb") as stream:
            return _SNAP.lower().encode() in stream.read(500).lower()
    except OSError:
        return False


def _read_table(file: Path) -> LabelMap | None:
    """The label map of a table of classes; None where it names none of the organs. Raises InputError."""
    try:
        if not file.is_file() or file.stat().st_size > _LARGEST_TABLE:
            return None
        text = decoded(file.read_bytes())
    except (OSError, UnicodeError):
        return None
    names: dict[str, object] = {}
    for line in text.splitlines():
        row = _row(line.strip())
        if row is None:
            continue
        value, name = row
        if names.setdefault(value, name) != name:
            raise InputError(f"{file} explains the value {value} twice.")
    names.pop("0", None)
    table = label_map_of_names(file.name, names)
    return table if table.organs else None


def _row(line: str) -> tuple[str, str] | None:
    if not line or line.startswith("#"):
        return None
    match = _VALUE_FIRST.fullmatch(line)
    if match is None:
        match = _NAME_FIRST.fullmatch(line)
        return None if match is None else (str(int(match.group(2))), match.group(1).strip())
    value, rest = match.groups()
    quoted = re.search(r'"([^"]*)"\s*$', rest)  # ITK-SNAP: color, visibility, then the name
    if quoted:
        return str(int(value)), quoted.group(1)
    name = re.split(r"[\t,;]", rest)[0].strip()
    name = re.sub(r"(\s+\d+(\.\d+)?)+$", "", name)  # a color table's red, green, blue and opacity
    return (str(int(value)), name) if name else None
