"""The worker's answers one by one, in this process: what the tests of the whole process cannot bring about at will."""

from __future__ import annotations

import errno
import io
import os
import sys
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
from test_faults import make_model
from test_worker import prepared

from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker import main as worker_module
from FlareSegmentLib.worker.main import Worker
from FlareSegmentLib.worker.protocol import (
    Event,
    Failure,
    Hello,
    Progress,
    Ready,
    Request,
    Result,
    Segment,
    decode_event,
    encode,
)
from FlareSegmentLib.worker.shared_files import SharedVolume, finish, read_array, shared_folders
from FlareSegmentSlicerLib.logic.worker_entry import make_surfaces


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def request_with_surfaces(model: Path) -> Iterator[Segment]:
    array = np.random.default_rng(0).normal(20, 150, (16, 20, 20)).astype(np.int16)
    volume = Volume(array, (8.0, 8.0, 8.0))
    with shared_folders() as folder:
        yield prepared(1, volume, folder, model, "cpu", 1, smoothing=0.5)


class Conversation:
    """A worker that answers one request after another into memory."""

    def __init__(self) -> None:
        self.stream = io.BytesIO()
        self.worker = Worker(io.BytesIO(), self.stream, make_surfaces)

    def answer(self, request: Request) -> Event:
        """The last event of the answer, after nothing but progress."""
        self.stream.seek(0)
        self.stream.truncate()
        last = self.worker._answer(request)
        assert all(isinstance(decode_event(line), Progress) for line in self.stream.getvalue().splitlines())
        return decode_event(encode(last))


def files_in(message: Segment) -> set[str]:
    return {str(file) for folder in message.folders for file in Path(folder).iterdir()}


def no_room(folders: tuple[str, ...], pieces: object) -> Generator:
    yield
    raise OSError(errno.ENOSPC, "No space left on device")


def test_without_vtk_there_are_labels_and_no_surfaces(
    request_with_surfaces: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "FlareSegmentSlicerLib.rendering.segment_surfaces", None)
    result = Conversation().answer(request_with_surfaces)
    assert isinstance(result, Result) and result.surfaces is None
    assert files_in(request_with_surfaces) == {request_with_surfaces.volume.voxels, result.labels.path}
    assert np.count_nonzero(read_array(result.labels.path)) > 0


def test_surfaces_without_room_are_left_to_slicer(
    request_with_surfaces: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "write_file", no_room)
    result = Conversation().answer(request_with_surfaces)
    assert isinstance(result, Result) and result.surfaces is None
    assert files_in(request_with_surfaces) == {request_with_surfaces.volume.voxels, result.labels.path}


def ask_for_a_review(model: Path, folder: tuple[str, ...], review: bool = True) -> Segment:
    array = np.random.default_rng(0).normal(20, 150, (16, 20, 20)).astype(np.int16)
    request = SegmentationRequest(model, "cpu", 1, review=review)
    return Segment(1, request, finish(SharedVolume.write(folder, Volume(array, (8.0, 8.0, 8.0)))), folder)


def test_the_confidence_travels_only_where_it_was_asked_for(model: Path) -> None:
    with shared_folders() as folder:
        result = Conversation().answer(ask_for_a_review(model, folder, review=False))
        assert result.places is None and result.confidence is None
        message = ask_for_a_review(model, folder)
        result = Conversation().answer(message)
        expected = Segmenter.of(message.request).segment(message.volume.map(), message.request)
        found = np.frombuffer(zlib.decompress(Path(result.confidence.path).read_bytes()), np.uint8)
    np.testing.assert_array_equal(found.reshape(expected.confidence.array.shape), expected.confidence.array)
    assert result.confidence.box == expected.confidence.box
    assert [place["ml"] for place in result.places] == [place.ml for place in expected.places]
    assert result.places[0].keys() == {"kind", "organ", "side", "ml", "center", "box", "text"}


def test_a_confidence_without_room_is_left_out(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shared_folders() as folder:
        message = ask_for_a_review(model, folder)
        monkeypatch.setattr(worker_module, "write_file", no_room)
        result = Conversation().answer(message)
        assert isinstance(result, Result) and result.confidence is None and result.places
        assert files_in(message) == {message.volume.voxels, result.labels.path}


@pytest.mark.parametrize("moment", ["before the surfaces", "between two surfaces"])
def test_cancel_is_heard_until_the_last_moment(
    request_with_surfaces: Segment, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    from FlareSegmentLib.measures import organ_statistics
    from FlareSegmentSlicerLib.rendering import segment_surfaces

    talk = Conversation()
    module, name = {
        "before the surfaces": (organ_statistics, "organ_statistics"),
        "between two surfaces": (segment_surfaces, "organ_surface"),
    }[moment]
    real = getattr(module, name)

    def cancel(*arguments: object, **keywords: object):
        talk.worker._cancelled.add(1)
        return real(*arguments, **keywords)

    monkeypatch.setattr(module, name, cancel)
    assert talk.answer(request_with_surfaces) == Failure(1, "It was cancelled.")
    assert files_in(request_with_surfaces) == {request_with_surfaces.volume.voxels}


def test_too_little_memory_is_told_with_what_to_do(
    request_with_surfaces: Segment, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = Conversation()

    def greedy(*_arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr(talk.worker, "_segmenter_for", greedy)
    failure = talk.answer(request_with_surfaces)
    assert isinstance(failure, Failure)
    assert "crop the CT" in failure.message and "MemoryError" in failure.details


def test_a_warm_model_is_kept_and_another_replaces_it(model: Path, tmp_path: Path) -> None:
    talk = Conversation()
    for number, folder in enumerate((model, model, make_model(tmp_path / "second", 1))):
        before = talk.worker._segmenter
        assert isinstance(talk.answer(Hello(number, SegmentationRequest(folder, "cpu", 1))), Ready)
        assert talk.worker._segmenter.name == ("random 0 1" if number < 2 else "random 1 1")
        assert (talk.worker._segmenter is before) == (number == 1)


def test_it_ends_when_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(BaseException):
        pass

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(worker_module.os, "_exit", end)
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb", buffering=0) as events, pytest.raises(Ended, match="0"):
        Worker(io.BytesIO(), events, make_surfaces)._send(Failure(1, ""))
