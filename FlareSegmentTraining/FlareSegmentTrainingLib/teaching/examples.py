"""Examples: CTs whose organs a person has looked at and corrected, kept for teaching in a folder.

The folder has the project's plain layout, which `train.py --data` reads: `<example>_ct.nii.gz`,
`<example>_labels.nii.gz`, `quality.json` with each organ's grade, `labels.json` with what the values mean. An organ
that nobody looked at is graded "ignore". Voxels, geometry, labels and grades are kept, no name, date or identifier;
examples are called by numbers.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.files.image_io import check_written, checked_ct, read_labels, read_volume, write_labels
from FlareSegmentLib.files.itk_reading import quiet_itk
from FlareSegmentLib.organs import FLARE22_ORGANS, organ_by_key
from FlareSegmentLib.processes import age_seconds, is_running, private_folder
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.class_tables import label_map_of_folder
from FlareSegmentTrainingLib.datasets.dataset_layouts import (
    FOLDER_LAYOUTS,
    IMAGE_SUFFIX,
    LABEL_MAP_FILE,
    LABELS_SUFFIX,
    QUALITY_FILE,
    read_quality,
)
from FlareSegmentTrainingLib.datasets.scan_identity import HU_RANGE, scan_hash
from FlareSegmentTrainingLib.runs.watched_folder import save_whole

LOOKED_AT, ABSENT, IGNORE = "B", "absent", "ignore"
WAIT_SECONDS = 30.0
"""How long somebody else who keeps an example in the folder is waited for."""
_NAME = re.compile(r"example-(\d{3,})")
_LOCK_FILE = ".keeping"
_ABANDONED_SECONDS = 600.0
_MEANING = {organ.label: organ.key for organ in FLARE22_ORGANS}


def is_example_name(name: str) -> bool:
    """Whether a case is called as examples are."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Example:
    """One example of a folder.

    Attributes:
        name: "example-001" and so on.
        organs: organ key -> grade, of the organs that were looked at: LOOKED_AT, or ABSENT where there is none.
        size: (x, y, z) voxels, 0 of a file that is damaged; spacing_mm: (x, y, z).
    """

    name: str
    organs: dict[str, str]
    size: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]


class ExampleFolder:
    """The examples of a folder, which need not exist yet.

    An example is there as soon as its CT is, which is written last and removed first.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    def keep(self, volume: Volume, labels: np.ndarray, looked_at: Collection[str], in_use: Collection[str] = ()) -> str:
        """Add a CT with its labels and return the example's name; a CT that is there already takes its place anew.

        Args:
            volume: HU.
            labels: (z, y, x) uint8 on the CT's grid, with the values of `organs`.
            looked_at: keys of the organs that are right now, or rightly missing; the others are ignored.
            in_use: names of examples that must stay, for they are taught at this moment.

        Raises:
            InputError: no organ was looked at, the volume is no CT, its slices are of a tilted gantry, its example is
                in use, or the folder holds other cases or does not take the files. The examples are what they were.
        """
        unknown = set(looked_at) - {organ.key for organ in FLARE22_ORGANS}
        if unknown or not looked_at:
            raise InputError(
                f"Choose the organs that were looked at ({', '.join(sorted(unknown)) or 'none is chosen'})."
            )
        volume, _ = checked_ct(volume)
        if volume.is_sheared:
            raise InputError(
                f"{volume.label}: the slices are of a tilted gantry, which the examples' files cannot hold: "
                "resample the CT to axes at right angles first."
            )
        grades = {organ.key: IGNORE for organ in FLARE22_ORGANS}
        for key in looked_at:
            grades[key] = LOOKED_AT if (labels == organ_by_key(key).label).any() else ABSENT
        try:
            self._make()
            with self._alone():
                return self._keep(volume, labels, grades, in_use)
        except InputError:
            raise
        except (OSError, RuntimeError, FlareSegmentError) as error:
            raise self._not_written(error) from error

    def _keep(self, volume: Volume, labels: np.ndarray, grades: dict[str, str], in_use: Collection[str]) -> str:
        scan = scan_hash(volume)
        alike = [example.name for example in self.examples() if example.size == volume.array.shape[::-1]]
        twins = [name for name in alike if scan_hash(self._image(name)) == scan]
        if not set(twins).isdisjoint(in_use):
            raise InputError(f"This CT is {twins[0]}, which is taught now: stop the teaching, or wait for its end.")
        name = self._next_name()
        self._write(name, volume, labels, grades)
        for twin in twins:
            self._remove(twin)
        return name

    def examples(self) -> list[Example]:
        """All examples, by number. Raises InputError where quality.json is damaged."""
        names = sorted(
            (file.name.removesuffix(IMAGE_SUFFIX) for file in self._files(IMAGE_SUFFIX) if _number(file.name)),
            key=lambda name: (len(name), name),
        )
        quality = self._quality() if names else {}
        return [self._example(name, quality.get(name, {})) for name in names]

    def open(self, name: str) -> tuple[Volume, np.ndarray, dict[str, str]]:
        """The CT of an example, its labels (z, y, x) and its organs' grades. Raises InputError."""
        example = self._known(name)
        volume = self._image(name)
        return volume, read_labels(self.path / (name + LABELS_SUFFIX), like=volume).array, example.organs

    def remove(self, name: str) -> None:
        """Remove an example. Raises InputError where there is none or it cannot be removed."""
        self._known(name)
        try:
            with self._alone():
                self._remove(name)
        except OSError as error:
            raise InputError(f"{name} cannot be removed from {self.path}: {error.strerror}.") from error

    def _remove(self, name: str) -> None:
        (self.path / (name + IMAGE_SUFFIX)).unlink()
        (self.path / (name + LABELS_SUFFIX)).unlink(missing_ok=True)
        quality = self._quality()
        quality.pop(name, None)
        self._write_quality(quality)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from changing the folder meanwhile: two would give one number twice, or lose a grade.

        Raises InputError where somebody else goes on and on, OSError where nothing may be written.
        """
        lock, end = self.path / _LOCK_FILE, time.monotonic() + WAIT_SECONDS
        while True:
            try:
                with open(lock, "x", encoding="utf-8") as file:
                    json.dump({"pid": os.getpid(), "host": socket.gethostname()}, file)
                break
            except FileExistsError:
                if _is_abandoned(lock):
                    lock.unlink(missing_ok=True)
                elif time.monotonic() > end:
                    raise InputError(
                        f"{self.path}: somebody else is just keeping an example there. Try it again, or delete {lock}."
                    ) from None
                else:
                    time.sleep(0.1)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)

    def _known(self, name: str) -> Example:
        for example in self.examples():
            if example.name == name:
                return example
        raise InputError(f"{self.path} holds no example {name}.")

    def _example(self, name: str, entry: dict) -> Example:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(self.path / (name + IMAGE_SUFFIX)))
        try:
            with quiet_itk():
                reader.ReadImageInformation()
        except RuntimeError:
            return Example(name, {}, (0, 0, 0), (0.0, 0.0, 0.0))
        grades = {key: entry.get(key, {}).get("grade", IGNORE) for key in (organ.key for organ in FLARE22_ORGANS)}
        organs = {key: grade for key, grade in grades.items() if grade != IGNORE}
        x, y, z = (int(count) for count in reader.GetSize())
        sx, sy, sz = (float(step) for step in reader.GetSpacing())
        return Example(name, organs, (x, y, z), (sx, sy, sz))

    def _files(self, suffix: str) -> Sequence[Path]:
        return sorted(self.path.glob(f"*{suffix}")) if self.path.is_dir() else []

    def _image(self, name: str) -> Volume:
        return read_volume(self.path / (name + IMAGE_SUFFIX))[0]

    def _next_name(self) -> str:
        """One higher than any that is there or was entered, so that a name never comes to mean another CT."""
        named = [*(file.name for file in self._files(".nii.gz")), *self._quality()]
        return f"example-{max((_number(name) for name in named), default=0) + 1:03d}"

    def _make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_own()
        label_map = self.path / LABEL_MAP_FILE
        if not label_map.is_file():
            text = json.dumps(_MEANING, indent=1) + "\n"
            save_whole(label_map, lambda place: place.write_text(text, encoding="utf-8"))

    def _check_own(self) -> None:
        """Raise InputError where the folder holds other cases, which would be taught as well, or says that the values
        of its labels mean something else.
        """
        other = InputError(f"{self.path} holds other cases than examples. Choose a folder of its own for the examples.")
        for layout, look in FOLDER_LAYOUTS.items():  # those that are looked for before the examples' own, and that one
            found = look(self.path)
            if found is not None and not all(is_example_name(pair.name) for pair in found.pairs):
                raise other
            if layout == "flat":
                break
        if (self.path / LABEL_MAP_FILE).is_file():
            said = label_map_of_folder(self.path)
            if said is None or dict(said.organs) != _MEANING:
                raise other

    def _write(self, name: str, volume: Volume, labels: np.ndarray, grades: dict[str, str]) -> None:
        write_labels(self.path / (name + LABELS_SUFFIX), labels, volume)
        try:
            entry = {"patient": name, **{key: {"grade": grade} for key, grade in grades.items()}}
            self._write_quality({**self._quality(), name: entry})
            array = np.clip(np.rint(volume.array), *HU_RANGE).astype(np.int16)
            image = sitk.GetImageFromArray(array)
            image.SetSpacing(volume.spacing)
            image.SetOrigin(volume.origin)
            image.SetDirection(volume.direction.ravel().tolist())
            with private_folder(self.path) as folder, quiet_itk():
                part = Path(folder) / "ct.nii.gz"
                sitk.WriteImage(image, str(part), useCompression=True)
                check_written(part, array.nbytes)
                os.replace(part, self.path / (name + IMAGE_SUFFIX))
        except BaseException:
            (self.path / (name + LABELS_SUFFIX)).unlink(missing_ok=True)
            raise

    def _quality(self) -> dict:
        """What quality.json of this very folder says; `read_quality` would also look one folder above."""
        return read_quality(self.path) if (self.path / QUALITY_FILE).is_file() else {}

    def _write_quality(self, quality: dict) -> None:
        text = json.dumps(quality, indent=1, sort_keys=True) + "\n"
        save_whole(self.path / QUALITY_FILE, lambda place: place.write_text(text, encoding="utf-8"))

    def _not_written(self, error: BaseException) -> InputError:
        error = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = why_not_written(self.path, error) if isinstance(error, OSError) else str(error).splitlines()[-1]
        return InputError(f"{self.path}: the example cannot be kept there ({reason}). Choose another folder.")


def _is_abandoned(lock: Path) -> bool:
    """Whether who made the lock is gone without removing it, as after a crash."""
    try:
        content = json.loads(lock.read_text(encoding="utf-8"))
        return content["host"] == socket.gethostname() and not is_running(content["pid"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not written yet, or on a disk that was full
    try:
        return age_seconds(lock) > _ABANDONED_SECONDS
    except OSError:
        return False


def _number(name: str) -> int:
    match = _NAME.match(name)
    return int(match.group(1)) if match else 0
