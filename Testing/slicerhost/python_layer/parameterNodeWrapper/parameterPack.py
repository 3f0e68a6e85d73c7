"""`@parameterPack`: a class of typed members, like a dataclass, that can itself be a parameter.

A pack holds its values. One that was read from a parameter node writes itself into the node at every change.
"""

from __future__ import annotations

import slicer.util

from . import parameters
from .annotations import IsInstance, NotNone
from .serializers import Serializer, ValidatedSerializer, parameterNodeSerializer
from .type_tools import unannotatedType

__all__ = ["isParameterPack", "nestedParameterNames", "parameterPack"]

_RESERVED = ("allParameters", "_is_parameterPack", "dataType", "getValue", "setValue")


def isParameterPack(obj):
    """Whether a class or an object is a parameter pack."""
    return getattr(obj, "_is_parameterPack", False)


def nestedParameterNames(parameterPackClassOrInstance):
    """Dotted names of all members that are not packs themselves."""
    names = []
    for name, info in parameterPackClassOrInstance.allParameters.items():
        type_ = unannotatedType(info.unalteredType)
        names += [f"{name}.{inner}" for inner in nestedParameterNames(type_)] if isParameterPack(type_) else [name]
    return names


class _Member:
    """Access to one member of a pack; a pack of a parameter node is written into it, and read again."""

    def __init__(self, info):
        self._info = info

    def __get__(self, pack, owner=None):
        if pack is None:
            return self
        values = pack.__dict__["_values"]
        if self._info.basename not in values:
            values[self._info.basename] = self._info.default.value
        return values[self._info.basename]

    def __set__(self, pack, value):
        self._info.serializer.validate(value)
        pack.__dict__["_values"][self._info.basename] = value
        binding = pack.__dict__.get("_binding")
        if binding is not None:
            serializer, node, name = binding
            try:
                serializer.write(node, name, pack)
            finally:
                pack.__dict__["_values"] = serializer.read_values(node, name)


def _new(cls, *args, **kwargs):
    pack = object.__new__(cls)
    pack.__dict__["_values"] = {}
    return pack


def _init(self, *args, **kwargs):
    names = list(self.allParameters)
    if len(args) > len(names):
        raise ValueError(f"{type(self).__name__} takes {len(names)} values, {len(args)} were given")
    given = dict(zip(names, args))
    for name, value in kwargs.items():
        if name not in names or name in given:
            raise TypeError(f"{type(self).__name__}: unknown or repeated value '{name}'")
        given[name] = value
    for name, info in self.allParameters.items():
        setattr(self, name, given.get(name, info.default.value))


def _eq(self, other):
    if not isParameterPack(other) or list(self.allParameters) != list(other.allParameters):
        return NotImplemented
    return all(getattr(self, name) == getattr(other, name) for name in self.allParameters)


def _text(self):
    members = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.allParameters)
    return f"{type(self).__name__}({members})"


def _set_attribute(self, name, value):
    if not hasattr(type(self), name):
        raise AttributeError(f"{type(self).__name__} has no member '{name}'")
    object.__setattr__(self, name, value)


def parameterPack(classtype=None):
    """Class decorator that makes a parameter pack of a class with type hints."""
    def decorate(cls):
        infos = parameters.collect(cls)
        reserved = set(_RESERVED)
        for name in infos:
            reserved |= {f"_parameterPack_{name}_impl", f"_parameterPack_{name}_serializer"}
        parameters.check_not_reserved(infos, reserved)
        for name, info in infos.items():
            setattr(cls, name, _Member(info))
        for name, function in (("__init__", _init), ("__eq__", _eq), ("__str__", _text), ("__repr__", _text)):
            if name not in vars(cls):
                setattr(cls, name, function)
        cls.__new__ = _new
        cls.__hash__ = None
        cls.__setattr__ = _set_attribute
        cls._is_parameterPack = True
        cls.allParameters = infos
        cls.dataType = classmethod(parameters.data_type)
        cls.getValue = parameters.get_value
        cls.setValue = parameters.set_value
        return cls

    return decorate if classtype is None else decorate(classtype)


@parameterNodeSerializer
class ParameterPackSerializer(Serializer):
    """A pack's members are kept under `name.member`."""

    def __init__(self, type_):
        self.type = type_

    @staticmethod
    def canSerialize(type_):
        return isinstance(type_, type) and isParameterPack(type_)

    @staticmethod
    def create(type_):
        if not ParameterPackSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(ParameterPackSerializer(type_), [NotNone(), IsInstance(type_)])

    def _members(self, name):
        return [(info, f"{name}.{member}") for member, info in self.type.allParameters.items()]

    def default(self):
        return self.type()

    def isIn(self, parameterNode, name):
        info, inner = self._members(name)[0]
        return info.serializer.isIn(parameterNode, inner)

    def write(self, parameterNode, name, value):
        with slicer.util.NodeModify(parameterNode):
            for info, inner in self._members(name):
                info.serializer.write(parameterNode, inner, getattr(value, info.basename))

    def read_values(self, parameterNode, name):
        """Values of the members by name."""
        return {info.basename: info.serializer.read(parameterNode, inner) for info, inner in self._members(name)}

    def read(self, parameterNode, name):
        pack = self.type.__new__(self.type)
        pack.__dict__.update(_values=self.read_values(parameterNode, name), _binding=(self, parameterNode, name))
        return pack

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            for info, inner in self._members(name):
                info.serializer.remove(parameterNode, inner)

    def supportsCaching(self):
        return all(info.serializer.supportsCaching() for info in self.type.allParameters.values())
