"""Python's garbage collector and large libraries: what an import makes is no garbage, yet is looked through for it."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_collecting() -> Iterator[None]:
    """For imports of large libraries in a program's own process: PyTorch's takes an eighth less.

    What there is at the end is left out of later collections too, so that these are quick. Memory that reference counts
    give back, all arrays among it, does not wait for the collector.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
