"""Structure sets of clinical plans (DICOM RTSTRUCT) in as label maps.

A structure is taken for an organ by its name (`organ_names.organ_of_name`) and filled by the even-odd rule, so that
holes count as holes, whether they are contours of their own or cut in by a keyhole (DICOM PS3.3, C.8.8.6). Contours
have to lie on the CT's slices; a structure of which some do not, or that is drawn on every second slice only, would
give wrong labels and is refused by name. Needs pydicom.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import quiet_pydicom
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.organ_names import organ_of_name
from FlareSegmentTrainingLib.dicom.dicom_series import require_pydicom

_IN_SLICE = 0.2
"""How far, in slices, a contour may lie off its slice."""


@dataclass(frozen=True, eq=False)
class StructureLabels:
    """What a structure set says about the organs.

    Attributes:
        labels: (z, y, x) uint8 in FlareSegment's values.
        organs: keys of the organs that were drawn.
        refused: organ key -> why its structure cannot be used.
        remarks: for the user.
    """

    labels: np.ndarray
    organs: frozenset[str]
    refused: Mapping[str, str]
    remarks: tuple[str, ...]


def structure_set_series(dataset) -> str:
    """The UID of the series that a pydicom data set of a structure set was drawn on, "" where it does not say."""
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                if series.get("SeriesInstanceUID"):
                    return str(series.SeriesInstanceUID)
    return ""


def structure_names(dataset) -> dict[int, str]:
    """Names of a pydicom data set's structures by their numbers."""
    return {int(item.ROINumber): str(item.get("ROIName", "")) for item in dataset.get("StructureSetROISequence") or ()}


def structure_organs(dataset) -> tuple[dict[str, int], dict[str, str]]:
    """Organ key -> number of the structure that is it, and organ key -> why none of several can be taken."""
    found: dict[str, list[int]] = {}
    names = structure_names(dataset)
    for number, name in names.items():
        organ = organ_of_name(name)
        if organ is not None:
            found.setdefault(organ, []).append(number)
    several = {
        organ: f"{len(numbers)} structures are called so ({', '.join(names[number] for number in numbers)})"
        for organ, numbers in found.items()
        if len(numbers) > 1
    }
    return {organ: numbers[0] for organ, numbers in found.items() if organ not in several}, several


def read_structure_set(path: Path, like: Volume) -> StructureLabels:
    """Draw a structure set's organs on the grid of its CT.

    Args:
        like: the CT, its z axis across the slices; a tilted one as it was scanned.

    Raises:
        InputError: the file is no structure set or damaged.
    """
    require_pydicom()
    with quiet_pydicom():
        return _read(path, like)


def fill_even_odd(contours: list[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """The pixels whose centers lie inside an odd number of polygons.

    Args:
        contours: (n, 2) polygon corners (x, y) in pixels, the first pixel's center at 0.
        shape: rows and columns.

    Returns:
        (rows, columns) bool. Where outlines meet without overlapping, every pixel belongs to one of them.
    """
    flips = np.zeros((shape[0], shape[1] + 1), np.int32)
    for polygon in contours:
        starts, ends = polygon, np.roll(polygon, -1, axis=0)
        # both ways along an edge have to give the same crossing, or a keyhole leaves a trace
        swap = starts[:, 1] > ends[:, 1]
        low, high = np.where(swap[:, None], ends, starts), np.where(swap[:, None], starts, ends)
        first = np.clip(np.ceil(low[:, 1]), 0, shape[0]).astype(int)
        last = np.clip(np.ceil(high[:, 1]), 0, shape[0]).astype(int)
        edges = np.repeat(np.arange(len(polygon)), last - first)
        offsets = np.arange(len(edges)) - np.repeat(np.cumsum(last - first) - (last - first), last - first)
        rows = first[edges] + offsets
        (x0, y0), (x1, y1) = low[edges].T, high[edges].T
        crossings = x0 + (rows - y0) * (x1 - x0) / (y1 - y0)
        columns = np.clip(np.ceil(crossings), 0, shape[1]).astype(int)
        np.add.at(flips, (rows, columns), 1)
    return np.cumsum(flips[:, :-1], axis=1) % 2 == 1


def _read(path: Path, like: Volume) -> StructureLabels:
    import pydicom

    try:
        dataset = pydicom.dcmread(path, force=True)
        if dataset.get("Modality") != "RTSTRUCT":
            raise InputError(f"{path} is no structure set (RTSTRUCT).")
        organs, refused = structure_organs(dataset)
        contours = {int(item.ReferencedROINumber): item for item in dataset.get("ROIContourSequence") or ()}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is a damaged structure set: export it again.") from error
    labels = np.zeros(like.array.shape, np.uint8)
    inverse = np.linalg.inv(like.affine_lps)
    drawn, overlap = set(), 0
    for organ, number in sorted(organs.items(), key=lambda pair: organ_by_key(pair[0]).label):
        try:
            mask = _draw(contours.get(number), inverse, like.array.shape)
        except InputError as error:
            refused[organ] = str(error)
            continue
        overlap += int(np.count_nonzero(mask & (labels > 0)))
        labels[mask & (labels == 0)] = organ_by_key(organ).label
        drawn.add(organ)
    remarks = [f"{organ} is not taken: {reason}" for organ, reason in refused.items()]
    if overlap:
        remarks.append(f"{overlap} voxels lie in two structures")
    return StructureLabels(labels, frozenset(drawn), refused, tuple(remarks))


def _draw(item, inverse: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A structure's voxels (z, y, x) bool. Raises InputError with half a line."""
    by_slice: dict[int, list[np.ndarray]] = {}
    for contour in (item.get("ContourSequence") if item is not None else None) or ():
        kind = str(contour.get("ContourGeometricType", ""))
        if not kind.replace("_", "").startswith("CLOSEDPLANAR"):
            raise InputError(f"it has contours of the type {kind or 'unknown'}; only closed planar ones are areas")
        try:
            points = np.array([float(value) for value in contour.ContourData]).reshape(-1, 3)
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError("a contour of it is damaged") from error
        if not np.all(np.isfinite(points)):
            raise InputError("a contour of it is damaged")
        if len(points) < 3:
            continue
        indices = points @ inverse[:3, :3].T + inverse[:3, 3]
        places = indices[:, 2]
        if np.ptp(places) > _IN_SLICE:
            raise InputError("its contours lie on oblique planes, not on the CT's slices")
        place = float(places.mean())
        if abs(place - round(place)) > _IN_SLICE:
            raise InputError("its contours lie between the CT's slices")
        if not 0 <= round(place) < shape[0]:
            raise InputError("it reaches beyond the CT")
        by_slice.setdefault(round(place), []).append(indices[:, :2])
    if not by_slice:
        raise InputError("it has no contours")
    empty = max(by_slice) - min(by_slice) + 1 - len(by_slice)
    if empty:
        raise InputError(f"{empty} slices between its contours have none")
    mask = np.zeros(shape, bool)
    for place, contours in by_slice.items():
        mask[place] = fill_even_odd(contours, shape[1:])
    if not mask.any():
        raise InputError("its contours hold no voxel")
    return mask
