"""Single cases between label maps and DICOM: a CT with labels as a patient, labels as a DICOM Segmentation of a CT that
is there, and labels of a DICOM file back.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import find_series
from FlareSegmentLib.files.dicom_segmentation import read_dicom_segmentation, write_dicom_segmentation
from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.organs import FLARE22_ORGANS, Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.dicom.dicom_export import organs_of_segments
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, require_pydicom, safe_name, write_series
from FlareSegmentTrainingLib.dicom.structure_sets import read_structure_set


def write_patient(output: Path, name: str, volume: Volume, labels: np.ndarray | None) -> Path:
    """Write a case as a patient with one study: `<case>/ct/slice0001.dcm ...` and, with labels, `<case>/organs.dcm`.

    Args:
        labels: (z, y, x) uint8 in FlareSegment's values, or None.

    Returns:
        The patient's folder, which appears whole or not at all.

    Raises:
        InputError: the folder is there already or cannot be written, a package is missing, or DICOM cannot hold the CT.
    """
    patient = safe_name(name)
    folder = output / patient
    if folder.exists():
        raise InputError(f"{folder} is there already: choose another output folder.")
    try:
        output.mkdir(parents=True, exist_ok=True)
        private = Path(tempfile.mkdtemp(dir=output, prefix=".writing-"))
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror}): choose another folder.") from error
    try:
        whole = private / "patient"
        files = write_series(whole / "ct", volume, Identity(patient))
        if labels is not None:
            write_dicom_segmentation(
                whole / "organs.dcm", volume.with_array(labels), files, organs=FLARE22_ORGANS, algorithm=None
            )
        os.replace(whole, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from error
    finally:
        shutil.rmtree(private, ignore_errors=True)
    return folder


def write_segmentation_of(folder: Path, labels: Volume, path: Path, organs: Sequence[Organ], manual: bool) -> None:
    """Write labels as a DICOM Segmentation of the series in a folder on whose slices they lie.

    Raises:
        InputError: there is no such series, a package is missing, or the file cannot be written.
    """
    series = [one for one in find_series(folder)[0] if one.problem is None]
    if not series:
        raise InputError(f"{folder} holds no CT series: name the folder with the CT's DICOM files.")
    refusals = []
    for one in sorted(series, key=lambda one: one.slice_count != len(labels.array)):
        try:
            files = [item.path for item in one.slices]
            algorithm = None if manual else ("FlareSegment", "1")
            write_dicom_segmentation(path, labels, files, organs=organs, algorithm=algorithm)
            return
        except InputError as error:
            refusals.append(error)
    raise refusals[0]


def read_labels_of(path: Path, ct: Path | None) -> tuple[Volume, list[str]]:
    """Labels of a DICOM Segmentation or structure set in FlareSegment's values, and remarks.

    ct: the CT they were drawn on, an image file or a DICOM folder.

    Raises:
        InputError: the file is neither, does not fit the CT, or holds none of the organs.
    """
    pydicom = require_pydicom()
    try:
        kind = pydicom.dcmread(path, stop_before_pixels=True).get("Modality")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # pydicom raises nearly anything at what is not DICOM
        raise InputError(f"{path} is no DICOM file, or it is damaged: export it again.") from error
    volume = None if ct is None else read_volume(ct)[0]
    if kind == "RTSTRUCT":
        if volume is None:
            raise InputError(f"{path} is a structure set, which has no grid: name its CT with --ct.")
        structures = read_structure_set(path, volume)
        labels, remarks = volume.with_array(structures.labels), list(structures.remarks)
    else:
        segmentation = read_dicom_segmentation(path, volume)
        labels = segmentation.organ_labels(organs_of_segments(segmentation.segments))
        remarks = segmentation.warnings
    if not labels.array.any():
        raise InputError(f"{path} holds none of the organs{'; ' + '; '.join(remarks) if remarks else ''}.")
    return labels, remarks
