"""Exact alignment of `FlareSegmentLib.inference.resampling` in physical space, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass

from FlareSegmentLib.inference.resampling import (
    AxisGrid,
    averaging_weights,
    highest_class,
    labels_on_array,
    on_grid,
    resample,
)

SPACINGS = [(2.5, 0.8, 0.8), (0.5, 3.0, 1.7), (5.0, 0.9, 1.0)]


def grid_at(
    shape: tuple[int, ...], spacing: tuple[float, ...], target_mm: float
) -> tuple[AxisGrid, AxisGrid, AxisGrid]:
    return tuple(AxisGrid.over(0, n, int(np.ceil(n * s / target_mm)), target_mm / s) for n, s in zip(shape, spacing))


def test_cells_over_an_extent() -> None:
    assert AxisGrid.over(0, 10, 5) == AxisGrid(0.5, 2.0, 5)
    assert AxisGrid.over(0, 10, 20) == AxisGrid(-0.25, 0.5, 20)
    assert AxisGrid.over(4, 10, 3, 1.0) == AxisGrid(4.0, 1.0, 3)
    backward = AxisGrid(1.0, 2.0, 4).reversed()
    np.testing.assert_allclose(backward.positions, [7, 5, 3, 1])


@pytest.mark.parametrize("step", [0.4, 1.0, 1.000001, 1.3, 2.0, 3.7, 8.1])
def test_weights_keep_constants_and_ramps(step: float) -> None:
    positions = 25 + np.random.default_rng(0).uniform(-8, 8, 50)
    weights = averaging_weights(60, positions, step)
    assert weights.min() > -1e-12
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-8)
    np.testing.assert_allclose(weights @ np.arange(60), positions, atol=1e-9)


def test_coarse_grids_do_not_alias() -> None:
    checkers = np.arange(200) % 2
    values = averaging_weights(200, AxisGrid.over(20, 180, 37).positions, 160 / 37) @ checkers
    np.testing.assert_allclose(values, 0.5, atol=0.02)


def test_fine_grids_interpolate_linearly() -> None:
    signal = np.random.default_rng(0).normal(size=30)
    positions = np.linspace(0, 29, 77)
    np.testing.assert_allclose(
        averaging_weights(30, positions, 0.38) @ signal, np.interp(positions, np.arange(30), signal), atol=1e-12
    )


@pytest.mark.parametrize("step", [1.0005, 1.2, 2.0, 3.7])
def test_coarse_grids_average_the_interpolant_with_a_triangle(step: float) -> None:
    signal = np.random.default_rng(0).normal(size=12)
    positions = np.linspace(-0.5, 11.5, 23)  # beyond the first and the last voxel, too
    half = np.sqrt(step**2 - 1)
    offsets = (np.arange(-2000, 2000) + 0.5) / 2000  # in units of the half width
    shares = (1 - np.abs(offsets)) / 2000
    interpolant = np.interp(positions[:, None] + half * offsets, np.arange(12), signal)
    np.testing.assert_allclose(averaging_weights(12, positions, step) @ signal, interpolant @ shares, atol=2e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, ">i2", np.int32, np.float64])
def test_a_ramp_in_space_stays_the_same_ramp(spacing: tuple[float, ...], dtype) -> None:
    shape = (40, 70, 60)
    slopes = (7.0, 3.0, 5.0)
    z, y, x = (slope * np.arange(n) for slope, n in zip(slopes, shape))
    array = (z[:, None, None] + y[:, None] + x + 100).astype(dtype)
    grid = grid_at(shape, spacing, 3.0)
    result = resample(array, grid, outside=-1).numpy()
    z, y, x = (slope * axis.positions for slope, axis in zip(slopes, grid))
    inner = tuple(slice(6, -6) if axis.count > 14 else slice(3, -3) for axis in grid)
    np.testing.assert_allclose(result[inner], (z[:, None, None] + y[:, None] + x + 100)[inner], rtol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_spheres_centroid_stays_in_place(spacing: tuple[float, ...]) -> None:
    shape = tuple(int(90 / s) for s in spacing)
    center = (47.3, 41.9, 44.2)
    axes = np.meshgrid(*(s * np.arange(n) for s, n in zip(spacing, shape)), indexing="ij", sparse=True)
    sphere = (sum((a - c) ** 2 for a, c in zip(axes, center)) < 20**2).astype(np.int16) * 1000
    before = np.array(center_of_mass(sphere)) * spacing
    for target in (1.3, 2.0, 4.0):
        grid = grid_at(shape, spacing, target)
        found = center_of_mass(resample(sphere, grid, outside=0).numpy())
        after = [s * (axis.first + axis.step * c) for s, axis, c in zip(spacing, grid, found)]
        assert np.abs(after - before).max() < 0.05 * target


def test_cells_outside_the_array_and_nothing_else_get_the_outside_value() -> None:
    array = np.full((10, 12, 14), 7, np.int16)
    grid = (AxisGrid(-3.0, 2.0, 9), AxisGrid(-0.5, 1.0, 12), AxisGrid(-4.0, 1.0, 24))
    result = resample(array, grid, outside=-1).numpy()
    expected = np.full((9, 12, 24), -1.0)
    expected[2:7, :, 4:18] = 7
    np.testing.assert_allclose(result, expected, rtol=1e-6)
    far = (AxisGrid(100.0, 1.0, 3),) * 3
    assert np.all(resample(array, far, outside=-1).numpy() == -1)


def test_a_cell_centered_on_the_outer_edge_lies_inside() -> None:
    grid = (AxisGrid(-0.5, 1.0, 5),) * 3
    np.testing.assert_array_equal(resample(np.full((4, 4, 4), 7.0), grid, outside=-1).numpy(), 7)


@pytest.mark.parametrize("step", [1.0, 2.5])
def test_voxels_that_no_cell_covers_are_not_read(step: float) -> None:
    shape = (24, 26, 28)
    grid = tuple(AxisGrid(11.0, step, 3) for _ in shape)
    reach = 0 if step == 1 else int(1 + np.sqrt(step**2 - 1))  # cells that stand on voxels need no other ones
    array = np.full(shape, np.nan)
    array[(slice(11 - reach, int(11 + 2 * step) + reach + 1),) * 3] = 5
    np.testing.assert_allclose(resample(array, grid, 0).numpy(), 5, rtol=1e-6)


def test_reversed_grid_gives_the_flipped_result() -> None:
    array = np.random.default_rng(0).normal(size=(20, 21, 22))
    grid = tuple(AxisGrid.over(2, n - 3, 7) for n in array.shape)
    forward = resample(array, grid, 0).numpy()
    backward = resample(array, tuple(axis.reversed() for axis in grid), 0).numpy()
    np.testing.assert_allclose(backward, forward[::-1, ::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize(("slab_voxels", "thickness"), [(1, 1), (1200, 2), (10000, 20)])
def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch, slab_voxels: int, thickness: int) -> None:
    array = np.random.default_rng(0).normal(size=(33, 20, 25))
    grid = grid_at(array.shape, (1, 1, 1), 2.4)
    whole = resample(array, grid, 0)
    monkeypatch.setattr("FlareSegmentLib.inference.resampling._SLAB_VOXELS", slab_voxels)
    seen: list[float] = []
    np.testing.assert_allclose(resample(array, grid, 0, tick=seen.append), whole, atol=1e-5)
    assert seen == pytest.approx([min(1.0, done / 33) for done in range(thickness, 33 + thickness, thickness)])


def test_the_result_lies_on_the_given_device_whatever_the_default_is() -> None:
    array, grid = np.random.default_rng(0).normal(size=(6, 7, 8)), (AxisGrid(0.5, 2.0, 3),) * 3
    expected = resample(array, grid, 0)
    with torch.device("meta"):
        result = resample(array, grid, 0)
        classes = highest_class(expected[:2])
    assert result.device.type == classes.device.type == "cpu"
    np.testing.assert_array_equal(result, expected)


def test_views_are_read_like_copies() -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (18, 20, 22)).astype(np.int16)
    view = array.transpose(2, 0, 1)[::-1, :, ::-1]
    grid = grid_at(view.shape, (1, 1, 1), 1.7)
    np.testing.assert_array_equal(resample(view, grid, 0), resample(view.copy(), grid, 0))


def reference_labels(scores: np.ndarray, grid: tuple[AxisGrid, ...], shape: tuple[int, ...]) -> np.ndarray:
    """The slow way: interpolate every class over the whole array, then the highest."""
    values, covered = scores.astype(float), np.ones(shape, bool)
    for number, (axis, size) in enumerate(zip(grid, shape)):
        place = (np.arange(size) - axis.first) / axis.step
        matrix = np.stack([np.interp(place, np.arange(axis.count), row) for row in np.eye(axis.count)], axis=1)
        values = np.moveaxis(np.moveaxis(values, number + 1, -1) @ matrix.T, -1, number + 1)
        outside = (place < -0.5 - 1e-9) | (place > axis.count - 0.5 + 1e-9)
        covered &= ~np.expand_dims(outside, [i for i in range(3) if i != number])
    return np.where(covered, values.argmax(axis=0), 0)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("old_mm", "new_mm"), [(3.0, 2.5), (2.5, 3.0), (2.5, 2.5)])
def test_scores_of_a_ramp_are_the_same_ramp_on_another_grid(old_mm: float, new_mm: float, turned: bool) -> None:
    old, new = (
        [AxisGrid.over(4, 4 + 64 * mm, count, mm) for count in counts]
        for mm, counts in ((old_mm, (24, 32, 40)), (new_mm, (22, 30, 38)))
    )
    if turned:
        old, new = ([grid[0].reversed(), *grid[1:]] for grid in (old, new))
    ramp_on = [sum(np.ix_(*(axis.positions for axis in grid))).astype(np.float32) for grid in (old, new)]
    scores = torch.from_numpy(np.stack([ramp_on[0], 7 - ramp_on[0]]))
    found = on_grid(scores, old, new)
    reached = np.ones(ramp_on[1].shape, bool)
    for position, (source, target) in enumerate(zip(old, new)):
        low, high = sorted((source.positions[0], source.positions[-1]))
        inside = (target.positions >= low) & (target.positions <= high)
        reached &= inside.reshape([-1 if position == axis else 1 for axis in range(3)])
    assert reached.mean() > 0.5
    np.testing.assert_allclose(found[0].numpy()[reached], ramp_on[1][reached], atol=old_mm if new_mm > old_mm else 1e-3)
    np.testing.assert_allclose(found.sum(dim=0).numpy()[reached], 7, atol=1e-3)


def test_scores_end_with_their_grid() -> None:
    source, target = [AxisGrid(0.0, 3.0, 8)] * 3, [AxisGrid(0.0, 2.0, 20)] * 3
    found = on_grid(torch.ones(2, 8, 8, 8), source, target)
    inside = target[0].positions <= 21 + 1.5
    np.testing.assert_array_equal(found[1, 0, 0].numpy(), inside)


@pytest.mark.parametrize("seed", range(6))
def test_labels_agree_with_interpolating_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(15, 40, 3))
    grid = tuple(AxisGrid.over(rng.uniform(-3, 6), n - rng.uniform(-3, 6), int(rng.integers(3, 30))) for n in shape)
    if seed % 2:
        grid = (grid[0].reversed(), grid[1], grid[2].reversed())
    scores = rng.normal(size=(4, *(axis.count for axis in grid))).astype(np.float32)
    scores[0] += rng.choice([0.0, 1.5, 3.0])
    labels, box = labels_on_array(torch.from_numpy(scores), grid, shape)
    full = np.zeros(shape, np.uint8)
    full[box] = labels
    expected = reference_labels(scores, grid, shape)
    assert np.mean(full != expected) < 1e-4


def test_labels_come_back_to_where_they_were() -> None:
    shape, spacing = (30, 80, 90), (4.0, 0.9, 0.8)
    axes = np.meshgrid(*(s * np.arange(n) for s, n in zip(spacing, shape)), indexing="ij", sparse=True)
    sphere = sum((a - c) ** 2 for a, c in zip(axes, (61, 33, 40))) < 22**2
    grid = grid_at(shape, spacing, 2.0)
    share = resample(sphere.astype(np.uint8), grid, 0)
    labels, box = labels_on_array(torch.stack([1 - share, share]), grid, shape)
    back = np.zeros(shape, bool)
    back[box] = labels == 1
    assert 2 * np.sum(back & sphere) / (back.sum() + sphere.sum()) > 0.97
    shift = (np.array(center_of_mass(back)) - center_of_mass(sphere)) * spacing
    assert np.abs(shift).max() < 0.1


def scores_of_blobs(shape: tuple[int, ...]) -> torch.Tensor:
    """Smooth scores of a background and two classes, each the highest in parts of the grid only."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    first = 0.5 - ((z + 0.5) ** 2 + (y - 0.4) ** 2 + (x + 0.3) ** 2)
    second = 0.4 - ((z - 0.5) ** 2 + (y + 0.4) ** 2 + (x - 0.5) ** 2)
    return torch.from_numpy(np.stack([np.zeros(shape), first, second]).astype(np.float32))


@pytest.mark.parametrize(("slab_voxels", "thickness"), [(1, 1), (10000, 2), (12500, 2), (1 << 22, None)])
def test_labels_do_not_show_the_slabs_either(
    monkeypatch: pytest.MonkeyPatch, slab_voxels: int, thickness: int | None
) -> None:
    shape = (28, 50, 40)
    scores = scores_of_blobs((11, 14, 9))
    grid = tuple(AxisGrid.over(start, n - 1, n_cells) for start, n, n_cells in zip((2, 6, 0), shape, (11, 14, 9)))
    monkeypatch.setattr("FlareSegmentLib.inference.resampling._SLAB_VOXELS", slab_voxels)
    seen: list[float] = []
    labels, box = labels_on_array(scores, grid, shape, tick=seen.append)
    expected = reference_labels(scores.numpy(), grid, shape)
    assert labels.dtype == np.uint8 and set(np.unique(expected)) == {0, 1, 2}
    np.testing.assert_array_equal(labels, expected[box])
    assert not np.any(np.delete(expected, np.r_[box[0]], axis=0))
    planes = labels.shape[0]
    if thickness:
        assert thickness == max(1, slab_voxels // (3 * labels.shape[1] * labels.shape[2]))
    ends = range(thickness, planes + thickness, thickness) if thickness else [planes]
    assert seen == pytest.approx([min(1.0, end / planes) for end in ends])


@pytest.mark.parametrize(
    ("first", "reached"),
    [
        (0.5, slice(9, 13)),  # the cell at 10.5 reaches the voxels between its neighbors at 8.5 and 12.5
        (0.0, slice(9, 12)),  # the cell at 10 those between 8 and 12, where its share is 0
    ],
)
@pytest.mark.parametrize("backward", [False, True])
def test_the_box_holds_the_voxels_that_a_cell_reaches_and_no_others(
    first: float, reached: slice, backward: bool
) -> None:
    axis = AxisGrid(first, 2.0, 10)
    scores = torch.zeros((2, 10, 10, 10))
    scores[0] = 1
    scores[1, 5, 5, 5] = 9
    if backward:
        axis, scores = axis.reversed(), scores.flip(1, 2, 3)
    labels, box = labels_on_array(scores, (axis,) * 3, (20, 20, 20))
    assert box == (reached,) * 3
    middle = tuple(n // 2 for n in labels.shape)
    assert labels[middle] == 1


def test_the_box_ends_with_the_grid_and_with_the_array() -> None:
    scores = torch.ones((2, 3, 3, 3))
    scores[0] = 0
    grid = (AxisGrid(-4.5, 4.0, 3), AxisGrid.over(2, 8, 3), AxisGrid.over(0, 12, 3))
    labels, box = labels_on_array(scores, grid, (10, 10, 10))
    # The cells' outer edges along z are -6.5 and 5.5, along y 1.5 and 7.5 (voxels 2 to 7), along x -0.5 and 11.5.
    assert box == (slice(0, 6), slice(2, 8), slice(0, 10))
    assert labels.all()


def test_scores_of_a_single_cell_and_of_any_floating_point_type() -> None:
    scores = torch.tensor([0.0, 1.0, 3.0, 2.0])[:, None, None, None]
    labels, box = labels_on_array(scores, (AxisGrid.over(0, 4, 1),) * 3, (4, 4, 4))
    assert box == (slice(0, 4),) * 3 and np.all(labels == 2)
    blobs, grid = scores_of_blobs((5, 6, 7)), tuple(AxisGrid.over(0, 12, n) for n in (5, 6, 7))
    expected, box = labels_on_array(blobs, grid, (12, 12, 12))
    labels, same_box = labels_on_array(blobs.double(), grid, (12, 12, 12))
    np.testing.assert_array_equal(labels, expected)
    assert same_box == box


@pytest.mark.parametrize("background", [1.0, 0.0])
def test_no_class_but_the_background(background: float) -> None:
    scores = torch.tensor([background, 0.0])[:, None, None, None].expand(2, 3, 3, 3)  # a tie is the background's
    labels, box = labels_on_array(scores, (AxisGrid(0, 1, 3),) * 3, (3, 3, 3))
    assert labels.shape == (0, 0, 0) and labels.dtype == np.uint8
    assert box == (slice(0, 0),) * 3


def test_the_highest_class_is_the_first_of_equals() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0, 5.0], [1.0, 3.0, 4.0, 5.0], [0.0, 3.0, 4.5, 6.0]])
    classes = highest_class(scores)
    assert classes.dtype == torch.uint8
    assert classes.tolist() == [0, 1, 2, 2]
