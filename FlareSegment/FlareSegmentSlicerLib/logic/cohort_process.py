"""A cohort (`Scripts/cohort.py`) as a process of its own, found again by the folder of its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentSlicerLib.logic.script_process import ScriptProcess

PACKAGES = ("dask", "distributed", "pyarrow", "jinja2", "matplotlib")
"""What the script imports and Slicer does not bring; asked for when a cohort is started."""

REPORT_FILE, SERIES_FILE = "report.html", "selected_series.json"
_MODULE = Path(__file__).resolve().parents[2]


def cohort_script() -> Path | None:
    """The script, which comes with the module FlareSegment Training: in a folder beside this module's in a working
    tree, in the same one where the extension is installed; None where it is not there.
    """
    for folder in (_MODULE, _MODULE.parent / "FlareSegmentTraining"):
        script = folder / "Scripts" / "cohort.py"
        if script.is_file():
            return script
    return None


class CohortProcess(ScriptProcess):
    """The cohort of one folder of results, whoever started it.

    Its progress also tells how many CTs there are ("total"), are "done", "failed", "present" from an earlier run and
    "left".
    """

    what = "cohort"

    def start(self, source: str | Sequence[tuple[str, Sequence[str]]], more: Sequence[str] = ()) -> None:
        """Begin, or go on with what is in the folder already.

        Args:
            source: a folder of CTs or a list of them, or DICOM series as (name, files).
            more: further options of the script.

        Raises:
            InputError: the script is not installed, or a cohort runs in the folder.
            FlareSegmentError: the process cannot be started, or the folder not be written.
        """
        script = cohort_script()
        if script is None:
            raise InputError("Install the module FlareSegment Training, which brings the script for many CTs.")
        self._check_free()
        if not isinstance(source, str):
            listed = [{"case": name, "files": list(files)} for name, files in source]
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                (self.path / SERIES_FILE).write_text(json.dumps(listed), encoding="utf-8")
            except OSError as error:
                raise self._not_started(error) from error
            source = str(self.path / SERIES_FILE)
        self._launch(script, [source, "--output", str(self.path), *more])
