"""Data sets as strangers write them: random layout, numbering, file type, names and split, with one random fault. What
is prepared is right in voxels, meanings, grades and sides, or it is left out with its name and the fault's word.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import ORGANS, organ_by_key
from FlareSegmentTrainingLib.datasets.cases import find_cases, patient_pattern, with_patients
from FlareSegmentTrainingLib.datasets.file_pairs import LeftOut, composed
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED, parse_label_map
from FlareSegmentTrainingLib.datasets.scan_identity import scan_hash, without_twins
from FlareSegmentTrainingLib.datasets.splits import split_cases

DRAWS = 300
KEYS = [organ.key for organ in ORGANS]
SHAPE, SPACING, ORIGIN = (6, 10, 16), (20.0, 20.0, 20.0), (-160.0, -100.0, 0.0)
NAMES = (
    "case_{:04d}",
    "P{}_scan",
    "img{:04d}",
    "{:03d}",
    "liver_{}",
    unicodedata.normalize("NFC", "Jürgen {}"),
    unicodedata.normalize("NFD", "Jürgen {}"),
    "ct-{:02d}",
)
LAYOUTS = ("flat", "folders", "nnunet1", "nnunet2", "msd", "parts", "csv", "json", "subjects", "masks", "monailabel")
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
UNUSABLE = {
    "image cut short": "damaged|incomplete|early",
    "labels cut short": "damaged|incomplete|early",
    "image is text": "not a readable|damaged|is not",
    "labels are text": "not a readable|damaged|is not",
    "image is empty": "empty file",
    "labels have another size": "voxels, its image",
    "labels lie elsewhere": "grid",
    "labels have another spacing": "grid",
    "labels are fractions": "whole numbers",
    "labels have an unknown value": "label value 77",
    "labels are empty": "none of the organs",
    "labels are a picture in color": "several values in each voxel",
    "image is no CT": "CT",
    "image is constant": "empty|does not look like a CT",
    "image has two channels": "color or vector",
    "labels are missing": "missing|no labels|it has no labels|holds no mask|none",
}
"""Fault -> words of the reason for which the case is left out."""
REMARKED = {"mirrored": "Left and right are in doubt"}
"""Fault -> words of the warning with which the case is used."""
IGNORING = "half of it is to be ignored"
HARMLESS = (
    "none",
    "labels a little off",
    "labels in another order of axes",
    "image as float",
    "labels as 16 bits",
    IGNORING,
)
TWINS = ("twin", "twin in another file type", "twin turned around")
FAULTS = (*UNUSABLE, *REMARKED, *HARMLESS, *TWINS)
assert len(FAULTS) >= 20

drawn = 0


@dataclass
class Scan:
    """A CT and its true labels, how its file is spoiled, and where it stands."""

    name: str
    ct: np.ndarray
    truth: np.ndarray
    side: str | None = None
    fault: str = "none"
    suffix: str = ".nii.gz"
    files: dict[str, Path] = field(default_factory=dict)


def make_scan(name: str, seed: int) -> Scan:
    """A small body with the four organs where a human has them."""
    generator = np.random.default_rng(seed)
    ct = np.full(SHAPE, -1000, np.int16)
    ct[:, 1:-1, 1:-1] = generator.integers(-120, -80, (SHAPE[0], SHAPE[1] - 2, SHAPE[2] - 2))
    ct[:, 2:-2, 2:-2] = generator.integers(0, 90, (SHAPE[0], SHAPE[1] - 4, SHAPE[2] - 4))
    truth = np.zeros(SHAPE, np.uint8)
    truth[1:4, 3:7, 2:6] = 1
    truth[2, 7, 3:5] = 2
    truth[2, 7, 11:13] = 3
    truth[2:4, 4:6, 12:14] = 4
    return Scan(name, ct, truth)


def image_of(array: np.ndarray, spacing=SPACING, origin=ORIGIN, vector: bool = False) -> SimpleITK.Image:
    image = SimpleITK.GetImageFromArray(array, isVector=vector)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    return image


def numbered(truth: np.ndarray, order: list[str]) -> np.ndarray:
    table = np.zeros(256, np.uint8)
    for value, key in enumerate(order, start=1):
        table[organ_by_key(key).label] = value
    return table[truth]


def images_of(scan: Scan, values: np.ndarray) -> tuple[SimpleITK.Image, SimpleITK.Image]:
    """Image and labels with the scan's fault, as far as it lies in the voxels."""
    ct, fault = scan.ct, scan.fault
    if fault == "mirrored":
        ct, values = (np.ascontiguousarray(part[:, :, ::-1]) for part in (ct, values))
        scan.ct, scan.truth = ct, np.ascontiguousarray(scan.truth[:, :, ::-1])
    elif fault == IGNORING:
        values[:, :, 8:] = len(KEYS) + 1
        scan.truth[:, :, 8:] = IGNORED
    labels = {
        "labels have another size": lambda: image_of(values[:-1]),
        "labels lie elsewhere": lambda: image_of(values, origin=(0.0, 0.0, 0.0)),
        "labels have another spacing": lambda: image_of(values, spacing=(20.0, 20.0, 24.0)),
        "labels are fractions": lambda: image_of(values.astype(np.float32) + 0.3),
        "labels have an unknown value": lambda: image_of(np.where(values == 1, 77, values).astype(np.uint8)),
        "labels are empty": lambda: image_of(np.zeros_like(values)),
        "labels are a picture in color": lambda: image_of(np.stack([values] * 3, -1), vector=True),
        "labels a little off": lambda: image_of(values.astype(np.float32) * np.float32(0.996)),
        "labels in another order of axes": lambda: SimpleITK.DICOMOrient(image_of(values), "RAS"),
        "labels as 16 bits": lambda: image_of(values.astype(np.int16)),
    }.get(fault, lambda: image_of(values))()
    image = {
        "image is no CT": lambda: image_of(np.abs(ct) + np.int16(5)),
        "image is constant": lambda: image_of(np.full_like(ct, 40)),
        "image has two channels": lambda: image_of(np.stack([ct, ct], -1), vector=True),
        "image as float": lambda: image_of(ct.astype(np.float32)),
    }.get(fault, lambda: image_of(ct))()
    if fault == "twin turned around":
        image, labels = (SimpleITK.DICOMOrient(part, "RAI") for part in (image, labels))
    return image, labels


def save(image: SimpleITK.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    SimpleITK.WriteImage(image, str(path))


def spoil(scan: Scan) -> None:
    """Faults that lie in the files themselves."""
    what, _, fault = scan.fault.partition(" ")
    file = scan.files["image" if what == "image" else "labels"]
    if fault in ("cut short",):
        content = gzip.decompress(file.read_bytes()) if file.name.endswith(".gz") else file.read_bytes()
        half = content[: len(content) // 2]
        file.write_bytes(gzip.compress(half) if file.name.endswith(".gz") else half)
    elif fault in ("is text", "are text"):
        file.write_text("this is a text")
    elif scan.fault == "image is empty":
        file.write_bytes(b"")
    elif scan.fault == "labels are missing":
        for path in (
            sorted(scan.files["labels"].rglob("*")) if scan.files["labels"].is_dir() else [scan.files["labels"]]
        ):
            path.unlink()


class DataSet:
    """Writes scans in one layout and numbering; `meaning` is what has to be said on the command line."""

    def __init__(self, folder: Path, layout: str, order: list[str], scans: list[Scan]):
        self.folder, self.layout, self.order, self.scans = folder, layout, order, scans
        self.meaning: str | None = None
        self.location = folder
        ignoring = ["ignore"] if any(scan.fault == IGNORING for scan in scans) else []
        keys = [*order, *ignoring]
        called = [organ_by_key(key).name for key in order] + ignoring
        names = {str(value): name for value, name in enumerate(called, start=1)}
        self.table = ",".join(f"{value}={key}" for value, key in enumerate(keys, start=1))
        for scan in scans:
            self._write(scan)
        own = json.dumps(dict(enumerate(keys, start=1)))
        if layout == "flat":
            (folder / "labels.json").write_text(own)
        elif layout in ("folders", "parts"):
            rows = "".join(f"{value}\t{name}\n" for value, name in names.items())
            (folder / "classes.tsv").write_text("value\tname\n" + rows)
        elif layout in ("nnunet1", "msd"):
            self._list_as_dataset(names, without_channel=layout == "nnunet1")
        elif layout == "nnunet2":
            by_name = {"background": 0, **{name: int(value) for value, name in names.items()}}
            self._json("dataset.json", {"channel_names": {"0": "CT"}, "labels": by_name, "file_ending": ".nii.gz"})
        elif layout in ("csv", "json"):
            self._list()
        elif layout in ("subjects", "monailabel"):
            self.meaning = self.table

    def _json(self, name: str, content: object) -> None:
        (self.folder / name).write_text(json.dumps(content))

    def _places(self, scan: Scan) -> tuple[Path, Path]:
        name, end = scan.name, scan.suffix
        part = {"train": "Tr", "val": "Val", None: "Tr"}[scan.side]
        images, labels = {
            "flat": (f"{name}_ct{end}", f"{name}_labels{end}"),
            "folders": (f"images/{name}{end}", f"labels/{name}{end}"),
            "parts": (f"images{part}/{name}{end}", f"labels{part}/{name}{end}"),
            "nnunet1": (f"imagesTr/{name}_0000{end}", f"labelsTr/{name}{end}"),
            "nnunet2": (f"imagesTr/{name}_0000{end}", f"labelsTr/{name}{end}"),
            "msd": (f"imagesTr/{name}{end}", f"labelsTr/{name}{end}"),
            "csv": (f"a/{name}{end}", f"b/{name}-x{end}"),
            "json": (f"a/{name}{end}", f"b/{name}-x{end}"),
            "subjects": (f"{name}/imaging{end}", f"{name}/segmentation{end}"),
            "masks": (f"{name}/ct{end}", f"{name}/segmentations"),
            "monailabel": (f"{name}{end}", f"labels/final/{name}{end}"),
        }[self.layout]
        return self.folder / images, self.folder / labels

    def _write(self, scan: Scan) -> None:
        values = numbered(scan.truth, self.order)
        image, labels = images_of(scan, values)
        places = self._places(scan)
        scan.files = {"image": places[0], "labels": places[1]}
        save(image, places[0])
        if self.layout != "masks":
            save(labels, places[1])
        else:
            for value, key in enumerate(self.order, start=1):
                mask = SimpleITK.Cast(SimpleITK.Equal(labels, value), SimpleITK.sitkUInt8)
                side = {"right_kidney": "kidney_right", "left_kidney": "kidney_left"}.get(key, key)
                save(mask, places[1] / f"{side}{scan.suffix}")

    def _relative(self, scan: Scan, kind: str) -> str:
        return scan.files[kind].relative_to(self.folder).as_posix()

    def _list_as_dataset(self, names: dict[str, str], without_channel: bool) -> None:
        parts: dict[str, list] = {"training": [], "validation": []}
        for scan in self.scans:
            image = self._relative(scan, "image")
            image = image.replace(f"_0000{scan.suffix}", scan.suffix) if without_channel else image
            part = parts["validation" if scan.side == "val" else "training"]
            part.append({"image": f"./{image}", "label": f"./{self._relative(scan, 'labels')}"})
        self._json("dataset.json", {"labels": {"0": "background", **names}, **parts})

    def _list(self) -> None:
        rows = [
            {"case": scan.name, "image": self._relative(scan, "image"), "labels": self._relative(scan, "labels"),
             "set": scan.side or ""}
            for scan in self.scans
        ]  # fmt: skip
        self.meaning = self.table
        self.location = self.folder / f"list.{self.layout}"
        if self.layout == "json":
            self.location.write_text(json.dumps(rows))
            return
        text = "\r\n".join(";".join(row) for row in [list(rows[0]), *(list(row.values()) for row in rows)])
        self.location.write_text(text.replace("/", "\\"), encoding="utf-8-sig")


# A mask has no values, a map in layers or in color has no numbering: these faults cannot be made there.
ONLY_MAPS = {"labels have an unknown value", "labels are a picture in color", "labels are fractions",
             "labels a little off", "labels as 16 bits", IGNORING, "labels cut short", "labels are text"}  # fmt: skip


@st.composite
def data_sets(draw: st.DrawFn) -> dict:
    layout = draw(st.sampled_from(LAYOUTS))
    fault = draw(st.sampled_from([f for f in FAULTS if layout != "masks" or f not in ONLY_MAPS]))
    suffix = draw(st.sampled_from(SUFFIXES))
    if fault in ("image has two channels", "labels are a picture in color", "image cut short") and suffix == ".mha":
        suffix = ".nrrd"
    return {
        "layout": layout,
        "order": draw(st.permutations(KEYS)),
        "name": draw(st.sampled_from(NAMES)),
        "suffix": suffix,
        "fault": fault,
        "bad": draw(st.integers(0, 2)),
        "sides": draw(st.booleans()) and layout in ("parts", "msd", "nnunet1", "csv", "json"),
        "patients": draw(st.booleans()),
        "seed": draw(st.integers(0, 1 << 30)),
    }


@settings(max_examples=DRAWS, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(data_sets())
def check_one(chosen: dict) -> None:
    global drawn
    drawn += 1
    with tempfile.TemporaryDirectory() as place:
        check(Path(place) / "data", chosen)


def check(folder: Path, chosen: dict) -> None:
    fault = chosen["fault"]
    scans = [make_scan(chosen["name"].format(number), chosen["seed"] + number) for number in range(3)]
    for scan, side in zip(scans, ("train", "val", "train")):
        scan.side, scan.suffix = side if chosen["sides"] else None, chosen["suffix"]
    bad = scans[chosen["bad"]]
    if fault in TWINS:  # the first and the last are one scan
        bad = scans[2]
        bad.ct, bad.truth = scans[0].ct, scans[0].truth
        bad.suffix = ".nrrd" if fault == "twin in another file type" and bad.suffix != ".nrrd" else bad.suffix
        bad.suffix = ".nii.gz" if fault == "twin in another file type" and scans[0].suffix == ".nrrd" else bad.suffix
    bad.fault = fault
    data = DataSet(folder, chosen["layout"], chosen["order"], scans)
    spoil(bad)
    told: list[LeftOut] = []
    meaning = parse_label_map(data.meaning) if data.meaning else None
    cases = find_cases(data.location, label_map=meaning, left_out=told.append, say=lambda line: None)
    if chosen["patients"]:
        cases = with_patients(cases, patient_pattern(r"(\d)\D*$"))
    cases = without_twins(cases, told.append)
    by_name = {composed(scan.name): scan for scan in scans}
    used = {}
    for case in cases:
        scan = by_name[case.name]
        try:
            volume, labels, warnings = case.read()
        except InputError as error:
            told.append(LeftOut(case.name, str(error)))
            continue
        used[case.name] = case
        assert case.labeled == set(KEYS) and all(case.weights[key] == 1.0 for key in KEYS)
        right, order = volume.to_lps_view()
        np.testing.assert_array_equal(right.array, scan.ct)
        np.testing.assert_array_equal(order.apply(labels), scan.truth)
        assert case.fixed_set == expected_side(scan, scans, chosen)
        doubts = [line for line in warnings if "Left and right" in line]
        assert bool(doubts) == (scan.fault == "mirrored"), warnings
    if fault in UNUSABLE:
        name = composed(bad.name)
        assert name not in used
        reasons = [item.reason for item in told if name in composed(item.name)]
        assert reasons and any(re.search(UNUSABLE[fault], reason) for reason in reasons), (fault, told)
    elif fault in TWINS:
        assert [str(item) for item in told] == [
            f"{composed(bad.name)} is left out: its image is that of {composed(scans[0].name)}"
        ]
    else:
        assert len(used) == 3 and not told, told
    assert len(used) >= 2
    sides = {case.fixed_set for case in used.values()}
    if sides == {"val"} or len({case.patient for case in used.values()}) < 2:
        return  # there is nothing to split
    training, validation = split_cases(list(used.values())).apply(list(used.values()))
    assert not {case.patient for case in training} & {case.patient for case in validation}
    hashes = [{scan_hash(case.read()[0]) for case in side} for side in (training, validation)]
    assert not hashes[0] & hashes[1]


def expected_side(scan: Scan, scans: list[Scan], chosen: dict) -> str | None:
    """A list's own word; else a side where there is a validation part with labels."""
    validating = any(s.side == "val" and s.fault != "labels are missing" for s in scans)
    return scan.side if validating or chosen["layout"] in ("csv", "json") else None


def test_random_data_sets_are_read_right_or_left_out_with_a_reason() -> None:
    check_one()
    print(f"{drawn} data sets drawn")
    assert drawn >= DRAWS
