"""The members of a parameter pack or wrapper class: type, serializer and default of each, found once per class."""

from __future__ import annotations

import logging
import typing
from dataclasses import dataclass

from .annotations import Default
from .serializers import Serializer, createSerializer
from .type_tools import unannotatedType


@dataclass(frozen=True)
class ParameterInfo:
    """One member: its name, its serializer, its type as written, and its default."""

    basename: str
    serializer: Serializer
    unalteredType: object
    default: Default


def collect(cls):
    """Members of a class by name, in order of declaration; what it gives as their values are their defaults."""
    infos = {}
    for name, type_ in typing.get_type_hints(cls, include_extras=True).items():
        serializer, annotations = createSerializer(type_)
        if hasattr(cls, name):
            default = Default(getattr(cls, name))
        else:
            given = [one for one in annotations if isinstance(one, Default)]
            if len(given) > 1:
                raise ValueError(f"{cls.__name__}.{name} has several defaults")
            default = given[0] if given else Default(serializer.default())
            annotations = [one for one in annotations if not isinstance(one, Default)]
        if annotations:
            logging.warning("Unused annotations: %s", annotations)
        infos[name] = ParameterInfo(name, serializer, type_, default)
    return infos


def check_not_reserved(infos, names):
    """Raise ValueError where a member has one of the names."""
    for name in infos:
        if name in names:
            raise ValueError(f"'{name}' is a reserved name")


def walk(owner, dotted_name):
    """(ParameterInfo of the last part, list of the names before it) of `a.b.c` in a pack or wrapper class.

    Raises ValueError where there is no such member.
    """
    first, *rest = dotted_name.split(".")
    parents = []
    while True:
        infos = getattr(owner, "allParameters", {})
        if first not in infos:
            raise ValueError(f"{getattr(owner, '__name__', owner)} has no parameter '{first}' (in '{dotted_name}');"
                             f" it has {list(infos)}")
        if not rest:
            return infos[first], parents
        parents.append(first)
        owner = unannotatedType(infos[first].unalteredType)
        first, *rest = rest


def data_type(cls, dotted_name):
    """Type of a member as written, annotations included."""
    return walk(cls, dotted_name)[0].unalteredType


def get_value(owner, dotted_name):
    """Value of a member of a pack or wrapper, by dotted name."""
    first, *rest = dotted_name.split(".")
    if first not in owner.allParameters:
        return _property_value(owner, first, rest)
    walk(type(owner), dotted_name)
    for part in (first, *rest):
        owner = getattr(owner, part)
    return owner


def set_value(owner, dotted_name, value):
    """Set a member of a pack or wrapper, by dotted name."""
    *parents, last = dotted_name.split(".")
    for part in parents:
        owner = get_value(owner, part)
    if not hasattr(type(owner), last):
        raise ValueError(f"{type(owner).__name__} has no parameter '{last}'")
    setattr(owner, last, value)


def _property_value(owner, name, rest):
    if not isinstance(getattr(type(owner), name, None), property):
        raise ValueError(f"{type(owner).__name__} has no parameter '{name}'")
    value = getattr(owner, name)
    return get_value(value, ".".join(rest)) if rest else value
