"""The embedded Slicer's command line: options, script arguments and exit status are Slicer's."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from slicerhost.command_line import CommandLineError, parse


def test_options_are_taken_out_wherever_they_stand():
    line = parse(["--no-main-window", "--python-script", "segment.py", "ct.nii.gz", "--output", "out", "--testing"])
    assert line.flags == {"no-main-window", "testing"}
    assert line.values == {"python-script": "segment.py"}
    assert line.arguments == ["ct.nii.gz", "--output", "out"]


def test_module_paths_of_both_options():
    line = parse(["--additional-module-paths", "first", "second", "--testing", "--additional-module-path", "third"])
    assert line.module_paths == ["first", "second", "third"]


def test_list_option_swallows_what_follows():
    assert parse(["--additional-module-paths", "first", "ct.nii.gz"]).arguments == []


def test_two_hyphens_end_the_options():
    line = parse(["--python-script", "segment.py", "--", "--testing", "--help"])
    assert line.flags == set()
    assert line.arguments == ["--testing", "--help"]


def test_help_of_a_script_is_slicers():
    assert "help" in parse(["--python-script", "segment.py", "--help"]).flags


@pytest.mark.parametrize("words", [["--python-script"], ["--python-script", "--testing"]])
def test_missing_value_is_an_error(words):
    with pytest.raises(CommandLineError, match="needs a value"):
        parse(words)


@pytest.fixture
def run(repository, tmp_path):
    """Starts the application; returns its completed process."""

    def start(*words, script="", seconds=120):
        environment = dict(os.environ, PYTHONPATH=str(repository / "Testing"))
        if script:
            (tmp_path / "script.py").write_text(script, encoding="utf-8")
            words = ("--python-script", str(tmp_path / "script.py"), *words)
        return subprocess.run(
            [sys.executable, "-m", "slicerhost", *words],
            env=environment,
            cwd=tmp_path,
            text=True,
            capture_output=True,
            timeout=seconds,
        )

    return start


def test_script_sees_its_arguments_its_file_and_slicer(run, tmp_path):
    (tmp_path / "beside.py").write_text("name = 'beside'\n", encoding="utf-8")
    script = """
import sys, os, beside
print(__name__, os.path.basename(__file__), sys.argv[1:], beside.name)
print(slicer.app.layoutManager(), slicer.util.mainWindow(), hasattr(slicer, "arrayFromVolume"))
slicer.util.exit(5)
print("still running")
"""
    process = run("--no-main-window", "ct.nii.gz", "--json", script=script)
    assert process.returncode == 5, process.stderr
    assert process.stdout.splitlines() == [
        "__main__ script.py ['ct.nii.gz', '--json'] beside",
        "None None False",
        "still running",
    ]


def test_testing_mode_ends_with_a_failure_where_a_slot_raised(run):
    script = "import qt\nqt.QTimer.singleShot(0, lambda: 1 / 0)\nslicer.app.processEvents()\n"
    process = run("--no-main-window", "--testing", script=script)
    assert process.returncode == 1
    assert "ZeroDivisionError" in process.stderr


def test_without_testing_mode_a_failed_script_does_not_end_the_application(run):
    with pytest.raises(subprocess.TimeoutExpired) as stopped:
        run("--no-main-window", script="raise RuntimeError('no')", seconds=40)
    assert b"RuntimeError: no" in stopped.value.stderr


GOOD = """
class Good(ScriptedLoadableModule):
    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "Good"
"""


def test_modules_are_loaded_before_the_script_and_a_broken_one_is_told(run, tmp_path):
    folder = tmp_path / "modules"
    folder.mkdir()
    beginning = "from slicer.ScriptedLoadableModule import ScriptedLoadableModule\n"
    (folder / "Good.py").write_text(beginning + GOOD, encoding="utf-8")
    words = (
        "--no-main-window",
        "--additional-module-path",
        str(folder),
        "--python-code",
        "print(slicer.modules.good.name); exit(0)",
    )
    process = run(*words)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "Good"
    (folder / "Bad.py").write_text(beginning + "class Bad(ScriptedLoadableModule):\n    nothing\n", encoding="utf-8")
    process = run(*words)
    assert process.returncode == 0
    assert "Bad.py" in process.stderr
    assert run("--testing", *words).returncode == 1


LAZY_VTK = """
import sys, types
import vtk
from slicerhost import lazy_vtk
libraries = lambda: sum(name.startswith("vtkmodules.vtk") for name in sys.modules)
before = libraries()
names = {name for module in lazy_vtk._libraries() for name in vars(module) if not name.startswith("_")}
mine = {name: getattr(vtk, name) for name in {*names, "calldata_type", "vtkVariantEqual"}}
assert libraries() == before and type(vtk) is not types.ModuleType, "names that are there loaded the others"
assert not hasattr(vtk, "__wrapped__") and libraries() == before
from vtk.util.numpy_support import vtk_to_numpy
assert libraries() == before
vtk.vtkStreamTracer
assert type(vtk) is types.ModuleType and libraries() > before + 50
other = [name for name, value in mine.items() if vars(vtk)[name] is not value and vars(vtk)[name] != value]
assert not other, other
try:
    vtk.vtkNothing
except AttributeError:
    print("the same vtk")
"""


def test_vtk_is_the_same_whether_all_of_it_was_imported_or_what_is_used(run):
    result = run("--no-main-window", "--testing", script=LAZY_VTK)
    assert result.returncode == 0 and "the same vtk" in result.stdout, result.stderr


def test_vtk_is_complete_where_there_is_a_window(run):
    code = "import types, vtk; print(type(vtk) is types.ModuleType, 'vtkStreamTracer' in vars(vtk))"
    result = run("--testing", "--python-code", code)
    assert "True True" in result.stdout, result.stderr


def test_what_was_imported_at_the_start_is_left_out_of_collections(run):
    code = "import gc; print(gc.isenabled(), gc.get_freeze_count() > 10000)"
    assert "True True" in run("--no-main-window", "--testing", "--python-code", code).stdout
