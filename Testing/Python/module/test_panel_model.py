"""The panel with the real engine: first any networks, then the bundled model on the phantom and on a real CT."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from panel_driver import Panel, process_id, segmentations

from FlareSegmentLib.organs import ORGANS


@pytest.fixture
def panel(slicer_app, load_module, repository):
    import slicer

    load_module(repository / "FlareSegment" / "FlareSegment.py")
    module = sys.modules["FlareSegment"]
    bundled = module.MODEL_FOLDER
    slicer.util.selectModule("FlareSegment")
    slicer_app.processEvents()
    widget = slicer.util.getModuleWidget("FlareSegment")
    yield Panel(slicer_app, module, widget)
    module.MODEL_FOLDER = bundled
    widget.logic.close()
    widget._showMessage("")


@pytest.fixture(scope="module")
def untrained_model(tmp_path_factory):
    """A model folder with small networks of fixed random weights: its labels mean nothing, but are always the same."""
    import torch

    from FlareSegmentLib.model.description import ModelDescription, Stage
    from FlareSegmentLib.model.intensity import Intensity
    from FlareSegmentLib.model.model_file import save_model
    from FlareSegmentLib.networks.vnet import build_network

    network = {
        "architecture": "vnet",
        "out_channels": 5,
        "base_channels": 4,
        "kernel_size": 3,
        "encoder_convolutions": [1, 1, 1],
        "decoder_convolutions": [1, 1],
        "normalization": "batch",
    }
    stages = (
        Stage("coarse", "volume", network, spacing_mm=(6.0, 6.0, 6.0)),
        Stage("fine", "organs", network, spacing_mm=(3.0, 3.0, 3.0), margin_mm=20.0),
    )
    labels = {organ.label: organ.key for organ in ORGANS}
    description = ModelDescription("untrained", "1", "Apache-2.0", labels, Intensity(-160.0, 240.0), stages)
    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("untrained")
    save_model(folder, description, {stage.name: build_network(network) for stage in stages})
    return folder


def add_phantom():
    import slicer

    from FlareSegmentLib.phantom.torso import make_phantom

    volume, _labels = make_phantom(3)
    node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name="Torso phantom")
    show(node)
    return node


def show(node):
    import slicer

    node.CreateDefaultDisplayNodes()
    node.GetDisplayNode().SetAutoWindowLevel(False)
    node.GetDisplayNode().SetWindowLevel(400, 40)
    slicer.util.setSliceViewerLayers(background=node, fit=True)


def labels_in_scene(node, ct):
    """The segmentation's labels on the grid of the CT, with the values of `organs`."""
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    merged = np.zeros(slicer.util.arrayFromVolume(ct).shape, np.uint8)
    for key, segment_id in segmentation_nodes.organ_segments(node).items():
        label = next(organ.label for organ in ORGANS if organ.key == key)
        merged[slicer.util.arrayFromSegmentBinaryLabelmap(node, segment_id, ct) > 0] = label
    return merged


def test_the_panel_gives_the_labels_of_the_engine(panel, untrained_model):
    from FlareSegmentLib.inference.pipeline import Segmenter
    from FlareSegmentLib.model.model_file import load_model
    from FlareSegmentSlicerLib.scene.segmentation_nodes import volume_from_node

    ct = add_phantom()
    panel.use(untrained_model)
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: not panel.logic.isRunning, 300)
    (node,) = segmentations()
    expected = Segmenter(load_model(untrained_model), device="cpu").segment(volume_from_node(ct)).labels
    np.testing.assert_array_equal(labels_in_scene(node, ct), expected)
    assert [row[0] for row in panel.table] == [organ.name for organ in ORGANS]


def test_cancelling_the_engine_takes_effect_at_once(panel, untrained_model):
    import time

    add_phantom()
    panel.use(untrained_model)
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: panel.ui.progressBar.value > 0, 300)
    start = time.monotonic()
    panel.click(panel.ui.segmentButton)
    assert time.monotonic() - start < 0.5
    assert not panel.logic.isRunning
    assert not segmentations()
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: not panel.logic.isRunning, 300)
    assert len(segmentations()) == 1


def test_the_engine_killed_in_mid_run(panel, untrained_model):
    add_phantom()
    panel.use(untrained_model)
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: panel.ui.progressBar.value > 0, 300)
    os.kill(process_id(panel.logic._worker), 9)
    panel.until(lambda: not panel.logic.isRunning)
    assert "worker process" in panel.message
    assert not segmentations()


def test_a_missing_model_is_one_clear_line(panel, tmp_path):
    add_phantom()
    panel.use(tmp_path / "nothing")
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: not panel.logic.isRunning, 60)
    assert "model.json" in panel.message
    assert "\n" not in panel.message


def test_a_volume_that_is_no_ct_is_one_clear_line(panel, untrained_model):
    import slicer

    slicer.util.addVolumeFromArray(np.full((30, 30, 30), 7, np.int16), name="Not a CT")
    panel.use(untrained_model)
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: not panel.logic.isRunning, 60)
    assert panel.message
    assert not segmentations()


def test_the_bundled_model_through_the_module_self_test(panel):
    import slicer

    slicer.selfTests["FlareSegment"]()
    assert len(segmentations()) == 1


@pytest.mark.slow
@pytest.mark.real_ct
def test_from_a_real_ct_to_organs_in_3d_by_clicks(panel, flare_data, screenshots):
    """Load, click Segment, see: the organs agree with the reference, stand on the right side and in the pictures."""
    import SimpleITK as sitk
    import slicer

    from FlareSegmentLib.measures.metrics import dice
    from FlareSegmentSlicerLib.scene import segmentation_nodes

    case = flare_data / "val" / "matrad_pat001"
    ct = slicer.util.loadVolume(f"{case}_ct.nii.gz")
    show(ct)
    panel.click(panel.ui.segmentButton)
    panel.until(lambda: panel.ui.progressBar.value > 20, 120)
    panel.grab(screenshots / "panel_real_ct_running.png")
    panel.until(lambda: not panel.logic.isRunning, 300)
    (node,) = segmentations()
    assert segmentation_nodes.is_shown_in_3d(node)
    for view in ("Red", "Yellow", "Green"):
        slicer.app.layoutManager().sliceWidget(view).sliceLogic().FitSliceToBackground()
    bounds = [0.0] * 6
    node.GetRASBounds(bounds)
    slicer.vtkMRMLSliceNode.JumpAllSlices(
        slicer.mrmlScene, *((bounds[2 * axis] + bounds[2 * axis + 1]) / 2 for axis in range(3))
    )
    panel.grab(screenshots / "panel_real_ct_done.png")
    reference = sitk.GetArrayFromImage(sitk.ReadImage(f"{case}_labels.nii.gz"))
    found = labels_in_scene(node, ct)
    scores = {organ.key: dice(found == organ.label, reference == organ.label) for organ in ORGANS}
    print(scores)
    assert np.mean(list(scores.values())) >= 0.75, scores
    rows = {row[0]: float(row[1]) for row in panel.table}
    volume_ml = float(np.prod(ct.GetSpacing())) / 1000
    for organ in ORGANS:
        assert rows[organ.name] == pytest.approx((found == organ.label).sum() * volume_ml, abs=0.06)


def test_no_file_of_the_model_is_read_in_slicers_own_process(repository):
    """torch stays out of Slicer's process: opening the module and segmenting imports it in the worker only."""
    import subprocess

    code = (
        "import sys; sys.path[:0] = ['FlareSegment', 'Testing']\n"
        "from slicerhost import boot; boot(main_window=True)\n"
        "from slicerhost.scripted_modules import load_scripted_module as load\n"
        "load('FlareSegment/FlareSegment.py')\n"
        "import slicer; slicer.util.selectModule('FlareSegment')\n"
        "heavy = {'torch', 'nibabel', 'monai'} & set(sys.modules)\n"
        "slicer.util.getModuleWidget('FlareSegment').cleanup()\n"
        "import os; print(heavy, flush=True); os._exit(len(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
