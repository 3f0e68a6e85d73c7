"""Runs one module of checks inside Slicer: `Slicer --python-script run_in_slicer.py --ignore-rest MODULE RESULTS`.

RESULTS gets one line of JSON when a check ends: {"check", "outcome": "passed" | "failed" | "skipped", "seconds",
"text"}. The exit status is 0 where the checks ran to their end, whatever came of them.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
import unittest
from pathlib import Path

import slicer

sys.path.insert(0, str(Path(__file__).resolve().parent))


class Recorder(unittest.TestResult):
    """Writes each outcome at once: nothing is lost if Slicer dies."""

    def __init__(self, file):
        super().__init__()
        self._file, self._began, self._failures = file, 0.0, {}

    def startTest(self, test):
        super().startTest(test)
        self._began = time.monotonic()
        print(f"== {test.id()}", file=sys.stderr, flush=True)

    def _record(self, test, outcome, text=""):
        row = {
            "check": test.id(),
            "outcome": outcome,
            "seconds": round(time.monotonic() - self._began, 2),
            "text": text,
        }
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def addSuccess(self, test):
        self._record(test, "passed")

    def addFailure(self, test, error):
        self._record(test, "failed", "".join(traceback.format_exception(*error)))

    addError = addFailure

    def addSkip(self, test, reason):
        self._began = self._began or time.monotonic()
        self._record(test, "skipped", reason)


def main(module, results):
    suite = unittest.defaultTestLoader.loadTestsFromName(f"slicer_checks.{module}")
    with open(results, "a", encoding="utf-8") as file:
        suite.run(Recorder(file))


try:
    main(*sys.argv[1:3])
except BaseException:  # noqa: BLE001  (Slicer must end, with a status that says it)
    traceback.print_exc()
    slicer.util.exit(1)
else:
    slicer.util.exit(0)
