"""Writes a result as Slicer saves it: a segmentation with names, colors and terminology."""

from __future__ import annotations

from pathlib import Path

import slicer
from vtkmodules.util.numpy_support import numpy_to_vtk
from vtkmodules.vtkCommonDataModel import vtkImageData

from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.files.file_headers import packed_completely
from FlareSegmentLib.files.itk_reading import quiet_itk
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.scene.segmentation_nodes import create_segmentation


def write_segmentation(path: Path, labels: Volume) -> None:
    """Save the organs of a label map, FlareSegment's values, as a file that Slicer opens as a segmentation.

    The scene is used meanwhile and left as it was: call it from the main thread. Raises OSError.
    """
    # Its grid is all that is wanted of the scan's node, so the labels themselves, not copied, serve as its voxels.
    image = vtkImageData()
    image.SetDimensions(*labels.array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(labels.array.reshape(-1)))
    volume_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", labels.name)
    volume_node.SetAndObserveImageData(image)
    volume_node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(labels.affine_ras))
    segmentation_node = create_segmentation(volume_node, labels.array)
    try:
        with quiet_itk():
            saved = slicer.util.saveNode(segmentation_node, str(path), {"useCompression": 1})
        if not saved or not packed_completely(path):  # the writer may not notice a full disk
            raise OSError(None, why_not_written(path.parent, RuntimeError("a file came out incomplete")))
    finally:
        slicer.mrmlScene.RemoveNode(segmentation_node)
        slicer.mrmlScene.RemoveNode(volume_node)
