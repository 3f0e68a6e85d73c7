"""Unpacking of strangers' zip and tar files: what is refused, what is kept, what a second run does."""

from __future__ import annotations

import hashlib
import io
import stat
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets import archives
from FlareSegmentTrainingLib.datasets.archives import Limits, unpack

UNSAFE_NAMES = [
    "../escape.nii",
    "a/../../escape.nii",
    "/absolute.nii",
    "..\\escape.nii",
    "C:\\escape.nii",
    "C:escape.nii",
    "\\\\server\\share\\escape.nii",
    "images/nul.nii",
    "con/a.nii",
    "a/stream.nii:hidden.nii",
    "trailing./a.nii",
    "line\nbreak.nii",
    "x" * 300 + ".nii",
    "a/" * 600 + "a.nii",
]


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return path


def tar_of(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for info, content in members:
            info.size = len(content) if info.isreg() else 0
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_only_data_is_unpacked(tmp_path: Path, kind: str) -> None:
    files = {
        "set/images/a_0000.nii.gz": b"image" * 100,
        "set/labels/a.nii.gz": b"labels",
        "set/dataset.json": b"{}",
        "set/run.py": b"print()",
        "set/README.pdf": b"text",
        "__MACOSX/set/images/._a_0000.nii.gz": b"mac",
        "set/images/._a_0000.nii.gz": b"mac",
    }
    archive = tmp_path / f"set.{kind}"
    if kind == "zip":
        zip_of(archive, files)
    else:
        tar_of(
            archive,
            [(tarfile.TarInfo(name), content) for name, content in files.items()],
            "w:gz" if "gz" in kind else "w",
        )
    result = unpack(archive, tmp_path / "out")

    assert everything_below(tmp_path / "out") == ["set/dataset.json", "set/images/a_0000.nii.gz", "set/labels/a.nii.gz"]
    assert (tmp_path / "out/set/images/a_0000.nii.gz").read_bytes() == b"image" * 100
    assert (result.written, result.present, result.skipped) == (3, 0, 4)
    assert result.archives == ()


@pytest.mark.parametrize("name", UNSAFE_NAMES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_unsafe_names_are_refused_before_anything_is_written(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / f"bad.{kind}"
    if kind == "zip":
        zip_of(archive, {"good.nii": b"1", name: b"2"})
    else:
        tar_of(archive, [(tarfile.TarInfo("good.nii"), b"1"), (tarfile.TarInfo(name), b"2")])
    with pytest.raises(InputError, match="refused") as caught:
        unpack(archive, tmp_path / "deep" / "out")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert everything_below(tmp_path) == [archive.name]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_in_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    link = tarfile.TarInfo("images/a.nii")
    link.type, link.linkname = kind, "/etc/passwd"
    archive = tar_of(tmp_path / "bad.tar", [(tarfile.TarInfo("good.nii"), b"1"), (link, b"")])
    with pytest.raises(InputError):
        unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path) == ["bad.tar"]


def test_link_in_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("a.nii")
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(InputError, match="link"):
        unpack(tmp_path / "bad.zip", tmp_path / "out")


def test_a_link_in_the_target_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/images").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="link"):
        unpack(zip_of(tmp_path / "a.zip", {"images/a.nii": b"1"}), tmp_path / "out")
    assert everything_below(tmp_path / "elsewhere") == []


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(file_bytes=999), "unpacks to"),
        (Limits(total_bytes=2500), "more than"),
        (Limits(files=2), "more than 2 files"),
        (Limits(ratio=2.0, small_bytes=100), "bomb"),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_limits(tmp_path: Path, limits: Limits, reason: str, kind: str) -> None:
    files = {f"{index}.nii": bytes(1000) for index in range(3)}
    archive = tmp_path / f"bomb.{kind}"
    if kind == "zip":
        zip_of(archive, files)
    else:
        tar_of(archive, [(tarfile.TarInfo(name), content) for name, content in files.items()], "w:gz")
    with pytest.raises(InputError, match=reason):
        unpack(archive, tmp_path / "out", limits)
    assert everything_below(tmp_path) == [archive.name]
    assert unpack(archive, tmp_path / "out").written == 3


def test_default_limits_stop_a_real_bomb(tmp_path: Path) -> None:
    """3 GB of zeros in 3 MB, made of one compressed block without writing the 3 GB."""
    archive = tmp_path / "bomb.zip"
    with (
        zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as file,
        file.open("a.nii", "w") as stream,
    ):
        for _ in range(256):
            stream.write(bytes(1 << 20))
    content = bytearray(archive.read_bytes())
    start = content.rindex(b"PK\x01\x02")
    content[start + 24 : start + 28] = struct.pack("<I", 3 << 30)
    archive.write_bytes(content)
    with pytest.raises(InputError, match="bomb"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_entry_that_lies_about_its_size_is_cut(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "liar.zip", {"a.nii": bytes(5000)})
    content = bytearray(archive.read_bytes())
    start = content.rindex(b"PK\x01\x02")
    content[start + 24 : start + 28] = struct.pack("<I", 10)
    archive.write_bytes(content)
    with pytest.raises(InputError):
        unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == []


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.nii": b"A" * 300, "b.nii": b"A" * 300}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    second = content.rindex(b"PK\x01\x02")
    content[second + 42 : second + 46] = struct.pack("<I", 0)
    archive.write_bytes(content)
    with pytest.raises(InputError, match="entries overlap"):
        unpack(archive, tmp_path / "out")


def test_two_entries_for_one_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="twice"):
        unpack(zip_of(tmp_path / "a.zip", {"A.nii": b"1", "a.NII": b"2"}), tmp_path / "out")
    with pytest.raises(InputError, match="twice"):
        unpack(zip_of(tmp_path / "b.zip", {"a.nii": b"1", "a.nii/a.nii": b"2"}), tmp_path / "out")


@pytest.mark.parametrize("cut", [0, 10, 120])
@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz"])
def test_damaged_archives_give_one_line(tmp_path: Path, cut: int, name: str) -> None:
    good = tmp_path / f"good_{name}"
    content = bytes(range(256)) * 20
    if name.endswith("zip"):
        zip_of(good, {"a.nii": content})
    else:
        tar_of(good, [(tarfile.TarInfo("a.nii"), content)], "w:gz" if name.endswith("gz") else "w")
    (tmp_path / name).write_bytes(good.read_bytes()[:cut])
    with pytest.raises(InputError) as caught:
        unpack(tmp_path / name, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert everything_below(tmp_path / "out") == []


def test_encrypted_zip_is_named(tmp_path: Path) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.nii": b"1" * 50})
    content = bytearray(archive.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        unpack(archive, tmp_path / "out")


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "a.zip", {f"{index}.nii": bytes([index]) * 100 for index in range(5)})
    replace = archives.os.replace
    calls = 0

    def stop_at_third(source, target):
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(archives.os, "replace", stop_at_third)
        unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == ["0.nii", "1.nii"]
    kept = (tmp_path / "out/0.nii").stat().st_mtime_ns
    (tmp_path / "out/1.nii").write_bytes(b"short")

    result = unpack(archive, tmp_path / "out")
    assert (result.written, result.present) == (4, 1)
    assert (tmp_path / "out/0.nii").stat().st_mtime_ns == kept
    assert (tmp_path / "out/1.nii").read_bytes() == b"\x01" * 100


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = zip_of(tmp_path / "a.zip", {"a.nii": bytes(1000)})
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: archives.shutil._ntuple_diskusage(1, 1, 999))
    with pytest.raises(InputError, match="free"):
        unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == []


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    assert archives.sha256(tmp_path / "file") == hashlib.sha256(b"content").hexdigest()
