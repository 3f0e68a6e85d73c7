"""What runs as the worker process: the engine's worker, given the surfaces that VTK makes and the engine does not know.

Nothing of Slicer's application is imported here: PythonSlicer starts this file by its path.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

IN_BACKGROUND = "--background"
"""Argument of the worker that shall let other programs go first."""


def make_surfaces(*arguments: Any) -> bytes:
    """As `segment_surfaces.organ_surfaces`. Raises ImportError where there is no VTK, which nobody needs before."""
    from FlareSegmentSlicerLib.rendering.segment_surfaces import organ_surfaces

    return organ_surfaces(*arguments)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])  # the libraries, instead of the files beside this one
    from FlareSegmentLib.worker.main import main

    main(make_surfaces, IN_BACKGROUND in sys.argv[1:])
