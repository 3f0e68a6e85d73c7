"""What a model folder says of its networks: model.json, read and checked without PyTorch.

It holds what the networks expect and give: labels, intensity window, stages with spacing and architecture, the weights'
SHA-256, and free-form facts for people (training data, metrics, license).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from FlareSegmentLib.errors import ModelError
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.organs import FLARE22_ORGANS

FORMAT = "flaresegment-model"
FORMAT_VERSION = 1
DESCRIPTION_FILE = "model.json"
WEIGHTS_FILE = "weights.pt"
REGIONS = ("volume", "body", "organs")
_MOST_LAYERS = 1000


@dataclass(frozen=True)
class Stage:
    """One pass of a network.

    Attributes:
        name: key of the stage's weights.
        region: "volume" for the whole volume, "body" for the box of the voxels above the window's lower end, "organs"
            for the box that the stage before found.
        network: arguments of `vnet.build_network`.
        spacing_mm: (x, y, z) of the network's grid, or None when `shape` says it.
        shape: (x, y, z) voxels the region is resized to, or None when `spacing_mm` says it.
        margin_mm: added on all sides of the organs' box.
        further_spacings_mm: (x, y, z) of more grids to look at the same region on; the class probabilities of all grids
            are averaged on the first. Of the last stage only.
    """

    name: str
    region: str
    network: dict
    spacing_mm: tuple[float, float, float] | None = None
    shape: tuple[int, int, int] | None = None
    margin_mm: float = 0.0
    further_spacings_mm: tuple[tuple[float, float, float], ...] = ()


@dataclass(frozen=True)
class ModelDescription:
    """The content of model.json.

    Attributes:
        labels: class index of the network (1, 2, ...) -> organ key; 0 is background.
        facts: what people should know: training data, metrics, how the model was made.
        minimum_sure: an organ is left out when the last stage is sure of a smaller fraction of it
            (`postprocessing.drop_doubtful`); 0 keeps every organ.
    """

    name: str
    version: str
    license: str
    labels: dict[int, str]
    intensity: Intensity
    stages: tuple[Stage, ...]
    facts: dict = field(default_factory=dict)
    minimum_sure: float = 0.0


def _triplet(value, kind, where: str) -> tuple | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3 or not all(isinstance(item, (int, float)) for item in value):
        raise ModelError(f"{where} must be three numbers (x, y, z), not {value!r}")
    result = tuple(kind(item) for item in value)
    if min(result) <= 0:
        raise ModelError(f"{where} must be positive, not {value!r}")
    return result


def _parse_spacings(value, where: str) -> tuple[tuple[float, float, float], ...]:
    spacings = tuple(_triplet(spacing, float, where) for spacing in value)
    if None in spacings:
        raise ModelError(f"{where} must be lists of three numbers (x, y, z), not {value!r}")
    return spacings  # type: ignore[return-value]


def _parse_intensity(content: dict, file: Path) -> Intensity:
    low, high = (float(value) for value in content.get("output", (-1.0, 1.0)))
    intensity = Intensity(
        float(content["lower"]), float(content["upper"]), (low, high), bool(content.get("standardize", False))
    )
    if not intensity.lower < intensity.upper or not low < high:
        raise ModelError(f"{file}: intensity: the lower value must be below the upper one.")
    return intensity


def _parse_stage(content: dict, position: int, file: Path) -> Stage:
    where = f"{file}: stage {position + 1}"
    stage = Stage(
        name=str(content["name"]),
        region=content["region"],
        network=dict(content["network"]),
        spacing_mm=_triplet(content.get("spacing_mm"), float, f"{where}: spacing_mm"),
        shape=_triplet(content.get("shape"), int, f"{where}: shape"),
        margin_mm=float(content.get("margin_mm", 0.0)),
        further_spacings_mm=_parse_spacings(content.get("further_spacings_mm", []), f"{where}: further_spacings_mm"),
    )
    if sum(_counts(stage.network)) > _MOST_LAYERS:
        raise ModelError(f"{where}: a network of more than {_MOST_LAYERS} layers is refused")
    if stage.region not in REGIONS:
        raise ModelError(f"{where}: region must be one of {', '.join(REGIONS)}, not {stage.region!r}")
    if (stage.spacing_mm is None) == (stage.shape is None):
        raise ModelError(f"{where}: exactly one of spacing_mm and shape is needed")
    if stage.further_spacings_mm and stage.spacing_mm is None:
        raise ModelError(f"{where}: further_spacings_mm goes with spacing_mm, not with shape")
    if position == 0 and stage.region == "organs":
        raise ModelError(f"{where}: the first stage must have the region 'volume' or 'body'")
    return stage


def _counts(network: dict) -> Iterator[float]:
    """The numbers of layers that a network's configuration names: those in lists."""
    for value in network.values():
        if isinstance(value, list):
            yield from (item for item in value if isinstance(item, (int, float)))


def read_description(folder: str | os.PathLike) -> ModelDescription:
    """Read and check a model's description without loading its weights.

    Raises:
        ModelError: one clear line, when there is no model in the folder or model.json cannot be used.
    """
    return read_with_checksum(folder)[0]


def read_with_checksum(folder: str | os.PathLike) -> tuple[ModelDescription, str]:
    """As `read_description`, and the SHA-256 that the weights must have. Raises ModelError."""
    folder = Path(folder)
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        raise ModelError(f"No model in {folder}: {DESCRIPTION_FILE} is missing. Name a model folder.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ModelError(f"{file} is not a FlareSegment model description.")
        if content["format_version"] != FORMAT_VERSION:
            raise ModelError(
                f"{file} has format version {content['format_version']}, this FlareSegment reads {FORMAT_VERSION}."
            )
        description = ModelDescription(
            name=str(content["name"]),
            version=str(content["version"]),
            license=str(content["license"]),
            labels={int(value): str(key) for value, key in content["labels"].items()},
            intensity=_parse_intensity(content["intensity"], file),
            stages=tuple(_parse_stage(stage, position, file) for position, stage in enumerate(content["stages"])),
            facts=dict(content.get("facts", {})),
            minimum_sure=float(content.get("minimum_sure", 0.0)),
        )
        checksum = str(content["weights"]["sha256"])
    except ModelError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file} is damaged ({type(error).__name__}: {error}). Restore or retrain it.") from error
    _check(description, file)
    return description, checksum


def _check(description: ModelDescription, file: Path) -> None:
    known = {organ.key for organ in FLARE22_ORGANS}
    unknown = sorted(set(description.labels.values()) - known)
    if unknown:
        raise ModelError(f"{file}: unknown organs {', '.join(unknown)}; known: {', '.join(sorted(known))}.")
    if sorted(description.labels) != list(range(1, len(description.labels) + 1)):
        raise ModelError(f"{file}: labels must be numbered 1, 2, ... without gaps.")
    if not 0.0 <= description.minimum_sure < 1.0:
        raise ModelError(f"{file}: minimum_sure must be 0 or more and below 1.")
    if not description.stages:
        raise ModelError(f"{file}: there is no stage.")
    if any(stage.further_spacings_mm for stage in description.stages[:-1]):
        raise ModelError(f"{file}: only the last stage can have further_spacings_mm.")
