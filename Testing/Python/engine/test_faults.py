"""What dies, fills up, is swapped or jumps in the middle of the work: nothing that was there before is lost.

FLARE_FAULTS sets at how many random moments a worker and a training are killed (default 3; 50 takes some ten minutes).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from bad_input import SUFFIXES, contents, save
from panel_driver import process_id
from test_panel_worker import is_running, shared_files
from test_security import LABELS
from test_training_run import ONE_THREAD, PRESET, TRAIN
from test_worker import NETWORK, Client, prepared, received_labels

from FlareSegmentLib.errors import ModelError
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.model.model_file import load_model, save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker import shared_files as shared_files_module
from FlareSegmentLib.worker.protocol import Failure, Progress, Result, Segment
from FlareSegmentLib.worker.shared_files import shared_folders
from FlareSegmentTrainingLib.training.reports import read_log
from FlareSegmentTrainingLib.training.run_folder import RunFolder

MOMENTS = int(os.environ.get("FLARE_FAULTS", "3"))
SEED = 8
pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def make_model(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    stages = Stage("coarse", "volume", NETWORK, (9.0, 9.0, 9.0)), Stage("fine", "organs", NETWORK, (6.0, 6.0, 6.0))
    description = ModelDescription(f"random {seed}", "1", "none", LABELS, Intensity(-200, 300), stages)
    save_model(folder, description, {stage.name: build_network(NETWORK) for stage in stages})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def volume() -> Volume:
    array = np.random.default_rng(0).normal(20, 150, (24, 32, 32)).astype(np.int16)
    return Volume(array, (6.0, 6.0, 6.0), (-95.0, -95.0, 10.0))


@pytest.fixture(scope="module")
def expected(model: Path, volume: Volume) -> np.ndarray:
    return Segmenter(load_model(model), "cpu", 1).segment(volume).labels


# The worker ---------------------------------------------------------------------------------------


class Listener:
    def __init__(self) -> None:
        self.results: list[np.ndarray] = []
        self.failures: list[str] = []
        self.stages: list[str] = []

    def onProgress(self, fraction: float, stage: str) -> None:
        self.stages.append(stage)

    def onResult(self, labels, result: Result) -> None:
        self.results.append(labels.array.copy())  # valid during the call only

    def onFailure(self, message: str) -> None:
        self.failures.append(message)

    @property
    def ended(self) -> bool:
        return bool(self.results or self.failures)


def test_a_worker_killed_at_any_moment(slicer_app, model: Path, volume: Volume, figures: dict[str, str]) -> None:
    """SIGKILL between the start of the process and its answer: one message, no file left, and the next run works."""
    import slicer

    from FlareSegmentSlicerLib.logic.worker_process import WorkerProcess

    moments = random.Random(SEED)
    node = slicer.util.addVolumeFromArray(volume.array)
    nodes = slicer.mrmlScene.GetNumberOfNodes()
    voxels = slicer.util.arrayFromVolume(node).copy()
    worker = WorkerProcess()

    def wait(condition, seconds: float = 180.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "waited in vain"
            slicer_app.processEvents()
            time.sleep(0.002)

    def run() -> Listener:
        listener = Listener()
        worker.segment(volume, SegmentationRequest(model, "cpu"), listener)
        return listener

    try:
        start = time.monotonic()
        cold = run()
        wait(lambda: cold.ended)
        cold_seconds = time.monotonic() - start
        assert len(cold.results) == 1, cold.failures
        start = time.monotonic()
        warm = run()
        wait(lambda: warm.ended)
        warm_seconds = time.monotonic() - start
        killed, stages = 0, set()
        while killed < MOMENTS:
            warm_now = process_id(worker) != 0
            listener = run()
            end = time.monotonic() + moments.uniform(0, warm_seconds if warm_now else cold_seconds)
            while time.monotonic() < end and not listener.ended:
                slicer_app.processEvents()
                time.sleep(0.001)
            pid = process_id(worker)
            if listener.ended or not pid:
                wait(lambda listener=listener: listener.ended)
                continue
            os.kill(pid, signal.SIGKILL)
            wait(lambda listener=listener: listener.ended)
            assert listener.results or len(listener.failures) == 1
            if listener.failures:
                assert "\n" not in listener.failures[0]
            wait(lambda pid=pid: not is_running(pid))
            assert not shared_files()
            killed += 1
            stages.add(listener.stages[-1] if listener.stages else "starting")
        after = run()
        wait(lambda: after.ended)
        assert len(after.results) == 1, after.failures
        np.testing.assert_array_equal(after.results[0], warm.results[0])
        assert slicer.mrmlScene.GetNumberOfNodes() == nodes
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(node), voxels)
        figures["Worker killed"] = f"at {killed} random moments ({', '.join(sorted(stages))}): scene intact each time"
    finally:
        worker.close()
    assert not shared_files()


def run_worker(client: Client, request: Segment) -> Result | Failure:
    client.send(request)
    return client.wait(Result, Failure)[0]


def test_memory_that_runs_out_is_told_and_the_worker_lives(
    model: Path, volume: Volume, expected: np.ndarray, figures: dict[str, str]
) -> None:
    """Address space for little more than what is there: the run ends in words, and works again when there is room."""
    resource = pytest.importorskip("resource")
    client = Client()
    try:
        with shared_folders() as folder:
            first = prepared(1, volume, folder, model, "cpu", 1)
            assert isinstance(run_worker(client, first), Result)
            used = int(Path(f"/proc/{client.process.pid}/statm").read_text().split()[0]) * resource.getpagesize()
            big = Volume(np.tile(volume.array, (8, 8, 8)), (6.0, 6.0, 6.0))
            limits = resource.prlimit(client.process.pid, resource.RLIMIT_AS)
            resource.prlimit(client.process.pid, resource.RLIMIT_AS, (used + (60 << 20), limits[1]))
            failure = run_worker(client, prepared(2, big, folder, model, "cpu", 1))
            assert isinstance(failure, Failure)
            assert "not enough memory" in failure.message, failure
            assert "memory" in failure.message and "\n" not in failure.message
            resource.prlimit(client.process.pid, resource.RLIMIT_AS, limits)
            again = prepared(3, volume, folder, model, "cpu", 1)
            np.testing.assert_array_equal(received_labels(volume, run_worker(client, again)), expected)
        figures["Memory that runs out"] = "told in one line, and the same worker segments again"
    finally:
        client.process.kill()
        client.process.wait()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], tuple[Path, Path]]]:
    """Function that makes two places for shared files: a memory of so many kilobytes, which is mounted, and a disk."""
    memory, disk = tmp_path / "memory", tmp_path / "disk"

    def make(kilobytes: int) -> tuple[Path, Path]:
        memory.mkdir()
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(memory)]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("mounting needs a superuser; test_shared_files_module.py simulates it")
        monkeypatch.setattr(shared_files_module, "_parent_folders", lambda: [memory, disk])
        return memory, disk

    yield make
    if memory.is_dir() and memory.stat().st_dev != tmp_path.stat().st_dev:
        subprocess.run(["umount", str(memory)], check=True)


@pytest.fixture
def one_client() -> Iterator[Client]:
    client = Client()
    yield client
    client.process.kill()
    client.process.wait()


@pytest.mark.parametrize(
    ("kilobytes", "in_memory"), [(16, (False, False)), (64, (True, False)), (128, (True, True))], ids=str
)
def test_full_shared_memory_moves_to_the_disk(
    places, one_client: Client, volume: Volume, model: Path, expected: np.ndarray, kilobytes: int, in_memory: tuple
) -> None:
    """48 KiB of CT and 24 KiB of labels: each lies in the memory where it has room for it, else on the disk."""
    memory, disk = places(kilobytes)
    with shared_folders() as folder:
        request = prepared(1, volume, folder, model, "cpu", 1)
        result = run_worker(one_client, request)
        assert isinstance(result, Result), result
        files = request.volume.voxels, result.labels.path
        assert tuple(Path(file).is_relative_to(memory) for file in files) == in_memory
        np.testing.assert_array_equal(received_labels(volume, result), expected)
    assert not [*memory.iterdir(), *disk.iterdir()]


def test_memory_that_fills_up_after_the_copy_has_room_for_the_labels(
    places, one_client: Client, volume: Volume, model: Path, expected: np.ndarray, figures: dict[str, str]
) -> None:
    """Somebody else takes the rest of the memory: labels and surfaces lie on the disk."""
    memory, disk = places(96)
    with shared_folders() as folder:
        request = prepared(1, volume, folder, model, "cpu", 1, smoothing=0.5)
        assert Path(request.volume.voxels).is_relative_to(memory)
        with open(memory / "others", "wb", buffering=0) as others, pytest.raises(OSError, match="No space"):
            while True:
                others.write(bytes(4096))
        result = run_worker(one_client, request)
        assert isinstance(result, Result), result
        np.testing.assert_array_equal(received_labels(volume, result), expected)
        assert all(Path(file).is_relative_to(disk) for file in (result.labels.path, result.surfaces))
        (memory / "others").unlink()
        again = run_worker(one_client, prepared(2, volume, folder, model, "cpu", 1, smoothing=0.5))
        assert isinstance(again, Result), again
    figures["Shared memory that is full"] = "the CT, the labels or both lie on the disk; the labels are the same"


def test_no_room_anywhere_is_an_error_that_leaves_nothing(places, volume: Volume, model: Path) -> None:
    memory, disk = places(16)
    disk.rmdir()
    with shared_folders() as folder, pytest.raises(OSError):
        prepared(1, volume, folder, model)
    assert not [file for file in memory.rglob("*") if file.is_file()]


def test_a_model_that_is_swapped_or_damaged_while_it_is_used(
    volume: Volume, expected: np.ndarray, model: Path, tmp_path: Path
) -> None:
    """A warm worker goes on with what it has loaded; a new one takes the whole new model or refuses a broken one."""
    place = tmp_path / "model"
    shutil.copytree(model, place)
    client = Client()
    try:
        with shared_folders() as folder:
            first = prepared(1, volume, folder, place, "cpu", 1)
            client.send(first)
            client.wait(Progress)
            (place / "weights.pt").write_bytes((place / "weights.pt").read_bytes()[:1000])
            ending = client.wait(Result, Failure)[0]
            if isinstance(ending, Result):
                np.testing.assert_array_equal(received_labels(volume, ending), expected)
            else:
                assert not ending.details, ending
    finally:
        client.process.kill()
        client.process.wait()
    with pytest.raises(ModelError, match="SHA-256"):
        load_model(place)


def test_a_model_read_while_another_is_saved_there_is_one_of_both(model: Path, tmp_path: Path) -> None:
    place = tmp_path / "model"
    stop = threading.Event()

    def swap() -> None:
        seed = 0
        while not stop.is_set():
            seed = 1 - seed
            torch.manual_seed(seed)
            make_model(place, seed)

    make_model(place)
    writer = threading.Thread(target=swap)
    writer.start()
    names, refused = set(), 0
    try:
        end = time.monotonic() + 20
        while (len(names) < 2 or refused + len(names) < 8) and time.monotonic() < end:
            try:
                names.add(load_model(place).description.name)
            except ModelError as error:
                refused += 1
                assert "SHA-256" in str(error)  # noqa: PT017
    finally:
        stop.set()
        writer.join()
    assert names == {"random 0", "random 1"}


# Several at once ----------------------------------------------------------------------------------


def test_two_runs_at_once_into_one_folder(repository: Path, tmp_path: Path, model: Path) -> None:
    """Both end well, and what stands there at last is whole: all five files, of one run or the other."""
    pytest.importorskip("slicer_core")
    (tmp_path / "in").mkdir()
    ct = save(tmp_path / "in" / "ct.nii.gz")
    before = contents(ct.parent)
    results = tmp_path / "results"
    command = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script"]
    command += [str(repository / "FlareSegment" / "Scripts" / "segment.py"), str(ct), "--output", str(results)]
    command += ["--model", str(model), "--device", "cpu"]
    environment = {**ONE_THREAD, "PYTHONPATH": str(repository / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate(timeout=240)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors
    names = sorted(path.name for path in results.iterdir())
    assert names in ([f"ct{suffix}" for suffix in SUFFIXES], [f"ct{suffix}" for suffix in SUFFIXES[1:]])
    labels = sitk.ReadImage(str(results / "ct_labels.nii.gz"))
    assert labels.GetSize() == sitk.ReadImage(str(ct)).GetSize()
    assert contents(ct.parent) == before


@pytest.mark.parametrize("jump", [-86400 * 400, 86400 * 400])
def test_a_clock_that_jumps(
    volume: Volume, model: Path, expected: np.ndarray, jump: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wall clock goes a year back or on in mid-run: nothing of the labels or the measured times depends on it."""
    real = time.time
    calls = []

    def jumping() -> float:
        calls.append(0)
        return real() + (jump if len(calls) > 1 else 0)

    monkeypatch.setattr(time, "time", jumping)
    result = Segmenter(load_model(model), "cpu", 1).segment(volume)
    np.testing.assert_array_equal(result.labels, expected)
    assert all(0 <= seconds < 600 for seconds in result.seconds.values())


# What was killed in the middle of its writing -----------------------------------------------------


def test_what_a_killed_run_left_beside_the_results_is_removed_by_the_next(
    repository: Path, tmp_path: Path, model: Path, judge, figures: dict[str, str]
) -> None:
    """SIGKILL while the five files are in the making: older files stand, no new one is there, the next run tidies."""
    pytest.importorskip("slicer_core")
    (tmp_path / "in").mkdir()
    ct = save(tmp_path / "in" / "ct.nii.gz")
    results = tmp_path / "results"
    results.mkdir()
    (results / "ct_organs.csv").write_text("older")
    (results / ".flaresegment-notes").mkdir()
    command = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script"]
    command += [str(repository / "FlareSegment" / "Scripts" / "segment.py"), str(ct), "--output", str(results)]
    command += ["--model", str(model), "--device", "cpu"]
    environment = {**ONE_THREAD, "PYTHONPATH": str(repository / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 240
    while not list(results.glob(".flaresegment-*/*")):
        assert process.poll() is None and time.monotonic() < end, "it never began to write"
        time.sleep(0.002)
    process.kill()
    process.wait()
    left = [path for path in results.glob(".flaresegment-*") if path.name != ".flaresegment-notes"]
    assert len(left) == 1 and (results / "ct_organs.csv").read_text() == "older"
    assert judge.status([ct], results) == 0
    names = sorted(path.name for path in results.iterdir())
    assert names == [".flaresegment-notes", *(f"ct{name}" for name in SUFFIXES)]
    figures["A killed segment.py"] = "older results stood; its hidden folder was removed by the next run"


# Training -----------------------------------------------------------------------------------------


def test_a_training_killed_at_any_moment(tmp_path: Path, figures: dict[str, str]) -> None:
    """SIGKILL again and again in one run: what is there loads each time, and the end is that of an undisturbed run."""
    moments = random.Random(SEED)
    (tmp_path / "tiny.json").write_text(json.dumps(PRESET))
    common = ["--preset", str(tmp_path / "tiny.json"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]
    common += ["--data", "phantom:4", "--epochs", "4"]

    def train(name: str) -> subprocess.Popen:
        arguments = [*common, "--output", str(tmp_path / name), "--resume"]
        return subprocess.Popen(
            [sys.executable, str(TRAIN), *arguments], env=ONE_THREAD, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )

    start = time.monotonic()
    whole = train("whole")
    assert whole.wait(300) == 0, whole.stderr.read()
    seconds = time.monotonic() - start
    killed, with_state = 0, 0
    while killed < MOMENTS:
        process = train("killed")
        try:
            process.wait(moments.uniform(0.2, seconds))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
            with_state += check_run(RunFolder(tmp_path / "killed"))
        else:
            assert process.returncode == 0, process.stderr.read()
            check_run(RunFolder(tmp_path / "killed"))
            compare(tmp_path)
            shutil.rmtree(tmp_path / "killed")
    last = train("killed")
    assert last.wait(300) == 0, last.stderr.read()
    compare(tmp_path)
    leftovers = [path.name for path in (tmp_path / "killed").rglob(".saving*") if path.is_file()]
    figures["Training killed"] = (
        f"at {killed} random moments, {with_state} of them with a checkpoint: every file whole each time, "
        f"the end that of an undisturbed run; {len(leftovers)} unfinished files left over"
    )


def check_run(folder: RunFolder) -> bool:
    """Every file that is there is whole; returns whether there was a state to continue from."""
    for file in folder.path.rglob("*.json"):
        if not file.name.startswith("."):
            json.loads(file.read_text())
    for place in (folder.best, folder.last):
        if (place / "model.json").is_file():
            load_model(place)
    for file in [*folder.checkpoints.glob("*.pt"), folder.state_file]:
        if file.is_file() and not file.name.startswith("."):
            folder.load_tensors(file)
    if (folder.path / "log.csv").is_file():
        read_log(folder.path / "log.csv")
    return folder.state_file.is_file()


def compare(place: Path) -> None:
    rows = [read_log(place / name / "log.csv")[0] for name in ("whole", "killed")]
    losses = [[row["loss"] for row in table] for table in rows]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0, atol=1e-6)
