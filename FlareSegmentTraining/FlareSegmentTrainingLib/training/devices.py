"""Where and in which precision a run computes."""

from __future__ import annotations

import shutil
import sys

import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.inference.compute_devices import told_bfloat16_instructions

COMPILE_FROM_STEPS = 1500
"""Compiling costs about a minute and a half of a run on a CPU; shorter runs do not earn it back."""


def training_device(name: str, local_rank: int) -> torch.device:
    """Return the device named "auto", "cpu", "cuda", "cuda:N" or "mps"; "cuda" is the GPU of this process's number.

    Raises:
        InputError: when this machine or this torch has no such device.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if cuda else "mps" if mps else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or index and not (kind == "cuda" and index.isdigit()):
        raise InputError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps.")
    if kind == "cuda" and not cuda or kind == "mps" and not mps:
        raise InputError(f"--device {name}: torch {torch.__version__} finds no such device here. Use --device cpu.")
    if kind == "cuda":
        number = int(index) if index else local_rank
        if number >= torch.cuda.device_count():
            raise InputError(
                f"--device {name}: there are {torch.cuda.device_count()} GPUs; start one process for each."
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", number)
    return torch.device(kind)


def choose_precision(name: str, device: torch.device) -> str:
    """Return "fp32", "bf16" or "fp16" for a device; "auto" takes what its hardware computes fast.

    Raises:
        InputError: for fp16 without a GPU.
    """
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        return "bf16" if device.type == "cpu" and told_bfloat16_instructions() else "fp32"
    if name == "fp16" and device.type != "cuda":
        raise InputError("Precision fp16 needs a CUDA device; use --set precision=bf16 or fp32.")
    return name


def choose_compiled(wanted: bool | None, device: torch.device, steps: int | None) -> bool:
    """Whether to compile forward and backward with torch.compile.

    By itself only where it was measured to pay: long runs on a CPU, 1.6 times the speed of bf16 alone, for which torch
    needs a C++ compiler.
    """
    if wanted is not None:
        return wanted
    compilers = ("cl",) if sys.platform == "win32" else ("g++", "clang++")
    return device.type == "cpu" and (steps or 0) >= COMPILE_FROM_STEPS and any(shutil.which(name) for name in compilers)
