"""Model folders: everything inference needs to know, as plain tensors and JSON.

A model is a folder with two files:

``model.json``
    see `description`.
``weights.pt``
    {stage name: state dictionary}, floating point tensors stored as float16 and computed in float32; loaded with
    ``weights_only=True``, so a file that would run code is refused.

Nothing is read from ``weights.pt`` before its SHA-256 agrees with ``model.json``.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from FlareSegmentLib.errors import ModelError
from FlareSegmentLib.model.description import (
    DESCRIPTION_FILE,
    FORMAT,
    FORMAT_VERSION,
    WEIGHTS_FILE,
    ModelDescription,
    read_with_checksum,
)
from FlareSegmentLib.networks.vnet import Network, build_network

UNLOADABLE = (
    pickle.UnpicklingError,
    *(RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, TypeError, AssertionError),
)
"""What torch.load raises for files that hold no plain tensors or are damaged."""


def _network_of(configuration: dict, weights: dict[str, torch.Tensor]) -> Network:
    """The network of a configuration with these weights, computed in float32.

    Raises ValueError, before any memory is taken, where they are not of this network: what a stranger's description
    asks for may be larger than any memory; the weights are there.
    """
    with torch.device("meta"):
        network = build_network(configuration)
    expected = network.state_dict()
    if {key: value.shape for key, value in expected.items()} != {key: value.shape for key, value in weights.items()}:
        raise ValueError("other layers or sizes")
    values = {
        key: value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
        for key, value in weights.items()
    }
    network.load_state_dict(values, assign=True)
    return network


class Model:
    """A loaded model: its description and its networks."""

    def __init__(self, description: ModelDescription, weights: dict[str, dict[str, torch.Tensor]]):
        self.description = description
        self._networks: dict[str, Network] = {}
        for stage in description.stages:
            try:
                network = _network_of(stage.network, weights[stage.name])
            except (ValueError, RuntimeError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise ModelError(
                    f"Model {description.name!r}: weights and network of stage {stage.name!r} do not fit: {reason}"
                ) from error
            self._networks[stage.name] = network.fold().requires_grad_(False)

    def network(self, stage_name: str) -> nn.Module:
        """Return the stage's network in evaluation mode, batch normalization folded.

        Input (1, 1, z, y, x) as `intensity.network_input` gives it, output logits (1, classes, z, y, x); extents are
        multiples of `stage_multiple`.
        """
        return self._networks[stage_name]

    def stage_multiple(self, stage_name: str) -> int:
        """Return what the extents of the stage's input must be multiples of."""
        return self._networks[stage_name].multiple


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def load_model(folder: str | os.PathLike) -> Model:
    """Load a model folder.

    Raises:
        ModelError: one clear line, when a file is missing, damaged, of an unknown version, or would run code.
    """
    return Model(*read_model(folder))


def read_model(folder: str | os.PathLike) -> tuple[ModelDescription, dict[str, dict[str, torch.Tensor]]]:
    """Read a model folder without building its networks: (description, {stage name: state dictionary as stored}).

    Raises:
        ModelError: as `load_model`.
    """
    folder = Path(folder)
    description, checksum = read_with_checksum(folder)
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise ModelError(f"{file} is missing. Restore the model folder or name another.")
    if _sha256(file) != checksum:
        raise ModelError(f"{file} does not have the SHA-256 in {DESCRIPTION_FILE}: it is damaged or was replaced.")
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except UNLOADABLE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{file} holds no plain tensors and was not loaded: {reason}") from error
    if not isinstance(weights, dict) or not all(isinstance(weights.get(s.name), dict) for s in description.stages):
        raise ModelError(f"{file} does not hold the weights of the stages in {DESCRIPTION_FILE}.")
    return description, weights


def save_model(folder: str | os.PathLike, description: ModelDescription, networks: Mapping[str, nn.Module]) -> None:
    """Write a model folder; an existing model there is replaced file by file, each whole or not at all.

    Args:
        networks: stage name -> trained network, as `build_network` made it (not folded).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        name: {
            key: value.detach().cpu().half() if value.is_floating_point() else value.detach().cpu()
            for key, value in network.state_dict().items()
        }
        for name, network in networks.items()
    }
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as temporary:
        file = Path(temporary) / WEIGHTS_FILE
        torch.save(weights, file)
        content = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            **asdict(description),
            "weights": {"file": WEIGHTS_FILE, "sha256": _sha256(file), "dtype": "float16"},
        }
        text = Path(temporary) / DESCRIPTION_FILE
        text.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        os.replace(file, folder / WEIGHTS_FILE)
        os.replace(text, folder / DESCRIPTION_FILE)
