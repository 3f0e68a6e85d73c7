"""The built-in phantom: a CT of a torso made from formulas, with the organs' labels known exactly.

It is what `segment.py` runs on when no CT is given, what the tests run on (no patient data in the repository), and,
seeded, a set of torsos to train and validate on. Only numpy is needed.

How it is made: `_Anatomy` draws the sizes, positions and tissue values of one patient from the seed and lists the
organs as painting steps, from the body wall inwards; each step is an implicit shape (a signed distance in mm,
negative inside). `_render` paints them slab by slab onto the voxel grid. A step covers a voxel by the fraction that
its distance gives (partial volume), and owns the voxel's label from one half on. The patient's coordinates are warped
smoothly before the shapes are evaluated, so no two patients share an outline.

Coordinates are LPS in mm: x to the patient's left, y to the back, z to the head; the origin lies inside the body in
the midline, at the height of the first lumbar vertebra. The liver is therefore at low x.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.volume import Volume

_AIR = -1000.0
_FAT = -103.0
_LOWEST_HU, _HIGHEST_HU = -1024, 3071
_SLAB_VOXELS = 400_000
# HU of a tissue without contrast, in the arterial, portal venous and delayed phase; typical of 120 kVp.
_ENHANCEMENT = {
    "liver": (58, 72, 112, 95),
    "spleen": (48, 118, 122, 98),
    "cortex": (34, 175, 185, 135),
    "medulla": (32, 75, 165, 145),
    "urine": (4, 6, 10, 420),
    "aorta": (42, 310, 155, 108),
    "inferior vena cava": (42, 95, 135, 106),
    "portal vein": (42, 110, 168, 110),
    "heart": (43, 230, 145, 105),
    "pancreas": (42, 98, 92, 75),
    "bowel wall": (36, 75, 82, 65),
    "muscle": (54, 58, 64, 62),
}

_Points = tuple[np.ndarray, np.ndarray, np.ndarray]
_Shape = Callable[[_Points], np.ndarray]


@dataclass(frozen=True)
class _Step:
    """One coat of paint: `value` HU (a number, or a function of the points) wherever `shape` is negative.

    `label` None keeps the labels below (a vessel within the liver stays liver); `box` is (lower, upper) corners in
    mm, None for everywhere.
    """

    shape: _Shape
    value: float | Callable[[_Points], np.ndarray]
    label: int | None
    box: tuple[np.ndarray, np.ndarray] | None


def make_phantom(
    seed: int = 0,
    spacing: Sequence[float] | None = (2.5, 2.5, 2.5),
    z_range: tuple[float, float] | None = (-125.0, 140.0),
) -> tuple[Volume, np.ndarray]:
    """A CT of a torso and the labels of its organs.

    seed: the patient. The same arguments give the same voxels.
    spacing: (x, y, z) in mm, at least 0.5; None draws 0.8 to 2 mm in plane and 1 to 5 mm between slices.
    z_range: lowest and highest slice in mm, 0 at the first lumbar vertebra: lungs begin at about 100, kidneys end at
        about -75. None draws one: most show all organs, some cut through them.

    Returns (volume, labels): the volume holds int16 HU and labels are uint8, both (z, y, x), direction identity in
    LPS; labels are those of `organs.ORGANS`. Raises ValueError for a spacing or a range that makes no image.
    """
    rng = np.random.default_rng(seed)
    anatomy = _Anatomy(rng)
    drawn_spacing = (*(2 * [rng.uniform(0.8, 2.0)]), rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0]))
    drawn_range = (rng.uniform(-200, -95), rng.uniform(105, 210))
    if rng.random() < 0.25:  # a scan that ends within the organs
        bottom = rng.uniform(-110, 40)
        drawn_range = (bottom, bottom + rng.uniform(60, 160))
    spacing = tuple(float(value) for value in (drawn_spacing if spacing is None else spacing))
    low, high = drawn_range if z_range is None else z_range
    if len(spacing) != 3 or not min(spacing) >= 0.5:
        raise ValueError(f"A phantom needs three spacings of at least 0.5 mm, not {spacing}.")
    if not high - low >= spacing[2]:
        raise ValueError(f"A phantom needs a z range of at least one slice, not {low} to {high} mm.")

    # The field of view of a real scan: the body plus a margin that reaches the table, seldom well centered.
    margin = rng.uniform(8, 40)
    center = rng.uniform(-8, 8), rng.uniform(-4, 14)
    half = anatomy.half_width + margin, anatomy.half_depth + margin
    size = [max(1, round(2 * half[axis] / spacing[axis])) for axis in (0, 1)] + [
        max(1, round((high - low) / spacing[2]))
    ]
    origin = (
        center[0] - spacing[0] * (size[0] - 1) / 2,
        center[1] - spacing[1] * (size[1] - 1) / 2,
        low + spacing[2] / 2,
    )
    hounsfield, labels = _render(anatomy, size, spacing, origin, rng)
    volume = Volume(hounsfield, spacing, origin, np.eye(3), name="phantom" if seed == 0 else f"phantom{seed}")
    return volume, labels


# Shapes: signed distances in mm, exact near the surface, which is where the partial volume needs them.


def _ellipsoid(center: Sequence[float], radii: Sequence[float], axes: np.ndarray | None = None) -> _Shape:
    """Rows of `axes` are the directions of the radii."""
    axes = np.eye(3) if axes is None else axes
    rows = [tuple(float(v) for v in row) for row in axes]

    def distance(points: _Points) -> np.ndarray:
        offset = [axis - float(c) for axis, c in zip(points, center, strict=True)]
        scaled = scaled_twice = 0.0
        for row, radius in zip(rows, radii, strict=True):
            along = sum(weight * part for weight, part in zip(row, offset, strict=True) if weight) / float(radius)
            scaled = scaled + along * along
            scaled_twice = scaled_twice + (along / float(radius)) ** 2
        k = np.sqrt(scaled)
        return k * (k - 1) / np.maximum(np.sqrt(scaled_twice), 1e-6)

    return distance


def _tube(points_mm: Sequence[Sequence[float]], radii: Sequence[float] | float) -> _Shape:
    """A chain of round cones through `points_mm`."""
    nodes = np.asarray(points_mm, float)
    sizes = np.broadcast_to(np.asarray(radii, float), len(nodes))

    def distance(points: _Points) -> np.ndarray:
        nearest = None
        for a, b, ra, rb in zip(nodes[:-1], nodes[1:], sizes[:-1], sizes[1:], strict=True):
            along, offset = b - a, [axis - float(c) for axis, c in zip(points, a, strict=True)]
            t = sum(float(w) * part for w, part in zip(along, offset, strict=True)) / float(along @ along + 1e-9)
            t = np.clip(t, 0, 1)
            squared = sum((part - float(w) * t) ** 2 for w, part in zip(along, offset, strict=True))
            d = np.sqrt(squared) - (float(ra) + float(rb - ra) * t)
            nearest = d if nearest is None else np.minimum(nearest, d)
        return nearest

    return distance


def _within(shape: _Shape, container: _Shape, depth: float = 0.0) -> _Shape:
    """The part of `shape` that lies at least `depth` mm under the surface of `container`."""
    return lambda points: np.maximum(shape(points), container(points) + depth)


def _join(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Union with a fillet of about `blend` mm (polynomial smooth minimum)."""
    h = np.maximum(blend - np.abs(a - b), 0) / blend
    return np.minimum(a, b) - h * h * (blend / 4)


def _common(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Intersection with a rounded edge."""
    return -_join(-a, -b, blend)


def _rotation(degrees_xyz: Sequence[float]) -> np.ndarray:
    """Rotation matrix about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees_xyz)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix


class _SmoothField:
    """A random smooth function of space, about unit variance: cubic B-splines on a lattice of `cell` mm."""

    def __init__(self, rng: np.random.Generator, cell: float, channels: int = 1) -> None:
        self._cell = cell
        count = int(np.ceil(640 / cell)) + 4
        self._lattice = rng.standard_normal((channels, count, count, count), dtype=np.float32) * 2.1

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        """Values (channels, z, y, x) on the grid of three coordinate vectors in mm, each within 320 mm of 0."""
        values = self._lattice
        for axis, coordinates in enumerate((z, y, x), start=1):
            position = (np.asarray(coordinates, float) + 320) / self._cell + 1
            node = np.floor(position).astype(int)
            u = position - node
            weights = (1 - u) ** 3, 3 * u**3 - 6 * u**2 + 4, -3 * u**3 + 3 * u**2 + 3 * u + 1, u**3
            shape = [-1 if other == axis else 1 for other in range(4)]
            values = sum(
                (weight / 6).astype(np.float32).reshape(shape)
                * values.take(np.clip(node + shift, 0, self._lattice.shape[1] - 1), axis)
                for shift, weight in zip((-1, 0, 1, 2), weights, strict=True)
            )
        return values


class _Anatomy:
    """One patient: sizes, positions and tissue values drawn from `rng`, and the painting steps made of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.phase = int(rng.choice(4, p=[0.25, 0.15, 0.45, 0.15]))
        self.scale = rng.uniform(0.92, 1.1) * rng.uniform(0.96, 1.04, 3)
        self.rotation = _rotation(rng.normal(0, [2.5, 2.5, 4]))
        self._inner = np.array([rng.uniform(124, 140), rng.uniform(80, 108), rng.uniform(72, 82)])
        self._fat = rng.choice([rng.uniform(4, 14), rng.uniform(14, 32)])
        self._muscle = rng.uniform(11, 17)
        self.half_width = float((self._inner[0] + self._muscle + self._fat) * self.scale[0] + 6)
        self.half_depth = float((self._inner[1:].mean() + self._muscle + 12 + self._fat) * self.scale[1] + 6)
        self.warp = _SmoothField(rng, 75.0, channels=3)
        self.ripple = _SmoothField(rng, 30.0, channels=3)
        self.warp_mm = rng.uniform(3, 6)
        self.mottle = _SmoothField(rng, 22.0)
        self.strands = _SmoothField(rng, 9.0)
        self.noise = float(rng.uniform(5, 16))
        self.round_view = bool(rng.random() < 0.2)
        self.table_gap = float(rng.uniform(2, 10))
        self.steps: list[_Step] = []
        self._cavity: tuple[_Points | None, np.ndarray] = (None, np.empty(0))
        self._body_wall()
        self._chest()
        self._skeleton()
        self._bowel()
        self._stomach()
        self._liver()
        self._spleen()
        self._vessels()
        self._kidneys()

    # Helpers --------------------------------------------------------------------------------------

    def _hounsfield(self, tissue: str) -> float:
        value = _ENHANCEMENT[tissue][self.phase]
        return float(value * self._rng.uniform(0.92, 1.08) + self._rng.normal(0, 3))

    def _vary(self, values: Sequence[float], spread_mm: float) -> np.ndarray:
        return np.asarray(values, float) + self._rng.normal(0, spread_mm, np.shape(values))

    def _paint(
        self,
        shape: _Shape,
        value: float | Callable[[_Points], np.ndarray],
        label: int | None = 0,
        box: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        corners = None if box is None else (np.asarray(box[0], float), np.asarray(box[1], float))
        self.steps.append(_Step(shape, value, label, corners))

    def _blob(self, center, radii, value, label: int | None = 0, axes: np.ndarray | None = None) -> None:
        """An ellipsoid, painted within its own box."""
        reach = max(radii) if axes is not None else np.asarray(radii)
        self._paint(
            _ellipsoid(center, radii, axes),
            value,
            label,
            (np.asarray(center) - reach - 3, np.asarray(center) + reach + 3),
        )

    def _pipe(self, nodes, radii, value, label: int | None = 0) -> None:
        """A tube, painted within its own box."""
        nodes = np.asarray(nodes, float)
        reach = float(np.max(radii)) + 3
        self._paint(_tube(nodes, radii), value, label, (nodes.min(0) - reach, nodes.max(0) + reach))

    # The wall -------------------------------------------------------------------------------------

    def _from_cavity(self, points: _Points) -> np.ndarray:
        """Distance in mm from the wall of chest and belly, along the ray from the body's axis; negative inside."""
        if self._cavity[0] is not points:  # many shapes of one step ask for the same points
            x, y, z = points
            width, front, back = (float(v) for v in self._inner)
            taper = 1 - 0.0014 * np.maximum(z - 75, 0) - 0.0006 * np.maximum(-z - 20, 0)
            across = np.abs(x) / (width * taper)
            along = np.abs(y) / (np.where(y < 0, np.float32(front), np.float32(back)) * taper)
            k = (
                across * across * np.sqrt(across) + along * along * np.sqrt(along)
            ) ** 0.4  # a superellipse of order 2.5
            self._cavity = points, np.sqrt(x * x + y * y) * (1 - 1 / np.maximum(k, 1e-3))
        return self._cavity[1]

    def _wall_thickness(self, points: _Points) -> np.ndarray:
        """The muscles: an even coat, much thicker beside the spine."""
        x, y, _ = points
        beside, furrow = (x / 78) ** 2, (x / 9) ** 2
        return self._muscle + np.where(y > 0, 21 * np.exp(-beside * beside) - 5 * np.exp(-furrow), np.float32(0))

    def _body_wall(self) -> None:
        muscle = self._hounsfield("muscle")

        def fat_thickness(points: _Points) -> np.ndarray:
            x, y, z = points
            side = np.abs(x) / (np.hypot(x, y) + 1)
            return self._fat * (0.75 + 0.35 * side + 0.0015 * np.clip(-z, -100, 100))

        def skin(points: _Points) -> np.ndarray:
            return self._from_cavity(points) - self._wall_thickness(points) - fat_thickness(points) - 2.5

        def fat(points: _Points) -> np.ndarray:
            return skin(points) + 2.5

        def muscles(points: _Points) -> np.ndarray:
            return self._from_cavity(points) - self._wall_thickness(points)

        def cleft(points: _Points) -> np.ndarray:
            """The fat between the muscle layers, and in the midline of the back."""
            _, y, z = points
            layers = np.abs(self._from_cavity(points) - 0.5 * self._wall_thickness(points)) - 0.7
            return np.where((y < 25) & (z < 20), layers, 5.0)

        self._paint(skin, 15.0)
        self._paint(fat, _FAT)
        self._paint(muscles, muscle)
        self._paint(cleft, _FAT + 45)
        self._paint(lambda points: self._from_cavity(points) + 1.5, _FAT)
        for side in (-1, 1):
            top, bottom = (side * 28, 50, 12), (side * 54, 42, -190)
            self._pipe([top, (side * 40, 47, -55), (side * 48, 44, -110), bottom], [7, 17, 22, 24], muscle)
            self._blob((side * 34, 92, 0), (30, 17, 260), muscle)

    def _domes(self, points: _Points) -> np.ndarray:
        """The space under the diaphragm."""
        return _join(self._right_dome(points), self._left_dome(points), 22)

    def _chest(self) -> None:
        rng = self._rng
        top_right = rng.uniform(92, 118)
        top_left = top_right - rng.uniform(4, 20)
        self._dome_top = (top_right, top_left)
        self._right_dome = _ellipsoid((-66, -8, top_right - 112), (84, 98, 112))
        self._left_dome = _ellipsoid((66, -4, top_left - 105), (78, 96, 105))
        lung_bottom = rng.uniform(15, 40)
        lung_hu = rng.uniform(-880, -790)
        heart = _ellipsoid(
            self._vary((24, -34, top_right + 42), 4), self._vary((60, 46, 50), 3), _rotation((0, 25, -20))
        )

        def lungs(points: _Points) -> np.ndarray:
            x, y, z = points
            floor = (lung_bottom + 0.42 * (70 - y)) - z
            middle = 24 + 10 * np.exp(-(((y - 40) / 25) ** 2)) - np.abs(x + 4)
            d = np.maximum(self._from_cavity(points) + 3, -self._domes(points))
            return np.maximum(np.maximum(d, floor), np.maximum(middle, 4 - heart(points)))

        box = ((-170, -130, -5), (170, 110, 400))
        muscle = self._hounsfield("muscle")

        def under_domes(wall_mm: float) -> _Shape:
            return lambda points: np.maximum(
                np.maximum(self._domes(points), self._from_cavity(points)) + wall_mm, lung_bottom - 25 - points[2]
            )

        self._paint(under_domes(0), muscle, 0, box)
        self._paint(under_domes(2.8), _FAT, 0, box)
        self._paint(lungs, lung_hu, 0, box)
        for _ in range(24):
            side = rng.choice([-1, 1])
            root = np.array([side * 38, 5, rng.uniform(120, 200)])
            tip = np.array([side * rng.uniform(60, 115), rng.uniform(-60, 55), rng.uniform(95, 200)])
            vessel = _tube([root, (root + tip) / 2, tip], [3.4, 2.0, 0.8])
            self._paint(_within(vessel, lungs, 2), 30.0, 0, (np.minimum(root, tip) - 8, np.maximum(root, tip) + 8))
        blood = self._hounsfield("heart")
        self._paint(heart, blood * 0.8 + 15, 0, ((-60, -110, top_right - 30), (115, 50, top_right + 120)))
        self._blob((34, -38, top_right + 48), (36, 26, 30), blood)
        self._blob((-8, -30, top_right + 58), (26, 26, 28), blood)
        self._pipe([(2, 24, 210), (2, 22, 120), (14, 12, 92)], 6.5, self._hounsfield("bowel wall"))

    def _skeleton(self) -> None:
        rng = self._rng
        pitch = rng.uniform(31, 36)
        marrow, cortex, disc = rng.uniform(120, 260), rng.uniform(420, 750), rng.uniform(70, 100)
        wide = rng.uniform(20, 24)
        self._spine(pitch, wide, marrow, cortex, disc)
        self._ribs(marrow, cortex)
        front = -float(self._inner[1])
        self._blob((0, front - 2, 160), (17, 7, 70), marrow + 80)
        self._pelvis(marrow, cortex)

    def _spine(self, pitch: float, wide: float, marrow: float, cortex: float, disc: float) -> None:
        """Vertebrae of a pitch and a width in mm, of marrow, cortex and discs in HU."""

        def level(points: _Points) -> np.ndarray:
            """Height within one vertebra, -0.5 to 0.5, 0 at its middle."""
            return (points[2] / pitch) - np.round(points[2] / pitch)

        def body(points: _Points) -> np.ndarray:
            x, y, _ = points
            waist = 1 + 0.35 * level(points) ** 2
            k = np.hypot(x / (wide * waist), (y - 54) / (16 * waist))
            return np.hypot(x, y - 54) * (1 - 1 / np.maximum(k, 0.05))

        def body_value(points: _Points) -> np.ndarray:
            edge = np.clip((body(points) + 3.5) / 2.5, 0, 1)
            height = np.abs(level(points)) * pitch
            half = pitch / 2 - 4.5
            plate = np.clip(1 - np.abs(height - half) / 2, 0, 1)
            bone = marrow + (cortex - marrow) * np.maximum(edge, plate)
            return np.where(height > half + 1.2, disc, bone)

        def arch(points: _Points) -> np.ndarray:
            """Pedicles, laminae, spinous and transverse processes."""
            x, y, _ = points
            height = level(points) * pitch
            ring = np.abs(np.hypot(x / 1.15, y - 78) - 12) - 3.2
            ring = np.maximum(ring, np.abs(height - 2) - 10)
            spine = np.maximum(np.maximum(np.abs(x) - 3.2, np.abs(y - 98) - 13), np.abs(height + 6) - 10)
            wing = np.maximum(np.maximum(np.abs(y - 76) - 4, np.abs(height - 3) - 5), np.abs(np.abs(x) - 26) - 14)
            return np.minimum(np.minimum(ring, spine), wing)

        box = ((-48, 28, -400), (48, 120, 400))
        self._paint(body, body_value, 0, box)
        self._paint(arch, lambda points: marrow + 0.7 * (cortex - marrow) * (arch(points) > -2.2), 0, box)
        self._paint(lambda points: np.hypot(points[0], points[1] - 78) - 8.5, 28.0, 0, box)

    def _ribs(self, marrow: float, cortex: float) -> None:
        rng = self._rng
        rib_pitch = rng.uniform(25, 29)
        first = 48 + rng.uniform(-6, 6)
        ends = np.array([0.30, 0.45, 0.70] + [0.78] * 40)
        cartilage = np.array([0.30, 0.45, 0.86] + [0.95] * 40)

        def rib_frame(points: _Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """(which rib, distance from its surface, angle 0 at the back to 1 at the front)."""
            x, y, z = points
            turn = np.arctan2(np.abs(x), y) / np.pi
            drop = 105 * turn - 60 * np.maximum(turn - 0.72, 0)
            number = (z + drop - first) / rib_pitch
            index = np.round(number)
            up = (number - index) * rib_pitch
            out = self._from_cavity(points) - 0.42 * self._muscle
            d = (np.hypot(up / 6.2, out / 3.9) - 1) * 4.2
            return np.clip(index, -1, 40).astype(int), d, turn

        def ribs(points: _Points) -> np.ndarray:
            index, d, turn = rib_frame(points)
            return np.where((index >= 0) & (turn < cartilage[index]) & (turn > 0.1), d, 5.0)

        def rib_value(points: _Points) -> np.ndarray:
            index, d, turn = rib_frame(points)
            return np.where(turn > ends[index], 105.0, np.where(d > -2.2, cortex, marrow + 80))

        self._paint(ribs, rib_value, 0, ((-190, -150, -70), (190, 130, 400)))

    def _pelvis(self, marrow: float, cortex: float) -> None:
        hip = self._rng.uniform(-125, -105)

        def wing_of_ilium(points: _Points) -> np.ndarray:
            x, y, z = points
            sheet = np.abs(self._from_cavity(points) + 4 + 0.15 * (hip - z)) - 4.0
            return np.maximum(np.maximum(sheet, z - hip + 0.012 * (y - 25) ** 2), np.maximum(10 - y, 40 - np.abs(x)))

        self._paint(
            wing_of_ilium,
            lambda points: marrow + 0.8 * (cortex - marrow) * (wing_of_ilium(points) > -2),
            0,
            ((-190, 0, -400), (190, 130, -90)),
        )

    # Belly ----------------------------------------------------------------------------------------

    def _gut(self, nodes, radii, content: str) -> None:
        """A piece of bowel: wall, content, and gas that has risen to the front."""
        rng = self._rng
        wall = self._hounsfield("bowel wall")
        filling = {
            "fluid": rng.uniform(5, 35),
            "contrast": rng.uniform(150, 400),
            "stool": rng.uniform(-60, 50),
            "empty": wall,
            "gas": 10.0,
        }[content]
        nodes, radii = np.asarray(nodes, float), np.broadcast_to(np.asarray(radii, float), len(nodes))
        self._pipe(nodes, radii, wall)
        self._pipe(nodes, np.maximum(radii - 2.6, 0.5), filling)
        if content in ("gas", "stool"):
            inner = _tube(nodes, np.maximum(radii - 2.8, 0.5))
            surface = float(nodes[:, 1].mean() + rng.uniform(-0.5, 0.4) * radii.mean())
            reach = float(radii.max()) + 3
            box = (nodes.min(0) - reach, nodes.max(0) + reach)
            if content == "gas":
                self._paint(lambda points: np.maximum(inner(points), points[1] - surface), _AIR + 25, 0, box)
            else:
                for _ in range(6):
                    center = nodes[rng.integers(len(nodes))] + rng.uniform(-0.6, 0.6, 3) * radii.mean()
                    size = rng.uniform(2, 5)
                    bubble = _within(_ellipsoid(center, (size, size, size)), inner)
                    self._paint(bubble, -600.0, 0, (center - size - 3, center + size + 3))

    def _bowel(self) -> None:
        rng = self._rng
        width, front = float(self._inner[0]), float(self._inner[1])
        for _ in range(46):
            center = np.array([rng.uniform(-78, 92), rng.uniform(-front + 20, 10), rng.uniform(-185, -5)])
            way = rng.normal(0, 1, 3) * (1, 0.5, 0.6)
            way = way / np.linalg.norm(way) * rng.uniform(12, 30)
            bend = rng.normal(0, 7, 3)
            nodes = [center - way, center + bend, center + way]
            self._gut(
                nodes, rng.uniform(8, 13), rng.choice(["fluid", "empty", "contrast", "gas"], p=[0.4, 0.35, 0.1, 0.15])
            )
        kinds = rng.choice(["stool", "gas", "fluid"], 4, p=[0.45, 0.4, 0.15])
        lateral = width - 24
        self._gut([(-lateral + 6, 14, -190), (-lateral, 18, -110), (-lateral + 4, 4, -58)], [26, 23, 20], kinds[0])
        self._gut([(-lateral + 8, -10, -52), (-58, -front + 30, -50), (0, -front + 25, -58)], [19, 18, 17], kinds[1])
        self._gut([(0, -front + 25, -58), (58, -front + 30, -38), (lateral - 4, -10, 12)], [17, 18, 16], kinds[2])
        self._gut([(lateral, 18, 8), (lateral + 3, 30, -60), (lateral, 22, -190)], [13, 14, 14], kinds[3])
        self._pipe([(-42, -8, 8), (-46, 6, -22), (-40, 12, -48), (8, 8, -52)], 12, self._hounsfield("bowel wall") - 8)
        pancreas = self._hounsfield("pancreas")
        self._pipe(
            self._vary([(-30, -10, -14), (-8, -20, 4), (28, -8, 18), (66, 16, 34)], 2), [15, 11, 10, 8], pancreas
        )

    def _liver(self) -> None:
        rng = self._rng
        label = organ_by_key("liver").label
        tissue = self._hounsfield("liver") - (rng.uniform(0, 45) if rng.random() < 0.2 else 0)
        center = self._vary((-72, -4, 34), 3)
        radii = self._vary((84, 92, 96), 3) * rng.uniform(0.94, 1.06)
        tip = rng.uniform(-66, -38)
        right = _ellipsoid(center, radii, _rotation((0, 14, 0)))
        left = _ellipsoid(
            self._vary((2, -46, self._dome_top[0] - 44), 4), self._vary((76, 42, 36), 5), _rotation((0, -14, -8))
        )
        porta = self._vary((-14, 6, 30), 4)
        under = np.array([0.60, 0.30, -0.74]) + rng.normal(0, 0.04, 3)
        under /= np.linalg.norm(under)
        behind = _ellipsoid((8, 66, 60), (50, 70, 120))

        def liver(points: _Points) -> np.ndarray:
            x, y, z = points
            cut = sum(float(n) * (axis - float(c)) for n, axis, c in zip(under, points, porta, strict=True))
            lobe = _common(right(points), cut, 26)
            lobe = _common(lobe, tip - z + 0.25 * (x + 95), 18)
            both = _join(lobe, _common(left(points), y - 12, 12), 48)
            both = _common(both, -behind(points), 16)
            both = _common(both, self._from_cavity(points) + 3, 6)
            return _common(both, self._domes(points) + 2.8, 6)

        box = ((-170, -130, -90), (95, 100, 140))
        self._paint(liver, tissue, label, box)
        enhanced = self._hounsfield("portal vein")
        cava = np.array((-22, 16, self._dome_top[0] - 14))
        gate = porta + (4, -6, 0)
        branches = [
            ([cava, (-58, -4, 78), (-104, 8, 50)], [5.5, 4, 2]),
            ([cava, (-42, -36, 74), (-66, -66, 46)], [5, 4, 2]),
            ([cava, (-6, -34, 82), (30, -54, 76)], [4.5, 3.5, 1.8]),
            ([gate, (-52, 0, 46), (-92, 22, 50)], [6.5, 5, 2.5]),
            ([gate, (-56, -20, 40), (-84, -48, 22)], [5.5, 4.5, 2.2]),
            ([gate, (-18, -34, 58), (16, -54, 66)], [5, 4, 2]),
        ]
        for nodes, sizes in branches:
            places = self._vary(nodes, 2.5)
            branch = _within(_tube(places, sizes), liver, 1)
            self._paint(branch, enhanced, None, (places.min(0) - 10, places.max(0) + 10))
        for _ in range(rng.poisson(0.7)):
            spot = rng.uniform((-115, -50, 0), (-45, 40, 80))
            size = rng.uniform(4, 14)
            value = rng.choice([8.0, tissue - 35, tissue + 30])
            lesion = _within(_ellipsoid(spot, (size, size, size)), liver, 2)
            self._paint(lesion, value, None, (spot - size - 4, spot + size + 4))
        bladder = self._vary((-52, -42, 2), 4)
        if rng.random() < 0.85:
            axes = _rotation((30, 20, 0))
            self._blob(bladder, self._vary((15, 15, 30), 2) + 1.6, self._hounsfield("bowel wall"), 0, axes)
            self._blob(bladder, (13, 13, 28), rng.uniform(2, 18), 0, axes)

    def _spleen(self) -> None:
        rng = self._rng
        label = organ_by_key("spleen").label
        middle = self._vary((float(self._inner[0]) - 41, 35, self._dome_top[1] - 42), 4)
        size = rng.uniform(0.85, 1.12)
        tilt = _rotation((-18 + rng.normal(0, 5), 14 + rng.normal(0, 5), -12 + rng.normal(0, 6)))
        outer = _ellipsoid(middle, np.array((44, 56, 60)) * size, tilt)
        inner = _ellipsoid(middle + np.array((-43, -17, -8)) * size, np.array((42, 44, 64)) * size, tilt)

        def spleen(points: _Points) -> np.ndarray:
            d = _common(outer(points), -inner(points), 9)
            d = _common(d, self._from_cavity(points) + 5, 7)
            return _common(d, self._domes(points) + 4, 8)

        box = (middle - 80, middle + 80)
        self._paint(spleen, self._hounsfield("spleen"), label, box)

    def _vessels(self) -> None:
        rng = self._rng
        aorta, cava, portal = (self._hounsfield(name) for name in ("aorta", "inferior vena cava", "portal vein"))
        width = rng.uniform(9, 12.5)
        way = self._vary([(22, 30, 230), (18, 30, 130), (10, 27, 40), (8, 25, -20), (6, 25, -95)], 1.5)
        self._pipe(way, width, aorta)
        if rng.random() < 0.4:
            for _ in range(6):
                spot = way[2] + (way[4] - way[2]) * rng.random() + np.append(rng.normal(0, 1, 2), 0)
                self._blob(spot + (width - 2, 0, 0), (1.5, 3, 5), 650.0)
        for side in (-1, 1):
            self._pipe([way[4], (side * 24, 24, -140), (side * 48, 26, -200)], width * 0.6, aorta)
            self._pipe([(-18, 24, -100), (side * 26 - 4, 32, -145), (side * 52, 32, -200)], width * 0.7, cava)
        top = self._dome_top[0]
        self._pipe(
            self._vary([(-18, 24, -100), (-20, 22, -20), (-22, 18, 40), (-20, 8, top - 8), (-18, -6, top + 14)], 1.5),
            [10, 11, 12, 12, 12],
            cava,
        )
        gate = (-22, -2, 32)
        self._pipe([(-6, -8, -60), (-4, -10, -8), (-12, -8, 8), gate], [5, 6, 7.5, 7], portal)
        self._pipe(self._vary([(-6, -9, 4), (28, 4, 22), (72, 26, 42)], 1.5), [5.5, 5, 4], portal)
        self._pipe([(8, 18, 18), (8, 2, -4), (2, -6, -70)], [4, 4, 3], aorta)

    def _kidneys(self) -> None:
        rng = self._rng
        cortex, medulla, urine = (self._hounsfield(name) for name in ("cortex", "medulla", "urine"))
        artery, vein = self._hounsfield("aorta"), self._hounsfield("inferior vena cava")
        for side, key, height in ((-1, "right_kidney", -26), (1, "left_kidney", -10)):
            label = organ_by_key(key).label
            size = rng.uniform(0.86, 1.12)
            center = self._vary((side * 66, 38, height), 4)
            axes = _rotation((-9 + rng.normal(0, 4), side * (14 + rng.normal(0, 4)), side * (-28 + rng.normal(0, 6))))
            radii = np.array((28, 25, 55)) * size

            def local(offset, axes=axes, center=center, size=size) -> np.ndarray:
                """A point given along the kidney's own axes (flank, back, up), for a kidney of ordinary size."""
                return center + size * (np.asarray(offset, float) @ axes)

            bean = _ellipsoid(center, radii, axes)
            dent = _ellipsoid(local((-side * 26, -5, 0)), np.array((21, 13, 20)) * size, axes)

            def kidney(points: _Points, bean=bean, dent=dent, size=size) -> np.ndarray:
                return _common(bean(points), -dent(points), 7 * size)

            reach = 60 * size
            box = (center - reach, center + reach)
            around = _within(_ellipsoid(center, radii + rng.uniform(3, 9), axes), self._from_cavity, 2)
            self._paint(around, _FAT, 0, (center - reach - 12, center + reach + 12))
            self._paint(kidney, cortex, label, box)
            for up in (-34, -20, 0, 20, 34):
                for turn in (-1, 1):
                    spread = 1 - (up / 55) ** 2
                    self._blob(
                        local((side * 8 * spread - side * 2, turn * 10 * spread, up)),
                        np.array((6.5, 5.5, 7)) * size,
                        medulla,
                        None,
                        axes,
                    )
                self._blob(
                    local((-side * 4, -2, up * 0.75)),
                    np.array((4, 4, 5.5)) * size,
                    urine * 0.6 + _FAT * 0.25,
                    None,
                    axes,
                )
            pelvis = [
                local((-side * 12, -4, 0)),
                local((-side * 26, -3, -6)),
                (side * 38, 36, height - 30),
                (side * 40, 34, -190),
            ]
            self._pipe(pelvis[:2], [6 * size, 4.5], urine)
            self._pipe(pelvis[1:], [3.5, 2, 2], urine * 0.5 + 20)
            hilum = local((-side * 15, -7, 4))
            self._pipe([hilum, (side * 24, 22, height + 8), (9, 26, height + 8)], [2.2, 2.6, 3], artery)
            self._pipe([hilum + (0, -5, -4), (side * 22, 14, height + 4), (-20, 16, height + 2)], [3, 4.5, 4.5], vein)
            if rng.random() < 0.15:
                cyst = local((side * 22, 6, rng.uniform(-30, 30)))
                radius = rng.uniform(5, 12)
                self._blob(cyst, (radius, radius, radius), 8.0, 0)

    def _stomach(self) -> None:
        rng = self._rng
        top = self._dome_top[1]
        nodes = self._vary([(48, 14, top - 28), (58, -12, top - 52), (42, -44, 8), (4, -50, -14), (-28, -30, -6)], 3)
        radii = np.array((27, 31, 24, 18, 12)) * rng.uniform(0.75, 1.05)
        tube, inner = _tube(nodes, radii), _tube(nodes, radii - 4)
        content = rng.choice([rng.uniform(5, 35), rng.uniform(30, 60), rng.uniform(150, 350)], p=[0.6, 0.25, 0.15])
        level = float(rng.uniform(-48, -22))
        box = (nodes.min(0) - 36, nodes.max(0) + 36)

        def under_diaphragm(shape: _Shape, depth: float) -> _Shape:
            return _within(_within(shape, self._domes, depth), self._from_cavity, depth)

        def gas(points: _Points) -> np.ndarray:
            return np.maximum(inner(points), points[1] - level)

        self._paint(under_diaphragm(tube, 4), self._hounsfield("bowel wall"), 0, box)
        self._paint(under_diaphragm(inner, 8), float(content), 0, box)
        self._paint(under_diaphragm(gas, 8), _AIR + 20, 0, box)


def _render(
    anatomy: _Anatomy, size: Sequence[int], spacing: Sequence[float], origin: Sequence[float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Paint the anatomy onto a grid of `size` (x, y, z) voxels: (int16 HU, uint8 labels), both (z, y, x).

    Thick slices are painted as an odd number of thin ones whose HU are averaged, as a scanner does; labels are those
    of the middle one.
    """
    thin = 1 + 2 * int(np.ceil((spacing[2] / 2.6 - 1) / 2)) if spacing[2] > 2.6 else 1
    x, y = (origin[axis] + spacing[axis] * np.arange(size[axis]) for axis in (0, 1))
    hounsfield = np.empty((size[2], size[1], size[0]), np.int16)
    labels = np.empty(hounsfield.shape, np.uint8)
    slab = max(1, int(_SLAB_VOXELS / (thin * size[0] * size[1])))
    for first in range(0, size[2], slab):
        last = min(first + slab, size[2])
        steps = (np.arange((last - first) * thin) - (thin - 1) / 2) / thin
        z = origin[2] + spacing[2] * (first + steps)
        values, owners = _paint_slab(anatomy, x, y, z, max(spacing[0], spacing[2] / thin))
        values = values.reshape(last - first, thin, size[1], size[0]).mean(1)
        owners = owners.reshape(last - first, thin, size[1], size[0])[:, thin // 2]
        labels[first:last] = owners
        noise = rng.standard_normal(values.shape, dtype=np.float32)
        if spacing[0] < 1.6:  # the noise of a reconstruction is correlated over about 2 mm
            noise = (np.roll(noise, 1, 1) + 2 * noise + np.roll(noise, -1, 1)) / 6**0.5
            noise = (np.roll(noise, 1, 2) + 2 * noise + np.roll(noise, -1, 2)) / 6**0.5
        values += noise * anatomy.noise
        hounsfield[first:last] = np.clip(np.rint(values), _LOWEST_HU, _HIGHEST_HU)
    if anatomy.round_view:
        radius = min(size[0] * spacing[0], size[1] * spacing[1]) / 2 + 12
        center = origin[0] + spacing[0] * (size[0] - 1) / 2, origin[1] + spacing[1] * (size[1] - 1) / 2
        outside = np.hypot((x - center[0])[None], (y - center[1])[:, None]) > radius
        hounsfield[:, outside] = _LOWEST_HU
        labels[:, outside] = 0
    return hounsfield, labels


def _paint_slab(
    anatomy: _Anatomy, x: np.ndarray, y: np.ndarray, z: np.ndarray, voxel_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """HU (float32) and labels of the voxels at the scanner coordinates x, y, z in mm."""
    world = np.broadcast_arrays(
        x.astype(np.float32)[None, None], y.astype(np.float32)[None, :, None], z.astype(np.float32)[:, None, None]
    )
    turn = anatomy.rotation.astype(np.float32)
    warp = anatomy.warp(x, y, z) * np.float32(anatomy.warp_mm) + anatomy.ripple(x, y, z) * np.float32(0.9)
    points = tuple(
        sum(turn[row, axis] * world[axis] for axis in range(3)) / np.float32(anatomy.scale[row]) + warp[row]
        for row in range(3)
    )
    mottle, strands = anatomy.mottle(x, y, z)[0], anatomy.strands(x, y, z)[0]
    values = np.full(world[0].shape, _AIR, np.float32)
    labels = np.zeros(values.shape, np.uint8)
    _paint_table(anatomy, values, world, voxel_mm)

    blur = np.float32(np.hypot(1.4, voxel_mm) / float(np.mean(anatomy.scale)))
    for step in anatomy.steps:
        where, part = (slice(None),) * 3, points
        if step.box is not None:
            where = _voxels_in_box(anatomy, step.box, x, y, z)
            if where is None:
                continue
            part = tuple(axis[where] for axis in points)
        distance = step.shape(part)
        if distance.min() > blur / 2:
            continue
        cover = np.clip(0.5 - distance / blur, 0, 1)
        value = step.value(part) if callable(step.value) else step.value
        values[where] += cover * (value - values[where])
        if step.label is not None:
            labels[where][distance <= 0] = step.label
    soft = (values > -140) & (values < 260)
    values += np.where(soft, 4.0 * mottle + 2.5 * strands, 0)
    fat = (values < -60) & (values > -140)
    values += np.where(fat, 55 * np.clip(strands - 1.2, 0, 1.5), 0)
    return values, labels


def _paint_table(anatomy: _Anatomy, values: np.ndarray, world: Sequence[np.ndarray], voxel_mm: float) -> None:
    """A curved table top of carbon fiber and foam under the patient, in the scanner's coordinates."""
    x, y, _ = world
    depth = y - (anatomy.half_depth - 4 + anatomy.table_gap) + (x / 330.0) ** 2 * 70
    blur = max(1.4, voxel_mm)
    shell = np.minimum(np.abs(depth), np.abs(depth - 26)) - 1.2
    inside = np.abs(x) < 215
    values += np.where(inside & (depth > 0) & (depth < 26), 45, 0)
    values += np.where(inside, np.clip(0.5 - shell / blur, 0, 1) * 780, 0)


def _voxels_in_box(
    anatomy: _Anatomy, box: tuple[np.ndarray, np.ndarray], x: np.ndarray, y: np.ndarray, z: np.ndarray
) -> tuple[slice, slice, slice] | None:
    """The voxels (z, y, x) that may lie in a box given in the patient's coordinates; None where there are none."""
    slack = 3.2 * (anatomy.warp_mm + 0.9)
    corners = np.array([[box[(i >> axis) & 1][axis] for axis in range(3)] for i in range(8)], float)
    scanner = (corners * anatomy.scale) @ anatomy.rotation
    low, high = scanner.min(0) - slack, scanner.max(0) + slack
    where = []
    for axis, (lower, upper) in zip((z, y, x), zip(low[::-1], high[::-1], strict=True), strict=True):
        first, last = np.searchsorted(axis, (lower, upper))
        if first >= last:
            return None
        where.append(slice(int(first), int(last)))
    return tuple(where)
