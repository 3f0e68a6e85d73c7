"""CT volumes out as DICOM series.

Written series are of the CT Image IOD (DICOM PS3.3, A.3): one file per slice, Hounsfield units by rescale intercept and
slope, nothing about a patient but the name that the caller gives. Their image type is DERIVED and PRIMARY: what a NIfTI
file holds may have been resampled or cropped, and nobody can tell. Needs pydicom, which is imported late.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_segmentation import save_dataset
from FlareSegmentLib.volume import Volume

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
_TWELVE_BITS = (-1024, 3071)


@dataclass(frozen=True)
class Identity:
    """Whose series it is, and which of his.

    Attributes:
        patient: name and identifier of the patient, letters, digits, - _ and . only.
        number: of the series in the patient's only study.
        description: of the series.
    """

    patient: str
    number: int = 1
    description: str = "CT"

    def uid(self, what: str) -> str:
        """A UID that is the same for the same patient and purpose."""
        return _uid(self.patient, what)


def safe_name(name: str) -> str:
    """A name for files, folders and patients: other characters than letters, digits, - _ . become _; at most 64."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".")[:64] or "unnamed"


def require_pydicom():
    """The package pydicom. Raises InputError with the way to install it."""
    try:
        import pydicom
        import pydicom.uid
    except ImportError as error:
        raise InputError("Reading and writing DICOM needs the package pydicom: pip install pydicom.") from error
    return pydicom


def write_series(folder: Path, volume: Volume, identity: Identity, study: str | None = None) -> list[Path]:
    """Write a CT as a DICOM series in a new folder that appears whole or not at all.

    Voxels come back identical if they are whole numbers from -32768 to 32767; others are rounded. Slices come back
    sorted along their normal: a volume with a left-handed direction is then the same one with its z axis turned.

    Args:
        volume: HU, its z axis across the slices.
        study: what makes the study (and frame of reference) of this patient another one; by default he has one.

    Returns:
        The files, in the order of the volume's slices.

    Raises:
        InputError: pydicom is missing, the folder is there already or cannot be written, or DICOM cannot hold the
            volume.
    """
    pydicom = require_pydicom()
    if folder.exists():
        raise InputError(f"{folder} is there already: choose another output folder.")
    stored, intercept, signed = _stored_values(volume)
    rows_and_columns = volume.direction[:, 0] @ volume.direction[:, 1]
    if abs(rows_and_columns) > 1e-4:
        raise InputError(f"{volume.label}: its rows and columns are not at right angles, which DICOM cannot hold.")
    content = hashlib.sha256(np.ascontiguousarray(stored)).hexdigest()
    series_uid = _uid(identity.patient, content, repr(volume.affine_lps.tolist()), str(identity.number))
    template = _template(pydicom, volume, identity, study or "study", series_uid, intercept, signed)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    except OSError as error:
        raise InputError(f"{folder.parent} cannot be written ({error.strerror}): choose another folder.") from error
    names = []
    try:
        whole = private / "series"
        whole.mkdir()
        for index, pixels in enumerate(stored):
            position = volume.affine_lps @ [0, 0, index, 1]
            template.SOPInstanceUID = f"{series_uid[:58]}.{index + 1}"
            template.file_meta.MediaStorageSOPInstanceUID = template.SOPInstanceUID
            template.InstanceNumber = index + 1
            template.ImagePositionPatient = _decimals(pydicom, position[:3])
            template.PixelData = np.ascontiguousarray(pixels).tobytes()
            names.append(f"slice{index + 1:04d}.dcm")
            save_dataset(template, whole / names[-1])
        os.replace(whole, folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror or 'the disk may be full'}): choose another folder."
        ) from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return [folder / name for name in names]


def _normal(volume: Volume) -> np.ndarray:
    normal = np.cross(volume.direction[:, 0], volume.direction[:, 1])
    return normal / np.linalg.norm(normal)


def _stored_values(volume: Volume) -> tuple[np.ndarray, int, bool]:
    """Pixels as they are stored (z, rows, columns), the rescale intercept, and whether they are signed."""
    array = volume.array
    if array.dtype.kind == "f":
        if not np.all(np.isfinite(array)):
            raise InputError(f"{volume.label} cannot be written as DICOM: it holds NaN or infinite values.")
        array = np.rint(array)
    lowest, highest = int(array.min()), int(array.max())
    if lowest >= _TWELVE_BITS[0] and highest <= _TWELVE_BITS[1]:
        return (array.astype(np.int16) - _TWELVE_BITS[0]).astype("<u2"), _TWELVE_BITS[0], False
    if lowest < -32768 or highest > 32767:
        raise InputError(
            f"{volume.label} cannot be written as DICOM: its values, {lowest} to {highest}, do not fit 16 bits."
        )
    return array.astype("<i2"), 0, True


def _template(pydicom, volume: Volume, identity: Identity, study: str, series: str, intercept: int, signed: bool):
    """All that the slices of a series have in common."""
    dataset = pydicom.Dataset()
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_IMAGE_STORAGE
    meta.TransferSyntaxUID = pydicom.uid.UID(_EXPLICIT_LITTLE_ENDIAN)
    dataset.file_meta = meta
    across = abs(_normal(volume)[2]) > 0.8
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "PRIMARY", "AXIAL" if across else "REFORMATTED"]
    dataset.SOPClassUID = CT_IMAGE_STORAGE
    for keyword in (
        "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "PatientSex",
        "PatientPosition", "PositionReferenceIndicator", "Laterality",
    ):  # fmt: skip
        setattr(dataset, keyword, "")  # must be there; nobody knows
    dataset.KVP = dataset.AcquisitionNumber = None
    dataset.Modality = "CT"
    dataset.Manufacturer = "FlareSegment"
    dataset.SeriesDescription = identity.description[:64]
    dataset.PatientName = f"{identity.patient}^"
    dataset.PatientID = identity.patient
    dataset.SliceThickness = _decimals(pydicom, volume.spacing[2:])[0]
    dataset.StudyInstanceUID = identity.uid(study)
    dataset.SeriesInstanceUID = series
    dataset.StudyID = "1"
    dataset.SeriesNumber = identity.number
    dataset.ImageOrientationPatient = _decimals(pydicom, volume.direction[:, :2].T.ravel())
    dataset.FrameOfReferenceUID = identity.uid(f"{study} frame of reference")
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = volume.array.shape[1:]
    dataset.PixelSpacing = _decimals(pydicom, volume.spacing[1::-1])
    dataset.BitsAllocated = 16
    dataset.BitsStored = 16 if signed else 12
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(signed)
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = intercept, 1, "HU"
    return dataset


def _decimals(pydicom, values) -> list[str]:
    """Decimal strings, at most 16 characters, as near to the values as that allows."""
    return [pydicom.valuerep.format_number_as_ds(float(value)) for value in values]


def _uid(*parts: str) -> str:
    """A UID made of a UUID, below 2.25 (DICOM PS3.5, B.2), from a hash of the parts."""
    digest = bytearray(hashlib.sha256("\n".join(parts).encode()).digest()[:16])
    digest[6], digest[8] = digest[6] & 0x0F | 0x80, digest[8] & 0x3F | 0x80
    return f"2.25.{int.from_bytes(digest, 'big')}"
