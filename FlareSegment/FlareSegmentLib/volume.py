"""A volume in patient space, and the only place where axes are swapped, flipped and turned from LPS to RAS.

Arrays are numpy, (z, y, x), as ``SimpleITK.GetArrayFromImage`` and Slicer's ``arrayFromVolume`` give them. Spacing and
origin are (x, y, z) in mm and the direction is a 3x3 matrix whose columns are the directions of the x, y and z axis,
all in ITK's LPS patient space (x to the patient's Left, y to Posterior, z to Superior). Slicer's and NIfTI's matrices
are RAS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from FlareSegmentLib.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True)
class AxisOrder:
    """How the axes of a stored array become those of its LPS-canonical view; both ways, without copying.

    Attributes:
        permutation: axis of the stored (z, y, x) array that stands at each position of the view.
        flips: whether the view runs against the stored axis, by position in the view.
    """

    permutation: tuple[int, ...]
    flips: tuple[bool, ...]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """View of a stored (z, y, x) array in the canonical order."""
        return array.transpose(self.permutation)[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]

    def undo(self, array: np.ndarray) -> np.ndarray:
        """View of a canonical array in the stored order."""
        flipped = array[tuple(slice(None, None, -1 if flip else 1) for flip in self.flips)]
        return flipped.transpose(tuple(int(axis) for axis in np.argsort(self.permutation)))


@dataclass(frozen=True, eq=False)
class Volume:
    """A three-dimensional array with its place in the patient.

    Attributes:
        array: (z, y, x), any integer or float type; never changed by the engine.
        spacing: (x, y, z) distance of voxel centers, mm.
        origin: (x, y, z) of the center of voxel 0, LPS, mm.
        direction: 3x3, columns of length 1, LPS. It may be left-handed or slightly sheared.
        name: what messages call the volume, if known.

    Raises:
        InputError: the array is not three-dimensional or has no voxels, the spacing is not positive, or the direction
        is singular.
    """

    array: np.ndarray
    spacing: tuple[float, ...] = (1.0, 1.0, 1.0)
    origin: tuple[float, ...] = (0.0, 0.0, 0.0)
    direction: np.ndarray = None  # type: ignore[assignment]
    name: str | None = None

    def __post_init__(self) -> None:
        direction = np.eye(3) if self.direction is None else np.array(self.direction, dtype=float).ravel()
        problem = None
        if self.array.ndim != 3:
            problem = f"it has {self.array.ndim} dimensions, not 3"
        elif min(self.array.shape) == 0:
            problem = f"it has no voxels ({_by(self.array.shape[::-1])})"
        elif len(self.spacing) != 3 or not np.all(np.isfinite(self.spacing)) or min(self.spacing) <= 0:
            problem = f"its voxel spacing ({_by(self.spacing)} mm) is not positive; repair the header"
        elif len(self.origin) != 3 or not np.all(np.isfinite(self.origin)):
            problem = "its origin is not a point; repair the header"
        elif (
            direction.size != 9
            or not np.all(np.isfinite(direction))
            or abs(np.linalg.det(direction.reshape(3, 3))) < 1e-3
        ):
            problem = "its axis directions are singular (two axes point the same way); repair the header"
        if problem:
            raise InputError(f"{self.label} cannot be used: {problem}.")
        object.__setattr__(self, "direction", direction.reshape(3, 3))
        object.__setattr__(self, "spacing", tuple(float(v) for v in self.spacing))
        object.__setattr__(self, "origin", tuple(float(v) for v in self.origin))

    @staticmethod
    def from_ijk_to_ras(array: np.ndarray, matrix: np.ndarray, name: str | None = None) -> Volume:
        """Volume of a (k, j, i) array and its 4x4 IJK to RAS matrix, as volume nodes have. Raises InputError."""
        lps = LPS_TO_RAS @ np.reshape(matrix, (4, 4))
        axes = lps[:3, :3]
        spacing = np.linalg.norm(axes, axis=0)
        direction = axes / np.where(spacing > 0, spacing, 1)
        return Volume(array, tuple(spacing), tuple(lps[:3, 3]), direction, name)

    @property
    def label(self) -> str:
        """The name for messages."""
        return self.name or "The volume"

    @property
    def affine_lps(self) -> np.ndarray:
        """4x4 from voxel indices (i, j, k) to LPS, mm."""
        affine = np.eye(4)
        affine[:3, :3] = self.direction * np.asarray(self.spacing)
        affine[:3, 3] = self.origin
        return affine

    @property
    def affine_ras(self) -> np.ndarray:
        """4x4 from voxel indices (i, j, k) to RAS, mm: Slicer's IJK to RAS matrix and NIfTI's affine."""
        return LPS_TO_RAS @ self.affine_lps

    @property
    def voxel_volume_ml(self) -> float:
        """Volume of one voxel, mL."""
        return float(abs(np.linalg.det(self.affine_lps[:3, :3]))) / 1000.0

    @property
    def tilt_degrees(self) -> float:
        """Largest angle between an axis of the volume and the patient axis nearest to it."""
        unit = self.direction / np.linalg.norm(self.direction, axis=0)
        nearest = self.axis_order().permutation
        cosines = [abs(unit[2 - position, 2 - axis]) for position, axis in enumerate(nearest)]
        return float(np.degrees(np.arccos(min(cosines))))

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not at right angles, as with slices of a tilted gantry; NRRD can hold that, NIfTI cannot
        (ITK reads and writes such a NIfTI file with axes at right angles, in another place).
        """
        return bool(np.abs(self.direction.T @ self.direction - np.eye(3)).max() > 1e-3)

    def axis_order(self) -> AxisOrder:
        """The permutation and flips that bring the array's axes nearest to (superior, posterior, left)."""
        # alignment[position, axis]: cosine between the view's axis and the stored array's axis, both counted z, y, x
        alignment = self.direction[::-1, ::-1]
        best = max(permutations(range(3)), key=lambda p: sum(abs(alignment[i, p[i]]) for i in range(3)))
        return AxisOrder(best, tuple(bool(alignment[i, best[i]] < 0) for i in range(3)))

    def to_lps_view(self) -> tuple[Volume, AxisOrder]:
        """The same voxels in LPS-canonical axis order (z up, y to posterior, x to left), and how to undo it.

        Nearest axes are taken: the view of an oblique volume keeps its tilt in its direction. Nothing is copied.
        """
        order = self.axis_order()
        view = order.apply(self.array)
        axes = tuple(2 - axis for axis in order.permutation[::-1])  # stored x, y, z axis at the view's x, y, z
        flips = order.flips[::-1]
        signs = np.where(flips, -1.0, 1.0)
        direction = self.direction[:, axes] * signs
        spacing = tuple(self.spacing[axis] for axis in axes)
        corner = np.zeros(3)
        for axis, flip in zip(axes, flips):
            corner[axis] = self.array.shape[2 - axis] - 1 if flip else 0
        origin = self.affine_lps[:3, :3] @ corner + self.origin
        return Volume(view, spacing, tuple(origin), direction, self.name), order

    def with_array(self, array: np.ndarray) -> Volume:
        """A volume of the same place in the patient with other voxels. Raises ValueError for another shape."""
        if array.shape != self.array.shape:
            raise ValueError(f"expected shape {self.array.shape}, got {array.shape}")
        return Volume(array, self.spacing, self.origin, self.direction, self.name)

    def part(self, box: tuple[slice, ...]) -> Volume:
        """What lies in a box (z, y, x) of slices with a start, where it is in the patient; the voxels are a view."""
        corner = [extent.start for extent in reversed(box)]
        origin = tuple((self.affine_lps @ [*corner, 1.0])[:3])
        return Volume(self.array[box], self.spacing, origin, self.direction, self.name)

    def same_grid(self, other: Volume, tolerance_mm: float = 1e-2) -> bool:
        """Whether every voxel of the other volume lies within the tolerance of the same voxel of this one."""
        if self.array.shape != other.array.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
        corners[:, :3] *= np.array(self.array.shape[::-1]) - 1
        offsets = (self.affine_lps - other.affine_lps) @ corners.T
        return bool(np.abs(offsets).max() <= tolerance_mm)


def _by(values: Sequence[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)
