"""Files into the scene with the reading of `segment`: damaged ones and what is no CT are refused in one line, and a CT
is shown in the abdomen's window.

A Slicer has dialogs of its own for that. The panel offers these where they are missing, as in the embedded Slicer.
"""

from __future__ import annotations

import os
from pathlib import Path

import slicer


def slicer_loads_files() -> bool:
    """Whether this Slicer has a dialog that loads files."""
    return hasattr(slicer.app.ioManager(), "openAddDataDialog")


def show_as_ct(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> None:
    """Show a volume in the slice views, in the usual window of abdominal CT."""
    from FlareSegmentSlicerLib.rendering.drawing import LEVEL_HU, WIDTH_HU

    volumeNode.CreateDefaultDisplayNodes()
    volumeNode.GetDisplayNode().SetAutoWindowLevel(False)
    volumeNode.GetDisplayNode().SetWindowLevel(WIDTH_HU, LEVEL_HU)
    slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)


def load_ct(path: str | os.PathLike[str]) -> tuple[slicer.vtkMRMLScalarVolumeNode, list[str]]:
    """Add a CT, a file or a DICOM folder, to the scene and show it.

    Returns:
        The node and warnings for the user.

    Raises:
        InputError: it cannot be read, or is no CT; the scene stays as it is.
    """
    from FlareSegmentLib.files.image_io import check_is_ct, read_volume

    volume, warnings = read_volume(path)
    warnings = [*warnings, *check_is_ct(volume)]
    node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name=_stem(path))
    show_as_ct(node)
    return node, warnings


def load_reference(
    path: str | os.PathLike[str],
) -> slicer.vtkMRMLSegmentationNode | slicer.vtkMRMLLabelMapVolumeNode:
    """Add a segmentation, of Slicer (.seg.nrrd) or a label map, to the scene.

    Raises:
        InputError: it cannot be read, or is no label map; the scene stays as it is.
    """
    from FlareSegmentLib.files.image_io import read_labels

    labels = read_labels(path)
    if str(path).lower().endswith(".seg.nrrd"):
        return slicer.util.loadSegmentation(str(path))
    return slicer.util.addVolumeFromArray(
        labels.array, ijkToRAS=labels.affine_ras, name=_stem(path), nodeClassName="vtkMRMLLabelMapVolumeNode"
    )


def _stem(path: str | os.PathLike[str]) -> str:
    """The file's name without its ending."""
    from FlareSegmentLib.files.image_io import file_type

    name = Path(path).name
    return name[: len(name) - len(file_type(path) or "")]
