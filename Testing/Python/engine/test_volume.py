"""Axis orders, matrices and bad geometry of `FlareSegmentLib.volume`."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.volume import Volume

SIGNED_PERMUTATIONS = [
    np.eye(3)[:, list(axes)] * signs for axes in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


def rotation(degrees: float, axis: tuple[float, float, float]) -> np.ndarray:
    """Rotation matrix by Rodrigues' formula."""
    x, y, z = np.asarray(axis, float) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS)
@pytest.mark.parametrize("tilt", [0.0, 12.0])
def test_lps_view_keeps_every_voxel_in_its_place(direction: np.ndarray, tilt: float) -> None:
    array = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    volume = Volume(array, (0.7, 1.1, 2.5), (10, -20, 30), rotation(tilt, (1, 2, 3)) @ direction, "scan")
    view, order = volume.to_lps_view()

    assert view.name == "scan"
    assert np.shares_memory(view.array, array)
    assert np.all(np.diag(view.direction) > np.cos(np.radians(tilt + 1)))
    assert view.tilt_degrees == pytest.approx(volume.tilt_degrees, abs=1e-5)
    stored = {int(v): volume.affine_lps @ [*index[::-1], 1] for index, v in np.ndenumerate(array)}
    for index, value in np.ndenumerate(view.array):
        np.testing.assert_allclose(view.affine_lps @ [*index[::-1], 1], stored[int(value)], atol=1e-9)
    undone = order.undo(view.array)
    assert np.array_equal(undone, array)
    assert undone.strides == array.strides and np.shares_memory(undone, array)


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::7])
def test_slicer_matrix_round_trip(direction: np.ndarray) -> None:
    volume = Volume(np.zeros((2, 3, 4)), (0.7, 1.1, 2.5), (10, -20, 30), rotation(25, (1, 0, 2)) @ direction, "scan")
    again = Volume.from_ijk_to_ras(volume.array, volume.affine_ras, "again")
    np.testing.assert_allclose(again.affine_lps, volume.affine_lps, atol=1e-12)
    np.testing.assert_allclose(again.spacing, volume.spacing)
    np.testing.assert_allclose(again.direction, volume.direction, atol=1e-12)
    assert again.same_grid(volume) and again.name == "again"


def test_ras_matrix_of_an_lps_volume_negates_x_and_y() -> None:
    volume = Volume(np.zeros((2, 3, 4)), (0.5, 0.6, 0.7), (1, 2, 3))
    np.testing.assert_array_equal(volume.affine_ras[:, 3], [-1, -2, 3, 1])
    np.testing.assert_array_equal(np.diag(volume.affine_ras), [-0.5, -0.6, 0.7, 1])


def test_tilt_is_the_largest_angle_to_the_nearest_axis() -> None:
    assert Volume(np.zeros((2, 2, 2))).tilt_degrees == 0
    assert Volume(np.zeros((2, 2, 2)), direction=rotation(20, (1, 0, 0))).tilt_degrees == pytest.approx(20)
    assert Volume(np.zeros((2, 2, 2)), direction=rotation(80, (0, 1, 0))).tilt_degrees == pytest.approx(10)
    sheared = np.eye(3)
    sheared[:, 2] = rotation(18, (1, 0, 0))[:, 2]
    tilted = Volume(np.zeros((2, 2, 2)), direction=sheared)
    assert tilted.tilt_degrees == pytest.approx(18) and tilted.is_sheared
    assert not Volume(np.zeros((2, 2, 2)), direction=rotation(18, (1, 0, 0))).is_sheared


def test_tilt_of_a_direction_with_few_digits() -> None:
    rounded = np.round(rotation(10, (0, 0, 1)), 2)  # columns of length 0.995
    tilt = Volume(np.zeros((2, 2, 2)), direction=rounded).tilt_degrees
    assert tilt == pytest.approx(np.degrees(np.arctan2(0.17, 0.98)))


def test_axes_count_as_sheared_from_a_thousandth_on() -> None:
    for off, sheared in ((0.0008, False), (0.0012, True)):
        direction = np.eye(3)
        direction[:, 1] = (0, np.sqrt(1 - off**2), off)  # its product with the z axis is `off`
        assert Volume(np.zeros((2, 2, 2)), direction=direction).is_sheared == sheared


def test_voxel_volume_does_not_depend_on_orientation() -> None:
    for direction in (np.eye(3), -np.eye(3), rotation(30, (1, 1, 0))):
        volume = Volume(np.zeros((2, 2, 2)), (2, 3, 4), direction=direction)
        assert volume.voxel_volume_ml == pytest.approx(0.024)


def test_same_grid_sees_shape_and_far_corner() -> None:
    volume = Volume(np.zeros((50, 2, 2)))
    assert not volume.same_grid(Volume(np.zeros((51, 2, 2))))
    assert volume.same_grid(Volume(np.zeros((50, 2, 2)), (1, 1, 1.0001)))
    assert not volume.same_grid(Volume(np.zeros((50, 2, 2)), (1, 1, 1.01)))


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize(("offset", "same"), [(0.009, True), (0.011, False)])
def test_same_grid_at_either_end_of_each_axis(axis: int, offset: float, same: bool) -> None:
    size = np.array([9, 5, 3])  # x, y, z
    array, unit = np.zeros(size[::-1]), np.eye(3)[axis]
    volume = Volume(array, (1, 1, 1))
    longer = np.ones(3) + unit * offset / (size - 1)  # the last voxel is off by `offset`, the first one in place
    shorter = np.ones(3) - unit * offset / (size - 1)
    assert volume.same_grid(Volume(array, longer)) == same
    assert volume.same_grid(Volume(array, shorter, unit * offset)) == same  # the first voxel off, the last in place
    assert volume.same_grid(Volume(array, volume.spacing, unit * offset)) == same


def test_same_grid_up_to_and_with_the_tolerance() -> None:
    volume, moved = Volume(np.zeros((2, 2, 2))), Volume(np.zeros((2, 2, 2)), origin=(0, 0.25, 0))
    assert volume.same_grid(moved, tolerance_mm=0.25)
    assert not volume.same_grid(moved, tolerance_mm=0.2)


def test_other_voxels_in_the_same_place() -> None:
    volume = Volume(np.zeros((2, 3, 4)), (0.7, 1.1, 2.5), (10, -20, 30), rotation(25, (1, 0, 2)), "scan")
    other = volume.with_array(np.ones((2, 3, 4), np.uint8))
    assert other.array.dtype == np.uint8 and other.array.all()
    np.testing.assert_array_equal(other.affine_lps, volume.affine_lps)
    assert other.name == "scan"
    with pytest.raises(ValueError, match=r"^expected shape \(2, 3, 4\), got \(2, 4, 3\)$"):
        volume.with_array(np.zeros((2, 4, 3)))


def test_a_part_lies_where_it_lay() -> None:
    array = np.arange(6 * 7 * 8).reshape(6, 7, 8)
    volume = Volume(array, (0.7, 1.1, 2.5), (10, -20, 30), rotation(25, (1, 0, 2)), "scan")
    part = volume.part((slice(2, 5), slice(1, 7), slice(4, 6)))
    assert part.array.shape == (3, 6, 2) and np.shares_memory(part.array, array) and part.name == "scan"
    for index in ((0, 0, 0), (2, 5, 1)):
        whole = tuple(i + start for i, start in zip(index, (2, 1, 4)))
        assert part.array[index] == array[whole]
        place = volume.affine_lps @ [*whole[::-1], 1]
        np.testing.assert_allclose(part.affine_lps @ [*index[::-1], 1], place)


def test_geometry_of_whole_numbers_becomes_floating_point() -> None:
    volume = Volume(np.zeros((2, 2, 2)), np.array([1, 2, 3]), [4, 5, 6], np.eye(3, dtype=int))
    assert volume.spacing == (1, 2, 3) and volume.origin == (4, 5, 6)
    assert {type(value) for value in volume.spacing + volume.origin} == {float}
    assert volume.direction.dtype == float


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"array": np.zeros((4, 4))}, "2 dimensions"),
        ({"array": np.zeros((2, 4, 4, 4))}, "4 dimensions"),
        ({"array": np.zeros((0, 4, 4))}, "no voxels"),
        ({"spacing": (1, 0, 1)}, "spacing"),
        ({"spacing": (1, -1, 1)}, "spacing"),
        ({"spacing": (1, float("nan"), 1)}, "spacing"),
        ({"origin": (0, float("inf"), 0)}, "origin"),
        ({"direction": [[1, 1, 0], [0, 0, 0], [0, 0, 1]]}, "singular"),
        ({"direction": np.full((3, 3), np.nan)}, "singular"),
        ({"direction": np.zeros((3, 3))}, "singular"),
    ],
)
def test_bad_geometry_is_one_clear_line(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Volume(**({"array": np.zeros((4, 4, 4)), "name": "scan.nii.gz"} | arguments))
    assert str(error.value).startswith("scan.nii.gz") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"array": np.zeros((5, 0, 4))}, "it has no voxels (4 x 0 x 5)."),
        ({"spacing": (0.5, 0, 2)}, "its voxel spacing (0.5 x 0 x 2 mm) is not positive; repair the header."),
        ({"spacing": (1, 1)}, "its voxel spacing (1 x 1 mm) is not positive; repair the header."),
        ({"origin": (1, 2)}, "its origin is not a point; repair the header."),
        (
            {"direction": np.eye(2)},
            "its axis directions are singular (two axes point the same way); repair the header.",
        ),
    ],
)
def test_bad_geometry_says_what_is_wrong(arguments: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        Volume(**({"array": np.zeros((4, 4, 4))} | arguments))
    assert str(error.value) == "The volume cannot be used: " + message


@pytest.mark.filterwarnings("error")
def test_a_singular_slicer_matrix_is_an_input_error() -> None:
    matrix = np.diag([1.0, 1.0, 0.0, 1.0])
    with pytest.raises(InputError, match="spacing"):
        Volume.from_ijk_to_ras(np.zeros((2, 2, 2)), matrix)
