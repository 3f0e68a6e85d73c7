"""What counts and what does not when predictions are measured, what is kept for the next run, and the statistics of
two evaluations.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels
from FlareSegmentLib.model.description import read_description
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS, organ_by_key
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS
from FlareSegmentTrainingLib.datasets.splits import Split
from FlareSegmentTrainingLib.evaluation import comparison, roles
from FlareSegmentTrainingLib.evaluation import measurements as evaluation
from FlareSegmentTrainingLib.evaluation.figures import measure, summarize
from FlareSegmentTrainingLib.evaluation.measurements import (
    evaluate_cases,
    file_name,
    organs_not_found,
    organs_to_measure,
)
from FlareSegmentTrainingLib.evaluation.predictors import FolderPredictor, ModelPredictor, Prediction, find_references

LIVER, RIGHT, LEFT, SPLEEN = ORGANS
KEYS = [organ.key for organ in ORGANS]


def body(*organs: int) -> np.ndarray:
    """Labels (z, y, x) with a block of 64 voxels for each of the organs."""
    labels = np.zeros((8, 8, 40), np.uint8)
    for organ in organs:
        labels[2:6, 2:6, 10 * organ - 8 : 10 * organ - 4] = organ
    return labels


def rows_of(labels: np.ndarray, reference: np.ndarray, labeled=KEYS) -> dict:
    return measure(labels, reference, Volume(labels, (1.0, 1.0, 2.0)), ORGANS, labeled)


class EchoPredictor:
    """Answers with the case's own labels, eroded at one side, and counts how often it is asked."""

    kind, name, organs = "model", "echo", frozenset(KEYS)

    def __init__(self, folder: Path, identity: str = "1") -> None:
        self.folder, self.identity, self.asked = folder, hashlib.sha256(identity.encode()).hexdigest(), []

    def identity_of(self, case: str) -> str:
        return self.identity

    def role_of(self, case: str) -> str | None:
        return {"a": roles.TRAINED, "b": roles.VALIDATED}.get(case, roles.NEW)

    def predict(self, case: str, volume: Volume) -> Prediction:
        self.asked.append(case)
        labels = read_labels(self.folder / f"{case}_labels.nii.gz").array.copy()
        labels[1] = 0
        return Prediction(labels, ["echoed"])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return layouts.flat(tmp_path / "data", ("a", "b", "c"))


def evaluated(data: Path, output: Path, predictor: EchoPredictor | None = None, draw=None):
    predictor = predictor or EchoPredictor(data)
    return evaluate_cases(find_cases(data), predictor, ORGANS, output, draw, say=lambda line: None)


def test_each_state_of_an_organ() -> None:
    reference, labels = body(1, 2), body(1, 3)
    rows = rows_of(labels, reference, [LIVER.key, RIGHT.key, LEFT.key])
    ml = 64 * 2 / 1000
    assert rows[LIVER.key] == {
        "status": "measured", "reference_ml": pytest.approx(ml), "predicted_ml": pytest.approx(ml),
        "false_positive_ml": None, "dice": 1.0, "nsd": 1.0, "hd95_mm": 0.0, "volume_error_ml": 0.0,
        "volume_error_percent": 0.0,
    }  # fmt: skip
    missed = rows[RIGHT.key]
    assert (missed["status"], missed["dice"], missed["nsd"], missed["hd95_mm"]) == ("missed", 0.0, 0.0, None)
    assert missed["volume_error_percent"] == -100 and missed["volume_error_ml"] == pytest.approx(-ml)
    extra = rows[LEFT.key]
    assert (extra["status"], extra["dice"], extra["false_positive_ml"]) == ("false positive", None, pytest.approx(ml))
    assert set(rows[SPLEEN.key].values()) == {"not labeled", None}
    absent = rows_of(body(1), body(1))[SPLEEN.key]
    assert (absent["status"], absent["dice"], absent["false_positive_ml"]) == ("absent", None, 0.0)


def test_what_an_unlabeled_organ_was_taken_for_does_not_count() -> None:
    rows = rows_of(body(1, 2, 3, 4), body(1), [LIVER.key])
    assert [rows[key]["status"] for key in KEYS] == ["measured"] + 3 * ["not labeled"]


def test_volume_error_is_prediction_minus_reference() -> None:
    labels = body(1)
    labels[2] = 0
    row = rows_of(labels, body(1))[LIVER.key]
    assert row["volume_error_percent"] == pytest.approx(-25) and row["volume_error_ml"] == pytest.approx(-0.032)


def test_mean_median_and_worst_case() -> None:
    smaller = body(1)
    smaller[2:4] = 0
    cases = {
        name: {"organs": rows_of(labels, reference)}
        for name, labels, reference in (
            ("whole", body(1), body(1)), ("half", smaller, body(1)), ("missed", body(), body(1)),
            ("none", body(4), body()),
        )
    }  # fmt: skip
    summary = summarize(cases, ORGANS)
    liver = summary[LIVER.key]
    assert (liver["cases"], liver["missed"], liver["absent"]) == (3, 1, 1)
    half = 2 * 32 / 96
    assert liver["dice"]["mean"] == pytest.approx((1 + half) / 3) and liver["dice"]["median"] == pytest.approx(half)
    assert (liver["dice"]["worst"], liver["dice"]["worst_case"]) == (0.0, "missed")
    assert liver["hd95_mm"]["cases"] == 2 and liver["hd95_mm"]["worst_case"] == "missed"
    assert liver["volume_error_percent"]["mean"] == pytest.approx(-50)
    assert summary[SPLEEN.key]["false_positive"] == {"none": pytest.approx(0.128)}
    assert summary[SPLEEN.key]["dice"] is None and summary[SPLEEN.key]["cases"] == 0
    json.dumps(summary, allow_nan=False)


def test_a_second_run_measures_nothing_again(data: Path, tmp_path: Path) -> None:
    first = evaluated(data, tmp_path / "out")
    predictor = EchoPredictor(data)
    again = evaluated(data, tmp_path / "out", predictor)
    assert predictor.asked == [] and again.reused == 3
    assert again.content() == first.content()

    layouts.write_pair(data / "b_ct.nii.gz", data / "b_labels.nii.gz", 7)  # another CT
    (tmp_path / "out/predictions/c_labels.nii.gz").unlink()
    (tmp_path / "out/cases/a.json").write_text("{")
    evaluated(data, tmp_path / "out", predictor)
    assert predictor.asked == ["a", "b", "c"]


def test_a_stopped_run_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopping(EchoPredictor):
        def predict(self, case: str, volume: Volume) -> Prediction:
            if case == "b":
                raise KeyboardInterrupt
            return super().predict(case, volume)

    with pytest.raises(KeyboardInterrupt):
        evaluated(data, tmp_path / "out", Stopping(data))
    predictor = EchoPredictor(data)
    assert len(evaluated(data, tmp_path / "out", predictor).cases) == 3 and predictor.asked == ["b", "c"]


def test_another_program_measures_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(data, tmp_path / "out")
    monkeypatch.setattr(evaluation, "program_identity", lambda: "changed")
    predictor = EchoPredictor(data)
    evaluated(data, tmp_path / "out", predictor)
    assert predictor.asked == ["a", "b", "c"]


def test_another_model_needs_another_folder(data: Path, tmp_path: Path) -> None:
    evaluated(data, tmp_path / "out")
    before = (tmp_path / "out/cases/a.json").read_bytes()
    with pytest.raises(InputError, match="something else"):
        evaluated(data, tmp_path / "out", EchoPredictor(data, "2"))
    assert (tmp_path / "out/cases/a.json").read_bytes() == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/evaluation.json").write_text("mine")
    with pytest.raises(InputError, match="not of an evaluation"):
        evaluated(data, tmp_path / "foreign")


def test_the_organs_labels_of_the_case_decide(data: Path, tmp_path: Path) -> None:
    (data / "quality.json").write_text(json.dumps({"a": {"spleen": {"grade": "ignore"}}, "b": {"spleen": "absent"}}))
    found = evaluated(data, tmp_path / "out")
    assert found.cases["a"]["organs"]["spleen"]["status"] == "not labeled"
    assert found.content()["summary"]["spleen"]["not_labeled"] == 1
    assert found.cases["b"]["organs"]["liver"]["status"] == "measured"


def test_a_case_that_cannot_be_read_is_left_out_without_telling_where_it_lies(data: Path, tmp_path: Path) -> None:
    (data / "b_ct.nii.gz").write_bytes(b"no image")
    found = evaluated(data, tmp_path / "out")
    assert sorted(found.cases) == ["a", "c"]
    assert [item.name for item in found.left_out] == ["b"]
    assert "b_ct.nii.gz" in found.left_out[0].reason and str(tmp_path) not in json.dumps(found.content())
    for name in "ac":
        (data / f"{name}_ct.nii.gz").write_bytes(b"no image")
    with pytest.raises(InputError, match="None of the 3 cases"):
        evaluated(data, tmp_path / "other")


def test_pictures_belong_to_the_record(data: Path, tmp_path: Path) -> None:
    def draw(folder, name, volume, labels, reference, organs):
        (folder / f"{name}.jpg").write_bytes(b"picture")
        return [{"kind": "plane", "file": f"{name}.jpg", "title": "Axial"}], ["no OpenGL"]

    found = evaluated(data, tmp_path / "out", draw=draw)
    assert found.cases["a"]["warnings"] == ["echoed", "no OpenGL"]
    (tmp_path / "out/pictures/a.jpg").unlink()
    predictor = EchoPredictor(data)
    evaluated(data, tmp_path / "out", predictor, draw)
    assert predictor.asked == ["a"]


def test_file_names_are_safe_and_differ() -> None:
    assert file_name("case_01.b-c") == "case_01.b-c"
    assert file_name("a/b") != file_name("a b") and not set("/ \\") & set(file_name("../a b\\c"))


# Folders of label maps -----------------------------------------------------------------------------


def test_two_folders_of_label_maps(tmp_path: Path) -> None:
    reference = layouts.flat(tmp_path / "reference", ("a", "b"), tuple(range(1, 5)))
    for name, seed in (("a", 0), ("b", 1)):
        labels = layouts.ct_and_labels(seed)[1]
        values = np.array([0, *(organ.flare22_label for organ in ORGANS)], np.uint8)
        layouts.write(tmp_path / "predictions" / f"{name}.nii.gz", values[labels])
    predictor = FolderPredictor(tmp_path / "predictions", LABEL_MAPS["flare22"])
    for cases in (find_references(reference, None, print), find_cases(reference)):
        organs = organs_to_measure(predictor, cases, None)
        assert organs == ORGANS
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        found = evaluate_cases(cases, predictor, organs, output, None, say=lambda line: None)
        assert all(row["dice"] == 1.0 for record in found.cases.values() for row in record["organs"].values())
    assert organs_to_measure(predictor, cases, ["spleen"]) == (SPLEEN,)


def test_predictions_on_another_grid_or_missing_are_left_out(tmp_path: Path) -> None:
    data = layouts.flat(tmp_path / "data", ("a", "b", "c"))
    labels = layouts.ct_and_labels(0)[1]
    layouts.write(tmp_path / "predictions/a_labels.nii.gz", labels)
    layouts.write(tmp_path / "predictions/b_labels.nii.gz", labels, origin=(0.0, 0.0, 0.0))
    predictor = FolderPredictor(tmp_path / "predictions", None)
    found = evaluate_cases(find_cases(data), predictor, ORGANS, tmp_path / "out", None, say=lambda line: None)
    reasons = {item.name: item.reason for item in found.left_out}
    assert list(found.cases) == ["a"]
    assert "does not lie on the grid" in reasons["b"] and "no prediction" in reasons["c"]


def test_predictions_in_another_axis_order_are_the_same_labels(tmp_path: Path) -> None:
    data = layouts.flat(tmp_path / "data", ("a",))
    labels = layouts.ct_and_labels(0)[1]
    origin, step = (-30.0, -25.0, 100.0), layouts.SPACING[0]
    layouts.write(
        tmp_path / "predictions/a.nii.gz", np.ascontiguousarray(labels[:, :, ::-1]),
        origin=(origin[0] + (labels.shape[2] - 1) * step, *origin[1:]), direction=np.diag([-1.0, 1.0, 1.0]),
    )  # fmt: skip
    predictor = FolderPredictor(tmp_path / "predictions", None)
    found = evaluate_cases(find_cases(data), predictor, ORGANS, tmp_path / "out", None, say=lambda line: None)
    assert found.cases["a"]["organs"]["right_kidney"]["dice"] == 1.0


def test_values_of_another_table_are_never_guessed(tmp_path: Path) -> None:
    """FLARE22 calls the spleen 3, which is FlareSegment's left kidney."""
    data = layouts.flat(tmp_path / "data", ("a",))
    labels = layouts.ct_and_labels(0)[1]
    values = np.array([0, *(organ.flare22_label for organ in ORGANS)], np.uint8)
    layouts.write(tmp_path / "predictions/a.nii.gz", values[labels])
    cases = find_cases(data)
    with pytest.raises(InputError, match="label value 13 .* --prediction-label-map"):
        evaluate_cases(
            cases, FolderPredictor(tmp_path / "predictions"), ORGANS, tmp_path / "out", None, say=lambda line: None
        )
    (tmp_path / "predictions/labels.json").write_text(
        json.dumps({str(organ.flare22_label): organ.key for organ in ORGANS})
    )
    found = evaluate_cases(
        cases, FolderPredictor(tmp_path / "predictions"), ORGANS, tmp_path / "out2", None, say=lambda line: None
    )
    assert found.cases["a"]["organs"]["spleen"]["dice"] == 1.0


def test_predictions_of_an_evaluation_can_be_evaluated(data: Path, tmp_path: Path) -> None:
    first = evaluated(data, tmp_path / "out")
    predictor = FolderPredictor(tmp_path / "out/predictions")
    assert len(predictor.organs) == 13
    again = evaluate_cases(find_cases(data), predictor, ORGANS, tmp_path / "again", None, say=lambda line: None)
    assert {name: record["organs"] for name, record in again.cases.items()} == {
        name: record["organs"] for name, record in first.cases.items()
    }
    with pytest.raises(InputError, match="something else"):
        evaluate_cases(find_cases(data), FolderPredictor(data), ORGANS, tmp_path / "again", None, say=print)


def test_a_folder_that_a_killed_evaluation_had_just_made_is_taken(data: Path, tmp_path: Path) -> None:
    """Killed before it had said whose the folder is, it would not go on for ever."""
    for name in ("cases", "pictures", "predictions"):
        (tmp_path / "out" / name).mkdir(parents=True)
    (tmp_path / "out" / "cases" / ".saving-123-subject.json").write_text("{")
    assert set(evaluated(data, tmp_path / "out").cases) == {"a", "b", "c"}
    (tmp_path / "strange" / "cases").mkdir(parents=True)
    (tmp_path / "strange" / "cases" / "mine.json").write_text("{")
    with pytest.raises(InputError, match="not of an evaluation"):
        evaluated(data, tmp_path / "strange")


def test_nothing_in_common_is_one_line(tmp_path: Path) -> None:
    data = layouts.flat(tmp_path / "data", ("a",))
    predictor = FolderPredictor(data, LABEL_MAPS["msd-pancreas"])
    with pytest.raises(InputError, match="Nothing can be measured"):
        organs_to_measure(predictor, find_cases(data), None)
    with pytest.raises(InputError, match="no folder"):
        FolderPredictor(tmp_path / "missing", LABEL_MAPS["flare22"])


# Models --------------------------------------------------------------------------------------------


def test_a_models_identity_is_its_weights_and_its_description(tmp_path: Path) -> None:
    import torch

    from FlareSegmentLib.model.description import ModelDescription, Stage
    from FlareSegmentLib.model.intensity import Intensity
    from FlareSegmentLib.model.model_file import save_model
    from FlareSegmentLib.networks.vnet import build_network

    network = {
        "architecture": "vnet", "out_channels": 3, "base_channels": 4, "kernel_size": 3, "encoder_convolutions": [1, 1],
        "decoder_convolutions": [1], "normalization": "batch",
    }  # fmt: skip
    stage = Stage("only", "volume", network, spacing_mm=(6.0, 6.0, 6.0))
    identities = []
    for number, (seed, upper) in enumerate(((1, 240.0), (1, 240.0), (2, 240.0), (1, 250.0))):
        torch.manual_seed(seed)
        description = ModelDescription(
            "tiny", "1", "Apache-2.0", {1: "liver", 2: "spleen"}, Intensity(-160.0, upper), (stage,)
        )
        save_model(tmp_path / str(number), description, {"only": build_network(network)})
        identities.append(ModelPredictor(tmp_path / str(number), "cpu").identity)
    assert len(set(identities)) == 3
    data = layouts.flat(tmp_path / "data", ("a",))
    predictor = ModelPredictor(tmp_path / "0", "cpu")
    organs = organs_to_measure(predictor, find_cases(data), None)
    assert organs == (LIVER, SPLEEN)
    found = evaluate_cases(find_cases(data), predictor, organs, tmp_path / "out", None, say=lambda line: None)
    assert found.name == "tiny 1" and set(found.cases["a"]["organs"]) == {"liver", "spleen"}


# Comparison ----------------------------------------------------------------------------------------


def record(dice: float | None, hd95: float | None = 1.0, volume: float = 0.0, reference: str = "r") -> dict:
    row = {"dice": dice, "nsd": dice, "hd95_mm": hd95, "volume_error_percent": volume, "status": "measured"}
    return {"reference_sha256": reference, "organs": {"liver": row}}


def test_paired_differences() -> None:
    ours = {str(n): record(0.9 + 0.01 * n, 2.0, -3.0) for n in range(5)}
    theirs = {str(n): record(0.8 + 0.01 * n, 3.0, 2.0) for n in range(5)}
    found, left_out = comparison.compare(ours, theirs, [LIVER])
    dice = found["liver"]["dice"]
    assert left_out == [] and dice["cases"] == 5 and (dice["better"], dice["worse"]) == (5, 0)
    # The same difference in every case: the interval is that one number.
    assert [dice[field] for field in ("difference", "low", "high")] == pytest.approx([0.1, 0.1, 0.1])
    assert (found["liver"]["hd95_mm"]["difference"], found["liver"]["hd95_mm"]["better"]) == (-1.0, 5)
    volume = found["liver"]["volume_error_percent"]
    assert (volume["mean"], volume["difference"], volume["worse"]) == (3.0, 1.0, 5)


def test_only_the_same_cases_with_the_same_reference_are_compared() -> None:
    ours = {"a": record(0.9), "b": record(0.9), "c": record(None, None), "d": record(0.5, None)}
    theirs = {"a": record(0.8), "b": record(0.8, reference="other"), "c": record(0.8), "d": record(0.4), "e": record(1)}
    found, left_out = comparison.compare(ours, theirs, [LIVER, SPLEEN])
    assert left_out == ["b"]
    assert found["liver"]["dice"]["cases"] == 2 and found["liver"]["hd95_mm"]["cases"] == 1
    assert found["liver"]["dice"]["low"] is None
    assert found["spleen"] == dict.fromkeys(comparison.COMPARED)


def test_the_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(5)
    trials, hits = 200, 0
    for _ in range(trials):
        low, high = comparison.bootstrap_interval(generator.normal(0.02, 0.05, 40))
        hits += low <= 0.02 <= high
    assert 0.88 <= hits / trials <= 0.99


def test_the_interval_is_the_same_every_time() -> None:
    values = np.random.default_rng(1).normal(size=10).tolist()
    assert comparison.bootstrap_interval(values) == comparison.bootstrap_interval(values)
    low, high = comparison.bootstrap_interval(values)
    assert low < np.mean(values) < high
    assert comparison.bootstrap_interval(values[:2]) == (None, None)


def test_every_organ_has_a_tolerance_that_is_told() -> None:
    found = evaluation.Evaluation("model", "x", "y", FLARE22_ORGANS, {}, []).content()["organs"]
    assert {key: entry["nsd_mm"] for key, entry in found.items()} == {
        organ.key: organ_by_key(organ.key).nsd_tolerance_mm for organ in FLARE22_ORGANS
    }


def test_a_model_or_its_run_says_what_it_was_trained_on(tmp_path: Path) -> None:
    model = tmp_path / "run" / "best"
    model.mkdir(parents=True)
    listed = {"training_cases": ["a"], "validation_cases": ["b"]}
    assert roles.roles_of_cases(model, listed) == {"a": "trained on", "b": "validated on"}
    counted = {"training_cases": 1, "validation_cases": 1}
    assert roles.roles_of_cases(model, counted) is None
    (model.parent / "split.json").write_text("damaged")
    assert roles.roles_of_cases(model, counted) is None
    Split(("c",), ("d", "c"), "by hand").write(model.parent)
    assert roles.roles_of_cases(model, counted) == {"c": "trained on", "d": "validated on"}
    assert roles.roles_of_cases(model, listed)["a"] == "trained on"  # the model's own words count first


def test_the_bundled_model_knows_its_cases() -> None:
    facts = read_description(bundled_model_folder()).facts
    model = ModelPredictor(bundled_model_folder())
    assert {model.role_of(case) for case in facts["training_cases"]} == {"trained on"}
    assert {model.role_of(case) for case in facts["validation_cases"]} == {"validated on"}
    assert model.role_of("nobody's") == "new"


@pytest.mark.parametrize("inner", ["", "segmentations"])
def test_a_folder_of_masks_for_each_case_is_measured(data: Path, tmp_path: Path, inner: str) -> None:
    cases = find_cases(data)
    for case in cases:
        truth = case.read()[1]
        for organ in ORGANS[:3]:
            mask = (truth == organ.label).astype(np.uint8)
            layouts.write(tmp_path / "masks" / case.name / inner / f"{organ.key}.nii.gz", 255 * mask)
        (tmp_path / "masks" / case.name / inner / "bladder.nii.gz").write_bytes(b"not wanted")
    predictor = FolderPredictor(tmp_path / "masks")
    before = predictor.identity_of("b")
    result = evaluate_cases(cases, predictor, ORGANS, tmp_path / "out", None, say=lambda line: None)
    for record in result.cases.values():
        states = [record["organs"][key]["status"] for key in KEYS]
        assert states == ["measured", "measured", "measured", "missed"]
        assert record["organs"]["liver"]["dice"] == 1.0
    assert predictor.folder.meanings() == ["label values by names of the masks: 1 liver, 2 right kidney, 3 left kidney"]
    assert organs_not_found(predictor, cases) == ["spleen"]
    spleen = tmp_path / "masks/a" / inner / "spleen.nii.gz"
    layouts.write(spleen, np.zeros(layouts.SHAPE, np.uint8))
    again = evaluate_cases(cases, FolderPredictor(tmp_path / "masks"), ORGANS, tmp_path / "again", None, say=print)
    lacking = "Its prediction names no spleen, which counts as not found"
    assert [lacking in record["warnings"] for record in again.cases.values()] == [False, True, True]
    spleen.unlink()
    layouts.write(tmp_path / "masks/b" / inner / "liver.nii.gz", np.zeros(layouts.SHAPE, np.uint8))
    assert predictor.identity_of("b") != before
    with pytest.raises(InputError, match="a mask for each organ, which their names tell apart"):
        FolderPredictor(tmp_path / "masks", LABEL_MAPS["btcv"])
    references = find_references(tmp_path / "masks", None, lambda item: None)
    assert [reference.name for reference in references] == ["a", "b", "c"]
    np.testing.assert_array_equal(references[0].read()[1], np.where(cases[0].read()[1] <= 3, cases[0].read()[1], 0))
