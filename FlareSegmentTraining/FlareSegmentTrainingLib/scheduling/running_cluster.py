"""A Dask cluster that somebody else started, for its scheduler's address."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from FlareSegmentLib.errors import InputError

if TYPE_CHECKING:
    from distributed import Client

_SECONDS_TO_CONNECT = 15
_ALIKE = ("dask", "distributed")
_NEEDED = ("torch", "SimpleITK", "scipy")


@contextlib.contextmanager
def join(address: str, folders: list[str], say: Callable[[str], None]) -> Iterator[Client]:
    """Yield a client of a running cluster, whose workers find this project in `folders`; workers that join later too.

    Raises:
        InputError: the scheduler cannot be reached, it or a worker runs other versions, or a worker lacks the folders.
    """
    from distributed import Client

    try:
        client = Client(address, timeout=_SECONDS_TO_CONNECT)
    except (OSError, ValueError) as error:
        raise InputError(
            f"No Dask scheduler answers at {address}: check the address, and that it runs and is not behind a firewall."
        ) from error
    try:
        _compare_versions(client, address)
        try:
            client.register_plugin(_paths_plugin(folders), name="flaresegment-paths")
        except FileNotFoundError as error:
            raise InputError(str(error)) from error
        threads = client.nthreads()
        workers = f"{len(threads)} worker{'' if len(threads) == 1 else 's'}"
        say(f"{workers} of the Dask cluster at {address}" + ("." if threads else "; waiting for some to join."))
        yield client
    finally:
        with contextlib.suppress(Exception):  # it may be gone
            client.close(timeout=5)


def _compare_versions(client: Client, address: str) -> None:
    """Raise InputError where one line says which versions must be made the same."""
    try:
        found: Any = client.get_versions(packages=list(_NEEDED))
    except (OSError, ValueError) as error:
        raise InputError(f"{address} does not speak as this Dask does: use the same version there.") from error
    here = found["client"]
    places = {"its scheduler": found["scheduler"]}
    places.update({f"its worker {worker}": facts for worker, facts in found["workers"].items()})
    for place, facts in places.items():
        if not isinstance(facts, dict) or facts.get("packages") is None:
            continue  # it left meanwhile
        ours, theirs = _python(here), _python(facts)
        if ours != theirs:
            raise InputError(f"{address}: {place} runs Python {theirs}, this command {ours}; use the same.")
        for name in _ALIKE:
            version = facts["packages"].get(name)
            if version != here["packages"][name]:
                own = here["packages"][name]
                raise InputError(f"{address}: {place} runs {name} {version}, this command {own}; install the same.")
        missing = [name for name in _NEEDED if not facts["packages"].get(name)]
        if missing and facts is not found["scheduler"]:
            raise InputError(f"{address}: {place} has no {', '.join(missing)}; install it there.")


def _python(facts: dict) -> str:
    return ".".join(facts["host"]["python"].split(".")[:2])


def _paths_plugin(folders: list[str]) -> Any:
    """What each worker runs first. The class goes over by value, for a worker cannot import this project yet."""
    from distributed import WorkerPlugin

    class Paths(WorkerPlugin):
        def setup(self, worker: object) -> None:
            import os

            missing = [folder for folder in folders if not os.path.isdir(folder)]
            if missing:
                raise FileNotFoundError(
                    f"The worker {getattr(worker, 'address', '')} does not see {missing[0]}: FlareSegment must lie in "
                    "the same folder on every computer."
                )
            sys.path[:0] = [folder for folder in folders if folder not in sys.path]

    return Paths()
