"""Where the patient and the organs are in a CT of LPS axes, told by what a network saw on its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from FlareSegmentLib.inference.grids import Box, Look, cell_volume_ml, cut_grid
from FlareSegmentLib.inference.organ_search import Piece, find_pieces
from FlareSegmentLib.inference.postprocessing import usual_ml
from FlareSegmentLib.inference.resampling import AxisGrid, Grid, highest_class
from FlareSegmentLib.model.intensity import AIR
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume

_ORGANS_REACH_MM = 300.0
_AIR_CELLS = 4
_BODY_SHARE = 0.002  # of the fullest plane: less than that is noise or a wire
_GROWTH_MM = 30.0  # of the organs' box, where an organ covers this much of its side or more
_TOUCHING_MM2 = 100.0
_LOW_SCAN_MM = 120.0  # of so few mm of body all is looked at
_SEARCHED_MM = 60.0  # above and below what was found, for organs that were not


def without_air(image: torch.Tensor, grid: Grid, multiple: int) -> tuple[torch.Tensor, Grid]:
    """Cut the air around the patient off an image (z, y, x), and off its grid; most of what a wide field of view costs
    the network is air.
    """
    body = image > AIR + 0.05
    cut = grid
    for axis in range(3):
        others = [other for other in range(3) if other != axis]
        profile = body.sum(dim=others)
        hits = torch.nonzero(profile > _BODY_SHARE * profile.max()).flatten()
        if not len(hits):
            return image, grid
        size = len(profile)
        start = max(0, int(hits[0]) - _AIR_CELLS)
        count = min(size, -(-(int(hits[-1]) + 1 + _AIR_CELLS - start) // multiple) * multiple)
        start = min(start, size - count)
        image = image.narrow(axis, start, count)
        cut = cut_grid(cut, axis, start, start + count)
    return image, cut


def organ_pieces(look: Look, view: Volume) -> dict[int, Piece]:
    """Class of each organ that the stage found -> the piece that it counts with.

    That is the piece that the network is surest of among those within reach of the surest of all: what else was found,
    in a head or a thigh of a whole-body scan, is a mistake.
    """
    pieces = find_pieces(look.scores, cell_volume_ml(look.grid, view))
    steps = [axis.step * mm for axis, mm in zip(look.grid, view.spacing[::-1])]
    chosen: dict[int, Piece] = {}
    for piece in pieces:
        offset = (piece.low + piece.high) / 2 - (pieces[0].low + pieces[0].high) / 2
        if np.linalg.norm(offset * steps) <= _ORGANS_REACH_MM:
            chosen.setdefault(piece.organ, piece)
    return chosen


def find_box(pieces: Mapping[int, Piece], grid: Grid, view: Volume, margin_mm: float) -> Box | None:
    """The box around the organs that the stage found (`organ_pieces`), or None."""
    if not pieces:
        return None
    lowest = np.min([piece.low for piece in pieces.values()], axis=0)
    highest = np.max([piece.high for piece in pieces.values()], axis=0)
    result = []
    for axis, low, high, mm, size in zip(grid, lowest, highest, view.spacing[::-1], view.array.shape):
        margin = margin_mm / mm
        start = axis.first + (low - 0.5) * axis.step + 0.5 - margin
        stop = axis.first + (high - 0.5) * axis.step + 0.5 + margin
        result.append((max(0.0, float(start)), min(float(size), float(stop))))
    return tuple(result)


def widened_box(box: Box, look: Look, pieces: Mapping[int, Piece], view: Volume, organs: Sequence[Organ]) -> Box:
    """The box, widened to all of the body's cross-section where the stage cannot be trusted to have found every organ:
    in scans of little height, and where an organ is missing or of no sure size though the scan does not cut it.

    What the first stage misses must not be lost to the last one, which sees far more; where the first stage is sure of
    every organ, the box stays as it is, for the time's sake.

    Args:
        pieces: of `organ_pieces`.
        organs: what the classes 1, 2, ... are.
    """
    axes, spacing, size = look.grid, view.spacing[::-1], view.array.shape
    body = look.image > AIR + 0.05
    extents = [_body_extent(body, position, axes[position], size[position]) for position in range(3)]
    is_low = (extents[0][1] - extents[0][0]) * spacing[0] <= _LOW_SCAN_MM
    if not is_low and not _has_doubtful(pieces, organs, axes, size):
        return box
    reach = _SEARCHED_MM / spacing[0]
    heights = (max(0.0, box[0][0] - reach), min(float(size[0]), box[0][1] + reach))
    if is_low:
        heights = (min(box[0][0], extents[0][0]), max(box[0][1], extents[0][1]))
    places = axes[0].positions + 0.5
    among = torch.from_numpy((places >= heights[0]) & (places <= heights[1])).to(body.device)
    widths = [_body_extent(body[among], position, axes[position], size[position]) for position in (1, 2)]
    return (heights, *((min(old[0], new[0]), max(old[1], new[1])) for old, new in zip(box[1:], widths)))


def _has_doubtful(
    pieces: Mapping[int, Piece], organs: Sequence[Organ], axes: Sequence[AxisGrid], size: Sequence[int]
) -> bool:
    """Whether an organ is missing, or surely found in less than its usual volume and not at an end of the scan."""
    for index, organ in enumerate(organs, start=1):
        piece = pieces.get(index)
        if piece is None:
            return True
        least = (usual_ml(organ) or (0.0, 0.0))[0]
        is_cut = any(
            axis.first + (low - 0.5) * axis.step <= axis.step - 0.5
            or axis.first + (high - 0.5) * axis.step >= count - 0.5 - axis.step
            for axis, low, high, count in zip(axes, piece.low, piece.high, size)
        )
        if piece.sure_ml < least and not (is_cut and 2.0 * piece.sure_ml >= piece.ml):
            return True
    return False


def _body_extent(body: torch.Tensor, position: int, axis: AxisGrid, size: int) -> tuple[float, float]:
    """Outer edges of the body along an axis of the LPS view, in its voxels; of the scan where there is no body."""
    profile = body.sum(dim=[other for other in range(3) if other != position])
    hits = torch.nonzero(profile > _BODY_SHARE * profile.max()).flatten() if profile.numel() else profile
    if not len(hits):
        return 0.0, float(size)
    start = axis.first + (int(hits[0]) - 0.5) * axis.step + 0.5
    stop = axis.first + (int(hits[-1]) + 0.5) * axis.step + 0.5
    return max(0.0, float(start)), min(float(size), float(stop))


def grown_box(box: Box, look: Look, view: Volume) -> Box | None:
    """The box, moved out where organs reach the sides of its grid though the scan goes on; None where they do not."""
    classes = highest_class(look.scores).cpu()
    spacing = view.spacing[::-1]
    cell_mm3 = np.prod([axis.step * mm for axis, mm in zip(look.grid, spacing)])
    result: list[tuple[float, float]] = []
    for position, (axis, mm, (start, stop)) in enumerate(zip(look.grid, spacing, box)):
        size = view.array.shape[position]
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


def body_midline(look: Look, view: Volume) -> float | None:
    """LPS x (mm) that halves the body at the height of the organs; None where the scan cuts the body's sides."""
    classes = highest_class(look.scores).cpu().numpy()
    heights = np.flatnonzero(classes.any(axis=(1, 2)))
    if not len(heights):
        return None
    axis, size = look.grid[2], view.array.shape[2]
    inside = (axis.positions >= -0.5) & (axis.positions <= size - 0.5)
    body = (look.image[heights[0] : heights[-1] + 1] > AIR + 0.05).cpu().numpy()[:, :, inside]
    touching = [float(np.mean(body[:, :, side].any(axis=1))) for side in (0, -1)]
    if max(touching) > 0.5 or abs(touching[0] - touching[1]) > 0.2:
        return None
    profile = np.cumsum(np.count_nonzero(body, axis=(0, 1)))
    if profile[-1] == 0:
        return None
    column = float(np.interp(profile[-1] / 2, profile, np.arange(len(profile)) + 0.5))
    place = axis.positions[inside][0] + axis.step * column
    middle = [(n - 1) / 2 for n in view.array.shape[::-1]]
    return float((view.affine_lps @ [place, middle[1], middle[2], 1])[0])
