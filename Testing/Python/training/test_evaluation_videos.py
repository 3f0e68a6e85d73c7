"""The two videos: what a browser plays, with the right things moving, whole or not at all."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume

pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed")
pytest.importorskip("vtkmodules", reason="VTK is not installed")

import imageio_ffmpeg
from PIL import Image, ImageSequence

from FlareSegmentSlicerLib.rendering import videos
from FlareSegmentSlicerLib.rendering.drawing import REFERENCE
from FlareSegmentSlicerLib.rendering.surfaces import RenderingUnavailable, require_opengl

FRAMES = 12


@pytest.fixture(scope="module")
def phantom() -> tuple[Volume, np.ndarray]:
    return make_phantom(0, spacing=(5.0, 5.0, 6.0))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Videos of FRAMES frames: the tests need no more."""
    monkeypatch.setattr(videos, "_SCROLL_SECONDS", (FRAMES / 20, FRAMES / 20))
    monkeypatch.setattr(videos, "_TURN_SECONDS", FRAMES / 20)


def decoded(path: Path) -> tuple[dict, np.ndarray]:
    """(what ffmpeg says about the file, frames (number, rows, columns, 3))."""
    reader = imageio_ffmpeg.read_frames(str(path), pix_fmt="rgb24")
    facts = next(reader)
    columns, rows = facts["size"]
    frames = [np.frombuffer(frame, np.uint8).reshape(rows, columns, 3) for frame in reader]
    return facts, np.stack(frames).astype(np.int16)


def check_format(path: Path, facts: dict, frames: np.ndarray) -> None:
    assert facts["codec"] == "h264" and facts["pix_fmt"].startswith("yuv420p")
    assert facts["size"] == (1280, 720) and len(frames) == FRAMES
    start = path.read_bytes()[:4096]
    assert start[4:8] == b"ftyp" and b"moov" in start  # the index comes first: it plays while it loads
    assert all(frame.std() > 5 for frame in frames)


def share(frames: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """Share of each frame's axial part that has nearly this color."""
    near = np.abs(frames[:, 80:700, 20:860] - np.array(color)).max(axis=-1) < 40
    return near.mean(axis=(1, 2))


def violet(pixels: np.ndarray) -> np.ndarray:
    """Where pixels have the spleen's hue."""
    return (pixels[..., 2] > pixels[..., 1] + 20) & (pixels[..., 0] > pixels[..., 1] + 20)


def test_slices_scroll_from_head_to_feet(phantom, tmp_path: Path) -> None:
    volume, labels = phantom
    seen: list[float] = []
    videos.write_slices_video(tmp_path / "slices.mp4", volume, labels, progress=seen.append)
    facts, frames = decoded(tmp_path / "slices.mp4")
    check_format(tmp_path / "slices.mp4", facts, frames)
    assert os.listdir(tmp_path) == ["slices.mp4"]
    assert len(seen) == FRAMES and seen == sorted(seen) and seen[-1] == 1
    # The line in the coronal picture sinks from its top to its bottom, by equal steps.
    rows = [int(np.argmax(frame[80:420, 960:1200].mean(axis=(1, 2)))) for frame in frames[1:-1]]
    assert rows == sorted(rows) and rows[-1] - rows[0] > 80
    # The spleen comes before the lower ends of the kidneys.
    spleen = [np.count_nonzero(violet(frame[80:700, 20:860])) for frame in frames]
    assert sum(spleen[: FRAMES // 2]) > 2 * sum(spleen[FRAMES // 2 :]) and max(spleen) > 500


def test_the_reference_is_drawn_too(phantom, tmp_path: Path) -> None:
    volume, labels = phantom
    prediction = np.where(labels == 1, 0, labels).astype(np.uint8)
    for name, reference in (("without", None), ("with", labels)):
        videos.write_slices_video(tmp_path / f"{name}.mp4", volume, prediction, reference)
    without, shown = (share(decoded(tmp_path / f"{name}.mp4")[1], REFERENCE).max() for name in ("without", "with"))
    assert without == 0 and shown > 0.001


def test_organs_turn_inside_the_body(phantom, tmp_path: Path, screenshots: Path) -> None:
    try:
        require_opengl()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    videos.write_turntable_video(tmp_path / "3d.mp4", *phantom)
    facts, frames = decoded(tmp_path / "3d.mp4")
    check_format(tmp_path / "3d.mp4", facts, frames)
    (screenshots / "phantom_turning.mp4").write_bytes((tmp_path / "3d.mp4").read_bytes())
    # From the front the spleen is at the right of the picture, from behind at the left.
    front, behind = (np.nonzero(violet(frames[number, 80:, :870]))[1] for number in (0, FRAMES // 2))
    assert front.size > 1000 and behind.size > 1000
    assert front.mean() > 437 + 60 and behind.mean() < 437 - 60
    # The body is there, but faint: gray, darker than the organs, and wider than they are.
    gray = (np.ptp(frames[0], axis=-1) < 30) & (frames[0].mean(axis=-1) > 15) & (frames[0].mean(axis=-1) < 130)
    assert gray[150:650, 30:860].mean() > 0.2


def animation(path: Path) -> tuple[np.ndarray, list[int]]:
    """(frames (number, rows, columns, 3), how long each one is shown in ms)."""
    with Image.open(path) as file:
        assert file.format == "GIF" and file.info["loop"] == 0
        frames = [(np.asarray(frame.convert("RGB")), frame.info["duration"]) for frame in ImageSequence.Iterator(file)]
    return np.stack([pixels for pixels, _ in frames]).astype(np.int16), [duration for _, duration in frames]


def test_an_animation_shows_the_slices_of_the_video(phantom, tmp_path: Path, screenshots: Path) -> None:
    videos.write_slices_video(tmp_path / "slices.mp4", *phantom)
    seen: list[float] = []
    videos.write_slices_video(tmp_path / "slices.gif", *phantom, progress=seen.append)
    assert sorted(os.listdir(tmp_path)) == ["slices.gif", "slices.mp4"]
    frames, durations = animation(tmp_path / "slices.gif")
    (screenshots / "phantom_slices.gif").write_bytes((tmp_path / "slices.gif").read_bytes())
    shares = [(number + 1) / (FRAMES // 2) for number in range(FRAMES // 2)]
    # its compression takes nearly as long as its drawing
    assert seen == pytest.approx([0.6 * share for share in shares] + [0.6 + 0.4 * share for share in shares])
    assert frames.shape[1:] == (360, 640, 3) and sum(durations) == 1000 * FRAMES / 20
    video = decoded(tmp_path / "slices.mp4")[1]
    halved = video.reshape(len(video), 360, 2, 640, 2, 3).mean(axis=(2, 4))
    for frame, counterpart in ((frames[0], halved[0]), (frames[-1], halved[-1])):
        assert np.abs(frame - counterpart).mean() < 3
    # 256 colors leave the organs theirs: the swatches of the legend are as in the video.
    swatches = np.abs(frames[0][180:, 440:460] - halved[0][180:, 440:460])
    assert np.percentile(swatches, 99) < 40


def test_an_animation_turns(phantom, tmp_path: Path) -> None:
    try:
        require_opengl()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    videos.write_turntable_video(tmp_path / "3d.GIF", *phantom)
    frames, durations = animation(tmp_path / "3d.GIF")
    assert len(frames) == FRAMES // 2 and set(durations) == {100}
    front, behind = (np.nonzero(violet(frames[number, 40:, :435]))[1] for number in (0, FRAMES // 4))
    assert front.mean() > 218 + 30 and behind.mean() < 218 - 30


def test_a_stopped_video_leaves_nothing(phantom, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(fraction: float) -> None:
        if fraction > 0.3:
            raise Stop

    (tmp_path / "slices.mp4").write_bytes(b"earlier")
    with pytest.raises(Stop):
        videos.write_slices_video(tmp_path / "slices.mp4", *phantom, progress=stop)
    assert os.listdir(tmp_path) == ["slices.mp4"] and (tmp_path / "slices.mp4").read_bytes() == b"earlier"


def test_without_the_encoder_it_says_what_to_install(phantom, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    for write in (videos.write_slices_video, videos.write_turntable_video):
        with pytest.raises(videos.VideoUnavailable, match="imageio-ffmpeg"):
            write(tmp_path / "x.mp4", *phantom)
        with pytest.raises(videos.VideoUnavailable, match="pillow"):
            write(tmp_path / "x.gif", *phantom)
        with pytest.raises(ValueError, match=r"\.mp4 or \.gif"):
            write(tmp_path / "x.avi", *phantom)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("python", "words"),
    [
        ("/opt/Slicer 5/bin/PythonSlicer", "In Slicer's Python console: slicer.util.pip_install('imageio-ffmpeg')."),
        ("/home/me/.venv/bin/python", 'In a terminal: "/home/me/.venv/bin/python" -m pip install imageio-ffmpeg.'),
    ],
)
def test_what_is_missing_is_installed_in_this_very_python(monkeypatch, python: str, words: str) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    monkeypatch.setattr(sys, "executable", python)
    with pytest.raises(videos.VideoUnavailable) as caught:
        videos.require_encoder("x.mp4")
    assert words in str(caught.value)


def test_a_result_without_organs_is_still_a_video(phantom, tmp_path: Path) -> None:
    volume, labels = phantom
    videos.write_slices_video(tmp_path / "empty.mp4", volume, np.zeros_like(labels))
    assert len(decoded(tmp_path / "empty.mp4")[1]) == FRAMES


def test_the_compression_of_an_animation_can_be_cancelled(phantom, tmp_path: Path) -> None:
    def cancel(fraction: float) -> None:
        if fraction > 0.9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        videos.write_slices_video(tmp_path / "cancelled.gif", *phantom, progress=cancel)
    assert not os.listdir(tmp_path)
