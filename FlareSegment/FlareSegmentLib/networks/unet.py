"""3D U-Net: the plain encoder and decoder for volumes of Çiçek et al. (MICCAI 2016).

https://arxiv.org/abs/1606.06650: two 3x3x3 convolutions with batch normalization and ReLU per level, 2x2x2 maximum
pooling down, 2x2x2 transposed convolutions up, skip connections by concatenation, a final 1x1x1 convolution.
"""

from __future__ import annotations

import torch
from torch import nn

from FlareSegmentLib.networks.layers import NORMALIZATIONS, ConvolutionUnit, EncoderDecoder, OneDNNConv3d, initialize


class UNet(EncoderDecoder):
    """3D U-Net of any depth and width.

    Args:
        in_channels: channels of the image; 1 for CT.
        out_channels: classes, background included.
        base_channels: channels of the first level; doubled at each step down.
        levels: resolutions, the first and the lowest included.
        max_channels: upper limit of a level's channels.
        normalization: "none", "batch" (the paper's) or "instance", after each 3x3x3 convolution.

    Shapes: input (batch, in_channels, z, y, x), each extent a multiple of `multiple`; output the same with out_channels
    logits.

    Raises:
        ValueError: for a configuration that makes no network.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 16,
        levels: int = 5,
        max_channels: int = 256,
        normalization: str = "batch",
    ):
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, not {normalization!r}")
        if levels < 2:
            raise ValueError(f"a U-Net needs at least two levels, not {levels}")
        widths = [min(base_channels * 2**level, max_channels) for level in range(levels)]
        self.multiple = 2 ** (levels - 1)
        self.encoder = nn.ModuleList(
            _double_convolution(before, width, normalization) for before, width in zip((in_channels, *widths), widths)
        )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for below, skip in zip(reversed(widths[1:]), reversed(widths[:-1])):
            self.up.append(nn.ConvTranspose3d(below, skip, kernel_size=2, stride=2))
            self.decoder.append(_double_convolution(2 * skip, skip, normalization))
        self.head = OneDNNConv3d(widths[0], out_channels, kernel_size=1)
        initialize(self, slope=0.0)

    def _descend(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for level in self.encoder[:-1]:
            x = level(x)
            skips.append(x)
            x = nn.functional.max_pool3d(x, 2)
        return self.encoder[-1](x), skips


def _double_convolution(in_channels: int, channels: int, normalization: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (in_channels, channels):
        convolution = OneDNNConv3d(before, channels, kernel_size=3, padding=1)
        layers += [ConvolutionUnit(convolution, normalization, activate=False), nn.ReLU()]
    return nn.Sequential(*layers)
