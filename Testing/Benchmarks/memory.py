"""Peak memory of `segment.py` as a user runs it, by the size of the CT: `python3 flare.py bench memory`.

The phantom's body on 512x512 voxels and 200, 600 and 1000 slices of 1.25 mm, from an uncompressed NIfTI file to the
five files of results. What grows must be the CT and its labels, nothing else. Linux and macOS; needs no quiet machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import Row, ct, file_of, report

ROOT = Path(__file__).resolve().parents[2]
SLICES = (200, 600, 1000)


def peak_mib(path: Path, output: Path) -> float:
    """Peak resident memory of a process that segments the file, MiB."""
    command = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script"]
    command += [str(ROOT / "FlareSegment" / "Scripts" / "segment.py"), str(path), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"segment.py ended with status {process.returncode} on {path}")
    return usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)


def main() -> None:
    """Measure, print and write the table."""
    peaks = {}
    with tempfile.TemporaryDirectory() as folder:
        for slices in SLICES:
            path = file_of(ct(slices, 1.25)[0], Path(folder) / f"ct{slices}.nii")
            peaks[slices] = peak_mib(path, Path(folder) / "output")
            path.unlink()
            print(f"{slices} slices: {peaks[slices]:.0f} MiB", file=sys.stderr, flush=True)
    rows = [
        Row(f"segment.py, 512x512x{slices}", "MiB", [peak], at_most=1.2 * 1024 if slices == SLICES[0] else None)
        for slices, peak in peaks.items()
    ]
    for slices in SLICES[1:]:
        voxels = (slices - SLICES[0]) * 512 * 512
        growth = (peaks[slices] - peaks[SLICES[0]]) * 1024**2 / voxels
        rows.append(Row(f"growth from {SLICES[0]} to {slices} slices", "B/voxel", [growth], at_most=3.0))
    report("memory", rows)


if __name__ == "__main__":
    main()
