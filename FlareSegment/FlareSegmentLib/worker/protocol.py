"""What the panel and the worker process say to each other: every message, and the only code that writes and reads it.

The panel writes requests to the worker's stdin and reads events from its stdout: one JSON object per line, ASCII, with
the message's kind and the fields of the classes below. Whatever libraries print inside the worker goes to stderr. No
port is opened and no shell is involved; voxels lie in `shared_files`. The worker answers `Hello`, `Segment` and
`Compare` one after another, each with exactly one of `Ready`, `Result`, `Compared` and `Failure`; `Cancel` alone is
heard while it computes, and has no answer of its own.

This file needs the standard library and numpy only: no torch, no slicer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.worker.shared_files import SharedBox, SharedVolume


class ProtocolError(ValueError):
    """A line that is not a message of this protocol."""


# Requests; their ids are numbers that the panel has not used before -------------------------------


@dataclass(frozen=True)
class Hello:
    """Load torch, and the model of a request if there is one."""

    id: int
    request: SegmentationRequest | None = None


@dataclass(frozen=True)
class Segment:
    """Segment a volume; what is found is written into the folders."""

    id: int
    request: SegmentationRequest
    volume: SharedVolume
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Compare:
    """Compare a label map with a reference of the same grid (.npy of uint8), organ by organ (keys).

    The spacing is (x, y, z), mm; the difference is written into the folders.
    """

    id: int
    labels: str
    reference: str
    spacing: tuple[float, ...]
    organs: tuple[str, ...]
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Cancel:
    """Give up the request of this id; a comparison that has begun is not stopped."""

    id: int


# Events; their ids are the request's --------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """Answers `Hello`: what the worker can compute on (see `compute_devices`), and its priority (see `processes`)."""

    id: int
    devices: list[dict[str, Any]]
    niceness: int


@dataclass(frozen=True)
class Progress:
    """Share of the work that is done, rising from 0 to 1, and what is being done, for the user."""

    id: int
    fraction: float
    stage: str


@dataclass(frozen=True)
class Result:
    """The segmentation is done.

    Attributes:
        seconds: {"preprocess", "network", "postprocess", "total"}.
        warnings: texts for the user.
        organs: see `organ_statistics`.
        labels: .npy of uint8.
        surfaces: file for `read_surfaces`; None where nobody asked, or there is no VTK or no room.
        places: where to look first, `review_places.Place` as dictionaries; None where nobody asked.
        confidence: zlib of uint8, 255ths; what is not in the box is sure. None where nobody asked, or without room.
    """

    id: int
    seconds: dict[str, float]
    warnings: list[str]
    device: str
    model: str
    organs: dict[str, dict[str, Any]]
    labels: SharedBox
    surfaces: str | None = None
    places: list[dict[str, Any]] | None = None
    confidence: SharedBox | None = None


@dataclass(frozen=True)
class Compared:
    """The comparison is done: the organs' scores (see `metrics.evaluate`) and `metrics.difference` as .npy."""

    id: int
    organs: dict[str, dict[str, float | None]]
    difference: SharedBox


@dataclass(frozen=True)
class Failure:
    """The request failed or was given up; without id, a line could not be read.

    Attributes:
        message: one line for the user.
        details: end of the trace, for a log; empty where the message says all.
        without_torch: PyTorch cannot be loaded.
    """

    id: int | None
    message: str
    details: str = ""
    without_torch: bool = False


Request = Hello | Segment | Compare | Cancel
Event = Ready | Progress | Result | Compared | Failure


def encode(message: Request | Event) -> bytes:
    """The message as one line, with its line feed."""
    fields = {"kind": type(message).__name__} | vars(message)
    # JSON has no infinity: a number that is not finite must never reach a strict reader on the other side.
    return (json.dumps(fields, default=_plain, allow_nan=False, separators=(",", ":")) + "\n").encode("ascii")


def decode_request(line: bytes) -> Request:
    """The request in a line. Raises ProtocolError."""
    return _decode(line, get_args(Request))


def decode_event(line: bytes) -> Event:
    """The event in a line. Raises ProtocolError."""
    return _decode(line, get_args(Event))


def _decode(line: bytes, kinds: tuple[type, ...]) -> Any:
    try:
        fields = json.loads(line)
        name = fields.pop("kind")
        return _value({kind.__name__: kind for kind in kinds}[name], fields)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise ProtocolError(f"not a message of this protocol: {error!r}") from error


def _plain(value: Any) -> Any:
    """What JSON makes of a value that it does not know."""
    if isinstance(value, slice):
        return [value.start, value.stop]
    return str(value) if isinstance(value, Path) else vars(value)


def _value(kind: Any, data: Any) -> Any:
    """A field of this type from what JSON made of it. Raises KeyError, TypeError or ValueError for anything else."""
    outer, inner = get_origin(kind), get_args(kind)
    if NoneType in inner:
        return None if data is None else _value(inner[0], data)
    if is_dataclass(kind):
        kinds = get_type_hints(kind)
        return kind(**{name: _value(kinds[name], value) for name, value in data.items()})  # type: ignore[operator]
    if outer is tuple:
        each = inner[:1] * len(data) if Ellipsis in inner else inner
        return tuple(_value(one, value) for one, value in zip(each, data, strict=True))
    if kind is slice:
        start, stop = data
        return slice(int(start), int(stop))
    if kind is Path:
        return Path(data)
    if kind is float and isinstance(data, int):
        return float(data)
    if not isinstance(data, outer or kind):
        raise TypeError(f"{data!r} is no {kind}")
    return data
