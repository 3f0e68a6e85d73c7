"""Whether labels can be what their table says: volumes and places that no human's organs have.

`doubts_of_labels` says in words what is odd about one case. `check_convention` holds a table that only the names of the
files suggest against the label maps themselves, and asks for `--label-map` where they do not bear it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.inference.plausibility import doubts
from FlareSegmentLib.measures.organ_statistics import center_of, organ_boxes
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS, Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS, LabelMap

LARGEST_ML = {
    "liver": 7000.0,
    "right_kidney": 1500.0,
    "left_kidney": 1500.0,
    "spleen": 5000.0,
    "pancreas": 500.0,
    "gallbladder": 1000.0,
    "right_adrenal_gland": 200.0,
    "left_adrenal_gland": 200.0,
}
"""More than nearly any human's organ: polycystic livers and spleens of leukemia stay below."""
CLEAR_MM = 20.0
OFF_THE_MIDDLE_MM = 25.0
"""How far the center of an organ alone must lie on the wrong side of the body's middle to be doubted."""
SURROUNDED = 0.6
"""Fraction of an organ's neighboring voxels that belong to one other organ: then it lies inside of that."""
SAMPLES = 6
_RIGHT, _LEFT = ("liver", "right_kidney"), ("spleen", "left_kidney")
_FLANKS = 0.01
"""Of the body's voxels, those at the image's right and left edge: above it, a flank is cut off."""
_TURNED = "The scan may be mirrored, or the organs' places exchanged (situs inversus)."


def doubts_of_labels(volume: Volume, labels: np.ndarray) -> list[str]:
    """What speaks against a case's labels, or against the orientation that its header claims, a line each.

    Args:
        volume: the CT, HU.
        labels: (z, y, x) in FlareSegment's values, on its grid.
    """
    organs = _present(labels)
    boxes = organ_boxes(labels, organs)
    found = doubts(volume, labels, organs, boxes)
    centers = {key: _center(volume, labels, key, boxes[key]) for key in boxes}
    if not any(line.startswith("Left and right") for line in found):
        found = (_sides_without_partners(centers) or _side_of_one(volume, centers)) + found
    return found + _too_large(volume, labels, organs) + _inside_another(labels, organs, boxes)


def _present(labels: np.ndarray) -> list[Organ]:
    counts = np.bincount(labels.ravel(), minlength=256)
    return [organ for organ in FLARE22_ORGANS if counts[organ.label]]


def _center(volume: Volume, labels: np.ndarray, key: str, box: tuple[slice, ...]) -> np.ndarray:
    label = next(organ.label for organ in FLARE22_ORGANS if organ.key == key)
    return (volume.affine_lps @ [*center_of(labels[box] == label, box), 1.0])[:3]


def _sides_without_partners(centers: Mapping[str, np.ndarray]) -> list[str]:
    """Organs of both sides whose partners are missing (a liver and a left kidney), the wrong way round."""
    wrong, _ = _sides(centers)
    if not wrong:
        return []
    pairs = " and ".join(f"the {_words(right)} lies to the left of the {_words(left)}" for right, left in wrong)
    return [f"Left and right are in doubt: {pairs}. {_TURNED}"]


def _side_of_one(volume: Volume, centers: Mapping[str, np.ndarray]) -> list[str]:
    """Organs of one side that lie on the wrong side of the body, where none of the other side is there; a kidney alone
    only where both flanks are in view, or the body's middle is not known.
    """
    right_side, left_side = ([key for key in keys if key in centers] for keys in (_RIGHT, _LEFT))
    if bool(right_side) == bool(left_side):
        return []
    keys = right_side or left_side
    alone = [key for key in ("liver", "spleen") if key in keys] or keys
    sparse = tuple(slice(None, None, max(1, count // 48)) for count in volume.array.shape)
    places = np.argwhere(volume.array[sparse] > -300)
    if not len(places):
        return []
    steps = np.array([part.step for part in sparse])
    middle = (volume.affine_lps @ [*(places.mean(axis=0) * steps)[::-1], 1.0])[:3]
    across = len(steps) - 1 - int(np.abs(volume.direction[0]).argmax())
    last = (volume.array.shape[across] - 1) // steps[across]
    at_edge = np.mean((places[:, across] == 0) | (places[:, across] == last))
    if alone[0].endswith("kidney") and at_edge > _FLANKS:
        return []
    right = centers[alone[0]][0] < middle[0]
    if abs(centers[alone[0]][0] - middle[0]) < OFF_THE_MIDDLE_MM or right == (alone[0] in _RIGHT):
        return []
    side = "right" if right else "left"
    return [f"Left and right are in doubt: the {_words(alone[0])} lies on the patient's {side}. {_TURNED}"]


def _too_large(volume: Volume, labels: np.ndarray, organs: Sequence[Organ]) -> list[str]:
    counts = np.bincount(labels.ravel(), minlength=256)
    volumes = {organ: counts[organ.label] * volume.voxel_volume_ml for organ in organs}
    return [
        f"{organ.name}: {ml:.0f} mL is more than any human has; check the label values' meaning and the voxel spacing."
        for organ, ml in volumes.items()
        if ml > LARGEST_ML.get(organ.key, np.inf)
    ]


def _inside_another(labels: np.ndarray, organs: Sequence[Organ], boxes: Mapping[str, tuple[slice, ...]]) -> list[str]:
    return [
        f"{organ.name}: it lies inside of the {other.name.lower()}; check what the label values mean."
        for organ in organs
        if (other := _surrounding(labels, organ, organs, boxes[organ.key])) is not None
    ]


def _surrounding(labels: np.ndarray, organ: Organ, organs: Sequence[Organ], box: tuple[slice, ...]) -> Organ | None:
    """The organ that most of another's neighboring voxels belong to."""
    wide = tuple(slice(max(0, part.start - 1), part.stop + 1) for part in box)
    part = labels[wide]
    mask = part == organ.label
    shell = part[ndimage.binary_dilation(mask) & ~mask]
    counts = np.bincount(shell, minlength=256)
    return next((o for o in organs if o is not organ and counts[o.label] > SURROUNDED * max(1, shell.size)), None)


# Conventions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What one label map shows, read by a table: volumes (mL), centers (LPS, mm), and organs inside of others."""

    volumes: Mapping[str, float]
    centers: Mapping[str, np.ndarray]
    inside: Sequence[str]


def sample_of(labels: Volume, label_map: LabelMap) -> Sample | None:
    """A label map read by a table; None where it holds values that the table does not explain, or no organ."""
    if label_map.unknown_values(labels.array):
        return None
    array = label_map.apply(labels.array)
    organs = _present(array)
    if not organs:
        return None
    boxes = organ_boxes(array, organs)
    counts = np.bincount(array.ravel(), minlength=256)
    volumes = {organ.key: counts[organ.label] * labels.voxel_volume_ml for organ in organs}
    centers = {organ.key: _center(labels, array, organ.key, boxes[organ.key]) for organ in organs}
    return Sample(volumes, centers, _inside_another(array, organs, boxes))


def check_convention(
    location: str,
    label_map: LabelMap,
    label_maps: Iterable[Callable[[], Volume]],
    option: str = "--label-map",
    complete: bool = True,
) -> None:
    """Ask for `--label-map` where label maps do not bear out a table that only names of files suggest.

    Args:
        label_maps: read one label map each; those that cannot be read are passed over.
        option: what the user is to give.
        complete: whether a person drew them: then each of the four organs is in one of them, and livers are larger than
            spleens; a program may miss much of an organ.

    Raises:
        InputError: one of the four organs is in none of them, organs lie inside of others or are larger than any
            human's, some pairs of them stand on the wrong sides, or livers are smaller than spleens.
    """
    samples = []
    for read in label_maps:
        try:
            sample = sample_of(read(), label_map)
        except InputError:
            continue
        if sample is not None:
            samples.append(sample)
    reason = _against(samples, label_map, complete) if samples else None
    if reason is not None:
        raise InputError(
            f"{location} does not say what its label values mean. {label_map.source[:1].upper()}{label_map.source[1:]} "
            f"would make it {label_map.in_words()}, but {reason}: say what they mean with {option} 1=liver,2=other, "
            f"a JSON file or a table ({', '.join(LABEL_MAPS)})."
        )


def _against(samples: Sequence[Sample], label_map: LabelMap, complete: bool) -> str | None:
    seen = {key for sample in samples for key in sample.volumes}
    never = [key for _, key in label_map.organs if key not in seen and key in {organ.key for organ in ORGANS}]
    if never and complete:
        values = ", ".join(str(value) for value, key in label_map.organs if key in never)
        return f"value {values} is in none of the {len(samples)} label maps looked at"
    for sample in samples:
        if sample.inside:
            return sample.inside[0].split(";")[0].replace(": it", "").lower()
        large = [key for key, ml in sample.volumes.items() if ml > LARGEST_ML.get(key, np.inf)]
        if large:
            return f"a {large[0].replace('_', ' ')} of {sample.volumes[large[0]]:.0f} mL is more than any human has"
        wrong, right = _sides(sample.centers)
        if wrong and right:  # all pairs turned around: the scan is mirrored, which its own warning says
            return f"the {_words(wrong[0][0])} would lie to the left of the {_words(wrong[0][1])} in some scan"
    if not complete:
        return None
    for smaller, larger in (("spleen", "liver"), ("right_kidney", "liver"), ("left_kidney", "liver")):
        both = [sample.volumes for sample in samples if {smaller, larger} <= set(sample.volumes)]
        if 2 * sum(volumes[larger] < volumes[smaller] for volumes in both) > len(both):
            return f"livers would be smaller than {_words(smaller)}s"
    places = [sample.centers for sample in samples if {"spleen", "left_kidney"} <= set(sample.centers)]
    if 2 * sum(centers["left_kidney"][2] - centers["spleen"][2] > CLEAR_MM for centers in places) > len(places):
        return "spleens would lie below left kidneys"
    return None


def _sides(centers: Mapping[str, np.ndarray]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Pairs of a right and a left organ that stand the wrong way round, and those that stand as they should."""
    pairs = [(right, left) for right in _RIGHT for left in _LEFT if right in centers and left in centers]
    offsets = {pair: float(centers[pair[0]][0] - centers[pair[1]][0]) for pair in pairs}
    wrong = [pair for pair, offset in offsets.items() if offset > CLEAR_MM]
    return wrong, [pair for pair, offset in offsets.items() if offset < -CLEAR_MM]


def _words(key: str) -> str:
    return key.replace("_", " ")
