"""Memory that runs out under real limits: of a process, of its threads, of the workers of a dask cluster."""

import json
import os
import subprocess
import sys
import threading
import time

import dask
import distributed
import numpy as np
import pytest
from joblib import parallel_config

from sklearn_cryoem import MAPAligner
from sklearn_cryoem._core import parallel
from sklearn_cryoem._core.memory import ROOM_BYTES, memory_watched
from sklearn_cryoem._core.validation import OutOfMemoryError, WorkerLostError
from sklearn_cryoem.cli.main import explain
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import model_files

OPTIONS = {"n_clusters": 3, "n_batches": 10, "max_iter": 2, "tol": 0.0, "random_state": 0}
WORKERS = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
ROOM, TOO_MUCH = "450 MB", 320_000_000  # of a worker, which has 240 MB before it does anything
HELD_SECONDS = 60.0
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="needs limits of Linux"),
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture
def made():
    return make_particles("ribosome", 200, box=32, pixel_size=8.0, snr=0.3, n_views=3, random_state=0)


def limit_workers(executor, room):
    """Let the worker processes have `room` bytes more than now, or as much as there is if it is None."""
    import resource

    for process in executor._processes:
        with open(f"/proc/{process}/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        hard = resource.prlimit(process, resource.RLIMIT_AS)[1]
        resource.prlimit(process, resource.RLIMIT_AS, (hard if room is None else taken + room, hard))


def test_worker_processes_that_find_no_memory_end_the_fit_and_its_state_is_kept(made, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "SECONDS_BETWEEN", 0.0)
    calls, result = [], parallel.ProcessPool._result

    def result_and_limit(self, task):
        calls.append(task)
        if len(calls) == 16:  # a task that has begun has asked for its room, and must not crash without it
            limit_workers(self._executor, ROOM_BYTES // 2)
        return result(self, task)

    aligner = MAPAligner(**OPTIONS, checkpoint=tmp_path / "state", n_jobs=2)
    with monkeypatch.context() as patch:
        patch.setattr(parallel.ProcessPool, "_result", result_and_limit)
        with pytest.raises(MemoryError, match=r"MAPAligner.fit ran out of memory: .*fewer workers") as caught:
            aligner.fit(made)
    said = str(caught.value)
    assert isinstance(caught.value, OutOfMemoryError) and caught.value.__cause__ is not None
    assert "estimated to need about" in said and "MB beyond the images" in said
    assert said.endswith(f"goes on from the last state kept in {tmp_path / 'state'}.")
    assert len(list((tmp_path / "state").glob("mapaligner-*.npz"))) == 1
    ((_, executor),) = parallel._idle[os.getpid()]
    limit_workers(executor, None)
    expected = MAPAligner(**OPTIONS).fit(made)
    np.testing.assert_array_equal(aligner.fit(made).class_averages_, expected.class_averages_)


# ---------------------------------------------------------------- one process, alone or with threads
NO_MORE_THAN_NOW = """
import json, resource, sys, warnings
import numpy as np
from joblib import parallel_config
warnings.simplefilter("ignore")
from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import model_files
model_files.SECONDS_BETWEEN = 0.0
kind, n_jobs, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
stack = make_particles("ribosome", 200, box=48, pixel_size=5.0, snr=0.3, n_views=3, random_state=0)
make = {
    "map": lambda **how: MAPAligner(3, n_batches=4, max_iter=1, tol=0.0, random_state=0, **how),
    "sml": lambda **how: SMLClusterer((6, 6), max_iter=8, tol=0.0, random_state=0, **how),
}[kind]
limits = {name: resource.getrlimit(name) for name in (resource.RLIMIT_AS, resource.RLIMIT_DATA)}
kept, keep = [], model_files.CheckpointFile.keep

def keep_and_limit(self, state, **options):
    keep(self, state, **options)
    kept.append(self.path)
    if len(kept) == 2:
        pages = open("/proc/self/statm").read().split()
        for name, taken in zip(limits, (pages[0], pages[5])):
            resource.setrlimit(name, (int(taken) * resource.getpagesize(), limits[name][1]))

model_files.CheckpointFile.keep = keep_and_limit
model, said = make(n_jobs=n_jobs, checkpoint=folder), None
with parallel_config("threading"):
    try:
        model.fit(stack)
    except MemoryError as error:
        said = type(error).__name__, str(error), type(error.__cause__).__name__
    for name, limit in limits.items():
        resource.setrlimit(name, limit)
    has_state, model_files.CheckpointFile.keep = kept[0].exists(), keep
    averages = model.fit(stack).class_averages_
same = np.array_equal(averages, make().fit(stack).class_averages_)
print(json.dumps([said, has_state, same]))
"""


@pytest.mark.parametrize(("kind", "name", "n_jobs"), [("map", "MAPAligner", 1), ("sml", "SMLClusterer", 2)])
def test_a_process_that_finds_no_memory_says_so_and_goes_on_when_there_is_room(tmp_path, kind, name, n_jobs):
    # arrays of 64 kB and more are asked of the system, and given back to it: none is made in freed memory
    how = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **how, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", NO_MORE_THAN_NOW, kind, str(n_jobs), str(tmp_path / "state")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=170)
    assert done.returncode == 0, done.stderr
    (kind_of_error, said, cause), has_state, same = json.loads(done.stdout)
    assert kind_of_error == "OutOfMemoryError" and cause in ("MemoryError", "_ArrayMemoryError", "OSError")
    assert said.startswith(f"{name}.fit ran out of memory: ")
    assert "estimated to need about" in said and "Take fewer workers (n_jobs)" in said
    assert has_state and same


NO_ROOM_TO_BEGIN = """
import resource, sys
from sklearn_cryoem._core.memory import memory_watched
from sklearn_cryoem._core.parallel import ordered_map
n_jobs, begun = int(sys.argv[1]), []
list(ordered_map(abs, range(4), n_jobs=n_jobs))  # leaves stacks to the next threads, which then begin
limits = resource.getrlimit(resource.RLIMIT_AS)
n_pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (n_pages * resource.getpagesize(), limits[1]))
try:
    with memory_watched("It"):
        list(ordered_map(begun.append, range(4), n_jobs=n_jobs))
except MemoryError as error:
    said = str(error)
resource.setrlimit(resource.RLIMIT_AS, limits)
print(said, begun, list(ordered_map(abs, range(4), n_jobs=n_jobs)))
"""


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_work_without_memory_to_begin_with_is_an_error_and_neither_a_hang_nor_a_crash(n_jobs):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", NO_ROOM_TO_BEGIN, str(n_jobs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=110)
    assert done.stdout.startswith("It ran out of memory: [Errno 12]"), done.stderr
    assert done.stdout.endswith("[] [0, 1, 2, 3]\n")


def test_a_thread_that_cannot_be_started_is_a_shortage_and_other_errors_are_not():
    with (
        pytest.raises(OutOfMemoryError, match=r"can't start new thread.*fewer"),
        memory_watched("It"),
    ):
        raise RuntimeError("can't start new thread")
    with pytest.raises(RuntimeError, match=r"^something else$"), memory_watched("It"):
        raise RuntimeError("something else")
    with pytest.raises(FileNotFoundError), memory_watched("It"):
        open("/there/is/no/such/file")


def test_the_command_line_says_it_in_its_own_words():
    with pytest.raises(OutOfMemoryError) as caught, memory_watched("SMLClusterer.fit", "out/unfinished"):
        np.empty(2**50)  # more than can be addressed
    said = explain(caught.value)
    assert said.startswith("SMLClusterer.fit ran out of memory: Unable to allocate")
    for word in ("(--jobs)", "--max-resolution", "SKLEARN_CRYOEM_MEMORY_LIMIT"):
        assert word in said
    assert "last state kept in out/unfinished" in said
    assert "--jobs" in explain(WorkerLostError("A worker ended. Take fewer (n_jobs)."))


# ---------------------------------------------------------------- a dask cluster whose nannies watch
@pytest.fixture(scope="module")
def client():
    soon = {"distributed.comm.timeouts.connect": "3s", "distributed.scheduler.allowed-failures": 1}
    with dask.config.set(soon), distributed.LocalCluster(**WORKERS, memory_limit=ROOM) as local:
        with distributed.Client(local) as client:
            yield client


def takes_too_much(item):
    held = np.ones(TOO_MUCH, np.uint8)
    time.sleep(HELD_SECONDS)
    return item + int(held[0])


def take_too_much_beside():
    threading.Thread(target=takes_too_much, args=(0,), daemon=True).start()
    return os.getpid()


def is_running(process):
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of dask and tornado
def test_a_task_that_needs_more_than_the_workers_of_a_cluster_have_is_reported(client):
    client.wait_for_workers(2, timeout=60)
    with (
        parallel_config("dask"),
        parallel.task_pool() as pool,
        pytest.raises(RuntimeError, match=r"2 workers .* died of the same task.* more memory") as caught,
    ):
        list(pool.map(takes_too_much, range(1)))
    assert isinstance(caught.value, WorkerLostError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_worker_of_a_cluster_that_took_too_much_once_costs_time_alone(client, made, monkeypatch):
    client.wait_for_workers(2, timeout=60)
    taken, ended, result = [], [], parallel.DaskPool._result

    def result_and_press(self, task):
        taken.append(task)
        if len(taken) == 12:
            (process,) = client.run(take_too_much_beside, workers=sorted(client.nthreads())[:1]).values()
            began = time.monotonic()
            while is_running(process) and time.monotonic() - began < HELD_SECONDS / 2:
                time.sleep(0.1)
            ended.append(not is_running(process))
        return result(self, task)

    monkeypatch.setattr(parallel.DaskPool, "_result", result_and_press)
    with parallel_config("dask"):
        far = MAPAligner(**OPTIONS).fit(made)
    assert ended == [True], "the nanny has not ended a worker that holds more than it may"
    near = MAPAligner(**OPTIONS).fit(made)
    np.testing.assert_array_equal(far.class_averages_, near.class_averages_)
    np.testing.assert_array_equal(far.labels_, near.labels_)
