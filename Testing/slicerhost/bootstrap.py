"""Puts the host together, in the one order that works, and hands out `slicer.app`."""

from __future__ import annotations

import contextlib
import gc
import getpass
import os
import sys
import tempfile
import types
from pathlib import Path

from slicerhost import lazy_vtk

PYTHON_LAYER = Path(__file__).parent / "python_layer"
BUILT_IN_MODULES = Path(__file__).parent / "modules"

# Names under which Slicer's own code imports the libraries that slicer-core keeps in one package.
_LIBRARY_ALIASES = {
    "MRMLCLIPython": "slicer_core.MRMLCLI",
    "MRMLCorePython": "slicer_core.MRMLCore",
    "MRMLDisplayableManagerPython": "slicer_core.MRMLDisplayableManager",
    "MRMLLogicPython": "slicer_core.MRMLLogic",
    "vtkAddonPython": "slicer_core.vtkAddonPython",
    "vtkITK": "slicer_core.vtkITK",
    "vtkSegmentationCorePython": "slicer_core.vtkSegmentationCore",
}


def boot(main_window: bool = False, testing: bool = True):
    """Start the host (once per process) and return `slicer.app`.

    :param main_window: also make the main window with module panel, slice views and 3D view (not yet shown).
    :param testing: Slicer's testing mode: dialogs do not wait for an answer.
    """
    _find_vtk_libraries_once()
    lazy_vtk.install()
    with _without_collecting():
        import slicer

    if getattr(slicer, "app", None) is not None:
        app = slicer.app
    else:
        with _without_collecting():
            app = _boot(testing)
    if main_window and app.layoutManager() is None:
        from slicerhost.main_window import qSlicerMainWindow

        lazy_vtk.load()  # windows and what people do with them draw on all of it
        app._set_main_window(qSlicerMainWindow())
    return app


def _boot(testing):
    from slicerhost.mrml import MrmlCore, prefer_off_screen_rendering

    if sys.platform.startswith("linux") and "DISPLAY" not in os.environ:
        os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    if sys.platform.startswith("linux") and not os.environ.get("XDG_RUNTIME_DIR"):
        # The folder that Qt would take, made without its warning: scripts owe their users a clean stderr.
        os.environ["XDG_RUNTIME_DIR"] = os.path.join(tempfile.gettempdir(), f"runtime-{getpass.getuser()}")
        os.makedirs(os.environ["XDG_RUNTIME_DIR"], mode=0o700, exist_ok=True)
    prefer_off_screen_rendering()
    import slicer
    import slicer.util

    _remove_leaked_names(slicer)
    for alias, real in _LIBRARY_ALIASES.items():
        try:
            sys.modules[alias] = __import__(real, fromlist=["*"])
        except ImportError:
            continue

    from slicerhost import pythonqt

    pythonqt.install()
    from slicerhost import ctk_widgets, qmrml_widgets, ui_loader

    ctk = types.ModuleType("ctk", "CTK's widgets as Slicer's Python sees them (stand-ins).")
    vars(ctk).update(ctk_widgets.exported())
    sys.modules["ctk"] = ctk
    vars(slicer).update(qmrml_widgets.exported())
    ui_loader.stand_ins.update(ctk_widgets.exported() | qmrml_widgets.exported())

    slicer.__path__.append(str(PYTHON_LAYER))
    sys.path.append(str(BUILT_IN_MODULES))
    core = MrmlCore()
    from slicerhost import application
    from slicerhost.scripted_modules import install_loadable_modules
    from slicerhost.subject_hierarchy import SubjectHierarchyItems

    slicer.app = application.qSlicerApplication(core, testing)
    install_loadable_modules(core)
    from slicerhost import main_window

    vars(slicer).update(application.exported() | main_window.exported())
    core.subject_hierarchy_items = SubjectHierarchyItems(core.scene)
    return slicer.app


@contextlib.contextmanager
def _without_collecting():
    """Python's collector does not look through what is imported, again and again, nor later: none of it is garbage."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()


def _find_vtk_libraries_once():
    """VTK's finder searches its folder anew for each of 150 libraries, a quarter of the start; here it looks once."""
    import vtkmodules

    if not hasattr(vtkmodules, "find_lib_path"):
        return
    libraries = {}
    for folder in vtkmodules.__path__:
        for file in os.scandir(folder):
            if file.name.endswith((".so", ".pyd")):
                libraries.setdefault(file.name.partition(".")[0].partition("-")[0], file.path)
    vtkmodules.find_lib_path = lambda paths, name: libraries.get(name)


def _remove_leaked_names(slicer):
    """The wheel copies `slicer.util`'s names into `slicer`; real Slicer does not have them there."""
    for name in list(vars(slicer)):
        value = vars(slicer)[name]
        if name.startswith("_") or name in ("util", "slicer_core"):
            continue
        is_foreign = isinstance(value, (types.ModuleType, types.FunctionType)) or name in ("info", "item_name")
        if vars(slicer.util).get(name) is value or is_foreign:
            delattr(slicer, name)
