"""What the benchmarks of cohorts share: CTs, commands that run and are killed, what lies in their folders."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.volume import Volume
from measuring import file_of

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "FlareSegmentTraining" / "Scripts" / "cohort.py"
SEGMENT = ROOT / "FlareSegment" / "Scripts" / "segment.py"
STAND_INS = ROOT / "Testing" / "Python" / "helpers"


def write_cts(folder: Path, count: int, data: Path, small: bool = False) -> Path:
    """Copies and crops of the real CTs of `data`: each is a file with other voxels than the others.

    small: crops to 150 mm of height, at every second voxel, so that one takes a second.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = sorted([*data.glob("val/*_ct.nii.gz"), *data.glob("train/*_ct.nii.gz")])
    for number in range(count):
        source = sources[number % len(sources)]
        target = folder / f"ct{number:03}.nii.gz"
        if target.exists():
            continue
        turn = number // len(sources)
        if turn == 0 and not small:
            shutil.copyfile(source, target)
            continue
        volume, _ = read_volume(source)
        file_of(_cropped(volume, turn, small), target)
    return folder


def _cropped(volume: Volume, turn: int, small: bool) -> Volume:
    """Without some slices at one end (another number in each turn)."""
    height = max(8, len(volume.array) - 3 * turn)
    if small:
        height = min(height, max(8, round(150 / volume.spacing[2])))
    start = (len(volume.array) - height) // 2 if small else 0
    part = volume.array[start : start + height]
    origin = volume.affine_lps @ [0, 0, start, 1]
    cut = replace(volume, array=np.ascontiguousarray(part), origin=tuple(origin[:3]))
    if not small:
        return cut
    thin = np.ascontiguousarray(cut.array[:, ::2, ::2])
    return replace(cut, array=thin, spacing=(2 * cut.spacing[0], 2 * cut.spacing[1], cut.spacing[2]))


def command(source: Path, output: Path, *more: object) -> list[str]:
    """The cohort's command."""
    return [sys.executable, str(SCRIPT), str(source), "--output", str(output), *map(str, more)]


def start(words: Sequence[str], **variables: str) -> subprocess.Popen:
    """Start a command that says nothing."""
    environment = {**os.environ, **variables}
    return subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def run(words: Sequence[str], **variables: str) -> tuple[float, dict[str, Any], str]:
    """Run a command to its end: seconds, what --json printed (empty without it), standard error."""
    begun = time.perf_counter()
    process = start(words, **variables)
    output, errors = process.communicate()
    seconds = time.perf_counter() - begun
    last = output.strip().splitlines()[-1] if output.strip() else ""
    return seconds, json.loads(last) if last.startswith("{") else {}, errors


def workers_of(pid: int) -> list[int]:
    """The worker processes that a command has started, or that were forked from the process that it has for this."""
    children: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
    for entry in Path("/proc").iterdir():
        try:
            facts = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            children[int(facts[1])].append((int(entry.name), (entry / "cmdline").read_bytes()))
        except (OSError, ValueError):
            continue
    found = []
    for child, words in children[pid]:
        if b"forkserver" in words:
            found += [worker for worker, _ in children[child]]
        elif b"spawn_main" in words:
            found.append(child)
    return found


def records(output: Path) -> dict[str, dict[str, Any]]:
    """The records of a cohort's cases, as far as they can be read while it runs."""
    found = {}
    for file in output.glob("cases/**/*.json"):
        try:
            found[file.stem] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return found


def table(file: Path) -> list[dict[str, str]]:
    """A table without what differs from run to run: seconds."""
    with open(file, newline="", encoding="utf-8") as stream:
        return [
            {name: value for name, value in row.items() if not name.endswith("_s")} for row in csv.DictReader(stream)
        ]
