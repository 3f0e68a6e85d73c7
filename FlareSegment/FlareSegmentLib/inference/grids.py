"""Grids over a CT: where a network's cells lie in the stored array, and boxes along the patient's axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from FlareSegmentLib.inference.resampling import AxisGrid
from FlareSegmentLib.model.intensity import Intensity, body_box
from FlareSegmentLib.model.model_file import Stage
from FlareSegmentLib.volume import AxisOrder, Volume

Grid = tuple[AxisGrid, ...]
"""One AxisGrid for each stored axis of an array, laid out in the direction of the patient's axes."""
Box = tuple[tuple[float, float], ...]
"""Outer edges along each axis of the LPS view, in its voxels; 0 is the edge before the first voxel."""


def stage_grid(
    stage: Stage, multiple: int, volume: Volume, order: AxisOrder, box: Box | None, intensity: Intensity
) -> Grid:
    """The stage's grid in the volume's stored axis order, laid out in the direction of the patient's axes.

    Args:
        multiple: what the counts along all axes are multiples of.
        box: the organs', for a stage that looks at them only.
    """
    shape = [volume.array.shape[axis] for axis in order.permutation]
    extents: Box
    if stage.region == "organs" and box is not None:
        extents = box
    elif stage.region == "body":
        stored = body_box(volume.array, intensity)
        extents = tuple(
            (n - stored[axis].stop, n - stored[axis].start) if flip else (stored[axis].start, stored[axis].stop)
            for axis, flip, n in zip(order.permutation, order.flips, shape)
        )
    else:
        extents = tuple((0.0, float(n)) for n in shape)
    grid: dict[int, AxisGrid] = {}
    for position, (axis, flip) in enumerate(zip(order.permutation, order.flips)):
        start, stop = extents[position]
        if stage.shape is not None:
            count = stage.shape[2 - position]
            step = (stop - start) / count
        else:
            assert stage.spacing_mm is not None
            step = stage.spacing_mm[2 - position] / volume.spacing[2 - axis]
            count = max(1, int(np.ceil((stop - start) / step - 1e-3)))
        count = -(-count // multiple) * multiple
        if stage.region == "organs":  # what the multiple adds lies on both sides, and in the scan if it can
            start -= (count * step - (stop - start)) / 2
            start = min(max(0.0, start), max(0.0, shape[position] - count * step))
        cells = AxisGrid.over(start, stop, count, step)
        grid[axis] = turned(cells, shape[position]) if flip else cells
    return tuple(grid[axis] for axis in range(3))


def turned(axis: AxisGrid, size: int) -> AxisGrid:
    """The grid of a flipped axis, in the stored array's indices."""
    return AxisGrid(size - 1 - axis.first, -axis.step, axis.count)


def cut_grid(grid: Grid, axis: int, start: int, stop: int) -> Grid:
    """The grid with only the cells start ... stop - 1 of an axis."""
    cells = AxisGrid(grid[axis].first + start * grid[axis].step, grid[axis].step, stop - start)
    return (*grid[:axis], cells, *grid[axis + 1 :])


def cell_volume_ml(grid: Sequence[AxisGrid], volume: Volume) -> float:
    """Volume of a grid's cell."""
    return volume.voxel_volume_ml * float(np.prod([abs(axis.step) for axis in grid]))


def view_grid(grid: Sequence[AxisGrid], order: AxisOrder, shape: Sequence[int]) -> list[AxisGrid]:
    """The grid in the LPS view's axes and indices."""
    return [
        turned(grid[axis], shape[axis]) if flip else grid[axis] for axis, flip in zip(order.permutation, order.flips)
    ]
