"""Which image goes with which labels, by their names: exact names first, and never by a name that two would share.

Names are compared in Unicode's composed form (NFC): macOS stores an umlaut as two characters, other systems as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentTrainingLib.datasets.label_maps import LabelMap

VOLUME_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
CHANNEL = "_0000"
"""What nnU-Net adds to the name of a case's first channel; a CT has no other."""
_SEGMENTATION_SUFFIX = ".seg"
_AFFIX = re.compile(
    r"^(images?|img|volumes?|vol|ct|labels?|lbl|segmentations?|seg|masks?)(?=[-_.\d])[-_.]?", re.IGNORECASE
)
_ENDING = re.compile(r"[-_.](images?|img|volume|ct|labels?|segmentation|organs|seg|mask|gt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """An image and its labels as a data set names them.

    Attributes:
        image: a file, or a folder of DICOM files.
        labels: a file, or a folder of masks (`label_files`).
        label_map: what the labels' values mean, or None when the data set does not say; names in the label file itself
            count more.
        patient: whose scan it is, where the data set says so.
        fixed_set: "train" or "val" where the data set fixes it.
        grades: the case's entry in quality.json.
    """

    name: str
    image: Path
    labels: Path
    label_map: LabelMap | None = None
    patient: str | None = None
    fixed_set: str | None = None
    grades: Mapping[str, dict] = field(default_factory=dict)


@dataclass(frozen=True)
class LeftOut:
    """A case that cannot be used, and the reason in half a line."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is left out: {self.reason}"


@dataclass(frozen=True)
class Found:
    """What a layout found: its name, the pairs, cases it cannot use, and what else is there and not used."""

    layout: str
    pairs: tuple[Pair, ...]
    left_out: tuple[LeftOut, ...] = ()
    unused: tuple[str, ...] = ()


def composed(name: str) -> str:
    """A name in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def volume_stem(name: str) -> str:
    """A volume's file name without its suffix, composed."""
    suffix = next((suffix for suffix in VOLUME_SUFFIXES if name.lower().endswith(suffix)), "")
    return composed(name[: len(name) - len(suffix)])


def is_volume_name(name: str) -> bool:
    """Whether a file of this name holds a volume."""
    return name.lower().endswith(VOLUME_SUFFIXES)


def entries_of(folder: Path) -> list[Path]:
    """What is in a folder, sorted, without hidden files such as the ._ files of macOS. Raises InputError."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}.") from error


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, without those that stand for one volume (X.nii/X.nii)."""
    return [entry for entry in entries_of(folder) if entry.is_dir() and not is_volume_name(entry.name)]


def volume_file(path: Path) -> Path | None:
    """The file, or the one in a folder of its name (copies unpacked to X.nii/X.nii); None when it is missing."""
    if path.is_file():
        return path
    if path.name.lower().endswith(".nii.gz") and (plain := path.with_name(path.name[:-3])).exists():
        return volume_file(plain)
    if path.is_dir() and is_volume_name(path.name):
        inner = [entry for entry in entries_of(path) if entry.is_file() and is_volume_name(entry.name)]
        return inner[0] if len(inner) == 1 else None
    return None


def volume_files(folder: Path) -> dict[str, Path]:
    """The volumes of a folder by their names without suffix. Raises InputError where two have one name."""
    result: dict[str, Path] = {}
    entries = entries_of(folder)
    for entry in entries:
        if not is_volume_name(entry.name) or (file := volume_file(entry)) is None:
            continue
        stem = volume_stem(entry.name)
        if stem in result:
            raise InputError(f"{folder}: {result[stem].name} and {entry.name} are one case twice; remove one of them.")
        result[stem] = file
    if not result:
        inner = [entry for entry in entries if entry.is_dir()]
        if len(inner) == 1:  # images.zip unpacked to images/images/
            return volume_files(inner[0])
    return result


def case_key(stem: str) -> str:
    """A file's name without what tells images from labels: the same for both files of a case."""
    key = _ENDING.sub("", stem.removesuffix(_SEGMENTATION_SUFFIX))
    return _AFFIX.sub("", key) or key


def case_keys(stem: str) -> list[str]:
    """The names that a case may have whose label map has this stem, the longest first: "x_ct_labels" may belong to the
    case x_ct or x.
    """
    keys, rest = [stem], ""
    shorter = stem.removesuffix(_SEGMENTATION_SUFFIX)
    while shorter != rest:
        rest, shorter = shorter, _ENDING.sub("", shorter)
        keys += [rest] if rest not in keys else []
    keys += [key for stem in keys if (key := _AFFIX.sub("", stem)) and key not in keys]
    return keys


def pair_files(
    images: Mapping[str, Path], labels: Mapping[str, Path], folders: tuple[str, str]
) -> tuple[list[Pair], list[LeftOut]]:
    """Pair images and labels, both given by their stems.

    A label map belongs to the image of exactly its name; else to the one with nnU-Net's channel number behind it; else,
    where no other image and no other label map would have the same name, to the one that is called alike once what says
    "image" or "label" is taken off.

    Args:
        folders: what messages call the two folders.

    Raises:
        InputError: the images have several channels.
    """
    plain = {stem.removesuffix(_SEGMENTATION_SUFFIX): stem for stem in labels}
    if len(plain) < len(labels):
        plain = {stem: stem for stem in labels}
    matches: dict[str, str] = {}
    rest = dict(plain)
    for stem in images:  # exact names
        if stem in rest:
            matches[stem] = stem
            del rest[stem]
    for stem in images:  # nnU-Net's channel
        name = stem.removesuffix(CHANNEL)
        if stem in matches or name == stem:
            continue
        if name in rest:
            _check_one_channel(name, images, matches, folders[0])
            matches[stem] = name
            del rest[name]
    pairs = [Pair(_name(stem, label), images[stem], labels[plain[label]]) for stem, label in matches.items()]
    for key_of in (case_key, _key_without_channel):
        sought, offered = _by_key((stem for stem in images if stem not in matches), key_of), _by_key(rest, case_key)
        for key, stems in sought.items():
            if len(stems) == len(offered.get(key, ())) == 1:
                label = offered[key][0]
                matches[stems[0]] = label
                pairs.append(Pair(_name(stems[0], label), images[stems[0]], labels[rest.pop(label)]))
    offered = _by_key(rest, case_key)
    left_out = [LeftOut(stem, _why_alone(stem, offered, folders[1])) for stem in images if stem not in matches]
    left_out += [LeftOut(stem, f"no image of its name in {folders[0]}/") for stem in rest]
    return pairs, left_out


def _why_alone(stem: str, offered: Mapping[str, list[str]], folder: str) -> str:
    for key in (case_key(stem), _key_without_channel(stem)):
        if key in offered:
            return f"labels called {key!r} could be its own or another's ({', '.join(offered[key])})"
    return f"no labels of its name in {folder}/"


def _name(image_stem: str, label_stem: str) -> str:
    return label_stem if image_stem.startswith(label_stem) else case_key(label_stem)


def _key_without_channel(stem: str) -> str:
    return case_key(stem.removesuffix(CHANNEL))


def _by_key(stems: Iterable[str], key_of: Callable[[str], str]) -> dict[str, list[str]]:
    result: dict[str, list[str]] = {}
    for stem in stems:
        result.setdefault(key_of(stem), []).append(stem)
    return result


def _check_one_channel(name: str, images: Mapping[str, Path], matched: Mapping[str, str], folder: str) -> None:
    others = [f"{name}_{number:04d}" for number in range(1, 10)]
    if any(other in images and other not in matched for other in others):
        raise InputError(
            f"{folder} has images of several channels ({name}{CHANNEL}, {name}_0001); FlareSegment trains on CT alone."
        )


def check_names(found: Found) -> Found:
    """The pairs sorted by name. Raises InputError when two cases have one name."""
    counts = Counter(pair.name for pair in found.pairs)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise InputError(f"The case {twice[0]} is there twice; give every case its own name.")
    return Found(found.layout, tuple(sorted(found.pairs, key=lambda p: p.name)), found.left_out, found.unused)
