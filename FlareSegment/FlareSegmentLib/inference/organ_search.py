"""Where the organs are, told by the first stage's coarse scores: their pieces, and how much of a tall scan to look at.

A whole-body scan holds the abdomen once. The search looks at its middle first and goes on, towards the head and the
feet in turn, only until every organ was found whole; so the cost follows the organs, not the scan. Where an organ is
missing, all of the scan is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from FlareSegmentLib.inference.postprocessing import SURE, components, find_boxes, usual_ml
from FlareSegmentLib.inference.resampling import highest_class
from FlareSegmentLib.organs import Organ

SMALLEST_PIECE_ML = 5.0
WINDOW_CELLS = 96
OVERLAP_CELLS = 16


@dataclass(frozen=True)
class Piece:
    """A connected part of an organ on the coarse grid.

    Attributes:
        organ: class index, from 1.
        ml: its volume; sure_ml: of the cells of which the network is sure.
        low, high: corners of its box (z, y, x) in cells, half open.
    """

    organ: int
    ml: float
    sure_ml: float
    low: np.ndarray
    high: np.ndarray


def find_pieces(scores: torch.Tensor, cell_ml: float) -> list[Piece]:
    """The organs' pieces of at least SMALLEST_PIECE_ML, what the network is surest of first.

    A leg can look a little like a kidney all along; size alone would prefer it to the small kidney that is one.

    Args:
        scores: logits (classes, z, y, x), class 0 the background.
    """
    classes = highest_class(scores).cpu().numpy()
    pieces = []
    for index, box in enumerate(find_boxes(classes), start=1):
        if box is None:
            continue
        numbers, counts = components(classes[box] == index)
        sure = None
        for number, inner in enumerate(find_boxes(numbers), start=1):
            if inner is None:
                continue
            ml = int(counts[number]) * cell_ml
            if ml < SMALLEST_PIECE_ML:
                continue
            if sure is None:
                sure = (torch.softmax(scores[(slice(None), *box)].float(), dim=0)[index] >= SURE).cpu().numpy()
            sure_ml = np.count_nonzero(sure[inner] & (numbers[inner] == number)) * cell_ml
            low = np.array([b.start + i.start for b, i in zip(box, inner)])
            high = np.array([b.start + i.stop for b, i in zip(box, inner)])
            pieces.append(Piece(index, ml, sure_ml, low, high))
    return sorted(pieces, key=lambda piece: (-piece.sure_ml, -piece.ml))


def search(
    network: Callable[[torch.Tensor, Callable[[float], None]], torch.Tensor],
    image: torch.Tensor,
    organs: Sequence[Organ],
    cell_ml: float,
    tick: Callable[[float], None],
) -> tuple[int, int, torch.Tensor]:
    """Run a network on as many slices of an image as it takes to find all organs whole.

    Args:
        network: gives logits (classes, z, y, x) of an image (z, y, x) and ticks from 0 to 1.
        image: LPS axes, feet first; its height a multiple of what the network asks for, as OVERLAP_CELLS is.
        organs: what the network's classes 1, 2, ... are.
        cell_ml: volume of a cell.
        tick: called with the fraction done; may raise to stop.

    Returns:
        (first slice, end, logits of these slices).
    """
    height = image.shape[0]
    if height <= WINDOW_CELLS + OVERLAP_CELLS:
        return 0, height, network(image, tick)

    def look(start: int, stop: int) -> torch.Tensor:
        seen = (stop - start) / height
        return network(image[start:stop], lambda fraction: tick(min(1.0, done + fraction * seen)))

    done = 0.0
    low = (height - WINDOW_CELLS) // 2 // OVERLAP_CELLS * OVERLAP_CELLS
    high = low + WINDOW_CELLS
    scores = look(low, high)
    upwards = True
    while True:
        done = (high - low) / height
        up, down = _open_ends(scores, organs, cell_ml, low > 0, high < height)
        if not (up or down):
            return low, high, scores
        if up and (upwards or not down):
            stop = min(height, high - OVERLAP_CELLS + WINDOW_CELLS)
            scores = _joined(scores, look(high - OVERLAP_CELLS, stop))
            high = stop
        else:
            start = max(0, low + OVERLAP_CELLS - WINDOW_CELLS)
            scores = _joined(look(start, low + OVERLAP_CELLS), scores)
            low = start
        upwards = not upwards


def _open_ends(
    scores: torch.Tensor, organs: Sequence[Organ], cell_ml: float, more_below: bool, more_above: bool
) -> tuple[bool, bool]:
    """Whether to look on above, and below, the slices that were looked at: where an organ goes on, or else on both
    sides where one is missing.
    """
    largest: dict[int, Piece] = {}
    for piece in find_pieces(scores, cell_ml):
        largest.setdefault(piece.organ, piece)
    up = more_above and any(int(piece.high[0]) >= scores.shape[1] - 1 for piece in largest.values())
    down = more_below and any(int(piece.low[0]) <= 1 for piece in largest.values())
    if up or down:
        return up, down
    missing = False
    for index, organ in enumerate(organs, start=1):
        least = (usual_ml(organ) or (SMALLEST_PIECE_ML, 0.0))[0]
        missing |= index not in largest or largest[index].sure_ml < least
    return missing and more_above, missing and more_below


def _joined(lower: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
    """Two blocks of logits (classes, z, y, x) that overlap by OVERLAP_CELLS slices, one fading into the other."""
    share = ((torch.arange(OVERLAP_CELLS, device=lower.device) + 0.5) / OVERLAP_CELLS)[:, None, None]
    between = torch.lerp(lower[:, -OVERLAP_CELLS:], upper[:, :OVERLAP_CELLS], share)
    return torch.cat((lower[:, :-OVERLAP_CELLS], between, upper[:, OVERLAP_CELLS:]), dim=1)
