"""`python -m apilint [FOLDER ...]`: check module folders; without arguments, those of the current working tree."""

from __future__ import annotations

import sys
from pathlib import Path

from apilint.findings import Finding
from apilint.import_check import check_imports
from apilint.python_check import check_python
from apilint.ui_check import check_ui

MODULES = ("FlareSegment", "FlareSegmentTraining")


def check_folder(folder: Path) -> list[Finding]:
    """All findings in one module folder, sorted by file and line."""
    findings = check_imports(folder)
    for path in sorted(folder.rglob("*.py")):
        findings += check_python(path)
    for path in sorted(folder.rglob("*.ui")):
        findings += check_ui(path)
    return sorted(set(findings))


def main(words: list[str]) -> int:
    """Print the findings of the folders; 1 where there are any, 2 for a folder that is not there."""
    folders = [Path(word) for word in words or MODULES]
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        print(f"apilint: no folder {', '.join(missing)}", file=sys.stderr)
        return 2
    findings = [finding for folder in folders for finding in check_folder(folder)]
    for finding in findings:
        print(finding)
    print(f"apilint: {len(findings)} findings in {', '.join(map(str, folders))}", file=sys.stderr)
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
