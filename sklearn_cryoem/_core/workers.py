"""The one place that knows joblib and BLAS threads.

Work is cut into items that never depend on `n_jobs`; results come back in the order of the items and are
added in that order. So the same data and seed give the same bits for any `n_jobs` and any backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from threadpoolctl import threadpool_limits

WINDOW = 4  # items in flight or waiting per worker


class Addable(Protocol):
    """Anything that adds to its own kind: arrays, or a dataclass of statistics."""

    def __add__(self, other: Any, /) -> Any:
        """Return the sum."""


Item = TypeVar("Item")
Result = TypeVar("Result")
Statistics = TypeVar("Statistics", bound=Addable)


def row_blocks(n_rows: int, block_size: int) -> list[slice]:
    """Consecutive slices of at most `block_size` rows that cover `n_rows`, in order."""
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}, expected at least 1.")
    return [slice(start, min(start + block_size, n_rows)) for start in range(0, n_rows, block_size)]


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_jobs: int | None = None
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by up to `n_jobs` workers.

    Threads by default; any registered joblib backend through ``joblib.parallel_config``. Every worker has
    one BLAS thread: `n_jobs` is the only knob. OpenMP counts threads separately for each thread that calls
    it, so what uses OpenMP inside a worker (finufft) is told its number where it is called. At most
    4 * n_jobs results wait in memory, however slowly they are consumed.

    Parameters
    ----------
    function : callable
        Called with one item. Must not depend on the order of execution.
    items : iterable
        The work, cut independently of `n_jobs`.
    n_jobs : int or None
        As in joblib; None means 1 unless a ``parallel_config`` says otherwise.
    """
    parent = os.getpid()
    # joblib starts new work whenever a worker is free, not when a result is taken: windows bound the wait.
    window, remaining = WINDOW * effective_n_jobs(n_jobs), iter(items)
    with (
        threadpool_limits(limits=1),
        Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator") as parallel,
    ):
        while some := list(islice(remaining, window)):
            yield from parallel(delayed(_call)(function, item, parent) for item in some)


def sum_in_order(
    function: Callable[[Item], Statistics], items: Iterable[Item], *, n_jobs: int | None = None
) -> Statistics:
    """Add up `function(item)` over the items, in their order; see `ordered_map`.

    Raises
    ------
    ValueError
        If there are no items.
    """
    total: Statistics | None = None
    for part in ordered_map(function, items, n_jobs=n_jobs):
        total = part if total is None else total + part
    if total is None:
        raise ValueError("There is nothing to add: no items were given.")
    return total


def _call(function: Callable[[Item], Result], item: Item, parent: int) -> Result:
    # In another process the caller's limit does not hold; in a thread of this one it must not be touched,
    # since the first thread to leave would lift it for the others.
    if os.getpid() == parent:
        return function(item)
    with threadpool_limits(limits=1):
        return function(item)
