"""The embedded Slicer's `qt`: PyQt5 must behave as Slicer's PythonQt, and refuse what PythonQt refuses."""

from __future__ import annotations

import functools
import sys
import time

import pytest

pytestmark = pytest.mark.usefixtures("slicer_app")


@pytest.fixture
def qt():
    import qt

    return qt


def test_properties_are_attributes(qt):
    button = qt.QPushButton("Segment")
    assert button.text == "Segment"
    button.enabled = False
    assert not button.enabled
    assert not button.isEnabled()
    button.setText("Cancel")
    assert button.text == "Cancel"


def test_calling_a_property_fails(qt):
    with pytest.raises(TypeError):
        qt.QPushButton("Segment").text()


def test_read_only_property_cannot_be_set(qt):
    with pytest.raises(AttributeError, match="not writable"):
        qt.QComboBox().count = 3


def test_unknown_attribute_is_refused_on_qt_and_stand_in_classes(qt):
    import ctk
    import slicer

    for widget in (qt.QPushButton(), ctk.ctkCollapsibleButton(), slicer.qMRMLNodeComboBox()):
        with pytest.raises(AttributeError):
            widget.colour = "red"
        with pytest.raises(AttributeError):
            _ = widget.colour


def test_python_subclass_may_have_attributes(qt):
    class Panel(qt.QWidget):
        pass

    panel = Panel()
    panel.organ = "liver"
    assert panel.organ == "liver"


def test_static_function_and_property_of_one_name(qt):
    timer = qt.QTimer()
    timer.singleShot = True
    assert timer.singleShot is True
    called = []
    qt.QTimer.singleShot(0, lambda: called.append(1))
    _process_events_until(lambda: called)


def test_connect_checks_the_signature(qt):
    button = qt.QPushButton()
    for signature in ("clickd()", "clicked(int)", "clicked"):
        with pytest.raises(ValueError, match="has no signal"):
            button.connect(signature, print)


def test_slot_gets_as_many_arguments_as_it_takes(qt):
    button, got = qt.QPushButton(), []
    button.checkable = True

    def keep(*arguments, **keywords):
        got.append(arguments)

    button.connect("clicked(bool)", lambda: got.append("none"))
    button.connect("clicked(bool)", lambda checked: got.append(checked))
    button.connect("clicked(bool)", functools.partial(keep, "first"))
    button.click()
    assert got == ["none", True, ("first", True)]


def test_disconnect_ends_exactly_one_slot(qt):
    button, got = qt.QPushButton(), []

    def first():
        got.append("first")

    def second():
        got.append("second")

    button.connect("clicked()", first)
    button.connect("clicked()", second)
    assert button.disconnect("clicked()", first)
    assert not button.disconnect("clicked()", first)
    button.click()
    assert got == ["second"]


def test_exception_in_a_slot_is_collected(qt, capfd):
    from slicerhost import pythonqt

    button = qt.QPushButton()
    button.connect("clicked()", lambda: 1 / 0)
    button.click()
    assert [type(error) for error in pythonqt.slot_errors] == [ZeroDivisionError]
    assert "ZeroDivisionError" in capfd.readouterr().err
    pythonqt.slot_errors.clear()


def test_exception_in_an_observer_is_collected(capfd):
    import slicer

    from slicerhost import pythonqt

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTextNode")
    node.AddObserver("ModifiedEvent", lambda caller, event: 1 / 0)
    node.SetName("renamed")
    assert [type(error) for error in pythonqt.slot_errors] == [ZeroDivisionError]
    pythonqt.slot_errors.clear()


def test_empty_widgets_are_true_and_have_no_length(qt):
    assert qt.QComboBox()
    with pytest.raises(TypeError):
        len(qt.QComboBox())


def test_file_dialog_returns_the_name_alone(qt, tmp_path):
    def reject():
        for dialog in qt.QApplication.topLevelWidgets():
            if isinstance(dialog, qt.QFileDialog):
                dialog.reject()

    timer = qt.QTimer()
    timer.connect("timeout()", reject)
    timer.start(50)
    assert qt.QFileDialog.getOpenFileName(None, "Open", str(tmp_path)) == ""


def test_process_tells_its_output_and_its_end(qt):
    process, lines, ends = qt.QProcess(), [], []
    process.connect("readyReadStandardOutput()", lambda: lines.append(bytes(process.readAllStandardOutput().data())))
    process.connect("finished(int,QProcess::ExitStatus)", lambda code, status: ends.append((code, status)))
    process.start(sys.executable, ["-c", "print(input()[::-1]); raise SystemExit(3)"])
    assert process.waitForStarted()
    process.write(b"revil\n")
    _process_events_until(lambda: ends)
    assert b"".join(lines).strip() == b"liver"
    assert ends == [(3, qt.QProcess.NormalExit)]


def test_killed_process_is_a_crash(qt):
    process, errors = qt.QProcess(), []
    process.connect("errorOccurred(QProcess::ProcessError)", errors.append)
    process.start(sys.executable, ["-c", "import time; time.sleep(60)"])
    assert process.waitForStarted()
    process.kill()
    assert process.waitForFinished()
    assert process.exitStatus() == qt.QProcess.CrashExit
    assert errors == [qt.QProcess.Crashed]


def test_settings_live_in_the_session_alone(slicer_app, qt):
    qt.QSettings().setValue("FlareSegment/Device", "cpu")
    assert slicer_app.settings().value("FlareSegment/Device") == "cpu"
    assert qt.QSettings().fileName().startswith(slicer_app.temporaryPath)
    qt.QSettings().remove("FlareSegment/Device")


def _process_events_until(condition, seconds=20.0):
    import slicer

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        slicer.app.processEvents()
        time.sleep(0.005)
