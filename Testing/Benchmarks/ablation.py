"""What each part of the bundled model's recipe is worth, and how the recipe stands against simpler ones, at one budget.

    FLARE_DATA=DATA FLARE_MADE=deformed:drawn:empty python3 flare.py bench ablation

`DATA/train` and `DATA/val` hold real cases with `quality.json` above them, the three other folders (joined as in PATH)
are what `synthesize.py` made; its commands are in the model card. Every row trains from random weights with the same
seed, and is scored on the native grid of the validation cases, after the whole pipeline; nothing is chosen by these
scores.

elements    the recipe's first stage at half its width, STEPS steps; one element at a time is taken out or put in
recipes     `flare-organs` as it is, both stages, and the presets of simpler public projects on the real cases, each for
            the processor time that the former took

Takes some two and a half hours on two cores. Rows that are done are kept in Testing/Output/ablation and not trained
again; the tables are printed and written to Testing/Output.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from measuring import validation_cases

from FlareSegmentLib import __version__
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.description import ModelDescription
from FlareSegmentLib.model.model_file import load_model, save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase, prepare_cases
from FlareSegmentTrainingLib.training.batches import BatchSource
from FlareSegmentTrainingLib.training.configuration import Configuration, StageSettings, override, parse
from FlareSegmentTrainingLib.training.devices import choose_compiled, choose_precision, training_device
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.presets import read_preset
from FlareSegmentTrainingLib.training.trainer import StageTrainer

OUTPUT = Path(__file__).resolve().parents[1] / "Output"
STEPS, STAGE_STEPS, UNLIMITED = 1200, 500, 100_000
SHARES = (40.0, 30.0, 20.0, 10.0)
"""Of the real, the deformed, the drawn and the empty cases, as the bundled model was trained."""
REAL, DEFORMED, DRAWN = 0, 1, 2
HALF_WIDTH = ("stages.coarse.network.base_channels=8", "stages.coarse.network.max_channels=48")
SIMPLER = ("whole-volume-vnet", "dice-vnet", "paper-vnet")


@dataclasses.dataclass(frozen=True)
class Element:
    """One row: what is changed in the preset, which locations are left out, and whether all labels count alike."""

    name: str
    changes: tuple[str, ...] = ()
    without: tuple[int, ...] = ()
    graded: bool = True


ELEMENTS = (
    Element("the recipe"),
    Element("no kidneys laid into fat", ("augmentation.perirenal_fat_probability=0",)),
    Element("no augmentation", ("augmentation={}",)),
    Element("no change of contrast phase", ("augmentation.phase_probability=0",)),
    Element("no deformed CTs", without=(DEFORMED,)),
    Element("no drawn CTs", without=(DRAWN,)),
    Element("all labels alike, unlabeled organs punished", graded=False),
    Element("deep supervision", ("training.loss.deep_supervision=[0.5,0.25]",)),
    Element("instance normalization", ("stages.coarse.network.normalization=instance",)),
    Element("Dice alone", ("training.loss.cross_entropy=0",)),
    Element("no cysts and tumors", ("augmentation.mass_probability=0",)),
    Element("no averaged weights", ("training.average_decay=0",)),
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a row is trained.

    Attributes:
        stages: with the steps of each, at most.
        change: what becomes of the prepared cases.
        cpu_seconds: ends the training before its last step; None lets it take them all.
    """

    name: str
    configuration: Configuration
    stages: Sequence[tuple[StageSettings, int]]
    shares: Sequence[float] = SHARES
    change: Callable[[list[PreparedCase]], list[PreparedCase]] = list
    cpu_seconds: float | None = None


def element_plan(row: Element) -> Plan:
    """The recipe's first stage with one element changed."""
    configuration = configured("flare-organs", *HALF_WIDTH, *row.changes)

    def change(cases: list[PreparedCase]) -> list[PreparedCase]:
        cases = [case for case in cases if case.location not in row.without]
        if row.graded:
            return cases
        return [dataclasses.replace(case, weights=dict.fromkeys(case.weights, 1.0)) for case in cases]

    return Plan(row.name, configuration, [(configuration.stages[0], STEPS)], change=change)


def recipe_plan(name: str, cpu_seconds: float | None) -> Plan:
    """A preset as it is; with a processor time, on the real cases alone until that is spent."""
    configuration = configured(name)
    if cpu_seconds is None:
        return Plan(name, configuration, [(settings, STAGE_STEPS) for settings in configuration.stages])

    def real(cases: list[PreparedCase]) -> list[PreparedCase]:
        return [case for case in cases if case.location == REAL]

    stages = [(settings, UNLIMITED) for settings in configuration.stages]
    return Plan(name, configuration, stages, (), real, cpu_seconds)


class Laboratory:
    """Trains rows and scores them.

    Args:
        data: folder of the real cases; made: what `synthesize.py` made.
        output: folder of the finished rows.
    """

    def __init__(self, data: Path, made: Sequence[Path], output: Path):
        self._data, self._output = data, output
        self._cases = find_cases([data / "train", *made])
        self._device = training_device("auto", 0)

    def row(self, plan: Plan) -> dict:
        """Train and score, or give what an earlier run of this found."""
        folder = self._output / plan.name.replace(" ", "_").replace(",", "")
        result_file = folder / "result.json"
        if result_file.is_file():
            return json.loads(result_file.read_text(encoding="utf-8"))
        configuration, networks = plan.configuration, {}
        taken, spent = 0, 0.0
        for number, (settings, steps) in enumerate(plan.stages):
            trainer, source = self._trainer(plan, number, settings, steps)
            if settings.start_from:
                trainer.start_from(networks[settings.start_from].state_dict())
            start = time.process_time()
            for batch in source.prefetched(0, steps):
                trainer.train_step(batch)
                used = time.process_time() - start
                if trainer.step % 50 == 0:
                    print(f"{plan.name}: step {trainer.step}, {used:.0f} CPU seconds", file=sys.stderr, flush=True)
                if plan.cpu_seconds is not None and used > plan.cpu_seconds:
                    break
            taken, spent = taken + trainer.step, spent + time.process_time() - start
            networks[settings.stage.name] = build_network(settings.stage.network)
            networks[settings.stage.name].load_state_dict(trainer.average())
        description = ModelDescription(
            plan.name,
            __version__,
            configuration.license,
            dict(enumerate(configuration.organs, start=1)),
            configuration.intensity,
            tuple(settings.stage for settings, _ in plan.stages),
        )
        save_model(folder, description, networks)
        result = {"name": plan.name, "steps": taken, "cpu_seconds": round(spent), "dice": self._score(folder)}
        result_file.write_text(json.dumps(result, indent=1), encoding="utf-8")
        return result

    def _trainer(
        self, plan: Plan, number: int, settings: StageSettings, steps: int
    ) -> tuple[StageTrainer, BatchSource]:
        """A stage's trainer and its batches, as `TrainingRun` makes them."""
        organs, intensity = plan.configuration.organs, plan.configuration.intensity
        cases = plan.change(prepare_cases(self._cases, settings.stage, intensity, organs, self._output / "prepared"))
        seed, group = plan.configuration.seed, Group("gloo")
        source = BatchSource(settings, cases, organs, intensity, seed, number, group, plan.shares)
        precision = choose_precision(plan.configuration.precision, self._device)
        compiled = choose_compiled(plan.configuration.compiled, self._device, UNLIMITED)
        trainer = StageTrainer(
            settings, steps, intensity, organs, seed + number, self._device, precision, compiled, group
        )
        return trainer, source

    def _score(self, model: Path) -> dict[str, dict[str, float]]:
        """Case -> organ key -> Dice on the case's own grid."""
        segmenter = Segmenter(load_model(model))
        scores = {}
        for name, volume, truth in validation_cases(self._data):
            labels = segmenter.segment(volume).labels
            scores[name] = {
                organ.key: round(dice(labels == organ.label, truth == organ.label), 4) for organ in segmenter.organs
            }
        return scores


def configured(preset: str, *changes: str) -> Configuration:
    """A preset with changes as `train.py --set` takes them."""
    content = read_preset(preset)
    for change in changes:
        content = override(content, change)
    return parse(content)


def main() -> None:
    """Train, score, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FLARE_DATA"))
    parser.add_argument("--made", default=os.environ.get("FLARE_MADE"), help="three folders, joined as in PATH")
    options = parser.parse_args()
    if not options.data or not options.made:
        print("FLARE_DATA and FLARE_MADE name no folders: nothing is trained.")
        return
    made = [Path(folder) for folder in options.made.split(os.pathsep)]
    laboratory = Laboratory(Path(options.data), made, OUTPUT / "ablation")
    rows: list[list] = []

    def show(table: str, result: dict) -> None:
        cases = list(result["dice"].values())
        organs = {key: sum(case[key] for case in cases) / len(cases) for key in cases[0]}
        mean = sum(organs.values()) / len(organs)
        if not rows:
            rows.append(["table", "row", "steps", "cpu seconds", "mean", *organs])
        rows.append([table, result["name"], result["steps"], result["cpu_seconds"], mean, *organs.values()])
        print("  ".join(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in rows[-1]), flush=True)

    for element in ELEMENTS:
        show("elements", laboratory.row(element_plan(element)))
    whole = laboratory.row(recipe_plan("flare-organs", None))
    show("recipes", whole)
    for name in SIMPLER:
        show("recipes", laboratory.row(recipe_plan(name, whole["cpu_seconds"])))
    table_file = OUTPUT / "ablation.csv"
    with open(table_file, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    print(f"Written to {table_file}")


if __name__ == "__main__":
    main()
