"""Which CTs with labels there are, and how far each organ's labels can be trusted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import ORGANS

IMAGE_SUFFIX = "_ct.nii.gz"
LABELS_SUFFIX = "_labels.nii.gz"
QUALITY_FILE = "quality.json"
GRADE_WEIGHTS = {"A": 1.0, "B": 1.0, "C": 0.5, "absent": 1.0, "ignore": 0.0}


@dataclass(frozen=True)
class Case:
    """One CT with its label map.

    Attributes:
        weights: organ key -> weight of its labels in the loss; 0 where the organ is visible but was not labeled, so
            that neither labeling it nor leaving it out is punished.
    """

    name: str
    image: Path
    labels: Path
    weights: dict[str, float]


def find_cases(folder: Path) -> list[Case]:
    """Return the pairs `<case>_ct.nii.gz`, `<case>_labels.nii.gz` in a folder, sorted by name.

    Grades per case and organ come from `quality.json` in the folder or the one above, where there is one; a case without
    grades counts in full.

    Raises:
        InputError: when the folder holds no case, a case has no labels, or a grade is unknown.
    """
    folder = Path(folder)
    images = sorted(folder.glob(f"*{IMAGE_SUFFIX}"))
    if not images:
        raise InputError(f"No case in {folder}: files named <case>{IMAGE_SUFFIX} are needed.")
    grades = _grades(folder)
    cases = []
    for image in images:
        name = image.name.removesuffix(IMAGE_SUFFIX)
        labels = image.with_name(name + LABELS_SUFFIX)
        if not labels.is_file():
            raise InputError(f"{image} has no labels: {labels.name} is missing beside it.")
        cases.append(Case(name, image, labels, _weights(grades.get(name, {}), name)))
    return cases


def _grades(folder: Path) -> dict:
    for place in (folder, folder.parent):
        file = place / QUALITY_FILE
        if file.is_file():
            try:
                return json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{file} is not valid JSON: {error}") from error
    return {}


def _weights(grades: dict, name: str) -> dict[str, float]:
    weights = {}
    for organ in ORGANS:
        grade = grades.get(organ.key, {}).get("grade", "A")
        if grade not in GRADE_WEIGHTS:
            raise InputError(f"Case {name}, {organ.key}: unknown grade {grade!r}; known: {', '.join(GRADE_WEIGHTS)}.")
        weights[organ.key] = GRADE_WEIGHTS[grade]
    return weights
