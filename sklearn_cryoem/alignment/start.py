"""A model to start from: averages of random images at random angles, and the power of the images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.residuals import ImageTerms, group_noise, group_sums
from sklearn_cryoem.alignment.update import masked_references
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import from_angular_orders, images_from_polar

IMAGES_PER_REFERENCE = 20
IMAGES_FOR_NOISE = 500


def starting_model(
    source: FeatureSource, settings: AlignmentSettings, rng: np.random.RandomState
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
    averages = []
    for _ in range(settings.n_references):
        rows = np.sort(rng.permutation(n_images)[:per_reference])
        features = source(rows, space.n_rings, space.n_orders)
        angle = rng.uniform(0.0, 2.0 * np.pi, (per_reference, 1)) * (source.known is None)
        turn = np.exp(-1j * angle * np.arange(space.n_orders))
        numerator = (features.orders * turn[:, :, None]).sum(axis=0)  # (n_orders, n_rings)
        denominator = features.ctf_power[:, 0].real.sum(axis=0)
        averages.append((numerator / (denominator + 0.1 * denominator.mean() + 1e-9)).T)
    values = from_angular_orders(np.array(averages, dtype=np.complex64), space.grid.n_angles)
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


def first_noise(
    source: FeatureSource, settings: AlignmentSettings, rng: np.random.RandomState
) -> tuple[Float64, Float64]:
    """Noise of every ring up to the limit (n_rings,) and of each group relative to it (n_groups, n_rings).

    Both are the whole power of a random subset, signal included.
    """
    rows: NDArray[np.int64] = np.sort(rng.permutation(source.n_images)[:IMAGES_FOR_NOISE])
    n_rings = source.n_rings(settings.k_limit)
    parts = [source(rows[s : s + 100], n_rings, 1).power for s in range(0, len(rows), 100)]
    power = np.concatenate(parts).astype(np.float64)  # (n_rows, n_rings)
    noise = np.maximum(power.mean(axis=0), 1e-12) / source.noise_fraction
    nothing = np.zeros_like(power)  # explained by references
    return noise, group_noise(
        *group_sums(ImageTerms(nothing, nothing, power), source.group[rows], source.n_groups)
    )
