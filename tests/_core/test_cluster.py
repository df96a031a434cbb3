"""A dask cluster of two processes: same bits, each value sent once, and a killed worker costs time alone."""

import asyncio
import os
import signal
import socket
import time
from concurrent.futures import CancelledError, Future
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
from sklearn_cryoem._core import cluster as cluster_module
from sklearn_cryoem._core import dask_workers
from sklearn_cryoem._core.parallel import ordered_map, task_pool
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.alignment.passes import placed_rows, run_pass
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators.map_aligner import alignment_images
from sklearn_cryoem.io import read_particles, write_mrc
from sklearn_cryoem.manifold.blocks import N_SHARDS, shards
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.particles.features import FeatureBlocks

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


def dies_once(item, mark):
    if item == 3 and not os.path.exists(mark):
        open(mark, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.fixture(scope="module")
def client():
    soon = {"distributed.comm.timeouts.connect": "3s"}  # the dead are given up by then
    with dask.config.set(soon), distributed.LocalCluster(**TWO_PROCESSES) as local:
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
    killed, taken, result = [], [], cluster_module.Cluster.result

    def result_and_kill(self, sending):
        taken.append(sending)
        if len(taken) == 12:
            process = next(iter(client.run(os.getpid).values()))
            os.kill(process, signal.SIGKILL)
            killed.append(process)
        return result(self, sending)

    monkeypatch.setattr(cluster_module.Cluster, "result", result_and_kill)
    return killed


def bytes_moved(monkeypatch, work):
    """Bytes of shared values, tasks and results of ``work()`` on the cluster."""
    moved = []
    submit, result, send = (getattr(cluster_module.Cluster, name) for name in ("submit", "result", "_send"))

    def counting_submit(self, function, *args, **where):
        moved.append(len(cloudpickle.dumps([a.name if hasattr(a, "name") else a for a in args])))
        return submit(self, function, *args, **where)

    def counting_result(self, sending):
        found = result(self, sending)
        moved.append(len(cloudpickle.dumps(found)))
        return found

    def counting_send(self, parcel, workers):
        before = self.bytes_sent
        send(self, parcel, workers)
        moved.append(self.bytes_sent - before)

    with monkeypatch.context() as patch, parallel_config("dask"):
        patch.setattr(cluster_module.Cluster, "submit", counting_submit)
        patch.setattr(cluster_module.Cluster, "result", counting_result)
        patch.setattr(cluster_module.Cluster, "_send", counting_send)
        work()
    return sum(moved)


def test_a_shared_value_reaches_every_task_in_order(client):
    with parallel_config("dask"), task_pool() as pool:
        factor = pool.share(np.arange(3.0))
        found = list(pool.map(times, range(20), factor))
        pool.discard(factor)
    np.testing.assert_array_equal(found, np.outer(np.arange(20), np.arange(3.0)))


def test_what_is_sent_once_is_not_sent_again_with_the_next_pass(client, monkeypatch):
    sent = []
    send = cluster_module.Cluster._send
    monkeypatch.setattr(
        cluster_module.Cluster,
        "_send",
        lambda self, parcel, workers: sent.append(len(self._packed(parcel))) or send(self, parcel, workers),
    )
    table = Table(100_000)
    with parallel_config("dask"):
        first, second = (list(ordered_map(partial(picked, table), range(40))) for _ in range(2))
    assert [value for _, value in first] == [value for _, value in second] == list(range(40))
    processes = {process for process, _ in first + second}
    assert os.getpid() not in processes
    # on a busy machine one worker may do all of it
    assert sum(n > 100_000 for n in sent) == len(processes), "the table goes to each worker once"
    assert all(n < 2_000 for n in sent if n <= 100_000)


def test_a_killed_worker_costs_time_alone(client, tmp_path):
    with parallel_config("dask"), task_pool() as pool:
        mark = pool.share(str(tmp_path / "mark"))
        assert list(pool.map(dies_once, range(12), mark)) == list(range(12))
    assert (tmp_path / "mark").exists()


def test_a_task_that_kills_every_worker_is_reported(monkeypatch):
    dead = distributed.scheduler.KilledWorker("task", SimpleNamespace(address="tcp://node:1"), 3)
    monkeypatch.setattr(cluster_module, "reaches_workers", lambda client: True)
    monkeypatch.setattr(cluster_module.Cluster, "_fetch", lambda self, future: future)
    future = Future()
    future.set_exception(dead)
    cluster = cluster_module.Cluster(Mock(**{"submit.return_value": future}))
    with pytest.raises(RuntimeError, match=r"4 workers .* more memory"):
        cluster.result(cluster.submit(times, 1, 2))


def test_results_come_through_the_scheduler_where_workers_cannot_be_reached(client, monkeypatch):
    knock = Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr(distributed.comm, "connect", knock)
    monkeypatch.setattr(dask_workers, "_reached", {})
    gather = Mock(side_effect=client.gather)
    monkeypatch.setattr(client, "gather", gather)
    with parallel_config("dask"), task_pool() as pool:
        assert list(pool.map(times, range(5), 3)) == [0, 3, 6, 9, 12]
        knocks = knock.call_count
        assert list(ordered_map(partial(times, factor=2), range(4))) == [0, 2, 4, 6]
    assert knock.call_count == knocks > 0  # asked once, however many maps follow
    assert {call.kwargs["direct"] for call in gather.call_args_list} == {False}


def test_a_port_that_takes_connections_and_never_answers_is_no_worker(client, monkeypatch):
    monkeypatch.setattr(dask_workers, "KNOCK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        assert not client.sync(dask_workers._all_answer, client, [*client.nthreads(), address])
    assert client.sync(dask_workers._all_answer, client, list(client.nthreads()))


def test_results_are_fetched_from_the_workers_where_they_can_be_reached(client, monkeypatch):
    gather = Mock(side_effect=client.gather)
    monkeypatch.setattr(client, "gather", gather)
    with parallel_config("dask"), task_pool() as pool:
        assert list(pool.map(times, range(5), 3)) == [0, 3, 6, 9, 12]
    assert {call.kwargs["direct"] for call in gather.call_args_list} == {True}


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


def test_tasks_of_a_worker_that_is_gone_are_done_by_others(client):
    client.wait_for_workers(2, timeout=60)
    cluster = cluster_module.Cluster(client)
    sent = [cluster.submit(times, item, 2, home="tcp://127.0.0.1:9") for item in range(3)]
    assert [cluster.result(each) for each in sent] == [0, 2, 4]


def slowly_doubled(item):
    time.sleep(0.3)
    return 2 * item


@pytest.fixture
def own_cluster():
    """A cluster of one process for a test that takes it apart."""
    with distributed.LocalCluster(**{**TWO_PROCESSES, "n_workers": 1}) as cluster:
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


class DoneTooLate(Future):
    """A result that comes between the end of a wait for it and the next look."""

    def result(self, timeout=None):
        if timeout is not None:
            self.set_result(7)
            raise TimeoutError
        return super().result()


def test_a_result_that_comes_as_the_wait_ends_is_taken(monkeypatch):
    monkeypatch.setattr(cluster_module, "reaches_workers", lambda client: True)
    monkeypatch.setattr(cluster_module.Cluster, "_fetch", lambda self, future: DoneTooLate())
    cluster = cluster_module.Cluster(Mock())
    assert cluster.result(cluster.submit(times, 1, 7)) == 7


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
    return SMLClusterer((4, 4), max_iter=40, tol=0.1, random_state=0)


def aligner():
    return MAPAligner(3, n_batches=4, max_iter=2, max_shift=15.0, random_state=0)


def test_an_iteration_moves_as_many_bytes_for_four_times_the_particles(client, stack, monkeypatch):
    model, moved = clusterer().fit(stack[:500]), []
    for n in (500, 2000):
        blocks = FeatureBlocks(stack[:n], model._space.plane, block_size=30)  # 16 tasks either way
        assert len(shards(blocks)) == N_SHARDS
        matcher = model._manifold.matcher(blocks.layout, dtype=np.float32)
        first, *later = [bytes_moved(monkeypatch, partial(sweep, blocks, [matcher])) for _ in range(4)]
        moved.append(min(later))  # a worker that had no task in the first is sent the table in a later one
        assert first > moved[-1], "the first also sends the table of all particles"
    small, large = moved
    assert abs(large - small) < 0.01 * small


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_aligner_moves_nothing_for_a_particle_but_its_class_and_pose(client, stack, monkeypatch):
    model = aligner().fit(stack[:500])
    space = model._settings.space(stack.box, model._model.k_max)

    def bytes_of(n_particles, rows):
        images = alignment_images(stack[:n_particles], model._settings)
        with parallel_config("dask"), task_pool() as pool:
            features = SharedFeatures(images, pool, 256e6)
            one_pass = partial(run_pass, features, rows, images.known.shift_px, model._model, space)
            _, *later = [bytes_moved(monkeypatch, one_pass) for _ in range(3)]
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
