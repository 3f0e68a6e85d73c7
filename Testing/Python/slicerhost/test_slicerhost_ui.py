"""The embedded Slicer's `.ui` loader: takes what Qt Designer writes, refuses what Slicer's loader would not know."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.usefixtures("slicer_app")

PANEL = """<ui version="4.0"><class>Panel</class>
 <widget class="qMRMLWidget" name="Panel"><layout class="QVBoxLayout" name="box">
  <property name="leftMargin"><number>3</number></property>
  <item><widget class="ctkCollapsibleButton" name="inputs">
   <property name="text"><string>Inputs</string></property>
   <property name="collapsed"><bool>true</bool></property>
   <layout class="QFormLayout" name="form">
    <item row="0" column="0"><widget class="QLabel" name="label">
     <property name="text"><string>CT:</string></property>
     <property name="buddy"><cstring>selector</cstring></property></widget></item>
    <item row="0" column="1"><widget class="qMRMLNodeComboBox" name="selector">
     <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
     <property name="noneEnabled"><bool>true</bool></property>
     <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property></widget></item>
   </layout></widget></item>
  <item><widget class="QComboBox" name="device">
   <property name="currentIndex"><number>1</number></property>
   <item><property name="text"><string>auto</string></property></item>
   <item><property name="text"><string>cpu</string></property></item></widget></item>
  <item><spacer name="spacer"><property name="orientation"><enum>Qt::Vertical</enum></property></spacer></item>
 </layout></widget>
 <connections><connection><sender>Panel</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
  <receiver>selector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot></connection></connections></ui>"""


@pytest.fixture
def load(tmp_path):
    import slicer

    def load_text(text):
        path = tmp_path / "Panel.ui"
        path.write_text(text, encoding="utf-8")
        return slicer.util.loadUI(str(path))

    return load_text


def test_panel_has_its_widgets_properties_and_connections(load):
    import slicer

    panel = load(PANEL)
    ui = slicer.util.childWidgetVariables(panel)
    assert type(panel) is slicer.qMRMLWidget
    assert panel.layout().contentsMargins().left() == 3
    assert ui.inputs.collapsed
    assert ui.inputs.text == "Inputs"
    assert ui.label.buddy() is ui.selector
    assert ui.selector.nodeTypes == ("vtkMRMLScalarVolumeNode",)
    assert ui.selector.property("SlicerParameterName") == "inputVolume"
    assert ui.device.currentText == "cpu"
    assert ui.selector.mrmlScene() is None
    panel.setMRMLScene(slicer.mrmlScene)
    assert ui.selector.mrmlScene() is slicer.mrmlScene


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ('class="QComboBox"', 'class="QCombiBox"', "class QCombiBox"),
        ('name="noneEnabled"', 'name="noneAllowed"', "property noneAllowed"),
        ("mrmlSceneChanged(", "mrmlSceneChange(", "signal mrmlSceneChange"),
        ("setMRMLScene(", "setScene(", "selector.setScene"),
        ("Qt::Vertical", "Qt::Upright", "Qt::Upright"),
        (">selector</cstring>", ">picker</cstring>", "picker"),
    ],
)
def test_mistake_in_the_file_raises(load, right, wrong, message):
    assert right in PANEL
    with pytest.raises((RuntimeError, ValueError), match=message):
        load(PANEL.replace(right, wrong))
