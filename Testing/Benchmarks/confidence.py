"""Whether the confidence tells where a result is wrong: `FLARE_DATA=folder python3 flare.py bench confidence`, or for
another model `python Testing/Benchmarks/confidence.py --model RUN/best --data folder`.

The validation cases of `folder/val` (see `accuracy`) are segmented; temperatures, one a class, are fitted to all voxels
within 10 mm of their organs (in the reference or in the result). Printed and written to Testing/Output as CSV:

temperature   fitted; `--write` puts them into the model's model.json
calibration   expected calibration error of each case with temperatures of 1, with those fitted to all cases, and with
              those fitted to the others
auroc         area under the curve of the confidence as a sign of a wrong label, within the same 10 mm
places        of each case and its slabs (see `slabs`): share of the wrong voxels that the first ten places cover (see
              `review_places`), and what share of the voxels within 10 mm they ask a person to look at for that
seconds       of the processor for a whole segmentation without the confidence and with it, in turns, medians
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from measuring import validation_cases
from scipy import ndimage
from slabs import parts

from FlareSegmentLib.inference.confidence import (
    SURE,
    Confidence,
    calibrated_shares,
    calibration_error,
    class_table,
    fit_temperature,
)
from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter
from FlareSegmentLib.inference.review_places import DOUBTFUL_BELOW, MOST_PLACES
from FlareSegmentLib.measures.organ_statistics import bounding_box
from FlareSegmentLib.model.model_file import DESCRIPTION_FILE, bundled_model_folder, load_model
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

OUTPUT = Path(__file__).resolve().parents[1] / "Output" / "benchmark_confidence.csv"
REVIEW = SegmentationRequest(review=True)
NEAR_MM = 10.0
LEAST_WRONG_ML = 1.0
TIMED_CASES, TIMED_RUNS = 3, 5


def on_whole_grid(confidence: Confidence, shape: tuple[int, ...]) -> np.ndarray:
    """(z, y, x) uint8 of the whole CT."""
    whole = np.full(shape, SURE, np.uint8)
    whole[confidence.box] = confidence.array
    return whole


def near_organs(labels: np.ndarray, truth: np.ndarray, volume: Volume) -> tuple[tuple[slice, ...], np.ndarray]:
    """(box, mask in it) of the voxels within NEAR_MM of an organ in the result or in the reference."""
    either = (labels > 0) | (truth > 0)
    spacing = volume.spacing[::-1]
    reach = [int(np.ceil(NEAR_MM / mm)) for mm in spacing]
    box = tuple(
        slice(max(0, extent.start - margin), extent.stop + margin)
        for extent, margin in zip(bounding_box(either), reach, strict=True)
    )
    return box, ndimage.distance_transform_edt(~either[box], sampling=spacing) <= NEAR_MM


def counts_of(found: Segmentation, truth: np.ndarray, volume: Volume, classes: int) -> np.ndarray:
    """(2, classes, 256): voxels near organs of each class and share, all of them and those with the right label."""
    box, near = near_organs(found.labels, truth, volume)
    labels, shares = found.labels[box][near], on_whole_grid(found.confidence, truth.shape)[box][near]
    index = class_table(found.organs)[labels].astype(np.int64) * 256 + shares
    right = labels == truth[box][near]
    return np.stack([np.bincount(one, minlength=classes * 256).reshape(classes, 256) for one in (index, index[right])])


def area_under_curve(counts: np.ndarray, confidences: np.ndarray) -> float:
    """Probability that a wrong label has the lower confidence than a right one; ties count half."""
    total, right = counts.reshape(2, -1).astype(float)
    order = np.argsort(confidences.ravel(), kind="stable")
    values, groups = np.unique(confidences.ravel()[order], return_inverse=True)
    wrong = np.bincount(groups, (total - right)[order], len(values))
    good = np.bincount(groups, right[order], len(values))
    above = good[::-1].cumsum()[::-1] - good / 2
    return float(wrong @ above / max(wrong.sum() * good.sum(), 1.0))


def coverage(found: Segmentation, truth: np.ndarray, volume: Volume) -> tuple[float, float, float]:
    """(milliliters of wrong labels, share of them that the first ten places cover, share of the voxels near organs that
    the same places show as doubtful).
    """
    doubtful = on_whole_grid(found.confidence, truth.shape) < 255 * DOUBTFUL_BELOW
    looked_at = np.zeros(truth.shape, bool)
    for place in found.places[:MOST_PLACES]:
        if place.box is not None:
            where = tuple(slice(start, stop) for start, stop in place.box)
            looked_at[where] = doubtful[where]
    wrong = found.labels != truth
    box, near = near_organs(found.labels, truth, volume)
    count = int(np.count_nonzero(wrong))
    covered = np.count_nonzero(wrong & looked_at) / max(count, 1)
    return count * volume.voxel_volume_ml, covered, float(looked_at[box][near].mean())


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model_folder())
    parser.add_argument("--data", default=os.environ.get("FLARE_DATA"))
    parser.add_argument("--write", action="store_true", help="put the fitted temperatures into the model's model.json")
    parser.add_argument("--parts", help="places only of parts of these names or beginnings, as whole,55")
    options = parser.parse_args()
    if not options.data:
        print("FLARE_DATA names no folder: nothing to measure.")
        return
    model = load_model(options.model)
    own = model.description
    segmenter = Segmenter(model)
    rows: list[list] = []

    def row(*cells: object) -> None:
        rows.append(list(cells))
        print("  ".join(f"{c:8.4f}" if isinstance(c, float) else f"{c!s:<18}" for c in cells), flush=True)

    print(f"{segmenter.name}, {segmenter.device}")
    model.description = replace(own, temperatures=())
    classes = 1 + len(segmenter.organs)
    counts = {
        name: counts_of(segmenter.segment(volume, REVIEW), truth, volume, classes)
        for name, volume, truth in validation_cases(Path(options.data))
    }
    fitted = fit(sum(counts.values()))
    for name, value in zip(["background", *(organ.key for organ in segmenter.organs)], fitted, strict=True):
        row("temperature", name, value)
    before, after = calibrated_shares([1.0] * classes), calibrated_shares(fitted)
    row("table", "case", "as it is", "fitted to all", "fitted to others")
    errors = []
    for name, mine in counts.items():
        others = calibrated_shares(fit(sum(count for other, count in counts.items() if other != name)))
        errors.append([calibration_error(*mine, table) for table in (before, after, others)])
        row("calibration", name, *errors[-1])
    row("calibration", "mean", *np.mean(errors, axis=0).tolist())
    every = sum(counts.values())
    row("calibration", "all voxels", calibration_error(*every, before), calibration_error(*every, after))
    areas = {name: area_under_curve(mine, after) for name, mine in counts.items()}
    for name, area in areas.items():
        row("auroc", name, area)
    row("auroc", "mean", statistics.fmean(areas.values()))
    row("auroc", "all voxels", area_under_curve(every, after))
    if options.write:
        write_temperatures(options.model, fitted)

    model.description = replace(own, temperatures=fitted)
    row("table", "case", "part", "wrong mL", "covered", "to look at")
    covered: list[tuple[str, float, float, float]] = []
    for name, part, volume, truth in scans(Path(options.data), options.parts):
        covered.append((part, *coverage(segmenter.segment(volume, REVIEW), truth, volume)))
        if covered[-1][1] >= LEAST_WRONG_ML:
            row("places", name, *covered[-1])
    for kind in dict.fromkeys(part.partition(" at ")[0] for part, *_ in covered):
        kept = np.array([values for part, *values in covered if part.startswith(kind) and values[0] >= LEAST_WRONG_ML])
        row("places", "mean of", kind, *kept.mean(axis=0).tolist())
        row(
            "places",
            "lowest of",
            kind,
            float(kept[:, 1].min()),
            f"{np.count_nonzero(kept[:, 1] >= 0.7)} of {len(kept)} at least 0.7",
        )
    measure_time(segmenter, Path(options.data), row)
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    print(f"Written to {OUTPUT}")


def fit(counts: np.ndarray) -> tuple[float, ...]:
    """A temperature for each class."""
    return tuple(fit_temperature(total, right) for total, right in zip(*counts, strict=True))


def write_temperatures(folder: Path, temperatures: tuple[float, ...]) -> None:
    """Put the temperatures into a model's description and leave all else as it is."""
    file = folder / DESCRIPTION_FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    weights = content.pop("weights")
    content |= {"temperatures": list(temperatures), "weights": weights}
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def scans(data: Path, chosen: str | None) -> Iterator[tuple[str, str, Volume, np.ndarray]]:
    """Yield (case, part, CT, labels) of the whole cases and their slabs."""
    for name, volume, truth in validation_cases(data):
        for part, place in parts(volume, truth):
            if part.endswith("half") or (chosen and not part.startswith(tuple(chosen.split(",")))):
                continue
            yield name, part, volume.part(place), truth[place]


def measure_time(segmenter: Segmenter, data: Path, row) -> None:
    """Time whole segmentations with the confidence and without, in turns: processor time, as other programs run too."""
    for name, volume, _truth in islice(validation_cases(data), TIMED_CASES):
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(TIMED_RUNS):
            for review, taken in seconds.items():
                start = time.process_time()
                segmenter.segment(volume, SegmentationRequest(review=review))
                taken.append(time.process_time() - start)
        plain, asked = (statistics.median(seconds[review]) for review in (False, True))
        row("seconds", name, plain, asked, f"{100 * (asked / plain - 1):+.1f} %")


if __name__ == "__main__":
    main()
