"""One function on many cases, each on whichever worker is free."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentTrainingLib.scheduling.interrupts import end_at_once

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
    from distributed.client import ClosedClientError, FutureCancelledError, FuturesCancelledError

    waiting = iter(items)
    pending: dict[str, Item] = {}
    futures: dict[str, Any] = {}
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    suspects: list[Item] = []
    trial = ""
    numbers = itertools.count()
    work = _carrier(function, more)

    def submit(some: list[Item]) -> str:
        keys = [f"{function.__name__}-{id(waiting):x}-{next(numbers)}" for _ in some]
        for key, future in zip(keys, client.map(work, [pickle.dumps(item) for item in some], key=keys, pure=False)):
            futures[key] = future
            future.add_done_callback(finished.put)
        pending.update(zip(keys, some))
        return keys[0]

    threads, asked = _threads(client), time.monotonic()
    worked = asked
    ready: list[Outcome[Item]] = []
    try:
        while True:
            if suspects and not pending:
                trial = submit([suspects.pop()])
            elif not suspects and not trial:
                free = max(0, max(1, threads) - len(pending))
                if some := list(itertools.islice(waiting, free)):
                    submit(some)
            yield from ready  # while the workers are at those that were just submitted
            if not pending:
                return
            worked = time.monotonic() if threads else worked
            _check(client, threads, time.monotonic() - worked)
            done = []
            for future in _next(finished):
                del futures[future.key]
                item = pending.pop(future.key)
                was_trial = future.key == trial
                trial = "" if was_trial else trial
                if alone and not was_trial and isinstance(_error(future), WorkerLost):
                    suspects.append(item)
                    future.release()
                else:
                    done.append((future, item))
            ready = _released(client, done)
            if time.monotonic() - asked > _POLL_SECONDS:
                threads, asked = _threads(client), time.monotonic()
    except (ClosedClientError, FutureCancelledError, FuturesCancelledError, OSError) as error:
        raise FlareSegmentError("Dask's scheduler is gone; the same command goes on.") from error
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(futures.values()), force=True)
        if pending and client.cluster is not None:  # what still runs would write where the caller cleans up
            end_at_once(client.cluster)


def _carrier(function: Callable[..., Any], more: tuple[Any, ...]) -> Callable[[bytes], Any]:
    """What Dask is given: it goes over by value and its items are bytes, for the scheduler of a cluster that somebody
    else started looks into what it hands out, and cannot import this project.
    """
    known = pickle.dumps((function, more))

    def work(item: bytes) -> Any:
        import pickle

        function, more = pickle.loads(known)
        return function(pickle.loads(item), *more)

    return work


def _next(finished: queue.SimpleQueue[Any]) -> list[Any]:
    """What is finished, at least one if one is within some seconds."""
    done = []
    with contextlib.suppress(queue.Empty):
        done.append(finished.get(timeout=_POLL_SECONDS))
        while True:
            done.append(finished.get_nowait())
    return done


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


def _released(client: Client, done: Sequence[tuple[Any, Item]]) -> list[Outcome[Item]]:
    """The outcomes of futures that are done, fetched before their workers get another case that may kill them, and
    released at once: what Dask still holds when its worker is killed would be worked on again.
    """
    whole = [future for future, _ in done if future.status == "finished"]
    try:
        values = dict(zip([future.key for future in whole], client.gather(whole))) if whole else {}
    except Exception:  # noqa: BLE001  the worker of one of them has gone since: they are looked at one by one
        values = {}
    found = []
    for future, item in done:
        if future.key in values:
            found.append(Outcome(item, values[future.key]))
        else:
            error = _error(future)
            found.append(Outcome(item, future.result() if error is None else None, error))
        future.release()
    return found


def _error(future: Any) -> Exception | None:
    """What a future that is done raised. Raises FutureCancelledError where its scheduler is gone."""
    from distributed.scheduler import KilledWorker

    if future.status == "cancelled":
        future.result()
    if future.status != "error":
        return None
    error = future.exception()
    if isinstance(error, KilledWorker):
        times = error.allowed_failures + 1
        return WorkerLost(
            f"the process that worked on it was ended {times} times, by a crash or because memory did not suffice "
            "(--memory-limit)"
        )
    return error
