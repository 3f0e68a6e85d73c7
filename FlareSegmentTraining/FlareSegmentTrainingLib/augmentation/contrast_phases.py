"""What contrast agent does to the abdomen's organs: mean HU in the phases of a CT.

Ranges over people and scanners, gathered from radiology's textbooks (an unenhanced liver 40 to 68 HU, a fatty one
below 40; portal venous liver some 100 to 120; arterial renal cortex up to 200).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Phase:
    """Ranges (lowest, highest) of mean HU.

    Attributes:
        share: how often the phase is drawn; scans without contrast most, for their organs are the hardest to tell
            apart.
        kidney: of the whole kidney; `medulla` is the medulla's share of the cortex's HU.
        artery, vein: of blood in the aorta and in the inferior vena cava and the portal vein.
    """

    share: float
    liver: tuple[float, float]
    spleen: tuple[float, float]
    kidney: tuple[float, float]
    medulla: tuple[float, float]
    pancreas: tuple[float, float]
    artery: tuple[float, float]
    vein: tuple[float, float]


PHASES = {
    "plain": Phase(0.40, (40, 68), (38, 58), (22, 45), (0.95, 1.05), (25, 50), (30, 55), (30, 55)),
    "plain, fatty liver": Phase(0.10, (0, 42), (38, 58), (22, 45), (0.95, 1.05), (10, 45), (30, 55), (30, 55)),
    "arterial": Phase(0.18, (50, 85), (85, 160), (100, 200), (0.35, 0.7), (75, 130), (200, 380), (45, 130)),
    "portal venous": Phase(0.22, (85, 135), (100, 145), (130, 220), (0.8, 1.0), (65, 110), (130, 190), (130, 190)),
    "delayed": Phase(0.10, (65, 105), (65, 110), (100, 180), (0.95, 1.25), (50, 85), (80, 125), (80, 125)),
}

_TISSUES = {
    "liver": "liver",
    "spleen": "spleen",
    "right_kidney": "kidney",
    "left_kidney": "kidney",
    "pancreas": "pancreas",
    "aorta": "artery",
    "inferior_vena_cava": "vein",
}


@dataclass(frozen=True)
class DrawnPhase:
    """One scan's phase: mean HU of each tissue that contrast agent changes."""

    name: str
    liver: float
    spleen: float
    kidney: float
    medulla: float
    pancreas: float
    artery: float
    vein: float

    def organ(self, key: str) -> float | None:
        """Return an organ's mean HU, the same for left and right; None for organs that the phases say nothing of."""
        tissue = _TISSUES.get(key)
        return None if tissue is None else getattr(self, tissue)


def draw_phase(generator: np.random.Generator) -> DrawnPhase:
    """Draw a phase by its share, and each tissue's HU uniformly from its range."""
    names = list(PHASES)
    shares = np.array([PHASES[name].share for name in names])
    name = names[int(generator.choice(len(names), p=shares / shares.sum()))]
    phase = PHASES[name]
    tissues = ("liver", "spleen", "kidney", "medulla", "pancreas", "artery", "vein")
    return DrawnPhase(name, *(float(generator.uniform(*getattr(phase, tissue))) for tissue in tissues))
