"""Incremental EM: statistics that decay as chunks of images go by, Eq. (3.20)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout
from sklearn_cryoem.manifold.classes import ClassStatistics, class_statistics
from sklearn_cryoem.manifold.expectation import Statistics, e_step
from sklearn_cryoem.manifold.fit import Manifold
from sklearn_cryoem.manifold.maximisation import SMALLEST_VARIANCE, log_prior, solve_weights, update_noise
from sklearn_cryoem.manifold.prior import Moments, measure_moments, power_of, prior_precision

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

DECAY = 0.7  # exponent kappa of Eq. (3.20): 1 never forgets, 0.5 is the least that still converges
SWEEPS = 3  # E- and M-steps on each chunk


@dataclass(frozen=True)
class Stream:
    """What is remembered of the images that have gone by.

    Attributes
    ----------
    layout : FeatureLayout
        Columns of the sums: as fine as the finest chunk needed.
    statistics : Statistics
        Decayed sums of Eq. (3.2), scaled to `n_effective` images.
    classes : ClassStatistics
        Decayed sums of the class averages, scaled likewise; its labels are those of the last chunk.
    class_counts : ndarray of shape (K,), int
        Labels given so far.
    moments : Moments
        Plain sums over all images.
    n_seen : int
        Images so far.
    n_effective : int
        How many images the decayed sums are worth.
    """

    layout: FeatureLayout
    statistics: Statistics
    classes: ClassStatistics
    class_counts: Int
    moments: Moments
    n_seen: int
    n_effective: int


@dataclass(frozen=True)
class Advance:
    """What a chunk has changed."""

    manifold: Manifold
    stream: Stream
    objective: list[float]
    """Objective (3.5) on the chunk alone before each sweep, divided by its images."""


def begin_stream(
    blocks: Blocks,
    manifold: Manifold,
    moments: Moments,
    *,
    hard: bool = False,
    dtype: DTypeLike,
    n_jobs: int | None = None,
) -> Stream:
    """Remember the first chunk, on which `manifold` was fitted.

    Parameters
    ----------
    blocks : Blocks
        The first chunk.
    manifold : Manifold
        Its fit.
    moments : Moments
        Its moments.
    hard : bool
        Class averages count each image for its most probable node alone.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.
    """
    matcher = manifold.matcher(blocks.layout, dtype=dtype)
    classes = class_statistics(blocks, matcher, hard=hard, n_jobs=n_jobs)
    return Stream(
        blocks.layout,
        e_step(blocks, matcher, n_jobs=n_jobs),
        classes,
        np.bincount(classes.labels, minlength=len(manifold.basis.nodes)),
        moments,
        blocks.n_samples,
        blocks.n_samples,
    )


def resume_stream(
    manifold: Manifold,
    moments: Moments,
    layout: FeatureLayout,
    half_averages: Float64,
    node_mass: Float64,
    labels: Int,
) -> Stream:
    """What `begin_stream` would remember, as far as it follows from the results of a fit.

    Parameters
    ----------
    manifold : Manifold
        The fit.
    moments : Moments
        Of its images.
    layout : FeatureLayout
        Columns of its images.
    half_averages : ndarray of shape (2, K, P)
        Class averages over even and odd rows.
    node_mass : ndarray of shape (K,)
        Soft class sizes.
    labels : ndarray of shape (n,)
        Class of each image.

    Notes
    -----
    Sums of c^2 are lost. Every class is taken to have the mean c^2 of all images, half of it in each half;
    then averages, Eq. (3.6), and noise, Eq. (3.4), give the other sums back.
    """
    ridge = manifold.alpha * manifold.noise_variance / layout.information  # (S,)
    half_gram = 0.5 * node_mass[:, None] * (moments.c2 / moments.n_samples)  # (K, Q)
    gram = np.stack([half_gram, half_gram])
    cross = half_averages * (half_gram[:, layout.norm_index] + ridge[layout.shell])  # (2, K, P)
    whole, templates = cross.sum(axis=0), manifold.templates  # (K, P)
    explained = layout.sum_shells((whole * templates).sum(axis=0))  # (S,)
    norms = (2.0 * half_gram[:, layout.norm_index] * templates**2).sum(axis=0)  # (P,)
    residual = manifold.noise_variance * layout.shell_sizes * len(labels)
    power = residual + 2.0 * explained - layout.sum_shells(norms)  # (S,)
    return Stream(
        layout,
        Statistics(whole, gram.sum(axis=0), power, node_mass, 0.0, len(labels)),
        ClassStatistics(cross, gram, node_mass, labels),
        np.bincount(labels, minlength=len(node_mass)),
        moments,
        len(labels),
        len(labels),
    )


def advance(
    stream: Stream,
    blocks: Blocks,
    manifold: Manifold,
    *,
    alpha: float | str,
    noise: str = "shell",
    hard: bool = False,
    dtype: DTypeLike,
    n_jobs: int | None = None,
) -> Advance:
    """Learn from a further chunk, Eq. (3.20).

    Parameters
    ----------
    stream : Stream
        What went by before.
    blocks : Blocks
        The chunk; of the same features.
    manifold : Manifold
        Parameters so far.
    alpha : float or "auto"
        Prior precision of the weights; "auto" follows the signal in all images so far, Eq. (3.11).
    noise : {"white", "shell"}
        How noise variances are pooled, Eq. (3.4).
    hard : bool
        Class averages count each image for its most probable node alone.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.

    Notes
    -----
    Four passes over the chunk; nothing of the images is kept.
    """
    own, layout = blocks.layout, common_layout(stream.layout, blocks.layout)
    found = _refine_moments(measure_moments(blocks, n_jobs=n_jobs), own, layout)
    moments = _refine_moments(stream.moments, stream.layout, layout) + found
    power = power_of(moments, layout)
    precision = prior_precision(alpha, manifold.basis, power)
    floor = SMALLEST_VARIANCE * power.variance
    n_seen = stream.n_seen + blocks.n_samples
    step = (blocks.n_samples / n_seen) ** DECAY  # Eq. (3.20)
    n_effective = round(1.0 / ((1.0 - step) ** 2 / stream.n_effective + step**2 / blocks.n_samples))
    shares = ((1.0 - step) * n_effective / stream.n_effective, step * n_effective / blocks.n_samples)
    remembered = _refine_statistics(stream.statistics, stream.layout, layout)
    objective = []
    for _ in range(SWEEPS):
        fresh = e_step(blocks, manifold.matcher(own, dtype=dtype), n_jobs=n_jobs)
        penalty = log_prior(manifold.weights, manifold.alpha, own)
        objective.append((fresh.log_evidence + penalty) / blocks.n_samples)
        statistics = _mix_statistics(remembered, _refine_statistics(fresh, own, layout), shares, n_effective)
        weights = solve_weights(
            statistics, manifold.basis, manifold.noise_variance, precision, layout, n_jobs=n_jobs
        )
        variance = update_noise(statistics, manifold.basis.phi @ weights, layout, noise, floor)
        manifold = Manifold(manifold.basis, weights, variance, precision)
    chunk = class_statistics(blocks, manifold.matcher(own, dtype=dtype), hard=hard, n_jobs=n_jobs)
    before = _refine_classes(stream.classes, stream.layout, layout)
    classes = _mix_classes(before, _refine_classes(chunk, own, layout), shares)
    counts = stream.class_counts + np.bincount(chunk.labels, minlength=len(stream.class_counts))
    return Advance(
        manifold,
        Stream(layout, statistics, classes, counts, moments, n_seen, n_effective),
        objective,
    )


def common_layout(first: FeatureLayout, second: FeatureLayout) -> FeatureLayout:
    """Coarsest layout whose columns of c^2 are parts of those of both.

    Chunks with and without astigmatism, or without a CTF, share their features but not their columns of c^2.
    """
    starts = np.union1d(first.norm_starts, second.norm_starts)
    norm_index = np.searchsorted(starts, np.arange(first.n_features), side="right") - 1
    return FeatureLayout(first.shell, norm_index.astype(np.int64), first.information)


def _columns(layout: FeatureLayout, wanted: FeatureLayout) -> Int:
    """Column of c^2 in `layout` that each column in `wanted`, a finer one, is a part of."""
    return layout.norm_index[wanted.norm_starts]


def _refine_statistics(sums: Statistics, layout: FeatureLayout, wanted: FeatureLayout) -> Statistics:
    return dataclasses.replace(sums, gram=sums.gram[:, _columns(layout, wanted)])


def _refine_classes(sums: ClassStatistics, layout: FeatureLayout, wanted: FeatureLayout) -> ClassStatistics:
    return dataclasses.replace(sums, gram=sums.gram[:, :, _columns(layout, wanted)])


def _refine_moments(sums: Moments, layout: FeatureLayout, wanted: FeatureLayout) -> Moments:
    columns = _columns(layout, wanted)
    return dataclasses.replace(sums, c2=sums.c2[columns], c4=sums.c4[columns])


def _mix_statistics(old: Statistics, new: Statistics, shares: tuple[float, float], worth: int) -> Statistics:
    a, b = shares
    return Statistics(
        a * old.cross + b * new.cross,
        a * old.gram + b * new.gram,
        a * old.power + b * new.power,
        a * old.node_mass + b * new.node_mass,
        a * old.log_evidence + b * new.log_evidence,
        worth,
    )


def _mix_classes(old: ClassStatistics, new: ClassStatistics, shares: tuple[float, float]) -> ClassStatistics:
    a, b = shares
    return ClassStatistics(
        a * old.cross + b * new.cross,
        a * old.gram + b * new.gram,
        a * old.node_mass + b * new.node_mass,
        new.labels,
    )
