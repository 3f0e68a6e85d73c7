"""From the network's labels to anatomy: one piece per organ, on the right side of the body, of a plausible size.

Works on uint8 label arrays in any axis order, in place; where left and right are is told by an affine. cc3d finds
components and their boxes; where it is not installed scipy does, whose import and search take several times as long.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from FlareSegmentLib.measures.organ_statistics import center_of, organ_boxes, touches_border
from FlareSegmentLib.organs import Organ

CLEARLY_OFF_MIDLINE_MM = 15.0
"""How far from the body's midline a component's center must lie before its side is believed."""

SURE = 0.9
"""Probability from which the network counts as sure of a cell."""

COMPANIONS = 2
"""How many organs must be there surely for a doubtful one beside them to be believed."""

LEAST_UNSEEN_ML = 10.0
"""Of an organ that the first stage did not see, less than this is not believed."""

_MINIMUM_ML = {"liver": 2.0, "right_kidney": 2.0, "left_kidney": 2.0, "spleen": 2.0}
_MINIMUM_ML_OF_OTHERS = 0.2
_USUAL_ML = {
    "liver": (500.0, 4000.0),
    "right_kidney": (50.0, 500.0),
    "left_kidney": (50.0, 500.0),
    "spleen": (40.0, 1500.0),
}
_MONSTROUS = 3.0  # times the highest usual volume
_WORTH_A_WARNING_ML = 2.0


def components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Connected components (by faces) of a mask: their numbers from 1, and voxels per number (index 0: background)."""
    try:
        import cc3d
    except ImportError:
        from scipy import ndimage

        numbers = ndimage.label(mask)[0]
    else:
        numbers = cc3d.connected_components(np.ascontiguousarray(mask), connectivity=6)
    return numbers, np.bincount(numbers.ravel())


def find_boxes(numbers: np.ndarray, count: int = 0) -> list[tuple[slice, ...] | None]:
    """The boxes of 1, 2, ... up to `count`, or to the highest number, in an array of whole numbers; None for those that
    it does not hold.
    """
    try:
        import cc3d
    except ImportError:
        from scipy import ndimage

        return ndimage.find_objects(numbers, count)
    if not numbers.size:
        return [None] * count
    found = cc3d.statistics(np.ascontiguousarray(numbers))
    pairs = zip(found["bounding_boxes"][1:], found["voxel_counts"][1:])
    boxes = [tuple(box) if voxels else None for box, voxels in pairs]
    return boxes + [None] * (count - len(boxes))


def drop_doubtful(probabilities: np.ndarray, organs: Sequence[Organ], minimum: float, cell_ml: float) -> list[str]:
    """Take out organs of which the network is not sure; changes `probabilities`.

    A network that never saw a hand or a head still calls something in it an organ, but hardly anywhere surely: the
    fraction of an organ's largest piece with a probability of at least `SURE` tells the two apart better than its size.
    Where `COMPANIONS` other organs of a usual size are there surely, the scan is one of an abdomen; what is doubtful
    but of the organ's usual size stays then, with a warning.

    Args:
        probabilities: (1 + organs, z, y, x), class 0 the background; of a dropped organ they become 0.
        minimum: fraction that must be sure; 0 keeps all.
        cell_ml: volume of a cell.

    Returns:
        Warnings for the user.
    """
    warnings: list[str] = []
    classes = probabilities.argmax(axis=0).astype(np.uint8)
    boxes = find_boxes(classes, len(organs))[: len(organs)]
    doubtful: list[tuple[int, Organ, float, bool]] = []
    companions = 0
    for number, (organ, box) in enumerate(zip(organs, boxes), start=1):
        if box is None:
            continue
        numbers, counts = components(classes[box] == number)
        largest = numbers == int(counts[1:].argmax()) + 1
        sure = float((probabilities[number][box][largest] >= SURE).mean())
        usual = usual_ml(organ)
        large = usual is not None and bool(np.count_nonzero(largest) * cell_ml >= usual[0])
        if sure < minimum:
            doubtful.append((number, organ, sure, large))
        else:
            companions += large
    for number, organ, sure, large in doubtful:
        name, percent = organ.name.lower(), f"{100 * sure:.0f} %"
        if large and companions >= COMPANIONS:
            warnings.append(f"The model is sure of {percent} of the {name} only: look at the result.")
            continue
        probabilities[number] = 0
        volume = np.count_nonzero(classes == number) * cell_ml
        if volume >= _WORTH_A_WARNING_ML:
            warnings.append(
                f"{volume:.0f} mL that looked a little like {name} were left out: the model is sure of {percent} of it "
                "only."
            )
    return warnings


def drop_unseen_slivers(
    probabilities: np.ndarray, organs: Sequence[Organ], seen: Collection[int], cell_ml: float
) -> list[str]:
    """Take out organs of which the first stage saw nothing and the last one little; changes `probabilities`.

    Where the last stage looks at more than the first one found, it now and then calls a few milliliters of something
    else an organ.

    Args:
        probabilities: (1 + organs, z, y, x), class 0 the background; of a dropped organ they become 0.
        seen: classes that the first stage found.

    Returns:
        Warnings for the user.
    """
    warnings = []
    counts = np.bincount(probabilities.argmax(axis=0).ravel(), minlength=len(organs) + 1)
    for number, organ in enumerate(organs, start=1):
        volume = int(counts[number]) * cell_ml
        if number in seen or not 0.0 < volume < LEAST_UNSEEN_ML:
            continue
        probabilities[number] = 0
        if volume >= _WORTH_A_WARNING_ML:
            warnings.append(f"{volume:.0f} mL that looked a little like {organ.name.lower()} were left out.")
    return warnings


def keep_plausible(labels: np.ndarray, organs: Sequence[Organ], voxel_ml: float) -> None:
    """Keep each organ's largest component, and none that is too small to be that organ; changes `labels`."""
    boxes = organ_boxes(labels, organs)
    for organ in organs:
        if organ.key not in boxes:
            continue
        part = labels[boxes[organ.key]]
        mask = part == organ.label
        numbers, counts = components(mask)
        largest = int(counts[1:].argmax()) + 1
        enough = counts[largest] * voxel_ml >= _MINIMUM_ML.get(organ.key, _MINIMUM_ML_OF_OTHERS)
        if len(counts) > 2 or not enough:
            part[mask & (numbers != largest) if enough else mask] = 0


def correct_sides(
    labels: np.ndarray, organs: Sequence[Organ], affine_lps: np.ndarray, midline_mm: float | None
) -> list[str]:
    """Give the parts of paired organs that lie on the wrong side of the body to their partner; changes `labels`.

    The network sees patches, which look alike left and right; the body does not. Nothing is changed when the liver lies
    on the left: then the scan's orientation is wrong, or the patient's organs are mirrored, and a person must look.

    Args:
        affine_lps: 4x4 from (i, j, k), the last array axis first, to LPS mm.
        midline_mm: the body's midline along LPS x, or None if it is not known; then only two organs on each other's
            side, one clearly left of the other, are exchanged.

    Returns:
        Warnings for the user.
    """
    voxel_ml = abs(float(np.linalg.det(affine_lps[:3, :3]))) / 1000
    boxes = organ_boxes(labels, organs)
    centers = {
        organ.key: _mean_x(labels[boxes[organ.key]] == organ.label, boxes[organ.key], affine_lps)
        for organ in organs
        if organ.key in boxes
    }
    liver = centers.get("liver")
    if liver is not None and midline_mm is not None and liver > midline_mm + CLEARLY_OFF_MIDLINE_MM:
        return [
            "The liver lies on the patient's left: the scan's orientation may be wrong (or the organs are mirrored)."
        ]
    warnings = []
    for right, left in _pairs(organs):
        if midline_mm is None:
            right_x, left_x = centers.get(right.key), centers.get(left.key)
            if right_x is not None and left_x is not None and right_x - left_x > 2 * CLEARLY_OFF_MIDLINE_MM:
                rights = labels == right.label
                labels[labels == left.label] = right.label
                labels[rights] = left.label
                warnings.append(f"{right.name} and {left.name.lower()} were exchanged: each lay on the other's side.")
            continue
        for own, other, sign in ((right, left, 1.0), (left, right, -1.0)):
            reach = _reach_x(boxes[own.key], affine_lps, sign) if own.key in boxes else -np.inf
            if reach - sign * midline_mm <= CLEARLY_OFF_MIDLINE_MM:
                continue  # no part of it can have its center on the other side
            moved = _move_components(labels, own, other, affine_lps, midline_mm, sign) * voxel_ml
            if moved >= _WORTH_A_WARNING_ML:
                warnings.append(
                    f"{moved:.0f} mL of {own.name.lower()} lay on the other side and now count as {other.name.lower()}."
                )
    return warnings


def usual_ml(organ: Organ) -> tuple[float, float] | None:
    """Lowest and highest volume of a whole organ that is nothing unusual; None for organs that nothing is known of."""
    return _USUAL_ML.get(organ.key)


def describe(
    labels: np.ndarray,
    organs: Sequence[Organ],
    voxel_ml: float,
    where: str = "scan",
    boxes: Mapping[str, tuple[slice, ...]] | None = None,
) -> list[str]:
    """Warnings about organs that are missing, cut by the edge of the scan (or of `where`), or of an unusual volume.

    `boxes` are the label map's `organ_boxes`, where they are known already.
    """
    boxes = organ_boxes(labels, organs) if boxes is None else boxes
    if not boxes:
        return [f"None of the organs was found in this {where}."]
    missing = [organ.name.lower() for organ in organs if organ.key not in boxes]
    present = [organ for organ in organs if organ.key in boxes]
    cut = [organ for organ in present if touches_border(boxes[organ.key], labels.shape)]
    warnings = [f"Not found in this {where}: {', '.join(missing)}."] if missing else []
    if cut:
        names = ", ".join(organ.name.lower() for organ in cut)
        warnings.append(f"Cut by the edge of the {where}, so the volume is incomplete: {names}.")
    for organ in present:
        usual = usual_ml(organ)
        if usual is None:
            continue
        volume = np.count_nonzero(labels[boxes[organ.key]] == organ.label) * voxel_ml
        low, high = usual
        common = f"({low:.0f} to {high:.0f} mL are common)"
        if volume > _MONSTROUS * high:
            warnings.append(
                f"{organ.name}: {volume:.0f} mL is more than people have {common}; check the voxel size and the result."
            )
        elif volume > high or (volume < low and organ not in cut):  # a cut one is larger still
            warnings.append(f"{organ.name}: {volume:.0f} mL is unusual {common}; look at the result.")
    return warnings


def _pairs(organs: Sequence[Organ]) -> list[tuple[Organ, Organ]]:
    by_key = {organ.key: organ for organ in organs}
    rights = [organ for organ in organs if organ.key.startswith("right_")]
    return [(right, by_key[left]) for right in rights if (left := "left_" + right.key[len("right_") :]) in by_key]


def _mean_x(mask: np.ndarray, box: tuple[slice, ...], affine: np.ndarray) -> float:
    """Mean LPS x of a mask's voxels, mm; the box says where the mask lies in the whole array."""
    return float(affine[0] @ [*center_of(mask, box), 1])


def _reach_x(box: tuple[slice, ...], affine: np.ndarray, sign: float) -> float:
    """How far a box reaches along LPS x towards `sign`, mm."""
    ends = [affine[0, 2 - axis] * np.array([extent.start, extent.stop - 1]) for axis, extent in enumerate(box)]
    return float(sign * affine[0, 3] + sum(np.max(sign * end) for end in ends))


def _move_components(
    labels: np.ndarray, own: Organ, other: Organ, affine: np.ndarray, midline_mm: float, sign: float
) -> int:
    """Relabel the components of `own` whose center lies clearly on the side of `sign`; returns how many voxels."""
    moved = 0
    for box in organ_boxes(labels, [own]).values():
        part = labels[box]
        numbers, counts = components(part == own.label)
        for number, inner in enumerate(find_boxes(numbers), start=1):
            if inner is None:
                continue
            piece = numbers[inner] == number
            place = tuple(slice(o.start + i.start, o.start + i.stop) for o, i in zip(box, inner))
            if sign * (_mean_x(piece, place, affine) - midline_mm) > CLEARLY_OFF_MIDLINE_MM:
                part[inner][piece] = other.label
                moved += int(counts[number])
    return moved
