"""Incremental EM: the last images are matched again, sums of older ones decay, Eq. (3.20)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout
from sklearn_cryoem.manifold.classes import ClassStatistics, class_statistics, map_posterior
from sklearn_cryoem.manifold.crossfit import ShellNorms
from sklearn_cryoem.manifold.expectation import Posterior, Statistics
from sklearn_cryoem.manifold.fit import Manifold
from sklearn_cryoem.manifold.prior import DataPower, Moments, measure_moments, power_of, prior_precision
from sklearn_cryoem.manifold.sweeps import Sweeps, add_up
from sklearn_cryoem.manifold.window import Window, admit

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

DECAY = 0.7  # exponent kappa of Eq. (3.20): 1 never forgets, 0.5 is the least that still converges


@dataclass(frozen=True)
class Stream:
    """What is remembered of the images that have gone by.

    Attributes
    ----------
    layout : FeatureLayout
        Columns; c^2 is averaged over each shell.
    window : Window or None
        The last images; None after `resume_stream`.
    n_folds : int
        Folds in which images are held out, Eq. (3.12); 1 for ordinary EM.
    held : Statistics
        Sums over the window, Eq. (3.2).
    left : Statistics
        Decayed sums, Eq. (3.2), over the images that have left the window; its number of images is how
        many they are worth.
    left_noise : ndarray of shape (S,)
        Decayed mean of the noise when they left.
    left_classes : ClassStatistics
        Decayed sums of their class averages, scaled likewise; without labels.
    class_counts : ndarray of shape (K,), int
        Labels given so far.
    moments : Moments
        Plain sums over all images.
    n_seen, n_left : int
        Images so far, and those of them that have left the window.
    """

    layout: FeatureLayout
    window: Window | None
    n_folds: int
    held: Statistics
    left: Statistics
    left_noise: Float64
    left_classes: ClassStatistics
    class_counts: Int
    moments: Moments
    n_seen: int
    n_left: int


@dataclass(frozen=True)
class Advance:
    """What a chunk has changed."""

    manifold: Manifold
    stream: Stream
    classes: ClassStatistics
    """Sums for the class averages of all images, old ones decayed; its labels are those of the chunk."""
    objective: list[float]
    """Of each sweep over the images at hand, for each image: log likelihood of held-out ones, or (3.5)."""


def begin_stream(
    blocks: Blocks,
    manifold: Manifold,
    moments: Moments,
    *,
    n_folds: int,
    noise: str = "shell",
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
        Its fit, which stays as it is; what is remembered comes from a few sweeps more, as in `advance`.
    moments : Moments
        Its moments.
    n_folds : int
        Folds in which images are held out, Eq. (3.12); 1 for ordinary EM.
    noise : {"white", "shell"}
        How noise variances are pooled, Eq. (3.4).
    hard : bool
        Class averages count each image for its most probable node alone.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.
    """
    shells, basis = ShellNorms(blocks), manifold.basis
    stream = _nothing(shells.layout, manifold, spread_moments(moments, blocks.layout), n_folds)
    leaving, window = admit(None, shells, n_folds, len(basis.nodes))
    parts: list[Blocks] = [*leaving, window]
    power = power_of_stream(stream.moments, shells.layout)
    sweeps = Sweeps.of(basis, manifold.alpha, power, shells.layout, noise, dtype, n_jobs)
    swept = sweeps.run(parts, n_folds, stream.held, stream.left, stream.left_noise, manifold)
    if swept.leaving is not None:
        matcher = manifold.matcher(shells.layout, dtype=dtype)
        classes = [class_statistics(part, matcher, hard=hard, n_jobs=n_jobs) for part in leaving]
        stream, window = _let_go(stream, swept.leaving, manifold.noise_variance, classes), window.owned()
    counts = np.bincount(most_probable(blocks, manifold, dtype, n_jobs), minlength=len(basis.nodes))
    return dataclasses.replace(
        stream, window=window, held=swept.held, class_counts=counts, n_seen=blocks.n_samples
    )


def resume_stream(
    manifold: Manifold,
    moments: Moments,
    layout: FeatureLayout,
    half_averages: Float64,
    node_mass: Float64,
    labels: Int,
    *,
    n_folds: int,
) -> Stream:
    """What is left of a fit, as far as it follows from its results: all its images have gone by.

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
    n_folds : int
        Folds in which images are held out, Eq. (3.12); 1 for ordinary EM.

    Notes
    -----
    Sums of c^2 are lost. Every class is taken to have the mean c^2 of all images, half of it in each half;
    then averages, Eq. (3.6), and noise, Eq. (3.4), give the other sums back.
    """
    moments = spread_moments(moments, layout)
    shells = dataclasses.replace(layout, norm_index=layout.shell)
    mean_c2 = layout.sum_shells(moments.c2) / layout.shell_sizes  # (S,)
    ridge = manifold.alpha * manifold.noise_variance / layout.information  # (S,)
    half_gram = 0.5 * node_mass[:, None] * (mean_c2 / moments.n_samples)  # (K, S)
    gram = np.stack([half_gram, half_gram])
    cross = half_averages * (half_gram + ridge)[:, layout.shell]  # (2, K, P)
    whole, templates = cross.sum(axis=0), manifold.templates  # (K, P)
    explained = layout.sum_shells((whole * templates).sum(axis=0))  # (S,)
    norms = (2.0 * half_gram * layout.sum_shells(templates**2)).sum(axis=0)  # (S,)
    power = manifold.noise_variance * layout.shell_sizes * len(labels) + 2.0 * explained - norms  # (S,)
    return dataclasses.replace(
        _nothing(shells, manifold, moments, n_folds),
        left=Statistics(whole, gram.sum(axis=0), power, node_mass.astype(np.float64), 0.0, len(labels)),
        left_classes=ClassStatistics(cross, gram, node_mass.astype(np.float64), labels[:0]),
        class_counts=np.bincount(labels, minlength=len(node_mass)),
        n_seen=len(labels),
        n_left=len(labels),
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
    Seven passes over the window and the chunk, and one more over the chunk.
    """
    moments = stream.moments + spread_moments(measure_moments(blocks, n_jobs=n_jobs), blocks.layout)
    basis, layout, power = manifold.basis, stream.layout, power_of_stream(moments, stream.layout)
    leaving, window = admit(stream.window, ShellNorms(blocks), stream.n_folds, len(basis.nodes))
    parts: list[Blocks] = [*leaving, window]
    sweeps = Sweeps.of(basis, prior_precision(alpha, basis, power), power, layout, noise, dtype, n_jobs)
    swept = sweeps.run(parts, stream.n_folds, stream.held, stream.left, stream.left_noise, manifold)
    manifold = swept.manifold
    matcher = manifold.matcher(layout, dtype=dtype)
    *old, new = [class_statistics(part, matcher, hard=hard, n_jobs=n_jobs) for part in parts]
    if swept.leaving is not None:
        stream, window = _let_go(stream, swept.leaving, manifold.noise_variance, old), window.owned()
    labels = most_probable(blocks, manifold, dtype, n_jobs)  # with c^2 of each coefficient, as `predict`
    stream = dataclasses.replace(
        stream,
        window=window,
        held=swept.held,
        class_counts=stream.class_counts + np.bincount(labels, minlength=len(stream.class_counts)),
        moments=moments,
        n_seen=stream.n_seen + blocks.n_samples,
    )
    classes = dataclasses.replace(stream.left_classes + new, labels=labels)
    return Advance(manifold, stream, classes, swept.objective)


def spread_moments(moments: Moments, layout: FeatureLayout) -> Moments:
    """Moments with c^2 and c^4 of each feature, (P,): chunks may differ in their columns of c^2."""
    c2, c4 = moments.c2[layout.norm_index], moments.c4[layout.norm_index]
    return dataclasses.replace(moments, c2=c2, c4=c4)


def power_of_stream(moments: Moments, layout: FeatureLayout) -> DataPower:
    """Mean, signal and noise of all images seen, Eq. (3.11), from moments of each feature."""
    return power_of(moments, dataclasses.replace(layout, norm_index=np.arange(layout.n_features)))


def _nothing(layout: FeatureLayout, manifold: Manifold, moments: Moments, n_folds: int) -> Stream:
    """Remember nothing but moments."""
    n_nodes, n_features, n_shells = len(manifold.basis.nodes), layout.n_features, layout.n_shells
    cross, gram = np.zeros((n_nodes, n_features)), np.zeros((n_nodes, n_shells))
    none = Statistics(cross, gram, np.zeros(n_shells), np.zeros(n_nodes), 0.0, 0)
    classes = ClassStatistics(
        np.stack([cross, cross]), np.stack([gram, gram]), np.zeros(n_nodes), np.zeros(0, dtype=np.int64)
    )
    counts, noise = np.zeros(n_nodes, dtype=np.int64), manifold.noise_variance
    return Stream(layout, None, n_folds, none, none, noise, classes, counts, moments, 0, 0)


def _let_go(stream: Stream, sums: Statistics, noise: Float64, classes: list[ClassStatistics]) -> Stream:
    """Let images that leave the window join the decayed sums, Eq. (3.20)."""
    n_leaving, worth = sums.n_samples, stream.left.n_samples
    n_left = stream.n_left + n_leaving
    step = (n_leaving / n_left) ** DECAY  # Eq. (3.20); 1 for the first
    old = (1.0 - step) ** 2 / worth if worth else 0.0
    n_effective = round(1.0 / (old + step**2 / n_leaving))
    a, b = (1.0 - step) * n_effective / max(worth, 1), step * n_effective / n_leaving
    return dataclasses.replace(
        stream,
        left=_mix_statistics(stream.left, sums, a, b, n_effective),
        left_noise=(1.0 - step) * stream.left_noise + step * noise,
        left_classes=_mix_classes(stream.left_classes, add_up(classes), a, b),
        n_left=n_left,
    )


def _mix_statistics(old: Statistics, new: Statistics, a: float, b: float, worth: int) -> Statistics:
    return Statistics(
        a * old.cross + b * new.cross,
        a * old.gram + b * new.gram,
        a * old.power + b * new.power,
        a * old.node_mass + b * new.node_mass,
        a * old.log_evidence + b * new.log_evidence,
        worth,
    )


def _mix_classes(old: ClassStatistics, new: ClassStatistics, a: float, b: float) -> ClassStatistics:
    return ClassStatistics(
        a * old.cross + b * new.cross,
        a * old.gram + b * new.gram,
        a * old.node_mass + b * new.node_mass,
        old.labels,
    )


def most_probable(blocks: Blocks, manifold: Manifold, dtype: DTypeLike, n_jobs: int | None) -> Int:
    """Class of each image; (n,)."""
    matcher = manifold.matcher(blocks.layout, dtype=dtype)
    return np.concatenate(list(map_posterior(_node, blocks, matcher, n_jobs=n_jobs)))


def _node(posterior: Posterior) -> Int:
    return np.asarray(posterior.responsibilities.argmax(axis=1))
