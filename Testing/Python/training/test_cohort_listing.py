"""Lists of a cohort's CTs: what of a folder tree is one, lists with ids, names of results, lists that are kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import dicom_files
import pytest
from bad_input import save

from FlareSegmentCohortLib.cohort_cases import CohortCase, ResultNames, printable
from FlareSegmentCohortLib.listing import Listing, in_words, make_list
from FlareSegmentCohortLib.output_folder import OutputFolder
from FlareSegmentLib.errors import InputError


def listed(source: Path, output: Path) -> tuple[list[CohortCase], Listing]:
    folder = OutputFolder(output)
    folder.prepare()
    listing = make_list(source, folder, lambda what, count, total: None)
    return list(folder.cases()), listing


def by_case(cases: list[CohortCase]) -> dict[str, CohortCase]:
    return {case.case: case for case in cases}


def test_every_image_and_series_of_a_tree_is_a_case(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "größe 1").mkdir(parents=True)
    save(tree / "a.nii.gz")
    save(tree / "größe 1" / "b c.nrrd")
    (tree / "broken.mha").write_text("none")  # what is in it is found out when it is read
    (tree / "notes.txt").write_text("none")
    (tree / ".hidden.nii.gz").write_text("none")
    for name in ("a_labels.nii.gz", "a.seg.nrrd", "labelsTr/x.nii.gz", "seg/y.nii.gz"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).write_text("none")
    files = dicom_files.patient(tree / "export" / "one", "p")[2]
    (tree / "export" / "two").mkdir()
    for file in files[10:]:
        file.rename(tree / "export" / "two" / file.name)  # exports fill folders by number of files
    scout = dicom_files.patient(tree / "export" / "scout", "p", number=2, slices=12)[2]
    dicom_files.change(scout, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    other = dicom_files.patient(tree / "export" / "mr", "p", number=3)[2]
    dicom_files.change(other, Modality="MR")

    cases, listing = listed(tree, tree / "results")

    found = by_case(cases)
    assert sorted(found) == ["a", "broken", "export/series_1", "größe 1/b c"]
    assert listing.count == 4
    assert listing.left_out == {"label maps": 4, "localizers": 1, "series of MR": 1, "hidden files": 1}
    assert (
        in_words({"label maps": 1, "localizers": 2, "series of MR": 1}) == "1 label map, 2 localizers, 1 series of MR"
    )
    series = found["export/series_1"]
    assert series.source == str(tree / "export")
    assert sorted(series.files) == sorted(f"{'one' if n < 10 else 'two'}/{file.name}" for n, file in enumerate(files))
    assert found["größe 1/b c"].name == "größe 1/b c"


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree" / "closed").mkdir(parents=True)
    save(tmp_path / "tree" / "a.nii.gz")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert listed(tmp_path / "tree", tmp_path / "out")[1].left_out == {"folders that cannot be read": 1}


def test_damaged_dicom_files_are_told(tmp_path: Path) -> None:
    beside = dicom_files.patient(tmp_path / "tree" / "beside", "p")[2]
    beside[-1].write_bytes(beside[-1].read_bytes()[:200])
    alone = dicom_files.patient(tmp_path / "tree" / "alone", "q")[2]
    for file in alone:
        file.write_bytes(file.read_bytes()[:200])

    found = by_case(listed(tmp_path / "tree", tmp_path / "out")[0])

    assert found["beside/series_1"].damaged == (beside[-1].name,)
    assert found["beside/series_1"].problem is None
    assert "20 DICOM files" in (found["alone"].problem or "")
    assert len(found) == 2


def test_a_series_without_places_says_why(tmp_path: Path) -> None:
    files = dicom_files.patient(tmp_path / "tree", "p")[2]
    dicom_files.change(files, ImagePositionPatient=None)

    (case,) = listed(tmp_path / "tree", tmp_path / "out")[0]

    assert "do not say where the slices lie" in (case.problem or "")


def test_a_list_is_kept_until_a_file_changes(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    save(tree / "a.nii.gz")
    assert not listed(tree, tmp_path / "out")[1].kept
    assert listed(tree, tmp_path / "out")[1].kept
    before = listed(tree, tmp_path / "out")[0][0].state
    os.utime(tree / "a.nii.gz", (1, 1))
    cases, listing = listed(tree, tmp_path / "out")
    assert not listing.kept and cases[0].state != before
    save(tree / "b.nii.gz")
    assert [case.case for case in listed(tree, tmp_path / "out")[0]] == ["a", "b"]


def test_detached_voxels_belong_to_the_state(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    save(tmp_path / "tree" / "a.mhd", compressed=False)
    before = listed(tmp_path / "tree", tmp_path / "out")[0][0].state
    os.utime(tmp_path / "tree" / "a.raw", (1, 1))
    assert listed(tmp_path / "tree", tmp_path / "out")[0][0].state != before


def test_lists_name_cases_and_references(tmp_path: Path) -> None:
    save(tmp_path / "ä scan.nii.gz")
    save(tmp_path / "l.nii.gz")
    table = tmp_path / "list.csv"
    lines = ("id;image;labels;label_map", "one/1;ä scan.nii.gz;l.nii.gz;1=liver", ";gone.nii.gz;;", "")
    table.write_text("\n".join(lines), encoding="utf-8")

    first, second = listed(table, tmp_path / "out")[0]

    assert (first.case, first.source, first.label_map) == ("one/1", str(tmp_path / "ä scan.nii.gz"), "1=liver")
    assert first.labels == str(tmp_path / "l.nii.gz") and first.state
    assert (second.case, second.labels, second.state) == ("gone", None, "")


def test_cases_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for name in ("p1/ct.nii.gz", "p1/ct.nrrd", "p2/ct.nii.gz"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / "tree" / name)
    (tmp_path / "tree" / "export").mkdir()
    for patient in ("q1", "q2"):
        for file in dicom_files.patient(tmp_path / patient, patient)[2]:
            file.rename(tmp_path / "tree" / "export" / f"{patient}_{file.name}")
    (tmp_path / "list.csv").write_text("image\ntree/p1/ct.nii.gz\ntree/p2/ct.nii.gz\n", encoding="utf-8")
    for source, count in ((tmp_path / "tree", 5), (tmp_path / "list.csv", 2)):
        cases = [case.case for case in listed(source, tmp_path / "out")[0]]
        assert len(set(cases)) == len(cases) == count


def test_what_a_list_says_of_labels_is_content(tmp_path: Path) -> None:
    save(tmp_path / "a.nii.gz")
    found = []
    for meaning in ("1=liver", "2=liver"):
        (tmp_path / "list.csv").write_text(f"image,labels,label_map\na.nii.gz,a.nii.gz,{meaning}\n", encoding="utf-8")
        (case,) = listed(tmp_path / "list.csv", tmp_path / "out")[0]
        found.append((case.state, case.content_hash()))
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


def test_a_list_may_name_the_slices_of_a_series(tmp_path: Path) -> None:
    files = dicom_files.patient(tmp_path / "series", "p")[2]
    table = tmp_path / "list.json"
    table.write_text(json.dumps([{"case": "p", "files": [str(file) for file in files]}]), encoding="utf-8")

    (case,) = listed(table, tmp_path / "out")[0]

    assert case.image_files() == files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case,image\nx,a.nii.gz\ny,b.nii.gz\nx,c.nii.gz\n", "entries 1 and 3"),
        ("case,image\nx,\n", "entry 1 names no image"),
        ("image,label_map\na.nii.gz,\nb.nii.gz,1=lung\n", "list.csv, label_map of entry 2: "),
        ("case,picture\nx,a\n", "column image"),
        ("image\n", "holds no CT"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        listed(tmp_path / "list.csv", tmp_path / "out")


@pytest.mark.parametrize("name", ["gone", "one.nii.gz", "empty"])
def test_sources_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "one.nii.gz")
    with pytest.raises(InputError, match=name):
        listed(tmp_path / name, tmp_path / "out")


def test_names_of_results_suit_every_system_and_never_meet() -> None:
    names = ResultNames()
    given = [
        "a/scan",
        "A/Scan",
        "a/scan",
        "a:b",
        "a?b",
        "../x",
        "con",
        "x" * 300,
        "größe 1",
        "",
        "a\\b",
        "e\u0301",
        "\u00e9",
    ]
    found = [names.of(case, f"{number}") for number, case in enumerate(given)]
    assert found[0] == "a/scan" and "größe 1" in found
    assert len({name.casefold() for name in found}) == len(given)
    for name in found:
        assert not set('\\:*?"<>|') & set(name) and not name.startswith((".", "/")) and "/." not in name
        assert all(0 < len(part.encode()) < 200 for part in name.split("/"))


def test_names_are_told_in_one_line() -> None:
    assert printable("größe\n\t\x1b[2J\udcff 1") == "größe\\n\\t\\x1b[2J\\udcff 1"
