"""Which patches a step sees, made in the background while the step before it computes.

A batch is a function of the seed, the stage and the step's number alone: nothing about the loader has to be saved to
resume a run, and processes that share a batch make their parts of the very same one. Threads, not processes: the work
is torch's, which lets other threads run, and inside Slicer new processes are not to be had cheaply.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from FlareSegmentLib.model.intensity import Intensity, network_input
from FlareSegmentTrainingLib.augmentation.patches import sample_patch
from FlareSegmentTrainingLib.training.configuration import StageSettings
from FlareSegmentTrainingLib.training.distributed import Group
from FlareSegmentTrainingLib.training.preparation import PreparedCase

AHEAD = 3


@dataclass(frozen=True)
class Batch:
    """One process's part of a step's batch.

    Attributes:
        images: (n, 1, z, y, x) float32 network input; labels: (n, z, y, x) uint8; weights: (n, organs) of the labels.
    """

    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor


class BatchSource:
    """Draws the patches of a stage's steps.

    Args:
        stage_number: position of the stage in the model, part of the seed.
        shares: how often cases are drawn from each data location; empty: every case alike.
    """

    def __init__(
        self,
        settings: StageSettings,
        cases: list[PreparedCase],
        organs: tuple[str, ...],
        intensity: Intensity,
        seed: int,
        stage_number: int,
        group: Group,
        shares: Sequence[float] = (),
    ):
        self._settings, self._cases, self._organs, self._intensity = settings, cases, organs, intensity
        self._seed, self._group = (seed, stage_number), group
        sampling = np.array([case.sampling_weight for case in cases])
        if shares:
            location = np.array([case.location for case in cases])
            sampling *= (np.array(shares) / np.bincount(location, sampling, len(shares)).clip(1e-9))[location]
        self._sampling = sampling / sampling.sum()
        training = settings.training
        self.steps_per_epoch = training.steps_per_epoch or -(-len(cases) // training.batch)
        self.waited_seconds = 0.0

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of a step."""
        mine = range(self._group.rank, self._settings.training.batch, self._group.size)
        samples = [self._sample(step, number) for number in mine]
        images, labels, weights = zip(*samples)
        return Batch(torch.stack(images)[:, None], torch.stack(labels), torch.stack(weights))

    def prefetched(self, first: int, end: int) -> Iterator[Batch]:
        """Yield the batches of steps first ... end - 1, made ahead; the time waited adds up in `waited_seconds`."""
        threads = max(1, min(4, (os.cpu_count() or 1) // 2))
        with ThreadPoolExecutor(threads, thread_name_prefix="batch") as pool:
            pending = deque(pool.submit(self.batch, step) for step in range(first, min(end, first + AHEAD)))
            try:
                for step in range(first, end):
                    started = time.perf_counter()
                    batch = pending.popleft().result()
                    self.waited_seconds += time.perf_counter() - started
                    if step + AHEAD < end:
                        pending.append(pool.submit(self.batch, step + AHEAD))
                    yield batch
            finally:
                for future in pending:
                    future.cancel()

    def _sample(self, step: int, number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        generator = np.random.default_rng((*self._seed, step, number))
        case = self._cases[self._case_index(step, number, generator)]
        patch = self._settings.patch[::-1]
        image, labels = sample_patch(
            case.image,
            case.labels,
            self._center(case, patch, generator),
            patch,
            case.spacing_mm,
            self._organs,
            self._intensity,
            self._settings.augmentation,
            generator,
        )
        weights = torch.tensor([case.weights[key] for key in self._organs])
        return network_input(image, self._intensity), labels, weights

    def _case_index(self, step: int, number: int, generator: np.random.Generator) -> int:
        training, count = self._settings.training, len(self._cases)
        if training.steps_per_epoch:
            return int(generator.choice(count, p=self._sampling))
        epoch, step = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((*self._seed, epoch)).permutation(count)
        return int(order[(step * training.batch + number) % count])

    def _center(self, case: PreparedCase, patch: tuple[int, int, int], generator: np.random.Generator) -> np.ndarray:
        """Draw an organ present in the case and a voxel near it, or any voxel of the scan; the middle for stages of a
        fixed shape.
        """
        if self._settings.stage.shape is not None:
            shift = self._settings.augmentation.shift_mm / np.array(case.spacing_mm[::-1])
            return (np.array(case.image.shape) - 1) / 2 + generator.uniform(-shift, shift)
        if case.organ_voxels and generator.random() < self._settings.training.organ_centers:
            voxels = case.organ_voxels[int(generator.integers(len(case.organ_voxels)))]
            center = voxels[int(generator.integers(len(voxels)))].astype(np.float64)
            jitter = 0.25 * np.array(patch)
            return center + generator.uniform(-jitter, jitter)
        return generator.uniform(0, np.array(case.image.shape))
