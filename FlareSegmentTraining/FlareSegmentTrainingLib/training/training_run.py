"""A whole training run: prepares the cases, trains stage after stage, keeps the run's folder, and can be stopped and
resumed at any moment.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from FlareSegmentLib import __version__
from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.model_file import save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentTrainingLib.datasets.cases import Case, organs_never_there
from FlareSegmentTrainingLib.datasets.dataset_layouts import LeftOut
from FlareSegmentTrainingLib.datasets.preparation import NoCaseLeft, PreparedCase, prepare_cases, slabs_of
from FlareSegmentTrainingLib.datasets.splits import Split
from FlareSegmentTrainingLib.runs.stop_request import NotSaved, Stopped, StopRequest
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter
from FlareSegmentTrainingLib.training.batches import Batch, BatchSource
from FlareSegmentTrainingLib.training.configuration import Configuration, StageSettings
from FlareSegmentTrainingLib.training.devices import choose_compiled
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.reports import (
    DICE,
    TensorBoard,
    can_draw,
    draw_curves,
    write_log,
    write_validation,
)
from FlareSegmentTrainingLib.training.run_cases import check_no_twins, short_scans, write_cases
from FlareSegmentTrainingLib.training.run_folder import RunFolder
from FlareSegmentTrainingLib.training.stage_state import Clock, Meter, Preparing, StageState
from FlareSegmentTrainingLib.training.trainer import Scores, StageTrainer, check_stage

STATE_VERSION = 2
_UNLIMITED = 1 << 31  # steps
DRAW_EVERY_SECONDS = 20.0


class TrainingRun:
    """One run in its folder.

    Args:
        split: the cases of both sides, among `cases`; a case that cannot be used is left out by name before the run's
            first step.
        device, precision: as `devices` chose them.
        cache: folder of prepared cases.
        say: told one line at a time.
        first_weights: stage name -> weights that the stage begins with, instead of random ones.
        deal: splits cases anew where the split leaves a side without a case that can be used; None where the data or a
            list fix the sides.
        locations: what messages call the places of `Case.location`.
        stop: asks the run to save and end, in a `with` statement and as a truth value; by default a `StopRequest`.
        told: given what is new in progress.json, whenever something is.

    Raises:
        InputError: when a stage of the configuration cannot be trained, or does not fit its first weights.
    """

    def __init__(
        self,
        configuration: Configuration,
        cases: Sequence[Case],
        split: Split,
        folder: RunFolder,
        device: torch.device,
        precision: str,
        group: Group,
        cache: Path,
        say: Callable[[str], None],
        first_weights: Mapping[str, dict[str, torch.Tensor]] | None = None,
        deal: Callable[[list[Case]], Split] | None = None,
        locations: Sequence[str] = (),
        stop: AbstractContextManager | None = None,
        told: Callable[[dict[str, Any]], None] = lambda content: None,
    ):
        self._configuration, self._cases, self._split, self._folder = configuration, cases, split, folder
        self._device, self._precision, self._group, self._cache = device, precision, group, cache
        self._first_weights, self._deal, self._locations = first_weights or {}, deal, locations
        for settings in configuration.stages:
            check_stage(settings, self._first_weights.get(settings.stage.name))
        self._say = say if group.is_first else lambda _line: None
        self._history: list[dict] = []
        self._weights: dict[str, dict[str, torch.Tensor]] = {}
        self._progress = ProgressReporter(folder)
        self._stop = stop if stop is not None else StopRequest(folder)
        self._told = told
        self._drawn = -math.inf
        self._epochs_before = 0
        self._source: BatchSource | None = None
        self._resumed = False
        self._preparing = Preparing("", 0)
        self._scans: dict[str, list[str]] = {}

    def run(self, resume: bool) -> Scores:
        """Train every stage to its end and return the last stage's best scores.

        Raises:
            Stopped: on request, with the state saved.
            FlareSegmentError: when the run cannot go on; the last checkpoint stands.
        """
        self._resumed = resume
        if self._group.is_first:
            self._progress.begin()
        try:
            with self._stop:
                scores = self._train_stages(self._load_state() if resume else None)
        except BaseException as error:
            state = "stopped" if isinstance(error, Stopped) else "failed"
            if self._group.is_first:
                self._folder.stop_file.unlink(missing_ok=True)
                self._progress.end(state, " ".join(str(error).split()) or type(error).__name__)
            raise
        finally:
            self._close_source()
        if self._group.is_first:
            self._progress.end("finished", f"Finished; the model is in {self._folder.best}")
        return scores

    def _close_source(self) -> None:
        if self._source is not None:
            self._source.close()

    def _load_state(self) -> dict | None:
        if not self._folder.state_file.is_file():
            return None
        state = self._folder.load_tensors(self._folder.state_file)
        if state.get("version") != STATE_VERSION:
            raise InputError(f"{self._folder.state_file} was written by another version of FlareSegment.")
        self._history = state["history"]
        return state

    def _train_stages(self, state: dict | None) -> Scores:
        tensorboard = TensorBoard(self._folder, len(self._history) + 1) if self._group.is_first else None
        if tensorboard and not tensorboard.available and not self._resumed:
            self._say("TensorBoard's files are not written: the package tensorboard is not installed.")
        if not can_draw() and not self._resumed:
            self._say("curves.png is not drawn: the package matplotlib is not installed.")
        scores = Scores({}, math.nan)
        for number, settings in enumerate(self._configuration.stages):
            name = settings.stage.name
            if state and number < state["stage_number"]:
                self._weights[name] = self._folder.load_tensors(self._checkpoint(name, "best"))
                self._epochs_before += settings.training.epochs
                continue
            scores = self._train_stage(number, settings, state, tensorboard)
            state = None
            self._epochs_before += settings.training.epochs
        if tensorboard:
            tensorboard.close()
        self._draw(last=True)
        return scores

    def _train_stage(
        self, number: int, settings: StageSettings, state: dict | None, tensorboard: TensorBoard | None
    ) -> Scores:
        stage = self._begin_stage(number, settings, state)
        trainer, source = stage.trainer, stage.source
        over = trainer.progress >= 1.0  # by the clock, of a run that had ended
        for batch in source.prefetched(trainer.step, trainer.steps or (trainer.step if over else _UNLIMITED)):
            self._train_step(stage, batch)
            done = trainer.progress >= 1.0
            if done or trainer.step % source.steps_per_epoch == 0:
                self._end_epoch(stage, done, tensorboard)
            if done:
                break
            if self._stop_wanted():
                if stage.losses:
                    self._save_last(stage)
                self._group.wait()
                raise Stopped(f"Stopped at step {stage.step} of stage {settings.stage.name}.")
        self._group.wait()
        self._weights[settings.stage.name] = self._folder.load_tensors(self._checkpoint(settings.stage.name, "best"))
        return stage.best_scores

    def _begin_stage(self, number: int, settings: StageSettings, state: dict | None) -> StageState:
        """Prepare the cases and the network, as new or as a stopped run left them."""
        configuration, training, name = self._configuration, settings.training, settings.stage.name
        train_cases, validation_cases = self._prepare(settings, begun=state is not None or number > 0)
        slabs = [slabs_of(case, mm) for case in validation_cases for mm in training.validation_slabs_mm]
        validation_cases = [*validation_cases, *(slab for several in slabs for slab in several)]
        source = BatchSource(
            settings,
            train_cases,
            configuration.organs,
            configuration.intensity,
            configuration.seed,
            number,
            self._group,
            configuration.shares,
            self._device,
            self._say,
        )
        self._close_source()
        self._source = source
        steps = None if training.minutes else training.epochs * source.steps_per_epoch
        compiled = choose_compiled(configuration.compiled, self._device, steps) and self._group.size == 1
        trainer = StageTrainer(
            settings,
            steps,
            configuration.intensity,
            configuration.organs,
            configuration.seed + number,
            self._device,
            self._precision,
            compiled,
            self._group,
        )
        if name in self._first_weights:
            trainer.start_from(self._first_weights[name])
        elif settings.start_from:
            trainer.start_from(self._weights[settings.start_from])
        if state:
            trainer.load_state(state["trainer"])
        clock = Clock(training.minutes, state["seconds"] if state else 0.0, self._group, self._device)
        stage = StageState(number, settings, trainer, source, validation_cases, clock, Meter(trainer, source))
        if state:
            stage.losses, stage.best = state["losses"], state["best"]
            stage.best_scores = Scores(state["best_dice"], state["best_accuracy"])
            self._say(f"{name}: resumed at step {stage.step}")
        length = f"{steps} steps" if steps else f"{training.minutes:g} min"
        parameters = sum(parameter.numel() for parameter in trainer.network.parameters())
        self._say(
            f"{name}: {parameters / 1e6:.2f} million parameters, {len(train_cases)} training and "
            f"{len(validation_cases)} validation cases, {length} on {self._device} "
            f"in {trainer.precision}" + (", compiled" if compiled else "")
        )
        trainer.progress = clock.share()
        return stage

    def _train_step(self, stage: StageState, batch: Batch) -> None:
        trainer, source, batches = stage.trainer, stage.source, stage.settings.training.normalization_batches
        if batches and trainer.freezing and not trainer.statistics_are_fresh:
            trainer.refresh_statistics(source.batch(number) for number in range(trainer.step, trainer.step + batches))
        stage.losses.append(trainer.train_step(batch))
        trainer.progress = stage.clock.share()
        self._report(stage.meter, stage.settings, stage.losses[-1])

    def _end_epoch(self, stage: StageState, done: bool, tensorboard: TensorBoard | None) -> None:
        """Evaluate where it is due, and write down what the epoch came to."""
        trainer, training, name = stage.trainer, stage.settings.training, stage.settings.stage.name
        epoch = -(-trainer.step // stage.source.steps_per_epoch)
        row: dict[str, Any] = {
            "stage": name,
            "epoch": epoch,
            "step": trainer.step,
            "loss": float(np.mean(stage.losses)),
            "learning_rate": trainer.learning_rate(),
            **stage.meter.epoch(),
        }
        stage.losses.clear()
        if epoch % training.evaluate_every == 0 or done:
            self._evaluate(stage, row)
        self._history.append(row)
        self._save_last(stage)
        if self._group.is_first:
            if training.checkpoint_every and epoch % training.checkpoint_every == 0:
                self._folder.save_tensors(self._checkpoint(name, f"epoch_{epoch:04d}"), trainer.average())
            write_log(self._folder, self._history, self._configuration.organs)
            self._draw()
            if tensorboard:
                tensorboard.add(len(self._history), row)
        self._say(_epoch_line(row, None if training.minutes else training.epochs))
        stage.meter.begin_epoch()

    def _evaluate(self, stage: StageState, row: dict[str, Any]) -> None:
        """Add the scores on the validation cases to an epoch's row, and keep the model where it is the best."""
        scores = stage.trainer.evaluate(stage.validation_cases)
        means = scores.organ_means() or dict.fromkeys(self._configuration.organs, math.nan)
        row.update(accuracy=scores.accuracy, dice=scores.mean(), false_positive_ml=scores.false_ml())
        row.update({DICE + key: value for key, value in means.items()})
        merit = -row["loss"] if math.isnan(scores.mean()) else scores.mean()
        if merit >= stage.best:
            stage.best, stage.best_scores = merit, scores
            self._save_best(stage.settings.stage, stage.trainer, scores, row)

    def _prepare(self, settings: StageSettings, begun: bool) -> tuple[list[PreparedCase], list[PreparedCase]]:
        """Bring the cases to the stage's grid; before the run's first step unusable ones are left out, later that ends
        the run.
        """
        count = len(self._split.training) + len(self._split.validation)
        self._preparing = Preparing(settings.stage.name, count)
        if not self._group.is_first:
            self._group.wait()  # the first process fills the cache and writes the lists, the others read
        if begun:
            parts = [self._prepare_part(settings, cases, None) for cases in self._split.apply(self._cases)]
        else:
            parts = self._prepare_anew(settings)
        training, validation = parts
        self._scans = {"trained": short_scans(training), "validated": short_scans(validation)}
        if self._group.is_first:
            if not begun:
                self._split.write(self._folder.path)
                write_cases(self._folder, self._cases, self._split, training, validation)
            self._group.wait()
        return training, validation

    def _prepare_anew(self, settings: StageSettings) -> list[list[PreparedCase]]:
        """Both sides before the run's first step: cases that cannot be used are named and left out, and where none
        is left on a side that only chance filled, the sides are dealt anew.
        """
        gone: dict[str, LeftOut] = {}

        def leave_out(item: LeftOut) -> None:
            if item.name not in gone:
                self._say(f"Warning: {item}")
            gone[item.name] = item

        while True:
            before = len(gone)
            parts = [self._prepare_part(settings, cases, leave_out) for cases in self._split.apply(self._cases)]
            empty = [name for name, part in zip(("training", "validation"), parts) if not part]
            left = [case for case in self._cases if case.name not in gone]
            if not empty or self._deal is None or not left or len(gone) == before:
                break
            self._say(f"Warning: no {empty[0]} case is left: the other cases are dealt out anew")
            self._split = self._deal(left)
        if empty and gone:
            reasons = "; ".join(str(item) for item in list(gone.values())[:3])
            raise InputError(f"None of the {empty[0]} cases can be used: {reasons}.")
        self._split = replace(
            self._split,
            training=tuple(name for name in self._split.training if name not in gone),
            validation=tuple(name for name in self._split.validation if name not in gone),
        )
        check_no_twins(*parts)
        for case in (case for part in parts for case in part):
            for warning in case.warnings:
                self._say(f"Warning: {case.name}: {warning}")
        if self._locations:
            volumes = {case.name: case.volumes_ml() for part in parts for case in part}
            for line in organs_never_there(self._cases, volumes, self._locations):
                self._say(f"Warning: {line}")
        return parts

    def _prepare_part(
        self, settings: StageSettings, cases: Sequence[Case], left_out: Callable[[LeftOut], None] | None
    ) -> list[PreparedCase]:
        configuration, stage = self._configuration, settings.stage
        try:
            return prepare_cases(
                cases,
                stage,
                configuration.intensity,
                configuration.organs,
                self._cache,
                left_out,
                self._before_case,
            )
        except NoCaseLeft:
            return []

    def _before_case(self) -> None:
        """Preparing many CTs takes minutes, of which something is to be heard, and in which a stop is obeyed. Several
        processes stop at a step alone: they wait for each other here.
        """
        if self._group.size == 1 and self._stop:
            raise Stopped("Stopped while preparing the cases.")
        line, worth_saying = self._preparing.next()
        self._progress_update(message=line)
        if worth_saying:
            self._say(line)

    def _report(self, meter: Meter, settings: StageSettings, loss: float) -> None:
        """Say and write how far the run is, not more often than people read."""
        trainer = meter.trainer
        done, seconds = trainer.progress, meter.seconds_per_step()
        minutes, steps = settings.training.minutes, trainer.steps
        if steps is None:
            steps = max(trainer.step, round(trainer.step / done)) if done > 0 else trainer.step  # at the present pace
        remaining = 60.0 * minutes * (1.0 - done) if minutes else seconds * (steps - trainer.step)
        epochs = [stage.training.epochs for stage in self._configuration.stages]
        epoch = max(1, math.ceil(round(done * settings.training.epochs, 6)))
        line = (
            f"{settings.stage.name} "
            + (f"{100 * done:.0f} % of {minutes:g} min" if minutes else f"epoch {epoch}/{settings.training.epochs}")
            + f", step {trainer.step}{'' if minutes else f'/{steps}'}: "
            f"loss {loss:.4f}, {seconds:.2f} s/step, {_duration(remaining)} left in this stage"
        )
        self._progress_update(
            stage=settings.stage.name,
            epoch=epoch,
            epochs=settings.training.epochs,
            step=trainer.step,
            steps=steps,
            loss=loss,
            remaining_seconds=remaining,
            fraction=(self._epochs_before + done * settings.training.epochs) / sum(epochs),
            message=line,
        )
        if meter.time_to_report():
            self._say(line)

    def _progress_update(self, **content: object) -> None:
        if self._group.is_first:
            self._progress.update(**content)
            self._told(content)

    def _stop_wanted(self) -> bool:
        """Whether any process was asked to stop; all answer alike, so that all end at the same step."""
        if self._group.size == 1:
            return bool(self._stop)
        flag = torch.tensor(float(bool(self._stop)), device=self._device)
        return float(self._group.total(flag)) > 0

    def _checkpoint(self, stage: str, kind: str) -> Path:
        return self._folder.checkpoints / f"{stage}_{kind}.pt"

    def _save_best(self, stage: Stage, trainer: StageTrainer, scores: Scores, row: dict) -> None:
        if not self._group.is_first:
            return
        weights = trainer.average()
        self._folder.save_tensors(self._checkpoint(stage.name, "best"), weights)
        self._write_model(self._folder.best, stage, weights, row)
        if scores.dice:
            write_validation(self._folder, stage.name, scores.dice)

    def _save_last(self, stage: StageState) -> None:
        """Write the state that continues the run, and the model beside it; the first process does."""
        if not self._group.is_first:
            return
        row = self._history[-1] if self._history else {}
        self._write_model(self._folder.last, stage.settings.stage, stage.trainer.average(), row)
        state = {
            "version": STATE_VERSION,
            "stage_number": stage.number,
            "trainer": stage.trainer.state(),
            "losses": list(stage.losses),
            "seconds": stage.clock.seconds(),
            "best": stage.best,
            "best_dice": stage.best_scores.dice,
            "best_accuracy": stage.best_scores.accuracy,
            "history": self._history,
        }
        self._folder.save_tensors(self._folder.state_file, state)

    def _write_model(self, place: Path, stage: Stage, weights: dict[str, torch.Tensor], row: dict) -> None:
        """Write a model folder of the finished stages and this one."""
        configuration = self._configuration
        everything = {**self._weights, stage.name: weights}
        stages = [settings.stage for settings in configuration.stages if settings.stage.name in everything]
        networks = {}
        for item in stages:
            networks[item.name] = build_network(item.network)
            networks[item.name].load_state_dict(everything[item.name])
        dice = {
            key: round(row[DICE + key], 4)
            for key in configuration.organs
            if not math.isnan(row.get(DICE + key, math.nan))
        }
        description = ModelDescription(
            name=configuration.name,
            version=__version__,
            license=configuration.license,
            labels=dict(enumerate(configuration.organs, start=1)),
            intensity=configuration.intensity,
            stages=tuple(stages),
            facts={
                "trained_with": f"FlareSegment {__version__}, torch {torch.__version__}",
                "configuration": configuration.content,
                "training_cases": len(self._split.training),
                "validation_cases": len(self._split.validation),
                "scans": self._scans,
                "last_stage": {"name": stage.name, "epoch": row.get("epoch"), "dice_on_its_grid": dice},
            },
        )
        try:
            save_model(place, description, networks)
        except (OSError, RuntimeError) as error:
            raise NotSaved(
                f"{place} could not be written: {why_not_written(place, error)}. Free some space."
            ) from error

    def _draw(self, last: bool = False) -> None:
        due = last or time.monotonic() - self._drawn > DRAW_EVERY_SECONDS
        if due and self._group.is_first and can_draw() and self._history:
            draw_curves(self._folder, self._history, self._configuration.organs)
            self._drawn = time.monotonic()


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _epoch_line(row: dict, epochs: int | None) -> str:
    number = f"{row['epoch']}/{epochs}" if epochs else f"{row['epoch']}"
    line = f"{row['stage']} epoch {number}: loss {row['loss']:.5f}, {row['seconds_per_step']:.2f} s/step"
    line += f", loader wait {100 * row['loader_wait']:.0f} %"
    if "dice" in row:
        organs = ", ".join(
            f"{key.removeprefix(DICE)} {value:.3f}" for key, value in row.items() if key.startswith(DICE)
        )
        line += f"; validation Dice {row['dice']:.4f} ({organs}), accuracy {row['accuracy']:.4f}"
        if row["false_positive_ml"] > 0:
            line += f", {row['false_positive_ml']:.0f} mL of organs that are not there"
    return line
