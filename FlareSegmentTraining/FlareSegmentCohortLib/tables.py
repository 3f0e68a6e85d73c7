"""The tables of a cohort, made from its cases' records one after the other, and what the report needs of them.

``organs.csv`` and ``organs.parquet`` have a row for each case and organ, ``failed.csv`` one for each case that could
not be done. They hold what the list names: records of CTs that are not listed any more are passed over.
"""

from __future__ import annotations

import csv
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from FlareSegmentCohortLib.case_task import ENGINE_STEPS, Job, is_failure, is_result
from FlareSegmentCohortLib.cohort_cases import CohortCase, printable
from FlareSegmentCohortLib.output_folder import FAILED_FILE, PARQUET_FILE, TABLE_FILE, OutputFolder, read_record
from FlareSegmentLib.files.output_files import OutputFiles, not_writable
from FlareSegmentLib.measures.result_table import COLUMNS, SCORES

_NUMBERS = (*COLUMNS[1:2], *COLUMNS[3:], "confidence", *SCORES, "reference_ml")
_SECONDS = ("read", *ENGINE_STEPS, "measure", "write")
_TEXTS_BEHIND = ("warnings", "device", "model", "version", "source", "labels_file")
_ROWS_AT_ONCE = 4000
_WHOLE_NUMBERS = ("label", "cut")
NAMES = (
    "case", "organ", "label", "cut", *_NUMBERS, *(f"{step}_s" for step in _SECONDS), *_TEXTS_BEHIND,
)  # fmt: skip
"""Columns of the tables of organs."""

_REASONS_TOLD = 1000


@dataclass
class Figures:
    """What the tables come to: a few numbers for each case, whatever the number of cases.

    Attributes:
        organs: keys in the order of the model's classes.
        numbers: of the cases that were done, their places in the list.
        volumes: {organ key: mL of each of these cases}, 0 where it was not found.
        cut: {organ key: 1 where the scan cuts it}.
        warnings: how many there are about each case.
        confidences: the lowest of the organs; NaN where nobody says it.
        seconds: {step: of each case}.
        finished: when each was finished, seconds since 1970; begun: when the first of all was begun.
        reasons: {why cases failed, without what is special to one: how many}.
        examples: {reason: a case}.
        pending: cases that were listed and not worked on yet.
        dice: {organ key: of each case that has one}.
    """

    organs: list[str] = field(default_factory=list)
    numbers: array = field(default_factory=lambda: array("l"))
    volumes: dict[str, array] = field(default_factory=dict)
    cut: dict[str, array] = field(default_factory=dict)
    dice: dict[str, array] = field(default_factory=dict)
    warnings: array = field(default_factory=lambda: array("H"))
    confidences: array = field(default_factory=lambda: array("f"))
    seconds: dict[str, array] = field(default_factory=lambda: {step: array("f") for step in _SECONDS})
    finished: array = field(default_factory=lambda: array("d"))
    begun: float = float("inf")
    reasons: Counter = field(default_factory=Counter)
    examples: dict[str, tuple[str, str]] = field(default_factory=dict)
    failed: int = 0
    pending: int = 0

    @property
    def done(self) -> int:
        return len(self.numbers)

    def add(self, number: int, record: dict[str, Any]) -> None:
        """Count a case that was done; `number` is its place in the list."""
        self.numbers.append(number)
        for key, row in record["organs"].items():
            if key not in self.volumes:
                self.organs.append(key)
                # An organ that only some cases know (a model was changed) has nothing to say of the others.
                missing = len(self.numbers) - 1
                self.volumes[key], self.cut[key] = array("f", [0.0] * missing), array("b", [0] * missing)
                self.dice[key] = array("f")
            self.volumes[key].append(row["volume_ml"] or 0.0)
            self.cut[key].append(int(bool(row["cut"])))
            if row.get("dice") is not None:
                self.dice[key].append(row["dice"])
        self.warnings.append(min(65535, len(record["warnings"])))
        known = [row["confidence"] for row in record["organs"].values() if row.get("confidence") is not None]
        self.confidences.append(min(known) if known else float("nan"))
        for step in _SECONDS:
            self.seconds[step].append(record["seconds"].get(step, 0.0))
        self.finished.append(record["finished"])
        self.begun = min(self.begun, record["begun"])

    def add_failure(self, case: CohortCase, reason: str) -> None:
        """Count a case that could not be done."""
        self.failed += 1
        kind = kind_of_reason(reason, case)
        if kind in self.reasons or len(self.reasons) < _REASONS_TOLD:
            self.reasons[kind] += 1
            self.examples.setdefault(kind, (case.case, reason))
        else:
            self.reasons["other reasons"] += 1


def write_tables(folder: OutputFolder, job: Job) -> Figures:
    """Write all tables, together or not at all; returns what they come to. Raises InputError."""
    figures = Figures()
    with OutputFiles(folder.path) as files:
        places = [files.path(name, name) for name in (TABLE_FILE, PARQUET_FILE, FAILED_FILE)]
        try:
            with _Writer(*places) as writer:
                _write_all(folder, job, writer, figures)
        except OSError as error:
            raise not_writable(folder.path, error) from error
        files.publish()
    return figures


def _write_all(folder: OutputFolder, job: Job, writer: _Writer, figures: Figures) -> None:
    for number, case in enumerate(folder.cases()):
        record = read_record(folder.path, case.name)
        if record is not None and is_failure(record, job):
            reason = str(record["error"])
            writer.failed(case, reason)
            figures.add_failure(case, reason)
        elif record is not None and is_result(record, job, folder.path):
            for row in rows_of(case, record):
                writer.row(row)
            figures.add(number, record)
        else:
            figures.pending += 1


def rows_of(case: CohortCase, record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The table's rows of a case: {column: text, number or None}."""
    model, _, version = str(record["model"]).rpartition(" ")
    common = {
        "case": case.case,
        **{f"{step}_s": record["seconds"].get(step) for step in _SECONDS},
        "warnings": " | ".join(record["warnings"]),
        "device": record["device"],
        "model": model,
        "version": version,
        "source": case.source,
        "labels_file": record["files"].get("labels", ""),
    }
    for key, row in record["organs"].items():
        yield {**common, "organ": key, **{name: row.get(name) for name in (*_WHOLE_NUMBERS, *_NUMBERS)}}


def kind_of_reason(reason: str, case: CohortCase) -> str:
    """Why a case failed, without its own names and numbers, so that alike reasons are one."""
    for text in (case.source, case.labels):
        if text:
            reason = reason.replace(text, "")
    reason = re.sub(r"(?<!\w)(/|[A-Za-z]:\\)\S+", "", reason)
    reason = re.sub(r"-?\d+([.,x ]*\d)*", "#", reason)
    return " ".join(reason.split()).lstrip(" :,.").rstrip(" :,.(") or "no reason given"


class _Writer:
    """The three files while they are written."""

    def __init__(self, table: Path, parquet: Path, failed: Path) -> None:
        import pyarrow

        self._paths = table, parquet, failed
        whole = dict.fromkeys(_WHOLE_NUMBERS, pyarrow.int32())
        texts = dict.fromkeys(("case", "organ", *_TEXTS_BEHIND), pyarrow.string())
        types = {**dict.fromkeys(NAMES, pyarrow.float64()), **whole, **texts}
        self._schema = pyarrow.schema([(name, types[name]) for name in NAMES])
        self._rows: list[dict[str, Any]] = []
        self._stack = ExitStack()

    def __enter__(self) -> _Writer:
        from pyarrow.parquet import ParquetWriter

        table, parquet, failed = self._paths
        self._table = csv.writer(self._stack.enter_context(_text(table)))
        self._failed = csv.writer(self._stack.enter_context(_text(failed)))
        self._table.writerow(NAMES)
        self._failed.writerow(["case", "source", "reason"])
        self._parquet = self._stack.enter_context(ParquetWriter(str(parquet), self._schema, compression="zstd"))
        return self

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self._flush()
        self._stack.__exit__(*error)

    def row(self, row: dict[str, Any]) -> None:
        row = {name: printable(value) if isinstance(value, str) else value for name, value in row.items()}
        self._table.writerow(["" if row[name] is None else row[name] for name in NAMES])
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def failed(self, case: CohortCase, reason: str) -> None:
        self._failed.writerow([printable(text) for text in (case.case, case.source, reason)])

    def _flush(self) -> None:
        import pyarrow

        self._parquet.write_table(pyarrow.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _text(place: Path) -> IO[str]:
    return open(place, "w", newline="", encoding="utf-8")
