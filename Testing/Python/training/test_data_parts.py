"""Which cases and labels count: lists, parts, names, folders of masks, archives; and reasons for what is not used."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from pathlib import Path

import data_layouts as layouts
import dicom_files
import numpy as np
import pydicom
import pytest
import SimpleITK

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.cases import find_cases, with_patients
from FlareSegmentTrainingLib.datasets.dataset_layouts import find_pairs
from FlareSegmentTrainingLib.datasets.file_pairs import LeftOut, pair_files
from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
from FlareSegmentTrainingLib.datasets.parts import side_of_folder, side_of_location

OWN = parse_label_map("flaresegment")
NAMES = {"0": "background", "1": "liver", "2": "right kidney", "3": "left kidney", "4": "spleen"}


def test_the_list_of_nnunets_first_version_decides(tmp_path: Path) -> None:
    for number in range(4):
        image = tmp_path / f"imagesTr/case{number}_0000.nii.gz"
        layouts.write_pair(image, tmp_path / f"labelsTr2/case{number}.nii.gz", number)
        layouts.write_pair(image, tmp_path / f"labelsTr/case{number}.nii.gz", number, (1, 2))
    listed = [{"image": f"./imagesTr/case{n}.nii.gz", "label": f"./labelsTr2/case{n}.nii.gz"} for n in range(2)]
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "CT"}, "labels": NAMES, "training": listed}))
    told: list[LeftOut] = []
    found = find_cases(tmp_path, left_out=told.append)
    assert [case.labels.parent.name for case in found] == ["labelsTr2", "labelsTr2"]
    assert [str(item) for item in told] == [
        f"case{number} is left out: it is not in dataset.json's list" for number in (2, 3)
    ]


@pytest.mark.parametrize("files", ["NFC", "NFD"])
@pytest.mark.parametrize("listed", ["NFC", "NFD"])
def test_a_list_finds_files_with_a_channel_in_either_spelling_of_an_umlaut(
    tmp_path: Path, files: str, listed: str
) -> None:
    for number in range(2):
        name = unicodedata.normalize(files, f"Jürgen {number}")
        image, labels = tmp_path / f"imagesTr/{name}_0000.nii.gz", tmp_path / f"labelsTr/{name}.nii.gz"
        layouts.write_pair(image, labels, number)
    names = [unicodedata.normalize(listed, f"Jürgen {number}.nii.gz") for number in range(2)]
    pairs = [{"image": f"imagesTr/{name}", "label": f"labelsTr/{name}"} for name in names]
    content = {"labels": NAMES, "training": pairs[:1], "validation": pairs[1:]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = find_cases(tmp_path)
    assert [case.fixed_set for case in found] == ["train", "val"]
    assert [case.read()[0].array.shape for case in found]


@pytest.mark.parametrize("key", ["validation", "val", "valid"])
def test_a_lists_validation_part_is_kept(tmp_path: Path, key: str) -> None:
    for number in range(3):
        layouts.write_pair(
            tmp_path / f"imagesTr/case{number}.nii.gz", tmp_path / f"labelsTr/case{number}.nii.gz", number
        )
    listed = [{"image": f"imagesTr/case{n}.nii.gz", "label": f"labelsTr/case{n}.nii.gz"} for n in range(3)]
    content = {"labels": NAMES, "training": listed[:2], key: listed[2:], "test": listed[2:]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert [case.fixed_set for case in find_cases(tmp_path)] == ["train", "train", "val"]
    assert find_pairs(tmp_path).unused == ("1 labeled test cases of its list",)
    (tmp_path / "dataset.json").rename(tmp_path / "split.json")
    assert [case.fixed_set for case in find_cases(tmp_path / "split.json")] == ["train", "train", "val"]


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("{side}/images", "{side}/labels"),
        ("images/{side}", "labels/{side}"),
        ("images{short}", "labels{short}"),
        ("{side}_images", "{side}_masks"),
    ],
)
@pytest.mark.parametrize("words", [("train", "Tr", "valid", "Val"), ("training", "Tr", "validation", "Va")])
def test_parts_fix_the_sides(tmp_path: Path, images: str, labels: str, words: tuple[str, ...]) -> None:
    for number in range(3):
        side, short = words[:2] if number < 2 else words[2:]
        folders = [pattern.format(side=side, short=short) for pattern in (images, labels)]
        layouts.write_pair(
            tmp_path / folders[0] / f"c{number}.nii.gz", tmp_path / folders[1] / f"c{number}.nii.gz", number
        )
    found = find_cases(tmp_path, label_map=OWN)
    assert [(case.name, case.fixed_set) for case in found] == [("c0", "train"), ("c1", "train"), ("c2", "val")]


def test_what_is_not_used_is_said(tmp_path: Path) -> None:
    for part in ("Tr", "Ts", "Extra"):
        layouts.write_pair(tmp_path / f"images{part}/{part}.nii.gz", tmp_path / f"labels{part}/{part}.nii.gz", 0)
    lines: list[str] = []
    assert [case.name for case in find_cases(tmp_path, label_map=OWN, say=lines.append)] == ["Tr"]
    assert "imagesTs/ with labelsTs/ holds 1 labeled test cases" in lines[0] and "imagesExtra/" in lines[0]


def test_locations_called_train_and_val_keep_their_sides(tmp_path: Path) -> None:
    layouts.flat(tmp_path / "X/train", ("a", "b"))
    layouts.flat(tmp_path / "X/val", ("a",), first_seed=5)
    found = find_cases([tmp_path / "X/train", tmp_path / "X/val"])
    assert [(case.name, case.fixed_set) for case in found] == [("a", "train"), ("b", "train"), ("val_a", "val")]
    assert [case.fixed_set for case in find_cases(tmp_path / "X/val")] == [None]
    inner = layouts.flat(tmp_path / "Y/validation/cts", ("c",)), layouts.flat(tmp_path / "Y/training/cts", ("d",))
    assert [side_of_location(place) for place in inner] == ["val", "train"]
    assert side_of_folder("Testing") == "test" and side_of_folder("images") is None


def pairs_of(images: list[str], labels: list[str]) -> tuple[dict[str, str], list[str]]:
    pairs, left_out = pair_files({n: Path(n) for n in images}, {n: Path(n) for n in labels}, ("images", "labels"))
    return {str(pair.image): str(pair.labels) for pair in pairs}, [item.name for item in left_out]


def test_exact_names_come_first_and_a_shared_key_pairs_nothing() -> None:
    assert pairs_of(["001", "ct_001"], ["001"]) == ({"001": "001"}, ["ct_001"])
    assert pairs_of(["ct_001", "img_001"], ["label_001"]) == ({}, ["ct_001", "img_001", "label_001"])
    assert pairs_of(["img_001"], ["label_001", "seg_001"]) == ({}, ["img_001", "label_001", "seg_001"])
    assert pairs_of(["ct_001", "ct_002"], ["label_001"]) == ({"ct_001": "label_001"}, ["ct_002"])
    numbered = [f"case_{number:04d}" for number in range(4)]
    assert pairs_of(numbered, numbered) == ({name: name for name in numbered}, [])
    assert pairs_of(["a_0000", "b_0000"], ["a", "b"]) == ({"a_0000": "a", "b_0000": "b"}, [])
    assert pairs_of(["img_0000", "img_0001"], ["label_0000", "label_0001"]) == (
        {"img_0000": "label_0000", "img_0001": "label_0001"},
        [],
    )
    assert pairs_of(["ct_a_0000"], ["seg_a"]) == ({"ct_a_0000": "seg_a"}, [])
    with pytest.raises(InputError, match="channels"):
        pairs_of(["a_0000", "a_0001"], ["a"])


def test_an_umlaut_in_either_spelling_is_one_letter(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    layouts.write_pair(tmp_path / f"images/{one}.nii.gz", tmp_path / f"labels/{two}.nii.gz", 0)
    (case,) = find_cases(tmp_path, label_map=OWN)
    assert case.name == one
    (tmp_path / "list.csv").write_text(f"image,labels\nimages/{two}.nii.gz,labels/{one}.nii.gz\n", encoding="utf-8")
    (case,) = find_cases(tmp_path / "list.csv", label_map=OWN)
    case.read()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_lists_from_windows(tmp_path: Path, delimiter: str, encoding: str) -> None:
    layouts.write_pair(tmp_path / "images/Jörg.nii.gz", tmp_path / "labels/Jörg.nii.gz", 0)
    rows = [["case", "image", "labels", "label_map"], ["one", "images\\Jörg.nii.gz", "labels\\Jörg.nii.gz", "flare22"]]
    (tmp_path / "list.csv").write_bytes("\r\n".join(map(delimiter.join, rows)).encode(encoding))
    (case,) = find_cases(tmp_path / "list.csv")
    assert (case.name, case.label_map.source) == ("one", "flare22 in list.csv")


def test_a_list_none_of_whose_files_is_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("image,labels\na.nii.gz,b.nii.gz\n")
    with pytest.raises(InputError, match=r"holds no case that can be used: a is left out: a.nii.gz and b.nii.gz: miss"):
        find_cases(tmp_path / "list.csv")


# Folders of masks ---------------------------------------------------------------------------------


def totalsegmentator(folder: Path, count: int = 3) -> Path:
    """As TotalSegmentator's data set unpacks, with meta.csv."""
    names = {1: "liver", 2: "kidney_right", 3: "kidney_left", 4: "spleen", 5: "lung_upper_lobe_left"}
    for number in range(count):
        ct, truth = layouts.ct_and_labels(number, (1, 2, 3, 4, 5))
        layouts.write(folder / f"s{number:04d}/ct.nii.gz", ct)
        for value, name in names.items():
            mask = (truth == value).astype(np.uint8)
            layouts.write(folder / f"s{number:04d}/segmentations/{name}.nii.gz", mask)
    sides = ["train", "val", "test"]
    rows = [f"s{number:04d};50;f;{sides[number % 3]}" for number in range(count)]
    (folder / "meta.csv").write_text("\n".join(["image_id;age;gender;split", *rows]))
    return folder


def test_totalsegmentators_data_set(tmp_path: Path) -> None:
    folder = totalsegmentator(tmp_path / "Totalsegmentator_dataset_v201")
    (folder / "s0000/segmentations/spleen.nii.gz").unlink()
    lines: list[str] = []
    first, second = find_cases(tmp_path, say=lines.append)
    assert (first.name, first.fixed_set, second.name, second.fixed_set) == ("s0000", "train", "s0001", "val")
    assert first.labeled == {"liver", "right_kidney", "left_kidney"} and len(second.labeled) == 4
    np.testing.assert_array_equal(second.read()[1], layouts.ct_and_labels(1)[1])
    assert "1 cases that meta.csv keeps for tests" in lines[0]
    before = first.content_hash()
    (folder / "s0000/segmentations/lung_upper_lobe_left.nii.gz").unlink()
    assert first.content_hash() == before
    layouts.write(folder / "s0000/segmentations/liver.nii.gz", np.ones(layouts.SHAPE, np.uint8))
    assert first.content_hash() != before


def test_a_folder_for_each_case_with_one_label_map(tmp_path: Path) -> None:
    for number in range(2):
        layouts.write_pair(
            tmp_path / f"case_{number:05d}/imaging.nii.gz", tmp_path / f"case_{number:05d}/segmentation.nii.gz", number
        )
    layouts.write(tmp_path / "case_00002/imaging.nii.gz", layouts.ct_and_labels(2)[0])
    told: list[LeftOut] = []
    assert len(find_cases(tmp_path, label_map=OWN, left_out=told.append)) == 2
    assert [str(item) for item in told] == ["case_00002 is left out: it has no labels"]


@pytest.mark.parametrize(
    ("image", "labels"),
    [
        ("x.nrrd", "x.seg.nrrd"),
        ("x.nii.gz", "x_seg.nii.gz"),
        ("ct_x.nii", "mask_x.nii"),
        ("x/ct.nrrd", "x/Segmentation.seg.nrrd"),
        ("x/image.nrrd", "x/by me.seg.nrrd"),
    ],
)
def test_labels_in_the_images_own_folder(tmp_path: Path, image: str, labels: str) -> None:
    layouts.write_pair(tmp_path / image, tmp_path / labels, 0)
    (case,) = find_cases(tmp_path, label_map=OWN)
    assert case.name == "x"
    np.testing.assert_array_equal(case.read()[1], layouts.ct_and_labels(0)[1])


def test_monai_labels_finished_labels(tmp_path: Path) -> None:
    for number in range(3):
        layouts.write(tmp_path / f"scan{number}.nii.gz", layouts.ct_and_labels(number)[0])
        layouts.write(tmp_path / f"labels/original/scan{number}.nii.gz", layouts.ct_and_labels(number)[1])
    for number in range(2):
        layouts.write(tmp_path / f"labels/final/scan{number}.nii.gz", layouts.ct_and_labels(number)[1])
    names = {"params": {"label_names": {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}}}
    objects = {f"scan{n}": {"labels": {"final": {"ext": ".nii.gz", "info": names}}} for n in range(2)}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    told: list[LeftOut] = []
    found = find_cases(tmp_path, left_out=told.append)
    assert [case.labels.parent.name for case in found] == ["final", "final"] and told[0].name == "scan2"
    np.testing.assert_array_equal(found[1].read()[1], layouts.ct_and_labels(1)[1])


def as_mask(source: Path, place: Path, mask: np.ndarray) -> None:
    """A DICOM slice that holds a mask, with the CT's own header."""
    dataset = pydicom.dcmread(source)
    dataset.PixelData = (mask * 255).astype(dataset.pixel_array.dtype).tobytes()
    place.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(place, enforce_file_format=True)


def test_3dircadb(tmp_path: Path) -> None:
    case = tmp_path / "3Dircadb1.1"
    _, truth, files = dicom_files.patient(case / "PATIENT_DICOM", "x")
    for value, name in ((1, "liver"), (2, "rightkidney"), (3, "leftkidney"), (4, "livertumor1")):
        for number, file in enumerate(files):
            as_mask(file, case / "MASKS_DICOM" / name / file.name, truth[number] == value)
    (found,) = find_cases(tmp_path)
    assert found.labeled == {"liver", "right_kidney", "left_kidney"}
    np.testing.assert_array_equal(found.read()[1], np.where(truth == 4, 0, truth))
    (case / f"MASKS_DICOM/liver/{files[3].name}").unlink()
    with pytest.raises(InputError, match="liver/ lacks 1 slices"):
        found.read()


def test_chaos(tmp_path: Path) -> None:
    folder = tmp_path / "Train_Sets/CT/1"
    _, truth, files = dicom_files.patient(folder / "DICOM_anon", "x")
    (folder / "Ground").mkdir()
    for number in range(len(files)):
        picture = SimpleITK.GetImageFromArray(((truth[number] == 1) * 255).astype(np.uint8))
        SimpleITK.WriteImage(picture, str(folder / f"Ground/liver_GT_{number:03d}.png"))
    (case,) = find_cases(tmp_path)
    assert (case.name, case.labeled) == ("CT_1", {"liver"})
    np.testing.assert_array_equal(case.read()[1], (truth == 1).astype(np.uint8))
    air = SimpleITK.GetImageFromArray(np.pad(np.full((4, 40), 255, np.uint8), ((0, 28), (0, 0))))
    for number in range(len(files)):
        SimpleITK.WriteImage(air, str(folder / f"Ground/liver_GT_{number:03d}.png"))
    with pytest.raises(InputError, match="do not lie on soft tissue"):
        case.read()
    (folder / "Ground/liver_GT_000.png").unlink()
    with pytest.raises(InputError, match="19 pictures for 20 slices"):
        case.read()


# Archives and other files -------------------------------------------------------------------------


def test_a_zip_of_windows_powershell(tmp_path: Path) -> None:
    layouts.write_pair(tmp_path / "files/images/a.nii.gz", tmp_path / "files/labels/a.nii.gz", 0)
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for name in ("data/", "data/images/", "data/labels/", "data/images/a.nii.gz", "data/labels/a.nii.gz"):
            entry = zipfile.ZipInfo(name)
            entry.filename, entry.create_system = name.replace("/", "\\"), 0
            content = b"" if name.endswith("/") else (tmp_path / name.replace("data/", "files/")).read_bytes()
            archive.writestr(entry, content)
    assert len(find_cases(tmp_path / "data.zip", label_map=OWN, say=lambda line: None)) == 1


@pytest.mark.parametrize("kind", ["bz2", "xz"])
def test_other_tar_files(tmp_path: Path, kind: str) -> None:
    import tarfile

    layouts.flat(tmp_path / "files", ("a",))
    with tarfile.open(tmp_path / f"data.tar.{kind}", f"w:{kind}") as archive:
        archive.add(tmp_path / "files", "files")
    assert [case.name for case in find_cases(tmp_path / f"data.tar.{kind}", say=lambda line: None)] == ["a"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("task.7z", "nor an archive that can be read .*unpack it and name the folder"),
        ("task.zip.001", "nor an archive that can be read"),
        ("ct.nii.gz", "is one volume: name the folder"),
        ("nested.zip", r"nested.zip holds archives \(inner/images.zip\): unpack them"),
        ("folder", r"It holds archives \(images.zip\)"),
    ],
)
def test_other_files_are_called_what_they_are(tmp_path: Path, name: str, words: str) -> None:
    for file in ("task.7z", "task.zip.001", "ct.nii.gz"):
        (tmp_path / file).write_bytes(b"7z\xbc\xaf\x27\x1c")
    with zipfile.ZipFile(tmp_path / "nested.zip", "w") as archive:
        archive.writestr("inner/images.zip", b"PK")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/images.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=words) as caught:
        find_cases(tmp_path / name, say=lambda line: None)
    assert "JSON:" not in str(caught.value) and "\n" not in str(caught.value)


def test_patients_by_a_pattern(tmp_path: Path) -> None:
    import re

    cases = with_patients(find_cases(layouts.flat(tmp_path, ("P1_a", "P1_b", "x"))), re.compile(r"^(P\d+)_"))
    assert [case.patient for case in cases] == ["P1", "P1", "x"]


def test_a_pattern_that_fits_no_or_not_every_name_is_said(tmp_path: Path) -> None:
    import re

    cases = find_cases(layouts.flat(tmp_path, ("P1_a", "x")))
    lines: list[str] = []
    with_patients(cases, re.compile(r"^(P\d+)_"), lines.append)
    assert lines == [r"Warning: --patient-pattern ^(P\d+)_ does not fit x; no other patient is read there"]
    with pytest.raises(InputError, match="fits the name of no case: P1_a, x"):
        with_patients(cases, re.compile(r"^(Q\d+)_"))


def test_a_patient_of_two_data_sets_with_the_same_names_is_one(tmp_path: Path) -> None:
    import re

    for number, visit in enumerate(("first", "second")):
        layouts.flat(tmp_path / visit, ("P1_a", "P2_a"), first_seed=9 * number)
    cases = with_patients(find_cases([tmp_path / "first", tmp_path / "second"]), re.compile(r"^(P\d+)_"))
    assert [case.name for case in cases] == ["P1_a", "P2_a", "second_P1_a", "second_P2_a"]
    assert [case.patient for case in cases] == ["P1", "P2", "P1", "P2"]


@pytest.mark.parametrize("pattern", ["{part}/{name}_ct", "images/{part}/{name}"])
def test_folders_of_no_known_part_are_said(tmp_path: Path, pattern: str) -> None:
    for number, part in enumerate(("train", "val", "extra")):
        image = tmp_path / f"{pattern.format(part=part, name=number)}.nii.gz"
        labels = Path(str(image).replace("_ct", "_labels").replace("/images/", "/labels/"))
        layouts.write_pair(image, labels, number)
    lines: list[str] = []
    assert [case.fixed_set for case in find_cases(tmp_path, label_map=OWN, say=lines.append)] == ["train", "val"]
    assert len(lines) == 1 and "extra/" in lines[0]


def test_test_cases_and_folds_of_a_list_are_said(tmp_path: Path) -> None:
    for number in range(3):
        layouts.write_pair(tmp_path / f"i{number}.nii.gz", tmp_path / f"l{number}.nii.gz", number)
    rows = [f"i{n}.nii.gz,l{n}.nii.gz,{side},0" for n, side in enumerate(("training", "validation", "test"))]
    file = tmp_path / "list.csv"
    file.write_text("\n".join(["image,labels,set,fold", *rows]))
    lines: list[str] = []
    assert [case.fixed_set for case in find_cases(file, label_map=OWN, say=lines.append)] == ["train", "val"]
    assert "not used: 1 test cases of the list; the folds of the list" in lines[0]
    file.write_text("image,labels,label_map\ni0.nii.gz,l0.nii.gz,nonsense\n")
    with pytest.raises(InputError, match=r"list.csv, label_map of entry 1: nonsense: neither"):
        find_cases(file)


def test_the_file_of_a_list_that_explains_labels_lies_beside_it(tmp_path: Path) -> None:
    layouts.write_pair(tmp_path / "i0.nii.gz", tmp_path / "l0.nii.gz", 0)
    (tmp_path / "values.json").write_text(json.dumps({"liver": 4, "other": [1, 2, 3]}), encoding="utf-8")
    (tmp_path / "list.csv").write_text("image,labels,label_map\ni0.nii.gz,l0.nii.gz,values.json\n")
    (case,) = find_cases(tmp_path / "list.csv")
    assert (case.label_map.source, case.label_map.organs[0][0]) == ("values.json in list.csv", 4)


def test_an_incomplete_entry_of_a_list_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    pairs = []
    for number in range(3):
        layouts.write_pair(tmp_path / f"images/i{number}.nii.gz", tmp_path / f"labels/i{number}.nii.gz", number)
        pairs.append({"image": f"images/i{number}.nii.gz", "label": f"labels/i{number}.nii.gz"})
    listed = [pairs[0], {"image": "images/i1.nii.gz"}, {"case": "p7", "label": ["a", "b"]}, "i2.nii.gz", pairs[2]]
    reasons = ["entry 2 of {} names no labels", "entry 3 of {} names no image and no labels",
               "entry 4 of {} names no image and no labels"]  # fmt: skip
    names = ["i1", "p7", "entry 4 of {}"]

    def told_of(location: Path) -> list[LeftOut]:
        told: list[LeftOut] = []
        assert [case.name for case in find_cases(location, label_map=OWN, left_out=told.append)] == ["i0", "i2"]
        return told

    for file, content in (("list.json", listed), ("list.json", {"cases": listed})):
        (tmp_path / file).write_text(json.dumps(content))
        expected = [LeftOut(name.format(file), reason.format(file)) for name, reason in zip(names, reasons)]
        assert told_of(tmp_path / file) == expected
    (tmp_path / "list.csv").write_text(
        "image,labels\nimages/i0.nii.gz,labels/i0.nii.gz\nimages/i1.nii.gz,\nimages/i2.nii.gz,labels/i2.nii.gz\n"
    )
    assert told_of(tmp_path / "list.csv") == [LeftOut("i1", "entry 2 of list.csv names no labels")]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": NAMES, "training": listed}))
    assert [str(item) for item in told_of(tmp_path)][:3] == [
        f"{name} is left out: {reason}".format(*["dataset.json"] * 2) for name, reason in zip(names, reasons)
    ]
    (tmp_path / "list.json").write_text(json.dumps([{"image": "images/i1.nii.gz"}]))
    with pytest.raises(InputError, match="no case that can be used: i1 is left out: entry 1 of list.json names no"):
        find_cases(tmp_path / "list.json", left_out=lambda item: None)


def test_folds_of_nnunet_are_said(tmp_path: Path) -> None:
    folder = layouts.nnunet(tmp_path, 2)
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["case_0000"], "val": ["case_0001"]}]))
    assert any("splits_final.json" in text for text in find_pairs(folder).unused)
