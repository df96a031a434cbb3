"""In-plane poses of particles: an angle and a shift each, and whether the image is mirrored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_cryoem.particles._rows import Immutable, column, read_only, row_key


@dataclass(eq=False, repr=False)
class Poses(Immutable):
    """In-plane angle, shift and mirror of every particle; immutable and sliceable.

    An image is aligned in this order: its content is moved by `shift`, then mirrored where `mirrored` says so
    (y -> -y about the centre pixel), then turned by psi from x (columns) towards y (rows). With F the Fourier
    transform of the moved image, the aligned one is F(r, theta - psi), or F(r, psi - theta) where mirrored.

    Parameters
    ----------
    angle_rad : array_like of shape (n_images,)
        In-plane angle psi in radians, RELION's rlnAnglePsi.
    shift : array_like of shape (n_images, 2)
        Shift (x, y), RELION's rlnOriginXAngst and rlnOriginYAngst: moving the content of an image by it
        centres the image. In Angstrom for a stack that knows its pixel size, in pixels for one that does not.
    mirrored : array_like of shape (n_images,) or bool, default=False
        Whether the centred image is mirrored before it is turned, RELION's rlnIsFlip: projections from
        opposite sides are mirror images of each other.

    Raises
    ------
    ValueError
        If the shapes disagree, a value is not finite, or a mirror is neither true nor false.

    Examples
    --------
    >>> from sklearn_cryoem import Poses
    >>> poses = Poses(angle_rad=[0.0, 1.5], shift=[[0.0, 0.0], [3.5, -7.0]])
    >>> len(poses), poses[1:].shift.tolist()
    (2, [[3.5, -7.0]])
    """

    angle_rad: np.ndarray
    shift: np.ndarray
    mirrored: np.ndarray = False  # type: ignore[assignment]

    _remedy = "Build new Poses and attach them with stack.with_poses(poses)."

    def __post_init__(self) -> None:
        self.angle_rad = column("angle_rad", np.atleast_1d(self.angle_rad), owner="Poses")  # (n_images,)
        if self.angle_rad.ndim != 1:
            raise ValueError(f"Poses: angle_rad has shape {self.angle_rad.shape}, expected (n_images,).")
        self.shift = column("shift", np.atleast_2d(self.shift), owner="Poses")  # (n_images, 2)
        if self.shift.shape != (len(self.angle_rad), 2):
            raise ValueError(
                f"Poses: shift has shape {self.shift.shape}, expected ({len(self.angle_rad)}, 2): "
                "one (x, y) for each angle."
            )
        self.mirrored = _flags(self.mirrored, len(self.angle_rad))  # (n_images,)
        self._seal()

    @classmethod
    def identity(cls, n_images: int) -> Poses:
        """Return `n_images` poses with angle 0 and no shift."""
        return cls(np.zeros(n_images), np.zeros((n_images, 2)))

    def shift_px(self, pixel_size: float | None) -> np.ndarray:
        """Return the shift in pixels, shape (n_images, 2).

        Parameters
        ----------
        pixel_size : float or None
            Angstrom per pixel; ``None`` if the shifts are in pixels already.
        """
        return self.shift if pixel_size is None else self.shift / pixel_size

    def scaled(self, factor: float) -> Poses:
        """Return the poses with their shifts multiplied by `factor` (a change of unit)."""
        return replace(self, shift=self.shift * factor)

    def __len__(self) -> int:
        return len(self.angle_rad)

    def __getitem__(self, key: Any) -> Poses:
        rows = row_key(key, len(self))
        return Poses(self.angle_rad[rows], self.shift[rows], self.mirrored[rows])

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Poses(0 particles)"
        length = np.hypot(*self.shift.T)
        median, largest = np.median(length), length.max()
        mirrored = f", {self.mirrored.sum():,} mirrored" if self.mirrored.any() else ""
        return f"Poses({len(self):,} particles, median shift {median:.3g}, largest {largest:.3g}{mirrored})"

    def __setstate__(self, state: dict) -> None:
        mirrored = state.get("mirrored", np.zeros(len(state["angle_rad"]), dtype=bool))  # older pickles
        arrays = {"angle_rad": state["angle_rad"], "shift": state["shift"], "mirrored": mirrored}
        self.__dict__.update(state, **{name: read_only(array) for name, array in arrays.items()})


def _flags(values: Any, n_images: int) -> np.ndarray:
    """True or false for each image, from one value for all or one for each."""
    array = np.asarray(values)
    if array.shape not in ((), (n_images,)):
        raise ValueError(f"Poses: mirrored has shape {array.shape}, expected ({n_images},) or one value.")
    if array.size and not np.isin(array, (0, 1)).all():
        raise ValueError(
            "Poses: mirrored holds values other than true and false. Give 1 for mirrored, else 0."
        )
    return read_only(np.array(np.broadcast_to(array, n_images), dtype=bool))
