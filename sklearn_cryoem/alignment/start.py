"""A model to start from: averages of random images at random angles, and the power of the images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.residuals import ImageTerms, group_noise, group_sums, smallest_noise
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.alignment.update import masked_references
from sklearn_cryoem.physics.fourier import Float32, Float64
from sklearn_cryoem.physics.polar import from_angular_orders, images_from_polar

IMAGES_PER_REFERENCE = 20
IMAGES_FOR_NOISE = 500
IMAGES_PER_TASK = 64


def starting_model(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
) -> AlignmentModel:
    """Random references and a first noise spectrum.

    Each reference is a CTF-weighted average, Eq. (4.2), of a random subset at random angles up to
    `settings.k_start`: nearly round, each with its own small accidents, which is all that tells the classes
    apart at first. Where poses are known the images keep those. The first noise is the whole power of the
    images, signal included.

    Parameters
    ----------
    source : FeatureSource
        The images.
    settings : AlignmentSettings
        Classes, masks, first resolution.
    rng : RandomState
        Source of the subsets and angles.
    """
    box, n_images = source.box, source.n_images
    space = settings.space(box, settings.k_start)
    per_reference = int(np.clip(n_images // 2, 1, IMAGES_PER_REFERENCE))
    drawn: list[tuple[NDArray[np.int64], Float64]] = []
    for _ in range(settings.n_references):
        rows = np.sort(rng.permutation(n_images)[:per_reference])
        angle = rng.uniform(0.0, 2.0 * np.pi, per_reference) * (settings.angle_range_rad is None)
        drawn.append((rows, angle))
    numerator, denominator = _random_sums(source, space, drawn)
    level = 0.1 * denominator.mean(axis=1, keepdims=True) + 1e-9
    averages = (numerator / (denominator + level)).transpose(1, 2, 0)  # (n_references, n_rings, n_orders)
    values = from_angular_orders(averages.astype(np.complex64), space.grid.n_angles)
    noise, relative = first_noise(source, settings, rng)
    return AlignmentModel(
        references=masked_references(images_from_polar(values, space.grid), settings),
        noise=noise,
        class_weight=np.full(settings.n_references, 1.0 / settings.n_references),
        balance=np.zeros(settings.n_references),
        shift_sigma_px=max(0.5 * settings.max_shift_px, 1.0),
        k_max=settings.k_start,
        resolution=np.zeros(settings.n_references, dtype=np.int64),
        group_noise=relative,
    )


def _random_sums(
    source: FeatureSource,
    space: SearchSpace,
    drawn: list[tuple[NDArray[np.int64], Float64]],
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
    parts = source.pool.map(_turned_sums, tasks, source.shared, space)
    numerators, denominators = zip(*parts, strict=True)
    return np.sum(numerators, axis=0), np.sum(denominators, axis=0)


def _turned_sums(
    task: tuple[NDArray[np.int64], NDArray[np.bool_], Float64], source: FeatureSource, space: SearchSpace
) -> tuple[NDArray[np.complex128], Float64]:
    """Sums over some rows, given who is a member of which reference, and at what angle."""
    rows, member, angle = task
    source.place(rows, source.known.shift_px[rows])  # a worker may have them where an earlier start left them
    features = source(rows, space.n_rings, space.n_orders)
    m = np.arange(space.n_orders)[:, None, None]
    turn = np.exp(-1j * m * angle) * member  # (n_orders, n_references, n)
    power = features.ctf_power[:, 0].real.astype(np.float64)  # (n, n_rings)
    return np.matmul(turn, features.orders.transpose(1, 0, 2)), member @ power


def first_noise(
    source: FeatureSource,
    settings: AlignmentSettings,
    rng: np.random.RandomState,
) -> tuple[Float64, Float64]:
    """Noise of every ring up to the limit (n_rings,) and of each group relative to it (n_groups, n_rings).

    Both are the whole power of a random subset, signal included.
    """
    rows: NDArray[np.int64] = np.sort(rng.permutation(source.n_images)[:IMAGES_FOR_NOISE])
    n_rings = source.n_rings(settings.k_limit)
    blocks = [rows[block] for block in even_blocks(len(rows), IMAGES_PER_TASK)]
    parts = list(source.pool.map(_power, blocks, source.shared, n_rings))
    power = np.concatenate(parts).astype(np.float64)  # (n_rows, n_rings)
    mean = power.mean(axis=0)
    noise = np.maximum(mean, smallest_noise(mean)) / source.noise_fraction
    nothing = np.zeros_like(power)  # explained by references
    return noise, group_noise(
        *group_sums(ImageTerms(nothing, nothing, power), source.group[rows], source.n_groups)
    )


def _power(rows: NDArray[np.int64], source: FeatureSource, n_rings: int) -> Float32:
    source.place(rows, source.known.shift_px[rows])
    return source(rows, n_rings, 1).power
