"""Parts of a data set that its own folders, files or lists keep apart: training, validation and test."""

from __future__ import annotations

import re
from pathlib import Path

TRAINING, VALIDATION, TEST = "train", "val", "test"
_WORDS = {
    TRAINING: ("train", "training", "tr", "trainset", "labeled", "labelled"),
    VALIDATION: ("val", "validation", "valid", "validate", "validating", "va", "vs", "valset", "dev", "development"),
    TEST: ("test", "testing", "ts", "te", "testset", "holdout"),
}
_SIDES = {word: side for side, words in _WORDS.items() for word in words}
_SHORT = ("tr", "va", "vs", "ts", "te", "labeled", "labelled")


def side_of_word(word: str) -> str | None:
    """The part that a word such as "Tr", "valid" or "testing" means."""
    return _SIDES.get(word.strip().lower().strip("-_. "))


def side_of_folder(name: str) -> str | None:
    """The part that a folder of this name holds: train, training, val, valid, validation, dev, test and the like, also
    with "set" or "data" behind it.
    """
    word = re.sub(r"[-_ ]?(set|data|cases|images|scans)$", "", name.strip().lower())
    return None if word in _SHORT else _SIDES.get(word)


def side_of_location(location: Path) -> str | None:
    """The part that a location given by hand is, by its name: the folder's or archive's, or that of the folder above
    where the other part lies beside it.
    """
    name = location.name.split(".")[0] if location.is_file() else location.name
    own = side_of_folder(name)
    if own is not None:
        return own
    above = location.parent
    side = side_of_folder(above.name)
    try:
        beside = {side_of_folder(entry.name) for entry in above.parent.iterdir() if entry.is_dir()}
    except OSError:
        return None
    return side if len(beside - {None}) > 1 else None
