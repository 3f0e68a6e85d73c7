"""Where organs reach the sides of the box: what the network saw inside stays, and only the cells beyond are computed.

New cells are computed together with CONTEXT_CELLS of those that were seen before; over the BLEND_CELLS at the side one
result fades into the other, as it does between tiles.
"""

from __future__ import annotations

import numpy as np
import torch

from FlareSegmentLib.inference.grids import Box, Look
from FlareSegmentLib.inference.resampling import AxisGrid, Grid

CONTEXT_CELLS = 32
BLEND_CELLS = 16


def grid_beyond(grid: Grid, axis: int, low: bool, box: Box, multiple: int) -> Grid | None:
    """The cells that a grid lacks on one side of a box, in multiples of `multiple`; None where it lacks none.

    Args:
        axis: of z, y, x.
        low: the axis' low side, else its high one.
    """
    cells = grid[axis]
    edge = cells.first + 0.5 - cells.step / 2
    missing = edge - box[axis][0] if low else box[axis][1] - (edge + cells.count * cells.step)
    count = int(np.ceil(missing / cells.step / multiple - 1e-3)) * multiple
    if count <= 0:
        return None
    beyond = AxisGrid(cells.first + cells.step * (-count if low else cells.count), cells.step, count)
    return (*grid[:axis], beyond, *grid[axis + 1 :])


def with_context(image: torch.Tensor, seen: torch.Tensor, axis: int, low: bool) -> torch.Tensor:
    """The image of the cells beyond a side together with CONTEXT_CELLS of what was seen within."""
    count = min(CONTEXT_CELLS, seen.shape[axis])
    near = seen.narrow(axis, 0 if low else seen.shape[axis] - count, count)
    return torch.cat((image, near) if low else (near, image), dim=axis)


def joined(look: Look, beyond: Look, axis: int, low: bool) -> Look:
    """Both as one; `beyond` has the grid of the new cells alone, image and scores with their context."""
    old, new = look.grid[axis], beyond.grid[axis]
    blend = min(BLEND_CELLS, old.count, beyond.image.shape[axis] - new.count)
    share = (torch.arange(blend, device=beyond.scores.device) + 0.5) / blend  # of what was seen before
    share = (share if low else share.flip(0)).view([-1 if other == axis else 1 for other in range(3)])
    dim = 1 + axis
    size = beyond.scores.shape[dim]
    fresh = beyond.scores.narrow(dim, 0 if low else size - new.count, new.count)
    again = beyond.scores.narrow(dim, new.count if low else size - new.count - blend, blend)
    before = look.scores.narrow(dim, 0 if low else old.count - blend, blend)
    before.copy_(torch.lerp(again, before, share))
    picture = beyond.image.narrow(axis, 0 if low else beyond.image.shape[axis] - new.count, new.count)
    parts = ((picture, look.image), (fresh, look.scores))
    image, scores = (torch.cat(pair if low else pair[::-1], dim=axis + number) for number, pair in enumerate(parts))
    whole = AxisGrid((new if low else old).first, old.step, old.count + new.count)
    return Look(image, (*look.grid[:axis], whole, *look.grid[axis + 1 :]), scores)
