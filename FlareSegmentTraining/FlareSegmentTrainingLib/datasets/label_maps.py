"""What the values in a label map mean: named tables of public data sets, data sets' own names, and maps given by the
user.

A `LabelMap` turns any of them into FlareSegment's own values (`organs.LABEL_TABLES["flaresegment"]`) and knows which
organs were labeled at all: a value that means another structure becomes background, a value that nobody explained is an
error, never a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS, LABEL_TABLES, ORGANS, organ_by_key
from FlareSegmentTrainingLib.datasets.organ_names import lacks_side, organ_of_name

OTHER = "other"
"""In a label map of the user: a known structure that is none of FlareSegment's organs."""
IGNORE = "ignore"
"""In a label map: voxels that nobody looked at (nnU-Net's ignore label)."""
IGNORED = 255
"""Value of such voxels in labels in FlareSegment's values. They are neither an organ nor background: no loss and no
measure counts them.
"""

SIDES_NEEDED = "right and left need values of their own (as KiTS and others do not give them)."
"""What is said of kidneys and adrenal glands without their side."""
_TUMOR = re.compile(r"\b(cancer|tumou?rs?|lesions?|metastas[ei]s)\b")


@dataclass(frozen=True)
class LabelMap:
    """Meaning of the values of a label map.

    Attributes:
        name: what messages call it.
        organs: (value, organ key) pairs; several values may belong to one organ (liver and tumor).
        others: values of known structures that are none of FlareSegment's organs. 0 is always background.
        ignored: values that say "nobody looked here" (nnU-Net's ignore label); they become `IGNORED`.
        sideless: names of kidneys and adrenal glands that do not say which side they are of: they are no organ here.
        source: where the meaning was read, for messages, such as "dataset.json".
        conventional: whether nothing but the names of the files says that this table is meant, so that the label maps
            themselves have to bear it out (`label_checks.check_convention`).
    """

    name: str
    organs: tuple[tuple[int, str], ...]
    others: frozenset[int] = frozenset()
    ignored: frozenset[int] = frozenset()
    sideless: tuple[str, ...] = field(default=(), compare=False)
    source: str = field(default="", compare=False)
    conventional: bool = field(default=False, compare=False)

    def from_source(self, source: str, conventional: bool = False) -> LabelMap:
        """The same table with where it was read."""
        return replace(self, source=source, conventional=conventional)

    def in_words(self) -> str:
        """The table in one line: "1 liver, 2 right kidney, 5 ignored", and what it lacks."""
        words = [f"{value} {key.replace('_', ' ')}" for value, key in self.organs] or ["no organ"]
        words += [f"{value} ignored" for value in sorted(self.ignored)]
        return ", ".join([*words, *(f"{name} (not used, for its side is not said)" for name in self.sideless)])

    @property
    def labeled(self) -> frozenset[str]:
        """Keys of the organs that were labeled."""
        return frozenset(key for _, key in self.organs)

    def unknown_values(self, labels: np.ndarray) -> list[int]:
        """Values in an integer array that the map does not explain, sorted."""
        known = {0, *self.others, *self.ignored, *(value for value, _ in self.organs)}
        return [int(value) for value in np.unique(labels) if int(value) not in known]

    def apply(self, labels: np.ndarray) -> np.ndarray:
        """Return the labels in FlareSegment's values and `IGNORED`, uint8, same shape.

        Raises:
            InputError: a value that the map does not explain.
        """
        unknown = self.unknown_values(labels)
        if unknown:
            shown = ", ".join(str(value) for value in unknown[:6]) + (", ..." if len(unknown) > 6 else "")
            raise InputError(f"label value {shown} is not in the label map '{self.name}'; explain it with --label-map")
        result = np.zeros(labels.shape, np.uint8)
        for value, key in self.organs:
            result[labels == value] = organ_by_key(key).label
        for value in self.ignored:
            result[labels == value] = IGNORED
        return result


def holds_organ(labels: np.ndarray) -> bool:
    """Whether labels in FlareSegment's values hold any organ."""
    return bool(((labels != 0) & (labels != IGNORED)).any())


def _table(name: str, organs: Mapping[str, int | tuple[int, ...]], highest: int = 0) -> LabelMap:
    """A named table; values up to `highest` that are no organ's are other structures."""
    pairs = []
    for key, values in organs.items():
        pairs += [(value, key) for value in (values if isinstance(values, tuple) else (values,))]
    taken = {value for value, _ in pairs}
    return LabelMap(name, tuple(sorted(pairs)), frozenset(set(range(1, highest + 1)) - taken))


LABEL_MAPS: dict[str, LabelMap] = {
    table.name: table
    for table in (
        _table("flaresegment", {organ.key: organ.label for organ in ORGANS}),
        _table("flaresegment13", LABEL_TABLES["flaresegment"]),
        _table("flare22", LABEL_TABLES["flare22"]),
        # BTCV, "Beyond the Cranial Vault" (Synapse syn3193805): 10 portal and splenic vein.
        _table(
            "btcv",
            {
                "spleen": 1,
                "right_kidney": 2,
                "left_kidney": 3,
                "gallbladder": 4,
                "esophagus": 5,
                "liver": 6,
                "stomach": 7,
                "aorta": 8,
                "inferior_vena_cava": 9,
                "pancreas": 11,
                "right_adrenal_gland": 12,
                "left_adrenal_gland": 13,
            },
            13,
        ),
        # AMOS (Ji et al. 2022): 14 bladder, 15 prostate or uterus.
        _table(
            "amos",
            {
                "spleen": 1,
                "right_kidney": 2,
                "left_kidney": 3,
                "gallbladder": 4,
                "esophagus": 5,
                "liver": 6,
                "stomach": 7,
                "aorta": 8,
                "inferior_vena_cava": 9,
                "pancreas": 10,
                "right_adrenal_gland": 11,
                "left_adrenal_gland": 12,
                "duodenum": 13,
            },
            15,
        ),
        # Medical Segmentation Decathlon (Antonelli et al. 2022): a tumor is part of its organ.
        _table("msd-liver", {"liver": (1, 2)}),
        _table("msd-spleen", {"spleen": 1}),
        _table("msd-pancreas", {"pancreas": (1, 2)}),
        # TotalSegmentator's task "total", version 2: 117 structures, ours among them.
        _table(
            "totalsegmentator",
            {
                "spleen": 1,
                "right_kidney": 2,
                "left_kidney": 3,
                "gallbladder": 4,
                "liver": 5,
                "stomach": 6,
                "pancreas": 7,
                "right_adrenal_gland": 8,
                "left_adrenal_gland": 9,
                "esophagus": 15,
                "duodenum": 19,
                "aorta": 52,
                "inferior_vena_cava": 63,
            },
            117,
        ),
    )
}
"""Tables by the name that `--label-map` takes."""


def label_map_of_names(name: str, names: Mapping[str, object]) -> LabelMap:
    """The label map of a data set's own list, in either order.

    names: {"1": "liver"} (Medical Segmentation Decathlon, nnU-Net version 1) or {"liver": 1}, {"liver": [1, 2]}
        (nnU-Net version 2, whose regions may overlap: an organ keeps its values). A tumor belongs to the organ in its
        name, or to the only organ there is. What is called "ignore" was not looked at.

    Raises:
        InputError: the list has another form, a value is no whole number above 0, or one value has two organs.
    """
    meanings: list[tuple[str, list[int]]] = []
    for key, value in names.items():
        values: Sequence[Any] = (
            [key] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        )
        try:
            whole = [int(item) for item in values]
            if isinstance(value, str) or whole == list(values):
                meanings.append((value if isinstance(value, str) else key, whole))
                continue
        except (TypeError, ValueError, OverflowError):
            pass
        raise InputError(f"{name}: the label {key!r}: {value!r} is not understood; give value: name or name: value.")
    direct = {organ for meaning, _ in meanings if (organ := organ_of_name(meaning))}
    organs: dict[int, str] = {}
    others: set[int] = set()
    ignored: set[int] = set()
    for meaning, values in meanings:
        if meaning.strip().lower() == IGNORE:
            ignored.update(values)
            continue
        if meaning.strip().lower() in ("background", "clear label"):
            continue
        if min(values, default=1) < 1:
            raise InputError(f"{name}: {meaning!r} has the value {min(values)}; values of structures are 1 and above.")
        organ = organ_of_name(meaning) or _organ_of_tumor(meaning, direct)
        for value in values:
            if organ is None:
                others.add(value)
            elif organs.setdefault(value, organ) != organ:
                raise InputError(f"{name}: value {value} means both {organs[value]} and {organ}.")
    if both := ignored & (others | set(organs)):
        raise InputError(f"{name}: value {min(both)} is to be ignored and means a structure too.")
    sideless = tuple(meaning for meaning, _ in meanings if lacks_side(meaning))
    return LabelMap(
        name, tuple(sorted(organs.items())), frozenset(others - set(organs)), frozenset(ignored), sideless, source=name
    )


def _organ_of_tumor(meaning: str, organs: set[str]) -> str | None:
    rest, count = _TUMOR.subn("", meaning.lower())
    if not count:
        return None
    named = organ_of_name(rest)
    if named in organs:
        return named
    return next(iter(organs)) if len(organs) == 1 and not rest.strip(" _-") else None


def parse_label_map(text: str) -> LabelMap:
    """The label map that a user names: a table's name, a JSON file, or `1=liver,2=liver,3=other`.

    Raises:
        InputError: none of these, an unknown organ, or a file that cannot be read.
    """
    if text in LABEL_MAPS:
        return LABEL_MAPS[text].from_source(f"--label-map {text}")
    if "=" in text and not Path(text).is_file():
        names: dict[str, object] = {}
        for part in text.split(","):
            value, _, meaning = (piece.strip() for piece in part.partition("="))
            if value in names:
                raise InputError(f"--label-map {text}: value {value} is explained twice.")
            names[value] = meaning
        return _users_map("--label-map", names).from_source(f"--label-map {text}")
    file = Path(text)
    if not file.is_file():
        raise InputError(
            f"--label-map {text}: neither a file, nor a map as 1=liver,2=spleen, nor one of {', '.join(LABEL_MAPS)}."
        )
    return read_label_map(file).from_source(f"--label-map {text}")


def read_label_map(file: Path) -> LabelMap:
    """A label map from a JSON file. Raises InputError."""
    try:
        names = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as a JSON label map: {error}.") from error
    if not isinstance(names, dict):
        raise InputError(f'{file} is no label map: a JSON object such as {{"1": "liver"}} is needed.')
    return _users_map(file.name, names)


def _users_map(name: str, names: Mapping[str, object]) -> LabelMap:
    """As `label_map_of_names`, but every name must be an organ's, `other` or `ignore`: a typing error would lose an
    organ.
    """
    for key, value in names.items():
        meaning = value if isinstance(value, str) else key
        if meaning.lower() not in (OTHER, IGNORE, "background") and organ_of_name(meaning) is None:
            if lacks_side(meaning):
                raise InputError(f"{name}: {meaning!r} says no side; {SIDES_NEEDED}")
            known = ", ".join(organ.key for organ in FLARE22_ORGANS)
            raise InputError(f"{name}: {meaning!r} is no organ; known: {known}, {OTHER}, {IGNORE}.")
    label_map = label_map_of_names(name, names)
    if not label_map.organs:
        raise InputError(f"{name} explains no organ.")
    return label_map
