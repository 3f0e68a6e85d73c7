"""The client of the worker process: results, cancelling, death, and nothing left behind."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from panel_driver import FAKE_WORKER, process_id

from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume


class Listener:
    def __init__(self):
        self.progress, self.results, self.failures = [], [], []

    def onProgress(self, fraction, stage):
        self.progress.append((fraction, stage))

    def onResult(self, labels, result):
        self.results.append((labels, result))

    def onFailure(self, message):
        self.failures.append(message)


@pytest.fixture
def worker(slicer_app):
    from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

    process = WorkerProcess([sys.executable, str(FAKE_WORKER)])
    yield process
    process.close()


@pytest.fixture
def volume():
    array = np.zeros((6, 5, 4), np.int16)
    array[1:3, 1:4, 0:2] = 1001
    return Volume(array, (1.0, 2.0, 3.0))


@pytest.fixture
def until(slicer_app):
    """Run the event loop until a condition holds."""

    def wait(condition, seconds=15.0):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            slicer_app.processEvents()
            time.sleep(0.005)

    return wait


def request(kind):
    return SegmentationRequest(Path(kind))


def shared_files():
    """What this process shares with its workers at the moment."""
    from FlareSegmentLib.worker.shared_files import _parent_folders

    own = f".flaresegment-*-{os.getpid()}-"
    return [file for parent in _parent_folders() for file in parent.glob(own + "*/*")]


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_segmentation_reports_progress_and_labels(worker, volume, until):
    listener = Listener()
    worker.segment(volume, request("good"), listener)
    until(lambda: listener.results)
    found, result = listener.results[0]
    assert found.box == (slice(1, 3), slice(1, 4), slice(0, 2))
    np.testing.assert_array_equal(found.array, volume.array[found.box] == 1001)
    stages = [stage for _, stage in listener.progress]
    assert stages == ["Copying the CT", "Finding the organs", "Outlining the organs"]
    assert result.organs["liver"]["volume_ml"] == pytest.approx(12 * 6 / 1000)
    assert not listener.failures
    assert not shared_files()


def test_the_process_stays_warm(worker, volume, until):
    ready, listener = [], Listener()
    worker.warm_up(request("good"), ready.append, pytest.fail)
    until(lambda: ready)
    pid = process_id(worker)
    for expected in (1, 2):
        worker.segment(volume, request("good"), listener)
        until(lambda expected=expected: len(listener.results) == expected)
        assert process_id(worker) == pid


def test_a_worker_that_never_gets_ready_is_given_up_after_a_cancel(worker, volume, until, monkeypatch):
    from FlareSegmentSlicerLib.logic import worker_process

    monkeypatch.setattr(worker_process, "WARM_UP_PATIENCE_MS", 200)
    failures, cancelled, after = [], Listener(), Listener()
    worker.warm_up(request("hung"), pytest.fail, failures.append)
    worker.segment(volume, request("good"), cancelled)
    pid = process_id(worker)
    until(lambda: worker._conversations[0].waiting)
    worker.cancel()
    worker.segment(volume, request("good"), after)
    until(lambda: after.results)
    assert "took too long" in failures[0].message and len(failures) == 1
    assert not cancelled.results and not cancelled.failures
    until(lambda: not is_running(pid))


@pytest.mark.parametrize("kind", ["slow", "deaf"])
def test_after_cancel_the_listener_hears_nothing_and_the_next_run_works(worker, volume, until, kind, monkeypatch):
    from FlareSegmentSlicerLib.logic import worker_process

    cancelled, after = Listener(), Listener()
    worker.segment(volume, request(kind), cancelled)
    until(lambda: len(cancelled.progress) > 2)
    pid = process_id(worker)
    worker.cancel()
    heard = len(cancelled.progress)
    start = time.monotonic()
    worker.segment(volume, request("good"), after)
    until(lambda: after.results)
    patience = worker_process.CANCEL_PATIENCE_MS / 1000
    assert len(cancelled.progress) == heard
    assert not cancelled.results
    assert not cancelled.failures
    if kind == "slow":
        assert process_id(worker) == pid, "it stopped by itself, before the patience was over"
    else:
        assert time.monotonic() - start >= patience
        until(lambda: not is_running(pid))
    assert not shared_files()


def test_cancel_while_the_result_is_read_drops_the_result(worker, volume, until, monkeypatch):
    from FlareSegmentSlicerLib.logic import worker_process

    listener, pieces = Listener(), []

    def read(result):
        while True:
            pieces.append(result)
            yield

    monkeypatch.setattr(worker_process, "_read", read)
    worker.segment(volume, request("good"), listener)
    until(lambda: len(pieces) > 2)
    assert shared_files()
    pid = process_id(worker)
    worker.cancel()
    assert not shared_files()
    monkeypatch.undo()
    after = Listener()
    worker.segment(volume, request("good"), after)
    until(lambda: after.results)
    assert not listener.results
    assert not listener.failures
    assert process_id(worker) == pid, "the worker had done its work and is kept"


@pytest.mark.parametrize(("error", "words"), [(ValueError("torn"), "torn"), (MemoryError(), "MemoryError")])
def test_a_result_that_cannot_be_read_is_one_line(worker, volume, until, monkeypatch, error, words):
    from FlareSegmentSlicerLib.logic import worker_process

    def read(result):
        yield
        raise error

    listener = Listener()
    monkeypatch.setattr(worker_process, "_read", read)
    worker.segment(volume, request("good"), listener)
    until(lambda: listener.failures)
    assert listener.failures == [f"The result could not be read: {words}"]
    assert not listener.results
    assert not shared_files()


def test_without_room_for_the_copy_there_is_one_line_and_no_file(worker, volume, until, monkeypatch):
    from FlareSegmentLib.worker import shared_files as module

    def full(array):
        yield b""
        raise OSError("No space left on device")

    listener, failures = Listener(), []
    monkeypatch.setattr(module, "_pieces", full)
    worker.segment(volume, request("good"), listener)
    labels = np.zeros((2, 3, 4), np.uint8)
    worker.compare(labels, labels, (1.0, 1.0, 1.0), ("liver",), pytest.fail, failures.append)
    until(lambda: listener.failures and failures)
    assert listener.failures == failures == ["There is no room for the volume's copy: No space left on device"]
    assert not shared_files()


def test_without_room_for_the_second_of_two_label_maps_nothing_stays(worker, until, monkeypatch):
    from FlareSegmentLib.worker import shared_files as module

    real, first, failures = module._pieces, [], []

    def full(array):
        if first:
            raise OSError("No space left on device")
        first.append(array)
        return real(array)

    monkeypatch.setattr(module, "_pieces", full)
    labels = np.zeros((2, 3, 4), np.uint8)
    worker.compare(labels, labels, (1.0, 1.0, 1.0), ("liver",), pytest.fail, failures.append)
    until(lambda: failures)
    assert failures == ["There is no room for the volume's copy: No space left on device"]
    assert first and not shared_files()


@pytest.mark.parametrize("what", ["segmentation", "comparison"])
def test_cancel_while_voxels_are_copied_leaves_nothing(worker, volume, until, monkeypatch, what):
    from FlareSegmentLib.worker import shared_files as module

    def endless(array):
        while True:
            yield b"0"

    listener, after = Listener(), Listener()
    monkeypatch.setattr(module, "_pieces", endless)
    if what == "segmentation":
        worker.segment(volume, request("good"), listener)
    else:
        labels = np.zeros((2, 3, 4), np.uint8)
        worker.compare(labels, labels, (1.0, 1.0, 1.0), ("liver",), pytest.fail, pytest.fail)
    until(shared_files)
    worker.cancel()
    assert not shared_files()
    monkeypatch.undo()
    worker.segment(volume, request("good"), after)
    until(lambda: after.results)
    assert not listener.results and not listener.failures


def test_behind_a_launcher_the_worker_ends_with_it(slicer_app, volume, until, tmp_path):
    """PythonSlicer starts the Python that works: it is not the process that the panel knows."""
    from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

    file = tmp_path / "pid"
    code = (
        f"import os, runpy; open({str(file)!r}, 'w').write(str(os.getpid())); "
        f"runpy.run_path({str(FAKE_WORKER)!r}, run_name='__main__')"
    )
    launcher = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    worker, listener = WorkerProcess([sys.executable, "-c", launcher]), Listener()
    worker.segment(volume, request("deaf"), listener)
    until(lambda: len(listener.progress) > 1)
    pid = int(file.read_text())
    assert pid != process_id(worker) and is_running(pid)
    worker.close()
    until(lambda: not is_running(pid))
    assert not shared_files()


def test_one_conversation_waits_for_the_other(worker, volume, until):
    """Two segmentations and a comparison at once: each has its own answer, and what waits is dropped by `cancel`."""
    first, second, compared = Listener(), Listener(), []
    labels = np.zeros((2, 3, 4), np.uint8)
    worker.segment(volume, request("good"), first)
    worker.compare(labels, labels, (1.0, 1.0, 1.0), ("liver",), lambda *found: compared.append(found), pytest.fail)
    worker.segment(volume, request("wrong"), second)
    until(lambda: first.results and compared and second.failures)
    assert (len(first.results), len(compared), second.failures) == (1, 1, ["This is not a CT."])
    worker.segment(volume, request("slow"), first)
    worker.segment(volume, request("good"), second)
    until(lambda: len(first.progress) > 4)
    worker.cancel()
    worker.segment(volume, request("good"), third := Listener())
    until(lambda: third.results)
    assert (len(first.results), len(second.results), len(second.failures)) == (1, 0, 1)
    assert not shared_files()


def test_a_dead_worker_says_its_last_words_and_the_next_run_works(worker, volume, until):
    listener, after = Listener(), Listener()
    worker.segment(volume, request("dying"), listener)
    until(lambda: listener.failures)
    assert "out of breath" in listener.failures[0]
    assert "\n" not in listener.failures[0]
    assert not shared_files()
    worker.segment(volume, request("good"), after)
    until(lambda: after.results)
    assert len(listener.failures) == 1


def test_a_killed_worker_is_reported_once(worker, volume, until):
    listener = Listener()
    worker.segment(volume, request("slow"), listener)
    until(lambda: len(listener.progress) > 1)
    os.kill(process_id(worker), 9)
    until(lambda: listener.failures)
    assert "memory" in listener.failures[0]
    until(lambda: process_id(worker) == 0)
    assert len(listener.failures) == 1
    assert not listener.results


def test_a_program_that_does_not_start_is_reported(slicer_app, volume, until):
    from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

    worker, listener = WorkerProcess(["/no/such/python", "worker.py"]), Listener()
    worker.segment(volume, request("good"), listener)
    until(lambda: listener.failures)
    assert "/no/such/python" in listener.failures[0]
    worker.close()


def test_an_error_of_the_engine_arrives_as_one_line(worker, volume, until):
    listener = Listener()
    worker.segment(volume, request("wrong"), listener)
    until(lambda: listener.failures)
    assert listener.failures == ["This is not a CT."]


def test_close_leaves_no_process_and_no_file(worker, volume, until):
    listener = Listener()
    worker.segment(volume, request("deaf"), listener)
    until(lambda: len(listener.progress) > 1)
    pid = process_id(worker)
    assert shared_files()
    worker.close()
    assert not is_running(pid)
    assert not shared_files()
    assert process_id(worker) == 0


def test_the_worker_ends_with_its_client(worker, volume, until):
    listener = Listener()
    worker.segment(volume, request("slow"), listener)
    until(lambda: len(listener.progress) > 1)
    pid = process_id(worker)
    worker._process.closeWriteChannel()
    until(lambda: not is_running(pid))


def test_the_worker_runs_at_the_priority_that_was_asked_for(slicer_app, until):
    """Whatever Slicer's own is; another one takes another process, as soon as the one that runs is idle."""
    from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

    command = [sys.executable, str(FAKE_WORKER)]
    process, ready = WorkerProcess(command), []

    def niceness():
        ready.clear()
        process.warm_up(request("good"), ready.append, pytest.fail)
        until(lambda: ready)
        return ready[0].niceness

    try:
        first = niceness()
        own = process_id(process)
        process.set_background(False)
        assert process_id(process) == own
        process.set_background(True)
        assert not is_running(own)
        assert niceness() == 19
        process.set_background(False)
        assert niceness() == first
    finally:
        process.close()


def test_no_file_of_a_result_is_held_while_its_labels_live(worker, volume, until, monkeypatch):
    """Windows cannot remove a file that is mapped into memory."""
    listener = Listener()
    worker.segment(volume, request("good"), listener)
    until(lambda: listener.results)
    array = listener.results[0][0].array
    while array is not None:
        assert not isinstance(array, np.memmap)
        array = array.base if isinstance(array, np.ndarray) else None
