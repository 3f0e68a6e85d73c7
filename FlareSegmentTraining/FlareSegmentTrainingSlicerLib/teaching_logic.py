"""What the panels and Python code do with examples and taught models.

What reads examples is imported when it is needed: it brings scipy, for which nobody waits at Slicer's start.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.model.model_card import bundled_model_folder, read_model_card
from FlareSegmentSlicerLib.scene import comparison, segmentation_nodes
from FlareSegmentSlicerLib.scene.parent_transform import pose_in_scene
from FlareSegmentTrainingSlicerLib.teaching_process import (
    TeachingProcess,
    latest_teaching,
    next_teaching,
    teaching_of_model,
)

MODEL_SETTING = "FlareSegment/ModelFolder"


class TeachingLogic:
    """Examples of one folder, and the last teaching with them.

    From Python::

        logic = slicer.util.getModuleLogic("FlareSegmentTraining")
        logic.openExamples("/data/examples")
        logic.keepExample(segmentationNode, ["liver", "spleen"])
        logic.teach()
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._started: dict[Path | None, TeachingProcess] = {}  # by folder: one that just starts has no files yet
        self.teaching: TeachingProcess | None = None
        self._listed: tuple[object, list[Any]] = (None, [])

    def openExamples(self, folder: str) -> None:
        """Take the examples of this folder, which need not exist yet; an empty name takes none."""
        path = Path(folder) if folder else None
        if path != self._folder:
            self._folder, self.teaching = path, self._started.get(path)
        latest = latest_teaching(path) if path else None
        known = int(self.teaching.folder.path.name) if self.teaching is not None else 0
        if latest is not None and int(latest.name) > known:
            self.teaching = TeachingProcess(latest)

    def examples(self) -> list[Any]:
        """Return the folder's examples (`teaching.examples.Example`); read anew when a file of it has changed.

        Raises InputError, once, where what is there is damaged.
        """
        if self._folder is None or not self._folder.is_dir():
            return []
        state = sorted((file.name, file.stat().st_mtime_ns) for file in self._folder.glob("*.*") if file.is_file())
        if state != self._listed[0]:
            from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

            self._listed = (state, [])
            self._listed = (state, ExampleFolder(self._folder).examples())
        return self._listed[1]

    def keepExample(self, segmentationNode: slicer.vtkMRMLSegmentationNode, organs: Collection[str]) -> str:
        """Keep a result and its CT as an example, de-identified, and return the example's name.

        :param organs: keys of the organs that were looked at; the others are ignored when the model is taught
        Raises FlareSegmentError with one clear line.
        """
        from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

        if self._folder is None:
            raise InputError(_("Choose a folder for the examples."))
        volumeNode = segmentation_nodes.reference_volume(segmentationNode)
        if volumeNode is None:
            raise InputError(_("{name} belongs to no CT.").format(name=segmentationNode.GetName()))
        if volumeNode.GetTransformNodeID() != segmentationNode.GetTransformNodeID():
            text = _("{name} is under another transform than {volume}: the organs do not lie where they were found.")
            raise InputError(text.format(name=segmentationNode.GetName(), volume=volumeNode.GetName()))
        volume = segmentation_nodes.volume_from_node(volumeNode)
        labels = comparison.organ_labels(segmentationNode, volumeNode)
        if not labels.any() and not segmentation_nodes.is_result_of(segmentationNode, volumeNode):
            raise InputError(_("{name} holds no organ.").format(name=segmentationNode.GetName()))
        turned = pose_in_scene(volumeNode, volume).turned(volume)  # left and right as they were seen
        return ExampleFolder(self._folder).keep(turned, labels, organs, self._inUse())

    def openExample(self, name: str) -> slicer.vtkMRMLSegmentationNode:
        """Put an example into the scene, its labels as a result of its CT, and return the segmentation node."""
        from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

        assert self._folder is not None
        volume, labels, _organs = ExampleFolder(self._folder).open(name)
        volumeNode = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name=name)
        volumeNode.CreateDefaultDisplayNodes()
        node = segmentation_nodes.create_segmentation(volumeNode, labels)
        slicer.util.setSliceViewerLayers(background=volumeNode, fit=True)
        return node

    def removeExample(self, name: str) -> None:
        """Remove an example from the folder."""
        from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

        assert self._folder is not None
        if name in self._inUse():
            raise InputError(_("{name} is taught now: stop the teaching, or wait for its end.").format(name=name))
        ExampleFolder(self._folder).remove(name)

    def canContinueTeaching(self) -> bool:
        """Whether the last teaching was stopped before its end and can go on."""
        names = [example.name for example in self.examples()]
        return self.teaching is not None and self.teaching.can_continue(names, self._currentModel())

    def teach(self) -> None:
        """Teach the current model with the examples, in a process of its own, or continue the last teaching."""
        if self._folder is None:
            raise InputError(_("Choose the folder of the examples."))
        if self.teaching is not None and self.teaching.active:
            raise InputError(_("A teaching with these examples is at work."))
        model = self._currentModel()
        read_model_card(model)
        if not (self.canContinueTeaching() and self._isUnchanged(model)):
            self.teaching = TeachingProcess(next_teaching(self._folder))
        assert self.teaching is not None
        self.teaching.teach(self._folder, model)
        self._started[self._folder] = self.teaching

    def usesTaught(self) -> bool:
        """Whether FlareSegment segments with the last teaching's model."""
        model = self.teaching.model if self.teaching is not None else None
        return model is not None and self._currentModel().resolve() == model.resolve()

    def canGoBack(self) -> bool:
        """Whether FlareSegment segments with a model that some teaching made, which knows the model before."""
        return teaching_of_model(self._currentModel()) is not None

    def useTaught(self) -> None:
        """Let FlareSegment segment with the taught model."""
        if self.teaching is None or self.teaching.model is None:
            raise InputError(_("There is no taught model that is better."))
        read_model_card(self.teaching.model)
        self._use(str(self.teaching.model.resolve()))

    def useFormer(self) -> None:
        """Let FlareSegment segment with the model that the one in use was taught from."""
        teaching = teaching_of_model(self._currentModel())
        former = str(teaching.settings()["model"].get("folder", "")) if teaching is not None else ""
        if former and not (Path(former) / "model.json").is_file():
            raise InputError(
                _("The model before is gone: {folder}. Choose one in FlareSegment's options.").format(folder=former)
            )
        self._use("" if not former or Path(former) == bundled_model_folder().resolve() else former)

    def _inUse(self) -> Collection[str]:
        """Names of the examples that are taught at this moment."""
        return self.teaching.settings().get("examples", ()) if self.teaching and self.teaching.active else ()

    def _isUnchanged(self, model: Path) -> bool:
        from FlareSegmentTrainingLib.teaching.beginning import is_unchanged

        assert self.teaching is not None and self._folder is not None
        return is_unchanged(self.teaching.settings(), self._folder, model)

    def _use(self, folder: str) -> None:
        slicer.util.getModuleLogic("FlareSegment").getParameterNode().modelFolder = folder
        qt.QSettings().setValue(MODEL_SETTING, folder)

    def _currentModel(self) -> Path:
        folder = slicer.util.getModuleLogic("FlareSegment").getParameterNode().modelFolder
        return Path(folder) if folder else bundled_model_folder()
