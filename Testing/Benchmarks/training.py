"""Training on this machine: `python3 flare.py bench training`. Patches a second and the share of the time that is spent
waiting for them, for each stage of the preset that is meant for the device (flare-organs on a CPU, flare-organs-gpu on
a GPU); and steps in fp32 against the precision chosen for this machine.

The cases are two phantoms, with the preset's own batches, network and augmentation; the steps begin in the second round
of changed cases, which have been made by then. What is compared runs in turns in one process, since machines have slow
phases: compare the ratio, not the rows of two days. FLARE_BENCH_STEPS changes the number of measured steps (default
20, on a GPU 200).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import torch
from measuring import Row, matrix_gflops, report, tell, told

from FlareSegmentLib.inference.compute_devices import has_fast_bfloat16
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.preparation import prepare_cases
from FlareSegmentTrainingLib.training.batches import BatchSource
from FlareSegmentTrainingLib.training.configuration import Configuration, parse
from FlareSegmentTrainingLib.training.devices import choose_compiled, choose_precision, training_device
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.presets import read_preset
from FlareSegmentTrainingLib.training.trainer import StageTrainer

DEVICE = training_device("auto", 0)
ON_GPU = DEVICE.type == "cuda"
STEPS = int(os.environ.get("FLARE_BENCH_STEPS", "200" if ON_GPU else "20"))
ROUNDS = 4
WARM_UP = 40 if ON_GPU else 6  # there algorithms are tried out at the first batch of each kind
LENGTH = 2600


@dataclass
class Measured:
    """One way to compute: its trainer, and seconds of each step and of waiting for its batch."""

    name: str
    trainer: StageTrainer
    source: BatchSource
    first: int
    seconds: list[float]
    waited: float = 0.0
    patches: int = 0

    def run(self, steps: int, count: bool) -> None:
        """Take steps; the first ones compile and fill caches and are not counted."""
        waited = self.source.waited_seconds
        begin = self.first + self.trainer.step
        start = time.perf_counter()
        for batch in self.source.prefetched(begin, begin + steps):
            self.trainer.train_step(batch)
            now = time.perf_counter()
            if count:
                self.seconds.append(now - start)
                self.patches += len(batch.images)
            start = now
        if ON_GPU:
            torch.cuda.synchronize()  # the end of the last step, which nothing has waited for
        if count:
            self.seconds[-1] += time.perf_counter() - start
            self.waited += self.source.waited_seconds - waited

    @property
    def rate(self) -> float:
        """Patches a second."""
        return self.patches / sum(self.seconds)

    @property
    def wait(self) -> float:
        """Share of the time that was spent waiting for patches."""
        return self.waited / sum(self.seconds)


def way(name: str, configuration: Configuration, number: int, precision: str, compiled: bool) -> Measured:
    """A trainer of one of the stages, and its batches."""
    settings, group = configuration.stages[number], Group("gloo")
    organs, intensity = configuration.organs, configuration.intensity
    cases = prepare_cases(find_cases("phantom:2"), settings.stage, intensity, organs)
    source = BatchSource(settings, cases, organs, intensity, 0, number, group, device=DEVICE, say=print)
    trainer = StageTrainer(settings, LENGTH, intensity, organs, 0, DEVICE, precision, compiled, group)
    first = settings.augmentation.changed_steps
    source.batch(first)  # waits for the changed cases
    return Measured(name, trainer, source, first, [])


def main() -> None:
    """Measure, print and write the table."""
    preset = "flare-organs-gpu" if ON_GPU else "flare-organs"
    configuration = parse(read_preset(preset))
    chosen = choose_precision("auto", DEVICE)
    compiled = choose_compiled(None, DEVICE, LENGTH)
    ways = [way("coarse, fp32", configuration, 0, "fp32", False)]
    for number, name in enumerate(("coarse", "fine")):
        if number or chosen != "fp32":
            ways.append(way(f"{name}, {chosen}", configuration, number, chosen, False))
    if compiled:
        ways.append(way(f"coarse, {chosen}, compiled", configuration, 0, chosen, True))
    for measured in ways:
        tell(f"{measured.name}: first steps")
        measured.run(WARM_UP, count=False)
    for _ in told(ROUNDS, "round of steps"):
        for measured in ways:
            measured.run(-(-STEPS // ROUNDS), count=True)
    rows = [Row(f"{way.name}, one step", "s", way.seconds) for way in ways]
    for other in ways[1:]:
        if other.name.startswith("coarse"):
            ratio = other.rate / ways[0].rate
            target = 2.0 if not ON_GPU and has_fast_bfloat16() and other is ways[-1] else None
            rows.append(Row(f"{other.name} / fp32", "times", [ratio], at_least=target))
    for measured in ways:
        wanted = 100.0 if ON_GPU and measured.name.startswith("fine") else None
        rows.append(Row(f"{measured.name}, patches", "1/s", [measured.rate], at_least=wanted))
        rows.append(Row(f"{measured.name}, waiting for patches", "", [measured.wait], at_most=0.05 if ON_GPU else None))
    for measured in ways:
        measured.source.close()
    name = torch.cuda.get_device_name() if ON_GPU else str(DEVICE)
    report("training", rows, [f"{preset} on {name}; {matrix_gflops():.0f} GFLOP/s"])


if __name__ == "__main__":
    main()
