"""Runs Slicer's own tests of its Python layer on the embedded Slicer: the measure of how true the host is.

    PYTHONPATH=Testing python -m slicerhost.run_slicer_tests CHECKOUT [--template]

CHECKOUT is a copy of Slicer's source (https://github.com/Slicer/Slicer), kept outside this repository: nothing of it
enters here. Each test file runs in its own process, then come the tests of the command line that Slicer's
Applications/SlicerApp/Testing/Python lists; the last line is the total. `--template` loads the module template that
Slicer ships, unmodified, and works its panel, instead. Exit status 0 where nothing failed.

The tests of packaging need the package certifi, which Slicer brings, and one of them installs a package from the index.
Left out are test files that need Slicer's sample data or its image readers (mgh, minc, load_data, save).
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import unittest
from dataclasses import dataclass
from pathlib import Path

TESTS = Path("Base/Python/slicer/tests")
APPLICATION_TESTS = Path("Applications/SlicerApp/Testing/Python")
TEMPLATE = Path("Utilities/Templates/Modules/Scripted")
FILES = (
    "test_slicer_packaging.py",
    "test_slicer_parameter_node_wrapper.py",
    "test_slicer_parameter_node_wrapper_gui_creation.py",
    "test_slicer_parameter_node_wrapper_guis.py",
    "test_slicer_parameter_pack.py",
    "test_slicer_util_VTKObservationMixin.py",
    "test_slicer_util_chdir.py",
    "test_slicer_util_childWidgetVariables.py",
    "test_slicer_util_getNodes.py",
    "test_slicer_util_pip.py",
    "test_slicer_util_without_modules.py",
)


@dataclass(frozen=True)
class CommandLineTest:
    """One start of the application as Slicer's own CMake file lists it; `{here}` is the folder of its scripts."""

    name: str
    arguments: tuple[str, ...]
    succeeds: bool = True
    is_driver: bool = False  # a Python script that is given the path of the application


_UNIT = "import slicer.testing; slicer.testing.runUnitTest(['{here}'], '%s')"
COMMAND_LINE_TESTS = (
    CommandLineTest("exit(0) in code", ("--no-main-window", "--python-code", "exit(slicer.util.EXIT_SUCCESS)")),
    CommandLineTest("exit(0) in code, testing",
                    ("--testing", "--no-main-window", "--python-code", "exit(slicer.util.EXIT_SUCCESS)")),
    CommandLineTest("exit(1) in code", ("--no-main-window", "--python-code", "exit(slicer.util.EXIT_FAILURE)"), False),
    CommandLineTest("exit(1) in code, testing",
                    ("--testing", "--no-main-window", "--python-code", "exit(slicer.util.EXIT_FAILURE)"), False),
    CommandLineTest("slicer.testing.exitSuccess", ("--testing", "--no-main-window", "--python-code",
                                                   "import slicer.testing; slicer.testing.exitSuccess()")),
    CommandLineTest("slicer.testing.exitFailure", ("--testing", "--no-main-window", "--python-code",
                                                   "import slicer.testing; slicer.testing.exitFailure('no')"), False),
    CommandLineTest("an exception in code",
                    ("--testing", "--no-main-window", "--python-code", "raise Exception('no')"), False),
    CommandLineTest("a script, no window", ("--testing", "--no-main-window", "--python-script",
                                            "{here}/SlicerTestingExitSuccessTest.py")),
    CommandLineTest("a failing script, no window", ("--testing", "--no-main-window", "--python-script",
                                                    "{here}/SlicerTestingExitFailureTest.py"), False),
    CommandLineTest("a script", ("--testing", "--python-script", "{here}/SlicerTestingExitSuccessTest.py")),
    CommandLineTest("a failing script",
                    ("--testing", "--python-script", "{here}/SlicerTestingExitFailureTest.py"), False),
    CommandLineTest("a unit test", ("--testing", "--no-main-window", "--python-code", _UNIT % "SlicerUnitTestTest")),
    CommandLineTest("a failing unit test",
                    ("--testing", "--no-main-window", "--python-code", _UNIT % "SlicerUnitTestWithErrorsTest"), False),
    CommandLineTest("scene observers",
                    ("--testing", "--no-main-window", "--python-code", _UNIT % "SlicerSceneObserverTest")),
    CommandLineTest("an exception in cleanup, testing",
                    ("ScriptedModuleCleanupTest.py", "--with-testing"), is_driver=True),
    CommandLineTest("an exception in cleanup", ("ScriptedModuleCleanupTest.py",), is_driver=True),
    CommandLineTest("sys.path is kept", ("SlicerStartupPreserveSysPathTest.py",), is_driver=True),
)


def run_file(path: Path) -> tuple[int, int, list[str]]:
    """Run one unittest file in this process; returns (passed, total, names of what failed)."""
    from slicerhost import boot

    boot(main_window=True)
    sys.path.insert(0, str(path.parent))
    sys.argv = [str(path)]
    suite = unittest.defaultTestLoader.loadTestsFromName(path.stem)
    result = unittest.TextTestRunner(verbosity=0, stream=sys.stderr).run(suite)
    bad = [test.id().split(".", 1)[-1] for test, _ in [*result.failures, *result.errors]]
    bad += [f"{test.id().split('.', 1)[-1]} (skipped: {reason})" for test, reason in result.skipped]
    return max(result.testsRun - len(bad), 0), max(result.testsRun, len(bad)), bad


def run_template(checkout: Path) -> None:
    """Load the template module in a window, give it a volume, press Apply; raises where anything is wrong."""
    from slicerhost import boot, pythonqt
    from slicerhost.scripted_modules import load_scripted_module

    app = boot(main_window=True)
    import numpy as np
    import slicer

    module = load_scripted_module(str(checkout / TEMPLATE / "TemplateKey.py"))
    slicer.util.mainWindow().show()
    app.startupCompleted.emit()  # the template registers its sample data then
    assert "TemplateKey" in slicer.modules.sampleDataSources
    slicer.util.selectModule(module)
    widget = slicer.util.getModuleWidget(module)
    assert not widget.ui.applyButton.enabled
    voxels = np.arange(8 * 8 * 8, dtype=np.float32).reshape(8, 8, 8)
    volume = slicer.util.addVolumeFromArray(voxels, name="input")
    output = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "output")
    widget.ui.inputSelector.setCurrentNode(volume)
    widget.ui.outputSelector.setCurrentNode(output)
    app.processEvents()
    assert widget.ui.applyButton.enabled, "Apply must be enabled once both volumes are chosen"
    widget.ui.imageThresholdSliderWidget.value = 50
    assert widget._parameterNode.imageThreshold == 50
    assert not pythonqt.slot_errors, pythonqt.slot_errors
    names = ", ".join(widget._parameterNode.parameterNode.GetParameterNames())
    print(f"template module {module.name}: loaded, panel works, parameters {names}")


def _run_in_process(command: list[str], folder: str | None = None) -> subprocess.CompletedProcess:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as empty:
        return subprocess.run([sys.executable, *command], cwd=folder or empty, env=environment, capture_output=True,
                              text=True, timeout=900)


def _runs_as_expected(here: Path, test: CommandLineTest) -> bool:
    arguments = [argument.replace("{here}", here.as_posix()) for argument in test.arguments]
    if not test.is_driver:
        return (_run_in_process(["-m", "slicerhost", *arguments]).returncode == 0) == test.succeeds
    with tempfile.TemporaryDirectory() as folder:
        application = Path(folder) / "Slicer"
        application.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m slicerhost "$@"\n', encoding="utf-8")
        application.chmod(0o755)
        command = [str(here / arguments[0]), str(application), *arguments[1:]]
        return (_run_in_process(command).returncode == 0) == test.succeeds


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--template", action="store_true", help="load Slicer's module template instead")
    parser.add_argument("--file", help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    checkout = options.checkout.resolve()
    if not (checkout / TESTS).is_dir():
        print(f"{checkout} is not a checkout of Slicer's source: it has no {TESTS}", file=sys.stderr)
        return 2
    if options.template:
        run_template(checkout)
        return 0
    if options.file:
        passed, total, bad = run_file(checkout / TESTS / options.file)
        print(f"RESULT {passed} {total}")
        for name in bad:
            print(f"FAILED {name}")
        return 0
    return _run_all(checkout)


def _run_all(checkout):
    all_passed = all_total = 0
    for name in FILES:
        process = _run_in_process(["-m", "slicerhost.run_slicer_tests", str(checkout), "--file", name])
        found = re.search(r"^RESULT (\d+) (\d+)$", process.stdout, re.MULTILINE)
        passed, total = map(int, found.groups()) if found else (0, 0)
        print(f"{name:55s} {passed:4d} of {total}" + ("" if found else "  (did not run)"))
        for line in re.findall(r"^FAILED (.*)$", process.stdout, re.MULTILINE):
            print(f"    {line}")
        if not found:
            print("    " + "\n    ".join(process.stderr.strip().splitlines()[-3:]))
        all_passed, all_total = all_passed + passed, all_total + total
    failed = [test.name for test in COMMAND_LINE_TESTS if not _runs_as_expected(checkout / APPLICATION_TESTS, test)]
    total = len(COMMAND_LINE_TESTS)
    print(f"{'command line':55s} {total - len(failed):4d} of {total}")
    for name in failed:
        print(f"    {name}")
    all_passed, all_total = all_passed + total - len(failed), all_total + total
    print(f"{'total':55s} {all_passed:4d} of {all_total}")
    return 0 if all_passed == all_total else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
