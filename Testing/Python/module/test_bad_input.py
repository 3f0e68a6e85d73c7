"""Strangers' files by the hundred: damaged, mislabeled, of odd geometry, with strange values, names and options.

Each case is one run of the headless script in this process (`bad_input.py`): a right result, or one clear line, status
2 and nothing written. The number of cases is printed at the end of the run.
"""

from __future__ import annotations

import bz2
import gzip
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bad_input import LIVER, ORIGIN, SHAPE, SPACING, ct_array, ct_image, liver_dice, save
from test_volume import SIGNED_PERMUTATIONS, rotation

TYPES = ("nii", "nii.gz", "nrrd", "nhdr", "mha", "mhd")
GIB = 1 << 30


@dataclass(frozen=True)
class Case:
    """A name, what makes the file (and returns it, or the whole argument list), and how the run must end."""

    name: str
    make: Callable[[Path], object]
    expected: str
    words: str = ""


def run_case(case: Case, judge, tmp_path: Path) -> Path | None:
    """Make the case and let the judge run it; returns the folder of a right result."""
    source, results = tmp_path / "in", tmp_path / "results"
    source.mkdir()
    made = case.make(source)
    arguments = made if isinstance(made, list) else [made]
    ending = judge(source, results, arguments, case.expected, case.words)
    return results if ending == "right" else None


def by_name(cases: list[Case]):
    assert len({case.name for case in cases}) == len(cases)
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


# Damaged files ------------------------------------------------------------------------------------


def voxel_file(path: Path) -> Path:
    """The file that holds an image's voxels."""
    if path.suffix not in (".nhdr", ".mhd"):
        return path
    return next(other for other in path.parent.iterdir() if other.name != path.name)


def truncated(extension: str, share: float) -> Case:
    def make(folder: Path) -> Path:
        path = save(folder / f"ct.{extension}")
        data = voxel_file(path)
        content = data.read_bytes()
        data.write_bytes(content[: int(len(content) * share)] if share < 1 else content[:-1])
        return path

    # The last byte of a gzip stream is a size that says nothing new: readers may do without it.
    expected = "either" if share == 1 and extension in ("nrrd", "nhdr") else "refused"
    return Case(f"{extension} cut at {share:g}", make, expected, f"ct.{extension}")


def flipped(extension: str, seed: int) -> Case:
    """One bit of the header flipped: the file may mean something else now, or nothing."""

    def make(folder: Path) -> Path:
        path = save(folder / f"ct.{extension}", compressed=False)
        content = bytearray(gzip.decompress(path.read_bytes()) if extension == "nii.gz" else path.read_bytes())
        place = np.random.default_rng(seed)
        content[int(place.integers(0, min(348, len(content))))] ^= 1 << int(place.integers(0, 8))
        path.write_bytes(gzip.compress(content) if extension == "nii.gz" else content)
        return path

    return Case(f"{extension} header bit {seed}", make, "either")


def flipped_packed(extension: str, seed: int) -> Case:
    """One bit of compressed voxels flipped: zlib's checksums find it."""

    def make(folder: Path) -> Path:
        path = save(folder / f"ct.{extension}")
        data = voxel_file(path)
        content = bytearray(data.read_bytes())
        place = int(np.random.default_rng(seed).integers(len(content) // 2, len(content) - 8))
        content[place] ^= 1 << (seed % 8)
        data.write_bytes(content)
        return path

    return Case(f"{extension} voxel bit {seed}", make, "refused", f"ct.{extension}")


PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(40)
STRANGE_CONTENTS = {
    "nothing": b"",
    "one byte": b"\0",
    "text": b"Dear radiologist,\nplease find enclosed\n",
    "picture": PNG,
    "zeros": bytes(5000),
    "noise": np.random.default_rng(1).bytes(5000),
    "packed text": gzip.compress(b"hello " * 500),
    "web page": b"<!DOCTYPE html><html><body>404</body></html>",
    "archive": b"PK\x03\x04" + bytes(300),
    "git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}


def strange(extension: str, kind: str) -> Case:
    def make(folder: Path) -> Path:
        path = folder / f"ct.{extension}"
        path.write_bytes(STRANGE_CONTENTS[kind])
        return path

    return Case(f"{kind} called {extension}", make, "refused", f"ct.{extension}")


def mislabeled(real: str, called: str) -> Case:
    def make(folder: Path) -> Path:
        path = save(folder / f"real.{real}")
        return path.rename(folder / f"ct.{called}")

    return Case(f"{real} called {called}", make, "either", f"ct.{called}")


DAMAGED = [
    *(truncated(extension, share) for extension in TYPES for share in (0, 0.01, 0.3, 0.6, 0.9, 0.999, 1)),
    *(flipped(extension, seed) for extension in TYPES for seed in range(8)),
    *(flipped_packed(extension, seed) for extension in ("nii.gz", "nrrd", "mha") for seed in range(5)),
    *(strange(extension, kind) for extension in TYPES for kind in STRANGE_CONTENTS),
    *(
        mislabeled(real, called)
        for real in ("nii", "nii.gz", "nrrd", "mha")
        for called in TYPES
        if real != called and (real, called) != ("nrrd", "nhdr") and (real, called) != ("mha", "mhd")
    ),
]


@by_name(DAMAGED)
def test_damaged_and_mislabeled_files(case: Case, judge, tmp_path: Path) -> None:
    results = run_case(case, judge, tmp_path)
    if results is not None and " called " in case.name:  # what the file is must not depend on its name
        assert liver_dice(labels_of(results)) > 0.95


def labels_of(results: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(label_image(results))


def label_image(results: Path) -> sitk.Image:
    return sitk.ReadImage(str(next(results.glob("*_labels.nii.gz"))))


# NIfTI headers ------------------------------------------------------------------------------------

SHORT, INT, FLOAT = "<{}h", "<{}i", "<{}f"


def nifti(name: str, expected: str, *fields: tuple[int, str, object], words: str = "", packed: bool = False) -> Case:
    """A NIfTI file with other values at some offsets of its header (nifti1.h)."""

    def make(folder: Path) -> Path:
        path = save(folder / "ct.nii")
        content = bytearray(path.read_bytes())
        for offset, layout, value in fields:
            values = value if isinstance(value, tuple) else (value,)
            struct.pack_into(layout.format(len(values)), content, offset, *values)
        if packed:
            path.unlink()
            path = folder / "ct.nii.gz"
        path.write_bytes(gzip.compress(content) if packed else content)
        return path

    return Case(f"nifti {name}{' packed' if packed else ''}", make, expected, words)


DIMENSIONS, TYPE, PIXEL_SIZES, DATA_START, SLOPE = 40, 70, 76, 108, 112
UNITS, FORMS, QUATERNION, OFFSETS, AXES, MAGIC = 123, 252, 256, 268, 280, 344
NAN, INF = float("nan"), float("inf")

NIFTI = [
    case
    for packed in (False, True)
    for case in [
        nifti("no dimensions", "refused", (DIMENSIONS, SHORT, 0), packed=packed),
        nifti("negative dimensions", "refused", (DIMENSIONS, SHORT, -3), packed=packed),
        nifti("nine dimensions", "refused", (DIMENSIONS, SHORT, 9), packed=packed),
        nifti("one dimension", "refused", (DIMENSIONS, SHORT, 1), packed=packed),
        nifti("two dimensions", "refused", (DIMENSIONS, SHORT, 2), packed=packed),
        nifti("zero columns", "refused", (DIMENSIONS + 2, SHORT, 0), packed=packed),
        nifti("negative columns", "refused", (DIMENSIONS + 2, SHORT, -40), packed=packed),
        nifti("negative slices", "refused", (DIMENSIONS + 6, SHORT, -24), packed=packed),
        nifti("huge", "refused", (DIMENSIONS, SHORT, (3, 32767, 32767, 32767)), words="ct.nii", packed=packed),
        nifti("huge in seven", "refused", (DIMENSIONS, SHORT, (7, *[32767] * 7)), words="ct.nii", packed=packed),
        nifti("one more slice", "refused", (DIMENSIONS + 6, SHORT, 25), words="incomplete", packed=packed),
        nifti("two volumes", "refused", (DIMENSIONS, SHORT, (4, 40, 36, 12, 2)), words="several", packed=packed),
        nifti("five dimensions of one", "right", (DIMENSIONS, SHORT, (5, 40, 36, 24, 1, 1)), packed=packed),
        nifti("vector", "refused", (DIMENSIONS, SHORT, (5, 40, 36, 8, 1, 3)), packed=packed),
        nifti("type 0", "refused", (TYPE, SHORT, 0), packed=packed),
        nifti("type bit", "refused", (TYPE, SHORT, 1), packed=packed),
        nifti("type color", "refused", (TYPE, SHORT, (128, 24)), packed=packed),
        nifti("type complex", "refused", (TYPE, SHORT, (32, 64)), packed=packed),
        nifti("type float128", "refused", (TYPE, SHORT, (1536, 128)), packed=packed),
        nifti("type unknown", "refused", (TYPE, SHORT, 12345), packed=packed),
        nifti("type double", "refused", (TYPE, SHORT, (64, 64)), words="incomplete", packed=packed),
        nifti("pixel size 0", "refused", (PIXEL_SIZES + 4, FLOAT, 0.0), words="voxel size", packed=packed),
        nifti("pixel size -1", "refused", (PIXEL_SIZES + 8, FLOAT, -1.0), words="voxel size", packed=packed),
        nifti("pixel size NaN", "refused", (PIXEL_SIZES + 12, FLOAT, NAN), words="voxel size", packed=packed),
        nifti("pixel size infinite", "refused", (PIXEL_SIZES + 4, FLOAT, INF), packed=packed),
        nifti("data start negative", "refused", (DATA_START, FLOAT, -1e6), packed=packed),
        nifti("data start far", "refused", (DATA_START, FLOAT, 1e9), packed=packed),
        nifti("data start NaN", "refused", (DATA_START, FLOAT, NAN), packed=packed),
        nifti("slope NaN", "either", (SLOPE, FLOAT, (NAN, 0.0)), packed=packed),
        nifti("slope infinite", "either", (SLOPE, FLOAT, (INF, 0.0)), packed=packed),
        nifti("intercept infinite", "either", (SLOPE, FLOAT, (1.0, INF)), packed=packed),
        nifti("slope zero", "right", (SLOPE, FLOAT, (0.0, 0.0)), packed=packed),
        nifti("slope a thousandth", "refused", (SLOPE, FLOAT, (0.001, 0.0)), words="CT", packed=packed),
        nifti("axes NaN", "refused", (FORMS, SHORT, (0, 1)), (AXES, FLOAT, (NAN,) * 12), packed=packed),
        nifti("axes zero", "refused", (FORMS, SHORT, (0, 1)), (AXES, FLOAT, (0.0,) * 12), packed=packed),
        nifti(
            "axes singular",
            "refused",
            (FORMS, SHORT, (0, 1)),
            (AXES, FLOAT, (3.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0, 0.0)),
            packed=packed,
        ),
        nifti("place NaN", "refused", (FORMS, SHORT, (1, 0)), (OFFSETS, FLOAT, (NAN,) * 3), packed=packed),
        nifti("quaternion NaN", "refused", (FORMS, SHORT, (1, 0)), (QUATERNION, FLOAT, (NAN,) * 3), packed=packed),
        nifti("quaternion long", "either", (FORMS, SHORT, (1, 0)), (QUATERNION, FLOAT, (9.0, 9.0, 9.0)), packed=packed),
        nifti("no forms", "right", (FORMS, SHORT, (0, 0)), packed=packed),
        nifti("magic", "refused", (MAGIC, "<{}i", 0x0BADCAFE), packed=packed),
        nifti("magic of two files", "refused", (MAGIC, "<{}i", 0x0031696E), packed=packed),
        nifti("header size", "refused", (0, INT, 347), packed=packed),
        nifti("big-endian size", "refused", (0, ">{}i", 348), packed=packed),
        nifti("unknown units", "right", (UNITS, "<{}b", 77), packed=packed),
    ]
]


@by_name(NIFTI)
def test_nifti_headers(case: Case, judge, tmp_path: Path) -> None:
    results = run_case(case, judge, tmp_path)
    if results is not None and case.expected == "right":
        assert liver_dice(labels_of(results)) > 0.95


# NRRD and MetaImage headers -----------------------------------------------------------------------


def edited(name: str, extension: str, expected: str, *changes: tuple[str, str], words: str = "") -> Case:
    """An image with uncompressed voxels, in whose text header the line of a key is another one ('' removes it)."""

    def make(folder: Path) -> Path:
        path = save(folder / f"ct.{extension}", compressed=False)
        content = path.read_bytes()
        end = content.index(b"\n\n") + 2 if extension == "nrrd" else content.index(b"LOCAL\n") + 6
        lines = content[:end].decode().rstrip("\n").splitlines()
        for key, line in changes:
            hits = [index for index, old in enumerate(lines) if old.startswith(key)]
            assert len(hits) == 1, (key, lines)
            lines[hits[0] : hits[0] + 1] = [line] if line else []
        path.write_bytes(("\n".join(lines) + "\n" + ("\n" if extension == "nrrd" else "")).encode() + content[end:])
        return path

    return Case(f"{extension} {name}", make, expected, words)


def outside_file(extension: str, name: str) -> Case:
    """A header whose voxels are to be read from a file elsewhere on the computer."""

    def make(folder: Path) -> Path:
        secret = folder / "private" / "secret.raw"
        secret.parent.mkdir()
        ct_array().tofile(secret)
        (folder / "sent").mkdir()
        place = str(secret) if name == "absolute" else "../private/secret.raw"
        path = save(folder / "sent" / f"ct.{extension}", compressed=False)
        own = voxel_file(path).name
        path.write_text(path.read_text().replace(own, place))
        return path

    return Case(f"{extension} with voxels at an {name} path", make, "refused", "folder")


HEADERS = [
    edited("magic", "nrrd", "refused", ("NRRD", "NRRX0004")),
    edited("huge", "nrrd", "refused", ("sizes:", "sizes: 99999 99999 99999"), words="more than can be segmented"),
    edited("overflowing", "nrrd", "refused", ("sizes:", "sizes: 4294967296 4294967296 4294967296")),
    edited("not a number", "nrrd", "refused", ("sizes:", "sizes: forty 36 24")),
    edited("negative size", "nrrd", "refused", ("sizes:", "sizes: -40 36 24")),
    edited("size zero", "nrrd", "refused", ("sizes:", "sizes: 0 36 24")),
    edited("larger", "nrrd", "refused", ("sizes:", "sizes: 40 36 25"), words="incomplete"),
    edited("no sizes", "nrrd", "refused", ("sizes:", "")),
    edited("no type", "nrrd", "refused", ("type:", "")),
    edited("unknown type", "nrrd", "refused", ("type:", "type: quaternion")),
    edited("blocks", "nrrd", "refused", ("type:", "type: block\nblock size: 2")),
    edited("double", "nrrd", "refused", ("type:", "type: double"), words="incomplete"),
    edited("dimension 4", "nrrd", "refused", ("dimension:", "dimension: 4")),
    edited("dimension 17", "nrrd", "refused", ("dimension:", "dimension: 17")),
    edited("dimension 2", "nrrd", "refused", ("dimension:", "dimension: 2")),
    edited("no encoding", "nrrd", "refused", ("encoding:", "")),
    edited("unknown encoding", "nrrd", "refused", ("encoding:", "encoding: rot13")),
    edited("said to be packed", "nrrd", "either", ("encoding:", "encoding: gzip")),
    edited("said to be bzip2", "nrrd", "refused", ("encoding:", "encoding: bzip2")),
    edited("said to be text", "nrrd", "refused", ("encoding:", "encoding: ascii")),
    edited("said to be hexadecimal", "nrrd", "refused", ("encoding:", "encoding: hex")),
    edited("no endianness", "nrrd", "refused", ("endian:", "")),
    edited("other endianness", "nrrd", "either", ("endian:", "endian: big")),
    edited("NaN axes", "nrrd", "refused", ("space directions:", "space directions: (nan,0,0) (0,3,0) (0,0,4)")),
    edited("singular axes", "nrrd", "refused", ("space directions:", "space directions: (3,0,0) (3,0,0) (0,0,4)")),
    edited("zero axes", "nrrd", "refused", ("space directions:", "space directions: (0,0,0) (0,0,0) (0,0,0)")),
    edited("axis none", "nrrd", "refused", ("space directions:", "space directions: none (0,3,0) (0,0,4)")),
    edited("garbled axes", "nrrd", "refused", ("space directions:", "space directions: (3,0 0) 0,3,0")),
    edited("NaN origin", "nrrd", "refused", ("space origin:", "space origin: (nan,0,0)")),
    edited("unknown space", "nrrd", "either", ("space:", "space: outer")),
    edited("color kinds", "nrrd", "either", ("kinds:", "kinds: RGB-color domain domain")),
    edited("left-handed", "nrrd", "right", ("space directions:", "space directions: (3,0,0) (0,3,0) (0,0,-4)")),
    edited("RAS", "nrrd", "right", ("space:", "space: right-anterior-superior")),
    edited("no keys", "nrrd", "refused", ("NRRD0004", "NRRD0004\n\n")),
    edited("huge", "mha", "refused", ("DimSize", "DimSize = 99999 99999 99999"), words="more than can be segmented"),
    edited("overflowing", "mha", "refused", ("DimSize", "DimSize = 4294967296 4294967296 4294967296")),
    edited("negative size", "mha", "refused", ("DimSize", "DimSize = -40 36 24")),
    edited("size zero", "mha", "refused", ("DimSize", "DimSize = 0 36 24")),
    edited("size in words", "mha", "refused", ("DimSize", "DimSize = forty 36 24")),
    edited("larger", "mha", "refused", ("DimSize", "DimSize = 40 36 25"), words="incomplete"),
    edited("no size", "mha", "refused", ("DimSize", "")),
    edited("NDims 2", "mha", "refused", ("NDims", "NDims = 2")),
    edited("NDims 4", "mha", "refused", ("NDims", "NDims = 4")),
    edited("NDims 99", "mha", "refused", ("NDims", "NDims = 99")),
    edited("NDims -1", "mha", "refused", ("NDims", "NDims = -1")),
    edited("no NDims", "mha", "refused", ("NDims", "")),
    edited("no type", "mha", "refused", ("ElementType", "")),
    edited("unknown type", "mha", "refused", ("ElementType", "ElementType = MET_QUATERNION")),
    edited("double", "mha", "refused", ("ElementType", "ElementType = MET_DOUBLE"), words="incomplete"),
    edited("array type", "mha", "either", ("ElementType", "ElementType = MET_SHORT_ARRAY")),
    edited("channels", "mha", "refused", ("ElementType", "ElementNumberOfChannels = 3\nElementType = MET_SHORT")),
    edited("spacing 0", "mha", "refused", ("ElementSpacing", "ElementSpacing = 0 3 4")),
    edited("spacing -3", "mha", "refused", ("ElementSpacing", "ElementSpacing = -3 3 4")),
    edited("spacing NaN", "mha", "refused", ("ElementSpacing", "ElementSpacing = nan 3 4")),
    edited("spacing of two", "mha", "either", ("ElementSpacing", "ElementSpacing = 3 3")),
    edited("no spacing", "mha", "either", ("ElementSpacing", "")),
    edited("singular axes", "mha", "refused", ("TransformMatrix", "TransformMatrix = 1 0 0 1 0 0 0 0 1")),
    edited("zero axes", "mha", "refused", ("TransformMatrix", "TransformMatrix = 0 0 0 0 0 0 0 0 0")),
    edited("NaN axes", "mha", "refused", ("TransformMatrix", "TransformMatrix = nan 0 0 0 1 0 0 0 1")),
    edited("origin NaN", "mha", "refused", ("Offset", "Offset = nan 0 0")),
    edited("other endianness", "mha", "either", ("BinaryDataByteOrderMSB", "BinaryDataByteOrderMSB = True")),
    edited("text voxels", "mha", "refused", ("BinaryData ", "BinaryData = False")),
    edited("said to be packed", "mha", "refused", ("CompressedData", "CompressedData = True")),
    edited("unknown key", "mha", "either", ("Offset", "Colour = blue")),
    edited("mesh", "mha", "either", ("ObjectType", "ObjectType = Mesh")),
    *(outside_file(extension, name) for extension in ("nhdr", "mhd") for name in ("absolute", "relative")),
]


@by_name(HEADERS)
def test_text_headers(case: Case, judge, tmp_path: Path) -> None:
    results = run_case(case, judge, tmp_path)
    if results is not None and case.expected == "right":
        assert liver_dice(labels_of(results)) > 0.95


def nothing_beside(extension: str) -> Case:
    def make(folder: Path) -> Path:
        path = save(folder / f"ct.{extension}")
        voxel_file(path).unlink()
        return path

    return Case(f"{extension} without its voxels", make, "refused", f"ct.{extension}")


def pointing(name: str, extension: str, value: str) -> Case:
    def make(folder: Path) -> Path:
        path = save(folder / f"ct.{extension}", compressed=False)
        path.write_text(path.read_text().replace(voxel_file(path).name, value))
        return path

    return Case(f"{extension} pointing at {name}", make, "refused", f"ct.{extension}")


DETACHED = [
    *(nothing_beside(extension) for extension in ("nhdr", "mhd")),
    *(
        pointing(name, extension, value)
        for extension in ("nhdr", "mhd")
        for name, value in {
            "itself": f"ct.{extension}",
            "a device": "/dev/zero",
            "a list": "LIST",
            "a pattern": "slice%03d.raw 1 24 1",
            "a folder": ".",
            "standard input": "-",
            "an address": "http://localhost/ct.raw",
        }.items()
    ),
]


@by_name(DETACHED)
def test_detached_voxels(case: Case, judge, tmp_path: Path) -> None:
    run_case(case, judge, tmp_path)


# Bombs --------------------------------------------------------------------------------------------


def zeros_packed(size: int, kind: str = "gzip") -> bytes:
    """`size` zero bytes compressed, made without holding them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, {"gzip": 31, "zlib": 15}[kind])
    return b"".join([*(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)), packer.flush()])


def bomb_after_the_voxels(folder: Path) -> Path:
    """Right voxels, then 200 MB of zeros that nobody asked for."""
    content = save(folder / "ct.nii").read_bytes()
    (folder / "ct.nii").unlink()
    path = folder / "ct.nii.gz"
    path.write_bytes(gzip.compress(content) + zeros_packed(200 << 20))
    return path


def nifti_bomb(columns: int, rows: int, slices: int, packed: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        header = bytearray(save(folder / "ct.nii").read_bytes()[:352])
        (folder / "ct.nii").unlink()
        struct.pack_into("<4h", header, DIMENSIONS, 3, columns, rows, slices)
        path = folder / "bomb.nii.gz"
        path.write_bytes(gzip.compress(header) + zeros_packed(packed))
        return path

    return make


def nrrd_bomb(sizes: str, packed: int, encoding: str = "gzip") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        header = f"NRRD0004\ntype: short\ndimension: 3\nsizes: {sizes}\nencoding: {encoding}\nendian: little\n\n"
        data = zeros_packed(packed) if encoding == "gzip" else bz2.compress(bytes(packed))
        path = folder / "bomb.nrrd"
        path.write_bytes(header.encode() + data)
        return path

    return make


def meta_bomb(size: str, packed: int) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        data = zeros_packed(packed, "zlib")
        header = (
            "ObjectType = Image\nNDims = 3\nBinaryData = True\nCompressedData = True\n"
            f"CompressedDataSize = {len(data)}\nElementSpacing = 1 1 1\nDimSize = {size}\n"
            "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
        )
        path = folder / "bomb.mha"
        path.write_bytes(header.encode() + data)
        return path

    return make


BOMBS = [
    Case("more after the voxels", bomb_after_the_voxels, "right"),
    Case("nifti of 2000 slices", nifti_bomb(2000, 2000, 2000, 32 << 20), "refused", "bomb.nii.gz"),
    Case("nifti of 32767 slices", nifti_bomb(4096, 4096, 32767, 32 << 20), "refused", "bomb.nii.gz"),
    Case("nifti of one value", nifti_bomb(512, 512, 256, 128 << 20), "refused", "bomb.nii.gz"),
    Case("nrrd of 2000 slices", nrrd_bomb("2000 2000 2000", 32 << 20), "refused", "bomb.nrrd"),
    Case("nrrd of few slices", nrrd_bomb("40 36 24", 160 << 20), "refused", "bomb.nrrd"),
    Case("nrrd bzip2", nrrd_bomb("1000 1000 1000", 64 << 20, "bzip2"), "refused", "bomb.nrrd"),
    Case("mha of 2000 slices", meta_bomb("2000 2000 2000", 32 << 20), "refused", "bomb.mha"),
    Case("mha of few slices", meta_bomb("40 36 24", 160 << 20), "refused", "bomb.mha"),
]


@by_name(BOMBS)
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak memory is read from Linux's /proc")
def test_bombs_do_not_go_off(case: Case, judge, tmp_path: Path) -> None:
    """No more memory than a CT of the promised size takes, and far less where the promise cannot be kept."""
    before = current_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run_case(case, judge, tmp_path)
    assert peak_memory() - before < 0.4 * GIB, f"{(peak_memory() - before) / GIB:.2f} GiB"


def status_field(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) << 10
    raise KeyError(name)


def current_memory() -> int:
    return status_field("VmRSS")


def peak_memory() -> int:
    return status_field("VmHWM")


# Values and geometry ------------------------------------------------------------------------------


def typed(dtype: str, extension: str) -> Case:
    array = ct_array(np.float64)
    if dtype in ("int8", "uint8"):  # 8 bits hold no air
        limits = np.iinfo(dtype)
        array = array.clip(limits.min, limits.max)
    elif dtype.startswith("uint"):
        array = array + 1024  # as scanners store it; without its intercept it is no CT
    expected = "refused" if dtype.startswith("u") else "either" if dtype == "int8" else "right"
    return Case(
        f"{dtype} {extension}", lambda folder: save(folder / f"ct.{extension}", ct_image(array.astype(dtype))), expected
    )


def valued(name: str, expected: str, change: Callable[[np.ndarray], object], words: str = "ct.nrrd") -> Case:
    """The CT as float64 with other values; `change` works in place or returns another array."""

    def make(folder: Path) -> Path:
        array = ct_array(np.float64)
        changed = change(array)
        image = ct_image(array if changed is None else changed)
        return save(folder / "ct.nrrd", sitk.Cast(image, sitk.sitkFloat32))

    return Case(name, make, expected, words if expected == "refused" else "")


def put(value: float, place: tuple = (3, 4, 5)) -> Callable[[np.ndarray], None]:
    return lambda array: array.__setitem__(place, value)


def noise(kind: str, *parameters: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda array: getattr(np.random.default_rng(0), kind)(*parameters, SHAPE)


VALUES = [
    *(
        typed(dtype, extension)
        for dtype in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float32", "float64")
        for extension in ("nii.gz", "nii", "nrrd", "mha")
    ),
    valued("one NaN", "refused", put(np.nan), "NaN"),
    valued("one infinity", "refused", put(np.inf), "infinite"),
    valued("one minus infinity", "refused", put(-np.inf), "infinite"),
    valued("all NaN", "refused", lambda array: array * np.nan, "NaN"),
    valued("largest float", "either", put(3e38)),
    valued("all zero", "refused", lambda array: array * 0, "empty"),
    valued("all air", "refused", lambda array: array * 0 - 1000, "empty"),
    *(
        valued(f"padding {value}", "right", lambda array, value=value: np.where(array < -900, value, array))
        for value in (-1024, -2000, -2048, -3024, -3071, -32768)
    ),
    valued("padding at the corners", "right", put(-3024, (slice(None), slice(0, 2), slice(0, 2)))),
    valued("metal", "right", put(30000, (slice(8, 10), slice(28, 30), slice(8, 10)))),
    valued("12 bit metal", "right", put(3071, (slice(8, 10), slice(28, 30), slice(8, 10)))),
    valued("unsigned CT", "refused", lambda array: array + 1024, "rescale intercept"),
    valued("CT in thousands", "refused", lambda array: array / 1000),
    valued("CT from 0 to 1", "refused", lambda array: (array + 1000) / 2000),
    valued("CT from 0 to 255", "refused", lambda array: ((array + 200) / 500).clip(0, 1) * 255),
    valued("windowed CT", "either", lambda array: array.clip(-160, 240)),
    valued("magnetic resonance", "refused", noise("gamma", 2.0, 120.0)),
    valued("normalized magnetic resonance", "refused", noise("normal", 0.0, 1.0)),
    valued("positron emission", "refused", noise("gamma", 1.0, 2.0)),
    valued("positron emission in Bq/ml", "refused", noise("gamma", 1.0, 9000.0)),
    valued("X-ray", "refused", lambda array: np.random.default_rng(0).uniform(0, 4095, SHAPE)),
    valued("ultrasound", "refused", lambda array: np.random.default_rng(0).integers(0, 256, SHAPE).astype(float)),
    valued("label map", "refused", lambda array: (array > 100).astype(float)),
    valued(
        "label map of many", "refused", lambda array: np.random.default_rng(0).integers(0, 120, SHAPE).astype(float)
    ),
    valued("probabilities", "refused", lambda array: np.random.default_rng(0).uniform(0, 1, SHAPE)),
    valued("displacements", "refused", noise("normal", 0.0, 5.0)),
    valued("upside down", "either", lambda array: -array),
]


@by_name(VALUES)
def test_values(case: Case, judge, tmp_path: Path) -> None:
    results = run_case(case, judge, tmp_path)
    if results is not None and case.expected == "right":
        assert liver_dice(labels_of(results)) > 0.95


def shaped(name: str, expected: str, part: tuple, words: str = "ct.nii.gz") -> Case:
    return Case(name, lambda folder: save(folder / "ct.nii.gz", ct_image(ct_array()[part])), expected, words)


def composed(name: str, make: Callable[[sitk.Image], sitk.Image], expected: str, words: str) -> Case:
    return Case(name, lambda folder: save(folder / "ct.nrrd", make(ct_image())), expected, words)


SHAPES = [
    shaped("one voxel", "refused", (slice(5, 6), slice(5, 6), slice(5, 6))),
    shaped("one row", "refused", (slice(5, 6), slice(5, 6))),
    shaped("one slice", "refused", (slice(9, 10),), "two-dimensional"),
    shaped("two slices", "either", (slice(9, 11),)),
    shaped("three slices", "right", (slice(9, 12),)),
    shaped("two columns", "either", (slice(None), slice(None), slice(12, 14))),
    shaped("one column", "refused", (slice(None), slice(None), slice(12, 13))),
    shaped("eight voxels", "either", (slice(8, 10), slice(10, 12), slice(10, 12))),
    shaped("inside the organ", "either", (slice(7, 17), slice(11, 25), slice(11, 27))),
    shaped("air only", "either", (slice(0, 2), slice(0, 2))),
    shaped("tight crop", "right", (slice(6, 18), slice(2, 34), slice(2, 38))),
    Case(
        "complex",
        lambda folder: save(folder / "ct.nii.gz", ct_image(ct_array(np.complex64))),
        "refused",
        "complex",
    ),
    composed("flat", lambda image: image[:, :, 9], "refused", "two-dimensional"),
    composed("four-dimensional", lambda image: sitk.JoinSeries([image, image]), "refused", "several volumes"),
    composed("color", lambda image: sitk.Compose([sitk.Cast(image, sitk.sitkUInt8)] * 3), "refused", "color or vector"),
    composed("two components", lambda image: sitk.Compose([image, image]), "refused", "color or vector"),
    composed("tensors", lambda image: sitk.Compose([image] * 6), "refused", "color or vector"),
]


@by_name(SHAPES)
def test_shapes(case: Case, judge, tmp_path: Path) -> None:
    results = run_case(case, judge, tmp_path)
    if results is not None and case.expected == "right":
        assert np.count_nonzero(labels_of(results) == 1) > 500


ORIENTATIONS = [
    *((f"axes {index}", SIGNED_PERMUTATIONS[index], SPACING, ORIGIN) for index in range(len(SIGNED_PERMUTATIONS))),
    *((f"tilted {degrees}", rotation(degrees, (1, 0, 0)), SPACING, ORIGIN) for degrees in (1, 10, 25, 44)),
    *((f"spacing {size:g}", np.eye(3), (size, size, size), ORIGIN) for size in (2.0, 6.0)),
    ("thick slices", np.eye(3), (2.0, 2.0, 10.0), ORIGIN),
    ("thin slices", np.eye(3), (4.0, 4.0, 1.0), ORIGIN),
    ("far away", np.eye(3), SPACING, (1e5, -1e5, 1e5)),
]


@pytest.mark.parametrize(("name", "direction", "spacing", "origin"), ORIENTATIONS, ids=[row[0] for row in ORIENTATIONS])
def test_geometry(name: str, direction, spacing, origin, judge, tmp_path: Path) -> None:
    """The labels lie where the organ lies, on the grid of the file, however it is stored."""
    image = ct_image()
    image.SetDirection(np.asarray(direction).ravel().tolist())
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    results = run_case(Case(name, lambda folder: save(folder / "ct.nrrd", image), "right"), judge, tmp_path)
    labels = label_image(results)
    assert liver_dice(sitk.GetArrayFromImage(labels)) > 0.8
    np.testing.assert_allclose(labels.GetSpacing(), spacing, rtol=1e-4)
    np.testing.assert_allclose(labels.GetOrigin(), origin, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(labels.GetDirection(), np.asarray(direction).ravel(), atol=1e-5)


TINY_AND_HUGE = [
    (f"spacing {spacing}", spacing, expected)
    for spacing, expected in [
        ((1e-4, 1e-4, 1e-4), "refused"),
        ((1e-30, 1e-30, 1e-30), "refused"),
        ((1e4, 1e4, 1e4), "refused"),
        ((1e30, 1e30, 1e30), "refused"),
        ((0.001, 1000.0, 1.0), "refused"),
        ((0.0003, 0.0003, 0.004), "refused"),
        ((300.0, 3.0, 4.0), "refused"),
        ((1.0, 1.0, 1.0), "right"),
        ((0.05, 0.05, 0.05), "right"),
    ]
]


@pytest.mark.parametrize(("name", "spacing", "expected"), TINY_AND_HUGE, ids=[row[0] for row in TINY_AND_HUGE])
def test_spacing_of_no_patient(name: str, spacing, expected: str, judge, tmp_path: Path) -> None:
    def make(folder: Path) -> Path:
        path = save(folder / "ct.mha", compressed=False)
        text = " ".join(str(value) for value in spacing)
        content = path.read_bytes().replace(b"ElementSpacing = 3 3 4", b"ElementSpacing = " + text.encode())
        assert text.encode() in content
        path.write_bytes(content)
        return path

    run_case(Case(name, make, expected, "spacing" if expected == "refused" else ""), judge, tmp_path)


# Names and places ---------------------------------------------------------------------------------

NAMES = {
    "spaces": "a CT  of the abdomen .nii.gz",
    "umlauts": "Bäuchlein-Größe.nii.gz",
    "Chinese": "腹部CT.nii.gz",
    "Arabic": "بطن.nrrd",
    "emoji": "🫀🩻.mha",
    "combining": "e\u0301.nii.gz",
    "quotes": 'it\'s "the" `CT` $HOME;rm -rf.nii.gz',
    "percent": "100% %s %d {0}.nii.gz",
    "hash": "#1 & more?.nii.gz",
    "backslash": "a\\b.nii.gz",
    "brackets": "[a-z]*.nii.gz",
    "dots": "a.b.c.nii.gz",
    "upper case": "CT.NII.GZ",
    "hidden": ".ct.nii.gz",
    "only a suffix": ".nii.gz",
    "line break": "a\nb.nii.gz",
    "tab": "a\tb.nrrd",
    "escape": "a\x1b[31mb.nrrd",
    "long": "x" * 240 + ".nii.gz",
    "longest": "x" * 248 + ".nii.gz",
    "long in UTF-8": "腹" * 78 + ".nii.gz",
    "not UTF-8": os.fsdecode(b"\xff\xfe.nii.gz"),
}
UNUSABLE_NAMES = {
    "long": ("refused", "too long"),  # for the names of the results
    "longest": ("refused", "too long"),
    "not UTF-8": ("refused", "characters"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.skipif(os.name != "posix", reason="file names that Windows forbids")
def test_names(name: str, judge, tmp_path: Path) -> None:
    def make(folder: Path) -> Path:
        extension = next(
            extension for extension in ("nii.gz", "nrrd", "mha") if NAMES[name].lower().endswith(extension)
        )
        return save(folder / f"plain.{extension}").rename(folder / NAMES[name])

    case = Case(name, make, *UNUSABLE_NAMES.get(name, ("right",)))
    results = run_case(case, judge, tmp_path)
    if results is not None:
        assert liver_dice(labels_of(results)) > 0.95


def deep(folder: Path) -> Path:
    for _ in range(12):
        folder = folder / ("d" * 200)
        folder.mkdir()
    return save(folder / "ct.nii.gz")


def too_deep(folder: Path) -> Path:
    return folder / ("d" * 300) / "ct.nii.gz"


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "ct.nii.gz")
    return folder / "ct.nii.gz"


def link(target: str | None) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "ct.nii.gz"
        if target is None:
            real = save(folder / "real.nii.gz")
            path.symlink_to(real)
        else:
            path.symlink_to(target)
        return path

    return make


def folder_called_nifti(folder: Path) -> Path:
    (folder / "ct.nii.gz").mkdir()
    return folder / "ct.nii.gz"


def other_argument(*arguments: object) -> Callable[[Path], list[object]]:
    return lambda folder: [str(argument).replace("FOLDER", str(folder)) for argument in arguments]


PLACES = [
    Case("twelve folders deep", deep, "right"),
    Case("a path that is too long", too_deep, "refused"),
    Case("pipe", fifo, "refused", "ct.nii.gz"),
    Case("link to a CT", link(None), "right"),
    Case("link to nowhere", link("nowhere.nii.gz"), "refused", "ct.nii.gz"),
    Case("link to itself", link("ct.nii.gz"), "refused", "ct.nii.gz"),
    Case("link to zeros", link("/dev/zero"), "refused", "ct.nii.gz"),
    Case("link to a folder", link("."), "refused", "ct.nii.gz"),
    Case("folder called NIfTI", folder_called_nifti, "refused", "no DICOM"),
    Case("device", other_argument("/dev/null"), "refused", "/dev/null"),
    Case("process file", other_argument("/proc/self/mem"), "refused"),
    Case("null character", other_argument("FOLDER/a\0b.nii.gz"), "refused"),
    Case("empty name", other_argument(""), "refused", "empty"),
    Case("dot", other_argument("FOLDER/."), "refused"),
    Case("address", other_argument("https://localhost/ct.nii.gz"), "refused"),
    Case("Windows path", other_argument("C:\\Users\\me\\ct.nii.gz"), "refused"),
    Case("file below a file", lambda folder: Path(save(folder / "ct.nii.gz")) / "ct.nii.gz", "refused"),
]


@by_name(PLACES)
@pytest.mark.skipif(os.name != "posix", reason="links, pipes and devices of POSIX")
def test_places(case: Case, judge, tmp_path: Path) -> None:
    run_case(case, judge, tmp_path)


# Options ------------------------------------------------------------------------------------------


def with_ct(*arguments: object) -> Callable[[Path], list[object]]:
    """The CT and other arguments, in which FOLDER is the folder of the inputs."""
    return lambda folder: [
        save(folder / "ct.nii.gz"),
        *(str(argument).replace("FOLDER", str(folder)) for argument in arguments),
    ]


def with_reference(make: Callable[[Path], Path], *more: str) -> Callable[[Path], list[object]]:
    def arguments(folder: Path) -> list[object]:
        (folder / "labels").mkdir()
        return [save(folder / "ct.nii.gz"), "--reference", make(folder / "labels"), *more]

    return arguments


def reference(change: Callable[[sitk.Image], sitk.Image | None], name: str = "labels.nii.gz") -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        labels = np.zeros(SHAPE, np.uint8)
        labels[LIVER] = 1
        image = ct_image(labels)
        changed = change(image)
        return save(folder / name, image if changed is None else changed)

    return make


OPTIONS = [
    *(
        Case(f"option {' '.join(words)}", with_ct(*words), "refused", expected)
        for words, expected in [
            (["--fast"], "--fast"),
            (["--dev", "cpu"], "--dev"),
            (["--device"], "--device"),
            (["--device", ""], "--device"),
            (["--device", "abacus"], "abacus"),
            (["--device", "CPU"], "--device"),
            (["--device", "cuda:99"], "--device"),
            (["--device=../cpu"], "--device"),
            (["--label-ids"], "--label-ids"),
            (["--label-ids", "totalsegmentator"], "--label-ids"),
            (["--json=yes"], "--json"),
            (["-j"], "-j"),
            (["--reference"], "--reference"),
            (["--reference", "FOLDER/nowhere.nii.gz"], "nowhere.nii.gz"),
            (["--reference", "FOLDER"], "is a folder"),
            (["--reference", "FOLDER/ct.nii.gz"], "not a label map"),
            (["--reference", ""], "folder"),
            (["another.nii.gz"], "another.nii.gz"),
            (["a", "b", "c"], "a"),
            (["--", "--more"], "--more"),
            (["--model"], "--model"),
            (["--output"], "--output"),
        ]
    ),
    *(
        Case(f"reference {name}", with_reference(make, *more), expected, words)
        for name, make, more, expected, words in [
            ("right", reference(lambda image: None), (), "right", ""),
            ("of flare22", reference(lambda image: None), ("--label-ids", "flare22"), "right", ""),
            ("of floats", reference(lambda image: sitk.Cast(image, sitk.sitkFloat64)), (), "right", ""),
            ("of int64", reference(lambda image: sitk.Cast(image, sitk.sitkInt64)), (), "right", ""),
            ("halves", reference(lambda image: sitk.Cast(image, sitk.sitkFloat32) * 0.5), (), "refused", "label map"),
            ("negative", reference(lambda image: sitk.Cast(image, sitk.sitkInt16) * -1), (), "refused", "label map"),
            ("of 300", reference(lambda image: sitk.Cast(image, sitk.sitkInt16) * 300), (), "refused", "label map"),
            ("of 200", reference(lambda image: image * 200), (), "refused", "label values"),
            ("13", reference(lambda image: image * 13), (), "either", ""),
            ("cropped", reference(lambda image: image[1:, :, :]), (), "refused", "grid"),
            ("shifted", reference(lambda image: image.SetOrigin((0, 0, 0))), (), "refused", "grid"),
            ("stretched", reference(lambda image: image.SetSpacing((3, 3, 5))), (), "refused", "grid"),
            (
                "mirrored",
                reference(lambda image: image.SetDirection((-1, 0, 0, 0, 1, 0, 0, 0, 1))),
                (),
                "refused",
                "grid",
            ),
            ("stored the other way", reference(lambda image: sitk.Flip(image, [True, True, False])), (), "right", ""),
            ("flat", reference(lambda image: image[:, :, 3]), (), "refused", "two-dimensional"),
            (
                "of four dimensions",
                reference(lambda image: sitk.JoinSeries([image] * 2), "l.nrrd"),
                (),
                "refused",
                "several",
            ),
            ("in color", reference(lambda image: sitk.Compose([image] * 3)), (), "refused", "color"),
            ("empty", reference(lambda image: image * 0), (), "right", ""),
        ]
    ),
]


@by_name(OPTIONS)
def test_options(case: Case, judge, tmp_path: Path) -> None:
    run_case(case, judge, tmp_path)
