"""Segment CTs without a window, in Slicer:

    Slicer --no-main-window --python-script Scripts/segment.py [CT ...] [--output DIR] [--reference LABELS] [--json]

CT is a NIfTI, NRRD or MetaImage file, a folder with a DICOM series, or a folder of such image files; without it the
built-in phantom is segmented, and its own labels are the reference. Five files appear in DIR for each CT, all of them
or none: NAME_organs.seg.nrrd, NAME_labels.nii.gz (.nrrd for a tilted gantry), NAME_organs.csv, NAME_slices.png and
NAME_3d.png. Files of the same names are replaced once everything succeeded; CTs of one name get their folders' names
before it. Of several CTs each is done as if it were alone, but the model is loaded once; one that cannot be segmented
is named, and the others go on.

Exit status: 0 done; 2 bad input or usage, of any of the CTs, with one line on standard error; 1 anything else, also in
one line (the environment variable FLARESEGMENT_DEBUG=1 adds the traceback). Slicer does not exit when a script raises,
so every way out ends in slicer.util.exit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# Slicer knows its modules' folders; a Slicer without this module is to run the script of a working tree as well.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from FlareSegmentLib import command_line
from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.output_files import OutputFiles, check_writable, not_writable
from FlareSegmentLib.garbage_collection import not_collecting
from FlareSegmentLib.inference.place_table import place_rows, places_csv
from FlareSegmentLib.measures.result_table import AT_LEAST, csv_text, organ_rows, text_lines, volume_text
from FlareSegmentLib.organs import LABEL_TABLES, ORGANS, Organ, organ_by_key
from FlareSegmentLib.processes import python_executable
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

if TYPE_CHECKING:
    from FlareSegmentLib.files.ct_sources import Source
    from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter

    Labeled = tuple[Segmentation, dict[str, float]]
    """What is in a CT, and the seconds of each step up to there."""

_SIDE_BY_SIDE_VOXELS = 1 << 26
"""Of larger CTs one thing is done after the other: what is written needs the room of what is not needed any more."""


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The command line's options. Raises InputError."""
    parser = command_line.ArgumentParser(prog="segment.py", description="Segment liver, kidneys and spleen in CTs.")
    parser.add_argument(
        "ct",
        nargs="*",
        metavar="CT",
        help="NIfTI, NRRD, MHA, DICOM folder, or a folder of such files (label maps in it are left out); default: the "
        "built-in phantom",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("output"), metavar="DIR", help="folder of the results (default: output)"
    )
    parser.add_argument(
        "--reference", metavar="LABELS", help="label map on the grid of one CT; adds Dice, NSD and HD95 per organ"
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
    parser.add_argument(
        "--review", action="store_true", help="also list where to look first, worst first: NAME_places.csv"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the result as one JSON object, last; of several CTs one object a line, each when it is done, "
        '{"input", "error"} for one that failed',
    )
    return parser.parse_args(arguments)


@dataclass
class Case:
    """What is segmented: the CT, and what is known about it."""

    name: str
    source: str
    volume: Volume
    reference: np.ndarray | None = None
    warnings: list[str] = field(default_factory=list)


def load_case(source: Source | None) -> Case:
    """Read and check the CT, or make the phantom. Raises InputError."""
    from FlareSegmentLib.files.image_io import checked_ct, read_volume

    if source is None:
        from FlareSegmentLib.phantom.torso import make_phantom

        volume, reference = make_phantom()
        return Case("phantom", "phantom", checked_ct(volume)[0], reference)
    volume, warnings = read_volume(source.path)
    volume, _ = checked_ct(volume)  # refused before the model is waited for; what it says is given with the result
    return Case(source.name, source.path, volume, None, warnings)


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


class Session:
    """The model, ready for one CT after another, and what draws their pictures. A context manager.

    Both start at once and side by side: PyTorch is imported while the first CT is read, and the process that draws in
    3D gets ready meanwhile. Of several CTs one is labeled while the files of the one before are written.
    """

    def __init__(self, options: argparse.Namespace, say: Callable[[str], None]) -> None:
        from FlareSegmentSlicerLib.rendering.renderer_process import RendererProcess

        self.options, self.say = options, say
        self._resources = ExitStack()
        self._threads, self._network = ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        self._left = threading.Event()
        self._segmenter = self._threads.submit(_load_segmenter, options)
        self._renderer = self._resources.enter_context(RendererProcess(python_executable()))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_error: object) -> None:
        self._left.set()
        for threads in (self._threads, self._network):  # who made a mistake need not wait for PyTorch
            threads.shutdown(wait=False, cancel_futures=True)
        self._resources.close()

    def wait(self) -> None:
        """Until the model is there. Raises FlareSegmentError."""
        self._segmenter.result()

    def read(self, source: Source | None) -> Future[Case]:
        """Begin to read a CT."""
        return self._threads.submit(load_case, source)

    def begin(self, case: Case, start: float) -> Future[Labeled]:
        """Begin to label a CT for `segment`; one at a time. Arguments as there."""
        return self._network.submit(self._label, case, start)

    def _label(self, case: Case, start: float) -> Labeled:
        options = self.options
        segmenter: Segmenter = self._segmenter.result()
        if options.reference is not None:
            case.reference = load_reference(options, case.volume, segmenter.organs)
        seconds = {"load": time.monotonic() - start}
        size = " x ".join(str(value) for value in case.volume.array.shape[::-1])
        self.say(f"{case.name}: {size} voxels of {' x '.join(f'{value:.3g}' for value in case.volume.spacing)} mm")
        request = SegmentationRequest(review=options.review)
        segmentation = segmenter.segment(case.volume, request, self._progress(), self._left.is_set)
        if case.reference is not None:
            _check_reference(options, case.reference, segmentation)
        return segmentation, seconds | segmentation.seconds

    def segment(self, case: Case, start: float, labeling: Future[Labeled] | None = None) -> dict[str, Any]:
        """Do everything that the command line asks for with a CT; returns what --json prints. Raises FlareSegmentError.

        Args:
            start: `time.monotonic` when the work on it began.
            labeling: from `begin`, where that was called for it.
        """
        options = self.options
        segmentation, seconds = self._label(case, start) if labeling is None else labeling.result()
        warnings = case.warnings + segmentation.warnings

        places = place_rows(segmentation.places, case.volume)
        write_start = time.monotonic()
        with OutputFiles(options.output) as files:
            try:
                rows = self._write(files, case, segmentation, warnings)
                if options.review:
                    path = files.path("places", f"{case.name}_places.csv")
                    path.write_text(places_csv(places), encoding="utf-8", newline="")
            except OSError as error:
                raise not_writable(options.output, error) from error
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
                **({"places": places} if options.review else {}),
            }
        )

    def _progress(self) -> Callable[[float, str], None]:
        last_step = ""

        def progress(fraction: float, step: str) -> None:
            nonlocal last_step
            if step != last_step:
                self.say(f"{100 * fraction:3.0f} %  {step}")
                last_step = step

        return progress

    def _write(
        self, files: OutputFiles, case: Case, segmentation: Segmentation, warnings: list[str]
    ) -> dict[str, dict[str, Any]]:
        """Write the segmentation, the label map, the table and the pictures; without OpenGL a warning is added instead.

        Returns the table's rows. Afterwards the labels hold the values of --label-ids, and the CT is gone from `case`.
        """
        from FlareSegmentLib.files.image_io import write_labels
        from FlareSegmentLib.measures.organ_statistics import organ_statistics
        from FlareSegmentSlicerLib.rendering import pictures
        from FlareSegmentSlicerLib.scene.result_files import write_segmentation

        labels, organs, table = segmentation.labels, segmentation.organs, LABEL_TABLES[self.options.label_ids]
        # Named in the order in which the user reads of them.
        segmentation_path = files.path("segmentation", f"{case.name}_organs.seg.nrrd")
        suffix = ".nrrd" if case.volume.is_sheared else ".nii.gz"
        labels_path = files.path("labels", f"{case.name}_labels{suffix}")
        if case.volume.is_sheared:
            warnings.append("The slices are of a tilted gantry, which NIfTI cannot hold: the label map is a NRRD file.")
        table_path = files.path("table", f"{case.name}_organs.csv")
        slices_path = files.path("slices", f"{case.name}_slices.png")
        surfaces_path = files.path("surfaces", f"{case.name}_3d.png")

        volume = replace(case.volume, name=case.name)
        small = labels.size <= _SIDE_BY_SIDE_VOXELS
        pictures.request_surfaces(self._renderer, volume, labels, organs)
        with ThreadPoolExecutor(2) as threads:
            begin = threads.submit if small else _do_now
            slices = begin(pictures.slices_png, slices_path, volume, labels, organs)
            scores = begin(_scores, labels, case.reference, volume.spacing, organs)
            statistics = begin(organ_statistics, volume, labels, organs)
            # The CT is not needed any more: the copies that the writers make fit into the room that it took.
            case.volume = volume = volume.with_array(labels)
            write_segmentation(segmentation_path, volume)
            rows = organ_rows(statistics.result(), scores.result(), table)
            slices.result()
        _renumber(labels, {organ.label: table[organ.key] for organ in organs})
        write_labels(labels_path, labels, volume)
        table_path.write_text(csv_text(_finite(rows)), encoding="utf-8", newline="")
        try:
            pictures.surfaces_png(surfaces_path, volume, labels, organs, self._renderer)
        except pictures.RenderingUnavailable as error:
            files.drop("surfaces")
            warnings.append(str(error))
        return rows


def _load_segmenter(options: argparse.Namespace) -> Segmenter:
    with not_collecting():
        from FlareSegmentLib.inference.pipeline import Segmenter

        return Segmenter.of(SegmentationRequest(options.model, options.device))


def _check_reference(options: argparse.Namespace, reference: np.ndarray, segmentation: Segmentation) -> None:
    """Raise InputError where the reference follows another numbering than it was read by."""
    from FlareSegmentLib.measures.reference_values import contradictions

    organs = segmentation.organs
    wrong = contradictions(reference, segmentation.labels, {organ.label: organ for organ in organs}, organs)
    if wrong:
        raise InputError(
            f"{options.reference} seems to follow another numbering of organs than --label-ids "
            f"{options.label_ids}: {'; '.join(wrong)}. Renumber it."
        )


def _scores(
    labels: np.ndarray, reference: np.ndarray | None, spacing: tuple[float, ...], organs: Sequence[Organ]
) -> dict[str, dict[str, Any]] | None:
    if reference is None:
        return None
    from FlareSegmentLib.measures.metrics import evaluate

    return evaluate(labels, reference, spacing, organs)


def _do_now(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    """In place of an executor's `submit`."""
    done: Future[Any] = Future()
    done.set_result(function(*arguments))
    return done


def _renumber(labels: np.ndarray, values: dict[int, int]) -> None:
    """Give labels other values, in place."""
    if all(old == new for old, new in values.items()):
        return
    table = np.arange(256, dtype=np.uint8)
    for old, new in values.items():
        table[old] = new
    for plane in labels:
        plane[...] = table[plane]


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


def print_report(result: dict[str, Any], say: Callable[[str], None]) -> None:
    """The result as a table for people."""
    for line in text_lines(result["organs"]):
        say(line)
    seconds = result["seconds"]
    steps = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if name != "total")
    memory = "" if result["peak_rss_mib"] is None else f"; peak memory {result['peak_rss_mib']:.0f} MiB"
    say(f"{seconds['total']:.1f} s ({steps}) on {result['device']} with model {result['model']}{memory}")
    for path in result["output"].values():
        say(f"Wrote {path}")


def segment(options: argparse.Namespace) -> None:
    """Do what the command line says. Raises FlareSegmentError."""
    from FlareSegmentLib.files.ct_sources import ct_sources

    start = time.monotonic()
    sources: list[Source | None] = [*ct_sources(options.ct)] or [None]
    if options.reference is not None and len(sources) > 1:
        raise InputError(
            f"--reference goes with one CT, and {len(sources)} are named: flare.py evaluate measures many cases."
        )
    check_writable(options.output)
    quiet = len(sources) > 1
    with Session(options, (lambda line: None) if quiet else command_line.say) as session:
        if quiet:
            _segment_several(session, sources)
            return
        result = session.segment(session.read(sources[0]).result(), start)
    print_report(result, command_line.say)
    for warning in result["warnings"]:
        command_line.warn(warning)
    if options.json:
        command_line.say(json.dumps(result, allow_nan=False))


def _segment_several(session: Session, sources: Sequence[Source | None]) -> None:
    """One CT after the other, a line and the files of each. Raises FlareSegmentError where one failed."""
    start, failed, unexpected = time.monotonic(), [], False
    reading = session.read(sources[0])
    session.wait()  # without a model none can be done
    for number, (source, outcome) in enumerate(_results(session, sources, reading), start=1):
        assert source is not None
        place = f"[{number}/{len(sources)}]"
        if isinstance(outcome, dict):
            organs = ", ".join(line for line in _volumes(outcome["organs"]))
            command_line.say(f"{place} {source.path}: {organs}; {outcome['seconds']['total']:.1f} s")
            for path in outcome["output"].values():
                command_line.say(f"Wrote {path}")
            for warning in outcome["warnings"]:
                command_line.warn(f"{source.name}: {warning}")
        else:
            failed.append(source.path)
            unexpected |= not isinstance(outcome, (FlareSegmentError, MemoryError))
            message = command_line.explain(outcome, _OUT_OF_MEMORY)
            command_line.complain(f"{place} {message if source.path in message else f'{source.path}: {message}'}")
            outcome = {"input": source.path, "error": message}
        if session.options.json:
            command_line.say(json.dumps(outcome, allow_nan=False))
    seconds = time.monotonic() - start
    command_line.say(f"{len(sources) - len(failed)} of {len(sources)} CTs segmented in {seconds:.1f} s")
    if failed:
        kind = FlareSegmentError if unexpected else InputError
        raise kind(f"{len(failed)} of {len(sources)} CTs could not be segmented: {', '.join(failed)}")


def _results(
    session: Session, sources: Sequence[Source | None], reading: Future[Case] | None
) -> Iterator[tuple[Source | None, dict[str, Any] | Exception]]:
    """Yield each CT's result, or what went wrong; the next CT is read while the network looks at one, and looked at
    while the files of that one are written, so that two are in memory.

    Args:
        reading: of the first.
    """
    begun: _Begun | None = None
    for number, source in enumerate(sources):
        outcome: dict[str, Any] | Exception
        current, begun = begun, None
        read, reading = reading, None
        try:
            if current is None:
                current = _begin(session, read or session.read(source))
            if number + 1 < len(sources) and _is_small(current.case):
                reading = session.read(sources[number + 1])
            wait([current.labeling])
            if reading is not None and reading.exception() is None and _is_small(reading.result()):
                begun, reading = _begin(session, reading), None
            outcome = session.segment(current.case, current.start, current.labeling)
        except Exception as error:  # noqa: BLE001  the others go on
            outcome = error
        current = read = None
        yield source, outcome


@dataclass
class _Begun:
    """A CT that is being labeled."""

    case: Case
    start: float
    labeling: Future[Labeled]


def _begin(session: Session, reading: Future[Case]) -> _Begun:
    start = time.monotonic()
    case = reading.result()
    return _Begun(case, start, session.begin(case, start))


def _is_small(case: Case) -> bool:
    """Whether there is room for another CT beside this one."""
    return case.volume.array.size <= _SIDE_BY_SIDE_VOXELS


def _volumes(rows: dict[str, dict[str, Any]]) -> Iterator[str]:
    for key, row in rows.items():
        volume = row["volume_ml"]
        found = f"{volume_text(volume, bool(row['cut']), 0, AT_LEAST)} mL" if volume else "not found"
        yield f"{organ_by_key(key).name} {found}"


_OUT_OF_MEMORY = "Not enough memory for this CT: close other programs, or crop the CT to the abdomen."


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status and never raises."""
    return command_line.run(
        lambda: segment(parse_arguments(arguments)),
        interrupted="Stopped; nothing of this CT was written.",
        out_of_memory=_OUT_OF_MEMORY,
    )


if __name__ == "__main__":
    command_line.leave(main(sys.argv[1:]))
