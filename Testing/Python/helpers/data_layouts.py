"""Small synthetic CTs with labels, written in the ways public data sets lie on a disk; used by the `test_data_*.py`
files.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import SimpleITK

SHAPE = (12, 20, 24)
SPACING = (3.0, 2.5, 4.0)


def ct_and_labels(seed: int, values: tuple[int, ...] = (1, 2, 3, 4)) -> tuple[np.ndarray, np.ndarray]:
    """A body with fat around it in air, int16 HU, with one block of 3 x 4 x 4 voxels for each value, uint8; (z, y,
    x).
    """
    generator = np.random.default_rng(seed)
    ct = np.full(SHAPE, -1000, np.int16)
    ct[:, 2:-2, 2:-2] = generator.normal(-100, 12, (SHAPE[0], SHAPE[1] - 4, SHAPE[2] - 4))
    ct[:, 3:-3, 3:-3] = generator.normal(40, 15, (SHAPE[0], SHAPE[1] - 6, SHAPE[2] - 6))
    labels = np.zeros(SHAPE, np.uint8)
    places = [(z, y, x) for z in (1, 5, 8) for y in (3, 8, 13) for x in (3, 8, 13, 18)]
    for value, (z, y, x) in zip(values, places):
        labels[z : z + 3, y : y + 4, x : x + 4] = value
    return ct, labels


def write(path: Path, array: np.ndarray, spacing=SPACING, origin=(-30.0, -25.0, 100.0), direction=None) -> Path:
    """Write an array as the volume that the file's name says, anywhere in the patient."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin(origin)
    if direction is not None:
        image.SetDirection(np.asarray(direction, float).ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return path


def write_pair(image: Path, labels: Path, seed: int, values: tuple[int, ...] = (1, 2, 3, 4)) -> None:
    """Write one case."""
    ct, truth = ct_and_labels(seed, values)
    write(image, ct)
    write(labels, truth)


def flare22(folder: Path, count: int = 3) -> Path:
    """FLARE22Train as it unpacks; all 13 values in each case."""
    for number in range(1, count + 1):
        write_pair(
            folder / f"images/FLARE22_Tr_{number:04d}_0000.nii.gz",
            folder / f"labels/FLARE22_Tr_{number:04d}.nii.gz",
            number,
            tuple(range(1, 14)),
        )
    return folder


def decathlon(folder: Path, task: str = "liver", count: int = 2) -> Path:
    """A task of the Medical Segmentation Decathlon with its hidden macOS files."""
    labels = {"liver": {"0": "background", "1": "liver", "2": "cancer"}, "spleen": {"0": "background", "1": "spleen"}}[
        task
    ]
    names = [f"{task}_{number}" for number in range(count)]
    for number, name in enumerate(names):
        values = tuple(int(value) for value in labels if value != "0")
        write_pair(folder / f"imagesTr/{name}.nii.gz", folder / f"labelsTr/{name}.nii.gz", number, values)
        (folder / f"imagesTr/._{name}.nii.gz").write_bytes(b"macOS")
    content = {
        "name": task.title(),
        "modality": {"0": "CT"},
        "labels": labels,
        "numTraining": count,
        "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        "test": ["./imagesTs/x_9.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def nnunet(folder: Path, version: int, count: int = 2) -> Path:
    """nnU-Net's raw data in the dataset.json of version 1 or 2; values are in another order than FlareSegment's."""
    names = [f"case_{number:04d}" for number in range(count)]
    for number, name in enumerate(names):
        write_pair(folder / f"imagesTr/{name}_0000.nii.gz", folder / f"labelsTr/{name}.nii.gz", number, (1, 2, 3, 4, 5))
    meanings = ["background", "spleen", "left kidney", "kidney_right", "Liver", "uterus"]
    if version == 1:
        content = {
            "modality": {"0": "CT"},
            "labels": {str(value): name for value, name in enumerate(meanings)},
            "training": [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in names],
        }
    else:
        labels = {name: value for value, name in enumerate(meanings)}
        content = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": count, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


def flat(
    folder: Path, names: tuple[str, ...] = ("a", "b"), values: tuple[int, ...] = (1, 2, 3, 4), first_seed: int = 0
) -> Path:
    """The project's own layout."""
    for seed, name in enumerate(names, start=first_seed):
        write_pair(folder / f"{name}_ct.nii.gz", folder / f"{name}_labels.nii.gz", seed, values)
    return folder
