"""The `qt` module: PyQt5 with PythonQt's manners.

PyQt5's classes are changed in place, so that `type(widget) == qt.QCheckBox` holds for widgets out of a `.ui` file too:

* a Qt property is an attribute (`button.text`, `button.enabled = True`), not a getter method;
* `sender.connect('clicked(bool)', function)` checks the signature and passes as many arguments as the function takes;
* an unknown attribute cannot be set on a C++ object;
* `QFileDialog`'s static functions return the file name alone.

An exception in a slot is printed, as by PythonQt, and kept in `slot_errors` (PyQt5 alone would abort).
"""

from __future__ import annotations

import inspect
import sys
import traceback
import types

from PyQt5 import QtCore, QtGui, QtNetwork, QtPrintSupport, QtSvg, QtWidgets, sip
from PyQt5.QtCore import QMetaObject, QObject

slot_errors: list[BaseException] = []
"""Exceptions raised inside Qt slots, VTK observers and event handlers since the start (or the last `clear()`)."""

_SOURCES = (QtCore, QtGui, QtWidgets, QtSvg, QtNetwork, QtPrintSupport)
_NOT_PYTHONQT = ("pyqt", "Py", "QT_TR", "Q_", "sip", "Signal", "Slot", "Property")

# A property whose getter is a C++ virtual: sip takes the attribute for a Python reimplementation and calls it.
_CALLABLE_TEXT = {("QProgressBar", "text")}
# An attribute on QWidget would hide the reimplementations of its subclasses from C++.
_LEFT_AS_METHODS = {"sizeHint", "minimumSizeHint"}

_property_of, _set_property_of = QObject.property, QObject.setProperty
_object_name, _set_object_name = QObject.objectName, QObject.setObjectName
_set_attribute = QObject.__setattr__
_native_disconnect = QObject.disconnect


class SignalError(ValueError):
    """`connect` or `disconnect` names a signal that the object does not have."""


class QtProperty:
    """A Qt property on instances; the class still gives the C++ method of that name (static ones are needed)."""

    def __init__(self, name, getter, setter, method):
        self.name, self.getter, self.setter, self.method = name, getter, setter, method

    def __get__(self, instance, owner=None):
        if instance is None:
            return self if self.method is None else self.method
        return self.getter(instance)

    def __set__(self, instance, value):
        if self.setter is None:
            raise AttributeError(f"Property '{self.name}' of type '{type(instance).__name__}' is not writable")
        self.setter(instance, value)


class _CallableText(str):
    def __call__(self):
        return str(self)


def _is_static(method):
    """Only sip's own signature text tells a static method from one that takes an instance."""
    return "(self" not in (method.__doc__ or "(self")


def _make_property(cls, meta_property):
    name = meta_property.name()
    capitalized = name[0].upper() + name[1:]
    method = getattr(cls, name, None)
    getter = None
    for candidate in ("is" + capitalized, "has" + capitalized, name):
        function = getattr(cls, candidate, None)
        if callable(function) and not inspect.isclass(function) and not isinstance(function, QtProperty):
            getter = function
            break
    if getter is None:
        def getter(self):
            return _property_of(self, name)
    elif _is_static(getter):

        def getter(self, static=getter):
            return static()
    if (cls.__name__, name) in _CALLABLE_TEXT:
        def getter(self, plain=getter):
            return _CallableText(plain(self))
    setter = None
    if meta_property.isWritable():
        native = getattr(cls, "set" + capitalized, None)
        if native is not None:
            is_static = _is_static(native)

            def setter(self, value):
                native(value) if is_static else native(self, value)
        else:
            def setter(self, value):
                _set_property_of(self, name, value)
    return QtProperty(name, getter, setter, method)


def _patch_properties(cls):
    meta_object = cls.staticMetaObject
    for index in range(meta_object.propertyOffset(), meta_object.propertyCount()):
        meta_property = meta_object.property(index)
        if not meta_property.name().startswith("_") and meta_property.name() not in _LEFT_AS_METHODS:
            setattr(cls, meta_property.name(), _make_property(cls, meta_property))


def _normalized(signature: str) -> str:
    return bytes(QMetaObject.normalizedSignature(signature)).decode()


def _bound_signal(sender, signature: str):
    """The PyQt signal that a PythonQt signature string names; raises SignalError where there is none."""
    signature = _normalized(signature)
    declared = getattr(type(sender), "SIGNALS", {})  # stand-ins list the C++ signatures PyQt cannot express
    if signature in declared:
        return getattr(sender, declared[signature])
    if "(" not in signature or sender.metaObject().indexOfSignal(signature) < 0 or "PyQt_PyObject" in signature:
        raise SignalError(f"{sender.metaObject().className()} has no signal {signature}")
    name, arguments = signature[:-1].split("(", 1)
    bound = getattr(sender, name)
    if not arguments:
        return bound
    try:
        return bound[tuple(arguments.split(","))] if "," in arguments else bound[arguments]
    except (KeyError, TypeError):
        return bound


def _accepted_arguments(function) -> int | None:
    """How many positional arguments PythonQt passes: the function's own count, or all (None) for anything else."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is None or code.co_flags & inspect.CO_VARARGS:
        return None
    return code.co_argcount - (1 if inspect.ismethod(function) else 0)


def _slot_key(function):
    if inspect.ismethod(function):
        return id(function.__self__), function.__func__
    return None, function


_connections: dict[int, list] = {}


def _connections_of(sender) -> list:
    address = sip.unwrapinstance(sender)
    if address not in _connections:
        _connections[address] = []
        sender.destroyed.connect(lambda *_: _connections.pop(address, None))
    return _connections[address]


def _connect(self, signature, *target):
    """`connect('signal(type)', callable)` or `connect('signal(type)', receiver, 'slot(type)')`."""
    function = target[0]
    if len(target) == 2:
        function = getattr(target[0], target[1].split("(")[0])
    if not callable(function):
        raise TypeError(f"connect('{signature}', ...): {function!r} is not callable")
    bound = _bound_signal(self, signature)
    count = _accepted_arguments(function)

    def call(*arguments):
        function(*(arguments if count is None else arguments[:count]))

    bound.connect(call)
    _connections_of(self).append((_normalized(signature), _slot_key(function), call))
    return True


def _disconnect(self, signature=None, *target):
    if not isinstance(signature, str):
        return _native_disconnect(self, *(() if signature is None else (signature, *target)))
    normalized = _normalized(signature)
    bound = _bound_signal(self, signature)
    function = target[0] if target else None
    if len(target) == 2:
        function = getattr(target[0], target[1].split("(")[0])
    removed = False
    for connection in list(_connections_of(self)):
        if connection[0] == normalized and (function is None or connection[1] == _slot_key(function)):
            bound.disconnect(connection[2])
            _connections_of(self).remove(connection)
            removed = True
    return removed


def _strict_set_attribute(native_classes):
    def set_attribute(self, name, value):
        cls = type(self)
        is_native = cls in native_classes
        is_stand_in = not is_native and cls.__module__.startswith("slicerhost.")
        if (is_native or (is_stand_in and not name.startswith("_"))) and not hasattr(cls, name):
            raise AttributeError(
                f"Attribute '{name}' does not exist and creating new attributes on C++ objects is not allowed"
                f" ({cls.__name__})"
            )
        _set_attribute(self, name, value)

    return set_attribute


def _collect_slot_error(kind, value, trace):
    slot_errors.append(value)
    sys.stderr.write("".join(traceback.format_exception(kind, value, trace)))
    sys.stderr.flush()


def _file_name_only(function):
    def static(*arguments, **keywords):
        return function(*arguments, **keywords)[0]

    return staticmethod(static)


def install() -> types.ModuleType:
    """Patch PyQt5 and put the module `qt` in place; returns it. Calling it again changes nothing."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    qt = types.ModuleType("qt", f"Qt {QtCore.QT_VERSION_STR} as Slicer's Python sees it.")
    native_classes = set()
    for source in _SOURCES:
        for name, value in vars(source).items():
            if name.startswith("_") or name.startswith(_NOT_PYTHONQT):
                continue
            setattr(qt, name, value)
            if inspect.isclass(value) and issubclass(value, QObject):
                native_classes.add(value)
    for cls in sorted(native_classes, key=lambda one: len(one.__mro__)):
        _patch_properties(cls)
        if "__len__" in vars(cls):  # PyQt5's own: in PythonQt an empty combo box has no length and is true
            cls.__len__ = None
    QObject.__bool__ = lambda self: not sip.isdeleted(self)

    QObject.connect = _connect
    QObject.disconnect = _disconnect
    QObject.className = lambda self: self.metaObject().className()
    QObject.name = property(lambda self: _object_name(self), lambda self, value: _set_object_name(self, value))
    QObject.delete = lambda self: sip.delete(self)
    QObject.__setattr__ = _strict_set_attribute(native_classes)
    for name in ("getOpenFileName", "getSaveFileName", "getOpenFileNames"):
        setattr(QtWidgets.QFileDialog, name, _file_name_only(getattr(QtWidgets.QFileDialog, name)))
    for cls in (QtWidgets.QDialog, QtWidgets.QMenu, QtWidgets.QApplication, QtCore.QEventLoop):
        if not hasattr(cls, "exec"):
            cls.exec = cls.exec_

    from slicerhost.ui_loader import QUiLoader

    qt.QUiLoader = QUiLoader
    sys.modules["qt"] = qt
    sys.excepthook = _collect_slot_error
    return qt
