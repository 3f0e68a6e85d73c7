"""Small DICOM files that tests make: a CT with labels, the same as series, structure sets and enhanced CT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from test_volume import rotation

from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series

SPACING = (0.8, 0.7, 2.5)
ORIGIN = (-30.25, -41.5, 1057.123)


def ct_and_labels(slices: int = 20, seed: int = 0, direction: np.ndarray | None = None) -> tuple[Volume, np.ndarray]:
    """A body with four organs, each of a shape of its own, right and left where the patient has them."""
    array = np.random.default_rng(seed).normal(40, 12, (slices, 32, 40)).astype(np.int16)
    array[:, :4] = -1000
    array[:, 4:7] -= 140
    labels = np.zeros(array.shape, np.uint8)
    labels[3:-2, 10:20, 5:14] = 1
    labels[5:9, 21:27, 8:13] = 2
    labels[4:10, 21:27, 26:31] = 3
    labels[6:-4, 11:18, 29:36] = 4
    labels[8, 14, 9] = 0
    return Volume(array, SPACING, ORIGIN, np.eye(3) if direction is None else direction, "ct"), labels


OBLIQUE = rotation(9, (1, 2, 0))


def patient(
    folder: Path, name: str, number: int = 1, seed: int = 0, slices: int = 20
) -> tuple[Volume, np.ndarray, list[Path]]:
    """A series written to a folder: volume, labels, files."""
    volume, labels = ct_and_labels(slices, seed)
    return volume, labels, write_series(folder, volume, Identity(name, number))


def change(files: list[Path], **values: object) -> None:
    """Set attributes in files; a value may be a function of the data set, None deletes."""
    for file in files:
        dataset = pydicom.dcmread(file)
        for keyword, value in values.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value(dataset) if callable(value) else value)
        dataset.save_as(file, enforce_file_format=True)


def structure_set(
    path: Path, series_file: Path, structures: dict[str, list[np.ndarray]], kind: str = "CLOSED_PLANAR"
) -> None:
    """An RTSTRUCT: name of a structure -> its contours, (n, 3) LPS."""
    source = pydicom.dcmread(series_file, stop_before_pixels=True)
    dataset = pydicom.Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Modality = "RTSTRUCT"
    dataset.PatientID, dataset.PatientName = source.PatientID, source.PatientName
    dataset.SeriesInstanceUID, dataset.StudyInstanceUID = pydicom.uid.generate_uid(), source.StudyInstanceUID
    series, study, frame = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = source.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    dataset.ReferencedFrameOfReferenceSequence = [frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(structures.items(), start=1):
        roi, item = pydicom.Dataset(), pydicom.Dataset()
        roi.ROINumber, roi.ROIName = number, name
        item.ReferencedROINumber = number
        item.ContourSequence = []
        for points in contours:
            contour = pydicom.Dataset()
            contour.ContourGeometricType = kind
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.6f}" for value in np.asarray(points).ravel()]
            item.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(item)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def outline(volume: Volume, mask: np.ndarray) -> list[np.ndarray]:
    """Contours of a mask made of one rectangle per slice, along the borders of its voxels."""
    contours = []
    for k in np.flatnonzero(mask.any(axis=(1, 2))):
        rows, columns = np.nonzero(mask[k])
        x0, x1, y0, y1 = columns.min() - 0.5, columns.max() + 0.5, rows.min() - 0.5, rows.max() + 0.5
        corners = np.array([[x0, y0, k, 1], [x1, y0, k, 1], [x1, y1, k, 1], [x0, y1, k, 1]])
        contours.append((corners @ volume.affine_lps.T)[:, :3])
    return contours


def enhanced(path: Path, files: list[Path], order: list[int]) -> None:
    """One enhanced CT file of a series' slices, its frames in the given order."""
    first = pydicom.dcmread(files[0])
    slices = [pydicom.dcmread(files[index]) for index in order]
    first.SOPClassUID = first.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    first.NumberOfFrames = len(order)
    first.PixelData = b"".join(item.PixelData for item in slices)
    shared, measures, transformation, plane = (pydicom.Dataset() for _ in range(4))
    measures.PixelSpacing, measures.SliceThickness = first.PixelSpacing, first.SliceThickness
    transformation.RescaleIntercept, transformation.RescaleSlope = first.RescaleIntercept, first.RescaleSlope
    transformation.RescaleType = "HU"
    plane.ImageOrientationPatient = first.ImageOrientationPatient
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    shared.PixelValueTransformationSequence = [transformation]
    first.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for item in slices:
        frame, position = pydicom.Dataset(), pydicom.Dataset()
        position.ImagePositionPatient = item.ImagePositionPatient
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    first.PerFrameFunctionalGroupsSequence = frames
    for keyword in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleIntercept", "RescaleSlope",
    ):  # fmt: skip
        delattr(first, keyword)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save_as(path, enforce_file_format=True)
