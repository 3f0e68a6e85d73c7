"""Where the pipeline puts a network's grid, the organs' box and the midline, and how it straightens axes.

The volumes are stored in many axis orders; what is expected is worked out in the order of their LPS view.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_volume import SIGNED_PERMUTATIONS, rotation

from FlareSegmentLib.inference.grids import Look, stage_grid, stored_grid
from FlareSegmentLib.inference.localization import body_midline, find_box, organ_pieces, widened_box
from FlareSegmentLib.inference.oblique_volumes import labels_on_grid_of, straighten
from FlareSegmentLib.inference.resampling import AxisGrid, resample
from FlareSegmentLib.model.description import Stage
from FlareSegmentLib.model.intensity import AIR, Intensity
from FlareSegmentLib.organs import ORGANS, organ_by_key
from FlareSegmentLib.volume import Volume

SHAPE = (40, 60, 80)  # of the view: z, y, x
SPACING = (2.0, 3.0, 5.0)  # of the view: x, y, z
ORDERS = SIGNED_PERMUTATIONS[::5]


def stored_as(
    direction: np.ndarray, view: np.ndarray, spacing: tuple[float, ...] = SPACING, tilt: np.ndarray | None = None
) -> Volume:
    """A volume in the axis order of a signed permutation, whose LPS view is the array `view` with that spacing."""
    order = Volume(np.zeros((2, 2, 2)), direction=direction).axis_order()
    place = {axis: position for position, axis in enumerate(order.permutation)}
    stored = tuple(spacing[2 - place[2 - axis]] for axis in range(3))
    return Volume(order.undo(view), stored, (10, 20, 30), (np.eye(3) if tilt is None else tilt) @ direction, "scan")


def scores_of(classes: np.ndarray) -> torch.Tensor:
    """Scores whose highest class is the given one, for five classes."""
    return torch.nn.functional.one_hot(torch.from_numpy(classes).long(), 5).permute(3, 0, 1, 2).float()


def found_box(scores: torch.Tensor, grid: tuple[AxisGrid, ...], view: Volume, margin_mm: float):
    """The box around the organs that scores tell of."""
    look = Look(torch.zeros(scores.shape[1:]), grid, scores)
    return find_box(organ_pieces(look, view), grid, view, margin_mm)


def test_the_grid_of_a_flipped_axis() -> None:
    cells = AxisGrid(2.0, 1.5, 4)  # voxels 2, 3.5, 5, 6.5 of 20
    np.testing.assert_array_equal(cells.turned(20).positions, [17, 15.5, 14, 12.5])
    assert cells.turned(20).turned(20) == cells


@pytest.mark.parametrize("direction", ORDERS)
def test_a_grid_of_the_view_in_the_stored_axes(direction: np.ndarray) -> None:
    """What is resampled in the stored axes is, seen in the view's, what would be resampled there."""
    rng = np.random.default_rng(0)
    volume = stored_as(direction, rng.normal(size=SHAPE))
    view, order = volume.to_lps_view()
    cells = AxisGrid(1.0, 2.0, 8), AxisGrid(0.5, 3.0, 9), AxisGrid(2.0, 1.5, 10)
    stored = stored_grid(cells, order, volume.array.shape)
    for axis, flip in zip(order.permutation, order.flips):
        assert (stored[axis].step < 0) == flip, axis
    found = resample(volume.array, stored, 0.0).permute(order.permutation)
    torch.testing.assert_close(found, resample(view.array, cells, 0.0))


class TestFindBox:
    """Cells of 2 voxels from the edge of voxel 4 on; their size is x 4, y 6, z 10 mm, 0.24 ml."""

    def find(self, classes: np.ndarray, direction: np.ndarray = ORDERS[0], margin_mm: float = 0.0):
        view, _ = stored_as(direction, np.zeros(SHAPE)).to_lps_view()
        grid = tuple(AxisGrid.over(4, 0, n, 2.0) for n in classes.shape)
        return found_box(scores_of(classes), grid, view, margin_mm)

    @pytest.mark.parametrize("direction", ORDERS)
    def test_box_of_all_organs_with_a_margin(self, direction: np.ndarray) -> None:
        classes = np.zeros((16, 26, 36), np.uint8)
        classes[3:6, 5:9, 8:12] = 1
        classes[4:8, 9:12, 20:28] = 4
        expected = ((10, 20), (14, 28), (20, 60))
        assert self.find(classes, direction) == expected
        margins = (12 / 5, 12 / 3, 12 / 2)
        wider = [(start - margin, stop + margin) for (start, stop), margin in zip(expected, margins)]
        np.testing.assert_allclose(self.find(classes, direction, 12.0), wider)
        assert self.find(classes, direction, 150.0) == ((0, 40), (0, 60), (0, 80))

    def test_nothing_found(self) -> None:
        assert self.find(np.zeros((4, 4, 4), np.uint8)) is None

    @pytest.mark.parametrize(("cells", "found"), [(20, False), (21, True)])  # 4.8 and 5.04 ml
    def test_little_is_nothing(self, cells: int, found: bool) -> None:
        classes = np.zeros((4, 4, 30), np.uint8)
        classes[1, 2, 3 : 3 + cells] = 2
        assert (self.find(classes) is not None) == found
        classes[3, 0, 0] = 1
        if found:
            assert self.find(classes) == ((6, 8), (8, 10), (10, 10 + 2 * cells))

    def test_exactly_five_milliliters_are_enough(self) -> None:
        classes = np.zeros((3, 3, 7), np.uint8)
        classes[1, 1, 1:6] = 1
        volume = Volume(np.zeros((3, 3, 7)), (10, 10, 10))
        grid = tuple(AxisGrid(0.0, 1.0, n) for n in classes.shape)
        assert found_box(scores_of(classes), grid, volume, 0.0) == ((1, 2), (1, 2), (1, 6))

    @pytest.mark.parametrize(
        ("axis", "away", "within"),
        [(0, 30, True), (0, 31, False), (1, 50, True), (1, 51, False), (2, 75, True), (2, 76, False)],
    )
    def test_what_lies_beyond_300_mm_of_the_largest_organ_is_a_mistake(
        self, axis: int, away: int, within: bool
    ) -> None:
        shape = [6, 6, 6]
        shape[axis] += away
        classes = np.zeros(shape, np.uint8)
        classes[0:4, 0:4, 0:4] = 1  # its center at cell edge 2
        far = [slice(0, 3)] * 3
        far[axis] = slice(away, away + 4)
        classes[tuple(far)] = 2
        volume = Volume(np.zeros(shape), (4, 6, 10))
        grid = tuple(AxisGrid(0.0, 1.0, n) for n in shape)
        if within:  # the other axes' offset of half a cell would add to the distance
            classes[tuple(slice(0, 4) if index != axis else far[axis] for index in range(3))] = 2
        box = found_box(scores_of(classes), grid, volume, 0.0)
        assert box is not None and box[axis] == (0, away + 4 if within else 4)

    def test_each_organ_counts_with_its_largest_piece_within_reach(self) -> None:
        classes = np.zeros((60, 20, 20), np.uint8)
        classes[0:10, 0:10, 0:10] = 1
        classes[11:13, 2:8, 2:8] = 2  # the largest kidney within reach
        classes[11:14, 16:20, 16:20] = 2  # a smaller one
        classes[50:58, 5:15, 5:15] = 2  # a larger one, but out of reach
        volume = Volume(np.zeros(classes.shape), (10, 10, 10))
        grid = tuple(AxisGrid(0.0, 1.0, n) for n in classes.shape)
        box = found_box(scores_of(classes), grid, volume, 0.0)
        assert box == ((0, 13), (0, 10), (0, 10))


class TestWidenedBox:
    """A body of 40 x 30 cells of 5 mm within air, in a scan of 60 slices; a liver, two kidneys and a spleen in it."""

    ORGANS = tuple(organ_by_key(key) for key in ("liver", "right_kidney", "left_kidney", "spleen"))

    def widened(self, *left_out: int, slices: int = 60, direction: np.ndarray = ORDERS[0], **changed: tuple):
        """The box of the organs, and what becomes of it."""
        image = np.full((slices, 36, 50), -1.0, np.float32)
        image[:, 3:33, 5:45] = 0.0
        classes = np.zeros(image.shape, np.uint8)
        middle = slices // 2
        places = {
            1: (slice(middle, middle + 18), slice(8, 26), slice(8, 26)),
            2: (slice(middle - 8, middle + 4), slice(20, 28), slice(12, 18)),
            3: (slice(middle - 8, middle + 4), slice(20, 28), slice(32, 38)),
            4: (slice(middle + 2, middle + 12), slice(16, 26), slice(36, 42)),
        }
        for label, place in places.items():
            if label not in left_out:
                classes[changed.get(f"organ{label}", place)] = label
        view, _ = stored_as(direction, np.zeros(image.shape), spacing=(5.0, 5.0, 5.0)).to_lps_view()
        grid = tuple(AxisGrid(0.0, 1.0, n) for n in image.shape)
        look = Look(torch.from_numpy(image), grid, 20.0 * scores_of(classes))
        pieces = organ_pieces(look, view)
        box = find_box(pieces, grid, view, 0.0)
        assert box is not None
        return box, widened_box(box, look, pieces, view, self.ORGANS)

    def test_where_every_organ_was_found_surely_the_box_stays(self) -> None:
        box, wider = self.widened()
        assert wider == box

    @pytest.mark.parametrize("direction", ORDERS)
    def test_where_an_organ_is_missing_all_of_the_body_is_looked_at_there(self, direction: np.ndarray) -> None:
        box, wider = self.widened(3, direction=direction)
        assert wider == ((box[0][0] - 12, min(60.0, box[0][1] + 12)), (3.0, 33.0), (5.0, 45.0))

    def test_a_small_organ_counts_as_missing_unless_the_scan_cuts_it(self) -> None:
        sliver = (slice(22, 25), slice(20, 26), slice(32, 38))  # 13.5 ml
        box, wider = self.widened(organ3=sliver)
        assert wider[1:] == ((3.0, 33.0), (5.0, 45.0)) != box[1:]
        at_the_end = (slice(0, 3), slice(20, 26), slice(32, 38))
        box, wider = self.widened(organ3=at_the_end)
        assert wider == box

    def test_of_a_scan_of_little_height_all_is_looked_at(self) -> None:
        _, wider = self.widened(slices=24)
        assert wider == ((0.0, 24.0), (3.0, 33.0), (5.0, 45.0))


class TestMidline:
    """A body in columns of the grid, whose cells are 2 voxels wide and begin 1 cell before the scan."""

    SHAPE = (6, 5, 20)  # of the grid; columns 0 and 19 lie outside of the scan's 36 voxels
    CELLS = (AxisGrid.over(0, 6, 6), AxisGrid.over(0, 5, 5), AxisGrid.over(-2, 0, 20, 2.0))

    def body(self, *columns: tuple[int, int]) -> np.ndarray:
        """Air but for (column, rows of body in it), at the heights 1 to 4."""
        image = np.full(self.SHAPE, AIR, np.float32)
        for column, rows in columns:
            image[1:5, :rows, column] = 0.0
        return image

    def midline(
        self, image: np.ndarray, heights: slice = slice(1, 5), direction: np.ndarray = ORDERS[0], tilt=None
    ) -> tuple[float | None, Volume]:
        classes = np.zeros(self.SHAPE, np.uint8)
        classes[heights, 2, 9] = 1
        view, _ = stored_as(direction, np.zeros((6, 5, 36)), tilt=tilt).to_lps_view()
        return body_midline(Look(torch.from_numpy(image), self.CELLS, scores_of(classes)), view), view

    @pytest.mark.parametrize("direction", ORDERS)
    @pytest.mark.parametrize("degrees", [0, 10])
    def test_it_halves_the_body(self, direction: np.ndarray, degrees: float) -> None:
        columns = [(n, 3) for n in range(4, 10)]  # from the edge of voxel 6 to that of voxel 18: halved at 12
        found, view = self.midline(self.body(*columns), direction=direction, tilt=rotation(degrees, (0, 1, 2)))
        middle = [(n - 1) / 2 for n in view.array.shape[::-1]]
        center = view.affine_lps @ [*middle, 1]
        assert found == pytest.approx(center[0] + view.direction[0, 0] * 2.0 * (11.5 - middle[0]))

    def test_it_halves_the_mass_not_the_width(self) -> None:
        image = self.body((4, 2), (5, 5), (6, 1))  # half of 8: 2 of the 5 rows of column 5, whose voxels are 8 and 9
        found, view = self.midline(image)
        assert found == pytest.approx(view.origin[0] + 2.0 * (7.5 + 2 * 2 / 5))

    def test_what_is_little_more_than_air_is_no_body(self) -> None:
        image = self.body((4, 3), (5, 3))
        image[:, :, 6:12] = AIR + 0.049
        found, view = self.midline(image)
        assert found == pytest.approx(view.origin[0] + 2.0 * 7.5)
        image[1:5, :, 6:12] = AIR + 0.051  # 6 columns of 5 rows, after 6 rows: 18 of 36 lie before 2.4 of them
        found, view = self.midline(image)
        assert found == pytest.approx(view.origin[0] + 2.0 * (9.5 + 2 * 12 / 5))

    def test_only_the_heights_of_the_organs_count(self) -> None:
        image = self.body((4, 3), (5, 3))
        image[0] = image[5] = 0.5
        found, view = self.midline(image)
        assert found == pytest.approx(view.origin[0] + 2.0 * 7.5)
        for height, others in ((4, slice(1, 4)), (1, slice(2, 5))):
            wider = image.copy()
            wider[height, :, 6] = 0.5  # at the other heights only the columns 4 and 5
            assert self.midline(wider, others)[0] == pytest.approx(found)
            assert self.midline(wider)[0] > found + 0.1

    def test_what_lies_beyond_the_scan_is_no_body(self) -> None:
        image = self.body((4, 3), (5, 3))
        image[:, :, [0, 19]] = 0.5
        found, view = self.midline(image)
        assert found == pytest.approx(view.origin[0] + 2.0 * 7.5)

    def test_without_organs_or_without_a_body_there_is_none(self) -> None:
        assert self.midline(self.body((4, 3)), slice(0, 0))[0] is None
        assert self.midline(self.body())[0] is None

    @pytest.mark.parametrize(
        ("left", "right", "known"),
        [
            (0, 0, True),
            (5, 5, True),  # a broad patient touches both sides at half of the heights
            (6, 6, False),
            (0, 2, True),
            (0, 3, False),  # cut on one side
            (3, 0, False),
            (5, 8, False),
        ],
    )
    def test_it_is_not_known_where_the_scan_cuts_the_body(self, left: int, right: int, known: bool) -> None:
        image = np.full((10, 5, 8), AIR, np.float32)
        image[:, 1:4, 2:6] = 0
        image[:left, 2, 0] = image[:right, 4, 7] = 0
        classes = np.zeros(image.shape, np.uint8)
        classes[:, 2, 4] = 1
        grid = tuple(AxisGrid(0.0, 1.0, n) for n in image.shape)
        found = body_midline(Look(torch.from_numpy(image), grid, scores_of(classes)), Volume(np.zeros(image.shape)))
        assert (found is not None) == known

    def test_a_cell_centered_on_the_scans_edge_belongs_to_it(self) -> None:
        image = np.full((4, 4, 5), AIR, np.float32)
        image[:, :, :2] = image[:, 0, 3:] = 0  # 4 rows in the columns 0 and 1, one row in 3 and 4
        classes = np.zeros(image.shape, np.uint8)
        classes[:, 2, 2] = 1
        grid = (AxisGrid(0.0, 1.0, 4), AxisGrid(0.0, 1.0, 4), AxisGrid(-0.5, 1.0, 5))
        image[3] = AIR
        image[2] = AIR  # it touches both sides at half of the heights
        found = body_midline(Look(torch.from_numpy(image), grid, scores_of(classes)), Volume(np.zeros((4, 4, 4))))
        # 8, 8, 0, 2, 2 of 20: half of them lie before a quarter of column 1, which begins at 0.
        assert found == pytest.approx(0.25)


class TestStraighten:
    TILT = rotation(24, (2, -1, 3))

    def volume(self, direction: np.ndarray, dtype: type = np.float32) -> tuple[Volume, np.ndarray]:
        """An oblique volume of values that rise linearly in space, and their slope."""
        shape = (14, 16, 18)
        slope = np.array([3.0, -2.0, 4.0])
        empty = stored_as(direction, np.zeros(shape), tilt=self.TILT)
        k, j, i = np.indices(empty.array.shape).reshape(3, -1)
        places = (empty.affine_lps @ np.stack([i, j, k, np.ones_like(i)]))[:3]
        array = (slope @ places).reshape(empty.array.shape).astype(dtype)
        return empty.with_array(array), slope

    @pytest.mark.parametrize("direction", ORDERS)
    def test_values_stay_in_their_place(self, direction: np.ndarray) -> None:
        volume, slope = self.volume(direction)
        straight = straighten(volume, -5000.0)
        np.testing.assert_array_equal(straight.direction, np.eye(3))
        assert straight.spacing == SPACING and straight.name == "scan"
        k, j, i = np.indices(straight.array.shape).reshape(3, -1)
        places = straight.affine_lps @ np.stack([i, j, k, np.ones_like(i)])
        indices = (np.linalg.inv(volume.affine_lps) @ places)[:3]
        sizes = np.array(volume.array.shape[::-1])[:, None]
        inside = np.all((indices >= 0.01) & (indices <= sizes - 1.01), axis=0)
        outside = np.any((indices < -0.51) | (indices > sizes - 0.49), axis=0)
        values = straight.array.ravel()
        assert inside.sum() > 500 and outside.sum() > 500
        np.testing.assert_allclose(values[inside], (slope @ places[:3])[inside], atol=1e-3)
        assert np.all(values[outside] == -5000)

    @pytest.mark.parametrize("direction", ORDERS)
    def test_the_new_grid_just_holds_every_voxel(self, direction: np.ndarray) -> None:
        volume, _ = self.volume(direction)
        straight = straighten(volume, 0.0)
        k, j, i = np.indices(volume.array.shape).reshape(3, -1)
        places = (volume.affine_lps @ np.stack([i, j, k, np.ones_like(i)]))[:3]
        np.testing.assert_allclose(straight.origin, places.min(axis=1))
        beyond = (places.max(axis=1) - straight.origin) / SPACING - np.array(straight.array.shape[::-1])
        assert np.all(beyond > -2) and np.all(beyond <= -1)

    @pytest.mark.parametrize(
        ("dtype", "straightened"), [(np.int16, np.int16), (np.float64, np.float32), (np.uint8, np.float32)]
    )
    def test_number_types(self, dtype: type, straightened: type) -> None:
        assert straighten(self.volume(ORDERS[0], dtype)[0], 0.0).array.dtype == straightened


class TestLabelsOnGridOf:
    ORGANS = (*ORGANS, organ_by_key("right_adrenal_gland"))

    @pytest.mark.parametrize("direction", ORDERS)
    def test_on_the_same_grid_nothing_changes(self, direction: np.ndarray) -> None:
        view = np.zeros((9, 10, 11), np.uint8)
        view[2:7, 3:9, 1:6] = 1
        view[4:6, 3:7, 6:10] = 3
        view[8, 9, 10] = 8
        volume = stored_as(direction, np.zeros(view.shape))
        straight, order = volume.to_lps_view()
        result = labels_on_grid_of(volume, straight, view, self.ORGANS)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, order.undo(view))

    def line(self, labels: list[int], count: int, first: float) -> list[int]:
        """Labels in a row, on voxels that begin at `first` of them."""
        straight = Volume(np.zeros((3, 3, len(labels))))
        volume = Volume(np.zeros((3, 3, count)), origin=(first, 0, 0))
        drawn = np.zeros(straight.array.shape, np.uint8)
        drawn[1, 1] = labels
        result = labels_on_grid_of(volume, straight, drawn, self.ORGANS)
        assert not result[[0, 2]].any() and not result[:, [0, 2]].any()
        return result[1, 1].tolist()

    def test_the_largest_share_wins(self) -> None:
        assert self.line([0, 1, 1, 0, 0, 3, 8, 0], 7, 0.25) == [0, 1, 1, 0, 0, 3, 8]
        assert self.line([0, 1, 1, 0, 0, 3, 8, 0], 7, 0.75) == [1, 1, 0, 0, 3, 8, 0]
        # Halves: the background's, and of two organs the first one's.
        assert self.line([0, 1, 1, 0, 0, 3, 8, 0], 7, 0.5) == [0, 1, 0, 0, 0, 3, 0]
        assert self.line([0, 8, 3, 3, 1, 0], 5, 0.5) == [0, 3, 3, 1, 0]

    def test_of_three_shares_the_largest_wins(self) -> None:
        """Of a voxel between four others: 0.4375 of organ 1, 0.375 of organ 3 and 0.1875 of none."""
        straight = Volume(np.zeros((1, 2, 2)))
        volume = Volume(np.zeros((1, 1, 1)), origin=(0.25, 0.25, 0))
        shares = {(0, 0): 0.5625, (0, 1): 0.1875, (1, 0): 0.1875, (1, 1): 0.0625}
        for drawn, expected in (
            ({(0, 0): 0, (0, 1): 1, (1, 0): 1, (1, 1): 3}, 0),
            ({(0, 0): 3, (0, 1): 1, (1, 0): 1, (1, 1): 0}, 3),
            ({(0, 0): 1, (0, 1): 3, (1, 0): 0, (1, 1): 0}, 1),
        ):
            sums = {label: sum(shares[place] for place in drawn if drawn[place] == label) for label in (0, 1, 3)}
            assert max(sums, key=lambda label: sums[label]) == expected
            labels = np.zeros((1, 2, 2), np.uint8)
            for (y, x), label in drawn.items():
                labels[0, y, x] = label
            assert labels_on_grid_of(volume, straight, labels, self.ORGANS).tolist() == [[[expected]]]

    def test_labels_partly_and_wholly_beyond_the_volume(self) -> None:
        assert self.line([1, 1, 1, 0, 0, 3, 3, 3], 4, 2.0) == [1, 0, 0, 3]
        assert self.line([1, 1, 1, 0, 0, 0, 0, 0], 3, 4.0) == [0, 0, 0]
        assert self.line([1, 1, 1, 0, 0, 0, 0, 0], 3, 9.0) == [0, 0, 0]
        assert self.line([0, 0, 0, 0, 0, 1, 1, 1], 3, 0.0) == [0, 0, 0]
        assert self.line([0, 0, 0], 5, -1.0) == [0] * 5
        assert self.line([1, 1, 1], 7, -2.0) == [0, 0, 1, 1, 1, 0, 0]

    def test_a_sphere_of_an_oblique_scan(self) -> None:
        volume = stored_as(ORDERS[3], np.zeros((16, 26, 40)), tilt=TestStraighten.TILT)
        center = (volume.affine_lps @ [*((n - 1) / 2 for n in volume.array.shape[::-1]), 1])[:3]

        def sphere(grid: Volume) -> np.ndarray:
            k, j, i = np.indices(grid.array.shape).reshape(3, -1)
            places = (grid.affine_lps @ np.stack([i, j, k, np.ones_like(i)]))[:3]
            return (np.linalg.norm(places - center[:, None], axis=0) < 28).reshape(grid.array.shape)

        straight = straighten(volume, 0.0)
        labels = np.where(sphere(straight), 4, 0).astype(np.uint8)
        result = labels_on_grid_of(volume, straight, labels, self.ORGANS)
        assert set(np.unique(result)) == {0, 4}
        expected = sphere(volume)
        assert 2 * np.sum(expected & (result == 4)) / (expected.sum() + np.sum(result == 4)) > 0.95


class TestGrid:
    def grid(self, stage: Stage, volume: Volume, box=None, multiple: int = 1) -> tuple[AxisGrid, ...]:
        """The stage's grid over the volume's view."""
        return stage_grid(stage, multiple, volume.to_lps_view()[0], box, Intensity(-200.0, 300.0))

    def check(self, grid: tuple[AxisGrid, ...], expected: list[tuple[float, float, int]]) -> None:
        """Against (outer edge, step, count) of each axis, an edge being 0 before voxel 0."""
        for cells, (edge, step, count) in zip(grid, expected):
            assert cells.count == count
            assert cells.step == pytest.approx(step)
            assert cells.first + 0.5 - step / 2 == pytest.approx(edge)

    @pytest.mark.parametrize("direction", ORDERS)
    def test_cells_of_a_given_size_over_the_volume(self, direction: np.ndarray) -> None:
        volume = stored_as(direction, np.zeros(SHAPE))  # 200 x 180 x 160 mm
        stage = Stage("coarse", "volume", {}, spacing_mm=(3.0, 7.0, 8.0))
        self.check(self.grid(stage, volume), [(0, 8 / 5, 25), (0, 7 / 3, 26), (0, 3 / 2, 54)])
        self.check(self.grid(stage, volume, multiple=8), [(0, 8 / 5, 32), (0, 7 / 3, 32), (0, 3 / 2, 56)])

    @pytest.mark.parametrize("direction", ORDERS)
    def test_a_given_number_of_cells_over_the_body(self, direction: np.ndarray) -> None:
        view = np.full(SHAPE, -200.0)
        view[10:30, 6:50, 20:70] = 0
        volume = stored_as(direction, view)
        stage = Stage("coarse", "body", {}, shape=(25, 11, 16))
        self.check(self.grid(stage, volume), [(10, 20 / 16, 16), (6, 4, 11), (20, 2, 25)])
        self.check(self.grid(stage, volume, multiple=8), [(10, 20 / 16, 16), (6, 4, 16), (20, 2, 32)])

    @pytest.mark.parametrize("direction", ORDERS)
    def test_cells_over_the_organs_box(self, direction: np.ndarray) -> None:
        volume = stored_as(direction, np.zeros(SHAPE))
        stage = Stage("fine", "organs", {}, spacing_mm=(4.0, 4.0, 4.0))
        box = ((3.0, 23.0), (10.5, 40.0), (0.0, 79.5))
        added = 23 * 4 / 3 - 29.5
        self.check(self.grid(stage, volume, box), [(3, 0.8, 25), (10.5 - added / 2, 4 / 3, 23), (0, 2, 40)])
        self.check(self.grid(stage, volume), [(0, 0.8, 50), (0, 4 / 3, 45), (0, 2, 40)])
        many = self.grid(stage, volume, box, multiple=16)
        self.check(many, [(3 - 2.8, 0.8, 32), (10.5 - (32 * 4 / 3 - 29.5) / 2, 4 / 3, 32), (0, 2, 48)])
        last = self.grid(stage, volume, ((20.0, 40.0), (40.0, 60.0), (41.0, 80.0)), multiple=16)
        self.check(last, [(40 - 25.6, 0.8, 32), (60 - 64 / 3, 4 / 3, 16), (80 - 64, 2, 32)])
        whole = Stage("fine", "volume", {}, spacing_mm=(4.0, 4.0, 4.0))
        assert self.grid(whole, volume, box) == self.grid(whole, volume)

    @pytest.mark.parametrize(("millimeters", "count"), [(7.0, 7), (7.0005, 7), (7.0015, 8), (0.2, 1), (0.0004, 1)])
    def test_a_thousandth_of_a_cell_needs_no_other_cell(self, millimeters: float, count: int) -> None:
        volume = Volume(np.zeros((1, 1, 1)), (millimeters, 1, 1))
        grid = self.grid(Stage("coarse", "volume", {}, spacing_mm=(1.0, 1.0, 1.0)), volume)
        assert [cells.count for cells in grid] == [1, 1, count]
