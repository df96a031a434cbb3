"""What is true of simulated particles: view, pose, structure, junk. Drawing it, and going back to it."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sklearn_cryoem.datasets.background import JUNK_KINDS
from sklearn_cryoem.particles import ParticleStack, Poses

Float64 = NDArray[np.float64]

# views: von Mises-Fisher caps round directions at right angles, as surfaces that hold a particle
POLE_SHARES = (0.75, 0.25)  # of the views that prefer a direction
POLE_SPREAD_RAD = np.radians(20.0)  # standard deviation of the tilt away from the pole along each axis

# picks: most near the centre, some anywhere in the disc that the picker searched
SHARE_OF_SLOPPY_PICKS = 0.15
PICK_SD = 0.3  # of the longest distance, along each axis, for all others


def uniform_directions(n_views: int, rng: np.random.Generator) -> Float64:
    """Quasi-uniform unit vectors on the whole sphere: a Fibonacci spiral turned at random; (n_views, 3)."""
    index = np.arange(n_views) + 0.5
    z = 1.0 - 2.0 * index / n_views
    azimuth = np.pi * (1.0 + np.sqrt(5.0)) * index
    ring = np.sqrt(1.0 - z**2)
    spiral = np.column_stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z])
    turn, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    return spiral @ (turn * np.sign(np.diag(upper))).T


def draw_truth(
    n_samples: int,
    rng: np.random.Generator,
    *,
    n_views: int | None,
    in_plane: bool,
    max_shift: float,
    side: float,
    weights: Float64,
    junk_fraction: float,
    directions: Float64 | None = None,
    shift: Float64 | None = None,
) -> pd.DataFrame:
    """Draw view, in-plane angle, shift, structure and junk of every particle.

    Parameters
    ----------
    n_samples : int
        Number of particles.
    rng : numpy.random.Generator
        Source of all draws.
    n_views : int or None
        Number of fixed view directions; None draws a direction for every particle.
    in_plane : bool
        Whether particles are turned in the plane at random; otherwise the angle is 0.
    max_shift : float
        Shifts are uniform in a disc of this radius, in Angstrom.
    side : float
        Side of the box in Angstrom; particles off centre are 0.35 to 0.5 of it away.
    weights : ndarray of shape (n_structures,)
        Probability of each structure.
    junk_fraction : float
        Probability that a particle is junk; each kind is as likely.
    directions : ndarray of shape (n_samples, 3), optional
        Unit view directions, instead of drawing them.
    shift : ndarray of shape (n_samples, 2), optional
        Shifts in Angstrom, instead of drawing them.

    Returns
    -------
    truth : DataFrame of n_samples rows
        See `make_particles`.
    """
    if directions is None:
        directions = rng.standard_normal((n_samples, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    view = np.full(n_samples, -1)
    if n_views is not None:
        view = rng.integers(n_views, size=n_samples)
        directions = uniform_directions(n_views, rng)[view]
    angle = rng.uniform(0.0, 2.0 * np.pi, n_samples) if in_plane else np.zeros(n_samples)
    shift = disc(rng, n_samples, 0.0, max_shift) if shift is None else shift.copy()
    structure = rng.choice(len(weights), size=n_samples, p=weights)
    is_junk = rng.random(n_samples) < junk_fraction
    kind = np.where(is_junk, np.array(JUNK_KINDS)[rng.integers(len(JUNK_KINDS), size=n_samples)], "")
    far = disc(rng, n_samples, 0.35 * side, 0.5 * side)
    off_centre = kind == "off_centre"
    shift[off_centre] = far[off_centre]
    blank = is_junk & ~off_centre  # nothing of the particle is in these images
    directions = np.where(blank[:, None], np.nan, directions)
    angle[blank], shift[blank] = 0.0, 0.0
    view[is_junk], structure[blank] = -1, -1
    return pd.DataFrame(
        {
            "view_x": directions[:, 0],
            "view_y": directions[:, 1],
            "view_z": directions[:, 2],
            "view": view,
            "rot_rad": np.arctan2(directions[:, 1], directions[:, 0]),
            "tilt_rad": np.arccos(np.clip(directions[:, 2], -1.0, 1.0)),
            "angle_rad": angle,
            "shift_x": shift[:, 0],
            "shift_y": shift[:, 1],
            "structure": structure,
            "is_junk": is_junk,
            "junk_kind": kind,
        }
    )


def draw_views(n_samples: int, rng: np.random.Generator, poles: Float64, preferred: float) -> Float64:
    """View directions (n_samples, 3), a share of them near `poles`, unit rows, by `POLE_SHARES`."""
    uniform = rng.standard_normal((n_samples, 3))
    uniform /= np.linalg.norm(uniform, axis=1, keepdims=True)
    pole = rng.choice(len(poles), size=n_samples, p=POLE_SHARES)
    concentration = POLE_SPREAD_RAD**-2
    u, azimuth = rng.random(n_samples), rng.uniform(0.0, 2.0 * np.pi, n_samples)
    # the von Mises-Fisher distribution by the inverse of its cosine's distribution function, Eq. (7.1)
    cosine = 1.0 + np.log(u + (1.0 - u) * np.exp(-2.0 * concentration)) / concentration
    sine = np.sqrt(np.clip(1.0 - cosine**2, 0.0, None))
    frame = np.stack([np.linalg.svd(axis[None])[2] for axis in poles])[pole]  # rows: the pole and two across
    frame[:, 0] = poles[pole]
    local = np.column_stack([cosine, sine * np.cos(azimuth), sine * np.sin(azimuth)])
    near = np.einsum("ni,nij->nj", local, frame)
    return np.where(rng.random(n_samples)[:, None] < preferred, near, uniform)


def view_density(directions: Float64, poles: Float64, preferred: float) -> Float64:
    """Density of `draw_views` at unit directions (n, 3), relative to uniform views, Eq. (7.1)."""
    concentration = POLE_SPREAD_RAD**-2
    away = directions @ poles.T - 1.0  # (n, n_poles)
    caps = 2.0 * concentration / -np.expm1(-2.0 * concentration) * np.exp(concentration * away)
    return (1.0 - preferred) + preferred * (caps @ np.array(POLE_SHARES))


def draw_picks(n_samples: int, rng: np.random.Generator, longest: float) -> Float64:
    """Shifts (n_samples, 2) of picks: a normal distribution cut at `longest`, and a share uniform within."""
    sloppy = disc(rng, n_samples, 0.0, longest)
    u, azimuth = rng.random(n_samples), rng.uniform(0.0, 2.0 * np.pi, n_samples)
    beyond = np.exp(-0.5 / PICK_SD**2)  # what the cut takes away
    radius = longest * PICK_SD * np.sqrt(-2.0 * np.log(1.0 - u * (1.0 - beyond)))
    close = radius[:, None] * np.column_stack([np.cos(azimuth), np.sin(azimuth)])
    return np.where(rng.random(n_samples)[:, None] < SHARE_OF_SLOPPY_PICKS, sloppy, close)


def true_poses(stack: ParticleStack) -> Poses:
    """In-plane angles and shifts that the particles of a simulated stack were made with.

    Raises
    ------
    ValueError
        If the stack carries no truth.
    """
    if stack.truth is None:
        raise ValueError(
            "The stack carries no truth, so its true poses are unknown. Use a stack from make_particles, or "
            "align it with MAPAligner."
        )
    truth = stack.truth
    return Poses(truth["angle_rad"].to_numpy(), truth[["shift_x", "shift_y"]].to_numpy())


def aligned_to_truth(stack: ParticleStack) -> ParticleStack:
    """Return the stack with its true poses: as if a perfect aligner had seen it.

    The images are not touched; whoever reads features from the stack undoes shift and rotation, Eq. (2.1),
    and turns the CTF with them, Eq. (1.6).

    Parameters
    ----------
    stack : ParticleStack
        From `make_particles`, or any rows of one.

    Returns
    -------
    aligned : ParticleStack

    Raises
    ------
    ValueError
        If the stack carries no truth.
    """
    return stack.with_poses(true_poses(stack))


def disc(rng: np.random.Generator, n: int, inner: float, outer: float) -> Float64:
    """Points (n, 2) uniform in the ring between two radii."""
    azimuth = rng.uniform(0.0, 2.0 * np.pi, n)
    radius = np.sqrt(rng.uniform(inner**2, outer**2, n))
    return np.column_stack([radius * np.cos(azimuth), radius * np.sin(azimuth)])
