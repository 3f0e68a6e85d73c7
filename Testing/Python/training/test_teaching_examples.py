"""Examples: what is kept of a corrected CT, that training reads it, and that nothing is lost or told."""

from __future__ import annotations

import gzip
import json
import os
import threading

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

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


def test_a_ct_that_a_full_disk_cut_is_no_example(folder, scan, monkeypatch):
    """The writer of compressed files may not notice."""
    write = examples_module.sitk.WriteImage

    def cut(image, name, *rest, **more):
        write(image, name, *rest, **more)
        if name.endswith("ct.nii.gz"):
            os.truncate(name, os.path.getsize(name) // 2)

    monkeypatch.setattr(examples_module.sitk, "WriteImage", cut)
    with pytest.raises(InputError, match="cannot be kept there"):
        folder.keep(*scan, ORGANS)
    assert not folder.examples() and not list(folder.path.glob("*.nii.gz"))


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


@pytest.mark.parametrize("mirrored", [False, True])
def test_oblique_and_mirrored_axes_come_back(folder, scan, mirrored):
    volume, labels = scan
    direction = Rotation.from_euler("zyx", [20.0, -15.0, 8.0], degrees=True).as_matrix()
    direction = direction @ np.diag([1.0, -1.0 if mirrored else 1.0, 1.0])
    oblique = Volume(volume.array, (0.7, 0.8, 5.0), (-123.25, 40.5, -900.125), direction)
    opened, kept, _ = folder.open(folder.keep(oblique, labels, ORGANS))
    assert np.allclose(opened.affine_ras, oblique.affine_ras, atol=1e-3) and (kept == labels).all()
    assert (opened.array == volume.array).all()


def test_the_headers_say_nothing(folder, scan):
    folder.keep(*scan, ORGANS)
    for file in folder.path.glob("*.nii.gz"):
        header = nibabel.load(file).header
        for field in ("descrip", "aux_file", "intent_name", "db_name", "data_type"):
            assert bytes(header[field]).strip(b"\0") == b"", (file.name, field)
        assert not header.extensions


def test_a_folder_with_an_odd_name_and_other_files_is_taken(tmp_path, scan):
    place = tmp_path / "Beispiele für die Leber"
    (place / "exported").mkdir(parents=True)
    for name in ("Notizen.txt", "CT of Doe.nii.gz", "exported/IM0001"):
        (place / name).write_bytes(b"not ours")
    folder = ExampleFolder(place)
    assert folder.keep(*scan, ["liver"]) == "example-001" and folder.open("example-001")[2] == {"liver": "B"}
    assert [case.name for case in find_cases([place], say=list)] == ["example-001"]
    folder.remove("example-001")
    assert (place / "Notizen.txt").read_bytes() == b"not ours"


@pytest.mark.parametrize("foreign", ["flat", "folders", "meaning"])
def test_examples_are_not_mixed_with_other_cases(tmp_path, scan, foreign):
    place = tmp_path / "data"
    files = {
        "flat": ["patient7_ct.nii.gz", "patient7_labels.nii.gz"],
        "folders": ["images/patient7.nii.gz", "labels/patient7.nii.gz"],
        "meaning": ["labels.json"],
    }[foreign]
    for name in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text('{"1": "spleen", "3": "liver"}')
    before = content_of_names(place)
    with pytest.raises(InputError, match="other cases than examples"):
        ExampleFolder(place).keep(*scan, ORGANS)
    assert content_of_names(place) == before


def content_of_names(place):
    return {file.relative_to(place): file.read_bytes() for file in place.rglob("*") if file.is_file()}


def test_an_example_that_is_taught_now_is_not_replaced(folder, scan):
    name = folder.keep(*scan, ["liver"])
    before = content(folder)
    with pytest.raises(InputError, match="example-001, which is taught now"):
        folder.keep(*scan, ["spleen"], in_use=[name])
    assert content(folder) == before
    other, truth = make_phantom(4, (10.0, 10.0, 10.0))
    assert folder.keep(other, truth, ["spleen"], in_use=[name]) == "example-002"


def test_two_people_keep_examples_at_once(folder, scan):
    scans = [scan, make_phantom(4, (10.0, 10.0, 10.0)), make_phantom(5, (10.0, 10.0, 10.0))]
    threads = [
        threading.Thread(target=ExampleFolder(folder.path).keep, args=(*one, [organ]))
        for one, organ in zip(scans, ORGANS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    examples = folder.examples()
    assert [example.name for example in examples] == ["example-001", "example-002", "example-003"]
    assert {tuple(example.organs) for example in examples} == {("liver",), ("right_kidney",), ("left_kidney",)}
    assert set(folder.path.iterdir()) == {folder.path / name for name in content(folder)}


def test_who_goes_on_keeping_is_not_waited_for_for_ever_and_who_is_gone_not_at_all(folder, scan, monkeypatch):
    monkeypatch.setattr(examples_module, "WAIT_SECONDS", 0.2)
    folder.path.mkdir()
    lock = folder.path / ".keeping"
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(InputError, match="somebody else"):
        folder.keep(*scan, ORGANS)
    lock.write_text(json.dumps({"pid": 2**30, "host": examples_module.socket.gethostname()}))
    assert folder.keep(*scan, ORGANS) == "example-001" and not lock.exists()


def test_a_damaged_example_is_listed_and_can_be_removed(folder, scan):
    folder.keep(*scan, ORGANS)
    folder.keep(*make_phantom(4, (10.0, 10.0, 10.0)), ["liver"])
    (folder.path / "example-001_ct.nii.gz").write_bytes(b"no image")
    damaged, whole = folder.examples()
    assert damaged.size == (0, 0, 0) and whole.organs == {"liver": "B"}
    with pytest.raises(InputError):
        folder.open("example-001")
    folder.remove("example-001")
    assert [example.name for example in folder.examples()] == ["example-002"]
