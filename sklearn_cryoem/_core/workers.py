"""Work is shared among workers, as joblib is told to.

Work is cut into items that never depend on `n_jobs`; results come back in the order of the items and are
added in that order. So the same data and seed give the same bits for any `n_jobs` and any backend.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from joblib.parallel import ThreadingBackend, get_active_backend
from threadpoolctl import threadpool_limits

from sklearn_cryoem._core.dask_workers import is_nested
from sklearn_cryoem._core.memory import claim_room, given_limit, set_memory_limit, with_room
from sklearn_cryoem._core.threads import one_openmp_thread, single_blas_threads

WINDOW = 4  # items in flight or waiting per worker
EVEN_SHARES = 4  # the number of even blocks is a multiple of this


class Addable(Protocol):
    """Anything that adds to its own kind: arrays, or a dataclass of statistics."""

    def __add__(self, other: Any, /) -> Any:
        """Return the sum."""


class Cancellable(Protocol):
    """A task under way."""

    def cancel(self) -> Any:
        """Let it not begin, if it has not yet."""


Item = TypeVar("Item")
Task = TypeVar("Task", bound=Cancellable)
Result = TypeVar("Result")
Statistics = TypeVar("Statistics", bound=Addable)


def row_blocks(n_rows: int, block_size: int) -> list[slice]:
    """Consecutive slices of at most `block_size` rows that cover `n_rows`, in order."""
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}, expected at least 1.")
    return [slice(start, min(start + block_size, n_rows)) for start in range(0, n_rows, block_size)]


def even_blocks(n_rows: int, largest: int, shares: int = EVEN_SHARES) -> list[slice]:
    """Consecutive slices of nearly equal length, at most `largest`, that cover `n_rows`, in order.

    Their number is a multiple of `shares` where there are so many rows: two or four workers get the same
    load. What one worker does by itself takes 1.
    """
    if largest < 1:
        raise ValueError(f"largest is {largest}, expected at least 1.")
    n_blocks = min(n_rows, shares * -(-n_rows // (shares * largest)))
    ends = [n_rows * (i + 1) // n_blocks for i in range(n_blocks)]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    n_jobs: int | None = None,
    spare: int | None = None,
    here: bool = False,
    place: Callable[[Item], int] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by up to `n_jobs` workers.

    Threads by default; any registered joblib backend through ``joblib.parallel_config``. On a dask cluster
    `function` is sent to each worker once, and what was lost with a worker is done by another. Every worker
    has one thread of BLAS and of OpenMP: `n_jobs` is the only knob. At most 4 * n_jobs results wait in
    memory, however slowly they are consumed; fewer if `spare` says so.

    Parameters
    ----------
    function : callable
        Called with one item. Must not depend on the order of execution.
    items : iterable
        The work, cut independently of `n_jobs`.
    n_jobs : int or None
        As in joblib; None means 1 unless a ``parallel_config`` says otherwise.
    spare : int, optional
        Results that are made or wait beyond one for each worker: few where each of them is large.
    here : bool
        Whether threads of this process do the work in any case: tasks that are too short to be sent away.
    place : callable, optional
        Number of an item, by default its position: on a cluster, items of the same number go to the same
        worker in every pass, which may have kept something of them.
    """
    backend = get_active_backend(prefer="threads")[0]
    nested = is_nested(backend)
    workers = 1 if nested else effective_n_jobs(n_jobs)
    window = WINDOW * workers if spare is None else workers + spare
    is_threaded = here or nested or isinstance(backend, ThreadingBackend)
    if here:
        workers = min(workers, os.cpu_count() or 1)
    function = partial(with_room, function)
    with single_blas_threads():
        if workers == 1 and is_threaded:
            yield from map(function, items)
        elif is_threaded:
            yield from _on_threads(function, items, workers, window)
        elif hasattr(backend, "client"):
            yield from _on_cluster(backend, function, items, window, place)
        else:
            yield from _by_joblib(function, items, n_jobs, window)


def _on_threads(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int, window: int
) -> Iterator[Result]:
    # a tenth of joblib's time for each item, and no worker waits for the others between windows
    pool = DaemonThreads(workers)
    try:
        yield from in_order(partial(pool.submit, function), Future.result, items, window)
    except (KeyboardInterrupt, SystemExit):
        pool.leave()  # whoever wants to go does not wait for a thread that waits for a stalled disk
        raise
    finally:
        pool.close()


def in_order(
    submit: Callable[[Item], Task], result: Callable[[Task], Result], items: Iterable[Item], window: int
) -> Iterator[Result]:
    """Yield ``result(submit(item))`` for every item, in order, with at most `window` tasks under way.

    Parameters
    ----------
    submit : callable
        Begins the task of an item; what it returns can be cancelled.
    result : callable
        Waits for a task and returns what came of it.
    items : iterable
        The work.
    window : int
        Tasks that are done or wait at any time; those left when the consumer stops are cancelled.
    """
    waiting: deque[Task] = deque()
    try:
        for item in items:
            waiting.append(submit(item))
            if len(waiting) >= window:
                yield result(waiting.popleft())
        while waiting:
            yield result(waiting.popleft())
    finally:
        for task in waiting:
            task.cancel()


class DaemonThreads:
    """Threads that the interpreter does not wait for when it ends: `ThreadPoolExecutor` would.

    Parameters
    ----------
    n_threads : int
        How many.

    Raises
    ------
    OSError
        If the system has no memory for another thread.
    RuntimeError
        If it has no other thread.
    """

    def __init__(self, n_threads: int) -> None:
        self._tasks: SimpleQueue[Any] = SimpleQueue()
        self._threads: list[Thread] = []
        try:
            for _ in range(n_threads):
                claim_room()  # a thread that finds none as it begins never says that it has begun: a hang
                self._threads.append(Thread(target=self._work, daemon=True))
                self._threads[-1].start()
        except (OSError, RuntimeError):  # no memory, or no thread
            self.leave()
            raise

    def submit(self, function: Callable[[Item], Result], item: Item) -> Future[Result]:
        """Have ``function(item)`` done by the next thread that is free."""
        future: Future[Result] = Future()
        self._tasks.put((future, function, item))
        return future

    def close(self) -> None:
        """Let the threads end, and wait until they have."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()

    def leave(self) -> None:
        """Let the threads end, and wait for none of them."""
        for _ in self._threads:
            self._tasks.put(None)
        self._threads = []

    def _work(self) -> None:
        one_openmp_thread()
        while (task := self._tasks.get()) is not None:
            future, function, item = task
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(item))
                except BaseException as error:
                    future.set_exception(error)
            del task, future, function, item


def _by_joblib(
    function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int | None, window: int
) -> Iterator[Result]:
    parent, limit, remaining = os.getpid(), given_limit(), iter(items)
    # joblib starts new work whenever a worker is free, not when a result is taken: windows bound the wait.
    backend = get_active_backend(prefer="threads")[0]
    yields = getattr(backend, "supports_return_generator", False)  # "multiprocessing" does not
    with Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator" if yields else "list") as parallel:
        while some := list(islice(remaining, window)):
            yield from parallel(delayed(_call)(function, item, parent, limit) for item in some)


def _on_cluster(
    backend: Any,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    window: int,
    place: Callable[[Item], int] | None,
) -> Iterator[Result]:
    from sklearn_cryoem._core.cluster import Cluster

    cluster = Cluster(backend.client, backend.submit_kwargs)
    shared = cluster.share(function)
    try:
        yield from cluster.map(_applied, items, window, shared, given_limit(), place=place)
    finally:
        cluster.discard(shared)


def _applied(item: Item, function: Callable[[Item], Result], limit: float | None) -> Result:
    set_memory_limit(limit)
    return function(item)


def sum_in_order(
    function: Callable[[Item], Statistics],
    items: Iterable[Item],
    *,
    n_jobs: int | None = None,
    place: Callable[[Item], int] | None = None,
) -> Statistics:
    """Add up `function(item)` over the items, in their order; see `ordered_map`.

    Raises
    ------
    ValueError
        If there are no items.
    """
    total: Statistics | None = None
    for part in ordered_map(function, items, n_jobs=n_jobs, place=place):
        total = part if total is None else total + part
    if total is None:
        raise ValueError("There is nothing to add: no items were given.")
    return total


def _call(function: Callable[[Item], Result], item: Item, parent: int, limit: float | None) -> Result:
    # In another process the caller's limits do not hold; in a thread of this one they must not be touched,
    # since the first thread to leave would lift that of BLAS for the others.
    if os.getpid() == parent:
        return function(item)
    set_memory_limit(limit)
    with threadpool_limits(limits=1):
        return function(item)
