"""What a run shows: tables that can be read back, curves that are drawn, TensorBoard where it is installed."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest

from FlareSegmentTrainingLib.training import reports
from FlareSegmentTrainingLib.training.reports import (
    COLUMNS,
    TensorBoard,
    can_draw,
    draw_curves,
    read_log,
    write_log,
    write_validation,
)
from FlareSegmentTrainingLib.training.run_folder import RunFolder

ORGANS = ["liver", "left_kidney"]


def row(stage: str, epoch: int, evaluated: bool = True) -> dict:
    values = {"stage": stage, "epoch": epoch, "step": 4 * epoch, "loss": 1 / (epoch + 1), "learning_rate": 0.01}
    values |= {"seconds_per_step": 0.5, "loader_wait": 0.0, "accuracy": math.nan}
    return values | ({"dice": 0.5, "dice_liver": 0.6, "dice_left_kidney": math.nan} if evaluated else {})


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_log_is_read_as_it_was_written(run: RunFolder) -> None:
    history = [row("coarse", 1), row("coarse", 2, evaluated=False), row("fine", 1)]
    write_log(run, history, ORGANS)
    rows, organs = read_log(run.path / "log.csv")
    assert organs == ORGANS
    assert [entry["stage"] for entry in rows] == ["coarse", "coarse", "fine"]
    for entry, expected in zip(rows, history, strict=True):
        for column in (*COLUMNS[1:], "dice_liver", "dice_left_kidney"):
            value = expected.get(column, math.nan)
            assert entry[column] == pytest.approx(value, nan_ok=True), column


@pytest.mark.parametrize("content", ["stage,epoch\ncoarse,one\n", "stage,epoch\ncoarse,1,2,3\n"])
def test_a_log_that_is_damaged_is_no_log(tmp_path: Path, content: str) -> None:
    (tmp_path / "log.csv").write_text(content)
    with pytest.raises((ValueError, TypeError)):
        read_log(tmp_path / "log.csv")


def test_validation_has_a_row_for_each_case(run: RunFolder) -> None:
    write_validation(run, "fine", {"a": {"liver": 0.9, "spleen": math.nan}, "b": {"liver": 0.8, "spleen": 0.7}})
    assert (run.path / "validation.csv").read_text().split() == [
        "stage,case,liver,spleen",
        "fine,a,0.9,",
        "fine,b,0.8,0.7",
    ]
    write_validation(run, "fine", {})
    assert (run.path / "validation.csv").read_text().split() == ["stage,case"]


@pytest.mark.skipif(not can_draw(), reason="matplotlib is not installed")
@pytest.mark.parametrize("evaluated", [True, False])
def test_curves_are_a_picture_also_before_the_first_evaluation(run: RunFolder, evaluated: bool) -> None:
    history = [row("coarse", 1, evaluated), row("coarse", 2, evaluated=False), row("fine", 1, evaluated)]
    draw_curves(run, history, ORGANS)
    assert (run.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in run.path.iterdir()] == ["curves.png"]


class Writer:
    """In the place of TensorBoard's writer."""

    made: list[Writer] = []

    def __init__(self, folder: str, purge_step: int) -> None:
        self.folder, self.purge_step, self.scalars, self.state = folder, purge_step, {}, "open"
        Writer.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def flush(self) -> None:
        self.state = "flushed"

    def close(self) -> None:
        self.state = "closed"


def test_tensorboard_gets_every_number(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(reports.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(Writer, "made", [])
    board = TensorBoard(run, 3)
    assert board.available
    board.add(3, row("coarse", 3))
    (writer,) = Writer.made
    assert (writer.folder, writer.purge_step, writer.state) == (str(run.path / "tensorboard"), 3, "flushed")
    assert writer.scalars["coarse/loss", 3] == 0.25 and writer.scalars["coarse/dice_liver", 3] == 0.6
    assert not any(math.isnan(value) for value in writer.scalars.values())
    board.close()
    assert writer.state == "closed"


def test_without_tensorboard_nothing_is_missing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    board = TensorBoard(run, 0)
    assert not board.available and not can_draw()
    board.add(1, row("coarse", 1))
    board.close()
    assert not list(run.path.iterdir())
