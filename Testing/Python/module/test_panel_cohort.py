"""The panel's section "Many CTs": a run that it starts, watches, stops and finds again; results that it lists."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from panel_driver import segmentations

from FlareSegmentLib.files.image_io import write_labels
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentTrainingLib.datasets.conversion import write_nifti

pytest_plugins = ("panel_driver",)

SCRIPT = '''
"""Reports as the script for many CTs does, works on nothing, and ends when it is asked to."""
import json, os, socket, sys, time
from pathlib import Path

if "bad" in sys.argv[1]:
    sys.exit("Error: there is no CT in bad.")
out = Path(sys.argv[sys.argv.index("--output") + 1])
report = {"pid": os.getpid(), "host": socket.gethostname(), "total": 4, "done": 1, "failed": 1, "present": 0}
(out / "progress.json").write_text(json.dumps({**report, "state": "running", "message": "2 of 4"}))
while not (out / "stop").exists():
    time.sleep(0.05)
(out / "stop").unlink()
(out / "progress.json").write_text(json.dumps({**report, "state": "stopped", "message": "Stopped, 2 left"}))
'''


@pytest.fixture
def section(panel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The opened section of a panel, with a script that reports and does not work; it looks when the test says so."""
    from FlareSegmentSlicerLib.logic import cohort_process
    from FlareSegmentSlicerLib.panel import cohort_section

    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    for module in (cohort_process, cohort_section):
        monkeypatch.setattr(module, "cohort_script", lambda: script)
    monkeypatch.setattr(cohort_section, "_ensure_packages", lambda: True)
    panel.ui.cohortCollapsibleButton.collapsed = False
    panel.ui.cohortSourcePathEdit.currentPath = ""
    panel.ui.cohortOutputPathEdit.currentPath = ""
    yield panel.widget._cohort
    panel.ui.cohortOutputPathEdit.currentPath = ""
    panel.ui.cohortCollapsibleButton.collapsed = True


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """What a run leaves: a CT with organs, with FLARE22's values, and one that failed."""
    folder = tmp_path / "results"
    (folder / "labels").mkdir(parents=True)
    (folder / "cases" / "ward").mkdir(parents=True)
    volume, labels = make_phantom(3)
    write_nifti(tmp_path / "a.nii.gz", volume.array, volume)
    values = {"liver": 1, "right_kidney": 2, "left_kidney": 13, "spleen": 3}
    table = np.zeros(256, np.uint8)
    for organ in ORGANS:
        table[organ.label] = values[organ.key]
    write_labels(folder / "labels" / "a_labels.nii.gz", table[labels], volume)
    organs = {
        organ.key: {"label": values[organ.key], "volume_ml": (labels == organ.label).sum() * volume.voxel_volume_ml}
        for organ in ORGANS
    }
    record = {"case": "a", "organs": organs, "warnings": ["Look twice."], "files": {"labels": "labels/a_labels.nii.gz"}}
    (folder / "cases" / "a.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "cases" / "ward" / "b.json").write_text(json.dumps({"case": "ward/b", "error": "b is no CT."}))
    (folder / "cases" / "half.json").write_text('{"case": "ha', encoding="utf-8")
    entries = [("a", "a"), ("ward/b", "ward/b")]
    lines = [json.dumps({"case": case, "name": name, "source": str(tmp_path / "a.nii.gz")}) for case, name in entries]
    (folder / "list.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "report.html").write_text("<html></html>", encoding="utf-8")
    return folder


def told(panel) -> str:
    return panel.ui.cohortMessageLabel.text.replace("\u200b", "")


def test_a_run_is_started_watched_found_again_and_stopped(panel, section, tmp_path: Path) -> None:
    assert not panel.ui.cohortStartButton.enabled and told(panel) == "Choose a folder of CTs."
    panel.ui.cohortSourcePathEdit.currentPath = str(tmp_path)
    assert told(panel) == "Choose a folder for the results."
    panel.ui.cohortOutputPathEdit.currentPath = str(tmp_path / "out")
    panel.click(panel.ui.cohortStartButton)
    assert told(panel) in ("Starting.", "2 of 4") and panel.ui.cohortStartButton.text == "Cancel"
    panel.until(lambda: (section.update(), told(panel) == "2 of 4")[1])
    assert (panel.ui.cohortProgressBar.value, panel.ui.cohortProgressBar.maximum) == (2, 4)
    assert not panel.ui.cohortSourcePathEdit.enabled and not panel.ui.cohortOutputPathEdit.enabled
    first, section._process = section._process, None
    section.update()  # as after a reload, or in the next Slicer: the folder tells it
    assert told(panel) == "2 of 4" and panel.ui.cohortStartButton.text == "Cancel"
    section._process.request_stop()
    section.update()
    assert "Stopping" in told(panel) and not panel.ui.cohortStartButton.enabled
    panel.until(lambda: (section.update(), told(panel) == "Stopped, 2 left")[1])
    assert panel.ui.cohortStartButton.text == "Segment all" and panel.ui.cohortStartButton.enabled
    assert first._process.wait(30) == 0


def test_why_nothing_was_begun_is_said(panel, section, tmp_path: Path) -> None:
    panel.ui.cohortSourcePathEdit.currentPath = "bad"
    panel.ui.cohortOutputPathEdit.currentPath = str(tmp_path / "out")
    panel.click(panel.ui.cohortStartButton)
    panel.until(lambda: (section.update(), told(panel) == "there is no CT in bad.")[1])
    (tmp_path / "file").touch()
    panel.ui.cohortOutputPathEdit.currentPath = str(tmp_path / "file" / "out")
    panel.click(panel.ui.cohortStartButton)
    assert told(panel).startswith(f"Nothing can be started in {tmp_path}/file/out: ")


def test_results_are_listed_and_a_row_is_loaded(panel, section, results: Path, screenshots: Path) -> None:
    import slicer

    panel.ui.cohortOutputPathEdit.currentPath = str(results)
    table = panel.ui.cohortTable
    rows = {table.item(row, 0).text(): row for row in range(table.rowCount)}
    assert set(rows) == {"a", "ward/b"}
    cells = [table.item(rows["a"], column).text() for column in range(table.columnCount)]
    assert all(int(cell) > 50 for cell in cells[1:]) and table.item(rows["a"], 1).toolTip() == "a\nLook twice."
    assert table.item(rows["ward/b"], 1).text() == "failed"
    assert panel.ui.cohortReportButton.enabled
    table.cellClicked.emit(rows["ward/b"], 0)
    assert told(panel) == "b is no CT." and not segmentations()
    table.cellClicked.emit(rows["a"], 0)
    (node,) = segmentations()
    ct = slicer.util.getFirstNodeByClassByName("vtkMRMLScalarVolumeNode", "a")
    assert (ct.GetDisplayNode().GetWindow(), ct.GetDisplayNode().GetLevel()) == (400, 40)
    truth = make_phantom(3)[1]
    for organ in ORGANS:  # whatever values the files have
        identifier = node.GetSegmentation().GetSegmentIdBySegmentName(organ.name)
        assert (slicer.util.arrayFromSegmentBinaryLabelmap(node, identifier, ct) > 0).sum() == (
            truth == organ.label
        ).sum()
    bar = panel.ui.cohortCollapsibleButton
    for width, height in ((1280, 800), (1920, 1080)):
        panel.app._main_window.resize(width, height)
        panel.app.processEvents()
        parent = bar.parent()
        while parent is not None and not hasattr(parent, "ensureWidgetVisible"):
            parent = parent.parent()
        if parent is not None:
            parent.ensureWidgetVisible(panel.ui.cohortReportButton)
        panel.grab(screenshots / f"panel_cohort_{width}.png")
    (results / "list.jsonl").unlink()
    table.cellClicked.emit(rows["a"], 0)
    assert "list.jsonl cannot be read" in told(panel)


def test_records_come_bit_by_bit(results: Path, slicer_app) -> None:
    from FlareSegmentSlicerLib.scene.cohort_results import CohortResults

    source = json.loads((results / "cases" / "a.json").read_text(encoding="utf-8"))
    for number in range(30):
        (results / "cases" / f"c{number}.json").write_text(json.dumps(source), encoding="utf-8")
    reader, found = CohortResults(results), []
    for _ in range(5):
        found.append(len(reader.next_changed(10)))
        assert found[-1] <= 10
    assert sum(found) == 32
    os.utime(results / "cases" / "c7.json", (1, 1))
    assert sum(len(reader.next_changed(10)) for _ in range(6)) == 1


@pytest.mark.parametrize("layout", ["tree", "installed", "without"])
def test_where_the_script_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slicer_app, layout: str) -> None:
    from FlareSegmentSlicerLib.logic import cohort_process

    assert cohort_process.cohort_script().is_file()
    module = tmp_path / "FlareSegment"
    scripts = {"tree": tmp_path / "FlareSegmentTraining", "installed": module}.get(layout)
    monkeypatch.setattr(cohort_process, "_MODULE", module)
    if scripts is not None:
        (scripts / "Scripts").mkdir(parents=True)
        (scripts / "Scripts" / "cohort.py").touch()
    assert cohort_process.cohort_script() == (scripts / "Scripts" / "cohort.py" if scripts else None)


def test_without_the_training_module_it_says_so(panel, section, tmp_path: Path, monkeypatch) -> None:
    from FlareSegmentSlicerLib.panel import cohort_section

    monkeypatch.setattr(cohort_section, "cohort_script", lambda: None)
    section.update()
    assert "Install the module FlareSegment Training" in told(panel) and not panel.ui.cohortStartButton.enabled


def test_selected_series_become_a_list(section, panel, tmp_path: Path, monkeypatch) -> None:
    from types import SimpleNamespace

    import slicer

    chosen: list[str] = []
    table = SimpleNamespace(currentSeriesSelection=lambda: chosen)
    browser = SimpleNamespace(dicomBrowser=SimpleNamespace(dicomTableManager=lambda: table))
    monkeypatch.setattr(slicer.modules, "DICOMWidget", SimpleNamespace(browserWidget=browser), raising=False)
    database = SimpleNamespace(filesForSeries=lambda uid: (f"/{uid}/1.dcm", f"/{uid}/2.dcm"))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    panel.ui.cohortOutputPathEdit.currentPath = str(tmp_path / "out")
    panel.ui.cohortSeriesCheckBox.setChecked(True)
    assert told(panel) == "Select series of CTs in the DICOM module first."
    chosen.append("1.2")
    section.update()
    panel.click(panel.ui.cohortStartButton)
    listed = json.loads((tmp_path / "out" / "selected_series.json").read_text(encoding="utf-8"))
    assert listed == [{"case": "1.2", "files": ["/1.2/1.dcm", "/1.2/2.dcm"]}]
    section._process.request_stop()
    panel.until(lambda: (section.update(), panel.ui.cohortStartButton.text == "Segment all")[1])
    panel.ui.cohortSeriesCheckBox.setChecked(False)


def test_packages_are_asked_for_when_it_starts(slicer_app, monkeypatch: pytest.MonkeyPatch) -> None:
    from FlareSegmentLib.errors import FlareSegmentError
    from FlareSegmentSlicerLib.logic import cohort_process
    from FlareSegmentSlicerLib.panel import cohort_section

    assert cohort_section._ensure_packages()
    asked = []
    packaging = type(sys)("slicer.packaging")
    packaging.pip_ensure = lambda names, requester: asked.append((names, requester))
    monkeypatch.setitem(sys.modules, "slicer.packaging", packaging)
    monkeypatch.setattr(cohort_process, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(FlareSegmentError, match="not installed: no_such_package"):
        cohort_section._ensure_packages()
    assert asked == [(["no_such_package"], "FlareSegment")]
