"""CTs to try FlareSegment with: those of Slicer's own Sample Data module, and a phantom that needs no network."""

from __future__ import annotations

import os
from pathlib import Path

import slicer
import vtk
from slicer.i18n import tr as _
from vtk.util import numpy_support

from FlareSegmentLib import __version__
from FlareSegmentLib.processes import private_folder
from FlareSegmentSlicerLib.scene.file_loading import show_as_ct

PHANTOM = "FlareSegmentTorsoPhantom"
SLICER_SAMPLES = ("CTLiver", "CTAAbdomenPanoramix", "CTACardio")
"""Names of Slicer's own samples that show the upper abdomen (Modules/Scripted/SampleData)."""


def register_sample_data() -> None:
    """Add the torso phantom to the Sample Data module: for its button, and for `SampleData.downloadSample`."""
    import SampleData

    class PhantomSource(SampleData.SampleDataSource):
        """A file that is made when somebody asks where to download it from."""

        @property
        def uris(self) -> list[str]:
            return [_phantom_file().as_uri()]

        @uris.setter
        def uris(self, uris: list[str]) -> None:
            pass

        def __str__(self) -> str:
            return PHANTOM

    source = PhantomSource(
        sampleName=PHANTOM,
        sampleDescription=_("Torso phantom"),
        uris=[""],
        fileNames=[f"{PHANTOM}-{__version__}.nrrd"],
        nodeNames=[_("Torso phantom")],
        customDownloader=lambda source=None: [add_phantom()],
    )
    if not SampleData.SampleDataLogic.isSampleDataSourceRegistered("FlareSegment", source):
        slicer.modules.sampleDataSources.setdefault("FlareSegment", []).append(source)


def can_load(name: str) -> bool:
    """Whether this Slicer knows where to get a sample: the phantom is made here, others are Slicer's own."""
    if name == PHANTOM:
        return True
    import SampleData

    SampleData.SampleDataLogic()  # registers Slicer's own samples
    known = getattr(slicer.modules, "sampleDataSources", {})
    return any(source.sampleName == name for sources in known.values() for source in sources)


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
    show_as_ct(node)
    return node


def _phantom_file() -> Path:
    """The phantom as a file among Slicer's temporary ones, made where it is not there yet."""
    from FlareSegmentLib.phantom.torso import make_phantom

    file = Path(slicer.app.temporaryPath) / f"{PHANTOM}-{__version__}.nrrd"
    if not file.is_file():
        volume, _labels = make_phantom()
        image = vtk.vtkImageData()
        image.SetDimensions(volume.array.shape[::-1])
        image.GetPointData().SetScalars(numpy_support.numpy_to_vtk(volume.array.ravel()))
        node = slicer.vtkMRMLScalarVolumeNode()
        node.SetAndObserveImageData(image)
        node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(volume.affine_ras))
        with private_folder(file.parent) as private:
            storage = slicer.vtkMRMLNRRDStorageNode()
            storage.SetFileName(str(Path(private) / file.name))
            if not storage.WriteData(node):
                raise OSError(f"{file} cannot be written")
            os.replace(storage.GetFileName(), file)
    return file
