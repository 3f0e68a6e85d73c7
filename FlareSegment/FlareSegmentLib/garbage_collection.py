"""Python's garbage collector and large libraries: what an import makes is no garbage, yet is looked through for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_collecting() -> Iterator[None]:
    """For imports of large libraries in a program's own process: PyTorch's takes an eighth less.

    Memory that reference counts give back does not wait for the collector. Nothing is frozen at the end: what another
    thread read meanwhile may hold an image in a circle, which would never be given back.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
