"""The panels' way from a corrected result to a taught model: keep, open, remove, teach, use and back. What teaches
is a script that does in a moment what `teach.py` does in minutes; `Testing/Slicer` runs the real one.
"""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from panel_driver import Panel, add_ct, panel  # noqa: F401  a fixture

from FlareSegmentLib.errors import FlareSegmentError

FAKE_TEACHING = """
import json, os, sys, time
from pathlib import Path
folder = Path(sys.argv[sys.argv.index("--output") + 1])
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
def report(**content):
    (folder / "new").write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename, **content}))
    os.replace(folder / "new", folder / "progress.json")
from FlareSegmentTrainingLib.teaching.beginning import example_states, find_cases, model_state
model = Path(given["--model"]).resolve()
states = example_states(find_cases([given["--examples"]]))
settings = {"examples": states, "model": {"folder": str(model), "sha256": model_state(model)}}
again = (folder / "config.json").exists()
(folder / "config.json").write_text(json.dumps(settings))
end = time.monotonic() + 60
while not again and time.monotonic() < end:
    report(state="running", fraction=0.4, remaining_seconds=240.0, message="Teaching with 1 examples: step 3")
    if (folder / "stop").exists():
        (folder / "stop").unlink()
        report(state="stopped", fraction=0.4, message="Stopped at step 3.")
        sys.exit(1)
    time.sleep(0.05)
row = {"other_mean": 0.9, "mean": 0.95, "difference": 0.05, "low": 0.01, "high": 0.09}
sides = {"examples": {"organs": {"liver": row, "spleen": None}}, "stability": {"organs": {}}}
(folder / "report.json").write_text(json.dumps({"offered": True, "reasons": [], **sides}))
import shutil
shutil.copytree(MODEL, folder / "model")
report(state="finished", fraction=1.0, message="Finished: the taught model is better: mean Dice +0.050.")
"""


@pytest.fixture
def both(panel, load_module, repository, monkeypatch, tmp_path):  # noqa: F811
    """FlareSegment's panel with a result, and the training panel whose teaching takes no time."""
    import qt
    import slicer

    load_module(repository / "FlareSegmentTraining" / "FlareSegmentTraining.py")
    from FlareSegmentTrainingSlicerLib import teaching_process

    from FlareSegmentLib.model.model_card import bundled_model_folder

    script = tmp_path / "fake_teach.py"
    paths = [str(repository / name) for name in ("FlareSegment", "FlareSegmentTraining")]
    script.write_text(
        f"import sys; sys.path[:0] = {paths!r}; MODEL = {str(bundled_model_folder())!r}\n" + FAKE_TEACHING
    )
    monkeypatch.setattr(teaching_process, "TEACH_SCRIPT", script)
    training = slicer.util.getModuleWidget("FlareSegmentTraining")
    slicer.util.selectModule("FlareSegment")
    panel.training, panel.folder = training, tmp_path / "examples"
    yield panel
    for teaching in training.logic._started.values():  # a test that failed leaves none behind
        if teaching._launched:
            teaching._process.kill()
            teaching._process.wait(20)
    training.logic._started.clear()
    training.logic.openExamples("")
    training.ui.examplesPathEdit.currentPath = ""
    qt.QSettings().remove("FlareSegment")


def choose(opened: Panel, *organs: str) -> None:
    for action in opened.ui.lookedAtButton.menu().actions():
        action.setChecked(action.data() in organs)


def chosen(opened: Panel) -> list[str]:
    return [action.data() for action in opened.ui.lookedAtButton.menu().actions() if action.checked]


def kept_message(opened: Panel) -> str:
    """What the section itself says: the panel's own message is out of sight down there."""
    label = opened.ui.exampleMessageLabel
    return label.text.replace("\u200b", "") if label.visible else ""


def volume_of(opened: Panel):
    return opened.ui.inputSelector.currentNode()


def keep(opened: Panel, name: str, *organs: str) -> None:
    """Segment a CT, noisy as those of scanners are, and keep it through the panel."""
    import slicer

    node = add_ct(name, (40, 50, 60 + len(name)))
    array = slicer.util.arrayFromVolume(node)
    array[array < 1000] += np.random.default_rng(0).integers(-9, 10, array[array < 1000].shape).astype(np.int16)
    slicer.util.arrayFromVolumeModified(node)
    opened.ui.inputSelector.setCurrentNode(None)
    opened.ui.inputSelector.setCurrentNode(slicer.util.getNode(name))
    opened.run()
    opened.ui.exampleCollapsibleButton.collapsed = False
    opened.ui.exampleFolderEdit.currentPath = str(opened.folder)
    choose(opened, *organs)
    opened.click(opened.ui.keepExampleButton)


def show_training(opened: Panel):
    """Go to the training panel's section, which showed another folder last."""
    import qt

    qt.QSettings().setValue("FlareSegment/ExamplesFolder", "elsewhere")
    opened.click(opened.ui.openTeachingButton)
    return opened.training.ui


def until(opened: Panel, condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited in vain: {opened.training.ui.teachMessageLabel.text!r}"
        opened.app.processEvents()
        opened.training._teaching.update()
        time.sleep(0.02)


def test_an_edited_organ_is_chosen_and_kept_as_it_is_now(both):
    import slicer

    from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

    both.folder.mkdir()
    add_ct()
    both.run()
    ui = both.ui
    assert ui.exampleCollapsibleButton.visible
    node = both.ui.outputSelector.currentNode()
    segment = node.GetSegmentation().GetNthSegmentID(1)
    volume = both.ui.inputSelector.currentNode()
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, volume)
    mask[10:14, 5:9, 5:9] = 1
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, segment, volume)
    ui.exampleCollapsibleButton.collapsed = False
    both.app.processEvents()
    assert chosen(both) == ["right_kidney"] and ui.lookedAtButton.text == "Right kidney"
    assert not ui.keepExampleButton.enabled and "folder" in ui.keepExampleButton.toolTip
    ui.exampleFolderEdit.currentPath = str(both.folder)
    both.click(ui.keepExampleButton)
    assert "Kept as example-001; the folder holds 1" in kept_message(both)
    opened, labels, organs = ExampleFolder(both.folder).open("example-001")
    assert organs == {"right_kidney": "B"}
    assert (labels[10:14, 5:9, 5:9] == 2).all() and (labels == 1).any()
    assert np.allclose(np.diag(opened.affine_ras), [-5.0, -5.0, 5.0, 1.0])


def test_what_was_looked_at_holds_for_one_result_alone(both):
    import slicer

    both.folder.mkdir()
    keep(both, "one", "liver", "spleen")
    assert chosen(both) == ["liver", "spleen"]
    slicer.util.selectModule("FlareSegmentTraining")
    slicer.util.selectModule("FlareSegment")
    both.app.processEvents()
    assert chosen(both) == ["liver", "spleen"]  # it is still the same result
    both.run()
    assert chosen(both) == []  # a new run replaced it
    choose(both, "liver")
    slicer.mrmlScene.Clear(False)
    add_ct()
    both.run()
    assert both.ui.outputSelector.currentNode().GetID() == "vtkMRMLSegmentationNode1"
    assert chosen(both) == []  # of another patient


def test_an_organ_whose_voxels_another_one_took_is_edited_too(both):
    import slicer

    add_ct()
    both.run()
    node, volume = both.ui.outputSelector.currentNode(), both.ui.inputSelector.currentNode()
    masks = {
        key: slicer.util.arrayFromSegmentBinaryLabelmap(node, node.GetSegmentation().GetNthSegmentID(number), volume)
        for number, key in enumerate(("liver", "right_kidney"))
    }
    liver, kidney = masks["liver"], masks["right_kidney"]
    kidney[20:24, 18:22, 18:22] = liver[20:24, 18:22, 18:22]
    liver[20:24, 18:22, 18:22] = 0
    for number, mask in enumerate((liver, kidney)):  # as the Segment Editor does without "Allow overlap"
        one = node.GetSegmentation().GetNthSegmentID(number)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, one, volume)
    both.ui.exampleCollapsibleButton.collapsed = True
    both.ui.exampleCollapsibleButton.collapsed = False
    both.app.processEvents()
    assert chosen(both) == ["liver", "right_kidney"]


def test_left_and_right_are_kept_as_the_scene_shows_them(both):
    """A CT that a transform turns round is kept turned: its own axes would call its left kidney the right one."""
    import slicer

    from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

    both.folder.mkdir()
    node = add_ct()
    transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "round")
    matrix = np.diag([-1.0, -1.0, 1.0, 1.0])  # feet first was entered as head first, or the like
    transform.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(matrix))
    node.SetAndObserveTransformNodeID(transform.GetID())
    both.run()
    result = both.ui.outputSelector.currentNode()
    both.training.logic.openExamples(str(both.folder))
    both.training.logic.keepExample(result, ["liver", "left_kidney"])
    opened, labels, _ = ExampleFolder(both.folder).open("example-001")
    assert np.allclose(opened.affine_ras, matrix @ np.diag([-5.0, -5.0, 5.0, 1.0]))
    assert opened.array.shape == slicer.util.arrayFromVolume(node).shape and (labels == 3).any()
    result.SetAndObserveTransformNodeID(None)
    with pytest.raises(FlareSegmentError, match="another transform"):
        both.training.logic.keepExample(result, ["liver"])
    result.SetAndObserveTransformNodeID(transform.GetID())


def test_what_is_not_there_is_told(both):
    import slicer

    from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

    both.folder.mkdir()
    add_ct()
    both.run()
    node = both.ui.outputSelector.currentNode()
    segmentation = node.GetSegmentation()
    spleen = slicer.util.arrayFromSegmentBinaryLabelmap(node, segmentation.GetNthSegmentID(3), volume_of(both))
    for number in (3, 2):
        segmentation.RemoveSegment(segmentation.GetNthSegmentID(number))
    drawn = segmentation.AddEmptySegment("", "Spleen")  # by hand, in a segment of one's own
    slicer.util.updateSegmentBinaryLabelmapFromArray(spleen, node, drawn, volume_of(both))
    both.ui.exampleCollapsibleButton.collapsed = False
    both.ui.exampleFolderEdit.currentPath = str(both.folder)
    choose(both, "liver", "left_kidney", "spleen")
    both.click(both.ui.keepExampleButton)
    assert "It teaches that there is none of: Left kidney." in kept_message(both)
    _, labels, organs = ExampleFolder(both.folder).open("example-001")
    assert organs == {"liver": "B", "left_kidney": "absent", "spleen": "B"}
    assert ((labels == 4) == (spleen > 0)).all()


def test_a_segmentation_without_organs_is_no_example(both):
    import slicer

    both.folder.mkdir()
    node = add_ct()
    foreign = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "tumors")
    foreign.SetReferenceImageGeometryParameterFromVolumeNode(node)
    both.training.logic.openExamples(str(both.folder))
    with pytest.raises(FlareSegmentError, match="tumors holds no organ"):
        both.training.logic.keepExample(foreign, ["liver"])
    assert not list(both.folder.glob("*_ct.nii.gz"))


def test_what_cannot_be_kept_is_said(both, tmp_path):
    (tmp_path / "file").write_text("")
    both.folder = tmp_path / "file" / "inside"
    keep(both, "CT", "liver")
    assert "cannot be kept" in kept_message(both) or "could not be written" in kept_message(both)
    choose(both)
    assert not both.ui.keepExampleButton.enabled and "organs" in both.ui.keepExampleButton.toolTip


def test_keep_teach_stop_continue_use_and_back(both, screenshots):
    import slicer

    both.folder.mkdir()
    keep(both, "one", "liver", "spleen")
    ui = show_training(both)
    assert slicer.util.selectedModule() == "FlareSegmentTraining"
    assert ui.examplesPathEdit.currentPath == str(both.folder)
    assert ui.examplesList.topLevelItemCount == 1 and not ui.teachButton.enabled
    assert "two examples" in ui.teachMessageLabel.text
    slicer.util.selectModule("FlareSegment")
    keep(both, "another", "liver", "right_kidney", "left_kidney", "spleen")
    show_training(both)
    assert [ui.examplesList.topLevelItem(row).text(1) for row in range(2)] == [
        "Liver, Spleen",
        "Liver, Right kidney, Left kidney, Spleen",
    ]
    assert ui.teachButton.enabled and ui.teachButton.text == "Teach"
    both.click(ui.teachButton)
    until(both, lambda: ui.teachProgressBar.value == 40)
    assert ui.teachButton.text == "Stop" and "4 min left" in ui.teachMessageLabel.text
    assert not ui.examplesPathEdit.enabled
    both.grab(screenshots / "teaching_at_work.png")
    both.click(ui.teachButton)
    until(both, lambda: ui.teachButton.text == "Continue teaching" and ui.teachButton.enabled)
    assert "Stopped" in ui.teachMessageLabel.text

    def goes_on() -> bool:  # its process may still be ending
        both.click(ui.teachButton)
        return "just ending" not in ui.teachMessageLabel.text

    until(both, goes_on)
    until(both, lambda: ui.teachReport.visible)
    assert "Liver: 0.900 → 0.950, +0.050 (+0.010 to +0.090)" in ui.teachReport.toPlainText()
    assert "better" in ui.teachMessageLabel.text
    assert ui.teachButton.text == "Teach" and ui.useTaughtButton.enabled and not ui.formerModelButton.enabled
    both.click(ui.useTaughtButton)
    model = both.folder / "taught" / "001" / "model"
    assert slicer.util.getModuleLogic("FlareSegment").getParameterNode().modelFolder == str(model)
    assert not ui.useTaughtButton.enabled and ui.formerModelButton.enabled
    both.grab(screenshots / "teaching_finished.png")
    both.click(ui.formerModelButton)
    assert slicer.util.getModuleLogic("FlareSegment").getParameterNode().modelFolder == ""
    assert ui.useTaughtButton.enabled


def test_a_second_teaching_has_a_folder_of_its_own(both):
    both.folder.mkdir()
    logic = both.training.logic
    from FlareSegmentTrainingSlicerLib.teaching_process import latest_teaching, next_teaching

    assert latest_teaching(both.folder) is None and next_teaching(both.folder).name == "001"
    (both.folder / "taught" / "007").mkdir(parents=True)
    (both.folder / "taught" / "notes").mkdir()
    assert latest_teaching(both.folder) is None and next_teaching(both.folder).name == "007"  # it never began
    (both.folder / "taught" / "007" / "config.json").write_text("{}")
    assert latest_teaching(both.folder).name == "007" and next_teaching(both.folder).name == "008"
    logic.openExamples(str(both.folder))
    assert logic.teaching.folder.path.name == "007" and not logic.canContinueTeaching() and not logic.usesTaught()


def test_killed_after_its_report_it_is_continued_to_its_very_end(both):
    """Until then copies of the examples are left, and the panel says that it is gone without a word."""
    ui = two_examples_being_taught(both)
    teaching = both.training.logic.teaching
    teaching._process.kill()
    teaching._process.wait(20)
    (teaching.folder.path / "report.json").write_text(json.dumps({"offered": False, "reasons": ["x"]}))
    both.training.logic._started.clear()
    both.training.logic.openExamples("")
    both.training.logic.openExamples(str(both.folder))
    both.training._teaching.update()
    assert "gone without a word" in ui.teachMessageLabel.text and ui.teachButton.text == "Continue teaching"
    both.click(ui.teachButton)
    until(both, lambda: "better" in ui.teachMessageLabel.text)
    assert both.training.logic.teaching.folder.path.name == "001" and ui.teachButton.text == "Teach"


def two_examples_being_taught(both):
    """The training panel's widgets, while it teaches with two examples."""
    both.folder.mkdir()
    for name in ("one", "another"):
        keep(both, name, "liver")
    ui = show_training(both)
    both.click(ui.teachButton)
    until(both, lambda: ui.teachProgressBar.value == 40)
    return ui


def test_examples_that_were_changed_are_taught_anew(both):
    ui = two_examples_being_taught(both)
    with pytest.raises(FlareSegmentError, match="taught now"):
        both.training.logic.removeExample("example-001")
    both.click(ui.teachButton)
    until(both, lambda: ui.teachButton.text == "Continue teaching" and ui.teachButton.enabled)
    quality = both.folder / "quality.json"  # by another program, under the same names
    quality.write_text(quality.read_text().replace('"B"', '"C"'))

    def begins() -> bool:
        both.click(ui.teachButton)
        return both.training.logic.teaching.folder.path.name == "002"

    until(both, begins)
    until(both, lambda: ui.teachProgressBar.value == 40)
    both.click(ui.teachButton)
    until(both, lambda: not both.training.logic.teaching.active)


def test_back_leads_from_model_to_model(both):
    import shutil

    from FlareSegmentLib.model.model_card import bundled_model_folder

    logic, taught = both.training.logic, both.folder / "taught"
    bundled = bundled_model_folder()
    for number, former in (("001", bundled), ("002", taught / "001" / "model")):
        shutil.copytree(bundled, taught / number / "model")
        settings = {"examples": {}, "model": {"folder": str(former)}}
        (taught / number / "config.json").write_text(json.dumps(settings))
    logic.openExamples(str(both.folder))
    assert not logic.canGoBack()
    logic.useTaught()
    assert logic.usesTaught() and logic.canGoBack()
    logic.openExamples("")  # whatever folder is shown
    logic.useFormer()
    assert logic._currentModel() == taught / "001" / "model" and logic.canGoBack()
    shutil.rmtree(taught / "001" / "model")  # by somebody who thought that it was not in use
    logic.useFormer()
    assert logic._currentModel() == bundled and not logic.canGoBack()
    logic.openExamples(str(both.folder))
    logic.useTaught()
    with pytest.raises(FlareSegmentError, match="model before is gone"):
        logic.useFormer()
    assert logic._currentModel() == taught / "002" / "model"
    shutil.rmtree(taught)
    with pytest.raises(FlareSegmentError):
        logic.teach()  # one clear line, and no folder for it
    assert not taught.exists()
    logic._use("")


def test_a_teaching_of_another_folder_is_not_continued(both):
    """Two teachings with two folders at once know nothing of each other."""
    two_examples_being_taught(both)
    first, logic = both.training.logic.teaching, both.training.logic
    other = both.folder.parent / "other examples ä"
    shutil.copytree(both.folder, other, ignore=shutil.ignore_patterns("taught"))
    logic.openExamples(str(other))
    assert logic.teaching is None
    logic.teach()
    assert logic.teaching.folder.path == other / "taught" / "001" and first.active
    logic.openExamples(str(both.folder))
    assert logic.teaching.folder.path == both.folder / "taught" / "001" and logic.teaching.active
    with pytest.raises(FlareSegmentError, match="at work"):
        logic.teach()
    logic.openExamples(str(other))
    end = time.monotonic() + 30
    for teaching in (first, logic.teaching):
        while teaching.active:
            teaching.request_stop()
            assert time.monotonic() < end
            time.sleep(0.05)


def test_examples_are_opened_and_removed(both, monkeypatch):
    import slicer

    both.folder.mkdir()
    keep(both, "one", "liver")
    ui = show_training(both)
    ui.examplesList.topLevelItem(0).setSelected(True)
    both.app.processEvents()
    both.click(ui.openExampleButton)
    volume = slicer.util.getNode("example-001")
    original = slicer.util.getNode("one")
    kept, before = slicer.util.arrayFromVolume(volume), slicer.util.arrayFromVolume(original)
    measured = before < 1000  # the marks of the organs are of one value each, which a scanner does not measure
    assert (kept[measured] == before[measured]).all(), np.unique(np.stack([kept, before])[:, kept != before], axis=1)
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    opened = slicer.util.getNodesByClass("vtkMRMLSegmentationNode")[-1]
    assert segmentation_nodes.reference_volume(opened) is volume
    assert set(segmentation_nodes.organ_segments(opened)) == {"liver", "right_kidney", "left_kidney", "spleen"}
    asked = []
    monkeypatch.setattr(
        slicer.util, "confirmOkCancelDisplay", lambda text, *_, **__: asked.append(text) or len(asked) > 1
    )
    both.click(ui.removeExampleButton)
    assert "example-001" in asked[0] and ui.examplesList.topLevelItemCount == 1
    both.click(ui.removeExampleButton)
    assert ui.examplesList.topLevelItemCount == 0 and not list(both.folder.glob("*_ct.nii.gz"))
    assert not ui.openExampleButton.enabled


def test_a_damaged_folder_is_said_and_harms_nothing(both):
    both.folder.mkdir()
    keep(both, "one", "liver")
    (both.folder / "quality.json").write_text("{")
    ui = show_training(both)
    assert "quality.json" in ui.teachMessageLabel.text
    assert (both.folder / "example-001_ct.nii.gz").is_file()
    shutil.rmtree(both.folder)
    both.training._teaching.update()
    assert both.training.logic.examples() == []
