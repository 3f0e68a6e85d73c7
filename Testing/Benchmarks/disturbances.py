"""What deceives a model: `FLARE_DATA=folder python3 flare.py bench disturbances`, or for another model
`python Testing/Benchmarks/disturbances.py --model RUN/best --data folder`.

bowel   milliliters of each organ found in bowel full of oral contrast (110 HU and more, air levels) that is painted
        beside organs of two validation cases; its voxels were background before
noise   Dice of every validation case with white noise of 60 and 130 HU added
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import numpy as np
import torch
from measuring import validation_cases

from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.intensity import window
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.lumps import paint_bowel

OUTPUT = Path(__file__).resolve().parents[1] / "Output" / "benchmark_disturbances.csv"
BOWEL_CASES, BOWEL_SEEDS, LOOPS = 2, (0, 1, 2), 8
CORE_HU = 100.0
NOISE_HU = (60.0, 130.0)


def with_bowel(volume: Volume, truth: np.ndarray, segmenter: Segmenter, seed: int) -> tuple[Volume, np.ndarray]:
    """A CT with bowel loops painted beside its organs, and which voxels (z, y, x) are contrast in them."""
    intensity = segmenter.model.description.intensity
    view, order = volume.to_lps_view()
    before = window(view.array.astype(np.float32), intensity).astype(np.float32)
    image, labels = torch.from_numpy(before.copy()), torch.from_numpy(np.ascontiguousarray(order.apply(truth)))
    keys = [organ.key for organ in segmenter.organs]
    scan = LabeledScan(image, labels, view.spacing, keys, intensity, np.random.default_rng(seed))
    for _ in range(LOOPS):
        paint_bowel(scan)
    after = image.numpy()
    painted = after != before
    hu = (after + 1.0) * 0.5 * (intensity.upper - intensity.lower) + intensity.lower
    array = np.where(painted, hu, view.array).astype(np.float32)
    contrast = painted & (hu > CORE_HU)
    return Volume(array, view.spacing, view.origin, view.direction, volume.name), contrast


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=bundled_model_folder())
    parser.add_argument("--data", default=os.environ.get("FLARE_DATA"))
    options = parser.parse_args()
    if not options.data:
        print("FLARE_DATA names no folder: nothing to measure.")
        return
    segmenter = Segmenter(load_model(options.model))
    rows: list[list] = []

    def row(*cells: object) -> None:
        rows.append(list(cells))
        print("  ".join(f"{c:8.3f}" if isinstance(c, float) else f"{c!s:<16}" for c in cells), flush=True)

    print(f"{segmenter.name}, {segmenter.device}")
    row("table", "case", "what", *(organ.key for organ in segmenter.organs))
    means: dict[float, list] = {hu: [] for hu in NOISE_HU}
    for number, (name, volume, truth) in enumerate(validation_cases(Path(options.data))):
        for seed in BOWEL_SEEDS if number < BOWEL_CASES else ():
            changed, contrast = with_bowel(volume, truth, segmenter, seed)
            labels = segmenter.segment(changed).labels
            found = [
                float(np.count_nonzero(contrast & (labels == organ.label))) * changed.voxel_volume_ml
                for organ in segmenter.organs
            ]
            painted = np.count_nonzero(contrast) * changed.voxel_volume_ml
            row("bowel", name, f"ml of {painted:.0f} ml", *found)
        for hu in NOISE_HU:
            noise = np.random.default_rng(0).normal(0.0, hu, volume.array.shape)
            noisy = Volume(
                (volume.array + noise).astype(np.float32), volume.spacing, volume.origin, volume.direction, volume.name
            )
            labels = segmenter.segment(noisy).labels
            means[hu].append([dice(labels == organ.label, truth == organ.label) for organ in segmenter.organs])
            row("noise", name, f"{hu:g} HU", *means[hu][-1])
    for hu, values in means.items():
        if values:
            row("noise", "mean", f"{hu:g} HU", *(float(value) for value in np.nanmean(values, axis=0)))
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    print(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main()
