"""Teaching: what keeps a network near its first weights, what speaks against a taught model, and whole teachings that
are stopped and killed. The networks are tiny and their grid is coarse: how much a real one gains is measured by
`Testing/Benchmarks/teach.py`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import write_labels
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.model.model_card import read_model_card
from FlareSegmentLib.model.model_file import load_model, read_model, save_model
from FlareSegmentLib.networks.vnet import build_network
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.runs.stop_request import Stopped, StopRequest
from FlareSegmentTrainingLib.teaching import judgment, stability
from FlareSegmentTrainingLib.teaching import teaching as teaching_module
from FlareSegmentTrainingLib.teaching.examples import ExampleFolder
from FlareSegmentTrainingLib.teaching.recipe import PLAIN, Recipe, averaged, changed, configuration_of
from FlareSegmentTrainingLib.teaching.report import summary
from FlareSegmentTrainingLib.teaching.teaching import Teaching, folds_of, taught_description
from FlareSegmentTrainingLib.training import training_run
from FlareSegmentTrainingLib.training.configuration import TrainingSettings, parse
from FlareSegmentTrainingLib.training.run_folder import RunFolder
from FlareSegmentTrainingLib.training.starting_point import StartingPoint

KEYS = tuple(organ.key for organ in ORGANS)
NETWORK = {
    "architecture": "vnet",
    "out_channels": 5,
    "base_channels": 4,
    "kernel_size": 3,
    "normalization": "batch",
    "wide_decoder": False,
    "encoder_convolutions": [1, 1],
    "decoder_convolutions": [1],
}
QUICK = Recipe(epochs=2, steps_per_epoch=2, learning_rate=1e-3)
TEACH = Path(__file__).resolve().parents[3] / "FlareSegmentTraining" / "Scripts" / "teach.py"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Sums depend on the number of threads, and networks this small gain nothing from them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Folder of a tiny model of two stages that has learned nothing."""
    torch.manual_seed(1)
    stages = (
        Stage("coarse", "volume", NETWORK, (16.0, 16.0, 16.0)),
        Stage("fine", "organs", NETWORK, (12.0, 12.0, 12.0), margin_mm=15.0),
    )
    description = ModelDescription(
        "tiny", "1.0", "CC0", dict(enumerate(KEYS, start=1)), Intensity(-200.0, 300.0), stages, {"validation": {}}
    )
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, description, {stage.name: build_network(stage.network) for stage in stages})
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """Folder of two examples."""
    folder = ExampleFolder(tmp_path_factory.mktemp("examples"))
    for seed in (11, 12):
        folder.keep(*make_phantom(seed, (8.0, 8.0, 8.0)), KEYS)
    return folder.path


@pytest.fixture
def quick(monkeypatch):
    """Small patches, few made-up torsos, and a stability set of one coarse torso."""
    make_quick(monkeypatch)


def make_quick(monkeypatch):
    from FlareSegmentTrainingLib.teaching import recipe

    monkeypatch.setattr(recipe, "PATCH", (32, 24, 16))
    monkeypatch.setattr(teaching_module, "PHANTOMS", 2)
    monkeypatch.setattr(stability, "_KINDS", {"coarse": coarse_torso})
    monkeypatch.setattr(training_run, "can_draw", lambda: False)


def coarse_torso(seed):
    return make_phantom(seed, (8.0, 8.0, 8.0))


def weights_of(folder):
    return {key: value.float() for key, value in read_model(folder)[1]["fine"].items()}


# Near the first weights ---------------------------------------------------------------------------


def network_of_point(starting_point=0.0, distillation=0.0):
    torch.manual_seed(0)
    network, frozen = build_network(NETWORK).eval(), build_network(NETWORK)
    first = {key: value.clone() for key, value in network.state_dict().items()}
    settings = TrainingSettings(starting_point=starting_point, distillation=distillation)
    return network, StartingPoint(network, frozen, first, settings)


def some_batch(network):
    images = torch.randn(1, 1, 16, 16, 16)
    answer = network(images).argmax(1)
    return images, answer


def test_leaving_the_first_weights_costs_half_the_squared_distance():
    network, point = network_of_point(starting_point=0.5)
    images, labels = some_batch(network)
    weights = torch.ones(1, 4)
    assert float(point.penalty(images, network(images), labels, weights).detach()) == 0.0
    with torch.no_grad():
        network.head.bias += 2.0
    loss = point.penalty(images, network(images), labels, weights)
    assert float(loss.detach()) == pytest.approx(0.5 * 0.5 * 4.0 * 5)
    loss.backward()
    assert torch.allclose(network.head.bias.grad, torch.full((5,), 0.5 * 2.0))


def test_distillation_counts_where_labels_were_not_corrected():
    network, point = network_of_point(distillation=1.0)
    images, before = some_batch(network)
    weights = torch.ones(1, 4)
    assert float(point.penalty(images, network(images), before, weights)) == pytest.approx(0.0, abs=1e-6)
    with torch.no_grad():
        network.head.bias += torch.tensor([0.0, 3.0, 0.0, 0.0, 0.0])
    logits = network(images)
    everywhere = float(point.penalty(images, logits, before, weights))
    assert everywhere > 0.1
    corrected = (before + 1) % 5
    assert float(point.penalty(images, logits, corrected, weights)) == 0.0
    background = torch.zeros_like(before)
    ignored = float(point.penalty(images, logits, background, torch.zeros(1, 4)))
    assert ignored == pytest.approx(everywhere, rel=1e-4)  # nobody looked: what was found stays


def test_a_training_stays_nearer_with_the_penalty(model, examples, quick, tmp_path):
    distances = {}
    for name, recipe in (("free", PLAIN), ("held", replace(PLAIN, starting_point=100.0))):
        teaching = Teaching(tmp_path / name, examples, model, replace(recipe, epochs=1, steps_per_epoch=4), "cpu", list)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(judgment, "against_examples", lambda *_: ["only the training was wanted"])
            teaching.run()
        taught = weights_of(tmp_path / name / "models" / "fold-1")
        old = weights_of(model)
        distances[name] = sum(float((taught[key] - old[key]).square().sum()) for key in old)
        assert all(torch.equal(taught[key], old[key]) for key in old if "running" in key)
    assert 0 < distances["held"] < 0.5 * distances["free"]


def test_weights_are_averaged_between_old_and_taught():
    old, taught = {"a": torch.tensor([1.0]), "n": torch.tensor(3)}, {"a": torch.tensor([2.0]), "n": torch.tensor(9)}
    half = averaged(old, taught, 0.25)
    assert half["a"].item() == pytest.approx(1.25) and half["n"].item() == 3


def test_the_recipe_is_changed_by_name_and_within_bounds():
    assert changed(["epochs=3", "learning_rate=1e-5"]) == replace(Recipe(), epochs=3, learning_rate=1e-5)
    for wrong in ("epochs", "epochs=a", "speed=1", "epochs=0", "taught_share=2", "learning_rate=nan"):
        with pytest.raises(InputError, match="--set"):
            changed([wrong])


def test_stages_of_a_fixed_shape_can_be_taught(model):
    description = read_model(model)[0]
    whole = replace(description.stages[0], name="whole", spacing_mm=None, shape=(32, 32, 32))
    settings = parse(configuration_of(replace(description, stages=(whole,)), Recipe())).stages[0]
    assert settings.batches[0].patch == (32, 32, 32)


# What speaks against it ---------------------------------------------------------------------------


def records(*scans, false_ml=0.0):
    """Records of scans, each four Dice."""
    return {
        f"scan{number}": {
            "reference_sha256": str(number),
            "organs": {key: {"dice": value, "false_positive_ml": false_ml} for key, value in zip(KEYS, scan)},
        }
        for number, scan in enumerate(scans)
    }


BEFORE = records((0.9, 0.8, 0.9, 0.9), (0.9, 0.7, None, 0.9), (0.9, 0.8, 0.9, 0.9))


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (records((0.92, 0.9, 0.92, 0.9), (0.9, 0.9, None, 0.9), (0.9, 0.9, 0.9, 0.9)), None),
        (BEFORE, "nothing was learned"),
        (records((0.92, 0.95, 0.85, 0.9), (0.9, 0.9, None, 0.9), (0.9, 0.9, 0.85, 0.9)), "left kidney got worse"),
        (records((0.95, 0.9, 0.95, 0.9), (0.9, 0.9, None, 0.9), (0.9, 0.9, 0.9, 0.9), false_ml=9.0), "mL more"),
    ],
)
def test_only_what_helps_held_out_examples_is_offered(after, reason):
    reasons = judgment.against_examples(after, BEFORE, ORGANS)
    assert (reasons == []) if reason is None else any(reason in line for line in reasons)


def test_what_was_not_corrected_does_not_speak_against_a_model_that_changes_it_a_little():
    """Its labels are the old model's own answer: Dice 1 there is nobody's merit."""
    before = records((1.0, 0.999, None, 0.6), (1.0, 1.0, 0.9, 0.7))
    after = records((0.97, 0.96, None, 0.8), (0.98, 0.97, 0.9, 0.8))
    assert judgment.against_examples(after, before, ORGANS) == []
    kept = judgment.as_found(before, ORGANS)
    assert kept == {("scan0", "liver"), ("scan0", "right_kidney"), ("scan1", "liver"), ("scan1", "right_kidney")}
    assert judgment.mean_gain(after, before, ORGANS, kept) == pytest.approx(0.1)
    ruined = records((0.9, 0.96, None, 0.8), (0.9, 0.97, 0.9, 0.8))
    (reason,) = judgment.against_examples(ruined, before, ORGANS)
    assert "not corrected, the liver changed: Dice -0.100 in the mean" in reason
    assert judgment.against_examples(records((0.99,) * 4), records((1.0,) * 4), ORGANS) == [
        "the examples hold no corrected organ: all are as the old model found them"
    ]


def test_finding_less_of_what_is_not_there_is_a_gain_too():
    absent = records((None, None, None, None), false_ml=50.0)
    assert judgment.against_examples(records((None,) * 4), absent, ORGANS) == []
    assert judgment.against_examples(absent, absent, ORGANS)


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (BEFORE, None),
        (records((0.899, 0.8, 0.9, 0.9), (0.9, 0.7, None, 0.9), (0.9, 0.8, 0.9, 0.9)), None),
        (records((0.9, 0.8, 0.9, 0.8), (0.99, 0.8, None, 0.99), (0.9, 0.8, 0.9, 0.9)), "scan0 the spleen got worse"),
        (records((0.88, 0.79, 0.89, 0.89), (0.89, 0.69, None, 0.89), (0.89, 0.79, 0.89, 0.89)), "mean Dice changed"),
        (records((0.9, 0.8, 0.9, 0.9), (0.9, 0.7, None, 0.9), (0.9, 0.8, 0.9, 0.9), false_ml=5.0), "mL more"),
    ],
)
def test_what_was_known_must_not_be_lost(after, reason):
    reasons = judgment.against_stability(after, BEFORE, ORGANS)
    assert (reasons == []) if reason is None else any(reason in line for line in reasons)


def test_swapped_labels_are_known_by_what_the_old_model_found():
    found = np.zeros((8, 8, 8), np.uint8)
    found[:, :4], found[:, 4:6], found[:4, 6:], found[4:, 6:] = 1, 4, 2, 3
    right = list(ORGANS)
    assert judgment.swapped_organs(found, found, right) == []
    swapped = np.choose(found, [0, 1, 3, 2, 4]).astype(np.uint8)
    lines = judgment.swapped_organs(swapped, found, right)
    assert lines == [
        "what is labeled right kidney was found as left kidney",
        "what is labeled left kidney was found as right kidney",
    ]
    assert judgment.swapped_organs(swapped, found, [ORGANS[0], ORGANS[3]]) == []


def test_folds_hold_every_example_out_once_and_keep_patients_together():
    cases = [Case(f"c{number}", None, None, {}, patient=f"p{number % 3}") for number in range(4)]
    folds = folds_of(cases)
    assert sorted(name for held in folds.values() for name in held) == ["c0", "c1", "c2", "c3"]
    assert ["c0", "c3"] in folds.values() and len(folds) == 3
    assert len(folds_of([Case(f"c{number}", None, None, {}) for number in range(9)])) == 3


def test_the_stability_set_is_the_same_everywhere_and_holds_the_organs():
    scans = {case.name: case for case in stability.stability_set()}
    assert len({case.content_hash() for case in scans.values()}) == len(scans) >= 6
    plain = make_phantom(scans["phantom-bowel-contrast"].phantom_seed)
    volume, labels, _ = scans["phantom-bowel-contrast"].read()
    assert (scans["phantom-bowel-contrast"].read()[0].array == volume.array).all()
    assert (labels == plain[1]).all() and set(np.unique(labels)) == {0, 1, 2, 3, 4}
    changed_voxels = volume.array != plain[0].array
    assert changed_voxels.any() and not (changed_voxels & (labels > 0)).any()


# Whole teachings ----------------------------------------------------------------------------------


@pytest.fixture
def believed(monkeypatch):
    """Takes every taught model for better: so small a network learns nothing in four steps."""
    believe(monkeypatch)


def believe(monkeypatch):
    monkeypatch.setattr(judgment, "against_examples", lambda *_: [])
    monkeypatch.setattr(judgment, "against_stability", lambda *_: [])


@pytest.fixture(scope="module")
def finished(model, examples, tmp_path_factory):
    """Folder of a teaching that went through at once, and how it ended."""
    folder = tmp_path_factory.mktemp("finished") / "t"
    before = {file.name: file.read_bytes() for file in examples.iterdir()}
    with pytest.MonkeyPatch.context() as patched:
        make_quick(patched)
        believe(patched)
        taught = Teaching(folder, examples, model, QUICK, "cpu", list).run()
    assert {file.name: file.read_bytes() for file in examples.iterdir()} == before
    return taught


def test_a_teaching_offers_a_model_with_a_card(model, examples, finished):
    taught, folder = finished, finished.model.parent
    assert taught.offered and taught.model.name == "model"
    description = load_model(taught.model).description
    assert description.version == "1.0+taught.1" and description.license == "CC0"
    assert description.facts["taught"]["examples"] == 2 and len(description.facts["taught"]["scans"]) == 2
    old, new = read_model(model)[1], read_model(taught.model)[1]
    assert all(torch.equal(old["coarse"][key], new["coarse"][key]) for key in old["coarse"])
    assert any(not torch.equal(old["fine"][key], new["fine"][key]) for key in old["fine"])
    card = read_model_card(taught.model)
    assert "Teaching" in card.text and "example" not in card.text.lower().replace("examples", "")
    report = json.loads((folder / "report.json").read_text())
    assert set(report["examples"]["scans"]) == {"example-001", "example-002"}
    assert set(report["stability"]["scans"]) == {"coarse"}
    assert (folder / "report.md").read_text() in card.text
    left = {"config.json", "progress.json", "report.json", "report.md", "model", "models"}  # no copy of a CT
    assert {place.name for place in folder.iterdir()} == left
    stamp = (taught.model / "weights.pt").stat().st_mtime_ns
    assert Teaching(folder, examples, model, QUICK, "cpu", list).run() == taught  # it ended: nothing is done again
    assert (taught.model / "weights.pt").stat().st_mtime_ns == stamp
    progress = Teaching(folder, examples, model).folder.progress()
    assert progress["state"] == "finished" and "better" in progress["message"]


def test_a_network_that_learned_nothing_is_refused_with_the_reason(model, examples, quick, tmp_path):
    taught = Teaching(tmp_path / "t", examples, model, QUICK, "cpu", list).run()
    assert not taught.offered and taught.model is None and "nothing was learned" in taught.reasons[0]
    assert not (tmp_path / "t" / "model").exists()
    assert taught.reasons[0] in (tmp_path / "t" / "report.md").read_text()
    lines = summary(taught.report).splitlines()
    assert "not offered" in lines[0] and f"- {taught.reasons[0]}" in lines
    liver = taught.report["examples"]["organs"]["liver"]
    assert f"- Liver: {liver['other_mean']:.3f} → {liver['mean']:.3f}, {liver['difference']:+.3f}" in lines


def test_swapped_examples_are_refused_before_anything_is_trained(model, examples, quick, monkeypatch, tmp_path):
    monkeypatch.setattr(judgment, "swapped_organs", lambda *_: ["what is labeled liver was found as spleen"])
    taught = Teaching(tmp_path / "t", examples, model, QUICK, "cpu", list).run()
    assert taught.reasons[0] == "in example-001 what is labeled liver was found as spleen"
    assert not (tmp_path / "t" / "runs").exists()


def test_what_cannot_be_taught_is_said(model, examples, quick, tmp_path):
    one = ExampleFolder(tmp_path / "one")
    one.keep(*make_phantom(11, (8.0, 8.0, 8.0)), KEYS)
    with pytest.raises(InputError, match="at least two"):
        Teaching(tmp_path / "t", one.path, model, QUICK, "cpu", list).run()
    with pytest.raises(InputError, match="missing"):
        Teaching(tmp_path / "t", tmp_path / "nowhere", model, QUICK, "cpu", list).run()
    assert not (tmp_path / "t").exists()
    one.keep(*make_phantom(12, (8.0, 8.0, 8.0)), ["pancreas"])
    with pytest.raises(InputError, match="at least two"):
        Teaching(tmp_path / "t", one.path, model, QUICK, "cpu", list).run()


def result_of(folder):
    """What a teaching ends with: the model's tensors and the report."""
    return weights_of(folder / "model"), json.loads((folder / "report.json").read_text())


def assert_same(one, other):
    assert one[1] == other[1]
    assert all(torch.equal(one[0][key], other[0][key]) for key in one[0])


def test_stopped_again_and_again_it_comes_to_the_same_end(
    model, examples, finished, quick, believed, monkeypatch, tmp_path
):
    asked, stops = 0, 0
    with monkeypatch.context() as patched:

        def later_each_time(_self):
            nonlocal asked
            asked += 1
            return asked == 2 + 4 * stops

        patched.setattr(StopRequest, "__bool__", later_each_time)
        while True:
            try:
                asked = 0
                Teaching(tmp_path / "parts", examples, model, QUICK, "cpu", list).run()
                break
            except Stopped:
                stops += 1
                assert stops < 50, "it does not come to its end"
                assert not (tmp_path / "parts" / "model").exists()
                assert Teaching(tmp_path / "parts", examples, model).folder.progress()["state"] == "stopped"
    assert stops > 3
    assert_same(result_of(tmp_path / "parts"), result_of(finished.model.parent))


def test_the_time_left_is_not_told_by_what_was_done_before_it_was_continued(model, examples, monkeypatch, tmp_path):
    """Two of four steps are done at the beginning, the third takes ten seconds: so will the fourth."""
    clock, told = [0.0], []

    class Resumed:
        def __init__(self, *_arguments, **options):
            self._tell = options["told"]

        def run(self, resume):
            assert resume
            self._tell({"message": "Preparing"})
            self._tell({"message": "step 2/4", "fraction": 0.5})
            clock[0] += 10.0
            self._tell({"message": "step 3/4", "fraction": 0.75})
            raise Stopped("enough")

    monkeypatch.setattr(teaching_module, "TrainingRun", Resumed)
    monkeypatch.setattr(teaching_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    teaching = Teaching(tmp_path / "t", examples, model, QUICK, "cpu", list)
    monkeypatch.setattr(teaching._progress, "update", lambda **content: told.append(content))
    teaching._description, teaching._weights = read_model(model)
    teaching._total = 4.0
    teaching.folder.save_tensors(tmp_path / "t" / "runs" / "all" / "last" / "training.pt", {})
    with pytest.raises(Stopped):
        teaching._trained("all", [], [])
    assert told[-1]["fraction"] == 0.75 and told[-1]["remaining_seconds"] == pytest.approx(10.0)


def test_a_teaching_is_not_continued_with_something_else(model, examples, finished, tmp_path):
    folder = finished.model.parent
    more = ExampleFolder(tmp_path / "more")
    for seed in (13, 14):
        more.keep(*make_phantom(seed, (8.0, 8.0, 8.0)), KEYS)
    with pytest.raises(InputError, match="other examples"):
        Teaching(folder, more.path, model, QUICK, "cpu", list).run()
    with pytest.raises(InputError, match="other model"):
        Teaching(folder, examples, finished.model, QUICK, "cpu", list).run()


@pytest.fixture
def own_examples(tmp_path):
    """Folder of two examples that a test may change."""
    folder = ExampleFolder(tmp_path / "examples of one's own")
    for seed in (11, 12):
        folder.keep(*make_phantom(seed, (8.0, 8.0, 8.0)), KEYS)
    return folder


def test_other_grades_are_other_examples(model, own_examples, quick, tmp_path):
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "stop").touch()
    with pytest.raises(Stopped):
        Teaching(tmp_path / "t", own_examples.path, model, QUICK, "cpu", list).run()
    quality = json.loads((own_examples.path / "quality.json").read_text())
    quality["example-001"]["liver"]["grade"] = "ignore"
    (own_examples.path / "quality.json").write_text(json.dumps(quality))
    with pytest.raises(InputError, match="other examples"):
        Teaching(tmp_path / "t", own_examples.path, model, QUICK, "cpu", list).run()


def test_an_example_without_grades_is_not_taken_for_labeled_throughout(model, own_examples, tmp_path):
    quality = json.loads((own_examples.path / "quality.json").read_text())
    del quality["example-002"]
    (own_examples.path / "quality.json").write_text(json.dumps(quality))
    said = []
    with pytest.raises(InputError, match="1 usable example:"):
        Teaching(tmp_path / "t", own_examples.path, model, QUICK, "cpu", said.append).run()
    assert any("example-002" in line and "quality.json does not say" in line for line in said)


def test_a_damaged_example_is_named_before_anything_is_begun(model, own_examples, tmp_path):
    file = own_examples.path / "example-002_ct.nii.gz"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(InputError, match="^example-002 cannot be taught: .*damaged.* Mend it, or remove the example"):
        Teaching(tmp_path / "t", own_examples.path, model, QUICK, "cpu", list).run()
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("strange", ["runs/mine/notes.txt", "config.json", "measured", "a file"])
def test_a_folder_that_holds_something_else_is_left_alone(model, examples, tmp_path, strange):
    """At its end a teaching removes its runs: they must be its own."""
    folder = tmp_path / "t"
    place = folder if strange == "a file" else folder / strange
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text('{"configuration": {}}')
    with pytest.raises(InputError, match="another") as caught:
        Teaching(folder, examples, model, QUICK, "cpu", list).run()
    assert "\n" not in str(caught.value) and place.read_text() == '{"configuration": {}}'
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [place]


def test_a_teaching_is_not_continued_by_another_recipe_without_a_word(model, examples, finished):
    folder = finished.model.parent
    with pytest.raises(InputError, match="another recipe"):
        Teaching(folder, examples, model, replace(QUICK, epochs=3), "cpu", list).run()
    assert Teaching(folder, examples, model, device="cpu", say=list).run() == finished


def test_killed_after_its_report_it_still_comes_to_its_end(model, examples, finished, tmp_path):
    """What is left is to remove the copies of the examples, and to say that it is finished."""
    folder = tmp_path / "t"
    shutil.copytree(finished.model.parent, folder)
    (folder / "prepared" / "cell").mkdir(parents=True)
    for name in (".saving-1-progress.json", "models/all/.saving-abc"):
        (folder / name).write_text("begun")
    content = {"state": "running", "pid": 2**22 + 5, "host": socket.gethostname(), "message": "step 3"}
    (folder / "progress.json").write_text(json.dumps(content))
    assert Teaching(folder, examples, model, QUICK, "cpu", list).run().report == finished.report
    assert sorted(file.name for file in folder.iterdir()) == sorted(
        file.name for file in finished.model.parent.iterdir()
    )
    assert not list((folder / "models" / "all").glob(".*"))
    progress = json.loads((folder / "progress.json").read_text())
    assert progress["state"] == "finished" and "better" in progress["message"]


def test_the_report_for_programs_is_the_last_that_is_written(model, examples, quick, monkeypatch, tmp_path):
    """With it a teaching has ended: the report for people must be there by then."""
    written = []

    def noted(folder, name, content):
        written.append((name, (folder.path / "report.md").is_file()))
        if name == "report.json":
            raise InputError("killed")

    monkeypatch.setattr(Teaching, "_teach", lambda *_: (["no"], teaching_module._NOTHING, teaching_module._NOTHING))
    teaching = Teaching(tmp_path / "t", examples, model, QUICK, "cpu", list)
    monkeypatch.setattr(teaching_module, "is_unchanged", lambda *_: True)
    monkeypatch.setattr(RunFolder, "write_json", noted)
    with pytest.raises(InputError, match="killed"):
        teaching.run()
    assert ("report.json", True) in written


@pytest.mark.parametrize("change", ["removed", "labels"])
def test_examples_changed_while_they_are_taught_are_said(model, own_examples, monkeypatch, tmp_path, change):
    def changed_meanwhile(_self, _cases):
        if change == "removed":
            own_examples.remove("example-002")
            raise InputError("None of the 1 cases can be measured")
        volume, labels, _ = own_examples.open("example-002")
        labels[labels == 4] = 0
        write_labels(own_examples.path / "example-002_labels.nii.gz", labels, volume)
        return [], teaching_module._NOTHING, teaching_module._NOTHING

    monkeypatch.setattr(Teaching, "_teach", changed_meanwhile)
    teaching = Teaching(tmp_path / "t", own_examples.path, model, QUICK, "cpu", list)
    with pytest.raises(InputError, match="were changed while they were taught"):
        teaching.run()
    assert not (tmp_path / "t" / "model").exists() and not (tmp_path / "t" / "report.json").exists()
    assert teaching.folder.progress()["state"] == "failed"


def test_one_folder_is_taught_by_one_process(model, examples, tmp_path):
    (tmp_path / "t").mkdir()
    content = {"state": "running", "pid": os.getpid(), "host": socket.gethostname()}
    (tmp_path / "t" / "progress.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=f"A process \\({os.getpid()}\\) is teaching"):
        Teaching(tmp_path / "t", examples, model, QUICK, "cpu", list).run()


KILLED = """
import sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from FlareSegmentTrainingLib.teaching import judgment, recipe, teaching, stability
from FlareSegmentTrainingLib.training import training_run
training_run.can_draw = lambda: False
recipe.PATCH, teaching.PHANTOMS = (32, 24, 16), 2
stability._KINDS = {{"coarse": lambda seed: stability.make_phantom(seed, (8.0, 8.0, 8.0))}}
judgment.against_examples = judgment.against_stability = lambda *_: []
teaching.Teaching(*sys.argv[1:], recipe.Recipe(epochs=2, steps_per_epoch=2, learning_rate=1e-3), "cpu").run()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_killed_at_random_moments_it_comes_to_the_same_end(model, examples, finished, tmp_path):
    before = {file.name: file.read_bytes() for file in examples.iterdir()}
    paths = [str(TEACH.parents[1]), str(TEACH.parents[2] / "FlareSegment")]
    command = [sys.executable, "-c", KILLED.format(paths=paths), tmp_path / "killed", examples, model]
    moments = random.Random(time.time_ns())
    for _ in range(int(os.environ.get("FLARE_KILLS", "1"))):
        process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while process.poll() is None and not (tmp_path / "killed" / "progress.json").exists():
                assert time.monotonic() < end, "the teaching does not begin"
                time.sleep(0.02)
            time.sleep(moments.uniform(1.5, 4.0))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(30)
        if (tmp_path / "killed" / "model").exists():
            load_model(tmp_path / "killed" / "model")
        assert {file.name: file.read_bytes() for file in examples.iterdir()} == before
    subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, timeout=120)
    assert_same(result_of(tmp_path / "killed"), result_of(finished.model.parent))


def test_the_script_says_what_is_wrong_in_one_line(start_script, tmp_path):
    result = start_script("python", "FlareSegmentTraining/Scripts/teach.py", "--examples", "nowhere", "--output", "t")
    assert result.returncode == 2 and result.stderr.startswith("Error: nowhere is missing")
    assert result.stderr.count("\n") == 1 and not (tmp_path / "t").exists()


def test_the_script_teaches_and_prints_the_report(model, examples, quick, monkeypatch, capsys, tmp_path):
    from bad_input import load_script

    script = load_script(TEACH)
    arguments = ["--examples", str(examples), "--output", str(tmp_path / "t"), "--model", str(model), "--device", "cpu"]
    changes = [word for change in ("epochs=1", "steps_per_epoch=1") for word in ("--set", change)]
    assert script.main([*arguments, *changes, "--json"]) == 0
    output = capsys.readouterr().out.splitlines()
    report = json.loads(output[-1])
    assert report["offered"] is False and report["model_folder"] is None and report["reasons"]
    assert any(line.startswith("Not offered: ") for line in output)


def test_described_by_where_it_comes_from(model):
    old = read_model(model)[0]
    settings = {"model": {"name": "tiny 1.0", "sha256": "0"}, "recipe": {}}
    listed = replace(old, facts={"training_cases": ["a"]})
    assert taught_description(listed, ["example-001"], ["f"], settings).facts["training_cases"] == ["a", "example-001"]
    known = replace(old, facts={"scans": {"trained": ["e"], "validated": []}})
    assert taught_description(known, ["example-001"], ["f"], settings).facts["scans"]["trained"] == ["e", "f"]
    again = taught_description(taught_description(old, [], [], settings), [], [], settings)
    assert again.version == "1.0+taught.2" and again.license == old.license
