"""A DICOM export of a hospital or a public archive becomes cases: CT series with the segmentations drawn on them.

`look_through` sorts what lies in a folder tree: every CT series is a case, together with the DICOM Segmentations and
structure sets (RTSTRUCT) that refer to it; everything else is left out with the reason. `conversion.convert_cases`
writes the cases. Nothing of a header goes further than this module: names of cases come from the images' content,
patients are only told apart, and reasons name no file. Needs pydicom.
"""

from __future__ import annotations

import csv
import hashlib
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.dicom_folder import DicomSeries, find_series, quiet_pydicom, read_series
from FlareSegmentLib.files.dicom_segmentation import describe_segments, read_dicom_segmentation, referenced_series
from FlareSegmentLib.files.image_io import checked_ct
from FlareSegmentLib.files.straight_series import straight
from FlareSegmentLib.organs import FLARE22_ORGANS, Organ, organ_by_key
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.archives import sha256
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.dataset_layouts import LeftOut
from FlareSegmentTrainingLib.datasets.label_checks import doubts_of_labels
from FlareSegmentTrainingLib.datasets.organ_names import organ_of_name
from FlareSegmentTrainingLib.dicom.dicom_series import require_pydicom
from FlareSegmentTrainingLib.dicom.structure_sets import read_structure_set, structure_organs, structure_set_series

MINIMUM_SLICES = 16
_SEGMENTATION, _STRUCTURE_SET = "SEG", "RTSTRUCT"
_KINDS = {_SEGMENTATION: "DICOM Segmentation", _STRUCTURE_SET: "structure set"}
_RECONSTRUCTED = {"REFORMATTED", "MPR", "MIP", "MINIP", "AVERAGE", "PROJECTION IMAGE", "CPR", "VRT", "VOLUME RENDERING"}


@dataclass(frozen=True)
class LabelObject:
    """A file with labels: SEG or RTSTRUCT, the series it refers to, its organs as far as its header tells, its date."""

    path: Path
    kind: str
    series_uid: str
    organs: frozenset[str]
    date: str


@dataclass(frozen=True)
class DicomCase(Case):
    """A CT series with the label objects that refer to it.

    Attributes:
        series: the CT.
        label_objects: those to take labels from; of two that hold the same organ, the first one counts.
        labels_needed: whether bad labels make the case unusable instead of unlabeled.
        dropped: keys of organs whose labels turned out to be unusable when the case was read.
    """

    series: DicomSeries = None  # type: ignore[assignment]
    label_objects: tuple[LabelObject, ...] = ()
    labels_needed: bool = False
    dropped: set[str] = field(default_factory=set, compare=False)

    @property
    def labeled(self) -> frozenset[str]:
        """Keys of the organs whose labels count; final once the case was read."""
        return super().labeled - self.dropped

    def read(self) -> tuple[Volume, np.ndarray, list[str]]:
        """Read the series and draw its labels, on a straight grid.

        Raises:
            InputError: the series cannot be read, is no CT, or has no usable labels though they are needed.
        """
        series = read_series(self.series, "The series")
        measured, said = checked_ct(series.volume)
        series = replace(series, volume=measured)
        remarks = [*series.warnings, *said]
        labels = np.zeros(series.volume.array.shape, np.uint8)
        taken: set[str] = set()
        for item in self.label_objects:
            try:
                drawn, organs, said = _draw(item, series.volume)
            except InputError as error:
                remarks.append(str(error).replace(str(item.path), f"Its {_KINDS[item.kind]}"))
                continue
            for key in organs & taken:
                remarks.append(f"{key} is in two label objects: the segmentation or the newest counts")
            for key in sorted(organs - taken):
                organ = organ_by_key(key)
                labels[(drawn == organ.label) & (labels == 0)] = organ.label
            taken |= organs
            remarks += said
        self.dropped.clear()
        self.dropped.update(super().labeled - taken)
        if self.labels_needed and not labels.any():
            raise InputError(f"it has no usable labels: {'; '.join(remarks) or 'none of the organs'}")
        volume, marked, done = straight(series, labels)
        if done:
            remarks.append(f"{done}; values were interpolated")
        final = marked if marked is not None else labels
        return volume, final, [*remarks, *doubts_of_labels(volume, final)]

    def content_hash(self) -> str:
        """SHA-256 over the series' and the label objects' files. Raises InputError."""
        digest = hashlib.sha256()
        try:
            for path in [*(one.path for one in self.series.slices), *(item.path for item in self.label_objects)]:
                digest.update(sha256(path).encode())
        except OSError as error:
            raise InputError(f"a file cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def look_through(
    folder: Path, *, training: bool, minimum_slices: int = MINIMUM_SLICES, say: Callable[[str], None] = print
) -> tuple[list[DicomCase], list[LeftOut]]:
    """Sort a folder tree of DICOM files.

    Args:
        training: take only what a network for axial CT learns from: axial originals with at least `minimum_slices` and
            labels; otherwise every CT volume.
        say: told in one line about each thing that is left out, with its place; reasons themselves name no place.

    Raises:
        InputError: the folder holds no DICOM file, or pydicom is missing.
    """
    require_pydicom()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: name a folder with DICOM files.")
    found, others = find_series(folder)
    with quiet_pydicom():
        objects, rest = _label_objects([*others, *(item.path for one in found for item in one.slices if _is_seg(one))])
    if not found and not objects:
        raise InputError(f"{folder} holds no DICOM files: name the folder that the export was saved to.")
    by_series: dict[str, list[LabelObject]] = defaultdict(list)
    for item in objects:
        by_series[item.series_uid].append(item)
    left_out: list[LeftOut] = []

    def leave_out(name: str, reason: str, place: str) -> None:
        left_out.append(LeftOut(name, reason))
        say(f"{name} ({place}) is left out: {reason}")

    volumes = Counter(one.first.series_uid for one in found if one.problem is None)
    cases: list[DicomCase] = []
    for number, one in enumerate((one for one in found if not _is_seg(one)), start=1):
        labels = tuple(sorted(by_series.get(one.first.series_uid, ()), key=_precedence, reverse=True))
        place = _place(folder, one)
        reason = one.problem or (_unfit(one, labels, minimum_slices) if training else None)
        if reason is None and labels and volumes[one.first.series_uid] > 1:
            remark = "its series holds several volumes, and labels refer to the series"
            if training:
                reason = remark
            labels = ()
        if reason is not None:
            leave_out(f"series_{number:04d}", f"{_size(one)}: {reason}", place)
            continue
        organs = frozenset().union(*(item.organs for item in labels))
        weights = {organ.key: float(organ.key in organs) for organ in FLARE22_ORGANS}
        patient = one.first.patient_id or one.first.patient_name or one.first.study_uid
        cases.append(
            DicomCase(
                _unused(place, cases), None, None, weights, patient=patient,
                series=one, label_objects=labels, labels_needed=training,
            )
        )  # fmt: skip
    series = {one.first.series_uid for one in found}
    for number, item in enumerate((item for item in objects if item.series_uid not in series), start=1):
        missing = "the series it was drawn on is not there" if item.series_uid else "it does not name its series"
        leave_out(f"labels_{number:04d}", f"{_KINDS[item.kind]}: {missing}", str(item.path.relative_to(folder)))
    if rest:
        say(f"{len(rest)} files are no DICOM images, segmentations or structure sets")
    return cases, left_out


def write_mapping(file: Path, rows: Sequence[tuple[str, DicomCase]]) -> None:
    """Write which case is whose: case name, patient, study and series; only its owner may read the file.

    Raises:
        InputError: the file is there already or cannot be written.
    """
    if file.exists():
        raise InputError(f"{file} is there already: name another file for the mapping.")
    part = None
    try:
        handle, part = tempfile.mkstemp(dir=file.parent, prefix=".writing-")
        with open(handle, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["case", "patient_id", "patient_name", "study_uid", "series_uid"])
            for name, case in rows:
                first = case.series.first
                writer.writerow([name, first.patient_id, first.patient_name, first.study_uid, first.series_uid])
        os.replace(part, file)
    except OSError as error:
        if part is not None:  # it names patients
            Path(part).unlink(missing_ok=True)
        raise InputError(f"{file} cannot be written: {error.strerror or error}.") from error


def organs_of_segments(segments: Sequence) -> Mapping[int, Organ]:
    """Organ by number of DicomSegments: by their codes, else by their names; of one organ twice the first."""
    organs: dict[int, Organ] = {}
    for segment in segments:
        organ = segment.organ
        if organ is None and (key := organ_of_name(segment.name)) is not None:
            organ = organ_by_key(key)
        if organ is not None and organ not in organs.values():
            organs[segment.number] = organ
    return organs


def _draw(item: LabelObject, volume: Volume) -> tuple[np.ndarray, frozenset[str], list[str]]:
    if item.kind == _STRUCTURE_SET:
        structures = read_structure_set(item.path, volume)
        return structures.labels, structures.organs, list(structures.remarks)
    segmentation = read_dicom_segmentation(item.path, volume)
    organs = organs_of_segments(segmentation.segments)
    labels = segmentation.organ_labels(organs).array
    return labels, frozenset(organ.key for organ in organs.values()), segmentation.warnings


def _label_objects(paths: Sequence[Path]) -> tuple[list[LabelObject], list[Path]]:
    """DICOM Segmentations and structure sets among files, and the other files."""
    import pydicom

    objects, rest = [], []
    for path in dict.fromkeys(paths):
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
            kind = str(dataset.get("Modality", ""))
            if kind == _SEGMENTATION:
                organs = organs_of_segments(describe_segments(dataset))
                keys, series = {organ.key for organ in organs.values()}, referenced_series(dataset)
                date = f"{dataset.get('ContentDate', '')}{dataset.get('ContentTime', '')}"
            elif kind == _STRUCTURE_SET:
                keys, series = set(structure_organs(dataset)[0]), structure_set_series(dataset)
                date = f"{dataset.get('StructureSetDate', '')}{dataset.get('StructureSetTime', '')}"
            else:
                rest.append(path)
                continue
        except Exception:  # noqa: BLE001  pydicom raises nearly anything at what is not DICOM
            rest.append(path)
            continue
        objects.append(LabelObject(path, kind, series, frozenset(keys), date))
    return objects, rest


def _precedence(item: LabelObject) -> tuple[bool, str, str]:
    return item.kind == _SEGMENTATION, item.date, str(item.path)


def _is_seg(series: DicomSeries) -> bool:
    return series.first.modality == _SEGMENTATION


def _unfit(series: DicomSeries, labels: Sequence[LabelObject], minimum_slices: int) -> str | None:
    """Why a CT volume is not for training, in half a line, or None."""
    kinds = series.first.image_type
    if kinds[0] == "DERIVED" and "SECONDARY" in kinds[1:2]:
        return "it is a derived secondary image"
    if _RECONSTRUCTED & set(kinds):
        return f"it is a reconstruction ({', '.join(sorted(_RECONSTRUCTED & set(kinds))).lower()})"
    if not series.axial:
        return "its slices are not axial"
    if series.slice_count < minimum_slices:
        return f"it has fewer than {minimum_slices} slices"
    if not labels:
        return "no DICOM Segmentation or structure set refers to it"
    if not any(item.organs for item in labels):
        return "its label objects name none of the organs"
    return None


def _size(series: DicomSeries) -> str:
    count = series.slice_count
    return f"{series.first.modality or 'unknown modality'}, {count} slice{'s' if count != 1 else ''}"


def _place(folder: Path, series: DicomSeries) -> str:
    parent = series.first.path.parent.relative_to(folder)
    return f"{parent.as_posix()}, series {series.first.number or '?'}"


def _unused(name: str, cases: Sequence[DicomCase]) -> str:
    names = {case.name for case in cases}
    return next(n for n in (name, *(f"{name} ({k})" for k in range(2, len(names) + 3))) if n not in names)
