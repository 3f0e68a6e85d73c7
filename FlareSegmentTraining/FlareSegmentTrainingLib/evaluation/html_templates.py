"""Reports as templates of Jinja2 in Resources/Templates: whatever is filled in is escaped, and what is missing is an
error. Jinja2 comes with PyTorch; nothing else needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from FlareSegmentLib.errors import InputError

if TYPE_CHECKING:
    import jinja2

TEMPLATES = Path(__file__).resolve().parents[2] / "Resources" / "Templates"


def report_templates() -> jinja2.Environment:
    """Return the environment that loads the reports' templates. Raises InputError where Jinja2 is missing."""
    try:
        import jinja2
    except ImportError as error:
        raise InputError(
            "The report needs the package jinja2: slicer.util.pip_install('jinja2') in Slicer's Python console, pip "
            "install jinja2 elsewhere."
        ) from error
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
