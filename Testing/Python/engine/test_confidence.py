"""How sure the model is: what the confidence of a voxel means; asking for it changes nothing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_pipeline import COARSE, FINE, ORGAN_HU, FakeModel, scan
from test_volume import rotation

from FlareSegmentLib.inference.confidence import SURE, Confidence, Evidence, confidence_of
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.inference.resampling import AxisGrid, labels_and_probabilities_on_array, labels_on_array
from FlareSegmentLib.organs import ORGANS, Organ
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

REVIEW = SegmentationRequest(review=True)


def whole(confidence: Confidence, shape: tuple[int, ...]) -> np.ndarray:
    array = np.full(shape, SURE, np.uint8)
    array[confidence.box] = confidence.array
    return array


@pytest.mark.parametrize("seed", range(4))
def test_probabilities_do_not_change_the_labels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(15, 40, 3))
    grid = tuple(AxisGrid.over(rng.uniform(-3, 6), n - rng.uniform(-3, 6), int(rng.integers(3, 30))) for n in shape)
    if seed % 2:
        grid = (grid[0].reversed(), grid[1], grid[2].reversed())
    scores = torch.softmax(torch.from_numpy(rng.normal(0, 3, (4, *(axis.count for axis in grid)))).float(), dim=0)
    expected, box = labels_on_array(scores, grid, shape)
    labels, probabilities, larger = labels_and_probabilities_on_array(scores, grid, shape)
    full, found = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    full[box], found[larger] = expected, labels
    np.testing.assert_array_equal(found, full)
    assert probabilities.min() >= 63, "the winner of four has at least a quarter"


def test_the_probability_is_the_winners_own_and_a_class_left_out_cannot_win() -> None:
    grid = (AxisGrid(0.0, 1.0, 4),) * 3
    scores = torch.tensor([0.4, 0.5, 0.1]).view(3, 1, 1, 1).expand(3, 4, 4, 4).contiguous()
    labels, probabilities, box = labels_and_probabilities_on_array(scores, grid, (4, 4, 4))
    assert (labels == 1).all() and (probabilities == 128).all()
    assert box == (slice(0, 4),) * 3
    labels, probabilities, _ = labels_and_probabilities_on_array(scores, grid, (4, 4, 4), left_out=[1])
    assert (labels == 0).all() and (probabilities == 102).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_certainty_is_certain_in_every_precision(dtype: torch.dtype) -> None:
    scores = torch.zeros((2, 4, 4, 4), dtype=dtype)
    scores[1] = 1.0
    _, probabilities, _ = labels_and_probabilities_on_array(scores, (AxisGrid(0.0, 1.0, 4),) * 3, (4, 4, 4))
    assert (probabilities == 255).all()


@pytest.mark.parametrize("organs", [ORGANS, ORGANS[::-1]], ids=["as labels", "another order"])
def test_a_voxel_that_cleaning_changed_is_as_doubtful_as_the_model_was_sure(organs: tuple[Organ, ...]) -> None:
    volume = Volume(np.zeros((4, 4, 4), np.int16))
    grid = (AxisGrid(0.0, 1.0, 4),) * 3
    scores = torch.tensor([0.1, 0.9, 0.0, 0.0, 0.0]).view(5, 1, 1, 1).expand(5, 4, 4, 4).contiguous()
    evidence = Evidence()
    labels, _ = evidence.draw(volume, scores, (), grid, lambda fraction: None)
    labels[:] = organs[0].label
    labels[:2] = 0
    found = confidence_of(evidence, volume, labels, organs).array / 255
    np.testing.assert_allclose(found[2:], 0.9, atol=0.005)
    np.testing.assert_allclose(found[:2], 0.1, atol=0.005)


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


def faint_spleen() -> tuple[FakeModel, Volume, np.ndarray]:
    """A model that leaves out what it is not sure of, a CT of which it is not sure of the spleen, and the truth."""
    model = FakeModel(COARSE, FINE)
    model.description = dataclasses.replace(model.description, minimum_sure=0.5)
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    faint = volume.array.copy()
    faint[truth == 4] -= round(ORGAN_HU - 120 - 12)
    return model, volume.with_array(faint), truth


def test_nothing_is_said_of_a_left_out_organ_that_nobody_asked_for() -> None:
    model, volume, _ = faint_spleen()
    all_organs, liver = (
        Segmenter(model, "cpu").segment(volume, SegmentationRequest(organs=organs, review=True))
        for organs in (None, ("liver",))
    )
    assert any("spleen" in text for text in all_organs.warnings)
    assert not any("spleen" in text for text in liver.warnings)
    assert {place.organ for place in liver.places} <= {"liver"}


def test_an_organ_that_was_left_out_is_doubtful_and_the_first_place() -> None:
    model, volume, truth = faint_spleen()
    found = Segmenter(model, "cpu").segment(volume, REVIEW)
    assert not (found.labels == 4).any()
    confidence = whole(found.confidence, volume.array.shape)
    assert np.median(confidence[truth == 4]) < 128
    place = found.places[0]
    assert (place.kind, place.organ, place.side) == ("missing", "spleen", "left")
    assert 0.3 < place.ml / (np.count_nonzero(truth == 4) * volume.voxel_volume_ml) < 1.5
    box = tuple(slice(start, stop) for start, stop in place.box)
    assert np.count_nonzero(truth[box] == 4) > 0.9 * np.count_nonzero(truth == 4)
