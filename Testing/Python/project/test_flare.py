"""flare.py: the environment is made once, repaired where half made, and never taken for whole when it is not; verbs
start the right program with the right words, and its status comes back.

No network and no packages: a stand-in Python notes what it is asked to do, and makes a `.venv` whose Python is itself.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the stand-in programs are shell scripts")

REPOSITORY = Path(__file__).resolve().parents[3]

# Plays the system's Python and .venv's. FLARE_TEST_FAIL names the word at which it fails, FLARE_TEST_KILL the one at
# which it kills the flare.py that started it: an interruption that nothing can catch. FLARE_TEST_UV is what uv plans,
# FLARE_TEST_CHECK what pip finds wrong with the packages, FLARE_TEST_LEFTOVERS what is installed and no longer needed.
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
    os.makedirs(words[2] + "/lib/python3.11/site-packages")
    shutil.copy(sys.argv[0], words[2] + "/bin/python")
if "--target" in words:
    os.makedirs(words[words.index("--target") + 1])
if words[:2] == ["-m", "uv"]:
    if "FLARE_TEST_UV" not in os.environ:
        sys.exit("error sending request")
    if "--dry-run" in words:
        print(os.environ["FLARE_TEST_UV"], file=sys.stderr)
if words[:3] == ["-m", "pip", "check"]:
    print(os.environ.get("FLARE_TEST_CHECK", "No broken requirements found."))
    sys.exit("FLARE_TEST_CHECK" in os.environ)
if words[:2] == ["-I", "-c"]:
    print(os.environ.get("FLARE_TEST_LEFTOVERS", ""))
if words[:1] == ["-m"] and words[1] in ("slicerhost", "pytest"):
    print("ran", words[1], *([os.environ["SLICER"]] if "SLICER" in os.environ else []))
    sys.exit(int(os.environ.get("FLARE_TEST_STATUS", "0")))
if words[:1] == ["-m"] and words[1] in ("ruff", "mypy", "apilint", "import_lint"):
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
        self.locks = self.root / "Testing" / "Locks"
        self.log = folder / "log"
        self.python = folder / "stand-in"
        self.python.write_text(STAND_IN.format(python=sys.executable), encoding="utf-8")
        self.python.chmod(0o755)
        for name in ("FlareSegment", "FlareSegmentTraining", "Testing/slicerhost", "Testing/Locks"):
            (self.root / name).mkdir(parents=True)
        text = (REPOSITORY / "flare.py").read_text(encoding="utf-8")
        assert "base = find_python()" in text
        text = text.replace("base = find_python()", "base = os.environ['FLARE_TEST_PYTHON']")
        (self.root / "flare.py").write_text(text, encoding="utf-8")
        for name in ("torch", "run", "check", "cohort", "video", "uv"):
            (self.locks / f"requirements-{name}.txt").write_text(f"{name}==1 # comment\n", encoding="utf-8")
        (self.locks / "constraints-torch.txt").write_text("cuda<=1\n", encoding="utf-8")
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
    """Which requirements files pip was told to install, in order."""
    pip = [words for words in result.started if words[:3] == ["-m", "pip", "install"]]
    return [[Path(words[i + 1]).name for i, word in enumerate(words) if word == "-r"] for words in pip]


RUN = [["requirements-run.txt", "requirements-no-deps.txt"]]
WHOLE = [*RUN, ["requirements-uv.txt"], ["requirements-torch.txt"]]
LAYERS = [["requirements-check.txt"], ["requirements-cohort.txt"], ["requirements-video.txt"]]


def test_first_use_makes_the_environment_and_runs(tree):
    result = tree.run("segment", "a CT.nii.gz", "--json")
    assert result.returncode == 0, result.stderr
    assert installs(result) == WHOLE
    pip = [words for words in result.started if words[:3] == ["-m", "pip", "install"]]
    checked = ["--require-hashes" in words for words in pip]
    assert checked == [True, True, False], "all but PyTorch, of which each computer has its own build"
    assert ["--no-deps" in words for words in pip] == checked, "pip has nothing to decide"
    assert all("--only-binary" in words for words in pip)
    assert not (tree.venv / "uv").exists()
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


@pytest.mark.parametrize("step", ["venv", "requirements-run", "no-deps", "-uv", "requirements-torch", "import torch"])
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
    result = tree.run("segment", FLARE_TEST_FAIL="requirements-run")
    assert result.returncode == 1
    lines = result.stderr.splitlines()
    assert lines[-2] == "ERROR: no such package"
    assert lines[-1].startswith("flare.py: embedded Slicer, Qt and numerics failed")
    assert "Traceback" not in result.stderr


def test_changed_requirements_update_the_environment(tree):
    tree.run("segment")
    (tree.locks / "requirements-run.txt").write_text("# another comment\nrun==1\n", encoding="utf-8")
    assert len(tree.run("segment").started) == 1, "comments change nothing"
    (tree.locks / "requirements-run.txt").write_text("run==2\n", encoding="utf-8")
    broken = tree.run("segment", FLARE_TEST_KILL="no-deps")
    assert ["-m", "venv"] not in [words[:2] for words in broken.started]
    assert "incomplete" in tree.run("segment").stderr, "an interrupted update is no whole environment"


def test_update_removes_what_is_no_longer_needed_and_keeps_the_layers(tree):
    tree.run("lint")
    (tree.locks / "constraints-torch.txt").write_text("cuda<=2\n", encoding="utf-8")
    update = tree.run("lint", FLARE_TEST_LEFTOVERS="mypy pytest")
    assert ["-m", "pip", "uninstall", "--quiet", "--yes", "mypy", "pytest"] in update.started
    leftovers = next(words for words in update.started if words[:2] == ["-I", "-c"])
    assert leftovers[3:] == ["pip", "run", "package"]
    assert installs(update) == WHOLE


def test_environment_from_before_there_were_layers_is_brought_up_to_date(tree):
    tree.run("segment")
    (tree.venv / "flare-complete.json").write_text('{"requirements": "0123", "python": "python"}\n', encoding="utf-8")
    update = tree.run("lint")
    assert ["-m", "venv"] not in [words[:2] for words in update.started]
    assert installs(update) == [*WHOLE, ["requirements-check.txt"]]
    assert len(tree.run("segment").started) == 1


@pytest.mark.parametrize(
    ("words", "layers"),
    [
        (["segment", "CT"], []),
        (["segment", "cohort"], []),
        (["evaluate", "--data", "DIR"], []),
        (["evaluate", "--data", "DIR", "--videos"], ["video"]),
        (["cohort", "DIR"], ["cohort"]),
        (["prepare", "--data", "DIR", "--workers=2"], ["cohort"]),
        (["evaluate", "--data", "DIR", "--cluster", "slurm"], ["cohort"]),
        (["lint"], ["check"]),
        (["bench"], ["check", "cohort"]),
        (["test", "-k", "dice"], ["check", "cohort", "video"]),
    ],
)
def test_a_command_adds_only_the_layers_that_it_wants(flare, words, layers):
    assert flare.layers_for(words[0], words[1:]) == layers


def test_layers_come_on_top_when_first_used(tree):
    tree.run("segment")
    first = tree.run("test")
    assert first.returncode == 0, first.stderr
    assert installs(first) == LAYERS
    targets = [words[words.index("--target") + 1] for words in first.started if "--target" in words]
    assert targets == [str(tree.venv / "layers" / name) for name in ("check", "cohort", "video")]
    assert all("--require-hashes" in words and "--no-deps" in words for words in first.started if "--target" in words)
    assert "[3/3] ffmpeg" in first.stderr
    assert len(tree.run("test").started) == 1
    assert len(tree.run("segment").started) == 1


def test_first_use_can_be_one_that_wants_a_layer(tree):
    result = tree.run("lint")
    assert installs(result) == [*WHOLE, ["requirements-check.txt"]]
    assert "[6/6] test tools" in result.stderr


@pytest.mark.parametrize("step", ["requirements-check", "import coverage"])
@pytest.mark.parametrize("how", ["FLARE_TEST_FAIL", "FLARE_TEST_KILL"])
def test_broken_layer_does_no_harm_to_what_runs(tree, how, step):
    tree.run("segment")
    broken = tree.run("lint", **{how: step})
    assert broken.returncode in (1, -signal.SIGKILL)
    assert list((tree.venv / "lib").rglob("*.pth")) == []
    segment = tree.run("segment")
    assert segment.returncode == 0
    assert len(segment.started) == 1
    (tree.venv / "layers" / "check").mkdir(parents=True, exist_ok=True)
    (tree.venv / "layers" / "check" / "leftover").write_text("", encoding="utf-8")
    repaired = tree.run("lint")
    assert repaired.returncode == 0
    assert installs(repaired) == [["requirements-check.txt"]]
    assert not (tree.venv / "layers" / "check" / "leftover").exists()
    assert [path.name for path in (tree.venv / "lib").rglob("*.pth")] == ["flare-check.pth"]


def test_changed_layer_is_made_anew_alone(tree):
    tree.run("test")
    (tree.locks / "requirements-check.txt").write_text("check==2\n", encoding="utf-8")
    assert len(tree.run("segment").started) == 1
    broken = tree.run("test", FLARE_TEST_KILL="requirements-check")
    assert installs(broken) == [["requirements-check.txt"]]
    assert "flare-check.pth" not in [path.name for path in (tree.venv / "lib").rglob("*.pth")]
    assert installs(tree.run("test")) == [["requirements-check.txt"]]


@pytest.mark.parametrize("verb", ["segment", "lint"])
def test_packages_that_do_not_fit_together_are_told(tree, verb):
    found = "package 1 requires fire, which is not installed.\nother 3 requires x, which is not installed.\n"
    result = tree.run("lint", FLARE_TEST_CHECK=found)
    assert result.returncode == 0, "what was meant to lack its dependencies, and what the person installed"
    shutil.rmtree(tree.venv)
    wrong = "run 1 requires numpy, which is not installed." if verb == "segment" else "Check 1 has requirement x<2."
    result = tree.run(verb, FLARE_TEST_CHECK=f"{found}{wrong}\n")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-2:] == [
        wrong,
        f"flare.py: the packages do not fit together, as told above: remove {tree.venv}, run again.",
    ]


TORCH_BUILDS = [
    (" + torch==2.13.0+cpu", "torch==2.13.0+cpu: about 0.2 GB to download, 0.8 GB on disk"),
    (" - torch==2.12.0+cu126\n + torch==2.13.0", "torch==2.13.0: about 0.2 GB to download, 0.8 GB on disk"),
    (" + nvidia-cublas==13.1\n + torch==2.13.0+cu130", "torch==2.13.0+cu130: about 2.7 GB to download, 4.7 GB on disk"),
    (" + torch==2.13.0+cu130", "torch==2.13.0+cu130: about 2.7 GB to download, 4.7 GB on disk"),
    ("Would make no changes", ""),
]


@pytest.mark.parametrize(("plan", "told"), TORCH_BUILDS)
def test_uv_chooses_the_build_of_pytorch_for_this_computer(tree, plan, told):
    plan = f"Using Python 3.11.7 environment at: /home/nvidia/.venv\nResolved 30 packages in 2s\n{plan}"
    result = tree.run("segment", FLARE_TEST_UV=plan)
    assert result.returncode == 0, result.stderr
    assert installs(result) == WHOLE[:2], "uv installed PyTorch, not pip"
    asked, done = (words for words in result.started if words[:2] == ["-m", "uv"])
    assert asked == [*(word for word in done if word != "--quiet"), "--dry-run"]
    assert done[done.index("--torch-backend") + 1] == "auto"
    assert done[done.index("--python") + 1] == str(tree.venv / "bin" / "python")
    sizes = [line.strip() for line in result.stderr.splitlines() if "torch==" in line]
    assert sizes == [told] * bool(told)


def test_pip_installs_pytorch_where_uv_cannot(tree):
    result = tree.run("segment")
    pip = next(words for words in result.started if words[:3] == ["-m", "pip", "install"] and "-c" in words)
    constraints = Path(pip[pip.index("-c") + 1]).read_text(encoding="utf-8")
    assert constraints.split() == ["run==1", "cuda<=1"], "all that PyTorch needs stays as it was locked"
    assert "PyTorch's own index is out of reach: taking the build that pip finds" in result.stderr


def test_too_little_disk_space_for_the_build_with_cuda_is_told_before_it_is_downloaded(flare, tmp_path, monkeypatch):
    environment = flare.Environment(REPOSITORY)
    environment.root, environment.folder, environment.started = tmp_path, tmp_path / ".venv", 0.0
    environment.folder.mkdir()
    usage = flare.shutil.disk_usage(tmp_path)._replace(free=6 * 10**9)
    monkeypatch.setattr(flare.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(flare, "output", lambda *_, **__: "\n + nvidia-cublas==13.1\n + torch==2.13.0\n")
    with pytest.raises(flare.Refusal, match=r"6\.0 GB free, but PyTorch for this GPU needs 9 GB"):
        environment._install_torch()


@pytest.mark.parametrize(
    ("platform", "machine", "fits"),
    [
        ("linux", "x86_64", True),
        ("win32", "AMD64", True),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", False),
        ("linux", "aarch64", False),
    ],
)
def test_computers_that_no_packages_exist_for_are_told_so(flare, monkeypatch, platform, machine, fits):
    monkeypatch.setattr(flare.sys, "platform", platform)
    monkeypatch.setattr(flare.platform, "machine", lambda: machine)
    if fits:
        flare.check_computer()
    else:
        with pytest.raises(flare.Refusal, match=f"on {machine} cannot hold the environment: it needs Linux or Windows"):
            flare.check_computer()


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


def test_the_checks_run_in_the_slicer_that_is_named(tree, fake_slicer):
    result = tree.run("test", "--slicer", str(fake_slicer), "-k", "panel")
    assert result.returncode == 0
    assert result.stdout == f"ran pytest {fake_slicer}\n"
    assert result.started[-1] == ["-m", "pytest", "-q", "Testing/Slicer", "-k", "panel"]


@pytest.mark.skipif(not hasattr(os, "nice"), reason="the system has no nice value")
@pytest.mark.parametrize(("given", "kept"), [({}, str(os.nice(0))), ({"SLICER_BACKGROUND_THREAD_PRIORITY": "7"}, "7")])
def test_slicer_keeps_the_priority_it_is_started_with(flare, monkeypatch, given, kept):
    monkeypatch.delenv("SLICER_BACKGROUND_THREAD_PRIORITY", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert flare.own_priority() == {"SLICER_BACKGROUND_THREAD_PRIORITY": kept}


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
    assert "selectModule('FlareSegment')" in code and repr(str(ct)) in code
    assert {"FlareSegmentSlicerLib.scene.file_loading", "load_ct"} <= set(compile(code, "code", "exec").co_names)


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (["segments"], {}, "there is no verb segments"),
        (["evaluate"], {}, "there is no verb evaluate"),
        (["gui", "a", "b"], {}, "gui takes one CT or nothing"),
        (["gui", "missing.nrrd"], {"DISPLAY": ":9"}, "missing.nrrd: no such file or folder"),
        (["gui"], {"QT_QPA_PLATFORM": ""}, "gui needs a display"),
        (["bench", "--slicer", "x"], {}, "bench does not run in a real Slicer"),
        (["test", "--slicer", "/nowhere"], {}, "/nowhere: no Slicer there"),
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
    assert "segment [CT ...]" in result.stdout
    assert "evaluate" not in result.stdout
    assert tree.run().returncode == 2
    evaluate = tree.root / script_path("evaluate")
    evaluate.parent.mkdir(parents=True, exist_ok=True)
    evaluate.write_text("", encoding="utf-8")
    assert "evaluate [options]" in tree.run("--help").stdout


@pytest.mark.parametrize("verb", ["gui", "test", "bench", "lint"])
def test_every_verb_has_help_that_starts_nothing(tree, flare, verb):
    for word in ("--help", "-h"):
        result = tree.run(verb, word)
        assert (result.returncode, result.stderr, result.started) == (0, "", [])
        assert result.stdout.startswith(f"Usage: python3 flare.py {verb}")
    assert set(flare.TOOL_HELP) == set(flare.TOOLS)


def test_the_help_of_bench_names_every_benchmark(flare, repository):
    text = flare.tool_help(repository, "bench")
    for path in (repository / "Testing" / "Benchmarks").glob("*.py"):
        assert f"  {path.stem} " in text


@pytest.mark.parametrize("name", ["panel", "choices", "pipeline", "training"])
def test_benchmarks_of_minutes_tell_what_they_do(repository, name):
    text = (repository / "Testing" / "Benchmarks" / f"{name}.py").read_text(encoding="utf-8")
    assert "in told(" in text


def test_tests_run_with_the_users_arguments(tree):
    result = tree.run("test", "-k", "volume", FLARE_TEST_STATUS="1")
    assert result.returncode == 1
    assert result.started[-1] == ["-m", "pytest", "-q", "-k", "volume"]


def test_the_whole_suite_must_run_most_lines(tree):
    """Too few lines end with pytest-cov's status, which is handed on."""
    result = tree.run("test", FLARE_TEST_STATUS="1")
    assert result.returncode == 1
    assert result.started[-1][:6] == ["-m", "pytest", "-q", "--cov", "--cov-report=term", "--cov-fail-under=95"]


def test_the_whole_suite_uses_several_processors(tree):
    """Files stay whole: what a file's fixtures make is made once."""
    options = ["-n", "logical", "--maxprocesses=4", "--dist", "loadfile", "--max-worker-restart=2"]
    assert tree.run("test").started[-1][6:] == options


def test_a_test_that_waits_in_vain_ends_with_a_trace(repository, tmp_path):
    """Nothing else ends one that is inside Qt's event loop, where Python hears no signal."""
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    settings = project["tool"]["pytest"]["ini_options"]
    assert 600 <= settings["faulthandler_timeout"] <= 1200
    ends = settings["faulthandler_exit_on_timeout"]
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nfaulthandler_timeout = 1\nfaulthandler_exit_on_timeout = {ends}\n")
    (tmp_path / "test_in_vain.py").write_text("def test_it():\n    import time\n    time.sleep(30)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False)
    assert done.returncode != 0
    assert "in test_it" in done.stderr


@pytest.mark.parametrize("finding", ["ruff", "mypy", "apilint", "import_lint", ""])
def test_lint_runs_every_check_and_fails_if_one_does(tree, finding):
    result = tree.run("lint", FLARE_TEST_FINDINGS=finding)
    assert [words[1] for words in result.started[-4:]] == ["ruff", "mypy", "apilint", "import_lint"]
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
    needed = {*flare.LIBRARIES, *flare.WINDOW_LIBRARIES}
    assert needed <= set(packages)
    assert packages == sorted({*needed, "fonts-dejavu-core", "libgl1-mesa-dri"}), "and letters, and a GL that draws"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"DISPLAY": ":9"}, True),
        ({"DISPLAY": ":9", "QT_QPA_PLATFORM": "xcb"}, True),
        ({"DISPLAY": ":9", "QT_QPA_PLATFORM": "offscreen"}, False),
        ({}, False),
    ],
)
def test_libraries_of_windows_are_asked_for_only_where_windows_open(flare, tree, monkeypatch, variables, named):
    """What is missing is named before Qt aborts, and a computer without a display needs none of it."""

    def load(name):
        if name in ("libxcb-icccm.so.4", "libxcb-xinerama.so.0"):
            raise OSError(name)

    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(flare.sys, "platform", "linux")
    monkeypatch.setattr(flare.ctypes, "CDLL", load)
    monkeypatch.setattr(flare.Environment, "ensure", lambda self: None)
    monkeypatch.setattr(flare, "run", lambda *_: 0)
    for verb in ("gui", "test"):
        if verb == "gui" and not variables:
            continue
        monkeypatch.chdir(tree.root)
        if named:
            with pytest.raises(flare.Refusal, match=r"apt-get install libxcb-icccm4 libxcb-xinerama0$"):
                flare.main([verb], tree.root)
        else:
            assert flare.main([verb], tree.root) == 0
    if "QT_QPA_PLATFORM" not in variables:
        assert flare.main(["segment"], tree.root) == 0


def linked(path):
    """{name of a library: where the loader finds it, None where it does not} of all that a library leads to."""
    listing = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=True).stdout
    rows = [line.split() for line in listing.splitlines()]
    return {row[0]: None if row[2] == "not" else row[2] for row in rows if len(row) > 2 and row[1] == "=>"}


@pytest.mark.skipif(not shutil.which("ldd"), reason="no ldd here")
def test_libraries_are_all_that_the_shipped_qt_links(flare):
    """Every library that Qt's plugins lead to is listed, comes with a listed one's package, or with Python itself."""
    qt = pytest.importorskip("PyQt5", reason="PyQt5 is not installed")
    shipped = Path(qt.__file__).parent
    plugins = shipped / "Qt5" / "plugins"
    if not plugins.is_dir():
        pytest.skip("PyQt5 does not bring its own Qt here")
    names = ("QtCore", "QtGui", "QtWidgets", "QtSvg")
    modules = [path for name in names for path in shipped.glob(f"{name}.*so")]
    kinds = ("platforms/*offscreen", "imageformats/*", "iconengines/*", "platforms/*xcb", "xcbglintegrations/*")
    # a wheel without Qt5Pdf brings the plugin that needs it all the same
    files = {kind: [path for path in plugins.glob(f"{kind}.so") if "pdf" not in path.name] for kind in kinds}
    assert all(files.values())
    for windows in (False, True):
        listed = set(flare.LIBRARIES.values()) | (set(flare.WINDOW_LIBRARIES.values()) if windows else set())
        wanted = modules + [path for kind in (kinds if windows else kinds[:3]) for path in files[kind]]
        needed = {name: where for path in wanted for name, where in linked(path).items()}
        outside = {name for name, where in needed.items() if where is None or not Path(where).is_relative_to(shipped)}
        found = [where for name, where in needed.items() if name in listed and where]
        brought = {name for path in (*found, sys.executable) for name in linked(path)}
        base = {"libstdc++.so.6", "libgcc_s.so.1", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1"}
        assert outside - listed - brought - base == set()
        if windows:
            direct = {name for kind in kinds[3:] for path in files[kind] for name in linked(path)} & outside
            assert set(flare.WINDOW_LIBRARIES.values()) <= direct, "nothing is asked for that Qt does not link"


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
    assert result.stderr == f"flare.py needs Python 3.11, 3.12 or 3.13; this is Python {version}.\n"


def test_the_pythons_that_are_named_are_those_that_hold_the_environment(flare):
    named = [f"{major}.{minor}" for major, minor in flare.PYTHONS]
    told = f"needs Python {', '.join(named[:-1])} or {named[-1]}; this is"
    assert told in (REPOSITORY / "flare.py").read_text(encoding="utf-8")


def test_old_pythons_can_parse_the_whole_file():
    """They parse all of it before they run its first line: none of what came after Python 2.7 stands in it."""
    text = (REPOSITORY / "flare.py").read_text(encoding="ascii")
    tree = ast.parse(text, feature_version=(3, 4))
    newer = (
        ast.JoinedStr,
        ast.AnnAssign,
        ast.NamedExpr,
        ast.Nonlocal,
        ast.AsyncFunctionDef,
        ast.YieldFrom,
        ast.MatMult,
    )
    for node in ast.walk(tree):
        assert not isinstance(node, newer), ast.unparse(node)
        if isinstance(node, ast.Raise):
            assert node.cause is None, f"line {node.lineno}: raise ... from"
        if isinstance(node, ast.FunctionDef):
            assert not node.args.kwonlyargs and not node.returns and not any(arg.annotation for arg in node.args.args)
        if isinstance(node, ast.ClassDef):
            assert not node.keywords
        if isinstance(node, ast.Call):
            stars = [isinstance(argument, ast.Starred) for argument in node.args]
            assert stars == sorted(stars) and sum(stars) <= 1, ast.unparse(node)
            unpacked = [keyword.arg is None for keyword in node.keywords]
            assert unpacked == sorted(unpacked) and sum(unpacked) <= 1, ast.unparse(node)
        if isinstance(node, ast.List | ast.Tuple | ast.Set | ast.Dict):
            inside = node.keys if isinstance(node, ast.Dict) else node.elts
            assert not any(item is None or isinstance(item, ast.Starred) for item in inside), ast.unparse(node)


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.8"])
def test_old_python_itself_tells_in_one_line(version):
    pythons = [shutil.which(f"python{version}"), *Path.home().glob(f".pyenv/versions/{version}.*/bin/python")]
    works = [one for one in pythons if one and not subprocess.run([one, "-c", ""], capture_output=True).returncode]
    if not works:
        pytest.skip(f"there is no Python {version} here")
    command = [works[0], str(REPOSITORY / "flare.py"), "segment"]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"flare.py needs Python 3.11, 3.12 or 3.13; this is Python {version}.\n"


class TestPackaging:
    """What the extension packages is what its folders hold."""

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
