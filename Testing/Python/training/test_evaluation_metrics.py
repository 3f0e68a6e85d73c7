"""Dice, NSD and HD95 against DeepMind's surface-distance, an independent implementation, on more than 200 pairs of
masks: random ones of every density and smoothness, and the edge cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from FlareSegmentLib.measures.metrics import dice, hd95, nsd

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")
surface_distance = pytest.importorskip("surface_distance", reason="surface-distance is not installed")

RANDOM_PAIRS = 200
SPACINGS = ((1.0, 1.0, 1.0), (0.8, 0.8, 5.0), (1.5, 0.7, 2.5), (3.0, 3.0, 1.0))
TOLERANCES = (0.0, 1.0, 2.0, 3.0, 5.0, 7.0)


def blob(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random mask: from salt and pepper to a smooth body, from nearly empty to nearly full."""
    noise = gaussian_filter(generator.normal(size=shape), generator.choice([0.0, 0.7, 1.5, 3.0]))
    return noise > np.quantile(noise, generator.uniform(0.05, 0.98))


def random_pairs() -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, float, float], float]]:
    generator = np.random.default_rng(2022)
    for number in range(RANDOM_PAIRS):
        shape = tuple(generator.integers(1, 16, 3))
        a = blob(generator, shape)
        kind = number % 4
        if kind == 0:
            b = blob(generator, shape)
        elif kind == 1:  # displaced
            b = np.roll(a, tuple(generator.integers(-2, 3, 3)), (0, 1, 2))
        elif kind == 2:  # a few voxels differ
            b = a ^ (generator.random(shape) < 0.02)
        else:  # one mask is part of the other
            b = a & blob(generator, shape)
        yield a, b, SPACINGS[number % len(SPACINGS)], TOLERANCES[number % len(TOLERANCES)]


def edge_cases() -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, float, float], float]]:
    shape = (7, 8, 9)
    empty, full = np.zeros(shape, bool), np.ones(shape, bool)
    corner, other_corner, inner = empty.copy(), empty.copy(), empty.copy()
    corner[0, 0, 0] = other_corner[-1, -1, -1] = True
    inner[2:5, 2:6, 3:7] = True
    hollow = inner.copy()
    hollow[3, 3:5, 4:6] = False
    line, sheet, checkers = empty.copy(), empty.copy(), np.indices(shape).sum(axis=0) % 2 == 0
    line[3, 4, :] = sheet[:, 4, :] = True
    two = corner | other_corner
    for spacing in SPACINGS:
        for tolerance in (0.0, 2.0):
            for a, b in (
                (full, full), (corner, corner), (corner, other_corner), (corner, two), (full, corner), (inner, hollow),
                (inner, full), (line, sheet), (checkers, ~checkers), (checkers, full), (inner, np.roll(inner, 1, 0)),
            ):  # fmt: skip
                yield a, b, spacing, tolerance


@pytest.mark.parametrize(("pairs", "fewest"), [(random_pairs, RANDOM_PAIRS - 20), (edge_cases, 80)])
def test_figures_are_those_of_surface_distance(pairs, fewest: int) -> None:
    compared = 0
    for a, b, spacing, tolerance in pairs():
        assert dice(a, b) == pytest.approx(
            surface_distance.compute_dice_coefficient(a, b) if a.any() or b.any() else 1.0, abs=1e-6
        )
        if not a.any() or not b.any():
            continue
        distances = surface_distance.compute_surface_distances(b, a, spacing[::-1])
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        assert nsd(a, b, spacing, tolerance) == pytest.approx(expected, abs=1e-3)
        expected = surface_distance.compute_robust_hausdorff(distances, 95)
        assert hd95(a, b, spacing) == pytest.approx(expected, abs=1e-3)
        compared += 1
    assert compared >= fewest


def test_one_empty_mask_is_as_surface_distance_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "Inf", np.inf, raising=False)  # surface-distance 0.1 was written for NumPy 1
    empty, some = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    some[1:3, 1:3, 1:3] = True
    for a, b in ((empty, some), (some, empty)):
        distances = surface_distance.compute_surface_distances(a, b, (1.0, 1.0, 1.0))
        assert surface_distance.compute_surface_dice_at_tolerance(distances, 3.0) == 0
        assert surface_distance.compute_robust_hausdorff(distances, 95) == math.inf
        assert (nsd(a, b, (1.0, 1.0, 1.0), 3.0), hd95(a, b, (1.0, 1.0, 1.0))) == (0, math.inf)
