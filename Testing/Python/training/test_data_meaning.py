"""What label values mean is read, not guessed: headers of segmentations, the data sets' own lists and tables, masks."""

from __future__ import annotations

import json
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
import SimpleITK

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels
from FlareSegmentLib.organs import ORGANS, organ_by_key, terminology_entry
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import find_cases, label_maps_in_use
from FlareSegmentTrainingLib.datasets.file_pairs import LeftOut
from FlareSegmentTrainingLib.datasets.label_checks import doubts_of_labels
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED, parse_label_map

KEYS = [organ.key for organ in ORGANS]
TRUE = {organ.label: organ.key for organ in ORGANS}


def write_segmentation(path: Path, labels: np.ndarray, segments: list[tuple[str, int, int]], tags: str = "") -> None:
    """A .seg.nrrd as Slicer writes it: (name, value, layer) of each segment; labels (z, y, x) or (z, y, x, layer)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(labels, isVector=labels.ndim == 4)
    image.SetSpacing(layouts.SPACING)
    image.SetOrigin((-30.0, -25.0, 100.0))
    for number, (name, value, layer) in enumerate(segments):
        for field, text in (("ID", f"Segment_{number}"), ("Name", name), ("LabelValue", value), ("Layer", layer)):
            image.SetMetaData(f"Segment{number}_{field}", str(text))
        if tags:
            image.SetMetaData(f"Segment{number}_Tags", tags)
    SimpleITK.WriteImage(image, str(path), True)


def renumbered(labels: np.ndarray, order: list[str]) -> np.ndarray:
    """Labels in FlareSegment's values, numbered 1, 2, ... in another order of the organs."""
    table = np.zeros(256, np.uint8)
    for value, key in enumerate(order, start=1):
        table[organ_by_key(key).label] = value
    return table[labels]


def segmentations(folder: Path, orders: list[list[str]]) -> list[np.ndarray]:
    """Images and .seg.nrrd files whose segments stand in these orders; returns the true labels."""
    truths = []
    for number, order in enumerate(orders):
        ct, truth = layouts.ct_and_labels(number)
        layouts.write(folder / f"images/case{number}.nrrd", ct)
        segments = [(organ_by_key(key).name, value, 0) for value, key in enumerate(order, start=1)]
        write_segmentation(folder / f"labels/case{number}.seg.nrrd", renumbered(truth, order), segments)
        truths.append(truth)
    return truths


def test_each_segmentation_names_its_own_segments(tmp_path: Path) -> None:
    truths = segmentations(tmp_path, [KEYS, KEYS[::-1], [KEYS[2], KEYS[0], KEYS[3], KEYS[1]]])
    found = find_cases(tmp_path)
    for case, truth in zip(found, truths):
        np.testing.assert_array_equal(case.read()[1], truth)
    (line,) = label_maps_in_use(found, [tmp_path])
    assert "names in the headers" in line and "1 spleen" in line and "1 liver" in line


def test_a_table_that_contradicts_a_header_leaves_the_case_out(tmp_path: Path) -> None:
    segmentations(tmp_path, [KEYS, KEYS[::-1]])
    told: list[LeftOut] = []
    assert [c.name for c in find_cases(tmp_path, label_map=parse_label_map("flaresegment"), left_out=told.append)] == [
        "case0"
    ]
    assert told[0].name == "case1" and "calls value 1 spleen, --label-map flaresegment calls it liver" in told[0].reason
    (tmp_path / "labels.json").write_text(json.dumps({str(value): key for value, key in enumerate(KEYS[::-1], 1)}))
    told.clear()
    assert [case.name for case in find_cases(tmp_path, left_out=told.append)] == ["case1"]
    assert told[0].name == "case0" and "labels.json" in told[0].reason


def test_a_table_that_contradicts_the_data_set_leaves_its_cases_out(tmp_path: Path) -> None:
    known, unknown = layouts.nnunet(tmp_path / "known", 2), tmp_path / "unknown"
    layouts.write_pair(unknown / "images/x.nii.gz", unknown / "labels/x.nii.gz", 9)
    own = parse_label_map("1=liver,2=right_kidney,3=left_kidney,4=spleen")
    with pytest.raises(InputError, match=r"calls value 1 liver, dataset.json calls it spleen: correct one of them"):
        find_cases([unknown, known], label_map=own)
    less = find_cases(known, label_map=parse_label_map("1=spleen,2=other,3=other,4=liver,5=ignore"))
    assert [case.labeled for case in less] == [{"spleen", "liver"}] * 2


def test_a_table_says_which_segments_are_to_be_ignored(tmp_path: Path) -> None:
    ct, truth = layouts.ct_and_labels(0)
    layouts.write(tmp_path / "images/case.nrrd", ct)
    segments = [(name, value, 0) for value, name in enumerate((*KEYS[:3], "Segment_4"), start=1)]
    write_segmentation(tmp_path / "labels/case.seg.nrrd", truth, segments)
    (case,) = find_cases(tmp_path, label_map=parse_label_map("1=liver,4=ignore"))
    np.testing.assert_array_equal(case.read()[1], np.where(truth == 4, IGNORED, truth))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_files_of_windows_say_what_values_mean(tmp_path: Path, encoding: str) -> None:
    layouts.write_pair(tmp_path / "images/x.nii.gz", tmp_path / "labels/x.nii.gz", 0)
    names = {str(value): key for value, key in enumerate(KEYS[::-1], 1)}
    tables = {
        "labels.json": json.dumps(names),
        "dataset.json": json.dumps({"labels": names}),
        "classes.tsv": "".join(f"{value}\t{key}\n" for value, key in names.items()),
    }
    for name, text in tables.items():
        (tmp_path / name).write_text(text, encoding=encoding)
        (case,) = find_cases(tmp_path)
        assert case.label_map.organs == tuple((int(value), key) for value, key in names.items()), name
        (tmp_path / name).unlink()


def test_segments_in_layers_and_what_they_are_called(tmp_path: Path) -> None:
    ct, truth = layouts.ct_and_labels(0)
    layers = np.stack([truth == 1, truth == 4], axis=-1).astype(np.uint8)
    layers[..., 0][truth == 4] = 1  # the liver's layer overlaps the spleen's
    layouts.write(tmp_path / "images/case.nrrd", ct)
    write_segmentation(tmp_path / "labels/case.seg.nrrd", layers, [("Spleen", 1, 1), ("Liver", 1, 0)])
    (case,) = find_cases(tmp_path)
    _, labels, warnings = case.read()
    np.testing.assert_array_equal(labels, np.where(np.isin(truth, (1, 4)), truth, 0))
    assert case.labeled == {"liver", "spleen"} and any("48 voxels lie in two organs" in line for line in warnings)

    write_segmentation(tmp_path / "labels/case.seg.nrrd", layers, [("Lesion", 1, 1), ("Liver", 1, 0)])
    (case,) = find_cases(tmp_path)  # a value of another layer is another's
    np.testing.assert_array_equal(case.read()[1], layers[..., 0])

    write_segmentation(tmp_path / "labels/case.seg.nrrd", layers, [])
    (case,) = find_cases(tmp_path, label_map=parse_label_map("flaresegment"))
    with pytest.raises(InputError, match="overlapping segments do, and no names") as caught:
        case.read()
    assert "CT" not in str(caught.value)


def test_terminology_counts_where_a_name_says_nothing(tmp_path: Path) -> None:
    ct, truth = layouts.ct_and_labels(0)
    kidney = organ_by_key("left_kidney")
    layouts.write(tmp_path / "images/case.nrrd", ct)
    tags = f"Segmentation.Status:completed|TerminologyEntry:{terminology_entry(kidney)}|"
    write_segmentation(
        tmp_path / "labels/case.seg.nrrd", (truth == kidney.label).astype(np.uint8), [("Segment_1", 1, 0)], tags
    )
    np.testing.assert_array_equal(find_cases(tmp_path)[0].read()[1] == kidney.label, truth == kidney.label)
    write_segmentation(
        tmp_path / "labels/case.seg.nrrd", (truth == kidney.label).astype(np.uint8), [("Right kidney", 1, 0)], tags
    )
    with pytest.raises(InputError, match="terminology of left kidney"):
        find_cases(tmp_path, left_out=lambda item: None)
    write_segmentation(tmp_path / "labels/case.seg.nrrd", truth, [("Segment_1", 1, 0)])
    with pytest.raises(InputError, match="none of FlareSegment's organs.*--label-map"):
        find_cases(tmp_path, left_out=lambda item: None)


@pytest.mark.parametrize(
    ("image", "labels", "table"),
    [
        ("img/img0001.nii.gz", "label/label0001.nii.gz", "btcv"),
        ("volumes/volume-7.nii", "segmentations/segmentation-7.nii", "msd-liver"),
        ("imagesTr/amos_0001.nii.gz", "labelsTr/amos_0001.nii.gz", "amos"),
    ],
)
def test_names_of_files_suggest_a_table_and_decide_nothing(tmp_path: Path, image: str, labels: str, table: str) -> None:
    layouts.write_pair(tmp_path / image, tmp_path / labels, 0, (1, 2))
    with pytest.raises(InputError, match=f"--label-map.*it is --label-map {table}"):
        find_cases(tmp_path, left_out=lambda item: None)


def test_a_convention_has_to_be_borne_out_by_the_labels(tmp_path: Path) -> None:
    def asked(folder: Path, reason: str) -> None:
        with pytest.raises(InputError, match=f"does not say what its label values mean.*{reason}.*--label-map"):
            find_cases(folder, left_out=lambda item: None)

    ct, truth = layouts.ct_and_labels(0)
    for name in ("a", "b"):  # liver and tumor
        layouts.write(tmp_path / f"tumor/{name}_ct.nii.gz", ct)
        layouts.write(tmp_path / f"tumor/{name}_labels.nii.gz", np.where(truth == 1, 1, 0).astype(np.uint8))
    asked(tmp_path / "tumor", "value 2, 3, 4 is in none of the 2 label maps")
    layouts.write(tmp_path / "order/a_ct.nii.gz", ct, spacing=(8.0, 8.0, 8.0))
    swapped = renumbered(truth, [KEYS[0], KEYS[2], KEYS[1], KEYS[3]])  # the kidneys exchanged
    layouts.write(tmp_path / "order/a_labels.nii.gz", swapped, spacing=(8.0, 8.0, 8.0))
    asked(tmp_path / "order", "right kidney would lie to the left of the left kidney")
    for order, reason in (
        ([*KEYS[:2], "spleen", "left_kidney"], "spleens would lie below left kidneys"),
        (["right_kidney", "liver", *KEYS[2:]], "livers would be smaller than spleens"),
    ):
        body = np.zeros(layouts.SHAPE, np.uint8)
        for value, place in enumerate((np.s_[5:11, 3:12, 2:9], np.s_[2:4, 13:16, 4:8], np.s_[2:4, 13:16, 16:20],
                                       np.s_[8:11, 3:8, 16:21]), start=1):  # fmt: skip
            body[place] = value
        layouts.write(tmp_path / reason / "a_ct.nii.gz", ct, spacing=(8.0, 8.0, 8.0))
        layouts.write(tmp_path / reason / "a_labels.nii.gz", renumbered(body, order), spacing=(8.0, 8.0, 8.0))
        asked(tmp_path / reason, reason)
    nested = truth.copy()
    nested[5:8, 3:7, 3:7] = 1
    nested[6, 4:6, 4:6] = 2
    nested[truth == 2] = 0
    layouts.write(tmp_path / "nested/a_ct.nii.gz", ct)
    layouts.write(tmp_path / "nested/a_labels.nii.gz", nested)
    asked(tmp_path / "nested", "right kidney lies inside of the liver")


def test_flare22s_names_do_not_make_other_values_flare22s(tmp_path: Path) -> None:
    for number in (1, 2):
        layouts.write_pair(
            tmp_path / f"images/FLARE22_Tr_{number:04d}_0000.nii.gz",
            tmp_path / f"labels/FLARE22_Tr_{number:04d}.nii.gz",
            number,
        )
    with pytest.raises(InputError, match="value 13 is in none"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.tsv", "value\tname\tml\n1\tspleen\t100\n2\tleft kidney\t1\n3\tkidney_right\t2\n4\tLiver\t3\n"),
        ("label_names.csv", "id,name\n0,background\n1,Milz\n2,Niere links\n3,Niere rechts\n4,Leber\n"),
        ("classes.txt", "spleen: 1\nkidney left: 2\nkidney right: 3\nliver: 4\n"),
        ("organs.ctbl", "# Color table\n1 spleen 157 108 162 255\n2 kidney_left 1 2 3 255\n3 kidney_right 1 2 3 255\n"
                        "4 liver 221 130 101 255\n"),
        ("itksnap.txt", "################\n# ITK-SnAP Label Description File\n################\n"
                        '    0     0    0    0        0  0  0    "Clear Label"\n'
                        '    1   255    0    0        1  1  1    "spleen"\n'
                        '    2     0  255    0        1  1  1    "left kidney"\n'
                        '    3     0    0  255        1  1  1    "right kidney"\n'
                        '    4   255  255    0        1  1  1    "liver"\n'),
        ("dataset.json", '{"labels": {"background": 0, "spleen": 1, "left kidney": 2, "right kidney": 3, "liver": 4}}'),
        ("dataset.json", '{"labels": {"1": "spleen", "2": "left kidney", "3": "right kidney", "4": "liver"}}'),
    ],
)  # fmt: skip
def test_tables_that_lie_beside_the_labels(tmp_path: Path, name: str, text: str) -> None:
    order = ["spleen", "left_kidney", "right_kidney", "liver"]
    ct, truth = layouts.ct_and_labels(0)
    layouts.write(tmp_path / "images/a.nii.gz", ct)
    layouts.write(tmp_path / "labels/a.nii.gz", renumbered(truth, order))
    (tmp_path / name).write_text(text)
    (case,) = find_cases(tmp_path)
    np.testing.assert_array_equal(case.read()[1], truth)
    assert name in label_maps_in_use([case], [tmp_path])[0]


def test_a_table_of_one_label_map_holds_for_it_alone(tmp_path: Path) -> None:
    ct, truth = layouts.ct_and_labels(0)
    for name in ("a", "b"):
        layouts.write(tmp_path / f"images/{name}.nii.gz", ct)
        layouts.write(tmp_path / f"labels/{name}.nii.gz", renumbered(truth, KEYS if name == "a" else KEYS[::-1]))
        rows = enumerate(KEYS if name == "a" else KEYS[::-1], start=1)
        (tmp_path / f"labels/{name}_classes.tsv").write_text("".join(f"{value}\t{key}\n" for value, key in rows))
    for case in find_cases(tmp_path):
        np.testing.assert_array_equal(case.read()[1], truth)


def test_regions_of_nnunet(tmp_path: Path) -> None:
    folder = layouts.nnunet(tmp_path, 2)
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"background": 0, "abdomen": [1, 2, 3, 4], "spleen": 1, "kidney_left": 2, "kidney_right": 3,
                         "liver": [4, 5], "liver lesion": 5}  # fmt: skip
    content["regions_class_order"] = [1, 2, 3, 4, 5, 6]
    (folder / "dataset.json").write_text(json.dumps(content))
    ct, truth = layouts.ct_and_labels(1)
    stored = renumbered(truth, ["spleen", *KEYS[2:0:-1], "liver"])
    stored[5:6][truth[5:6] == 1] = 5
    layouts.write(folder / "labelsTr/case_0001.nii.gz", stored)
    np.testing.assert_array_equal(find_cases(folder)[1].read()[1], truth)


def test_labels_a_little_off_whole_numbers(tmp_path: Path) -> None:
    layouts.flat(tmp_path, ("a",))
    truth = layouts.ct_and_labels(0)[1]
    layouts.write(tmp_path / "a_labels.nii.gz", truth.astype(np.float32) * np.float32(0.995))
    np.testing.assert_array_equal(find_cases(tmp_path)[0].read()[1], truth)
    layouts.write(tmp_path / "a_labels.nii.gz", truth.astype(np.float32) + np.float32(0.03))
    with pytest.raises(InputError, match="whole numbers"):
        read_labels(tmp_path / "a_labels.nii.gz")


def test_what_no_human_has_is_said(tmp_path: Path) -> None:
    ct, truth = layouts.ct_and_labels(0)
    labels = {str(value): key for value, key in TRUE.items()}
    for name, array, spacing in (
        ("mirrored", truth[:, :, ::-1], (8.0, 8.0, 8.0)),
        ("large", truth, (60.0, 60.0, 60.0)),
    ):
        layouts.write(tmp_path / f"{name}_ct.nii.gz", ct, spacing=spacing)
        layouts.write(tmp_path / f"{name}_labels.nii.gz", np.ascontiguousarray(array), spacing=spacing)
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    large, mirrored = find_cases(tmp_path)
    assert any("Left and right are in doubt" in line for line in mirrored.read()[2])
    assert any("Liver: 10368 mL is more than any human has" in line for line in large.read()[2])


def test_a_liver_alone_on_the_wrong_side_is_said(tmp_path: Path) -> None:
    ct, truth = layouts.ct_and_labels(0)
    layouts.write(tmp_path / "a_ct.nii.gz", ct, spacing=(10.0, 10.0, 10.0))
    labels = np.ascontiguousarray((truth == 1)[:, :, ::-1].astype(np.uint8))
    layouts.write(tmp_path / "a_labels.nii.gz", labels, spacing=(10.0, 10.0, 10.0))
    (case,) = find_cases(tmp_path, label_map=parse_label_map("1=liver"))
    assert any("the liver lies on the patient's left" in line for line in case.read()[2])


def test_the_side_of_an_organ_whose_partner_is_missing(tmp_path: Path) -> None:
    ct = layouts.ct_and_labels(0)[0]
    right, left, spacing = np.s_[4:7, 8:11, 5:8], np.s_[4:7, 8:11, 16:19], (10.0, 10.0, 10.0)

    def doubts(image: np.ndarray = ct, **organs: tuple[slice, ...]) -> list[str]:
        labels = np.zeros(image.shape, np.uint8)
        for key, place in organs.items():
            labels[place] = organ_by_key(key).label
        volume = Volume(image, spacing, (0.0, 0.0, 0.0))
        return [line for line in doubts_of_labels(volume, labels) if line.startswith("Left and right")]

    assert not doubts(left_kidney=left) and not doubts(right_kidney=right) and not doubts(spleen=left)
    (line,) = doubts(left_kidney=right)
    assert "the left kidney lies on the patient's right" in line
    (line,) = doubts(right_kidney=left)
    assert "the right kidney lies on the patient's left" in line
    assert not doubts(liver=right, left_kidney=left)
    (line,) = doubts(liver=left, left_kidney=right)
    assert "the liver lies to the left of the left kidney" in line
    (line,) = doubts(right_kidney=left, spleen=right)
    assert "the right kidney lies to the left of the spleen" in line
    # of half a body the middle is not known
    half = np.s_[4:7, 8:11, 8:11]
    assert not doubts(np.ascontiguousarray(ct[:, :, :12]), right_kidney=half)


def test_an_organ_inside_of_another_is_said(tmp_path: Path) -> None:
    ct, _ = layouts.ct_and_labels(0)
    labels = np.zeros(layouts.SHAPE, np.uint8)
    labels[2:9, 4:14, 4:14] = 1
    labels[4:6, 7:10, 7:10] = 2
    layouts.write(tmp_path / "a_ct.nii.gz", ct)
    layouts.write(tmp_path / "a_labels.nii.gz", labels)
    (case,) = find_cases(tmp_path, label_map=parse_label_map("1=liver,2=right_kidney"))
    assert any("Right kidney: it lies inside of the liver" in line for line in case.read()[2])
