"""The loss against formulas by hand, its masking of organs that were not labeled, and its independence of how a batch
is shared.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from FlareSegmentTrainingLib.training.configuration import LossSettings
from FlareSegmentTrainingLib.training.losses import deeply_supervised_loss, segmentation_loss

CROSS_ENTROPY = LossSettings(dice=0.0, cross_entropy=1.0)


def random_case(batch=2, classes=4, edge=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, edge, edge, edge, generator=generator, requires_grad=True)
    labels = torch.randint(0, classes, (batch, edge, edge, edge), generator=generator).to(torch.uint8)
    return logits, labels, torch.ones(batch, classes - 1)


def test_cross_entropy_of_full_labels_is_torch_s():
    logits, labels, weights = random_case()
    assert segmentation_loss(logits, labels, weights, CROSS_ENTROPY).item() == pytest.approx(
        F.cross_entropy(logits, labels.long()).item(), rel=1e-5
    )


@pytest.mark.parametrize(("denominator", "power"), [("squared", 2), ("sum", 1)])
def test_dice_is_the_formula(denominator, power):
    logits, labels, weights = random_case(batch=1, classes=2)
    settings = LossSettings(dice=1.0, cross_entropy=0.0, dice_denominator=denominator)
    p = logits.detach().softmax(1)[0, 1].double()
    g = (labels[0] == 1).double()
    expected = 1 - 2 * (p * g).sum() / ((p**power).sum() + g.sum())
    assert segmentation_loss(logits, labels, weights, settings).item() == pytest.approx(expected.item(), rel=1e-5)


def test_dice_of_a_perfect_answer_is_zero_and_of_a_wrong_one_is_one():
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    labels[0, :2] = 1
    right = torch.stack((labels == 0, labels == 1), dim=1).float() * 100
    settings = LossSettings(dice=1.0, cross_entropy=0.0)
    assert segmentation_loss(right, labels, torch.ones(1, 1), settings).item() == pytest.approx(0.0, abs=1e-6)
    assert segmentation_loss(right.flip(1), labels, torch.ones(1, 1), settings).item() == pytest.approx(1.0, abs=1e-6)


def test_an_organ_that_was_not_labeled_is_not_punished():
    """Answering it or background there costs the same, and its gradient vanishes where it shares the probability with
    background.
    """
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    for weight, punished in ((0.0, False), (1.0, True)):
        organ = torch.zeros(1, 3, 4, 4, 4)
        organ[:, 2] = 20.0
        loss = segmentation_loss(organ, labels, torch.tensor([[1.0, weight]]), LossSettings())
        assert (loss.item() > 1.0) == punished
        assert punished or loss.item() < 1e-6


def test_half_weight_counts_half():
    logits, labels, _ = random_case(batch=1, classes=3)
    losses = F.cross_entropy(logits, labels.long(), reduction="none")
    factor = torch.where(labels == 2, 0.5, 1.0)
    expected = (losses * factor).sum() / factor.sum()
    actual = segmentation_loss(logits, labels, torch.tensor([[1.0, 0.5]]), CROSS_ENTROPY)
    assert actual.item() == pytest.approx(expected.item(), rel=1e-5)


def test_shares_of_a_batch_add_up_to_its_loss():
    logits, labels, weights = random_case(batch=2)
    labels[1, 3:] = 0
    weights[1, 1] = 0.0
    whole = segmentation_loss(logits, labels, weights)
    (expected,) = torch.autograd.grad(whole, logits)
    sums: list[torch.Tensor] = []
    for case in range(2):
        segmentation_loss(
            logits[case : case + 1],
            labels[case : case + 1],
            weights[case : case + 1],
            total=lambda v: sums.append(v) or v,
        )
    half = len(sums) // 2
    shares = []
    for case in range(2):
        totals = iter(a + b for a, b in zip(sums[:half], sums[half:]))
        part = slice(case, case + 1)
        shares.append(
            segmentation_loss(logits[part], labels[part], weights[part], total=lambda _value, t=totals: next(t))
        )
    assert sum(share.item() for share in shares) == pytest.approx(whole.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(sum(shares), logits)
    torch.testing.assert_close(gradient, expected)


def test_deep_supervision_weights_the_coarser_outputs():
    settings = LossSettings(deep_supervision=(0.5,))
    logits, labels, weights = random_case(batch=1, edge=8)
    coarse = torch.randn(1, 4, 4, 4, 4)
    full = segmentation_loss(logits, labels, weights)
    half = segmentation_loss(coarse, labels[:, ::2, ::2, ::2], weights)
    loss = deeply_supervised_loss([logits, coarse], labels, weights, settings)
    assert loss.item() == pytest.approx((full + 0.5 * half).item() / 1.5, rel=1e-5)


def test_an_empty_patch_has_a_finite_loss():
    logits = torch.randn(1, 3, 4, 4, 4)
    loss = segmentation_loss(logits, torch.zeros(1, 4, 4, 4, dtype=torch.uint8), torch.ones(1, 2))
    assert math.isfinite(loss.item())
