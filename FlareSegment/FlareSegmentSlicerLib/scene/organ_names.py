"""The organs' names in the user's language: written out here, because translators are given literal texts only."""

from __future__ import annotations

from slicer.i18n import tr as _

from FlareSegmentLib.organs import Organ


def organ_name(organ: Organ) -> str:
    """The organ's name for a person, as segment and in tables."""
    names = {
        "liver": _("Liver"),
        "right_kidney": _("Right kidney"),
        "left_kidney": _("Left kidney"),
        "spleen": _("Spleen"),
        "pancreas": _("Pancreas"),
        "aorta": _("Aorta"),
        "inferior_vena_cava": _("Inferior vena cava"),
        "right_adrenal_gland": _("Right adrenal gland"),
        "left_adrenal_gland": _("Left adrenal gland"),
        "gallbladder": _("Gallbladder"),
        "esophagus": _("Esophagus"),
        "stomach": _("Stomach"),
        "duodenum": _("Duodenum"),
    }
    return names.get(organ.key, organ.name)
