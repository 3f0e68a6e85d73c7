"""The bounds of the doubts of `FlareSegmentLib.inference.plausibility`, and their words, on a few voxels of 10 mm."""

from __future__ import annotations

import numpy as np
import pytest

from FlareSegmentLib.inference.plausibility import doubts
from FlareSegmentLib.measures.organ_statistics import organ_boxes
from FlareSegmentLib.organs import FLARE22_ORGANS, organ_by_key
from FlareSegmentLib.volume import Volume

HU = 50


def doubts_about(places: dict[str, tuple[int, int, int]], hounsfield: int = HU) -> list[str]:
    """Doubts about organs of one voxel each, at (x, y, z)."""
    labels = np.zeros((45, 4, 45), np.uint8)
    for key, (x, y, z) in places.items():
        labels[z, y, x] = organ_by_key(key).label
    volume = Volume(np.full(labels.shape, hounsfield, np.int16), (10, 10, 10), (-200, 30, 1000))
    lines = doubts(volume, labels, FLARE22_ORGANS)
    assert doubts(volume, labels, FLARE22_ORGANS, organ_boxes(labels, FLARE22_ORGANS)) == lines
    return lines


@pytest.mark.parametrize(
    ("right", "left", "words"),
    [
        ("liver", "spleen", "the liver lies to the left of the spleen"),
        ("right_kidney", "left_kidney", "the right kidney lies to the left of the left kidney"),
        (
            "right_adrenal_gland",
            "left_adrenal_gland",
            "the right adrenal gland lies to the left of the left adrenal gland",
        ),
    ],
)
def test_organs_clearly_on_the_others_side(right: str, left: str, words: str) -> None:
    assert doubts_about({right: (5, 0, 0), left: (25, 0, 0)}) == []
    assert doubts_about({right: (7, 0, 0), left: (5, 0, 0)}) == []  # 20 mm
    assert doubts_about({right: (8, 0, 0), left: (5, 0, 0)}) == [
        f"Left and right are in doubt: {words}. "
        "The scan may be mirrored, or the organs' places exchanged (situs inversus)."
    ]
    assert doubts_about({right: (8, 0, 0)}) == doubts_about({left: (5, 0, 0)}) == []


def test_all_exchanged_pairs_are_named_in_one_line() -> None:
    (line,) = doubts_about(
        {"liver": (20, 0, 0), "spleen": (5, 0, 0), "right_kidney": (18, 0, 0), "left_kidney": (7, 0, 0)}
    )
    assert "left of the spleen and the right kidney lies to the left of the left kidney. The scan" in line


def test_kidneys_above_the_liver() -> None:
    text = "above the liver: the scan may be upside down, look at the result."
    for key, name in (("right_kidney", "Right kidney"), ("left_kidney", "Left kidney")):
        assert doubts_about({"liver": (5, 0, 10), key: (5, 0, 16)}) == []  # 60 mm
        assert doubts_about({"liver": (5, 0, 10), key: (5, 0, 17)}) == [f"{name} {text}"]
        assert doubts_about({key: (5, 0, 17)}) == []
    both = {"liver": (5, 0, 10), "right_kidney": (5, 0, 18), "left_kidney": (9, 0, 17)}
    assert doubts_about(both) == [f"Right kidney and Left kidney {text}"]


@pytest.mark.parametrize("last", ["left_kidney", "spleen"])
def test_an_organ_more_than_350_mm_from_the_middle_of_all(last: str) -> None:
    near = {"liver": (3, 1, 40), "right_kidney": (3, 2, 40)}
    name = organ_by_key(last).name
    # The middle of each coordinate is that of two of the three: x 3, y 1 and z 40.
    assert doubts_about(near | {last: (3, 1, 5)}) == []
    assert doubts_about(near | {last: (3, 1, 4)}) == [f"{name}: far away from the other organs, look at the result."]
    assert doubts_about({"liver": (3, 1, 40), last: (3, 1, 4)}) == []  # which of the two would it be?


@pytest.mark.parametrize(("hounsfield", "usual"), [(-50, True), (-51, False), (350, True), (351, False)])
def test_unusual_values(hounsfield: int, usual: bool) -> None:
    text = f"Spleen: a mean of {hounsfield} HU is unusual; check that the values are in HU."
    assert doubts_about({"spleen": (5, 1, 10)}, hounsfield) == ([] if usual else [text])


def test_only_an_organs_own_voxels_count_for_its_values() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1, 1, 1:4] = labels[1:4, 1, 1] = 4
    array = np.where(labels == 4, 100, -1000).astype(np.int16)
    assert doubts(Volume(array), labels, FLARE22_ORGANS) == []
    array[1, 1, 1:4] = (-900, 300, 50)  # with the two others of 100 a mean of -70
    assert doubts(Volume(array), labels, FLARE22_ORGANS) == [
        "Spleen: a mean of -70 HU is unusual; check that the values are in HU."
    ]
