"""Examples: what is kept of a corrected CT, that training reads it, and that nothing is lost or told."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.teaching import examples as examples_module
from FlareSegmentTrainingLib.teaching.examples import ExampleFolder

ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")


@pytest.fixture(scope="module")
def scan():
    """A torso stored with x to the right and slices from the head down, called after somebody."""
    volume, labels = make_phantom(3, (8.0, 8.0, 10.0))
    direction = np.diag([-1.0, 1.0, -1.0])
    array, labels = (np.ascontiguousarray(part[::-1, :, ::-1]) for part in (volume.array, labels))
    corner = [(volume.array.shape[2] - 1) * 8.0, 0.0, (volume.array.shape[0] - 1) * 10.0]
    return Volume(array, volume.spacing, tuple(np.add(volume.origin, corner)), direction, "Doe^Jane 19700101"), labels


@pytest.fixture
def folder(tmp_path):
    return ExampleFolder(tmp_path / "examples")


def content(folder):
    """Every file's name and content, unpacked."""
    files = sorted(file for file in folder.path.rglob("*") if file.is_file())
    return {
        file.name: gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes() for file in files
    }


def test_an_example_comes_back_as_it_was_kept(folder, scan):
    volume, labels = scan
    assert folder.keep(volume, labels, ["liver", "spleen"]) == "example-001"
    (example,) = folder.examples()
    assert example.organs == {"liver": "B", "spleen": "B"}
    assert example.size == volume.array.shape[::-1] and example.spacing_mm == pytest.approx(volume.spacing)
    opened, kept, organs = folder.open("example-001")
    assert opened.same_grid(volume) and (opened.array == volume.array).all() and (kept == labels).all()
    assert organs == example.organs


def test_training_reads_the_folder_and_ignores_what_nobody_looked_at(folder, scan):
    volume, labels = scan
    folder.keep(volume, np.where(labels == 2, 0, labels).astype(np.uint8), ["liver", "right_kidney"])
    (folder.path / "taught" / "001" / "models" / "all").mkdir(parents=True)
    (case,) = find_cases([folder.path])
    assert [case.weights[key] for key in ORGANS] == [1.0, 1.0, 0.0, 0.0]
    assert case.grades["right_kidney"] == "absent" and case.grades["pancreas"] == "ignore"
    read, truth, _ = case.read()
    assert read.same_grid(volume) and (truth == np.where(labels == 2, 0, labels)).all()


def test_a_scan_without_organs_is_an_example_too(folder, scan):
    folder.keep(scan[0], np.zeros_like(scan[1]), ORGANS)
    (case,) = find_cases([folder.path])
    assert case.is_empty and not case.read()[1].any()


def test_no_name_or_date_is_kept(folder, scan):
    folder.keep(*scan, ORGANS)
    everything = content(folder)
    assert set(everything) == {"example-001_ct.nii.gz", "example-001_labels.nii.gz", "labels.json", "quality.json"}
    for name, data in everything.items():
        assert b"Doe" not in data and b"1970" not in data, name
    for name in ("example-001_ct.nii.gz", "example-001_labels.nii.gz"):
        packed = (folder.path / name).read_bytes()
        assert packed[3] & 0b1000 == 0 or b"Doe" not in packed[:100]
        assert packed[4:8] == bytes(4)  # the time that gzip would tell


def test_the_same_scan_again_replaces_its_example(folder, scan):
    volume, labels = scan
    folder.keep(volume, labels, ["liver"])
    other, truth = make_phantom(4, (10.0, 10.0, 10.0))
    folder.keep(other, truth, ["liver"])
    name = folder.keep(volume.with_array(volume.array.astype(np.float32)), labels, ["spleen"])
    assert [example.name for example in folder.examples()] == ["example-002", name]
    assert folder.open(name)[2] == {"spleen": "B"}
    folder.remove("example-002")
    folder.remove(name)
    assert folder.examples() == [] and json.loads((folder.path / "quality.json").read_text()) == {}


@pytest.mark.parametrize("step", ["write_labels", "save_whole", "sitk.WriteImage", "os.replace"])
def test_what_fails_leaves_the_examples_as_they_were(folder, scan, monkeypatch, step):
    volume, labels = scan
    folder.keep(volume, labels, ["liver"])
    before = content(folder)
    owner, _, name = step.rpartition(".")
    place = getattr(examples_module, owner) if owner else examples_module

    def fail(*_arguments, **_options):
        raise FlareSegmentError("no space") if name in ("write_labels", "save_whole") else OSError(28, "no space left")

    other, truth = make_phantom(4, (10.0, 10.0, 10.0))
    with monkeypatch.context() as patched:
        patched.setattr(place, name, fail)
        with pytest.raises(FlareSegmentError, match="space"):
            folder.keep(other, truth, ORGANS)
    left = content(folder)
    assert {name: left[name] for name in before if name != "quality.json"} == {
        name: data for name, data in before.items() if name != "quality.json"
    }
    assert [example.name for example in folder.examples()] == ["example-001"]
    assert len(find_cases([folder.path])) == 1
    assert folder.keep(other, truth, ORGANS) in ("example-002", "example-003")


def test_what_cannot_be_an_example_is_said(folder, scan):
    volume, labels = scan
    with pytest.raises(InputError, match="Choose the organs"):
        folder.keep(volume, labels, [])
    with pytest.raises(InputError, match="heart"):
        folder.keep(volume, labels, ["heart"])
    sheared = Volume(volume.array, volume.spacing, volume.origin, volume.direction + np.eye(3, k=1) * 0.3)
    with pytest.raises(InputError, match="tilted gantry"):
        folder.keep(sheared, labels, ORGANS)
    with pytest.raises(InputError, match="no example"):
        folder.remove("example-009")
    assert not folder.path.exists() or folder.examples() == []
