"""Slice and 3D views: Slicer's displayable managers draw off screen, a Qt widget shows the picture.

Painting the picture into a plain widget lets one `QWidget.grab()` hold panel and views, under the offscreen platform as
under an X server. Mouse and wheel events go to VTK's interactor, so slice browsing and camera moves are Slicer's own.
"""

from __future__ import annotations

import numpy as np
import slicer
import vtk
from PyQt5 import sip
from PyQt5.QtCore import QEvent, Qt
from PyQt5.QtGui import QImage, QPainter
from PyQt5.QtWidgets import QVBoxLayout, QWidget
from vtk.util.numpy_support import vtk_to_numpy

from slicerhost.ctk_widgets import ctkAxesWidget

_SLICE_MANAGERS = ("Crosshair", "VolumeGlyphSlice", "ModelSlice", "OrientationMarker", "Ruler", "ScalarBar",
                   "Segmentations2D", "Markups", "Transforms2D", "ColorLegend")
_THREE_D_MANAGERS = ("VolumeRendering", "Camera", "View", "Model", "ThreeDReformat", "Crosshair3D", "OrientationMarker",
                     "Ruler", "Segmentations3D", "Markups", "Transforms3D", "ColorLegend")
_MOUSE_BUTTONS = {Qt.LeftButton: "Left", Qt.RightButton: "Right", Qt.MiddleButton: "Middle"}


def _manager_class(name):
    dimension = name[-2:] if name.endswith(("2D", "3D")) else ""
    return f"vtkMRML{name.removesuffix(dimension)}DisplayableManager{dimension}"


def picture_of(render_window):
    """Rows, columns, RGB of what a render window shows."""
    render_window.Render()
    grabber = vtk.vtkWindowToImageFilter()
    grabber.SetInput(render_window)
    grabber.ReadFrontBufferOff()
    grabber.ShouldRerenderOff()
    grabber.Update()
    width, height, _ = grabber.GetOutput().GetDimensions()
    rows = vtk_to_numpy(grabber.GetOutput().GetPointData().GetScalars()).reshape(height, width, 3)
    return np.ascontiguousarray(rows[::-1])


class _RenderView(QWidget):
    """What CTK's render views have in common: a render window, its interactor, and a picture that follows it."""

    def __init__(self, factory, manager_names):
        super().__init__()
        self._picture, self._is_outdated, self._is_paused = None, True, 0
        self._render_window = vtk.vtkRenderWindow()
        self._render_window.SetOffScreenRendering(1)
        self._render_window.SetShowWindow(False)
        self._render_window.SetMultiSamples(0)
        self._render_window.SetSize(400, 400)
        self._renderer = vtk.vtkRenderer()
        self._render_window.AddRenderer(self._renderer)
        self._interactor = vtk.vtkRenderWindowInteractor()
        self._interactor.SetRenderWindow(self._render_window)
        self._interactor.Initialize()
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.AddObserver(vtk.vtkCommand.UpdateEvent, lambda caller, event: self.scheduleRender())
        for name in map(_manager_class, manager_names):
            if hasattr(slicer, name) and not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._group.Initialize(factory, self._renderer)
        self.setMinimumSize(160, 120)
        self.setFocusPolicy(Qt.StrongFocus)
        self.setMouseTracking(True)

    def renderWindow(self):
        return self._render_window

    def renderer(self):
        return self._renderer

    def interactor(self):
        return self._interactor

    def displayableManagerByClassName(self, className):
        return self._group.GetDisplayableManagerByClassName(className)

    def setRenderPaused(self, paused):
        self._is_paused = max(0, self._is_paused + (1 if paused else -1))
        if not self._is_paused:
            self.scheduleRender()

    def pauseRender(self):
        self.setRenderPaused(True)

    def resumeRender(self):
        self.setRenderPaused(False)

    def scheduleRender(self):
        if not sip.isdeleted(self):
            self._is_outdated = True
            self.update()

    def forceRender(self):
        self._picture = picture_of(self._render_window)
        self._is_outdated = False
        self.update()

    def _on_resized(self, width, height):
        pass

    def resizeEvent(self, event):
        width, height = event.size().width(), event.size().height()
        self._render_window.SetSize(width, height)
        self._interactor.SetSize(width, height)
        self._on_resized(width, height)
        self.scheduleRender()

    def paintEvent(self, event):
        if self._picture is None or (self._is_outdated and not self._is_paused):
            self._picture = picture_of(self._render_window)
            self._is_outdated = False
        height, width, _ = self._picture.shape
        painter = QPainter(self)
        painter.drawImage(0, 0, QImage(self._picture.data, width, height, 3 * width, QImage.Format_RGB888))
        painter.end()

    def _forward(self, event, name, clicks=0):
        keys = event.modifiers()
        position = event.position().toPoint() if event.type() == QEvent.Wheel else event.pos()
        self._interactor.SetEventInformationFlipY(
            position.x(), position.y(), int(bool(keys & Qt.ControlModifier)), int(bool(keys & Qt.ShiftModifier)),
            chr(0), clicks, None,
        )
        getattr(self._interactor, name)()
        self.scheduleRender()

    def mousePressEvent(self, event):
        self._forward(event, f"{_MOUSE_BUTTONS[event.button()]}ButtonPressEvent")

    def mouseReleaseEvent(self, event):
        self._forward(event, f"{_MOUSE_BUTTONS[event.button()]}ButtonReleaseEvent")

    def mouseDoubleClickEvent(self, event):
        self._forward(event, f"{_MOUSE_BUTTONS[event.button()]}ButtonPressEvent", clicks=1)

    def mouseMoveEvent(self, event):
        self._forward(event, "MouseMoveEvent")

    def enterEvent(self, event):
        self._interactor.EnterEvent()

    def leaveEvent(self, event):
        self._interactor.LeaveEvent()

    def wheelEvent(self, event):
        self._forward(event, f"MouseWheel{'Forward' if event.angleDelta().y() > 0 else 'Backward'}Event")


class qMRMLSliceView(_RenderView):
    """The picture of one slice node with what Slicer draws over it."""

    def __init__(self, core, name, orientation):
        super().__init__(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), _SLICE_MANAGERS)
        self._renderer.GetActiveCamera().ParallelProjectionOn()
        self._overlay_renderer = vtk.vtkRenderer()
        self._overlay_renderer.SetLayer(1)
        self._render_window.SetNumberOfLayers(2)
        self._render_window.AddRenderer(self._overlay_renderer)
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        self._actor = vtk.vtkActor2D()
        self._actor.SetMapper(self._mapper)
        self._actor.GetProperty().SetDisplayLocationToBackground()
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(core.application_logic)
        core.application_logic.GetSliceLogics().AddItem(self._logic)
        self._style = slicer.vtkMRMLSliceViewInteractorStyle()
        self._style.SetSliceLogic(self._logic)
        self._style.SetDisplayableManagers(self._group)
        self._logic.SetMRMLScene(core.scene)
        self._node = self._logic.AddSliceNode(name)
        self._node.SetOrientation(orientation)
        self._group.SetMRMLDisplayableNode(self._node)
        self._logic.AddObserver(vtk.vtkCommand.ModifiedEvent, self._on_logic_modified)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyleUser())
        self._style.SetInteractor(self._interactor)
        self._on_resized(*self._render_window.GetSize())

    def mrmlSliceNode(self):
        return self._node

    def sliceViewInteractorStyle(self):
        return self._style

    def convertDeviceToXYZ(self, xy):
        xyz = [0.0] * 3
        manager = slicer.vtkMRMLAbstractSliceViewDisplayableManager
        manager.ConvertDeviceToXYZ(self._interactor, self._node, *xy, xyz)
        return tuple(xyz)

    def convertRASToXYZ(self, ras):
        return self._transformed(ras, inverse=True)

    def convertXYZToRAS(self, xyz):
        return self._transformed(xyz, inverse=False)

    def _transformed(self, point, inverse):
        matrix = vtk.vtkMatrix4x4()
        matrix.DeepCopy(self._node.GetXYToRAS())
        if inverse:
            matrix.Invert()
        return tuple(matrix.MultiplyPoint((*point, 1.0))[:3])

    def _on_resized(self, width, height):
        self._logic.ResizeSliceNode(width, height)

    def _on_logic_modified(self, caller, event):
        connection = self._logic.GetImageDataConnection()
        self._mapper.SetInputConnection(connection)
        self._actor.SetVisibility(connection is not None)
        if connection is not None and not self._renderer.HasViewProp(self._actor):
            self._renderer.AddViewProp(self._actor)
        self.scheduleRender()


class qMRMLThreeDView(_RenderView):
    """The 3D picture of one view node."""

    def __init__(self, core, name):
        super().__init__(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), _THREE_D_MANAGERS)
        self._renderer.SetUseDepthPeeling(True)
        self._renderer.SetBackground(0.76, 0.76, 0.91)
        self._renderer.SetBackground2(0.45, 0.47, 0.74)
        self._renderer.SetGradientBackground(True)
        self._logic = slicer.vtkMRMLViewLogic()
        self._logic.SetMRMLApplicationLogic(core.application_logic)
        core.application_logic.GetViewLogics().AddItem(self._logic)
        self._logic.SetMRMLScene(core.scene)
        self._node = self._logic.AddViewNode(name)
        self._group.SetMRMLDisplayableNode(self._node)
        self._style = slicer.vtkMRMLThreeDViewInteractorStyle()
        self._style.SetDisplayableManagers(self._group)
        self._interactor.SetInteractorStyle(vtk.vtkInteractorStyle3D())
        self._style.SetInteractor(self._interactor)

    def mrmlViewNode(self):
        return self._node

    def interactorStyle(self):
        return self._style

    def cameraNode(self):
        return self._group.GetDisplayableManagerByClassName("vtkMRMLCameraDisplayableManager").GetCameraNode()

    def resetCamera(self, resetRotation=True, resetTranslation=True, resetDistance=True):
        self.cameraNode().Reset(resetRotation, resetTranslation, resetDistance, self._renderer)
        self.scheduleRender()

    def resetFocalPoint(self):
        """Center the view on what is visible, box and axis labels aside."""
        was_modifying = self._node.StartModify()
        box, labels = self._node.GetBoxVisible(), self._node.GetAxisLabelsVisible()
        self._node.SetBoxVisible(0)
        self._node.SetAxisLabelsVisible(0)
        self._node.EndModify(was_modifying)
        self._render_window.Render()
        self._renderer.ResetCamera()
        was_modifying = self._node.StartModify()
        self._node.SetBoxVisible(box)
        self._node.SetAxisLabelsVisible(labels)
        self._node.EndModify(was_modifying)
        self._node.InvokeEvent(slicer.vtkMRMLViewNode.ResetFocalPointRequestedEvent)
        self.scheduleRender()

    def lookFromAxis(self, axis):
        self._look_from(axis)

    def lookFromViewAxis(self, axis):
        self._look_from(axis)

    def rotateToViewAxis(self, axis):
        """0 to 5: left, right, posterior, anterior, inferior, superior."""
        camera = slicer.vtkMRMLCameraNode
        order = (camera.Left, camera.Right, camera.Posterior, camera.Anterior, camera.Inferior, camera.Superior)
        self._rotate_to(order[axis])

    def _look_from(self, axis):
        camera = slicer.vtkMRMLCameraNode
        self._rotate_to({
            ctkAxesWidget.Right: camera.Right, ctkAxesWidget.Left: camera.Left,
            ctkAxesWidget.Superior: camera.Superior, ctkAxesWidget.Inferior: camera.Inferior,
            ctkAxesWidget.Anterior: camera.Anterior, ctkAxesWidget.Posterior: camera.Posterior,
        }[axis])

    def _rotate_to(self, direction):
        self.cameraNode().RotateTo(direction)
        self.scheduleRender()


class _Canvas(QWidget):
    """Paints what a render window shows, anew when it is told to."""

    def __init__(self, render_window):
        super().__init__()
        self._render_window, self._picture = render_window, None

    def renew(self):
        if not sip.isdeleted(self):
            self._picture = None
            self.update()

    def resizeEvent(self, event):
        self._render_window.SetSize(event.size().width(), event.size().height())
        self.renew()

    def paintEvent(self, event):
        if self._picture is None:
            self._picture = picture_of(self._render_window)
        height, width, _ = self._picture.shape
        painter = QPainter(self)
        painter.drawImage(0, 0, QImage(self._picture.data, width, height, 3 * width, QImage.Format_RGB888))
        painter.end()


class qMRMLPlotView(QWidget):
    """The picture of one plot view node's chart. What VTK's charts complain of, they complain of here too."""

    def __init__(self, core, name):
        super().__init__()
        self._scene = core.scene
        self._context_view = vtk.vtkContextView()
        self._context_view.GetRenderWindow().SetOffScreenRendering(1)
        self._chart = vtk.vtkChartXY()
        self._context_view.GetScene().AddItem(self._chart)
        self._node = slicer.vtkMRMLPlotViewNode()
        self._node.SetName(name)
        self._node.SetLayoutName(name)
        self._node.SetSingletonTag(name)
        self._node = core.scene.AddNode(self._node)
        self._node.AddObserver("ModifiedEvent", self._on_modified)
        self._observed = None
        self._canvas = _Canvas(self._context_view.GetRenderWindow())
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self._canvas)
        self.setMinimumSize(160, 120)

    def _on_modified(self, caller, event):
        self._update_chart()
        self._canvas.renew()

    def _update_chart(self):
        chart = self._scene.GetNodeByID(self._node.GetPlotChartNodeID() or "")
        if chart is not self._observed:
            if self._observed is not None:
                self._observed.RemoveObserver(self._tag)
            self._observed = chart
            self._tag = chart.AddObserver("ModifiedEvent", self._on_modified) if chart is not None else None
        self._chart.ClearPlots()
        if chart is None:
            return
        for index in range(chart.GetNumberOfPlotSeriesNodes()):
            plot = self._plot(chart.GetNthPlotSeriesNode(index))
            if plot is not None:
                self._chart.AddPlot(plot)
        self._chart.SetTitle(chart.GetTitle() or "")
        for axis, title in ((vtk.vtkAxis.BOTTOM, chart.GetXAxisTitle()), (vtk.vtkAxis.LEFT, chart.GetYAxisTitle())):
            self._chart.GetAxis(axis).SetTitle(title or "")
        self._chart.SetShowLegend(chart.GetLegendVisibility())

    def _plot(self, series):
        kinds = slicer.vtkMRMLPlotSeriesNode
        table = series.GetTableNode().GetTable() if series is not None and series.GetTableNode() is not None else None
        if table is None or table.GetColumnByName(series.GetYColumnName() or "") is None:
            return None
        x_name = series.GetXColumnName() if series.IsXColumnRequired() else series.GetYColumnName()
        if table.GetColumnByName(x_name or "") is None:
            return None
        is_line = series.GetPlotType() in (kinds.PlotTypeLine, kinds.PlotTypeScatter)
        plot = vtk.vtkPlotLine() if is_line else vtk.vtkPlotBar()
        plot.SetColorF(*series.GetColor())
        plot.SetWidth(series.GetLineWidth())
        plot.SetUseIndexForXSeries(not series.IsXColumnRequired())
        plot.SetInputData(table, x_name, series.GetYColumnName())
        plot.SetLabel(series.GetName())
        if is_line:
            lines = {kinds.LineStyleSolid: vtk.vtkPen.SOLID_LINE, kinds.LineStyleDash: vtk.vtkPen.DASH_LINE,
                     kinds.LineStyleDot: vtk.vtkPen.DOT_LINE, kinds.LineStyleDashDot: vtk.vtkPen.DASH_DOT_LINE,
                     kinds.LineStyleDashDotDot: vtk.vtkPen.DASH_DOT_DOT_LINE}
            plot.GetPen().SetLineType(lines.get(series.GetLineStyle(), vtk.vtkPen.NO_PEN))
            marks = {kinds.MarkerStyleCross: vtk.vtkPlotPoints.CROSS, kinds.MarkerStylePlus: vtk.vtkPlotPoints.PLUS,
                     kinds.MarkerStyleSquare: vtk.vtkPlotPoints.SQUARE,
                     kinds.MarkerStyleCircle: vtk.vtkPlotPoints.CIRCLE,
                     kinds.MarkerStyleDiamond: vtk.vtkPlotPoints.DIAMOND}
            plot.SetMarkerStyle(marks.get(series.GetMarkerStyle(), vtk.vtkPlotPoints.NONE))
            plot.SetMarkerSize(series.GetMarkerSize())
        return plot
