"""Limits of memory: set, given by the environment, or by the machine and its control groups."""

import logging

import pytest
from joblib import parallel_config

from sklearn_cryoem import set_memory_limit
from sklearn_cryoem._core import memory
from sklearn_cryoem._core.parallel import ordered_map


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    monkeypatch.delenv(memory.VARIABLE, raising=False)
    set_memory_limit(None)
    yield
    set_memory_limit(None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1e9, 1e9), ("16 GB", 16 * 2**30), ("1.5g", 1.5 * 2**30), ("512MiB", 2**29), ("77", 77)],
)
def test_a_limit_is_bytes_or_text(given, expected):
    set_memory_limit(given)
    assert memory.memory_limit() == expected
    assert memory.cache_bytes() == expected / 4


@pytest.mark.parametrize("given", ["", "much", "-3 GB", 0, -1.0, "GB", float("nan")])
def test_what_is_no_amount_is_refused(given):
    with pytest.raises(ValueError, match="Give bytes, or text like '16 GB'"):
        set_memory_limit(given)


def test_the_environment_gives_a_limit_that_a_call_overrides(monkeypatch):
    monkeypatch.setenv(memory.VARIABLE, "2 GB")
    assert memory.memory_limit() == 2**31
    set_memory_limit("1 GB")
    assert memory.memory_limit() == 2**30


def test_by_default_it_is_half_of_the_machine_and_caches_stay_small():
    assert memory.memory_limit() == memory.machine_memory() / 2
    assert memory.cache_bytes() <= 256 * 2**20


def test_what_is_held_at_once_shrinks_below_a_limit():
    for limit, expected in (("1 TB", 100.0), ("100 kB", 100.0), ("1 kB", 10.24)):
        set_memory_limit(limit)
        assert memory.bytes_at_once(100.0, 0.01) == pytest.approx(expected)


def test_what_is_kept_is_shared_by_the_workers_and_small_where_nobody_set_a_limit(monkeypatch):
    monkeypatch.setattr(memory, "machine_memory", lambda: 2e12)
    assert memory.kept_by_worker(0.25, 400e6, 2) == 400e6
    set_memory_limit(8e9)
    assert [memory.kept_by_worker(0.25, 400e6, n) for n in (1, 4)] == [2e9, 5e8]


def limits_here(_):
    return memory.memory_limit(), memory.cache_bytes()


@pytest.mark.parametrize("backend", ["threading", "loky", "multiprocessing"])
def test_workers_of_any_kind_work_under_the_limit_that_was_set(backend):
    with parallel_config(backend):
        for limit in (3e9, 5e9):  # processes are kept from one call to the next
            set_memory_limit(limit)
            assert set(ordered_map(limits_here, range(4), n_jobs=2)) == {(limit, limit / 4)}
        set_memory_limit(None)
        assert set(ordered_map(limits_here, range(4), n_jobs=2)) == {limits_here(0)}


def test_control_groups_above_count_too(tmp_path):
    root, inside = tmp_path / "cgroup", tmp_path / "cgroup" / "user" / "job"
    inside.mkdir(parents=True)
    (inside / "memory.max").write_text("max\n")
    (inside.parent / "memory.max").write_text("4294967296\n")
    (tmp_path / "self").write_text("0::/user/job\n")
    assert memory._group_limits(tmp_path / "self", root) == [2.0**32]


def test_the_first_version_of_control_groups_is_read(tmp_path):
    folder = tmp_path / "memory" / "job"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text("1073741824")
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712")
    (tmp_path / "self").write_text("5:cpu,cpuacct:/job\n4:memory:/job\n")
    assert min(memory._group_limits(tmp_path / "self", tmp_path)) == 2.0**30
    assert memory._group_limits(tmp_path / "absent", tmp_path) == []


def test_an_estimate_above_the_limit_is_a_warning(caplog):
    set_memory_limit("1 MB")
    with caplog.at_level(logging.INFO):
        memory.log_estimate(logging.getLogger("test"), "This", 2**21)
        memory.log_estimate(logging.getLogger("test"), "That", 2**19)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"]
    assert "set_memory_limit" in caplog.text
