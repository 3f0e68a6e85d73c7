"""What exists in a real Slicer: Qt, CTK and qMRML classes as PythonQt shows them, MRML and VTK classes, slicer.util.

PythonQt differs from PyQt: a Qt property is an attribute (`button.text`, never `button.text()`), a signal is connected
by its C++ signature (`button.connect("clicked(bool)", f)`), and of Slicer's own classes only slots, invokable methods,
properties and signals are seen.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

QT_MODULES = ("QtCore", "QtGui", "QtWidgets", "QtNetwork")
# what PythonQt gives every QObject besides Qt's own methods
PYTHONQT_METHODS = {"connect", "disconnect", "className", "delete", "help", "name", "objectName", "__len__"}
PYQT_ONLY = re.compile(r"^(pyqt\w*|setTabStopWidth|isSignalConnected)$")
QT_FUNCTIONS = {"qDebug", "qWarning", "qCritical", "SIGNAL", "SLOT", "QUiLoader"}
# what the running application adds to `slicer`, with its class where that is known
RUNTIME_NAMES = {
    "app": "qSlicerApplication",
    "mrmlScene": "vtkMRMLScene",
    "modules": "",
    "moduleNames": "",
    "dicomDatabase": "",
    "selfTests": "",
}
# what Slicer's own modules keep in `slicer.modules` besides the modules
MODULE_REGISTRIES = {"dicomPlugins", "sampleDataSources", "sampleDataSourceCategories", "sampleDataUrlRewriteRules"}


@dataclass(frozen=True)
class Property:
    """A Qt property: its C++ type, and whether it can be set."""

    type: str
    writable: bool


@cache
def _data() -> dict:
    return json.loads((Path(__file__).parent / "slicer_api.json").read_text(encoding="utf-8"))


@cache
def _slicer() -> ModuleType:
    import slicer
    import slicer.util

    return slicer


class QtClass:
    """One class of Qt, CTK or Slicer as PythonQt shows it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._facts = _data()["classes"].get(name)
        self._pyqt = None if self._facts else _pyqt_class(name)

    @property
    def bases(self) -> list[QtClass]:
        """Known base classes; a pure Qt class has none because PyQt's class answers for its bases."""
        known = (qt_class(base) for base in (self._facts or {}).get("bases", ()))
        return [base for base in known if base]

    @property
    def is_object(self) -> bool:
        """Whether it is a QObject, which has properties, signals and no attributes but those."""
        if self._pyqt is not None:
            return hasattr(self._pyqt, "staticMetaObject")
        return any(base.is_object for base in self.bases)

    def inherits(self, name: str) -> bool:
        """Whether this is the named class or derives from it."""
        if self._pyqt is not None:
            return any(base.__name__ == name for base in self._pyqt.__mro__)
        return self.name == name or any(base.inherits(name) for base in self.bases)

    def property(self, name: str) -> Property | None:
        """The named property, None where there is no such property."""
        if self._facts:
            if name in self._facts["properties"]:
                return Property(*self._facts["properties"][name])
            return next((found for base in self.bases if (found := base.property(name))), None)
        return _pyqt_properties(self._pyqt).get(name)

    def signals(self) -> set[str]:
        """Normalized signatures of all its signals."""
        if self._facts:
            return set(self._facts["signals"]).union(*(base.signals() for base in self.bases))
        return _pyqt_signals(self._pyqt)

    def slots(self) -> set[str]:
        """Names of methods that a .ui file may connect to."""
        if self._facts:
            return set(self._facts["methods"]).union(*(base.slots() for base in self.bases))
        return set(dir(self._pyqt))

    def has(self, name: str) -> bool:
        """Whether an object or the class itself has the attribute."""
        if self._facts:
            kinds = ("properties", "methods", "enumerators")
            if any(name in self._facts[kind] for kind in kinds) or name in _signal_names(self._facts["signals"]):
                return True
            return any(base.has(name) for base in self.bases) or name in ("staticMetaObject",)
        if PYQT_ONLY.match(name):
            return False
        extra = self.is_object and (name in PYTHONQT_METHODS or self.property(name) is not None)
        return extra or hasattr(self._pyqt, name)

    def returned(self, method: str) -> str:
        """The class of what a method returns, empty where that is not known."""
        if self._facts:
            if method in self._facts["methods"]:
                return self._facts["methods"][method]
            return next((found for base in self.bases if (found := base.returned(method))), "")
        text = getattr(getattr(self._pyqt, method, None), "__doc__", "") or ""
        match = re.search(r"->\s*(?:Optional\[)?(Q\w+)", text)
        return match[1] if match else ""


@cache
def qt_class(name: str) -> QtClass | None:
    """The class of that name from qt, ctk or slicer; None where there is none."""
    return QtClass(name) if name in _data()["classes"] or _pyqt_class(name) is not None else None


@cache
def derived_has(name: str, member: str) -> bool:
    """Whether a class that derives from the named one has the member: what a method returns may be of any of them."""
    if vtk_class(name):
        return any(hasattr(found, member) for found in _derived(vtk_class(name)))
    names = [*_data()["classes"], *(item for module in QT_MODULES for item in dir(_pyqt_module(module)))]
    classes = (qt_class(item) for item in names)
    return any(found.inherits(name) and found.has(member) for found in classes if found)


def _derived(owner: type) -> list[type]:
    return [owner, *(found for child in owner.__subclasses__() for found in _derived(child))]


def _pyqt_module(name: str) -> ModuleType:
    return importlib.import_module(f"PyQt5.{name}")


@cache
def _pyqt_class(name: str) -> type | None:
    for module in QT_MODULES:
        found = getattr(_pyqt_module(module), name, None)
        if isinstance(found, type) and not PYQT_ONLY.match(name):
            return found
    return None


@cache
def _pyqt_properties(found: type) -> dict[str, Property]:
    if not hasattr(found, "staticMetaObject"):
        return {}
    meta = found.staticMetaObject
    rows = (meta.property(index) for index in range(meta.propertyCount()))
    return {row.name(): Property(row.typeName(), row.isWritable()) for row in rows}


@cache
def _pyqt_signals(found: type) -> set[str]:
    if not hasattr(found, "staticMetaObject"):
        return set()
    meta = found.staticMetaObject
    methods = (meta.method(index) for index in range(meta.methodCount()))
    return {bytes(method.methodSignature()).decode() for method in methods if method.methodType() == method.Signal}


def _signal_names(signatures: list[str]) -> set[str]:
    return {signature.split("(")[0] for signature in signatures}


def normalized(signature: str) -> str:
    """A signal or slot signature as Qt normalizes it."""
    return re.sub(r"\bconst\b|&|\s", "", signature)


@cache
def all_signals() -> frozenset[str]:
    """Signatures of every class that is known, for objects of unknown type."""
    found: set[str] = set()
    for name in _data()["classes"]:
        found |= set(_data()["classes"][name]["signals"])
    for module in QT_MODULES:
        for item in vars(_pyqt_module(module)).values():
            if isinstance(item, type):
                found |= _pyqt_signals(item)
    return frozenset(found)


def belongs(namespace: str, name: str) -> bool:
    """Whether `qt.NAME` or `ctk.NAME` exists."""
    if namespace == "ctk":
        return name.startswith("ctk") and name in _data()["classes"]
    return name in QT_FUNCTIONS or name.startswith("Q") and _pyqt_class(name) is not None


def vtk_class(name: str) -> type | None:
    """A VTK or MRML class: `slicer.vtkMRML...`, `slicer.vtkSlicer...` or `vtk.vtk...`."""
    if not name.startswith("vtk"):
        return None
    found = getattr(_slicer(), name, None) or getattr(importlib.import_module("vtk"), name, None)
    return found if isinstance(found, type) else None


def slicer_has(name: str) -> bool:
    """Whether `slicer.NAME` exists. The wheel's own `slicer` also shows slicer.util's names; Slicer's does not."""
    if name in RUNTIME_NAMES or name in _data()["submodules"]:
        return True
    if name.startswith("vtk"):
        return isinstance(getattr(_slicer(), name, None), type)
    return name.startswith("q") and name in _data()["classes"]


def submodule_names(name: str) -> set[str] | None:
    """Public names of `slicer.NAME`, None where it is no submodule."""
    names = _data()["submodules"].get(name)
    return None if names is None else set(names)


def is_new(name: str) -> bool:
    """Whether the oldest supported Slicer lacks the name."""
    return name in _new()


@cache
def _new() -> frozenset[str]:
    return frozenset(_data()["new"])


def util_function(name: str) -> object:
    """The function or class slicer.util.NAME, None where it is neither."""
    found = getattr(_slicer().util, name, None)
    return found if inspect.isfunction(found) or inspect.isclass(found) else None


def modules() -> set[str]:
    """Names of Slicer's modules."""
    return set(_data()["modules"])


def module_logic(name: str) -> type | None:
    """The logic class of the module `slicer.modules.NAME` (lower case)."""
    wanted = {f"vtkslicer{name}logic", f"vtkslicer{name}modulelogic"}
    return next((vtk_class(item) for item in dir(_slicer()) if item.lower() in wanted), None)


@dataclass(frozen=True)
class VtkMethod:
    """A wrapped C++ method: the class that it returns (or nothing), and how many arguments its overloads take."""

    returns: str
    counts: frozenset[int] | None


@cache
def vtk_method(owner: type, name: str) -> VtkMethod:
    """Read off the signatures in the wrapped method's documentation."""
    text = re.sub(r"\n    +", " ", getattr(getattr(owner, name, None), "__doc__", "") or "")
    returns, counts = "", set()
    for match in re.finditer(rf"^(?:\w+\.)?{re.escape(name)}\((.*?)\)(?:\s*->\s*([^\n]+))?$", text, re.MULTILINE):
        found = re.fullmatch(r"(vtk\w+)", (match[2] or "").strip())
        returns = returns or (found[1] if found else "")
        words = [word.strip() for word in _split(match[1]) if word.strip() and word.strip() != "self"]
        if any(word.startswith("*") or word == "..." for word in words):
            return VtkMethod(returns, None)
        optional = sum("=" in word for word in words)
        counts |= set(range(len(words) - optional, len(words) + 1))
    return VtkMethod(returns, frozenset(counts) or None)


def _split(arguments: str) -> list[str]:
    parts, depth = [""], 0
    for character in arguments:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
