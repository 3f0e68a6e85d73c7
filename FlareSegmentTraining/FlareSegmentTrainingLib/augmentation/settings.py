"""How often and how far training changes what it sees."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AugmentationSettings:
    """How strongly patches vary; ranges are (lowest, highest), probabilities 0 to 1. Everything is off by default.

    Attributes:
        rotation_degrees: about the patient's (x, y, z) axes, drawn uniformly from plus and minus this.
        scale: overall zoom; `stretch` adds an independent factor of 1 +- stretch along each axis.
        shift_mm: for stages of a fixed shape: the image is moved by up to this along each axis.
        elastic_mm: largest displacement of the control points of a smooth deformation.
        field_of_view_probability: of ending the scan inside the patch: at a plane, or for the fraction
            `round_field_of_view` of these at the circle of a small reconstructed field of view.
        thick_slices_probability, blur_probability, noise_probability, contrast_probability, gamma_probability: of
            scanner effects.
        noise: largest standard deviation, with the window at -1 ... 1.
        strong_noise_probability: of noise between `noise` and `strong_noise`.
        gamma: range of the exponent applied to the window.
        phase_probability: of taking the scan to another contrast phase (`contrast_phases`): the HU of each labeled
            organ, left and right alike, and of the vessels.
        changed_share: fraction of the patches that are cut from changed cases (`changed_cases`), where one of the
            following four is above 0; the other patches are cut from the cases as they are.
        changed_cases: how many changed cases are in use at a time; changed_steps: steps after which others take their
            places.
        mass_probability: of growing a cyst or tumor from one of the labeled organs of a changed case (`masses`).
        perirenal_fat_probability: of laying a labeled kidney elsewhere, into a bed of fat (`perirenal_fat`).
        other_mass_probability, bowel_probability: of masses that belong to none of the organs, and of bowel full of
            contrast (`lumps`).
    """

    rotation_degrees: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    stretch: float = 0.0
    shift_mm: float = 0.0
    elastic_mm: float = 0.0
    elastic_probability: float = 0.0
    field_of_view_probability: float = 0.0
    round_field_of_view: float = 0.0
    thick_slices_probability: float = 0.0
    blur_probability: float = 0.0
    noise_probability: float = 0.0
    noise: float = 0.12
    strong_noise_probability: float = 0.0
    strong_noise: float = 0.5
    contrast_probability: float = 0.0
    gamma_probability: float = 0.0
    gamma: tuple[float, float] = (0.7, 1.5)
    phase_probability: float = 0.0
    changed_share: float = 0.7
    changed_cases: int = 24
    changed_steps: int = 100
    mass_probability: float = 0.0
    perirenal_fat_probability: float = 0.0
    other_mass_probability: float = 0.0
    bowel_probability: float = 0.0
