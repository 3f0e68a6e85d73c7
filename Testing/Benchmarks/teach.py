"""What teaching gains and what it loses: `FLARE_DATA=folder python3 flare.py bench teach`.

Kinds of CT that the bundled model is bad at are made from real ones (`measuring.hard_kinds`): streaks of photon
starvation, and coarse grain. Three cases of a kind are kept as examples and taught by `teach.py` with its default
recipe; then the old and the taught model are measured on other cases of that kind, and on others as they are. No case
is in two groups; the bundled model was trained on none of them.

FLARE_BENCH_PARTS chooses some of these (default: all, about an hour of one processor):

streaks, grain   the kinds: what `teach.py` says, its time and memory, gain and loss
plain            fine-tuning on the streaks for as many steps at an ordinary learning rate, without any protection
swapped          the examples of streaks with liver and spleen, and right and left kidney, exchanged: must be refused

FLARE_BENCH_PLACE names a folder in which all is kept: the same command there goes on where it was stopped (times are
told only of teachings that ran without a stop).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
from measuring import Row, report, tell
from measuring.hard_kinds import read_case

from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.organs import ORGANS
from FlareSegmentTrainingLib.evaluation.comparison import bootstrap_interval
from FlareSegmentTrainingLib.evaluation.identities import program_identity
from FlareSegmentTrainingLib.runs.watched_folder import save_whole
from FlareSegmentTrainingLib.teaching import judgment, teaching
from FlareSegmentTrainingLib.teaching.beginning import model_state
from FlareSegmentTrainingLib.teaching.examples import ExampleFolder
from FlareSegmentTrainingLib.teaching.recipe import PLAIN

PARTS = os.environ.get("FLARE_BENCH_PARTS", "streaks plain swapped grain").split()
TAUGHT = ("btcv0026", "btcv0028", "btcv0040")
UNSEEN = ("btcv0023", "btcv0030", "btcv0034", "btcv0037", "btcv0006", "btcv0010")
OTHERS = (
    *("c3l00189", "matrad_pat001", "tcga4070", "acrin042", "btcv0031"),  # validation cases of the bundled model
    *("btcv0005", "btcv0007", "btcv0009", "btcv0027"),
)
TEACH = Path(__file__).resolve().parents[2] / "FlareSegmentTraining" / "Scripts" / "teach.py"
EXCHANGED = (0, 4, 3, 2, 1)


class Scores:
    """Dice of models on cases, each measured once and kept."""

    def __init__(self, data: Path, file: Path) -> None:
        self._data, self._file = data, file
        self._known: dict[str, list[float | None]] = json.loads(file.read_text()) if file.is_file() else {}

    def of(self, model: Path, names: Sequence[str], kind: str | None) -> np.ndarray:
        """(case, organ); nan where the organ is not labeled."""
        identity = f"{program_identity()[:12]} {model_state(model)[:12]} {kind}"
        segmenter = None
        for name in names:
            if f"{identity} {name}" in self._known:
                continue
            tell(f"measuring on {name}, {kind or 'as it is'}")
            segmenter = segmenter or Segmenter(load_model(model))
            volume, truth = read_case(self._data, name, kind)
            labels = segmenter.segment(volume).labels
            self._known[f"{identity} {name}"] = [
                float(dice(labels == organ.label, truth == organ.label)) if (truth == organ.label).any() else None
                for organ in ORGANS
            ]
            save_whole(self._file, lambda place: place.write_text(json.dumps(self._known)))
        return np.array([self._known[f"{identity} {name}"] for name in names], float)


def gained(label: str, after: np.ndarray, before: np.ndarray, **bound: float) -> Row:
    """The mean difference over organs and scans, and the ends of its interval (bootstrap over scans)."""
    mean = float(np.nanmean(after - before))
    low, high = bootstrap_interval(np.nanmean(after - before, axis=1).tolist())
    return Row(label, "", [value for value in (low, mean, high) if value is not None], **bound)


def kept(place: Path, data: Path, kind: str, exchanged: bool = False) -> Path:
    """Folder of the examples of a kind."""
    folder = ExampleFolder(place / f"examples-{kind}{'-exchanged' if exchanged else ''}")
    for number, name in enumerate(TAUGHT):
        if len(folder.examples()) == number:
            tell(f"keeping {name}, {kind}, as an example")
            volume, labels = read_case(data, name, kind)
            labels = np.array(EXCHANGED, np.uint8)[labels] if exchanged else labels
            folder.keep(volume, labels, [organ.key for organ in ORGANS])
    return folder.path


def run_script(folder: Path, examples: Path) -> list[Row]:
    """Teach with the script; its time, processor time and memory, unless it had been begun before."""
    new = not folder.exists()
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(TEACH), "--examples", str(examples), "--output", str(folder), "--device", "cpu"]
    subprocess.run(command, check=True)
    after, minutes = resource.getrusage(resource.RUSAGE_CHILDREN), (time.monotonic() - start) / 60
    if not new:
        return []
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    peak = after.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return [
        Row("time", "min", [minutes], at_most=15.0),
        Row("processor time", "min", [worked / 60]),
        Row("peak memory", "MiB", [peak], at_most=4096.0),
    ]


def measured(model: Path, kind: str, scores: Scores, bound: bool) -> list[Row]:
    """Gain on unseen cases of the kind and on others."""
    rows = []
    limits = ({"at_least": 0.03}, {"at_least": -0.003}) if bound else ({}, {})
    for what, names, one, limit in (("of the kind", UNSEEN, kind, limits[0]), ("others", OTHERS, None, limits[1])):
        old, new = scores.of(bundled_model_folder(), names, one), scores.of(model, names, one)
        rows += [
            Row(f"Dice before, {len(names)} unseen {what}", "", [float(np.nanmean(old))]),
            gained(f"gain, unseen {what}", new, old, **limit),
            Row(f"gain, unseen {what}, worst organ of a scan", "", [float(np.nanmin(new - old))]),
        ]
    return rows


def kind_of_ct(kind: str, place: Path, data: Path, scores: Scores) -> list[Row]:
    """Teach with a kind and measure."""
    rows = run_script(place / kind, kept(place, data, kind))
    told = json.loads((place / kind / teaching.REPORT_FILE).read_text(encoding="utf-8"))
    rows.append(Row("offered", "", [float(told["offered"])], at_least=1.0))
    model = place / kind / teaching.MODELS / teaching.ALL
    return rows + (measured(model, kind, scores, True) if model.is_dir() else [])


def streaks(place: Path, data: Path, scores: Scores) -> list[Row]:
    """See the head of this file; so with the others."""
    return kind_of_ct("streaks", place, data, scores)


def grain(place: Path, data: Path, scores: Scores) -> list[Row]:
    return kind_of_ct("grain", place, data, scores)


def plain(place: Path, data: Path, scores: Scores) -> list[Row]:
    with ExitStack() as stack:  # one training on all examples, whatever comes of it
        stack.enter_context(mock.patch.object(teaching, "folds_of", return_value={}))
        stack.enter_context(mock.patch.object(teaching, "stability_set", return_value=[]))
        for name in ("against_examples", "against_stability"):
            stack.enter_context(mock.patch.object(judgment, name, return_value=[]))
        examples = kept(place, data, "streaks")
        teaching.Teaching(place / "plain", examples, bundled_model_folder(), PLAIN, "cpu", say=tell).run()
    return measured(place / "plain" / teaching.MODELS / teaching.ALL, "streaks", scores, False)


def swapped(place: Path, data: Path, scores: Scores) -> list[Row]:
    run_script(place / "swapped", kept(place, data, "streaks", exchanged=True))
    told = json.loads((place / "swapped" / teaching.REPORT_FILE).read_text(encoding="utf-8"))
    for reason in told["reasons"]:
        print(reason)
    named = {name for name in (f"example-00{number}" for number in (1, 2, 3)) if name in " ".join(told["reasons"])}
    return [
        Row("swapped labels offered", "", [float(told["offered"])], at_most=0.0),
        Row("examples that the refusal names", "", [len(named)], at_least=3.0),
    ]


def main() -> None:
    """Teach, measure, print and write a table of each part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=os.environ.get("FLARE_DATA"))
    options = parser.parse_args()
    if not options.data:
        print("FLARE_DATA names no folder: nothing to measure.")
        return
    with ExitStack() as stack:
        place = os.environ.get("FLARE_BENCH_PLACE") or stack.enter_context(tempfile.TemporaryDirectory())
        Path(place).mkdir(parents=True, exist_ok=True)
        scores = Scores(Path(options.data), Path(place) / "scores.json")
        for part in PARTS:
            notes = [
                f"FLARE_BENCH_PARTS={part} python3 flare.py bench teach; of gains: mean, ends of its 95 % interval"
            ]
            report(f"teach_{part}", globals()[part](Path(place), Path(options.data), scores), notes)


if __name__ == "__main__":
    main()
