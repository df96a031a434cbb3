"""Incremental EM: the last images are matched again, sums of older ones decay, Eq. (3.20)."""

from __future__ import annotations

import dataclasses
import functools
import operator
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout
from sklearn_cryoem.manifold.classes import map_posterior, most_probable
from sklearn_cryoem.manifold.derived_blocks import ShellNorms, Window, admit
from sklearn_cryoem.manifold.em import HeldOutMStep, MStep, Schedule, em
from sklearn_cryoem.manifold.expectation import Matcher, Statistics, sweep
from sklearn_cryoem.manifold.maximisation import MIN_VARIANCE, Coupling
from sklearn_cryoem.manifold.prior import (
    Moments,
    measure_moments,
    power_of_stream,
    prior_precision,
    spread_moments,
    turn_of,
)
from sklearn_cryoem.manifold.state import EMState, Manifold, Trace

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

DECAY = 0.7  # exponent kappa of Eq. (3.20): 1 never forgets, 0.5 is the least that still converges
N_SWEEPS = 6  # of E- and M-step for a chunk
N_ORDINARY_SWEEPS = 3  # where no image is held out


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
    window_sums : Statistics
        Sums over the window, Eq. (3.2).
    past_sums : Statistics
        Decayed sums, Eq. (3.2), over the images that have left the window; `n_samples` is the effective
        number of images after decay.
    past_noise : ndarray of shape (S,)
        Decayed mean of the noise when they left.
    past_halves : Statistics
        Decayed sums of both halves of them, for class averages, scaled likewise.
    class_counts : ndarray of shape (K,), int
        Labels given so far.
    moments : Moments
        Plain sums over all images.
    n_seen, n_past : int
        Images so far, and those of them that have left the window.
    """

    layout: FeatureLayout
    window: Window | None
    n_folds: int
    window_sums: Statistics
    past_sums: Statistics
    past_noise: Float64
    past_halves: Statistics
    class_counts: Int
    moments: Moments
    n_seen: int
    n_past: int


@dataclass(frozen=True)
class Advance:
    """What a chunk has changed."""

    manifold: Manifold
    stream: Stream
    halves: Statistics  # sums for the class averages of all images, old ones decayed
    labels: Int  # of the chunk
    trace: Trace  # of the sweeps: their objective is the log likelihood of held-out images, or (3.5)


def begin_stream(
    blocks: Blocks,
    manifold: Manifold,
    moments: Moments,
    *,
    n_folds: int,
    noise: str,
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
    noise : str
        How noise variances are pooled, Eq. (3.4): "white" for one, else one for each shell.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.
    """
    shells, basis = ShellNorms(blocks), manifold.basis
    stream = _nothing(shells.layout, manifold, spread_moments(moments, blocks.layout), n_folds)
    leaving, window = admit(None, shells, len(basis.nodes))
    m_step = MStep(
        basis=basis, alpha=manifold.alpha, layout=shells.layout, noise=noise, dtype=dtype, n_jobs=n_jobs,
        past=stream.past_sums,
    )  # fmt: skip
    swept = _sweep_again(stream, [*leaving, window], manifold, m_step)
    if swept.leaving is not None:
        matcher = manifold.matcher(shells.layout, dtype=dtype)
        halves = [sweep(part, [matcher], "halves", n_jobs=n_jobs) for part in leaving]
        stream, window = _let_go(stream, swept.leaving, manifold.noise_variance, halves), window.owned()
    counts = np.bincount(_labels(blocks, manifold, dtype, n_jobs), minlength=len(basis.nodes))
    return dataclasses.replace(
        stream, window=window, window_sums=swept.window_sums, class_counts=counts, n_seen=blocks.n_samples
    )


def resume_stream(
    manifold: Manifold,
    moments: Moments,
    layout: FeatureLayout,
    half_averages: Float64,
    mass: Float64,
    class_counts: Int,
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
    mass : ndarray of shape (K,)
        Soft class sizes, in images.
    class_counts : ndarray of shape (K,)
        Images with the label of each class.
    n_folds : int
        Folds in which images are held out, Eq. (3.12); 1 for ordinary EM.

    Notes
    -----
    Sums of c^2 are lost. Every class is taken to have the mean c^2 of all images, half of it in each half;
    then averages, Eq. (3.6), and noise, Eq. (3.4), give the other sums back.
    """
    n_images, moments = int(class_counts.sum()), spread_moments(moments, layout)
    n_faces = 1 + (layout.mirror is not None)  # of each image, Eq. (3.18)
    mass, n_worth = n_faces * mass, n_faces * n_images
    shells = dataclasses.replace(layout, norm_index=layout.shell)
    mean_c2 = layout.sum_shells(moments.c2) / layout.shell_sizes  # (S,)
    ridge = manifold.alpha * manifold.noise_variance / layout.information  # (S,)
    half_denominator = 0.5 * mass[:, None] * (mean_c2 / moments.n_samples)  # (K, S)
    numerator = half_averages * (half_denominator + ridge)[:, layout.shell]  # (2, K, P)
    whole, templates = numerator.sum(axis=0), manifold.templates  # (K, P)
    explained = layout.sum_shells((whole * templates).sum(axis=0))  # (S,)
    norms = (2.0 * half_denominator * layout.sum_shells(templates**2)).sum(axis=0)  # (S,)
    power = manifold.noise_variance * layout.shell_sizes * n_worth + 2.0 * explained - norms  # (S,)
    empty = _nothing(shells, manifold, moments, n_folds)
    half_mass, both = (np.stack([half, half]) for half in (0.5 * mass, half_denominator))
    halves = dataclasses.replace(empty.past_halves, numerator=numerator, denominator=both, mass=half_mass)
    past_sums = dataclasses.replace(halves.total(), power=power, n_samples=n_worth)
    return dataclasses.replace(
        empty,
        past_sums=past_sums,
        past_halves=halves,
        class_counts=class_counts,
        n_seen=n_images,
        n_past=n_worth,
    )


def advance(
    stream: Stream,
    blocks: Blocks,
    manifold: Manifold,
    *,
    alpha: float | str,
    noise: str,
    dtype: DTypeLike,
    n_jobs: int | None = None,
) -> Advance:
    """Learn from a further chunk, Eq. (3.20).

    There are six sweeps over the window and the chunk, or three where no image is held out. One more pass
    gives the sums of the averages, and one over the chunk its labels.

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
    noise : str
        How noise variances are pooled, Eq. (3.4): "white" for one, else one for each shell.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int, optional
        Number of workers.
    """
    moments = stream.moments + spread_moments(measure_moments(blocks, n_jobs=n_jobs), blocks.layout)
    stream, basis, layout = dataclasses.replace(stream, moments=moments), manifold.basis, stream.layout
    leaving, window = admit(stream.window, ShellNorms(blocks), len(basis.nodes))
    precision = prior_precision(alpha, basis, power_of_stream(moments, layout), layout)
    m_step = MStep(
        basis=basis, alpha=precision, layout=layout, noise=noise, dtype=dtype, n_jobs=n_jobs,
        past=stream.past_sums,
    )  # fmt: skip
    swept = _sweep_again(stream, [*leaving, window], manifold, m_step)
    manifold = swept.manifold
    matcher = manifold.matcher(layout, dtype=dtype)
    *old, new = [sweep(part, [matcher], "halves", n_jobs=n_jobs) for part in [*leaving, window]]
    if swept.leaving is not None:
        stream, window = _let_go(stream, swept.leaving, manifold.noise_variance, old), window.owned()
    labels = _labels(blocks, manifold, dtype, n_jobs)  # with c^2 of each coefficient, as `predict`
    stream = dataclasses.replace(
        stream,
        window=window,
        window_sums=swept.window_sums,
        class_counts=stream.class_counts + np.bincount(labels, minlength=len(stream.class_counts)),
        n_seen=stream.n_seen + blocks.n_samples,
    )
    return Advance(manifold, stream, stream.past_halves + new, labels, swept.trace)


@dataclass(frozen=True)
class _Swept:
    """What sweeps over the images at hand have found."""

    manifold: Manifold
    leaving: Statistics | None  # of the images that are seen for the last time
    window_sums: Statistics  # of the others
    trace: Trace


def _sweep_again(stream: Stream, parts: list[Blocks], manifold: Manifold, ordinary: MStep) -> _Swept:
    """Iterate over the images at hand, whose last part stays, with the sums over those that are gone."""
    basis, layout, n_folds = ordinary.basis, ordinary.layout, stream.n_folds
    power = power_of_stream(stream.moments, layout)
    last: list[Statistics] = []

    def e_step(matchers: list[Matcher], n_shells: int) -> Statistics:
        split = "folds" if n_folds > 1 else "all"
        last[:] = [sweep(part, matchers, split, n_shells=n_shells, n_jobs=ordinary.n_jobs) for part in parts]
        return sum_of(last)

    m_step, templates, n_sweeps = ordinary, [], N_ORDINARY_SWEEPS
    if n_folds > 1:
        coupling = Coupling.of(basis, ordinary.alpha, layout, power.mean, turn_of(power, layout))
        m_step = HeldOutMStep.of(ordinary, coupling, past_noise=stream.past_noise)
        known, start, n_sweeps = stream.past_sums + stream.window_sums, manifold.templates, N_SWEEPS
        if known.n_samples:
            n_jobs, noise = ordinary.n_jobs, manifold.noise_variance
            (start,) = coupling.templates(known, [known], noise, layout, n_jobs=n_jobs)
        templates = [start] * n_folds
    state = EMState(
        iteration=1,  # the parameters of the start are those of an iteration before
        weights=manifold.weights,
        templates=templates,
        noise_variance=manifold.noise_variance,
        floor=MIN_VARIANCE * power.variance,
        n_shells=layout.n_shells,
        trace=Trace(),
    )
    schedule = Schedule(layout.n_shells, layout.n_shells, 0, n_sweeps + 1)
    *_, state = em(e_step, m_step, schedule, state)
    *leaving, window_sums = [part.total() for part in last]
    return _Swept(
        manifold=state.manifold(basis, ordinary.alpha, layout),
        leaving=sum_of(leaving) if leaving else None,
        window_sums=window_sums,
        trace=state.trace,
    )


def sum_of(parts: list[Statistics]) -> Statistics:
    """Sum of at least one."""
    return functools.reduce(operator.add, parts)


def _nothing(layout: FeatureLayout, manifold: Manifold, moments: Moments, n_folds: int) -> Stream:
    """Remember nothing but moments."""
    n_nodes = len(manifold.basis.nodes)
    halves = Statistics.zeros(2, n_nodes, layout, np.float64)
    return Stream(
        layout=layout,
        window=None,
        n_folds=n_folds,
        window_sums=halves.total(),
        past_sums=halves.total(),
        past_noise=manifold.noise_variance,
        past_halves=halves,
        class_counts=np.zeros(n_nodes, dtype=np.int64),
        moments=moments,
        n_seen=0,
        n_past=0,
    )


def _let_go(stream: Stream, sums: Statistics, noise: Float64, halves: list[Statistics]) -> Stream:
    """Let images that leave the window join the decayed sums, Eq. (3.20)."""
    n_leaving, worth = int(sums.n_samples), int(stream.past_sums.n_samples)
    n_past = stream.n_past + n_leaving
    step = (n_leaving / n_past) ** DECAY  # Eq. (3.20); 1 for the first
    old = (1.0 - step) ** 2 / worth if worth else 0.0
    n_effective = round(1.0 / (old + step**2 / n_leaving))
    a, b = (1.0 - step) * n_effective / max(worth, 1), step * n_effective / n_leaving
    past_sums = stream.past_sums.scaled(a) + sums.scaled(b)
    return dataclasses.replace(
        stream,
        past_sums=dataclasses.replace(past_sums, n_samples=n_effective),
        past_noise=(1.0 - step) * stream.past_noise + step * noise,
        past_halves=stream.past_halves.scaled(a) + sum_of(halves).scaled(b),
        n_past=n_past,
    )


def _labels(blocks: Blocks, manifold: Manifold, dtype: DTypeLike, n_jobs: int | None) -> Int:
    """Class of each image; (n,)."""
    matcher = manifold.matcher(blocks.layout, dtype=dtype)
    return np.concatenate(list(map_posterior(most_probable, blocks, [matcher], n_jobs=n_jobs)))
