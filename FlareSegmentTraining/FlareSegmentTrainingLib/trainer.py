"""The training loop of one stage's network: steps, evaluation, checkpoints, resume.

A step depends on the seed, the step's number and the state that a checkpoint holds, and on nothing else: a run that was
stopped and resumed continues as if it had not been.
"""

from __future__ import annotations

import csv
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from FlareSegmentLib.model_file import Intensity, Stage
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.vnet import build_network
from torch import nn

from .augmentation import AIR, AugmentationSettings, sample_patch
from .losses import segmentation_loss
from .preparation import PreparedCase


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a stage learns.

    Attributes:
        steps: gradient steps in all, one batch each.
        patch: (z, y, x) voxels.
        learning_rate: highest rate of AdamW, after `warmup_steps`; falls to 0 along a half cosine.
        freeze_normalization_at: fraction of the steps after which batch normalization keeps its running statistics, so
            that training ends on the very function that inference folds into the convolutions.
        average_decay: decay of the exponential moving average of the weights; the average is what is evaluated and kept.
        organ_centers: fraction of the patches that are centered in an organ; the others anywhere in the scan.
    """

    steps: int
    patch: tuple[int, int, int]
    batch: int = 1
    learning_rate: float = 1.5e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 100
    gradient_norm: float = 5.0
    freeze_normalization_at: float = 0.5
    average_decay: float = 0.995
    organ_centers: float = 0.7
    evaluate_every: int = 500


class StageTrainer:
    """Trains the network of one stage on prepared cases.

    Args:
        stage: the network and its grid.
        training, validation: cases prepared at the stage's spacing.
        folder: where `last.pt`, `best.pt` and `log.csv` are written; made when missing.
        start_from: state dictionary to begin with instead of random weights; ignored on resume.
        compiled: compile forward and backward for this machine (torch.compile).
    """

    def __init__(
        self,
        stage: Stage,
        schedule: Schedule,
        augmentation: AugmentationSettings,
        intensity: Intensity,
        training: list[PreparedCase],
        validation: list[PreparedCase],
        folder: Path,
        seed: int = 0,
        start_from: dict[str, torch.Tensor] | None = None,
        compiled: bool = False,
        report: Callable[[str], None] = print,
    ):
        self.stage, self.schedule, self.augmentation, self.intensity = stage, schedule, augmentation, intensity
        self.training, self.validation, self.seed, self.report = training, validation, seed, report
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(seed)
        self.network = build_network(stage.network)
        if start_from is not None:
            self.network.load_state_dict(start_from)
        self.network.to(memory_format=torch.channels_last_3d)
        self.average = build_network(stage.network).requires_grad_(False)
        self.average.load_state_dict(self.network.state_dict())
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=schedule.learning_rate, weight_decay=schedule.weight_decay
        )
        self.step = 0
        self.best = -1.0
        self._forward = torch.compile(self.network) if compiled else self.network

    def resume(self) -> bool:
        """Continue from `last.pt`; returns False where there is none."""
        file = self.folder / "last.pt"
        if not file.is_file():
            return False
        state = torch.load(file, map_location="cpu", weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.best = state["step"], state["best"]
        return True

    def run(self) -> nn.Module:
        """Train to the end of the schedule and return the best averaged network, in evaluation mode."""
        started, first, losses = time.monotonic(), self.step, []
        while self.step < self.schedule.steps:
            losses.append(self._train_step())
            self.step += 1
            if self.step % 50 == 0:
                elapsed = time.monotonic() - started
                remaining = elapsed / (self.step - first) * (self.schedule.steps - self.step)
                self.report(
                    f"{self.stage.name} step {self.step}/{self.schedule.steps} loss {np.mean(losses[-50:]):.4f} "
                    f"{elapsed / (self.step - first):.2f} s/step, {remaining / 60:.0f} min left"
                )
            if self.step % self.schedule.evaluate_every == 0 or self.step == self.schedule.steps:
                self._evaluate_and_save(float(np.mean(losses[-self.schedule.evaluate_every :])))
        best = build_network(self.stage.network)
        best.load_state_dict(torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True))
        return best.eval()

    def _train_step(self) -> float:
        schedule = self.schedule
        frozen = self.step >= schedule.freeze_normalization_at * schedule.steps
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = 0.03
                module.train(not frozen)
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate()
        generator = np.random.default_rng((self.seed, self.step))
        images, labels, weights = self._batch(generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = self._forward(images.contiguous(memory_format=torch.channels_last_3d))
        loss = segmentation_loss(logits, labels, weights)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), schedule.gradient_norm)
        self.optimizer.step()
        self._update_average()
        return float(loss.detach())

    def _learning_rate(self) -> float:
        schedule = self.schedule
        warmup = min(1.0, (self.step + 1) / schedule.warmup_steps)
        return schedule.learning_rate * warmup * 0.5 * (1.0 + np.cos(np.pi * self.step / schedule.steps))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.schedule.average_decay, (self.step + 1) / (self.step + 10))
        state = self.network.state_dict()
        for key, value in self.average.state_dict().items():
            if value.is_floating_point():
                value.lerp_(state[key], 1.0 - decay)
            else:
                value.copy_(state[key])

    def _batch(self, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, labels, weights = [], [], []
        sampling = np.array([case.sampling_weight for case in self.training])
        for _ in range(self.schedule.batch):
            case = self.training[int(generator.choice(len(self.training), p=sampling / sampling.sum()))]
            image, truth = sample_patch(
                case.image,
                case.labels,
                self._center(case, generator),
                self.schedule.patch,
                self.stage.spacing_mm[0],
                self.intensity,
                self.augmentation,
                generator,
            )
            images.append(image)
            labels.append(truth)
            weights.append(torch.tensor([case.weights[organ.key] for organ in ORGANS]))
        return torch.stack(images)[:, None], torch.stack(labels), torch.stack(weights)

    def _center(self, case: PreparedCase, generator: np.random.Generator) -> np.ndarray:
        """Draw an organ present in the case and a voxel of it, or any voxel of the scan."""
        if case.organ_voxels and generator.random() < self.schedule.organ_centers:
            voxels = case.organ_voxels[int(generator.integers(len(case.organ_voxels)))]
            center = voxels[int(generator.integers(len(voxels)))].astype(np.float64)
            jitter = 0.25 * np.array(self.schedule.patch)
            return center + generator.uniform(-jitter, jitter)
        return generator.uniform(0, np.array(case.image.shape))

    @torch.no_grad()
    def evaluate(self) -> dict[str, dict[str, float]]:
        """Return Dice per validation case and organ of the averaged network, on the stage's own grid."""
        network = build_network(self.stage.network)
        network.load_state_dict(self.average.state_dict())
        network.fold_normalization().to(memory_format=torch.channels_last_3d)
        scores = {}
        for case in self.validation:
            shape = case.image.shape
            padding = [value for extent in reversed(shape) for value in (0, -extent % network.multiple)]
            padded = F.pad(case.image[None, None], padding, value=AIR)
            logits = network(padded.contiguous(memory_format=torch.channels_last_3d))
            prediction = logits.argmax(1)[0, : shape[0], : shape[1], : shape[2]]
            scores[case.name] = {
                organ.key: _dice(prediction == organ.label, case.labels == organ.label) for organ in ORGANS
            }
        return scores

    def _evaluate_and_save(self, loss: float) -> None:
        scores = self.evaluate()
        mean = float(np.mean([value for case in scores.values() for value in case.values()])) if scores else -loss
        rows = {f"{name} {key}": f"{value:.4f}" for name, case in scores.items() for key, value in case.items()}
        self.report(f"{self.stage.name} step {self.step}: mean Dice {mean:.4f} " + str(rows))
        log = self.folder / "log.csv"
        is_new = not log.exists()
        with open(log, "a", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            if is_new:
                writer.writerow(["step", "loss", "mean_dice", *rows])
            writer.writerow([self.step, f"{loss:.5f}", f"{mean:.4f}", *rows.values()])
        if mean >= self.best:
            self.best = mean
            _save(self.average.state_dict(), self.folder / "best.pt")
        _save(
            {
                "network": self.network.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "best": self.best,
            },
            self.folder / "last.pt",
        )


def _dice(prediction: torch.Tensor, truth: torch.Tensor) -> float:
    total = int(prediction.sum()) + int(truth.sum())
    return 2.0 * int((prediction & truth).sum()) / total if total else 1.0


def _save(content: dict, file: Path) -> None:
    temporary = file.with_suffix(".saving")
    torch.save(content, temporary)
    os.replace(temporary, file)
