"""The MRML side without Qt: the scene, the application logic and the logics of Slicer's loadable modules."""

from __future__ import annotations

import importlib.util
import os
import tempfile
from pathlib import Path

LOGIC_CLASSES = {
    "Cameras": "vtkSlicerCamerasModuleLogic",
    "Colors": "vtkMRMLColorLogic",
    "CropVolume": "vtkSlicerCropVolumeLogic",
    "Data": "vtkSlicerDataModuleLogic",
    "Markups": "vtkSlicerMarkupsLogic",
    "Models": "vtkSlicerModelsLogic",
    "Plots": "vtkSlicerPlotsLogic",
    "Segmentations": "vtkSlicerSegmentationsModuleLogic",
    "Sequences": "vtkSlicerSequencesLogic",
    "SubjectHierarchy": "vtkSlicerSubjectHierarchyModuleLogic",
    "Tables": "vtkSlicerTablesLogic",
    "Terminologies": "vtkSlicerTerminologiesModuleLogic",
    "Texts": "vtkSlicerTextsLogic",
    "Transforms": "vtkSlicerTransformLogic",
    "Units": "vtkSlicerUnitsLogic",
    "VolumeRendering": "vtkSlicerVolumeRenderingLogic",
    "Volumes": "vtkSlicerVolumesLogic",
}


def share_directory() -> Path | None:
    """Folder with Slicer's terminology and preset files, taken from the trame-slicer wheel; None without it.

    The package itself is never imported: it would bring its own application.
    """
    spec = importlib.util.find_spec("trame_slicer")
    return Path(spec.origin).parent / "resources" if spec and spec.origin else None


class MrmlCore:
    """The scene `slicer.mrmlScene`, its singletons, and the logics by module name (`logics["Volumes"]`)."""

    def __init__(self):
        import slicer
        import vtk
        import vtkmodules.vtkInteractionStyle
        import vtkmodules.vtkRenderingContextOpenGL2
        import vtkmodules.vtkRenderingFreeType
        import vtkmodules.vtkRenderingOpenGL2
        import vtkmodules.vtkRenderingVolumeOpenGL2  # noqa: F401

        self.scene = slicer.mrmlScene = slicer.vtkMRMLScene()
        crosshair = slicer.vtkMRMLCrosshairNode()
        crosshair.SetCrosshairName("default")
        self.scene.AddNode(crosshair)
        for class_name in ("vtkMRMLSelectionNode", "vtkMRMLInteractionNode"):
            node = self.scene.CreateNodeByClass(class_name)
            node.UnRegister(None)
            node.SetSingletonTag("Singleton")
            self.scene.AddNode(node)
        self.application_logic = slicer.vtkSlicerApplicationLogic()
        self.application_logic.SetMRMLScene(self.scene)
        self.application_logic.GetColorLogic().SetMRMLScene(self.scene)
        self.application_logic.GetColorLogic().AddDefaultColorNodes()
        self.application_logic.SetSliceLogics(vtk.vtkCollection())
        self.application_logic.SetViewLogics(vtk.vtkCollection())
        for factory in (
            slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(),
            slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(),
        ):
            factory.SetMRMLApplicationLogic(self.application_logic)

        self.logics = {}
        for name, class_name in LOGIC_CLASSES.items():
            self.add_logic(name, getattr(slicer, class_name)())
        slicer.vtkMRMLSliceNode.AddDefaultSliceOrientationPresets(self.scene, True)
        self._set_up_data_io()

    def add_logic(self, name, logic):
        """Register a module logic with the scene and the application."""
        share = share_directory()
        if share is not None and hasattr(logic, "SetModuleShareDirectory"):
            logic.SetModuleShareDirectory(str(share / "terminologies" if name == "Terminologies" else share))
        logic.SetMRMLScene(self.scene)
        logic.SetMRMLApplicationLogic(self.application_logic)
        self.application_logic.SetModuleLogic(name, logic)
        self.logics[name] = logic

    def _set_up_data_io(self):
        """Without the remote and data input/output logics a .mrb bundle does not load."""
        import slicer

        self._cache = tempfile.TemporaryDirectory(prefix="SlicerHostCache")
        self._remote_io = slicer.vtkMRMLRemoteIOLogic()
        self._remote_io.SetMRMLScene(self.scene)
        self._remote_io.SetMRMLApplicationLogic(self.application_logic)
        self._remote_io.GetCacheManager().SetRemoteCacheDirectory(self._cache.name)
        self._data_io = slicer.vtkDataIOManagerLogic()
        self._data_io.SetMRMLScene(self.scene)
        self._data_io.SetMRMLApplicationLogic(self.application_logic)
        self._data_io.SetAndObserveDataIOManager(self._remote_io.GetDataIOManager())
        self._remote_io.AddDataIOToScene()


def prefer_off_screen_rendering():
    """Without an X server VTK would first try one and warn; it must be told before the first render window."""
    if os.name == "posix" and "DISPLAY" not in os.environ:
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")
