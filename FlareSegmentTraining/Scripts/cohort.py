"""Segment thousands of CTs, in Slicer or with Python alone:

    Slicer --no-main-window --python-script Scripts/cohort.py FOLDER|LIST --output DIR

FOLDER is a tree of NIfTI, NRRD, MetaImage and DICOM files, of which every CT series is taken; LIST is a CSV or JSON
list with a column image and, where wanted, case, labels and label_map. In DIR appear a label map of each CT, organs.csv
and organs.parquet with a row for each organ, failed.csv with the reason of each CT that could not be done, and
report.html. The same command goes on where it stopped, and does again only what was changed. Dask gives the CTs to
worker processes of this computer, of a cluster that runs (--scheduler) or of a batch system's jobs (--cluster).

Exit status: 0 done; 2 bad input or usage, also where some CTs failed, with one line on standard error; 1 anything else,
also in one line (the environment variable FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script
raises, so every way out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().with_name("find_libraries.py")))

from FlareSegmentLib import command_line  # noqa: E402


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    from FlareSegmentLib.organs import LABEL_TABLES
    from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS
    from FlareSegmentTrainingLib.scheduling.options import add_arguments, check_arguments

    parser = command_line.ArgumentParser(
        prog="cohort.py", description="Segment liver, kidneys and spleen in thousands of CTs; stopped runs go on."
    )
    parser.add_argument("source", type=Path, metavar="FOLDER|LIST", help="folder tree of CTs, or a CSV or JSON list")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the results")
    parser.add_argument("--model", type=Path, metavar="FOLDER", help="model folder (default: the bundled model)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where the network runs"
    )
    parser.add_argument(
        "--label-ids", choices=tuple(LABEL_TABLES), default="flaresegment", help="values of the written label maps"
    )
    parser.add_argument(
        "--label-map",
        metavar="MAP",
        help=f"meaning of the reference labels' values where nothing says it: {', '.join(LABEL_MAPS)}, a JSON file, or "
        "1=liver,2=other",
    )
    parser.add_argument("--segmentations", action="store_true", help="also a .seg.nrrd file of each CT")
    parser.add_argument("--dicom", action="store_true", help="also a DICOM Segmentation of each DICOM series")
    parser.add_argument("--pictures", action="store_true", help="also a picture of each CT's slices")
    parser.add_argument("--retry-failed", action="store_true", help="try those again that failed in an earlier run")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    check_arguments(options)
    return options


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""

    def work() -> None:
        from FlareSegmentCohortLib.command import run_cohort

        options = parse_arguments(arguments)
        result, failure = run_cohort(options, command_line.say)
        if options.json:
            command_line.say(json.dumps(result, allow_nan=False))
        if failure is not None:
            raise failure

    return command_line.run(work)


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
