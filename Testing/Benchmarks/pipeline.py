"""Seconds of every step from a CT file to a label file, with the bundled model: `python3 flare.py bench pipeline`.

The CT is the built-in torso phantom on a grid of 512x512x200 voxels. Each step's median over the runs is shown; the
first run (warm-up) is not counted. Machines differ and have slow phases, so the speed of a plain matrix multiplication
is measured before and after: compare results only where it agrees. The table also goes to Testing/Output as CSV.
"""

from __future__ import annotations

import csv
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from FlareSegmentLib.image_io import read_volume, write_labels
from FlareSegmentLib.model_file import bundled_model_folder, load_model
from FlareSegmentLib.phantom import make_phantom
from FlareSegmentLib.pipeline import Segmenter
from FlareSegmentLib.volume import Volume

RUNS = 5
SHAPE = (200, 512, 512)
OUTPUT = Path(__file__).resolve().parents[1] / "Output" / "benchmark_pipeline.csv"


def ct_of_a_clinic() -> Volume:
    """The phantom as int16 HU on the grid that clinical CTs have, with air around it."""
    ct, _ = make_phantom(spacing=(0.8, 0.8, 1.3))
    array = np.full(SHAPE, -1000, np.int16)
    source, target = [], []
    for have, want in zip(ct.array.shape, SHAPE, strict=True):
        size = min(have, want)
        source.append(slice((have - size) // 2, (have - size) // 2 + size))
        target.append(slice((want - size) // 2, (want - size) // 2 + size))
    array[tuple(target)] = ct.array[tuple(source)]
    return Volume(array, ct.spacing, ct.origin, ct.direction)


def matrix_speed() -> float:
    """Billions of operations a second of a float32 product of two matrices of 2048x2048, the median of 5."""
    matrix = torch.rand(2048, 2048)
    seconds = [timed(lambda: matrix @ matrix)[0] for _ in range(6)][1:]
    return 2 * 2048**3 / statistics.median(seconds) / 1e9


def timed(function: Callable) -> tuple[float, object]:
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def one_run(path: Path, segmenter: Segmenter) -> dict[str, float]:
    """Seconds of each step of one CT."""
    load, (volume, _) = timed(lambda: read_volume(path))
    whole, segmentation = timed(lambda: segmenter.segment(volume))
    write, _ = timed(lambda: write_labels(path.with_name("labels.nii.gz"), segmentation.labels, volume))
    return {"load": load, **segmentation.seconds, "write": write, "total": load + whole + write}


def main() -> None:
    """Measure, print and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ct.nii.gz"
        ct = ct_of_a_clinic()
        write_ct(path, ct)
        loading, model = timed(lambda: load_model(bundled_model_folder()))
        segmenter = Segmenter(model)
        before = matrix_speed()
        runs = [one_run(path, segmenter) for _ in range(RUNS + 1)][1:]
        after = matrix_speed()
    rows = [("load model", loading, loading, loading)]
    for step in runs[0]:
        seconds = [run[step] for run in runs]
        rows.append((step, statistics.median(seconds), min(seconds), max(seconds)))
    size = "x".join(str(count) for count in reversed(SHAPE))
    print(f"{segmenter.name} on {segmenter.device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    print(f"CT of {size} voxels, {ct.spacing} mm, {RUNS} runs")
    print(f"Matrix product: {before:.0f} GFLOP/s before, {after:.0f} after")
    print(f"{'Step':<14}{'Median (s)':>12}{'Min':>8}{'Max':>8}")
    for step, *seconds in rows:
        print(f"{step:<14}{seconds[0]:>12.2f}{seconds[1]:>8.2f}{seconds[2]:>8.2f}")
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "median_s", "min_s", "max_s"])
        writer.writerows([step, *(f"{value:.4f}" for value in seconds)] for step, *seconds in rows)
        writer.writerow(["matrix_gflops", f"{statistics.mean((before, after)):.1f}", f"{before:.1f}", f"{after:.1f}"])
    print(f"Wrote {OUTPUT}")


def write_ct(path: Path, ct: Volume) -> None:
    """Write a CT with its geometry."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(ct.array)
    image.SetSpacing(ct.spacing)
    image.SetOrigin(ct.origin)
    image.SetDirection(np.ravel(ct.direction).tolist())
    sitk.WriteImage(image, str(path))


if __name__ == "__main__":
    main()
