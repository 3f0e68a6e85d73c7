"""Cysts and tumors that nobody scanned: a mass grows in or out of an organ of a CT patch and counts as part of it.

References of abdominal organs count an organ's masses in (FLARE22, KiTS with its classes joined), but among few
training cases masses are rarer still, and a network that never saw one leaves them out. The mass pushes what lies
around it outwards, as a growing one does, instead of covering it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from FlareSegmentLib.model.intensity import AIR
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan

REACH = 1.7
"""Radii of the mass up to which its surroundings are pushed."""
_ATTEMPTS = 4
_SHARES = {"right_kidney": 3.0, "left_kidney": 3.0}
"""How often an organ is chosen, compared with any other: exophytic masses are the kidneys' own trouble."""


def add_mass(scan: LabeledScan) -> None:
    """Grow one mass from one of the labeled organs, in place; nothing changes where none fits."""
    image, labels, organs, spacing, generator = scan.image, scan.labels, scan.organs, scan.spacing, scan.generator
    present = [label for label in range(1, len(organs) + 1) if bool((labels == label).any())]
    if not present:
        return
    shares = np.array([_SHARES.get(organs[label - 1], 1.0) for label in present])
    label = int(generator.choice(present, p=shares / shares.sum()))
    voxels = torch.nonzero(labels == label).numpy()
    for attempt in range(_ATTEMPTS):
        radius = generator.uniform(6.0, 38.0 / (1 + attempt))
        start = voxels[generator.integers(len(voxels))]
        outwards = (start - voxels.mean(axis=0)) * spacing + generator.normal(0.0, 5.0, 3)
        outwards /= np.linalg.norm(outwards) + 1e-6
        center = start + outwards * radius * generator.uniform(-0.2, 0.7) / spacing
        radii = radius * generator.uniform(0.8, 1.2, 3) / spacing
        block = tuple(
            slice(max(0, int(middle - REACH * extent)), min(count, int(middle + REACH * extent) + 2))
            for middle, extent, count in zip(center, radii, labels.shape)
        )
        part, truth = image[block], labels[block]
        if min(part.shape) < 3:
            continue
        offsets, distance = _distance(part.shape, center - [extent.start for extent in block], radii, generator)
        inside = distance < 1.0
        bone = scan.shade(250.0)
        covered = part[inside]
        if not bool(inside.any()) or float(((covered <= AIR + 0.02) | (covered > bone)).float().mean()) > 0.03:
            continue
        shade = _shade(scan, part[truth == label], organs[label - 1])
        pushed, moved = _pushed(part, truth, offsets, distance)
        texture = torch.from_numpy(generator.normal(0.0, generator.uniform(0.0, 0.06), part.shape).astype(np.float32))
        share = ((1.0 - distance) * float(np.mean(radii)) + 0.5).clamp(0.0, 1.0)
        image[block] = torch.lerp(pushed, (shade + texture).clamp(-1.0, 1.0), share)
        labels[block] = torch.where(inside, torch.tensor(label, dtype=labels.dtype), moved)
        return


def _distance(
    shape: Sequence[int], center: np.ndarray, radii: np.ndarray, generator: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets (z, y, x, 3) from the center in voxels, and the distance in radii of the slightly lobed mass."""
    axes = [torch.arange(count, dtype=torch.float32) - float(middle) for count, middle in zip(shape, center)]
    offsets = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    lobes = torch.from_numpy(generator.normal(0.0, 0.06, (1, 1, 4, 4, 4)).astype(np.float32))
    lobed = 1.0 + F.interpolate(lobes, size=tuple(shape), mode="trilinear", align_corners=True)[0, 0]
    return offsets, (offsets / torch.from_numpy(radii.astype(np.float32))).norm(dim=-1) * lobed


def _pushed(
    part: torch.Tensor, truth: torch.Tensor, offsets: torch.Tensor, distance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What was within REACH radii, moved into the shell around the mass: volumes there shrink all alike."""
    source = REACH * (((distance**3 - 1.0) / (REACH**3 - 1.0)).clamp(min=0.0)) ** (1.0 / 3.0)
    factor = torch.where(distance < REACH, source / distance.clamp(min=1e-3), torch.ones_like(distance))
    axes = [torch.arange(count, dtype=torch.float32) for count in part.shape]
    index = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    position = index + offsets * (factor - 1.0)[..., None]
    extent = torch.tensor(part.shape, dtype=torch.float32)
    grid = ((2.0 * position + 1.0) / extent - 1.0).flip(-1)[None]
    moved = F.grid_sample(part[None, None], grid, "bilinear", "border", align_corners=False)[0, 0]
    kept = F.grid_sample(truth.float()[None, None], grid, "nearest", "border", align_corners=False)[0, 0]
    return moved, kept.to(truth.dtype)


def _shade(scan: LabeledScan, organ: torch.Tensor, key: str) -> float:
    """Windowed intensity of a cyst, a solid mass, or, in the kidney, a fatty angiomyolipoma."""
    generator = scan.generator
    tissue = float(organ.median()) if len(organ) else 0.0
    kind = generator.random()
    if kind < 0.5:
        hu = generator.uniform(-5.0, 25.0)
    elif kind < 0.93 or "kidney" not in key:
        solid = scan.shade(generator.uniform(20.0, 50.0))
        return solid + float(generator.uniform(0.0, 1.0)) * (tissue - solid)
    else:
        hu = generator.uniform(-80.0, 0.0)
    return scan.shade(hu)
