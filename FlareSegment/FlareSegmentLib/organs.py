"""The organs FlareSegment knows: label values, names, SNOMED CT codes, colors, tolerances.

The one place where anatomy is written down. Codes and colors are those of Slicer's own
"General Anatomy" terminology (Modules/Loadable/Terminologies in Slicer's source); FLARE22 label
values and Normalized Surface Dice tolerances are those of the challenge's evaluation (Ma et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

TERMINOLOGY_CONTEXT = "Segmentation category and type - 3D Slicer General Anatomy list"
ANATOMIC_CONTEXT = "Anatomic codes - DICOM master list"
CATEGORY = ("SCT", "123037004", "Anatomical Structure")


@dataclass(frozen=True)
class Organ:
    """One organ.

    Attributes:
        label: value in FlareSegment's label maps (0 is background).
        key: identifier in files and interfaces.
        name: what a person reads; the name of the segment.
        type_code, type_meaning: SNOMED CT type.
        modifier_code, modifier_meaning: SNOMED CT laterality, or None for an unpaired organ.
        color: red, green, blue, 0 to 255.
        flare22_label: value in FLARE22's label maps.
        nsd_tolerance_mm: FLARE22's tolerance of the Normalized Surface Dice.
    """

    label: int
    key: str
    name: str
    type_code: str
    type_meaning: str
    modifier_code: str | None
    modifier_meaning: str | None
    color: tuple[int, int, int]
    flare22_label: int
    nsd_tolerance_mm: float


ORGANS: tuple[Organ, ...] = (
    Organ(1, "liver", "Liver", "10200004", "Liver", None, None, (221, 130, 101), 1, 5.0),
    Organ(2, "right_kidney", "Right kidney", "64033007", "Kidney", "24028007", "Right", (185, 102, 83), 2, 3.0),
    Organ(3, "left_kidney", "Left kidney", "64033007", "Kidney", "7771000", "Left", (185, 102, 83), 13, 3.0),
    Organ(4, "spleen", "Spleen", "78961009", "Spleen", None, None, (157, 108, 162), 3, 3.0),
)

LABEL_TABLES: dict[str, dict[str, int]] = {
    "flaresegment": {organ.key: organ.label for organ in ORGANS},
    "flare22": {organ.key: organ.flare22_label for organ in ORGANS},
}


def organ_by_key(key: str) -> Organ:
    """Return the organ with this key; raises KeyError for an unknown one."""
    for organ in ORGANS:
        if organ.key == key:
            return organ
    raise KeyError(key)


def terminology_entry(organ: Organ) -> str:
    """Return the organ's serialized terminology entry for a segment's terminology tag.

    Seven parts joined by ``~``: context, category, type, type modifier, anatomic context, region, region
    modifier; each coded part is ``scheme^code^meaning``
    (https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html).
    """
    modifier = ("SCT", organ.modifier_code, organ.modifier_meaning) if organ.modifier_code else ("", "", "")
    kind = ("SCT", organ.type_code, organ.type_meaning)
    empty = ("", "", "")
    return "~".join(
        [
            TERMINOLOGY_CONTEXT,
            *("^".join(triplet) for triplet in (CATEGORY, kind, modifier)),
            ANATOMIC_CONTEXT,
            *("^".join(triplet) for triplet in (empty, empty)),
        ]
    )
