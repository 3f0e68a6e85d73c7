"""How sure the model is of a result: for every voxel the probability that its label is right.

It comes from the class probabilities that the last stage gives anyway, averaged over its grids, and needs no pass of a
network more. The log odds of the label that a voxel has in the end against the most probable of the other classes are
divided by a temperature, one for each class (after Guo et al., On Calibration of Modern Neural Networks, 2017); the
logistic function of that is the confidence. Temperatures are fitted to validation cases (`fit_temperature`) and kept in
model.json; without them they are 1. How far the grids disagree was measured too: it finds errors worse (area under the
curve .83 instead of .91) and adds nothing to their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from FlareSegmentLib.inference.oblique_volumes import values_on_grid_of
from FlareSegmentLib.inference.resampling import Grid, labels_and_shares_on_array
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume

SURE = 255
"""What a voxel has of which the model is as sure as can be."""
_LARGEST_LOG_ODDS = 12.0
_TEMPERATURES = np.round(np.arange(0.5, 4.001, 0.02), 2)


@dataclass(frozen=True)
class Confidence:
    """Probability that the label is right, on the CT's own grid.

    Attributes:
        array: uint8 in the box, in 255ths.
        box: (z, y, x) slices; outside, every voxel is background with `SURE`.
    """

    array: np.ndarray
    box: tuple[slice, ...]


@dataclass
class Evidence:
    """What the pipeline keeps of a run from which the confidence and the doubtful places are made.

    Attributes:
        volume: what the networks saw, of which the grid is: the CT, or one straightened from it.
        scores: class probabilities (classes, *counts of the grid), the axes in the volume's stored order, before
            doubtful organs were left out.
        grid: where in the volume's array their cells lie.
        midline_mm: the body's, along LPS x; None where it is not known.
        classes, shares, box: of `labels_and_shares_on_array`.
    """

    volume: Volume | None = None
    scores: torch.Tensor | None = None
    grid: Grid = ()
    midline_mm: float | None = None
    classes: np.ndarray | None = None
    shares: np.ndarray | None = None
    box: tuple[slice, ...] = (slice(0, 0),) * 3

    def draw(
        self,
        volume: Volume,
        scores: torch.Tensor,
        left_out: Sequence[int],
        grid: Grid,
        tick: Callable[[float], None],
    ) -> tuple[np.ndarray, tuple[slice, ...]]:
        """As `resampling.labels_on_array`; keeps what the confidence needs.

        Args:
            left_out: classes that are not drawn.
        """
        self.volume, self.scores, self.grid = volume, scores, grid
        classes, self.shares, self.box = labels_and_shares_on_array(
            scores, grid, volume.array.shape, left_out, tick=tick
        )
        self.classes = classes.copy()  # cleaning changes the other one
        return classes, self.box


def calibrated(log_odds: torch.Tensor, temperature: torch.Tensor | float) -> torch.Tensor:
    """The confidence of labels whose probability has these log odds to the next class'."""
    return torch.sigmoid(log_odds / temperature)


def log_odds_of_shares() -> np.ndarray:
    """Log odds of the shares 0 ... 255 of `labels_and_shares_on_array`, (256,) float64."""
    share = np.arange(256) / 255.0
    with np.errstate(divide="ignore"):
        odds = np.log(share) - np.log1p(-share)
    return np.clip(odds, -_LARGEST_LOG_ODDS, _LARGEST_LOG_ODDS)


def calibrated_shares(temperatures: Sequence[float]) -> np.ndarray:
    """The confidence of each share 0 ... 255 with each temperature, (temperatures, 256)."""
    odds = torch.from_numpy(log_odds_of_shares())
    return torch.stack([calibrated(odds, temperature) for temperature in temperatures]).numpy()


def confidence_of(
    evidence: Evidence, volume: Volume, labels: np.ndarray, organs: Sequence[Organ], temperatures: Sequence[float]
) -> Confidence:
    """The confidence of a label map that was made of the evidence and cleaned since.

    Where cleaning gave a voxel another label than its probabilities say, it is as doubtful as the model was sure.

    Args:
        volume: the CT.
        labels: (z, y, x) on its grid, with the values of `organs`.
        organs: of the model's classes 1, 2, ...
        temperatures: of the classes 0, 1, ...; empty for 1.
    """
    if evidence.shares is None or evidence.volume is None or evidence.classes is None:
        return Confidence(np.zeros((0, 0, 0), np.uint8), (slice(0, 0),) * 3)
    table = np.rint(255.0 * calibrated_shares(temperatures or [1.0] * (1 + len(organs)))).astype(np.uint8)
    if evidence.volume is not volume:
        array = table.ravel().take((evidence.classes.astype(np.uint16) << 8) | evidence.shares)
        return Confidence(*values_on_grid_of(volume, evidence.volume, array, evidence.box, SURE))
    classes = class_table(organs)[labels[evidence.box]]
    shares = np.where(classes == evidence.classes, evidence.shares, 255 - evidence.shares)
    return Confidence(table.ravel().take((classes.astype(np.uint16) << 8) | shares), evidence.box)


def class_table(organs: Sequence[Organ]) -> np.ndarray:
    """(256,) uint8: the model's class of each label value."""
    table = np.zeros(256, np.uint8)
    for number, organ in enumerate(organs, start=1):
        table[organ.label] = number
    return table


def fit_temperature(shares: np.ndarray, right: np.ndarray) -> float:
    """The temperature that makes right and wrong labels likeliest (least mean negative log likelihood).

    Args:
        shares: (256,) numbers of voxels with each share of `labels_and_shares_on_array`; right: of those, how many
            have the right label.
    """
    odds = log_odds_of_shares()

    def loss(temperature: float) -> float:
        scaled = odds / temperature
        return float(right @ np.logaddexp(0.0, -scaled) + (shares - right) @ np.logaddexp(0.0, scaled))

    return float(min(_TEMPERATURES, key=loss))


def calibration_error(counts: np.ndarray, right: np.ndarray, confidences: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, over bins of equal width.

    Args:
        counts, right: numbers of voxels, and of those with the right label, that have these confidences.
        confidences: 0 to 1, of the same shape.
    """
    index = np.minimum((confidences.ravel() * bins).astype(int), bins - 1)
    total = np.bincount(index, counts.ravel(), bins)
    gap = np.bincount(index, (counts * confidences - right).ravel(), bins)
    return float(np.abs(gap[total > 0]).sum() / max(total.sum(), 1.0))
