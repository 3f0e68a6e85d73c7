"""Two pictures of a result for people to look at: slices with the organs' outlines, and the organs in 3D.

Drawn with VTK and SimpleITK alone, without a window, a display or the scene, so that the headless script and the
tests can use them. The slices need no OpenGL; the 3D picture does, and `surfaces_png` raises `RenderingUnavailable`
on a machine that has none.

Both follow the radiological convention: the patient's right is on the left of the picture (but for the view from
behind).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.organs import ORGANS, Organ
from FlareSegmentLib.volume import Volume

_LEVEL_HU, _WIDTH_HU = 40.0, 400.0  # the usual window of abdominal CT
_BACKGROUND = (18, 20, 24)
_PANEL = (0, 0, 0)
_TEXT = (232, 234, 238)
_FAINT = (150, 156, 166)
_LETTER = (255, 214, 102)
_CANVAS_WIDTH = 1680
_LEGEND_WIDTH = 270
_GAP = 14
_DISCLAIMER = "Not for clinical use"
_AXIAL_LEVELS = 5
_AROUND_ORGANS_MM = 45.0
_SURFACE_MM = 2.0


class RenderingUnavailable(FlareSegmentError):
    """This machine has no OpenGL that VTK can draw with."""


def slices_png(path: str | os.PathLike, volume: Volume, labels: np.ndarray, organs: Sequence[Organ] = ORGANS) -> None:
    """Write a picture of the CT with the organs' outlines: three planes through the organs, and axial levels from top
    to bottom.

    volume: CT in HU; labels: uint8 (z, y, x) on the volume's grid, values of `organs`. The window is level 40, width
    400 HU. Planes are those of the voxel grid nearest to axial, coronal and sagittal, drawn in true proportion. The
    file is written whole or not at all; raises OSError where it cannot be.
    """
    view, order = volume.to_lps_view()
    label_view = order.apply(labels)
    box = _box_to_show(view, label_view)
    planes = [_busiest_slice(label_view, axis, organs) for axis in range(3)]
    extents = [
        (stop - start) * step for (start, stop), step in zip(box, view.spacing[::-1], strict=True)
    ]  # z, y, x in mm

    width_mm = 2 * extents[2] + extents[1]
    row_width = _CANVAS_WIDTH - _LEGEND_WIDTH - 4 * _GAP
    pixel_mm = max(width_mm / (row_width - _GAP), max(extents[:2]) / 620)
    small_mm = max(_AXIAL_LEVELS * extents[2] / (_CANVAS_WIDTH - (_AXIAL_LEVELS + 1) * _GAP), extents[1] / 330)
    large = [_draw_plane(view, label_view, organs, box, axis, planes[axis], pixel_mm) for axis in range(3)]
    levels = [_draw_plane(view, label_view, organs, box, 0, index, small_mm) for index in _axial_levels(label_view)]

    top = 70
    large_height = max(max(image.shape[0] for image in large), 330)
    small_top = top + large_height + 44
    small_height = max(image.shape[0] for image in levels)
    canvas = _Canvas(_CANVAS_WIDTH, small_top + small_height + 40)
    canvas.heading(volume)

    column = _GAP
    spare = (row_width - _GAP - sum(image.shape[1] for image in large)) // 2
    for axis, (name, image) in enumerate(zip(("Axial", "Coronal", "Sagittal"), large, strict=True)):
        canvas.panel(image, column, top, f"{name}, {_position(view, axis, planes[axis])}", _SIDES[axis])
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
            f"Axial, {_position(view, 0, index)}",
            _SIDES[0],
        )
    canvas.text(
        _GAP,
        canvas.height - 28,
        f"Window: level {_LEVEL_HU:g}, width {_WIDTH_HU:g} HU. Patient's right is on the left of each picture.",
        17,
        _FAINT,
    )
    canvas.write(path)


def surfaces_png(path: str | os.PathLike, volume: Volume, labels: np.ndarray, organs: Sequence[Organ] = ORGANS) -> None:
    """Write a picture of the organs in 3D, from the front and from behind.

    Surfaces are smoothed for the eye; volumes in the legend are those of the voxels. Arguments as of `slices_png`.
    Raises RenderingUnavailable, or OSError where the file cannot be written.
    """
    _require_opengl()
    from vtkmodules import vtkRenderingOpenGL2  # noqa: F401  the factory's implementation of the classes below
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkRenderingCore import (
        vtkActor,
        vtkLightKit,
        vtkPolyDataMapper,
        vtkRenderer,
        vtkRenderWindow,
        vtkWindowToImageFilter,
    )

    actors = []
    for organ in organs:
        surface = _surface(volume, labels == organ.label)
        if surface is None:
            continue
        mapper = vtkPolyDataMapper()
        mapper.SetInputData(surface)
        mapper.ScalarVisibilityOff()
        actor = vtkActor()
        actor.SetMapper(mapper)
        actor.GetProperty().SetColor(*(value / 255 for value in organ.color))
        actor.GetProperty().SetSpecular(0.25)
        actor.GetProperty().SetSpecularPower(25)
        actors.append(actor)

    view_width, view_height = (_CANVAS_WIDTH - _LEGEND_WIDTH - 3 * _GAP) // 2, 680
    window = vtkRenderWindow()
    window.SetOffScreenRendering(1)
    window.SetMultiSamples(8)
    window.SetSize(view_width, view_height)
    renderer = vtkRenderer()
    renderer.SetBackground(*(value / 255 for value in _PANEL))
    window.AddRenderer(renderer)
    for actor in actors:
        renderer.AddActor(actor)
    lights = vtkLightKit()
    lights.AddLightsToRenderer(renderer)
    camera = renderer.GetActiveCamera()
    camera.ParallelProjectionOn()

    images = []
    for toward_viewer in (-1, 1):  # anterior, posterior: y runs to the back
        camera.SetFocalPoint(0, 0, 0)
        camera.SetPosition(0, toward_viewer, 0)
        camera.SetViewUp(0, 0, 1)
        if actors:
            renderer.ResetCamera()
            _fit(camera, renderer, view_width / view_height)
        window.Render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(window)
        grab.ReadFrontBufferOff()
        grab.Update()
        pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        images.append(pixels.reshape(view_height, view_width, -1)[::-1, :, :3].copy())
    window.Finalize()

    canvas = _Canvas(_CANVAS_WIDTH, 70 + view_height + 44)
    canvas.heading(volume)
    for position, (name, sides, image) in enumerate(
        zip(("From the front", "From behind"), ("RLSI", "LRSI"), images, strict=True)
    ):
        canvas.panel(image, _GAP + position * (view_width + _GAP), 70, name, sides)
    if actors:
        canvas.scale_bar(_GAP + 14, 70 + view_height - 16, 50 * view_height / (2 * camera.GetParallelScale()), "5 cm")
    else:
        canvas.text(_GAP + view_width, 70 + view_height // 2, "No organ was found", 24, _TEXT, "center")
    canvas.legend(_CANVAS_WIDTH - _LEGEND_WIDTH, 80, volume, labels, organs)
    canvas.write(path)


# Slices -------------------------------------------------------------------------------------------

_SIDES = ("RLAP", "RLSI", "APSI")  # left, right, top and bottom of an axial, coronal and sagittal panel


def _box_to_show(view: Volume, labels: np.ndarray) -> list[tuple[int, int]]:
    """The part worth drawing, (start, stop) along z, y and x.

    Across, the body without the air around it; in height, the organs and their surroundings.
    """
    coarse = tuple(max(1, round(4.0 / step)) for step in view.spacing[::-1])
    body = view.array[tuple(slice(None, None, step) for step in coarse)] > -250
    box = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        where = np.flatnonzero(body.mean(axis=others) > 0.03) * coarse[axis]
        margin = round(12 / view.spacing[2 - axis])
        organ = np.flatnonzero(labels.any(axis=others))
        if axis == 0 and organ.size:
            margin, where = round(_AROUND_ORGANS_MM / view.spacing[2]), organ
        elif axis == 0:
            where = np.array([])
        start = min([*where[:1], *organ[:1]], default=0) - margin
        stop = max([*where[-1:], *organ[-1:]], default=labels.shape[axis]) + margin + 1
        box.append((max(0, int(start)), min(labels.shape[axis], int(stop))))
    return box


def _busiest_slice(labels: np.ndarray, axis: int, organs: Sequence[Organ]) -> int:
    """The slice where most organs are seen well: each counts by its share of its own largest cross-section."""
    score = np.zeros(labels.shape[axis])
    for organ in organs:
        area = np.count_nonzero(labels == organ.label, axis=tuple(other for other in range(3) if other != axis))
        if area.any():
            score += np.sqrt(area / area.max())
    return int(score.argmax()) if score.any() else labels.shape[axis] // 2


def _axial_levels(labels: np.ndarray) -> list[int]:
    """Slices from the organs' top to their bottom without the tips; of the whole volume where there is no organ."""
    rows = np.flatnonzero(labels.any(axis=(1, 2)))
    low, high = (rows[0], rows[-1]) if rows.size else (0, labels.shape[0] - 1)
    shares = (np.arange(_AXIAL_LEVELS) + 0.6) / (_AXIAL_LEVELS + 0.2)
    return [round(high - share * (high - low)) for share in shares]


def _position(view: Volume, axis: int, index: int) -> str:
    """Where a slice lies, as Slicer's slice views say it: the RAS coordinate with its letter."""
    middle = [(size - 1) / 2 for size in view.array.shape[::-1]]
    middle[2 - axis] = index
    lps = view.affine_lps @ np.append(middle, 1)
    coordinate, letters = (lps[2], "SI") if axis == 0 else (-lps[1], "AP") if axis == 1 else (-lps[0], "RL")
    return f"{letters[0] if coordinate >= 0 else letters[1]} {abs(coordinate):.0f} mm"


def _draw_plane(
    view: Volume,
    labels: np.ndarray,
    organs: Sequence[Organ],
    box: list[tuple[int, int]],
    axis: int,
    index: int,
    pixel_mm: float,
) -> np.ndarray:
    """One slice of the LPS view with the organs' outlines, uint8 (rows, columns, 3).

    It is seen from the feet (axis 0), from the front (1) or from the patient's left (2).
    """
    rows, columns = [other for other in range(3) if other != axis]
    cut: list = [slice(start, stop) for start, stop in box]
    cut[axis] = index
    plane, marks = view.array[tuple(cut)].astype(np.float32), labels[tuple(cut)]
    if rows == 0:  # coronal and sagittal pictures have the head at the top
        plane, marks = plane[::-1], marks[::-1]
    steps = view.spacing[2 - rows], view.spacing[2 - columns]
    fine_mm = pixel_mm / 2  # drawn twice as large and averaged, so that outlines are smooth
    shape = [2 * max(1, round(size * step / pixel_mm)) for size, step in zip(plane.shape, steps, strict=True)]

    gray = _resample(plane, steps, shape, fine_mm)
    gray = np.clip((gray - (_LEVEL_HU - _WIDTH_HU / 2)) / _WIDTH_HU, 0, 1) * 255
    picture = np.repeat(gray[..., None], 3, axis=2)
    for organ in organs:
        mask = marks == organ.label
        if not mask.any():
            continue
        inside = _resample(mask.astype(np.float32), steps, shape, fine_mm) >= 0.5
        core = inside
        for _ in range(3):
            core = _eroded(core)
        color = np.array(organ.color, np.float32)
        picture[core] = 0.78 * picture[core] + 0.22 * color
        picture[inside & ~core] = color
    averaged = picture.reshape(shape[0] // 2, 2, shape[1] // 2, 2, 3).mean(axis=(1, 3))
    return np.rint(averaged).astype(np.uint8)


def _resample(plane: np.ndarray, steps: Sequence[float], shape: Sequence[int], pixel_mm: float) -> np.ndarray:
    """The (rows, columns) plane with voxels of `steps` mm on pixels of `pixel_mm`, linear, edges aligned with edges."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(plane))
    image.SetSpacing([float(steps[1]), float(steps[0])])
    origin = [(pixel_mm - step) / 2 for step in (steps[1], steps[0])]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(shape[1]), int(shape[0])])
    resampler.SetOutputSpacing([pixel_mm, pixel_mm])
    resampler.SetOutputOrigin(origin)
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(resampler.Execute(image))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """The mask without its outermost pixels; the picture's border does not erode it."""
    padded = np.pad(mask, 1, mode="edge")
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


# Surfaces -----------------------------------------------------------------------------------------


def _surface(volume: Volume, mask: np.ndarray):
    """vtkPolyData of a mask (z, y, x) in LPS mm with normals, or None for an empty mask.

    The mask is blurred in millimeters on an isotropic grid before it is contoured: smoothing a surface of thick
    slices would keep their steps.
    """
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkCommonMath import vtkMatrix4x4
    from vtkmodules.vtkCommonTransforms import vtkTransform
    from vtkmodules.vtkFiltersCore import vtkFlyingEdges3D, vtkPolyDataNormals
    from vtkmodules.vtkFiltersGeneral import vtkTransformPolyDataFilter

    found = [np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis))) for axis in range(3)]
    if not found[0].size:
        return None
    inner = mask[tuple(slice(int(indices[0]), int(indices[-1]) + 1) for indices in found)]
    spacing = np.array(volume.spacing)
    sigma = max(3.0, 0.8 * float(spacing.max()))
    # Along the volume's own axes in mm: the corner of the padded crop, then a margin for the blur.
    corner = (np.array([int(indices[0]) for indices in found[::-1]]) - 1) * spacing
    image = sitk.GetImageFromArray(np.pad(inner, 1).astype(np.float32))
    image.SetSpacing(spacing.tolist())
    margin = 3 * sigma
    size = np.ceil((np.array(image.GetSize()) * spacing + 2 * margin) / _SURFACE_MM).astype(int)
    grid = sitk.ResampleImageFilter()
    grid.SetSize(size.tolist())
    grid.SetOutputSpacing(3 * [_SURFACE_MM])
    grid.SetOutputOrigin(3 * [-margin])
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(grid.Execute(image), sigma))

    field = vtkImageData()
    field.SetDimensions(size.tolist())
    field.SetSpacing(3 * [_SURFACE_MM])
    field.SetOrigin(*(corner - margin))
    field.GetPointData().SetScalars(numpy_to_vtk(smooth.ravel(), deep=True))
    contour = vtkFlyingEdges3D()
    contour.SetInputData(field)
    contour.SetValue(0, 0.5)
    contour.ComputeNormalsOff()
    contour.ComputeScalarsOff()
    matrix = vtkMatrix4x4()
    for row in range(3):
        for column in range(3):
            matrix.SetElement(row, column, float(volume.direction[row, column]))
        matrix.SetElement(row, 3, volume.origin[row])
    placement = vtkTransform()
    placement.SetMatrix(matrix)
    place = vtkTransformPolyDataFilter()
    place.SetInputConnection(contour.GetOutputPort())
    place.SetTransform(placement)
    normals = vtkPolyDataNormals()
    normals.SetInputConnection(place.GetOutputPort())
    normals.SplittingOff()
    normals.AutoOrientNormalsOn()
    normals.Update()
    return normals.GetOutput()


def _fit(camera, renderer, aspect: float) -> None:
    """Fill the view with the organs' box, seen along y."""
    left, right, _, _, bottom, top = renderer.ComputeVisiblePropBounds()
    camera.SetParallelScale(1.12 * max((top - bottom) / 2, (right - left) / 2 / aspect))


_PROBE = """
from vtkmodules import vtkRenderingOpenGL2
from vtkmodules.vtkRenderingCore import vtkRenderer, vtkRenderWindow
window = vtkRenderWindow()
window.SetOffScreenRendering(1)
window.AddRenderer(vtkRenderer())
window.Render()
print("rendered")
"""


@cache
def _opengl_works() -> bool:
    """Whether VTK can render here, asked of another process: without OpenGL, VTK may end the process it runs in."""
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return probe.returncode == 0 and "rendered" in probe.stdout


def _require_opengl() -> None:
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
    if not _opengl_works():
        raise RenderingUnavailable(
            "No 3D picture was made: this machine has no OpenGL. "
            "Install a graphics driver or Mesa (Debian: libegl1, libgl1-mesa-dri)."
        )


# Canvas -------------------------------------------------------------------------------------------


class _Canvas:
    """An RGB picture that panels and text are put on; row 0 is at the top."""

    def __init__(self, width: int, height: int) -> None:
        self._pixels = np.empty((height, width, 3), np.uint8)
        self._pixels[:] = _BACKGROUND
        self.height = height

    def text(
        self,
        x: int,
        y: int,
        text: str,
        size: int,
        color: Sequence[int] = _TEXT,
        anchor: str = "left",
        bold: bool = False,
    ) -> None:
        """Write one line, shaded off from what lies below: its top at y, its left end, center or right end at x."""
        ink = np.pad(_rendered_text(text, size, bold), 2)
        rows, columns = ink.shape
        left = x - {"left": 2, "center": columns // 2, "right": columns - 2}[anchor]
        top, first = max(0, y), max(0, left)
        target = self._pixels[top : y + rows, first : left + columns]
        within = slice(top - y, top - y + target.shape[0]), slice(first - left, first - left + target.shape[1])
        halo = np.max([np.roll(ink, shift, (0, 1)) for shift in product((-2, -1, 0, 1, 2), repeat=2)], axis=0)
        shaded = target * (1 - 0.75 * halo[within][..., None])
        cover = ink[within][..., None]
        target[:] = np.rint(shaded * (1 - cover) + np.array(color) * cover)

    def rectangle(self, x: int, y: int, width: int, height: int, color: Sequence[int]) -> None:
        self._pixels[max(0, y) : y + height, max(0, x) : x + width] = color

    def panel(self, image: np.ndarray, x: int, y: int, title: str, sides: str) -> None:
        """Put a picture with its title and the letters of its left, right, top and bottom side."""
        rows, columns = image.shape[:2]
        self._pixels[y : y + rows, x : x + columns] = image[:, : self._pixels.shape[1] - x]
        size = 19 if columns > 340 else 15
        self.text(x + 8, y + 6, title, size - 2, _FAINT)
        middle = y + rows // 2 - size // 2
        self.text(x + 8, middle, sides[0], size, _LETTER, bold=True)
        self.text(x + columns - 8, middle, sides[1], size, _LETTER, "right", bold=True)
        self.text(x + columns // 2, y + 6 + size, sides[2], size, _LETTER, "center", bold=True)
        self.text(x + columns // 2, y + rows - size - 8, sides[3], size, _LETTER, "center", bold=True)

    def heading(self, volume: Volume) -> None:
        """The case's name, and what the picture must not be used for."""
        name = volume.name or "CT"
        name = name if len(name) <= 70 else name[:69] + "..."
        self.text(_GAP, 18, name, 28, _TEXT, bold=True)
        right = self._pixels.shape[1] - _GAP
        self.text(right, 14, f"FlareSegment  |  {_DISCLAIMER}", 19, _FAINT, "right")
        size = " x ".join(str(value) for value in volume.array.shape[::-1])
        spacing = " x ".join(f"{value:.3g}" for value in volume.spacing)
        self.text(right, 40, f"{size} voxels of {spacing} mm", 16, _FAINT, "right")

    def legend(self, x: int, y: int, volume: Volume, labels: np.ndarray, organs: Sequence[Organ]) -> None:
        """Color, name and volume of every organ."""
        counts = np.bincount(labels.ravel(), minlength=256)
        stride = min(66, (self.height - y) // len(organs))
        for organ in organs:
            self.rectangle(x, y, 22, 22, organ.color)
            self.text(x + 34, y - 1, organ.name, 20)
            amount = counts[organ.label] * volume.voxel_volume_ml
            self.text(x + 34, y + 24, f"{amount:,.0f} mL" if counts[organ.label] else "not found", 18, _FAINT)
            y += stride

    def scale_bar(self, x: int, y: int, length: float, text: str) -> None:
        self.rectangle(x, y, round(length), 4, _TEXT)
        self.text(x, y - 24, text, 16)

    def write(self, path: str | os.PathLike) -> None:
        """As PNG; the file appears whole or not at all."""
        path = Path(path)
        image = sitk.GetImageFromArray(self._pixels, isVector=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".picture-") as private:
            partial = Path(private) / "picture.png"
            try:
                sitk.WriteImage(image, str(partial), useCompression=True)
            except RuntimeError as error:
                raise OSError(f"{path} could not be written") from error
            os.replace(partial, path)


@cache
def _rendered_text(text: str, size: int, bold: bool) -> np.ndarray:
    """How much ink lies on each pixel, 0 to 1, of a line of text drawn by FreeType (no OpenGL needed)."""
    from vtkmodules import vtkRenderingFreeType  # noqa: F401  the implementation of vtkTextRenderer
    from vtkmodules.util.numpy_support import vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkRenderingCore import vtkTextProperty, vtkTextRenderer

    style = vtkTextProperty()
    style.SetFontFamilyToArial()
    style.SetFontSize(size)
    style.SetBold(bold)
    style.SetColor(1, 1, 1)
    image, used = vtkImageData(), [0, 0]
    renderer = vtkTextRenderer.GetInstance()
    dots_per_inch = 72
    if not text or not renderer.RenderString(style, text, image, used, dots_per_inch, vtkTextRenderer.FreeType):
        return np.zeros((1, 1), np.float32)
    columns, rows, _ = image.GetDimensions()
    pixels = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
    return pixels[: used[1], : used[0], 3][::-1].astype(np.float32) / 255
