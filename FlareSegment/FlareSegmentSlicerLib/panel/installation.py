"""PyTorch, the one thing FlareSegment needs that Slicer does not bring: is it there, and how does it get there.

Nothing is installed unless the user asked for it. PyTorch comes through Slicer's PyTorch extension, which picks the
build for this computer's graphics card; pip does it only where that extension is absent. Nothing else is installed: no
package that Slicer itself brings is touched.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import sys

import slicer
from slicer.i18n import tr as _

TORCH_REQUIREMENT = ">=2.4"


def torch_installed() -> bool:
    """Whether PyTorch is there, without importing it."""
    return importlib.util.find_spec("torch") is not None


def install_torch() -> None:
    """Install PyTorch; asks before it downloads. Raises an exception that says why it failed."""
    try:
        import PyTorchUtils
    except ModuleNotFoundError:
        _install_by_pip()
    else:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
    importlib.invalidate_caches()


def offline_instructions() -> str:
    """How to bring PyTorch to a computer without network, for exactly this Slicer."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    system = {"win32": "Windows", "darwin": "macOS"}.get(sys.platform, "Linux")
    return _(
        "Without network: on a computer with network, {system} ({machine}) and Python {python}, run\n"
        '    python -m pip download "torch{requirement}" -d torch-packages\n'
        "Carry the folder torch-packages to this computer and run in Slicer's Python console\n"
        "    slicer.util.pip_install(['--no-index', '--find-links', r'FOLDER/torch-packages', 'torch'])\n"
        "Then open this module again. FlareSegment's own model is already here."
    ).format(system=system, machine=platform.machine(), python=python, requirement=TORCH_REQUIREMENT)


def _install_by_pip() -> None:
    requirement = "torch" + TORCH_REQUIREMENT
    try:
        from slicer.packaging import pip_ensure
    except ModuleNotFoundError:  # Slicer before 5.11
        question = _("PyTorch will be downloaded and installed. This takes some minutes.")
        if slicer.util.confirmOkCancelDisplay(question):
            slicer.util.pip_install([requirement])
    else:
        pip_ensure(requirement, requester="FlareSegment")
