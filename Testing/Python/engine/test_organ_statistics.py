"""Volumes, densities and cut flags of `FlareSegmentLib.measures.organ_statistics`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from FlareSegmentLib.measures.organ_statistics import bounding_box, organ_statistics
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume


@pytest.fixture
def case() -> tuple[Volume, np.ndarray]:
    labels = np.zeros((10, 12, 14), np.uint8)
    labels[2:5, 3:6, 4:8] = 1
    labels[0:2, 8:10, 8:10] = 3
    array = np.full(labels.shape, -1000, np.int16)
    array[labels == 1] = np.tile([50, 70], 18)
    array[labels == 3] = 200
    return Volume(array, (0.5, 2.0, 5.0), direction=np.diag([-1.0, -1.0, 1.0])), labels


def test_statistics(case: tuple[Volume, np.ndarray]) -> None:
    result = organ_statistics(*case)
    assert [entry["label"] for entry in result.values()] == [organ.label for organ in ORGANS]
    assert result["liver"] == {
        "label": 1,
        "found": True,
        "volume_ml": pytest.approx(36 * 5 / 1000),
        "mean_hu": 60.0,
        "sd_hu": 10.0,
        "touches_border": False,
        "extent_mm": [2.0, 6.0, 15.0],
        "voxels": 36,
        "center": [5.5, 4.0, 3.0],
    }
    assert result["left_kidney"]["touches_border"] and result["left_kidney"]["mean_hu"] == 200
    assert result["spleen"] == {
        "label": 4,
        "found": False,
        "volume_ml": 0.0,
        "mean_hu": None,
        "sd_hu": None,
        "touches_border": False,
        "extent_mm": None,
        "voxels": 0,
        "center": None,
    }
    json.dumps(result, allow_nan=False)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("side", [0, -1])
def test_every_side_of_the_scan_counts_as_border(axis: int, side: int) -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[3, 3, 3] = 4
    index = [3, 3, 3]
    index[axis] = side
    assert not organ_statistics(Volume(np.zeros(labels.shape)), labels)["spleen"]["touches_border"]
    labels[tuple(index)] = 4
    assert organ_statistics(Volume(np.zeros(labels.shape)), labels)["spleen"]["touches_border"]


def test_sums_do_not_overflow() -> None:
    labels = np.ones((40, 64, 64), np.uint8)
    volume = Volume(np.full(labels.shape, 3000, np.int16))
    assert organ_statistics(volume, labels)["liver"]["mean_hu"] == 3000


def test_other_shape_is_refused(case: tuple[Volume, np.ndarray]) -> None:
    with pytest.raises(ValueError, match="shape"):
        organ_statistics(case[0], case[1][1:])


def test_extents_follow_the_patient_and_not_the_storage() -> None:
    labels = np.zeros((8, 9, 10), np.uint8)
    labels[1:3, 2:7, 3:4] = 1
    sagittal = np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # x to the back, y to the feet, z to left
    result = organ_statistics(Volume(labels, (1.0, 2.0, 4.0), direction=sagittal), labels)
    assert result["liver"]["extent_mm"] == [8.0, 1.0, 10.0]
    assert result["liver"]["center"] == [3.0, 4.0, 1.5]


def test_the_bounding_box_is_the_smallest_one() -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    assert labels[bounding_box(labels)].size == 0
    labels[2, 3, 5] = 1
    labels[4, 1, 6] = 2
    assert bounding_box(labels) == (slice(2, 5), slice(1, 4), slice(5, 7))
