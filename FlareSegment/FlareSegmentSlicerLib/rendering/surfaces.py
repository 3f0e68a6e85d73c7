"""Organs in 3D: surfaces of label maps and their pictures, drawn off-screen with VTK alone.

Shared by the picture and the video of a result and by the evaluation's report. Rendering needs OpenGL; everything
here raises `RenderingUnavailable` on a machine that has none.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from typing import Self

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.measures.organ_statistics import organ_boxes
from FlareSegmentLib.organs import Organ, picture_color
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.rendering.drawing import PANEL

_BODY_COLOR = (214, 204, 196)


NO_OPENGL = (
    "No 3D picture was made: this machine has no OpenGL. "
    "Install a graphics driver or Mesa (Debian: libegl1, libgl1-mesa-dri)."
)


class RenderingUnavailable(FlareSegmentError):
    """This machine has no OpenGL that VTK can draw with."""


class OrganView:
    """An off-screen 3D view in parallel projection, for as many pictures of the same surfaces as wanted.

    Use it as a context manager: the window is given back at the end. Raises RenderingUnavailable.

    Args:
        width, height: pixels of a picture.
        quick: for many pictures, without smoothing their edges: without a graphics card three times as fast.
        probe: ask another process first whether there is OpenGL; without it VTK may end the process.
    """

    def __init__(self, width: int, height: int, quick: bool = False, probe: bool = True) -> None:
        if probe:
            require_opengl()
        else:
            prefer_off_screen()
        from vtkmodules import vtkRenderingOpenGL2  # noqa: F401  the factory's implementation of the classes below
        from vtkmodules.vtkRenderingCore import vtkLightKit, vtkRenderer, vtkRenderWindow

        self._window = vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetMultiSamples(0 if quick else 8)
        self._renderer = vtkRenderer()
        self._renderer.SetUseOIT(False)
        self._renderer.SetBackground(*(value / 255 for value in PANEL))
        self._window.AddRenderer(self._renderer)
        vtkLightKit().AddLightsToRenderer(self._renderer)
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._actors: dict[str, list] = {}
        self.restart(width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._window.Finalize()

    def restart(self, width: int, height: int) -> None:
        """Show nothing, in pictures of this size: quicker than another view, whose graphics would be compiled anew."""
        for actor in (actor for actors in self._actors.values() for actor in actors):
            self._renderer.RemoveActor(actor)
        self._actors = {}
        self._center, self._reach = np.zeros(3), 1.0
        self._size = width, height
        self._window.SetSize(width, height)

    @property
    def empty(self) -> bool:
        """Whether nothing is shown."""
        return not self._actors

    def add_organs(self, volume: Volume, labels: np.ndarray, organs: Sequence[Organ], group: str = "") -> None:
        """Show the organs of a label map, uint8 (z, y, x) on the volume's grid, in their colors.

        group: name by which `picture` can show them alone.
        """
        boxes = organ_boxes(labels, organs)
        for organ in organs:
            if organ.key in boxes:
                box = boxes[organ.key]
                self.add(surface(volume.part(box), labels[box] == organ.label), picture_color(organ), group=group)

    def add_body(self, geometry) -> None:
        """Show a closed surface, vtkPolyData in LPS mm or None, as a faint shell around the organs: its far side behind
        them, its near side hardly veiling them.
        """
        for side, opacity in (("far", 0.3), ("near", 0.08)):
            style = self.add(geometry, _BODY_COLOR, opacity)
            if style is not None:  # one layer of each side needs no sorting by depth
                style.SetFrontfaceCulling(side == "far")
                style.SetBackfaceCulling(side == "near")
                style.SetAmbient(0.35)

    def add(self, geometry, color: Sequence[int], opacity: float = 1.0, group: str = ""):
        """Show a surface, vtkPolyData in LPS mm; returns its vtkProperty, or None where there is no surface."""
        from vtkmodules.vtkRenderingCore import vtkActor, vtkPolyDataMapper

        if geometry is None:
            return None
        mapper = vtkPolyDataMapper()
        mapper.SetInputData(geometry)
        mapper.ScalarVisibilityOff()
        actor = vtkActor()
        actor.SetMapper(mapper)
        style = actor.GetProperty()
        style.SetColor(*(value / 255 for value in color))
        style.SetOpacity(opacity)
        style.SetSpecular(0.25 if opacity == 1 else 0)
        style.SetSpecularPower(25)
        self._renderer.AddActor(actor)
        self._actors.setdefault(group, []).append(actor)
        return style

    def fit(self, turning: bool = False) -> float:
        """Fill the view with everything shown and return mm per pixel.

        turning: leave room for a full turn about the body's long axis; otherwise the view is fitted as seen from the
        front or from behind.
        """
        width, height = self._size
        if self.empty:
            return 2 / height
        bounds = np.array(self._renderer.ComputeVisiblePropBounds()).reshape(3, 2)
        self._center = bounds.mean(axis=1)
        extent = bounds[:, 1] - bounds[:, 0]
        self._reach = float(np.linalg.norm(extent))
        across = math.hypot(extent[0], extent[1]) / 1.12 if turning else extent[0]
        scale = 1.12 * max(extent[2] / 2, across / 2 * height / width)
        self._renderer.GetActiveCamera().SetParallelScale(scale)
        return 2 * scale / height

    def picture(self, degrees: float, group: str | None = None) -> np.ndarray:
        """What is seen from this side, uint8 (height, width, 3): 0 from the front, 90 from the patient's left, 180 from
        behind; the head is up.

        group: show only this one; the place and scale that `fit` chose stay.
        """
        from vtkmodules.util.numpy_support import vtk_to_numpy
        from vtkmodules.vtkRenderingCore import vtkWindowToImageFilter

        for name, actors in self._actors.items():
            for actor in actors:
                actor.SetVisibility(group in (None, name))
        toward_viewer = np.array([math.sin(math.radians(degrees)), -math.cos(math.radians(degrees)), 0])  # LPS
        camera = self._renderer.GetActiveCamera()
        camera.SetFocalPoint(*self._center)
        camera.SetPosition(*(self._center + 2 * self._reach * toward_viewer))
        camera.SetViewUp(0, 0, 1)
        self._renderer.ResetCameraClippingRange()
        self._window.Render()
        grab = vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.ShouldRerenderOff()  # it would draw everything once more
        grab.Update()
        width, height = self._size
        pixels = vtk_to_numpy(grab.GetOutput().GetPointData().GetScalars())
        return pixels.reshape(height, width, -1)[::-1, :, :3].copy()


def side_seen(degrees: float) -> tuple[str, tuple[str, str, str, str]]:
    """From where one looks, and the letters at the picture's left, right, top and bottom; two letters, as in DICOM's
    patient orientation, where one looks from between two sides.
    """
    eighth = round(degrees / 45) % 8
    names = ("the front", "the front left", "the left", "behind, left", "behind", "behind, right", "the right")
    edges = ("R", "RA", "A", "AL", "L", "LP", "P", "PR")
    return f"From {(*names, 'the front right')[eighth]}", (edges[eighth], edges[(eighth + 4) % 8], "S", "I")


def surface(volume: Volume, mask: np.ndarray, grid_mm: float = 2.0):
    """vtkPolyData of a mask (z, y, x) in LPS mm with normals, or None for an empty mask.

    The mask is blurred in millimeters on an isotropic grid of `grid_mm` before it is contoured: smoothing a surface of
    thick slices would keep their steps.
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
    sigma = max(1.5 * grid_mm, 0.8 * float(spacing.max()))
    # Along the volume's own axes in mm: the corner of the padded crop, then a margin for the blur.
    corner = (np.array([int(indices[0]) for indices in found[::-1]]) - 1) * spacing
    image = sitk.GetImageFromArray(np.pad(inner, 1).astype(np.float32))
    image.SetSpacing(spacing.tolist())
    margin = 3 * sigma
    size = np.ceil((np.array(image.GetSize()) * spacing + 2 * margin) / grid_mm).astype(int)
    grid = sitk.ResampleImageFilter()
    grid.SetSize(size.tolist())
    grid.SetOutputSpacing(3 * [grid_mm])
    grid.SetOutputOrigin(3 * [-margin])
    smooth = sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(grid.Execute(image), sigma))

    field = vtkImageData()
    field.SetDimensions(size.tolist())
    field.SetSpacing(3 * [grid_mm])
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


def prefer_off_screen() -> None:
    """Have VTK draw without a display where there is none."""
    if sys.platform == "linux" and not os.environ.get("DISPLAY"):
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


def require_opengl() -> None:
    """Raise RenderingUnavailable where VTK cannot draw.

    A window of Slicer is drawn by the same VTK: whoever sees it need not wait for a second Python that tries.
    """
    if _slicer_draws():
        return
    prefer_off_screen()
    if not _opengl_works():
        raise RenderingUnavailable(NO_OPENGL)


def _slicer_draws() -> bool:
    application = getattr(sys.modules.get("slicer"), "app", None)
    return application is not None and application.layoutManager() is not None
