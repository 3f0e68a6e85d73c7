"""Scenes as strangers make them: CTs under transforms, references of other numberings, results that were restyled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from panel_driver import add_ct, segmentations

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.organs import ORGANS

pytest_plugins = ("panel_driver",)

MATRIX = np.diag([-5.0, -5.0, 5.0, 1.0])


def transform(matrix, name: str = "Transform"):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", name)
    node.SetMatrixTransformToParent(slicer.util.vtkMatrixFromArray(np.array(matrix, float)))
    return node


def rotation(degrees: float) -> np.ndarray:
    matrix, angle = np.eye(4), np.radians(degrees)
    matrix[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return matrix


@pytest.fixture
def scene(slicer_app):
    import slicer

    slicer.mrmlScene.Clear(False)
    yield slicer
    slicer.mrmlScene.Clear(False)


def pose_under(matrix, ct=None):
    from FlareSegmentSlicerLib.scene.parent_transform import pose_in_scene
    from FlareSegmentSlicerLib.scene.segmentation_nodes import volume_from_node

    ct = ct or add_ct()
    ct.SetAndObserveTransformNodeID(transform(matrix).GetID())
    volume = volume_from_node(ct)
    pose = pose_in_scene(ct, volume)
    return pose, pose.turned(volume), volume


TURNS = {
    "mirror": np.diag([-1.0, 1, 1, 1]),
    "half a turn": np.diag([-1.0, -1, 1, 1]),
    "feet up": np.diag([1.0, -1, -1, 1]),
    "quarter": np.array([[0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    "all axes": np.array([[0, 0, 1, 5], [1, 0, 0, -7], [0, 1, 0, 9], [0, 0, 0, 1.0]]),
}


@pytest.mark.parametrize("name", TURNS)
def test_whole_turns_are_what_the_network_sees(scene, name: str) -> None:
    pose, turned, volume = pose_under(TURNS[name])
    np.testing.assert_allclose(turned.affine_ras[:3, :3], (TURNS[name] @ volume.affine_ras)[:3, :3])
    assert turned.array is volume.array
    (line,) = pose.warnings
    assert "as it lies in the scene" in line


@pytest.mark.parametrize(
    ("matrix", "words"),
    [
        (np.eye(4), []),
        ([[1, 0, 0, 80], [0, 1, 0, -30], [0, 0, 1, 5], [0, 0, 0, 1]], []),
        (rotation(10), []),
        (rotation(30), ["tilts the CT by 30 degrees"]),
        (rotation(100), ["as it lies in the scene"]),
        (np.diag([1.3, 1.3, 1.3, 1]), ["scales the CT by 1.30 to 1.30"]),
        (np.diag([1, 1, -0.5, 1.0]), ["as it lies in the scene", "scales the CT by 0.50 to 1.00"]),
    ],
)
def test_what_else_a_transform_does_is_said(scene, matrix, words: list[str]) -> None:
    pose = pose_under(matrix)[0]
    assert len(pose.warnings) == len(words)
    assert all(word in line for word, line in zip(words, pose.warnings, strict=True))


def test_transforms_add_up_and_bending_is_said(scene) -> None:
    import vtk

    from FlareSegmentSlicerLib.scene.parent_transform import pose_in_scene
    from FlareSegmentSlicerLib.scene.segmentation_nodes import volume_from_node

    slicer = scene
    ct = add_ct()
    spline = vtk.vtkThinPlateSplineTransform()
    source, target = vtk.vtkPoints(), vtk.vtkPoints()
    for x, y, z in ((-300, 0, 0), (0, 0, 0), (0, -250, 0), (0, 0, 200), (-300, -250, 200), (-150, -120, 100)):
        source.InsertNextPoint(x, y, z)
        target.InsertNextPoint(x, y, z + 0.0003 * x * x)
    spline.SetSourceLandmarks(source)
    spline.SetTargetLandmarks(target)
    spline.SetBasisToR()
    bent = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLTransformNode", "bent")
    bent.SetAndObserveTransformToParent(spline)
    bent.SetAndObserveTransformNodeID(transform(TURNS["half a turn"]).GetID())
    ct.SetAndObserveTransformNodeID(bent.GetID())
    pose = pose_in_scene(ct, volume_from_node(ct))
    np.testing.assert_array_equal(pose.turn, TURNS["half a turn"])
    assert any("bends the CT by up to" in line for line in pose.warnings)


@pytest.mark.parametrize("name", ["mirror", "half a turn", "all axes"])
def test_surfaces_come_back_to_the_ct(scene, name: str) -> None:
    import vtk

    pose = pose_under(TURNS[name])[0]
    box = vtk.vtkCubeSource()
    box.SetBounds(10, 30, -50, -20, 100, 160)
    box.Update()
    move = vtk.vtkTransform()
    move.SetMatrix(pose.turn.ravel().tolist())
    turned = vtk.vtkTransformPolyDataFilter()
    turned.SetTransform(move)
    turned.SetInputConnection(box.GetOutputPort())
    turned.Update()
    assert pose.back(turned.GetOutput()).GetBounds() == pytest.approx((10, 30, -50, -20, 100, 160))


@pytest.mark.parametrize("matrix", [TURNS["mirror"], [[1, 0, 0, 100], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]])
def test_all_exports_lie_in_one_coordinate_system(scene, matrix, tmp_path: Path) -> None:
    import vtk

    from FlareSegmentSlicerLib.scene import export
    from FlareSegmentSlicerLib.scene.segmentation_nodes import create_segmentation

    slicer = scene
    z, y, x = np.indices((40, 50, 60))
    truth = ((z - 24) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 81).astype(np.uint8)
    ct = slicer.util.addVolumeFromArray(np.full(z.shape, -1000, np.int16), ijkToRAS=MATRIX, name="CT")
    ct.SetAndObserveTransformNodeID(transform(matrix).GetID())
    node = create_segmentation(ct, truth)
    count = slicer.mrmlScene.GetNumberOfNodes()
    export.export_label_map(node, tmp_path / "labels.nii.gz", {"liver": 1})
    image = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    index = np.argwhere(sitk.GetArrayFromImage(image) == 1).mean(axis=0)[::-1].tolist()
    reader = vtk.vtkSTLReader()
    (stl,) = export.export_surfaces(node, tmp_path, "STL")
    reader.SetFileName(str(stl))
    reader.Update()
    bounds = reader.GetOutput().GetBounds()
    center = [(bounds[0] + bounds[1]) / 2, (bounds[2] + bounds[3]) / 2, (bounds[4] + bounds[5]) / 2]
    np.testing.assert_allclose(center, image.TransformContinuousIndexToPhysicalPoint(index), atol=1)
    assert slicer.mrmlScene.GetNumberOfNodes() == count


def test_the_panel_says_that_the_ct_is_turned(panel) -> None:
    ct = add_ct()
    ct.SetAndObserveTransformNodeID(transform(TURNS["half a turn"], "put right").GetID())
    panel.run()
    assert "put right turns or mirrors the CT" in panel.warning
    assert segmentations()[-1].GetTransformNodeID() == ct.GetTransformNodeID()


def test_a_second_run_keeps_the_users_look(panel) -> None:
    add_ct()
    panel.run()
    node = segmentations()[-1]
    display, segmentation = node.GetDisplayNode(), node.GetSegmentation()
    display.SetSegmentVisibility("liver", False)
    display.SetSegmentOpacity2DFill("spleen", 0.2)
    segmentation.GetSegment("spleen").SetColor(0, 1, 0)
    segmentation.GetSegment("liver").SetName("Leber")
    display.SetVisibility(False)
    panel.run()
    assert not display.GetSegmentVisibility("liver") and display.GetSegmentVisibility("spleen")
    assert display.GetSegmentOpacity2DFill("spleen") == pytest.approx(0.2)
    assert tuple(segmentation.GetSegment("spleen").GetColor()) == (0, 1, 0)
    assert segmentation.GetSegment("liver").GetName() == "Leber"
    assert display.GetVisibility()
    for organ in ORGANS:
        display.SetSegmentVisibility(organ.key, False)
    panel.run()
    assert all(display.GetSegmentVisibility(organ.key) for organ in ORGANS)


def test_the_geometry_of_somebody_elses_segments_is_kept(panel) -> None:
    import slicer

    from FlareSegmentSlicerLib.scene import segmentation_nodes

    ct, fine = add_ct(), add_ct("fine", (80, 100, 120))
    fine.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(np.diag([-2.5, -2.5, 2.5, 1])))
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "mine")
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(fine)
    mask = np.zeros((80, 100, 120), np.uint8)
    mask[30:50, 40:60, 51:71] = 1
    tumor = node.GetSegmentation().AddEmptySegment("tumor", "tumor")
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, node, tumor, fine)
    panel.widget._parameterNode.inputVolume = ct
    panel.widget._parameterNode.outputSegmentation = node
    panel.run()
    role = slicer.vtkMRMLSegmentationNode.GetReferenceImageGeometryReferenceRole()
    assert node.GetNodeReference(role) is fine
    assert segmentation_nodes.reference_volume(node) is ct and segmentation_nodes.find_result(ct) is node
    assert slicer.util.arrayFromSegmentBinaryLabelmap(node, tumor, fine).sum() == mask.sum()


def test_hundreds_of_volumes_that_fail_at_once_end_in_one_message(scene) -> None:
    from FlareSegmentSlicerLib.logic.segmentation_logic import SegmentationLogic

    logic = SegmentationLogic(lambda: Path("no model is needed"))
    nodes = [scene.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", f"empty {n}") for n in range(300)]
    with pytest.raises(FlareSegmentError) as error:
        logic.segmentVolumes(nodes)
    assert len(str(error.value).splitlines()) == 300


def scene_with_result():
    import slicer

    from FlareSegmentSlicerLib.scene import comparison
    from FlareSegmentSlicerLib.scene.segmentation_nodes import create_segmentation

    z, y, x = np.indices((40, 50, 60))
    truth = np.zeros(z.shape, np.uint8)
    for label, (cz, cy, cx, r) in enumerate(
        ((24, 20, 20, 9), (12, 32, 22, 5), (13, 32, 38, 5), (26, 28, 42, 5)), start=1
    ):
        truth[(z - cz) ** 2 + (y - cy) ** 2 + (x - cx) ** 2 < r * r] = label
    ct = slicer.util.addVolumeFromArray(np.full(z.shape, -1000, np.int16), ijkToRAS=MATRIX, name="CT")
    return ct, truth, comparison.label_map(create_segmentation(ct, truth), ct)


def reference(values: dict[int, int], truth: np.ndarray, noise: int | None = None):
    import slicer

    labels = np.zeros(truth.shape, np.int16)
    for own, other in values.items():
        labels[truth == own] = other
    if noise is not None:
        labels[:4, :4, :4] = noise
    node = slicer.util.addVolumeFromArray(
        labels, ijkToRAS=MATRIX, name="reference", nodeClassName="vtkMRMLLabelMapVolumeNode"
    )
    node.CreateDefaultDisplayNodes()
    return node


@pytest.mark.parametrize(
    ("values", "noise"),
    [
        ({1: 1, 2: 2, 3: 3, 4: 4}, None),
        ({1: 1, 2: 2, 3: 13, 4: 3}, None),
        ({1: 5, 2: 2, 3: 3, 4: 1}, 90),
        ({1: 6, 2: 2, 3: 3, 4: 1}, None),
        ({4: 1}, None),
        ({1: 100, 4: 7}, None),
    ],
    ids=["own", "FLARE22", "TotalSegmentator", "BTCV", "spleen only", "others"],
)
def test_references_of_any_numbering_are_scored_as_what_they_are(scene, values: dict[int, int], noise) -> None:
    from FlareSegmentSlicerLib.scene import comparison

    ct, truth, result = scene_with_result()
    read = comparison.label_map(reference(values, truth, noise), ct, result)
    np.testing.assert_array_equal(read, np.where(np.isin(truth, list(values)), truth, 0))


@pytest.mark.parametrize(
    ("values", "words"), [({2: 1, 3: 1}, "several organs"), ({}, "none of the organs|none of its")]
)
def test_values_that_nobody_can_tell_are_refused(scene, values: dict[int, int], words: str) -> None:
    from FlareSegmentSlicerLib.scene import comparison

    ct, truth, result = scene_with_result()
    with pytest.raises(InputError, match=words):
        comparison.label_map(reference(values, truth, noise=90), ct, result)


def test_exchanged_kidneys_are_scored_as_such(scene) -> None:
    from FlareSegmentSlicerLib.scene import comparison

    ct, truth, result = scene_with_result()
    read = comparison.label_map(reference({1: 1, 2: 3, 3: 2, 4: 4}, truth), ct, result)
    assert np.all(read[truth == 2] == 3) and np.all(read[truth == 3] == 2)


def test_names_of_a_color_table_come_first(scene) -> None:
    from FlareSegmentSlicerLib.scene import comparison

    ct, truth, result = scene_with_result()
    node = reference({1: 7, 4: 2}, truth)
    colors = scene.mrmlScene.AddNewNodeByClass("vtkMRMLColorTableNode", "names")
    colors.SetTypeToUser()
    colors.SetNumberOfColors(10)
    colors.SetColor(7, "liver", 1, 0, 0, 1)
    colors.SetColor(2, "spleen", 0, 1, 0, 1)
    node.GetDisplayNode().SetAndObserveColorNodeID(colors.GetID())
    read = comparison.label_map(node, ct, result)
    np.testing.assert_array_equal(read, np.where(np.isin(truth, [1, 4]), truth, 0))
