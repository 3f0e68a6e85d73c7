"""Small tools that the widget stand-ins share: properties that keep a value, constructor arguments as in C++."""

from __future__ import annotations

from PyQt5.QtCore import pyqtProperty
from PyQt5.QtWidgets import QWidget


def stored_properties(**declared):
    """Namespace of a class body with Qt properties that keep their value: `name=(type, default)` gives `name` and its
    setter. To be used in the class body, `locals().update(stored_properties(...))`: Qt sees only what is there when the
    class is made.

    A method `_<name>_changed(self)` of the class, where there is one, is called after each change.
    """
    namespace = {}
    for name, (kind, default) in declared.items():
        namespace[name] = _stored_property(name, kind, default)
        namespace["set" + name[0].upper() + name[1:]] = _setter(name)
    return namespace


def _stored_property(name, kind, default):
    attribute = f"_{name}_value"

    def get(self):
        return getattr(self, attribute, default)

    def set_(self, value):
        if get(self) == value:
            return
        setattr(self, attribute, value)
        changed = getattr(self, f"_{name}_changed", None)
        if changed is not None:
            changed()

    return pyqtProperty(kind, get, set_)


def _setter(name):
    def set_(self, value):
        setattr(self, name, value)

    return set_


def text_and_parent(arguments):
    """Text and parent widget of a constructor that takes either, both or none."""
    text = next((one for one in arguments if isinstance(one, str)), "")
    return text, next((one for one in arguments if isinstance(one, QWidget)), None)


def exported_names(namespace, prefixes):
    """The classes of a module whose names begin with one of the prefixes."""
    return {name: value for name, value in namespace.items() if name.startswith(prefixes) and isinstance(value, type)}
