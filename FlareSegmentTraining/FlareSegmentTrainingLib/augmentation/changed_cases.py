"""Cases that differ from those that were scanned: kidneys laid elsewhere, cysts, tumors and bowel full of contrast.

These changes take a CPU a second each, so they are made for whole cases ahead of time, and many patches are cut from
one changed case. What round of steps sees which changed cases is a function of the seed and the round's number: a
resumed run makes the very same ones.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import multiprocessing

from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.lumps import paint_bowel, paint_mass
from FlareSegmentTrainingLib.augmentation.masses import add_mass
from FlareSegmentTrainingLib.augmentation.perirenal_fat import embed_kidney
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase

_ROUND = 1 << 20  # set apart from the steps' numbers in the seed
_MOST_LOOPS, _MOST_MASSES = 6, 3


@dataclass(frozen=True)
class ChangedCase:
    """A changed copy of a case.

    Attributes:
        number: of the case among the training cases.
        image, labels: (z, y, x), as `PreparedCase` has them, or as they were placed.
        organ_voxels: one (n, 3) array of (z, y, x) voxels for each organ present.
    """

    number: int
    image: torch.Tensor
    labels: torch.Tensor
    organ_voxels: list[np.ndarray]


def change_case(scan: LabeledScan, settings: AugmentationSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """A changed copy of a case's image and labels, each change as often as the settings say."""
    scan, generator = replace(scan, image=scan.image.clone(), labels=scan.labels.clone()), scan.generator
    if generator.random() < settings.perirenal_fat_probability:
        embed_kidney(scan)
    if generator.random() < settings.mass_probability:
        add_mass(scan)
    if generator.random() < settings.other_mass_probability:
        for _ in range(int(generator.integers(1, _MOST_MASSES + 1))):
            paint_mass(scan)
    if generator.random() < settings.bowel_probability:
        for _ in range(int(generator.integers(1, _MOST_LOOPS + 1))):
            paint_bowel(scan)
    return scan.image, scan.labels


def _changed(
    image: np.ndarray,
    labels: np.ndarray,
    spacing_mm: Sequence[float],
    organs: Sequence[str],
    intensity: Intensity,
    settings: AugmentationSettings,
    seed: Sequence[int],
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """`change_case` on arrays, as a worker process takes and gives them; and the voxels of the organs present."""
    tensors = torch.from_numpy(np.array(image)), torch.from_numpy(np.array(labels))
    scan = LabeledScan(*tensors, spacing_mm, organs, intensity, np.random.default_rng(list(seed)))
    changed, truth = (made.numpy() for made in change_case(scan, settings))
    voxels = [np.argwhere(truth == label) for label in range(1, len(organs) + 1)]
    return changed, truth, [found for found in voxels if len(found)]


def _begin_worker() -> None:
    """Make this process a worker: Ctrl-C is its parent's business, and it ends when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)

    def follow_parent() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


class ChangedCases:
    """The changed cases of each round of `settings.changed_steps` steps, made and placed one after the other while the
    round before runs; the first round has none.

    Args:
        sampling: how often each case is taken, adding up to 1.
        seed: of the stage.
        processes: worker processes; 0: one thread of this process.
        place: brings an image and its labels to where patches are cut from them.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        organs: Sequence[str],
        intensity: Intensity,
        settings: AugmentationSettings,
        sampling: np.ndarray,
        seed: Sequence[int],
        processes: int,
        place: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = lambda *arrays: arrays,
    ):
        self._cases, self._organs, self._intensity, self._settings = cases, organs, intensity, settings
        self._sampling, self._seed, self._processes, self._place = sampling, tuple(seed), processes, place
        self._workers: ProcessPoolExecutor | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="changed cases")
        self._lock = threading.Lock()
        self._pending: dict[int, list[Future[ChangedCase]]] = {}
        self._ready: dict[int, list[ChangedCase]] = {0: []}

    @property
    def wanted(self) -> bool:
        """Whether the settings ask for any changed case."""
        settings = self._settings
        return settings.changed_share > 0 and (
            max(
                settings.mass_probability,
                settings.perirenal_fat_probability,
                settings.other_mass_probability,
                settings.bowel_probability,
            )
            > 0
        )

    def at(self, step: int) -> list[ChangedCase]:
        """Return the changed cases that a step may see; waits for them when they are not made yet."""
        if not self.wanted:
            return []
        number = step // self._settings.changed_steps
        with self._lock:
            for wanted in (number, number + 1):
                if wanted not in self._ready and wanted not in self._pending:
                    self._pending[wanted] = self._begun(wanted)
            if number not in self._ready:
                self._ready[number] = [future.result() for future in self._pending.pop(number)]
                for old in [done for done in self._ready if done < number - 1]:
                    del self._ready[old]
            return self._ready[number]

    def close(self) -> None:
        """End the workers; what is not made yet is not made any more."""
        with self._lock:
            for pool in (self._thread, self._workers):
                if pool is not None:
                    pool.shutdown(wait=False, cancel_futures=True)
            self._pending.clear()

    def _begun(self, number: int) -> list[Future[ChangedCase]]:
        generator = np.random.default_rng((*self._seed, _ROUND, number))
        chosen = generator.choice(len(self._cases), self._settings.changed_cases, p=self._sampling)
        begun = []
        for place, index in enumerate(chosen.tolist()):
            case = self._cases[index]
            job = (
                case.image.numpy(),
                case.labels.numpy(),
                case.spacing_mm,
                tuple(self._organs),
                self._intensity,
                self._settings,
                (*self._seed, _ROUND, number, place),
            )
            begun.append(self._thread.submit(self._finished, index, job, self._given_away(job)))
        return begun

    def _given_away(self, job: tuple) -> Future | None:
        """What a worker will have made; None where there are none, or they were ended by the system."""
        if self._processes and self._workers is None:
            self._workers = ProcessPoolExecutor(self._processes, multiprocessing.get_context("spawn"), _begin_worker)
        try:
            return self._workers.submit(_changed, *job) if self._workers is not None else None
        except BrokenExecutor:
            return None

    def _finished(self, index: int, job: tuple, made: Future | None) -> ChangedCase:
        try:
            image, labels, voxels = _changed(*job) if made is None else made.result()
        except BrokenExecutor:  # the same is made here
            image, labels, voxels = _changed(*job)
        return ChangedCase(index, *self._place(torch.from_numpy(image), torch.from_numpy(labels)), voxels)
