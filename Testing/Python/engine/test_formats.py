"""One CT stored in 44 ways: formats, axis orders, number types, flavors of DICOM. Voxels, geometry and labels stay."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from known_patient import COARSE_KNOWING, FINE_KNOWING, KnowingModel, scan_of_patient
from test_volume import SIGNED_PERMUTATIONS

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed")

from dicom_files import change, enhanced  # noqa: E402

from FlareSegmentLib.files.image_io import read_volume  # noqa: E402
from FlareSegmentLib.inference.pipeline import Segmenter  # noqa: E402
from FlareSegmentLib.volume import Volume  # noqa: E402
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series  # noqa: E402

SPACING = 8.0
ORDERS = (0, 7, 13, 22, 29, 41, 47)


def stored(order: int) -> Volume:
    """The patient with his axes in another order: the same places in the patient."""
    volume, _ = scan_of_patient(SPACING)
    permutation = SIGNED_PERMUTATIONS[order]
    axes = np.abs(permutation).argmax(axis=0)  # the patient's axis along each stored one, x, y, z
    signs = permutation.sum(axis=0)
    array = volume.array.transpose([2 - axes[2], 2 - axes[1], 2 - axes[0]])
    array = np.flip(array, [2 - i for i in range(3) if signs[i] < 0])
    corner = np.array([volume.array.shape[2 - axis] - 1 if sign < 0 else 0 for axis, sign in zip(axes, signs)])
    origin = np.array(volume.origin)
    for axis, n in zip(axes, corner):
        origin[axis] += SPACING * n
    return Volume(np.ascontiguousarray(array), volume.spacing, tuple(origin), permutation.astype(float))


def with_itk(name: str, dtype=np.int16, order: int = 0, compressed: bool = True) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        volume = stored(order)
        image = sitk.GetImageFromArray(volume.array.astype(dtype))
        image.SetSpacing(volume.spacing)
        image.SetOrigin(volume.origin)
        image.SetDirection(volume.direction.ravel().tolist())
        sitk.WriteImage(image, str(folder / name), compressed)
        return folder / name

    return make


def with_nibabel(
    name: str, version: type = nibabel.Nifti1Image, dtype=np.int16, codes=(1, 1), scale=None, order: int = 0
) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        volume = stored(order)
        array = volume.array if scale is None else (volume.array - scale[1]) / scale[0]
        image = version(array.astype(dtype).T, volume.affine_ras)
        image.header.set_data_dtype(dtype)
        image.set_sform(volume.affine_ras, codes[0])
        image.set_qform(volume.affine_ras, codes[1])
        if scale is not None:
            image.header.set_slope_inter(*scale)
        nibabel.save(image, folder / name)
        return folder / name

    return make


def with_dicom(order: int = 0, flavor: Callable[[Path, list[Path]], Path] | None = None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        files = write_series(folder / "ct", stored(order), Identity("p"))
        return flavor(folder, files) if flavor else folder / "ct"

    return make


def shuffled(folder: Path, files: list[Path]) -> Path:
    for number, file in zip(np.random.default_rng(2).permutation(1000), files):
        file.rename(file.with_name(f"IM{number:04d}"))
    return folder


def one_file(folder: Path, files: list[Path]) -> Path:
    order = np.random.default_rng(3).permutation(len(files)).tolist()
    enhanced(folder / "enhanced" / "ct.dcm", files, order)
    return folder / "enhanced"


def with_a_localizer(folder: Path, files: list[Path]) -> Path:
    dataset = pydicom.dcmread(files[0])
    dataset.ImageType, dataset.SOPInstanceUID = ["ORIGINAL", "PRIMARY", "LOCALIZER"], "2.25.5"
    dataset.save_as(folder / "ct" / "scout.dcm", enforce_file_format=True)
    return folder


def encoded(syntax: str) -> Callable[[Path, list[Path]], Path]:
    def write(folder: Path, files: list[Path]) -> Path:
        for file in files:
            dataset = pydicom.dcmread(file)
            if syntax == "1.2.840.10008.1.2.5":
                dataset.compress(syntax)
            else:
                dataset.file_meta.TransferSyntaxUID = syntax
            implicit = syntax == "1.2.840.10008.1.2"
            pydicom.dcmwrite(file, dataset, implicit_vr=implicit, little_endian=True, enforce_file_format=True)
        return folder

    return write


def rescaled(folder: Path, files: list[Path]) -> Path:
    for file in files:
        dataset = pydicom.dcmread(file)
        pixels = dataset.pixel_array.astype(np.int32) + int(dataset.RescaleIntercept)
        dataset.PixelData = (2 * pixels).astype("<i2").tobytes()
        dataset.PixelRepresentation, dataset.BitsStored, dataset.HighBit = 1, 16, 15
        dataset.RescaleSlope, dataset.RescaleIntercept = "0.5", "0"
        dataset.save_as(file, enforce_file_format=True)
    return folder


WAYS: dict[str, Callable[[Path], Path]] = {
    **{f"nii.gz {name}": with_itk("ct.nii.gz", dtype) for name, dtype in {
        "int16": np.int16, "int32": np.int32, "int64": np.int64, "float32": np.float32, "float64": np.float64}.items()},
    **{f"{kind} as it is": with_itk(f"ct.{kind}") for kind in ("nii", "nrrd", "nhdr", "mha", "mhd")},
    **{f"{kind} plain": with_itk(f"ct.{kind}", compressed=False) for kind in ("nrrd", "mha")},
    **{f"{kind} float32": with_itk(f"ct.{kind}", np.float32) for kind in ("nrrd", "mha")},
    **{f"nii.gz order {order}": with_itk("ct.nii.gz", order=order) for order in ORDERS[1:]},
    **{f"nrrd order {order}": with_itk("ct.nrrd", order=order) for order in ORDERS[1:]},
    "nifti 2": with_nibabel("ct.nii.gz", nibabel.Nifti2Image),
    "nifti 2 plain": with_nibabel("ct.nii", nibabel.Nifti2Image, np.float32),
    "nifti big-endian": with_nibabel("ct.nii.gz", dtype=">i2"),
    "nifti sform only": with_nibabel("ct.nii.gz", codes=(2, 0)),
    "nifti qform only": with_nibabel("ct.nii.gz", codes=(0, 1), order=29),
    "nifti scaled": with_nibabel("ct.nii.gz", scale=(0.5, -1024.0)),
    "nifti unsigned": with_nibabel("ct.nii.gz", dtype=np.uint16, scale=(1.0, -2048.0)),
    "dicom": with_dicom(),
    "dicom coronal": with_dicom(13),
    "dicom sagittal": with_dicom(22),
    "dicom feet first": with_dicom(7),
    "dicom names at random": with_dicom(flavor=shuffled),
    "dicom in one file": with_dicom(flavor=one_file),
    "dicom with a localizer": with_dicom(flavor=with_a_localizer),
    "dicom implicit": with_dicom(flavor=encoded("1.2.840.10008.1.2")),
    "dicom run lengths": with_dicom(flavor=encoded("1.2.840.10008.1.2.5")),
    "dicom rescaled": with_dicom(flavor=rescaled),
    "dicom spacing in other digits": with_dicom(
        flavor=lambda folder, files: change(files[::2], PixelSpacing=["8.000000", "8.0"]) or folder),
}  # fmt: skip


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(KnowingModel(COARSE_KNOWING, FINE_KNOWING), "cpu", threads=1)


@pytest.fixture(scope="module")
def reference(segmenter: Segmenter) -> np.ndarray:
    """The labels of the CT as it is."""
    return segmenter.segment(scan_of_patient(SPACING)[0]).labels


def in_lps(volume: Volume, labels: np.ndarray | None = None) -> tuple[Volume, np.ndarray]:
    view, order = volume.to_lps_view()
    return view, order.apply(volume.array if labels is None else labels)


def test_there_are_44_ways() -> None:
    assert len(WAYS) == 44


@pytest.mark.parametrize("way", WAYS)
def test_one_ct_in_44_ways(
    way: str, segmenter: Segmenter, reference: np.ndarray, tmp_path: Path, figures: dict[str, str]
) -> None:
    expected, _ = scan_of_patient(SPACING)
    volume, warnings = read_volume(WAYS[way](tmp_path))
    view, voxels = in_lps(volume)
    np.testing.assert_array_equal(voxels, expected.array)
    corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)], float)
    corners[:, :3] *= np.array(expected.array.shape[::-1]) - 1
    assert np.abs((view.affine_lps - expected.affine_lps) @ corners.T).max() <= 1e-5
    assert warnings == []
    result = segmenter.segment(volume)
    labels = in_lps(volume, result.labels)[1]
    for organ in result.organs:
        found, truth = labels == organ.label, reference == organ.label
        assert truth.any() and 2 * np.sum(found & truth) / (found.sum() + truth.sum()) == pytest.approx(1.0, abs=5e-4)
    figures["One CT in several ways"] = f"{len(WAYS)}: identical voxels, places within 1e-5 mm, Dice 1.000"
