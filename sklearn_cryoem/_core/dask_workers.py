"""What a dask client tells of its workers: who they are, and whether results can be fetched from them."""

from __future__ import annotations

import asyncio
import logging
from typing import Any
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

KNOCK_SECONDS = 3.0  # until a worker has to answer the caller


def is_nested(backend: Any) -> bool:
    """Whether a joblib backend would send work to a dask cluster from inside of one of its tasks.

    A fit in a fold of a grid search is done where the fold is: it would wait for workers that all wait.
    """
    if not hasattr(backend, "client"):
        return False
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:  # not in a task
        return False
    return True


def homes_of(client: Any) -> list[str | None]:
    """Address of the worker of every thread of the cluster, all workers in turn; [None] if there is none."""
    threads = client.nthreads()
    rounds = range(max(threads.values(), default=0))
    return [name for number in rounds for name in sorted(threads) if number < threads[name]] or [None]


_reached: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def reaches_workers(client: Any) -> bool:
    """Whether results can be fetched from the workers themselves, past the scheduler: half the copies.

    A caller who sees nothing but the scheduler, through a tunnel, would wait for every result otherwise.
    Workers that join later are taken to be like those that are there when a client is first used.

    Raises
    ------
    TypeError
        If the client is an asynchronous one.
    """
    if client.asynchronous:
        raise TypeError(
            "The dask client is asynchronous, and fits are not. Use Client(..., asynchronous=False)."
        )
    if client not in _reached:
        addresses = list(client.nthreads())
        if not addresses:
            return False  # and ask again once there are some
        _reached[client] = client.sync(_all_answer, client, addresses)
        if not _reached[client]:
            logger.info("dask workers cannot be reached from here: results come through the scheduler")
    return _reached[client]


async def _all_answer(client: Any, addresses: list[str]) -> bool:
    from distributed import comm as comms

    async def greet(address: str) -> None:
        comm = await comms.connect(address, timeout=KNOCK_SECONDS, **client.connection_args)  # type: ignore
        await comm.close()

    try:  # a connection that is taken, but by nobody who answers, has no time limit of its own
        await asyncio.gather(*(asyncio.wait_for(greet(address), KNOCK_SECONDS) for address in addresses))
    except Exception as error:  # whatever stands in the way, the scheduler is the other way
        logger.debug("a dask worker did not answer: %r", error)
        return False
    return True
