"""What runs as the worker process: the engine's worker, given the surfaces that VTK makes and the engine does not know.

Nothing of Slicer's application is imported here: PythonSlicer starts this file by its path.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started by its path: the libraries are two folders above, and nothing here is a module
    _HERE = os.path.dirname(os.path.abspath(__file__))
    _MODULE = os.path.dirname(os.path.dirname(_HERE))
    sys.path[:] = [_MODULE, *(entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE)]

IN_BACKGROUND = "--background"
"""Argument of the worker that shall let other programs go first."""


def worker_command(python: str | os.PathLike[str]) -> list[str]:
    """Program and arguments that start the worker with the given Python (Slicer's PythonSlicer, or sys.executable)."""
    return [str(python), str(Path(__file__).resolve())]


def write_surfaces(*arguments: Any) -> None:
    """Write organs' surfaces as `segment_surfaces.write_organ_surfaces` does; VTK is imported when they are asked for.

    Raises:
        ImportError: where there is no VTK.
    """
    from FlareSegmentSlicerLib.rendering.segment_surfaces import write_organ_surfaces

    write_organ_surfaces(*arguments)


if __name__ == "__main__":
    from FlareSegmentLib.worker.main import main

    main(write_surfaces, IN_BACKGROUND in sys.argv[1:])
