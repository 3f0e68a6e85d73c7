"""The organs FlareSegment knows: label values, names, SNOMED CT codes, colors, tolerances.

The one place where anatomy is written down. Codes and colors are those of Slicer's own
"General Anatomy" terminology (Modules/Loadable/Terminologies in Slicer's source); FLARE22 label
values and Normalized Surface Dice tolerances are those of the challenge's evaluation (Ma et al. 2022).
"""

from __future__ import annotations

from dataclasses import dataclass

GENERAL_ANATOMY = "Segmentation category and type - 3D Slicer General Anatomy list"
DICOM_MASTER = "Segmentation category and type - DICOM master list"
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
        terminology: name of the terminology of Slicer's that lists the organ.
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
    terminology: str = GENERAL_ANATOMY


FLARE22_ORGANS: tuple[Organ, ...] = (
    Organ(1, "liver", "Liver", "10200004", "Liver", None, None, (221, 130, 101), 1, 5.0),
    Organ(2, "right_kidney", "Right kidney", "64033007", "Kidney", "24028007", "Right", (185, 102, 83), 2, 3.0),
    Organ(3, "left_kidney", "Left kidney", "64033007", "Kidney", "7771000", "Left", (185, 102, 83), 13, 3.0),
    Organ(4, "spleen", "Spleen", "78961009", "Spleen", None, None, (157, 108, 162), 3, 3.0),
    Organ(5, "pancreas", "Pancreas", "15776009", "Pancreas", None, None, (249, 180, 111), 4, 5.0),
    Organ(6, "aorta", "Aorta", "15825003", "Aorta", None, None, (224, 97, 76), 5, 2.0),
    Organ(
        7,
        "inferior_vena_cava",
        "Inferior vena cava",
        "64131007",
        "Inferior vena cava",
        None,
        None,
        (0, 151, 206),
        6,
        2.0,
        DICOM_MASTER,
    ),
    Organ(
        8,
        "right_adrenal_gland",
        "Right adrenal gland",
        "23451007",
        "Adrenal gland",
        "24028007",
        "Right",
        (249, 186, 150),
        7,
        2.0,
    ),
    Organ(
        9,
        "left_adrenal_gland",
        "Left adrenal gland",
        "23451007",
        "Adrenal gland",
        "7771000",
        "Left",
        (249, 186, 150),
        8,
        2.0,
    ),
    Organ(10, "gallbladder", "Gallbladder", "28231008", "Gallbladder", None, None, (139, 150, 98), 9, 2.0),
    Organ(11, "esophagus", "Esophagus", "32849002", "Esophagus", None, None, (211, 171, 143), 10, 3.0),
    Organ(12, "stomach", "Stomach", "69695003", "Stomach", None, None, (216, 132, 105), 11, 5.0),
    Organ(13, "duodenum", "Duodenum", "38848004", "Duodenum", None, None, (255, 253, 229), 12, 7.0),
)
"""Every organ that a model may name: FLARE22's thirteen."""

ORGANS: tuple[Organ, ...] = FLARE22_ORGANS[:4]
"""The organs of the bundled model."""

LABEL_TABLES: dict[str, dict[str, int]] = {
    "flaresegment": {organ.key: organ.label for organ in FLARE22_ORGANS},
    "flare22": {organ.key: organ.flare22_label for organ in FLARE22_ORGANS},
}


PICTURE_COLORS: dict[str, tuple[int, int, int]] = {
    "right_kidney": (240, 214, 64),
    "left_kidney": (98, 196, 92),
    "right_adrenal_gland": (255, 240, 175),
    "left_adrenal_gland": (176, 226, 160),
    "stomach": (122, 156, 232),
    "aorta": (232, 44, 52),
}
"""Colors, in pictures and curves, of organs that in Slicer's terminology look like a neighbor or like their partner on
the other side; all other organs keep Slicer's colors there too, and in Slicer every organ does."""


def picture_color(organ: Organ) -> tuple[int, int, int]:
    """The organ's color in pictures and curves: red, green, blue, 0 to 255."""
    return PICTURE_COLORS.get(organ.key, organ.color)


def organ_by_key(key: str) -> Organ:
    """Return the organ with this key; raises KeyError for an unknown one."""
    for organ in FLARE22_ORGANS:
        if organ.key == key:
            return organ
    raise KeyError(key)


def terminology_entry(organ: Organ) -> str:
    """Return the organ's serialized terminology entry for a segment's terminology tag.

    Seven parts joined by ``~``: context, category, type, type modifier, anatomic context, region, region
    modifier; each coded part is ``scheme^code^meaning``
    (https://slicer.readthedocs.io/en/latest/developer_guide/modules/segmentations.html).
    """
    modifier = ("SCT", organ.modifier_code, organ.modifier_meaning or "") if organ.modifier_code else ("", "", "")
    kind = ("SCT", organ.type_code, organ.type_meaning)
    empty = ("", "", "")
    return "~".join(
        [
            organ.terminology,
            *("^".join(triplet) for triplet in (CATEGORY, kind, modifier)),
            ANATOMIC_CONTEXT,
            *("^".join(triplet) for triplet in (empty, empty)),
        ]
    )
