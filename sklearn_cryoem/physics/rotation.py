"""Undoing poses in Fourier space, Eq. (2.1): rotation and mirror by a type-2 NUFFT, shift by a phase ramp.

Poses are RELION's, in radians and pixels: adding `shift_px` to the content of an image centres it, and the
centred image at azimuth theta equals the class average at azimuth theta + angle. Where the pose mirrors, the
centred image is mirrored first (y -> -y), so its azimuth -theta takes the place of theta.
"""

from __future__ import annotations

import finufft
import numpy as np
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem.physics.fourier import (
    Complex64,
    Float32,
    HalfPlane,
    fourier_resize,
    half_plane,
    images_from_features,
)

# A non-uniform FFT instead of interpolation in real space, which damps high frequencies by a factor that
# depends on the angle: rotated copies of one image would then differ by more than their noise.
CROP_MARGIN = 1.5  # times the box that k_max needs: rotation reads between the frequencies
CROP_EXTRA = 8  # and this many Fourier pixels more on either side: they count at the lowest resolutions
NUFFT_TOLERANCE = 1e-4  # relative; cryo-EM noise is 10 to 100 times the signal


def _turns(angle_rad: ArrayLike, mirrored: ArrayLike | None = None) -> NDArray[np.float64]:
    """Matrices that turn frequencies (kx, ky) by -angle and then mirror them; (n_images, 2, 2)."""
    angle = np.asarray(angle_rad, dtype=np.float64)
    cos, sin = np.cos(angle), np.sin(angle)
    # [kx']   [ cos  sin] [kx]
    # [ky'] = [-sin  cos] [ky]      azimuth theta -> theta - psi
    matrices = np.stack([np.stack([cos, sin], axis=-1), np.stack([-sin, cos], axis=-1)], axis=-2)
    if mirrored is not None:
        matrices[np.asarray(mirrored, dtype=bool), 1] *= -1.0  # theta -> psi - theta
    return matrices


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
    turn = _turns(angle_rad, mirrored)  # (n_images, 2, 2)
    box = plane.box
    radians = np.asarray(turn * (2.0 * np.pi / box), dtype=np.float32)
    frequency = np.stack([plane.kx, plane.ky]).astype(np.float32)  # (2, J)
    points = (radians.reshape(-1, 2) @ frequency).reshape(len(images), 2, -1)  # (n_images, 2, J)
    # upsampling by 1.25 instead of 2: a smaller FFT for a wider kernel, 1.3 to 3 times faster at these sizes;
    # the points run along rings, so sorting them gains nothing
    plan = finufft.Plan(
        2, (box, box), n_trans=1, eps=NUFFT_TOLERANCE, isign=-1, dtype="complex64", nthreads=1,
        upsampfac=1.25, spread_sort=0,
    )  # fmt: skip
    features = np.empty((len(images), plane.n_coefficients), dtype=np.complex64)
    # Every image has its own points, so finufft is called once an image; the plan (its FFT) is shared.
    for row, image in enumerate(images.astype(np.complex64)):
        plan.setpts(points[row, 1], points[row, 0])
        plan.execute(image, out=features[row])
    # finufft counts pixels from D // 2, as we do, so only the particle's own shift is left to undo
    for ramp in _shift_ramps(plane, np.einsum("ni,nij->nj", np.asarray(shift_px, dtype=np.float64), turn)):
        features *= ramp
    return features


def _shift_ramps(plane: HalfPlane, shift_px: NDArray[np.float64]) -> tuple[Complex64, Complex64]:
    """Two factors whose product is sqrt(2) / D exp(-2 pi i k.shift / D), one for kx and one for ky.

    Every frequency of an axis is raised once an image; the coefficients look theirs up. Shifts (n_images, 2)
    are those of the aligned image: the rotation of k is moved on to them.
    """
    limit = int(np.ceil(plane.k_max))
    axis = np.arange(-limit, limit + 1)
    turn = -2j * np.pi / plane.box
    along_x, along_y = (np.exp(turn * shift_px[:, i : i + 1] * axis) for i in (0, 1))
    along_x *= np.sqrt(2.0) / plane.box
    return (
        np.take(along_x.astype(np.complex64), plane.kx + limit, axis=1),
        np.take(along_y.astype(np.complex64), plane.ky + limit, axis=1),
    )


def cropped_for_rotation(
    images: Float32, plane: HalfPlane, shift_px: NDArray[np.float64]
) -> tuple[Float32, HalfPlane, NDArray[np.float64]]:
    """Crop images in Fourier space where their frequencies allow; scale plane and shift with them.

    Rotation reads the transform between the frequencies kept, which costs a margin: the transform of an image
    that is masked inside its box is smooth, and the error is about one hundredth of the noise.
    """
    box = plane.box
    small = int(2 * np.ceil(CROP_MARGIN * plane.k_max + CROP_EXTRA))
    if small > 0.75 * box:
        return images, plane, shift_px
    return (
        fourier_resize(images, small),
        HalfPlane(small, plane.k_max, plane.kx, plane.ky),
        shift_px * small / box,
    )


def aligned_images(
    images: Float32, angle_rad: ArrayLike, shift_px: ArrayLike, mirrored: ArrayLike | None = None
) -> Float32:
    """Images after undoing shift, mirror and rotation, without the mean (DC) and the corners beyond Nyquist.

    Parameters and cost as `aligned_features`; returns (n_images, D, D) float32.
    """
    plane = half_plane(images.shape[-1])
    return images_from_features(aligned_features(images, plane, angle_rad, shift_px, mirrored), plane)
