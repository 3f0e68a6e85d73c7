"""Labels of a case in FlareSegment's values, from whatever holds them: a label map, a segmentation of Slicer whose
segments overlap, or a folder of masks (volumes, DICOM slices, or a picture for each slice of the CT).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import find_series, read_series
from FlareSegmentLib.files.file_headers import file_type
from FlareSegmentLib.files.image_io import check_file_header, read_labels
from FlareSegmentLib.files.itk_reading import quiet_itk
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.class_tables import label_map_of_file
from FlareSegmentTrainingLib.datasets.file_pairs import entries_of
from FlareSegmentTrainingLib.datasets.label_maps import IGNORE, IGNORED, LabelMap
from FlareSegmentTrainingLib.datasets.mask_layouts import organs_of_masks
from FlareSegmentTrainingLib.datasets.segmentation_headers import Segment, read_segments

LAYER = 1 << 16
"""A segment's value in the `LabelMap` of a segmentation with layers: its value plus this times its layer."""
_PLACE = 0.1
"""How far labels may lie off their image, in the smallest voxel side: programs round headers differently."""
_SOFT_HU = (-50.0, 300.0)
_SOFT_FRACTION = 0.9
_INTERCEPT = "0028|1052"
_PICTURES = (".png", ".bmp", ".tif", ".tiff", ".jpg")


def meaning_of(labels: Path, label_map: LabelMap | None, given: LabelMap | None = None) -> LabelMap | None:
    """What the values of one file mean: the names in the file itself, else the user's table, else the data set's.

    Args:
        label_map: what the data set says.
        given: what the user says.

    Returns:
        None where nobody says it.

    Raises:
        InputError: two of them say different organs.
    """
    if labels.is_dir():
        return label_map
    segments = read_segments(labels)
    own = label_map_of_file(labels)
    told = given or (label_map if label_map is not None and not label_map.conventional else None) or own
    if segments:
        return _meaning_of_segments(labels, segments, told)
    if given is not None:
        _check_agreement(given, own, label_map)
    return given or own or label_map


def _check_agreement(given: LabelMap, *others: LabelMap | None) -> None:
    """Raise InputError where the user's table and the data set's call one value two organs."""
    for other in (other for other in others if other is not None and not other.conventional):
        table = dict(other.organs)
        for value, key in given.organs:
            if table.get(value, key) != key:
                raise InputError(
                    f"{given.source or given.name} calls value {value} {key.replace('_', ' ')}, "
                    f"{other.source or other.name} calls it {table[value].replace('_', ' ')}: correct one of them"
                )


def _meaning_of_segments(labels: Path, segments: Sequence[Segment], told: LabelMap | None) -> LabelMap:
    layered = len({segment.layer for segment in segments}) > 1
    organs: list[tuple[int, str]] = []
    others: set[int] = set()
    ignored: set[int] = set()
    table = dict(told.organs) if told else {}
    for segment in segments:
        value = segment.value + LAYER * segment.layer if layered else segment.value
        organ, other = segment.organ, table.get(segment.value)
        if segment.name.strip().lower() == IGNORE and not other:
            ignored.add(value)
            continue
        if organ and other and organ != other:
            raise InputError(
                f"the header of {labels.name} calls value {segment.value} {organ.replace('_', ' ')}, "
                f"{told.source or told.name if told else ''} calls it {other.replace('_', ' ')}"
            )
        if told and segment.value in told.ignored:
            ignored.add(value)
            continue
        if told and segment.value in told.others:
            organ = None
        organ = organ or (None if layered else other)
        if organ:
            organs.append((value, organ))
        else:
            others.add(value)
    if not organs:
        names = ", ".join(segment.name for segment in segments[:4])
        raise InputError(
            f"its segments are called {names}, which are none of FlareSegment's organs: rename them in Slicer, or say "
            "what the values mean with --label-map"
        )
    source = "names in the headers of the segmentation files"
    return LabelMap(source, tuple(sorted(organs)), frozenset(others), frozenset(ignored), source=source)


def files_of(labels: Path, label_map: LabelMap) -> list[Path]:
    """The files that the labels are read from."""
    if not labels.is_dir():
        return [labels]
    organs = organs_of_masks(labels)
    paths = [path for key in sorted(label_map.labeled) for path in organs.get(key, ())] or [labels]
    return [file for path in paths for file in ([path] if path.is_file() else sorted(_files_below(path)))]


def _files_below(folder: Path) -> Iterable[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def read_case_labels(labels: Path, label_map: LabelMap, volume: Volume, image: Path) -> tuple[np.ndarray, list[str]]:
    """A case's labels on its image's grid.

    Args:
        volume: the image, read from `image`.

    Returns:
        ((z, y, x) uint8 in FlareSegment's values and `label_maps.IGNORED`, warnings).

    Raises:
        InputError: in half a line: they cannot be read, lie elsewhere, or hold a value that nobody explains.
    """
    if labels.is_dir():
        return _read_masks(labels, label_map, volume, image)
    if _layers(label_map) > 1 or _components(labels) > 1:
        return _read_layers(labels, label_map, volume)
    return label_map.apply(_on_grid(labels, volume).array), []


def read_labels_alone(labels: Path, label_map: LabelMap) -> Volume:
    """Labels without their image, on their own grid, in FlareSegment's values; masks on that of the first. Raises
    InputError.
    """
    if labels.is_dir():
        place = read_labels(files_of(labels, label_map)[0])
        return place.with_array(_read_masks(labels, label_map, place, labels)[0])
    if _layers(label_map) > 1 or _components(labels) > 1:
        place = _stored_layers(labels)[0]
        return place.with_array(_read_layers(labels, label_map, place)[0])
    found = read_labels(labels)
    return found.with_array(label_map.apply(found.array))


def _on_grid(labels: Path, volume: Volume) -> Volume:
    """A label map on the volume's grid, its axes reordered where they run otherwise."""
    found = read_labels(labels)
    if not found.same_grid(volume, tolerance_mm=_PLACE * min(volume.spacing)):
        if sorted(found.array.shape) != sorted(volume.array.shape):
            raise InputError(_sizes(found.array.shape, volume))
        # The engine reorders the axes of labels that lie on the same voxels, and refuses others.
        found = read_labels(labels, like=volume)
    return found


def _sizes(shape: tuple[int, ...], volume: Volume) -> str:
    sizes = [" x ".join(str(count) for count in part[::-1]) for part in (shape, volume.array.shape)]
    return f"its labels have {sizes[0]} voxels, its image {sizes[1]}"


# Segments in layers -------------------------------------------------------------------------------


def _layers(label_map: LabelMap) -> int:
    return len({value // LAYER for value, _ in label_map.organs})


def _components(labels: Path) -> int:
    """How many values each voxel of a file has; 1 where its header cannot be read, which reading will say."""
    if file_type(labels) is None or not labels.is_file():
        return 1
    check_file_header(labels)  # ITK ends the process at some damaged headers
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(labels))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError:
        return 1
    return reader.GetNumberOfComponents()


def _read_layers(labels: Path, label_map: LabelMap, volume: Volume) -> tuple[np.ndarray, list[str]]:
    segments = read_segments(labels)
    if not segments:
        raise InputError(
            f"its labels ({labels.name}) have several values in each voxel, as overlapping segments do, and no names: "
            "export them from Slicer as a label map"
        )
    place, stored = _stored_layers(labels)
    canonical, order = place.to_lps_view()[0], place.axis_order()
    target, back = volume.to_lps_view()[0], volume.axis_order()
    if canonical.array.shape != target.array.shape:
        raise InputError(_sizes(place.array.shape, volume))
    if not canonical.same_grid(target, tolerance_mm=_PLACE * min(volume.spacing)):
        raise InputError(f"its labels ({labels.name}) lie elsewhere than its image: choose the CT they were drawn on")
    organs = dict(label_map.organs)
    layered = len({segment.layer for segment in segments}) > 1
    result, overlap = np.zeros(target.array.shape, np.uint8), 0
    ignored = np.zeros(target.array.shape, bool)
    for segment in segments:
        value = segment.value + LAYER * segment.layer if layered else segment.value
        key = organs.get(value)
        if (key is None and value not in label_map.ignored) or segment.layer >= stored.shape[-1]:
            continue
        mask = order.apply(stored[..., segment.layer]) == segment.value
        if key is None:
            ignored |= mask
            continue
        label = organ_by_key(key).label
        overlap += int(np.count_nonzero(mask & (result > 0) & (result != label)))
        result[mask & (result == 0)] = label
    result[ignored] = IGNORED
    remarks = [f"{overlap} voxels lie in two organs: the first one in the file counts."] if overlap else []
    return np.ascontiguousarray(back.undo(result)), remarks


def _stored_layers(labels: Path) -> tuple[Volume, np.ndarray]:
    """The grid of a segmentation file and its layers, (z, y, x, layer). Raises InputError."""
    try:
        with quiet_itk():
            image = sitk.ReadImage(str(labels))
    except RuntimeError as error:
        raise InputError(f"{labels} is damaged or incomplete: its voxels cannot be read") from error
    stored = sitk.GetArrayFromImage(image)
    stored = stored[..., None] if stored.ndim == 3 else stored
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(stored[..., 0], image.GetSpacing(), image.GetOrigin(), direction, str(labels)), stored


# Masks --------------------------------------------------------------------------------------------


def _read_masks(folder: Path, label_map: LabelMap, volume: Volume, image: Path) -> tuple[np.ndarray, list[str]]:
    organs = organs_of_masks(folder)
    result, overlap = np.zeros(volume.array.shape, np.uint8), 0
    slices: tuple[Path, ...] | None = None
    for value, key in label_map.organs:
        mask = np.zeros(volume.array.shape, bool)
        for path in organs.get(key, [folder]):
            if path.is_file():
                mask |= _on_grid(path, volume).array > 0
                continue
            slices = slices or _slices_of(image, volume)
            mask |= _mask_of_pictures(path, slices, volume) if path == folder else _mask_of_slices(path, slices, volume)
        overlap += int(np.count_nonzero(mask & (result > 0)))
        result[mask & (result == 0)] = value
    remarks = [f"{overlap} voxels lie in the masks of two organs: the first one counts."] if overlap else []
    return result, remarks


def _slices_of(image: Path, volume: Volume) -> tuple[Path, ...]:
    """The file of each slice of the CT, in the volume's order."""
    series = [one for one in find_series(image)[0] if one.problem is None]
    if len(series) != 1:
        raise InputError(f"{image} holds {len(series)} CT series: with masks for each slice there must be one")
    files = read_series(series[0], str(image)).files
    if len(files) != volume.array.shape[0]:
        raise InputError(f"{image} has {len(files)} files for {volume.array.shape[0]} slices")
    return files


def _mask_of_slices(folder: Path, slices: Sequence[Path], volume: Volume) -> np.ndarray:
    """A mask stored as one file for each slice, called as the CT's slice is (3D-IRCADb)."""
    files = {entry.name: entry for entry in entries_of(folder) if entry.is_file()}
    missing = [file.name for file in slices if file.name not in files]
    if missing:
        raise InputError(f"its mask {folder.name}/ lacks {len(missing)} slices ({missing[0]})")
    return np.stack([_slice(files[file.name], volume) for file in slices])


def _mask_of_pictures(folder: Path, slices: Sequence[Path], volume: Volume) -> np.ndarray:
    """A mask stored as pictures, in the order of the CT's files by name (CHAOS).

    That the order is this one cannot be read anywhere: the mask has to lie on soft tissue, and better than the other
    way round.
    """
    pictures = [entry for entry in entries_of(folder) if entry.name.lower().endswith(_PICTURES)]
    if len(pictures) != len(slices):
        raise InputError(f"{folder.name}/ holds {len(pictures)} pictures for {len(slices)} slices of the CT")
    by_name = dict(zip(sorted(file.name for file in slices), pictures))
    mask = np.stack([_slice(by_name[file.name], volume) for file in slices])
    soft, turned = _soft(volume, mask), _soft(volume, mask[::-1])
    if mask.any() and (soft < _SOFT_FRACTION or turned > soft):
        raise InputError(
            f"the pictures in {folder.name}/ do not lie on soft tissue ({100 * soft:.0f} %): they are not in the order "
            "of the CT's files"
        )
    return mask


def _soft(volume: Volume, mask: np.ndarray) -> float:
    values = volume.array[mask]
    return float(np.mean((values > _SOFT_HU[0]) & (values < _SOFT_HU[1]))) if values.size else 0.0


def _slice(file: Path, volume: Volume) -> np.ndarray:
    try:
        with quiet_itk():
            image = sitk.ReadImage(str(file))
    except RuntimeError as error:
        raise InputError(f"{file} is damaged or no picture: its mask cannot be read") from error
    array = sitk.GetArrayFromImage(image)
    # the stored pixels are the mask: a rescale intercept taken over from the CT moves them
    nothing = float(image.GetMetaData(_INTERCEPT) or 0) if image.HasMetaDataKey(_INTERCEPT) else 0.0
    array = array.reshape(array.shape[-2:]) if array.ndim == 3 and array.shape[0] == 1 else array
    array = array.max(axis=-1) if array.ndim == 3 else array
    if array.shape != volume.array.shape[1:]:
        raise InputError(f"{file} has {array.shape[1]} x {array.shape[0]} pixels, the CT's slices others")
    return array > nothing
