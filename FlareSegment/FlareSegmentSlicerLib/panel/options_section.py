"""The panel's section "Options": where to compute, with which model, which organs, where, and which other CTs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.errors import ModelError
from FlareSegmentLib.model.model_card import ModelCard, read_model_card
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentSlicerLib.scene.organ_names import organ_name
from FlareSegmentSlicerLib.scene.volume_sequences import frame_sequence

DEVICE_SETTING = "FlareSegment/Device"
MODEL_SETTING = "FlareSegment/ModelFolder"
SHOW_3D_SETTING = "FlareSegment/Show3DWhenDone"
REVIEW_SETTING = "FlareSegment/FindPlaces"
BACKGROUND_SETTING = "FlareSegment/InBackground"
_NAMED_ORGANS = 2


class OptionsSection:
    """Widgets of the section; what is chosen lives in the parameter node, and as defaults in Slicer's settings."""

    def __init__(
        self,
        ui: Any,
        parameters: Callable[[], Any],
        bundledModel: Callable[[], Path],
        onBackground: Callable[[bool], None],
    ) -> None:
        """
        :param parameters: gives the parameter node, or None
        :param bundledModel: folder of the model that needs no choice
        :param onBackground: is told whether other programs shall go first, now and whenever the user chooses it
        """
        self._ui = ui
        self._onBackgroundChosen = onBackground
        self._parameters = parameters
        self._bundledModel = bundledModel
        self._card: ModelCard | None = None
        self._cardOf: Path | None = None
        self._cardWindow: qt.QDialog | None = None
        self._moreVolumes: set[str] = set()
        self._priorityTold = False
        ui.deviceComboBox.addItem(_("Automatic"), "auto")
        ui.deviceComboBox.addItem(_("CPU"), "cpu")
        self._organsMenu = qt.QMenu(ui.organsButton)
        ui.organsButton.setMenu(self._organsMenu)
        self._volumesMenu = qt.QMenu(ui.volumesButton)
        ui.volumesButton.setMenu(self._volumesMenu)
        self._volumesMenu.connect("aboutToShow()", self._fillVolumesMenu)
        ui.autoShow3DCheckBox.checked = slicer.util.settingsValue(SHOW_3D_SETTING, True, slicer.util.toBool)
        ui.autoShow3DCheckBox.connect("toggled(bool)", self._onAutoShow3D)
        ui.reviewCheckBox.checked = slicer.util.settingsValue(REVIEW_SETTING, True, slicer.util.toBool)
        ui.reviewCheckBox.connect("toggled(bool)", self._onReview)
        ui.backgroundCheckBox.checked = slicer.util.settingsValue(BACKGROUND_SETTING, False, slicer.util.toBool)
        ui.backgroundCheckBox.connect("toggled(bool)", self._onBackground)
        ui.deviceComboBox.connect("activated(int)", self._onDevice)
        ui.modelPathEdit.connect("currentPathChanged(QString)", self._onModel)
        ui.modelPathEdit.connect("validInputChanged(bool)", self._onModelValid)
        ui.modelCardButton.connect("clicked(bool)", self._onCard)
        ui.roiSelector.connect("nodeAddedByUser(vtkMRMLNode*)", self._onRegionAdded)
        onBackground(ui.backgroundCheckBox.checked)

    def applyDefaults(self) -> None:
        """Give a scene in which nothing was chosen yet what the user chose last."""
        parameters = self._parameters()
        if parameters.device == "auto":
            parameters.device = slicer.util.settingsValue(DEVICE_SETTING, "auto")
        if not parameters.modelFolder:
            parameters.modelFolder = slicer.util.settingsValue(MODEL_SETTING, "")

    def update(self) -> None:
        """Show what the parameter node says."""
        parameters = self._parameters()
        combo = self._ui.deviceComboBox
        combo.setCurrentIndex(max(0, combo.findData(parameters.device)))
        self._ui.modelPathEdit.currentPath = parameters.modelFolder
        self._updateModel()
        self._updateOrgans()
        self._moreVolumes = {one for one in self._moreVolumes if slicer.mrmlScene.GetNodeByID(one)}
        more = len(self.moreVolumes())
        self._ui.volumesButton.text = _("{count} more").format(count=more) if more else _("None")
        self._ui.sequenceCheckBox.setVisible(frame_sequence(parameters.inputVolume) is not None)

    def offerDevices(self, devices: Sequence[dict[str, Any]]) -> None:
        """Offer what the worker found (see `compute_devices`), by name and memory."""
        combo = self._ui.deviceComboBox
        for device in devices:
            name = " ".join(device["name"].replace("(R)", "").replace("(TM)", "").split())
            memory = f", {device['memory_gb']:.0f} GB" if device.get("memory_gb") else ""
            kind = _("CPU") if device["id"] == "cpu" else _("GPU")
            text = f"{kind}: {name}{memory}"
            index = combo.findData(device["id"])
            if index < 0:
                combo.addItem(text, device["id"])
            else:
                combo.setItemText(index, text)
        if self._parameters():
            self.update()

    def showPriority(self, niceness: int) -> None:
        """Say at which priority the worker really runs (see `processes.set_priority`)."""
        text = _("Other programs and Slicer itself go first: takes longer while they work.")
        if niceness and not self._ui.backgroundCheckBox.checked:
            text += "\n" + _(
                "Now its niceness is {niceness} anyway: Slicer lowers its own, and the system does not let what it "
                "starts take that back. Where SLICER_BACKGROUND_THREAD_PRIORITY=0 is in the environment, Slicer "
                "does not."
            ).format(niceness=niceness)
            if not self._priorityTold:
                logging.info("FlareSegment's worker process runs at niceness %d, which Slicer's own is.", niceness)
            self._priorityTold = True
        self._ui.backgroundCheckBox.toolTip = text

    def request(self, smoothing: float | None) -> SegmentationRequest:
        """What is chosen. The device is the one that is shown: one that a scene names and this computer lacks is not.

        :param smoothing: of the 3D surfaces to make along with the result; None makes none
        """
        device = self._ui.deviceComboBox.itemData(self._ui.deviceComboBox.currentIndex)
        return SegmentationRequest(
            self.model, device, organs=self.organs, smoothing=smoothing, review=self._ui.reviewCheckBox.checked
        )

    @property
    def model(self) -> Path:
        """Folder of the chosen model."""
        folder = self._parameters().modelFolder
        return Path(folder) if folder else self._bundledModel()

    @property
    def organs(self) -> tuple[str, ...] | None:
        """Keys of the organs to keep; None for all."""
        chosen = self._parameters().organs
        known = [organ.key for organ in self._card.organs] if self._card else []
        kept = tuple(key for key in known if key in chosen)
        return kept if kept and len(kept) < len(known) else None

    @property
    def show3D(self) -> bool:
        """Whether the surfaces are wanted along with the result."""
        return self._ui.autoShow3DCheckBox.checked

    @property
    def wholeSequence(self) -> bool:
        """Whether all frames are to be segmented."""
        return self._ui.sequenceCheckBox.checked and frame_sequence(self._parameters().inputVolume) is not None

    def moreVolumes(self) -> list[slicer.vtkMRMLScalarVolumeNode]:
        """The other CTs of the same run."""
        current = self._parameters().inputVolume
        return [node for node in candidate_volumes() if node.GetID() in self._moreVolumes and node is not current]

    def _updateModel(self) -> None:
        folder = self.model
        if folder != self._cardOf:
            self._cardOf = folder
            try:
                self._card, problem = read_model_card(folder), ""
            except ModelError as error:
                self._card, problem = None, str(error)
            self._ui.modelSummaryLabel.text = f"{self._card.name} {self._card.version}" if self._card else problem
            self._ui.modelSummaryLabel.toolTip = _summary(self._card) if self._card else problem
            self._fillOrgansMenu()
        self._ui.modelCardButton.enabled = self._card is not None

    def _fillOrgansMenu(self) -> None:
        self._organsMenu.clear()
        for organ in self._card.organs if self._card else ():
            action = self._organsMenu.addAction(organ_name(organ))
            action.setCheckable(True)
            action.setData(organ.key)
            action.connect("toggled(bool)", self._onOrgans)

    def _updateOrgans(self) -> None:
        chosen = self.organs
        names = []
        for action in self._organsMenu.actions():
            kept = chosen is None or action.data() in chosen
            action.blockSignals(True)
            action.setChecked(kept)
            action.blockSignals(False)
            names += [action.text] if kept else []
        count, listed = len(self._organsMenu.actions()), ", ".join(names)
        if chosen is None and count != 1:
            self._ui.organsButton.text = _("All {count}").format(count=count) if count else "–"
        elif len(names) <= _NAMED_ORGANS:
            self._ui.organsButton.text = listed
        else:
            self._ui.organsButton.text = _("{kept} of {count}").format(kept=len(names), count=count)
        self._ui.organsButton.toolTip = _("The organs to keep in the result: {organs}").format(organs=listed)

    def _onOrgans(self, checked: bool) -> None:
        chosen = [action.data() for action in self._organsMenu.actions() if action.checked]
        everything = len(chosen) in (0, len(self._organsMenu.actions()))
        self._parameters().organs = [] if everything else chosen
        self._updateOrgans()

    def _fillVolumesMenu(self) -> None:
        self._volumesMenu.clear()
        current = self._parameters().inputVolume if self._parameters() else None
        others = [node for node in candidate_volumes() if node is not current]
        for node in others:
            action = self._volumesMenu.addAction(node.GetName())
            action.setCheckable(True)
            action.setChecked(node.GetID() in self._moreVolumes)
            action.setData(node.GetID())
            action.connect("toggled(bool)", self._onVolumes)
        if not others:
            self._volumesMenu.addAction(_("There is no other CT in the scene")).setEnabled(False)

    def _onVolumes(self, checked: bool) -> None:
        self._moreVolumes = {action.data() for action in self._volumesMenu.actions() if action.checked}
        self.update()

    def _onDevice(self, index: int) -> None:
        if self._parameters():
            self._parameters().device = self._ui.deviceComboBox.itemData(index)
            qt.QSettings().setValue(DEVICE_SETTING, self._parameters().device)

    def _onModel(self, path: str) -> None:
        if self._parameters() and self._parameters().modelFolder != path:
            self._parameters().modelFolder = path
            qt.QSettings().setValue(MODEL_SETTING, path)

    def _onModelValid(self, valid: bool) -> None:
        """The path was cleared, of which currentPathChanged does not tell: the bundled model again."""
        if not valid:
            self._onModel(self._ui.modelPathEdit.currentPath)

    def _onAutoShow3D(self, checked: bool) -> None:
        qt.QSettings().setValue(SHOW_3D_SETTING, checked)

    def _onReview(self, checked: bool) -> None:
        qt.QSettings().setValue(REVIEW_SETTING, checked)

    def _onBackground(self, checked: bool) -> None:
        qt.QSettings().setValue(BACKGROUND_SETTING, checked)
        self._onBackgroundChosen(checked)

    def _onCard(self) -> None:
        if self._cardWindow is None:
            self._cardWindow = qt.QDialog(self._ui.modelCardButton.window())
            qt.QVBoxLayout(self._cardWindow)
            self._cardText = qt.QTextBrowser()
            self._cardText.setOpenExternalLinks(True)
            self._cardWindow.layout().addWidget(self._cardText)
            self._cardWindow.resize(640, 560)
        self._cardWindow.setWindowTitle(f"{self._card.name} {self._card.version}")
        self._cardText.setMarkdown(self._card.text)
        self._cardWindow.show()

    def _onRegionAdded(self, node: slicer.vtkMRMLMarkupsROINode) -> None:
        """A region starts as the middle of the CT, where it can be seen and pulled."""
        volume = self._parameters().inputVolume if self._parameters() else None
        if volume is None:
            return
        bounds = [0.0] * 6
        volume.GetRASBounds(bounds)
        node.SetCenterWorld(*((bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3)))
        node.SetSizeWorld(*((bounds[2 * axis + 1] - bounds[2 * axis]) * 0.6 for axis in range(3)))
        node.CreateDefaultDisplayNodes()


def candidate_volumes() -> list[slicer.vtkMRMLScalarVolumeNode]:
    """The scene's volumes that can be CTs: label maps and color images are of derived classes."""
    return [
        node
        for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        if node.GetClassName() == "vtkMRMLScalarVolumeNode" and not node.GetHideFromEditors()
    ]


def _summary(card: ModelCard) -> str:
    scores = ", ".join(
        f"{organ_name(organ)} {card.dice[organ.key]:.2f}" for organ in card.organs if organ.key in card.dice
    )
    text = f"{card.name} {card.version}, {card.license}"
    return text + (_("; mean Dice: {scores}").format(scores=scores) if scores else "")
