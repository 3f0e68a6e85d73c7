"""Messages of `FlareSegmentLib.worker.protocol` and arrays of `shared_files`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest

from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker import shared_files
from FlareSegmentLib.worker.protocol import (
    Cancel,
    Cancelled,
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
from FlareSegmentLib.worker.shared_files import SharedArray, SharedFolder, SharedVolume, finish

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
        Ready(1, 2, [{"id": "cpu", "name": "any", "memory_gb": None}], 19),
        Progress(1, 0.25, "Größe"),
        Cancelled(3),
        Failure(None, "input", "bad", "trace"),
        Compared(4, {"liver": {"dice": 1.0, "nsd": 1.0, "hd95_mm": None}}, BOX),
        Result(
            1, {"total": 1.5}, ["warning"], "cpu", "model 1", {"liver": {"volume_ml": 1.0, "mean_hu": None}}, BOX, True
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
            SharedVolume(SharedArray("a", "<i2", (2, 3, 4)), (1.0, 2.0, 3.0), (0.0, 0.0, -1.5), (1.0, *[0.0] * 8)),
            SharedArray("b", "|u1", (2, 3, 4)),
            "c",
        ),
    ],
    ids=lambda request: type(request).__name__,
)
def test_requests_round_trip(request_: Request) -> None:
    assert decode_request(encode(request_)) == request_


def test_a_segmentation_request_round_trips_with_its_voxels(places: list[Path]) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)
    volume = Volume(array.transpose(2, 1, 0), (0.5, 1.5, 2.5), (1, 2, 3), np.diag([-1.0, 1.0, -1.0]))
    with SharedFolder() as folder:
        sent = finish(Segment.prepare(7, SegmentationRequest(Path("model ö"), "cpu", 2), volume, folder))
        got = decode_request(encode(sent))
        mapped = got.volume.map()
        np.testing.assert_array_equal(mapped.array, volume.array)
        assert mapped.same_grid(volume, 0)
        assert not mapped.array.flags.writeable
        assert got == sent
        written = np.arange(60, dtype=np.uint8).reshape(volume.array.shape)
        box = slice(1, 4), slice(0, 2), slice(2, 3)
        got.labels.write_box(written, box)
        labels = sent.labels.read_box(box)
    np.testing.assert_array_equal(labels, written[1:4, 0:2, 2:3])
    assert [list(place.iterdir()) for place in places] == [[], []]


def test_what_a_segmentation_shall_keep_round_trips(places: list[Path]) -> None:
    request = SegmentationRequest(Path("m"), organs=("liver",), region=BOX, smoothing=0.25)
    with SharedFolder() as folder:
        sent = finish(Segment.prepare(1, request, Volume(np.zeros((2, 3, 1))), folder))
        got = decode_request(encode(sent))
    assert got.request == request
    assert got.surfaces == sent.surfaces is not None


def test_a_review_asks_for_a_file_for_the_confidence(places: list[Path]) -> None:
    volume = Volume(np.zeros((2, 3, 4)))
    with SharedFolder() as folder:
        plain = finish(Segment.prepare(1, SegmentationRequest(Path("m")), volume, folder))
        sent = finish(Segment.prepare(1, SegmentationRequest(Path("m"), review=True), volume, folder))
        got = decode_request(encode(sent))
        assert Path(got.confidence).read_bytes() == b""
    assert plain.confidence is None and got.request.review and got.confidence == sent.confidence


def test_a_comparison_request_round_trips_with_its_label_maps(places: list[Path]) -> None:
    labels, reference = (np.full((2, 3, 4), value, np.uint8) for value in (1, 4))
    with SharedFolder() as folder:
        sent = finish(Compare.prepare(5, labels, reference, (1.0, 2.0, 3.0), ("liver", "spleen"), folder))
        got = decode_request(encode(sent))
        np.testing.assert_array_equal(got.labels.map(), labels)
        np.testing.assert_array_equal(got.reference.map(), reference)
    assert (got.id, got.spacing, got.organs) == (5, (1.0, 2.0, 3.0), ("liver", "spleen"))


def test_a_copy_in_pieces_that_is_given_up_leaves_nothing(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_files, "_PIECE_BYTES", 12)
    array = np.arange(60, dtype=np.int16).reshape(10, 2, 3)
    with SharedFolder() as folder:
        steps = folder.put(array)
        assert [next(steps) for _ in range(10)] == [None] * 10
        steps.close()
        assert not list(places[0].rglob("*.raw"))
        np.testing.assert_array_equal(finish(folder.put(array)).map(), array)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"1",
        b"{}",
        b'{"id":1,"command":"format"}',
        b'{"id":"x","command":"hello"}',
        b'{"command":"hello"}',
        b'{"id":1,"command":"hello","request":{"threads":"two"}}',
        b'{"id":1,"command":"segment","request":{"model":"m"}}',
        b'{"id":1,"command":"segment","request":{},"volume":{"voxels":{"path":"a","dtype":"<i2","shape":[2,2,2]},'
        b'"spacing":[1,1,1],"origin":[0,0,0],"direction":[1,0,0,0,1,0,0,0,1]},'
        b'"labels":{"path":"b","dtype":"|u1","shape":[2,2,3]}}',
    ],
)
def test_malformed_requests_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_request(line)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b'{"event":"hello"}', b'{"event":"progress","id":1}', b'{"event":"cancelled","id":1,"x":2}']
)
def test_malformed_events_are_refused(line: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_event(line)


def test_numbers_that_json_does_not_know_are_not_sent() -> None:
    with pytest.raises(ValueError, match="JSON"):
        encode(Progress(1, float("inf"), ""))


def fill_up(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on nothing can be written there."""

    def guarded(real):
        def write(file, *arguments) -> None:
            if str(place) in os.readlink(f"/proc/self/fd/{file.fileno()}"):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file, *arguments)

        return write

    for name in ("_write", "_reserve"):
        monkeypatch.setattr(shared_files, name, guarded(getattr(shared_files, name)))


def test_blocks_are_private_and_fall_back_when_memory_is_full(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SharedFolder() as folder:
        block = finish(folder.put(np.arange(10)))
        assert Path(block.path).is_relative_to(places[0])
        if os.name == "posix":
            assert os.stat(block.path).st_mode & 0o077 == 0
            assert os.stat(Path(block.path).parent).st_mode & 0o077 == 0
        fill_up(places[0], monkeypatch)
        block = finish(folder.put(np.arange(10)))
        assert Path(block.path).is_relative_to(places[1])
        np.testing.assert_array_equal(block.map(), np.arange(10))
        assert Path(finish(folder.reserve(100))).is_relative_to(places[1])
        assert len(list(places[0].rglob("*.raw"))) == 1
    assert not any(place.exists() and list(place.iterdir()) for place in places)


def test_no_room_anywhere_is_an_os_error_and_leaves_nothing(
    places: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in places:
        fill_up(place, monkeypatch)
    with SharedFolder() as folder, pytest.raises(OSError, match="No space"):
        finish(Segment.prepare(1, SegmentationRequest(), Volume(np.zeros((2, 2, 2))), folder))
    assert not any(list(place.rglob("*.raw")) for place in places)


def requests_into(folder: SharedFolder) -> list[Generator]:
    """The steps of a segmentation and of a comparison, three files each."""
    labels = np.zeros((2, 3, 4), np.uint8)
    request = SegmentationRequest(smoothing=0.5)
    return [
        Segment.prepare(1, request, Volume(labels.astype(np.int16)), folder),
        Compare.prepare(2, labels, labels, (1.0, 1.0, 1.0), ("liver",), folder),
    ]


@pytest.mark.parametrize("number", [0, 1], ids=["segmentation", "comparison"])
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_without_room_for_all_of_a_request_nothing_of_it_stays(
    places: list[Path], monkeypatch: pytest.MonkeyPatch, kept: int, number: int
) -> None:
    """The file after the first `kept` ones finds no room."""
    real, counted = SharedFolder._new_file, []

    def some(self, fill):
        if len(counted) == kept:
            raise OSError(errno.ENOSPC, "No space left on device")
        counted.append(fill)
        return (yield from real(self, fill))

    monkeypatch.setattr(SharedFolder, "_new_file", some)
    with pytest.raises(OSError, match="No space"), SharedFolder() as folder:
        finish(requests_into(folder)[number])
    assert len(counted) == kept
    assert [list(place.iterdir()) for place in places] == [[], []]


@pytest.mark.parametrize("number", [0, 1], ids=["segmentation", "comparison"])
def test_a_request_that_is_given_up_leaves_nothing(places: list[Path], number: int) -> None:
    with SharedFolder() as folder:
        steps = requests_into(folder)[number]
        next(steps), next(steps)
        assert len(list(places[0].rglob("*.raw"))) == 2
        steps.close()
    assert [list(place.iterdir()) for place in places] == [[], []]


@pytest.mark.parametrize("how", ["as the system does", "as others do"])
def test_reserved_room_is_really_there(places: list[Path], monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """No hole in the file, of which a full disk or memory would show only later; also where fallocate is unknown."""
    if how == "as others do":

        def unsupported(*_arguments: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(os, "posix_fallocate", unsupported, raising=False)
    size = 3 * shared_files._PIECE_BYTES + 5000
    with SharedFolder() as folder:
        facts = os.stat(finish(folder.reserve(size)))
    assert facts.st_size == size
    if hasattr(facts, "st_blocks"):
        assert facts.st_blocks * 512 >= size


def test_an_answer_gives_back_the_room_that_it_does_not_need(places: list[Path]) -> None:
    array = np.arange(1000, dtype=np.uint8).reshape(10, 10, 10)
    box = slice(2, 4), slice(1, 5), slice(0, 3)
    with SharedFolder() as folder:
        request = finish(Segment.prepare(1, SegmentationRequest(), Volume(array.astype(np.int16)), folder))
        assert os.path.getsize(request.labels.path) == array.size
        request.labels.write_box(array, box)
        assert os.path.getsize(request.labels.path) == 2 * 4 * 3
        np.testing.assert_array_equal(request.labels.read_box(box), array[box])
        request.labels.write_box(array, (slice(0, 0),) * 3)
        assert os.path.getsize(request.labels.path) == 0


def test_what_a_crashed_client_left_is_removed_and_a_living_ones_is_not(places: list[Path]) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for pid in (dead.pid, os.getppid()):
        (places[0] / f"flaresegment-{pid}-abc").mkdir()
    (places[0] / "flaresegment-notes-x").mkdir()
    (places[0] / f"flaresegment-{dead.pid}-abc" / "x.raw").write_bytes(b"1")
    with SharedFolder():
        assert sorted(p.name for p in places[0].iterdir()) == sorted(
            [f"flaresegment-{os.getppid()}-abc", "flaresegment-notes-x"]
        )


def test_blocks_keep_to_their_shape(places: list[Path]) -> None:
    with SharedFolder() as folder:
        block = finish(folder.put(np.zeros((2, 3), np.uint8)))
        whole = slice(0, 2), slice(0, 3)
        for array in (np.zeros((3, 2), np.uint8), np.zeros((2, 3), np.int16)):
            with pytest.raises(ValueError, match="expected"):
                block.write_box(array, whole)
        Path(block.path).write_bytes(b"123")
        with pytest.raises(ValueError, match="."):
            block.read_box(whole)
        with pytest.raises(ValueError, match="."):
            block.map()


def test_no_torch_and_no_slicer_is_needed_to_speak_it() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'slicer', 'vtk', 'qt', 'ctk', 'cc3d')))\n"
        "for name in ('worker.protocol', 'volume', 'files.image_io', 'files.dicom_folder', 'measures.metrics'):\n"
        "    __import__('FlareSegmentLib.' + name)\n"
    )
    root = Path(__file__).resolve().parents[3] / "FlareSegment"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": str(root)}, timeout=60)
