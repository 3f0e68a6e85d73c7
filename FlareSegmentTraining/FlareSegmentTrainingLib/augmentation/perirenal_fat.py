"""Kidneys as they lie in people with much fat about them: larger or smaller, turned, and away from the back.

Few training cases show few places of a kidney, and a network that saw them only against the back takes the front half
of a kidney deep in fat for bowel. A kidney is lifted out with its texture and laid into a bed of fat nearby.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from FlareSegmentLib.model.intensity import AIR
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.patch_geometry import grown, rotation

_ATTEMPTS, _PROBES = 10, 1000
"""Places that are tried, and voxels of the kidney that are looked at there."""
_MOST_COVERED = 0.04
_LEAST_ML = 10.0
_FORWARD_MM, _OUTWARD_MM, _UPWARD_MM = (-10.0, 55.0), (-20.0, 30.0), (-20.0, 20.0)
_SCALE = (0.8, 1.45)
_TURN_DEGREES = (40.0, 20.0, 20.0)
"""About the patient's z, y and x axes."""
_BED_MM = (2.0, 28.0)
_BONE_MARGIN_MM = 6.0
_BONE_HU = 250.0


@dataclass(frozen=True)
class _Kidney:
    """One kidney of a scan; places are (z, y, x) voxels.

    Attributes:
        mask: 1 in the kidney, inside its box.
        pivot: the point that is turned about: the box's middle, or where the scan cuts the kidney.
    """

    label: int
    box: tuple[slice, ...]
    mask: torch.Tensor
    pivot: np.ndarray
    is_cut: bool

    @property
    def low(self) -> np.ndarray:
        return np.array([extent.start for extent in self.box], float)

    @property
    def count(self) -> np.ndarray:
        return np.array(self.mask.shape, float)


@dataclass(frozen=True)
class _Pose:
    """Where a kidney goes: offsets (z, y, x) in mm from its pivot times the matrix, plus the shift."""

    matrix: np.ndarray
    shift: np.ndarray


def embed_kidney(scan: LabeledScan) -> None:
    """Move, turn and scale one of the labeled kidneys within a bed of fat, in place; nothing changes where it would
    cover another organ, bone or air. A kidney that the scan cuts stays at the cut.
    """
    kidney = _choose(scan)
    pose = None if kidney is None else _fitting_pose(scan, kidney)
    if kidney is not None and pose is not None:
        _lay(scan, kidney, pose)


def _choose(scan: LabeledScan) -> _Kidney | None:
    """One of the kidneys that are more than a sliver."""
    labels = scan.labels
    candidates = [label for label, key in enumerate(scan.organs, start=1) if key.endswith("_kidney")]
    scan.generator.shuffle(candidates)
    boxes = ndimage.find_objects(labels.numpy(), max_label=max(candidates, default=0))
    for label in candidates:
        box = boxes[label - 1]
        if box is None:
            continue
        mask = (labels[box] == label).float()
        if float(mask.sum()) * float(np.prod(scan.spacing)) / 1000.0 < _LEAST_ML:
            continue
        pivot = np.array([(extent.start + extent.stop - 1) / 2.0 for extent in box])
        is_cut = box[0].start == 0 or box[0].stop == labels.shape[0]
        if is_cut:
            pivot[0] = 0.0 if box[0].start == 0 else labels.shape[0] - 1.0
        return _Kidney(label, box, mask, pivot, is_cut)
    return None


def _fitting_pose(scan: LabeledScan, kidney: _Kidney) -> _Pose | None:
    """The first of some random poses in which the kidney covers next to nothing that it must not; None if none does."""
    image, labels, spacing, generator = scan.image, scan.labels, scan.spacing, scan.generator
    outward, bone = 1.0 if scan.organs[kidney.label - 1].startswith("left") else -1.0, scan.shade(_BONE_HU)
    scale = generator.uniform(*_SCALE)
    points = torch.nonzero(kidney.mask).numpy()
    points = (points[:: max(1, len(points) // _PROBES)] + kidney.low - kidney.pivot) * spacing
    for _ in range(_ATTEMPTS):
        shift = np.array(
            [
                0.0 if kidney.is_cut else generator.uniform(*_UPWARD_MM),
                -generator.uniform(*_FORWARD_MM),
                outward * generator.uniform(*_OUTWARD_MM),
            ]
        )
        turns = np.radians([generator.uniform(-angle, angle) for angle in _TURN_DEGREES])
        matrix = rotation(*turns * (1.0, not kidney.is_cut, not kidney.is_cut)) * scale
        places = np.rint(kidney.pivot + (points @ matrix.T + shift) / spacing).astype(int)
        if kidney.is_cut:
            places[:, 0] = places[:, 0].clip(0, labels.shape[0] - 1)
        within = ((places >= 0) & (places < labels.shape)).all(axis=1)
        z, y, x = places[within].T
        covered = _blocked(image[z, y, x], labels[z, y, x], kidney.label, bone)
        if len(points) - len(z) + int(covered.sum()) <= _MOST_COVERED * len(points):
            return _Pose(matrix, shift)
    return None


def _lay(scan: LabeledScan, kidney: _Kidney, pose: _Pose) -> None:
    """Turn the kidney's old place and the surroundings of the new one to fat, and lay the kidney there."""
    image, labels, spacing, generator = scan.image, scan.labels, scan.spacing, scan.generator
    bone = scan.shade(_BONE_HU)
    bed_mm = generator.uniform(*_BED_MM)
    low, count, pivot = kidney.low, kidney.count, kidney.pivot
    farthest = count * spacing / 2.0 + np.abs(low + (count - 1.0) / 2.0 - pivot) * spacing
    reach = np.abs(pose.matrix) @ farthest + bed_mm
    first = np.minimum(pivot + (pose.shift - reach) / spacing, low) - 3.0
    last = np.maximum(pivot + (pose.shift + reach) / spacing, low + count) + 3.0
    block = tuple(slice(max(0, int(a)), min(n, int(b) + 1)) for a, b, n in zip(first, last, labels.shape))
    part, truth = image[block], labels[block]
    grid = _source_grid(part.shape, block, kidney, pose, spacing)
    share = F.grid_sample(kidney.mask[None, None], grid, "bilinear", "zeros", align_corners=False)[0, 0]
    moved = F.grid_sample(image[kidney.box][None, None], grid, "bilinear", "border", align_corners=False)[0, 0]
    blocked = _blocked(part, truth, kidney.label, bone)
    share = torch.where(blocked, torch.zeros_like(share), share)
    inside = share >= 0.5
    bed = _bed(inside, truth == kidney.label, bed_mm, spacing, generator)
    bones = (part > bone) & (truth != kidney.label)
    bed &= ~blocked & ~grown(bones, [max(1, round(_BONE_MARGIN_MM / mm)) for mm in spacing])
    fat = scan.shade(generator.uniform(-115.0, -85.0))
    noise = generator.normal(0.0, generator.uniform(0.01, 0.08), part.shape).astype(np.float32)
    soft = F.avg_pool3d(bed.float()[None, None], 3, stride=1, padding=1)[0, 0] * bed
    filled = torch.lerp(part, (fat + torch.from_numpy(noise)).clamp(-1.0, 1.0), soft)
    image[block] = torch.lerp(filled, moved, share)
    truth[truth == kidney.label] = 0
    truth[inside] = kidney.label


def _blocked(image: torch.Tensor, labels: torch.Tensor, label: int, bone: float) -> torch.Tensor:
    """Where no kidney may come to lie: other organs, air, and bone brighter than `bone`."""
    return (labels != label) & ((labels != 0) | (image <= AIR + 0.02) | (image > bone))


def _source_grid(
    shape: Sequence[int], block: Sequence[slice], kidney: _Kidney, pose: _Pose, spacing: np.ndarray
) -> torch.Tensor:
    """`grid_sample`'s grid into the kidney's box for each voxel of a block: where each voxel's content comes from."""
    axes = [
        (np.arange(n) + extent.start - middle) * mm - move
        for n, extent, middle, mm, move in zip(shape, block, kidney.pivot, spacing, pose.shift)
    ]
    inverse = np.linalg.inv(pose.matrix) / spacing[:, None]
    source = (
        axes[0][:, None, None, None] * inverse[:, 0]
        + axes[1][None, :, None, None] * inverse[:, 1]
        + axes[2][None, None, :, None] * inverse[:, 2]
        + (kidney.pivot - kidney.low)
    )
    return torch.from_numpy(((2.0 * source + 1.0) / kidney.count - 1.0)[..., ::-1].astype(np.float32).copy())[None]


def _bed(
    inside: torch.Tensor, before: torch.Tensor, bed_mm: float, spacing: np.ndarray, generator: np.random.Generator
) -> torch.Tensor:
    """What turns to fat: within some bed_mm of the organ's new place, unevenly, and its old place with a rim."""
    distance = torch.from_numpy(ndimage.distance_transform_edt(~inside.numpy(), sampling=spacing).astype(np.float32))
    uneven = torch.from_numpy(generator.uniform(0.6, 1.4, (1, 1, 4, 4, 4)).astype(np.float32))
    limit = bed_mm * F.interpolate(uneven, size=tuple(inside.shape), mode="trilinear", align_corners=True)[0, 0]
    return (distance < limit) | grown(before)
