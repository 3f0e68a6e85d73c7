"""`@parameterNodeWrapper`: typed members on a vtkMRMLScriptedModuleNode, and their connection to widgets."""

from __future__ import annotations

import itertools
import weakref

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


class _Value:
    """One parameter of one node. Where its serializer allows it, the value that was read last is kept until the node is
    modified: so a node that the scene has lost without a word to the parameter node is still there, as in Slicer."""

    def __init__(self, info, node, name):
        self._info, self._node, self._name = info, node, name
        self.is_cached, self._writing, self._kept = info.serializer.supportsCaching(), False, None
        if not info.serializer.isIn(node, name):
            info.serializer.write(node, name, info.default.value)
        if self.is_cached:
            self._kept = self._from_node()
            me = weakref.ref(self)  # an observer that held the value would keep the wrapper alive
            self._tag = node.AddObserver(vtk.vtkCommand.ModifiedEvent, lambda caller, event: me()._on_modified())

    def __del__(self):
        if self.is_cached and hasattr(self, "_tag"):
            self._node.RemoveObserver(self._tag)

    def _on_modified(self):
        if not self._writing:
            self._kept = self._from_node()

    def _from_node(self):
        """A parameter that the node does not have, because the scene was closed, gets its default."""
        serializer = self._info.serializer
        if not serializer.isIn(self._node, self._name):
            serializer.write(self._node, self._name, self._info.default.value)
        return serializer.read(self._node, self._name)

    def read(self):
        return self._kept if self.is_cached else self._from_node()

    def write(self, value):
        self._writing = True
        try:
            with slicer.util.NodeModify(self._node):  # observers see the new value, not the kept one
                self._info.serializer.write(self._node, self._name, value)
                if self.is_cached:
                    self._kept = self._from_node()
        finally:
            self._writing = False


def _member(name):
    return property(lambda self: self._values[name].read(), lambda self, value: self._values[name].write(value))


class _Wrapper:
    """What every wrapper class can do; mixed into the decorated class."""

    _is_parameter_node_wrapper = True
    _next_tag = itertools.count(1)

    def __init__(self, parameterNode, prefix=None):
        object.__setattr__(self, "parameterNode", parameterNode)
        object.__setattr__(self, "_connections", {})
        object.__setattr__(self, "_guiVtkObserverTags", {})
        object.__setattr__(self, "_showing", False)
        values = {name: _Value(info, parameterNode, f"{prefix or ''}{name}")
                  for name, info in self.allParameters.items()}
        object.__setattr__(self, "_values", values)

    def __setattr__(self, name, value):
        if not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no parameter '{name}'")
        object.__setattr__(self, name, value)

    def default(self, paramName):
        """Default of a parameter (an object with `value`)."""
        return parameters.walk(type(self), paramName)[0].default

    def isCached(self, paramName):
        """Whether Slicer keeps the last value of the parameter."""
        info, parents = parameters.walk(type(self), paramName)
        return info.serializer.supportsCaching() if parents else self._values[paramName].is_cached

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
        tag = next(self._next_tag)
        self._connections[tag] = connectors
        for name, connector in connectors.items():
            connector.write(self.getValue(name))
            connector.onChanged(self._gui_changed(name, connector))
        self._guiVtkObserverTags[tag] = self.AddObserver(
            vtk.vtkCommand.ModifiedEvent, lambda caller, event: self._show()
        )
        return tag

    def _gui_changed(self, name, connector):
        def changed():
            if not self._showing:
                with slicer.util.NodeModify(self):
                    self.setValue(name, connector.read())

        return changed

    def _show(self):
        """All connected widgets, of whatever panel, show the node's values."""
        if self._showing:
            return
        object.__setattr__(self, "_showing", True)
        try:
            with slicer.util.NodeModify(self):
                for connectors in list(self._connections.values()):
                    for name, connector in connectors.items():
                        connector.write(self.getValue(name))
        finally:
            object.__setattr__(self, "_showing", False)

    def disconnectGui(self, guiTag):
        """Undo a `connectGui` or `connectParametersToGui`."""
        for connector in self._connections.pop(guiTag, {}).values():
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
        for name in infos:
            setattr(cls, name, _member(name))
        cls.allParameters = infos
        return cls

    return decorate if classtype is None else decorate(classtype)
