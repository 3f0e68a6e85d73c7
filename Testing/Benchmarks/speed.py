"""Speed and memory of the engine against the usual way, MONAI's sliding window: `python3 flare.py bench speed`.

A CT of 512x512x200 voxels, 0.8 x 0.8 x 2.5 mm as in FLARE22, goes from an array in memory to labels on its own grid,
by the bundled model's pipeline and by the model's fine network alone, slid over the body as MONAI's tutorials do it
(CropForegroundd, Spacingd to 1.5 x 1.5 x 2 mm, windows of 128x128x64, overlap 0.5, Gaussian, softmax, Invertd, argmax).
That network was trained on 2.5 mm: the Dice of the sliding window says nothing about MONAI. Then what of the pipeline's
time is not the network's, how near the network comes to the processor's peak, and what a whole body of 1000 slices
costs against the 200 of its abdomen.

MONAI is no part of the environment: `.venv/bin/python -m pip install --no-deps monai==1.5.1` (torch and numpy are
there); without it its rows are left out. A quiet machine of 2 cores needs some 12 minutes for all of it.
FLARE_BENCH_RUNS changes the number of runs (default 5).
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import RUNS, Process, Row, ct, matrix_gflops, report, timed
from torch.utils.flop_counter import FlopCounterMode

from FlareSegmentLib.inference.compute_devices import has_fast_bfloat16
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.processes import keep_freed_memory
from FlareSegmentLib.volume import Volume

COUNT = int(os.environ.get("FLARE_BENCH_RUNS", RUNS))
PATCH = (96, 80, 112)


def pipeline(path: str) -> Callable[[], dict[str, Any]]:
    """The way of the panel's worker process."""
    keep_freed_memory()
    volume, truth = _load(path)
    segmenter = Segmenter(load_model(bundled_model_folder()))

    def run() -> dict[str, Any]:
        found = segmenter.segment(volume)
        return {"steps": found.seconds, "dice": _mean_dice(found.labels, truth)}

    return run


def sliding_window(path: str) -> Callable[[], dict[str, Any]]:
    """The way of MONAI's tutorials."""
    from monai.data import MetaTensor
    from monai.inferers import sliding_window_inference
    from monai.transforms import (
        Activationsd,
        AsDiscreted,
        Compose,
        CropForegroundd,
        Invertd,
        Orientationd,
        ScaleIntensityRanged,
        Spacingd,
    )

    volume, truth = _load(path)
    model = load_model(bundled_model_folder())
    network = model.network("fine").eval()
    window = model.description.intensity
    warnings.simplefilter("ignore")  # PyTorch's, about the way MONAI indexes
    preprocess = Compose(
        [
            ScaleIntensityRanged("image", window.lower, window.upper, *window.output, clip=True),
            CropForegroundd(keys="image", source_key="image", select_fn=lambda x: x > window.output[0]),
            Orientationd(keys="image", axcodes="LPS", labels=(("L", "R"), ("P", "A"), ("I", "S"))),
            Spacingd(keys="image", pixdim=(1.5, 1.5, 2.0), mode="bilinear"),
        ]
    )
    postprocess = Compose(
        [
            Activationsd(keys="pred", softmax=True),
            Invertd(keys="pred", transform=preprocess, orig_keys="image", nearest_interp=False, to_tensor=True),
            AsDiscreted(keys="pred", argmax=True),
        ]
    )

    def run() -> dict[str, Any]:
        image = MetaTensor(torch.from_numpy(volume.array.T)[None].float(), affine=torch.from_numpy(volume.affine_ras))
        data = preprocess({"image": image})
        windows = 0

        def predict(batch: torch.Tensor) -> torch.Tensor:
            nonlocal windows
            windows += len(batch)
            return network(batch.permute(0, 1, 4, 3, 2)).permute(0, 1, 4, 3, 2)

        with torch.inference_mode():
            scores = sliding_window_inference(data["image"][None], (128, 128, 64), 1, predict, 0.5, "gaussian")
        data["pred"] = MetaTensor(scores[0], meta=data["image"].meta)
        labels = postprocess(data)["pred"][0].numpy().T.astype(np.uint8)
        return {"windows": windows, "dice": _mean_dice(labels, truth)}

    return run


def _load(path: str) -> tuple[Volume, np.ndarray]:
    with np.load(path) as file:
        return Volume(file["array"], tuple(file["spacing"]), tuple(file["origin"]), np.eye(3)), file["truth"]


def _save(folder: str, slices: int, slice_mm: float) -> str:
    path = str(Path(folder) / f"{slices}_{slice_mm}.npz")
    volume, truth = ct(slices, slice_mm)
    np.savez(path, array=volume.array, spacing=volume.spacing, origin=volume.origin, truth=truth)
    return path


def _mean_dice(labels: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([dice(labels == label, truth == label) for label in range(1, 5)]))


def throughput() -> list[float]:
    """Share of the matrix product's speed that the fine network reaches, both measured in turns."""
    network = Segmenter(load_model(bundled_model_folder()), precision="float32")
    fine = network._network(network.model.description.stages[-1])
    image = torch.rand(PATCH)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            fine(image, lambda fraction: None)
        operations = counter.get_total_flops() / 1e9
        shares = []
        for _ in range(COUNT):
            peak = matrix_gflops()
            shares.append(operations / timed(lambda: fine(image, lambda fraction: None))[0] / peak)
    return shares


def in_turns(processes: dict[str, Process]) -> dict[str, list[dict[str, Any]]]:
    """Runs of each process, the first of which is not warm and counts for memory only."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in processes}
    for number in range(COUNT + 1):
        for name, process in processes.items():
            runs[name].append(process.run())
            print(f"run {number}, {name}: {runs[name][-1]['seconds']:.2f} s", file=sys.stderr, flush=True)
    for process in processes.values():
        process.close()
    return runs


def main() -> None:
    """Measure, print and write the table."""
    keep_freed_memory()
    rows, notes = [], []
    with tempfile.TemporaryDirectory() as folder:
        before = matrix_gflops()
        scan = _save(folder, 200, 2.5)
        ways = {"pipeline": Process(pipeline, scan)}
        if importlib.util.find_spec("monai"):
            ways["MONAI"] = Process(sliding_window, scan)
        else:
            notes.append("MONAI is not installed: its rows are left out (see the head of this file).")
        runs = in_turns(ways)
        ours = runs["pipeline"]
        seconds = {name: [run["seconds"] for run in of[1:]] for name, of in runs.items()}
        rows.append(Row("pipeline, 512x512x200, 2.5 mm slices", "s", seconds["pipeline"]))
        if "MONAI" in runs:
            theirs = runs["MONAI"]
            ratios = [other / own for other, own in zip(seconds["MONAI"], seconds["pipeline"])]
            rows.append(Row(f"MONAI, {theirs[0]['windows']} windows", "s", seconds["MONAI"]))
            rows.append(
                Row("MONAI / pipeline, seconds", "times", ratios, at_least=40.0 if has_fast_bfloat16() else 25.0)
            )
            shares = [ours[0]["added_mib"] / theirs[0]["added_mib"]]
            rows.append(Row("pipeline / MONAI, peak of added memory", "", shares, at_most=0.25))
            notes.append(
                f"Added memory: pipeline {ours[0]['added_mib']:.0f} MiB, MONAI {theirs[0]['added_mib']:.0f} MiB. "
                f"Mean Dice of the phantom: pipeline {ours[0]['dice']:.3f}, sliding window {theirs[0]['dice']:.3f}."
            )
        steps = [run["steps"] for run in ours[1:]]
        outside = [sum(step.values()) / step["network"] - 1 for step in steps]
        rows.append(Row("outside the network / in the network", "", outside, at_most=0.5))
        rows += [Row(f"  {name}", "s", [step[name] for step in steps]) for name in steps[0]]
        rows.append(Row("network / matrix product, operations a second", "", throughput(), at_least=0.55))
        sizes = {size: Process(pipeline, _save(folder, size, 1.25)) for size in (200, 1000)}
        runs = in_turns({f"{size} slices of 1.25 mm": process for size, process in sizes.items()})
        few, many = runs.values()
        for name, of in runs.items():
            rows.append(Row(f"pipeline, {name}", "s", [run["seconds"] for run in of[1:]]))
            notes.append(f"Mean Dice of the phantom, {name}: {of[0]['dice']:.3f}.")
        ratios = [many_run["seconds"] / few_run["seconds"] for many_run, few_run in zip(many[1:], few[1:])]
        rows.append(Row("1000 slices / 200 slices, seconds", "times", ratios, at_most=2.0))
        after = matrix_gflops()
    notes.append(f"Matrix product: {before:.0f} GFLOP/s before, {after:.0f} after; {COUNT} runs each, in turns.")
    report("speed", rows, notes)
    if abs(before - after) > 0.2 * before:
        print("The machine's speed changed by more than a fifth meanwhile: measure again.", file=sys.stderr)


if __name__ == "__main__":
    main()
