"""Training cases that nobody scanned: CTs deformed onto other people's organs, CTs drawn from label maps, and drawn
heads and limbs without any organ.

Each case is a function of its source files, the seed and its number; those already in the folder `done` are left out.
The cases lie on an isotropic LPS grid in the plain layout of `dataset_layouts`; `quality.json` keeps every one of them
on the training side of a split.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.files.image_io import check_written, read_labels
from FlareSegmentLib.files.itk_reading import quiet_itk
from FlareSegmentLib.organs import ORGANS
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.cases import Case
from FlareSegmentTrainingLib.datasets.class_tables import LABEL_MAP_FILE
from FlareSegmentTrainingLib.datasets.label_maps import IGNORE, IGNORED, LabelMap, label_map_of_names
from FlareSegmentTrainingLib.synthesis.anatomy_transfer import deform, register, signed_distances
from FlareSegmentTrainingLib.synthesis.drawn_ct import AIR_HU, add_body, draw_ct, draw_empty_anatomy, tissue_map

REGISTRATION_MM = 6.0
SHAPE_MARGIN_MM = 54.0
LABELS_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
CLASSES_SUFFIX = "_classes.tsv"
DRAWINGS = 3  # of each structure, one after the other


@dataclass(frozen=True)
class SyntheticCase:
    """A case ready to be written.

    Attributes:
        image: int16 HU; labels: uint8 in FlareSegment's values and `label_maps.IGNORED`; both (z, y, x), LPS, voxels
            of `spacing_mm`.
        grades: organ key -> grade, as in quality.json.
        patient: whose CT it was made from; such cases are kept away from a validation on that patient.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing_mm: float
    grades: dict[str, str]
    patient: str | None = None

    def write(self, folder: Path) -> None:
        """Write the case's files and enter it in quality.json."""
        self.write_files(folder)
        self.enter(folder)

    def write_files(self, folder: Path) -> None:
        """Write `<name>_ct.nii.gz` and `<name>_labels.nii.gz`, the labels last, so that an interrupted case is not
        taken for one. What the values mean is written where some voxels are to be ignored. Raises InputError.
        """
        if (self.labels == IGNORED).any():
            meaning = {**{str(organ.label): organ.key for organ in ORGANS}, str(IGNORED): IGNORE}
            _write_json(folder / LABEL_MAP_FILE, meaning)
        for array, kind in ((self.image, "ct"), (self.labels, "labels")):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((self.spacing_mm,) * 3)
            with _whole(folder / f"{self.name}_{kind}.nii.gz") as part, quiet_itk():
                sitk.WriteImage(image, str(part), useCompression=True)
                check_written(part, array.nbytes)

    def enter(self, folder: Path) -> None:
        """Enter the case in quality.json, which one process alone may do; one that cannot be entered is none. Raises
        InputError.
        """
        file = folder / "quality.json"
        quality = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        entry = {"set": "train", **({"patient": self.patient} if self.patient else {})}
        quality[self.name] = {**entry, **{key: {"grade": grade} for key, grade in self.grades.items()}}
        try:
            _write_json(file, dict(sorted(quality.items())))
        except InputError:
            (folder / f"{self.name}_labels.nii.gz").unlink(missing_ok=True)
            raise


def _write_json(file: Path, content: dict) -> None:
    with _whole(file) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _whole(file: Path) -> Iterator[Path]:
    """Where to write a file, which appears whole or not at all. Raises InputError when the disk does not take it."""
    part = file.with_name(f".{os.getpid()}-{file.name}")
    try:
        yield part
        part.replace(file)
    except (OSError, RuntimeError) as error:
        reason = why_not_written(file.parent, error)
        raise InputError(f"{file} cannot be written ({reason}). Free some space; the same command goes on.") from error
    finally:
        part.unlink(missing_ok=True)


def make_numbered(
    number: int, make: partial[Iterator[SyntheticCase]], folder: Path
) -> tuple[list[tuple[SyntheticCase, tuple[int, ...]]], list[str]]:
    """Make and write the cases of one number, on a worker.

    Args:
        make: `deformed_cases`, `drawn_cases` or `empty_cases` with all arguments but the numbers.

    Returns:
        The cases without their voxels, to be entered in quality.json, each with its shape, and the reasons why others
        cannot be made.
    """
    reasons: list[str] = []
    more = {"left_out": reasons.append} if make.func is deformed_cases else {}
    made = []
    for case in make(numbers=(number,), **more):
        case.write_files(folder)
        nothing = np.zeros(0, np.uint8)
        made.append((replace(case, image=nothing, labels=nothing), case.image.shape))
    return made, reasons


def find_label_maps(folder: Path) -> list[Path]:
    """Return the label maps in a folder, sorted. Raises InputError when there is none."""
    files = sorted(file for file in folder.glob("*") if file.name.endswith(LABELS_SUFFIXES)) if folder.is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no label map ({', '.join(LABELS_SUFFIXES)}).")
    return files


def deformed_cases(
    cases: Sequence[Case],
    shapes: Sequence[Path],
    label_map: LabelMap,
    count: int,
    seed: int,
    spacing_mm: float,
    done: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
    left_out: Callable[[str], None] = lambda reason: None,
    numbers: Iterable[int] | None = None,
) -> Iterator[SyntheticCase]:
    """Yield labeled CTs deformed onto the organs of label maps without images.

    Organs of the CT that are ignored or reach its border do not guide the registration, but move along.

    Args:
        tell: called with a line before each case is begun.
        left_out: called with the reason where one cannot be made: fewer than two organs guide it.
        numbers: those of the `count` to make; by default all.

    Raises:
        InputError: there is no CT.
    """
    if not cases:
        raise InputError("There is no labeled CT for training among the data to deform.")
    for number, generator, shape_file in _numbered(shapes, numbers or range(count), seed):
        case = cases[int(generator.integers(len(cases)))]
        name = f"{case.name}-{_stem(shape_file)}-{number:03d}"
        if _is_there(done, name):
            continue
        tell(f"[{number + 1}/{count}] {name}: bending {case.name} onto {shape_file.name}")
        volume, labels, _ = case.read()
        volume, order = volume.to_lps_view()
        marked = volume.with_array(order.apply(labels))
        image, truth = _isotropic(volume, spacing_mm, AIR_HU), _isotropic(marked, spacing_mm)
        guides = [organ.label for organ in ORGANS if case.weights.get(organ.key) == 1.0 and _inside(truth, organ.label)]
        shape = _shape(shape_file, label_map)
        coordinates = _carried(_isotropic(marked, REGISTRATION_MM), shape, guides)
        if coordinates is None:
            left_out(f"{name}: {_why_not(case, truth, guides, shape_file, shape)}")
            continue
        ct, moved = deform(
            torch.from_numpy(image.astype(np.float32)),
            torch.from_numpy(truth),
            coordinates,
            REGISTRATION_MM / spacing_mm,
            AIR_HU,
        )
        grades = {organ.key: case.grades.get(organ.key, "A") for organ in ORGANS}
        yield SyntheticCase(
            name,
            ct.round().to(torch.int16).numpy(),
            moved.numpy(),
            spacing_mm,
            grades,
            case.patient,
        )


def _why_not(case: Case, truth: np.ndarray, guides: Sequence[int], shape_file: Path, shape: np.ndarray) -> str:
    """Why fewer than two organs guide a deformation."""
    there = [organ for organ in ORGANS if (truth == organ.label).any()]
    usable = ", ".join(organ.name.lower() for organ in there if organ.label in guides) or "none"
    cut = ", ".join(organ.name.lower() for organ in there if not _inside(truth, organ.label))
    drawn = ", ".join(organ.name.lower() for organ in ORGANS if (shape == organ.label).any()) or "none"
    return (
        "two organs must be whole and trusted in the CT and drawn in the label map; "
        f"{case.name} has {usable}{f' (cut by its edge: {cut})' if cut else ''}, {shape_file.name} has {drawn}"
    )


def drawn_cases(
    structures: Sequence[Path],
    shapes: Sequence[Path],
    label_map: LabelMap | None,
    count: int,
    seed: int,
    spacing_mm: float,
    done: Path | None = None,
    drawings: int = DRAWINGS,
    numbers: Iterable[int] | None = None,
) -> Iterator[SyntheticCase]:
    """Yield CTs drawn from label maps of whole body parts (`drawn_ct`), `drawings` times each with other contrast.

    Args:
        structures: label maps, each with a table of its values beside it: `X_full.nii.gz` or `X.nii.gz` with
            `X_classes.tsv` (value, structure as TotalSegmentator names it).
        shapes: label maps of organs alone; the structures are deformed onto one of them half of the time.
        numbers: those of the structures' turns to draw; by default all.
    """
    structures = [file for file in structures if _classes_file(file).is_file()]
    if not structures:
        raise InputError(f"None of the label maps has a table of its structures beside it (*{CLASSES_SUFFIX}).")
    shapes = [file for file in shapes if not _classes_file(file).is_file()]
    for number, generator, file in _numbered(structures, numbers or range(-(-count // drawings)), seed):
        name = f"{_stem(file)}-{number:03d}"
        if all(_is_there(done, f"{name}-{drawing}") for drawing in range(drawings)):
            continue
        names = _classes(file)
        meaning = label_map_of_names(file.name, {str(value): structure for value, structure in names.items()})
        volume, _ = read_labels(file).to_lps_view()
        labels = _isotropic(volume, spacing_mm)
        if shapes and label_map is not None and generator.random() < 0.75:
            shape_file = shapes[int(generator.integers(len(shapes)))]
            organs = _organs(_isotropic(volume, REGISTRATION_MM), meaning)
            guides = [organ.label for organ in ORGANS if _inside(organs, organ.label)]
            coordinates = _carried(organs, _shape(shape_file, label_map), guides)
            if coordinates is not None:
                empty = torch.zeros(labels.shape)
                refinement = REGISTRATION_MM / spacing_mm
                labels = deform(empty, torch.from_numpy(labels), coordinates, refinement, 0.0)[1].numpy()
        truth = _organs(labels, meaning)
        room = round(45.0 / spacing_mm)
        around = ((0, 0), (room, room), (room, room))
        for drawing in range(min(drawings, count - number * drawings)):
            body = add_body(np.pad(tissue_map(labels, names), around), spacing_mm, generator)
            yield SyntheticCase(
                f"{name}-{drawing}",
                draw_ct(body, spacing_mm, generator).round().astype(np.int16),
                np.pad(truth, around),
                spacing_mm,
                {organ.key: "absent" if not np.isin(truth, (organ.label, IGNORED)).any() else "B" for organ in ORGANS},
            )


def empty_cases(
    count: int, seed: int, spacing_mm: float, done: Path | None = None, numbers: Iterable[int] | None = None
) -> Iterator[SyntheticCase]:
    """Yield drawn heads and limbs, in which none of the organs is."""
    for number in numbers or range(count):
        name = f"empty-{number:03d}"
        if _is_there(done, name):
            continue
        generator = np.random.default_rng((seed, number))
        tissues = draw_empty_anatomy(spacing_mm, generator)
        image = draw_ct(tissues, spacing_mm, generator).round().astype(np.int16)
        grades = {organ.key: "absent" for organ in ORGANS}
        yield SyntheticCase(name, image, np.zeros(image.shape, np.uint8), spacing_mm, grades)


def _numbered(
    files: Sequence[Path], numbers: Iterable[int], seed: int
) -> Iterator[tuple[int, np.random.Generator, Path]]:
    """Yield each number's own generator and its file, every file once before one comes again."""
    for number in numbers:
        order = np.random.default_rng((seed, number // len(files))).permutation(len(files))
        yield number, np.random.default_rng((seed, number)), files[int(order[number % len(files)])]


def _is_there(folder: Path | None, name: str) -> bool:
    return folder is not None and (folder / f"{name}_labels.nii.gz").is_file()


def _carried(source: np.ndarray, shape: np.ndarray, guides: Sequence[int]) -> torch.Tensor | None:
    """The map that carries the source's guiding organs onto the shape's; None when fewer than two are in both."""
    guides = [label for label in guides if (shape == label).any()]
    if len(guides) < 2:
        return None
    return register(signed_distances(source, guides, REGISTRATION_MM), signed_distances(shape, guides, REGISTRATION_MM))


def _shape(file: Path, label_map: LabelMap) -> np.ndarray:
    """The organs of a label map at `REGISTRATION_MM`, cropped to a margin about them."""
    volume, _ = read_labels(file).to_lps_view()
    try:
        organs = _organs(volume.array, label_map)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    coarse = _isotropic(volume.with_array(organs), REGISTRATION_MM)
    coarse[coarse == IGNORED] = 0
    if not coarse.any():
        raise InputError(f"{file} holds none of the organs.")
    margin = round(SHAPE_MARGIN_MM / REGISTRATION_MM)
    box = tuple(slice(max(0, int(i.min()) - margin), int(i.max()) + margin + 1) for i in np.nonzero(coarse))
    return coarse[box]


def _inside(labels: np.ndarray, label: int) -> bool:
    """Whether an organ is there and does not reach the border of the array."""
    mask = labels == label
    return bool(mask.any()) and not any(
        mask.take(edge, axis=axis).any() for axis in range(3) for edge in (0, mask.shape[axis] - 1)
    )


def _organs(labels: np.ndarray, label_map: LabelMap) -> np.ndarray:
    """The organs of `ORGANS` in a label map, in FlareSegment's values, and `IGNORED`; everything else is 0."""
    organs = label_map.apply(labels)
    organs[(organs > len(ORGANS)) & (organs != IGNORED)] = 0
    return organs


def _isotropic(volume: Volume, spacing_mm: float, outside: float = 0.0) -> np.ndarray:
    """Resample to cubic voxels over the same extent: HU linearly, labels (uint8) by the nearest voxel."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.array))
    image.SetSpacing(volume.spacing)
    size = [max(1, round(n * mm / spacing_mm)) for n, mm in zip(image.GetSize(), volume.spacing)]
    start = [0.5 * (spacing_mm - mm) for mm in volume.spacing]
    labels = volume.array.dtype == np.uint8
    kind = sitk.sitkNearestNeighbor if labels else sitk.sitkLinear
    out = sitk.Resample(image, size, sitk.Transform(), kind, start, (spacing_mm,) * 3, image.GetDirection(), outside)
    return sitk.GetArrayFromImage(out)


def _stem(file: Path) -> str:
    return file.name.split(".")[0].removesuffix("_full")


def _classes_file(file: Path) -> Path:
    return file.with_name(_stem(file) + CLASSES_SUFFIX)


def _classes(file: Path) -> dict[int, str]:
    table = _classes_file(file)
    try:
        with open(table, encoding="utf-8", newline="") as stream:
            return {int(row[0]): row[1] for row in csv.reader(stream, delimiter="\t") if row}
    except (OSError, ValueError, IndexError) as error:
        raise InputError(f"{table} is no table of values and structures: {error}.") from error
