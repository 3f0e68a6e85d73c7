"""Made training cases: drawn CTs show what their tissues say, empty ones hold no organ, deformed ones take the shape
they were given; left stays left, and the script goes on where it was stopped.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.augmentation.contrast_phases import PHASES, draw_phase
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
from FlareSegmentTrainingLib.datasets.splits import split_cases
from FlareSegmentTrainingLib.synthesis import made_cases as synthesis
from FlareSegmentTrainingLib.synthesis.anatomy_transfer import TransferSettings, register
from FlareSegmentTrainingLib.synthesis.drawn_ct import TISSUES, add_body, draw_ct, draw_empty_anatomy, tissue_map
from FlareSegmentTrainingLib.synthesis.made_cases import deformed_cases, drawn_cases, empty_cases, find_label_maps

SCRIPT = Path(__file__).resolve().parents[3] / "FlareSegmentTraining" / "Scripts" / "synthesize.py"
SPACING = 4.0
NAMES = {1: "liver", 2: "kidney_right", 3: "kidney_left", 4: "spleen", 5: "vertebrae_L1", 6: "aorta", 7: "stomach"}
SHAPES_MAP = "1=spleen,2=right_kidney,3=left_kidney,5=liver"


def torso(liver=(30, 40, 30)) -> np.ndarray:
    """Ellipsoids where the structures of `NAMES` are, (z, y, x) LPS on a grid of 4 mm."""
    z, y, x = np.ogrid[0:30, 0:50, 0:70]
    result = np.zeros((30, 50, 70), np.uint8)

    def put(value, center, radius):
        result[sum(((a - c) / r) ** 2 for a, c, r in zip((z, y, x), center, radius)) < 1] = value

    put(1, (18, 22, 20), [mm / SPACING for mm in liver])
    put(2, (10, 34, 22), (7, 4, 4))
    put(3, (11, 34, 48), (7, 4, 4))
    put(4, (18, 28, 54), (6, 5, 4))
    put(5, (15, 38, 35), (20, 5, 5))
    put(6, (15, 30, 36), (20, 2, 2))
    put(7, (18, 16, 46), (5, 5, 6))
    return result


def write(path: Path, array: np.ndarray, direction=(1, 0, 0, 0, 1, 0, 0, 0, 1)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((SPACING,) * 3)
    image.SetDirection([float(value) for value in direction])
    SimpleITK.WriteImage(image, str(path))
    return path


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Structures with their table, organ shapes, and one labeled CT."""
    place = tmp_path_factory.mktemp("synthesis")
    # Stored as TotalSegmentator stores them: left-posterior turned, so that reading must turn them back.
    turned = np.ascontiguousarray(torso()[:, ::-1, ::-1])
    write(place / "structures" / "body_full.nii.gz", turned, (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    table = "".join(f"{value}\t{name}\t1000\n" for value, name in NAMES.items())
    (place / "structures" / "body_classes.tsv").write_text(table)
    shape = np.zeros_like(torso())
    for theirs, ours in ((5, 1), (2, 2), (3, 3), (1, 4)):
        shape[torso(liver=(44, 52, 40)) == ours] = theirs
    write(place / "shapes" / "person_8.nii.gz", shape)
    labels = torso()
    ct = draw_ct(
        add_body(tissue_map(labels, NAMES), SPACING, np.random.default_rng(5)), SPACING, np.random.default_rng(6)
    )
    write(place / "data" / "case1_ct.nii.gz", ct.round().astype(np.int16))
    write(place / "data" / "case1_labels.nii.gz", np.where(labels <= 4, labels, 0).astype(np.uint8))
    return place


@pytest.fixture
def run(capfd):
    """Function that runs the script in this process: (exit status, standard output, standard error)."""
    specification = importlib.util.spec_from_file_location("flaresegment_synthesize", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)

    def call(*arguments):
        status = module.main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return call


def read(path: Path) -> np.ndarray:
    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))


def test_phases_keep_their_ranges_and_shares():
    generator = np.random.default_rng(0)
    drawn = [draw_phase(generator) for _ in range(3000)]
    for name, phase in PHASES.items():
        mine = [d for d in drawn if d.name == name]
        assert len(mine) / len(drawn) == pytest.approx(phase.share, abs=0.04)
        for tissue in ("liver", "spleen", "kidney", "artery", "vein", "pancreas"):
            low, high = getattr(phase, tissue)
            assert low <= min(getattr(d, tissue) for d in mine) <= max(getattr(d, tissue) for d in mine) <= high
    assert drawn[0].organ("left_kidney") == drawn[0].organ("right_kidney") and drawn[0].organ("gallbladder") is None


def test_names_of_structures_become_tissues():
    names = {
        1: "rib_left_7",
        2: "portal_vein_and_splenic_vein",
        3: "lung_upper_lobe_left",
        4: "kidney_left",
        5: "heart",
    }
    tissues = [TISSUES[value] for value in tissue_map(np.array([0, 1, 2, 3, 4, 5]), names)]
    assert tissues == ["outside", "bone", "vein", "lung", "kidney", "heart"]


def test_a_drawn_ct_looks_like_its_tissues():
    tissues = add_body(tissue_map(torso(), NAMES), SPACING, np.random.default_rng(1))
    medians = {name: [] for name in ("liver", "bone", "fat", "spleen")}
    for seed in range(6):
        ct = draw_ct(tissues, SPACING, np.random.default_rng(seed))
        assert ct.shape == tissues.shape and ct.min() >= -1024 and ct.max() <= 3071
        assert np.median(ct[tissues == TISSUES.index("outside")]) < -900
        for name, values in medians.items():
            values.append(float(np.median(ct[tissues == TISSUES.index(name)])))
    assert all(-10 < hu < 150 for hu in medians["liver"]) and np.ptp(medians["liver"]) > 10
    assert all(hu > 150 for hu in medians["bone"]) and all(-130 < hu < -70 for hu in medians["fat"])
    again = draw_ct(tissues, SPACING, np.random.default_rng(5))
    assert np.array_equal(ct, again)


def test_the_body_closes_around_the_structures():
    structures = tissue_map(torso(), NAMES)
    body = add_body(structures, SPACING, np.random.default_rng(2))
    inside = structures != TISSUES.index("outside")
    assert np.array_equal(body[inside], structures[inside])
    assert body[15, 27, 30] != TISSUES.index("outside"), "between the organs is fat, not air"
    assert body[15, 0, 0] == TISSUES.index("outside")


@pytest.mark.parametrize("seed", range(6))
def test_empty_anatomy_has_bone_and_no_organ(seed):
    tissues = draw_empty_anatomy(4.0, np.random.default_rng(seed))
    present = {TISSUES[value] for value in np.unique(tissues)}
    assert {"outside", "bone", "skin"} <= present
    assert not present & {"liver", "kidney", "spleen", "pancreas", "gut", "colon"}


def test_the_script_draws_cases_that_training_takes(run, folders, tmp_path):
    output = tmp_path / "drawn"
    arguments = ("draw", "--structures", folders / "structures", "--count", 4, "--spacing", 4, "--output", output)
    status, _, error = run(*arguments)
    assert status == 0, error
    cases = find_cases(output)
    assert len(cases) == 4 and all(case.fixed_set == "train" for case in cases)
    for case in cases:
        _, labels, _ = case.read()
        right, left = (np.argwhere(labels == value)[:, 2].mean() for value in (2, 3))
        assert set(np.unique(labels)) == {0, 1, 2, 3, 4} and right < left
    files = {file: file.stat().st_mtime_ns for file in output.glob("*.nii.gz")}
    next(iter(output.glob("*-1_labels.nii.gz"))).unlink()
    status, said, _ = run(*arguments)
    assert status == 0 and "0 cases made" not in said
    assert sorted(output.glob("*.nii.gz")) == sorted(files)


def test_the_script_draws_empty_cases_that_training_takes(run, tmp_path):
    output = tmp_path / "empty"
    assert run("empty", "--count", 2, "--spacing", 6, "--output", output)[0] == 0
    cases = find_cases(output)
    assert [case.is_empty for case in cases] == [True, True]
    assert not cases[0].read()[1].any()
    quality = json.loads((output / "quality.json").read_text())
    assert quality["empty-000"]["liver"] == {"grade": "absent"} and quality["empty-000"]["set"] == "train"
    real = [dataclasses.replace(cases[0], name=n, patient=n, fixed_set=None, image=None) for n in "abc"]
    for seed in range(4):
        assert set(split_cases([*cases, *real], seed=seed).validation) < set("abc")
    assert "0 cases made" in run("empty", "--count", 2, "--spacing", 6, "--output", output)[1]


def test_a_deformed_ct_takes_the_other_persons_liver(run, folders, tmp_path):
    output = tmp_path / "deformed"
    command = ("deform", "--data", folders / "data", "--shapes", folders / "shapes", "--label-map", SHAPES_MAP)
    status, _, error = run(*command, "--count", 1, "--spacing", 4, "--output", output)
    assert status == 0, error
    (case,) = find_cases(output)
    assert case.patient == "case1"
    real = [dataclasses.replace(case, name=n, patient=n, fixed_set=None, image=None) for n in ("case1", "case2")]
    for fold in range(2):
        split = split_cases([case, *real], folds=2, fold=fold)
        assert (case.name in split.training) == ("case1" in split.training) and case.name not in split.validation
    labels = read(case.labels)
    mine, theirs = (np.count_nonzero(torso(liver) == 1) for liver in ((30, 40, 30), (44, 52, 40)))
    assert mine < 0.75 * np.count_nonzero(labels == 1) < theirs
    right, left = (np.argwhere(labels == value)[:, 2].mean() for value in (2, 3))
    assert right < left
    ct = read(case.image)
    original = read(folders / "data" / "case1_ct.nii.gz")
    assert np.median(ct[labels == 1]) == pytest.approx(np.median(original[torso() == 1]), abs=8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("deform", "--data", "DATA", "--shapes", "SHAPES", "--count", 1), "--label-map"),
        (("deform", "--data", "DATA", "--cases", "x", "--shapes", "SHAPES", "--label-map", "5=liver", "--count", 1),
         "--cases: x"),
        (("deform", "--data", "DATA", "--shapes", "SHAPES", "--label-map", "7=liver", "--count", 1), "person_8"),
        (("deform", "--data", "DATA", "--shapes", "NOTHING", "--label-map", SHAPES_MAP, "--count", 1), "no label map"),
        (("draw", "--structures", "SHAPES", "--count", 1), "_classes.tsv"),
        (("empty", "--count", 0), "at least 1"),
        ((), "deform|draw|empty"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(arguments, words, run, folders, tmp_path):
    places = {"DATA": folders / "data", "SHAPES": folders / "shapes", "NOTHING": tmp_path}
    full = [places.get(argument, argument) for argument in arguments]
    status, _, error = run(*full, *(["--output", tmp_path / "out"] if full else []))
    assert status == 2
    assert error.count("\n") == 1 and words in error
    assert not list((tmp_path / "out").glob("*")) if (tmp_path / "out").exists() else True


def test_a_drawn_body_can_take_another_persons_organs(folders, monkeypatch):
    """Structures are carried onto organs of the shapes, whose liver is larger; a short registration shows it too."""
    short = TransferSettings(control_points=((5, 6, 6),), iterations=15)
    monkeypatch.setattr(synthesis, "register", partial(register, settings=short))
    structures, shapes = find_label_maps(folders / "structures"), find_label_maps(folders / "shapes")
    (case,) = drawn_cases(structures, shapes, parse_label_map(SHAPES_MAP), 1, 0, SPACING, drawings=1)
    assert np.count_nonzero(case.labels == 1) > 1.3 * np.count_nonzero(torso() == 1)
    right, left = (np.argwhere(case.labels == value)[:, 2].mean() for value in (2, 3))
    assert right < left
    assert case.grades["liver"] == "B" and case.image.shape == case.labels.shape
    assert -10 < np.median(case.image[case.labels == 1]) < 150, "a liver is drawn where the labels say so"


def test_what_is_there_already_is_not_made_again(folders, tmp_path):
    structures = find_label_maps(folders / "structures")
    for name in ("body-000-0", "body-000-1", "empty-000"):
        (tmp_path / f"{name}_labels.nii.gz").write_bytes(b"")
    drawn = drawn_cases(structures, [], None, 4, 0, SPACING, done=tmp_path, drawings=2)
    assert [case.name for case in drawn] == ["body-001-0", "body-001-1"]
    assert [case.name for case in empty_cases(2, 0, 8.0, done=tmp_path)] == ["empty-001"]
    data, shapes = find_cases(folders / "data"), find_label_maps(folders / "shapes")
    (tmp_path / "case1-person_8-000_labels.nii.gz").write_bytes(b"")
    assert list(deformed_cases(data, shapes, parse_label_map(SHAPES_MAP), 1, 0, SPACING, done=tmp_path)) == []
    left = []
    again = deformed_cases(data, shapes, parse_label_map(SHAPES_MAP), 1, 0, SPACING, tmp_path, left_out=left.append)
    assert not list(again)
    assert left == []


def test_fewer_than_two_common_organs_guide_no_deformation(folders, tmp_path):
    """A liver alone says where the liver is and nothing of the rest: such a case is left out."""
    shape = write(tmp_path / "only_liver.nii.gz", np.where(torso() == 1, 5, 0).astype(np.uint8))
    data = find_cases(folders / "data")
    assert list(deformed_cases(data, [shape], parse_label_map("5=liver"), 2, 0, SPACING)) == []
    lines, reasons = [], []
    told = (None, lines.append, reasons.append)
    assert not list(deformed_cases(data, [shape], parse_label_map("5=liver"), 2, 0, SPACING, *told))
    assert [line[:5] for line in lines] == ["[1/2]", "[2/2]"] and "only_liver" in lines[0]
    assert len(reasons) == 2 and "only_liver.nii.gz has liver" in reasons[0] and "two organs" in reasons[0]


def test_no_case_at_all_is_said_with_the_reason_and_a_status(run, folders, tmp_path):
    (tmp_path / "shapes").mkdir()
    write(tmp_path / "shapes" / "only_liver.nii.gz", np.where(torso() == 1, 5, 0).astype(np.uint8))
    shapes = ("--shapes", tmp_path / "shapes", "--label-map", "5=liver")
    command = ("deform", "--data", folders / "data", *shapes, "--count", 2, "--output", tmp_path / "out")
    status, out, error = run(*command)
    assert status == 2 and error.count("\n") == 1
    assert "None of 2 cases can be made" in error and "only_liver.nii.gz has liver" in error
    assert "[1/2]" in out, "progress is told before minutes of work"


def test_label_maps_that_cannot_be_used_are_named(folders, tmp_path):
    with pytest.raises(InputError, match="holds no label map"):
        find_label_maps(tmp_path / "nowhere")
    nothing = write(tmp_path / "nothing.nii.gz", np.zeros((12, 12, 12), np.uint8))
    with pytest.raises(InputError, match="nothing.nii.gz holds none of the organs"):
        list(deformed_cases(find_cases(folders / "data"), [nothing], parse_label_map(SHAPES_MAP), 1, 0, SPACING))


@pytest.mark.parametrize("table", ["one\tliver\n", "1\n", b"\xff\xfe1\tliver"])
def test_a_damaged_table_of_structures_is_named(tmp_path, table):
    body = write(tmp_path / "body.nii.gz", torso())
    (tmp_path / "body_classes.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
    with pytest.raises(InputError, match="body_classes.tsv is no table"):
        list(drawn_cases([body], [], None, 1, 0, SPACING))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("kind", ["ct.nii.gz", "labels.nii.gz", "quality.json"])
def test_a_full_disk_leaves_no_case_that_looks_whole(run, tmp_path, kind):
    """ITK's writer does not notice it, and prints; a case that is there is never made again."""
    name = kind if kind == "quality.json" else f"empty-000_{kind}"
    (tmp_path / f".{os.getpid()}-{name}").symlink_to("/dev/full")
    arguments = ("empty", "--count", 1, "--spacing", 8, "--output", tmp_path)
    status, _, told = run(*arguments)
    assert status == 2
    assert told.count("\n") == 1 and f"{name} cannot be written (" in told
    assert not (tmp_path / name).exists() and not list(tmp_path.glob(".*"))
    assert run(*arguments)[0] == 0
    assert list(json.loads((tmp_path / "quality.json").read_text())) == ["empty-000"]
