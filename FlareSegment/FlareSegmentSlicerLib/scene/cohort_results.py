"""What a cohort has found so far, a few records at a time, and one of its CTs with its organs in the scene."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import slicer

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import ORGANS
from FlareSegmentSlicerLib.scene.file_loading import show_as_ct
from FlareSegmentSlicerLib.scene.segmentation_nodes import create_segmentation


@dataclass(frozen=True)
class CohortResult:
    """A case that was worked on.

    Attributes:
        name: its files', by which it is found in the list.
        volumes_ml: organ key -> mL; empty where it failed.
        error: why it failed. warnings: what is to be said beside a result.
        labels: its label map, below the folder; values: organ key -> value in it.
    """

    name: str
    case: str
    volumes_ml: dict[str, float]
    error: str
    warnings: tuple[str, ...]
    labels: str
    values: dict[str, int]


class CohortResults:
    """The records in a folder of results, those that are new or have changed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._times: dict[str, float] = {}
        self._walk: Iterator[Path] | None = None

    def next_changed(self, most: int) -> list[CohortResult]:
        """Look at `most` more files, from the first one again after the last; returns the records among them that are
        news.
        """
        found = []
        if self._walk is None:
            self._walk = (self.folder / "cases").rglob("*.json")
        for _number in range(most):
            file = next(self._walk, None)
            if file is None:
                self._walk = None
                break
            record = self._read(file)
            if record is not None:
                found.append(record)
        return found

    def _read(self, file: Path) -> CohortResult | None:
        name = file.relative_to(self.folder / "cases").as_posix().removesuffix(".json")
        try:
            time = file.stat().st_mtime
            if self._times.get(name) == time:
                return None
            content = json.loads(file.read_text(encoding="utf-8"))
            organs = content.get("organs") or {}
            volumes = {key: float(figures["volume_ml"]) for key, figures in organs.items()}
            labels = (content.get("files") or {}).get("labels", "")
            values = {key: int(figures["label"]) for key, figures in organs.items()}
            warnings = tuple(content.get("warnings", ()))
            result = CohortResult(name, content["case"], volumes, content.get("error") or "", warnings, labels, values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # it is just being written, or no record
        self._times[name] = time
        return result

    def load(self, result: CohortResult) -> tuple[Any, Any]:
        """Add a case's CT and organs to the scene and show them; returns both nodes. Raises InputError."""
        from FlareSegmentLib.files.dicom_folder import read_slices
        from FlareSegmentLib.files.image_io import read_labels, read_volume

        entry = self._listed(result.name)
        source = Path(entry["source"])
        if entry.get("files"):
            volume, _said = read_slices(source, [source / name for name in entry["files"]])
        else:
            volume, _said = read_volume(source)
        labels = read_labels(self.folder / result.labels, like=volume)
        table = np.zeros(256, np.uint8)
        for organ in ORGANS:
            table[result.values.get(organ.key, 0)] = organ.label
        table[0] = 0
        volume_node = slicer.util.addVolumeFromArray(volume.array, ijkToRAS=volume.affine_ras, name=result.case)
        try:
            segmentation_node = create_segmentation(volume_node, table[labels.array])
        except Exception:
            slicer.mrmlScene.RemoveNode(volume_node)
            raise
        show_as_ct(volume_node)
        return volume_node, segmentation_node

    def _listed(self, name: str) -> dict[str, Any]:
        """The list's entry of a case. Raises InputError."""
        file = self.folder / "list.jsonl"
        try:
            with open(file, encoding="utf-8") as stream:
                for line in stream:
                    entry = json.loads(line)
                    if entry["name"] == name:
                        return entry
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} cannot be read: {error}. Start again, and it is made anew.") from error
        raise InputError(f"{name} is no longer among the CTs of this cohort.")
