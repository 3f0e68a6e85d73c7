"""Processes that share a run: started by torchrun (or anything that sets RANK and WORLD_SIZE), one for each GPU, or on
CPUs by gloo.

A process alone is a group of one, so the trainer has a single path. https://docs.pytorch.org/docs/stable/elastic/run.html
"""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import batch_norm

_PATIENCE = timedelta(hours=12)
"""While one process prepares the cases the others wait; NCCL would end them after ten minutes."""


class Group:
    """The processes of a run; `rank` 0 writes."""

    def __init__(self, backend: str):
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        if self.size > 1:
            dist.init_process_group(backend, rank=self.rank, world_size=self.size, timeout=_PATIENCE)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def total(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a tensor over all processes; no gradient passes."""
        if self.size == 1:
            return value
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.size > 1:
            dist.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def local_rank() -> int:
    """Return this process's number on its machine, which is the GPU it takes."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def synchronize_normalization(network: nn.Module) -> None:
    """Make batch normalizations take their statistics over all processes; parameters and state keep their names."""
    for module in network.modules():
        if type(module) is nn.BatchNorm3d:
            module.__class__ = _SynchronizedBatchNorm3d


class _Total(torch.autograd.Function):
    """The sum of a tensor over all processes, through which gradients pass."""

    @staticmethod
    def forward(_context, value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        dist.all_reduce(value)
        return value

    @staticmethod
    def backward(_context, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class _SynchronizedBatchNorm3d(nn.BatchNorm3d):
    """Batch normalization over the whole batch of all processes, on any device; torch's own SyncBatchNorm runs on GPUs
    only.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        shape, axes = (1, self.num_features, 1, 1, 1), (0, 2, 3, 4)
        values = x.float()
        sums = _Total.apply(torch.cat((values.sum(axes), values.new_full((1,), values.numel() / self.num_features))))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean.view(shape)
        variance = _Total.apply(centered.square().sum(axes)) / count
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None
        with torch.no_grad():
            self.num_batches_tracked += 1
            # Without a momentum torch's own takes the mean over all batches.
            share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * count / (count - 1), share)
        scale = (self.weight * torch.rsqrt(variance + self.eps)).view(shape)
        return (centered * scale + self.bias.view(shape)).to(x.dtype)
