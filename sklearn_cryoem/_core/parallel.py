"""Parallel work: an ordered map over threads, processes or a dask cluster, as joblib is told.

Work is cut into items without regard to `n_jobs`, and results come back in the order of the items. So the
same data and seed give the same bits for any `n_jobs` and any backend.

`ordered_map` is for items that spend their time in a few large matrix products: threads, by default.
`task_pool` is for tasks of many short numpy calls, which would fight over the interpreter: processes.
"""

from __future__ import annotations

import atexit
import logging
import operator
import os
import shutil
import signal
import tempfile
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial, reduce
from itertools import count, islice
from multiprocessing.pool import ThreadPool
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, ref

import joblib
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import ThreadingBackend, get_active_backend
from threadpoolctl import ThreadpoolController

from sklearn_cryoem._core.files import explained, room_for
from sklearn_cryoem._core.memory import (
    CLUSTER_REMEDY,
    claim_room,
    given_limit,
    set_memory_limit,
    with_room,
    worker_lost,
)

logger = logging.getLogger(__name__)

WINDOW = 4  # items in flight or waiting per worker
EVEN_SHARES = 4  # the number of even blocks is a multiple of this
IDLE_SECONDS = 300  # after which idle worker processes end of themselves
LOADED_VALUES = 2  # shared values that a worker process holds: images and the model in use
MIN_SHARED_MEMORY = 2e9  # bytes free, for shared memory to be used
MAX_LOSSES = 4  # workers of a cluster that a task may lose, as many as dask allows by default
SCATTER_SECONDS = 5.0  # until a worker that should get a value is taken to be gone
STACK_BYTES = 8 * 2**20  # addresses that a thread takes
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


Item = TypeVar("Item")
Result = TypeVar("Result")
Sum = TypeVar("Sum")  # anything that adds to its own kind


# ---------------------------------------------------------------- blocks
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


# ---------------------------------------------------------------- the ordered map
def ordered_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    n_jobs: int | None = None,
    max_waiting: int | None = None,
    threads_only: bool = False,
    place: Callable[[Item], int] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by up to `n_jobs` workers.

    Threads by default; any registered joblib backend through ``joblib.parallel_config``. On a dask cluster
    `function` is sent to each worker once, and what was lost with a worker is done by another. Every worker
    has one thread of BLAS: `n_jobs` is the only knob.

    Parameters
    ----------
    function : callable
        Called with one item. Must not depend on the order of execution. Arguments of a ``functools.partial``
        by place whose class sets `sent_once` stay with the workers of a cluster for the next map.
    items : iterable
        The work, cut independently of `n_jobs`.
    n_jobs : int or None
        As in joblib; None means 1 unless a ``parallel_config`` says otherwise.
    max_waiting : int, optional
        Results that are made or wait beyond one for each worker, however slowly they are consumed: few where
        each of them is large. By default three for each worker.
    threads_only : bool
        Whether threads of this process do the work in any case: tasks that are too short to be sent away.
    place : callable, optional
        Number of an item, by default its position: on a cluster, items of the same number go to the same
        worker in every pass, which may have kept something of them.
    """
    backend, client, n_workers = _chosen(n_jobs, "threads")
    if threads_only:
        client, n_workers = None, min(n_workers, os.cpu_count() or 1)
    with single_blas_threads():
        if client is not None:
            pool = DaskPool(client, backend.submit_kwargs, n_workers)
            rest, arguments = _without_sent_once(function)
            shared = [pool.share(value) for value in (rest, *arguments.values())]
            call = partial(_call_whole, list(arguments))
            yield from pool.map(call, items, *shared, max_waiting=max_waiting, place=place)
        elif n_workers == 1:
            yield from TaskPool().map(function, items)
        elif threads_only or isinstance(backend, ThreadingBackend):
            with _thread_pool(n_workers) as threads:
                yield from threads.map(function, items, max_waiting=max_waiting)
        else:
            window = n_workers * WINDOW if max_waiting is None else n_workers + max_waiting
            yield from _by_joblib(function, items, n_jobs, window)


def sum_in_order(
    function: Callable[[Item], Sum],
    items: Iterable[Item],
    *,
    n_jobs: int | None = None,
    place: Callable[[Item], int] | None = None,
) -> Sum:
    """Add up `function(item)` over the items, at least one, in their order; see `ordered_map`."""
    return reduce(operator.add, ordered_map(function, items, n_jobs=n_jobs, place=place))


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``read(item)`` for every item, in order; a thread reads the next one while one is worked on."""
    with single_blas_threads(), _thread_pool(1) as pool:
        yield from pool.map(read, items, max_waiting=1)


def _chosen(n_jobs: int | None, prefer: str) -> tuple[Any, Any, int]:
    """The backend that joblib is told to use, the client of its dask cluster or None, and how many workers.

    A fit inside of a task of a cluster, as in a fold of a grid search, is done where it is: it would wait for
    workers that all wait.
    """
    backend = get_active_backend(prefer=prefer)[0]
    client = getattr(backend, "client", None)
    if client is None:
        return backend, None, effective_n_jobs(n_jobs)
    from distributed import get_worker

    with suppress(ValueError):  # not in a task
        get_worker()
        return backend, None, 1
    return backend, client, effective_n_jobs(n_jobs)


def _by_joblib(
    function: Callable[[Item], Result], items: Iterable[Item], n_jobs: int | None, window: int
) -> Iterator[Result]:
    remaining, call = iter(items), partial(_call_elsewhere, given_limit(), function)
    # joblib starts new work whenever a worker is free, not when a result is taken: windows bound the wait.
    backend = get_active_backend(prefer="threads")[0]
    yields = getattr(backend, "supports_return_generator", False)  # "multiprocessing" does not
    with Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator" if yields else "list") as parallel:
        while some := list(islice(remaining, window)):
            yield from parallel(delayed(call)(item) for item in some)


def _call_elsewhere(limit: float | None, function: Callable[..., Result], *args: Any) -> Result:
    """Return ``function(*args)`` in another process or on a cluster, under the limits of who asks for it."""
    set_memory_limit(limit)
    with single_blas_threads():
        return with_room(function, *args)


# ---------------------------------------------------------------- pools of workers
@contextmanager
def task_pool(n_jobs: int | None = None) -> Iterator[TaskPool]:
    """Workers for tasks of many short numpy calls: processes, unless joblib is told otherwise.

    ``joblib.parallel_config`` chooses: "threading" gives threads, "dask" the workers of its cluster, which
    must see the particles' files under the same paths. Every worker has one thread of BLAS. The processes are
    kept for the next call, and end of themselves after five idle minutes.

    Parameters
    ----------
    n_jobs : int or None
        As in joblib; None means 1 unless a ``parallel_config`` says otherwise.

    Yields
    ------
    TaskPool
        Closed, and what was shared removed, when the block is left.
    """
    backend, client, n_workers = _chosen(n_jobs, "processes")
    with single_blas_threads():
        if client is not None:
            yield DaskPool(client, backend.submit_kwargs, n_workers)
        elif n_workers == 1:
            yield TaskPool()
        elif isinstance(backend, ThreadingBackend):
            with _thread_pool(n_workers) as pool:
                yield pool
        else:
            with _process_pool(n_workers) as pool:
                yield pool


class TaskPool:
    """Runs tasks here and now, as long as there is but one worker; see `task_pool`."""

    n_workers = 1
    folder: Path | None = None  # where worker processes of this machine find shared files

    def share(self, value: Any, *, mapped: bool = False) -> Any:
        """Hand over a value that many tasks take as an argument.

        Parameters
        ----------
        value : object
            Anything that can be pickled.
        mapped : bool
            Whether arrays in it may stay in a file (then read-only) instead of the workers' memory.
        """
        return value

    def discard(self, shared: Any) -> None:
        """Forget a shared value that no further task takes."""

    def map(
        self,
        function: Callable[..., Result],
        items: Iterable[Item],
        *shared: Any,
        max_waiting: int | None = None,
        place: Callable[[Item], int] | None = None,
    ) -> Iterator[Result]:
        """Yield ``function(item, *shared)`` for every item, in order; see `ordered_map`."""
        window = self.n_workers * WINDOW if self.n_workers > 1 else 1
        window = window if max_waiting is None else self.n_workers + max_waiting
        waiting: deque[Any] = deque()
        try:
            for position, item in enumerate(items):
                number = position if place is None else place(item)
                waiting.append(self._begin(number, function, item, *shared))
                if len(waiting) >= window:
                    yield self._result(waiting.popleft())
            while waiting:
                yield self._result(waiting.popleft())
        finally:
            for task in waiting:
                self._cancel(task)

    def _begin(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        return with_room(function, *args)

    def _result(self, task: Any) -> Any:
        return task

    def _cancel(self, task: Any) -> None:
        """Let a task not begin, if it has not yet."""


class WorkerThreads(TaskPool):
    """Tasks in threads of this process."""

    def __init__(self, threads: ThreadPool, n_workers: int) -> None:
        self._threads, self.n_workers = threads, n_workers

    def _begin(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        return self._threads.apply_async(with_room, (function, *args))

    def _result(self, task: Any) -> Any:
        return task.get()


_idle_threads: dict[tuple[int, int], list[ThreadPool]] = {}  # that nobody uses, by process and number


@atexit.register
def _end_idle_threads() -> None:
    for (process, _), pools in _idle_threads.items():
        for threads in pools if process == os.getpid() else []:
            threads.terminate()


@contextmanager
def _thread_pool(n_workers: int) -> Iterator[WorkerThreads]:
    """Threads of multiprocessing, which the interpreter does not wait for when it ends.

    They are kept for the next call: to begin some takes more than a millisecond. An item costs 25 us of
    processor time, as against 10 in `concurrent.futures`, whose threads are waited for at the end, and 130 in
    `joblib.Parallel`, which also polls every 10 ms.
    """
    idle = _idle_threads.setdefault((os.getpid(), n_workers), [])
    try:
        threads = idle.pop()
    except IndexError:
        claim_room((n_workers + 3) * STACK_BYTES)  # a thread that finds none does not say so: a hang
        threads = ThreadPool(n_workers, initializer=_blas.limit_this_thread)
    is_done, waits = False, True
    try:
        yield WorkerThreads(threads, n_workers)
        is_done = True
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        waits = False  # whoever wants to go does not wait for a thread that waits for a stalled disk
        raise
    finally:
        if is_done:
            idle.append(threads)
        else:
            threads.terminate()
            if waits:
                threads.join()


@dataclass(frozen=True)
class SharedFile:
    """A value in a file that worker processes load; arrays of `mapped` values stay in the file."""

    path: str
    mapped: bool = False


class ProcessPool(TaskPool):
    """Tasks in processes of this machine; shared values are files, in memory where there is room."""

    folder: Path  # removed when the pool is left

    def __init__(self, executor: Executor, n_workers: int, folder: Path) -> None:
        self._executor, self.n_workers, self.folder = executor, n_workers, folder
        self._numbers = count()

    def share(self, value: Any, *, mapped: bool = False) -> SharedFile:
        """Write `value` to a file that every worker loads once."""
        path = str(self.folder / f"shared{next(self._numbers)}")
        remedy = "Point JOBLIB_TEMP_FOLDER to a folder with more room, or take n_jobs=1."
        with room_for(f"what workers share in {self.folder}", remedy):
            if mapped:
                joblib.dump(value, path)
            else:  # joblib would take three milliseconds for what takes a tenth
                Path(path).write_bytes(ForkingPickler.dumps(value))
        return SharedFile(path, mapped)

    def discard(self, shared: SharedFile) -> None:
        """Remove the file; workers that have loaded it keep it until others take its place."""
        with suppress(OSError):
            os.unlink(shared.path)

    def _begin(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        with _deaths_reported():
            return self._executor.submit(_run_in_process, function, *args)

    def _result(self, task: Any) -> Any:
        with _deaths_reported():
            return task.result()

    def _cancel(self, task: Any) -> None:
        task.cancel()


@contextmanager
def _deaths_reported() -> Iterator[None]:
    """Say what it means that a worker process has ended, whoever notices first."""
    try:
        yield
    except BrokenExecutor as error:
        raise worker_lost("A worker process ended before its task was done") from error


@contextmanager
def _process_pool(n_workers: int) -> Iterator[ProcessPool]:
    """Processes of loky, those of the last call if there were as many."""
    folder = _temporary_folder()
    try:
        executor = _idle_executor(n_workers) or _new_executor(n_workers)
        try:
            yield ProcessPool(executor, n_workers, folder)
        except (KeyboardInterrupt, SystemExit):
            executor.shutdown(wait=False, kill_workers=True)  # they may wait for a file that never comes
            raise
        except BaseException:
            _keep_idle(n_workers, executor)
            raise
        _keep_idle(n_workers, executor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# Executors that nobody uses, with their numbers of workers. A pool takes one out and gives it back, so fits
# in several threads have their own. By process: those of a parent have no threads after a fork.
_idle: dict[int, list[tuple[int, ProcessPoolExecutor]]] = {}


def _idle_executor(n_workers: int) -> ProcessPoolExecutor | None:
    """The executor of the last call, unless it had another number of workers or one of them has died."""
    with suppress(IndexError):  # another thread has taken it
        kept, executor = _idle.get(os.getpid(), []).pop()
        if kept == n_workers:
            with suppress(BrokenExecutor):
                executor.submit(int).result()
                return executor
        executor.shutdown(wait=False)
    return None


def _new_executor(n_workers: int) -> ProcessPoolExecutor:
    # Where psutil is installed, loky replaces a worker that holds 300 MB more than after its first task
    # (images mapped, references prepared): a second each time. What it then warns of is no leak.
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)
    # not loky's get_reusable_executor: joblib.Parallel takes that for its own, and fails
    return ProcessPoolExecutor(n_workers, timeout=IDLE_SECONDS, env=ONE_THREAD, initializer=_ignore_ctrl_c)


def _keep_idle(n_workers: int, executor: ProcessPoolExecutor) -> None:
    """Keep an executor for the next call, and no other."""
    idle = _idle.setdefault(os.getpid(), [])
    idle.append((n_workers, executor))
    with suppress(IndexError):
        while len(idle) > 1:
            idle.pop(0)[1].shutdown(wait=False)


def _ignore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked for the work answers it


def _temporary_folder() -> Path:
    """A new folder where joblib would put large arrays: shared memory, if that is large."""
    folder = os.environ.get("JOBLIB_TEMP_FOLDER")
    with suppress(OSError):
        if folder is None and shutil.disk_usage("/dev/shm").free >= MIN_SHARED_MEMORY:
            folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    remedy = "Set TMPDIR or JOBLIB_TEMP_FOLDER to a folder that can be written to, or use n_jobs=1"
    with explained("No temporary folder can be made, through which processes pass arrays", remedy):
        return Path(tempfile.mkdtemp(prefix="sklearn_cryoem_", dir=folder))


def _run_in_process(function: Callable[..., Result], *args: Any) -> Result:
    return with_room(function, *(_loaded(arg) if isinstance(arg, SharedFile) else arg for arg in args))


@lru_cache(maxsize=LOADED_VALUES)
def _loaded(shared: SharedFile) -> Any:
    """The value, loaded once in each process: what is prepared in it for one task serves the next."""
    if shared.mapped:
        return joblib.load(shared.path, mmap_mode="r")
    return ForkingPickler.loads(Path(shared.path).read_bytes())


# ---------------------------------------------------------------- a dask cluster
class Scattered:
    """A value on a dask cluster, with a copy for each worker that needs it.

    To dask, each copy is a value of its own. Of one value that all workers hold, its memory manager drops all
    copies but one as soon as no task waits for them, and with them the features that workers keep.
    """

    def __init__(self, client: Any, get: Callable[[], Any]) -> None:
        self._client, self._get = client, get
        self._copies: dict[str | None, Any] = {}

    def at(self, home: str | None) -> Any:
        """Future of the copy of a worker; of a copy for all if that is None."""
        copy = self._copies.get(home)
        if copy is None or copy.status != "finished":
            where = {"broadcast": True} if home is None else {"workers": [home]}
            value = [self._get()]
            (copy,) = self._client.scatter(value, hash=False, timeout=SCATTER_SECONDS, **where)
            self._copies[home] = copy
        return copy


class DaskPool(TaskPool):
    """Tasks on a dask cluster; those that were lost with a worker, or its copy of a value, are sent again.

    Parameters
    ----------
    client : distributed.Client
        Connected to the scheduler.
    options : dict
        Of ``client.submit`` for every task, from ``joblib.parallel_config("dask", ...)``: priority,
        resources, workers and so on.
    n_workers : int
        Threads of the cluster.
    """

    def __init__(self, client: Any, options: dict[str, Any], n_workers: int) -> None:
        self._client, self._options, self.n_workers = client, options, n_workers
        self._homes: list[str | None] = []

    def share(self, value: Any, *, mapped: bool = False) -> Scattered:
        """Send `value` to each worker with its first task; what is `sent_once` stays for other maps."""
        if not _is_sent_once(value):
            return Scattered(self._client, lambda: value)
        known = _sent_once.setdefault(self._client, WeakKeyDictionary())
        return known.setdefault(value, Scattered(self._client, ref(value)))

    def map(self, function: Callable[..., Result], *args: Any, **how: Any) -> Iterator[Result]:
        """Yield ``function(item, *shared)`` for every item, in order; see `ordered_map`."""
        self._homes = []  # workers may have come since the last map
        return super().map(function, *args, **how)

    def _begin(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        send = partial(self._send, number, function, *args)
        return send, send()

    def _result(self, task: Any) -> Any:
        from distributed import KilledWorker

        send, future = task
        cause: BaseException | None = None
        for n_lost in range(1, MAX_LOSSES + 1):
            try:
                return future.result()
            except KilledWorker as error:
                n_lost, cause = error.allowed_failures + 1, error
                break
            except CancelledError as error:
                if future.status != "cancelled":
                    raise
                logger.info("a worker was lost, and its task is sent again: %s", error)
                cause, self._homes = error, []
                future = send()
        found = f"{n_lost} workers of the dask cluster died of the same task"
        raise worker_lost(found, CLUSTER_REMEDY) from cause

    def _send(self, number: int, function: Callable[..., Any], *args: Any) -> Any:
        """Future of a task, at the worker of its number and with that worker's copies of what is shared."""
        for attempt in range(MAX_LOSSES):
            if self._client.status != "running":
                raise CancelledError("The dask client was closed. Leave it open until the fit has ended.")
            homes = self._homes = self._homes or self._threads_of_workers()
            home = homes[(number + attempt) % len(homes)]
            where = {} if home is None else {"workers": [home], "allow_other_workers": True}
            try:
                values = [arg.at(home) if isinstance(arg, Scattered) else arg for arg in args]
            except (OSError, TimeoutError, KeyError) as error:  # the worker has just gone
                cause, self._homes = error, []
                continue
            options = {**where, **self._options}
            return self._client.submit(
                _call_elsewhere, given_limit(), function, *values, pure=False, **options
            )
        raise worker_lost("No worker of the dask cluster takes what it is sent", CLUSTER_REMEDY) from cause

    def _threads_of_workers(self) -> list[str | None]:
        """Address of the worker of each thread, all workers in turn; [None] if the user has chosen some."""
        if "workers" in self._options:
            return [None]
        while not (threads := self._client.nthreads()):
            self._client.wait_for_workers(1)
        rounds = range(max(threads.values()))
        return [name for number in rounds for name in sorted(threads) if number < threads[name]]


_sent_once: WeakKeyDictionary[Any, WeakKeyDictionary[Any, Scattered]] = WeakKeyDictionary()  # by client


def _is_sent_once(value: Any) -> bool:
    return getattr(type(value), "sent_once", False)


def _without_sent_once(function: Callable[..., Any]) -> tuple[Callable[..., Any], dict[int, Any]]:
    """A partial function without those of its arguments that are sent once, and these by their place."""
    if not isinstance(function, partial):
        return function, {}
    kept = {place: value for place, value in enumerate(function.args) if _is_sent_once(value)}
    args = [None if place in kept else value for place, value in enumerate(function.args)]
    return partial(function.func, *args, **function.keywords), kept


def _call_whole(places: list[int], item: Any, function: Any, *values: Any) -> Any:
    """Call a function of `_without_sent_once` with these arguments where they belong."""
    if not places:
        return function(item)
    args = list(function.args)
    for place, value in zip(places, values, strict=True):
        args[place] = value
    return function.func(*args, item, **function.keywords)


# ---------------------------------------------------------------- one thread of BLAS a worker
class _Blas:
    """Libraries of linear algebra in this process, limited as long as anybody works."""

    def __init__(self) -> None:
        self._lock, self._n_inside = Lock(), 0
        self._controller: Any = None
        self._limit: Any = None

    def enter(self) -> None:
        with self._lock:
            if not self._n_inside:
                self._controller = ThreadpoolController()
                self._limit = self._controller.limit(limits=1)
            self._n_inside += 1

    def leave(self) -> None:
        with self._lock:
            self._n_inside -= 1
            if not self._n_inside:
                self._limit.restore_original_limits()

    def limit_this_thread(self) -> None:
        """Let OpenMP, which counts for each thread, have one thread here as long as this thread lives."""
        self._controller.limit(limits=1)


_blas = _Blas()


@contextmanager
def single_blas_threads() -> Iterator[None]:
    """One thread of BLAS in this process as long as anybody is inside: the last to leave restores what was.

    Entering takes two milliseconds, and a microsecond where somebody is inside: whoever calls `ordered_map`
    many times enters once, outside.
    """
    _blas.enter()
    try:
        yield
    finally:
        _blas.leave()
