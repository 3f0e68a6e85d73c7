"""Connections between a widget and a parameter type: one connector per pair, found by `createGuiConnector`."""

from __future__ import annotations

import abc
import enum
import logging
import pathlib

import ctk
import qt
import slicer

from .annotations import Choice, Decimals, Default, Maximum, Minimum, RangeBounds, SingleStep, WithinRange
from .parameterPack import isParameterPack
from .type_tools import (
    as_union,
    findFirstAnnotation,
    getNodeTypes,
    isNodeOrUnionOfNodes,
    splitAnnotations,
    unannotatedType,
)
from .types import FloatRange

__all__ = ["GuiConnector", "SlicerPackParameterNamePropertyName", "createGuiConnector", "parameterNodeGuiConnector"]

SlicerPackParameterNamePropertyName = "SlicerPackParameterName"
_INT_LIMITS = -(2**31), 2**31 - 1


class GuiConnector(abc.ABC):
    """Gives every widget the same face: a value that can be read, written and waited for."""

    signal = ""
    """The widget's signal that tells of a change; none for widgets that only show."""

    def __init__(self):
        self._callback = None

    @staticmethod
    @abc.abstractmethod
    def canRepresent(widget, datatype) -> bool:
        """Whether this class connects such a widget to such a (possibly annotated) type."""

    @staticmethod
    @abc.abstractmethod
    def create(widget, datatype):
        """A connector, or None where `canRepresent` is False."""

    @abc.abstractmethod
    def widget(self):
        """The widget."""

    @abc.abstractmethod
    def read(self):
        """The widget's value, of the parameter's type."""

    @abc.abstractmethod
    def write(self, value) -> None:
        """Show the value."""

    def onChanged(self, callback):
        """Call the function (no arguments) on every change; None ends it."""
        if self._callback is not None:
            self._disconnect()
        self._callback = callback
        if callback is not None:
            self._connect()

    def changed(self):
        """Tell of a change."""
        if self._callback is not None:
            self._callback()

    def _connect(self):
        if self.signal:
            self.widget().connect(self.signal, self.changed)

    def _disconnect(self):
        if self.signal:
            self.widget().disconnect(self.signal, self.changed)

    def show(self, value):
        """Show a value of the parameter node without telling of a change."""
        callback, self._callback = self._callback, None
        try:
            if self.read() != value:
                self.write(value)
        finally:
            self._callback = callback


_registered: list[type[GuiConnector]] = []


def parameterNodeGuiConnector(classtype=None):
    """Class decorator: makes a connector known; the first one registered for a widget and a type is taken."""
    def register(cls):
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def createGuiConnector(widget, datatype):
    """The connector of a widget and a type; raises RuntimeError where there is none."""
    datatype = as_union(datatype)
    for cls in _registered:
        if cls.canRepresent(widget, datatype):
            return cls.create(widget, datatype)
    raise RuntimeError(f"Cannot connect a {type(widget).__name__} to a parameter of type {datatype}")


class _WidgetConnector(GuiConnector):
    """A connector whose class says which widgets and types it joins."""

    widget_classes: tuple = ()

    def __init__(self, widget, datatype):
        super().__init__()
        self._widget, self._type = widget, unannotatedType(datatype)
        self._configure(splitAnnotations(datatype)[1])

    @classmethod
    def canRepresent(cls, widget, datatype):
        """The widget's class must be the one that is named: Slicer refuses classes derived from it."""
        type_, annotations = splitAnnotations(datatype)
        return type(widget) in cls.widget_classes and cls.accepts(type_, annotations)

    @classmethod
    def create(cls, widget, datatype):
        return cls(widget, datatype)

    @classmethod
    @abc.abstractmethod
    def accepts(cls, type_, annotations):
        """Whether the type is one of this connector's."""

    def _configure(self, annotations):
        """Take limits, steps and choices over to the widget."""

    def widget(self):
        return self._widget


@parameterNodeGuiConnector
class CheckBoxConnector(_WidgetConnector):
    widget_classes = (qt.QCheckBox, ctk.ctkCheckBox)
    signal = "toggled(bool)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ is bool

    def read(self):
        return self._widget.checked

    def write(self, value):
        self._widget.checked = value


@parameterNodeGuiConnector
class PushButtonConnector(CheckBoxConnector):
    widget_classes = (qt.QPushButton,)

    def _configure(self, annotations):
        if not self._widget.checkable:
            logging.warning("The push button %s is made checkable to stand for a bool", self._widget.objectName)
            self._widget.checkable = True


@parameterNodeGuiConnector
class IntConnector(_WidgetConnector):
    widget_classes = (qt.QSlider, qt.QSpinBox)
    signal = "valueChanged(int)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ is int

    def _configure(self, annotations):
        low, high = _limits(annotations)
        if isinstance(self._widget, qt.QSlider) and None in (low, high):
            raise RuntimeError("A QSlider needs a parameter with both limits")
        self._widget.setRange(*(limit if bound is None else bound for bound, limit in zip((low, high), _INT_LIMITS)))
        step = findFirstAnnotation(annotations, SingleStep)
        if step is not None:
            self._widget.singleStep = step.value

    def read(self):
        return self._widget.value

    def write(self, value):
        self._widget.value = value


def _limits(annotations):
    """(minimum, maximum) of the validators; None where there is no limit."""
    within = findFirstAnnotation(annotations, WithinRange)
    if within is not None:
        return within.minimum, within.maximum
    minimum, maximum = findFirstAnnotation(annotations, Minimum), findFirstAnnotation(annotations, Maximum)
    return (None if minimum is None else minimum.minimum), (None if maximum is None else maximum.maximum)


@parameterNodeGuiConnector
class FloatConnector(_WidgetConnector):
    widget_classes = (qt.QDoubleSpinBox, ctk.ctkSliderWidget, ctk.ctkDoubleSlider, ctk.ctkDoubleSpinBox,
                      slicer.qMRMLSpinBox, slicer.qMRMLSliderWidget)
    signal = "valueChanged(double)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ in (float, int)

    def _configure(self, annotations):
        low, high = _limits(annotations)
        if isinstance(self._widget, ctk.ctkSliderWidget) and None in (low, high):
            raise RuntimeError("A slider widget needs a parameter with both limits")
        decimals = 0 if self._type is int else getattr(findFirstAnnotation(annotations, Decimals), "value", None)
        if decimals is not None and not isinstance(self._widget, ctk.ctkDoubleSlider):
            self._widget.setDecimals(decimals)
        step = findFirstAnnotation(annotations, SingleStep)
        if step is not None:
            self._widget.setSingleStep(step.value)
        self._widget.setRange(float("-inf") if low is None else low, float("inf") if high is None else high)

    def read(self):
        return self._type(self._widget.value)

    def write(self, value):
        self._widget.value = float(value)


@parameterNodeGuiConnector
class ChoiceConnector(_WidgetConnector):
    widget_classes = (qt.QComboBox, ctk.ctkComboBox)
    signal = "currentIndexChanged(int)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ in (int, float, str, bool) and findFirstAnnotation(annotations, Choice) is not None

    def _configure(self, annotations):
        self._values = list(findFirstAnnotation(annotations, Choice).choices)
        self._fill(map(str, self._values))

    def _fill(self, texts):
        self._widget.clear()
        for text in texts:
            self._widget.addItem(text)

    def read(self):
        return self._values[self._widget.currentIndex]

    def write(self, value):
        self._widget.currentIndex = self._values.index(value)


@parameterNodeGuiConnector
class EnumConnector(ChoiceConnector):
    @classmethod
    def accepts(cls, type_, annotations):
        return isinstance(type_, type) and issubclass(type_, enum.Enum)

    def _configure(self, annotations):
        self._values = list(self._type)
        self._fill(one.label() if hasattr(one, "label") else one.name for one in self._values)


@parameterNodeGuiConnector
class LineEditConnector(_WidgetConnector):
    widget_classes = (qt.QLineEdit,)
    signal = "textChanged(QString)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ is str

    def read(self):
        return self._widget.text

    def write(self, value):
        self._widget.text = value


@parameterNodeGuiConnector
class LabelConnector(LineEditConnector):
    """Shows only."""

    widget_classes = (qt.QLabel,)
    signal = ""


@parameterNodeGuiConnector
class TextEditConnector(LineEditConnector):
    widget_classes = (qt.QTextEdit,)
    signal = "textChanged()"

    def read(self):
        return self._widget.toPlainText()

    def write(self, value):
        self._widget.setPlainText(value)


@parameterNodeGuiConnector
class FloatRangeConnector(_WidgetConnector):
    widget_classes = (ctk.ctkRangeWidget, ctk.ctkDoubleRangeSlider, slicer.qMRMLRangeWidget)
    signal = "valuesChanged(double,double)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ is FloatRange

    def _configure(self, annotations):
        bounds = findFirstAnnotation(annotations, RangeBounds)
        if bounds is None:
            raise RuntimeError("A range widget needs a parameter with RangeBounds")
        if findFirstAnnotation(annotations, Default) is None and not bounds.minimum <= 0 <= bounds.maximum:
            raise RuntimeError("RangeBounds without 0 need a Default")
        self._widget.setRange(bounds.minimum, bounds.maximum)
        decimals = findFirstAnnotation(annotations, Decimals)
        if decimals is not None and not isinstance(self._widget, ctk.ctkDoubleRangeSlider):
            self._widget.decimals = decimals.value
        step = findFirstAnnotation(annotations, SingleStep)
        if step is not None:
            self._widget.singleStep = step.value

    def read(self):
        return FloatRange(self._widget.minimumValue, self._widget.maximumValue)

    def write(self, value):
        self._widget.setValues(value.minimum, value.maximum)


@parameterNodeGuiConnector
class PathConnector(_WidgetConnector):
    widget_classes = (ctk.ctkPathLineEdit,)
    signal = "currentPathChanged(QString)"

    @classmethod
    def accepts(cls, type_, annotations):
        return isinstance(type_, type) and issubclass(type_, pathlib.PurePath)

    def read(self):
        return self._type(self._widget.currentPath)

    def write(self, value):
        self._widget.currentPath = str(value)


@parameterNodeGuiConnector
class DirectoryConnector(PathConnector):
    widget_classes = (ctk.ctkDirectoryButton,)
    signal = "directoryChanged(QString)"

    def read(self):
        return self._type(self._widget.directory)

    def write(self, value):
        self._widget.directory = str(value)


@parameterNodeGuiConnector
class NodeConnector(_WidgetConnector):
    widget_classes = (slicer.qMRMLNodeComboBox,)
    signal = "currentNodeChanged(vtkMRMLNode*)"

    @classmethod
    def accepts(cls, type_, annotations):
        return isNodeOrUnionOfNodes(type_)

    def _configure(self, annotations):
        self._widget.nodeTypes = getNodeTypes(self._type)

    def read(self):
        return self._widget.currentNode()

    def write(self, value):
        self._widget.setCurrentNode(value)


@parameterNodeGuiConnector
class SubjectHierarchyConnector(NodeConnector):
    widget_classes = (slicer.qMRMLSubjectHierarchyComboBox, slicer.qMRMLSubjectHierarchyTreeView)
    signal = "currentItemChanged(vtkIdType)"

    def write(self, value):
        if value is None:
            self._widget.clearSelection()
        else:
            self._widget.setCurrentNode(value)


@parameterNodeGuiConnector
class ColorConnector(_WidgetConnector):
    widget_classes = (ctk.ctkColorPickerButton,)
    signal = "colorChanged(QColor)"

    @classmethod
    def accepts(cls, type_, annotations):
        return type_ is qt.QColor

    def read(self):
        return self._widget.color

    def write(self, value):
        self._widget.color = value


def _pack_widgets(widget):
    """Child widgets by dotted name of the pack member that they are marked for."""
    found = {}
    for child in widget.findChildren(qt.QWidget):
        parts, one = [], child
        if not child.property(SlicerPackParameterNamePropertyName):
            continue
        while one is not None and one is not widget:
            name = one.property(SlicerPackParameterNamePropertyName)
            if name:
                parts.insert(0, name)
            one = one.parent()
        found[".".join(parts)] = child
    return found


@parameterNodeGuiConnector
class ParameterPackConnector(GuiConnector):
    """A widget whose children are marked, by SlicerPackParameterName, for the members of a pack."""

    @staticmethod
    def canRepresent(widget, datatype):
        return isParameterPack(unannotatedType(datatype)) and bool(_pack_widgets(widget))

    @staticmethod
    def create(widget, datatype):
        return ParameterPackConnector(widget, unannotatedType(datatype))

    def __init__(self, widget, pack_class):
        super().__init__()
        self._widget, self._pack_class = widget, pack_class
        self._connectors = {}
        for name, child in _pack_widgets(widget).items():
            type_ = pack_class.dataType(name)
            if not isParameterPack(unannotatedType(type_)):
                self._connectors[name] = createGuiConnector(child, type_)

    def _connect(self):
        for connector in self._connectors.values():
            connector.onChanged(self.changed)

    def _disconnect(self):
        for connector in self._connectors.values():
            connector.onChanged(None)

    def widget(self):
        return self._widget

    def read(self):
        pack = self._pack_class()
        for name, connector in self._connectors.items():
            pack.setValue(name, connector.read())
        return pack

    def write(self, value):
        for name, connector in self._connectors.items():
            connector.show(value.getValue(name))
