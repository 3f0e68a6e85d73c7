"""What `flare.py segment` costs beside its network, paired with an earlier commit: `python3 flare.py bench command`.

Both versions run in turns, as a user runs them, on three CTs: the phantom, a CT of 512x512x90 voxels of 1.6 mm slices
(ircad01 interpolated), and c3l00189 (512x512x35, 5 mm). The earlier version is checked out into a temporary folder. The
first run of each writes Python's compiled files and is not counted. Wall seconds are those of a quiet machine only;
processor seconds (user and system, of all processes) hardly depend on others. FLARE_DATA names the folder of the CTs;
without it the phantom alone is measured. Linux and macOS, about 4 minutes on 2 quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import SimpleITK as sitk
from measuring import Row, report

from FlareSegmentLib.inference.compute_devices import has_fast_bfloat16

ROOT = Path(__file__).resolve().parents[2]
BEFORE = "0eb06be"
ENGINE = ("preprocess", "network", "postprocess")


@dataclass
class Run:
    """One run of a program: wall and processor seconds, peak memory (MiB), and the JSON objects it printed."""

    wall: float
    processor: float
    peak_mib: float
    results: list[dict]

    @property
    def engine(self) -> float:
        """Seconds of the engine, of all CTs."""
        return sum(result["seconds"][step] for result in self.results for step in ENGINE)


def run(command: Sequence[object], tree: Path) -> Run:
    """Run a program of a working tree to its end."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"PYTHONPATH": str(tree / "Testing"), "QT_QPA_PLATFORM": "offscreen"}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen([str(word) for word in command], stdout=output, env=environment, cwd=tree)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        lines = output.read().splitlines()
    if process.returncode:
        raise SystemExit(f"{command} ended with status {process.returncode}")
    peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
    return Run(wall, usage.ru_utime + usage.ru_stime, peak, [json.loads(line) for line in lines if line[:1] == "{"])


def segment(tree: Path, cts: Sequence[Path], output: Path) -> Run:
    """`segment.py` of a working tree, in the embedded Slicer."""
    folder = tree / "FlareSegment"
    script = next(path for path in (folder / "Scripts" / "segment.py", folder / "segment.py") if path.is_file())
    command = [sys.executable, "-m", "slicerhost", "--no-main-window", "--python-script", script, "--ignore-rest"]
    return run([*command, *cts, "--output", output, "--json"], tree)


@contextlib.contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """A working tree of a commit in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="before-") as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def scans(data: Path | None, folder: Path) -> dict[str, list[Path]]:
    """{name: the CT as the command takes it}."""
    found: dict[str, list[Path]] = {"phantom": []}
    if data is None:
        print("FLARE_DATA names no folder: the phantom only.")
        return found
    fine = folder / "fine.nii.gz"
    source = sitk.ReadImage(str(data / "train" / "ircad01_ct.nii.gz"))
    middle = source.TransformContinuousIndexToPhysicalPoint([n / 2 for n in source.GetSize()])
    spacing, size = (0.75, 0.75, 1.6), (512, 512, 90)
    origin = [place - step * (n - 1) / 2 for place, step, n in zip(middle, spacing, size)]
    grid = (size, sitk.Transform(), sitk.sitkLinear, origin, spacing, source.GetDirection(), -1024)
    sitk.WriteImage(sitk.Resample(source, *grid), str(fine))
    return found | {"512x512x90, 1.6 mm": [fine], "512x512x35, 5 mm": [data / "val" / "c3l00189_ct.nii.gz"]}


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("FLARE_DATA"), help="default: FLARE_DATA")
    parser.add_argument("--before", default=BEFORE, metavar="COMMIT", help=f"what to compare with (default: {BEFORE})")
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="counted runs of each (default: 3)")
    options = parser.parse_args()
    torch_walls: list[float] = []
    runs: dict[str, dict[str, list[Run]]] = {}
    together: list[Run] = []
    with tempfile.TemporaryDirectory() as temporary, checkout(options.before) as before:
        output = Path(temporary) / "output"
        cts = scans(Path(options.data) if options.data else None, Path(temporary))
        trees = {"before": before, "now": ROOT}
        for tree in trees.values():
            segment(tree, [], output)
        for number in range(options.runs):
            torch_walls.append(run([sys.executable, "-c", "import torch"], ROOT).wall)
            for name, ct in cts.items():
                for side in trees if number % 2 == 0 else reversed(trees):
                    one = segment(trees[side], ct, output)
                    runs.setdefault(name, {}).setdefault(side, []).append(one)
                    print(
                        f"run {number + 1}, {name}, {side}: {one.wall:.2f} s, processor {one.processor:.2f} s, "
                        f"engine {one.engine:.2f} s, {one.peak_mib:.0f} MiB",
                        file=sys.stderr,
                        flush=True,
                    )
            if len(cts) > 1:
                several = [ct[0] for ct in cts.values() if ct]
                together.append(segment(ROOT, [*several, _copy(several[-1], Path(temporary))], output))
    report("command", _rows(runs, together, torch_walls), [f"Before: commit {options.before}."])


def _copy(ct: Path, folder: Path) -> Path:
    copy = folder / f"again{''.join(ct.suffixes)}"
    if not copy.exists():
        copy.write_bytes(ct.read_bytes())
    return copy


def _rows(runs: dict[str, dict[str, list[Run]]], together: Sequence[Run], torch_walls: Sequence[float]) -> list[Row]:
    """The table: each CT before and now, the ratios, and three CTs in one call."""
    most = 0.55 if has_fast_bfloat16() else 0.7
    torch_wall = statistics.median(torch_walls)
    rows = [Row('python -c "import torch"', "s", torch_walls)]
    for name, sides in runs.items():
        for side, of in sides.items():
            rows.append(Row(f"{name}, {side}: wall", "s", [one.wall for one in of]))
            rows.append(Row(f"{name}, {side}: processor", "s", [one.processor for one in of]))
            for step in of[0].results[0]["seconds"]:
                rows.append(Row(f"  {step}", "s", [one.results[0]["seconds"][step] for one in of]))
            rows.append(Row(f"{name}, {side}: peak memory", "MiB", [one.peak_mib for one in of]))
        pairs = list(zip(sides["before"], sides["now"], strict=True))
        ratios = [now.wall / before.wall for before, now in pairs]
        rows.append(Row(f"{name}: now / before, wall", "times", ratios, at_most=most))
        rows.append(Row(f"{name}: now / before, processor", "times", [n.processor / b.processor for b, n in pairs]))
        memory = [now.peak_mib / before.peak_mib for before, now in pairs]
        rows.append(Row(f"{name}: now / before, peak memory", "times", memory, at_most=1.0))
        beside = [(one.wall - one.engine) / torch_wall for one in sides["now"]]
        rows.append(Row(f"{name}: wall beyond the engine / torch's import", "times", beside, at_most=2.2))
    if together:
        rows.append(Row("three CTs in one call: wall", "s", [one.wall for one in together]))
        shares = [one.wall / one.engine for one in together]
        rows.append(Row("three CTs in one call: wall / engine", "times", shares, at_most=1.3))
        shares = [sum(result["seconds"]["total"] for result in one.results[1:]) for one in together]
        engines = [sum(result["seconds"][step] for result in one.results[1:] for step in ENGINE) for one in together]
        later = [share / engine for share, engine in zip(shares, engines, strict=True)]
        rows.append(Row("  each after the first: its seconds / engine", "times", later))
    return rows


if __name__ == "__main__":
    main()
