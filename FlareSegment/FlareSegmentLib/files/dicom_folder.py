"""The CTs in a folder of DICOM files, found and put in order by the files' own geometry (SimpleITK's GDCM reads them).

Series are told apart by their identifier, orientation and size, because one exported series often holds a localizer or
a second reconstruction. Slices are sorted along their common normal (DICOM PS3.3, C.7.6.2.1.1), not by name or number.
`read_dicom_folder` is what a person means by "the CT in this folder"; `find_series` and `read_series` give every series
to those who sort whole exports.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import MAXIMUM_VOXELS, can_be_opened, check_header, file_type, quiet_itk
from FlareSegmentLib.volume import Volume

_TAGS = {
    "image_type": "0008|0008",
    "modality": "0008|0060",
    "patient_name": "0010|0010",
    "patient_id": "0010|0020",
    "study_uid": "0020|000d",
    "series_uid": "0020|000e",
    "number": "0020|0011",
    "acquisition": "0020|0012",
    "photometric": "0028|0004",
    "bits": "0028|0100",
    "pixel_spacing": "0028|0030",
}
_STORED_AS = ("0028|0101", "0028|0103", "0028|1052", "0028|1053")  # bits, sign, rescale intercept and slope
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_COMPRESSION_LIMIT = 1032  # no slice is stored smaller than its pixels divided by this


@dataclass(frozen=True)
class DicomSlice:
    """One file's header, as far as sorting needs it.

    Attributes:
        size: columns, rows and, with several frames, frames.
        position: (3,) center of the first pixel, LPS, mm; None where the file does not say.
        orientation: (2, 3) directions along a row and down a column; None where the file does not say.
        stored_as: bits, sign and rescale of the pixels.
    """

    path: Path
    image_type: tuple[str, ...]
    modality: str
    patient_name: str
    patient_id: str
    study_uid: str
    series_uid: str
    number: str
    acquisition: str
    photometric: str
    bits: str
    pixel_spacing: str
    size: tuple[int, ...]
    components: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    stored_as: tuple[str, ...]

    @property
    def localizer(self) -> bool:
        """Whether this is a scout image."""
        return "LOCALIZER" in self.image_type

    @property
    def pixel_sizes(self) -> tuple[float, float]:
        """Distances of the pixels' rows and columns, mm; 0 where they cannot be read."""
        try:
            rows, columns = (float(part) for part in self.pixel_spacing.split("\\"))
        except ValueError:
            return 0.0, 0.0
        return rows, columns

    @property
    def group(self) -> tuple:
        """What the slices of one series have in common."""
        orientation = () if self.orientation is None else tuple(np.round(self.orientation, 3).ravel())
        return self.series_uid, orientation, self.size, self.pixel_spacing, self.localizer


@dataclass(frozen=True)
class DicomSeries:
    """Slices of one series, orientation and size, in the order of their file names."""

    slices: tuple[DicomSlice, ...]

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
        return self.first.orientation is None or abs(_normal(self.first.orientation)[2]) > 0.8

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


@dataclass(frozen=True)
class SeriesVolume:
    """A series that was read.

    Attributes:
        volume: the CT in HU. Slices at uneven distances are given the mean one; those of a tilted gantry lie on a
            sheared grid.
        positions: (z, 3) where the first pixel of every slice of the volume really lies, LPS, mm.
        files: the file of every slice; one file for all slices where it has several frames.
        warnings: for the user.
    """

    volume: Volume
    positions: np.ndarray
    files: tuple[Path, ...]
    warnings: list[str]


def read_dicom_folder(folder: Path) -> tuple[Volume, list[str]]:
    """Read the largest CT series in a folder and its subfolders.

    Axial original series come before reformatted ones, then the one with the most voxels is taken; the warnings name it
    when there was a choice.

    Raises:
        InputError: one clear line.
    """
    found, others = find_series(folder)
    if not found:
        images = sorted(path.name for path in others if file_type(path))
        hint = f" Name the file itself, for example {images[0]}." if images else ""
        raise InputError(f"{folder} holds no DICOM images.{hint or ' Name a folder of DICOM files or an image file.'}")
    series = sorted((one for one in found if one.problem is None), key=_rank, reverse=True)
    if not series:
        kinds = Counter(item.modality or "unknown" for one in found for item in one.slices)
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        raise InputError(
            f"{folder} holds no CT volume (DICOM files by modality: {counts}): name a folder with a CT series."
        )
    remarks = []
    if len(series) > 1:
        remarks.append(
            f"The folder holds {len(series)} CT volumes: took series {series[0].first.number or '?'} with "
            f"{series[0].slice_count} slices, the largest axial one."
        )
    result = read_series(series[0], f"{folder} (series {series[0].first.number or '?'})")
    return result.volume, remarks + result.warnings


def find_series(folder: Path) -> tuple[list[DicomSeries], list[Path]]:
    """Look into all files of a folder and its subfolders.

    Returns:
        The series of images of any modality, in the order of their first files, and the files that hold no DICOM image.
    """
    groups: dict[tuple, list[DicomSlice]] = defaultdict(list)
    others = []
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with quiet_itk():
        for parent, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(parent, name)
                skipped = name.startswith(".") or name.upper() == "DICOMDIR" or file_type(name)
                if skipped or not path.is_file() or not can_be_opened(path):  # a pipe would be waited for
                    others.append(path)
                    continue
                reader.SetFileName(str(path))
                try:
                    reader.ReadImageInformation()
                except RuntimeError:
                    others.append(path)
                else:
                    item = _describe(path, reader)
                    groups[item.group].append(item)
    return [DicomSeries(tuple(group)) for group in groups.values()], others


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
    normal = _normal(orientation)
    ordered, repeated = _one_per_place(series.slices, normal)
    if repeated:
        remarks.append(f"{repeated} slices lie at the place of another one (a second acquisition) and were left out.")
    if len(ordered) < 2:
        raise InputError(f"{name} has no two slices at different places: a CT volume is needed.")
    positions = np.array([item.position for item in ordered])
    spacing_z, direction, more = _stack(name, positions, orientation)
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


def _describe(path: Path, reader: sitk.ImageFileReader) -> DicomSlice:
    def text(tag: str) -> str:
        value = reader.GetMetaData(tag).strip(" \0") if reader.HasMetaDataKey(tag) else ""
        return "".join(letter for letter in value if letter.isprintable())

    def numbers(tag: str, count: int) -> np.ndarray | None:
        try:
            values = np.array([float(part) for part in text(tag).split("\\")])
        except ValueError:
            return None
        return values if values.size == count and np.all(np.isfinite(values)) else None

    texts = {field: text(tag) for field, tag in _TAGS.items()}
    texts["modality"], texts["number"] = texts["modality"].upper()[:16], texts["number"][:12]
    orientation = numbers(_ORIENTATION, 6)
    if orientation is not None:
        orientation = orientation.reshape(2, 3)
        if np.linalg.norm(np.cross(*orientation)) < 0.9:  # no two unit vectors at a right angle
            orientation = None
    return DicomSlice(
        path=path,
        image_type=tuple(part.strip() for part in texts.pop("image_type").upper().split("\\")),
        size=tuple(reader.GetSize()),
        components=reader.GetNumberOfComponents(),
        position=numbers(_POSITION, 3),
        orientation=orientation,
        stored_as=tuple(text(tag) for tag in _STORED_AS),
        **texts,
    )


def _rank(series: DicomSeries) -> tuple:
    first = series.first
    axial = first.orientation is not None and series.axial
    return axial, first.image_type[0] == "ORIGINAL", series.slice_count * math.prod(first.size[:2]), first.series_uid


def _normal(orientation: np.ndarray) -> np.ndarray:
    normal = np.cross(orientation[0], orientation[1])
    return normal / max(float(np.linalg.norm(normal)), 1e-9)


def _stack(name: str, positions: np.ndarray, orientation: np.ndarray) -> tuple[float, np.ndarray, list[str]]:
    """Spacing along z, 3x3 direction and warnings of slices sorted along their normal. Raises InputError."""
    normal = _normal(orientation)
    gaps = np.diff(positions @ normal)
    step = float(np.median(gaps))
    remarks = []
    if gaps.max() > 1.5 * step:
        missing = int(np.rint(gaps / step - 1).clip(0).sum())
        raise InputError(
            f"{name} is incomplete: about {missing} slices are missing (a gap of {gaps.max():.1f} mm "
            f"where {step:.1f} mm is usual). Export the series again."
        )
    if gaps.max() - gaps.min() > 0.1 * step:
        remarks.append(
            f"Slices are unevenly spaced ({gaps.min():.2f} to {gaps.max():.2f} mm): volumes are approximate."
        )
    path = positions[-1] - positions[0]
    length = float(np.linalg.norm(path))
    lean = float(np.degrees(np.arccos(np.clip(path @ normal / length, -1, 1))))
    if lean > 0.5:
        remarks.append(f"The slices are tilted by {lean:.0f} degrees against the table (gantry tilt).")
    return length / (len(positions) - 1), np.column_stack([*orientation, path / length]), remarks


def _one_per_place(slices: Sequence[DicomSlice], normal: np.ndarray) -> tuple[list[DicomSlice], int]:
    """The slices of the most complete acquisition first, then others only where it has none; sorted by place."""
    sizes = Counter(item.acquisition for item in slices)
    kept: dict[float, DicomSlice] = {}
    for item in sorted(slices, key=lambda item: (-sizes[item.acquisition], item.acquisition)):
        assert item.position is not None  # see DicomSeries.problem
        kept.setdefault(round(float(item.position @ normal), 2), item)
    return [kept[place] for place in sorted(kept)], len(slices) - len(kept)


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
    normal = _normal(orientation)
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
