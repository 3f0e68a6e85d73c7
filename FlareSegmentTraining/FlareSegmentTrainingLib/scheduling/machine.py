"""How many workers this computer takes, and with how much of it each."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from FlareSegmentLib.errors import InputError

MEMORY_PER_WORKER = 3 * 2**30
"""What a worker is given at least where nobody says how many there are: a CT of 512 x 512 x 600 voxels takes it."""

_LEAST_MEMORY = 2**30
_USED = 0.95  # of the memory that is free: the rest is for the command itself
_CGROUPS, _MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
_GPU_DRIVERS = ("libcuda.so.1", "nvcuda.dll", "/dev/kfd")  # NVIDIA's on Linux and Windows, AMD's on Linux


@dataclass(frozen=True)
class Workers:
    """Workers of one computer.

    Attributes:
        count: processes; threads: that each computes with; memory_bytes: that each may use.
        gpus: one entry of CUDA_VISIBLE_DEVICES for each worker; empty where they compute on the CPU.
    """

    count: int
    threads: int
    memory_bytes: int
    gpus: tuple[str, ...] = ()

    def in_words(self) -> str:
        """One line for the user."""
        each = "" if self.count == 1 else " each"
        workers = f"{self.count} worker{'s' if self.count > 1 else ''}"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        gpu = f", on {'its own GPU' if self.count > 1 else 'a GPU'}" if self.gpus else ""
        return f"{workers} with {threads} and up to {self.memory_bytes / 2**30:.1f} GiB of memory{each}{gpu}"


def choose_workers(
    processors: int,
    memory_bytes: int,
    gpus: tuple[str, ...] = (),
    count: int | None = None,
    threads: int | None = None,
    memory_limit: int | None = None,
) -> Workers:
    """Divide a computer among workers.

    Without more ado there is a worker for each GPU; where there is none, one for each processor as long as each has
    `MEMORY_PER_WORKER`, for a case is finished sooner by the processors that others do not wait for.

    Args:
        processors, memory_bytes: what may be used of the computer.
        gpus: those to use, by their numbers in CUDA_VISIBLE_DEVICES.
        count, threads, memory_limit: what the user asked for.

    Raises:
        InputError: the memory does not suffice.
    """
    usable = int(memory_bytes * _USED)
    if memory_limit is not None and memory_limit < _LEAST_MEMORY:
        raise InputError(
            f"--memory-limit {memory_limit / 2**30:.2f} GiB: a worker needs at least {_LEAST_MEMORY / 2**30:.0f} GiB."
        )
    if gpus:
        count = count or len(gpus)
        gpus = tuple(gpus[number % len(gpus)] for number in range(count))
    elif count is None:
        by_memory = usable // (memory_limit or MEMORY_PER_WORKER)
        count = max(1, min(processors // (threads or 1), by_memory))
    threads = threads or max(1, processors // count)
    limit = memory_limit or usable // count
    if limit < _LEAST_MEMORY:
        most = max(1, usable // _LEAST_MEMORY)
        raise InputError(
            f"{memory_bytes / 2**30:.1f} GiB of memory are free: too little for {count} workers of at least "
            f"{_LEAST_MEMORY / 2**30:.0f} GiB. Close other programs, or use --workers {most}."
        )
    return Workers(count, threads, limit, gpus)


def free_memory() -> int:
    """Bytes that may still be used here: what is free, or what the control group (a container, a Slurm job, a
    service) leaves.
    """
    import psutil

    left = [psutil.virtual_memory().available]
    for limit, used in _control_groups():
        left.append(max(0, limit - used))
    return min(left)


def _control_groups() -> list[tuple[int, int]]:
    """(limit, used) in bytes of each control group that this process is in; see cgroups(7), both versions."""
    try:
        lines = _MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root, limit_name, used_name = _CGROUPS, "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit_name, used_name = _CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        inside = root / path.lstrip("/")
        for folder in (inside, *inside.parents):
            limit, used = _number(folder / limit_name), _number(folder / used_name)
            if limit is not None and limit < _UNLIMITED:
                found.append((limit, _not_cache(folder, used or 0)))
            if folder == root:
                break
    return found


def _not_cache(folder: Path, used: int) -> int:
    """The bytes that a control group uses without the files' pages, which are given up where memory is short."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return used
    facts = {name: value for name, _, value in (line.partition(" ") for line in lines)}
    cache = facts.get("inactive_file") or facts.get("total_inactive_file") or "0"
    return max(0, used - int(cache))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # "max"
        return None


def _is_there(driver: str) -> bool:
    """Whether a library can be loaded, or a device is there."""
    if driver.startswith("/dev/"):
        return os.path.exists(driver)
    try:
        ctypes.CDLL(driver)
    except OSError:
        return False
    return True


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that PyTorch calls cuda and may use, as CUDA_VISIBLE_DEVICES names them."""
    if not any(_is_there(driver) for driver in _GPU_DRIVERS):
        return ()  # without the second that importing PyTorch takes
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return tuple(named[:count]) if named else tuple(str(number) for number in range(count))


def parse_memory(size: str | None) -> int | None:
    """Bytes of a size such as 6GB or 6GiB. Raises InputError."""
    from dask.utils import parse_bytes

    try:
        return None if size is None else parse_bytes(size)
    except ValueError:
        raise InputError(f"--memory-limit {size}: give a size as 6GB.") from None


def thread_environment(threads: int) -> dict[str, str]:
    """Variables by which PyTorch, NumPy and ITK compute with so many threads in a process that starts."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return dict.fromkeys(names, str(threads))


def gpu_environment(gpus: tuple[str, ...], number: int) -> dict[str, str]:
    """The variable that shows a worker its own GPU alone."""
    return {"CUDA_VISIBLE_DEVICES": gpus[number]} if gpus else {}
