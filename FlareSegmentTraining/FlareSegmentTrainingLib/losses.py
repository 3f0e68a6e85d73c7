"""The loss of a segmentation network: Dice + cross-entropy, for labels that are partly missing or of unequal quality."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, organ_weights: torch.Tensor) -> torch.Tensor:
    """Return the sum of soft Dice loss and cross-entropy, one number.

    An organ of weight 0 was not labeled in that case: voxels labeled background may be that organ, so there the
    probability of "background or that organ" counts (marginal loss, Shi et al. 2021, https://arxiv.org/abs/2007.03868).
    Dice (with squared denominators, Milletari et al. 2016, section 3) is taken per case over the organs present and
    labeled; organs out of view are left to the cross-entropy.

    Args:
        logits: (batch, classes, z, y, x).
        labels: (batch, z, y, x), integer; 0 is background.
        organ_weights: (batch, classes - 1), weight of each organ's labels, 0 to 1.
    """
    logits = logits.float()
    log_probabilities = F.log_softmax(logits, dim=1)
    background_or_ignored = _merge_ignored(log_probabilities, organ_weights)
    chosen = torch.cat((background_or_ignored.unsqueeze(1), log_probabilities[:, 1:]), dim=1)
    voxel_loss = -chosen.gather(1, labels.unsqueeze(1).long()).squeeze(1)
    class_weights = torch.cat((torch.ones_like(organ_weights[:, :1]), organ_weights), dim=1)
    voxel_weights = torch.stack([weights[case] for weights, case in zip(class_weights, labels.long())])
    cross_entropy = (voxel_loss * voxel_weights).sum() / voxel_weights.sum().clamp(min=1.0)
    return cross_entropy + _dice_loss(log_probabilities.exp(), labels, organ_weights)


def _merge_ignored(log_probabilities: torch.Tensor, organ_weights: torch.Tensor) -> torch.Tensor:
    merged = []
    for case, weights in zip(log_probabilities, organ_weights):
        members = [0, *(index + 1 for index, weight in enumerate(weights.tolist()) if weight == 0.0)]
        merged.append(case[0] if members == [0] else torch.logsumexp(case[members], dim=0))
    return torch.stack(merged)


def _dice_loss(probabilities: torch.Tensor, labels: torch.Tensor, organ_weights: torch.Tensor) -> torch.Tensor:
    losses, weights = [], []
    for index in range(organ_weights.shape[1]):
        truth = (labels == index + 1).float()
        prediction = probabilities[:, index + 1]
        volume = truth.sum(dim=(1, 2, 3))
        overlap = (prediction * truth).sum(dim=(1, 2, 3))
        size = prediction.square().sum(dim=(1, 2, 3)) + volume
        losses.append(1.0 - 2.0 * overlap / size.clamp(min=1.0))
        weights.append(organ_weights[:, index] * (volume > 0))
    weight = torch.stack(weights)
    return (torch.stack(losses) * weight).sum() / weight.sum().clamp(min=1.0)
