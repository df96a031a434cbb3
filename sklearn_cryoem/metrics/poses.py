"""Errors of in-plane poses after removing what no reference-free aligner can know: each class's own frame."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from sklearn_cryoem.particles import Poses
from sklearn_cryoem.physics.orientation import euler_matrices, in_plane_turn

Float64 = NDArray[np.float64]


class PoseErrors(NamedTuple):
    """Errors of every particle; the medians are over particles in groups of at least two."""

    angle_rad: Float64
    """(n_images,) absolute in-plane angle error; NaN for particles left out."""
    shift: Float64
    """(n_images,) length of the shift error, in the unit of the poses; NaN for particles left out."""
    median_angle_rad: float
    median_shift: float


def pose_errors(poses: Poses, truth: pd.DataFrame, labels: ArrayLike) -> PoseErrors:
    """In-plane angle and shift errors within each (class, view), after removing its global frame.

    A class average may be turned and off centre as it likes: if it is turned by a and displaced by u, every
    particle's angle is off by a and its shift by R(-psi) u. Both are estimated as medians within the group
    and removed. Mirrored images of a (class, view) are a group apart: no turn brings a view onto its mirror
    image, so it is no error here that a view is mirrored, nor that only some of its images are.

    Parameters
    ----------
    poses : Poses
        Estimated poses.
    truth : DataFrame
        With columns rot_rad, tilt_rad, angle_rad, shift_x, shift_y, view (-1 without fixed views) and
        is_junk, as `make_particles` gives. Shifts in the unit of `poses`.
    labels : array_like of shape (n_images,), int
        Class of each particle; a negative label leaves the particle out, as does junk.

    Returns
    -------
    errors : PoseErrors

    Raises
    ------
    ValueError
        If the numbers of rows disagree.

    Notes
    -----
    Without fixed views the groups are the classes. The angle error is then the turn, about the viewing axis,
    between a particle's orientation in its aligned image and the mean orientation of the group; it does not
    depend on the poles of the Euler angles, but mixed views add to it. The median is taken from the group
    itself, so groups of a few particles look better than they are.
    """
    label = np.asarray(labels)
    if not len(poses) == len(truth) == len(label):
        raise ValueError(
            f"There are {len(poses)} poses, {len(truth)} rows of truth and {len(label)} labels, expected as "
            "many of each. Slice all three with the same rows."
        )
    residual = poses.shift - truth[["shift_x", "shift_y"]].to_numpy()  # (n_images, 2), image's frame
    sign = np.where(poses.mirrored, -1.0, 1.0)
    residual[:, 1] *= sign  # mirrored with the image
    cos, sin = np.cos(poses.angle_rad), np.sin(poses.angle_rad)
    displaced = np.column_stack(  # R(psi) residual: in the class's frame
        [cos * residual[:, 0] - sin * residual[:, 1], sin * residual[:, 0] + cos * residual[:, 1]]
    )
    # orientation of the particle in its aligned image: the true one with the estimated psi undone. Where it
    # is mirrored, in the mirror image of that: F(psi - theta) becomes F(theta + psi)
    frames = euler_matrices(truth["rot_rad"], truth["tilt_rad"], truth["angle_rad"] - sign * poses.angle_rad)
    angle_error, shift_error = np.full(len(label), np.nan), np.full(len(label), np.nan)
    kept = np.flatnonzero((label >= 0) & ~truth["is_junk"].to_numpy(dtype=bool))
    groups = pd.DataFrame(
        {"label": label[kept], "view": truth["view"].to_numpy()[kept], "mirrored": poses.mirrored[kept]}
    )
    for places in groups.groupby(["label", "view", "mirrored"]).indices.values():
        rows = kept[places]
        if len(rows) < 2:
            continue
        angle_error[rows] = np.abs(_about_median(in_plane_turn(frames[rows], _mean_frame(frames[rows]))))
        shift_error[rows] = np.linalg.norm(displaced[rows] - np.median(displaced[rows], axis=0), axis=1)
    measured = np.isfinite(angle_error)
    return PoseErrors(
        angle_error, shift_error, _median(angle_error[measured]), _median(shift_error[measured])
    )


def _mean_frame(frames: Float64) -> Float64:
    """Rotation matrix nearest to the mean of several (n, 3, 3)."""
    left, _, right = np.linalg.svd(frames.mean(axis=0))
    left[:, -1] *= np.sign(np.linalg.det(left @ right))
    return left @ right


def _about_median(angle: Float64) -> Float64:
    """Angles minus their circular median, in (-pi, pi]."""
    # the candidate centre with the least sum of distances; the angles themselves are the candidates
    candidates = angle if len(angle) <= 512 else angle[:: len(angle) // 512]
    distance = np.abs(_wrap(angle[None, :] - candidates[:, None])).sum(axis=1)
    return _wrap(angle - candidates[distance.argmin()])


def _wrap(angle: Float64) -> Float64:
    return np.pi - (np.pi - angle) % (2.0 * np.pi)


def _median(values: Float64) -> float:
    return float(np.median(values)) if values.size else float("nan")
