"""The report of a cohort: one HTML file that opens anywhere, pictures inside, no script, nothing loaded.

What is doubtful comes first: cases whose volumes stand out, whose organs were not found, about which the engine has
warnings, or of which it is not sure.
"""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from FlareSegmentCohortLib.cohort_cases import CohortCase
from FlareSegmentCohortLib.cohort_run import duration
from FlareSegmentCohortLib.listing import Listing, in_words
from FlareSegmentCohortLib.output_folder import (
    FAILED_FILE,
    PARQUET_FILE,
    REPORT_FILE,
    TABLE_FILE,
    THUMBNAILS,
    OutputFolder,
    read_record,
)
from FlareSegmentCohortLib.tables import Figures
from FlareSegmentLib.files.output_files import OutputFiles, not_writable
from FlareSegmentLib.organs import Organ, organ_by_key, picture_color
from FlareSegmentTrainingLib.evaluation.html_templates import report_templates

TEMPLATE = "cohort_report.html"
SHOWN_CASES = 48
"""So many cases, the most doubtful, have their thumbnail in the file."""
OUTLIER = 3.5
"""Robust z of the logarithm of a volume beyond which a case is named (Iglewicz and Hoaglin, 1993)."""

_FEWEST = 8  # cases with a whole organ, for its distribution to say which stand out
_NAMED_OUTLIERS = 12
_REASONS_SHOWN = 30


@dataclass
class _Distribution:
    """Volumes of an organ over all cases that were done.

    Attributes:
        volumes: mL; 0 where it was not found.
        cut: whether the scan cuts it.
        found: whether it was found; whole: volumes where the scan holds all of it.
        z: how far each case stands out, in robust standard deviations; 0 where the organ is cut or missing.
    """

    organ: Organ
    volumes: np.ndarray
    cut: np.ndarray

    def __post_init__(self) -> None:
        self.found = self.volumes > 0
        self.whole = self.volumes[self.found & ~self.cut]
        logarithms = np.log(self.whole) if self.whole.size else np.zeros(0)
        self.z = np.zeros(self.volumes.shape)
        if self.whole.size >= _FEWEST:
            center = np.median(logarithms)
            scale = max(float(np.median(np.abs(logarithms - center))) / 0.6745, 1e-3)
            self.z[self.found & ~self.cut] = (logarithms - center) / scale


def load_libraries() -> None:
    """Import what tables and report are made with, which takes seconds: while others work."""
    import jinja2  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import pyarrow.parquet  # noqa: F401


def write_report(folder: OutputFolder, source: str, model: str, listing: Listing, figures: Figures) -> Path:
    """Write report.html, whole or not at all. Raises FlareSegmentError."""
    organs = [
        _Distribution(organ_by_key(key), np.asarray(figures.volumes[key]), np.asarray(figures.cut[key], bool))
        for key in figures.organs
    ]
    doubts = _doubts(organs, figures)
    shown = np.argsort(-doubts, kind="stable")[:SHOWN_CASES]
    outliers = {distribution.organ.key: _outliers(distribution) for distribution in organs}
    wanted = {int(index) for index in shown} | {index for found in outliers.values() for index in found}
    cases = _cases_at(folder, figures, wanted)
    text = (
        report_templates()
        .get_template(TEMPLATE)
        .render(
            title=Path(source).name or source,
            source=source,
            model=model,
            written=time.strftime("%Y-%m-%d %H:%M"),
            figures=figures,
            total=listing.count,
            left_out=in_words(listing.left_out),
            organs=[_organ_facts(one, figures, cases, outliers[one.organ.key]) for one in organs],
            volumes_figure=_volumes_figure(organs),
            speed=_speed(figures),
            speed_figure=_speed_figure(figures),
            doubtful=[_card(folder, cases[int(index)], organs, int(index)) for index in shown if int(index) in cases],
            reasons=_reasons(figures),
            tables=(TABLE_FILE, PARQUET_FILE, FAILED_FILE),
        )
    )
    with OutputFiles(folder.path) as files:
        try:
            place = files.path("report", REPORT_FILE)
            place.write_text(text, encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            raise not_writable(folder.path, error) from error
        files.publish()
    return folder.path / REPORT_FILE


def _doubts(organs: list[_Distribution], figures: Figures) -> np.ndarray:
    """How doubtful each case is; only the order counts."""
    doubts = 0.25 * np.asarray(figures.warnings, float)
    for distribution in organs:
        doubts += np.where(distribution.found, 0.0, 1.0)
        doubts += np.where(distribution.cut, 0.1, 0.0)
        distance = np.abs(distribution.z) / OUTLIER
        doubts += np.where(distance > 1, np.minimum(distance, 3), 0.0)
    confidences = np.asarray(figures.confidences, float)
    return doubts + np.where(np.isnan(confidences), 0.0, 2 * (1 - np.nan_to_num(confidences)))


def _outliers(distribution: _Distribution) -> list[int]:
    """Places (among the cases that were done) of those that stand out, the farthest first."""
    z = np.abs(distribution.z)
    order = np.argsort(-z, kind="stable")[:_NAMED_OUTLIERS]
    return [int(index) for index in order if z[index] > OUTLIER]


def _cases_at(folder: OutputFolder, figures: Figures, wanted: set[int]) -> dict[int, tuple[CohortCase, dict]]:
    """Cases and records of some of those that were done."""
    places = {figures.numbers[index]: index for index in wanted}
    found: dict[int, tuple[CohortCase, dict]] = {}
    for number, case in enumerate(folder.cases()):
        if number in places and (record := read_record(folder.path, case.name)) is not None and "organs" in record:
            found[places[number]] = (case, record)
    return found


def _organ_facts(
    distribution: _Distribution, figures: Figures, cases: dict[int, tuple[CohortCase, dict]], outliers: list[int]
) -> dict[str, Any]:
    whole, dice = distribution.whole, np.asarray(figures.dice[distribution.organ.key])
    quartiles = np.percentile(whole, [5, 25, 50, 75, 95]).tolist() if whole.size else [None] * 5
    return {
        "name": distribution.organ.name,
        "color": "#{:02x}{:02x}{:02x}".format(*picture_color(distribution.organ)),
        "found": int(distribution.found.sum()),
        "missing": int((~distribution.found).sum()),
        "cut": int((distribution.found & distribution.cut).sum()),
        "whole": int(whole.size),
        "quartiles": quartiles,
        "least": float(whole.min()) if whole.size else None,
        "most": float(whole.max()) if whole.size else None,
        "dice": (int(dice.size), float(dice.mean()), float(dice.min())) if dice.size else None,
        "outliers": [
            {"case": cases[index][0].case, "volume": float(distribution.volumes[index]), "anchor": f"case-{index}"}
            for index in outliers
            if index in cases
        ],
    }


def _card(
    folder: OutputFolder, found: tuple[CohortCase, dict], organs: list[_Distribution], index: int
) -> dict[str, Any]:
    case, record = found
    reasons = []
    for distribution in organs:
        z = float(distribution.z[index])
        name = distribution.organ.name
        if not distribution.found[index]:
            reasons.append(f"{name} was not found")
        elif abs(z) > OUTLIER:
            reasons.append(f"{name} is {'large' if z > 0 else 'small'}: {distribution.volumes[index]:.0f} mL")
    try:
        picture = base64.b64encode((folder.path / record["files"][THUMBNAILS]).read_bytes()).decode()
    except (OSError, KeyError):
        picture = ""
    return {
        "anchor": f"case-{index}",
        "case": case.case,
        "labels": record["files"].get("labels", ""),
        "picture": picture,
        "reasons": reasons,
        "warnings": record["warnings"],
        "volumes": [
            {"name": one.organ.name, "text": _milliliters(float(one.volumes[index]), bool(one.cut[index]))}
            for one in organs
        ],
    }


def _milliliters(volume: float, cut: bool) -> str:
    return f"{'≥ ' if cut else ''}{volume:.0f} mL" if volume else "not found"


def _speed(figures: Figures) -> dict[str, Any]:
    """Seconds of the steps, and CTs an hour while the run was at work."""
    steps = {step: np.asarray(values) for step, values in figures.seconds.items()}
    if not figures.done:
        return {"steps": [], "an_hour": None, "span": ""}
    span = max(figures.finished) - figures.begun
    working = _seconds_at_work(np.asarray(figures.finished), figures.begun)
    return {
        "steps": [
            {"name": step, "median": float(np.median(values)), "most": float(np.percentile(values, 95))}
            for step, values in steps.items()
        ],
        "an_hour": 3600 * figures.done / working if working > 0 else None,
        "span": duration(span),
    }


def _seconds_at_work(finished: np.ndarray, begun: float) -> float:
    """The time in which cases were finished, without pauses between runs (an hour without any)."""
    steps = np.diff(np.sort(np.concatenate([[begun], finished])))
    return float(steps[steps < 3600].sum())


def _reasons(figures: Figures) -> list[dict[str, Any]]:
    return [
        {"reason": reason, "count": count, "example": figures.examples.get(reason, ("", reason))}
        for reason, count in figures.reasons.most_common(_REASONS_SHOWN)
    ]


def _volumes_figure(organs: list[_Distribution]) -> str:
    """Histograms of the organs' volumes, with marks where cases stand out."""
    drawn = [one for one in organs if one.whole.size]
    if not drawn:
        return ""
    from matplotlib.figure import Figure

    rows = (len(drawn) + 1) // 2
    figure = Figure(figsize=(9, 2.2 * rows + 0.4))
    grid = {"left": 0.06, "right": 0.98, "top": 1 - 0.16 / rows, "bottom": 0.24 / rows, "hspace": 0.7, "wspace": 0.15}
    axes = figure.subplots(rows, 2, squeeze=False, gridspec_kw=grid).ravel()
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    for axis, one in zip(axes, drawn):
        bins = min(40, max(5, int(np.sqrt(one.whole.size) * 2)))
        axis.hist(one.whole, bins=bins, color=[value / 255 for value in picture_color(one.organ)], linewidth=0)
        strange = one.volumes[np.abs(one.z) > OUTLIER]
        axis.plot(strange, np.zeros(strange.size), "v", color="#c0392b", markersize=6, clip_on=False)
        axis.set_title(one.organ.name, fontsize=10, loc="left")
        axis.set_xlabel("mL", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _speed_figure(figures: Figures) -> str:
    """Cases that were finished, over time."""
    if figures.done < 2:
        return ""
    from matplotlib.figure import Figure

    finished = np.sort(np.asarray(figures.finished))
    hours = (finished - figures.begun) / 3600
    chosen = np.unique(np.linspace(0, hours.size - 1, min(hours.size, 500)).astype(int))
    figure = Figure(figsize=(9, 2.6))
    axis = figure.subplots(gridspec_kw={"left": 0.09, "right": 0.98, "top": 0.95, "bottom": 0.2})
    unit, scale = ("hours", 1) if hours[-1] > 2 else ("minutes", 60)
    axis.plot(hours[chosen] * scale, chosen + 1, color="#0b7a8f")
    axis.set_xlabel(f"{unit} since the first CT", fontsize=8)
    axis.set_ylabel("CTs done", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.set_ylim(bottom=0)
    axis.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _svg(figure: Any) -> str:
    """A figure as a data address for an image."""
    stream = io.BytesIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    return base64.b64encode(stream.getvalue()).decode()
