"""Prints the table `check x {real, stand-in}` of what the last runs of the tests in here found.

python3 Testing/Slicer/table.py [FOLDER]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "Output" / "Slicer"
COLUMNS = ("real", "stand-in")


def table(folder: Path) -> str:
    """The table in Markdown; a dash where a check was not run."""
    found = {}
    for column in COLUMNS:
        file = folder / column / "results.json"
        found[column] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    checks = list(dict.fromkeys(check for column in COLUMNS for check in found[column]))
    lines = ["| check | " + " | ".join(COLUMNS) + " |", "|---" * (1 + len(COLUMNS)) + "|"]
    for check in checks:
        cells = [found[column].get(check, {}).get("outcome", "-") for column in COLUMNS]
        lines.append("| " + " | ".join([check, *cells]) + " |")
    passed = [sum(row["outcome"] == "passed" for row in found[column].values()) for column in COLUMNS]
    totals = [f"{count} of {len(found[column])} passed" for count, column in zip(passed, COLUMNS, strict=True)]
    return "\n".join([*lines, "| total | " + " | ".join(totals) + " |"])


if __name__ == "__main__":
    print(table(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER))
