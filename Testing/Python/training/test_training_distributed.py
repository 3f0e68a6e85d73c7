"""Processes that share a run: sums, and batch normalization over all of them as if they were one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from FlareSegmentTrainingLib.training.distributed import Group, local_rank, synchronize_normalization  # noqa: E402

SHARE = """
import sys
import torch
from torch import nn
from FlareSegmentTrainingLib.training.distributed import Group, synchronize_normalization

group = Group("gloo")
given = torch.load(sys.argv[1], weights_only=True)
network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
network.load_state_dict(given["state"])
synchronize_normalization(network)
images = given["images"][:2] if group.rank == 0 else given["images"][2:]
targets = given["targets"][:2] if group.rank == 0 else given["targets"][2:]
output = network(images)
((output - targets) ** 2).sum().backward()
gradients = {name: group.total(value.grad) for name, value in network.named_parameters()}
group.wait()
result = {"output": output.detach(), "state": network.state_dict(), "gradients": gradients, "first": group.is_first}
torch.save(result, f"{sys.argv[1]}.{group.rank}")
network.eval()
assert torch.isfinite(network(images)).all()
group.close()
"""


@pytest.fixture
def given() -> dict:
    """A batch of three, a network, and what its answers should be."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    return {
        "state": network.state_dict(),
        "images": torch.randn(3, 2, 3, 4, 5) * 3 + 1,
        "targets": torch.randn(3, 3, 3, 4, 5),
    }


def test_two_processes_normalize_as_one_does(given: dict, tmp_path: Path) -> None:
    """Two images in one process, one in the other: outputs, gradients and running statistics are those of the three."""
    file = tmp_path / "given.pt"
    torch.save(given, file)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    root = Path(__file__).resolve().parents[3]
    paths = os.pathsep.join(str(root / name) for name in ("FlareSegment", "FlareSegmentTraining"))
    common = {**os.environ, "PYTHONPATH": paths, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common["OMP_NUM_THREADS"] = "1"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SHARE, str(file)],
            env={**common, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    shares = [torch.load(f"{file}.{rank}", weights_only=True) for rank in range(2)]

    network = nn.Sequential(nn.Conv3d(2, 3, 1), nn.BatchNorm3d(3))
    network.load_state_dict(given["state"])
    output = network(given["images"])
    ((output - given["targets"]) ** 2).sum().backward()
    torch.testing.assert_close(torch.cat([share["output"] for share in shares]), output.detach())
    for share in shares:
        torch.testing.assert_close(share["state"], dict(network.state_dict()))
        for name, value in network.named_parameters():
            torch.testing.assert_close(share["gradients"][name], value.grad, rtol=1e-4, atol=1e-4)
    assert [share["first"] for share in shares] == [True, False]


def test_a_process_alone_is_a_group_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    group = Group("gloo")
    value = torch.ones(3)
    assert group.is_first and group.size == 1
    assert group.total(value) is value
    group.wait()
    group.close()
    assert not torch.distributed.is_initialized()
    assert local_rank() == 0
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_rank() == 3


def test_only_batch_normalizations_change_and_names_stay() -> None:
    network = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.InstanceNorm3d(2, affine=True))
    before = dict(network.state_dict())
    synchronize_normalization(network)
    assert list(network.state_dict()) == list(before)
    assert isinstance(network[1], nn.BatchNorm3d) and type(network[1]) is not nn.BatchNorm3d
    assert type(network[2]) is nn.InstanceNorm3d


def test_what_was_trained_together_evaluates_as_any_network() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm3d(2)
    plain(torch.randn(2, 2, 3, 3, 3) * 2 + 1)
    shared = nn.BatchNorm3d(2)
    shared.load_state_dict(plain.state_dict())
    synchronize_normalization(shared)
    image = torch.randn(1, 2, 3, 4, 5)
    torch.testing.assert_close(shared.eval()(image), plain.eval()(image))
