"""The loss of a segmentation network: Dice, cross-entropy or both, for labels that are partly missing or of unequal
quality.

Sums are kept apart from what they are divided by, so that processes that share a batch divide by the whole batch's: the
loss and its gradients do not depend on how the batch is distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from FlareSegmentTrainingLib.datasets.label_maps import IGNORED
from FlareSegmentTrainingLib.training.configuration import LossSettings


def segmentation_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    organ_weights: torch.Tensor,
    settings: LossSettings | None = None,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
) -> torch.Tensor:
    """Return this process's share of the loss of the whole batch, one number; shares add up to the loss.

    An organ of weight 0 was not labeled in that case: voxels labeled background may be that organ, so there the
    probability of "background or that organ" counts (marginal loss, Shi et al. 2021, https://arxiv.org/abs/2007.03868).
    Voxels labeled `label_maps.IGNORED` count in neither loss.
    Dice is taken per case over the organs present and labeled, with squared denominators (Milletari et al. 2016,
    section 3) or plain sums; organs out of view are left to the cross-entropy.

    Args:
        logits: (batch, classes, z, y, x).
        labels: (batch, z, y, x), integer; 0 is background, `label_maps.IGNORED` nothing.
        organ_weights: (batch, classes - 1), weight of each organ's labels, 0 to 1.
        total: sums a tensor over the processes that share the batch.
    """
    settings = settings or LossSettings()
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    loss = logits.new_zeros((), dtype=torch.float32)
    ignored = labels == IGNORED
    labels = labels.masked_fill(ignored, 0)
    if settings.cross_entropy:
        entropy = _cross_entropy(log_probabilities, labels, ignored, organ_weights, total)
        loss = loss + settings.cross_entropy * entropy
    if settings.dice:
        squared = settings.dice_denominator == "squared"
        probabilities = log_probabilities.exp()
        loss = loss + settings.dice * _dice_loss(probabilities, labels, ignored, organ_weights, squared, total)
    return loss


def deeply_supervised_loss(
    outputs: Sequence[torch.Tensor],
    labels: torch.Tensor,
    organ_weights: torch.Tensor,
    settings: LossSettings,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda value: value,
) -> torch.Tensor:
    """Return the weighted mean of the loss at full resolution and at each coarser one that `settings.deep_supervision`
    weights.

    Args:
        outputs: logits at full, half, quarter, ... resolution, one more than there are weights. Labels are taken at
            every second, fourth, ... voxel.
    """
    weights = (1.0, *settings.deep_supervision)
    loss = torch.zeros((), device=labels.device)
    for level, (weight, logits) in enumerate(zip(weights, outputs)):
        coarser = labels[:, :: 2**level, :: 2**level, :: 2**level]
        loss = loss + weight * segmentation_loss(logits, coarser, organ_weights, settings, total)
    return loss / sum(weights)


def _cross_entropy(log_probabilities, labels, ignored, organ_weights, total) -> torch.Tensor:
    background_or_unlabeled = _merge_unlabeled(log_probabilities, organ_weights)
    chosen = torch.cat((background_or_unlabeled.unsqueeze(1), log_probabilities[:, 1:]), dim=1)
    voxel_loss = -chosen.gather(1, labels.unsqueeze(1).long()).squeeze(1)
    class_weights = torch.cat((torch.ones_like(organ_weights[:, :1]), organ_weights), dim=1)
    voxel_weights = class_weights.gather(1, labels.flatten(1).long()).view_as(voxel_loss).masked_fill(ignored, 0.0)
    return (voxel_loss * voxel_weights).sum() / total(voxel_weights.sum()).clamp(min=1.0)


def _merge_unlabeled(log_probabilities: torch.Tensor, organ_weights: torch.Tensor) -> torch.Tensor:
    """Log-probability of "background or an organ that was not labeled", (batch, z, y, x)."""
    counted = torch.cat((torch.zeros_like(organ_weights[:, :1]), organ_weights), dim=1) != 0.0
    return torch.logsumexp(log_probabilities.masked_fill(counted[:, :, None, None, None], -torch.inf), dim=1)


def _dice_loss(probabilities, labels, ignored, organ_weights, squared: bool, total) -> torch.Tensor:
    losses, weights = [], []
    for index in range(organ_weights.shape[1]):
        truth = (labels == index + 1).float()
        prediction = probabilities[:, index + 1].masked_fill(ignored, 0.0)
        volume = truth.sum(dim=(1, 2, 3))
        overlap = (prediction * truth).sum(dim=(1, 2, 3))
        size = (prediction.square() if squared else prediction).sum(dim=(1, 2, 3)) + volume
        losses.append(1.0 - 2.0 * overlap / size.clamp(min=1.0))
        weights.append(organ_weights[:, index] * (volume > 0))
    weight = torch.stack(weights)
    return (torch.stack(losses) * weight).sum() / total(weight.sum()).clamp(min=1.0)
