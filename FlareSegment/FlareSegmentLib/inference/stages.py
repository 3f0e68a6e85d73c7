"""A model's stages on one CT: where the organs are, then which voxels are theirs.

All stages but the last look at the CT on coarse grids and find the organs' box; the last one labels the voxels inside,
if the model says so on grids of several spacings whose probabilities are averaged (a multi-resolution ensemble). Where
the first stage is not sure of every organ, the last one looks at all of the body there; where it finds organs at the
box's sides, the box grows.

All of this happens in the patient's axes. Only where the CT is read and where its labels are written, slab by slab,
its own axis order counts; class probabilities exist on the networks' grids only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from FlareSegmentLib.inference.box_growth import grid_beyond, joined, with_context
from FlareSegmentLib.inference.grids import Box, Look, cell_volume_ml, cut_grid, stage_grid, stored_grid
from FlareSegmentLib.inference.localization import (
    body_midline,
    find_box,
    grown_box,
    organ_pieces,
    widened_box,
    without_air,
)
from FlareSegmentLib.inference.organ_search import Piece, find_pieces, search
from FlareSegmentLib.inference.orientation import orientation_doubts
from FlareSegmentLib.inference.postprocessing import (
    correct_sides,
    drop_doubtful,
    drop_unseen_slivers,
    keep_plausible,
)
from FlareSegmentLib.inference.resampling import Grid, labels_on_array, on_grid, resample
from FlareSegmentLib.inference.run_state import Run
from FlareSegmentLib.inference.tiled_network import TiledNetwork
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import network_input, window
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.volume import Volume

_LOCALIZING, _LABELING = 0.28, 0.42  # of the work; the rest is checking (0.02), drawing (0.2) and cleaning (0.08)
_RESAMPLING = 0.3  # of a stage
_MOST_GROWTHS = 2


class SegmentationModel(Protocol):
    """What inference needs of a model (see `model_file.Model`)."""

    description: ModelDescription

    def network(self, stage_name: str) -> nn.Module: ...

    def stage_multiple(self, stage_name: str) -> int: ...


class StagedLabeling:
    """One CT on its way through a model's stages.

    Args:
        network: gives a stage's network, on the device.
        volume: the CT, HU, its axes nearly the patient's in any order.
        run: is told of progress and warnings.
    """

    def __init__(
        self,
        model: SegmentationModel,
        network: Callable[[Stage], TiledNetwork],
        device: str,
        volume: Volume,
        run: Run,
    ) -> None:
        self._model, self._network, self._device, self._run = model, network, device, run
        self._volume = volume
        self._view, self._order = volume.to_lps_view()
        self._description = model.description
        self._organs = tuple(organ_by_key(key) for _, key in sorted(model.description.labels.items()))

    def labels(self) -> np.ndarray:
        """Labels (z, y, x) uint8 on the CT's grid, in its axis order, with the values of the model's organs."""
        *localizing, last = self._description.stages
        box: Box | None = None
        midline: float | None = None
        seen: set[int] | None = None
        for number, stage in enumerate(localizing):
            self._run.begin("Finding the organs", 0.0)
            look = self._localize(stage, box, _LOCALIZING / len(localizing), judge_orientation=number == 0)
            if number == 0:
                midline = body_midline(look, self._view)
            box, seen = self._box_of_organs(look, self._description.stages[number + 1])
            if box is None:
                return np.zeros(self._volume.array.shape, np.uint8)
        self._run.begin("Labeling the organs", 0.0)
        look = self._ensemble(last, box, _LABELING if localizing else _LOCALIZING + _LABELING)
        if not localizing:
            midline = body_midline(look, self._view)
        if self._run.evidence is not None:
            self._run.evidence.midline_mm = midline
        with self._run.timed("postprocess"):
            return self._cleaned(*self._drawn(look, seen), midline)

    # Localization ---------------------------------------------------------------------------------

    def _localize(self, stage: Stage, box: Box | None, share: float, judge_orientation: bool) -> Look:
        """What a stage sees of the organs: logits on the slices that it took to find them all."""
        image, grid = self._image(stage, box, _RESAMPLING * share)
        with self._run.timed("network"):
            self._run.go_on((1 - _RESAMPLING) * share)
            pixels = network_input(image, self._description.intensity)
            cell_ml = cell_volume_ml(grid, self._view)
            low, high, scores = search(self._network(stage), pixels, self._organs, cell_ml, self._run.tick)
            look = Look(image[low:high], cut_grid(grid, 0, low, high), scores)
            if judge_orientation:
                self._run.warnings += self._orientation_doubts(stage, look, cell_ml)
        return look

    def _orientation_doubts(self, stage: Stage, look: Look, cell_ml: float) -> list[str]:
        def look_again(turned: torch.Tensor) -> list[Piece]:
            pixels = network_input(turned, self._description.intensity)
            return find_pieces(self._network(stage)(pixels, lambda fraction: self._run.tick(1.0)), cell_ml)

        pieces = find_pieces(look.scores, cell_ml)
        return orientation_doubts(look.image, pieces, self._organs, look_again, 10 * cell_ml ** (1 / 3))

    def _box_of_organs(self, look: Look, following: Stage) -> tuple[Box | None, set[int] | None]:
        """The box for the stage that follows, and the classes that were seen if it looks at the organs only."""
        with self._run.timed("preprocess"):
            pieces = organ_pieces(look, self._view)
            box = find_box(pieces, look.grid, self._view, following.margin_mm)
            if box is None or following.region != "organs":
                return box, None
            return widened_box(box, look, pieces, self._view, self._organs), set(pieces)

    # Class probabilities --------------------------------------------------------------------------

    def _ensemble(self, stage: Stage, box: Box | None, share: float) -> Look:
        """What the last stage sees: class probabilities on its first grid, the mean over its grids where they reach.

        The grid of the fewest cells comes first: it tells whether organs go on beyond the box that was found.
        """
        members = [replace(stage, spacing_mm=spacing) for spacing in (stage.spacing_mm, *stage.further_spacings_mm)]
        cells = [1.0 / float(np.prod(one.spacing_mm)) if one.spacing_mm else 1.0 for one in members]
        shares = [share * one / sum(cells) for one in cells]
        first, *others = np.argsort(cells, kind="stable").tolist()
        looks = {first: self._look(members[first], box, shares[first])}
        for _ in range(_MOST_GROWTHS):
            grown = box and grown_box(box, looks[first], self._view)
            if grown is None:
                break
            box = grown
            if stage.shape is not None or self._description.intensity.standardize:
                looks[first] = self._look(members[first], box, 0.0)  # all cells or values have changed
            else:
                looks[first] = self._look_farther(stage, looks[first], box)
        for number in others:
            looks[number] = self._look(members[number], box, shares[number])
        image, grid, total = looks.pop(0)
        with self._run.timed("postprocess"):
            for other in looks.values():
                total += on_grid(other.scores, other.grid, grid)
            return Look(image, grid, total / total.sum(dim=0) if looks else total)

    def _look(self, stage: Stage, box: Box | None, share: float) -> Look:
        image, grid = self._image(stage, box, _RESAMPLING * share)
        with self._run.timed("network"):
            self._run.go_on((1 - _RESAMPLING) * share)
            return Look(image, grid, self._softmax(stage, image))

    def _look_farther(self, stage: Stage, look: Look, box: Box) -> Look:
        """What was seen, continued to the sides of a grown box: side by side only the new cells are computed."""
        multiple = self._model.stage_multiple(stage.name)
        for axis in range(3):
            for low in (True, False):
                beyond = grid_beyond(look.grid, axis, low, box, multiple)
                if beyond is None:
                    continue
                with self._run.timed("preprocess"):
                    image = self._windowed(beyond)
                with self._run.timed("network"):
                    image = with_context(image, look.image, axis, low)
                    look = joined(look, Look(image, beyond, self._softmax(stage, image)), axis, low)
        return look

    def _softmax(self, stage: Stage, image: torch.Tensor) -> torch.Tensor:
        pixels = network_input(image, self._description.intensity)
        return torch.softmax(self._network(stage)(pixels, self._run.tick), dim=0)

    def _image(self, stage: Stage, box: Box | None, share: float) -> tuple[torch.Tensor, Grid]:
        """The CT within the window on the stage's grid, (z, y, x), and that grid."""
        with self._run.timed("preprocess"):
            self._run.go_on(share)
            multiple = self._model.stage_multiple(stage.name)
            grid = stage_grid(stage, multiple, self._view, box, self._description.intensity)
            image = self._windowed(grid)
            if stage.region == "volume" and stage.shape is None:
                image, grid = without_air(image, grid, multiple)
            return image.contiguous(), grid

    def _windowed(self, grid: Grid) -> torch.Tensor:
        intensity, array = self._description.intensity, self._volume.array
        stored = stored_grid(grid, self._order, array.shape)
        image = window(resample(array, stored, intensity.lower, self._device, self._run.tick), intensity)
        return image.permute(self._order.permutation)

    # Labels ---------------------------------------------------------------------------------------

    def _drawn(self, look: Look, seen: set[int] | None) -> tuple[np.ndarray, tuple[slice, ...]]:
        """Classes (uint8) in a box of the CT, in its axis order, and that box; around it there is background only.

        Args:
            seen: classes that the stages before saw, if the last one looked at the organs only.
        """
        self._run.begin("Drawing the organs", 0.2)
        shape = self._volume.array.shape
        back = [1 + axis for axis in np.argsort(self._order.permutation).tolist()]
        grid = stored_grid(look.grid, self._order, shape)
        evidence = self._run.evidence
        everything = None if evidence is None else look.scores.clone().permute(0, *back)
        scores = self._without_doubtful(look, seen).permute(0, *back)
        if evidence is None or everything is None:
            return labels_on_array(scores, grid, shape, self._run.tick)
        left_out = [number for number, values in enumerate(scores) if float(values.amax()) == 0.0]
        return evidence.draw(self._volume, everything, left_out, grid, self._run.tick)

    def _cleaned(self, classes: np.ndarray, place: tuple[slice, ...], midline: float | None) -> np.ndarray:
        """The CT's labels: of each organ one piece, on the side of the body that its name says.

        Args:
            midline: LPS x of the body's midline, mm, if it is known.
        """
        self._run.begin("Cleaning up", 0.08)
        labels = np.zeros(self._volume.array.shape, np.uint8)
        if classes.size:
            table = np.array([0, *(organ.label for organ in self._organs)], np.uint8)
            part = classes if np.array_equal(table, np.arange(len(table))) else table[classes]
            self._run.warnings += correct_sides(part, self._organs, self._volume.part(place).affine_lps, midline)
            self._run.tick(0.4)
            keep_plausible(part, self._organs, self._volume.voxel_volume_ml)
            labels[place] = part
        return labels

    def _without_doubtful(self, look: Look, seen: set[int] | None) -> torch.Tensor:
        minimum = self._description.minimum_sure
        if not minimum:
            return look.scores
        probabilities = look.scores.float().cpu().numpy()
        cell_ml = cell_volume_ml(look.grid, self._view)
        warnings = drop_doubtful(probabilities, self._organs, minimum, cell_ml)
        if seen is not None and len(seen) < len(self._organs):
            warnings += drop_unseen_slivers(probabilities, self._organs, seen, cell_ml)
        asked_for = [organ.name.lower() for organ in self._run.organs]
        self._run.warnings += [text for text in warnings if any(name in text for name in asked_for)]
        return torch.from_numpy(probabilities).to(look.scores.device)
