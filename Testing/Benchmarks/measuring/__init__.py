"""What the benchmarks share: CTs of clinical size, the machine's speed, processes to compare, tables of ratios.

Machines differ and have slow phases. So what is compared runs in turns, medians are shown, a plain matrix product is
timed beside them, and a target is a ratio of two things measured in one run.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume

OUTPUT = Path(__file__).resolve().parents[2] / "Output"
RUNS = 5
IN_PLANE = 512
PIXEL_MM = 0.8


def tell(line: str) -> None:
    """Say what is being measured: benchmarks take minutes."""
    print(f"  {line}", file=sys.stderr, flush=True)


def told(count: int, what: str) -> Iterator[int]:
    """1 to `count`, each told before it is done."""
    for number in range(1, count + 1):
        tell(f"{what}, {number} of {count}")
        yield number


@dataclass(frozen=True)
class Row:
    """One line of a table: what was measured, its median, lowest and highest value, and the bound it should keep."""

    measure: str
    unit: str
    values: Sequence[float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """ "met" or "missed" for a row with a target, else nothing."""
        if self.at_most is None and self.at_least is None:
            return ""
        low, high = self.at_least, self.at_most
        return "met" if (low is None or self.median >= low) and (high is None or self.median <= high) else "missed"

    @property
    def target(self) -> str:
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"


def report(name: str, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
    """Print a table and write it to Testing/Output as CSV."""
    print(f"{processor()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {platform.system()}")
    for note in notes:
        print(note)
    width = max(len(row.measure) for row in rows)
    print(f"{'':<{width}} {'median':>10} {'lowest':>10} {'highest':>10} {'unit':<8} {'target':<9}")
    for row in rows:
        numbers = (row.median, min(row.values), max(row.values))
        print(
            f"{row.measure:<{width}} "
            + " ".join(f"{number:>10.3g}" for number in numbers)
            + f" {row.unit:<8} {row.target:<9} {row.verdict}"
        )
    OUTPUT.mkdir(exist_ok=True)
    path = OUTPUT / f"benchmark_{name}.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["measure", "median", "lowest", "highest", "unit", "target", "verdict"])
        for row in rows:
            numbers = (row.median, min(row.values), max(row.values))
            writer.writerow([row.measure, *(f"{n:.5g}" for n in numbers), row.unit, row.target, row.verdict])
    print(f"Wrote {path}")


def processor() -> str:
    """Name of the CPU, with the number formats of its matrix units, and the number of cores."""
    text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {unit} " in text.replace("\n", " ")]
    return f"{names[0] if names else platform.processor()} ({os.cpu_count()} cores; {', '.join(units) or 'unknown'})"


def matrix_gflops() -> float:
    """Billions of operations a second of a float32 product of two matrices of 2048x2048, the median of 5."""
    matrix = torch.rand(2048, 2048)
    seconds = [timed(lambda: matrix @ matrix)[0] for _ in range(6)][1:]
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def ct(slices: int, slice_mm: float) -> tuple[Volume, np.ndarray]:
    """The phantom's body on a grid of 512x512 voxels and the given number of slices, about the first lumbar vertebra,
    with its labels. int16 HU.
    """
    half = slices * slice_mm / 2
    volume, labels = make_phantom(spacing=(PIXEL_MM, PIXEL_MM, slice_mm), z_range=(-half, half))
    array, truth = np.full((slices, IN_PLANE, IN_PLANE), -1000, np.int16), np.zeros((slices, IN_PLANE, IN_PLANE), "u1")
    place, source = [], []
    for have, want in zip(volume.array.shape, array.shape, strict=True):
        size = min(have, want)
        place.append(slice((want - size) // 2, (want - size) // 2 + size))
        source.append(slice((have - size) // 2, (have - size) // 2 + size))
    array[tuple(place)], truth[tuple(place)] = volume.array[tuple(source)], labels[tuple(source)]
    return Volume(array, volume.spacing, volume.origin, volume.direction), truth


def validation_cases(data: Path) -> Iterator[tuple[str, Volume, np.ndarray]]:
    """Yield (name, CT, labels (z, y, x)) of the cases `<case>_ct.nii.gz`, `<case>_labels.nii.gz` in `data/val`."""
    for file in sorted(data.glob("val/*_ct.nii.gz")):
        labels = file.with_name(file.name.replace("_ct.", "_labels."))
        yield file.name.removesuffix("_ct.nii.gz"), read_volume(file)[0], read_labels(labels).array


def file_of(volume: Volume, path: Path) -> Path:
    """Write a CT with its geometry."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(volume.array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(np.ravel(volume.direction).tolist())
    sitk.WriteImage(image, str(path))
    return path


class Process:
    """A process that runs one thing again and again when told: what is compared must share no memory, no warm cache.

    Args:
        make: called in the process with `arguments`; returns the function to run, which returns what is measured
            beside the seconds and the memory.
    """

    def __init__(self, make: Callable[..., Callable[[], dict[str, Any]]], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()

    def run(self) -> dict[str, Any]:
        """{"seconds", "added_mib" (peak above what was there before, Linux only), and what the function returned}."""
        self._end.send(True)
        result = self._end.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        self._end.close()
        self._process.join(10)


def _serve(end: Any, make: Callable[..., Callable[[], dict[str, Any]]], arguments: tuple) -> None:
    function: Callable[[], dict[str, Any]] | None = None
    while True:
        try:
            end.recv()
        except EOFError:
            return
        try:
            function = function or make(*arguments)
            before = _restart_peak()
            seconds, found = timed(function)
            end.send({"seconds": seconds, "added_mib": _memory_mib("VmHWM") - before, **found})
        except Exception as error:  # noqa: BLE001 - told to whoever asked
            end.send(error)


def _restart_peak() -> float:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return float("nan")
    return _memory_mib("VmRSS")


def _memory_mib(field: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))
