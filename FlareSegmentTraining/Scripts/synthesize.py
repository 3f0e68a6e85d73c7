"""Make training cases that nobody scanned, in Slicer or with Python alone:

    Slicer --no-main-window --python-script synthesize.py deform --data DIR --shapes DIR --count N --output DIR
    Slicer --no-main-window --python-script synthesize.py draw --structures DIR [--shapes DIR] --count N --output DIR
    Slicer --no-main-window --python-script synthesize.py empty --count N --output DIR

deform  bends labeled CTs so that their organs take the shapes of label maps without images
draw    draws CTs from label maps of whole body parts (X.nii.gz with X_classes.tsv beside it)
empty   draws heads and limbs, in which none of the organs is

`train.py --data DIR` takes the result; every case stays on the training side of a split. A second run goes on.

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also in one line
(FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way out ends in
slicer.util.exit.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().with_name("find_libraries.py")))

from FlareSegmentLib import command_line  # noqa: E402
from FlareSegmentLib.errors import InputError  # noqa: E402


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    from FlareSegmentTrainingLib.scheduling.options import add_arguments, check_arguments

    parser = command_line.ArgumentParser(prog="synthesize.py", description="Make training cases.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="deform|draw|empty")
    for verb, text in (
        ("deform", "bend labeled CTs onto the organs of label maps"),
        ("draw", "draw CTs from label maps of whole body parts"),
        ("empty", "draw heads and limbs without any organ"),
    ):
        part = verbs.add_parser(verb, help=text, description=text)
        if verb == "deform":
            part.add_argument("--data", action="append", required=True, metavar="DIR", help="labeled CTs")
            part.add_argument("--cases", metavar="NAMES", help="only these of them, as case1,case2")
        if verb == "draw":
            part.add_argument("--structures", type=Path, required=True, metavar="DIR", help="label maps with tables")
        if verb != "empty":
            part.add_argument(
                "--shapes", type=Path, required=verb == "deform", metavar="DIR", help="label maps of organs"
            )
            part.add_argument("--label-map", metavar="MAP", help="what the values of the shapes mean, as 1=spleen,...")
        part.add_argument("--count", type=int, required=True, metavar="N", help="cases to make")
        part.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the cases")
        part.add_argument("--seed", type=int, default=0, help="another seed makes other cases (default: 0)")
        part.add_argument("--spacing", type=float, default=2.0, metavar="MM", help="edge of the voxels (default: 2)")
        add_arguments(part)
    options = parser.parse_args(arguments)
    check_arguments(options)
    if options.count < 1 or options.seed < 0 or not 0.5 <= options.spacing <= 10.0:
        raise InputError("--count must be at least 1, --seed at least 0 and --spacing between 0.5 and 10 mm.")
    if getattr(options, "shapes", None) and not options.label_map:
        raise InputError("--shapes needs --label-map: what the values mean, as 1=spleen,2=right_kidney.")
    return options


def synthesize(options: argparse.Namespace) -> None:
    """Make the cases that are not there yet. Raises FlareSegmentError."""
    from FlareSegmentTrainingLib.datasets.cases import find_cases
    from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
    from FlareSegmentTrainingLib.synthesis.made_cases import deformed_cases, drawn_cases, empty_cases, find_label_maps

    options.output = options.output.absolute()
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{options.output} cannot be made: {error.strerror}. Name another --output.") from error
    common = (options.count, options.seed, options.spacing)
    left_out: list[str] = []
    before = len(list(options.output.glob("*_labels.nii.gz")))
    if options.verb == "empty":
        make = partial(empty_cases, *common, done=options.output)
    else:
        label_map = parse_label_map(options.label_map) if options.label_map else None
        shapes = find_label_maps(options.shapes) if options.shapes else []
        if options.verb == "draw":
            structures = find_label_maps(options.structures)
            make = partial(drawn_cases, structures, shapes, label_map, *common, done=options.output)
        else:
            sources = [case for case in find_cases(options.data) if case.fixed_set != "val"]
            if options.cases:
                names = options.cases.split(",")
                unknown = set(names) - {case.name for case in sources}
                if unknown:
                    raise InputError(f"--cases: {', '.join(sorted(unknown))} is not among the training cases.")
                sources = [case for case in sources if case.name in names]
            make = partial(deformed_cases, sources, shapes, label_map, *common, done=options.output)
    made = 0
    for case, shape in _made(options, make, left_out):
        made += 1
        command_line.say(f"{case.name}: {' x '.join(str(n) for n in shape[::-1])} voxels")
    if left_out and not made:
        raise InputError(f"None of {len(left_out)} cases can be made, such as {left_out[0]}.")
    for reason in left_out:
        command_line.warn(f"Not made: {reason}.")
    there = "" if made or not before else " (those that were asked for are there already)"
    command_line.say(f"{made} cases made{there}, {options.output} holds {before + made}")


def _made(options: argparse.Namespace, make: partial, left_out: list[str]) -> Iterator[tuple]:
    """Yield each case that was made and written, with its shape."""
    from FlareSegmentTrainingLib.scheduling.connection import client_if_wanted
    from FlareSegmentTrainingLib.scheduling.tasks import WorkerLost, outcomes
    from FlareSegmentTrainingLib.synthesis.made_cases import DRAWINGS, make_numbered

    with client_if_wanted(options, command_line.say, "cpu", options.output / "logs") as client:
        if client is None:
            told = {"tell": command_line.say, "left_out": left_out.append} if options.verb == "deform" else {}
            for case in make(**told):
                case.write(options.output)
                yield case, case.image.shape
            return
        numbers = range(-(-options.count // DRAWINGS) if options.verb == "draw" else options.count)
        for outcome in outcomes(client, make_numbered, numbers, make, options.output, alone=True):
            if isinstance(outcome.error, WorkerLost):
                left_out.append(f"number {outcome.item}: {outcome.error}")
                continue
            if outcome.error is not None:
                raise outcome.error
            cases, reasons = outcome.value
            left_out.extend(reasons)
            for case, shape in cases:
                case.enter(options.output)
                yield case, shape


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""
    return command_line.run(lambda: synthesize(parse_arguments(arguments)))


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
