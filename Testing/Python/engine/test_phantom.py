"""The built-in phantom: anatomy on the right side, believable HU, one patient per seed."""

from __future__ import annotations

import numpy as np
import pytest

from FlareSegmentLib.organs import ORGANS, organ_by_key
from FlareSegmentLib.phantom.anatomy import Anatomy
from FlareSegmentLib.phantom.shapes import Points
from FlareSegmentLib.phantom.torso import make_phantom

COARSE = (4.0, 4.0, 4.0)


@pytest.fixture(scope="module")
def patients():
    return [make_phantom(seed, spacing=COARSE) for seed in range(6)]


def center_lps(volume, mask):
    index = np.argwhere(mask).mean(axis=0)[::-1]
    return (volume.affine_lps @ np.append(index, 1))[:3]


def test_every_organ_has_a_believable_volume(patients):
    limits_ml = {"liver": (800, 2600), "right_kidney": (70, 330), "left_kidney": (70, 330), "spleen": (70, 400)}
    for volume, labels in patients:
        for organ in ORGANS:
            low, high = limits_ml[organ.key]
            assert low < np.count_nonzero(labels == organ.label) * volume.voxel_volume_ml < high
        assert set(np.unique(labels)) == {0, *(organ.label for organ in ORGANS)}


def test_right_is_right_and_left_is_left(patients):
    for volume, labels in patients:
        x = {organ.key: center_lps(volume, labels == organ.label)[0] for organ in ORGANS}
        canal = center_lps(volume, volume.array > 300)[0]
        assert x["liver"] < canal - 30
        assert x["right_kidney"] < canal - 30
        assert x["left_kidney"] > canal + 30
        assert x["spleen"] > canal + 30


def test_front_is_front_and_up_is_up(patients):
    for volume, labels in patients:
        liver, kidney = (center_lps(volume, labels == organ_by_key(key).label) for key in ("liver", "right_kidney"))
        body = center_lps(volume, volume.array > -300)
        lung = center_lps(volume, (volume.array < -700) & (volume.array > -920))
        assert liver[1] < body[1] < kidney[1], "the liver is in front, the kidneys lie at the back"
        assert lung[2] > liver[2] > kidney[2], "lungs above the liver, the liver above the kidneys"


def test_densities_are_those_of_ct(patients):
    for volume, labels in patients:
        array = volume.array
        assert array.dtype == np.int16
        assert array.min() >= -1024
        assert 0 < np.median(array[labels == organ_by_key("liver").label]) < 160
        assert array[0, 0, 0] < -900, "air around the patient"
        for low, high, least in ((-1100, -900, 0.1), (-130, -70, 0.1), (30, 90, 0.05), (200, 1500, 0.005)):
            assert np.mean((array > low) & (array < high)) > least, f"too little between {low} and {high} HU"
        assert np.mean(array[labels > 0] < -50) < 0.02, "labels lie on tissue"


def test_a_seed_is_a_patient(patients):
    volume, labels = make_phantom(2, spacing=COARSE)
    assert np.array_equal(volume.array, patients[2][0].array)
    assert np.array_equal(labels, patients[2][1])
    livers = {np.count_nonzero(labels == 1) for _, labels in patients}
    phases = {round(float(np.median(volume.array[labels == 2])), -1) for volume, labels in patients}
    assert len(livers) == len(patients)
    assert len(phases) >= 3, "contrast phases differ"


def test_the_grid_asked_for_is_the_grid_made():
    volume, labels = make_phantom(1, spacing=(5.0, 4.0, 6.0), z_range=(-40.0, 20.0))
    assert labels.shape == volume.array.shape
    assert volume.spacing == (5.0, 4.0, 6.0)
    assert volume.array.shape[0] == 10
    assert volume.origin[2] == pytest.approx(-37.0)
    assert np.array_equal(volume.direction, np.eye(3))


@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_computed_is_out_of_sight(seed):
    """Shapes are evaluated in full only where they can be seen; that changes no voxel."""
    line = np.arange(-144, 145, 9, dtype=np.float32)
    axes, reach = np.meshgrid(line, line, line), 2.0
    near, everywhere = Points(axes, reach), Points(axes, np.inf)
    for step in Anatomy(np.random.default_rng(seed)).steps:
        short, full = step.shape(near), step.shape(everywhere)
        seen = (short <= reach) | (full <= reach)
        assert np.array_equal(short[seen], full[seen])


@pytest.mark.parametrize("spacing", [(6.0, 6.0, 2.5), (6.0, 6.0, 6.0)])
def test_how_many_slices_are_painted_at_once_changes_nothing(monkeypatch, spacing):
    volume, labels = make_phantom(2, spacing)
    monkeypatch.setattr("FlareSegmentLib.phantom.torso._SLAB_VOXELS", 15_000)
    again, labels_again = make_phantom(2, spacing)
    assert np.array_equal(volume.array, again.array)
    assert np.array_equal(labels, labels_again)


def test_finer_grids_show_the_same_patient():
    fine, fine_labels = make_phantom(3, spacing=(3.0, 3.0, 3.0))
    coarse, coarse_labels = make_phantom(3, spacing=(6.0, 6.0, 6.0))
    for organ in ORGANS:
        a, b = ((labels == organ.label) for labels in (fine_labels, coarse_labels))
        assert np.count_nonzero(b) * coarse.voxel_volume_ml == pytest.approx(
            np.count_nonzero(a) * fine.voxel_volume_ml, rel=0.08
        )
        assert center_lps(coarse, b) == pytest.approx(center_lps(fine, a), abs=2.5)


def test_seeds_draw_spacing_and_range():
    grids = [make_phantom(seed, spacing=None, z_range=(0.0, 12.0))[0].spacing for seed in range(5)]
    heights = [make_phantom(seed, spacing=(8.0, 8.0, 8.0), z_range=None)[0].array.shape[0] for seed in range(8)]
    assert len(set(grids)) == len(grids)
    assert all(0.8 <= x <= 2.0 and x == y and 1 <= z <= 5 for x, y, z in grids)
    assert len(set(heights)) > 3


@pytest.mark.parametrize(
    "arguments",
    [{"spacing": (2.0, 2.0)}, {"spacing": (0.1, 2.0, 2.0)}, {"spacing": (2, 2, float("nan"))}, {"z_range": (10, 10)}],
)
def test_a_grid_that_is_no_image_is_refused(arguments):
    with pytest.raises(ValueError, match="phantom needs"):
        make_phantom(0, **arguments)
