"""NRRD and MetaImage files that do not say how the patient lies, or measure in other units than mm."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_image_io import ct_array

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_volume

VOXELS = ct_array().astype("<i2").tobytes()
SIZES = " ".join(str(size) for size in ct_array().shape[::-1])


def nrrd(folder: Path, *lines: str) -> Path:
    path = folder / "ct.nrrd"
    header = ["NRRD0005", "type: short", "dimension: 3", f"sizes: {SIZES}", "endian: little", "encoding: raw", *lines]
    path.write_bytes("\n".join([*header, "", ""]).encode() + VOXELS)
    return path


def meta(folder: Path, *lines: str) -> Path:
    path = folder / "ct.mha"
    header = ["ObjectType = Image", "NDims = 3", "BinaryData = True", "BinaryDataByteOrderMSB = False", *lines]
    header += [f"DimSize = {SIZES}", "ElementType = MET_SHORT", "ElementDataFile = LOCAL"]
    path.write_bytes("\n".join([*header, ""]).encode() + VOXELS)
    return path


DIRECTIONS = "space directions: (0.7,0,0) (0,0.8,0) (0,0,2.5)"


def test_a_file_without_orientation_is_said_to_be_so(tmp_path: Path) -> None:
    for path in (
        nrrd(tmp_path, "spacings: 0.7 0.8 2.5"),
        nrrd(tmp_path, "space dimension: 3", DIRECTIONS),
        nrrd(tmp_path, "space: scanner-xyz", DIRECTIONS),
        meta(tmp_path, "ElementSpacing = 0.7 0.8 2.5"),
    ):
        volume, (line,) = read_volume(path)
        assert "left and right may be swapped" in line and path.name in line
        np.testing.assert_array_equal(volume.array, ct_array())


@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "RAS", "LPS"])
def test_a_file_with_orientation_is_not(tmp_path: Path, space: str) -> None:
    assert read_volume(nrrd(tmp_path, f"space: {space}", DIRECTIONS))[1] == []
    spacing = "ElementSpacing = 0.7 0.8 2.5"
    assert read_volume(meta(tmp_path, spacing, "TransformMatrix = 1 0 0 0 1 0 0 0 1"))[1] == []


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1.0), ("cm", 10.0), ("m", 1000.0), ("um", 0.001)])
def test_lengths_are_brought_to_mm(tmp_path: Path, unit: str, scale: float) -> None:
    lps = "space: left-posterior-superior"
    for path in (
        nrrd(tmp_path, lps, DIRECTIONS, f'space units: "{unit}" "{unit}" "{unit}"', "space origin: (1,2,3)"),
        meta(tmp_path, "ElementSpacing = 0.7 0.8 2.5", "Offset = 1 2 3", f"DistanceUnits = {unit}"),
    ):
        volume = read_volume(path)[0]
        np.testing.assert_allclose(volume.spacing, np.array([0.7, 0.8, 2.5]) * scale)
        np.testing.assert_allclose(volume.origin, np.array([1, 2, 3]) * scale)
    plain = nrrd(tmp_path, "spacings: 0.7 0.8 2.5", f'units: "{unit}" "{unit}" "{unit}"')
    np.testing.assert_allclose(read_volume(plain)[0].spacing, np.array([0.7, 0.8, 2.5]) * scale)


def test_units_of_no_length_are_refused(tmp_path: Path) -> None:
    for units in ('"parsec" "parsec" "parsec"', '"mm" "cm" "mm"'):
        with pytest.raises(InputError, match="not in mm"):
            read_volume(nrrd(tmp_path, "space: left-posterior-superior", DIRECTIONS, f"space units: {units}"))
