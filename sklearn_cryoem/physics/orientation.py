"""Three-dimensional orientations in RELION's Euler angles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.transform import Rotation

_AT_POLE = 1e-6  # sine of the tilt below which rot and psi turn about one axis


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
