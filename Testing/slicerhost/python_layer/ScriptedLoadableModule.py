"""`slicer.ScriptedLoadableModule`: base classes of a scripted module's module, widget, logic and test."""

from __future__ import annotations

import importlib
import logging
import os
import unittest

import ctk
import qt
import slicer
import slicer.util

__all__ = [
    "ScriptedLoadableModule",
    "ScriptedLoadableModuleLogic",
    "ScriptedLoadableModuleTest",
    "ScriptedLoadableModuleWidget",
]


def _name_without(instance, ending):
    return type(instance).__name__.removesuffix(ending)


class ScriptedLoadableModule:
    """Describes the module to the application, through `parent` (a qSlicerScriptedLoadableModule)."""

    def __init__(self, parent):
        super().__init__()
        self.parent = parent
        self.moduleName = type(self).__name__
        parent.title = ""
        parent.categories = []
        parent.dependencies = []
        parent.contributors = []
        parent.helpText = ""
        parent.acknowledgementText = ""
        for extension in (".svg", ".png"):
            icon = self.resourcePath(os.path.join("Icons", self.moduleName + extension))
            if os.path.isfile(icon):
                parent.icon = qt.QIcon(icon)
                break
        if not hasattr(slicer, "selfTests"):
            slicer.selfTests = {}
        slicer.selfTests[self.moduleName] = self.runTest

    def resourcePath(self, filename):
        """Path of a file in the module's Resources folder."""
        return os.path.join(os.path.dirname(self.parent.path), "Resources", filename)

    def getDefaultModuleDocumentationLink(self, docPage=None):
        """HTML text with a link to the module's page."""
        app = slicer.app
        url = app.documentationBaseUrl + docPage if docPage else app.moduleDocumentationUrl(self.moduleName)
        return f'<p>For more information, see the <a href="{url}">online documentation</a>.</p>'

    def runTest(self, msec=100, **kwargs):
        """Run `<ModuleName>Test` of the module's file; `msec` is how long its messages stay."""
        module = importlib.import_module(type(self).__module__)
        test_class = getattr(module, self.moduleName + "Test", None)
        if test_class is None:
            raise AssertionError(f"Test case class not found: {type(self).__module__}.{self.moduleName}Test")
        test = test_class()
        test.messageDelay = msec
        test.runTest(**kwargs)


class ScriptedLoadableModuleWidget:
    """The module's panel. `parent` is the widget it is laid out in; without one it makes and shows its own."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = _name_without(self, "Widget")
        self.developerMode = slicer.util.settingsValue("Developer/DeveloperMode", False, converter=slicer.util.toBool)
        stands_alone = not parent
        if stands_alone:
            parent = slicer.qMRMLWidget()
            parent.setLayout(qt.QVBoxLayout())
            parent.setMRMLScene(slicer.mrmlScene)
        self.parent = parent
        self.layout = parent.layout()
        if stands_alone:
            self.setup()
            parent.show()
        slicer.app.moduleManager().connect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def resourcePath(self, filename):
        """Path of a file in the module's Resources folder."""
        return os.path.join(os.path.dirname(slicer.util.modulePath(self.moduleName)), "Resources", filename)

    def setup(self):
        """Make the panel; overridden by every module, which calls this one first."""
        self.setupDeveloperSection()

    def cleanup(self):
        """Called before the module is unloaded."""

    def _onModuleAboutToBeUnloaded(self, moduleName):
        if moduleName == self.moduleName:
            self.cleanup()
            slicer.app.moduleManager().disconnect("moduleAboutToBeUnloaded(QString)", self._onModuleAboutToBeUnloaded)

    def setupDeveloperSection(self):
        """Reload and test buttons, shown in developer mode."""
        if not self.developerMode:
            return
        self.reloadCollapsibleButton = ctk.ctkCollapsibleButton()
        self.reloadCollapsibleButton.text = "Reload && Test"
        self.layout.addWidget(self.reloadCollapsibleButton)
        row = qt.QHBoxLayout(self.reloadCollapsibleButton)
        for attribute, text, slot in (
            ("reloadButton", "Reload", self.onReload),
            ("reloadTestMenuButton", "Reload and Test", self.onReloadAndTest),
        ):
            button = qt.QPushButton(text)
            button.connect("clicked()", slot)
            row.addWidget(button)
            setattr(self, attribute, button)

    def onReload(self):
        """Read the module's file again and make a new panel."""
        slicer.util.reloadScriptedModule(self.moduleName)

    def onTest(self, **kwargs):
        """Run the module's own test."""
        with slicer.util.tryWithErrorDisplay("Test failed."):
            slicer.selfTests[self.moduleName](**kwargs)

    def onReloadAndTest(self, **kwargs):
        """Reload, then test."""
        with slicer.util.tryWithErrorDisplay("Reload and Test failed."):
            self.onReload()
            slicer.selfTests[self.moduleName](**kwargs)


class ScriptedLoadableModuleLogic:
    """What the module does, without a panel. Keeps its settings in a vtkMRMLScriptedModuleNode of the scene."""

    def __init__(self, parent=None):
        super().__init__()
        self.moduleName = _name_without(self, "Logic")
        self.isSingletonParameterNode = True

    def _parameter_nodes(self):
        scene, class_name = slicer.mrmlScene, "vtkMRMLScriptedModuleNode"
        nodes = (scene.GetNthNodeByClass(i, class_name) for i in range(scene.GetNumberOfNodesByClass(class_name)))
        return [node for node in nodes if node.GetAttribute("ModuleName") == self.moduleName]

    def getParameterNode(self):
        """The module's first parameter node, created where there is none."""
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            if node is not None and node.GetAttribute("ModuleName") != self.moduleName:
                node.SetAttribute("ModuleName", self.moduleName)
        else:
            node = next(iter(self._parameter_nodes()), None)
        return slicer.mrmlScene.AddNode(self.createParameterNode()) if node is None else node

    def getAllParameterNodes(self):
        """All parameter nodes of the module; at most one where they are singletons."""
        if self.isSingletonParameterNode:
            node = slicer.mrmlScene.GetSingletonNode(self.moduleName, "vtkMRMLScriptedModuleNode")
            return [] if node is None else [node]
        return self._parameter_nodes()

    def createParameterNode(self):
        """A new parameter node, not yet in the scene."""
        if self.isSingletonParameterNode and self.getAllParameterNodes():
            raise RuntimeError(f"{self.moduleName} already has its one parameter node")
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
        node.UnRegister(None)
        if self.isSingletonParameterNode:
            node.SetSingletonTag(self.moduleName)
        node.SetAttribute("ModuleName", self.moduleName)
        node.SetName(slicer.mrmlScene.GenerateUniqueName(self.moduleName))
        return node


class ScriptedLoadableModuleTest(unittest.TestCase):
    """A module's own test: `runTest` calls setUp and every `test*` method in `moduleTestNames`."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        super(unittest.TestCase, self).__init__()  # TestCase does not call on to mixins such as VTKObservationMixin
        self.messageDelay = 1000
        self.enableScreenshots = False
        self.screenshotScaleFactor = 1.0

    @property
    def moduleTestNames(self):
        return unittest.defaultTestLoader.getTestCaseNames(type(self))

    def delayDisplay(self, message, requestedDelay=None, msec=None):
        """Show a message for a while."""
        if hasattr(self, "messageDelay"):
            msec = self.messageDelay if requestedDelay is None and msec is None else requestedDelay or msec
        slicer.util.delayDisplay(message, msec)

    def setUp(self):
        """Prepare one test; modules usually clear the scene here."""

    def tearDown(self):
        """Clean up after one test."""

    def runTest(self):
        """Run every test of the class in turn."""
        if not self.moduleTestNames:
            logging.warning("No test is defined in %s", type(self).__name__)
            return
        self.setUpClass()
        for name in self.moduleTestNames:
            self.setUp()
            getattr(self, name)()
            self.tearDown()
        self.tearDownClass()
