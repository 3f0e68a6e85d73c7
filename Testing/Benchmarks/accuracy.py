"""How good a model is, and how steady: `FLARE_DATA=folder python3 flare.py bench accuracy`, or for another model
`python Testing/Benchmarks/accuracy.py --model RUN/best --data folder`.

`folder/val` holds cases `<case>_ct.nii.gz` with `<case>_labels.nii.gz` that no training has seen, `folder/robustness`
CTs alone. Printed and written to Testing/Output as CSV:

accuracy    Dice, NSD (5 mm liver, 3 mm others), HD95 of each validation case on its own grid, and of built-in torsos
found       milliliters of each organ in the CTs of robustness
stability   Dice, to the labels of the unchanged CT, of the same CT shifted, turned, in thick slices, with other HU,
            with twice the noise
precision   Dice of bfloat16 to float32
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from measuring import validation_cases

from FlareSegmentLib.errors import FlareSegmentError
from FlareSegmentLib.files.image_io import check_is_ct, read_volume
from FlareSegmentLib.inference.pipeline import Segmenter
from FlareSegmentLib.measures.metrics import dice, evaluate
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.phantom.torso import make_phantom
from FlareSegmentLib.volume import Volume

OUTPUT = Path(__file__).resolve().parents[1] / "Output" / "benchmark_accuracy.csv"
AIR_HU = -1024.0
PHANTOMS = (0, 1, 2)


def image_of(volume: Volume, array: np.ndarray) -> sitk.Image:
    """An ITK image of an array on a volume's grid."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(volume.spacing)
    image.SetOrigin(volume.origin)
    image.SetDirection(np.asarray(volume.direction).ravel().tolist())
    return image


def noise_of(array: np.ndarray) -> float:
    """Standard deviation of the noise in soft tissue: Immerkaer's difference of Laplacians within slices (Computer
    Vision and Image Understanding 64, 1996), its median over voxels of -50 to 150 HU.
    """
    kernel = sitk.GetImageFromArray(np.array([[1, -2, 1], [-2, 4, -2], [1, -2, 1]], np.float64)[None])
    edges = sitk.GetArrayFromImage(sitk.Convolution(sitk.GetImageFromArray(array.astype(np.float64)), kernel))
    soft = (array > -50) & (array < 150)
    return float(np.median(np.abs(edges[soft])) / (0.6745 * 6.0)) if soft.any() else 0.0


def variants(volume: Volume) -> Iterator[tuple[str, Volume, sitk.Transform | None]]:
    """Yield (name, changed CT, how its places map to the unchanged CT's; None where they are the same)."""
    image = image_of(volume, volume.array.astype(np.float32))
    center = image.TransformContinuousIndexToPhysicalPoint([(count - 1) / 2 for count in image.GetSize()])

    def moved(transform: sitk.Transform, like: sitk.Image = image) -> Volume:
        changed = sitk.Resample(image, like, transform, sitk.sitkLinear, AIR_HU)
        return Volume(
            sitk.GetArrayFromImage(changed),
            changed.GetSpacing(),
            changed.GetOrigin(),
            np.array(changed.GetDirection()).reshape(3, 3),
        )

    shift = sitk.TranslationTransform(3, (7.3, -11.1, 4.7))
    turn = sitk.Euler3DTransform(center, 0.0, 0.0, np.radians(10.0))
    yield "shifted by 7, 11, 5 mm", moved(shift), shift
    yield "turned by 10 degrees", moved(turn), turn
    if image.GetSpacing()[2] < 4.5:
        size, spacing = list(image.GetSize()), list(image.GetSpacing())
        size[2], spacing[2] = max(1, round(size[2] * spacing[2] / 5.0)), 5.0
        thick = sitk.Image(size, sitk.sitkFloat32)
        thick.SetSpacing(spacing)
        thick.SetOrigin(image.TransformContinuousIndexToPhysicalPoint([0, 0, 0.5 * (5.0 / image.GetSpacing()[2] - 1)]))
        thick.SetDirection(image.GetDirection())
        yield "5 mm slices", moved(sitk.Transform(), thick), sitk.Transform()
    yield "40 HU brighter", volume.with_array(volume.array.astype(np.float32) + 40), None
    yield "40 HU darker", volume.with_array(volume.array.astype(np.float32) - 40), None
    added = np.sqrt(3.0) * noise_of(volume.array)
    noise = np.random.default_rng(0).normal(0.0, added, volume.array.shape)
    yield f"noise doubled (+{added:.0f} HU)", volume.with_array((volume.array + noise).astype(np.float32)), None


def stability(segmenter: Segmenter, volume: Volume, labels: np.ndarray) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each variant's Dice by organ."""
    for name, changed, transform in variants(volume):
        expected = labels
        if transform is not None:
            like = image_of(changed, changed.array)
            moved = sitk.Resample(image_of(volume, labels), like, transform, sitk.sitkNearestNeighbor, 0)
            expected = sitk.GetArrayFromImage(moved)
        found = segmenter.segment(changed).labels
        yield (
            name,
            {
                organ.key: dice(found == organ.label, expected == organ.label)
                for organ in segmenter.organs
                if (expected == organ.label).any()
            },
        )


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=bundled_model_folder())
    parser.add_argument("--data", type=Path, default=os.environ.get("FLARE_DATA"))
    options = parser.parse_args()
    model = load_model(options.model)
    segmenter = Segmenter(model)
    exact, fast = Segmenter(model, precision="float32"), Segmenter(model, precision="bfloat16")
    keys = [organ.key for organ in segmenter.organs]
    rows: list[list] = []

    def row(*cells: object) -> None:
        rows.append(list(cells))
        print("  ".join(f"{c:8.3f}" if isinstance(c, float) else f"{c!s:<22}" for c in cells), flush=True)

    print(f"{segmenter.name}, {segmenter.device}")
    row("table", "case", "measure", *keys)
    data = Path(options.data) if options.data else None
    if data is None:
        print("FLARE_DATA names no folder: built-in torsos only.")
    truths = [(f"torso {seed}", *make_phantom(seed)) for seed in PHANTOMS]
    truths += validation_cases(data) if data else []
    means: dict[str, list[list[float]]] = {"dice": [], "nsd": []}
    for name, volume, truth in truths:
        labels = segmenter.segment(volume).labels
        scores = evaluate(labels, truth, volume.spacing)
        for measure in ("dice", "nsd", "hd95_mm"):
            values = [scores[key][measure] for key in keys]
            row("accuracy", name, measure, *values)
            if measure in means and not name.startswith("torso"):
                means[measure].append(values)
        if name.startswith("torso"):
            continue
        for variant, values in stability(segmenter, volume, labels):
            row(
                "stability",
                name,
                variant,
                *(values.get(key, "-") for key in keys),
                float(np.mean(list(values.values()))),
            )
        pair = [part.segment(volume).labels for part in (exact, fast)]
        row("precision", name, "bfloat16 to float32", *(dice(*(p == o.label for p in pair)) for o in segmenter.organs))
    for measure, values in means.items():
        if values:
            row("accuracy", "mean of val", measure, *(float(value) for value in np.nanmean(values, axis=0)))
    for file in sorted(data.glob("robustness/*_ct.nii.gz")) if data else []:
        name = file.name[: -len("_ct.nii.gz")]
        try:
            volume = read_volume(file)[0]
            check_is_ct(volume)
            labels = segmenter.segment(volume).labels
        except FlareSegmentError as error:
            row("found", name, f"refused: {error}")
            continue
        milliliters = [
            float(np.count_nonzero(labels == organ.label)) * volume.voxel_volume_ml for organ in segmenter.organs
        ]
        row("found", name, "ml", *milliliters)
    OUTPUT.parent.mkdir(exist_ok=True)
    with open(OUTPUT, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(rows)
    print(f"Written to {OUTPUT}")


if __name__ == "__main__":
    main()
