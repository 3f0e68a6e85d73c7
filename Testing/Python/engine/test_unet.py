"""The 3D U-Net against its paper: shapes, parameters, skip connections, deep features, folding, and a model file."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.model.description import ModelDescription, Stage  # noqa: E402
from FlareSegmentLib.model.intensity import Intensity  # noqa: E402
from FlareSegmentLib.model.model_file import load_model, save_model  # noqa: E402
from FlareSegmentLib.networks.unet import UNet  # noqa: E402
from FlareSegmentLib.networks.vnet import build_network  # noqa: E402


def expected_parameters(widths: list[int], classes: int) -> int:
    """Weights and biases, and a scale and a shift for each normalized channel, counted level by level."""

    def double(before: int, width: int) -> int:
        return (27 * before * width + width) + (27 * width * width + width) + 4 * width

    total = sum(double(before, width) for before, width in zip([1, *widths], widths))
    for below, skip in zip(widths[:0:-1], widths[-2::-1]):
        total += 8 * below * skip + skip + double(2 * skip, skip)
    return total + widths[0] * classes + classes


@pytest.mark.parametrize(
    ("arguments", "widths"),
    [
        ({}, [16, 32, 64, 128, 256]),
        ({"levels": 3, "base_channels": 8, "out_channels": 5}, [8, 16, 32]),
        ({"levels": 4, "base_channels": 8, "max_channels": 16}, [8, 16, 16, 16]),
    ],
)
def test_as_many_parameters_as_the_drawing_has(arguments: dict, widths: list[int]) -> None:
    network = UNet(**arguments)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == expected_parameters(widths, arguments.get("out_channels", 2))
    assert network.multiple == 2 ** (len(widths) - 1)


def test_extents_halve_on_the_way_down_and_come_back() -> None:
    network = UNet(levels=3, base_channels=4, out_channels=5).eval()
    shapes = []
    for level in (*network.encoder, *network.decoder):
        level.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        assert network(torch.zeros(2, 1, 8, 12, 16)).shape == (2, 5, 8, 12, 16)
        features = network.features(torch.zeros(1, 1, 8, 12, 16))
    assert shapes[:5] == [(4, 8, 12, 16), (8, 4, 6, 8), (16, 2, 3, 4), (8, 4, 6, 8), (4, 8, 12, 16)]
    assert [tuple(level.shape) for level in features] == [(1, 8, 4, 6, 8), (1, 4, 8, 12, 16)]


def test_the_skip_connection_carries_what_the_way_down_loses() -> None:
    """Without what comes from below, the head still sees single voxels."""
    torch.manual_seed(0)
    network = UNet(levels=2, base_channels=4, normalization="none").eval()
    torch.nn.init.zeros_(network.up[0].weight)
    image = torch.zeros(1, 1, 8, 8, 8)
    image[0, 0, 4, 4, 4] = 10
    with torch.no_grad():
        response = (network(image) - network(torch.zeros_like(image))).abs().sum(1)[0]
    assert response.max() > 0
    touched = torch.nonzero(response > 1e-6)
    assert (touched - 4).abs().max() <= 4  # four 3x3x3 convolutions


@pytest.mark.parametrize("normalization", ["none", "batch", "instance"])
def test_folding_keeps_the_function(normalization: str) -> None:
    torch.manual_seed(0)
    network = UNet(levels=3, base_channels=4, normalization=normalization)
    image = torch.randn(2, 1, 8, 12, 16)
    for _ in range(3):
        network(image)  # moves the running statistics away from 0 and 1
    network.eval()
    with torch.no_grad():
        expected = network(image)
        assert network.fold() is network
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())


def test_every_weight_learns() -> None:
    network = UNet(levels=3, base_channels=4)
    network(torch.randn(2, 1, 8, 8, 8)).square().mean().backward()
    silent = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # a bias before a batch normalization has no effect
    assert all(name.endswith("convolution.bias") for name in silent), silent


def test_a_model_file_holds_one(tmp_path: Path) -> None:
    network = {"architecture": "unet", "levels": 2, "base_channels": 4, "out_channels": 2}
    description = ModelDescription(
        "small", "1", "none", {1: "liver"}, Intensity(-200, 300), (Stage("only", "volume", network, (4.0, 4.0, 4.0)),)
    )
    torch.manual_seed(0)
    made = build_network(network)
    save_model(tmp_path, description, {"only": made})
    loaded = load_model(tmp_path)
    assert loaded.stage_multiple("only") == 2
    image = torch.randn(1, 1, 4, 6, 8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.network("only")(image), made.eval()(image), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"normalization": "group"}, "normalization"), ({"levels": 1}, "two levels"), ({"depth": 3}, "depth")],
)
def test_what_makes_no_network_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_network({"architecture": "unet", **changes})
