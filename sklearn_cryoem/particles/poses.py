"""In-plane poses of particles: an angle and a shift each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sklearn_cryoem.particles._rows import Immutable, column, read_only, row_key


@dataclass(eq=False, repr=False)
class Poses(Immutable):
    """In-plane angle and shift of every particle; immutable and sliceable.

    Parameters
    ----------
    angle_rad : array_like of shape (n_images,)
        In-plane angle psi in radians, RELION's rlnAnglePsi: rotating the centred image by -psi aligns it.
    shift : array_like of shape (n_images, 2)
        Shift (x, y), RELION's rlnOriginXAngst and rlnOriginYAngst: moving the content of an image by it
        centres the image. In Angstrom for a stack that knows its pixel size, in pixels for one that does not.

    Raises
    ------
    ValueError
        If the shapes disagree or a value is not finite.

    Examples
    --------
    >>> from sklearn_cryoem import Poses
    >>> poses = Poses(angle_rad=[0.0, 1.5], shift=[[0.0, 0.0], [3.5, -7.0]])
    >>> len(poses), poses[1:].shift.tolist()
    (2, [[3.5, -7.0]])
    """

    angle_rad: np.ndarray
    shift: np.ndarray

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
        return Poses(self.angle_rad[rows], self.shift[rows])

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Poses(0 particles)"
        length = np.hypot(*self.shift.T)
        median, largest = np.median(length), length.max()
        return f"Poses({len(self):,} particles, median shift {median:.3g}, largest {largest:.3g})"

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state, angle_rad=read_only(state["angle_rad"]), shift=read_only(state["shift"]))
