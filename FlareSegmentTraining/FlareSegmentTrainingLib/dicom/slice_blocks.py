"""CTs in blocks of 64 slices and whole again.

Public V-Net projects on FLARE22 feed their networks so: the DICOM files of a patient are moved to folders of 64 slices
each, and every folder is converted to one NIfTI file, mostly dropping what is left over. Here nothing is dropped (the
last block is shorter; a single slice, which would be no volume, stays with the block before it), every block knows its
place in the patient, and `join_blocks` gives back the same voxels on the same grid.

Blocks are `<case>_block01_ct.nii.gz` with `<case>_block01_labels.nii.gz`, which training reads as they are, or DICOM
series, one per block, in one study per patient. `blocks.json` says which belong together; quality.json keeps the blocks
of a patient on one side of a split.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_volume
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.conversion import read_list, write_nifti
from FlareSegmentTrainingLib.datasets.dataset_layouts import IMAGE_SUFFIX, LABELS_SUFFIX, QUALITY_FILE
from FlareSegmentTrainingLib.dicom.dicom_series import Identity, safe_name, write_series

BLOCKS_FILE = "blocks.json"
SLICES = 64


@dataclass(frozen=True)
class Block:
    """Slices of a volume.

    Attributes:
        first: index of its first slice in the whole.
    """

    first: int
    volume: Volume


def split(volume: Volume, slices: int = SLICES) -> list[Block]:
    """A volume in blocks of as many slices along its z axis; the last one may be shorter. Nothing is copied.

    Raises:
        InputError: fewer than two slices per block.
    """
    if slices < 2:
        raise InputError(f"--slices {slices} is not possible: a block needs at least 2 slices.")
    count = len(volume.array)
    starts = [start for start in range(0, count, slices) if start == 0 or count - start > 1]
    blocks = []
    for start, stop in zip(starts, [*starts[1:], count]):
        origin = volume.affine_lps @ [0, 0, start, 1]
        part = Volume(volume.array[start:stop], volume.spacing, tuple(origin[:3]), volume.direction, volume.name)
        blocks.append(Block(start, part))
    return blocks


def join(parts: Sequence[Volume], name: str) -> Volume:
    """The volume that blocks were cut from, in any order.

    Raises:
        InputError: they do not lie behind one another without a gap on one grid.
    """
    base = parts[0]
    step = base.direction[:, 2] * base.spacing[2]
    places = []
    for part in parts:
        offset = (np.array(part.origin) - base.origin) @ step / (step @ step)
        moved = np.array(base.origin) + round(float(offset)) * step
        expected = Volume(part.array, base.spacing, tuple(moved), base.direction)
        if part.array.shape[1:] != base.array.shape[1:] or not part.same_grid(expected, 0.02 * min(base.spacing)):
            raise InputError(f"{name}: the blocks do not lie on one grid; they were changed or belong to several CTs.")
        places.append(round(float(offset)))
    order = np.argsort(places)
    for before, after in zip(order, order[1:]):
        if places[before] + len(parts[before].array) != places[after]:
            raise InputError(f"{name}: a block is missing or there twice.")
    first = parts[order[0]]
    array = np.concatenate([parts[index].array for index in order])
    return Volume(array, base.spacing, first.origin, base.direction, name)


def write_blocks(
    output: Path, name: str, volume: Volume, labels: np.ndarray | None, slices: int, as_dicom: bool
) -> list[str]:
    """Write a case's blocks and enter them in blocks.json and, for NIfTI, quality.json; the lists come last.

    Args:
        labels: (z, y, x) uint8, or None. DICOM blocks have none.

    Returns:
        The blocks' names.

    Raises:
        InputError: the case is there already, or the folder cannot be written.
    """
    name = safe_name(name)
    manifest, quality = read_list(output / BLOCKS_FILE), read_list(output / QUALITY_FILE)
    if name in manifest:
        raise InputError(f"{output} holds blocks of {name} already: choose another folder.")
    entries = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".writing-") as private:
            for number, block in enumerate(split(volume, slices), start=1):
                title = f"{name}_block{number:02d}"
                stop = block.first + len(block.volume.array)
                entry: dict[str, Any] = {"first": block.first, "slices": stop - block.first}
                if as_dicom:
                    entry["ct"] = f"{name}/{title}"
                    write_series(Path(private, title), block.volume, Identity(name, number, f"{title}, CT"))
                else:
                    entry["ct"] = title + IMAGE_SUFFIX
                    if labels is not None:
                        entry["labels"] = title + LABELS_SUFFIX
                        write_nifti(Path(private, entry["labels"]), labels[block.first : stop], block.volume)
                    write_nifti(Path(private, entry["ct"]), block.volume.array, block.volume)
                    quality[title] = {"patient": name}
                entries.append(entry)
            for path in [entry[kind] for kind in ("labels", "ct") for entry in entries if kind in entry]:
                (output / path).parent.mkdir(exist_ok=True)
                os.replace(Path(private, Path(path).name), output / path)
        manifest[name] = {"slices": len(volume.array), "slices_per_block": slices, "blocks": entries}
        if not as_dicom:
            write_list(output / QUALITY_FILE, quality)
        write_list(output / BLOCKS_FILE, manifest)
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror or error}): choose another folder.") from error
    return [Path(entry["ct"]).name.removesuffix(IMAGE_SUFFIX) for entry in entries]


def join_blocks(folder: Path, output: Path) -> dict[str, Volume]:
    """Put all cases of a folder of blocks together again, as `<case>_ct.nii.gz` and `<case>_labels.nii.gz`.

    Returns:
        The CTs by case.

    Raises:
        InputError: there is no blocks.json, it is damaged, blocks are missing or changed, or a file is there already.
    """
    manifest = read_list(folder / BLOCKS_FILE)
    if not manifest:
        raise InputError(f"{folder} holds no {BLOCKS_FILE}: name a folder that `prepare.py blocks` wrote.")
    joined = {}
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=output, prefix=".writing-") as private:
            for name, entry in manifest.items():
                wholes = _wholes(folder, name, entry)
                for suffix, whole in wholes.items():
                    if (output / (name + suffix)).exists():
                        raise InputError(f"{output / (name + suffix)} is there already: choose another folder.")
                    write_nifti(Path(private, name + suffix), whole.array, whole)
                for suffix in reversed(wholes):
                    os.replace(Path(private, name + suffix), output / (name + suffix))
                joined[name] = wholes[IMAGE_SUFFIX]
    except OSError as error:
        raise InputError(f"{output} cannot be written ({error.strerror or error}): choose another folder.") from error
    return joined


def write_list(path: Path, content: dict) -> None:
    """Write a JSON object; the file appears whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)


def _wholes(folder: Path, name: str, entry: dict) -> dict[str, Volume]:
    if safe_name(name) != name:
        raise InputError(f"{folder / BLOCKS_FILE}: {name!r} cannot be the name of a case.")
    try:
        blocks, count = list(entry["blocks"]), int(entry["slices"])
        kinds = {IMAGE_SUFFIX: [str(block["ct"]) for block in blocks]}
        if all("labels" in block for block in blocks):
            kinds[LABELS_SUFFIX] = [str(block["labels"]) for block in blocks]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / BLOCKS_FILE} is damaged: the entry of {name} is incomplete.") from error
    wholes = {}
    for suffix, paths in kinds.items():
        for path in paths:
            if not (folder / path).resolve().is_relative_to(folder.resolve()):
                raise InputError(f"{folder / BLOCKS_FILE}: {path!r} lies outside of the folder.")
            if not (folder / path).exists():
                raise InputError(f"{folder / path} is missing: {name} cannot be put together.")
        whole = join([read_volume(folder / path)[0] for path in paths], name)
        if len(whole.array) != count:
            raise InputError(f"{name}: its blocks have {len(whole.array)} slices together, the CT had {count}.")
        wholes[suffix] = whole
    return wholes
