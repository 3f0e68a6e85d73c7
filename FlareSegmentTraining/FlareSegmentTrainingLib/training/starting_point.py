"""What a network knew before it is trained on: two terms of the loss that keep it near where it began.

A few new cases would otherwise overwrite what no longer is among the training data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from FlareSegmentTrainingLib.training.configuration import TrainingSettings


class StartingPoint:
    """The weights that a stage began with, and what leaving them costs.

    Args:
        network: in training; its parameters are compared with `weights`, by name.
        frozen: another network of the same kind, which takes the weights and is asked what it would have answered.
    """

    def __init__(
        self, network: nn.Module, frozen: nn.Module, weights: Mapping[str, torch.Tensor], settings: TrainingSettings
    ):
        device = next(network.parameters()).device
        self._settings = settings
        self._pairs = [(value, weights[key].to(device)) for key, value in network.named_parameters()]
        frozen.load_state_dict(dict(weights))
        self._frozen = frozen.requires_grad_(False).eval() if settings.distillation else None

    def penalty(
        self,
        images: torch.Tensor,
        logits: torch.Tensor,
        labels: torch.Tensor,
        organ_weights: torch.Tensor,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
    ) -> torch.Tensor:
        """This process's share of what is added to the loss of the whole batch, one number; 0 at the first step.

        `starting_point` times half the squared distance of the weights from the first ones (L2-SP, Li et al. 2018,
        https://arxiv.org/abs/1802.01483), and `distillation` times the mean divergence (Kullback-Leibler) of the
        answer from the first weights' answer (Li and Hoiem 2016, https://arxiv.org/abs/1606.09282), over the voxels
        where the first weights do not contradict the labels: those are what was corrected.

        Args:
            images: (batch, 1, z, y, x); logits: (batch, classes, z, y, x), the network's answer to them.
            labels: (batch, z, y, x), integer; organ_weights: (batch, classes - 1), 0 for an organ not labeled.
            total: sums a tensor over the processes that share the batch.
        """
        loss = torch.zeros((), device=logits.device)
        one = torch.ones((), device=logits.device)
        if self._settings.starting_point:
            distance = torch.stack([(now - first).square().sum() for now, first in self._pairs]).sum()
            loss = loss + 0.5 * self._settings.starting_point * distance / total(one)
        if self._frozen is not None:
            loss = loss + self._settings.distillation * self._distance(images, logits, labels, organ_weights, total)
        return loss

    def _distance(self, images, logits, labels, organ_weights, total) -> torch.Tensor:
        assert self._frozen is not None
        with torch.no_grad():
            before = F.log_softmax(self._frozen(images).float(), dim=1)
        answer = before.argmax(1)
        unlabeled = F.pad((organ_weights == 0).to(labels.device), (1, 0))
        ignored = unlabeled.gather(1, answer.flatten(1)).view_as(answer) & (labels == 0)
        agrees = (answer == labels) | ignored
        now = F.log_softmax(logits.float(), dim=1)
        divergence = (before.exp() * (before - now)).sum(1)
        return (divergence * agrees).sum() / total(agrees.sum()).clamp(min=1)
