"""Where a person should look first: the places of a result where most of it may be wrong.

A place is what lies in a window of at most PLACE_MM a side. Windows are laid one after another, each where the expected
volume of wrong labels (one minus the confidence, summed over the doubtful cells of the network's grid that no place has
yet) is highest; that volume is what is at stake there. A place's box is the bounding box of its doubtful cells. A voxel
is *covered* by a place when its confidence is below DOUBTFUL_BELOW and it lies in the place's box: what is shown as
doubtful there, not all of the box.

Organs that are missing come as places of their own where something looks like them, and otherwise without a place;
organs that the scan cuts and what else is to be said of the result come last: what is at stake there nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from FlareSegmentLib.inference.confidence import Evidence, classes_of
from FlareSegmentLib.inference.grids import cell_volume_ml
from FlareSegmentLib.inference.postprocessing import CLEARLY_OFF_MIDLINE_MM
from FlareSegmentLib.measures.organ_statistics import center_of
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume

DOUBTFUL_BELOW = 0.95
PLACE_MM = 80.0
MOST_PLACES = 10
LEAST_ML = 0.3
"""Less is not worth a look."""
_BLOCK_MM = 10.0
_SURELY_BACKGROUND = 0.98


@dataclass(frozen=True)
class Place:
    """A place to look at.

    Attributes:
        kind: "doubtful"; "missing", an organ of which the result has nothing; "cut", an organ that the scan cuts; or
            "remark", of which `text` tells.
        organ: key of the organ that most of it concerns; None if that is none.
        side: "left" or "right" of the patient, "" in the middle of the body or where that is not known.
        ml: expected volume of wrong labels; 0 where nobody knows.
        center: voxel (i, j, k) of the CT in what is most doubtful; None where there is no place.
        box: (z, y, x) [start, stop) on the CT's grid; None where there is none.
        text: for the user, of a remark.
    """

    kind: str
    organ: str | None
    side: str
    ml: float
    center: tuple[float, ...] | None = None
    box: tuple[tuple[int, int], ...] | None = None
    text: str = ""


def find_places(
    evidence: Evidence,
    volume: Volume,
    labels: np.ndarray,
    model_organs: Sequence[Organ],
    kept: Sequence[Organ],
    boxes: Mapping[str, tuple[slice, ...]],
    region: tuple[slice, ...] | None = None,
    remarks: Sequence[str] = (),
) -> list[Place]:
    """The places of a result, worst first.

    Args:
        evidence: of the run that made it.
        volume: the CT.
        labels: (z, y, x) on its grid, with the values of `kept`.
        model_organs: of the model's classes 1, 2, ...
        kept: the organs that were asked for.
        boxes: the label map's `organ_boxes`.
        region: the part of the volume (z, y, x) that was asked for; None for all.
        remarks: what else is to be said of the result.
    """
    side_of = _Sides(volume, evidence.midline_mm)
    found: list[Place] = []
    if evidence.scores is not None:
        doubts = _Doubts(evidence, volume, labels, model_organs, kept, region)
        for organ in kept:
            if organ.key not in boxes:
                found += doubts.places("missing", 1, organ)
        found += doubts.places("doubtful", MOST_PLACES)
    found = sorted(found, key=lambda place: -place.ml)[:MOST_PLACES]
    missing = {place.organ for place in found if place.kind == "missing"}
    for organ in kept:
        if organ.key not in boxes and organ.key not in missing:
            found.append(Place("missing", organ.key, side_of(organ, None), 0.0))
    found += _cut_organs(labels, kept, boxes, region or tuple(slice(0, size) for size in labels.shape), side_of)
    for text in remarks:
        named = next((organ for organ in kept if organ.name.lower() in text.lower()), None)
        center = None
        if named is not None and named.key in boxes:
            box = boxes[named.key]
            center = tuple(center_of(labels[box] == named.label, box))
        found.append(Place("remark", named.key if named else None, side_of(named, center), 0.0, center, None, text))
    return found


class _Sides:
    """Which side of the patient something lies on."""

    def __init__(self, volume: Volume, midline_mm: float | None) -> None:
        self._x, self._midline = volume.affine_lps[0], midline_mm

    def __call__(self, organ: Organ | None, center: Sequence[float] | None) -> str:
        own = organ.key.partition("_")[0] if organ is not None else ""
        if own in ("right", "left"):
            return own
        if self._midline is None or center is None:
            return ""
        off = float(self._x @ [*center, 1.0]) - self._midline
        return "" if abs(off) < CLEARLY_OFF_MIDLINE_MM else "left" if off > 0 else "right"


class _Doubts:
    """The doubtful cells of the network's grid, and the windows with the most of them.

    Cells are kept in lists: they are few among those of the grid.
    """

    def __init__(
        self,
        evidence: Evidence,
        volume: Volume,
        labels: np.ndarray,
        model_organs: Sequence[Organ],
        kept: Sequence[Organ],
        region: tuple[slice, ...] | None,
    ) -> None:
        assert evidence.volume is not None and evidence.scores is not None
        self._seen, self._grid, self._volume, self._organs = evidence.volume, evidence.grid, volume, model_organs
        self._to_voxels = None
        if self._seen is not volume:
            self._to_voxels = np.linalg.inv(volume.affine_lps) @ self._seen.affine_lps
        self._side_of = _Sides(volume, evidence.midline_mm)
        self._cell_ml = cell_volume_ml(self._grid, self._seen)
        scores = evidence.scores.float().cpu().numpy()
        counts, scores = scores.shape[1:], scores.reshape(len(scores), -1)
        index = np.flatnonzero(scores[0] < _SURELY_BACKGROUND)
        cells = np.stack(np.unravel_index(index, counts))
        classes, inside = self._classes(cells, labels, region)
        doubt = 1.0 - scores[classes, index]
        used = np.flatnonzero(inside & (doubt > 1.0 - DOUBTFUL_BELOW))
        classes = classes[used]
        organ = np.where(classes > 0, classes - 1, scores[1:, index[used]].argmax(axis=0))
        asked_for = np.array([one in kept for one in model_organs])[organ]
        used = used[asked_for]
        self._cells, self._doubt, self._organ = cells[:, used], doubt[used].astype(np.float64), organ[asked_for]
        mm = [abs(axis.step) * self._seen.spacing[2 - number] for number, axis in enumerate(self._grid)]
        size = [max(1, round(_BLOCK_MM / value)) for value in mm]
        self._window = [max(1, int(PLACE_MM / (n * value) + 1e-6)) for n, value in zip(size, mm, strict=True)]
        self._blocks = self._cells // np.array(size)[:, None]
        self._counts = tuple(-(-axis.count // n) for axis, n in zip(self._grid, size, strict=True))

    def places(self, kind: str, count: int, organ: Organ | None = None) -> list[Place]:
        """The worst places, of one organ or of all; what they hold is in no later one."""
        doubt = self._doubt
        if organ is not None:
            doubt = np.where(self._organ == self._organs.index(organ), doubt, 0.0)
        index = np.ravel_multi_index(tuple(self._blocks), self._counts)
        sums = np.bincount(index, doubt, int(np.prod(self._counts))).reshape(self._counts)
        found = []
        for _ in range(count):
            window = _highest_window(sums, self._window)
            if float(sums[window].sum()) * self._cell_ml < LEAST_ML:
                break
            within = doubt > 0
            for blocks, extent in zip(self._blocks, window, strict=True):
                within &= (blocks >= extent.start) & (blocks < extent.stop)
            within = np.flatnonzero(within)
            found.append(self._place(kind, within, sums.ravel()[index[within]]))
            sums[window] = 0.0
            self._doubt[within] = 0.0
        return found

    def _place(self, kind: str, within: np.ndarray, near: np.ndarray) -> Place:
        """The place of these cells; near: what is at stake in each one's block."""
        doubt, cells = self._doubt[within], self._cells[:, within]
        shares = np.bincount(self._organ[within], doubt, len(self._organs))
        number = int(shares.argmax())
        organ, own = self._organs[number], np.flatnonzero(self._organ[within] == number)
        own = own[near[own] == near[own].max()]
        middle = cells[:, own[doubt[own].argmax()]]
        at = [[axis.first + axis.step * n] for axis, n in zip(self._grid, middle, strict=True)]
        center = tuple(float(value) for value in self._voxels(np.array(at))[::-1, 0])
        ml = float(doubt.sum()) * self._cell_ml
        return Place(kind, organ.key, self._side_of(organ, center), ml, center, self._box(cells))

    def _box(self, cells: np.ndarray) -> tuple[tuple[int, int], ...]:
        """The bounding box of cells on the CT's grid."""
        edges = []
        for axis, hits in zip(self._grid, cells, strict=True):
            ends = np.array([hits.min() - 0.5, hits.max() + 0.5])
            edges.append(sorted(axis.first + axis.step * ends))
        corners = self._voxels(
            np.array([[ends[bit] for ends, bit in zip(edges, bits)] for bits in np.ndindex(2, 2, 2)]).T
        )
        size = np.array(self._volume.array.shape)
        low = np.clip(np.ceil(corners.min(axis=1)), 0, size - 1).astype(int)
        high = np.clip(np.floor(corners.max(axis=1)) + 1, low + 1, size).astype(int)
        return tuple((int(a), int(b)) for a, b in zip(low, high, strict=True))

    def _voxels(self, places: np.ndarray) -> np.ndarray:
        """Places in indices of what the networks saw, (3, n) in order of the axes, in the CT's."""
        if self._to_voxels is None:
            return places
        return (self._to_voxels[:3, :3] @ places[::-1] + self._to_voxels[:3, 3:])[::-1]

    def _classes(
        self, cells: np.ndarray, labels: np.ndarray, region: tuple[slice, ...] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The class of each cell's nearest voxel in the result, and whether the cell lies in what was asked for."""
        voxels = np.stack([axis.first + axis.step * index for axis, index in zip(self._grid, cells, strict=True)])
        voxels = np.rint(self._voxels(voxels)).astype(int)
        inside = np.ones(voxels.shape[1], bool)
        for place, extent in zip(voxels, region or [slice(0, size) for size in labels.shape], strict=True):
            inside &= (place >= extent.start) & (place < extent.stop)
        nearest = [np.clip(place, 0, size - 1) for place, size in zip(voxels, labels.shape, strict=True)]
        return classes_of(labels[tuple(nearest)], self._organs), inside


def _highest_window(sums: np.ndarray, size: Sequence[int]) -> tuple[slice, ...]:
    """The window of this size, or of the array's where that is smaller, with the highest sum."""
    windows = sums
    for count in size:
        count = min(count, len(windows))
        total = np.zeros((1 + len(windows), *windows.shape[1:]))
        np.cumsum(windows, axis=0, out=total[1:])
        windows = (total[count:] - total[:-count]).transpose(1, 2, 0)  # after all three the axes are as they were
    start = np.unravel_index(int(windows.argmax()), windows.shape)
    return tuple(slice(int(a), int(a) + n) for a, n in zip(start, size, strict=True))


def _cut_organs(
    labels: np.ndarray,
    organs: Sequence[Organ],
    boxes: Mapping[str, tuple[slice, ...]],
    region: tuple[slice, ...],
    side_of: _Sides,
) -> Iterator[Place]:
    """Where the scan, or the region that was asked for, cuts organs: the middle of each cut face."""
    for organ in organs:
        for axis, extent in enumerate(boxes.get(organ.key, ())):
            for index, is_cut in (
                (extent.start, extent.start == region[axis].start),
                (extent.stop - 1, extent.stop == region[axis].stop),
            ):
                if not is_cut:
                    continue
                face = tuple(
                    slice(index, index + 1) if number == axis else part for number, part in enumerate(boxes[organ.key])
                )
                center = tuple(center_of(labels[face] == organ.label, face))
                box = tuple((part.start, part.stop) for part in face)
                yield Place("cut", organ.key, side_of(organ, center), 0.0, center, box)
