"""From the CT's grid to a network's grid and back, exactly aligned in physical space.

Both ways are separable and work slab by slab on arrays in their stored axis order, so that no full floating point copy
of the CT and no full-size array of probabilities is ever made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

_SLAB_VOXELS = 1 << 22
_BAND = 16


@dataclass(frozen=True)
class AxisGrid:
    """Evenly spaced positions along one axis of an array, in its voxels: ``first + j * step``, j = 0 ... count - 1."""

    first: float
    step: float
    count: int

    @staticmethod
    def over(start: float, stop: float, count: int, step: float | None = None) -> AxisGrid:
        """Cells from the outer edge of voxel `start` on: `count` of width `step`, or filling the extent up to `stop`.

        A voxel's outer edges lie half an index before and after it; the extent of n voxels is ``over(0, n, ...)``.
        """
        step = (stop - start) / count if step is None else step
        return AxisGrid(start - 0.5 + step / 2, step, count)

    @property
    def positions(self) -> np.ndarray:
        return self.first + self.step * np.arange(self.count)

    def reversed(self) -> AxisGrid:
        """The same positions from the last to the first."""
        return AxisGrid(self.first + self.step * (self.count - 1), -self.step, self.count)

    def turned(self, size: int) -> AxisGrid:
        """The same cells in the same order, in the indices of the axis when its voxels are counted from the end."""
        return AxisGrid(size - 1 - self.first, -self.step, self.count)


Grid = tuple[AxisGrid, ...]
"""One AxisGrid for each axis of an array."""


def averaging_weights(size: int, positions: np.ndarray, step: float) -> np.ndarray:
    """Weights of the `size` voxels of an axis for values at the given positions (in voxels), (positions, size) float64.

    The linear interpolant of the voxels is averaged with a triangle of half width ``sqrt(step² - 1)`` where the grid
    becomes coarser: it removes what the coarser grid cannot hold and leaves linear ramps as they are. With steps up to
    1 this is linear interpolation. Beyond the first and last voxel the edge's value goes on.
    """
    half = np.sqrt(max(step * step - 1.0, 0.0))
    reach = 1.0 + half
    weights = np.zeros((len(positions), size))
    rows = np.arange(len(positions))
    for offset in range(int(np.ceil(2 * reach)) + 1):
        index = np.floor(positions - reach).astype(int) + offset
        np.add.at(weights, (rows, np.clip(index, 0, size - 1)), _kernel(index - positions, half))
    return weights


def _kernel(distance: np.ndarray, half: float) -> np.ndarray:
    """Triangle of half width 1 convolved with one of half width `half`: second differences of x³/6, twice."""
    if half < 1e-3:
        return np.clip(1.0 - np.abs(distance), 0.0, None)
    value = np.zeros(len(distance))
    for outer, a in ((1, -1.0), (-2, 0.0), (1, 1.0)):
        for inner, b in ((1, -half), (-2, 0.0), (1, half)):
            value += outer * inner * np.clip(distance + a + b, 0.0, None) ** 3
    return np.where(np.abs(distance) < 1.0 + half, value / (6.0 * half * half), 0.0)


def resample(
    array: np.ndarray,
    grid: Sequence[AxisGrid],
    outside: float,
    device: torch.device | str = "cpu",
    tick: Callable[[float], None] = lambda fraction: None,
) -> torch.Tensor:
    """Bring an array to a grid: linear, antialiased along axes that become coarser.

    Args:
        array: three-dimensional, any real type; read slab by slab along its first axis.
        grid: one AxisGrid for each axis of the array.
        outside: value of cells whose center lies beyond the array's extent.
        tick: called with the fraction done; may raise to stop.

    Returns:
        float32 tensor with the grid's counts as shape, on the device.
    """
    result = torch.full([axis.count for axis in grid], float(outside), device=device)
    inside, weights, ranges = [], [], []
    for axis, size in zip(grid, array.shape):
        positions = axis.positions
        within = np.flatnonzero((positions >= -0.5) & (positions <= size - 0.5))
        if not len(within):
            return result
        inside.append(slice(int(within[0]), int(within[-1]) + 1))
        dense = averaging_weights(size, positions[within], abs(axis.step))
        used = np.flatnonzero(dense.any(axis=0))
        ranges.append(slice(int(used[0]), int(used[-1]) + 1))
        weights.append(torch.from_numpy(dense[:, ranges[-1]].astype(np.float32)).to(device))
    along_0, along_1, _ = weights
    bands = _bands(weights[2])
    region = array[tuple(ranges)]
    total = torch.zeros((along_0.shape[0], along_1.shape[0] * len(weights[2])), device=device)
    thickness = max(1, _SLAB_VOXELS // (region.shape[1] * region.shape[2]))
    for start in range(0, region.shape[0], thickness):
        slab = torch.from_numpy(np.ascontiguousarray(region[start : start + thickness], dtype=np.float32))
        slab = (slab.pin_memory() if result.is_cuda else slab).to(device, non_blocking=result.is_cuda)
        lines = torch.cat([slab[:, :, columns] @ band for columns, band in bands], dim=2)
        plane = along_1 @ lines
        share = along_0[:, start : start + thickness]
        rows = torch.nonzero(share.any(dim=1)).flatten()
        first, last = int(rows[0]), int(rows[-1]) + 1
        total[first:last] += share[first:last] @ plane.reshape(plane.shape[0], -1)
        tick(min(1.0, (start + thickness) / region.shape[0]))
    result[tuple(inside)] = total.reshape([w.shape[0] for w in weights])
    return result


def on_grid(scores: torch.Tensor, source: Sequence[AxisGrid], target: Sequence[AxisGrid]) -> torch.Tensor:
    """Interpolate scores from one grid to another over the same array, as `resample` does.

    Args:
        scores: (classes, *counts of the source).
        source, target: one AxisGrid for each axis of the scores.

    Returns:
        (classes, *counts of the target) float32 on the scores' device; 0 beyond the source's cells.
    """
    grid = [
        AxisGrid((new.first - old.first) / old.step, new.step / old.step, new.count) for old, new in zip(source, target)
    ]
    return torch.stack([resample(values, grid, 0.0, scores.device) for values in scores.float().cpu().numpy()])


def _bands(weights: torch.Tensor) -> list[tuple[slice, torch.Tensor]]:
    """Weights (positions, voxels) in pieces: the voxels that some positions in a row need, (voxels, positions) of them.

    Each position needs but a few voxels next to each other; one product with all of the weights would mostly add zeros.
    """
    bands = []
    for rows in weights.split(_BAND):
        first, last = _span(rows.any(dim=0))
        bands.append((slice(first, last + 1), rows[:, first : last + 1].T.contiguous()))
    return bands


def labels_on_array(
    scores: torch.Tensor,
    grid: Sequence[AxisGrid],
    shape: Sequence[int],
    tick: Callable[[float], None] = lambda fraction: None,
) -> tuple[np.ndarray, tuple[slice, ...]]:
    """The class with the highest score at every voxel of an array, the scores being interpolated linearly from a grid.

    Where class 0 is the highest at all cells around a voxel it is so at the voxel too: only the others are computed.

    Args:
        scores: (classes, *counts of the grid) floating point; class 0 is the background.
        grid: where in the array the cells lie, one AxisGrid for each axis. Beyond the outer cells their values go on.
        shape: of the array.
        tick: called with the fraction done; may raise to stop.

    Returns:
        Class indices (uint8) in the box of the array that can hold any class but 0, and that box; an empty box if none
        can.
    """
    any_class = (scores[1:] > scores[:1]).any(dim=0)
    box = _box_of(any_class, grid, shape)
    labels = np.zeros([extent.stop - extent.start for extent in box], np.uint8)
    for place, values in _slabs(scores, grid, shape, any_class, box, tick):
        labels[place] = highest_class(values).cpu().numpy()
    return labels, box


def labels_and_probabilities_on_array(
    scores: torch.Tensor,
    grid: Sequence[AxisGrid],
    shape: Sequence[int],
    left_out: Sequence[int] = (),
    least: float = 0.03,
    tick: Callable[[float], None] = lambda fraction: None,
) -> tuple[np.ndarray, np.ndarray, tuple[slice, ...]]:
    """As `labels_on_array`, of probabilities, with that of the class that won.

    Args:
        left_out: classes that shall not win, whatever their scores.
        least: cells where a class but 0 has this much are computed.

    Returns:
        Class indices (uint8); their probabilities in 255ths (uint8); the box of both. Outside of it class 0 wins
        with 255.
    """
    any_class = (scores[1:] > least).any(dim=0)
    box = _box_of(any_class, grid, shape)
    labels = np.zeros([extent.stop - extent.start for extent in box], np.uint8)
    probabilities = np.full(labels.shape, 255, np.uint8)
    for place, values in _slabs(scores, grid, shape, any_class, box, tick):
        winner, best = _highest(values, left_out)
        labels[place] = winner.cpu().numpy()
        probabilities[place] = best.float().mul_(255.0).add_(0.5).to(torch.uint8).cpu().numpy()
    return labels, probabilities, box


def _box_of(cells: torch.Tensor, grid: Sequence[AxisGrid], shape: Sequence[int]) -> tuple[slice, ...]:
    """The box of the array that some of the cells have a share of; empty if there are none."""
    if not bool(cells.any()):
        return (slice(0, 0),) * 3
    return tuple(
        _reached(axis, *_span(cells.any(dim=others[0]).any(dim=others[1])), size)
        for axis, size, others in zip(grid, shape, ((2, 1), (2, 0), (1, 0)))
    )


def _slabs(
    scores: torch.Tensor,
    grid: Sequence[AxisGrid],
    shape: Sequence[int],
    cells: torch.Tensor,
    box: tuple[slice, ...],
    tick: Callable[[float], None],
) -> Iterator[tuple[tuple[slice, ...], torch.Tensor]]:
    """Yield, slab by slab, a place in the box and the scores interpolated there; together the places hold all voxels
    that a true one of the cells has a share of.
    """
    if box[0].stop == box[0].start:
        return
    rows_used, columns_used = cells.any(dim=2).cpu(), cells.any(dim=1).cpu()
    along_0, along_1, along_2 = (_Interpolation.of(axis, size) for axis, size in zip(grid, shape))
    columns = along_2.matrix().to(scores)
    height, width, depth = (extent.stop - extent.start for extent in box)
    # Several planes at once: small steps cost more in waiting for threads than in computing.
    thickness = max(1, _SLAB_VOXELS // max(1, len(scores) * width * depth))
    for start in range(0, height, thickness):
        planes = slice(box[0].start + start, min(box[0].start + start + thickness, box[0].stop))
        lower, upper = along_0.lower[planes], along_0.upper[planes]
        rows = (rows_used[lower] | rows_used[upper]).any(dim=0)
        if bool(rows.any()):
            span_1, span_2 = _span(rows), _span((columns_used[lower] | columns_used[upper]).any(dim=0))
            target_1, target_2 = _reached(grid[1], *span_1, shape[1]), _reached(grid[2], *span_2, shape[2])
            source_1, source_2 = (slice(max(span[0] - 1, 0), span[1] + 2) for span in (span_1, span_2))
            near = scores[:, :, source_1, source_2]
            fraction = along_0.fraction[planes].to(scores)[:, None, None]
            between = torch.lerp(near[:, lower], near[:, upper], fraction)
            wide = between @ columns[source_2, target_2]
            values = torch.lerp(
                wide[:, :, along_1.lower[target_1] - source_1.start],
                wide[:, :, along_1.upper[target_1] - source_1.start],
                along_1.fraction[target_1].to(scores)[:, None],
            )
            inner = tuple(
                slice(target.start - extent.start, target.stop - extent.start)
                for target, extent in ((target_1, box[1]), (target_2, box[2]))
            )
            yield (slice(start, start + len(lower)), *inner), values
        tick(min(1.0, (start + thickness) / height))


def highest_class(scores: torch.Tensor) -> torch.Tensor:
    """Index (uint8) of the highest of (classes, ...) scores; much faster than argmax over a leading axis."""
    return _highest(scores)[0]


def _highest(scores: torch.Tensor, left_out: Sequence[int] = ()) -> tuple[torch.Tensor, torch.Tensor]:
    """Index (uint8) of the highest of (classes, ...) scores but those left out, and that score."""
    best, winner = scores[0].clone(), torch.zeros(scores.shape[1:], dtype=torch.uint8, device=scores.device)
    for index in range(1, len(scores)):
        if index not in left_out:
            winner.masked_fill_(scores[index] > best, index)
            torch.maximum(best, scores[index], out=best)
    return winner, best


@dataclass(frozen=True)
class _Interpolation:
    """For each voxel of an axis of the array: the two cells around it and the upper one's share."""

    lower: torch.Tensor
    upper: torch.Tensor
    fraction: torch.Tensor
    cells: int

    @staticmethod
    def of(axis: AxisGrid, size: int) -> _Interpolation:
        place = np.clip((np.arange(size) - axis.first) / axis.step, 0, axis.count - 1)
        lower = np.floor(place).astype(np.int64)
        upper = np.minimum(lower + 1, axis.count - 1)
        return _Interpolation(
            torch.from_numpy(lower),
            torch.from_numpy(upper),
            torch.from_numpy((place - lower).astype(np.float32)),
            axis.count,
        )

    def matrix(self) -> torch.Tensor:
        """(cells, size) weights."""
        size = len(self.lower)
        matrix = torch.zeros((self.cells, size))
        matrix[self.upper, torch.arange(size)] = self.fraction
        matrix[self.lower, torch.arange(size)] = 1 - self.fraction
        return matrix


def _span(flags: torch.Tensor) -> tuple[int, int]:
    """Index of the first and last true element."""
    hits = torch.nonzero(flags).flatten()
    return int(hits[0]), int(hits[-1])


def _reached(axis: AxisGrid, first: int, last: int, size: int) -> slice:
    """Voxels of the array with a share of the cells first ... last; none beyond the outer edge of the grid."""
    cells = np.array([max(first - 1, -0.5), min(last + 1, axis.count - 0.5)])
    low, high = sorted(axis.first + cells * axis.step)
    start = min(max(0, int(np.ceil(low + 1e-6))), size)
    return slice(start, max(start, min(size, int(np.floor(high - 1e-6)) + 1)))
