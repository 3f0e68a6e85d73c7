"""How values of each type are kept in a parameter node: a serializer per type, found by `createSerializer`.

A simple value is one string under its name. A list keeps `name.len` and `name.0`, `name.1`, ...; a dict is a list of
(key, value); a union keeps its value under the index of the member that took it; a node is a node reference. Names and
texts are Slicer's, so that scenes can be exchanged, and nothing is taken that Slicer refuses: the comparison with
Slicer's own package is `Testing/Python/slicerhost/test_slicerhost_parameter_nodes.py`.
"""

from __future__ import annotations

import abc
import enum
import importlib
import logging
import pathlib
import typing
from collections.abc import MutableMapping, MutableSequence

import qt
import slicer.util

from .annotations import IsInstance, IsNone, NotNone, is_validator
from .type_tools import as_union, is_node_class, is_union, splitAnnotations

__all__ = ["AnySerializer", "BoolSerializer", "DictSerializer", "ListSerializer", "NodeSerializer", "NumberSerializer",
           "PathSerializer", "QColorSerializer", "Serializer", "StringSerializer", "TupleSerializer", "UnionSerializer",
           "ValidatedSerializer", "parameterNodeSerializer"]


class Serializer(abc.ABC):
    """Writes values of one type into a parameter node and reads them back."""

    @staticmethod
    @abc.abstractmethod
    def canSerialize(type_) -> bool:
        """Whether this class can handle the type."""

    @staticmethod
    @abc.abstractmethod
    def create(type_):
        """A serializer for the type, usually a ValidatedSerializer; None where the type is not this class's."""

    @abc.abstractmethod
    def default(self):
        """The value where no default is given."""

    @abc.abstractmethod
    def isIn(self, parameterNode, name: str) -> bool:
        """Whether the node has the value."""

    @abc.abstractmethod
    def write(self, parameterNode, name: str, value) -> None:
        """Write the value under the name."""

    @abc.abstractmethod
    def read(self, parameterNode, name: str):
        """The value under the name."""

    @abc.abstractmethod
    def remove(self, parameterNode, name: str) -> None:
        """Take away everything written under the name."""

    @staticmethod
    def supportsCaching() -> bool:
        """Whether a read value stays right until the node is modified."""
        return False


_registered: list[type[Serializer]] = []


def parameterNodeSerializer(classtype=None):
    """Class decorator: makes a serializer known; the first one registered for a type is taken, as in Slicer."""
    def register(cls):
        if not issubclass(cls, Serializer):
            raise TypeError(f"{cls} is not a Serializer")
        _registered.append(cls)
        return cls

    return register if classtype is None else register(classtype)


def createSerializer(type_):
    """(serializer, annotations that are neither validators nor serializers) of a possibly annotated type."""
    base, annotations = splitAnnotations(type_)
    given = [one for one in annotations if _is_serializer(one)]
    if len(given) > 1:
        raise ValueError(f"{type_} names several serializers")
    serializer = given[0] if given else None
    if serializer is None:
        cls = next((cls for cls in _registered if cls.canSerialize(base)), None)
        if cls is None:
            raise TypeError(f"The type {base} is not supported in a parameter node")
        serializer = cls.create(base)
    rest = [one for one in annotations if not is_validator(one) and not _is_serializer(one)]
    return ValidatedSerializer(serializer, [one for one in annotations if is_validator(one)]), rest


def _is_serializer(annotation):
    return isinstance(annotation, Serializer) or (isinstance(annotation, type) and issubclass(annotation, Serializer))


def memberSerializer(type_):
    """Serializer of an element; Slicer does not heed what else its annotations say, not even a default."""
    serializer, unused = createSerializer(type_)
    if unused:
        logging.warning("Unused annotations: %s", unused)
    return serializer


class ValidatedSerializer(Serializer):
    """Another serializer with validators in front of it."""

    def __init__(self, serializer, validators):
        inner = isinstance(serializer, ValidatedSerializer)
        self.serializer = serializer.serializer if inner else serializer
        self.validators = [*(serializer.validators if inner else ()), *(validators or ())]

    @staticmethod
    def canSerialize(type_):
        return False

    @staticmethod
    def create(type_):
        raise NotImplementedError("a ValidatedSerializer is not made from a type")

    def validate(self, value):
        """Raise where a validator refuses the value."""
        for validator in self.validators:
            validator.validate(value)

    def default(self):
        return self.serializer.default()

    def isIn(self, parameterNode, name):
        return self.serializer.isIn(parameterNode, name)

    def write(self, parameterNode, name, value):
        self.validate(value)
        self.serializer.write(parameterNode, name, value)

    def read(self, parameterNode, name):
        return self.serializer.read(parameterNode, name)

    def remove(self, parameterNode, name):
        self.serializer.remove(parameterNode, name)

    def supportsCaching(self):
        return self.serializer.supportsCaching()


class _TextSerializer(Serializer):
    """A value that is one string in the node."""

    def to_text(self, value):
        return str(value)

    @abc.abstractmethod
    def from_text(self, text):
        """The value that a text stands for."""

    def isIn(self, parameterNode, name):
        return parameterNode.HasParameter(name)

    def write(self, parameterNode, name, value):
        parameterNode.SetParameter(name, self.to_text(value))

    def read(self, parameterNode, name):
        return self.from_text(parameterNode.GetParameter(name))

    def remove(self, parameterNode, name):
        parameterNode.UnsetParameter(name)

    @staticmethod
    def supportsCaching():
        return True


@parameterNodeSerializer
class NumberSerializer(_TextSerializer):
    def __init__(self, type_):
        self.type = type_

    @staticmethod
    def canSerialize(type_):
        return type_ in (int, float)

    @staticmethod
    def create(type_):
        if not NumberSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(NumberSerializer(type_), [NotNone(), IsInstance((int, type_))])

    def default(self):
        return 0

    def from_text(self, text):
        return self.type(text)


@parameterNodeSerializer
class StringSerializer(_TextSerializer):
    @staticmethod
    def canSerialize(type_):
        return type_ is str

    @staticmethod
    def create(type_):
        return ValidatedSerializer(StringSerializer(), [NotNone(), IsInstance(str)]) if type_ is str else None

    def default(self):
        return ""

    def from_text(self, text):
        return text


@parameterNodeSerializer
class PathSerializer(_TextSerializer):
    def __init__(self, type_):
        self.type = type_

    @staticmethod
    def canSerialize(type_):
        return type_ in (pathlib.Path, pathlib.PosixPath, pathlib.WindowsPath, pathlib.PurePath, pathlib.PurePosixPath,
                         pathlib.PureWindowsPath)

    @staticmethod
    def create(type_):
        if not PathSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(PathSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self):
        return self.type()

    def from_text(self, text):
        return self.type(text)


@parameterNodeSerializer
class BoolSerializer(_TextSerializer):
    @staticmethod
    def canSerialize(type_):
        return type_ is bool

    @staticmethod
    def create(type_):
        return ValidatedSerializer(BoolSerializer(), [NotNone(), IsInstance(bool)]) if type_ is bool else None

    def default(self):
        return False

    def to_text(self, value):
        return str(bool(value))

    def from_text(self, text):
        return text == "True"


@parameterNodeSerializer
class NodeSerializer(Serializer):
    """A node is a node reference; a parameter of the same name says that it was set, if only to None."""

    @staticmethod
    def canSerialize(type_):
        return is_node_class(type_)

    @staticmethod
    def create(type_):
        return ValidatedSerializer(NodeSerializer(), [IsInstance(type_)]) if is_node_class(type_) else None

    def default(self):
        return None

    def isIn(self, parameterNode, name):
        return parameterNode.HasParameter(name)

    def write(self, parameterNode, name, value):
        parameterNode.SetParameter(name, "")
        parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())

    def read(self, parameterNode, name):
        return parameterNode.GetNodeReference(name)

    def remove(self, parameterNode, name):
        parameterNode.UnsetParameter(name)
        parameterNode.RemoveNodeReferenceIDs(name)

    @staticmethod
    def supportsCaching():
        return True


@parameterNodeSerializer
class QColorSerializer(_TextSerializer):
    @staticmethod
    def canSerialize(type_):
        return type_ is qt.QColor

    @staticmethod
    def create(type_):
        if type_ is not qt.QColor:
            return None
        return ValidatedSerializer(QColorSerializer(), [NotNone(), IsInstance(qt.QColor)])

    def default(self):
        return qt.QColor()

    def to_text(self, value):
        return value.name(qt.QColor.HexArgb)

    def from_text(self, text):
        return qt.QColor(text)

    @staticmethod
    def supportsCaching():
        return False


class _Observed:
    """What was read of a list or dict: a copy that writes itself whole into the node at every change."""

    def __init__(self, parameterNode, serializer, name, values):
        self._node, self._serializer, self._name, self._values = parameterNode, serializer, name, values

    def _change(self, method, *arguments, **options):
        result = getattr(self._values, method)(*arguments, **options)
        try:
            self._serializer.write(self._node, self._name, self._values)
        finally:
            # What was put in becomes observed too; what was refused is out again.
            self._values = self._serializer.read(self._node, self._name)._values
        return result

    def __len__(self):
        return len(self._values)

    def __iter__(self):
        return iter(self._values)

    def __getitem__(self, key):
        return self._values[key]

    def __setitem__(self, key, value):
        self._change("__setitem__", key, value)

    def __delitem__(self, key):
        self._change("__delitem__", key)

    def clear(self):
        self._change("clear")

    def __eq__(self, other):
        return self._values == (other._values if isinstance(other, _Observed) else other)

    __hash__ = None

    def __repr__(self):
        return f"{type(self).__name__}({self._values})"


class ObservedList(_Observed, MutableSequence):
    """A list of a parameter node."""

    def insert(self, index, value):
        self._change("insert", index, value)

    def append(self, value):
        self._change("append", value)

    def extend(self, values):
        self._change("extend", values)

    def pop(self, index=-1):
        return self._change("pop", index)

    def remove(self, value):
        self._change("remove", value)

    def reverse(self):
        self._change("reverse")

    def sort(self, *, key=None, reverse=False):
        self._change("sort", key=key, reverse=reverse)

    def __iadd__(self, other):
        self._change("__iadd__", other)
        return self

    def __imul__(self, count):
        self._change("__imul__", count)
        return self

    def _not_offered(self, other):
        raise NotImplementedError("convert to a list first: it would not be clear whether the result is observed")

    __add__ = __radd__ = __mul__ = __rmul__ = _not_offered


class ObservedDict(_Observed, MutableMapping):
    """A dict of a parameter node."""

    def get(self, key):
        return self._values.get(key)

    def pop(self, key):
        return self._change("pop", key)

    def popitem(self):
        return self._change("popitem")


@parameterNodeSerializer
class ListSerializer(Serializer):
    def __init__(self, element):
        self.element = element

    @staticmethod
    def canSerialize(type_):
        return type_ is list or typing.get_origin(type_) is list

    @staticmethod
    def create(type_):
        if not ListSerializer.canSerialize(type_):
            return None
        return ListSerializer(memberSerializer((*typing.get_args(type_), typing.Any)[0]))

    def default(self):
        return []

    def isIn(self, parameterNode, name):
        return parameterNode.HasParameter(f"{name}.len")

    def write(self, parameterNode, name, values):
        with slicer.util.NodeModify(parameterNode):
            before = self.read(parameterNode, name) if self.isIn(parameterNode, name) else None
            length, new_length = self._length(parameterNode, name), len(values)
            try:
                for index, value in enumerate(values):
                    self.element.write(parameterNode, f"{name}.{index}", value)
                parameterNode.SetParameter(f"{name}.len", str(new_length))
                for index in range(new_length, length):
                    self.element.remove(parameterNode, f"{name}.{index}")
            except Exception:
                if before is None:
                    self.remove(parameterNode, name)
                else:
                    self.write(parameterNode, name, before)
                raise

    def _length(self, parameterNode, name):
        return int(parameterNode.GetParameter(f"{name}.len")) if self.isIn(parameterNode, name) else 0

    def read(self, parameterNode, name):
        indices = range(self._length(parameterNode, name))
        values = [self.element.read(parameterNode, f"{name}.{index}") for index in indices]
        return ObservedList(parameterNode, self, name, values)

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            for index in range(self._length(parameterNode, name)):
                self.element.remove(parameterNode, f"{name}.{index}")
            parameterNode.UnsetParameter(f"{name}.len")

    def supportsCaching(self):
        return self.element.supportsCaching()


@parameterNodeSerializer
class TupleSerializer(Serializer):
    def __init__(self, elements):
        self.elements = list(elements)

    @staticmethod
    def canSerialize(type_):
        return typing.get_origin(type_) is tuple

    @staticmethod
    def create(type_):
        if not TupleSerializer.canSerialize(type_):
            return None
        if not typing.get_args(type_):
            raise TypeError("a tuple needs the types of its elements")
        return TupleSerializer([memberSerializer(one) for one in typing.get_args(type_)])

    def default(self):
        """Of one use, as in Slicer: a tuple without a default of its own serves one parameter node only."""
        return (element.default() for element in self.elements)

    def isIn(self, parameterNode, name):
        return self.elements[0].isIn(parameterNode, f"{name}.0")

    def write(self, parameterNode, name, value):
        values = tuple(value)
        if len(values) != len(self.elements):
            raise ValueError(f"Value must have {len(self.elements)} elements, has {len(values)}")
        with slicer.util.NodeModify(parameterNode):
            for index, (element, one) in enumerate(zip(self.elements, values, strict=True)):
                element.write(parameterNode, f"{name}.{index}", one)

    def read(self, parameterNode, name):
        return tuple(element.read(parameterNode, f"{name}.{index}") for index, element in enumerate(self.elements))

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            for index, element in enumerate(self.elements):
                element.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self):
        return all(element.supportsCaching() for element in self.elements)


@parameterNodeSerializer
class DictSerializer(Serializer):
    def __init__(self, keySerializer, valueSerializer):
        self.pairs = ListSerializer(TupleSerializer([keySerializer, valueSerializer]))

    @staticmethod
    def canSerialize(type_):
        return type_ is dict or typing.get_origin(type_) is dict

    @staticmethod
    def create(type_):
        if not DictSerializer.canSerialize(type_):
            return None
        return DictSerializer(*map(memberSerializer, typing.get_args(type_) or (typing.Any, typing.Any)))

    def default(self):
        return {}

    def isIn(self, parameterNode, name):
        return self.pairs.isIn(parameterNode, name)

    def write(self, parameterNode, name, value):
        self.pairs.write(parameterNode, name, value.items())

    def read(self, parameterNode, name):
        return ObservedDict(parameterNode, self, name, dict(self.pairs.read(parameterNode, name)))

    def remove(self, parameterNode, name):
        self.pairs.remove(parameterNode, name)

    def supportsCaching(self):
        return self.pairs.supportsCaching()


@parameterNodeSerializer
class NoneSerializer(_TextSerializer):
    """None, as a member of a union."""

    @staticmethod
    def canSerialize(type_):
        return type_ is type(None) or type_ is object

    @staticmethod
    def create(type_):
        return ValidatedSerializer(NoneSerializer(), [IsNone()]) if NoneSerializer.canSerialize(type_) else None

    def default(self):
        return {}  # Slicer's, which its own validator refuses

    def to_text(self, value):
        return "True"

    def from_text(self, text):
        return None


@parameterNodeSerializer
class UnionSerializer(Serializer):
    """Keeps a value under the index of the first member whose serializer handles its class and takes it."""

    def __init__(self, members):
        self.members = [ValidatedSerializer(member, []) for member in members]

    @staticmethod
    def canSerialize(type_):
        return is_union(type_)

    @staticmethod
    def create(type_):
        if not is_union(type_):
            return None
        return UnionSerializer(memberSerializer(one) for one in typing.get_args(as_union(type_)))

    def default(self):
        is_optional = len(self.members) == 2 and isinstance(self.members[1].serializer, NoneSerializer)
        return None if is_optional else self.members[0].default()

    def _member_for(self, value):
        """Index of the member for a value.

        The serializer's class is asked whether it handles the value's class before any validator sees the value: None
        is thus refused by a union of nodes that does not name None, although every node parameter may be None.
        """
        refusal = TypeError(f"{value!r} of {type(value)} is of none of the types of the union")
        for index, member in enumerate(self.members):
            if member.serializer.canSerialize(type(value)):
                try:
                    member.validate(value)
                except Exception as error:  # noqa: BLE001  (validators raise what they like)
                    refusal = error
                else:
                    return index
        raise refusal

    def isIn(self, parameterNode, name):
        return self._written(parameterNode, name) is not None

    def _written(self, parameterNode, name):
        return next((index for index, member in enumerate(self.members)
                     if member.isIn(parameterNode, f"{name}.{index}")), None)

    def write(self, parameterNode, name, value):
        with slicer.util.NodeModify(parameterNode):
            index = self._member_for(value)
            was_in = self.isIn(parameterNode, name)
            before = self.read(parameterNode, name) if was_in else None
            try:
                self.remove(parameterNode, name)
                self.members[index].write(parameterNode, f"{name}.{index}", value)
            except Exception:
                if was_in:
                    self.write(parameterNode, name, before)
                else:
                    self.remove(parameterNode, name)
                raise

    def read(self, parameterNode, name):
        index = self._written(parameterNode, name)
        if index is None:
            raise KeyError(name)
        return self.members[index].read(parameterNode, f"{name}.{index}")

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            for index, member in enumerate(self.members):
                member.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self):
        return all(member.supportsCaching() for member in self.members)


@parameterNodeSerializer
class EnumSerializer(_TextSerializer):
    """An enum is kept by its name, so that its values may change."""

    def __init__(self, type_):
        if not len(type_):
            raise ValueError(f"{type_} has no members")
        self.type = type_

    @staticmethod
    def canSerialize(type_):
        return isinstance(type_, type) and issubclass(type_, enum.Enum)

    @staticmethod
    def create(type_):
        if not EnumSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(EnumSerializer(type_), [IsInstance(type_)])

    def default(self):
        return next(iter(self.type))

    def to_text(self, value):
        return value.name

    def from_text(self, text):
        if text not in self.type.__members__:
            raise ValueError(f"{text!r} is not a name in {self.type!r}")
        return self.type[text]


@parameterNodeSerializer
class AnySerializer(Serializer):
    """Any value whose class a serializer knows: module and name of the class are kept under `name.type`."""

    _class_name = TupleSerializer([StringSerializer(), StringSerializer()])

    @staticmethod
    def canSerialize(type_):
        return type_ is typing.Any

    @staticmethod
    def create(type_):
        return AnySerializer() if type_ is typing.Any else None

    def default(self):
        return None

    def isIn(self, parameterNode, name):
        return self._class_name.isIn(parameterNode, f"{name}.type")

    def write(self, parameterNode, name, value):
        self.remove(parameterNode, name)
        cls = type(value)
        memberSerializer(cls).write(parameterNode, f"{name}.value", value)
        self._class_name.write(parameterNode, f"{name}.type", (cls.__module__, cls.__name__))

    def _written(self, parameterNode, name):
        module, class_name = self._class_name.read(parameterNode, f"{name}.type")
        if (module, class_name) == ("builtins", "NoneType"):
            return memberSerializer(type(None))
        return memberSerializer(getattr(importlib.import_module(module), class_name))

    def read(self, parameterNode, name):
        return self._written(parameterNode, name).read(parameterNode, f"{name}.value")

    def remove(self, parameterNode, name):
        if self.isIn(parameterNode, name):
            self._written(parameterNode, name).remove(parameterNode, f"{name}.value")
            self._class_name.remove(parameterNode, f"{name}.type")
