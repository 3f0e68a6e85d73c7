"""Starts the Slicer that the tests are about: the one that `$SLICER` names, or the embedded one."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKS = Path(__file__).resolve().parent / "slicer_checks"
MODULE_FOLDERS = (ROOT / "FlareSegment", ROOT / "FlareSegmentTraining")
SECONDS = 3600 if os.environ.get("FLARE_CORRECTING") == "full" else 900
_SUSPICIOUS = re.compile(
    r"Traceback|[Ee]rror|ERR\||[Ww]arning|WARN\||[Ff]ail(ed|s)? |CRITICAL|Can't|cannot|QObject::|QLayout|not found"
)
_CHANGING = re.compile(r"0x[0-9a-fA-F]+|\d+|/tmp/\S+")
_COLORS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Ending:
    """How a start of Slicer ended: its status, and what it wrote on both streams."""

    status: int
    log: str

    def suspicious(self) -> list[str]:
        """Lines of the log that tell of errors or warnings."""
        lines = _COLORS.sub("", self.log).splitlines()
        return [line for line in lines if _SUSPICIOUS.search(line) and not line.startswith(("== ", "imported:"))]


@dataclass
class SlicerUnderTest:
    """A Slicer that can be started; `program` is None for the embedded one."""

    program: Path | None = None
    _alone: dict[bool, Ending] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the table's column."""
        return "stand-in" if self.program is None else "real"

    def command(self, *options: object) -> list[str]:
        """The command line with Slicer's options."""
        start = [sys.executable, "-m", "slicerhost"] if self.program is None else [str(self.program)]
        if self.program is not None and sys.platform.startswith("linux") and not os.environ.get("DISPLAY"):
            start = [shutil.which("xvfb-run") or "xvfb-run", "-a", "-s", "-screen 0 1600x1200x24", *start]
        return [*start, "--no-splash", "--disable-settings", *map(str, options)]

    def run(self, *options: object, output: Path, cwd: Path | None = None) -> Ending:
        """Start it and wait for its end; `output` is the folder for what checks write."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
        environment.update(FLARE_CHECK_OUTPUT=str(output), PYTHONNOUSERSITE="1")
        if hasattr(os, "nice"):  # Slicer would make everything wait for whatever else this computer does
            environment.setdefault("SLICER_BACKGROUND_THREAD_PRIORITY", str(os.nice(0)))
        if self.program is None:
            environment.update(PYTHONPATH=str(ROOT / "Testing"))
            if not os.environ.get("DISPLAY"):
                environment.update(QT_QPA_PLATFORM="offscreen")
        elif not os.environ.get("DISPLAY"):
            environment.pop("QT_QPA_PLATFORM", None)  # Slicer's views need a display: xvfb-run brings one
        output.mkdir(parents=True, exist_ok=True)
        process = subprocess.run(
            self.command(*options),
            env=environment,
            cwd=cwd or output,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=SECONDS,
        )
        (output / "log.txt").write_text(process.stdout, encoding="utf-8")
        return Ending(process.returncode, process.stdout)

    def alone(self, with_window: bool, output: Path) -> Ending:
        """A start and end without our modules; says on a line `imported:` which packages Slicer itself imports."""
        if with_window not in self._alone:
            window = [] if with_window else ["--no-main-window"]
            code = "import sys; slicer.app.processEvents(); print('imported:', *sys.modules); slicer.util.exit(0)"
            folder = output / ("alone with window" if with_window else "alone")
            self._alone[with_window] = self.run(*window, "--python-code", code, output=folder)
        return self._alone[with_window]

    def ours(self, ending: Ending, with_window: bool, output: Path) -> list[str]:
        """Suspicious lines that this Slicer does not write without our modules too; the embedded one writes none."""
        if self.program is None:
            return ending.suspicious()
        known = {_CHANGING.sub("#", line) for line in self.alone(with_window, output).suspicious()}
        return [line for line in ending.suspicious() if _CHANGING.sub("#", line) not in known]


def slicer_of_environment() -> SlicerUnderTest:
    """What `$SLICER` names; the embedded Slicer where it is not set."""
    given = os.environ.get("SLICER", "")
    return SlicerUnderTest(Path(given).resolve() if given else None)


def check_names(module: str) -> list[str]:
    """Names of the checks of a module, `Class.test`, as they stand in the file: it can be imported in Slicer only."""
    tree = ast.parse((CHECKS / f"{module}.py").read_text(encoding="utf-8"))
    return [
        f"{node.name}.{item.name}"
        for node in tree.body
        if isinstance(node, ast.ClassDef)
        for item in node.body
        if isinstance(item, ast.FunctionDef) and item.name.startswith("test_")
    ]


def modules_options() -> list[object]:
    """Slicer's options that load our modules."""
    return ["--additional-module-paths", *MODULE_FOLDERS]


def run_checks(slicer: SlicerUnderTest, module: str, output: Path) -> tuple[Ending, dict[str, dict]]:
    """Run a module of checks; returns the ending and the recorded rows by check."""
    results = output / "results.jsonl"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    script = ["--python-script", CHECKS.parent / "run_in_slicer.py", "--ignore-rest", module, results]
    ending = slicer.run(*modules_options(), *script, output=output)
    lines = results.read_text(encoding="utf-8").splitlines() if results.is_file() else []
    rows = [json.loads(line) for line in lines]
    return ending, {row["check"].split(".", 2)[2]: row for row in rows}
