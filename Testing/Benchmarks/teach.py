"""What teaching gains and what it loses: `FLARE_DATA=folder python3 flare.py bench teach`.

A kind of CT that the model is bad at is made from real ones: horizontal streaks of photon starvation, as in low-dose
scans of wide patients or with arms at the side (noise of 140 HU, drawn out over 25 mm from side to side). Three cases
of that kind are kept as examples and taught; then the old and the taught model are measured on other cases of that
kind, and on validation cases as they are. Nothing of the cases taught is among those measured.

taught      `teach.py` with its default recipe: the whole way, also held out, with its time and memory
plain       the same steps without protection, at an ordinary learning rate, for comparison

`--quick` leaves out the trainings held out and measures three and four cases (about 15 minutes on a core); without it,
six and seven (about 40 minutes).
"""

from __future__ import annotations

import argparse
import os
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from measuring import Row, report, tell
from scipy import ndimage

from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.model_file import bundled_model_folder, load_model
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.teaching import judgment, teaching
from FlareSegmentTrainingLib.teaching.examples import ExampleFolder
from FlareSegmentTrainingLib.teaching.recipe import PLAIN, Recipe
from FlareSegmentTrainingLib.teaching.report import markdown

TAUGHT = ("btcv0026", "btcv0028", "btcv0040")
UNSEEN = ("btcv0023", "btcv0030", "btcv0010", "btcv0006", "btcv0034", "btcv0037")
OTHERS = ("btcv0031", "c3l00189", "matrad_pat001", "tcga4070", "acrin042", "btcv0006", "btcv0010")
QUICK_UNSEEN, QUICK_OTHERS = 3, 4
STREAK_HU, STREAK_MM = 140.0, 25.0


def streaked(volume: Volume, seed: int) -> Volume:
    """A CT with horizontal streaks of photon starvation. Axes as stored: x runs from side to side in these cases."""
    noise = np.random.default_rng(seed).normal(0.0, 1.0, volume.array.shape)
    noise = ndimage.gaussian_filter(noise, [0.0, 0.8, STREAK_MM / volume.spacing[0]])
    array = np.clip(np.rint(volume.array + noise * (STREAK_HU / noise.std())), -1024, 3071)
    return volume.with_array(array.astype(np.int16))


def read_case(data: Path, name: str, changed: bool) -> tuple[Volume, np.ndarray]:
    """A case's CT, with streaks or as it is, and its labels."""
    file = next(data.glob(f"*/{name}_ct.nii.gz"))
    volume, labels = read_volume(file)[0], read_labels(file.with_name(f"{name}_labels.nii.gz")).array
    return streaked(volume, sum(map(ord, name))) if changed else volume, labels


def scores(model: Path, data: Path, names: Sequence[str], changed: bool) -> np.ndarray:
    """Dice (case, organ) of a model; nan where the organ is not labeled."""
    segmenter = Segmenter(load_model(model))
    rows = []
    for name in names:
        tell(f"measuring on {name}{', with streaks' if changed else ''}")
        volume, truth = read_case(data, name, changed)
        labels = segmenter.segment(volume).labels
        present = [bool((truth == organ.label).any()) for organ in ORGANS]
        rows.append(
            [dice(labels == o.label, truth == o.label) if there else np.nan for o, there in zip(ORGANS, present)]
        )
    return np.array(rows)


def teach(folder: Path, examples: Path, recipe: Recipe, held_out: bool) -> tuple[Path, float]:
    """Teach the bundled model; returns the folder of what was taught, whether it is offered or not, and the minutes.

    held_out: also measure each example with a model that was not taught with it, as `teach.py` does, and refuse what is
        not better; without that, one training is all.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        if not held_out:
            stack.enter_context(mock.patch.object(teaching, "folds_of", return_value={}))
            for name in ("against_examples", "against_stability"):
                stack.enter_context(mock.patch.object(judgment, name, return_value=[]))
            stack.enter_context(mock.patch.object(teaching, "stability_set", return_value=[]))
        taught = teaching.Teaching(folder, examples, bundled_model_folder(), recipe, say=lambda _line: None).run()
    if held_out:
        print(f"{'offered' if taught.offered else 'not offered'}; {'; '.join(taught.reasons)}")
        print(markdown(taught.report, ORGANS))
    return folder / teaching.MODELS / teaching.ALL, (time.monotonic() - start) / 60


def main() -> None:
    """Teach, measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=os.environ.get("FLARE_DATA"))
    parser.add_argument("--quick", action="store_true", help="fewer cases, and one training only")
    options = parser.parse_args()
    if not options.data:
        print("FLARE_DATA names no folder: nothing to measure.")
        return
    data = Path(options.data)
    unseen = UNSEEN[:QUICK_UNSEEN] if options.quick else UNSEEN
    others = OTHERS[:QUICK_OTHERS] if options.quick else OTHERS
    rows: list[Row] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        examples = ExampleFolder(folder / "examples")
        for name in TAUGHT:
            tell(f"keeping {name}, with streaks, as an example")
            examples.keep(*read_case(data, name, True), [organ.key for organ in ORGANS])
        old = {"unseen": scores(bundled_model_folder(), data, unseen, True)}
        old["others"] = scores(bundled_model_folder(), data, others, False)
        for key, found in old.items():
            rows.append(Row(f"Dice, {key}, old", "", [float(np.nanmean(found))]))
        for way, recipe in (("taught", Recipe()), ("plain", PLAIN)):
            tell(f"teaching: {way}")
            model, minutes = teach(folder / way, examples.path, recipe, way == "taught" and not options.quick)
            gain = scores(model, data, unseen, True) - old["unseen"]
            loss = scores(model, data, others, False) - old["others"]
            bound = way == "taught"
            rows += [
                Row(f"{way}: time", "min", [minutes], at_most=15.0 if bound else None),
                Row(
                    f"{way}: gain of Dice, unseen of the kind",
                    "",
                    [float(np.nanmean(gain))],
                    at_least=0.03 if bound else None,
                ),
                Row(f"{way}: gain of Dice, others", "", [float(np.nanmean(loss))], at_least=-0.003 if bound else None),
                Row(f"{way}: gain of Dice, others, worst organ of a scan", "", [float(np.nanmin(loss))]),
            ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    rows.append(Row("peak memory", "MiB", [peak], at_most=4096.0))
    report("teach", rows, [f"{len(unseen)} unseen of the kind, {len(others)} others"])


if __name__ == "__main__":
    main()
