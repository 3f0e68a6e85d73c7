"""Where the box grows: the new cells lie where the old grid would go on, and only they are computed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pipeline import COARSE, FINE, FakeModel, ShortsightedNetwork, scan, scores
from test_volume import SIGNED_PERMUTATIONS

from FlareSegmentLib.inference import box_growth
from FlareSegmentLib.inference.box_growth import grid_beyond, joined, with_context
from FlareSegmentLib.inference.grids import Look
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.inference.resampling import AxisGrid


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("low", [True, False])
def test_the_grid_goes_on_beyond_the_side(position: int, low: bool) -> None:
    cells = [AxisGrid.over(60.0 + n, 0, 16 * (n + 1), 1.5) for n in range(3)]
    edge = 60.0 + position, 60.0 + position + 1.5 * 16 * (position + 1)
    box = [(60.0 + n, 60.0 + n + 1.5 * 16 * (n + 1)) for n in range(3)]
    grid = tuple(cells)
    assert grid_beyond(grid, position, low, tuple(box), 16) is None
    box[position] = (edge[0] - 25, edge[1]) if low else (edge[0], edge[1] + 25)  # 25 voxels are 16.7 cells
    assert grid_beyond(grid, position, not low, tuple(box), 16) is None
    new = grid_beyond(grid, position, low, tuple(box), 16)
    assert new is not None
    assert new[position].count == 32
    expected = cells[position].first + 1.5 * (-32 if low else cells[position].count)
    assert new[position].first == pytest.approx(expected) and new[position].step == 1.5
    assert [new[other] for other in range(3) if other != position] == [
        cells[other] for other in range(3) if other != position
    ]


@pytest.mark.parametrize("position", range(3))
@pytest.mark.parametrize("low", [True, False])
def test_joined_is_one_whole(position: int, low: bool) -> None:
    """Of a picture that is known everywhere, a part and its continuation give the whole, on the whole grid."""
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
        return tuple(cells)

    seen = Look(picture[part(cut_old)], grid(cut_old), classes[(slice(None), *part(cut_old))].clone())
    image = with_context(picture[part(cut_new)], seen.image, position, low)
    assert image.shape[position] == new + box_growth.CONTEXT_CELLS
    beyond = Look(image, grid(cut_new), torch.stack((image, 1 - image)))
    whole = joined(seen, beyond, position, low)
    torch.testing.assert_close(whole.image, picture)
    torch.testing.assert_close(whole.scores, classes)
    assert whole.grid == tuple(first)


def test_at_the_side_one_result_fades_into_the_other() -> None:
    old = Look(torch.zeros(64, 16, 16), tuple(AxisGrid(50.0, 1.0, n) for n in (64, 16, 16)), torch.zeros(1, 64, 16, 16))
    grid = (AxisGrid(34.0, 1.0, 16), *old.grid[1:])
    whole = joined(old, Look(torch.zeros(48, 16, 16), grid, torch.ones(1, 48, 16, 16)), 0, True)
    line = whole.scores[0, :, 3, 5]
    assert torch.all(line[:16] == 1) and torch.all(line[32:] == 0)
    assert torch.all(torch.diff(line[15:33]) < 0)


@pytest.mark.parametrize("direction", [np.eye(3), SIGNED_PERMUTATIONS[29]], ids=["axial", "turned"])
def test_only_what_is_new_is_computed(direction: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    # the test's organs are small enough to be doubted, for which the box would be wide from the start
    monkeypatch.setattr("FlareSegmentLib.inference.stages.widened_box", lambda box, *_rest: box)
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
