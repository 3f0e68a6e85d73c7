"""What a worker does with one CT: read, segment as `segment` does, measure, write, and keep a record.

The model is loaded once in a process. Networks run in a thread of their own, one CT at a time, so that a worker with
several threads reads the next CT and writes the last one meanwhile. Whatever is wrong with a CT ends in its record;
what is wrong with the computer (a full disk, no model) is raised and ends the run.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from FlareSegmentCohortLib.cohort_cases import CohortCase, printable, vanished
from FlareSegmentCohortLib.output_folder import KINDS, THUMBNAILS, read_record, remove_results, write_record
from FlareSegmentLib import command_line
from FlareSegmentLib.errors import FlareSegmentError, InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.organs import LABEL_TABLES, Organ
from FlareSegmentLib.processes import keep_freed_memory
from FlareSegmentLib.volume import Volume

if TYPE_CHECKING:
    from FlareSegmentLib.inference.pipeline import Segmentation, Segmenter

WORKER_MODULES = (
    "FlareSegmentCohortLib.case_task",
    "FlareSegmentCohortLib.result_files",
    "FlareSegmentLib.inference.pipeline",
    "FlareSegmentTrainingLib.evaluation.figures",
)
"""What a worker needs before its first CT."""

DONE, FAILED, PRESENT = "done", "failed", "present"
OUT_OF_MEMORY = "there is not enough memory for it (--memory-limit, --workers)"
_THUMBNAIL_PIXELS = 260


class CannotWork(FlareSegmentError):
    """The run cannot go on here: the model or the device is not there, or nothing can be written."""

    @classmethod
    def unwritten(cls, folder: Path, error: BaseException) -> CannotWork:
        """The error for results that the disk does not take."""
        cause = error if isinstance(error, OSError) else error.__cause__ or error
        reason = why_not_written(folder, cause) if isinstance(cause, (OSError, RuntimeError)) else str(error)
        return cls(f"{folder}: results cannot be written there ({reason}). Free some space; the same command goes on.")


@dataclass(frozen=True)
class Job:
    """What is the same for all cases of a run.

    Attributes:
        output: the cohort's folder.
        model: the model's folder; None for the bundled one.
        model_identity: SHA-256 of the model's files.
        device: where the network runs.
        label_ids: key of LABEL_TABLES: values of the written label maps.
        kinds: keys of KINDS: what is written of each case.
        label_map: what the values of reference labels mean where a list does not say it.
        settings: tells runs apart whose results differ: a digest of program, model and options.
    """

    output: str
    model: str | None
    model_identity: str
    device: str
    label_ids: str
    kinds: tuple[str, ...]
    label_map: str | None
    settings: str


def work_on(case: CohortCase, job: Job) -> dict[str, Any]:
    """Do a case, unless its files' content is what its record was made from.

    Returns:
        {"result": DONE, PRESENT or FAILED, "seconds": of the engine}; all else is in the record.

    Raises:
        CannotWork: nothing can be done here.
    """
    folder = Path(job.output)
    begun = time.time()
    if not folder.is_dir():
        raise CannotWork(
            f"{platform.node()} does not see {folder}: CTs and results must lie where all computers see them."
        )
    if case.problem is not None:
        return _fail(case, job, case.problem, begun)
    engine = _engine(job.model, job.model_identity, job.device)
    try:
        state = _state(case)
        digest = case.content_hash()
        earlier = _earlier_result(case, job)
        if earlier is not None and earlier.get("content") == digest:
            write_record(folder, case.name, {**earlier, "state": state})
            return {"result": PRESENT, "seconds": 0.0}
        record = _segment(case, job, engine)
    except CannotWork:
        raise
    except FlareSegmentError as error:
        cause = error.__cause__
        passing = isinstance(cause, OSError) and cause.errno is not None  # such as a disk that is out of reach
        return _fail(case, job, str(error), begun, "" if passing else None)
    except Exception as error:  # noqa: BLE001  the others go on
        return _fail(case, job, command_line.explain(error, OUT_OF_MEMORY), begun)
    now = time.time()
    with _written(folder):
        write_record(
            folder,
            case.name,
            {
                "case": case.case,
                "settings": job.settings,
                "state": state,
                "content": digest,
                "model": engine.name,
                "begun": begun,
                "finished": now,
                **record,
            },
        )
    return {"result": DONE, "seconds": sum(record["seconds"][step] for step in ENGINE_STEPS)}


ENGINE_STEPS = ("preprocess", "network", "postprocess")


def is_result(record: dict, job: Job, folder: Path) -> bool:
    """Whether a record was made with the same model, options and program, and its files are there."""
    files = record.get("files")
    return (
        record.get("settings") == job.settings
        and isinstance(files, dict)
        and all(os.path.isfile(folder / str(file)) for file in files.values())
    )


def is_failure(record: dict, job: Job) -> bool:
    """Whether a record tells why a case could not be done with the same model, options and program."""
    return record.get("settings") == job.settings and isinstance(record.get("error"), str)


def fail(case: CohortCase, job: Job, reason: str) -> None:
    """Keep why a case could not be done, without what an earlier run wrote of it. Raises CannotWork."""
    _fail(case, job, reason, time.time())


def _fail(case: CohortCase, job: Job, reason: str, begun: float, state: str | None = None) -> dict[str, Any]:
    folder = Path(job.output)
    reason = printable(" ".join(reason.split()))
    content: dict[str, Any] = {"settings": job.settings, "state": case.state if state is None else state}
    content["error"] = reason
    earlier = _earlier_result(case, job) if state == "" else None
    with _written(folder):
        if earlier is None:
            remove_results(folder, case.name)
        else:  # a share that is away for an hour must not cost what was made of thousands of CTs
            content["earlier"] = earlier
        write_record(folder, case.name, {"case": case.case, "begun": begun, "finished": time.time(), **content})
    return {"result": FAILED, "error": reason, "seconds": 0.0}


def _earlier_result(case: CohortCase, job: Job) -> dict[str, Any] | None:
    """The record of what was made of a case in such a run, also where its CT was out of reach since then."""
    folder = Path(job.output)
    record = read_record(folder, case.name) or {}
    record = record.get("earlier", record)
    return record if is_result(record, job, folder) else None


def _state(case: CohortCase) -> str:
    try:
        return case.state_now()
    except OSError as error:
        raise vanished(error) from error


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    """Within, what cannot be done is the disk's fault and not the CT's."""
    try:
        yield
    except CannotWork:
        raise
    except (OSError, FlareSegmentError) as error:
        raise CannotWork.unwritten(folder, error) from error


# Engine -------------------------------------------------------------------------------------------


class _Engine:
    """A model in this process, and the thread that its networks run in."""

    def __init__(self, model: str | None, identity: str, device: str) -> None:
        from FlareSegmentLib.inference.pipeline import Segmenter
        from FlareSegmentLib.request import SegmentationRequest

        folder = model_folder(model)
        if model_identity(folder) != identity:
            raise CannotWork(f"The model in {folder} is another one here than where the cohort was started.")
        keep_freed_memory()
        self._request = SegmentationRequest(model=folder, device=device, review=True)
        self._segmenter: Segmenter = Segmenter.of(self._request)
        self._device = self._segmenter.device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self.name = self._segmenter.name
        self.organs = self._segmenter.organs

    def segment(self, volume: Volume) -> Segmentation:
        """As `Segmenter.segment`, one CT at a time."""
        return self._thread.submit(self._segment, volume).result()

    def _segment(self, volume: Volume) -> Segmentation:
        if self._segmenter.device != self._device:  # the GPU's memory was too small for the CT before this one
            self._segmenter = type(self._segmenter)(self._segmenter.model, device=self._device)
        return self._segmenter.segment(volume, self._request)


_loading = threading.Lock()


def _engine(model: str | None, identity: str, device: str) -> _Engine:
    with _loading:
        return _loaded(model, identity, device)


@functools.lru_cache(1)
def _loaded(model: str | None, identity: str, device: str) -> _Engine:
    try:
        return _Engine(model, identity, device)
    except CannotWork:
        raise
    except FlareSegmentError as error:
        raise CannotWork(str(error)) from error
    except Exception as error:
        raise CannotWork(f"The model cannot be used here: {command_line.explain(error, OUT_OF_MEMORY)}") from error


def model_folder(model: str | None) -> Path:
    """The folder of a model, or of the bundled one."""
    from FlareSegmentLib.model.model_card import bundled_model_folder

    return bundled_model_folder() if model is None else Path(model)


def model_identity(folder: Path) -> str:
    """SHA-256 of a model's files."""
    from FlareSegmentTrainingLib.evaluation.identities import identity_of_model

    return identity_of_model(folder)


# One CT -------------------------------------------------------------------------------------------


def _segment(case: CohortCase, job: Job, engine: _Engine) -> dict[str, Any]:
    """Everything of a case's record that is not about the run. Raises FlareSegmentError, MemoryError."""
    start = time.perf_counter()
    volume, warnings = read_ct(case)
    reference = _Reference(case, job, volume) if case.labels else None  # what is wrong with it is told before the work
    read = time.perf_counter()
    segmentation = engine.segment(volume)
    computed = time.perf_counter()
    if reference is not None:
        reference.check(segmentation)
    rows = _rows(volume, segmentation, reference, job)
    warnings = [*warnings, *segmentation.warnings, *(reference.warnings if reference else [])]
    measured = time.perf_counter()
    folder = Path(job.output)
    with _written(folder):
        files, said = _write(case, job, volume, segmentation)
    written = time.perf_counter()
    return {
        "organs": rows,
        "warnings": list(dict.fromkeys(" ".join(text.split()) for text in [*warnings, *said])),
        "size": list(volume.array.shape[::-1]),
        "spacing_mm": [round(step, 4) for step in volume.spacing],
        "device": segmentation.device,
        "files": files,
        "seconds": {
            "read": round(read - start, 4),
            **{step: round(segmentation.seconds.get(step, 0.0), 4) for step in ENGINE_STEPS},
            "measure": round(measured - computed, 4),
            "write": round(written - measured, 4),
        },
    }


def read_ct(case: CohortCase) -> tuple[Volume, list[str]]:
    """A case's CT as `segment` reads it, checked, and warnings. Raises InputError."""
    from FlareSegmentLib.files.dicom_folder import read_slices
    from FlareSegmentLib.files.image_io import checked_ct, read_volume

    source = Path(case.source)
    if case.files:
        damaged = [source / name for name in case.damaged]
        volume, warnings = read_slices(source, case.image_files(), damaged)
    else:
        volume, warnings = read_volume(source)
    volume, said = checked_ct(volume)
    return volume, [*warnings, *said]


class _Reference:
    """The labels that a result is measured against. Raises InputError where they cannot be used."""

    def __init__(self, case: CohortCase, job: Job, volume: Volume) -> None:
        from FlareSegmentTrainingLib.datasets.label_checks import doubts_of_labels
        from FlareSegmentTrainingLib.datasets.label_files import read_case_labels
        from FlareSegmentTrainingLib.datasets.label_maps import IGNORED
        from FlareSegmentTrainingLib.evaluation.label_folders import meaning_alone

        assert case.labels is not None
        path = Path(case.labels)
        if not path.exists():
            raise InputError(f"{path} does not exist: check the reference labels in the list.")
        meaning = meaning_alone(path, case.label_map or job.label_map)
        self._path, self._meaning = path, meaning.source or meaning.name
        try:
            self.labels, self.warnings = read_case_labels(path, meaning, volume, Path(case.source))
        except InputError as error:
            text = str(error)
            raise InputError(text if str(path) in text else f"{path}: {text}") from error
        self.labeled = meaning.labeled
        self._known = np.where(self.labels == IGNORED, 0, self.labels).astype(np.uint8)
        self.warnings = [*self.warnings, *(f"Reference: {doubt}" for doubt in doubts_of_labels(volume, self._known))]

    def check(self, segmentation: Segmentation) -> None:
        """Raise InputError where its organs lie where others were found."""
        from FlareSegmentLib.measures.reference_values import contradictions

        organs = segmentation.organs
        wrong = contradictions(self._known, segmentation.labels, {organ.label: organ for organ in organs}, organs)
        if wrong:
            raise InputError(
                f"{self._path} seems to follow another numbering of organs than {self._meaning}: "
                f"{'; '.join(wrong)}. Say what its values mean with label_map in the list, or with --label-map."
            )


def _rows(
    volume: Volume, segmentation: Segmentation, reference: _Reference | None, job: Job
) -> dict[str, dict[str, Any]]:
    """{organ key: columns of `result_table`, how sure the model is, and what the reference adds}."""
    from FlareSegmentLib.measures.organ_statistics import organ_statistics
    from FlareSegmentLib.measures.result_table import organ_rows
    from FlareSegmentTrainingLib.evaluation.figures import measure, only_organs

    organs = segmentation.organs
    rows = organ_rows(organ_statistics(volume, segmentation.labels, organs), None, LABEL_TABLES[job.label_ids])
    for key, value in _confidences(segmentation).items():
        rows[key]["confidence"] = value
    if reference is not None:
        drawn = only_organs(organs, reference.labels)
        found = measure(segmentation.labels, drawn, volume, organs, reference.labeled)
        for key, scores in found.items():
            rows[key].update({name: scores[name] for name in ("dice", "nsd", "hd95_mm", "reference_ml")})
    return {key: {name: _plain(value) for name, value in row.items()} for key, row in rows.items()}


def _confidences(segmentation: Segmentation) -> dict[str, float]:
    """{organ key: mean confidence, 0 to 1, of its voxels} of the organs that were found."""
    confidence = segmentation.confidence
    assert confidence is not None
    found = {}
    for organ in segmentation.organs:
        if (box := segmentation.boxes.get(organ.key)) is not None:
            inner = tuple(slice(p.start - w.start, p.stop - w.start) for p, w in zip(box, confidence.box))
            found[organ.key] = float(confidence.array[inner][segmentation.labels[box] == organ.label].mean()) / 255
    return found


def _write(case: CohortCase, job: Job, volume: Volume, segmentation: Segmentation) -> tuple[dict[str, str], list[str]]:
    """Write the results of a case; returns {kind: file below the cohort's folder} and warnings.

    Raises OSError, FlareSegmentError.
    """
    from FlareSegmentCohortLib.result_files import write_picture, write_segmentation_file, write_thumbnail
    from FlareSegmentLib.files.dicom_segmentation import write_dicom_segmentation
    from FlareSegmentLib.files.image_io import write_labels

    folder, labels, organs = Path(job.output), segmentation.labels, segmentation.organs
    marked, warnings = volume.with_array(labels), []

    def place(kind: str, ending: str) -> Path:
        file = folder / kind / f"{case.name}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    files: dict[str, Path] = {THUMBNAILS: place(THUMBNAILS, ".jpg")}
    write_thumbnail(files[THUMBNAILS], volume, labels, organs, _THUMBNAIL_PIXELS)
    if "segmentations" in job.kinds:
        files["segmentations"] = place("segmentations", KINDS["segmentations"])
        write_segmentation_file(files["segmentations"], marked, organs)
    if "pictures" in job.kinds:
        files["pictures"] = place("pictures", KINDS["pictures"])
        write_picture(files["pictures"], volume, labels, organs, case.case)
    if "dicom" in job.kinds:
        if not case.files:
            warnings.append("No DICOM Segmentation was written: the CT is no DICOM series.")
        else:
            files["dicom"] = place("dicom", KINDS["dicom"])
            algorithm = ("FlareSegment", segmentation.model)
            try:
                write_dicom_segmentation(files["dicom"], marked, case.image_files(), organs=organs, algorithm=algorithm)
            except InputError as error:
                if isinstance(error.__cause__, OSError):
                    raise
                files.pop("dicom")
                warnings.append(f"No DICOM Segmentation was written: {error}")
    ending = "_labels.nrrd" if volume.is_sheared else KINDS["labels"]
    if volume.is_sheared:
        warnings.append("The slices are of a tilted gantry, which NIfTI cannot hold: the label map is a NRRD file.")
    files["labels"] = place("labels", ending)
    write_labels(files["labels"], _renumbered(labels, organs, job.label_ids), volume)
    return {kind: file.relative_to(folder).as_posix() for kind, file in files.items()}, warnings


def _renumbered(labels: np.ndarray, organs: tuple[Organ, ...], label_ids: str) -> np.ndarray:
    table = np.arange(256, dtype=np.uint8)
    for organ in organs:
        table[organ.label] = LABEL_TABLES[label_ids][organ.key]
    return table[labels]


def _plain(value: Any) -> Any:
    if isinstance(value, (float, np.floating)):
        return round(float(value), 4) if math.isfinite(value) else None
    return int(value) if isinstance(value, (np.integer, np.bool_)) else value


def settings_of(parts: dict[str, Any]) -> str:
    """A digest of what decides about results."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


Work = Callable[[CohortCase, Job], dict[str, Any]]
"""What is done with a case: `work_on`, or what stands for it where the schedule itself is tried."""
