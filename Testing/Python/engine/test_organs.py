"""The organs' codes, labels and terminology entries."""

from __future__ import annotations

import pytest

from FlareSegmentLib.organs import FLARE22_ORGANS, LABEL_TABLES, ORGANS, organ_by_key, terminology_entry


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
