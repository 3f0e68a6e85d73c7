"""The embedded Slicer: runs the project's unmodified modules and scripts without the 3D Slicer application.

`slicer-core` brings Slicer's own C++ libraries (MRML, module logics, displayable managers) without Qt. This package
puts PyQt5 in front of it, made to behave as the `qt`, `ctk` and qMRML widgets that Slicer's Python sees (PythonQt), and
adds what the wheel does not have: the application object, the command line, views, the scripted module factory and
Slicer's Python layer (`ScriptedLoadableModule`, `parameterNodeWrapper`, `i18n`, `packaging`, `testing`).

It is strict on purpose: an unknown attribute, property, signal or `.ui` class raises, because it would fail in Slicer
too. Start it with `python -m slicerhost [options of Slicer]`, or `boot()` from Python. It is for development and tests
only: PyQt5 is GPL, and nothing that is shipped imports it.

Rooms: `pythonqt` (the `qt` module), `ui_loader`, `ctk_widgets`, `qmrml_widgets`, `views` and `main_window` (what is
seen), `mrml` (scene and logics), `application`, `io_manager`, `subject_hierarchy`, `scripted_modules`, `command_line`,
`python_layer` (joined to the `slicer` package), `modules` (Slicer modules that others import). `run_slicer_tests`
measures it all by Slicer's own tests.
"""

from __future__ import annotations


def boot(**options):
    """Start the host once per process and return `slicer.app`; see `slicerhost.bootstrap.boot` for the options."""
    from slicerhost.bootstrap import boot as boot_host

    return boot_host(**options)
