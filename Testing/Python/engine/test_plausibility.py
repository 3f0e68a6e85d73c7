"""Doubts that `FlareSegmentLib.inference.plausibility` has, and those it must not have."""

from __future__ import annotations

import numpy as np
import pytest

from FlareSegmentLib.inference.plausibility import doubts
from FlareSegmentLib.measures.organ_statistics import keep_only
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume


@pytest.fixture(scope="module")
def phantom() -> tuple[Volume, np.ndarray]:
    return make_phantom()


@pytest.mark.parametrize("case", ["matrad_pat001", "c3l00189"])
@pytest.mark.real_ct
def test_real_references_raise_no_doubt(case: str, flare_data) -> None:
    from FlareSegmentLib.files.image_io import read_labels, read_volume

    volume, _ = read_volume(flare_data / "val" / f"{case}_ct.nii.gz")
    labels = read_labels(flare_data / "val" / f"{case}_labels.nii.gz", like=volume).array
    assert doubts(volume, labels, ORGANS) == []


def test_a_right_result_raises_no_doubt(phantom) -> None:
    assert doubts(*phantom, ORGANS) == []


def test_a_mirrored_scan_is_doubted_in_any_storage_order(phantom) -> None:
    volume, labels = phantom
    direction = volume.direction.copy()
    direction[:, 0] *= -1
    mirrored = Volume(volume.array, volume.spacing, volume.origin, direction)
    (line,) = doubts(mirrored, labels, ORGANS)
    assert "liver lies to the left of the spleen" in line and "right kidney lies to the left of the left" in line
    # The same patient stored from left to right is no mirrored one.
    flipped = Volume(
        volume.array[:, :, ::-1],
        volume.spacing,
        tuple((volume.affine_lps @ [volume.array.shape[2] - 1, 0, 0, 1])[:3]),
        direction,
    )
    assert doubts(flipped, labels[:, :, ::-1], ORGANS) == []


def test_a_scan_upside_down_is_doubted(phantom) -> None:
    volume, labels = phantom
    direction = volume.direction.copy()
    direction[:, 2] *= -1
    lines = doubts(Volume(volume.array, (2.5, 2.5, 6.0), volume.origin, direction), labels, ORGANS)
    assert any("upside down" in line for line in lines)


def test_values_that_no_organ_has_are_doubted(phantom) -> None:
    volume, labels = phantom
    lines = doubts(volume.with_array(volume.array + 1024), labels, ORGANS)
    assert len(lines) == 4 and all("HU is unusual" in line for line in lines)


def test_an_organ_far_from_the_others_is_doubted() -> None:
    labels = np.zeros((200, 20, 20), np.uint8)
    labels[190:195, 5:10, 4:8] = 1
    labels[188:192, 5:10, 12:16] = 4
    labels[180:185, 12:16, 4:8] = 2
    labels[5:10, 12:16, 12:16] = 3
    lines = doubts(Volume(np.zeros(labels.shape, np.int16), (5.0, 5.0, 5.0)), labels, ORGANS)
    assert lines == ["Left kidney: far away from the other organs, look at the result."]


def test_nothing_found_raises_no_doubt() -> None:
    labels = np.zeros((4, 4, 4), np.uint8)
    assert doubts(Volume(labels), labels, ORGANS) == []


def test_only_chosen_organs_in_the_region_are_kept() -> None:
    labels = np.array([[[1, 2, 3, 4]]], np.uint8)
    assert keep_only(labels, ORGANS[1:3]).tolist() == [[[0, 2, 3, 0]]]
    region = slice(None), slice(None), slice(2, 4)
    assert keep_only(labels, ORGANS[1:3], region).tolist() == [[[0, 0, 3, 0]]]
