"""The headless script's parts: names, files that appear together or not at all, one line for every error."""

from __future__ import annotations

import argparse
import csv
import errno
import gc
import json
import os
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer_core", reason="slicer-core is not installed")

import segment

from FlareSegmentLib.errors import Cancelled, InputError
from FlareSegmentLib.files import disk_space, image_io
from FlareSegmentLib.files.ct_sources import Source, case_name, ct_sources
from FlareSegmentLib.files.image_io import write_labels
from FlareSegmentLib.files.output_files import OutputFiles, not_writable
from FlareSegmentLib.garbage_collection import not_collecting
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
    assert case_name(Path(path)) == name


def test_a_folder_keeps_its_whole_name(tmp_path, monkeypatch):
    folder = tmp_path / "series.nrrd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert case_name(folder) == "series.nrrd"
    assert case_name(Path(".")) == "series.nrrd"


def write(files, **contents):
    for kind, text in contents.items():
        files.path(kind, f"{kind}.txt").write_text(text)


def test_files_appear_together(tmp_path):
    folder = tmp_path / "new" / "results"
    with OutputFiles(folder) as files:
        write(files, a="1", b="2", c="3")
        files.drop("b")
        assert not list(folder.glob("*.txt"))
        assert files.publish() == {"a": str(folder / "a.txt"), "c": str(folder / "c.txt")}
    assert sorted(os.listdir(folder)) == ["a.txt", "c.txt"]


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), OutputFiles(tmp_path) as files:
        write(files, a="new")
        raise RuntimeError
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "old")]
    with pytest.raises(RuntimeError), OutputFiles(tmp_path / "x" / "y") as files:
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

    with pytest.raises(InputError, match="Permission denied"), OutputFiles(tmp_path) as files:
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

    monkeypatch.setattr(segment, "segment", fail)
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


# Several CTs --------------------------------------------------------------------------------------


def test_one_name_is_one_ct_and_none_the_phantom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / ("x" * 255)).touch()
    assert ct_sources([]) == []
    assert ct_sources(["a.nii.gz", "a.nii.gz"]) == [Source("a.nii.gz", "a")]
    with pytest.raises(InputError, match="empty"):
        ct_sources([" "])
    with pytest.raises(InputError, match="too long"):
        ct_sources(["x" * 255])


@pytest.mark.parametrize("word", ["nowhere.nii", "loop.nii", "a\0b.nii", "d" * 300, "--more"])
def test_what_is_not_there_is_refused_before_anything_is_done(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.nii.gz").touch()
    (tmp_path / "loop.nii").symlink_to("loop.nii")
    with pytest.raises(InputError, match="check the path"):
        ct_sources(["a.nii.gz", word])


def test_a_folder_stands_for_the_cts_in_it(tmp_path):
    names = ["b_ct.nii.gz", "a.mha", "b_labels.nii.gz", "a_organs.seg.nrrd", "a_seg.nrrd", "notes.txt", ".hidden.nii"]
    for name in names:
        (tmp_path / name).write_text("")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.nii").write_text("")
    assert [Path(source.path).name for source in ct_sources([str(tmp_path)])] == ["a.mha", "b_ct.nii.gz"]
    (tmp_path / "IM0").write_bytes(bytes(128) + b"DICM")
    assert ct_sources([str(tmp_path)]) == [Source(str(tmp_path), tmp_path.name)]


def test_names_do_not_collide(tmp_path):
    paths = ["x/ct.nii.gz", "y/CT.mha", "x/ct.nrrd", "y/other.nii", "x_ct-2.nii"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    names = [source.name for source in ct_sources([str(tmp_path / path) for path in paths])]
    assert names == ["x_ct", "y_CT", "x_ct-2", "other", "x_ct-2-2"]
    assert len({name.casefold() for name in names}) == len(paths)


@pytest.fixture
def several(monkeypatch, tmp_path):
    """Function that runs the command on CTs; those in `endings` end with that error."""
    endings, loaded, events = {}, [], []

    class Session:
        def __init__(self, options, say):
            self.options = options
            loaded.append(options)

        def __enter__(self):
            return self

        def __exit__(self, *_error):
            pass

        def wait(self):
            pass

        def begin(self, case, start):
            events.append(f"label {case.name}")
            return segment._do_now(lambda: None)

        def read(self, source):
            events.append(f"read {source.name}")
            volume = Volume(np.zeros((3, 4, 5), np.int16))
            return segment._do_now(segment.Case, source.name, source.path, volume)

        def segment(self, case, start, labeling):
            events.append(f"write {case.name}")
            if case.name in endings:
                raise endings[case.name]
            row = {"volume_ml": 12.3, "cut": 1}
            return {
                "input": case.source,
                "output": {"table": f"{case.name}.csv"},
                "organs": {"liver": row, "spleen": {"volume_ml": 0.0, "cut": 0}},
                "seconds": {"total": 1.0},
                "warnings": ["careful"],
            }

    monkeypatch.setattr(segment, "Session", Session)
    monkeypatch.delenv("FLARESEGMENT_DEBUG", raising=False)

    monkeypatch.chdir(tmp_path)
    for name in ("a.nii", "b.nii", "c.nii"):
        (tmp_path / name).touch()

    def run(*words, **errors):
        endings.update(errors)
        return segment.main([*words, "--output", str(tmp_path / "out")])

    run.loaded, run.events = loaded, events
    return run


def test_several_cts_are_a_line_and_the_files_each(several, capsys):
    assert several("a.nii", "b.nii") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "[1/2] a.nii: Liver >= 12 mL, Spleen not found; 1.0 s"
    assert lines[1] == "Wrote a.csv" and lines[2].startswith("[2/2] b.nii") and lines[4].startswith("2 of 2 CTs")
    assert err == "Warning: a: careful\nWarning: b: careful\n"
    assert len(several.loaded) == 1


def test_the_next_ct_is_read_and_labeled_meanwhile(several, monkeypatch):
    assert several("a.nii", "b.nii", "c.nii") == 0
    side_by_side = ["read a", "label a", "read b", "label b", "write a", "read c", "label c", "write b", "write c"]
    assert several.events == side_by_side
    several.events.clear()
    monkeypatch.setattr(segment, "_SIDE_BY_SIDE_VOXELS", 59)  # one less than the CTs have
    assert several("a.nii", "b.nii") == 0
    assert several.events == ["read a", "label a", "write a", "read b", "label b", "write b"]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (InputError("b.nii is no CT"), 2, "[2/3] b.nii is no CT"),
        (MemoryError(), 2, "[2/3] b.nii: Not enough memory"),
        (RuntimeError("bug"), 1, "[2/3] b.nii: Unexpected RuntimeError: bug"),
    ],
)
def test_one_that_fails_is_named_and_the_others_go_on(several, capsys, error, status, words):
    assert several("a.nii", "b.nii", "c.nii", "--json", b=error) == status
    out, err = capsys.readouterr()
    assert [line for line in err.splitlines() if line.startswith("Error: ")][0].startswith(f"Error: {words}")
    assert err.splitlines()[-1] == "Error: 1 of 3 CTs could not be segmented: b.nii"
    objects = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert [one["input"] for one in objects] == ["a.nii", "b.nii", "c.nii"]
    assert set(objects[1]) == {"input", "error"}
    assert "2 of 3 CTs segmented" in out


def test_a_reference_goes_with_one_ct(several, capsys):
    assert several("a.nii", "b.nii", "--reference", "labels.nii") == 2
    assert "--reference" in capsys.readouterr().err and not several.loaded


def test_ctrl_c_stops_all(several, capsys):
    assert several("a.nii", "b.nii", "c.nii", b=KeyboardInterrupt()) == 1
    out, err = capsys.readouterr()
    assert "Stopped" in err and "c.nii" not in out


# A full disk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_called_so(tmp_path, code):
    assert "no space left" in str(not_writable(tmp_path, OSError(code, os.strerror(code))))
    assert "no space left" not in str(not_writable(tmp_path, PermissionError(errno.EACCES, "Permission denied")))


@pytest.mark.parametrize(("free", "expected"), [(0, True), (1 << 30, False)])
def test_writers_that_do_not_say_why_are_asked_the_disk(tmp_path, monkeypatch, free, expected):
    monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _folder: SimpleNamespace(free=free))

    def fail(*_arguments):
        raise RuntimeError("ITK: error in line 12")

    monkeypatch.setattr(image_io.sitk, "WriteImage", fail)
    with pytest.raises(InputError) as refusal:
        write_labels(tmp_path / "x.nii.gz", np.zeros((3, 4, 5), np.uint8), Volume(np.zeros((3, 4, 5))))
    assert ("no space left" in str(refusal.value)) == expected
    assert "line 12" not in str(refusal.value)


def test_review_writes_where_to_look_first(segment_script, monkeypatch, tmp_path, capsys):
    from bad_input import save, use_known_model

    use_known_model(monkeypatch)
    ct = save(tmp_path / "ct.nii.gz")
    arguments = [str(ct), "--output", str(tmp_path / "out"), "--json"]
    assert segment_script.main(arguments) == 0
    assert "places" not in json.loads(capsys.readouterr().out.splitlines()[-1])
    assert not (tmp_path / "out" / "ct_places.csv").exists()
    assert segment_script.main([*arguments, "--review"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert Path(result["output"]["places"]) == tmp_path / "out" / "ct_places.csv"
    rows = list(csv.DictReader((tmp_path / "out" / "ct_places.csv").open(encoding="utf-8", newline="")))
    assert [row["kind"] for row in rows] == [place["kind"] for place in result["places"]]
    assert {row["organ"] for row in rows if row["kind"] == "missing"} == {"right_kidney", "left_kidney", "spleen"}
    assert {row["ml"] for row in rows if row["kind"] == "cut"} <= {""}
    image = sitk.ReadImage(str(ct))
    for row, place in zip(rows, result["places"], strict=True):
        assert (row["ml"] == "") == (place["ml"] is None)
        assert (row["text"], row["side"]) == (place["text"], place["side"])
        if not row["i"]:
            assert place["i"] is None and row["right_mm"] == ""
            continue
        lps = image.TransformContinuousIndexToPhysicalPoint([float(row[axis]) for axis in "ijk"])
        found = [float(row[name]) for name in ("right_mm", "anterior_mm", "superior_mm")]
        np.testing.assert_allclose(found, np.array(lps) * (-1, -1, 1), atol=1)


# Time ---------------------------------------------------------------------------------------------


def test_a_ct_that_cannot_be_read_is_told_at_its_turn(several, monkeypatch, capsys):
    session = segment.Session
    read = session.read

    def failing(self, source):
        if source.name == "b":
            return ThreadPoolExecutor(1).submit(lambda: (_ for _ in ()).throw(InputError("b.nii is damaged")))
        return read(self, source)

    monkeypatch.setattr(session, "read", failing)
    assert several("a.nii", "b.nii", "c.nii") == 2
    out, err = capsys.readouterr()
    assert "[2/3] b.nii is damaged" in err
    assert several.events == ["read a", "label a", "write a", "read c", "label c", "write c"]


def test_the_collector_rests_while_pytorch_is_imported_and_goes_on_afterwards():
    with not_collecting():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with not_collecting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_what_was_made_in_a_circle_meanwhile_is_given_back():
    class Image:
        pass

    with not_collecting():
        image = Image()
        image.itself = image
        there = weakref.ref(image)
        del image
    gc.collect()
    assert there() is None


def test_leaving_stops_what_is_being_labeled(monkeypatch, tmp_path):
    """Ctrl-C does not wait for the network, which looks between its layers whether anybody still wants its answer."""
    begun, seen = threading.Event(), []

    class Segmenter:
        organs = ()

        def segment(self, volume, request, progress, cancelled):
            begun.set()
            while not cancelled():
                time.sleep(0.001)
            seen.append("stopped")
            raise Cancelled("stopped")

    monkeypatch.setattr(segment, "_load_segmenter", lambda options: Segmenter())
    options = segment.parse_arguments(["a.nii", "b.nii", "--output", str(tmp_path)])
    case = segment.Case("a", "a.nii", Volume(np.zeros((3, 4, 5), np.int16)))
    with segment.Session(options, lambda line: None) as session:
        labeling = session.begin(case, 0.0)
        assert begun.wait(60)
    with pytest.raises(Cancelled):
        labeling.result(60)
    assert seen == ["stopped"]
