"""Where organs reach the sides of the box: what the network saw inside stays, and only the cells beyond are computed.

New cells are computed together with CONTEXT_CELLS of those that were seen before; over the BLEND_CELLS at the side one
result fades into the other, as it does between tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from FlareSegmentLib.inference.grids import Box, Grid, turned, view_grid
from FlareSegmentLib.inference.resampling import AxisGrid
from FlareSegmentLib.volume import AxisOrder

CONTEXT_CELLS = 32
BLEND_CELLS = 16


class Look(NamedTuple):
    """What the network saw: image (z, y, x) of LPS axes, its grid, and class probabilities (classes, z, y, x)."""

    image: torch.Tensor
    grid: Grid
    probabilities: torch.Tensor


def grid_beyond(
    grid: Grid, order: AxisOrder, shape: tuple[int, ...], position: int, low: bool, box: Box, multiple: int
) -> Grid | None:
    """The cells that a grid lacks on one side of a box, in multiples of `multiple`; None where it lacks none.

    Args:
        shape: of the stored array.
        position: of the axis in the LPS view, z, y, x.
        low: the axis' low side, else its high one.
    """
    axis = order.permutation[position]
    cells = view_grid(grid, order, shape)[position]
    edge = cells.first + 0.5 - cells.step / 2
    missing = edge - box[position][0] if low else box[position][1] - (edge + cells.count * cells.step)
    count = int(np.ceil(missing / cells.step / multiple - 1e-3)) * multiple
    if count <= 0:
        return None
    beyond = AxisGrid(cells.first + cells.step * (-count if low else cells.count), cells.step, count)
    stored = turned(beyond, shape[axis]) if order.flips[position] else beyond
    return (*grid[:axis], stored, *grid[axis + 1 :])


def with_context(image: torch.Tensor, seen: torch.Tensor, position: int, low: bool) -> torch.Tensor:
    """The image of the cells beyond a side together with CONTEXT_CELLS of what was seen within."""
    count = min(CONTEXT_CELLS, seen.shape[position])
    near = seen.narrow(position, 0 if low else seen.shape[position] - count, count)
    return torch.cat((image, near) if low else (near, image), dim=position)


def joined(look: Look, beyond: Look, order: AxisOrder, position: int, low: bool) -> Look:
    """Both as one; `beyond` has the grid of the new cells alone, image and probabilities with their context."""
    axis = order.permutation[position]
    old, new = look.grid[axis], beyond.grid[axis]
    blend = min(BLEND_CELLS, old.count, beyond.image.shape[position] - new.count)
    share = (torch.arange(blend, device=beyond.probabilities.device) + 0.5) / blend  # of what was seen before
    share = (share if low else share.flip(0)).view([-1 if other == position else 1 for other in range(3)])
    dim = 1 + position
    size = beyond.probabilities.shape[dim]
    fresh = beyond.probabilities.narrow(dim, 0 if low else size - new.count, new.count)
    again = beyond.probabilities.narrow(dim, new.count if low else size - new.count - blend, blend)
    before = look.probabilities.narrow(dim, 0 if low else old.count - blend, blend)
    before.copy_(torch.lerp(again, before, share))
    picture = beyond.image.narrow(position, 0 if low else beyond.image.shape[position] - new.count, new.count)
    parts = ((picture, look.image), (fresh, look.probabilities))
    image, probabilities = (
        torch.cat(pair if low else pair[::-1], dim=position + number) for number, pair in enumerate(parts)
    )
    whole = AxisGrid((new if low else old).first, old.step, old.count + new.count)
    return Look(image, (*look.grid[:axis], whole, *look.grid[axis + 1 :]), probabilities)
