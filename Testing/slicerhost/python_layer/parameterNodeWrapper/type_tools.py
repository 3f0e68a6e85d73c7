"""Questions about (possibly annotated) types."""

from __future__ import annotations

import types
import typing

import slicer

__all__ = ["findFirstAnnotation", "getNodeTypes", "isNodeOrUnionOfNodes", "splitAnnotations", "unannotatedType"]


def splitAnnotations(possiblyAnnotatedType):
    """(type, list of its annotations)."""
    if typing.get_origin(possiblyAnnotatedType) is typing.Annotated:
        base, *annotations = typing.get_args(possiblyAnnotatedType)
        return base, annotations
    return possiblyAnnotatedType, []


def unannotatedType(possiblyAnnotatedType):
    """The type without its annotations."""
    return splitAnnotations(possiblyAnnotatedType)[0]


def findFirstAnnotation(annotationsList, annotationType):
    """The first annotation of that type, or None."""
    return next((one for one in annotationsList if isinstance(one, annotationType)), None)


def is_union(type_):
    """Whether the type is written `A | B`, Union[A, B] or Optional[A]."""
    return typing.get_origin(type_) in (typing.Union, types.UnionType)


def as_union(type_):
    """A union written `A | B` as Union[A, B], other types as they are: Slicer's widget side knows only the latter."""
    return typing.Union[typing.get_args(type_)] if isinstance(type_, types.UnionType) else type_  # noqa: UP007


def is_node_class(type_):
    """Whether the type is a class of MRML nodes."""
    return isinstance(type_, type) and issubclass(type_, slicer.vtkMRMLNode)


def _members(datatype):
    base = unannotatedType(datatype)
    return [unannotatedType(one) for one in typing.get_args(base)] if is_union(base) else [base]


def isNodeOrUnionOfNodes(datatype):
    """Whether the type is a node class, or a union of node classes (and None)."""
    members = [one for one in _members(datatype) if one is not type(None)]
    return bool(members) and all(map(is_node_class, members))


def getNodeTypes(datatype):
    """Class names of the nodes that the type allows."""
    return tuple(one.__name__ for one in _members(datatype) if one is not type(None))
