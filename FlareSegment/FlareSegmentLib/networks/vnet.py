"""V-Net: the fully convolutional residual network for volumes of Milletari, Navab and Ahmadi (3DV 2016).

https://arxiv.org/abs/1606.04797, figure 2: residual stages of volumetric convolutions, strided 2x2x2 convolutions
down, 2x2x2 transposed convolutions up, PReLU everywhere, skip connections by concatenation, a final 1x1x1 convolution.
The defaults of `VNet` are the paper's. What the paper leaves out and smaller models need (normalization, narrower
decoder, capped width) is configurable.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import nn

from FlareSegmentLib.networks.layers import (
    NORMALIZATIONS,
    ConvolutionUnit,
    EncoderDecoder,
    LinePReLU,
    OneDNNConv3d,
    initialize,
)
from FlareSegmentLib.networks.unet import UNet


class ResidualStage(nn.Module):
    """Convolutions of equal width whose result is added to the stage's input before the last PReLU.

    An input of one channel is broadcast over all channels (the paper's tiling of the image in the first stage);
    otherwise an input of another width passes a 1x1x1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, convolutions: int, kernel_size: int, normalization: str):
        super().__init__()
        self.units = nn.Sequential(
            *(
                ConvolutionUnit(
                    OneDNNConv3d(
                        in_channels if index == 0 else channels, channels, kernel_size, padding=kernel_size // 2
                    ),
                    normalization,
                    activate=index < convolutions - 1,
                )
                for index in range(convolutions)
            )
        )
        direct = in_channels in (1, channels)
        self.projection: nn.Module | None = nn.Identity() if direct else OneDNNConv3d(in_channels, channels, 1)
        self.activation = LinePReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.units(x)
        if self.projection is not None:
            # In place: at full resolution each copy counts. Of one type: PyTorch adds mixed ones number by number.
            result += self.projection(x).to(result.dtype)
        return self.activation(result)

    def fold_shortcut(self) -> None:
        """Merge the way past a single convolution into it, as both are linear: same function, one step."""
        last = self.units[-1]
        assert isinstance(last, ConvolutionUnit)
        convolution = last.convolution
        if self.projection is None or len(self.units) > 1 or not isinstance(last.normalization, nn.Identity):
            return
        weight, middle = convolution.weight.detach().clone(), convolution.kernel_size[0] // 2
        center = weight[:, :, middle, middle, middle]
        if isinstance(self.projection, nn.Conv3d):
            assert convolution.bias is not None and self.projection.bias is not None
            center += self.projection.weight[:, :, 0, 0, 0]
            convolution.bias = nn.Parameter(convolution.bias.detach() + self.projection.bias.detach())
        elif convolution.in_channels == 1:
            center += 1.0
        else:
            center += torch.eye(convolution.in_channels)
        convolution.weight = nn.Parameter(weight)
        self.projection = None


class VNet(EncoderDecoder):
    """V-Net of any depth, width and kernel size.

    Args:
        in_channels: channels of the image; 1 for CT.
        out_channels: classes, background included.
        base_channels: channels of the first stage; doubled at each step down.
        kernel_size: odd edge length of the stages' convolutions; the paper's is 5.
        encoder_convolutions: convolutions of each stage on the way down, the lowest stage included.
        decoder_convolutions: convolutions of each stage on the way up, from the lowest.
        max_channels: upper limit of a stage's channels.
        normalization: "none" (the paper's), "batch" or "instance", after each convolution.
        wide_decoder: True as in the paper: a stage on the way up is as wide as its concatenated input;
            False: half of it, as wide as the stage across.

    Shapes: input (batch, in_channels, z, y, x), each extent a multiple of `multiple`; output the same with
    out_channels logits.

    Raises:
        ValueError: for a configuration that makes no network.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 2,
        base_channels: int = 16,
        kernel_size: int = 5,
        encoder_convolutions: Sequence[int] = (1, 2, 3, 3, 3),
        decoder_convolutions: Sequence[int] = (3, 3, 2, 1),
        max_channels: int = 256,
        normalization: str = "none",
        wide_decoder: bool = True,
    ):
        super().__init__()
        if normalization not in NORMALIZATIONS:
            raise ValueError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, not {normalization!r}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, not {kernel_size}")
        if len(decoder_convolutions) != len(encoder_convolutions) - 1:
            raise ValueError("decoder_convolutions must be one shorter than encoder_convolutions")
        if min(*encoder_convolutions, *decoder_convolutions) < 1:
            raise ValueError("every stage needs at least one convolution")
        widths = [min(base_channels * 2**level, max_channels) for level in range(len(encoder_convolutions))]
        self.multiple = 2 ** (len(widths) - 1)
        self.encoder = nn.ModuleList()
        self.down = nn.ModuleList()
        for level, (width, convolutions) in enumerate(zip(widths, encoder_convolutions)):
            if level > 0:
                step = OneDNNConv3d(widths[level - 1], width, kernel_size=2, stride=2)
                self.down.append(ConvolutionUnit(step, normalization))
            self.encoder.append(
                ResidualStage(in_channels if level == 0 else width, width, convolutions, kernel_size, normalization)
            )
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        channels = widths[-1]
        for skip, convolutions in zip(reversed(widths[:-1]), decoder_convolutions):
            self.up.append(ConvolutionUnit(nn.ConvTranspose3d(channels, skip, kernel_size=2, stride=2), normalization))
            channels = 2 * skip if wide_decoder else skip
            self.decoder.append(ResidualStage(2 * skip, channels, convolutions, kernel_size, normalization))
        self.head = OneDNNConv3d(channels, out_channels, kernel_size=1)
        initialize(self, slope=0.25)

    def _descend(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        skips = []
        for stage, down in zip(self.encoder, self.down):
            x = stage(x)
            skips.append(x)
            x = down(x)
        return self.encoder[-1](x), skips

    def fold(self) -> Self:
        """Switch to evaluation mode, merge into convolutions what can be: normalizations and shortcuts; return self."""
        super().fold()
        for stage in (*self.encoder, *self.decoder):
            assert isinstance(stage, ResidualStage)
            stage.fold_shortcut()
        return self


Network = VNet | UNet

ARCHITECTURES: dict[str, type[VNet] | type[UNet]] = {"vnet": VNet, "unet": UNet}


def build_network(configuration: dict) -> Network:
    """Build the network that ``configuration`` names: {"architecture": "vnet" or "unet", <its arguments>}.

    Raises:
        ValueError: for an unknown architecture or argument.
    """
    arguments = dict(configuration)
    architecture = arguments.pop("architecture", None)
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[architecture](**arguments)
    except TypeError as error:
        raise ValueError(f"{architecture}: {error}") from error
