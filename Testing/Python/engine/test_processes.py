"""Who still runs, what the dead left behind, and that no clock decides about either."""

from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from FlareSegmentLib import processes
from FlareSegmentLib.processes import (
    DEAD_AFTER_SECONDS,
    LOWEST_PRIORITY,
    identity,
    is_running,
    private_folder,
    remove_abandoned,
)
from FlareSegmentTrainingLib.runs.watched_folder import ProgressReporter
from FlareSegmentTrainingLib.training.run_folder import RunFolder

YEAR = 365 * 86400


@pytest.fixture
def living() -> Iterator[int]:
    """The number of another process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_who_runs(living: int, dead: int) -> None:
    assert is_running(os.getpid()) and is_running(living)
    assert not is_running(dead)
    assert not is_running(10**12)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_process_of_somebody_else_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_pid: int, _signal: int) -> None:
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    assert is_running(1234)


def test_a_number_that_is_given_again_is_another_process(living: int, dead: int) -> None:
    assert identity(dead) is None
    if sys.platform == "linux":
        assert identity(living) == identity(living) != identity(os.getpid())


# Folders ------------------------------------------------------------------------------------------


def test_only_folders_of_the_dead_are_removed(tmp_path: Path, living: int, dead: int) -> None:
    kept = [f"own-{living}-a", f"own-{os.getpid()}-b", "own-notes-c", f"own-{dead}", f"own-{dead}x-d", f"no-{dead}-e"]
    for name in [*kept, f"own-{dead}-f", f"own-{dead}-g"]:
        (tmp_path / name / "deeper").mkdir(parents=True)
        (tmp_path / name / "deeper" / "file").write_text("x")
    remove_abandoned(tmp_path, "own-")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_link_of_such_a_name_leads_to_no_harm(tmp_path: Path, dead: int) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("all of it")
    (tmp_path / f"own-{dead}-x").symlink_to(tmp_path / "precious")
    (tmp_path / f"own-{dead}-y").mkdir()
    (tmp_path / f"own-{dead}-y" / "link").symlink_to(tmp_path / "precious")
    remove_abandoned(tmp_path, "own-")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "all of it"
    assert not (tmp_path / f"own-{dead}-y").exists()


def test_a_folder_that_is_not_there_or_not_ours_is_left(tmp_path: Path) -> None:
    remove_abandoned(tmp_path / "nowhere", "own-")
    (tmp_path / "file").write_text("x")
    remove_abandoned(tmp_path / "file", "own-")
    assert (tmp_path / "file").read_text() == "x"


def test_a_private_folder_is_private_and_goes(tmp_path: Path) -> None:
    with private_folder(tmp_path) as name:
        assert Path(name).parent == tmp_path
        if os.name == "posix":
            assert os.stat(name).st_mode & 0o077 == 0
        with private_folder(tmp_path) as second:  # of the same process: not taken for abandoned
            assert Path(name).is_dir() and second != name
    assert not list(tmp_path.iterdir())


def test_each_computer_removes_only_its_own(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder on a network: the number of a process means nothing on another computer."""
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "ward-7[a]")
    mine = tmp_path / f".flaresegment-ward_7_a_-{dead}-x"
    others = tmp_path / f".flaresegment-ward_8-{dead}-x"
    mine.mkdir()
    others.mkdir()
    with private_folder(tmp_path) as name:
        assert Path(name).name.startswith(f".flaresegment-ward_7_a_-{os.getpid()}-")
        assert not mine.exists() and others.exists()


def test_a_folder_that_takes_nothing_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        private_folder(tmp_path / "nowhere")


# Clocks -------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def report(run: RunFolder, age: float = 0.0, **content: object) -> str:
    """What is said of a run whose last report is so many seconds old by the clock."""
    run.write_json("progress.json", {"state": "running", "host": socket.gethostname(), **content})
    then = time.time() - age
    os.utime(run.progress_file, (then, then))
    return run.progress()["state"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart by Linux's /proc")
@pytest.mark.parametrize("age", [-YEAR, -DEAD_AFTER_SECONDS, 0, DEAD_AFTER_SECONDS + 5, YEAR])
def test_a_training_on_this_computer_is_alive_or_not_whatever_the_clock_says(
    run: RunFolder, living: int, dead: int, age: float
) -> None:
    assert report(run, age, pid=living, process=identity(living)) == "running"
    assert report(run, age, pid=dead, process="some system 123") == "lost"
    assert report(run, age, pid=living, process="before the restart 123") == "lost"


@pytest.mark.parametrize(("age", "state"), [(0, "running"), (DEAD_AFTER_SECONDS - 5, "running"), (YEAR, "lost")])
def test_a_training_on_another_computer_is_known_by_its_reports_alone(
    run: RunFolder, dead: int, age: float, state: str
) -> None:
    assert report(run, age, pid=dead, host="another computer") == state
    assert report(run, age, pid=os.getpid(), process="another", host="another computer") == state


def test_reports_without_a_number_are_judged_by_their_age(run: RunFolder) -> None:
    assert report(run) == report(run, pid="12") == "running"
    assert report(run, YEAR, pid=None) == "lost"


@pytest.mark.parametrize("jump", [-YEAR, YEAR])
def test_a_training_whose_clock_jumps_stays_running(
    run: RunFolder, jump: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    heart = ProgressReporter(run)
    heart.begin()
    try:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump)
        heart.update(message="Step 2")
        if sys.platform == "linux" or jump < 0:
            assert run.is_running()
    finally:
        heart.end("finished", "Done")
    assert run.progress()["state"] == "finished"


def test_nothing_is_measured_with_a_clock_that_can_be_set(repository: Path) -> None:
    """Durations and deadlines take time.monotonic or perf_counter. The age of another computer's report cannot, nor
    when each CT of a cohort was done, on whatever computer.
    """
    found = set()
    for folder in ("FlareSegment", "FlareSegmentTraining"):
        for path in sorted((repository / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    name = f"{node.value.id}.{node.attr}"
                    if name in ("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today"):
                        found.add(path.name)
    assert found == {"processes.py", "output_folder.py", "case_task.py"}


def priority_of(background: bool, before: str = "") -> list[int]:
    """What `set_priority` returned in a process of its own, its niceness then, and whether it leads a session."""
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(processes.__file__).parents[1])!r}); {before}\n"
        f"from FlareSegmentLib.processes import set_priority; told = set_priority({background})\n"
        "print(told, os.getpriority(os.PRIO_PROCESS, 0), int(os.getsid(0) == os.getpid()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(os.name != "posix", reason="niceness of POSIX")
def test_priority_is_what_was_asked_for_or_said_to_be_another() -> None:
    assert priority_of(True) == [LOWEST_PRIORITY, LOWEST_PRIORITY, 1]
    told, real, leads = priority_of(False, "os.nice(19)")
    assert told == real and leads == 1
    if os.geteuid() == 0 and may_lower_niceness():
        assert told == 0


@pytest.mark.skipif(os.name != "posix", reason="niceness of POSIX")
def test_a_priority_that_the_system_refuses_is_told() -> None:
    forbidden = "os.nice(19)\ndef refuse(*arguments): raise PermissionError\nos.setpriority = refuse\n"
    assert priority_of(False, forbidden)[:2] == [19, 19]


def may_lower_niceness() -> bool:
    done = subprocess.run([sys.executable, "-c", "import os; os.nice(1); os.nice(-1)"], capture_output=True)
    return done.returncode == 0
