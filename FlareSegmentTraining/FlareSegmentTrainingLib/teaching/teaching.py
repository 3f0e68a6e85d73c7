"""A teaching in its folder: trains on the examples, measures before and after, and offers only what is better.

``config.json``  what is taught: the old model, the recipe, which examples (by content) in which folds
``progress.json``  how far it is, as a training run's; ``stop`` asks it to save and end
``runs/``          a training run for each fold, in which some examples are held out, and one with all examples
``prepared/``      the examples on the network's grid
``measured/``      Dice, NSD and HD95 of every model and scan (`evaluation.measurements`); these three go at the end
``models/``        what came out of every run, averaged with the old model
``report.json``    what got better and what worse, and whether the taught model is offered; ``report.md`` the same
``model/``         the taught model with its card: there only if it is offered

Below FOLDS examples each is held out once; from then on the examples are dealt into FOLDS parts. Every file appears
whole or not at all, and every step depends on nothing but what is saved: a teaching that was stopped or killed is
continued to the same end.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.image_io import read_labels
from FlareSegmentLib.files.output_files import check_writable
from FlareSegmentLib.model.description import DESCRIPTION_FILE, ModelDescription, read_description
from FlareSegmentLib.model.model_card import CARD_FILE
from FlareSegmentLib.model.model_file import read_model, save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentLib.organs import Organ, organ_by_key
from FlareSegmentLib.processes import OUTPUT_FILE, PROGRESS_FILE, STOP_FILE, UNFINISHED, remove_unfinished
from FlareSegmentTrainingLib.datasets.cases import Case, find_cases
from FlareSegmentTrainingLib.datasets.dataset_layouts import QUALITY_FILE, VALIDATION, LeftOut
from FlareSegmentTrainingLib.datasets.scan_identity import SHORT, without_twins
from FlareSegmentTrainingLib.datasets.splits import Split
from FlareSegmentTrainingLib.evaluation.measurements import PREDICTIONS, evaluate_cases, file_name
from FlareSegmentTrainingLib.evaluation.predictors import ModelPredictor
from FlareSegmentTrainingLib.runs.stop_request import Stopped, StopRequest
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter, save_whole
from FlareSegmentTrainingLib.teaching import judgment
from FlareSegmentTrainingLib.teaching.beginning import example_states, is_unchanged, model_state
from FlareSegmentTrainingLib.teaching.examples import is_example_name
from FlareSegmentTrainingLib.teaching.recipe import PHANTOMS, Recipe, averaged, configuration_of
from FlareSegmentTrainingLib.teaching.report import markdown
from FlareSegmentTrainingLib.teaching.stability import stability_set
from FlareSegmentTrainingLib.training.configuration import parse
from FlareSegmentTrainingLib.training.devices import choose_precision, training_device
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.run_folder import CONFIGURATION_FILE, RunFolder
from FlareSegmentTrainingLib.training.training_run import TrainingRun

REPORT_FILE = "report.json"
REPORT_TEXT = "report.md"
RUNS, PREPARED, MEASURED, MODEL, MODELS = "runs", "prepared", "measured", "model", "models"
FOLDS = 5
LATER_FOLDS = 3
"""Into how many parts FOLDS and more examples are dealt: enough to measure, and no more minutes than with three."""
ALL = "all"
OLD = "old"
_Sides = Mapping[str, Mapping[str, dict]]
"""What was measured, "before" and "after": scan -> record."""
_NOTHING: _Sides = {"before": {}, "after": {}}
_SCAN_STEPS = 6.0
"""How many training steps measuring one scan takes, for the time that is left to be told."""


@dataclass(frozen=True)
class Taught:
    """How a teaching ended.

    Attributes:
        offered: whether the taught model is better, and lies in `model`.
        reasons: what speaks against it, a line each; empty if it is offered.
    """

    offered: bool
    reasons: tuple[str, ...]
    model: Path | None
    report: dict


class Teaching:
    """One teaching in its folder.

    Args:
        folder: of this teaching; made when it begins.
        examples: folder of the examples, or another data location (see `find_cases`).
        model: folder of the model that is taught.
        recipe: how; by default what the teaching began with, or `Recipe()`.
        say: told one line at a time.

    Attributes:
        organs: what the model can find; known once it runs.

    Raises:
        InputError: the folder holds a teaching of other examples, of another model or by another recipe, or something
            else.
        ModelError: there is no usable model.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        examples: str | os.PathLike[str],
        model: str | os.PathLike[str],
        recipe: Recipe | None = None,
        device: str = "auto",
        say: Callable[[str], None] = print,
    ):
        self.folder = RunFolder(folder)
        self._examples, self._model, self._asked = Path(examples), Path(model), recipe
        self._recipe = recipe or Recipe()
        self._device, self._say = training_device(device, 0), say
        self.organs: tuple[Organ, ...] = ()
        self._progress = ProgressReporter(self.folder)
        self._stop = StopRequest(self.folder)
        self._done = self._first_done = 0.0
        self._total = 1.0
        self._started = 0.0

    def run(self) -> Taught:
        """Teach, or continue, to the end.

        Raises:
            Stopped: on request; everything that was done is saved.
            InputError: fewer than two examples, or what they are does not fit the teaching that was begun.
            FlareSegmentError: when it cannot go on; the same call continues it.
        """
        self._check_free()
        self._description, self._weights = read_model(self._model)
        self.organs = tuple(organ_by_key(key) for _, key in sorted(self._description.labels.items()))
        cases = self._cases()
        self._settings = self._begun(cases)
        ended = self._ended()
        if ended is not None:
            self._clear()
            if self.folder.progress().get("state") != "finished":  # it was killed after its end
                self._progress.begin()
                self._progress.end("finished", _in_short(ended))
            return ended
        self.folder.forget_old_stop()
        self._check_free()  # what was read meanwhile took a while
        self._progress.begin()
        remove_unfinished(self.folder.path)
        self._started = time.monotonic()
        try:
            with self._stop:
                taught = self._taught(cases)
        except BaseException as error:
            self.folder.stop_file.unlink(missing_ok=True)
            state = "stopped" if isinstance(error, Stopped) else "failed"
            self._progress.end(state, " ".join(str(error).split()) or type(error).__name__)
            raise
        self.folder.stop_file.unlink(missing_ok=True)
        self._clear()
        self._progress.end("finished", _in_short(taught))
        return taught

    def _check_free(self) -> None:
        """Raise InputError while another process is teaching in the folder."""
        if self.folder.is_running():
            raise InputError(f"A process ({self.folder.progress().get('pid')}) is teaching in {self.folder.path} now.")

    # What is taught --------------------------------------------------------------------------------

    def _cases(self) -> list[Case]:
        """The examples. Raises InputError where there are too few."""
        left_out: list[LeftOut] = []
        cases = find_cases([self._examples], left_out=left_out.append, say=lambda line: None)
        graded = [case for case in cases if case.grades or not is_example_name(case.name)]
        reason = f"{QUALITY_FILE} does not say which of its organs were looked at"
        left_out += [LeftOut(case.name, reason) for case in cases if case not in graded]
        newest_first = [replace(case, fixed_set=None) for case in reversed(graded)]
        cases = without_twins(newest_first, left_out.append)[::-1]
        known = {organ.key for organ in self.organs}
        useful = [case for case in cases if case.labeled & known]
        left_out += [LeftOut(case.name, "no organ of the model was looked at") for case in cases if case not in useful]
        for item in left_out:
            self._say(f"Warning: {item}")
        if len({case.patient for case in useful}) < 2:
            raise InputError(
                f"{self._examples} holds {len(useful)} usable example{'s' if len(useful) != 1 else ''}: at least two "
                "patients' are needed, so that each can be measured by a model that was not taught with it. Three or "
                "more are better."
            )
        return useful

    def _begun(self, cases: Sequence[Case]) -> dict:
        """What config.json holds, written if the teaching is new. Raises InputError where it was begun otherwise."""
        begun = self._settings_before()
        if begun and self._asked is None:
            self._recipe = Recipe(**begun["recipe"])
        content: dict[str, Any] = {
            "model": {
                "name": f"{self._description.name} {self._description.version}",
                "sha256": model_state(self._model),
                "folder": str(self._model.resolve()),
            },
            "examples": example_states(cases),
            "recipe": asdict(self._recipe),
            "folds": folds_of(cases),
        }
        if begun is None:
            _check_readable(cases)
            self.folder.write_json(CONFIGURATION_FILE, content)
            return content
        for what, now, before in (
            ("another model", content["model"]["sha256"], begun["model"]["sha256"]),
            ("other examples", content["examples"], begun["examples"]),
            ("another recipe (--set)", content["recipe"], begun["recipe"]),
        ):
            if now != before:
                raise InputError(
                    f"{self.folder.path} was begun with {what}: continue it with what it was begun with, or choose "
                    "another --output."
                )
        return begun

    def _settings_before(self) -> dict | None:
        """What config.json says; None where nothing was begun. Raises InputError where the folder holds something else:
        what is in it would be replaced and removed.
        """
        other = InputError(f"{self.folder.path} holds something else than a teaching: choose another --output.")
        check_writable(self.folder.path)
        try:
            if not self.folder.path.exists():
                return None
            if not (self.folder.path / CONFIGURATION_FILE).is_file():
                strange = [file for file in self.folder.path.iterdir() if not _may_be_there_before(file.name)]
                if strange:
                    raise other
                return None
        except OSError as error:
            raise InputError(f"{self.folder.path} cannot be read: {error.strerror}. Choose another folder.") from error
        begun = self.folder.read_json(CONFIGURATION_FILE)
        try:
            Recipe(**begun["recipe"])
            if not {"name", "sha256"} <= begun["model"].keys() or not {"examples", "folds"} <= begun.keys():
                raise other
        except (LookupError, TypeError, AttributeError) as error:
            raise other from error
        return begun

    def _ended(self) -> Taught | None:
        """How the teaching ended, if it did and what it offered is there."""
        if not (self.folder.path / REPORT_FILE).is_file():
            return None
        report, place = self.folder.read_json(REPORT_FILE), self.folder.path / MODEL
        if report.get("offered") and not (place / DESCRIPTION_FILE).is_file():
            return None
        return Taught(bool(report["offered"]), tuple(report["reasons"]), place if report["offered"] else None, report)

    # The way ---------------------------------------------------------------------------------------

    def _taught(self, cases: list[Case]) -> Taught:
        """As `_teach`. Raises InputError where examples were changed meanwhile, whatever that led to."""
        error: InputError | None = None
        try:
            reasons, held, kept = self._teach(cases)
        except InputError as one:
            error = one
        if not is_unchanged(self._settings, self._examples, self._model):
            raise InputError(
                f"Examples in {self._examples}, or the model, were changed while they were taught: teach what is "
                "there now."
            ) from error
        if error is not None:
            raise error
        return self._finish(reasons, held, kept)

    def _teach(self, cases: list[Case]) -> tuple[list[str], _Sides, _Sides]:
        """What speaks against the taught model, a line each, and what was measured on the examples and elsewhere."""
        folds = {name: [case for case in cases if case.name in held] for name, held in self._settings["folds"].items()}
        made = stability_set()
        steps = float(self._recipe.epochs * self._recipe.steps_per_epoch)
        self._total = (len(folds) + 1) * steps + _SCAN_STEPS * (2 * len(cases) + 2 * len(made))
        before = self._measure(OLD, self._model, cases)
        swapped = self._swapped(cases)
        if swapped:
            return swapped, {"before": before, "after": {}}, _NOTHING
        after: dict[str, dict] = {}
        for name, held_out in folds.items():
            model = self._trained(name, [case for case in cases if case not in held_out], held_out)
            after.update(self._measure(name, model, held_out))
        held = {"before": before, "after": after}
        reasons = judgment.against_examples(after, before, self.organs)
        if reasons:
            return reasons, held, _NOTHING
        model = self._trained(ALL, cases, [])
        kept = {"before": self._measure(OLD, self._model, made), "after": self._measure(ALL, model, made)}
        return judgment.against_stability(kept["after"], kept["before"], self.organs), held, kept

    def _trained(self, name: str, cases: list[Case], held_out: list[Case]) -> Path:
        """Train on the cases and return the folder of the model that comes out."""
        text = f"Teaching with {len(cases)} example{'s' if len(cases) > 1 else ''}" + (
            f", without {', '.join(case.name for case in held_out)}" if held_out else ""
        )
        folder = RunFolder(self.folder.path / RUNS / name)
        steps, before = float(self._recipe.epochs * self._recipe.steps_per_epoch), self._done
        if folder.progress().get("state") != "finished":
            self._tell(f"{text}: preparing", run=f"{RUNS}/{name}")
            content = configuration_of(self._description, self._recipe)
            phantoms = find_cases([f"phantom:{PHANTOMS}"], say=lambda line: None) if len(content["shares"]) > 1 else []
            learned = [*cases, *(replace(case, location=1) for case in phantoms if case.fixed_set != VALIDATION)]
            split = Split(
                tuple(case.name for case in learned), tuple(case.name for case in held_out), "examples held out"
            )
            configuration = parse(content)
            stage = self._description.stages[-1].name
            is_resumed = folder.state_file.is_file()

            def tell(told: dict[str, Any]) -> None:
                nonlocal is_resumed
                done = before + steps * min(1.0, told.get("fraction", 0.0))
                if is_resumed and "fraction" in told:  # what an earlier process did says nothing about the pace
                    is_resumed, self._first_done = False, self._first_done + done - before
                self._tell(
                    f"{text}: {told['message']}",
                    done=done,
                    run=f"{RUNS}/{name}",
                    **{key: told[key] for key in ("step", "steps", "loss") if key in told},
                )

            run = TrainingRun(
                configuration,
                [*learned, *held_out],
                split,
                folder,
                self._device,
                choose_precision(configuration.precision, self._device),
                Group("nccl" if self._device.type == "cuda" else "gloo"),
                self.folder.path / PREPARED,
                self._say,
                {stage: _floats(self._weights[stage])},
                stop=_Shared(self._stop),
                told=tell,
            )
            folder.write_json(CONFIGURATION_FILE, {"configuration": content})
            run.run(resume=is_resumed)
        else:
            self._first_done += steps
        self._done = before + steps
        return self._composed(name, folder, cases)

    def _composed(self, name: str, folder: RunFolder, cases: Sequence[Case]) -> Path:
        """The old model with the weights of a run, averaged with its own."""
        stage = self._description.stages[-1].name
        taught = folder.load_tensors(folder.checkpoints / f"{stage}_best.pt")
        weights = {key: _floats(value) for key, value in self._weights.items()}
        weights[stage] = averaged(weights[stage], taught, self._recipe.taught_share)
        networks = {}
        for item in self._description.stages:
            networks[item.name] = build_network(item.network)
            networks[item.name].load_state_dict(weights[item.name])
        scans = _trained_scans(folder)
        place = self.folder.path / MODELS / name
        description = taught_description(self._description, [case.name for case in cases], scans, self._settings)
        try:
            save_model(place, description, networks)
        except (OSError, RuntimeError) as error:
            raise FlareSegmentError(
                f"{place} could not be written: {error}. Free some space; the same command goes on."
            ) from error
        return place

    def _measure(self, name: str, model: Path, cases: Sequence[Case]) -> dict[str, dict]:
        """Case name -> record of every case, by a model; one that was measured before is not measured again."""
        predictor = ModelPredictor(model, str(self._device))
        records: dict[str, dict] = {}
        for number, case in enumerate(cases, start=1):
            if self._stop:
                raise Stopped("Stopped between two scans.")
            what = "the old model" if name == OLD else "the taught model"
            self._tell(f"Measuring {what} on {case.name} ({number} of {len(cases)})", run="")
            started = time.monotonic()
            evaluation = evaluate_cases(
                [case], predictor, self.organs, self.folder.path / MEASURED / name, None, say=lambda line: None
            )
            records.update(evaluation.cases)
            self._done += _SCAN_STEPS
            if evaluation.reused:
                self._first_done += _SCAN_STEPS
                self._started += time.monotonic() - started
        return records

    def _swapped(self, cases: Sequence[Case]) -> list[str]:
        """What looks as if labels of the examples were swapped, a line each."""
        lines = []
        for case in cases:
            volume, labels, _ = case.read()
            file = self.folder.path / MEASURED / OLD / PREDICTIONS / f"{file_name(case.name)}_labels.nii.gz"
            organs = [organ for organ in self.organs if organ.key in case.labeled]
            found = read_labels(file, like=volume).array
            lines += [f"in {case.name} {line}" for line in judgment.swapped_organs(labels, found, organs)]
        return lines

    # The end ---------------------------------------------------------------------------------------

    def _finish(self, reasons: Sequence[str], held: _Sides, kept: _Sides) -> Taught:
        """Write the report and, if nothing speaks against it, offer the model."""
        sides = {"examples": held, "stability": kept}
        kept_as_found = judgment.as_found(held["before"], self.organs)
        report = {
            "offered": not reasons,
            "reasons": list(reasons),
            "model": self._settings["model"]["name"],
            "example_count": len(self._settings["examples"]),
            "held_out_in_folds": len(self._settings["folds"]),
            "recipe": self._settings["recipe"],
            "kept_as_found": sorted(kept_as_found),
            **{
                side: {
                    "difference": judgment.mean_gain(
                        records["after"], records["before"], self.organs, kept_as_found if side == "examples" else ()
                    ),
                    "false_positive_ml_before": judgment.false_ml(
                        _same(records["before"], records["after"]), self.organs
                    ),
                    "false_positive_ml_after": judgment.false_ml(records["after"], self.organs),
                    "organs": judgment.table(records["after"], records["before"], self.organs),
                    "scans": _dice(records["after"], records["before"], self.organs),
                }
                for side, records in sides.items()
            },
        }
        place = self.folder.path / MODEL
        if not reasons:
            self._offer(place, report)
        text = markdown(report, self.organs)
        save_whole(self.folder.path / REPORT_TEXT, lambda file: file.write_text(text, encoding="utf-8"))
        self.folder.write_json(REPORT_FILE, report)  # with which it has ended: the last that is written
        return Taught(not reasons, tuple(reasons), None if reasons else place, report)

    def _offer(self, place: Path, report: dict) -> None:
        """Put the model with its card in its place, whole or not at all. Raises FlareSegmentError."""
        making = self.folder.path / ".offering"
        description = read_description(self.folder.path / MODELS / ALL)
        card = f"# {description.name} {description.version}\n\nLicense: {description.license}\n\n"
        try:
            shutil.rmtree(making, ignore_errors=True)
            shutil.copytree(self.folder.path / MODELS / ALL, making)
            (making / CARD_FILE).write_text(card + markdown(report, self.organs), encoding="utf-8")
            shutil.rmtree(place, ignore_errors=True)
            making.rename(place)
        except OSError as error:
            raise FlareSegmentError(
                f"{place} could not be written: {error.strerror}. Free some space; the same command goes on."
            ) from error

    def _clear(self) -> None:
        """Remove what nothing needs any more after the end: copies of the examples' voxels among it."""
        remove_unfinished(self.folder.path)
        for name in (RUNS, PREPARED, MEASURED):
            shutil.rmtree(self.folder.path / name, ignore_errors=True)

    def _tell(self, message: str, done: float | None = None, **content: Any) -> None:
        """Report how far the teaching is, and how long it will take at the present pace."""
        done = self._done if done is None else done
        here = done - self._first_done
        passed = time.monotonic() - self._started
        left = passed * (self._total - done) / here if here > 0 else math.nan
        self._progress.update(message=message, fraction=min(1.0, done / self._total), remaining_seconds=left, **content)


def _check_readable(cases: Sequence[Case]) -> None:
    """Read every example once, before anything is begun with it. Raises InputError for the first that is damaged."""
    for case in cases:
        try:
            case.read()
        except InputError as error:
            raise InputError(f"{case.name} cannot be taught: {error} Mend it, or remove the example.") from error


def _may_be_there_before(name: str) -> bool:
    """Whether a file may lie in a folder in which a teaching begins: what tells of it, or was begun by a killed one."""
    return name in (OUTPUT_FILE, PROGRESS_FILE, STOP_FILE) or name.startswith(UNFINISHED)


class _Shared:
    """The teaching's request to stop, for the training runs in it: whose signals it catches already."""

    def __init__(self, stop: StopRequest):
        self._stop = stop

    def __enter__(self) -> _Shared:
        return self

    def __exit__(self, *_error: object) -> None:
        pass

    def __bool__(self) -> bool:
        return bool(self._stop)


def folds_of(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Name of each fold -> names of the examples that are held out in it; those of one patient together."""
    patients = sorted({case.patient for case in cases})
    count = len(patients) if len(patients) < FOLDS else LATER_FOLDS
    return {
        f"fold-{number + 1}": [case.name for case in cases if case.patient in patients[number::count]]
        for number in range(count)
    }


def taught_description(
    old: ModelDescription, examples: Sequence[str], scans: Sequence[str], settings: Mapping[str, Any]
) -> ModelDescription:
    """What model.json says of a taught model: the old one's words, and what it was taught with."""
    number, base = 1, old.version
    if "+taught." in base:
        base, _, last = base.partition("+taught.")
        number = int(last) + 1 if last.isdigit() else 1
    facts = {key: value for key, value in old.facts.items() if key not in ("validation", "last_stage", "configuration")}
    told = facts.get("scans")
    if isinstance(told, dict) and isinstance(told.get("trained"), list):
        facts["scans"] = {**told, "trained": sorted({*told["trained"], *scans})}
    elif isinstance(facts.get("training_cases"), list):
        facts["training_cases"] = [*facts["training_cases"], *examples]
    facts["taught"] = {
        "from": settings["model"]["name"],
        "from_sha256": settings["model"]["sha256"],
        "examples": len(examples),
        "scans": list(scans),
        "recipe": settings["recipe"],
    }
    return replace(old, version=f"{base}+taught.{number}", facts=facts)


def _trained_scans(folder: RunFolder) -> list[str]:
    from FlareSegmentTrainingLib.training.run_cases import TRAINING, read_cases

    entries = read_cases(folder.path)
    return sorted(
        str(entry.get("scan_sha256", ""))[:SHORT]
        for name, entry in entries.items()
        if entry.get("side") == TRAINING and not name.startswith("phantom")
    )


def _floats(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _same(records: Mapping[str, dict], others: Mapping[str, dict]) -> dict[str, dict]:
    return {name: record for name, record in records.items() if name in others}


def _dice(after: Mapping[str, dict], before: Mapping[str, dict], organs: Sequence[Organ]) -> dict:
    """Scan -> organ key -> Dice before and after."""
    return {
        name: {
            organ.key: [records[name]["organs"][organ.key]["dice"] for records in (before, after)] for organ in organs
        }
        for name in after
    }


def _in_short(taught: Taught) -> str:
    if taught.offered:
        gain = taught.report["examples"]["difference"]
        return "Finished: the taught model is better" + (
            "." if gain is None else f": mean Dice {gain:+.3f} on examples held out."
        )
    return f"Finished: not offered, for {taught.reasons[0]}" + (
        f" (and {len(taught.reasons) - 1} more reasons)." if len(taught.reasons) > 1 else "."
    )
