"""Layers that the networks share: convolution, normalization and activation as one unit that can be folded."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

NORMALIZATIONS = ("none", "batch", "instance")


def _normalization(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return nn.InstanceNorm3d(channels, affine=True)
    return nn.Identity()


class ConvolutionUnit(nn.Module):
    """Convolution, normalization, PReLU; ``activate=False`` leaves the PReLU to the caller."""

    def __init__(self, convolution: nn.Conv3d | nn.ConvTranspose3d, normalization: str, activate: bool = True):
        super().__init__()
        self.convolution = convolution
        self.normalization = _normalization(normalization, convolution.out_channels)
        self.activation = nn.PReLU(convolution.out_channels) if activate else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.normalization(self.convolution(x)))

    def fold_normalization(self) -> None:
        """Merge a batch normalization in evaluation mode into the convolution before it: same function, one step."""
        if not isinstance(self.normalization, nn.BatchNorm3d):
            return
        norm, convolution = self.normalization, self.convolution
        assert norm.running_mean is not None and norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
            transpose=isinstance(convolution, nn.ConvTranspose3d),
        )
        convolution.weight, convolution.bias = weight, bias
        self.normalization = nn.Identity()


def fold_normalization(network: nn.Module) -> None:
    """Switch a network to evaluation mode and merge its batch normalizations into their convolutions."""
    network.eval()
    for module in network.modules():
        if isinstance(module, ConvolutionUnit):
            module.fold_normalization()


def initialize(network: nn.Module, slope: float) -> None:
    """He initialization for rectifiers of this negative slope (He et al. 2015, https://arxiv.org/abs/1502.01852,
    equation 15).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(module.weight, a=slope, nonlinearity="leaky_relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
