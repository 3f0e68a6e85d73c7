"""The way of the data: a CT in, organ labels on the CT's own grid out.

The first stage looks at the whole volume on a coarse grid and finds the organs' box; the last stage labels the voxels
inside, if the model says so on grids of several spacings, whose probabilities are averaged. Where it finds organs at
the box's sides, the box grows. The CT is read slab by slab in its stored axis order and type; class probabilities exist
only on the networks' grids and are interpolated to the CT's grid slice by slice. Axes that lie more than
OBLIQUE_DEGREES off the patient's are straightened first.
"""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import SimpleITK as sitk
import torch
from scipy import ndimage
from torch import nn

from FlareSegmentLib.errors import Cancelled, InputError
from FlareSegmentLib.files.image_io import check_is_ct
from FlareSegmentLib.inference.organ_search import Piece, find_pieces, search
from FlareSegmentLib.inference.plausibility import doubts
from FlareSegmentLib.inference.postprocessing import correct_sides, describe, drop_doubtful, keep_only, keep_plausible
from FlareSegmentLib.inference.resampling import AxisGrid, highest_class, labels_on_array, on_grid, resample
from FlareSegmentLib.measures.organ_statistics import organ_boxes
from FlareSegmentLib.model.intensity import AIR, body_box, network_input, window
from FlareSegmentLib.model.model_file import ModelDescription, Stage
from FlareSegmentLib.organs import Organ, organ_by_key
from FlareSegmentLib.volume import AxisOrder, Volume

OBLIQUE_DEGREES = 15.0
COARSE_SLICES_MM = 6.0
DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")

_ORGANS_REACH_MM = 300.0
_STAGES_SHARE = 0.7  # of the work; the rest is checking (0.02), drawing (0.2) and cleaning (0.08)
_TILE_BYTES = 448 << 20
_TILE_OVERLAP = 16
_AIR_CELLS = 4
_GROWTH_MM = 30.0  # of the organs' box, where an organ covers this much of its side or more
_TOUCHING_MM2 = 100.0
_MOST_GROWTHS = 2
_BODY_SHARE = 0.002  # of the fullest plane: less than that is noise or a wire

Progress = Callable[[float, str], None]


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
        device: "auto" takes CUDA or MPS if there is one.
        threads: CPU threads of the network; None for one per core.
        precision: "auto" takes bfloat16 where the CPU multiplies matrices in it (Intel AMX) and on CUDA, else float32.

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
        self._networks: dict[str, _Network] = {}
        self.organs = tuple(organ_by_key(key) for _, key in sorted(model.description.labels.items()))

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self.model.description.name} {self.model.description.version}"

    def segment(
        self,
        volume: Volume,
        progress: Progress | None = None,
        cancelled: Callable[[], bool] | None = None,
        organs: Sequence[str] | None = None,
        region: tuple[slice, slice, slice] | None = None,
    ) -> Segmentation:
        """Label the organs of a CT.

        Args:
            volume: HU, any orientation, spacing, extent and number type; not changed.
            progress: called with the fraction of the work done, rising from 0 to 1, and what is being done.
            cancelled: polled often, also between the network's layers.
            organs: keys of the organs to keep; None keeps all that the model knows.
            region: the part (z, y, x) of the volume to keep labels in; what lies around it is context for the network.

        Raises:
            InputError: the volume is no CT, or the model does not know one of the organs.
            Cancelled: `cancelled` returned True.
            MemoryError: there is not enough memory on the CPU.
        """
        run = _Run(progress or (lambda fraction, stage: None), cancelled or (lambda: False))
        kept = self._organs_to_keep(organs)
        with run.timed("preprocess"):
            run.begin("Checking the CT", 0.02)
            run.warnings += check_is_ct(volume)
            if max(volume.spacing) > COARSE_SLICES_MM:
                run.warnings.append(f"Slices are {max(volume.spacing):.1f} mm apart: small organs may be inaccurate.")
        with _threads(self.threads), torch.inference_mode(), torch.backends.cudnn.flags(deterministic=True):
            labels = self._on_some_device(volume, run)
        with run.timed("postprocess"):
            if organs is not None or region is not None:
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

    def _on_some_device(self, volume: Volume, run: _Run) -> np.ndarray:
        try:
            return self._any_orientation(volume, run)
        except (torch.OutOfMemoryError, RuntimeError, NotImplementedError) as error:
            if self.device == "cpu":
                if "allocate memory" in str(error):
                    raise MemoryError("There is not enough memory for the network.") from error
                raise
            reason = "its memory is too small" if isinstance(error, torch.OutOfMemoryError) else "it failed"
            run.warnings.append(f"The CPU was used instead of {self.device}: {reason}.")
        self.device = "cpu"
        self._networks.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._any_orientation(volume, run)

    def _any_orientation(self, volume: Volume, run: _Run) -> np.ndarray:
        if volume.tilt_degrees <= OBLIQUE_DEGREES:
            return self._label(volume, run)
        with run.timed("preprocess"):
            run.begin("Straightening the axes", 0.0)
            straight = _straighten(volume, self.model.description.intensity.lower)
        labels = self._label(straight, run)
        with run.timed("postprocess"):
            return _labels_on_grid_of(volume, straight, labels, self.organs)

    def _label(self, volume: Volume, run: _Run) -> np.ndarray:
        stages = self.model.description.stages
        order = volume.axis_order()
        box: _Box | None = None
        midline = None
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
                    cell_ml = _cell_ml(grid, volume)
                    low, high, scores = search(self._network(stage), pixels, self.organs, cell_ml, run.tick)
                    image, grid = image[low:high], _cut(grid, order.permutation[0], low, high)
            if position == 0:
                midline = _midline(image, scores, grid, order, volume)
            if not last:
                with run.timed("preprocess"):
                    box = _find_box(scores, grid, order, volume, stages[position + 1].margin_mm)
                if box is None:
                    return np.zeros(volume.array.shape, np.uint8)
        with run.timed("postprocess"):
            run.begin("Drawing the organs", 0.2)
            scores = self._without_doubtful(scores, grid, volume, run).permute(
                0, *(1 + axis for axis in np.argsort(order.permutation).tolist())
            )
            classes, place = labels_on_array(scores, grid, volume.array.shape, run.tick)
            run.begin("Cleaning up", 0.08)
            return self._clean(classes, place, volume, midline, run)

    def _image(
        self,
        stage: Stage,
        volume: Volume,
        order: AxisOrder,
        box: _Box | None,
        what: str,
        share: float,
        run: _Run,
    ) -> tuple[torch.Tensor, _Grid]:
        """The CT within the window on the stage's grid, (z, y, x) of LPS axes, and that grid."""
        intensity = self.model.description.intensity
        with run.timed("preprocess"):
            run.begin(what, share)
            grid = self._grid(stage, volume, order, box)
            image = window(resample(volume.array, grid, intensity.lower, self.device, run.tick), intensity)
            image = image.permute(order.permutation)
            if stage.region == "volume" and stage.shape is None:
                image, grid = self._without_air(image, grid, order, self.model.stage_multiple(stage.name))
            return image.contiguous(), grid

    def _probabilities(
        self,
        stage: Stage,
        volume: Volume,
        order: AxisOrder,
        box: _Box | None,
        what: str,
        share: float,
        run: _Run,
    ) -> tuple[torch.Tensor, _Grid, torch.Tensor]:
        """The last stage's image (z, y, x) and grid, and its class probabilities there, (classes, z, y, x): the mean
        over its grids, where they reach. The grid of the fewest cells comes first: it tells whether organs go on beyond
        the box that the stage before found.
        """

        def look(spacing: _Spacing | None, part: float) -> tuple[torch.Tensor, _Grid, torch.Tensor]:
            image, grid = self._image(replace(stage, spacing_mm=spacing), volume, order, box, what, 0.3 * part, run)
            with run.timed("network"):
                run.begin(what, 0.7 * part)
                pixels = network_input(image, self.model.description.intensity)
                return image, grid, torch.softmax(self._network(stage)(pixels, run.tick), dim=0)

        spacings = (stage.spacing_mm, *stage.further_spacings_mm)
        cells = [1.0 / float(np.prod(spacing)) if spacing else 1.0 for spacing in spacings]
        first, *others = np.argsort(cells, kind="stable").tolist()
        looks = {first: look(spacings[first], share * cells[first] / sum(cells))}
        for _ in range(_MOST_GROWTHS):
            grown = box and _grown(box, looks[first][2], looks[first][1], order, volume)
            if grown is None:
                break
            box = grown
            looks[first] = look(spacings[first], 0.0)
        for number in others:
            looks[number] = look(spacings[number], share * cells[number] / sum(cells))
        image, grid, total = looks.pop(0)
        with run.timed("postprocess"):
            for _, other, probabilities in looks.values():
                source, target = ([axes[axis] for axis in order.permutation] for axes in (other, grid))
                total += on_grid(probabilities, source, target)
            return image, grid, total / total.sum(dim=0) if looks else total

    def _without_air(
        self, image: torch.Tensor, grid: _Grid, order: AxisOrder, multiple: int
    ) -> tuple[torch.Tensor, _Grid]:
        """Cut the air around the patient off an image (z, y, x) of LPS axes, and off its grid; most of what a wide
        field of view costs the network is air.
        """
        body = image > AIR + 0.05
        cut = grid
        for position, axis in enumerate(order.permutation):
            others = [other for other in range(3) if other != position]
            profile = body.sum(dim=others)
            hits = torch.nonzero(profile > _BODY_SHARE * profile.max()).flatten()
            if not len(hits):
                return image, grid
            size = len(profile)
            start = max(0, int(hits[0]) - _AIR_CELLS)
            count = min(size, -(-(int(hits[-1]) + 1 + _AIR_CELLS - start) // multiple) * multiple)
            start = min(start, size - count)
            image = image.narrow(position, start, count)
            cut = _cut(cut, axis, start, start + count)
        return image, cut

    def _without_doubtful(self, scores: torch.Tensor, grid: _Grid, volume: Volume, run: _Run) -> torch.Tensor:
        minimum = self.model.description.minimum_sure
        if not minimum:
            return scores
        probabilities = scores.float().cpu().numpy()
        run.warnings += drop_doubtful(probabilities, self.organs, minimum, _cell_ml(grid, volume))
        return torch.from_numpy(probabilities).to(scores.device)

    def _clean(
        self, classes: np.ndarray, place: tuple[slice, ...], volume: Volume, midline: float | None, run: _Run
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

    def _network(self, stage: Stage) -> _Network:
        if stage.name not in self._networks:
            dtype = _number_type(self._precision, self.device)
            self._networks[stage.name] = _Network(
                self.model.network(stage.name), self.model.stage_multiple(stage.name), self.device, dtype
            )
        return self._networks[stage.name]

    def _grid(self, stage: Stage, volume: Volume, order: AxisOrder, box: _Box | None) -> _Grid:
        """The stage's grid in the volume's stored axis order, laid out in the direction of the patient's axes."""
        shape = [volume.array.shape[axis] for axis in order.permutation]
        extents: _Box
        if stage.region == "organs" and box is not None:
            extents = box
        elif stage.region == "body":
            stored = body_box(volume.array, self.model.description.intensity)
            extents = tuple(
                (n - stored[axis].stop, n - stored[axis].start) if flip else (stored[axis].start, stored[axis].stop)
                for axis, flip, n in zip(order.permutation, order.flips, shape)
            )
        else:
            extents = tuple((0.0, float(n)) for n in shape)
        multiple = self.model.stage_multiple(stage.name)
        grid: dict[int, AxisGrid] = {}
        for position, (axis, flip) in enumerate(zip(order.permutation, order.flips)):
            start, stop = extents[position]
            if stage.shape is not None:
                count = stage.shape[2 - position]
                step = (stop - start) / count
            else:
                assert stage.spacing_mm is not None
                step = stage.spacing_mm[2 - position] / volume.spacing[2 - axis]
                count = max(1, int(np.ceil((stop - start) / step - 1e-3)))
            count = -(-count // multiple) * multiple
            if stage.region == "organs":  # what the multiple adds lies on both sides, and in the scan if it can
                start -= (count * step - (stop - start)) / 2
                start = min(max(0.0, start), max(0.0, shape[position] - count * step))
            cells = AxisGrid.over(start, stop, count, step)
            grid[axis] = _turned(cells, shape[position]) if flip else cells
        return tuple(grid[axis] for axis in range(3))


def choose_device(device: str) -> str:
    """The device to run on. Raises InputError if it is unknown or not there."""
    if device not in DEVICES:
        raise InputError(f"Device {device!r} is unknown: choose {', '.join(DEVICES)}.")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise InputError(f"There is no {device} device on this computer that PyTorch can use: choose auto or cpu.")
    return device


_Grid = tuple[AxisGrid, ...]
_Spacing = tuple[float, float, float]
_Box = tuple[tuple[float, float], ...]
"""Outer edges along each axis of the LPS view, in its voxels; 0 is the edge before the first voxel."""


class _Run:
    """Progress, cancelling, times and warnings of one call."""

    def __init__(self, progress: Progress, cancelled: Callable[[], bool]) -> None:
        self.seconds = {"preprocess": 0.0, "network": 0.0, "postprocess": 0.0}
        self.warnings: list[str] = []
        self._progress, self._cancelled = progress, cancelled
        self._done = self._share = self._reached = 0.0
        self._stage = ""

    def begin(self, stage: str, share: float) -> None:
        """The next part of the work is `stage` and takes this share of it."""
        self._done, self._share, self._stage = self._done + self._share, share, stage
        self.tick(0.0)

    def tick(self, fraction: float) -> None:
        """This fraction of the part is done."""
        if self._cancelled():
            raise Cancelled("The segmentation was cancelled.")
        self._reached = max(self._reached, min(1.0, self._done + fraction * self._share))
        self._progress(self._reached, self._stage)

    def finish(self) -> None:
        self._progress(1.0, "Done")

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start


class _Network:
    """A network on a device, in tiles where one pass would take too much memory; can be stopped between its layers."""

    def __init__(self, module: nn.Module, multiple: int, device: str, dtype: torch.dtype) -> None:
        self._format = torch.contiguous_format if device == "mps" else torch.channels_last_3d
        as_stored = device == "cpu" and dtype == torch.float32
        self._module = (module if as_stored else copy.deepcopy(module)).to(device, dtype).eval()
        self._module = self._module.to(memory_format=self._format)  # type: ignore[call-overload]
        self._multiple, self._device, self._dtype = multiple, device, dtype
        self._layers = [layer for layer in self._module.modules() if not list(layer.children())]
        self._costs = self._measure_costs()
        width = max((layer.out_channels for layer in self._layers[:1] if isinstance(layer, nn.Conv3d)), default=4)
        self._tile_voxels = _TILE_BYTES // (6 * width * torch.finfo(dtype).bits // 8)

    def __call__(self, image: torch.Tensor, tick: Callable[[float], None]) -> torch.Tensor:
        """Logits (classes, z, y, x) float32 of an image (z, y, x)."""
        tiles = _tiles(tuple(image.shape), self._multiple, self._tile_voxels)
        if len(tiles) == 1:
            return self._pass(image, tick)
        total, weight = torch.zeros(()), torch.zeros(image.shape, device=self._device)
        for number, tile in enumerate(tiles):

            def tick_tile(fraction: float, number: int = number) -> None:
                tick((number + fraction) / len(tiles))

            scores = self._pass(image[tile], tick_tile)
            ramp = _tile_weight(tile, tuple(image.shape)).to(scores.device)
            if number == 0:
                total = torch.zeros((scores.shape[0], *image.shape), device=scores.device)
            total[(slice(None), *tile)] += scores * ramp
            weight[tile] += ramp
        return total / weight

    def _pass(self, image: torch.Tensor, tick: Callable[[float], None]) -> torch.Tensor:
        done = 0.0

        def before(layer: nn.Module, _: object) -> None:
            tick(min(1.0, done))

        def after(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
            nonlocal done
            done += self._costs.get(layer, 0.0)
            # Some layers answer in another order of axes; every later one would have to copy what it reads.
            return output.contiguous(memory_format=self._format)

        hooks = [layer.register_forward_pre_hook(before) for layer in self._layers]
        hooks += [layer.register_forward_hook(after) for layer in self._layers]
        try:
            batch = image[None, None].to(self._device, self._dtype)
            return self._module(batch)[0].float().contiguous()
        finally:
            for hook in hooks:
                hook.remove()

    def _measure_costs(self) -> dict[nn.Module, float]:
        """Each layer's share of the multiplications, counted on a small image."""
        counts: dict[nn.Module, float] = {}

        def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            weight = getattr(layer, "weight", None)
            per_voxel = weight.numel() / weight.shape[0] if weight is not None and weight.dim() > 1 else 1.0
            cells = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
            counts[layer] = counts.get(layer, 0.0) + per_voxel * cells.numel()

        hooks = [layer.register_forward_hook(count) for layer in self._layers]
        try:
            self._module(torch.zeros((1, 1) + (self._multiple,) * 3, device=self._device, dtype=self._dtype))
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: value / sum(counts.values()) for layer, value in counts.items()}


def _tiles(shape: tuple[int, ...], multiple: int, limit: int) -> list[tuple[slice, ...]]:
    """Overlapping boxes of at most `limit` voxels (if multiples allow) that cover the shape; all cuts at multiples."""
    pieces = [1, 1, 1]
    while True:
        ranges = [_split(n, count, multiple) for n, count in zip(shape, pieces)]
        sizes = [max(stop - start for start, stop in axis) for axis in ranges]
        widest = int(np.argmax(sizes))
        if np.prod(sizes) <= limit or sizes[widest] <= 4 * multiple:
            return [(slice(*z), slice(*y), slice(*x)) for z in ranges[0] for y in ranges[1] for x in ranges[2]]
        pieces[widest] += 1


def _split(size: int, count: int, multiple: int) -> list[tuple[int, int]]:
    if count == 1:
        return [(0, size)]
    overlap = -(-_TILE_OVERLAP // multiple) * multiple
    length = -(-(size + (count - 1) * overlap) // (count * multiple)) * multiple
    length = min(length, size)
    starts = [min(index * (length - overlap), size - length) // multiple * multiple for index in range(count)]
    return [(start, min(start + length, size)) for start in dict.fromkeys(starts)]


def _tile_weight(tile: tuple[slice, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Falls linearly over the overlap towards the sides where another tile goes on."""
    weight = torch.ones(())
    for extent, size in zip(tile, shape):
        distance = torch.arange(extent.stop - extent.start, dtype=torch.float32) + 0.5
        low = distance if extent.start > 0 else torch.full_like(distance, _TILE_OVERLAP)
        high = distance.flip(0) if extent.stop < size else torch.full_like(distance, _TILE_OVERLAP)
        weight = weight[..., None] * torch.minimum(low, high).clamp(max=_TILE_OVERLAP)
    return weight


def _turned(axis: AxisGrid, size: int) -> AxisGrid:
    """The grid of a flipped axis, in the stored array's indices."""
    return AxisGrid(size - 1 - axis.first, -axis.step, axis.count)


def _cut(grid: _Grid, axis: int, start: int, stop: int) -> _Grid:
    """The grid with only the cells start ... stop - 1 of an axis."""
    cells = AxisGrid(grid[axis].first + start * grid[axis].step, grid[axis].step, stop - start)
    return (*grid[:axis], cells, *grid[axis + 1 :])


def _cell_ml(grid: Sequence[AxisGrid], volume: Volume) -> float:
    """Volume of a grid's cell."""
    return volume.voxel_volume_ml * float(np.prod([abs(axis.step) for axis in grid]))


def _view_grid(grid: Sequence[AxisGrid], order: AxisOrder, shape: Sequence[int]) -> list[AxisGrid]:
    """The grid in the LPS view's axes and indices."""
    return [
        _turned(grid[axis], shape[axis]) if flip else grid[axis] for axis, flip in zip(order.permutation, order.flips)
    ]


def _find_box(
    scores: torch.Tensor, grid: Sequence[AxisGrid], order: AxisOrder, volume: Volume, margin_mm: float
) -> _Box | None:
    """The box around the organs that the stage found, or None.

    Each organ counts with the piece that the network is surest of among those within reach of the surest of all: what
    else was found, in a head or a thigh of a whole-body scan, is a mistake.
    """
    axes = _view_grid(grid, order, volume.array.shape)
    spacing = np.array([volume.spacing[2 - axis] for axis in order.permutation])
    steps = np.array([axis.step for axis in axes]) * spacing
    pieces = find_pieces(scores, _cell_ml(grid, volume))
    if not pieces:
        return None
    anchor = (pieces[0].low + pieces[0].high) / 2
    chosen: dict[int, Piece] = {}
    for piece in pieces:
        if np.linalg.norm(((piece.low + piece.high) / 2 - anchor) * steps) <= _ORGANS_REACH_MM:
            chosen.setdefault(piece.organ, piece)
    lowest = np.min([piece.low for piece in chosen.values()], axis=0)
    highest = np.max([piece.high for piece in chosen.values()], axis=0)
    result = []
    for position, axis in enumerate(axes):
        size = volume.array.shape[order.permutation[position]]
        margin = margin_mm / spacing[position]
        start = axis.first + (lowest[position] - 0.5) * axis.step + 0.5 - margin
        stop = axis.first + (highest[position] - 0.5) * axis.step + 0.5 + margin
        result.append((max(0.0, float(start)), min(float(size), float(stop))))
    return tuple(result)


def _grown(box: _Box, scores: torch.Tensor, grid: Sequence[AxisGrid], order: AxisOrder, volume: Volume) -> _Box | None:
    """The box, moved out where organs reach the sides of its grid though the scan goes on; None where they do not."""
    classes = highest_class(scores).cpu()
    axes = _view_grid(grid, order, volume.array.shape)
    spacing = [volume.spacing[2 - axis] for axis in order.permutation]
    cell_mm3 = np.prod([axis.step * mm for axis, mm in zip(axes, spacing)])
    result: list[tuple[float, float]] = []
    for position, (axis, mm, (start, stop)) in enumerate(zip(axes, spacing, box)):
        size = volume.array.shape[order.permutation[position]]
        low = axis.first + 0.5 - axis.step / 2
        high = low + axis.count * axis.step
        smallest = _TOUCHING_MM2 * axis.step * mm / cell_mm3
        reached = [
            int(torch.bincount(classes.select(position, cell).flatten(), minlength=2)[1:].max()) >= smallest
            for cell in (0, -1)
        ]
        if reached[0] and low > axis.step:
            start = max(0.0, low - _GROWTH_MM / mm)
        if reached[1] and high < size - axis.step:
            stop = min(float(size), high + _GROWTH_MM / mm)
        result.append((start, stop))
    return tuple(result) if tuple(result) != box else None


def _midline(
    image: torch.Tensor, scores: torch.Tensor, grid: Sequence[AxisGrid], order: AxisOrder, volume: Volume
) -> float | None:
    """LPS x (mm) that halves the body at the height of the organs; None where the scan cuts the body's sides."""
    classes = highest_class(scores).cpu().numpy()
    heights = np.flatnonzero(classes.any(axis=(1, 2)))
    if not len(heights):
        return None
    axis = _view_grid(grid, order, volume.array.shape)[2]
    size = volume.array.shape[order.permutation[2]]
    inside = (axis.positions >= -0.5) & (axis.positions <= size - 0.5)
    body = (image[heights[0] : heights[-1] + 1] > AIR + 0.05).cpu().numpy()[:, :, inside]
    touching = [float(np.mean(body[:, :, side].any(axis=1))) for side in (0, -1)]
    if max(touching) > 0.5 or abs(touching[0] - touching[1]) > 0.2:
        return None
    profile = np.cumsum(np.count_nonzero(body, axis=(0, 1)))
    if profile[-1] == 0:
        return None
    column = float(np.interp(profile[-1] / 2, profile, np.arange(len(profile)) + 0.5))
    place = axis.positions[inside][0] + axis.step * column
    view = volume.to_lps_view()[0]
    middle = [(n - 1) / 2 for n in view.array.shape[::-1]]
    return float((view.affine_lps @ [place, middle[1], middle[2], 1])[0])


def _straighten(volume: Volume, outside: float) -> Volume:
    """The volume on a grid along the patient's axes, of about its own spacing."""
    view, _ = volume.to_lps_view()
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(view.array.shape[::-1]) - 1
    places = (view.affine_lps @ corners.T)[:3]
    origin, spacing = places.min(axis=1), np.array(view.spacing)
    size = np.ceil((places.max(axis=1) - origin) / spacing).astype(int) + 1
    moved = sitk.Resample(
        _image_of(volume, volume.array if volume.array.dtype == np.int16 else volume.array.astype(np.float32)),
        size.tolist(),
        sitk.Transform(),
        sitk.sitkLinear,
        origin.tolist(),
        spacing.tolist(),
        np.eye(3).ravel().tolist(),
        outside,
    )
    return Volume(sitk.GetArrayFromImage(moved), tuple(spacing), tuple(origin), np.eye(3), volume.name)


def _labels_on_grid_of(volume: Volume, straight: Volume, labels: np.ndarray, organs: Sequence[Organ]) -> np.ndarray:
    """Labels of the straightened grid on the volume's own: shares are interpolated linearly, the largest wins."""
    result = np.zeros(volume.array.shape, np.uint8)
    boxes = ndimage.find_objects((labels > 0).astype(np.uint8))
    if not boxes:
        return result
    corners = np.array(
        [[(s.start - 1, s.stop)[bit] for s, bit in zip(boxes[0][::-1], bits)] + [1] for bits in np.ndindex(2, 2, 2)],
        float,
    )
    indices = (np.linalg.inv(volume.affine_lps) @ straight.affine_lps @ corners.T)[:3]
    size = np.array(volume.array.shape[::-1])
    low = np.clip(np.floor(indices.min(axis=1)), 0, size - 1).astype(int)
    high = np.clip(np.ceil(indices.max(axis=1)) + 1, low + 1, size).astype(int)
    place = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1]))
    origin = (volume.affine_lps @ [*low, 1])[:3]
    rest = np.ones(result[place].shape, np.float32)
    best = np.zeros_like(rest)
    for organ in organs:
        mask = labels == organ.label
        if not mask.any():
            continue
        share = sitk.GetArrayFromImage(
            sitk.Resample(
                _image_of(straight, mask.astype(np.float32)),
                (high - low).tolist(),
                sitk.Transform(),
                sitk.sitkLinear,
                origin.tolist(),
                volume.spacing,
                volume.direction.ravel().tolist(),
                0.0,
            )
        )
        result[place][share > best] = organ.label
        np.maximum(best, share, out=best)
        rest -= share
    result[place][rest >= best] = 0
    return result


def _image_of(volume: Volume, array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.ravel().tolist())
    return image


def _number_type(precision: str, device: str) -> torch.dtype:
    if precision == "float32" or (precision == "auto" and device == "mps"):
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    return (
        torch.bfloat16
        if device == "cuda" and torch.cuda.is_bf16_supported() or device == "cpu" and has_amx()
        else torch.float32
    )


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices (Intel AMX); without it bfloat16 does not pay."""
    if platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
