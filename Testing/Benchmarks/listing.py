"""Seconds to list thousands of cases: `python3 flare.py bench listing`.

Cases are small (96x96x40 voxels, as cut and resampled data sets have), all of one size and spacing, so that every scan
has to be read to know that none is another's twin: the slowest case. They are written first, in three layouts, beside
the temporary files. FLARE_BENCH_CASES changes their number (default 5000).
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK
from measuring import Row, report

from FlareSegmentTrainingLib.datasets.cases import find_cases, label_maps_in_use
from FlareSegmentTrainingLib.datasets.scan_identity import MEMORY_FILE, without_twins

CASES = int(os.environ.get("FLARE_BENCH_CASES", "5000"))
SHAPE = (40, 96, 96)
NAMES = ("liver", "right kidney", "left kidney", "spleen")
BOUND_SECONDS = 60.0


def write(place: Path, array: np.ndarray, names: bool = False) -> None:
    """A volume; with the header of Slicer's segmentations."""
    place.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((4.0, 4.0, 5.0))
    for number, name in enumerate(NAMES if names else ()):
        for field, value in (("Name", name), ("LabelValue", str(number + 1)), ("Layer", "0")):
            image.SetMetaData(f"Segment{number}_{field}", value)
    SimpleITK.WriteImage(image, str(place), True)


def write_cases(folder: Path) -> None:
    """nnU-Net's layout, segmentations of Slicer, and TotalSegmentator's, a third of the cases each."""
    labels = np.zeros(SHAPE, np.uint8)
    for value, x in enumerate((20, 35, 55, 70), start=1):
        labels[10:30, 40:60, x : x + 10] = value
    ct = np.full(SHAPE, -1000, np.int16)
    ct[:, 20:76, 10:86] = np.arange(76, dtype=np.int16)
    for number in range(CASES):
        ct[0, 0, 0] = -1000 + number // 2000
        ct[1, 30, 30] = number % 2000
        name = f"c{number:05d}"
        if number % 3 == 0:
            write(folder / f"nnunet/imagesTr/{name}_0000.nii.gz", ct)
            write(folder / f"nnunet/labelsTr/{name}.nii.gz", labels)
        elif number % 3 == 1:
            write(folder / f"slicer/images/{name}.nrrd", ct)
            write(folder / f"slicer/labels/{name}.seg.nrrd", labels, names=True)
        else:
            write(folder / f"masks/{name}/ct.nii.gz", ct)
            for value, organ in enumerate(("liver", "kidney_right", "kidney_left", "spleen"), start=1):
                write(folder / f"masks/{name}/segmentations/{organ}.nii.gz", (labels == value).astype(np.uint8))
    names = {"background": 0, **{name: value for value, name in enumerate(NAMES, start=1)}}
    (folder / "nnunet/dataset.json").write_text(json.dumps({"channel_names": {"0": "CT"}, "labels": names}))


def main() -> None:
    """Measure and report."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        print(f"Writing {CASES} cases", flush=True)
        write_cases(folder)
        locations = [folder / name for name in ("nnunet", "slicer", "masks")]
        rows = []
        start = time.perf_counter()
        cases = find_cases(locations, say=lambda line: None)
        label_maps_in_use(cases, locations)
        rows.append(Row(f"{len(cases)} cases found, their values explained", "s", [time.perf_counter() - start]))
        kept = without_twins(cases, print, folder / MEMORY_FILE)
        first = time.perf_counter() - start
        assert len(kept) == CASES
        rows.append(Row("the same, and no scan is another's twin (all read)", "s", [first], at_most=BOUND_SECONDS))
        start = time.perf_counter()
        without_twins(find_cases(locations, say=lambda line: None), print, folder / MEMORY_FILE)
        rows.append(Row("the same again (remembered)", "s", [time.perf_counter() - start]))
    report("listing", rows)


if __name__ == "__main__":
    main()
