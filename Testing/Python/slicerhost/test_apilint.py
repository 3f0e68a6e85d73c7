"""The Slicer API lint finds what Slicer lacks, and is silent about what Slicer has.

Every planted mistake stands in a small module of its own and must be the only finding; a correct idiom must give none.
The embedded Slicer's stand-ins are held against the same facts, so that they cannot show more than Slicer does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("slicer_core", reason="slicer-core is not installed")
pytest.importorskip("PyQt5", reason="PyQt5 is not installed")

from apilint import facts
from apilint.__main__ import check_folder
from apilint.make_facts import classes_in_header

FORM = """
    <ui version="4.0">
     <class>Planted</class>
     <widget class="qMRMLWidget" name="Planted">
      <layout class="QFormLayout" name="formLayout">
       <item row="0" column="0">
        <widget class="qMRMLNodeComboBox" name="inputSelector">
         <property name="nodeTypes"><stringlist><string>vtkMRMLScalarVolumeNode</string></stringlist></property>
         <property name="addEnabled"><bool>false</bool></property>
         <property name="SlicerParameterName" stdset="0"><string>inputVolume</string></property>
        </widget>
       </item>
       <item row="1" column="0">
        <widget class="QPushButton" name="applyButton">
         <property name="text"><string>Apply</string></property>
         <property name="enabled"><bool>false</bool></property>
        </widget>
       </item>
       <item row="2" column="0">
        <widget class="QTableWidget" name="table">
         <property name="editTriggers"><set>QAbstractItemView::NoEditTriggers</set></property>
        </widget>
       </item>
       <item row="3" column="0">
        <widget class="ctkSliderWidget" name="slider">
         <property name="maximum"><double>5.000000000000000</double></property>
         <property name="SlicerParameterName" stdset="0"><string>settings.threshold</string></property>
        </widget>
       </item>
      </layout>
     </widget>
     <customwidgets>
      <customwidget><class>qMRMLWidget</class><extends>QWidget</extends><header>qMRMLWidget.h</header></customwidget>
      <customwidget><class>qMRMLNodeComboBox</class><extends>QWidget</extends><header>x.h</header></customwidget>
      <customwidget><class>ctkSliderWidget</class><extends>QWidget</extends><header>x.h</header></customwidget>
     </customwidgets>
     <connections>
      <connection>
       <sender>Planted</sender><signal>mrmlSceneChanged(vtkMRMLScene*)</signal>
       <receiver>inputSelector</receiver><slot>setMRMLScene(vtkMRMLScene*)</slot>
      </connection>
     </connections>
    </ui>
"""

MODULE = """
    import ctk
    import qt
    import slicer
    import vtk
    from slicer.i18n import tr as _
    from slicer.parameterNodeWrapper import parameterNodeWrapper, parameterPack
    from slicer.ScriptedLoadableModule import *
    from slicer.util import VTKObservationMixin
    from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode


    class Planted(ScriptedLoadableModule):
        pass


    @parameterPack
    class Settings:
        threshold: float


    @parameterNodeWrapper
    class PlantedParameterNode:
        inputVolume: vtkMRMLScalarVolumeNode
        output: vtkMRMLSegmentationNode | None
        settings: Settings


    class PlantedWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
        def setup(self):
            self._parameterNode: PlantedParameterNode | None = None
            uiWidget = slicer.util.loadUI(self.resourcePath("UI/Planted.ui"))
            self.ui = slicer.util.childWidgetVariables(uiWidget)
            self.process = qt.QProcess()
            self.check()

        def check(self, node: vtkMRMLSegmentationNode = None, other=None):
            pass
            {line}
"""

MISTAKES = {
    "a name that only the wheel's slicer has": "slicer.arrayFromVolume(node)",
    "a function that slicer.util lacks": "slicer.util.arrayFromVolumes(node)",
    "too many arguments of slicer.util": "slicer.util.arrayFromVolume(node, 1, 2)",
    "a keyword that slicer.util's function lacks": "slicer.util.loadVolume('x', show=True)",
    "an MRML class that does not exist": "slicer.vtkMRMLSegmentNode()",
    "an MRML class by name": "slicer.mrmlScene.AddNewNodeByClass('vtkMRMLVolume')",
    "a method that a node lacks": "node.GetSegments()",
    "a method of what a method returns": "node.GetSegmentation().GetSegmentByName('x')",
    "a method of a node in the parameter node": "self._parameterNode.inputVolume.GetImage()",
    "a method of an optional node": "self._parameterNode.output.GetImageData3D()",
    "too many arguments of a method": "node.GetSegmentation(1)",
    "a misspelled scene event": "slicer.mrmlScene.EndClosedEvent",
    "a method of the scene": "slicer.mrmlScene.AddNodeByClass('vtkMRMLModelNode')",
    "a method of the application": "slicer.app.processEvent()",
    "a method of a view": "slicer.app.layoutManager().threeDWidgets(0)",
    "a method further down": "slicer.app.layoutManager().threeDWidget(0).threeDView().lookFrom(1)",
    "a module that Slicer lacks": "slicer.modules.segmentation.logic()",
    "a method of a module's logic": "slicer.modules.segmentations.logic().ImportLabels(node)",
    "a module's name": "slicer.util.selectModule('Segmentation')",
    "a Qt class that does not exist": "qt.QPushButtons()",
    "PyQt's signal class": "qt.pyqtSignal()",
    "a CTK class that does not exist": "ctk.ctkCollapsableButton()",
    "a Slicer class that does not exist": "slicer.qMRMLNodeSelector()",
    "a property called as in PyQt": "text = self.ui.applyButton.text()",
    "a property of a new widget called": "box = qt.QComboBox(); index = box.currentIndex()",
    "a property that does not exist": "self.ui.applyButton.caption = 'x'",
    "a property that cannot be set": "box = qt.QComboBox(); box.count = 3",
    "a setter that PythonQt does not show": "self.ui.inputSelector.setNodeTypes(['vtkMRMLModelNode'])",
    "a widget that the .ui lacks": "self.ui.cancelButton.enabled = True",
    "a signal that does not exist": "self.ui.applyButton.connect('clickd()', self.check)",
    "a signal with other arguments": "self.ui.applyButton.connect('clicked(int)', self.check)",
    "a signal without arguments": "self.process.connect('finished', self.check)",
    "a signal of an unknown object": "other.connect('currentNodeChange(vtkMRMLNode*)', self.check)",
    "a disconnected signal": "self.process.disconnect('done(int)', self.check)",
    "PyQt's way to connect": "self.ui.applyButton.clicked.connect(self.check)",
    "PyQt's way to connect an unknown object": "other.timeout.connect(self.check)",
    "an enumerator that does not exist": "qt.QMessageBox.Okay",
    "an enumerator of a class in another": "qt.QProcess.Stopped",
    "a VTK class that does not exist": "vtk.vtkImageDataReader()",
    "a method of a VTK object": "image = vtk.vtkImageData(); image.SetDimension(1, 2, 3)",
    "too few arguments of a VTK method": "image = vtk.vtkImageData(); image.SetDimensions(1, 2)",
    "an attribute set on a node": "node.title = 'x'",
    "an import from PyQt": "from PyQt5 import QtWidgets",
    "an import from the embedded Slicer": "from slicerhost import boot",
    "an import that slicer.util lacks": "from slicer.util import arrayFromVolumes",
    "a submodule that slicer lacks": "import slicer.segmentation",
    "a submodule of a newer Slicer": "import slicer.packaging",
    "a name of a newer Slicer": "from slicer.packaging import pip_ensure",
    "a keyword of a newer Slicer": "slicer.util.launchConsoleProcess(['x'], blocking=False)",
    "a signal of a newer Slicer": "self.ui.inputSelector.connect('nodeAddedByUserAction(vtkMRMLNode*)', self.check)",
}

IDIOMS = [
    "self.ui.applyButton.connect('clicked(bool)', self.check)",
    "self.ui.applyButton.connect('clicked()', self.check)",
    "self.ui.applyButton.text = _('Apply'); self.ui.applyButton.setText('x'); self.ui.applyButton.isEnabled()",
    "self.ui.inputSelector.connect('currentNodeChanged(vtkMRMLNode*)', self.check)",
    "self.ui.inputSelector.nodeTypes = ['vtkMRMLModelNode']; self.ui.inputSelector.setCurrentNode(node)",
    "self.ui.inputSelector.setMRMLScene(slicer.mrmlScene); self.ui.inputSelector.toolTip = 'x'",
    "self.ui.table.setItem(0, 0, qt.QTableWidgetItem('x')); self.ui.table.item(0, 0).text()",
    "self.ui.table.horizontalHeader().setSectionResizeMode(0, qt.QHeaderView.Stretch); self.ui.table.rowCount = 4",
    "self.ui.slider.value = 2; self.ui.slider.connect('valueChanged(double)', self.check)",
    "self.process.connect('finished(int,QProcess::ExitStatus)', self.check); self.process.start('x', [])",
    "self.process.connect('readyReadStandardOutput()', self.check); self.process.state() == qt.QProcess.NotRunning",
    "timer = qt.QTimer(); timer.singleShot = True; timer.connect('timeout()', self.check); timer.start(10)",
    "qt.QTimer.singleShot(0, self.check)",
    "button = ctk.ctkCollapsibleButton(); button.collapsed = True; button.text = 'x'",
    "slicer.app.connect('startupCompleted()', self.check); slicer.app.processEvents()",
    "slicer.app.layoutManager().threeDWidget(0).threeDView().resetFocalPoint()",
    "slicer.app.layoutManager().sliceWidget('Red').sliceLogic().GetSliceNode().SetOrientationToAxial()",
    "slicer.app.layoutManager().setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutFourUpView)",
    "slicer.app.testingEnabled() and slicer.app.temporaryPath",
    "self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.check)",
    "node = slicer.mrmlScene.AddNewNodeByClass('vtkMRMLSegmentationNode', 'x'); node.CreateDefaultDisplayNodes()",
    "other = slicer.mrmlScene.GetNodeByID('x'); other.GetSegmentation().AddEmptySegment()",
    "node.GetSegmentation().GetSegment('x').SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), 'x')",
    "node.GetDisplayNode().SetVisibility3D(True); node.GetDisplayNode().SetOpacity3D(0.5)",
    "node.SetReferenceImageGeometryParameterFromVolumeNode(self._parameterNode.inputVolume)",
    "slicer.modules.segmentations.logic().ImportLabelmapToSegmentationNode(other, node)",
    "slicer.modules.planted.widgetRepresentation(); slicer.modules.PlantedWidget; slicer.util.selectModule('Data')",
    "slicer.util.arrayFromVolume(self._parameterNode.inputVolume).max()",
    "slicer.util.saveNode(node, 'x', {}); slicer.util.loadVolume('x', properties={'show': False})",
    "with slicer.util.tryWithErrorDisplay(_('Failed'), waitCursor=True): slicer.util.resetThreeDViews()",
    "image = vtk.vtkImageData(); image.SetDimensions(1, 2, 3); image.AllocateScalars(vtk.VTK_SHORT, 1)",
    "box = qt.QComboBox() if node else qt.QLabel(); box.anything()",
    "unknown = slicer.util.getNode('x'); unknown.Anything(); unknown.anything = 1",
    "dialog = qt.QFileDialog(); dialog.exec_(); qt.QMessageBox.warning(None, 'x', 'y', qt.QMessageBox.Ok)",
    "qt.QSettings().setValue('x', 1); qt.QColor(1, 2, 3).name(); qt.Qt.AlignRight | qt.Qt.AlignVCenter",
    "slicer.util.launchConsoleProcess(['x'])",
    "from vtkmodules.util.numpy_support import vtk_to_numpy",
    "from vtkmodules import vtkRenderingFreeType",
]

GUARDED = """try:
            from slicer.packaging import pip_ensure
        except ModuleNotFoundError:
            slicer.util.pip_install(["x"])
"""

BAD_FORMS = {
    "there is no widget class QPushButon": ('class="QPushButton"', 'class="QPushButon"'),
    "ctkSliderWidget has no property maximun": ('name="maximum"', 'name="maximun"'),
    "the property enabled of QPushButton is a bool, not a string": (
        '<property name="enabled"><bool>false</bool>',
        '<property name="enabled"><string>false</string>',
    ),
    "there is no class vtkMRMLVolume": ("<string>vtkMRMLScalarVolumeNode<", "<string>vtkMRMLVolume<"),
    "there is no QAbstractItemView::NoTriggers": ("::NoEditTriggers", "::NoTriggers"),
    "the parameter node of Planted.py has no inputVolumes": ("<string>inputVolume<", "<string>inputVolumes<"),
    "the parameter node of Planted.py has no settings.width": ("settings.threshold", "settings.width"),
    "SlicerParameterName is empty": ("<string>inputVolume<", "<string><"),
    "the name inputSelector is used twice": ('name="applyButton"', 'name="inputSelector"'),
    "qMRMLWidget has no signal mrmlSceneChange": ("mrmlSceneChanged(", "mrmlSceneChange("),
    "qMRMLNodeComboBox has no slot setScene": ("<slot>setMRMLScene(", "<slot>setScene("),
    "a connection names selector": ("<receiver>inputSelector", "<receiver>selector"),
    "ctkSliderWidget is not declared": ("<class>ctkSliderWidget</class>", "<class>ctkCheckBox</class>"),
    "ctkSliderWidget does not extend QSlider": (
        "<class>ctkSliderWidget</class><extends>QWidget",
        "<class>ctkSliderWidget</class><extends>QSlider",
    ),
    "does not parse": ("</connections>", "</connection>"),
}


# plain C++ methods, which the embedded Slicer shows and PythonQt does not
LEFT_TO_HIDE = {
    "ctkComboBox": {"scrollWheelEnabled", "setScrollWheelEnabled"},
    "ctkSearchBox": {"alwaysShowClearIcon", "setAlwaysShowClearIcon"},
    "ctkDoubleSlider": {"setRange"},
    "ctkDoubleSpinBox": {"setRange"},
    "ctkSliderWidget": {"setRange", "slider", "spinBox"},
    "qMRMLSliderWidget": {"setRange", "slider", "spinBox"},
    "qMRMLSpinBox": {"setRange"},
    "qMRMLCollapsibleButton": {"mrmlScene"},
    "qMRMLSliceView": {"renderer"},
    "qMRMLThreeDView": {"renderer"},
    "qSlicerApplication": {"returnCode"},
    "qSlicerWidget": {"mrmlScene"},
    "qSlicerModulePanel": {"mrmlScene"},
    "qSlicerScriptedLoadableModuleWidget": {"mrmlScene"},
}


@pytest.fixture
def planted(tmp_path):
    """Function that writes a module with a line in a method, and a form; returns the findings in its folder."""
    folder = tmp_path / "Planted"
    (folder / "Resources" / "UI").mkdir(parents=True)

    def check(line: str = "pass", form: str = FORM, module: str = MODULE):
        text = textwrap.dedent(module).replace("{line}", line)
        (folder / "Planted.py").write_text(text, encoding="utf-8")
        (folder / "Resources" / "UI" / "Planted.ui").write_text(textwrap.dedent(form).strip(), encoding="utf-8")
        return check_folder(folder)

    return check


@pytest.mark.parametrize("line", MISTAKES.values(), ids=MISTAKES.keys())
def test_planted_mistake_is_reported(planted, line):
    findings = planted(line)
    lines = textwrap.dedent(MODULE).replace("{line}", line).splitlines()
    assert {finding.line for finding in findings} == {len(lines)}, findings
    assert all(finding.path.endswith("Planted.py") for finding in findings)


@pytest.mark.parametrize("line", IDIOMS)
def test_correct_idiom_is_not_reported(planted, line):
    assert planted(line) == []


def test_newer_name_is_accepted_in_a_try_statement(planted):
    assert planted(GUARDED) == []


@pytest.mark.parametrize("message", BAD_FORMS)
def test_mistake_in_a_form_is_reported(planted, message):
    before, after = BAD_FORMS[message]
    assert before in FORM
    findings = planted(form=FORM.replace(before, after, 1))
    assert any(finding.path.endswith(".ui") and message in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("import torch", "imports torch"),
        ("from nibabel import load", "imports nibabel"),
        ("try:\n    import monai\nexcept ImportError:\n    monai = None", "imports monai"),
        ("from PlantedLib import helper", "imports torch"),
        ("slicer.util.pip_install('x')", "at import"),
        ("nodes = slicer.mrmlScene.GetNodesByClass('vtkMRMLModelNode')", "at import"),
    ],
)
def test_what_slicer_would_pay_for_at_start_is_reported(planted, tmp_path, statement, message):
    library = tmp_path / "Planted" / "PlantedLib"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text("", encoding="utf-8")
    (library / "helper.py").write_text("import json\nimport torch\n", encoding="utf-8")
    findings = planted(module=textwrap.dedent(MODULE) + statement + "\n")
    assert [message in finding.message for finding in findings] == [True]


def test_imports_that_do_not_run_at_start_are_free(planted):
    late = "if __name__ == '__main__':\n    import torch\ndef late():\n    import torch\n"
    assert planted(module=textwrap.dedent(MODULE) + late) == []


def test_script_beside_a_module_is_reported_unless_cmake_installs_it_elsewhere(planted, tmp_path):
    scripts = tmp_path / "Planted" / "Scripts"
    scripts.mkdir(parents=True)
    (scripts / "run.py").write_text("import torch\n", encoding="utf-8")
    assert planted() == []
    (tmp_path / "Planted" / "run.py").write_text("import torch\n", encoding="utf-8")
    messages = [finding.message for finding in planted()]
    assert len(messages) == 2
    assert any("no class run" in message for message in messages)
    (tmp_path / "Planted" / "CMakeLists.txt").write_text("set(MODULE_HEADLESS_SCRIPTS\n  run.py\n  )\n")
    assert planted() == []


def test_command_line_prints_findings_and_status(planted, tmp_path, repository):
    planted("slicer.arrayFromVolume(node)")
    command = [sys.executable, "-m", "apilint", str(tmp_path / "Planted")]
    environment = dict(os.environ, PYTHONPATH=str(repository / "Testing"), QT_QPA_PLATFORM="offscreen")
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    line = len(textwrap.dedent(MODULE).splitlines())
    assert result.stdout.splitlines() == [f"{tmp_path}/Planted/Planted.py:{line}: slicer has no arrayFromVolume"]
    missing = subprocess.run([*command[:3], str(tmp_path / "none")], env=environment, capture_output=True)
    assert missing.returncode == 2


@pytest.mark.parametrize("module", ["FlareSegment", "FlareSegmentTraining"])
def test_own_modules_use_only_what_slicer_has(repository, module):
    assert [str(finding) for finding in check_folder(repository / module)] == []


def test_headers_are_read():
    text = """
    class qMRMLBase; // class qMRMLFake : public QWidget { Q_PROPERTY(int fake READ fake) };
    class Q_MRML_EXPORT qMRMLExample : public QWidget, public Other
    {
      Q_OBJECT
      Q_PROPERTY(QString name READ name WRITE setName NOTIFY nameChanged)
      Q_PROPERTY(int count READ count)
      Q_FLAGS(Options)
    public:
      enum Option { First = 1, Second };
      Q_DECLARE_FLAGS(Options, Option)
      Q_INVOKABLE vtkMRMLNode* node(const QString& id, QChar separator = ';') const;
      int plain() const { return 1; }
    public slots:
      virtual void setName(const QString& name) { this->Name = name; }
    signals:
      void nameChanged(const QString& name, bool byUser = false);
      void nodeChanged(vtkMRMLNode*);
    private slots:
      void hidden();
    };
    """
    assert classes_in_header(text) == {
        "qMRMLExample": {
            "bases": ["QWidget", "Other"],
            "properties": {"name": ["QString", True], "count": ["int", False]},
            "signals": ["nameChanged(QString)", "nameChanged(QString,bool)", "nodeChanged(vtkMRMLNode*)"],
            "methods": {"node": "vtkMRMLNode", "setName": ""},
            "enumerators": ["First", "Second"],
        }
    }


def test_stand_ins_show_nothing_that_slicer_lacks(slicer_app):
    """Public names that the embedded Slicer's own classes define exist in Slicer's class of that name."""
    import ctk
    import slicer

    stand_ins = {
        name: item
        for module in (ctk, slicer)
        for name, item in vars(module).items()
        if isinstance(item, type) and item.__module__.startswith("slicerhost")
    }
    assert len(stand_ins) > 20
    surplus = []
    for name, item in sorted(stand_ins.items()):
        real = facts.qt_class(name)
        if real is None:
            surplus.append(f"{name} is no class of Slicer")
            continue
        own = [base for base in item.__mro__ if base.__module__.startswith("slicerhost")]
        members = {member for base in own for member in vars(base) if not member.startswith("_")}
        members = {member for member in members if not (member.isupper() or real.has(member) or _sets(real, member))}
        surplus += [f"{name}.{member}" for member in sorted(members - LEFT_TO_HIDE.get(name, set()))]
    assert surplus == []


def _sets(real: facts.QtClass, member: str) -> bool:
    """Whether this is the C++ setter of a property: PythonQt hides it; the lint refuses it in our code all the same."""
    found = real.property(member[3:4].lower() + member[4:]) if member.startswith("set") else None
    return found is not None
