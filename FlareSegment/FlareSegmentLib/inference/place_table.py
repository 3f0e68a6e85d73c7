"""The table of the places to look at first, for files and programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from FlareSegmentLib.volume import Volume

if TYPE_CHECKING:
    from FlareSegmentLib.inference.review_places import Place

COLUMNS = ("kind", "organ", "side", "ml", "i", "j", "k", "right_mm", "anterior_mm", "superior_mm", "text")


def place_rows(places: Sequence[Place], volume: Volume) -> list[dict[str, Any]]:
    """One row a place, worst first: its voxel (i, j, k) and where that is in RAS, as Slicer has it, mm.

    What is not known is None.
    """
    rows = []
    for place in places:
        voxel: list[float | None] = [None] * 3
        position: list[float | None] = [None] * 3
        if place.center is not None:
            voxel = [round(value, 1) for value in place.center]
            position = [round(float(value), 1) for value in (volume.affine_ras @ [*place.center, 1.0])[:3]]
        ml = round(place.ml, 2) if place.ml else None
        values = (place.kind, place.organ, place.side, ml, *voxel, *position, place.text)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def places_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as comma-separated values; what is not known is empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({key: "" if value is None else value for key, value in row.items()} for row in rows)
    return text.getvalue()
