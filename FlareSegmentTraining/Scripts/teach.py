"""Teach a model with corrected cases without a window, in Slicer or in any Python that has torch:

    Slicer --no-main-window --python-script teach.py --examples DIR --output TEACHING [--model MODEL]

FlareSegmentTrainingLib/teaching/teaching.py describes the folder TEACHING; TEACHING/model is there only if the taught
model is better, and `segment.py --model TEACHING/model` takes it; TEACHING/report.md says what got better and what
worse. Ctrl-C, SIGTERM or a file TEACHING/stop saves and ends; the same command goes on as if it had not been stopped.

Exit status: 0 done, whether the taught model is better or not (the last line says it, or --json); 2 bad input or usage,
with one line on standard error; 1 anything else, also stopped, in one line (FLARESEGMENT_DEBUG=1 adds the traceback).
Slicer does not exit when a script raises, so every way out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().with_name("find_libraries.py")))

from FlareSegmentLib import command_line  # noqa: E402
from FlareSegmentLib.processes import set_priority  # noqa: E402


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    parser = command_line.ArgumentParser(prog="teach.py", description="Teach a model with corrected cases.")
    parser.add_argument(
        "--examples", required=True, metavar="DIR", help="folder, archive or list of CTs with corrected labels"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="TEACHING", help="folder of this teaching")
    parser.add_argument(
        "--model", metavar="MODEL", help="folder of the model to teach, such as one taught before (default: bundled)"
    )
    parser.add_argument(
        "--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps (default: auto)"
    )
    parser.add_argument(
        "--priority",
        choices=("normal", "background"),
        help="background: other programs go first; normal: even where the program that starts this has less",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="change a value of the recipe, such as epochs=10 or learning_rate=0.0001",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object in the last line")
    return parser.parse_args(arguments)


def teach(options: argparse.Namespace) -> None:
    """Do everything that the command line asks for. Raises FlareSegmentError."""
    from FlareSegmentLib.model.model_card import bundled_model_folder
    from FlareSegmentTrainingLib.runs.stop_request import Stopped
    from FlareSegmentTrainingLib.teaching.recipe import changed
    from FlareSegmentTrainingLib.teaching.report import table
    from FlareSegmentTrainingLib.teaching.teaching import REPORT_TEXT, Teaching

    if options.priority:
        set_priority(options.priority == "background")
    model = Path(options.model) if options.model and options.model != "bundled" else bundled_model_folder()
    recipe = changed(options.changes) if options.changes else None
    teaching = Teaching(options.output, options.examples, model, recipe, options.device, command_line.say)
    try:
        taught = teaching.run()
    except Stopped as stopped:
        raise Stopped(f"{str(stopped).removesuffix('.')}; the same command continues.") from stopped
    for side in ("examples", "stability"):
        if taught.report[side]["scans"]:
            command_line.say(f"{side}:\n{table(taught.report[side], teaching.organs)}")
    for reason in taught.reasons:
        command_line.say(f"Not offered: {reason}.")
    if taught.offered:
        command_line.say(f"The taught model is better, and lies in {taught.model}")
    command_line.say(f"Wrote {options.output / REPORT_TEXT}")
    if options.json:
        print(json.dumps({**taught.report, "model_folder": str(taught.model) if taught.model else None}), flush=True)


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""
    return command_line.run(
        lambda: teach(parse_arguments(arguments)),
        interrupted="Interrupted; the same command goes on from the last checkpoint.",
        out_of_memory="Not enough memory: close other programs; the same command goes on.",
    )


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
