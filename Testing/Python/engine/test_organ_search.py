"""The coarse stage's search: which piece is the organ, and how many slices of a tall scan the network must see."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from FlareSegmentLib.errors import Cancelled
from FlareSegmentLib.inference.organ_search import OVERLAP_CELLS, WINDOW_CELLS, find_pieces, search
from FlareSegmentLib.organs import ORGANS

CELL_ML = 0.064
HEIGHT = 320


def logits(classes: np.ndarray, sure: np.ndarray | None = None) -> torch.Tensor:
    """Scores (5, z, y, x) of these classes: of 0.99 and more where sure, else of about 0.6."""
    strength = np.where(np.ones(classes.shape, bool) if sure is None else sure, 9.0, 1.8)
    return torch.from_numpy(np.stack([strength * (classes == index) for index in range(5)]).astype(np.float32))


def body(places: dict[int, int], height: int = HEIGHT) -> np.ndarray:
    """Classes of a scan with a block of an organ at each of the heights; the liver of 660 ml, the others of 130."""
    classes = np.zeros((height, 32, 48), np.uint8)
    for index, z in places.items():
        size = 22 if index == 1 else 13
        half = size // 2
        x = 10 * index if index > 1 else 11
        x = min(x, 48 - size)
        y = 0 if index == 1 else 24 - 8
        classes[z - half : z - half + size, y : y + size, x : x + (size if index == 1 else 9)] = index
    return classes


class Network:
    """Answers with the classes that the image holds, and remembers which slices it was shown."""

    def __init__(self) -> None:
        self.heights: list[int] = []

    def __call__(self, image: torch.Tensor, tick) -> torch.Tensor:
        self.heights.append(image.shape[0])
        tick(0.5)
        return logits(image.numpy().astype(np.uint8))


def looked_at(classes: np.ndarray, organs=ORGANS) -> tuple[int, int, torch.Tensor, Network]:
    network = Network()
    ticks: list[float] = []
    low, high, scores = search(network, torch.from_numpy(classes).float(), organs, CELL_ML, ticks.append)
    assert all(0 <= tick <= 1 for tick in ticks)
    assert ticks == sorted(ticks)
    assert scores.shape == (5, high - low, *classes.shape[1:])
    np.testing.assert_array_equal(scores.argmax(dim=0).numpy(), classes[low:high])
    return low, high, scores, network


def test_a_short_scan_is_seen_at_once() -> None:
    classes = body({1: 60, 2: 50, 3: 50, 4: 60}, WINDOW_CELLS + OVERLAP_CELLS)
    low, high, _, network = looked_at(classes)
    assert (low, high) == (0, WINDOW_CELLS + OVERLAP_CELLS)
    assert len(network.heights) == 1


def test_organs_in_the_middle_of_a_tall_scan_need_one_look() -> None:
    low, high, _, network = looked_at(body({1: 170, 2: 150, 3: 150, 4: 172}))
    assert network.heights == [WINDOW_CELLS]
    assert low < 140 and high > 185


@pytest.mark.parametrize("middle", [40, 250])
def test_organs_near_an_end_are_found_whole(middle: int) -> None:
    places = {1: middle + 8, 2: middle - 10, 3: middle - 10, 4: middle + 10}
    low, high, _, network = looked_at(body(places))
    assert low <= middle - 20
    assert high >= middle + 22
    assert high - low < HEIGHT


def test_an_organ_across_the_end_of_the_first_look_is_followed_to_that_side_only() -> None:
    first = (HEIGHT - WINDOW_CELLS) // 2 // OVERLAP_CELLS * OVERLAP_CELLS
    low, high, _, network = looked_at(body({1: first + WINDOW_CELLS, 2: 150, 3: 150, 4: 160}))
    assert low == first
    assert high == first + 2 * WINDOW_CELLS - OVERLAP_CELLS
    assert len(network.heights) == 2


@pytest.mark.parametrize("places", [{1: 170, 2: 150, 4: 172}, {}])
def test_where_an_organ_is_missing_everything_is_looked_at(places: dict[int, int]) -> None:
    low, high, _, network = looked_at(body(places))
    assert (low, high) == (0, HEIGHT)
    assert sum(network.heights) <= HEIGHT + OVERLAP_CELLS * len(network.heights)


def test_a_small_false_piece_does_not_end_the_search() -> None:
    classes = body({1: 170, 2: 150, 4: 172})
    classes[150:156, 24:30, 40:46] = 3  # 14 ml that are called left kidney
    classes[20:40, 10:30, 30:40] = 3
    low, high, _, _ = looked_at(classes)
    assert low < 20


def test_the_joint_of_two_looks_is_gradual() -> None:
    class Uneven(Network):
        def __call__(self, image, tick):
            scores = super().__call__(image, tick)
            return scores + len(self.heights)

    network = Uneven()
    image = torch.zeros(HEIGHT, 8, 8)
    low, high, scores = search(network, image, ORGANS, CELL_ML, lambda fraction: None)
    assert (low, high) == (0, HEIGHT)
    steps = torch.diff(scores[1, :, 0, 0]).abs()
    assert float(steps.max()) <= 3.0 / OVERLAP_CELLS


def test_cancelling_goes_through() -> None:
    def stop(fraction: float) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        search(Network(), torch.zeros(HEIGHT, 8, 8), ORGANS, CELL_ML, stop)


def test_the_surest_piece_of_an_organ_comes_first_not_the_largest() -> None:
    classes = np.zeros((40, 20, 20), np.uint8)
    classes[2:10, 2:10, 2:10] = 2
    classes[20:38, 2:12, 2:12] = 2
    sure = np.zeros(classes.shape, bool)
    sure[:12] = True
    first, second = find_pieces(logits(classes, sure), CELL_ML)
    assert (first.low.tolist(), first.high.tolist()) == ([2, 2, 2], [10, 10, 10])
    assert first.ml == pytest.approx(512 * CELL_ML) == first.sure_ml
    assert second.sure_ml == 0
    assert second.ml == pytest.approx(1800 * CELL_ML)


def test_crumbs_are_no_pieces() -> None:
    classes = np.zeros((10, 10, 10), np.uint8)
    classes[0, :4, :4] = 1
    assert find_pieces(logits(classes), CELL_ML) == []
