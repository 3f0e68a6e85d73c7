"""`slicer.packaging`: are Python packages there, and installing those that are not.

Written from its documented interface. pip runs in its own process through `slicer.util.executePythonModule`; in testing
mode nothing asks, and `pip_ensure` installs nothing unless told otherwise.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import logging
import re
import shlex
import sys
import tomllib
from pathlib import Path
from subprocess import CalledProcessError

import slicer
import slicer.util

# The distribution `packaging`, not this file: absolute imports do not look beside the importing file.
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

__all__ = ["isPipInstallInProgress", "load_pyproject_dependencies", "load_requirements", "pip_check", "pip_ensure",
           "pip_install", "pip_uninstall"]

_pip_install_in_progress = False


def load_requirements(path):
    """Requirements of a requirements (or constraints) file; comments and pip's own options are passed over."""
    requirements = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        line = re.sub(r"(^|\s)#.*$", "", line).strip()
        if line and not line.startswith("-"):
            requirements.append(Requirement(line))
    return requirements


def load_pyproject_dependencies(path):
    """`project.dependencies` of a pyproject.toml; raises KeyError where it has no [project] table."""
    content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    if "project" not in content:
        raise KeyError(f"No [project] table in {path}")
    return [Requirement(one) for one in content["project"].get("dependencies", [])]


def _to_requirements(given):
    if isinstance(given, Requirement):
        return [given]
    if isinstance(given, str):
        try:
            return [Requirement(given)]
        except InvalidRequirement:
            return [Requirement(word) for word in shlex.split(given)]
    return [requirement for one in given for requirement in _to_requirements(one)]


def pip_check(req, _seen=None):
    """Whether a requirement, or every one of a list, is met by what is installed, its extras included.

    A requirement whose marker does not hold here counts as met.
    """
    seen = set() if _seen is None else _seen
    return all(_is_met(one, seen) for one in _to_requirements(req))


def _is_met(requirement, seen):
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    try:
        version = importlib.metadata.version(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if not requirement.specifier.contains(version, prereleases=True):
        return False
    key = canonicalize_name(requirement.name), frozenset(requirement.extras)
    if key in seen:
        return True
    seen.add(key)
    return all(_is_met(one, seen) for one in _extra_dependencies(requirement))


def _extra_dependencies(requirement):
    """Dependencies that only the requirement's extras bring."""
    found = []
    for text in (importlib.metadata.requires(requirement.name) or []) if requirement.extras else []:
        dependency = Requirement(text)
        if dependency.marker is None or dependency.marker.evaluate({"extra": ""}):
            continue
        if any(dependency.marker.evaluate({"extra": extra}) for extra in requirement.extras):
            dependency.marker = None
            found.append(dependency)
    return found


def isPipInstallInProgress():
    """Whether a non-blocking installation is running."""
    return _pip_install_in_progress


def _get_installed_versions():
    """Versions of all installed packages by canonical name."""
    importlib.invalidate_caches()
    return {canonicalize_name(one.metadata["Name"]): one.version for one in importlib.metadata.distributions()
            if one.metadata["Name"]}


def _find_updated_imported_packages(before_versions, after_versions):
    """(name, old version or None, new version) of packages that changed while one of their modules was imported."""
    names = {}
    for module, packages in importlib.metadata.packages_distributions().items():
        for package in packages:
            names.setdefault(canonicalize_name(package), []).append(module)
    return [
        (name, before_versions.get(name), version) for name, version in after_versions.items()
        if before_versions.get(name) != version and any(module in sys.modules for module in names.get(name, ()))
    ]


def pip_ensure(requirements, constraints=None, skip_packages=None, prompt_install=True, prompt_restart=True,
               requester=None, skip_in_testing=True, show_progress=True):
    """Install what is missing of the requirements, after asking; call it where the packages are needed.

    Returns what `pip_install` skipped. Raises RuntimeError where the user declines.
    """
    missing = [one for one in _to_requirements(requirements) if not pip_check(one)]
    if not missing:
        return []
    texts = [str(one) for one in missing]
    if slicer.app.testingEnabled() and skip_in_testing:
        logging.info("Testing mode is enabled: not installing %s", ", ".join(texts))
        return []
    if prompt_install and not slicer.util.confirmOkCancelDisplay(
        f"{requester or 'This module'} needs these Python packages:\n" + "\n".join(texts) + "\n\nInstall them now?"
    ):
        raise RuntimeError(f"Installation of {', '.join(texts)} was declined")
    before = _get_installed_versions() if prompt_restart else {}
    skipped = pip_install(texts, constraints=constraints, skip_packages=skip_packages, show_progress=show_progress,
                          requester=requester)
    if prompt_restart:
        updated = _find_updated_imported_packages(before, _get_installed_versions())
        if updated:
            names = ", ".join(name for name, _, _ in updated)
            if slicer.app.testingEnabled():
                logging.info("Testing mode is enabled: not asking to restart for the update of %s", names)
            elif slicer.util.confirmYesNoDisplay(f"{names} were updated while in use. Restart now?"):
                slicer.util.restart()
    return skipped or []


def _words(requirements):
    return shlex.split(requirements) if isinstance(requirements, str) else [str(one) for one in requirements]


def _build_pip_args(requirements, constraints=None, no_deps=False):
    arguments = ["install", *_words(requirements)]
    if constraints is not None:
        arguments += ["-c", str(constraints)]
    return [*arguments, "--no-deps"] if no_deps else arguments


def pip_install(requirements, constraints=None, no_deps_requirements=None, skip_packages=None, blocking=True,
                show_progress=True, requester=None, logCallback=None, completedCallback=None):
    """Run `pip install`. With `skip_packages`, these are left out wherever they are depended on; their requirement
    strings are returned. With `blocking=False` the callbacks tell of every line and of the return code.
    """
    if skip_packages is not None:
        if not blocking:
            raise ValueError("skip_packages requires blocking=True")
        if no_deps_requirements is not None:
            raise ValueError("skip_packages and no_deps_requirements are mutually exclusive")
        return _pip_install_with_skips(requirements, skip_packages, constraints)
    if not blocking:
        return _pip_install_nonblocking(requirements, constraints, no_deps_requirements, logCallback, completedCallback)
    if not show_progress or slicer.app.testingEnabled() or slicer.util.mainWindow() is None:
        return _pip_install_simple(requirements, constraints, no_deps_requirements)
    return _pip_install_with_dialog(requirements, constraints, no_deps_requirements, requester)


def _steps(requirements, constraints, no_deps_requirements):
    steps = [] if no_deps_requirements is None else [_build_pip_args(no_deps_requirements, constraints, no_deps=True)]
    return [*steps, _build_pip_args(requirements, constraints)]


def _pip_install_simple(requirements, constraints=None, no_deps_requirements=None):
    for arguments in _steps(requirements, constraints, no_deps_requirements):
        slicer.util.executePythonModule("pip", arguments)


def _pip_install_with_dialog(requirements, constraints=None, no_deps_requirements=None, requester=None):
    dialog = _PipProgressDialog(requester)
    codes = []
    dialog.show()
    try:
        _pip_install_nonblocking(requirements, constraints, no_deps_requirements, dialog.appendLog, codes.append)
        while not codes:
            slicer.app.processEvents()
    finally:
        dialog.release()
    if codes[0] != 0:
        raise CalledProcessError(codes[0], "pip install", output=dialog.getFullLog())


def _pip_install_nonblocking(requirements, constraints=None, no_deps_requirements=None, logCallback=None,
                             completedCallback=None):
    global _pip_install_in_progress
    if _pip_install_in_progress:
        raise RuntimeError("Another pip installation is in progress")
    steps = _steps(requirements, constraints, no_deps_requirements)
    _pip_install_in_progress = True

    def run_next(code):
        global _pip_install_in_progress
        if code == 0 and steps:
            slicer.util.executePythonModule("pip", steps.pop(0), blocking=False, logCallback=logCallback,
                                            completedCallback=run_next)
            return
        _pip_install_in_progress = False
        if completedCallback is not None:
            completedCallback(code)

    try:
        run_next(0)
    except BaseException:
        _pip_install_in_progress = False
        raise


def _pip_install_with_skips(requirements, skip_packages, constraints=None, log_fn=None):
    """Install each package without its dependencies, then those, one by one, except the skipped ones."""
    skip = {canonicalize_name(one) for one in skip_packages}
    skipped, seen = [], set()
    waiting = [(Requirement(one), True) for one in _words(requirements)]
    while waiting:
        requirement, is_asked_for = waiting.pop(0)
        name = canonicalize_name(requirement.name)
        if name in skip:
            skipped.append(str(requirement))
            continue
        if name in seen:
            continue
        seen.add(name)
        if not pip_check(requirement):
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            wanted = f"{requirement.name}{extras}{requirement.specifier}"
            arguments = _build_pip_args([wanted], constraints, no_deps=True)
            if log_fn is not None:
                log_fn(f"Installing {requirement}")
            try:
                slicer.util.executePythonModule("pip", arguments)
            except CalledProcessError:
                if is_asked_for:
                    raise
                logging.warning("The dependency %s could not be installed", requirement)
                continue
            importlib.invalidate_caches()
        try:
            texts = importlib.metadata.requires(requirement.name) or []
        except importlib.metadata.PackageNotFoundError:
            texts = []
        for text in texts:
            dependency = Requirement(text)
            extras = requirement.extras or {""}
            if dependency.marker is None or any(dependency.marker.evaluate({"extra": one}) for one in extras):
                waiting.append((Requirement(text.split(";")[0].strip()), False))
        _scrub_metadata(requirement.name, skip)
    return skipped


def _scrub_metadata(package_name, skip_set):
    """Take the skipped packages out of an installed package's metadata, so that pip does not want them later."""
    try:
        files = importlib.metadata.distribution(package_name).files or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name != "METADATA":
            continue
        path = Path(file.locate())
        lines = path.read_text(encoding="latin-1").splitlines(keepends=True)
        kept = [line for line in lines if not (line.startswith("Requires-Dist:") and canonicalize_name(
            Requirement(line.partition(":")[2].strip()).name) in skip_set)]
        if kept != lines:
            path.write_text("".join(kept), encoding="latin-1")


def pip_uninstall(requirements, blocking=True, logCallback=None, completedCallback=None):
    """Run `pip uninstall`."""
    slicer.util.executePythonModule("pip", ["uninstall", *_words(requirements), "--yes"], blocking=blocking,
                                    logCallback=logCallback, completedCallback=completedCallback)


class _PipProgressDialog:
    """Shows pip's output while an installation runs."""

    def __init__(self, requester=None):
        import qt

        self._lines = []
        self._dialog = qt.QDialog(slicer.util.mainWindow())
        self._dialog.windowTitle = f"{requester or 'Slicer'}: installing Python packages"
        self._text = qt.QPlainTextEdit()
        self._text.readOnly = True
        qt.QVBoxLayout(self._dialog).addWidget(self._text)
        self._dialog.resize(600, 300)

    def show(self):
        self._dialog.show()

    def release(self):
        self._dialog.hide()
        self._dialog.deleteLater()

    def appendLog(self, line):
        self._lines.append(line)
        self._text.appendPlainText(line)

    def getFullLog(self):
        return "\n".join(self._lines)
