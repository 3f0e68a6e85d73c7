"""Whether a taught model is better: what was measured before and after, and what speaks against the new one."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.organs import Organ
from FlareSegmentTrainingLib.evaluation.comparison import compare

LEAST_GAIN = 0.002
"""By how much the mean Dice of the examples, each held out, has to rise."""
LARGEST_LOSS_OF_ORGAN = 0.01
"""By how much the mean Dice of a single organ of the examples, held out, may fall."""
LARGEST_LOSS_ELSEWHERE = 0.003
"""By how much the mean Dice of the stability set may fall."""
LARGEST_LOSS_IN_SCAN = 0.05
"""By how much the Dice of one organ may fall in one scan of the stability set."""
LARGEST_FALSE_ML = 10.0
"""How much more of organs that are not there may be found in all."""
AS_FOUND = 0.995
"""Dice of an organ's labels with what the old model found from which on nothing was corrected. There every other model
must seem worse: such organs tell nothing about a gain, and only a large change counts against a model."""
LARGEST_CHANGE_AS_FOUND = 0.05
"""By how much the mean Dice of an organ may fall where its labels are what the old model found."""
SWAPPED = 0.5
"""Dice of an organ's labels with another organ of the old model from which on they are taken for swapped."""

Records = Mapping[str, dict]


def swapped_organs(labels: np.ndarray, found: np.ndarray, organs: Sequence[Organ]) -> list[str]:
    """What is labeled as one organ and was found as another, a line each.

    Args:
        labels, found: (z, y, x), an example's labels and what the old model found there, both in the values of
            `organs`; only organs that were looked at.
    """
    lines = []
    for organ in organs:
        mask = labels == organ.label
        if not mask.any():
            continue
        own = dice(found == organ.label, mask)
        for other in organs:
            score = dice(found == other.label, mask) if other != organ else 0.0
            if score > SWAPPED and score > own:
                lines.append(f"what is labeled {organ.name.lower()} was found as {other.name.lower()}")
    return lines


def as_found(before: Records, organs: Sequence[Organ]) -> set[tuple[str, str]]:
    """(scan, organ key) of the organs that were kept as the old model had found them."""
    return {
        (name, organ.key)
        for name, record in before.items()
        for organ in organs
        if (record["organs"][organ.key]["dice"] or 0.0) >= AS_FOUND
    }


def mean_gain(
    after: Records, before: Records, organs: Sequence[Organ], without: Collection[tuple[str, str]] = ()
) -> float | None:
    """The mean difference of Dice, over organs and scans, after minus before; None without any.

    without: (scan, organ key) that do not count.
    """
    gains = _gains(after, before, organs, lambda pair: pair not in without)
    return _mean(gains) if gains else None


def _mean(gains: Sequence[float]) -> float:
    return statistics.fmean(gains) if gains else 0.0


def _gains(
    after: Records, before: Records, organs: Sequence[Organ], counts: Callable[[tuple[str, str]], bool]
) -> list[float]:
    both = [
        (after[name]["organs"][organ.key]["dice"], before[name]["organs"][organ.key]["dice"])
        for name in after
        for organ in organs
        if counts((name, organ.key))
    ]
    return [now - once for now, once in both if now is not None and once is not None]


def false_ml(records: Records, organs: Sequence[Organ]) -> float:
    """The volume (mL) that was found of organs that are not there."""
    return sum(
        record["organs"][organ.key]["false_positive_ml"] or 0.0 for record in records.values() for organ in organs
    )


def table(after: Records, before: Records, organs: Sequence[Organ]) -> dict[str, dict | None]:
    """Organ key -> differences of Dice (see `comparison.compare`), after minus before."""
    return {key: row["dice"] for key, row in compare(after, before, organs)[0].items()}


def against_examples(after: Records, before: Records, organs: Sequence[Organ]) -> list[str]:
    """What the examples, each measured by a model that was not taught with it, say against teaching; a line each."""
    reasons = []
    kept = as_found(before, organs)
    gain, less = mean_gain(after, before, organs, kept), false_ml(before, organs) - false_ml(after, organs)
    if gain is None and less <= 0 and kept:
        reasons.append("the examples hold no corrected organ: all are as the old model found them")
    elif gain is None and less <= 0 or gain is not None and gain < LEAST_GAIN and less < LARGEST_FALSE_ML:
        told = "no organ could be measured" if gain is None else f"the mean Dice changed by {gain:+.4f}"
        reasons.append(
            f"on the examples, each held out, {told}, which is less than {LEAST_GAIN:+.3f}: nothing was learned that "
            "helps other scans"
        )
    for organ in organs:
        corrected = _mean(_gains(after, before, [organ], lambda pair: pair not in kept))
        unchanged = _mean(_gains(after, before, [organ], lambda pair: pair in kept))
        if corrected < -LARGEST_LOSS_OF_ORGAN:
            reasons.append(
                f"on the examples, each held out, the {organ.name.lower()} got worse: Dice {corrected:+.3f} in the mean"
            )
        if unchanged < -LARGEST_CHANGE_AS_FOUND:
            reasons.append(
                f"on the examples, each held out, where it was not corrected, the {organ.name.lower()} changed: Dice "
                f"{unchanged:+.3f} in the mean"
            )
    if -less > LARGEST_FALSE_ML:
        reasons.append(f"on the examples, each held out, {-less:.0f} mL more was found of organs that are not there")
    return reasons


def against_stability(after: Records, before: Records, organs: Sequence[Organ]) -> list[str]:
    """What the stability set says against the taught model; a line each."""
    reasons = []
    gain = mean_gain(after, before, organs)
    if gain is not None and gain < -LARGEST_LOSS_ELSEWHERE:
        reasons.append(f"on the scans that it must not unlearn, the mean Dice changed by {gain:+.4f}")
    for name in after:
        for organ in organs:
            now, once = (records[name]["organs"][organ.key]["dice"] for records in (after, before))
            if now is not None and once is not None and now < once - LARGEST_LOSS_IN_SCAN:
                reasons.append(f"in {name} the {organ.name.lower()} got worse: Dice {once:.3f} before, {now:.3f} after")
    more = false_ml(after, organs) - false_ml(before, organs)
    if more > LARGEST_FALSE_ML:
        reasons.append(
            f"{more:.0f} mL more was found of organs that are not there, on the scans that it must not unlearn"
        )
    return reasons
