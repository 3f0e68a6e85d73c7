"""What the panel's parameter node keeps: written and read as Slicer's own wrapper does."""

from __future__ import annotations

import sys
import typing

import pytest


@pytest.fixture
def parameter_node_class(load_module, repository):
    load_module(repository / "FlareSegment" / "FlareSegment.py")
    return sys.modules["FlareSegment"].FlareSegmentParameterNode


def test_a_union_of_nodes_says_that_it_may_be_none(parameter_node_class):
    # Slicer writes every default when the panel opens, and asks a union's members whether they take NoneType.
    unions = [
        typing.get_args(annotation)
        for annotation in typing.get_type_hints(parameter_node_class).values()
        if typing.get_origin(annotation) is typing.Union
    ]
    assert unions
    assert all(type(None) in members for members in unions)


def test_every_parameter_takes_none_or_its_default_and_keeps_it(parameter_node_class):
    import slicer

    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScriptedModuleNode")
    parameters = parameter_node_class(node)
    for name in ("inputVolume", "outputSegmentation", "roi", "reference"):
        assert getattr(parameters, name) is None
        setattr(parameters, name, None)
    assert (parameters.device, parameters.modelFolder, list(parameters.organs)) == ("auto", "", [])
    for class_name in ("vtkMRMLSegmentationNode", "vtkMRMLLabelMapVolumeNode"):
        reference = slicer.mrmlScene.AddNewNodeByClass(class_name)
        parameters.reference = reference
        assert parameter_node_class(node).reference is reference
        slicer.mrmlScene.RemoveNode(reference)
        assert parameter_node_class(node).reference is None
