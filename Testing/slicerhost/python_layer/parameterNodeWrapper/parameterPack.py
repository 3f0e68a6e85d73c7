"""`@parameterPack`: a class of typed members, like a dataclass, that can itself be a parameter.

A pack by itself holds its values. A pack read from a parameter node is a view of the node, of a subclass of its class.
"""

from __future__ import annotations

import slicer.util

from . import parameters
from .annotations import IsInstance, NotNone
from .serializers import Serializer, ValidatedSerializer, parameterNodeSerializer, plain
from .type_tools import unannotatedType

__all__ = ["FloatRange", "isParameterPack", "nestedParameterNames", "parameterPack"]

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
    """Access to one member, in the object or, for a view, in the parameter node."""

    def __init__(self, info):
        self._info = info

    def __get__(self, pack, owner=None):
        if pack is None:
            return self
        binding = pack.__dict__.get("_binding")
        if binding is None:
            if self._info.basename not in pack.__dict__["_values"]:
                pack.__dict__["_values"][self._info.basename] = self._info.default_value()
            return pack.__dict__["_values"][self._info.basename]
        node, name = binding
        return self._info.serializer.read(node, f"{name}.{self._info.basename}")

    def __set__(self, pack, value):
        binding = pack.__dict__.get("_binding")
        if binding is None:
            self._info.serializer.validate(value)
            pack.__dict__["_values"][self._info.basename] = plain(value)
        else:
            node, name = binding
            self._info.serializer.write(node, f"{name}.{self._info.basename}", value)


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
            raise ValueError(f"{type(self).__name__}: unknown or repeated value '{name}'")
        given[name] = value
    for name, info in self.allParameters.items():
        setattr(self, name, given[name] if name in given else info.default_value())


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


def _copy(self):
    """A pack of its own with the same values, whatever its constructor asks for."""
    cls = type(self)._pack_class
    copy = cls.__new__(cls)
    for name in self.allParameters:
        copy.__dict__["_values"][name] = plain(getattr(self, name))
    return copy


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
        cls.__parameter_pack_copy__ = _copy
        cls._pack_class = cls
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
        return all(info.serializer.isIn(parameterNode, inner) for info, inner in self._members(name))

    def write(self, parameterNode, name, value):
        value = plain(value)
        with slicer.util.NodeModify(parameterNode):
            for info, inner in self._members(name):
                info.serializer.write(parameterNode, inner, getattr(value, info.basename))

    def read(self, parameterNode, name):
        view = self.type.__new__(self.type)
        view.__dict__["_binding"] = parameterNode, name
        return view

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            for info, inner in self._members(name):
                info.serializer.remove(parameterNode, inner)

    def supportsCaching(self):
        return all(info.serializer.supportsCaching() for info in self.type.allParameters.values())


@parameterPack
class FloatRange:
    """A minimum and a maximum that is not below it."""

    _minimum: float
    _maximum: float

    def __init__(self, minimum=0, maximum=0):
        self.setRange(minimum, maximum)

    def __str__(self):
        return f"FloatRange({self.minimum}, {self.maximum})"

    @staticmethod
    def checkRange(minimum, maximum):
        if minimum > maximum:
            raise ValueError(f"The minimum {minimum} of a range is above its maximum {maximum}")

    def setRange(self, minimum, maximum):
        self.checkRange(minimum, maximum)
        self._minimum, self._maximum = minimum, maximum

    @property
    def minimum(self):
        return self._minimum

    @minimum.setter
    def minimum(self, value):
        self.setRange(value, self.maximum)

    @property
    def maximum(self):
        return self._maximum

    @maximum.setter
    def maximum(self, value):
        self.setRange(self.minimum, value)
