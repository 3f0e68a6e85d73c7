"""Doubts about a finished label map: organs that stand where no organ of that name stands, or have another density.

Each doubt is one line for the user; a result is never changed here. That organs are missing, cut by the edge or of an
unusual size is said by `postprocessing.describe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from FlareSegmentLib.measures.organ_statistics import center_of, organ_boxes
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume

CLEAR_MM = 20.0
"""Two centers that differ by less are not called left or right, above or below of each other."""
KIDNEY_ABOVE_LIVER_MM = 60.0
"""A transplanted or ptotic kidney lies low; none lies this far above the center of the liver."""
FAR_APART_MM = 350.0
"""The centers of liver, kidneys and spleen of an adult all lie within this distance of each other."""
LEAST_TEXTURE_HU = 1.0
"""Standard deviation of a tissue's values in any scan: noise alone is more."""
TEXTURE_VOXELS = 200
"""Of fewer voxels nothing is said about texture."""
USUAL_HU = (-50.0, 350.0)
"""Parenchyma from a fatty liver without contrast medium to an arterial kidney."""


def doubts(
    volume: Volume,
    labels: np.ndarray,
    organs: Sequence[Organ],
    boxes: Mapping[str, tuple[slice, ...]] | None = None,
) -> list[str]:
    """What speaks against a result, or against the orientation that the CT's header claims.

    Args:
        volume: the CT, HU.
        labels: (z, y, x) integers on the CT's grid, with the values of `organs`.
        boxes: the label map's `organ_boxes`, where they are known already.
    """
    centers: dict[str, np.ndarray] = {}
    warnings = []
    names = {organ.key: organ.name for organ in organs}
    boxes = organ_boxes(labels, organs) if boxes is None else boxes
    for organ in organs:
        if organ.key not in boxes:
            continue
        box = boxes[organ.key]
        mask = labels[box] == organ.label
        centers[organ.key] = (volume.affine_lps @ [*center_of(mask, box), 1.0])[:3]
        values = volume.array[box][mask]
        mean = float(values.mean(dtype=float))
        if not USUAL_HU[0] <= mean <= USUAL_HU[1]:
            warnings.append(f"{organ.name}: a mean of {mean:.0f} HU is unusual; check that the values are in HU.")
        sample = values[:: max(1, values.size // 100_000)]
        if values.size >= TEXTURE_VOXELS and float(sample.std(dtype=float)) < LEAST_TEXTURE_HU:
            warnings.append(f"{organ.name}: all of it has the same value, {mean:.0f} HU, as no tissue has: padding?")
    return _sides(centers) + _heights(centers, names) + _distances(centers, names) + warnings


def _sides(centers: dict[str, np.ndarray]) -> list[str]:
    """LPS x grows to the patient's left: the liver and the right kidney have the smaller one."""
    pairs = (("liver", "spleen"), ("right_kidney", "left_kidney"), ("right_adrenal_gland", "left_adrenal_gland"))
    swapped = [
        (right, left)
        for right, left in pairs
        if right in centers and left in centers and centers[right][0] - centers[left][0] > CLEAR_MM
    ]
    if not swapped:
        return []
    return [
        "Left and right are in doubt: "
        + " and ".join(f"the {_words(right)} lies to the left of the {_words(left)}" for right, left in swapped)
        + ". The scan may be mirrored, or the organs' places exchanged (situs inversus)."
    ]


def _heights(centers: dict[str, np.ndarray], names: dict[str, str]) -> list[str]:
    if "liver" not in centers:
        return []
    high = [
        names[key]
        for key in ("right_kidney", "left_kidney")
        if key in centers and centers[key][2] - centers["liver"][2] > KIDNEY_ABOVE_LIVER_MM
    ]
    if not high:
        return []
    return [f"{' and '.join(high)} above the liver: the scan may be upside down, look at the result."]


def _distances(centers: dict[str, np.ndarray], names: dict[str, str]) -> list[str]:
    known = [key for key in ("liver", "right_kidney", "left_kidney", "spleen") if key in centers]
    if len(known) < 3:  # of two it cannot be said which one is wrong
        return []
    places = np.array([centers[key] for key in known])
    middle = np.median(places, axis=0)
    far = [names[key] for key, place in zip(known, places) if np.linalg.norm(place - middle) > FAR_APART_MM]
    return [f"{name}: far away from the other organs, look at the result." for name in far]


def _words(key: str) -> str:
    return key.replace("_", " ")
