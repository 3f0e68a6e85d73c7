"""Messages of `FlareSegmentLib.worker.protocol` and arrays of `shared_files`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker import shared_files
from FlareSegmentLib.worker.protocol import (
    Cancel,
    Compare,
    Compared,
    Failure,
    Hello,
    Progress,
    ProtocolError,
    Ready,
    Request,
    Result,
    Segment,
    decode_event,
    decode_request,
    encode,
)
from FlareSegmentLib.worker.shared_files import (
    SharedBox,
    SharedVolume,
    finish,
    map_array,
    read_array,
    shared_folders,
    write_array,
)

BOX = slice(0, 1), slice(2, 3), slice(4, 5)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two folders instead of /dev/shm and the one for temporary files."""
    folders = [tmp_path / "memory", tmp_path / "disk"]
    for folder in folders:
        folder.mkdir()
    monkeypatch.setattr(shared_files, "_parent_folders", lambda: folders)
    return folders


@pytest.mark.parametrize(
    "event",
    [
        Ready(1, [{"id": "cpu", "name": "any", "memory_gb": None}], 19),
        Progress(1, 0.25, "Größe"),
        Failure(None, "bad", "trace"),
        Compared(4, {"liver": {"dice": 1.0, "nsd": 1.0, "hd95_mm": None}}, SharedBox("d", BOX)),
        Result(
            1,
            {"total": 1.5},
            ["warning"],
            "cpu",
            "model 1",
            {"liver": {"volume_ml": 1.0, "mean_hu": None}},
            SharedBox("ö", BOX),
            "surfaces",
            [{"kind": "remark"}],
            SharedBox("c", BOX),
        ),
    ],
    ids=lambda event: type(event).__name__,
)
def test_events_round_trip_as_one_ascii_line(event) -> None:
    line = encode(event)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert line.isascii()
    assert decode_event(line) == event


@pytest.mark.parametrize(
    "request_",
    [
        Hello(1),
        Hello(2, SegmentationRequest(Path("/a model"), "cuda:1", 3, ("liver",), BOX, 0.25)),
        Cancel(1),
        Segment(
            3,
            SegmentationRequest(Path("ö"), region=BOX),
            SharedVolume("a", (1.0, 2.0, 3.0), (0.0, 0.0, -1.5), (1.0, *[0.0] * 8)),
            ("b", "c"),
        ),
    ],
    ids=lambda request: type(request).__name__,
)
def test_requests_round_trip(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


def test_a_segmentation_request_round_trips_with_its_voxels(places: list[Path]) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
    volume = Volume(array.transpose(2, 1, 0), (0.5, 1.5, 2.5), (1, 2, 3), np.diag([-1.0, 1.0, -1.0]))
    with shared_folders() as folder:
        request = SegmentationRequest(Path("model ö"), "cpu", 2)
        sent = Segment(7, request, finish(SharedVolume.write(folder, volume)), folder)
        got = decode_request(encode(sent))
        mapped = got.volume.map()
        np.testing.assert_array_equal(mapped.array, volume.array)
        assert mapped.same_grid(volume, 0)
        assert not mapped.array.flags.writeable
        assert got == sent
        written = np.arange(60, dtype=np.uint8).reshape(volume.array.shape)[1:4, 0:2, 2:3]
        labels = read_array(finish(write_array(got.folders, written)))
    np.testing.assert_array_equal(labels, written)
    assert [list(place.iterdir()) for place in places] == [[], []]


def test_what_a_segmentation_shall_keep_round_trips(places: list[Path]) -> None:
    request = SegmentationRequest(Path("m"), organs=("liver",), region=BOX, smoothing=0.25)
    with shared_folders() as folder:
        sent = Segment(1, request, finish(SharedVolume.write(folder, Volume(np.zeros((2, 3, 1))))), folder)
        got = decode_request(encode(sent))
    assert got.request == request


def test_a_comparison_request_round_trips_with_its_label_maps(places: list[Path]) -> None:
    labels, reference = (np.full((2, 3, 4), value, np.uint8) for value in (1, 4))
    with shared_folders() as folder:
        paths = [finish(write_array(folder, array)) for array in (labels, reference)]
        sent = Compare(5, *paths, (1.0, 2.0, 3.0), ("liver", "spleen"), folder)
        got = decode_request(encode(sent))
        np.testing.assert_array_equal(map_array(got.labels), labels)
        np.testing.assert_array_equal(map_array(got.reference), reference)
    assert (got.id, got.spacing, got.organs) == (5, (1.0, 2.0, 3.0), ("liver", "spleen"))


def test_a_copy_in_pieces_that_is_given_up_leaves_nothing(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "_PIECE_BYTES", 12)
    array = np.arange(60, dtype=np.int16).reshape(10, 2, 3)
    with shared_folders() as folder:
        steps = write_array(folder, array)
        assert [next(steps) for _ in range(11)] == [None] * 11
        steps.close()
        np.testing.assert_array_equal(map_array(finish(write_array(folder, array))), array)
    assert [list(place.iterdir()) for place in places] == [[], []]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"1",
        b"{}",
        b'{"id":1,"kind":"Format"}',
        b'{"id":1,"kind":"Ready"}',
        b'{"id":"x","kind":"Hello"}',
        b'{"kind":"Hello"}',
        b'{"id":1,"kind":"Hello","request":{"threads":"two"}}',
        b'{"id":1,"kind":"Segment","request":{"model":"m"}}',
        b'{"id":1,"kind":"Segment","request":{},"volume":{"voxels":7,"spacing":[1,1,1],"origin":[0,0,0],'
        b'"direction":[1,0,0,0,1,0,0,0,1]},"folders":["b"]}',
    ],
)
def test_malformed_requests_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(line)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[]",
        b'{"kind":"Hello","id":1}',
        b'{"kind":"Progress","id":1}',
        b'{"kind":"Progress","id":1,"fraction":0.5,"stage":"","x":2}',
    ],
)
def test_malformed_events_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_event(line)


def test_numbers_that_json_does_not_know_are_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(Progress(1, float("inf"), ""))


def fill_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be written there."""

    real = tempfile.mkstemp

    def read_only(dir: str) -> tuple[int, str]:
        handle, path = real(dir=dir)
        if str(place) not in dir:
            return handle, path
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), path

    monkeypatch.setattr(tempfile, "mkstemp", read_only)


def test_blocks_are_private_and_fall_back_when_memory_is_full(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared_folders() as folder:
        block = Path(finish(write_array(folder, np.arange(10))))
        assert block.is_relative_to(places[0])
        if os.name == "posix":
            assert os.stat(block).st_mode & 0o077 == 0
            assert os.stat(block.parent).st_mode & 0o077 == 0
        fill_up(places[0], monkeypatch)
        moved = Path(finish(write_array(folder, np.arange(10))))
        assert moved.is_relative_to(places[1])
        np.testing.assert_array_equal(map_array(moved), np.arange(10))
        assert list(block.parent.iterdir()) == [block]
    assert not any(place.exists() and list(place.iterdir()) for place in places)


def test_no_room_anywhere_is_an_os_error_and_leaves_nothing(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in places:
        fill_up(place, monkeypatch)
    with shared_folders() as folder:
        with pytest.raises(OSError, match="No space"):
            finish(SharedVolume.write(folder, Volume(np.zeros((2, 2, 2)))))
        assert not any(file.is_file() for place in places for file in place.rglob("*"))


def test_what_a_crashed_client_left_is_removed_and_a_living_ones_is_not(places: list[Path]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with shared_folders() as folders:
        prefix = Path(folders[0]).name.partition(f"{os.getpid()}-")[0]
    for pid in (dead.pid, os.getppid()):
        (places[0] / f"{prefix}{pid}-abc").mkdir()
    (places[0] / f"{prefix}notes-x").mkdir()
    (places[0] / f"{prefix}{dead.pid}-abc" / "x.raw").write_bytes(b"1")
    with shared_folders() as folders:
        assert sorted(p.name for p in places[0].iterdir()) == sorted(
            [f"{prefix}{os.getppid()}-abc", f"{prefix}notes-x", Path(folders[0]).name]
        )


@pytest.mark.parametrize("read", [map_array, read_array])
@pytest.mark.parametrize("kept", [0, 4, 100, -1], ids=["nothing", "half a magic", "the header", "all but one byte"])
def test_a_file_that_is_too_short_is_refused(places: list[Path], read, kept: int) -> None:
    with shared_folders() as folder:
        path = Path(finish(write_array(folder, np.zeros((2, 3), np.uint8))))
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ValueError, match="."):
            read(str(path))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.int16).reshape(2, 3, 4).T,
        np.arange(24, dtype=">f4").reshape(2, 3, 4)[:, ::-1],
        np.zeros((0, 0, 0), np.uint8),
    ],
    ids=["Fortran order", "another machine's bytes", "nothing"],
)
def test_any_array_arrives_in_c_order(places: list[Path], array: np.ndarray) -> None:
    with shared_folders() as folder:
        got = read_array(finish(write_array(folder, array)))
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype and got.flags.c_contiguous


def test_no_torch_and_no_slicer_is_needed_to_speak_it() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'slicer', 'vtk', 'qt', 'ctk', 'cc3d')))\n"
        "for name in ('worker.protocol', 'volume', 'files.image_io', 'files.dicom_folder', 'measures.metrics'):\n"
        "    __import__('FlareSegmentLib.' + name)\n"
    )
    root = Path(__file__).resolve().parents[3] / "FlareSegment"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=60)
