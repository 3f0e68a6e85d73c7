"""What a teaching was begun with, told by content: only with the very same is it continued."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.archives import sha256
from FlareSegmentTrainingLib.datasets.cases import Case, find_cases

MODEL_FILES = ("model.json", "weights.pt")  # as `model_file` calls them, which brings PyTorch


def example_states(cases: Sequence[Case]) -> dict[str, str]:
    """Case name -> SHA-256 of files and weights of the organs' labels. Raises InputError where a file is gone."""
    return {
        case.name: hashlib.sha256(repr((case.content_hash(), sorted(case.weights.items()))).encode()).hexdigest()
        for case in cases
    }


def model_state(folder: Path) -> str:
    """SHA-256 of a model's files. Raises InputError where one is missing."""
    try:
        return hashlib.sha256("".join(sha256(folder / name) for name in MODEL_FILES).encode()).hexdigest()
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}.") from error


def is_unchanged(settings: dict, examples: Path, model: Path) -> bool:
    """Whether examples and model are still those of a teaching's config.json."""
    try:
        cases = find_cases([examples], left_out=lambda item: None, say=lambda line: None)
        states = example_states([case for case in cases if case.name in settings["examples"]])
        return states == settings["examples"] and model_state(model) == settings["model"]["sha256"]
    except (InputError, LookupError, TypeError):
        return False
