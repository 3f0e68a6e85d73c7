"""What the values of somebody else's label map stand for, told by the result that it lies on.

Data sets number organs differently: 1 is the liver for FLARE22, the spleen for BTCV and TotalSegmentator, a kidney for
KiTS. A reference that is read by the wrong table scores 0 without a reason that anybody sees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import Organ

_ON_ANOTHER = 0.5
"""Dice from which a value is taken to be an organ; as much of an organ must be covered for it to count at all."""
_NOT_ON_ITS_OWN = 0.1


def organs_by_overlap(reference: np.ndarray, result: np.ndarray, organs: Sequence[Organ]) -> dict[int, Organ]:
    """The organs that the values of a reference lie on.

    Args:
        reference: (z, y, x) whole numbers, 0 the background.
        result: (z, y, x) with the label values of `organs`.

    Returns:
        Organ by value; values that lie on no organ are left out.

    Raises:
        InputError: a value lies on several organs, two values lie on one, or none lies on any.
    """
    found: dict[int, Organ] = {}
    for value, shares in _overlaps(reference, result, organs).items():
        covered = [organ for organ, (_, share) in shares.items() if share >= _ON_ANOTHER]
        if len(covered) > 1:
            names = " and ".join(organ.name.lower() for organ in covered)
            raise InputError(f"its value {value} stands for several organs ({names})")
        best = max(shares, key=lambda organ: shares[organ][0], default=None)
        if best is None or shares[best][0] < _ON_ANOTHER:
            continue
        if best in found.values():
            raise InputError(f"two of its values lie on the {best.name.lower()}")
        found[value] = best
    if not found:
        raise InputError("none of its values lies on an organ of the result")
    return found


def contradictions(
    reference: np.ndarray, result: np.ndarray, meaning: Mapping[int, Organ], organs: Sequence[Organ]
) -> list[str]:
    """Values of a reference that lie on another organ of the result than the one they are said to be, each in words.

    Left and right of a pair are no contradiction: there the result may be wrong.
    """
    lines = []
    for value, shares in _overlaps(reference, result, organs).items():
        own = meaning.get(value)
        best = max(shares, key=lambda organ: shares[organ][0], default=None)
        if own is None or best is None or best is own or shares[best][0] < _ON_ANOTHER:
            continue
        if best.type_code == own.type_code or shares.get(own, (0.0, 0.0))[0] > _NOT_ON_ITS_OWN:
            continue
        lines.append(f"its value {value}, the {own.name.lower()}, lies on the {best.name.lower()} of the result")
    return lines


def _overlaps(
    reference: np.ndarray, result: np.ndarray, organs: Sequence[Organ]
) -> dict[int, dict[Organ, tuple[float, float]]]:
    """Dice, and the share of the organ that is covered, for each value but 0 and each organ that it touches."""
    values, places = np.unique(reference, return_inverse=True)
    joint = np.bincount(places.ravel() * 256 + result.ravel(), minlength=256 * len(values)).reshape(-1, 256)
    of_value, of_label = joint.sum(axis=1), joint.sum(axis=0)
    return {
        int(value): {
            organ: (
                2 * float(joint[row, organ.label]) / float(of_value[row] + of_label[organ.label]),
                float(joint[row, organ.label]) / float(of_label[organ.label]),
            )
            for organ in organs
            if joint[row, organ.label]
        }
        for row, value in enumerate(values)
        if value != 0
    }
