"""The EM of the manifold: E-step, M-step, objective and stop, Eq. (3.1)-(3.5).

In ordinary EM the noise of an image is in the template of its class, and where classes are small it counts
more than what tells views apart: images stay where they are, and the map stays near its start. Cross-fitted
EM, Eq. (3.12), compares every image with templates that other images alone have made. It finds the map, and
ordinary EM only settles it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.expectation import Matcher, Statistics
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import Coupling, solve_weights, update_noise
from sklearn_cryoem.manifold.prior import log_prior
from sklearn_cryoem.manifold.state import EMState

Float64 = NDArray[np.float64]

# Frequency marching is necessary: with all frequencies from the start, a fit at low SNR stays near chance.
MAX_MARCHING_ITERATIONS = 20  # of ordinary EM
MAX_CROSS_FITTED_ITERATIONS = 60  # all of them march: each shell is settled before the next comes
MIN_ORDINARY_ITERATIONS = 4  # all shells are in at the second, and a gain can be told at the fourth


@dataclass(frozen=True)
class Schedule:
    """How many iterations there are, and how many shells each of them lets in: frequency marching.

    Attributes
    ----------
    first_shells, n_shells : int
        Shells of the first iteration and, after `n_marching` iterations, of all others.
    n_marching : int
        Iterations until all shells are in; 0 if they are so from the start.
    max_iter : int
        Largest number of M-steps.
    tol : float or None
        EM has converged when an iteration gains less than this, in nats per image, with all shells in; with
        None it ends after the last M-step.
    """

    first_shells: int
    n_shells: int
    n_marching: int
    max_iter: int
    tol: float | None = None

    @classmethod
    def ordinary(cls, first_shells: int, n_shells: int, max_iter: int, tol: float) -> Schedule:
        """Use at most 20 iterations, and at most half of `max_iter`, for marching."""
        n_marching = min(MAX_MARCHING_ITERATIONS, max_iter // 2) if first_shells < n_shells else 0
        return cls(min(first_shells, n_shells), n_shells, n_marching, max_iter, tol)

    @classmethod
    def cross_fitted(cls, first_shells: int, n_shells: int, n_iterations: int) -> Schedule:
        """Schedule of cross-fitted EM, Eq. (3.12): it marches all the time; the last iteration has it all."""
        n_marching = max(n_iterations - 1, 0) if first_shells < n_shells else 0
        return cls(min(first_shells, n_shells), n_shells, n_marching, n_iterations)

    def shells_at(self, iteration: int) -> int:
        """Shells of the statistics of an iteration, counted from 0: they grow by equal factors."""
        if iteration >= self.n_marching:
            return self.n_shells
        done = iteration / self.n_marching
        growth = float(self.n_shells / self.first_shells)
        return round(float(self.first_shells * growth**done))

    def has_converged(self, state: EMState) -> bool:
        """Whether EM may stop: all shells are in, and the last iteration gained less than `tol`."""
        is_whole = state.n_shells == self.n_shells
        return self.tol is not None and is_whole and state.trace.last_gain < self.tol


def cross_fitted_iterations(max_iter: int) -> int:
    """Count cross-fitted iterations, Eq. (3.12): 60, a fifth of `max_iter` being left; 0 if too few."""
    left = max(MIN_ORDINARY_ITERATIONS, max_iter // 5)
    return max(min(MAX_CROSS_FITTED_ITERATIONS, max_iter - left), 0)


@dataclass(frozen=True, kw_only=True)
class MStep:
    """How the statistics of all images become weights and noise, Eq. (3.3)-(3.4).

    Attributes
    ----------
    basis : LatentBasis
        Nodes and Phi.
    alpha : ndarray of shape (S,)
        Prior precision of the weights.
    layout : FeatureLayout
        All shells.
    noise : str
        How noise variances are pooled, Eq. (3.4): "white" for one, else one for each shell.
    dtype : dtype
        Precision of the matrix products: that of the data.
    n_jobs : int or None
        Number of workers.
    past : Statistics, optional
        Sums over images that are gone, Eq. (3.20).
    """

    is_held_out: ClassVar[bool] = False

    basis: LatentBasis
    alpha: Float64
    layout: FeatureLayout
    noise: str
    dtype: DTypeLike
    n_jobs: int | None
    past: Statistics | None = None

    def matchers(self, state: EMState) -> list[Matcher]:
        """Prepare the templates of a state for the E-step."""
        layout, variance = self.layout.truncate(state.n_shells), state.noise_variance[: state.n_shells]
        prepare = partial(Matcher.of, noise_variance=variance, layout=layout, dtype=self.dtype)
        return list(ordered_map(prepare, self.templates(state), n_jobs=self.n_jobs, threads_only=True))

    def templates(self, state: EMState) -> list[Float64]:
        """Templates that images are compared with, of each part of them."""
        return [self.basis.phi @ state.weights]

    def objective(self, state: EMState, statistics: Statistics) -> float:
        """Eq. (3.5), for each image."""
        layout, alpha = self.layout.truncate(state.n_shells), self.alpha[: state.n_shells]
        evidence = float(statistics.log_evidence.sum()) + log_prior(state.weights, alpha, self.basis, layout)
        return evidence / int(statistics.n_samples.sum())

    def entry(self, state: EMState, statistics: Statistics) -> tuple[float, int, bool, float]:
        """What the trace keeps of an iteration; the objective of Eq. (3.5) or Eq. (3.12) comes first."""
        explained = float((statistics.log_evidence - statistics.log_noise).sum())
        n_images = int(statistics.n_samples.sum())
        return self.objective(state, statistics), state.n_shells, self.is_held_out, explained / n_images

    def __call__(self, state: EMState, statistics: Statistics, n_shells: int, *, is_last: bool) -> EMState:
        """State with the parameters that statistics give.

        Parameters
        ----------
        state : EMState
            The parameters of the E-step.
        statistics : Statistics
            Of each part of the images.
        n_shells : int
            Shells of the statistics.
        is_last : bool
            Whether this is the last iteration, in which cross-fitted EM makes weights as well.
        """
        layout, total, variance = self.layout.truncate(n_shells), self.total(statistics), state.noise_variance
        weights = self.weights(total, variance[:n_shells], layout)
        mu, floor = self.basis.phi @ weights, state.floor[:n_shells]
        found = update_noise(total, mu, layout, self.noise, floor)
        return state.after_m_step(found, n_shells, weights=weights)

    def total(self, statistics: Statistics) -> Statistics:
        """Sums over all images, those that are gone among them."""
        return statistics.total() if self.past is None else statistics.total() + self.past

    def weights(self, total: Statistics, variance: Float64, layout: FeatureLayout) -> Float64:
        """Weights that all images give, Eq. (3.3)."""
        alpha = self.alpha[: layout.n_shells]
        return solve_weights(
            total.numerator, total.denominator, self.basis, variance, alpha, layout, n_jobs=self.n_jobs
        )


@dataclass(frozen=True, kw_only=True)
class HeldOutMStep(MStep):
    """How the statistics of each fold become templates for the others, Eq. (3.12)-(3.13).

    Attributes
    ----------
    coupling : Coupling
        How much alike neighbouring nodes are.
    past_noise : ndarray of shape (S,), optional
        Noise of the images that are gone.
    """

    is_held_out: ClassVar[bool] = True

    coupling: Coupling
    past_noise: Float64 | None = None

    @classmethod
    def of(cls, ordinary: MStep, coupling: Coupling, *, past_noise: Float64 | None = None) -> HeldOutMStep:
        """The M-step of cross-fitted EM that precedes an ordinary one."""
        return cls(**vars(ordinary), coupling=coupling, past_noise=past_noise)

    def templates(self, state: EMState) -> list[Float64]:
        """Templates that the images of each fold are compared with."""
        return state.templates

    def objective(self, state: EMState, statistics: Statistics) -> float:
        """Log likelihood of held-out images, for each, Eq. (3.12)."""
        return float(statistics.log_evidence.sum()) / int(statistics.n_samples.sum())

    def __call__(self, state: EMState, statistics: Statistics, n_shells: int, *, is_last: bool) -> EMState:
        """State with the templates that each fold gets from the others; in the end with weights of all."""
        layout, total, variance = self.layout.truncate(n_shells), self.total(statistics), state.noise_variance
        folds = [statistics.part(fold) for fold in range(len(statistics.numerator))]
        templates = self.coupling.templates(total, folds, variance[:n_shells], layout, n_jobs=self.n_jobs)
        found = self._noise(folds, templates, layout, state.floor[:n_shells])
        weights = self.weights(total, variance[:n_shells], layout) if is_last else None
        return state.after_m_step(found, n_shells, weights=weights, templates=templates)

    def _noise(
        self, folds: list[Statistics], templates: list[Float64], layout: FeatureLayout, floor: Float64
    ) -> Float64:
        """Mean noise of images about templates that they are no part of, and of those that are gone; (S,)."""
        noise, counts = [], []
        if self.past is not None and self.past_noise is not None:
            noise, counts = [self.past_noise], [self.past.n_samples]
        used = [(fold, mu) for fold, mu in zip(folds, templates, strict=True) if fold.n_samples]
        noise += ordered_map(
            lambda sums: update_noise(*sums, layout, self.noise, floor),
            used,
            n_jobs=self.n_jobs,
            threads_only=True,
        )
        counts += [fold.n_samples for fold, _ in used]
        return np.average(noise, axis=0, weights=counts)


class EStep(Protocol):
    """Compares all images with the templates: `sweep`, but for its matchers and shells."""

    def __call__(self, matchers: list[Matcher], *, n_shells: int) -> Statistics:
        """Return the statistics of each part of the images."""


def em(e_step: EStep, m_step: MStep, schedule: Schedule, state: EMState) -> Iterator[EMState]:
    """Yield the state after each iteration of expectation maximisation; the last one is the result.

    Parameters
    ----------
    e_step : callable
        The images: ``e_step(matchers, n_shells=...)`` returns their statistics.
    m_step : MStep
        Of ordinary or cross-fitted EM.
    schedule : Schedule
        Iterations, frequency marching, and when to stop.
    state : EMState
        The start, or where the same EM was left: it goes on with the same bits.

    Notes
    -----
    One pass over the data an iteration; ordinary EM takes one more for the objective of the last. With
    cross-fitted EM there are as many M-steps an iteration as folds, and as much more memory; the likelihood
    of held-out images mostly rises, but need not.
    """
    n_passes = schedule.max_iter + (schedule.tol is not None)
    while state.iteration < n_passes and state.converged is None:
        n_shells = schedule.shells_at(state.iteration)
        statistics = e_step(m_step.matchers(state), n_shells=n_shells)  # E-step, Eq. (3.1)-(3.2)
        if state.iteration > 0 or m_step.is_held_out:  # the start of ordinary EM is no iteration
            state = replace(state, trace=state.trace.extended(*m_step.entry(state, statistics)))
        converged = schedule.has_converged(state)
        if converged or state.iteration == schedule.max_iter:  # this pass only measured the last objective
            yield replace(state, converged=converged)
            return
        is_last = state.iteration + 1 == schedule.max_iter
        state = m_step(state, statistics, n_shells, is_last=is_last)  # M-step, Eq. (3.3)-(3.4)
        del statistics  # before those of the next pass are made
        yield state
