"""Runs Slicer's own tests of its Python layer on the embedded Slicer: the measure of how true the host is.

    PYTHONPATH=Testing python -m slicerhost.run_slicer_tests CHECKOUT [--template]

CHECKOUT is a copy of Slicer's source (https://github.com/Slicer/Slicer), kept outside this repository: nothing of it
enters here. Each test file runs in its own process; the last line is the total. `--template` loads the module template
that Slicer ships, unmodified, and presses its button, instead. Exit status 0 where nothing failed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

TESTS = Path("Base/Python/slicer/tests")
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
    "test_slicer_util_save.py",
    "test_slicer_util_without_modules.py",
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
    slicer.util.selectModule("Data") if slicer.modules.data.widgetRepresentation() else None
    app.processEvents()
    assert not pythonqt.slot_errors, pythonqt.slot_errors
    print(f"template module {module.name}: loaded, panel works, parameters {widget._parameterNode.parameterNode.GetParameterNames()}")


def _run_in_process(arguments: list[str]) -> subprocess.CompletedProcess:
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run([sys.executable, "-m", "slicerhost.run_slicer_tests", *arguments], cwd=folder,
                              env=environment, capture_output=True, text=True, timeout=900)


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
        process = _run_in_process([str(checkout), "--file", name])
        found = re.search(r"^RESULT (\d+) (\d+)$", process.stdout, re.MULTILINE)
        passed, total = map(int, found.groups()) if found else (0, 0)
        print(f"{name:55s} {passed:4d} of {total}" + ("" if found else "  (did not run)"))
        for line in re.findall(r"^FAILED (.*)$", process.stdout, re.MULTILINE):
            print(f"    {line}")
        if not found:
            print("    " + "\n    ".join(process.stderr.strip().splitlines()[-3:]))
        all_passed, all_total = all_passed + passed, all_total + total
    print(f"{'total':55s} {all_passed:4d} of {all_total}")
    return 0 if all_passed == all_total else 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
