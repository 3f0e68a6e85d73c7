"""Two evaluations of the same cases, compared: paired differences per organ with a bootstrap confidence interval.

Only cases that both measured against the same reference are compared. The interval is the percentile bootstrap of the
mean difference over cases (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13), drawn with a
fixed seed, so that a report can be made again. Few cases give a wide or no interval, and none says anything about
other hospitals' scans.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

from FlareSegmentLib.organs import Organ

COMPARED = ("dice", "nsd", "hd95_mm", "volume_error_percent")
"""Measures that are compared; the volume error by its size, whichever way it goes."""
RESAMPLES = 10_000
SEED = 20220522
CONFIDENCE = 0.95
FEWEST_CASES = 3
"""Below this, resampling the few differences says nothing, and no interval is given."""


def compare(
    cases: Mapping[str, dict], other: Mapping[str, dict], organs: Sequence[Organ]
) -> tuple[dict[str, dict], list[str]]:
    """Differences of two evaluations, the first minus the other.

    Args:
        cases, other: case name -> record, as in evaluation.json.

    Returns:
        ({organ key: {measure: {"cases", "mean", "other_mean", "difference", "low", "high", "better", "worse"} or
        None}}, names of the cases left out). `better` and `worse` count the cases in which the first is that; `low`
        and `high` are None below FEWEST_CASES. An organ that was missed by either has no difference in HD95.
    """
    common = [
        name
        for name, record in cases.items()
        if name in other and other[name]["reference_sha256"] == record["reference_sha256"]
    ]
    result: dict[str, dict] = {}
    for organ in organs:
        result[organ.key] = {}
        for measure in COMPARED:
            pairs = [
                (_size(cases[name], organ.key, measure), _size(other[name], organ.key, measure)) for name in common
            ]
            both = [(one, two) for one, two in pairs if one is not None and two is not None]
            result[organ.key][measure] = _difference(both, measure in ("dice", "nsd")) if both else None
    return result, [name for name in cases if name not in common]


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Percentile bootstrap interval of the mean with CONFIDENCE; (None, None) below FEWEST_CASES values."""
    if len(values) < FEWEST_CASES:
        return None, None
    sample = np.asarray(values, float)
    chosen = np.random.default_rng(SEED).integers(len(sample), size=(RESAMPLES, len(sample)))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sample[chosen].mean(axis=1), [tail, 1 - tail])
    return float(low), float(high)


def _size(record: dict, organ: str, measure: str) -> float | None:
    value = record["organs"].get(organ, {}).get(measure)
    return abs(value) if value is not None and measure == "volume_error_percent" else value


def _difference(pairs: Sequence[tuple[float, float]], larger_is_better: bool) -> dict:
    differences = [one - two for one, two in pairs]
    gains = [difference if larger_is_better else -difference for difference in differences]
    low, high = bootstrap_interval(differences)
    return {
        "cases": len(pairs),
        "mean": statistics.fmean(one for one, _ in pairs),
        "other_mean": statistics.fmean(two for _, two in pairs),
        "difference": statistics.fmean(differences),
        "low": low,
        "high": high,
        "better": sum(gain > 1e-9 for gain in gains),
        "worse": sum(gain < -1e-9 for gain in gains),
    }
