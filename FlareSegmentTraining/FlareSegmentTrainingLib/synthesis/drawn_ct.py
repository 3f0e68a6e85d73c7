"""CT drawn from label maps: anatomy without images becomes training cases, as in SynthSeg (Billot 2023,
https://doi.org/10.1016/j.media.2023.102789), with HU as a scanner would measure them instead of arbitrary gray.

A label map of a whole body part gives bones, lungs, muscles, vessels and bowel; what it leaves out, fat, the wall of
the trunk and the skin, is added around it. Each drawing has its own contrast phase, bowel content, texture and noise.
Heads and limbs, in which none of the organs is, are drawn from ellipsoids and tubes: a network learns from them that
soft tissue inside bone is no liver.

All arrays are (z, y, x) in LPS order on an isotropic grid.
"""

from __future__ import annotations

import re

import numpy as np
from scipy import ndimage

from FlareSegmentTrainingLib.augmentation.contrast_phases import draw_phase

AIR_HU = -1024.0

_TISSUE_OF_STRUCTURE = (
    ("bone", r"vertebra|^rib_|^hip_|sacrum|femur|humerus|scapula|clavicula|sternum|skull"),
    ("cartilage", r"cartilage"),
    ("lung", r"^lung"),
    ("air", r"trachea"),
    ("muscle", r"autochthon|gluteus|iliopsoas|esophagus"),
    ("artery", r"aorta|artery|brachiocephalic_trunk"),
    ("vein", r"vena|vein|postcava|atrial"),
    ("heart", r"heart"),
    ("liver", r"^liver"),
    ("spleen", r"^spleen"),
    ("kidney", r"^kidney_(left|right)|^(left|right)_kidney"),
    ("pancreas", r"pancreas"),
    ("fluid", r"gall_?bladder|urinary_bladder|cyst"),
    ("gut", r"stomach|small_bowel|duodenum"),
    ("colon", r"colon"),
    ("gland", r"adrenal|thyroid|prostate"),
    ("nerve", r"spinal_cord|brain"),
)
TISSUES = ("outside", "fat", "wall", "skin", *(name for name, _ in _TISSUE_OF_STRUCTURE))


def tissue_map(structures: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """Return the index in `TISSUES` of each voxel; voxels of no structure are "outside".

    Args:
        structures: integer label map; names: what its values mean, as TotalSegmentator names structures.
    """
    table = np.zeros(int(structures.max()) + 1, np.uint8)
    for value, name in names.items():
        for tissue, pattern in _TISSUE_OF_STRUCTURE:
            if value < len(table) and re.search(pattern, name):
                table[value] = TISSUES.index(tissue)
                break
    return table[structures]


def add_body(tissues: np.ndarray, spacing_mm: float, generator: np.random.Generator) -> np.ndarray:
    """Surround the structures of a tissue map by wall muscle, fat and skin, and fill what is between them with fat.

    The trunk's inner contour is each slice's structures, closed; a label map seldom has the abdominal wall.
    """
    thickness = generator.uniform(6.0, 40.0)
    wall = generator.uniform(4.0, 12.0)
    inside = tissues != TISSUES.index("outside")
    half = inside[:, ::2, ::2]
    edge = int(np.ceil(60.0 / (2 * spacing_mm)))
    closed = np.zeros_like(half)
    for z, plane in enumerate(half):
        if plane.any():
            away = ndimage.distance_transform_edt(~np.pad(plane, edge))
            near = away <= edge - 1
            closed[z] = (ndimage.distance_transform_edt(near) > edge - 1)[edge:-edge, edge:-edge]
    closed = ndimage.uniform_filter(closed.astype(np.float32), (5, 3, 3)) > 0.5
    trunk = np.repeat(np.repeat(closed, 2, 1), 2, 2)[:, : tissues.shape[1], : tissues.shape[2]] | inside
    distance = np.stack([ndimage.distance_transform_edt(~plane) for plane in trunk]) * spacing_mm
    depth = np.stack([ndimage.distance_transform_edt(plane) for plane in trunk]) * spacing_mm
    result = tissues.copy()
    empty = ~inside
    result[empty & (distance <= thickness + 2.0)] = TISSUES.index("skin")
    result[empty & (distance <= thickness)] = TISSUES.index("fat")
    result[empty & trunk & (depth <= wall)] = TISSUES.index("wall")
    return result


def draw_ct(tissues: np.ndarray, spacing_mm: float, generator: np.random.Generator) -> np.ndarray:
    """Return float32 HU of one drawing of a tissue map.

    Args:
        tissues: from `tissue_map` and `add_body`, or from `draw_empty_anatomy`.
    """
    phase = draw_phase(generator)
    uniform = generator.uniform
    soft = uniform(42, 60)
    means = {
        "outside": AIR_HU,
        "fat": uniform(-118, -88),
        "wall": soft,
        "skin": uniform(-20, 40),
        "cartilage": uniform(70, 160),
        "lung": uniform(-900, -760),
        "air": -1000.0,
        "muscle": soft + uniform(-4, 10),
        "artery": phase.artery,
        "vein": phase.vein,
        "heart": 0.6 * phase.artery + 0.4 * soft,
        "liver": phase.liver,
        "spleen": phase.spleen,
        "pancreas": phase.pancreas,
        "fluid": uniform(-2, 22),
        "gland": phase.pancreas + uniform(-10, 25),
        "nerve": uniform(22, 45),
        "bone": 0.0,
        "kidney": 0.0,
        "gut": 0.0,
        "colon": 0.0,
    }
    image = np.array([means[name] for name in TISSUES], np.float32)[tissues]
    shape = tissues.shape
    # Two scales of texture that all tissues share, each with its own strength.
    coarse, fine = (_noise(shape, millimeters / spacing_mm, generator) for millimeters in (12.0, 5.0))

    bone = _where(tissues, "bone")
    shell = bone & ~ndimage.binary_erosion(bone, iterations=max(1, round(2.5 / spacing_mm)))
    image[bone] = uniform(90, 280) + 70 * fine[bone]
    image[shell] = uniform(350, 900) + 120 * fine[shell]

    kidney = _where(tissues, "kidney")
    if kidney.any():
        depth = ndimage.distance_transform_edt(kidney) * spacing_mm
        cortex = phase.kidney * 2.0 / (1.0 + phase.medulla)
        image[kidney] = np.where(depth[kidney] < uniform(6, 10), cortex, cortex * phase.medulla)
        sinus = kidney & (depth > 0.8 * depth.max()) & (fine > -0.5)
        image[sinus] = uniform(-90, 10)

    for name, threshold in (("gut", uniform(-0.5, 1.5)), ("colon", uniform(-0.8, 0.8))):
        gut = _where(tissues, name)
        rim = gut & ~ndimage.binary_erosion(gut, iterations=max(1, round(3.0 / spacing_mm)))
        content = (uniform(0, 30), uniform(10, 80), uniform(100, 350))[int(generator.choice(3, p=(0.4, 0.45, 0.15)))]
        image[gut] = content + 25 * fine[gut]
        # Gas rises: in front of a level that varies from place to place.
        image[gut & (coarse > threshold)] = uniform(-950, -700)
        image[rim] = soft + uniform(-15, 0.3 * phase.vein)

    fat = _where(tissues, "fat")
    strands = fat & (fine > uniform(1.4, 2.4))
    image[strands] = soft - 20
    parenchyma = np.isin(tissues, [TISSUES.index(n) for n in ("liver", "spleen", "pancreas", "kidney")])
    image[parenchyma] += uniform(1, 9) * coarse[parenchyma] + uniform(0, 6) * fine[parenchyma]
    other = ~parenchyma & (tissues != TISSUES.index("outside"))
    image[other] += 8 * coarse[other]
    _draw_lesions(image, _where(tissues, "liver"), spacing_mm, generator)

    image = ndimage.gaussian_filter(image, uniform(0.4, 0.9))
    image += uniform(4, 28) * _noise(shape, uniform(0.0, 1.0), generator)
    if generator.random() < 0.6:
        _draw_table(image, tissues, spacing_mm, generator)
    return np.clip(image, AIR_HU, 3071.0)


def draw_empty_anatomy(spacing_mm: float, generator: np.random.Generator) -> np.ndarray:
    """Return a tissue map of a head with its neck, of one or two legs, or of an arm: none of the organs is in it."""
    kind = generator.choice(("head", "head", "legs", "limb"))
    extent = np.array((generator.uniform(120, 260), 260.0, 420.0 if kind == "legs" else 260.0))
    shape = np.maximum(1, np.round(extent / spacing_mm)).astype(int)
    z, y, x = (
        ((np.arange(count, dtype=np.float32) - (count - 1) / 2) * spacing_mm).reshape(view)
        for count, view in zip(shape, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)))
    )
    result = np.zeros(shape, np.uint8)
    if kind == "head":
        _head(result, z, y, x, generator)
        return result
    centers = (0.0,) if kind == "limb" else tuple(s * generator.uniform(75, 105) for s in (-1.0, 1.0))
    for center in centers:
        radius = generator.uniform(35, 90) * (1 + 0.0015 * z * generator.uniform(-1, 1))
        away = np.hypot(y / generator.uniform(0.85, 1.15), x - center) + 0 * z
        _paint(result, away < radius, "skin")
        _paint(result, away < radius - 2, "fat")
        fascia = generator.uniform(0.65, 0.95)
        angle = np.arctan2(y, x - center)
        seams = np.abs(np.sin(generator.integers(2, 5) * angle + generator.uniform(0, 6))) < 0.08
        _paint(result, (away < radius * fascia) & ~seams, "muscle")
        for _ in range(int(generator.integers(1, 3))):
            off = generator.uniform(-0.3, 0.3, 2) * radius.mean()
            shaft = np.hypot(y - off[0], x - center - off[1]) + 0 * z
            _paint(result, shaft < generator.uniform(9, 20), "bone")
        _paint(result, np.hypot(y + 0.35 * radius, x - center - 10) + 0 * z < generator.uniform(3, 5), "artery")
    return result


def _head(result: np.ndarray, z: np.ndarray, y: np.ndarray, x: np.ndarray, generator: np.random.Generator) -> None:
    """A skull on a neck; lengths in mm, the vertex above, the face in front (low y)."""
    half_x, half_y, half_z = generator.uniform(62, 80), generator.uniform(80, 100), generator.uniform(65, 90)
    top = generator.uniform(0, 60)
    skull = np.sqrt((x / half_x) ** 2 + (y / half_y) ** 2 + ((z - top) / half_z) ** 2)
    neck = np.hypot(x / generator.uniform(50, 70), (y - 15) / generator.uniform(50, 70)) + 0 * z
    below = z < top - 0.4 * half_z
    face = (np.hypot(x / (0.75 * half_x), (y + 0.35 * half_y) / (0.6 * half_y)) < 1) & (z < top) & (z > top - 130)
    scalp = generator.uniform(3, 9) / half_x
    bone = generator.uniform(4, 9) / half_x
    body = (skull < 1 + scalp + bone) | (below & (neck < 1)) | face
    _paint(result, body, "skin")
    _paint(result, ndimage.binary_erosion(body, iterations=2), "fat")
    _paint(result, (below & (neck < 0.85)) | (face & (skull > 1)), "muscle")
    _paint(result, face & (np.hypot(x, y + 0.55 * half_y) < 0.3 * half_x) & (z < top - 20), "air")
    _paint(result, below & (np.hypot(x, y + 5) < 9), "air")
    _paint(result, below & (np.hypot(x, y - 18) < 16), "bone")
    for side in (-1, 1):
        _paint(result, below & (np.hypot(x - side * 25, y - 2) < 5), "artery")
        _paint(result, below & (np.hypot(x - side * 33, y - 2) < 7), "vein")
    _paint(result, skull < 1 + bone, "bone")
    _paint(result, skull < 1, "nerve")
    ventricle = np.hypot((np.abs(x) - 12) / 9, y / 35) + np.abs(z - top - 10) / 25
    _paint(result, ventricle < 1, "fluid")
    _paint(result, (np.abs(x) < 1.5) & (skull < 1) & (z > top), "fluid")


def _paint(result: np.ndarray, mask: np.ndarray, tissue: str) -> None:
    result[np.broadcast_to(mask, result.shape)] = TISSUES.index(tissue)


def _where(tissues: np.ndarray, name: str) -> np.ndarray:
    return tissues == TISSUES.index(name)


def _noise(shape: tuple[int, ...], sigma: float, generator: np.random.Generator) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1; drawn coarsely and interpolated where it is smooth."""
    step = max(1, int(sigma))
    small = generator.standard_normal([-(-count // step) + 1 for count in shape], dtype=np.float32)
    if sigma > 0:
        small = ndimage.gaussian_filter(small, sigma / step)
    small /= small.std()
    if step > 1:
        small = ndimage.zoom(small, step, order=1)
    return small[tuple(slice(0, count) for count in shape)]


def _draw_lesions(image: np.ndarray, organ: np.ndarray, spacing_mm: float, generator: np.random.Generator) -> None:
    """Cysts and metastases: round, darker or brighter than the organ about them."""
    voxels = np.argwhere(organ)
    if not len(voxels) or generator.random() < 0.5:
        return
    for _ in range(int(generator.integers(1, 6))):
        center = voxels[int(generator.integers(len(voxels)))]
        radius = generator.uniform(4, 28) / spacing_mm
        low = np.maximum(0, np.floor(center - radius).astype(int))
        block = tuple(slice(a, int(b)) for a, b in zip(low, np.ceil(center + radius) + 1))
        part = image[block]
        axes = np.ogrid[tuple(slice(a, a + count) for a, count in zip(low, part.shape))]
        ball = sum((axis - middle) ** 2 for axis, middle in zip(axes, center)) < radius**2
        ball = ball & organ[block]
        part[ball] += generator.uniform(-60, 35)


def _draw_table(image: np.ndarray, tissues: np.ndarray, spacing_mm: float, generator: np.random.Generator) -> None:
    """A patient table behind the body: a thin curved shell."""
    rows = np.nonzero((tissues > 0).any(axis=(0, 2)))[0]
    columns = np.arange(image.shape[2]) - image.shape[2] / 2
    curve = generator.uniform(0, 0.0012) * spacing_mm * columns**2
    top = rows[-1] + generator.uniform(1, 6) / spacing_mm - curve
    y = np.arange(image.shape[1])[:, None]
    shell = (y >= top) & (y < top + generator.uniform(2, 5))
    image[:, shell] = np.maximum(image[:, shell], generator.uniform(-750, 50))
