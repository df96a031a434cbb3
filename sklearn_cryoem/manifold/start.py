"""Where EM begins: templates on the plane of the first principal components, or random ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import Additive
from sklearn_cryoem.manifold.blocks import Blocks, FeatureLayout, sum_over_start
from sklearn_cryoem.manifold.prior import DataPower
from sklearn_cryoem.manifold.topology import LatentBasis

Float64 = NDArray[np.float64]

MAX_FEATURES_EXACT = 1500  # beyond, the covariance is never formed
N_SUBSPACE_PASSES = 8
N_EXTRA_AXES = 8
MIN_SPREAD = 1e-9  # of nodes along an axis of their embedding: they lie at one place


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
    variances, axes = _principal_axes(blocks, layout, power, basis.embedding.shape[1], rng, n_jobs)
    nodes = basis.embedding
    spread = nodes.std(axis=0)  # (E,)
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
    strongest = np.abs(axes).argmax(axis=1)
    signs = np.where(axes[np.arange(n_axes), strongest] < 0, -1.0, 1.0)  # a sign that LAPACK leaves open
    return variances, axes * signs[:, None]


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
    if block.norm is None:
        signal, noise = power.signal, power.noise
        corrected = (block.data - mean) * (signal / (signal + noise))[layout.shell].astype(dtype)
    else:
        shell = layout.shell[layout.norm_starts]
        signal, noise = power.signal[shell].astype(dtype), power.noise[shell].astype(dtype)
        wiener = signal / (signal * block.norm + noise)  # (n, Q)
        corrected = block.data - block.norm[:, layout.norm_index] * mean
        corrected *= wiener[:, layout.norm_index]
    if subspace is None:
        return _Sum((corrected.T @ corrected).astype(np.float64), len(block))
    product = corrected.T @ (corrected @ subspace.astype(dtype))
    return _Sum(product.astype(np.float64), len(block))
