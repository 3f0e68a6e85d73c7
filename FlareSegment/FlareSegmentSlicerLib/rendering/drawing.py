"""How a CT's slices and the words beside them become pixels: shared by the pictures of a result, its videos and the
evaluation's report.

Arrays in, arrays out: SimpleITK resamples, VTK's FreeType writes the text; no window, display, OpenGL or scene is
needed, while Slicer's ScreenCapture takes the views of a main window, and matplotlib is not in Slicer's Python. All
pictures follow the radiological convention: the patient's right is on the left.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.measures.organ_statistics import organ_boxes, touches_border
from FlareSegmentLib.measures.result_table import volume_text
from FlareSegmentLib.organs import Organ, picture_color
from FlareSegmentLib.volume import Volume

LEVEL_HU, WIDTH_HU = 40.0, 400.0  # the usual window of abdominal CT
BACKGROUND = (18, 20, 24)
PANEL = (0, 0, 0)
TEXT = (232, 234, 238)
FAINT = (150, 156, 166)
LETTER = (255, 214, 102)
REFERENCE = (70, 225, 255)
"""Color of a reference's outlines: none of the organs' colors."""
DISCLAIMER = "Not for clinical use"
_GAP = 14
_AROUND_ORGANS_MM = 45.0
_JPEG_QUALITY = 82

# Slices -------------------------------------------------------------------------------------------

SIDES = ("RLAP", "RLSI", "APSI")  # left, right, top and bottom of an axial, coronal and sagittal panel


def box_to_show(view: Volume, labels: np.ndarray) -> list[tuple[int, int]]:
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


def busiest_slice(labels: np.ndarray, axis: int, organs: Sequence[Organ]) -> int:
    """The slice where most organs are seen well: each counts by its share of its own largest cross-section."""
    score = np.zeros(labels.shape[axis])
    others = tuple(other for other in range(3) if other != axis)
    boxes = organ_boxes(labels, organs)
    for organ in organs:
        if organ.key in boxes:
            box = boxes[organ.key]
            area = np.count_nonzero(labels[box] == organ.label, axis=others)
            score[box[axis]] += np.sqrt(area / area.max())
    return int(score.argmax()) if score.any() else labels.shape[axis] // 2


def position_text(view: Volume, axis: int, index: int) -> str:
    """Where a slice lies, as Slicer's slice views say it: the RAS coordinate with its letter."""
    middle = [(size - 1) / 2 for size in view.array.shape[::-1]]
    middle[2 - axis] = index
    lps = view.affine_lps @ np.append(middle, 1)
    coordinate, letters = (lps[2], "SI") if axis == 0 else (-lps[1], "AP") if axis == 1 else (-lps[0], "RL")
    return f"{letters[0] if coordinate >= 0 else letters[1]} {abs(coordinate):.0f} mm"


def draw_plane(
    view: Volume,
    labels: np.ndarray,
    organs: Sequence[Organ],
    box: list[tuple[int, int]],
    axis: int,
    index: int,
    pixel_mm: float,
    reference: np.ndarray | None = None,
) -> np.ndarray:
    """One slice of the LPS view with the organs' outlines, uint8 (rows, columns, 3).

    It is seen from the feet (axis 0), from the front (1) or from the patient's left (2). Organs are tinted; with a
    reference, its outlines run around theirs in the color REFERENCE, and what differs is tinted instead: missed parts
    in that color, parts too many in the organ's.

    Args:
        labels, reference: uint8 (z, y, x) on the view's grid, values of `organs`.
        box: (start, stop) along z, y and x of what is shown.
    """
    rows, columns = [other for other in range(3) if other != axis]
    cut: list = [slice(start, stop) for start, stop in box]
    cut[axis] = index
    upright = slice(None, None, -1 if rows == 0 else 1)  # coronal and sagittal pictures have the head at the top
    plane, marks = view.array[tuple(cut)][upright].astype(np.float32), labels[tuple(cut)][upright]
    wanted = None if reference is None else reference[tuple(cut)][upright]
    steps = view.spacing[2 - rows], view.spacing[2 - columns]
    fine_mm = pixel_mm / 2  # drawn twice as large and averaged, so that outlines are smooth
    shape = [2 * max(1, round(size * step / pixel_mm)) for size, step in zip(plane.shape, steps, strict=True)]

    gray = _resample(plane, steps, shape, fine_mm)
    gray = np.clip((gray - (LEVEL_HU - WIDTH_HU / 2)) / WIDTH_HU, 0, 1) * 255
    picture = np.repeat(gray[..., None], 3, axis=2)
    for organ in organs:
        mask = marks == organ.label
        truth_mask = np.zeros_like(mask) if wanted is None else wanted == organ.label
        part = _part_around(mask | truth_mask, steps, shape, fine_mm)
        if part is None:
            continue
        color, pixels = np.array(picture_color(organ), np.float32), picture[part]
        inside = _resample(mask.astype(np.float32), steps, shape, fine_mm, part) >= 0.5
        if wanted is None:
            pixels[inside] = 0.78 * pixels[inside] + 0.22 * color
        else:
            truth = _resample(truth_mask.astype(np.float32), steps, shape, fine_mm, part) >= 0.5
            for difference, tint in ((inside & ~truth, color), (truth & ~inside, np.array(REFERENCE, np.float32))):
                pixels[difference] = 0.6 * pixels[difference] + 0.4 * tint
            pixels[~_eroded(~truth, 3) & ~truth] = REFERENCE
        pixels[inside & ~_eroded(inside, 3)] = color
    averaged = (picture[::2, ::2] + picture[1::2, ::2] + picture[::2, 1::2] + picture[1::2, 1::2]) / 4
    return np.rint(averaged).astype(np.uint8)


def _part_around(
    mask: np.ndarray, steps: Sequence[float], shape: Sequence[int], pixel_mm: float
) -> tuple[slice, slice] | None:
    """The pixels in which a mask of voxels and its outlines lie, or None without voxels; arguments of `_resample`."""
    part = []
    for axis, (step, count) in enumerate(zip(steps, shape, strict=True)):
        found = np.flatnonzero(mask.any(axis=1 - axis))
        if not found.size:
            return None
        margin = step + 5 * pixel_mm
        start, stop = found[0] * step - margin, (found[-1] + 1) * step + margin
        part.append(slice(max(0, int(start / pixel_mm)), min(count, int(stop / pixel_mm) + 1)))
    return part[0], part[1]


def _resample(
    plane: np.ndarray,
    steps: Sequence[float],
    shape: Sequence[int],
    pixel_mm: float,
    part: tuple[slice, slice] | None = None,
) -> np.ndarray:
    """The (rows, columns) plane with voxels of `steps` mm on pixels of `pixel_mm`, linear, edges aligned with edges.

    part: the rows and columns of the result that are wanted; all by default.
    """
    rows, columns = part or (slice(0, shape[0]), slice(0, shape[1]))
    image = sitk.GetImageFromArray(np.ascontiguousarray(plane))
    image.SetSpacing([float(steps[1]), float(steps[0])])
    corner = [(pixel_mm - step) / 2 for step in (steps[1], steps[0])]
    resampler = sitk.ResampleImageFilter()
    resampler.SetSize([int(columns.stop - columns.start), int(rows.stop - rows.start)])
    resampler.SetOutputSpacing([pixel_mm, pixel_mm])
    resampler.SetOutputOrigin([corner[0] + columns.start * pixel_mm, corner[1] + rows.start * pixel_mm])
    resampler.SetInterpolator(sitk.sitkLinear)
    resampler.UseNearestNeighborExtrapolatorOn()
    return sitk.GetArrayFromImage(resampler.Execute(image))


def _eroded(mask: np.ndarray, pixels: int) -> np.ndarray:
    """The mask without its outermost pixels; the picture's border does not erode it."""
    for _ in range(pixels):
        padded = np.pad(mask, 1, mode="edge")
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


# Canvas -------------------------------------------------------------------------------------------


class Canvas:
    """An RGB picture that panels and text are put on.

    Attributes:
        pixels: uint8 (rows, columns, 3); row 0 is at the top.
    """

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.empty((height, width, 3), np.uint8)
        self.pixels[:] = BACKGROUND
        self.height = height

    def text(
        self,
        x: int,
        y: int,
        text: str,
        size: int,
        color: Sequence[int] = TEXT,
        anchor: str = "left",
        bold: bool = False,
    ) -> None:
        """Write one line, shaded off from what lies below: its top at y, its left end, center or right end at x."""
        ink = np.pad(_rendered_text(text, size, bold), 2)
        rows, columns = ink.shape
        left = x - {"left": 2, "center": columns // 2, "right": columns - 2}[anchor]
        top, first = max(0, y), max(0, left)
        target = self.pixels[top : y + rows, first : left + columns]
        within = slice(top - y, top - y + target.shape[0]), slice(first - left, first - left + target.shape[1])
        halo = ink
        for axis in (0, 1):  # the largest of a square is that of its rows' largest
            halo = np.max([np.roll(halo, shift, axis) for shift in (-2, -1, 0, 1, 2)], axis=0)
        shaded = target * (1 - 0.75 * halo[within][..., None])
        cover = ink[within][..., None]
        target[:] = np.rint(shaded * (1 - cover) + np.array(color) * cover)

    def rectangle(self, x: int, y: int, width: int, height: int, color: Sequence[int]) -> None:
        self.pixels[max(0, y) : y + height, max(0, x) : x + width] = color

    def panel(self, image: np.ndarray, x: int, y: int, title: str, sides: Sequence[str]) -> None:
        """Put a picture with its title and the letters of its left, right, top and bottom side."""
        rows, columns = image.shape[:2]
        self.pixels[y : y + rows, x : x + columns] = image[:, : self.pixels.shape[1] - x]
        size = 19 if columns > 340 else 15
        self.text(x + 8, y + 6, title, size - 2, FAINT)
        middle = y + rows // 2 - size // 2
        self.text(x + 8, middle, sides[0], size, LETTER, bold=True)
        self.text(x + columns - 8, middle, sides[1], size, LETTER, "right", bold=True)
        self.text(x + columns // 2, y + 6 + size, sides[2], size, LETTER, "center", bold=True)
        self.text(x + columns // 2, y + rows - size - 8, sides[3], size, LETTER, "center", bold=True)

    def heading(self, volume: Volume) -> None:
        """The case's name, and what the picture must not be used for."""
        name = volume.name or "CT"
        name = name if len(name) <= 70 else name[:69] + "..."
        self.text(_GAP, 18, name, 28, TEXT, bold=True)
        right = self.pixels.shape[1] - _GAP
        self.text(right, 14, f"FlareSegment  |  {DISCLAIMER}", 19, FAINT, "right")
        size = " x ".join(str(value) for value in volume.array.shape[::-1])
        spacing = " x ".join(f"{value:.3g}" for value in volume.spacing)
        self.text(right, 40, f"{size} voxels of {spacing} mm", 16, FAINT, "right")

    def legend(self, x: int, y: int, volume: Volume, labels: np.ndarray, organs: Sequence[Organ]) -> None:
        """Color, name and volume of every organ."""
        boxes = organ_boxes(labels, organs)
        stride = min(66, (self.height - y) // len(organs))
        for organ in organs:
            self.rectangle(x, y, 22, 22, picture_color(organ))
            self.text(x + 34, y - 1, organ.name, 20)
            amount = "not found"
            if organ.key in boxes:
                voxels = np.count_nonzero(labels[boxes[organ.key]] == organ.label)
                cut = touches_border(boxes[organ.key], labels.shape)
                amount = f"{volume_text(voxels * volume.voxel_volume_ml, cut, 0)} mL"
            self.text(x + 34, y + 24, amount, 18, FAINT)
            y += stride

    def scale_bar(self, x: int, y: int, length: float, text: str) -> None:
        self.rectangle(x, y, round(length), 4, TEXT)
        self.text(x, y - 24, text, 16)

    def write(self, path: str | os.PathLike) -> None:
        """As PNG or JPEG, as the path ends; the file appears whole or not at all. Raises OSError."""
        path = Path(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".picture-") as private:
            partial = Path(private) / f"picture{path.suffix}"
            if path.suffix == ".png":
                image = sitk.GetImageFromArray(self.pixels, isVector=True)
                try:
                    sitk.WriteImage(image, str(partial), useCompression=True)
                except RuntimeError as error:
                    raise OSError(None, why_not_written(path.parent, error)) from error
            else:
                partial.write_bytes(_jpeg(self.pixels))
            os.replace(partial, path)


def _jpeg(pixels: np.ndarray) -> bytes:
    """A picture (rows, columns, 3) as JPEG, made in memory: writing to a full disk, libjpeg ends the whole process."""
    from vtkmodules.util.numpy_support import numpy_to_vtk, vtk_to_numpy
    from vtkmodules.vtkCommonDataModel import vtkImageData
    from vtkmodules.vtkIOImage import vtkJPEGWriter

    image = vtkImageData()
    image.SetDimensions(pixels.shape[1], pixels.shape[0], 1)
    from_below = np.ascontiguousarray(pixels[::-1]).reshape(-1, 3)
    image.GetPointData().SetScalars(numpy_to_vtk(from_below, deep=True))
    writer = vtkJPEGWriter()
    writer.SetInputData(image)
    writer.SetQuality(_JPEG_QUALITY)
    writer.WriteToMemoryOn()
    writer.Write()
    return vtk_to_numpy(writer.GetResult()).tobytes()


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
