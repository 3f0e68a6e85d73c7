"""Meaning of label values: public tables against the data sets' own lists, users' maps, and what must never be
guessed.
"""

from __future__ import annotations

import json
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS, organ_by_key
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS, LabelMap, label_map_of_names, parse_label_map

# The lists as the data sets publish them.
FLARE22_NAMES = """background liver,right kidney,spleen,pancreas,aorta,inferior vena cava,right adrenal gland,left
adrenal gland,gallbladder, esophagus,stomach,duodenum,left kidney""".replace("background ", "background,")
BTCV_NAMES = """background,spleen,rkid,lkid,gall,eso,liver,sto,aorta,IVC,veins,pancreas,rad,lad"""
AMOS_NAMES = """background,spleen,right kidney,left kidney,gall
bladder,esophagus,liver,stomach,arota,postcava,pancreas,right adrenal gland, left adrenal
gland,duodenum,bladder,prostate/uterus"""


def names(text: str) -> dict[str, str]:
    return {str(value): name.strip() for value, name in enumerate(text.split(","))}


def test_flare22_table_is_that_of_its_own_list() -> None:
    assert label_map_of_names("x", names(FLARE22_NAMES)).organs == LABEL_MAPS["flare22"].organs
    assert len(LABEL_MAPS["flare22"].labeled) == 13


def test_amos_table_is_that_of_its_own_list() -> None:
    own = label_map_of_names("x", names(AMOS_NAMES))
    assert (own.organs, own.others) == (LABEL_MAPS["amos"].organs, LABEL_MAPS["amos"].others)


def test_btcv_knows_where_its_kidneys_are() -> None:
    for value, name in names(BTCV_NAMES).items():
        for label_value, key in LABEL_MAPS["btcv"].organs:
            if str(label_value) == value and name in ("spleen", "liver", "aorta", "pancreas", "rkid", "lkid", "IVC"):
                assert label_map_of_names("x", {"1": name}).organs == ((1, key),)
    assert LABEL_MAPS["btcv"].others == {10}


@pytest.mark.parametrize("table", LABEL_MAPS.values(), ids=LABEL_MAPS)
def test_every_table_maps_every_value_it_knows(table: LabelMap) -> None:
    values = [0, *(value for value, _ in table.organs), *sorted(table.others)]
    result = table.apply(np.array([[values]], np.int64))[0, 0]
    assert result[0] == 0
    for value, label in zip(values[1:], result[1:]):
        key = dict(table.organs).get(value)
        assert label == (organ_by_key(key).label if key else 0)
    with pytest.raises(InputError, match="999"):
        table.apply(np.array([[[0, 999]]]))


def test_tumors_belong_to_their_organ() -> None:
    liver = label_map_of_names("x", {"0": "background", "1": "liver", "2": "cancer"})
    assert liver.organs == LABEL_MAPS["msd-liver"].organs
    assert label_map_of_names("x", {"liver": 1, "spleen": 2, "liver tumor": 3}).organs == (
        (1, "liver"),
        (2, "spleen"),
        (3, "liver"),
    )
    two = label_map_of_names("x", {"liver": 1, "spleen": 2, "tumor": 3})
    assert (two.organs, two.others) == (((1, "liver"), (2, "spleen")), {3})
    vessels = label_map_of_names("x", {"0": "background", "1": "Vessel", "2": "Tumour"})
    assert (vessels.organs, vessels.others) == ((), {1, 2})
    kidney = label_map_of_names("x", {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2})
    assert (kidney.organs, kidney.others) == ((), {1, 2, 3})


@pytest.mark.parametrize(
    "text",
    [
        "1=liver,2=liver,3=spleen,7=other",
        '{"1": "liver", "2": "liver", "3": "spleen", "7": "other"}',
        '{"liver": [1, 2], "spleen": 3, "other": 7}',
    ],
)
def test_users_maps(tmp_path: Path, text: str) -> None:
    if text.startswith("{"):
        (tmp_path / "map.json").write_text(text)
        text = str(tmp_path / "map.json")
    result = parse_label_map(text)
    assert result.organs == ((1, "liver"), (2, "liver"), (3, "spleen"))
    assert result.others == {7}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nosuchtable", "nosuchtable"),
        ("1=livre", "livre"),
        ("1=liver,1=spleen", "twice"),
        ("x=liver", "not understood"),
        ("-1=liver", "1 and above"),
        ("1=other", "no organ"),
        ("=", "no organ|not understood"),
        ('["liver"]', "no label map"),
        ("{broken", "JSON"),
        ('{"liver": 1, "spleen": 1}', "both"),
        ('{"liver": {"a": 1}}', "not understood"),
        ('{"liver": 1.5e400}', "not understood|JSON"),
        ('{"liver": 1.5}', "not understood"),
        ('{"liver": null}', "not understood"),
    ],
)
def test_bad_maps_give_one_line(tmp_path: Path, text: str, reason: str) -> None:
    if text[0] in "[{":
        (tmp_path / "map.json").write_text(text)
        text = str(tmp_path / "map.json")
    with pytest.raises(InputError, match=reason) as caught:
        parse_label_map(text)
    assert "\n" not in str(caught.value)


@given(st.permutations(range(1, 14)))
def test_any_order_of_values_is_undone(values: list[int]) -> None:
    """nnU-Net's list in both directions, with any numbering, gives FlareSegment's own values back."""
    by_name = {organ.name: value for organ, value in zip(FLARE22_ORGANS, values)}
    by_value = {str(value): name for name, value in by_name.items()}
    array = np.array([[[0, *values]]], np.uint8)
    for listed in (by_name, by_value):
        table = label_map_of_names("x", json.loads(json.dumps(listed)))
        assert table.apply(array).ravel().tolist() == list(range(14))


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["{} kidney", "kidney_{}", "Kidney-{}", "KIDNEY {}", "{} Kidney "])
def test_left_and_right_are_never_taken_for_each_other(side: str, name: str) -> None:
    assert label_map_of_names("x", {name.format(side): 1}).organs == ((1, f"{side}_kidney"),)
    assert label_map_of_names("x", {f"{side[0]}kid": 1}).organs == ((1, f"{side}_kidney"),)
    assert label_map_of_names("x", {"kidney": 1}).organs == ()


def test_a_kidney_without_its_side_is_said(tmp_path: Path) -> None:
    for text in ("1=kidney,2=liver", "1=Kidneys", "1=Niere", "1=adrenal gland"):
        with pytest.raises(InputError, match="says no side; right and left need values of their own"):
            parse_label_map(text)
    liver = label_map_of_names("x", {"liver": 1, "kidney": 2, "tumor": 3})
    assert liver.sideless == ("kidney",) and "kidney (not used, for its side is not said)" in liver.in_words()
    assert label_map_of_names("x", {"right kidney": 1, "left kidney": 2, "liver": 3, "uterus": 4}).sideless == ()

    def reason(layout: Path) -> str:
        with pytest.raises(InputError) as caught:
            find_cases(layout, left_out=lambda item: None)
        return str(caught.value)

    for number in range(2):
        layouts.write_pair(
            tmp_path / f"case_{number:05d}/imaging.nii.gz", tmp_path / f"case_{number:05d}/segmentation.nii.gz", number
        )
    assert "If it is KiTS: its kidneys say no side" in reason(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "kidney": 1, "tumor": 2}}))
    assert "'kidney' says no side; right and left need values of their own" in reason(tmp_path)
