"""The presets that come with the extension: readable JSON files, each of which runs as it is. What they may hold is in
configuration.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from FlareSegmentLib.errors import InputError

PRESETS_FOLDER = Path(__file__).resolve().parents[2] / "Resources" / "Presets"


def preset_names() -> list[str]:
    """Return the names of the presets that come with the extension."""
    return sorted(file.stem for file in PRESETS_FOLDER.glob("*.json"))


def read_preset(name: str) -> dict:
    """Return the content of a preset, by its name or as the path of a JSON file.

    Raises:
        InputError: when there is no such preset or it is not JSON.
    """
    file = Path(name) if name.endswith(".json") else PRESETS_FOLDER / f"{name}.json"
    if not file.is_file():
        raise InputError(
            f"There is no preset {name!r}. Known: {', '.join(preset_names())}, or the path of a JSON file."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object.")
    return _on_base(content, file)


def _on_base(content: dict, file: Path) -> dict:
    """The content, merged into the preset that it is based on, if it names one (`based_on`)."""
    name = content.pop("based_on", None)
    if name is None:
        return content
    if name not in preset_names() or name == file.stem:
        raise InputError(f"{file}: based_on must name one of {', '.join(preset_names())}, not {name!r}.")
    return _merged(read_preset(name), content)


def _merged(base: dict, changes: dict) -> dict:
    """The base with the changes, object by object; null takes a value away."""
    result = dict(base)
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = value
    return result
