"""Where a fit of the manifold stands and how it goes on: parameters, trace, schedule of iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.expectation import Matcher
from sklearn_cryoem.manifold.maximisation import MIN_VARIANCE
from sklearn_cryoem.manifold.start import Start
from sklearn_cryoem.manifold.topology import LatentBasis

Float64 = NDArray[np.float64]

MAX_MARCHING_ITERATIONS = 20  # of ordinary EM
MAX_CROSS_FITTED_ITERATIONS = 60  # all of them march: each shell is settled before the next comes
MIN_ORDINARY_ITERATIONS = 4  # all shells are in at the second, and a gain can be told at the fourth


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
    is_held_out : list of bool
        Whether it is the likelihood of held-out images, Eq. (3.12), which every iteration is a stage of its
        own for.
    """

    objective: list[float] = field(default_factory=list)
    n_shells: list[int] = field(default_factory=list)
    is_held_out: list[bool] = field(default_factory=list)

    def extended(self, objective: float, n_shells: int, is_held_out: bool) -> Trace:
        """The same with one more iteration."""
        return Trace(
            [*self.objective, objective], [*self.n_shells, n_shells], [*self.is_held_out, is_held_out]
        )

    @property
    def stage(self) -> NDArray[np.int64]:
        """Number of the stage of each iteration; objectives can be compared inside a stage alone."""
        shells, held_out = self.n_shells, self.is_held_out
        changes = [i > 0 and (shells[i] != shells[i - 1] or held_out[i - 1]) for i in range(len(shells))]
        return np.cumsum(changes, dtype=np.int64)

    @property
    def last_gain(self) -> float:
        """Gain of the last iteration over the one before; infinite where they cannot be compared."""
        stage = self.stage
        if len(stage) < 2 or stage[-1] != stage[-2]:
            return float("inf")
        return self.objective[-1] - self.objective[-2]


@dataclass(frozen=True)
class EMState:
    """Where EM stands: all that its next iteration depends on.

    Attributes
    ----------
    iteration : int
        M-steps made, those of cross-fitted EM being counted on their own.
    weights : ndarray of shape (M + 1, P) or None
        W of Eq. (2.2), of the shells in use; None while cross-fitted EM is under way.
    templates : list of ndarray of shape (K, P)
        Those of each fold in cross-fitted EM; empty in ordinary EM, where they follow from the weights.
    noise_variance, floor : ndarray of shape (S,)
        Noise of all shells, and the least that it may be.
    n_shells : int
        Shells of weights and templates.
    trace : Trace
        Of the iterations made, those of cross-fitted EM first.
    converged : bool or None
        Whether the objective stood still at the end; None as long as EM goes on.
    """

    iteration: int
    weights: Any  # an array or None
    templates: list[Float64]
    noise_variance: Float64
    floor: Float64
    n_shells: int
    trace: Trace
    converged: bool | None = None

    def manifold(self, basis: LatentBasis, alpha: Float64, layout: FeatureLayout) -> Manifold:
        """Parameters reached; shells that EM has not come to have templates of zero.

        Parameters
        ----------
        basis : LatentBasis
            Phi.
        alpha : ndarray of shape (S,)
            Prior precision of the weights.
        layout : FeatureLayout
            All shells.
        """
        reached = self.weights
        if reached is None:
            reached = np.linalg.lstsq(basis.phi, np.mean(self.templates, axis=0), rcond=None)[0]
        weights = np.zeros((len(reached), layout.n_features))
        weights[:, : reached.shape[1]] = reached
        return Manifold(basis, weights, self.noise_variance, alpha)

    def after_m_step(
        self, noise: Float64, n_shells: int, *, weights: Float64 | None, templates: Sequence[Float64] = ()
    ) -> EMState:
        """State of the next iteration, which has the parameters of the first `n_shells` shells."""
        variance = self.noise_variance.copy()
        variance[:n_shells] = noise
        return replace(
            self,
            iteration=self.iteration + 1,
            weights=weights,
            templates=list(templates),
            noise_variance=variance,
            n_shells=n_shells,
        )


def first_state(start: Start, basis: LatentBasis, n_shells: int, n_folds: int) -> EMState:
    """State before the first iteration, with the templates of the start for every fold.

    Parameters
    ----------
    start : Start
        Weights of the first shells and noise of all.
    basis : LatentBasis
        Phi.
    n_shells : int
        Shells of the weights.
    n_folds : int
        Folds of cross-fitted EM; 1 for ordinary EM alone.
    """
    held_out = n_folds > 1
    return EMState(
        iteration=0,
        weights=None if held_out else start.weights,
        templates=[basis.phi @ start.weights] * n_folds if held_out else [],
        noise_variance=start.noise_variance,
        floor=MIN_VARIANCE * start.noise_variance,
        n_shells=n_shells,
        trace=Trace(),
    )


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
        return int(round(self.first_shells * (self.n_shells / self.first_shells) ** done))

    def stops(self, state: EMState) -> bool:
        """Whether the objective was measured for the last time."""
        is_last = self.tol is not None and state.iteration == self.max_iter
        return is_last or self.stands_still(state)

    def stands_still(self, state: EMState) -> bool:
        """Whether all shells are in and the last iteration gained less than `tol`."""
        is_whole = state.n_shells == self.n_shells
        return self.tol is not None and is_whole and state.trace.last_gain < self.tol


def cross_fitted_iterations(max_iter: int) -> int:
    """Count cross-fitted iterations, Eq. (3.12): 60, a fifth of `max_iter` being left; 0 if too few."""
    left = max(MIN_ORDINARY_ITERATIONS, max_iter // 5)
    return max(min(MAX_CROSS_FITTED_ITERATIONS, max_iter - left), 0)
