"""Bring data sets into the project's plain layout, and speak DICOM, in Slicer or with Python alone:

    Slicer --no-main-window --python-script Scripts/prepare.py --data LOCATION [--data ...] --output DIR

LOCATION is FLARE22Train.zip or another .zip or .tar, a folder (Medical Segmentation Decathlon, nnU-Net raw, images/
with labels/, pairs <case>_ct and <case>_labels), a CSV or JSON list of pairs, or phantom:N. In DIR appear
<case>_ct.nii.gz, <case>_labels.nii.gz, labels.json, quality.json, report.csv and report.json; cases that cannot be
used are named with the reason and left out. A second run goes on.

With a verb in front it does something else (each has --help):

    prepare.py from-dicom EXPORT --output DIR [--training]   DICOM export: every CT with its SEG and RTSTRUCT labels
    prepare.py to-dicom CT ... --output DIR                  CTs (and labels) as DICOM series (and SEG)
    prepare.py blocks CT ... --output DIR [--slices 64]      CTs in blocks of 64 slices
    prepare.py join DIR --output DIR                         and whole again
    prepare.py to-seg LABELS --ct DICOM --output FILE        a label map as DICOM SEG of its CT
    prepare.py from-seg FILE [--ct CT] --output LABELS       a DICOM SEG or RTSTRUCT as label map

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also in one line (the
environment variable FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way
out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import runpy
import shutil
import sys
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().with_name("find_libraries.py")))

from FlareSegmentLib import command_line  # noqa: E402
from FlareSegmentLib.errors import InputError  # noqa: E402


def _parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser whose errors are InputErrors, with the option that all verbs have."""
    parser = command_line.ArgumentParser(prog=f"prepare.py {verb}".strip(), description=description)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    return parser


def _add_organs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--organs",
        metavar="KEYS",
        help="organs to keep, as liver,spleen, or all (13); default: liver, both kidneys, spleen",
    )
    _add_label_ids(parser, "label values that are written")


def _add_label_ids(parser: argparse.ArgumentParser, meaning: str) -> None:
    from FlareSegmentLib.organs import LABEL_TABLES

    parser.add_argument("--label-ids", choices=tuple(LABEL_TABLES), default="flaresegment", help=meaning)


def _organs(options: argparse.Namespace) -> tuple:
    from FlareSegmentLib.organs import FLARE22_ORGANS
    from FlareSegmentTrainingLib.datasets.cases import organs_by_keys

    if options.organs == "all":
        return FLARE22_ORGANS
    return organs_by_keys(None if options.organs is None else [key.strip() for key in options.organs.split(",")])


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options of a command line without a verb. Raises InputError."""
    from FlareSegmentTrainingLib.datasets.dataset_layouts import LAYOUTS
    from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS
    from FlareSegmentTrainingLib.scheduling.options import add_arguments, check_arguments

    parser = _parser(
        "",
        "Check CTs with labels and bring them into one layout. Other verbs, put in front, speak DICOM: "
        f"{', '.join(VERBS)}; each has --help.",
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
    _add_organs(parser)
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
    add_arguments(parser)
    options = parser.parse_args(arguments)
    check_arguments(options)
    return options


def prepare(options: argparse.Namespace) -> dict:
    """Bring data sets into the plain layout; returns what --json prints. Raises FlareSegmentError."""
    from FlareSegmentTrainingLib.datasets.cases import (
        find_cases,
        label_maps_in_use,
        naming_left_out,
        organs_never_there,
        patient_pattern,
        with_patients,
    )
    from FlareSegmentTrainingLib.datasets.conversion import Settings, convert_cases
    from FlareSegmentTrainingLib.datasets.label_maps import parse_label_map
    from FlareSegmentTrainingLib.scheduling.connection import client_if_wanted

    organs = _organs(options)
    pattern = patient_pattern(options.patient_pattern)
    label_map = parse_label_map(options.label_map) if options.label_map else None
    _check_output(options.output)
    unpack_to = options.output / ".unpacked"
    with naming_left_out() as left_out:
        cases = find_cases(
            options.data,
            label_map=label_map,
            layout=options.layout,
            unpack_to=unpack_to,
            left_out=left_out.append,
            say=command_line.say,
        )
    cases = with_patients(cases, pattern, command_line.say)
    command_line.say(f"{len(cases)} cases found" + (f", {len(left_out)} cannot be used" if left_out else ""))
    for line in label_maps_in_use(cases, options.data):
        command_line.say(line)
    settings = Settings(organs, options.label_ids, options.keep_names, patient_pattern=options.patient_pattern)
    with client_if_wanted(options, command_line.say, "cpu", options.output / "logs") as client:
        outcomes = convert_cases(cases, options.output, settings, left_out, command_line.say, client)
    volumes = {outcome.source: outcome.facts.get("organs_ml", {}) for outcome in outcomes}
    for line in organs_never_there(cases, volumes, options.data):
        command_line.warn(line)
    shutil.rmtree(unpack_to, ignore_errors=True)
    return _summary(options, organs, outcomes)


def _summary(options: argparse.Namespace, organs: tuple, outcomes: list) -> dict:
    """Print what became of the cases; returns what --json prints. Raises InputError when none can be used."""
    kinds = ("taken", "updated", "present", "left out")
    counts = {result: sum(outcome.result == result for outcome in outcomes) for result in kinds}
    for outcome in outcomes:
        for warning in outcome.warnings:
            command_line.warn(f"{outcome.source}: {warning}")
    if any(outcome.source != outcome.name for outcome in outcomes if outcome.result != "left out"):
        command_line.say(
            "Cases got names made from their content (case_...), for a name may tell of a person"
            + ("; --keep-names keeps the names." if hasattr(options, "keep_names") else ".")
        )
    updated = f"{counts['updated']} updated, " if counts["updated"] else ""
    command_line.say(
        f"{counts['taken']} cases taken, {updated}{counts['present']} there already, {counts['left out']} left out: "
        f"{options.output}"
    )
    if not counts["taken"] + counts["updated"] + counts["present"]:
        raise InputError(f"None of the {len(outcomes)} cases can be used; the reasons stand above.")
    return {
        "output": str(options.output),
        "label_ids": options.label_ids,
        "organs": [organ.key for organ in organs],
        "taken": counts["taken"],
        "updated": counts["updated"],
        "present": counts["present"],
        "left_out": counts["left out"],
        "cases": [dataclasses.asdict(outcome) for outcome in outcomes],
    }


# DICOM --------------------------------------------------------------------------------------------


def from_dicom(arguments: list[str]) -> dict:
    """`from-dicom`: a DICOM export becomes a folder of cases. Raises FlareSegmentError."""
    from FlareSegmentTrainingLib.datasets.conversion import Settings, convert_cases
    from FlareSegmentTrainingLib.dicom.dicom_export import MINIMUM_SLICES, look_through, write_mapping
    from FlareSegmentTrainingLib.scheduling.connection import client_if_wanted
    from FlareSegmentTrainingLib.scheduling.options import add_arguments, check_arguments

    parser = _parser(
        "from-dicom",
        "Convert every CT series in a folder tree of DICOM files to NIfTI, with the labels of the DICOM Segmentations "
        "and structure sets (RTSTRUCT) drawn on it. Nothing that tells of a patient is written. Slices of a tilted "
        "gantry are resampled to a straight grid.",
    )
    parser.add_argument("export", type=Path, metavar="EXPORT", help="folder of DICOM files, however nested")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the converted cases")
    parser.add_argument(
        "--training",
        action="store_true",
        help="only what training can use: axial originals with enough slices and labels, values clipped to a CT's",
    )
    parser.add_argument(
        "--minimum-slices",
        type=int,
        default=MINIMUM_SLICES,
        metavar="N",
        help=f"slices that are enough for --training; default: {MINIMUM_SLICES}",
    )
    parser.add_argument(
        "--keep-mapping", type=Path, metavar="FILE", help="write a CSV that says which case is whose: keep it safe"
    )
    _add_organs(parser)
    add_arguments(parser)
    options = parser.parse_args(arguments)
    check_arguments(options)
    organs = _organs(options)
    _check_output(options.output)
    if options.keep_mapping is not None:
        _check_new(options.keep_mapping)
    cases, left_out = look_through(
        options.export, training=options.training, minimum_slices=options.minimum_slices, say=command_line.say
    )
    settings = Settings(organs, options.label_ids, unlabeled=not options.training, clip=options.training)
    with client_if_wanted(options, command_line.say, "cpu", options.output / "logs") as client:
        outcomes = convert_cases(cases, options.output, settings, left_out, command_line.say, client)
    result = _summary(options, organs, outcomes)
    if options.keep_mapping is not None:
        names = {outcome.source: outcome.name for outcome in outcomes if outcome.result != "left out"}
        write_mapping(options.keep_mapping, [(names[case.name], case) for case in cases if case.name in names])
    return result


def to_dicom(arguments: list[str]) -> dict:
    """`to-dicom`: CTs become DICOM series, one study per patient. Raises FlareSegmentError."""
    from FlareSegmentTrainingLib.dicom.dicom_patients import write_patient
    from FlareSegmentTrainingLib.dicom.volume_sources import find_sources

    parser = _parser(
        "to-dicom",
        "Write CTs as DICOM series and their labels as DICOM Segmentations: one patient with one study per CT, called "
        "like the case.",
    )
    parser.add_argument("ct", type=Path, nargs="+", metavar="CT", help="image files, or folders of CTs with labels")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the patients' folders")
    options = parser.parse_args(arguments)
    _check_output(options.output)
    patients = []
    for source in find_sources(options.ct, dicom=False, say=command_line.say):
        volume, labels = source.read()
        folder = write_patient(options.output, source.name, volume, labels)
        command_line.say(
            f"{source.name}: {len(volume.array)} slices{'' if labels is None else ' and labels'} in {folder}"
        )
        patients.append(str(folder))
    return {"output": str(options.output), "patients": patients}


def blocks(arguments: list[str]) -> dict:
    """`blocks`: CTs become blocks of slices. Raises FlareSegmentError."""
    from FlareSegmentTrainingLib.dicom.slice_blocks import SLICES, write_blocks
    from FlareSegmentTrainingLib.dicom.volume_sources import find_sources

    parser = _parser(
        "blocks",
        "Cut CTs (and labels) along the body into blocks of slices, as public V-Net projects feed their networks. The "
        "last block is shorter, nothing is dropped, and `join` puts them together again.",
    )
    parser.add_argument(
        "ct", type=Path, nargs="+", metavar="CT", help="image files, folders of CTs with labels, DICOM folders"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the blocks")
    parser.add_argument("--slices", type=int, default=SLICES, metavar="N", help=f"per block; default: {SLICES}")
    parser.add_argument("--format", choices=("nifti", "dicom"), default="nifti", help="default: nifti")
    options = parser.parse_args(arguments)
    _check_output(options.output)
    names = {}
    for source in find_sources(options.ct, dicom=True, say=command_line.say):
        volume, labels = source.read()
        written = write_blocks(options.output, source.name, volume, labels, options.slices, options.format == "dicom")
        command_line.say(f"{source.name}: {len(volume.array)} slices in {len(written)} blocks")
        names[source.name] = written
    return {"output": str(options.output), "blocks": names}


def join(arguments: list[str]) -> dict:
    """`join`: blocks become whole CTs again. Raises FlareSegmentError."""
    from FlareSegmentTrainingLib.dicom.slice_blocks import join_blocks

    parser = _parser("join", "Put the blocks that `blocks` wrote together again.")
    parser.add_argument("blocks", type=Path, metavar="DIR", help="folder with blocks.json")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the whole CTs")
    options = parser.parse_args(arguments)
    _check_output(options.output)
    joined = join_blocks(options.blocks, options.output)
    for name, volume in joined.items():
        command_line.say(f"{name}: {len(volume.array)} slices")
    return {"output": str(options.output), "cases": list(joined)}


def to_seg(arguments: list[str]) -> dict:
    """`to-seg`: a label map becomes a DICOM Segmentation. Raises FlareSegmentError."""
    from FlareSegmentLib.files.image_io import read_labels
    from FlareSegmentLib.organs import FLARE22_ORGANS
    from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS
    from FlareSegmentTrainingLib.dicom.dicom_patients import write_segmentation_of

    parser = _parser("to-seg", "Write a label map as a DICOM Segmentation of the CT series it was drawn on.")
    parser.add_argument("labels", type=Path, metavar="LABELS", help="label map on the CT's grid")
    parser.add_argument("--ct", type=Path, required=True, metavar="DICOM", help="folder with the CT's DICOM files")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the DICOM file to write")
    parser.add_argument("--manual", action="store_true", help="a person drew the labels, not FlareSegment")
    _add_label_ids(parser, "what the label values mean")
    options = parser.parse_args(arguments)
    _check_new(options.output)
    table = LABEL_MAPS["flaresegment13" if options.label_ids == "flaresegment" else options.label_ids]
    labels = read_labels(options.labels)
    labels = labels.with_array(table.apply(labels.array))
    write_segmentation_of(options.ct, labels, options.output, FLARE22_ORGANS, options.manual)
    command_line.say(f"{options.output} written")
    return {"output": str(options.output)}


def from_seg(arguments: list[str]) -> dict:
    """`from-seg`: a DICOM Segmentation or structure set becomes a label map. Raises FlareSegmentError."""
    import numpy as np

    from FlareSegmentLib.files.image_io import write_labels
    from FlareSegmentLib.organs import FLARE22_ORGANS, LABEL_TABLES
    from FlareSegmentTrainingLib.dicom.dicom_patients import read_labels_of

    parser = _parser("from-seg", "Write a DICOM Segmentation or a structure set (RTSTRUCT) as a label map.")
    parser.add_argument("file", type=Path, metavar="FILE", help="the DICOM file")
    parser.add_argument(
        "--ct",
        type=Path,
        metavar="CT",
        help="the CT it was drawn on, a DICOM folder or an image file; structure sets need it",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="LABELS", help="the label map, .nii.gz or .nrrd")
    _add_label_ids(parser, "label values that are written")
    options = parser.parse_args(arguments)
    _check_new(options.output)
    labels, remarks = read_labels_of(options.file, options.ct)
    for remark in remarks:
        command_line.warn(remark)
    table = np.zeros(256, np.uint8)
    for organ in FLARE22_ORGANS:
        table[organ.label] = LABEL_TABLES[options.label_ids][organ.key]
    write_labels(options.output, table[labels.array], labels)
    present = [organ.key for organ in FLARE22_ORGANS if (labels.array == organ.label).any()]
    command_line.say(f"{options.output}: {', '.join(present)}")
    return {"output": str(options.output), "organs": present}


VERBS = {
    "from-dicom": from_dicom,
    "to-dicom": to_dicom,
    "blocks": blocks,
    "join": join,
    "to-seg": to_seg,
    "from-seg": from_seg,
}


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; name a folder with --output.")


def _check_new(file: Path) -> None:
    if file.exists():
        raise InputError(f"{file} is there already: name another file.")
    if not file.absolute().parent.is_dir():
        raise InputError(f"{file.parent} is no folder: name a file in a folder that is there.")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""

    def work() -> None:
        if arguments[:1] and arguments[0] in VERBS:
            result = VERBS[arguments[0]](arguments[1:])
        else:
            result = prepare(parse_arguments(arguments))
        if "--json" in arguments:
            command_line.say(json.dumps(result, allow_nan=False))

    return command_line.run(work)


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
