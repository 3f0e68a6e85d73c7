"""flare.py: the environment is made once, repaired where half made, and never taken for whole when it is not; verbs
start the right program with the right words, and its status comes back.

No network and no packages: a stand-in Python notes what it is asked to do, and makes a `.venv` whose Python is itself.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are shell scripts")

REPOSITORY = Path(__file__).resolve().parents[3]

# Plays the system's Python and .venv's. FLARE_TEST_FAIL names the word at which it fails, FLARE_TEST_KILL the one at
# which it kills the flare.py that started it: an interruption that nothing can catch.
STAND_IN = """#!{python} -S
import os, signal, shutil, sys, time
words = sys.argv[1:]
with open(os.environ["FLARE_TEST_LOG"], "a") as log:
    log.write(repr(words) + "\\n")
line = " ".join(words)
if os.environ.get("FLARE_TEST_KILL", "\\0") in line:
    os.kill(os.getppid(), signal.SIGKILL)
    sys.exit(1)
if os.environ.get("FLARE_TEST_FAIL", "\\0") in line:
    print("ERROR: no such package", file=sys.stderr)
    sys.exit(1)
time.sleep(float(os.environ.get("FLARE_TEST_SLEEP", "0")))
if words[:2] == ["-m", "venv"]:
    os.makedirs(words[2] + "/bin")
    shutil.copy(sys.argv[0], words[2] + "/bin/python")
if words[:1] == ["-m"] and words[1] in ("slicerhost", "pytest"):
    print("ran", words[1])
    sys.exit(int(os.environ.get("FLARE_TEST_STATUS", "0")))
if words[:1] == ["-m"] and words[1] in ("ruff", "mypy", "apilint"):
    sys.exit(words[1] == os.environ.get("FLARE_TEST_FINDINGS"))
"""


@pytest.fixture
def flare():
    """flare.py as a module."""
    spec = importlib.util.spec_from_file_location("flare", REPOSITORY / "flare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path):
    """A small working tree with flare.py, driven with the stand-in Python."""
    return Tree(tmp_path)


class Tree:
    """A working tree with a space in its name, what was started in it, and a way to start flare.py there."""

    def __init__(self, folder):
        self.root = folder / "a tree"
        self.log = folder / "log"
        self.python = folder / "stand-in"
        self.python.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
        self.python.chmod(0o755)
        for name in ("FlareSegment", "FlareSegmentTraining", "Testing/slicerhost"):
            (self.root / name).mkdir(parents=True)
        text = (REPOSITORY / "flare.py").read_text(encoding="utf-8")
        assert "base = find_python()" in text
        text = text.replace("base = find_python()", "base = os.environ['FLARE_TEST_PYTHON']")
        (self.root / "flare.py").write_text(text, encoding="utf-8")
        for name in ("requirements-torch.txt", "requirements-dev.txt"):
            (self.root / name).write_text(f"{name[:-4]}==1 # comment\n", encoding="utf-8")
        without = self.root / "Testing" / "slicerhost" / "requirements-no-deps.txt"
        without.write_text("package==1\n", encoding="utf-8")
        for module in ("FlareSegment", "FlareSegmentTraining"):
            (self.root / module / f"{module}.py").write_text("", encoding="utf-8")
        self.script = self.root / script_path("segment")
        self.script.parent.mkdir(parents=True, exist_ok=True)
        self.script.write_text("", encoding="utf-8")
        self.venv = self.root / ".venv"

    def environment(self, **variables):
        kept = {key: value for key, value in os.environ.items() if key not in ("SLICER", "DISPLAY", "WAYLAND_DISPLAY")}
        paths = {"FLARE_TEST_LOG": str(self.log), "FLARE_TEST_PYTHON": str(self.python)}
        return {**kept, **paths, "PYTHONPATH": "/poison", **variables}

    def run(self, *words, **variables):
        """Run flare.py; returns the finished process with what was started since then in `started`."""
        self.log.write_text("", encoding="utf-8")
        command = [sys.executable, str(self.root / "flare.py"), *words]
        result = subprocess.run(command, env=self.environment(**variables), capture_output=True, text=True, timeout=60)
        result.started = self.started()
        return result

    def started(self):
        return [eval(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


def script_path(verb):
    """Where flare.py's table says that a verb's script lies."""
    return re.search(rf'"{verb}": \("([^"]+)"', (REPOSITORY / "flare.py").read_text(encoding="utf-8"))[1]


def installs(result):
    """Which requirements files were installed, in order."""
    lists = [[Path(word).name for word in words if word.endswith(".txt")] for words in result.started]
    return [files for files in lists if files]


WHOLE = [["requirements-dev.txt"], ["requirements-no-deps.txt"], ["requirements-torch.txt"]]


def test_first_use_makes_the_environment_and_runs(tree):
    result = tree.run("segment", "a CT.nii.gz", "--json")
    assert result.returncode == 0, result.stderr
    assert installs(result) == WHOLE
    checked = ["--require-hashes" in words for words in result.started if words[:3] == ["-m", "pip", "install"]]
    assert checked == [True, True, False], "all but PyTorch, of which each computer has its own build"
    assert result.started[0] == ["-m", "venv", str(tree.venv)]
    assert [f"[{step}/5]" in result.stderr for step in range(1, 6)] == [True] * 5
    assert result.stdout == "ran slicerhost\n", "standard output belongs to the script"
    assert result.started[-1] == [
        "-m", "slicerhost", "--no-splash", "--no-main-window",
        "--python-script", str(tree.script), "--ignore-rest", "a CT.nii.gz", "--json",
    ]  # fmt: skip


def test_whole_environment_is_used_as_it_is(tree):
    tree.run("segment")
    result = tree.run("segment")
    assert len(result.started) == 1
    assert result.stderr == ""


@pytest.mark.parametrize("step", ["venv", "requirements-torch", "requirements-dev", "no-deps", "import torch"])
@pytest.mark.parametrize("how", ["FLARE_TEST_FAIL", "FLARE_TEST_KILL"])
def test_interrupted_making_is_made_anew(tree, step, how):
    broken = tree.run("segment", **{how: step})
    assert broken.returncode in (1, -signal.SIGKILL)
    assert ["-m", "slicerhost"] not in [words[:2] for words in broken.started]
    (tree.venv / "leftover").write_text("", encoding="utf-8")
    repaired = tree.run("segment")
    assert repaired.returncode == 0
    assert "incomplete" in repaired.stderr
    assert installs(repaired) == WHOLE
    assert not (tree.venv / "leftover").exists()


def test_failure_is_explained_in_one_line_after_the_reason(tree):
    result = tree.run("segment", FLARE_TEST_FAIL="requirements-dev")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[-2] == "ERROR: no such package"
    assert lines[-1].startswith("flare.py: embedded Slicer, Qt and tools failed")
    assert "Traceback" not in result.stderr


def test_changed_requirements_update_the_environment(tree):
    tree.run("segment")
    (tree.root / "requirements-dev.txt").write_text("# another comment\nrequirements-dev==1\n", encoding="utf-8")
    assert len(tree.run("segment").started) == 1, "comments change nothing"
    (tree.root / "requirements-dev.txt").write_text("requirements-dev==2\n", encoding="utf-8")
    broken = tree.run("segment", FLARE_TEST_KILL="no-deps")
    assert ["-m", "venv"] not in [words[:2] for words in broken.started]
    assert "incomplete" in tree.run("segment").stderr, "an interrupted update is no whole environment"


@pytest.mark.parametrize("damage", ["stamp", "half a stamp", "interpreter"])
def test_damaged_environment_is_made_anew(tree, damage):
    tree.run("segment")
    stamp = tree.venv / "flare-complete.json"
    if damage == "stamp":
        stamp.unlink()
    elif damage == "half a stamp":
        stamp.write_text(stamp.read_text(encoding="utf-8")[:20], encoding="utf-8")
    else:
        (tree.venv / "bin" / "python").unlink()
    result = tree.run("segment")
    assert result.returncode == 0
    assert installs(result) == WHOLE


def test_environment_of_somebody_else_is_left_alone(tree):
    tree.venv.mkdir()
    (tree.venv / "pyvenv.cfg").write_text("mine", encoding="utf-8")
    result = tree.run("segment")
    assert result.returncode == 2
    assert result.started == []
    assert result.stderr.splitlines() == [
        f"flare.py: {tree.venv} was not made by flare.py: move it away and run this again."
    ]
    assert (tree.venv / "pyvenv.cfg").read_text(encoding="utf-8") == "mine"


def test_two_first_uses_at_once_make_one_environment(tree):
    tree.log.write_text("", encoding="utf-8")
    command = [sys.executable, str(tree.root / "flare.py"), "segment"]
    environment = tree.environment(FLARE_TEST_SLEEP="0.2")
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    messages = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum(words[:2] == ["-m", "venv"] for words in tree.started()) == 1
    assert sum(words[:2] == ["-m", "slicerhost"] for words in tree.started()) == 2
    assert sum("waiting for it" in message for message in messages) == 1


def test_too_little_disk_space_is_told_before_anything_is_made(flare, tmp_path, monkeypatch):
    environment = flare.Environment(REPOSITORY)
    environment.root, environment.folder = tmp_path, tmp_path / ".venv"
    usage = flare.shutil.disk_usage(tmp_path)._replace(free=10**9)
    monkeypatch.setattr(flare.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(flare.Refusal, match=r"1\.0 GB free, but the environment needs 5 GB"):
        environment._make("absent")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [0, 1, 2, 7])
def test_status_of_the_script_comes_back(tree, status):
    assert tree.run("segment", FLARE_TEST_STATUS=str(status)).returncode == status


def test_interrupt_waits_for_the_program_and_ends_with_130(tree):
    tree.run("segment")
    slow = tree.root.parent / "Slicer"
    slow.write_text(
        f"#!{sys.executable}\nimport signal, sys, time\n"
        "def end(*_):\n    time.sleep(0.5); print('saved', flush=True); sys.exit(1)\n"
        "signal.signal(signal.SIGINT, end)\nprint('ready', flush=True)\ntime.sleep(60)\n",
        encoding="utf-8",
    )
    slow.chmod(0o755)
    command = [sys.executable, str(tree.root / "flare.py"), "--slicer", str(slow), "segment"]
    process = subprocess.Popen(
        command,
        env=tree.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A suite that a shell runs in the background has Ctrl-C ignored, and its children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 130


def test_program_killed_by_a_signal_gives_the_shells_status(tree):
    slicer = tree.root.parent / "Slicer"
    slicer.write_text("#!/bin/sh\nkill -SEGV $$\n", encoding="utf-8")
    slicer.chmod(0o755)
    assert tree.run("segment", "--slicer", str(slicer)).returncode == 128 + signal.SIGSEGV


@pytest.fixture
def fake_slicer(tree):
    """A Slicer installation whose program notes its arguments and environment, and ends with status 5."""
    folder = tree.root.parent / "Slicer-5.12"
    folder.mkdir()
    note = folder / "note.json"
    program = folder / "Slicer"
    program.write_text(
        f"#!{sys.executable}\nimport json, os, sys\n"
        f"json.dump([sys.argv[1:], os.environ.get('QT_QPA_PLATFORM'), os.getcwd()], open({str(note)!r}, 'w'))\n"
        "sys.exit(5)\n",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("named", ["program", "folder", "equals", "last", "variable", "PATH"])
def test_real_slicer_gets_the_same_script(tree, fake_slicer, named):
    words, variables = ["segment", "CT", "--output", "out"], {}
    if named == "program":
        words = ["--slicer", str(fake_slicer), *words]
    elif named == "folder":
        words = ["--slicer", str(fake_slicer.parent), *words]
    elif named == "equals":
        words = [f"--slicer={fake_slicer}", *words]
    elif named == "last":
        words = [*words, "--slicer", str(fake_slicer)]
    elif named == "variable":
        variables["SLICER"] = str(fake_slicer)
    else:
        variables["PATH"] = f"{fake_slicer.parent}{os.pathsep}{os.environ['PATH']}"
        words = ["--slicer", "Slicer", *words]
    result = tree.run(*words, **variables)
    assert result.returncode == 5
    assert result.started == [], "no environment is made for a real Slicer"
    arguments, platform, _ = json.loads((fake_slicer.parent / "note.json").read_text(encoding="utf-8"))
    assert arguments == [
        "--no-splash", "--no-main-window",
        "--python-script", str(tree.script), "--ignore-rest", "CT", "--output", "out",
    ]  # fmt: skip
    assert platform == os.environ.get("QT_QPA_PLATFORM")


def test_gui_shows_the_panel_and_the_ct(tree, fake_slicer):
    ct = tree.root / "a 'CT'.nrrd"
    ct.write_text("", encoding="utf-8")
    assert tree.run("gui", str(ct), SLICER=str(fake_slicer), DISPLAY=":9").returncode == 5
    arguments = json.loads((fake_slicer.parent / "note.json").read_text(encoding="utf-8"))[0]
    assert arguments[:-2] == [
        "--no-splash",
        "--additional-module-paths", str(tree.root / "FlareSegment"), str(tree.root / "FlareSegmentTraining"),
    ]  # fmt: skip
    code = arguments[arguments.index("--python-code") + 1]
    calls = []
    util = type("util", (), {
        "selectModule": staticmethod(lambda name: calls.append(name)),
        "loadVolume": staticmethod(lambda path: calls.append(path)),
    })  # fmt: skip
    exec(code.removeprefix("import slicer;").strip(), {"slicer": type("slicer", (), {"util": util})})
    assert calls == ["FlareSegment", str(ct)]


def test_gui_of_a_dicom_folder_reads_it_with_the_engine(flare, tmp_path):
    compiled = compile(flare.SHOW_PANEL + flare.SHOW_FOLDER.format(path=str(tmp_path)), "code", "exec")
    assert {"FlareSegmentLib.files.image_io", "read_volume", "addVolumeFromArray"} <= set(compiled.co_names)


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["segments"], {}, "there is no verb segments"),
        (["evaluate"], {}, "there is no verb evaluate"),
        (["gui", "a", "b"], {}, "gui takes one CT or nothing"),
        (["gui", "missing.nrrd"], {"DISPLAY": ":9"}, "missing.nrrd: no such file or folder"),
        (["gui"], {"QT_QPA_PLATFORM": ""}, "gui needs a display"),
        (["test", "--slicer", "x"], {}, "test does not run in a real Slicer"),
        (["segment", "--slicer"], {}, "--slicer needs the path"),
        (["segment", "--slicer", "/nowhere"], {}, "/nowhere: no Slicer there"),
        (["bench", "nothing"], {}, "no benchmark nothing"),
    ],
)
def test_bad_usage_is_one_line_and_status_2(tree, words, variables, message):
    if words[0] == "bench":
        tree.run("segment")
    variables = dict(variables)
    environment = tree.environment(**variables)
    if variables.get("QT_QPA_PLATFORM") == "":
        del environment["QT_QPA_PLATFORM"]
    command = [sys.executable, str(tree.root / "flare.py"), *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    lines = result.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("flare.py: ")
    assert message in lines[0]


def test_help_offers_only_what_is_there(tree):
    result = tree.run("--help")
    assert result.returncode == 0
    assert "segment [CT]" in result.stdout
    assert "evaluate" not in result.stdout
    assert tree.run().returncode == 2
    evaluate = tree.root / script_path("evaluate")
    evaluate.parent.mkdir(parents=True, exist_ok=True)
    evaluate.write_text("", encoding="utf-8")
    assert "evaluate [options]" in tree.run("--help").stdout


def test_tests_run_with_the_users_arguments(tree):
    result = tree.run("test", "-k", "volume", FLARE_TEST_STATUS="1")
    assert result.returncode == 1
    assert result.started[-1] == ["-m", "pytest", "-q", "-k", "volume"]


def test_the_whole_suite_must_run_most_lines(tree):
    """Too few lines end with pytest-cov's status, which is handed on."""
    result = tree.run("test", FLARE_TEST_STATUS="1")
    assert result.returncode == 1
    assert result.started[-1] == ["-m", "pytest", "-q", "--cov", "--cov-report=term", "--cov-fail-under=95"]


@pytest.mark.parametrize("finding", ["ruff", "mypy", "apilint", ""])
def test_lint_runs_every_check_and_fails_if_one_does(tree, finding):
    result = tree.run("lint", FLARE_TEST_FINDINGS=finding)
    assert [words[1] for words in result.started[-3:]] == ["ruff", "mypy", "apilint"]
    assert result.returncode == bool(finding)


def test_missing_system_libraries_are_named_with_their_packages(flare, monkeypatch):
    def load(name):
        if name in ("libEGL.so.1", "libGL.so.1"):
            raise OSError(name)

    monkeypatch.setattr(flare.sys, "platform", "linux")
    monkeypatch.setattr(flare.ctypes, "CDLL", load)
    with pytest.raises(flare.Refusal, match=r"\(libGL.so.1, libEGL.so.1\).*apt-get install libgl1 libegl1$"):
        flare.check_libraries()


def test_library_packages_are_those_that_ci_installs(flare):
    packages = (REPOSITORY / "Testing" / "slicerhost" / "apt-packages.txt").read_text(encoding="utf-8").split()
    assert set(flare.LIBRARIES) <= set(packages)


def test_another_python_is_found_where_this_one_is_too_new(flare, monkeypatch, tmp_path):
    monkeypatch.setattr(flare.sys, "version_info", (3, 19, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(flare.Refusal, match=r"Python 3\.19 cannot hold .* install Python 3\.11, 3\.12, 3\.13"):
        flare.find_python()
    for name, output in (("python3.13", "broken"), ("python3.12", "3 12")):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {output}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    assert flare.find_python() == str(tmp_path / "python3.12")


def test_lock_is_released_by_the_death_of_its_holder(flare, tmp_path):
    path = tmp_path / "lock"
    code = (
        "import importlib.util, sys, time\n"
        "spec = importlib.util.spec_from_file_location('flare', sys.argv[1])\n"
        "flare = importlib.util.module_from_spec(spec); spec.loader.exec_module(flare)\n"
        "with flare.locked(sys.argv[2]):\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(REPOSITORY / "flare.py"), str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    with open(path, "a+b") as file:
        assert not flare.try_lock(file)
        holder.kill()
        holder.wait()
        deadline = time.monotonic() + 10
        while not flare.try_lock(file) and time.monotonic() < deadline:
            time.sleep(0.05)
    with flare.locked(path):
        pass


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_old_pythons_are_told_in_one_line(version, tmp_path):
    """The check stands before anything that an old Python cannot run."""
    text = (REPOSITORY / "flare.py").read_text(encoding="utf-8")
    number = tuple(int(part) for part in version.split("."))
    head = text[: text.index("import contextlib")].replace("sys.version_info", f"({number[0]}, {number[1]}, 0)")
    head = head.replace("from __future__ import print_function", "")
    result = subprocess.run([sys.executable, "-c", head + "print('went on')"], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == f"flare.py needs Python 3.9 or newer; this is Python {version}.\n"


HASHED = [
    REPOSITORY / "requirements-dev.txt",
    REPOSITORY / "Testing" / "slicerhost" / "requirements-no-deps.txt",
]


def pinned():
    """(name, version, marker) of every package that the environment holds."""
    from packaging.requirements import Requirement

    found = []
    for path in (*HASHED, REPOSITORY / "requirements-torch.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", " ")):
                item = Requirement(line.rstrip("\\"))
                found.append((item.name.lower(), next(iter(item.specifier)).version, item.marker))
    return found


class TestPackaging:
    """What the extension packages is what its folders hold, and the lists of requirements agree."""

    @pytest.mark.parametrize("module", ["FlareSegment", "FlareSegmentTraining"])
    def test_cmake_lists_every_file(self, module):
        folder = REPOSITORY / module
        text = (folder / "CMakeLists.txt").read_text(encoding="utf-8")
        blocks = dict(re.findall(r"set\(MODULE_(PYTHON_SCRIPTS|PYTHON_RESOURCES)\n(.*?)\)", text, re.DOTALL))
        listed = {kind: block.replace("${MODULE_NAME}", module).split() for kind, block in blocks.items()}
        there = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        kept = [path for path in there if not any(part.startswith((".", "__pycache__")) for part in path.parts)]
        names = {path.as_posix() for path in kept} - {"CMakeLists.txt"}
        scripts = {name for name in names if name.endswith(".py")}
        beside = {name for name in scripts if "/" not in name and name != f"{module}.py"}
        assert not beside, "Slicer takes every .py file beside a module for a module"
        assert sorted(listed["PYTHON_SCRIPTS"]) == sorted(scripts)
        assert sorted(listed["PYTHON_RESOURCES"]) == sorted(names - scripts)
        has_module = (folder / f"{module}.py").is_file()
        assert ("WITH_GENERIC_TESTS" in text) == has_module
        assert ("slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)" in text) == has_module

    def test_extension_says_what_the_index_wants_in_one_line_each(self):
        text = (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8")
        found = dict(re.findall(r'^set\(EXTENSION_(\w+) "([^";]+)"\)$', text, re.MULTILINE))
        assert set(found) == {"HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "SCREENSHOTURLS", "DEPENDS"}
        assert found["DEPENDS"] == "PyTorch"
        assert (REPOSITORY / found["ICONURL"].split("/main/")[1]).is_file()
        assert found["SCREENSHOTURLS"].split("/main/")[1].startswith("Resources/Screenshots/")
        for folder in re.findall(r"add_subdirectory\((\w+)\)", text):
            assert (REPOSITORY / folder / "CMakeLists.txt").is_file()

    def test_every_package_of_the_environment_is_pinned_with_hashes(self):
        from packaging.requirements import Requirement

        for path in HASHED:
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

    def test_the_pinned_packages_are_those_that_were_chosen(self):
        from packaging.requirements import Requirement

        chosen = (REPOSITORY / "requirements-dev.in").read_text(encoding="utf-8").splitlines()
        for item in (Requirement(line) for line in chosen if line and not line.startswith("#")):
            there = [version for name, version, marker in pinned() if name == item.name.lower()]
            assert there, f"{item.name} is not in requirements-dev.txt: compile it again"
            assert not item.specifier or any(version in item.specifier for version in there), item

    def test_pinned_packages_satisfy_what_the_extension_needs(self):
        from packaging.requirements import Requirement

        pins = {name: version for name, version, _ in pinned()}
        needed = (REPOSITORY / "FlareSegment" / "Resources" / "requirements.txt").read_text(encoding="utf-8")
        requirements = [Requirement(line) for line in needed.splitlines() if line and not line.startswith("#")]
        assert {item.name.lower() for item in requirements} == {"numpy", "scipy", "simpleitk", "torch"}
        for item in requirements:
            assert pins[item.name.lower()] in item.specifier, item
        torch = next(item for item in requirements if item.name == "torch")
        installation = REPOSITORY / "FlareSegment" / "FlareSegmentSlicerLib" / "panel" / "installation.py"
        assert f'TORCH_REQUIREMENT = "{torch.specifier}"' in installation.read_text(encoding="utf-8")
