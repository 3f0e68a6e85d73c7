"""How values of each type are kept in a parameter node: a serializer per type, found by `createSerializer`.

A simple value is one string under its name. A list keeps `name.len` and `name.0`, `name.1`, ...; a dict its keys and
values as two lists; a node is a node reference. Reading a list or dict gives a view of the node, not a copy.
"""

from __future__ import annotations

import abc
import enum
import importlib
import pathlib
import typing
from collections.abc import MutableMapping, MutableSequence

import qt
import slicer.util

from .annotations import Default, IsInstance, NotNone, is_validator
from .type_tools import is_node_class, is_union, splitAnnotations

__all__ = ["AnySerializer", "BoolSerializer", "DictSerializer", "EnumSerializer", "ListSerializer",
           "NodeSerializer", "NumberSerializer", "PathSerializer", "QColorSerializer", "Serializer", "StringSerializer",
           "TupleSerializer", "UnionSerializer", "ValidatedSerializer", "parameterNodeSerializer"]


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

    def supportsCaching(self) -> bool:
        """Whether a read value stays right while nobody writes through the wrapper."""
        return False

    def validate(self, value) -> None:  # noqa: B027  (most need no more than their validators)
        """Raise where the value may not be written."""


_registered: list[type[Serializer]] = []


def parameterNodeSerializer(classtype=None):
    """Class decorator: makes a serializer known; the last one registered for a type is taken."""
    def register(cls):
        _registered.insert(0, cls)
        return cls

    return register if classtype is None else register(classtype)


def createSerializer(type_):
    """(serializer, annotations that are neither validators nor serializers) of a possibly annotated type."""
    base, annotations = splitAnnotations(type_)
    serializer = next((one for one in annotations if isinstance(one, Serializer)), None)
    if serializer is None:
        serializer = next((found for cls in _registered if (found := cls.create(base)) is not None), None)
    if serializer is None:
        raise TypeError(f"The type {base} is not supported in a parameter node")
    validators = [one for one in annotations if is_validator(one)]
    if validators:
        serializer = ValidatedSerializer(serializer, validators)
    return serializer, [one for one in annotations if not is_validator(one) and not isinstance(one, Serializer)]


def memberSerializer(type_):
    """Serializer of an element, with the element's own `Default` honored."""
    serializer, annotations = createSerializer(type_)
    default = next((one for one in annotations if isinstance(one, Default)), None)
    return serializer if default is None else _WithDefault(serializer, default)


def plain(value):
    """A copy that is independent of any parameter node."""
    if isinstance(value, (ObservedList, list)):
        return [plain(one) for one in value]
    if isinstance(value, tuple):
        return tuple(plain(one) for one in value)
    if isinstance(value, (ObservedDict, dict)):
        return {plain(key): plain(one) for key, one in value.items()}
    return value.__parameter_pack_copy__() if hasattr(value, "__parameter_pack_copy__") else value


class ValidatedSerializer(Serializer):
    """Another serializer with validators in front of it."""

    def __init__(self, serializer, validators):
        self.serializer, self.validators = serializer, list(validators)

    @staticmethod
    def canSerialize(type_):
        return False

    @staticmethod
    def create(type_):
        return None

    def validate(self, value):
        self.serializer.validate(value)
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


class _WithDefault(ValidatedSerializer):
    def __init__(self, serializer, default):
        super().__init__(serializer, [])
        self._default = default

    def default(self):
        return plain(self._default.value)


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

    def supportsCaching(self):
        return True


class _IsNumber(IsInstance):
    def validate(self, value):
        if isinstance(value, bool) and bool not in (self.classtype if isinstance(self.classtype, tuple) else ()):
            raise TypeError(f"Value must be a number, is {value!r}")
        super().validate(value)


@parameterNodeSerializer
class NumberSerializer(_TextSerializer):
    def __init__(self, type_):
        self.type = type_

    @staticmethod
    def canSerialize(type_):
        return type_ in (int, float)

    @staticmethod
    def create(type_):
        if type_ is int:
            return ValidatedSerializer(NumberSerializer(int), [NotNone(), _IsNumber(int)])
        if type_ is float:
            return ValidatedSerializer(NumberSerializer(float), [NotNone(), _IsNumber((float, int))])
        return None

    def default(self):
        return self.type()

    def to_text(self, value):
        return repr(self.type(value))

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
        return "true" if value else "false"

    def from_text(self, text):
        return text == "true"


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
class EnumSerializer(_TextSerializer):
    """An enum is kept by its name, so that its values may change."""

    def __init__(self, type_):
        self.type = type_

    @staticmethod
    def canSerialize(type_):
        return isinstance(type_, type) and issubclass(type_, enum.Enum)

    @staticmethod
    def create(type_):
        if not EnumSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(EnumSerializer(type_), [NotNone(), IsInstance(type_)])

    def default(self):
        return next(iter(self.type))

    def to_text(self, value):
        return value.name

    def from_text(self, text):
        return self.type[text]


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
        return qt.QColor("#000000")

    def to_text(self, value):
        return value.name(qt.QColor.HexArgb)

    def from_text(self, text):
        return qt.QColor(text)


@parameterNodeSerializer
class _NoneSerializer(_TextSerializer):
    @staticmethod
    def canSerialize(type_):
        return type_ is type(None)

    @staticmethod
    def create(type_):
        return _NoneSerializer() if type_ is type(None) else None

    def validate(self, value):
        if value is not None:
            raise TypeError(f"Value must be None, is {value!r}")

    def default(self):
        return None

    def from_text(self, text):
        return None


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
        return parameterNode.HasParameter(name) or parameterNode.GetNodeReferenceID(name) is not None

    def write(self, parameterNode, name, value):
        with slicer.util.NodeModify(parameterNode):
            parameterNode.SetParameter(name, "None" if value is None else "node")
            parameterNode.SetNodeReferenceID(name, None if value is None else value.GetID())

    def read(self, parameterNode, name):
        return parameterNode.GetNodeReference(name)

    def remove(self, parameterNode, name):
        parameterNode.UnsetParameter(name)
        parameterNode.SetNodeReferenceID(name, None)

    def supportsCaching(self):
        return True


class ObservedList(MutableSequence):
    """View of a list in a parameter node: every change is written at once."""

    def __init__(self, serializer, node, name):
        self._serializer, self._node, self._name = serializer, node, name

    def __len__(self):
        return int(self._node.GetParameter(f"{self._name}.len") or 0)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        position = range(len(self))[index]
        return self._serializer.element.read(self._node, f"{self._name}.{position}")

    def _change(self, function):
        values = plain(self)
        result = function(values)
        self._serializer.validate(values)
        self._serializer.write(self._node, self._name, values)
        return result

    def __setitem__(self, index, value):
        self._change(lambda values: values.__setitem__(index, plain(value)))

    def __delitem__(self, index):
        self._change(lambda values: values.__delitem__(index))

    def insert(self, index, value):
        self._change(lambda values: values.insert(index, plain(value)))

    def append(self, value):
        self._change(lambda values: values.append(plain(value)))

    def extend(self, iterable):
        added = [plain(one) for one in iterable]
        self._change(lambda values: values.extend(added))

    def pop(self, index=-1):
        return self._change(lambda values: values.pop(index))

    def remove(self, value):
        self._change(lambda values: values.remove(plain(value)))

    def reverse(self):
        self._change(lambda values: values.reverse())

    def sort(self, *, key=None, reverse=False):
        self._change(lambda values: values.sort(key=key, reverse=reverse))

    def clear(self):
        self._change(lambda values: values.clear())

    def __iadd__(self, other):
        self.extend(other)
        return self

    def __imul__(self, count):
        self._change(lambda values: values.__imul__(count))
        return self

    def _not_offered(self, other):
        raise NotImplementedError("convert to a list first: it would not be clear whether the result is observed")

    __add__ = __radd__ = __mul__ = __rmul__ = _not_offered

    def __eq__(self, other):
        if not isinstance(other, (list, ObservedList)):
            return NotImplemented
        return plain(self) == plain(other)

    __hash__ = None

    def __repr__(self):
        return repr(plain(self))


@parameterNodeSerializer
class ListSerializer(Serializer):
    def __init__(self, element):
        self.element = element

    @staticmethod
    def canSerialize(type_):
        return typing.get_origin(type_) is list

    @staticmethod
    def create(type_):
        if not ListSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(ListSerializer(memberSerializer(typing.get_args(type_)[0])),
                                   [NotNone(), IsInstance((list, tuple, ObservedList))])

    def validate(self, value):
        if isinstance(value, (list, tuple, ObservedList)):
            for one in value:
                self.element.validate(one)

    def default(self):
        return []

    def isIn(self, parameterNode, name):
        return parameterNode.HasParameter(f"{name}.len")

    def write(self, parameterNode, name, value):
        values = [plain(one) for one in value]
        with slicer.util.NodeModify(parameterNode):
            for index in range(len(values), self._length(parameterNode, name)):
                self.element.remove(parameterNode, f"{name}.{index}")
            parameterNode.SetParameter(f"{name}.len", str(len(values)))
            for index, one in enumerate(values):
                self.element.write(parameterNode, f"{name}.{index}", one)

    @staticmethod
    def _length(parameterNode, name):
        return int(parameterNode.GetParameter(f"{name}.len") or 0)

    def read(self, parameterNode, name):
        return ObservedList(self, parameterNode, name)

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
        elements = [memberSerializer(one) for one in typing.get_args(type_)]
        return ValidatedSerializer(TupleSerializer(elements), [NotNone(), IsInstance(tuple)])

    def validate(self, value):
        if not isinstance(value, tuple):
            return
        if len(value) != len(self.elements):
            raise ValueError(f"Value must have {len(self.elements)} elements, has {len(value)}")
        for element, one in zip(self.elements, value):
            element.validate(one)

    def default(self):
        return tuple(element.default() for element in self.elements)

    def isIn(self, parameterNode, name):
        return all(element.isIn(parameterNode, f"{name}.{index}") for index, element in enumerate(self.elements))

    def write(self, parameterNode, name, value):
        values = plain(tuple(value))
        with slicer.util.NodeModify(parameterNode):
            for index, (element, one) in enumerate(zip(self.elements, values)):
                element.write(parameterNode, f"{name}.{index}", one)

    def read(self, parameterNode, name):
        return tuple(element.read(parameterNode, f"{name}.{index}") for index, element in enumerate(self.elements))

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            for index, element in enumerate(self.elements):
                element.remove(parameterNode, f"{name}.{index}")

    def supportsCaching(self):
        return all(element.supportsCaching() for element in self.elements)


class ObservedDict(MutableMapping):
    """View of a dict in a parameter node: every change is written at once."""

    def __init__(self, serializer, node, name):
        self._serializer, self._node, self._name = serializer, node, name

    def _keys(self):
        return list(self._serializer.keys.read(self._node, f"{self._name}.keys"))

    def __len__(self):
        return len(self._keys())

    def __iter__(self):
        return iter(self._keys())

    def __getitem__(self, key):
        keys = self._keys()
        if key not in keys:
            raise KeyError(key)
        return self._serializer.values.read(self._node, f"{self._name}.values")[keys.index(key)]

    def _change(self, function):
        content = plain(self)
        result = function(content)
        self._serializer.validate(content)
        self._serializer.write(self._node, self._name, content)
        return result

    def __setitem__(self, key, value):
        self._change(lambda content: content.__setitem__(key, plain(value)))

    def __delitem__(self, key):
        self._change(lambda content: content.__delitem__(key))

    def pop(self, key, *default):
        return self._change(lambda content: content.pop(key, *default))

    def popitem(self):
        return self._change(lambda content: content.popitem())

    def clear(self):
        self._change(lambda content: content.clear())

    def __eq__(self, other):
        return plain(self) == plain(other) if isinstance(other, (dict, ObservedDict)) else NotImplemented

    __hash__ = None

    def __repr__(self):
        return repr(plain(self))


@parameterNodeSerializer
class DictSerializer(Serializer):
    def __init__(self, keySerializer, valueSerializer):
        self.keys, self.values = ListSerializer(keySerializer), ListSerializer(valueSerializer)

    @staticmethod
    def canSerialize(type_):
        return typing.get_origin(type_) is dict

    @staticmethod
    def create(type_):
        if not DictSerializer.canSerialize(type_):
            return None
        return ValidatedSerializer(DictSerializer(*map(memberSerializer, typing.get_args(type_))),
                                   [NotNone(), IsInstance((dict, ObservedDict))])

    def validate(self, value):
        if isinstance(value, (dict, ObservedDict)):
            self.keys.validate(list(value.keys()))
            self.values.validate(list(value.values()))

    def default(self):
        return {}

    def isIn(self, parameterNode, name):
        return self.keys.isIn(parameterNode, f"{name}.keys")

    def write(self, parameterNode, name, value):
        content = plain(value)
        with slicer.util.NodeModify(parameterNode):
            self.keys.write(parameterNode, f"{name}.keys", list(content.keys()))
            self.values.write(parameterNode, f"{name}.values", list(content.values()))

    def read(self, parameterNode, name):
        return ObservedDict(self, parameterNode, name)

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            self.keys.remove(parameterNode, f"{name}.keys")
            self.values.remove(parameterNode, f"{name}.values")

    def supportsCaching(self):
        return self.keys.supportsCaching() and self.values.supportsCaching()


@parameterNodeSerializer
class UnionSerializer(Serializer):
    """Keeps which member the value is of under `name.union`, the value itself under `name`."""

    def __init__(self, serializers):
        self.serializers = list(serializers)

    @staticmethod
    def canSerialize(type_):
        return is_union(type_)

    @staticmethod
    def create(type_):
        return UnionSerializer(map(memberSerializer, typing.get_args(type_))) if is_union(type_) else None

    def _member_for(self, value):
        errors = []
        for index, serializer in enumerate(self.serializers):
            if isinstance(serializer, (NumberSerializer, StringSerializer)):  # bare ones do not look at the type
                expected = serializer.type if isinstance(serializer, NumberSerializer) else str
                if type(value) is not expected:
                    continue
            try:
                serializer.validate(value)
            except (TypeError, ValueError) as error:
                errors.append(error)
            else:
                return index
        raise next((one for one in errors if isinstance(one, ValueError) and value is not None),
                   TypeError(f"{value!r} is of none of the types of the union"))

    def validate(self, value):
        self._member_for(value)

    def default(self):
        is_optional = len(self.serializers) == 2 and isinstance(self.serializers[1], _NoneSerializer)
        return None if is_optional else self.serializers[0].default()

    def isIn(self, parameterNode, name):
        return parameterNode.HasParameter(f"{name}.union")

    def write(self, parameterNode, name, value):
        value, member = plain(value), self._member_for(value)
        with slicer.util.NodeModify(parameterNode):
            if self.isIn(parameterNode, name):
                self.remove(parameterNode, name)
            parameterNode.SetParameter(f"{name}.union", str(member))
            self.serializers[member].write(parameterNode, name, value)

    def _written(self, parameterNode, name):
        return self.serializers[int(parameterNode.GetParameter(f"{name}.union"))]

    def read(self, parameterNode, name):
        return self._written(parameterNode, name).read(parameterNode, name)

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            self._written(parameterNode, name).remove(parameterNode, name)
            parameterNode.UnsetParameter(f"{name}.union")

    def supportsCaching(self):
        return all(serializer.supportsCaching() for serializer in self.serializers)


@parameterNodeSerializer
class AnySerializer(Serializer):
    """Any value whose class a serializer knows: the class's import path is kept under `name.type`."""

    @staticmethod
    def canSerialize(type_):
        return type_ is typing.Any

    @staticmethod
    def create(type_):
        return AnySerializer() if type_ is typing.Any else None

    @staticmethod
    def _serializer_of(cls):
        if cls is list:
            return ListSerializer(AnySerializer())
        if cls is dict:
            return DictSerializer(AnySerializer(), AnySerializer())
        return createSerializer(cls)[0]

    def default(self):
        return None

    def isIn(self, parameterNode, name):
        return parameterNode.HasParameter(f"{name}.type")

    def write(self, parameterNode, name, value):
        value = plain(value)
        cls = type(value)
        with slicer.util.NodeModify(parameterNode):
            if self.isIn(parameterNode, name):
                self.remove(parameterNode, name)
            parameterNode.SetParameter(f"{name}.type", f"{cls.__module__}:{cls.__qualname__}")
            self._serializer_of(cls).write(parameterNode, f"{name}.value", value)

    def _written(self, parameterNode, name):
        module, qualified_name = parameterNode.GetParameter(f"{name}.type").split(":")
        if (module, qualified_name) == ("builtins", "NoneType"):
            return _NoneSerializer()
        cls = importlib.import_module(module)
        for part in qualified_name.split("."):
            cls = getattr(cls, part)
        return self._serializer_of(cls)

    def read(self, parameterNode, name):
        return self._written(parameterNode, name).read(parameterNode, f"{name}.value")

    def remove(self, parameterNode, name):
        with slicer.util.NodeModify(parameterNode):
            self._written(parameterNode, name).remove(parameterNode, f"{name}.value")
            parameterNode.UnsetParameter(f"{name}.type")
