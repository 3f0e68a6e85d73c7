"""Cases: a CT with its labels, wherever they come from, and how far each organ's labels can be trusted.

`find_cases` takes what a person has: a folder in any layout of `dataset_layouts`, an archive, a list, or `phantom:N`;
`Case.read` gives the voxels, checked, with labels in FlareSegment's own values. What cannot be used is reported by
name and left out.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS, ORGANS, organ_by_key
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.archives import PUBLISHED_SHA256, archive_stem, is_archive, sha256, unpack
from FlareSegmentTrainingLib.datasets.dataset_layouts import TRAINING, VALIDATION, Found, LeftOut, Pair, find_pairs
from FlareSegmentTrainingLib.datasets.label_checks import SAMPLES, check_convention, doubts_of_labels
from FlareSegmentTrainingLib.datasets.label_files import files_of, meaning_of, read_case_labels
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS, SIDES_NEEDED, LabelMap, holds_organ
from FlareSegmentTrainingLib.datasets.parts import side_of_location

GRADE_WEIGHTS = {"A": 1.0, "B": 1.0, "C": 0.5, "absent": 1.0, "ignore": 0.0}
PHANTOM = "phantom:"
FIRST_VALIDATION_PHANTOM = 1_000_000
"""Seeds of validation phantoms begin here, those of training phantoms at 0: they never meet, however many there are."""


@dataclass(frozen=True)
class Case:
    """One CT with its label map.

    Attributes:
        image, labels: the files (or a DICOM folder, and a folder of masks); None for a phantom.
        weights: organ key -> weight of its labels in the loss, for every organ of FLARE22; 0 where the organ was not
            labeled, so that neither labeling it nor leaving it out is punished.
        label_map: meaning of the values in the label file.
        patient: whose scan it is; cases of one patient stay on one side of a split.
        fixed_set: "train" or "val" where the data set fixes the side.
        grades: organ key -> grade of its labels (a key of `GRADE_WEIGHTS`), as far as the data set says.
        phantom_seed: the phantom that is made instead of reading files.
        location: number of the data location it was found in, from 0.
        own_name: its name in its data set, where `name` was changed because another data set has a case of that name.
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
    own_name: str = ""

    def __post_init__(self) -> None:
        if not self.patient:
            object.__setattr__(self, "patient", self.name)
        if not self.own_name:
            object.__setattr__(self, "own_name", self.name)

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
            (CT in HU, labels in FlareSegment's values and `label_maps.IGNORED`, uint8 (z, y, x) on the CT's grid,
            warnings).

        Raises:
            InputError: a file cannot be read, the image is no CT, or the labels do not fit it: another shape or
                place, a value that the label map does not explain, or none of the organs though one is graded as
                being there.
        """
        if self.phantom_seed is not None:
            return (*make_phantom(self.phantom_seed), [])
        from FlareSegmentLib.files.image_io import checked_ct, read_volume

        assert self.image is not None and self.labels is not None  # only phantoms have none
        volume, warnings = read_volume(self.image)
        volume, said = checked_ct(volume)
        warnings = [*warnings, *said]
        labels, remarks = read_case_labels(self.labels, self.label_map, volume, self.image)
        if not holds_organ(labels) and not self.is_empty:
            raise InputError("its labels hold none of the organs")
        return volume, labels, [*warnings, *remarks, *doubts_of_labels(volume, labels)]

    def files(self) -> list[Path]:
        """The files that image and labels are read from, image first."""
        image = [] if self.image is None else [self.image]
        if self.image is not None and self.image.is_dir():
            image = sorted(path for path in self.image.rglob("*") if path.is_file())
        return [*image, *([] if self.labels is None else files_of(self.labels, self.label_map))]

    def content_hash(self) -> str:
        """SHA-256 over image, labels and label map: what a prepared copy depends on.

        Raises:
            InputError: a file has vanished.
        """
        digest = hashlib.sha256(
            repr((self.phantom_seed, self.label_map.organs, *sorted(self.label_map.ignored))).encode()
        )
        try:
            for file in self.files():
                digest.update(sha256(file).encode())
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def print_left_out(item: LeftOut) -> None:
    """Say on standard error which case is left out and why."""
    print(f"Warning: {item}", file=sys.stderr, flush=True)


@contextmanager
def naming_left_out() -> Iterator[list[LeftOut]]:
    """Gives the list that collects cases that cannot be used; where an error ends the work, they are said before it."""
    left_out: list[LeftOut] = []
    try:
        yield left_out
    except InputError:
        for item in left_out:
            print_left_out(item)
        raise


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
        locations: folders, archives (.zip, .tar, .tar.gz ...), CSV or JSON lists, or `phantom:N` (N torsos, a tenth of
            them to validate on).
        label_map: replaces what the data sets say about their labels' values.
        layout: forces one of `dataset_layouts.LAYOUTS`.
        unpack_to: folder under which archives are unpacked; by default beside the archive.
        left_out: told about each case that cannot be used. Voxels are not read here (see `Case.read`), but of a few
            label maps where only the names of files suggest what their values mean.
        say: told about archives (SHA-256 and progress) and about what lies beside the cases and is not used.

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
            pairs = find_pairs(folder, layout)
            if pairs.unused:
                say(f"{text}: not used: {'; '.join(pairs.unused)}")
            found = cases_of_pairs(pairs, text, label_map, left_out)
        for case in (replace(case, location=number) for case in found):
            earlier = cases.get(case.name)
            if earlier is None:
                cases[case.name] = case
            elif _same_source(case, earlier):
                left_out(LeftOut(case.name, "it is named twice"))
            else:
                prefix = archive_stem(Path(text)) if is_archive(Path(text)) else Path(text).stem
                renamed = f"{prefix}_{case.name}"
                if renamed in cases:
                    raise InputError(f"{text}: a second case is called {case.name}; give every case its own name.")
                patient = renamed if case.patient == case.name else case.patient
                cases[renamed] = replace(case, name=renamed, patient=patient)
    return _with_sides([str(location) for location in locations], list(cases.values()))


def _with_sides(locations: Sequence[str], cases: list[Case]) -> list[Case]:
    """The cases with the side that the names of their locations say (X/train and X/val), where they say two."""
    names = [None if text.startswith(PHANTOM) else side_of_location(Path(text)) for text in locations]
    sides = {number: side for number, side in enumerate(names) if side in (TRAINING, VALIDATION)}
    if VALIDATION not in sides.values() or len(sides) == len(locations) and TRAINING not in sides.values():
        return cases
    return [replace(case, fixed_set=case.fixed_set or sides.get(case.location)) for case in cases]


def label_maps_in_use(cases: Sequence[Case], locations: Sequence[str | Path]) -> list[str]:
    """What the label values of each location were taken to mean, and who says so: a line each."""
    lines: dict[tuple[int, str], dict[str, int]] = {}
    for case in cases:
        if case.image is not None or case.labels is not None:
            words = lines.setdefault((case.location, case.label_map.source or case.label_map.name), {})
            words[case.label_map.in_words()] = words.get(case.label_map.in_words(), 0) + 1
    result = []
    for (location, source), words in lines.items():
        several = len(words) > 1
        tables = "; ".join(f"{text} ({count} cases)" if several else text for text, count in list(words.items())[:3])
        more = f"; {len(words) - 3} other orders" if len(words) > 3 else ""
        result.append(f"{locations[location]}: label values by {source}: {tables}{more}")
    return result


def organs_never_there(
    cases: Iterable[Case], volumes_ml: Mapping[str, Mapping[str, float]], locations: Sequence[str | Path]
) -> list[str]:
    """Organs that a location's label map names and none of its cases holds, a line each: the map may be a wrong one.

    Args:
        cases: those that can be used; cases that grade an organ as absent say so themselves and do not count.
        volumes_ml: case name -> organ key -> mL of the organs that were looked for.
        locations: what messages call the places that the cases come from.
    """
    largest: dict[tuple[int, str], float] = {}
    for case in cases:
        for key, ml in volumes_ml.get(case.name, {}).items():
            if key in case.labeled and case.grades.get(key) != "absent":
                largest[case.location, key] = max(largest.get((case.location, key), 0.0), ml)
    return [
        f"{locations[location]}: {key.replace('_', ' ')} is in none of its cases; check what the label values mean."
        for (location, key), ml in sorted(largest.items())
        if not ml
    ]


def with_patients(
    cases: Sequence[Case], pattern: re.Pattern | None, say: Callable[[str], None] = lambda line: None
) -> list[Case]:
    """The cases with the patient that the pattern's group finds in the names that their data sets give them.

    Args:
        say: told which cases the pattern does not fit; they stay as they are.

    Raises:
        InputError: it fits none of them.
    """
    if pattern is None:
        return list(cases)
    matches = [pattern.search(case.own_name) for case in cases]
    patients = [match.group(1) if match else None for match in matches]
    others = [case.own_name for case, patient in zip(cases, patients) if not patient]
    some = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    if cases and len(others) == len(cases):
        raise InputError(f"--patient-pattern {pattern.pattern} fits the name of no case: {some}.")
    if others:
        say(f"Warning: --patient-pattern {pattern.pattern} does not fit {some}; no other patient is read there")
    return [replace(case, patient=patient) if patient else case for case, patient in zip(cases, patients)]


def patient_pattern(text: str | None) -> re.Pattern | None:
    """The regular expression that `--patient-pattern` gives. Raises InputError."""
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise InputError(f"--patient-pattern {text} is no regular expression: {error}.") from error
    if pattern.groups != 1:
        raise InputError("--patient-pattern needs exactly one group, as in (P\\d+)_.*")
    return pattern


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
    told: list[LeftOut] = []

    def leave_out(item: LeftOut) -> None:
        told.append(item)
        left_out(item)

    for item in found.left_out:
        leave_out(item)
    cases: list[Case] = []
    unexplained: list[LeftOut] = []
    for pair in found.pairs:
        try:
            meaning = meaning_of(pair.labels, pair.label_map, label_map)
        except InputError as error:
            leave_out(LeftOut(pair.name, str(error)))
            continue
        if meaning is None:
            unexplained.append(LeftOut(pair.name, "nobody says what its label values mean (--label-map)"))
            continue
        grades = _grades(pair)
        weights = {
            organ.key: GRADE_WEIGHTS[grades.get(organ.key, "A")] if organ.key in meaning.labeled else 0.0
            for organ in FLARE22_ORGANS
        }
        if not any(weights.values()):
            reason = "none of FlareSegment's organs is labeled in it"
            if meaning.sideless:
                reason += f": {meaning.sideless[0]!r} says no side; {SIDES_NEEDED.removesuffix('.')}"
            leave_out(LeftOut(pair.name, reason))
            continue
        cases.append(
            Case(pair.name, pair.image, pair.labels, weights, meaning, pair.patient or "", pair.fixed_set, grades)
        )
    for item in unexplained if cases else ():
        leave_out(item)
    if not cases and unexplained:
        raise InputError(
            f"{location} does not say what its label values mean: name a table ({', '.join(LABEL_MAPS)}), a JSON "
            f"file or a map as 1=liver,2=spleen with --label-map.{_suggestion(found.pairs)}"
        )
    if not cases:
        raise InputError(f"{location} holds no case that can be used{f': {told[0]}' if told else ''}.")
    _check_conventions(location, cases)
    return cases


def _suggestion(pairs: Sequence[Pair]) -> str:
    """The table of a public data set whose files are called like these: worth naming, not worth believing."""
    if all(re.fullmatch(r"imaging\..*", pair.image.name) for pair in pairs):
        return f" If it is KiTS: its kidneys say no side; {SIDES_NEEDED}"
    tables = {r"img\d{4}\.": "btcv", r"amos_\d{4}\.": "amos", r"volume-\d+\.": "msd-liver"}
    for pattern, name in tables.items():
        if all(re.match(pattern, pair.image.name) for pair in pairs):
            return f" If its files are what they are called, it is --label-map {name}."
    return ""


def _check_conventions(location: str, cases: Sequence[Case]) -> None:
    from FlareSegmentLib.files.image_io import read_labels

    doubtful = [case for case in cases if case.label_map.conventional and case.labels is not None]
    if not doubtful:
        return
    chosen = doubtful[:: -(-len(doubtful) // SAMPLES)]
    files = [case.labels for case in chosen if case.labels is not None]
    check_convention(location, doubtful[0].label_map, [partial(read_labels, file) for file in files])


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
    if result.archives:
        inner = f"{archive.name} holds archives ({', '.join(result.archives[:3])})"
        if not result.written + result.present:
            raise InputError(f"{inner}: unpack them and name the folder.")
        say(f"Warning: {inner}, which stay packed")
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
