"""Sides and posture, judged from what the first stage finds, and compared with the header."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from known_patient import COARSE_KNOWING, FINE_KNOWING, KnowingModel, scan_of_patient
from test_pipeline import BrightnessNetwork, FakeModel

from FlareSegmentLib.inference.organ_search import Piece
from FlareSegmentLib.inference.orientation import orientation_doubts
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume


def piece(organ: int, ml: float, sure: float, height: float = 0.0) -> Piece:
    return Piece(organ, ml, sure * ml, np.array([height, 0, 0]), np.array([height + 1, 1, 1]))


GOOD = [piece(1, 1500, 0.8, 20), piece(4, 200, 0.75, 21), piece(2, 180, 0.7, 12), piece(3, 170, 0.7, 13)]
UPSIDE_DOWN = [piece(1, 900, 0.7, 12), piece(4, 100, 0.5), piece(3, 170, 0.6, 17)]
MIRRORED = [piece(1, 600, 0.45), piece(4, 450, 0.55), piece(2, 170, 0.6), piece(3, 160, 0.6)]
IMAGE = torch.full((40, 40, 50), -1.0)
IMAGE[2:38, 5:35, 5:45] = 0.2


def with_bones(row: int) -> torch.Tensor:
    image = IMAGE.clone()
    image[2:38, row : row + 4, 22:28] = 1.0
    return image


def looks(answers: dict[tuple[int, ...], list[Piece]], image: torch.Tensor, seen: list):
    """Gives what would be found in each orientation; None of them changes what is found where it is not named."""

    def look(turned: torch.Tensor) -> list[Piece]:
        for flips in ((2,), (1,), (0,), (1, 2), (0, 2), (0, 1), (0, 1, 2)):
            if torch.equal(turned, image.flip(flips)) and flips not in seen:
                seen.append(flips)
                return answers.get(flips, MIRRORED)
        raise AssertionError

    return look


def test_a_usual_scan_is_not_looked_at_again() -> None:
    def look(turned: torch.Tensor) -> list[Piece]:
        raise AssertionError

    assert orientation_doubts(with_bones(28), GOOD, ORGANS, look, 4.0) == []
    assert orientation_doubts(IMAGE, [piece(2, 60, 0.1)], ORGANS, look, 4.0) == []  # no abdomen
    assert orientation_doubts(IMAGE, MIRRORED, ORGANS[1:2], look, 4.0) == []  # a model of the right kidney only


@pytest.mark.parametrize(
    ("row", "flips", "words"),
    [
        (28, (2,), "Left and right are in doubt"),
        (8, (1,), "Front and back are in doubt"),
        (8, (1, 2), "Left and right and front and back are in doubt"),
    ],
)
def test_what_looks_better_exchanged_is_said(row: int, flips: tuple[int, ...], words: str) -> None:
    image = with_bones(row)
    image[30, 20, 20] = 0.9  # no symmetry
    image[10, 12, 30] = 0.8
    (line,) = orientation_doubts(image, MIRRORED, ORGANS, looks({flips: GOOD}, image, []), 4.0)
    assert line.startswith(words) and ("situs inversus" in line) == (flips == (2,))


def test_a_kidney_above_the_liver_is_looked_at() -> None:
    image = with_bones(28)
    image[30, 20, 20] = 0.9
    (line,) = orientation_doubts(image, UPSIDE_DOWN, ORGANS, looks({(0,): GOOD}, image, []), 4.0)
    assert line.startswith("Head and feet are in doubt")
    in_a_shoulder = [*GOOD[:2], piece(2, 60, 0.7, 80)]
    assert orientation_doubts(image, in_a_shoulder, ORGANS, looks({}, image, []), 4.0) == []


@pytest.mark.parametrize("turns", [1, 3])
def test_a_quarter_turn_is_said(turns: int) -> None:
    upright = with_bones(28)
    image = upright.rot90(turns, (1, 2))

    def look(again: torch.Tensor) -> list[Piece]:
        return GOOD if torch.equal(again, upright) else MIRRORED

    (line,) = orientation_doubts(image, MIRRORED, ORGANS, look, 4.0)
    assert "turned by 90 degrees" in line
    assert orientation_doubts(image, GOOD, ORGANS, lambda again: MIRRORED, 4.0) == []


def test_an_odd_patient_is_no_mirrored_one() -> None:
    image = with_bones(28)
    image[30, 20, 20] = 0.9
    assert orientation_doubts(image, MIRRORED, ORGANS, looks({}, image, []), 4.0) == []
    vague = [piece(1, 500, 0.2), piece(4, 200, 0.3)]
    (line,) = orientation_doubts(image, vague, ORGANS, looks({(2,): vague}, image, []), 4.0)
    assert "sure of 23 %" in line or "in doubt" in line


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(KnowingModel(COARSE_KNOWING, FINE_KNOWING), "cpu")


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ((), None),
        ((2,), "left and right"),
        ((0,), "head and feet"),
        ((1,), "front and back"),
        ((1, 2), "front and back"),
    ],
)
def test_the_whole_way(segmenter: Segmenter, axes: tuple[int, ...], words: str | None) -> None:
    volume, _ = scan_of_patient()
    flipped = Volume(np.flip(volume.array, axes), volume.spacing, volume.origin, volume.direction)
    said = [line for line in segmenter.segment(flipped).warnings if "in doubt" in line and "exchanged" in line]
    assert len(said) == (words is not None)
    assert all(words in line.lower() for line in said)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_quarter_turn_the_whole_way(segmenter: Segmenter, turns: int) -> None:
    volume, _ = scan_of_patient()
    turned = Volume(np.rot90(volume.array, turns, (1, 2)), volume.spacing, volume.origin, volume.direction)
    assert any("turned by 90 degrees" in line for line in segmenter.segment(turned).warnings)


def test_the_fake_networks_of_other_tests_raise_no_doubt() -> None:
    volume, _ = scan_of_patient()
    result = Segmenter(FakeModel(COARSE_KNOWING, FINE_KNOWING, kind=BrightnessNetwork), "cpu").segment(volume)
    assert not any("in doubt" in line for line in result.warnings)
