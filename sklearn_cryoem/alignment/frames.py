"""How poses compose: images brought into known poses, and references brought into the frame of a class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.physics.fourier import Complex64, Float64
from sklearn_cryoem.physics.polar import PolarGrid, translation_phase

Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


@dataclass(frozen=True)
class KnownPoses:
    """Pose of every image of a set, round which a second search goes, Eq. (4.6).

    Attributes
    ----------
    angle_rad : ndarray of shape (n_images,)
        In-plane angle psi.
    shift_px : ndarray of shape (n_images, 2)
        (x, y) that, added to the image's content, centres it.
    mirrored : ndarray of shape (n_images,), bool
        Whether the centred image is mirrored, y -> -y, before it is turned.
    """

    angle_rad: Float64
    shift_px: Float64
    mirrored: Bool

    @classmethod
    def identity(cls, n_images: int) -> KnownPoses:
        """Poses that leave images as they are."""
        return cls(np.zeros(n_images), np.zeros((n_images, 2)), np.zeros(n_images, dtype=bool))

    def take(self, rows: Int, shift_px: Float64 | None = None) -> KnownPoses:
        """Poses of some of the images, with other shifts if they have been followed elsewhere, Eq. (4.16)."""
        shift = self.shift_px[rows] if shift_px is None else shift_px
        return KnownPoses(self.angle_rad[rows], shift, self.mirrored[rows])

    def centring(self, grid: PolarGrid) -> Complex64:
        """Factors that centre the polar transforms of the images; (n_images, n_rings, n_angles / 2)."""
        return translation_phase(grid, self.shift_px)

    def turned(self, orders: Complex64, step: int = 1) -> Complex64:
        """Angular orders 0, `step`, 2 `step`, .. of the centred images (n_images, n_orders, n_rings), turned.

        F(r, theta - psi) multiplies the order m by exp(-i m psi). Mirrored, F(r, psi - theta), it is the
        complex conjugate that is multiplied, as orders are those of real functions.
        """
        angle = step * np.arange(orders.shape[1]) * self.angle_rad[:, None]  # (n_images, n_orders)
        upright = np.where(self.mirrored[:, None, None], orders.conj(), orders)
        return np.asarray(upright * np.exp(-1j * angle)[:, :, None].astype(np.complex64))

    def in_their_frame(self, shift_px: Float64) -> Float64:
        """Shifts (n_images, 2) of the images as they are, seen in the frame of these poses."""
        return turned(np.where(self.mirrored[:, None], shift_px * (1.0, -1.0), shift_px), self.angle_rad)

    def followed_by(self, angle_rad: Float64, shift_px: Float64, mirrored: Bool | None = None) -> KnownPoses:
        """Poses of the images themselves from those found for the images brought into these poses.

        Parameters
        ----------
        angle_rad, shift_px : ndarrays of shape (n_images,) and (n_images, 2)
            Angle, and shift, as found.
        mirrored : ndarray of shape (n_images,), bool, or None
            Which were found to be mirrored; None for none.

        Returns
        -------
        poses : KnownPoses
            With angles in [0, 2 pi).
        """
        again = np.zeros_like(self.mirrored) if mirrored is None else mirrored
        shift = to_image_frame(self.angle_rad, shift_px)
        shift[self.mirrored, 1] *= -1.0
        angle = angle_rad + np.where(again, -self.angle_rad, self.angle_rad)  # mirror R_psi = R_-psi mirror
        return KnownPoses(np.mod(angle, 2.0 * np.pi), self.shift_px + shift, self.mirrored ^ again)


@dataclass(frozen=True)
class Frames:
    """Classes of references, and the move that takes each reference to the common frame.

    A reference A becomes A'(r, theta) = B(r, theta + `angle_rad`), or B(r, -theta - `angle_rad`) where it is
    mirrored, with B the reference displaced by `shift_px`.

    Attributes
    ----------
    label : ndarray of shape (n_references,), int
        Class of each reference, from 0; classes are numbered by falling mass.
    angle_rad : ndarray of shape (n_references,)
        Turn.
    shift_px : ndarray of shape (n_references, 2)
        Displacement (x, y) before the mirror and the turn.
    mirrored : ndarray of shape (n_references,), bool
        Which are mirrored, y -> -y, after the displacement.
    near : ndarray of shape (n_references, n_classes) or None
        How much the posterior of a reference counts for each class, Eq. (8.7), where the most probable cell
        does not decide alone.
    """

    label: Int
    angle_rad: Float64
    shift_px: Float64
    mirrored: Bool
    near: Float64 | None = None

    @classmethod
    def identity(cls, label: Int) -> Frames:
        """Frames of references that stay where they are, in the given classes."""
        n = len(label)
        return cls(label, np.zeros(n), np.zeros((n, 2)), np.zeros(n, dtype=bool))

    def with_mirrors(self) -> Frames:
        """Frames of the references, and after them of their mirror images, Eq. (4.18)."""
        return Frames(
            np.tile(self.label, 2),
            np.tile(self.angle_rad, 2),
            np.concatenate([self.shift_px, self.shift_px * (1.0, -1.0)]),
            np.concatenate([self.mirrored, ~self.mirrored]),
        )

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return int(self.label.max()) + 1

    def moved(
        self, which: Int, shift_px: Float64, *, angle_rad: float = 0.0, mirrored: bool = False
    ) -> Frames:
        """Frames of which some references make one more move, after the one that they have.

        Parameters
        ----------
        which : ndarray of int
            Those references.
        shift_px : ndarray of shape (2,) or (n, 2)
            Displacement, as the moved reference is seen.
        angle_rad, mirrored : float, bool
            Turn, and whether it is mirrored before the turn.
        """
        angle, shift, mirror = self.angle_rad.copy(), self.shift_px.copy(), self.mirrored.copy()
        before = self.angle_rad[which]
        step = turned(np.broadcast_to(shift_px, (len(which), 2)), before)
        shift[which] += np.where(self.mirrored[which, None], step * (1.0, -1.0), step)
        angle[which] = angle_rad + (-before if mirrored else before)
        mirror[which] ^= mirrored
        return replace(self, angle_rad=angle, shift_px=shift, mirrored=mirror)

    def poses(self, reference: Int, angle_rad: Float64, shift_px: Float64) -> tuple[Float64, Float64, Bool]:
        """Poses in the frames of the classes from poses in the frames of the references, without mirrors.

        Parameters
        ----------
        reference : ndarray of shape (n_images,), int
            Reference of each image.
        angle_rad, shift_px : ndarrays of shape (n_images,) and (n_images, 2)
            Pose of each image with respect to it.

        Returns
        -------
        angle_rad, shift_px, mirrored : ndarrays of shape (n_images,), (n_images, 2) and (n_images,)
            As `Poses` has them.
        """
        mirrored = self.mirrored[reference]
        moved = shift_px + to_image_frame(angle_rad, self.shift_px[reference])
        angle = np.where(mirrored, -angle_rad, angle_rad) - self.angle_rad[reference]
        return np.mod(angle, 2.0 * np.pi), moved, mirrored


def turned(vectors: Float64, angle_rad: Float64) -> Float64:
    """Rotate vectors (..., 2) by angles from +x towards +y."""
    cos, sin = np.cos(angle_rad), np.sin(angle_rad)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def to_image_frame(angle_rad: Float64, shift_px: Float64) -> Float64:
    """Shift of the image, R_-psi u, from a shift u in the frame of its reference; (n_images, 2)."""
    return turned(shift_px, -angle_rad)
