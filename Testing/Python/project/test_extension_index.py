"""What the Extensions Index and the Extensions Manager read of the extension: FlareSegment.json and CMakeLists.txt.

The keys of the entry and their types are those of version 1.0.2 of Slicer's schema of catalog entries (Schemas/ in
Slicer's repository).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Schemas/slicer-extension-catalog-entry-schema-v1.0.2.json#"
)
KEYS: dict[str, type] = {
    "$schema": str,
    "category": str,
    "scm_url": str,
    "scm_revision": str,
    "scm_type": str,
    "build_dependencies": list,
    "dicom_support_rule": str,
    "build_subdirectory": str,
    "enabled": bool,
    "tier": int,
}
REQUIRED = {"$schema", "category", "scm_url"}


@pytest.fixture(scope="module")
def entry() -> dict:
    return json.loads((ROOT / "FlareSegment.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def extension() -> dict[str, str]:
    """The values that CMakeLists.txt sets for the extension."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return dict(re.findall(r'^set\(EXTENSION_(\w+) "([^"]*)"\)$', text, re.MULTILINE))


def test_the_entry_keeps_to_the_schema(entry: dict) -> None:
    assert entry["$schema"] == SCHEMA
    assert entry.keys() >= REQUIRED
    for key, value in entry.items():
        assert type(value) is KEYS[key], key
    assert all(isinstance(name, str) for name in entry["build_dependencies"])
    assert list(entry) == sorted(entry)  # as the index's own formatting wants it


def test_the_tier_is_that_of_a_new_extension(entry: dict) -> None:
    """1 is experimental; a higher one is given by the index's community, not claimed."""
    assert entry["tier"] == 1


def test_entry_and_extension_name_the_same_place_and_dependencies(entry: dict, extension: dict[str, str]) -> None:
    assert extension["HOMEPAGE"] == entry["scm_url"]
    assert extension["DEPENDS"].split() == entry["build_dependencies"]
    addresses = [extension["ICONURL"], *extension["SCREENSHOTURLS"].split()]
    prefix = entry["scm_url"].replace("github.com", "raw.githubusercontent.com") + f"/{entry['scm_revision']}/"
    for address in addresses:
        assert address.startswith(prefix)
        assert (ROOT / address.removeprefix(prefix)).is_file(), address


def test_the_category_is_that_of_the_module_in_slicer(entry: dict) -> None:
    assert entry["category"] == "Segmentation"
    module = (ROOT / "FlareSegment" / "FlareSegment.py").read_text(encoding="utf-8")
    assert f'translate("qSlicerAbstractCoreModule", "{entry["category"]}")' in module


def test_the_licenses_of_program_and_weights_are_said(extension: dict[str, str]) -> None:
    """Who installs the extension reads of the weights' license before, and what is read is true."""
    model = json.loads((ROOT / "FlareSegment/Resources/Models/abdomen/model.json").read_text(encoding="utf-8"))
    assert model["license"] == "CC BY-NC 4.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    description = extension["DESCRIPTION"]
    assert "Apache 2.0" in description
    assert f"weights are {model['license']}" in description and "no commercial use" in description


def test_each_module_has_an_icon_of_its_own() -> None:
    icons = [ROOT / name / "Resources" / "Icons" / f"{name}.png" for name in ("FlareSegment", "FlareSegmentTraining")]
    first, second = (icon.read_bytes() for icon in icons)
    assert first != second
    assert first == (ROOT / "Resources" / "FlareSegment.png").read_bytes()  # the extension's, in the manager
    for icon in (first, second):
        assert icon[:8] == b"\x89PNG\r\n\x1a\n"
        assert icon[16:24] == (128).to_bytes(4) * 2
