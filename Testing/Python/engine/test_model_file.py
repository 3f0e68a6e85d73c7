"""Model folders: what is written is read back, and nothing damaged, foreign or dangerous is loaded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from FlareSegmentLib.errors import ModelError  # noqa: E402
from FlareSegmentLib.model.description import (  # noqa: E402
    DESCRIPTION_FILE,
    WEIGHTS_FILE,
    ModelDescription,
    Stage,
    read_description,
)
from FlareSegmentLib.model.intensity import Intensity  # noqa: E402
from FlareSegmentLib.model.model_card import bundled_model_folder  # noqa: E402
from FlareSegmentLib.model.model_file import Model, load_model, read_model, save_model  # noqa: E402
from FlareSegmentLib.networks.vnet import build_network  # noqa: E402
from FlareSegmentLib.organs import ORGANS  # noqa: E402

NETWORK = {
    "architecture": "vnet",
    "out_channels": 5,
    "base_channels": 2,
    "kernel_size": 3,
    "encoder_convolutions": [1, 1],
    "decoder_convolutions": [1],
    "normalization": "batch",
}


@pytest.fixture
def folder(tmp_path) -> Path:
    torch.manual_seed(0)
    description = ModelDescription(
        "test",
        "1",
        "Apache-2.0",
        {organ.label: organ.key for organ in ORGANS},
        Intensity(-160.0, 240.0),
        (Stage("only", "volume", NETWORK, spacing_mm=(4.0, 4.0, 5.0), further_spacings_mm=((3.0, 3.0, 4.0),)),),
        {"cases": ["a"]},
    )
    save_model(tmp_path / "model", description, {"only": build_network(NETWORK)})
    return tmp_path / "model"


def change(folder: Path, **changes) -> None:
    file = folder / DESCRIPTION_FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_description_is_read_without_pytorch(repository):
    """Whoever only starts others, as a cohort's command does, does not wait for its import."""
    code = (
        "import sys; from FlareSegmentLib.model.description import read_description; "
        "from FlareSegmentLib.model.model_card import bundled_model_folder; "
        "import FlareSegmentCohortLib.command; print(read_description(bundled_model_folder()).name); "
        "sys.exit(bool({'torch', 'scipy'} & set(sys.modules)))"
    )
    paths = os.pathsep.join(str(repository / name) for name in ("FlareSegment", "FlareSegmentTraining"))
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("FlareSegment"), done.stdout + done.stderr


def test_written_and_read_back(folder):
    model = load_model(folder)
    assert model.description == read_description(folder)
    assert model.description.stages[0].spacing_mm == (4.0, 4.0, 5.0)
    assert model.description.stages[0].further_spacings_mm == ((3.0, 3.0, 4.0),)
    assert model.description.facts == {"cases": ["a"]}
    assert model.stage_multiple("only") == 2
    assert model.network("only")(torch.zeros(1, 1, 4, 4, 6)).shape == (1, 5, 4, 4, 6)
    assert sorted(file.name for file in folder.iterdir()) == [DESCRIPTION_FILE, WEIGHTS_FILE]


def test_one_flipped_bit_is_noticed(folder):
    file = folder / WEIGHTS_FILE
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ModelError, match="SHA-256"):
        load_model(folder)


class _Malicious:
    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.mkdir, (str(self.proof),)


def test_a_pickle_that_runs_code_is_refused(folder, tmp_path):
    proof = tmp_path / "it ran"
    torch.save({"only": _Malicious(proof)}, folder / WEIGHTS_FILE)
    checksum = hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest()
    change(folder, weights={"file": WEIGHTS_FILE, "sha256": checksum, "dtype": "float16"})
    with pytest.raises(ModelError, match="no plain tensors"):
        load_model(folder)
    assert not proof.exists()


def test_weights_of_another_network_are_refused(folder):
    stages = json.loads((folder / DESCRIPTION_FILE).read_text())["stages"]
    stages[0]["network"]["base_channels"] = 3
    change(folder, stages=stages)
    with pytest.raises(ModelError, match="do not fit"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "not a FlareSegment model"),
        ({"format_version": 99}, "version 99"),
        ({"labels": {"1": "heart"}}, "unknown organs heart"),
        ({"labels": {"2": "liver"}}, "without gaps"),
        ({"intensity": {"lower": 5, "upper": 5}}, "lower"),
        ({"stages": []}, "no stage"),
        ({"minimum_sure": 1.5}, "minimum_sure"),
        ({"stages": [{"name": "a", "region": "organs", "network": {}, "spacing_mm": [1, 1, 1]}]}, "first stage"),
        ({"stages": [{"name": "a", "region": "volume", "network": {}}]}, "exactly one"),
        ({"stages": [{"name": "a", "region": "volume", "network": {}, "spacing_mm": [1, 0, 1]}]}, "positive"),
        ({"stages": 3}, "damaged"),
    ],
)
def test_descriptions_that_cannot_be_used_are_one_clear_line(folder, changes, message):
    change(folder, **changes)
    with pytest.raises(ModelError, match=message) as caught:
        read_description(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("position", "changes", "message"),
    [
        (1, {"further_spacings_mm": [[3, 3]]}, "three numbers"),
        (1, {"further_spacings_mm": [None]}, "three numbers"),
        (1, {"further_spacings_mm": [[3, 3, -3]]}, "positive"),
        (1, {"further_spacings_mm": 3}, "damaged"),
        (1, {"further_spacings_mm": [[3, 3, 3]], "spacing_mm": None, "shape": [8, 8, 8]}, "not with shape"),
        (0, {"further_spacings_mm": [[3, 3, 3]]}, "only the last stage"),
    ],
)
def test_further_grids_that_cannot_be_used_are_one_clear_line(folder, position, changes, message):
    (stage,) = json.loads((folder / DESCRIPTION_FILE).read_text())["stages"]
    stages = [stage | {"further_spacings_mm": []}, stage | {"name": "second", "further_spacings_mm": []}]
    stages[position] |= changes
    change(folder, stages=stages)
    with pytest.raises(ModelError, match=message) as caught:
        read_description(folder)
    assert "\n" not in str(caught.value)


def test_models_without_further_grids_are_read(folder):
    (stage,) = json.loads((folder / DESCRIPTION_FILE).read_text())["stages"]
    del stage["further_spacings_mm"]
    change(folder, stages=[stage])
    assert load_model(folder).description.stages[0].further_spacings_mm == ()


@pytest.mark.parametrize("missing", [DESCRIPTION_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(ModelError, match=missing):
        load_model(folder)


def test_the_bundled_model_is_small_and_whole():
    folder = bundled_model_folder()
    assert (folder / WEIGHTS_FILE).stat().st_size <= 15e6
    assert list(load_model(folder).description.labels.values()) == [organ.key for organ in ORGANS]


def test_loading_makes_no_weights_but_those_of_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(*_arguments: object, **_options: object) -> None:
        raise AssertionError("weights were drawn at random to be thrown away")

    monkeypatch.setattr(torch.nn.init, "kaiming_normal_", drawn)
    model = load_model(folder)
    assert all(not parameter.is_meta for parameter in model.network("only").parameters())


def test_a_model_does_not_share_the_weights_that_it_is_made_of(folder: Path) -> None:
    description, weights = read_model(folder)
    single = {name: {key: value.float() for key, value in of.items()} for name, of in weights.items()}
    network = Model(description, single).network("only")
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for value in single["only"].values():
        value.zero_()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
