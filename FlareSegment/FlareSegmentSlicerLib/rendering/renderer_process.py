"""A process that draws organs in 3D: it starts while the network still computes, and may die without harm.

Without OpenGL, VTK may end the process it draws in; and VTK's start takes as long as the drawing. Client and process
are both in this file. On the process's standard input come requests: a line of JSON, then the label map as numpy
writes an array. It answers each with a line of JSON and the pictures' bytes. It ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np

if __package__ in (None, ""):  # started by its path: the libraries are two folders above, and nothing here is a module
    _HERE = os.path.dirname(os.path.abspath(__file__))
    _MODULE = os.path.dirname(os.path.dirname(_HERE))
    sys.path[:] = [_MODULE, *(entry for entry in sys.path if os.path.abspath(entry or ".") != _HERE)]

from FlareSegmentLib.measures.organ_statistics import bounding_box
from FlareSegmentLib.organs import ORGANS, Organ, organ_by_key
from FlareSegmentLib.volume import Volume

if TYPE_CHECKING:
    from FlareSegmentSlicerLib.rendering.surfaces import OrganView


class RendererProcess:
    """Starts at once and waits for label maps to draw; a context manager that ends it.

    Args:
        python: the interpreter to run, Slicer's PythonSlicer.
    """

    def __init__(self, python: str) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._process = subprocess.Popen(
                [python, str(Path(__file__).resolve())],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()

    def request(
        self, volume: Volume, labels: np.ndarray, organs: Sequence[Organ], size: tuple[int, int], degrees: Sequence[int]
    ) -> None:
        """Have the organs of a label map, uint8 (z, y, x) on the volume's grid, drawn from these sides in pictures of
        `size` (width, height) pixels, as `OrganView.picture` does; `answer` gives them.
        """
        box = bounding_box(labels)
        if not labels[box].size:
            box = (slice(0, 1),) * 3
        place = volume.part(box)
        facts = {
            "spacing": place.spacing,
            "origin": place.origin,
            "direction": place.direction.ravel().tolist(),
            "shape": place.array.shape,
            "organs": [organ.key for organ in organs],
            "size": size,
            "degrees": list(degrees),
        }
        with contextlib.suppress(OSError):  # it is gone: `answer` says so
            pipe = self._pipe("stdin")
            pipe.write(json.dumps(facts).encode() + b"\n")
            pipe.write(np.ascontiguousarray(labels[box], np.uint8))
            pipe.flush()

    def answer(self) -> tuple[list[np.ndarray], float, bool]:
        """The pictures that were asked for, uint8 (height, width, 3), mm per pixel, and whether nothing is shown.

        Raises OSError where the process could not draw.
        """
        pipe = self._pipe("stdout")
        line = pipe.readline()
        if not line:
            raise OSError("the process that draws in 3D has ended")
        facts = json.loads(line)
        width, height = facts["size"]
        pictures = []
        for _ in range(facts["pictures"]):
            data = pipe.read(width * height * 3)
            if len(data) < width * height * 3:
                raise OSError("the process that draws in 3D has ended")
            pictures.append(np.frombuffer(data, np.uint8).reshape(height, width, 3))
        return pictures, facts["pixel_mm"], facts["empty"]

    def _pipe(self, name: str) -> BinaryIO:
        pipe = getattr(self._process, name, None)
        if pipe is None:
            raise OSError("the process that draws in 3D could not be started")
        return pipe


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    from FlareSegmentSlicerLib.rendering.surfaces import OrganView

    with OrganView(8, 8, probe=False) as view:
        _draw_once(view)
        while line := requests.readline():
            facts = json.loads(line)
            shape = tuple(facts["shape"])
            labels = np.frombuffer(requests.read(math.prod(shape)), np.uint8).reshape(shape)
            volume = Volume(labels, facts["spacing"], facts["origin"], np.array(facts["direction"]))
            view.restart(*facts["size"])
            view.add_organs(volume, labels, [organ_by_key(key) for key in facts["organs"]])
            head = {
                "size": facts["size"],
                "pictures": len(facts["degrees"]),
                "pixel_mm": view.fit(),
                "empty": view.empty,
            }
            pictures = [view.picture(degrees) for degrees in facts["degrees"]]
            answers.write(json.dumps(head).encode() + b"\n")
            for picture in pictures:
                answers.write(np.ascontiguousarray(picture))
            answers.flush()


def _draw_once(view: OrganView) -> None:
    """Do all that takes long the first time: what draws a surface is compiled then."""
    cube = np.zeros((8, 8, 8), np.uint8)
    cube[2:6, 2:6, 2:6] = ORGANS[0].label
    view.add_organs(Volume(cube), cube, ORGANS[:1])
    view.fit()
    view.picture(0)


def main() -> None:
    """Serve standard input and output; whatever else is printed, by C code too, goes nowhere."""
    sys.stdout.flush()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
