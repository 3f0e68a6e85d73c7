"""A cohort's run: which cases are left to do, giving them to Dask's workers, how far it is.

Cases are taken from the list as workers get free, so that a list of any length takes no more memory than a short one.
What a worker did is in the case's record; here it is only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from FlareSegmentCohortLib.case_task import DONE, FAILED, PRESENT, CannotWork, Job, Work, fail, is_failure, is_result
from FlareSegmentCohortLib.cohort_cases import CohortCase
from FlareSegmentCohortLib.output_folder import OutputFolder, read_record
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter
from FlareSegmentTrainingLib.scheduling.tasks import WorkerLost, outcomes

if TYPE_CHECKING:
    from distributed import Client

_SAY_EVERY_SECONDS = 30.0


@dataclass
class Counts:
    """How far a run is.

    Attributes:
        total: cases of the list.
        present: those that an earlier run had done, failed ones among them.
        done, failed: those of this run.
        engine_seconds: of the engine, over the cases of this run.
    """

    total: int
    present: int = 0
    done: int = 0
    failed: int = 0
    engine_seconds: float = 0.0
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> int:
        return self.total - self.present - self.done - self.failed

    @property
    def seconds_left(self) -> float | None:
        """By the speed of this run; None before its first case."""
        worked = self.done + self.failed
        return (time.monotonic() - self.begun) / worked * self.left if worked else None

    def as_json(self) -> dict[str, Any]:
        """For progress.json."""
        left = self.seconds_left
        return {
            "total": self.total,
            "present": self.present,
            "done": self.done,
            "failed": self.failed,
            "left": self.left,
            "seconds_left": None if left is None else round(left),
        }


def cases_left(folder: OutputFolder, job: Job, counts: Counts, retry_failed: bool) -> Iterator[CohortCase]:
    """The cases that have no record, or one of another model, other options or another state of their files; the
    others are counted. Ends early where the run is asked to stop.
    """
    for case in folder.cases():
        if folder.stop_file.exists():
            return
        record = read_record(folder.path, case.name)
        if record is not None and case.state and record.get("state") == case.state:
            if is_result(record, job, folder.path):
                counts.present += 1
                continue
            if is_failure(record, job) and not retry_failed:
                counts.present += 1
                continue
        yield case


def work_through(
    client: Client,
    cases: Iterator[CohortCase],
    job: Job,
    counts: Counts,
    work: Work,
    told: Callable[[CohortCase, dict[str, Any]], None],
) -> None:
    """Have all cases worked on.

    A case whose workers ended one after the other is tried once more by itself: what ended them may have been a case
    beside it.

    Args:
        told: of each case that is finished, with what `work` returned.

    Raises:
        CannotWork: nothing can be done, on some computer.
        FlareSegmentError: the scheduler is gone.
    """
    for outcome in outcomes(client, work, cases, job, alone=True):
        case = outcome.item
        if isinstance(outcome.error, WorkerLost):
            reason = f"{case.source}: {outcome.error}."
            fail(case, job, reason)
            result = {"result": FAILED, "error": reason}
        else:
            result = _result_of(outcome)
        _count(case, result, counts, told)


def _result_of(outcome: Any) -> dict[str, Any]:
    if outcome.error is None:
        return outcome.value
    if isinstance(outcome.error, CannotWork):
        raise outcome.error
    raise CannotWork(
        f"The workers cannot do {outcome.item.case} ({type(outcome.error).__name__}: {outcome.error}): check that they "
        "see the same folders and run the same versions."
    ) from outcome.error


def _count(
    case: CohortCase, result: dict[str, Any], counts: Counts, told: Callable[[CohortCase, dict[str, Any]], None]
) -> None:
    if result["result"] == PRESENT:
        counts.present += 1
    elif result["result"] == DONE:
        counts.done += 1
        counts.engine_seconds += result.get("seconds", 0.0)
    else:
        counts.failed += 1
    told(case, result)


class Teller:
    """Says how far the run is: failures at once, all else every half minute; and in progress.json."""

    def __init__(self, counts: Counts, reporter: ProgressReporter, say: Callable[[str], None]) -> None:
        self._counts, self._reporter, self._say = counts, reporter, say
        self._said = time.monotonic()

    def __call__(self, case: CohortCase, result: dict[str, Any]) -> None:
        counts = self._counts
        place = f"[{counts.total - counts.left}/{counts.total}]"
        if result["result"] == FAILED:
            self._say(f"{place} {case.case} failed: {result.get('error', '')}")
        if time.monotonic() - self._said > _SAY_EVERY_SECONDS or not counts.left:
            self._said = time.monotonic()
            self._say(f"{place} {self.in_words()}")
        self._reporter.update(**counts.as_json(), current=case.case, message=f"{place} {case.case}")

    def in_words(self) -> str:
        """Speed, and the time that is left."""
        counts = self._counts
        worked, seconds = counts.done + counts.failed, time.monotonic() - counts.begun
        speed = f"{3600 * worked / seconds:.0f} CTs an hour" if seconds > 0 else ""
        left = counts.seconds_left
        return speed + (f", about {duration(left)} left" if counts.left and left is not None else "")


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
