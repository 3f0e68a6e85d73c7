"""The evaluation as one HTML file that opens anywhere: pictures inside, no script, nothing loaded from anywhere.

A content security policy in the file forbids every request. It reads on a laptop and on a phone, in light and dark.
Names of cases are shown, nothing else that could tell of a patient.
"""

from __future__ import annotations

import base64
import html
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from FlareSegmentLib.organs import Organ, organ_by_key, picture_color
from FlareSegmentTrainingLib.evaluation.comparison import CONFIDENCE, FEWEST_CASES, RESAMPLES
from FlareSegmentTrainingLib.evaluation.measurements import (
    ABSENT,
    FALSE_POSITIVE,
    LARGER_IS_BETTER,
    MISSED,
    NOT_LABELED,
    PICTURES,
    file_name,
    mean_dice,
)
from FlareSegmentTrainingLib.evaluation.roles import TRAINED
from FlareSegmentTrainingLib.training.run_folder import save_whole

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
_COMPARED_TITLES = {"volume_error_percent": "Size of volume error (%)"}
_DIGITS = {"dice": 3, "nsd": 3, "hd95_mm": 1, "volume_error_ml": 0, "volume_error_percent": 1}

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1c2128; --faint: #5b6472; --line: #d8dde4; --card: #f5f7f9;
  --best: #d9f2df; --best-ink: #0b5a25; --worst: #fde3dc; --worst-ink: #8f2410; --link: #0b5cad; --bar: #0b7a8f; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ee; --faint: #9aa4b2; --line: #343b45;
  --card: #1d2127; --best: #153d22; --best-ink: #8fe3a8; --worst: #4a1f16; --worst-ink: #ffb4a1; --link: #7cb7ff;
  --bar: #46e1ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1240px; padding: 20px; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.25rem; margin: 36px 0 8px; }
h3 { font-size: 1.1rem; margin: 0; overflow-wrap: anywhere; }
p { margin: 6px 0; max-width: 80ch; }
a { color: var(--link); }
.faint, figcaption, caption { color: var(--faint); font-size: .88rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 8px; margin: 10px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-top: 1px solid var(--line); }
thead th { border-top: 0; font-weight: 600; vertical-align: bottom; background: var(--card); }
thead tr + tr th { font-weight: 400; color: var(--faint); padding-top: 0; }
th:first-child { text-align: left; position: sticky; left: 0; background: var(--card); font-weight: 600; z-index: 1; }
thead .group { text-align: center; border-left: 1px solid var(--line); }
td.first, thead th.first { border-left: 1px solid var(--line); }
td.measure, th.measure { text-align: left; }
td.state { text-align: left; color: var(--faint); }
td small { color: var(--faint); display: block; font-size: .8rem; }
.best { background: var(--best); color: var(--best-ink); font-weight: 600; }
.worst { background: var(--worst); color: var(--worst-ink); font-weight: 600; }
.best::before, .worst::before { content: "\\25B2\\00A0"; font-size: .65em; }
.worst::before { content: "\\25BC\\00A0"; }
.best small, .worst small { color: inherit; font-weight: 400; }
.dot { display: inline-block; width: .75em; height: .75em; border-radius: 3px; margin-right: .5em; }
.case { border-top: 2px solid var(--line); padding-top: 18px; margin-top: 28px; }
.notes { margin: 6px 0; padding-left: 20px; }
.pictures { display: grid; gap: 12px; margin: 12px 0; align-items: end; }
figure { max-width: 620px; } .detail figure { max-width: 400px; }
.plane { grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr)); }
.detail { grid-template-columns: repeat(auto-fit, minmax(min(210px, 100%), 1fr)); }
.surfaces { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
figure { margin: 0; } figure img { width: 100%; height: auto; display: block; border-radius: 6px; background: #000; }
figcaption { padding-top: 4px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0; list-style: none; font-size: .88rem; }
.key i { display: inline-block; width: 1.4em; height: .55em; margin-right: .4em; vertical-align: middle; }
svg text { fill: var(--faint); font-size: 12px; } svg .axis { stroke: var(--line); } svg .zero { stroke: var(--faint); }
svg .interval { stroke: var(--bar); stroke-width: 2; } svg .mean { fill: var(--bar); }
@media (max-width: 600px) { body { padding: 12px; } th, td { padding: 6px 7px; } .detail {
  grid-template-columns: repeat(2, 1fr); } }
"""


def write_report(output: Path, content: Mapping, videos: Mapping[str, Sequence[str]]) -> Path:
    """Write report.html into the folder of an evaluation; whole or not at all.

    Args:
        content: what evaluation.json holds.
        videos: case name -> files below the folder, to which the report links.

    Raises FlareSegmentError where the disk does not take it.
    """
    organs = [organ_by_key(key) for key in content["organs"]]
    parts = [
        _head(content, organs),
        _summary(content, organs),
        _comparison(content.get("comparison"), organs),
        _overview(content["cases"], content["roles"], organs),
        _left_out(content["left_out"]),
        _method(organs, content["cases"]),
        "<h2>Cases, the worst first</h2>",
        _key(),
        *(
            _case(output, name, content["cases"][name], organs, videos.get(name, ()), rank < PICTURED_CASES)
            for rank, name in enumerate(_ranked(content))
        ),
    ]
    title = f"Evaluation of {_text(content['subject']['name'])}"
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )
    file = output / REPORT_FILE
    save_whole(file, lambda place: place.write_text(text, encoding="utf-8"))
    return file


def _head(content: Mapping, organs: Sequence[Organ]) -> str:
    subject = content["subject"]
    mean = mean_dice(content["summary"])
    overall = "" if mean is None else f" Mean Dice over the organs: <b>{mean:.3f}</b>."
    count = len(content["cases"])
    names = ", ".join(organ.name.lower() for organ in organs)
    checksum = f"Model SHA-256 {_text(subject['identity'][:16])}&hellip;" if subject["kind"] == "model" else ""
    return (
        f"<h1>Evaluation of {_text(subject['name'])}</h1>"
        f'<p class="faint">FlareSegment. Research tool, not for clinical use. '
        f"{checksum}</p>"
        f"<p>{count} {'case' if count == 1 else 'cases'}: {_text(names)}.{overall}</p>{_trained_on(content)}"
    )


def _trained_on(content: Mapping) -> str:
    """What of the figures says nothing about new CTs."""
    if content["subject"]["kind"] != "model":
        return ""
    if not content["roles"]:
        return '<p class="faint">The model does not say which cases it was trained on.</p>'
    trained = sum(role == TRAINED for role in content["roles"].values())
    if not trained:
        return '<p class="faint">None of the cases, by their names, was trained on.</p>'
    mean = mean_dice(content["summary_without_trained"] or {})
    without = "" if mean is None else f" Mean Dice of the others alone: <b>{mean:.3f}</b>."
    return (
        f"<p><b>{trained} of {len(content['cases'])} cases were trained on</b>, by their names: their figures say "
        f"nothing about new CTs.{without}</p>"
    )


def _summary(content: Mapping, organs: Sequence[Organ]) -> str:
    """Mean, median and worst case per organ; the best and the worst organ of each mean are marked."""
    summary = content["summary"]
    shown = ("dice", "nsd", "hd95_mm", "volume_error_percent")
    marks = {}
    for measure in shown:
        field = "mean_absolute" if measure == "volume_error_percent" else "mean"
        values = {key: row[measure][field] for key, row in summary.items() if row[measure]}
        marks[measure] = _marks(values, measure)
    rows = []
    for organ in organs:
        entry = summary[organ.key]
        cells = [_organ_cell(organ), f"<td>{entry['cases']}</td>"]
        for measure in shown:
            values = entry[measure]
            if values is None:
                cells.append('<td class="first">&ndash;</td><td>&ndash;</td><td>&ndash;</td>')
                continue
            percent = measure == "volume_error_percent"
            mean = values["mean_absolute" if percent else "mean"]
            second = values["mean" if percent else "median"]
            cells.append(
                f'<td class="first {marks[measure].get(organ.key, "")}">{_number(mean, measure)}</td>'
                f"<td>{_number(second, measure, signed=percent)}</td>"
                f"<td>{_link(values['worst_case'], _number(values['worst'], measure, signed=percent) or 'missed')}</td>"
            )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    groups = "".join(f'<th colspan="3" class="group">{_TITLES[measure]}</th>' for measure in shown)
    columns = '<th class="first">mean</th><th>median</th><th>worst</th>' * 3
    columns += '<th class="first">mean size</th><th>mean</th><th>worst</th>'
    notes = []
    for organ in organs:
        entry = summary[organ.key]
        told = [f"missed in {entry['missed']}"] if entry["missed"] else []
        told += [f"not labeled in {entry['not_labeled']}, left out there"] if entry["not_labeled"] else []
        told += [f"not in the scan in {entry['absent']}, no Dice there"] if entry["absent"] else []
        told += [f"false positive in {case}: {ml:.1f} mL" for case, ml in entry["false_positive"].items()]
        notes += [f"<li>{organ.name}: {_text('; '.join(told))}.</li>"] if told else []
    return (
        "<h2>Organs</h2>"
        + _table(f"<tr><th>Organ</th><th>Cases</th>{groups}</tr><tr><th></th><th></th>{columns}</tr>", rows)
        + (f'<ul class="notes faint">{"".join(notes)}</ul>' if notes else "")
    )


def _comparison(comparison: Mapping | None, organs: Sequence[Organ]) -> str:
    if not comparison:
        return ""
    rows = []
    for organ in organs:
        found = {measure: row for measure, row in comparison["organs"].get(organ.key, {}).items() if row}
        for number, (measure, row) in enumerate(found.items()):
            interval, mark = "&ndash;", ""
            if row["low"] is not None:
                mark = _verdict(row, measure)
                interval = f"{_number(row['low'], measure, True)} to {_number(row['high'], measure, True)}"
            rows.append(
                f"<tr>{_organ_cell(organ, len(found)) if number == 0 else ''}"
                f'<td class="measure">{_COMPARED_TITLES.get(measure, _TITLES[measure])}</td>'
                f'<td class="{mark}">{_number(row["difference"], measure, True)}</td><td>{interval}</td>'
                f"<td>{_number(row['mean'], measure)}</td><td>{_number(row['other_mean'], measure)}</td>"
                f"<td>{row['cases']}</td><td>{row['better']} / {row['worse']}</td></tr>"
            )
    left_out = comparison["left_out"]
    told = f"<p class='faint'>Not compared: {_text(', '.join(left_out))}.</p>" if left_out else ""
    return (
        f"<h2>Compared with {_text(comparison['name'])}</h2>"
        "<p>Differences on the same cases, first minus second, with the "
        f"{CONFIDENCE:.0%} bootstrap interval of their mean ({RESAMPLES:,} resamples of the cases; none below "
        f"{FEWEST_CASES} cases). Marked where the interval leaves out 0.</p>"
        + _forest(comparison["organs"], organs)
        + _table(
            '<tr><th>Organ</th><th class="measure">Measure</th><th>Difference</th><th>Interval</th><th>This</th>'
            "<th>Other</th><th>Cases</th><th>Better / worse in</th></tr>",
            rows,
        )
        + told
    )


def _forest(compared: Mapping, organs: Sequence[Organ]) -> str:
    """The differences in Dice with their intervals, as a drawing."""
    found = [(organ, compared.get(organ.key, {}).get("dice")) for organ in organs]
    found = [(organ, row) for organ, row in found if row]
    if not found:
        return ""
    numbers = [row[field] for _, row in found for field in ("low", "high", "difference") if row[field] is not None]
    reach = max(0.01, *(abs(number) for number in numbers)) * 1.15
    width, left, step = 400, 118, 28

    def x(value: float) -> float:
        return left + (value + reach) / (2 * reach) * (width - left - 20)

    height = step * len(found) + 40
    parts = [f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="8" y2="{height - 30}"/>']
    for number, (organ, row) in enumerate(found):
        y = 22 + step * number
        parts.append(f'<text x="0" y="{y + 4}">{organ.name}</text>')
        if row["low"] is not None:
            parts.append(
                f'<line class="interval" x1="{x(row["low"]):.1f}" x2="{x(row["high"]):.1f}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="mean" cx="{x(row["difference"]):.1f}" cy="{y}" r="5"/>')
    parts.append(f'<line class="axis" x1="{left}" x2="{width - 20}" y1="{height - 30}" y2="{height - 30}"/>')
    for value, anchor in ((-reach, "start"), (0.0, "middle"), (reach, "end")):
        parts.append(f'<text x="{x(value):.1f}" y="{height - 14}" text-anchor="{anchor}">{value:+.3f}</text>')
    return (
        f'<figure><svg viewBox="0 0 {width} {height}" style="width:100%;max-width:560px" role="img">'
        f"{''.join(parts)}</svg><figcaption>Difference in Dice; to the right of 0 this one is better.</figcaption>"
        "</figure>"
    )


def _overview(cases: Mapping[str, dict], roles: Mapping[str, str], organs: Sequence[Organ]) -> str:
    """Every case in a row: whether the model has seen it, Dice, and below it NSD and HD95; each organ's best and worst
    case are marked.
    """
    marks = {
        organ.key: _marks({name: record["organs"][organ.key]["dice"] for name, record in cases.items()}, "dice")
        for organ in organs
    }
    rows = []
    for name, record in cases.items():
        cells = [f'<td class="measure">{_text(roles.get(name, ""))}</td>'] if roles else []
        for organ in organs:
            row = record["organs"][organ.key]
            if row["dice"] is None:
                cells.append(f"<td>&ndash;<small>{_text(_state(row))}</small></td>")
                continue
            cells.append(
                f'<td class="{marks[organ.key].get(name, "")}">{row["dice"]:.3f}'
                f"<small>{row['nsd']:.3f} &middot; {_distance(row, ' mm')}</small></td>"
            )
        rows.append(f"<tr><th>{_link(name, _shortened(name))}</th>{''.join(cells)}</tr>")
    head = '<th class="measure">To the model</th>' if roles else ""
    head += "".join(f"<th>{organ.name}</th>" for organ in organs)
    return (
        '<h2>Cases</h2><p class="faint">Dice; below it NSD and HD95. Each organ\'s best and worst case are marked.</p>'
        + _table(f"<tr><th>Case</th>{head}</tr>", rows)
    )


def _left_out(left_out: Sequence[Mapping]) -> str:
    if not left_out:
        return ""
    items = "".join(f"<li>{_text(item['case'])}: {_text(item['reason'])}</li>" for item in left_out)
    return f'<h2>Left out</h2><ul class="notes">{items}</ul>'


def _method(organs: Sequence[Organ], cases: Mapping[str, dict]) -> str:
    tolerances = ", ".join(f"{organ.name.lower()} {organ.nsd_tolerance_mm:g} mm" for organ in organs)
    return (
        "<h2>How it was measured</h2><p>Dice: overlap of the voxels, 0 to 1. NSD: share of both surfaces that lies "
        f"within FLARE22's tolerance of the other ({tolerances}). HD95: 95th percentile of the distance between the "
        "surfaces. Volume error: prediction minus reference.</p><p>An organ that was not labeled in a case is left out "
        "there. One that is not in the scan has no Dice; what was predicted of it is a false positive, in mL. A missed "
        "organ counts with Dice and NSD 0 and has no HD95: means of HD95 are those of the cases in which the organ was "
        "found.</p>"
        + (
            ""
            if all(record["has_ct"] for record in cases.values())
            else "<p>Label maps were compared without their CTs: the pictures show outlines alone.</p>"
        )
    )


def _key() -> str:
    return (
        '<p class="faint">The slices are those in which most is wrong.</p><ul class="key">'
        '<li><i style="background:#46e1ff"></i>reference, and what was missed of it</li>'
        '<li><i style="background:linear-gradient(90deg,#dd8265,#9d6ca2)"></i>prediction in the organ\'s color, and '
        "what was too much of it</li></ul>"
    )


def _case(
    output: Path, name: str, record: Mapping, organs: Sequence[Organ], videos: Sequence[str], pictured: bool
) -> str:
    rows = []
    for organ in organs:
        row = record["organs"][organ.key]
        if row["dice"] is None:
            rows.append(f'<tr>{_organ_cell(organ)}<td class="state" colspan="6">{_text(_state(row))}</td></tr>')
            continue
        rows.append(
            f"<tr>{_organ_cell(organ)}<td>{row['dice']:.3f}</td><td>{row['nsd']:.3f}</td><td>{_distance(row)}</td>"
            f"<td>{row['reference_ml']:,.0f}</td><td>{row['predicted_ml']:,.0f}</td>"
            f"<td>{_number(row['volume_error_percent'], 'volume_error_percent', True)}</td></tr>"
        )
    size = " &times; ".join(str(count) for count in record["size"])
    spacing = " &times; ".join(f"{step:.3g}" for step in record["spacing_mm"])
    parts = [
        f'<section class="case" id="{_anchor(name)}"><h3>{_text(name)}</h3>',
        f'<p class="faint">{size} voxels of {spacing} mm</p>',
        _table(
            "<tr><th>Organ</th><th>Dice</th><th>NSD</th><th>HD95 (mm)</th><th>Reference (mL)</th>"
            "<th>Prediction (mL)</th><th>Volume error (%)</th></tr>",
            rows,
        ),
    ]
    if record["warnings"]:
        parts.append(
            f'<ul class="notes faint">{"".join(f"<li>{_text(text)}</li>" for text in record["warnings"])}</ul>'
        )
    if not pictured and record["pictures"]:
        files = ", ".join(_text(picture["file"]) for picture in record["pictures"])
        parts.append(f'<p class="faint">Pictures in the folder {PICTURES}: {files}</p>')
    for kind in ("plane", "detail", "surfaces") if pictured else ():
        figures = [_figure(output, name, picture) for picture in record["pictures"] if picture["kind"] == kind]
        if figures:
            parts.append(f'<div class="pictures {kind}">{"".join(figures)}</div>')
    if videos:
        links = ", ".join(f'<a href="{_text(file)}">{_text(Path(file).name)}</a>' for file in videos)
        parts.append(f"<p>Videos beside this report: {links}</p>")
    return "".join(parts) + "</section>"


def _figure(output: Path, case: str, picture: Mapping[str, str]) -> str:
    data = base64.b64encode((output / PICTURES / picture["file"]).read_bytes()).decode()
    title = _text(picture["title"])
    return (
        f'<figure><img alt="{_text(case)}: {title}" src="data:image/jpeg;base64,{data}">'
        f"<figcaption>{title}</figcaption></figure>"
    )


# Help ---------------------------------------------------------------------------------------------


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
    if row["low"] <= 0 <= row["high"]:
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


def _table(head: str, rows: Sequence[str]) -> str:
    """A table that scrolls by itself where the page is too narrow."""
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def _organ_cell(organ: Organ, rows: int = 1) -> str:
    color = ",".join(str(value) for value in picture_color(organ))
    span = f' rowspan="{rows}" style="vertical-align:top"' if rows > 1 else ""
    return f'<th{span}><span class="dot" style="background:rgb({color})"></span>{organ.name}</th>'


def _link(case: str, text: str) -> str:
    return f'<a href="#{_anchor(case)}" title="{_text(case)}">{_text(text)}</a>'


def _anchor(case: str) -> str:
    return f"case-{file_name(case)}"


def _shortened(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:18]}\u2026{name[-8:]}"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
