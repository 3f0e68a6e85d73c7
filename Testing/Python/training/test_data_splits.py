"""Splits: properties that hold for any set of cases, and validation cases that never train."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.cases import Case, find_cases
from FlareSegmentTrainingLib.datasets.splits import Split, check_apart, read_split, remarks_on_split, split_cases


def cases_of(patients: list[int]) -> list[Case]:
    return [Case(f"case{i}", Path(f"{i}_ct.nii.gz"), None, {}, patient=f"p{p}") for i, p in enumerate(patients)]


PATIENTS = st.lists(st.integers(0, 30), min_size=2, max_size=60)


@settings(deadline=None)
@given(PATIENTS, st.floats(0.01, 0.99), st.integers(0, 5), st.randoms())
def test_fraction(patients: list[int], fraction: float, seed: int, random) -> None:
    assume(len(set(patients)) >= 2)
    cases = cases_of(patients)
    split = split_cases(cases, fraction, seed=seed)
    assert sorted(split.training + split.validation) == sorted(case.name for case in cases)
    training, validation = split.apply(cases)
    assert training and validation
    assert not {case.patient for case in training} & {case.patient for case in validation}
    expected = (1 - fraction) * len(set(patients))
    assert abs(len({case.patient for case in validation}) - expected) <= 1
    shuffled = list(cases)
    random.shuffle(shuffled)
    assert split_cases(shuffled, fraction, seed=seed) == split


@settings(deadline=None)
@given(PATIENTS, st.integers(2, 6), st.integers(0, 5))
def test_folds(patients: list[int], folds: int, seed: int) -> None:
    assume(len(set(patients)) >= folds)
    cases = cases_of(patients)
    splits = [split_cases(cases, folds=folds, fold=fold, seed=seed) for fold in range(folds)]
    assert sorted(name for split in splits for name in split.validation) == sorted(case.name for case in cases)
    sizes = [len({case.patient for case in split.apply(cases)[1]}) for split in splits]
    assert max(sizes) - min(sizes) <= 1
    for split in splits:
        assert not set(split.training) & set(split.validation)


def test_seeds_differ_and_ninety_to_ten_is_the_default() -> None:
    cases = cases_of(list(range(50)))
    splits = {split_cases(cases, seed=seed).validation for seed in range(5)}
    assert len(splits) == 5
    assert all(len(validation) == 5 for validation in splits)


@settings(deadline=None)
@given(st.integers(2, 40))
def test_phantoms_of_training_and_validation_are_disjoint_at_any_number(count: int) -> None:
    training, validation = split_cases(small := find_cases(f"phantom:{count}")).apply(small)
    larger_training, _ = split_cases(large := find_cases("phantom:200")).apply(large)
    assert len(training) + len(validation) == count and validation
    assert not {case.phantom_seed for case in validation} & {
        case.phantom_seed for case in (*training, *larger_training)
    }


def test_fixed_sides_are_kept_and_the_rest_trains() -> None:
    cases = [replace(case, fixed_set=side) for case, side in zip(cases_of([0, 1, 2, 3]), ("train", "val", None, "val"))]
    split = split_cases(cases)
    assert (split.training, split.validation) == (("case0", "case2"), ("case1", "case3"))
    with pytest.raises(InputError, match="training cases too"):
        split_cases([cases[1], cases[3]])
    with pytest.raises(InputError, match="One patient"):
        split_cases([replace(case, patient="same") for case in cases])


def test_validation_cases_never_train() -> None:
    cases = cases_of([0, 1, 2])
    with pytest.raises(InputError, match="One patient"):
        Split(("case0", "case1"), ("case1", "case2"), "by hand").apply(cases)
    with pytest.raises(InputError, match="never be trained on"):
        check_apart([cases[0]], [replace(cases[0], patient="other", image=Path("copy"))])
    with pytest.raises(InputError, match="images must never"):
        check_apart([cases[0]], [replace(cases[0], patient="other", name="other")])
    with pytest.raises(InputError, match="not in the data: case9"):
        Split(("case0",), ("case9",), "by hand").apply(cases)


@pytest.mark.parametrize(("folds", "fold"), [(1, 0), (4, 0), (3, 3), (3, -1)])
def test_impossible_folds(folds: int, fold: int) -> None:
    with pytest.raises(InputError, match="not possible"):
        split_cases(cases_of([0, 1, 2]), folds=folds, fold=fold)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_impossible_fractions(fraction: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        split_cases(cases_of([0, 1]), fraction)


def test_one_patient_cannot_be_split() -> None:
    with pytest.raises(InputError, match="two patients"):
        split_cases(cases_of([7, 7, 7]))


def test_written_and_read_back(tmp_path: Path) -> None:
    split = split_cases(cases_of(list(range(9))))
    assert read_split(split.write(tmp_path / "run")) == split
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["split.json"]


def test_what_nobody_would_expect_of_a_split_is_said() -> None:
    sides = ("train", "val", "val", None)
    cases = [replace(case, fixed_set=side) for case, side in zip(cases_of([0, 1, 2, 3]), sides)]
    moved, unused = remarks_on_split(Split(("case0", "case1"), ("case2",), "fold 0 of 2"), cases)
    assert "validation cases of their data set train here (fold 0 of 2): case1" in moved
    assert "Not used" in unused and unused.endswith(": case3")
    assert not remarks_on_split(Split(("case0", "case3"), ("case1", "case2"), "list"), cases)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_windows(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "split.json").write_text('{"training": ["a"], "validation": ["ü"]}', encoding=encoding)
    assert read_split(tmp_path / "split.json").validation == ("ü",)


def test_nnunets_folds(tmp_path: Path) -> None:
    file = tmp_path / "splits_final.json"
    folds = [{"train": ["a", "b"], "val": ["c"]}, {"train": ["b", "c"], "val": ["a"]}]
    file.write_text(json.dumps(folds))
    assert read_split(file, "1/2") == Split(("b", "c"), ("a",), "fold 1 of splits_final.json")
    with pytest.raises(InputError, match="holds 2 folds: choose one with --fold 0/2 to --fold 1/2"):
        read_split(file)
    for fold, words in (("2/2", "holds 2 folds"), ("0/5", "holds 2 folds"), ("one", "write K/N")):
        with pytest.raises(InputError, match=words):
            read_split(file, fold)
    file.write_text(json.dumps(folds[:1]))
    assert read_split(file).validation == ("c",)
    file.write_text(json.dumps([{"training": ["a"]}]))
    with pytest.raises(InputError, match="is no split"):
        read_split(file)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", "3", '{"training": [1], "validation": []}', '{"training": 3, "validation": []}']
)
def test_bad_split_files(tmp_path: Path, content: str) -> None:
    (tmp_path / "split.json").write_text(content)
    with pytest.raises(InputError, match="is no split"):
        read_split(tmp_path / "split.json")
    by_hand = tmp_path / "list.json"
    by_hand.write_text(json.dumps({"training": ["a"], "validation": ["b"]}))
    assert read_split(by_hand).method == "list list.json"
