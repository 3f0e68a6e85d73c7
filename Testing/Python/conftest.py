"""Fixtures of the test suite. Those that need the embedded Slicer start it when a test asks for them, not before."""

from __future__ import annotations

import locale
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
if hasattr(os, "nice"):  # processes of tests keep the priority of the tests, which Slicer would lower
    os.environ.setdefault("SLICER_BACKGROUND_THREAD_PRIORITY", str(os.nice(0)))
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # in the background of a shell; what tests start must heed Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(autouse=True)
def _same_locale():
    """ITK's DICOM writer leaves the locale "C" behind, in which Python takes text files for ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


@pytest.fixture(autouse=True)
def _at_most(request):
    """Ends a test that is marked with `at_most` by an error that says where it waits."""
    marker = request.node.get_closest_marker("at_most")
    if marker is None or not hasattr(signal, "SIGALRM"):
        yield
        return

    def ended(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"the test took more than {marker.args[0]} s")

    former = signal.signal(signal.SIGALRM, ended)
    signal.alarm(marker.args[0])
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, former)


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the working tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def flare_data() -> Path:
    """Folder with the real FLARE22 CTs (FLARE_DATA, or ../shared/data beside the working tree); skipped without it."""
    folder = Path(os.environ.get("FLARE_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (folder / "val").is_dir():
        pytest.skip(f"no real CTs: {folder}/val does not exist (set FLARE_DATA)")
    return folder


@pytest.fixture(scope="session")
def screenshots() -> Path:
    """Folder for pictures that a person may look at (FLARE_SCREENSHOTS, or Testing/Output)."""
    folder = Path(os.environ.get("FLARE_SCREENSHOTS", REPOSITORY / "Testing" / "Output"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def figures(pytestconfig) -> dict[str, str]:
    """Numbers that a test run shall show at its end: {what was measured: what came out}."""
    return pytestconfig.stash.setdefault(FIGURES, {})


@pytest.fixture(scope="session")
def _tally(figures):
    """Counts the judged runs of all tests of bad input."""
    from bad_input import Tally

    tally = Tally()
    yield tally
    figures["Bad input"] = str(tally)


@pytest.fixture(scope="session")
def segment_script(_slicer_session, repository):
    """segment.py as a module of this process."""
    from bad_input import load_script

    return load_script(repository / "FlareSegment" / "Scripts" / "segment.py")


@pytest.fixture
def start_script(repository, tmp_path):
    """Function that starts a headless script as people do, with "python" or in "slicer", in the test's own folder."""

    def start(host: str, script: str, *arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable]
        if host == "slicer":
            pytest.importorskip("slicer_core", reason="slicer-core is not installed")
            pytest.importorskip("PyQt5", reason="PyQt5 is not installed")
            command += ["-m", "slicerhost", "--no-main-window", "--python-script"]
        command += [str(repository / script), *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(repository / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
        return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment, cwd=tmp_path)

    return start


@pytest.fixture
def judge(segment_script, _tally, monkeypatch, capfd):
    """Function that runs segment.py in this process, with a model whose answer is known, and judges how it ends."""
    from bad_input import Judge, use_known_model

    use_known_model(monkeypatch)
    return Judge(segment_script.main, capfd.readouterr, _tally)


@pytest.fixture(scope="session")
def _slicer_session():
    pytest.importorskip("slicer_core", reason="slicer-core is not installed")
    pytest.importorskip("PyQt5", reason="PyQt5 is not installed")
    from slicerhost import boot

    app = boot(main_window=True, testing=True)
    app._main_window.show()
    app.processEvents()
    return app


@pytest.fixture
def slicer_app(_slicer_session):
    """`slicer.app` with its main window, an empty scene, and the demand that no slot or observer raises in the test."""
    import slicer

    from slicerhost import pythonqt

    pythonqt.slot_errors.clear()
    yield _slicer_session
    _slicer_session._main_window._leave_module()
    slicer.mrmlScene.Clear(False)
    _slicer_session.processEvents()
    errors = list(pythonqt.slot_errors)
    pythonqt.slot_errors.clear()
    assert not errors, f"exceptions in slots or observers: {errors!r}"


@pytest.fixture
def load_module(slicer_app):
    """Function that loads a scripted module by file and returns it; each file is loaded once per session."""
    import slicer

    from slicerhost.scripted_modules import load_scripted_module

    def load(path):
        module = slicer.app.moduleManager().module(Path(path).stem)
        return load_scripted_module(path) if module is None else module

    return load


def pytest_terminal_summary(terminalreporter) -> None:
    """Show the figures that tests measured, and where the pictures of the panel, the views and the results lie."""
    for measured, result in terminalreporter.config.stash.get(FIGURES, {}).items():
        terminalreporter.write_line(f"{measured}: {result}")
    folder = Path(os.environ.get("FLARE_SCREENSHOTS", REPOSITORY / "Testing" / "Output"))
    if any(folder.glob("*.png")):
        terminalreporter.write_line(f"Pictures of the panel, the views and the results: {folder}")
