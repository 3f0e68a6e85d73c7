"""Checks one Python file: every use of slicer, qt, ctk and vtk, and of objects whose class can be told from the code.

Types are inferred where that is simple: from constructor calls, annotations, `self.ui.NAME` through the .ui file,
AddNewNodeByClass with a literal class name, and what known methods return. A variable that is given objects of two
classes has no type, and what has no type is not checked: the lint stays silent rather than wrong.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from apilint import facts
from apilint.findings import Finding
from apilint.ui_check import form_class, widget_classes

NAMESPACES = {"slicer", "qt", "ctk", "vtk", "slicer.util", "slicer.modules"}
BY_CLASS_NAME = {"AddNewNodeByClass", "CreateNodeByClass", "GetFirstNodeByClass", "GetNodesByClass", "getNodesByClass"}
BY_MODULE_NAME = {"getModule", "getModuleGui", "getModuleWidget", "getModuleLogic", "selectModule"}
UTIL_RETURNS = {
    "loadVolume": "vtkMRMLScalarVolumeNode",
    "loadLabelVolume": "vtkMRMLLabelMapVolumeNode",
    "loadSegmentation": "vtkMRMLSegmentationNode",
    "loadModel": "vtkMRMLModelNode",
    "loadTable": "vtkMRMLTableNode",
    "loadTransform": "vtkMRMLTransformNode",
    "addVolumeFromArray": "vtkMRMLScalarVolumeNode",
}
DERIVED = "or derived"
_VTK_MEMBER = re.compile(r"vtk[A-Z]")


@dataclass(frozen=True)
class Type:
    """What an expression is.

    `kind` is one of namespace, class, object, method, function, self (an object of a class in this file), ui (the
    widgets of a .ui file); `name` says which. `member` is a method's name; an object with one is of a class that may
    derive from `name`: of the module `member`, or DERIVED.
    """

    kind: str
    name: str
    member: str = ""


def check_python(path: Path) -> list[Finding]:
    """Findings in one file; a file that does not parse is one finding."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        return [Finding(str(path), error.lineno or 1, f"does not parse: {error.msg}")]
    checker = _Checker(path, tree)
    checker.visit(tree)
    return sorted(set(checker.findings))


class _Names:
    """The types of names in one scope, told from everything that binds them there."""

    def __init__(self, body: list[ast.stmt], outer: _Names | None, arguments: ast.arguments | None = None) -> None:
        self.outer = outer
        self.bindings: dict[str, list[ast.expr | Type | None]] = {}
        self.annotations: dict[str, ast.expr] = {}
        if arguments:
            for item in arguments.posonlyargs + arguments.args + arguments.kwonlyargs:
                self.bindings[item.arg] = [None]
                if item.annotation:
                    self.annotations[item.arg] = item.annotation
            for extra in (arguments.vararg, arguments.kwarg):
                if extra:
                    self.bindings[extra.arg] = [None]
        for node in _own_nodes(body):
            self._bind(node)

    def _bind(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind_target(target, node.value)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            self.annotations[node.target.id] = node.annotation
            self._bind_target(node.target, None)
        elif isinstance(node, ast.NamedExpr):
            self._bind_target(node.target, node.value)
        elif isinstance(node, ast.For | ast.comprehension | ast.AugAssign):
            self._bind_target(node.target, None)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            self._bind_target(node.optional_vars, node.context_expr)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            self.bindings.setdefault(node.name, []).append(None)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                bound = alias.asname or alias.name.split(".")[0]
                known = (alias.name if alias.asname else bound) in NAMESPACES
                name = alias.name if alias.asname else bound
                self.bindings.setdefault(bound, []).append(Type("namespace", name) if known else None)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                self.bindings.setdefault(alias.asname or alias.name, []).append(_imported(node.module, alias.name))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            self.bindings.setdefault(node.name, []).append(None)

    def _bind_target(self, target: ast.expr, value: ast.expr | None) -> None:
        if isinstance(target, ast.Name):
            self.bindings.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple | ast.List):
            for item in target.elts:
                self._bind_target(item, None)
        elif isinstance(target, ast.Starred):
            self._bind_target(target.value, None)

    def find(self, name: str) -> _Names | None:
        """The scope that binds a name, from here outward."""
        if name in self.bindings:
            return self
        return self.outer.find(name) if self.outer else None


def _own_nodes(body: list[ast.stmt]):
    """Nodes of a scope without those of the functions and classes inside it."""
    pending: list[ast.AST] = list(body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            pending += ast.iter_child_nodes(node)


def _imported(module: str | None, name: str) -> Type | None:
    if module in ("slicer", "qt", "ctk") or (module or "").split(".")[0] in ("vtk", "vtkmodules"):
        namespace = "vtk" if module not in ("slicer", "qt", "ctk") else module
        if f"{namespace}.{name}" in NAMESPACES:
            return Type("namespace", f"{namespace}.{name}")
        if facts.vtk_class(name) or facts.qt_class(name):
            return Type("class", name)
    if module == "slicer.util":
        return Type("function", name)
    return None


class _Checker(ast.NodeVisitor):
    """Walks a file; `_names` is the scope at hand, `_class` the class, `_guarded` the depth of try bodies."""

    def __init__(self, path: Path, tree: ast.Module) -> None:
        self.findings: list[Finding] = []
        self._path, self._tree = path, tree
        self._names = _Names(tree.body, None)
        self._classes = {node.name: _Class(node) for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
        self._class: _Class | None = None
        self._guarded = 0
        self._inferring: set[int] = set()

    def _report(self, node: ast.AST, message: str) -> None:
        self.findings.append(Finding(str(self._path), node.lineno, message))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for item in [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]:
            self.visit(item)
        outer, self._names = self._names, _Names(node.body, self._names, node.args)
        is_method = self._class is not None and node in self._class.node.body
        if is_method and node.args.args and not _has_decorator(node, "staticmethod", "classmethod"):
            self._names.bindings[node.args.args[0].arg] = [Type("self", self._class.node.name)]
        for item in node.body:
            self.visit(item)
        self._names = outer

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        outer, self._names = self._names, _Names([], self._names, node.args)
        self.visit(node.body)
        self._names = outer

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for item in [*node.decorator_list, *node.bases]:
            self.visit(item)
        outer, self._class = self._class, self._classes[node.name]
        for item in node.body:
            self.visit(item)
        self._class = outer

    def visit_Try(self, node: ast.Try) -> None:
        self._guarded += bool(node.handlers)
        for item in node.body:
            self.visit(item)
        self._guarded -= bool(node.handlers)
        for item in [*node.handlers, *node.orelse, *node.finalbody]:
            self.visit(item)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            head, _, rest = alias.name.partition(".")
            if head == "slicer" and rest:
                self._check_submodule(node, rest)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        if node.level:
            return
        for alias in node.names:
            if module == "slicer":
                if not facts.slicer_has(alias.name):
                    self._report(node, f"slicer has no {alias.name}")
                self._check_age(node, f"slicer.{alias.name}")
            elif module.startswith("slicer."):
                self._check_submodule_name(node, module.removeprefix("slicer."), alias.name)
            elif module in ("qt", "ctk"):
                if not facts.belongs(module, alias.name):
                    self._report(node, f"{module} has no {alias.name}")
            elif module.split(".")[0] in ("vtk", "vtkmodules"):
                self._check_vtk_import(node, alias.name)
        if module.split(".")[0] in ("PyQt5", "PyQt6", "PySide2", "PySide6", "slicerhost", "slicer_core"):
            self._report(node, f"{module} is not in Slicer")

    def _check_vtk_import(self, node: ast.AST, name: str) -> None:
        if _VTK_MEMBER.match(name) and not (facts.vtk_class(name) or _in_vtk(name)):
            self._report(node, f"vtk has no {name}")

    def _check_submodule(self, node: ast.AST, name: str) -> None:
        if facts.submodule_names(name.split(".")[0]) is None:
            self._report(node, f"slicer has no submodule {name}")
        self._check_age(node, f"slicer.{name.split('.')[0]}")

    def _check_submodule_name(self, node: ast.AST, submodule: str, name: str) -> None:
        names = facts.submodule_names(submodule.split(".")[0])
        if names is None:
            self._report(node, f"slicer has no submodule {submodule}")
        elif name != "*" and name not in names:
            self._report(node, f"slicer.{submodule} has no {name}")
        self._check_age(node, f"slicer.{submodule.split('.')[0]}", f"slicer.{submodule}.{name}")

    def _check_age(self, node: ast.AST, *names: str) -> None:
        for name in names:
            if not self._guarded and facts.is_new(name):
                self._report(node, f"{name} is not in the oldest supported Slicer: use it in a try statement")

    def _infer(self, node: ast.AST | None, names: _Names | None = None) -> Type | None:
        """The type of an expression, None where it is not known."""
        names = names or self._names
        if node is None or id(node) in self._inferring:
            return None
        self._inferring.add(id(node))
        try:
            if isinstance(node, ast.Name):
                return self._type_of_name(node.id, names)
            if isinstance(node, ast.Attribute):
                base = self._infer(node.value, names)
                return self._member(base, node.attr) if base else None
            if isinstance(node, ast.Call):
                return self._type_of_call(node, names)
            if isinstance(node, ast.IfExp):
                return _agreeing([self._infer(node.body, names), self._infer(node.orelse, names)])
            return None
        finally:
            self._inferring.discard(id(node))

    def _type_of_name(self, name: str, names: _Names) -> Type | None:
        scope = names.find(name)
        if scope is None:
            return None
        if name in scope.annotations:
            return self._annotated(scope.annotations[name])
        bound = [item for item in scope.bindings[name] if not _is_none(item)]
        return _agreeing([item if isinstance(item, Type) else self._infer(item, scope) for item in bound])

    def _annotated(self, node: ast.expr | None) -> Type | None:
        """The type of values that an annotation describes."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            try:
                node = ast.parse(node.value, mode="eval").body
            except SyntaxError:
                return None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            sides = [side for side in (node.left, node.right) if not _is_none(side)]
            return self._annotated(sides[0]) if len(sides) == 1 else None
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return self._annotated(inner) if node.value.id in ("Optional", "Annotated") else None
        if isinstance(node, ast.Name) and node.id in self._classes:
            return Type("self", node.id)
        found = self._infer(node, _outermost(self._names))
        return Type("object", found.name) if found and found.kind == "class" else None

    def _type_of_call(self, node: ast.Call, names: _Names) -> Type | None:
        if isinstance(node.func, ast.Name) and node.func.id in self._classes and not names.find(node.func.id).outer:
            return Type("self", node.func.id)
        function = self._infer(node.func, names)
        if function is None:
            return None
        if function.kind == "class":
            return Type("object", function.name)
        if function.kind == "function":
            return self._returned_by_util(function.name, node)
        if function.kind == "method":
            return self._returned_by_method(function, node)
        return None

    def _returned_by_util(self, name: str, node: ast.Call) -> Type | None:
        if name == "childWidgetVariables":
            file = self._ui_file()
            return Type("ui", str(file)) if file else None
        if name == "loadUI":
            file = self._ui_file()
            return Type("object", form_class(file)) if file else None
        if name == "addVolumeFromArray":
            words = [item.value for item in node.keywords if item.arg == "nodeClassName"] + node.args[3:4]
            return _object_named(words[0]) if words else Type("object", UTIL_RETURNS[name])
        return Type("object", UTIL_RETURNS[name]) if name in UTIL_RETURNS else None

    def _returned_by_method(self, function: Type, node: ast.Call) -> Type | None:
        if function.member in ("AddNewNodeByClass", "CreateNodeByClass", "GetFirstNodeByClass") and node.args:
            return _object_named(node.args[0])
        if function.name.startswith("slicer.modules."):
            logic = facts.module_logic(function.name.removeprefix("slicer.modules."))
            return Type("object", logic.__name__) if logic and function.member == "logic" else None
        owner = facts.vtk_class(function.name)
        if owner:
            name = facts.vtk_method(owner, function.member).returns
            return Type("object", name, DERIVED) if name and facts.vtk_class(name) else None
        name = facts.qt_class(function.name).returned(function.member)
        return Type("object", name, DERIVED) if name and (facts.qt_class(name) or facts.vtk_class(name)) else None

    def _member(self, base: Type, name: str) -> Type | None:
        """The type of `base.name`."""
        if base.kind == "namespace":
            return _member_of_namespace(base.name, name)
        if base.kind == "ui":
            widget = widget_classes(Path(base.name)).get(name)
            return Type("object", widget) if widget and facts.qt_class(widget) else None
        if base.kind == "self":
            return self._member_of_class(base.name, name)
        if base.kind in ("object", "class"):
            if base.name == "qSlicerAbstractModule" and base.member and name == "logic":
                return Type("method", f"slicer.modules.{base.member}", name)
            qt = facts.qt_class(base.name)
            if qt and (qt.property(name) or f"{name}(" in " ".join(qt.signals())):
                return None
            known = qt.has(name) if qt else hasattr(facts.vtk_class(base.name), name)
            return Type("method", base.name, name) if known else None
        return None

    def _member_of_class(self, owner: str, name: str) -> Type | None:
        facts_of_class = self._classes[owner]
        if name in facts_of_class.annotations:
            return self._annotated(facts_of_class.annotations[name])
        found = []
        for function, value in facts_of_class.assignments.get(name, ()):
            names = _Names(function.body, _outermost(self._names), function.args)
            names.bindings[function.args.args[0].arg] = [Type("self", owner)]
            found.append(self._infer(value, names))
        return _agreeing(found)

    def _ui_file(self) -> Path | None:
        """The .ui file that the class at hand loads by a literal name."""
        for node in ast.walk(self._class.node if self._class else self._tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".ui"):
                for folder in (self._path.parent, *self._path.parents):
                    if (folder / "Resources" / node.value).is_file():
                        return folder / "Resources" / node.value
        return None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        base = self._infer(node.value)
        if base is None:
            return
        problem = self._problem_of_store(base, node) or self._problem_of_member(base, node.attr)
        if problem:
            self._report(node, problem)
        if base.kind in ("namespace", "object", "class"):
            self._check_age(node, f"{base.name}.{node.attr}")

    def _problem_of_store(self, base: Type, node: ast.Attribute) -> str | None:
        if isinstance(node.ctx, ast.Load) or base.kind != "object":
            return None
        qt = facts.qt_class(base.name)
        if base.member or qt and not qt.is_object:
            return None
        if qt is None:
            exists = hasattr(facts.vtk_class(base.name), node.attr)
            return None if exists else f"{base.name} has no {node.attr} to set"
        found = qt.property(node.attr)
        if found is None and node.attr not in ("objectName", "name"):
            return f"{base.name} has no property {node.attr} to set"
        return f"the property {node.attr} of {base.name} cannot be set" if found and not found.writable else None

    def _problem_of_member(self, base: Type, name: str) -> str | None:
        if base.kind == "namespace":
            return self._problem_in_namespace(base.name, name)
        if base.kind == "ui":
            if name not in widget_classes(Path(base.name)):
                return f"{Path(base.name).name} has no widget {name}"
        elif base.kind in ("object", "class"):
            qt = facts.qt_class(base.name)
            exists = qt.has(name) if qt else hasattr(facts.vtk_class(base.name), name)
            exists = exists or bool(base.member) and facts.derived_has(base.name, name)
            if not exists and not name.startswith("__"):
                return f"{base.name} has no {name}"
        return None

    def _problem_in_namespace(self, namespace: str, name: str) -> str | None:
        if name.startswith("__"):
            return None
        if namespace == "slicer":
            exists = facts.slicer_has(name)
        elif namespace == "slicer.util":
            exists = name in facts.submodule_names("util")
        elif namespace == "slicer.modules":
            known = facts.modules() | _own_modules(self._path)
            names = {item.lower() for item in known} | facts.MODULE_REGISTRIES
            exists = name in names or name.removesuffix("Instance").removesuffix("Widget") in known
        elif namespace == "vtk":
            exists = facts.vtk_class(name) is not None or _in_vtk(name)
        else:
            exists = facts.belongs(namespace, name)
        return None if exists else f"{namespace} has no {name}"

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        function = self._infer(node.func)
        self._check_literal_names(node)
        if function and function.kind == "function":
            self._check_util_call(node, function.name)
        elif function and function.kind == "method":
            self._check_vtk_count(node, function)
        if not isinstance(node.func, ast.Attribute):
            return
        base = self._infer(node.func.value)
        if base and base.kind == "object" and (qt := facts.qt_class(base.name)):
            self._check_no_property(node, qt)
        if node.func.attr in ("connect", "disconnect"):
            self._check_connection(node, base)

    def _check_no_property(self, node: ast.Call, qt: facts.QtClass) -> None:
        if qt.property(node.func.attr):
            self._report(node, f"{node.func.attr} of {qt.name} is a property: leave out the parentheses")

    def _check_literal_names(self, node: ast.Call) -> None:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        literal = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
        if not isinstance(literal, str):
            return
        if name in BY_CLASS_NAME and literal.startswith("vtk") and not facts.vtk_class(literal):
            self._report(node, f"there is no class {literal}")
        known = {item.lower() for item in facts.modules() | _own_modules(self._path)}
        if name in BY_MODULE_NAME and literal.lower() not in known:
            self._report(node, f"Slicer has no module {literal}")

    def _check_util_call(self, node: ast.Call, name: str) -> None:
        function = facts.util_function(name)
        if function is None or any(isinstance(item, ast.Starred) for item in node.args):
            return
        keywords = [item.arg for item in node.keywords]
        if None not in keywords:
            try:
                inspect.signature(function).bind(*node.args, **dict.fromkeys(keywords))
            except TypeError as error:
                self._report(node, f"slicer.util.{name}: {error}")
        self._check_age(node, *(f"slicer.util.{name}({keyword})" for keyword in keywords))

    def _check_vtk_count(self, node: ast.Call, function: Type) -> None:
        owner = facts.vtk_class(function.name)
        if owner is None or node.keywords or any(isinstance(item, ast.Starred) for item in node.args):
            return
        counts = facts.vtk_method(owner, function.member).counts
        if counts and len(node.args) not in counts and self._infer(node.func.value).kind == "object":
            wanted = " or ".join(map(str, sorted(counts)))
            self._report(node, f"{function.name}.{function.member} takes {wanted} arguments, not {len(node.args)}")

    def _check_connection(self, node: ast.Call, base: Type | None) -> None:
        first = node.args[0] if node.args else None
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            signal = facts.normalized(first.value)
            qt = facts.qt_class(base.name) if base and base.kind == "object" else None
            known = qt.signals() if qt else facts.all_signals()
            if signal not in known:
                same = sorted(item for item in known if item.split("(")[0] == signal.split("(")[0])
                hint = f"; there is {', '.join(same)}" if same else ""
                self._report(node, f"{qt.name if qt else 'Qt'} has no signal {first.value}{hint}")
            elif qt:
                self._check_age(node, f"{qt.name}.{signal}")
        elif isinstance(node.func.value, ast.Attribute) and len(node.args) <= 1:
            name = node.func.value.attr
            owner = self._infer(node.func.value.value)
            qt = facts.qt_class(owner.name) if owner and owner.kind == "object" else None
            if name in {item.split("(")[0] for item in (qt.signals() if qt else facts.all_signals())}:
                self._report(
                    node, f'connects {name} without its signature: say object.connect("{name}(...)", function)'
                )


class _Class:
    """What a class of the file says of its attributes: annotations, and every assignment to `self.NAME`."""

    def __init__(self, node: ast.ClassDef) -> None:
        self.node = node

    @cached_property
    def annotations(self) -> dict[str, ast.expr]:
        found = {}
        for node in ast.walk(self.node):
            if isinstance(node, ast.AnnAssign):
                if isinstance(node.target, ast.Name) and node in self.node.body:
                    found[node.target.id] = node.annotation
                elif _is_self(node.target):
                    found[node.target.attr] = node.annotation
        return found

    @cached_property
    def assignments(self) -> dict[str, list[tuple[ast.FunctionDef, ast.expr | None]]]:
        found: dict[str, list[tuple[ast.FunctionDef, ast.expr | None]]] = {}
        for function in self.node.body:
            if isinstance(function, ast.FunctionDef) and function.args.args:
                for node in ast.walk(function):
                    if isinstance(node, ast.Assign):
                        self._collect(found, function, node)
        return found

    def _collect(self, found: dict, function: ast.FunctionDef, node: ast.Assign) -> None:
        for target in node.targets:
            if _is_self(target) and not _is_none(node.value):
                found.setdefault(target.attr, []).append((function, node.value))
            elif isinstance(target, ast.Tuple):
                for item in target.elts:
                    if _is_self(item):
                        found.setdefault(item.attr, []).append((function, None))


def _member_of_namespace(namespace: str, name: str) -> Type | None:
    full = f"{namespace}.{name}"
    if full in NAMESPACES:
        return Type("namespace", full)
    if namespace == "slicer" and facts.RUNTIME_NAMES.get(name):
        return Type("object", facts.RUNTIME_NAMES[name])
    if namespace == "slicer.util":
        return Type("function", name)
    if namespace == "slicer.modules":
        if name.endswith(("Instance", "Widget")) or name in facts.MODULE_REGISTRIES:
            return None
        return Type("object", "qSlicerAbstractModule", name)
    is_class = facts.vtk_class(name) if namespace in ("slicer", "vtk") else None
    return Type("class", name) if is_class or facts.qt_class(name) else None


def _own_modules(path: Path) -> set[str]:
    """Names of the extension's modules: folders around the file that hold a module file of their own name."""
    beside = (item for folder in path.resolve().parents[:3] for item in folder.parent.iterdir() if item.is_dir())
    return {item.name for item in beside if (item / f"{item.name}.py").is_file()}


def _in_vtk(name: str) -> bool:
    """Whether `vtk.NAME` exists: a class, a constant, a function, or one of its C++ modules."""
    import vtk

    return hasattr(vtk, name) or importlib.util.find_spec(f"vtkmodules.{name}") is not None


def _agreeing(types: list[Type | None]) -> Type | None:
    return types[0] if types and all(item == types[0] for item in types) else None


def _object_named(node: ast.expr) -> Type | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and facts.vtk_class(node.value):
        return Type("object", node.value)
    return None


def _outermost(names: _Names) -> _Names:
    while names.outer:
        names = names.outer
    return names


def _is_none(node: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _has_decorator(node: ast.FunctionDef, *names: str) -> bool:
    return any(isinstance(item, ast.Name) and item.id in names for item in node.decorator_list)
