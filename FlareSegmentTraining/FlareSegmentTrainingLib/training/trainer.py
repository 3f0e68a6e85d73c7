"""Training of one stage's network: steps, averaged weights, evaluation, and the state that a checkpoint holds.

A step depends on the seed, the step's number and that state, and on nothing else: a run that was stopped and resumed
continues as if it had not been.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn, update_bn

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.model.intensity import AIR, Intensity, network_input
from FlareSegmentLib.networks.vnet import Network, build_network
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase
from FlareSegmentTrainingLib.training.batches import Batch
from FlareSegmentTrainingLib.training.configuration import StageSettings, TrainingSettings
from FlareSegmentTrainingLib.training.distributed import Group, synchronize_normalization
from FlareSegmentTrainingLib.training.losses import deeply_supervised_loss
from FlareSegmentTrainingLib.training.starting_point import StartingPoint

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class TrainingFailed(FlareSegmentError):
    """The run cannot go on; the last checkpoint stands."""


@dataclass(frozen=True)
class Scores:
    """How the averaged network does on the validation cases, on the stage's own grid.

    Attributes:
        dice: case name -> organ key -> Dice, nan where the organ was not labeled or is not there, as in
            `evaluation.measurements`: without truth there is no figure.
        accuracy: fraction of voxels labeled right. Voxels to be ignored are in none of the figures.
        false_positive_ml: case name -> organ key -> volume that was found of an organ that is labeled and not there.
    """

    dice: dict[str, dict[str, float]]
    accuracy: float
    false_positive_ml: dict[str, dict[str, float]] = field(default_factory=dict)

    def organ_means(self) -> dict[str, float]:
        """Return the mean over the cases of each organ; nan where no case has it."""
        keys = next(iter(self.dice.values()), {})
        return {key: _mean([case[key] for case in self.dice.values()]) for key in keys}

    def mean(self) -> float:
        """Return the mean over organs and cases; nan without any."""
        return _mean([value for case in self.dice.values() for value in case.values()])

    def false_ml(self) -> float:
        """Return the volume of organs that are not there, over all cases."""
        return sum(value for case in self.false_positive_ml.values() for value in case.values())


def check_stage(settings: StageSettings, first_weights: dict[str, torch.Tensor] | None = None) -> None:
    """Find out, before anything is prepared, whether a stage can be trained.

    Args:
        first_weights: weights that it is to begin with.

    Raises:
        InputError: when the configuration makes no network, or one that the patches, the deep supervision or the first
            weights do not fit.
    """
    where = f"Stage {settings.stage.name}"
    try:
        with torch.device("meta"):
            network = build_network(settings.stage.network)
    except ValueError as error:
        raise InputError(f"{where}: {error}.") from error
    if first_weights is not None:
        asked = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        if asked != {key: tuple(value.shape) for key, value in first_weights.items()}:
            raise InputError(f"{where}: the network is another one than in the model given with --start-from.")
    for kind in settings.batches:
        if any(extent % network.multiple for extent in kind.patch):
            size = " x ".join(map(str, kind.patch))
            raise InputError(
                f"{where}: patches of {size} voxels: every extent must be a multiple of {network.multiple}."
            )
    levels, coarser = len(settings.training.loss.deep_supervision), len(network.decoder) - 1
    if levels > coarser:
        raise InputError(f"{where}: loss.deep_supervision has {levels} weights, the network {coarser} coarser levels.")


class StageTrainer:
    """Takes gradient steps on the network of one stage.

    Args:
        steps: length of the whole schedule; None where `TrainingSettings.minutes` says it: then `progress` has to be
            set before each step.
        precision: "fp32", "bf16" or "fp16", as `devices.choose_precision` gives it.
        compiled: compile forward and backward for this machine (torch.compile).
    """

    def __init__(
        self,
        settings: StageSettings,
        steps: int | None,
        intensity: Intensity,
        organs: tuple[str, ...],
        seed: int,
        device: torch.device,
        precision: str,
        compiled: bool,
        group: Group,
    ):
        self.settings, self.steps, self.organs, self._intensity = settings, steps, organs, intensity
        self._device, self._group = device, group
        training = settings.training
        torch.manual_seed(seed)
        network = build_network(settings.stage.network)
        self.precision = self._reliable_precision(precision, network)
        self._model = _Supervised(network, len(training.loss.deep_supervision), len(organs) + 1)
        self.network = self._model.network
        # torch's AveragedModel would wait for a GPU at each step, to tell it how many steps there were.
        self._average = deepcopy(network).requires_grad_(False)
        if group.size > 1:
            synchronize_normalization(self._model)
        for module in self._model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = training.normalization_momentum
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # few shapes, many steps
        _place(self._model, device)
        _place(self._average, device)
        self._optimizer = _optimizer(self._model, training)
        self._scaler = _grad_scaler(device, self.precision == "fp16")
        self._forward: Callable[[torch.Tensor], list[torch.Tensor]] = self._model
        if group.size > 1:
            ids = [device.index] if device.type == "cuda" else None
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            self._forward = nn.parallel.DistributedDataParallel(self._model, device_ids=ids)
        if compiled:
            self._forward = torch.compile(self._forward, dynamic=False)
        self._starting_point: StartingPoint | None = None
        self.step = 0
        self.statistics_are_fresh = False
        self._elapsed_share = 0.0
        self._schedule = LambdaLR(self._optimizer, lambda _step: self._rate_factor())
        # The first step of a resumed run, and one in fp16 whose gradients overflow, come without a step before them.
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")

    def _reliable_precision(self, precision: str, network: Network) -> str:
        """Return fp32 instead of bf16 where a CPU's bf16 gradients are wrong for every kind of batch."""
        kernels = [max(m.kernel_size) for m in network.encoder[-1].modules() if isinstance(m, nn.Conv3d)]
        self._least_extent = max(kernels) * network.multiple
        return precision if any(self._is_reliable(kind.patch, precision) for kind in self.settings.batches) else "fp32"

    def _is_reliable(self, extents: Sequence[int], precision: str) -> bool:
        """Whether gradients of images of these extents are right.

        Measured with torch 2.13 (oneDNN): when a volume is smaller than a convolution's kernel, the gradient of the
        weights in bf16 holds memory that was never written. The lowest level is the smallest.
        """
        return self._device.type != "cpu" or precision != "bf16" or min(extents) >= self._least_extent

    def start_from(self, weights: dict[str, torch.Tensor]) -> None:
        """Begin with these weights instead of random ones."""
        self.network.load_state_dict(weights)
        self._average.load_state_dict(weights)
        training = self.settings.training
        if training.starting_point or training.distillation:
            frozen = build_network(self.settings.stage.network)
            _place(frozen, self._device)
            self._starting_point = StartingPoint(self.network, frozen, weights, training)

    def average(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights, which are the stage's result, as tensors on the CPU."""
        return {key: value.detach().cpu().clone() for key, value in self._average.state_dict().items()}

    def state(self) -> dict:
        """Return everything that a resumed run needs, as tensors and plain values."""
        return {
            "step": self.step,
            "model": self._model.state_dict(),
            "average": self._average.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "statistics_are_fresh": self.statistics_are_fresh,
        }

    def load_state(self, state: dict) -> None:
        """Continue from `state()`."""
        self._model.load_state_dict(state["model"])
        self._average.load_state_dict(state["average"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self.statistics_are_fresh = state["statistics_are_fresh"]

    def learning_rate(self) -> float:
        """Return the rate of the last step taken."""
        return self._optimizer.param_groups[0]["lr"]

    @property
    def progress(self) -> float:
        """How much of the schedule is done, 0 to 1."""
        return self.step / self.steps if self.steps else self._elapsed_share

    @progress.setter
    def progress(self, share: float) -> None:
        self._elapsed_share = min(1.0, share)

    @property
    def freezing(self) -> bool:
        """Whether batch normalization keeps its statistics by now."""
        return self.progress >= self.settings.training.freeze_normalization_at

    def _rate_factor(self) -> float:
        """Share of the highest learning rate, by the progress, which may be the clock's: torch's own count steps."""
        training, progress = self.settings.training, self.progress
        factor = {
            "constant": 1.0,
            "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
            "poly": (1.0 - progress) ** training.power,
            "step": training.step_factor ** (self.step // training.step_every),
        }[training.schedule]
        warmup = min(1.0, (self.step + 1) / training.warmup_steps) if training.warmup_steps else 1.0
        return warmup * factor

    def train_step(self, batch: Batch) -> float:
        """Take one gradient step and return the loss of the whole batch.

        Raises:
            TrainingFailed: when the loss is not a finite number; the weights are as before the step.
        """
        training = self.settings.training
        self._set_modes(frozen=self.freezing)
        if self.step:
            self._schedule.step()
        images = batch.images.to(self._device, memory_format=torch.channels_last_3d, non_blocking=True)
        labels = batch.labels.to(self._device, non_blocking=True)
        weights = batch.weights.to(self._device)
        reduced = self.precision in _DTYPES and self._is_reliable(images.shape[2:], self.precision)
        with torch.autocast(self._device.type, _DTYPES.get(self.precision), enabled=reduced):
            outputs = self._forward(images)
        share = deeply_supervised_loss(outputs, labels, weights, training.loss, self._group.total)
        if self._starting_point is not None:
            with torch.autocast(self._device.type, _DTYPES.get(self.precision), enabled=reduced):
                share = share + self._starting_point.penalty(images, outputs[0], labels, weights, self._group.total)
        loss = float(self._group.total(share.detach()))
        if not math.isfinite(loss):
            raise TrainingFailed(
                f"The loss of stage {self.settings.stage.name} became {loss} at step {self.step + 1}. "
                "Resume with a lower training.learning_rate, with training.gradient_norm=1 or with precision=fp32."
            )
        self._optimizer.zero_grad(set_to_none=True)
        # DistributedDataParallel averages the processes' gradients; the shares add up to the loss.
        self._scaler.scale(share * self._group.size).backward()
        self._scaler.unscale_(self._optimizer)
        if training.gradient_norm:
            nn.utils.clip_grad_norm_(self._model.parameters(), training.gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._update_average()
        self.step += 1
        return loss

    def _set_modes(self, frozen: bool) -> None:
        self._model.train()
        if frozen:
            for module in self._model.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()

    def refresh_statistics(self, batches: Iterable[Batch]) -> None:
        """Make the statistics of batch normalization afresh for the present weights, over these batches."""
        images = (batch.images.to(self._device, memory_format=torch.channels_last_3d) for batch in batches)
        with _any_shape():
            update_bn(images, self._model)
        averages = dict(self._average.named_buffers())
        for key, value in self.network.named_buffers():
            averages[key].copy_(value)
        self.statistics_are_fresh = True

    def _update_average(self) -> None:
        """Take the weights after a step into the average; counted batches are no averages."""
        pairs = list(zip(self._average.state_dict().values(), self.network.state_dict().values()))
        averages, values = zip(*(pair for pair in pairs if pair[0].is_floating_point()))
        decay = min(self.settings.training.average_decay, (self.step + 1) / (self.step + 10))
        get_ema_multi_avg_fn(decay)(averages, values, self.step)
        for average, value in pairs:
            if not average.is_floating_point():
                average.copy_(value)

    @torch.no_grad()
    def evaluate(self, cases: list[PreparedCase]) -> Scores:
        """Return the averaged network's scores on whole prepared cases, in fp32."""
        network = build_network(self.settings.stage.network)
        network.load_state_dict(self._average.state_dict())
        _place(network.fold(), self._device)
        # Dice and false volume of each organ, right and all voxels; each process fills the rows of its own cases.
        count = len(self.organs)
        table = torch.zeros(len(cases), 2 * count + 2, dtype=torch.float64)
        with _any_shape():
            for number in range(self._group.rank, len(cases), self._group.size):
                table[number] = self._score(network, cases[number])
        table = self._group.total(table.to(self._device) if self._device.type == "cuda" else table).cpu()
        dice = {case.name: dict(zip(self.organs, row[:count])) for case, row in zip(cases, table.tolist())}
        false = {case.name: dict(zip(self.organs, row[count:-2])) for case, row in zip(cases, table.tolist())}
        right, voxels = table[:, -2:].sum(dim=0).tolist() if len(cases) else (0.0, 0.0)
        return Scores(dice, right / voxels if voxels else math.nan, false)

    def _score(self, network: Network, case: PreparedCase) -> torch.Tensor:
        shape = case.image.shape
        padding = [value for extent in reversed(shape) for value in (0, -extent % network.multiple)]
        padded = network_input(F.pad(case.image[None, None], padding, value=AIR), self._intensity).to(self._device)
        logits = network(padded.contiguous(memory_format=torch.channels_last_3d))
        counted = case.labels != IGNORED
        prediction = logits.argmax(1)[0, : shape[0], : shape[1], : shape[2]].cpu() * counted
        voxel_ml = math.prod(case.spacing_mm) / 1000
        scores, false = [], []
        for label, key in enumerate(self.organs, start=1):
            found, truth = prediction == label, case.labels == label
            labeled = case.weights[key] > 0
            scores.append(_dice(found, truth) if labeled else math.nan)
            false.append(int(found.sum()) * voxel_ml if labeled and not truth.any() else 0.0)
        return torch.tensor(
            [*scores, *false, float((prediction == case.labels).sum()), float(counted.sum())], dtype=torch.float64
        )


class _Supervised(nn.Module):
    """A network with auxiliary heads on its coarser decoder stages; gives logits from full to coarsest resolution."""

    def __init__(self, network: Network, levels: int, classes: int):
        super().__init__()
        self.network = network
        self.heads = nn.ModuleList(nn.LazyConv3d(classes, kernel_size=1) for _ in range(levels))
        if levels:
            edge = 2 * network.multiple
            self.eval()
            with torch.no_grad():
                self(torch.zeros(1, 1, edge, edge, edge))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        features = self.network.features(x)
        coarser = reversed(features[:-1])
        return [self.network.head(features[-1]), *(head(feature) for head, feature in zip(self.heads, coarser))]


def _optimizer(model: nn.Module, training: TrainingSettings) -> torch.optim.Optimizer:
    parameters, rate, decay = model.parameters(), training.learning_rate, training.weight_decay
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=training.momentum, weight_decay=decay)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimizer]
    return kind(parameters, lr=rate, weight_decay=decay)


@contextmanager
def _any_shape() -> Iterator[None]:
    """Compute without trying out algorithms first, which pays for shapes that come again and again."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _place(module: nn.Module, device: torch.device) -> None:
    """Bring a module to a device, channels last, as convolutions compute faster."""
    cast(Any, module).to(device, memory_format=torch.channels_last_3d)  # torch's types lack this argument


def _dice(prediction: torch.Tensor, truth: torch.Tensor) -> float:
    there = int(truth.sum())
    return 2.0 * int((prediction & truth).sum()) / (int(prediction.sum()) + there) if there else math.nan


def _mean(values: list[float]) -> float:
    counted = [value for value in values if not math.isnan(value)]
    return float(np.mean(counted)) if counted else math.nan


def _grad_scaler(device: torch.device, enabled: bool):
    if not hasattr(torch.amp, "GradScaler"):  # PyTorch 2.2 has that of CUDA alone, which is what trains in fp16
        return torch.cuda.amp.GradScaler(enabled=enabled)
    return torch.amp.GradScaler(device.type, enabled=enabled)
