"""Which processes still run, at which priority, those that outlive this one, and the private folders of killed ones.

A folder of files in the making carries the number of its process in its name. Whoever makes the next one beside it
removes those whose process is gone. No clock is asked: one that jumps must not make a living process look dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOWEST_PRIORITY = 19
PROGRESS_FILE, OUTPUT_FILE, STOP_FILE = "progress.json", "output.txt", "stop"
"""In the folder of a run that outlives who started it: what it reports, what it prints, and what asks it to end."""
UNFINISHED = (".saving-", ".writing-", ".flaresegment-")
"""How names of files and folders in the making begin."""
DEAD_AFTER_SECONDS = 30.0
"""A run whose progress file is older is not running any more, where its process cannot be asked."""


def is_running(pid: int) -> bool:
    """Whether a process of this number runs on this machine, whoever owns it."""
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        handle = kernel.OpenProcess(0x1000, False, pid)  # PROCESS_QUERY_LIMITED_INFORMATION
        if not handle:
            return kernel.GetLastError() == 5  # access denied: it runs, for somebody else
        code = ctypes.c_ulong()
        kernel.GetExitCodeProcess(handle, ctypes.byref(code))
        kernel.CloseHandle(handle)
        return code.value == 259  # STILL_ACTIVE
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def set_priority(background: bool) -> int:
    """Give this process the system's normal priority, or the lowest: other programs go first then.

    Slicer lowers its own priority on Linux and macOS, and whatever it starts inherits that. A system lets only the
    superuser (or a limit that an administrator raised) take it back; Linux shares the processors between sessions
    before it looks at niceness, so that a process in a session of its own has its fair share all the same where the
    kernel does so (sched_autogroup). Call it in a process of its own, before it starts threads.

    Returns:
        The niceness that the process has now: 0 is normal, 19 the lowest priority.
    """
    if sys.platform == "win32":
        import ctypes

        kernel = ctypes.windll.kernel32
        kernel.SetPriorityClass(kernel.GetCurrentProcess(), 0x40 if background else 0x20)  # IDLE or NORMAL
        return LOWEST_PRIORITY if background else 0
    wanted = LOWEST_PRIORITY if background else 0
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, wanted)
    with contextlib.suppress(OSError):  # it leads a group already, or this is not Linux
        os.setsid()
        if background:
            Path("/proc/self/autogroup").write_text(str(wanted), encoding="ascii")
    return os.getpriority(os.PRIO_PROCESS, 0)


def keep_freed_memory() -> None:
    """Stop glibc from giving large blocks back to the kernel and taking them again at every layer of a network.

    ``mallopt`` changes the whole process: call it in one of its own only. M_MMAP_MAX is -4 and M_TRIM_THRESHOLD -1 in
    malloc.h.
    """
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):  # another C library
            mallopt = ctypes.CDLL("libc.so.6").mallopt
            mallopt(-4, 0)
            mallopt(-1, 2**31 - 1)


def identity(pid: int) -> str | None:
    """What tells a process from a later one of the same number: start of the system and of the process.

    None where the system does not say it without help (anything but Linux), or the process is gone.
    """
    with contextlib.suppress(OSError, IndexError):
        system = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        facts = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return f"{system} {facts.rpartition(')')[2].split()[19]}"  # field 22 of proc_pid_stat(5), in ticks since boot
    return None


def reported_progress(file: Path) -> dict[str, Any]:
    """What a run's progress file holds: state, message, and the process that writes it; empty where there is none.

    A run that calls itself "running" and whose process is gone without a word has the state "lost".
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        age = age_seconds(file)
    except (OSError, ValueError):
        return {}
    if content.get("state") == "running":
        lives = _lives(content)
        if lives is False or lives is None and age > DEAD_AFTER_SECONDS:
            content["state"] = "lost"
    return content


def age_seconds(file: Path) -> float:
    """How long ago a file was written, by the clock of the computer that holds it. Raises OSError."""
    return time.time() - file.stat().st_mtime


def _lives(content: dict[str, Any]) -> bool | None:
    """Whether the reporting process certainly runs, or certainly does not; None where only its reports can tell.

    Asked first because the age of a file says nothing while a clock jumps.
    """
    pid = content.get("pid")
    if content.get("host") != socket.gethostname() or not isinstance(pid, int):
        return None
    if not is_running(pid):
        return False
    started = content.get("process")
    return None if started is None else started == identity(pid)


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove the folders `<prefix><pid>-<anything>` whose process no longer runs on this machine."""
    with contextlib.suppress(OSError):
        for folder in list(parent.iterdir()):
            pid = re.fullmatch(re.escape(prefix) + r"(\d{1,10})-.*", folder.name)
            if pid and int(pid[1]) != os.getpid() and not is_running(int(pid[1])):
                shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what processes that were killed had begun to write in a folder, in which nobody writes now."""
    for parent, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            if name.startswith(UNFINISHED):
                place = Path(parent, name)
                with contextlib.suppress(OSError):
                    shutil.rmtree(place) if name in folders else place.unlink()


def python_executable() -> str:
    """The Python for processes of one's own: Slicer sets `sys.executable` to its PythonSlicer launcher."""
    return sys.executable or shutil.which("PythonSlicer") or "PythonSlicer"


def private_folder(parent: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder for files in the making, only for its owner, as a context manager. Raises OSError.

    Two computers may write into one network folder: the name holds the host too, and each removes only its own. What
    cannot be removed at the end, as somebody holds it open, is abandoned.
    """
    prefix = f".flaresegment-{re.sub('[^A-Za-z0-9.]', '_', socket.gethostname())}-"
    remove_abandoned(parent, prefix)
    return tempfile.TemporaryDirectory(dir=parent, prefix=f"{prefix}{os.getpid()}-", ignore_cleanup_errors=True)


def start_detached(command: Sequence[str], output_file: Path) -> subprocess.Popen[bytes]:
    """Start a process that outlives this one and prints into a file. Raises OSError."""
    detached: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        detached = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW}
    with open(output_file, "wb") as output:
        return subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, **detached
        )


def last_error(output_file: Path) -> str:
    """The last line that a script printed as its error, else its last line; empty where there is none."""
    try:
        lines = output_file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    return errors[-1] if errors else lines[-1] if lines else ""
