"""Classes as groups of aligned references: their averages and resolution, Eq. (4.2) and (4.10)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.mutual import Frames
from sklearn_cryoem.alignment.update import (
    masked_references,
    polar_statistics,
    resolved_ring,
    solve_references,
    spectral_prior,
)
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    images_from_polar,
    translation_phase,
)

CENTRINGS = 3  # each time the mask follows
FAINT = 0.1  # of the brightest pixel


@dataclass(frozen=True)
class AlignedClasses:
    """Averages of the classes in their common frame.

    Attributes
    ----------
    averages : ndarray of shape (n_clusters, D, D), float32
        Masked, CTF-corrected, regularised.
    resolution : ndarray of shape (n_clusters,), int
        Last ring up to which the signal of each exceeds its noise, Eq. (4.7).
    mass : ndarray of shape (n_clusters,)
        Posterior mass of each.
    """

    averages: Float32
    resolution: NDArray[np.int64]
    mass: Float64


def aligned_classes(
    stats: Statistics,
    frames: Frames,
    model: AlignmentModel,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
) -> AlignedClasses:
    """Averages of groups of references from the statistics of the last pass, Eq. (4.2).

    Parameters
    ----------
    stats : Statistics
        Sums of the references, in the frames of the references.
    frames : Frames
        Which references form a class, and how they are moved.
    model : AlignmentModel
        Its noise.
    grid : PolarGrid
        Polar grid of the statistics.
    settings : AlignmentSettings
        Masks, priors.
    noise_fraction : float
        Part of the noise power that passes the mask of the images.
    """
    polar = polar_statistics(stats, grid)
    n_orders = stats.numerator.shape[1]
    m = np.arange(n_orders)
    turn = np.exp(1j * m * frames.angle_rad[:, None])  # (n_references, n_orders)
    phase = translation_phase(grid, frames.shift_px)  # (n_references, n_rings, n_angles / 2)
    shifted: Complex64 = angular_orders(
        polar.numerator * phase, n_orders
    )  # (n_references, n_rings, n_orders)
    shifted = _mirrored(shifted, frames.mirrored)
    numerator = (shifted * turn[:, None, :]).transpose(0, 2, 1)
    even = np.exp(2j * np.arange(stats.denominator.shape[1]) * frames.angle_rad[:, None])
    denominator = _mirrored(stats.denominator, frames.mirrored) * even[:, :, None]
    member = np.equal.outer(np.arange(frames.n_groups), frames.group).astype(np.float64)
    united = Statistics(
        np.einsum("gn,nmr->gmr", member, numerator.astype(np.complex128)),
        np.einsum("gn,ner->ger", member, denominator),
        stats.power,
        stats.n_images,
        member @ stats.mass,
        stats.shift_square,
        stats.log_evidence,
    )
    polar = polar_statistics(united, grid)
    noise = noise_fraction * model.noise[: grid.n_rings]
    inverse_prior, signal_to_noise = spectral_prior(polar, united.mass, noise, settings.tau_fudge)
    averages = masked_references(images_from_polar(solve_references(polar, inverse_prior), grid), settings)
    return AlignedClasses(averages, resolved_ring(signal_to_noise), united.mass)


def centred_classes(
    stats: Statistics,
    frames: Frames,
    model: AlignmentModel,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
) -> tuple[Frames, AlignedClasses]:
    """Frames in which the average of every class has its centre of mass in the centre, Eq. (4.17), and these.

    Parameters as in `aligned_classes`. Classes in the frame of known poses are left where they are.
    """
    classes = aligned_classes(stats, frames, model, grid, settings, noise_fraction)
    for _ in range(CENTRINGS if settings.turns_freely else 0):
        frames = frames.moved(-centre_of_mass(classes.averages))
        classes = aligned_classes(stats, frames, model, grid, settings, noise_fraction)
    return frames, classes


def centre_of_mass(averages: Float32) -> Float64:
    """Centre of mass (x, y) of what is bright in each of some pictures, from the centre pixel; (n, 2).

    What is less than about a tenth as bright as the brightest pixel does not count: noise, and the dark halo
    that missing low frequencies leave. What counts sets in gradually, so that the centre never jumps.
    """
    brightest = averages.max(axis=(1, 2), keepdims=True)
    level = averages / np.maximum(brightest, np.finfo(np.float32).tiny)
    mass = level.astype(np.float64) * np.clip(level / FAINT - 0.5, 0.0, 1.0)
    axis = np.arange(averages.shape[-1]) - averages.shape[-1] // 2
    sums = np.column_stack([mass.sum(axis=1) @ axis, mass.sum(axis=2) @ axis])
    centre: Float64 = sums / np.maximum(mass.sum(axis=(1, 2)), 1e-12)[:, None]
    return centre


def _mirrored(orders: NDArray[Any], mirrored: NDArray[np.bool_]) -> NDArray[Any]:
    """Angular orders (n_references, ..) of functions of which some are mirrored: those become conjugates."""
    return np.where(mirrored[:, None, None], orders.conj(), orders)
