"""Many symmetric systems that differ in their diagonal weights alone, Eq. (3.3): direct, or Eq. (3.30)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk, dtrsm
from scipy.linalg.lapack import dposv, dpotrf

Float64 = NDArray[np.float64]
Int = NDArray[np.int64]

USUAL_STEPS = 8  # of conjugate gradients, for choosing between the two ways: 4 to 8 were seen
MOST_STEPS = 40  # beyond, the systems have little in common and are solved one by one
TOLERANCE = 1e-9  # of the residual in the norm of the mean system; float32 products have 1e-7


class Solution(NamedTuple):
    """Weights of some features, and how many of their systems were singular."""

    weights: Float64
    n_singular: int


def solve_systems(phi: Float64, gram: Float64, ridge: float, right: Float64, column: Int) -> Solution:
    """Solve (Phi^T diag(G_q) Phi + ridge I0) W_q = right_q for every column q of `gram`, Eq. (3.3).

    Parameters
    ----------
    phi : ndarray of shape (K, M + 1)
        Basis functions at the nodes; the bias, free of the ridge, comes last.
    gram : ndarray of shape (K, Q)
        Diagonal weights of each system, not negative.
    ridge : float
        Added to the diagonal.
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
    if together < gram.shape[1] * factorisation:
        weights = conjugate_gradients(phi, gram, ridge, right, column)
        if weights is not None:
            return Solution(weights, 0)
    return _one_by_one(phi, gram, ridge, right, column)


def _normal_matrix(phi: Float64, gram: Float64, ridge: float) -> Float64:
    """Phi^T diag(gram) Phi + ridge I0 for one column (K,) of weights: the lower triangle."""
    left: Float64 = dsyrk(1.0, (np.sqrt(gram)[:, None] * phi).T, lower=1)  # gram is a sum of squares
    diagonal = np.arange(phi.shape[1] - 1)  # I0: every weight but the bias
    left[diagonal, diagonal] += ridge
    return left


def _one_by_one(phi: Float64, gram: Float64, ridge: float, right: Float64, column: Int) -> Solution:
    weights = np.empty_like(right)
    edges = np.searchsorted(column, np.arange(gram.shape[1] + 1))
    n_singular = 0
    for q in range(gram.shape[1]):
        left = _normal_matrix(phi, gram[:, q], ridge)  # (M + 1, M + 1)
        wanted = right[:, edges[q] : edges[q + 1]]
        _, solution, info = dposv(left, wanted, lower=1)
        if info != 0 or not np.isfinite(solution).all():
            n_singular += 1
            whole = np.tril(left) + np.tril(left, -1).T
            solution = np.linalg.lstsq(whole, wanted, rcond=None)[0]
        weights[:, edges[q] : edges[q + 1]] = solution
    return Solution(weights, n_singular)


def conjugate_gradients(
    phi: Float64, gram: Float64, ridge: float, right: Float64, column: Int
) -> Float64 | None:
    """Solve all systems at once, conditioned by their mean, Eq. (3.30).

    With the mean system L L^T and Psi = Phi L^-T, system q reads (1 + Psi^T diag(G_q - mean G) Psi) u = v
    for u = L^T w and v = L^-1 right: all of it near 1, so that a few steps reach the tolerance.

    Parameters
    ----------
    phi, gram, ridge, right, column
        As in `solve_systems`.

    Returns
    -------
    weights : ndarray of shape (M + 1, P), or None
        None where the mean system is singular, or the steps do not suffice.
    """
    mean = gram.mean(axis=1)  # (K,)
    factor, info = dpotrf(_normal_matrix(phi, mean, ridge), lower=1)
    if info != 0:
        return None
    psi = np.ascontiguousarray(dtrsm(1.0, factor, phi.T, lower=1).T)  # (K, M + 1)
    excess = (gram - mean[:, None])[:, column]  # (K, P)
    residual: Float64 = np.ascontiguousarray(dtrsm(1.0, factor, right, lower=1))  # v, (M + 1, P)
    solution = np.zeros_like(residual)
    direction = residual.copy()
    square = _column_squares(residual)  # (P,)
    goal = TOLERANCE**2 * square
    for _ in range(MOST_STEPS):
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
        previous, square = square, _column_squares(residual)
        direction *= np.divide(square, previous, out=np.zeros_like(square), where=previous > 0)
        direction += residual
    return None


def _column_squares(values: Float64) -> Float64:
    return np.asarray(np.einsum("mp,mp->p", values, values))
