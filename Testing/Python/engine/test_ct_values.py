"""Values that are no tissue, or not on the Hounsfield scale: padding, masks, shifts, scales, noise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files import image_io
from FlareSegmentLib.files.hounsfield import noise_hu, scale_doubts
from FlareSegmentLib.files.image_io import check_is_ct, checked_ct, read_volume
from FlareSegmentLib.files.padding import AIR_HU, without_padding
from FlareSegmentLib.volume import Volume


def body(seed: int = 0, shape: tuple[int, int, int] = (24, 48, 56)) -> np.ndarray:
    """A trunk with air around it, lungs, fat, muscle and bone, noise as in a usual scan."""
    rng = np.random.default_rng(seed)
    z, y, x = (np.linspace(-1, 1, n) for n in shape)
    distance = (y[:, None] / 0.8) ** 2 + (x / 0.9) ** 2
    array = np.full(shape, -1000.0)
    array[:, distance < 1] = -100
    array[:, distance < 0.6] = 50
    array[:, (y[:, None] - 0.4) ** 2 + x**2 < 0.02] = 600
    array[z > 0.5] = np.where((distance < 0.4) & (np.abs(x) > 0.2), -800, array[z > 0.5])
    return np.rint(array + rng.normal(0, 12, shape)).astype(np.int16)


def padded(array: np.ndarray, value: float, sides: tuple = ((5, 5), (6, 6), (6, 6))) -> np.ndarray:
    return np.pad(array, sides, constant_values=value)


@pytest.mark.parametrize("value", [-300, -100, 0, 1, 60, 1000, 3071, 32767])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
@pytest.mark.parametrize(
    "sides", [((5, 5), (6, 6), (6, 6)), ((0, 0), (0, 9), (0, 0)), ((3, 0), (0, 0), (0, 0)), ((0, 0), (0, 0), (8, 0))]
)
def test_padding_is_air_and_said(value: int, dtype, sides: tuple) -> None:
    volume, warnings = checked_ct(Volume(padded(body().astype(dtype), value, sides)))
    inside = tuple(slice(low, size - high) for (low, high), size in zip(sides, volume.array.shape))
    np.testing.assert_array_equal(volume.array[inside], body())
    outside = np.ones(volume.array.shape, bool)
    outside[inside] = False
    assert np.mean(volume.array[outside] == AIR_HU) == 1
    share = 100 * outside.mean()
    assert len(warnings) == 1 and f"{share:.0f} % of the scan has the constant value {value:g}: padding" in warnings[0]


def test_air_is_left_as_it_is() -> None:
    for value in (-1000, -1024, -2000, -3024):
        volume = Volume(padded(body(), value))
        assert checked_ct(volume) == (volume, [])
    assert checked_ct(Volume(body()))[1] == []


@pytest.mark.parametrize("value", [-1000, 0])
def test_a_checked_ct_is_not_looked_through_again_but_its_warnings_stay(value: int, monkeypatch) -> None:
    volume, warnings = checked_ct(Volume(padded(body(), value)))
    assert bool(warnings) == (value == 0)

    def looked(*_arguments: object) -> None:
        raise AssertionError("looked through again")

    monkeypatch.setattr(image_io, "check_is_ct", looked)
    assert checked_ct(volume) == (volume, warnings)
    with pytest.raises(AssertionError, match="again"):
        checked_ct(volume.with_array(volume.array.copy()))


@pytest.mark.parametrize("value", [0, -77, 500, 1000, 3071])
def test_masks_are_air(value: int) -> None:
    array = body()
    outside = array < -500
    outside[:, 10:38, 10:46] = False
    masked = np.where(outside, value, array).astype(np.int16)
    volume, (line,) = without_padding(Volume(masked))
    assert f"constant value {value}" in line and np.all(volume.array[outside][volume.array[outside] != AIR_HU] == value)
    assert np.mean(volume.array[outside] == AIR_HU) > 0.98  # narrow corners are left
    box = body()
    box[8:12, 20:30, 20:34] = value
    volume, (line,) = without_padding(Volume(box))
    assert np.all(volume.array[8:12, 20:30, 20:34] == AIR_HU) and "mask" in line


def test_two_paddings_and_blank_slices_in_between() -> None:
    array = padded(body(), 0)
    array[9:12] = 40
    volume, warnings = without_padding(Volume(array))
    assert len(warnings) == 2 and np.all(volume.array[9:12] == AIR_HU) and np.all(volume.array[0] == AIR_HU)


def test_saturated_bone_and_metal_are_no_padding() -> None:
    clipped = gaussian_filter(body(), 0.7).clip(-1000, 275)  # no scanner has sharp edges
    assert without_padding(Volume(clipped))[1] == []
    metal = body()
    metal[4:8, 18:28, 18:28] = np.random.default_rng(0).integers(300, 3071, (4, 10, 10))  # its blurred edge
    metal[4:8, 20:26, 20:26] = 3071
    assert without_padding(Volume(metal))[1] == []


@pytest.mark.parametrize("value", [1000, 3071, 32767])
def test_bone_that_is_cut_off_below_the_padding_is_no_padding(value: int) -> None:
    clipped = gaussian_filter(body(), 0.7).clip(-1000, 275).astype(np.int16)
    for sides in (((5, 5), (6, 6), (6, 6)), ((2, 0), (0, 0), (0, 0))):
        volume, (line,) = without_padding(Volume(padded(clipped, value, sides)))
        assert f"constant value {value}" in line
        inside = tuple(slice(low, size - high) for (low, high), size in zip(sides, volume.array.shape))
        np.testing.assert_array_equal(volume.array[inside], clipped)


def test_the_lowest_value_is_never_padding() -> None:
    """The background of MR must not become the air of a CT."""
    mr = np.random.default_rng(0).gamma(2, 150, (20, 40, 40)).astype(np.int16) + 1
    mr[:, :10] = 0
    with pytest.raises(InputError, match="does not look like a CT"):
        checked_ct(Volume(mr))


@pytest.mark.parametrize("extension", ["nii.gz", "nii", "nrrd", "mha"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused_in_every_format(tmp_path: Path, extension: str, value: float) -> None:
    array = body().astype(np.float32)
    array[:, :6] = value
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / f"ct.{extension}"))
    with pytest.raises(InputError, match="NaN or infinite"):
        checked_ct(read_volume(tmp_path / f"ct.{extension}")[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a - 1024, "shifted by about -10"),
        (lambda a: a - 200, "shifted by about -2"),
        (lambda a: a + 150, "shifted by about +1"),
        (lambda a: a + 1000, "shifted by about +1"),
        (lambda a: a * 0.5, "scaled by about 0.5"),
        (lambda a: a * 2.0, "scaled by about 2"),
        (lambda a: -a, "inverted"),
    ],
)
def test_values_off_the_scale_are_said_with_how_much(change, words: str) -> None:
    (line,) = scale_doubts(change(body().astype(float)))
    assert words in line and "Hounsfield units" in line
    try:
        assert line in check_is_ct(Volume(change(body().astype(float))))
    except InputError:
        assert "inverted" not in words


def test_usual_scans_raise_no_doubt() -> None:
    for array in (body(), body()[:6], body()[:, 12:36, 14:42], body().clip(-1000, 275)):
        assert scale_doubts(array) == []


@pytest.mark.parametrize(("sigma", "said"), [(20, False), (120, True)])
def test_much_noise_is_said(sigma: float, said: bool) -> None:
    noisy = body() + np.random.default_rng(1).normal(0, sigma, body().shape)
    assert noise_hu(noisy) == pytest.approx(np.hypot(12, sigma), rel=0.35)
    assert any("very noisy" in line for line in check_is_ct(Volume(noisy))) == said


@pytest.mark.real_ct
def test_real_scans_raise_no_doubt(flare_data: Path) -> None:
    for path in sorted(flare_data.glob("val/*_ct.nii.gz")):
        volume, warnings = read_volume(path)
        assert warnings + checked_ct(volume)[1] == [], path.name
