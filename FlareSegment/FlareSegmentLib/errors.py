"""Errors whose message is one clear line for the person who ran FlareSegment.

Anything else that is raised is a defect of the program, not of the input.
"""


class FlareSegmentError(Exception):
    """Base of the expected errors; ``str(error)`` says what is wrong, where, and what to do."""


class InputError(FlareSegmentError):
    """The input or an argument cannot be used (exit status 2)."""


class ModelError(FlareSegmentError):
    """A model folder is missing, damaged or not of a supported kind (exit status 2)."""


class Cancelled(FlareSegmentError):
    """The caller asked to stop; nothing was written."""
