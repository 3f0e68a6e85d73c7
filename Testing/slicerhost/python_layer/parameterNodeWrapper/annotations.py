"""What may stand in `Annotated[type, ...]`: a default, validators, and hints for widgets."""

from __future__ import annotations

import abc
from dataclasses import dataclass

__all__ = ["Choice", "Decimals", "Default", "Exclude", "IsInstance", "IsNone", "Label", "Maximum", "Minimum", "NotNone",
           "RangeBounds", "SingleStep", "Validator", "WithinRange"]


class Default:
    """Default value of a parameter, or a generator function that makes it."""

    def __init__(self, value=None, *, generator=None):
        if value is not None and generator is not None:
            raise ValueError("Default takes a value or a generator, not both")
        self._value, self.generator = value, generator

    @property
    def value(self):
        return self._value if self.generator is None else self.generator()

    def __repr__(self):
        return f"Default({self._value!r})" if self.generator is None else f"Default(generator={self.generator!r})"

    def __eq__(self, other):
        return isinstance(other, Default) and (self._value, self.generator) == (other._value, other.generator)

    __hash__ = None


class Validator(abc.ABC):
    """Base of all validators, built-in and custom."""

    @abc.abstractmethod
    def validate(self, value) -> None:
        """Raise an exception where the value is not valid."""


def _required(condition, text):
    if not condition:
        raise ValueError(text)


class IsNone(Validator):
    def validate(self, value):
        _required(value is None, f"Value must be None, is {value!r}")


class NotNone(Validator):
    def validate(self, value):
        _required(value is not None, "Value must not be None")


@dataclass(eq=False)
class IsInstance(Validator):
    """None passes: it is up to NotNone to refuse it."""

    classtype: object

    def validate(self, value):
        if value is not None and not isinstance(value, self.classtype):
            raise TypeError(f"Value must be of type {self.classtype}, is {value!r} of type {type(value)}")


@dataclass(eq=False)
class WithinRange(Validator):
    minimum: float
    maximum: float

    def validate(self, value):
        _required(self.minimum <= value <= self.maximum,
                  f"Value must be within range [{self.minimum}, {self.maximum}], is {value}")


@dataclass(eq=False)
class Minimum(Validator):
    minimum: float

    def validate(self, value):
        _required(value >= self.minimum, f"Value must be at least {self.minimum}, is {value}")


@dataclass(eq=False)
class Maximum(Validator):
    maximum: float

    def validate(self, value):
        _required(value <= self.maximum, f"Value must be at most {self.maximum}, is {value}")


@dataclass(eq=False)
class Choice(Validator):
    choices: object

    def validate(self, value):
        _required(value in self.choices, f"Value must be one of {self.choices}, is {value!r}")


@dataclass(eq=False)
class Exclude(Validator):
    excludedValues: object

    def validate(self, value):
        _required(value not in self.excludedValues, f"Value must not be one of {self.excludedValues}, is {value!r}")


@dataclass(eq=False)
class RangeBounds(Validator):
    """Limits of a FloatRange."""

    minimum: float
    maximum: float

    def validate(self, value):
        _required(self.minimum <= value.minimum and value.maximum <= self.maximum,
                  f"Range must lie within [{self.minimum}, {self.maximum}], is {value}")


@dataclass(eq=False)
class Decimals:
    value: int


@dataclass(eq=False)
class SingleStep:
    value: float


@dataclass(eq=False)
class Label:
    """Text of the parameter's label in a created GUI."""

    text: str


def is_validator(annotation):
    """Validators may be given as an object or as a class."""
    return isinstance(annotation, Validator) or (isinstance(annotation, type) and issubclass(annotation, Validator))
