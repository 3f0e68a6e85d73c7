"""Parameter nodes of the embedded Slicer take nothing that Slicer's own refuse."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Union

import pytest

pytest.importorskip("slicer_core", reason="slicer-core is not installed")

OWN = """
from typing import Annotated, Any, Optional, Union
from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLModelNode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode

@parameterNodeWrapper
class UnionOfNodes:
    member: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode]

@parameterNodeWrapper
class UnionWithNone:
    member: Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None]

@parameterNodeWrapper
class NoneFirst:
    member: Union[None, vtkMRMLSegmentationNode]

@parameterNodeWrapper
class OptionalUnion:
    member: Optional[Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode]]

@parameterNodeWrapper
class Written:
    member: vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode | None

@parameterNodeWrapper
class WrittenWithoutNone:
    member: vtkMRMLSegmentationNode | vtkMRMLLabelMapVolumeNode

@parameterNodeWrapper
class OptionalNode:
    member: Optional[vtkMRMLModelNode]

@parameterNodeWrapper
class Values:
    optional_number: Optional[int]
    number_or_text: Union[int, str]
    text_or_number: Union[str, float] = 2.5
    nodes: list[vtkMRMLScalarVolumeNode]
    nodes_or_none: list[Optional[vtkMRMLScalarVolumeNode]]
    pair: tuple[int, str]
    pairs: list[tuple[int, str]]
    counts: dict[str, int]
    anything: Any
    untyped_list: list
    list_or_number: Union[list[int], int]
    annotated: Annotated[Optional[float], Default(1.5)]

@parameterNodeWrapper
class DefaultInside:
    member: list[Annotated[int, Default(5)]]
    other: tuple[Annotated[int, Default(5)], str]
"""


@pytest.fixture
def checkout():
    folder = os.environ.get("SLICER_SOURCE", "")
    if not folder or not (Path(folder) / "Base" / "Python" / "slicer" / "parameterNodeWrapper").is_dir():
        pytest.skip("no checkout of Slicer's source: set SLICER_SOURCE to one")
    return Path(folder)


def compare(checkout, files):
    """Behavior that differs, and how much was compared."""
    import slicer
    from parameter_nodes_compared import behavior, declarations, source_package, stand_in_package

    classes = ("Segmentation", "LabelMapVolume", "ScalarVolume", "Model")
    nodes = [slicer.mrmlScene.AddNewNodeByClass(f"vtkMRML{name}Node") for name in classes]
    differences, count = [], 0
    for declaration in declarations(files):
        own = behavior(declaration, stand_in_package(), nodes)
        real = behavior(declaration, source_package(checkout), nodes)
        count += len(real)
        assert [what for what, _ in own] == [what for what, _ in real], declaration.where
        differences += [
            f"{declaration.where}: {what}: Slicer {theirs!r}, the stand-in {ours!r}"
            for (what, theirs), (_, ours) in zip(real, own, strict=True)
            if theirs != ours
        ]
    return differences, count


def test_every_parameter_of_slicers_modules_and_tests_behaves_alike(slicer_app, checkout, figures):
    folders = ("Base/Python/slicer/tests", "Modules", "Utilities/Templates", "Applications")
    files = [path for folder in folders for path in (checkout / folder).rglob("*.py")]
    texts = ((path, path.read_text(encoding="utf-8", errors="replace")) for path in files)
    chosen = [path for path, text in texts if "@parameterNodeWrapper" in text or "@parameterPack" in text]
    assert len(chosen) >= 5
    differences, count = compare(checkout, chosen)
    figures["Parameter nodes"] = f"{count} observations of Slicer's own parameters, {len(differences)} differ"
    assert not differences, "\n".join(differences[:8])


def test_unions_nones_and_defaults_behave_alike(slicer_app, checkout, tmp_path):
    file = tmp_path / "declared.py"
    file.write_text(OWN, encoding="utf-8")
    differences, count = compare(checkout, [file])
    assert count > 500
    assert not differences, "\n".join(differences[:8])


def test_this_extensions_parameters_behave_alike(slicer_app, checkout, repository):
    differences, _ = compare(checkout, [repository / "FlareSegment" / "FlareSegment.py"])
    assert not differences, "\n".join(differences[:8])


def declare(annotation):
    """A parameter node with one member of a type, not yet wrapped around a node."""
    from slicer.parameterNodeWrapper import parameterNodeWrapper

    return parameterNodeWrapper(type("Declared", (), {"__annotations__": {"member": annotation}}))


def new_node():
    import slicer

    return slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")


def test_a_union_of_nodes_that_does_not_name_none_cannot_be_empty(slicer_app):
    from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode

    with pytest.raises(TypeError):
        declare(Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode])(new_node())  # noqa: UP007


def test_a_union_of_nodes_that_names_none_can(slicer_app):
    import slicer
    from slicer import vtkMRMLLabelMapVolumeNode, vtkMRMLSegmentationNode

    for annotation in (
        Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode, None],  # noqa: UP007
        Optional[Union[vtkMRMLSegmentationNode, vtkMRMLLabelMapVolumeNode]],  # noqa: UP007, UP045
    ):
        wrapped = declare(annotation)(new_node())
        assert wrapped.member is None
        for name in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"):
            node = slicer.mrmlScene.AddNewNodeByClass(name)
            wrapped.member = node
            assert wrapped.member is node
        wrapped.member = None
        assert wrapped.member is None


def test_what_is_read_is_kept_until_the_node_is_modified(slicer_app):
    node = new_node()
    wrapped = declare(int)(node)
    was = node.StartModify()
    node.SetParameter("member", "5")
    assert wrapped.member == 0, "Slicer's wrapper learns of it by the event"
    node.EndModify(was)
    assert wrapped.member == 5


def test_a_tuple_without_a_default_serves_one_node_only(slicer_app):
    declared = declare(tuple[int, int])
    assert declared(new_node()).member == (0, 0)
    with pytest.raises(ValueError, match="elements"):
        declared(new_node())


def test_the_default_of_an_element_is_not_heeded(slicer_app, caplog):
    from typing import Annotated

    from slicer.parameterNodeWrapper import Default

    assert declare(tuple[Annotated[int, Default(5)], str])(new_node()).member == (0, "")
    assert "Unused annotations" in caplog.text
