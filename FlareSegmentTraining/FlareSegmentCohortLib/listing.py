"""The list of a cohort's CTs: from a folder tree, or from a CSV or JSON list.

Only headers are read, and only of DICOM files: image files are named by their extension, and what is wrong with one is
found out when it is read. The list is written case by case and kept; it is made anew when a file came, went or changed.
Of DICOM series nothing but the first header and the places of the file names in a temporary file is held in memory.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from FlareSegmentCohortLib.cohort_cases import CohortCase, ResultNames, printable, state_line
from FlareSegmentCohortLib.output_folder import OutputFolder
from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import (
    DicomSeries,
    SeriesGroups,
    damaged_beside,
    described_files,
    files_below,
    has_preamble,
    is_no_image,
)
from FlareSegmentLib.files.dicom_slice import DicomSlice
from FlareSegmentLib.files.file_headers import file_type
from FlareSegmentTrainingLib.datasets.file_pairs import volume_stem
from FlareSegmentTrainingLib.datasets.folder_layouts import names_labels
from FlareSegmentTrainingLib.datasets.listed_layouts import listed_label_map, listed_path, listed_rows

LIST_SUFFIXES = (".csv", ".tsv", ".json")
_FORMAT = 1
_ONE = {
    "label maps": "label map",
    "localizers": "localizer",
    "single images": "single image",
    "hidden files": "hidden file",
    "folders that cannot be read": "folder that cannot be read",
}

Progress = Callable[[str, int, int], None]
"""Told what is done, how many of how many files were looked at."""


@dataclass
class Listing:
    """The list that was made, or kept.

    Attributes:
        count: its cases.
        left_out: what lies beside them and is no CT: {reason: number of files or series}.
        kept: whether an earlier run had made it.
    """

    count: int
    left_out: dict[str, int]
    kept: bool = False


def check_source(source: Path) -> None:
    """Raise InputError where there is nothing to list."""
    if not os.path.lexists(source):
        raise InputError(f"{source} does not exist: name a folder of CTs, or a CSV or JSON list.")


def make_list(source: Path, folder: OutputFolder, progress: Progress) -> Listing:
    """List the CTs of a folder tree, or of a CSV or JSON list, into the output folder's list.

    Args:
        progress: told how far it is.

    Raises:
        InputError: the source is neither, holds no CT, or the list names a case twice or no image.
    """
    check_source(source)
    if source.is_dir():
        files = _Tree(source, folder.path)
        signature, total = files.signature(progress)
        kept = _kept(folder, source, signature)
        if kept is not None:
            return kept
        left_out: dict[str, int] = defaultdict(int)
        cases: Iterable[CohortCase] = _of_tree(files, total, left_out, folder, progress)
    elif source.suffix.lower() in LIST_SUFFIXES:
        signature, left_out, cases = "", {}, _of_rows(source, progress)
    else:
        raise InputError(f"{source} is neither a folder nor a CSV or JSON list: for one CT there is segment.")
    count = folder.write_list(cases)
    if not count:
        seen = in_words(left_out)
        raise InputError(f"{source} holds no CT that can be segmented{f' ({seen})' if seen else ''}.")
    content = {"format": _FORMAT, "source": str(source.absolute()), "signature": signature, "cases": count}
    folder.write_json(folder.list_facts, {**content, "left_out": dict(left_out)})
    return Listing(count, dict(left_out))


def in_words(left_out: dict[str, int]) -> str:
    """What was left out, and how many of each."""
    return ", ".join(
        f"{number} {_ONE.get(reason, reason) if number == 1 else reason}" for reason, number in left_out.items()
    )


def _kept(folder: OutputFolder, source: Path, signature: str) -> Listing | None:
    """An earlier run's list, where nothing has changed since."""
    facts = folder.facts(folder.list_facts)
    wanted = {"format": _FORMAT, "source": str(source.absolute()), "signature": signature}
    if not folder.list_file.is_file() or any(facts.get(key) != value for key, value in wanted.items()):
        return None
    return Listing(int(facts["cases"]), dict(facts["left_out"]), kept=True)


# Folder trees -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tree:
    """A folder tree without the folder that the results are written into."""

    root: Path
    output: Path

    def files(
        self, unreadable: Callable[[OSError], object] | None = None, hidden: Callable[[], object] = bool
    ) -> Iterator[Path]:
        output = self.output.resolve()
        inside = output.is_relative_to(self.root.resolve())
        for path in files_below(self.root, output if inside else None, unreadable):
            if path.name.startswith("."):
                hidden()
            else:
                yield path

    def signature(self, progress: Progress) -> tuple[str, int]:
        """A digest of all files' names, sizes and times, and their number."""
        digest, count = hashlib.sha256(), 0
        for count, path in enumerate(self.files(), start=1):
            try:
                digest.update(state_line(path, str(path)))
            except OSError:  # a broken link, or gone since: told when it is read
                digest.update(os.fsencode(path))
            progress("Looking for files", count, 0)
        return digest.hexdigest(), count


@dataclass
class _Series:
    """What is held of a DICOM series while the tree is looked through."""

    first: DicomSlice
    count: int = 0
    strange: list[DicomSlice] = field(default_factory=list)
    runs: list[list[int]] = field(default_factory=list)

    def add(self, item: DicomSlice, start: int, end: int) -> None:
        self.count += 1
        if (item.position is None or item.orientation is None or len(item.size) > 2) and not self.strange:
            self.strange.append(item)
        if self.runs and self.runs[-1][1] == start:
            self.runs[-1][1] = end
        else:
            self.runs.append([start, end])

    def paths(self, names: IO[bytes]) -> list[Path]:
        found: list[Path] = []
        for start, end in self.runs:
            names.seek(start)
            found += [Path(os.fsdecode(name)) for name in names.read(end - start).split(b"\0")[:-1]]
        return found

    def facts(self) -> DicomSeries:
        """As many slices as it takes to know what is wrong with all of them."""
        return DicomSeries((*[self.first] * min(2, self.count - len(self.strange)), *self.strange))


def _of_tree(
    tree: _Tree, total: int, left_out: dict[str, int], folder: OutputFolder, progress: Progress
) -> Iterator[CohortCase]:
    """The image files as they come, then the DICOM series, then folders whose DICOM files cannot be read."""
    names = ResultNames()
    groups: SeriesGroups[_Series] = SeriesGroups()
    others: dict[Path, list[Path]] = defaultdict(list)

    def unreadable(_error: OSError) -> None:
        left_out["folders that cannot be read"] += 1

    def hidden() -> None:
        left_out["hidden files"] += 1

    with tempfile.TemporaryFile(dir=folder.path) as spool:
        for number, (path, item) in enumerate(described_files(tree.files(unreadable, hidden)), start=1):
            progress("Reading headers", number, total)
            if item is not None:
                series = groups.of(item)
                if series is None:
                    groups.add(item, series := _Series(item))
                start = spool.tell()
                spool.write(os.fsencode(path) + b"\0")
                series.add(item, start, spool.tell())
            elif file_type(path):
                if names_labels(path.relative_to(tree.root)):
                    left_out["label maps"] += 1
                    continue
                yield _of_file(path, tree.root, names)
            else:
                others[path.parent].append(path)
        for series in groups:
            case = _of_series(series, spool, tree.root, names, others, left_out)
            if case is not None:
                yield case
    yield from _of_damaged(tree.root, names, others)


def _of_file(path: Path, root: Path, names: ResultNames) -> CohortCase:
    place = path.relative_to(root)
    case = names.told_apart((place.parent / volume_stem(path.name)).as_posix(), place.as_posix())
    return _with_state(CohortCase(case, names.of(case, place.as_posix()), str(path.absolute())))


def _of_series(
    series: _Series,
    spool: IO[bytes],
    root: Path,
    names: ResultNames,
    others: dict[Path, list[Path]],
    left_out: dict[str, int],
) -> CohortCase | None:
    facts, paths = series.facts(), series.paths(spool)
    folders = {path.parent for path in paths}
    damaged = damaged_beside(paths, [path for folder in folders for path in others.get(folder, ())])
    first = series.first
    if first.modality != "CT" or first.localizer or first.components > 1 or (facts.slice_count < 2 and not damaged):
        kind = "localizers" if first.localizer else "single images" if first.modality == "CT" else "series of"
        left_out[f"{kind} {first.modality or 'unknown kind'}" if kind == "series of" else kind] += 1
        return None
    for path in damaged:
        others[path.parent].remove(path)  # told with this series
    top = Path(os.path.commonpath(folders))
    case = f"{top.relative_to(root).as_posix()}/series_{first.number or 'unnumbered'}".removeprefix("./")
    files = tuple(path.relative_to(top).as_posix() for path in paths)
    beside = tuple(path.relative_to(top).as_posix() for path in damaged)
    problem = None if facts.problem is None else f"{top}, series {first.number or '?'}: {facts.problem}."
    identity = f"{case} {first.series_uid} {first.size}"
    case = names.told_apart(case, identity)
    name = names.of(case, identity)
    return _with_state(CohortCase(case, name, str(top.absolute()), files, beside, problem=problem))


def _of_damaged(root: Path, names: ResultNames, others: dict[Path, list[Path]]) -> Iterator[CohortCase]:
    for folder, paths in others.items():
        damaged = [path for path in paths if has_preamble(path) and not is_no_image(path)]
        if damaged:
            case = names.told_apart(folder.relative_to(root).as_posix(), str(folder))
            what = f"{len(damaged)} DICOM file{'s' if len(damaged) > 1 else ''}, such as {damaged[0].name},"
            problem = f"{folder}: {what} cannot be read: damaged or of another kind. Export the CT again."
            name = names.of(f"{case}/damaged", f"{folder} damaged")
            yield CohortCase(case, name, str(folder.absolute()), problem=problem)


def _with_state(case: CohortCase) -> CohortCase:
    try:
        state = case.state_now()
    except OSError:
        state = ""  # such a case is tried again in every run
    return replace(case, case=printable(case.case), state=state)


# Lists --------------------------------------------------------------------------------------------


def _of_rows(file: Path, progress: Progress) -> Iterator[CohortCase]:
    """The rows of a list: `image` (or, in JSON, `files`: the slices of a series), and where wanted `case` or `id`,
    `labels` and `label_map`. Raises InputError.
    """
    names, lines, meanings = ResultNames(), dict[str, int](), dict[str, str]()
    for number, row in enumerate(listed_rows(file), start=1):
        progress("Reading the list", number, 0)
        image, slices = row.get("image"), row.get("files")
        if isinstance(slices, list) and slices and all(isinstance(name, str) and name for name in slices):
            paths = [listed_path(file.parent, name) for name in slices]
            source = Path(os.path.commonpath([path.parent.absolute() for path in paths]))
            files = tuple(path.absolute().relative_to(source).as_posix() for path in paths)
        elif isinstance(image, str) and image:
            source, files = listed_path(file.parent, image).absolute(), ()
        else:
            raise InputError(f"{file}: entry {number} names no image.")
        given = str(row.get("case") or row.get("id") or "").strip()
        case = names.told_apart(given or volume_stem(source.name) or "ct", str(source))
        if given and lines.setdefault(given, number) != number:
            twice = f"the case {given} is in entries {lines[given]} and {number}"
            raise InputError(f"{file}: {twice}; give each its own name.")
        labels = row.get("labels") or row.get("label")
        meaning = str(row.get("label_map") or "").strip()
        if meaning and meaning not in meanings:
            meanings[meaning] = listed_label_map(file, number, meaning)
        found = CohortCase(
            case,
            names.of(case, str(source)),
            str(source),
            files,
            labels=str(listed_path(file.parent, str(labels)).absolute()) if labels else None,
            label_map=meanings.get(meaning),
        )
        yield _with_state(found)
