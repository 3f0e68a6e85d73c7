"""NIfTI-1 and NIfTI-2 files: headers as nibabel understands them, voxels read straight into one array.

Both forms of a place are looked at: where the qform and the sform disagree the sform counts, as in nibabel, nnU-Net and
TotalSegmentator, and the user is told by how much. Voxels are read in chunks, so that a compressed file never needs
more memory than its voxels, and up to the checksum at its end.
"""

from __future__ import annotations

import gzip
import math
import struct
import threading
import zlib
from itertools import product
from pathlib import Path
from typing import IO

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.file_headers import GZIP_LIMIT, check_size, damaged, is_gzipped, unreadable
from FlareSegmentLib.volume import Volume

_HEADER_BYTES = {1: 348, 2: 540}
_DAMAGE = (OSError, EOFError, zlib.error, struct.error, ValueError, LookupError, OverflowError)
_CHUNK = 1 << 22
_IMPORTING = threading.Lock()
_SPARE_BYTES = 1 << 24  # behind the voxels; what is longer is not looked through
_UNITS_IN_MM = {"meter": 1000.0, "micron": 0.001}
_SLANT_IN_VOXELS = 1.0  # places may move by this much when axes are straightened without a word


def read_nifti(path: Path) -> tuple[Volume, list[str]]:
    """Read a .nii or .nii.gz file.

    Returns:
        The volume, its voxels scaled as the header says (a slope of 0 scales nothing), and warnings for the user.

    Raises:
        InputError: one clear line.
    """
    try:
        header_error = _nibabel().spatialimages.HeaderDataError
    except ImportError as error:
        raise InputError(f"{path}: reading NIfTI files needs the package nibabel: pip install nibabel.") from error
    try:
        with _opened(path) as stream:
            header, version = _read_header(stream)
            shape = _shape(header, path)
            dtype = header.get_data_dtype()
            slope, intercept = header.get_slope_inter()
            affine, warnings = _affine(header, path, shape)
            start = int(header["vox_offset"])
    except (*_DAMAGE, header_error) as error:
        raise unreadable(path) from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        kind = "complex" if dtype.kind == "c" else "color or vector"
        raise InputError(f"{path} is a {kind} image: a CT has one number per voxel. Choose the CT itself.")
    if start < 0:
        raise unreadable(path)
    if start < _HEADER_BYTES[version]:
        start = _HEADER_BYTES[version] + 4
    length = path.stat().st_size
    check_size(path, shape, dtype.itemsize, length * GZIP_LIMIT if is_gzipped(path) else length - start)
    array = _voxels(path, dtype, start, math.prod(shape)).reshape(shape[::-1])
    volume = Volume.from_ijk_to_ras(_scaled(array, slope, intercept), affine, str(path))
    return volume, warnings


def check_nifti_header(path: Path) -> None:
    """Raise InputError where a file has no header of NIfTI that a reader could follow."""
    header_error = _nibabel().spatialimages.HeaderDataError
    try:
        with _opened(path) as stream:
            header, _ = _read_header(stream)
            _dimensions(header)
            header.get_data_dtype()
    except (*_DAMAGE, header_error) as error:
        raise unreadable(path) from error


def _nibabel():
    """The package, imported where it is needed. Its modules import each other: threads that begin with different ones
    at once would see halves of them.
    """
    with _IMPORTING:
        import nibabel.nifti1
        import nibabel.nifti2
        import nibabel.spatialimages

        return nibabel


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if is_gzipped(path) else open(path, "rb")  # type: ignore[return-value]


def _read_header(stream: IO[bytes]):
    """nibabel's header, and 1 or 2 for its version. Raises ValueError where it is none of a single file."""
    nibabel = _nibabel()
    block = _read(stream, _HEADER_BYTES[1])
    for order in "<>":
        size = struct.unpack_from(f"{order}i", block)[0]
        if size == _HEADER_BYTES[1]:
            header, version, magic = nibabel.nifti1.Nifti1Header(block, order, check=False), 1, b"n+1"
            break
        if size == _HEADER_BYTES[2]:
            block += _read(stream, _HEADER_BYTES[2] - _HEADER_BYTES[1])
            header, version, magic = nibabel.nifti2.Nifti2Header(block, order, check=False), 2, b"n+2"
            break
    else:
        raise ValueError("size of the header")
    if not header["magic"].item().startswith(magic):
        raise ValueError("magic")
    return header, version


def _read(stream: IO[bytes], count: int) -> bytes:
    """That many bytes. Raises ValueError where the file ends before."""
    block = stream.read(count)
    if len(block) < count:
        raise ValueError("the file ends within its header")
    return block


def _dimensions(header) -> list[int]:
    """Sizes along all axes. Raises ValueError."""
    count, *sizes = (int(value) for value in header["dim"])
    if not 1 <= count <= 7 or min(sizes[:count]) < 1:
        raise ValueError("dimensions")
    return sizes[:count]


def _shape(header, path: Path) -> tuple[int, int, int]:
    """(x, y, z) voxels. Raises ValueError, and InputError for what is no single volume."""
    sizes = _dimensions(header)
    count = len(sizes)
    text = " x ".join(str(size) for size in sizes)
    if count > 4 and math.prod(sizes[4:]) > 1 and sizes[3] == 1:
        raise InputError(f"{path} is a color or vector image: a CT has one number per voxel. Choose the CT itself.")
    if math.prod(sizes[3:]) > 1:
        raise InputError(f"{path} holds several volumes ({text}): export the one to segment as a file of its own.")
    if count < 3 or min(sizes[:3]) < 2:
        raise InputError(f"{path} is a two-dimensional image ({text}): a CT volume with many slices is needed.")
    return sizes[0], sizes[1], sizes[2]


def _affine(header, path: Path, shape: tuple[int, int, int]) -> tuple[np.ndarray, list[str]]:
    """4x4 from voxels (i, j, k) to RAS in mm, and what is to be said about it."""
    if not all(0 < size < math.inf for size in header["pixdim"][1:4]):
        raise InputError(f"{path} cannot be used: a voxel size in its header is not positive; repair the header.")
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # 0 stands for 1
    sform = header.get_sform() if header["sform_code"] > 0 else None
    qform = header.get_qform() if header["qform_code"] > 0 else None
    for form in (sform, qform):
        if form is not None and not (np.all(np.isfinite(form)) and abs(np.linalg.det(form[:3, :3])) > 0):
            raise InputError(
                f"{path} cannot be used: the position or the axes in its header are no numbers or singular; "
                "repair the header."
            )
    warnings = []
    if sform is None and qform is None:
        affine = header.get_base_affine()
        warnings.append(no_orientation(path))
    else:
        affine = sform if sform is not None else qform
    scale = _UNITS_IN_MM.get(_unit(header), 1.0)
    affine = np.diag([scale, scale, scale, 1.0]) @ affine
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if sform is not None and qform is not None:
        warnings += _disagreement(path, affine, np.diag([scale, scale, scale, 1.0]) @ qform, shape, float(steps.min()))
    straight = _at_right_angles(affine, shape)
    if _largest_distance(straight, affine, shape) <= _SLANT_IN_VOXELS * float(steps.min()):
        return straight, warnings
    tilt = float(np.degrees(np.arcsin(np.clip(np.abs(_cosines(affine)).max(), 0, 1))))
    warnings.append(
        f"The axes are not at right angles but slanted by {tilt:.1f} degrees, as with a tilted gantry: they were kept "
        "as they are."
    )
    return affine, warnings


def no_orientation(path: Path) -> str:
    """The warning about a file that does not say how the patient lies."""
    return (
        f"{path.name} does not say how the patient lies: left and right may be swapped, front and back, head and feet "
        "too. Check the orientation."
    )


def _unit(header) -> str:
    try:
        return str(header.get_xyzt_units()[0])
    except KeyError:  # a code that stands for nothing
        return "unknown"


def _disagreement(
    path: Path, sform: np.ndarray, qform: np.ndarray, shape: tuple[int, int, int], smallest_mm: float
) -> list[str]:
    distance = _largest_distance(sform, qform, shape)
    if distance <= min(0.5, 0.5 * smallest_mm):
        return []
    mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    sides = "; one of them is mirrored, so left and right may be swapped" if mirrored else ""
    return [
        f"{path.name} names two places: its sform and qform disagree by up to {distance:.1f} mm{sides}. The sform was "
        "taken; check the place and the sides, and repair the header."
    ]


def _largest_distance(first: np.ndarray, second: np.ndarray, shape: tuple[int, int, int]) -> float:
    """How far two affines put the same voxel apart, at most, mm."""
    corners = np.array([[*corner, 1.0] for corner in product(*((0, size - 1) for size in shape))])
    return float(np.linalg.norm(((first - second) @ corners.T)[:3], axis=0).max())


def _cosines(affine: np.ndarray) -> np.ndarray:
    """Cosines of the angles between the three pairs of axes."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return (axes.T @ axes)[np.triu_indices(3, 1)]


def _at_right_angles(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The nearest affine with axes at right angles (polar decomposition) and the same steps and center."""
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(affine[:3, :3] / steps)
    straight = np.eye(4)
    straight[:3, :3] = left @ right * steps
    center = (np.array(shape) - 1) / 2
    straight[:3, 3] = affine[:3, :3] @ center + affine[:3, 3] - straight[:3, :3] @ center
    if np.abs(_cosines(affine)).max() < 1e-6:  # as it is, to the last digit
        return affine
    return straight


def _voxels(path: Path, dtype: np.dtype, start: int, count: int) -> np.ndarray:
    """The stored numbers in the machine's byte order, (count,). Raises InputError where the file is not whole."""
    array = np.empty(count, dtype)
    view = memoryview(array).cast("B")
    filled = 0
    try:
        with _opened(path) as stream:
            stream.seek(start)
            while filled < len(view):
                read = stream.readinto(view[filled : filled + _CHUNK])  # type: ignore[attr-defined]
                if not read:
                    raise InputError(f"{path} is damaged or incomplete: it ends early. Copy or export it again.")
                filled += read
            spare = _SPARE_BYTES if is_gzipped(path) else 0
            while spare > 0 and (chunk := stream.read(1 << 20)):  # the checksum stands at the end
                spare -= len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path) from error
    return array if dtype.isnative else array.byteswap(inplace=True).view(dtype.newbyteorder("="))


def _scaled(array: np.ndarray, slope: float | None, intercept: float | None) -> np.ndarray:
    """Voxels times slope plus intercept. Numbers of 8 bytes become float32: Hounsfield units need no more."""
    slope, intercept = (1.0, 0.0) if slope is None or intercept is None else (slope, intercept)
    if array.dtype.itemsize == 8:
        array = array.astype(np.float32)
    if (slope, intercept) == (1.0, 0.0):
        return array
    array = array.astype(np.float32, copy=False)
    if slope != 1.0:
        array *= np.float32(slope)
    array += np.float32(intercept)
    return array
