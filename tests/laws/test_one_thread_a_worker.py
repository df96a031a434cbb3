"""`n_jobs` is the only knob: no thread that BLAS or OpenMP has started does any work, whoever works."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("busy_threads.py")
KNOBS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
NEGLIGIBLE = 0.01  # of the processor time of the threads that Python knows

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(),
    reason="this system does not tell the processor time of threads",
)


@pytest.mark.parametrize(("n_jobs", "backend"), [(2, "threading"), (2, "loky")])
def test_no_thread_of_a_library_works(n_jobs, backend):
    environment = {name: value for name, value in os.environ.items() if name not in KNOBS}
    command = [sys.executable, str(PROGRAM), str(n_jobs), backend]
    found = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert found["control"] > 0.01  # two threads of BLAS would have been seen
    assert found["known"] > 0.5
    assert found["foreign"] < NEGLIGIBLE * found["known"]
    if backend == "loky":
        assert len(found["workers"]) >= 2
        others = sum(time for _, time in found["workers"])
        assert others < 0.05 * sum(time for time, _ in found["workers"])  # threads of the process pool
