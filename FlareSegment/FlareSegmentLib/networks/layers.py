"""What the networks share: convolution, normalization and activation as one unit that can be folded, and the way up
from the lowest level.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

NORMALIZATIONS = ("none", "batch", "instance")


class InstanceNormalization(nn.InstanceNorm3d):
    """Instance normalization that takes a single voxel too, as the lowest level of a small image is: its deviation
    from its own mean is 0. PyTorch refuses it.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:].numel() > 1:
            return super().forward(x)
        return torch.zeros_like(x) + self.bias.view(-1, 1, 1, 1)


class LinePReLU(nn.PReLU):
    """PReLU of one slope per channel, quick for few channels of 16 bits too: same numbers, same weights.

    Where channels lie next to each other in memory PyTorch works on those of one voxel at a time, and of numbers of 16
    bits one by one where they are fewer than its vectors hold: 30 times more slowly. Here a whole line of voxels counts
    as its channels.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        by_voxel = x.is_cpu and x.dim() == 5 and x.is_contiguous(memory_format=torch.channels_last_3d)
        if not by_voxel or x.element_size() != 2:
            return super().forward(x)
        voxels = x.permute(0, 2, 3, 4, 1)
        length = voxels.shape[3]
        lines = torch.prelu(voxels.reshape(-1, length * x.shape[1]), self.weight.repeat(length))
        return lines.view(voxels.shape).permute(0, 4, 1, 2, 3)


class OneDNNConv3d(nn.Conv3d):
    """Convolution by oneDNN wherever a CPU infers in 32 bits.

    PyTorch prefers code of its own for one thread and 1x1x1 kernels and for images of one channel or few voxels
    (`ConvParams::use_mkldnn` in ATen's Convolution.cpp), which took a fifth of the network's time.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inferring = x.is_cpu and x.dtype == torch.float32 and not torch.is_grad_enabled()
        if not inferring or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        layout = (self.padding, self.stride, self.dilation, self.groups)
        return torch.ops.aten.mkldnn_convolution(x, self.weight, self.bias, *layout)


def _normalization(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    if kind == "instance":
        return InstanceNormalization(channels, affine=True)
    return nn.Identity()


class ConvolutionUnit(nn.Module):
    """Convolution, normalization, PReLU; ``activate=False`` leaves the PReLU to the caller."""

    def __init__(self, convolution: nn.Conv3d | nn.ConvTranspose3d, normalization: str, activate: bool = True):
        super().__init__()
        self.convolution = convolution
        self.normalization = _normalization(normalization, convolution.out_channels)
        self.activation = LinePReLU(convolution.out_channels) if activate else nn.Identity()

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


class EncoderDecoder(nn.Module):
    """A network that goes down, keeps what it found at each level, and goes up again by `up` and `decoder`, one of each
    for every level but the lowest; `head` makes logits of the last.
    """

    up: nn.ModuleList
    decoder: nn.ModuleList
    head: nn.Conv3d

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x)[-1])

    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the results of the levels on the way up, from the coarsest; the last feeds the head."""
        x, skips = self._descend(x)
        features = []
        for up, level in zip(self.up, self.decoder):
            x = level(torch.cat((up(x), skips.pop()), dim=1))
            features.append(x)
        return features

    def _descend(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the result of the lowest level, and those of the levels above, from the finest."""
        raise NotImplementedError

    def fold(self) -> Self:
        """Switch to evaluation mode, merge batch normalizations into their convolutions, return self."""
        self.eval()
        for module in self.modules():
            if isinstance(module, ConvolutionUnit):
                module.fold_normalization()
        return self


def initialize(network: nn.Module, slope: float) -> None:
    """He initialization for rectifiers of this negative slope (He et al. 2015, https://arxiv.org/abs/1502.01852,
    equation 15).
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            if module.weight.is_meta:  # has a shape only; for its values PyTorch would load its whole compiler
                continue
            nn.init.kaiming_normal_(module.weight, a=slope, nonlinearity="leaky_relu")
            assert module.bias is not None
            nn.init.zeros_(module.bias)
