"""NIfTI files as strangers write them: two places in one header, slants, NIfTI-2, odd scales, units, byte orders."""

from __future__ import annotations

import threading
from pathlib import Path

import nibabel
import numpy as np
import pytest
from test_image_io import SHAPE, ct_array

from FlareSegmentLib.files.image_io import read_labels, read_volume

RIGHT = np.array([[-0.7, 0, 0, 30.0], [0, -0.8, 0, 40.0], [0, 0, 2.5, 50.0], [0, 0, 0, 1.0]])


def save(path: Path, sform=None, qform=None, version: type = nibabel.Nifti1Image, array=None, **header) -> Path:
    """The CT with these two forms; a form that is None has the code 0."""
    best = next((form for form in (sform, qform) if form is not None), RIGHT)  # what nibabel would write over others
    image = version(ct_array().T if array is None else array.T, best)
    image.header.set_sform(RIGHT if sform is None else sform, 0 if sform is None else 1)
    image.header.set_qform(RIGHT if qform is None else qform, 0 if qform is None else 1)
    nibabel.save(image, path)
    if header:
        content = bytearray(path.read_bytes())
        block = nibabel.Nifti1Header(bytes(content[:348]), check=False)
        for key, value in header.items():
            block[key] = value
        content[:348] = block.binaryblock
        path.write_bytes(content)
    return path


def moved(mm: float, axis: int = 0) -> np.ndarray:
    matrix = RIGHT.copy()
    matrix[axis, 3] += mm
    return matrix


@pytest.mark.parametrize("mm", [0.0, 0.1, 1.0, 50.0])
def test_two_places_are_told_with_their_distance(tmp_path: Path, mm: float) -> None:
    volume, warnings = read_volume(save(tmp_path / "ct.nii", sform=moved(mm, 1), qform=RIGHT))
    np.testing.assert_allclose(volume.affine_ras, moved(mm, 1), atol=1e-5)
    if mm < 0.35:
        assert warnings == []
    else:
        (line,) = warnings
        assert f"disagree by up to {mm:.1f} mm" in line and "mirrored" not in line and "ct.nii" in line


@pytest.mark.parametrize("mirrored", ["sform", "qform"])
def test_the_sform_counts_and_sides_are_in_doubt(tmp_path: Path, mirrored: str) -> None:
    other = np.diag([-1.0, 1, 1, 1]) @ RIGHT
    forms = {"sform": RIGHT, "qform": RIGHT} | {mirrored: other}
    volume, (line,) = read_volume(save(tmp_path / "ct.nii.gz", **forms))
    np.testing.assert_allclose(volume.affine_ras, forms["sform"], atol=1e-5)
    np.testing.assert_allclose(volume.affine_ras, nibabel.load(tmp_path / "ct.nii.gz").affine, atol=1e-5)
    assert "left and right may be swapped" in line


def test_a_slant_by_rounding_is_straightened_without_a_word(tmp_path: Path) -> None:
    slanted = RIGHT.copy()
    slanted[1, 2] += 1e-4 * slanted[2, 2]
    volume, warnings = read_volume(save(tmp_path / "ct.nii.gz", sform=slanted))
    assert warnings == [] and not volume.is_sheared
    np.testing.assert_allclose(volume.affine_ras, slanted, atol=1e-2)
    assert np.abs(volume.direction.T @ volume.direction - np.eye(3)).max() < 1e-7


def test_a_tilted_gantry_is_kept_and_said(tmp_path: Path) -> None:
    slanted = RIGHT.copy()
    slanted[1, 2] += 0.2126 * slanted[2, 2]
    volume, (line,) = read_volume(save(tmp_path / "ct.nii.gz", sform=slanted))
    assert "slanted by 12.0 degrees" in line and volume.is_sheared
    np.testing.assert_allclose(volume.affine_ras, slanted, atol=1e-5)
    np.testing.assert_array_equal(volume.array, ct_array())


@pytest.mark.parametrize("extension", ["nii", "nii.gz"])
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, np.int32, np.float32, np.float64, ">i2", ">f4"])
def test_nifti_2(tmp_path: Path, extension: str, dtype) -> None:
    array = ct_array(dtype) if np.dtype(dtype).kind != "u" else (ct_array() + 1024).astype(dtype)
    path = save(tmp_path / f"ct.{extension}", RIGHT, version=nibabel.Nifti2Image, array=array)
    volume, warnings = read_volume(path)
    np.testing.assert_allclose(volume.array, array, rtol=1e-6)
    assert warnings == [] and volume.array.dtype.isnative and volume.array.dtype.itemsize <= 4


def test_a_big_endian_file(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    image = nibabel.Nifti1Image(ct_array().astype(">i2").T, RIGHT, header)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "ct.nii.gz")[0].array, ct_array())


@pytest.mark.parametrize(
    ("slope", "intercept", "expected"),
    [
        (0.0, -1024.0, lambda a: a),
        (np.nan, 5.0, lambda a: a),
        (1.0, -24.0, lambda a: a - 24),
        (2.0, 1.0, lambda a: 2 * a + 1),
    ],
)  # fmt: skip
def test_a_slope_of_0_scales_nothing(tmp_path: Path, slope: float, intercept: float, expected) -> None:
    path = save(tmp_path / "ct.nii", RIGHT, scl_slope=slope, scl_inter=intercept)
    np.testing.assert_allclose(read_volume(path)[0].array, expected(ct_array().astype(float)))


@pytest.mark.parametrize(("unit", "scale"), [(1, 1000.0), (2, 1.0), (3, 0.001), (0, 1.0), (5, 1.0)])
def test_units_of_length(tmp_path: Path, unit: int, scale: float) -> None:
    path = save(tmp_path / "ct.nii", RIGHT, xyzt_units=unit)
    np.testing.assert_allclose(read_volume(path)[0].spacing, np.array([0.7, 0.8, 2.5]) * scale, rtol=1e-5)


def test_voxels_that_are_not_finite_are_kept_for_the_check(tmp_path: Path) -> None:
    array = ct_array(np.float32)
    array[0, 0, :2] = np.nan, np.inf
    found = read_volume(save(tmp_path / "ct.nii.gz", RIGHT, array=array))[0].array
    np.testing.assert_array_equal(found, array)


def test_labels_of_a_nifti_2_file(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    path = save(tmp_path / "labels.nii.gz", RIGHT, version=nibabel.Nifti2Image, array=labels)
    np.testing.assert_array_equal(read_labels(path).array, labels)


def test_threads_import_nibabel_one_after_another(tmp_path):
    """Its modules import each other: a thread that begins while another one imports them would see a half of them."""
    from FlareSegmentLib.files import nifti

    file = tmp_path / "ct.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.eye(4)), file)
    found = []
    thread = threading.Thread(target=lambda: found.append(nifti.read_nifti(file)[0].array.shape))
    with nifti._IMPORTING:
        thread.start()
        thread.join(0.3)
        assert not found
    thread.join(30)
    assert found == [(6, 5, 4)]
