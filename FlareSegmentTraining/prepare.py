"""Bring data sets into the project's plain layout, checked case by case, in Slicer or with Python alone:

    Slicer --no-main-window --python-script FlareSegmentTraining/prepare.py --data LOCATION [--data ...] --output DIR

LOCATION is FLARE22Train.zip or another .zip or .tar, a folder (Medical Segmentation Decathlon, nnU-Net raw, images/
with labels/, pairs <case>_ct and <case>_labels), a CSV or JSON list of pairs, or phantom:N. In DIR appear
<case>_ct.nii.gz, <case>_labels.nii.gz, labels.json, quality.json, report.csv and report.json; cases that cannot be
used are named with the reason and left out. A second run goes on.

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also in one line (the
environment variable FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way
out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
import traceback
from pathlib import Path

DONE, FAILED, BAD_INPUT = 0, 1, 2
_HERE = Path(__file__).resolve().parent
# Installed, both modules share one folder; in the source tree FlareSegment lies beside FlareSegmentTraining.
sys.path[:0] = [str(folder) for folder in (_HERE, _HERE.parent / "FlareSegment") if str(folder) not in sys.path]


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    from FlareSegmentLib.errors import InputError
    from FlareSegmentLib.organs import LABEL_TABLES
    from FlareSegmentTrainingLib.dataset_layouts import LAYOUTS
    from FlareSegmentTrainingLib.label_maps import LABEL_MAPS

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> None:
            raise InputError(f"{message} (see --help)")

    parser = Parser(
        prog="prepare.py", description="Check CTs with labels and bring them into one layout.", allow_abbrev=False
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="LOCATION",
        help="folder, archive, list or phantom:N; may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the converted cases")
    parser.add_argument(
        "--label-map",
        metavar="MAP",
        help="meaning of the label values where the data do not say it: "
        f"{', '.join(LABEL_MAPS)}, a JSON file, or 1=liver,2=other",
    )
    parser.add_argument(
        "--label-ids", choices=tuple(LABEL_TABLES), default="flaresegment", help="label values that are written"
    )
    parser.add_argument(
        "--organs",
        metavar="KEYS",
        help="organs to keep, as liver,spleen, or all (13); default: liver, both kidneys, spleen",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="take the data for this layout instead of finding it out")
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="regular expression with one group that finds the patient in a case's name; "
        "patients stay on one side of a split",
    )
    parser.add_argument(
        "--keep-names",
        action="store_true",
        help="keep names of cases and patients even where they might identify someone",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    options = parser.parse_args(arguments)
    if options.patient_pattern is not None:
        try:
            options.patient_pattern = re.compile(options.patient_pattern)
        except re.error as error:
            raise InputError(
                f"--patient-pattern {options.patient_pattern} is no regular expression: {error}."
            ) from error
        if options.patient_pattern.groups != 1:
            raise InputError("--patient-pattern needs exactly one group, as in (P\\d+)_.*")
    return options


def prepare(options: argparse.Namespace) -> dict:
    """Do everything that the command line asks for; returns what --json prints. Raises FlareSegmentError."""
    from FlareSegmentLib.errors import InputError
    from FlareSegmentLib.organs import FLARE22_ORGANS
    from FlareSegmentTrainingLib.cases import find_cases, organs_by_keys
    from FlareSegmentTrainingLib.conversion import Settings, convert_cases
    from FlareSegmentTrainingLib.label_maps import parse_label_map

    if options.organs == "all":
        organs = FLARE22_ORGANS
    else:
        organs = organs_by_keys(None if options.organs is None else [key.strip() for key in options.organs.split(",")])
    label_map = parse_label_map(options.label_map) if options.label_map else None
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"{options.output} is a file; name a folder with --output.")
    unpack_to = options.output / ".unpacked"
    left_out = []
    cases = find_cases(
        options.data,
        label_map=label_map,
        layout=options.layout,
        unpack_to=unpack_to,
        left_out=left_out.append,
        say=_say,
    )
    if options.patient_pattern is not None:
        cases = [_with_patient(case, options.patient_pattern) for case in cases]
    _say(f"{len(cases)} cases found" + (f", {len(left_out)} cannot be used" if left_out else ""))
    outcomes = convert_cases(
        cases, options.output, Settings(organs, options.label_ids, options.keep_names), left_out, _say
    )
    shutil.rmtree(unpack_to, ignore_errors=True)
    counts = {
        result: sum(outcome.result == result for outcome in outcomes) for result in ("taken", "present", "left out")
    }
    _print_table(outcomes)
    _say(
        f"{counts['taken']} cases taken, {counts['present']} there already, {counts['left out']} left out: "
        f"{options.output}"
    )
    if not counts["taken"] + counts["present"]:
        raise InputError(f"None of the {len(outcomes)} cases can be used; the reasons stand above.")
    return {
        "output": str(options.output),
        "label_ids": options.label_ids,
        "organs": [organ.key for organ in organs],
        "taken": counts["taken"],
        "present": counts["present"],
        "left_out": counts["left out"],
        "cases": [dataclasses.asdict(outcome) for outcome in outcomes],
    }


def _with_patient(case, pattern: re.Pattern):
    match = pattern.search(case.name)
    return dataclasses.replace(case, patient=match.group(1)) if match and match.group(1) else case


def _print_table(outcomes: list) -> None:
    width = max((len(outcome.source) for outcome in outcomes), default=0)
    for outcome in sorted(outcomes, key=lambda outcome: outcome.result == "left out"):
        detail = outcome.reason
        if not detail:
            volumes = (f"{key} {volume:.0f}" for key, volume in outcome.facts["organs_ml"].items() if volume)
            detail = f"{outcome.name}: {', '.join(volumes)} ml"
        _say(f"{outcome.source:<{width}}  {outcome.result:<8}  {detail}")
        for warning in outcome.warnings:
            print(f"Warning: {outcome.source}: {' '.join(warning.split())}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""
    try:
        from FlareSegmentLib.errors import FlareSegmentError, InputError
    except ImportError as error:
        return _fail(FAILED, f"FlareSegment's engine is not installed beside this module ({error})")
    try:
        options = parse_arguments(arguments)
        result = prepare(options)
        if options.json:
            _say(json.dumps(result, allow_nan=False))
        return DONE
    except SystemExit as request:  # --help
        return int(request.code or 0)
    except InputError as error:
        return _fail(BAD_INPUT, error)
    except FlareSegmentError as error:
        return _fail(FAILED, error)
    except KeyboardInterrupt:
        return _fail(FAILED, "Stopped; the same command goes on.")
    except BaseException as error:  # noqa: BLE001  an exception that leaves the script would leave Slicer running
        return _fail(FAILED, f"Unexpected {type(error).__name__}: {error} (FLARESEGMENT_DEBUG=1 shows where)")


def _say(line: str) -> None:
    print(line, flush=True)


def _fail(status: int, message: object) -> int:
    if os.environ.get("FLARESEGMENT_DEBUG"):
        traceback.print_exc()
    print(f"Error: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    status = main(sys.argv[1:])
    slicer = sys.modules.get("slicer")
    if slicer is not None and getattr(slicer, "app", None) is not None:
        slicer.util.exit(status)
    sys.exit(status)
