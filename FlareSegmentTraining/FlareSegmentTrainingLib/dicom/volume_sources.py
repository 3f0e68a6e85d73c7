"""CTs with or without labels, from files, folders of files in any layout, and folders of DICOM series: what the verbs
`to-dicom` and `blocks` of prepare.py take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.file_headers import file_type
from FlareSegmentLib.files.image_io import read_labels, read_volume
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import find_cases
from FlareSegmentTrainingLib.datasets.dataset_layouts import volume_stem
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED
from FlareSegmentTrainingLib.dicom.dicom_export import look_through
from FlareSegmentTrainingLib.dicom.dicom_series import safe_name


@dataclass(frozen=True)
class Source:
    """A CT that can be read.

    Attributes:
        name: of the case; a DICOM series has one made from its content.
        read: gives the CT and its labels in FlareSegment's values, (z, y, x) uint8, or None. Raises InputError.
    """

    name: str
    read: Callable[[], tuple[Volume, np.ndarray | None]]


def find_sources(locations: Sequence[Path], *, dicom: bool, say: Callable[[str], None] = print) -> Iterator[Source]:
    """CTs at locations: image files (with `<case>_labels` beside `<case>_ct`), folders of them, folders of DICOM files.

    dicom: whether DICOM series are wanted.

    Raises:
        InputError: a location holds no CT, or two have one name.
    """
    names: set[str] = set()
    for location in locations:
        for source in _sources(location, dicom, say):
            if safe_name(source.name) in names:
                raise InputError(f"{location}: a second CT is called {source.name}; give every CT its own name.")
            names.add(safe_name(source.name))
            yield source


def _sources(location: Path, dicom: bool, say: Callable[[str], None]) -> list[Source]:
    if not location.is_dir():
        return [_file(location)]
    files = sorted(entry for entry in location.iterdir() if entry.is_file() and file_type(entry))
    images = [file for file in files if volume_stem(file.name).endswith("_ct")]
    try:
        if not images:
            return [Source(case.name, _reader(case)) for case in find_cases(location, say=say)]
    except InputError:
        if not files and not dicom:
            raise
    if images or files:
        return [_file(file) for file in images or files]
    cases = look_through(location, training=False, say=say)[0]
    if not cases:
        raise InputError(f"{location} holds no CT that can be read.")
    return [Source(f"case_{case.content_hash()[:12]}", _reader(case)) for case in cases]


def _reader(case) -> Callable[[], tuple[Volume, np.ndarray | None]]:
    def read() -> tuple[Volume, np.ndarray | None]:
        volume, labels, _ = case.read()
        return volume, _looked_at(case.name, labels) if labels.any() else None

    return read


def _file(file: Path) -> Source:
    stem = volume_stem(file.name)
    name = stem.removesuffix("_ct")

    def read() -> tuple[Volume, np.ndarray | None]:
        volume, _ = read_volume(file)
        labels = file.with_name(file.name.replace(f"{name}_ct", f"{name}_labels"))
        if labels == file or not labels.is_file():
            return volume, None
        return volume, _looked_at(name, read_labels(labels, like=volume).array)

    return Source(name, read)


def _looked_at(name: str, labels: np.ndarray) -> np.ndarray:
    """The labels. Raises InputError where voxels are to be ignored, which neither DICOM nor blocks can say."""
    if (labels == IGNORED).any():
        raise InputError(
            f"{name}: its labels hold voxels to be ignored (value {IGNORED}), which would become background here."
        )
    return labels
