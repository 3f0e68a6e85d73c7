"""Packs that Slicer brings."""

from __future__ import annotations

from .parameterPack import parameterPack

__all__ = ["FloatRange"]


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
