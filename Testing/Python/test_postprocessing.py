"""One piece per organ, the right side of the body, and calm warnings."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from FlareSegmentLib.organs import ORGANS, organ_by_key
from FlareSegmentLib.postprocessing import components, correct_sides, describe, drop_doubtful, keep_plausible

RIGHT, LEFT = organ_by_key("right_kidney").label, organ_by_key("left_kidney").label
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-100, -50, 20)
VOXEL_ML = 0.064
SHAPE = (20, 20, 50)  # x from -100 to 96 mm


def block(labels: np.ndarray, label: int, x: int, size: int = 6, z: int = 5) -> None:
    labels[z : z + size, 5 : 5 + size, x : x + size] = label


@pytest.fixture(params=["cc3d", "scipy"])
def any_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "scipy":
        monkeypatch.setitem(sys.modules, "cc3d", None)
    else:
        pytest.importorskip("cc3d")


@pytest.mark.usefixtures("any_library")
def test_components_touch_by_faces() -> None:
    mask = np.zeros((4, 4, 4), bool)
    mask[0, 0, :2] = mask[1, 1, 2:] = mask[3, 3, 3] = True
    numbers, counts = components(mask)
    assert sorted(counts[1:]) == [1, 2, 2]
    assert numbers[0, 0, 0] == numbers[0, 0, 1] != numbers[1, 1, 2]


@pytest.mark.usefixtures("any_library")
def test_only_the_largest_piece_of_each_organ_stays() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, 1, 2)
    block(labels, 1, 20, size=5)
    block(labels, 4, 30)
    block(labels, 2, 40, size=2)
    expected = labels.copy()
    expected[:, :, 20:26] = 0
    expected[labels == 2] = 0  # 0.5 ml is no kidney
    keep_plausible(labels, ORGANS, VOXEL_ML)
    np.testing.assert_array_equal(labels, expected)


def sure_and_doubtful() -> np.ndarray:
    """Class 1 (liver) is sure, class 4 (spleen) is sure of a quarter, and of a small piece elsewhere."""
    probabilities = np.zeros((5, 12, 20, 30), np.float32)
    probabilities[1, 2:10, 2:10, 2:10] = 0.95
    probabilities[4, 2:10, 2:10, 14:22] = 0.7
    probabilities[4, 2:10, 2:10, 14:16] = 0.92
    probabilities[4, 2:4, 14:16, 26:28] = 0.99
    probabilities[0] = 1.0 - probabilities[1:].sum(axis=0)
    return probabilities


@pytest.mark.usefixtures("any_library")
def test_an_organ_that_the_network_doubts_is_left_out() -> None:
    probabilities = sure_and_doubtful()
    warnings = drop_doubtful(probabilities, ORGANS, 0.3, cell_ml=0.1)
    assert set(np.unique(probabilities.argmax(axis=0))) == {0, 1}
    assert len(warnings) == 1 and "52 ml" in warnings[0] and "spleen" in warnings[0] and "25 %" in warnings[0]


@pytest.mark.parametrize("minimum", [0.0, 0.24])
def test_a_lower_demand_keeps_it(minimum: float) -> None:
    probabilities = sure_and_doubtful()
    assert drop_doubtful(probabilities, ORGANS, minimum, cell_ml=0.1) == []
    np.testing.assert_array_equal(probabilities, sure_and_doubtful())


def test_little_doubtful_tissue_is_left_out_without_words() -> None:
    probabilities = sure_and_doubtful()
    assert drop_doubtful(probabilities, ORGANS, 0.3, cell_ml=0.003) == []
    assert set(np.unique(probabilities.argmax(axis=0))) == {0, 1}


def test_an_empty_array_has_no_pieces() -> None:
    labels = np.zeros((0, 0, 0), np.uint8)
    keep_plausible(labels, ORGANS, VOXEL_ML)
    assert describe(labels, ORGANS, VOXEL_ML) == ["None of the organs was found in this scan."]


def test_pieces_on_the_wrong_side_go_to_the_partner() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, 1, 2, z=14)
    block(labels, RIGHT, 5)
    block(labels, LEFT, 11)  # x about -44 mm: a part of the right kidney
    block(labels, LEFT, 40)
    expected = labels.copy()
    expected[:, :, 11:17][labels[:, :, 11:17] == LEFT] = RIGHT
    warnings = correct_sides(labels, ORGANS, AFFINE, midline_mm=0.0)
    np.testing.assert_array_equal(labels, expected)
    assert warnings == ["14 ml of left kidney lay on the other side and now count as right kidney."]


def test_swapped_kidneys_are_exchanged() -> None:
    for midline in (0.0, None):
        labels = np.zeros(SHAPE, np.uint8)
        block(labels, LEFT, 5)
        block(labels, RIGHT, 40)
        warnings = correct_sides(labels, ORGANS, AFFINE, midline)
        assert np.all(labels[labels > 0] == np.where(np.nonzero(labels)[2] < 25, RIGHT, LEFT))
        assert len(warnings) == (2 if midline == 0.0 else 1)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_sides_are_found_in_any_axis_order(order: tuple[int, int, int]) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, LEFT, 5)
    stored = labels.transpose(order)[:, ::-1]
    columns = [AFFINE[:, 2 - axis] for axis in order]
    affine = np.column_stack([*columns[::-1], AFFINE[:, 3]])
    affine[:, 3] += affine[:, 1] * (stored.shape[1] - 1)
    affine[:, 1] *= -1
    warnings = correct_sides(stored, ORGANS, affine, 0.0)
    assert set(np.unique(labels)) == {0, RIGHT}
    assert len(warnings) == 1


@pytest.mark.parametrize("midline", [0.0, None])
def test_what_is_in_place_or_in_doubt_stays(midline: float | None) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, RIGHT, 5)
    block(labels, LEFT, 40)
    block(labels, LEFT, 22, z=13)  # across the midline, as in a horseshoe kidney
    before = labels.copy()
    assert correct_sides(labels, ORGANS, AFFINE, midline) == []
    np.testing.assert_array_equal(labels, before)


def test_a_mirrored_patient_is_left_to_a_person() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, 1, 40, z=13)
    block(labels, LEFT, 5)
    block(labels, RIGHT, 40)
    before = labels.copy()
    warnings = correct_sides(labels, ORGANS, AFFINE, 0.0)
    np.testing.assert_array_equal(labels, before)
    assert len(warnings) == 1
    assert "orientation" in warnings[0]


def test_description() -> None:
    labels = np.zeros((40, 60, 60), np.uint8)
    labels[2:30, 2:30, 2:30] = 1  # 1405 ml
    labels[0:9, 40:49, 5:14] = RIGHT
    labels[20:22, 40:46, 40:46] = LEFT  # 4.6 ml
    warnings = describe(labels, ORGANS, VOXEL_ML)
    assert warnings[0] == "Not found in this scan: spleen."
    assert warnings[1].endswith("incomplete: right kidney.")
    assert warnings[2].startswith("Left kidney: 5 ml is unusual")
    assert len(warnings) == 3
