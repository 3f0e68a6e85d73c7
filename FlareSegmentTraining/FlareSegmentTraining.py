"""The FlareSegmentTraining module of 3D Slicer: train a model on one's own labeled CTs, watch it, and segment with it.

Only what Slicer expects in a module file is here. A training run is a process of its own
(`FlareSegmentTrainingSlicerLib.training_process`) that outlives this panel; the panel reads the run's folder and finds
it again.
"""

import sys
from pathlib import Path

import qt
import slicer
from FlareSegmentTrainingSlicerLib import curves_nodes, training_process
from FlareSegmentTrainingSlicerLib.teaching_logic import TeachingLogic
from FlareSegmentTrainingSlicerLib.teaching_section import TeachingSection
from FlareSegmentTrainingSlicerLib.training_process import TrainingProcess
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

from FlareSegmentLib import HOMEPAGE
from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentSlicerLib.logic import script_process
from FlareSegmentSlicerLib.panel.installation import torch_installed
from FlareSegmentSlicerLib.panel.message_area import MESSAGE_LINES, MessageArea, WrappedLabel, keep_place
from FlareSegmentTrainingLib.training.presets import preset_names, read_preset
from FlareSegmentTrainingLib.training.run_folder import CURVES_FILE

POLL_MS = 1000
SETTINGS = "FlareSegmentTraining/"
LIBRARIES = ("FlareSegmentTrainingLib", "FlareSegmentTrainingSlicerLib")


class FlareSegmentTraining(ScriptedLoadableModule):
    """What Slicer shows of the module before it is opened."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        self.parent.title = _("FlareSegment Training")
        self.parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        self.parent.dependencies = ["FlareSegment"]
        self.parent.contributors = ["FlareSegment contributors"]
        self.parent.helpText = _("""
Trains the networks of FlareSegment on labeled CTs: FLARE22, Medical Segmentation Decathlon, nnU-Net folders or your
own. Choose the data, a preset and a folder, click <b>Start training</b>. The training goes on when this panel or Slicer
is closed. Results that were corrected and kept as examples teach the model in use within minutes.
""")
        self.parent.helpText += f'<p><a href="{HOMEPAGE}">{HOMEPAGE}</a></p>'
        self.parent.acknowledgementText = _("""
V-Net: Milletari, Navab, Ahmadi 2016. 3D U-Net: Çiçek et al. 2016.
""")


class FlareSegmentTrainingWidget(ScriptedLoadableModuleWidget):
    """The panel."""

    def __init__(self, parent=None) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.__init__(self, parent)
        self.logic: FlareSegmentTrainingLogic | None = None
        self._timer: qt.QTimer | None = None
        self._curvesShown = (0.0, 0)

    def setup(self) -> None:
        """Called when the user opens the module the first time and the widget is initialized."""
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/FlareSegmentTraining.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        self.logic = FlareSegmentTrainingLogic()
        self._message = MessageArea(self.ui.messageFrame, self.ui.messageBar, self.ui.messageLabel, MESSAGE_LINES)
        keep_place(self.ui.progressBar)
        self._presetText = WrappedLabel(self.ui.presetLabel)
        self._teaching = TeachingSection(self.ui, self.logic, torch_installed)

        for name, description in self.logic.presets().items():
            self.ui.presetComboBox.addItem(name, name)
            self.ui.presetComboBox.setItemData(self.ui.presetComboBox.count - 1, description, qt.Qt.ToolTipRole)
        settings = slicer.app.settings()
        self.ui.dataPathEdit.currentPath = settings.value(SETTINGS + "Data") or ""
        self.ui.outputPathEdit.currentPath = settings.value(SETTINGS + "Output") or ""
        self.ui.backgroundCheckBox.checked = slicer.util.settingsValue(
            SETTINGS + "InBackground", False, slicer.util.toBool
        )
        preset = settings.value(SETTINGS + "Preset") or "flare-organs"
        self.ui.presetComboBox.setCurrentIndex(max(0, self.ui.presetComboBox.findData(preset)))

        self._timer = qt.QTimer()
        self._timer.setInterval(POLL_MS)
        self._timer.connect("timeout()", self.onTimer)
        self.ui.startButton.connect("clicked(bool)", self.onStartButton)
        self.ui.stopButton.connect("clicked(bool)", self.onStopButton)
        self.ui.useModelButton.connect("clicked(bool)", self.onUseModelButton)
        self.ui.plotButton.connect("clicked(bool)", self.onPlotButton)
        self.ui.presetComboBox.connect("currentIndexChanged(int)", self.onPresetChanged)
        self.ui.epochsSpinBox.connect("valueChanged(int)", self.onEpochsChanged)
        self.ui.dataPathEdit.connect("currentPathChanged(QString)", self.onDataChanged)
        self.ui.outputPathEdit.connect("currentPathChanged(QString)", self.onOutputChanged)
        self.ui.dataPathEdit.connect("validInputChanged(bool)", self.onPathCleared)
        self.ui.outputPathEdit.connect("validInputChanged(bool)", self.onPathCleared)
        self.onPresetChanged()
        self.onOutputChanged(self.ui.outputPathEdit.currentPath)
        if getattr(self.parent, "isEntered", False):  # the panel was reloaded while it was open
            self._timer.start()

    def cleanup(self) -> None:
        """Called when the application closes or the module is reloaded; a training goes on."""
        self._timer.stop()

    def onReload(self) -> None:
        """Read the module's libraries anew, too: what is imported already would be taken again."""
        for name in [name for name in sys.modules if name.partition(".")[0] in LIBRARIES]:
            del sys.modules[name]
        ScriptedLoadableModuleWidget.onReload(self)

    def enter(self) -> None:
        """Called each time the user opens this module."""
        self.updateState()
        self._teaching.enter()
        self._timer.start()

    def exit(self) -> None:
        """Called each time the user opens a different module."""
        self._timer.stop()

    def onTimer(self) -> None:
        """Look how the training and the teaching stand."""
        self.updateState()
        self._teaching.update()

    def onPresetChanged(self, index: int = 0) -> None:
        """Say what the chosen preset is."""
        combo = self.ui.presetComboBox
        self._presetText.setText(combo.itemData(combo.currentIndex, qt.Qt.ToolTipRole) or "")
        self._onCorrected()

    def onDataChanged(self, path: str) -> None:
        """Another data set was chosen."""
        self._onCorrected()

    def onEpochsChanged(self, epochs: int) -> None:
        """Another number of epochs was chosen."""
        self._onCorrected()

    def _onCorrected(self) -> None:
        """What was wrong before is no longer what the form says."""
        self.logic.forgetFailure()
        self.updateState()

    def onOutputChanged(self, path: str) -> None:
        """Another run folder was chosen: show the run in it, if there is one."""
        self.logic.open(path)
        self._curvesShown = (0.0, 0)
        self._showSettings()
        self.updateState()

    def _showSettings(self) -> None:
        """Say with which data and preset the run was begun, which it cannot change any more."""
        settings = self.logic.settings() if self.logic.hasBegun() else {}
        if settings.get("data"):
            self.ui.dataPathEdit.currentPath = "; ".join(settings["data"])
        index = self.ui.presetComboBox.findData(settings.get("configuration", {}).get("name", ""))
        if index >= 0:
            self.ui.presetComboBox.setCurrentIndex(index)

    def onPathCleared(self, valid: bool) -> None:
        """A path was cleared, of which currentPathChanged does not tell."""
        if not valid:
            self.onOutputChanged(self.ui.outputPathEdit.currentPath)

    def onStartButton(self) -> None:
        """Begin the run, or continue the one in the folder."""
        settings = slicer.app.settings()
        settings.setValue(SETTINGS + "Data", self.ui.dataPathEdit.currentPath)
        settings.setValue(SETTINGS + "Output", self.ui.outputPathEdit.currentPath)
        settings.setValue(SETTINGS + "Preset", self.ui.presetComboBox.currentData)
        settings.setValue(SETTINGS + "InBackground", self.ui.backgroundCheckBox.checked)
        self.logic.setBackground(self.ui.backgroundCheckBox.checked)
        try:
            if self.logic.state() == script_process.FINISHED:
                self.ui.outputPathEdit.currentPath = self.logic.trainFurther(self.ui.epochsSpinBox.value or None)
            elif not self.logic.hasBegun():
                epochs = self.ui.epochsSpinBox.value
                self.logic.start(self.ui.presetComboBox.currentData, self.ui.dataPathEdit.currentPath, epochs or None)
            else:
                self.logic.resume()
        except FlareSegmentError as error:
            self._showMessage(str(error), "error")
            return
        self.updateState()

    def onStopButton(self) -> None:
        """Ask the training to save and end."""
        with slicer.util.tryWithErrorDisplay(_("The training cannot be stopped.")):
            self.logic.stop()
        self.updateState()

    def onUseModelButton(self) -> None:
        """Let the FlareSegment module segment with this run's best model."""
        with slicer.util.tryWithErrorDisplay(_("The model cannot be used."), waitCursor=True):
            self.logic.useModel()
            slicer.util.selectModule("FlareSegment")

    def onPlotButton(self) -> None:
        """Put the curves into the scene."""
        with slicer.util.tryWithErrorDisplay(_("The curves cannot be shown."), waitCursor=True):
            self.logic.showCurves()

    def updateState(self) -> None:
        """Show how the run in the folder stands, and what can be done."""
        ui, state, progress = self.ui, self.logic.state(), self.logic.progress()
        active = state in (script_process.STARTING, script_process.RUNNING)
        begun = self.logic.hasBegun()
        data, output = ui.dataPathEdit.currentPath, ui.outputPathEdit.currentPath
        ready = torch_installed()
        finished = state == script_process.FINISHED
        for widget in (ui.dataPathEdit, ui.presetComboBox):
            widget.enabled = not begun
        ui.epochsSpinBox.enabled = not begun or finished
        ui.outputPathEdit.enabled = not active
        ui.backgroundCheckBox.enabled = not active
        ui.stopButton.enabled = active and not self.logic.stopRequested()
        ui.startButton.text = _("Continue training") if begun and not active else _("Start training")
        if finished:
            ui.startButton.text = _("Train further")
        if not ready:
            hint = _("Install PyTorch first: open the FlareSegment module, which offers it.")
        elif not output:
            hint = _("Choose a folder for the run.")
        elif not begun and not data:
            hint = _("Choose a folder, archive or list of labeled CTs, or write phantom:20 to train on made-up torsos.")
        elif self.logic.isEnding():
            hint = _("The training process is just ending.")
        else:
            hint = ""
        ui.startButton.enabled = not hint and not active
        ui.startButton.toolTip = hint or _("The training runs on its own and goes on when Slicer is closed.")
        if finished and not hint:
            ui.startButton.toolTip = _(
                "Begin a run in a new folder beside this finished one, with its best model, its data and its split, "
                "for as many epochs as are chosen."
            )
        ui.progressBar.setVisible(begun)
        ui.progressBar.value = (
            round(100 * (progress.get("fraction") or 0.0)) if state != script_process.FINISHED else 100
        )
        ui.useModelButton.enabled = self.logic.hasModel()
        ui.plotButton.enabled = self.logic.hasLog()
        kind = "error" if state in (script_process.FAILED, script_process.LOST) else "information"
        self._showMessage(hint if state == script_process.NOT_BEGUN else self._describe(state), kind)
        self._showCurves()

    def _describe(self, state: str) -> str:
        if state in (script_process.STARTING, script_process.RUNNING) and self.logic.stopRequested():
            return _("Stopping: after the current step, which is saved, or the CT that is being prepared.")
        if state == script_process.STARTING:
            return _("Starting the training process.")
        if state == script_process.LOST and not self.logic.hasBegun():
            return _("The training process is gone without a word, as after a crash, before it began. Start it again.")
        if state == script_process.LOST:
            return _(
                "The training process is gone without a word, as after a crash. Continue from its last checkpoint."
            )
        return self.logic.message()

    def _showCurves(self) -> None:
        """Show curves.png when it or the panel's width has changed."""
        file = self.logic.curvesFile()
        time, width = file.stat().st_mtime if file and file.is_file() else 0.0, self.ui.curvesLabel.width
        if (time, width) != self._curvesShown:
            self._curvesShown = time, width
            pixmap = qt.QPixmap(str(file)) if time else qt.QPixmap()
            if time:
                pixmap = pixmap.scaledToWidth(width, qt.Qt.SmoothTransformation)
            self.ui.curvesLabel.setPixmap(pixmap)
            self.ui.curvesLabel.setMinimumHeight(pixmap.height())  # a panel short of room would cut it, not scroll
        self.ui.curvesCollapsibleButton.setVisible(bool(time))

    def _showMessage(self, text: str, kind: str = "information") -> None:
        self._message.show(text, kind)


class FlareSegmentTrainingLogic(ScriptedLoadableModuleLogic, TeachingLogic):
    """Starts, watches and stops the training run of one folder, with or without the panel; for examples and teaching
    see `TeachingLogic`.

    From Python::

        logic = slicer.util.getModuleLogic("FlareSegmentTraining")
        logic.open("/data/run1")
        logic.start("flare-organs", "/data/FLARE22Train.zip")
    """

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        TeachingLogic.__init__(self)
        self._process: TrainingProcess | None = None
        self._background = False

    def presets(self) -> dict[str, str]:
        """Return the presets' names and descriptions."""
        return {name: read_preset(name).get("description", "") for name in preset_names()}

    def open(self, folder: str) -> None:
        """Take the run in this folder, which need not exist yet; an empty name takes none."""
        if not folder:
            self._process = None
        elif self._process is None or self._process.folder.path != Path(folder):
            self._process = TrainingProcess(folder)

    def setBackground(self, background: bool) -> None:
        """Let a training that is started from now on run while other programs go first, or not (as at first)."""
        self._background = background

    def start(self, preset: str, data: str, epochs: int | None = None) -> None:
        """Begin a run. Raises FlareSegmentError with one clear line.

        :param data: folder, archive, list, or phantom:N; several separated by semicolons
        :param epochs: of every stage; None takes the preset's
        """
        self._process.background = self._background
        self._process.start(preset, [place.strip() for place in data.split(";") if place.strip()], epochs)

    def trainFurther(self, epochs: int | None = None) -> str:
        """Begin a run in a new folder beside the finished one, from its best model, and return the folder.

        Raises FlareSegmentError with one clear line.
        """
        former = self._process.folder
        self._process = TrainingProcess(training_process.next_folder(former.path))
        self._process.background = self._background
        self._process.start_from(former, epochs)
        return str(self._process.folder.path)

    def resume(self) -> None:
        """Continue the run. Raises FlareSegmentError with one clear line."""
        self._process.background = self._background
        self._process.resume()

    def stop(self) -> None:
        """Ask the run to save and end."""
        self._process.request_stop()

    def stopRequested(self) -> bool:
        """Whether the run was asked to end and has not yet."""
        return self._process is not None and self._process.stop_requested

    def state(self) -> str:
        """Return the state of the run, as in `script_process`."""
        return self._process.state() if self._process else script_process.NOT_BEGUN

    def hasBegun(self) -> bool:
        """Whether there is a run to watch or to continue; one that failed before its first checkpoint is none."""
        return self._process is not None and self._process.begun

    def forgetFailure(self) -> None:
        """Say no more why a run that did not begin has failed."""
        if self._process:
            self._process.forget_failure()

    def settings(self) -> dict:
        """Return what the run was begun with, as in its config.json; empty where there is none."""
        return self._process.settings() if self._process else {}

    def isEnding(self) -> bool:
        """Whether the run has reported its end, while its process takes a moment to end."""
        return self._process is not None and self._process.ending

    def progress(self) -> dict:
        """Return the run's last report, empty where there is none."""
        return self._process.progress() if self._process else {}

    def message(self) -> str:
        """Return one line about how far the run is or why it ended."""
        return self._process.message() if self._process else ""

    def hasModel(self) -> bool:
        """Whether the run has a best model already."""
        return self._process is not None and (self._process.folder.best / "model.json").is_file()

    def hasLog(self) -> bool:
        """Whether an epoch of the run is logged."""
        return self._process is not None and (self._process.folder.path / "log.csv").is_file()

    def curvesFile(self) -> Path | None:
        """Return where the run draws its curves."""
        return self._process.folder.path / CURVES_FILE if self._process else None

    def showCurves(self):
        """Put the run's curves into the scene as tables and a chart, and return the chart node."""
        return curves_nodes.show_curves(self._process.folder)

    def useModel(self) -> None:
        """Let FlareSegment segment with the run's best model. Raises FlareSegmentError when it cannot be used."""
        from FlareSegmentLib.model.description import read_description

        read_description(self._process.folder.best)
        logic = slicer.util.getModuleLogic("FlareSegment")
        logic.getParameterNode().modelFolder = str(self._process.folder.best.resolve())


class FlareSegmentTrainingTest(ScriptedLoadableModuleTest):
    """The self test: the panel's logic on a folder without a run; training itself takes too long here."""

    def runTest(self):
        slicer.mrmlScene.Clear()
        logic = FlareSegmentTrainingLogic()
        assert "flare-organs" in logic.presets()
        logic.open(slicer.app.temporaryPath + "/FlareSegmentTrainingSelfTest")
        assert logic.state() == script_process.NOT_BEGUN
        assert not logic.hasModel()
        self.delayDisplay(_("Test passed"))
