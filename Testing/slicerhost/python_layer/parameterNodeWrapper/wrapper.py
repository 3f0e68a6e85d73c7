"""`@parameterNodeWrapper`: typed members on a vtkMRMLScriptedModuleNode, and their connection to widgets."""

from __future__ import annotations

import itertools

import qt
import slicer.util
import vtk

from . import parameters
from .guiConnectors import GuiConnector, SlicerPackParameterNamePropertyName, createGuiConnector

__all__ = ["SlicerParameterNamePropertyName", "findChildWidgetForParameter", "isParameterNodeWrapper",
           "parameterNodeWrapper"]

SlicerParameterNamePropertyName = "SlicerParameterName"
_RESERVED = ("AddObserver", "EndModify", "Modified", "RemoveObserver", "StartModify", "allParameters", "connectGui",
             "connectParametersToGui", "dataType", "default", "disconnectGui", "getValue", "isCached", "parameterNode",
             "setValue", "_is_parameter_node_wrapper")


def isParameterNodeWrapper(classOrObj):
    """Whether a class or an object is a parameter node wrapper."""
    return getattr(classOrObj, "_is_parameter_node_wrapper", False)


def findChildWidgetForParameter(widget, parameter):
    """The child widget that is marked for a parameter (`name`, or `pack.member`); None where there is none."""
    property_name = SlicerParameterNamePropertyName
    for part in parameter.split("."):
        widget = next((one for one in widget.findChildren(qt.QWidget) if one.property(property_name) == part), None)
        if widget is None:
            return None
        property_name = SlicerPackParameterNamePropertyName
    return widget


def _member(info):
    def get(self):
        self._ensure_value(info)
        return info.serializer.read(self.parameterNode, self._full_name(info.basename))

    def set_(self, value):
        info.serializer.write(self.parameterNode, self._full_name(info.basename), value)

    return property(get, set_)


class _Wrapper:
    """What every wrapper class can do; mixed into the decorated class."""

    _is_parameter_node_wrapper = True
    _next_tag = itertools.count(1)

    def __init__(self, parameterNode, prefix=None):
        object.__setattr__(self, "parameterNode", parameterNode)
        object.__setattr__(self, "_prefix", prefix)
        object.__setattr__(self, "_connections", {})
        object.__setattr__(self, "_guiVtkObserverTags", {})
        with slicer.util.NodeModify(parameterNode):
            for info in self.allParameters.values():
                self._ensure_value(info)

    def __setattr__(self, name, value):
        if not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no parameter '{name}'")
        object.__setattr__(self, name, value)

    def _full_name(self, name):
        return f"{self._prefix or ''}{name}"

    def _ensure_value(self, info):
        """A parameter that the node does not have, at first or because the scene was closed, gets its default."""
        name = self._full_name(info.basename)
        if not info.serializer.isIn(self.parameterNode, name):
            info.serializer.write(self.parameterNode, name, info.default_value())

    def default(self, paramName):
        """Default of a parameter (an object with `value`)."""
        return parameters.walk(type(self), paramName)[0].default

    def isCached(self, paramName):
        """Whether Slicer keeps the last value of the parameter."""
        return parameters.walk(type(self), paramName)[0].serializer.supportsCaching()

    @classmethod
    def dataType(cls, membername):
        """Type of a parameter as written, annotations included."""
        return parameters.data_type(cls, membername)

    def getValue(self, name):
        """Value of a parameter, by dotted name."""
        return parameters.get_value(self, name)

    def setValue(self, name, value):
        """Set a parameter, by dotted name."""
        parameters.set_value(self, name, value)

    # Widgets
    def connectGui(self, gui):
        """Connect the widgets (attributes of `gui`, or its child widgets) that have a SlicerParameterName.

        Returns a tag for `disconnectGui`.
        """
        widgets = gui.findChildren(qt.QWidget) if isinstance(gui, qt.QWidget) else vars(gui).values()
        mapping = {}
        for widget in widgets:
            name = widget.property(SlicerParameterNamePropertyName) if isinstance(widget, qt.QObject) else None
            if name:
                mapping[name] = widget
        return self.connectParametersToGui(mapping)

    def connectParametersToGui(self, mapping):
        """Connect widgets by parameter name; returns a tag for `disconnectGui`."""
        connectors = {}
        for name, widget in mapping.items():
            connectors[name] = widget if isinstance(widget, GuiConnector) else createGuiConnector(
                widget, self.dataType(name))
            connectors[name].write(self.getValue(name))
        for name, connector in connectors.items():
            connector.onChanged(self._gui_changed(name, connector))
        tag = next(self._next_tag)
        self._connections[tag] = connectors
        self._guiVtkObserverTags[tag] = self.AddObserver(
            vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._show(tag)
        )
        return tag

    def _gui_changed(self, name, connector):
        def changed():
            value = connector.read()
            if self.getValue(name) != value:
                self.setValue(name, value)

        return changed

    def _show(self, tag):
        for name, connector in self._connections.get(tag, {}).items():
            if connector.is_alive():
                connector.show(self.getValue(name))

    def disconnectGui(self, guiTag):
        """Undo a `connectGui` or `connectParametersToGui`."""
        for connector in self._connections.pop(guiTag, {}).values():
            if connector.is_alive():
                connector.onChanged(None)
        observer = self._guiVtkObserverTags.pop(guiTag, None)
        if observer is not None:
            self.RemoveObserver(observer)

    # The node's own methods that observers need
    def AddObserver(self, event, callback, priority=0.0):
        return self.parameterNode.AddObserver(event, callback, priority)

    def RemoveObserver(self, tag):
        return self.parameterNode.RemoveObserver(tag)

    def StartModify(self):
        return self.parameterNode.StartModify()

    def EndModify(self, wasModified):
        return self.parameterNode.EndModify(wasModified)

    def Modified(self):
        self.parameterNode.Modified()


def parameterNodeWrapper(classtype=None):
    """Class decorator: `cls(parameterNode, prefix=None)` then gives typed access to the node."""
    def decorate(cls):
        infos = parameters.collect(cls)
        parameters.check_not_reserved(infos, _RESERVED)
        for name, attribute in vars(_Wrapper).items():
            if name not in ("__dict__", "__weakref__", "__module__", "__doc__", "__qualname__"):
                setattr(cls, name, attribute)
        for name, info in infos.items():
            setattr(cls, name, _member(info))
        cls.allParameters = infos
        return cls

    return decorate if classtype is None else decorate(classtype)
