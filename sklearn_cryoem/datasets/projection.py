"""Projections of a volume as central slices of its Fourier transform, in RELION's Euler angles."""

from __future__ import annotations

import finufft
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem.datasets.volumes import Volume
from sklearn_cryoem.physics.fourier import Complex64, Float32, HalfPlane, half_plane, images_from_features
from sklearn_cryoem.physics.orientation import euler_matrices

NUFFT_TOLERANCE = 1e-4  # relative: far below the noise of any cryo-EM image


def slice_plane(volume: Volume, box: int, pixel_size: float) -> HalfPlane:
    """Coefficients of an image of side `box` on which `volume` has something to say.

    At most the Nyquist frequency of the coarser of the two samplings.
    """
    return half_plane(box, 0.5 * box * pixel_size / volume.pixel_size * (1.0 - 1e-9))


def slice_features(
    volume: Volume, plane: HalfPlane, pixel_size: float, matrices: NDArray[np.float64]
) -> Complex64:
    """Half-plane features (times sqrt(2), about the centre pixel) of projections of `volume`.

    The exact Fourier transform of the volume's samples at the rotated frequencies, by a type-2 NUFFT of
    relative tolerance 1e-4: nothing is interpolated in real space, and the volume needs no padding.

    Parameters
    ----------
    volume : Volume
        The density.
    plane : HalfPlane
        Coefficients wanted; `slice_plane` gives all that exist.
    pixel_size : float
        Of the images, in Angstrom.
    matrices : ndarray of shape (n_images, 3, 3)
        From `euler_matrices`.

    Returns
    -------
    features : ndarray of shape (n_images, J), complex64
        In units of density times Angstrom: a pixel is the integral along the viewing axis.

    Notes
    -----
    O(n_images * J * 200) after one FFT of the volume; about 4 million coefficients a second and core.
    """
    turn = 2.0 * np.pi * volume.pixel_size / (plane.box * pixel_size)  # radians a voxel and Fourier pixel
    in_plane = np.stack([plane.kx, plane.ky])  # (2, J)
    points = np.empty((3, len(matrices), plane.n_coefficients), dtype=np.float32)  # x, y, z
    for axis in range(3):
        points[axis] = turn * (matrices[:, :2, axis] @ in_plane)
    x, y, z = points.reshape(3, -1)
    features = finufft.nufft3d2(
        z, y, x, volume.array.astype(np.complex64), eps=NUFFT_TOLERANCE, isign=-1, nthreads=1, upsampfac=1.25
    ).reshape(len(matrices), -1)
    features *= np.float32(np.sqrt(2.0) / plane.box * volume.pixel_size**3 / pixel_size**2)
    return np.asarray(features, dtype=np.complex64)


def project(
    volume: Volume,
    rot_rad: ArrayLike,
    tilt_rad: ArrayLike,
    psi_rad: ArrayLike = 0.0,
    shift_px: ArrayLike = (0.0, 0.0),
    *,
    box: int | None = None,
    pixel_size: float | None = None,
) -> Float32:
    """Noise-free projections of a volume, without CTF and without their mean (DC).

    Parameters
    ----------
    volume : Volume
        The density.
    rot_rad, tilt_rad, psi_rad : array_like of shape (n_images,)
        RELION's rlnAngleRot, rlnAngleTilt and rlnAnglePsi in radians.
    shift_px : array_like of shape (n_images, 2)
        RELION's origin (x, y) in pixels: what must be *added* to the image's content to centre it.
    box : int, optional
        Side of the images in pixels; by default the volume's.
    pixel_size : float, optional
        Of the images, in Angstrom; by default the volume's. Content that reaches beyond
        ``box * pixel_size`` wraps round.

    Returns
    -------
    images : ndarray of shape (n_images, box, box), float32
    """
    box = volume.box if box is None else box
    pixel_size = volume.pixel_size if pixel_size is None else pixel_size
    plane = slice_plane(volume, box, pixel_size)
    angles = np.broadcast_arrays(*(np.atleast_1d(angle) for angle in (rot_rad, tilt_rad, psi_rad)))
    features = slice_features(volume, plane, pixel_size, euler_matrices(*angles))
    features *= shift_phase(plane, np.broadcast_to(shift_px, (len(features), 2)))
    return images_from_features(features, plane)


def shift_phase(plane: HalfPlane, shift_px: ArrayLike) -> Complex64:
    """Phase ramp (n_images, J) that takes centred content to where adding `shift_px` centres it again."""
    shift = np.asarray(shift_px, dtype=np.float64)
    turns = (shift[:, :1] * plane.kx + shift[:, 1:] * plane.ky) / plane.box
    return np.exp(2j * np.pi * turns).astype(np.complex64)
