"""A folder of label maps or masks, predicted or drawn: which file is whose, and what its values mean."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from FlareSegmentLib.errors import InputError
from FlareSegmentLib.files.image_io import read_labels
from FlareSegmentTrainingLib.datasets.class_tables import label_map_of_folder
from FlareSegmentTrainingLib.datasets.file_pairs import case_key, case_keys, composed, volume_files
from FlareSegmentTrainingLib.datasets.label_checks import SAMPLES, check_convention
from FlareSegmentTrainingLib.datasets.label_files import meaning_of
from FlareSegmentTrainingLib.datasets.label_maps import LABEL_MAPS, LabelMap, parse_label_map
from FlareSegmentTrainingLib.datasets.mask_layouts import masks_of_cases, table_of_masks

_SEGMENTATION, _LABELS = "_organs.seg", "_labels"
"""What `segment` writes for one CT: the same labels twice."""


class LabelFolder:
    """Label maps of a folder, or a folder of masks for each case; CTs beside them (<case>_ct) are passed over.

    Args:
        given: what the user says that the values mean.
        option: the option that says it, for messages.

    Raises:
        InputError: it holds no label map, or nobody says what their values mean.
    """

    def __init__(self, folder: Path, given: LabelMap | None = None, option: str = "--label-map") -> None:
        self.files = masks_of_cases(folder)
        masks = bool(self.files)
        if not masks:
            files = {stem: file for stem, file in volume_files(folder).items() if not stem.endswith("_ct")}
            self.files = {
                stem: file
                for stem, file in files.items()
                if not (stem.endswith(_SEGMENTATION) and stem.removesuffix(_SEGMENTATION) + _LABELS in files)
            }
        if not self.files:
            raise InputError(
                f"{folder} holds no label map (.nii.gz, .nrrd, .mha) and no masks such as <case>/liver.nii.gz."
            )
        self._given, self._option = given, option
        if masks and given:
            raise InputError(f"{option}: {folder} holds a mask for each organ, which their names tell apart.")
        self.label_map = given or (None if masks else label_map_of_folder(folder)) or _own_values(folder, masks)
        self._keys: dict[str, list[str]] = {}
        for stem in self.files:
            for key in case_keys(stem):
                self._keys.setdefault(key, []).append(stem)
        if self.label_map.conventional:
            self._check(folder)

    def _check(self, folder: Path) -> None:
        files = [file for file in self.files.values() if self.meaning(file).conventional]
        chosen = files[:: -(-len(files) // SAMPLES)] if files else []
        check_convention(
            str(folder), self.label_map, [partial(read_labels, file) for file in chosen], self._option, False
        )

    def meaning(self, file: Path) -> LabelMap:
        """What the values of one file, or of one case's masks, mean. Raises InputError."""
        if file.is_dir():
            return table_of_masks(file).from_source("names of the masks")
        return meaning_of(file, self.label_map, self._given) or self.label_map

    def meanings(self) -> list[str]:
        """What the values were taken to mean, and who says so: a line for each way."""
        tables: dict[str, int] = {}
        for file in self.files.values():
            try:
                meaning = self.meaning(file)
            except InputError:
                continue  # what is wrong is said of the case
            line = f"label values by {meaning.source or meaning.name}: {meaning.in_words()}"
            tables[line] = tables.get(line, 0) + 1
        if len(tables) < 2:
            return list(tables)
        lines = [f"{line} ({count} of {len(self.files)} cases)" for line, count in tables.items()]
        return lines[:4] + ([f"label values in {len(lines) - 4} other ways"] if len(lines) > 4 else [])

    def stem_of(self, case: str) -> str | None:
        """The label map of a case: of its name, or with what says "labels" or "ct" around it; None where there is none.

        Raises:
            InputError: several could be the case's.
        """
        name = composed(case)
        if name in self.files:
            return name
        for key in dict.fromkeys((name, *case_keys(name)[1:], case_key(name))):
            stems = self._keys.get(key, [])
            if len(stems) > 1:
                raise InputError(f"several label maps could be its own: {', '.join(sorted(stems)[:4])}")
            if stems:
                return stems[0]
        return None

    def extra(self, cases: Iterable[str]) -> list[str]:
        """Names of the files that belong to none of the cases."""
        used = set()
        for case in cases:
            try:
                used.add(self.stem_of(case))
            except InputError:
                continue
        return [file.name for stem, file in self.files.items() if stem not in used]

    def named(self) -> dict[str, Path]:
        """The label maps by the names of their cases."""
        named = {case_key(stem): file for stem, file in self.files.items()}
        return named if len(named) == len(self.files) else dict(self.files)  # names that differ in what was taken off


def meaning_alone(file: Path, given: str | None) -> LabelMap:
    """What the values of one label map, or folder of masks, mean, wherever it lies; as `LabelFolder` says it.

    given: what the user says, as --label-map takes it.

    Raises:
        InputError: two say different organs, or what says it cannot be understood.
    """
    if file.is_dir():
        return table_of_masks(file)
    told = parse_label_map(given) if given else None
    of_folder = label_map_of_folder(file.parent) or _own_values(file.parent, masks=False)
    return meaning_of(file, of_folder, told) or of_folder


def _own_values(folder: Path, masks: bool) -> LabelMap:
    source = f"FlareSegment's own values (nothing in {folder.name}/ says otherwise)"
    return LABEL_MAPS["flaresegment"].from_source(source, conventional=not masks)
