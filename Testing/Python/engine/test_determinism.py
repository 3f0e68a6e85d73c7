"""The same CT and model give the same labels: again and again, from the engine, the worker, the script and the panel.

FLARE_RUNS sets how often the engine repeats it (default 20). FLARE_PRECISION=1 compares bfloat16 with float32 on real
CTs too, for as many as it says; on a CPU that computes bfloat16 slowly that takes minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from bad_input import ct_array, ct_image, save
from test_panel_model import panel, show, untrained_model  # noqa: F401  fixtures
from test_worker import Client, prepared, received_labels

from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume
from FlareSegmentLib.worker.protocol import Result
from FlareSegmentLib.worker.shared_files import shared_folders

RUNS = int(os.environ.get("FLARE_RUNS", "20"))
REAL_CTS = int(os.environ.get("FLARE_PRECISION", "0"))
LEAST_DICE = 0.995


@pytest.fixture(scope="module")
def ct(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT with something of every class for networks of random weights: noise in and around a body."""
    rng = np.random.default_rng(0)
    image = ct_image((ct_array() + rng.normal(0, 120, ct_array().shape)).astype(np.int16))
    image.SetSpacing((7.0, 7.0, 8.0))
    return save(tmp_path_factory.mktemp("ct") / "ct.nrrd", image)


def test_twenty_runs_are_one(ct: Path, untrained_model: Path, figures: dict[str, str]) -> None:  # noqa: F811
    """One segmenter again and again, every second time a new one."""
    volume = read_volume(ct)[0]
    segmenter = Segmenter(load_model(untrained_model), "cpu", 1)
    first = segmenter.segment(volume).labels
    assert len(np.unique(first)) > 2
    different = 0
    for number in range(RUNS - 1):
        again = segmenter if number % 2 else Segmenter(load_model(untrained_model), "cpu", 1)
        different += not np.array_equal(again.segment(volume).labels, first)
    figures["Determinism"] = f"{RUNS} runs of the engine, {different} with other labels"
    assert different == 0


def agreement(volume: Volume) -> dict[str, float]:
    """{organ: Dice of the bundled model's labels in bfloat16 with those in float32}, for the organs of either."""
    model = load_model(bundled_model_folder())
    exact, fast = (
        Segmenter(model, "cpu", precision=precision).segment(volume) for precision in ("float32", "bfloat16")
    )
    both = {organ.key: (exact.labels == organ.label, fast.labels == organ.label) for organ in exact.organs}
    return {key: dice(*masks) for key, masks in both.items() if masks[0].any() or masks[1].any()}


def in_words(scores: dict[str, float]) -> str:
    return ", ".join(f"{key} {value:.4f}" for key, value in scores.items())


def test_bfloat16_gives_the_labels_of_float32(figures: dict[str, str]) -> None:
    """On the phantom, with the bundled model; a CPU without instructions for bfloat16 computes the same, slowly."""
    scores = agreement(make_phantom()[0])
    figures["Dice of bfloat16 with float32 on the phantom"] = in_words(scores)
    assert len(scores) >= 3
    assert min(scores.values()) >= LEAST_DICE, scores


@pytest.mark.real_ct
@pytest.mark.slow
@pytest.mark.skipif(not REAL_CTS, reason="minutes on a CPU that computes bfloat16 slowly: set FLARE_PRECISION")
def test_bfloat16_gives_the_labels_of_float32_on_real_cts(flare_data: Path, figures: dict[str, str]) -> None:
    found = {}
    for path in sorted((flare_data / "val").glob("*_ct.nii.gz"))[:REAL_CTS]:
        found[path.name] = agreement(read_volume(path)[0])
        figures[f"Dice of bfloat16 with float32 on {path.name}"] = in_words(found[path.name])
    assert found
    assert all(scores and min(scores.values()) >= LEAST_DICE for scores in found.values()), found


def test_engine_worker_script_and_panel_agree(
    ct: Path,
    untrained_model: Path,  # noqa: F811
    panel,  # noqa: F811
    segment_script,
    tmp_path: Path,
) -> None:
    import slicer

    volume = read_volume(ct)[0]
    engine = Segmenter(load_model(untrained_model), "cpu").segment(volume).labels
    client = Client()
    try:
        with shared_folders() as folder:
            request = prepared(1, volume, folder, untrained_model, "cpu")
            client.send(request)
            worker = received_labels(volume, client.wait(Result)[0])
    finally:
        client.process.kill()
        client.process.wait()
    np.testing.assert_array_equal(worker, engine)

    arguments = [ct, "--model", untrained_model, "--device", "cpu", "--output", tmp_path / "results"]
    assert segment_script.main([str(argument) for argument in arguments]) == 0
    script = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "results" / "ct_labels.nii.gz")))
    np.testing.assert_array_equal(script, engine)

    node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras)
    show(node)
    panel.ui.inputSelector.setCurrentNode(node)
    panel.use(untrained_model)
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: not panel.logic.isRunning, seconds=300)
    assert panel.message.startswith("Done"), panel.message
    segmentation = panel.ui.outputSelector.currentNode()
    from test_panel_model import labels_in_scene

    np.testing.assert_array_equal(labels_in_scene(segmentation, node), engine)
