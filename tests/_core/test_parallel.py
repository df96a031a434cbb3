"""Work is cut independently of n_jobs, results keep their order, what is shared arrives, losses are told."""

import multiprocessing
import operator
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import finufft  # noqa: F401 - brings OpenMP with it
import numpy as np
import pytest
from joblib import parallel_config
from threadpoolctl import threadpool_info, threadpool_limits

from sklearn_cryoem._core.parallel import (
    WINDOW,
    _idle,
    even_blocks,
    ordered_map,
    read_ahead,
    row_blocks,
    single_blas_threads,
    sum_in_order,
    task_pool,
)


@pytest.mark.parametrize(("n_rows", "block_size"), [(0, 4), (1, 4), (8, 4), (9, 4), (3, 100)])
def test_row_blocks_cover_every_row_once_in_order(n_rows, block_size):
    blocks = row_blocks(n_rows, block_size)
    rows = [row for block in blocks for row in range(block.start, block.stop)]
    assert rows == list(range(n_rows))
    assert all(block.stop - block.start <= block_size for block in blocks)


def test_row_blocks_reject_an_empty_block():
    with pytest.raises(ValueError, match="expected at least 1"):
        row_blocks(10, 0)


@pytest.mark.parametrize("n_jobs", [None, 1, 2, 4])
def test_results_come_in_the_order_of_the_items_even_if_the_first_is_slowest(n_jobs):
    def slow_first(item):
        time.sleep(0.02 if item == 0 else 0.0)
        return item * item

    assert list(ordered_map(slow_first, range(9), n_jobs=n_jobs)) == [i * i for i in range(9)]


@pytest.mark.parametrize("n_jobs", [1, 2, 3])
def test_a_slow_consumer_holds_the_workers_back(n_jobs):
    started = []
    results = ordered_map(started.append, range(100), n_jobs=n_jobs)
    for _ in range(5):
        next(results)
    time.sleep(0.05)
    assert len(started) <= 5 + 2 * WINDOW * n_jobs
    results.close()


def test_a_sum_has_the_same_bits_for_any_number_of_workers(rng):
    parts = [rng.standard_normal(1000).astype(np.float32) * 10.0**k for k in range(-3, 5)]
    sums = [sum_in_order(lambda i: parts[i], range(8), n_jobs=n_jobs) for n_jobs in (1, 2, 3)]
    assert all(np.array_equal(sums[0], other) for other in sums[1:])


def library_threads(_item, kind="blas"):
    """Threads that any library of a kind would start, called here."""
    np.ones((4, 4)) @ np.ones((4, 4))
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == kind)


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_every_worker_has_one_thread_of_blas(backend):
    with parallel_config(backend), threadpool_limits(limits=3):
        assert set(ordered_map(library_threads, range(4), n_jobs=2)) == {1}
        with task_pool(2) as pool:
            assert set(pool.map(library_threads, range(8))) == {1}
        assert library_threads(None) == 3


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_workers_that_are_threads_have_one_of_openmp_each(n_jobs):
    with threadpool_limits(limits=3):
        assert set(ordered_map(partial(library_threads, kind="openmp"), range(6), n_jobs=n_jobs)) == {1}
        assert library_threads(None, "openmp") == 3


def test_the_limit_of_blas_lasts_until_the_last_one_leaves():
    with threadpool_limits(limits=3, user_api="blas"):
        with single_blas_threads():
            results = ordered_map(library_threads, range(2))
            assert next(results) == 1
        assert next(results) == 1  # the outer one has left first
        results.close()
        assert library_threads(None) == 3


def test_what_is_read_ahead_comes_in_order_and_errors_in_their_turn():
    found = []
    with pytest.raises(ZeroDivisionError):
        for value in read_ahead(lambda item: 6 // item, [3, 2, 1, 0]):
            found.append(value)
    assert found == [2, 3, 6]


def test_an_error_in_a_worker_reaches_the_caller():
    with pytest.raises(ZeroDivisionError):
        sum_in_order(lambda item: operator.truediv(1, item), [1, 0, 2], n_jobs=2)


@pytest.mark.parametrize(
    ("n_rows", "largest"), [(200, 64), (50, 16), (2000, 64), (5, 64), (3, 1), (1, 7), (0, 7)]
)
def test_even_blocks_cover_all_rows_and_differ_by_one_at_most(n_rows, largest):
    blocks = even_blocks(n_rows, largest)
    assert [i for block in blocks for i in range(n_rows)[block]] == list(range(n_rows))
    sizes = {block.stop - block.start for block in blocks}
    assert all(0 < size <= largest for size in sizes) and (not sizes or max(sizes) - min(sizes) <= 1)
    assert len(blocks) % 4 == 0 or len(blocks) == n_rows  # an equal share for two or four workers


def test_even_blocks_of_nothing_are_refused():
    with pytest.raises(ValueError, match="expected at least 1"):
        even_blocks(10, 0)


# ---------------------------------------------------------------- pools for long tasks
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
        assert list(pool.map(is_writable, [0], mapped)) == [False]
        assert list(pool.map(is_writable, [0], loaded)) == [True]


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


def test_pools_in_threads_of_one_process_have_processes_of_their_own():
    """With different numbers of workers, whose pools replace each other once they are idle."""

    def sums(n_jobs):
        found = []
        for _ in range(3):
            with task_pool(n_jobs) as pool:
                found.append(list(pool.map(scaled, range(8), 2)))
        return found

    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(sums, [2, 3, 2, 3]))
    assert results == [[[2 * item for item in range(8)]] * 3] * 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_forked_child_has_workers_of_its_own():
    """Those of its parent have no threads in the child: whoever waits for them waits for ever."""
    with task_pool(2) as pool:
        assert list(pool.map(scaled, range(4), 2)) == [0, 2, 4, 6]
    child = multiprocessing.get_context("fork").Process(target=scaled_in_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


def scaled_in_child():
    with task_pool(2) as pool:
        found = list(pool.map(scaled, range(4), 2))
    _idle[os.getpid()].pop()[1].shutdown(kill_workers=True)
    os._exit(0 if found == [0, 2, 4, 6] else 1)
