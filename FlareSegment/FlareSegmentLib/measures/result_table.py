"""The table of a result, in one place: what panel, command, CSV files and pictures say of each organ."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from FlareSegmentLib.organs import organ_by_key

SCORES = ("dice", "nsd", "hd95_mm")
EXTENTS = ("left_right_mm", "front_back_mm", "head_foot_mm")
AT_LEAST = ">="
"""In terminals, which may know ASCII only."""
COLUMNS = ("label", "volume_ml", "cut", "mean_hu", "sd_hu", *EXTENTS)
"""Of every table, in this order; SCORES follow where there is a reference."""


def organ_rows(
    statistics: Mapping[str, Mapping[str, Any]],
    scores: Mapping[str, Mapping[str, Any]] | None = None,
    label_values: Mapping[str, int] | None = None,
) -> dict[str, dict[str, Any]]:
    """{organ key: {column: number, or None for what cannot be said}}.

    Args:
        statistics: of `organ_statistics`.
        scores: {organ key: {"dice", "nsd", "hd95_mm"}} where there is a reference.
        label_values: {organ key: its value in the written label map}, if not FlareSegment's own.

    Returns:
        Rows of COLUMNS: ``cut`` is 1 where the scan cuts the organ, so that its volume is at least the one told, and 0
        elsewhere; the extents are those of the organ's box along the patient's axes.
    """
    rows = {}
    for key, facts in statistics.items():
        extents = facts.get("extent_mm") or (None,) * 3
        rows[key] = {
            "label": facts["label"] if label_values is None else label_values[key],
            "volume_ml": facts["volume_ml"],
            "cut": int(bool(facts.get("touches_border"))),
            "mean_hu": facts.get("mean_hu"),
            "sd_hu": facts.get("sd_hu"),
            **dict(zip(EXTENTS, extents)),
        }
        if scores is not None:
            rows[key].update({name: scores.get(key, {}).get(name) for name in SCORES})
    return rows


def volume_text(volume_ml: float, cut: bool, digits: int = 1, at_least: str = "\u2265") -> str:
    """A volume for people: with \u2265 where the scan cuts the organ, or what stands for it in a terminal, AT_LEAST."""
    return f"{at_least} " * cut + f"{volume_ml:.{digits}f}"


def csv_text(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The rows as comma-separated values, plain numbers with a point; nothing for what cannot be said."""
    names = list(COLUMNS) + [name for name in SCORES if any(name in row for row in rows.values())]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(["organ", *names])
    for key, row in rows.items():
        writer.writerow([key, *("" if row.get(name) is None else _number(row[name]) for name in names)])
    return stream.getvalue()


def text_lines(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The rows for a terminal."""
    columns: list[tuple[str, str, int]] = [("volume_ml", "Volume (mL)", 1), ("mean_hu", "Mean HU", 1)]
    if any(name in row for row in rows.values() for name in SCORES):
        columns += [("dice", "Dice", 3), ("nsd", "NSD", 3), ("hd95_mm", "HD95 (mm)", 1)]
    lines = [f"{'Organ':<16}" + "".join(f"{title:>13}" for _, title, _ in columns)]
    for key, row in rows.items():
        cells = [_cell(row, name, digits) for name, _, digits in columns]
        lines.append(f"{organ_by_key(key).name:<16}" + "".join(f"{cell:>13}" for cell in cells))
    return lines


def _cell(row: Mapping[str, Any], name: str, digits: int) -> str:
    if row.get(name) is None:
        return "-"
    if name == "volume_ml":
        return volume_text(row[name], bool(row["cut"]), digits, AT_LEAST)
    return f"{row[name]:.{digits}f}"


def _number(value: float) -> float | int:
    return round(value, 4) if isinstance(value, float) else value
