"""Where to look first: the places of a result, their order, and what is in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_pipeline import COARSE, FINE, BrightnessNetwork, FakeModel, scan
from test_volume import rotation

from FlareSegmentLib.inference.confidence import Evidence
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.inference.resampling import AxisGrid
from FlareSegmentLib.inference.review_places import MOST_PLACES, PLACE_MM, Place, find_places
from FlareSegmentLib.measures.organ_statistics import organ_boxes
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

REVIEW = SegmentationRequest(review=True)

DIRECTIONS = {"LPS": np.eye(3), "flipped": np.diag([-1.0, 1.0, -1.0]), "turned": np.eye(3)[:, [1, 2, 0]]}


def doubtful_scan(direction: np.ndarray, doubts: dict[tuple[int, ...], float], spacing: float = 2.5) -> list[Place]:
    """Places of a scan with a liver of 64 voxels a side, in which cubes of 8 around the given voxels (z, y, x) are of
    the liver with a probability.
    """
    labels = np.zeros((96, 96, 96), np.uint8)
    labels[16:80, 16:80, 16:80] = 1
    liver = np.where(labels == 1, 0.999, 0.001)
    for (z, y, x), probability in doubts.items():
        liver[z - 4 : z + 4, y - 4 : y + 4, x - 4 : x + 4] = probability
    volume = Volume(np.zeros(labels.shape, np.int16), (spacing,) * 3, (10.0, 20.0, 30.0), direction)
    scores = torch.zeros((5, *labels.shape))
    scores[0], scores[1] = torch.from_numpy(1 - liver), torch.from_numpy(liver)
    evidence = Evidence(volume, scores, tuple(AxisGrid(0.0, 1.0, size) for size in labels.shape))
    return find_places(evidence, volume, labels, ORGANS, ORGANS[:1], organ_boxes(labels, ORGANS))


@pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)
def test_the_worst_comes_first_with_what_is_at_stake(direction: np.ndarray) -> None:
    doubts = {(24, 24, 24): 0.7, (72, 72, 72): 0.55, (24, 72, 24): 0.9}
    places = doubtful_scan(direction, doubts)
    assert [place.kind for place in places] == ["doubtful"] * 3
    assert [place.ml for place in places] == pytest.approx([8 * 0.45, 8 * 0.3, 8 * 0.1], rel=0.01)
    for place, (z, y, x) in zip(places, ((72, 72, 72), (24, 24, 24), (24, 72, 24)), strict=True):
        assert place.organ == "liver"
        assert place.box == tuple((n - 4, n + 4) for n in (z, y, x))
        assert np.abs(np.array(place.center) - (x, y, z)).max() <= 4


def test_windows_are_no_larger_than_said_and_share_nothing() -> None:
    doubts = {(z, y, x): 0.6 for z in (20, 48, 76) for y in (20, 48, 76) for x in (20, 48, 76)}
    places = doubtful_scan(np.eye(3), doubts)
    assert len(places) == 8, "two windows a side hold all that is doubtful"
    assert max(2.5 * (stop - start) for place in places for start, stop in place.box) <= PLACE_MM + 2.5
    assert [place.ml for place in places] == sorted((place.ml for place in places), reverse=True)
    assert sum(place.ml for place in places) == pytest.approx(27 * 8 * 0.4, rel=0.001)
    boxes = [tuple(slice(*extent) for extent in place.box) for place in places]
    counted = np.zeros((96, 96, 96), int)
    for box in boxes:
        counted[box] += 1
    assert counted.max() == 1


def test_a_list_is_no_longer_than_a_person_looks_at() -> None:
    doubts = {(z, y, x): 0.6 for z in (20, 48, 76) for y in (20, 48, 76) for x in (20, 48, 76)}
    assert len(doubtful_scan(np.eye(3), doubts, spacing=5.0)) == MOST_PLACES


@pytest.mark.parametrize("tilted", [False, True], ids=["straight", "tilted"])
def test_places_of_a_real_run_lie_on_what_is_doubtful(tilted: bool) -> None:
    direction = rotation(25.0, (0.2, 1.0, 0.3)) if tilted else np.diag([-1.0, 1.0, -1.0])
    volume, _ = scan(direction, (3.0, 3.0, 4.0))
    found = Segmenter(FakeModel(COARSE, FINE), "cpu").segment(volume, REVIEW)
    doubtful = np.zeros(volume.array.shape, bool)
    doubtful[found.confidence.box] = found.confidence.array < 255 * 0.95
    covered = np.zeros_like(doubtful)
    sides = {"liver": "right", "right_kidney": "right", "left_kidney": "left", "spleen": "left"}
    assert found.places[0].side in ("", sides[found.places[0].organ])
    for place in found.places:
        assert place.kind == "doubtful"
        voxel = place.center[::-1]
        assert all(start - 1 <= value <= stop for value, (start, stop) in zip(voxel, place.box, strict=True))
        near = tuple(slice(max(0, round(value) - 2), round(value) + 3) for value in voxel)
        assert doubtful[near].any()
        box = tuple(slice(start, stop) for start, stop in place.box)
        covered[box] |= doubtful[box]
    assert np.count_nonzero(covered) > 0.7 * np.count_nonzero(doubtful)


def test_missing_and_cut_organs_and_remarks_are_places_too() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    start = np.flatnonzero((truth == 1).any(axis=(1, 2)))[0] + 3
    part = volume.part(tuple(slice(first, size) for first, size in zip((int(start), 0, 0), truth.shape, strict=True)))
    found = Segmenter(FakeModel(COARSE, FINE, kind=BrightnessNetwork), "cpu").segment(part, REVIEW)
    assert set(np.unique(found.labels)) == {0, 1}
    missing = {(place.organ, place.side, place.center) for place in found.places if place.kind == "missing"}
    assert missing == {("right_kidney", "right", None), ("left_kidney", "left", None), ("spleen", "", None)}
    worst = found.places[0]
    spleen = part.part(tuple(slice(*extent) for extent in worst.box))
    assert worst.kind == "doubtful" and worst.side == "left", "what cleaning took from the liver is the spleen"
    assert np.count_nonzero(spleen.array > 120) > 0.5 * np.count_nonzero(truth == 4)
    (cut,) = [place for place in found.places if place.kind == "cut" and place.organ == "liver"]
    assert cut.box[0] == (0, 1)
    assert cut.center[2] == 0.0
    assert found.labels[tuple(np.rint(cut.center[::-1]).astype(int))] == 1

    upside_down = Volume(volume.array[::-1], volume.spacing, volume.origin)
    odd = Segmenter(FakeModel(COARSE, FINE), "cpu").segment(upside_down, REVIEW)
    remarks = [place.text for place in odd.places if place.kind == "remark"]
    assert set(remarks) <= set(odd.warnings)


def test_a_region_keeps_the_places_inside() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 4.0))
    heights = np.flatnonzero((truth == 1).any(axis=(1, 2)))
    region = (slice(int(heights[0]), int(heights[-1]) + 1), slice(0, truth.shape[1]), slice(0, truth.shape[2]))
    found = Segmenter(FakeModel(COARSE, FINE), "cpu").segment(volume, SegmentationRequest(region=region, review=True))
    boxes = [place.box for place in found.places if place.kind == "doubtful"]
    assert boxes and all(box[0][0] >= heights[0] - 1 and box[0][1] <= heights[-1] + 2 for box in boxes)


def test_an_organ_that_the_region_cuts_is_a_place() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 4.0))
    heights = np.flatnonzero((truth == 1).any(axis=(1, 2)))
    middle = int(heights[len(heights) // 2])
    region = (slice(0, middle), slice(0, truth.shape[1]), slice(0, truth.shape[2]))
    found = Segmenter(FakeModel(COARSE, FINE), "cpu").segment(volume, SegmentationRequest(region=region, review=True))
    (cut,) = [place for place in found.places if place.kind == "cut" and place.organ == "liver"]
    assert cut.box[0] == (middle - 1, middle)
    assert found.labels[tuple(np.rint(cut.center[::-1]).astype(int))] == 1
