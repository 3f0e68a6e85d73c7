"""Figures of a prediction against a reference, and of many of them.

What counts (`measure`): an organ that was not labeled in a case has no figures there. An organ that is neither in the
reference nor in the prediction has none either; where only the prediction has it, there is no Dice, but its volume is
reported as false positive. An organ that was missed has Dice and NSD 0, and no HD95, which would be infinite. Voxels
that the reference marks as ignored count nowhere: both label maps end at their border.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from FlareSegmentLib.measures import metrics
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED

MEASURES = ("dice", "nsd", "hd95_mm", "volume_error_ml", "volume_error_percent")
LARGER_IS_BETTER = frozenset({"dice", "nsd"})

MEASURED = "measured"
MISSED = "missed"
FALSE_POSITIVE = "false positive"
ABSENT = "absent"
NOT_LABELED = "not labeled"


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


def only_organs(organs: Sequence[Organ], labels: np.ndarray) -> np.ndarray:
    """The labels (and what is ignored) without other organs."""
    table = np.zeros(256, np.uint8)
    table[IGNORED] = IGNORED
    for organ in organs:
        table[organ.label] = organ.label
    return table[labels]
