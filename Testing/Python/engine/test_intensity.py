"""Hounsfield units to what a network sees, in arrays and tensors alike."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.model.intensity import AIR, Intensity, body_box, network_input, window  # noqa: E402

KINDS = pytest.mark.parametrize(
    "kind", [lambda values: np.array(values, np.float32), torch.tensor], ids=["array", "tensor"]
)


@KINDS
def test_the_window_is_linear_and_clips(kind) -> None:
    hounsfield = kind([-3024.0, -200.0, -75.0, 50.0, 300.0, 3000.0])
    windowed = np.asarray(window(hounsfield, Intensity(-200, 300)))
    np.testing.assert_allclose(windowed, [-1, -1, -0.5, 0, 1, 1])
    assert windowed[0] == AIR


@KINDS
@pytest.mark.parametrize(
    ("output", "expected"),
    [((-1.0, 1.0), [-1, 0, 1]), ((0.0, 1.0), [0, 0.5, 1]), ((0.0, 255.0), [0, 127.5, 255]), ((1.0, -1.0), [1, 0, -1])],
)
def test_networks_get_the_range_that_they_were_trained_on(kind, output, expected) -> None:
    values = network_input(kind([-1.0, 0.0, 1.0]), Intensity(-200, 300, output))
    np.testing.assert_allclose(np.asarray(values), expected)


@KINDS
@pytest.mark.parametrize("output", [(-1.0, 1.0), (0.0, 1.0)])
def test_standardized_input_has_no_mean_and_unit_variance(kind, output) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, 500).tolist()
    values = np.asarray(network_input(kind(image), Intensity(-200, 300, output, standardize=True)))
    assert values.mean() == pytest.approx(0, abs=1e-5)
    assert values.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_array_equal(np.argsort(values), np.argsort(image))


def test_an_image_of_one_value_is_not_divided_by_nothing() -> None:
    values = network_input(np.full(10, 0.5, np.float32), Intensity(-200, 300, standardize=True))
    np.testing.assert_allclose(values, 0)


def test_the_body_is_boxed_by_its_outermost_voxels() -> None:
    hounsfield = np.full((6, 7, 8), -1000, np.int16)
    hounsfield[1, 2, 3] = hounsfield[4, 5, 3] = 40
    hounsfield[0, 0, 0] = -200  # at the end of the window, not above it
    assert body_box(hounsfield, Intensity(-200, 300)) == (slice(1, 5), slice(2, 6), slice(3, 4))


def test_where_there_is_no_body_all_counts() -> None:
    empty = np.full((2, 3, 4), -1000, np.int16)
    assert body_box(empty, Intensity(-200, 300)) == (slice(0, 2), slice(0, 3), slice(0, 4))
