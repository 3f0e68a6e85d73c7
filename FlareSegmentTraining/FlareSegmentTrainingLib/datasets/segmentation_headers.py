"""Segments of Slicer's segmentation files (.seg.nrrd): every file numbers them as they were drawn, and names them.

The header says for each segment its name, the value of its voxels, the layer it lies in where segments overlap, and the
terminology code that was chosen for it (`SegmentN_Name`, `SegmentN_LabelValue`, `SegmentN_Layer`, `SegmentN_Tags`; see
https://github.com/Slicer/Slicer/blob/main/Libs/vtkSegmentationCore and the NRRD format's key/value pairs,
https://teem.sourceforge.net/nrrd/format.html).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS
from FlareSegmentTrainingLib.datasets.organ_names import organ_of_name

_NRRD = (".nrrd", ".nhdr")
_LONGEST_HEADER = 1 << 20
_FIELD = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer|Tags):=(.*)", re.IGNORECASE)
_ENTRY = re.compile(r"TerminologyEntry:([^|]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Segment:
    """A segment as a file's header tells it.

    Attributes:
        value: of its voxels in its layer.
        organ: the organ's key by name and terminology; None where neither says one.
    """

    name: str
    value: int
    layer: int
    organ: str | None


def read_segments(file: Path) -> tuple[Segment, ...]:
    """The segments that a file's header names; none where it is no segmentation of Slicer or cannot be read.

    Raises:
        InputError: a segment's name and its terminology say different organs, or one value is given twice.
    """
    if not file.name.lower().endswith(_NRRD) or not file.is_file():
        return ()
    fields: dict[int, dict[str, str]] = {}
    for match in filter(None, map(_FIELD.fullmatch, _header_lines(file))):
        number, key, text = match.groups()
        fields.setdefault(int(number), {})[key.lower()] = text.strip()
    segments = []
    for number in sorted(fields):
        entry = fields[number]
        value, layer = _whole(entry.get("labelvalue"), number + 1), _whole(entry.get("layer"), 0)
        name = entry.get("name", "").replace("\\n", " ") or f"Segment_{number + 1}"
        segments.append(Segment(name, value, layer, _organ(file, name, entry.get("tags", ""))))
    places = [(segment.layer, segment.value) for segment in segments]
    if len(set(places)) < len(places):
        raise InputError(f"the header of {file.name} gives one label value to two segments: export it again")
    return tuple(segments)


def _header_lines(file: Path) -> list[str]:
    try:
        with open(file, "rb") as stream:
            head = stream.read(_LONGEST_HEADER)
    except OSError:
        return []
    text = re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0].decode("utf-8", "replace")
    return [line.strip() for line in text.splitlines()] if text.startswith("NRRD") else []


def _whole(text: str | None, default: int) -> int:
    return int(text) if text is not None and re.fullmatch(r"\d{1,6}", text) else default


def _organ(file: Path, name: str, tags: str) -> str | None:
    by_name, by_code = organ_of_name(name), _organ_of_terminology(tags)
    if by_name and by_code and by_name != by_code:
        raise InputError(
            f"in the header of {file.name} the segment {name!r} has the terminology of {by_code.replace('_', ' ')}: "
            "mend its name or its terminology in Slicer"
        )
    return by_name or by_code


def _organ_of_terminology(tags: str) -> str | None:
    """The organ of a serialized terminology entry (see `FlareSegmentLib.organs.terminology_entry`)."""
    match = _ENTRY.search(tags)
    parts = match.group(1).split("~") if match else []
    if len(parts) < 4:
        return None
    (kind, modifier) = (part.split("^") for part in parts[2:4])
    codes = (kind[1] if len(kind) > 1 else "", (modifier[1] if len(modifier) > 1 else "") or None)
    return next((o.key for o in FLARE22_ORGANS if (o.type_code, o.modifier_code) == codes), None)
