"""`slicer.i18n`: translation of texts. The host speaks English only, so a text comes back as it is."""

from __future__ import annotations

import inspect
import os

__all__ = ["getContext", "tr", "translate"]


def translate(context, text):
    """The text in the application's language."""
    import slicer

    app = getattr(slicer, "app", None)
    return text if app is None else app.translate(context, text)


def getContext(sourceFile):
    """Translation context of a source file: its name, with the package's name before it where it is in a package."""
    folder, name = os.path.split(sourceFile)
    stem = name.removesuffix(".py")
    if os.path.isfile(os.path.join(folder, "__init__.py")):
        return f"{os.path.basename(folder)}.{stem}"
    return stem


def tr(text):
    """The text in the application's language, its context taken from the calling file."""
    caller = inspect.currentframe().f_back
    return translate(getContext(caller.f_code.co_filename), text)
