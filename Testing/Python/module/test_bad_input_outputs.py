"""Output folders that cannot take the results: read-only, full at any point, occupied. All or nothing, in one line."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_input import Judge, contents, ct_array, ct_image, save
from test_bad_input import liver_dice


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return save(tmp_path / "in" / "ct.nii.gz")


class Disk:
    """A small file system of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> bool:
        """Whether it could be mounted, which only the superuser of a whole machine may."""
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)]
        return shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (tmp_path / "disk").mkdir()
    made = Disk(tmp_path / "disk")
    yield made
    while os.path.ismount(made.folder):
        subprocess.run(["umount", str(made.folder)], check=True)


def run(judge: Judge, ct: Path, folder: Path, expected: str, words: str = "") -> str:
    return judge(ct.parent, folder, [ct], expected, words)


def test_a_read_only_disk(judge: Judge, ct: Path, disk: Disk) -> None:
    if not disk.mount("ro", "size=1m"):
        pytest.skip("mounting needs a superuser")
    run(judge, ct, disk.folder / "results", "refused", "read-only")


@pytest.mark.parametrize("kilobytes", range(4, 84, 4))
def test_a_disk_that_is_full_at_some_point(
    judge: Judge, ct: Path, disk: Disk, kilobytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every page more lets another file, or a part of it, be written before the disk is full."""
    import numpy as np
    import SimpleITK as sitk

    from FlareSegmentSlicerLib.rendering import pictures

    def picture(path: Path, *_arguments: object) -> None:
        noise = np.random.default_rng(0).integers(0, 255, (100, 100), dtype=np.uint8)
        try:
            sitk.WriteImage(sitk.GetImageFromArray(noise), str(path))
        except RuntimeError as error:
            raise OSError("disk full") from error

    monkeypatch.setattr(pictures, "slices_png", picture)
    noisy = ct_array()
    noisy[ct_array() > 150] = np.random.default_rng(0).choice([20, 220], np.count_nonzero(ct_array() > 150))
    save(ct, ct_image(noisy))
    if not disk.mount(f"size={kilobytes}k"):
        pytest.skip("mounting needs a superuser")
    if run(judge, ct, disk.folder / "results", "either", "cannot be written") == "right":
        assert kilobytes > 12
    else:
        assert not list(disk.folder.iterdir())


@pytest.mark.parametrize("kind", ["segmentation", "labels", "table", "slices", "surfaces"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_write_that_fails_leaves_older_results(
    judge: Judge, ct: Path, tmp_path: Path, kind: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the five files in turn cannot be written; those of an earlier run stand as they were."""
    results = tmp_path / "results"
    run(judge, ct, results, "right")
    (results / "notes.txt").write_text("not ours")
    before = contents(results)
    fail_to_write(kind, code, monkeypatch)

    ending = judge.refused(ct.parent, results, [ct], "cannot be written")
    assert ending == "refused"
    assert contents(results) == before


def fail_to_write(kind: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import csv

    import slicer

    from FlareSegmentLib.files import image_io
    from FlareSegmentSlicerLib.rendering import pictures

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise OSError(code, os.strerror(code))

    if kind == "segmentation":
        monkeypatch.setattr(slicer.util, "saveNode", lambda *_arguments: False)
    elif kind == "labels":
        monkeypatch.setattr(image_io.sitk, "WriteImage", fail)
    elif kind == "table":
        monkeypatch.setattr(csv, "writer", fail)
    else:
        monkeypatch.setattr(pictures, "slices_png" if kind == "slices" else "surfaces_png", fail)


@pytest.mark.parametrize("name", ["ct_organs.seg.nrrd", "ct_labels.nii.gz", "ct_organs.csv", "ct_slices.png"])
def test_a_folder_in_the_place_of_a_result_is_not_removed(judge: Judge, ct: Path, tmp_path: Path, name: str) -> None:
    results = tmp_path / "results"
    (results / name / "years of work").mkdir(parents=True)
    (results / name / "thesis.txt").write_text("all of it")
    (results / "ct_3d.png").write_text("older")
    before = contents(results)
    judge.refused(ct.parent, results, [ct], "a folder has this name")
    assert contents(results) == before


def test_links_in_the_place_of_results_are_replaced_and_not_followed(judge: Judge, ct: Path, tmp_path: Path) -> None:
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere.csv"
    results.mkdir()
    elsewhere.write_text("not ours")
    (results / "ct_organs.csv").symlink_to(elsewhere)
    (results / "ct_labels.nii.gz").symlink_to("nowhere")
    run(judge, ct, results, "right")
    assert elsewhere.read_text() == "not ours"
    assert not (results / "ct_organs.csv").is_symlink()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("in/ct.nii.gz", "cannot be written"),
        ("in/ct.nii.gz/results", "cannot be written"),
        ("x" * 300, "cannot be written"),
        ("/dev/null/results", "cannot be written"),
        ("/proc/results", "cannot be written"),
        ("\0", "text"),
        (os.fsdecode(b"\xff"), "text"),
    ],
)
def test_impossible_folders(judge: Judge, ct: Path, tmp_path: Path, output: str, words: str) -> None:
    judge.refused(ct.parent, tmp_path / output, [ct], words)


@pytest.mark.parametrize("name", ["results of Bäuchlein", "腹部", "a\nb", "-results", "deep/er/and/deeper"])
def test_unusual_folders(judge: Judge, ct: Path, tmp_path: Path, name: str) -> None:
    import SimpleITK as sitk

    run(judge, ct, tmp_path / name, "right")
    labels = sitk.ReadImage(str(tmp_path / name / "ct_labels.nii.gz"))
    assert liver_dice(sitk.GetArrayFromImage(labels)) > 0.95


def test_results_into_the_folder_of_the_ct(judge: Judge, ct: Path, tmp_path: Path) -> None:
    beside = tmp_path / "beside"
    shutil.copytree(ct.parent, beside)
    original = (beside / "ct.nii.gz").read_bytes()
    assert judge.status([beside / "ct.nii.gz"], beside) == 0
    assert (beside / "ct.nii.gz").read_bytes() == original
    assert len(list(beside.iterdir())) == 6
