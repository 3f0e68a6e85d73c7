"""How a model is taught: the training configuration of the stage that draws the organs, and what protects the rest.

Only the last stage learns: the stages before it, which find the organs, stay as they are. Its batch normalization keeps
its statistics, its learning rate is low, and the weights that come out are averaged, over the steps and then with the
old ones (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903). Torsos that are made up are learned beside the
examples, and `starting_point.StartingPoint` holds the network near what it was. How each of these was chosen:
Docs/teach.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.networks.vnet import build_network

PATCH = (80, 64, 64)
PHANTOMS = 6
"""How many made-up torsos are learned beside the examples."""

_RANGES = {
    "epochs": (1, 10_000),
    "steps_per_epoch": (1, 100_000),
    "learning_rate": (1e-9, 1.0),
    "average_decay": (0.0, 0.9999),
    "starting_point": (0.0, 1e6),
    "distillation": (0.0, 1e3),
    "examples_share": (0.01, 1.0),
    "taught_share": (0.01, 1.0),
}


@dataclass(frozen=True)
class Recipe:
    """How long, how fast and how freely a model learns.

    Attributes:
        epochs, steps_per_epoch: length of each training; one model is trained for each fold and one on all examples.
        learning_rate: highest rate.
        average_decay: of the moving average over the steps.
        starting_point, distillation: as in `configuration.TrainingSettings`.
        examples_share: fraction of the patches that are cut from examples; the others are cut from made-up torsos.
        taught_share: fraction of the taught weights in the average with the old ones.
    """

    epochs: int = 5
    steps_per_epoch: int = 30
    learning_rate: float = 5e-4
    average_decay: float = 0.95
    starting_point: float = 0.01
    distillation: float = 1.0
    examples_share: float = 0.75
    taught_share: float = 0.5


PLAIN = Recipe(
    learning_rate=1e-3, average_decay=0.0, starting_point=0.0, distillation=0.0, examples_share=1.0, taught_share=1.0
)
"""Fine-tuning without any protection, for comparison."""


def changed(assignments: Sequence[str], recipe: Recipe | None = None) -> Recipe:
    """A recipe with `key=value` applied. Raises InputError for an unknown key or a value that is out of range."""
    recipe = recipe or Recipe()
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        known = asdict(recipe)
        try:
            value = type(known[key])(text)
        except (KeyError, ValueError):
            raise InputError(f"--set {assignment}: write key=number; known: {', '.join(known)}.") from None
        recipe = replace(recipe, **{key: value})
    for key, (low, high) in _RANGES.items():
        if not low <= getattr(recipe, key) <= high:
            raise InputError(f"--set {key}={getattr(recipe, key):g}: it must lie between {low:g} and {high:g}.")
    return recipe


def configuration_of(description: ModelDescription, recipe: Recipe) -> dict:
    """The JSON of a training run (`configuration.parse`) that teaches the last stage of a model."""
    stage = description.stages[-1]
    shares = [recipe.examples_share, 1.0 - recipe.examples_share]
    training = {
        "epochs": recipe.epochs,
        "steps_per_epoch": recipe.steps_per_epoch,
        "organ_centers": 0.8,
        "optimizer": "adamw",
        "learning_rate": recipe.learning_rate,
        "schedule": "cosine",
        "warmup_steps": min(10, recipe.epochs * recipe.steps_per_epoch),
        "gradient_norm": 1.0,
        "average_decay": recipe.average_decay,
        "freeze_normalization_at": 0.0,
        "evaluate_every": recipe.epochs,
        "starting_point": recipe.starting_point,
        "distillation": recipe.distillation,
    }
    if stage.spacing_mm is not None:
        training["patch"] = list(_patch(stage))
    return {
        "name": description.name,
        "license": description.license,
        "organs": [description.labels[value] for value in sorted(description.labels)],
        "intensity": asdict(description.intensity),
        "seed": 0,
        "compile": False,
        "shares": [share for share in shares if share > 0],
        "training": training,
        "augmentation": {
            "rotation_degrees": [8.0, 8.0, 10.0],
            "scale": [0.8, 1.15],
            "field_of_view_probability": 0.2,
            "noise_probability": 0.3,
            "noise": 0.06,
            "contrast_probability": 0.4,
        },
        "stages": {stage.name: _stage(stage)},
    }


def averaged(old: dict[str, torch.Tensor], taught: dict[str, torch.Tensor], share: float) -> dict[str, torch.Tensor]:
    """The weights between the old ones (share 0) and the taught ones (share 1)."""
    return {
        key: torch.lerp(value.float(), taught[key].float(), share) if value.is_floating_point() else value
        for key, value in old.items()
    }


def _stage(stage: Stage) -> dict:
    """The stage as the only one of a training: it looks at whole scans, whatever found its region."""
    content = {
        "region": "volume" if stage.region == "organs" else stage.region,
        "network": {key: value for key, value in stage.network.items() if key != "out_channels"},
    }
    for key in ("spacing_mm", "shape"):
        if getattr(stage, key) is not None:
            content[key] = list(getattr(stage, key))
    return content


def _patch(stage: Stage) -> tuple[int, ...]:
    with torch.device("meta"):
        multiple = build_network(stage.network).multiple
    return tuple(max(1, round(extent / multiple)) * multiple for extent in PATCH)
