"""PyTorch, the one thing FlareSegment needs that Slicer does not bring: is it there, and how does it get there.

Nothing is installed unless the user asked for it. PyTorch comes through Slicer's PyTorch extension, which picks the
build for this computer's graphics card; pip does it only where that extension is absent. Nothing else is installed: no
package that Slicer itself brings is touched.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import platform
import sys

import slicer
from slicer.i18n import tr as _

TORCH_REQUIREMENT = ">=2.2"
"""The last PyTorch for Macs with an Intel processor is 2.2; it needs numpy < 2, which such a Slicer has."""


class Torch:
    """Whether PyTorch can be used.

    Looking for it takes no time; whether it can be loaded is known only by loading it, which takes seconds and is the
    worker's first act: what it stumbled over is told here.
    """

    def __init__(self) -> None:
        self.problem = ""

    @property
    def usable(self) -> bool:
        """Whether it is there and nobody has failed to load it."""
        return torch_installed() and not self.problem

    def install(self) -> None:
        """Install it; asks before it downloads. One that cannot be loaded is removed first. Raises an exception that
        says why it failed.
        """
        if self.problem:
            slicer.util.pip_uninstall("torch")
            importlib.invalidate_caches()
        install_torch()
        self.problem = ""


def torch_installed() -> bool:
    """Whether PyTorch is there, without importing it."""
    return importlib.util.find_spec("torch") is not None


def install_torch() -> None:
    """Install PyTorch; asks before it downloads, and does nothing where the user declines. Raises an exception that
    says why it failed.
    """
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
        # Its one RuntimeError in the main thread says that the user declined; pip's own failures are of another class.
        with contextlib.suppress(RuntimeError):
            pip_ensure(requirement, requester="FlareSegment")
