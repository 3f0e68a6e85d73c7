"""`slicer.app.coreIOManager()`: reads and writes nodes by file type for `slicer.util.load*` and `save*`."""

from __future__ import annotations

import os

import slicer
import vtk
from PyQt5.QtCore import QObject, pyqtSignal

_FILE_TYPES = {
    "SegmentationFile": (".seg.nrrd", ".seg.nhdr", ".seg.vtm"),
    "MarkupsFile": (".mrk.json", ".fcsv"),
    "VolumeFile": (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".hdr", ".img"),
    "ModelFile": (".vtk", ".vtp", ".stl", ".ply", ".obj"),
    "TransformFile": (".h5", ".tfm", ".mat", ".txt"),
    "TableFile": (".csv", ".tsv"),
    "ColorTableFile": (".ctbl",),
    "TextFile": (".json", ".xml", ".log"),
    "SceneFile": (".mrml", ".mrb"),
}
_NODE_CLASSES = {
    "ColorTableFile": "vtkMRMLColorTableNode",
    "ModelFile": "vtkMRMLModelNode",
    "TableFile": "vtkMRMLTableNode",
    "TextFile": "vtkMRMLTextNode",
    "TransformFile": "vtkMRMLLinearTransformNode",
}


class qSlicerCoreIOManager(QObject):
    newFileLoaded = pyqtSignal(object)
    fileSaved = pyqtSignal(object)
    SIGNALS = {
        "newFileLoaded(qSlicerIO::IOProperties)": "newFileLoaded",
        "fileSaved(qSlicerIO::IOProperties)": "fileSaved",
    }

    def fileType(self, file):
        name = str(file).lower()
        for file_type, suffixes in _FILE_TYPES.items():
            if name.endswith(suffixes):
                return file_type
        return "NoFile"

    def registeredFileReaderCount(self, fileType):
        return int(fileType in _FILE_TYPES)

    def registeredFileWriterCount(self, fileType):
        return int(fileType in _FILE_TYPES)

    def loadNodes(self, fileType, parameters, loadedNodes=None, userMessages=None):
        path = str(parameters["fileName"])
        if not os.path.exists(path):
            _report(userMessages, f"File not found: {path}")
            return False
        if fileType == "SceneFile":
            return self.loadScene(path, parameters.get("clear", False), userMessages)
        name = parameters.get("name") or self._base_name(path)
        if fileType == "VolumeFile":
            node = self._load_volume(path, name, parameters)
        elif fileType == "SegmentationFile":
            node = self._load_segmentation(path, name)
        elif fileType == "MarkupsFile":
            node = slicer.mrmlScene.GetNodeByID(slicer.app.moduleLogic("Markups").LoadMarkups(path, name) or "")
        elif fileType in _NODE_CLASSES:
            node = self._load_with_storage_node(_NODE_CLASSES[fileType], path, name)
        else:
            _report(userMessages, f"No reader for file type {fileType}: {path}")
            return False
        if node is None:
            _report(userMessages, f"Failed to read {path} as {fileType}")
            return False
        if loadedNodes is not None:
            loadedNodes.AddItem(node)
        self.newFileLoaded.emit({**parameters, "fileType": fileType, "nodeIDs": (node.GetID(),)})
        return True

    def loadScene(self, fileName, clear=True, userMessages=None):
        scene = slicer.mrmlScene
        if fileName.lower().endswith(".mrb"):
            return bool(scene.ReadFromMRB(fileName, clear, userMessages))
        scene.SetURL(fileName)
        return bool(scene.Connect(userMessages) if clear else scene.Import(userMessages))

    def saveNodes(self, fileType, parameters, userMessages=None, scene=None):
        scene = scene or slicer.mrmlScene
        path = str(parameters["fileName"])
        if fileType == "SceneFile":
            if path.lower().endswith(".mrb"):
                return bool(scene.WriteToMRB(path, None, userMessages))
            scene.SetURL(path)
            scene.SetRootDirectory(os.path.dirname(path))
            return bool(scene.Commit(path, userMessages))
        node = scene.GetNodeByID(parameters["nodeID"])
        storage = node.GetStorageNode()
        if storage is None:
            storage = node.CreateDefaultStorageNode()
            scene.AddNode(storage)
            node.SetAndObserveStorageNodeID(storage.GetID())
        if not storage.GetSupportedFileExtension(path, False, True) and fileType != "NoFile":
            _report(userMessages, f"{node.GetName()} cannot be written to {path}")
            return False
        storage.SetFileName(path)
        if "useCompression" in parameters:
            storage.SetUseCompression(parameters["useCompression"])
        if not storage.WriteData(node):
            _report(userMessages, f"Failed to write {path}")
            return False
        self.fileSaved.emit(dict(parameters))
        return True

    def fileWriterFileType(self, node, extension=""):
        written = {
            "SegmentationFile": "vtkMRMLSegmentationNode",
            "VolumeFile": "vtkMRMLVolumeNode",
            "MarkupsFile": "vtkMRMLMarkupsNode",
            **_NODE_CLASSES,
        }
        for file_type, class_name in written.items():
            if node.IsA(class_name):
                return file_type
        if node.IsA("vtkMRMLTransformNode"):
            return "TransformFile"
        return "NoFile"

    def _base_name(self, path):
        name = os.path.basename(path)
        suffixes = [s for group in _FILE_TYPES.values() for s in group if name.lower().endswith(s)]
        return name[: -max(map(len, suffixes))] if suffixes else os.path.splitext(name)[0]

    def _load_volume(self, path, name, parameters):
        label_map = bool(parameters.get("labelmap"))
        options = (1 if label_map else 0) + (8 if parameters.get("singleFile") else 0)
        node = slicer.app.moduleLogic("Volumes").AddArchetypeVolume(path, name, options)
        if node is not None and parameters.get("show", True):
            selection = slicer.app.applicationLogic().GetSelectionNode()
            if label_map:
                selection.SetActiveLabelVolumeID(node.GetID())
            else:
                selection.SetActiveVolumeID(node.GetID())
            slicer.app.applicationLogic().PropagateVolumeSelection()
        return node

    def _load_segmentation(self, path, name):
        if self.fileType(path) == "SegmentationFile":
            return slicer.app.moduleLogic("Segmentations").LoadSegmentationFromFile(path, True, name)
        labels = slicer.app.moduleLogic("Volumes").AddArchetypeVolume(path, name, 1)
        if labels is None:
            return None
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
        node.CreateDefaultDisplayNodes()
        slicer.vtkSlicerSegmentationsModuleLogic.ImportLabelmapToSegmentationNode(labels, node)
        slicer.mrmlScene.RemoveNode(labels)
        return node

    def _load_with_storage_node(self, class_name, path, name):
        node = slicer.mrmlScene.AddNewNodeByClass(class_name, name)
        storage = node.CreateDefaultStorageNode()
        slicer.mrmlScene.AddNode(storage)
        node.SetAndObserveStorageNodeID(storage.GetID())
        storage.SetFileName(path)
        if not storage.ReadData(node):
            slicer.mrmlScene.RemoveNode(node)
            return None
        if hasattr(node, "CreateDefaultDisplayNodes"):
            node.CreateDefaultDisplayNodes()
        return node


def _report(messages, text):
    if messages is not None:
        messages.AddMessage(vtk.vtkCommand.ErrorEvent, text)
