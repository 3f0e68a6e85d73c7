"""The headless script, end to end, started as Slicer starts it: phantom, real CT, DICOM folder, bad input."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("slicer_core", reason="slicer-core is not installed")

from FlareSegmentLib.measures.result_table import COLUMNS, SCORES

ORGANS = ("liver", "right_kidney", "left_kidney", "spleen")
SUFFIXES = ("_3d.png", "_labels.nii.gz", "_organs.csv", "_organs.seg.nrrd", "_slices.png")


@dataclass
class Run:
    status: int
    out: str
    error: str

    @property
    def json(self):
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture(scope="module")
def segment(repository):
    """Function that runs the script in the embedded Slicer with its own command line."""

    def run(*arguments, **environment):
        variables = {
            **os.environ,
            "PYTHONPATH": str(repository / "Testing"),
            "QT_QPA_PLATFORM": "offscreen",
            **environment,
        }
        variables.pop("FLARESEGMENT_DEBUG", None)
        script = repository / "FlareSegment" / "Scripts" / "segment.py"
        command = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script", script, *arguments]
        done = subprocess.run(
            [str(word) for word in command], check=False, capture_output=True, text=True, timeout=300, env=variables
        )
        return Run(done.returncode, done.stdout, done.stderr)

    return run


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def overlap(a, b, values=(1, 2, 3, 4)):
    """Dice of each organ between two label maps."""
    return [2 * np.sum((a == k) & (b == k)) / max(np.sum(a == k) + np.sum(b == k), 1) for k in values]


def write_phantom(path, **arguments):
    """A phantom CT as a file; returns (image, labels image)."""
    from FlareSegmentLib.phantom.torso import make_phantom

    volume, labels = make_phantom(**arguments)
    images = []
    for array in (volume.array, labels):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(volume.spacing)
        image.SetOrigin(volume.origin)
        images.append(image)
    sitk.WriteImage(images[0], str(path))
    return images


@pytest.fixture(scope="module")
def phantom_run(segment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom") / "new" / "results"
    run = segment("--output", folder, "--json")
    assert run.status == 0, run.error
    return run, folder


def test_the_phantom_gives_five_files_and_a_table(phantom_run, screenshots):
    run, folder = phantom_run
    assert sorted(os.listdir(folder)) == sorted("phantom" + suffix for suffix in SUFFIXES)
    assert all(name in run.out for name in ("Liver", "Right kidney", "Left kidney", "Spleen", "Volume (mL)", "Dice"))
    for suffix in ("_slices.png", "_3d.png"):
        picture = read(folder / f"phantom{suffix}")
        assert picture.shape[1] > 1000
        assert picture.std() > 20
        (screenshots / f"segment_phantom{suffix}").write_bytes((folder / f"phantom{suffix}").read_bytes())


def test_the_json_is_the_documented_one(phantom_run):
    run, folder = phantom_run
    result = run.json
    assert set(result) == {"input", "output", "organs", "seconds", "peak_rss_mib", "device", "model", "warnings"}
    assert result["input"] == "phantom"
    assert {Path(path).name for path in result["output"].values()} == set(os.listdir(folder))
    assert all(Path(path).is_file() for path in result["output"].values())
    assert tuple(result["organs"]) == ORGANS
    assert [row["label"] for row in result["organs"].values()] == [1, 2, 3, 4]
    for row in result["organs"].values():
        assert set(row) == {*COLUMNS, *SCORES}
        assert all(value is None or math.isfinite(value) for value in row.values())
    seconds = dict(result["seconds"])
    total = seconds.pop("total")
    assert set(seconds) == {"load", "preprocess", "network", "postprocess", "write"}
    assert 0 < sum(seconds.values()) < total + 0.01
    assert 50 < result["peak_rss_mib"] < 8000


def test_the_bundled_model_finds_the_phantoms_organs(phantom_run):
    scores = {key: row["dice"] for key, row in phantom_run[0].json["organs"].items()}
    assert min(scores.values()) >= 0.85, scores


def test_files_agree_with_each_other(phantom_run):
    run, folder = phantom_run
    image = sitk.ReadImage(str(folder / "phantom_labels.nii.gz"))
    labels, voxel_ml = sitk.GetArrayFromImage(image), np.prod(image.GetSpacing()) / 1000
    with open(folder / "phantom_organs.csv", newline="", encoding="utf-8") as stream:
        table = {row["organ"]: row for row in csv.DictReader(stream)}
    assert tuple(table) == ORGANS
    segmentation = sitk.ReadImage(str(folder / "phantom_organs.seg.nrrd"))
    stored = sitk.Resample(segmentation, image, sitk.Transform(), sitk.sitkNearestNeighbor)
    for label, key in enumerate(ORGANS, start=1):
        volume = run.json["organs"][key]["volume_ml"]
        assert np.count_nonzero(labels == label) * voxel_ml == pytest.approx(volume, abs=0.01)
        assert float(table[key]["volume_ml"]) == pytest.approx(volume)
        tags = {segmentation.GetMetaData(k).strip(): k for k in segmentation.GetMetaDataKeys() if k.endswith("_ID")}
        prefix = tags[key].removesuffix("_ID")
        value = int(segmentation.GetMetaData(f"{prefix}_LabelValue"))
        assert np.array_equal(sitk.GetArrayFromImage(stored) == value, labels == label)
        assert "123037004" in segmentation.GetMetaData(f"{prefix}_Tags")


@pytest.fixture(scope="module")
def torso_run(segment, tmp_path_factory):
    """A small torso with a reference in FLARE22's numbers, on a machine without OpenGL; older results are there."""
    folder = tmp_path_factory.mktemp("torso")
    ct, labels = write_phantom(folder / "torso.mha", seed=4, spacing=(3.0, 3.0, 5.0), z_range=(-80.0, 90.0))
    reference = sitk.Cast(sitk.ChangeLabel(labels, changeMap={2: 2, 3: 13, 4: 3}), sitk.sitkUInt8)
    reference[0, 0, 0] = 11  # an organ that the model does not know
    sitk.WriteImage(reference, str(folder / "flare22.nii.gz"))
    results = folder / "results"
    results.mkdir()
    (results / "torso_labels.nii.gz").write_text("an older result")
    (results / "notes.txt").write_text("not ours")
    run = segment(
        *(folder / "torso.mha", "--output", results, "--json"),
        *("--reference", folder / "flare22.nii.gz", "--label-ids", "flare22"),
        __EGL_VENDOR_LIBRARY_FILENAMES=str(folder / "no_vendor.json"),
        DISPLAY="",
    )
    assert run.status == 0, run.error
    return run, results, ct, sitk.GetArrayFromImage(labels)


def test_flare22_numbers(torso_run):
    run, results, _, truth = torso_run
    written = read(results / "torso_labels.nii.gz")
    assert set(np.unique(written)) <= {0, 1, 2, 3, 13}
    assert [row["label"] for row in run.json["organs"].values()] == [1, 2, 13, 3]
    for key, value, label in zip(ORGANS, (1, 2, 13, 3), (1, 2, 3, 4), strict=True):
        both = np.sum(written == value) + np.sum(truth == label)
        expected = 2 * np.sum((written == value) & (truth == label)) / both
        assert run.json["organs"][key]["dice"] == pytest.approx(expected, abs=1e-4)
        assert expected > 0.5, key


def test_without_opengl_there_is_a_warning_and_no_3d_picture(torso_run):
    run, results, *_ = torso_run
    assert sorted(os.listdir(results)) == sorted(["notes.txt", *("torso" + suffix for suffix in SUFFIXES[1:])])
    assert (results / "notes.txt").read_text() == "not ours"
    assert any("OpenGL" in warning for warning in run.json["warnings"])
    assert "surfaces" not in run.json["output"]


def test_a_dicom_folder_gives_the_labels_of_the_same_file(segment, torso_run, tmp_path):
    _, results, image, _ = torso_run
    series = tmp_path / "series of a patient"
    series.mkdir()
    write_dicom_series(image, series)
    run = segment(series, "--output", tmp_path / "results", "--label-ids", "flare22", "--json")
    assert run.status == 0, run.error
    a = read(results / "torso_labels.nii.gz")
    b = read(tmp_path / "results" / "series of a patient_labels.nii.gz")
    assert a.shape == b.shape
    assert min(overlap(a, b, (1, 2, 13, 3))) > 0.99
    assert "DOE" not in run.out + run.error + "".join(os.listdir(tmp_path / "results"))
    assert "dice" not in run.json["organs"]["liver"]


def write_dicom_series(image, folder):
    """A CT series with patient identity in it, one file per slice, file names in no order."""
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for index in range(image.GetDepth()):
        part = image[:, :, index]
        position = image.TransformIndexToPhysicalPoint((0, 0, index))
        for tag, value in {
            "0010|0010": "DOE^JANE",
            "0010|0020": "4711",
            "0008|0060": "CT",
            "0008|0016": "1.2.840.10008.5.1.4.1.1.2",
            "0008|0018": f"1.2.826.0.1.3680043.8.498.1.{index + 1}",
            "0020|000d": "1.2.826.0.1.3680043.8.498.2",
            "0020|000e": "1.2.826.0.1.3680043.8.498.3",
            "0020|0013": str(index + 1),
            "0028|1052": "0",
            "0028|1053": "1",
            "0020|0032": "\\".join(f"{value:.6f}" for value in position),
            "0020|0037": "1\\0\\0\\0\\1\\0",
            "0018|0050": f"{image.GetSpacing()[2]:.3f}",
        }.items():
            part.SetMetaData(tag, value)
        writer.SetFileName(str(folder / f"{(index * 7919) % 10007:05d}.dcm"))
        writer.Execute(part)


@pytest.mark.real_ct
@pytest.mark.slow
def test_a_real_ct_and_its_copy_stored_the_other_way(segment, flare_data, tmp_path, screenshots):
    ct, reference = (flare_data / "val" / f"c3l00189_{kind}.nii.gz" for kind in ("ct", "labels"))
    run = segment(ct, "--reference", reference, "--output", tmp_path / "a", "--json")
    assert run.status == 0, run.error
    assert run.json["input"] == str(ct)
    scores = {key: row["dice"] for key, row in run.json["organs"].items()}
    assert sum(scores.values()) / 4 >= 0.75, scores
    for suffix in ("_slices.png", "_3d.png"):
        (screenshots / f"segment_ct{suffix}").write_bytes((tmp_path / "a" / f"c3l00189_ct{suffix}").read_bytes())

    turned = sitk.DICOMOrient(sitk.ReadImage(str(ct)), "RAS")
    sitk.WriteImage(turned, str(tmp_path / "turned.mha"))
    other = segment(tmp_path / "turned.mha", "--output", tmp_path / "b", "--json")
    assert other.status == 0, other.error
    original = sitk.ReadImage(str(tmp_path / "a" / "c3l00189_ct_labels.nii.gz"))
    back = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "b" / "turned_labels.nii.gz")), "LPS")
    a, b = (sitk.GetArrayFromImage(sitk.DICOMOrient(image, "LPS")) for image in (original, back))
    assert min(overlap(a, b)) >= 0.98


# Bad input: a name, what makes the arguments in a folder, and a word that the line must hold.


def missing_file(folder):
    return [folder / "nowhere.nii.gz"], "nowhere.nii.gz"


def text_as_nifti(folder):
    (folder / "text.nii.gz").write_text("Dear radiologist,\n")
    return [folder / "text.nii.gz"], "text.nii.gz"


def two_dimensional(folder):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((64, 64), np.int16)), str(folder / "flat.nii.gz"))
    return [folder / "flat.nii.gz"], "flat.nii.gz"


def magnetic_resonance(folder):
    values = np.random.default_rng(0).gamma(2.0, 120.0, (30, 40, 40)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(values), str(folder / "mr.nii.gz"))
    return [folder / "mr.nii.gz"], "mr.nii.gz"


def nothing_in_it(folder):
    sitk.WriteImage(sitk.GetImageFromArray(np.full((20, 30, 30), -1024, np.int16)), str(folder / "empty.nrrd"))
    return [folder / "empty.nrrd"], "empty.nrrd"


def folder_without_dicom(folder):
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.txt").write_text("meow")
    return [folder / "photos"], "photos"


def reference_of_another_shape(folder):
    write_phantom(folder / "ct.nrrd", spacing=(8.0, 8.0, 8.0))
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((9, 9, 9), np.uint8)), str(folder / "reference.nrrd"))
    return [folder / "ct.nrrd", "--reference", folder / "reference.nrrd"], "reference.nrrd"


def reference_elsewhere(folder):
    _, labels = write_phantom(folder / "ct.nrrd", spacing=(8.0, 8.0, 8.0))
    labels.SetOrigin((500.0, 0.0, 0.0))
    sitk.WriteImage(labels, str(folder / "shifted.nrrd"))
    return [folder / "ct.nrrd", "--reference", folder / "shifted.nrrd"], "shifted.nrrd"


def reference_in_other_numbers(folder):
    """A FLARE22 reference must not be taken for FlareSegment's: 3 is the spleen in one, a kidney in the other."""
    _, labels = write_phantom(folder / "ct.nrrd", spacing=(8.0, 8.0, 8.0))
    sitk.WriteImage(sitk.ChangeLabel(labels, changeMap={3: 13, 4: 3}), str(folder / "flare22.nrrd"))
    return [folder / "ct.nrrd", "--reference", folder / "flare22.nrrd"], "--label-ids flare22"


def unknown_model(folder):
    return ["--model", folder / "no_model"], "no_model"


def unknown_device(_folder):
    return ["--device", "abacus"], "abacus"


def unknown_option(_folder):
    return ["--fast"], "--fast"


def output_under_a_file(folder):
    (folder / "file").write_text("in the way")
    return ["--output", folder / "file" / "results"], "--output"


@pytest.mark.parametrize(
    "make",
    [
        missing_file,
        text_as_nifti,
        two_dimensional,
        magnetic_resonance,
        nothing_in_it,
        folder_without_dicom,
        reference_of_another_shape,
        reference_elsewhere,
        reference_in_other_numbers,
        unknown_model,
        unknown_device,
        unknown_option,
        output_under_a_file,
    ],
)
def test_bad_input_is_one_line_status_2_and_no_file(segment, tmp_path, make):
    source, results = tmp_path / "in", tmp_path / "results"
    source.mkdir()
    arguments, word = make(source)
    before = sorted(source.rglob("*"))
    run = segment("--output", results, *arguments)
    assert run.status == 2, run.error
    assert len(run.error.splitlines()) == 1, run.error
    assert word in run.error
    assert "Traceback" not in run.out
    assert not results.exists()
    assert sorted(source.rglob("*")) == before
