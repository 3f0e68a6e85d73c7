"""What the panel offers to compute on, on computers that are made up here."""

from __future__ import annotations

import builtins
import os
import platform
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.inference import compute_devices as compute_devices_module  # noqa: E402
from FlareSegmentLib.inference.compute_devices import (  # noqa: E402
    choose_device,
    compute_devices,
    has_fast_bfloat16,
    number_type,
)


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch):
    """Function that makes torch find GPUs of these sizes; returns the list of those made the current one."""

    def build(*gpu_gb: float, mps: bool = False) -> list[int]:
        current: list[int] = []
        facts = [SimpleNamespace(name=f"GPU {n}", total_memory=int(size * 2**30)) for n, size in enumerate(gpu_gb)]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(facts))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(facts))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts[index])
        monkeypatch.setattr(torch.cuda, "set_device", current.append)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        return current

    return build


def test_the_processor_is_always_there(computer) -> None:
    computer()
    (cpu,) = compute_devices()
    assert cpu["id"] == "cpu" and cpu["name"].strip()
    if hasattr(os, "sysconf"):
        assert cpu["memory_gb"] == pytest.approx(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30)


def test_every_gpu_is_named_with_its_memory(computer) -> None:
    computer(8, 24)
    assert compute_devices()[1:] == [
        {"id": "cuda:0", "name": "GPU 0", "memory_gb": 8.0},
        {"id": "cuda:1", "name": "GPU 1", "memory_gb": 24.0},
    ]


def test_a_gpu_of_apple_shares_the_memory(computer) -> None:
    computer(mps=True)
    cpu, gpu = compute_devices()
    assert gpu["id"] == "mps" and gpu["memory_gb"] == cpu["memory_gb"]


def test_without_facts_from_the_system_there_is_still_a_name(computer, monkeypatch: pytest.MonkeyPatch) -> None:
    computer()
    real = builtins.open

    def no_proc(path, *arguments, **keywords):
        if path == "/proc/cpuinfo":
            raise FileNotFoundError(path)
        return real(path, *arguments, **keywords)

    def unknown(_name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(builtins, "open", no_proc)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(os, "sysconf", unknown, raising=False)
    assert compute_devices() == [{"id": "cpu", "name": "arm64", "memory_gb": None}]


@pytest.mark.parametrize(
    ("device", "expected", "current"),
    [("auto", "cuda", []), ("cpu", "cpu", []), ("mps", "mps", []), ("cuda", "cuda", []), ("cuda:1", "cuda:1", [1])],
)
def test_a_device_becomes_the_current_one(computer, device: str, expected: str, current: list[int]) -> None:
    made_current = computer(8, 24, mps=True)
    assert choose_device(device) == expected
    assert made_current == current


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "cuda:-1", "cuda:1.5", "cuda:"])
def test_a_gpu_that_is_not_there_is_one_line(computer, device: str) -> None:
    made_current = computer(8, 24)
    with pytest.raises(InputError, match=f"no {device} device"):
        choose_device(device)
    assert made_current == []


def test_without_gpus_none_can_be_chosen(computer) -> None:
    computer()
    with pytest.raises(InputError, match="cuda:0"):
        choose_device("cuda:0")


# Precision ----------------------------------------------------------------------------------------


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch):
    """Function that makes up a processor: what torch says of it, and seconds of a convolution in each type."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)

    def build(machine: str = "x86_64", told: tuple[bool, bool] | None = None, seconds=(1.0, 1.0)) -> list[str]:
        asked: list[str] = []
        for name, answer in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), told or (None, None)):
            if answer is None:
                monkeypatch.delattr(torch.cpu, name, raising=False)
            else:
                monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)

        def seconds_of(dtype: torch.dtype) -> float:
            asked.append(str(dtype))
            return seconds[dtype == torch.float32]

        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(compute_devices_module, "_seconds_of_a_convolution", seconds_of)
        compute_devices_module._bfloat16_pays.cache_clear()
        return asked

    yield build
    compute_devices_module._bfloat16_pays.cache_clear()


@pytest.mark.parametrize(("told", "fast"), [((False, False), False), ((False, True), True), ((True, True), True)])
def test_of_x86_torch_tells_what_the_processor_has(processor, told: tuple[bool, bool], fast: bool) -> None:
    asked = processor(told=told, seconds=(0.1, 1.0))
    assert has_fast_bfloat16() is fast
    assert number_type("auto", "cpu") == (torch.bfloat16 if fast else torch.float32)
    assert asked == []


@pytest.mark.parametrize(
    ("machine", "told"),
    [("x86_64", None), ("arm64", (False, False)), ("AMD64", None), ("x86_64", (True, False)), ("AMD64", (True, False))],
)
@pytest.mark.parametrize(("seconds", "fast"), [((0.4, 1.0), True), ((0.9, 1.0), False), ((4.0, 1.0), False)])
def test_elsewhere_and_with_avx512_bf16_alone_a_measurement_decides_once(
    processor, machine: str, told, seconds, fast: bool
) -> None:
    asked = processor(machine, told, seconds)
    assert has_fast_bfloat16() is fast and has_fast_bfloat16() is fast
    assert number_type("auto", "cpu") == (torch.bfloat16 if fast else torch.float32)
    assert asked == ["torch.bfloat16", "torch.float32"]


def test_without_onednn_bfloat16_is_slow(processor, monkeypatch: pytest.MonkeyPatch) -> None:
    processor(told=(True, True))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert not has_fast_bfloat16()


def test_the_measurement_measures() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        assert 0 < compute_devices_module._seconds_of_a_convolution(dtype) < 60


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("float32", "cuda", torch.float32),
        ("bfloat16", "cpu", torch.bfloat16),
        ("auto", "mps", torch.float32),
        ("auto", "cuda", torch.bfloat16),
        ("auto", "cuda:1", torch.bfloat16),
    ],
)
def test_a_precision_that_is_named(processor, monkeypatch, precision: str, device: str, expected: torch.dtype) -> None:
    processor(told=(False, False))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert number_type(precision, device) == expected


def test_an_unknown_precision_is_no_other(processor) -> None:
    with pytest.raises(ValueError, match="bf16"):
        number_type("bf16", "cpu")
