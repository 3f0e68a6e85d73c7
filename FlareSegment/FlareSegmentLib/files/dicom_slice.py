"""The header of one DICOM file, as far as sorting needs it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

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
    "instance_uid": "0008|0018",
    "acquisition_date": "0008|0022",
    "acquisition_time": "0008|0032",
    "content_time": "0008|0033",
    "instance_number": "0020|0013",
    "pixel_spacing": "0028|0030",
}
_STORED_AS = ("0028|0101", "0028|0103", "0028|1052", "0028|1053")  # bits, sign, rescale intercept and slope
_POSITION, _ORIENTATION = "0020|0032", "0020|0037"
_ORIENTATION_TOLERANCE = 2e-3  # of direction cosines: some writers give three digits
_SPACING_TOLERANCE = 1e-3  # of the spacing
_PHASE_TAGS = ("0008|0022", "0008|0032", "0008|002a", "0008|0023", "0008|0033", "0018|1060", "0020|0100", "0020|9128")
_KIND_TAGS = ("0008|0008", "0018|0010", "0018|0060", "0018|1210", "0018|1160", "0018|0022", "0020|4000", "0008|103e")


@dataclass(frozen=True)
class DicomSlice:
    """One file's header, as far as sorting needs it.

    Attributes:
        size: columns, rows and, with several frames, frames.
        position: (3,) center of the first pixel, LPS, mm; None where the file does not say.
        orientation: (2, 3) directions along a row and down a column; None where the file does not say.
        stored_as: bits, sign and rescale of the pixels.
        phase: what else may tell one phase or time point from another; kind: or one reconstruction.
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
    instance_uid: str
    acquisition_date: str
    acquisition_time: str
    content_time: str
    instance_number: str
    pixel_spacing: str
    size: tuple[int, ...]
    components: int
    position: np.ndarray | None
    orientation: np.ndarray | None
    stored_as: tuple[str, ...]
    phase: tuple[str, ...]
    kind: tuple[str, ...]

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
    def series(self) -> tuple:
        """What all files of one series of images have in common, compared as text."""
        return self.series_uid, self.size, self.localizer

    def on_planes_of(self, other: DicomSlice) -> bool:
        """Whether orientation and pixel spacing are those of the other one, as far as rounding goes."""
        if self.orientation is None or other.orientation is None:
            same = self.orientation is other.orientation
        else:
            same = bool(np.abs(self.orientation - other.orientation).max() <= _ORIENTATION_TOLERANCE)
        own, others = self.pixel_sizes, other.pixel_sizes
        if min(*own, *others) <= 0:
            return same and self.pixel_spacing == other.pixel_spacing
        return same and all(abs(a - b) <= _SPACING_TOLERANCE * b for a, b in zip(own, others))


def describe_slice(path: Path, reader: sitk.ImageFileReader) -> DicomSlice:
    """What the reader, which has read the file's header, knows of it."""

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
        phase=tuple(text(tag) for tag in _PHASE_TAGS),
        kind=tuple(text(tag) for tag in _KIND_TAGS),
        **texts,
    )


def unit_normal(orientation: np.ndarray) -> np.ndarray:
    """The direction across slices of this (2, 3) orientation."""
    normal = np.cross(orientation[0], orientation[1])
    return normal / max(float(np.linalg.norm(normal)), 1e-9)
