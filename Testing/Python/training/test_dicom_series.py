"""CTs as DICOM series and back: identical voxels and geometry, valid CT images, tilted and uneven slices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_volume import rotation

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

from dicom_files import OBLIQUE, SPACING, change, ct_and_labels, enhanced  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.files.dicom_folder import find_series, read_series  # noqa: E402
from FlareSegmentLib.files.image_io import read_volume  # noqa: E402
from FlareSegmentLib.files.straight_series import straight  # noqa: E402
from FlareSegmentLib.volume import Volume  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, safe_name, write_series  # noqa: E402


def differences(first: Volume, second: Volume) -> float:
    return max(
        float(np.abs(np.subtract(getattr(first, name), getattr(second, name))).max())
        for name in ("spacing", "origin", "direction")
    )


@pytest.mark.parametrize(
    "direction",
    [np.eye(3), np.diag([-1.0, -1.0, 1.0]), OBLIQUE, rotation(90, (1, 0, 0)), OBLIQUE @ rotation(90, (0, 1, 0))],
    ids=["axial", "prone", "oblique", "coronal", "oblique sagittal"],
)
@pytest.mark.parametrize("values", ["twelve bits", "sixteen bits", "float"])
def test_round_trip(tmp_path: Path, direction: np.ndarray, values: str) -> None:
    volume, _ = ct_and_labels(direction=direction)
    array = volume.array.copy()
    if values != "twelve bits":
        array[0, 0, :2] = (-2000, 30000)
    volume = volume.with_array(array.astype(np.float64) if values == "float" else array)
    write_series(tmp_path / "ct", volume, Identity("p"))
    back, warnings = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(back.array, volume.array)
    assert differences(back, volume) < 1e-4 and warnings == []


@pytest.mark.parametrize("case", ["c3l00189", "matrad_pat001"])
def test_real_ct_round_trip(tmp_path: Path, flare_data: Path, case: str, capsys: pytest.CaptureFixture) -> None:
    volume, _ = read_volume(flare_data / "val" / f"{case}_ct.nii.gz")
    write_series(tmp_path / "ct", volume, Identity(case))
    back, warnings = read_volume(tmp_path / "ct")
    with capsys.disabled():
        size = " x ".join(str(n) for n in volume.array.shape[::-1])
        print(
            f"\n{case}, {size}: {np.count_nonzero(back.array != volume.array)} voxels differ, "
            f"geometry within {differences(back, volume):.1e}"
        )
    np.testing.assert_array_equal(back.array, volume.array)
    assert differences(back, volume) < 1e-4 and warnings == []


def test_a_left_handed_volume_comes_back_turned(tmp_path: Path) -> None:
    volume, _ = ct_and_labels(direction=np.diag([1.0, 1.0, -1.0]))
    write_series(tmp_path / "ct", volume, Identity("p"))
    back, _ = read_volume(tmp_path / "ct")
    np.testing.assert_array_equal(back.array, volume.array[::-1])
    assert back.same_grid(volume.to_lps_view()[0], 1e-4)


def test_files_are_ct_images(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    files = write_series(tmp_path / "ct", volume, Identity("case_1"))
    headers = [pydicom.dcmread(file) for file in files]
    assert len({header.SOPInstanceUID for header in headers}) == len(files) == 20
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "SOPClassUID"):
        assert len({header[keyword].value for header in headers}) == 1
    first = headers[0]
    assert first.SOPClassUID.name == "CT Image Storage" and first.file_meta.MediaStorageSOPClassUID == first.SOPClassUID
    assert all(len(header.SOPInstanceUID) <= 64 for header in headers)
    assert (first.RescaleIntercept, first.RescaleSlope, first.RescaleType) == (-1024, 1, "HU")
    expected = first.pixel_array.astype(int) - 1024
    np.testing.assert_array_equal(expected, volume.array[0])
    assert list(first.PixelSpacing) == [SPACING[1], SPACING[0]]
    assert list(first.ImageType) == ["DERIVED", "PRIMARY", "AXIAL"]


def test_one_study_per_patient_and_stable_uids(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    names = [("a", "p", 1), ("b", "p", 2), ("c", "q", 1), ("d", "p", 1)]
    a, b, c, d = (
        pydicom.dcmread(write_series(tmp_path / folder, volume, Identity(patient, number))[0])
        for folder, patient, number in names
    )
    assert a.StudyInstanceUID == b.StudyInstanceUID != c.StudyInstanceUID
    assert len({item.SeriesInstanceUID for item in (a, b, c)}) == 3 and a.SOPInstanceUID == d.SOPInstanceUID


def test_an_existing_folder_and_bad_values_are_refused(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="is there already"):
        write_series(tmp_path / "there", volume, Identity("p"))
    for value in (40000, np.nan):
        with pytest.raises(InputError, match="cannot be written as DICOM"):
            write_series(tmp_path / "new", volume.with_array(np.full(volume.array.shape, value, float)), Identity("p"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_names_cannot_leave_the_folder() -> None:
    for name in ("../../etc/x", "a/b", "a\\b", "..", "C:\\x", "name\n", ""):
        assert not {"/", "\\", ":", "\n"} & set(safe_name(name)) and safe_name(name) not in ("", ".", "..")


def only_series(folder: Path):
    (series,) = (one for one in find_series(folder)[0] if one.problem is None)
    return read_series(series, "The series")


def test_gantry_tilt_is_straightened(tmp_path: Path) -> None:
    """A tilted scan of a slanted edge: straightened, the edge stands where the patient has it."""
    slices, degrees = 24, 15.0
    step = 2.0 * rotation(degrees, (1, 0, 0))[:, 2]  # along y and z
    origin = np.array([0.0, 0.0, 0.0])
    y = np.arange(60) * 0.8
    array = np.zeros((slices, 60, 30), np.int16)
    for k in range(slices):
        array[k] = np.clip(10 * (y + k * step[1]), -500, 600)[:, None]  # depends on the patient's y alone
    volume = Volume(array, (0.9, 0.8, 2.0), tuple(origin), np.column_stack([np.eye(3)[0], np.eye(3)[1], step / 2.0]))
    write_series(tmp_path / "ct", volume, Identity("p"))
    series = only_series(tmp_path)
    assert "tilted by 15 degrees" in series.warnings[0]
    labels = (series.volume.array > 250).astype(np.uint8)
    grid, marked, done = straight(series, labels)
    assert done == "gantry tilt of 15.0 degrees straightened"
    np.testing.assert_allclose(grid.direction, np.eye(3), atol=1e-6)
    assert grid.spacing[2] == pytest.approx(2.0 * np.cos(np.radians(degrees)), abs=1e-6)
    inside = grid.array[:, 16:44]  # where every slice has values
    np.testing.assert_allclose(inside, np.broadcast_to((10 * y[16:44])[None, :, None], inside.shape), atol=1.5)
    clear = [row for row in range(20, 44) if abs(y[row] - 25) > 0.4]  # the edge itself is known to half a voxel
    np.testing.assert_array_equal(marked[:, clear, 5], np.broadcast_to(y[clear] > 25, (slices, len(clear))))


def test_uneven_slices_are_brought_to_one_distance(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    ramp = np.broadcast_to(np.arange(20, dtype=np.int16)[:, None, None] * 50, volume.array.shape).copy()
    files = write_series(tmp_path / "ct", volume.with_array(ramp), Identity("p"))
    for k, file in enumerate(files):
        z = 2.5 * k + (0.6 if 0 < k < 19 and k % 2 else 0)
        dataset = pydicom.dcmread(file)
        dataset.PixelData = np.full((32, 40), round(20 * z) + 1024, "<u2").tobytes()
        dataset.save_as(file)
        change([file], ImagePositionPatient=[0, 0, z])
    series = only_series(tmp_path)
    assert "unevenly spaced" in series.warnings[0]
    grid, _, done = straight(series)
    assert "brought to 2.50 mm" in done
    np.testing.assert_allclose(grid.array[:, 0, 0], 50 * np.arange(20), atol=1)


def test_what_is_straight_is_not_touched(tmp_path: Path) -> None:
    volume, labels = ct_and_labels(direction=OBLIQUE)
    write_series(tmp_path / "ct", volume, Identity("p"))
    grid, marked, done = straight(only_series(tmp_path), labels)
    assert done is None and marked is labels
    np.testing.assert_array_equal(grid.array, volume.array)
    assert differences(grid, volume) < 1e-4


def test_enhanced_ct_frames_are_sorted_by_place(tmp_path: Path) -> None:
    volume, _ = ct_and_labels(direction=OBLIQUE)
    files = write_series(tmp_path / "ct", volume, Identity("p"))
    order = [int(index) for index in np.random.default_rng(3).permutation(20)]
    enhanced(tmp_path / "enhanced" / "file.dcm", files, order)
    back, warnings = read_volume(tmp_path / "enhanced")
    np.testing.assert_array_equal(back.array, volume.array)
    assert differences(back, volume) < 1e-4 and warnings == []
    enhanced(tmp_path / "gap" / "file.dcm", files, [0, 1, 2, 3, 6, 7, 8])
    with pytest.raises(InputError, match="about 2 slices are missing"):
        read_volume(tmp_path / "gap")
    enhanced(tmp_path / "twice" / "file.dcm", files, [0, 1, 2, 2, 3])
    with pytest.raises(InputError, match="several frames at one place"):
        read_volume(tmp_path / "twice")


def test_rescale_that_changes_from_slice_to_slice(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    files = write_series(tmp_path / "ct", volume, Identity("p"))
    change(files[5:9], RescaleSlope="0.5", RescaleIntercept="-3000")
    back, _ = read_volume(tmp_path / "ct")
    np.testing.assert_allclose(back.array[5], (volume.array[5] + 1024) * 0.5 - 3000)
    np.testing.assert_allclose(back.array[4], volume.array[4])


def test_sizes_are_checked_before_memory_is_taken(tmp_path: Path) -> None:
    volume, _ = ct_and_labels()
    files = write_series(tmp_path / "ct", volume, Identity("p"))
    change(files, Rows=60000, Columns=60000)
    with pytest.raises(InputError):
        read_volume(tmp_path / "ct")
