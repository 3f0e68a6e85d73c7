"""A cohort against the engine alone, killed workers, bad files, memory and a hundred thousand cases: `python3 flare.py
bench cohort`.

Needs the real CTs of FLARE_DATA. FLARE_BENCH_PARTS chooses some of speed, kills, bad, memory, schedule; FLARE_BENCH_CTS
changes how many CTs are segmented (60), FLARE_BENCH_KILLS how many workers are killed (20; the whole command a quarter
as often), FLARE_BENCH_LISTED the longer list (10000), FLARE_BENCH_SLEEPS the cases that sleep (100000). Each row is
told with the command that it measures.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from measuring import Row, report, tell
from measuring.cohorts import ROOT, SEGMENT, STAND_INS, command, records, run, start, table, workers_of, write_cts

DATA = Path(os.environ.get("FLARE_DATA", ROOT.parent / "shared" / "data"))
PARTS = os.environ.get("FLARE_BENCH_PARTS", "speed kills bad memory schedule").split()
CTS = int(os.environ.get("FLARE_BENCH_CTS", "60"))
KILLS = int(os.environ.get("FLARE_BENCH_KILLS", "20"))
LISTED = int(os.environ.get("FLARE_BENCH_LISTED", "10000"))
SLEEPS = int(os.environ.get("FLARE_BENCH_SLEEPS", "100000"))
WORKERS = 2

ENGINE_ALONE = """
import sys, time
from pathlib import Path
from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.files.padding import without_padding
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
segmenter = Segmenter(load_model(bundled_model_folder()), device="cpu", threads=int(sys.argv[1]))
for path in sys.argv[2:]:
    volume = without_padding(read_volume(path)[0])[0]
    if path == sys.argv[2]:
        segmenter.segment(volume)
    print(path, sum(segmenter.segment(volume).seconds.values()), flush=True)
"""
STAND_IN_COMMAND = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import cohort
from FlareSegmentLib import command_line
import cohort_stand_in
from FlareSegmentCohortLib.command import run_cohort
work = getattr(cohort_stand_in, sys.argv.pop(1))
result, failure = run_cohort(cohort.parse_arguments(sys.argv[1:]), command_line.say, work)
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
import json
print(json.dumps({**result, "peak_kib": int(peak)}))
"""


def stand_in(source: Path, output: Path, work: str, *more: object) -> list[str]:
    """A cohort's command whose cases are a stand-in's."""
    words = ["-c", STAND_IN_COMMAND, str(STAND_INS), work, str(source), "--output", str(output), *map(str, more)]
    return [sys.executable, *words]


def with_stand_ins() -> dict[str, str]:
    """The environment in which workers find the stand-ins and the script."""
    folders = [str(STAND_INS), str(ROOT / "FlareSegmentTraining" / "Scripts"), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(folders)}


def speed(place: Path) -> list[Row]:
    """Wall time of a cohort of real CTs on two workers, against the engine's own seconds and against `segment`."""
    source = write_cts(place / "cts", CTS, DATA)
    files = sorted(map(str, source.iterdir()))
    tell(f"the engine alone on {WORKERS} threads, {CTS} CTs")
    alone = subprocess.run(
        [sys.executable, "-c", ENGINE_ALONE, str(WORKERS), *files], capture_output=True, text=True, check=True
    )
    engine = {line.split()[0]: float(line.split()[1]) for line in alone.stdout.splitlines()}
    tell(f"the cohort on {WORKERS} workers")
    wall, told, errors = run(command(source, place / "out", "--workers", WORKERS, "--device", "cpu", "--json"))
    assert told.get("segmented") == CTS, errors
    found = records(place / "out")
    own = sum(
        sum(record["seconds"][step] for step in ("preprocess", "network", "postprocess")) for record in found.values()
    )
    busy = sum(sum(record["seconds"].values()) for record in found.values())
    tell("segment, each CT by a call of its own, some of them")
    chosen = files[:: max(1, CTS // 6)]
    calls = []
    for file in chosen:
        host = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script", str(SEGMENT)]
        words = [*host, file, "--output", str(place / "segment"), "--device", "cpu"]
        calls.append(run(words, SLICER_BACKGROUND_THREAD_PRIORITY=str(os.nice(0)))[0])  # as the cohort runs
    same = sum(_same_labels(place / "out", place / "segment", Path(file)) for file in chosen)
    ratio = wall / sum(engine.values())
    return [
        Row(f"flare.py cohort, {CTS} CTs, {WORKERS} workers: wall time a CT", "s", [wall / CTS]),
        Row("the engine's own seconds a CT, alone on both cores", "s", [statistics.fmean(engine.values())]),
        Row("wall time / the engine's own seconds", "", [ratio], at_most=1.0),
        Row("wall time / workers busy with CTs (list, Dask, start, tables, report)", "", [wall * WORKERS / busy]),
        Row("overhead of list, Dask, start, tables, report over the engine's seconds", "%",
            [100 * (wall * WORKERS - busy) / own], at_most=10),
        Row("flare.py segment CT by CT / flare.py cohort", "", [statistics.fmean(calls) * CTS / wall]),
        Row(f"label maps that are the same as segment's, of {len(chosen)}", "", [same], at_least=len(chosen)),
    ]  # fmt: skip


def _same_labels(cohort: Path, segment: Path, file: Path) -> bool:
    from FlareSegmentLib.files.image_io import read_labels

    name = file.name.removesuffix(".nii.gz")
    one, other = (read_labels(folder / f"{name}_labels.nii.gz") for folder in (cohort / "labels", segment))
    return np.array_equal(one.array, other.array) and np.allclose(one.affine_lps, other.affine_lps)


def kills(place: Path) -> list[Row]:
    """Workers and the command killed at random during a cohort, until it is done."""
    source = write_cts(place / "small", CTS, DATA, small=True)
    options = ("--workers", WORKERS, "--device", "cpu", "--json")
    tell("an undisturbed run")
    _, told, errors = run(command(source, place / "calm", *options))
    assert told.get("segmented") == CTS, errors
    tell(f"{KILLS} workers and {KILLS // 4} commands killed")
    output, chance = place / "killed", random.Random(3)
    done: dict[str, set[float]] = defaultdict(set)
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.05):
            for name, record in records(output).items():
                done[name].add(record["finished"])

    watcher = threading.Thread(target=watch)
    watcher.start()
    workers, commands, in_flight = 0, 0, 0
    process = start(command(source, output, *options))
    ended_by_it = seen = 0
    try:
        while True:
            time.sleep(chance.uniform(1.0, 4.0))
            if process.poll() is not None:
                if process.returncode in (0, 2):
                    break
                print(f"status {process.returncode}: {process.communicate()[1].strip()}")
                ended_by_it += 1
                assert ended_by_it <= KILLS, "the command ends again and again"
                process = start(command(source, output, *options))
            own = workers_of(process.pid)
            if workers < KILLS and own and len(done) > seen:  # at work, not just starting
                os.kill(chance.choice(own), signal.SIGKILL)
                workers, in_flight, seen = workers + 1, in_flight + 1, len(done)
            if commands < KILLS // 4 and workers >= 3 * (commands + 1):
                process.kill()
                process.communicate()
                commands, in_flight = commands + 1, in_flight + WORKERS
                process = start(command(source, output, *options))
        _, errors = process.communicate()
    finally:
        watching.set()
        watcher.join()
    calm, killed = table(place / "calm" / "organs.csv"), table(output / "organs.csv")
    twice = sum(len(times) - 1 for times in done.values())
    print(f"status {process.returncode} {errors.strip()}")
    return [
        Row("workers killed", "", [workers], at_least=KILLS),
        Row("commands killed", "", [commands], at_least=KILLS // 4),
        Row("commands that ended because a worker was killed while it started", "", [ended_by_it]),
        Row("rows of organs.csv that differ from the undisturbed run's, or are missing", "",
            [sum(one != other for one, other in zip(calm, killed)) + abs(len(calm) - len(killed))], at_most=0),
        Row("cases done twice", "", [twice], at_most=in_flight),
        Row("files left behind that are no result", "",
            [sum(path.name.startswith(".") for path in output.rglob("*"))]),
    ]  # fmt: skip


def bad(place: Path) -> list[Row]:
    """A tenth of the files is bad in ten ways."""
    source = write_cts(place / "mixed", CTS, DATA, small=True)
    count = write_bad(source, max(1, CTS // 10))
    _, told, errors = run(command(source, place / "mixed out", "--workers", WORKERS, "--device", "cpu", "--json"))
    failed = table(place / "mixed out" / "failed.csv")
    print(errors.strip())
    for row in failed:
        print(f"  {row['case']}: {row['reason']}")
    return [
        Row(f"good CTs done, of {CTS}", "", [told["segmented"]], at_least=CTS),
        Row(f"bad ones with a line in failed.csv, of {count}", "", [len(failed)], at_least=count, at_most=count),
    ]


def write_bad(folder: Path, count: int) -> int:
    """Write files that cannot be segmented, each in another way; returns how many there are."""
    import SimpleITK as sitk

    first = next(folder.glob("*.nii.gz"))
    content = first.read_bytes()
    image = sitk.ReadImage(str(first))

    def four_dimensions(path: Path) -> None:
        sitk.WriteImage(sitk.JoinSeries([image, image]), str(path))

    def damaged_dicom(path: Path) -> None:
        path.mkdir()
        for number in range(12):
            (path / f"slice{number:02}.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"\2\0\0\0UL\4\0" + bytes(80))

    def no_places(path: Path) -> None:
        import pydicom

        from FlareSegmentLib.volume import Volume
        from FlareSegmentTrainingLib.dicom.dicom_series import Identity, write_series

        array = np.clip(sitk.GetArrayFromImage(image)[:20], -1000, 2000).astype(np.int16)
        for file in write_series(path, Volume(array), Identity("bad")):
            dataset = pydicom.dcmread(file)
            del dataset.ImagePositionPatient
            dataset.save_as(file)

    ways = {
        "cut_off.nii.gz": lambda path: path.write_bytes(content[: len(content) // 2]),
        "no_ct.nii.gz": lambda path: sitk.WriteImage(sitk.Cast(image, sitk.sitkInt32) + 5000, str(path)),
        "four_dimensions.nii.gz": four_dimensions,
        "damaged_dicom": damaged_dicom,
        "nothing.nrrd": lambda path: path.write_bytes(b""),
        "no_image.mha": lambda path: path.write_text("none", encoding="utf-8"),
        "no_places": no_places,
        "flat.nii.gz": lambda path: sitk.WriteImage(image[:, :, :1], str(path)),
        "constant.nii.gz": lambda path: sitk.WriteImage(image * 0, str(path)),
        "not a number.nrrd": lambda path: sitk.WriteImage(sitk.Cast(image, sitk.sitkFloat32) / 0, str(path)),
    }
    for name, write in list(ways.items())[:count]:
        write(folder / name)
    return min(count, len(ways))


def memory(place: Path) -> list[Row]:
    """Peak memory of the command itself, by the length of its list."""
    peaks = {}
    for count in (100, LISTED):
        source = _listed(place / f"listed {count}", count)
        tell(f"{count} cases that are listed")
        _, told, errors = run(
            stand_in(source, place / f"out {count}", "sleep", "--workers", 1, "--device", "cpu"), **with_stand_ins()
        )
        assert told.get("segmented") == count, errors
        peaks[count] = told["peak_kib"] / 1024
    return [
        Row("flare.py cohort, 100 cases that do nothing: peak memory of the command", "MiB", [peaks[100]]),
        Row(f"the same, {LISTED} cases", "MiB", [peaks[LISTED]]),
        Row("their ratio", "", [peaks[LISTED] / peaks[100]], at_most=1.2),
    ]


def _listed(folder: Path, count: int) -> Path:
    """A tree of files that are only listed."""
    for number in range(count):
        path = folder / f"part{number // 500:04}" / f"ct{number:06}.nii.gz"
        if number % 500 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def schedule(place: Path) -> list[Row]:
    """A hundred thousand cases that sleep, on a Dask cluster of 8 threads that runs already."""
    source = _listed(place / "sleeping", SLEEPS)
    variables = {**os.environ, **with_stand_ins(), "FLARE_STAND_IN_SECONDS": "0.02"}
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    words = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    scheduler = subprocess.Popen(
        [*words, "--no-dashboard", "--dashboard-address", "127.0.0.1:0"], env=variables, **quiet
    )
    words = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "8"]
    worker = subprocess.Popen([*words, "--no-dashboard", "--local-directory", str(place)], env=variables, **quiet)
    options = ("--scheduler", f"tcp://127.0.0.1:{port}")
    rows = []
    try:
        time.sleep(8)
        output = place / "slept"
        process = start(stand_in(source, output, "sleep", *options), **with_stand_ins())
        samples = _watched(process, scheduler.pid, output)
        told, errors = process.communicate()
        working = [sample for sample in samples if sample[1] < SLEEPS] or samples  # without tables and report
        middle = working[len(working) // 4 :]
        half = len(middle) // 2
        rates = [_rate(part) for part in (middle[:half], middle[half:])]
        again, result, more = run(stand_in(source, output, "sleep", *options), **with_stand_ins())
        assert result.get("segmented") == SLEEPS, errors + more
        rows = [
            Row(f"{SLEEPS} cases that sleep, 8 threads: list, run and report", "s", [samples[-1][0]]),
            Row("seconds a case, first half of the run", "ms", [1000 / rates[0]]),
            Row("seconds a case, second half", "ms", [1000 / rates[1]]),
            Row("their ratio", "", [rates[0] / rates[1]], at_most=1.2),
            Row("memory of the command, a quarter into the run", "MiB", [middle[0][2]]),
            Row("memory of the command, before tables and report", "MiB", [middle[-1][2]]),
            Row("memory of the scheduler, a quarter into the run", "MiB", [middle[0][3]]),
            Row("memory of the scheduler, then", "MiB", [middle[-1][3]]),
            Row("the same command again: list, what is left, tables, report", "s", [again]),
        ]
    finally:
        for one in (worker, scheduler):
            one.terminate()
            one.wait(20)
    return rows


def _watched(process: subprocess.Popen, scheduler: int, output: Path) -> list[tuple[float, int, float, float]]:
    """(seconds, cases done, MiB of the command, MiB of the scheduler) every few seconds, until the command ends."""
    import json

    begun, samples = time.perf_counter(), []
    reader = threading.Thread(target=process.wait)
    reader.start()
    while process.poll() is None:
        time.sleep(2)
        try:
            done = json.loads((output / "progress.json").read_text())["done"]
        except (OSError, ValueError, KeyError):
            done = 0
        samples.append((time.perf_counter() - begun, done, _resident(process.pid), _resident(scheduler)))
    return [sample for sample in samples if sample[2] > 0]


def _rate(samples: list[tuple[float, int, float, float]]) -> float:
    working = [sample for sample in samples if sample[1] < SLEEPS] or samples
    return (working[-1][1] - working[0][1]) / max(1e-9, working[-1][0] - working[0][0])


def _resident(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def main() -> None:
    """Measure and report."""
    place = Path(os.environ.get("FLARE_BENCH_PLACE") or tempfile.mkdtemp(prefix="flare-cohort-"))
    place.mkdir(parents=True, exist_ok=True)
    try:
        for part in PARTS:
            folder = place / part
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            report(
                f"cohort_{part}", globals()[part](folder), [f"FLARE_BENCH_PARTS={part} python3 flare.py bench cohort"]
            )
            shutil.rmtree(folder, ignore_errors=True)
    finally:
        if "FLARE_BENCH_PLACE" not in os.environ:
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
