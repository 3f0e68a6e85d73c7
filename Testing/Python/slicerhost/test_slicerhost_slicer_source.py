"""Slicer's own tests and module template on the embedded Slicer; needs Slicer's source (SLICER_SOURCE)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WANTED_PASSES = 200


@pytest.fixture
def run(repository):
    """Runs the runner of Slicer's tests on the checkout; skipped where SLICER_SOURCE does not name one."""
    checkout = os.environ.get("SLICER_SOURCE", "")
    if not (Path(checkout) / "Base" / "Python" / "slicer" / "tests").is_dir() or not checkout:
        pytest.skip("no checkout of Slicer's source: set SLICER_SOURCE to one")
    environment = dict(os.environ, PYTHONPATH=str(repository / "Testing"))

    def start(*words):
        return subprocess.run(
            [sys.executable, "-m", "slicerhost.run_slicer_tests", checkout, *words],
            env=environment,
            capture_output=True,
            text=True,
        )

    return start


@pytest.mark.slow
def test_slicers_own_tests_pass(run):
    process = run()
    print(process.stdout)
    last = process.stdout.strip().splitlines()[-1].split()
    assert last[0] == "total"
    assert int(last[1]) >= WANTED_PASSES, process.stdout


@pytest.mark.slow
def test_slicers_module_template_works_unmodified(run):
    process = run("--template")
    assert process.returncode == 0, process.stderr
    assert "panel works" in process.stdout
