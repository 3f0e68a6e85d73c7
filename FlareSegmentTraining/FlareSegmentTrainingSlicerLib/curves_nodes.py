"""A run's curves in the scene: tables, plot series and a chart that the plot view shows."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import slicer
from slicer.i18n import tr as _

from FlareSegmentLib.organs import organ_by_key, picture_color
from FlareSegmentSlicerLib.scene.organ_names import organ_name
from FlareSegmentTrainingLib.training.reports import DICE, read_log
from FlareSegmentTrainingLib.training.run_folder import LOG_FILE, RunFolder

ATTRIBUTE = "FlareSegmentTraining.Run"
SCENE_FILE = "curves.mrb"
PLOT_VIEW = "PlotView1"
_GRAY = (0.2, 0.2, 0.2)


def show_curves(folder: RunFolder):
    """Put the curves of a run into the scene, in place of its earlier ones, and show their chart.

    Epochs are counted over all stages. Dice has a table of its own, since not every epoch is evaluated.

    Returns:
        The chart node.

    Raises:
        OSError, ValueError: the run has no log yet, or it is damaged.
    """
    rows, organs = read_log(folder.path / LOG_FILE)
    name = folder.path.resolve().name
    _remove(str(folder.path.resolve()))
    epochs = np.arange(1, len(rows) + 1, dtype=float)
    loss = np.array([row["loss"] for row in rows])
    evaluated = [index for index, row in enumerate(rows) if not np.isnan(row["dice"])]
    columns = {_("Mean Dice"): "dice", **{organ_name(organ_by_key(key)): DICE + key for key in organs}}
    dice = {title: np.array([rows[index][column] for index in evaluated]) for title, column in columns.items()}

    chart = _add("vtkMRMLPlotChartNode", f"{name} training", folder)
    chart.SetTitle(name)
    chart.SetXAxisTitle(_("Epoch"))
    chart.SetYAxisTitle(_("Training loss, validation Dice"))
    loss_table = _table(f"{name} loss", epochs, {_("Loss"): loss}, folder)
    _series(chart, loss_table, _("Loss"), _GRAY, slicer.vtkMRMLPlotSeriesNode.LineStyleDash, folder)
    if evaluated:
        dice_table = _table(f"{name} Dice", epochs[evaluated], dice, folder)
        organ_of_title = {organ_name(organ_by_key(key)): organ_by_key(key) for key in organs}
        for title in dice:
            organ = organ_of_title.get(title)
            color = _GRAY if organ is None else tuple(value / 255 for value in picture_color(organ))
            left = organ is not None and organ.modifier_meaning == "Left"
            style = slicer.vtkMRMLPlotSeriesNode.LineStyleDot if left else slicer.vtkMRMLPlotSeriesNode.LineStyleSolid
            _series(chart, dice_table, title, color, style, folder)
    slicer.modules.plots.logic().ShowChartInLayout(chart)
    return chart


def save_scene(folder: RunFolder) -> Path:
    """Save a scene with nothing but the run's curves as RUN/curves.mrb, for a script without a window; the scene is
    cleared.

    Raises:
        OSError: when the file could not be written.
    """
    slicer.mrmlScene.Clear(False)
    _open_with(show_curves(folder))
    file = folder.path / SCENE_FILE
    with tempfile.TemporaryDirectory(dir=folder.path, prefix=".saving-") as private:
        temporary = Path(private) / SCENE_FILE
        if not slicer.util.saveScene(str(temporary), {}):
            raise OSError(f"{file} could not be written")
        os.replace(temporary, file)
    return file


def _open_with(chart) -> None:
    """Let the scene open in a layout with this chart. Without a window no layout manager has made the nodes that say
    so.
    """
    arrangement = slicer.vtkMRMLLayoutNode.SlicerLayoutConventionalPlotView
    layout = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLLayoutNode")
    if layout is None or not layout.IsLayoutDescription(arrangement):
        logic = slicer.vtkMRMLLayoutLogic()  # describes Slicer's layouts to the node, and makes the views of one
        logic.SetMRMLScene(slicer.mrmlScene)
        layout = logic.GetLayoutNode()
    layout.SetViewArrangement(arrangement)
    view = slicer.mrmlScene.GetSingletonNode(PLOT_VIEW, "vtkMRMLPlotViewNode")
    view.SetPlotChartNodeID(chart.GetID())


def _add(class_name: str, name: str, folder: RunFolder):
    node = slicer.mrmlScene.AddNewNodeByClass(class_name, name)
    node.SetAttribute(ATTRIBUTE, str(folder.path.resolve()))
    return node


def _table(name: str, epochs: np.ndarray, columns: dict[str, np.ndarray], folder: RunFolder):
    node = _add("vtkMRMLTableNode", name, folder)
    slicer.util.updateTableFromArray(node, np.column_stack([epochs, *columns.values()]), [_("Epoch"), *columns])
    return node


def _series(chart, table, column: str, color, line_style: int, folder: RunFolder) -> None:
    series = _add("vtkMRMLPlotSeriesNode", column, folder)
    series.SetAndObserveTableNodeID(table.GetID())
    series.SetXColumnName(_("Epoch"))
    series.SetYColumnName(column)
    # A line of one point cannot be drawn: VTK complains at every repaint.
    line = table.GetNumberOfRows() > 1
    types = slicer.vtkMRMLPlotSeriesNode
    series.SetPlotType(types.PlotTypeScatter if line else types.PlotTypeScatterBar)
    series.SetColor(*color)
    series.SetLineStyle(line_style)
    series.SetMarkerStyle(slicer.vtkMRMLPlotSeriesNode.MarkerStyleCircle)
    chart.AddAndObservePlotSeriesNodeID(series.GetID())


def _remove(run: str) -> None:
    for class_name in ("vtkMRMLPlotChartNode", "vtkMRMLPlotSeriesNode", "vtkMRMLTableNode"):
        for node in slicer.util.getNodesByClass(class_name):
            if node.GetAttribute(ATTRIBUTE) == run:
                slicer.mrmlScene.RemoveNode(node)
