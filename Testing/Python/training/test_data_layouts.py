"""Finding and reading cases in every layout that data sets come in, and naming what cannot be used."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import zipfile
from functools import partial
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS, organ_by_key
from FlareSegmentTrainingLib.datasets import archives, cases
from FlareSegmentTrainingLib.datasets.cases import Case, find_cases
from FlareSegmentTrainingLib.datasets.dataset_layouts import LeftOut, find_pairs
from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
from FlareSegmentTrainingLib.datasets.splits import split_cases


def expected(seed: int, meaning: dict[int, str | None]) -> np.ndarray:
    """The labels of `layouts.ct_and_labels` in FlareSegment's values."""
    values = layouts.ct_and_labels(seed, tuple(meaning))[1]
    result = np.zeros_like(values)
    for value, key in meaning.items():
        if key:
            result[values == value] = organ_by_key(key).label
    return result


def check(case: Case, seed: int, meaning: dict[int, str | None]) -> None:
    volume, labels, _ = case.read()
    np.testing.assert_array_equal(volume.array, layouts.ct_and_labels(seed, tuple(meaning))[0])
    np.testing.assert_array_equal(labels, expected(seed, meaning))
    assert volume.spacing == layouts.SPACING
    labeled = {key for key in meaning.values() if key}
    assert case.weights == {organ.key: float(organ.key in labeled) for organ in FLARE22_ORGANS}


FLARE22 = {organ.flare22_label: organ.key for organ in sorted(FLARE22_ORGANS, key=lambda organ: organ.flare22_label)}


def test_flare22_as_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = layouts.flare22(tmp_path / "source/FLARE22Train")
    archive = Path(shutil.make_archive(str(tmp_path / "FLARE22Train"), "zip", tmp_path / "source"))
    lines: list[str] = []
    found = find_cases(archive, say=lines.append)
    assert [case.name for case in found] == ["FLARE22_Tr_0001", "FLARE22_Tr_0002", "FLARE22_Tr_0003"]
    for seed, case in enumerate(found, start=1):
        check(case, seed, FLARE22)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    assert digest in lines[0]
    assert any("not the published file" in line and line.startswith("Warning") for line in lines)

    monkeypatch.setitem(archives.PUBLISHED_SHA256, "FLARE22Train.zip", digest)
    lines.clear()
    assert find_cases(archive, say=lines.append) == found
    assert "as published" in lines[0] and not any("Warning" in line for line in lines)
    assert "0 files unpacked, 6 were there" in lines[-1]
    assert [case.name for case in find_cases(source)] == [case.name for case in found]


def test_flare22_as_the_challenge_gives_it(tmp_path: Path) -> None:
    layouts.flare22(tmp_path / "source", 2)
    (tmp_path / "FLARE22_LabeledCase50").mkdir()
    shutil.make_archive(str(tmp_path / "FLARE22_LabeledCase50/images"), "zip", tmp_path / "source", "images")
    shutil.make_archive(str(tmp_path / "FLARE22_LabeledCase50/labels"), "zip", tmp_path / "source/labels")
    for _ in range(2):
        found = find_cases(tmp_path / "FLARE22_LabeledCase50", say=lambda line: None)
        assert [case.name for case in found] == ["FLARE22_Tr_0001", "FLARE22_Tr_0002"]
        check(found[1], 2, FLARE22)


def test_copies_that_unpacked_to_folders(tmp_path: Path) -> None:
    ct, labels = layouts.ct_and_labels(1, tuple(FLARE22))
    layouts.write(tmp_path / "images/FLARE22_Tr_0001_0000.nii/FLARE22_Tr_0001_0000.nii", ct)
    layouts.write(tmp_path / "labels/FLARE22_Tr_0001.nii/FLARE22_Tr_0001.nii", labels)
    (tmp_path / "labels/FLARE22_Tr_0001.nii/._FLARE22_Tr_0001.nii").write_bytes(b"macOS")
    (case,) = find_cases(tmp_path)
    check(case, 1, FLARE22)


def test_decathlon_liver_counts_the_tumor_as_liver(tmp_path: Path) -> None:
    found = find_cases(layouts.decathlon(tmp_path / "Task03_Liver"))
    assert [case.name for case in found] == ["liver_0", "liver_1"]
    check(found[1], 1, {1: "liver", 2: "liver"})


def test_decathlon_spleen_has_only_the_spleen(tmp_path: Path) -> None:
    archive = shutil.make_archive(
        str(tmp_path / "Task09_Spleen"), "tar", layouts.decathlon(tmp_path / "x/Task09_Spleen", "spleen").parent
    )
    found = find_cases(archive, say=lambda line: None)
    check(found[0], 0, {1: "spleen"})
    assert found[0].labeled == {"spleen"}


@pytest.mark.parametrize("version", [1, 2])
def test_nnunet(tmp_path: Path, version: int) -> None:
    found = find_cases(layouts.nnunet(tmp_path / "Dataset001_Abdomen", version))
    assert [case.name for case in found] == ["case_0000", "case_0001"]
    for seed, case in enumerate(found):
        check(case, seed, {1: "spleen", 2: "left_kidney", 3: "right_kidney", 4: "liver", 5: None})


def test_nnunet_with_several_channels_is_refused(tmp_path: Path) -> None:
    folder = layouts.nnunet(tmp_path, 2)
    shutil.copy(folder / "imagesTr/case_0000_0000.nii.gz", folder / "imagesTr/case_0000_0001.nii.gz")
    with pytest.raises(InputError, match="channels"):
        find_cases(folder)


def test_nnunet_with_listed_files(tmp_path: Path) -> None:
    layouts.write_pair(tmp_path / "ct/one.nii.gz", tmp_path / "seg/one.nii.gz", 0, (1,))
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "spleen": 1},
        "dataset": {"one": {"images": ["ct/one.nii.gz"], "label": "seg/one.nii.gz"}},
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    check(find_cases(tmp_path)[0], 0, {1: "spleen"})


@pytest.mark.parametrize("name", ["../secret.nii.gz", "/etc/passwd", "imagesTr/../../secret.nii.gz"])
def test_dataset_json_cannot_reach_out_of_its_folder(tmp_path: Path, name: str) -> None:
    folder = layouts.decathlon(tmp_path / "set")
    content = json.loads((folder / "dataset.json").read_text())
    content["training"][0]["image"] = name
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="outside of its folder"):
        find_cases(folder)


@pytest.mark.parametrize("image", ["case_ct.nrrd", "case.mha", "case_0000.nii.gz", "ct_case.nii", "case-image.nii.gz"])
def test_plain_folders_need_a_label_map(tmp_path: Path, image: str) -> None:
    layouts.write_pair(tmp_path / "images" / image, tmp_path / "labels/case.nii.gz", 3, (5, 6, 9))
    with pytest.raises(InputError, match="--label-map"):
        find_cases(tmp_path)
    (case,) = find_cases(tmp_path, label_map=parse_label_map("5=spleen,6=liver,9=other"))
    assert case.name == "case"
    check(case, 3, {5: "spleen", 6: "liver", 9: None})


def test_imagesVa_is_a_fixed_validation_set(tmp_path: Path) -> None:
    for number, side in ((1, "Tr"), (2, "Tr"), (3, "Va")):
        name = f"amos_{number:04d}.nii.gz"
        layouts.write_pair(tmp_path / f"images{side}" / name, tmp_path / f"labels{side}" / name, number)
    split = split_cases(find_cases(tmp_path, label_map=parse_label_map("amos")))
    assert (split.training, split.validation) == (("amos_0001", "amos_0002"), ("amos_0003",))


def test_flat_pairs_with_grades_and_fixed_sides(tmp_path: Path) -> None:
    layouts.flat(tmp_path / "train", ("a", "b"))
    layouts.flat(tmp_path / "val", ("c",), first_seed=5)
    grades = {"liver": {"grade": "C"}, "spleen": {"grade": "ignore"}}
    (tmp_path / "quality.json").write_text(json.dumps({"a": {"patient": "p1", **grades}, "c": {"set": "val"}}))
    found = {case.name: case for case in find_cases(tmp_path)}
    assert {name: case.fixed_set for name, case in found.items()} == {"a": "train", "b": "train", "c": "val"}
    assert found["a"].weights["liver"] == 0.5
    assert found["a"].labeled == {"liver", "right_kidney", "left_kidney"}
    assert found["b"].labeled == {organ.key for organ in ORGANS}
    assert (found["a"].patient, found["b"].patient) == ("p1", "b")
    check(found["c"], 5, {organ.label: organ.key for organ in ORGANS})


def test_flat_pairs_without_labels_are_named(tmp_path: Path) -> None:
    layouts.flat(tmp_path)
    (tmp_path / "b_labels.nii.gz").unlink()
    told: list[LeftOut] = []
    assert [case.name for case in find_cases(tmp_path, left_out=told.append)] == ["a"]
    assert [(item.name, "missing" in item.reason) for item in told] == [("b", True)]


@pytest.mark.parametrize("quality", ["{broken", "[]", '{"a": []}', '{"a": {"liver": {"grade": "Z"}}}'])
def test_bad_grades_are_refused(tmp_path: Path, quality: str) -> None:
    layouts.flat(tmp_path)
    (tmp_path / "quality.json").write_text(quality)
    with pytest.raises(InputError):
        find_cases(tmp_path)


def rows(folder: Path) -> list[dict]:
    layouts.write_pair(folder / "one scan.nii.gz", folder / "ein Ümlaut.nii.gz", 1, (1, 2, 3, 4))
    layouts.write_pair(folder / "b.nrrd", folder / "b_seg.nrrd", 2, (1, 2, 3, 13))
    return [
        {"case": "first", "image": "one scan.nii.gz", "labels": "ein Ümlaut.nii.gz", "patient": "7",
         "set": "train", "label_map": "flaresegment"},
        {"case": "second", "image": "b.nrrd", "labels": "b_seg.nrrd", "patient": "8",
         "set": "val", "label_map": "flare22"},
        {"case": "third", "image": "missing.nii", "labels": "b_seg.nrrd", "patient": "",
         "set": "", "label_map": ""},
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "array", "cases", "monai"])
def test_lists(tmp_path: Path, kind: str) -> None:
    listed = rows(tmp_path)
    file = tmp_path / ("list.csv" if kind == "csv" else "list.json")
    if kind == "csv":
        with open(file, "w", newline="", encoding="utf-8-sig") as stream:
            writer = csv.DictWriter(stream, listed[0])
            writer.writeheader()
            writer.writerows(listed)
    elif kind == "monai":
        for row in listed:
            row["label"] = row.pop("labels")
            del row["set"]
        file.write_text(json.dumps({"training": [listed[0], listed[2]], "validation": [listed[1]]}))
    else:
        file.write_text(json.dumps(listed if kind == "array" else {"cases": listed}))
    told: list[LeftOut] = []
    first, second = find_cases(file, left_out=told.append)
    assert (first.name, first.patient, first.fixed_set) == ("first", "7", "train")
    assert (second.name, second.patient, second.fixed_set) == ("second", "8", "val")
    check(first, 1, {organ.label: organ.key for organ in ORGANS})
    assert sorted(np.unique(second.read()[1])) == [0, 1, 2, 3, 4]
    assert [item.name for item in told] == ["third"] and "missing" in told[0].reason


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", ""),
        ("list.csv", "image,mask\na,b\n"),
        ("list.csv", "image,labels\na,\n"),
        ("list.csv", "case,image,labels\n../../x,a,b\n"),
        ("list.csv", "case,image,labels,set\nx,a,b,somewhere\n"),
        ("list.csv", "\0\0\0"),
        ("list.csv", b"\xff\xfe\x00image"),
        ("list.json", "{"),
        ("list.json", "3"),
        ("list.json", '{"cases": 3}'),
        ("list.json", "[]"),
        ("list.json", '[{"image": 3, "labels": "a"}]'),
        ("list.json", "[" * 100000),
    ],
)
def test_bad_lists_give_one_line(tmp_path: Path, name: str, text: str | bytes) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        find_cases(tmp_path / name)
    assert "\n" not in str(caught.value)


def corrupt(folder: Path, kind: str) -> None:
    """Break case b of a flat folder in one way."""
    ct, labels = layouts.ct_and_labels(1)
    image, truth = folder / "b_ct.nii.gz", folder / "b_labels.nii.gz"
    if kind == "shape":
        layouts.write(truth, labels[:-1])
    elif kind == "origin":
        layouts.write(truth, labels, origin=(0, 0, 0))
    elif kind == "spacing":
        layouts.write(truth, labels, spacing=(3.0, 2.5, 4.5))
    elif kind == "direction":
        layouts.write(truth, labels, direction=np.diag([-1, 1, 1]))
    elif kind == "value":
        layouts.write(truth, np.where(labels == 4, 7, labels).astype(np.uint8))
    elif kind == "fraction":
        layouts.write(truth, labels.astype(np.float32) + 0.5)
    elif kind == "empty":
        layouts.write(truth, np.zeros_like(labels))
    elif kind == "truncated":
        image.write_bytes(image.read_bytes()[:-200])
    elif kind == "text":
        truth.write_text("labels")
    elif kind == "mr":
        layouts.write(image, np.abs(ct) + 1)
    elif kind == "swapped":
        layouts.write(image, labels)
    elif kind == "nan":
        image.unlink()  # ITK reads NaN in NIfTI as 0
        layouts.write(folder / "b_ct.nrrd", np.where(ct > 0, np.nan, ct).astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("shape", "24 x 20 x 11"),
        ("origin", "grid|elsewhere"),
        ("spacing", "grid|elsewhere"),
        ("direction", "grid|elsewhere"),
        ("value", "value 7"),
        ("fraction", "whole numbers"),
        ("empty", "none of the organs"),
        ("truncated", "damaged|incomplete"),
        ("text", "not a readable|damaged"),
        ("mr", "CT"),
        ("swapped", "CT"),
        ("nan", "NaN"),
    ],
)
def test_a_case_that_does_not_fit_says_why(tmp_path: Path, kind: str, reason: str) -> None:
    corrupt(layouts.flat(tmp_path), kind)
    good, bad = find_cases(tmp_path)
    good.read()
    with pytest.raises(InputError, match=reason) as caught:
        bad.read()
    assert "\n" not in str(caught.value)


def test_labels_stored_in_another_axis_order_land_on_the_same_voxels(tmp_path: Path) -> None:
    (case, _) = find_cases(layouts.flat(tmp_path))
    labels = layouts.ct_and_labels(0)[1]
    flipped = labels[:, :, ::-1]
    layouts.write(case.labels, flipped, origin=(-30.0 + 23 * 3.0, -25.0, 100.0), direction=np.diag([-1, 1, 1]))
    np.testing.assert_array_equal(case.read()[1], labels)


def test_headers_rounded_a_little_still_fit(tmp_path: Path) -> None:
    (case, _) = find_cases(layouts.flat(tmp_path))
    layouts.write(case.labels, layouts.ct_and_labels(0)[1], origin=(-29.9, -25.05, 100.0))
    np.testing.assert_array_equal(case.read()[1], layouts.ct_and_labels(0)[1])


def test_several_locations_and_names_that_clash(tmp_path: Path) -> None:
    layouts.flat(tmp_path / "one", ("a",))
    layouts.flat(tmp_path / "two", ("a", "b"), first_seed=4)
    told: list[LeftOut] = []
    found = find_cases([tmp_path / "one", tmp_path / "two", tmp_path / "one", "phantom:2"], left_out=told.append)
    assert [case.name for case in found] == ["a", "two_a", "b", "phantom0000000", "phantom1000000"]
    assert len({case.patient for case in found}) == 5
    assert [item.reason for item in told] == ["it is named twice"]


def test_several_data_sets_in_one_folder_are_not_mixed(tmp_path: Path) -> None:
    layouts.decathlon(tmp_path / "Task03_Liver")
    layouts.decathlon(tmp_path / "Task09_Spleen", "spleen")
    with pytest.raises(InputError, match="Task03_Liver, Task09_Spleen"):
        find_cases(tmp_path)


def test_a_layout_can_be_forced(tmp_path: Path) -> None:
    folder = layouts.nnunet(tmp_path, 2)
    layouts.flat(folder, ("x",))
    assert find_pairs(folder).layout == "nnunet"
    assert [pair.name for pair in find_pairs(folder, "flat").pairs] == ["x"]
    with pytest.raises(InputError, match="as msd"):
        find_pairs(folder, "msd")
    with pytest.raises(InputError, match="known: msd"):
        find_pairs(folder, "something")


@pytest.mark.parametrize(
    "location", ["phantom:", "phantom:1", "phantom:x", "phantom:-3", "phantom:999999", "nothing/here", "", "file.txt"]
)
def test_bad_locations_give_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, location: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    with pytest.raises(InputError) as caught:
        find_cases(location)
    assert "\n" not in str(caught.value)


def test_odd_data_sets_give_one_line(tmp_path: Path) -> None:
    def refused(folder: Path, words: str) -> None:
        with pytest.raises(InputError, match=words) as caught:
            find_cases(folder, left_out=lambda item: None)
        assert "\n" not in str(caught.value)

    twice = layouts.flat(tmp_path / "twice", ("a",))
    layouts.write(twice / "a_ct.nii", layouts.ct_and_labels(0)[0])
    refused(twice, "twice")
    both_sides = layouts.flat(tmp_path / "both/train", ("a",)).parent
    layouts.flat(both_sides / "val", ("a",))
    refused(both_sides, "case a is there twice")
    unexplained = layouts.decathlon(tmp_path / "unexplained")
    (unexplained / "dataset.json").write_text('{"training": []}')
    refused(unexplained, "what the labels mean")
    two_channels = layouts.nnunet(tmp_path / "two", 2)
    content = json.loads((two_channels / "dataset.json").read_text())
    (two_channels / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "CT", "1": "PET"}}))
    refused(two_channels, "2 channels")
    (two_channels / "dataset.json").write_text(json.dumps({**content, "dataset": {"x": {"images": []}}}))
    refused(two_channels, "names no images")
    vessels = layouts.decathlon(tmp_path / "vessels")
    content = json.loads((vessels / "dataset.json").read_text())
    (vessels / "dataset.json").write_text(json.dumps({**content, "labels": {"1": "vessel", "2": "tumour"}}))
    refused(vessels, "no case that can be used")


def test_missing_halves_are_named(tmp_path: Path) -> None:
    folder = layouts.decathlon(tmp_path / "msd", count=3)
    (folder / "labelsTr/liver_1.nii.gz").unlink()
    told: list[LeftOut] = []
    assert [case.name for case in find_cases(folder, left_out=told.append)] == ["liver_0", "liver_2"]
    plain = layouts.flare22(tmp_path / "plain")
    (plain / "images/FLARE22_Tr_0001_0000.nii.gz").unlink()
    (plain / "labels/FLARE22_Tr_0002.nii.gz").unlink()
    assert [case.name for case in find_cases(plain, left_out=told.append)] == ["FLARE22_Tr_0003"]
    assert [(item.name, item.reason) for item in told] == [
        ("liver_1", "its labels are missing"),
        ("FLARE22_Tr_0002_0000", "no labels of its name in labels/"),
        ("FLARE22_Tr_0001", "no image of its name in images/"),
    ]


def test_content_hash_follows_content_and_meaning(tmp_path: Path) -> None:
    first, second = find_cases(layouts.flat(tmp_path))
    other_meaning = find_cases(tmp_path, label_map=parse_label_map("1=spleen,2=liver,3=other,4=other"))[0]
    hashes = [first.content_hash(), second.content_hash(), other_meaning.content_hash()]
    assert len(set(hashes)) == 3
    shutil.copy(first.image, tmp_path / "c_ct.nii.gz")
    shutil.copy(first.labels, tmp_path / "c_labels.nii.gz")
    assert find_cases(tmp_path)[2].content_hash() == hashes[0]
    corrupt(tmp_path, "value")
    assert second.content_hash() != hashes[1]
    second.image.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        second.content_hash()


def test_phantoms_read_as_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "make_phantom", partial(cases.make_phantom, spacing=(5.0, 5.0, 5.0)))
    first = find_cases("phantom:3")[0]
    volume, labels, warnings = first.read()
    assert volume.array.shape == labels.shape and not warnings
    assert sorted(np.unique(labels)) == [0, 1, 2, 3, 4]
    assert first.labeled == {organ.key for organ in ORGANS}


def test_real_cases(flare_data: Path) -> None:
    found = {case.name: case for case in find_cases(flare_data)}
    assert sum(case.fixed_set == "train" for case in found.values()) == len(
        list((flare_data / "train").glob("*_ct.nii.gz"))
    )
    split = split_cases(list(found.values()))
    assert set(split.validation) == {
        path.name.removesuffix("_ct.nii.gz") for path in (flare_data / "val").glob("*_ct.nii.gz")
    }
    assert found["pe_chest_slab"].labeled == {"liver", "right_kidney", "left_kidney"}
    volume, labels, _ = found["crlm1004"].read()
    assert volume.array.shape == labels.shape
    liters = {
        key: (labels == organ_by_key(key).label).sum() * volume.voxel_volume_ml / 1000 for key in ("liver", "spleen")
    }
    assert 0.8 < liters["liver"] < 3 and 0.05 < liters["spleen"] < 1


def test_a_zip_of_pairs_keeps_its_own_label_map(tmp_path: Path) -> None:
    layouts.flat(tmp_path / "source", ("a",), (6, 1))
    (tmp_path / "source/labels.json").write_text('{"6": "liver", "1": "spleen"}')
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (tmp_path / "source").iterdir():
            archive.write(file, file.name)
    (case,) = find_cases(tmp_path / "a.zip", unpack_to=tmp_path / "elsewhere", say=lambda line: None)
    assert case.image == tmp_path / "elsewhere/a_unpacked/a_ct.nii.gz"
    check(case, 0, {6: "liver", 1: "spleen"})
    assert cases.FIRST_VALIDATION_PHANTOM > 99999
