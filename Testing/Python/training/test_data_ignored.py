"""Voxels that nobody looked at (nnU-Net's label "ignore") are carried from the data set to the loss and the figures,
and count nowhere.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import data_layouts as layouts
import numpy as np
import pytest
import SimpleITK
import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels
from FlareSegmentLib.model.description import Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.augmentation.changed_cases import change_case
from FlareSegmentTrainingLib.augmentation.labeled_scan import LabeledScan
from FlareSegmentTrainingLib.augmentation.patches import Cut, sample_patches
from FlareSegmentTrainingLib.augmentation.settings import AugmentationSettings
from FlareSegmentTrainingLib.datasets.cases import find_cases, label_maps_in_use
from FlareSegmentTrainingLib.datasets.conversion import Settings, convert_cases
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED, label_map_of_names, parse_label_map
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase, prepare_case, slabs_of
from FlareSegmentTrainingLib.dicom.volume_sources import find_sources
from FlareSegmentTrainingLib.evaluation.figures import measure
from FlareSegmentTrainingLib.evaluation.measurements import evaluate_cases
from FlareSegmentTrainingLib.evaluation.predictors import FolderPredictor
from FlareSegmentTrainingLib.synthesis.made_cases import SyntheticCase, deformed_cases
from FlareSegmentTrainingLib.training.configuration import LossSettings
from FlareSegmentTrainingLib.training.losses import deeply_supervised_loss, segmentation_loss
from FlareSegmentTrainingLib.training.trainer import StageTrainer

KEYS = tuple(organ.key for organ in ORGANS)
WINDOW = Intensity(-200.0, 300.0)
LOOKED_AT = np.s_[:, :, :12]
NETWORK = {"architecture": "vnet", "base_channels": 4, "kernel_size": 3, "encoder_convolutions": [1, 1]}


def partly(truth: np.ndarray, value: int) -> np.ndarray:
    """The labels with everything beyond `LOOKED_AT` to be ignored."""
    result = np.full_like(truth, value)
    result[LOOKED_AT] = truth[LOOKED_AT]
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """nnU-Net's raw data of two cases, whose labels are FlareSegment's; of case_0001 only the half was looked at."""
    folder = layouts.nnunet(tmp_path / "data", 2)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "abdomen": [1, 2, 3, 4], **{key: n for n, key in enumerate(KEYS, 1)},
                         "ignore": 5}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    for number in range(2):
        truth = layouts.ct_and_labels(number)[1]
        layouts.write(folder / f"labelsTr/case_{number:04d}.nii.gz", partly(truth, 5) if number else truth)
    return folder


def test_they_are_read_and_named(data: Path) -> None:
    whole, half = find_cases(data)
    truth = layouts.ct_and_labels(1)[1]
    np.testing.assert_array_equal(half.read()[1], partly(truth, IGNORED))
    assert IGNORED not in whole.read()[1]
    assert "5 ignored" in label_maps_in_use([half], [data])[0]
    changed = parse_label_map("1=liver,2=right_kidney,3=left_kidney,4=spleen,5=other")
    assert half.content_hash() != find_cases(data, label_map=changed)[1].content_hash()
    np.testing.assert_array_equal(
        parse_label_map("1=liver,9=ignore").apply(np.array([0, 1, 9])), np.array([0, 1, IGNORED])
    )
    with pytest.raises(InputError, match="value 1 is to be ignored and means a structure too"):
        label_map_of_names("x", {"liver": 1, "ignore": 1})


def test_a_case_of_which_nothing_counts_is_left_out(data: Path) -> None:
    layouts.write(data / "labelsTr/case_0001.nii.gz", np.where(layouts.ct_and_labels(1)[1] > 0, 5, 0).astype(np.uint8))
    with pytest.raises(InputError, match="hold none of the organs"):
        find_cases(data)[1].read()


@pytest.mark.parametrize("layers", [False, True])
def test_a_segment_called_ignore(tmp_path: Path, layers: bool) -> None:
    ct, truth = layouts.ct_and_labels(0)
    unseen = partly(truth, IGNORED) == IGNORED
    array = np.stack([truth == 1, unseen], axis=-1) if layers else np.where(unseen, 2, truth == 1)
    image = SimpleITK.GetImageFromArray(array.astype(np.uint8), isVector=layers)
    image.SetSpacing(layouts.SPACING)
    image.SetOrigin((-30.0, -25.0, 100.0))
    for number, name in enumerate(("Liver", "ignore")):
        values = {"Name": name, "LabelValue": 1 if layers else number + 1, "Layer": number if layers else 0}
        for field, value in values.items():
            image.SetMetaData(f"Segment{number}_{field}", str(value))
    layouts.write(tmp_path / "images/a.nrrd", ct)
    (tmp_path / "labels").mkdir()
    SimpleITK.WriteImage(image, str(tmp_path / "labels/a.seg.nrrd"))
    (case,) = find_cases(tmp_path)
    np.testing.assert_array_equal(case.read()[1], np.where(unseen, IGNORED, truth == 1))


def test_prepared_cases_keep_them(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    output = tmp_path / "out"
    convert_cases(find_cases(data), output, Settings(ORGANS, label_ids="flare22", keep_names=True), say=said.append)
    meaning = json.loads((output / "labels.json").read_text())
    assert meaning["255"] == "ignore" and meaning["13"] == "left_kidney"
    assert any("case_0001 taken" in line and "mL to be ignored" in line for line in said)
    stored = read_labels(output / "case_0001_labels.nii.gz").array
    assert (stored == IGNORED).sum() == math.prod(layouts.SHAPE) // 2
    whole, half = find_cases(output)
    np.testing.assert_array_equal(half.read()[1], partly(layouts.ct_and_labels(1)[1], IGNORED))
    assert IGNORED not in whole.read()[1]
    # the left kidney lies in what nobody looked at: that it is absent, nobody knows
    quality = json.loads((output / "quality.json").read_text())["case_0001"]
    assert quality["left_kidney"]["volume_ml"] == 0 and "grade" not in quality["left_kidney"]
    convert_cases(find_cases(data), output, Settings(ORGANS, label_ids="flare22", keep_names=True), say=said.append)
    assert json.loads((output / "labels.json").read_text()) == meaning
    with pytest.raises(InputError, match="case_0001: its labels hold voxels to be ignored"):
        [source.read() for source in find_sources([output], dicom=False)]


def test_the_grid_of_a_stage_keeps_them(data: Path) -> None:
    _, half = find_cases(data)
    same = prepare_case(half, Stage("a", NETWORK, "volume", layouts.SPACING, None), WINDOW, KEYS)
    np.testing.assert_array_equal(same.labels.numpy(), partly(layouts.ct_and_labels(1)[1], IGNORED))
    assert len(same.organ_voxels) == len(set(np.unique(same.labels)) - {0, IGNORED})
    coarse = prepare_case(half, Stage("a", NETWORK, "volume", (6.0, 5.0, 8.0), None), WINDOW, KEYS).labels.numpy()
    middle = coarse.shape[2] // 2
    assert (coarse[:, :, middle:] == IGNORED).all() and (coarse[:, :, : middle - 1] != IGNORED).all()


def test_slabs_lie_at_organs_not_at_what_nobody_looked_at() -> None:
    labels = torch.full((40, 8, 8), IGNORED, dtype=torch.uint8)
    labels[10:20] = 1
    case = PreparedCase("a", torch.zeros(labels.shape), labels, (10.0, 10.0, 10.0), {"liver": 1.0}, [], 1.0)
    assert all((slab.labels == 1).any() for slab in slabs_of(case, 50.0))


def test_patches_and_changed_cases_keep_them() -> None:
    generator = np.random.default_rng(1)
    labels = torch.zeros((32, 40, 48), dtype=torch.uint8)
    labels[10:22, 10:24, 6:18] = 2
    labels[:, :, 30:] = IGNORED
    image = torch.from_numpy(generator.normal(0.0, 0.1, labels.shape).astype(np.float32))
    every = {f"{name}_probability": 1.0 for name in ("phase", "elastic", "noise", "perirenal_fat", "mass",
                                                     "other_mass", "bowel")}  # fmt: skip
    settings = AugmentationSettings(rotation_degrees=(10.0, 10.0, 10.0), elastic_mm=4.0, **every)
    cuts = [
        Cut(image, labels, (3.0, 3.0, 3.0), np.array([16.0, 20.0, 24.0]), np.random.default_rng(seed))
        for seed in range(3)
    ]
    images, truths = sample_patches(cuts, (24, 32, 40), KEYS, WINDOW, settings)
    assert torch.isfinite(images).all()
    assert set(truths.unique().tolist()) == {0, 2, IGNORED}
    assert (truths[:, :, :, -3:] == IGNORED).float().mean() > 0.8
    _, changed = change_case(
        LabeledScan(image, labels, (3.0, 3.0, 3.0), KEYS, WINDOW, np.random.default_rng(0)), settings
    )
    assert set(changed.unique().tolist()) == {0, 2, IGNORED}
    assert (changed == IGNORED).sum() > 0.9 * (labels == IGNORED).sum()


@pytest.mark.parametrize("settings", [LossSettings(), LossSettings(dice=0.0), LossSettings(dice_denominator="sum")])
def test_the_loss_does_not_see_them(settings: LossSettings) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 6, 6, 6, generator=generator, requires_grad=True)
    labels = torch.randint(0, 4, (2, 6, 6, 6), generator=generator).to(torch.uint8)
    labels[:, :, :, 3:] = IGNORED
    weights = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.5, 1.0]])
    loss = segmentation_loss(logits, labels, weights, settings)
    # that of the part that was looked at
    part = segmentation_loss(logits[..., :3].contiguous(), labels[..., :3], weights, settings)
    assert loss.item() == pytest.approx(part.item(), rel=1e-5)
    loss.backward()
    assert torch.isfinite(logits.grad).all() and not logits.grad[..., 3:].any() and logits.grad[..., :3].any()
    nothing = deeply_supervised_loss([logits], torch.full_like(labels, IGNORED), weights, settings)
    assert nothing.item() == 0.0


def test_validation_does_not_count_them() -> None:
    def network(images: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(1, 3, *images.shape[2:])
        logits[:, 0] = 0.5
        logits[:, 1, :3] = logits[:, 2, 3] = 1.0  # liver in slices 0 to 2, spleen in slice 3
        return logits

    network.multiple = 1
    labels = torch.zeros(4, 10, 10, dtype=torch.uint8)
    labels[:2] = 1
    labels[2:] = IGNORED
    case = PreparedCase("a", torch.zeros(4, 10, 10), labels, (10.0, 10.0, 10.0), {"liver": 1.0, "spleen": 1.0}, [], 1.0)
    trainer = SimpleNamespace(organs=("liver", "spleen"), _intensity=WINDOW, _device=torch.device("cpu"))
    liver, spleen, *rest = StageTrainer._score(trainer, network, case).tolist()
    assert liver == 1.0 and math.isnan(spleen) and rest == [0.0, 0.0, 200.0, 200.0]


def test_no_measure_counts_them(data: Path, tmp_path: Path) -> None:
    truth = layouts.ct_and_labels(1)[1]
    wrong = partly(truth, 0)
    wrong[:, :, 12:] = 3  # false where nobody looked
    rows = measure(wrong, partly(truth, IGNORED), Volume(truth, layouts.SPACING), ORGANS, KEYS)
    assert rows["liver"]["dice"] == rows["right_kidney"]["dice"] == 1.0
    assert (rows["left_kidney"]["status"], rows["left_kidney"]["false_positive_ml"]) == ("absent", 0.0)

    predictions = tmp_path / "predictions"
    for number in range(2):
        layouts.write(predictions / f"case_{number:04d}.nii.gz", wrong)
    (predictions / "labels.json").write_text(json.dumps({str(organ.label): organ.key for organ in ORGANS}))
    cases = find_cases(data)[1:]
    result = evaluate_cases(cases, FolderPredictor(predictions), ORGANS, tmp_path / "out", None, say=lambda line: None)
    record = result.cases["case_0001"]
    assert record["organs"]["liver"]["dice"] == 1.0 and record["organs"]["left_kidney"]["status"] == "absent"
    assert any("marked to be ignored and not measured" in line for line in record["warnings"])
    stored = read_labels(tmp_path / "out" / record["prediction"]).array
    np.testing.assert_array_equal(stored, wrong)  # the whole prediction

    meaning = {**{str(organ.label): organ.key for organ in ORGANS[:2]}, "3": "ignore", "4": "spleen"}
    (predictions / "labels.json").write_text(json.dumps(meaning))
    with pytest.raises(InputError, match="its prediction: it holds voxels to be ignored"):
        FolderPredictor(predictions).predict("case_0001", cases[0].read()[0])


def test_made_cases_keep_them(tmp_path: Path) -> None:
    labels = np.zeros((24, 30, 36), np.uint8)
    labels[6:16, 6:18, 4:14], labels[6:14, 8:16, 22:30] = 1, 4
    ct = np.where(labels > 0, 60, -50).astype(np.int16)
    layouts.write(tmp_path / "data/a_ct.nii.gz", ct, spacing=(6.0, 6.0, 6.0))
    drawn = labels.copy()
    drawn[:, :3] = 7
    layouts.write(tmp_path / "data/a_labels.nii.gz", drawn, spacing=(6.0, 6.0, 6.0))
    (tmp_path / "data/labels.json").write_text('{"1": "liver", "4": "spleen", "7": "ignore"}')
    layouts.write(tmp_path / "shapes/b.nii.gz", labels, spacing=(6.0, 6.0, 6.0))
    (made,) = deformed_cases(
        find_cases(tmp_path / "data"),
        [tmp_path / "shapes/b.nii.gz"],
        parse_label_map("1=liver,4=spleen"),
        1,
        0,
        6.0,
    )
    assert isinstance(made, SyntheticCase) and set(np.unique(made.labels)) == {0, 1, 4, IGNORED}
    (tmp_path / "out").mkdir()
    made.write(tmp_path / "out")
    (case,) = find_cases(tmp_path / "out")
    np.testing.assert_array_equal(case.read()[1], made.labels)
