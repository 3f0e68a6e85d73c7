"""Seconds of every step from a CT file to a label file, with the bundled model: `python3 flare.py bench pipeline`.

The CT is the phantom's body on 512x512x200 voxels of 0.8 x 0.8 x 1.25 mm, in a compressed NIfTI file. The first run
(warm-up) is not counted.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from measuring import RUNS, Row, ct, file_of, matrix_gflops, report, timed, told

from FlareSegmentLib.files.image_io import read_volume, write_labels
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model


def one_run(path: Path, segmenter: Segmenter) -> dict[str, float]:
    """Seconds of each step of one CT."""
    load, (volume, _) = timed(lambda: read_volume(path))
    whole, segmentation = timed(lambda: segmenter.segment(volume))
    write, _ = timed(lambda: write_labels(path.with_name("labels.nii.gz"), segmentation.labels, volume))
    return {"read the CT": load, **segmentation.seconds, "write the labels": write, "total": load + whole + write}


def main() -> None:
    """Measure, print and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        path = file_of(ct(200, 1.25)[0], Path(folder) / "ct.nii.gz")
        loading, model = timed(lambda: load_model(bundled_model_folder()))
        segmenter = Segmenter(model)
        before = matrix_gflops()
        runs = [one_run(path, segmenter) for _ in told(RUNS + 1, "run")][1:]
        after = matrix_gflops()
    rows = [Row("load the model", "s", [loading])]
    rows += [Row(step, "s", [run[step] for run in runs]) for step in runs[0]]
    where = f"{segmenter.name} on {segmenter.device}"
    report("pipeline", rows, [f"{where}; matrix product: {before:.0f} GFLOP/s before, {after:.0f} after"])


if __name__ == "__main__":
    main()
