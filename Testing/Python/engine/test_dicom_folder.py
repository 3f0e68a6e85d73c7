"""The right CT, in the right order and place, from folders of DICOM files written here."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from test_image_io import ct_array
from test_volume import rotation

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import check_is_ct, read_volume

ARRAY = ct_array()


def write_series(
    folder: Path,
    array: np.ndarray = ARRAY,
    series: str = "1",
    modality: str = "CT",
    direction: np.ndarray | None = None,
    step: np.ndarray | None = None,
    skip: tuple[int, ...] = (),
    image_type: str = "ORIGINAL\\PRIMARY\\AXIAL",
    acquisition: int = 1,
) -> None:
    """One file per slice, in an order and with names that say nothing about their place."""
    folder.mkdir(parents=True, exist_ok=True)
    direction = np.eye(3) if direction is None else direction
    step = 2.5 * direction[:, 2] if step is None else step
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for number in np.random.default_rng(0).permutation(len(array)):
        if number in skip:
            continue
        image = sitk.GetImageFromArray(array[number : number + 1])
        image.SetSpacing((0.7, 0.8, 2.5))
        position = np.array([-30.0, -40.0, 50.0]) + number * step
        image.SetOrigin(position.tolist())
        image.SetDirection(direction.ravel().tolist())
        tags = {
            "0008|0060": modality,
            "0008|0008": image_type,
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|0011": series,
            "0020|0012": str(acquisition),
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{acquisition}.{number + 1}",
            "0020|0032": "\\".join(f"{v:.6f}" for v in position),
            "0020|0037": "\\".join(f"{v:.6f}" for v in direction[:, :2].T.ravel()),
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in tags.items():
            image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}-{acquisition}-{(number * 7) % 101:03}"))
        writer.SetImageIO("GDCMImageIO")
        writer.Execute(image)


@pytest.mark.parametrize(
    "direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), rotation(10, (1, 2, 0))], ids=["axial", "prone", "oblique"]
)
def test_slices_are_sorted_by_place(tmp_path: Path, direction: np.ndarray) -> None:
    write_series(tmp_path / "deep" / "inside", direction=direction)
    (tmp_path / "DICOMDIR").write_bytes(b"index")
    (tmp_path / "README.txt").write_text("hello")
    volume, warnings = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, ARRAY)
    np.testing.assert_allclose(volume.spacing, (0.7, 0.8, 2.5), atol=1e-4)
    np.testing.assert_allclose(volume.origin, (-30, -40, 50), atol=1e-4)
    np.testing.assert_allclose(volume.direction, direction, atol=1e-4)
    assert warnings == [] and check_is_ct(volume) == []


def test_slices_against_the_normal(tmp_path: Path) -> None:
    write_series(tmp_path, step=np.array([0, 0, -2.5]))
    volume, warnings = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, ARRAY[::-1])
    assert volume.origin[2] == pytest.approx(50 - 8 * 2.5) and warnings == []


def test_the_largest_axial_ct_is_taken_and_named(tmp_path: Path) -> None:
    coronal = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
    big = np.tile(ARRAY, (2, 1, 1))
    write_series(tmp_path / "a", series="1", array=ARRAY[:4])
    write_series(tmp_path / "b", series="2")
    write_series(tmp_path / "c", series="3", array=big, direction=coronal, image_type="DERIVED\\SECONDARY\\REFORMATTED")
    write_series(tmp_path / "d", series="4", array=big, modality="MR")
    write_series(tmp_path / "e", series="5", array=ARRAY[:2], image_type="ORIGINAL\\PRIMARY\\LOCALIZER")
    volume, warnings = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, ARRAY)
    assert len(warnings) == 1 and "3 CT volumes" in warnings[0] and "series 2 with 9 slices" in warnings[0]


def test_a_localizer_in_the_same_series_is_left_out(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(
        tmp_path / "b", array=np.zeros((1, 50, 10), np.int16), image_type="ORIGINAL\\PRIMARY\\LOCALIZER", acquisition=7
    )
    np.testing.assert_array_equal(read_volume(tmp_path)[0].array, ARRAY)


@pytest.mark.parametrize("modality", ["MR", "PT", "CR", "SEG", "RTSTRUCT"])
def test_no_ct_is_refused(tmp_path: Path, modality: str) -> None:
    write_series(tmp_path, modality=modality)
    with pytest.raises(InputError, match=f"no CT volume.*9 {modality}"):
        read_volume(tmp_path)


def test_missing_slices_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path, skip=(4, 5))
    with pytest.raises(InputError, match="about 2 slices are missing"):
        read_volume(tmp_path)


def test_missing_end_slices_cannot_be_known(tmp_path: Path) -> None:
    write_series(tmp_path, skip=(0, 8))
    np.testing.assert_array_equal(read_volume(tmp_path)[0].array, ARRAY[1:8])


def test_a_second_acquisition_at_the_same_place_is_left_out(tmp_path: Path) -> None:
    write_series(tmp_path, acquisition=1)
    write_series(tmp_path, acquisition=2, array=ct_array(seed=9), skip=(3,))
    volume, warnings = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.array, ARRAY)
    assert len(warnings) == 1 and "8 slices" in warnings[0]


def test_gantry_tilt_is_kept_and_named(tmp_path: Path) -> None:
    write_series(tmp_path, step=2.5 * rotation(12, (1, 0, 0))[:, 2])
    volume, warnings = read_volume(tmp_path)
    assert "tilted by 12 degrees" in warnings[0] and volume.tilt_degrees == pytest.approx(12, abs=0.1)
    last = volume.affine_lps @ [0, 0, 8, 1]
    np.testing.assert_allclose(last[:3], [-30, -40, 50] + 20 * rotation(12, (1, 0, 0))[:, 2], atol=1e-3)


def test_a_damaged_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path)
    victim = sorted(tmp_path.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:-300])
    with pytest.raises(InputError):
        read_volume(tmp_path)


def test_one_file_with_one_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, array=ARRAY[:1])
    with pytest.raises(InputError, match="no CT volume"):
        read_volume(tmp_path)
    shutil.rmtree(tmp_path)
