"""One thread for BLAS and for OpenMP in every worker: `n_jobs` is the only knob for cores.

What is written here sets libraries; processes that serve as workers get it in their environment (`tasks`).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock, local
from typing import Any

from threadpoolctl import ThreadpoolController

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
