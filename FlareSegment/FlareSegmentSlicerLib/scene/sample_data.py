"""CTs to try FlareSegment with: those of Slicer's own Sample Data module, and a phantom that needs no network."""

from __future__ import annotations

import slicer
from slicer.i18n import tr as _

PHANTOM = "FlareSegmentTorsoPhantom"
SLICER_SAMPLES = ("CTLiver", "CTAAbdomenPanoramix", "CTACardio")
"""Names of Slicer's own samples that show the upper abdomen (Modules/Scripted/SampleData)."""


def register_sample_data() -> None:
    """Add the torso phantom to the Sample Data module."""
    import SampleData

    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="FlareSegment",
        sampleName=PHANTOM,
        uris=[],
        fileNames=[],
        customDownloader=lambda source=None: [add_phantom()],
    )


def load_sample(name: str) -> slicer.vtkMRMLScalarVolumeNode | None:
    """Add a sample to the scene: the phantom, or one of Slicer's, which is downloaded once."""
    if name == PHANTOM:
        return add_phantom()
    import SampleData

    return SampleData.downloadSample(name)


def add_phantom() -> slicer.vtkMRMLScalarVolumeNode:
    """Add the built-in torso phantom to the scene, shown in the slice views."""
    from FlareSegmentLib.phantom.torso import make_phantom

    volume, _labels = make_phantom()
    node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name=_("Torso phantom"))
    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=node, fit=True)
    return node
