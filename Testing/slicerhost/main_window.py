"""The main window: module panel on the left, slice views and 3D view on the right, as in Slicer."""

from __future__ import annotations

import slicer
from PyQt5.QtCore import QEvent, QObject, QSize, Qt, pyqtProperty, pyqtSignal
from PyQt5.QtGui import QColor
from PyQt5.QtWidgets import (
    QComboBox,
    QDockWidget,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLayout,
    QMainWindow,
    QScrollArea,
    QSizePolicy,
    QSpacerItem,
    QTextBrowser,
    QToolBar,
    QVBoxLayout,
    QWidget,
)

from slicerhost.ctk_widgets import ctkCollapsibleButton, ctkDoubleSlider
from slicerhost.qmrml_widgets import qMRMLWidget, qSlicerWidget
from slicerhost.stand_in import exported_names
from slicerhost.views import qMRMLPlotView, qMRMLSliceView, qMRMLThreeDView

_SLICE_VIEWS = {
    "Red": ("Axial", "R", "#f34a33"),
    "Green": ("Coronal", "G", "#6eb04b"),
    "Yellow": ("Sagittal", "Y", "#edd54c"),
}
_PLACES = {"Red": (0, 0), "ThreeD": (0, 1), "Green": (1, 0), "Yellow": (1, 1)}


def exported():
    """The widgets of this file, and the views, by class name."""
    return exported_names(globals(), ("qMRML", "qSlicer"))


class _ViewBar(qMRMLWidget):
    """The colored bar above a view."""

    def __init__(self, label, color):
        super().__init__()
        self.setFixedHeight(20)
        self.setAttribute(Qt.WA_StyledBackground)
        self.setStyleSheet(f"background: {color}; color: black; font-size: 11px;")
        self._layout = QHBoxLayout(self)
        self._layout.setContentsMargins(4, 0, 4, 0)
        self._layout.addWidget(QLabel(label))


class qMRMLSliceControllerWidget(_ViewBar):
    """Slice offset slider and the slice settings that scripts change."""

    def __init__(self, view, label, color):
        super().__init__(label, color)
        self._view = view
        self._slider = ctkDoubleSlider(Qt.Horizontal, self)
        self._layout.addWidget(self._slider, 1)
        self._slider.valueChanged.connect(self.setSliceOffsetValue)
        view.mrmlSliceNode().AddObserver("ModifiedEvent", lambda caller, event: self._follow_logic())

    def _follow_logic(self):
        bounds = [0.0] * 6
        self.sliceLogic().GetSliceBounds(bounds)
        low, high = (bounds[4], bounds[5]) if bounds[4] < bounds[5] else (-100.0, 100.0)
        self._slider.blockSignals(True)
        self._slider.setRange(low, high)
        self._slider.setValue(self.sliceLogic().GetSliceOffset())
        self._slider.blockSignals(False)

    def sliceLogic(self):
        return self._view._logic

    def mrmlSliceNode(self):
        return self._view.mrmlSliceNode()

    def mrmlSliceCompositeNode(self):
        return self.sliceLogic().GetSliceCompositeNode()

    def sliceOffsetSlider(self):
        return self._slider

    def setSliceOffsetValue(self, offset):
        self.sliceLogic().StartSliceOffsetInteraction()
        self.sliceLogic().SetSliceOffset(offset)
        self.sliceLogic().EndSliceOffsetInteraction()

    def fitSliceToBackground(self):
        self.sliceLogic().FitSliceToBackground()
        self.sliceLogic().SnapSliceOffsetToIJK()
        self._view.scheduleRender()

    def setSliceVisible(self, visible):
        self.mrmlSliceNode().SetSliceVisible(visible)

    def setSliceLink(self, linked):
        for index in range(slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLSliceCompositeNode")):
            slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLSliceCompositeNode").SetLinkedControl(linked)

    def setSliceOrientation(self, orientation):
        self.mrmlSliceNode().SetOrientation(orientation)


class qMRMLThreeDViewControllerWidget(_ViewBar):
    def __init__(self, view):
        super().__init__("1", "#b5b5e0")
        self._view = view
        self._layout.addStretch(1)

    def mrmlThreeDViewNode(self):
        return self._view.mrmlViewNode()

    def resetFocalPoint(self):
        self._view.resetFocalPoint()

    def lookFromAxis(self, axis):
        self._view.lookFromAxis(axis)

    def setBlackBackground(self):
        self._set_background((0.0, 0.0, 0.0), (0.0, 0.0, 0.0))

    def setWhiteBackground(self):
        self._set_background((1.0, 1.0, 1.0), (1.0, 1.0, 1.0))

    def setLightBlueBackground(self):
        node = slicer.vtkMRMLViewNode
        self._set_background(node.defaultBackgroundColor(), node.defaultBackgroundColor2())

    def set3DAxisVisible(self, visible):
        self.mrmlThreeDViewNode().SetBoxVisible(visible)

    def set3DAxisLabelVisible(self, visible):
        self.mrmlThreeDViewNode().SetAxisLabelsVisible(visible)

    def _set_background(self, color, color2):
        node = self.mrmlThreeDViewNode()
        was_modifying = node.StartModify()
        node.SetBackgroundColor(*color)
        node.SetBackgroundColor2(*color2)
        node.EndModify(was_modifying)


class _ViewWidget(qMRMLWidget):
    def __init__(self, view, controller):
        super().__init__()
        self._view, self._controller = view, controller
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(0)
        layout.addWidget(controller)
        layout.addWidget(view, 1)
        self.setMRMLScene(slicer.mrmlScene)

    def viewWidget(self):
        return self._view

    def controllerWidget(self):
        return self._controller

    def logic(self):
        return self._view._logic


class qMRMLSliceWidget(_ViewWidget):
    def __init__(self, core, name):
        orientation, label, color = _SLICE_VIEWS[name]
        view = qMRMLSliceView(core, name, orientation)
        view.mrmlSliceNode().SetLayoutLabel(label)
        view.mrmlSliceNode().SetLayoutColor(*QColor(color).getRgbF()[:3])
        super().__init__(view, qMRMLSliceControllerWidget(view, label, color))
        self._name = name

    sliceViewName = pyqtProperty(str, lambda self: self._name)

    def sliceView(self):
        return self._view

    def sliceController(self):
        return self._controller

    def sliceLogic(self):
        return self._view._logic

    def mrmlSliceNode(self):
        return self._view.mrmlSliceNode()

    def mrmlSliceCompositeNode(self):
        return self.sliceLogic().GetSliceCompositeNode()

    def interactorStyle(self):
        return self._view.sliceViewInteractorStyle()

    def fitSliceToBackground(self):
        self._controller.fitSliceToBackground()

    def setSliceOrientation(self, orientation):
        self._controller.setSliceOrientation(orientation)

    sliceOrientation = pyqtProperty(str, lambda self: self.mrmlSliceNode().GetOrientation(), setSliceOrientation)


class qMRMLThreeDWidget(_ViewWidget):
    def __init__(self, core):
        view = qMRMLThreeDView(core, "1")
        super().__init__(view, qMRMLThreeDViewControllerWidget(view))

    def threeDView(self):
        return self._view

    def threeDController(self):
        return self._controller

    def viewLogic(self):
        return self._view._logic

    def mrmlViewNode(self):
        return self._view.mrmlViewNode()


class qMRMLPlotViewControllerWidget(_ViewBar):
    def __init__(self):
        super().__init__("P1", "#e1e1e1")
        self._layout.addStretch(1)


class qMRMLPlotWidget(_ViewWidget):
    def __init__(self, core):
        super().__init__(qMRMLPlotView(core, "PlotView1"), qMRMLPlotViewControllerWidget())

    def plotView(self):
        return self._view

    def plotController(self):
        return self._controller

    def mrmlPlotViewNode(self):
        return self._view._node


class qSlicerLayoutManager(QObject):
    """Three slice views, one 3D view, and a plot view in the layouts that have one. Which layout is shown is said by
    the layout node, which is made by this manager: without a window there is none, and no layout that it could show.
    """

    layoutChanged = pyqtSignal(int)
    activeMRMLThreeDViewNodeChanged = pyqtSignal(object)
    SIGNALS = {"activeMRMLThreeDViewNodeChanged(vtkMRMLViewNode*)": "activeMRMLThreeDViewNodeChanged"}

    def __init__(self, core, viewport):
        super().__init__(viewport)
        self._core, self._viewport = core, viewport
        self._widgets = {name: qMRMLSliceWidget(core, name) for name in _SLICE_VIEWS}
        self._widgets["ThreeD"] = qMRMLThreeDWidget(core)
        grid = QGridLayout(viewport)
        grid.setContentsMargins(2, 2, 2, 2)
        grid.setSpacing(3)
        for name, (row, column) in _PLACES.items():
            grid.addWidget(self._widgets[name], row, column)
        layouts = slicer.vtkMRMLLayoutNode
        slices = tuple(_SLICE_VIEWS)
        self._shown = {
            layouts.SlicerLayoutFourUpView: (*slices, "ThreeD"),
            layouts.SlicerLayoutConventionalView: (*slices, "ThreeD"),
            layouts.SlicerLayoutFourUpPlotView: (*slices, "ThreeD", "Plot"),
            layouts.SlicerLayoutConventionalPlotView: (*slices, "ThreeD", "Plot"),
            layouts.SlicerLayoutOneUpPlotView: ("Plot",),
            layouts.SlicerLayoutOneUp3DView: ("ThreeD",),
            layouts.SlicerLayoutOneUpRedSliceView: ("Red",),
            layouts.SlicerLayoutOneUpGreenSliceView: ("Green",),
            layouts.SlicerLayoutOneUpYellowSliceView: ("Yellow",),
        }
        self._logic = slicer.vtkMRMLLayoutLogic()
        self._logic.SetMRMLScene(core.scene)
        self._logic.GetLayoutNode().AddObserver("ModifiedEvent", self._on_node_modified)
        self._layout = None
        self.setLayout(layouts.SlicerLayoutFourUpView)

    def setLayout(self, newLayout):
        if newLayout not in self._shown:
            raise ValueError(f"this host has no layout {newLayout}; it knows {sorted(self._shown)}")
        self._logic.GetLayoutNode().SetViewArrangement(newLayout)

    def _on_node_modified(self, caller, event):
        arrangement = self._logic.GetLayoutNode().GetViewArrangement()
        if arrangement == self._layout or arrangement not in self._shown:
            return
        self._layout = arrangement
        if "Plot" in self._shown[arrangement] and "Plot" not in self._widgets:
            self._widgets["Plot"] = qMRMLPlotWidget(self._core)
            self._viewport.layout().addWidget(self._widgets["Plot"], 2, 0, 1, 2)
        for name, widget in self._widgets.items():
            widget.setVisible(name in self._shown[arrangement])
        self.layoutChanged.emit(arrangement)

    layout = pyqtProperty(int, lambda self: self._layout, setLayout)
    threeDViewCount = pyqtProperty(int, lambda self: 1)
    tableViewCount = pyqtProperty(int, lambda self: 0)
    plotViewCount = pyqtProperty(int, lambda self: int("Plot" in self._widgets))

    def viewport(self):
        return self._viewport

    def sliceViewNames(self):
        return tuple(_SLICE_VIEWS)

    def sliceWidget(self, name):
        return self._widgets.get(name) if name in _SLICE_VIEWS else None

    def threeDWidget(self, index):
        return self._widgets["ThreeD"] if index in (0, "1") else None

    def plotWidget(self, index):
        return self._widgets.get("Plot") if index == 0 else None

    def layoutLogic(self):
        return self._logic

    def mrmlSliceLogics(self):
        return self._core.application_logic.GetSliceLogics()

    def mrmlViewLogics(self):
        return self._core.application_logic.GetViewLogics()

    def activeMRMLThreeDViewNode(self):
        return self._widgets["ThreeD"].mrmlViewNode()

    def activeThreeDRenderer(self):
        return self._widgets["ThreeD"].threeDView().renderer()

    def resetSliceViews(self):
        for name in _SLICE_VIEWS:
            self._widgets[name].fitSliceToBackground()

    def resetThreeDViews(self):
        self._widgets["ThreeD"].threeDView().resetFocalPoint()

    def setRenderPaused(self, pause):
        for name in (*_SLICE_VIEWS, "ThreeD"):
            self._widgets[name].viewWidget().setRenderPaused(pause)

    def pauseRender(self):
        self.setRenderPaused(True)

    def resumeRender(self):
        self.setRenderPaused(False)


class qSlicerModulePanel(qSlicerWidget):
    """Holds the panel of one module, in a scroll area that scrolls up and down only: the panel's minimum width, with a
    scroll bar's beside it, is the least width of the dock, which grows with it and never shrinks back by itself.
    """

    def __init__(self, parent=None):
        super().__init__(parent)
        self.setObjectName("ModulePanel")
        self.setSizePolicy(QSizePolicy.Minimum, QSizePolicy.Preferred)
        grid = QGridLayout(self)
        grid.setSizeConstraint(QLayout.SetMinimumSize)
        grid.setContentsMargins(0, 0, 0, 0)
        self._scroll_area = QScrollArea(self)
        self._scroll_area.setObjectName("ScrollArea")
        self._scroll_area.setSizePolicy(QSizePolicy.Minimum, QSizePolicy.Expanding)
        self._scroll_area.setFrameShape(QScrollArea.NoFrame)
        self._scroll_area.setHorizontalScrollBarPolicy(Qt.ScrollBarAlwaysOff)
        self._scroll_area.setWidgetResizable(True)
        grid.addWidget(self._scroll_area)
        contents = QWidget()
        contents.setObjectName("scrollAreaWidgetContents")
        contents.setSizePolicy(QSizePolicy.Minimum, QSizePolicy.Preferred)
        self._column = QVBoxLayout(contents)
        self._column.setSizeConstraint(QLayout.SetMinAndMaxSize)
        self._column.setContentsMargins(0, 0, 0, 0)
        self._help = ctkCollapsibleButton("Help && Acknowledgement")
        self._help.collapsed = True
        self._help.setSizePolicy(QSizePolicy.Ignored, QSizePolicy.Fixed)
        self._help_text = QTextBrowser()
        QVBoxLayout(self._help).addWidget(self._help_text)
        self._column.addWidget(self._help)
        self._column.addItem(QSpacerItem(0, 0, QSizePolicy.Minimum, QSizePolicy.MinimumExpanding))
        self._scroll_area.setWidget(contents)

    def _add(self, module, widget):
        widget.layout().setContentsMargins(0, 0, 0, 0)
        self._column.insertWidget(1, widget, 1)
        widget.setSizePolicy(QSizePolicy.Minimum, widget.sizePolicy.verticalPolicy())
        widget.setVisible(True)
        self._help.setVisible(bool(module.helpText))
        self._help_text.setHtml(module.helpText + module.acknowledgementText)
        widget.installEventFilter(self)
        self.updateGeometry()
        widget.enter()

    def _remove(self, widget):
        widget.exit()
        widget.removeEventFilter(self)
        self._column.takeAt(self._column.indexOf(widget))
        widget.setVisible(False)
        widget.setParent(None)

    def eventFilter(self, watched, event):
        if event.type() == QEvent.Resize:
            self.updateGeometry()
        return False

    def minimumSizeHint(self):
        contents = self._scroll_area.widget().minimumSizeHint()
        bar = self._scroll_area.horizontalScrollBar().sizeHint()
        return QSize(contents.width() + bar.width(), super().minimumSizeHint().height())


class qSlicerModuleSelectorToolBar(QToolBar):
    """Shows a module's panel; the one that was shown before is left first."""

    moduleSelected = pyqtSignal(str)

    def __init__(self, main_window):
        super().__init__("Module selection", main_window)
        self.setObjectName("ModuleSelectorToolBar")
        self._main_window, self._selected = main_window, ""
        self._combo = QComboBox(self)
        self._combo.setMinimumWidth(240)
        self._combo.activated[str].connect(self.selectModule)
        self.addWidget(QLabel(" Modules: "))
        self.addWidget(self._combo)
        for name in slicer.app.moduleManager().modulesNames():
            self._offer(name)
        slicer.app.moduleManager().moduleLoaded.connect(self._offer)

    def _offer(self, name):
        if isinstance(slicer.app.moduleManager().module(name), slicer.qSlicerScriptedLoadableModule):
            self._combo.addItem(name)

    def selectModule(self, moduleName):
        module = slicer.app.moduleManager().module(moduleName)
        if module is None:
            raise RuntimeError(f"there is no module {moduleName}")
        if self._selected == moduleName:
            return
        self._main_window._show_module(module)
        self._selected = moduleName
        self._combo.setCurrentText(moduleName)
        self.moduleSelected.emit(moduleName)

    selectedModule = pyqtProperty(str, lambda self: self._selected, selectModule)


class qSlicerMainWindow(QMainWindow):
    initialWindowShown = pyqtSignal()

    def __init__(self):
        super().__init__()
        self.setObjectName("qSlicerMainWindow")
        self.setWindowTitle("Embedded Slicer (development host)")
        self.resize(1280, 800)
        self.setCentralWidget(QWidget(self))
        self._layout_manager = qSlicerLayoutManager(slicer.app._core, self.centralWidget())
        self._panel = QDockWidget("Module", self)
        self._panel.setObjectName("PanelDockWidget")
        contents = QWidget(self._panel)
        contents.setObjectName("dockWidgetContents")
        contents.setSizePolicy(QSizePolicy.Minimum, QSizePolicy.Preferred)
        column = QVBoxLayout(contents)
        column.setContentsMargins(0, 2, 0, 0)
        self._module_panel = qSlicerModulePanel(contents)
        column.addWidget(self._module_panel)
        self._panel.setWidget(contents)
        self.addDockWidget(Qt.LeftDockWidgetArea, self._panel)
        self._selector = qSlicerModuleSelectorToolBar(self)
        self.addToolBar(self._selector)
        self._shown_widget = None
        self.statusBar()

    def moduleSelector(self):
        return self._selector

    def _show_module(self, module):
        self._leave_module()
        widget = module.widgetRepresentation()
        if widget is None:
            raise RuntimeError(f"the module {module.name} has no panel")
        self._panel.setWindowTitle(module.title or module.name)
        self._shown_widget = widget
        self._module_panel._add(module, widget)

    def _leave_module(self):
        if self._shown_widget is not None:
            self._module_panel._remove(self._shown_widget)
            self._shown_widget = None
            self._panel.setWindowTitle("Module")
            self._selector._selected = ""

    def closeEvent(self, event):
        self._leave_module()
        super().closeEvent(event)
