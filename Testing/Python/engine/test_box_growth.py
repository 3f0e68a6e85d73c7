"""Where the box grows: the new cells lie where the old grid would go on, and only they are computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pipeline import COARSE, FINE, FakeModel, ShortsightedNetwork, scan, scores
from test_volume import SIGNED_PERMUTATIONS

from FlareSegmentLib.inference import box_growth
from FlareSegmentLib.inference.box_growth import Look, grid_beyond, joined, with_context
from FlareSegmentLib.inference.grids import view_grid
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.inference.resampling import AxisGrid
from FlareSegmentLib.volume import Volume

SHAPE = (200, 220, 240)


def stored(cells: list[AxisGrid], volume: Volume) -> tuple[AxisGrid, ...]:
    """A grid of the LPS view in the stored axes: `view_grid` is its own inverse."""
    order = volume.axis_order()
    result: dict[int, AxisGrid] = {}
    for axes, axis, flip in zip(cells, order.permutation, order.flips):
        last = volume.array.shape[axis] - 1
        result[axis] = AxisGrid(last - axes.first, -axes.step, axes.count) if flip else axes
    return tuple(result[axis] for axis in range(3))


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::7])
@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("low", [True, False])
def test_the_grid_goes_on_beyond_the_side(direction: np.ndarray, position: int, low: bool) -> None:
    volume = Volume(np.zeros(SHAPE, np.uint8), direction=direction)
    order = volume.axis_order()
    cells = [AxisGrid.over(60.0 + n, 0, 16 * (n + 1), 1.5) for n in range(3)]
    edge = 60.0 + position, 60.0 + position + 1.5 * 16 * (position + 1)
    box = [(60.0 + n, 60.0 + n + 1.5 * 16 * (n + 1)) for n in range(3)]
    grid = stored(cells, volume)
    assert grid_beyond(grid, order, volume.array.shape, position, low, tuple(box), 16) is None
    box[position] = (edge[0] - 25, edge[1]) if low else (edge[0], edge[1] + 25)  # 25 voxels are 16.7 cells
    assert grid_beyond(grid, order, volume.array.shape, position, not low, tuple(box), 16) is None
    beyond = grid_beyond(grid, order, volume.array.shape, position, low, tuple(box), 16)
    assert beyond is not None
    new = view_grid(beyond, order, volume.array.shape)
    assert new[position].count == 32
    expected = cells[position].first + 1.5 * (-32 if low else cells[position].count)
    assert new[position].first == pytest.approx(expected) and new[position].step == 1.5
    assert [new[other] for other in range(3) if other != position] == [
        cells[other] for other in range(3) if other != position
    ]


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::11])
@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("low", [True, False])
def test_joined_is_one_whole(direction: np.ndarray, position: int, low: bool) -> None:
    """Of a picture that is known everywhere, a part and its continuation give the whole, on the whole grid."""
    volume = Volume(np.zeros(SHAPE, np.uint8), direction=direction)
    order = volume.axis_order()
    counts = [48, 32, 16]
    counts[position] = 64
    picture = torch.rand(counts)
    classes = torch.stack((picture, 1 - picture))
    first = [AxisGrid(50.0, 2.0, n) for n in counts]
    new, old = (16, 48) if low else (16, 48)
    cut_new, cut_old = (slice(0, new), slice(new, 64)) if low else (slice(old, 64), slice(0, old))
    place = [slice(None)] * 3

    def part(extent: slice) -> tuple[slice, ...]:
        return (*place[:position], extent, *place[position + 1 :])

    def grid(extent: slice) -> tuple[AxisGrid, ...]:
        cells = list(first)
        cells[position] = AxisGrid(50.0 + 2.0 * extent.start, 2.0, extent.stop - extent.start)
        return stored(cells, volume)

    seen = Look(picture[part(cut_old)], grid(cut_old), classes[(slice(None), *part(cut_old))].clone())
    image = with_context(picture[part(cut_new)], seen.image, position, low)
    assert image.shape[position] == new + box_growth.CONTEXT_CELLS
    beyond = Look(image, grid(cut_new), torch.stack((image, 1 - image)))
    whole = joined(seen, beyond, order, position, low)
    torch.testing.assert_close(whole.image, picture)
    torch.testing.assert_close(whole.probabilities, classes)
    assert whole.grid == stored(first, volume)


def test_at_the_side_one_result_fades_into_the_other() -> None:
    volume = Volume(np.zeros(SHAPE, np.uint8))
    old = Look(torch.zeros(64, 16, 16), tuple(AxisGrid(50.0, 1.0, n) for n in (64, 16, 16)), torch.zeros(1, 64, 16, 16))
    grid = (AxisGrid(34.0, 1.0, 16), *old.grid[1:])
    whole = joined(old, Look(torch.zeros(48, 16, 16), grid, torch.ones(1, 48, 16, 16)), volume.axis_order(), 0, True)
    line = whole.probabilities[0, :, 3, 5]
    assert torch.all(line[:16] == 1) and torch.all(line[32:] == 0)
    assert torch.all(torch.diff(line[15:33]) < 0)


@pytest.mark.parametrize("direction", [np.eye(3), SIGNED_PERMUTATIONS[29]], ids=["axial", "turned"])
def test_only_what_is_new_is_computed(direction: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    # the test's organs are small enough to be doubted, for which the box would be wide from the start
    monkeypatch.setattr("FlareSegmentLib.inference.pipeline.widened_box", lambda box, *_rest: box)
    volume, truth = scan(direction, (3.0, 3.0, 3.0))
    model = FakeModel(COARSE, FINE)
    model.networks["coarse"] = ShortsightedNetwork(7)
    result = Segmenter(model, "cpu").segment(volume)
    assert min(scores(result.labels, truth)) > 0.96
    _, *farther = model.networks["fine"].shapes[1:]  # the first counts the costs
    assert farther
    new = sum(np.prod(shape) for shape in farther)
    whole = FakeModel(COARSE, replace(FINE, margin_mm=60.0))
    Segmenter(whole, "cpu").segment(volume)
    assert new < np.prod(whole.networks["fine"].shapes[-1])
    assert all(min(shape[-3:]) <= 16 + box_growth.CONTEXT_CELLS for shape in farther)
