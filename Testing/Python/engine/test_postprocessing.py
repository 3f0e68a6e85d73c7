"""One piece per organ, the right side of the body, and calm warnings."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from FlareSegmentLib.inference.postprocessing import (
    components,
    correct_sides,
    describe,
    drop_doubtful,
    drop_unseen_slivers,
    find_boxes,
    keep_plausible,
)
from FlareSegmentLib.measures.organ_statistics import keep_only
from FlareSegmentLib.organs import ORGANS, organ_by_key

RIGHT, LEFT = organ_by_key("right_kidney").label, organ_by_key("left_kidney").label
AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-100, -50, 20)
VOXEL_ML = 0.064
SHAPE = (20, 20, 50)  # x from -100 to 96 mm
COARSE = np.diag([10.0, 10.0, 10.0, 1.0])  # voxels of 1 mL
COARSE[0, 3] = -250


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
    expected[labels == 2] = 0  # 0.5 mL is no kidney
    keep_plausible(labels, ORGANS, VOXEL_ML)
    np.testing.assert_array_equal(labels, expected)
    labels[labels == 1] = 0
    block(labels, 4, 20, size=5)
    keep_plausible(labels, ORGANS, VOXEL_ML)
    np.testing.assert_array_equal(labels, np.where(expected == 4, 4, 0))


@pytest.mark.parametrize(
    ("key", "voxel_ml", "stays"),
    [
        ("liver", 0.25, True),  # 2 mL of it are enough
        ("liver", 0.249, False),
        ("pancreas", 0.025, True),  # 0.2 mL of any other organ
        ("pancreas", 0.0249, False),
    ],
)
def test_the_least_that_an_organ_may_have(key: str, voxel_ml: float, stays: bool) -> None:
    organ = organ_by_key(key)
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, organ.label, 10, size=2)
    keep_plausible(labels, [organ], voxel_ml)
    assert np.count_nonzero(labels) == (8 if stays else 0)


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
    assert len(warnings) == 1 and "52 mL" in warnings[0] and "spleen" in warnings[0] and "25 %" in warnings[0]


def test_each_doubtful_organ_is_named() -> None:
    probabilities = np.zeros((5, 12, 20, 30), np.float32)  # no cell is the spleen's
    probabilities[1, 2:6, 2:6, 2:6] = 0.7
    probabilities[1, 2:5, 2:6, 2:6] = 0.95  # three quarters
    probabilities[3, 8:10, 8:10, 8:10] = 0.6
    probabilities[0] = 1.0 - probabilities[1:].sum(axis=0)
    warnings = drop_doubtful(probabilities, ORGANS, 0.8, cell_ml=0.25)
    assert warnings == [
        "16 mL that looked a little like liver were left out: the model is sure of 75 % of it only.",
        "2 mL that looked a little like left kidney were left out: the model is sure of 0 % of it only.",
    ]
    assert not probabilities.argmax(axis=0).any()


def test_a_probability_of_exactly_nine_tenths_is_sure() -> None:
    probabilities = np.zeros((2, 4, 4, 4), np.float32)
    probabilities[1] = 0.9
    assert drop_doubtful(probabilities, ORGANS[:1], 1.0, cell_ml=1.0) == []
    assert np.all(probabilities[1] == np.float32(0.9))


@pytest.mark.parametrize("minimum", [0.0, 0.24, 0.25])
def test_a_lower_demand_keeps_it(minimum: float) -> None:
    probabilities = sure_and_doubtful()
    assert drop_doubtful(probabilities, ORGANS, minimum, cell_ml=0.1) == []
    np.testing.assert_array_equal(probabilities, sure_and_doubtful())


def among_companions(sure: int) -> np.ndarray:
    """A doubtful spleen of 512 cells, and two kidneys and a liver, as many of which as are asked for are sure."""
    probabilities = np.zeros((5, 12, 20, 50), np.float32)
    for index, (label, first) in enumerate(((2, 0), (3, 10), (1, 20))):
        size = 10 if label == 1 else 8
        probabilities[label, :size, :size, first : first + size] = 0.95 if index < sure else 0.6
    probabilities[4, 2:10, 2:10, 40:48] = 0.6
    probabilities[4, 2:4, 2:10, 40:41] = 0.95
    probabilities[0] = 1.0 - probabilities[1:].sum(axis=0)
    return probabilities


@pytest.mark.parametrize(("cells", "seen", "kept"), [(99, (), False), (100, (), True), (99, (4,), True)])
def test_a_few_milliliters_that_the_first_stage_did_not_see_are_left_out(
    cells: int, seen: tuple[int, ...], kept: bool
) -> None:
    probabilities = np.zeros((5, 10, 10, 10), np.float32)
    probabilities[0] = 0.1
    probabilities[1, 5:] = 0.95
    probabilities[4].reshape(-1)[:cells] = 0.95
    warnings = drop_unseen_slivers(probabilities, ORGANS, {1, *seen}, cell_ml=0.1)
    assert (probabilities[4].max() > 0) == kept and probabilities[1].max() > 0
    assert warnings == ([] if kept else ["10 mL that looked a little like spleen were left out."])


def test_what_is_doubtful_stays_among_organs_that_are_not() -> None:
    probabilities = among_companions(2)
    # Kidneys and spleen of 51 mL are of usual size; a liver of 100 mL is not.
    warnings = drop_doubtful(probabilities, ORGANS, 0.3, cell_ml=0.1)
    assert set(np.unique(probabilities.argmax(axis=0))) == {0, 2, 3, 4}
    assert warnings == [
        "100 mL that looked a little like liver were left out: the model is sure of 0 % of it only.",
        "The model is sure of 3 % of the spleen only: look at the result.",
    ]


@pytest.mark.parametrize(("sure", "cell_ml"), [(1, 0.1), (2, 0.09), (3, 0.07)])
def test_few_or_small_companions_prove_nothing(sure: int, cell_ml: float) -> None:
    """One sure organ is too few; kidneys of 46 mL, or a spleen of 36 mL, are too small."""
    probabilities = among_companions(sure)
    warnings = drop_doubtful(probabilities, ORGANS, 0.3, cell_ml)
    assert not (probabilities.argmax(axis=0) == 4).any()
    assert f"{512 * cell_ml:.0f} mL that looked a little like spleen were left out" in warnings[-1]


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
    assert warnings == ["14 mL of left kidney lay on the other side and now count as right kidney."]


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


@pytest.mark.parametrize(("label", "partner", "sign"), [(RIGHT, LEFT, 1), (LEFT, RIGHT, -1)])
@pytest.mark.parametrize(("off_mm", "moves"), [(10, False), (15, False), (16, True)])
def test_a_side_is_believed_beyond_15_mm(label: int, partner: int, sign: int, off_mm: int, moves: bool) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, label, 31, size=2)  # its center between voxel 31 and 32, x = 65 mm
    warnings = correct_sides(labels, ORGANS, COARSE, midline_mm=65 - sign * off_mm)
    assert set(np.unique(labels)) == {0, partner if moves else label}
    assert len(warnings) == moves


def test_all_that_moves_is_counted() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, LEFT, 2, size=10)
    block(labels, LEFT, 14, size=2)
    block(labels, LEFT, 45, size=3)
    warnings = correct_sides(labels, ORGANS, COARSE, midline_mm=0.0)
    assert warnings == ["1008 mL of left kidney lay on the other side and now count as right kidney."]
    assert [np.count_nonzero(labels == label) for label in (RIGHT, LEFT)] == [1008, 27]


@pytest.mark.parametrize(("voxels", "warned"), [(1, False), (2, True)])
def test_two_milliliters_are_worth_a_warning(voxels: int, warned: bool) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    labels[3, 3, 40 : 40 + voxels] = RIGHT
    warnings = correct_sides(labels, ORGANS, COARSE, midline_mm=0.0)
    assert warnings == ["2 mL of right kidney lay on the other side and now count as left kidney."] * warned
    assert np.count_nonzero(labels == LEFT) == voxels


@pytest.mark.parametrize(("off_mm", "corrected"), [(-100, True), (0, True), (15, True), (16, False)])
def test_sides_are_corrected_unless_the_liver_lies_clearly_on_the_left(off_mm: int, corrected: bool) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, 1, 28, size=5, z=14)  # x = 50 mm
    block(labels, LEFT, 2)
    block(labels, RIGHT, 40)
    warnings = correct_sides(labels, ORGANS, COARSE, midline_mm=50 - off_mm)
    assert labels[5, 5, 2] == (RIGHT if corrected else LEFT)
    if not corrected:
        assert warnings == [
            "The liver lies on the patient's left: the scan's orientation may be wrong (or the organs are mirrored)."
        ]


@pytest.mark.parametrize(("apart_voxels", "exchanged"), [(2, False), (3, False), (4, True)])
def test_organs_30_mm_on_each_others_side_are_exchanged(apart_voxels: int, exchanged: bool) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, LEFT, 20, size=2)
    block(labels, RIGHT, 20 + apart_voxels, size=2, z=10)
    warnings = correct_sides(labels, ORGANS, COARSE, None)
    text = "Right kidney and left kidney were exchanged: each lay on the other's side."
    assert warnings == [text] * exchanged
    assert labels[5, 5, 20] == (RIGHT if exchanged else LEFT)
    assert labels[10, 5, 20 + apart_voxels] == (LEFT if exchanged else RIGHT)


def test_every_pair_is_looked_at() -> None:
    organs = [*ORGANS, organ_by_key("right_adrenal_gland"), organ_by_key("left_adrenal_gland")]
    for midline in (0.0, None):
        labels = np.zeros(SHAPE, np.uint8)
        block(labels, LEFT, 5, size=2)
        block(labels, RIGHT, 40, size=2)
        block(labels, organs[-1].label, 10, size=2)
        block(labels, organs[-2].label, 35, size=2)
        assert len(correct_sides(labels, organs, COARSE, midline)) == (4 if midline == 0.0 else 2)
        assert labels[5, 5, [5, 10, 35, 40]].tolist() == [RIGHT, organs[-2].label, organs[-1].label, LEFT]


@pytest.mark.parametrize("midline", [0.0, None])
def test_an_organ_without_its_partner(midline: float | None) -> None:
    labels = np.zeros(SHAPE, np.uint8)
    block(labels, RIGHT, 40)
    before = labels.copy()
    assert correct_sides(labels, ORGANS[:2], AFFINE, midline) == []  # a model that knows no left kidney
    np.testing.assert_array_equal(labels, before)
    labels[labels == RIGHT] = LEFT
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
    labels[2:30, 2:30, 2:30] = 1  # 1405 mL
    labels[0:9, 40:49, 5:14] = RIGHT
    labels[20:22, 40:46, 40:46] = LEFT  # 4.6 mL
    warnings = describe(labels, ORGANS, VOXEL_ML)
    assert warnings[0] == "Not found in this scan: spleen."
    assert warnings[1].endswith("incomplete: right kidney.")
    assert warnings[2].startswith("Left kidney: 5 mL is unusual")
    assert len(warnings) == 3


def test_of_two_organs_each_is_named_once() -> None:
    labels = np.zeros((40, 60, 60), np.uint8)
    labels[0:20, 2:30, 2:30] = 1
    labels[20:38, 40:60, 20:40] = 4
    assert describe(labels, ORGANS, VOXEL_ML, "region") == [
        "Not found in this region: right kidney, left kidney.",
        "Cut by the edge of the region, so the volume is incomplete: liver, spleen.",
    ]


@pytest.mark.parametrize(
    ("shape", "change", "usual"),
    [((5, 10, 10), 0, True), ((5, 10, 10), -1, False), ((10, 20, 20), 0, True), ((10, 20, 20), 1, False)],
)
def test_usual_volumes(shape: tuple[int, ...], change: int, usual: bool) -> None:
    labels = np.zeros((24, 24, 24), np.uint8)
    labels[tuple(slice(1, 1 + n) for n in shape)] = 1
    labels[shape[0] + (change > 0), 1, 1] = int(change >= 0)  # one voxel more, or one less
    text = f"Liver: {np.prod(shape) + change} mL is unusual (500 to 4000 mL are common); look at the result."
    assert describe(labels, ORGANS[:1], 1.0) == ([] if usual else [text])


@pytest.mark.parametrize(("side", "cut", "words"), [(16, True, "unusual"), (23, True, "people"), (23, False, "people")])
def test_more_than_people_have_is_said_of_cut_organs_too(side: int, cut: bool, words: str) -> None:
    labels = np.zeros((30, 30, 30), np.uint8)
    start = 0 if cut else 1
    labels[start : start + side, 1 : 1 + side, 1 : 1 + side] = 1
    told = [warning for warning in describe(labels, ORGANS[:1], 1.0) if warning.startswith("Liver")]
    assert len(told) == 1 and words in told[0] and f"{side**3} mL" in told[0]
    labels[labels > 0] = 0
    labels[0:3, 1:4, 1:4] = 1  # a small piece of a cut organ is nothing strange
    assert not any(warning.startswith("Liver") for warning in describe(labels, ORGANS[:1], 1.0))


@pytest.mark.parametrize("with_cc3d", [True, False])
def test_boxes_of_numbers(with_cc3d: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not with_cc3d:
        monkeypatch.setitem(sys.modules, "cc3d", None)
    numbers = np.zeros((6, 7, 8), np.uint8)
    numbers[1:3, 2, 4:8] = 2
    numbers[5, 6, 7] = 2
    numbers[0, 0, 0] = 4
    boxes = [None, (slice(1, 6), slice(2, 7), slice(4, 8)), None, (slice(0, 1),) * 3]
    assert find_boxes(numbers) == boxes
    assert find_boxes(numbers, 6)[:4] == boxes and find_boxes(numbers, 6)[4:6] == [None, None]
    assert find_boxes(np.zeros((3, 3, 3), np.uint8)) == []
    assert find_boxes(np.zeros((0, 3, 3), np.uint8), 2) == [None, None]
    found, counts = components(numbers == 2)
    assert sorted(counts[1:]) == [1, 8] and found.max() == 2


def test_of_other_organs_no_volume_is_unusual() -> None:
    labels = np.zeros((9, 9, 9), np.uint8)
    aorta = organ_by_key("aorta")
    labels[4, 4, 4] = aorta.label
    assert describe(labels, [aorta], 1.0) == []


def test_only_the_wanted_organs_of_the_wanted_region_stay() -> None:
    labels = np.zeros(SHAPE, np.uint8)
    for label in (1, RIGHT, LEFT, 255):
        block(labels, label, 1 + 10 * (label % 4))
    before = labels.copy()
    kept = keep_only(labels, [ORGANS[0], ORGANS[2]])
    assert kept.dtype == np.uint8
    np.testing.assert_array_equal(kept, np.where(np.isin(labels, (1, LEFT)), labels, 0))

    region = (slice(7, 9), slice(0, 20), slice(13, 40))
    part = keep_only(labels, [ORGANS[0], ORGANS[2]], region)
    assert part.dtype == np.uint8 and part.shape == labels.shape
    np.testing.assert_array_equal(part[region], kept[region])
    assert np.count_nonzero(part) == np.count_nonzero(kept[region]) > 0
    np.testing.assert_array_equal(labels, before)
