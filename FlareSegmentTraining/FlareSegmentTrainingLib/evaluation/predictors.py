"""What is measured, and against what.

A `Predictor` gives the labels of a CT: a model, or a folder of label maps. References without CTs are cases too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.organs import FLARE22_ORGANS
from FlareSegmentLib.volume import Volume
from FlareSegmentTrainingLib.datasets.archives import sha256
from FlareSegmentTrainingLib.datasets.cases import Case, cases_of_pairs
from FlareSegmentTrainingLib.datasets.dataset_layouts import Found, LeftOut, Pair, read_quality
from FlareSegmentTrainingLib.datasets.label_files import files_of, read_case_labels, read_labels_alone
from FlareSegmentTrainingLib.datasets.label_maps import IGNORED, LabelMap
from FlareSegmentTrainingLib.evaluation.identities import digest, identity_of_model
from FlareSegmentTrainingLib.evaluation.label_folders import LabelFolder
from FlareSegmentTrainingLib.evaluation.roles import NEW, made_with, roles_of_cases

if TYPE_CHECKING:
    from FlareSegmentLib.inference.pipeline import Segmenter


_AIR_HU = -1024


@dataclass(frozen=True)
class Prediction:
    """Labels of a CT, uint8 (z, y, x) on its grid in FlareSegment's values, and what is to be said about them."""

    labels: np.ndarray
    warnings: list[str] = field(default_factory=list)


class Predictor(Protocol):
    """What gives the labels that are measured. One that knows the scans it was made with has them in `made_with` too.

    Attributes:
        kind: "model" or "label maps".
        name: what the report calls it.
        identity: tells it from others; of a model, the SHA-256 of its files.
        organs: keys of the organs that it can find.
    """

    kind: str
    name: str
    identity: str
    organs: frozenset[str]

    def identity_of(self, case: str) -> str:
        """SHA-256 of what the prediction of this case depends on. Raises InputError where there is none."""
        ...

    def role_of(self, case: str) -> str | None:
        """What the case was when the model was made: TRAINED, VALIDATED or NEW; None where nobody knows."""
        ...

    def predict(self, case: str, volume: Volume) -> Prediction:
        """The labels of a case's CT. Raises FlareSegmentError."""
        ...


_segmenters: dict[tuple[str, str], Segmenter] = {}
"""The one that this process used last, by the model's identity and the device. A predictor goes to a worker with each
case; the model is loaded there once.
"""


class ModelPredictor:
    """A model folder run on a device; PyTorch's networks are made when the first case needs them.

    Raises:
        ModelError: there is no usable model in the folder.
        InputError: the device is not there.
    """

    kind = "model"

    def __init__(self, folder: Path, device: str = "auto") -> None:
        from FlareSegmentLib.inference.compute_devices import choose_device
        from FlareSegmentLib.model.description import read_description

        description = read_description(folder)
        choose_device(device)
        self._folder, self._device = folder.absolute(), device
        self.name = f"{description.name} {description.version}"
        self.organs = frozenset(description.labels.values())
        self.identity = identity_of_model(folder)
        self._roles = roles_of_cases(folder, description.facts)
        self.made_with = made_with(folder, description.facts)

    def identity_of(self, case: str) -> str:
        return self.identity

    def role_of(self, case: str) -> str | None:
        return None if self._roles is None else self._roles.get(case, NEW)

    def predict(self, case: str, volume: Volume) -> Prediction:
        from FlareSegmentLib.inference.compute_devices import choose_device
        from FlareSegmentLib.inference.pipeline import Segmenter
        from FlareSegmentLib.model.model_file import load_model

        key = (self.identity, self._device)
        if key not in _segmenters:
            _segmenters.clear()
            _segmenters[key] = Segmenter(load_model(self._folder), device=choose_device(self._device))
        segmentation = _segmenters[key].segment(volume)
        return Prediction(segmentation.labels, segmentation.warnings)


class FolderPredictor:
    """A folder of label maps, one for each case: <case>_labels.nii.gz, <case>.nii.gz or the like, also what `segment`
    wrote for <case>_ct; or of a folder of masks for each case (<case>/liver.nii.gz).

    Args:
        label_map: what their values mean; by default what names in the files, labels.json, dataset.json or a table of
            classes in the folder say, or FlareSegment's own four.

    Raises InputError where the folder holds no label map.
    """

    kind = "label maps"

    def __init__(self, folder: Path, label_map: LabelMap | None = None) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder; name the folder of the predicted label maps.")
        self.folder = LabelFolder(folder, label_map, "--prediction-label-map")
        self._label_map = self.folder.label_map
        self.name = folder.resolve().name
        # Not the files' content: each has its own key, and label maps may be added between two runs.
        self.identity = digest([str(folder.resolve()), self._label_map.organs])
        self.organs = frozenset().union(*(self._meaning(file).labeled for file in self.folder.files.values()))

    def _meaning(self, file: Path) -> LabelMap:
        try:
            return self.folder.meaning(file)
        except InputError:
            return self._label_map  # what is wrong is said of the case

    def identity_of(self, case: str) -> str:
        file = self._file(case)
        meaning = self.folder.meaning(file)
        return digest([*map(sha256, files_of(file, meaning)), meaning.organs, sorted(self.organs - meaning.labeled)])

    def role_of(self, case: str) -> str | None:
        return None

    def predict(self, case: str, volume: Volume) -> Prediction:
        file = self._file(case)
        try:
            meaning = self.folder.meaning(file)
            labels, remarks = read_case_labels(file, meaning, volume, file)
            if (labels == IGNORED).any():
                raise InputError("it holds voxels to be ignored, which only a reference can have")
            names = ", ".join(
                organ.name.lower() for organ in FLARE22_ORGANS if organ.key in self.organs - meaning.labeled
            )
            lacking = [f"Its prediction names no {names}, which counts as not found."] if names else []
            return Prediction(labels, [*remarks, *lacking])
        except InputError as error:
            raise InputError(f"its prediction: {error}".replace(" --label-map", " --prediction-label-map")) from error

    def _file(self, case: str) -> Path:
        stem = self.folder.stem_of(case)
        if stem is None:
            raise InputError(f"no prediction is called {case}")
        return self.folder.files[stem]


class LabelsOnlyCase(Case):
    """A case whose CT is not there: its reference label map, in air."""

    def read(self) -> tuple[Volume, np.ndarray, list[str]]:
        """As `Case.read`, with a volume of air in the CT's place."""
        assert self.labels is not None
        found = read_labels_alone(self.labels, self.label_map)
        return found.with_array(np.full(found.array.shape, _AIR_HU, np.int16)), found.array, []


def find_references(
    folder: Path, label_map: LabelMap | None, left_out: Callable[[LeftOut], None]
) -> list[LabelsOnlyCase]:
    """The label maps of a folder as cases without CT; grades come from its quality.json, the values' meaning from the
    files, labels.json, dataset.json or a table of classes. Raises InputError where it holds none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; name the folder of the reference label maps.")
    quality, found = read_quality(folder), LabelFolder(folder, label_map)
    files = sorted(found.named().items())
    pairs = [
        Pair(name, file, file, found.meaning(file) if file.is_dir() else found.label_map, grades=quality.get(name, {}))
        for name, file in files
    ]
    cases = cases_of_pairs(Found("labels", tuple(pairs)), str(folder), label_map, left_out)
    plain = [{item.name: getattr(case, item.name) for item in fields(case)} for case in cases]
    return [LabelsOnlyCase(**{**values, "image": None}) for values in plain]
