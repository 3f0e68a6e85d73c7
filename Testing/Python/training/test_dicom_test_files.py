"""Every DICOM file that pydicom's wheel brings ends in the right volume or in one clear line: compressed transfer
syntaxes, big endian, missing tags, deflated, color, multi-frame and what is not an image at all.
"""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import find_series, read_series
from FlareSegmentLib.files.image_io import read_volume

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")
FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".py")
MULTIPLE = 3


def one_clear_line(error: InputError) -> bool:
    text = str(error)
    return "\n" not in text and 20 < len(text) < 600 and "Traceback" not in text


def outcome(folder: Path) -> tuple[str, object]:
    try:
        volume, _ = read_volume(folder)
    except InputError as error:
        return ("refused" if one_clear_line(error) else "told badly"), str(error)
    return "read", volume


def test_every_file_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    counts: Counter[str] = Counter()
    for number, path in enumerate(FILES):
        folder = tmp_path / str(number)
        folder.mkdir()
        shutil.copy(path, folder / (path.name + ".dcm" if path.suffix == ".gz" else path.name))
        kind, result = outcome(folder)
        counts[kind] += 1
        assert kind == "refused", f"{path.name}: no file of pydicom's is a CT volume by itself, but {result} was read"
    with capsys.disabled():
        print(f"\n{len(FILES)} files of pydicom, each alone: {dict(counts)}")
    assert len(FILES) > 100 and sum(counts.values()) == len(FILES)


def test_all_files_in_one_folder(capsys: pytest.CaptureFixture) -> None:
    found, others = find_series(FOLDER)
    results = Counter()
    for series in found:
        if series.problem is not None:
            results["no CT volume"] += 1
            continue
        try:
            volume = read_series(series, "The series").volume
        except InputError as error:
            results["one clear line" if one_clear_line(error) else "told badly"] += 1
        else:
            first = min(series.slices, key=lambda item: item.position[2]).path
            header = pydicom.dcmread(first)
            expected = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
            np.testing.assert_allclose(volume.array[0], expected)
            results["right volume"] += 1
    with capsys.disabled():
        print(f"\npydicom's folder as one export: {len(found)} series, {dict(results)}, {len(others)} other files")
    assert results["right volume"] + results["one clear line"] >= 1 and not results["told badly"]


def series_of(path: Path, folder: Path) -> np.ndarray | None:
    """Write three slices whose pixels are the file's, as they are stored; returns the values they must have as far as
    pydicom can decode them. None where the file holds no single-frame picture in shades of gray.
    """
    try:
        dataset = pydicom.dcmread(path, force=True)
        rows, frames = int(dataset.Rows), int(dataset.get("NumberOfFrames") or 1)
    except Exception:  # noqa: BLE001  damaged on purpose
        return None
    gray = str(dataset.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    if "PixelData" not in dataset or not gray or frames > 1 or rows < 2 or dataset.get("Modality") == "SEG":
        return None
    if "TransferSyntaxUID" not in dataset.file_meta:
        return None
    try:
        expected = dataset.pixel_array * float(dataset.get("RescaleSlope") or 1)
        expected = expected + float(dataset.get("RescaleIntercept") or 0)
    except Exception:  # noqa: BLE001  no decoder, or damaged pixels
        expected = np.empty((0, 0))
    folder.mkdir()
    for index in range(MULTIPLE):
        piece = copy.deepcopy(dataset)
        piece.Modality = "CT"
        piece.SOPClassUID = piece.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        piece.SOPInstanceUID = piece.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{index + 1}"
        piece.SeriesInstanceUID = "1.2.3"
        piece.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        piece.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        piece.ImagePositionPatient = [0, 0, 2.5 * index]
        piece.PixelSpacing = [0.7, 0.8]
        piece.save_as(folder / f"{index}.dcm")
    return expected


def test_every_picture_as_a_series(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    counts: Counter[str] = Counter()
    syntaxes: Counter[str] = Counter()
    for number, path in enumerate(FILES):
        folder = tmp_path / str(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                expected = series_of(path, folder)
            except Exception:  # noqa: BLE001  pydicom cannot write some of its damaged files
                shutil.rmtree(folder, ignore_errors=True)
                expected = None
        if expected is None:
            counts["not one gray picture"] += 1
            continue
        kind, result = outcome(folder)
        if kind != "read":
            assert kind == "refused", result
            counts["one clear line"] += 1
            continue
        if expected.size:
            lossy = pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID in (
                "1.2.840.10008.1.2.4.50",
                "1.2.840.10008.1.2.4.51",
            )
            for plane in result.array:
                np.testing.assert_allclose(plane, expected, atol=2 if lossy else 1e-3, err_msg=path.name)
            np.testing.assert_allclose(result.spacing, (0.8, 0.7, 2.5), atol=1e-6)
            counts["right volume, as pydicom decodes it"] += 1
        else:
            counts["volume that pydicom cannot decode to compare"] += 1
        syntaxes[pydicom.dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID.name] += 1
    with capsys.disabled():
        print(f"\n{len(FILES)} files of pydicom, each as a series: {dict(counts)}; syntaxes read: {dict(syntaxes)}")
    assert counts["right volume, as pydicom decodes it"] >= 30 and len(syntaxes) >= 6
    assert sum(counts.values()) == len(FILES)
    assert os.listdir(tmp_path)
