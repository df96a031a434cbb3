"""M-step: weights of the basis functions and noise variances from the statistics, Eq. (3.3)-(3.4)."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.expectation import Statistics
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.systems import Solution, solve_systems

Float64 = NDArray[np.float64]

SMALLEST_VARIANCE = 1e-6  # of the variance a shell has to start with; duplicates would drive it to 0


def solve_weights(
    statistics: Statistics,
    basis: LatentBasis,
    noise_variance: Float64,
    alpha: Float64,
    layout: FeatureLayout,
    *,
    n_jobs: int | None = None,
) -> Float64:
    """Weights W (M + 1, P) that maximise the expected log posterior, Eq. (3.3), confined by Eq. (3.16).

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
        Number of workers, which share the shells.

    Returns
    -------
    weights : ndarray of shape (M + 1, P), float64

    Warns
    -----
    LinAlgWarning
        If a system is singular to working precision; it then gets its least-norm solution.

    Notes
    -----
    One system for each column of c^2. A shell with few columns (no CTF, or no astigmatism) factorises each,
    O(K M^2 + M^3); a shell with many factorises their mean alone and lets conjugate gradients do the rest,
    O(K M) a feature and step, Eq. (3.30).
    """
    # Divided by beta, the prior is all that noise has to say: W stays the same and the scale moderate.
    ridge = alpha * noise_variance / layout.information  # (S,)
    solve = partial(_solve_shell, basis.phi, statistics, ridge, layout)
    solutions = list(ordered_map(solve, range(layout.n_shells), n_jobs=n_jobs, threads_only=True))
    n_singular = sum(solution.n_singular for solution in solutions)
    if n_singular:
        warnings.warn(
            f"{n_singular} of {layout.n_norms} systems for the weights are singular to working precision "
            f"with alpha down to {alpha.min():.3g} and a basis width of {basis.width:g}; they "
            "got their least-norm solution. Lower n_basis, lower basis_width, or raise alpha.",
            LinAlgWarning,
            stacklevel=2,
        )
    return layout.confine(np.hstack([solution.weights for solution in solutions]))


def _solve_shell(
    phi: Float64, statistics: Statistics, ridge: Float64, layout: FeatureLayout, shell: int
) -> Solution:
    """Weights of one shell: its systems share the prior and nearly share G."""
    features = layout.features_of(shell)
    column = layout.norm_index[features]  # of c^2, of each feature; ascending
    gram = statistics.gram[:, column[0] : column[-1] + 1]  # (K, columns of the shell)
    right = phi.T @ statistics.cross[:, features]  # (M + 1, features of the shell)
    return solve_systems(phi, gram, float(ridge[shell]), right, column - column[0])


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
    # einsum, so that nothing of the size of the statistics is made
    products = np.einsum("kp,kp->p", statistics.cross, templates)
    explained = layout.sum_shells(products)  # <B', mu>, (S,)
    norms = np.einsum("kq,kq->q", statistics.gram, layout.sum_squares(templates))  # <G', mu^2>, (Q,)
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
