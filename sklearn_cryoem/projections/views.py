"""Views: points of the sphere that a symmetry leaves apart, and rotations that look along them, Eq. (8.2)."""

from __future__ import annotations

import re

import numpy as np

from sklearn_cryoem.alignment.frames import Frames
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.rotation import euler_matrices, in_plane_turn

GOLDEN = 0.5 * (np.sqrt(5.0) - 1.0)
NEAR = 2.0  # width of what counts for a cell, in radii of a cell


def symmetry_group(name: str) -> Float64:
    """Rotations of a cyclic or dihedral group: the main axis is z, and D has a two-fold axis along x.

    Parameters
    ----------
    name : str
        "C1", "C2", .. or "D2", "D3", .., as RELION has them.

    Returns
    -------
    rotations : ndarray of shape (n_operations, 3, 3)
        The first is the identity.
    """
    found = re.fullmatch(r"([CD])([1-9]\d?)", str(name).upper())
    if found is None:
        raise ValueError(
            f"symmetry is {name!r}, expected C1, C2, .. or D1, D2, ... Other groups hold one of these: give "
            "that one."
        )
    n = int(found[2])
    turns = euler_matrices(2.0 * np.pi * np.arange(n) / n, 0.0, 0.0)
    if found[1] == "C":
        return turns
    return np.concatenate([turns, turns @ np.diag([1.0, -1.0, -1.0])])


def view_angles(n_views: int, symmetry: str) -> Float64:
    """(rot, tilt) of quasi-uniform views in the part of the sphere that the symmetry leaves apart, Eq. (8.2).

    Parameters
    ----------
    n_views : int
        Number of views.
    symmetry : str
        As of `symmetry_group`.

    Returns
    -------
    angles : ndarray of shape (n_views, 2)
        In radians.
    """
    group = symmetry_group(symmetry)
    n_fold = len(group) // (2 if symmetry.upper().startswith("D") else 1)
    i = np.arange(n_views)
    height = (i + 0.5) / n_views  # of the upper half, which is all that a dihedral group leaves
    if n_fold == len(group):
        height = 2.0 * height - 1.0
    return np.column_stack([2.0 * np.pi / n_fold * np.mod(i * GOLDEN, 1.0), np.arccos(height)])


def view_rotations(angles: Float64) -> Float64:
    """Rotations (n_views, 3, 3), as of `euler_matrices`, that look along views (n_views, 2)."""
    return euler_matrices(angles[:, 0], angles[:, 1], np.zeros(len(angles)))


def cell_frames(views: Float64, cells: Float64, symmetry: str) -> Frames:
    """Nearest cell of each view, as its label, and the turns that bring the views of a cell into one frame.

    The posterior of a view counts for all cells, the less the further away they are, Eq. (8.7).

    Parameters
    ----------
    views, cells : ndarrays of shape (n_views, 2) and (n_cells, 2)
        Angles, as of `view_angles`.
    symmetry : str
        As of `symmetry_group`.

    Returns
    -------
    frames : Frames
        Of the views, which are the references.
    """
    group, seen, centres = symmetry_group(symmetry), view_rotations(views), view_rotations(cells)
    images = centres[:, None] @ group.transpose(0, 2, 1)  # (n_cells, n_operations, 3, 3)
    cosine = np.einsum("vi,cgi->vcg", seen[:, 2], images[:, :, 2])
    width = NEAR * 2.0 / np.sqrt(len(cells) * len(group))  # radians
    near = np.exp(np.maximum((cosine.max(axis=2) - 1.0) / width**2, -500.0))  # never 0
    cell, operation = np.divmod(cosine.reshape(len(views), -1).argmax(axis=1), len(group))
    nearest = images[cell, operation]
    turn = np.array([in_plane_turn(own[None], ref)[0] for own, ref in zip(seen, nearest, strict=True)])
    n = len(views)
    return Frames(cell, turn, np.zeros((n, 2)), np.zeros(n, dtype=bool), near)
