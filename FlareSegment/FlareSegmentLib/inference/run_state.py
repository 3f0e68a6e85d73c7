"""Progress, cancelling, times and warnings of one segmentation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from FlareSegmentLib.errors import Cancelled
from FlareSegmentLib.organs import Organ

if TYPE_CHECKING:
    from FlareSegmentLib.inference.confidence import Evidence


class Run:
    """Progress, cancelling, times and warnings of one call.

    Attributes:
        organs: what was asked for.
        evidence: keeps what the confidence is made of; None where nobody asked for it.
    """

    def __init__(
        self, progress: Callable[[float, str], None], cancelled: Callable[[], bool], organs: Sequence[Organ]
    ) -> None:
        self.organs = organs
        self.evidence: Evidence | None = None
        self.seconds = {"preprocess": 0.0, "network": 0.0, "postprocess": 0.0}
        self.warnings: list[str] = []
        self._progress, self._cancelled = progress, cancelled
        self._done = self._share = self._reached = 0.0
        self._stage = ""

    def begin(self, stage: str, share: float) -> None:
        """The next part of the work is `stage` and takes this share of it."""
        self._done, self._share, self._stage = self._done + self._share, share, stage
        self.tick(0.0)

    def go_on(self, share: float) -> None:
        """The next part of the work is more of the same, and takes this share of it."""
        self.begin(self._stage, share)

    def tick(self, fraction: float) -> None:
        """This fraction of the part is done."""
        if self._cancelled():
            raise Cancelled("The segmentation was cancelled.")
        self._reached = max(self._reached, min(1.0, self._done + fraction * self._share))
        self._progress(self._reached, self._stage)

    def finish(self) -> None:
        self._progress(1.0, "Done")

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - start
