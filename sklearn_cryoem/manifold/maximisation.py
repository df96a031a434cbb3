"""M-step: weights of the basis functions and noise variances from the statistics, Eq. (3.3)-(3.4).

The weights solve many symmetric systems that differ in their diagonal alone: one by one, or by Eq. (3.30).
Where EM is cross-fitted, nodes are coupled as far as neighbours look alike, Eq. (3.13).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgWarning
from scipy.linalg.blas import dsyrk, dtrsm
from scipy.linalg.lapack import dposv, dpotrf

from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem._core.validation import warn
from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.expectation import Statistics
from sklearn_cryoem.manifold.grid import LatentBasis

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

MIN_VARIANCE = 1e-6  # of the variance a shell has to start with; duplicates would drive it to 0
USUAL_STEPS = 8  # of conjugate gradients, for choosing between the two ways: 4 to 8 were seen
MAX_STEPS = 40  # beyond, the systems have little in common and are solved one by one
TOLERANCE = 1e-9  # of the residual in the norm of the mean system; float32 products have 1e-7
MAX_WIDTH = 3.5  # steps between nodes
MIN_WIDTH = 0.35  # below it neighbours have little in common, and every node is for itself


def solve_weights(
    numerator: Float64,
    denominator: Float64,
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
    numerator, denominator : ndarrays of shape (K, P) and (K, Q)
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
    ridges = ridge[:, None] * basis.has_prior  # (S, M + 1)
    solve = partial(_solve_shell, basis.phi, numerator, denominator, ridges, layout)
    solutions = list(ordered_map(solve, range(layout.n_shells), n_jobs=n_jobs, threads_only=True))
    n_singular = sum(solution.n_singular for solution in solutions)
    if n_singular:
        warn(
            f"{n_singular} of {layout.n_norms} systems for the weights are singular to working precision "
            f"with alpha down to {alpha.min():.3g}; they got their least-norm solution. Lower n_basis, or "
            "raise alpha.",
            LinAlgWarning,
        )
    return layout.confine(np.hstack([solution.weights for solution in solutions]))


def _solve_shell(
    phi: Float64, numerator: Float64, denominator: Float64, ridges: Float64, layout: FeatureLayout, shell: int
) -> Solution:
    """Weights of one shell: its systems share the prior and nearly share G."""
    features = layout.features_of(shell)
    column = layout.norm_index[features]  # of c^2, of each feature; ascending
    own = denominator[:, column[0] : column[-1] + 1]  # (K, columns of the shell)
    right = phi.T @ numerator[:, features]  # (M + 1, features of the shell)
    return solve_systems(phi, own, ridges[shell], right, column - column[0])


def update_noise(
    statistics: Statistics, templates: Float64, layout: FeatureLayout, noise: str, floor: Float64
) -> Float64:
    """Noise variance of each shell from the statistics alone, Eq. (3.4).

    Parameters
    ----------
    statistics : Statistics
        B', G' and the power of the images, of one part.
    templates : ndarray of shape (K, P)
        mu = Phi W with the new weights.
    layout : FeatureLayout
        The shells in use.
    noise : str
        One variance for all shells if it is "white", else one for each.
    floor : ndarray of shape (S,)
        No variance falls below this.

    Returns
    -------
    noise_variance : ndarray of shape (S,), float64
    """
    # einsum, so that nothing of the size of the statistics is made
    products = np.einsum("kp,kp->p", statistics.numerator, templates)
    explained = layout.sum_shells(products)  # <B', mu>, (S,)
    norms = np.einsum("kq,kq->q", statistics.denominator, layout.sum_squares(templates))  # <G', mu^2>, (Q,)
    norm_shell = layout.shell[layout.norm_starts]
    modelled = np.bincount(norm_shell, weights=norms, minlength=layout.n_shells)  # (S,)
    residual = statistics.power - 2.0 * explained + modelled  # (S,), Eq. (3.4)
    n_values = statistics.n_samples * layout.shell_sizes  # (S,)
    if noise == "white":
        residual = np.full(layout.n_shells, residual[layout.counts].sum())
        n_values = np.full(layout.n_shells, n_values[layout.counts].sum())
    return np.asarray(np.maximum(residual / n_values, floor))


class Solution(NamedTuple):
    """Weights of some features, and how many of their systems were singular."""

    weights: Float64
    n_singular: int


def solve_systems(
    phi: Float64, denominator: Float64, ridge: Float64, right: Float64, column: Int
) -> Solution:
    """Solve (Phi^T diag(G_q) Phi + diag(ridge)) W_q = right_q for every column q of `denominator`, Eq. (3.3).

    Parameters
    ----------
    phi : ndarray of shape (K, M + 1)
        Basis functions at the nodes.
    denominator : ndarray of shape (K, Q)
        Diagonal weights of each system, not negative.
    ridge : ndarray of shape (M + 1,)
        Added to the diagonal; 0 for a bias without a prior.
    right : ndarray of shape (M + 1, P)
        Right-hand sides.
    column : ndarray of shape (P,), int
        System of each right-hand side, ascending; each has at least one.

    Returns
    -------
    solution : Solution
        The least-norm one where a system is singular to working precision.

    Notes
    -----
    Either way the result is that of float64. One by one: Q (K M^2 + M^3 / 3) operations; together: those of
    one system and 4 K M for each right-hand side and step, Eq. (3.30). The cheaper way is taken.
    """
    n_nodes, n_functions = phi.shape
    factorisation = n_nodes * n_functions**2 + n_functions**3 / 3
    together = 2 * factorisation + USUAL_STEPS * 4 * n_nodes * n_functions * right.shape[1]
    if together < denominator.shape[1] * factorisation:
        weights = conjugate_gradients(phi, denominator, ridge, right, column)
        if weights is not None:
            return Solution(weights, 0)
    return _one_by_one(phi, denominator, ridge, right, column)


def _normal_matrix(phi: Float64, denominator: Float64, ridge: Float64) -> Float64:
    """Phi^T diag(denominator) Phi + diag(ridge) for one column (K,) of weights: the lower triangle."""
    left: Float64 = dsyrk(1.0, (np.sqrt(denominator)[:, None] * phi).T, lower=1)  # a sum of squares
    left[np.diag_indices_from(left)] += ridge
    return left


def _one_by_one(phi: Float64, denominator: Float64, ridge: Float64, right: Float64, column: Int) -> Solution:
    weights = np.empty_like(right)
    edges = np.searchsorted(column, np.arange(denominator.shape[1] + 1))
    n_singular = 0
    for q in range(denominator.shape[1]):
        left = _normal_matrix(phi, denominator[:, q], ridge)  # (M + 1, M + 1)
        wanted = right[:, edges[q] : edges[q + 1]]
        _, solution, info = dposv(left, wanted, lower=1)
        if info != 0 or not np.isfinite(solution).all():
            n_singular += 1
            whole = np.tril(left) + np.tril(left, -1).T
            solution = np.linalg.lstsq(whole, wanted, rcond=None)[0]
        weights[:, edges[q] : edges[q + 1]] = solution
    return Solution(weights, n_singular)


def conjugate_gradients(
    phi: Float64, denominator: Float64, ridge: Float64, right: Float64, column: Int
) -> Float64 | None:
    """Solve all systems at once, conditioned by their mean, Eq. (3.30).

    With the mean system L L^T and Psi = Phi L^-T, system q reads (1 + Psi^T diag(G_q - mean G) Psi) u = v
    for u = L^T w and v = L^-1 right: all of it near 1, so that a few steps reach the tolerance.

    Parameters
    ----------
    phi, denominator, ridge, right, column
        As in `solve_systems`.

    Returns
    -------
    weights : ndarray of shape (M + 1, P), or None
        None where the mean system is singular, or the steps do not suffice.
    """
    mean = denominator.mean(axis=1)  # (K,)
    factor, info = dpotrf(_normal_matrix(phi, mean, ridge), lower=1)
    if info != 0:
        return None
    psi = np.ascontiguousarray(dtrsm(1.0, factor, phi.T, lower=1).T)  # (K, M + 1)
    excess = (denominator - mean[:, None])[:, column]  # (K, P)
    residual: Float64 = np.ascontiguousarray(dtrsm(1.0, factor, right, lower=1))  # v, (M + 1, P)
    solution = np.zeros_like(residual)
    direction = residual.copy()
    square = np.einsum("mp,mp->p", residual, residual)  # (P,)
    goal = TOLERANCE**2 * square
    for _ in range(MAX_STEPS):
        if (square <= goal).all():
            weights: Float64 = dtrsm(1.0, factor, solution, lower=1, trans_a=1)
            return weights if np.isfinite(weights).all() else None
        along = psi @ direction  # (K, P)
        along *= excess
        image = direction + psi.T @ along  # the matrix times the direction
        curvature = np.einsum("mp,mp->p", direction, image)
        step = np.divide(square, curvature, out=np.zeros_like(square), where=curvature > 0)
        solution += step * direction
        image *= step
        residual -= image
        previous, square = square, np.einsum("mp,mp->p", residual, residual)
        direction *= np.divide(square, previous, out=np.zeros_like(square), where=previous > 0)
        direction += residual
    return None


@dataclass(frozen=True)
class Coupling:
    """Basis of each shell for templates mu = Phi_q W_q, and the prior precision of its weights. See `of`.

    Attributes
    ----------
    bases : list of ndarray of shape (K, M_q + 1) or None
        Phi of each shell; None where nodes are independent about the mean of the data.
    alpha : ndarray of shape (S,)
        Prior precision of the weights of each shell.
    mean : ndarray of shape (P,)
        Mean of the data.
    """

    bases: list[Float64 | None]
    alpha: Float64
    mean: Float64

    @classmethod
    def of(
        cls, basis: LatentBasis, alpha: Float64, layout: FeatureLayout, mean: Float64, turn: float
    ) -> Coupling:
        """Couple nodes at each shell as far as an image changes little from one to the next, Eq. (3.13).

        Parameters
        ----------
        basis : LatentBasis
            Gives the nodes.
        alpha : ndarray of shape (S,)
            Prior precision of its weights: templates get the variance that they would have with it.
        layout : FeatureLayout
            Shells, and the share of the box that the particle fills.
        mean : ndarray of shape (P,)
            Mean of the data.
        turn : float
            See `turn_of`.
        """
        step = np.sqrt(4.0 * np.pi / len(basis.nodes))  # radians between nodes that share all views
        widths = turn / (np.pi * layout.diameter * np.arange(1, layout.n_shells + 1)) / step  # (S,)
        bases: list[Float64 | None] = []
        mean_square = np.ones(layout.n_shells)
        for shell, width in enumerate(np.minimum(widths, MAX_WIDTH)):
            if width < MIN_WIDTH:
                bases.append(None)
                continue
            wide = replace(basis, basis_shape=basis.grid_shape, width=float(width))
            bases.append(wide.phi)
            mean_square[shell] = wide.mean_square
        return cls(bases, alpha * mean_square / basis.mean_square, mean)

    def templates(
        self,
        total: Statistics,
        parts: list[Statistics],
        noise_variance: Float64,
        layout: FeatureLayout,
        n_jobs: int | None = None,
    ) -> list[Float64]:
        """Templates (K, P) of the images outside of each part; c^2 is that of the shell, Eq. (3.3), (3.12).

        Parameters
        ----------
        total, parts : Statistics and list of Statistics
            Sums over all images and over those of each part.
        noise_variance : ndarray of shape (S,)
            1 / beta of each shell.
        layout, n_jobs : FeatureLayout and int, optional
            The shells in use, and the number of workers.
        """
        ridge = self.alpha[: layout.n_shells] * noise_variance / layout.information  # (S,)
        solve = partial(self._solve_shell, total, parts, ridge, layout)
        solved = ordered_map(solve, range(layout.n_shells), n_jobs=n_jobs, threads_only=True)
        return [layout.confine(np.hstack(shells)) for shells in zip(*solved, strict=True)]

    def _solve_shell(
        self, total: Statistics, parts: list[Statistics], ridge: Float64, layout: FeatureLayout, shell: int
    ) -> list[Float64]:
        columns = layout.features_of(shell), slice(shell, shell + 1)
        mean, phi = self.mean[columns[0]], self.bases[shell]
        return [_one_shell(*total.without(part, *columns), ridge[shell], mean, phi) for part in parts]


def _one_shell(
    numerator: Float64, denominator: Float64, ridge: float, mean: Float64, phi: Float64 | None
) -> Float64:
    """Templates of one shell, from sums (K, P_q) and (K, 1)."""
    if phi is None:
        regularised = np.maximum(denominator + ridge, np.finfo(np.float64).tiny)  # alpha may be 0
        return np.asarray((numerator - denominator * mean) / regularised + mean)
    column = np.zeros(numerator.shape[1], dtype=np.int64)
    ridges = np.append(np.full(phi.shape[1] - 1, ridge), 0.0)  # of the bias none
    return np.asarray(phi @ solve_systems(phi, denominator, ridges, phi.T @ numerator, column).weights)
