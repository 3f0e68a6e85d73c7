"""How sure the model is of a result: for every voxel the probability that its label is right.

It is the class probability that the last stage gives anyway, the mean over its grids, and needs no pass of a network
more. What the bundled model says is as often right as it says, within some hundredths (model card). A temperature (Guo
et al., On Calibration of Modern Neural Networks, 2017) that was fitted to some validation cases makes the likelihood of
the others no better, so there is none. How far the grids disagree was measured too: it finds errors worse (area under
the curve .83 instead of .91) and adds nothing to their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from FlareSegmentLib.inference.oblique_volumes import values_on_grid_of
from FlareSegmentLib.inference.resampling import Grid, labels_and_probabilities_on_array
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume

SURE = 255
"""What a voxel has of which the model is as sure as can be."""


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
        classes, probabilities, box: of `labels_and_probabilities_on_array`.
    """

    volume: Volume | None = None
    scores: torch.Tensor | None = None
    grid: Grid = ()
    midline_mm: float | None = None
    classes: np.ndarray | None = None
    probabilities: np.ndarray | None = None
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
        classes, self.probabilities, self.box = labels_and_probabilities_on_array(
            scores, grid, volume.array.shape, left_out, tick=tick
        )
        self.classes = classes.copy()  # cleaning changes the other one
        return classes, self.box


def confidence_of(evidence: Evidence, volume: Volume, labels: np.ndarray, organs: Sequence[Organ]) -> Confidence:
    """The confidence of a label map that was made of the evidence and cleaned since.

    Where cleaning gave a voxel another label than its probabilities say, it is as doubtful as the model was sure.

    Args:
        volume: the CT.
        labels: (z, y, x) on its grid, with the values of `organs`.
        organs: of the model's classes 1, 2, ...
    """
    if evidence.probabilities is None or evidence.volume is None or evidence.classes is None:
        return Confidence(np.zeros((0, 0, 0), np.uint8), (slice(0, 0),) * 3)
    if evidence.volume is not volume:
        return Confidence(*values_on_grid_of(volume, evidence.volume, evidence.probabilities, evidence.box, SURE))
    changed = classes_of(labels[evidence.box], organs) != evidence.classes
    return Confidence(np.where(changed, SURE - evidence.probabilities, evidence.probabilities), evidence.box)


def classes_of(labels: np.ndarray, organs: Sequence[Organ]) -> np.ndarray:
    """The model's classes (uint8) of labels with the values of `organs`, which are its classes 1, 2, ..."""
    if [organ.label for organ in organs] == list(range(1, 1 + len(organs))):
        return labels
    table = np.zeros(256, np.uint8)
    for number, organ in enumerate(organs, start=1):
        table[organ.label] = number
    return table[labels]
