"""The organs' codes, labels and terminology entries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from FlareSegmentLib.organs import FLARE22_ORGANS, LABEL_TABLES, ORGANS, organ_by_key, picture_color, terminology_entry


def test_label_values():
    assert {organ.key: organ.label for organ in ORGANS} == {
        "liver": 1,
        "right_kidney": 2,
        "left_kidney": 3,
        "spleen": 4,
    }
    assert {key: LABEL_TABLES["flare22"][key] for key in ("liver", "right_kidney", "left_kidney", "spleen")} == {
        "liver": 1,
        "right_kidney": 2,
        "left_kidney": 13,
        "spleen": 3,
    }
    for table in LABEL_TABLES.values():
        assert sorted(table.values()) == list(range(1, len(FLARE22_ORGANS) + 1))


@pytest.mark.parametrize(
    ("key", "codes"),
    [
        ("liver", ("10200004", "")),
        ("right_kidney", ("64033007", "24028007")),
        ("left_kidney", ("64033007", "7771000")),
        ("spleen", ("78961009", "")),
    ],
)
def test_terminology_entries(key, codes):
    parts = terminology_entry(organ_by_key(key)).split("~")
    assert len(parts) == 7
    assert tuple(part.split("^")[1] for part in parts[2:4]) == codes
    assert parts[1] == "SCT^123037004^Anatomical Structure"


def test_an_unknown_organ_is_refused():
    with pytest.raises(KeyError):
        organ_by_key("heart")


def lab(color: tuple[int, int, int]) -> np.ndarray:
    """CIE L*a*b* (D65) of an sRGB color."""
    linear = np.array([v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in np.array(color) / 255])
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    xyz = np.array(matrix) @ linear / [0.9505, 1.0, 1.089]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def test_pictures_tell_organs_and_sides_apart() -> None:
    """Two colors at a distance of 30 are different at a glance; Slicer's liver and kidneys are 27 and 0 apart."""
    colors = {organ.key: lab(picture_color(organ)) for organ in FLARE22_ORGANS}
    four = [colors[organ.key] for organ in ORGANS]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(four, 2)) > 40
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colors.values(), 2)) > 12
    assert all(len(organ.color) == 3 for organ in FLARE22_ORGANS)
