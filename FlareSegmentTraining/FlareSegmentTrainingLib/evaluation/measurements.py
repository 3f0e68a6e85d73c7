"""Measuring predictions against labels, case by case: what `evaluate.py` does.

A `Predictor` gives the labels of a CT: a model, or a folder of label maps. `evaluate_cases` measures each case once
and keeps it in the output folder, so that a run that was stopped goes on, and a case is measured anew only when the
model, its files or the program have changed.

What counts (`measure`): an organ that was not labeled in a case has no figures there. An organ that is neither in the
reference nor in the prediction has none either; where only the prediction has it, there is no Dice, but its volume is
reported as false positive. An organ that was missed has Dice and NSD 0, and no HD95, which would be infinite. Voxels
that the reference marks as ignored count nowhere: both label maps end at their border.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.image_io import write_labels
from FlareSegmentLib.measures import metrics
from FlareSegmentLib.organs import FLARE22_ORGANS, Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.archives import sha256
from FlareSegmentTrainingLib.datasets.cases import Case, cases_of_pairs
from FlareSegmentTrainingLib.datasets.dataset_layouts import LABEL_MAP_FILE, Found, LeftOut, Pair, read_quality
from FlareSegmentTrainingLib.datasets.label_files import files_of, read_case_labels, read_labels_alone
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED, LabelMap
from FlareSegmentTrainingLib.datasets.scan_identity import scan_hash
from FlareSegmentTrainingLib.evaluation.identities import digest, identity_of_model, program_identity
from FlareSegmentTrainingLib.evaluation.label_folders import LabelFolder
from FlareSegmentTrainingLib.evaluation.roles import (
    NEW,
    SAME_PATIENT,
    TRAINED,
    made_with,
    roles_of_cases,
)
from FlareSegmentTrainingLib.evaluation.roles import (
    VALIDATED as VALIDATED,  # those who read `Evaluation.roles` need all
)
from FlareSegmentTrainingLib.runs.watched_folder import save_whole
from FlareSegmentTrainingLib.scheduling.tasks import outcomes_in_order

if TYPE_CHECKING:
    from distributed import Client

    from FlareSegmentLib.inference.pipeline import Segmenter

FORMAT = "flaresegment-evaluation"
FORMAT_VERSION = 1
RESULT_FILE = "evaluation.json"
RECORDS = "cases"
PREDICTIONS = "predictions"
PICTURES = "pictures"
SUBJECT_FILE = "subject.json"
MEASURES = ("dice", "nsd", "hd95_mm", "volume_error_ml", "volume_error_percent")
LARGER_IS_BETTER = frozenset({"dice", "nsd"})

MEASURED = "measured"
MISSED = "missed"
FALSE_POSITIVE = "false positive"
ABSENT = "absent"
NOT_LABELED = "not labeled"

_AIR_HU = -1024


# Predictions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Labels of a CT, uint8 (z, y, x) on its grid in FlareSegment's values, and what is to be said about them."""

    labels: np.ndarray
    warnings: list[str] = field(default_factory=list)


class Predictor(Protocol):
    """What gives the labels that are measured. One that knows the scans it was made with has them in `made_with` too.

    Attributes:
        kind: "model" or "label maps".
        name: what the report calls it.
        identity: tells it from others; of a model, the SHA-256 of its files.
        organs: keys of the organs that it can find.
    """

    kind: str
    name: str
    identity: str
    organs: frozenset[str]

    def identity_of(self, case: str) -> str:
        """SHA-256 of what the prediction of this case depends on. Raises InputError where there is none."""
        ...

    def role_of(self, case: str) -> str | None:
        """What the case was when the model was made: TRAINED, VALIDATED or NEW; None where nobody knows."""
        ...

    def predict(self, case: str, volume: Volume) -> Prediction:
        """The labels of a case's CT. Raises FlareSegmentError."""
        ...


_segmenters: dict[tuple[str, str], Segmenter] = {}
"""The one that this process used last, by the model's identity and the device. A predictor goes to a worker with each
case; the model is loaded there once.
"""


class ModelPredictor:
    """A model folder run on a device; PyTorch's networks are made when the first case needs them.

    Raises:
        ModelError: there is no usable model in the folder.
        InputError: the device is not there.
    """

    kind = "model"

    def __init__(self, folder: Path, device: str = "auto") -> None:
        from FlareSegmentLib.inference.compute_devices import choose_device
        from FlareSegmentLib.model.description import read_description

        description = read_description(folder)
        choose_device(device)
        self._folder, self._device = folder.absolute(), device
        self.name = f"{description.name} {description.version}"
        self.organs = frozenset(description.labels.values())
        self.identity = identity_of_model(folder)
        self._roles = roles_of_cases(folder, description.facts)
        self.made_with = made_with(folder, description.facts)

    def identity_of(self, case: str) -> str:
        return self.identity

    def role_of(self, case: str) -> str | None:
        return None if self._roles is None else self._roles.get(case, NEW)

    def predict(self, case: str, volume: Volume) -> Prediction:
        from FlareSegmentLib.inference.compute_devices import choose_device
        from FlareSegmentLib.inference.pipeline import Segmenter
        from FlareSegmentLib.model.model_file import load_model

        key = (self.identity, self._device)
        if key not in _segmenters:
            _segmenters.clear()
            _segmenters[key] = Segmenter(load_model(self._folder), device=choose_device(self._device))
        segmentation = _segmenters[key].segment(volume)
        return Prediction(segmentation.labels, segmentation.warnings)


class FolderPredictor:
    """A folder of label maps, one for each case: <case>_labels.nii.gz, <case>.nii.gz or the like, also what `segment`
    wrote for <case>_ct; or of a folder of masks for each case (<case>/liver.nii.gz).

    Args:
        label_map: what their values mean; by default what names in the files, labels.json, dataset.json or a table of
            classes in the folder say, or FlareSegment's own four.

    Raises InputError where the folder holds no label map.
    """

    kind = "label maps"

    def __init__(self, folder: Path, label_map: LabelMap | None = None) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; name the folder of the predicted label maps.")
        self.folder = LabelFolder(folder, label_map, "--prediction-label-map")
        self._label_map = self.folder.label_map
        self.name = folder.resolve().name
        # Not the files' content: each has its own key, and label maps may be added between two runs.
        self.identity = digest([str(folder.resolve()), self._label_map.organs])
        self.organs = frozenset().union(*(self._meaning(file).labeled for file in self.folder.files.values()))

    def _meaning(self, file: Path) -> LabelMap:
        try:
            return self.folder.meaning(file)
        except InputError:
            return self._label_map  # what is wrong is said of the case

    def identity_of(self, case: str) -> str:
        file = self._file(case)
        meaning = self.folder.meaning(file)
        return digest([*map(sha256, files_of(file, meaning)), meaning.organs, sorted(self.organs - meaning.labeled)])

    def role_of(self, case: str) -> str | None:
        return None

    def predict(self, case: str, volume: Volume) -> Prediction:
        file = self._file(case)
        try:
            meaning = self.folder.meaning(file)
            labels, remarks = read_case_labels(file, meaning, volume, file)
            if (labels == IGNORED).any():
                raise InputError("it holds voxels to be ignored, which only a reference can have")
            names = ", ".join(
                organ.name.lower() for organ in FLARE22_ORGANS if organ.key in self.organs - meaning.labeled
            )
            lacking = [f"Its prediction names no {names}, which counts as not found."] if names else []
            return Prediction(labels, [*remarks, *lacking])
        except InputError as error:
            raise InputError(f"its prediction: {error}".replace(" --label-map", " --prediction-label-map")) from error

    def _file(self, case: str) -> Path:
        stem = self.folder.stem_of(case)
        if stem is None:
            raise InputError(f"no prediction is called {case}")
        return self.folder.files[stem]


# References ---------------------------------------------------------------------------------------


class LabelsOnlyCase(Case):
    """A case whose CT is not there: its reference label map, in air."""

    def read(self) -> tuple[Volume, np.ndarray, list[str]]:
        """As `Case.read`, with a volume of air in the CT's place."""
        assert self.labels is not None
        found = read_labels_alone(self.labels, self.label_map)
        return found.with_array(np.full(found.array.shape, _AIR_HU, np.int16)), found.array, []


def find_references(
    folder: Path, label_map: LabelMap | None, left_out: Callable[[LeftOut], None]
) -> list[LabelsOnlyCase]:
    """The label maps of a folder as cases without CT; grades come from its quality.json, the values' meaning from the
    files, labels.json, dataset.json or a table of classes. Raises InputError where it holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name the folder of the reference label maps.")
    quality, found = read_quality(folder), LabelFolder(folder, label_map)
    files = sorted(found.named().items())
    pairs = [
        Pair(name, file, file, found.meaning(file) if file.is_dir() else found.label_map, grades=quality.get(name, {}))
        for name, file in files
    ]
    cases = cases_of_pairs(Found("labels", tuple(pairs)), str(folder), label_map, left_out)
    plain = [{item.name: getattr(case, item.name) for item in fields(case)} for case in cases]
    return [LabelsOnlyCase(**{**values, "image": None}) for values in plain]


# Figures ------------------------------------------------------------------------------------------


def measure(
    labels: np.ndarray, reference: np.ndarray, volume: Volume, organs: Sequence[Organ], labeled: Iterable[str]
) -> dict[str, dict[str, object]]:
    """Figures of every organ in one case.

    Args:
        labels, reference: uint8 (z, y, x) in FlareSegment's values; the reference also `label_maps.IGNORED`.
        volume: gives spacing and size of a voxel.
        organs: what to measure.
        labeled: keys of the organs whose reference can be trusted.

    Returns:
        {organ key: {"status", "reference_ml", "predicted_ml", "false_positive_ml", *MEASURES}}; None where a figure
        does not exist (see the head of this file). The volume error is prediction minus reference.

    Raises:
        ValueError: the shapes differ.
    """
    trusted = frozenset(labeled)
    ignored = reference == IGNORED
    if ignored.any():
        labels, reference = (np.where(ignored, 0, array).astype(np.uint8) for array in (labels, reference))
    scores = metrics.evaluate(labels, reference, volume.spacing, organs)
    counts = [np.bincount(array.ravel(), minlength=256) for array in (reference, labels)]
    result: dict[str, dict[str, object]] = {}
    for organ in organs:
        row: dict[str, object] = dict.fromkeys(
            ("status", "reference_ml", "predicted_ml", "false_positive_ml", *MEASURES)
        )
        result[organ.key] = row
        if organ.key not in trusted:
            row["status"] = NOT_LABELED
            continue
        there, found = (count[organ.label] * volume.voxel_volume_ml for count in counts)
        row.update(reference_ml=there, predicted_ml=found)
        if not there:
            row.update(status=FALSE_POSITIVE if found else ABSENT, false_positive_ml=found)
            continue
        error = found - there
        row.update(scores[organ.key], volume_error_ml=error, volume_error_percent=100 * error / there)
        row["status"] = MEASURED if found else MISSED
    return result


def summarize(cases: Mapping[str, dict], organs: Sequence[Organ]) -> dict[str, dict]:
    """Mean, median and worst case of every organ and measure.

    Args:
        cases: name -> record, as `evaluate_cases` returns them.

    Returns:
        {organ key: {"cases", "missed", "not_labeled", "absent", "false_positive": {case: ml}, measure: {"cases",
        "mean", "median", "worst", "worst_case"} or None}}. Volume errors have "mean_absolute" too, and their worst is
        the largest either way; a missed organ has no HD95 and is not in its mean, but is its worst case.
    """
    summary = {}
    for organ in organs:
        rows = {name: record["organs"][organ.key] for name, record in cases.items()}
        states = [row["status"] for row in rows.values()]
        counted = {name: row for name, row in rows.items() if row["status"] in (MEASURED, MISSED)}
        entry: dict[str, object] = {
            "cases": len(counted),
            "missed": states.count(MISSED),
            "not_labeled": states.count(NOT_LABELED),
            "absent": states.count(ABSENT) + states.count(FALSE_POSITIVE),
            "false_positive": {
                name: row["false_positive_ml"] for name, row in rows.items() if row["status"] == FALSE_POSITIVE
            },
        }
        for name in MEASURES:
            entry[name] = _distribution({case: row[name] for case, row in counted.items()}, name)
        summary[organ.key] = entry
    return summary


def mean_dice(summary: Mapping[str, dict]) -> float | None:
    """The mean over the organs of what `summarize` found; None where no organ has a Dice."""
    means = [row["dice"]["mean"] for row in summary.values() if row["dice"]]
    return statistics.fmean(means) if means else None


def _distribution(values: Mapping[str, float | None], measure_name: str) -> dict | None:
    finite = {case: value for case, value in values.items() if value is not None}
    if not values:
        return None
    numbers = list(finite.values())
    badness = {
        case: float("inf") if value is None else -value if measure_name in LARGER_IS_BETTER else abs(value)
        for case, value in values.items()
    }
    worst = max(badness, key=lambda case: badness[case])
    result = {
        "cases": len(finite),
        "mean": statistics.fmean(numbers) if numbers else None,
        "median": statistics.median(numbers) if numbers else None,
        "worst": values[worst],
        "worst_case": worst,
    }
    if measure_name.startswith("volume_error"):
        result["mean_absolute"] = statistics.fmean(map(abs, numbers)) if numbers else None
    return result


# Evaluation ---------------------------------------------------------------------------------------


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
    if (output / RECORDS).exists() or (output / RESULT_FILE).exists():
        raise InputError(f"{output} holds files that are not of an evaluation: choose another folder with --output.")
    try:
        subject.parent.mkdir(parents=True)
        for folder in (PICTURES, PREDICTIONS):
            (output / folder).mkdir(exist_ok=True)
        # So that the predictions can be evaluated themselves, with --predictions.
        write_json(output / PREDICTIONS / LABEL_MAP_FILE, {organ.label: organ.key for organ in FLARE22_ORGANS})
        write_json(subject, {"name": predictor.name, "identity": predictor.identity})
    except (OSError, FlareSegmentError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{output} cannot be written ({reason}): choose another folder with --output.") from error


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


def only_organs(organs: Sequence[Organ], labels: np.ndarray) -> np.ndarray:
    """The labels (and what is ignored) without other organs."""
    table = np.zeros(256, np.uint8)
    table[IGNORED] = IGNORED
    for organ in organs:
        table[organ.label] = organ.label
    return table[labels]


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
