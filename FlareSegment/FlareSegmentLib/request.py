"""What is asked of the engine: one value from the panel or a script to the networks, also through the worker's pipe."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SegmentationRequest:
    """How to segment a CT and what to keep.

    Attributes:
        model: folder of the model; None takes the bundled one.
        device: "auto", or an id of `compute_devices`: "cpu", "cuda", "cuda:1", "mps".
        threads: CPU threads of the network; None for one per core.
        organs: keys of the organs to keep; None keeps all that the model knows.
        region: the part (z, y, x) of the volume to keep labels in, as slices with start and stop; what lies around it
            is context for the network. None keeps all.
        smoothing: Slicer's smoothing factor (0 to 1) of the surfaces that the worker makes; None makes none.
        review: also tell how sure the model is, and where a person should look first.
    """

    model: Path | None = None
    device: str = "auto"
    threads: int | None = None
    organs: tuple[str, ...] | None = None
    region: tuple[slice, slice, slice] | None = None
    smoothing: float | None = None
    review: bool = False
