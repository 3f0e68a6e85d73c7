"""Cases as training reads them: LPS axes, on the grid of a stage's network, intensities in -1 ... 1.

A prepared case can be kept in a cache folder under a key made of the files' content and every setting it depends on.
It is then mapped into memory instead of being read: loading costs nothing, and the processes of one machine share the
pages.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.inference.resampling import AxisGrid, resample
from FlareSegmentLib.model.description import Stage
from FlareSegmentLib.model.intensity import Intensity, body_box, window
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.dataset_layouts import LeftOut
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED
from FlareSegmentTrainingLib.datasets.scan_identity import scan_hash

_LEAST_IN_SLAB_ML = 10.0
PREPARATION_VERSION = 2
"""Part of the cache's keys; raise it with every change of what `prepare_case` computes."""


class NotKept(InputError):
    """The disk does not take a prepared case; nothing is wrong with the case."""


class NoCaseLeft(InputError):
    """None of the cases can be used."""


@dataclass(frozen=True)
class PreparedCase:
    """A case on a stage's grid.

    Attributes:
        image: (z, y, x) float32 in -1 ... 1. From a cache it is a private mapping of the file: writing to it changes
            no file.
        labels: (z, y, x) uint8; 1, 2, ... in the order of the model's organs, `label_maps.IGNORED` where nobody
            looked.
        spacing_mm: (x, y, z) of the grid.
        weights: organ key -> weight of its labels in the loss.
        organ_voxels: one (n, 3) array of (z, y, x) voxels for each organ present.
        sampling_weight: how often the case is drawn, relative to the others of its location.
        location: number of the data location it comes from.
        scan: what identifies its scan, see `scan_identity.scan_hash`.
        warnings: what is odd about the case, for the user.
    """

    name: str
    image: torch.Tensor
    labels: torch.Tensor
    spacing_mm: tuple[float, float, float]
    weights: dict[str, float]
    organ_voxels: list[np.ndarray]
    sampling_weight: float
    location: int = 0
    scan: str = ""
    warnings: tuple[str, ...] = ()

    def volumes_ml(self) -> dict[str, float]:
        """Organ key -> its volume on the grid."""
        voxel_ml = math.prod(self.spacing_mm) / 1000.0
        return {key: int((self.labels == label).sum()) * voxel_ml for label, key in enumerate(self.weights, start=1)}


@dataclass(frozen=True)
class _Arrays:
    """What is kept in the cache: image float32, labels uint8, voxels int16 (n, 3) by label; scan and warnings."""

    image: np.ndarray
    labels: np.ndarray
    voxels: dict[int, np.ndarray]
    spacing_mm: tuple[float, float, float]
    scan: str
    warnings: tuple[str, ...]


def prepare_case(
    case: Case, stage: Stage, intensity: Intensity, organs: Sequence[str], cache: Path | None = None
) -> PreparedCase:
    """Read a case, reorient it to LPS and bring it to a stage's grid; labels by the largest share of each organ, of
    what was looked at; voxels of which half or more was not are `label_maps.IGNORED`.

    The grid covers the whole volume, or for the region "body" the body's box, at `stage.spacing_mm` or in
    `stage.shape` voxels.

    Args:
        organs: keys of the model's organs, in the order of its labels.
        cache: folder where the result is kept and looked for.

    Raises:
        InputError: the case cannot be used, see `Case.read`.
    """
    arrays = None
    if cache is not None:
        place = Path(cache) / _key(case, stage, intensity, organs)
        arrays = _load(place)
    if arrays is None:
        arrays = _resampled(case, stage, intensity, organs)
        if cache is not None:
            _save(place, arrays)
            arrays = _load(place) or arrays
    weights = {key: case.weights.get(key, 0.0) for key in organs}
    present = sum(weights[key] for index, key in enumerate(organs, start=1) if index in arrays.voxels)
    return PreparedCase(
        case.name,
        torch.from_numpy(arrays.image),
        torch.from_numpy(arrays.labels),
        arrays.spacing_mm,
        weights,
        list(arrays.voxels.values()),
        sampling_weight=0.25 + present / len(organs),
        location=case.location,
        scan=arrays.scan,
        warnings=arrays.warnings,
    )


def prepare_cases(
    cases: Sequence[Case],
    stage: Stage,
    intensity: Intensity,
    organs: Sequence[str],
    cache: Path | None = None,
    left_out: Callable[[LeftOut], None] | None = None,
    before_each: Callable[[], None] = lambda: None,
) -> list[PreparedCase]:
    """Prepare cases; one that cannot be used, or in which none of the organs is labeled, is told to `left_out` and
    skipped. What `before_each` raises ends the work.

    Raises:
        NoCaseLeft: no case is left.
        NotKept: the disk does not take a prepared case.
        InputError: without `left_out`: a case cannot be used.
    """
    prepared = []
    for case in cases:
        before_each()
        try:
            if not case.labeled & set(organs):
                raise InputError(f"none of {', '.join(organs)} is labeled in it")
            prepared.append(prepare_case(case, stage, intensity, organs, cache))
        except NotKept:
            raise  # the next case could not be kept either, and a case that is right must not be missing
        except InputError as error:
            if left_out is None:
                raise InputError(f"Case {case.name}: {error}") from error
            left_out(LeftOut(case.name, str(error)))
    if cases and not prepared:
        raise NoCaseLeft("None of the cases can be used.")
    return prepared


def slabs_of(case: PreparedCase, height_mm: float) -> list[PreparedCase]:
    """Three slabs of a case, at its lowest organ, its highest and between; none where the case is no higher itself.

    Organs of less than 10 mL in a slab do not count there: their weight is 0.
    """
    hits = torch.nonzero(((case.labels > 0) & (case.labels != IGNORED)).flatten(1).any(1)).flatten()
    count = max(1, round(height_mm / case.spacing_mm[2]))
    if not len(hits) or count >= len(case.labels):
        return []
    low, high = int(hits[0]), int(hits[-1]) + 1
    cell_ml = float(np.prod(case.spacing_mm)) / 1000.0
    result = []
    for number, share in enumerate((0.0, 0.5, 1.0), start=1):
        start = min(round(low + share * max(0, high - low - count)), len(case.labels) - count)
        labels = case.labels[start : start + count]
        weights = {
            key: weight if float((labels == label).sum()) * cell_ml >= _LEAST_IN_SLAB_ML else 0.0
            for label, (key, weight) in enumerate(case.weights.items(), start=1)
        }
        name = f"{case.name}, {height_mm:g} mm slab {number}"
        image = case.image[start : start + count]
        result.append(replace(case, name=name, image=image, labels=labels, weights=weights, organ_voxels=[]))
    return result


def _resampled(case: Case, stage: Stage, intensity: Intensity, organs: Sequence[str]) -> _Arrays:
    volume, labels, warnings = case.read()
    image, order = volume.to_lps_view()
    truth = order.apply(labels)
    box = body_box(image.array, intensity) if stage.region == "body" else tuple(slice(0, n) for n in image.array.shape)
    grid = _grid(box, image, stage)
    resampled = resample(image.array, grid, outside=intensity.lower).numpy()
    best = np.full(resampled.shape, 0.5, np.float32)
    ignored = None
    if (truth == IGNORED).any():
        ignored = resample(truth == IGNORED, grid, outside=0.0).numpy()
        best *= 1.0 - ignored
    result = np.zeros(resampled.shape, np.uint8)
    for index, key in enumerate(organs, start=1):
        share = resample(truth == organ_by_key(key).label, grid, outside=0.0).numpy()
        result[share >= best] = index
        np.maximum(best, share, out=best)
    if ignored is not None:
        result[ignored >= 0.5] = IGNORED
    voxels = {index: np.argwhere(result == index).astype(np.int16) for index in range(1, len(organs) + 1)}
    x, y, z = (axis.step * mm for axis, mm in zip(grid[::-1], image.spacing))
    present = {label: places for label, places in voxels.items() if len(places)}
    spacing = (x, y, z)
    return _Arrays(window(resampled, intensity), result, present, spacing, scan_hash(volume), tuple(warnings))


def _grid(box: Sequence[slice], image: Volume, stage: Stage) -> tuple[AxisGrid, AxisGrid, AxisGrid]:
    """The stage's grid over a box of the LPS image, as (z, y, x) axes: the pipeline's, before it is filled up to a
    multiple.
    """
    axes = []
    for axis, extent in enumerate(box):
        size = extent.stop - extent.start
        if stage.shape is not None:
            axes.append(AxisGrid.over(extent.start, extent.stop, stage.shape[2 - axis]))
        else:
            assert stage.spacing_mm is not None
            step = stage.spacing_mm[2 - axis] / image.spacing[2 - axis]
            axes.append(AxisGrid.over(extent.start, extent.stop, max(1, math.ceil(size / step - 1e-3)), step))
    z, y, x = axes
    return z, y, x


# Cache --------------------------------------------------------------------------------------------


def _key(case: Case, stage: Stage, intensity: Intensity, organs: Sequence[str]) -> str:
    settings = (
        PREPARATION_VERSION,
        case.content_hash(),
        (stage.region, stage.spacing_mm, stage.shape),
        (intensity.lower, intensity.upper),
        tuple(organs),
    )
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:32]


def _save(place: Path, arrays: _Arrays) -> None:
    """Write a cache entry, whole or not at all. Raises NotKept when the disk does not take it."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(dir=place.parent, prefix=".saving-"))
    except OSError as error:
        reason = error.strerror or why_not_written(place.parent, error)
        raise NotKept(f"{place.parent} cannot be written: {reason}. Name another cache folder.") from error
    try:
        np.save(private / "image.npy", arrays.image)
        np.save(private / "labels.npy", arrays.labels)
        for label, voxels in arrays.voxels.items():
            np.save(private / f"voxels_{label}.npy", voxels)
        facts = {
            "labels": sorted(arrays.voxels),
            "spacing_mm": arrays.spacing_mm,
            "scan": arrays.scan,
            "warnings": arrays.warnings,
        }
        (private / "case.json").write_text(json.dumps(facts), encoding="utf-8")
        if place.exists() and _load(place) is None:
            shutil.rmtree(place, ignore_errors=True)
        private.rename(place)
    except OSError as error:
        if _load(place) is None:  # otherwise another process was faster
            reason = error.strerror or why_not_written(place.parent, error)
            raise NotKept(f"{place.parent} cannot be written: {reason}. The same command goes on.") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)


def _load(place: Path) -> _Arrays | None:
    """A cache entry mapped into memory, or None where there is none or it is damaged."""
    try:
        facts = json.loads((place / "case.json").read_text(encoding="utf-8"))
        names = {"image": "image", "labels": "labels", **{label: f"voxels_{label}" for label in facts["labels"]}}
        arrays = {key: np.load(place / f"{name}.npy", mmap_mode="c", allow_pickle=False) for key, name in names.items()}
        image, labels = arrays.pop("image"), arrays.pop("labels")
        if image.dtype != np.float32 or labels.dtype != np.uint8 or image.shape != labels.shape:
            return None
        x, y, z = (float(value) for value in facts["spacing_mm"])
        return _Arrays(image, labels, arrays, (x, y, z), str(facts["scan"]), tuple(map(str, facts["warnings"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
