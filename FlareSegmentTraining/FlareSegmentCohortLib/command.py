"""The whole of a cohort's command: lock, list, work, tables, report."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from FlareSegmentCohortLib.case_task import WORKER_MODULES, Job, model_folder, model_identity, settings_of, work_on
from FlareSegmentCohortLib.cohort_cases import printable
from FlareSegmentCohortLib.cohort_run import Counts, Teller, cases_left, duration, work_through
from FlareSegmentCohortLib.listing import Listing, check_source, in_words, make_list
from FlareSegmentCohortLib.output_folder import FAILED_FILE, RECORDS, OutputFolder
from FlareSegmentCohortLib.report import load_libraries, write_report
from FlareSegmentCohortLib.tables import Figures, write_tables
from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.model.description import read_description
from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
from FlareSegmentTrainingLib.evaluation.identities import program_identity
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter
from FlareSegmentTrainingLib.scheduling.connection import connect, let_go, warm_up

if TYPE_CHECKING:
    from FlareSegmentCohortLib.case_task import Work

_FORMAT = 1
"""Of the records: another one when what they hold changes."""


def run_cohort(
    options: argparse.Namespace, say: Callable[[str], None], work: Work = work_on
) -> tuple[dict[str, Any], InputError | None]:
    """Do everything that the command line asks for.

    Args:
        work: what is done with a case; something else tries the schedule alone.

    Returns:
        What --json prints, and the error that tells of failed cases.

    Raises:
        FlareSegmentError: the run could not be finished; the same command goes on.
    """
    check_source(options.source)  # a typo leaves no folder behind
    folder = OutputFolder(options.output)
    folder.prepare()
    with folder.locked(), _reported(folder) as reporter:
        if not folder.list_file.is_file():  # else all may be done
            warm_up(options, options.device, WORKER_MODULES)
        job, model = _job(options)
        folder.forget_old_stop()
        with _progress_line(reporter, say) as progress:
            listing = make_list(options.source, folder, progress)
        say(printable(_listed(listing, options.source)))
        counts = Counts(listing.count)
        with _worked_on(options, folder, job, counts, reporter, say, work):
            stopped = folder.stop_file.exists()
            folder.remove_leftovers()
            reporter.update(**counts.as_json(), current=None, message="Writing the tables and the report")
            figures = write_tables(folder, job)
            report = write_report(folder, str(options.source), model, listing, figures)
        folder.stop_file.unlink(missing_ok=True)
        say(
            f"{figures.done} of {_cts(listing.count)} segmented ({counts.done} now), {figures.failed} failed"
            + (f", {figures.pending} left; the same command goes on" if figures.pending else "")
            + f": {report}"
        )
        failure = _failure(folder, figures, listing.count)
        ended = "stopped" if stopped and figures.pending else "finished"
        reporter.end(ended, f"{figures.done} segmented, {figures.failed} failed, {figures.pending} left")
    result = {
        "output": str(folder.path),
        "report": str(report),
        **counts.as_json(),
        "segmented": figures.done,
        "failed_in_all": figures.failed,
        "pending": figures.pending,
        "seconds": round(time.monotonic() - counts.begun, 2),
        "engine_seconds": round(counts.engine_seconds, 2),
        "model": model,
    }
    return result, failure


def _failure(folder: OutputFolder, figures: Figures, total: int) -> InputError | None:
    """The error that ends a run in which CTs failed, with the reason of most of them."""
    if not figures.failed:
        return None
    reason, count = figures.reasons.most_common(1)[0]
    example = figures.examples.get(reason, ("", reason))[1]
    return InputError(
        f"{figures.failed} of {_cts(total)} failed, see {folder.path / FAILED_FILE}; --retry-failed tries them again. "
        + (f"{count} of them as this one: {example}" if figures.failed > 1 else example)
    )


@contextlib.contextmanager
def _worked_on(
    options: argparse.Namespace,
    folder: OutputFolder,
    job: Job,
    counts: Counts,
    reporter: ProgressReporter,
    say: Callable[[str], None],
    work: Work,
) -> Iterator[None]:
    """Have the workers do what is left to do; none are started where nothing is. They end while the context lasts."""
    cases = cases_left(folder, job, counts, options.retry_failed)
    first = next(cases, None)
    if first is None:
        yield
        return
    (folder.path / RECORDS).mkdir(exist_ok=True)
    reporter.update(**counts.as_json(), message="Waiting for workers")
    with connect(options, say, options.device, folder.path / "logs", True, WORKER_MODULES) as client:
        counts.begun = time.monotonic()
        threading.Thread(target=load_libraries, name="libraries of the report", daemon=True).start()
        work_through(client, itertools.chain([first], cases), job, counts, work, Teller(counts, reporter, say))
        let_go(client)
        worked = counts.done + counts.failed
        if worked:
            seconds = time.monotonic() - counts.begun
            say(f"{_cts(worked)} in {duration(seconds)}, {seconds / worked:.2f} s each.")
        yield


def _job(options: argparse.Namespace) -> tuple[Job, str]:
    """What is the same for all cases, and the model's name. Raises InputError, ModelError."""
    folder = model_folder(None if options.model is None else str(options.model.absolute()))
    description = read_description(folder)
    label_map, meaning = options.label_map, None
    if label_map:
        meaning = parse_label_map(label_map)
        label_map = str(Path(label_map).absolute()) if Path(label_map).is_file() else label_map
    identity = model_identity(folder)
    kinds = tuple(kind for kind in ("segmentations", "dicom", "pictures") if getattr(options, kind))
    parts = {
        "format": _FORMAT,
        "program": program_identity(),
        "model": identity,
        "label_ids": options.label_ids,
        "label_map": None if meaning is None else repr((meaning.organs, sorted(meaning.others))),
        "kinds": kinds,
    }
    job = Job(
        output=str(options.output.absolute()),
        model=None if options.model is None else str(options.model.absolute()),
        model_identity=identity,
        device=options.device,
        label_ids=options.label_ids,
        kinds=kinds,
        label_map=label_map,
        settings=settings_of(parts),
    )
    return job, f"{description.name} {description.version}"


@contextlib.contextmanager
def _reported(folder: OutputFolder) -> Iterator[ProgressReporter]:
    """Keep progress.json while the run lives, and say there how it ended where it was not finished."""
    reporter = ProgressReporter(folder)
    reporter.begin()
    try:
        yield reporter
    except KeyboardInterrupt:
        reporter.end("stopped", "Stopped.")
        raise
    except BaseException as error:
        reporter.end("failed", str(error) if isinstance(error, FlareSegmentError) else repr(error))
        raise


def _listed(listing: Listing, source: Path) -> str:
    text = f"{_cts(listing.count)} in {source}" + (" (as listed before)" if listing.kept else "")
    return f"{text}; left out: {in_words(listing.left_out)}" if listing.left_out else text


def _cts(count: int) -> str:
    return f"{count} CT" if count == 1 else f"{count} CTs"


@contextlib.contextmanager
def _progress_line(reporter: ProgressReporter, say: Callable[[str], None]) -> Iterator[Callable[[str, int, int], None]]:
    """Shows how far the listing is: a bar in a terminal, else a line now and then."""
    terminal = sys.stderr.isatty()
    every = 0.2 if terminal else 10.0
    told = time.monotonic()
    shown = False

    def progress(what: str, count: int, total: int) -> None:
        nonlocal told, shown
        if time.monotonic() - told < every:
            return
        told = time.monotonic()
        text = f"{what}: {count:,}" + (f" of {total:,}" if total else "")
        reporter.update(message=text)
        if not terminal:
            say(text)
            return
        width = max(10, min(40, os.get_terminal_size(sys.stderr.fileno()).columns - len(text) - 8))
        bar = f"[{'#' * round(width * count / total):<{width}}] " if total else ""
        print(f"\r\x1b[K{bar}{text}", end="", file=sys.stderr, flush=True)
        shown = True

    try:
        yield progress
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
