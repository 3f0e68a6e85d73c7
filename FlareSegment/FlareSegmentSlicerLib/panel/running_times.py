"""How long a segmentation will still take: what runs like it took on this computer, and how far the present one is.

Finished runs are kept in Slicer's settings, so that the first estimate after a restart is a good one.
"""

from __future__ import annotations

import json
import math

import qt
from slicer.i18n import tr as _

_SETTING = "FlareSegment/RunningTimes"
_KEPT_RUNS = 8
_TRUSTED_FRACTION = 0.08
_SHOWN_FROM_SECONDS = 1.5


class RunningTimes:
    """Seconds that runs took, by what ran and where."""

    def expected(self, kind: str, megavoxels: float) -> float | None:
        """Seconds that a run of this kind (model, device) takes; None before the first one has been seen.

        The run of the nearest size counts: the networks' share of the time depends on the body, not on the voxels, so
        that it is not simply proportional.
        """
        runs = self._read().get(kind, [])
        if not runs:
            return None
        return min(reversed(runs), key=lambda run: abs(math.log(max(run[0], 1e-3) / max(megavoxels, 1e-3))))[1]

    def learn(self, kind: str, megavoxels: float, seconds: float) -> None:
        """Keep what a finished run took."""
        known = self._read()
        known[kind] = [*known.get(kind, []), [round(megavoxels, 3), round(seconds, 3)]][-_KEPT_RUNS:]
        qt.QSettings().setValue(_SETTING, json.dumps(known))

    def _read(self) -> dict[str, list[list[float]]]:
        try:
            content = json.loads(qt.QSettings().value(_SETTING) or "{}")
        except (TypeError, ValueError):  # written by something else
            return {}
        return content if isinstance(content, dict) else {}


def remaining_seconds(fraction: float, elapsed: float, expected: float | None) -> float | None:
    """Seconds left: the expectation at first, more and more the pace of the run itself; None while nothing is known."""
    own = elapsed * (1 - fraction) / fraction if fraction >= _TRUSTED_FRACTION else None
    if expected is None:
        return own
    prior = max(expected - elapsed, (1 - fraction) * expected * 0.25)
    return prior if own is None else (1 - fraction) * prior + fraction * own


def remaining_text(seconds: float | None) -> str:
    """The rest in words; empty where it is unknown or as good as over."""
    if seconds is None or seconds < _SHOWN_FROM_SECONDS:
        return ""
    if seconds < 100:
        return _("about {count} s left").format(count=round(seconds) if seconds < 10 else 5 * round(seconds / 5))
    return _("about {count} min left").format(count=max(2, round(seconds / 60)))
