"""Work is cut independently of n_jobs, results keep their order, BLAS has one thread a worker."""

import operator
import time

import numpy as np
import pytest
from joblib import parallel_config
from threadpoolctl import threadpool_info

from sklearn_cryoem._core.parallel import WINDOW, even_blocks, ordered_map, row_blocks, sum_in_order


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


def test_a_sum_of_nothing_is_an_error_not_a_none():
    with pytest.raises(ValueError, match="no items were given"):
        sum_in_order(lambda item: item, [])


def _blas_threads(_):
    np.ones((4, 4)) @ np.ones((4, 4))
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_every_worker_has_single_blas_threads(backend):
    with parallel_config(backend):
        assert set(ordered_map(_blas_threads, range(4), n_jobs=2)) == {1}


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
