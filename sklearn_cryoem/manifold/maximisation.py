"""M-step: weights of the basis functions and noise variances from the statistics, Eq. (3.3)-(3.4)."""

from __future__ import annotations

import warnings
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dposv

from sklearn_cryoem._core.workers import ordered_map, row_blocks
from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.expectation import Statistics
from sklearn_cryoem.manifold.grid import LatentBasis

Float64 = NDArray[np.float64]

SYSTEMS_PER_TASK = 128
SMALLEST_VARIANCE = 1e-6  # of the variance a shell has to start with; duplicates would drive it to 0


class Solution(NamedTuple):
    """Weights of some columns of c^2, and how many of their systems were singular."""

    weights: Float64
    n_singular: int


def solve_weights(
    statistics: Statistics,
    basis: LatentBasis,
    noise_variance: Float64,
    alpha: Float64,
    layout: FeatureLayout,
    *,
    n_jobs: int | None = None,
) -> Float64:
    """Weights W (M + 1, P) that maximise the expected log posterior, Eq. (3.3).

    Parameters
    ----------
    statistics : Statistics
        B' and G' of Eq. (3.2), without the noise precision.
    basis : LatentBasis
        Phi.
    noise_variance : ndarray of shape (S,)
        1 / beta of each shell.
    alpha : ndarray of shape (S,)
        Prior precision of the weights in each shell; the bias has none.
    layout : FeatureLayout
        The shells in use.
    n_jobs : int, optional
        Number of workers.

    Returns
    -------
    weights : ndarray of shape (M + 1, P), float64

    Warns
    -----
    LinAlgWarning
        If a system is singular to working precision; it then gets its least-norm solution.

    Notes
    -----
    One Cholesky factorisation for each column of c^2: O(Q (K M^2 + M^3)).
    """
    # Divided by beta, the prior is all that noise has to say: W stays the same and the scale moderate.
    ridge = alpha * noise_variance / layout.information  # (S,)
    ridge_of_norm = ridge[layout.shell[layout.norm_starts]]  # (Q,)
    right = basis.phi.T @ statistics.cross  # (M + 1, P)
    edges = np.append(layout.norm_starts, layout.n_features)  # (Q + 1,)
    tasks = row_blocks(layout.n_norms, SYSTEMS_PER_TASK)
    solve = partial(_solve_systems, basis.phi, statistics.gram, ridge_of_norm, right, edges)
    solutions = list(ordered_map(solve, tasks, n_jobs=n_jobs))
    n_singular = sum(solution.n_singular for solution in solutions)
    if n_singular:
        warnings.warn(
            f"{n_singular} of {layout.n_norms} systems for the weights are singular to working precision "
            f"with alpha down to {alpha.min():.3g} and basis_width={basis.width:g}; they got "
            "their least-norm solution. Raise alpha, or lower basis_width or n_basis.",
            LinAlgWarning,
            stacklevel=2,
        )
    return np.hstack([solution.weights for solution in solutions])


def _solve_systems(
    phi: Float64, gram: Float64, ridge: Float64, right: Float64, edges: NDArray[np.int64], systems: slice
) -> Solution:
    """Solve (Phi^T diag(G_q) Phi + ridge_q I0) W_q = right_q for the columns q of `systems`, Eq. (3.3)."""
    columns: list[Float64] = []
    n_singular = 0
    diagonal = np.arange(phi.shape[1] - 1)  # I0: every weight but the bias
    for q in range(systems.start, systems.stop):
        wanted = right[:, edges[q] : edges[q + 1]]  # (M + 1, features of q)
        scaled = np.sqrt(gram[:, q, None]) * phi  # (K, M + 1); gram is a sum of squares
        left = dsyrk(1.0, scaled.T, lower=1)  # (M + 1, M + 1), its lower triangle
        left[diagonal, diagonal] += ridge[q]
        _, solution, info = dposv(left, wanted, lower=1)
        if info != 0 or not np.isfinite(solution).all():
            n_singular += 1
            whole = np.tril(left) + np.tril(left, -1).T
            solution = np.linalg.lstsq(whole, wanted, rcond=None)[0]
        columns.append(solution)
    return Solution(np.hstack(columns), n_singular)


def update_noise(
    statistics: Statistics, templates: Float64, layout: FeatureLayout, noise: str, floor: Float64
) -> Float64:
    """Noise variance of each shell from the statistics alone, Eq. (3.4).

    Parameters
    ----------
    statistics : Statistics
        B', G' and the power of the images.
    templates : ndarray of shape (K, P)
        mu = Phi W with the new weights.
    layout : FeatureLayout
        The shells in use.
    noise : {"white", "shell"}
        One variance for all shells, or one for each.
    floor : ndarray of shape (S,)
        No variance falls below this.

    Returns
    -------
    noise_variance : ndarray of shape (S,), float64
    """
    explained = layout.sum_shells((statistics.cross * templates).sum(axis=0))  # <B', mu>, (S,)
    norms = (statistics.gram * layout.sum_norms(templates**2)).sum(axis=0)  # <G', mu^2>, (Q,)
    norm_shell = layout.shell[layout.norm_starts]
    modelled = np.bincount(norm_shell, weights=norms, minlength=layout.n_shells)  # (S,)
    residual = statistics.power - 2.0 * explained + modelled  # (S,), Eq. (3.4)
    n_values = statistics.n_samples * layout.shell_sizes  # (S,)
    if noise == "white":
        residual = np.full(layout.n_shells, residual.sum())
        n_values = np.full(layout.n_shells, n_values.sum())
    return np.maximum(residual / n_values, floor)


def log_prior(weights: Float64, alpha: Float64, layout: FeatureLayout) -> float:
    """-alpha/2 |W|^2 without the bias: the second part of the objective, Eq. (3.5) and Eq. (2.6)."""
    squares = layout.sum_shells((weights[:-1] ** 2).sum(axis=0))  # (S,)
    return -0.5 * float(alpha @ squares)
