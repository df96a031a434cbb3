"""Undoing poses in Fourier space, Eq. (2.1): rotation and mirror by a type-2 NUFFT, shift by a phase ramp.

Poses are RELION's, in radians and pixels: adding `shift_px` to the content of an image centres it, and the
centred image at azimuth theta equals the class average at azimuth theta + angle. Where the pose mirrors, the
centred image is mirrored first (y -> -y), so its azimuth -theta takes the place of theta.
"""

from __future__ import annotations

import finufft
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem.physics.fourier import Complex64, Float32, HalfPlane, half_plane, images_from_features

NUFFT_TOLERANCE = 1e-4  # relative; cryo-EM noise is 10 to 100 times the signal


def rotated_frequencies(
    plane: HalfPlane, angle_rad: ArrayLike, mirrored: ArrayLike | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Where the image must be evaluated to obtain the aligned image: k turned by -angle, then mirrored.

    Parameters
    ----------
    plane : HalfPlane
        The coefficients of the aligned image.
    angle_rad : array_like of shape (n_images,)
        In-plane angles psi.
    mirrored : array_like of shape (n_images,), bool, optional
        Which images are mirrored, y -> -y, before they are turned; none by default.

    Returns
    -------
    kx, ky : ndarrays of shape (n_images, J)
        Frequencies in Fourier pixels.
    """
    angle = np.asarray(angle_rad, dtype=np.float64)[:, None]
    cos, sin = np.cos(angle), np.sin(angle)
    # [kx']   [ cos  sin] [kx]
    # [ky'] = [-sin  cos] [ky]      azimuth theta -> theta - psi
    kx, ky = cos * plane.kx + sin * plane.ky, cos * plane.ky - sin * plane.kx
    if mirrored is not None:
        ky[np.asarray(mirrored, dtype=bool)] *= -1.0  # theta -> psi - theta
    return kx, ky


def aligned_features(
    images: Float32,
    plane: HalfPlane,
    angle_rad: ArrayLike,
    shift_px: ArrayLike,
    mirrored: ArrayLike | None = None,
) -> Complex64:
    """Half-plane features of the images after undoing shift, mirror and rotation, Eq. (2.1).

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Images as they are in the stack.
    plane : HalfPlane
        Coefficients wanted; of the same box.
    angle_rad : array_like of shape (n_images,)
        In-plane angle psi of each image.
    shift_px : array_like of shape (n_images, 2)
        (x, y) in pixels that, added to the image's content, centres it.
    mirrored : array_like of shape (n_images,), bool, optional
        Which centred images are mirrored before they are turned; none by default.

    Returns
    -------
    features : ndarray of shape (n_images, J), complex64
        As `fourier.fourier_features` of the aligned images.

    Notes
    -----
    One NUFFT an image (finufft, relative tolerance 1e-4): O(D^2 log D + J). The plan is made once a call.
    """
    shift = np.asarray(shift_px, dtype=np.float64)
    kx, ky = rotated_frequencies(plane, angle_rad, mirrored)  # (n_images, J)
    box = plane.box
    turn = 2.0 * np.pi / box
    # finufft counts pixels from D // 2, as we do, so only the particle's own shift is left to undo
    phase = np.exp(-1j * turn * (kx * shift[:, :1] + ky * shift[:, 1:])).astype(np.complex64)
    # upsampling by 1.25 instead of 2: a smaller FFT for a wider kernel, 1.3 to 3 times faster at these sizes
    plan = finufft.Plan(
        2, (box, box), n_trans=1, eps=NUFFT_TOLERANCE, isign=-1, dtype="complex64", nthreads=1,
        upsampfac=1.25,
    )  # fmt: skip
    features = np.empty((len(images), plane.n_coefficients), dtype=np.complex64)
    points_x, points_y = (turn * kx).astype(np.float32), (turn * ky).astype(np.float32)
    # Every image has its own points, so finufft is called once an image; the plan (its FFT) is shared.
    for row, image in enumerate(images.astype(np.complex64)):
        plan.setpts(points_y[row], points_x[row])
        plan.execute(image, out=features[row])
    features *= phase
    features *= np.float32(np.sqrt(2.0) / box)
    return features


def aligned_images(
    images: Float32, angle_rad: ArrayLike, shift_px: ArrayLike, mirrored: ArrayLike | None = None
) -> Float32:
    """Images after undoing shift, mirror and rotation, without the mean (DC) and the corners beyond Nyquist.

    Parameters and cost as `aligned_features`; returns (n_images, D, D) float32.
    """
    plane = half_plane(images.shape[-1])
    return images_from_features(aligned_features(images, plane, angle_rad, shift_px, mirrored), plane)
