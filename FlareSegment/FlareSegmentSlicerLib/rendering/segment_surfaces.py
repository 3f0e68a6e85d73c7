"""Surfaces of segments as Slicer itself would make them, but outside of Slicer's process.

Slicer converts a binary label map to a closed surface in its main thread; for a liver on a fine grid the window stands
still for a second. The worker process makes the very same surfaces with the same VTK filters and settings
(vtkBinaryLabelmapToClosedSurfaceConversionRule in Slicer's source, with its default method), writes them to a file, and
Slicer only has to take them. VTK and numpy are all that is needed here.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from vtkmodules.util import numpy_support
from vtkmodules.vtkCommonCore import VTK_UNSIGNED_CHAR
from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkImageData, vtkPolyData

DEFAULT_SMOOTHING = 0.5


@dataclass(frozen=True)
class Surface:
    """Points (n, 3) and their normals (n, 3), float32, in the space of `organ_surface`'s matrix; triangles (m, 3)."""

    points: np.ndarray
    normals: np.ndarray
    triangles: np.ndarray


def organ_surface(
    mask: np.ndarray, first: Sequence[int], ijk_to_world: np.ndarray, smoothing: float = DEFAULT_SMOOTHING
) -> Surface:
    """The closed surface of a mask.

    Args:
        mask: (z, y, x) bool, a box of a larger grid.
        first: (i, j, k) of the mask's first voxel in that grid.
        ijk_to_world: 4x4 of the larger grid; Slicer's segments are in RAS.
        smoothing: Slicer's smoothing factor, 0 (none) to 1.
    """
    from vtkmodules.vtkCommonMath import vtkMatrix4x4
    from vtkmodules.vtkCommonTransforms import vtkTransform
    from vtkmodules.vtkFiltersCore import vtkPolyDataNormals, vtkWindowedSincPolyDataFilter
    from vtkmodules.vtkFiltersGeneral import vtkDiscreteFlyingEdges3D, vtkTransformPolyDataFilter

    padded = np.pad(mask.astype(np.uint8), 1)
    image = vtkImageData()
    i, j, k = (int(index) - 1 for index in first)
    z, y, x = padded.shape
    image.SetExtent(i, i + x - 1, j, j + y - 1, k, k + z - 1)
    image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(padded.ravel(), array_type=VTK_UNSIGNED_CHAR))
    contour = vtkDiscreteFlyingEdges3D()
    contour.SetInputData(image)
    contour.ComputeGradientsOff()
    contour.ComputeNormalsOff()
    contour.SetValue(0, 1)
    port = contour.GetOutputPort()
    if smoothing > 0:
        smoother = vtkWindowedSincPolyDataFilter()
        smoother.SetInputConnection(port)
        smoother.SetNumberOfIterations(int(20 + smoothing * 40))
        smoother.SetPassBand(10 ** (-4.0 * smoothing))
        smoother.BoundarySmoothingOff()
        smoother.FeatureEdgeSmoothingOff()
        smoother.NonManifoldSmoothingOn()
        smoother.NormalizeCoordinatesOn()
        port = smoother.GetOutputPort()
    matrix = vtkMatrix4x4()
    matrix.DeepCopy(np.asarray(ijk_to_world, float).ravel().tolist())
    transform = vtkTransform()
    transform.SetMatrix(matrix)
    placed = vtkTransformPolyDataFilter()
    placed.SetInputConnection(port)
    placed.SetTransform(transform)
    normals = vtkPolyDataNormals()
    normals.SetInputConnection(placed.GetOutputPort())
    normals.ConsistencyOn()
    normals.SplittingOff()
    normals.Update()
    result = normals.GetOutput()
    if not result.GetNumberOfPolys():
        return Surface(*(np.zeros((0, 3), dtype) for dtype in (np.float32, np.float32, np.int32)))
    return Surface(
        numpy_support.vtk_to_numpy(result.GetPoints().GetData()).astype(np.float32),
        numpy_support.vtk_to_numpy(result.GetPointData().GetNormals()).astype(np.float32),
        numpy_support.vtk_to_numpy(result.GetPolys().GetConnectivityArray()).reshape(-1, 3).astype(np.int32),
    )


def organ_surfaces(
    labels: np.ndarray,
    boxes: Mapping[str, tuple[slice, ...]],
    values: Mapping[str, int],
    ijk_to_world: np.ndarray,
    smoothing: float,
    tick: Callable[[float], None] = lambda fraction: None,
) -> bytes:
    """The surfaces of all organs of a label map (z, y, x), as a file for `read_surfaces`.

    Args:
        boxes: {organ key: its box (z, y, x)}.
        values: {organ key: its label value}.
        tick: called with the share of the work that is done; may raise to stop it.
    """
    arrays: dict[str, np.ndarray] = {}
    for number, (key, box) in enumerate(boxes.items()):
        tick(number / len(boxes))
        first = [extent.start for extent in reversed(box)]
        surface = organ_surface(labels[box] == values[key], first, ijk_to_world, smoothing)
        arrays |= {f"{key}/{name}": array for name, array in vars(surface).items()}
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def read_surfaces(path: str | os.PathLike[str]) -> Iterator[tuple[str, Surface]]:
    """Yield (organ key, surface) of a file of `organ_surfaces`. Raises OSError or ValueError if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in dict.fromkeys(entry.split("/")[0] for entry in file.files):
                yield key, Surface(**{name: file[f"{key}/{name}"] for name in Surface.__dataclass_fields__})
    except (BadZipFile, KeyError) as error:
        raise ValueError(f"{path} holds no surfaces: {error}") from error


def to_polydata(surface: Surface) -> vtkPolyData:
    """The surface as Slicer keeps it in a segment; the arrays are copied."""
    from vtkmodules.vtkCommonCore import vtkPoints

    points = vtkPoints()
    points.SetData(numpy_support.numpy_to_vtk(surface.points, deep=1))
    cells = vtkCellArray()
    cells.SetData(3, numpy_support.numpy_to_vtk(surface.triangles.ravel(), deep=1))
    result = vtkPolyData()
    result.SetPoints(points)
    result.SetPolys(cells)
    normals = numpy_support.numpy_to_vtk(surface.normals, deep=1)
    normals.SetName("Normals")
    result.GetPointData().SetNormals(normals)
    return result
