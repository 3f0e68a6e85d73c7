"""One function on many cases, each on whichever worker is free."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from FlareSegmentLib.errors import FlareSegmentError

if TYPE_CHECKING:
    from distributed import Client

Item = TypeVar("Item")
_POLL_SECONDS = 2.0


class WorkerLost(FlareSegmentError):
    """The processes that worked on a case ended one after the other."""


@dataclass(frozen=True)
class Outcome(Generic[Item]):
    """What became of a case: the function's `value`, or the `error` that it raised."""

    item: Item
    value: Any = None
    error: Exception | None = None


def outcomes(
    client: Client, function: Callable[..., Any], items: Iterable[Item], *more: Any
) -> Iterator[Outcome[Item]]:
    """Yield what `function(item, *more)` returned or raised for each item, in the order in which they are finished.

    Never more cases are with Dask than its workers have threads: items are taken from the iterable as they are needed,
    and a process that is killed costs just its case. Dask tries that one again on another worker.

    Args:
        more: further arguments, the same for all.

    Raises:
        FlareSegmentError: the scheduler is gone, or no worker will ever come.
    """
    from distributed import wait
    from distributed.client import FutureCancelledError

    waiting = iter(items)
    pending: dict[Any, Item] = {}
    numbers = itertools.count()
    threads, asked = _threads(client), time.monotonic()
    try:
        while True:
            for item in itertools.islice(waiting, max(0, max(1, threads) - len(pending))):
                key = f"{function.__name__}-{id(waiting):x}-{next(numbers)}"
                pending[client.submit(function, item, *more, key=key, pure=False)] = item
            if not pending:
                return
            _check(client, threads)
            with contextlib.suppress(TimeoutError):
                done = wait(list(pending), timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED").done
                # Released at once: what Dask still holds when its worker is killed would be worked on again.
                finished = [_released(future, pending.pop(future)) for future in done]
                yield from finished
            if time.monotonic() - asked > _POLL_SECONDS:
                threads, asked = _threads(client), time.monotonic()
    except (FutureCancelledError, OSError) as error:
        raise FlareSegmentError("Dask's scheduler is gone; the same command goes on.") from error
    finally:
        with contextlib.suppress(Exception):  # the scheduler may be gone
            client.cancel(list(pending), force=True)


def _check(client: Client, threads: int) -> None:
    """Raise FlareSegmentError where there is no worker and none will come."""
    problem = getattr(client.cluster, "flaresegment_problem", None)
    if not threads and problem is not None and problem():
        raise FlareSegmentError(problem())


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
