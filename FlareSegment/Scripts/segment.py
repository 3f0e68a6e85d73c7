"""Segment one CT without a window, in Slicer:

    Slicer --no-main-window --python-script Scripts/segment.py [CT] [--output DIR] [--reference LABELS] [--json]

CT is a NIfTI, NRRD or MetaImage file or a folder with a DICOM series; without it the built-in phantom is segmented,
and its own labels are the reference. Five files appear in DIR, all of them or none: NAME_organs.seg.nrrd,
NAME_labels.nii.gz (.nrrd for a tilted gantry), NAME_organs.csv, NAME_slices.png and NAME_3d.png. Files of the same
names are replaced once everything succeeded.

Exit status: 0 done; 2 bad input or usage, with one line on standard error; 1 anything else, also in one line (the
environment variable FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises, so every way
out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import slicer

# Slicer knows its modules' folders; a Slicer without this module is to run the script of a working tree as well.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from FlareSegmentLib import command_line
from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import LABEL_TABLES, ORGANS, Organ, organ_by_key
from FlareSegmentLib.processes import private_folder
from FlareSegmentLib.volume import Volume

_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm")
_LONGEST_NAME = 255 - len("_organs.seg.nrrd")
_SCORES = ("dice", "nsd", "hd95_mm")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    parser = command_line.ArgumentParser(prog="segment.py", description="Segment liver, kidneys and spleen in a CT.")
    parser.add_argument(
        "ct", nargs="?", metavar="CT", help="NIfTI, NRRD, MHA or DICOM folder; default: the built-in phantom"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="folder of the results (default: output)"
    )
    parser.add_argument(
        "--reference", metavar="LABELS", help="label map on the CT's grid; adds Dice, NSD and HD95 per organ"
    )
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where the network runs"
    )
    parser.add_argument(
        "--model", type=Path, metavar="FOLDER", help="folder of model.json and weights.pt (default: the bundled model)"
    )
    parser.add_argument(
        "--label-ids",
        choices=tuple(LABEL_TABLES),
        default="flaresegment",
        help="label values of the written label map and of the reference",
    )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last")
    return parser.parse_args(arguments)


@dataclass
class Case:
    """What is segmented: the CT, and what is known about it."""

    name: str
    source: str
    volume: Volume
    reference: np.ndarray | None = None
    warnings: list[str] = field(default_factory=list)


def load_case(source: str | None) -> Case:
    """Read and check the CT, or make the phantom. Raises InputError."""
    if source is None:
        from FlareSegmentLib.phantom.torso import make_phantom

        return Case("phantom", "phantom", *make_phantom())
    from FlareSegmentLib.files.image_io import check_is_ct, read_volume

    if not source.strip():
        raise InputError("The name of the CT is empty: name a file or a folder, or leave it out for the phantom.")
    volume, warnings = read_volume(source)
    check_is_ct(volume)  # refused before PyTorch is loaded; its warnings are given with the result
    name = case_name(Path(source))
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise InputError(f"{source}: the name is too long for those of the results; rename the file.")
    return Case(name, source, volume, None, warnings)


def case_name(path: Path) -> str:
    """The file's name without its format's suffix; a folder's own name."""
    path = path.resolve()
    lower = path.name.lower()
    suffix = next((suffix for suffix in _SUFFIXES if lower.endswith(suffix) and not path.is_dir()), "")
    return path.name[: len(path.name) - len(suffix)] or "ct"


def load_reference(options: argparse.Namespace, volume: Volume, organs: Sequence[Organ]) -> np.ndarray:
    """The reference in FlareSegment's label values, without organs that the model does not know. Raises InputError."""
    from FlareSegmentLib.files.image_io import read_labels

    labels = read_labels(options.reference, like=volume).array
    table = LABEL_TABLES[options.label_ids]
    own = {table[organ.key]: organ.label for organ in organs}
    # A reference of the four organs also serves a model of one; FLARE22's 13 values must not pass for FlareSegment's.
    known = {0, *own, *(table[organ.key] for organ in ORGANS)}
    if options.label_ids != "flaresegment":
        known |= set(table.values())
    strange = [str(value) for value in np.unique(labels) if value not in known]
    if strange:
        hint = " If it follows FLARE22, say --label-ids flare22." if options.label_ids == "flaresegment" else ""
        raise InputError(
            f"{options.reference}: the label values {', '.join(strange[:6])} are not those of "
            f"--label-ids {options.label_ids}.{hint}"
        )
    result = np.zeros(labels.shape, np.uint8)
    for value, label in own.items():
        result[labels == value] = label
    return result


def segment_case(options: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Do everything that the command line asks for; returns what --json prints. Raises FlareSegmentError."""
    start = time.monotonic()
    _check_writable(options.output)
    case = load_case(options.ct)
    from FlareSegmentLib.inference.pipeline import Segmenter
    from FlareSegmentLib.measures.organ_statistics import organ_statistics
    from FlareSegmentLib.model.model_file import bundled_model_folder, load_model

    segmenter = Segmenter(load_model(options.model or bundled_model_folder()), device=options.device)
    organs = segmenter.organs
    if options.reference is not None:
        case.reference = load_reference(options, case.volume, organs)
    seconds = {"load": time.monotonic() - start}
    size = " x ".join(str(value) for value in case.volume.array.shape[::-1])
    say(f"{case.name}: {size} voxels of {' x '.join(f'{value:.3g}' for value in case.volume.spacing)} mm")
    last_step = ""

    def progress(fraction: float, step: str) -> None:
        nonlocal last_step
        if step != last_step:
            say(f"{100 * fraction:3.0f} %  {step}")
            last_step = step

    segmentation = segmenter.segment(case.volume, progress=progress)
    seconds.update(segmentation.seconds)
    warnings = case.warnings + segmentation.warnings

    measures = organ_statistics(case.volume, segmentation.labels, organs)
    rows = {organ.key: {name: measures[organ.key][name] for name in ("volume_ml", "mean_hu")} for organ in organs}
    table = LABEL_TABLES[options.label_ids]
    rows = {key: {"label": table[key], **row} for key, row in rows.items()}
    if case.reference is not None:
        from FlareSegmentLib.measures.metrics import evaluate

        for key, scores in evaluate(segmentation.labels, case.reference, case.volume.spacing, organs).items():
            rows[key].update({name: scores[name] for name in _SCORES})

    write_start = time.monotonic()
    with _OutputFiles(options.output) as files:
        try:
            _write_files(files, case, segmentation.labels, organs, table, rows, warnings)
        except OSError as error:
            raise _not_writable(options.output, error) from error
        paths = files.publish()
    seconds["write"] = time.monotonic() - write_start
    seconds["total"] = time.monotonic() - start
    return _finite(
        {
            "input": case.source,
            "output": paths,
            "organs": rows,
            "seconds": seconds,
            "peak_rss_mib": peak_rss_mib(),
            "device": segmentation.device,
            "model": segmentation.model,
            "warnings": warnings,
        }
    )


# Output -------------------------------------------------------------------------------------------


class _OutputFiles:
    """Files that are written in a private folder beside their final place and appear there together, or not at all."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._created: list[Path] = []
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._created = [parent for parent in (self._folder, *self._folder.absolute().parents) if not parent.exists()]
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._private = private_folder(self._folder)
        except OSError as error:
            self._remove_created()
            raise _not_writable(self._folder, error) from error
        return self

    def path(self, kind: str, name: str) -> Path:
        """Where to write the file that will be called `name`."""
        self._names[kind] = name
        return Path(self._private.name) / name

    def drop(self, kind: str) -> None:
        """Give up a file that could not be made."""
        (Path(self._private.name) / self._names.pop(kind)).unlink(missing_ok=True)

    def publish(self) -> dict[str, str]:
        """Move all files to their place; returns {kind: path}.

        Raises InputError where that cannot be done; files that stood there before are back then.
        """
        for name in self._names.values():
            if (self._folder / name).is_dir():
                raise _not_writable(self._folder / name, IsADirectoryError(errno.EISDIR, "a folder has this name"))
        kept = Path(self._private.name) / "replaced"
        kept.mkdir()
        done: list[str] = []
        try:
            for name in self._names.values():
                _keep(self._folder / name, kept / name)
                done.append(name)
                os.replace(Path(self._private.name) / name, self._folder / name)
        except OSError as error:
            for name in done:
                if (kept / name).exists():
                    os.replace(kept / name, self._folder / name)
                else:
                    (self._folder / name).unlink(missing_ok=True)
            raise _not_writable(self._folder, error) from error
        self._created = []
        return {kind: str(self._folder / name) for kind, name in self._names.items()}

    def __exit__(self, *_error: object) -> None:
        self._private.cleanup()
        self._remove_created()

    def _remove_created(self) -> None:
        for folder in self._created:
            try:
                folder.rmdir()
            except OSError:
                return


def _keep(file: Path, copy: Path) -> None:
    """A second name, or a copy, of a file that will be replaced: at no moment it is gone, whatever happens."""
    if os.path.lexists(file):
        try:
            os.link(file, copy, follow_symlinks=False)
        except OSError:  # a file system without links
            shutil.copy2(file, copy, follow_symlinks=False)


def _check_writable(folder: Path) -> None:
    """Raise InputError where no file could be written in the folder, which need not exist yet."""
    from FlareSegmentLib.files.image_io import can_be_opened

    if not can_be_opened(folder):
        raise InputError(f"{os.fsencode(folder)!r}: the name has characters that are no text. Choose another --output.")
    try:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        with private_folder(existing):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from error


def _not_writable(folder: Path, error: OSError) -> InputError:
    return InputError(
        f"{folder}: results cannot be written there ({error.strerror or error}). Choose another folder with --output."
    )


def _write_files(
    files: _OutputFiles,
    case: Case,
    labels: np.ndarray,
    organs: Sequence[Organ],
    table: dict[str, int],
    rows: dict[str, dict],
    warnings: list[str],
) -> None:
    """Write the segmentation, the label map, the table and the pictures; without OpenGL a warning is added instead.

    Afterwards `labels` hold the values of `table`, and the CT is gone from `case`.
    """
    from FlareSegmentLib.files.image_io import write_labels
    from FlareSegmentSlicerLib.rendering.pictures import RenderingUnavailable, slices_png, surfaces_png

    columns = ["label", "volume_ml", "mean_hu"] + (list(_SCORES) if case.reference is not None else [])
    # Named in the order in which the user reads of them, written in the order that takes the least memory.
    segmentation = files.path("segmentation", f"{case.name}_organs.seg.nrrd")
    suffix = ".nrrd" if case.volume.is_sheared else ".nii.gz"
    label_map = files.path("labels", f"{case.name}_labels{suffix}")
    if case.volume.is_sheared:
        warnings.append("The slices are of a tilted gantry, which NIfTI cannot hold: the label map is a NRRD file.")
    with open(files.path("table", f"{case.name}_organs.csv"), "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["organ", *columns])
        for key, row in _finite(rows).items():
            writer.writerow([key, *("" if row.get(column) is None else row[column] for column in columns)])

    case.volume = replace(case.volume, name=case.name)
    slices_png(files.path("slices", f"{case.name}_slices.png"), case.volume, labels, organs)
    try:
        surfaces_png(files.path("surfaces", f"{case.name}_3d.png"), case.volume, labels, organs)
    except RenderingUnavailable as error:
        files.drop("surfaces")
        warnings.append(str(error))

    # The CT is not needed any more: the copies that the writers make fit into the room that it took.
    case.volume = case.volume.with_array(labels)
    _write_segmentation(segmentation, case.volume)
    values = np.arange(256, dtype=np.uint8)
    for organ in organs:
        values[organ.label] = table[organ.key]
    for plane in labels:
        plane[...] = values[plane]
    write_labels(label_map, labels, case.volume)


def _write_segmentation(path: Path, labels: Volume) -> None:
    """Save the organs as Slicer saves a segmentation, with names, colors and terminology."""
    from vtkmodules.util.numpy_support import numpy_to_vtk
    from vtkmodules.vtkCommonDataModel import vtkImageData

    from FlareSegmentLib.files.file_headers import packed_completely
    from FlareSegmentLib.files.image_io import quiet_itk
    from FlareSegmentSlicerLib.scene.segmentation_nodes import create_segmentation

    # Its grid is all that is wanted of the scan's node, so the labels themselves, not copied, serve as its voxels.
    image = vtkImageData()
    image.SetDimensions(*labels.array.shape[::-1])
    image.GetPointData().SetScalars(numpy_to_vtk(labels.array.reshape(-1)))
    volume_node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", labels.name)
    volume_node.SetAndObserveImageData(image)
    volume_node.SetIJKToRASMatrix(slicer.util.vtkMatrixFromArray(labels.affine_ras))
    segmentation_node = create_segmentation(volume_node, labels.array)
    with quiet_itk():
        saved = slicer.util.saveNode(segmentation_node, str(path), {"useCompression": 1})
    if not saved or not packed_completely(path):  # the writer may not notice a full disk
        raise OSError(errno.ENOSPC, "a file came out incomplete; the disk may be full")
    slicer.mrmlScene.RemoveNode(segmentation_node)
    slicer.mrmlScene.RemoveNode(volume_node)


# Report -------------------------------------------------------------------------------------------


def peak_rss_mib() -> float | None:
    """The largest resident memory this process has had, in MiB; None where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


def _finite(value):
    """The same JSON value, numbers rounded to what they mean and those that are not finite as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def print_report(result: dict, say: Callable[[str], None]) -> None:
    """The result as a table for people."""
    columns = [("volume_ml", "Volume (mL)", 1), ("mean_hu", "Mean HU", 1)]
    if any("dice" in row for row in result["organs"].values()):
        columns += [("dice", "Dice", 3), ("nsd", "NSD", 3), ("hd95_mm", "HD95 (mm)", 1)]
    say(f"{'Organ':<16}" + "".join(f"{title:>13}" for _, title, _ in columns))
    for key, row in result["organs"].items():
        cells = ("-" if row.get(name) is None else f"{row[name]:.{digits}f}" for name, _, digits in columns)
        say(f"{organ_by_key(key).name:<16}" + "".join(f"{cell:>13}" for cell in cells))
    seconds = result["seconds"]
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    memory = "" if result["peak_rss_mib"] is None else f"; peak memory {result['peak_rss_mib']:.0f} MiB"
    say(f"{seconds['total']:.1f} s ({steps}) on {result['device']} with model {result['model']}{memory}")
    for path in result["output"].values():
        say(f"Wrote {path}")


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""

    def work() -> None:
        options = parse_arguments(arguments)
        result = segment_case(options, command_line.say)
        print_report(result, command_line.say)
        for warning in result["warnings"]:
            command_line.warn(warning)
        if options.json:
            command_line.say(json.dumps(result, allow_nan=False))

    return command_line.run(
        work,
        interrupted="Stopped; nothing was written.",
        out_of_memory="Not enough memory for this CT: close other programs, or crop the CT to the abdomen.",
    )


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
