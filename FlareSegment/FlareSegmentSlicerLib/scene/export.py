"""A result as files for other programs. Every file appears whole or not at all; nothing in the scene changes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import slicer
import vtk
from slicer.i18n import tr as _

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.disk_space import why_not_written
from FlareSegmentLib.organs import FLARE22_ORGANS, Organ
from FlareSegmentLib.processes import private_folder
from FlareSegmentLib.volume import Volume
from FlareSegmentSlicerLib.scene import comparison, segmentation_nodes


def present_organs(segmentationNode: slicer.vtkMRMLSegmentationNode) -> tuple[Organ, ...]:
    """The organs that a result holds, in the order of their label values."""
    keys = segmentation_nodes.organ_segments(segmentationNode)
    return tuple(organ for organ in FLARE22_ORGANS if organ.key in keys)


def result_arrays(segmentationNode: slicer.vtkMRMLSegmentationNode) -> tuple[Volume, np.ndarray]:
    """The CT of a result and its labels (z, y, x) uint8 on the CT's grid. Raises InputError if the CT is gone."""
    volumeNode = segmentation_nodes.reference_volume(segmentationNode)
    if volumeNode is None:
        raise InputError(_("The CT of {name} is gone.").format(name=segmentationNode.GetName()))
    return segmentation_nodes.volume_from_node(volumeNode), comparison.label_map(segmentationNode, volumeNode)


def export_label_map(
    segmentationNode: slicer.vtkMRMLSegmentationNode, path: Path, values: Mapping[str, int]
) -> list[Path]:
    """Write the labels on the CT's grid, as NIfTI, NRRD or MetaImage. values: {organ key: label value, 1 to 255}.

    Raises InputError where that cannot be done, or two organs have one value.
    """
    from FlareSegmentLib.files.image_io import write_labels

    organs = present_organs(segmentationNode)
    chosen = [values[organ.key] for organ in organs]
    if len(set(chosen)) < len(chosen) or not all(1 <= value <= 255 for value in chosen):
        raise InputError(_("Label values must be different numbers from 1 to 255."))
    volume, labels = result_arrays(segmentationNode)
    table = np.zeros(256, np.uint8)
    for organ in organs:
        table[organ.label] = values[organ.key]
    write_labels(path, table[labels], volume)
    return [path]


def export_surfaces(segmentationNode: slicer.vtkMRMLSegmentationNode, folder: Path, kind: str) -> list[Path]:
    """Write the organs' surfaces as "STL" (one file for each) or "OBJ" (one file with its materials), LPS, mm.

    They lie where the label map and the CT's own file do: a transform that the CT is under in the scene is not applied.
    """
    segment_ids = vtk.vtkStringArray()
    for segment_id in segmentation_nodes.organ_segments(segmentationNode).values():
        segment_ids.InsertNextValue(segment_id)
    segmentationNode.CreateClosedSurfaceRepresentation()
    with (
        _writing(folder),
        private_folder(folder) as private,
        _without_transform(segmentationNode) as exported,
    ):
        done = slicer.vtkSlicerSegmentationsModuleLogic.ExportSegmentsClosedSurfaceRepresentationToFiles(
            private, exported, segment_ids, kind, True, 1.0, False
        )
        files = sorted(Path(private).iterdir())
        if not done or not files:
            raise InputError(_("Slicer could not write the surfaces into {folder}.").format(folder=folder))
        for file in files:
            os.replace(file, folder / file.name)
    return [folder / file.name for file in files]


@contextmanager
def _without_transform(segmentationNode: slicer.vtkMRMLSegmentationNode) -> Iterator[slicer.vtkMRMLSegmentationNode]:
    """The node, or where a transform moves it a copy that shares its segments and is gone afterwards."""
    if segmentationNode.GetParentTransformNode() is None:
        yield segmentationNode
        return
    copy = slicer.vtkMRMLSegmentationNode()
    copy.SetName(segmentationNode.GetName())
    copy.SetHideFromEditors(True)
    slicer.mrmlScene.AddNode(copy)
    try:
        copy.GetSegmentation().DeepCopy(segmentationNode.GetSegmentation())
        yield copy
    finally:
        slicer.mrmlScene.RemoveNode(copy)


def export_dicom(segmentationNode: slicer.vtkMRMLSegmentationNode, path: Path) -> list[Path]:
    """Write a DICOM Segmentation of the CT's own series. Raises InputError, also for a CT that is not from DICOM."""
    from FlareSegmentLib.files.dicom_segmentation import write_dicom_segmentation

    volumeNode = segmentation_nodes.reference_volume(segmentationNode)
    files = _dicom_files(volumeNode) if volumeNode else []
    if not files:
        raise InputError(
            _("{name} was not loaded from DICOM: a DICOM segmentation refers to the files of its CT.").format(
                name=volumeNode.GetName() if volumeNode else segmentationNode.GetName()
            )
        )
    volume, labels = result_arrays(segmentationNode)
    description = segmentation_nodes.read_description(segmentationNode)
    write_dicom_segmentation(
        path,
        volume.with_array(labels),
        files,
        organs=present_organs(segmentationNode),
        algorithm=("FlareSegment", str(description.get("Version", ""))),
    )
    return [path]


def export_pictures(
    segmentationNode: slicer.vtkMRMLSegmentationNode, folder: Path, progress: Callable[[float], None]
) -> list[Path]:
    """Write a picture of slices and one in 3D (see `pictures`), both or none; progress is told the share that is done,
    0 to 1. Raises InputError or RenderingUnavailable.
    """
    from FlareSegmentSlicerLib.rendering.pictures import slices_png, surfaces_png

    volume, labels = result_arrays(segmentationNode)
    progress(0.1)
    organs = present_organs(segmentationNode)
    stem = _file_name(segmentationNode)
    names = [f"{stem}_slices.png", f"{stem}_3d.png"]
    with _writing(folder), private_folder(folder) as private:
        slices_png(Path(private, names[0]), volume, labels, organs)
        progress(0.4)
        done = (0.4 + 0.6 * (number + 1) / len(organs) for number in range(len(organs)))
        surfaces_png(Path(private, names[1]), volume, labels, organs, tick=lambda: progress(next(done)))
        for name in names:
            os.replace(Path(private, name), folder / name)
    return [folder / name for name in names]


def export_video(
    segmentationNode: slicer.vtkMRMLSegmentationNode, path: Path, kind: str, progress: Callable[[float], None]
) -> list[Path]:
    """Write the video "slices" or "turntable" (see `videos`); progress is told the share that is done, 0 to 1. Raises
    InputError or VideoUnavailable.
    """
    from FlareSegmentSlicerLib.rendering.videos import write_slices_video, write_turntable_video

    volume, labels = result_arrays(segmentationNode)
    organs = present_organs(segmentationNode)
    write = {"slices": write_slices_video, "turntable": write_turntable_video}[kind]
    with _writing(path.parent):
        write(path, volume, labels, organs=organs, progress=progress)
    return [path]


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all. Raises OSError."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def default_name(segmentationNode: slicer.vtkMRMLSegmentationNode, suffix: str) -> str:
    """A file name for a result."""
    return _file_name(segmentationNode) + suffix


def parse_label_values(text: str, organs: Sequence[Organ]) -> dict[str, int]:
    """One number for each organ, in their order. Raises InputError."""
    words = text.replace(",", " ").split()
    if len(words) != len(organs) or not all(word.isdigit() for word in words):
        names = ", ".join(organ.name.lower() for organ in organs)
        raise InputError(
            _("Give {count} numbers, for {names}, such as: {example}.").format(
                count=len(organs), names=names, example=", ".join(str(organ.label) for organ in organs)
            )
        )
    return {organ.key: int(word) for organ, word in zip(organs, words, strict=True)}


def _file_name(segmentationNode: slicer.vtkMRMLSegmentationNode) -> str:
    kept = [letter if letter.isalnum() or letter in "-_" else "_" for letter in segmentationNode.GetName()]
    return "".join(kept).strip("_") or "organs"


def _dicom_files(volumeNode: slicer.vtkMRMLScalarVolumeNode) -> list[str]:
    """The files that the volume was loaded from, by the DICOM module or directly."""
    uids = (volumeNode.GetAttribute("DICOM.instanceUIDs") or "").split()
    database = getattr(slicer, "dicomDatabase", None)
    if uids and database is not None:
        return [file for file in (database.fileForInstance(uid) for uid in uids) if file]
    storage = volumeNode.GetStorageNode()
    if storage is None:
        return []
    names = [storage.GetNthFileName(index) for index in range(storage.GetNumberOfFileNames())]
    return [name for name in dict.fromkeys(names or [storage.GetFileName()]) if name and _is_dicom(name)]


def _is_dicom(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Says in one line, as InputError, why nothing can be written into a folder."""
    try:
        yield
    except OSError as error:
        reason = why_not_written(folder, error)
        raise InputError(_("{place} cannot be written: {reason}").format(place=folder, reason=reason)) from error
