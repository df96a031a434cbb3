"""Where a fit of the manifold stands, and where it begins: principal components, or random templates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout, sum_over_start
from sklearn_cryoem.manifold.expectation import Matcher
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.maximisation import MIN_VARIANCE
from sklearn_cryoem.manifold.prior import DataPower

Float64 = NDArray[np.float64]

MAX_FEATURES_EXACT = 1500  # beyond, the covariance is never formed
N_SUBSPACE_PASSES = 8
N_EXTRA_AXES = 8
MIN_SPREAD = 1e-9  # of nodes along an axis of their embedding: they lie at one place


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

    def matcher(self, layout: FeatureLayout, *, dtype: DTypeLike) -> Matcher:
        """Prepare the E-step for data of this layout."""
        return Matcher.of(self.templates, self.noise_variance, layout, dtype=dtype)


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
        Whether it is the likelihood of held-out images, Eq. (3.12). Each such iteration is a stage.
    above_noise : list of float
        Log evidence of an image against noise alone: what its class explains, which compares over stages.
    """

    objective: list[float] = field(default_factory=list)
    n_shells: list[int] = field(default_factory=list)
    is_held_out: list[bool] = field(default_factory=list)
    above_noise: list[float] = field(default_factory=list)

    def extended(self, *found: Any) -> Trace:
        """The same with one more iteration: an entry for each list."""
        return Trace(*([*old, new] for old, new in zip(vars(self).values(), found, strict=True)))

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
    n_moved : int or None
        Nodes of the next round of moves, Eq. (3.22); None before the first.
    """

    iteration: int
    weights: Any  # an array or None
    templates: list[Float64]
    noise_variance: Float64
    floor: Float64
    n_shells: int
    trace: Trace
    converged: bool | None = None
    n_moved: int | None = None

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
        weights = np.pad(reached, ((0, 0), (0, layout.n_features - reached.shape[1])))
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
class Start:
    """Parameters before the first E-step.

    Attributes
    ----------
    weights : ndarray of shape (M + 1, P0)
        For the shells of the initial resolution alone.
    noise_variance : ndarray of shape (S,)
        For all shells.
    """

    weights: Float64
    noise_variance: Float64


def pca_start(
    blocks: Blocks,
    basis: LatentBasis,
    power: DataPower,
    n_shells: int,
    *,
    rng: np.random.Generator,
    n_jobs: int | None = None,
) -> Start:
    """Spread the nodes over the plane of the first principal components, deviation on deviation.

    A ring lies in two of them, a torus in two for each of its circles, a sphere in three.

    Parameters
    ----------
    blocks : Blocks
        The data.
    basis : LatentBasis
        Nodes and Phi.
    power : DataPower
        Mean, signal and noise: images are CTF-corrected by a Wiener filter before anything else.
    n_shells : int
        Initial resolution.
    rng : numpy.random.Generator
        Begins the subspace iteration that replaces the exact one for more than 1,500 features.
    n_jobs : int, optional
        Number of workers.
    """
    layout = blocks.layout.truncate(n_shells)
    power = replace(power, signal=power.signal * blocks.layout.counts)  # Eq. (3.31)
    variances, axes = _principal_axes(blocks, layout, power, basis.embedding.shape[1], rng, n_jobs)
    nodes, spread = basis.embedding, basis.embedding.std(axis=0)  # (K, E), (E,)
    unit = np.divide(nodes, spread, out=np.zeros_like(nodes), where=spread > MIN_SPREAD)
    mean = power.mean[: layout.n_features]
    templates = mean + (unit * np.sqrt(variances)) @ axes  # (K, P0)
    weights = np.linalg.lstsq(basis.phi, templates, rcond=None)[0]
    noise_variance = power.variance.copy()
    if blocks.layout.n_shells == 1:
        noise_variance[:] = _variance_off_the_plane(power, variances, basis, layout)
    return Start(weights, noise_variance)


def random_start(
    basis: LatentBasis, power: DataPower, layout: FeatureLayout, *, rng: np.random.Generator
) -> Start:
    """Draw the weights from a prior that has the power of the signal, about the mean image.

    Parameters
    ----------
    basis : LatentBasis
        Phi.
    power : DataPower
        Mean and signal.
    layout : FeatureLayout
        The shells of the initial resolution.
    rng : numpy.random.Generator
        Source of the weights.
    """
    scale = np.sqrt(power.signal[layout.shell] / basis.mean_square)  # (P0,)
    weights = np.empty((basis.phi.shape[1], layout.n_features))
    weights[:-1] = rng.standard_normal((len(weights) - 1, layout.n_features)) * scale
    weights[-1] = power.mean[: layout.n_features] - basis.phi[:, :-1].mean(axis=0) @ weights[:-1]
    return Start(weights, power.variance.copy())


def _variance_off_the_plane(
    power: DataPower, variances: Float64, basis: LatentBasis, layout: FeatureLayout
) -> float:
    """Noise of plain vectors: what the plane leaves, but enough for neighbouring nodes to overlap."""
    n_features = layout.n_features
    spread = basis.embedding.std(axis=0)  # (E,)
    has_extent = spread > MIN_SPREAD
    covered = variances[has_extent]
    left = (power.variance[0] * n_features - covered.sum()) / max(n_features - len(covered), 1)
    steps = basis.node_steps[has_extent] * np.sqrt(covered) / spread[has_extent]
    overlap = (0.5 * steps.max(initial=0.0)) ** 2
    return float(min(max(left, overlap), power.variance[0])) if n_features > 1 else float(power.variance[0])


def _principal_axes(
    blocks: Blocks,
    layout: FeatureLayout,
    power: DataPower,
    n_axes: int,
    rng: np.random.Generator,
    n_jobs: int | None,
) -> tuple[Float64, Float64]:
    """Largest variances (n_axes,) and their directions (n_axes, P0) of CTF-corrected images."""
    n_features = layout.n_features
    if n_features <= MAX_FEATURES_EXACT:
        covariance = _apply_covariance(blocks, layout, power, None, n_jobs)
        values, vectors = np.linalg.eigh(covariance)
    else:
        subspace = rng.standard_normal((n_features, n_axes + N_EXTRA_AXES))
        for _ in range(N_SUBSPACE_PASSES):
            subspace = np.linalg.qr(subspace)[0]
            image = _apply_covariance(blocks, layout, power, subspace, n_jobs)  # (P0, n_axes + 8)
            values, turn = np.linalg.eigh(subspace.T @ image)
            vectors, subspace = subspace @ turn, image
    n_found = min(n_axes, len(values))
    variances, axes = np.zeros(n_axes), np.zeros((n_axes, n_features))
    variances[:n_found] = np.maximum(values[::-1][:n_found], 0.0)
    axes[:n_found] = vectors[:, ::-1][:, :n_found].T
    strongest = axes[np.arange(n_axes), np.abs(axes).argmax(axis=1)]  # LAPACK leaves its sign open
    return variances, axes * np.where(strongest < 0, -1.0, 1.0)[:, None]


def _apply_covariance(
    blocks: Blocks, layout: FeatureLayout, power: DataPower, subspace: Float64 | None, n_jobs: int | None
) -> Float64:
    """Covariance of the corrected images (P0, P0), or its product with `subspace` (P0, q)."""
    task = partial(_block_covariance, blocks, layout, power, subspace)
    total = sum_over_start(task, blocks, n_jobs=n_jobs)
    return np.asarray(total.values / total.n_samples)


@dataclass(frozen=True)
class _Sum(Additive):
    values: Float64
    n_samples: int


def _block_covariance(
    blocks: Blocks, layout: FeatureLayout, power: DataPower, subspace: Float64 | None, index: int
) -> _Sum:
    block = blocks.load(index, layout.n_shells)
    dtype = block.data.dtype
    mean = power.mean[: layout.n_features].astype(dtype)
    shell = layout.shell[layout.norm_starts]
    signal, noise = power.signal[shell].astype(dtype), power.noise[shell].astype(dtype)
    wiener = signal / (signal * block.norm + noise)  # (n, Q)
    corrected = block.data - block.norm[:, layout.norm_index] * mean
    corrected *= wiener[:, layout.norm_index]
    if subspace is None:
        return _Sum((corrected.T @ corrected).astype(np.float64), len(block))
    product = corrected.T @ (corrected @ subspace.astype(dtype))
    return _Sum(product.astype(np.float64), len(block))
