"""Makes slicer_api.json, what Slicer's Python shows of its Qt classes, from checkouts of Slicer's and CTK's sources:

    python -m apilint.make_facts SLICER_GIT SLICER_COMMIT OLDEST_COMMIT CTK_GIT CTK_COMMIT

SLICER_GIT and CTK_GIT are git directories; SLICER_COMMIT is the release that the facts describe, OLDEST_COMMIT the
oldest one that the extension supports: names that it lacks are listed under "new". Only declarations in headers are
read: names of classes, properties, signals, slots, invokable methods and published enumerations. What PythonQt does not
publish (a plain public method) is not among them. The committed file describes Slicer 5.12.0; its oldest is 5.10.0.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

FACTS = Path(__file__).parent / "slicer_api.json"
SLICER_FOLDERS = re.compile(
    r"^(Libs/MRML/Widgets|Base/QT(Core|GUI|App)|Modules/Loadable/[A-Za-z]+(/(Widgets|EditorEffects|SubjectHierarchyPlugins))?)"
    r"/[A-Za-z]+\.h$"
)
CTK_FOLDERS = re.compile(r"^Libs/(Core|Widgets|DICOM/Core|DICOM/Widgets|Visualization/VTK/Widgets)/[A-Za-z]+\.h$")
SECTION = re.compile(r"\b(public|protected|private|signals|Q_SIGNALS)\s*(slots|Q_SLOTS)?\s*:(?!:)")
CLASS = re.compile(r"\bclass\s+(?:\w+_EXPORT\s+)?((?:q(?:MRML|Slicer)|ctk)\w+)\s*(?:final\s*)?:\s*public\s+([^{;]*)\{")
PROPERTY = re.compile(r"Q_PROPERTY\(\s*([\w:<>*, ]+?[\s*])(\w+)\s+READ\s+\w+([^)]*)\)")
ENUMERATION = re.compile(r"\benum\s+(?:class\s+)?(\w+)?\s*(?::\s*\w+\s*)?\{([^{}]*)\}")
DECLARATION = re.compile(r"(~?\w+)\s*\((.*)\)\s*(?:const)?\s*(?:override|final)?\s*(?:=\s*\w+)?\s*$", re.DOTALL)
MACROS = re.compile(
    r"\b(Q_OBJECT|Q_DISABLE_COPY|Q_DECLARE_\w+|QVTK_OBJECT|Q_ENUMS?|Q_FLAGS?|Q_CLASSINFO)\b(\s*\([^)]*\))?;?"
)


def classes_in_header(text: str) -> dict[str, dict]:
    """The Qt classes that a header declares: name to {"bases", "properties", "signals", "methods", "enumerators"}."""
    text = _without_comments(text)
    text = re.sub(r"^\s*#.*?(?<!\\)$", "", text, flags=re.MULTILINE)
    found = {}
    for match in CLASS.finditer(text):
        bases = [re.sub(r"\b(public|virtual)\b", "", base).strip() for base in match[2].split(",")]
        found[match[1]] = {"bases": bases, **_members(_block(text, match.end()))}
    return found


def _without_comments(text: str) -> str:
    """The text without comments, and with string and character literals emptied."""
    tokens = r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])'"""
    return re.sub(tokens, lambda match: '""' if match[0][0] in "\"'" else "", text, flags=re.DOTALL)


def _block(text: str, start: int) -> str:
    depth = 1
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start:position]
    return text[start:]


def _members(body: str) -> dict:
    properties: dict[str, list] = {}
    methods: dict[str, str] = {}
    signals: set[str] = set()
    enumerators: set[str] = set()
    for kind, name, rest in PROPERTY.findall(body):
        properties[name] = [re.sub(r"\s+", "", kind), "WRITE" in rest]
    published = {word for words in re.findall(r"\bQ_(?:ENUMS?|FLAGS?)\s*\(([^)]*)\)", body) for word in words.split()}
    published |= {name for flags, name in re.findall(r"Q_DECLARE_FLAGS\((\w+),\s*(\w+)\)", body) if flags in published}
    for name, values in ENUMERATION.findall(body):
        if name in published:
            enumerators |= {value.split("=")[0].strip() for value in values.split(",") if value.strip()}
    body = PROPERTY.sub(";", MACROS.sub(";", ENUMERATION.sub("", body)))
    while re.search(r"\{[^{}]*\}", body):
        body = re.sub(r"\{[^{}]*\}", ";", body)
    parts = SECTION.split(body)
    for access, slots, text in zip(parts[1::3], parts[2::3], parts[3::3]):
        for statement in text.split(";"):
            match = DECLARATION.search(statement.strip())
            if not match or match[1].startswith("~"):
                continue
            if access in ("signals", "Q_SIGNALS"):
                signals |= _signatures(match[1], match[2])
            elif "Q_INVOKABLE" in statement or access == "public" and slots:
                methods[match[1]] = _returned_class(statement.strip()[: match.start()])
    return {
        "properties": properties,
        "signals": sorted(signals),
        "methods": dict(sorted(methods.items())),
        "enumerators": sorted(enumerators),
    }


def _returned_class(words: str) -> str:
    """The class that a method returns a pointer to, else nothing."""
    match = re.search(r"\b((?:q(?:MRML|Slicer)|ctk|vtk|Q[A-Z])\w*)\s*\*\s*$", words)
    return match[1] if match else ""


def _signatures(name: str, arguments: str) -> set[str]:
    """A signal's signatures: one for each number of arguments that its defaults allow."""
    types, optional = [], 0
    for argument in re.split(r",(?![^<]*>)", arguments):
        if argument.strip() and argument.strip() != "void":
            optional += "=" in argument
            types.append(normalized_type(argument.split("=")[0]))
    return {f"{name}({','.join(types[:count])})" for count in range(len(types) - optional, len(types) + 1)}


def normalized_type(argument: str) -> str:
    """A C++ parameter's type as Qt normalizes it in a signature, without the parameter's name."""
    argument = re.sub(r"\b(const|struct|class)\b|&", " ", argument).strip()
    named = re.fullmatch(r"(unsigned \w+|[\w:]+(?:\s*<.*>)?)\s*(\**)\s*(\w+)?", argument)
    return named[1].replace(" ", "") + named[2] if named else re.sub(r"\s+", "", argument)


def decorations(text: str) -> dict[str, set[str]]:
    """Methods that a PythonQt decorator class adds: class name to method names."""
    text = _without_comments(text)
    found: dict[str, set[str]] = {}
    for name, of in re.findall(r"\b(\w+)\s*\(\s*((?:q(?:MRML|Slicer)|ctk)\w+)\s*\*", text):
        if not name.startswith(("new_", "delete_", "static_")):
            found.setdefault(of, set()).add(name)
    for of, name in re.findall(r"\bstatic_((?:q(?:MRML|Slicer)|ctk)[A-Za-z0-9]+)_(\w+)\s*\(", text):
        found.setdefault(of, set()).add(name)
    return found


class Sources:
    """Files of one commit of a git directory."""

    def __init__(self, git: str, commit: str) -> None:
        self._git, self._commit = git, commit

    def paths(self) -> list[str]:
        return self._run("ls-tree", "-r", "--name-only", self._commit).splitlines()

    def text(self, path: str) -> str:
        return self._run("show", f"{self._commit}:{path}")

    def _run(self, *words: str) -> str:
        command = ["git", "-C", self._git, *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode("utf-8", "replace")


def read_classes(sources: Sources, folders: re.Pattern) -> dict[str, dict]:
    """The Qt classes of all headers in the folders, with what decorators add."""
    classes: dict[str, dict] = {}
    added: dict[str, set[str]] = {}
    for path in sources.paths():
        if path.endswith("PythonQtDecorators.h"):
            for name, methods in decorations(sources.text(path)).items():
                added.setdefault(name, set()).update(methods)
        elif folders.match(path) and not path.endswith("_p.h"):
            classes |= classes_in_header(sources.text(path))
    for name, methods in added.items():
        if name.startswith("ctk"):  # a namespace that only decorators publish
            classes.setdefault(name, {"bases": [], "properties": {}, "signals": [], "methods": {}, "enumerators": []})
        if name in classes:
            classes[name]["methods"] = dict.fromkeys(sorted(methods), "") | classes[name]["methods"]
    return classes


def read_python(sources: Sources) -> dict:
    """The Python side: names that each submodule of `slicer` defines, Slicer's modules, parameters of slicer.util's
    functions."""
    defined: dict[str, set[str]] = {}
    modules, functions = set(), {}
    for path in sources.paths():
        if match := re.match(r"^Base/Python/slicer/(\w+)(?:\.py|/\w+\.py)$", path):
            if match[1] not in ("__init__", "tests", "release"):
                tree = ast.parse(sources.text(path))
                defined.setdefault(match[1], set()).update(_defined_names(tree))
                if match[1] == "util":
                    found = [item for item in tree.body if isinstance(item, ast.FunctionDef)]
                    functions = {item.name: _parameters(item) for item in found}
        elif match := re.match(r"^Modules/(?:Loadable|Scripted|CLI)/(\w+)/", path):
            modules.add(match[1])
    submodules = {name: sorted(found) for name, found in sorted(defined.items())}
    return {"submodules": submodules, "modules": sorted(modules), "util": functions}


def _defined_names(tree: ast.Module) -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return found - {"__all__"}


def _parameters(node: ast.FunctionDef) -> list[str]:
    return [item.arg for item in node.args.posonlyargs + node.args.args + node.args.kwonlyargs]


def names(classes: dict[str, dict], python: dict) -> set[str]:
    """Every name of the facts, for the comparison of two releases."""
    found = {f"slicer.{name}" for name in python["submodules"]}
    found |= {f"slicer.{name}.{member}" for name, members in python["submodules"].items() for member in members}
    for name, parameters in python["util"].items():
        found |= {f"slicer.util.{name}({parameter})" for parameter in parameters}
    for name, facts in classes.items():
        found.add(name)
        for kind in ("properties", "signals", "methods", "enumerators"):
            found |= {f"{name}.{member}" for member in facts[kind]}
    return found


def main(slicer_git: str, slicer_commit: str, oldest_commit: str, ctk_git: str, ctk_commit: str) -> None:
    """Read the checkouts and write slicer_api.json, one class a line."""
    newest, oldest = Sources(slicer_git, slicer_commit), Sources(slicer_git, oldest_commit)
    slicer_classes, python = read_classes(newest, SLICER_FOLDERS), read_python(newest)
    new = names(slicer_classes, python) - names(read_classes(oldest, SLICER_FOLDERS), read_python(oldest))
    classes = slicer_classes | read_classes(Sources(ctk_git, ctk_commit), CTK_FOLDERS)
    lines = [f'"submodules": {json.dumps(python["submodules"])}', f'"modules": {json.dumps(python["modules"])}']
    lines.append(f'"new": {json.dumps(sorted(new))}')
    rows = [f"{json.dumps(name)}: {json.dumps(classes[name])}" for name in sorted(classes)]
    lines.append('"classes": {\n' + ",\n".join(rows) + "\n}")
    FACTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{FACTS}: {len(classes)} classes, {len(new)} new names")


if __name__ == "__main__":
    main(*sys.argv[1:])
