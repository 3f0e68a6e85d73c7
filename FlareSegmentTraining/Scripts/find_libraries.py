"""Lets the scripts beside this file import the libraries; each runs it first, by its path.

In a working tree the libraries are in this module's folder and in the other one's; installed, all are in one folder.
Slicer itself knows its modules' folders; PythonSlicer and a plain Python do not.
"""

from __future__ import annotations

import sys
from pathlib import Path

_MODULE = Path(__file__).resolve().parents[1]
for _folder in (_MODULE, _MODULE.parent / "FlareSegment"):
    if any((_folder / name).is_dir() for name in ("FlareSegmentLib", "FlareSegmentTrainingLib")):
        sys.path.insert(0, str(_folder))
