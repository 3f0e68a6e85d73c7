"""The pictures of an evaluation: where prediction and reference differ most, and both in 3D.

Each picture is small and holds no words but the letters of its sides, so that the report can set them side by side
on a laptop and below each other on a phone, with captions that can be read on both. Those in 3D are sheets of views
from all around, which the report shows one after the other: the organs turn. Needs VTK, but neither a display nor the
scene; the pictures in 3D are left out where there is no OpenGL.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.organs import Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.rendering.drawing import SIDES, Canvas, box_to_show, busiest_slice, draw_plane, position_text
from FlareSegmentSlicerLib.rendering.surfaces import OrganView, RenderingUnavailable, side_seen

_PLANES = ("Axial", "Coronal", "Sagittal")
_PLANE_PIXELS = 600
_DETAIL_PIXELS = 380
_DETAILS = 4
_DETAIL_MARGIN_MM = 25.0
_VIEW_PIXELS = (400, 300)
_SHEET = (5, 4)
"""Columns and rows of the views of one turn, from the front by the patient's left; the report's style knows them."""


def draw_case(
    folder: Path, name: str, volume: Volume, labels: np.ndarray, reference: np.ndarray, organs: Sequence[Organ]
) -> tuple[list[dict[str, str]], list[str]]:
    """Write a case's pictures as JPEG files.

    Args:
        folder: where the files are written; their names begin with `name`.
        volume: CT in HU.
        labels, reference: uint8 (z, y, x) on the volume's grid, values of `organs`.
        organs: those that count in this case.

    Returns:
        ([{"kind": "plane" | "detail" | "turn", "file", "title"}], warnings).

    Raises:
        OSError: a file cannot be written.
    """
    pictures = []

    def save(kind: str, part: str, title: str, image: np.ndarray, sides: Sequence[str]) -> None:
        canvas = Canvas(image.shape[1], image.shape[0])
        canvas.panel(image, 0, 0, "", sides)
        file = f"{name}_{part}.jpg"
        canvas.write(folder / file)
        pictures.append({"kind": kind, "file": file, "title": title})

    view, order = volume.to_lps_view()
    shown, truth = order.apply(labels), order.apply(reference)
    box = box_to_show(view, np.maximum(shown, truth))
    for axis, plane in enumerate(_PLANES):
        index = _worst_slice(shown, truth, axis, organs)
        pixel_mm = _pixel_mm(view, box, axis, _PLANE_PIXELS)
        image = draw_plane(view, shown, organs, box, axis, index, pixel_mm, truth)
        save("plane", plane.lower(), f"{plane}, {position_text(view, axis, index)}", image, SIDES[axis])
    for organ in _worst_organs(shown, truth, organs):
        index = _worst_slice(shown, truth, 0, [organ])
        detail = _box_around(view, (shown[index] == organ.label) | (truth[index] == organ.label), index)
        if detail is None:
            continue
        image = draw_plane(view, shown, organs, detail, 0, index, _pixel_mm(view, detail, 0, _DETAIL_PIXELS), truth)
        save("detail", organ.key, f"{organ.name}, axial, {position_text(view, 0, index)}", image, SIDES[0])
    try:
        with OrganView(*_VIEW_PIXELS) as scene:
            scene.add_organs(volume, reference, organs, "reference")
            scene.add_organs(volume, labels, organs, "prediction")
            scene.fit(turning=True)
            for group in ("reference", "prediction"):
                file = f"{name}_3d_{group}.jpg"
                _sheet(scene, group).write(folder / file)
                pictures.append({"kind": "turn", "file": file, "title": f"{group.capitalize()} in 3D"})
    except RenderingUnavailable as error:
        return pictures, [str(error)]
    return pictures, []


def _sheet(scene: OrganView, group: str) -> Canvas:
    """The views of one turn, row by row."""
    (columns, rows), (width, height) = _SHEET, _VIEW_PIXELS
    canvas = Canvas(columns * width, rows * height)
    for number in range(columns * rows):
        degrees = 360 * number / (columns * rows)
        row, column = divmod(number, columns)
        canvas.panel(scene.picture(degrees, group), column * width, row * height, "", side_seen(degrees)[1])
    return canvas


def _worst_organs(labels: np.ndarray, reference: np.ndarray, organs: Sequence[Organ]) -> list[Organ]:
    """At most _DETAILS organs, those with the lowest Dice, in the order of their labels."""
    scores = {organ.key: dice(labels == organ.label, reference == organ.label) for organ in organs}
    worst = sorted(organs, key=lambda organ: scores[organ.key])[:_DETAILS]
    return [organ for organ in organs if organ in worst]


def _worst_slice(labels: np.ndarray, reference: np.ndarray, axis: int, organs: Sequence[Organ]) -> int:
    """The slice where most is wrong: each organ's difference counts by its share of the organ's largest cross-section,
    so that a small organ is not lost beside the liver. The best filled slice where nothing is wrong.
    """
    others = tuple(other for other in range(3) if other != axis)
    score = np.zeros(labels.shape[axis])
    for organ in organs:
        one, other = labels == organ.label, reference == organ.label
        largest = np.count_nonzero(one | other, axis=others).max()
        if largest:
            score += np.count_nonzero(one != other, axis=others) / largest
    return int(score.argmax()) if score.any() else busiest_slice(reference, axis, organs)


def _pixel_mm(view: Volume, box: Sequence[tuple[int, int]], axis: int, pixels: int) -> float:
    """Size of a pixel, mm, with which the longer side of the plane has this many pixels."""
    extents = [(stop - start) * step for (start, stop), step in zip(box, view.spacing[::-1], strict=True)]
    return max(extent for position, extent in enumerate(extents) if position != axis) / pixels


def _box_around(view: Volume, mask: np.ndarray, index: int) -> list[tuple[int, int]] | None:
    """The box of a mask (y, x) of the axial slice `index` with some surroundings, square; None without voxels."""
    found = [np.flatnonzero(mask.any(axis=other)) for other in (1, 0)]
    if not found[0].size:
        return None
    steps = view.spacing[1::-1]
    sizes = [(indices[-1] - indices[0] + 1) * step for indices, step in zip(found, steps, strict=True)]
    side = max(sizes) + 2 * _DETAIL_MARGIN_MM
    box = [(index, index + 1)]
    for indices, step, size, count in zip(found, steps, sizes, mask.shape, strict=True):
        margin = round((side - size) / 2 / step)
        box.append((max(0, int(indices[0]) - margin), min(count, int(indices[-1]) + 1 + margin)))
    return box
