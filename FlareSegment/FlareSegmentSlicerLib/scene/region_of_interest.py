"""A region of interest of the scene as a part of a CT's voxels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.volume import Volume

CONTEXT_MM = 40.0
"""The networks see this much around the region: they tell organs by what lies beside them."""


@dataclass(frozen=True)
class Region:
    """Which voxels are looked at, and in which of them organs are kept.

    Attributes:
        seen: (z, y, x) part of the CT.
        kept: (z, y, x) part of what is seen.
    """

    seen: tuple[slice, slice, slice]
    kept: tuple[slice, slice, slice]

    def crop(self, volume: Volume) -> Volume:
        """What is seen of the CT, without copying it."""
        return volume.part(self.seen)


def region_of_interest(
    volumeNode: slicer.vtkMRMLScalarVolumeNode, volume: Volume, roiNode: slicer.vtkMRMLMarkupsROINode
) -> Region:
    """The voxels of the smallest box along the CT's axes that holds the region, whatever its turn and transforms.

    Raises InputError for a region without size or beside the CT.
    """
    name = roiNode.GetName()
    size = np.array(roiNode.GetSize())
    if not np.all(size > 0):
        raise InputError(_("The region {name} has no size: draw it in the views first.").format(name=name))
    to_world = slicer.util.arrayFromVTKMatrix(roiNode.GetObjectToWorldMatrix())
    to_volume = vtk.vtkGeneralTransform()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(None, volumeNode.GetParentTransformNode(), to_volume)
    to_index = np.linalg.inv(volume.affine_ras)
    world = [(to_world @ [*(size / 2 * side), 1])[:3] for side in product((-1, 1), repeat=3)]
    corners = [to_volume.TransformPoint(*corner) for corner in world]
    indices = (to_index @ np.column_stack([corners, np.ones(8)]).T)[:3].T[:, ::-1]  # z, y, x
    seen, kept = [], []
    for axis, count in enumerate(volume.array.shape):
        low, high = indices[:, axis].min() + 0.5, indices[:, axis].max() + 0.5  # from centers to edges of voxels
        start, stop = (int(np.clip(round(edge), 0, count)) for edge in (low, high))
        if start >= stop:
            raise InputError(
                _("The region {name} lies outside of {volume}.").format(name=name, volume=volumeNode.GetName())
            )
        margin = round(CONTEXT_MM / volume.spacing[2 - axis])
        first, last = max(0, start - margin), min(count, stop + margin)
        seen.append(slice(first, last))
        kept.append(slice(start - first, stop - first))
    return Region(tuple(seen), tuple(kept))
