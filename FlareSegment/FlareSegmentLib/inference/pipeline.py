"""The way of the data: a CT in, organ labels on the CT's own grid out.

The CT is checked, seen in the patient's axes (straightened first, where its own lie more than OBLIQUE_DEGREES off
them), labeled by the model's stages (`stages`), on the CPU where a GPU fails, and its labels are put back into the CT's
own axis order and looked over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import checked_ct
from FlareSegmentLib.inference.compute_devices import choose_device, number_type
from FlareSegmentLib.inference.confidence import Confidence, Evidence, confidence_of
from FlareSegmentLib.inference.oblique_volumes import labels_on_grid_of, straighten
from FlareSegmentLib.inference.plausibility import doubts
from FlareSegmentLib.inference.postprocessing import describe
from FlareSegmentLib.inference.review_places import Place, find_places
from FlareSegmentLib.inference.run_state import Run
from FlareSegmentLib.inference.stages import SegmentationModel, StagedLabeling
from FlareSegmentLib.inference.tiled_network import TiledNetwork
from FlareSegmentLib.measures.organ_statistics import keep_only, organ_boxes
from FlareSegmentLib.model.description import Stage
from FlareSegmentLib.model.model_card import bundled_model_folder
from FlareSegmentLib.model.model_file import load_model
from FlareSegmentLib.organs import Organ, organ_by_key
from FlareSegmentLib.request import SegmentationRequest
from FlareSegmentLib.volume import Volume

OBLIQUE_DEGREES = 15.0
COARSE_SLICES_MM = 6.0


@dataclass
class Segmentation:
    """Organ labels of a CT.

    Attributes:
        labels: (z, y, x) uint8 on the CT's own grid and in its axis order, with the values of `organs`.
        seconds: {"preprocess", "network", "postprocess"}.
        warnings: texts for the user.
        device: where the network ran.
        model: the model's name and version.
        organs: what the model can find, in the order of its classes.
        boxes: {organ key: its box (z, y, x)} of those that were found.
        confidence: how sure the model is; None where nobody asked.
        places: where to look first, worst first, where the confidence was asked for.
    """

    labels: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    device: str = "cpu"
    model: str = ""
    organs: tuple[Organ, ...] = ()
    boxes: dict[str, tuple[slice, ...]] = field(default_factory=dict)
    confidence: Confidence | None = None
    places: list[Place] = field(default_factory=list)


class Segmenter:
    """A model ready to run on a device; keep it for several CTs.

    Args:
        model: from `model_file.load_model`.
        device: "auto", or an id of `compute_devices`.
        threads: CPU threads of the network; None for one per core.
        precision: one of `compute_devices.PRECISIONS`; "auto" takes bfloat16 where the device computes it fast.

    Raises:
        InputError: the device does not exist here.
    """

    def __init__(
        self, model: SegmentationModel, device: str = "auto", threads: int | None = None, precision: str = "auto"
    ) -> None:
        self.model = model
        self.device = choose_device(device)
        self.threads = threads
        self._precision = precision
        self._networks: dict[str, TiledNetwork] = {}
        self.organs = tuple(organ_by_key(key) for _, key in sorted(model.description.labels.items()))

    @classmethod
    def of(cls, request: SegmentationRequest) -> Segmenter:
        """The segmenter for a request's model, device and threads. Raises InputError or ModelError."""
        return cls(load_model(request.model or bundled_model_folder()), request.device, request.threads)

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self.model.description.name} {self.model.description.version}"

    def segment(
        self,
        volume: Volume,
        request: SegmentationRequest | None = None,
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Segmentation:
        """Label the organs of a CT.

        Args:
            volume: HU, any orientation, spacing, extent and number type; not changed.
            request: its organs and region are kept, all without it, and a review is made if it says so; where its
                networks run was said to the segmenter.
            progress: called with the fraction of the work done, rising from 0 to 1, and what is being done.
            cancelled: polled often, also between the network's layers.

        Raises:
            InputError: the volume is no CT, or the model does not know one of the organs.
            Cancelled: `cancelled` returned True.
            MemoryError: there is not enough memory on the CPU.
        """
        request = request or SegmentationRequest()
        kept, region = self._organs_to_keep(request.organs), request.region
        run = Run(progress or (lambda fraction, stage: None), cancelled or (lambda: False), kept)
        run.evidence = Evidence() if request.review else None
        with run.timed("preprocess"):
            run.begin("Checking the CT", 0.02)
            volume, warnings = checked_ct(volume)
            run.warnings += warnings
            if max(volume.spacing) > COARSE_SLICES_MM:
                run.warnings.append(f"Slices are {max(volume.spacing):.1f} mm apart: small organs may be inaccurate.")
        with _threads(self.threads), torch.inference_mode(), torch.backends.cudnn.flags(deterministic=True):
            everything = labels = self._on_some_device(volume, run)
        with run.timed("postprocess"):
            if request.organs is not None or region is not None:
                labels = keep_only(labels, kept, region)
            boxes = organ_boxes(labels, kept)
            remarks = [*run.warnings, *(against := doubts(volume, labels, kept, boxes))]
            if region is None:
                run.warnings += describe(labels, kept, volume.voxel_volume_ml, boxes=boxes)
            else:
                run.warnings += describe(labels[region], kept, volume.voxel_volume_ml, "region")
            run.warnings += against
            found = Segmentation(labels, run.seconds, run.warnings, self.device, self.name, kept, boxes)
            if run.evidence is not None:
                found.confidence = confidence_of(run.evidence, volume, everything, self.organs)
                found.places = find_places(run.evidence, volume, labels, self.organs, kept, boxes, region, remarks)
        run.finish()
        return found

    def _organs_to_keep(self, keys: Sequence[str] | None) -> tuple[Organ, ...]:
        if keys is None:
            return self.organs
        unknown = [key for key in keys if key not in {organ.key for organ in self.organs}]
        if unknown or not keys:
            known = ", ".join(organ.key for organ in self.organs)
            raise InputError(f"The model does not segment {', '.join(unknown) or 'nothing'}: choose from {known}.")
        return tuple(organ for organ in self.organs if organ.key in keys)

    def _on_some_device(self, volume: Volume, run: Run) -> np.ndarray:
        try:
            return self._any_orientation(volume, run)
        except (RuntimeError, NotImplementedError) as error:
            if self.device == "cpu":
                if "allocate memory" in str(error):
                    raise MemoryError("There is not enough memory for the network.") from error
                raise
            reason = "its memory is too small" if isinstance(error, torch.cuda.OutOfMemoryError) else "it failed"
            run.warnings.append(f"The CPU was used instead of {self.device}: {reason}.")
        self.device = "cpu"
        self._networks.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return self._any_orientation(volume, run)

    def _any_orientation(self, volume: Volume, run: Run) -> np.ndarray:
        if volume.tilt_degrees <= OBLIQUE_DEGREES:
            return self._label(volume, run)
        with run.timed("preprocess"):
            run.begin("Straightening the axes", 0.0)
            straight = straighten(volume, self.model.description.intensity.lower)
        labels = self._label(straight, run)
        with run.timed("postprocess"):
            return labels_on_grid_of(volume, straight, labels, self.organs)

    def _label(self, volume: Volume, run: Run) -> np.ndarray:
        return StagedLabeling(self.model, self._network, self.device, volume, run).labels()

    def _network(self, stage: Stage) -> TiledNetwork:
        if stage.name not in self._networks:
            dtype = number_type(self._precision, self.device)
            self._networks[stage.name] = TiledNetwork(
                self.model.network(stage.name), self.model.stage_multiple(stage.name), self.device, dtype
            )
        return self._networks[stage.name]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
