"""The one command of FlareSegment's working tree: `python3 flare.py VERB ...` on Linux, macOS and Windows.

On first use it makes the folder `.venv` with what Testing/Locks/requirements-run.txt pins, then runs the verb in the
embedded Slicer (Testing/slicerhost) or, where `--slicer PATH` or the environment variable SLICER names one, in a real
Slicer. What only some verbs need comes on top when one of them is first used. It needs nothing but Python's standard
library, and old Pythons down to 2.7 parse it, far enough to say that they are too old.

Exit status: that of the program that ran; 2 for bad usage, 1 where the environment cannot be made, 130 after Ctrl-C.
"""

from __future__ import print_function

import sys

if sys.version_info < (3, 9):
    sys.exit("flare.py needs Python 3.11, 3.12 or 3.13; this is Python %d.%d." % sys.version_info[:2])

import ast
import collections
import contextlib
import ctypes
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
PYTHONS = ((3, 11), (3, 12), (3, 13))  # those that all pinned packages have wheels for
COMPUTERS = (("linux", "x86_64"), ("darwin", "arm64"), ("win32", "amd64"))  # likewise
DISK_NEEDED_GB = 5
CUDA_DISK_NEEDED_GB = 9  # for PyTorch's build for NVIDIA GPUs alone
LAYER_DISK_NEEDED_GB = 1
CPU_SIZE = "about 0.2 GB to download, 0.8 GB on disk"
CUDA_SIZE = "about 2.7 GB to download, 4.7 GB on disk"
RUN_MODULES = "numpy, scipy, SimpleITK, nibabel, matplotlib, vtk, slicer_core, PyQt5.QtWidgets"
LEAST_COVERAGE = 95  # percent of the lines of both libraries that the whole suite must run
LIBRARIES = {
    "libgl1": "libGL.so.1",
    "libegl1": "libEGL.so.1",
    "libglib2.0-0": "libgthread-2.0.so.0",
    "libfontconfig1": "libfontconfig.so.1",
    "libdbus-1-3": "libdbus-1.so.3",
    "libxext6": "libXext.so.6",
    "libxkbcommon0": "libxkbcommon.so.0",
}
WINDOW_LIBRARIES = {
    "libx11-6": "libX11.so.6",
    "libx11-xcb1": "libX11-xcb.so.1",
    "libxcb1": "libxcb.so.1",
    "libxcb-glx0": "libxcb-glx.so.0",
    "libxcb-icccm4": "libxcb-icccm.so.4",
    "libxcb-image0": "libxcb-image.so.0",
    "libxcb-keysyms1": "libxcb-keysyms.so.1",
    "libxcb-randr0": "libxcb-randr.so.0",
    "libxcb-render-util0": "libxcb-render-util.so.0",
    "libxcb-render0": "libxcb-render.so.0",
    "libxcb-shape0": "libxcb-shape.so.0",
    "libxcb-shm0": "libxcb-shm.so.0",
    "libxcb-sync1": "libxcb-sync.so.1",
    "libxcb-xfixes0": "libxcb-xfixes.so.0",
    "libxcb-xinerama0": "libxcb-xinerama.so.0",
    "libxcb-xkb1": "libxcb-xkb.so.1",
    "libxkbcommon-x11-0": "libxkbcommon-x11.so.0",
}
SCRIPTS = {
    "segment": ("FlareSegment/Scripts/segment.py", "[CT ...] [options]", "segment CTs, or the built-in phantom torso"),
    "prepare": ("FlareSegmentTraining/Scripts/prepare.py", "[options]", "prepare labeled CTs for training"),
    "synthesize": ("FlareSegmentTraining/Scripts/synthesize.py", "deform|draw|empty [options]", "make training cases"),
    "train": ("FlareSegmentTraining/Scripts/train.py", "[options]", "train a model"),
    "teach": ("FlareSegmentTraining/Scripts/teach.py", "[options]", "teach a model with corrected CTs"),
    "evaluate": ("FlareSegmentTraining/Scripts/evaluate.py", "[options]", "measure a model on labeled CTs"),
    "cohort": ("FlareSegmentTraining/Scripts/cohort.py", "FOLDER|LIST [options]", "segment thousands of CTs"),
}
SHOW_PANEL = "import slicer; slicer.util.selectModule('FlareSegment')"
SHOW_CT = """
from FlareSegmentLib import command_line
from FlareSegmentSlicerLib.scene.file_loading import load_ct
status = command_line.run(lambda: [command_line.warn(warning) for warning in load_ct({path!r})[1]])
if status:
    slicer.util.exit(status)
"""
TOOLS = {
    "gui": ("[CT]", "open the panel and the views in a window"),
    "test": ("[pytest arguments]", "run the whole test suite"),
    "bench": ("[benchmark ...]", "run the benchmarks"),
    "lint": ("", "ruff, type check, Slicer API and import lint"),
}


TOOL_HELP = {
    "gui": (
        "Opens the panel and the views in a window, with a CT where one is named: a NIfTI, NRRD or MetaImage file or\n"
        "a folder of DICOM files. --slicer PATH opens them in that Slicer."
    ),
    "test": (
        "Runs the whole test suite and tells its coverage. What is named is given to pytest: a test file, -k WORD, -x."
    ),
    "bench": (
        "Runs the named benchmarks, or all (that takes an hour or more). Testing/Benchmarks/README.md describes them."
    ),
    "lint": (
        "Runs ruff, mypy, the check of what the code asks of Slicer's API and that of which way imports point. "
        "Status 1 where one finds something."
    ),
}

# What comes on top of what every verb runs, in a folder of its own, for these verbs: requirements-NAME.txt.
Layer = collections.namedtuple("Layer", ["wanted_by", "title", "size", "modules"])
LAYERS = {
    "check": Layer(
        ("test", "bench", "lint"),
        "test tools",
        "32 MB to download, 120 MB on disk",
        "coverage, hypothesis, importlinter, mypy, pytest, pytest_cov, surface_distance, xdist",
    ),
    "cohort": Layer(
        ("cohort", "test", "bench", "--workers", "--threads-per-worker", "--memory-limit", "--scheduler", "--cluster"),
        "Dask",
        "61 MB to download, 220 MB on disk",
        "dask, dask_jobqueue, distributed, pyarrow",
    ),
    "video": Layer(("--videos", "test"), "ffmpeg", "68 MB to download, 173 MB on disk", "imageio_ffmpeg"),
}

PATH_FILE = "import os, site, sys; site.addsitedir(os.path.join(sys.prefix, 'layers', %r))\n"

# Prints the packages that `.venv` itself holds, but that are neither named in the arguments nor needed by PyTorch.
LEFTOVERS = """
import importlib.metadata, re, sys, sysconfig
def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()
found = importlib.metadata.distributions(path=[sysconfig.get_path("purelib")])
wants = {canonical(one.metadata["Name"]): one.requires or [] for one in found}
kept, new = set(sys.argv[1:]), {"torch"}
while new:
    kept |= new
    new = {canonical(re.match(r"[\\w.-]+", text)[0]) for name in new for text in wants.get(name, [])} - kept
print(*sorted(set(wants) - kept))
"""


class Refusal(Exception):
    """One clear line for the user, and the exit status."""

    def __init__(self, message, status=2):
        super().__init__(message)
        self.status = status


def say(line=""):
    """Tell the user something; standard output belongs to the program that runs."""
    print(line, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- environment


class Environment:
    """The folder `.venv` below `root`: complete exactly when its stamp holds the hash of all requirements.

    What runs is installed in `.venv` itself. Each of the `layers` on top of it has a folder of its own, which a .pth
    file adds to Python's path once it is whole: a layer that cannot be made does no harm to what runs. The stamp names
    what is whole. It is written last and changed before anything else is, so that an interrupted making never looks
    whole. A folder that this class did not begin is never touched.
    """

    def __init__(self, root, layers=()):
        self.root = Path(root)
        self.layers = layers
        self.folder = self.root / ".venv"
        self.stamp = self.folder / "flare-complete.json"
        self.begun = self.folder / "flare-begun"
        windows = os.name == "nt"
        self.python = self.folder / ("Scripts" if windows else "bin") / ("python.exe" if windows else "python")
        self.locks = self.root / "Testing" / "Locks"
        self.torch = self.locks / "requirements-torch.txt"
        self.torch_constraints = self.locks / "constraints-torch.txt"
        self.packages = self._lock("run")
        self.without_dependencies = self.root / "Testing" / "slicerhost" / "requirements-no-deps.txt"
        self.uv = self.folder / "uv"

    def _lock(self, name):
        return self.locks / ("requirements-%s.txt" % name)

    def fingerprint(self, layer=None):
        """Hash of everything that decides what is installed: of a layer, or of what runs."""
        run = [self.torch, self.torch_constraints, self.packages, self.without_dependencies]
        digest = hashlib.sha256()
        for path in [self._lock(layer)] if layer else run:
            text = path.read_text(encoding="utf-8")
            lines = [line.split("#")[0].strip() for line in text.splitlines()]
            digest.update("\n".join([path.name] + [line for line in lines if line] + [""]).encode())
        return digest.hexdigest()

    def state(self):
        """'complete', 'absent', 'outdated' (of other requirements), 'lacking' a layer, 'half-made' or 'foreign'."""
        if not self.folder.exists():
            return "absent"
        if not self.begun.exists():
            return "foreign" if any(self.folder.iterdir()) else "half-made"
        whole = self._whole()
        if whole is None or not self.python.exists():  # also where the Python that it was made with is gone
            return "half-made"
        if whole.get("run") != self.fingerprint():
            return "outdated"
        return "lacking" if self._lacking() else "complete"

    def ensure(self):
        """Make or repair the environment where necessary; several at once wait for each other."""
        if self.state() == "complete":
            return
        with locked(self.root / ".venv.lock"):
            state = self.state()
            if state != "complete":
                self._make(state)

    def _whole(self):
        """{what is whole: hash of the requirements that it was made of}; None where nothing is."""
        try:
            made_of = json.loads(self.stamp.read_text(encoding="utf-8"))["requirements"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return made_of if isinstance(made_of, dict) else {}  # a single hash: from before there were layers

    def _lacking(self):
        """The layers that are wanted and not there, or of other requirements."""
        whole = self._whole() or {}
        return [name for name in self.layers if whole.get(name) != self.fingerprint(name)]

    def _write_stamp(self, whole):
        unfinished = self.stamp.with_suffix(".part")
        unfinished.write_text(json.dumps({"requirements": whole}) + "\n", encoding="utf-8")
        os.replace(str(unfinished), str(self.stamp))

    def _make(self, state):
        if state == "foreign":
            raise Refusal("%s was not made by flare.py: move it away and run this again." % self.folder)
        base = find_python()
        check_computer()
        needed = {"outdated": 0, "lacking": LAYER_DISK_NEEDED_GB}.get(state, DISK_NEEDED_GB)
        check_disk(self.root, needed, "the environment")
        reason = {
            "absent": "First use: making the Python environment in %s (once, several minutes).",
            "half-made": "The Python environment in %s is incomplete (an interrupted first use?): making it anew.",
            "outdated": "The requirements have changed: bringing the Python environment in %s up to date.",
            "lacking": "Adding what this command needs to the Python environment in %s.",
        }[state]
        say(reason % self.folder)
        self.started = time.monotonic()
        steps = self._steps(state, base)
        for number, (title, action) in enumerate(steps, 1):
            say("[%d/%d] %s" % (number, len(steps), title))
            action()
        say("Done in %s." % minutes(time.monotonic() - self.started))

    def _steps(self, state, base):
        """What is done, in order: [(title, function)]."""
        layers = [
            ("%s (%s)" % (LAYERS[name].title, LAYERS[name].size), functools.partial(self._make_layer, name))
            for name in self._lacking()
        ]
        if state == "lacking":
            return layers
        first = ("virtual environment of %s" % base, functools.partial(self._begin, base))
        if state == "outdated":
            first = ("removing what is no longer needed", self._begin_update)
        packages = "embedded Slicer, Qt and numerics"
        run = [
            first,
            (packages + " (420 MB to download, 1.9 GB on disk)", functools.partial(self._install_run, packages)),
            ("uv, which knows the builds of PyTorch (20 MB to download, removed afterwards)", self._fetch_uv),
            ("PyTorch", self._install_torch),
            ("trying the packages", self._finish),
        ]
        return run + layers

    def _begin(self, base):
        self._forget_run()
        remove_tree(self.folder)
        self.folder.mkdir()
        self.begun.write_text("flare.py makes this folder and may remove it.\n", encoding="utf-8")
        self._run(base, ["-m", "venv", str(self.folder)], "making the virtual environment")
        self.kept = {}

    def _begin_update(self):
        self.kept = {name: made_of for name, made_of in self._whole().items() if name in LAYERS}
        self._forget_run()
        names = [name for path in (self.packages, self.without_dependencies) for name, _ in pins(path)]
        leftovers = (output([str(self.python), "-I", "-c", LEFTOVERS, "pip"] + names) or "").split()
        if leftovers:
            uninstall = ["-m", "pip", "uninstall", "--quiet", "--yes"] + leftovers
            self._run(str(self.python), uninstall, "removing what is no longer needed")

    def _forget_run(self):
        with contextlib.suppress(FileNotFoundError):
            self.stamp.unlink()

    def _install_run(self, title):
        self._install([self.packages, self.without_dependencies], [], title)

    def _fetch_uv(self):
        remove_tree(self.uv)
        self._install([self._lock("uv")], ["--target", str(self.uv)], "uv")

    def _finish(self):
        self._try("torch, " + RUN_MODULES, [self.packages, self.torch])
        self._write_stamp(dict(self.kept, run=self.fingerprint()))

    def _make_layer(self, name):
        layer, folder = LAYERS[name], self.folder / "layers" / name
        self._write_stamp({whole: made_of for whole, made_of in self._whole().items() if whole != name})
        path_file = self._site_packages() / ("flare-%s.pth" % name)
        with contextlib.suppress(FileNotFoundError):
            path_file.unlink()
        remove_tree(folder)
        self._install([self._lock(name)], ["--target", str(folder)], layer.title)
        self._try(layer.modules, [self.packages, self._lock(name)], PYTHONPATH=str(folder))
        path_file.write_text(PATH_FILE % name, encoding="utf-8")
        self._write_stamp(dict(self._whole(), **{name: self.fingerprint(name)}))

    def _site_packages(self):
        """Where `.venv` keeps its packages."""
        found = list(self.folder.glob("lib/python*/site-packages"))
        return found[0] if found else self.folder / "Lib" / "site-packages"

    def _install(self, locks, options, title):
        """Install exactly what locks pin: pip has nothing to decide, and nobody's setup.py is run."""
        exactly = ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
        files = [word for path in locks for word in ("-r", str(path))]
        self._run(str(self.python), ["-m", "pip", "install"] + quiet_pip() + exactly + options + files, title)

    def _install_torch(self):
        """Install PyTorch in the build for this computer, which uv knows; out of uv's reach, in pip's choice."""
        constraints = self.folder / "constraints.txt"
        lines = [pin for _, pin in pins(self.packages)] + [self.torch_constraints.read_text(encoding="utf-8")]
        constraints.write_text("\n".join(lines), encoding="utf-8")
        wanted = ["--only-binary", ":all:", "-r", str(self.torch), "-c", str(constraints)]
        uv = ["-m", "uv", "pip", "install", "--python", str(self.python), "--torch-backend", "auto", "--system-certs"]
        uv += wanted
        with_uv = {"PYTHONPATH": str(self.uv)}
        plan = output([str(self.python)] + uv + ["--dry-run"], UV_HTTP_RETRIES="1", **with_uv)
        if plan is None:
            say(
                "      PyTorch's own index is out of reach: taking the build that pip finds where it is set up to look."
            )
            say("      From PyPI, Linux gets the one for NVIDIA GPUs: %s." % CUDA_SIZE)
            self._run(str(self.python), ["-m", "pip", "install"] + quiet_pip() + wanted, "PyTorch")
        else:
            build = re.search(r"\+ (torch==\S+)", plan)
            for_gpu = "\n + nvidia" in plan or build and "+" in build.group(1) and "+cpu" not in build.group(1)
            if for_gpu:
                check_disk(self.root, CUDA_DISK_NEEDED_GB, "PyTorch for this GPU")
            if build:
                say("      %s: %s" % (build.group(1), CUDA_SIZE if for_gpu else CPU_SIZE))
            quiet = [] if sys.stderr.isatty() else ["--quiet"]
            self._run(str(self.python), uv + quiet, "PyTorch", **with_uv)
        remove_tree(self.uv)

    def _try(self, modules, locks, **variables):
        """Whether the packages of the locks fit together, as pip sees it, and can be imported."""
        ours = {name for lock in locks for name, _ in pins(lock)}
        check = [str(self.python), "-m", "pip", "check", "--disable-pip-version-check"]
        told = output(check, failing=True, **variables).splitlines()
        wrong = [line for line in told if canonical(line.partition(" ")[0]) in ours]
        for line in wrong:
            say(line)
        if wrong:
            raise Refusal("the packages do not fit together, as told above: remove %s, run again." % self.folder, 1)
        self._run(str(self.python), ["-c", "import " + modules], "importing the packages", **variables)

    def _run(self, python, arguments, what, **variables):
        process = start([python] + arguments, clean_environment(**variables), stdout=sys.stderr)
        heartbeat = None if sys.stderr.isatty() else 30
        while True:
            try:
                status = process.wait(timeout=heartbeat)
                break
            except subprocess.TimeoutExpired:
                say("      ... %s so far" % minutes(time.monotonic() - self.started))
        if status:
            hint = " On Debian and Ubuntu: apt-get install python3-venv." if "venv" in arguments else ""
            raise Refusal("%s failed, the reason is above.%s Run the command again to retry." % (what, hint), 1)


def quiet_pip():
    """pip's options that say what it does on a terminal only, and never wait for an answer."""
    quiet = [] if sys.stderr.isatty() else ["--quiet", "--progress-bar", "off"]
    return quiet + ["--disable-pip-version-check", "--no-input"]


def pins(path):
    """[(canonical name, "name==version ; marker")] of a requirements file, without extras and hashes."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pinned = [re.sub(r"\[.*?\]|( --|[\\#]).*", "", line).strip() for line in lines if line and line[0] not in "# "]
    return [(canonical(re.split("[=<> ;]", pin)[0]), pin) for pin in pinned]


def canonical(name):
    """A package's name in the one spelling that all of its spellings mean."""
    return re.sub(r"[-_.]+", "-", name).lower()


def output(command, failing=False, **variables):
    """What a program prints; None where it fails, unless `failing` ones are of interest too."""
    result = subprocess.run(
        command,
        env=clean_environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    return result.stdout if failing or not result.returncode else None


def check_disk(folder, needed, what):
    """Refuse where the disk has less than what is needed, in GB."""
    free = shutil.disk_usage(str(folder)).free / 1e9
    if free < needed:
        raise Refusal("%s: %.1f GB free, but %s needs %d GB." % (folder, free, what, needed), 1)


def check_computer():
    """Refuse where the embedded Slicer or PyTorch has no package for the system or the processor."""
    if (sys.platform, platform.machine().lower()) not in COMPUTERS:
        raise Refusal(
            "%s on %s cannot hold the environment: it needs Linux or Windows on x86-64 or macOS on Apple silicon. "
            "An installed Slicer runs the same: --slicer PATH." % (platform.system(), platform.machine())
        )


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
    process = None
    try:
        process = start(command, environment)
    except OSError as error:
        reason = error.strerror
    if process is None:
        raise Refusal("%s cannot be started: %s." % (command[0], reason))
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


def check_libraries(windows=False):
    """Name the Debian packages that Qt and VTK need, to show `windows` or not, and the system lacks."""
    if not sys.platform.startswith("linux"):
        return
    missing = []
    for package, library in dict(LIBRARIES, **(WINDOW_LIBRARIES if windows else {})).items():
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


def layers_for(verb, arguments):
    """The layers that a command line wants."""
    words = {verb}.union(word.split("=")[0] for word in arguments if word.startswith("--"))
    return [name for name, layer in LAYERS.items() if words.intersection(layer.wanted_by)]


def run_in_slicer(root, slicer, options, environment_variables, layers=()):
    """Start a real Slicer (`slicer` its path) or the embedded one (None) with Slicer's options."""
    if slicer:
        return run([slicer_executable(slicer), "--no-splash"] + options, dict(os.environ, **own_priority()))
    check_libraries(windows=shows_windows(environment_variables))
    environment = Environment(root, layers)
    environment.ensure()
    environment_variables = dict(environment_variables, **own_priority())
    variables = clean_environment(PYTHONPATH=str(root / "Testing"), **environment_variables)
    return run([environment.python, "-m", "slicerhost", "--no-splash"] + options, variables)


def shows_windows(environment_variables):
    """Whether Qt will open windows on an X server with these variables on top of ours."""
    chosen = dict(os.environ, **environment_variables).get("QT_QPA_PLATFORM", "xcb")
    return has_display() and chosen.split(":")[0] in ("", "xcb")


def own_priority():
    """Slicer's setting that lets it keep the priority it was started with. By itself it lowers that of everything in
    it, and of every process that it starts, for the sake of its background threads.
    """
    name = "SLICER_BACKGROUND_THREAD_PRIORITY"
    return {name: os.environ.get(name, str(os.nice(0)))} if hasattr(os, "nice") else {}


def offscreen():
    """Qt's setting for programs that show no window; one that the user has set stays."""
    return {"QT_QPA_PLATFORM": os.environ.get("QT_QPA_PLATFORM", "offscreen")}


# ---------------------------------------------------------------- verbs


def run_script(root, slicer, verb, arguments):
    """A headless script; everything behind --ignore-rest is the script's own, also words that Slicer knows."""
    options = ["--no-main-window", "--python-script", root / SCRIPTS[verb][0], "--ignore-rest"] + arguments
    return run_in_slicer(root, slicer, options, offscreen(), layers_for(verb, arguments))


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
        code += SHOW_CT.format(path=str(Path(arguments[0]).resolve()))
    return run_in_slicer(root, slicer, module_options(root) + ["--python-code", code], {})


def run_tools(root, verb, arguments):
    """test, bench and lint: programs of the environment's Python."""
    benchmarks = chosen_benchmarks(root, arguments) if verb == "bench" else []
    variables = {} if verb == "test" and has_display() else offscreen()
    check_libraries(windows=shows_windows(variables))
    environment = Environment(root, layers_for(verb, arguments))
    environment.ensure()
    python = environment.python
    if verb == "test":
        variables = clean_environment(**variables)
        os.chdir(str(root))
        coverage = ["--cov", "--cov-report=term", "--cov-fail-under=%d" % LEAST_COVERAGE]
        # a worker needs up to 2 GB of memory; one that a hanging test ended takes that test's file up again
        together = ["-n", "logical", "--maxprocesses=4", "--dist", "loadfile", "--max-worker-restart=2"]
        whole = [] if arguments else coverage + together  # of a part of the suite coverage says nothing
        return run([python, "-m", "pytest", "-q"] + whole + arguments, variables)
    if verb == "bench":
        return run_benchmarks(root, python, benchmarks)
    return run_lint(root, python)


def chosen_benchmarks(root, names):
    """The files of the named benchmarks, or of all."""
    known = {path.stem: path for path in sorted((root / "Testing" / "Benchmarks").glob("*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise Refusal("no benchmark %s; there are: %s." % (", ".join(unknown), ", ".join(known)))
    return [known[name] for name in names or known]


def run_benchmarks(root, python, benchmarks):
    """Run benchmarks, also behind one that fails; the first failure's status."""
    folders = [root / "FlareSegment", root / "FlareSegmentTraining", root / "Testing"]
    variables = clean_environment(PYTHONPATH=os.pathsep.join(str(folder) for folder in folders), **offscreen())
    statuses = []
    for number, path in enumerate(benchmarks, 1):
        say("[%d/%d] %s" % (number, len(benchmarks), path.stem))
        statuses.append(run([python, path], variables))
    return next((status for status in statuses if status), 0)


def run_lint(root, python):
    """Every check, also behind one that finds something; 0 where none does."""
    checks = [
        ("ruff", ["-m", "ruff", "check", "."]),
        ("mypy", ["-m", "mypy"]),
        ("Slicer API", ["-m", "apilint"]),
        ("imports", ["-m", "import_lint"]),
    ]
    os.chdir(str(root))
    folders = [root / "Testing", root / "FlareSegment", root / "FlareSegmentTraining"]
    variables = clean_environment(PYTHONPATH=os.pathsep.join(str(folder) for folder in folders), **offscreen())
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
        "--slicer PATH, or the environment variable SLICER, runs scripts and gui in that Slicer, not the embedded one;",
        "test --slicer PATH runs what must work in any Slicer there.",
        "python3 flare.py segment --help tells a script's own options.",
    ]
    return "\n".join(lines)


def tool_help(root, verb):
    """What a verb that is no script does, and how it is called."""
    lines = ["Usage: " + ("python3 flare.py %s %s" % (verb, TOOLS[verb][0])).strip(), "", TOOL_HELP[verb]]
    if verb == "bench":
        for path in sorted((root / "Testing" / "Benchmarks").glob("*.py")):
            text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            lines.append("  %-12s %s" % (path.stem, text.splitlines()[0].split(": `")[0] if text else ""))
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
    if verb in TOOLS and set(arguments) & {"-h", "--help"}:
        print(tool_help(root, verb))
        return 0
    if verb in TOOLS and verb != "gui":
        if named and verb != "test":
            raise Refusal("%s does not run in a real Slicer: leave out --slicer." % verb)
        if named:
            os.environ["SLICER"] = str(slicer_executable(named))
            arguments = ["Testing/Slicer"] + arguments
        return run_tools(root, verb, arguments)
    slicer = named or os.environ.get("SLICER")
    if verb == "gui":
        return run_gui(root, slicer, arguments)
    if verb in SCRIPTS and (root / SCRIPTS[verb][0]).is_file():
        return run_script(root, slicer, verb, arguments)
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
