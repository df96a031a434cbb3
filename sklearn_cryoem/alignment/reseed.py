"""Classes that have lost their images start again as one half of a class that explains its images badly."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.update import masked_references, polar_statistics
from sklearn_cryoem.physics.fourier import Complex64, Float64
from sklearn_cryoem.physics.polar import PolarGrid, angular_orders, images_from_polar, polar_transform

DEAD_SHARE = 0.05  # of the mean mass of a class
DEAD_IMAGES = 2.0  # or fewer images than this, where classes have more on average


def reseed(
    model: AlignmentModel,
    stats: Statistics,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
    rng: np.random.RandomState,
    explained: Float64 | None = None,
) -> tuple[AlignmentModel, Statistics]:
    """Split a class in two for every class that has died; nothing changes if none has.

    The halves are A + e and A - e, where A is the reference of the class that is split and e a draw from the
    noise that its estimate still has, so that both are as likely as A. Further EM sorts the images.

    Parameters
    ----------
    model : AlignmentModel
        As returned by `update_model`.
    stats : Statistics
        The sums that go with it, scaled to the whole set.
    grid : PolarGrid
        Polar grid of the sums.
    settings : AlignmentSettings
        Masks.
    noise_fraction : float
        Part of the noise power that passes the mask of the images.
    rng : RandomState
        Draws e.
    explained : ndarray of shape (n_clusters,), optional
        Mean log evidence of the images of each class, as returned by `mean_evidence`. Of two classes of equal
        mass, the one that explains its images worse is split. By default only mass counts.

    Returns
    -------
    model, stats
        With the split references, their sums and masses.
    """
    dead = dead_classes(stats.mass)
    donors = _donors(stats.mass, dead, explained)
    dead = dead[: len(donors)]
    if not len(dead):
        return model, stats
    polar = polar_statistics(stats, grid)
    half = 0.5 * polar.denominator[donors]  # (n_split, n_rings, n_angles / 2)
    jitter = _draw(model, half, grid, settings, noise_fraction, rng)
    values = polar_transform(model.references[donors], grid)
    numerator, denominator = stats.numerator.copy(), stats.denominator.copy()
    references, mass, shift_sum = model.references.copy(), stats.mass.copy(), stats.shift_sum.copy()
    class_weight, balance = model.class_weight.copy(), model.balance.copy()
    resolution, n_orders = model.resolution.copy(), stats.numerator.shape[1]
    for classes, e in ((dead, jitter), (donors, -jitter)):
        moved = (0.5 * polar.numerator[donors] + half * e).astype(np.complex64)
        numerator[classes] = angular_orders(moved, n_orders).transpose(0, 2, 1)
        denominator[classes] = 0.5 * stats.denominator[donors]
        references[classes] = masked_references(images_from_polar(values + e, grid), settings)
        mass[classes] = 0.5 * stats.mass[donors]
        if len(shift_sum):
            shift_sum[classes] = 0.5 * stats.shift_sum[donors]
        class_weight[classes] = 0.5 * (model.class_weight[dead] + model.class_weight[donors])
        balance[classes], resolution[classes] = model.balance[donors], model.resolution[donors]
    model = replace(
        model, references=references, class_weight=class_weight, balance=balance, resolution=resolution
    )
    return model, replace(stats, numerator=numerator, denominator=denominator, mass=mass, shift_sum=shift_sum)


def dead_classes(mass: Float64) -> NDArray[np.int64]:
    """Classes of less than a twentieth of the mean mass, or of less than two images."""
    mean = float(mass.mean())
    return np.flatnonzero(mass < max(DEAD_SHARE * mean, min(DEAD_IMAGES, 0.5 * mean)))


def mean_evidence(label: NDArray[np.int64], log_evidence: Float64, n_clusters: int) -> Float64:
    """Mean log evidence of the images of each class, the overall mean where it has none; (n_clusters,)."""
    count = np.bincount(label, minlength=n_clusters)
    total = np.bincount(label, log_evidence, minlength=n_clusters)
    mean: Float64 = (total + log_evidence.mean()) / (count + 1.0)
    return mean


def _donors(mass: Float64, dead: NDArray[np.int64], explained: Float64 | None) -> NDArray[np.int64]:
    """Classes to split, the first to be split first; each keeps at least half of the mean mass."""
    unexplained = np.ones_like(mass)
    if explained is not None:
        spread = float(np.ptp(explained))
        unexplained += (explained.max() - explained) / max(spread, 1e-12)  # from 1 to 2
    alive = np.setdiff1d(np.flatnonzero(mass >= mass.mean()), dead)
    order = np.argsort(-(mass * unexplained)[alive], kind="stable")
    return alive[order][: len(dead)]


def _draw(
    model: AlignmentModel,
    denominator: NDArray[np.floating],
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
    rng: np.random.RandomState,
) -> Complex64:
    """Noise of references estimated with the given sums of C^2; (n_split, n_rings, n_angles / 2)."""
    white = rng.standard_normal((len(denominator), grid.box, grid.box)).astype(np.float32)
    noise = noise_fraction * model.noise[: grid.n_rings]  # (n_rings,)
    seen = np.maximum(denominator.mean(axis=-1), 1e-9)  # (n_split, n_rings)
    spread = np.sqrt(noise / seen).astype(np.float32)
    drawn: Complex64 = polar_transform(masked_references(white, settings), grid) * spread[..., None]
    return drawn
