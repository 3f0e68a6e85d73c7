"""Where the patient and the organs are in a CT, told by a network's image and scores on its grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from FlareSegmentLib.inference.grids import Box, Grid, cell_volume_ml, cut_grid, view_grid
from FlareSegmentLib.inference.organ_search import Piece, find_pieces
from FlareSegmentLib.inference.resampling import AxisGrid, highest_class
from FlareSegmentLib.model.intensity import AIR
from FlareSegmentLib.volume import AxisOrder, Volume

_ORGANS_REACH_MM = 300.0
_AIR_CELLS = 4
_BODY_SHARE = 0.002  # of the fullest plane: less than that is noise or a wire
_GROWTH_MM = 30.0  # of the organs' box, where an organ covers this much of its side or more
_TOUCHING_MM2 = 100.0


def without_air(image: torch.Tensor, grid: Grid, order: AxisOrder, multiple: int) -> tuple[torch.Tensor, Grid]:
    """Cut the air around the patient off an image (z, y, x) of LPS axes, and off its grid; most of what a wide
    field of view costs the network is air.
    """
    body = image > AIR + 0.05
    cut = grid
    for position, axis in enumerate(order.permutation):
        others = [other for other in range(3) if other != position]
        profile = body.sum(dim=others)
        hits = torch.nonzero(profile > _BODY_SHARE * profile.max()).flatten()
        if not len(hits):
            return image, grid
        size = len(profile)
        start = max(0, int(hits[0]) - _AIR_CELLS)
        count = min(size, -(-(int(hits[-1]) + 1 + _AIR_CELLS - start) // multiple) * multiple)
        start = min(start, size - count)
        image = image.narrow(position, start, count)
        cut = cut_grid(cut, axis, start, start + count)
    return image, cut


def find_box(
    scores: torch.Tensor, grid: Sequence[AxisGrid], order: AxisOrder, volume: Volume, margin_mm: float
) -> Box | None:
    """The box around the organs that the stage found, or None.

    Each organ counts with the piece that the network is surest of among those within reach of the surest of all: what
    else was found, in a head or a thigh of a whole-body scan, is a mistake.
    """
    axes = view_grid(grid, order, volume.array.shape)
    spacing = np.array([volume.spacing[2 - axis] for axis in order.permutation])
    steps = np.array([axis.step for axis in axes]) * spacing
    pieces = find_pieces(scores, cell_volume_ml(grid, volume))
    if not pieces:
        return None
    anchor = (pieces[0].low + pieces[0].high) / 2
    chosen: dict[int, Piece] = {}
    for piece in pieces:
        if np.linalg.norm(((piece.low + piece.high) / 2 - anchor) * steps) <= _ORGANS_REACH_MM:
            chosen.setdefault(piece.organ, piece)
    lowest = np.min([piece.low for piece in chosen.values()], axis=0)
    highest = np.max([piece.high for piece in chosen.values()], axis=0)
    result = []
    for position, axis in enumerate(axes):
        size = volume.array.shape[order.permutation[position]]
        margin = margin_mm / spacing[position]
        start = axis.first + (lowest[position] - 0.5) * axis.step + 0.5 - margin
        stop = axis.first + (highest[position] - 0.5) * axis.step + 0.5 + margin
        result.append((max(0.0, float(start)), min(float(size), float(stop))))
    return tuple(result)


def grown_box(box: Box, scores: torch.Tensor, grid: Sequence[AxisGrid], order: AxisOrder, volume: Volume) -> Box | None:
    """The box, moved out where organs reach the sides of its grid though the scan goes on; None where they do not."""
    classes = highest_class(scores).cpu()
    axes = view_grid(grid, order, volume.array.shape)
    spacing = [volume.spacing[2 - axis] for axis in order.permutation]
    cell_mm3 = np.prod([axis.step * mm for axis, mm in zip(axes, spacing)])
    result: list[tuple[float, float]] = []
    for position, (axis, mm, (start, stop)) in enumerate(zip(axes, spacing, box)):
        size = volume.array.shape[order.permutation[position]]
        low = axis.first + 0.5 - axis.step / 2
        high = low + axis.count * axis.step
        smallest = _TOUCHING_MM2 * axis.step * mm / cell_mm3
        reached = [
            int(torch.bincount(classes.select(position, cell).flatten(), minlength=2)[1:].max()) >= smallest
            for cell in (0, -1)
        ]
        if reached[0] and low > axis.step:
            start = max(0.0, low - _GROWTH_MM / mm)
        if reached[1] and high < size - axis.step:
            stop = min(float(size), high + _GROWTH_MM / mm)
        result.append((start, stop))
    return tuple(result) if tuple(result) != box else None


def body_midline(
    image: torch.Tensor, scores: torch.Tensor, grid: Sequence[AxisGrid], order: AxisOrder, volume: Volume
) -> float | None:
    """LPS x (mm) that halves the body at the height of the organs; None where the scan cuts the body's sides."""
    classes = highest_class(scores).cpu().numpy()
    heights = np.flatnonzero(classes.any(axis=(1, 2)))
    if not len(heights):
        return None
    axis = view_grid(grid, order, volume.array.shape)[2]
    size = volume.array.shape[order.permutation[2]]
    inside = (axis.positions >= -0.5) & (axis.positions <= size - 0.5)
    body = (image[heights[0] : heights[-1] + 1] > AIR + 0.05).cpu().numpy()[:, :, inside]
    touching = [float(np.mean(body[:, :, side].any(axis=1))) for side in (0, -1)]
    if max(touching) > 0.5 or abs(touching[0] - touching[1]) > 0.2:
        return None
    profile = np.cumsum(np.count_nonzero(body, axis=(0, 1)))
    if profile[-1] == 0:
        return None
    column = float(np.interp(profile[-1] / 2, profile, np.arange(len(profile)) + 0.5))
    place = axis.positions[inside][0] + axis.step * column
    view = volume.to_lps_view()[0]
    middle = [(n - 1) / 2 for n in view.array.shape[::-1]]
    return float((view.affine_lps @ [place, middle[1], middle[2], 1])[0])
