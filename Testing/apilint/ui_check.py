"""Checks a .ui file: classes, properties, enumerators, connections, and the parameters that widgets are bound to."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.parsers import expat

from apilint import facts
from apilint.findings import Finding

PARAMETER = "SlicerParameterName"
# what Qt's form loader sets itself, though they are no properties of the class
LOADER_PROPERTIES = {"QLabel": {"buddy"}}
ELEMENTS = {
    "bool": {"bool"},
    "QString": {"string"},
    "int": {"number"},
    "double": {"double", "number"},
    "QStringList": {"stringlist"},
    "QSize": {"size"},
    "QColor": {"color"},
}


@dataclass
class Element:
    """An XML element with the line that it starts on."""

    tag: str
    attributes: dict[str, str]
    line: int
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def named(self, tag: str) -> list[Element]:
        """Children of that tag."""
        return [child for child in self.children if child.tag == tag]

    def value(self, tag: str) -> str:
        """Text of the first child of that tag, empty without one."""
        return next((child.text.strip() for child in self.named(tag)), "")

    def all(self, tag: str) -> Iterator[Element]:
        """This element and those below it that have the tag."""
        if self.tag == tag:
            yield self
        for child in self.children:
            yield from child.all(tag)


def parse(path: Path) -> Element:
    """The file's root element. Raises expat.ExpatError."""
    root = Element("", {}, 0)
    open_elements = [root]
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, parser.CurrentLineNumber)
        open_elements[-1].children.append(element)
        open_elements.append(element)

    def text(words: str) -> None:
        open_elements[-1].text += words

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: open_elements.pop()
    parser.CharacterDataHandler = text
    parser.Parse(path.read_bytes(), True)
    return root


@cache
def widget_classes(path: Path) -> dict[str, str]:
    """Object names of a .ui file, with the classes of the widgets; layouts and actions have theirs too."""
    root = parse(path)
    found = {item.attributes.get("name", ""): item.attributes.get("class", "") for item in root.all("widget")}
    found |= {item.attributes.get("name", ""): item.attributes.get("class", "") for item in root.all("layout")}
    return found | {item.attributes.get("name", ""): "QAction" for item in root.all("action")}


def form_class(path: Path) -> str:
    """The class of the form's outermost widget."""
    return next((item.attributes.get("class", "") for item in parse(path).all("widget")), "QWidget")


def check_ui(path: Path) -> list[Finding]:
    """Findings in one .ui file."""
    try:
        root = parse(path)
    except expat.ExpatError as error:
        return [Finding(str(path), error.lineno, f"does not parse: {expat.errors.messages[error.code]}")]
    return list(_Form(path, root).findings())


class _Form:
    """One .ui file and the module file that it belongs to."""

    def __init__(self, path: Path, root: Element) -> None:
        self._path, self._root = path, root
        self._custom = {item.value("class"): item for item in root.all("customwidget")}

    def findings(self) -> Iterator[Finding]:
        for line, message in self._problems():
            yield Finding(str(self._path), line, message)

    def _problems(self) -> Iterator[tuple[int, str]]:
        names: dict[str, int] = {}
        for widget in self._root.all("widget"):
            name, kind = widget.attributes.get("name", ""), widget.attributes.get("class", "")
            if name in names:
                yield widget.line, f"the name {name} is used twice (first on line {names[name]})"
            names.setdefault(name, widget.line)
            found = facts.qt_class(kind)
            if found is None or not found.inherits("QWidget"):
                yield widget.line, f"there is no widget class {kind}"
                continue
            if not kind.startswith("Q") and kind not in self._custom:
                yield widget.line, f"{kind} is not declared among the custom widgets"
            for item in widget.named("property"):
                yield from self._property_problems(item, kind, found)
        for kind, item in self._custom.items():
            found = facts.qt_class(kind)
            if found and not found.inherits(item.value("extends")):
                yield item.line, f"{kind} does not extend {item.value('extends')}"
        for item in self._root.all("connection"):
            yield from self._connection_problems(item)
        yield from self._parameter_problems()

    def _property_problems(self, item: Element, kind: str, found: facts.QtClass) -> Iterator[tuple[int, str]]:
        name = item.attributes.get("name", "")
        value = next(iter(item.children), None)
        known = found.property(name)
        if name == PARAMETER or name in LOADER_PROPERTIES.get(kind, ()):
            return
        if known is None:
            yield item.line, f"{kind} has no property {name}"
            return
        if not known.writable:
            yield item.line, f"the property {name} of {kind} cannot be set"
        if value is not None and value.tag not in ELEMENTS.get(known.type, {value.tag}):
            yield item.line, f"the property {name} of {kind} is a {known.type}, not a {value.tag}"
        if value is not None and value.tag in ("enum", "set"):
            for word in value.text.split("|"):
                if not _enumerator_exists(word.strip(), found):
                    yield value.line, f"there is no {word.strip()}"
        if name == "nodeTypes" and value is not None:
            for word in value.named("string"):
                if not facts.vtk_class(word.text.strip()):
                    yield word.line, f"there is no class {word.text.strip()}"

    def _connection_problems(self, item: Element) -> Iterator[tuple[int, str]]:
        classes = widget_classes(self._path)
        for role, kind in (("sender", "signal"), ("receiver", "slot")):
            name, signature = item.value(role), facts.normalized(item.value(kind))
            found = facts.qt_class(classes.get(name, ""))
            if name not in classes:
                yield item.line, f"a connection names {name}, which is not in this file"
            elif found and kind == "signal" and signature not in found.signals():
                yield item.line, f"{found.name} has no signal {signature}"
            elif found and kind == "slot" and signature.split("(")[0] not in found.slots():
                yield item.line, f"{found.name} has no slot {signature}"

    def _parameter_problems(self) -> Iterator[tuple[int, str]]:
        """Parameter names that the module's parameter node does not have."""
        used = [item for item in self._root.all("property") if item.attributes.get("name") == PARAMETER]
        if not used:
            return
        module = self._path.parent.parent.parent / f"{self._path.stem}.py"
        fields = parameter_fields(module) if module.is_file() else set()
        for item in used:
            name = item.value("string")
            if not name:
                yield item.line, f"{PARAMETER} is empty"
            elif name not in fields:
                yield item.line, f"the parameter node of {module.name} has no {name}"


def _enumerator_exists(word: str, found: facts.QtClass) -> bool:
    owner, _, name = word.rpartition("::")
    if not owner:
        return found.has(name)
    parts = owner.split("::")
    known = facts.qt_class(parts[0])
    return known is not None and re.fullmatch(r"\w+", name) is not None and known.has(name)


def parameter_fields(module: Path) -> set[str]:
    """Names of a module's parameter node as SlicerParameterName writes them: `threshold`, or `pack.threshold`."""
    classes = {node.name: node for node in ast.parse(module.read_text(encoding="utf-8")).body
               if isinstance(node, ast.ClassDef)}  # fmt: skip
    found: set[str] = set()
    for node in classes.values():
        if any("parameterNodeWrapper" in ast.unparse(item) for item in node.decorator_list):
            found |= _fields(node, classes, "")
    return found


def _fields(node: ast.ClassDef, classes: dict[str, ast.ClassDef], prefix: str) -> set[str]:
    inner = classes | {item.name: item for item in node.body if isinstance(item, ast.ClassDef)}
    found = set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            found.add(prefix + item.target.id)
            kind = ast.unparse(item.annotation).split(".")[-1]
            if kind in inner and inner[kind] is not node:
                found |= _fields(inner[kind], inner, f"{prefix}{item.target.id}.")
    return found
