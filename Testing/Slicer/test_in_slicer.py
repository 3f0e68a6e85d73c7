"""What must work in Slicer, in whatever Slicer `$SLICER` names; without it, in the embedded one.

    python3 flare.py test --slicer PATH

Each module of `slicer_checks` is one start of the application, in which its checks run one after another; headless
scripts are a start each. Pictures, logs and results lie in Testing/Output/Slicer; `table.py` there compares.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from slicer_process import ROOT, check_names, modules_options, run_checks, slicer_of_environment

GROUPS = ("start", "panel", "results", "scenes", "quit", "network", "training", "teaching", "cohort")
if os.environ.get("FLARE_CORRECTING"):  # takes minutes: see slicer_checks/correcting.py
    GROUPS = (*GROUPS, "correcting")
CHECKS = [(group, name) for group in GROUPS for name in check_names(group)]
SEGMENT = ROOT / "FlareSegment" / "Scripts" / "segment.py"
TRAINING_SCRIPTS = ROOT / "FlareSegmentTraining" / "Scripts"
SMALL_PRESET = Path(__file__).with_name("small_training.json")


@pytest.fixture(scope="session")
def slicer():
    under_test = slicer_of_environment()
    if under_test.program is None:
        pytest.importorskip("slicer_core", reason="slicer-core is not installed")
        pytest.importorskip("PyQt5", reason="PyQt5 is not installed")
    return under_test


@pytest.fixture(scope="session")
def output(slicer) -> Path:
    return ROOT / "Testing" / "Output" / "Slicer" / slicer.name


@pytest.fixture(scope="session")
def rows(output):
    """What came of every check; written for the table at the end."""
    collected: dict[str, dict] = {}
    yield collected
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    file.write_text(json.dumps({**before, **collected}, indent=1), encoding="utf-8")


@pytest.fixture(scope="session")
def started(slicer, output, phantoms, tmp_path_factory, request):
    """Every start of the application that the selected tests ask for, two at a time, by group or headless name."""
    asked = [getattr(getattr(item, "callspec", None), "params", {}) for item in request.session.items]
    groups = {parameters.get("group") for parameters in asked}
    scripts = {parameters.get("script") for parameters in asked}
    with ThreadPoolExecutor(2) as pool:
        yield {
            **{group: pool.submit(run_checks, slicer, group, output / group) for group in GROUPS if group in groups},
            **{
                name: pool.submit(run_headless, slicer, name, phantoms, output / name, tmp_path_factory.mktemp("run"))
                for name in HEADLESS
                if name in scripts
            },
        }


@pytest.mark.parametrize(("group", "name"), CHECKS, ids=[f"{group}-{name}" for group, name in CHECKS])
def test_check(started, rows, group, name):
    faulthandler.cancel_dump_traceback_later()  # a start of Slicer has its own limit, which may be longer than a test's
    ending, results = started[group].result()
    row = results.get(name)
    if row is None:
        row = {
            "outcome": "failed",
            "text": f"Slicer ended with status {ending.status} before:\n" + ending.log[-3000:],
        }
    rows[f"{group}: {name}"] = row
    if row["outcome"] == "skipped":
        pytest.skip(row["text"])
    assert row["outcome"] == "passed", row["text"]


@pytest.mark.parametrize("group", GROUPS)
def test_end_and_log(slicer, started, rows, output, group):
    """Each start ends with status 0, and its log holds no error or warning of ours."""
    ending, _ = started[group].result()
    lines = slicer.ours(ending, True, output)
    is_good = ending.status == 0 and not lines
    rows[f"{group}: end and log"] = {
        "outcome": "passed" if is_good else "failed",
        "text": "\n".join(lines),
    }
    assert ending.status == 0, ending.log[-3000:]
    assert not lines, "\n".join(lines[:40])


@pytest.mark.parametrize("group", ["start"])
def test_nothing_heavy_is_imported_at_start(slicer, started, rows, output, group):
    started[group].result()
    imported = set((output / group / "imported.txt").read_text(encoding="utf-8").split())
    line = next(line for line in slicer.alone(True, output).log.splitlines() if line.startswith("imported:"))
    added = imported - set(line.split())
    rows["start: nothing heavy is imported"] = {
        "outcome": "failed" if added else "passed",
        "text": ", ".join(sorted(added)),
    }
    assert not added, "packages that Slicer without our modules does not import"


@pytest.mark.parametrize("group", ["quit"])
@pytest.mark.skipif(os.name != "posix", reason="asks a POSIX system for the process")
def test_quitting_in_mid_run_leaves_no_worker(started, rows, output, group):
    started[group].result()
    worker = int((output / group / "worker.pid").read_text())
    end = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.kill(worker, 0)
            time.sleep(0.1)
        rows["quit: no worker is left"] = {"outcome": "failed", "text": ""}
        pytest.fail(f"the worker {worker} lives on")
    rows["quit: no worker is left"] = {"outcome": "passed", "text": ""}


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory) -> Path:
    """A folder of labeled CTs: images/ and labels/, coarse."""
    import SimpleITK as sitk

    from FlareSegmentLib.files.image_io import write_labels
    from FlareSegmentLib.phantom.torso import make_phantom

    folder = tmp_path_factory.mktemp("phantoms")
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for seed in range(2):
        volume, labels = make_phantom(seed, (6.0, 6.0, 6.0))
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing((6.0, 6.0, 6.0))
        image.SetOrigin([float(value) for value in np.diag([-1, -1, 1, 1]) @ volume.affine_ras[:, 3]][:3])
        sitk.WriteImage(image, str(folder / "images" / f"case{seed}.nii.gz"))
        write_labels(folder / "labels" / f"case{seed}.nii.gz", np.asarray(labels), volume)
    return folder


PREPARE, EVALUATE, TRAIN = (TRAINING_SCRIPTS / f"{name}.py" for name in ("prepare", "evaluate", "train"))
HEADLESS = {  # status, script, arguments, whether PyTorch is needed
    "segment a CT": (0, SEGMENT, "{data}/images/case0.nii.gz --output {out} --device cpu", True),
    "segment nothing": (2, SEGMENT, "{data}/nothing.nii.gz --output {out}", False),
    "prepare cases": (0, PREPARE, "--data {data} --output {out} --label-map flaresegment", False),
    "prepare nothing": (2, PREPARE, "--data {data}/no --output {out}", False),
    "evaluate label maps": (
        0, EVALUATE, "--predictions {data}/labels --data {data} --output {out} --label-map flaresegment", False
    ),
    "evaluate nothing": (2, EVALUATE, "--predictions {data}/no --data {data} --output {out}", False),
    "train": (0, TRAIN, "--preset {preset} --data phantom:2 --output {out} --device cpu", True),
    "train on nothing": (2, TRAIN, "--preset {preset} --data {data}/no --output {out}", True),
}  # fmt: skip


def run_headless(slicer, name, phantoms, output, folder):
    """Run a script without a window, in a folder of its own."""
    _, script, arguments, _ = HEADLESS[name]
    places = {"data": phantoms, "out": folder / "out", "preset": SMALL_PRESET}
    words = [word.format(**places) for word in arguments.split()]
    options = ("--no-main-window", "--python-script", script, "--ignore-rest", *words)
    return slicer.run(*options, output=output, cwd=folder)


@pytest.mark.parametrize("script", HEADLESS)
def test_headless(slicer, started, rows, output, script):
    status, _, _, needs_torch = HEADLESS[script]
    ending = started[script].result()
    title = f"headless: {script}"
    if needs_torch and "PyTorch" in ending.log and ending.status != status:
        rows[title] = {"outcome": "skipped", "text": "PyTorch is not installed"}
        pytest.skip("PyTorch is not installed in this Slicer")
    lines = slicer.ours(ending, False, output) if status == 0 else []
    is_good = ending.status == status and not lines and "Traceback" not in ending.log
    text = "\n".join(lines) if ending.status == status else ending.log[-2000:]
    rows[title] = {"outcome": "passed" if is_good else "failed", "text": text}
    assert ending.status == status, ending.log[-3000:]
    assert "Traceback" not in ending.log, ending.log[-3000:]
    assert not lines, "\n".join(lines[:40])


def test_start_without_a_window(slicer, rows, output):
    """Slicer's own testing mode counts every error at start, and every file that is no module."""
    testing = ["--testing"] if slicer.program is None else []
    code = "slicer.app.processEvents(); slicer.util.exit(0)"
    ending = slicer.run(
        "--no-main-window", *testing, *modules_options(), "--python-code", code, output=output / "start without window"
    )
    lines = slicer.ours(ending, False, output)
    is_good = ending.status == 0 and not lines
    rows["start: without a window"] = {
        "outcome": "passed" if is_good else "failed",
        "text": "\n".join(lines),
    }
    assert ending.status == 0, ending.log[-3000:]
    assert not lines, "\n".join(lines)
