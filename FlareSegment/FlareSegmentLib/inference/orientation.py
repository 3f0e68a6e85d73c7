"""Whether a patient lies as the header says, judged from what the first stage makes of the scan.

A network that knows left from right is unsure of a mirrored or turned patient, and finds a small liver beside a large
spleen. Where it looks so, the bones lie in front, or a kidney as high as the liver, the same stage looks again with
axes exchanged, and turned by a quarter where the body is deeper than wide; an orientation in which it finds clearly
more, and more surely, speaks against the header.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from FlareSegmentLib.inference.organ_search import Piece
from FlareSegmentLib.model.intensity import AIR
from FlareSegmentLib.organs import Organ

Flips = tuple[int, ...]
"""Axes of (z, y, x) that are exchanged end for end."""

_ENOUGH_ML = 150.0  # less is no abdomen to judge by
_SURE_OF_LIVER, _LEAST_SURE_OF_LIVER = 0.66, 0.45
_LIVER_PER_SPLEEN = 3.5
_AS_HIGH_MM, _FAR_ABOVE_MM = -6.0, 160.0
_CLEARLY_BETTER = 1.35
_BONE = 0.75  # windowed intensity
_LEAST_BONE_CELLS = 300
_IN_FRONT = -0.02  # of the body's depth, from its center
_MOSTLY = 1.5
_LEAST_WIDTH = 0.95  # of the body's depth; patients are at least 1.1 times as wide as deep
_SURE_OF_ANYTHING, _MUCH_ML = 0.45, 300.0

_TURNED = (
    "The patient seems to be turned by 90 degrees in the axial plane: turned back, the scan looks far more like a "
    "patient to the model. The orientation in its header may be wrong. Look at the result, and repair the header."
)
_ENDS = {2: "left and right", 1: "front and back", 0: "head and feet"}


def orientation_doubts(
    image: torch.Tensor,
    pieces: Sequence[Piece],
    organs: Sequence[Organ],
    look: Callable[[torch.Tensor], Sequence[Piece]],
    cell_mm: float,
) -> list[str]:
    """What speaks against the scan's orientation, in at most one line.

    Args:
        image: windowed, (z, y, x) of LPS axes.
        pieces: what the stage found in it.
        organs: what the stage's classes 1, 2, ... are.
        look: finds the pieces in such an image; called only for a scan that looks odd.
        cell_mm: length of the image's cells.
    """
    keys = [organ.key for organ in organs]
    found = _largest(pieces)
    if "liver" not in keys or sum(piece.ml for piece in found.values()) < _ENOUGH_ML:
        return []
    if _deeper_than_wide(image):
        turned = max(_likeness(_largest(look(image.rot90(turns, (1, 2)).contiguous()))) for turns in (1, 3))
        if turned > _CLEARLY_BETTER * _likeness(found):
            return [_TURNED]
    in_front = _bones_in_front(image)
    if not (in_front or _looks_odd(found, keys) or _kidney_above_liver(found, keys, cell_mm)):
        return []
    looks = {flips: _largest(look(image.flip(flips).contiguous())) for flips in _candidates(image, in_front)}
    best = max(looks, key=lambda flips: _likeness(looks[flips]))
    liver = looks[best].get(keys.index("liver") + 1)
    sure_of_it = liver is not None and liver.sure_ml >= max(_ENOUGH_ML / 2, _LEAST_SURE_OF_LIVER * liver.ml)
    needed = 1.0 if in_front else _CLEARLY_BETTER  # the bones are evidence of their own
    if sure_of_it and _likeness(looks[best]) > needed * _likeness(found):
        return [_line(best)]
    sure = sum(piece.sure_ml for piece in found.values()) / sum(piece.ml for piece in found.values())
    if sure < _SURE_OF_ANYTHING and sum(piece.ml for piece in found.values()) > _MUCH_ML:
        return [
            f"The model is sure of {100 * sure:.0f} % of what it found only: the scan may be turned, mirrored or no "
            "usual CT. Check its orientation and look at the result."
        ]
    return []


def _largest(pieces: Sequence[Piece]) -> dict[int, Piece]:
    """The piece of each organ that the network is surest of."""
    found: dict[int, Piece] = {}
    for piece in pieces:
        found.setdefault(piece.organ, piece)
    return found


def _likeness(found: dict[int, Piece]) -> float:
    """How much like a patient it looks: what the network is sure of, times the share that this is of all it found."""
    total = sum(piece.ml for piece in found.values())
    return sum(piece.sure_ml for piece in found.values()) ** 2 / total if total else 0.0


def _looks_odd(found: dict[int, Piece], keys: Sequence[str]) -> bool:
    liver = found.get(keys.index("liver") + 1)
    if liver is None or liver.sure_ml < _SURE_OF_LIVER * liver.ml:
        return True
    spleen = found.get(keys.index("spleen") + 1) if "spleen" in keys else None
    return spleen is not None and liver.sure_ml < _LIVER_PER_SPLEEN * spleen.sure_ml


def _kidney_above_liver(found: dict[int, Piece], keys: Sequence[str], cell_mm: float) -> bool:
    """Whether a kidney lies as high as the liver; what lies far above it is none, but a mistake in a shoulder."""
    heights = {keys[organ - 1]: float(piece.low[0] + piece.high[0]) / 2 * cell_mm for organ, piece in found.items()}
    return any(
        _AS_HIGH_MM < heights[key] - heights["liver"] < _FAR_ABOVE_MM
        for key in ("right_kidney", "left_kidney")
        if key in heights and "liver" in heights
    )


def _bones_in_front(image: torch.Tensor) -> bool:
    """Whether the bones' center lies before the body's: the spine is behind it."""
    bone, body = image > _BONE, image > AIR + 0.05
    rows = torch.arange(image.shape[1], dtype=torch.float32)
    bones, bodies = (mask.sum(dim=(0, 2)).cpu().float() for mask in (bone, body))
    if bones.sum() < _LEAST_BONE_CELLS:
        return False
    center = (bodies @ rows) / bodies.sum()
    depth = torch.nonzero(bodies > 0.02 * bodies.max()).flatten()
    return bool((bones @ rows) / bones.sum() - center < _IN_FRONT * float(depth[-1] - depth[0] + 1))


def _deeper_than_wide(image: torch.Tensor) -> bool:
    body, extents = image > AIR + 0.05, []
    for others in ((0, 1), (0, 2)):
        cells = body.sum(dim=others).cpu().float()
        inside = torch.nonzero(cells > 0.02 * cells.max()).flatten()
        extents.append(float(inside[-1] - inside[0] + 1) if len(inside) else 0.0)
    width, depth = extents
    return width < _LEAST_WIDTH * depth


def _candidates(image: torch.Tensor, in_front: bool) -> list[Flips]:
    """The orientations to look at: where the bones and the lungs say which end is which, the others are left out."""
    body = image > AIR + 0.05
    inside = ~body
    for axis in (1, 2):
        inside &= (body.cumsum(axis) > 0) & (body.flip(axis).cumsum(axis).flip(axis) > 0)
    air = inside.sum(dim=(1, 2)).cpu()
    half = len(air) // 2
    below, above = int(air[:half].sum()), int(air[half:].sum())
    depth = (1,) if in_front else ()
    flips: list[Flips] = [(*depth, 2)] + ([depth] if depth else [])
    if above <= _MOSTLY * below:
        flips += [(0, *depth), (0, *depth, 2)]
    return flips


def _line(flips: Flips) -> str:
    ends = " and ".join(_ENDS[axis] for axis in sorted(flips, reverse=True))
    mirrored = ", or the organs' places exchanged (situs inversus)" if flips == (2,) else ""
    return (
        f"{ends[0].upper()}{ends[1:]} are in doubt: exchanged, the scan looks far more like a patient to the model. "
        f"The orientation in its header may be wrong{mirrored}. Look at the result, and repair the header."
    )
