"""Work is shared among workers, as joblib is told to.

Work is cut into items that never depend on `n_jobs`; results come back in the order of the items and are
added in that order. So the same data and seed give the same bits for any `n_jobs` and any backend.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, local
from typing import Any, Protocol, TypeVar

import joblib
from joblib import Parallel, delayed, effective_n_jobs
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.parallel import ThreadingBackend, get_active_backend
from threadpoolctl import ThreadpoolController, threadpool_limits

from sklearn_cryoem._core.dask_workers import is_nested
from sklearn_cryoem._core.files import room_for
from sklearn_cryoem._core.memory import claim_room, given_limit, set_memory_limit, with_room, worker_lost

logger = logging.getLogger(__name__)

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
    max_waiting: int | None = None,
    threads_only: bool = False,
    place: Callable[[Item], int] | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by up to `n_jobs` workers.

    Threads by default; any registered joblib backend through ``joblib.parallel_config``. On a dask cluster
    `function` is sent to each worker once, and what was lost with a worker is done by another. Every worker
    has one thread of BLAS and of OpenMP: `n_jobs` is the only knob. At most 4 * n_jobs results wait in
    memory, however slowly they are consumed; fewer if `max_waiting` says so.

    Parameters
    ----------
    function : callable
        Called with one item. Must not depend on the order of execution.
    items : iterable
        The work, cut independently of `n_jobs`.
    n_jobs : int or None
        As in joblib; None means 1 unless a ``parallel_config`` says otherwise.
    max_waiting : int, optional
        Results that are made or wait beyond one for each worker: few where each of them is large.
    threads_only : bool
        Whether threads of this process do the work in any case: tasks that are too short to be sent away.
    place : callable, optional
        Number of an item, by default its position: on a cluster, items of the same number go to the same
        worker in every pass, which may have kept something of them.
    """
    backend = get_active_backend(prefer="threads")[0]
    nested = is_nested(backend)
    workers = 1 if nested else effective_n_jobs(n_jobs)
    window = WINDOW * workers if max_waiting is None else workers + max_waiting
    is_threaded = threads_only or nested or isinstance(backend, ThreadingBackend)
    if threads_only:
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


# ---------------------------------------------------------------- long tasks
IDLE_SECONDS = 300  # after which idle worker processes end of themselves
KEPT_IN_WORKER = 2  # shared values that a worker process holds: images and the model in use
SMALLEST_SHARED_MEMORY = 2e9  # bytes free
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}


@dataclass(frozen=True)
class SharedFile:
    """A value in a file, which every process loads once; arrays of `mapped` values stay in the file."""

    path: str
    mapped: bool = False

    def get(self) -> Any:
        """The value; those of other pools, and the oldest of more than a few, are forgotten."""
        folder = os.path.dirname(self.path)
        for path in list(_loaded):
            if os.path.dirname(path) != folder:
                del _loaded[path]
        value = _loaded.pop(self.path, None)
        if value is None:
            value = joblib.load(self.path, mmap_mode="r") if self.mapped else _load(self.path)
        _loaded[self.path] = value  # the last one used
        while len(_loaded) > KEPT_IN_WORKER:
            del _loaded[next(iter(_loaded))]
        return value


_loaded: dict[str, Any] = {}  # in a worker process: shared values by path, the last one used at the end


class TaskPool:
    """Runs tasks here and now, as long as there is but one worker; see `task_pool`."""

    n_workers = 1

    @property
    def folder(self) -> Path | None:
        """Where worker processes of this machine find shared files; None where workers are no such."""
        return None

    def share(self, value: Any, *, mapped: bool = False) -> Any:
        """Hand over a value that many tasks take as an argument.

        Parameters
        ----------
        value : object
            Anything that can be pickled.
        mapped : bool
            Whether large arrays in it may stay in a file (then read-only) instead of the workers' memory.
        """
        return value

    def discard(self, shared: Any) -> None:
        """Forget a shared value that no further task takes."""

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run ``function(*args)``, with shared arguments in their place; a function of a module."""
        done: Future[Result] = Future()
        done.set_result(with_room(function, *args))
        return done

    def result(self, future: Future[Result]) -> Result:
        """What a task returned."""
        return future.result()

    def map(self, function: Callable[..., Result], items: Iterable[Item], *shared: Any) -> Iterator[Result]:
        """Yield ``function(item, *shared)`` for every item, in order; few results wait at any time."""
        window = 1 if self.n_workers == 1 else self.n_workers * WINDOW
        return in_order(lambda item: self.submit(function, item, *shared), self.result, items, window)


class ThreadPool(TaskPool):
    """Tasks in threads, where ``joblib.parallel_config("threading")`` asks for them."""

    def __init__(self, executor: Executor, n_workers: int) -> None:
        self._executor, self.n_workers = executor, n_workers

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run ``function(*args)`` in a thread."""
        return self._executor.submit(with_room, function, *args)


class ProcessPool(TaskPool):
    """Tasks in processes of this machine; shared values and results pass through files in memory."""

    def __init__(self, executor: Executor, n_workers: int, folder: Path) -> None:
        self._executor, self.n_workers, self._folder = executor, n_workers, folder
        self._numbers = count()

    @property
    def folder(self) -> Path:
        """Removed when the pool is left."""
        return self._folder

    def share(self, value: Any, *, mapped: bool = False) -> SharedFile:
        """Write `value` to a file that every worker loads once."""
        path = str(self._folder / f"shared{next(self._numbers)}")
        if mapped:
            joblib.dump(value, path)
        else:
            _dump(value, path)
        return SharedFile(path, mapped)

    def discard(self, shared: SharedFile) -> None:
        """Remove the file; workers that have loaded it keep it until others take its place."""
        with suppress(OSError):
            os.unlink(shared.path)

    def submit(self, function: Callable[..., Result], *args: Any) -> Future[Result]:
        """Run ``function(*args)`` in a worker process."""
        path = str(self._folder / f"result{next(self._numbers)}")
        with _deaths_reported():
            future: Future[Any] = self._executor.submit(_run, function, args, path)
        return future

    def result(self, future: Future[Result]) -> Result:
        """What a task returned, from the file that the worker left.

        Raises
        ------
        WorkerLostError
            If a worker process was killed; what a task raised, otherwise.
        """
        with _deaths_reported():
            path: Any = future.result()
        result: Result = _load(path)
        os.unlink(path)
        return result


@contextmanager
def _deaths_reported() -> Iterator[None]:
    """Say what it means that a worker process has ended, whoever notices first."""
    try:
        yield
    except BrokenExecutor as error:
        raise worker_lost("A worker process ended before its task was done") from error


class DaskPool(TaskPool):
    """Tasks on a dask cluster: shared values are sent to each of its workers once; see `cluster`."""

    def __init__(self, cluster: Any, n_workers: int) -> None:
        self.cluster, self.n_workers = cluster, n_workers

    def share(self, value: Any, *, mapped: bool = False) -> Any:
        """Send `value` to every worker."""
        return self.cluster.share(value)

    def discard(self, shared: Any) -> None:
        """Let the workers forget the value."""
        self.cluster.discard(shared)

    def submit(self, function: Callable[..., Result], *args: Any) -> Any:
        """Run ``function(*args)`` on the cluster."""
        return self.cluster.submit(function, *args)

    def result(self, future: Any) -> Any:
        """What a task returned; tasks of a worker that was lost are done by another."""
        return self.cluster.result(future)


@contextmanager
def task_pool(n_jobs: int | None = None) -> Iterator[TaskPool]:
    """Workers for tasks of many short numpy calls: processes, unless joblib is told otherwise.

    ``joblib.parallel_config`` chooses: "threading" gives threads, "dask" the workers of its cluster, which
    must see the particles' files under the same paths. Every worker has one thread of BLAS and of OpenMP. The
    processes are kept for the next call, and end of themselves after five idle minutes.

    Parameters
    ----------
    n_jobs : int or None
        As in joblib; None means 1 unless a ``parallel_config`` says otherwise.
    """
    backend = get_active_backend(prefer="processes")[0]
    nested = is_nested(backend)
    n_workers = 1 if nested else effective_n_jobs(n_jobs)
    with single_blas_threads():
        if hasattr(backend, "client") and not nested:
            from sklearn_cryoem._core.cluster import Cluster

            yield DaskPool(Cluster(backend.client, backend.submit_kwargs), n_workers)
        elif n_workers == 1:
            yield TaskPool()
        elif isinstance(backend, ThreadingBackend):
            with ThreadPoolExecutor(n_workers, initializer=one_openmp_thread) as executor:
                yield ThreadPool(executor, n_workers)
        else:
            folder = _temporary_folder()
            try:
                yield ProcessPool(_processes(n_workers), n_workers, folder)
            except (KeyboardInterrupt, SystemExit):
                _end_processes()  # which do not hear Ctrl-C, and may wait for a file that never comes
                raise
            finally:
                shutil.rmtree(folder, ignore_errors=True)


_executors: dict[int, ProcessPoolExecutor] = {}  # by number of workers: one at most


def _processes(n_workers: int) -> ProcessPoolExecutor:
    """The executor of the last call, or a new one where that was broken or of another size."""
    executor = _executors.get(n_workers)
    if executor is None or executor._flags.broken is not None or executor._flags.shutdown:
        for old in _executors.values():
            old.shutdown(wait=False)
        _executors.clear()
        executor = _executors[n_workers] = ProcessPoolExecutor(
            n_workers, timeout=IDLE_SECONDS, env=ONE_THREAD, initializer=_begin_worker
        )
        logger.debug("started an executor of %d worker processes", n_workers)
    return executor


def _end_processes() -> None:
    for executor in _executors.values():
        executor.shutdown(wait=False, kill_workers=True)
    _executors.clear()


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked for the work answers it
    # what workers hold between tasks (images mapped, references prepared) is no leak to be restarted for
    process_executor._USE_PSUTIL = False


def _temporary_folder() -> Path:
    """A new folder through which processes pass arrays."""
    try:
        return Path(tempfile.mkdtemp(prefix="sklearn_cryoem_", dir=_folder_in_memory()))
    except OSError as error:
        raise OSError(
            error.errno,
            f"No temporary folder can be made ({error.strerror}), and processes pass arrays through one. Set "
            "TMPDIR or JOBLIB_TEMP_FOLDER to a folder that can be written to, or use n_jobs=1",
        ) from error


def _folder_in_memory() -> str | None:
    """Where joblib would put large arrays: its temporary folder, or shared memory where that is large."""
    chosen = os.environ.get("JOBLIB_TEMP_FOLDER")
    if chosen:
        return chosen
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return None
    return "/dev/shm" if free >= SMALLEST_SHARED_MEMORY and os.access("/dev/shm", os.W_OK) else None


def _run(function: Callable[..., Any], args: tuple[Any, ...], path: str) -> str:
    loaded = [arg.get() if isinstance(arg, SharedFile) else arg for arg in args]
    _dump(with_room(function, *loaded), path)
    return path


def _dump(value: Any, path: str) -> None:
    remedy = "Point JOBLIB_TEMP_FOLDER to a folder with more room, or take n_jobs=1."
    # joblib's own pickler, written in Python, takes ten times as long
    with room_for(f"what workers share in {os.path.dirname(path)}", remedy), open(path, "wb") as file:
        pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)


def _load(path: str) -> Any:
    with open(path, "rb") as file:
        return pickle.load(file)


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield ``read(item)`` for every item, in order; a thread reads the next one while one is worked on.

    Nobody waits for the thread when the consumer stops: it may wait for a stalled disk.
    """
    reader = DaemonThreads(1)
    try:
        yield from in_order(partial(reader.submit, read), Future.result, items, window=2)
    finally:
        reader.leave()


# ---------------------------------------------------------------- one thread of BLAS a worker
SWITCH_SECONDS = 5e-5


@contextmanager
def single_blas_threads() -> Iterator[None]:
    """One thread of BLAS in this process, and of OpenMP in this thread, as long as anybody is inside.

    Only the first to enter and the last to leave set them: in the process for BLAS; in the thread for OpenMP,
    which counts for each thread that calls it. The interpreter is also told to hand over between threads
    every `SWITCH_SECONDS`: with its 5 ms, a worker back from a matrix product waits for longer than the
    product took. Setting all takes 30 microseconds, and 2 where somebody is inside: whoever calls
    `ordered_map` many times enters once, outside.
    """
    with _inside_lock:
        if not _inside:
            _inside.append((_libraries("blas", len(sys.modules)).limit(limits=1), sys.getswitchinterval()))
            sys.setswitchinterval(SWITCH_SECONDS)
        else:
            _inside.append(None)
    _own.enter()
    try:
        yield
    finally:
        _own.leave()
        with _inside_lock:
            if len(_inside) > 1:
                _inside.pop()
            else:
                limit, interval = _inside.pop()
                limit.restore_original_limits()
                sys.setswitchinterval(interval)


def one_openmp_thread() -> None:
    """Let OpenMP have one thread whenever this thread calls it, as long as it lives: a worker's first act."""
    _own.enter()


class _OwnLimit(local):
    """How often a thread has entered, and what OpenMP had there before."""

    def __init__(self) -> None:
        self.depth = 0
        self.limit: Any = None

    def enter(self) -> None:
        if not self.depth:
            self.limit = _libraries("openmp", len(sys.modules)).limit(limits=1)
        self.depth += 1

    def leave(self) -> None:
        if self.depth == 1:
            self.limit.restore_original_limits()
        self.depth = max(self.depth - 1, 0)  # a generator may be closed by another thread than began it


_inside: list[Any] = []  # the limit and the interval before, and one more entry for everybody else inside
_inside_lock = Lock()
_own = _OwnLimit()


@lru_cache(maxsize=2)
def _libraries(user_api: str, n_modules: int) -> ThreadpoolController:
    """Libraries of a kind; looked for only when modules were imported since: that takes a millisecond.

    Of one kind alone, because a limit that ends sets all that its controller knows, whatever it limited.
    """
    return ThreadpoolController().select(user_api=user_api)
