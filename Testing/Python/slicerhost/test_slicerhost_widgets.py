"""The embedded Slicer's ctk and qMRML widgets: what a panel may rely on."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("slicer_app")


def add(class_name, name):
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass(class_name, name)


@pytest.fixture
def selector():
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.setMRMLScene(slicer.mrmlScene)
    return box


def test_selector_lists_the_nodes_of_its_types(selector):
    ct = add("vtkMRMLScalarVolumeNode", "CT")
    labels = add("vtkMRMLLabelMapVolumeNode", "labels")
    add("vtkMRMLModelNode", "surface")
    assert [selector.nodeFromIndex(index) for index in range(selector.nodeCount())] == [ct, labels]
    selector.showChildNodeTypes = False
    assert selector.nodeCount() == 1


def test_selector_filters_by_attribute_and_hides_hidden_nodes(selector):
    ct = add("vtkMRMLScalarVolumeNode", "CT")
    add("vtkMRMLScalarVolumeNode", "MR")
    hidden = add("vtkMRMLScalarVolumeNode", "hidden")
    hidden.SetHideFromEditors(True)
    hidden.SetAttribute("Modality", "CT")
    ct.SetAttribute("Modality", "CT")
    selector.addAttribute("vtkMRMLScalarVolumeNode", "Modality", "CT")
    assert selector.nodeCount() == 1
    assert selector.nodeFromIndex(0) is ct
    selector.showHidden = True
    assert selector.nodeCount() == 2


def test_selection_is_told_by_every_signal(selector):
    told = []
    selector.connect("currentNodeChanged(vtkMRMLNode*)", lambda node: told.append(node))
    selector.connect("currentNodeChanged(bool)", lambda valid: told.append(valid))
    selector.connect("currentNodeIDChanged(QString)", lambda node_id: told.append(node_id))
    ct = add("vtkMRMLScalarVolumeNode", "CT")
    assert told == []
    selector.setCurrentNode(ct)
    assert told == [ct, True, ct.GetID()]
    selector.setCurrentNode(ct)
    assert len(told) == 3
    selector.setCurrentNodeID("")
    assert told[3:] == [None, False, ""]


@pytest.mark.parametrize(("actions", "selected"), [(False, True), (True, False)])
def test_first_node_is_chosen_by_a_selector_without_actions(actions, selected):
    """Qt chooses the first row of an empty combo box; the Create and Delete items keep it from being empty."""
    import slicer

    box = slicer.qMRMLNodeComboBox()
    box.nodeTypes = ["vtkMRMLScalarVolumeNode"]
    box.addEnabled = box.removeEnabled = actions
    box.setMRMLScene(slicer.mrmlScene)
    add("vtkMRMLScalarVolumeNode", "CT")
    assert (box.currentNode() is not None) is selected


def test_scene_with_nodes_chooses_the_first_unless_none_is_offered(selector):
    import slicer

    ct = add("vtkMRMLScalarVolumeNode", "CT")
    box, optional = slicer.qMRMLNodeComboBox(), slicer.qMRMLNodeComboBox()
    optional.noneEnabled = True
    for one in (box, optional):
        one.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        one.setMRMLScene(slicer.mrmlScene)
    assert box.currentNode() is ct
    assert optional.currentNode() is None


def test_removed_node_leaves_the_selection(selector):
    import slicer

    selector.noneEnabled = True
    ct = add("vtkMRMLScalarVolumeNode", "CT")
    selector.setCurrentNode(ct)
    slicer.mrmlScene.RemoveNode(ct)
    assert selector.currentNode() is None
    assert selector.currentNodeID == ""


def test_user_creates_renames_and_removes_nodes(selector, monkeypatch):
    import qt
    import slicer

    selector.renameEnabled = True
    selector.baseName = "result"
    created = []
    selector.connect("nodeAddedByUser(vtkMRMLNode*)", created.append)
    choose(selector, "Create new")
    assert selector.currentNode().GetName() == "result"
    assert created == [selector.currentNode()]
    monkeypatch.setattr(qt.QInputDialog, "getText", lambda *arguments, **keywords: ("liver", True))
    choose(selector, "Rename current")
    assert selector.currentNode().GetName() == "liver"
    assert "liver" in texts(selector)
    choose(selector, "Delete current")
    assert slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode") == 0


def texts(selector):
    combo = selector._combo
    return [combo.itemText(row) for row in range(combo.count)]


def choose(selector, beginning):
    """As a user does in the popup."""
    row = next(row for row, text in enumerate(texts(selector)) if text.startswith(beginning))
    selector._combo.setCurrentIndex(row)
    selector._combo.activated[int].emit(row)


def test_renamed_node_is_listed_by_its_new_name(selector):
    ct = add("vtkMRMLScalarVolumeNode", "CT")
    ct.SetName("CT abdomen")
    assert "CT abdomen" in texts(selector)


def test_collapsed_button_hides_what_it_holds():
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton("Advanced")
    inner = qt.QLabel("inside")
    qt.QVBoxLayout(button).addWidget(inner)
    button.show()
    told = []
    button.connect("contentsCollapsed(bool)", told.append)
    button.collapsed = True
    assert not inner.visible
    assert not button.checked
    button.checked = True
    assert inner.visible
    assert told == [True, False]
    button.hide()


def test_click_below_the_heading_does_not_collapse():
    import ctk
    import qt
    from PyQt5.QtTest import QTest

    button = ctk.ctkCollapsibleButton("Advanced")
    qt.QVBoxLayout(button).addWidget(qt.QLabel("inside"))
    button.resize(200, 100)
    button.show()
    QTest.mouseClick(button, qt.Qt.LeftButton, qt.Qt.NoModifier, qt.QPoint(50, 80))
    assert not button.collapsed
    QTest.mouseClick(button, qt.Qt.LeftButton, qt.Qt.NoModifier, qt.QPoint(50, 10))
    assert button.collapsed
    button.hide()


def test_slider_widget_keeps_slider_and_box_together():
    import ctk

    widget = ctk.ctkSliderWidget()
    told = []
    widget.connect("valueChanged(double)", told.append)
    widget.setRange(0.0, 1.0)
    widget.decimals = 2
    widget.value = 0.25
    assert widget.spinBox().value == widget.slider().value == 0.25
    widget.slider().setValue(0.5)
    assert widget.value == 0.5
    widget.value = 7
    assert told == [0.25, 0.5, 1.0]


def test_path_line_edit_tells_its_path():
    import ctk

    line, told = ctk.ctkPathLineEdit(), []
    line.connect("currentPathChanged(QString)", told.append)
    line.currentPath = "ct.nii.gz"
    assert told == ["ct.nii.gz"]
    assert line.property("currentPath") == "ct.nii.gz"


def test_what_is_hidden_or_shown_in_a_collapsed_section_is_so_when_it_opens(slicer_app):
    """As in CTK: a message that is taken back meanwhile leaves no empty frame."""
    import ctk
    import qt

    button = ctk.ctkCollapsibleButton("Advanced")
    layout = qt.QVBoxLayout(button)
    children = {name: qt.QLabel(name) for name in ("kept", "hidden", "shown", "twice")}
    for child in children.values():
        layout.addWidget(child)
    children["shown"].setVisible(False)
    button.show()
    for _ in range(2):
        button.collapsed = True
        children["hidden"].setVisible(False)
        children["shown"].setVisible(True)
        children["twice"].setVisible(False)
        children["twice"].setVisible(True)
        assert not any(child.visible for child in children.values())
        button.collapsed = False
        assert [name for name, child in children.items() if child.visible] == ["kept", "shown", "twice"]
    button.close()
