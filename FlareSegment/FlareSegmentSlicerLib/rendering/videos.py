"""Two videos of a result: slices scrolling from head to feet, and the organs turning in 3D over a faint body.

Made headless and without the scene, from the same drawings as the pictures; the panel and the evaluation use them
alike. The name's ending chooses the kind of file:

.mp4  H.264, 4:2:0, with the index in front: what every browser plays. The encoder is ffmpeg, in a process of its own,
      as the package imageio-ffmpeg brings it; `VideoUnavailable` says how to install it.
.gif  an animation of half the size and half the frames in 256 colors, for slides and pages that take no video. Pillow
      makes it, which Slicer brings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from scipy import ndimage

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.organs import ORGANS, Organ
from FlareSegmentLib.processes import private_folder, python_executable
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.rendering.drawing import (
    FAINT,
    REFERENCE,
    SIDES,
    TEXT,
    Canvas,
    box_to_show,
    busiest_slice,
    draw_plane,
    position_text,
)
from FlareSegmentSlicerLib.rendering.surfaces import OrganView, side_seen, surface

_Work = TypeVar("_Work")
Tick = Callable[[float], None]
"""Called with the fraction done, 0 to 1; an exception that it raises ends the work, and no file is left."""

_WIDTH, _HEIGHT = 1280, 720
_TOP, _GAP = 70, 14
_AXIAL_WIDTH = 860
_FRAMES_PER_SECOND = {".mp4": 20, ".gif": 10}
_GIF_REDUCTION = 2
_GIF_DRAWING_SHARE = 0.6  # of the seconds
_PALETTE_FRAMES = 8
_SCROLL_SECONDS = (7, 14)
_SLICES_PER_SECOND = 12
_TURN_SECONDS = 6
_BODY_MM = 4.0


class VideoUnavailable(FlareSegmentError):
    """This Python has no encoder for this kind of file."""


def write_slices_video(
    path: str | os.PathLike,
    volume: Volume,
    labels: np.ndarray,
    reference: np.ndarray | None = None,
    *,
    organs: Sequence[Organ] = ORGANS,
    progress: Tick | None = None,
) -> None:
    """Write a video of the axial slices from head to feet with the organs' outlines; beside them a coronal slice shows
    the height.

    Args:
        path: ends with .mp4 or .gif; the file appears whole or not at all.
        volume: CT in HU; its name is the video's title.
        labels: uint8 (z, y, x) on the volume's grid, values of `organs`.
        reference: labels drawn as outlines to compare with; what differs is tinted (see `drawing.draw_plane`).
        progress: told how far it is, for every frame.

    Raises:
        VideoUnavailable: there is no encoder.
        OSError: the file cannot be written.
    """
    require_encoder(path)
    view, order = volume.to_lps_view()
    shown = order.apply(labels)
    truth = None if reference is None else order.apply(reference)
    box = box_to_show(view, shown if truth is None else np.maximum(shown, truth))
    depth, height, width = ((stop - start) * step for (start, stop), step in zip(box, view.spacing[::-1], strict=True))

    still = Canvas(_WIDTH, _HEIGHT)
    still.heading(volume)
    column = _GAP + _AXIAL_WIDTH + _GAP
    side = _WIDTH - column - _GAP
    coronal_mm = max(width / side, depth / (_HEIGHT * 0.46))
    index = busiest_slice(shown, 1, organs)
    coronal = draw_plane(view, shown, organs, box, 1, index, coronal_mm, truth)
    left = column + (side - coronal.shape[1]) // 2
    below = _TOP + coronal.shape[0]
    still.panel(coronal, left, _TOP, "", SIDES[1])
    still.text(left, below + 6, f"Coronal, {position_text(view, 1, index)}", 17, FAINT)
    _legend(still, column, below + 48, volume, labels, organs, reference is not None)

    pixel_mm = max(width / _AXIAL_WIDTH, height / (_HEIGHT - _TOP - 2 * _GAP))
    start, stop = box[0]
    seconds = np.clip((stop - start) / _SLICES_PER_SECOND, *_SCROLL_SECONDS)
    levels = np.rint(np.linspace(stop - 1, start, round(seconds * _frames_per_second(path)))).astype(int)

    def frames() -> Iterator[np.ndarray]:
        canvas = Canvas(_WIDTH, _HEIGHT)
        shown_level = None
        for level in levels.tolist():
            if level != shown_level:
                shown_level = level
                canvas.pixels[:] = still.pixels
                image = draw_plane(view, shown, organs, box, 0, level, pixel_mm, truth)
                corner = _GAP + (_AXIAL_WIDTH - image.shape[1]) // 2
                canvas.panel(image, corner, _TOP, f"Axial, {position_text(view, 0, level)}", SIDES[0])
                canvas.scale_bar(corner + 14, _TOP + image.shape[0] - 16, 50 / pixel_mm, "5 cm")
                row = _TOP + round((stop - level - 0.5) * view.spacing[2] / coronal_mm)
                canvas.rectangle(left, min(row, _TOP + coronal.shape[0] - 2), coronal.shape[1], 2, TEXT)
            yield canvas.pixels

    _write(Path(path), frames(), len(levels), progress)


def write_turntable_video(
    path: str | os.PathLike,
    volume: Volume,
    labels: np.ndarray,
    *,
    organs: Sequence[Organ] = ORGANS,
    progress: Tick | None = None,
) -> None:
    """Write a video of the organs in one turn about the body's long axis, from the front by the patient's left, inside
    the faint body.

    Arguments and errors as of `write_slices_video`; raises also RenderingUnavailable where there is no OpenGL.
    """
    require_encoder(path)
    view_width, view_height = _AXIAL_WIDTH, _HEIGHT - _TOP - _GAP
    with OrganView(view_width, view_height, quick=True) as scene:
        scene.add_organs(volume, labels, organs)
        scene.add_body(_body_surface(volume, labels))
        pixel_mm = scene.fit(turning=True)
        canvas = Canvas(_WIDTH, _HEIGHT)
        canvas.heading(volume)
        column = _GAP + view_width + _GAP
        _legend(canvas, column, _TOP + 10, volume, labels, organs, False)
        still = canvas.pixels.copy()
        count = round(_TURN_SECONDS * _frames_per_second(path))

        def frames() -> Iterator[np.ndarray]:
            for number in range(count):
                degrees = 360 * number / count
                canvas.pixels[:] = still
                canvas.panel(scene.picture(degrees), _GAP, _TOP, *side_seen(degrees))
                canvas.scale_bar(_GAP + 14, _HEIGHT - _GAP - 16, 50 / pixel_mm, "5 cm")
                yield canvas.pixels

        _write(Path(path), frames(), count, progress)


def _legend(
    canvas: Canvas,
    x: int,
    y: int,
    volume: Volume,
    labels: np.ndarray,
    organs: Sequence[Organ],
    compared: bool,
) -> None:
    """Colors, names and volumes; with a reference, what its color means."""
    if compared:
        canvas.rectangle(x, y + 8, 22, 4, REFERENCE)
        canvas.text(x + 34, y - 1, "Reference; tinted where missed", 18, FAINT)
        y += 36
    canvas.legend(x, y, volume, labels, organs)


def _body_surface(volume: Volume, labels: np.ndarray):
    """vtkPolyData of the skin at the height of the organs, or None: the largest piece denser than fat's lower end,
    without thin things such as the table, and filled slice by slice.
    """
    view, order = volume.to_lps_view()
    (start, stop), *_ = box_to_show(view, order.apply(labels))
    steps = [max(1, round(_BODY_MM / step)) for step in view.spacing]
    coarse = view.array[start : stop : steps[2], :: steps[1], :: steps[0]] > -250
    solid = ndimage.binary_opening(coarse, ndimage.generate_binary_structure(3, 1), iterations=2)
    pieces, count = ndimage.label(solid)
    if not count:
        return None
    body = pieces == 1 + int(np.argmax(np.bincount(pieces.ravel())[1:]))
    body = np.stack([ndimage.binary_fill_holes(plane) for plane in body])
    corner = (view.affine_lps @ [0, 0, start, 1])[:3]
    spacing = tuple(step * count for step, count in zip(view.spacing, steps, strict=True))
    return surface(Volume(body, spacing, tuple(corner), view.direction), body, _BODY_MM)


def require_encoder(path: str | os.PathLike) -> None:
    """Raise VideoUnavailable where a video of this name cannot be made, ValueError for another ending."""
    if _frames_per_second(path) and Path(path).suffix.lower() == ".gif":
        _pillow_image()
    else:
        _ffmpeg()


def _frames_per_second(path: str | os.PathLike) -> int:
    suffix = Path(path).suffix.lower()
    if suffix not in _FRAMES_PER_SECOND:
        raise ValueError(f"{path}: a video ends with {' or '.join(_FRAMES_PER_SECOND)}")
    return _FRAMES_PER_SECOND[suffix]


def _how_to_install(package: str) -> str:
    """What a user does to get a package into this very Python, an installed Slicer's or another."""
    python = python_executable()
    if Path(python).stem == "PythonSlicer":
        return f"In Slicer's Python console: slicer.util.pip_install('{package}')."
    return f'In a terminal: "{python}" -m pip install {package}.'


def _ffmpeg():
    """The package that brings ffmpeg. Raises VideoUnavailable."""
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise VideoUnavailable(
            f"No video was made: the package imageio-ffmpeg is missing. {_how_to_install('imageio-ffmpeg')} "
            "An animation (.gif) needs none."
        ) from error
    return imageio_ffmpeg


def _pillow_image():
    """Pillow's module Image. Raises VideoUnavailable."""
    try:
        from PIL import Image
    except ImportError as error:
        raise VideoUnavailable(
            f"No animation was made: the package pillow is missing. {_how_to_install('pillow')}"
        ) from error
    return Image


def _write(path: Path, frames: Iterable[np.ndarray], count: int, progress: Tick | None) -> None:
    """Encode `count` frames, uint8 (rows, columns, 3) with even sides. Raises VideoUnavailable, OSError."""

    def told(work: Iterable[_Work], start: float = 0.0, end: float = 1.0) -> Iterator[_Work]:
        for number, one in enumerate(work, start=1):
            yield one
            if progress is not None:
                progress(start + (end - start) * number / count)

    with private_folder(path.parent) as private:
        partial = Path(private) / f"video{path.suffix.lower()}"
        if partial.suffix == ".gif":
            pictures = _gif_pictures(told(frames, 0.0, _GIF_DRAWING_SHARE))
            _write_gif(partial, told(pictures, _GIF_DRAWING_SHARE, 1.0))
        elif not _write_mp4(partial, told(frames), count):
            raise OSError(f"{path} could not be written whole; the disk may be full")
        os.replace(partial, path)


def _write_mp4(path: Path, frames: Iterable[np.ndarray], count: int) -> bool:
    """Whether all frames are in the file now: ffmpeg may not say that the disk is full."""
    encoder = _ffmpeg()
    color = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
    sink = encoder.write_frames(
        str(path),
        (_WIDTH, _HEIGHT),
        fps=_frames_per_second(path),
        codec="libx264",
        pix_fmt_out="yuv420p",
        quality=None,
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-crf", "21", "-vf", "scale=out_color_matrix=bt709", *color, "-movflags", "+faststart"],
    )
    sink.send(None)
    try:
        for frame in frames:
            sink.send(np.ascontiguousarray(frame))
    finally:
        sink.close()
    return path.is_file() and encoder.count_frames_and_secs(str(path))[0] == count


def _gif_pictures(frames: Iterable[np.ndarray]) -> Iterator[Any]:
    """Pillow's pictures of all frames. They share one palette, so that what stands still is stored once and does not
    flicker.
    """
    Image = _pillow_image()
    pictures = [Image.fromarray(frame).reduce(_GIF_REDUCTION) for frame in frames]
    sample = pictures[:: -(-len(pictures) // _PALETTE_FRAMES)]
    palette = Image.fromarray(np.concatenate([np.asarray(picture) for picture in sample])).quantize(kmeans=3)
    return (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)


def _write_gif(path: Path, pictures: Iterator[Any]) -> None:
    """Pillow asks for one picture after the other while it compresses them."""
    next(pictures).save(path, save_all=True, append_images=pictures, duration=1000 // _frames_per_second(path), loop=0)
