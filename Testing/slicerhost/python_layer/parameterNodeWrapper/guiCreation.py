"""Widgets made for a parameter type: one creator per kind of type, the one that represents it best is taken."""

from __future__ import annotations

import abc
import enum
import pathlib

import ctk
import qt
import slicer

from . import wrapper
from .annotations import Choice, Label, Maximum, Minimum, WithinRange
from .guiConnectors import SlicerPackParameterNamePropertyName
from .parameterPack import isParameterPack
from .type_tools import findFirstAnnotation, isNodeOrUnionOfNodes, splitAnnotations, unannotatedType
from .types import FloatRange

__all__ = ["GuiCreator", "createGui", "parameterNodeGuiCreator"]


class GuiCreator(abc.ABC):
    @staticmethod
    @abc.abstractmethod
    def representationValue(datatype) -> int:
        """How well (0 not at all, 100 perfectly) this creator's widget stands for the type."""

    @staticmethod
    @abc.abstractmethod
    def create(datatype):
        """The widget."""


_registered: list[type[GuiCreator]] = []


def parameterNodeGuiCreator(classtype=None):
    """Class decorator: makes a creator known."""
    def register(cls):
        _registered.insert(0, cls)
        return cls

    return register if classtype is None else register(classtype)


def createGui(datatype):
    """A widget for a (possibly annotated) type, a pack or a wrapper class; raises RuntimeError where there is none."""
    best = max(_registered, key=lambda creator: creator.representationValue(datatype))
    if best.representationValue(datatype) <= 0:
        raise RuntimeError(f"No widget is known for the type {datatype}")
    return best.create(datatype)


def _simple(value, accepts, make):
    """Register a creator for the types that `accepts(type, annotations)` takes."""
    @parameterNodeGuiCreator
    class Creator(GuiCreator):
        @staticmethod
        def representationValue(datatype):
            return value if accepts(*splitAnnotations(datatype)) else 0

        @staticmethod
        def create(datatype):
            return make()


def _is(*types):
    return lambda type_, annotations: type_ in types


def _is_subclass(base):
    return lambda type_, annotations: isinstance(type_, type) and issubclass(type_, base)


def _is_bounded_float(type_, annotations):
    has = [findFirstAnnotation(annotations, one) is not None for one in (WithinRange, Minimum, Maximum)]
    return type_ is float and (has[0] or (has[1] and has[2]))


_simple(90, lambda type_, annotations: type_ in (int, float, str, bool)
        and findFirstAnnotation(annotations, Choice) is not None, lambda: qt.QComboBox())
_simple(50, _is_subclass(enum.Enum), lambda: qt.QComboBox())
_simple(50, _is(bool), lambda: qt.QCheckBox())
_simple(50, _is(int), lambda: qt.QSpinBox())
_simple(50, _is(float), lambda: qt.QDoubleSpinBox())
_simple(60, _is_bounded_float, lambda: ctk.ctkSliderWidget())
_simple(50, _is(str), lambda: qt.QLineEdit())
_simple(60, _is(FloatRange), lambda: ctk.ctkRangeWidget())
_simple(50, _is_subclass(pathlib.PurePath), lambda: ctk.ctkPathLineEdit())
_simple(50, lambda type_, annotations: isNodeOrUnionOfNodes(type_), lambda: slicer.qMRMLNodeComboBox())


def _form(infos, property_name):
    """A qSlicerWidget with a labeled row per member; it hands its scene on to the rows."""
    form = slicer.qSlicerWidget()
    layout = qt.QFormLayout(form)
    for name, info in infos.items():
        row = createGui(info.unalteredType)
        row.setProperty(property_name, name)
        if hasattr(row, "setMRMLScene"):
            form.connect("mrmlSceneChanged(vtkMRMLScene*)", row.setMRMLScene)
        label = findFirstAnnotation(splitAnnotations(info.unalteredType)[1], Label)
        text = name if label is None else label.text
        if isParameterPack(unannotatedType(info.unalteredType)):
            section = ctk.ctkCollapsibleButton()
            section.text = text
            qt.QVBoxLayout(section).addWidget(row)
            layout.addRow(section)
        else:
            layout.addRow(qt.QLabel(text), row)
    return form


@parameterNodeGuiCreator
class ParameterPackGuiCreator(GuiCreator):
    @staticmethod
    def representationValue(datatype):
        type_ = unannotatedType(datatype)
        return 50 if isParameterPack(type_) and type_ is not FloatRange else 0

    @staticmethod
    def create(datatype):
        return _form(unannotatedType(datatype).allParameters, SlicerPackParameterNamePropertyName)


@parameterNodeGuiCreator
class ParameterNodeWrapperGuiCreator(GuiCreator):
    @staticmethod
    def representationValue(datatype):
        return 50 if wrapper.isParameterNodeWrapper(datatype) else 0

    @staticmethod
    def create(datatype):
        return _form(datatype.allParameters, wrapper.SlicerParameterNamePropertyName)
