"""The worker process, spoken to as the panel does: results, progress, cancelling, errors, and how it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import numpy as np
import pytest

from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import evaluate
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.model.model_file import load_model, save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import (
    Cancel,
    Compare,
    Compared,
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
from FlareSegmentLib.worker.shared_files import SharedVolume, finish, read_array, shared_folders, write_array
from FlareSegmentSlicerLib.logic import worker_entry
from FlareSegmentSlicerLib.rendering.segment_surfaces import read_surfaces

COMMAND = [sys.executable, worker_entry.__file__]
NETWORK = {
    "architecture": "vnet",
    "out_channels": 5,
    "base_channels": 4,
    "kernel_size": 3,
    "normalization": "batch",
    "encoder_convolutions": [1, 1, 1],
    "decoder_convolutions": [1, 1],
    "wide_decoder": False,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with random weights: it finds something everywhere."""
    import torch

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("a model ö")
    stages = Stage("coarse", "volume", NETWORK, (4.0, 4.0, 4.0)), Stage("fine", "organs", NETWORK, (2.0, 2.0, 2.0))
    labels = {1: "liver", 2: "right_kidney", 3: "left_kidney", 4: "spleen"}
    description = ModelDescription("random", "1", "none", labels, Intensity(-200, 300), stages)
    save_model(folder, description, {stage.name: build_network(NETWORK) for stage in stages})
    return folder


@pytest.fixture(scope="module")
def volume() -> Volume:
    array = np.random.default_rng(0).normal(20, 150, (40, 64, 64)).astype(np.int16)
    return Volume(array, (3.0, 3.0, 4.0), (-90.0, -90.0, 10.0))


class Client:
    """A worker process and the events it sent."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.events: Queue[Event | None] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.events.put(decode_event(line))
        self.events.put(None)

    def send(self, request: Request) -> None:
        self.process.stdin.write(encode(request))
        self.process.stdin.flush()

    def wait(self, *kinds: type) -> tuple[Event, list[Progress]]:
        """The next event of one of the kinds, and the progress before it."""
        seen = []
        while True:
            event = self.events.get(timeout=180)
            if isinstance(event, kinds):
                return event, seen
            assert isinstance(event, Progress), event
            seen.append(event)


@pytest.fixture(scope="module")
def shared_client() -> Iterator[Client]:
    client = Client()
    yield client
    client.process.stdin.close()
    assert client.process.wait(20) == 0


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.process.kill()
    client.process.wait()


@pytest.fixture
def folder() -> Iterator[tuple[str, ...]]:
    with shared_folders() as folder:
        yield folder


def prepared(id: int, volume: Volume, folder: tuple[str, ...], model: Path | str, *choices, **wishes) -> Segment:
    """A message for the worker, its voxels in the folder; choices and wishes as in `SegmentationRequest`."""
    request = SegmentationRequest(Path(model), *choices, **wishes)
    return Segment(id, request, finish(SharedVolume.write(folder, volume)), folder)


def received_labels(volume: Volume, result: Result) -> np.ndarray:
    """The whole label map of a volume."""
    labels = np.zeros(volume.array.shape, np.uint8)
    labels[result.labels.box] = read_array(result.labels.path)
    return labels


def test_hello_tells_what_is_there(shared_client: Client, model: Path) -> None:
    for message in (Hello(1), Hello(2, SegmentationRequest(model, "cpu", 1))):
        shared_client.send(message)
        ready, _ = shared_client.wait(Ready)
        assert ready.id == message.id
    shared_client.send(Hello(3, SegmentationRequest(model / "nowhere")))
    assert "No model in" in shared_client.wait(Failure)[0].message


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_labels_are_those_of_the_engine(
    shared_client: Client, folder: tuple[str, ...], model: Path, volume: Volume, dtype: type
) -> None:
    stored = Volume(volume.array.astype(dtype)[:, :, ::-1], volume.spacing, volume.origin, np.diag([-1.0, 1.0, 1.0]))
    request = prepared(10, stored, folder, model, "cpu", 1)
    shared_client.send(request)
    result, progress = shared_client.wait(Result)
    expected = Segmenter(load_model(model), "cpu", 1).segment(stored)
    np.testing.assert_array_equal(received_labels(stored, result), expected.labels)
    assert len(np.unique(expected.labels)) > 1
    assert result.id == 10
    assert result.warnings == expected.warnings
    assert set(result.seconds) == {"preprocess", "network", "postprocess", "total"}
    assert set(result.organs) == {"liver", "right_kidney", "left_kidney", "spleen"}
    counted = np.count_nonzero(expected.labels == 1) * stored.voxel_volume_ml
    assert result.organs["liver"]["volume_ml"] == pytest.approx(counted)
    fractions = [event.fraction for event in progress]
    assert fractions == sorted(fractions)
    assert all(0 <= fraction <= 1 and event.id == 10 for fraction, event in zip(fractions, progress))


def test_only_what_was_asked_for_is_kept_and_measured(
    shared_client: Client, folder: tuple[str, ...], model: Path, volume: Volume
) -> None:
    whole = Segmenter(load_model(model), "cpu", 1).segment(volume).labels
    region = slice(5, 30), slice(10, 60), slice(20, 50)
    label = int(np.bincount(whole[region].ravel(), minlength=5)[1:].argmax()) + 1  # of the organ that chance gave most
    key = ORGANS[label - 1].key
    request = prepared(11, volume, folder, model, "cpu", 1, organs=(key,), region=region, smoothing=0.5)
    shared_client.send(request)
    result, progress = shared_client.wait(Result)
    expected = np.zeros_like(whole)
    expected[region] = np.where(whole[region] == label, label, 0)
    assert np.count_nonzero(expected)
    np.testing.assert_array_equal(received_labels(volume, result), expected)
    assert list(result.organs) == [key]
    assert result.organs[key]["voxels"] == np.count_nonzero(expected)
    middle = np.mean(np.nonzero(expected), axis=1)[::-1]
    assert result.organs[key]["center"] == pytest.approx(middle.tolist())
    assert result.surfaces
    assert "Making the 3D surfaces" in [event.stage for event in progress]
    surface = dict(read_surfaces(result.surfaces))[key]
    low, high = ((volume.affine_ras @ [*corner, 1])[:3] for corner in ((20, 10, 5), (50, 60, 30)))
    assert np.all(surface.points >= np.minimum(low, high) - 3)
    assert np.all(surface.points <= np.maximum(low, high) + 3)


def test_an_organ_that_the_model_does_not_know_is_an_input_error(
    shared_client: Client, folder: tuple[str, ...], model: Path, volume: Volume
) -> None:
    shared_client.send(prepared(12, volume, folder, model, "cpu", 1, organs=("pancreas",)))
    failure, _ = shared_client.wait(Failure)
    assert not failure.details and "pancreas" in failure.message


def test_a_comparison_gives_the_scores_of_the_metrics_and_the_difference(
    shared_client: Client, folder: tuple[str, ...]
) -> None:
    labels, reference = np.zeros((2, 20, 22, 24), np.uint8)
    labels[4:10, 4:10, 4:10] = 1
    reference[4:10, 4:10, 6:14] = 1
    labels[12:15, 4:8, 4:8] = 2
    reference[12:15, 4:8, 4:8] = 3
    keys = ("liver", "right_kidney", "left_kidney", "spleen")
    paths = [finish(write_array(folder, array)) for array in (labels, reference)]
    request = Compare(13, *paths, (1.0, 2.0, 3.0), keys, folder)
    shared_client.send(request)
    compared, _ = shared_client.wait(Compared)
    assert compared.organs == evaluate(labels, reference, (1.0, 2.0, 3.0))
    difference = np.zeros_like(labels)
    difference[compared.difference.box] = read_array(compared.difference.path)
    expected = np.select([labels == reference, labels == 0, reference == 0], [0, 1, 2], 3)
    np.testing.assert_array_equal(difference, expected)
    assert {1, 2, 3} <= set(np.unique(difference))


def test_devices_are_named_with_their_memory(shared_client: Client) -> None:
    shared_client.send(Hello(14))
    ready, _ = shared_client.wait(Ready)
    cpu = ready.devices[0]
    assert cpu["id"] == "cpu" and cpu["name"] and cpu["memory_gb"] > 0.1
    assert len({device["id"] for device in ready.devices}) == len(ready.devices)


def test_a_gpu_that_is_not_there_is_an_input_error(
    shared_client: Client, folder: tuple[str, ...], model: Path, volume: Volume
) -> None:
    shared_client.send(prepared(15, volume, folder, model, "cuda:97"))
    failure, _ = shared_client.wait(Failure)
    assert not failure.details and "cuda:97" in failure.message


@pytest.mark.parametrize(
    ("array", "model_name", "message"),
    [
        (np.full((20, 20, 20), 7, np.int16), None, "empty"),
        (np.arange(8000, dtype=np.int16).reshape(20, 20, 20), None, "does not look like a CT"),
        (np.full((20, 20, 20), np.nan, np.float32), None, "NaN"),
        (np.zeros((20, 20, 20), np.int16), "nowhere", "No model in"),
    ],
    ids=["empty", "no CT", "NaN", "no model"],
)
def test_errors_are_events_and_the_worker_lives_on(
    shared_client: Client,
    folder: tuple[str, ...],
    model: Path,
    array: np.ndarray,
    model_name: str | None,
    message: str,
) -> None:
    shared_client.send(prepared(20, Volume(array), folder, model_name or model, "cpu"))
    failure, _ = shared_client.wait(Failure)
    assert (failure.id, failure.details, failure.without_torch) == (20, "", False)
    assert message in failure.message
    assert "\n" not in failure.message
    shared_client.send(Hello(21))
    assert shared_client.wait(Ready)[0].id == 21


def test_a_missing_block_is_an_internal_error_with_its_trace(
    shared_client: Client, folder: tuple[str, ...], model: Path, volume: Volume
) -> None:
    request = prepared(30, volume, folder, model, "cpu")
    Path(request.volume.voxels).unlink()
    shared_client.send(request)
    failure, _ = shared_client.wait(Failure)
    assert "FileNotFoundError" in failure.details


def test_lines_that_are_no_request_are_answered(shared_client: Client) -> None:
    for line in (b"hello\n", b"[]\n", b'{"id": 1}\n', b'{"id": 1, "kind": "Segment"}\n', b"\xff\xfe\n", b"\n"):
        shared_client.process.stdin.write(line)
    shared_client.process.stdin.flush()
    for _ in range(5):
        failure, _ = shared_client.wait(Failure)
        assert failure.id is None
        assert "did not understand" in failure.message


def test_cancel_is_heard_at_once(shared_client: Client, folder: tuple[str, ...], model: Path) -> None:
    big = Volume(np.random.default_rng(0).normal(20, 150, (120, 160, 160)).astype(np.int16), (2.0, 2.0, 2.0))
    shared_client.send(prepared(40, big, folder, model, "cpu", 1))
    shared_client.wait(Progress)
    time.sleep(0.3)
    start = time.monotonic()
    shared_client.send(Cancel(40))
    stopped, _ = shared_client.wait(Failure, Result)
    assert stopped == Failure(40, "The segmentation was cancelled.")
    assert time.monotonic() - start < 3  # well below the time of the whole, on a busy machine too
    shared_client.send(prepared(42, big, folder, model, "cpu", 1))
    shared_client.send(prepared(43, big, folder, model, "cpu", 1))
    shared_client.send(Cancel(43))
    shared_client.send(Cancel(42))
    stopped = [shared_client.wait(Failure)[0] for _ in range(2)]
    assert {one.id for one in stopped} == {42, 43} and all("cancelled" in one.message for one in stopped)


def test_what_is_printed_does_not_reach_the_events(tmp_path: Path) -> None:
    code = (
        "import os, sys, json; sys.argv = ['worker']; import FlareSegmentLib.worker.main as w\n"
        "def noisy(self, request):\n"
        "    print('python'); os.system('echo child'); os.write(1, b'c code')\n"
        "    return real(self, request)\n"
        "real, w.Worker._hello = w.Worker._hello, noisy\nw.main(None, False)"
    )
    root = Path(__file__).resolve().parents[3] / "FlareSegment"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(encode(Hello(1)))
    process.stdin.flush()
    assert isinstance(decode_event(process.stdout.readline()), Ready)
    output, errors = process.communicate(timeout=60)
    assert output == b""
    assert all(text in errors for text in (b"python", b"child", b"c code"))
    assert process.returncode == 0


def test_closing_stdin_ends_it_also_while_it_computes(client: Client, folder: tuple[str, ...], model: Path) -> None:
    big = Volume(np.random.default_rng(0).normal(20, 150, (150, 200, 200)).astype(np.int16), (2.0, 2.0, 2.0))
    client.send(prepared(1, big, folder, model, "cpu", 1))
    client.wait(Progress)
    client.process.stdin.close()
    assert client.process.wait(5) == 0


@pytest.mark.skipif(os.name != "posix", reason="orphans get another parent on POSIX only")
def test_it_ends_with_its_parent_though_stdin_stays_open(tmp_path: Path) -> None:
    read, write = os.pipe()
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        f"worker = subprocess.Popen({COMMAND!r}, stdin={read}, stdout=subprocess.PIPE)\n"
        "worker.stdout.readline()\n"
        f"open({str(pid_file)!r}, 'w').write(str(worker.pid))\n"
    )
    os.write(write, encode(Hello(1)))
    subprocess.run([sys.executable, "-c", code], pass_fds=[read], check=True, timeout=60)
    pid = int(pid_file.read_text())
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and Path(f"/proc/{pid}").exists():
        time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    os.close(read)
    os.close(write)
