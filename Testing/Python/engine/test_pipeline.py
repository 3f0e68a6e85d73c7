"""The whole way of the data: with networks whose answer is known, to test the geometry, and with the bundled model."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from test_volume import SIGNED_PERMUTATIONS, rotation
from torch import nn

from FlareSegmentLib.errors import Cancelled, InputError
from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.inference import pipeline, stages, tiled_network
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.inference.tiled_network import cover, tile_weight
from FlareSegmentLib.measures.metrics import dice
from FlareSegmentLib.model.description import ModelDescription, Stage
from FlareSegmentLib.model.intensity import Intensity
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume

INTENSITY = Intensity(-200.0, 300.0)
LABELS = {organ.label: organ.key for organ in ORGANS}
COARSE = Stage("coarse", "volume", {}, (6.0, 6.0, 6.0))
FINE = Stage("fine", "organs", {}, (3.0, 3.0, 3.0), margin_mm=10.0)
BODY_HU, ORGAN_HU = 20.0, 220.0


class AnatomyNetwork(nn.Module):
    """Calls bright voxels organs, and tells which one by where they lie among all bright ones: it knows that the first
    axis goes to the head and the last one to the patient's left, and is wrong about what reaches it otherwise.

    Two layers, so that it can be stopped in between.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Identity(), nn.Identity()
        self.shapes: list[tuple[int, ...]] = []

    def __deepcopy__(self, memo: dict) -> AnatomyNetwork:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape[2:]))
        bright = self.first(x) - ((BODY_HU + ORGAN_HU) / 2 + 200) / 250 + 1
        upper, left = (self.beyond_middle(bright[0, 0] > 0, axis) for axis in (0, 2))
        logits = [torch.zeros_like(bright[0, 0])]
        logits += [
            torch.where(here, bright[0, 0], torch.minimum(-bright[0, 0], bright[0, 0])) * 20
            for here in (upper & ~left, ~upper & ~left, ~upper & left, upper & left)
        ]
        return self.last(torch.stack(logits)[None])

    @staticmethod
    def beyond_middle(bright: torch.Tensor, axis: int) -> torch.Tensor:
        hit = torch.nonzero(bright.amax(dim=[other for other in range(3) if other != axis])).flatten()
        middle = float(hit[0] + hit[-1]) / 2 if len(hit) else 0.0
        shape = [-1 if other == axis else 1 for other in range(3)]
        return (torch.arange(bright.shape[axis]) > middle).reshape(shape).expand(bright.shape)


class BrightnessNetwork(AnatomyNetwork):
    """Calls all bright voxels liver, wherever they lie."""

    @staticmethod
    def beyond_middle(bright: torch.Tensor, axis: int) -> torch.Tensor:
        return torch.full_like(bright, axis == 0)


class FakeModel:
    def __init__(self, *stages: Stage, multiple: int = 8, kind: type[nn.Module] = AnatomyNetwork) -> None:
        self.description = ModelDescription("fake", "1", "none", LABELS, INTENSITY, stages)
        self.networks = {stage.name: kind() for stage in stages}
        self.multiple = multiple

    def network(self, stage_name: str) -> nn.Module:
        return self.networks[stage_name]

    def stage_multiple(self, stage_name: str) -> int:
        return self.multiple


def patient(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """HU and labels of ellipsoids at points (..., 3) in LPS mm: a body with four organs."""

    def ellipsoid(center: tuple[float, ...], radii: tuple[float, ...]) -> np.ndarray:
        return (((points - center) / radii) ** 2).sum(axis=-1) < 1

    hounsfield = np.full(points.shape[:-1], -1000.0)
    labels = np.zeros(points.shape[:-1], np.uint8)
    hounsfield[ellipsoid((0, 0, 0), (130, 90, 150))] = BODY_HU
    for label, center, radii in (
        (1, (-55, -20, 50), (50, 45, 40)),
        (2, (-55, 30, -52), (20, 18, 32)),
        (3, (52, 32, -45), (19, 18, 33)),
        (4, (75, 20, 50), (24, 28, 33)),
    ):
        inside = ellipsoid(center, radii)
        hounsfield[inside], labels[inside] = ORGAN_HU, label
    return hounsfield, labels


def scan(direction: np.ndarray, spacing: tuple[float, float, float]) -> tuple[Volume, np.ndarray]:
    """The patient as scanned with these axes: a CT that holds the whole body, and its true labels."""
    return _scan(tuple(direction.ravel().tolist()), spacing)


@cache
def _scan(axes: tuple[float, ...], spacing: tuple[float, float, float]) -> tuple[Volume, np.ndarray]:
    direction = np.reshape(axes, (3, 3))
    spacing_vector = np.array(spacing)
    corners = np.array([[x, y, z] for x in (-140, 140) for y in (-100, 100) for z in (-160, 160)])
    indices = corners @ np.linalg.inv(direction).T / spacing_vector
    low = np.floor(indices.min(axis=0))
    size = (np.ceil(indices.max(axis=0)) - low).astype(int) + 1
    origin = direction @ (low * spacing_vector)
    k, j, i = np.meshgrid(*(np.arange(n) for n in size[::-1]), indexing="ij")
    points = (np.stack([i, j, k], axis=-1) * spacing_vector) @ direction.T + origin
    hounsfield, labels = patient(points)
    noise = np.random.default_rng(0).normal(0, 3, hounsfield.shape)
    return Volume((hounsfield + noise).astype(np.int16), spacing, tuple(origin), direction), labels


def scores(found: np.ndarray, truth: np.ndarray) -> list[float]:
    return [dice(found == organ.label, truth == organ.label) for organ in ORGANS]


def remarks(result: pipeline.Segmentation) -> list[str]:
    """Warnings but for those that the patient is a small one."""
    return [warning for warning in result.warnings if "is unusual" not in warning]


@pytest.fixture(scope="module")
def segmenter() -> Segmenter:
    return Segmenter(FakeModel(COARSE, FINE), "cpu")


@pytest.mark.parametrize("direction", SIGNED_PERMUTATIONS[::3] + [np.eye(3), np.diag([-1.0, -1.0, 1.0])])
def test_every_axis_order_and_handedness(segmenter: Segmenter, direction: np.ndarray) -> None:
    volume, truth = scan(direction, (3.0, 3.5, 4.0))
    result = segmenter.segment(volume)
    assert result.labels.dtype == np.uint8
    assert result.labels.shape == volume.array.shape
    assert min(scores(result.labels, truth)) > 0.97
    assert remarks(result) == []


@pytest.mark.parametrize("degrees", [4, 14, 16, 30, 44])
@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (1, 2, 3)])
def test_oblique_scans(segmenter: Segmenter, degrees: float, axis: tuple[int, int, int]) -> None:
    turned = rotation(degrees, axis) @ SIGNED_PERMUTATIONS[13]
    volume, truth = scan(turned, (4.0, 3.5, 3.0))
    result = segmenter.segment(volume)
    assert min(scores(result.labels, truth)) > 0.96
    assert remarks(result) == []


def test_sheared_slices_of_a_tilted_gantry(segmenter: Segmenter) -> None:
    direction = np.eye(3)
    for degrees in (10, 22):
        direction[:, 2] = rotation(degrees, (1, 0, 0))[:, 2]
        volume, truth = scan(direction, (3.0, 3.0, 4.0))
        assert min(scores(segmenter.segment(volume).labels, truth)) > 0.96


@pytest.mark.parametrize("spacing", [(1.3, 1.3, 6.0), (4.0, 2.0, 2.0), (4.0, 4.0, 4.0), (2.5, 2.5, 9.0)])
def test_spacings(segmenter: Segmenter, spacing: tuple[float, float, float]) -> None:
    volume, truth = scan(np.eye(3), spacing)
    result = segmenter.segment(volume)
    # a linear grid of 3 mm cannot follow steps of 9 mm: the truth's own staircase is the limit
    assert min(scores(result.labels, truth)) > (0.9 if max(spacing) > 5 else 0.95)
    assert [w for w in result.warnings if "apart" in w] == (
        [f"Slices are {max(spacing):.1f} mm apart: small organs may be inaccurate."] if max(spacing) > 6 else []
    )


@pytest.mark.parametrize("dtype", [np.int16, ">i2", np.int32, np.float32, np.float64])
def test_number_types_give_the_same_labels(segmenter: Segmenter, dtype) -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    result = segmenter.segment(Volume(volume.array.astype(dtype), volume.spacing, volume.origin, volume.direction))
    expected = segmenter.segment(volume)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert min(scores(expected.labels, truth)) > 0.97


@pytest.mark.parametrize(
    "stages",
    [
        (Stage("only", "volume", {}, (3.0, 3.0, 3.0)),),
        (Stage("only", "body", {}, (2.5, 3.0, 3.5)),),
        (Stage("only", "volume", {}, None, (96, 72, 112)),),
        (Stage("only", "body", {}, None, (90, 70, 110)),),
        (COARSE, Stage("fine", "organs", {}, None, (104, 72, 96), margin_mm=5.0)),
        (COARSE, replace(FINE, name="middle", spacing_mm=(4.0, 4.0, 4.0)), FINE),
        (COARSE, replace(FINE, further_spacings_mm=((4.0, 3.5, 3.0), (2.5, 2.5, 2.5)))),
        (Stage("only", "volume", {}, (3.0, 3.0, 3.0), further_spacings_mm=((3.5, 3.5, 3.5),)),),
    ],
    ids=["spacing", "body", "shape", "body shape", "organs shape", "three stages", "three grids", "two grids"],
)
@pytest.mark.parametrize("direction", [np.eye(3), SIGNED_PERMUTATIONS[29]], ids=["axial", "turned"])
def test_every_kind_of_stage(stages: tuple[Stage, ...], direction: np.ndarray) -> None:
    volume, truth = scan(direction, (3.0, 3.0, 3.0))
    model = FakeModel(*stages)
    result = Segmenter(model, "cpu").segment(volume)
    assert min(scores(result.labels, truth)) > 0.95
    for stage in stages:
        shape = model.networks[stage.name].shapes[-1]
        assert all(n % 8 == 0 for n in shape)
        if stage.shape is not None:
            assert shape == tuple(-(-n // 8) * 8 for n in stage.shape[::-1])


class WaveringNetwork(BrightnessNetwork):
    """Calls bright voxels liver, but spleen on the second grid that it sees."""

    def __init__(self, sure: float) -> None:
        super().__init__()
        self.sure = sure

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = super().forward(x) * 0.01
        bright = scores[:, 1] > 0
        scores[:, 1][bright] = 1.0
        if len(self.shapes) == 3:  # the first is its cost being measured
            scores[:, 4][bright], scores[:, 1][bright] = self.sure, 0.0
        return scores


@pytest.fixture
def narrow_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The box stays as the first stage finds it, though its network finds but one organ."""
    monkeypatch.setattr(stages, "widened_box", lambda box, *_rest: box)


@pytest.mark.usefixtures("narrow_box")
@pytest.mark.parametrize(("sure", "label"), [(0.5, 1), (2.0, 4)])
def test_the_surer_grid_decides(sure: float, label: int) -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    model = FakeModel(COARSE, replace(FINE, further_spacings_mm=((5.0, 5.0, 5.0),)), kind=BrightnessNetwork)
    model.networks["fine"] = WaveringNetwork(sure)
    found = Segmenter(model, "cpu").segment(volume).labels
    assert np.mean(found[truth == 1] == label) > 0.9


def test_grids_that_need_no_multiple() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    model = FakeModel(Stage("only", "volume", {}, None, (61, 47, 53)), multiple=1)
    assert min(scores(Segmenter(model, "cpu").segment(volume).labels, truth)) > 0.9
    assert model.networks["only"].shapes[-1] == (53, 47, 61)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, _ = scan(np.eye(3), (3.0, 3.0, 3.0))
    one_tile = FakeModel(COARSE, FINE, kind=BrightnessNetwork)
    whole = Segmenter(one_tile, "cpu", precision="float32").segment(volume)
    model = FakeModel(COARSE, FINE, kind=BrightnessNetwork)
    monkeypatch.setattr(tiled_network, "_TILE_BYTES", 40_000 * 6 * 4 * 4)
    fractions: list[float] = []
    segmenter = Segmenter(model, "cpu", precision="float32")
    tiled = segmenter.segment(volume, progress=lambda fraction, stage: fractions.append(fraction))
    assert len(model.networks["fine"].shapes) > 8
    assert max(math.prod(shape) for shape in model.networks["fine"].shapes) <= 40_000
    np.testing.assert_array_equal(tiled.labels, whole.labels)
    assert np.any(whole.labels)
    assert fractions == sorted(fractions)


@pytest.mark.parametrize("shape", [(160, 96, 208), (64, 64, 64), (16, 400, 32), (48, 48, 48)])
@pytest.mark.parametrize("limit", [50_000, 300_000, 10**9])
def test_tiles_cover_everything_and_overlap(shape: tuple[int, int, int], limit: int) -> None:
    covered = np.zeros(shape, int)
    weight = torch.zeros(shape)
    tiles = cover(shape, 16, limit)
    for tile in tiles:
        assert all(extent.start % 16 == 0 and (extent.stop - extent.start) % 16 == 0 for extent in tile)
        covered[tile] += 1
        weight[tile] += tile_weight(tile, shape)
    assert covered.min() >= 1
    assert float(weight.min()) > 0
    sizes = {math.prod(extent.stop - extent.start for extent in tile) for tile in tiles}
    assert max(sizes) <= max(limit, 64**3)


def test_cost_follows_the_organs_not_the_scan() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    far = np.full((400, *volume.array.shape[1:]), -1000, np.int16)
    far[280 : 280 + len(truth)] = volume.array
    far[20:40, 20:50, 20:60] = 20
    far[25:33, 30:40, 30:45] = int(ORGAN_HU)  # in the legs, a false find of 32 ml
    model = FakeModel(COARSE, FINE, kind=BrightnessNetwork)
    result = Segmenter(model, "cpu").segment(Volume(far, volume.spacing, volume.origin))
    liver = np.zeros(far.shape, bool)
    liver[280 : 280 + len(truth)] = truth == 1
    assert dice(result.labels == 1, liver) > 0.97
    assert model.networks["fine"].shapes[-1][0] * 3 < 200


class ShortsightedNetwork(AnatomyNetwork):
    """Overlooks what of the organs lies in the lowest `planes` of them, and in half as many columns on the left."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = super().forward(x)
        if (found := torch.nonzero(scores[0, 1:].amax(dim=0) > 0)).numel():
            scores[0, 1:, : int(found[:, 0].min()) + self.planes] = -9
            scores[0, 1:, ..., int(found[:, 2].max()) + 1 - self.planes // 2 :] = -9
        return scores


@pytest.mark.parametrize("further", [(), ((4.0, 4.0, 4.0), (5.0, 5.0, 5.0))], ids=["one grid", "three grids"])
@pytest.mark.parametrize("direction", [np.eye(3), SIGNED_PERMUTATIONS[29]], ids=["axial", "turned"])
def test_organs_that_go_on_beyond_the_box_are_not_cut(direction: np.ndarray, further: tuple) -> None:
    volume, truth = scan(direction, (3.0, 3.0, 3.0))
    model = FakeModel(COARSE, replace(FINE, further_spacings_mm=further))
    for planes in (1, 5, 7):  # of 6 mm; the margin is 10 mm, the kidneys are 65 mm high
        model.networks["coarse"] = ShortsightedNetwork(planes)
        assert min(scores(Segmenter(model, "cpu").segment(volume).labels, truth)) > 0.96, planes


@pytest.mark.usefixtures("narrow_box")
def test_the_box_does_not_grow_out_of_the_scan_nor_for_nothing() -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    planes = np.flatnonzero((truth > 0).any(axis=(1, 2)))
    for ct in (volume, volume.part((slice(planes[0] + 4, planes[-1] - 3), slice(0, None), slice(0, None)))):
        model = FakeModel(COARSE, FINE, kind=BrightnessNetwork)
        Segmenter(model, "cpu").segment(ct)
        assert len(model.networks["fine"].shapes) == 2  # the one is its cost being measured


def test_nothing_found_is_an_empty_result_with_a_warning(segmenter: Segmenter) -> None:
    array = np.random.default_rng(0).normal(20, 5, (40, 60, 60))
    array[:, :20] = np.random.default_rng(1).normal(-90, 5, (40, 20, 60))
    array[:, :8] = -1000
    fractions: list[float] = []
    result = segmenter.segment(
        Volume(array.astype(np.int16), (3.0, 3.0, 3.0)), progress=lambda fraction, stage: fractions.append(fraction)
    )
    assert not result.labels.any()
    assert result.warnings == ["None of the organs was found in this scan."]
    assert fractions[-1] == 1.0


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, 1.0, -1.0])], ids=["LPS", "flipped"])
def test_what_the_model_doubts_is_left_out(direction: np.ndarray) -> None:
    """The network of this file is the surer the brighter an organ is."""
    model = FakeModel(COARSE, FINE)
    model.description = dataclasses.replace(model.description, minimum_sure=0.5)
    volume, truth = scan(direction, (3.0, 3.0, 3.0))
    assert min(scores(Segmenter(model, "cpu").segment(volume).labels, truth)) > 0.96
    faint = volume.array.copy()
    faint[truth == 4] -= round(ORGAN_HU - (BODY_HU + ORGAN_HU) / 2 - 12)
    result = Segmenter(model, "cpu").segment(volume.with_array(faint))
    assert min(scores(result.labels, np.where(truth == 4, 0, truth))[:3]) > 0.96
    assert not (result.labels == 4).any()
    (warning,) = [text for text in result.warnings if "left out" in text]
    expected = np.count_nonzero(truth == 4) * volume.voxel_volume_ml
    assert "spleen" in warning and float(warning.split()[0]) == pytest.approx(expected, rel=0.3)


def test_cut_organs_are_named(segmenter: Segmenter) -> None:
    volume, truth = scan(np.eye(3), (3.0, 3.0, 3.0))
    stop = np.flatnonzero((truth == 1).any(axis=(1, 2)))[-1]
    result = segmenter.segment(Volume(volume.array[:stop], volume.spacing, volume.origin))
    assert min(scores(result.labels, truth[:stop])) > 0.96
    assert [w for w in result.warnings if "Cut by the edge" in w] == [
        "Cut by the edge of the scan, so the volume is incomplete: liver."
    ]


def test_progress_is_true_and_rises_to_one(segmenter: Segmenter) -> None:
    volume, _ = scan(np.eye(3), (3.0, 3.0, 3.0))
    events: list[tuple[float, str]] = []
    segmenter.segment(volume, progress=lambda fraction, stage: events.append((fraction, stage)))
    fractions = [fraction for fraction, _ in events]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert len(set(fractions)) > 9
    assert list(dict.fromkeys(stage for _, stage in events)) == [
        "Checking the CT",
        "Finding the organs",
        "Labeling the organs",
        "Drawing the organs",
        "Cleaning up",
        "Done",
    ]


def test_cancelling_works_at_every_poll() -> None:
    volume, _ = scan(np.eye(3), (4.0, 4.0, 4.0))
    segmenter = Segmenter(FakeModel(COARSE, replace(FINE, further_spacings_mm=((4.0, 4.0, 4.0),))), "cpu")
    polls = 0

    def count() -> bool:
        nonlocal polls
        polls += 1
        return False

    segmenter.segment(volume, cancelled=count)
    assert polls >= 12
    for limit in range(polls):
        left = limit

        def after_some() -> bool:
            nonlocal left
            left -= 1
            return left < 0

        with pytest.raises(Cancelled):
            segmenter.segment(volume, cancelled=after_some)
    network = segmenter._networks["fine"]._module
    assert not network.first._forward_pre_hooks
    assert min(scores(segmenter.segment(volume).labels, scan(np.eye(3), (4.0, 4.0, 4.0))[1])) > 0.9


def test_the_ct_is_not_changed_and_may_be_read_only(segmenter: Segmenter) -> None:
    volume, _ = scan(np.eye(3), (4.0, 4.0, 4.0))
    before = volume.array.copy()
    volume.array.flags.writeable = False
    segmenter.segment(volume)
    np.testing.assert_array_equal(volume.array, before)


def test_ten_runs_are_identical(segmenter: Segmenter) -> None:
    volume, _ = scan(np.eye(3), (5.0, 5.0, 5.0))
    first = segmenter.segment(volume)
    for _ in range(9):
        np.testing.assert_array_equal(segmenter.segment(volume).labels, first.labels)


def test_no_ct_is_refused(segmenter: Segmenter) -> None:
    volume, truth = scan(np.eye(3), (4.0, 4.0, 4.0))
    for array in (truth, volume.array + 1024, np.zeros_like(truth), np.where(truth == 1, np.nan, volume.array)):
        with pytest.raises(InputError):
            segmenter.segment(volume.with_array(array))


def test_devices() -> None:
    with pytest.raises(InputError, match="unknown"):
        Segmenter(FakeModel(COARSE), "gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no cuda device"):
            Segmenter(FakeModel(COARSE), "cuda")
    assert Segmenter(FakeModel(COARSE), "auto").device in ("cpu", "cuda", "mps")


def test_threads_are_set_only_while_it_runs() -> None:
    volume, _ = scan(np.eye(3), (5.0, 5.0, 5.0))
    before, seen = torch.get_num_threads(), set()
    Segmenter(FakeModel(COARSE), "cpu", threads=before + 1).segment(
        volume, progress=lambda *_: seen.add(torch.get_num_threads())
    )
    assert torch.get_num_threads() == before
    assert before + 1 in seen


class ShortOfMemory(AnatomyNetwork):
    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if math.prod(x.shape) > 512:
            raise self.error
        return super().forward(x)


def test_a_full_gpu_is_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "OutOfMemoryError")  # PyTorch 2.2, the last one for Macs with an Intel processor
    volume, truth = scan(np.eye(3), (4.0, 4.0, 4.0))
    model = FakeModel(COARSE, FINE)
    working, model.networks = model.networks, {"coarse": ShortOfMemory(), "fine": ShortOfMemory()}
    segmenter = Segmenter(model, "cpu")
    real = segmenter._any_orientation

    def first_on_the_gpu(volume: Volume, run: object) -> np.ndarray:
        if segmenter.device == "pretended gpu":
            segmenter.device = "cpu"
            try:
                return real(volume, run)
            finally:
                segmenter.device, model.networks = "pretended gpu", working
        return real(volume, run)

    segmenter.device = "pretended gpu"
    monkeypatch.setattr(segmenter, "_any_orientation", first_on_the_gpu)
    result = segmenter.segment(volume)
    assert result.device == "cpu"
    assert remarks(result) == ["The CPU was used instead of pretended gpu: its memory is too small."]
    assert min(scores(result.labels, truth)) > 0.9


def test_a_full_cpu_is_a_memory_error() -> None:
    volume, _ = scan(np.eye(3), (4.0, 4.0, 4.0))
    model = FakeModel(COARSE)
    model.networks["coarse"] = network = ShortOfMemory()
    network.error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    with pytest.raises(MemoryError):
        Segmenter(model, "cpu").segment(volume)


def image_of(volume: Volume, array: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.ravel().tolist())
    return image


def volume_of(image: sitk.Image) -> Volume:
    return Volume(
        sitk.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), np.reshape(image.GetDirection(), (3, 3))
    )


def turned_copies(volume: Volume) -> dict[str, Volume]:
    """The same CT stored with other axes, and resampled to oblique ones."""
    image = image_of(volume, volume.array)
    images = {orientation: sitk.DICOMOrient(image, orientation) for orientation in ("RAS", "PIL")}
    center = np.array(image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()]))
    for degrees in (8, 25):
        direction = rotation(degrees, (1, 1, 2)) @ volume.direction
        half = (np.array(image.GetSize()) - 1) / 2 * image.GetSpacing()
        images[f"oblique {degrees}"] = sitk.Resample(
            image,
            image.GetSize(),
            sitk.Transform(),
            sitk.sitkLinear,
            (center - direction @ half).tolist(),
            image.GetSpacing(),
            direction.ravel().tolist(),
            -1024,
        )
    return {name: volume_of(turned) for name, turned in images.items()}


@pytest.mark.real_ct
@pytest.mark.slow
def test_one_real_ct_in_every_orientation_gets_the_same_labels(flare_data: Path) -> None:
    volume = read_volume(flare_data / "val" / "matrad_pat001_ct.nii.gz")[0]
    small = Volume(
        np.ascontiguousarray(volume.array[60:140, 20:200, 10:206]), volume.spacing, volume.origin, volume.direction
    )
    model = load_model(bundled_model_folder())
    coarse_only = FakeModel(
        model.description.stages[0], multiple=model.stage_multiple(model.description.stages[0].name)
    )
    coarse_only.description = replace(model.description, stages=model.description.stages[:1])
    coarse_only.network = model.network
    segmenter = Segmenter(coarse_only, "cpu")
    expected = segmenter.segment(small).labels
    assert np.count_nonzero(expected == 1) * small.voxel_volume_ml > 300
    for name, turned in turned_copies(small).items():
        found = segmenter.segment(turned).labels
        back = sitk.GetArrayFromImage(
            sitk.Resample(
                image_of(turned, found),
                small.array.shape[::-1],
                sitk.Transform(),
                sitk.sitkNearestNeighbor,
                small.origin,
                small.spacing,
                small.direction.ravel().tolist(),
                255,
            )
        )
        seen = back != 255
        assert dice((back > 0) & seen, (expected > 0) & seen) >= (0.9 if "oblique" in name else 0.98), name
        for organ in ORGANS:
            a, b = (back == organ.label) & seen, (expected == organ.label) & seen
            if np.count_nonzero(b) * small.voxel_volume_ml > 20 and "oblique" not in name:
                assert dice(a, b) >= 0.98, (name, organ.key)


@pytest.mark.real_ct
@pytest.mark.slow
def test_the_bundled_model_labels_the_same_voxels_in_every_storage(flare_data: Path) -> None:
    """LPS, RAS, flipped, permuted and an oblique direction: the same voxels, and right stays right."""
    volume = read_volume(flare_data / "val" / "c3l00189_ct.nii.gz")[0]
    segmenter = Segmenter(load_model(bundled_model_folder()), "cpu")
    expected = segmenter.segment(volume).labels
    image = image_of(volume, volume.array)
    places = image_of(volume, np.arange(volume.array.size, dtype=np.int32).reshape(volume.array.shape))
    for orientation in ("LPS", "RAS", "LAS", "RPI", "PIL"):
        labels = segmenter.segment(volume_of(sitk.DICOMOrient(image, orientation))).labels
        found = np.zeros_like(expected)
        found.flat[sitk.GetArrayFromImage(sitk.DICOMOrient(places, orientation)).ravel()] = labels.ravel()
        assert min(dice(found == o.label, expected == o.label) for o in ORGANS) >= 0.98, orientation
    oblique = replace(volume, direction=rotation(10, (1, 1, 2)) @ volume.direction)
    found = segmenter.segment(oblique).labels
    assert min(dice(found == o.label, expected == o.label) for o in ORGANS) >= 0.98
