"""Words that the whole project writes alike."""

from __future__ import annotations

import ast
import re

import pytest

MILLILITERS = re.compile(r"(?:[0-9]|^) ?ml\b")


def texts(tree):
    """Every piece of text of a file; what stands behind a value in an f-string is a piece of its own."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]


@pytest.mark.parametrize("folder", ["FlareSegment", "FlareSegmentTraining"])
def test_volumes_are_told_in_ml_with_a_capital_l(repository, folder):
    wrong = [
        f"{file.name}:{node.lineno}: {node.value!r}"
        for file in (repository / folder).rglob("*.py")
        for node in texts(ast.parse(file.read_text(encoding="utf-8")))
        if MILLILITERS.search(node.value) and node.value != "ml"
    ]
    assert not wrong
