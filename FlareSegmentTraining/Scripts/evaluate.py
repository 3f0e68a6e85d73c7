"""Measure a model, or label maps, against labeled CTs, in Slicer or with Python alone:

    Slicer --no-main-window --python-script Scripts/evaluate.py --model bundled --data DIR --output OUT
    ... evaluate.py --predictions FOLDER --reference FOLDER --output OUT

--data takes what prepare.py and train.py take; --reference is a folder of label maps without CTs. In OUT appear
report.html (for people: one file, pictures inside, no network), evaluation.json, cases.csv and organs.csv, and in
folders beside them every case's record, predicted label map and pictures, from which a second run goes on.
--compare MODEL or an earlier OUT adds paired differences; --videos adds two MP4 files for each case.
Cases that the model was trained on are measured too, but told apart, as far as the model or its run names them.

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also in one line (the
environment variable FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way
out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import csv
import json
import runpy
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().with_name("find_libraries.py")))

from FlareSegmentLib import command_line  # noqa: E402
from FlareSegmentLib.errors import InputError  # noqa: E402

CASES_FILE, ORGANS_FILE, COMPARISON_FILE = "cases.csv", "organs.csv", "comparison.csv"
VIDEOS = "videos"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    from FlareSegmentTrainingLib.datasets.dataset_layouts import LAYOUTS
    from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS
    from FlareSegmentTrainingLib.scheduling.options import add_arguments, check_arguments

    parser = command_line.ArgumentParser(
        prog="evaluate.py", description="Measure a model or label maps against labeled CTs."
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument("--model", metavar="FOLDER", help="model folder, or bundled: the model of the extension")
    subject.add_argument("--predictions", type=Path, metavar="FOLDER", help="folder of predicted label maps")
    truth = parser.add_mutually_exclusive_group(required=True)
    truth.add_argument(
        "--data", action="append", metavar="LOCATION", help="labeled CTs, as for train.py; may be repeated"
    )
    truth.add_argument(
        "--reference",
        type=Path,
        metavar="FOLDER",
        help="folder of reference label maps without CTs (for --predictions)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="OUT", help="folder of the results")
    parser.add_argument(
        "--compare", metavar="OTHER", help="another model (folder or bundled), or the OUT of an earlier evaluation"
    )
    parser.add_argument("--videos", action="store_true", help="also two MP4 videos for each case")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where networks run")
    parser.add_argument("--limit-cases", type=int, metavar="N", help="only the first N cases")
    parser.add_argument("--organs", metavar="KEYS", help="organs to measure, as liver,spleen; default: all that can be")
    parser.add_argument(
        "--label-map",
        metavar="MAP",
        help="meaning of the reference's label values where the data do not say it: "
        f"{', '.join(LABEL_MAPS)}, a JSON file, or 1=liver,2=other",
    )
    parser.add_argument(
        "--prediction-label-map",
        metavar="MAP",
        help="the same for --predictions; default: what the files or their folder say, or FlareSegment's own four",
    )
    parser.add_argument(
        "--patient-pattern",
        metavar="REGEX",
        help="regular expression with one group that finds the patient in a case's name, as for train.py",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="take --data for this layout instead of finding it out")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    add_arguments(parser)
    options = parser.parse_args(arguments)
    check_arguments(options)
    if options.model is not None and options.reference is not None:
        raise InputError("--model needs CTs: name them with --data.")
    if options.predictions is None and options.prediction_label_map is not None:
        raise InputError("--prediction-label-map belongs to --predictions.")
    if options.reference is not None and options.layout is not None:
        raise InputError("--layout belongs to --data.")
    if options.limit_cases is not None and options.limit_cases < 1:
        raise InputError(f"--limit-cases {options.limit_cases}: at least 1 is needed.")
    return options


def evaluate(options: argparse.Namespace) -> dict:
    """Do everything that the command line asks for; returns what --json prints. Raises FlareSegmentError."""
    from FlareSegmentTrainingSlicerLib.evaluation_pictures import draw_case

    from FlareSegmentTrainingLib.datasets.cases import naming_left_out, organs_by_keys, patient_pattern, with_patients
    from FlareSegmentTrainingLib.evaluation.html_report import write_report
    from FlareSegmentTrainingLib.evaluation.html_templates import report_templates
    from FlareSegmentTrainingLib.evaluation.measurements import (
        RESULT_FILE,
        evaluate_cases,
        organs_not_found,
        organs_to_measure,
        write_json,
    )
    from FlareSegmentTrainingLib.scheduling.connection import client_if_wanted

    keys = None
    if options.organs is not None:
        keys = [organ.key for organ in organs_by_keys([key.strip() for key in options.organs.split(",")])]
    if options.output.exists() and not options.output.is_dir():
        raise InputError(f"{options.output} is a file; name a folder with --output.")
    predictor = _predictor(options)
    report_templates()
    other = _Other(options) if options.compare is not None else None
    if options.videos:
        from FlareSegmentSlicerLib.rendering.videos import require_encoder

        require_encoder("x.mp4")
    pattern = patient_pattern(options.patient_pattern)
    with naming_left_out() as left_out:
        cases = _cases(options, left_out)
    extra: list[str] = []
    if options.predictions is not None:
        for line in predictor.folder.meanings():
            command_line.say(f"{options.predictions}: {line}")
        extra = predictor.folder.extra(case.name for case in cases)
    cases = with_patients(cases, pattern, command_line.say)[: options.limit_cases]
    organs = organs_to_measure(predictor, cases, keys)
    if keys is None and (names := organs_not_found(predictor, cases)):
        command_line.say(f"{predictor.name} knows no {', '.join(names)}: labeled, and not measured.")
    log_folder = options.output / "logs"
    with client_if_wanted(options, command_line.say, options.device, log_folder) as client:
        evaluation = evaluate_cases(
            cases, predictor, organs, options.output, draw_case, left_out, command_line.say, client
        )
        content = evaluation.content()
        if other is not None:
            content["comparison"] = other.comparison(cases, evaluation, client)
    videos = _make_videos(cases, evaluation, options.output) if options.videos else {}
    write_json(options.output / RESULT_FILE, content)
    _write_tables(options.output, content)
    report = write_report(options.output, content, videos)
    _print_summary(content)
    _warn(evaluation, content, extra)
    command_line.say(f"Report: {report}")
    return {"output": str(options.output), "report": str(report), "reused": evaluation.reused, **content}


def _predictor(options: argparse.Namespace):
    """What is measured: a model, or a folder of label maps."""
    from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
    from FlareSegmentTrainingLib.evaluation.predictors import FolderPredictor, ModelPredictor

    if options.predictions is None:
        return ModelPredictor(_model_folder(options.model), options.device)
    meaning = options.prediction_label_map
    return FolderPredictor(options.predictions, parse_label_map(meaning) if meaning else None)


def _cases(options: argparse.Namespace, left_out: list) -> list:
    """The labeled cases to measure against; what cannot be used is added to `left_out`."""
    from FlareSegmentTrainingLib.datasets.cases import find_cases, label_maps_in_use
    from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
    from FlareSegmentTrainingLib.evaluation.predictors import find_references

    label_map = parse_label_map(options.label_map) if options.label_map else None
    if options.reference is not None:
        cases = find_references(options.reference, label_map, left_out.append)
    else:
        cases = find_cases(
            options.data,
            label_map=label_map,
            layout=options.layout,
            unpack_to=options.output / ".unpacked",
            left_out=left_out.append,
            say=command_line.say,
        )
    for line in label_maps_in_use(cases, options.data or [options.reference]):
        command_line.say(line)
    return cases


def _model_folder(name: str) -> Path:
    from FlareSegmentLib.model.model_card import bundled_model_folder

    return bundled_model_folder() if name == "bundled" else Path(name)


class _Other:
    """What --compare names: a model, which is evaluated on the same cases, or an earlier evaluation.

    Raises InputError or ModelError at once where it is neither.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        from FlareSegmentLib.model.description import DESCRIPTION_FILE
        from FlareSegmentTrainingLib.evaluation.measurements import RESULT_FILE, read_evaluation
        from FlareSegmentTrainingLib.evaluation.predictors import ModelPredictor

        folder = _model_folder(options.compare)
        self._output = options.output
        self._content = self._predictor = None
        if (folder / RESULT_FILE).is_file():
            if folder.resolve() == options.output.resolve():
                raise InputError("--compare names the output folder itself; name another evaluation.")
            self._content = read_evaluation(folder / RESULT_FILE)
        elif (folder / DESCRIPTION_FILE).is_file():
            if options.reference is not None:
                raise InputError("--compare with a model needs CTs: name them with --data.")
            self._predictor = ModelPredictor(folder, options.device)
        else:
            raise InputError(
                f"--compare {options.compare}: neither a model ({DESCRIPTION_FILE}) nor an evaluation ({RESULT_FILE})."
            )

    def comparison(self, cases: Sequence, evaluation, client) -> dict:
        """What the report says about the two."""
        from FlareSegmentTrainingLib.evaluation.comparison import compare
        from FlareSegmentTrainingLib.evaluation.measurements import evaluate_cases

        if self._predictor is not None:
            command_line.say(f"For comparison: {self._predictor.name}")
            folder = self._output / f"compared_{self._predictor.identity[:12]}"
            say = command_line.say
            compared = evaluate_cases(
                cases, self._predictor, evaluation.organs, folder, None, (), say, client
            ).content()
        else:
            compared = self._content
        organs, left_out = compare(evaluation.cases, compared["cases"], evaluation.organs)
        return {"name": compared["subject"]["name"], "organs": organs, "left_out": left_out}


def _make_videos(cases: Sequence, evaluation, output: Path) -> dict[str, list[str]]:
    """Two videos for each case that has none since it was measured; {case: files below the folder}."""
    from FlareSegmentLib.files.image_io import read_labels
    from FlareSegmentSlicerLib.rendering.surfaces import RenderingUnavailable
    from FlareSegmentSlicerLib.rendering.videos import write_slices_video, write_turntable_video
    from FlareSegmentTrainingLib.evaluation.measurements import RECORDS, file_name

    (output / VIDEOS).mkdir(exist_ok=True)
    made: dict[str, list[str]] = {}
    for case in cases:
        record = evaluation.cases.get(case.name)
        if record is None:
            continue
        name = file_name(case.name)
        slices, turning = f"{VIDEOS}/{name}_slices.mp4", f"{VIDEOS}/{name}_3d.mp4"
        made[case.name] = [slices, turning]
        measured = (output / RECORDS / f"{name}.json").stat().st_mtime
        missing = [
            file
            for file in (slices, turning)
            if not (output / file).is_file() or (output / file).stat().st_mtime < measured
        ]
        if not missing:
            continue
        command_line.say(f"{case.name}: videos")
        volume, reference, _ = case.read()
        volume = replace(volume, name=case.name)
        labels = read_labels(output / record["prediction"], like=volume).array
        counted = [organ for organ in evaluation.organs if organ.key in case.labeled]
        if slices in missing:
            write_slices_video(output / slices, volume, labels, reference, organs=counted)
        if turning in missing:
            try:
                write_turntable_video(output / turning, volume, labels, organs=counted)
            except RenderingUnavailable as error:
                made[case.name].remove(turning)
                record["warnings"].append(str(error))
    return made


def _write_tables(output: Path, content: dict) -> None:
    from FlareSegmentTrainingLib.evaluation.figures import MEASURES
    from FlareSegmentTrainingLib.runs.watched_folder import save_whole

    columns = ["status", *MEASURES, "reference_ml", "predicted_ml", "false_positive_ml"]
    rows = [
        [name, organ, *(row[column] for column in columns), content["roles"].get(name)]
        for name, record in content["cases"].items()
        for organ, row in record["organs"].items()
    ]
    tables = {CASES_FILE: [["case", "organ", *columns, "to_the_model"], *rows]}
    statistics = ("cases", "mean", "median", "worst", "worst_case")
    tables[ORGANS_FILE] = [["organ", "measure", *statistics]] + [
        [organ, measure, *(entry[measure][field] for field in statistics)]
        for organ, entry in content["summary"].items()
        for measure in MEASURES
        if entry[measure]
    ]
    comparison = content.get("comparison")
    if comparison:
        fields = ("cases", "mean", "other_mean", "difference", "low", "high", "better", "worse")
        tables[COMPARISON_FILE] = [["organ", "measure", *fields]] + [
            [organ, measure, *(row[field] for field in fields)]
            for organ, measures in comparison["organs"].items()
            for measure, row in measures.items()
            if row
        ]
    for name, table in tables.items():

        def write(place: Path, table: list = table) -> None:
            with open(place, "w", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerows([["" if cell is None else cell for cell in row] for row in table])

        save_whole(output / name, write)


def _print_summary(content: dict) -> None:
    from FlareSegmentLib.organs import organ_by_key

    command_line.say(f"{'Organ':<20}{'Cases':>6}{'Dice':>8}{'NSD':>8}{'HD95 mm':>9}  Worst Dice")
    for key, entry in content["summary"].items():
        name = organ_by_key(key).name
        if not entry["dice"]:
            command_line.say(f"{name:<20}{0:>6}")
            continue
        distance = entry["hd95_mm"]["mean"]
        command_line.say(
            f"{name:<20}{entry['cases']:>6}{entry['dice']['mean']:>8.3f}{entry['nsd']['mean']:>8.3f}"
            f"{'-' if distance is None else format(distance, '.1f'):>9}"
            f"  {entry['dice']['worst']:.3f} ({entry['dice']['worst_case']})"
        )


def _warn(evaluation, content: dict, extra: Sequence[str]) -> None:
    """Say what is odd about the cases; `extra` are predictions that belong to none."""
    _warn_of_trained(content)
    for name, record in evaluation.cases.items():
        for warning in record["warnings"]:
            command_line.warn(f"{name}: {warning}")
    for item in evaluation.left_out:
        command_line.warn(item)
    if extra:
        names = ", ".join(extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
        command_line.warn(f"{len(extra)} predictions belong to none of the cases: {names}")


def _warn_of_trained(content: dict) -> None:
    """Say which cases tell nothing about new CTs, and what the others come to."""
    from FlareSegmentTrainingLib.evaluation.figures import mean_dice
    from FlareSegmentTrainingLib.evaluation.roles import SAME_PATIENT, TRAINED

    followed = [name for name, role in content["roles"].items() if role == SAME_PATIENT]
    if followed:
        command_line.warn(f"Other scans of these cases' patients were trained on: {', '.join(followed)}.")
    trained = [name for name, role in content["roles"].items() if role == TRAINED]
    if not trained:
        return
    mean = mean_dice(content["summary_without_trained"] or {})
    others = "" if mean is None else f" Mean Dice over the organs without them: {mean:.3f}."
    command_line.warn(
        f"{len(trained)} of {len(content['cases'])} cases were trained on, their figures say nothing about new CTs: "
        f"{', '.join(trained)}.{others} Name folders of other cases, such as val, with --data."
    )


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""

    def work() -> None:
        options = parse_arguments(arguments)
        result = evaluate(options)
        if options.json:
            command_line.say(json.dumps(result, allow_nan=False))

    return command_line.run(work)


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
