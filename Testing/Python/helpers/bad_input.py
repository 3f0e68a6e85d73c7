"""What the tests of bad input share: one small CT with a known answer, the headless script run in this process, and
the judgment of how a run ended.

A run may end in two ways: with the right result, or with one clear line, status 2 and nothing written. `Judge` accepts
nothing else and counts.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from test_pipeline import COARSE, FINE, BrightnessNetwork, FakeModel

SHAPE = (24, 36, 40)
SPACING = (3.0, 3.0, 4.0)
ORIGIN = (-58.0, -50.0, 12.0)
LIVER = (slice(6, 18), slice(10, 26), slice(10, 28))
SLOWEST_SECONDS = 20.0
SUFFIXES = ("_3d.png", "_labels.nii.gz", "_organs.csv", "_organs.seg.nrrd", "_slices.png")


def ct_array(dtype: object = np.int16) -> np.ndarray:
    """Air, a body at 20 HU with a rim of fat, and a block at 220 HU that the model of these tests calls liver."""
    rng = np.random.default_rng(5)
    array = rng.normal(-990, 5, SHAPE)
    array[2:22, 3:33, 3:37] = rng.normal(-100, 10, (20, 30, 34))
    array[3:21, 5:31, 5:35] = rng.normal(20, 5, (18, 26, 30))
    array[LIVER] = rng.normal(220, 5, array[LIVER].shape)
    return np.rint(array).astype(dtype)


def ct_image(array: np.ndarray | None = None) -> sitk.Image:
    """The CT, or other voxels in its place, as an image."""
    image = sitk.GetImageFromArray(ct_array() if array is None else array)
    if image.GetDimension() == 3:
        image.SetSpacing(SPACING)
        image.SetOrigin(ORIGIN)
    return image


def save(path: Path, image: sitk.Image | None = None, compressed: bool = True) -> Path:
    """Write an image, by default the CT; returns its path."""
    sitk.WriteImage(ct_image() if image is None else image, str(path), compressed and path.suffix != ".nii")
    return path


def liver_dice(labels: np.ndarray) -> float:
    """Dice of a label map in the stored order of the CT with what it should hold."""
    truth = np.zeros(SHAPE, bool)
    truth[LIVER] = True
    return 2 * float(np.sum(truth & (labels == 1))) / float(truth.sum() + np.sum(labels == 1))


def load_script(path: Path):
    """A headless script as a module of this process."""
    specification = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def use_known_model(monkeypatch) -> None:
    """A model whose answer is known instead of the bundled one, on one thread, and pictures of one pixel."""
    from FlareSegmentLib.inference import pipeline
    from FlareSegmentSlicerLib.rendering import pictures, renderer_process

    def picture(path: Path, *_arguments: object) -> None:
        sitk.WriteImage(sitk.Image([1, 1], sitk.sitkUInt8), str(path))

    class NoRenderer:
        def __init__(self, *_arguments: object) -> None:
            pass

        def __enter__(self) -> NoRenderer:
            return self

        __exit__ = request = __init__

    known = FakeModel(COARSE, FINE, kind=BrightnessNetwork)
    monkeypatch.setattr(pipeline.Segmenter, "of", lambda request: pipeline.Segmenter(known, request.device, 1))
    monkeypatch.setattr(pictures, "slices_png", picture)
    monkeypatch.setattr(pictures, "surfaces_png", picture)
    monkeypatch.setattr(renderer_process, "RendererProcess", NoRenderer)


def contents(folder: Path) -> dict[str, str]:
    """What lies in a folder: paths with a hash of each file's bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        regular = path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26
        found[os.fsdecode(path.relative_to(folder))] = hashlib.md5(path.read_bytes()).hexdigest() if regular else ""
    return found


@dataclass
class Tally:
    """How the judged runs ended."""

    endings: Counter[str] = field(default_factory=Counter)
    slowest_seconds: float = 0.0

    def add(self, ending: str, seconds: float) -> None:
        self.endings[ending] += 1
        self.slowest_seconds = max(self.slowest_seconds, seconds)

    def __str__(self) -> str:
        return (
            f"{self.endings.total()} runs: {self.endings['right']} results, {self.endings['refused']} refused in one "
            f"line with status 2, nothing else; the slowest took {self.slowest_seconds:.1f} s"
        )


class Judge:
    """Runs the script on a case and accepts a right result or a clear refusal."""

    def __init__(
        self, run: Callable[[list[str]], int], read_output: Callable[[], tuple[str, str]], tally: Tally
    ) -> None:
        self._run, self._read_output, self._tally = run, read_output, tally

    def __call__(self, source: Path, results: Path, arguments: list[object], expected: str, words: str = "") -> str:
        """Run the script; returns "right" or "refused".

        Args:
            source: folder of the inputs, which must stay as it is.
            expected: "right", "refused", or "either" where the damage may also have hit something harmless.
            words: what the refusal must name.
        """
        ending = self._run_and_judge(source, results, arguments, words)
        assert expected in (ending, "either"), f"expected {expected}, not {ending}"
        if ending == "refused":
            assert not os.path.lexists(results), contents(results)
        else:
            self.check_files(results)
        return ending

    def refused(self, source: Path, results: Path, arguments: list[object], words: str) -> str:
        """The same where there may be something at the place of the results, which the caller looks after."""
        ending = self._run_and_judge(source, results, arguments, words)
        assert ending == "refused"
        return ending

    def status(self, arguments: list[object], results: Path) -> int:
        """The script's exit status, nothing judged."""
        return self._run([*(str(argument) for argument in arguments), "--output", str(results)])

    def _run_and_judge(self, source: Path, results: Path, arguments: list[object], words: str) -> str:
        before = contents(source)
        self._read_output()
        start = time.monotonic()
        status = self.status(arguments, results)
        seconds = time.monotonic() - start
        out, error = self._read_output()
        assert seconds < SLOWEST_SECONDS, f"took {seconds:.1f} s"
        assert "Traceback" not in out + error
        assert contents(source) == before, "the input was changed"
        ending = {0: "right", 2: "refused"}.get(status)
        assert ending, f"status {status}: {error}"
        if ending == "refused":
            assert error.count("\n") == 1 and error.startswith("Error: "), error
            assert len(error) < 1200, error
            assert words.casefold() in error.casefold(), f"{words!r} is not in {error!r}"
        self._tally.add(ending, seconds)
        return ending

    @staticmethod
    def check_files(results: Path) -> None:
        """All five files are there, whole, and nothing else."""
        names = sorted(path.name for path in results.iterdir())
        assert len(names) == len(SUFFIXES), names
        # The label map of a tilted gantry is a NRRD file.
        plain = [name.replace("_labels.nrrd", "_labels.nii.gz") for name in names]
        assert all(name.endswith(suffix) for name, suffix in zip(plain, SUFFIXES, strict=True)), names
        labels = sitk.ReadImage(str(results / names[1]))
        segmentation = sitk.ReadImage(str(results / names[3]))
        assert labels.GetDimension() == 3
        assert segmentation.GetNumberOfPixels() > 0
