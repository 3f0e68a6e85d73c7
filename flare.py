"""The one command of FlareSegment's working tree: `python3 flare.py VERB ...` on Linux, macOS and Windows.

On first use it makes the folder `.venv` with everything pinned in the requirements files, then runs the verb in the
embedded Slicer (Testing/slicerhost) or, where `--slicer PATH` or the environment variable SLICER names one, in a real
Slicer. It needs nothing but Python's standard library, and it starts on old Pythons far enough to say that they are
too old.

Exit status: that of the program that ran; 2 for bad usage, 1 where the environment cannot be made, 130 after Ctrl-C.
"""

from __future__ import print_function

import sys

if sys.version_info < (3, 9):
    sys.exit("flare.py needs Python 3.9 or newer; this is Python %d.%d." % sys.version_info[:2])

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PYTHONS = ((3, 11), (3, 12), (3, 13))  # those that all pinned packages have wheels for
DISK_NEEDED_GB = 5
LEAST_COVERAGE = 95  # percent of the lines of both libraries that the whole suite must run
LIBRARIES = {
    "libgl1": "libGL.so.1",
    "libegl1": "libEGL.so.1",
    "libglib2.0-0": "libgthread-2.0.so.0",
    "libfontconfig1": "libfontconfig.so.1",
    "libdbus-1-3": "libdbus-1.so.3",
    "libxkbcommon0": "libxkbcommon.so.0",
}
SCRIPTS = {
    "segment": ("FlareSegment/Scripts/segment.py", "[CT] [options]", "segment a CT, or the built-in phantom torso"),
    "prepare": ("FlareSegmentTraining/Scripts/prepare.py", "[options]", "prepare labeled CTs for training"),
    "synthesize": ("FlareSegmentTraining/Scripts/synthesize.py", "deform|draw|empty [options]", "make training cases"),
    "train": ("FlareSegmentTraining/Scripts/train.py", "[options]", "train a model"),
    "evaluate": ("FlareSegmentTraining/Scripts/evaluate.py", "[options]", "measure a model on labeled CTs"),
}
SHOW_PANEL = "import slicer; slicer.util.selectModule('FlareSegment')"
SHOW_FILE = "; slicer.util.loadVolume({path!r})"
SHOW_FOLDER = """
from pathlib import Path
from FlareSegmentLib.files.image_io import read_volume
volume, warnings = read_volume({path!r})
node = slicer.util.addVolumeFromArray(volume.array, volume.affine_ras, Path({path!r}).name)
slicer.util.setSliceViewerLayers(background=node, fit=True)
print(*warnings, sep="\\n")
"""
TOOLS = {
    "gui": ("[CT]", "open the panel and the views in a window"),
    "test": ("[pytest arguments]", "run the whole test suite"),
    "bench": ("[benchmark ...]", "run the benchmarks"),
    "lint": ("", "ruff, type check and Slicer API lint"),
}


class Refusal(Exception):
    """One clear line for the user, and the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


def say(line=""):
    """Tell the user something; standard output belongs to the program that runs."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- environment


class Step:
    """One pip command of the environment's making."""

    def __init__(self, title, arguments, size):
        self.title, self.arguments, self.size = title, arguments, size


class Environment:
    """The folder `.venv` below `root`: complete exactly when its stamp holds the hash of all requirements.

    The stamp is written last and removed before anything is changed, so that an interrupted making never looks whole.
    A folder that this class did not begin is never touched.
    """

    def __init__(self, root):
        self.root = Path(root)
        self.folder = self.root / ".venv"
        self.stamp = self.folder / "flare-complete.json"
        self.begun = self.folder / "flare-begun"
        windows = os.name == "nt"
        self.python = self.folder / ("Scripts" if windows else "bin") / ("python.exe" if windows else "python")
        self.torch = [self.root / "requirements-torch.txt"]
        self.packages = [self.root / "requirements-dev.txt"]
        self.without_dependencies = [self.root / "Testing" / "slicerhost" / "requirements-no-deps.txt"]

    def fingerprint(self):
        """Hash of everything that decides what is installed."""
        digest = hashlib.sha256()
        for path in self.torch + self.packages + self.without_dependencies:
            text = path.read_text(encoding="utf-8")
            lines = [line.split("#")[0].strip() for line in text.splitlines()]
            digest.update("\n".join([path.name] + [line for line in lines if line] + [""]).encode())
        return digest.hexdigest()

    def state(self):
        """'complete', 'absent', 'outdated' (whole, of other requirements), 'half-made' or 'foreign'."""
        if not self.folder.exists():
            return "absent"
        if not self.begun.exists():
            return "foreign" if any(self.folder.iterdir()) else "half-made"
        try:
            made_of = json.loads(self.stamp.read_text(encoding="utf-8"))["requirements"]
        except (OSError, ValueError, KeyError, TypeError):
            return "half-made"
        if not self.python.exists():  # also where the Python that it was made with is gone
            return "half-made"
        return "complete" if made_of == self.fingerprint() else "outdated"

    def ensure(self):
        """Make or repair the environment where necessary; several at once wait for each other."""
        if self.state() == "complete":
            return
        with locked(self.root / ".venv.lock"):
            state = self.state()
            if state != "complete":
                self._make(state)

    def _make(self, state):
        if state == "foreign":
            raise Refusal("%s was not made by flare.py: move it away and run this again." % self.folder)
        base = find_python()
        free = shutil.disk_usage(str(self.root)).free / 1e9
        if state != "outdated" and free < DISK_NEEDED_GB:
            raise Refusal("%s: %.1f GB free, but the environment needs %d GB." % (self.root, free, DISK_NEEDED_GB), 1)
        reason = {
            "absent": "First use: making the Python environment in %s (once, several minutes).",
            "half-made": "The Python environment in %s is incomplete (an interrupted first use?): making it anew.",
            "outdated": "The requirements have changed: bringing the Python environment in %s up to date.",
        }[state]
        say(reason % self.folder)
        started = time.monotonic()
        steps = self._steps()
        total = len(steps) + 2
        with contextlib.suppress(FileNotFoundError):
            self.stamp.unlink()
        if state != "outdated":
            remove_tree(self.folder)
            self.folder.mkdir()
            self.begun.write_text("flare.py makes this folder and may remove it.\n", encoding="utf-8")
            say("[1/%d] virtual environment of %s" % (total, base))
            self._run(base, ["-m", "venv", str(self.folder)], "making the virtual environment", started)
        for number, step in enumerate(steps, 2):
            say("[%d/%d] %s (%s)" % (number, total, step.title, step.size))
            self._run(str(self.python), ["-m", "pip", "install"] + step.arguments, step.title, started)
        say("[%d/%d] trying the packages" % (total, total))
        probe = "import torch, numpy, scipy, SimpleITK, vtk, slicer_core, PyQt5.QtWidgets, pytest"
        self._run(str(self.python), ["-c", probe], "importing the packages", started)
        contents = {"requirements": self.fingerprint(), "python": base}
        unfinished = self.stamp.with_suffix(".part")
        unfinished.write_text(json.dumps(contents) + "\n", encoding="utf-8")
        os.replace(str(unfinished), str(self.stamp))
        say("Done in %s." % minutes(time.monotonic() - started))

    def _steps(self):
        def files(paths):
            return [word for path in paths for word in ("-r", str(path))]

        quiet = [] if sys.stderr.isatty() else ["--quiet", "--progress-bar", "off"]
        quiet += ["--disable-pip-version-check", "--no-input"]
        checked = quiet + ["--require-hashes", "--only-binary", ":all:"]  # nothing else, and nobody's setup.py is run
        return [
            Step("embedded Slicer, Qt and tools", checked + files(self.packages), "600 MB to download, 1.9 GB on disk"),
            Step("Slicer's terminology", checked + ["--no-deps"] + files(self.without_dependencies), "small"),
            Step("PyTorch", quiet + files(self.torch), "200 MB to download for a CPU, 0.8 GB on disk"),
        ]

    def _run(self, python, arguments, what, started):
        process = start([python] + arguments, clean_environment(), stdout=sys.stderr)
        heartbeat = None if sys.stderr.isatty() else 30
        while True:
            try:
                status = process.wait(timeout=heartbeat)
                break
            except subprocess.TimeoutExpired:
                say("      ... %s so far" % minutes(time.monotonic() - started))
        if status:
            hint = " On Debian and Ubuntu: apt-get install python3-venv." if "venv" in arguments else ""
            raise Refusal("%s failed, the reason is above.%s Run the command again to retry." % (what, hint), 1)


def find_python():
    """An interpreter that the pinned packages exist for: the running one, or one on the search path."""
    if sys.version_info[:2] in PYTHONS:
        return sys.executable
    for major, minor in reversed(PYTHONS):
        found = shutil.which("python%d.%d" % (major, minor))
        if found and python_version(found) == (major, minor):
            return found
    supported = ", ".join("%d.%d" % version for version in PYTHONS)
    raise Refusal(
        "Python %d.%d cannot hold the environment: install Python %s and run flare.py with it."
        % (sys.version_info[:2] + (supported,))
    )


def python_version(python):
    """(major, minor) of an interpreter, None where it does not run."""
    try:
        words = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            check=True,
            timeout=60,
        ).stdout.split()
        return int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def remove_tree(folder):
    """Remove a folder of our own; the marker goes last, so that an interrupted removal is still known as ours."""
    if folder.exists():
        for entry in sorted(folder.iterdir(), key=lambda path: path.name == "flare-begun"):
            shutil.rmtree(str(entry)) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        folder.rmdir()


@contextlib.contextmanager
def locked(path):
    """Hold an exclusive lock on a file; the system releases it when the process ends, however it ends."""
    with open(str(path), "a+b") as file:
        waiting = False
        while not try_lock(file):
            if not waiting:
                say("Another flare.py is making the environment: waiting for it.")
                waiting = True
            time.sleep(0.5)
        yield


def try_lock(file):
    """Take the lock of an open file without waiting; False where another process has it."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def minutes(seconds):
    """Seconds as a person says them."""
    return "%d s" % seconds if seconds < 120 else "%d min %d s" % divmod(int(seconds), 60)


# ---------------------------------------------------------------- starting programs


def clean_environment(**variables):
    """The environment without what would mix another Python's packages in."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update(PYTHONNOUSERSITE="1", **variables)
    return environment


def start(command, environment, stdout=None):
    """Start a program; its standard streams are ours unless said otherwise."""
    return subprocess.Popen([str(word) for word in command], env=environment, stdout=stdout)


def run(command, environment):
    """Run a program to its end and return its exit status; after Ctrl-C, which it gets too, wait for its own ending."""
    try:
        process = start(command, environment)
    except OSError as error:
        raise Refusal("%s cannot be started: %s." % (command[0], error.strerror)) from None
    interrupted = False
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            interrupted = True
    if interrupted:
        return 130
    return 128 - status if status < 0 else status


def has_display():
    """Whether windows can be shown."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def check_libraries():
    """Name the Debian packages that Qt and VTK need and the system lacks."""
    if not sys.platform.startswith("linux"):
        return
    missing = []
    for package, library in LIBRARIES.items():
        try:
            ctypes.CDLL(library)
        except OSError:
            missing.append((package, library))
    if missing:
        raise Refusal(
            "System libraries are missing (%s). On Debian and Ubuntu: apt-get install %s"
            % (", ".join(library for _, library in missing), " ".join(package for package, _ in missing)),
            1,
        )


def slicer_executable(path):
    """The program of a Slicer installation, given as the program itself, its folder or the macOS application."""
    given = Path(path).expanduser()
    for name in ("", "Slicer", "Slicer.exe", "Contents/MacOS/Slicer"):
        candidate = given / name if name else given
        if candidate.is_file():
            return candidate.resolve()
    found = shutil.which(path)
    if found:
        return Path(found)
    raise Refusal("%s: no Slicer there; name the program Slicer (Slicer.exe) or the folder that holds it." % path)


def module_options(root):
    """Slicer's options that load our modules."""
    folders = [root / "FlareSegment", root / "FlareSegmentTraining"]
    found = [folder for folder in folders if (folder / (folder.name + ".py")).is_file()]
    return ["--additional-module-paths"] + found


def run_in_slicer(root, slicer, options, environment_variables):
    """Start a real Slicer (`slicer` its path) or the embedded one (None) with Slicer's options."""
    if slicer:
        return run([slicer_executable(slicer), "--no-splash"] + options, dict(os.environ))
    check_libraries()
    environment = Environment(root)
    environment.ensure()
    variables = clean_environment(PYTHONPATH=str(root / "Testing"), **environment_variables)
    return run([environment.python, "-m", "slicerhost", "--no-splash"] + options, variables)


def offscreen():
    """Qt's setting for programs that show no window; one that the user has set stays."""
    return {"QT_QPA_PLATFORM": os.environ.get("QT_QPA_PLATFORM", "offscreen")}


# ---------------------------------------------------------------- verbs


def run_script(root, slicer, script, arguments):
    """A headless script; everything behind --ignore-rest is the script's own, also words that Slicer knows."""
    options = ["--no-main-window", "--python-script", root / script]
    return run_in_slicer(root, slicer, options + ["--ignore-rest"] + arguments, offscreen())


def run_gui(root, slicer, arguments):
    """The panel in a window, with a CT where one is named."""
    if len(arguments) > 1 or arguments[:1] and arguments[0].startswith("-"):
        raise Refusal("gui takes one CT or nothing: python3 flare.py gui [CT]")
    if arguments and not Path(arguments[0]).exists():
        raise Refusal("%s: no such file or folder." % arguments[0])
    if not has_display() and "QT_QPA_PLATFORM" not in os.environ:
        raise Refusal("gui needs a display (DISPLAY is not set); python3 flare.py segment needs none.")
    code = SHOW_PANEL
    if arguments:
        path = Path(arguments[0]).resolve()
        code += (SHOW_FOLDER if path.is_dir() else SHOW_FILE).format(path=str(path))
    return run_in_slicer(root, slicer, module_options(root) + ["--python-code", code], {})


def run_tools(root, verb, arguments):
    """test, bench and lint: programs of the environment's Python."""
    check_libraries()
    environment = Environment(root)
    environment.ensure()
    python = environment.python
    if verb == "test":
        variables = clean_environment(**({} if has_display() else offscreen()))
        os.chdir(str(root))
        whole = ["--cov", "--cov-report=term", "--cov-fail-under=%d" % LEAST_COVERAGE]
        coverage = [] if arguments else whole  # of a part of the suite it says nothing
        return run([python, "-m", "pytest", "-q"] + coverage + arguments, variables)
    if verb == "bench":
        return run_benchmarks(root, python, arguments)
    return run_lint(root, python)


def run_benchmarks(root, python, names):
    """The named benchmarks, or all; the first failure's status."""
    known = {path.stem: path for path in sorted((root / "Testing" / "Benchmarks").glob("*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refusal("no benchmark %s; there are: %s." % (", ".join(unknown), ", ".join(known)))
    folders = [root / "FlareSegment", root / "FlareSegmentTraining", root / "Testing"]
    variables = clean_environment(PYTHONPATH=os.pathsep.join(str(folder) for folder in folders), **offscreen())
    statuses = [run([python, known[name]], variables) for name in names or known]
    return next((status for status in statuses if status), 0)


def run_lint(root, python):
    """Every check, also behind one that finds something; 0 where none does."""
    checks = [
        ("ruff", ["-m", "ruff", "check", "."]),
        ("mypy", ["-m", "mypy"]),
        ("Slicer API", ["-m", "apilint"]),
    ]
    os.chdir(str(root))
    variables = clean_environment(PYTHONPATH=str(root / "Testing"), **offscreen())
    statuses = {}
    for name, arguments in checks:
        say("== %s" % name)
        statuses[name] = run([python] + arguments, variables)
        if statuses[name] == 130:
            return 130
    failed = [name for name, status in statuses.items() if status]
    say("lint: %s" % ("findings of " + ", ".join(failed) if failed else "nothing found"))
    return 1 if failed else 0


def usage(root):
    """The help text: only verbs that this working tree can run."""
    lines = ["Usage: python3 flare.py [--slicer PATH] VERB ...", ""]
    scripts = {verb: row[1:] for verb, row in SCRIPTS.items() if (root / row[0]).is_file()}
    for verb, (arguments, meaning) in list(scripts.items()) + list(TOOLS.items()):
        lines.append("  %-28s %s" % ((verb + " " + arguments).strip(), meaning))
    lines += [
        "",
        "--slicer PATH, or the environment variable SLICER, runs scripts and gui in that Slicer, not the embedded one.",
        "python3 flare.py segment --help tells a script's own options.",
    ]
    return "\n".join(lines)


def take_slicer(words):
    """Take `--slicer PATH` out of the words; returns the path (or None) and the other words."""
    words = list(words)
    for index, word in enumerate(words):
        if word == "--":
            break
        if word == "--slicer":
            if index + 1 == len(words):
                raise Refusal("--slicer needs the path of a Slicer program.")
            return words[index + 1], words[:index] + words[index + 2 :]
        if word.startswith("--slicer="):
            return word[len("--slicer=") :], words[:index] + words[index + 1 :]
    return None, words


def main(words, root=ROOT):
    """Run the command line; returns the exit status."""
    named, words = take_slicer(words)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage(root))
        return 0 if words else 2
    verb, arguments = words[0], words[1:]
    if verb in TOOLS and verb != "gui":
        if named:
            raise Refusal("%s does not run in a real Slicer: leave out --slicer." % verb)
        return run_tools(root, verb, arguments)
    slicer = named or os.environ.get("SLICER")
    if verb == "gui":
        return run_gui(root, slicer, arguments)
    if verb in SCRIPTS and (root / SCRIPTS[verb][0]).is_file():
        return run_script(root, slicer, SCRIPTS[verb][0], arguments)
    raise Refusal("there is no verb %s; python3 flare.py --help names them." % verb)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Refusal as refusal:
        say("flare.py: %s" % refusal)
        sys.exit(refusal.status)
    except KeyboardInterrupt:
        say("Interrupted.")
        sys.exit(130)
