"""Long tasks in worker processes, which share what all of them need.

Threads serve tasks that spend their time in a few large matrix products (`ordered_map`). Tasks of many
short numpy calls fight over the interpreter: they run in processes. What all tasks need is handed over once,
through files that the processes of one machine find in memory; results come back the same way. Tasks never
depend on `n_jobs`, and their results are taken in the order of submission: any number of workers gives the
same bits.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import joblib
from joblib import effective_n_jobs
from joblib.externals.loky import ProcessPoolExecutor, process_executor
from joblib.parallel import ThreadingBackend, get_active_backend

from sklearn_cryoem._core.dask_workers import is_nested
from sklearn_cryoem._core.files import room_for
from sklearn_cryoem._core.memory import with_room
from sklearn_cryoem._core.shortage import worker_lost
from sklearn_cryoem._core.threads import one_openmp_thread, single_blas_threads
from sklearn_cryoem._core.workers import WINDOW, in_order

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")

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
