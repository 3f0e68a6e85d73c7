"""The way of the data: a CT in, organ labels on the CT's own grid out.

The first stage looks at the whole volume on a coarse grid and finds the organs' box; the last stage labels the voxels
inside, if the model says so on grids of several spacings, whose probabilities are averaged. Where the first stage is
not sure of every organ, the last one looks at all of the body there; where it finds organs at the box's sides, the box
grows. The CT is read slab by slab in its stored axis order and type; class probabilities exist
only on the networks' grids and are interpolated to the CT's grid slice by slice. Axes that lie more than
OBLIQUE_DEGREES off the patient's are straightened first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import checked_ct
from FlareSegmentLib.inference.box_growth import Look, grid_beyond, joined, with_context
from FlareSegmentLib.inference.compute_devices import choose_device, number_type
from FlareSegmentLib.inference.grids import Box, Grid, cell_volume_ml, cut_grid, stage_grid
from FlareSegmentLib.inference.localization import (
    body_midline,
    find_box,
    grown_box,
    organ_pieces,
    widened_box,
    without_air,
)
from FlareSegmentLib.inference.oblique_volumes import labels_on_grid_of, straighten
from FlareSegmentLib.inference.organ_search import Piece, find_pieces, search
from FlareSegmentLib.inference.orientation import orientation_doubts
from FlareSegmentLib.inference.plausibility import doubts
from FlareSegmentLib.inference.postprocessing import (
    correct_sides,
    describe,
    drop_doubtful,
    drop_unseen_slivers,
    keep_plausible,
)
from FlareSegmentLib.inference.resampling import labels_on_array, on_grid, resample
from FlareSegmentLib.inference.run_state import Progress, Run
from FlareSegmentLib.inference.tiled_network import TiledNetwork
from FlareSegmentLib.measures.organ_statistics import keep_only, organ_boxes
from FlareSegmentLib.model.intensity import network_input, window
from FlareSegmentLib.model.model_file import ModelDescription, Stage, bundled_model_folder, load_model
from FlareSegmentLib.organs import Organ, organ_by_key
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import AxisOrder, Volume

OBLIQUE_DEGREES = 15.0
COARSE_SLICES_MM = 6.0

_STAGES_SHARE = 0.7  # of the work; the rest is checking (0.02), drawing (0.2) and cleaning (0.08)
_MOST_GROWTHS = 2


class SegmentationModel(Protocol):
    """What the pipeline needs of a model (see `model_file.Model`)."""

    description: ModelDescription

    def network(self, stage_name: str) -> nn.Module: ...

    def stage_multiple(self, stage_name: str) -> int: ...


@dataclass
class Segmentation:
    """Organ labels of a CT.

    Attributes:
        labels: (z, y, x) uint8 on the CT's own grid and in its axis order, with the values of `organs`.
        seconds: {"preprocess", "network", "postprocess"}.
        warnings: texts for the user.
        device: where the network ran.
        model: the model's name and version.
        organs: what the model can find, in the order of its classes.
        boxes: {organ key: its box (z, y, x)} of those that were found.
    """

    labels: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    device: str = "cpu"
    model: str = ""
    organs: tuple[Organ, ...] = ()
    boxes: dict[str, tuple[slice, ...]] = field(default_factory=dict)


class Segmenter:
    """A model ready to run on a device; keep it for several CTs.

    Args:
        model: from `model_file.load_model`.
        device: "auto", or an id of `compute_devices`.
        threads: CPU threads of the network; None for one per core.
        precision: one of `compute_devices.PRECISIONS`; "auto" takes bfloat16 where the device computes it fast.

    Raises:
        InputError: the device does not exist here.
    """

    def __init__(
        self, model: SegmentationModel, device: str = "auto", threads: int | None = None, precision: str = "auto"
    ) -> None:
        self.model = model
        self.device = choose_device(device)
        self.threads = threads
        self._precision = precision
        self._networks: dict[str, TiledNetwork] = {}
        self.organs = tuple(organ_by_key(key) for _, key in sorted(model.description.labels.items()))

    @classmethod
    def of(cls, request: SegmentationRequest) -> Segmenter:
        """The segmenter for a request's model, device and threads. Raises InputError or ModelError."""
        return cls(load_model(request.model or bundled_model_folder()), request.device, request.threads)

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self.model.description.name} {self.model.description.version}"

    def segment(
        self,
        volume: Volume,
        request: SegmentationRequest | None = None,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Label the organs of a CT.

        Args:
            volume: HU, any orientation, spacing, extent and number type; not changed.
            request: its organs and region are kept, all without it; where its networks run was said to the segmenter.
            progress: called with the fraction of the work done, rising from 0 to 1, and what is being done.
            cancelled: polled often, also between the network's layers.

        Raises:
            InputError: the volume is no CT, or the model does not know one of the organs.
            Cancelled: `cancelled` returned True.
            MemoryError: there is not enough memory on the CPU.
        """
        run = Run(progress or (lambda fraction, stage: None), cancelled or (lambda: False))
        request = request or SegmentationRequest()
        kept, region = self._organs_to_keep(request.organs), request.region
        with run.timed("preprocess"):
            run.begin("Checking the CT", 0.02)
            volume, warnings = checked_ct(volume)
            run.warnings += warnings
            if max(volume.spacing) > COARSE_SLICES_MM:
                run.warnings.append(f"Slices are {max(volume.spacing):.1f} mm apart: small organs may be inaccurate.")
        with _threads(self.threads), torch.inference_mode(), torch.backends.cudnn.flags(deterministic=True):
            labels = self._on_some_device(volume, run)
        with run.timed("postprocess"):
            if request.organs is not None or region is not None:
                labels = keep_only(labels, kept, region)
            boxes = organ_boxes(labels, kept)
            if region is None:
                run.warnings += describe(labels, kept, volume.voxel_volume_ml, boxes=boxes)
            else:
                run.warnings += describe(labels[region], kept, volume.voxel_volume_ml, "region")
            run.warnings += doubts(volume, labels, kept, boxes)
        run.finish()
        return Segmentation(labels, run.seconds, run.warnings, self.device, self.name, kept, boxes)

    def _organs_to_keep(self, keys: Sequence[str] | None) -> tuple[Organ, ...]:
        if keys is None:
            return self.organs
        unknown = [key for key in keys if key not in {organ.key for organ in self.organs}]
        if unknown or not keys:
            known = ", ".join(organ.key for organ in self.organs)
            raise InputError(f"The model does not segment {', '.join(unknown) or 'nothing'}: choose from {known}.")
        return tuple(organ for organ in self.organs if organ.key in keys)

    def _on_some_device(self, volume: Volume, run: Run) -> np.ndarray:
        try:
            return self._any_orientation(volume, run)
        except (RuntimeError, NotImplementedError) as error:
            if self.device == "cpu":
                if "allocate memory" in str(error):
                    raise MemoryError("There is not enough memory for the network.") from error
                raise
            reason = "its memory is too small" if isinstance(error, torch.cuda.OutOfMemoryError) else "it failed"
            run.warnings.append(f"The CPU was used instead of {self.device}: {reason}.")
        self.device = "cpu"
        self._networks.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._any_orientation(volume, run)

    def _any_orientation(self, volume: Volume, run: Run) -> np.ndarray:
        if volume.tilt_degrees <= OBLIQUE_DEGREES:
            return self._label(volume, run)
        with run.timed("preprocess"):
            run.begin("Straightening the axes", 0.0)
            straight = straighten(volume, self.model.description.intensity.lower)
        labels = self._label(straight, run)
        with run.timed("postprocess"):
            return labels_on_grid_of(volume, straight, labels, self.organs)

    def _label(self, volume: Volume, run: Run) -> np.ndarray:
        stages = self.model.description.stages
        order = volume.axis_order()
        box: Box | None = None
        midline = None
        seen: set[int] | None = None
        for position, stage in enumerate(stages):
            last = position == len(stages) - 1
            what = "Labeling the organs" if last else "Finding the organs"
            share = _STAGES_SHARE * (1.0 if len(stages) == 1 else 0.6 if last else 0.4 / (len(stages) - 1))
            if last:
                image, grid, scores = self._probabilities(stage, volume, order, box, what, share, run)
            else:
                image, grid = self._image(stage, volume, order, box, what, 0.3 * share, run)
                with run.timed("network"):
                    run.begin(what, 0.7 * share)
                    pixels = network_input(image, self.model.description.intensity)
                    cell_ml = cell_volume_ml(grid, volume)
                    low, high, scores = search(self._network(stage), pixels, self.organs, cell_ml, run.tick)
                    image, grid = image[low:high], cut_grid(grid, order.permutation[0], low, high)
                    if position == 0:
                        run.warnings += self._orientation_doubts(stage, image, scores, cell_ml, run)
            if position == 0:
                midline = body_midline(image, scores, grid, order, volume)
            if not last:
                with run.timed("preprocess"):
                    pieces = organ_pieces(scores, grid, order, volume)
                    box = find_box(pieces, grid, order, volume, stages[position + 1].margin_mm)
                    if box is not None and stages[position + 1].region == "organs":
                        box = widened_box(box, image, pieces, grid, order, volume, self.organs)
                        seen = set(pieces)
                if box is None:
                    return np.zeros(volume.array.shape, np.uint8)
        with run.timed("postprocess"):
            run.begin("Drawing the organs", 0.2)
            scores = self._without_doubtful(scores, grid, volume, seen, run).permute(
                0, *(1 + axis for axis in np.argsort(order.permutation).tolist())
            )
            classes, place = labels_on_array(scores, grid, volume.array.shape, run.tick)
            run.begin("Cleaning up", 0.08)
            return self._clean(classes, place, volume, midline, run)

    def _orientation_doubts(
        self, stage: Stage, image: torch.Tensor, scores: torch.Tensor, cell_ml: float, run: Run
    ) -> list[str]:
        def look(turned: torch.Tensor) -> list[Piece]:
            pixels = network_input(turned, self.model.description.intensity)
            return find_pieces(self._network(stage)(pixels, lambda fraction: run.tick(1.0)), cell_ml)

        return orientation_doubts(image, find_pieces(scores, cell_ml), self.organs, look, 10 * cell_ml ** (1 / 3))

    def _image(
        self,
        stage: Stage,
        volume: Volume,
        order: AxisOrder,
        box: Box | None,
        what: str,
        share: float,
        run: Run,
    ) -> tuple[torch.Tensor, Grid]:
        """The CT within the window on the stage's grid, (z, y, x) of LPS axes, and that grid."""
        with run.timed("preprocess"):
            run.begin(what, share)
            multiple = self.model.stage_multiple(stage.name)
            grid = stage_grid(stage, multiple, volume, order, box, self.model.description.intensity)
            image = self._windowed(volume, grid, order, run)
            if stage.region == "volume" and stage.shape is None:
                image, grid = without_air(image, grid, order, multiple)
            return image.contiguous(), grid

    def _windowed(self, volume: Volume, grid: Grid, order: AxisOrder, run: Run) -> torch.Tensor:
        """The CT within the window on a grid, (z, y, x) of LPS axes."""
        intensity = self.model.description.intensity
        image = window(resample(volume.array, grid, intensity.lower, self.device, run.tick), intensity)
        return image.permute(order.permutation)

    def _probabilities(
        self,
        stage: Stage,
        volume: Volume,
        order: AxisOrder,
        box: Box | None,
        what: str,
        share: float,
        run: Run,
    ) -> tuple[torch.Tensor, Grid, torch.Tensor]:
        """The last stage's image (z, y, x) and grid, and its class probabilities there, (classes, z, y, x): the mean
        over its grids, where they reach. The grid of the fewest cells comes first: it tells whether organs go on beyond
        the box that the stage before found.
        """

        def look(spacing: tuple[float, float, float] | None, part: float) -> Look:
            image, grid = self._image(replace(stage, spacing_mm=spacing), volume, order, box, what, 0.3 * part, run)
            with run.timed("network"):
                run.begin(what, 0.7 * part)
                return Look(image, grid, self._softmax(stage, image, run))

        spacings = (stage.spacing_mm, *stage.further_spacings_mm)
        cells = [1.0 / float(np.prod(spacing)) if spacing else 1.0 for spacing in spacings]
        first, *others = np.argsort(cells, kind="stable").tolist()
        looks = {first: look(spacings[first], share * cells[first] / sum(cells))}
        for _ in range(_MOST_GROWTHS):
            grown = box and grown_box(box, looks[first].probabilities, looks[first].grid, order, volume)
            if grown is None:
                break
            box = grown
            if stage.shape is not None or self.model.description.intensity.standardize:
                looks[first] = look(spacings[first], 0.0)  # all cells or values have changed
            else:
                looks[first] = self._look_farther(stage, volume, order, looks[first], box, what, run)
        for number in others:
            looks[number] = look(spacings[number], share * cells[number] / sum(cells))
        image, grid, total = looks.pop(0)
        with run.timed("postprocess"):
            for _, other, probabilities in looks.values():
                source, target = ([axes[axis] for axis in order.permutation] for axes in (other, grid))
                total += on_grid(probabilities, source, target)
            return image, grid, total / total.sum(dim=0) if looks else total

    def _look_farther(
        self, stage: Stage, volume: Volume, order: AxisOrder, look: Look, box: Box, what: str, run: Run
    ) -> Look:
        """What was seen, continued to the sides of a grown box: side by side only the new cells are computed."""
        for position in range(3):
            for low in (True, False):
                multiple = self.model.stage_multiple(stage.name)
                beyond = grid_beyond(look.grid, order, volume.array.shape, position, low, box, multiple)
                if beyond is None:
                    continue
                with run.timed("preprocess"):
                    run.begin(what, 0.0)
                    image = self._windowed(volume, beyond, order, run)
                with run.timed("network"):
                    run.begin(what, 0.0)
                    image = with_context(image, look.image, position, low)
                    look = joined(look, Look(image, beyond, self._softmax(stage, image, run)), order, position, low)
        return look

    def _softmax(self, stage: Stage, image: torch.Tensor, run: Run) -> torch.Tensor:
        pixels = network_input(image, self.model.description.intensity)
        return torch.softmax(self._network(stage)(pixels, run.tick), dim=0)

    def _without_doubtful(
        self, scores: torch.Tensor, grid: Grid, volume: Volume, seen: set[int] | None, run: Run
    ) -> torch.Tensor:
        minimum = self.model.description.minimum_sure
        if not minimum:
            return scores
        probabilities = scores.float().cpu().numpy()
        cell_ml = cell_volume_ml(grid, volume)
        run.warnings += drop_doubtful(probabilities, self.organs, minimum, cell_ml)
        if seen is not None and len(seen) < len(self.organs):
            run.warnings += drop_unseen_slivers(probabilities, self.organs, seen, cell_ml)
        return torch.from_numpy(probabilities).to(scores.device)

    def _clean(
        self, classes: np.ndarray, place: tuple[slice, ...], volume: Volume, midline: float | None, run: Run
    ) -> np.ndarray:
        labels = np.zeros(volume.array.shape, np.uint8)
        if classes.size:
            table = np.array([0, *(organ.label for organ in self.organs)], np.uint8)
            part = classes if np.array_equal(table, np.arange(len(table))) else table[classes]
            run.warnings += correct_sides(part, self.organs, volume.part(place).affine_lps, midline)
            run.tick(0.4)
            keep_plausible(part, self.organs, volume.voxel_volume_ml)
            labels[place] = part
        return labels

    def _network(self, stage: Stage) -> TiledNetwork:
        if stage.name not in self._networks:
            dtype = number_type(self._precision, self.device)
            self._networks[stage.name] = TiledNetwork(
                self.model.network(stage.name), self.model.stage_multiple(stage.name), self.device, dtype
            )
        return self._networks[stage.name]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
