"""The folder of a cohort: what is in it, and who is writing it.

``list.jsonl``, ``list.json``   the cases that were listed, one a line, and what the list was made from
``cases/``                      a record of each case that was worked on: its figures, or why there are none
``labels/``                     label maps; ``segmentations/``, ``dicom/``, ``pictures/`` on request
``thumbnails/``                 small pictures for the report
``organs.csv``, ``organs.parquet``, ``failed.csv``, ``report.html``   made from the records when a run ends
``progress.json``               how far the run is, for whoever watches (see `training.run_folder`)
``stop``                        a file of this name asks the run to end after the cases that are in work
``cohort.lock``                 whose run this is

Every file appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from FlareSegmentCohortLib.cohort_cases import CohortCase, read_cases
from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.output_files import OutputFiles, check_writable, not_writable
from FlareSegmentLib.processes import DEAD_AFTER_SECONDS, PROGRESS_FILE, identity, is_running, remove_unfinished
from FlareSegmentTrainingLib.runs.watched_folder import WatchedFolder, save_whole

RECORDS, THUMBNAILS = "cases", "thumbnails"
KINDS = {
    "labels": "_labels.nii.gz",
    "segmentations": "_organs.seg.nrrd",
    "dicom": "_organs.dcm",
    "pictures": "_slices.png",
}
"""Folders of results, and how their files' names end."""

TABLE_FILE, PARQUET_FILE, FAILED_FILE, REPORT_FILE = "organs.csv", "organs.parquet", "failed.csv", "report.html"
_LOCK_FILE = "cohort.lock"


class OutputFolder(WatchedFolder):
    """Paths, safe writing and reading of a cohort's files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(path)
        self.list_file = self.path / "list.jsonl"
        self.list_facts = "list.json"

    def prepare(self) -> None:
        """Make the folder. Raises InputError where it is a file, cannot be written, or holds something else."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; name a folder with --output.")
        check_writable(self.path)
        strange = next((name for name in (RECORDS, "config.json") if (self.path / name).exists()), None)
        if strange and not (self.path / _LOCK_FILE).exists():
            raise InputError(f"{self.path} holds files that are not of a cohort ({strange}): choose another folder.")
        self.path.mkdir(parents=True, exist_ok=True)

    def remove_leftovers(self) -> None:
        """Remove what processes that were killed had begun to write: while nobody writes here, under the lock."""
        for kind in (RECORDS, THUMBNAILS, *KINDS):
            remove_unfinished(self.path / kind)

    def write_list(self, cases: Iterable[CohortCase]) -> int:
        """Write the cases, as they come, into the list; returns their number. Raises InputError."""
        count = 0
        with OutputFiles(self.path) as files:
            try:
                with open(files.path("list", self.list_file.name), "w", encoding="utf-8", newline="\n") as stream:
                    for count, case in enumerate(cases, start=1):  # noqa: B007  the last one tells how many
                        stream.write(case.as_line() + "\n")
            except OSError as error:
                raise not_writable(self.path, error) from error
            files.publish()
        return count

    def cases(self) -> Iterator[CohortCase]:
        """The listed cases, one after the other. Raises InputError."""
        return read_cases(self.list_file)

    def facts(self, name: str) -> dict:
        """A JSON file of the folder; empty where there is none that can be read."""
        try:
            content = json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep the folder to this process. Raises InputError where another run works in it."""
        with open(self.path / _LOCK_FILE, "a+", encoding="utf-8") as stream:
            held = _try_lock(stream)
            stream.seek(0)
            owner = _owner(stream.read())
            if not held or self._lives(owner):
                where = f" (process {owner['pid']} on {owner['host']})" if owner else ""
                raise InputError(
                    f"Another cohort runs in {self.path}{where}: wait for it, or name another folder with --output."
                )
            process = {"pid": os.getpid(), "host": socket.gethostname(), "process": identity(os.getpid())}
            stream.truncate(0)
            stream.write(json.dumps(process))
            stream.flush()
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    stream.truncate(0)

    def _lives(self, owner: dict) -> bool:
        """Whether the process that wrote the lock may be at work: one that the lock of the system does not tell of, on
        another computer, or on a disk that knows no locks.
        """
        if not owner or owner.get("pid") == os.getpid():
            return False
        if owner["host"] == socket.gethostname():
            if not is_running(owner["pid"]):
                return False
            return owner.get("process") is None or owner["process"] == identity(owner["pid"])
        try:
            return time.time() - (self.path / PROGRESS_FILE).stat().st_mtime < DEAD_AFTER_SECONDS
        except OSError:
            return False


def _owner(text: str) -> dict:
    with contextlib.suppress(ValueError):
        content = json.loads(text)
        if isinstance(content, dict) and isinstance(content.get("pid"), int) and isinstance(content.get("host"), str):
            return content
    return {}


def _try_lock(stream: IO[str]) -> bool:
    """Take the lock of an open file, which the system gives back however the process ends; False where another process
    has it. True too where the disk knows no locks.
    """
    if os.name == "nt":
        import msvcrt

        try:
            stream.seek(1 << 20)  # a byte that nobody writes
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def write_record(folder: Path, name: str, content: dict) -> None:
    """Write a case's record, whole or not at all. Raises FlareSegmentError."""
    text = json.dumps(content, allow_nan=False)
    save_whole(folder / RECORDS / f"{name}.json", lambda place: place.write_text(text, encoding="utf-8"))


def read_record(folder: Path, name: str) -> dict | None:
    """A case's record; None where there is none that can be read."""
    try:
        content = json.loads((folder / RECORDS / f"{name}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def remove_results(folder: Path, name: str) -> None:
    """Remove what an earlier run wrote of a case that fails now: no old result may pass for one of this run."""
    for kind in (*KINDS, THUMBNAILS):
        for ending in result_endings(kind):
            with contextlib.suppress(OSError):
                (folder / kind / f"{name}{ending}").unlink(missing_ok=True)


def result_endings(kind: str) -> tuple[str, ...]:
    """How the names of a kind's files may end."""
    if kind == THUMBNAILS:
        return (".jpg",)
    return (KINDS[kind], "_labels.nrrd") if kind == "labels" else (KINDS[kind],)
