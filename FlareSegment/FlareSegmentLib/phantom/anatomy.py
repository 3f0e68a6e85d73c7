"""One patient of the phantom: sizes, positions and tissue values, and the painting steps made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from FlareSegmentLib.organs import organ_by_key
from FlareSegmentLib.phantom import shapes

AIR_HU = -1000.0
_FAT_HU = -103.0
_EVERYWHERE = (3 * (-1e6,), 3 * (1e6,))
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


@dataclass(frozen=True)
class Step:
    """One coat of paint: `value` HU (a number, or a function of the points) wherever `shape` is negative.

    `label` None keeps the labels below (a vessel within the liver stays liver); `box` is (lower, upper) corners in mm.
    """

    shape: shapes.Shape
    value: float | Callable[[shapes.Points], np.ndarray]
    label: int | None
    box: tuple[np.ndarray, np.ndarray]


class Anatomy:
    """One patient: sizes, positions and tissue values drawn from `rng`, and the painting steps made of them."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self.phase = int(rng.choice(4, p=[0.25, 0.15, 0.45, 0.15]))
        self.scale = rng.uniform(0.92, 1.1) * rng.uniform(0.96, 1.04, 3)
        self.rotation = shapes.rotation(rng.normal(0, [2.5, 2.5, 4]))
        self._inner = np.array([rng.uniform(124, 140), rng.uniform(80, 108), rng.uniform(72, 82)])
        self._fat = rng.choice([rng.uniform(4, 14), rng.uniform(14, 32)])
        self._muscle = rng.uniform(11, 17)
        self.half_width = float((self._inner[0] + self._muscle + self._fat) * self.scale[0] + 6)
        self.half_depth = float((self._inner[1:].mean() + self._muscle + 12 + self._fat) * self.scale[1] + 6)
        self.warp = shapes.SmoothField(rng, 75.0, channels=3)
        self.ripple = shapes.SmoothField(rng, 30.0, channels=3)
        self.warp_mm = rng.uniform(3, 6)
        self.mottle = shapes.SmoothField(rng, 22.0)
        self.strands = shapes.SmoothField(rng, 9.0)
        self.noise = float(rng.uniform(5, 16))
        self.round_view = bool(rng.random() < 0.2)
        self.table_gap = float(rng.uniform(2, 10))
        self.steps: list[Step] = []
        self._from_cavity = shapes.once(self._beyond_cavity)
        self._domes = shapes.once(self._under_domes)
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
        shape: shapes.Shape,
        value: float | Callable[[shapes.Points], np.ndarray],
        label: int | None = 0,
        box: tuple[Sequence[float], Sequence[float]] = _EVERYWHERE,
    ) -> None:
        self.steps.append(Step(shape, value, label, (np.asarray(box[0], float), np.asarray(box[1], float))))

    def _blob(self, center, radii, value, label: int | None = 0, axes: np.ndarray | None = None) -> None:
        """An ellipsoid, painted within its own box."""
        reach = max(radii) if axes is not None else np.asarray(radii)
        self._paint(
            shapes.ellipsoid(center, radii, axes),
            value,
            label,
            (np.asarray(center) - reach - 3, np.asarray(center) + reach + 3),
        )

    def _pipe(self, nodes, radii, value, label: int | None = 0) -> None:
        """A tube, painted within its own box."""
        nodes = np.asarray(nodes, float)
        reach = float(np.max(radii)) + 3
        self._paint(shapes.tube(nodes, radii), value, label, (nodes.min(0) - reach, nodes.max(0) + reach))

    # The wall -------------------------------------------------------------------------------------

    def _beyond_cavity(self, points: shapes.Points) -> np.ndarray:
        """Distance in mm from the wall of chest and belly, along the ray from the body's axis; negative inside."""
        x, y, z = points
        width, front, back = (float(v) for v in self._inner)
        taper = 1 - 0.0014 * np.maximum(z - 75, 0) - 0.0006 * np.maximum(-z - 20, 0)
        across = np.abs(x) / (width * taper)
        along = np.abs(y) / (np.where(y < 0, np.float32(front), np.float32(back)) * taper)
        k = (across * across * np.sqrt(across) + along * along * np.sqrt(along)) ** 0.4  # a superellipse of order 2.5
        return np.sqrt(x * x + y * y) * (1 - 1 / np.maximum(k, 1e-3))

    def _wall_thickness(self, points: shapes.Points) -> np.ndarray:
        """The muscles: an even coat, much thicker beside the spine."""
        x, y, _ = points
        beside, furrow = (x / 78) ** 2, (x / 9) ** 2
        return self._muscle + np.where(y > 0, 21 * np.exp(-beside * beside) - 5 * np.exp(-furrow), np.float32(0))

    def _body_wall(self) -> None:
        muscle = self._hounsfield("muscle")

        def fat_thickness(points: shapes.Points) -> np.ndarray:
            x, y, z = points
            side = np.abs(x) / (np.hypot(x, y) + 1)
            return self._fat * (0.75 + 0.35 * side + 0.0015 * np.clip(-z, -100, 100))

        wall_thickness = shapes.once(self._wall_thickness)
        muscles = shapes.once(lambda points: self._from_cavity(points) - wall_thickness(points))
        skin = shapes.once(lambda points: muscles(points) - fat_thickness(points) - 2.5)

        def cleft(points: shapes.Points) -> np.ndarray:
            """The fat between the muscle layers, and in the midline of the back."""
            _, y, z = points
            layers = np.abs(self._from_cavity(points) - 0.5 * wall_thickness(points)) - 0.7
            return np.where((y < 25) & (z < 20), layers, 5.0)

        self._paint(skin, 15.0)
        self._paint(lambda points: skin(points) + 2.5, _FAT_HU)
        self._paint(muscles, muscle)
        self._paint(cleft, _FAT_HU + 45)
        self._paint(lambda points: self._from_cavity(points) + 1.5, _FAT_HU)
        for side in (-1, 1):
            top, bottom = (side * 28, 50, 12), (side * 54, 42, -190)
            self._pipe([top, (side * 40, 47, -55), (side * 48, 44, -110), bottom], [7, 17, 22, 24], muscle)
            self._blob((side * 34, 92, 0), (30, 17, 260), muscle)

    def _under_domes(self, points: shapes.Points) -> np.ndarray:
        """The space under the diaphragm, within the cavity: nothing beyond it is asked for."""
        distance = np.full_like(self._from_cavity(points), np.inf)
        inside = self._from_cavity(points) <= points.reach
        part = points.part(inside)
        distance[inside] = shapes.join(self._right_dome(part), self._left_dome(part), 22)
        return distance

    def _chest(self) -> None:
        rng = self._rng
        top_right = rng.uniform(92, 118)
        top_left = top_right - rng.uniform(4, 20)
        self._dome_top = (top_right, top_left)
        self._right_dome = shapes.ellipsoid((-66, -8, top_right - 112), (84, 98, 112))
        self._left_dome = shapes.ellipsoid((66, -4, top_left - 105), (78, 96, 105))
        lung_bottom = rng.uniform(15, 40)
        lung_hu = rng.uniform(-880, -790)
        heart = shapes.ellipsoid(
            self._vary((24, -34, top_right + 42), 4), self._vary((60, 46, 50), 3), shapes.rotation((0, 25, -20))
        )

        def above_domes(points: shapes.Points) -> np.ndarray:
            _, y, z = points
            floor = (lung_bottom + 0.42 * (70 - y)) - z
            return np.maximum(np.maximum(self._from_cavity(points) + 3, -self._domes(points)), floor)

        def beside_heart(points: shapes.Points) -> np.ndarray:
            x, y, _ = points
            middle = 24 + 10 * np.exp(-(((y - 40) / 25) ** 2)) - np.abs(x + 4)
            return np.maximum(middle, 4 - heart(points))

        lungs = shapes.within(above_domes, beside_heart)
        box = ((-170, -130, -5), (170, 110, 400))
        muscle = self._hounsfield("muscle")

        def under_domes(wall_mm: float) -> shapes.Shape:
            def distance(points: shapes.Points) -> np.ndarray:
                _, _, z = points
                belly = np.maximum(self._domes(points), self._from_cavity(points)) + wall_mm
                return np.maximum(belly, lung_bottom - 25 - z)

            return distance

        self._paint(under_domes(0), muscle, 0, box)
        self._paint(under_domes(2.8), _FAT_HU, 0, box)
        self._paint(lungs, lung_hu, 0, box)
        for _ in range(24):
            side = rng.choice([-1, 1])
            root = np.array([side * 38, 5, rng.uniform(120, 200)])
            tip = np.array([side * rng.uniform(60, 115), rng.uniform(-60, 55), rng.uniform(95, 200)])
            vessel = shapes.tube([root, (root + tip) / 2, tip], [3.4, 2.0, 0.8])
            self._paint(
                shapes.within(vessel, lungs, 2), 30.0, 0, (np.minimum(root, tip) - 8, np.maximum(root, tip) + 8)
            )
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

        def level(points: shapes.Points) -> np.ndarray:
            """Height within one vertebra, -0.5 to 0.5, 0 at its middle."""
            return (points.z / pitch) - np.round(points.z / pitch)

        def body(points: shapes.Points) -> np.ndarray:
            x, y, _ = points
            waist = 1 + 0.35 * level(points) ** 2
            k = np.hypot(x / (wide * waist), (y - 54) / (16 * waist))
            return np.hypot(x, y - 54) * (1 - 1 / np.maximum(k, 0.05))

        def body_value(points: shapes.Points) -> np.ndarray:
            edge = np.clip((body(points) + 3.5) / 2.5, 0, 1)
            height = np.abs(level(points)) * pitch
            half = pitch / 2 - 4.5
            plate = np.clip(1 - np.abs(height - half) / 2, 0, 1)
            bone = marrow + (cortex - marrow) * np.maximum(edge, plate)
            return np.where(height > half + 1.2, disc, bone)

        def arch(points: shapes.Points) -> np.ndarray:
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
        self._paint(lambda points: np.hypot(points.x, points.y - 78) - 8.5, 28.0, 0, box)

    def _ribs(self, marrow: float, cortex: float) -> None:
        rng = self._rng
        rib_pitch = rng.uniform(25, 29)
        first = 48 + rng.uniform(-6, 6)
        ends = np.array([0.30, 0.45, 0.70] + [0.78] * 40)
        cartilage = np.array([0.30, 0.45, 0.86] + [0.95] * 40)

        def rib_frame(points: shapes.Points) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
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

        def shell(points: shapes.Points) -> np.ndarray:
            """The layer of the wall that the ribs lie in."""
            out = self._from_cavity(points) - 0.42 * self._muscle
            return np.minimum((np.abs(out / 3.9) - 1) * 4.2 - 0.01, 5.0)

        def rib_distance(points: shapes.Points) -> np.ndarray:
            index, d, turn = rib_frame(points)
            return np.where((index >= 0) & (turn < cartilage[index]) & (turn > 0.1), d, 5.0)

        def rib_value(points: shapes.Points) -> np.ndarray:
            index, d, turn = rib_frame(points)
            return np.where(turn > ends[index], 105.0, np.where(d > -2.2, cortex, marrow + 80))

        self._paint(shapes.bounded(shell, rib_distance), rib_value, 0, ((-190, -150, -70), (190, 130, 400)))

    def _pelvis(self, marrow: float, cortex: float) -> None:
        hip = self._rng.uniform(-125, -105)

        def wing_of_ilium(points: shapes.Points) -> np.ndarray:
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
            inner = shapes.tube(nodes, np.maximum(radii - 2.8, 0.5))
            surface = float(nodes[:, 1].mean() + rng.uniform(-0.5, 0.4) * radii.mean())
            reach = float(radii.max()) + 3
            box = (nodes.min(0) - reach, nodes.max(0) + reach)
            if content == "gas":
                self._paint(lambda points: np.maximum(inner(points), points.y - surface), AIR_HU + 25, 0, box)
            else:
                for _ in range(6):
                    center = nodes[rng.integers(len(nodes))] + rng.uniform(-0.6, 0.6, 3) * radii.mean()
                    size = rng.uniform(2, 5)
                    bubble = shapes.within(shapes.ellipsoid(center, (size, size, size)), inner)
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
        right = shapes.ellipsoid(center, radii, shapes.rotation((0, 14, 0)))
        left = shapes.ellipsoid(
            self._vary((2, -46, self._dome_top[0] - 44), 4), self._vary((76, 42, 36), 5), shapes.rotation((0, -14, -8))
        )
        porta = self._vary((-14, 6, 30), 4)
        under = np.array([0.60, 0.30, -0.74]) + rng.normal(0, 0.04, 3)
        under /= np.linalg.norm(under)
        behind = shapes.ellipsoid((8, 66, 60), (50, 70, 120))

        def inside(points: shapes.Points) -> np.ndarray:
            """The space that the liver fills a part of."""
            return np.maximum(self._from_cavity(points) + 3, self._domes(points) + 2.8)

        def lobes(points: shapes.Points) -> np.ndarray:
            x, y, z = points
            cut = sum(float(n) * (axis - float(c)) for n, axis, c in zip(under, points, porta, strict=True))
            lobe = shapes.common(right(points), cut, 26)
            lobe = shapes.common(lobe, tip - z + 0.25 * (x + 95), 18)
            both = shapes.join(lobe, shapes.common(left(points), y - 12, 12), 48)
            both = shapes.common(both, -behind(points), 16)
            both = shapes.common(both, self._from_cavity(points) + 3, 6)
            return shapes.common(both, self._domes(points) + 2.8, 6)

        liver = shapes.bounded(inside, lobes)
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
            branch = shapes.within(shapes.tube(places, sizes), liver, 1)
            self._paint(branch, enhanced, None, (places.min(0) - 10, places.max(0) + 10))
        for _ in range(rng.poisson(0.7)):
            spot = rng.uniform((-115, -50, 0), (-45, 40, 80))
            size = rng.uniform(4, 14)
            value = rng.choice([8.0, tissue - 35, tissue + 30])
            lesion = shapes.within(shapes.ellipsoid(spot, (size, size, size)), liver, 2)
            self._paint(lesion, value, None, (spot - size - 4, spot + size + 4))
        bladder = self._vary((-52, -42, 2), 4)
        if rng.random() < 0.85:
            axes = shapes.rotation((30, 20, 0))
            self._blob(bladder, self._vary((15, 15, 30), 2) + 1.6, self._hounsfield("bowel wall"), 0, axes)
            self._blob(bladder, (13, 13, 28), rng.uniform(2, 18), 0, axes)

    def _spleen(self) -> None:
        rng = self._rng
        label = organ_by_key("spleen").label
        middle = self._vary((float(self._inner[0]) - 41, 35, self._dome_top[1] - 42), 4)
        size = rng.uniform(0.85, 1.12)
        tilt = shapes.rotation((-18 + rng.normal(0, 5), 14 + rng.normal(0, 5), -12 + rng.normal(0, 6)))
        outer = shapes.ellipsoid(middle, np.array((44, 56, 60)) * size, tilt)
        inner = shapes.ellipsoid(middle + np.array((-43, -17, -8)) * size, np.array((42, 44, 64)) * size, tilt)

        def inside(points: shapes.Points) -> np.ndarray:
            """The space that the spleen fills a part of."""
            return np.maximum(self._from_cavity(points) + 5, self._domes(points) + 4)

        def bean(points: shapes.Points) -> np.ndarray:
            d = shapes.common(outer(points), -inner(points), 9)
            d = shapes.common(d, self._from_cavity(points) + 5, 7)
            return shapes.common(d, self._domes(points) + 4, 8)

        box = (middle - 80, middle + 80)
        self._paint(shapes.bounded(inside, bean), self._hounsfield("spleen"), label, box)

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
            axes = shapes.rotation(
                (-9 + rng.normal(0, 4), side * (14 + rng.normal(0, 4)), side * (-28 + rng.normal(0, 6)))
            )
            radii = np.array((28, 25, 55)) * size

            def local(offset, axes=axes, center=center, size=size) -> np.ndarray:
                """A point given along the kidney's own axes (flank, back, up), for a kidney of ordinary size."""
                return center + size * (np.asarray(offset, float) @ axes)

            bean = shapes.ellipsoid(center, radii, axes)
            dent = shapes.ellipsoid(local((-side * 26, -5, 0)), np.array((21, 13, 20)) * size, axes)

            def kidney(points: shapes.Points, bean=bean, dent=dent, size=size) -> np.ndarray:
                return shapes.common(bean(points), -dent(points), 7 * size)

            reach = 60 * size
            box = (center - reach, center + reach)
            around = shapes.within(shapes.ellipsoid(center, radii + rng.uniform(3, 9), axes), self._from_cavity, 2)
            self._paint(around, _FAT_HU, 0, (center - reach - 12, center + reach + 12))
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
                    urine * 0.6 + _FAT_HU * 0.25,
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
        tube, inner = shapes.tube(nodes, radii), shapes.tube(nodes, radii - 4)
        content = rng.choice([rng.uniform(5, 35), rng.uniform(30, 60), rng.uniform(150, 350)], p=[0.6, 0.25, 0.15])
        level = float(rng.uniform(-48, -22))
        box = (nodes.min(0) - 36, nodes.max(0) + 36)

        def under_diaphragm(shape: shapes.Shape, depth: float) -> shapes.Shape:
            return shapes.within(shapes.within(shape, self._domes, depth), self._from_cavity, depth)

        def gas(points: shapes.Points) -> np.ndarray:
            return np.maximum(inner(points), points.y - level)

        self._paint(under_diaphragm(tube, 4), self._hounsfield("bowel wall"), 0, box)
        self._paint(under_diaphragm(inner, 8), float(content), 0, box)
        self._paint(under_diaphragm(gas, 8), AIR_HU + 20, 0, box)
