"""The CT in a folder of DICOM files, found and put in order by the files' own geometry (SimpleITK's GDCM reads them).

Series are told apart by their identifier, orientation and size, because one exported series often holds a localizer or
a second reconstruction. Slices are sorted along their common normal (DICOM PS3.3, C.7.6.2.1.1), not by name or number.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from .errors import InputError
from .image_io import check_header, file_type, quiet_itk, volume_of_image
from .volume import Volume

_MODALITY, _IMAGE_TYPE, _SERIES, _NUMBER, _ACQUISITION = "0008|0060", "0008|0008", "0020|000e", "0020|0011", "0020|0012"
_POSITION, _ORIENTATION, _PIXEL_SPACING = "0020|0032", "0020|0037", "0028|0030"


@dataclass(frozen=True)
class _Slice:
    path: Path
    modality: str
    localizer: bool
    original: bool
    series: str
    number: str
    acquisition: str
    size: tuple[int, ...]
    position: np.ndarray | None
    orientation: np.ndarray | None
    pixel_spacing: str

    @property
    def group(self) -> tuple:
        orientation = () if self.orientation is None else tuple(np.round(self.orientation, 3).ravel())
        return self.series, orientation, self.size, self.pixel_spacing, self.localizer


def read_dicom_folder(folder: Path) -> tuple[Volume, list[str]]:
    """Read the largest CT series in a folder and its subfolders.

    Axial original series come before reformatted ones, then the one with the most voxels is taken; the warnings name it
    when there was a choice.

    Raises:
        InputError: one clear line.
    """
    slices, others = _scan(folder)
    if not slices:
        images = sorted(name for name in others if file_type(name))
        hint = f" Name the file itself, for example {images[0]}." if images else ""
        raise InputError(f"{folder} holds no DICOM images.{hint or ' Name a folder of DICOM files or an image file.'}")
    groups: dict[tuple, list[_Slice]] = defaultdict(list)
    for item in slices:
        groups[item.group].append(item)
    series = [group for group in groups.values() if _is_ct_volume(group)]
    if not series:
        kinds = Counter(item.modality or "unknown" for item in slices)
        found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise InputError(
            f"{folder} holds no CT volume (DICOM files by modality: {found}): name a folder with a CT series."
        )
    series.sort(key=_rank, reverse=True)
    chosen, warnings = series[0], []
    if len(series) > 1:
        warnings.append(
            f"The folder holds {len(series)} CT volumes: took series {chosen[0].number or '?'} with "
            f"{_slice_count(chosen)} slices, the largest axial one."
        )
    volume, remarks = _read_series(folder, chosen)
    return volume, warnings + remarks


def _scan(folder: Path) -> tuple[list[_Slice], list[str]]:
    slices, others = [], []
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with quiet_itk():
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                if name.startswith(".") or name.upper() == "DICOMDIR" or file_type(name):
                    others.append(name)
                    continue
                reader.SetFileName(str(path))
                try:
                    reader.ReadImageInformation()
                except RuntimeError:
                    others.append(name)
                else:
                    slices.append(_describe(path, reader))
    return slices, others


def _describe(path: Path, reader: sitk.ImageFileReader) -> _Slice:
    def text(tag: str) -> str:
        return reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int) -> np.ndarray | None:
        try:
            values = np.array([float(part) for part in text(tag).split("\\")])
        except ValueError:
            return None
        return values if values.size == count and np.all(np.isfinite(values)) else None

    kinds = text(_IMAGE_TYPE).upper().split("\\")
    orientation = numbers(_ORIENTATION, 6)
    return _Slice(
        path,
        text(_MODALITY).upper(),
        "LOCALIZER" in kinds,
        kinds[0] == "ORIGINAL",
        text(_SERIES),
        text(_NUMBER),
        text(_ACQUISITION),
        tuple(reader.GetSize()),
        numbers(_POSITION, 3),
        None if orientation is None else orientation.reshape(2, 3),
        text(_PIXEL_SPACING),
    )


def _slice_count(group: list[_Slice]) -> int:
    return sum(item.size[2] if len(item.size) > 2 else 1 for item in group)


def _is_ct_volume(group: list[_Slice]) -> bool:
    if group[0].modality != "CT" or group[0].localizer:
        return False
    if len(group) == 1:
        return _slice_count(group) > 1
    return _slice_count(group) == len(group) and all(
        item.position is not None and item.orientation is not None for item in group
    )


def _rank(group: list[_Slice]) -> tuple:
    axial = group[0].orientation is not None and abs(_normal(group[0].orientation)[2]) > 0.8
    return axial, group[0].original, _slice_count(group) * group[0].size[0] * group[0].size[1], group[0].series


def _normal(orientation: np.ndarray) -> np.ndarray:
    normal = np.cross(orientation[0], orientation[1])
    return normal / max(float(np.linalg.norm(normal)), 1e-9)


def _read_series(folder: Path, group: list[_Slice]) -> tuple[Volume, list[str]]:
    name = f"{folder} (series {group[0].number or '?'})"
    if len(group) == 1:
        return _read_multiframe(group[0].path), []
    orientation, warnings = group[0].orientation, []
    assert orientation is not None  # see _is_ct_volume
    normal = _normal(orientation)
    ordered, repeated = _one_per_place(sorted(group, key=lambda item: float(item.position @ normal)), normal)
    if repeated:
        warnings.append(f"{repeated} slices lie at the place of another one (a second acquisition) and were left out.")
    if len(ordered) < 2:
        raise InputError(f"{name} has no two slices at different places: a CT volume is needed.")
    places = np.array([item.position @ normal for item in ordered])
    gaps = np.diff(places)
    step = float(np.median(gaps))
    if gaps.max() > 1.5 * step:
        missing = int(np.rint(gaps / step - 1).clip(0).sum())
        raise InputError(
            f"{name} is incomplete: about {missing} slices are missing (a gap of {gaps.max():.1f} mm "
            f"where {step:.1f} mm is usual). Export the series again."
        )
    if gaps.max() - gaps.min() > 0.1 * step:
        warnings.append(
            f"Slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm): volumes are approximate."
        )
    first, last = ordered[0].position, ordered[-1].position
    assert first is not None
    assert last is not None
    path = last - first
    lean = float(np.degrees(np.arccos(np.clip(path @ normal / np.linalg.norm(path), -1, 1))))
    if lean > 0.5:
        warnings.append(f"The slices are tilted by {lean:.0f} degrees against the table (gantry tilt).")
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(item.path) for item in ordered])
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot be read: a file is damaged or of an unsupported kind. Export it again."
        ) from error
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise InputError(f"{name} is a color image: a CT has one number per voxel.")
    spacing = (*image.GetSpacing()[:2], float(np.linalg.norm(path)) / (len(ordered) - 1))
    direction = np.column_stack([*orientation, path / np.linalg.norm(path)])
    return Volume(sitk.GetArrayFromImage(image), spacing, tuple(first), direction, name), warnings


def _one_per_place(ordered: list[_Slice], normal: np.ndarray) -> tuple[list[_Slice], int]:
    """The slices of the most complete acquisition first, then others only where it has none."""
    sizes = Counter(item.acquisition for item in ordered)
    kept: dict[float, _Slice] = {}
    for item in sorted(ordered, key=lambda item: (-sizes[item.acquisition], item.acquisition)):
        kept.setdefault(round(float(item.position @ normal), 2), item)
    return [kept[place] for place in sorted(kept)], len(ordered) - len(kept)


def _read_multiframe(path: Path) -> Volume:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
            check_header(reader, path, path.stat().st_size * 1032)
            return volume_of_image(reader.Execute(), str(path))
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: it is damaged or of an unsupported kind. Export it again.") from error
