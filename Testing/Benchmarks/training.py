"""Training steps per second of the preset flare-organs: fp32 against the precision chosen for this machine, and the
loader's share of the step: `python3 flare.py bench training`.

The cases are two phantoms on the coarse stage's grid, with the preset's own patches, network and augmentation. Both
precisions run in turns in one process, since machines have slow phases: compare the ratio, not the rows of two days.
FLARE_BENCH_STEPS changes the number of measured steps (default 20).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from measuring import Row, matrix_gflops, report, tell, told

from FlareSegmentLib.inference.compute_devices import has_fast_bfloat16
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.training.batches import BatchSource
from FlareSegmentTrainingLib.training.configuration import Configuration, parse
from FlareSegmentTrainingLib.training.devices import choose_compiled, choose_device, choose_precision
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.preparation import prepare_cases
from FlareSegmentTrainingLib.training.presets import read_preset
from FlareSegmentTrainingLib.training.trainer import StageTrainer

STEPS = int(os.environ.get("FLARE_BENCH_STEPS", "20"))
ROUNDS = 4
WARM_UP = 2


@dataclass
class Measured:
    """One way to compute: its trainer, and seconds of each step and of waiting for its batch."""

    name: str
    trainer: StageTrainer
    source: BatchSource
    seconds: list[float]
    waited: float = 0.0

    def run(self, steps: int, count: bool) -> None:
        """Take steps; the first ones compile and fill caches and are not counted."""
        waited = self.source.waited_seconds
        first = self.trainer.step
        start = time.perf_counter()
        for batch in self.source.prefetched(first, first + steps):
            self.trainer.train_step(batch)
            now = time.perf_counter()
            if count:
                self.seconds.append(now - start)
            start = now
        if count:
            self.waited += self.source.waited_seconds - waited


def way(name: str, configuration: Configuration, cases: list, precision: str, compiled: bool) -> Measured:
    """A trainer of the first stage, and its batches."""
    settings, group, device = configuration.stages[0], Group("gloo"), choose_device("auto", 0)
    organs, intensity = configuration.organs, configuration.intensity
    source = BatchSource(settings, cases, organs, intensity, 0, 0, group)
    trainer = StageTrainer(settings, 2600, intensity, organs, 0, device, precision, compiled, group)
    return Measured(name, trainer, source, [])


def main() -> None:
    """Measure, print and write the table."""
    configuration = parse(read_preset("flare-organs"))
    stage, device = configuration.stages[0].stage, choose_device("auto", 0)
    cases = prepare_cases(find_cases("phantom:2"), stage, configuration.intensity, configuration.organs)
    chosen = choose_precision("auto", device)
    compiled = choose_compiled(None, device, 2600)
    ways = [way("fp32", configuration, cases, "fp32", False)]
    if chosen != "fp32":
        ways.append(way(chosen, configuration, cases, chosen, False))
    if compiled:
        ways.append(way(f"{chosen}, compiled", configuration, cases, chosen, True))
    for measured in ways:
        tell(f"{measured.name}: first steps")
        measured.run(WARM_UP, count=False)
    for _ in told(ROUNDS, "round of steps"):
        for measured in ways:
            measured.run(-(-STEPS // ROUNDS), count=True)
    rows = [Row(f"{way.name}, one step", "s", way.seconds) for way in ways]
    fast = device.type == "cuda" or has_fast_bfloat16()
    for other in ways[1:]:
        ratios = [slow / own for slow, own in zip(ways[0].seconds, other.seconds)]
        last = other is ways[-1]
        rows.append(Row(f"fp32 / {other.name}", "times", ratios, at_least=2.0 if fast and last else None))
    rows += [Row(f"{way.name}, waiting for patches", "", [way.waited / sum(way.seconds)]) for way in ways]
    report("training", rows, [f"flare-organs, coarse stage, on {device}; {matrix_gflops():.0f} GFLOP/s"])


if __name__ == "__main__":
    main()
