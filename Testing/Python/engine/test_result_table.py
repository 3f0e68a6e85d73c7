"""The one table of a result: numbers for programs, words for people, the same in every place."""

from __future__ import annotations

import csv
import io

import numpy as np
import pytest

from FlareSegmentLib.measures.organ_statistics import organ_statistics
from FlareSegmentLib.measures.result_table import COLUMNS, SCORES, csv_text, organ_rows, text_lines, volume_text
from FlareSegmentLib.organs import LABEL_TABLES, ORGANS
from FlareSegmentLib.volume import Volume


@pytest.fixture
def statistics() -> dict:
    """A whole liver of 4 x 3 x 2 voxels, a spleen that the scan cuts, no kidneys; voxels of 6 mm3."""
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[1:3, 2:5, 3:7] = 1
    labels[8, 4:6, 4:6] = 4
    array = np.where(labels == 1, 60, -20).astype(np.int16)
    array[1, 2, 3] = 108
    return organ_statistics(Volume(array, (1.0, 2.0, 3.0)), labels)


def test_rows_are_numbers(statistics: dict) -> None:
    rows = organ_rows(statistics)
    assert list(rows) == [organ.key for organ in ORGANS]
    assert all(tuple(row) == COLUMNS for row in rows.values())
    liver = rows["liver"]
    assert (liver["label"], liver["cut"]) == (1, 0)
    assert liver["volume_ml"] == pytest.approx(24 * 0.006)
    assert (liver["mean_hu"], liver["sd_hu"]) == (62, pytest.approx(48 * 23**0.5 / 24))
    assert [liver[name] for name in ("left_right_mm", "front_back_mm", "head_foot_mm")] == [4, 6, 6]
    assert rows["spleen"]["cut"] == 1 and rows["left_kidney"]["volume_ml"] == 0
    assert rows["left_kidney"]["mean_hu"] is None and rows["left_kidney"]["head_foot_mm"] is None


def test_label_values_and_scores(statistics: dict) -> None:
    scores = {"liver": {"dice": 0.5, "nsd": 0.25, "hd95_mm": float("inf"), "else": 1}}
    rows = organ_rows(statistics, scores, LABEL_TABLES["flare22"])
    assert [row["label"] for row in rows.values()] == [1, 2, 13, 3]
    assert all(tuple(row) == COLUMNS + SCORES for row in rows.values())
    assert rows["liver"]["dice"] == 0.5 and rows["spleen"]["dice"] is None


def test_comma_separated_values(statistics: dict) -> None:
    table = list(csv.DictReader(io.StringIO(csv_text(organ_rows(statistics)))))
    assert list(table[0]) == ["organ", *COLUMNS]
    assert [row["cut"] for row in table] == ["0", "0", "0", "1"]
    assert table[1]["mean_hu"] == "" and float(table[0]["volume_ml"]) == 0.144
    scored = csv_text(organ_rows(statistics, {"liver": {"dice": 1 / 3}}))
    assert scored.splitlines()[0].endswith(",dice,nsd,hd95_mm")
    assert scored.splitlines()[1].endswith(",0.3333,,")


def test_people_are_told_what_is_cut(statistics: dict) -> None:
    assert volume_text(1234.56, False) == "1234.6" and volume_text(1234.56, True, 0) == "\u2265 1235"
    lines = text_lines(organ_rows(statistics))
    assert lines[0].split() == ["Organ", "Volume", "(mL)", "Mean", "HU"]
    assert lines[1].split() == ["Liver", "0.1", "62.0"]
    assert lines[3].split() == ["Left", "kidney", "0.0", "-"]
    assert lines[4].split() == ["Spleen", ">=", "0.0", "-20.0"]
    assert text_lines(organ_rows(statistics, {}))[1].split()[-3:] == ["-", "-", "-"]
