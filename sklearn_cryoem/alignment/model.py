"""What an alignment knows, and the M-step that follows from the sums: Eq. (4.2), (3.4), (4.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from sklearn_cryoem._core.parallel import even_blocks, ordered_map
from sklearn_cryoem.alignment.expectation import LogPrior
from sklearn_cryoem.alignment.maximisation import Statistics, order_power, orders_needed, signal_power
from sklearn_cryoem.alignment.products import TRANSFORMS_PER_TASK, Int, ring_power
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.masks import mask_background
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    from_angular_orders,
    images_from_polar,
    order_shares,
    polar_transform,
    translation_phase,
)

MIN_SHIFT_SIGMA_PX = 0.7
MAX_CENTRING_PX = 3.0
MIN_NOISE = 1e-6  # of the power of the images: a difference in single precision may be negative
EMPTY_RING_NOISE = 1e-12  # of the power of the strongest ring: noise of rings that are empty
ZERO_IMAGE_NOISE = 1e-36  # noise of images that are zero
BALANCE_STRENGTH = 1.0  # of "balanced" weights, in Eq. (4.14)
EMPTY_SHARE = 0.1  # of the mean reference, added to all: what an empty one may gain has a limit
MIN_SIGNAL = 1e-3  # prior variance, at least this fraction of the noise of the estimate


@dataclass(frozen=True)
class AlignmentModel:
    """References and everything else that the M-step estimates.

    Attributes
    ----------
    references : ndarray of shape (n_references, D, D), float32
        Masked, centred, CTF-corrected.
    noise : ndarray of shape (largest number of rings,)
        Noise variance per pixel at each ring 1, 2, .., as `noise_fraction` of it passes the image mask.
    weight : ndarray of shape (n_references,)
        Prior probability of each reference.
    balance : ndarray of shape (n_references,)
        Added to the log prior during online EM against references that swallow the others; 0 afterwards.
    shift_sigma_px : float
        Standard deviation of each coordinate of the shift, Eq. (4.1).
    k_max : float
        Resolution in use, in Fourier pixels.
    resolution : ndarray of shape (n_references,), int
        Last ring of each reference up to which its signal exceeds its noise, Eq. (4.7).
    n_orders : int or None
        Angular orders that the next search needs, Eq. (4.24); None for all.
    """

    at_once: ClassVar[int] = TRANSFORMS_PER_TASK

    references: Float32
    noise: Float64
    weight: Float64
    balance: Float64
    shift_sigma_px: float
    k_max: float
    resolution: NDArray[np.int64]
    n_orders: int | None = field(default=None, kw_only=True)

    def with_mirrors(self) -> AlignmentModel:
        """The same references, and after them their mirror images, y -> -y, as likely as they, Eq. (4.18)."""
        other = np.roll(self.references[:, ::-1], 1, axis=1)  # about pixel D // 2
        return replace(
            self,
            references=np.concatenate([self.references, other]),
            weight=0.5 * np.tile(self.weight, 2),
            balance=np.tile(self.balance, 2),
            resolution=np.tile(self.resolution, 2),
        )

    def polar(self, grid: PolarGrid, block: slice = slice(None)) -> Complex64:
        """Some references, at most `at_once` for speed, on a polar grid; (k, n_rings, n_angles / 2)."""
        return polar_transform(self.references[block], grid)

    def log_prior(self, space: SearchSpace) -> LogPrior:
        """Log priors of references and of the shifts of `space`."""
        tiny = np.finfo(np.float64).tiny
        reference = np.log(np.maximum(self.weight, tiny)) + self.balance
        return LogPrior(reference, space.log_shift_prior(self.shift_sigma_px))

    def precision(self, space: SearchSpace) -> Float32:
        """1 / noise variance of the rings of a search, 0 where no likelihood counts them; (n_rings,)."""
        counts = np.arange(space.n_rings) >= space.n_ignored  # Eq. (4.21)
        return (counts / self.noise[: space.n_rings]).astype(np.float32)


@dataclass(frozen=True)
class PolarStatistics:
    """Statistics on the polar grid, where Eq. (4.2) is a division.

    Attributes
    ----------
    numerator : ndarray of shape (n_references, n_rings, n_angles / 2), complex64
        Sum of w R^-1 S^-1 C X.
    denominator : ndarray of the same shape, float
        Sum of w C^2.
    """

    numerator: Complex64
    denominator: NDArray[np.floating]


def polar_statistics(stats: Statistics, grid: PolarGrid, some: slice | Int = slice(None)) -> PolarStatistics:
    """Evaluate numerators and denominators of some references on the half circle of `grid`."""
    orders = stats.numerator[some].transpose(0, 2, 1).astype(np.complex64)
    numerator = from_angular_orders(orders, grid.n_angles)
    even = stats.denominator[some].transpose(0, 2, 1)  # (n_references, n_rings, n_even)
    denominator = fft.irfft(even, grid.n_angles // 2, axis=-1, norm="forward", workers=1)
    return PolarStatistics(numerator, np.maximum(denominator, 0.0))


def solve_references(polar: PolarStatistics, inverse_prior: Float64) -> Complex64:
    """References that maximise the posterior, Eq. (4.2): B / (G + s2 / tau2).

    Parameters
    ----------
    polar : PolarStatistics
        Numerators and denominators.
    inverse_prior : ndarray of shape (n_references, n_rings)
        s2 / tau2; with 0 the estimate is that of maximum likelihood.
    """
    denominator = np.maximum(polar.denominator + inverse_prior[:, :, None], 1e-9)
    return (polar.numerator / denominator).astype(np.complex64)


def explained_power(polar: PolarStatistics, references: Complex64) -> Float64:
    """Sum over images of |F|^2 - |F - C A|^2 of Eq. (3.4) on each ring; (n_references, n_rings)."""
    cross = np.mean((polar.numerator.conj() * references).real, axis=-1, dtype=np.float64)
    squared = references.real**2 + references.imag**2
    return np.asarray(2.0 * cross - np.mean(polar.denominator * squared, axis=-1))


def plain_power(polar: PolarStatistics) -> tuple[Float64, Float64]:
    """Power of the references of maximum likelihood, and sums of C^2; both (n_references, n_rings)."""
    ctf_power = np.maximum(polar.denominator.mean(axis=-1, dtype=np.float64), 1e-9)
    return ring_power(solve_references(polar, 1e-6 * ctf_power)), ctf_power


def noise_share(stats: Statistics, grid: PolarGrid, settings: AlignmentSettings) -> Float64:
    """Part of the noise of each ring that lies in the angular orders of the sums, Eq. (4.24); (n_rings,)."""
    radius_px = settings.mask_radius_px + settings.mask_edge_px
    return np.asarray(order_shares(grid, radius_px, stats.numerator.shape[1]).sum(axis=0))


def spectral_prior(
    plain: tuple[Float64, Float64], mass: Float64, noise: Float64, tau_fudge: float, share: Float64
) -> tuple[Float64, Float64]:
    """s2 / tau2 of Eq. (4.2), and the signal-to-noise ratio of each estimate, Eq. (4.7).

    Parameters
    ----------
    plain : tuple of ndarrays of shape (n_references, n_rings)
        From `plain_power`.
    mass : ndarray of shape (n_references,)
        Posterior mass of each reference.
    noise : ndarray of shape (n_rings,)
        Noise variance of the masked images.
    tau_fudge : float
        Factor on the prior variance.
    share : ndarray of shape (n_rings,)
        From `noise_share`.

    Returns
    -------
    inverse_prior, signal_to_noise : ndarrays of shape (n_references, n_rings)
    """
    power, ctf_power = plain
    signal = signal_power(power, share * noise / ctf_power, mass)
    tau2 = tau_fudge * signal + MIN_SIGNAL * noise / ctf_power
    return noise / tau2, signal * ctf_power / noise


def resolved_ring(signal_to_noise: Float64, n_ignored: int = 0) -> NDArray[np.int64]:
    """Last ring before the signal-to-noise ratio of each reference first falls below 1, Eq. (4.7).

    The first `n_ignored` rings do not count, Eq. (4.21).
    """
    below = (signal_to_noise < 1.0) & (np.arange(signal_to_noise.shape[1]) >= n_ignored)
    return np.asarray(np.where(below.any(axis=1), below.argmax(axis=1), below.shape[1]), dtype=np.int64)


def update_model(
    stats: Statistics,
    model: AlignmentModel,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
    n_jobs: int | None = None,
) -> tuple[AlignmentModel, Statistics]:
    """The M-step after the sums: new references, noise, priors and resolution, Eq. (4.2), (3.4), (4.7).

    Parameters
    ----------
    stats : Statistics
        Sums over the whole set (or scaled to it).
    model : AlignmentModel
        The model they were taken with.
    grid : PolarGrid
        Polar grid of the references.
    settings : AlignmentSettings
        Masks, priors.
    noise_fraction : float
        Part of the noise power that passes the mask of the images.
    n_jobs : int or None
        Workers; the result does not depend on it.

    Returns
    -------
    model : AlignmentModel
        With references re-centred and masked; `k_max` is left as it was.
    stats : Statistics
        The sums, moved with the references.
    """
    stats = stats.turn_centred()
    _, n_orders, n_rings = stats.numerator.shape
    blocks = even_blocks(len(stats.mass), TRANSFORMS_PER_TASK)

    def by_workers(function: Callable[[slice], tuple[NDArray[Any], ...]]) -> Iterator[NDArray[Any]]:
        found = ordered_map(function, blocks, n_jobs=n_jobs, threads_only=True)
        return map(np.concatenate, zip(*found, strict=True))

    def measured(block: slice) -> tuple[NDArray[Any], ...]:
        polar = polar_statistics(stats, grid, block)
        return polar.numerator, polar.denominator, *plain_power(polar)

    numerator, denominator, power, ctf_power = by_workers(measured)
    noise = noise_fraction * model.noise[:n_rings]  # of the masked images
    plain, share = (power, ctf_power), noise_share(stats, grid, settings)
    inverse_prior, signal_to_noise = spectral_prior(plain, stats.mass, noise, settings.tau_fudge, share)
    moves = shift_centring(stats)

    def solved(block: slice) -> tuple[NDArray[Any], ...]:
        phase = translation_phase(grid, moves[block])  # (k, n_rings, n_angles / 2)
        polar = PolarStatistics(numerator[block] * phase, denominator[block])
        references = solve_references(polar, inverse_prior[block])
        images = masked_references(images_from_polar(references, grid), settings)
        values = polar_transform(images, grid)
        moved = angular_orders(polar.numerator, n_orders).transpose(0, 2, 1).astype(np.complex128)
        return images, moved, explained_power(polar, values), order_power(values)

    images, moved, explained, orders = by_workers(solved)
    n_images = np.maximum(stats.n_images, 1e-9)
    power, residual = stats.power / n_images, (stats.power - explained.sum(axis=0)) / n_images  # Eq. (3.4)
    residual = np.maximum(residual, MIN_NOISE * power + smallest_noise(power)) / noise_fraction
    mean_ctf2 = ctf_power.sum(axis=0) / max(stats.mass.sum(), 1e-9)  # (n_rings,)
    information = np.where(np.arange(n_rings) < settings.n_ignored, 0.0, mean_ctf2 / residual)
    n_axes = 2 if settings.rise_px is None else 1  # along which images lie off centre
    sigma_px = float(np.sqrt(stats.shift_square[0] / (n_axes * stats.mass.sum())))
    updated = replace(
        model,
        references=images,
        noise=np.concatenate([residual, model.noise[n_rings:]]),
        weight=reference_weights(stats.mass, model.weight, settings.class_prior),
        shift_sigma_px=max(MIN_SHIFT_SIGMA_PX, sigma_px),
        resolution=resolved_ring(signal_to_noise, settings.n_ignored),
        n_orders=max(orders_needed(orders, information), model.n_orders or 0),  # evidence stays comparable
    )
    return updated, replace(stats, numerator=moved, shift_sum=stats.mass[:, None] * moves + stats.shift_sum)


def shift_centring(stats: Statistics) -> Float64:
    """How far each reference must move for the mean shift of its images to be zero, Eq. (4.15).

    Parameters
    ----------
    stats : Statistics
        Sums with the shifts of the images of each reference.

    Returns
    -------
    moves : ndarray of shape (n_references, 2)
        (x, y) in pixels, `MAX_CENTRING_PX` at most. A centre of mass would suit pictures, but it may
        carry a reference so far from its images that some would have to shift further than the search goes.
    """
    moves = -stats.shift_sum / np.maximum(stats.mass, 1e-9)[:, None]
    length = np.hypot(*moves.T)[:, None]
    limited: Float64 = moves * np.minimum(1.0, MAX_CENTRING_PX / np.maximum(length, 1e-12))
    return limited


def reference_weights(mass: Float64, last: Float64, class_prior: str) -> Float64:
    """Prior weight of each reference for the next E-step, Eq. (4.14); (n_references,).

    Parameters
    ----------
    mass : ndarray of shape (n_references,)
        Posterior mass of each reference.
    last : ndarray of shape (n_references,)
        Prior weight that it was found with.
    class_prior : {"uniform", "estimated", "balanced"}
        "uniform" leaves the weights alone. "estimated" takes the share of each reference, so that one that
        has lost images loses more: many collapse. "balanced" tilts against large ones.
    """
    if class_prior == "uniform":
        return last
    share: Float64 = mass / mass.sum()
    if class_prior == "estimated":
        return share
    empty = EMPTY_SHARE / len(mass)
    tilt = -BALANCE_STRENGTH * np.log((share + empty) / (1.0 + EMPTY_SHARE))
    log_weight = 0.5 * (np.log(last) + tilt)  # half way: the whole way oscillates
    return np.asarray(np.exp(log_weight - np.logaddexp.reduce(log_weight)))


def smallest_noise(power: Float64) -> float:
    """Noise of rings without any, in the unit of the power of all rings (n_rings,): 0 would divide."""
    return EMPTY_RING_NOISE * float(power.max()) + ZERO_IMAGE_NOISE


def log_noise_likelihood(
    power: Float32, noise: Float64, noise_fraction: float, n_ignored: int = 0
) -> Float64:
    """Log p(image | noise alone) of Eq. (1.3) by the quadrature of Eq. (4.3); (n_images,).

    Parameters
    ----------
    power : ndarray of shape (n_images, n_rings)
        Mean of |F|^2 round each ring.
    noise : ndarray of shape (n_rings,)
        Noise variance per pixel.
    noise_fraction : float
        Part of the noise that passes the image mask: the masked image has that fraction of the degrees of
        freedom.
    n_ignored : int
        First rings, which do not count, Eq. (4.21).
    """
    ring = np.arange(1.0, power.shape[1] + 1.0)
    area = 2.0 * np.pi * ring * (ring > n_ignored)
    constant = -0.5 * noise_fraction * (area * np.log(2.0 * np.pi * noise)).sum()
    return np.asarray(constant - 0.5 * (power.astype(np.float64) * (area / noise)).sum(axis=-1))


def masked_references(images: Float32, settings: AlignmentSettings) -> Float32:
    """References with their background set to zero outside the soft mask."""
    return mask_background(images, settings.mask_radius_px, settings.mask_edge_px)
