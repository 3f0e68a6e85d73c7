"""What the panel and the worker process say to each other: every message, and the only code that writes and reads it.

The client (the panel, through QProcess) writes requests to the worker's stdin and reads events from its stdout: one
JSON object per line, ASCII, the fields of the classes below and the message's name as ``command`` or ``event``.
Whatever libraries print inside the worker goes to stderr. No port is opened and no shell is involved; voxels lie in
`shared_files`. The worker answers `Hello`, `Segment` and `Compare` one after another, each with exactly one of `Ready`,
`Result`, `Compared`, `Cancelled` and `Failure`; `Cancel` alone is heard while it computes, and has no answer of its
own. It ends when its stdin closes or its parent process is gone. That it was killed is known from the process's end.

This file needs the standard library and numpy only: no torch, no slicer.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.shared_files import SharedArray, SharedFolder, SharedVolume

Box = tuple[slice, slice, slice]


class ProtocolError(ValueError):
    """A line that is not a message of this protocol."""


# Requests; their ids are numbers that the client has not used before ------------------------------


@dataclass(frozen=True)
class Hello:
    """Load torch, and the model of a request if there is one."""

    id: int
    request: SegmentationRequest | None = None


@dataclass(frozen=True)
class Segment:
    """Segment a volume and leave the labels, and what else there is a file for, in the shared folder: the surfaces, the
    confidence (zlib of (z, y, x) uint8 in `Result.confidence_box`).
    """

    id: int
    request: SegmentationRequest
    volume: SharedVolume
    labels: SharedArray
    surfaces: str | None = None
    confidence: str | None = None

    def __post_init__(self) -> None:
        _check_labels(self.labels, self.volume.voxels.shape)

    @staticmethod
    def prepare(
        id: int, request: SegmentationRequest, volume: Volume, folder: SharedFolder
    ) -> Generator[None, None, Segment]:
        """The client's way to make one, a piece of the voxels at each step. Raises OSError when there is no room."""
        shared = yield from folder.put_volume(volume)
        labels = yield from folder.room_for_labels(volume.array.shape)
        surfaces = None if request.smoothing is None else (yield from folder.reserve(0))
        confidence = (yield from folder.reserve(0)) if request.review else None
        return Segment(id, request, shared, labels, surfaces, confidence)


@dataclass(frozen=True)
class Compare:
    """Compare a label map with a reference of the same grid.

    Attributes:
        difference: room for what `Compared` describes.
        spacing: (x, y, z), mm.
        organs: keys of the organs to measure.
    """

    id: int
    labels: SharedArray
    reference: SharedArray
    difference: SharedArray
    spacing: tuple[float, ...]
    organs: tuple[str, ...]

    def __post_init__(self) -> None:
        for one in (self.labels, self.reference, self.difference):
            _check_labels(one, self.labels.shape)

    @staticmethod
    def prepare(
        id: int,
        labels: np.ndarray,
        reference: np.ndarray,
        spacing: tuple[float, ...],
        organs: tuple[str, ...],
        folder: SharedFolder,
    ) -> Generator[None, None, Compare]:
        """The client's way to make one, as `Segment.prepare`; both label maps are uint8 (z, y, x)."""
        first = yield from folder.put(labels)
        second = yield from folder.put(reference)
        difference = yield from folder.room_for_labels(labels.shape)
        return Compare(id, first, second, difference, spacing, organs)


@dataclass(frozen=True)
class Cancel:
    """Give up the request of this id; a comparison that has begun is not stopped."""

    id: int


# Events; their ids are the request's --------------------------------------------------------------


@dataclass(frozen=True)
class Ready:
    """Answers `Hello`: the process, what it can compute on (see `compute_devices`), and its priority (`processes`)."""

    id: int
    pid: int
    devices: list[dict[str, Any]]
    niceness: int = 0


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
        box: the label file holds the labels inside it; all others are 0.
        surfaces: whether they were written.
        places: where to look first, `review_places.Place` as dictionaries; None where nobody asked.
        confidence_box: the confidence file holds the confidence (255ths) inside it, all others are sure; None where it
            was not written.
    """

    id: int
    seconds: dict[str, float]
    warnings: list[str]
    device: str
    model: str
    organs: dict[str, dict[str, Any]]
    box: Box
    surfaces: bool = False
    places: list[dict[str, Any]] | None = None
    confidence_box: Box | None = None


@dataclass(frozen=True)
class Compared:
    """The comparison is done.

    Attributes:
        organs: see `metrics.evaluate`.
        box: inside it the difference file holds 1 where only the reference has an organ, 2 where only the labels have
            one, 3 for different ones.
    """

    id: int
    organs: dict[str, dict[str, float | None]]
    box: Box


@dataclass(frozen=True)
class Cancelled:
    """The request was given up."""

    id: int


@dataclass(frozen=True)
class Failure:
    """The request failed; without id, a line could not be read.

    Attributes:
        kind: "input", "model", "memory", "torch" (it cannot be loaded) or "internal".
        message: one line for the user.
        details: last lines of the trace, for a log.
    """

    id: int | None
    kind: str
    message: str
    details: str = ""


Request = Hello | Segment | Compare | Cancel
Event = Ready | Progress | Result | Compared | Cancelled | Failure
_KINDS: dict[str, dict[str, type]] = {
    key: {kind.__name__.lower(): kind for kind in get_args(kinds)}
    for key, kinds in (("command", Request), ("event", Event))
}


def encode(message: Request | Event) -> bytes:
    """The message as one line, with its line feed."""
    key = "command" if isinstance(message, Request) else "event"
    fields = {key: type(message).__name__.lower()} | vars(message)
    # JSON has no infinity: a number that is not finite must never reach a strict reader on the other side.
    return (json.dumps(fields, default=_plain, allow_nan=False, separators=(",", ":")) + "\n").encode("ascii")


def decode_request(line: bytes) -> Request:
    """The request in a line. Raises ProtocolError."""
    return _decode(line, "command")


def decode_event(line: bytes) -> Event:
    """The event in a line. Raises ProtocolError."""
    return _decode(line, "event")


def _decode(line: bytes, key: str) -> Any:
    try:
        fields = json.loads(line)
        return _value(_KINDS[key][fields.pop(key)], fields)
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


def _check_labels(labels: SharedArray, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or labels.shape != shape or np.dtype(labels.dtype) != np.uint8:
        raise ValueError("label maps are uint8 and have the volume's shape")
