"""Grids over a CT in LPS axes: where a network's cells lie in it, and what the network saw there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from FlareSegmentLib.inference.resampling import AxisGrid, Grid
from FlareSegmentLib.model.description import Stage
from FlareSegmentLib.model.intensity import Intensity, body_box
from FlareSegmentLib.volume import AxisOrder, Volume

Box = tuple[tuple[float, float], ...]
"""Outer edges along each axis (z, y, x) of the CT, in its voxels; 0 is the edge before the first voxel."""


class Look(NamedTuple):
    """What a network saw: windowed image (z, y, x), its grid, and scores of the classes there (classes, z, y, x), which
    are logits or probabilities.
    """

    image: torch.Tensor
    grid: Grid
    scores: torch.Tensor


def stage_grid(stage: Stage, multiple: int, view: Volume, box: Box | None, intensity: Intensity) -> Grid:
    """The stage's grid over a CT.

    Args:
        view: the CT, LPS axes.
        multiple: what the counts along all axes are multiples of.
        box: the organs', for a stage that looks at them only.
    """
    extents: Box
    if stage.region == "organs" and box is not None:
        extents = box
    elif stage.region == "body":
        extents = tuple((extent.start, extent.stop) for extent in body_box(view.array, intensity))
    else:
        extents = tuple((0.0, float(n)) for n in view.array.shape)
    grid = []
    for axis, (start, stop) in enumerate(extents):
        if stage.shape is not None:
            count = stage.shape[2 - axis]
            step = (stop - start) / count
        else:
            assert stage.spacing_mm is not None
            step = stage.spacing_mm[2 - axis] / view.spacing[2 - axis]
            count = max(1, int(np.ceil((stop - start) / step - 1e-3)))
        count = -(-count // multiple) * multiple
        if stage.region == "organs":  # what the multiple adds lies on both sides, and in the scan if it can
            start -= (count * step - (stop - start)) / 2
            start = min(max(0.0, start), max(0.0, view.array.shape[axis] - count * step))
        grid.append(AxisGrid.over(start, stop, count, step))
    return tuple(grid)


def stored_grid(grid: Grid, order: AxisOrder, shape: Sequence[int]) -> Grid:
    """A grid over a view in the axes and indices of the stored array, whose shape is given; the cells' order along each
    axis stays that of the view.
    """
    cells = {
        axis: one.turned(shape[axis]) if flip else one for one, axis, flip in zip(grid, order.permutation, order.flips)
    }
    return tuple(cells[axis] for axis in range(3))


def cut_grid(grid: Grid, axis: int, start: int, stop: int) -> Grid:
    """The grid with only the cells start ... stop - 1 of an axis."""
    cells = AxisGrid(grid[axis].first + start * grid[axis].step, grid[axis].step, stop - start)
    return (*grid[:axis], cells, *grid[axis + 1 :])


def cell_volume_ml(grid: Sequence[AxisGrid], view: Volume) -> float:
    """Volume of a grid's cell."""
    return view.voxel_volume_ml * float(np.prod([abs(axis.step) for axis in grid]))
