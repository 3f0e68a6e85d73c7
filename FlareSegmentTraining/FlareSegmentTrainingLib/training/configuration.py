"""What a training run does: a preset's content, overrides from the command line, checked dataclasses.

A preset names organs, intensity and one or more stages; `training` and `augmentation` hold for every stage, and a stage
may override single values of them. `Configuration.content` is the JSON again, as the run folder keeps it.

Checked by own code: pydantic would bring four packages (9 MB) into Slicer's Python, which all extensions share, to save
some twenty lines; msgspec's messages name neither the known keys nor the choices, and cattrs takes true and 1.5 for
whole numbers.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field, replace

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.model.description import REGIONS, Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.organs import FLARE22_ORGANS
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("constant", "cosine", "poly", "step")
DICE_DENOMINATORS = ("squared", "sum")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
VIEWS = ("whole", "half", "slab")


@dataclass(frozen=True)
class LossSettings:
    """Which loss is minimized.

    Attributes:
        dice, cross_entropy: weights of the two terms; 0 leaves a term out.
        dice_denominator: "squared" as in the V-Net paper, or "sum" as Dice is usually written.
        deep_supervision: weights of the same loss at 1/2, 1/4, ... of the resolution, by auxiliary heads that training
            alone has.
    """

    dice: float = 1.0
    cross_entropy: float = 1.0
    dice_denominator: str = "squared"
    deep_supervision: tuple[float, ...] = ()


@dataclass(frozen=True)
class BatchShape:
    """One kind of batch among several that a stage's steps are drawn from.

    Attributes:
        patch: (x, y, z) voxels of each patch.
        batch: patches per step, over all processes together, times `TrainingSettings.batch`.
        view: "whole": a part of a scan that goes on around it; "half": the scan ends at a side, near the middle of the
            body; "slab": the scan is as thin as the patch, or thinner.
        share: how often the kind is drawn, relative to the others.
    """

    patch: tuple[int, int, int]
    batch: int = 1
    view: str = "whole"
    share: float = 1.0


@dataclass(frozen=True)
class TrainingSettings:
    """How long, how fast and on what patches a stage learns.

    Attributes:
        epochs: rounds, each ending with a log entry and a checkpoint.
        steps_per_epoch: gradient steps of a round on randomly drawn cases; null: one pass over the training cases.
        batch: patches per step, over all processes together.
        patch: (x, y, z) voxels; null: the stage's whole `shape`.
        batches: kinds of batches, one of which is drawn for each step; they replace `patch`.
        minutes: length of the stage, instead of `epochs`: the schedule follows the time that has passed, and `epochs`
            counts for nothing. The clock stands still between a stop and --resume. null: no such limit.
        organ_centers: fraction of the patches that lie about an organ; the others lie anywhere in the scan.
        optimizer: "adam", "adamw" or "sgd" (with `momentum`).
        learning_rate: highest rate, after `warmup_steps`.
        schedule: "constant"; "cosine" or "poly" (with `power`) down to 0; "step" (times `step_factor` every
            `step_every` steps).
        gradient_norm: gradients are scaled down to this norm; 0 leaves them.
        average_decay: decay of the exponential moving average of the weights; the average is evaluated and kept. 0: no
            averaging.
        normalization_momentum: weight of a new batch in the running statistics of batch normalization.
        freeze_normalization_at: fraction of the steps after which batch normalization keeps its running statistics, so
            that training ends on the very function that inference folds into the convolutions.
        normalization_batches: batches over which the statistics are made afresh before they are kept
            (`torch.optim.swa_utils.update_bn`); 0 keeps the running ones.
        evaluate_every: epochs between evaluations on the validation cases.
        validation_slabs_mm: the validation cases are also cut into slabs of these heights, which count as cases when
            the best epoch is chosen.
        checkpoint_every: epochs between checkpoints that are kept; 0 keeps only the last and the best.
        starting_point, distillation: weights of the two terms of the loss that keep a network near the weights it began
            with (`starting_point.StartingPoint`); of no effect where it begins with random ones.
    """

    epochs: int = 10
    steps_per_epoch: int | None = None
    batch: int = 1
    patch: tuple[int, int, int] | None = None
    batches: tuple[BatchShape, ...] = ()
    minutes: float | None = None
    organ_centers: float = 0.7
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: str = "constant"
    power: float = 0.9
    step_every: int = 25000
    step_factor: float = 0.1
    warmup_steps: int = 0
    gradient_norm: float = 0.0
    average_decay: float = 0.0
    normalization_momentum: float = 0.1
    freeze_normalization_at: float = 1.0
    normalization_batches: int = 0
    evaluate_every: int = 1
    validation_slabs_mm: tuple[float, ...] = ()
    checkpoint_every: int = 0
    starting_point: float = 0.0
    distillation: float = 0.0
    loss: LossSettings = field(default_factory=LossSettings)


@dataclass(frozen=True)
class StageSettings:
    """One stage: its entry in the model, how it is trained, and the stage whose weights it starts from, if any."""

    stage: Stage
    training: TrainingSettings
    augmentation: AugmentationSettings
    start_from: str | None = None

    @property
    def batches(self) -> tuple[BatchShape, ...]:
        """The kinds of batches that the network sees in training."""
        if self.training.batches:
            return tuple(replace(kind, batch=kind.batch * self.training.batch) for kind in self.training.batches)
        patch = self.training.patch or self.stage.shape
        assert patch is not None  # `parse` sees to it
        return (BatchShape(patch, self.training.batch),)


@dataclass(frozen=True)
class Configuration:
    """A whole run.

    Attributes:
        content: the JSON the rest was read from.
        organs: keys in the order of the network's classes 1, 2, ...
        precision: "auto", "fp32", "bf16" or "fp16"; compiled: True, False or None for automatic.
        shares: how often cases are drawn from each data location, in the order of the command line, relative to each
            other; empty: every case alike, whatever its location. For training by `steps_per_epoch`.
    """

    content: dict
    name: str
    license: str
    organs: tuple[str, ...]
    intensity: Intensity
    seed: int
    precision: str
    compiled: bool | None
    shares: tuple[float, ...]
    stages: tuple[StageSettings, ...]


_KEYS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "description": str,
    "license": str,
    "organs": list,
    "intensity": dict,
    "seed": int,
    "split": dict,
    "precision": str,
    "compile": (bool, str),
    "shares": list,
    "training": dict,
    "augmentation": dict,
    "stages": dict,
}
_STAGE_KEYS = {
    *("region", "network", "spacing_mm", "shape", "margin_mm", "further_spacings_mm"),
    *("start_from", "training", "augmentation"),
}


def override(content: dict, assignment: str) -> dict:
    """Return the content with one `key=value` applied, such as `training.epochs=5` or `stages.fine.training.batch=2`.

    Values are JSON; what is not JSON is taken as text. A value of `training` or `augmentation` set for all stages
    replaces what single stages say.

    Raises:
        InputError: when the assignment has no `=` or leads nowhere; a wrong key or value is found by `parse`.
    """
    path, separator, text = assignment.partition("=")
    keys = path.strip().split(".")
    if not separator or not all(keys):
        raise InputError(f"--set {assignment}: write key=value, such as training.learning_rate=0.001.")
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    content = copy.deepcopy(content)
    if keys[0] in ("training", "augmentation"):
        for stage in content.get("stages", {}).values():
            _remove(stage, keys)
    place = content
    for key in keys[:-1]:
        if key == "stages" and key not in place or place is content.get("stages") and key not in place:
            raise InputError(
                f"--set {assignment}: there is no stage {key!r}; stages: {', '.join(content.get('stages', {}))}."
            )
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise InputError(f"--set {assignment}: {key} has no parts to set.")
    place[keys[-1]] = value
    return content


def with_minutes(content: dict, minutes: float) -> dict:
    """Return the content with this many minutes for the whole run, shared among the stages as their steps are.

    Raises:
        InputError: the content is no configuration, or its stages cannot be trained by the clock.
    """
    stages = parse(content).stages
    steps = [settings.training.epochs * (settings.training.steps_per_epoch or 1) for settings in stages]
    for settings, share in zip(stages, steps):
        assignment = f"stages.{settings.stage.name}.training.minutes={minutes * share / sum(steps)}"
        content = override(content, assignment)
    return content


def _remove(content: dict, keys: list[str]) -> None:
    for key in keys[:-1]:
        content = content.get(key, {})
        if not isinstance(content, dict):
            return
    content.pop(keys[-1], None)


def parse(content: dict) -> Configuration:
    """Check a run's JSON and return it as dataclasses.

    Raises:
        InputError: one clear line naming the key, when a key is unknown or missing or a value does not fit.
    """
    for key, value in content.items():
        if key not in _KEYS:
            raise InputError(f"Configuration: unknown key {key!r}; known: {', '.join(_KEYS)}.")
        if not isinstance(value, _KEYS[key]):
            raise InputError(f"Configuration: {key} cannot be {value!r}.")
    for key in ("organs", "intensity", "stages"):
        if not content.get(key):
            raise InputError(f"Configuration: {key} is missing.")
    known = {organ.key for organ in FLARE22_ORGANS}
    organs = tuple(content["organs"])
    if not set(organs) <= known or len(set(organs)) != len(organs):
        raise InputError(
            f"Configuration: organs must be different ones of {', '.join(sorted(known))}, not {list(organs)}."
        )
    intensity = _build(Intensity, content["intensity"], "intensity")
    _require(intensity.lower < intensity.upper, "intensity.lower must be below intensity.upper")
    _require(intensity.output[0] < intensity.output[1], "intensity.output must rise")
    compiled = content.get("compile", "auto")
    _require(compiled in (True, False, "auto"), "compile must be true, false or auto")
    precision = content.get("precision", "auto")
    _choice(precision, PRECISIONS, "precision")
    shares = _convert(tuple[float, ...], content.get("shares", []), "shares")
    _require(all(share > 0 for share in shares), "shares must be above 0")
    stages: list[StageSettings] = []
    for name, stage in content["stages"].items():
        earlier = [settings.stage.name for settings in stages]
        stages.append(_parse_stage(name, stage, content, len(organs) + 1, earlier))
    for settings in stages[:-1]:
        _require(
            not settings.stage.further_spacings_mm,
            f"stages.{settings.stage.name}: only the last stage can have further_spacings_mm",
        )
    return Configuration(
        content=content,
        name=str(content.get("name", "custom")),
        license=str(content.get("license", "none stated; the training data's terms apply")),
        organs=organs,
        intensity=intensity,
        seed=int(content.get("seed", 0)),
        precision=precision,
        compiled=None if compiled == "auto" else compiled,
        shares=shares,
        stages=tuple(stages),
    )


def _parse_stage(name: str, content: dict, whole: dict, classes: int, earlier: list[str]) -> StageSettings:
    where = f"stages.{name}"
    _require(isinstance(content, dict), f"{where} must be an object")
    unknown = set(content) - _STAGE_KEYS
    _require(not unknown, f"{where}: unknown key {', '.join(sorted(unknown))}; known: {', '.join(sorted(_STAGE_KEYS))}")
    network = {**content.get("network", {}), "out_channels": classes}
    shape, spacing = content.get("shape"), content.get("spacing_mm")
    further = content.get("further_spacings_mm", [])
    _require((shape is None) != (spacing is None), f"{where}: exactly one of shape and spacing_mm is needed")
    _require(not further or spacing is not None, f"{where}: further_spacings_mm goes with spacing_mm, not with shape")
    region = content.get("region", "volume" if not earlier else "organs")
    _choice(region, REGIONS, f"{where}.region")
    _require(bool(earlier) or region != "organs", f"{where}: the first stage cannot have the region 'organs'")
    start_from = content.get("start_from")
    _require(start_from is None or start_from in earlier, f"{where}.start_from must name an earlier stage")
    stage = Stage(
        name=name,
        region=region,
        network=network,
        spacing_mm=None if spacing is None else _convert(tuple[float, float, float], spacing, f"{where}.spacing_mm"),
        shape=None if shape is None else _convert(tuple[int, int, int], shape, f"{where}.shape"),
        margin_mm=float(content.get("margin_mm", 0.0)),
        further_spacings_mm=_convert(tuple[tuple[float, float, float], ...], further, f"{where}.further_spacings_mm"),
    )
    for sizes in (stage.spacing_mm, stage.shape, *stage.further_spacings_mm):
        _require(sizes is None or min(sizes) > 0, f"{where}: spacings and shape must be above 0")
    merged = _merged(whole, content, "training")
    training = _build(TrainingSettings, merged, f"{where}.training")
    _require(
        training.patch is None or not training.batches,
        f"{where}.training.patch cannot be set beside batches, which say it",
    )
    augmentation = _build(AugmentationSettings, _merged(whole, content, "augmentation"), f"{where}.augmentation")
    for key in ("changed_cases", "changed_steps"):
        _require(getattr(augmentation, key) >= 1, f"{where}.augmentation.{key} must be at least 1")
    _check_training(training, stage, where)
    return StageSettings(stage, training, augmentation, start_from)


def _check_training(training: TrainingSettings, stage: Stage, where: str) -> None:
    where = f"{where}.training"
    _choice(training.optimizer, OPTIMIZERS, f"{where}.optimizer")
    _choice(training.schedule, SCHEDULES, f"{where}.schedule")
    _choice(training.loss.dice_denominator, DICE_DENOMINATORS, f"{where}.loss.dice_denominator")
    patched = training.patch is not None or bool(training.batches)
    _require(patched == (stage.spacing_mm is not None), f"{where}.patch goes with spacing_mm, not with shape")
    for number, kind in enumerate(training.batches):
        kind_where = f"{where}.batches[{number}]"
        _choice(kind.view, VIEWS, f"{kind_where}.view")
        _require(kind.batch >= 1 and min(kind.patch) >= 1, f"{kind_where}: batch and patch must be at least 1")
        _require(kind.share > 0, f"{kind_where}.share must be above 0")
    _require(not training.batches or training.steps_per_epoch is not None, f"{where}: batches need steps_per_epoch")
    _require(all(mm > 0 for mm in training.validation_slabs_mm), f"{where}.validation_slabs_mm must be above 0")
    _require(training.minutes is None or training.minutes > 0, f"{where}.minutes must be above 0")
    _require(
        training.minutes is None or training.schedule != "step",
        f"{where}: the schedule 'step' counts steps, minutes do not",
    )
    for key in ("epochs", "batch", "evaluate_every", "step_every"):
        _require(getattr(training, key) >= 1, f"{where}.{key} must be at least 1")
    _require(
        training.steps_per_epoch is None or training.steps_per_epoch >= 1, f"{where}.steps_per_epoch must be at least 1"
    )
    _require(training.learning_rate > 0, f"{where}.learning_rate must be above 0")
    _require(training.loss.dice > 0 or training.loss.cross_entropy > 0, f"{where}.loss: one term must be above 0")


def _merged(whole: dict, stage: dict, key: str) -> dict:
    merged = copy.deepcopy(whole.get(key, {}))
    for name, value in stage.get(key, {}).items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = {**merged[name], **value} if both else value
    return merged


def _build(kind, content, where: str):
    """Make a dataclass from JSON by the types of its fields."""
    _require(isinstance(content, dict), f"{where} must be an object")
    types_ = typing.get_type_hints(kind)
    unknown = set(content) - set(types_)
    _require(not unknown, f"{where}: unknown key {', '.join(sorted(unknown))}; known: {', '.join(types_)}")
    missing = [
        item.name
        for item in dataclasses.fields(kind)
        if item.name not in content and item.default is item.default_factory is dataclasses.MISSING
    ]
    _require(not missing, f"{where}: {', '.join(missing)} is missing")
    return kind(**{key: _convert(types_[key], value, f"{where}.{key}") for key, value in content.items()})


def _convert(kind, value, where: str):
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _convert(next(a for a in arguments if a is not type(None)), value, where)
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where)
    if origin is tuple:
        _require(isinstance(value, (list, tuple)), f"{where} must be a list, not {value!r}")
        if arguments[-1] is Ellipsis:
            arguments = (arguments[0],) * len(value)
        _require(len(value) == len(arguments), f"{where} must have {len(arguments)} values, not {value!r}")
        return tuple(_convert(a, item, where) for a, item in zip(arguments, value))
    accepted: tuple[type, ...] = {float: (int, float), int: (int,), bool: (bool,), str: (str,)}[kind]
    fits = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    _require(fits, f"{where} must be {kind.__name__}, not {value!r}")
    return kind(value)


def _choice(value, known, where: str) -> None:
    _require(value in known, f"{where} must be one of {', '.join(known)}, not {value!r}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(f"Configuration: {message}.")
