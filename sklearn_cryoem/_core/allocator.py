"""Freed memory is kept for the next array, where the environment of a process says otherwise."""

from __future__ import annotations

import ctypes
import logging
import os
from functools import cache

logger = logging.getLogger(__name__)

VARIABLE, DASKS_OWN = "MALLOC_TRIM_THRESHOLD_", "65536"
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # parameters of mallopt, from <malloc.h>
LARGEST_KEPT = 32 * 2**20  # bytes of an array whose memory is used again: the most that glibc allows
MOST_KEPT = 128 * 2**20  # bytes that are free at the end of the heap and stay with the process


@cache
def keep_freed_memory() -> bool:
    """Undo dask's MALLOC_TRIM_THRESHOLD_ in this process, once; True if it was set and glibc listened.

    dask starts its workers with 64 kB. From then on glibc hands every array above 128 kB back to the system
    when it is freed, and the next one begins with pages that the system has to clear: searches of the
    alignment, thousands of arrays of some hundred kB, took 1.8 times as long (decision 69). What is set here
    is close to what glibc comes to by itself where nothing is set: a worker's memory stays near its peak. Set
    the variable to another value (dask's ``distributed.nanny.pre-spawn-environ``) to have it back.
    """
    if os.environ.get(VARIABLE) != DASKS_OWN:  # somebody else's choice stays
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; TypeError on Windows
        return False
    settings = ((MMAP_THRESHOLD, LARGEST_KEPT), (TRIM_THRESHOLD, MOST_KEPT))
    listened = all([mallopt(*setting) for setting in settings])
    logger.debug("malloc keeps memory that is freed")
    return listened
