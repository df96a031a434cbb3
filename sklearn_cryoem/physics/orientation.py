"""Three-dimensional orientations in RELION's Euler angles."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
