"""`vtk`, imported in full only where it is asked for a name that Slicer's libraries have not brought along already.

Slicer's Python has `vtk` from the start, and with it all of VTK's 150 libraries; what a script without a window uses of
it is in those that `slicer_core` links. Loading the others is a fifth of the embedded Slicer's start.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator


def install() -> None:
    """Make `import vtk` give the module of this file, unless `vtk` is there already."""
    if "vtk" in sys.modules:
        return
    import vtkmodules
    from vtkmodules.util import misc, vtkConstants, vtkVariant

    module = _LazyVtk("vtk")
    module.__spec__ = importlib.util.find_spec("vtk")
    module.__file__ = module.__spec__.origin
    module.__loader__ = module.__spec__.loader
    module.__path__ = vtkmodules.__path__
    module.__version__ = vtkmodules.__version__
    module.calldata_type = misc.calldata_type
    module.vtkImageScalarTypeNameMacro = vtkConstants.vtkImageScalarTypeNameMacro
    for name in (name for name in vars(vtkVariant) if not name.startswith("_")):
        setattr(module, name, getattr(vtkVariant, name))
    sys.modules["vtk"] = module


def load() -> None:
    """Import all of `vtk`."""
    import vtk

    if isinstance(vtk, _LazyVtk):
        vtk.__class__ = types.ModuleType
        vtk.__spec__.loader.exec_module(vtk)


class _LazyVtk(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(f"module 'vtk' has no attribute {name!r}")
        for module in _libraries():
            if name in vars(module):
                value = vars(module)[name]
                setattr(self, name, value)
                return value
        load()
        return getattr(sys.modules["vtk"], name)

    def __dir__(self):
        load()
        return dir(sys.modules["vtk"])


def _libraries() -> Iterator[types.ModuleType]:
    """What `vtk` takes its names from, as far as it is imported."""
    for name, module in list(sys.modules.items()):
        if name.startswith("vtkmodules.vtk"):
            yield module
