"""How sure the model is: what the confidence of a voxel means, how it is calibrated; asking for it changes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_pipeline import COARSE, FINE, ORGAN_HU, FakeModel, scan
from test_volume import rotation

from FlareSegmentLib.inference.confidence import (
    SURE,
    Confidence,
    Evidence,
    calibrated_shares,
    calibration_error,
    confidence_of,
    fit_temperature,
)
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.inference.resampling import AxisGrid, labels_and_shares_on_array, labels_on_array
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

REVIEW = SegmentationRequest(review=True)


def whole(confidence: Confidence, shape: tuple[int, ...]) -> np.ndarray:
    array = np.full(shape, SURE, np.uint8)
    array[confidence.box] = confidence.array
    return array


@pytest.mark.parametrize("seed", range(4))
def test_shares_do_not_change_the_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(15, 40, 3))
    grid = tuple(AxisGrid.over(rng.uniform(-3, 6), n - rng.uniform(-3, 6), int(rng.integers(3, 30))) for n in shape)
    if seed % 2:
        grid = (grid[0].reversed(), grid[1], grid[2].reversed())
    scores = torch.softmax(torch.from_numpy(rng.normal(0, 3, (4, *(axis.count for axis in grid)))).float(), dim=0)
    expected, box = labels_on_array(scores, grid, shape)
    labels, shares, larger = labels_and_shares_on_array(scores, grid, shape)
    full, found = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    full[box], found[larger] = expected, labels
    np.testing.assert_array_equal(found, full)
    assert shares.min() >= 127, "the winner has at least half of itself and the next"


def test_the_share_is_of_the_two_likeliest_and_a_class_left_out_still_counts() -> None:
    grid = (AxisGrid(0.0, 1.0, 4),) * 3
    scores = torch.tensor([0.3, 0.5, 0.2]).view(3, 1, 1, 1).expand(3, 4, 4, 4).contiguous()
    labels, shares, box = labels_and_shares_on_array(scores, grid, (4, 4, 4))
    assert (labels == 1).all() and (shares == round(255 * 0.5 / 0.8)).all()
    assert box == (slice(0, 4),) * 3
    labels, shares, _ = labels_and_shares_on_array(scores, grid, (4, 4, 4), left_out=[1])
    assert (labels == 0).all() and (shares == round(255 * 0.3 / 0.8)).all()


def test_a_voxel_that_cleaning_changed_is_as_doubtful_as_the_model_was_sure() -> None:
    volume = Volume(np.zeros((4, 4, 4), np.int16))
    grid = (AxisGrid(0.0, 1.0, 4),) * 3
    scores = torch.tensor([0.1, 0.9, 0.0, 0.0, 0.0]).view(5, 1, 1, 1).expand(5, 4, 4, 4).contiguous()
    evidence = Evidence()
    labels, _ = evidence.draw(volume, scores, (), grid, lambda fraction: None)
    labels[:2] = 0
    found = confidence_of(evidence, volume, labels, ORGANS, ()).array / 255
    np.testing.assert_allclose(found[2:], 0.9, atol=0.005)
    np.testing.assert_allclose(found[:2], 0.1, atol=0.005)
    sharper = confidence_of(evidence, volume, labels, ORGANS, (1.0, 0.5, 1.0, 1.0, 1.0)).array / 255
    np.testing.assert_allclose(sharper[2:], 81 / 82, atol=0.005)
    np.testing.assert_allclose(sharper[:2], 0.1, atol=0.005)


def test_the_temperature_that_was_used_is_found_and_mends_the_calibration_error() -> None:
    voxels = np.linspace(50, 1000, 256).round()
    for temperature in (0.6, 1.0, 2.5):
        right = voxels * calibrated_shares([temperature])[0]
        assert fit_temperature(voxels, right) == pytest.approx(temperature, abs=0.021)
        before, after = (calibration_error(voxels, right, calibrated_shares([t])[0]) for t in (1.0, temperature))
        assert after < 1e-6 and (before > 0.02 or temperature == 1.0)


@pytest.mark.parametrize("tilted", [False, True], ids=["straight", "tilted"])
def test_asking_changes_no_label_and_doubts_lie_at_the_borders(tilted: bool) -> None:
    direction = rotation(25.0, (0.2, 1.0, 0.3)) if tilted else np.diag([-1.0, 1.0, -1.0])
    volume, truth = scan(direction, (3.0, 3.0, 4.0))
    segmenter = Segmenter(FakeModel(COARSE, FINE), "cpu")
    plain, asked = segmenter.segment(volume), segmenter.segment(volume, REVIEW)
    assert plain.confidence is None and plain.places == []
    np.testing.assert_array_equal(asked.labels, plain.labels)
    assert asked.warnings == plain.warnings
    found = whole(asked.confidence, volume.array.shape) / 255
    border = ndimage.binary_dilation(truth > 0, iterations=1) & ~ndimage.binary_erosion(truth > 0, iterations=1)
    assert found[border].mean() < 0.97 < 0.995 < found[~border].mean()
    assert found.min() < 0.9


def test_organs_that_nobody_asked_for_raise_no_doubts() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 4.0))
    segmenter = Segmenter(FakeModel(COARSE, FINE), "cpu")
    asked = segmenter.segment(volume, SegmentationRequest(organs=("spleen",), review=True))
    assert {place.organ for place in asked.places} <= {"spleen"}
    assert whole(asked.confidence, volume.array.shape)[truth == 1].mean() > 240


def test_an_organ_that_was_left_out_is_doubtful_and_the_first_place() -> None:
    model = FakeModel(COARSE, FINE)
    model.description = dataclasses.replace(model.description, minimum_sure=0.5)
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    faint = volume.array.copy()
    faint[truth == 4] -= round(ORGAN_HU - 120 - 12)
    found = Segmenter(model, "cpu").segment(volume.with_array(faint), REVIEW)
    assert not (found.labels == 4).any()
    confidence = whole(found.confidence, volume.array.shape)
    assert np.median(confidence[truth == 4]) < 128
    place = found.places[0]
    assert (place.kind, place.organ, place.side) == ("missing", "spleen", "left")
    assert 0.3 < place.ml / (np.count_nonzero(truth == 4) * volume.voxel_volume_ml) < 1.5
    box = tuple(slice(start, stop) for start, stop in place.box)
    assert np.count_nonzero(truth[box] == 4) > 0.9 * np.count_nonzero(truth == 4)
