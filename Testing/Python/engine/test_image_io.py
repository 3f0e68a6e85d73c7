"""Files in, label maps out: types, damage, geometry, and what is refused as no CT."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_volume import SIGNED_PERMUTATIONS, rotation

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import check_is_ct, read_labels, read_volume, write_labels
from FlareSegmentLib.volume import Volume

SHAPE = (9, 20, 24)


def ct_array(dtype=np.int16, seed: int = 0) -> np.ndarray:
    """Air, fat and soft tissue with noise."""
    array = np.random.default_rng(seed).normal(-1000, 10, SHAPE)
    array[:, 4:16, 4:20] = np.random.default_rng(seed + 1).normal(-100, 20, (9, 12, 16))
    array[2:7, 6:14, 6:18] = np.random.default_rng(seed + 2).normal(50, 20, (5, 8, 12))
    return array.astype(dtype)


def image_of(array: np.ndarray, direction: np.ndarray | None = None) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-30.0, -40.0, 50.0))
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image


@pytest.mark.parametrize("extension", ["nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd"])
@pytest.mark.parametrize(
    "direction", [np.eye(3), rotation(7, (1, 2, 3)) @ SIGNED_PERMUTATIONS[20]], ids=["axial", "oblique"]
)
def test_every_type_is_read_as_written(tmp_path: Path, extension: str, direction: np.ndarray) -> None:
    path = tmp_path / f"a CT ö.{extension}"
    sitk.WriteImage(image_of(ct_array(), direction), str(path))
    volume, warnings = read_volume(path)
    np.testing.assert_array_equal(volume.array, ct_array())
    np.testing.assert_allclose(volume.spacing, (0.7, 0.8, 2.5), atol=1e-5)
    np.testing.assert_allclose(volume.origin, (-30, -40, 50), atol=1e-4)
    np.testing.assert_allclose(volume.direction, direction, atol=1e-5)
    assert warnings == [] and check_is_ct(volume) == []


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.float32, np.float64])
def test_number_types(tmp_path: Path, dtype) -> None:
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(image_of(ct_array(dtype)), str(path))
    volume = read_volume(path)[0]
    np.testing.assert_allclose(volume.array, ct_array(dtype), rtol=1e-6)
    assert volume.array.itemsize <= 4


def test_a_fourth_dimension_of_one_is_no_series(tmp_path: Path) -> None:
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(sitk.JoinSeries([image_of(ct_array())]), str(path))
    np.testing.assert_array_equal(read_volume(path)[0].array, ct_array())


def patch(path: Path, offset: int, value: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[offset : offset + len(value)] = value
    path.write_bytes(content)


def plain_nifti(folder: Path) -> Path:
    path = folder / "ct.nii"
    sitk.WriteImage(image_of(ct_array()), str(path))
    return path


def make_bad_file(kind: str, folder: Path) -> Path:
    path = folder / "ct.nii.gz"
    if kind == "text":
        path.write_text("not an image")
    elif kind == "gzipped text":
        path.write_bytes(gzip.compress(b"not an image" * 100))
    elif kind == "nothing in it":
        path.touch()
    elif kind == "two-dimensional":
        sitk.WriteImage(image_of(ct_array())[:, :, 3], str(path))
    elif kind == "one slice":
        sitk.WriteImage(image_of(ct_array()[:1]), str(path))
    elif kind == "four-dimensional":
        sitk.WriteImage(sitk.JoinSeries([image_of(ct_array())] * 3), str(path))
    elif kind == "color":
        sitk.WriteImage(sitk.Compose([image_of(ct_array(np.uint8))] * 3), str(path))
    elif kind == "complex":
        sitk.WriteImage(image_of(ct_array().astype(np.complex64)), str(path))
    elif kind == "no pixel size":
        path = plain_nifti(folder)
        patch(path, 80, np.float32(0).tobytes())
    elif kind == "negative pixel size":
        path = plain_nifti(folder)
        patch(path, 84, np.float32(-1).tobytes())
    elif kind == "huge":
        path = plain_nifti(folder)
        patch(path, 42, np.array([30000, 30000, 3000], np.int16).tobytes())
    elif kind == "larger than the file":
        path = plain_nifti(folder)
        patch(path, 42, np.array([512, 512, 300], np.int16).tobytes())
    elif kind == "wrong extension":
        path = folder / "ct.nrrd"
        plain_nifti(folder).rename(path)
    elif kind == "unknown extension":
        path = folder / "ct.jpg"
        path.touch()
    elif kind == "empty folder":
        path = folder / "empty"
        path.mkdir()
    elif kind == "folder without DICOM":
        (folder / "notes.txt").write_text("hello")
        plain_nifti(folder)
        path = folder
    elif kind == "missing":
        path = folder / "nowhere.nii.gz"
    return path


BAD_FILES = {
    "text": "NIfTI",
    "gzipped text": "NIfTI",
    "nothing in it": "empty file",
    "two-dimensional": "two-dimensional",
    "one slice": "two-dimensional",
    "four-dimensional": "several volumes",
    "color": "color or vector",
    "complex": "complex",
    "no pixel size": "voxel size",
    "negative pixel size": "not positive",
    "huge": "more than can be segmented",
    "larger than the file": "too small",
    "wrong extension": "NRRD",
    "unknown extension": "readable type",
    "empty folder": "no DICOM images",
    "folder without DICOM": "ct.nii",
    "missing": "does not exist",
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files_are_refused_in_one_clear_line(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = make_bad_file(kind, tmp_path)
    with pytest.raises(InputError, match=BAD_FILES[kind]) as error:
        read_volume(path)
    assert path.name in str(error.value) and "\n" not in str(error.value)
    assert "WARNING" not in capfd.readouterr().err


@pytest.mark.parametrize("extension", ["nii", "nii.gz", "nrrd", "mha", "mhd"])
@pytest.mark.parametrize("share", [0.2, 0.6, 0.98])
def test_files_that_end_early_are_refused(tmp_path: Path, extension: str, share: float) -> None:
    path = tmp_path / f"ct.{extension}"
    sitk.WriteImage(image_of(ct_array()), str(path), extension != "mhd")
    data = path if extension != "mhd" else path.with_suffix(".raw")
    content = data.read_bytes()
    data.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match="damaged|incomplete"):
        read_volume(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_flipped_bit_in_a_compressed_file_is_found(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(image_of(ct_array()), str(path))
    content = bytearray(path.read_bytes())
    place = int(np.random.default_rng(seed).integers(400, len(content) - 8))
    content[place] ^= 1 << (seed % 8)
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_volume(path)


def test_compressed_files_in_several_parts_are_read(tmp_path: Path) -> None:
    content = plain_nifti(tmp_path).read_bytes()
    path = tmp_path / "parts.nii.gz"
    path.write_bytes(gzip.compress(content[:3000]) + gzip.compress(content[3000:]))
    np.testing.assert_array_equal(read_volume(path)[0].array, ct_array())
    path.write_bytes(gzip.compress(content[:3000]) + gzip.compress(content[3000:])[:-200])
    with pytest.raises(InputError, match="damaged"):
        read_volume(path)


def test_scaled_files_are_read(tmp_path: Path) -> None:
    path = plain_nifti(tmp_path)
    patch(path, 112, np.array([2.0, -24.0], np.float32).tobytes())
    packed = tmp_path / "scaled.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        np.testing.assert_allclose(read_volume(file)[0].array, ct_array() * 2.0 - 24.0)


def test_a_file_without_orientation_is_read_with_a_warning(tmp_path: Path) -> None:
    path = plain_nifti(tmp_path)
    patch(path, 252, bytes(4))
    warnings = read_volume(path)[1]
    assert len(warnings) == 1 and "left and right" in warnings[0]


@pytest.mark.parametrize("extension", ["nii.gz", "nii", "nrrd", "mha"])
@pytest.mark.parametrize("index", range(0, 48, 5))
def test_labels_round_trip(tmp_path: Path, extension: str, index: int) -> None:
    direction = rotation(index, (3, 1, 2)) @ SIGNED_PERMUTATIONS[index]
    like = Volume(ct_array(), (0.71, 0.82, 2.53), (-131.3, 77.7, -1234.5), direction)
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    path = tmp_path / f"labels.{extension}"
    write_labels(path, labels, like)
    again = read_labels(path, like)
    np.testing.assert_array_equal(again.array, labels)
    np.testing.assert_allclose(read_labels(path).affine_ras, like.affine_ras, atol=1e-4)
    assert os.listdir(tmp_path) == [path.name]


def test_labels_of_a_tilted_gantry_need_a_format_that_holds_them(tmp_path: Path) -> None:
    direction = np.eye(3)
    direction[:, 2] = (0.0, np.sin(0.25), np.cos(0.25))
    tilted = Volume(np.zeros((3, 4, 5), np.int16), (1.0, 1.0, 3.0), (1.0, 2.0, 3.0), direction)
    labels = np.random.default_rng(0).integers(0, 5, (3, 4, 5)).astype(np.uint8)
    with pytest.raises(InputError, match="tilted gantry"):
        write_labels(tmp_path / "labels.nii.gz", labels, tilted)
    assert not list(tmp_path.iterdir())
    for name in ("labels.nrrd", "labels.mha"):
        write_labels(tmp_path / name, labels, tilted)
        back = read_labels(tmp_path / name, like=tilted)
        np.testing.assert_array_equal(back.array, labels)
        np.testing.assert_allclose(back.direction, direction, atol=1e-6)


def test_labels_in_another_axis_order_are_reordered(tmp_path: Path) -> None:
    like = Volume(ct_array(), (0.7, 0.8, 2.5), (1, 2, 3), rotation(5, (1, 1, 0)) @ np.diag([-1, -1, 1]))
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    image = image_of(labels)
    image.SetSpacing(like.spacing)
    image.SetOrigin(like.origin)
    image.SetDirection(like.direction.ravel().tolist())
    sitk.WriteImage(sitk.Flip(sitk.PermuteAxes(image, [2, 0, 1]), [True, False, True]), str(tmp_path / "labels.nii.gz"))
    np.testing.assert_array_equal(read_labels(tmp_path / "labels.nii.gz", like).array, labels)


def test_labels_of_another_scan_or_kind_are_refused(tmp_path: Path) -> None:
    like = Volume(ct_array(), (0.7, 0.8, 2.5))
    path = tmp_path / "labels.nii.gz"
    write_labels(path, np.ones(SHAPE, np.uint8), Volume(ct_array(), (0.7, 0.8, 2.0)))
    with pytest.raises(InputError, match="does not lie on the grid"):
        read_labels(path, like)
    for array in (ct_array(), np.full(SHAPE, 0.5, np.float32), np.full(SHAPE, 300, np.int16)):
        sitk.WriteImage(image_of(array), str(path))
        with pytest.raises(InputError, match="not a label map"):
            read_labels(path)
    with pytest.raises(InputError, match="is a folder"):
        read_labels(tmp_path)


def test_labels_that_cannot_be_written_leave_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    like, path = Volume(ct_array()), tmp_path / "labels.nii.gz"
    path.write_bytes(b"old")

    def fail(image: sitk.Image, name: str, *rest: object) -> None:
        Path(name).write_bytes(b"half a file")
        raise RuntimeError("disk full")

    monkeypatch.setattr("FlareSegmentLib.files.image_io.sitk.WriteImage", fail)
    with pytest.raises(InputError, match="cannot be written"):
        write_labels(path, np.zeros(SHAPE, np.uint8), like)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == [path.name]
    monkeypatch.setattr(
        "FlareSegmentLib.files.image_io.sitk.WriteImage", lambda i, name, *r: Path(name).write_bytes(bytes(30))
    )
    with pytest.raises(InputError, match="incomplete"):
        write_labels(path, np.zeros(SHAPE, np.uint8), like)
    assert path.read_bytes() == b"old"
    for bad in (tmp_path / "missing" / "labels.nii.gz", tmp_path / "labels.jpg", tmp_path / "labels.mhd"):
        with pytest.raises(InputError):
            write_labels(bad, np.zeros(SHAPE, np.uint8), like)
    with pytest.raises(ValueError, match="shape"):
        write_labels(path, np.zeros((2, 2, 2), np.uint8), like)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_labels_that_a_full_disk_cut_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """The writer of compressed files may not notice, and the last bytes of what it left are anything."""
    volume = Volume(ct_array(), (1.0,) * 3)
    labels = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    write = sitk.WriteImage

    def cut(image: sitk.Image, name: str, *rest: object) -> None:
        write(image, name, *rest)
        os.truncate(name, int(share * os.path.getsize(name)))

    monkeypatch.setattr("FlareSegmentLib.files.image_io.sitk.WriteImage", cut)
    with pytest.raises(InputError, match="incomplete|disk"):
        write_labels(tmp_path / "labels.nii.gz", labels, volume)
    assert not list(tmp_path.iterdir())


def test_cts_pass_with_any_padding() -> None:
    for padding in (-1024, -2000, -3024):
        for dtype in (np.int16, np.float32, np.int32):
            array = ct_array(dtype)
            array[:, :3] = padding
            assert check_is_ct(Volume(array)) == []
    tissue = np.random.default_rng(0).normal(30, 60, SHAPE)  # a crop inside the body: no air, little fat
    assert check_is_ct(Volume(tissue)) == []


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("mr", "does not look like a CT"),
        ("labels", "does not look like a CT"),
        ("pet", "does not look like a CT"),
        ("shifted", "rescale intercept"),
        ("unit", "does not look like a CT"),
        ("constant", "empty"),
        ("nan", "NaN"),
        ("inf", "infinite"),
        ("bool", "not plain numbers"),
        ("complex", "not plain numbers"),
    ],
)
def test_what_is_no_ct_is_refused(kind: str, message: str) -> None:
    rng, array = np.random.default_rng(0), ct_array(np.float32)
    arrays = {
        "mr": rng.gamma(2, 150, SHAPE).astype(np.int16),
        "labels": rng.integers(0, 5, SHAPE).astype(np.uint8),
        "pet": rng.gamma(1, 2, SHAPE),
        "shifted": (ct_array() + 1024).clip(0).astype(np.uint16),
        "unit": array / 1024,
        "constant": np.full(SHAPE, -1000, np.int16),
        "bool": array > 0,
        "complex": array.astype(np.complex64),
    }
    if kind in ("nan", "inf"):
        array[3, 4, 5] = {"nan": np.nan, "inf": -np.inf}[kind]
    with pytest.raises(InputError, match=message) as error:
        check_is_ct(Volume(arrays.get(kind, array), name="scan.nii.gz"))
    assert "scan.nii.gz" in str(error.value) and "\n" not in str(error.value)


def test_doubtful_values_are_warned_of() -> None:
    padded_mr = np.random.default_rng(0).gamma(2, 150, SHAPE).astype(np.int16)
    padded_mr[:, :5] = -1000
    assert any("Hardly any values" in warning for warning in check_is_ct(Volume(padded_mr)))
    phase = np.random.default_rng(0).integers(-4096, 4096, SHAPE).astype(np.int16)
    assert any("soft tissue" in warning for warning in check_is_ct(Volume(phase)))


def test_real_cts_pass_and_mr_does_not(flare_data: Path) -> None:
    files = sorted(flare_data.glob("val/*_ct.nii.gz")) + sorted(flare_data.glob("robustness/*_ct.nii.gz"))
    assert len(files) >= 5
    for path in files:
        volume, warnings = read_volume(path)
        if "mr_" in path.name:
            with pytest.raises(InputError, match="MR"):
                check_is_ct(volume)
        else:
            assert warnings + check_is_ct(volume) == []
