"""Data sets of any layout become the project's plain one: what `prepare.py` does.

Written per case: `<case>_ct.nii.gz` (int16 HU, clipped to -1024 ... 3071), `<case>_labels.nii.gz` (uint8; voxels that
nobody looked at stay `label_maps.IGNORED`), both on the CT's own grid; and for all: `labels.json` (what the values
mean), `quality.json` (per case and organ: not labeled, absent, cut), `report.json` and `report.csv`.

Files are made anew from voxels, so nothing of a header's text comes along, and a name that does not come from a
public data set is replaced by one made from the content. A run that was stopped goes on where it was: a case is done
once the report says so.

A scan is known by its voxels (`scan_identity`) and, so that labels that were corrected replace the earlier ones, by a
keyed hash of the case's name; the same hash tells in every run into one folder which scans are one patient's. The key
is in `report.json`: with it a name that somebody guesses can be tested, so that file is not to be passed on.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import SimpleITK

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.files.itk_reading import quiet_itk
from FlareSegmentLib.organs import LABEL_TABLES, Organ
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.dataset_layouts import (
    IMAGE_SUFFIX,
    LABEL_MAP_FILE,
    LABELS_SUFFIX,
    QUALITY_FILE,
    LeftOut,
)
from FlareSegmentTrainingLib.datasets.label_maps import IGNORE, IGNORED, holds_organ
from FlareSegmentTrainingLib.datasets.scan_identity import HU_RANGE, scan_hash
from FlareSegmentTrainingLib.scheduling.tasks import outcomes_in_order

if TYPE_CHECKING:
    from distributed import Client

REPORT_FILE = "report.json"
TABLE_FILE = "report.csv"
_SAVE_EVERY_SECONDS = 3.0
PUBLIC_NAME = re.compile(
    r"(series|labels)_\d{4,}|FLARE\w*_\d{4,5}|(liver|spleen|pancreas|hepaticvessel|colon|lung)_\d{1,3}|amos_\d{4}|s\d{4}|BDMAP_\d{8}|CT_\d{1,3}|3Dircadb1\.\d{1,2}|[Cc]ase_\d{5}|phantom\d{7}|case_[0-9a-f]{12}"
)
"""Names that public data sets (FLARE, MSD, AMOS, TotalSegmentator, KiTS), the phantoms and this module gave: they
tell of nobody. series_0001 and labels_0001 are what `dicom_export` left out.
"""


@dataclass(frozen=True)
class Settings:
    """How cases are written.

    Attributes:
        organs: organs that are kept; everything else becomes background.
        label_ids: name of the table in `organs.LABEL_TABLES` whose values are written.
        keep_names: keep all case names, patients and reasons as they are.
        unlabeled: take cases without labels too; their image is written alone.
        clip: bring values into the range of a CT's 12 bits, `HU_RANGE`.
        patient_pattern: the regular expression that found the patients, the same in every run into one folder.
    """

    organs: tuple[Organ, ...]
    label_ids: str = "flaresegment"
    keep_names: bool = False
    unlabeled: bool = False
    clip: bool = True
    patient_pattern: str | None = None

    @property
    def values(self) -> dict[str, int]:
        """{organ: the value that is written for it}."""
        return {organ.key: LABEL_TABLES[self.label_ids][organ.key] for organ in self.organs}


@dataclass
class Outcome:
    """What became of a case: "taken", "updated" (its earlier labels or image were replaced), "present" (an earlier run
    took it) or "left out", and why.
    """

    name: str
    source: str
    result: str
    reason: str = ""
    facts: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def convert_cases(
    cases: Sequence[Case],
    output: Path,
    settings: Settings,
    left_out: Sequence[LeftOut] = (),
    say: Callable[[str], None] = print,
    client: Client | None = None,
) -> list[Outcome]:
    """Check all cases, write those that can be used into the plain layout, and report.

    Args:
        left_out: cases that were already found unusable; they appear in the report.
        client: of Dask, whose workers read and write the cases; by default this process does.

    Raises:
        InputError: the folder cannot be written, or holds cases converted with other organs or label values.
    """
    output = Path(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".preparing-") as private:
            return _Conversion(output, Path(private), settings, say, client).run(cases, left_out)
    except OSError as error:
        raise InputError(
            f"{output} cannot be written: {error.strerror or error}. Free space or choose another folder; "
            "run again to go on."
        ) from error


@dataclass
class _Converted:
    """A case read and written to a place of its own, not yet to its name.

    Attributes:
        content: hash of its files; empty where one cannot be read.
        scan: hash of its scan; empty where that was not read.
        problem: why it cannot be used.
        entry: its part of quality.json; facts: its part of report.json; files: what was written, by suffix.
    """

    content: str = ""
    scan: str = ""
    problem: str = ""
    entry: dict[str, dict] = field(default_factory=dict)
    facts: dict = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)


def _state(content: str, grades: Mapping[str, str]) -> str:
    """What makes a case another one than before."""
    return json.dumps([content, sorted(grades.items())])


def convert(case: Case, settings: Settings, private: Path, complete: frozenset[str]) -> _Converted:
    """Read a case, check it and write it into the folder `private`; only its hash where that is among `complete`."""
    converted = _Converted()
    try:
        converted.content = case.content_hash()
        if _state(converted.content, case.grades) in complete:
            return converted
        values = settings.values
        if not settings.unlabeled and not case.labeled & set(values):
            raise InputError(f"none of {', '.join(values)} is labeled in it")
        volume, drawn, converted.warnings = case.read()
        # which organs are labeled is known for certain only now
        labels = drawn if case.labeled & set(values) else None
        converted.scan = scan_hash(volume)
        converted.entry = _grades(settings.organs, case, volume, labels)
        converted.facts = {
            "size": list(volume.array.shape[::-1]),
            "spacing_mm": [round(value, 4) for value in volume.spacing],
            "organs_ml": {key: item["volume_ml"] for key, item in converted.entry.items() if "volume_ml" in item},
        }
        if case.grades:
            converted.facts["grades"] = dict(case.grades)
        ignored = 0 if labels is None else int(np.count_nonzero(labels == IGNORED))
        if ignored:
            converted.facts["ignored_ml"] = round(ignored * volume.voxel_volume_ml, 2)
        converted.files = _write_pair(settings, private / uuid.uuid4().hex, volume, labels)
    except InputError as error:
        converted.problem = str(error)
    return converted


def _lost(case: Case, error: Exception) -> _Converted:
    """What is known of a case whose workers were killed."""
    try:
        return _Converted(content=case.content_hash(), problem=str(error))
    except InputError as unreadable:
        return _Converted(problem=str(unreadable))


def _grades(organs: Sequence[Organ], case: Case, volume: Volume, labels: np.ndarray | None) -> dict[str, dict]:
    """The case's entry in quality.json. Where not all was looked at, an organ that is not seen may be there."""
    entry: dict[str, dict] = {}
    whole = labels is not None and not (labels == IGNORED).any()
    for organ in organs:
        if labels is None or organ.key not in case.labeled:
            entry[organ.key] = {"grade": "ignore"}
            continue
        mask = labels == organ.label
        count = int(mask.sum())
        cut = any(bool(mask.take(side, axis=axis).any()) for axis in range(3) for side in (0, -1))
        entry[organ.key] = {"volume_ml": round(count * volume.voxel_volume_ml, 2), "cut": cut}
        grade = case.grades.get(organ.key, "absent" if not count and whole else None)
        if grade:
            entry[organ.key]["grade"] = grade
    return entry


def _write_pair(settings: Settings, stem: Path, volume: Volume, labels: np.ndarray | None) -> dict[str, Path]:
    """Write image and labels; {suffix of the name: file}, the labels first. Raises InputError for empty labels."""
    contents = []
    if labels is not None:
        table = np.zeros(256, np.uint8)
        table[IGNORED] = IGNORED
        for organ in settings.organs:
            table[organ.label] = settings.values[organ.key]
        contents.append((table[labels], LABELS_SUFFIX))
        if not holds_organ(contents[0][0]):
            raise InputError(f"its labels hold none of {', '.join(settings.values)}")
    array = volume.array
    if array.dtype.kind == "f":
        array = np.rint(np.nan_to_num(array, nan=HU_RANGE[0], posinf=HU_RANGE[1], neginf=HU_RANGE[0]))
    limits = HU_RANGE if settings.clip else (-32768, 32767)
    contents.append((np.clip(array, *limits).astype(np.int16), IMAGE_SUFFIX))
    files = {}
    for content, suffix in contents:
        files[suffix] = stem.with_name(stem.name + suffix)
        write_nifti(files[suffix], content, volume)
    return files


class _Conversion:
    def __init__(
        self, output: Path, private: Path, settings: Settings, say: Callable[[str], None], client: Client | None
    ):
        self.output, self.private, self.settings, self.say, self.client = output, private, settings, say, client
        self.values = settings.values
        self.quality: dict[str, dict] = read_list(output / QUALITY_FILE)
        report = read_list(output / REPORT_FILE)
        self.done: dict[str, dict] = report.get("cases", {})
        if not isinstance(self.done, dict):
            raise InputError(f"{output / REPORT_FILE} was not written by this program; choose another folder.")
        if report and report.get("label_values") != self.values:
            raise InputError(f"{output} holds cases with other organs or label values; choose another folder.")
        pattern = report.get("patient_pattern")
        if report and "patient_pattern" in report and pattern != settings.patient_pattern:
            told = [
                f"--patient-pattern {p}" if p else "no --patient-pattern" for p in (pattern, settings.patient_pattern)
            ]
            raise InputError(
                f"{output} was prepared with {told[0]}, now with {told[1]}: whose scans are whose cannot be told. Give "
                "the same one, or choose another folder."
            )
        self.patients: dict[str, str] = report.get("patients", {})
        self.key: str = report.get("key") or secrets.token_hex(16)
        self._saved = time.monotonic()
        taken = {name for name in self._taken() if (output / (name + IMAGE_SUFFIX)).is_file()}
        self.by_content = {facts.get("content_sha256"): name for name, facts in self.done.items() if name in taken}
        self.by_scan = {self._scan_of(name): name for name in sorted(taken)}
        self.met: set[str] = set()

    def run(self, cases: Sequence[Case], left_out: Sequence[LeftOut]) -> list[Outcome]:
        outcomes = [self._unusable(item) for item in left_out]
        for outcome in outcomes:
            self.say(_line(outcome))
        earlier = self._taken()
        self._write_meaning(any(facts.get("ignored_ml") for facts in self.done.values()))
        try:
            states = {
                name: _state(facts.get("content_sha256", ""), facts.get("grades", {}))
                for name, facts in self.done.items()
            }
            complete = frozenset(state for name, state in states.items() if self._is_complete(name, state))
            work = outcomes_in_order(self.client, convert, cases, self.settings, self.private.absolute(), complete)
            for number, found in enumerate(work, start=1):
                case = found.item
                outcome = self._take(case, found.value if found.error is None else _lost(case, found.error))
                outcomes.append(outcome)
                self._note(outcome, case)
                self.say(f"{_line(outcome)} [{number}/{len(cases)}]")
        finally:
            self._save(at_once=True)
        self._write_table(outcomes)
        gone = sorted(earlier - {outcome.name for outcome in outcomes})
        if gone:
            self.say(
                f"{len(gone)} cases in {self.output} are of earlier runs and not in these data: {', '.join(gone[:5])}"
                + (" ..." if len(gone) > 5 else "")
            )
        return outcomes

    def _write_meaning(self, ignoring: bool) -> None:
        self._ignoring = ignoring
        meaning = {str(value): key for key, value in self.values.items()}
        self._write_json(LABEL_MAP_FILE, {**meaning, **({str(IGNORED): IGNORE} if ignoring else {})})

    def _taken(self) -> set[str]:
        """Names of the cases that earlier runs and this one wrote."""
        return {name for name, facts in self.done.items() if facts["result"] != "left out"}

    def _note(self, outcome: Outcome, case: Case) -> None:
        """Keep what became of a case."""
        if outcome.result != "left out":
            entry = self.quality[outcome.name]
            entry["patient"] = self._patient(case, outcome.name)
            if case.fixed_set:
                entry["set"] = case.fixed_set
        elif self.done.get(outcome.name, {}).get("result", "left out") != "left out":
            return  # what an earlier run took stands
        self.done[outcome.name] = {
            "result": outcome.result,
            "reason": self._public(outcome.reason, outcome, case),
            "remarks": [self._public(warning, outcome, case) for warning in outcome.warnings],
            **outcome.facts,
        }
        self._save()

    def _save(self, at_once: bool = False) -> None:
        """Write the lists, now and then: with thousands of cases they are long."""
        if at_once or time.monotonic() - self._saved > _SAVE_EVERY_SECONDS:
            # quality first: a case that the report calls done has its grades
            self._write_json(QUALITY_FILE, self.quality)
            report = {
                "label_values": self.values,
                "patient_pattern": self.settings.patient_pattern,
                "key": self.key,
                "patients": self.patients,
                "cases": self.done,
            }
            self._write_json(REPORT_FILE, report)
            self._saved = time.monotonic()

    def _patient(self, case: Case, name: str) -> str:
        """The patient's name in this folder: that of the first of their cases, in whatever run it came."""
        if self.settings.keep_names:
            return case.patient
        return self.patients.setdefault(self._anonymous("patient", case.patient), name)

    def _anonymous(self, kind: str, text: str) -> str:
        return hmac.new(self.key.encode(), f"{kind}\n{text}".encode(), "sha256").hexdigest()[:32]

    def _unusable(self, item: LeftOut) -> Outcome:
        digest = hashlib.sha256(item.name.encode()).hexdigest()
        name = item.name if self.settings.keep_names or PUBLIC_NAME.fullmatch(item.name) else f"case_{digest[:12]}"
        reason = item.reason if self.settings.keep_names else item.reason.replace(item.name, "its name")
        self.done[name] = {"result": "left out", "reason": reason, "remarks": []}
        return Outcome(name, item.name, "left out", item.reason)

    def _scan_of(self, name: str) -> str:
        """The hash of an earlier case's scan."""
        known = self.done[name].get("scan_sha256")
        file = self.output / (name + IMAGE_SUFFIX)
        if known or not file.is_file():
            return known or name
        self.done[name]["scan_sha256"] = scan_hash(read_volume(file)[0])
        return self.done[name]["scan_sha256"]

    def _take(self, case: Case, converted: _Converted) -> Outcome:
        """Give a case its place in the folder, or tell why it has none."""
        name, content = case.name, converted.content
        try:
            if not content:
                raise InputError(converted.problem)
            source = name if self.settings.keep_names else self._anonymous("case", name)
            if not (self.settings.keep_names or PUBLIC_NAME.fullmatch(name)):
                name = self.by_content.get(content) or f"case_{content[:12]}"
            if self._is_complete(name, _state(content, case.grades)):
                if name in self.met:
                    raise InputError(f"its image is that of {name}")
                self.met.add(name)
                earlier = self.done[name]
                facts = {key: value for key, value in earlier.items() if key not in ("result", "reason", "remarks")}
                return Outcome(name, case.name, "present", "", facts, list(earlier.get("remarks", ())))
            if not converted.scan and not converted.problem:  # it was known, but by another name
                converted = convert(case, self.settings, self.private, frozenset())
            if not converted.scan:
                raise InputError(converted.problem)
            name, updated = self._name_for(name, converted.scan, source)
            if converted.problem:
                raise InputError(converted.problem)
            if converted.facts.get("ignored_ml") and not self._ignoring:
                self._write_meaning(True)  # before there are such voxels
            for suffix, file in converted.files.items():
                os.replace(file, self.output / (name + suffix))
        except InputError as error:
            return Outcome(name, case.name, "left out", " ".join(str(error).split()))
        finally:
            for file in converted.files.values():
                file.unlink(missing_ok=True)
        self.quality[name] = converted.entry
        self.met.add(name)
        self.by_scan[converted.scan] = name
        facts = {"content_sha256": content, "scan_sha256": converted.scan, "source": source, **converted.facts}
        return Outcome(name, case.name, "updated" if updated else "taken", "", facts, converted.warnings)

    def _is_complete(self, name: str, state: str) -> bool:
        """Whether an earlier case of this name, content and grades is there with all that belongs to it."""
        earlier = self.done.get(name, {})
        suffixes = (IMAGE_SUFFIX, LABELS_SUFFIX) if earlier.get("organs_ml") else (IMAGE_SUFFIX,)
        files = [self.output / (name + suffix) for suffix in suffixes]
        same = _state(earlier.get("content_sha256", ""), earlier.get("grades", {})) == state
        return same and name in self.quality and all(file.is_file() for file in files)

    def _name_for(self, name: str, scan: str, source: str) -> tuple[str, bool]:
        """The name under which a case is written, and whether it replaces an earlier one of the same source.

        Raises:
            InputError: its scan is there already, of another source or of this run.
        """
        known = self.by_scan.get(scan)
        if known is not None and known not in self.met and self.done[known].get("source") == source:
            return known, (self.output / (known + IMAGE_SUFFIX)).is_file()
        if known is not None and known != name:
            when = "" if known in self.met else ", which an earlier run took from other data and which stays"
            raise InputError(f"its image is that of {known}{when}")
        if name in self._taken() and (self.output / (name + IMAGE_SUFFIX)).is_file() and known is None:
            raise InputError(
                f"another scan called {name} is there, from an earlier run: remove {name}{IMAGE_SUFFIX} and "
                f"{name}{LABELS_SUFFIX} first, or choose another folder"
            )
        return name, False

    def _public(self, reason: str, outcome: Outcome, case: Case) -> str:
        """A reason or remark without names of files and cases, for files that may be passed on."""
        if not self.settings.keep_names and outcome.name != case.name:
            for path in (case.image, case.labels):
                if path is not None:
                    reason = reason.replace(str(path), "the file").replace(path.name, "the file")
            reason = reason.replace(case.name, "it")
        return reason

    def _write_table(self, outcomes: Sequence[Outcome]) -> None:
        temporary = self.private / TABLE_FILE
        with open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            columns = [f"{key}_ml" for key in self.values]
            writer.writerow(["case", "result", "reason", "remarks", "size", "spacing_mm", *columns])
            for name in dict.fromkeys(outcome.name for outcome in outcomes):
                facts = self.done[name]
                sizes = (" x ".join(f"{v:g}" for v in facts.get(key, ())) for key in ("size", "spacing_mm"))
                volumes = (facts.get("organs_ml", {}).get(key, "") for key in self.values)
                remarks = "; ".join(facts.get("remarks", ()))
                writer.writerow([name, facts["result"], facts["reason"], remarks, *sizes, *volumes])
        os.replace(temporary, self.output / TABLE_FILE)

    def _write_json(self, file: str, content: dict) -> None:
        temporary = self.private / file
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.output / file)


def read_list(path: Path) -> dict:
    """A JSON object from a file, empty where there is none. Raises InputError when it is something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); choose another folder or delete it.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} was not written by this program; choose another folder.")
    return content


def write_nifti(path: Path, array: np.ndarray, volume: Volume) -> None:
    """Write a NIfTI file with voxels and geometry only, read back to be sure.

    Raises:
        InputError: NIfTI cannot hold the volume's geometry.
        OSError: the file came out wrong.
    """
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(volume.direction.ravel().tolist())
    try:
        with quiet_itk():
            SimpleITK.WriteImage(image, str(path), useCompression=True)
        written, _ = read_volume(path)
    except (RuntimeError, InputError) as error:
        raise OSError(None, "a file came out incomplete; the disk may be full") from error
    if not np.array_equal(written.array, array):
        raise OSError(None, "a file came out wrong; the disk may be full")
    if not written.same_grid(volume, tolerance_mm=0.01 * min(volume.spacing)):
        raise InputError("its axes are not at right angles (gantry tilt); resample it to a straight grid first")


def _line(outcome: Outcome) -> str:
    name = outcome.source if outcome.source == outcome.name else f"{outcome.source} -> {outcome.name}"
    if outcome.result == "left out":
        return f"{outcome.source} is left out: {outcome.reason}"
    size = " x ".join(str(count) for count in outcome.facts["size"])
    volumes = ", ".join(f"{key} {volume:.0f} mL" for key, volume in outcome.facts["organs_ml"].items())
    ignored = f", {outcome.facts['ignored_ml']:.0f} mL to be ignored" if outcome.facts.get("ignored_ml") else ""
    return f"{name} {outcome.result}: {size}; {volumes or 'no labels'}{ignored}"
