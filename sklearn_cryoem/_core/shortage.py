"""What is said when memory runs out, in one place: what ran out, how much was expected, what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from sklearn_cryoem._core.exceptions import OutOfMemoryError, WorkerLostError
from sklearn_cryoem._core.memory import estimated_bytes, format_bytes, machine_memory, memory_limit

REMEDY = (
    "Take fewer workers (n_jobs) or classes, a coarser max_resolution, smaller blocks and caches "
    "(sklearn_cryoem.set_memory_limit), or a machine with more memory."
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
