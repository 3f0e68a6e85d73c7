"""The button that loads a CT to try with."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import qt
import slicer
from slicer.i18n import tr as _

from FlareSegmentSlicerLib.scene.sample_data import PHANTOM, SLICER_SAMPLES, can_load, load_sample


class SampleMenu:
    """A menu of samples; what loads is chosen as every first CT is."""

    def __init__(self, button: qt.QToolButton, say: Callable[..., None]) -> None:
        """say: shows a text to the user, and of which kind it is."""
        self._menu, self._say = qt.QMenu(button), say
        for name in (PHANTOM, *SLICER_SAMPLES):
            text = _("Torso phantom (no download)") if name == PHANTOM else name
            action = self._menu.addAction(text)
            action.setData(name)
            action.connect("triggered(bool)", functools.partial(self._onAction, name))
        self._menu.connect("aboutToShow()", self._onMenu)
        button.setMenu(self._menu)

    def load(self, name: str) -> None:
        """Load a sample, or say why there is none."""
        self._say("")
        reason = _("the download failed")
        node = None
        try:
            with slicer.util.WaitCursor():
                node = load_sample(name)
        except Exception as error:  # whatever the download stumbles over: the user must know it
            logging.info("The sample %s could not be loaded", name, exc_info=True)
            reason = str(error).rstrip(".")
        if node is None:
            text = _("{name} could not be loaded: {reason}. The torso phantom needs no network.")
            self._say(text.format(name=name, reason=reason), "error")

    def _onMenu(self) -> None:
        """Offer what this Slicer can load."""
        for action in self._menu.actions():
            if not can_load(action.data()):
                action.setEnabled(False)
                action.text = _("{name} (this Slicer downloads nothing)").format(name=action.data())

    def _onAction(self, name: str, checked: bool = False) -> None:
        self.load(name)
