"""The evaluation as one HTML file that opens anywhere: pictures inside, no script, nothing loaded from anywhere.

A content security policy in the file forbids every request. It reads on a laptop and on a phone, in light and dark.
Names of cases are shown, nothing else that could tell of a patient. What it says stands in
Resources/Templates/evaluation_report.html; here is what that is filled with.
"""

from __future__ import annotations

import base64
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from FlareSegmentLib.organs import Organ, organ_by_key, picture_color
from FlareSegmentTrainingLib.evaluation.comparison import CONFIDENCE, FEWEST_CASES, RESAMPLES
from FlareSegmentTrainingLib.evaluation.figures import (
    ABSENT,
    FALSE_POSITIVE,
    LARGER_IS_BETTER,
    MISSED,
    NOT_LABELED,
    mean_dice,
)
from FlareSegmentTrainingLib.evaluation.html_templates import report_templates
from FlareSegmentTrainingLib.evaluation.measurements import PICTURES, file_name
from FlareSegmentTrainingLib.evaluation.roles import TRAINED
from FlareSegmentTrainingLib.runs.watched_folder import save_whole

REPORT_FILE = "report.html"
PICTURED_CASES = 20
"""So many cases, the worst, have their pictures in the file, which stays below 10 MB; all lie in a folder beside it."""

_TITLES = {
    "dice": "Dice",
    "nsd": "NSD",
    "hd95_mm": "HD95 (mm)",
    "volume_error_ml": "Volume error (mL)",
    "volume_error_percent": "Volume error (%)",
}
_SUMMARIZED = ("dice", "nsd", "hd95_mm", "volume_error_percent")
_DIGITS = {"dice": 3, "nsd": 3, "hd95_mm": 1, "volume_error_ml": 0, "volume_error_percent": 1}


def write_report(output: Path, content: Mapping, videos: Mapping[str, Sequence[str]]) -> Path:
    """Write report.html into the folder of an evaluation; whole or not at all.

    Args:
        content: what evaluation.json holds.
        videos: case name -> files below the folder, to which the report links.

    Raises:
        InputError: the package jinja2 is missing.
        FlareSegmentError: the disk does not take it.
    """
    organs = [organ_by_key(key) for key in content["organs"]]
    cases, summary, comparison = content["cases"], content["summary"], content.get("comparison")
    text = _template(output).render(
        content=content,
        organs=organs,
        titles=_TITLES,
        mean=mean_dice(summary),
        trained=sum(role == TRAINED for role in content["roles"].values()),
        others_mean=mean_dice(content["summary_without_trained"] or {}),
        summarized=_SUMMARIZED,
        mean_field=_mean_field,
        summary_marks={
            measure: _marks(
                {key: row[measure][_mean_field(measure)] for key, row in summary.items() if row[measure]}, measure
            )
            for measure in _SUMMARIZED
        },
        notes=[(organ.name, text) for organ in organs if (text := _note(summary[organ.key]))],
        drawing=_forest(comparison["organs"], organs) if comparison else None,
        confidence=CONFIDENCE,
        resamples=RESAMPLES,
        fewest_cases=FEWEST_CASES,
        case_marks={
            organ.key: _marks({name: record["organs"][organ.key]["dice"] for name, record in cases.items()}, "dice")
            for organ in organs
        },
        ranked=_ranked(content),
        pictured_cases=PICTURED_CASES,
        pictures_folder=PICTURES,
        videos=videos,
    )
    file = output / REPORT_FILE
    save_whole(file, lambda place: place.write_text(text, encoding="utf-8"))
    return file


def _template(output: Path) -> Any:
    environment = report_templates()
    environment.filters.update(
        anchor=_anchor,
        color=lambda organ: ",".join(map(str, picture_color(organ))),
        data_url=partial(_data_url, output / PICTURES),
        distance=_distance,
        number=_number,
        shortened=_shortened,
        state=_state,
        verdict=_verdict,
    )
    return environment.get_template("evaluation_report.html")


def _mean_field(measure: str) -> str:
    return "mean_absolute" if measure == "volume_error_percent" else "mean"


def _note(entry: Mapping) -> str:
    """What the means of an organ leave out."""
    told = [f"missed in {entry['missed']}"] if entry["missed"] else []
    told += [f"not labeled in {entry['not_labeled']}, left out there"] if entry["not_labeled"] else []
    told += [f"not in the scan in {entry['absent']}, no Dice there"] if entry["absent"] else []
    told += [f"false positive in {case}: {ml:.1f} mL" for case, ml in entry["false_positive"].items()]
    return "; ".join(told)


def _forest(compared: Mapping, organs: Sequence[Organ]) -> dict | None:
    """Where the differences in Dice and their intervals are drawn; None without any."""
    found = [(organ.name, compared.get(organ.key, {}).get("dice")) for organ in organs]
    found = [(name, row) for name, row in found if row]
    if not found:
        return None
    numbers = [row[field] for _, row in found for field in ("low", "high", "difference") if row[field] is not None]
    reach = max(0.01, *(abs(number) for number in numbers)) * 1.15
    width, left, step = 400, 118, 28
    height = step * len(found) + 40

    def x(value: float | None) -> str | None:
        return None if value is None else f"{left + (value + reach) / (2 * reach) * (width - left - 20):.1f}"

    rows = [
        {"name": name, "y": 22 + step * number, **{field: x(row[field]) for field in ("low", "high", "difference")}}
        for number, (name, row) in enumerate(found)
    ]
    ticks = [
        {"x": x(value), "value": value, "anchor": anchor}
        for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end"))
    ]
    sides = {"left": left, "right": width - 20, "bottom": height - 30}
    return {"width": width, "height": height, **sides, "zero": x(0.0), "rows": rows, "ticks": ticks}


def _ranked(content: Mapping) -> list[str]:
    """Case names, the lowest mean Dice first; cases without Dice last."""

    def mean(name: str) -> float:
        values = [row["dice"] for row in content["cases"][name]["organs"].values() if row["dice"] is not None]
        return statistics.fmean(values) if values else float("inf")

    return sorted(content["cases"], key=mean)


def _marks(values: Mapping[str, float | None], measure: str) -> dict[str, str]:
    """Which of the values is the best and which the worst; none where they do not differ as they are shown."""
    found = {key: round(value, _DIGITS[measure]) for key, value in values.items() if value is not None}
    if len(set(found.values())) < 2:
        return {}
    choose: tuple[Callable, Callable] = (max, min) if measure in LARGER_IS_BETTER else (min, max)
    best, worst = (pick(found.values()) for pick in choose)
    return {key: "best" if value == best else "worst" for key, value in found.items() if value in (best, worst)}


def _verdict(row: Mapping, measure: str) -> str:
    if row["low"] is None or row["low"] <= 0 <= row["high"]:
        return ""
    return "best" if (row["difference"] > 0) == (measure in LARGER_IS_BETTER) else "worst"


def _state(row: Mapping) -> str:
    if row["status"] == FALSE_POSITIVE:
        return f"not in the scan, {row['false_positive_ml']:.1f} mL predicted"
    return {ABSENT: "not in the scan, none predicted", NOT_LABELED: "not labeled, left out", MISSED: "missed"}[
        row["status"]
    ]


def _number(value: float | None, measure: str, signed: bool = False) -> str:
    if value is None:
        return ""
    return f"{value:{'+' if signed else ''}.{_DIGITS[measure]}f}"


def _distance(row: Mapping, unit: str = "") -> str:
    """The HD95 of an organ that has a Dice: infinite where it was missed."""
    return "missed" if row["hd95_mm"] is None else _number(row["hd95_mm"], "hd95_mm") + unit


def _anchor(case: str) -> str:
    return f"case-{file_name(case)}"


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:18]}\u2026{name[-8:]}"


def _data_url(folder: Path, file: str) -> str:
    return "data:image/jpeg;base64," + base64.b64encode((folder / file).read_bytes()).decode()
