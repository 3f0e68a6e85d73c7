"""Reading CTs and label maps, writing label maps, and saying no to what is not a CT.

NRRD and MetaImage files are read here with SimpleITK, NIfTI files in ``nifti.py``, DICOM folders in
``dicom_folder.py``. A header is checked before any memory is taken for voxels. Whatever is wrong ends in an InputError
of one line: which file, what is wrong, what to do.
"""

from __future__ import annotations

import math
import os
import struct
import tempfile
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.files.file_headers import (
    GZIP_LIMIT,
    KINDS,
    file_type,
    kind_of,
    read_header,
    unreadable,
)
from FlareSegmentLib.files.hounsfield import NOISE_WORTH_A_WARNING_HU, noise_hu, scale_doubts
from FlareSegmentLib.files.itk_reading import bytes_per_voxel, can_be_opened, check_header, quiet_itk
from FlareSegmentLib.files.nifti import check_nifti_header, no_orientation, read_nifti
from FlareSegmentLib.files.padding import without_padding
from FlareSegmentLib.volume import Volume

READERS = tuple(KINDS)
"""The extensions of the files that are read."""

SMALLEST_SPACING_MM = 0.01
LARGEST_EXTENT_MM = 10_000.0
LABEL_ROUNDING = 0.02
"""How far a label may lie off its whole number: programs that store labels scaled (nibabel does) read 2.996 for 3."""
_said: WeakKeyDictionary[Volume, tuple[str, ...]] = WeakKeyDictionary()  # of checked volumes, while they are there
_LONGEST_NIFTI_HEADER = 4096
_DETACHED = (".nhdr", ".mhd")
_ITK_READERS = {"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}


def read_volume(path: str | os.PathLike[str]) -> tuple[Volume, list[str]]:
    """Read a volume from a NIfTI, NRRD or MetaImage file or a DICOM folder.

    Whether its values are those of a CT is checked by `check_is_ct`.

    Returns:
        The volume and warnings for the user.

    Raises:
        InputError: one clear line.
    """
    path = Path(path)
    if _is_folder(path):
        from FlareSegmentLib.files.dicom_folder import read_dicom_folder

        return read_dicom_folder(path)
    return _read_file(path)


def read_labels(path: str | os.PathLike[str], like: Volume | None = None) -> Volume:
    """Read a label map as uint8; values within LABEL_ROUNDING of a whole number are that number.

    Args:
        like: the volume it belongs to. Labels stored in another axis order of the same grid are reordered.

    Raises:
        InputError: one clear line; also when values are not whole numbers from 0 to 255 or the grid is another one.
    """
    path = Path(path)
    if _is_folder(path):
        raise InputError(f"{path} is a folder: name a label map file ({', '.join(READERS)}).")
    volume = _read_file(path)[0]
    array = volume.array
    if array.dtype.kind == "f":
        whole = np.rint(array)
        array = whole if np.all(np.abs(array - whole) <= LABEL_ROUNDING) else np.full_like(array, -1)
    if not (array.min() >= 0 and array.max() <= 255):
        raise InputError(f"{path} is not a label map: its values are not whole numbers from 0 to 255.")
    labels = volume.with_array(array.astype(np.uint8))
    if like is None or labels.same_grid(like):
        return labels
    canonical, order = labels.to_lps_view()[0], like.axis_order()
    if not canonical.same_grid(like.to_lps_view()[0]):
        raise InputError(
            f"{path} does not lie on the grid of {like.name or 'the CT'} (other size, spacing or position): "
            "resample it to the CT or name the CT it was drawn on."
        )
    return like.with_array(np.ascontiguousarray(order.undo(canonical.array)))


def write_labels(path: str | os.PathLike[str], labels: np.ndarray, like: Volume) -> None:
    """Write a label map with the geometry of `like`; the file appears whole or not at all.

    Args:
        path: ends with a key of READERS other than .nhdr and .mhd.
        labels: (z, y, x) uint8 of the shape of `like`.

    Raises:
        InputError: the file type is not supported or cannot hold the geometry, or the file cannot be written there.
        ValueError: the shapes differ.
    """
    path = Path(path)
    extension = file_type(path)
    if extension is None or extension in _DETACHED:
        raise InputError(f"{path}: label maps are written as .nii.gz, .nii, .nrrd or .mha; choose one of these.")
    if like.is_sheared and extension in (".nii.gz", ".nii"):
        raise InputError(f"{path}: the slices are of a tilted gantry, which NIfTI cannot hold: name a .nrrd file.")
    if labels.shape != like.array.shape:
        raise ValueError(f"the labels' shape {labels.shape} is not the volume's, {like.array.shape}")
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.SetSpacing(like.spacing)
    image.SetOrigin(like.origin)
    image.SetDirection(like.direction.ravel().tolist())
    reason = ""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
            part = Path(folder) / f"labels{extension}"
            try:
                with quiet_itk():
                    sitk.WriteImage(image, str(part), extension != ".nii")
                check_written(part, labels.size)
                os.replace(part, path)
            except (OSError, RuntimeError) as error:
                reason = why_not_written(path.parent, error)
                raise
    except (OSError, RuntimeError) as error:
        reason = reason or why_not_written(path.parent, error)
        raise InputError(f"{path} cannot be written ({reason}): choose another output folder.") from error


def checked_ct(volume: Volume) -> tuple[Volume, list[str]]:
    """The CT with air where nothing was measured, checked by `check_is_ct`.

    Returns:
        The same volume, or one with other voxels, and warnings for the user. What came out of here is not looked at
        again: there the same is said at once.

    Raises:
        InputError: as `check_is_ct`.
    """
    if volume in _said:
        return volume, list(_said[volume])
    measured, warnings = without_padding(volume)
    if measured is not volume:
        check_is_ct(volume)  # air in the place of padding makes no CT of what was none
    warnings = warnings + check_is_ct(measured)
    _said[measured] = tuple(warnings)
    return measured, warnings


def check_is_ct(volume: Volume) -> list[str]:
    """Decide whether the voxels can be a CT in Hounsfield units.

    A CT of any part of a body has fat (near -100 HU) and mostly air, so values below -30 HU; MR, PET, X-ray,
    ultrasound, label maps and CTs without their rescale intercept have none, or only one padding value.

    Returns:
        Warnings for the user.

    Raises:
        InputError: the spacing is not that of a patient, or the voxels are not numbers, not finite, all equal, or
            cannot be a CT.
    """
    array = volume.array
    extent = max(n * step for n, step in zip(array.shape[::-1], volume.spacing))
    if min(volume.spacing) < SMALLEST_SPACING_MM or extent > LARGEST_EXTENT_MM:
        raise InputError(
            f"{volume.label} is no CT of a patient: with its voxel spacing of "
            f"{' x '.join(f'{step:g}' for step in volume.spacing)} mm it is {extent:.3g} mm long; repair the header."
        )
    if array.dtype.kind not in "iuf":
        raise InputError(f"{volume.label} cannot be segmented: its voxels ({array.dtype}) are not plain numbers.")
    lowest, highest = float(array.min()), float(array.max())
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise InputError(
            f"{volume.label} cannot be segmented: it holds NaN or infinite values; replace them (air is -1000 HU)."
        )
    if lowest == highest:
        raise InputError(f"{volume.label} is empty: every voxel has the value {lowest:g}. Choose a CT.")
    sample = array[tuple(slice(None, None, max(1, n // 128)) for n in array.shape)]
    below = sample < -30
    if np.mean(below) < 1e-3:
        raise InputError(
            f"{volume.label} does not look like a CT: its values go from {lowest:g} to {highest:g}, with none for fat "
            "and air (-100 and -1000 HU). It may be MR, PET or a label map, or a CT without its rescale intercept; "
            "choose a CT in HU."
        )
    warnings = []
    if np.mean(below & (sample > lowest)) < 1e-3:
        warnings.append(
            f"Hardly any values lie between air ({lowest:g}) and soft tissue: check that this is a CT in HU."
        )
    body = sample > -300
    if np.count_nonzero(body & (sample < 300)) < 0.25 * np.count_nonzero(body):
        warnings.append(
            "Few values are those of soft tissue (-300 to 300 HU): check that this is a CT in Hounsfield units."
        )
    warnings += scale_doubts(sample[::2, ::2, ::2])
    noise = noise_hu(array)
    if noise > NOISE_WORTH_A_WARNING_HU:
        warnings.append(f"The scan is very noisy (about {noise:.0f} HU): parts of organs may be missed.")
    return warnings


def volume_of_image(image: sitk.Image, name: str) -> Volume:
    """Volume of a three-dimensional SimpleITK image with one value per voxel. Raises InputError."""
    direction = np.array(image.GetDirection()).reshape(3, 3)
    return Volume(sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), direction, name)


def check_file_header(path: Path) -> None:
    """Raise InputError where ITK would stumble over the header of a file of one of the READERS."""
    if kind_of(path) == "NIfTI":
        check_nifti_header(path)
    else:
        read_header(path)


def _is_folder(path: Path) -> bool:
    if not can_be_opened(path):
        raise InputError(f"{os.fsencode(path)!r}: the name has characters that are no text; rename it.")
    try:
        return path.is_dir()
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror or error}): check the path.") from error


def _read_file(path: Path) -> tuple[Volume, list[str]]:
    extension = file_type(path)
    if not path.exists():
        raise InputError(f"{path} does not exist: check the path.")
    if extension is None:
        raise InputError(f"{path} is not of a readable type: give {', '.join(READERS)} or a folder of DICOM files.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is an empty file: copy or export it again.")
    if kind_of(path) == "NIfTI":
        return read_nifti(path)
    return _read_with_itk(path, extension)


def _read_with_itk(path: Path, extension: str) -> tuple[Volume, list[str]]:
    header = read_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(_ITK_READERS[kind_of(path)])
    try:
        with quiet_itk():
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise unreadable(path) from error
    check_header(reader, path, _bytes_at_hand(path, extension))
    if reader.GetDimension() > 3:
        reader.SetExtractSize([*reader.GetSize()[:3]] + [0] * (reader.GetDimension() - 3))
    if bytes_per_voxel(reader.GetPixelIDValue()) == 8:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # Hounsfield units need no more, and it halves the memory.
    try:
        with quiet_itk():
            image = reader.Execute()
    except RuntimeError as error:
        raise InputError(
            f"{path} is damaged or incomplete: its voxels cannot be read. Copy or export it again."
        ) from error
    image.SetSpacing([step * header.unit_mm for step in image.GetSpacing()])
    image.SetOrigin([place * header.unit_mm for place in image.GetOrigin()])
    volume = volume_of_image(image, str(path))
    header.check(volume.array)
    return volume, [] if header.oriented else [no_orientation(path)]


def _bytes_at_hand(path: Path, extension: str) -> int:
    """The most bytes of voxels that can come out of a file."""
    if extension in _DETACHED:
        return GZIP_LIMIT * sum(entry.stat().st_size for entry in os.scandir(path.parent) if entry.is_file())
    return path.stat().st_size * GZIP_LIMIT


def check_written(path: Path, voxel_bytes: int) -> None:
    """Compressed writers may not notice a full disk: raises OSError or RuntimeError if an image file that ITK wrote
    does not hold all of its voxels.
    """
    if path.name.endswith(".nii.gz"):
        with open(path, "rb") as file:
            file.seek(-4, os.SEEK_END)
            size = struct.unpack("<I", file.read(4))[0]
        if not 0 <= (size - voxel_bytes) % (1 << 32) < _LONGEST_NIFTI_HEADER:  # in a file that was cut it is anything
            raise OSError(None, "the file came out incomplete; the disk may be full")
    else:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.Execute()
