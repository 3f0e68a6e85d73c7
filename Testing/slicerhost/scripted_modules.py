"""`slicer.modules`: the loadable modules that slicer-core has logics for, and scripted modules read from their file."""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
import types
from pathlib import Path

import slicer
from PyQt5.QtCore import QObject, pyqtProperty
from PyQt5.QtGui import QIcon
from PyQt5.QtWidgets import QVBoxLayout

from slicerhost import pythonqt
from slicerhost.qmrml_widgets import qSlicerWidget
from slicerhost.stand_in import stored_properties


class ModuleError(RuntimeError):
    """A file of a module path is not a module."""


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
        self._create()
        self.setMRMLScene(slicer.mrmlScene)

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
        """A new Python widget object, set up. An open panel is not entered again: `enter` is the next visit's."""
        self._create()

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
    """Read a scripted module's file and register it; returns the module. An exception in it passes on."""
    module = _instantiate(path)
    _load(module, {})
    return module


def load_module_paths(folders, ignored=()):
    """Load every module of the folders as Slicer does at start: all are instantiated, then those that could be are set
    up, each behind its dependencies. What goes wrong is written to stderr.

    Returns:
        Names of files that could not be made modules.
    """
    paths = {}
    for folder in folders:
        for path in find_scripted_modules(folder):
            if Path(path).stem not in ignored:
                paths.setdefault(Path(path).stem, path)
    modules, failed = {}, []
    for name, path in sorted(paths.items()):
        try:
            modules[name] = _instantiate(path)
        except Exception as error:  # noqa: BLE001  (whatever a module raises must not stop the application)
            pythonqt.slot_errors.append(error)
            traceback.print_exc()
            print(f"Fail to instantiate module  {name!r}", file=sys.stderr)
            failed.append(name)
    if failed:
        print("The following modules failed to be instantiated:", *failed, sep="\n   ", file=sys.stderr)
    for module in modules.values():
        try:
            _load(module, modules)
        except Exception as error:  # noqa: BLE001
            pythonqt.slot_errors.append(error)
            traceback.print_exc()
    return failed


def _instantiate(path):
    """The module object of a file, whose folder is on Python's path from now on and whose name is taken there."""
    path = os.path.abspath(path)
    name = Path(path).stem
    if os.path.dirname(path) not in sys.path:
        sys.path.append(os.path.dirname(path))
    if not hasattr(sys.modules.get(name), name):
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    python_module = sys.modules[name]
    if not hasattr(python_module, name):
        raise ModuleError(f"Failed to load scripted loadable module: class {name} was not found in file {path}")
    module = qSlicerScriptedLoadableModule(path, python_module)
    setattr(slicer.modules, name + "Instance", getattr(python_module, name)(module))
    if not hasattr(python_module, name + "Widget"):
        module.widgetRepresentationCreationEnabled = False
    return module


def _load(module, others):
    """Set a module up, its dependencies first; raises where one of them, or its own title, is missing."""
    manager = slicer.app.moduleManager()
    if manager.module(module.name) is not None:
        return
    for dependency in module.dependencies:
        if dependency in others:
            _load(others[dependency], others)
        elif manager.module(dependency) is None:
            raise ModuleError(
                f"When loading module  {module.name!r} , the dependency {dependency!r} failed to be loaded."
            )
    if not module.title:
        raise ModuleError(f"Failed to retrieve module title corresponding to module name:  {module.name!r}")
    manager._add(module)
    instance = getattr(slicer.modules, module.name + "Instance")
    if hasattr(instance, "setup"):
        instance.setup()


def find_scripted_modules(folder):
    """Files that Slicer takes for scripted modules: every Python file of the folder (of the folder with scripted
    modules in it, for an installed extension), whatever is in it. A file that begins with `#!` is for Slicer a command
    line program, which it would start to ask what it is.
    """
    installed = sorted(Path(folder).glob("lib/Slicer-*/qt-scripted-modules"))
    for found in installed or [Path(folder)]:
        yield from (str(path) for path in sorted(found.glob("*.py")) if not path.read_bytes().startswith(b"#!"))
