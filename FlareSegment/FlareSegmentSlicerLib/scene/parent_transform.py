"""A CT as the scene shows it: what the transform that it lies under does to the patient's axes.

People put a wrongly oriented CT right with a transform and do not harden it. The network must see the patient as the
views do, or it takes left for right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from FlareSegmentLib.volume import Volume

_TILT_DEGREES = 15.0
_SCALE = 0.02
_BEND_MM = 2.0


@dataclass(frozen=True)
class Pose:
    """How a CT lies in the scene.

    Attributes:
        turn: 4x4, the whole-axis turns, mirroring among them, nearest to what the transform does in RAS; without shift.
        warnings: what else the transform does that the result does not follow, for the user.
    """

    turn: np.ndarray
    warnings: Sequence[str] = ()

    @property
    def is_turned(self) -> bool:
        """Whether the axes lie otherwise than the CT's own geometry says."""
        return not np.array_equal(self.turn, np.eye(4))

    def turned(self, volume: Volume) -> Volume:
        """The same voxels with their axes as in the scene."""
        if not self.is_turned:
            return volume
        return Volume.from_ijk_to_ras(volume.array, self.turn @ volume.affine_ras, volume.name)

    def back(self, surface: vtk.vtkPolyData) -> vtk.vtkPolyData:
        """A surface of the turned volume in the CT's own RAS."""
        if not self.is_turned:
            return surface
        transform = vtk.vtkTransform()
        transform.SetMatrix(self.turn.T.ravel().tolist())
        moved = vtk.vtkTransformPolyDataFilter()
        moved.SetTransform(transform)
        moved.SetInputData(surface)
        moved.Update()
        if np.linalg.det(self.turn) > 0:
            return moved.GetOutput()
        outside = vtk.vtkReverseSense()
        outside.SetInputConnection(moved.GetOutputPort())
        outside.ReverseCellsOn()
        outside.ReverseNormalsOn()
        outside.Update()
        return outside.GetOutput()


def pose_in_scene(volumeNode: slicer.vtkMRMLScalarVolumeNode, volume: Volume) -> Pose:
    """How the transforms above a CT turn it; `volume` is the CT in its own geometry."""
    parent = volumeNode.GetParentTransformNode()
    if parent is None:
        return Pose(np.eye(4))
    points, moved = _sampled(parent, volume)
    fit = np.linalg.lstsq(np.column_stack([points, np.ones(len(points))]), moved, rcond=None)[0]
    left, stretch, right = np.linalg.svd(fit[:3].T)
    rotation = left @ right
    whole = max(_whole_turns(float(np.linalg.det(rotation))), key=lambda turn: float(np.trace(rotation @ turn.T)))
    turn = np.eye(4)
    turn[:3, :3] = whole
    pose = Pose(turn)
    name, said = parent.GetName(), []
    if pose.is_turned:
        said.append(_("{name} turns or mirrors the CT: organs were found as it lies in the scene.").format(name=name))
    tilt = float(np.degrees(np.arccos(np.clip((np.trace(rotation @ whole.T) - 1) / 2, -1, 1))))
    if tilt > _TILT_DEGREES:
        text = _("{name} tilts the CT by {degrees:.0f} degrees, which the network did not see.")
        said.append(text.format(name=name, degrees=tilt))
    if float(np.abs(stretch - 1).max()) > _SCALE:
        text = _("{name} scales the CT by {low:.2f} to {high:.2f}: volumes and sizes are those without it.")
        said.append(text.format(name=name, low=stretch.min(), high=stretch.max()))
    residual = np.column_stack([points, np.ones(len(points))]) @ fit - moved
    bend = float(np.linalg.norm(residual, axis=1).max())
    if bend > _BEND_MM:
        text = _("{name} bends the CT by up to {bend:.0f} mm: organs were found and measured without that.")
        said.append(text.format(name=name, bend=bend))
    return replace(pose, warnings=tuple(said))


def _sampled(parent: slicer.vtkMRMLTransformNode, volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Places of the volume on a coarse grid, RAS, and where they lie in the scene."""
    to_world = vtk.vtkGeneralTransform()
    parent.GetTransformToWorld(to_world)
    size = np.array(volume.array.shape[::-1]) - 1
    indices = np.array(list(product((0.0, 0.25, 0.5, 0.75, 1.0), repeat=3))) * size
    points = indices @ volume.affine_ras[:3, :3].T + volume.affine_ras[:3, 3]
    return points, np.array([to_world.TransformPoint(point.tolist()) for point in points])


def _whole_turns(determinant: float) -> list[np.ndarray]:
    """The 24 signed permutation matrices of the determinant's sign."""
    turns = []
    for order in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            turn = np.zeros((3, 3))
            turn[range(3), order] = signs
            if np.linalg.det(turn) * determinant > 0:
                turns.append(turn)
    return turns
