"""Presets and overrides: every preset is complete, and a wrong value is named in one line."""

from __future__ import annotations

import copy
import json

import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentTrainingLib.training.configuration import override, parse, with_minutes
from FlareSegmentTrainingLib.training.presets import preset_names, read_preset

ISSUE = {
    "flare-organs",
    "flare-organs-gpu",
    "paper-vnet",
    "whole-volume-vnet",
    "whole-volume-vnet-norm",
    "dice-vnet",
    "liver-unet",
}


def test_all_presets_are_there():
    assert set(preset_names()) == ISSUE


@pytest.mark.parametrize("name", sorted(ISSUE))
def test_a_preset_makes_a_network_that_its_patches_fit(name):
    configuration = parse(read_preset(name))
    assert configuration.name == name
    for settings in configuration.stages:
        network = build_network({**settings.stage.network, "base_channels": 1})
        for kind in settings.batches:
            assert all(extent % network.multiple == 0 for extent in kind.patch)
        assert network.head.out_channels == len(configuration.organs) + 1


def test_the_presets_are_what_they_are_called():
    paper = parse(read_preset("paper-vnet")).stages[0]
    assert paper.stage.shape == (128, 128, 64)
    assert (paper.stage.network["kernel_size"], paper.stage.network["base_channels"]) == (5, 16)
    assert paper.stage.network["normalization"] == "none"
    assert (paper.training.optimizer, paper.training.momentum, paper.training.batch) == ("sgd", 0.99, 2)
    assert (paper.training.loss.dice_denominator, paper.training.loss.cross_entropy) == ("squared", 0.0)
    norm = parse(read_preset("whole-volume-vnet-norm"))
    assert norm.intensity.output == (0.0, 1.0) and norm.intensity.standardize
    assert (norm.stages[0].training.batch, norm.stages[0].training.epochs) == (4, 20)
    liver = parse(read_preset("liver-unet"))
    assert liver.organs == ("liver",)
    assert (liver.stages[0].stage.region, liver.stages[0].training.learning_rate) == ("body", 1e-5)
    assert liver.stages[0].training.weight_decay > 0 and liver.stages[0].training.checkpoint_every > 0
    organs = parse(read_preset("flare-organs"))
    assert [settings.stage.region for settings in organs.stages] == ["volume", "organs"]
    assert organs.stages[1].start_from == "coarse"
    assert organs.stages[1].stage.further_spacings_mm == ((3.0, 3.0, 3.0),)


def test_further_grids_go_with_a_spacing():
    content = read_preset("paper-vnet")
    (stage,) = content["stages"].values()
    stage["further_spacings_mm"] = [[3, 3, 3]]
    with pytest.raises(InputError, match="not with shape"):
        parse(content)


def test_an_override_holds_for_every_stage():
    content = read_preset("flare-organs")
    content["stages"]["fine"]["training"] = {"batch": 7}
    before = copy.deepcopy(content)
    changed = parse(override(content, "training.batch=2"))
    assert [settings.training.batch for settings in changed.stages] == [2, 2]
    assert content == before


def test_an_override_of_one_stage_leaves_the_other():
    changed = parse(override(read_preset("flare-organs"), "stages.fine.training.loss.dice=0.5"))
    assert [settings.training.loss.dice for settings in changed.stages] == [1.0, 0.5]
    assert changed.stages[1].training.loss.cross_entropy == 1.0


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("training.epochs", "key=value"),
        ("training.epoch=3", "unknown key epoch"),
        ("training.epochs=many", "must be int"),
        ("training.epochs=true", "must be int"),
        ("training.epochs=0", "at least 1"),
        ("training.optimizer=lion", "adam, adamw, sgd"),
        ("training.patch=[32,32]", "3 values"),
        ("training.minutes=0", "minutes must be above 0"),
        ('training.batches=[{"patch": [32, 32, 32], "view": "third"}]', "view must be one of whole, half, slab"),
        ('training.batches=[{"patch": [32, 32, 32], "share": 0}]', "share must be above 0"),
        ("augmentation.changed_cases=0", "changed_cases must be at least 1"),
        ("stages.middle.training.epochs=3", "no stage 'middle'"),
        ("stages.coarse.further_spacings_mm=[[3,3,3]]", "only the last stage"),
        ("stages.fine.further_spacings_mm=[[3,3]]", "3 values"),
        ("stages.fine.further_spacings_mm=[[3,3,0]]", "above 0"),
        ("stages.fine.spacing_mm=[2,2,-2]", "above 0"),
        ('organs=["heart"]', "organs must be"),
        ("intensity.lower=500", "intensity.lower"),
        ("precision=fp8", "precision must be one of"),
        ('training.loss={"dice": 0, "cross_entropy": 0}', "one term"),
    ],
)
def test_a_wrong_override_is_named(assignment, words):
    with pytest.raises(InputError, match=words) as caught:
        parse(override(read_preset("flare-organs"), assignment))
    assert "\n" not in str(caught.value)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match="flare-organs"):
        read_preset("flare")


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not valid JSON"), ("[1]", "must hold a JSON object"), (None, "no preset")]
)
def test_a_file_that_is_no_preset_is_named(tmp_path, content, words):
    file = tmp_path / "mine.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_preset(str(file))
    assert "mine.json" in str(error.value)


def test_a_preset_is_based_on_another(tmp_path):
    file = tmp_path / "mine.json"
    changes = {"based_on": "flare-organs", "seed": 5, "training": {"loss": {"dice": 0.5}, "batches": None}}
    file.write_text(json.dumps(changes))
    base, mine = read_preset("flare-organs"), read_preset(str(file))
    assert "based_on" not in mine and "batches" not in mine["training"] and mine["seed"] == 5
    assert mine["training"]["loss"] == {**base["training"]["loss"], "dice": 0.5}
    assert mine["stages"] == base["stages"]
    file.write_text('{"based_on": "nothing"}')
    with pytest.raises(InputError, match="based_on must name one of"):
        read_preset(str(file))


def test_minutes_are_shared_among_the_stages_as_their_steps_are():
    stages = parse(with_minutes(read_preset("flare-organs"), 66.0)).stages
    assert [stage.training.minutes for stage in stages] == pytest.approx([26.0, 40.0])


def test_a_preset_of_ones_own_is_read_by_its_path(tmp_path):
    (tmp_path / "mine.json").write_text('{"name": "mine"}')
    assert read_preset(str(tmp_path / "mine.json")) == {"name": "mine"}
