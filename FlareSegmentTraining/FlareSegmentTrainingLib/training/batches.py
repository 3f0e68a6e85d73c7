"""Which patches a step sees, made in the background while the step before it computes.

A batch is a function of the seed, the stage and the step's number alone: nothing about the loader has to be saved to
resume a run, and processes that share a batch make their parts of the very same one. On a GPU the cases lie in its
memory and patches are cut and changed there, in a stream of commands of their own; on a CPU threads do the same, for
the work is torch's, which lets other threads run. Only what takes a CPU a second a case (`changed_cases`) is made by
worker processes, rounds ahead.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from FlareSegmentLib.model.intensity import Intensity, network_input
from FlareSegmentTrainingLib.augmentation.changed_cases import ChangedCase, ChangedCases
from FlareSegmentTrainingLib.augmentation.patches import SHORTS, Cut, sample_patches, sent
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase
from FlareSegmentTrainingLib.training.configuration import BatchShape, StageSettings
from FlareSegmentTrainingLib.training.distributed import Group

AHEAD = 3
_MOST_WORKERS = 8
_MEMORY_SHARE = 0.5  # of what is free on a GPU: the rest is for the network
_ROUNDS = 3  # of changed cases: the one before, the present, and the next
_KIND = 1 << 21  # set apart from the patches' numbers in the seed
_MIDLINE_MM = 55.0

Arrays = tuple[torch.Tensor, torch.Tensor]


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
        device: where patches are made, and where the cases lie if they fit.
        say: told where the cases lie, when that is not where patches are made.
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
        device: torch.device | None = None,
        say: Callable[[str], None] = lambda _line: None,
    ):
        self._settings, self._cases, self._organs, self._intensity = settings, cases, organs, intensity
        self._seed, self._group = (seed, stage_number), group
        self._device = device or torch.device("cpu")
        sampling = np.array([case.sampling_weight for case in cases])
        if shares:
            location = np.array([case.location for case in cases])
            sampling *= (np.array(shares) / np.bincount(location, sampling, len(shares)).clip(1e-9))[location]
        self._sampling = sampling / sampling.sum()
        training = settings.training
        self.steps_per_epoch = training.steps_per_epoch or -(-len(cases) // training.batch)
        self.waited_seconds = 0.0
        self._kinds = settings.batches
        # Ahead of the network's commands, which are long: otherwise the network waits for its next patches.
        self._stream = torch.cuda.Stream(self._device, priority=-1) if self._device.type == "cuda" else None
        self._changed = ChangedCases(
            cases,
            organs,
            intensity,
            settings.augmentation,
            self._sampling,
            self._seed,
            min(_MOST_WORKERS, max(1, (os.cpu_count() or 2) // 2)) if self._device.type == "cuda" else 0,
            self._put,
        )
        self._placed: dict[int, Arrays] = {}
        self._fits = self._device.type == "cpu" or self._has_room(say)

    def close(self) -> None:
        """End the workers; no batch can be had afterwards."""
        self._changed.close()

    def batch(self, step: int) -> Batch:
        """Return this process's part of the batch of a step, for the present stream of commands."""
        return self._handed_over(*self._made(step))

    def _made(self, step: int) -> tuple[Batch, torch.cuda.Event | None]:
        """A batch, and what tells that a GPU has come to its end."""
        with self._own_stream():
            return self._computed(step), None if self._stream is None else self._stream.record_event()

    def _handed_over(self, batch: Batch, done: torch.cuda.Event | None) -> Batch:
        if done is not None:
            present = torch.cuda.current_stream(self._device)
            present.wait_event(done)
            for tensor in (batch.images, batch.labels, batch.weights):
                tensor.record_stream(present)  # its memory is not given away before the network has read it
        return batch

    def _own_stream(self) -> AbstractContextManager:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _computed(self, step: int) -> Batch:
        kind = self._kind(step)
        mine = range(self._group.rank, kind.batch, self._group.size)
        changed = self._changed.at(step)
        drawn = [self._drawn(step, number, kind, changed) for number in mine]
        images, labels = sample_patches(
            [cut for _, cut in drawn],
            kind.patch[::-1],
            self._organs,
            self._intensity,
            self._settings.augmentation,
            kind.view,
            self._device,
        )
        images = torch.stack([network_input(image, self._intensity) for image in images])
        weights = [[self._cases[case].weights[key] for key in self._organs] for case, _ in drawn]
        return Batch(images[:, None], labels, sent(weights, self._device))

    def prefetched(self, first: int, end: int) -> Iterator[Batch]:
        """Yield the batches of steps first ... end - 1, made ahead; the time waited adds up in `waited_seconds`."""
        threads = 1 if self._device.type == "cuda" else max(1, min(4, (os.cpu_count() or 1) // 2))
        with ThreadPoolExecutor(threads, thread_name_prefix="batch") as pool:
            pending = deque(pool.submit(self._made, step) for step in range(first, min(end, first + AHEAD)))
            try:
                for step in range(first, end):
                    started = time.perf_counter()
                    made = pending.popleft().result()
                    self.waited_seconds += time.perf_counter() - started
                    if step + AHEAD < end:
                        pending.append(pool.submit(self._made, step + AHEAD))
                    yield self._handed_over(*made)
            finally:
                for future in pending:
                    future.cancel()

    def _kind(self, step: int) -> BatchShape:
        if len(self._kinds) == 1:
            return self._kinds[0]
        shares = np.array([kind.share for kind in self._kinds])
        generator = np.random.default_rng((*self._seed, step, _KIND))
        return self._kinds[int(generator.choice(len(shares), p=shares / shares.sum()))]

    def _drawn(self, step: int, number: int, kind: BatchShape, changed: list[ChangedCase]) -> tuple[int, Cut]:
        """Number of the case of a patch, and where the patch is cut."""
        generator = np.random.default_rng((*self._seed, step, number))
        index = self._case_index(step, number, generator)
        case = self._cases[index]
        voxels = case.organ_voxels
        place = self._changed_index(index, changed, generator)
        if place is None:
            image, labels = self._on_device(index)
        else:
            chosen = changed[place]
            index, voxels, image, labels = chosen.number, chosen.organ_voxels, chosen.image, chosen.labels
            case = self._cases[index]
        patch = kind.patch[::-1]
        center = self._center(case, voxels, patch, kind.view, generator)
        return index, Cut(image, labels, case.spacing_mm, center, generator)

    def _changed_index(self, index: int, changed: list[ChangedCase], generator: np.random.Generator) -> int | None:
        """Which of the changed cases takes the place of a case, if one does: where an epoch is a pass over the cases,
        only one made from that very case.
        """
        if not changed or generator.random() >= self._settings.augmentation.changed_share:
            return None
        places = list(range(len(changed)))
        if not self._settings.training.steps_per_epoch:
            places = [place for place in places if changed[place].number == index]
        return int(generator.choice(places)) if places else None

    def _case_index(self, step: int, number: int, generator: np.random.Generator) -> int:
        training, count = self._settings.training, len(self._cases)
        if training.steps_per_epoch:
            return int(generator.choice(count, p=self._sampling))
        epoch, step = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((*self._seed, epoch)).permutation(count)
        return int(order[(step * training.batch + number) % count])

    def _center(
        self,
        case: PreparedCase,
        organ_voxels: list[np.ndarray],
        patch: tuple[int, int, int],
        view: str,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Draw an organ present in the case and a voxel near it, or any voxel of the scan; the middle for stages of a
        fixed shape; for half bodies a patch that ends near the body's middle.
        """
        shape = np.array(case.image.shape)
        if self._settings.stage.shape is not None:
            shift = self._settings.augmentation.shift_mm / np.array(case.spacing_mm[::-1])
            return (shape - 1) / 2 + generator.uniform(-shift, shift)
        if organ_voxels and generator.random() < self._settings.training.organ_centers:
            voxels = organ_voxels[int(generator.integers(len(organ_voxels)))]
            center = voxels[int(generator.integers(len(voxels)))].astype(np.float64)
            jitter = 0.25 * np.array(patch)
            center = center + generator.uniform(-jitter, jitter)
        else:
            center = generator.uniform(0, shape)
        if view == "half":
            edge = (shape[2] - 1) / 2 + generator.uniform(-_MIDLINE_MM, _MIDLINE_MM) / case.spacing_mm[0]
            center[2] = edge + (0.5 if generator.random() < 0.5 else -0.5) * patch[2]
        return center

    # Where the cases lie --------------------------------------------------------------------------

    def _has_room(self, say: Callable[[str], None]) -> bool:
        """Whether a GPU's memory takes the cases, three bytes a voxel."""
        changed = _ROUNDS * self._settings.augmentation.changed_cases if self._changed.wanted else 0
        sizes = [case.image.numel() for case in self._cases]
        needed = 3 * (sum(sizes) + changed * max(sizes))
        free = torch.cuda.mem_get_info(self._device)[0] if self._device.type == "cuda" else 0
        if needed <= _MEMORY_SHARE * free:
            return True
        say(
            f"{self._settings.stage.name}: the cases ({needed / 2**30:.1f} GiB) stay in the computer's memory: "
            f"{self._device} has {free / 2**30:.1f} GiB free. Each patch is copied over, which takes longer."
        )
        return False

    def _put(self, image: torch.Tensor, labels: torch.Tensor) -> Arrays:
        """A case's arrays where patches are cut from them."""
        if self._device.type == "cpu" or not self._fits:
            return image, labels
        shorts = (image * SHORTS).round_().to(torch.int16)
        with self._own_stream():
            return shorts.to(self._device), labels.to(self._device)

    def _on_device(self, index: int) -> Arrays:
        if index not in self._placed:
            case = self._cases[index]
            self._placed[index] = self._put(case.image, case.labels)
        return self._placed[index]
