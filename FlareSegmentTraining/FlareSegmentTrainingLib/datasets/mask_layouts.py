"""Data sets that keep a folder for each patient: TotalSegmentator and AbdomenAtlas (a file for each structure), KiTS (a
label map), CHAOS and 3D-IRCADb (DICOM with a mask for each slice). How such masks are read is in `label_files`.
"""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import organ_by_key
from FlareSegmentTrainingLib.datasets.file_pairs import (
    Found,
    LeftOut,
    Pair,
    composed,
    entries_of,
    folders_in,
    is_volume_name,
    volume_files,
    volume_stem,
)
from FlareSegmentTrainingLib.datasets.folder_layouts import with_label_map
from FlareSegmentTrainingLib.datasets.label_maps import LabelMap
from FlareSegmentTrainingLib.datasets.organ_names import organ_of_name
from FlareSegmentTrainingLib.datasets.parts import TEST, VALIDATION, side_of_word

_IMAGES = ("ct", "image", "imaging", "img", "volume", "scan")
_LABELS = ("labels", "label", "segmentation", "seg", "mask", "combined_labels", "segmentations")
_MASK_FOLDERS = ("segmentations", "segmentation", "masks", "labels")
_META = "meta.csv"
_IRCAD = ("PATIENT_DICOM", "MASKS_DICOM")
_CHAOS = ("DICOM_anon", "Ground")


def subjects(folder: Path) -> Found | None:
    """A folder for each case, with ct.nii.gz (or image, imaging ...) and segmentations/<structure>.nii.gz, or one label
    map, in it; TotalSegmentator's meta.csv says which cases are for tests.
    """
    pairs: list[Pair] = []
    left_out: list[LeftOut] = []
    inner = folders_in(folder)
    for entry in inner or ():
        pair = _subject(entry)
        if isinstance(pair, Pair):
            pairs.append(pair)
        elif pair is not None:
            left_out.append(pair)
    if not pairs and (own := _subject(folder)) is not None:
        (pairs if isinstance(own, Pair) else left_out).append(own)  # type: ignore[arg-type]
    if not pairs:
        return None
    sides = _sides(folder / _META)
    tests = [pair for pair in pairs if sides.get(pair.name) == TEST]
    pairs = [replace(pair, fixed_set=sides.get(pair.name)) for pair in pairs if pair not in tests]
    if all(pair.fixed_set != VALIDATION for pair in pairs):
        pairs = [replace(pair, fixed_set=None) for pair in pairs]
    unused = (f"{len(tests)} cases that {_META} keeps for tests",) if tests else ()
    return with_label_map(Found("subjects", tuple(pairs), tuple(left_out), unused), folder)


def _subject(folder: Path) -> Pair | LeftOut | None:
    try:
        names = {entry.name for entry in folder.iterdir()}
    except OSError:
        return None
    volumes = {volume_stem(name).lower(): folder / name for name in sorted(names) if is_volume_name(name)}
    image = next((volumes[name] for name in _IMAGES if name in volumes), None)
    if image is None:
        return None
    masks = next((folder / name for name in _MASK_FOLDERS if name in names and (folder / name).is_dir()), None)
    if masks is not None:
        organs = organs_of_masks(masks)
        if not organs:
            return LeftOut(composed(folder.name), f"{masks.name}/ holds no mask of an organ")
        return Pair(composed(folder.name), image, masks, table_of_masks(masks))
    name = composed(folder.name)
    labels = next((volumes[stem] for end in ("", ".seg") for word in _LABELS if (stem := word + end) in volumes), None)
    if labels is None:  # one segmentation of Slicer, whatever it is called
        segmentations = [file for stem, file in volumes.items() if stem.endswith(".seg")]
        labels = segmentations[0] if len(segmentations) == 1 else None
    return Pair(name, image, labels) if labels is not None else LeftOut(name, "it has no labels")


def organs_of_masks(folder: Path) -> dict[str, list[Path]]:
    """Organ key -> the masks of it in a folder: volumes, or folders of DICOM slices."""
    entries = [(stem, file) for stem, file in volume_files(folder).items()] or [
        (entry.name, entry) for entry in folders_in(folder)
    ]
    result: dict[str, list[Path]] = {}
    for name, path in entries:
        key = organ_of_name(name)
        if key is not None:
            result.setdefault(key, []).append(path)
    return result


def masks_of_cases(folder: Path) -> dict[str, Path]:
    """Case -> its folder of masks, where a folder holds one for each case (<case>/liver.nii.gz, also in
    <case>/segmentations/) and no volume itself.
    """
    if any(is_volume_name(entry.name) for entry in entries_of(folder)):
        return {}
    result: dict[str, Path] = {}
    for entry in folders_in(folder):
        places = [entry, *(entry / name for name in _MASK_FOLDERS if (entry / name).is_dir())]
        masks = [place for place in places if organs_of_masks(place)]
        if masks:
            result[composed(entry.name)] = masks[0]
    return result


def table_of_masks(folder: Path) -> LabelMap:
    """The table of a folder of masks, by their names."""
    return _table_of(organs_of_masks(folder), f"names of the masks in {folder.name}/")


def _table_of(organs, source: str) -> LabelMap:
    """A table that gives each organ FlareSegment's own value, as `label_files` reads masks."""
    values = sorted((organ_by_key(key).label, key) for key in organs)
    return LabelMap(source, tuple(values), source=source)


def _sides(meta: Path) -> dict[str, str]:
    """Case -> part, from TotalSegmentator's table. Raises InputError."""
    if not meta.is_file():
        return {}
    try:
        text = meta.read_text(encoding="utf-8-sig")
        rows = list(csv.DictReader(text.splitlines(), delimiter=";" if ";" in text.split("\n", 1)[0] else ","))
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{meta} cannot be read: {error}.") from error
    found = ((row.get("image_id"), side_of_word(row.get("split") or "")) for row in rows)
    return {name: side for name, side in found if name and side}


def ircad(folder: Path) -> Found | None:
    """3D-IRCADb: folders with PATIENT_DICOM/ and MASKS_DICOM/<structure>/, slices of one name in both."""
    pairs = []
    for entry in [folder, *folders_in(folder)]:
        image, masks = (entry / name for name in _IRCAD)
        if not image.is_dir() or not masks.is_dir():
            continue
        organs = organs_of_masks(masks)
        pairs.append(
            Pair(composed(entry.name), image, masks, _table_of(organs, "names of the folders in MASKS_DICOM/"))
        )
    return Found("ircad", tuple(pairs)) if pairs else None


def chaos(folder: Path) -> Found | None:
    """CHAOS: folders with DICOM_anon/ and Ground/, a picture of the liver for each slice of the CT."""
    pairs = []
    for entry in [folder, *folders_in(folder)]:
        image, masks = (entry / name for name in _CHAOS)
        if not image.is_dir() or not masks.is_dir() or any(entry.is_dir() for entry in image.iterdir()):
            continue  # MR has folders in DICOM_anon/
        if not any(re.match(r"liver", mask.name, re.IGNORECASE) for mask in masks.glob("*.png")):
            continue
        name = f"{folder.name}_{entry.name}" if entry != folder else f"{folder.parent.name}_{folder.name}"
        pairs.append(Pair(composed(name), image, masks, _table_of(["liver"], "pictures called liver in Ground/")))
    return Found("chaos", tuple(pairs)) if pairs else None
