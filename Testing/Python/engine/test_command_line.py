"""What the headless scripts share: one line for whatever goes wrong, the exit status, and the way out of Slicer."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from FlareSegmentLib import command_line
from FlareSegmentLib.errors import Cancelled, InputError, ModelError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("two\nlines"), 2, "two lines"),
        (ModelError("no model"), 2, "no model"),
        (Cancelled("stopped"), 1, "stopped"),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            1,
            "The Python package torch is missing. Install Slicer's PyTorch extension and install PyTorch with it.",
        ),
        (ModuleNotFoundError("No module named 'cc3d'", name="cc3d"), 1, "The Python package cc3d is missing."),
        (KeyboardInterrupt(), 1, "by hand"),
        (MemoryError(), 1, "too large"),
        (RuntimeError("CUDA out of memory. Tried to allocate\n20 GiB"), 1, "too large"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/data/out/a.nii"),
            1,
            "No space left on the disk of /data/out/a.nii: free some; the same command goes on.",
        ),
        (ZeroDivisionError("a\n\nb"), 1, "Unexpected ZeroDivisionError: a b (FLARESEGMENT_DEBUG=1 shows where)"),
    ],
)
def test_every_error_is_one_line_and_a_status(monkeypatch, capsys, error, status, line) -> None:
    def work() -> None:
        raise error

    monkeypatch.delenv("FLARESEGMENT_DEBUG", raising=False)
    assert command_line.run(work, interrupted="by hand", out_of_memory="too large") == status
    assert capsys.readouterr() == ("", f"Error: {line}\n")
    monkeypatch.setenv("FLARESEGMENT_DEBUG", "1")
    assert command_line.run(work, interrupted="by hand", out_of_memory="too large") == status
    told = capsys.readouterr().err
    assert told.startswith("Traceback ") and "raise error" in told and told.endswith(f"\nError: {line}\n")


def test_work_that_ends_well_is_status_0(capsys) -> None:
    assert command_line.run(lambda: command_line.say("done")) == 0
    command_line.warn("two\n lines")
    assert capsys.readouterr() == ("done\n", "Warning: two lines\n")


def test_options_are_neither_guessed_nor_end_the_program(capsys) -> None:
    parser = command_line.ArgumentParser(prog="x.py", description="What it does.")
    part = parser.add_subparsers(required=True).add_parser("verb", help="a part")
    part.add_argument("--output", required=True)
    assert parser.parse_args(["verb", "--output", "a"]).output == "a"
    with pytest.raises(InputError, match=r"arguments are required: --output \(see --help\)"):
        parser.parse_args(["verb", "--out", "a"])
    assert command_line.run(lambda: parser.parse_args(["--help"])) == 0
    assert "What it does." in capsys.readouterr().out


def test_the_way_out_is_slicers_in_slicer_only(monkeypatch) -> None:
    left = []
    package = SimpleNamespace(util=SimpleNamespace(exit=left.append))  # PythonSlicer has it too, without application
    monkeypatch.setitem(sys.modules, "slicer", package)
    with pytest.raises(SystemExit) as request:
        command_line.leave(2)
    assert request.value.code == 2 and not left
    package.app = object()
    command_line.leave(1)
    assert left == [1]


@pytest.mark.parametrize("script", ["cohort.py", "evaluate.py", "prepare.py", "synthesize.py", "teach.py", "train.py"])
def test_installed_scripts_find_the_libraries_above_them(script: str, tmp_path: Path, repository: Path) -> None:
    """The extension holds both modules' libraries in one folder and the scripts in a folder below it."""
    for module in ("FlareSegment", "FlareSegmentTraining"):
        for library in (repository / module).glob("*Lib"):
            (tmp_path / library.name).symlink_to(library, target_is_directory=True)
    shutil.copytree(repository / "FlareSegmentTraining" / "Scripts", tmp_path / "Scripts")
    file = tmp_path / "Scripts" / script
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, file, "--nonsense"],
        capture_output=True, text=True, timeout=120, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n"), done.stderr[:7]) == (2, 1, "Error: ")
