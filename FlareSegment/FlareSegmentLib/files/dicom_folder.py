"""The CTs in a folder of DICOM files, found and put in order by the files' own geometry (SimpleITK's GDCM reads them).

Series are told apart by their identifier, size, orientation and pixel spacing, compared as numbers, because one
exported series often holds a localizer or a second reconstruction. Slices are sorted along their common normal (DICOM
PS3.3, C.7.6.2.1.1), not by name or number; of several acquisitions at the same places one is taken whole
(``dicom_acquisitions.py``), and slices that lie on no straight grid are brought onto one (``straight_series.py``).
`read_dicom_folder` is what a person means by "the CT in this folder"; `find_series` and `read_series` give every series
to those who sort whole exports.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_acquisitions import one_acquisition
from FlareSegmentLib.files.dicom_slice import DicomSlice, describe_slice, unit_normal
from FlareSegmentLib.files.file_headers import MAXIMUM_VOXELS, file_type
from FlareSegmentLib.files.itk_reading import can_be_opened, check_header, quiet_itk
from FlareSegmentLib.files.straight_series import SeriesVolume, straight
from FlareSegmentLib.volume import Volume

_COMPRESSION_LIMIT = 1032  # no slice is stored smaller than its pixels divided by this
_OFF_GRID = 0.1  # of the distance of slices, or of a pixel: what lies farther off its place is resampled
_PREAMBLE = b"DICM"
_SUFFIXES = (".dcm", ".dicom", ".ima")

Group = TypeVar("Group")


@dataclass(frozen=True)
class DicomSeries:
    """Slices of one series, orientation and size, in the order of their file names.

    Attributes:
        damaged: files beside them that are called as they are, or said to be DICOM, but cannot be read.
    """

    slices: tuple[DicomSlice, ...]
    damaged: tuple[Path, ...] = ()

    @property
    def first(self) -> DicomSlice:
        """The header that speaks for all."""
        return self.slices[0]

    @property
    def slice_count(self) -> int:
        """Number of slices, those at one place counted each."""
        return sum(item.size[2] if len(item.size) > 2 else 1 for item in self.slices)

    @property
    def axial(self) -> bool:
        """Whether the slices lie across the body, up to the tilt of a gantry. True where only the frames would say."""
        return self.first.orientation is None or abs(unit_normal(self.first.orientation)[2]) > 0.8

    @property
    def problem(self) -> str | None:
        """Why this is no CT volume, in half a line; None where it can be read."""
        if self.first.modality != "CT":
            return f"its modality is {self.first.modality or 'not given'}, not CT"
        if self.first.localizer:
            return "it is a localizer (scout image)"
        if self.first.components > 1:
            return "it is a color image, such as a secondary capture"
        if self.first.photometric == "MONOCHROME1":
            return "its gray values are inverted (MONOCHROME1), not Hounsfield units"
        if self.first.bits not in ("8", "16"):  # GDCM mixes up the bytes of wider ones; CT has 16 (PS3.3, C.8.2.1)
            return f"its pixels have {self.first.bits or 'an unknown number of'} bits; a CT has 16"
        if self.slice_count < 2:
            return "it has one slice only"
        if len(self.slices) == 1:
            return None
        if self.slice_count > len(self.slices):
            return "several files with several frames each belong to it"
        if any(item.position is None or item.orientation is None for item in self.slices):
            return "its files do not say where the slices lie (no image position and orientation)"
        if not all(size > 0 for size in self.first.pixel_sizes):
            return f"its pixel spacing ({self.first.pixel_spacing or 'not given'}) is not positive"
        return None


def read_dicom_folder(folder: Path) -> tuple[Volume, list[str]]:
    """Read the largest CT series in a folder and its subfolders.

    Axial original series come before reformatted ones, then the one with the most voxels is taken; the warnings name it
    when there was a choice.

    Raises:
        InputError: one clear line.
    """
    found, others = find_series(folder)
    if not found and (unknown := [path for path in others if has_preamble(path)]):
        raise InputError(
            f"{folder} holds {len(unknown)} DICOM files, but no DICOM images that can be read"
            f"{_sop_class(unknown[0])}: they are damaged or of another kind. Export the CT as CT images."
        )
    if not found:
        images = sorted(path.name for path in others if file_type(path))
        hint = f" Name the file itself, for example {images[0]}." if images else ""
        raise InputError(f"{folder} holds no DICOM images.{hint or ' Name a folder of DICOM files or an image file.'}")
    series = sorted((one for one in found if one.problem is None), key=_rank, reverse=True)
    if not series:
        raise InputError(_no_volume(folder, found))
    remarks = []
    if len(series) > 1:
        remarks.append(
            f"The folder holds {len(series)} CT volumes: took series {series[0].first.number or '?'} with "
            f"{series[0].slice_count} slices, the largest axial one."
        )
    name = f"{folder} (series {series[0].first.number or '?'})"
    volume, said = read_straight_series(series[0], name)
    return volume, remarks + said


def read_straight_series(series: DicomSeries, name: str) -> tuple[Volume, list[str]]:
    """Read a series whose `problem` is None, on a straight grid: slices that lie off it are resampled.

    name: what messages call it.

    Returns:
        The volume and warnings for the user.

    Raises:
        InputError: as `read_series`.
    """
    result = read_series(series, name)
    if result.farthest_mm <= _OFF_GRID * min(result.volume.spacing):
        return result.volume, result.warnings
    volume, _, done = straight(result)
    more = [f"{done[0].upper()}{done[1:]}; values were interpolated."] if done else []
    return volume, [*result.warnings, *more]


def find_series(folder: Path) -> tuple[list[DicomSeries], list[Path]]:
    """Look into all files of a folder and its subfolders.

    Returns:
        The series of images of any modality, in the order of their first files, and the files that hold no DICOM image.
    """
    groups: SeriesGroups[list[DicomSlice]] = SeriesGroups()
    others = []
    for path, item in described_files(files_below(folder)):
        if item is None:
            others.append(path)
        elif (group := groups.of(item)) is not None:
            group.append(item)
        else:
            groups.add(item, [item])
    found = [tuple(group) for group in groups]
    return [DicomSeries(slices, damaged_beside([item.path for item in slices], others)) for slices in found], others


class SeriesGroups(Generic[Group]):
    """Which series a slice belongs to, of those that have come so far; what is kept of each is the caller's choice.

    Of each series only the first slice is held, so that exports of any size can be sorted.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple, list[tuple[DicomSlice, Group]]] = defaultdict(list)

    def of(self, item: DicomSlice) -> Group | None:
        """What is kept of the slice's series; None where it is the first one of it."""
        return next((group for first, group in self._groups[item.series] if item.on_planes_of(first)), None)

    def add(self, first: DicomSlice, group: Group) -> None:
        """Begin a series with its first slice."""
        self._groups[first.series].append((first, group))

    def __iter__(self) -> Iterator[Group]:
        return (group for own in self._groups.values() for _, group in own)


def files_below(
    folder: Path, without: Path | None = None, unreadable: Callable[[OSError], object] | None = None
) -> Iterator[Path]:
    """The files of a folder, in the order of their names, then those of its subfolders.

    Args:
        without: a folder that is passed over, its whole path.
        unreadable: told of each folder that cannot be read.
    """
    for parent, folders, names in os.walk(folder, onerror=unreadable):
        folders.sort()
        if without is not None and without.name in folders and Path(parent, without.name).resolve() == without:
            folders.remove(without.name)
        for name in sorted(names):
            yield Path(parent, name)


def described_files(paths: Iterable[Path]) -> Iterator[tuple[Path, DicomSlice | None]]:
    """Files with their DICOM headers, one after the other; None where a file holds no DICOM image that can be read."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    for path in paths:
        name = path.name
        skipped = name.startswith(".") or name.upper() == "DICOMDIR" or file_type(name)
        if skipped or not path.is_file() or not can_be_opened(path):  # a pipe would be waited for
            yield path, None
            continue
        reader.SetFileName(str(path))
        try:
            with quiet_itk():
                reader.ReadImageInformation()
        except RuntimeError:
            yield path, None
        else:
            yield path, describe_slice(path, reader)


def read_slices(folder: Path, files: Sequence[Path], damaged: Sequence[Path] = ()) -> tuple[Volume, list[str]]:
    """Read the series that these files in a folder hold, as `read_dicom_folder` reads the series of a folder.

    damaged: see `DicomSeries`.

    Raises:
        InputError: one clear line; also where the files hold several series, or none.
    """
    slices = []
    for path, item in described_files(files):
        if item is None:
            raise InputError(f"{path} is no DICOM image any more: it changed, is damaged or gone. Export it again.")
        slices.append(item)
    if len({item.series for item in slices}) != 1 or not all(item.on_planes_of(slices[0]) for item in slices):
        raise InputError(f"{folder}: the files of one series are needed, and there are several: name a list of each.")
    series = DicomSeries(tuple(slices), tuple(damaged))
    name = f"{folder} (series {series.first.number or '?'})"
    if series.problem is not None:
        raise InputError(f"{name}: {series.problem}. Export the CT again.")
    return read_straight_series(series, name)


def read_series(series: DicomSeries, name: str) -> SeriesVolume:
    """Read a series whose `problem` is None.

    name: what messages call it.

    Raises:
        InputError: one clear line: slices are missing, files are damaged, or there is too much of it.
    """
    if len(series.slices) == 1:
        return _read_multiframe(series.first.path, name)
    orientation, remarks = series.first.orientation, []
    assert orientation is not None  # see DicomSeries.problem
    normal = unit_normal(orientation)
    ordered, said = one_acquisition(name, series.slices, normal)
    remarks += said
    if len(ordered) < 2:
        raise InputError(f"{name} has no two slices at different places: a CT volume is needed.")
    positions = np.array([item.position for item in ordered])
    spacing_z, direction, more = _stack(name, positions, orientation)
    if series.damaged:
        missing = len(series.damaged)
        remarks.append(
            f"Files beside the series that are damaged or incomplete: {missing}, such as {series.damaged[0].name}. If "
            f"they belong to it, slices are missing: {missing}, {missing * spacing_z:.0f} mm of the scan."
        )
    _check_sizes(name, ordered)
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(item.path) for item in ordered])
    if len({item.stored_as for item in ordered}) > 1:  # the first slice's type may not hold the others' values
        reader.SetOutputPixelType(sitk.sitkFloat32)
    image = _execute(reader, name)
    array = sitk.GetArrayFromImage(image)
    volume = Volume(array, (*image.GetSpacing()[:2], spacing_z), tuple(positions[0]), direction, name)
    return SeriesVolume(volume, positions, tuple(item.path for item in ordered), remarks + more)


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keeps the warnings of pydicom and highdicom about odd values from stderr: what matters is said in our words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _rank(series: DicomSeries) -> tuple:
    first = series.first
    axial = first.orientation is not None and series.axial
    return axial, first.image_type[0] == "ORIGINAL", series.slice_count * math.prod(first.size[:2]), first.series_uid


def _no_volume(folder: Path, found: Sequence[DicomSeries]) -> str:
    """The reason of the largest series is that of the folder."""
    kinds = Counter(item.modality or "unknown" for one in found for item in one.slices)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
    largest = max(found, key=lambda one: (one.first.modality == "CT", one.slice_count))
    reason = f"its largest series cannot be used: {largest.problem}"
    if largest.slice_count == 1 and len(found) > 1:
        reason = f"each of its {len(found)} series has one slice only"
    return (
        f"{folder} holds no CT volume (DICOM files by modality: {counts}): {reason}. Name a folder with a CT series, "
        "or export it again."
    )


def has_preamble(path: Path) -> bool:
    """Whether a file begins as DICOM files do."""
    try:
        with open(path, "rb") as file:
            return path.is_file() and file.read(132)[128:] == _PREAMBLE
    except OSError:
        return False


def _sop_class(path: Path) -> str:
    """The kind of a DICOM file, for a message; empty where it is not known."""
    with suppress(Exception):  # pydicom raises nearly anything at damaged files
        import pydicom

        with quiet_pydicom():
            uid = pydicom.dcmread(path, stop_before_pixels=True).SOPClassUID
        return f" (their SOP class is {uid.name})"
    return ""


def damaged_beside(own: Sequence[Path], others: Iterable[Path]) -> tuple[Path, ...]:
    """Unreadable files in the folders of a series that are called like its own, or look like DICOM images.

    Args:
        own: the files of the series.
        others: files that hold no DICOM image that can be read.
    """
    shapes = {(path.parent, _shape(path)) for path in own}
    endings = {(path.parent, path.suffix.lower()) for path in own if path.suffix.lower() in _SUFFIXES}
    folders = {path.parent for path in own}
    return tuple(
        path
        for path in others
        if path.parent in folders
        and not path.name.startswith(".")
        and can_be_opened(path)
        and path.is_file()
        and (
            (path.parent, _shape(path)) in shapes or (path.parent, path.suffix.lower()) in endings or has_preamble(path)
        )
        and not is_no_image(path)
    )


def _shape(path: Path) -> str:
    """A file's name with every number in it as one sign, so that those of a numbered series are alike."""
    return re.sub(r"\d+", "#", path.name) if re.search(r"\d", path.name) else path.name


def is_no_image(path: Path) -> bool:
    """Whether a file is whole DICOM of another kind: a report, a structure set. An image's class without the size of an
    image is what is left of a damaged one.
    """
    with suppress(Exception):
        import pydicom

        with quiet_pydicom():
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
        return "Image Storage" not in dataset.SOPClassUID.name and "Rows" not in dataset and dataset.Modality != "CT"
    return False


def _stack(name: str, positions: np.ndarray, orientation: np.ndarray) -> tuple[float, np.ndarray, list[str]]:
    """Spacing along z, 3x3 direction and warnings of slices sorted along their normal. Raises InputError."""
    normal = unit_normal(orientation)
    heights = positions @ normal
    gaps = np.diff(heights)
    step = float(np.median(gaps))
    if gaps.max() > 1.5 * step:
        missing = int(np.rint(gaps / step - 1).clip(0).sum())
        raise InputError(
            f"{name} is incomplete: about {missing} slices are missing (a gap of {gaps.max():.1f} mm "
            f"where {step:.1f} mm is usual). Export the series again."
        )
    count = len(positions)
    remarks = []
    even = heights[0] + np.arange(count) * (heights[-1] - heights[0]) / (count - 1)
    if gaps.max() - gaps.min() > 0.1 * step:
        remarks.append(
            f"Slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm), up to "
            f"{np.abs(heights - even).max():.1f} mm off even places."
        )
    path = positions[-1] - positions[0]
    beside = np.linalg.norm(positions - positions[0] - np.outer((heights - heights[0]) / (path @ normal), path), axis=1)
    if beside.max() > max(0.2, 0.02 * step):
        path = normal * (path @ normal)
        in_plane = (positions - positions[0]) @ orientation.T
        most = Counter(map(tuple, np.round(in_plane, 1))).most_common(1)[0][0]
        distances = np.linalg.norm(in_plane - most, axis=1)
        remarks.append(
            f"{np.count_nonzero(distances > 0.2)} of {count} slices lie up to {distances.max():.1f} mm beside the "
            "others, in their planes: the table or the field of view was moved."
        )
        return float(np.linalg.norm(path)) / (count - 1), np.column_stack([*orientation, normal]), remarks
    length = float(np.linalg.norm(path))
    lean = float(np.degrees(np.arccos(np.clip(path @ normal / length, -1, 1))))
    if lean > 0.5:
        remarks.append(f"The slices are tilted by {lean:.0f} degrees against the table (gantry tilt).")
    return length / (count - 1), np.column_stack([*orientation, path / length]), remarks


def _check_sizes(name: str, slices: Sequence[DicomSlice]) -> None:
    """Refuse, before memory is taken, what no file of this length can hold. Raises InputError."""
    pixels = math.prod(slices[0].size[:2])
    if pixels * len(slices) > MAXIMUM_VOXELS:
        raise InputError(f"{name} has more voxels than can be used ({MAXIMUM_VOXELS:,}): leave slices out.")
    for item in slices:
        if item.path.stat().st_size * _COMPRESSION_LIMIT < pixels:
            raise InputError(f"{name} cannot be read: {item.path.name} is too small for its pixels. Export it again.")


def _execute(reader: sitk.ImageFileReader | sitk.ImageSeriesReader, name: str) -> sitk.Image:
    try:
        with quiet_itk():
            return reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{name} cannot be read: a file is damaged or of an unsupported kind. Export it again."
        ) from error


def _read_multiframe(path: Path, name: str) -> SeriesVolume:
    """An enhanced CT: one file, whose frames each say where they lie (DICOM PS3.3, A.38). Raises InputError."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise InputError(f"{path} cannot be read: it is damaged or of an unsupported kind. Export it again.") from error
    check_header(reader, path, path.stat().st_size * _COMPRESSION_LIMIT)
    positions, orientation, pixel_spacing = _frames(path, name)
    normal = unit_normal(orientation)
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    if np.diff(positions @ normal).min() < 0.01:
        raise InputError(f"{name} holds several frames at one place (several volumes in one file): export one volume.")
    spacing_z, direction, remarks = _stack(name, positions, orientation)
    array = sitk.GetArrayFromImage(_execute(reader, name))
    if len(array) != len(positions):
        raise InputError(f"{name} is damaged: it has {len(array)} frames and describes {len(positions)}.")
    volume = Volume(array[order], (*pixel_spacing[::-1], spacing_z), tuple(positions[0]), direction, name)
    return SeriesVolume(volume, positions, (path,), remarks)


def _frames(path: Path, name: str) -> tuple[np.ndarray, np.ndarray, tuple[float, float]]:
    """(n, 3) positions, (2, 3) orientation and (row, column) spacing of a file's frames. Raises InputError."""
    try:
        import pydicom
    except ImportError as error:
        raise InputError(f"{name} has several frames, for which the package pydicom is needed: install it.") from error
    try:
        with quiet_pydicom():
            header = pydicom.dcmread(path, stop_before_pixels=True)
            shared = header.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()]
            frames = [frame_facts(frame, shared[0]) for frame in header.PerFrameFunctionalGroupsSequence]
    except Exception as error:  # pydicom raises nearly anything at damaged files
        raise InputError(
            f"{name} does not say where its frames lie (no plane position, orientation and pixel spacing): export it "
            "as a CT series."
        ) from error
    positions, orientation, spacing, rescale = (np.array(values) for values in zip(*frames))
    if max(np.ptp(values, axis=0).max() for values in (orientation, spacing, rescale)) > 1e-4:
        raise InputError(f"{name} has frames of different orientation, spacing or rescale: export one volume only.")
    return positions, orientation[0], tuple(spacing[0])


def frame_facts(frame, shared) -> tuple[list[float], np.ndarray, list[float], list[float]]:
    """Position, (2, 3) orientation, (row, column) spacing and (slope, intercept) in a pydicom functional group item.

    shared: the item of all frames, which holds what the frame's own does not (DICOM PS3.3, C.7.6.16).

    Raises:
        AttributeError, KeyError, TypeError, ValueError: something is missing or no number.
    """

    def item(keyword: str):
        return (frame.get(keyword) or shared.get(keyword))[0]

    measures = item("PixelMeasuresSequence")
    orientation = np.array(item("PlaneOrientationSequence").ImageOrientationPatient, float).reshape(2, 3)
    position = [float(value) for value in item("PlanePositionSequence").ImagePositionPatient]
    rescale = [1.0, 0.0]
    if "PixelValueTransformationSequence" in frame or "PixelValueTransformationSequence" in shared:
        values = item("PixelValueTransformationSequence")
        rescale = [float(values.RescaleSlope), float(values.RescaleIntercept)]
    return position, orientation, [float(value) for value in measures.PixelSpacing], rescale
