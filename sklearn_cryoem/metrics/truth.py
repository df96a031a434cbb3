"""Accuracy of a classification against the truth: how alike the views of a class are, and errors of poses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from sklearn_cryoem.particles import Poses
from sklearn_cryoem.physics.rotation import euler_matrices, in_plane_turn

Float64 = NDArray[np.float64]

MAX_PAIRS = 20_000_000
_ROWS_A_BLOCK = 1024


def view_distances(
    labels: ArrayLike, directions: ArrayLike, *, max_pairs: int = MAX_PAIRS, random_state: Any = None
) -> NDArray[np.float32]:
    """Angles between the view directions of all pairs of particles in the same class, in degrees.

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle; particles with a negative label are left out.
    directions : array_like of shape (n_images, 3)
        View directions; need not have unit length. Leave junk out beforehand: NaN is refused.
    max_pairs : int
        If there are more pairs than this, that many are drawn at random, with replacement.
    random_state : int, RandomState instance or None
        Seed of that draw.

    Returns
    -------
    angles : ndarray of shape (n_pairs,), float32
        In degrees, 0 to 180. Opposite views are mirror images of each other and count as 180 degrees apart.

    Raises
    ------
    ValueError
        If shapes disagree or a direction is NaN or zero.
    """
    members, unit = _members(labels, directions)
    n_pairs = np.array([len(rows) * (len(rows) - 1) // 2 for rows in members], dtype=np.int64)
    if n_pairs.sum() > max_pairs:
        cosines = _sampled_cosines(members, unit, n_pairs, max_pairs, check_random_state(random_state))
    else:
        cosines = np.concatenate([np.empty(0), *_pair_cosines(members, unit)])
    return np.degrees(np.arccos(np.clip(cosines, -1.0, 1.0))).astype(np.float32)


def fraction_within(labels: ArrayLike, directions: ArrayLike, degrees: float = 10.0) -> float:
    """Fraction of same-class pairs whose view directions are at most `degrees` apart, over all pairs.

    Parameters
    ----------
    labels : array_like of shape (n_images,), int
        Class of each particle; particles with a negative label are left out.
    directions : array_like of shape (n_images, 3)
        View directions.
    degrees : float
        For random classes over uniform views the fraction is (1 - cos(degrees)) / 2: 0.0076 at 10 degrees.

    Returns
    -------
    fraction : float
        NaN if no class has two particles.
    """
    members, unit = _members(labels, directions)
    limit = np.cos(np.radians(degrees)) - 1e-12
    close = total = 0
    for cosines in _pair_cosines(members, unit):
        close += int(np.count_nonzero(cosines >= limit))
        total += cosines.size
    return close / total if total else float("nan")


def _members(labels: ArrayLike, directions: ArrayLike) -> tuple[list[NDArray[np.intp]], Float64]:
    """Row numbers of each class, and unit directions (n_images, 3)."""
    values, vectors = np.asarray(labels), np.asarray(directions, dtype=np.float64)
    if values.ndim != 1 or vectors.shape != (len(values), 3):
        raise ValueError(
            f"labels has shape {values.shape} and directions {vectors.shape}, expected (n_images,) and "
            "(n_images, 3). Give one label and one view direction for each particle."
        )
    kept = values >= 0
    length = np.linalg.norm(vectors, axis=1)
    if not (np.isfinite(length[kept]) & (length[kept] > 0)).all():
        raise ValueError(
            "A view direction is NaN or zero. Leave those particles (junk has no view) out of labels and "
            "directions, or give them the label -1."
        )
    unit = vectors / np.where(length > 0, length, 1.0)[:, None]
    rows = np.flatnonzero(kept)
    order = rows[np.argsort(values[rows], kind="stable")]
    _, starts = np.unique(values[order], return_index=True)
    return np.split(order, starts[1:]), unit


def _pair_cosines(members: list[NDArray[np.intp]], unit: Float64) -> Iterator[Float64]:
    """Cosines of all pairs i < j within each class, block by block; one small GEMM each."""
    for rows in members:
        vectors = unit[rows]
        for start in range(0, len(rows), _ROWS_A_BLOCK):
            block = vectors[start : start + _ROWS_A_BLOCK]
            cosines = block @ vectors[start:].T
            yield cosines[np.triu_indices(len(block), 1, cosines.shape[1])]


def _sampled_cosines(
    members: list[NDArray[np.intp]],
    unit: Float64,
    n_pairs: NDArray[np.int64],
    n_samples: int,
    rng: np.random.RandomState,
) -> Float64:
    """Cosines of random pairs; each same-class pair is as likely."""
    drawn = rng.choice(len(members), size=n_samples, p=n_pairs / n_pairs.sum())
    sizes = np.array([len(rows) for rows in members])
    starts = np.cumsum(sizes) - sizes
    first = (rng.random_sample(n_samples) * sizes[drawn]).astype(np.int64)
    second = (rng.random_sample(n_samples) * (sizes[drawn] - 1)).astype(np.int64)
    second += second >= first  # any member but the first
    order = np.concatenate(members)
    one, other = unit[order[starts[drawn] + first]], unit[order[starts[drawn] + second]]
    return np.einsum("ij,ij->i", one, other)


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
