"""Products of responsibilities and features that are added to sums, sparse where that is faster."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sklearn_cryoem._core.parallel import row_blocks

Floating = NDArray[np.floating[Any]]

COLUMNS_AT_ONCE = 2048  # of a product that is added: nothing else of the size of the sums exists
SPARSE_SHARE = 0.1  # of responsibilities above 0: below it sparse products win, at 2 % 5 times
MIN_SPARSE_COLUMNS = 512  # for fewer, finding the non-zero responsibilities takes longer than the product


def transposed(weights: Floating, n_columns: int) -> Any:
    """R^T (K, n) of responsibilities R (n, K), as a sparse matrix where that makes products faster.

    Parameters
    ----------
    weights : ndarray of shape (n, K)
        Responsibilities; those that do not matter are exactly 0.
    n_columns : int
        Columns of what it is multiplied with.
    """
    is_sparse = n_columns >= MIN_SPARSE_COLUMNS and np.count_nonzero(weights) < SPARSE_SHARE * weights.size
    return sparse.csr_matrix(weights.T) if is_sparse else weights.T


def with_precision_of(values: Floating, *sums: Floating) -> tuple[Floating, ...]:
    """Sums in the precision of `values`, if that is more than their own."""
    return tuple(each.astype(np.result_type(each, values), copy=False) for each in sums)


def add_product(total: Floating, left: Any, values: Floating) -> None:
    """Add ``left @ values`` to `total` in place.

    Parameters
    ----------
    total : ndarray of shape (K, C)
        Changed in place; see `with_precision_of`.
    left : matrix of shape (K, n)
        Dense or sparse, from `transposed`.
    values : ndarray of shape (n, C)
        In the precision of the products.
    """
    for columns in row_blocks(values.shape[1], COLUMNS_AT_ONCE):
        total[:, columns] += left @ values[:, columns]
