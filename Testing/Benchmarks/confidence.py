"""Whether the confidence tells where a result is wrong: `FLARE_DATA=folder python3 flare.py bench confidence`, or for
another model `python Testing/Benchmarks/confidence.py --model RUN/best --data folder`.

The validation cases of `folder/val` (see `accuracy`) are segmented. FLARE_BENCH_PARTS chooses some of errors, places
and time. Printed and written to Testing/Output as CSV:

errors   within 10 mm of the organs, in the reference or in the result: area under the curve of the confidence as a sign
         of a wrong label; expected calibration error (15 bins) and mean negative log likelihood as it is, and with a
         temperature, one for all classes or one for each, fitted to the other cases
places   of each case and its slabs (see `slabs`): share of the wrong voxels that the first ten places cover (see
         `review_places`), and what share of the voxels within 10 mm they ask a person to look at for that
time     of whole segmentations without the confidence and with it, in turns: medians of seconds, and of the ratios of
         each pair, processor time and time on the clock
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from measuring import validation_cases
from scipy import ndimage
from slabs import parts

from FlareSegmentLib.inference.confidence import SURE, Confidence, classes_of
from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter
from FlareSegmentLib.inference.review_places import DOUBTFUL_BELOW, MOST_PLACES
from FlareSegmentLib.measures.organ_statistics import bounding_box
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

OUTPUT = Path(__file__).resolve().parents[1] / "Output" / "benchmark_confidence.csv"
PARTS = os.environ.get("FLARE_BENCH_PARTS", "errors places time").split()
REVIEW = SegmentationRequest(review=True)
NEAR_MM = 10.0
LEAST_WRONG_ML = 1.0
TIMED_CASES, TIMED_RUNS = 3, 7
BINS = 15
SHARES = np.arange(256) / 255
LOG_ODDS = np.log((SHARES + 1e-6) / (1 - SHARES + 1e-6))
TEMPERATURES = np.round(np.arange(0.5, 4.001, 0.02), 2)
Row = Callable[..., None]


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
    index = classes_of(labels, found.organs).astype(np.int64) * 256 + shares
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


def with_temperatures(temperatures: np.ndarray) -> np.ndarray:
    """The confidences 0 ... 255 of the classes, their log odds divided by the class's temperature, (classes, 256)."""
    return 1 / (1 + np.exp(-LOG_ODDS / temperatures[:, None]))


def log_loss(counts: np.ndarray, confidences: np.ndarray) -> float:
    """Mean negative log likelihood of right and wrong labels."""
    total, right = counts
    certain = np.clip(confidences, 1e-6, 1 - 1e-6)
    return float(-(right * np.log(certain) + (total - right) * np.log(1 - certain)).sum() / total.sum())


def fitted(counts: np.ndarray) -> float:
    """The temperature, one for all classes, with which the labels are likeliest."""
    return min(TEMPERATURES, key=lambda one: log_loss(counts, with_temperatures(np.full(counts.shape[1], one))))


def calibration_error(counts: np.ndarray, confidences: np.ndarray) -> float:
    """Expected calibration error: mean distance of confidence and accuracy, over bins of equal width."""
    index = np.minimum((confidences.ravel() * BINS).astype(int), BINS - 1)
    total = np.bincount(index, counts[0].ravel(), BINS)
    gap = np.bincount(index, (counts[0] * confidences - counts[1]).ravel(), BINS)
    return float(np.abs(gap).sum() / total.sum())


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model_folder())
    parser.add_argument("--data", default=os.environ.get("FLARE_DATA"))
    parser.add_argument("--parts", help="places only of parts of these names or beginnings, as whole,55")
    options = parser.parse_args()
    if not options.data:
        print("FLARE_DATA names no folder: nothing to measure.")
        return
    segmenter = Segmenter(load_model(options.model))
    rows: list[list] = []

    def row(*cells: object) -> None:
        rows.append(list(cells))
        print("  ".join(f"{c:8.4f}" if isinstance(c, float) else f"{c!s:<14}" for c in cells), flush=True)

    print(f"{segmenter.name}, {segmenter.device}")
    if "time" in PARTS:
        measure_time(segmenter, Path(options.data), row)
    if "errors" in PARTS:
        measure_errors(segmenter, Path(options.data), row)
    if "places" in PARTS:
        measure_places(segmenter, scans(Path(options.data), options.parts), row)
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    print(f"Written to {OUTPUT}")


def measure_errors(segmenter: Segmenter, data: Path, row: Row) -> None:
    """How well the confidence finds errors, and whether it is as often right as it says."""
    classes = 1 + len(segmenter.organs)
    counts = {
        name: counts_of(segmenter.segment(volume, REVIEW), truth, volume, classes)
        for name, volume, truth in validation_cases(data)
    }
    row("errors", "case", "AUROC", "ECE", "ECE one", "ECE each", "NLL", "NLL one", "NLL each")
    plain = np.broadcast_to(SHARES, (classes, 256))
    results, tables = [], []
    for name, mine in counts.items():
        others = sum(count for other, count in counts.items() if other != name)
        one = np.full(classes, fitted(others))
        each = np.array([fitted(others[:, [number]]) for number in range(classes)])
        tables.append([plain, with_temperatures(one), with_temperatures(each)])
        errors = [calibration_error(mine, table) for table in tables[-1]]
        results.append([area_under_curve(mine, plain), *errors, *(log_loss(mine, table) for table in tables[-1])])
        row("errors", name, *results[-1])
    row("errors", "mean", *np.mean(results, axis=0).tolist())
    every = np.concatenate(list(counts.values()), axis=1)
    together = [np.concatenate(kind) for kind in zip(*tables, strict=True)]
    errors = [calibration_error(every, table) for table in together]
    losses = [log_loss(every, table) for table in together]
    row("errors", "all voxels", area_under_curve(every, together[0]), *errors, *losses)


def measure_places(segmenter: Segmenter, cases: Iterator[tuple[str, str, Volume, np.ndarray]], row: Row) -> None:
    """What the first ten places cover."""
    row("places", "case", "part", "wrong mL", "covered", "to look at")
    covered: list[tuple[str, float, float, float]] = []
    for name, part, volume, truth in cases:
        covered.append((part, *coverage(segmenter.segment(volume, REVIEW), truth, volume)))
        if covered[-1][1] >= LEAST_WRONG_ML:
            row("places", name, *covered[-1])
    for kind in dict.fromkeys(part.partition(" at ")[0] for part, *_ in covered):
        kept = np.array([values for part, *values in covered if part.startswith(kind) and values[0] >= LEAST_WRONG_ML])
        row("places", "mean of", kind, *kept.mean(axis=0).tolist())
        enough = f"{np.count_nonzero(kept[:, 1] >= 0.7)} of {len(kept)} at least 0.7"
        row("places", "lowest of", kind, float(kept[:, 1].min()), enough)


def scans(data: Path, chosen: str | None) -> Iterator[tuple[str, str, Volume, np.ndarray]]:
    """Yield (case, part, CT, labels) of the whole cases and their slabs."""
    for name, volume, truth in validation_cases(data):
        for part, place in parts(volume, truth):
            if part.endswith("half") or (chosen and not part.startswith(tuple(chosen.split(",")))):
                continue
            yield name, part, volume.part(place), truth[place]


def measure_time(segmenter: Segmenter, data: Path, row: Row) -> None:
    """Time whole segmentations with the confidence and without, in turns, either first."""
    row("time", "case", "s without", "s with", "more processor", "more on the clock")
    every: list[tuple[float, float]] = []
    for name, volume, _truth in islice(validation_cases(data), TIMED_CASES):
        taken: list[dict[bool, tuple[float, float]]] = []
        for number in range(1 + TIMED_RUNS):
            pair = {}
            for review in (False, True) if number % 2 else (True, False):
                start = time.process_time(), time.perf_counter()
                segmenter.segment(volume, SegmentationRequest(review=review))
                pair[review] = time.process_time() - start[0], time.perf_counter() - start[1]
            taken.append(pair)
        del taken[0]  # the first one warms up
        ratios = [tuple(b / a for a, b in zip(pair[False], pair[True], strict=True)) for pair in taken]
        every += ratios
        seconds = [statistics.median(pair[review][1] for pair in taken) for review in (False, True)]
        row("time", name, *seconds, *map(more, zip(*ratios, strict=True)))
    row("time", "all", "", "", *map(more, zip(*every, strict=True)))


def more(ratios: Iterable[float]) -> str:
    """The median of ratios, in percent above 1."""
    return f"{100 * (statistics.median(ratios) - 1):+.1f} %"


if __name__ == "__main__":
    main()
