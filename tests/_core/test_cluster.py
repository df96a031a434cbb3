"""A dask cluster of two processes: same bits, each value sent once, and a killed worker costs time alone."""

import asyncio
import gc
import os
import signal
import time
from concurrent.futures import CancelledError
from functools import partial
from types import SimpleNamespace
from unittest.mock import Mock

import cloudpickle
import dask
import distributed
import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem._core import parallel
from sklearn_cryoem._core.parallel import DaskPool, ordered_map, task_pool
from sklearn_cryoem._core.validation import WorkerLostError
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.alignment.passes import placed_rows, run_pass
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators.map_aligner import alignment_images
from sklearn_cryoem.io import read_particles, write_mrc
from sklearn_cryoem.manifold.blocks import N_SHARDS, shards
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.particles.features import FeatureBlocks

SOON = {"distributed.comm.timeouts.connect": "3s"}  # the dead are given up by then
TWO_PROCESSES = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": ":0", "silence_logs": 50}
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of dask and tornado
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Table:
    """Stands for a stack: large, and part of every task."""

    sent_once = True

    def __init__(self, n):
        self.values = np.arange(float(n))


def picked(table, item):
    return os.getpid(), table.values[item]


def times(item, factor):
    return item * factor


def doubled_of(factor, item, table):
    return factor * table.values[2 * item]


def dies_once(item, mark):
    if item == 3 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.fixture(scope="module")
def client():
    with dask.config.set(SOON), distributed.LocalCluster(**TWO_PROCESSES) as local:
        with distributed.Client(local) as client:
            yield client


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    path = tmp_path_factory.mktemp("stack") / "particles.mrcs"
    made = make_particles("ribosome", 2000, box=24, snr=1.0, n_views=3, max_shift=15.0, random_state=0)
    write_mrc(path, made.read(), made.pixel_size)
    return read_particles(path).with_ctf(made.ctf).with_poses(aligned_to_truth(made).poses)


@pytest.fixture
def kill_a_worker(client, monkeypatch):
    """Kill a worker process when some results have been taken; return those that were killed."""
    client.wait_for_workers(2, timeout=60)
    killed, taken, result = [], [], DaskPool._result

    def result_and_kill(self, task):
        taken.append(task)
        if len(taken) == 12:
            process = next(iter(client.run(os.getpid).values()))
            os.kill(process, signal.SIGKILL)
            killed.append(process)
        return result(self, task)

    monkeypatch.setattr(DaskPool, "_result", result_and_kill)
    return killed


def bytes_moved(client, work):
    """Bytes of shared values, tasks and results of ``work()`` on the cluster."""
    moved = []

    def result(future):
        found = type(future).result(future)
        moved.append(len(cloudpickle.dumps(found)))
        return found

    def scatter(values, **options):
        moved.extend(len(cloudpickle.dumps(value)) for value in values)
        return type(client).scatter(client, values, **options)

    def submit(function, *args, **options):
        values = [arg for arg in args if not isinstance(arg, distributed.Future)]
        moved.append(len(cloudpickle.dumps(values)))
        future = type(client).submit(client, function, *args, **options)
        future.result = partial(result, future)
        return future

    with pytest.MonkeyPatch.context() as patch, parallel_config("dask"):
        patch.setattr(client, "scatter", scatter)
        patch.setattr(client, "submit", submit)
        work()
    return sum(moved)


def test_a_shared_value_reaches_every_task_in_order(client):
    with parallel_config("dask"), task_pool() as pool:
        factor = pool.share(np.arange(3.0))
        found = list(pool.map(times, range(20), factor))
        pool.discard(factor)
    np.testing.assert_array_equal(found, np.outer(np.arange(20), np.arange(3.0)))


def test_what_is_sent_once_is_not_sent_again_with_the_next_pass(client, monkeypatch):
    scatter = Mock(side_effect=client.scatter)
    monkeypatch.setattr(client, "scatter", scatter)
    table = Table(100_000)
    with parallel_config("dask"):
        first, second = (list(ordered_map(partial(picked, table), range(40))) for _ in range(2))
        assert list(ordered_map(partial(doubled_of, 3, table=table), range(4))) == [0, 6, 12, 18]
    assert [value for _, value in first] == [value for _, value in second] == list(range(40))
    assert os.getpid() not in {process for process, _ in first + second}
    sent = [(type(call.args[0][0]), call.kwargs["workers"][0]) for call in scatter.call_args_list]
    tables = [worker for kind, worker in sent if kind is Table]
    assert len(tables) == len(set(tables)), "the table goes to each worker once"
    known = parallel._sent_once[client]
    assert table in known
    del table, scatter
    monkeypatch.undo()
    gc.collect()
    assert not [value for value in known if isinstance(value, Table)], "and goes when it is gone here"


def test_a_killed_worker_costs_time_alone(client, tmp_path):
    with parallel_config("dask"), task_pool() as pool:
        mark = pool.share(str(tmp_path / "mark"))
        assert list(pool.map(dies_once, range(12), mark)) == list(range(12))
    assert (tmp_path / "mark").exists()


def test_a_task_that_kills_every_worker_is_reported():
    dead = distributed.scheduler.KilledWorker("task", SimpleNamespace(address="tcp://node:1"), 3)
    client = Mock(status="running", **{"nthreads.return_value": {"tcp://node:1": 1}})
    client.submit.return_value.result.side_effect = dead
    with pytest.raises(WorkerLostError, match=r"4 workers .* more memory"):
        list(DaskPool(client, {}, 1).map(times, [1], 2))


def test_a_task_that_loses_what_it_needs_again_and_again_is_reported():
    client = Mock(status="running", **{"nthreads.return_value": {"tcp://node:1": 1}})
    client.submit.return_value = Mock(status="cancelled", **{"result.side_effect": CancelledError("lost")})
    with pytest.raises(WorkerLostError, match=r"4 workers .* more memory"):
        list(DaskPool(client, {}, 1).map(times, [1], 2))


def test_a_worker_that_takes_nothing_is_passed_by_and_if_none_takes_anything_that_is_said():
    client = Mock(status="running", **{"nthreads.return_value": {"tcp://node:1": 1, "tcp://node:2": 1}})
    client.scatter.side_effect = [TimeoutError("No valid workers found"), ["copy"]]
    pool = DaskPool(client, {}, 1)
    next(pool.map(times, [1], pool.share(2)))
    assert [call.kwargs["workers"] for call in client.scatter.call_args_list] == [
        ["tcp://node:1"],
        ["tcp://node:2"],
    ]
    client.scatter.side_effect = OSError("no route to host")
    with pytest.raises(WorkerLostError, match=r"takes what it is sent.* more memory"):
        next(pool.map(times, [1], pool.share(2)))


def test_items_of_a_place_are_sent_to_the_same_worker_in_every_pass(client, monkeypatch):
    client.wait_for_workers(2, timeout=60)
    submit = Mock(side_effect=client.submit)
    monkeypatch.setattr(client, "submit", submit)

    def homes(**options):
        submit.reset_mock()
        with parallel_config("dask"):
            assert list(ordered_map(partial(times, factor=2), range(8), **options)) == list(range(0, 16, 2))
        assert all(call.kwargs["allow_other_workers"] for call in submit.call_args_list)  # if it is gone
        return [call.kwargs["workers"][0] for call in submit.call_args_list]

    first, second = sorted(client.nthreads())
    assert homes() == homes() == 4 * [first, second]
    assert homes(place=lambda item: item // 4) == 4 * [first] + 4 * [second]


def slowly_doubled(item):
    time.sleep(0.3)
    return 2 * item


@pytest.fixture
def own_cluster():
    """A cluster of one process for a test that takes it apart."""
    with dask.config.set(SOON), distributed.LocalCluster(**{**TWO_PROCESSES, "n_workers": 1}) as cluster:
        with distributed.Client(cluster):
            yield cluster


def pass_with(interruption):
    """Results of a pass that `interruption` hits after the second of them."""
    found = []
    with parallel_config("dask"):
        for result in ordered_map(slowly_doubled, range(12)):
            found.append(result)
            if len(found) == 2:
                interruption()
    return found


def test_the_only_worker_may_die(own_cluster):
    def kill():
        (process,) = distributed.default_client().run(os.getpid).values()
        os.kill(process, signal.SIGKILL)

    assert pass_with(kill) == list(range(0, 24, 2))


def test_all_workers_may_leave_and_others_come(own_cluster):
    def change():
        own_cluster.scale(0)
        distributed.default_client().sync(asyncio.sleep, 0.5)
        own_cluster.scale(2)

    assert pass_with(change) == list(range(0, 24, 2))


def fails_by_timeout(item):
    raise TimeoutError(f"item {item} took too long")


def test_a_tasks_own_timeout_is_its_error(client):
    with parallel_config("dask"), pytest.raises(TimeoutError, match="item 0 took too long"):
        list(ordered_map(fails_by_timeout, range(2)))


def test_a_client_that_is_closed_is_what_the_error_speaks_of(own_cluster):
    with pytest.raises((distributed.client.ClosedClientError, CancelledError)):
        pass_with(distributed.default_client().close)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_a_grid_search_on_the_cluster_fits_where_its_folds_are(client, stack):
    few = stack[:120]
    search = GridSearchCV(SMLClusterer((2, 2), max_iter=3, random_state=0), {"n_basis": [2, 4]}, cv=2)
    with parallel_config("dask"):
        far = clone(search).fit(few)
    np.testing.assert_array_equal(
        far.cv_results_["mean_test_score"], search.fit(few).cv_results_["mean_test_score"]
    )


def test_options_of_the_backend_reach_every_task(client, monkeypatch):
    submit = Mock(side_effect=client.submit)
    monkeypatch.setattr(client, "submit", submit)
    only = sorted(client.nthreads())[:1]
    with parallel_config("dask", priority=7, workers=only):
        assert list(ordered_map(partial(times, factor=2), range(3))) == [0, 2, 4]
        with task_pool() as pool:
            assert list(pool.map(times, range(3), 2)) == [0, 2, 4]
    assert {(call.kwargs["priority"], *call.kwargs["workers"]) for call in submit.call_args_list} == {
        (7, *only)
    }


def assert_same_fit(model, other):
    for name, value in vars(other).items():
        if name.endswith("_") and isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(model, name), value, err_msg=name)


def clusterer():
    return SMLClusterer((4, 4), max_iter=12, tol=0.1, random_state=0)


def aligner():
    return MAPAligner(3, n_batches=4, max_iter=2, max_shift=15.0, random_state=0)


def test_an_iteration_moves_as_many_bytes_for_four_times_the_particles(client, stack):
    model, moved = clusterer().fit(stack[:500]), []
    for n in (500, 2000):
        blocks = FeatureBlocks(stack[:n], model._space.plane, block_size=30)  # 16 tasks either way
        assert len(shards(blocks)) == N_SHARDS
        matcher = model._manifold.matcher(blocks.layout, dtype=np.float32)
        first, *later = [bytes_moved(client, partial(sweep, blocks, [matcher])) for _ in range(4)]
        moved.append(min(later))  # a worker that had no task in the first is sent the table in a later one
        assert first > moved[-1], "the first also sends the table of all particles"
    small, large = moved
    assert abs(large - small) < 0.01 * small


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_aligner_moves_nothing_for_a_particle_but_its_class_and_pose(client, stack):
    model = aligner().fit(stack[:500])
    space = model._settings.space(stack.box, model._model.k_max)

    def bytes_of(n_particles, rows):
        images = alignment_images(stack[:n_particles], model._settings)
        with parallel_config("dask"), task_pool() as pool:
            features = SharedFeatures(images, pool, 256e6)
            one_pass = partial(run_pass, features, rows, images.known.shift_px, model._model, space)
            _, *later = [bytes_moved(client, one_pass) for _ in range(3)]
        return min(later)

    batch = np.arange(0, 500, 2)  # a mini-batch of 250 images
    assert bytes_of(2000, batch) == pytest.approx(bytes_of(500, batch), rel=0.01)
    rows = np.arange(2000)
    nowhere = np.zeros((2000, 2))
    assert len(placed_rows(rows[:900], nowhere)) == len(placed_rows(rows, nowhere))
    of_an_image = (bytes_of(2000, rows) - bytes_of(2000, rows[:900])) / 1100
    assert 16 < of_an_image < 80 < 24 * 24 * 4


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("make", [clusterer, aligner])
def test_a_fit_on_the_cluster_has_the_same_bits_though_a_worker_is_killed(stack, make, kill_a_worker):
    with parallel_config("dask"):
        far = make().fit(stack)
    assert len(kill_a_worker) == 1
    assert_same_fit(far, make().fit(stack))
