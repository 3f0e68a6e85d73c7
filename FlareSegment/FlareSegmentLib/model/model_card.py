"""What a model folder says about itself, for people: read without torch, so that the panel can show it at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from FlareSegmentLib.errors import ModelError
from FlareSegmentLib.organs import Organ, organ_by_key

CARD_FILE = "MODEL_CARD.md"


@dataclass(frozen=True)
class ModelCard:
    """A model in words.

    Attributes:
        dice: {organ key: mean Dice on the scans that the model was validated on}; empty if nobody measured it.
        text: the whole card (Markdown); the essential facts where the folder has no card.
    """

    name: str
    version: str
    license: str
    organs: tuple[Organ, ...]
    dice: dict[str, float]
    text: str


def bundled_model_folder() -> Path:
    """Return the folder of the model that comes with the extension."""
    return Path(__file__).resolve().parents[2] / "Resources" / "Models" / "abdomen"


def read_model_card(folder: Path) -> ModelCard:
    """The card of a model folder. Raises ModelError, in one line, if the folder holds no model."""
    file = folder / "model.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        organs = tuple(organ_by_key(key) for _, key in sorted(content["labels"].items(), key=lambda item: int(item[0])))
        name, version, license_ = (str(content[key]) for key in ("name", "version", "license"))
    except OSError as error:
        raise ModelError(f"No model in {folder}: {file.name} cannot be read.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} does not describe a model of FlareSegment.") from error
    dice = _mean_dice(content.get("facts"), organs)
    try:
        text = (folder / CARD_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        lines = [f"# {name} {version}", f"License: {license_}", f"Organs: {', '.join(organ.name for organ in organs)}"]
        measured = [organ for organ in organs if organ.key in dice]
        lines += [f"Mean Dice of the {organ.name.lower()}: {dice[organ.key]:.2f}" for organ in measured]
        lines += _training(content.get("facts"))
        text = "\n\n".join(lines)
    return ModelCard(name, version, license_, organs, dice, text)


def _training(facts: object) -> list[str]:
    """Paragraphs (Markdown) about how a model was trained, as far as its facts say so."""
    if not isinstance(facts, dict):
        return []
    lines = []
    if facts.get("trained_with"):
        lines.append(f"Trained with {facts['trained_with']}")
    if "training_cases" in facts and "validation_cases" in facts:
        lines.append(f"Cases: {facts['training_cases']} for training, {facts['validation_cases']} for validation")
    last = facts.get("last_stage")
    if isinstance(last, dict) and last.get("epoch") is not None:
        lines.append(f"Weights of epoch {last['epoch']} of the stage {last.get('name')}")
    scores = last.get("dice_on_its_grid") if isinstance(last, dict) else None
    scores = scores if isinstance(scores, dict) else {}
    known = {key: value for key, value in scores.items() if isinstance(value, int | float)}
    if known:
        told = ", ".join(f"{key.replace('_', ' ')} {value:.2f}" for key, value in known.items())
        lines.append(f"Mean Dice of the validation cases, on this stage's grid: {told}")
    configuration = facts.get("configuration")
    if isinstance(configuration, dict):
        lines.append("The whole configuration:")
        lines.append(f"```json\n{json.dumps(configuration, indent=2)}\n```")
    return ["## Training", *lines] if lines else []


def _mean_dice(facts: object, organs: tuple[Organ, ...]) -> dict[str, float]:
    cases = facts.get("validation") if isinstance(facts, dict) else None
    if not isinstance(cases, dict):
        return {}
    result = {}
    for organ in organs:
        scores = [case.get(organ.key, {}).get("dice") for case in cases.values() if isinstance(case, dict)]
        known = [float(score) for score in scores if isinstance(score, int | float)]
        if known:
            result[organ.key] = mean(known)
    return result
