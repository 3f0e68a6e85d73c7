"""What the panel offers to compute on, on computers that are made up here."""

from __future__ import annotations

import builtins
import os
import platform
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.errors import InputError  # noqa: E402
from FlareSegmentLib.inference.compute_devices import compute_devices, use_device  # noqa: E402


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
    [("auto", "auto", []), ("cpu", "cpu", []), ("mps", "mps", []), ("cuda", "cuda", []), ("cuda:1", "cuda", [1])],
)
def test_a_device_becomes_the_current_one(computer, device: str, expected: str, current: list[int]) -> None:
    made_current = computer(8, 24)
    assert use_device(device) == expected
    assert made_current == current


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "cuda:-1", "cuda:1.5"])
def test_a_gpu_that_is_not_there_is_one_line(computer, device: str) -> None:
    made_current = computer(8, 24)
    with pytest.raises(InputError, match=f"no device {device}"):
        use_device(device)
    assert made_current == []


def test_without_gpus_none_can_be_chosen(computer) -> None:
    computer()
    with pytest.raises(InputError, match="cuda:0"):
        use_device("cuda:0")
