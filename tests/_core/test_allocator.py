"""In a process that hands freed memory back, as dask's workers are started, it is kept again."""

import os
import platform
import subprocess
import sys

import pytest

from sklearn_cryoem._core.allocator import keep_freed_memory

FAULTS = """
import resource, sys
import numpy as np
from sklearn_cryoem._core.allocator import keep_freed_memory
listened = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(10):
    np.ones(2_000_000, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    np.ones(2_000_000, np.uint8)
print(listened, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    """What the call returned, and page faults of a hundred arrays made and freed."""
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536", "NUMPY_MADVISE_HUGEPAGE": "0"}
    command = [sys.executable, "-c", FAULTS, how]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    listened, number = said.split()
    return listened, int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is of glibc")
def test_memory_that_is_freed_is_used_again():
    listened, kept = faults("keep")
    assert listened == "True"
    assert 20 * kept < faults("leave")[1]


def test_nothing_is_changed_where_nothing_was_set(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    assert keep_freed_memory.__wrapped__() is False
