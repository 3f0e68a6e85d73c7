"""Make the locks after a change of a requirements-*.in: `python Testing/Locks/make.py` (needs uv, packaging, pip 26).

For each requirements-NAME.in, requirements-NAME.txt with every package that it leads to and the hashes of its files for
all systems. What requirements-run.txt has is not repeated in those that are installed on top of it. A lock that is
there already keeps its versions where they still fit: remove it first to take the newest ones.

metadata.json has, for every package pinned, what its files ask for, so that a test can prove the locks closed without
network. pip looks it up for each system and Python that flare.py supports, and fails where a package has no file.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement

LOCKS = Path(__file__).resolve().parent
METADATA = LOCKS / "metadata.json"
LAYERS = ("check", "cohort", "video")  # each on top of the lock "run", and of the same versions as those before it
TORCH = LOCKS / "requirements-torch.txt"
PYTHONS = ("3.11", "3.12", "3.13")
GLIBC = [f"manylinux_2_{minor}_x86_64" for minor in range(28, 4, -1)]
# pip's tags of each supported system, and what its environment markers are there
SYSTEMS = (
    (
        [*GLIBC, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64", "linux_x86_64"],
        {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    ),
    (
        ["macosx_14_0_arm64"],
        {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64", "os_name": "posix"},
    ),
    (
        ["win_amd64"],
        {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64", "os_name": "nt"},
    ),
)


def lock(name: str) -> Path:
    """Where a lock lies."""
    return LOCKS / f"requirements-{name}.txt"


def requirements(path: Path) -> list[Requirement]:
    """The pins of a lock, with their markers, without their hashes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line.rstrip("\\ ")) for line in lines if line and line[0] not in "# "]


def environment(python: str, system: dict[str, str]) -> dict[str, str]:
    """The environment markers of CPython of one version on one system."""
    same = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {"python_version": python, "python_full_version": f"{python}.0", **same, **system}


def make_lock(name: str, constraints: list[Path], left_out: set[str]) -> None:
    """requirements-NAME.txt of requirements-NAME.in: everything that it leads to, fitting the locks `constraints`."""
    command = ["uv", "pip", "compile", "--quiet", f"requirements-{name}.in", "--output-file", lock(name).name]
    command += ["--universal", "--python-version", PYTHONS[0], "--generate-hashes", "--no-header"]
    command += ["--no-strip-extras"]  # pip takes a pin without an extra for another package than one with it
    command += [word for path in constraints for word in ("--constraint", path.name)]
    command += [word for package in sorted(left_out) for word in ("--no-emit-package", package)]
    subprocess.run(command, cwd=LOCKS, check=True)
    text = lock(name).read_text(encoding="utf-8")
    body = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))
    head = f"# Made of requirements-{name}.in by Testing/Locks/make.py: every package with the hashes of its files.\n"
    lock(name).write_text(head + body, encoding="utf-8")


def look_up(pins: list[Requirement], python: str, tags: list[str], markers: dict[str, str]) -> dict[str, list[str]]:
    """{"name==version": what the file for one system and Python asks for}; ends where there is no such file."""
    there = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment(python, markers))]
    with tempfile.TemporaryDirectory() as folder:
        wanted, report = Path(folder) / "wanted.txt", Path(folder) / "report.json"
        wanted.write_text("".join(f"{pin.name}{pin.specifier}\n" for pin in there), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        command += ["--only-binary=:all:", "--target", folder, "--python-version", python, "-r", str(wanted)]
        command += ["--report", str(report), *(f"--platform={tag}" for tag in tags)]
        subprocess.run(command, check=True)
        items = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {
        # a version's local part ("+cpu") names a build of it
        f"{canonical(item['name'])}=={item['version'].split('+')[0]}": item.get("requires_dist", [])
        for item in items
    }


def canonical(name: str) -> str:
    """A package's name as the locks write it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    """All locks and the metadata."""
    make_lock("uv", [], set())
    make_lock("run", [], set())
    run = {pin.name for pin in requirements(lock("run"))}
    done = [lock("run")]
    for name in LAYERS:
        make_lock(name, done, run)
        done.append(lock(name))
    pins = {str(pin): pin for path in (*done, lock("uv"), TORCH) for pin in requirements(path)}
    found: dict[str, set[str]] = {}
    for tags, markers in SYSTEMS:
        for python in PYTHONS:
            for pin, wants in look_up(list(pins.values()), python, tags, markers).items():
                found.setdefault(pin, set()).update(wants)
    METADATA.write_text(json.dumps({pin: sorted(found[pin]) for pin in sorted(found)}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
