"""Slicer's command line, start-up order and exit status: `python -m slicerhost [options of Slicer] [script arguments]`.

What surprises people in Slicer surprises them here too:

* Slicer takes its own options out of the whole line, also behind `--python-script FILE`; the rest is the script's
  `sys.argv`.
* A script runs in `__main__` with `__file__` set, in the running event loop. `slicer.util.exit(status)` only asks: the
  lines behind it still run. `sys.exit(status)` ends the script.
* Every Python file in a folder of `--additional-module-paths` is loaded as a module; with `--testing` one that is none
  ends the application at once, with status 1.
* On Linux the application lowers its own priority, and so that of every process that it starts, to the least (nice 19):
  Slicer means its background threads. The environment variable SLICER_BACKGROUND_THREAD_PRIORITY says another value.
* With `--testing` the application ends after the script, with status 1 if anything raised (in a slot too).
* Without `--testing` and without a main window it does NOT end by itself, not even when the script raises.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from dataclasses import dataclass, field

_FLAGS = (
    "disable-builtin-cli-modules", "disable-builtin-loadable-modules", "disable-builtin-modules",
    "disable-builtin-scripted-loadable-modules", "disable-cli-modules", "disable-loadable-modules",
    "disable-message-handlers", "disable-modules", "disable-python", "disable-scripted-loadable-modules",
    "disable-settings", "disable-terminal-outputs", "disable-tooltips", "exit-after-startup", "help", "ignore-slicerrc",
    "keep-temporary-settings", "no-main-window", "no-splash", "show-python-console", "testing",
    "verbose-module-discovery", "version",
)
_WITH_VALUE = ("additional-module-path", "modules-to-ignore", "python-code", "python-script")
_LEAST_PRIORITY = 20
_SHORT = {"-h": "help", "-c": "c"}


class CommandLineError(ValueError):
    """An option lacks its value."""


@dataclass
class CommandLine:
    """What the command line says; `arguments` are those that are not Slicer's own."""

    flags: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)
    module_paths: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)


def parse(words: list[str]) -> CommandLine:
    """Parse as Slicer (ctkCommandLineParser) does: known options anywhere, an option's repetition is dropped."""
    line, seen, rest = CommandLine(), set(), list(words)
    while rest:
        word = rest.pop(0)
        name = _option(word)
        if name is None:
            line.arguments.append(word)
        elif name == "ignore-rest":
            line.arguments += rest
            break
        elif name in seen:
            continue
        elif name in _FLAGS:
            line.flags.add(name)
        elif name == "additional-module-paths":
            while rest and _option(rest[0]) is None:
                line.module_paths.append(rest.pop(0))
        else:
            if not rest or _option(rest[0]) is not None:
                raise CommandLineError(f"{word} needs a value")
            line.values[name] = rest.pop(0)
        if name is not None:
            seen.add(name)
    if "additional-module-path" in line.values:
        line.module_paths.append(line.values["additional-module-path"])
    return line


def _option(word):
    if word in ("--", "--ignore-rest"):
        return "ignore-rest"
    if word in _SHORT:
        return _SHORT[word]
    name = word.removeprefix("--")
    is_known = name in _FLAGS or name in _WITH_VALUE or name == "additional-module-paths"
    return name if word.startswith("--") and is_known else None


def main(words: list[str]) -> int:
    """Run the application as the command line says; returns the exit status."""
    try:
        line = parse(words)
    except CommandLineError as error:
        print(f"slicerhost: {error}", file=sys.stderr)
        return 1
    if "help" in line.flags:
        print(__doc__)
        return 0
    from slicerhost import boot

    lower_priority()
    app = boot(main_window=False, testing="testing" in line.flags)
    if "version" in line.flags:
        print(f"{app.applicationName} {app.applicationVersion}")
        return 0
    return _Session(app, line).run()


def lower_priority() -> None:
    """What Slicer's application logic does to the whole process when it starts its background threads."""
    if not sys.platform.startswith("linux"):
        return
    try:
        priority = int(os.environ.get("SLICER_BACKGROUND_THREAD_PRIORITY", _LEAST_PRIORITY))
    except ValueError:
        priority = _LEAST_PRIORITY
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, os.getpid(), priority)


class _Session:
    """One run of the application from its command line to its exit status."""

    def __init__(self, app, line):
        self._app, self._line = app, line
        self._script = line.values.get("python-script", "")
        self._code = line.values.get("python-code") or line.values.get("c", "")
        options = app.commandOptions()
        options._module_paths = tuple(line.module_paths)
        if not self._script and line.arguments and line.arguments[0].endswith(".py"):
            self._script = line.arguments.pop(0)
            options.runPythonAndExit = True
        if "c" in line.values:
            options.runPythonAndExit = True
        options._python_script, options._python_code = self._script, self._code

    def run(self):
        from PyQt5.QtCore import QTimer

        from slicerhost import boot

        with_window = "no-main-window" not in self._line.flags and not self._app.commandOptions().runPythonAndExit
        if with_window:
            boot(main_window=True)
        if not self._load_modules() and self._app.testingEnabled():
            return 1
        if with_window:
            self._app._main_window.show()
        QTimer.singleShot(0, self._app.startupCompleted.emit)
        QTimer.singleShot(0, self._handle_command_line)
        status = self._app.exec_()
        self._app.moduleManager()._unload_all()
        self._app.processEvents()
        if status == 0:
            if self._app.testingEnabled() and self._python_failed():
                return 1
            if self._app.returnCode() > 0:
                return self._app.returnCode()
        return status

    def _python_failed(self):
        from slicerhost import pythonqt

        return bool(pythonqt.slot_errors)

    def _load_modules(self):
        from slicerhost.scripted_modules import load_module_paths

        ignored = self._line.values.get("modules-to-ignore", "").split(",")
        return not load_module_paths(self._line.module_paths, ignored)

    def _handle_command_line(self):
        options = self._app.commandOptions()
        sys.argv = [self._script, *self._line.arguments]
        if options.testingEnabled:
            options.runPythonAndExit = True
        if self._script:
            if os.path.exists(self._script):
                self._app.processEvents()
                self._execute(self._run_script)
            else:
                print(f"Specified python script doesn't exist: {self._script}", file=sys.stderr)
        if self._code:
            self._app.processEvents()
            self._execute(self._run_code)
        if options.runPythonAndExit:
            self._app.exit(1 if self._python_failed() else 0)
        elif "exit-after-startup" in self._line.flags:
            self._app.exit(0)

    def _execute(self, function):
        from slicerhost import pythonqt

        try:
            function()
        except SystemExit as request:
            status = request.code if isinstance(request.code, int) else 0 if request.code is None else 1
            if isinstance(request.code, str):
                print(request.code, file=sys.stderr)
            self._app.commandOptions().runPythonAndExit = False
            self._app.exit(status)
        except BaseException as error:  # noqa: BLE001  (a script's exception is reported, not passed on)
            pythonqt.slot_errors.append(error)
            traceback.print_exc()

    def _run_script(self):
        folder = os.path.dirname(os.path.abspath(self._script))
        sys.path.insert(0, folder)
        try:
            variables = _main_variables()
            variables["__file__"] = self._script
            with open(self._script, encoding="utf-8") as file:
                exec(compile(file.read(), self._script, "exec"), variables)
        finally:
            if sys.path[0] == folder:
                sys.path.pop(0)

    def _run_code(self):
        exec(compile(self._code, "<string>", "exec"), _main_variables())


def _main_variables():
    """The names that Slicer's interpreter has from the start."""
    import ctk
    import qt
    import slicer
    import vtk

    variables = sys.modules["__main__"].__dict__
    variables.update(ctk=ctk, qt=qt, slicer=slicer, vtk=vtk, __name__="__main__")
    return variables
