"""One panel, many segmentations: memory, open files, shared blocks, temporary files and nodes stay as they are.

FLARE_LEAKS sets how many (default 24; 200 take two minutes). An allocator may take another piece of memory now and then
and keep it; what leaks grows with every run, so the median growth from run to run tells the two apart.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from test_panel_model import panel, show, untrained_model  # noqa: F401  fixtures
from test_panel_worker import shared_files

RUNS = max(12, int(os.environ.get("FLARE_LEAKS", "24")))
SPARE_MIB = 128.0
GROWTH_MIB = 0.25
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counted in Linux's /proc")


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def temporary_files() -> int:
    """What of this program lies in the folders for temporary files, except that of other processes that run beside."""
    folders = {Path(tempfile.gettempdir()), Path("/dev/shm")}
    names = [path.name for folder in folders if folder.is_dir() for path in folder.glob("*flaresegment*")]
    owners = [re.match(r"\.flaresegment-.*?-(\d+)-", name) for name in names]
    return sum(owner is None or int(owner[1]) == os.getpid() for owner in owners)


def test_many_segmentations_in_one_panel(panel, untrained_model, figures) -> None:  # noqa: F811
    import slicer

    rng = np.random.default_rng(0)
    ct = slicer.util.addVolumeFromArray(rng.normal(20, 150, (24, 40, 40)).astype(np.int16))
    ct.SetSpacing(5.0, 5.0, 6.0)
    show(ct)
    panel.ui.inputSelector.setCurrentNode(ct)
    counts: list[dict[str, float]] = []
    for _ in range(RUNS):
        panel.use(untrained_model)
        panel.click(panel.ui.segmentButton)
        panel.until(lambda: not panel.logic.isRunning, seconds=300)
        assert panel.message.startswith("Done"), panel.message
        panel.app.processEvents()
        worker = worker_pid()
        counts.append(
            {
                "memory of the panel's process (MiB)": resident_mib(os.getpid()),
                "memory of the worker (MiB)": resident_mib(worker),
                "open files of the panel's process": open_files(os.getpid()),
                "open files of the worker": open_files(worker),
                "shared blocks": len(shared_files()),
                "temporary files": temporary_files(),
                "nodes": slicer.mrmlScene.GetNumberOfNodes(),
            }
        )
    settled, last = counts[RUNS // 4], counts[-1]
    for what in settled:
        memory = "memory" in what
        if memory:
            growth = np.median(np.diff([count[what] for count in counts[RUNS // 4 :]]))
            assert growth <= GROWTH_MIB, f"{what}: {growth:.2f} more in each run"
        spare = SPARE_MIB if memory else 0
        assert last[what] <= settled[what] + spare, f"{what}: {settled[what]:.0f} -> {last[what]:.0f}"
    figures[f"{RUNS} segmentations in one panel"] = ", ".join(
        f"{what} {settled[what]:.0f} -> {last[what]:.0f}" for what in settled
    )


def worker_pid() -> int:
    """The one child process that runs the worker."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    workers = [int(pid) for pid in children if b"worker_entry.py" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert len(workers) == 1, workers
    return workers[0]
