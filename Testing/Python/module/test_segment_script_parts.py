"""The headless script's parts: names, files that appear together or not at all, one line for every error."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("slicer_core", reason="slicer-core is not installed")

import segment

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import write_labels
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("ct.nii.gz", "ct"),
        ("a/b/Case 7.NII.GZ", "Case 7"),
        ("x.seg.nrrd", "x"),
        ("x.2.mha", "x.2"),
        ("IM0001", "IM0001"),
        ("unknown.suffix", "unknown.suffix"),
        (".nii.gz", "ct"),
    ],
)
def test_names_of_files(path, name):
    assert segment.case_name(Path(path)) == name


def test_a_folder_keeps_its_whole_name(tmp_path, monkeypatch):
    folder = tmp_path / "series.nrrd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert segment.case_name(folder) == "series.nrrd"
    assert segment.case_name(Path(".")) == "series.nrrd"


def write(files, **contents):
    for kind, text in contents.items():
        files.path(kind, f"{kind}.txt").write_text(text)


def test_files_appear_together(tmp_path):
    folder = tmp_path / "new" / "results"
    with segment._OutputFiles(folder) as files:
        write(files, a="1", b="2", c="3")
        files.drop("b")
        assert not list(folder.glob("*.txt"))
        assert files.publish() == {"a": str(folder / "a.txt"), "c": str(folder / "c.txt")}
    assert sorted(os.listdir(folder)) == ["a.txt", "c.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), segment._OutputFiles(tmp_path) as files:
        write(files, a="new")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
    with pytest.raises(RuntimeError), segment._OutputFiles(tmp_path / "x" / "y") as files:
        write(files, a="new")
        raise RuntimeError
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("failing", range(1, 4))
def test_a_move_that_fails_is_taken_back(tmp_path, monkeypatch, failing):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("old " + name)
    calls, replace = [], os.replace

    def replace_once_not(source, target):
        calls.append(target)
        if len(calls) == failing:
            raise PermissionError(13, "Permission denied")
        replace(source, target)

    with pytest.raises(InputError, match="Permission denied"), segment._OutputFiles(tmp_path) as files:
        write(files, a="new", b="new", c="new")
        monkeypatch.setattr(os, "replace", replace_once_not)
        files.publish()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "old a", "b.txt": "old b"}


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(InputError("two\nlines"), 2, "two lines"), (MemoryError(), 1, "crop"), (KeyboardInterrupt(), 1, "Stopped")],
)
def test_every_error_is_one_line_and_a_status(monkeypatch, capsys, error, status, words):
    def fail(*_):
        raise error

    monkeypatch.setattr(segment, "segment_case", fail)
    monkeypatch.delenv("FLARESEGMENT_DEBUG", raising=False)
    assert segment.main([]) == status
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("Error: ") and words in err
    assert err.count("\n") == 1


def test_help_is_no_error(capsys):
    assert segment.main(["--help"]) == 0
    assert "--label-ids" in capsys.readouterr().out


def test_numbers_that_json_cannot_hold_are_null():
    values = {"a": [float("inf"), float("nan"), 1.23456], "b": {"c": True, "d": None, "e": "x"}}
    assert segment._finite(values) == {"a": [None, None, 1.2346], "b": {"c": True, "d": None, "e": "x"}}


def test_a_reference_of_four_organs_serves_a_model_of_one(tmp_path):
    volume = Volume(np.zeros((3, 4, 5), np.int16), (2.0, 2.0, 3.0))
    values = np.arange(60, dtype=np.uint8).reshape(3, 4, 5) % 5
    write_labels(tmp_path / "four.nii.gz", values, volume)
    write_labels(tmp_path / "flare22.nii.gz", np.where(values == 3, 13, values).astype(np.uint8), volume)
    options = argparse.Namespace(reference=tmp_path / "four.nii.gz", label_ids="flaresegment")
    found = segment.load_reference(options, volume, ORGANS[:1])
    np.testing.assert_array_equal(found, np.where(values == 1, 1, 0))
    options.reference = tmp_path / "flare22.nii.gz"
    with pytest.raises(InputError, match="flare22"):
        segment.load_reference(options, volume, ORGANS[:1])
