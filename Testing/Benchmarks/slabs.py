"""How a model does on parts of scans: `FLARE_DATA=folder python3 flare.py bench slabs`, or for another model
`python Testing/Benchmarks/slabs.py --model RUN/best --data folder`.

Each validation case of `folder/val` (see `accuracy`) is cut into slabs of 55 and 90 mm at five places from its lowest
organ to its highest, and into a right and a left half that overlap by 20 mm. Organs of at least 10 mL in the part
count, if they are not graded "ignore". With `--compare` every part is segmented two times more: with the organs' box as
the first stage found it, which tells what looking at more costs and brings, and with all of the body in the box, which
tells what the first stage still loses.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from measuring import validation_cases

from FlareSegmentLib.inference import stages
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.volume import Volume

OUTPUT = Path(__file__).resolve().parents[1] / "Output" / "benchmark_slabs.csv"
SLABS_MM = (55.0, 90.0)
PLACES = (0.0, 0.25, 0.5, 0.75, 1.0)
OVERLAP_MM = 20.0
LEAST_ML = 10.0
LOST = 0.5
WAYS: dict[str, Callable | None] = {
    "pipeline": None,
    "box alone": lambda box, *_arguments: box,
    "whole body": lambda box, _look, _pieces, view, _organs: tuple((0.0, float(n)) for n in view.array.shape),
}


def parts(volume: Volume, truth: np.ndarray) -> Iterator[tuple[str, tuple[slice, ...]]]:
    """Yield (name, place (z, y, x) in the stored array) of the whole case, its slabs and its halves."""
    order = volume.axis_order()
    whole = [slice(0, count) for count in truth.shape]
    yield "whole", tuple(whole)
    axis = order.permutation[0]
    low, high = _extent(truth, axis)
    for mm in SLABS_MM:
        count = max(1, round(mm / volume.spacing[2 - axis]))
        for share in PLACES:
            start = round(low + share * max(0, high - low - count))
            place = slice(start, min(truth.shape[axis], start + count))
            yield f"{mm:g} mm at {share:.2f}", (*whole[:axis], place, *whole[axis + 1 :])
    axis = order.permutation[2]
    middle = sum(_extent(truth, axis)) // 2
    overlap = round(0.5 * OVERLAP_MM / volume.spacing[2 - axis])
    for name, place in (("first", slice(0, middle + overlap)), ("second", slice(middle - overlap, truth.shape[axis]))):
        yield f"{name} half", (*whole[:axis], place, *whole[axis + 1 :])


def _extent(truth: np.ndarray, axis: int) -> tuple[int, int]:
    hits = np.flatnonzero(truth.any(axis=tuple(other for other in range(3) if other != axis)))
    return int(hits[0]), int(hits[-1]) + 1


def scores(segmenter: Segmenter, part: Volume, truth: np.ndarray, counted: list[bool]) -> tuple[list[float], float]:
    """Dice of each organ, nan where it does not count, and the seconds taken."""
    start = time.perf_counter()
    labels = segmenter.segment(part).labels
    seconds = time.perf_counter() - start
    found = []
    for organ, counts in zip(segmenter.organs, counted):
        mask = truth == organ.label
        counts = counts and np.count_nonzero(mask) * part.voxel_volume_ml >= LEAST_ML
        found.append(dice(labels == organ.label, mask) if counts else float("nan"))
    return found, seconds


def main() -> None:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, default=bundled_model_folder())
    parser.add_argument("--data", default=os.environ.get("FLARE_DATA"))
    parser.add_argument("--cases", help="only these, as case1,case2")
    parser.add_argument("--parts", help="only parts of these names or beginnings, as whole,55")
    parser.add_argument("--compare", action="store_true", help="also with the box alone and with the whole body")
    options = parser.parse_args()
    if not options.data:
        print("FLARE_DATA names no folder: nothing to measure.")
        return
    segmenter = Segmenter(load_model(options.model))
    keys = [organ.key for organ in segmenter.organs]
    grades = Path(options.data, "quality.json")
    quality = json.loads(grades.read_text(encoding="utf-8")) if grades.exists() else {}
    ways = WAYS if options.compare else {"pipeline": None}
    asked = stages.widened_box
    rows: list[list] = [["case", "part", "way", *keys, "seconds"]]
    print(f"{segmenter.name}, {segmenter.device}")
    for name, volume, truth in validation_cases(Path(options.data)):
        if options.cases and name not in options.cases.split(","):
            continue
        counted = [quality.get(name, {}).get(key, {}).get("grade") != "ignore" for key in keys]
        for part, place in parts(volume, truth):
            if options.parts and not part.startswith(tuple(options.parts.split(","))):
                continue
            for way, box in ways.items():
                stages.widened_box = box or asked
                found, seconds = scores(segmenter, volume.part(place), truth[place], counted)
                rows.append([name, part, way, *found, seconds])
                cells = "  ".join(f"{value:6.3f}" for value in found)
                print(f"{name:<16} {part:<16} {way:<10} {cells}  {seconds:6.2f} s", flush=True)
    stages.widened_box = asked
    summarize(rows[1:], keys)
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    print(f"Written to {OUTPUT}")


def summarize(rows: list[list], keys: list[str]) -> None:
    """Print means, lost organs (Dice below 0.5) and seconds of each kind of part and way."""
    print(f"\n{'':<28}" + "".join(f"{key:>14}" for key in [*keys, "worst", "lost", "seconds"]))
    kinds = [row[1].partition(" at ")[0].replace("first ", "").replace("second ", "") for row in rows]
    for kind in dict.fromkeys(kinds):
        chosen = [row for row, its in zip(rows, kinds) if its == kind]
        for way in dict.fromkeys(row[2] for row in chosen):
            table = np.array([row[3:-1] for row in chosen if row[2] == way], float)
            seconds = sum(row[-1] for row in chosen if row[2] == way)
            kept = table[np.isfinite(table)]
            if not kept.size:
                continue
            means = [float(np.nanmean(column)) if np.isfinite(column).any() else float("nan") for column in table.T]
            lost = f"{np.count_nonzero(kept < LOST)} of {kept.size}"
            cells = "".join(f"{mean:>14.4f}" for mean in means)
            print(f"{kind:<12}{way:<16}{cells}{kept.min():>14.3f}{lost:>14}{seconds:>14.1f}")


if __name__ == "__main__":
    main()
