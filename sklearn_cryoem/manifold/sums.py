"""Sums over images, R^T values: dense products, or sparse ones where R is nearly one-hot.

Products are those of the data's precision, and so are the sums over one shard, which take them up block by
block, a few columns at a time, so that nothing else of their size exists. Sums of shards are in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sklearn_cryoem._core.parallel import ordered_map, row_blocks

Floating = NDArray[np.floating[Any]]
Float64 = NDArray[np.float64]

COLUMNS_AT_ONCE = 2048
SPARSE_SHARE = (
    0.1  # of responsibilities above 0: below it, sparse products win; at 2 % they are 5 times faster
)
FEWEST_COLUMNS = 512  # for fewer, finding the non-zero responsibilities takes longer than the product


class Growing(Protocol):
    """Sums that take up others of their kind in place."""

    def in_double(self) -> Any:
        """Return the same sums in float64: the total that those of other shards are added to."""

    def __iadd__(self, other: Any, /) -> Any:
        """Add `other` and return the sum."""


Item = TypeVar("Item")
Sums = TypeVar("Sums", bound="Growing")


def transposed(weights: Floating, n_columns: int) -> Any:
    """R^T (K, n) of responsibilities R (n, K), as a sparse matrix where that makes products faster.

    Parameters
    ----------
    weights : ndarray of shape (n, K)
        Responsibilities; those that do not matter are exactly 0.
    n_columns : int
        Columns of what it is multiplied with.
    """
    is_sparse = n_columns >= FEWEST_COLUMNS and np.count_nonzero(weights) < SPARSE_SHARE * weights.size
    return sparse.csr_matrix(weights.T) if is_sparse else weights.T


def with_digits_of(values: Floating, *sums: Floating) -> tuple[Floating, ...]:
    """Sums in the precision of `values`, if that is more than their own."""
    return tuple(each.astype(np.result_type(each, values), copy=False) for each in sums)


def add_product(total: Floating, left: Any, values: Floating) -> None:
    """Add ``left @ values`` to `total` in place.

    Parameters
    ----------
    total : ndarray of shape (K, C)
        Changed in place; see `with_digits_of`.
    left : matrix of shape (K, n)
        Dense or sparse, from `transposed`.
    values : ndarray of shape (n, C)
        In the precision of the products.
    """
    for columns in row_blocks(values.shape[1], COLUMNS_AT_ONCE):
        total[:, columns] += left @ values[:, columns]


def sum_in_place(
    function: Callable[[Item], Sums],
    items: Iterable[Item],
    *,
    n_jobs: int | None = None,
    max_waiting: int = 1,
) -> Sums:
    """Sum `function(item)` in the order of the items with ``+=``, in float64.

    At most `max_waiting` results wait beside those being made: sums are large, though they do not grow with
    the data.
    """
    total: Any = None
    for part in ordered_map(function, items, n_jobs=n_jobs, max_waiting=max_waiting):
        total = part.in_double() if total is None else total.__iadd__(part)
        del part  # before the next is made
    if total is None:
        raise ValueError("There is nothing to add: no items were given.")
    summed: Sums = total
    return summed
