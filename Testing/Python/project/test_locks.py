"""The locks: all of what each package asks for is pinned, on every system, and newer releases change nothing.

No network: what the packages ask for is in Testing/Locks/metadata.json, and the installation takes place from a folder
of small wheels of the same names and requirements.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPOSITORY = Path(__file__).resolve().parents[3]
NO_DEPENDENCIES = REPOSITORY / "Testing" / "slicerhost" / "requirements-no-deps.txt"
FOLDER = REPOSITORY / "Testing" / "Locks"
TORCH = FOLDER / "requirements-torch.txt"
LAYERS = ("check", "cohort", "video")
LOCKS = ("run", *LAYERS, "uv")
SYSTEMS = {
    "Linux": {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"},
    "macOS x86": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "x86_64"},
    "macOS arm": {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"},
    "Windows": {"sys_platform": "win32", "platform_system": "Windows", "platform_machine": "AMD64", "os_name": "nt"},
}
PYTHONS = ("3.11.0", "3.12.0", "3.13.0", "3.13.9")
# Only the build of PyTorch for NVIDIA GPUs asks for these, and brings them itself.
CUDA = re.compile(r"(cuda|nvidia|triton)\b")


def lock(name):
    """Where a lock lies."""
    return FOLDER / f"requirements-{name}.txt"


def pins(path):
    """The requirements of a lock, without their hashes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [Requirement(line.rstrip("\\ ")) for line in lines if line and line[0] not in "# "]


def version(pin):
    """The version that a requirement pins."""
    (one,) = pin.specifier
    assert one.operator == "==", f"{pin} does not pin"
    return one.version


def asked_for():
    """{"name==version": [what it asks for]} of everything that is pinned."""
    return json.loads((REPOSITORY / "Testing" / "Locks" / "metadata.json").read_text(encoding="utf-8"))


def environments():
    """(name, environment markers) of every supported Python on every system."""
    same = {"implementation_name": "cpython", "platform_python_implementation": "CPython", "os_name": "posix"}
    for (system, markers), python in itertools.product(SYSTEMS.items(), PYTHONS):
        versions = {"python_full_version": python, "python_version": python.rpartition(".")[0]}
        yield f"{system}, Python {python}", {**same, **versions, **markers}


def holds(requirement, markers, extras=()):
    """Whether a requirement applies in an environment to a package that was asked for with extras."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate({**markers, "extra": extra}) for extra in ("", *extras))


def unmet(locked, metadata):
    """["who, where: what"] that pinned packages ask for and no pin meets, in its version or with its extras."""
    found = set()
    for where, markers in environments():
        there = {canonicalize_name(pin.name): pin for pin in locked if holds(pin, markers)}
        for name, pin in there.items():
            for text in metadata[f"{name}=={version(pin)}"]:
                wanted = Requirement(text)
                if not holds(wanted, markers, pin.extras):
                    continue
                if name == "torch" and CUDA.match(wanted.name):
                    continue
                met_by = there.get(canonicalize_name(wanted.name))
                if met_by is None or version(met_by) not in wanted.specifier or not wanted.extras <= met_by.extras:
                    found.add(f"{name}, {where}: {text}")
    return sorted(found)


@pytest.mark.parametrize("layers", [(), *[(name,) for name in LAYERS], LAYERS, ("uv",)], ids=str)
def test_locks_are_closed(layers):
    """Nothing is left to decide on the day of the installation: PyTorch and each layer find all they ask for pinned."""
    locked = [pin for name in layers for pin in pins(lock(name))]
    if layers != ("uv",):
        locked += pins(lock("run")) + pins(TORCH)
    assert unmet(locked, asked_for()) == []


def test_a_lock_that_leaves_something_open_is_found():
    metadata = {
        "a==1": ["b[fast]>=2", "c; sys_platform == 'win32'", "d; extra == 'more'", "e<3; python_version < '3.12'"],
        "b==2": [],
        "e==3": [],
    }
    open_pins = [Requirement("a==1"), Requirement("b==2"), Requirement("e==3")]
    assert {line.partition(": ")[2] for line in unmet(open_pins, metadata)} == set(metadata["a==1"]) - {
        "d; extra == 'more'"
    }
    with_extra = [Requirement("a[more]==1"), *open_pins[1:]]
    assert any(line.endswith("d; extra == 'more'") for line in unmet(with_extra, metadata))
    metadata |= {"c==1": []}
    closed = [Requirement(text) for text in ("a==1", "b[fast]==2", "c==1; sys_platform == 'win32'", "e==2")]
    assert unmet(closed, {**metadata, "e==2": []}) == []


def test_the_metadata_is_that_of_the_pinned_packages():
    locked = [pin for path in (*map(lock, LOCKS), TORCH) for pin in pins(path)]
    named = {f"{canonicalize_name(pin.name)}=={version(pin)}" for pin in locked}
    assert named == set(asked_for()), "after a change of a requirements-*.in: python Testing/Locks/make.py"


def test_layers_repeat_nothing_of_what_runs_and_agree_with_each_other():
    run = {pin.name for pin in pins(lock("run"))}
    versions = {}
    for name in LAYERS:
        for pin in pins(lock(name)):
            assert pin.name not in run, f"{name}: two of {pin.name} would lie on Python's path"
            assert versions.setdefault((pin.name, str(pin.marker)), version(pin)) == version(pin), pin


@pytest.mark.parametrize("path", [*map(lock, LOCKS), NO_DEPENDENCIES], ids=lambda path: path.name)
def test_every_package_is_pinned_with_hashes(path):
    text = path.read_text(encoding="utf-8")
    assert "://" not in text, "where packages come from is the business of each computer"
    whole = text.replace("\\\n", " ").splitlines()
    lines = [line for line in whole if line and not line.lstrip().startswith("#")]
    assert lines
    for line in lines:
        words = line.split(" --hash=")
        requirement = Requirement(words[0])
        assert [one.operator for one in requirement.specifier] == ["=="], line
        assert len(words) > 1 and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", word) for word in words[1:]), line
        assert not re.match("torch|nvidia|triton", requirement.name), "that is requirements-torch.txt"


@pytest.mark.parametrize("name", LOCKS)
def test_the_pinned_packages_are_those_that_were_chosen(name):
    chosen = lock(name).with_suffix(".in").read_text(encoding="utf-8").splitlines()
    for item in (Requirement(line) for line in chosen if line and not line.startswith("#")):
        there = [version(pin) for pin in pins(lock(name)) if pin.name == item.name.lower()]
        assert there, f"{item.name} is not in requirements-{name}.txt: make the locks again"
        assert not item.specifier or any(one in item.specifier for one in there), item


def test_every_lock_is_used(flare):
    assert set(flare.LAYERS) == set(LAYERS)
    there = {path.name for path in FOLDER.glob("requirements-*.txt")}
    assert there == {*(lock(name).name for name in LOCKS), TORCH.name}


def test_pinned_packages_satisfy_what_the_extension_needs():
    there = {pin.name: version(pin) for path in (lock("run"), TORCH) for pin in pins(path)}
    needed = (REPOSITORY / "FlareSegment" / "Resources" / "requirements.txt").read_text(encoding="utf-8")
    requirements = [Requirement(line) for line in needed.splitlines() if line and not line.startswith("#")]
    assert {item.name.lower() for item in requirements} == {"numpy", "scipy", "simpleitk", "torch"}
    for item in requirements:
        assert there[item.name.lower()] in item.specifier, item
    torch = next(item for item in requirements if item.name == "torch")
    installation = REPOSITORY / "FlareSegment" / "FlareSegmentSlicerLib" / "panel" / "installation.py"
    assert f'TORCH_REQUIREMENT = "{torch.specifier}"' in installation.read_text(encoding="utf-8")


# ---------------------------------------------------------------- installing


MODULES = {
    "pyqt5": ("PyQt5", "PyQt5/QtWidgets"),
    "simpleitk": ("SimpleITK",),
    "pytest-xdist": ("xdist",),
    "import-linter": ("importlinter",),
}
REACHES_NO_INDEX = "import sys; sys.exit('error sending request')"


def write_wheel(folder, name, number, wants):
    """A wheel with modules that hold their version and nothing else; returns the hash of the file."""
    stem = f"{name.replace('-', '_')}-{number}"
    modules = MODULES.get(name, (name.replace("-", "_"),))
    files = {f"{module}/__init__.py": f"version = {number!r}\n" for module in modules}
    if name == "uv":
        files["uv/__main__.py"] = REACHES_NO_INDEX
    requires = "".join(f"Requires-Dist: {text}\n" for text in wants)
    files[f"{stem}.dist-info/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{requires}"
    files[f"{stem}.dist-info/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    rows = []
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        rows.append(f"{path},sha256={digest},{len(text)}")
    files[f"{stem}.dist-info/RECORD"] = "\n".join([*rows, f"{stem}.dist-info/RECORD,,"]) + "\n"
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_in_archive, text in files.items():
            archive.writestr(name_in_archive, text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def flare():
    """flare.py as a module."""
    spec = importlib.util.spec_from_file_location("flare", REPOSITORY / "flare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A working tree with the locks, each package a small wheel in a folder, and pip set up to know only that one."""
    root, wheels = tmp_path / "tree", tmp_path / "wheels"
    wheels.mkdir()
    metadata = asked_for()
    count = itertools.count()
    for source in (*map(lock, LOCKS), NO_DEPENDENCIES, TORCH):
        lines = []
        for pin in pins(source):
            wants = metadata.get(f"{pin.name}=={version(pin)}", ["fire", "trame"])
            if pin.name == "torch":  # the build for CPUs
                wants = [text for text in wants if not CUDA.match(text)]
            digest = write_wheel(wheels, pin.name, version(pin), wants)
            if next(count) % 3 == 0:  # a newer release, that wants what nobody has
                write_wheel(wheels, pin.name, f"{int(version(pin).split('.')[0]) + 1}.0", [*wants, "novelty>=1"])
            text = str(pin).replace(";", " ;")
            lines.append(text if source == TORCH else f"{text} --hash=sha256:{digest}")
        target = root / source.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (root / "Testing" / "Locks" / "constraints-torch.txt").write_text("cuda-bindings<=1\n", encoding="utf-8")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return root


def installed(environment, *names):
    """{name of a module: (its version, the folder in which it lies)} as `.venv`'s Python sees it."""
    code = (
        "import importlib, json, sys\n"
        "found = {name: importlib.import_module(name) for name in sys.argv[1:]}\n"
        "print(json.dumps({name: (one.version, one.__file__) for name, one in found.items()}))"
    )
    result = subprocess.run([environment.python, "-c", code, *names], capture_output=True, text=True, check=True)
    return json.loads(result.stdout)


def test_newer_releases_in_reach_change_nothing(flare, tree, monkeypatch, capfd):
    """The real making of the environment by the real pip, with newer releases of every third package in reach."""
    monkeypatch.setattr(flare, "find_python", lambda: sys.executable)
    environment = flare.Environment(tree)
    environment.ensure()
    assert environment.state() == "complete"
    assert "PyTorch's own index is out of reach" in capfd.readouterr().err
    assert not environment.uv.exists()
    site_packages = environment._site_packages()
    pinned = [pin for path in (lock("run"), NO_DEPENDENCIES, TORCH) for pin in pins(path) if holds(pin, {})]
    expected = {f"{pin.name.replace('-', '_')}-{version(pin)}.dist-info" for pin in pinned}
    there = {path.name for path in site_packages.glob("*.dist-info")}
    assert {name for name in there if not name.startswith("pip-")} == expected

    with_checks = flare.Environment(tree, ["check", "cohort"])
    with_checks.ensure()
    assert with_checks.state() == "complete"
    found = installed(with_checks, "numpy", "pytest", "coverage", "dask", "PyQt5")
    layers = {name: path for name, (_, path) in found.items()}
    for name, layer in (("pytest", "check"), ("coverage", "check"), ("dask", "cohort")):
        assert Path(layers[name]).is_relative_to(environment.folder / "layers" / layer)
        assert found[name][0] == next(version(pin) for pin in pins(lock(layer)) if pin.name == name)
    assert Path(layers["numpy"]).is_relative_to(site_packages)

    # What a later lock no longer has goes, and what PyTorch brought, or a layer holds, stays.
    write_wheel(tree.parent / "wheels", "dropped", "1", [])
    pip = [environment.python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "dropped"], check=True)
    run = tree / "Testing" / "Locks" / "requirements-run.txt"
    run.write_text("".join(line for line in run.read_text("utf-8").splitlines(True) if "nibabel" not in line), "utf-8")
    monkeypatch.setattr(flare, "RUN_MODULES", "numpy")
    with_checks.ensure()
    assert with_checks.state() == "complete"
    after = {path.name for path in site_packages.glob("*.dist-info")}
    assert {name.partition("-")[0] for name in there - after} == {"nibabel"}
    assert "dropped-1.dist-info" not in after
    assert installed(with_checks, "pytest", "dask", "torch", "sympy").keys() == {"pytest", "dask", "torch", "sympy"}

    # A file that is not the one that was locked is never installed.
    write_wheel(tree.parent / "wheels", "pytest", found["pytest"][0], ["something-else"])
    check = tree / "Testing" / "Locks" / "requirements-check.txt"
    check.write_text("\n".join(sorted(check.read_text("utf-8").splitlines(), reverse=True)), "utf-8")
    capfd.readouterr()
    with pytest.raises(flare.Refusal, match="test tools failed"):
        with_checks.ensure()
    assert "DO NOT MATCH THE HASHES" in capfd.readouterr().err
    assert environment.state() == "complete"
