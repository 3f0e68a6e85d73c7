"""The report of a teaching as text (Markdown): what got better and what worse, for people and for the model's card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from FlareSegmentLib.organs import Organ, organ_by_key
from FlareSegmentTrainingLib.evaluation.comparison import CONFIDENCE, FEWEST_CASES

SIDES = {
    "examples": "Examples, each measured by a model that was not taught with it",
    "stability": "Made-up scans that it must not unlearn",
}


def markdown(report: dict, organs: Sequence[Organ]) -> str:
    """The text of a report, as `Teaching` writes it into report.json."""
    lines = ["## Teaching", f"Taught from {report['model']} with {report['example_count']} examples."]
    if report["offered"]:
        lines.append("The taught model is better, and is offered.")
    else:
        lines += ["The taught model is not offered:", "\n".join(f"- {reason}" for reason in report["reasons"])]
    for side, title in SIDES.items():
        part = report[side]
        if not part["scans"]:
            continue
        lines += [f"### {title}", table(part, organs)]
        kept = Counter(organ for _, organ in report.get("kept_as_found", ())) if side == "examples" else Counter()
        if part["difference"] is not None:
            what = "what was corrected" if kept else "organs and scans"
            lines.append(f"Mean difference of Dice over {what}: {part['difference']:+.4f}")
        if kept:
            names = ", ".join(f"{organ_by_key(key).name.lower()} in {count}" for key, count in sorted(kept.items()))
            lines.append(f"As the old model had found them, so that no other can seem better there: {names}.")
        before, after = part["false_positive_ml_before"], part["false_positive_ml_after"]
        if before or after:
            lines.append(f"Found of organs that are not there: {before:.0f} mL before, {after:.0f} mL after")
    lines.append(
        f"Intervals: {100 * CONFIDENCE:.0f} % bootstrap over the scans, from {FEWEST_CASES} scans on. Few scans say "
        "little about others."
    )
    lines.append("Recipe: " + ", ".join(f"{key} {value:g}" for key, value in report["recipe"].items()))
    return "\n\n".join(lines) + "\n"


def summary(report: dict) -> str:
    """What a report says in lines that fit a narrow panel (Markdown)."""
    lines = ["The taught model is better." if report["offered"] else "**The taught model is not offered:**"]
    lines += [f"- {reason}" for reason in report["reasons"]]
    for side, title in (("examples", "Examples, held out"), ("stability", "Not to be unlearned")):
        rows = {key: row for key, row in report[side]["organs"].items() if row is not None}
        if rows:
            lines.append(f"\n**{title}**, Dice:\n")
        for key, row in rows.items():
            interval = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
            before, after = row["other_mean"], row["mean"]
            name = organ_by_key(key).name
            lines.append(f"- {name}: {before:.3f} → {after:.3f}, {row['difference']:+.3f}{interval}")
    return "\n".join(lines) + "\n"


def table(part: dict, organs: Sequence[Organ]) -> str:
    """One side of a report as a table, a row for each organ that was measured."""
    rows = ["| Organ | Scans | Dice before | Dice after | Difference | Interval |", "|---|---|---|---|---|---|"]
    for organ in organs:
        row = part["organs"].get(organ.key)
        if row is not None:
            interval = "–" if row["low"] is None else f"{row['low']:+.3f} to {row['high']:+.3f}"
            rows.append(
                f"| {organ.name} | {row['cases']} | {row['other_mean']:.3f} | {row['mean']:.3f} | "
                f"{row['difference']:+.3f} | {interval} |"
            )
    return "\n".join(rows)
