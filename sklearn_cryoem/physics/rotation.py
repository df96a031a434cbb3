"""Rotations: images out of their poses, and three-dimensional orientations in RELION's Euler angles.

Poses are undone in Fourier space, Eq. (2.1): rotation and mirror by a type-2 NUFFT, shift by a phase ramp.
They are RELION's, in radians and pixels: adding `shift_px` to the content of an image centres it, and the
centred image at azimuth theta equals the class average at azimuth theta + angle. Where the pose mirrors, the
centred image is mirrored first (y -> -y), so its azimuth -theta takes the place of theta.
"""

from __future__ import annotations

import finufft
import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

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
_AT_POLE = 1e-6  # sine of the tilt below which rot and psi turn about one axis


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


def euler_matrices(rot_rad: ArrayLike, tilt_rad: ArrayLike, psi_rad: ArrayLike) -> NDArray[np.float64]:
    """Rotation matrices of RELION's ZYZ angles; rows are the image's x, y and viewing axis in the volume.

    Parameters
    ----------
    rot_rad, tilt_rad, psi_rad : array_like of shape (n,)
        rlnAngleRot, rlnAngleTilt and rlnAnglePsi in radians.

    Returns
    -------
    matrices : ndarray of shape (n, 3, 3)
        ``matrices[i, 2]`` is the view direction; the Fourier transform of the image at (kx, ky) is that of
        the volume at ``kx * matrices[i, 0] + ky * matrices[i, 1]``.
    """
    (cr, sr), (ct, st), (cp, sp) = (
        (np.cos(angle), np.sin(angle)) for angle in np.broadcast_arrays(rot_rad, tilt_rad, psi_rad)
    )
    rows = [
        [cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * st],
        [-sp * ct * cr - cp * sr, -sp * ct * sr + cp * cr, sp * st],
        [st * cr, st * sr, ct],
    ]
    return np.moveaxis(np.array(rows, dtype=np.float64), -1, 0)


def in_plane_turn(frames: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Angle in radians that best turns `reference` into each frame within the image plane.

    Parameters
    ----------
    frames : ndarray of shape (n, 3, 3)
        As returned by `euler_matrices`.
    reference : ndarray of shape (3, 3)
        A frame whose view is near theirs.

    Returns
    -------
    angle : ndarray of shape (n,)
        In (-pi, pi]; of the turn about the viewing axis that maximises the trace of what is left. Free of
        the jumps that Euler angles make near the poles.
    """
    relative = frames @ reference.T  # (n, 3, 3)
    return np.arctan2(relative[:, 1, 0] - relative[:, 0, 1], relative[:, 0, 0] + relative[:, 1, 1])


def euler_of_rotation_vector(vector: ArrayLike) -> NDArray[np.float64]:
    """RELION's angles of cryoSPARC's 3-D poses.

    Parameters
    ----------
    vector : array_like of shape (n, 3)
        ``alignments3D/pose``: the axis of a rotation times its angle in radians. The matrix of that rotation
        is the transposed of `euler_matrices` (as csparc2star of pyem has it).

    Returns
    -------
    angles : ndarray of shape (n, 3)
        rot, tilt and psi in radians. At tilt 0 and 180 degrees, where only their sum or difference counts,
        rot is 0.
    """
    frames = Rotation.from_rotvec(np.array(vector, dtype=np.float64)).as_matrix().transpose(0, 2, 1)
    sine = np.hypot(frames[:, 0, 2], frames[:, 1, 2])  # of the tilt, (n,)
    tilt = np.arctan2(sine, frames[:, 2, 2])
    side = np.where(frames[:, 2, 2] > 0, 1.0, -1.0)
    rot = np.where(sine < _AT_POLE, 0.0, np.arctan2(frames[:, 2, 1], frames[:, 2, 0]))
    at_pole = np.arctan2(-side * frames[:, 1, 0], side * frames[:, 0, 0])
    psi = np.where(sine < _AT_POLE, at_pole, np.arctan2(frames[:, 1, 2], -frames[:, 0, 2]))
    return np.column_stack([rot, tilt, psi])


def rotation_vector_of_euler(
    rot_rad: ArrayLike, tilt_rad: ArrayLike, psi_rad: ArrayLike
) -> NDArray[np.float64]:
    """Inverse of `euler_of_rotation_vector`.

    Parameters
    ----------
    rot_rad, tilt_rad, psi_rad : array_like of shape (n,)
        rlnAngleRot, rlnAngleTilt and rlnAnglePsi in radians.

    Returns
    -------
    vector : ndarray of shape (n, 3)
        Axis times angle, of at most pi.
    """
    matrices = euler_matrices(rot_rad, tilt_rad, psi_rad).transpose(0, 2, 1)
    return np.asarray(Rotation.from_matrix(matrices).as_rotvec(), dtype=np.float64)
