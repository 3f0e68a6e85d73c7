"""A network on a device: in tiles where memory is short, with progress, and stopped between any two layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

_TILE_BYTES = 448 << 20
_TILE_OVERLAP = 16


class TiledNetwork:
    """A network on a device, in tiles where one pass would take too much memory; can be stopped between its layers."""

    def __init__(self, module: nn.Module, multiple: int, device: str, dtype: torch.dtype) -> None:
        self._format = torch.contiguous_format if device == "mps" else torch.channels_last_3d
        as_stored = device == "cpu" and dtype == torch.float32
        self._module = (module if as_stored else copy.deepcopy(module)).to(device, dtype).eval()
        self._module = self._module.to(memory_format=self._format)  # type: ignore[call-overload]
        self._multiple, self._device, self._dtype = multiple, device, dtype
        self._layers = [layer for layer in self._module.modules() if not list(layer.children())]
        self._costs = self._count_costs()
        width = max((layer.out_channels for layer in self._layers[:1] if isinstance(layer, nn.Conv3d)), default=4)
        self._tile_voxels = _TILE_BYTES // (6 * width * torch.finfo(dtype).bits // 8)

    def __call__(self, image: torch.Tensor, tick: Callable[[float], None]) -> torch.Tensor:
        """Logits (classes, z, y, x) float32 of an image (z, y, x)."""
        tiles = cover(tuple(image.shape), self._multiple, self._tile_voxels)
        if len(tiles) == 1:
            return self._pass(image, tick)
        total, weight = torch.zeros(()), torch.zeros(image.shape, device=self._device)
        for number, tile in enumerate(tiles):

            def tick_tile(fraction: float, number: int = number) -> None:
                tick((number + fraction) / len(tiles))

            scores = self._pass(image[tile], tick_tile)
            ramp = tile_weight(tile, tuple(image.shape)).to(scores.device)
            if number == 0:
                total = torch.zeros((scores.shape[0], *image.shape), device=scores.device)
            total[(slice(None), *tile)] += scores * ramp
            weight[tile] += ramp
        return total / weight

    def _pass(self, image: torch.Tensor, tick: Callable[[float], None]) -> torch.Tensor:
        done = 0.0

        def before(layer: nn.Module, _: object) -> None:
            tick(min(1.0, done))

        def after(layer: nn.Module, _: object, output: torch.Tensor) -> torch.Tensor:
            nonlocal done
            done += self._costs.get(layer, 0.0)
            # Some layers answer in another order of axes; every later one would have to copy what it reads.
            return output.contiguous(memory_format=self._format)

        hooks = [layer.register_forward_pre_hook(before) for layer in self._layers]
        hooks += [layer.register_forward_hook(after) for layer in self._layers]
        try:
            batch = image[None, None].to(self._device, self._dtype)
            return self._module(batch)[0].float().contiguous()
        finally:
            for hook in hooks:
                hook.remove()

    def _count_costs(self) -> dict[nn.Module, float]:
        """Each layer's share of the multiplications, counted on a small image.

        Convolutions only tell the shape that they would give: oneDNN would prepare each of them for a size that never
        comes again, most of a second in all.
        """
        counts: dict[nn.Module, float] = {}

        def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            weight = getattr(layer, "weight", None)
            per_voxel = weight.numel() / weight.shape[0] if weight is not None and weight.dim() > 1 else 1.0
            cells = inputs[0] if isinstance(layer, nn.ConvTranspose3d) else output
            counts[layer] = counts.get(layer, 0.0) + per_voxel * cells.numel()

        convolutions = [layer for layer in self._layers if _is_plain(layer)]
        hooks = [layer.register_forward_hook(count) for layer in self._layers]
        try:
            for layer in convolutions:
                layer.forward = partial(_zeros_of_shape, layer)  # type: ignore[arg-type]
            self._module(torch.zeros((1, 1) + (self._multiple,) * 3, device=self._device, dtype=self._dtype))
        finally:
            for layer in convolutions:
                vars(layer).pop("forward", None)
            for hook in hooks:
                hook.remove()
        return {layer: value / sum(counts.values()) for layer, value in counts.items()}


def _is_plain(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv3d, nn.ConvTranspose3d) and not isinstance(layer.padding, str)


def _zeros_of_shape(layer: nn.Conv3d | nn.ConvTranspose3d, x: torch.Tensor) -> torch.Tensor:
    """What the layer gives for x (1, channels, z, y, x), all zeros."""
    sizes = zip(x.shape[2:], layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.output_padding)
    if isinstance(layer, nn.ConvTranspose3d):
        counts = [(n - 1) * s - 2 * int(p) + d * (k - 1) + o + 1 for n, k, s, p, d, o in sizes]
    else:
        counts = [(n + 2 * int(p) - d * (k - 1) - 1) // s + 1 for n, k, s, p, d, _ in sizes]
    return x.new_zeros((x.shape[0], layer.out_channels, *counts))


def cover(shape: tuple[int, ...], multiple: int, limit: int) -> list[tuple[slice, ...]]:
    """Overlapping boxes of at most `limit` voxels (if multiples allow) that cover the shape; all cuts at multiples."""
    pieces = [1, 1, 1]
    while True:
        ranges = [_split(n, count, multiple) for n, count in zip(shape, pieces)]
        sizes = [max(stop - start for start, stop in axis) for axis in ranges]
        widest = int(np.argmax(sizes))
        if np.prod(sizes) <= limit or sizes[widest] <= 4 * multiple:
            return [(slice(*z), slice(*y), slice(*x)) for z in ranges[0] for y in ranges[1] for x in ranges[2]]
        pieces[widest] += 1


def _split(size: int, count: int, multiple: int) -> list[tuple[int, int]]:
    if count == 1:
        return [(0, size)]
    overlap = -(-_TILE_OVERLAP // multiple) * multiple
    length = -(-(size + (count - 1) * overlap) // (count * multiple)) * multiple
    length = min(length, size)
    starts = [min(index * (length - overlap), size - length) // multiple * multiple for index in range(count)]
    return [(start, min(start + length, size)) for start in dict.fromkeys(starts)]


def tile_weight(tile: tuple[slice, ...], shape: tuple[int, ...]) -> torch.Tensor:
    """Falls linearly over the overlap towards the sides where another tile goes on."""
    weight = torch.ones(())
    for extent, size in zip(tile, shape):
        distance = torch.arange(extent.stop - extent.start, dtype=torch.float32) + 0.5
        low = distance if extent.start > 0 else torch.full_like(distance, _TILE_OVERLAP)
        high = distance.flip(0) if extent.stop < size else torch.full_like(distance, _TILE_OVERLAP)
        weight = weight[..., None] * torch.minimum(low, high).clamp(max=_TILE_OVERLAP)
    return weight
