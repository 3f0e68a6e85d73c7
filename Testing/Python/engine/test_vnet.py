"""The V-Net against its paper: shapes, parameters, residual and skip connections, folding."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.inference.pipeline import Segmenter  # noqa: E402
from FlareSegmentLib.model.description import ModelDescription, Stage  # noqa: E402
from FlareSegmentLib.model.intensity import Intensity  # noqa: E402
from FlareSegmentLib.model.model_file import load_model, save_model  # noqa: E402
from FlareSegmentLib.networks.layers import LinePReLU  # noqa: E402
from FlareSegmentLib.networks.vnet import VNet, build_network  # noqa: E402
from FlareSegmentLib.volume import Volume  # noqa: E402


def paper_parameters(classes: int) -> int:
    """Parameters of figure 2 of Milletari et al. 2016, stage by stage: weights, biases, a PReLU per channel."""

    def convolution(inputs: int, outputs: int, edge: int) -> int:
        return inputs * outputs * edge**3 + outputs

    total, before = 0, 1
    for width, depth in ((16, 1), (32, 2), (64, 3), (128, 3), (256, 3)):
        if width > 16:
            total += convolution(before, width, 2) + width
        first = 1 if width == 16 else width
        total += convolution(first, width, 5) + (depth - 1) * convolution(width, width, 5) + depth * width
        before = width
    for skip, depth in ((128, 3), (64, 3), (32, 2), (16, 1)):
        total += convolution(before, skip, 2) + skip
        total += depth * (convolution(2 * skip, 2 * skip, 5) + 2 * skip)
        before = 2 * skip
    return total + convolution(before, classes, 1)


def test_defaults_are_the_papers():
    network = VNet()
    assert sum(parameter.numel() for parameter in network.parameters()) == paper_parameters(2)
    assert not any(isinstance(module, torch.nn.modules.batchnorm._NormBase) for module in network.modules())


def test_shapes_of_figure_2():
    """Table 1 of the paper at an eighth of its volume: extents halve at each step down while channels double."""
    network = VNet().eval()
    shapes = {}
    for name, stage in (*enumerate(network.encoder), *enumerate(network.decoder, start=5)):
        stage.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 32, 64, 64)).shape == (1, 2, 32, 64, 64)
    assert shapes == {
        0: (16, 32, 64, 64),
        1: (32, 16, 32, 32),
        2: (64, 8, 16, 16),
        3: (128, 4, 8, 8),
        4: (256, 2, 4, 4),
        5: (256, 4, 8, 8),
        6: (128, 8, 16, 16),
        7: (64, 16, 32, 32),
        8: (32, 32, 64, 64),
    }


SMALL = {
    "architecture": "vnet",
    "out_channels": 3,
    "base_channels": 4,
    "kernel_size": 3,
    "encoder_convolutions": [1, 2, 2],
    "decoder_convolutions": [2, 1],
}


def small(**changes):
    return build_network(SMALL | changes)


@pytest.mark.parametrize("normalization", ["none", "batch", "instance"])
@pytest.mark.parametrize("wide", [True, False])
def test_folding_keeps_the_function(normalization, wide):
    torch.manual_seed(0)
    network = small(normalization=normalization, wide_decoder=wide)
    image = torch.randn(2, 1, 8, 12, 16)
    for _ in range(3):
        network(image)  # moves the running statistics away from 0 and 1
    network.eval()
    with torch.no_grad():
        expected = network(image)
        network.fold()
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in network.modules())
    for stage in (*network.encoder, *network.decoder):
        assert (stage.projection is None) == (len(stage.units) == 1 and normalization != "instance")


def test_instance_normalization_segments_images_down_to_a_single_voxel_at_the_lowest_level(tmp_path):
    description = SMALL | {"normalization": "instance"}
    network = build_network(description).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, 4, 4, 4)).isfinite().all()
    stage = Stage("volume", "volume", description, spacing_mm=(8.0, 8.0, 8.0))
    labels = {1: "liver", 2: "spleen"}
    described = ModelDescription("small", "1", "none", labels, Intensity(-200, 300), (stage,))
    save_model(tmp_path / "model", described, {"volume": network})
    segmenter = Segmenter(load_model(tmp_path / "model"))
    for extent in (3, 30):
        array = np.random.default_rng(0).integers(-100, 200, (extent,) * 3).astype(np.int16)
        volume = Volume(array, (8.0, 8.0, 8.0))
        assert segmenter.segment(volume).labels.shape == volume.array.shape


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("architecture", [SMALL, {"architecture": "unet", "base_channels": 4, "levels": 3}])
def test_on_a_processor_no_convolution_of_an_inference_is_pytorchs_slow_one(architecture):
    network, image = build_network(architecture).fold(), torch.randn(1, 1, 16, 16, 16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        expected = network(image)  # a gradient is kept: PyTorch's own choice
        with torch.inference_mode(), torch.profiler.profile() as profile:
            found = network(image)
    finally:
        torch.set_num_threads(threads)
    called = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in called and not any("slow_conv3d" in name for name in called)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_stage_adds_its_input():
    network = small()
    stage = network.encoder[1]
    for parameter in stage.units.parameters():
        torch.nn.init.zeros_(parameter)
    values = torch.rand(1, 8, 4, 4, 4)
    torch.testing.assert_close(stage(values), values)


def test_width_is_capped():
    assert small(max_channels=8).encoder[-1].activation.num_parameters == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"normalization": "group"}, "normalization"),
        ({"kernel_size": 4}, "odd"),
        ({"decoder_convolutions": [1]}, "one shorter"),
        ({"encoder_convolutions": [1, 0, 2]}, "at least one"),
        ({"architecture": "resnet"}, "unknown architecture"),
        ({"depth": 3}, "depth"),
    ],
)
def test_what_makes_no_network_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize("channels", [1, 3, 16, 40])
def test_the_quick_prelu_gives_the_same_numbers_and_works_on_lines(channels, monkeypatch):
    torch.manual_seed(0)
    layer = LinePReLU(channels).to(torch.bfloat16)
    layer.weight.data = torch.rand(channels).to(torch.bfloat16) - 0.2
    image = torch.randn((2, channels, 3, 4, 5)).to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    expected = torch.nn.functional.prelu(image, layer.weight)
    (slope,) = torch.autograd.grad(expected.float().sum(), layer.weight)
    widths, prelu = [], torch.prelu

    def recorded(x, weight):
        widths.append(x.shape[1])
        return prelu(x, weight)

    monkeypatch.setattr(torch, "prelu", recorded)
    with torch.inference_mode():
        result = layer(image)
    assert torch.equal(result, expected) and result.is_contiguous(memory_format=torch.channels_last_3d)
    (gradient,) = torch.autograd.grad(layer(image).float().sum(), layer.weight)
    torch.testing.assert_close(gradient, slope, rtol=0.05, atol=0.05)  # sums of numbers of 16 bits, in another order
    assert widths == [5 * channels] * 2
