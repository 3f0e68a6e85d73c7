"""What the networks can run on in this computer, with names and memory for the user to choose by."""

from __future__ import annotations

import os
import platform
from typing import TYPE_CHECKING, Any

from FlareSegmentLib.errors import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")


def compute_devices() -> list[dict[str, Any]]:
    """[{"id": "cpu" | "cuda:0" ... | "mps", "name", "memory_gb" or None}]: the CPU first, then every GPU."""
    import torch

    found = [{"id": "cpu", "name": _processor(), "memory_gb": _memory_gb()}]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            found.append({"id": f"cuda:{index}", "name": facts.name, "memory_gb": facts.total_memory / 2**30})
    if torch.backends.mps.is_available():
        found.append({"id": "mps", "name": "Apple GPU", "memory_gb": _memory_gb()})
    return found


def use_device(device: str) -> str:
    """Make a device of `compute_devices` the current one; returns what the pipeline calls it ("cuda" for any GPU)."""
    kind, _, index = device.partition(":")
    if kind != "cuda" or not index:
        return device
    import torch

    if index.isdigit() and torch.cuda.is_available() and int(index) < torch.cuda.device_count():
        torch.cuda.set_device(int(index))
        return kind
    raise InputError(f"There is no device {device} on this computer: choose automatic or the CPU.")


def choose_device(device: str) -> str:
    """The device to run on. Raises InputError if it is unknown or not there."""
    import torch

    if device not in DEVICES:
        raise InputError(f"Device {device!r} is unknown: choose {', '.join(DEVICES)}.")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[device]:
        raise InputError(f"There is no {device} device on this computer that PyTorch can use: choose auto or cpu.")
    return device


def number_type(precision: str, device: str) -> torch.dtype:
    import torch

    if precision == "float32" or (precision == "auto" and device == "mps"):
        return torch.float32
    if precision == "bfloat16":
        return torch.bfloat16
    return (
        torch.bfloat16
        if device == "cuda" and torch.cuda.is_bf16_supported() or device == "cpu" and has_amx()
        else torch.float32
    )


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices (Intel AMX); without it bfloat16 does not pay."""
    if platform.system() != "Linux":
        return False
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            return "amx_bf16" in file.read()
    except OSError:
        return False


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (AttributeError, ValueError, OSError):
        return None
