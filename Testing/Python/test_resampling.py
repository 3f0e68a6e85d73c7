"""Exact alignment of `FlareSegmentLib.resampling` in physical space, both ways."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass

from FlareSegmentLib.resampling import AxisGrid, averaging_weights, labels_on_array, resample

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


@pytest.mark.parametrize("step", [0.4, 1.0, 1.3, 2.0, 3.7, 8.1])
def test_weights_keep_constants_and_ramps(step: float) -> None:
    positions = 25 + np.random.default_rng(0).uniform(-8, 8, 50)
    weights = averaging_weights(60, positions, step)
    assert weights.min() > -1e-12
    np.testing.assert_allclose(weights.sum(axis=1), 1)
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


def test_reversed_grid_gives_the_flipped_result() -> None:
    array = np.random.default_rng(0).normal(size=(20, 21, 22))
    grid = tuple(AxisGrid.over(2, n - 3, 7) for n in array.shape)
    forward = resample(array, grid, 0).numpy()
    backward = resample(array, tuple(axis.reversed() for axis in grid), 0).numpy()
    np.testing.assert_allclose(backward, forward[::-1, ::-1, ::-1], atol=1e-6)


def test_slabs_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(size=(33, 20, 20))
    grid = grid_at(array.shape, (1, 1, 1), 2.4)
    whole = resample(array, grid, 0)
    monkeypatch.setattr("FlareSegmentLib.resampling._SLAB_VOXELS", 900)
    seen: list[float] = []
    np.testing.assert_allclose(resample(array, grid, 0, tick=seen.append), whole, atol=1e-5)
    assert seen == sorted(seen) and len(seen) == 17 and seen[-1] == 1.0


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


def test_no_class_but_the_background() -> None:
    labels, box = labels_on_array(
        torch.tensor([1.0, 0.0])[:, None, None, None].expand(2, 3, 3, 3), (AxisGrid(0, 1, 3),) * 3, (3, 3, 3)
    )
    assert labels.size == 0 and np.zeros((3, 3, 3))[box].size == 0
