"""Which device, precision and compiler a training takes, on machines that are made up here."""

from __future__ import annotations

import shutil

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentTrainingLib.training import devices  # noqa: E402
from FlareSegmentTrainingLib.training.devices import choose_compiled, choose_precision, training_device  # noqa: E402


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Function that makes torch find the named devices; returns the list of GPUs made the current one."""

    def build(gpus: int = 0, mps: bool = False, gpu_bf16: bool = True, cpu_bf16: bool = False) -> list[int]:
        current: list[int] = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: gpu_bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu_bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        return current

    return build


@pytest.mark.parametrize(
    ("gpus", "mps", "name", "rank", "expected"),
    [
        (0, False, "auto", 0, "cpu"),
        (0, True, "auto", 0, "mps"),
        (2, True, "auto", 0, "cuda:0"),
        (2, False, "auto", 1, "cuda:1"),
        (2, False, "cuda", 1, "cuda:1"),
        (2, False, "cuda:0", 1, "cuda:0"),
        (2, False, "cpu", 1, "cpu"),
        (0, True, "mps", 0, "mps"),
    ],
)
def test_the_device_that_is_named_or_the_fastest(machine, gpus, mps, name, rank, expected) -> None:
    current = machine(gpus, mps)
    device = training_device(name, rank)
    assert device == torch.device(expected)
    assert current == ([device.index] if device.type == "cuda" else [])


@pytest.mark.parametrize(
    ("gpus", "name", "rank", "words"),
    [
        (0, "cuda", 0, "finds no such device"),
        (0, "mps", 0, "finds no such device"),
        (2, "cuda:2", 0, "there are 2 GPUs"),
        (2, "cuda", 2, "one process for each"),
        (2, "cuda:x", 0, "choose auto"),
        (0, "cpu:0", 0, "choose auto"),
        (0, "tpu", 0, "choose auto"),
        (0, "", 0, "choose auto"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(machine, gpus, name, rank, words) -> None:
    current = machine(gpus)
    with pytest.raises(InputError, match=words) as refusal:
        training_device(name, rank)
    assert f"--device {name}" in str(refusal.value) and "\n" not in str(refusal.value)
    assert current == []


@pytest.mark.parametrize(
    ("traits", "device", "name", "expected"),
    [
        ({"gpus": 1}, "cuda", "auto", "bf16"),
        ({"gpus": 1, "gpu_bf16": False}, "cuda", "auto", "fp16"),
        ({"cpu_bf16": True}, "cpu", "auto", "bf16"),
        ({}, "cpu", "auto", "fp32"),
        ({"cpu_bf16": True}, "mps", "auto", "fp32"),
        ({}, "cpu", "bf16", "bf16"),
        ({"gpus": 1}, "cuda", "fp16", "fp16"),
        ({"gpus": 1}, "cuda", "fp32", "fp32"),
    ],
)
def test_the_precision_that_the_hardware_computes_fast(machine, traits, device, name, expected) -> None:
    machine(**traits)
    assert choose_precision(name, torch.device(device)) == expected


def test_half_precision_needs_a_gpu(machine) -> None:
    machine()
    with pytest.raises(InputError, match="needs a CUDA device"):
        choose_precision("fp16", torch.device("cpu"))


@pytest.mark.parametrize(
    ("wanted", "device", "steps", "compilers", "expected"),
    [
        (None, "cpu", devices.COMPILE_FROM_STEPS, True, True),
        (None, "cpu", devices.COMPILE_FROM_STEPS - 1, True, False),
        (None, "cpu", devices.COMPILE_FROM_STEPS, False, False),
        (None, "cuda", devices.COMPILE_FROM_STEPS, True, False),
        (True, "cuda", 1, False, True),
        (False, "cpu", 10**6, True, False),
    ],
)
def test_long_runs_on_a_cpu_are_compiled(monkeypatch, wanted, device, steps, compilers, expected) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if compilers else None)
    assert choose_compiled(wanted, torch.device(device), steps) is expected


def test_pytorch_2_2_is_enough(monkeypatch: pytest.MonkeyPatch):
    """It has a scaler of gradients for CUDA alone."""
    from FlareSegmentTrainingLib.training.trainer import _grad_scaler

    monkeypatch.delattr(torch.amp, "GradScaler")
    with pytest.warns(FutureWarning):  # newer versions would like the other name
        scaler = _grad_scaler(torch.device("cpu"), enabled=False)
    assert not scaler.is_enabled()
