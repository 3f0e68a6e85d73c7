"""Which cases train and which validate: by patient, reproducible, written down.

Patients, not cases, are dealt out, in an order that depends on the seed and the patient's name alone: the split does
not change with the order of the files. Cases whose data set fixes their side keep it.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.cases import Case

SPLIT_FILE = "split.json"
DEFAULT_TRAINING_FRACTION = 0.9
FIXED_BY_DATA = "fixed by the data set"
"""How a split was chosen where the data set's own parts chose it."""


@dataclass(frozen=True)
class Split:
    """Names of the training and validation cases, and how they were chosen."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    method: str

    def apply(self, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
        """The (training, validation) cases, in the split's order.

        Raises:
            InputError: a case of the split is missing, is on both sides, or one patient is on both sides.
        """
        by_name = {case.name: case for case in cases}
        missing = [name for name in (*self.training, *self.validation) if name not in by_name]
        if missing:
            raise InputError(f"The split names cases that are not in the data: {_some(missing)}.")
        training = [by_name[name] for name in self.training]
        validation = [by_name[name] for name in self.validation]
        check_apart(training, validation)
        return training, validation

    def write(self, folder: Path) -> Path:
        """Write `split.json` into the run's folder, whole or not at all; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as private:
            temporary = Path(private) / SPLIT_FILE
            temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, folder / SPLIT_FILE)
        return folder / SPLIT_FILE


def check_apart(training: Sequence[Case], validation: Sequence[Case]) -> None:
    """Raise InputError when a case or a patient is among the training and the validation cases, or a file is in
    both.
    """
    patients = {case.patient for case in training} & {case.patient for case in validation}
    if patients:
        names = [case.name for case in (*training, *validation) if case.patient in patients]
        raise InputError(f"One patient would train and validate: cases {_some(names)}. Put them on one side.")
    twice = {case.name for case in training} & {case.name for case in validation}
    if twice:
        raise InputError(f"Validation cases must never be trained on: {_some(sorted(twice))}.")
    files = {case.image.resolve() for case in training if case.image} & {
        case.image.resolve() for case in validation if case.image
    }
    if files:
        raise InputError(f"Validation images must never be trained on: {_some(sorted(str(file) for file in files))}.")


def remarks_on_split(split: Split, cases: Sequence[Case]) -> list[str]:
    """What nobody would expect of a split, a line each: validation cases of a data set that train, cases on no side."""
    training, used = set(split.training), {*split.training, *split.validation}
    moved = [case.name for case in cases if case.fixed_set == "val" and case.name in training]
    unused = [case.name for case in cases if case.name not in used]
    lines = []
    if moved:
        lines.append(f"Warning: validation cases of their data set train here ({split.method}): {_some(moved)}")
    if unused:
        lines.append(f"Not used, for this split ({split.method}) does not name them: {_some(unused)}")
    return lines


def read_split(file: Path, fold: str | None = None) -> Split:
    """A split from `split.json`, a list {"training": [...], "validation": [...]} by hand, or nnU-Net's
    `splits_final.json` ([{"train": [...], "val": [...]}, ...]).

    Args:
        fold: "K/N": the one of the file's N folds.

    Raises:
        InputError: the file is no split, or the fold is none of its.
    """
    name = Path(file).name
    try:
        content = json.loads(Path(file).read_bytes())
        if isinstance(content, list) and content:
            number = _fold_number(name, len(content), fold)
            training, validation, method = content[number]["train"], content[number]["val"], f"fold {number} of {name}"
        else:
            training, validation = content["training"], content["validation"]
            method = str(content.get("method", f"list {name}"))
        if not all(isinstance(item, str) for item in (*training, *validation)):
            raise TypeError("names of cases must be strings")
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"{file} is no split ({type(error).__name__}: {error}); "
            '{"training": [names], "validation": [names]} is needed, or nnU-Net\'s splits_final.json.'
        ) from error
    return Split(tuple(training), tuple(validation), method)


def parse_fold(text: str) -> tuple[int, int]:
    """The fold and the number of folds that "K/N" means. Raises InputError."""
    fold, _, folds = text.partition("/")
    if not fold.isdigit() or not folds.isdigit():
        raise InputError(f"--fold {text}: write K/N, such as 0/5.")
    return int(fold), int(folds)


def _fold_number(name: str, count: int, fold: str | None) -> int:
    if fold is None and count > 1:
        raise InputError(f"{name} holds {count} folds: choose one with --fold 0/{count} to --fold {count - 1}/{count}.")
    number, folds = parse_fold(fold) if fold else (0, count)
    if folds != count or number >= count:
        raise InputError(f"--fold {fold}: {name} holds {count} folds, counted from 0.")
    return number


def split_cases(
    cases: Sequence[Case],
    training_fraction: float = DEFAULT_TRAINING_FRACTION,
    folds: int | None = None,
    fold: int = 0,
    seed: int = 0,
) -> Split:
    """Deal the cases out by patient.

    Data sets that fix both sides (folders train/ and val/, a column of a list) are split as they say, with every other
    case in training. All others: `training_fraction` of the patients train, at least one on each side; or, with
    `folds`, every `folds`-th patient validates, beginning at number `fold`. Cases that a data set keeps for training
    (made ones, say) never validate beside others; those of a validating patient are on neither side.

    Raises:
        InputError: fewer than two patients, an impossible fraction or fold, or a fixed side that would share a patient.
    """
    if any(case.fixed_set == "val" for case in cases) and folds is None:
        validation = [case for case in cases if case.fixed_set == "val"]
        training = [case for case in cases if case.fixed_set != "val"]
        if not training:
            raise InputError("All cases are validation cases of their data set; name training cases too.")
        check_apart(training, validation)
        return _split(training, validation, FIXED_BY_DATA)
    dealt = [case for case in cases if case.fixed_set != "train"] or list(cases)
    patients = sorted({case.patient for case in dealt}, key=lambda patient: (_rank(seed, patient), patient))
    if len(patients) < 2:
        raise InputError(f"{len(dealt)} cases of {len(patients)} patient cannot be split; two patients are needed.")
    if folds is not None:
        if not 2 <= folds <= len(patients) or not 0 <= fold < folds:
            raise InputError(
                f"Fold {fold} of {folds} is not possible with {len(patients)} patients: 2 to {len(patients)} folds, "
                "numbered from 0."
            )
        chosen = set(patients[fold::folds])
        method = f"fold {fold} of {folds}, seed {seed}"
    else:
        if not 0.0 < training_fraction < 1.0:
            raise InputError(f"The fraction of training cases must lie between 0 and 1, not {training_fraction:g}.")
        count = min(len(patients) - 1, max(1, round((1.0 - training_fraction) * len(patients))))
        chosen = set(patients[:count])
        method = f"fraction {training_fraction:g}, seed {seed}"
    validation = [case for case in dealt if case.patient in chosen]
    training = [case for case in cases if case.patient not in chosen]
    check_apart(training, validation)
    return _split(training, validation, method)


def _split(training: Sequence[Case], validation: Sequence[Case], method: str) -> Split:
    return Split(tuple(sorted(c.name for c in training)), tuple(sorted(c.name for c in validation)), method)


def _rank(seed: int, patient: str) -> str:
    return hashlib.sha256(f"{seed}\n{patient}".encode()).hexdigest()


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
