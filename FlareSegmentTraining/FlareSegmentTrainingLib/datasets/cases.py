"""Cases: a CT with its labels, wherever they come from, and how far each organ's labels can be trusted.

`find_cases` takes what a person has: a folder in any layout of `dataset_layouts`, an archive, a list, or `phantom:N`;
`Case.read` gives the voxels, checked, with labels in FlareSegment's own values. What cannot be used is reported by
name and left out.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS, organ_by_key
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.archives import PUBLISHED_SHA256, archive_stem, is_archive, sha256, unpack
from FlareSegmentTrainingLib.datasets.dataset_layouts import TRAINING, VALIDATION, Found, LeftOut, Pair, find_pairs
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS, LabelMap

GRADE_WEIGHTS = {"A": 1.0, "B": 1.0, "C": 0.5, "absent": 1.0, "ignore": 0.0}
PHANTOM = "phantom:"
FIRST_VALIDATION_PHANTOM = 1_000_000
"""Seeds of validation phantoms begin here, those of training phantoms at 0: they never meet, however many there are."""


@dataclass(frozen=True)
class Case:
    """One CT with its label map.

    Attributes:
        image, labels: the files (or a DICOM folder); None for a phantom.
        weights: organ key -> weight of its labels in the loss, for every organ of FLARE22; 0 where the organ was not
            labeled, so that neither labeling it nor leaving it out is punished.
        label_map: meaning of the values in the label file.
        patient: whose scan it is; cases of one patient stay on one side of a split.
        fixed_set: "train" or "val" where the data set fixes the side.
        grades: organ key -> grade of its labels (a key of `GRADE_WEIGHTS`), as far as the data set says.
        phantom_seed: the phantom that is made instead of reading files.
        location: number of the data location it was found in, from 0.
    """

    name: str
    image: Path | None
    labels: Path | None
    weights: Mapping[str, float]
    label_map: LabelMap = LABEL_MAPS["flaresegment"]
    patient: str = ""
    fixed_set: str | None = None
    grades: Mapping[str, str] = field(default_factory=dict)
    phantom_seed: int | None = None
    location: int = 0

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.name)

    @property
    def labeled(self) -> frozenset[str]:
        """Keys of the organs whose labels count."""
        return frozenset(key for key, weight in self.weights.items() if weight > 0)

    @property
    def is_empty(self) -> bool:
        """Whether the data set says that no labeled organ is in the scan."""
        return all(self.grades.get(key) == "absent" for key in self.labeled & {organ.key for organ in ORGANS})

    def read(self) -> tuple[Volume, np.ndarray, list[str]]:
        """Read and check the case.

        Returns:
            (CT in HU, labels in FlareSegment's values, uint8 (z, y, x) on the CT's grid, warnings).

        Raises:
            InputError: a file cannot be read, the image is no CT, or the labels do not fit it: another shape or
                place, a value that the label map does not explain, or none of the organs though one is graded as
                being there.
        """
        if self.phantom_seed is not None:
            return (*make_phantom(self.phantom_seed), [])
        from FlareSegmentLib.files.image_io import check_is_ct, read_labels, read_volume

        assert self.image is not None and self.labels is not None  # only phantoms have none
        volume, warnings = read_volume(self.image)
        warnings = [*warnings, *check_is_ct(volume)]
        truth = read_labels(self.labels)
        if not truth.same_grid(volume, tolerance_mm=0.1 * min(volume.spacing)):
            if sorted(truth.array.shape) != sorted(volume.array.shape):
                sizes = [" x ".join(str(count) for count in part.array.shape[::-1]) for part in (truth, volume)]
                raise InputError(f"its labels have {sizes[0]} voxels, its image {sizes[1]}")
            # The engine reorders the axes of labels that lie on the same voxels, and refuses others.
            truth = read_labels(self.labels, like=volume)
        labels = self.label_map.apply(truth.array)
        if not labels.any() and not self.is_empty:
            raise InputError("its labels hold none of the organs")
        return volume, labels, warnings

    def content_hash(self) -> str:
        """SHA-256 over image, labels and label map: what a prepared copy depends on.

        Raises:
            InputError: a file has vanished.
        """
        digest = hashlib.sha256(repr((self.phantom_seed, self.label_map.organs)).encode())
        try:
            for path in (self.image, self.labels):
                if path is None:
                    continue
                for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
                    digest.update(sha256(file).encode())
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def print_left_out(item: LeftOut) -> None:
    """Say on standard error which case is left out and why."""
    print(f"Warning: {item}", file=sys.stderr, flush=True)


def find_cases(
    locations: str | Path | Sequence[str | Path],
    *,
    label_map: LabelMap | None = None,
    layout: str | None = None,
    unpack_to: Path | None = None,
    left_out: Callable[[LeftOut], None] = print_left_out,
    say: Callable[[str], None] = print,
) -> list[Case]:
    """Return the cases of one or several locations, sorted by name within each.

    Args:
        locations: folders, archives (.zip, .tar, .tar.gz), CSV or JSON lists, or `phantom:N` (N torsos, a tenth of
            them to validate on).
        label_map: replaces what the data sets say about their labels' values.
        layout: forces one of `dataset_layouts.LAYOUTS`.
        unpack_to: folder under which archives are unpacked; by default beside the archive.
        left_out: told about each case that cannot be used. Files are not opened here: see `Case.read`.
        say: told about archives: SHA-256 and progress.

    Raises:
        InputError: a location holds no case, or nobody says what its labels mean.
    """
    if isinstance(locations, (str, Path)):
        locations = [locations]
    cases: dict[str, Case] = {}
    for number, location in enumerate(locations):
        text = str(location)
        if text.startswith(PHANTOM):
            found = _phantoms(text)
        else:
            folder = Path(text)
            if is_archive(folder):
                folder = _unpacked(folder, unpack_to, say)
            elif folder.is_dir():
                folder = _challenge_archives(folder, unpack_to, say)
            found = cases_of_pairs(find_pairs(folder, layout), text, label_map, left_out)
        for case in (replace(case, location=number) for case in found):
            earlier = cases.get(case.name)
            if earlier is None:
                cases[case.name] = case
            elif _same_source(case, earlier):
                left_out(LeftOut(case.name, "it is named twice"))
            else:
                renamed = f"{Path(text).stem}_{case.name}"
                if renamed in cases:
                    raise InputError(f"{text}: a second case is called {case.name}; give every case its own name.")
                cases[renamed] = replace(case, name=renamed, patient=f"{Path(text).stem}_{case.patient}")
    return list(cases.values())


def _same_source(first: Case, second: Case) -> bool:
    if first.image is None or second.image is None:
        return first.phantom_seed == second.phantom_seed
    return first.image.resolve() == second.image.resolve()


def cases_of_pairs(
    found: Found, location: str, label_map: LabelMap | None, left_out: Callable[[LeftOut], None]
) -> list[Case]:
    """The cases of a location's pairs; what cannot be used is told to `left_out`. Raises InputError when none is left
    or nobody says what the label values mean.
    """
    for item in found.left_out:
        left_out(item)
    cases = []
    for pair in found.pairs:
        meaning = label_map or pair.label_map
        if meaning is None:
            raise InputError(
                f"{location} does not say what its label values mean: name a table ({', '.join(LABEL_MAPS)}), a JSON "
                "file or a map as 1=liver,2=spleen with --label-map."
            )
        grades = _grades(pair)
        weights = {
            organ.key: GRADE_WEIGHTS[grades.get(organ.key, "A")] if organ.key in meaning.labeled else 0.0
            for organ in FLARE22_ORGANS
        }
        if not any(weights.values()):
            left_out(LeftOut(pair.name, "none of FlareSegment's organs is labeled in it"))
            continue
        cases.append(
            Case(pair.name, pair.image, pair.labels, weights, meaning, pair.patient or "", pair.fixed_set, grades)
        )
    if not cases:
        raise InputError(f"{location} holds no case that can be used.")
    return cases


def _grades(pair: Pair) -> dict[str, str]:
    grades = {}
    for organ in FLARE22_ORGANS:
        entry = pair.grades.get(organ.key)
        grade = entry.get("grade") if isinstance(entry, dict) else entry
        if grade is None:
            continue
        if grade not in GRADE_WEIGHTS:
            raise InputError(
                f"Case {pair.name}, {organ.key}: unknown grade {grade!r}; known: {', '.join(GRADE_WEIGHTS)}."
            )
        grades[organ.key] = grade
    return grades


def _phantoms(text: str) -> list[Case]:
    count = text.removeprefix(PHANTOM)
    if not re.fullmatch(r"\d{1,5}", count) or int(count) < 2:
        raise InputError(f"{text} is not possible: phantom:N makes N torsos, at least 2 and at most 99999.")
    validation = max(1, round(0.1 * int(count)))
    seeds = [(seed, TRAINING) for seed in range(int(count) - validation)]
    seeds += [(FIRST_VALIDATION_PHANTOM + number, VALIDATION) for number in range(validation)]
    weights = {organ.key: float(organ in ORGANS) for organ in FLARE22_ORGANS}
    return [Case(f"phantom{seed:07d}", None, None, weights, fixed_set=side, phantom_seed=seed) for seed, side in seeds]


def _unpacked(archive: Path, unpack_to: Path | None, say: Callable[[str], None]) -> Path:
    """Unpack an archive and show its SHA-256; returns the folder."""
    digest = sha256(archive)
    published = PUBLISHED_SHA256.get(archive.name)
    say(f"{archive.name}: SHA-256 {digest}" + (", as published" if digest == published else ""))
    if published not in (None, digest):
        say(f"Warning: {archive.name} is not the published file, whose SHA-256 is {published}.")
    target = (unpack_to or archive.parent) / f"{archive_stem(archive)}_unpacked"
    result = unpack(archive, target, say=say)
    say(f"{archive.name}: {result.written} files unpacked, {result.present} were there, {result.skipped} not needed")
    return target


def _challenge_archives(folder: Path, unpack_to: Path | None, say: Callable[[str], None]) -> Path:
    """A folder that holds images.zip and labels.zip, as FLARE22's challenge page gives them: both are unpacked beside
    each other.
    """
    archives = [folder / "images.zip", folder / "labels.zip"]
    if not all(archive.is_file() for archive in archives) or (folder / "images").is_dir():
        return folder
    target = (unpack_to or folder) / f"{folder.resolve().name}_unpacked"
    for archive in archives:
        say(f"{archive.name}: SHA-256 {sha256(archive)}")
        unpack(archive, target / archive.stem, say=say)
    return target


def organs_by_keys(keys: Sequence[str] | None) -> tuple:
    """The organs of these keys, in the order of their labels; the bundled model's four without keys. Raises
    InputError.
    """
    if keys is None:
        return ORGANS
    known = {organ.key for organ in FLARE22_ORGANS}
    unknown = [key for key in keys if key not in known]
    if unknown or not keys:
        raise InputError(f"--organs: unknown {', '.join(unknown) or 'nothing'}; known: {', '.join(sorted(known))}.")
    return tuple(sorted((organ_by_key(key) for key in set(keys)), key=lambda organ: organ.label))
