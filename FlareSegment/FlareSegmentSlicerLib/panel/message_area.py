"""Text for the user with a colored bar beside it: as tall as its text, at every width of the panel."""

from __future__ import annotations

import re
from collections.abc import Callable

import qt

_COLORS = {"information": "#4a90c2", "warning": "#d99a1c", "error": "#c8453b"}
_LONGEST_WORD = 24
MESSAGE_LINES = 2


class MessageArea:
    """Shows a text in a label that wraps; hidden while there is none."""

    def __init__(self, frame: qt.QWidget, bar: qt.QFrame, label: qt.QLabel, lines: int = 0) -> None:
        """
        :param frame: holds the bar and the label
        :param lines: as many have their place also while there is no text: what is below does not jump
        """
        self._frame, self._bar, self._label = frame, bar, WrappedLabel(label, lines)
        if lines:
            keep_place(frame)

    def show(self, text: str, kind: str = "information") -> None:
        """Show a text, "information", "warning" or "error"; an empty one hides the area."""
        # The bar alone has a style of its own: the text keeps the application's font and colors, whatever they become.
        self._bar.styleSheet = f"background: {_COLORS[kind]};"
        self._label.setText(breakable(text))
        self._frame.setVisible(bool(text))


class WrappedLabel:
    """Keeps a label that wraps as tall as its text.

    A layout that is short of room takes it from such labels, or lays what is below over what is above.
    """

    def __init__(self, label: qt.QLabel, lines: int = 0) -> None:
        """lines: as many have their place in any case."""
        self._label, self._lines, self._width = label, lines, 0
        self._resized = _ResizeFilter(self._onResized)
        label.installEventFilter(self._resized)

    def setText(self, text: str) -> None:
        self._label.text = text
        self._fit()

    def _onResized(self) -> None:
        if self._label.width != self._width:
            self._fit()

    def _fit(self) -> None:
        # The height that a text needs counts an earlier minimum in.
        self._width = self._label.width
        self._label.setMinimumHeight(0)
        needed = self._label.heightForWidth(self._width) if self._label.text else 0
        reserved = self._lines * self._label.fontMetrics().lineSpacing() + 2 * self._label.margin if self._lines else 0
        self._label.setMinimumHeight(max(needed, reserved))
        self._label.indent = self._label.indent  # the label forgets what it told layouts while its minimum was another


class _ResizeFilter(qt.QObject):
    """Calls a function when the watched widget has another size."""

    def __init__(self, onResized: Callable[[], None]) -> None:
        qt.QObject.__init__(self)
        self._onResized = onResized

    def eventFilter(self, watched, event) -> bool:
        if event.type() == qt.QEvent.Resize:
            self._onResized()
        return False


def keep_place(widget: qt.QWidget) -> None:
    """Let a widget have its place also while it is hidden, so that what is around it does not jump."""
    policy = widget.sizePolicy
    policy.setRetainSizeWhenHidden(True)
    widget.setSizePolicy(policy)


def breakable(text: str) -> str:
    """The text with places where a label may break it: paths and identifiers are long words."""
    text = re.sub(r"([/\\])", "\\1\u200b", text)
    return re.sub(rf"([^\s\u200b]{{{_LONGEST_WORD}}})(?=[^\s\u200b])", "\\1\u200b", text)
