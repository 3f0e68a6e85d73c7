"""Prepared cases: on the right grid whatever the file's axes, and the same from the cache as freshly made."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path

import data_layouts as layouts
import numpy as np
import pytest
import SimpleITK
import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import Intensity, window
from FlareSegmentLib.organs import ORGANS, organ_by_key
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets import preparation
from FlareSegmentTrainingLib.datasets.cases import Case, find_cases
from FlareSegmentTrainingLib.datasets.conversion import write_nifti
from FlareSegmentTrainingLib.datasets.dataset_layouts import LeftOut
from FlareSegmentTrainingLib.datasets.preparation import PreparedCase, prepare_case, prepare_cases

WINDOW = Intensity(-160.0, 240.0)
FOUR = [organ.key for organ in ORGANS]


def stage(spacing=None, shape=None, region: str = "volume") -> Stage:
    return Stage("fine", region, {}, spacing_mm=spacing, shape=shape)


def same(first: PreparedCase, second: PreparedCase) -> None:
    assert torch.equal(first.image, second.image) and torch.equal(first.labels, second.labels)
    assert (first.spacing_mm, first.weights) == (second.spacing_mm, second.weights)
    assert first.sampling_weight == second.sampling_weight
    assert len(first.organ_voxels) == len(second.organ_voxels)
    for a, b in zip(first.organ_voxels, second.organ_voxels):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return find_cases(layouts.flat(tmp_path / "data"))[0]


def test_the_cts_own_spacing_changes_nothing(case: Case) -> None:
    ct, labels = layouts.ct_and_labels(0)
    result = prepare_case(case, stage(layouts.SPACING), WINDOW, FOUR)
    np.testing.assert_allclose(result.image, window(ct.astype(np.float32), WINDOW), atol=1e-5)
    np.testing.assert_array_equal(result.labels, labels)
    assert result.image.dtype == torch.float32 and result.labels.dtype == torch.uint8
    assert result.spacing_mm == pytest.approx(layouts.SPACING)
    assert [len(voxels) for voxels in result.organ_voxels] == [3 * 4 * 4] * 4
    assert all((labels[tuple(voxels.T)] == index).all() for index, voxels in enumerate(result.organ_voxels, 1))
    assert result.image.min() == -1 and result.image.max() <= 1


@pytest.mark.parametrize("axes", list(permutations("LPS")))
@pytest.mark.parametrize("flips", [(0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 1)])
def test_the_files_axes_do_not_matter(
    tmp_path: Path, case: Case, axes: tuple[str, ...], flips: tuple[int, ...]
) -> None:
    opposite = {"L": "R", "P": "A", "S": "I"}
    code = "".join(opposite[axis] if flip else axis for axis, flip in zip(axes, flips))
    for suffix in ("ct", "labels"):
        image = SimpleITK.ReadImage(str(tmp_path / f"data/a_{suffix}.nii.gz"))
        (tmp_path / "turned").mkdir(exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, code), str(tmp_path / f"turned/a_{suffix}.nii.gz"))
    grid = stage((4.0, 4.0, 4.0))
    expected, result = (
        prepare_case(case, grid, WINDOW, FOUR),
        prepare_case(find_cases(tmp_path / "turned")[0], grid, WINDOW, FOUR),
    )
    np.testing.assert_allclose(result.image, expected.image, atol=1e-4)
    np.testing.assert_array_equal(result.labels, expected.labels)


def test_shape_and_spacing_cover_the_volume(case: Case) -> None:
    fixed = prepare_case(case, stage(shape=(16, 8, 12)), WINDOW, FOUR)
    assert tuple(fixed.image.shape) == (12, 8, 16)
    assert fixed.spacing_mm == pytest.approx((24 * 3.0 / 16, 20 * 2.5 / 8, 12 * 4.0 / 12))
    coarse = prepare_case(case, stage((5.0, 6.0, 7.0)), WINDOW, FOUR)
    assert tuple(coarse.image.shape) == (7, 9, 15)
    assert coarse.spacing_mm == pytest.approx((5.0, 6.0, 7.0))


class Recorder(torch.nn.Module):
    """A network that keeps what it is given and finds nothing."""

    seen: list[torch.Tensor] = []

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Conv3d(1, 5, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen.append(image[0, 0].clone())
        return self.layer(image)


class RecordingModel:
    def __init__(self, only: Stage):
        self.description = ModelDescription("recorder", "1", "", dict(enumerate(FOUR, start=1)), WINDOW, (only,))

    def network(self, name: str) -> torch.nn.Module:
        return Recorder()

    def stage_multiple(self, name: str) -> int:
        return 8


@pytest.mark.parametrize(
    "only",
    [
        stage((2.0, 2.0, 2.0)),
        stage((4.1, 4.3, 5.9)),
        stage(shape=(16, 8, 24)),
        stage((3.0, 3.0, 3.0), region="body"),
        stage(shape=(16, 8, 24), region="body"),
    ],
    ids=lambda value: f"{value.region} {value.spacing_mm or value.shape}",
)
@pytest.mark.parametrize("code", ["LPS", "RAS", "SPR", "AIL"])
def test_training_sees_exactly_what_inference_sees(tmp_path: Path, case: Case, only: Stage, code: str) -> None:
    for suffix in ("ct", "labels"):
        image = SimpleITK.ReadImage(str(tmp_path / f"data/a_{suffix}.nii.gz"))
        (tmp_path / "turned").mkdir(exist_ok=True)
        SimpleITK.WriteImage(SimpleITK.DICOMOrient(image, code), str(tmp_path / f"turned/a_{suffix}.nii.gz"))
    turned = find_cases(tmp_path / "turned")[0]
    prepared = prepare_case(turned, only, WINDOW, FOUR).image
    Recorder.seen.clear()
    Segmenter(RecordingModel(only), "cpu", precision="float32").segment(turned.read()[0])
    inference = Recorder.seen[-1]
    shape = prepared.shape
    whole = torch.full([-(-count // 8) * 8 for count in shape], -1.0)
    whole[: shape[0], : shape[1], : shape[2]] = prepared
    # Inference may leave out air around the body, in whole planes, and nothing else.
    corner = [first_plane(whole, axis) - first_plane(inference, axis) for axis in range(3)]
    seen = tuple(slice(start, start + count) for start, count in zip(corner, inference.shape))
    assert only.shape is None or inference.shape == whole.shape
    torch.testing.assert_close(inference, whole[seen], rtol=0, atol=1e-5)
    whole[seen] = -1
    assert (whole < -0.9).all()


def first_plane(image: torch.Tensor, axis: int) -> int:
    """Index of the first plane across an axis that is not air alone."""
    return int(torch.nonzero((image > -0.9).movedim(axis, 0).flatten(1).any(dim=1))[0])


def test_the_bodys_box_leaves_the_air_out(case: Case) -> None:
    result = prepare_case(case, stage(layouts.SPACING, region="body"), WINDOW, FOUR)
    assert tuple(result.image.shape) == (12, 16, 20)
    np.testing.assert_array_equal(result.labels, layouts.ct_and_labels(0)[1][:, 2:-2, 2:-2])


def test_labels_count_in_the_models_order(tmp_path: Path) -> None:
    case = find_cases(layouts.flare22(tmp_path, 1))[0]
    organs = ["spleen", "liver", "pancreas"]
    result = prepare_case(case, stage(layouts.SPACING), WINDOW, organs)
    truth = case.read()[1]
    for index, key in enumerate(organs, start=1):
        np.testing.assert_array_equal(result.labels == index, truth == organ_by_key(key).label)
    assert result.weights == {"spleen": 1.0, "liver": 1.0, "pancreas": 1.0}
    assert result.sampling_weight == 1.25
    spleen_only = find_cases(layouts.decathlon(tmp_path / "msd", "spleen"))[0]
    assert prepare_case(spleen_only, stage(layouts.SPACING), WINDOW, organs).weights == {
        "spleen": 1.0,
        "liver": 0.0,
        "pancreas": 0.0,
    }


def test_the_cache_gives_the_same_mapped_into_memory(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    fresh = prepare_case(case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR)
    same(fresh, prepare_case(case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR, cache))
    (entry,) = cache.iterdir()
    monkeypatch.setattr(preparation, "_resampled", lambda *arguments: pytest.fail("prepared again"))
    again = prepare_case(case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR, cache)
    same(fresh, again)
    again.image.fill_(7.0)
    assert np.load(entry / "image.npy").max() <= 1.0
    same(fresh, prepare_case(case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR, cache))


def test_every_setting_and_content_has_its_own_entry(tmp_path: Path, case: Case) -> None:
    cache = tmp_path / "cache"
    other = find_cases(tmp_path / "data")[1]
    settings = [
        (case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR),
        (other, stage((4.0, 4.0, 4.0)), WINDOW, FOUR),
        (case, stage((4.0, 4.0, 5.0)), WINDOW, FOUR),
        (case, stage(shape=(4, 4, 4)), WINDOW, FOUR),
        (case, stage((4.0, 4.0, 4.0), region="body"), WINDOW, FOUR),
        (case, stage((4.0, 4.0, 4.0)), Intensity(-160.0, 241.0), FOUR),
        (case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR[::-1]),
        (case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR[:1]),
    ]
    for number, arguments in enumerate(settings, start=1):
        same(prepare_case(*arguments, cache), prepare_case(*arguments))
        assert len(list(cache.iterdir())) == number
    layouts.write(case.image, layouts.ct_and_labels(77)[0])
    prepare_case(*settings[0], cache)
    assert len(list(cache.iterdir())) == len(settings) + 1


@pytest.mark.parametrize("file", ["image.npy", "labels.npy", "voxels_1.npy", "case.json"])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "other"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, case: Case, file: str, damage: str) -> None:
    arguments = (case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR, tmp_path / "cache")
    fresh = prepare_case(*arguments)
    fresh = PreparedCase(**{**vars(fresh), "image": fresh.image.clone(), "labels": fresh.labels.clone(),
                            "organ_voxels": [np.array(voxels) for voxels in fresh.organ_voxels]})  # fmt: skip
    (entry,) = (tmp_path / "cache").iterdir()
    target = entry / file
    content = target.read_bytes()
    target.unlink()
    if damage == "empty":
        target.write_bytes(b"")
    elif damage == "cut":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "other":
        target.write_bytes(b"[1, 2]")
    same(fresh, prepare_case(*arguments))
    assert target.read_bytes() == content
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [entry.name]


def test_a_cache_that_cannot_be_written_gives_one_line(
    tmp_path: Path, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        prepare_case(case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR, tmp_path / "file/cache")

    def full(file, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(preparation.np, "save", full)
    with pytest.raises(InputError, match="No space left"):
        prepare_case(case, stage((4.0, 4.0, 4.0)), WINDOW, FOUR, tmp_path / "cache")
    left_out: list[LeftOut] = []
    with pytest.raises(preparation.NotKept, match="No space left"):  # a training goes on with all cases or not at all
        preparation.prepare_cases(
            [case], stage((4.0, 4.0, 4.0)), WINDOW, FOUR, tmp_path / "cache", left_out=left_out.append
        )
    assert left_out == []
    assert list((tmp_path / "cache").iterdir()) == []


def test_cases_that_cannot_be_used_are_told(tmp_path: Path, case: Case) -> None:
    other = find_cases(tmp_path / "data")[1]
    layouts.write(other.labels, np.zeros(layouts.SHAPE, np.uint8))
    spleen_only = find_cases(layouts.decathlon(tmp_path / "msd", "spleen"))
    told: list[LeftOut] = []
    prepared = prepare_cases(
        [case, other, spleen_only[0]], stage((4.0, 4.0, 4.0)), WINDOW, ["liver"], left_out=told.append
    )
    assert [item.name for item in prepared] == ["a"]
    assert [(item.name, item.reason) for item in told] == [
        ("b", "its labels hold none of the organs"),
        ("spleen_0", "none of liver is labeled in it"),
    ]
    with pytest.raises(InputError, match="Case b: "):
        prepare_cases([case, other], stage((4.0, 4.0, 4.0)), WINDOW, FOUR)
    with pytest.raises(InputError, match="None of the cases"):
        prepare_cases([other], stage((4.0, 4.0, 4.0)), WINDOW, FOUR, left_out=told.append)


def test_a_real_case_keeps_its_organs_volumes(flare_data: Path) -> None:
    case = next(case for case in find_cases(flare_data / "val") if case.name == "c3l00189")
    volume, labels, _ = case.read()
    prepared = prepare_case(case, stage((2.0, 2.0, 2.0)), WINDOW, FOUR)
    voxel_ml = np.prod(prepared.spacing_mm) / 1000
    for index, organ in enumerate(ORGANS, start=1):
        native = (labels == organ.label).sum() * volume.voxel_volume_ml
        assert int((prepared.labels == index).sum()) * voxel_ml == pytest.approx(native, rel=0.02)
    assert json.dumps(prepared.spacing_mm)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_an_error_and_no_print_of_a_library(tmp_path, capfd):
    volume = Volume(np.zeros((4, 5, 6), np.int16), (1.0, 1.0, 1.0))
    (tmp_path / "a.nii.gz").symlink_to("/dev/full")
    with pytest.raises(OSError, match="disk may be full"):
        write_nifti(tmp_path / "a.nii.gz", volume.array, volume)
    assert capfd.readouterr().err == ""
