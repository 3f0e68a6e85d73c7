"""What each choice in running the networks is worth: `python3 flare.py bench choices`.

One pass of the bundled fine network over 96x80x112 cells, as the pipeline does it and with one thing done otherwise, in
turns; ratios above 1 mean that the choice pays. The allocator's settings change a whole process, so they are compared
between two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from measuring import RUNS, Process, Row, matrix_gflops, report, timed, told
from torch import nn

from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model, read_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentLib.processes import keep_freed_memory

PATCH = (1, 1, 96, 80, 112)


def fine_network(folded: bool = True) -> nn.Module:
    """The bundled fine network, with its batch normalizations folded into the convolutions or not."""
    if folded:
        return load_model(bundled_model_folder()).network("fine")
    description, weights = read_model(bundled_model_folder())
    stage = description.stages[-1]
    network = build_network(stage.network).eval()
    network.load_state_dict({key: value.float() for key, value in weights[stage.name].items()})
    return network


def in_one_order(network: nn.Module) -> nn.Module:
    """A copy with channels last, every layer's answer included, as the pipeline runs it."""
    network = copy.deepcopy(network).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    for layer in network.modules():
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, output: output.contiguous(memory_format=torch.channels_last_3d))
    return network


def one_pass(allocator: bool) -> Callable[[], dict[str, Any]]:
    """A process's pass, with the worker's allocator settings or without."""
    if allocator:
        keep_freed_memory()
    network, image = in_one_order(fine_network()), torch.rand(PATCH)

    def run() -> dict[str, Any]:
        with torch.inference_mode():
            network(image)
        return {}

    return run


def main() -> None:
    """Measure, print and write the table."""
    keep_freed_memory()
    chosen, image = in_one_order(fine_network()), torch.rand(PATCH)
    others = {
        "axes: each layer's own order": fine_network().to(memory_format=torch.channels_last_3d),  # type: ignore
        "axes: channels first": fine_network(),
        "normalization: not folded": in_one_order(fine_network(folded=False)),
        "numbers: bfloat16": in_one_order(fine_network().to(torch.bfloat16)),
    }
    threads = torch.get_num_threads()
    seconds: dict[str, list[float]] = {name: [] for name in ("chosen", *others, "threads: one less")}
    with torch.inference_mode():
        for _ in told(RUNS + 1, "passes of the network, each way"):
            seconds["chosen"].append(timed(lambda: chosen(image))[0])
            for name, network in others.items():
                pixels = image.to(next(network.parameters()).dtype)
                seconds[name].append(timed(lambda network=network, pixels=pixels: network(pixels))[0])
            torch.set_num_threads(max(1, threads - 1))
            seconds["threads: one less"].append(timed(lambda: chosen(image))[0])
            torch.set_num_threads(threads)
    rows = [Row("as the pipeline does it", "s", seconds.pop("chosen")[1:])]
    rows += [
        Row(f"{name} / chosen", "times", [one / own for one, own in zip(values[1:], rows[0].values)])
        for name, values in seconds.items()
    ]
    settings = {allocator: Process(one_pass, allocator) for allocator in (True, False)}
    runs = [
        {allocator: process.run()["seconds"] for allocator, process in settings.items()}
        for _ in told(RUNS + 1, "passes with freed memory kept and not")
    ]
    for process in settings.values():
        process.close()
    rows.append(Row("memory: given back at once / kept", "times", [run[False] / run[True] for run in runs[1:]]))
    report("choices", rows, [f"Matrix product: {matrix_gflops():.0f} GFLOP/s"])


if __name__ == "__main__":
    main()
