"""The two pictures of a result: the right things at the right places, whatever way the voxels are stored."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from FlareSegmentLib.organs import ORGANS, organ_by_key, picture_color
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume

pytest.importorskip("vtkmodules", reason="VTK is not installed")

from FlareSegmentSlicerLib.rendering.drawing import Canvas
from FlareSegmentSlicerLib.rendering.pictures import RenderingUnavailable, request_surfaces, slices_png, surfaces_png
from FlareSegmentSlicerLib.rendering.renderer_process import RendererProcess
from FlareSegmentSlicerLib.rendering.surfaces import OrganView

LEGEND_WIDTH = 290


@pytest.fixture(scope="module")
def phantom():
    return make_phantom(0, spacing=(4.0, 4.0, 5.0))


def read(path):
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(int)


def columns_of(picture, key, tolerance=6):
    """Columns (of the part without the legend) that show the organ's plain color."""
    near = np.abs(picture - picture_color(organ_by_key(key))).max(axis=-1) <= tolerance
    return np.nonzero(near)[1]


def restored(volume, labels, permutation, flips):
    """The same patient with the voxels stored in another axis order: (volume, labels)."""
    axes_xyz = [2 - axis for axis in permutation[::-1]]
    direction, spacing = volume.direction[:, axes_xyz].copy(), [volume.spacing[axis] for axis in axes_xyz]
    corner = np.zeros(3)
    for position, flip in enumerate(flips[::-1]):
        if flip:
            corner[axes_xyz[position]] = volume.array.shape[2 - axes_xyz[position]] - 1
            direction[:, position] *= -1
    origin = (volume.affine_lps @ np.append(corner, 1))[:3]
    cut = tuple(slice(None, None, -1 if flip else 1) for flip in flips)
    arrays = [np.ascontiguousarray(array.transpose(permutation)[cut]) for array in (volume.array, labels)]
    return Volume(arrays[0], tuple(spacing), tuple(origin), direction, volume.name), arrays[1]


def test_slices_show_the_liver_on_the_left(phantom, tmp_path, screenshots):
    slices_png(tmp_path / "slices.png", *phantom)
    picture = read(tmp_path / "slices.png")
    (screenshots / "phantom_slices.png").write_bytes((tmp_path / "slices.png").read_bytes())
    axial = picture[70:400, : picture.shape[1] // 4]
    assert columns_of(axial, "liver").mean() + 60 < columns_of(axial, "spleen").mean()
    assert os.listdir(tmp_path) == ["slices.png"]


@pytest.mark.parametrize(
    ("permutation", "flips"),
    [((0, 1, 2), (False, True, True)), ((2, 0, 1), (True, False, True)), ((1, 2, 0), (True, True, True))],
)
def test_slices_do_not_depend_on_how_the_voxels_are_stored(phantom, tmp_path, permutation, flips):
    slices_png(tmp_path / "plain.png", *phantom)
    slices_png(tmp_path / "other.png", *restored(*phantom, permutation, flips))
    plain, other = read(tmp_path / "plain.png"), read(tmp_path / "other.png")
    below_heading = slice(70, None)
    assert np.array_equal(plain[below_heading], other[below_heading])


def test_surfaces_from_the_front_and_from_behind(phantom, tmp_path, screenshots):
    surfaces_png(tmp_path / "3d.png", *phantom)
    picture = read(tmp_path / "3d.png")[70:-44, :-LEGEND_WIDTH]
    (screenshots / "phantom_3d.png").write_bytes((tmp_path / "3d.png").read_bytes())
    violet = (picture[..., 2] > picture[..., 1] + 20) & (picture[..., 0] > picture[..., 1] + 20)
    warm = (picture[..., 0] > picture[..., 2] + 30) & ~violet  # liver and right kidney
    half = picture.shape[1] // 2
    for columns, sign in ((slice(0, half), 1), (slice(half, None), -1)):
        spleen, others = (np.nonzero(color[:, columns])[1] for color in (violet, warm))
        assert spleen.size > 2000
        assert others.size > 10 * 2000
        assert sign * (spleen.mean() - others.mean()) > 100


def test_surfaces_follow_the_direction_matrix(phantom, tmp_path):
    surfaces_png(tmp_path / "plain.png", *phantom)
    surfaces_png(tmp_path / "other.png", *restored(*phantom, (2, 0, 1), (True, False, True)))
    plain, other = (read(tmp_path / name)[70:] for name in ("plain.png", "other.png"))
    assert np.mean(np.abs(plain - other).max(axis=-1) > 40) < 0.01


def test_a_result_without_organs_is_still_a_picture(phantom, tmp_path):
    volume, labels = phantom
    for draw in (slices_png, surfaces_png):
        draw(tmp_path / "empty.png", volume, np.zeros_like(labels))
        assert read(tmp_path / "empty.png").std() > 5


def test_nothing_is_left_where_a_picture_cannot_be_written(phantom, tmp_path):
    with pytest.raises(OSError, match="missing"):
        slices_png(tmp_path / "missing" / "slices.png", *phantom)
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="OpenGL is hidden the way Linux finds it")
def test_without_opengl_the_slices_are_drawn_and_the_process_lives(tmp_path):
    code = """
        import sys
        from pathlib import Path
        from FlareSegmentLib.phantom.torso import make_phantom
        from FlareSegmentSlicerLib.rendering.pictures import RenderingUnavailable, slices_png, surfaces_png
        folder = Path(sys.argv[1])
        phantom = make_phantom(0, spacing=(8.0, 8.0, 8.0))
        slices_png(folder / "slices.png", *phantom)
        try:
            surfaces_png(folder / "3d.png", *phantom)
        except RenderingUnavailable as error:
            print("refused:", error)
    """
    environment = {name: value for name, value in os.environ.items() if name != "DISPLAY"}
    environment["__EGL_VENDOR_LIBRARY_FILENAMES"] = str(tmp_path / "no_vendor.json")
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("refused:")
    assert os.listdir(tmp_path) == ["slices.png"]


@pytest.fixture
def renderer():
    with RendererProcess(sys.executable) as process:
        yield process


def test_another_process_draws_the_same(phantom, tmp_path, renderer):
    volume, labels = phantom
    surfaces_png(tmp_path / "here.png", volume, labels)
    for _ in range(2):  # it goes on after one result
        request_surfaces(renderer, volume, labels)
        surfaces_png(tmp_path / "there.png", volume, labels, ORGANS, renderer)
        here, there = read(tmp_path / "here.png"), read(tmp_path / "there.png")
        assert np.mean(np.abs(here - there).max(axis=-1) > 8) < 0.001
    request_surfaces(renderer, volume, np.zeros_like(labels))
    surfaces_png(tmp_path / "empty.png", volume, np.zeros_like(labels), ORGANS, renderer)
    assert read(tmp_path / "empty.png").std() > 5


def test_a_view_that_starts_again_shows_what_a_new_one_shows(phantom):
    volume, labels = phantom
    try:
        with OrganView(8, 8) as used, OrganView(120, 90) as new:
            used.add_organs(volume, labels, ORGANS[:2])
            used.fit()
            used.picture(90)
            used.restart(120, 90)
            assert used.empty
            pictures = []
            for view in (used, new):
                view.add_organs(volume, labels, ORGANS[2:])
                view.fit()
                pictures.append(view.picture(0))
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    assert pictures[0].shape == (90, 120, 3) and pictures[0].std() > 5
    assert np.mean(np.abs(pictures[0].astype(int) - pictures[1]).max(axis=-1) > 8) < 0.001


@pytest.mark.parametrize("how", ["killed", "never started", "no OpenGL"])
def test_a_drawing_process_that_ends_is_a_missing_picture(phantom, tmp_path, how, monkeypatch):
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", str(tmp_path / "no_vendor.json"))
    monkeypatch.delenv("DISPLAY", raising=False)
    if how == "no OpenGL" and sys.platform != "linux":
        pytest.skip("OpenGL is hidden the way Linux finds it")
    with RendererProcess(sys.executable if how != "never started" else str(tmp_path / "python")) as renderer:
        if how == "killed":
            renderer._process.kill()
        request_surfaces(renderer, *phantom)
        with pytest.raises(RenderingUnavailable, match="OpenGL"):
            surfaces_png(tmp_path / "3d.png", *phantom, ORGANS, renderer)
    assert not os.listdir(tmp_path)


def test_a_jpeg_shows_the_picture_and_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    """Its bytes are written by Python: libjpeg ends the process where a disk is full."""
    canvas = Canvas(40, 24)
    canvas.pixels[:8, :10] = (250, 30, 20)
    canvas.write(tmp_path / "one.jpg")
    shown = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "one.jpg"))).astype(int)
    assert np.abs(shown - canvas.pixels).mean() < 8

    def no_space(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="No space"):
        canvas.write(tmp_path / "two.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["one.jpg"]
