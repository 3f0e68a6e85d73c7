"""DICOM series as hospitals export them: phases mixed, slices moved or uneven, damaged files, headers as other text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

from dicom_files import change, ct_and_labels  # noqa: E402

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.files.dicom_folder import find_series, read_series  # noqa: E402
from FlareSegmentLib.files.image_io import read_volume  # noqa: E402
from FlareSegmentLib.volume import Volume  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series  # noqa: E402

COUNT = 12


def series(folder: Path, seed: int = 0) -> tuple[Volume, list[Path]]:
    volume, _ = ct_and_labels(COUNT, seed)
    return volume, write_series(folder, volume, Identity("p"))


def two_phases(folder: Path, tags, shift: float = 0.0) -> tuple[Volume, Volume]:
    """Two CTs of one place as one series; `tags` gives what (phase, slice) says of itself, names say nothing."""
    volumes = []
    names = np.random.default_rng(1).permutation(100)
    for phase in (0, 1):
        volume, files = series(folder / f"phase{phase}", seed=phase)
        volumes.append(volume)
        for k, file in enumerate(files):
            dataset = pydicom.dcmread(file)
            dataset.SeriesInstanceUID = "2.25.1"
            dataset.InstanceNumber = None
            for keyword, value in tags(phase, k).items():
                setattr(dataset, keyword, value)
            x, y, z = dataset.ImagePositionPatient
            dataset.ImagePositionPatient = [x, y, f"{float(z) + phase * shift:.4f}"]
            dataset.save_as(folder / f"{names[k + phase * COUNT]:05d}.dcm", enforce_file_format=True)
            file.unlink()
        (folder / f"phase{phase}").rmdir()
    return volumes[0], volumes[1]


TOLD_BY = {
    "acquisition numbers": lambda phase, k: {"AcquisitionNumber": phase + 1},
    "acquisition times": lambda phase, k: {"AcquisitionTime": f"1010{10 + 40 * phase}.0"},
    "times of every slice": lambda phase, k: {"ContentTime": f"10{10 + phase}{10 + k}.5"},
    "acquisition times of every slice": lambda phase, k: {"AcquisitionTime": f"10{10 + phase}{10 + k}.5"},
    "instance numbers": lambda phase, k: {"InstanceNumber": 1 + k + phase * COUNT},
    "instance numbers downwards": lambda phase, k: {"InstanceNumber": COUNT - k + phase * COUNT},
    "instance numbers in turns": lambda phase, k: {"InstanceNumber": 1 + 2 * k + phase},
    "temporal positions": lambda phase, k: {"TemporalPositionIdentifier": phase + 1, "InstanceNumber": 1},
    "trigger times": lambda phase, k: {"TriggerTime": 40 * phase},
    "kernels": lambda phase, k: {"ConvolutionKernel": ("B30f", "B70f")[phase]},
    "kinds of image": lambda phase, k: {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", ("40KEV", "70KEV")[phase]]},
}


@pytest.mark.parametrize("told_by", TOLD_BY)
@pytest.mark.parametrize("shift", [0.0, 0.02, 1.0, 1.25])
def test_one_acquisition_is_taken_whole(tmp_path: Path, told_by: str, shift: float) -> None:
    if shift >= 1 and "in turns" in told_by:
        return  # nothing lies at one place: so are the slices of one thin scan numbered
    first, second = two_phases(tmp_path, TOLD_BY[told_by], shift)
    volume, warnings = read_volume(tmp_path)
    assert any(np.array_equal(volume.array, one.array) for one in (first, second))
    assert volume.spacing[2] == pytest.approx(2.5, abs=1e-3)
    (line,) = warnings
    assert "second acquisition" in line and f"{COUNT} slices" in line


@pytest.mark.parametrize("shift", [0.0, 0.02])
def test_what_nothing_tells_apart_is_refused(tmp_path: Path, shift: float) -> None:
    two_phases(tmp_path, lambda phase, k: {}, shift)
    with pytest.raises(InputError, match="several acquisitions, and nothing in its files tells"):
        read_volume(tmp_path)


def test_copies_of_files_are_left_out(tmp_path: Path) -> None:
    volume, files = series(tmp_path / "ct")
    for file in files[2:5]:
        (tmp_path / "ct" / f"copy_{file.name}").write_bytes(file.read_bytes())
    found, (line,) = read_volume(tmp_path)
    np.testing.assert_array_equal(found.array, volume.array)
    assert "3 files are copies" in line


def test_stations_of_the_table_that_overlap_are_one_scan(tmp_path: Path) -> None:
    volume, files = series(tmp_path / "ct")
    change(files[:7], AcquisitionNumber=1)
    change(files[7:], AcquisitionNumber=2)
    again = pydicom.dcmread(files[6])
    again.AcquisitionNumber, again.SOPInstanceUID = 2, "2.25.77"
    again.save_as(tmp_path / "ct" / "again.dcm", enforce_file_format=True)
    found, (line,) = read_volume(tmp_path)
    np.testing.assert_array_equal(found.array, volume.array)
    assert line.startswith("1 slices lie at the place of another one")


@pytest.mark.parametrize("moved", [range(4, 8), range(6, 12), [5]])
def test_slices_moved_in_their_plane_lie_where_the_files_say(tmp_path: Path, moved) -> None:
    """A bright rod along z, drawn where each slice's position puts it: straight again in the patient."""
    plain, _ = ct_and_labels(COUNT)
    array = np.full(plain.array.shape, -50, np.int16) + np.random.default_rng(0).integers(0, 20, plain.array.shape)
    array = array.astype(np.int16)
    for k in range(COUNT):
        column = 25 - (10 if k in moved else 0)
        array[k, 14:18, column - 2 : column + 2] = 900
    files = write_series(tmp_path / "ct", plain.with_array(array), Identity("p"))
    for k in moved:
        change(
            [files[k]],
            ImagePositionPatient=lambda d: [f"{float(d.ImagePositionPatient[0]) + 8:.4f}", *d.ImagePositionPatient[1:]],
        )
    volume, warnings = read_volume(tmp_path)
    assert any("8.0 mm" in line and "in their planes" in line for line in warnings)
    assert any("interpolated" in line for line in warnings)
    assert not any("gantry tilt)" in line for line in warnings)
    for k in range(COUNT):
        y, x = (place.mean() for place in np.nonzero(volume.array[k] > 500))
        place = volume.affine_lps @ [x, y, k, 1]
        np.testing.assert_allclose(place[:2], [plain.origin[0] + 24.5 * 0.8, plain.origin[1] + 15.5 * 0.7], atol=0.2)


def test_uneven_slices_lie_where_the_files_say(tmp_path: Path) -> None:
    plain, _ = ct_and_labels(COUNT)
    heights = np.concatenate([np.arange(0, 12, 2.0), 12 + np.arange(0, 15, 2.5)])
    array = np.broadcast_to((20 * heights).astype(np.int16)[:, None, None], plain.array.shape).copy()
    files = write_series(tmp_path / "ct", plain.with_array(array), Identity("p"))
    for height, file in zip(heights, files, strict=True):
        change([file], ImagePositionPatient=[*plain.origin[:2], f"{height:.3f}"])
    volume, warnings = read_volume(tmp_path)
    assert "up to 1.4 mm off even places" in warnings[0] and "interpolated" in warnings[1]
    places = (volume.affine_lps @ np.array([[0, 0, k, 1] for k in range(COUNT)]).T)[2]
    np.testing.assert_allclose(volume.array[:, 0, 0], 20 * places, atol=1)


@pytest.mark.parametrize(
    "values",
    [
        {"PixelSpacing": (["0.7", "0.8"], ["0.700000", "0.800000"])},
        {"PixelSpacing": (["0.7", "0.8"], ["0.70003", "0.8"])},
        {
            "ImageOrientationPatient": (
                ["1", "0.00045", "0", "-0.00045", "1", "0"],
                ["1", "0.00055", "0", "-0.00055", "1", "0"],
            )
        },
        {"ImageOrientationPatient": (["1", "0", "0", "0", "1", "0"], ["1.0000", "0.0000", "-0.0", "0", "1", "0e0"])},
    ],
)  # fmt: skip
def test_numbers_are_compared_as_numbers(tmp_path: Path, values: dict) -> None:
    volume, files = series(tmp_path / "ct")
    for keyword, (one, other) in values.items():
        change(files[::2], **{keyword: one})
        change(files[1::2], **{keyword: other})
    found, warnings = read_volume(tmp_path)
    np.testing.assert_array_equal(found.array, volume.array)
    assert found.spacing[2] == pytest.approx(2.5) and warnings == []


def test_instance_numbers_that_come_twice_tell_acquisitions_of_other_places(tmp_path: Path) -> None:
    first, second = two_phases(tmp_path, lambda phase, k: {"InstanceNumber": 1 + k}, 1.25)
    volume, (line,) = read_volume(tmp_path)
    assert any(np.array_equal(volume.array, one.array) for one in (first, second))
    assert "told apart by their instance numbers" in line


@pytest.mark.parametrize("damaged", [[0], [-1], list(range(8, 12))])
@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_damaged_files_at_the_ends_are_said(tmp_path: Path, damaged: list[int], kept: float) -> None:
    _, files = series(tmp_path / "ct")
    (tmp_path / "ct" / "notes.txt").write_text("hello")
    for index in damaged:
        content = files[index].read_bytes()
        files[index].write_bytes(content[: int(len(content) * kept)])
    volume, (line,) = read_volume(tmp_path)
    assert len(volume.array) == COUNT - len(damaged)
    assert f": {len(damaged)}, such as slice" in line and f"{2.5 * len(damaged):.0f} mm of the scan" in line
    found, others = find_series(tmp_path)
    assert read_series(found[0], "The series").warnings == [line] and len(others) == len(damaged) + 1


@pytest.mark.parametrize("part", [*range(132, 700, 24)])
def test_a_file_that_ends_in_its_header_is_damaged(tmp_path: Path, part: int) -> None:
    _, files = series(tmp_path / "ct")
    files[-1].write_bytes(files[-1].read_bytes()[:part])
    volume, (line,) = read_volume(tmp_path)
    assert len(volume.array) == COUNT - 1 and ": 1, such as slice" in line


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ImagePositionPatient": None}, "do not say where the slices lie"),
        ({"ImageOrientationPatient": None}, "do not say where the slices lie"),
        ({"PixelSpacing": None}, "pixel spacing \\(not given\\) is not positive"),
        ({"SeriesInstanceUID": lambda dataset: f"2.25.{dataset.InstanceNumber}"}, "12 series has one slice only"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "inverted"),
    ],
)
def test_the_reason_of_the_largest_series_is_the_message(tmp_path: Path, values: dict, words: str) -> None:
    _, files = series(tmp_path / "ct")
    change(files, **values)
    with pytest.raises(InputError, match=f"no CT volume.*12 CT.*{words}"):
        read_volume(tmp_path)


def test_an_unknown_sop_class_is_no_folder_without_dicom(tmp_path: Path) -> None:
    _, files = series(tmp_path / "ct")
    for file in files:
        dataset = pydicom.dcmread(file)
        dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
        for keyword in ("PixelData", "Rows", "Columns"):
            delattr(dataset, keyword)
        dataset.save_as(file, enforce_file_format=True)
    with pytest.raises(InputError, match="12 DICOM files, but no DICOM images that can be read .*RT Structure Set"):
        read_volume(tmp_path)
