"""Tasks on a dask cluster: what they need is sent to each worker once, what they return are statistics.

A task carries its item and the names of the values that it takes. A worker that misses a value, because it
has just been started in the place of a lost one, says so; it is sent the value, and the task runs again.
Nothing depends on where a task runs, and a task that was lost with its worker is run elsewhere: same bits.

Objects of a class that sets `sent_once` (stacks, feature blocks) travel by name wherever they are part of
something else: a task over blocks of particles names them, whatever their number.
"""

from __future__ import annotations

import asyncio
import io
import logging
import pickle
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from itertools import count
from threading import Lock
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import cloudpickle

from sklearn_cryoem._core.allocator import keep_freed_memory
from sklearn_cryoem._core.dask_workers import homes_of, reaches_workers
from sklearn_cryoem._core.memory import CLUSTER_REMEDY, with_room, worker_lost
from sklearn_cryoem._core.parallel import in_order, single_blas_threads

logger = logging.getLogger(__name__)

KEPT_IN_WORKER = 8  # values: stack, blocks and a model or two
MOST_ATTEMPTS = 10  # of sending a task whose worker misses something
LOOK_SECONDS = 2.0  # after which a task that waits is looked after


_named: WeakValueDictionary[str, Parcel] = WeakValueDictionary()


class Parcel:
    """A value under the name by which workers know it."""

    def __init__(self, get: Callable[[], Any]) -> None:
        self.name = uuid.uuid4().hex
        self.get = get
        _named[self.name] = self


class Missing(NamedTuple):
    """What a worker answers that lacks values."""

    names: list[str]
    worker: str


class Sending(NamedTuple):
    """A task on its way: what to wait for, when it was sent, and what to send again."""

    future: Any
    number: int
    function: Callable[..., Any]
    args: tuple[Any, ...]
    home: str | None

    def cancel(self) -> None:
        """Let the cluster forget the task."""
        self.future.cancel()


class Cluster:
    """A dask client, and what was sent to its workers.

    Parameters
    ----------
    client : distributed.Client
        Connected to the scheduler.
    options : dict, optional
        Of ``client.submit`` for every task, from ``joblib.parallel_config("dask", ...)``: priority,
        resources, workers and so on.

    Attributes
    ----------
    bytes_sent : int
        Of shared values, counted once for each worker.
    """

    def __init__(self, client: Any, options: dict[str, Any] | None = None) -> None:
        self._client, self._options = client, options or {}
        self._is_direct = reaches_workers(client)
        self._numbers = count()
        self._sent: dict[tuple[str, str], int] = {}  # when, by name and worker
        self.bytes_sent = 0

    def share(self, value: Any) -> Parcel:
        """Send `value` to every worker, and keep it for those that join later."""
        parcel = Parcel(lambda: value)
        self._send(parcel, None)
        return parcel

    def discard(self, parcel: Parcel) -> None:
        """Let everybody forget a shared value, if they can be told: those who keep it forget the oldest."""
        try:
            self._client.run(forget, parcel.name, on_error="ignore")
        except Exception as error:  # a client that was closed; it must not hide what happened before
            logger.debug("a shared value could not be discarded: %r", error)

    def submit(self, function: Callable[..., Any], *args: Any, home: str | None = None) -> Sending:
        """Run ``function(*args)``, with the values of parcels in their place, at `home` if that is there."""
        named = [("parcel", arg.name) if isinstance(arg, Parcel) else ("value", arg) for arg in args]
        preferred = {} if home is None else {"workers": [home], "allow_other_workers": True}
        future = self._client.submit(run_task, function, named, pure=False, **{**preferred, **self._options})
        return Sending(future, next(self._numbers), function, args, home)

    def result(self, sending: Sending) -> Any:
        """What a task returned, on whichever worker it succeeded.

        Raises
        ------
        RuntimeError
            If workers die of the task again and again, or no worker keeps what it is sent.
        """
        for _ in range(MOST_ATTEMPTS):
            found, sending = self._wait(sending)
            if not isinstance(found, Missing):
                return found
            logger.info("worker %s misses %d shared values; sending them", found.worker, len(found.names))
            for name in found.names:
                sent_for = self._sent.get((name, found.worker), -1)
                if sent_for < sending.number:  # not sent since, for another task
                    self._send(_named[name], [found.worker])
            sending = self.submit(sending.function, *sending.args, home=sending.home)
        raise RuntimeError(
            "No worker of the dask cluster keeps what it is sent; they restart faster than tasks can run. "
            "Look at the log of a worker, and give each more memory."
        )

    def map(
        self,
        function: Callable[..., Any],
        items: Iterable[Any],
        window: int,
        *shared: Any,
        place: Callable[[Any], int] | None = None,
    ) -> Iterator[Any]:
        """Yield ``function(item, *shared)`` for every item, in order; at most `window` are under way.

        Items of the same place, by default those of the same number, are done by the same worker in every
        pass, as long as the workers are the same: what it kept of the last pass serves the next, and no two
        keep the same.
        """
        homes = [None] if "workers" in self._options else homes_of(self._client)
        positions = count()

        def send(item: Any) -> Sending:
            number = next(positions) if place is None else place(item)
            return self.submit(function, item, *shared, home=homes[number % len(homes)])

        return in_order(send, self.result, items, window)

    def _wait(self, sending: Sending) -> tuple[Any, Sending]:
        """Result of a task, and the task as it was sent last.

        dask forgets that others may do the task of a worker that is gone if there is no other at that moment:
        it is sent again, to anybody.
        """
        from distributed import KilledWorker

        pending = self._fetch(sending.future)
        try:
            while True:
                try:
                    return pending.result(timeout=LOOK_SECONDS), sending
                except TimeoutError:
                    if pending.done():  # just now, or by a TimeoutError of the task's own
                        return pending.result(), sending
                if sending.home is not None and sending.home not in self._client.nthreads():
                    pending.cancel()
                    sending.cancel()
                    sending = self.submit(sending.function, *sending.args)
                    pending = self._fetch(sending.future)
        except KilledWorker as error:
            found = f"{error.allowed_failures + 1} workers of the dask cluster died of the same task"
            raise worker_lost(found, CLUSTER_REMEDY) from error
        finally:
            pending.cancel()  # if the caller leaves

    def _fetch(self, future: Any) -> Future[Any]:
        """Begin to wait for a result, and to fetch it."""

        async def fetched() -> Any:
            return await self._client.gather(future, direct=self._is_direct, asynchronous=True)

        return asyncio.run_coroutine_threadsafe(fetched(), self._client.loop.asyncio_loop)

    def _send(self, parcel: Parcel, workers: list[str] | None) -> None:
        data = self._packed(parcel)
        answers = self._client.run(keep, parcel.name, data, workers=workers, on_error="ignore")
        number = next(self._numbers)
        self._sent.update({(parcel.name, worker): number for worker in answers})
        self.bytes_sent += len(data) * len(answers)

    def _packed(self, parcel: Parcel) -> bytes:
        stream = io.BytesIO()
        _ClusterPickler(stream, self, parcel.get()).dump(parcel.get())
        return stream.getvalue()

    def parcel_of(self, value: Any) -> Parcel:
        """Parcel of a value that is sent once, and is sent now if it was not yet."""
        known = _parcels_of(self._client)
        return known.setdefault(value, Parcel(ref(value)))


class _ClusterPickler(cloudpickle.CloudPickler):  # type: ignore[misc]
    """Replaces parts that are sent once by the names of their parcels."""

    def __init__(self, stream: io.BytesIO, cluster: Cluster, whole: Any) -> None:
        super().__init__(stream)
        self._cluster, self._whole = cluster, whole

    def persistent_id(self, value: Any) -> str | None:
        """Name of the parcel of `value`, if it is to have its own."""
        if value is self._whole or not getattr(type(value), "sent_once", False):
            return None
        return self._cluster.parcel_of(value).name


_known: WeakKeyDictionary[Any, WeakKeyDictionary[Any, Parcel]] = WeakKeyDictionary()


def _parcels_of(client: Any) -> WeakKeyDictionary[Any, Parcel]:
    """Parcels of the values that are sent once, for each client."""
    return _known.setdefault(client, WeakKeyDictionary())


# ---------------------------------------------------------------- in the workers
class _Lacking(Exception):
    """Names of values that are not here."""


_kept: OrderedDict[str, Any] = OrderedDict()  # bytes at first, then the value; the last one used at the end
_lock = Lock()


def keep(name: str, data: bytes) -> int:
    """Store a value that was sent; it is unpickled when a task needs it."""
    with _lock:
        _kept[name] = data
        _kept.move_to_end(name)
        while len(_kept) > KEPT_IN_WORKER:
            _kept.popitem(last=False)
    return len(data)


def forget(name: str) -> None:
    """Drop a value."""
    with _lock:
        _kept.pop(name, None)


def run_task(function: Callable[..., Any], named: list[tuple[str, Any]]) -> Any:
    """Run a task with the values it names; or say which of them are missing here."""
    keep_freed_memory()
    try:
        with _lock:
            args = [_value(arg) if kind == "parcel" else arg for kind, arg in named]
    except _Lacking as lacking:
        from distributed import get_worker

        return Missing(list(lacking.args), get_worker().address)
    with single_blas_threads():
        return with_room(function, *args)


def _value(name: str) -> Any:
    if name not in _kept:
        raise _Lacking(name)
    _kept.move_to_end(name)
    value = _kept[name]
    if isinstance(value, bytes):
        value = _kept[name] = _Unpickler(io.BytesIO(value)).load()
    return value


class _Unpickler(pickle.Unpickler):
    def persistent_load(self, name: str) -> Any:
        return _value(name)
