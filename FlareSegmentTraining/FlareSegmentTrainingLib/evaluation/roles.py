"""What a case was when a model was made: trained on, validated on, another scan of a trained patient, or new.

Scans are known by their voxels, so that it does not matter what they are called or whether they were prepared since;
names count only for models that tell no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.scan_identity import SHORT
from FlareSegmentTrainingLib.datasets.splits import SPLIT_FILE, read_split
from FlareSegmentTrainingLib.training.run_cases import TRAINING, VALIDATION, read_cases

TRAINED = "trained on"
VALIDATED = "validated on"
SAME_PATIENT = "patient trained on"
NEW = "new"


@dataclass(frozen=True)
class MadeWith:
    """The scans and patients of a model's training.

    Attributes:
        trained, validated: the first `SHORT` digits of the scans' hashes.
        patients: names of patients that were trained on, where they are more than the names of their cases.
        named: those that are the names of their cases: a prepared folder calls a patient after the first scan.
    """

    trained: frozenset[str]
    validated: frozenset[str]
    patients: frozenset[str] = frozenset()
    named: frozenset[str] = frozenset()

    def role_of(self, scan: str, patient: str, case: str) -> str:
        """What a scan was; a patient's name that is only the case's own says nothing of other scans."""
        if scan[:SHORT] in self.trained:
            return TRAINED
        if patient in self.patients or patient != case and patient in self.named:
            return SAME_PATIENT
        return VALIDATED if scan[:SHORT] in self.validated else NEW


def made_with(model: Path, facts: Mapping[str, object]) -> MadeWith | None:
    """The scans that a model's description names, or the run that it lies in; None where neither does.

    Args:
        model: the model's folder.
        facts: what its model.json tells.
    """
    known = read_cases(model.resolve().parent)
    told = facts.get("scans")
    sides = {
        side: frozenset(str(e.get("scan_sha256", ""))[:SHORT] for e in known.values() if e.get("side") == side)
        for side in (TRAINING, VALIDATION)
    }
    if isinstance(told, dict) and all(isinstance(told.get(key), list) for key in ("trained", "validated")):
        sides = {TRAINING: frozenset(map(str, told["trained"])), VALIDATION: frozenset(map(str, told["validated"]))}
    elif not known:
        return None
    patients = {
        name: str(entry["patient"])
        for name, entry in known.items()
        if entry.get("side") == TRAINING and entry.get("patient") is not None
    }
    more = frozenset(patient for name, patient in patients.items() if patient != name)
    return MadeWith(sides[TRAINING], sides[VALIDATION], more, frozenset(patients.values()) - more)


def roles_of_cases(model: Path, facts: Mapping[str, object]) -> dict[str, str] | None:
    """Which cases, by their names, a model was trained on and which it was chosen with: {case: TRAINED or VALIDATED}.

    Models that a training leaves tell only how many there were, for names may tell of a person: those are in the
    split.json of its run, while the model lies there.

    Args:
        model: the model's folder.
        facts: what its model.json tells.

    Returns:
        None where neither says it.
    """
    training, validation = facts.get("training_cases"), facts.get("validation_cases")
    if not isinstance(training, list):
        try:
            split = read_split(model.resolve().parent / SPLIT_FILE)
        except InputError:
            return None
        training, validation = list(split.training), list(split.validation)
    roles = {str(case): VALIDATED for case in validation} if isinstance(validation, list) else {}
    return roles | {str(case): TRAINED for case in training}
