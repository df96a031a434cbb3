"""Memory is stated before work starts, and caches follow from how much there may be."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sklearn_cryoem._core.validation import OutOfMemoryError, WorkerLostError

VARIABLE = "SKLEARN_CRYOEM_MEMORY_LIMIT"
DEFAULT_SHARE = 0.5  # of what the machine, or the container, has
CACHE_SHARE = 0.25  # of the limit: features that are kept for the next pass
DEFAULT_CACHE_BYTES = 256 * 2**20  # as long as nobody sets a limit: the same bits on any machine of 1 GB
PROCESS_BYTES = 110e6  # of a worker process before it does anything: interpreter and libraries
ROOM_BYTES = 40 * 2**20  # BLAS takes 32 MB for a thread, at its first product; NumPy 64 kB a ufunc
_PRIVATE: dict[str, int] = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if os.name == "posix" else {}
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_TEXT = re.compile(r"\s*([0-9]*\.?[0-9]+)\s*([kmgt]?)i?b?\s*", re.IGNORECASE)

Result = TypeVar("Result")
_limit: list[float] = []  # that of set_memory_limit
estimated_bytes: ContextVar[float | None] = ContextVar("estimated_bytes", default=None)  # logged last


def set_memory_limit(limit: float | str | None) -> None:
    """Say how much memory fits may use, in this process and its workers together.

    Parameters
    ----------
    limit : float, str or None
        Bytes, or text such as ``"16 GB"``. None goes back to the default: the environment variable
        ``SKLEARN_CRYOEM_MEMORY_LIMIT``, or half of what the machine or its container has.

    Raises
    ------
    ValueError
        If this is no amount of memory.

    Notes
    -----
    A quarter of a limit that was set is for features kept from one pass to the next, and another for the
    references that an alignment keeps at every shift; without one, 256 MB and 400 MB a worker are. Blocks of
    features, banks of references and tables of posteriors are of one size from 4 GB on, and smaller below.
    A fit whose estimate is above the limit says so in a warning, and goes on: what it needs beyond all these
    follows from the number of classes, the box and `n_jobs`.

    Results have the same bits for any number of workers under one limit. They may differ in their last digits
    between limits below 4 GB, where blocks differ, and where one keeps all features and another does not:
    those that are kept were computed up to the finest resolution, others up to that of the pass.

    Examples
    --------
    >>> from sklearn_cryoem import set_memory_limit
    >>> set_memory_limit("16 GB")
    >>> set_memory_limit(None)
    """
    _limit[:] = [] if limit is None else [_bytes_of(limit, "limit")]


def memory_limit() -> float:
    """Bytes that fits may use."""
    given = given_limit()
    return DEFAULT_SHARE * machine_memory() if given is None else given


def given_limit() -> float | None:
    """The limit that somebody has set, None where nobody has; what workers elsewhere are told."""
    if _limit:
        return _limit[0]
    given = os.environ.get(VARIABLE)
    return _bytes_of(given, VARIABLE) if given else None


def cache_bytes() -> float:
    """Bytes of features that one estimator may keep from one pass to the next."""
    share = CACHE_SHARE * memory_limit()
    return min(share, DEFAULT_CACHE_BYTES) if given_limit() is None else share


def bytes_at_once(most: float, share: float) -> float:
    """`most` bytes of what every worker holds at once; `share` of the limit where that is less.

    It does not depend on the number of workers, so that blocks which follow from it, and with them the last
    digits of sums, do not either.
    """
    return min(most, share * memory_limit())


def kept_by_worker(share: float, most: float, n_workers: int) -> float:
    """Bytes that each worker may keep of what it could make again: its part of `share` of the limit.

    Where nobody has set one, no more than `most`. Results do not depend on it.
    """
    mine = share * memory_limit() / n_workers
    return min(mine, most) if given_limit() is None else mine


def claim_room(n_bytes: int = 0) -> None:
    """Raise now where the system has no more memory, rather than later, where a library would crash.

    NumPy (2.4 and before) asks for the buffers of an element-wise product while it does not hold the
    interpreter: where it finds none, its MemoryError is a segmentation fault. OpenBLAS ends the process.
    Neither can be caught, so whoever begins a piece of work asks for `ROOM_BYTES` first and gives them back:
    7 microseconds, for no page is touched.

    Parameters
    ----------
    n_bytes : int
        Asked for besides.

    Raises
    ------
    OSError
        If there are none.
    """
    mmap.mmap(-1, ROOM_BYTES + n_bytes, **_PRIVATE).close()


def with_room(function: Callable[..., Result], *args: Any) -> Result:
    """Return ``function(*args)``, a piece of a worker's work, after `claim_room`."""
    claim_room()
    return function(*args)


@cache  # a millisecond, and asked for in every pass
def machine_memory() -> float:
    """Bytes that the machine has, or that the control group of this process may use if that is less."""
    try:
        physical = float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # no POSIX
        physical = 8.0 * 2**30
    return min([physical, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def _group_limits(membership: Path, root: Path) -> list[float]:
    """Limits of the control groups of this process and of those above them."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, name = line.split(":", 2)  # version 2 has no controllers here
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        inside = top / name.lstrip("/")
        for folder in [inside, *inside.parents]:
            if folder.is_relative_to(top):
                with suppress(OSError, ValueError):  # "max" is no limit
                    limits.append(float((folder / file).read_text()))
    return limits


def _bytes_of(limit: float | str, name: str) -> float:
    if isinstance(limit, str):
        match = _TEXT.fullmatch(limit)
        n_bytes = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    else:
        n_bytes = float(limit)
    if not n_bytes > 0:
        raise ValueError(
            f"{name} is {limit!r}, expected an amount of memory. Give bytes, or text like '16 GB'."
        )
    return n_bytes


def format_bytes(n_bytes: float) -> str:
    """`n_bytes` in the unit a person would use: 1536 -> '1.5 kB' (powers of 1024)."""
    size = float(n_bytes)
    units = ["B", "kB", "MB", "GB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        del units[0]
    return f"{size:.0f} B" if units[0] == "B" else f"{size:.1f} {units[0]}"


def log_estimate(logger: logging.Logger, what: str, n_bytes: float) -> None:
    """Log at INFO how much memory `what` is about to need, and at WARNING if that is above the limit."""
    estimated_bytes.set(n_bytes)
    logger.info("%s needs about %s of memory beyond the images given.", what, format_bytes(n_bytes))
    if n_bytes > memory_limit():
        logger.warning(
            "%s needs about %s of memory, more than the limit of %s, and goes on. Ask for fewer classes or "
            "workers, a coarser max_resolution, or give more with sklearn_cryoem.set_memory_limit(%r).",
            what,
            format_bytes(n_bytes),
            format_bytes(memory_limit()),
            format_bytes(n_bytes),
        )


# ---------------------------------------------------------------- what is said when memory runs out
REMEDY = (
    "Take fewer workers (n_jobs) or classes, a coarser max_resolution, smaller blocks and caches "
    "(sklearn_cryoem.set_memory_limit, or SKLEARN_CRYOEM_MEMORY_LIMIT in the environment), or a machine with "
    "more memory."
)
CLUSTER_REMEDY = "Give each worker more memory, or fewer threads, or ask for fewer classes."
NO_THREAD = "can't start new thread"  # what the interpreter says, whatever the system lacked

_kept_in: ContextVar[str | None] = ContextVar("kept_in", default=None)


@contextmanager
def memory_watched(what: str, checkpoint: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Say what to do if the work inside finds no memory.

    Parameters
    ----------
    what : str
        Who works, for the message.
    checkpoint : path-like or None
        Folder that keeps the state of the work.

    Raises
    ------
    OutOfMemoryError
        From the error of the allocation, in this process or a worker, or of a mapping or a process that the
        system had no memory for, or of a thread that could not be started.

    Notes
    -----
    Workers that the system kills raise `WorkerLostError` where their result is missed; `advice` tells both
    errors what was estimated inside, and where its state is kept.
    """
    estimate = estimated_bytes.set(None)
    folder = _kept_in.set(None if checkpoint is None else os.fspath(checkpoint))
    try:
        yield
    except OutOfMemoryError:  # of a fit inside this one
        raise
    except (MemoryError, OSError, RuntimeError) as error:
        if not _is_shortage(error):
            raise
        found = f": {error}" if str(error) else ""
        raise OutOfMemoryError(f"{what} ran out of memory{found}. {advice()}") from error
    finally:
        _kept_in.reset(folder)
        estimated_bytes.reset(estimate)


def _is_shortage(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or str(error) == NO_THREAD


def advice(remedy: str = REMEDY) -> str:
    """What the work under way was estimated to need, what to do, and where it goes on from.

    Parameters
    ----------
    remedy : str
        What to do.
    """
    words, needed, folder = [], estimated_bytes.get(), _kept_in.get()
    if needed is not None:
        words.append(
            f"It was estimated to need about {format_bytes(needed)} beyond the images given; the memory "
            f"limit is {format_bytes(memory_limit())}, the machine has {format_bytes(machine_memory())}."
        )
    words.append(remedy)
    if folder is not None:
        words.append(f"The same call goes on from the last state kept in {folder}.")
    return " ".join(words)


def worker_lost(found: str, remedy: str = REMEDY) -> WorkerLostError:
    """The error to raise for a worker that ended before its task was done.

    Parameters
    ----------
    found : str
        What was seen.
    remedy : str
        What to do.
    """
    return WorkerLostError(f"{found}; most often the system ends one when memory runs out. {advice(remedy)}")
