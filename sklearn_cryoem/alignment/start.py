"""How references begin, and how those that have lost their images begin again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.features import FeatureCache, SharedFeatures
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import (
    AlignmentModel,
    masked_references,
    polar_statistics,
    smallest_noise,
    update_model,
)
from sklearn_cryoem.alignment.passes import PassResult
from sklearn_cryoem.alignment.products import ring_power
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import (
    PolarGrid,
    angular_orders,
    from_angular_orders,
    images_from_polar,
    polar_transform,
)

IMAGES_PER_REFERENCE = 20
IMAGES_FOR_NOISE = 500
IMAGES_PER_TASK = 64
BALANCE_STEP = 1.0
BALANCE_FLOOR = 0.3  # of the mean size: an empty reference gains at most log(1.3 / 0.3) a batch
LAST_RESEEDING = 0.8  # of the mini-batches: dead references start again only before
DEAD_SHARE = 0.05  # of the mean mass of a reference
DEAD_IMAGES = 2.0  # or fewer images than this, where references have more on average


def starting_model(
    features: SharedFeatures, settings: AlignmentSettings, rng: np.random.RandomState
) -> AlignmentModel:
    """Random references and a first noise spectrum.

    Each reference is a CTF-weighted average, Eq. (4.2), of a random subset at random angles up to
    `settings.k_start`: nearly round, each with its own small accidents, which is all that tells them
    apart at first. Where poses are known the images keep those. The first noise is the whole power of the
    images, signal included.

    Parameters
    ----------
    features : SharedFeatures
        The images.
    settings : AlignmentSettings
        References, masks, first resolution.
    rng : RandomState
        Source of the subsets and angles.
    """
    images, n_images = features.images, features.images.n_images
    space = settings.space(images.box, settings.k_start)
    per_reference = int(np.clip(n_images // 2, 1, IMAGES_PER_REFERENCE))
    drawn: list[tuple[NDArray[np.int64], Float64]] = []
    for _ in range(settings.n_references):
        rows = np.sort(rng.permutation(n_images)[:per_reference])
        angle = rng.uniform(0.0, 2.0 * np.pi, per_reference) * (settings.angle_range_rad is None)
        drawn.append((rows, angle))
    numerator, denominator = _random_sums(features, space, drawn)
    level = 0.1 * denominator.mean(axis=1, keepdims=True) + 1e-9
    averages = (numerator / (denominator + level)).transpose(1, 2, 0)  # (n_references, n_rings, n_orders)
    values = from_angular_orders(averages.astype(np.complex64), space.grid.n_angles)
    return AlignmentModel(
        references=masked_references(images_from_polar(values, space.grid), settings),
        noise=first_noise(features, settings, rng),
        weight=np.full(settings.n_references, 1.0 / settings.n_references),
        balance=np.zeros(settings.n_references),
        shift_sigma_px=max(0.5 * settings.max_shift_px, 1.0),
        k_max=settings.k_start,
        resolution=np.zeros(settings.n_references, dtype=np.int64),
    )


def given_model(
    features: SharedFeatures, settings: AlignmentSettings, rng: np.random.RandomState, references: Float32
) -> AlignmentModel:
    """Given references (n_references, D, D) in the scale of the images, Eq. (4.22), and a first noise."""
    images, n = features.images, len(references)
    k_max = min(settings.growth * settings.k_start, settings.k_limit)
    grid = settings.space(images.box, k_max).grid
    masked = masked_references(references, settings)
    noise = first_noise(features, settings, rng)  # (n_rings,), signal included
    excess = images.noise_fraction * (noise - noise.min())[: grid.n_rings]
    rows = np.sort(rng.permutation(images.n_images)[:IMAGES_FOR_NOISE])
    blocks = [rows[block] for block in even_blocks(len(rows), IMAGES_PER_TASK)]
    ctf_power = np.concatenate(list(features.map(mean_ctf_power, blocks, grid.n_rings))).mean(axis=0)
    power = ctf_power * ring_power(polar_transform(masked, grid)).mean(axis=0)
    area = grid.radius * (grid.radius > settings.n_ignored)
    scale = np.sqrt((area @ excess) / max(area @ power, np.finfo(np.float64).tiny))
    return AlignmentModel(
        references=(masked * scale).astype(np.float32),
        noise=noise,
        weight=np.full(n, 1.0 / n),
        balance=np.zeros(n),
        shift_sigma_px=max(0.5 * settings.max_shift_px, 1.0),
        k_max=k_max,
        resolution=np.zeros(n, dtype=np.int64),
    )


def mean_ctf_power(rows: NDArray[np.int64], cache: FeatureCache, n_rings: int) -> Float64:
    """Mean of C^2 round each ring; (n_rows, n_rings)."""
    shift = cache.images.known.shift_px[rows]
    return cache(rows, shift, n_rings, 1).ctf_power[:, 0].real.astype(np.float64)


def _random_sums(
    features: SharedFeatures, space: SearchSpace, drawn: list[tuple[NDArray[np.int64], Float64]]
) -> tuple[NDArray[np.complex128], Float64]:
    """Sums of turned images (n_orders, n_references, n_rings) and of C^2 (n_references, n_rings).

    Every image is read once, in the order of the file, for all references that it was drawn for.
    """
    rows = np.unique(np.concatenate([chosen for chosen, _ in drawn]))
    member = np.zeros((len(drawn), len(rows)), dtype=bool)
    angle = np.zeros(member.shape)
    for number, (chosen, angles) in enumerate(drawn):
        at = np.searchsorted(rows, chosen)
        member[number, at], angle[number, at] = True, angles
    tasks = [
        (rows[block], member[:, block], angle[:, block]) for block in even_blocks(len(rows), IMAGES_PER_TASK)
    ]
    parts = features.map(_turned_sums, tasks, space)
    numerators, denominators = zip(*parts, strict=True)
    return np.sum(numerators, axis=0), np.sum(denominators, axis=0)


def _turned_sums(
    task: tuple[NDArray[np.int64], NDArray[np.bool_], Float64], cache: FeatureCache, space: SearchSpace
) -> tuple[NDArray[np.complex128], Float64]:
    """Sums over some rows, given who is a member of which reference, and at what angle."""
    rows, member, angle = task
    features = cache(rows, cache.images.known.shift_px[rows], space.n_rings, space.n_orders)
    m = np.arange(space.n_orders)[:, None, None]
    turn = np.exp(-1j * m * angle) * member  # (n_orders, n_references, n)
    power = features.ctf_power[:, 0].real.astype(np.float64)  # (n, n_rings)
    return np.matmul(turn, features.orders.transpose(1, 0, 2)), member @ power


def first_noise(features: SharedFeatures, settings: AlignmentSettings, rng: np.random.RandomState) -> Float64:
    """Noise of every ring up to the limit: the power of a random subset, signal included; (n_rings,)."""
    images = features.images
    rows: NDArray[np.int64] = np.sort(rng.permutation(images.n_images)[:IMAGES_FOR_NOISE])
    blocks = [rows[block] for block in even_blocks(len(rows), IMAGES_PER_TASK)]
    parts = list(features.map(_power, blocks, images.n_rings(settings.k_limit)))
    power = np.concatenate(parts).astype(np.float64).mean(axis=0)
    return np.asarray(np.maximum(power, smallest_noise(power)) / images.noise_fraction)


def _power(rows: NDArray[np.int64], cache: FeatureCache, n_rings: int) -> Float32:
    return cache.power(rows, cache.images.known.shift_px[rows], n_rings)


def reseed(
    model: AlignmentModel,
    stats: Statistics,
    grid: PolarGrid,
    settings: AlignmentSettings,
    noise_fraction: float,
    rng: np.random.RandomState,
    explained: Float64,
) -> tuple[AlignmentModel, Statistics]:
    """Split a reference in two for every one that has died; nothing changes if none has.

    The halves are A + e and A - e, where A is the reference that is split and e a draw from the
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
    explained : ndarray of shape (n_references,)
        Mean log evidence of the images of each reference, as returned by `mean_evidence`. Of two of equal
        mass, the one that explains its images worse is split.

    Returns
    -------
    model, stats
        With the split references, their sums and masses.
    """
    dead = dead_references(stats.mass)
    donors = _donors(stats.mass, dead, explained)
    dead = dead[: len(donors)]
    if not len(dead):
        return model, stats
    polar = polar_statistics(stats, grid, donors)
    half = 0.5 * polar.denominator  # (n_split, n_rings, n_angles / 2)
    jitter = _draw(model, half, grid, settings, noise_fraction, rng)
    values = polar_transform(model.references[donors], grid)
    numerator, denominator = stats.numerator.copy(), stats.denominator.copy()
    references, mass, shift_sum = model.references.copy(), stats.mass.copy(), stats.shift_sum.copy()
    weight, balance = model.weight.copy(), model.balance.copy()
    resolution, n_orders = model.resolution.copy(), stats.numerator.shape[1]
    for chosen, e in ((dead, jitter), (donors, -jitter)):
        moved = (0.5 * polar.numerator + half * e).astype(np.complex64)
        numerator[chosen] = angular_orders(moved, n_orders).transpose(0, 2, 1)
        denominator[chosen] = 0.5 * stats.denominator[donors]
        references[chosen] = masked_references(images_from_polar(values + e, grid), settings)
        mass[chosen] = 0.5 * stats.mass[donors]
        shift_sum[chosen] = 0.5 * stats.shift_sum[donors]
        weight[chosen] = 0.5 * (model.weight[dead] + model.weight[donors])
        balance[chosen], resolution[chosen] = model.balance[donors], model.resolution[donors]
    model = replace(model, references=references, weight=weight, balance=balance, resolution=resolution)
    return model, replace(stats, numerator=numerator, denominator=denominator, mass=mass, shift_sum=shift_sum)


def dead_references(mass: Float64) -> NDArray[np.int64]:
    """References of less than a twentieth of the mean mass, or of less than two images."""
    mean = float(mass.mean())
    return np.flatnonzero(mass < max(DEAD_SHARE * mean, min(DEAD_IMAGES, 0.5 * mean)))


def mean_evidence(label: NDArray[np.int64], log_evidence: Float64, n_references: int) -> Float64:
    """Mean log evidence of the images of each reference, with one image more that has the mean of all."""
    count = np.bincount(label, minlength=n_references)
    total = np.bincount(label, log_evidence, minlength=n_references)
    mean: Float64 = (total + log_evidence.mean()) / (count + 1.0)
    return mean


def _donors(mass: Float64, dead: NDArray[np.int64], explained: Float64) -> NDArray[np.int64]:
    """References to split, the first to be split first; each keeps at least half of the mean mass."""
    spread = max(float(np.ptp(explained)), 1e-12)
    unexplained = 1.0 + (explained.max() - explained) / spread  # from 1 to 2
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
    ctf_power = np.maximum(denominator.mean(axis=-1), 1e-9)  # (n_split, n_rings)
    spread = np.sqrt(noise / ctf_power).astype(np.float32)
    drawn: Complex64 = polar_transform(masked_references(white, settings), grid) * spread[..., None]
    return drawn


def rebalanced(model: AlignmentModel, mass: Float64) -> AlignmentModel:
    """Tilt the prior against references with more than their share of a batch, and towards the others.

    While references are still vague, the vaguest explains every image fairly and takes them all; the tilt
    grows until it does not. It is a device of the start only: full passes run without it.
    """
    share = mass / mass.mean()
    balance = model.balance - BALANCE_STEP * np.log((share + BALANCE_FLOOR) / (1.0 + BALANCE_FLOOR))
    return replace(model, balance=balance - balance.mean())


def tended(
    model: AlignmentModel,
    stats: Statistics,
    batch: PassResult,
    given: tuple[PolarGrid, AlignmentSettings, float, np.random.RandomState],
    done: float,
) -> tuple[AlignmentModel, Statistics]:
    """References balanced after a mini-batch and, but for the last fifth of them, reseeded where they died.

    `given` is the grid, the settings, the part of the noise in the mask and the generator.
    """
    model = rebalanced(model, batch.statistics.mass)
    if done >= LAST_RESEEDING:
        return model, stats
    label = batch.label % len(model.weight)
    explained = mean_evidence(label, batch.log_evidence, len(model.weight))
    return reseed(model, stats, *given, explained)


def random_batches(
    n_images: int, batch_size: int, n_batches: int, rng: np.random.RandomState
) -> list[NDArray[np.int64]]:
    """Rows of each mini-batch: every image once before any comes again; sorted, for reading in order."""
    size = min(batch_size, n_images)
    rounds = -(-size * n_batches // n_images)
    order = np.concatenate([rng.permutation(n_images) for _ in range(max(rounds, 1))])
    return [np.sort(order[i * size : (i + 1) * size]) for i in range(n_batches)]


@dataclass(frozen=True)
class References:
    """How references are made: free of one another, or as slices of volumes.

    Attributes
    ----------
    start : callable
        As `starting_model`.
    update : callable
        As `update_model`.
    tend : callable or None
        What balances and reseeds references after a mini-batch, as `tended`; None for nothing.
    """

    start: Callable[..., Any]
    update: Callable[..., Any]
    tend: Callable[..., Any] | None


FREE = References(starting_model, update_model, tended)
