"""The engine's label maps of real CTs are those that were recorded: what was not meant to change a result did not.

`label_maps.json` holds facts of each case alone: the label map's SHA-256, its voxels by label value, and for some the
Dice of each organ with the case's reference. Label maps are compared exactly where the processor and PyTorch compute
the networks as those of the record did, to the last bit, which a fingerprint of both networks' output tells. Elsewhere
sums of floating point numbers are rounded in another order, and voxels at an organ's surface fall to one side or the
other; there the numbers must agree within a tolerance.

FLARE_LABEL_MAPS=all compares all cases instead of a few, FLARE_LABEL_MAPS=record writes the file anew (with
`-o faulthandler_timeout=0`, as it is one long test).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.organs import ORGANS

RECORD = Path(__file__).with_name("label_maps.json")
FEW = ("btcv0026", "kits00072_slab", "small_fov_spine", "tight_crop_aorta")
CASES = os.environ.get("FLARE_LABEL_MAPS", "few")
RECORDED = json.loads(RECORD.read_text(encoding="utf-8"))
VOXELS_OFF = 0.003  # of an organ's voxels, and this many
FEW_VOXELS = 20
DICE_OFF = 0.002
pytestmark = [pytest.mark.real_ct, pytest.mark.slow]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(load_model(bundled_model_folder()), "cpu", threads=1, precision="float32")


def fingerprint(segmenter: Segmenter) -> str:
    """SHA-256 of what the networks make of one image of noise."""
    image = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (48, 48, 64)).astype(np.float32))
    digest = hashlib.sha256()
    with torch.inference_mode():
        for stage in segmenter.model.description.stages:
            digest.update(segmenter._network(stage)(image, lambda fraction: None).numpy().tobytes())
    return digest.hexdigest()


def facts(segmenter: Segmenter, path: Path) -> dict:
    """What is recorded of a case."""
    try:
        labels = segmenter.segment(read_volume(path)[0]).labels
    except FlareSegmentError as error:
        return {"error": str(error).replace(str(path), path.name)}
    found = {
        "sha256": hashlib.sha256(labels.tobytes()).hexdigest(),
        "voxels": np.bincount(labels.ravel(), minlength=len(ORGANS) + 1).tolist(),
    }
    reference = path.with_name(path.name.replace("_ct.", "_labels."))
    if reference.exists():
        truth = read_labels(reference).array
        found["dice"] = [round(dice(labels == organ.label, truth == organ.label), 4) for organ in ORGANS]
    return found


@pytest.mark.skipif(CASES != "record", reason="FLARE_LABEL_MAPS=record writes the record anew")
def test_record(flare_data: Path, segmenter: Segmenter) -> None:
    paths = sorted(flare_data.glob("*/*_ct.nii.gz"))
    cases = {path.name.removesuffix("_ct.nii.gz"): facts(segmenter, path) for path in paths}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(fact)}" for name, fact in cases.items())
    RECORD.write_text(f'{{"fingerprint": "{fingerprint(segmenter)}",\n"cases": {{\n{lines}\n}}}}\n', encoding="utf-8")


@pytest.mark.skipif(CASES == "record", reason="the record is written anew")
@pytest.mark.parametrize("name", RECORDED["cases"] if CASES == "all" else FEW)
def test_a_label_map_is_that_of_the_record(
    name: str, flare_data: Path, segmenter: Segmenter, figures: dict[str, str]
) -> None:
    exact = RECORDED["fingerprint"] == fingerprint(segmenter)
    figures[f"Label map of {name} as recorded"] = "to the last voxel" if exact else "within the tolerance"
    (path,) = flare_data.glob(f"*/{name}_ct.nii.gz")
    expected, found = RECORDED["cases"][name], facts(segmenter, path)
    if exact or "error" in expected:
        assert {key: found.get(key) for key in expected} == expected
        return
    for old, new in zip(expected["voxels"], found["voxels"], strict=True):
        assert abs(old - new) <= FEW_VOXELS + VOXELS_OFF * old, (expected["voxels"], found["voxels"])
    if "dice" in expected:
        np.testing.assert_allclose(found["dice"], expected["dice"], atol=DICE_OFF)
