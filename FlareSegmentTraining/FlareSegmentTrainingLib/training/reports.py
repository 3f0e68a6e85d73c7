"""What a run shows: log.csv, validation.csv, curves.png and TensorBoard's files, all made from the history of the
epochs.
"""

from __future__ import annotations

import csv
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

from FlareSegmentLib.organs import organ_by_key, picture_color
from FlareSegmentTrainingLib.runs.watched_folder import save_whole
from FlareSegmentTrainingLib.training.run_folder import CURVES_FILE, LOG_FILE, VALIDATION_FILE, RunFolder

COLUMNS = (
    "stage",
    "epoch",
    "step",
    "loss",
    "learning_rate",
    "seconds_per_step",
    "loader_wait",
    "accuracy",
    "dice",
    "false_positive_ml",
)
DICE = "dice_"


def write_log(folder: RunFolder, history: Sequence[dict], organs: Sequence[str]) -> None:
    """Write log.csv: one row for each epoch; Dice columns are empty where the epoch was not evaluated."""
    columns = [*COLUMNS, *(DICE + key for key in organs)]

    def write(file: Path) -> None:
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(columns)
            writer.writerows([[_cell(row.get(column)) for column in columns] for row in history])

    save_whole(folder.path / LOG_FILE, write)


def read_log(file: Path) -> tuple[list[dict], list[str]]:
    """Return (rows of a log.csv, keys of its organs); numbers as float, nan where a cell is empty. Raises OSError,
    ValueError.
    """
    with open(file, newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        rows = [
            {key: value if key == "stage" else float(value or "nan") for key, value in row.items()} for row in reader
        ]
        columns = list(reader.fieldnames or ())
    return rows, [column.removeprefix(DICE) for column in columns if column.startswith(DICE)]


def write_validation(folder: RunFolder, stage: str, dice: dict[str, dict[str, float]]) -> None:
    """Write validation.csv: Dice of each case and organ of the best model, on the grid of its last stage."""

    def write(file: Path) -> None:
        with open(file, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            keys = list(next(iter(dice.values()), {}))
            writer.writerow(["stage", "case", *keys])
            writer.writerows([[stage, name, *(_cell(case[key]) for key in keys)] for name, case in dice.items()])

    save_whole(folder.path / VALIDATION_FILE, write)


def can_draw() -> bool:
    """Whether curves.png can be drawn here."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_curves(folder: RunFolder, history: Sequence[dict], organs: Sequence[str]) -> None:
    """Draw curves.png: loss and Dice by epoch, stages one after the other; needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), dpi=120, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    losses, dice = figure.subplots(2, 1, sharex=True)
    epochs = range(1, len(history) + 1)
    losses.plot(epochs, [row["loss"] for row in history], color="black", marker="." if len(history) < 20 else "")
    losses.set_ylabel("Training loss")
    evaluated = [(epoch, row) for epoch, row in zip(epochs, history) if DICE + organs[0] in row]
    for key in organs:
        organ = organ_by_key(key)
        color = tuple(value / 255 for value in picture_color(organ))
        style = "--" if organ.modifier_meaning == "Left" else "-"
        values = [row[DICE + key] for _, row in evaluated]
        dice.plot([epoch for epoch, _ in evaluated], values, style, color=color, label=organ.name, marker=".")
    dice.plot(
        [e for e, _ in evaluated], [row["dice"] for _, row in evaluated], color="black", label="Mean", linewidth=2
    )
    dice.set(ylabel="Validation Dice", xlabel="Epoch", ylim=(0, 1))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    names = [row["stage"] for row in history]
    for number, name in enumerate(names):
        if number == 0 or names[number - 1] != name:
            for axes in (losses, dice):
                axes.axvline(number + 0.5, color="gray", linewidth=0.8)
            losses.annotate(
                name, (number + 0.5, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 3), textcoords="offset points"
            )
    for axes in (losses, dice):
        axes.grid(alpha=0.3)
    save_whole(folder.path / CURVES_FILE, lambda file: canvas.print_png(str(file)))


class TensorBoard:
    """Writes the history for TensorBoard where the package tensorboard is installed; `available` says so."""

    def __init__(self, folder: RunFolder, first_epoch: int):
        self._writer = None
        self.available = importlib.util.find_spec("tensorboard") is not None
        if self.available:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_epoch)

    def add(self, epoch: int, row: dict) -> None:
        """Add one epoch's row of the history; epochs are counted over all stages."""
        if self._writer is None:
            return
        for key, value in row.items():
            if isinstance(value, float) and not math.isnan(value):
                self._writer.add_scalar(f"{row['stage']}/{key}", value, epoch)
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.10g}"
    return "" if value is None else value
