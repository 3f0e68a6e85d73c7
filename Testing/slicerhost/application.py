"""`slicer.app`: the application object, its command options and its module manager."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
from pathlib import Path

import slicer
import slicer_core
from PyQt5.QtCore import QLocale, QObject, QProcessEnvironment, QSettings, QTimer, pyqtProperty, pyqtSignal
from PyQt5.QtWidgets import QApplication

from slicerhost.io_manager import qSlicerCoreIOManager
from slicerhost.stand_in import exported_names, stored_properties

_VERSION = (5, 12, 4)  # of slicer-core
_EXIT_NOT_REQUESTED = -1


def exported():
    """The classes of this file by name."""
    return exported_names(globals(), ("qSlicer",))


class qSlicerCommandOptions(QObject):
    """What the command line asked for."""

    locals().update(stored_properties(runPythonAndExit=(bool, False)))
    def __init__(self, testing):
        super().__init__()
        self._testing, self._no_main_window = testing, True
        self._python_script, self._python_code, self._module_paths = "", "", ()

    testingEnabled = pyqtProperty(bool, lambda self: self._testing)
    noMainWindow = pyqtProperty(bool, lambda self: self._no_main_window)
    pythonScript = pyqtProperty(str, lambda self: self._python_script)
    pythonCode = pyqtProperty(str, lambda self: self._python_code)
    additionalModulePaths = pyqtProperty("QVariant", lambda self: tuple(self._module_paths))


class qSlicerModuleManager(QObject):
    moduleLoaded = pyqtSignal(str)
    moduleAboutToBeUnloaded = pyqtSignal(str)

    def __init__(self, application):
        super().__init__(application)
        self._modules = {}

    def module(self, name):
        return self._modules.get(name)

    def modulesNames(self):
        return tuple(self._modules)

    def factoryManager(self):
        return slicer.app._module_factory

    def _add(self, module):
        self._modules[module.name] = module
        setattr(slicer.modules, module.name.lower(), module)
        setattr(slicer.moduleNames, module.name, module.name)
        self.moduleLoaded.emit(module.name)

    def _unload_all(self):
        for name in list(self._modules):
            self.moduleAboutToBeUnloaded.emit(name)


class qSlicerModuleFactoryManager(QObject):
    """`loadModules([path, ...])` registers and loads scripted modules while the application runs."""

    def registerModule(self, file):
        path = file.filePath() if hasattr(file, "filePath") else str(file)
        self._registered = [*getattr(self, "_registered", ()), path]

    def loadModules(self, names):
        from slicerhost.scripted_modules import load_scripted_module

        for path in [*getattr(self, "_registered", ()), *names]:
            if str(path).endswith(".py"):
                load_scripted_module(path)
        self._registered = []
        return True

    def loadedModuleNames(self):
        return slicer.app.moduleManager().modulesNames()


class qSlicerApplication(QApplication):
    startupCompleted = pyqtSignal()
    mrmlSceneChanged = pyqtSignal(object)
    SIGNALS = {"mrmlSceneChanged(vtkMRMLScene*)": "mrmlSceneChanged"}

    def __init__(self, core, testing):
        super().__init__(["Slicer"])
        self._core = core
        self._temporary_directory = tempfile.TemporaryDirectory(prefix="SlicerHost")
        self._return_code = _EXIT_NOT_REQUESTED
        self._options = qSlicerCommandOptions(testing)
        self._module_manager = qSlicerModuleManager(self)
        self._module_factory = qSlicerModuleFactoryManager(self)
        self._io_manager = qSlicerCoreIOManager(self)
        self._main_window = None
        self.setOrganizationName("NA-MIC")
        self.setApplicationName("Slicer")
        self.setApplicationVersion(".".join(map(str, _VERSION)))
        QLocale.setDefault(QLocale.c())
        QSettings.setDefaultFormat(QSettings.IniFormat)
        for scope in (QSettings.UserScope, QSettings.SystemScope):
            QSettings.setPath(QSettings.IniFormat, scope, self._temporary_directory.name)
        self._settings = QSettings()
        revision_file = f"{self._temporary_directory.name}/Slicer-revision.ini"
        self._revision_settings = QSettings(revision_file, QSettings.IniFormat)

        self._add_python_slicer_to_path()

    def _add_python_slicer_to_path(self):
        """Slicer's interpreter is found on PATH as `PythonSlicer`; here it is this one."""
        folder = Path(self._temporary_directory.name) / "bin"
        folder.mkdir()
        if os.name == "nt":
            (folder / "PythonSlicer.cmd").write_text(f'@"{sys.executable}" %*\n', encoding="utf-8")
        else:
            script = folder / "PythonSlicer"
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
            script.chmod(0o755)
        os.environ["PATH"] = os.pathsep.join([str(folder), os.environ.get("PATH", "")])

    # MRML and modules
    def mrmlScene(self):
        return self._core.scene

    def applicationLogic(self):
        return self._core.application_logic

    def moduleLogic(self, moduleName):
        return self._core.logics.get(moduleName)

    def moduleManager(self):
        return self._module_manager

    def coreIOManager(self):
        return self._io_manager

    def ioManager(self):
        return self._io_manager

    def extensionsManagerModel(self):
        return None

    # Windows
    def layoutManager(self):
        return None if self._main_window is None else self._main_window._layout_manager

    def pythonConsole(self):
        return None

    def _set_main_window(self, window):
        self._main_window = window
        self._options._no_main_window = False

    def setRenderPaused(self, pause):
        if self.layoutManager() is not None:
            self.layoutManager().setRenderPaused(pause)

    def pauseRender(self):
        self.setRenderPaused(True)

    def resumeRender(self):
        self.setRenderPaused(False)

    # Settings, paths, environment
    def commandOptions(self):
        return self._options

    def testingEnabled(self):
        return self._options.testingEnabled

    def settings(self):
        return self._settings

    def userSettings(self):
        return self._settings

    def revisionUserSettings(self):
        return self._revision_settings

    def startupEnvironment(self):
        return QProcessEnvironment.systemEnvironment()

    def environment(self):
        return QProcessEnvironment.systemEnvironment()

    def translate(self, context, text):
        return text

    def moduleDocumentationUrl(self, moduleName):
        return f"{self.documentationBaseUrl}user_guide/modules/{moduleName.lower()}.html"

    def logUsageEvent(self, component, event):
        pass

    temporaryPath = pyqtProperty(str, lambda self: self._temporary_directory.name)
    cachePath = pyqtProperty(str, lambda self: self._temporary_directory.name)
    defaultScenePath = pyqtProperty(str, lambda self: self._temporary_directory.name)
    slicerHome = pyqtProperty(str, lambda self: str(slicer_core.__path__[0]))
    documentationBaseUrl = pyqtProperty(str, lambda self: "https://slicer.readthedocs.io/en/latest/")
    majorVersion = pyqtProperty(int, lambda self: _VERSION[0])
    minorVersion = pyqtProperty(int, lambda self: _VERSION[1])
    mainApplicationName = pyqtProperty(str, lambda self: "Slicer")
    mainApplicationDisplayName = pyqtProperty(str, lambda self: "3D Slicer")
    revision = pyqtProperty(str, lambda self: "0")
    arch = pyqtProperty(str, lambda self: platform.machine())
    os = pyqtProperty(str, lambda self: {"Darwin": "macosx", "Windows": "win"}.get(platform.system(), "linux"))

    # End
    def exit(self, status=0):
        """As in Slicer this only asks: the caller goes on, pending events are processed, then the event loop ends."""
        self._return_code = status
        QTimer.singleShot(0, lambda: QApplication.exit(status))

    def returnCode(self):
        return self._return_code

    def restart(self):
        raise RuntimeError("the embedded Slicer cannot restart itself")
