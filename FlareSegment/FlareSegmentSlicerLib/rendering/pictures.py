"""Two pictures of a result for people to look at: slices with the organs' outlines, and the organs in 3D.

Drawn with VTK and SimpleITK alone, without a window, a display or the scene, so that the headless script and the
tests can use them. The slices need no OpenGL; the 3D picture does, and `surfaces_png` raises `RenderingUnavailable`
on a machine that has none.

Both follow the radiological convention: the patient's right is on the left of the picture (but for the view from
behind).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np

from FlareSegmentLib.organs import ORGANS, Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.rendering.drawing import (
    FAINT,
    LEVEL_HU,
    SIDES,
    TEXT,
    WIDTH_HU,
    Canvas,
    box_to_show,
    busiest_slice,
    draw_plane,
    position_text,
)
from FlareSegmentSlicerLib.rendering.renderer_process import RendererProcess
from FlareSegmentSlicerLib.rendering.surfaces import NO_OPENGL, OrganView
from FlareSegmentSlicerLib.rendering.surfaces import RenderingUnavailable as RenderingUnavailable

_CANVAS_WIDTH = 1680
_LEGEND_WIDTH = 270
_GAP = 14
_AXIAL_LEVELS = 5
_VIEW_SIZE = (_CANVAS_WIDTH - _LEGEND_WIDTH - 3 * _GAP) // 2, 680
_VIEW_DEGREES = (0, 180)


def slices_png(path: str | os.PathLike, volume: Volume, labels: np.ndarray, organs: Sequence[Organ] = ORGANS) -> None:
    """Write a picture of the CT with the organs' outlines: three planes through the organs, and axial levels from top
    to bottom.

    volume: CT in HU; labels: uint8 (z, y, x) on the volume's grid, values of `organs`. The window is level 40, width
    400 HU. Planes are those of the voxel grid nearest to axial, coronal and sagittal, drawn in true proportion. The
    file is written whole or not at all; raises OSError where it cannot be.
    """
    view, order = volume.to_lps_view()
    label_view = order.apply(labels)
    box = box_to_show(view, label_view)
    planes = [busiest_slice(label_view, axis, organs) for axis in range(3)]
    extents = [
        (stop - start) * step for (start, stop), step in zip(box, view.spacing[::-1], strict=True)
    ]  # z, y, x in mm

    width_mm = 2 * extents[2] + extents[1]
    row_width = _CANVAS_WIDTH - _LEGEND_WIDTH - 4 * _GAP
    pixel_mm = max(width_mm / (row_width - _GAP), max(extents[:2]) / 620)
    small_mm = max(_AXIAL_LEVELS * extents[2] / (_CANVAS_WIDTH - (_AXIAL_LEVELS + 1) * _GAP), extents[1] / 330)
    large = [draw_plane(view, label_view, organs, box, axis, planes[axis], pixel_mm) for axis in range(3)]
    levels = [draw_plane(view, label_view, organs, box, 0, index, small_mm) for index in _axial_levels(label_view)]

    top = 70
    large_height = max(max(image.shape[0] for image in large), 330)
    small_top = top + large_height + 44
    small_height = max(image.shape[0] for image in levels)
    canvas = Canvas(_CANVAS_WIDTH, small_top + small_height + 40)
    canvas.heading(volume)

    column = _GAP
    spare = (row_width - _GAP - sum(image.shape[1] for image in large)) // 2
    for axis, (name, image) in enumerate(zip(("Axial", "Coronal", "Sagittal"), large, strict=True)):
        canvas.panel(image, column, top, f"{name}, {position_text(view, axis, planes[axis])}", SIDES[axis])
        if axis == 0:
            canvas.scale_bar(column + 14, top + image.shape[0] - 16, 50 / pixel_mm, "5 cm")
        column += image.shape[1] + _GAP + spare
    canvas.legend(_CANVAS_WIDTH - _LEGEND_WIDTH, top + 10, volume, labels, organs)

    width = max(image.shape[1] for image in levels)
    stride = (_CANVAS_WIDTH - _GAP - len(levels) * width - _GAP) // max(len(levels) - 1, 1) + width
    for position, (index, image) in enumerate(zip(_axial_levels(label_view), levels, strict=True)):
        canvas.panel(
            image,
            _GAP + position * min(stride, width + 60),
            small_top,
            f"Axial, {position_text(view, 0, index)}",
            SIDES[0],
        )
    canvas.text(
        _GAP,
        canvas.height - 28,
        f"Window: level {LEVEL_HU:g}, width {WIDTH_HU:g} HU. Patient's right is on the left of each picture.",
        17,
        FAINT,
    )
    canvas.write(path)


def request_surfaces(
    renderer: RendererProcess, volume: Volume, labels: np.ndarray, organs: Sequence[Organ] = ORGANS
) -> None:
    """Have a process draw what `surfaces_png`, given it too, puts together; it works meanwhile."""
    renderer.request(volume, labels, organs, _VIEW_SIZE, _VIEW_DEGREES)


def surfaces_png(
    path: str | os.PathLike,
    volume: Volume,
    labels: np.ndarray,
    organs: Sequence[Organ] = ORGANS,
    renderer: RendererProcess | None = None,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Write a picture of the organs in 3D, from the front and from behind.

    Surfaces are smoothed for the eye; volumes in the legend are those of the voxels. Arguments as of `slices_png`;
    with a renderer, after `request_surfaces`, that process draws. tick: called after each organ that is drawn here.
    Raises RenderingUnavailable, or OSError where the file cannot be written.
    """
    view_width, view_height = _VIEW_SIZE
    canvas = Canvas(_CANVAS_WIDTH, 70 + view_height + 44)
    canvas.heading(volume)
    canvas.legend(_CANVAS_WIDTH - _LEGEND_WIDTH, 80, volume, labels, organs)
    if renderer is not None:
        try:
            images, pixel_mm, empty = renderer.answer()
        except OSError as error:
            raise RenderingUnavailable(NO_OPENGL) from error
    else:
        with OrganView(view_width, view_height) as view:
            for organ in organs:
                view.add_organs(volume, labels, [organ])
                tick()
            pixel_mm = view.fit()
            images = [view.picture(degrees) for degrees in _VIEW_DEGREES]
            empty = view.empty

    for position, (name, sides, image) in enumerate(
        zip(("From the front", "From behind"), ("RLSI", "LRSI"), images, strict=True)
    ):
        canvas.panel(image, _GAP + position * (view_width + _GAP), 70, name, sides)
    if empty:
        canvas.text(_GAP + view_width, 70 + view_height // 2, "No organ was found", 24, TEXT, "center")
    else:
        canvas.scale_bar(_GAP + 14, 70 + view_height - 16, 50 / pixel_mm, "5 cm")
    canvas.write(path)


def _axial_levels(labels: np.ndarray) -> list[int]:
    """Slices from the organs' top to their bottom without the tips; of the whole volume where there is no organ."""
    rows = np.flatnonzero(labels.any(axis=(1, 2)))
    low, high = (rows[0], rows[-1]) if rows.size else (0, labels.shape[0] - 1)
    shares = (np.arange(_AXIAL_LEVELS) + 0.6) / (_AXIAL_LEVELS + 0.2)
    return [round(high - share * (high - low)) for share in shares]
