"""Dice, NSD and HD95 against shapes with known surfaces and against a slow, independent implementation."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from FlareSegmentLib.measures.metrics import dice, evaluate, hd95, nsd
from FlareSegmentLib.organs import ORGANS, organ_by_key


def block(shape: tuple[int, ...], start: tuple[int, ...], stop: tuple[int, ...]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop))] = True
    return mask


def slow_elements(mask: np.ndarray, spacing: tuple[float, float, float]) -> list[tuple[np.ndarray, float]]:
    """Surface elements of Nikolov et al., for masks of boxes only: every neighborhood is a face, an edge or a corner,
    and its polygon a rectangle, a rectangle across the edge, or a triangle."""
    x, y, z = spacing
    steps = np.array([z, y, x])
    padded = np.pad(mask, 1)
    elements = []
    for index in np.ndindex(*(n - 1 for n in padded.shape)):
        cube = padded[tuple(slice(i, i + 2) for i in index)]
        if cube.sum() in (0, 8):
            continue
        varying = [not np.array_equal(np.take(cube, 0, axis), np.take(cube, 1, axis)) for axis in range(3)]
        halves = [step / 2 for step, varies in zip(steps, varying) if varies]
        across = [step for step, varies in zip(steps, varying) if not varies]
        assert cube.sum() == 2 ** len(across)
        if len(halves) == 1:
            area = math.prod(across)
        elif len(halves) == 2:
            area = math.hypot(*halves) * across[0]
        else:
            a, b, c = halves
            area = math.sqrt((a * b) ** 2 + (b * c) ** 2 + (a * c) ** 2) / 2
        elements.append((np.array(index) * steps, area))
    return elements


def slow_surface_measures(
    a: np.ndarray, b: np.ndarray, spacing: tuple[float, float, float], tolerance: float
) -> tuple[float, float]:
    surfaces = [slow_elements(mask, spacing) for mask in (a, b)]
    near = total = 0.0
    percentiles = []
    for own, other in (surfaces, surfaces[::-1]):
        distances = sorted((min(float(np.linalg.norm(p - q)) for q, _ in other), area) for p, area in own)
        whole = sum(area for _, area in distances)
        total += whole
        near += sum(area for distance, area in distances if distance <= tolerance)
        reached = 0.0
        for distance, area in distances:
            reached += area
            if reached / whole >= 0.95 - 1e-12:
                percentiles.append(distance)
                break
    return near / total, max(percentiles)


BOXES = st.tuples(*[st.tuples(st.integers(0, 5), st.integers(1, 3)) for _ in range(3)])


@settings(max_examples=30, deadline=None)
@given(BOXES, BOXES, st.tuples(*[st.sampled_from([0.5, 0.8, 1.0, 2.5])] * 3), st.sampled_from([0.6, 1.0, 2.5, 3.0]))
def test_boxes_agree_with_the_slow_implementation(first, second, spacing, tolerance) -> None:
    a, b = (block((8, 8, 8), [s for s, _ in box], [s + n for s, n in box]) for box in (first, second))
    expected_nsd, expected_hd95 = slow_surface_measures(a, b, spacing, tolerance)
    assert nsd(a, b, spacing, tolerance) == pytest.approx(expected_nsd, abs=1e-9)
    assert hd95(a, b, spacing) == pytest.approx(expected_hd95, abs=1e-9)
    voxels_a, voxels_b = ({tuple(i) for i in np.argwhere(m)} for m in (a, b))
    assert dice(a, b) == pytest.approx(2 * len(voxels_a & voxels_b) / (len(voxels_a) + len(voxels_b)))


def test_areas_of_elements_that_no_box_has() -> None:
    from FlareSegmentLib.measures.metrics import _CORNERS, _element_areas

    def area(*corners: tuple[int, int, int]) -> float:
        return float(_element_areas((1.0, 1.0, 1.0))[sum(1 << _CORNERS.index(corner) for corner in corners)])

    corner = math.sqrt(3) / 8
    assert area((0, 0, 0)) == pytest.approx(corner)
    assert area((0, 0, 0), (0, 1, 1)) == pytest.approx(2 * corner)
    assert area((0, 0, 0), (1, 1, 1)) == pytest.approx(2 * corner)
    # three of a face: half a face, a triangle of twice the corner's area, one of the corner's area
    assert area((0, 0, 0), (0, 0, 1), (0, 1, 0)) == pytest.approx(0.5 + 3 * corner)
    # a corner with its three neighbors: a regular hexagon with edges of sqrt(1/2)
    assert area((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)) == pytest.approx(6 * math.sqrt(3) / 4 * 0.5)


def test_the_two_sides_of_a_surface_have_one_area() -> None:
    from FlareSegmentLib.measures.metrics import _element_areas

    areas = _element_areas((5.0, 0.8, 0.7))
    np.testing.assert_allclose(areas, areas[::-1])
    assert areas[0] == 0 and np.all(areas[1:255] > 0)


def test_shifted_block_by_hand() -> None:
    a = block((30, 30, 30), (5, 5, 5), (25, 25, 25))
    shifted = np.roll(a, 2, axis=0)
    assert dice(a, shifted) == pytest.approx(0.9)
    assert hd95(a, shifted, (1, 1, 3)) == pytest.approx(6)
    assert nsd(a, shifted, (1, 1, 3), 6.0) == 1.0
    # With no tolerance, the walls along z share 18 of 19 layers, and one rim lies on the other's wall.
    walls = (4 * 19 + 4 * math.hypot(0.5, 0.5)) * 3
    rim = 4 * 19 * math.hypot(1.5, 0.5) + 4 * math.sqrt(0.25**2 + 0.75**2 + 0.75**2) / 2
    whole = 19 * walls + 2 * rim + 2 * 19 * 19
    assert nsd(a, shifted, (1, 1, 3), 0.0) == pytest.approx((18 * walls + rim) / whole)


def test_spacing_is_x_y_z() -> None:
    a = block((10, 10, 10), (3, 3, 3), (6, 6, 6))
    for axis, expected in ((0, 5.0), (1, 2.0), (2, 1.0)):
        assert hd95(a, np.roll(a, 1, axis), (1.0, 2.0, 5.0)) == pytest.approx(expected)


def test_a_distance_of_exactly_the_tolerance_counts() -> None:
    a = block((40, 8, 8), (31, 0, 0), (40, 8, 8))
    for step in (0.1, 0.7, 1.1):
        assert nsd(a, block(a.shape, (28, 0, 0), (37, 8, 8)), (step, step, step), 3 * step + 1e-15) == 1.0


def test_surface_at_the_edge_of_the_scan_counts() -> None:
    full = np.ones((4, 4, 4), bool)
    assert nsd(full, full, (1, 1, 1), 0.0) == 1.0
    assert hd95(full, block((4, 4, 4), (0, 0, 0), (2, 4, 4)), (1, 1, 1)) == pytest.approx(2.0)


def test_empty_masks() -> None:
    empty, full = np.zeros((5, 5, 5), bool), block((5, 5, 5), (1, 1, 1), (3, 3, 3))
    assert (dice(empty, empty), nsd(empty, empty, (1, 1, 1), 3), hd95(empty, empty, (1, 1, 1))) == (1, 1, 0)
    for a, b in ((empty, full), (full, empty)):
        assert (dice(a, b), nsd(a, b, (1, 1, 1), 3), hd95(a, b, (1, 1, 1))) == (0, 0, math.inf)


def test_evaluate_uses_each_organs_tolerance_and_is_json() -> None:
    reference = np.zeros((20, 20, 20), np.uint8)
    for organ in ORGANS:
        reference[2:8, 2:8, 4 * organ.label : 4 * organ.label + 3] = organ.label
    labels = np.roll(reference, 1, axis=0)
    labels[labels == organ_by_key("spleen").label] = 0
    result = evaluate(labels, reference, (1, 1, 4))
    assert set(result) == {organ.key for organ in ORGANS}
    assert result["liver"]["nsd"] == 1.0 and result["right_kidney"]["nsd"] < 1.0  # 4 mm against 5 and 3 mm
    assert result["liver"]["hd95_mm"] == pytest.approx(4.0)
    assert result["spleen"] == {"dice": 0.0, "nsd": 0.0, "hd95_mm": None}
    json.dumps(result, allow_nan=False)
    perfect = evaluate(reference, reference, (1, 1, 4))
    assert all(measures == {"dice": 1.0, "nsd": 1.0, "hd95_mm": 0.0} for measures in perfect.values())


@pytest.mark.parametrize("swapped", [False, True])
def test_evaluate_gives_what_the_measures_give_for_each_organ(swapped: bool) -> None:
    shape, spacing = (16, 18, 40), (0.8, 1.5, 3.0)
    labels, reference = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    labels[3:9, 4:8, 5:9] = 1
    reference[3:9, 4:10, 5:9] = 1
    reference[3, 4, 2:5] = 1  # a spike on less than 5 % of the surface
    labels[2:6, 2:7, 20:27] = 3
    reference[4:10, 7:12, 22:31] = 3
    labels[10:13, 10:13, 36:39] = 4
    if swapped:
        labels, reference = reference, labels
    result = evaluate(labels, reference, spacing)
    for organ in ORGANS:
        a, b = labels == organ.label, reference == organ.label
        distance = hd95(a, b, spacing)
        assert result[organ.key] == {
            "dice": pytest.approx(dice(a, b)),
            "nsd": pytest.approx(nsd(a, b, spacing, organ.nsd_tolerance_mm)),
            "hd95_mm": pytest.approx(distance) if math.isfinite(distance) else None,
        }
    assert result["liver"]["hd95_mm"] == pytest.approx(3.0)  # two rows of 1.5 mm


def test_less_than_a_twentieth_of_the_surface_does_not_count() -> None:
    whole = block((30, 30, 60), (5, 5, 5), (25, 25, 25))
    spike = whole.copy()
    spike[15, 15, 25:40] = True
    assert hd95(whole, spike, (1, 1, 1)) == hd95(spike, whole, (1, 1, 1)) == 0
    assert nsd(whole, spike, (1, 1, 1), 1.0) < 1
    voxel = block((3, 3, 9), (1, 1, 1), (2, 2, 2))
    longer = block((3, 3, 9), (1, 1, 1), (2, 2, 5))
    # The four corners at its end, 3 mm away, have 8 % of its surface: 8 corners and 3 times 4 edges.
    assert hd95(voxel, longer, (1, 1, 1)) == 3


def test_different_shapes_are_refused() -> None:
    a, b = np.zeros((2, 2, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)
    for call in (dice, lambda x, y: evaluate(x, y, (1, 1, 1)), lambda x, y: nsd(x, y, (1, 1, 1), 1)):
        with pytest.raises(ValueError, match="shapes differ"):
            call(a, b)
