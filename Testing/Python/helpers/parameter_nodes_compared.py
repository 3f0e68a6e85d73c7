"""Runs the same classes of parameters through the embedded Slicer's package and Slicer's own, and compares.

The classes are those that Slicer's modules and tests declare, taken from a checkout of its source; nothing of it enters
the repository. Whatever one package refuses the other must refuse, what both take must read the same and leave the same
texts and references in the parameter node.
"""

from __future__ import annotations

import ast
import contextlib
import enum
import importlib
import importlib.util
import logging
import pathlib
import sys
from dataclasses import dataclass, field

import qt
import slicer

from slicerhost import pythonqt

PACKAGE = pathlib.Path("Base/Python/slicer/parameterNodeWrapper")
OWN_NAME = "slicer_source_parameterNodeWrapper"


def stand_in_package():
    """The embedded Slicer's package."""
    return importlib.import_module("slicer.parameterNodeWrapper")


def source_package(checkout):
    """Slicer's own package, loaded from its source beside the embedded one."""
    if OWN_NAME not in sys.modules:
        folder = pathlib.Path(checkout) / PACKAGE
        spec = importlib.util.spec_from_file_location(
            OWN_NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        sys.modules[OWN_NAME] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[OWN_NAME])
    return sys.modules[OWN_NAME]


@dataclass
class Declaration:
    """Classes of one scope of a file, and the imports that they see."""

    where: str
    imports: list[ast.stmt]
    classes: list[ast.ClassDef] = field(default_factory=list)

    @property
    def has_parameters(self):
        return any("parameterNodeWrapper" in text or "parameterPack" in text for text in map(_decorators, self.classes))


def _decorators(node):
    return " ".join(map(ast.unparse, node.decorator_list))


def declarations(files):
    """Every scope of the files that declares a parameter node or a pack."""
    found = []
    for path in sorted(files):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        shared = [node for node in tree.body if isinstance(node, ast.ClassDef) and not _is_test_case(node)]
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        found.append(Declaration(path.name, imports, shared))
        for function in functions:
            inner = sorted(
                (node for node in ast.walk(function) if isinstance(node, ast.ClassDef)), key=lambda node: node.lineno
            )
            found.append(Declaration(f"{path.name}:{function.name}", imports, [*shared, *inner] if inner else []))
    return [one for one in found if one.has_parameters]


def _is_test_case(node):
    return any(ast.unparse(base).endswith(("TestCase", "Widget", "Logic", "Test")) for base in node.bases)


class Outcome:
    """What came of something: a value in plain Python, or that it was refused."""

    def __init__(self, function):
        try:
            self.value, self.error = function(), None
        except Exception as error:  # noqa: BLE001  (whatever is raised is a refusal)
            self.value, self.error = None, error

    @property
    def plain(self):
        return "refused" if self.error is not None else plain(self.value)


def plain(value):
    """A value without its package's classes."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, slicer.vtkMRMLNode):
        return f"node {value.GetID()}"
    if isinstance(value, qt.QColor):
        return f"color {value.name(qt.QColor.HexArgb)}"
    if isinstance(value, enum.Enum):
        return f"{type(value).__name__}.{value.name}"
    if hasattr(value, "allParameters"):
        return {name: plain(getattr(value, name)) for name in value.allParameters}
    if isinstance(value, tuple):
        return ("tuple", *map(plain, value))
    if type(value).__name__ in ("ObservedDict", "dict"):
        return {str(plain(key)): plain(one) for key, one in value.items()}
    if type(value).__name__ in ("ObservedList", "list"):
        return [plain(one) for one in value]
    if isinstance(value, pathlib.PurePath):
        return f"{type(value).__name__} {value}"
    return type(value).__name__


def node_content(node):
    """Texts and references of a parameter node, by name."""
    names, roles = node.GetParameterNames(), []
    for index in range(node.GetNumberOfNodeReferenceRoles()):
        role = node.GetNthNodeReferenceRole(index)
        if node.GetNumberOfNodeReferences(role):
            roles.append((role, node.GetNthNodeReferenceID(role, 0)))
    texts = ((name, node.GetParameter(name).replace(OWN_NAME, stand_in_package().__name__)) for name in names)
    return sorted(texts), sorted(roles)


def namespace(declaration, package):
    """Names of a scope after its classes have been declared with one of the packages, and what became of each class."""
    names = {"__name__": "declared", **vars(package)}
    for statement in declaration.imports:
        if "parameterNodeWrapper" not in ast.unparse(statement):
            with contextlib.suppress(ImportError):
                exec(compile(ast.Module([statement], []), declaration.where, "exec", dont_inherit=True), names)
    for name in [name for name in vars(slicer) if name.startswith("vtkMRML")]:
        names.setdefault(name, getattr(slicer, name))
    module = type(sys)("declared")
    vars(module).update(names)
    sys.modules["declared"] = module
    made = {}
    for node in declaration.classes:
        code = compile(ast.Module([node], []), declaration.where, "exec", dont_inherit=True)

        def declare(code=code, name=node.name):
            exec(code, vars(module))
            return vars(module)[name]

        made[f"{node.name} in line {node.lineno}"] = Outcome(declare)
    return vars(module), made


def probes(names, nodes):
    """Values to write: of each kind, fitting and not."""
    values = [
        None,
        True,
        False,
        0,
        7,
        -3,
        2.5,
        "",
        "text",
        [],
        [1],
        ["a", "b"],
        [2.5, 1],
        [[1], [2]],
        [None],
        (),
        (1,),
        (1, 2),
        (1, "a"),
        ("a", 2),
        {},
        {"a": 1},
        {1: 2.0},
        {"a": None},
        pathlib.Path("a/b"),
        pathlib.PurePosixPath("c"),
        qt.QColor(255, 0, 0),
        *nodes,
        [nodes[0]],
        [nodes[0], None],
        (nodes[0], 1),
    ]
    for one in list(names.values()):
        if isinstance(one, type) and issubclass(one, enum.Enum) and one.__module__ == "declared":
            values += list(one)
        if hasattr(one, "allParameters") and not getattr(one, "_is_parameter_node_wrapper", False):
            with contextlib.suppress(Exception):
                values += [one(), [one()]]
    return values


def behavior(declaration, package, nodes):
    """Everything that shows of a scope's classes with one package: [(what was done, what came of it)]."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(None):
            return list(_behavior(declaration, package, nodes))
    finally:
        logging.disable(logging.NOTSET)
        pythonqt.slot_errors.clear()  # of observers: what was taken cannot always be read, such as True for int


def _behavior(declaration, package, nodes):
    names, made = namespace(declaration, package)
    for title, outcome in made.items():
        is_refused = outcome.error is not None
        yield title, "refused" if is_refused else "declared"
        if is_refused or not hasattr(outcome.value, "allParameters"):
            continue
        cls = outcome.value
        is_wrapper = getattr(cls, "_is_parameter_node_wrapper", False)
        if not is_wrapper:
            yield f"{title}()", Outcome(cls).plain
            if Outcome(cls).error is None:
                yield from _writes(title, cls, None, cls, names, nodes)
            continue
        for count in ("first", "second"):
            node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
            wrapped = Outcome(lambda cls=cls, node=node: cls(node))
            yield f"{title} on a {count} node", wrapped.plain
            if wrapped.error is None and count == "first":
                yield f"{title}: content", node_content(node)
                yield f"{title}: cached", [cls.isCached(wrapped.value, name) for name in cls.allParameters]
                yield from _writes(title, lambda value=wrapped.value: value, node, cls, names, nodes)
            slicer.mrmlScene.RemoveNode(node)


def _writes(title, owner, node, cls, names, nodes):
    """Each value into each parameter of one object (or of a new pack each time)."""
    for name in cls.allParameters:
        for value in probes(names, nodes):
            written = owner()
            what = f"{title}.{name} = {plain(value)!r}"
            outcome = Outcome(lambda w=written, n=name, v=value: setattr(w, n, v))
            yield what, "refused" if outcome.error is not None else "taken"
            yield f"{what}: read", Outcome(lambda w=written, n=name: getattr(w, n)).plain
            if node is not None:
                yield f"{what}: content", node_content(node)
