"""Measuring predictions against labels, case by case: what `evaluate.py` does.

`evaluate_cases` measures each case once (`figures`) and keeps it in the output folder, so that a run that was stopped
goes on, and a case is measured anew only when the model, its files or the program have changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.image_io import write_labels
from FlareSegmentLib.organs import FLARE22_ORGANS, Organ
from FlareSegmentLib.processes import UNFINISHED
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.dataset_layouts import LABEL_MAP_FILE, LeftOut
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED
from FlareSegmentTrainingLib.datasets.scan_identity import scan_hash
from FlareSegmentTrainingLib.evaluation.figures import NOT_LABELED, measure, only_organs, summarize
from FlareSegmentTrainingLib.evaluation.identities import digest, program_identity
from FlareSegmentTrainingLib.evaluation.predictors import LabelsOnlyCase, Predictor
from FlareSegmentTrainingLib.evaluation.roles import SAME_PATIENT, TRAINED
from FlareSegmentTrainingLib.runs.watched_folder import save_whole
from FlareSegmentTrainingLib.scheduling.tasks import outcomes_in_order

if TYPE_CHECKING:
    from distributed import Client


FORMAT = "flaresegment-evaluation"
FORMAT_VERSION = 1
RESULT_FILE = "evaluation.json"
RECORDS = "cases"
PREDICTIONS = "predictions"
PICTURES = "pictures"
SUBJECT_FILE = "subject.json"

DrawCase = Callable[
    [Path, str, Volume, np.ndarray, np.ndarray, Sequence[Organ]], tuple[list[dict[str, str]], list[str]]
]
"""Draws a case's pictures: (folder, name, volume, labels, reference, organs) -> (pictures, warnings); see
`FlareSegmentTrainingSlicerLib.evaluation_pictures.draw_case`.
"""


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        kind, name, identity: of the predictor.
        organs: what was measured, in the order of their labels.
        cases: case name -> record: "organs" (see `measure`), "size", "spacing_mm", "reference_sha256", "warnings",
            "pictures", "prediction" (file below the output folder).
        left_out: cases that could not be measured.
        roles: case name -> TRAINED, VALIDATED, SAME_PATIENT or NEW, where the predictor knows it.
        reused: how many cases an earlier run had measured.
    """

    kind: str
    name: str
    identity: str
    organs: tuple[Organ, ...]
    cases: dict[str, dict]
    left_out: list[LeftOut]
    roles: dict[str, str] = field(default_factory=dict)
    reused: int = 0

    def content(self) -> dict:
        """What evaluation.json holds."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "subject": {"kind": self.kind, "name": self.name, "identity": self.identity},
            "organs": {organ.key: {"label": organ.label, "nsd_mm": organ.nsd_tolerance_mm} for organ in self.organs},
            "cases": self.cases,
            "left_out": [{"case": item.name, "reason": item.reason} for item in self.left_out],
            "summary": summarize(self.cases, self.organs),
            "roles": self.roles,
            "summary_without_trained": self._summary_without_trained(),
        }

    def _summary_without_trained(self) -> dict | None:
        """The summary of the cases that were not trained on, where some were and some were not."""
        known = (TRAINED, SAME_PATIENT)
        others = {name: record for name, record in self.cases.items() if self.roles.get(name) not in known}
        return summarize(others, self.organs) if 0 < len(others) < len(self.cases) else None


def organs_to_measure(predictor: Predictor, cases: Sequence[Case], keys: Iterable[str] | None) -> tuple[Organ, ...]:
    """The organs that the predictor can find and that are labeled in some case, of those in `keys` if given.

    Raises:
        InputError: there is none.
    """
    labeled = frozenset().union(*(case.labeled for case in cases))
    wanted = None if keys is None else set(keys)
    organs = tuple(
        organ
        for organ in FLARE22_ORGANS
        if organ.key in predictor.organs & labeled and (wanted is None or organ.key in wanted)
    )
    if not organs:
        raise InputError(
            f"Nothing can be measured: {predictor.name} knows {', '.join(sorted(predictor.organs))}; labeled are "
            f"{', '.join(sorted(labeled))}."
        )
    return organs


def organs_not_found(predictor: Predictor, cases: Sequence[Case]) -> list[str]:
    """Names of the organs that are labeled in some case and that the predictor does not know."""
    labeled = frozenset().union(*(case.labeled for case in cases))
    return [organ.name.lower() for organ in FLARE22_ORGANS if organ.key in labeled - predictor.organs]


def evaluate_cases(
    cases: Sequence[Case],
    predictor: Predictor,
    organs: tuple[Organ, ...],
    output: Path,
    draw: DrawCase | None,
    left_out: Sequence[LeftOut] = (),
    say: Callable[[str], None] = print,
    client: Client | None = None,
) -> Evaluation:
    """Measure all cases, each kept in `output` as soon as it is done.

    Args:
        draw: makes the pictures; None for none.
        left_out: cases already known to be unusable; they appear in the result.
        client: of Dask, whose workers measure the cases; by default this process does.

    Raises:
        InputError: the folder holds another evaluation, or no case can be measured.
        FlareSegmentError: the disk does not take the files, or there is too little memory.
    """
    _claim(output, predictor)
    evaluation = Evaluation(predictor.kind, predictor.name, predictor.identity, organs, {}, list(left_out))
    scans: dict[str, str] = {}
    done = outcomes_in_order(client, _evaluate_case, cases, predictor, organs, output.absolute(), draw)
    for number, outcome in enumerate(done, start=1):
        case = outcome.item
        if outcome.error is not None:
            evaluation.left_out.append(LeftOut(case.name, _without_folders(str(outcome.error), case)))
            say(f"[{number}/{len(cases)}] {case.name} is left out: {evaluation.left_out[-1].reason}")
            continue
        record, reused = outcome.value
        scan = record["scan_sha256"]
        if scan is not None and scans.setdefault(scan, case.name) != case.name:
            evaluation.left_out.append(LeftOut(case.name, f"its image is that of {scans[scan]}"))
            say(f"[{number}/{len(cases)}] {evaluation.left_out[-1]}")
            continue
        evaluation.cases[case.name] = record
        known = getattr(predictor, "made_with", None) if scan is not None else None
        role = known.role_of(scan, case.patient, case.name) if known else predictor.role_of(case.name)
        if role is not None:
            evaluation.roles[case.name] = role
        evaluation.reused += reused
        say(f"[{number}/{len(cases)}] {case.name}: {_in_short(record, organs)}{' (as before)' if reused else ''}")
    if not evaluation.cases:
        reasons = f"; {evaluation.left_out[0]}" if evaluation.left_out else ""
        raise InputError(f"None of the {len(cases)} cases can be measured{reasons}.")
    return evaluation


def read_evaluation(file: Path) -> dict:
    """The content of an evaluation.json. Raises InputError where it is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT or content["format_version"] != FORMAT_VERSION:
            raise ValueError("it is of another format or version")
        for record in content["cases"].values():
            for row in record["organs"].values():
                row["status"]
            record["reference_sha256"]
        content["subject"]["name"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be read as an evaluation: {error}.") from error
    return content


def write_json(file: Path, content: object) -> None:
    """Write a JSON file whole or not at all. Raises FlareSegmentError."""
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    save_whole(file, lambda place: place.write_text(text, encoding="utf-8"))


def file_name(case: str) -> str:
    """A case's name as part of file names: letters, digits and -_. only, and never two cases with one name."""
    plain = re.sub(r"[^\w.-]", "_", case, flags=re.ASCII)
    return plain if plain == case else f"{plain}_{digest([case])[:8]}"


def _claim(output: Path, predictor: Predictor) -> None:
    """Make the output folder this evaluation's own. Raises InputError where it is something else's."""
    subject = output / RECORDS / SUBJECT_FILE
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; name a folder with --output.")
    if subject.is_file():
        try:
            content = json.loads(subject.read_text(encoding="utf-8"))
            if content["identity"] == predictor.identity:
                return
            name = content["name"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{subject} is damaged: choose another folder with --output.") from error
        raise InputError(f"{output} holds the evaluation of something else ({name}): choose another folder.")
    if (output / RESULT_FILE).exists() or _holds_files(output / RECORDS):
        raise InputError(f"{output} holds files that are not of an evaluation: choose another folder with --output.")
    try:
        for folder in (RECORDS, PICTURES, PREDICTIONS):
            (output / folder).mkdir(parents=True, exist_ok=True)
        # So that the predictions can be evaluated themselves, with --predictions.
        write_json(output / PREDICTIONS / LABEL_MAP_FILE, {organ.label: organ.key for organ in FLARE22_ORGANS})
        write_json(subject, {"name": predictor.name, "identity": predictor.identity})
    except (OSError, FlareSegmentError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{output} cannot be written ({reason}): choose another folder with --output.") from error


def _holds_files(folder: Path) -> bool:
    """Whether something lies there but what a process that was killed had begun."""
    if not folder.is_dir():
        return folder.exists()
    return any(not file.name.startswith(UNFINISHED) for file in folder.iterdir())


def _evaluate_case(
    case: Case, predictor: Predictor, organs: tuple[Organ, ...], output: Path, draw: DrawCase | None
) -> tuple[dict, bool]:
    """A case's record, and whether it was there already. Raises InputError, and FlareSegmentError for too little
    memory or space.
    """
    try:
        return _record(case, predictor, organs, output, draw)
    except MemoryError as error:
        raise FlareSegmentError(f"{case.name}: {error or 'memory ran out'}; the same command goes on.") from error


def _record(
    case: Case, predictor: Predictor, organs: tuple[Organ, ...], output: Path, draw: DrawCase | None
) -> tuple[dict, bool]:
    name = file_name(case.name)
    key = digest(
        [
            FORMAT_VERSION,
            program_identity(),
            predictor.identity_of(case.name),
            case.content_hash(),
            sorted(case.labeled),
            [organ.key for organ in organs],
            draw is not None,
            "scan",
        ]
    )
    file = output / RECORDS / f"{name}.json"
    earlier = _earlier(file, key, output)
    if earlier is not None:
        return earlier, True
    volume, reference, warnings = case.read()
    prediction = predictor.predict(case.name, volume)
    reference_hash = digest([reference.shape, hashlib.sha256(reference.tobytes()).hexdigest()])
    ignored_ml = np.count_nonzero(reference == IGNORED) * volume.voxel_volume_ml
    if ignored_ml:
        warnings = [*warnings, f"{ignored_ml:.0f} mL of the reference are marked to be ignored and not measured."]
    labels, reference = only_organs(organs, prediction.labels), only_organs(organs, reference)
    rows = measure(labels, reference, volume, organs, case.labeled)
    reference = np.where(reference == IGNORED, 0, reference).astype(np.uint8)  # for the pictures
    pictures: list[dict[str, str]] = []
    more: list[str] = []
    if draw is not None:
        counted = [organ for organ in organs if rows[organ.key]["status"] != NOT_LABELED]
        try:
            pictures, more = draw(output / PICTURES, name, volume, labels, reference, counted)
        except OSError as error:
            raise FlareSegmentError(f"{error}. Free some space; the same command goes on.") from error
    saved = f"{PREDICTIONS}/{name}_labels.nii.gz"
    write_labels(output / saved, labels, volume)
    texts = [_without_folders(text, case) for text in (*warnings, *prediction.warnings, *more)]
    record = {
        "key": key,
        "organs": {key: {name: _plain(value) for name, value in row.items()} for key, row in rows.items()},
        "size": list(volume.array.shape[::-1]),
        "spacing_mm": [round(step, 4) for step in volume.spacing],
        "has_ct": not isinstance(case, LabelsOnlyCase),
        "scan_sha256": None if isinstance(case, LabelsOnlyCase) else scan_hash(volume),
        "reference_sha256": reference_hash,
        "warnings": list(dict.fromkeys(texts)),
        "pictures": pictures,
        "prediction": saved,
    }
    write_json(file, record)
    return record, False


def _earlier(file: Path, key: str, output: Path) -> dict | None:
    """The record of an earlier run, if it was made from the same and its files are there."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        made = [output / PICTURES / picture["file"] for picture in record["pictures"]]
        if record["key"] == key and all(path.is_file() for path in [*made, output / record["prediction"]]):
            return record
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _in_short(record: dict, organs: Sequence[Organ]) -> str:
    parts = []
    for organ in organs:
        row = record["organs"][organ.key]
        parts.append(f"{organ.name} {row['status'] if row['dice'] is None else format(row['dice'], '.3f')}")
    return ", ".join(parts)


def _without_folders(text: str, case: Case) -> str:
    """A message without the folders that the case's files lie in: they may tell of a person."""
    for path in (case.image, case.labels):
        if path is not None:
            for folder in (str(path.parent), str(path.parent.resolve())):
                text = text.replace(folder + os.sep, "")
    return " ".join(re.sub(r"(?<![\w.])/(?:[^\s/:]+/)+", "", text).split()).rstrip(".")


def _plain(value: object) -> object:
    return round(float(value), 6) if isinstance(value, (float, np.floating)) else value
