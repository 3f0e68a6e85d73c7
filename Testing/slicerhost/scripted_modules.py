"""`slicer.modules`: the loadable modules that slicer-core has logics for, and scripted modules read from their file."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from pathlib import Path

import slicer
from PyQt5.QtCore import QObject, pyqtProperty
from PyQt5.QtGui import QIcon
from PyQt5.QtWidgets import QVBoxLayout

from slicerhost.qmrml_widgets import qSlicerWidget
from slicerhost.stand_in import stored_properties


class qSlicerLoadableModule(QObject):
    """A C++ module of which only the logic is here."""

    def __init__(self, name, logic=None):
        super().__init__(slicer.app)
        self._name, self._logic, self._path = name, logic, ""

    name = pyqtProperty(str, lambda self: self._name)
    path = pyqtProperty(str, lambda self: self._path)
    title = pyqtProperty(str, lambda self: self._name)

    def logic(self):
        return self._logic

    def widgetRepresentation(self):
        return None


class qSlicerScriptedLoadableModule(qSlicerLoadableModule):
    """A module written in Python: `parent` of its ScriptedLoadableModule object."""

    locals().update(stored_properties(
        title=(str, ""), categories=("QVariant", ()), contributors=("QVariant", ()),
        associatedNodeTypes=("QVariant", ()), helpText=(str, ""), acknowledgementText=(str, ""), icon=(QIcon,
        QIcon()), hidden=(bool, False), dependencies=("QVariant", ()), index=(int, -1),
        widgetRepresentationCreationEnabled=(bool, True), defaultDocumentationLink=(str, "")
    ))
    def __init__(self, path, python_module):
        super().__init__(Path(path).stem)
        self._path, self._python_module, self._widget = str(path), python_module, None
        self._logic = slicer.vtkSlicerScriptedLoadableModuleLogic() if hasattr(
            slicer, "vtkSlicerScriptedLoadableModuleLogic") else None

    def widgetRepresentation(self):
        if self._widget is None and self.widgetRepresentationCreationEnabled:
            self._widget = self.createNewWidgetRepresentation()
        return self._widget

    def createNewWidgetRepresentation(self):
        return qSlicerScriptedLoadableModuleWidget(self)


class qSlicerScriptedLoadableModuleWidget(qSlicerWidget):
    """The panel: holds the module's Python widget object and tells it when it is shown and left."""

    def __init__(self, module):
        super().__init__()
        self._module, self._is_entered = module, False
        self.setLayout(QVBoxLayout())
        self.setMRMLScene(slicer.mrmlScene)
        self._create()

    isEntered = pyqtProperty(bool, lambda self: self._is_entered)
    moduleName = pyqtProperty(str, lambda self: self._module.name)

    def _create(self):
        name = self._module.name
        self._python_widget = getattr(sys.modules[name], name + "Widget")(self)
        setattr(slicer.modules, name + "Widget", self._python_widget)
        self._python_widget.setup()

    def self(self):
        return self._python_widget

    def reload(self):
        self._create()
        if self._is_entered:
            self._call("enter")

    def _call(self, name):
        method = getattr(self._python_widget, name, None)
        if method is not None:
            method()

    def enter(self):
        self._is_entered = True
        self._call("enter")

    def exit(self):
        self._is_entered = False
        self._call("exit")


def install_loadable_modules(core):
    """Fill `slicer.modules` and `slicer.moduleNames` with what slicer-core has logics for."""
    for name in ("modules", "moduleNames"):
        module = types.ModuleType(f"slicer.{name}")
        sys.modules[f"slicer.{name}"] = module
        setattr(slicer, name, module)
    for cls in (qSlicerLoadableModule, qSlicerScriptedLoadableModule, qSlicerScriptedLoadableModuleWidget):
        setattr(slicer, cls.__name__, cls)
    for name, logic in core.logics.items():
        slicer.app.moduleManager()._add(qSlicerLoadableModule(name, logic))


def load_scripted_module(path):
    """Import a scripted module's file and register it; returns the module. An exception in it passes on."""
    path = os.path.abspath(path)
    name = Path(path).stem
    if os.path.dirname(path) not in sys.path:
        sys.path.insert(0, os.path.dirname(path))
    spec = importlib.util.spec_from_file_location(name, path)
    python_module = importlib.util.module_from_spec(spec)
    sys.modules[name] = python_module
    spec.loader.exec_module(python_module)
    module = qSlicerScriptedLoadableModule(path, python_module)
    instance = getattr(python_module, name)(module)
    setattr(slicer.modules, name + "Instance", instance)
    slicer.app.moduleManager()._add(module)
    if hasattr(instance, "setup"):
        instance.setup()
    return module


def find_scripted_modules(folder):
    """Module files of a folder, as Slicer finds them: a file that defines a class of its own name deriving from
    ScriptedLoadableModule."""
    found = []
    for path in sorted(Path(folder).glob("*.py")):
        text = path.read_text(encoding="utf-8", errors="replace")
        if f"class {path.stem}(ScriptedLoadableModule" in text:
            found.append(str(path))
    return found
