"""The EM loop: E-step, weights, noise, until the objective stands still, Eq. (3.1)-(3.5)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.em import Checkpoint, NullCheckpoint
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
from sklearn_cryoem.manifold.state import FitState, Trace, say_interrupted

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
class ManifoldFit:
    """What the EM loop returns; `interrupted` if Ctrl-C ended it."""

    manifold: Manifold
    trace: Trace
    converged: bool
    interrupted: bool = False


def fit_manifold(
    blocks: Blocks,
    basis: LatentBasis,
    start: Start | None,
    alpha: Float64,
    schedule: Schedule,
    *,
    noise: str = "shell",
    max_iter: int = 50,
    tol: float = 1e-3,
    dtype: DTypeLike = np.float32,
    n_jobs: int | None = None,
    trace: Trace | None = None,
    keeper: Checkpoint | None = None,
    found: FitState | None = None,
    after_iteration: Callable[[Trace], None] | None = None,
) -> ManifoldFit:
    """Fit the manifold by expectation maximisation.

    Parameters
    ----------
    blocks : Blocks
        The data.
    basis : LatentBasis
        Nodes and Phi.
    start : Start or None
        Weights of the first shells and noise of all; None where `found` takes its place.
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
    keeper : Checkpoint, optional
        Keeps the state from time to time.
    found : FitState, optional
        A state of the same fit, to go on from in the place of `start` and `trace`, with the same bits.
    after_iteration : callable, optional
        Called with the trace after each iteration.

    Returns
    -------
    fit : ManifoldFit

    Notes
    -----
    One pass over the data an iteration, and one more for the objective of the last. Ctrl-C ends the fit with
    the parameters of the last M-step.
    """
    state = found
    if state is None:
        if start is None:
            raise ValueError("A fit needs a start, or a state to go on from: give start= or found=.")
        floor = SMALLEST_VARIANCE * start.noise_variance
        trace = Trace() if trace is None else trace
        state = FitState(0, start.weights, start.noise_variance, floor, schedule.first_shells, trace)
    keeper = keeper or NullCheckpoint()
    keeper.keep(state, now=bool(state.trace.objective))
    try:
        while True:
            stage, n_matched = schedule.stage(state.iteration), state.n_matched
            trace = copy.deepcopy(state.trace)
            layout, current = blocks.layout.truncate(n_matched), _manifold(basis, state, alpha)
            statistics = e_step(
                blocks,
                current.matcher(layout, dtype=dtype, temperature=stage.temperature),
                n_shells=stage.n_shells,
                n_jobs=n_jobs,
            )
            matched = Stage(n_matched, stage.temperature)
            if state.iteration > 0:
                trace.append(_objective(statistics, current, layout), matched)
                if after_iteration is not None:
                    after_iteration(trace)
            is_final = matched == Stage(schedule.n_shells, 1.0)
            if state.iteration == max_iter or (is_final and trace.last_gain < tol):
                return ManifoldFit(current, trace, converged=is_final and trace.last_gain < tol)
            state = _after_m_step(
                statistics, basis, replace(state, trace=trace), alpha, blocks.layout, stage, noise, n_jobs
            )
            del statistics  # before those of the next pass are made
            keeper.keep(state)
    except KeyboardInterrupt:
        if not state.trace.objective:  # nothing was learnt
            raise
        keeper.keep(state, now=True)
        say_interrupted(state.trace)
        return interrupted_fit(basis, state, alpha, blocks.layout)


def _after_m_step(
    statistics: Statistics,
    basis: LatentBasis,
    state: FitState,
    alpha: Float64,
    layout: FeatureLayout,
    stage: Stage,
    noise: str,
    n_jobs: int | None,
) -> FitState:
    """State with the weights and the noise that the statistics of an E-step give, Eq. (3.3)-(3.4)."""
    layout, used = layout.truncate(stage.n_shells), slice(0, stage.n_shells)
    variance = state.noise_variance.copy()
    weights = solve_weights(statistics, basis, variance[used], alpha[used], layout, n_jobs=n_jobs)
    variance[used] = update_noise(statistics, basis.phi @ weights, layout, noise, state.floor[used])
    return FitState(state.iteration + 1, weights, variance, state.floor, stage.n_shells, state.trace)


def _manifold(basis: LatentBasis, state: FitState, alpha: Float64) -> Manifold:
    used = slice(0, state.n_matched)
    return Manifold(basis, state.weights, state.noise_variance[used], alpha[used])


def interrupted_fit(
    basis: LatentBasis, state: FitState, alpha: Float64, layout: FeatureLayout
) -> ManifoldFit:
    """What an interrupted fit has learnt; shells that it has not come to have templates of zero."""
    weights = np.zeros((len(state.weights), layout.n_features))
    weights[:, : state.weights.shape[1]] = state.weights
    manifold = Manifold(basis, weights, state.noise_variance, alpha)
    return ManifoldFit(manifold, state.trace, converged=False, interrupted=True)


class StoppedEarly(Exception):
    """Cross-fitted EM was interrupted; carries what it had learnt."""

    def __init__(self, fit: ManifoldFit) -> None:
        super().__init__("The fit was interrupted.")
        self.fit = fit


def _objective(statistics: Statistics, manifold: Manifold, layout: FeatureLayout) -> float:
    """Eq. (3.5), divided by the number of images."""
    penalty = log_prior(manifold.weights, manifold.alpha, layout)
    return (statistics.log_evidence + penalty) / statistics.n_samples
