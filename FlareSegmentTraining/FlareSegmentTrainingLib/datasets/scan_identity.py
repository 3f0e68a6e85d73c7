"""Which scans are the same, whatever they are called: by their voxels.

`scan_hash` is the same for a scan in any file type, axis order and integer or float type, and for its prepared copy.
`without_twins` finds such twins among many cases: only those whose headers could belong to one scan are read, and what
was read is remembered in a file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.file_headers import file_type
from FlareSegmentLib.files.image_io import check_file_header, read_volume
from FlareSegmentLib.files.itk_reading import quiet_itk
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.file_pairs import LeftOut

HU_RANGE = (-1024, 3071)
"""Values of a CT's 12 bits."""
MEMORY_FILE = "scans.json"
SHORT = 16
"""Hexadecimal digits of a hash that are enough to tell scans apart in a model's description."""
_SPACING_STEP_MM = 0.01
_THREADS = 4


def scan_hash(volume: Volume) -> str:
    """SHA-256 of a CT's voxels in LPS order, as whole HU in `HU_RANGE`; its place and spacing do not count."""
    array = volume.to_lps_view()[0].array
    if array.dtype.kind == "f":
        array = np.rint(np.nan_to_num(array, nan=HU_RANGE[0], posinf=HU_RANGE[1], neginf=HU_RANGE[0]))
    whole = np.ascontiguousarray(np.clip(array, *HU_RANGE).astype("<i2"))
    digest = hashlib.sha256(repr(whole.shape).encode())
    digest.update(whole)
    return digest.hexdigest()


class ScanHashes:
    """Hashes of the cases' scans, remembered in a file by each image's place, size and time of change.

    Args:
        file: where they are kept between runs; None for nowhere.
    """

    def __init__(self, file: Path | None = None):
        self._file = file
        self._known: dict[str, list] = {}
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file is not None else {}
            self._known = content if isinstance(content, dict) else {}
        except (OSError, ValueError):
            pass  # it is only a memory

    def of(self, case: Case) -> str:
        """The hash of a case's scan. Raises InputError where it cannot be read."""
        if case.image is None:
            return f"phantom {case.phantom_seed}"
        key, state = str(case.image.resolve()), _state(case.image)
        earlier = self._known.get(key)
        if not (isinstance(earlier, list) and earlier[:-1] == state):
            earlier = [*state, scan_hash(read_volume(case.image)[0])]
            self._known[key] = earlier
        return str(earlier[-1])

    def save(self) -> None:
        """Write the file, whole or not at all, where its folder is; a disk that does not take it costs time later."""
        if self._file is None or not self._known or not self._file.parent.is_dir():
            return
        part = self._file.with_name(f".saving-{os.getpid()}-{self._file.name}")
        try:
            part.write_text(json.dumps(self._known), encoding="utf-8")
            os.replace(part, self._file)
        except OSError:
            part.unlink(missing_ok=True)


def _state(image: Path) -> list:
    try:
        files = sorted(p for p in image.rglob("*") if p.is_file()) if image.is_dir() else [image]
        stats = [file.stat() for file in files]
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    return [len(files), sum(s.st_size for s in stats), max((s.st_mtime_ns for s in stats), default=0)]


def without_twins(
    cases: Sequence[Case],
    left_out: Callable[[LeftOut], None],
    memory: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> list[Case]:
    """The cases without those whose scan is that of an earlier one; these are told to `left_out`.

    A case that cannot be read stays: what is wrong with it is said when it is used.

    Args:
        memory: file of `ScanHashes`.
        say: told how many scans have to be compared, where it is many.
    """
    hashes = ScanHashes(memory)
    candidates = _candidates(cases)
    if len(candidates) > 100:
        say(f"Comparing {len(candidates)} scans of the same size with each other")

    def hashed(case: Case) -> str | None:
        try:
            return hashes.of(case)
        except InputError:
            return None

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        found = dict(zip((case.name for case in candidates), pool.map(hashed, candidates)))
    hashes.save()
    first: dict[str, str] = {}
    kept = []
    for case in cases:
        own = found.get(case.name)
        if own is not None and first.setdefault(own, case.name) != case.name:
            left_out(LeftOut(case.name, f"its image is that of {first[own]}"))
            continue
        kept.append(case)
    return kept


def _candidates(cases: Sequence[Case]) -> list[Case]:
    """The cases whose image's header fits that of another one's: size in any axis order, and spacing where known."""
    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        headers = list(pool.map(_header, cases))
    groups: dict[Hashable, set[int]] = defaultdict(set)
    sized: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, header in enumerate(headers):
        if header is not None:
            sized[header[0]].append(number)
    for size, numbers in sized.items():
        if any(headers[number][1] is None for number in numbers):  # type: ignore[index]
            groups[size].update(numbers)
            continue
        for number in numbers:
            for key in _spacing_keys(headers[number][1]):  # type: ignore[index,arg-type]
                groups[size, key].add(number)
    together = set().union(*(group for group in groups.values() if len(group) > 1))
    return [cases[number] for number in sorted(together)]


def _spacing_keys(spacing: tuple[float, ...]) -> Iterator[Hashable]:
    """Two roundings, so that two nearly equal spacings always share one."""
    for shift in (0.0, 0.5):
        yield shift, tuple(int(step / _SPACING_STEP_MM + shift) for step in sorted(spacing))


def _header(case: Case) -> tuple[tuple[int, ...], tuple[float, ...] | None] | None:
    """(sorted size, spacing or None where it is not known) of a case's image; None where it cannot be read."""
    if case.image is None:
        return None
    try:
        if case.image.is_dir():
            files = [p for p in case.image.rglob("*") if p.is_file() and not p.name.startswith(".")]
            reader = sitk.ImageFileReader()
            reader.SetImageIO("GDCMImageIO")
            reader.SetFileName(str(files[0]))
            with quiet_itk():
                reader.ReadImageInformation()
            return tuple(sorted((*reader.GetSize()[:2], len(files)))), None
        if file_type(case.image) is None:
            return None
        check_file_header(case.image)  # ITK ends the process at some damaged headers
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(case.image))
        with quiet_itk():
            reader.ReadImageInformation()
        return tuple(sorted(reader.GetSize()[:3])), tuple(reader.GetSpacing()[:3])
    except (OSError, RuntimeError, IndexError, InputError):
        return None
