"""prepare, evaluate and synthesize on workers: the same files as without, and a killed worker costs one case."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import pytest

pytest.importorskip("distributed", reason="Dask is not installed")

import evaluate
import prepare
import synthesize

from FlareSegmentLib.command_line import ArgumentParser
from FlareSegmentLib.organs import ORGANS
from FlareSegmentTrainingLib.datasets.cases import Case, find_cases
from FlareSegmentTrainingLib.datasets.conversion import Settings, convert_cases
from FlareSegmentTrainingLib.scheduling.connection import connect
from FlareSegmentTrainingLib.scheduling.options import add_arguments

pytestmark = pytest.mark.at_most(240)
WORKERS = ("--workers", "2", "--memory-limit", "3GB")
ROOT = Path(__file__).resolve().parents[3]


def run(script, *arguments: object) -> None:
    assert script.main([str(argument) for argument in arguments]) == 0


def content(folder: Path) -> dict[str, object]:
    """What the files below a folder hold: voxels of images, text of anything else but keys made by chance."""
    found: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name.endswith(".nii.gz"):
            image = nibabel.load(path)
            found[name] = (image.affine.tolist(), hash(np.asarray(image.dataobj).tobytes()))
        elif name.endswith(".json"):
            facts = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in facts.items() if key not in ("key", "patients", "cases")}
            found[name]["cases"] = {
                case: {key: value for key, value in entry.items() if key != "source"}
                for case, entry in facts.get("cases", {}).items()
            }
        elif path.suffix in (".csv", ".html"):
            found[name] = path.read_text(encoding="utf-8")
        else:
            found[name] = path.stat().st_size
    return found


def test_prepare(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, more in (("alone", ()), ("workers", WORKERS)):
        run(prepare, "--data", "phantom:3", "--output", tmp_path / name, *more)
    alone, workers = content(tmp_path / "alone"), content(tmp_path / "workers")
    assert alone == workers and len([name for name in alone if name.endswith("_ct.nii.gz")]) == 3
    assert "2 workers with" in capsys.readouterr().out
    run(prepare, "--data", "phantom:3", "--output", tmp_path / "workers", *WORKERS)
    assert "0 cases taken, 3 there already, 0 left out" in capsys.readouterr().out


def test_synthesize(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name, more in (("alone", ()), ("workers", WORKERS)):
        run(synthesize, "empty", "--count", 3, "--spacing", 8, "--output", tmp_path / name, *more)
    assert content(tmp_path / "alone") == content(tmp_path / "workers")
    capsys.readouterr()
    run(synthesize, "empty", "--count", 4, "--spacing", 8, "--output", tmp_path / "workers", *WORKERS)
    assert "1 cases made" in capsys.readouterr().out


def test_in_slicer_workers_are_no_slicers(start_script, tmp_path: Path) -> None:
    arguments = ("--data", "phantom:2", "--output", tmp_path / "out", "--workers", 1, "--memory-limit", "3GB")
    done = start_script("slicer", "FlareSegmentTraining/Scripts/prepare.py", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].startswith("2 cases taken") and done.stdout.count("1 worker with") == 1


@pytest.mark.slow
def test_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run(prepare, "--data", "phantom:2", "--output", tmp_path / "data")
    arguments = ("--model", "bundled", "--device", "cpu", "--data", tmp_path / "data", "--output")
    for name, more in (("alone", ()), ("workers", WORKERS)):
        run(evaluate, *arguments, tmp_path / name, *more)
    assert content(tmp_path / "alone") == content(tmp_path / "workers")
    capsys.readouterr()
    run(evaluate, *arguments, tmp_path / "workers", *WORKERS)
    assert capsys.readouterr().out.count("(as before)") == 2


@dataclass(frozen=True)
class DeadlyCase(Case):
    """A case that crashes whoever reads it."""

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_case_that_kills_its_worker_is_left_out_alone(tmp_path: Path) -> None:
    cases = find_cases(["phantom:3"])
    cases[1] = DeadlyCase(**{name: getattr(cases[1], name) for name in cases[1].__dataclass_fields__})
    parser = ArgumentParser()
    add_arguments(parser)
    with connect(parser.parse_args(list(WORKERS)), lambda line: None, "cpu") as client:
        outcomes = convert_cases(cases, tmp_path / "out", Settings(ORGANS), say=lambda line: None, client=client)
    assert [outcome.result for outcome in outcomes] == ["taken", "left out", "taken"]
    assert "was ended 3 times" in outcomes[1].reason
    assert not list((tmp_path / "out").glob(".preparing*"))
    assert not logging.getLogger("distributed.batched").isEnabledFor(logging.CRITICAL)  # its threads outlive the client


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for others")
def test_interrupted_it_ends_in_one_line_and_leaves_no_process(tmp_path: Path) -> None:
    script = ROOT / "FlareSegmentTraining" / "Scripts" / "prepare.py"
    command = [sys.executable, str(script), "--data", "phantom:50", "--output", str(tmp_path / "out"), *WORKERS]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        for line in process.stdout:
            if "[1/50]" in line:
                break
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does, to the workers too
        _, errors = process.communicate(timeout=60)
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert (process.returncode, errors) == (1, "Error: Stopped; the same command goes on.\n")
    end = time.monotonic() + 20
    while _alive(process.pid):
        assert time.monotonic() < end, "a process of the group is left"
        time.sleep(0.1)


def _alive(group: int) -> bool:
    """Whether a process of a group runs; one that has ended may still be listed where nobody waits for orphans."""
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                return True
    return False
