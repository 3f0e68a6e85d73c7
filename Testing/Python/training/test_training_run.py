"""Whole training runs on small phantoms: files, resume after a kill, two processes, and the ends that must be clear.

The networks here are tiny and their grid is coarse: what is tested is the run. That the recipe learns is measured in
`Testing/Benchmarks`, and in small by `test_a_short_run_learns_the_phantoms`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import data_layouts
import numpy as np
import pytest
import SimpleITK
import torch

from FlareSegmentLib.model.model_file import load_model, read_model
from FlareSegmentLib.organs import FLARE22_ORGANS
from FlareSegmentLib.processes import DEAD_AFTER_SECONDS
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.splits import split_cases
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter
from FlareSegmentTrainingLib.training import stage_state
from FlareSegmentTrainingLib.training.reports import read_log
from FlareSegmentTrainingLib.training.run_folder import RunFolder
from FlareSegmentTrainingLib.training.trainer import StageTrainer

TRAIN = Path(__file__).resolve().parents[3] / "FlareSegmentTraining" / "Scripts" / "train.py"
PRESET = {
    "name": "tiny",
    "organs": ["liver", "right_kidney", "left_kidney", "spleen"],
    "intensity": {"lower": -200.0, "upper": 300.0},
    "precision": "fp32",
    "training": {
        "epochs": 3,
        "steps_per_epoch": 4,
        "batch": 2,
        "patch": [32, 24, 16],
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "schedule": "cosine",
        "gradient_norm": 5.0,
        "average_decay": 0.5,
        "freeze_normalization_at": 0.7,
        "checkpoint_every": 2,
    },
    "augmentation": {
        "rotation_degrees": [10, 10, 10],
        "noise_probability": 0.5,
        "elastic_mm": 8,
        "elastic_probability": 0.5,
    },
    "stages": {
        "coarse": {
            "spacing_mm": [8, 8, 8],
            "network": {
                "architecture": "vnet",
                "base_channels": 4,
                "kernel_size": 3,
                "normalization": "batch",
                "wide_decoder": False,
                "encoder_convolutions": [1, 1, 1],
                "decoder_convolutions": [1, 1],
            },
        }
    },
}
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
MEASURED = ("loss", "learning_rate", "accuracy", "dice", "dice_liver", "dice_spleen")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Networks this small gain nothing from threads and wait for them on a busy machine; and sums depend on their
    number.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def train_module():
    import importlib.util

    specification = importlib.util.spec_from_file_location("flaresegment_train", TRAIN)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the preset; prepared phantoms are kept there for all tests."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "tiny.json").write_text(json.dumps(PRESET))
    return folder


@pytest.fixture(scope="module")
def command(place):
    """Function that gives the arguments of a run."""

    def arguments(name, *more, data="phantom:4"):
        common = ["--preset", str(place / "tiny.json"), "--cache", str(place / "cache"), "--device", "cpu"]
        return [*common, "--data", data, "--output", str(place / name), *more]

    return arguments


@pytest.fixture(scope="module")
def finished(train_module, command, place):
    """An uninterrupted run."""
    assert train_module.main(command("whole")) == 0
    return RunFolder(place / "whole")


def log_of(folder):
    rows, _ = read_log(folder.path / "log.csv")
    return np.array([[row[key] for key in MEASURED] for row in rows])


def test_the_run_folder_holds_what_it_promises(finished):
    for name in (
        "config.json",
        "split.json",
        "log.csv",
        "validation.csv",
        "last/training.pt",
        "checkpoints/coarse_best.pt",
    ):
        assert (finished.path / name).is_file(), name
    assert (finished.checkpoints / "coarse_epoch_0002.pt").is_file()
    assert json.loads((finished.path / "config.json").read_text())["configuration"]["name"] == "tiny"
    split = json.loads((finished.path / "split.json").read_text())
    assert split["training"] and split["validation"] and not set(split["training"]) & set(split["validation"])
    assert finished.progress()["state"] == "finished"
    assert list(finished.path.rglob(".saving*")) == []
    rows, organs = read_log(finished.path / "log.csv")
    assert [row["step"] for row in rows] == [4, 8, 12]
    assert organs == PRESET["organs"]


def test_curves_are_drawn(finished):
    pytest.importorskip("matplotlib")
    assert (finished.path / "curves.png").stat().st_size > 5000


def test_the_best_model_segments(finished):
    from FlareSegmentLib.inference.pipeline import Segmenter
    from FlareSegmentLib.phantom.torso import make_phantom

    model = load_model(finished.best)
    assert model.description.labels == dict(enumerate(PRESET["organs"], start=1))
    volume, _ = make_phantom(5, (4.0, 4.0, 4.0))
    labels = Segmenter(model, device="cpu").segment(volume).labels
    assert labels.shape == volume.array.shape and labels.max() <= 4


def test_a_run_folder_is_not_overwritten(train_module, command, finished, capsys):
    before = (finished.path / "log.csv").read_bytes()
    assert train_module.main(command("whole")) == 2
    assert "--resume" in capsys.readouterr().err
    assert (finished.path / "log.csv").read_bytes() == before


def test_resume_refuses_another_configuration(train_module, command, finished, capsys):
    assert train_module.main(command("whole", "--resume", "--set", "training.batch=4")) == 2
    assert "configuration differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given",
    [
        ("--epochs", "4"),
        ("--minutes", "3"),
        ("--set", "training.learning_rate=0.5"),
        ("--label-map", "btcv"),
        ("--split", "nothing.json"),
        ("--fold", "0/2"),
        ("--start-from", "bundled"),
        ("--patient-pattern", "(a)"),
    ],
)
def test_resume_obeys_an_option_or_refuses_it(train_module, finished, capsys, given):
    assert train_module.main(["--resume", "--output", str(finished.path), *given]) == 2
    error = capsys.readouterr().err
    assert " ".join(given) + " differ" in error and f"--start-from {finished.best}" in error and error.count("\n") == 1


def test_resume_takes_options_that_are_the_runs_own(train_module, finished, place, capsys):
    more = ("--epochs", "3", "--set", "training.batch=2", "--data", "phantom:4")
    assert train_module.main(["--resume", "--output", str(finished.path), *more]) == 0
    capsys.readouterr()
    assert train_module.main(["--resume", "--output", str(place / "nothing here")]) == 2
    assert "holds no run to continue" in capsys.readouterr().err


def test_killed_at_a_random_moment_and_resumed_it_ends_the_same(train_module, command, place, finished):
    folder = RunFolder(place / "killed")
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *command("killed")], env=ONE_THREAD, stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 90
    while not folder.state_file.is_file() and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(random.uniform(0.0, 0.5))
    process.kill()
    process.wait()
    assert folder.state_file.is_file()
    assert train_module.main(command("killed", "--resume")) == 0
    np.testing.assert_allclose(log_of(folder), log_of(finished), rtol=0, atol=1e-6)


def test_a_stop_saves_in_the_middle_of_an_epoch(train_module, command, place, finished, monkeypatch, capsys):
    """Ctrl-C after the sixth step: the fifth and sixth are in the state, and the resumed run ends as if nothing had
    happened.
    """
    step = StageTrainer.train_step

    def interrupted(self, batch):
        loss = step(self, batch)
        if self.step == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    monkeypatch.setattr(StageTrainer, "train_step", interrupted)
    assert train_module.main(command("stopped")) == 1
    assert "--resume" in capsys.readouterr().err
    folder = RunFolder(place / "stopped")
    assert folder.progress()["state"] == "stopped"
    state = torch.load(folder.state_file, weights_only=True)
    assert (state["trainer"]["step"], len(state["losses"])) == (6, 2)
    monkeypatch.undo()
    assert train_module.main(["--output", str(folder.path), "--resume"]) == 0
    np.testing.assert_allclose(log_of(folder), log_of(finished), rtol=0, atol=1e-6)


MIXED = [
    *("--set", 'training.batches=[{"patch": [32, 24, 16]}, {"patch": [32, 24, 16], "view": "slab", "batch": 2}]'),
    *("--set", "training.patch=null", "--set", "training.batch=2", "--set", "training.normalization_batches=2"),
    *("--set", "training.validation_slabs_mm=[55]"),
    *("--set", "augmentation.bowel_probability=1", "--set", "augmentation.perirenal_fat_probability=1"),
    *("--set", "augmentation.changed_cases=2", "--set", "augmentation.changed_steps=3"),
]


def test_mixed_batches_changed_cases_and_fresh_statistics_resume_as_if_never_stopped(
    train_module, command, place, monkeypatch
):
    assert train_module.main(command("mixed", *MIXED)) == 0
    step = StageTrainer.train_step

    def stopping(self, batch):
        if self.step == 6:
            RunFolder(place / "mixed_stopped").stop_file.touch()
        return step(self, batch)

    monkeypatch.setattr(StageTrainer, "train_step", stopping)
    assert train_module.main(command("mixed_stopped", *MIXED)) == 1
    monkeypatch.undo()
    assert train_module.main(["--output", str(place / "mixed_stopped"), "--resume"]) == 0
    logs = [log_of(RunFolder(place / name)) for name in ("mixed", "mixed_stopped")]
    np.testing.assert_allclose(logs[1], logs[0], rtol=0, atol=1e-6)
    state = torch.load(RunFolder(place / "mixed").state_file, weights_only=True)
    assert state["trainer"]["statistics_are_fresh"]


def test_a_budget_in_minutes_ends_the_stage_with_the_rate_at_its_end(train_module, command, place, monkeypatch):
    seconds = iter(range(10**6))
    monkeypatch.setattr(stage_state.Clock, "seconds", lambda self: self._before + next(seconds))
    assert train_module.main(command("minutes", "--minutes", "0.1")) == 0
    assert train_module.main(command("minutes", "--minutes", "0.1", "--resume")) == 0  # the same command, and over
    folder = RunFolder(place / "minutes")
    assert folder.progress()["state"] == "finished"
    state = torch.load(folder.state_file, weights_only=True)
    assert 4 <= state["trainer"]["step"] <= 6, "six seconds, one a look at the clock"
    rates = log_of(folder)[:, 1]
    assert rates[-1] < 0.3 * 0.01 and not np.isnan(log_of(folder)[-1]).any()


def test_a_stop_file_stops(train_module, command, place, monkeypatch):
    folder = RunFolder(place / "stop_file")
    step = StageTrainer.train_step
    monkeypatch.setattr(
        StageTrainer, "train_step", lambda self, batch: (folder.stop_file.touch(), step(self, batch))[1]
    )
    assert train_module.main(command("stop_file")) == 1
    assert folder.progress()["state"] == "stopped"
    assert torch.load(folder.state_file, weights_only=True)["trainer"]["step"] == 1


def test_a_stop_is_obeyed_before_the_first_case_is_prepared(train_module, command, place, capsys):
    folder = RunFolder(place / "stop_early")
    folder.path.mkdir()
    folder.stop_file.touch()
    assert train_module.main(command("stop_early")) == 1
    assert "Stopped while preparing the cases; continue with --resume." in capsys.readouterr().err
    assert folder.progress()["state"] == "stopped" and not folder.stop_file.exists()
    assert folder.progress()["message"] == "Stopped while preparing the cases."  # the panel has a button for it
    assert not list((folder.path).glob("prepared/*"))


def test_it_is_heard_which_case_is_prepared(train_module, command, place, monkeypatch, capsys):
    folder, told = RunFolder(place / "heard"), []
    update = ProgressReporter.update
    monkeypatch.setattr(ProgressReporter, "update", lambda self, **new: (told.append(new), update(self, **new)))
    monkeypatch.setattr(stage_state, "REPORT_EVERY_SECONDS", 0.0)
    assert train_module.main(command(folder.path)) == 0
    lines = [f"Preparing case {number} of 4 for stage coarse" for number in range(1, 5)]
    assert [new["message"] for new in told if new.get("message", "").startswith("Preparing")] == lines
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("Preparing")] == lines


def test_what_is_missing_is_told_when_a_run_begins_and_no_more(train_module, command, place, monkeypatch, capsys):
    from FlareSegmentTrainingLib.training import reports

    folder = RunFolder(place / "no_tensorboard")
    find = reports.importlib.util.find_spec
    monkeypatch.setattr(reports.importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    step = StageTrainer.train_step
    monkeypatch.setattr(
        StageTrainer, "train_step", lambda self, batch: (folder.stop_file.touch(), step(self, batch))[1]
    )
    assert train_module.main(command("no_tensorboard")) == 1
    assert capsys.readouterr().out.count("TensorBoard") == 1
    assert train_module.main(["--output", str(folder.path), "--resume"]) == 1
    assert "TensorBoard" not in capsys.readouterr().out


def test_a_finished_run_is_trained_further(train_module, finished, place, monkeypatch):
    """What the panel starts for that is a run that ends well, on the same split and without preparing a case anew."""
    from FlareSegmentTrainingSlicerLib.training_process import TrainingProcess, next_folder

    folder = next_folder(finished.path)
    process, launched = TrainingProcess(folder), []
    monkeypatch.setattr(process, "_begin", launched.extend)
    process.start_from(finished, 1)
    prepared = sorted((place / "cache").iterdir())
    assert train_module.main([*launched, "--output", str(folder), "--device", "cpu"]) == 0
    further = RunFolder(folder)
    assert len(log_of(further)) == 1
    assert further.read_json("split.json")["validation"] == finished.read_json("split.json")["validation"]
    assert sorted((place / "cache").iterdir()) == prepared


def test_a_stop_request_of_yesterday_is_none(tmp_path):
    folder = RunFolder(tmp_path)
    folder.stop_file.touch()
    folder.forget_old_stop()
    assert folder.stop_file.exists()
    os.utime(folder.stop_file, (time.time() - 60, time.time() - 60))
    folder.forget_old_stop()
    assert not folder.stop_file.exists()


def test_a_run_that_failed_before_its_first_checkpoint_is_begun_anew(train_module, command, tmp_path):
    folder = RunFolder(tmp_path / "run")
    options = train_module.parse_arguments(command(folder.path))
    folder.write_json("config.json", {"configuration": {}, "data": ["/a/typo"]})
    folder.write_json("progress.json", {"state": "failed", "message": "/a/typo: no such folder"})
    assert train_module._settings(options, folder)["data"] != ["/a/typo"]
    folder.write_json("progress.json", {"state": "stopped", "message": "Stopped at step 1"})
    with pytest.raises(Exception, match="holds a run already"):
        train_module._settings(options, folder)
    folder.write_json("progress.json", {"state": "failed", "message": "The disk is full"})
    folder.last.mkdir()
    folder.state_file.write_bytes(b"a checkpoint")
    with pytest.raises(Exception, match="holds a run already"):
        train_module._settings(options, folder)


def test_two_processes_and_one_give_the_same_losses(command, place, finished):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launch, str(TRAIN), *command("two")],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two, one = log_of(RunFolder(place / "two")), log_of(finished)
    np.testing.assert_allclose(two[:, 0], one[:, 0], rtol=2e-5)
    np.testing.assert_allclose(two[:, 2], one[:, 2], atol=1e-3)


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(
    train_module, command, place, monkeypatch, capsys
):
    step = StageTrainer.train_step

    def poisoned(self, batch):
        if self.step == 6:
            batch.images[:] = float("nan")
        return step(self, batch)

    monkeypatch.setattr(StageTrainer, "train_step", poisoned)
    assert train_module.main(command("poisoned")) == 1
    error = capsys.readouterr().err
    assert "step 7" in error and error.count("\n") == 1
    folder = RunFolder(place / "poisoned")
    state = torch.load(folder.state_file, weights_only=True)
    assert state["trainer"]["step"] == 4
    assert all(
        bool(torch.isfinite(value).all()) for value in state["trainer"]["model"].values() if value.is_floating_point()
    )
    assert folder.progress()["state"] == "failed"
    load_model(folder.best)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
def test_a_full_disk_ends_the_run_and_keeps_the_checkpoint(train_module, command, place, monkeypatch, capsys):
    import resource

    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    step = StageTrainer.train_step

    def limited(self, batch):
        if self.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, former[1]))
        return step(self, batch)

    monkeypatch.setattr(StageTrainer, "train_step", limited)
    try:
        status = train_module.main(command("full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert status == 1
    error = capsys.readouterr().err
    assert "--resume" in error and error.count("\n") == 1
    folder = RunFolder(place / "full")
    assert torch.load(folder.state_file, weights_only=True)["trainer"]["step"] == 4
    assert list(folder.path.rglob(".saving*")) == []
    load_model(folder.last)
    monkeypatch.undo()
    assert train_module.main(["--output", str(folder.path), "--resume"]) == 0


def write_phantoms(folder, count=3):
    from FlareSegmentLib.files.image_io import write_labels
    from FlareSegmentLib.phantom.torso import make_phantom

    folder.mkdir(exist_ok=True)
    for seed in range(count):
        volume, labels = make_phantom(seed, (8.0, 8.0, 8.0))
        image = SimpleITK.GetImageFromArray(volume.array)
        image.SetSpacing(volume.spacing)
        image.SetOrigin(volume.origin)
        SimpleITK.WriteImage(image, str(folder / f"p{seed}_ct.nii.gz"))
        write_labels(folder / f"p{seed}_labels.nii.gz", labels, volume)


def test_data_that_moved_are_named_anew_and_a_damaged_validation_case_is_replaced(
    train_module, command, place, tmp_path, capsys
):
    write_phantoms(tmp_path / "here", 4)
    validating = split_cases(find_cases(tmp_path / "here")).validation[0]
    damaged = tmp_path / "here" / f"{validating}_ct.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:2000])
    arguments = [*command("moved", data=str(tmp_path / "here")), "--epochs", "1"]
    assert train_module.main(arguments) == 0
    out = capsys.readouterr().out
    assert f"{validating} is left out" in out and "dealt out anew" in out
    split = json.loads((place / "moved/split.json").read_text())
    assert (len(split["training"]), len(split["validation"])) == (2, 1)

    (tmp_path / "here").rename(tmp_path / "there")
    resume = ["--resume", "--output", str(place / "moved")]
    assert train_module.main(resume) == 2
    error = capsys.readouterr().err
    assert "is missing. Where the data moved" in error and "--data PLACE" in error
    assert train_module.main([*resume, "--data", str(tmp_path / "there")]) == 0
    assert json.loads((place / "moved/config.json").read_text())["data"] == [str(tmp_path / "there")]
    assert train_module.main(resume) == 0
    changed = tmp_path / "there" / f"{split['training'][0]}_labels.nii.gz"
    shutil.copy(tmp_path / "there" / f"{split['training'][1]}_labels.nii.gz", changed)
    capsys.readouterr()
    assert train_module.main(resume) == 2
    assert f"meaning changed of {split['training'][0]}" in capsys.readouterr().err


def test_an_organ_that_the_data_never_hold_is_said_when_a_run_begins(train_module, command, place, tmp_path, capsys):
    write_phantoms(tmp_path, 2)
    values = {str(label): key for label, key in enumerate(PRESET["organs"][:3], start=1)}
    (tmp_path / "labels.json").write_text(json.dumps({**values, "4": "other", "9": "spleen"}))
    line = f"{tmp_path}: spleen is in none of its cases; check what the label values mean."
    assert train_module.main([*command("never", data=str(tmp_path)), "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert f"Warning: {line}" in out and "liver is in none" not in out


def test_a_vanished_case_is_named(train_module, command, place, tmp_path, capsys):
    write_phantoms(tmp_path)
    arguments = command("vanished", data=str(tmp_path))
    (place / "vanished").mkdir()
    assert train_module.main([*arguments, "--epochs", "1"]) == 0
    split = json.loads((place / "vanished" / "split.json").read_text())
    lost = split["training"][0]
    (tmp_path / f"{lost}_ct.nii.gz").unlink()
    assert train_module.main(["--output", str(place / "vanished"), "--resume"]) == 2
    error = capsys.readouterr().err
    assert lost in error and "Traceback" not in error
    load_model(place / "vanished" / "best")


def test_a_running_run_is_left_alone(train_module, command, place, finished, capsys, monkeypatch):
    folder = RunFolder(place / "busy")
    folder.path.mkdir()
    folder.write_json("progress.json", {"state": "running", "pid": os.getpid(), "host": socket.gethostname()})
    assert train_module.main(command("busy")) == 2
    assert "training in" in capsys.readouterr().err
    old = time.time() - DEAD_AFTER_SECONDS - 1
    os.utime(folder.progress_file, (old, old))
    assert folder.progress()["state"] == "lost"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--output", "x"], "--preset and --data"),
        (["--preset", "flare-organs", "--data", "phantom:4"], "--output"),
        (["--preset", "flare-organs", "--data", "phantom:4", "--output", "x", "--epochs", "0"], "at least 1"),
        (["--preset", "nothing", "--data", "phantom:4", "--output", "x"], "no preset"),
        (["--preset", "flare-organs", "--data", "/nowhere", "--output", "x"], "/nowhere"),
        (["--preset", "flare-organs", "--data", "phantom:4", "--output", "x", "--device", "abacus"], "--device"),
        (
            ["--preset", "flare-organs", "--data", "phantom:4", "--output", "x"]
            + ["--set", 'training.batches=[{"patch": [30, 32, 32]}]'],
            "multiple of 16",
        ),
        (
            ["--preset", "flare-organs", "--data", "phantom:4", "--output", "x", "--set", "training.patch=[32,32,32]"],
            "beside batches",
        ),
        (["--preset", "flare-organs", "--data", "phantom:4", "--output", "x", "--minutes", "0"], "above 0"),
        (["--preset", "paper-vnet", "--data", "phantom:4", "--output", "x", "--minutes", "1"], "counts steps"),
    ],
)
def test_wrong_usage_is_one_line(train_module, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_module.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_deep_supervision_and_a_second_stage(train_module, command, place):
    second = {**PRESET["stages"]["coarse"], "start_from": "coarse", "region": "volume"}
    arguments = [
        "--epochs",
        "1",
        "--set",
        f"stages.fine={json.dumps(second)}",
        "--set",
        "training.loss.deep_supervision=[0.5]",
    ]
    assert train_module.main(command("two_stages", *arguments)) == 0
    model = load_model(place / "two_stages" / "best")
    assert [stage.name for stage in model.description.stages] == ["coarse", "fine"]


def test_a_short_run_learns_the_phantoms(train_module, command, place):
    """150 steps at 8 mm find the liver and more on a torso never seen; an untrained network stays below 0.1."""
    changes = {
        "training.steps_per_epoch": 150,
        "training.batch": 1,
        "training.optimizer": "adamw",
        "training.learning_rate": 0.01,
        "training.average_decay": 0.95,
        "stages.coarse.network.base_channels": 8,
    }
    arguments = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    assert train_module.main(command("learned", "--epochs", "1", *arguments)) == 0
    rows, _ = read_log(place / "learned" / "log.csv")
    assert rows[-1]["dice_liver"] > 0.6
    assert rows[-1]["dice"] > 0.25


def test_shares_say_how_often_each_location_is_drawn():
    from types import SimpleNamespace

    from FlareSegmentTrainingLib.training.batches import BatchSource
    from FlareSegmentTrainingLib.training.configuration import parse

    settings = parse(PRESET).stages[0]
    cases = [SimpleNamespace(sampling_weight=1.0, location=int(number > 1)) for number in range(12)]
    group = SimpleNamespace(rank=0, size=1)
    source = BatchSource(settings, cases, ("liver",), None, 0, 0, group, shares=(3.0, 1.0))
    drawn = [source._case_index(0, 0, np.random.default_rng(seed)) for seed in range(2000)]
    assert np.mean([index < 2 for index in drawn]) == pytest.approx(0.75, abs=0.04)
    assert len(set(drawn)) == 12


def test_a_run_begins_with_the_weights_of_a_model(train_module, command, place, finished, capsys):
    common = ("--start-from", str(finished.best), "--epochs", "1")
    assert train_module.main(command("continued", *common, "--set", "training.learning_rate=1e-9")) == 0
    theirs, mine = (read_model(folder.best)[1]["coarse"] for folder in (finished, RunFolder(place / "continued")))
    convolutions = [key for key, value in theirs.items() if value.ndim == 5]
    assert convolutions
    for key in convolutions:
        torch.testing.assert_close(mine[key].float(), theirs[key].float(), atol=1e-3, rtol=0)
    assert train_module.main(command("other", *common, "--set", "stages.coarse.network.base_channels=8")) == 2
    assert "another one" in capsys.readouterr().err
    assert train_module.main(command("organs", *common, "--set", 'organs=["liver"]')) == 2
    assert "other organs" in capsys.readouterr().err
    assert train_module.main(command("missing", "--start-from", str(place / "nothing"))) == 2
    assert train_module.main(command("shares", "--shares", "1,2")) == 2
    assert "one number" in capsys.readouterr().err
    assert not (place / "other").exists() and not (place / "shares").exists()


def test_all_thirteen_organs_from_flare22_and_a_partly_labeled_task(train_module, command, place, tmp_path):
    data_layouts.flare22(tmp_path / "flare22", 3)
    data_layouts.decathlon(tmp_path / "Task09_Spleen", "spleen")
    everything = [organ.key for organ in FLARE22_ORGANS]
    more = ("--data", str(tmp_path / "Task09_Spleen"), "--set", f"organs={json.dumps(everything)}", "--epochs", "1")
    assert train_module.main(command("thirteen", *more, data=str(tmp_path / "flare22"))) == 0
    description = load_model(place / "thirteen" / "best").description
    assert list(description.labels.values()) == everything
    names = json.loads((place / "thirteen" / "split.json").read_text())
    assert len(names["training"]) + len(names["validation"]) > 3, "the spleen task's cases take part"
