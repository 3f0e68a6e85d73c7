"""Checks what Slicer loads at start: every .py file of a module folder is taken for a module, and must import fast.

A module file, and all that it imports at file scope, may use the standard library, what Slicer's own start has loaded,
and packages of the extension; anything else is imported where it is used. Nothing touches the scene or installs then.
Headless scripts, which CMake installs elsewhere (MODULE_HEADLESS_SCRIPTS), are no modules.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from apilint.findings import Finding

LIGHT = {"slicer", "qt", "ctk", "vtk", "vtkmodules", "numpy", "SimpleITK", "scipy", "mrml", "sitkUtils"}
ACTING = ("slicer.mrmlScene", "slicer.app", "slicer.util", "slicer.modules")
ALLOWED_AT_IMPORT = {"slicer.app.connect"}


def check_imports(folder: Path) -> list[Finding]:
    """Findings in a folder's module files, its packages' __init__.py, and all that they import at file scope."""
    findings: list[Finding] = []
    folder = folder.absolute()
    modules = [path for path in sorted(folder.glob("*.py")) if path.name not in headless_scripts(folder)]
    for path in modules:
        findings += _check_module_file(path)
    pending = [*modules, *sorted(folder.glob("*/__init__.py"))]
    seen: set[Path] = set()
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in _file_scope(ast.parse(path.read_text(encoding="utf-8")).body):
            for name in _imported_modules(node, path, folder):
                local = _local_files(folder, name)
                pending += local
                package = name.split(".")[0]
                if not local and package not in LIGHT and package not in sys.stdlib_module_names:
                    message = f"imports {package} while Slicer starts: import it in the function that needs it"
                    findings.append(Finding(_shown(path), node.lineno, message))
            findings += _acting(path, node)
    return findings


def headless_scripts(folder: Path) -> list[str]:
    """Scripts that the folder's CMakeLists.txt installs apart from the modules."""
    file = folder / "CMakeLists.txt"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    block = re.search(r"set\(MODULE_HEADLESS_SCRIPTS\s+(.*?)\)", text, re.DOTALL)
    return block[1].split() if block else []


def _shown(path: Path) -> str:
    """The path as other checks show it: relative to the current folder where it lies below it."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def _check_module_file(path: Path) -> Iterator[Finding]:
    """Slicer loads every .py file that lies in a module folder, and reports those that hold no module."""
    classes = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    if path.stem not in classes:
        message = f"Slicer takes this file for a module at start and finds no class {path.stem}"
        yield Finding(_shown(path), 1, message)


def _file_scope(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, in blocks too; not what only a type checker or `python FILE` runs."""
    for node in body:
        if isinstance(node, ast.If) and any(word in ast.unparse(node.test) for word in ("TYPE_CHECKING", "__main__")):
            continue
        yield node
        for block in ("body", "orelse", "finalbody", "handlers"):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                inner = getattr(node, block, [])
                yield from _file_scope([item for part in inner for item in part.body] if block == "handlers" else inner)


def _imported_modules(node: ast.stmt, path: Path, folder: Path) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    module = node.module or ""
    if node.level:
        package = _package(path.parent)
        kept = package[: len(package) - node.level + 1]
        module = ".".join([*kept, *([module] if module else [])])
    members = [f"{module}.{alias.name}" for alias in node.names]
    return [module, *(name for name in members if _local_files(folder, name))]


def _package(folder: Path) -> list[str]:
    """The dotted name, in parts, of the package that a folder is."""
    return [*_package(folder.parent), folder.name] if (folder / "__init__.py").is_file() else []


def _local_files(folder: Path, name: str) -> list[Path]:
    """The extension's own files that importing `name` runs; in Slicer the folders of both modules are on the path."""
    found = []
    for root in (other for other in folder.parent.iterdir() if other.is_dir()):
        base = root.joinpath(*name.split("."))
        found += [path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()]
    return found


def _acting(path: Path, node: ast.stmt) -> Iterator[Finding]:
    """Calls at file scope that touch the scene, the application or install something."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.If | ast.Try | ast.With | ast.For):
        return
    for call in ast.walk(node):
        if isinstance(call, ast.Call):
            words = ast.unparse(call.func)
            if words.startswith(ACTING) and words not in ALLOWED_AT_IMPORT or "pip_" in words:
                yield Finding(_shown(path), call.lineno, f"calls {words} at import: do it when the module is used")
