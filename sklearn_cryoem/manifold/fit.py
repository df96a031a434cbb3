"""The EM loop: E-step, weights, noise, until the objective stands still, Eq. (3.1)-(3.5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout
from sklearn_cryoem.manifold.expectation import Matcher, Statistics, e_step
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import (
    SMALLEST_VARIANCE,
    log_prior,
    solve_weights,
    update_noise,
)
from sklearn_cryoem.manifold.schedule import Schedule, Stage
from sklearn_cryoem.manifold.start import Start

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class Manifold:
    """Parameters of the model: everything that prediction needs.

    Attributes
    ----------
    basis : LatentBasis
        Nodes and Phi.
    weights : ndarray of shape (M + 1, P), float64
        W of Eq. (2.2).
    noise_variance : ndarray of shape (S,), float64
        1 / beta of each shell.
    alpha : ndarray of shape (S,), float64
        Prior precision of the weights, Eq. (2.6).
    """

    basis: LatentBasis
    weights: Float64
    noise_variance: Float64
    alpha: Float64

    @property
    def templates(self) -> Float64:
        """Template mu of every node, Eq. (2.2); (K, P)."""
        return self.basis.phi @ self.weights

    def matcher(self, layout: FeatureLayout, *, dtype: DTypeLike, temperature: float = 1.0) -> Matcher:
        """Prepare the E-step for data of this layout."""
        return Matcher.of(self.templates, self.noise_variance, layout, dtype=dtype, temperature=temperature)


@dataclass(frozen=True)
class Trace:
    """How the fit went; the lists hold one entry for each iteration.

    Attributes
    ----------
    objective : list of float
        Objective (3.5) after the iteration, divided by the number of images.
    n_shells : list of int
        Shells it was measured on.
    temperature : list of float
        Temperature it was measured at.
    is_held_out : list of bool
        Whether it is the likelihood of held-out images, Eq. (3.12), which every iteration is a stage of its
        own for.
    """

    objective: list[float] = field(default_factory=list)
    n_shells: list[int] = field(default_factory=list)
    temperature: list[float] = field(default_factory=list)
    is_held_out: list[bool] = field(default_factory=list)

    def append(self, objective: float, stage: Stage, *, is_held_out: bool = False) -> None:
        """Add an iteration."""
        self.objective.append(objective)
        self.n_shells.append(stage.n_shells)
        self.temperature.append(stage.temperature)
        self.is_held_out.append(is_held_out)

    @property
    def stage(self) -> NDArray[np.int64]:
        """Number of the stage of each iteration; objectives can be compared inside a stage alone."""
        pairs = list(zip(self.n_shells, self.temperature, strict=True))
        changes = [i > 0 and (pairs[i] != pairs[i - 1] or self.is_held_out[i - 1]) for i in range(len(pairs))]
        return np.cumsum(changes, dtype=np.int64)

    @property
    def last_gain(self) -> float:
        """Gain of the last iteration over the one before; infinite where they cannot be compared."""
        stage = self.stage
        if len(stage) < 2 or stage[-1] != stage[-2]:
            return float("inf")
        return self.objective[-1] - self.objective[-2]


@dataclass(frozen=True)
class ManifoldFit:
    """What the EM loop returns."""

    manifold: Manifold
    trace: Trace
    converged: bool


def fit_manifold(
    blocks: Blocks,
    basis: LatentBasis,
    start: Start,
    alpha: Float64,
    schedule: Schedule,
    *,
    noise: str = "shell",
    max_iter: int = 50,
    tol: float = 1e-3,
    dtype: DTypeLike = np.float32,
    n_jobs: int | None = None,
    trace: Trace | None = None,
    after_iteration: Callable[[Trace], None] | None = None,
) -> ManifoldFit:
    """Fit the manifold by expectation maximisation.

    Parameters
    ----------
    blocks : Blocks
        The data.
    basis : LatentBasis
        Nodes and Phi.
    start : Start
        Weights of the first shells and noise of all.
    alpha : ndarray of shape (S,)
        Prior precision of the weights.
    schedule : Schedule
        Frequency marching and annealing.
    noise : {"white", "shell"}
        How noise variances are pooled, Eq. (3.4).
    max_iter : int
        Largest number of M-steps.
    tol : float
        Converged when an iteration gains less than this, in nats an image, with all shells at temperature 1.
    dtype : dtype
        Precision of the matrix products: that of the blocks.
    n_jobs : int, optional
        Number of workers.
    trace : Trace, optional
        Of the iterations that led to `start`, to which those of this fit are added.
    after_iteration : callable, optional
        Called with the trace after each iteration.

    Returns
    -------
    fit : ManifoldFit

    Notes
    -----
    One pass over the data an iteration, and one more for the objective of the last.
    """
    floor = SMALLEST_VARIANCE * start.noise_variance
    weights, noise_variance = start.weights, start.noise_variance.copy()
    trace, matched = (
        Trace() if trace is None else trace,
        Stage(schedule.first_shells, schedule.stage(0).temperature),
    )
    for iteration in range(max_iter + 1):
        stage = schedule.stage(iteration)
        matched = Stage(matched.n_shells, stage.temperature)
        layout = blocks.layout.truncate(matched.n_shells)
        current = Manifold(basis, weights, noise_variance[: matched.n_shells], alpha[: matched.n_shells])
        matcher = current.matcher(layout, dtype=dtype, temperature=stage.temperature)
        statistics = e_step(blocks, matcher, n_shells=stage.n_shells, n_jobs=n_jobs)
        if iteration > 0:
            trace.append(_objective(statistics, current, layout), matched)
            if after_iteration is not None:
                after_iteration(trace)
        is_final = matched == Stage(schedule.n_shells, 1.0)
        if iteration == max_iter or (is_final and trace.last_gain < tol):
            break
        layout = blocks.layout.truncate(stage.n_shells)
        used = slice(0, stage.n_shells)
        weights = solve_weights(statistics, basis, noise_variance[used], alpha[used], layout, n_jobs=n_jobs)
        noise_variance[used] = update_noise(statistics, basis.phi @ weights, layout, noise, floor[used])
        matched = stage
    return ManifoldFit(current, trace, converged=is_final and trace.last_gain < tol)


def _objective(statistics: Statistics, manifold: Manifold, layout: FeatureLayout) -> float:
    """Eq. (3.5), divided by the number of images."""
    penalty = log_prior(manifold.weights, manifold.alpha, layout)
    return (statistics.log_evidence + penalty) / statistics.n_samples
