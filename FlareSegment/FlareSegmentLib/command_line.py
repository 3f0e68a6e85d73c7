"""What every headless script does around its work: usage errors, one line for each failure, the exit status.

A script ends with ``leave(main(sys.argv[1:]))``. Its ``main`` gives its work to `run`, which never raises: Slicer does
not exit when a script does. FLARESEGMENT_DEBUG=1 in the environment adds the traceback to the one line.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from FlareSegmentLib.errors import FlareSegmentError, InputError, ModelError
from FlareSegmentLib.files.disk_space import NO_SPACE, is_disk_full

DONE, FAILED, BAD_INPUT = 0, 1, 2


class ArgumentParser(argparse.ArgumentParser):
    """Takes no abbreviated options, and raises InputError where argparse would print its usage and exit."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see --help)")


def in_slicer() -> bool:
    """Whether this Python is Slicer's own process, with its scene, and not PythonSlicer or another."""
    return getattr(sys.modules.get("slicer"), "app", None) is not None


def say(line: str) -> None:
    """Print a line on standard output at once."""
    print(line, flush=True)


def warn(message: object) -> None:
    """Print a warning, in one line, on standard error."""
    print(f"Warning: {_one_line(message)}", file=sys.stderr, flush=True)


def complain(message: object) -> None:
    """Print an error, in one line, on standard error."""
    print(f"Error: {_one_line(message)}", file=sys.stderr, flush=True)


def run(
    work: Callable[[], object],
    interrupted: str = "Stopped; the same command goes on.",
    out_of_memory: str = "Not enough memory: close other programs.",
) -> int:
    """Do a script's work; returns its exit status, whatever happens, and says in one line why it is not 0.

    Args:
        interrupted: what is said after Ctrl-C.
        out_of_memory: what is said where the memory of the computer or of the GPU does not suffice.
    """
    try:
        work()
        return DONE
    except SystemExit as request:  # --help
        return int(request.code or 0)
    except (InputError, ModelError) as error:
        return _fail(BAD_INPUT, error)
    except KeyboardInterrupt:
        return _fail(FAILED, interrupted)
    except BaseException as error:  # noqa: BLE001  an exception that leaves the script would leave Slicer running
        return _fail(FAILED, explain(error, out_of_memory))


def explain(error: BaseException, out_of_memory: str) -> str:
    """What a person is told of an error, in one line."""
    if isinstance(error, FlareSegmentError):
        return _one_line(error)
    if isinstance(error, ModuleNotFoundError):
        advice = " Install Slicer's PyTorch extension and install PyTorch with it." if error.name == "torch" else ""
        return f"The Python package {error.name} is missing.{advice}"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return out_of_memory
    if isinstance(error, OSError) and is_disk_full(error):
        place = f" of {error.filename}" if error.filename else ""
        return f"{NO_SPACE.capitalize()}{place}: free some; the same command goes on."
    return f"Unexpected {type(error).__name__}: {_one_line(error)} (FLARESEGMENT_DEBUG=1 shows where)"


def leave(status: int) -> None:
    """End the program, and Slicer with it, with an exit status."""
    if in_slicer():
        sys.modules["slicer"].util.exit(status)
    else:
        sys.exit(status)


def _fail(status: int, message: object) -> int:
    if os.environ.get("FLARESEGMENT_DEBUG"):
        traceback.print_exc()
    complain(message)
    return status


def _one_line(message: object) -> str:
    return " ".join(str(message).split())
