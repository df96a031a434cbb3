"""Sweeps of EM over the images of a stream that are at hand, with the sums of those that are not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout
from sklearn_cryoem.manifold.coupling import Coupling, turn_of
from sklearn_cryoem.manifold.crossfit import fold_statistics, without
from sklearn_cryoem.manifold.expectation import Matcher, Statistics, e_step
from sklearn_cryoem.manifold.fit import Manifold
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import SMALLEST_VARIANCE, log_prior, solve_weights, update_noise
from sklearn_cryoem.manifold.prior import DataPower

Float64 = NDArray[np.float64]
Sums = TypeVar("Sums", bound=Any)

N_SWEEPS = 6  # of E- and M-step for a chunk
N_ORDINARY_SWEEPS = 3  # where no image is held out


@dataclass(frozen=True)
class Swept:
    """What sweeps have found.

    Attributes
    ----------
    manifold : Manifold
        The new parameters.
    leaving : Statistics or None
        Sums over the images that are seen for the last time; None if there are none.
    held : Statistics
        Sums over the others.
    objective : list of float
        Of each sweep, for each image.
    """

    manifold: Manifold
    leaving: Statistics | None
    held: Statistics
    objective: list[float]


@dataclass(frozen=True)
class Sweeps:
    """How the M-step is done. Build with `of`.

    Attributes
    ----------
    basis : LatentBasis
        Nodes and Phi.
    alpha : ndarray of shape (S,)
        Prior precision of the weights.
    coupling : Coupling
        That of held-out sweeps, Eq. (3.13).
    layout : FeatureLayout
        Columns; one of c^2 a shell.
    noise : {"white", "shell"}
        How noise variances are pooled.
    floor : ndarray of shape (S,)
        No noise variance falls below it.
    dtype : dtype
        Precision of the matrix products.
    n_jobs : int or None
        Number of workers.
    """

    basis: LatentBasis
    alpha: Float64
    coupling: Coupling
    layout: FeatureLayout
    noise: str
    floor: Float64
    dtype: DTypeLike
    n_jobs: int | None

    @classmethod
    def of(
        cls,
        basis: LatentBasis,
        alpha: Float64,
        power: DataPower,
        layout: FeatureLayout,
        noise: str,
        dtype: DTypeLike,
        n_jobs: int | None,
    ) -> Sweeps:
        """Prepare the prior from the power of the data."""
        coupling = Coupling.of(basis, alpha, layout, power.mean, turn_of(power, layout))
        return cls(basis, alpha, coupling, layout, noise, SMALLEST_VARIANCE * power.variance, dtype, n_jobs)

    def run(
        self,
        parts: list[Blocks],
        n_folds: int,
        held: Statistics,
        left: Statistics,
        left_noise: Float64,
        manifold: Manifold,
    ) -> Swept:
        """Sweep over `parts`, the last of which stays.

        Parameters
        ----------
        parts : list of Blocks
            The images at hand.
        n_folds : int
            Folds in which images are held out, Eq. (3.12); 1 for ordinary EM.
        held : Statistics
            Sums over those of them that were there before.
        left : Statistics
            Sums over images that are gone, worth as many as its `n_samples`.
        left_noise : ndarray of shape (S,)
            Their noise.
        manifold : Manifold
            Parameters so far.
        """
        if n_folds == 1:
            return self._run_ordinary(parts, left, manifold)
        variance, objective, known = manifold.noise_variance, [], left + held
        start = manifold.templates if not known.n_samples else self._templates(known, variance)
        templates = [start] * n_folds
        for _ in range(N_SWEEPS):
            matchers = [Matcher.of(mu, variance, self.layout, dtype=self.dtype) for mu in templates]
            n_shells = self.layout.n_shells
            found = [fold_statistics(part, matchers, n_shells, n_jobs=self.n_jobs) for part in parts]
            *leaving, staying = [part.total() for part in found]
            folds = [add_up(list(same)) for same in zip(*(part.folds for part in found), strict=True)]
            del found
            at_hand = add_up([*leaving, staying])
            objective.append(at_hand.log_evidence / at_hand.n_samples)
            total, before = left + at_hand, variance
            templates = [self._templates(without(total, fold), variance) for fold in folds]
            variance = self._held_out_noise(folds, templates, left.n_samples, left_noise)
        weights = solve_weights(total, self.basis, before, self.alpha, self.layout, n_jobs=self.n_jobs)
        learnt = Manifold(self.basis, weights, variance, self.alpha)
        return Swept(learnt, add_up(leaving) if leaving else None, staying, objective)

    def _templates(self, statistics: Statistics, variance: Float64) -> Float64:
        return self.coupling.templates(statistics, variance, self.layout, n_jobs=self.n_jobs)

    def _held_out_noise(
        self, folds: list[Statistics], templates: list[Float64], n_left: int, left_noise: Float64
    ) -> Float64:
        """Noise of the images at hand about templates that they are no part of, and that of those gone."""
        noise, counts = [left_noise], [n_left]
        for fold, mu in zip(folds, templates, strict=True):
            if fold.n_samples:
                noise.append(update_noise(fold, mu, self.layout, self.noise, self.floor))
                counts.append(fold.n_samples)
        return np.average(noise, axis=0, weights=counts)

    def _run_ordinary(self, parts: list[Blocks], left: Statistics, manifold: Manifold) -> Swept:
        """Sweep with one set of templates for all images, which they are part of."""
        objective = []
        for _ in range(N_ORDINARY_SWEEPS):
            matcher = manifold.matcher(self.layout, dtype=self.dtype)
            *leaving, staying = [e_step(part, matcher, n_jobs=self.n_jobs) for part in parts]
            at_hand = add_up([*leaving, staying])
            penalty = log_prior(manifold.weights, manifold.alpha, self.layout)
            objective.append((at_hand.log_evidence + penalty) / at_hand.n_samples)
            total, variance = left + at_hand, manifold.noise_variance
            weights = solve_weights(total, self.basis, variance, self.alpha, self.layout, n_jobs=self.n_jobs)
            variance = update_noise(total, self.basis.phi @ weights, self.layout, self.noise, self.floor)
            manifold = Manifold(self.basis, weights, variance, self.alpha)
        return Swept(manifold, add_up(leaving) if leaving else None, staying, objective)


def add_up(parts: list[Sums]) -> Sums:
    """Sum of at least one."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
