"""Strangers' DICOM folders: other modalities, lost and damaged slices, several series, transfer syntaxes, odd headers.

Judged as in `test_bad_input.py`; that the right series comes out in the right order is tested in
`test_dicom_folder.py`.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bad_input import SHAPE, SPACING, ct_array, liver_dice
from test_bad_input import Case, by_name, labels_of, run_case


def write_series(
    folder: Path,
    array: np.ndarray | None = None,
    modality: str = "CT",
    series: str = "1",
    tags: dict[str, str | None] | None = None,
    compressor: str = "",
    places: Callable[[int], tuple[float, float, float]] = lambda number: (-58.0, -50.0, 12.0 + 4.0 * number),
) -> Path:
    """One file per slice; `tags` are written over the usual ones, None leaves one out."""
    folder.mkdir(parents=True, exist_ok=True)
    array = ct_array() if array is None else array
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.KeepOriginalImageUIDOn()
    if compressor:
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
    for number, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane[None])
        image.SetSpacing(SPACING)
        image.SetOrigin(places(number))
        usual = {
            "0010|0010": "DOE^JANE",
            "0008|0060": modality,
            "0008|0008": "ORIGINAL\\PRIMARY\\AXIAL",
            "0020|000e": f"1.2.826.0.1.3680043.2.1125.{series}",
            "0020|000d": "1.2.826.0.1.3680043.2.1125.9",
            "0020|0011": series,
            "0020|0013": str(number + 1),
            "0008|0018": f"1.2.826.0.1.3680043.2.1125.{series}.{number + 1}",
            "0020|0032": "\\".join(f"{value:.6f}" for value in places(number)),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0028|1052": "0",
            "0028|1053": "1",
        }
        for tag, value in {**usual, **(tags or {})}.items():
            if value is not None:
                image.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{series}-{number:03}.dcm"))
        writer.Execute(image)
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.dcm"))


def element(content: bytes, tag: tuple[int, int]) -> int:
    """Place of an element's value behind its length, in the implicit little-endian syntax that GDCM writes."""
    return content.index(struct.pack("<HH", *tag), 300) + 8


def patched(tag: tuple[int, int], value: bytes, which: slice = slice(None)):
    """A function that writes other bytes over an element's value in some of a series' files."""

    def change(folder: Path) -> None:
        for path in files(folder)[which]:
            content = bytearray(path.read_bytes())
            place = element(content, tag)
            content[place : place + len(value)] = value
            path.write_bytes(content)

    return change


def changed(name: str, expected: str, *changes: Callable[[Path], object], words: str = "", **how: object) -> Case:
    """A series, and what is done to its folder then."""

    def make(folder: Path) -> Path:
        series = write_series(folder / "series", **how)
        for change in changes:
            change(series)
        return series

    return Case(name, make, expected, words)


def remove(*numbers: int) -> Callable[[Path], None]:
    return lambda folder: [files(folder)[number].unlink() for number in sorted(numbers, reverse=True)] and None


def rewrite(change: Callable[[bytes], bytes], which: slice = slice(None)) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        for path in files(folder)[which]:
            path.write_bytes(change(path.read_bytes()))

    return apply


def also(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return apply


def second(**how: object) -> Callable[[Path], Path]:
    return lambda folder: write_series(folder / "second", **{"series": "2", **how})


def syntax(uid: str) -> Callable[[bytes], bytes]:
    """Another transfer syntax in the file's meta information; the voxels stay as they are."""

    def change(content: bytes) -> bytes:
        place = content.index(struct.pack("<HH", 2, 16) + b"UI") + 8
        length = struct.unpack_from("<H", content, place - 2)[0]
        value = uid.encode().ljust(length, b"\0")
        assert len(value) == length
        return content[:place] + value + content[place + length :]

    return change


def one_file(folder: Path) -> Path:
    series = write_series(folder / "series")
    return files(series)[3]


def flipped(content: bytes, seed: int) -> bytes:
    place = np.random.default_rng(seed)
    changed = bytearray(content)
    changed[int(place.integers(132, 1200))] ^= 1 << int(place.integers(0, 8))
    return bytes(changed)


OTHER_MODALITIES = ("MR", "PT", "CR", "DX", "US", "XA", "NM", "MG", "SEG", "RTSTRUCT", "RTDOSE", "SR", "OT", "")
ROWS, COLUMNS, SAMPLES, ALLOCATED = (0x28, 0x10), (0x28, 0x11), (0x28, 0x02), (0x28, 0x100)

DICOM = [
    changed("series", "right"),
    changed("JPEG 2000", "right", compressor="JPEG2000"),
    changed("JPEG lossless", "right", compressor="JPEG"),
    *(changed(f"modality {kind or 'none'}", "refused", words="DICOM", modality=kind) for kind in OTHER_MODALITIES),
    changed("one slice lost", "refused", remove(10), words="missing"),
    changed("three slices lost", "refused", remove(10, 11, 17), words="missing"),
    changed("every second slice", "either", remove(*range(1, 24, 2))),
    changed("first slice lost", "either", remove(0)),
    changed("only one slice", "refused", remove(*range(1, 24))),
    changed("no slice", "refused", remove(*range(24))),
    changed("slice twice", "right", lambda folder: shutil.copy(files(folder)[3], folder / "again.dcm")),
    changed("all twice", "right", lambda folder: shutil.copytree(folder, folder / "copy") and None),
    changed("two series", "right", second(array=ct_array()[:8])),
    changed("with MR", "right", second(modality="MR")),
    changed("with a larger MR", "either", second(modality="MR", array=np.concatenate([ct_array()] * 2))),
    changed(
        "with a topogram", "right", second(array=ct_array()[:1], tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"})
    ),
    changed("only topograms", "refused", tags={"0008|0008": "ORIGINAL\\PRIMARY\\LOCALIZER"}),
    changed("sizes mixed", "either", second(series="1", array=ct_array()[:, :20, :20])),
    changed("orientations mixed", "either", second(series="1", tags={"0020|0037": "1\\0\\0\\0\\0\\-1"})),
    changed("files around", "right", also("README.txt", b"hello"), also("DICOMDIR", b"index"), also("a.jpg", bytes(9))),
    changed("an empty file", "right", also("empty.dcm", b"")),
    changed("a preamble alone", "right", also("preamble.dcm", bytes(128) + b"DICM")),
    changed("noise called DICOM", "right", also("noise.dcm", np.random.default_rng(0).bytes(4000))),
    changed("hidden copies", "right", lambda folder: [shutil.copy(f, folder / f"._{f.name}") for f in files(folder)]),
    changed("all empty", "refused", rewrite(lambda content: b"")),
    changed("all noise", "refused", rewrite(lambda content: b"x" * len(content))),
    changed("one cut", "refused", rewrite(lambda content: content[: len(content) // 2], slice(7, 8))),
    changed("one cut in its header", "either", rewrite(lambda content: content[:300], slice(7, 8))),
    changed("all cut", "refused", rewrite(lambda content: content[: len(content) // 2])),
    changed("one byte short", "either", rewrite(lambda content: content[:-1], slice(7, 8))),
    changed("no preamble", "either", rewrite(lambda content: content[132:])),
    *(
        changed(f"bit {seed}", "either", rewrite(lambda content, seed=seed: flipped(content, seed), slice(5, 6)))
        for seed in range(20)
    ),
    changed("huge rows", "refused", patched(ROWS, b"\xff\xff"), patched(COLUMNS, b"\xff\xff")),
    changed("huge rows in one", "either", patched(ROWS, b"\xff\xff", slice(5, 6))),
    changed("no rows", "refused", patched(ROWS, b"\0\0")),
    changed("color", "either", patched(SAMPLES, b"\3\0")),
    changed("one in color", "either", patched(SAMPLES, b"\3\0", slice(5, 6))),
    changed("no bits", "refused", patched(ALLOCATED, b"\0\0")),
    changed("12 bits", "either", patched(ALLOCATED, b"\x0c\0")),
    changed("64 bits", "refused", patched(ALLOCATED, b"\x40\0")),
    changed("unknown syntax", "refused", rewrite(syntax("1.2.840.99999.1.2"))),
    changed("no syntax", "either", rewrite(syntax(""))),
    changed("no place", "either", patched((0x20, 0x32), b"x")),
    changed("all at one place", "refused", places=lambda number: (0.0, 0.0, 0.0)),
    changed("uneven", "either", places=lambda number: (0.0, 0.0, 4.0 * number + 0.8 * (number % 2))),
    changed("gantry tilt", "either", places=lambda number: (-58.0, -50.0 + 1.5 * number, 12.0 + 4.0 * number)),
    changed("axes zero", "either", patched((0x20, 0x37), b"0\\0\\0\\0\\0\\0")),
    changed("axes parallel", "either", patched((0x20, 0x37), b"1\\0\\0\\1\\0\\0")),
    changed("axes no numbers", "either", patched((0x20, 0x37), b"a\\b\\c\\d\\e\\f")),
    changed("spacing zero", "refused", patched((0x28, 0x30), b"0\\0 ")),
    changed("spacing negative", "refused", patched((0x28, 0x30), b"-3\\")),
    changed("unsigned without intercept", "refused", array=(ct_array() + 1024).astype(np.uint16), words="intercept"),
    changed("long patient name", "right", tags={"0010|0010": "X" * 60}),
    changed("negative window", "right", tags={"0028|1050": "-40", "0028|1051": "-1"}),
    changed("a pipe among them", "right", lambda folder: os.mkfifo(folder / "pipe.dcm")),
    changed("a link to nowhere", "right", lambda folder: (folder / "link.dcm").symlink_to("nowhere")),
    changed("a link to the folder", "right", lambda folder: (folder / "link").symlink_to(folder)),
    changed("a name that is no text", "right", also(os.fsdecode(b"\xff\xfe.dcm"), b"x")),
    Case("one file", one_file, "refused", "readable type"),
]


@by_name(DICOM)
def test_dicom_folders(case: Case, judge, tmp_path: Path) -> None:
    results = run_case(case, judge, tmp_path)
    if results is not None and case.expected == "right":
        labels = labels_of(results)
        assert labels.shape == SHAPE
        assert liver_dice(labels) > 0.95


def test_no_patient_in_what_is_written_and_said(judge, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    case = changed("identified", "right", tags={"0010|0020": "4711-secret", "0008|0090": "HOUSE^GREGORY"})
    results = run_case(case, judge, tmp_path)
    found = b"".join(path.read_bytes() for path in results.iterdir())
    assert not [word for word in (b"DOE", b"JANE", b"4711-secret", b"HOUSE") if word in found]
