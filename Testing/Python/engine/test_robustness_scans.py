"""Real scans that the model was not made for, through the script as a user runs it: right, or clearly refused.

What each must give is written beside the data (its README): a chest and a head hold none of the organs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input import SUFFIXES

NONE_OF_THEM_ML = 2.0
pytestmark = [pytest.mark.real_ct, pytest.mark.slow]


@pytest.fixture
def segment(flare_data: Path, repository: Path, tmp_path: Path):
    """Function that runs segment.py on a scan; returns its exit status, its JSON (or None) and its lines of errors."""
    pytest.importorskip("slicer_core")

    def run(name: str) -> tuple[int, dict | None, list[str]]:
        scan = flare_data / "robustness" / f"{name}_ct.nii.gz"
        if not scan.is_file():
            pytest.skip(f"{scan} does not exist")
        command = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script"]
        command += [str(repository / "FlareSegment" / "Scripts" / "segment.py"), str(scan)]
        command += ["--output", str(tmp_path / "results"), "--device", "cpu", "--json"]
        environment = {**os.environ, "PYTHONPATH": str(repository / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=580)
        assert "Traceback" not in ended.stdout + ended.stderr
        answer = json.loads(ended.stdout.splitlines()[-1]) if ended.returncode == 0 else None
        return ended.returncode, answer, ended.stderr.splitlines()

    return run


def checked(ended: tuple[int, dict | None, list[str]], results: Path) -> tuple[dict[str, float], str]:
    """{organ: ml} and all warnings of a run that ended well, with its five files."""
    status, answer, errors = ended
    assert status == 0, errors
    assert all(line.startswith("Warning: ") for line in errors), errors
    assert [line.removeprefix("Warning: ") for line in errors] == answer["warnings"]
    names = sorted(path.name for path in results.iterdir())
    assert len(names) == 5 and all(name.endswith(suffix) for name, suffix in zip(names, SUFFIXES, strict=True)), names
    return {key: row["volume_ml"] for key, row in answer["organs"].items()}, "\n".join(errors)


@pytest.mark.parametrize("name", ["chest_slab", "head_vault"])
def test_no_organ_is_invented(segment, tmp_path: Path, name: str, figures: dict[str, str]) -> None:
    volumes, warnings = checked(segment(name), tmp_path / "results")
    figures[f"False organs in {name}"] = f"{sum(volumes.values()):.1f} mL"
    assert sum(volumes.values()) <= NONE_OF_THEM_ML, volumes
    assert "None of the organs" in warnings


def test_organs_that_are_cut_on_three_sides(segment, tmp_path: Path, figures: dict[str, str]) -> None:
    volumes, warnings = checked(segment("tight_crop_aorta"), tmp_path / "results")
    figures["Tight crop of the aorta"] = ", ".join(f"{key} {value:.0f} mL" for key, value in volumes.items())
    assert volumes["liver"] > 10
    assert "Cut by the edge of the scan" in warnings and "liver" in warnings
    assert volumes["left_kidney"] <= NONE_OF_THEM_ML, volumes


def test_a_field_of_view_around_the_spine(segment, tmp_path: Path, figures: dict[str, str]) -> None:
    """141 mm across: parts of kidneys at its rim, and neither the liver nor the spleen."""
    volumes, warnings = checked(segment("small_fov_spine"), tmp_path / "results")
    figures["Small field of view"] = ", ".join(f"{key} {value:.0f} mL" for key, value in volumes.items())
    assert volumes["liver"] + volumes["spleen"] <= NONE_OF_THEM_ML, volumes
    told = ("were left out", "Not found in this scan", "Cut by the edge of the scan")
    assert any(text in warnings for text in told), warnings


def test_mr_is_refused(segment, tmp_path: Path) -> None:
    status, _, errors = segment("mr_liver_coronal")
    assert status == 2 and len(errors) == 1 and errors[0].startswith("Error: "), errors
    assert "does not look like a CT" in errors[0] and "MR" in errors[0]
    assert not (tmp_path / "results").exists()
