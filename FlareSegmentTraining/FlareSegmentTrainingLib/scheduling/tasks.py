"""One function on many cases, each on whichever worker is free."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from FlareSegmentLib.errors import FlareSegmentError, InputError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
_POLL_SECONDS = 2.0
_NO_WORKER_SECONDS = 120.0
"""So long this computer may take to replace all of its workers."""


class WorkerLost(FlareSegmentError):
    """The processes that worked on a case ended one after the other."""


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of a case: the function's `value`, or the `error` that it raised."""

    item: Item
    value: Any = None
    error: Exception | None = None


def outcomes(
    client: Client, function: Callable[..., Any], items: Iterable[Item], *more: Any, alone: bool = False
) -> Iterator[Outcome[Item]]:
    """Yield what `function(item, *more)` returned or raised for each item, in the order in which they are finished.

    Never more cases are with Dask than its workers have threads: items are taken from the iterable as they are needed,
    and a process that is killed costs just its case. Dask tries that one again on another worker.

    Args:
        more: further arguments, the same for all.
        alone: try a case whose workers were ended once more while none other is worked on: Dask may have given one of
            them two cases, as where others are just starting anew, and then it was perhaps the other one that ended it.

    Raises:
        FlareSegmentError: the scheduler is gone, or no worker will ever come.
    """
    from distributed import wait
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError

    waiting = iter(items)
    pending: dict[Any, Item] = {}
    suspects: list[Item] = []
    trial = None
    numbers = itertools.count()

    def submit(item: Item) -> Any:
        key = f"{function.__name__}-{id(waiting):x}-{next(numbers)}"
        future = client.submit(function, item, *more, key=key, pure=False)
        pending[future] = item
        return future

    threads, asked = _threads(client), time.monotonic()
    worked = asked
    try:
        while True:
            if suspects and not pending:
                trial = submit(suspects.pop())
            elif not suspects and trial is None:
                for item in itertools.islice(waiting, max(0, max(1, threads) - len(pending))):
                    submit(item)
            if not pending:
                return
            worked = time.monotonic() if threads else worked
            _check(client, threads, time.monotonic() - worked)
            done: Iterable[Any] = ()
            with contextlib.suppress(TimeoutError), client.as_current():  # there may be others in this process
                done = wait(list(pending), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
            # Released at once: what Dask still holds when its worker is killed would be worked on again.
            finished = [(future is trial, _released(future, pending.pop(future))) for future in done]
            for was_trial, outcome in finished:
                if alone and not was_trial and isinstance(outcome.error, WorkerLost):
                    suspects.append(outcome.item)
                else:
                    yield outcome
            if any(was_trial for was_trial, _ in finished):
                trial = None
            if time.monotonic() - asked > _POLL_SECONDS:
                threads, asked = _threads(client), time.monotonic()
    except (ClosedClientError, FutureCancelledError, FuturesCancelledError, OSError) as error:
        raise FlareSegmentError("Dask's scheduler is gone; the same command goes on.") from error
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(pending), force=True)
            if pending and client.cluster is not None:  # what still runs would write where the caller cleans up
                client.cluster.close(timeout=10)


def outcomes_in_order(
    client: Client | None, function: Callable[..., Any], items: Sequence[Item], *more: Any
) -> Iterator[Outcome[Item]]:
    """As `outcomes`, in the order of the items; without a client in this process, one after the other.

    Raises:
        FlareSegmentError: as `outcomes` does; also where `function` raised anything but an InputError.
    """
    if client is None:
        for item in items:
            try:
                yield Outcome(item, function(item, *more))
            except InputError as error:
                yield Outcome(item, error=error)
        return
    early: dict[int, Outcome[Item]] = {}
    due = 0
    for outcome in outcomes(client, _numbered, list(enumerate(items)), function, *more, alone=True):
        number, item = outcome.item
        if outcome.error is not None and not isinstance(outcome.error, (InputError, WorkerLost)):
            raise outcome.error
        early[number] = Outcome(item, outcome.value, outcome.error)
        while due in early:
            yield early.pop(due)
            due += 1


def _numbered(numbered: tuple[int, Any], function: Callable[..., Any], *more: Any) -> Any:
    return function(numbered[1], *more)


def _check(client: Client, threads: int, idle_seconds: float) -> None:
    """Raise FlareSegmentError where there is no worker and none will come."""
    if threads:
        return
    problem = getattr(client.cluster, "flaresegment_problem", None)
    if problem is not None and problem():
        raise FlareSegmentError(problem())
    if problem is None and client.cluster is not None and idle_seconds > _NO_WORKER_SECONDS:
        raise FlareSegmentError(
            "All workers ended and none came back: look for room in memory and on the disks; the same command goes on."
        )


def _threads(client: Client) -> int:
    return sum(client.nthreads().values())


def _released(future: Any, item: Item) -> Outcome[Item]:
    outcome = _outcome(future, item)
    future.release()
    return outcome


def _outcome(future: Any, item: Item) -> Outcome[Item]:
    from distributed.scheduler import KilledWorker

    if future.status == "finished":
        return Outcome(item, future.result())
    error = future.exception()
    if isinstance(error, KilledWorker):
        times = error.allowed_failures + 1
        error = WorkerLost(
            f"the process that worked on it was ended {times} times, by a crash or because memory did not suffice "
            "(--memory-limit)"
        )
    return Outcome(item, error=error)
