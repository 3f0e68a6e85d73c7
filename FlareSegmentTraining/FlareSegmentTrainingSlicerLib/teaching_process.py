"""A teaching as a process of its own, as `training_process` starts a training, and where teachings lie."""

from __future__ import annotations

import json
import re
from pathlib import Path

from FlareSegmentSlicerLib.logic.script_process import FAILED, LOST, STOPPED
from FlareSegmentTrainingLib.training.run_folder import RunFolder
from FlareSegmentTrainingSlicerLib.training_process import TrainingProcess

TEACH_SCRIPT = Path(__file__).resolve().parents[1] / "Scripts" / "teach.py"
TAUGHT = "taught"
"""Folder of the teachings inside that of their examples; each is called by a number."""
MODEL, REPORT_FILE = "model", "report.json"  # as `teaching.teaching` calls them


class TeachingProcess(TrainingProcess):
    """The teaching of one folder, whoever started it."""

    what = "teaching"

    def _script(self) -> Path:
        return TEACH_SCRIPT

    def teach(self, examples: Path, model: Path) -> None:
        """Begin, or continue. Raises as `TrainingProcess.start` does."""
        self._check_free()
        self._begin(["--examples", str(examples), "--model", str(model)])

    @property
    def model(self) -> Path | None:
        """Folder of the taught model, where it is offered."""
        place = self.folder.path / MODEL
        return place if (place / "model.json").is_file() else None

    def report(self) -> dict:
        """The report of a teaching that ended; empty before."""
        try:
            content = json.loads((self.folder.path / REPORT_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def report_text(self) -> str:
        """The report in lines that fit the panel (Markdown); empty before the end."""
        from FlareSegmentTrainingLib.teaching.report import summary

        report = self.report()
        try:
            return summary(report) if report else ""
        except (LookupError, TypeError, ValueError, AttributeError):
            return ""  # a report of another version, or damaged

    def curves(self) -> Path | None:
        """Curves of the training that is at work or was the last."""
        runs = self.folder.path / "runs"
        drawn = sorted(runs.glob("*/curves.png"), key=lambda file: file.stat().st_mtime) if runs.is_dir() else []
        return drawn[-1] if drawn else None

    def can_continue(self, examples: list[str], model: Path) -> bool:
        """Whether it did not come to its very end, and its examples and model are still what it was begun with."""
        settings = self.settings()
        same = sorted(settings.get("examples", {})) == sorted(examples)
        own = settings.get("model", {}).get("folder") == str(model.resolve())
        return self.state() in (STOPPED, LOST, FAILED) and same and own


def latest_teaching(examples: Path) -> Path | None:
    """Folder of the last teaching with the examples of a folder; None where none ever began."""
    begun = [place for place in _numbered(examples) if RunFolder(place).exists()]
    return begun[-1] if begun else None


def next_teaching(examples: Path) -> Path:
    """Folder for another teaching: a new one, or the last one's where that failed before it began."""
    numbered = _numbered(examples)
    if numbered and not RunFolder(numbered[-1]).exists():
        return numbered[-1]
    number = int(numbered[-1].name) + 1 if numbered else 1
    return examples / TAUGHT / f"{number:03d}"


def teaching_of_model(model: Path) -> TeachingProcess | None:
    """The teaching that a model in use came from; None of one that was not taught, or not here."""
    teaching = TeachingProcess(model.resolve().parent)
    return teaching if model.name == MODEL and teaching.settings().get("model") else None


def _numbered(examples: Path) -> list[Path]:
    folder = examples / TAUGHT
    found = [place for place in folder.iterdir() if re.fullmatch(r"\d{3,}", place.name)] if folder.is_dir() else []
    return sorted(found, key=lambda place: int(place.name))
