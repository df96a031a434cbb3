"""The same bits of everything that is fitted or asked for, whoever does the work and wherever images lie."""

from dataclasses import fields, is_dataclass
from functools import cache

import numpy as np
import pytest
from joblib import parallel_config
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

from sklearn_cryoem import (
    DeepClusterer,
    MAPAligner,
    ParticleStack,
    RealigningClusterer,
    SMLClusterer,
    read_particles,
    set_memory_limit,
    write_particles,
)
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.particles.feature_space import ImageSpace

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

METHODS = ("predict", "transform", "predict_proba", "score")
NAMES = ("aligner", "clusterer", "tree", "realigner")


def estimator_of(name, n_jobs):
    """A small estimator; every one that it holds has as many workers."""
    common = {"n_jobs": n_jobs, "random_state": 0}
    clusterer = SMLClusterer((3, 2), max_iter=3, **common)
    if name == "clusterer":
        return clusterer
    if name == "realigner":
        return RealigningClusterer(clusterer, n_rounds=1, n_jobs=n_jobs)
    aligner = MAPAligner(3, n_batches=2, max_iter=1, **common)
    if name == "aligner":
        return aligner
    return DeepClusterer(aligner, clusterer, images_per_subclass=40, **common)


@pytest.fixture(scope="module", autouse=True)
def many_blocks():
    """So little memory that a few particles are four blocks, and features are not kept."""
    set_memory_limit("1 MB")
    yield
    set_memory_limit(None)


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """The same particles in a file and in memory."""
    path = tmp_path_factory.mktemp("particles") / "particles.star"
    made = make_particles("ribosome", 200, box=24, snr=1.0, n_views=3, max_shift=8.0, random_state=0)
    write_particles(aligned_to_truth(made), path)
    file = read_particles(path)
    memory = ParticleStack(file.read(), pixel_size=file.pixel_size, ctf=file.ctf, poses=file.poses)
    assert memory.is_in_memory and not file.is_in_memory
    return {"file": file, "memory": memory}


def results(name, stack, n_jobs):
    """Everything that a fit leaves and its methods return, as arrays by name."""
    estimator = estimator_of(name, n_jobs).fit(stack)
    asked = {method: getattr(estimator, method)(stack) for method in METHODS if hasattr(estimator, method)}
    return {**arrays_in(estimator, "fit"), **arrays_in(asked, "asked")}


def arrays_in(value, name):
    """Arrays and numbers anywhere in a value: in fitted attributes of an estimator, in poses, in lists."""
    if isinstance(value, BaseEstimator):
        value = {key: part for key, part in vars(value).items() if key.endswith("_")}
    elif isinstance(value, ParticleStack):
        value = {"poses": value.poses}
    elif is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    elif isinstance(value, list | tuple):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: np.asarray(value)}
    parts = [arrays_in(part, f"{name}.{key}") for key, part in value.items()]
    return {key: array for part in parts for key, array in part.items()}


@pytest.fixture(scope="module")
def alone(stacks):
    """What one worker finds, of the name of an estimator."""
    return cache(lambda name: results(name, stacks["memory"], 1))


def assert_same_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        other = found[name]
        assert (other.dtype, other.shape) == (array.dtype, array.shape), name
        assert other.tobytes() == array.tobytes(), name


@pytest.mark.parametrize("name", NAMES)
def test_results_are_compared_whole(alone, name):
    found = alone(name)
    big = {key for key, array in found.items() if array.size > 50}
    assert {"fit.class_averages_", "fit.labels_"} <= big
    assert {"asked.predict"} <= big and any(key.startswith("asked.transform") for key in big)
    assert all(array.dtype != object or array.item() is None for array in found.values())
    changed = {key: array.copy() for key, array in found.items()}
    changed["fit.class_averages_"].view(np.uint32)[0, 0, 0] ^= 1  # the last bit of one pixel
    with pytest.raises(AssertionError, match="class_averages_"):
        assert_same_bits(changed, found)


def test_there_is_work_for_many(stacks):
    assert len(ImageSpace.of(stacks["file"], None, None).blocks(stacks["file"])) == 4


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_the_bits_of_an_array(stacks, alone, name):
    assert_same_bits(results(name, stacks["file"], 1), alone(name))


@pytest.mark.parametrize("name", ["tree", "realigner"])  # which hold the others
def test_threads_of_blas_do_not_matter(stacks, alone, name):
    with threadpool_limits(limits=3):
        assert_same_bits(results(name, stacks["memory"], 1), alone(name))


@pytest.mark.parametrize(  # of loky; worker processes are kept from one to the next
    ("name", "n_jobs", "where"), [*[(name, 2, "memory") for name in NAMES], ("tree", 3, "file")]
)
def test_the_number_of_workers_does_not_matter(stacks, alone, name, n_jobs, where):
    assert_same_bits(results(name, stacks[where], n_jobs), alone(name))


@pytest.mark.parametrize(
    ("backend", "name"),
    [*[("threading", name) for name in NAMES], ("multiprocessing", "tree"), ("sequential", "tree")],
)
def test_the_backend_does_not_matter(stacks, alone, name, backend):
    where = "memory" if backend == "multiprocessing" else "file"
    with parallel_config(backend, n_jobs=2):
        assert_same_bits(results(name, stacks[where], None), alone(name))
