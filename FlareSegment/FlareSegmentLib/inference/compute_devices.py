"""What the networks can run on in this computer, with names and memory for the user to choose by."""

from __future__ import annotations

import os
import platform
import time
from functools import cache
from typing import TYPE_CHECKING, Any

from FlareSegmentLib.errors import InputError

if TYPE_CHECKING:
    import torch

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "float32", "bfloat16")
_WORTHWHILE = 0.8  # of the seconds in float32


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


def choose_device(device: str) -> str:
    """The device to run on: "auto" takes a GPU if there is one; one by number ("cuda:1") becomes PyTorch's current one.

    Raises InputError if it is unknown or not there.
    """
    import torch

    kind, colon, index = device.partition(":")
    if kind not in DEVICES or (colon and kind != "cuda"):
        raise InputError(f"Device {device!r} is unknown: choose {', '.join(DEVICES)}.")
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    known = not colon or (index.isdigit() and int(index) < torch.cuda.device_count())
    if not there[kind] or not known:
        raise InputError(f"There is no {device} device on this computer that PyTorch can use: choose auto or cpu.")
    if colon:
        torch.cuda.set_device(int(index))
    return device


def number_type(precision: str, device: str) -> torch.dtype:
    """The type that the networks compute in; "auto" is what the device computes fast. Raises ValueError."""
    import torch

    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r} is unknown: choose {', '.join(PRECISIONS)}")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.startswith("cuda") else device == "cpu" and has_fast_bfloat16()
        precision = "bfloat16" if fast else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def has_fast_bfloat16() -> bool:
    """Whether the CPU computes convolutions faster in bfloat16 than in float32.

    AMX does, and CPUs without instructions for bfloat16 take several times as long. AVX512-BF16 alone doubles the speed
    of AMD's processors and halves that of Intel's: there, and where PyTorch does not tell what the CPU has, a
    convolution is timed once a process.
    """
    told = told_bfloat16_instructions()
    return _bfloat16_pays() if told is None or told == {"AVX512-BF16"} else bool(told)


def told_bfloat16_instructions() -> frozenset[str] | None:
    """Which instructions for bfloat16 the CPU has by what PyTorch says: "AVX512-BF16", "AMX"; None: it does not say, as
    of other processors than x86.
    """
    import torch

    if not torch.backends.mkldnn.is_available():
        return frozenset()
    functions = {"AVX512-BF16": "_is_avx512_bf16_supported", "AMX": "_is_amx_tile_supported"}
    questions = {name: getattr(torch.cpu, function, None) for name, function in functions.items()}
    if platform.machine().lower() not in ("x86_64", "amd64") or None in questions.values():
        return None
    return frozenset(name for name, question in questions.items() if question and question())


@cache
def _bfloat16_pays() -> bool:
    import torch

    return _seconds_of_a_convolution(torch.bfloat16) < _WORTHWHILE * _seconds_of_a_convolution(torch.float32)


def _seconds_of_a_convolution(dtype: torch.dtype) -> float:
    """The best of three, some milliseconds each, of a layer as the networks have most of."""
    import torch

    from FlareSegmentLib.networks.layers import OneDNNConv3d

    with torch.inference_mode():
        layer = OneDNNConv3d(32, 32, 3, padding=1).to(dtype).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        image = torch.zeros((1, 32, 24, 24, 24), dtype=dtype).contiguous(memory_format=torch.channels_last_3d)
        times = []
        for _ in range(4):  # the first prepares
            start = time.perf_counter()
            layer(image)
            times.append(time.perf_counter() - start)
    return min(times[1:])


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
