"""The files of a run: whole or not there, refused when damaged, and a word about how far the run is."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.errors import FlareSegmentError, InputError  # noqa: E402
from FlareSegmentTrainingLib.runs import watched_folder  # noqa: E402
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter, save_whole  # noqa: E402
from FlareSegmentTrainingLib.training.run_folder import RunFolder  # noqa: E402


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_run_is_there_once_its_configuration_is(run: RunFolder) -> None:
    assert not run.exists()
    run.write_json("config.json", {"name": "tiny"})
    assert run.exists() and run.read_json("config.json") == {"name": "tiny"}


@pytest.mark.parametrize(
    ("content", "words"), [(None, "cannot be read"), ("{", "cannot be read"), ("[1]", "no JSON object")]
)
def test_a_file_that_is_no_object_is_named(run: RunFolder, content: str | None, words: str) -> None:
    if content is not None:
        (run.path / "split.json").write_text(content)
    with pytest.raises(InputError, match=words) as error:
        run.read_json("split.json")
    assert "split.json" in str(error.value)


def test_tensors_come_back(run: RunFolder) -> None:
    run.save_tensors(run.state_file, {"weight": torch.arange(3), "step": 7})
    assert torch.equal(run.load_tensors(run.state_file)["weight"], torch.arange(3))


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "code"])
def test_a_state_that_cannot_be_loaded_names_the_model_that_stands(run: RunFolder, damage: str) -> None:
    run.save_tensors(run.state_file, {"weight": torch.zeros(1000)})
    if damage == "missing":
        run.state_file.unlink()
    elif damage == "cut":
        run.state_file.write_bytes(run.state_file.read_bytes()[:500])
    elif damage == "text":
        run.state_file.write_text("weights")
    else:
        torch.save({"weight": Path("x")}, run.state_file)
    with pytest.raises(InputError, match="The model in .*best stands") as error:
        run.load_tensors(run.state_file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed\nat 0")]
)
def test_what_cannot_be_written_leaves_what_was_there(tmp_path: Path, error: Exception) -> None:
    file = tmp_path / "state.pt"
    file.write_text("older")

    def write(place: Path) -> None:
        place.write_text("half")
        raise error

    with pytest.raises(FlareSegmentError, match="could not be written: .*continue the training") as refusal:
        save_whole(file, write)
    assert "\n" not in str(refusal.value)
    assert file.read_text() == "older" and [entry.name for entry in tmp_path.iterdir()] == ["state.pt"]


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FlareSegmentError, match="could not be written"):
        RunFolder(tmp_path / "file").write_json("config.json", {})
    assert (tmp_path / "file").read_text() == "x"


def test_nothing_is_known_of_a_run_that_says_nothing(run: RunFolder) -> None:
    assert run.progress() == {} and not run.is_running()
    run.progress_file.write_text("{half")
    assert run.progress() == {}


def test_a_run_tells_how_far_it_is(run: RunFolder) -> None:
    reporter = ProgressReporter(run)
    reporter.begin()
    assert run.is_running() and run.progress()["pid"] == os.getpid()
    reporter.update(step=3, loss=math.inf)  # too soon after the first report
    assert "step" not in run.progress()
    reporter._written -= 1
    reporter.update(step=4)
    assert run.progress()["step"] == 4 and run.progress()["loss"] is None
    reporter.end("stopped", "Stopped")
    assert run.progress()["state"] == "stopped" and not run.is_running()


def test_what_came_too_soon_after_a_report_is_told_a_little_later(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_folder, "BEATS_EVERY_SECONDS", 0.01)
    monkeypatch.setattr(watched_folder, "_WRITTEN_EVERY_SECONDS", 1000.0)
    reporter = ProgressReporter(run)
    reporter.begin()
    reporter.update(message="Preparing case 1 of 30")
    for _ in range(500):
        if run.progress()["message"] != "Starting":
            break
        reporter._ended.wait(0.01)
    assert run.progress()["message"] == "Preparing case 1 of 30"
    reporter.end("stopped", "Stopped")


def test_a_report_is_kept_fresh_and_a_full_disk_does_not_end_the_run(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched_folder, "BEATS_EVERY_SECONDS", 0.01)
    reporter = ProgressReporter(run)
    reporter.begin()
    os.utime(run.progress_file, (0, 0))
    for _ in range(500):
        if run.progress_file.stat().st_mtime > 0:
            break
        reporter._ended.wait(0.01)
    assert run.progress_file.stat().st_mtime > 0

    def full(*_arguments: object) -> None:
        raise FlareSegmentError("no space")

    monkeypatch.setattr(run, "write_json", full)
    run.progress_file.unlink()
    reporter._written -= 1
    reporter.update(step=5)
    reporter.end("failed", "No space")
    assert not run.progress_file.exists()
