"""CTs in blocks of slices: every slice once, in its place, and back; lists that were tampered with are refused."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.dicom import slice_blocks
from FlareSegmentTrainingLib.dicom.slice_blocks import join, join_blocks, read_list, split, write_blocks

DIRECTION = np.array([[0.8, 0.0, 0.6], [0.0, -1.0, 0.0], [0.6, 0.0, -0.8]])


@pytest.fixture
def volume() -> Volume:
    """A small CT on an oblique grid."""
    array = np.random.default_rng(0).integers(-1000, 1000, (11, 6, 7)).astype(np.int16)
    return Volume(array, (0.8, 0.7, 2.5), (-30.0, -41.5, 57.1), DIRECTION, "a")


@pytest.mark.parametrize(
    ("count", "slices", "expected"),
    [(11, 4, [4, 4, 3]), (12, 4, [4, 4, 4]), (9, 4, [4, 5]), (3, 4, [3]), (1, 4, [1]), (5, 2, [2, 3])],
)
def test_every_slice_is_in_one_block_and_none_is_alone(volume: Volume, count: int, slices: int, expected: list) -> None:
    array = np.resize(volume.array, (count, 6, 7))
    whole = Volume(array, volume.spacing, volume.origin, volume.direction)
    blocks = split(whole, slices)
    assert [len(block.volume.array) for block in blocks] == expected
    np.testing.assert_array_equal(np.concatenate([block.volume.array for block in blocks]), whole.array)
    for block in blocks:
        corner = whole.affine_lps @ [0, 0, block.first, 1]
        np.testing.assert_allclose(block.volume.affine_lps @ [0, 0, 0, 1], corner)


def test_a_block_needs_two_slices(volume: Volume) -> None:
    with pytest.raises(InputError, match="at least 2 slices"):
        split(volume, 1)


def test_blocks_join_in_any_order(volume: Volume) -> None:
    blocks = [block.volume for block in split(volume, 4)]
    whole = join([blocks[2], blocks[0], blocks[1]], "a")
    np.testing.assert_array_equal(whole.array, volume.array)
    assert whole.same_grid(volume, 1e-6)


@pytest.mark.parametrize("damage", ["missing", "twice", "moved", "turned", "cut"])
def test_blocks_that_are_no_whole_are_refused(volume: Volume, damage: str) -> None:
    blocks = [block.volume for block in split(volume, 4)]
    part = blocks[1]
    blocks[1:2] = {
        "missing": [],
        "twice": [part, part],
        "moved": [Volume(part.array, part.spacing, (part.origin[0] + 0.4, *part.origin[1:]), part.direction)],
        "turned": [Volume(part.array, part.spacing, part.origin, np.diag([1.0, 1.0, -1.0]))],
        "cut": [Volume(part.array[:, 1:], part.spacing, part.origin, part.direction)],
    }[damage]
    with pytest.raises(InputError, match="a: .*(one grid|missing or there twice)"):
        join(blocks, "a")


@pytest.fixture
def blocks(volume: Volume, tmp_path: Path) -> Path:
    """A folder of NIfTI blocks with labels."""
    labels = (volume.array > 0).astype(np.uint8)
    names = write_blocks(tmp_path / "blocks", "a", volume, labels, 4, as_dicom=False)
    assert names == ["a_block01", "a_block02", "a_block03"]
    return tmp_path / "blocks"


def test_blocks_of_a_folder_become_the_ct_and_its_labels(blocks: Path, volume: Volume, tmp_path: Path) -> None:
    joined = join_blocks(blocks, tmp_path / "out")
    assert list(joined) == ["a"] and joined["a"].same_grid(volume, 1e-4)
    back, _ = read_volume(tmp_path / "out" / "a_ct.nii.gz")
    np.testing.assert_array_equal(back.array, volume.array)
    labels = read_labels(tmp_path / "out" / "a_labels.nii.gz", like=back).array
    np.testing.assert_array_equal(labels, volume.array > 0)
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["a_ct.nii.gz", "a_labels.nii.gz"]


def test_a_patient_stays_on_one_side_of_a_split(blocks: Path, volume: Volume) -> None:
    write_blocks(blocks, "b", volume, None, 6, as_dicom=False)
    quality = json.loads((blocks / "quality.json").read_text())
    assert {name: entry["patient"] for name, entry in quality.items()} == {
        "a_block01": "a", "a_block02": "a", "a_block03": "a", "b_block01": "b", "b_block02": "b",
    }  # fmt: skip
    assert list(json.loads((blocks / "blocks.json").read_text())) == ["a", "b"]


def test_a_case_is_not_written_twice(blocks: Path, volume: Volume) -> None:
    before = {path: path.read_bytes() for path in blocks.iterdir()}
    with pytest.raises(InputError, match="holds blocks of a already"):
        write_blocks(blocks, "a", volume, None, 4, as_dicom=False)
    assert {path: path.read_bytes() for path in blocks.iterdir()} == before


@pytest.mark.parametrize("verb", ["write", "join"])
def test_a_folder_that_takes_nothing_is_one_line(blocks: Path, volume: Volume, tmp_path: Path, verb: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot be written .*choose another folder") as error:
        if verb == "write":
            write_blocks(tmp_path / "file", "b", volume, None, 4, as_dicom=False)
        else:
            join_blocks(blocks, tmp_path / "file")
    assert "\n" not in str(error.value)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_disk_that_fills_up_leaves_no_half_case(
    blocks: Path, volume: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in blocks.iterdir()}
    written = []

    def write(path: Path, array: np.ndarray, _volume: Volume) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        path.write_bytes(b"x")
        written.append(path)

    monkeypatch.setattr(slice_blocks, "write_nifti", write)
    with pytest.raises(InputError, match="No space left"):
        write_blocks(blocks, "b", volume, None, 4, as_dicom=False)
    assert {path: path.read_bytes() for path in blocks.iterdir()} == before


def change(folder: Path, **values: object) -> None:
    manifest = json.loads((folder / "blocks.json").read_text())
    manifest["a"].update(values)
    (folder / "blocks.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"slices": 12}, "11 slices together, the CT had 12"),
        ({"slices": "many"}, "is damaged: the entry of a is incomplete"),
        ({"blocks": None}, "is damaged: the entry of a is incomplete"),
        ({"blocks": [{"labels": "a_block01_labels.nii.gz"}]}, "is damaged: the entry of a is incomplete"),
        ({"blocks": [{"ct": "a_block09_ct.nii.gz"}]}, "is missing: a cannot be put together"),
        ({"blocks": [{"ct": "../secret.nii.gz"}]}, "lies outside of the folder"),
        ({"blocks": [{"ct": "/etc/passwd"}]}, "lies outside of the folder"),
    ],
)
def test_a_list_that_was_changed_is_refused(blocks: Path, tmp_path: Path, values: dict, words: str) -> None:
    change(blocks, **values)
    with pytest.raises(InputError, match=words):
        join_blocks(blocks, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_name_that_would_leave_the_folder_is_refused(blocks: Path, tmp_path: Path) -> None:
    manifest = json.loads((blocks / "blocks.json").read_text())
    (blocks / "blocks.json").write_text(json.dumps({"../a": manifest["a"]}))
    with pytest.raises(InputError, match="cannot be the name of a case"):
        join_blocks(blocks, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blocks", "out"]


def test_what_is_there_already_is_not_replaced(blocks: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_labels.nii.gz").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        join_blocks(blocks, tmp_path / "out")
    assert [(entry.name, entry.read_text()) for entry in (tmp_path / "out").iterdir()] == [("a_labels.nii.gz", "mine")]


@pytest.mark.parametrize(("content", "words"), [("{", "is damaged"), ("[]", "was not written by this program")])
def test_a_list_that_is_no_list_is_named(tmp_path: Path, content: str, words: str) -> None:
    assert read_list(tmp_path / "blocks.json") == {}
    with pytest.raises(InputError, match="holds no blocks.json"):
        join_blocks(tmp_path, tmp_path / "out")
    (tmp_path / "blocks.json").write_text(content)
    with pytest.raises(InputError, match=words):
        read_list(tmp_path / "blocks.json")
