"""The training panel: what it offers, that a training outlives it, and what it does with a finished run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

FAKE_TRAINING = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1])
(folder / "arguments.json").write_text(json.dumps(sys.argv[1:]))
def report(**content):
    (folder / "new").write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename, **content}))
    os.replace(folder / "new", folder / "progress.json")
if "phantom:bad" in sys.argv:
    sys.exit("Error: phantom:bad is not possible.")
(folder / "config.json").write_text("{}")
if "phantom:broken" in sys.argv:
    report(state="failed", message="None of the training cases can be used.")
    sys.exit("Error: None of the training cases can be used.")
report(state="running", fraction=0.25, message="coarse epoch 1/4")
end = time.monotonic() + 60
while time.monotonic() < end and not (folder / "stop").exists():
    time.sleep(0.05)
report(state="stopped", fraction=0.25, message="Stopped at step 3")
"""


@pytest.fixture
def panel(slicer_app, load_module, repository, monkeypatch, tmp_path):
    import slicer

    load_module(repository / "FlareSegment" / "FlareSegment.py")
    load_module(repository / "FlareSegmentTraining" / "FlareSegmentTraining.py")
    from FlareSegmentTrainingSlicerLib import training_process

    script = tmp_path / "fake_train.py"
    script.write_text(FAKE_TRAINING)
    monkeypatch.setattr(training_process, "TRAIN_SCRIPT", script)
    slicer.util.selectModule("FlareSegmentTraining")
    slicer_app.processEvents()
    widget = slicer.util.getModuleWidget("FlareSegmentTraining")
    widget.ui.dataPathEdit.currentPath = ""
    widget.ui.outputPathEdit.currentPath = ""
    yield widget
    widget.ui.outputPathEdit.currentPath = ""
    slicer.util.getModuleWidget("FlareSegment").logic.close()


def until(app, widget, condition, seconds=40.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain; the panel says: {widget.ui.messageLabel.text!r}"
        app.processEvents()
        widget.updateState()
        time.sleep(0.05)


def finished_run(folder, epochs=6):
    """A run folder as a finished training leaves it, its numbers made up."""
    from FlareSegmentTrainingLib.training.reports import draw_curves, write_log
    from FlareSegmentTrainingLib.training.run_folder import RunFolder

    organs = ["liver", "right_kidney", "left_kidney", "spleen"]
    history = []
    for number in range(1, epochs + 1):
        row = {"stage": "coarse" if number < 4 else "fine", "epoch": number, "step": 10 * number, "loss": 2.0 / number}
        row.update(learning_rate=0.001, seconds_per_step=0.5, loader_wait=0.01)
        if number % 2 == 0:
            row.update(
                accuracy=0.9,
                dice=0.14 * number,
                **{f"dice_{key}": 0.15 * number - 0.01 * i for i, key in enumerate(organs)},
            )
        history.append(row)
    run = RunFolder(folder)
    run.write_json("config.json", {})
    run.write_json("progress.json", {"state": "finished", "message": "Finished", "fraction": 1.0})
    write_log(run, history, organs)
    pytest.importorskip("matplotlib")
    draw_curves(run, history, organs)
    return run


def test_the_panel_keeps_its_width(panel, slicer_app, tmp_path):
    import slicer

    layout = slicer.app.moduleManager().module("FlareSegmentTraining").widgetRepresentation().layout()
    narrowest = layout.totalSizeHint().width()
    finished_run(tmp_path / ("a_long_name_of_a_run_" * 6))
    panel.ui.outputPathEdit.currentPath = str(tmp_path / ("a_long_name_of_a_run_" * 6))
    slicer_app.processEvents()
    panel.updateState()
    slicer_app.processEvents()
    assert panel.ui.curvesCollapsibleButton.visible
    assert layout.totalSizeHint().width() == narrowest <= 310
    assert panel.ui.FlareSegmentTraining.layout().totalMinimumSize().width() <= 284


def test_a_training_that_has_ended_is_not_starting(panel, slicer_app, tmp_path, monkeypatch):
    """Its process takes seconds to end after its last report, and its first report takes seconds to come."""
    from FlareSegmentTrainingSlicerLib import training_process

    from FlareSegmentSlicerLib.logic import script_process

    script = tmp_path / "slow_to_end.py"
    script.write_text(FAKE_TRAINING + "time.sleep(60)\n")
    monkeypatch.setattr(training_process, "TRAIN_SCRIPT", script)
    process = training_process.TrainingProcess(tmp_path / "run")
    process.background = True
    process.start("dice-vnet", ["phantom:4"])
    assert process.state() == script_process.STARTING
    until(slicer_app, panel, lambda: process.state() == script_process.RUNNING)
    assert json.loads((tmp_path / "run" / "arguments.json").read_text())[-2:] == ["--priority", "background"]
    process.request_stop()
    until(slicer_app, panel, lambda: process.state() == script_process.STOPPED)
    assert process._launched
    assert process.ending
    with pytest.raises(Exception, match="just ending"):
        process.resume()
    panel.ui.outputPathEdit.currentPath = str(tmp_path / "run")
    panel.logic._process = process
    panel.updateState()
    assert not panel.ui.startButton.enabled and "just ending" in panel.ui.startButton.toolTip
    process._process.kill()
    process._process.wait()
    panel.updateState()
    assert panel.ui.startButton.enabled and panel.ui.startButton.text == "Continue training"
    process.resume()
    assert process.state() == script_process.STARTING  # the report that lies there is the one before
    until(slicer_app, panel, lambda: process.state() == script_process.RUNNING)
    process._process.kill()
    process._process.wait()


def test_a_training_that_fails_at_once_when_continued_says_why(panel, slicer_app, tmp_path, monkeypatch):
    """The report that lies in its folder is that of the run before."""
    from FlareSegmentTrainingSlicerLib import training_process

    from FlareSegmentSlicerLib.logic import script_process

    script, run = tmp_path / "fails.py", tmp_path / "run"
    script.write_text("import sys; sys.exit('Error: The data moved.')")
    monkeypatch.setattr(training_process, "TRAIN_SCRIPT", script)
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "progress.json").write_text(json.dumps({"state": "stopped", "message": "Stopped at step 3."}))
    process = training_process.TrainingProcess(run)
    assert (process.state(), process.message()) == (script_process.STOPPED, "Stopped at step 3.")
    process.resume()
    until(slicer_app, panel, lambda: not process.active)
    assert (process.state(), process.message()) == (script_process.FAILED, "The data moved.")


def test_a_run_in_a_folder_that_takes_no_file_cannot_be_stopped_and_says_so(tmp_path):
    from FlareSegmentLib.errors import FlareSegmentError
    from FlareSegmentSlicerLib.logic.script_process import ScriptProcess

    process = ScriptProcess(tmp_path / "gone")
    with pytest.raises(FlareSegmentError, match="gone cannot be written"):
        process.request_stop()


def test_an_empty_panel_says_what_to_do(panel, screenshots):
    ui = panel.ui
    assert ui.presetComboBox.count == 7
    assert "coarse" in ui.presetLabel.text
    assert not ui.startButton.enabled and not ui.stopButton.enabled
    assert "Choose a folder for the run" in ui.messageLabel.text
    ui.outputPathEdit.currentPath = "/somewhere/new"
    assert "labeled CTs" in ui.messageLabel.text
    ui.dataPathEdit.currentPath = "phantom:4"
    assert ui.startButton.enabled


def test_a_training_starts_is_found_again_and_stops(panel, slicer_app, tmp_path, screenshots):
    ui, folder = panel.ui, tmp_path / "run"
    ui.dataPathEdit.currentPath = "phantom:4; phantom:5"
    ui.outputPathEdit.currentPath = str(folder)
    ui.presetComboBox.setCurrentIndex(ui.presetComboBox.findData("dice-vnet"))
    ui.epochsSpinBox.value = 3
    ui.startButton.click()
    until(slicer_app, panel, lambda: panel.logic.state() == "running")
    arguments = json.loads((folder / "arguments.json").read_text())
    assert arguments[:8] == ["--preset", "dice-vnet", "--data", "phantom:4", "--data", "phantom:5", "--epochs", "3"]
    panel.updateState()
    assert ui.stopButton.enabled and not ui.startButton.enabled and ui.progressBar.value == 25
    assert "coarse epoch" in ui.messageLabel.text
    slicer_app._main_window.grab().save(str(screenshots / "training_running.png"))

    ui.outputPathEdit.currentPath = ""
    assert panel.logic.state() == "not begun"
    ui.outputPathEdit.currentPath = str(folder)
    assert panel.logic.state() == "running"

    ui.stopButton.click()
    until(slicer_app, panel, lambda: panel.logic.state() == "stopped")
    panel.updateState()
    assert ui.startButton.enabled and ui.startButton.text == "Continue training"
    ui.epochsSpinBox.value = 0


def test_buttons_do_not_jump(panel, slicer_app, tmp_path):
    import qt

    ui = panel.ui
    finished_run(tmp_path / "run")

    def places():
        slicer_app.processEvents()
        parent = ui.FlareSegmentTraining
        return [(one.mapTo(parent, qt.QPoint(0, 0)), one.width) for one in (ui.startButton, ui.stopButton)]

    before, below = places(), ui.useModelButton.mapTo(ui.FlareSegmentTraining, qt.QPoint(0, 0))
    run = tmp_path / "other"
    run.mkdir()
    (run / "config.json").write_text("{}")
    ui.outputPathEdit.currentPath = str(run)
    assert ui.startButton.text == "Continue training" and places() == before
    slicer_app.processEvents()
    assert ui.useModelButton.mapTo(ui.FlareSegmentTraining, qt.QPoint(0, 0)) == below


def test_a_training_outlives_the_process_that_started_it(tmp_path, repository, panel):
    """Started by a Python that ends at once: the training still runs, and its folder says so."""
    from FlareSegmentTrainingSlicerLib import training_process

    starter = (
        "from FlareSegmentTrainingSlicerLib import training_process as t; from pathlib import Path; "
        f"t.TRAIN_SCRIPT = Path({str(training_process.TRAIN_SCRIPT)!r}); "
        f"t.TrainingProcess({str(tmp_path / 'run')!r}).start('x', ['y'])"
    )
    paths = os.pathsep.join(str(repository / name) for name in ("FlareSegment", "FlareSegmentTraining"))
    subprocess.run([sys.executable, "-c", starter], env={**os.environ, "PYTHONPATH": paths}, check=True, timeout=60)
    run = training_process.TrainingProcess(tmp_path / "run")
    end = time.monotonic() + 40
    while run.state() != "running" and time.monotonic() < end:
        time.sleep(0.05)
    assert run.state() == "running"
    run.request_stop()
    while run.state() != "stopped" and time.monotonic() < end:
        time.sleep(0.05)
    assert run.state() == "stopped"


def test_a_training_that_cannot_begin_says_why(panel, slicer_app, tmp_path):
    panel.ui.dataPathEdit.currentPath = "phantom:bad"
    panel.ui.outputPathEdit.currentPath = str(tmp_path / "run")
    panel.ui.startButton.click()
    until(slicer_app, panel, lambda: panel.logic.state() == "failed")
    panel.updateState()
    assert "phantom:bad is not possible" in panel.ui.messageLabel.text


@pytest.mark.parametrize(("typo", "reason"), [("phantom:bad", "phantom:bad"), ("phantom:broken", "None of the")])
def test_a_run_that_never_began_can_be_corrected(panel, slicer_app, tmp_path, typo, reason):
    """Before or after its configuration was written: there is nothing to continue, and the form is free."""
    ui, folder = panel.ui, tmp_path / "run"
    ui.outputPathEdit.currentPath = str(folder)
    ui.dataPathEdit.currentPath = typo
    ui.startButton.click()
    until(slicer_app, panel, lambda: panel.logic.state() == "failed" and not panel.logic._process._launched)
    panel.updateState()
    assert reason in ui.messageLabel.text
    assert ui.dataPathEdit.enabled and ui.presetComboBox.enabled and ui.epochsSpinBox.enabled
    assert ui.startButton.text == "Start training" and ui.startButton.enabled
    ui.dataPathEdit.currentPath = "phantom:4"
    assert ui.messageLabel.text == ""
    ui.startButton.click()
    until(slicer_app, panel, lambda: panel.logic.state() == "running")
    arguments = json.loads((folder / "arguments.json").read_text())
    assert "--resume" not in arguments and "phantom:4" in arguments
    panel.logic.stop()
    until(slicer_app, panel, lambda: panel.logic.state() == "stopped")
    panel.updateState()
    assert ui.startButton.text == "Continue training" and not ui.dataPathEdit.enabled


def test_a_finished_run_shows_its_curves(panel, slicer_app, tmp_path, screenshots):
    finished_run(tmp_path / "run")
    panel.ui.outputPathEdit.currentPath = str(tmp_path / "run")
    slicer_app.processEvents()
    ui = panel.ui
    assert ui.curvesCollapsibleButton.visible and ui.curvesLabel.pixmap is not None
    slicer_app.processEvents()
    assert ui.curvesLabel.height >= ui.curvesLabel.pixmap.height() > 200, "the curves are cut"
    assert ui.startButton.text == "Train further" and "finished" in ui.startButton.toolTip
    assert not ui.dataPathEdit.enabled and ui.epochsSpinBox.enabled
    slicer_app._main_window.grab().save(str(screenshots / "training_finished.png"))


def test_a_finished_run_is_trained_further_in_a_new_folder(panel, slicer_app, tmp_path):
    run = finished_run(tmp_path / "run_9")
    run.write_json("config.json", {"configuration": {"name": "mine"}, "data": ["phantom:4"], "label_map": "flare22"})
    (tmp_path / "run_10").mkdir()
    ui = panel.ui
    ui.outputPathEdit.currentPath = str(run.path)
    ui.epochsSpinBox.value = 7
    ui.startButton.click()
    folder = tmp_path / "run_11"
    assert Path(ui.outputPathEdit.currentPath) == folder
    until(slicer_app, panel, lambda: panel.logic.state() == "running")
    words = json.loads((folder / "arguments.json").read_text())
    given = dict(zip(words[::2], words[1::2], strict=True))
    assert json.loads(Path(given["--preset"]).read_text()) == {"name": "mine"}
    assert given["--start-from"] == str(run.best) and given["--split"] == str(run.path / "split.json")
    assert (given["--data"], given["--epochs"], given["--label-map"]) == ("phantom:4", "7", "flare22")
    assert given["--cache"] == str(run.path / "prepared") and given["--output"] == str(folder)
    panel.logic.stop()
    until(slicer_app, panel, lambda: panel.logic.state() == "stopped")
    ui.epochsSpinBox.value = 0


def test_stop_is_heard_while_the_training_starts(panel, slicer_app, tmp_path, monkeypatch):
    from FlareSegmentTrainingSlicerLib import training_process

    script = tmp_path / "slow_to_start.py"
    script.write_text("import time\ntime.sleep(2)\n" + FAKE_TRAINING)
    monkeypatch.setattr(training_process, "TRAIN_SCRIPT", script)
    ui = panel.ui
    ui.dataPathEdit.currentPath = "phantom:4"
    ui.outputPathEdit.currentPath = str(tmp_path / "run")
    ui.startButton.click()
    assert panel.logic.state() == "starting" and ui.stopButton.enabled
    ui.stopButton.click()
    assert not ui.stopButton.enabled and "Stopping" in ui.messageLabel.text
    panel.updateState()
    assert "Stopping" in ui.messageLabel.text
    until(slicer_app, panel, lambda: panel.logic.state() == "stopped", 20)


def test_the_form_says_with_what_a_run_was_begun(panel, tmp_path):
    run = finished_run(tmp_path / "run")
    run.write_json("config.json", {"configuration": {"name": "liver-unet"}, "data": ["/data/one.zip", "phantom:4"]})
    panel.ui.dataPathEdit.currentPath = "/data/other"
    panel.ui.presetComboBox.setCurrentIndex(panel.ui.presetComboBox.findData("flare-organs"))
    panel.ui.outputPathEdit.currentPath = str(run.path)
    assert panel.ui.dataPathEdit.currentPath == "/data/one.zip; phantom:4" and not panel.ui.dataPathEdit.enabled
    assert panel.ui.presetComboBox.currentData == "liver-unet" and "U-Net" in panel.ui.presetLabel.text


@pytest.mark.parametrize("pixels", [12, 20])
def test_what_a_preset_is_can_be_read_to_its_end(panel, slicer_app, pixels):
    """A layout that is short of room takes it from labels that wrap."""
    import qt
    import slicer

    window = slicer.util.mainWindow()
    size, font = window.size, qt.QApplication.font()
    larger = qt.QFont(font)
    larger.setPixelSize(pixels)
    try:
        qt.QApplication.setFont(larger)
        window.resize(900, 500)
        for index in range(panel.ui.presetComboBox.count):
            panel.ui.presetComboBox.setCurrentIndex(index)
            for _ in range(3):
                slicer_app.processEvents()
            label = panel.ui.presetLabel
            whole = qt.QRect(0, 0, label.width, 10000)
            needed = label.fontMetrics().boundingRect(whole, qt.Qt.TextWordWrap, label.text).height()
            name = panel.ui.presetComboBox.currentText
            assert needed <= label.height < needed + 3 * pixels, name
            assert label.minimumSizeHint().height() < needed + 3 * pixels, name
    finally:
        qt.QApplication.setFont(font)
        window.resize(size)


def test_show_curves_shows_them(panel, slicer_app, tmp_path):
    import slicer

    run = finished_run(tmp_path / "run")
    panel.ui.outputPathEdit.currentPath = str(run.path)
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)
    panel.ui.plotButton.click()
    slicer_app.processEvents()
    (chart,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    plot = slicer.app.layoutManager().plotWidget(0)
    assert plot.visible and plot.mrmlPlotViewNode().GetPlotChartNodeID() == chart.GetID()
    titles = [plot.plotView()._chart.GetAxis(axis).GetTitle() for axis in (1, 0)]
    assert titles == ["Epoch", "Training loss, validation Dice"]
    slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)


def test_curves_become_tables_and_a_chart_that_a_saved_scene_shows(panel, tmp_path):
    import slicer
    from FlareSegmentTrainingSlicerLib import curves_nodes

    run = finished_run(tmp_path / "run")
    file = curves_nodes.save_scene(run)
    slicer.mrmlScene.Clear(False)
    slicer.util.loadScene(str(file), {})
    (chart,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    assert chart.GetNumberOfPlotSeriesNodes() == 6
    series = [chart.GetNthPlotSeriesNode(index) for index in range(6)]
    assert [node.GetYColumnName() for node in series][:2] == ["Loss", "Mean Dice"]
    assert series[1].GetTableNode().GetTable().GetColumnByName("Mean Dice").GetValue(2) == pytest.approx(0.84)
    (view,) = slicer.util.getNodesByClass("vtkMRMLPlotViewNode")
    assert view.GetPlotChartNodeID() == chart.GetID()
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    assert layout.GetViewArrangement() == slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalPlotView


def test_curves_of_one_epoch_are_no_lines(panel, tmp_path):
    """VTK cannot draw a line of one point, and says so at every repaint."""
    import slicer

    finished_run(tmp_path / "run", epochs=2)
    panel.ui.outputPathEdit.currentPath = str(tmp_path / "run")
    panel.ui.plotButton.click()
    (chart,) = slicer.util.getNodesByClass("vtkMRMLPlotChartNode")
    for index in range(chart.GetNumberOfPlotSeriesNodes()):
        series = chart.GetNthPlotSeriesNode(index)
        line = series.GetPlotType() == slicer.vtkMRMLPlotSeriesNode.PlotTypeScatter
        assert line == (series.GetTableNode().GetNumberOfRows() > 1), series.GetName()


def test_a_scene_without_a_window_opens_with_the_curves_and_no_warning(repository, tmp_path):
    finished_run(tmp_path / "run")
    code = (
        "import sys; sys.path[:0] = ['FlareSegment', 'FlareSegmentTraining', 'Testing']\n"
        "from pathlib import Path\nfrom slicerhost import boot; boot()\n"
        "from FlareSegmentTrainingLib.training.run_folder import RunFolder\n"
        "from FlareSegmentTrainingSlicerLib import curves_nodes\n"
        f"print(curves_nodes.save_scene(RunFolder(Path({str(tmp_path / 'run')!r}))), flush=True)\n"
        "import os; os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert (tmp_path / "run" / "curves.mrb").is_file(), done.stderr
    assert "layout" not in done.stdout + done.stderr


def test_showing_curves_twice_replaces_them(panel, tmp_path):
    import slicer

    finished_run(tmp_path / "run")
    panel.ui.outputPathEdit.currentPath = str(tmp_path / "run")
    panel.ui.plotButton.click()
    panel.ui.plotButton.click()
    assert len(slicer.util.getNodesByClass("vtkMRMLPlotChartNode")) == 1
    assert len(slicer.util.getNodesByClass("vtkMRMLTableNode")) == 2


def test_use_this_model_hands_the_model_to_the_other_panel(panel, slicer_app, tmp_path):
    import slicer

    from FlareSegmentLib.model.description import ModelDescription, Stage
    from FlareSegmentLib.model.intensity import Intensity
    from FlareSegmentLib.model.model_file import save_model
    from FlareSegmentLib.networks.vnet import build_network

    run = finished_run(tmp_path / "run")
    network = {"architecture": "unet", "base_channels": 2, "levels": 2, "out_channels": 2}
    stage = Stage("body", "body", network, shape=(16, 16, 16))
    description = ModelDescription("mine", "1", "none", {1: "liver"}, Intensity(-200.0, 200.0, (0.0, 1.0)), (stage,))
    save_model(run.best, description, {"body": build_network(network)})
    panel.ui.outputPathEdit.currentPath = str(run.path)
    assert panel.ui.useModelButton.enabled
    panel.ui.useModelButton.click()
    slicer_app.processEvents()
    other = slicer.util.getModuleWidget("FlareSegment")
    assert Path(other._parameterNode.modelFolder) == run.best.resolve()
    assert Path(other.ui.modelPathEdit.currentPath) == run.best.resolve()
    other.ui.modelPathEdit.currentPath = ""
    assert other._parameterNode.modelFolder == ""
