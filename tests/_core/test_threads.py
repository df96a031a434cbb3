"""One thread of BLAS in the process and of OpenMP in each thread while anybody works; then as before."""

import sys
from concurrent.futures import ThreadPoolExecutor

import finufft  # noqa: F401 - brings OpenMP with it
import pytest
from joblib import parallel_config
from threadpoolctl import threadpool_info, threadpool_limits

from sklearn_cryoem._core.parallel import ordered_map, single_blas_threads, task_pool


def most_threads(item=None, kind="blas"):
    """Threads that any library of a kind would start, called here."""
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == kind)


def most_openmp_threads(item=None):
    return most_threads(kind="openmp")


@pytest.fixture(params=["blas", "openmp"])
def kind(request):
    """Of libraries; each has three threads in the main thread."""
    with threadpool_limits(limits=3, user_api=request.param):
        yield request.param


def test_the_limit_lasts_until_the_last_one_leaves(kind):
    with single_blas_threads():
        results = ordered_map(lambda item: most_threads(item, kind), range(2))
        assert next(results) == 1
    assert next(results) == 1  # the outer one has left first
    results.close()
    assert most_threads(kind=kind) == 3


def test_a_thread_that_leaves_before_another_has_its_openmp_threads_again():
    with ThreadPoolExecutor(1) as other, threadpool_limits(limits=3, user_api="openmp"):
        first, second = single_blas_threads(), single_blas_threads()
        first.__enter__()
        before = other.submit(most_openmp_threads).result()
        other.submit(second.__enter__).result()
        assert other.submit(most_openmp_threads).result() == 1
        first.__exit__(None, None, None)
        assert most_openmp_threads() == 3
        assert other.submit(most_openmp_threads).result() == 1
        other.submit(second.__exit__, None, None, None).result()
        assert other.submit(most_openmp_threads).result() == before


def test_a_context_left_by_another_thread_than_entered_it_does_no_harm():
    with ThreadPoolExecutor(1) as other:
        context = single_blas_threads()
        other.submit(context.__enter__).result()
        context.__exit__(None, None, None)
    with threadpool_limits(limits=3, user_api="openmp"):
        with single_blas_threads():
            assert most_openmp_threads() == 1
        assert most_openmp_threads() == 3


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_workers_that_are_threads_have_one_of_openmp_each(n_jobs):
    with threadpool_limits(limits=3):
        assert set(ordered_map(most_openmp_threads, range(6), n_jobs=n_jobs)) == {1}
        with parallel_config("threading"), task_pool(n_jobs) as pool:
            assert set(pool.map(most_openmp_threads, range(6))) == {1}
        assert most_openmp_threads() == 3


def test_the_interval_between_threads_comes_back_after_the_last_leaves():
    before = sys.getswitchinterval()
    with single_blas_threads():
        inside = sys.getswitchinterval()
        with single_blas_threads():
            pass
        assert sys.getswitchinterval() == inside < before
    assert sys.getswitchinterval() == before
