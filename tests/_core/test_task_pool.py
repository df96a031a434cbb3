"""Tasks of other processes: same results, same order; what is shared arrives once; the dead are reported."""

import os
import signal
import threading

import numpy as np
import pytest
from joblib import parallel_config
from threadpoolctl import threadpool_info

from sklearn_cryoem._core import parallel as tasks
from sklearn_cryoem._core.parallel import SharedFile, task_pool


def scaled(item, factor):
    return item * factor


def where(item):
    return os.getpid(), threading.get_ident()


def identity_of(item, value):
    return os.getpid(), id(value)


def fails(item):
    raise KeyError(f"item {item}")


def dies(item):
    os.kill(os.getpid(), signal.SIGKILL)


def blas_threads(item):
    np.ones((4, 4)) @ np.ones((4, 4))
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def is_writable(item, value):
    return value["array"].flags.writeable


@pytest.mark.parametrize("n_jobs", [None, 1, 2])
def test_results_come_in_the_order_of_the_items(n_jobs):
    with task_pool(n_jobs) as pool:
        factor = pool.share(np.arange(3.0))
        found = list(pool.map(scaled, range(20), factor))
    np.testing.assert_array_equal(found, np.outer(np.arange(20), np.arange(3.0)))


def test_two_workers_are_two_other_processes_that_are_kept():
    seen = []
    for _ in range(2):
        with task_pool(2) as pool:
            seen.append({process for process, _ in pool.map(where, range(20))})
    assert os.getpid() not in seen[0] | seen[1]
    assert len(seen[0] | seen[1]) <= 2


def test_one_worker_is_here():
    with task_pool(1) as pool:
        assert set(pool.map(where, range(3))) == {where(0)}


def test_threads_serve_where_joblib_is_told_so():
    with parallel_config("threading"), task_pool(2) as pool:
        places = list(pool.map(where, range(3)))
    assert {process for process, _ in places} == {os.getpid()}
    assert threading.get_ident() not in {thread for _, thread in places}


def test_a_shared_value_is_loaded_once_in_each_process():
    with task_pool(2) as pool:
        value = pool.share({"array": np.zeros(10)})
        places = set(pool.map(identity_of, range(30), value))
    assert len(places) == len({process for process, _ in places})


def test_arrays_of_mapped_values_are_read_only():
    with task_pool(2) as pool:
        value = {"array": np.zeros(1000)}
        mapped, loaded = pool.share(value, mapped=True), pool.share(value)
        assert pool.result(pool.submit(is_writable, 0, mapped)) is False
        assert pool.result(pool.submit(is_writable, 0, loaded)) is True


def test_few_values_stay_and_those_of_other_pools_go(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "_loaded", {})
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for number in range(4):
            path = str(tmp_path / folder / str(number))
            tasks._dump(number, path)
            assert SharedFile(path).get() == number
    assert list(tasks._loaded) == [str(tmp_path / "two" / n) for n in ("2", "3")]


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_every_worker_has_single_blas_threads(backend):
    with parallel_config(backend), task_pool(2) as pool:
        assert set(pool.map(blas_threads, range(8))) == {1}


def test_nothing_is_left_behind():
    with task_pool(2) as pool:
        folder = pool.folder
        shared = pool.share(np.zeros(100))
        list(pool.map(scaled, range(5), shared))
        assert [path.name for path in folder.iterdir()] == ["shared0"]
        pool.discard(shared)
        assert not list(folder.iterdir())
    assert not folder.exists()


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_an_error_in_a_task_reaches_the_caller(n_jobs):
    with pytest.raises(KeyError, match="item 0"), task_pool(n_jobs) as pool:
        list(pool.map(fails, range(3)))


def test_a_killed_worker_is_an_error_with_a_remedy_and_the_next_pool_works():
    with pytest.raises(RuntimeError, match="Take fewer workers"), task_pool(2) as pool:
        list(pool.map(dies, range(3)))
    with task_pool(2) as pool:
        assert list(pool.map(scaled, range(3), 2)) == [0, 2, 4]
