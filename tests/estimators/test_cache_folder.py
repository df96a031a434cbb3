"""SMLClusterer(cache_folder=...): the same fit from files, whoever made them."""

import joblib
import numpy as np
import pytest

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import load_model, save_model
from sklearn_cryoem.particles import features
from sklearn_cryoem.particles.features import FeatureBlocks

OPTIONS = {"n_clusters": (3, 3), "max_iter": 6, "random_state": 0}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def stack():
    return aligned_to_truth(make_particles("ribosome", 1100, box=24, snr=0.2, random_state=0))


@pytest.fixture(scope="module")
def in_memory(stack):
    return SMLClusterer(**OPTIONS).fit(stack)


@pytest.fixture(autouse=True)
def no_memory(in_memory, monkeypatch):
    """Nothing is kept in memory, so every block comes from its file."""
    monkeypatch.setattr(features, "default_cache_bytes", lambda: 0)


def assert_same_fit(model, other):
    for name in ("labels_", "class_averages_", "weights_", "log_posterior_", "class_resolution_"):
        np.testing.assert_array_equal(getattr(model, name), getattr(other, name))


def test_it_is_proposed_where_features_find_no_room_in_memory(stack, tmp_path, monkeypatch, caplog):
    few = {"n_clusters": (3, 3), "max_iter": 1, "random_state": 0}
    with caplog.at_level("INFO", logger="sklearn_cryoem"):
        SMLClusterer(**few).fit(stack)
        assert "features of 0 % of the images" in caplog.text and "cache_folder" in caplog.text
        caplog.clear()
        SMLClusterer(**few, cache_folder=tmp_path).fit(stack)
        monkeypatch.setattr(features, "default_cache_bytes", lambda: 1e9)
        SMLClusterer(**few).fit(stack)
        assert "needs about" in caplog.text and "cache_folder" not in caplog.text


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_fit_from_files_has_the_bits_of_one_from_memory(stack, in_memory, tmp_path, monkeypatch, n_jobs):
    first = SMLClusterer(**OPTIONS, cache_folder=tmp_path, n_jobs=n_jobs).fit(stack)
    assert_same_fit(first, in_memory)
    monkeypatch.setattr(FeatureBlocks, "_prepare", lambda *_: pytest.fail("features were prepared again"))
    assert_same_fit(SMLClusterer(**OPTIONS, cache_folder=str(tmp_path)).fit(stack), in_memory)
    np.testing.assert_array_equal(first.predict(stack), in_memory.labels_)
    assert len(list(tmp_path.rglob("*.features"))) == 3


@pytest.mark.parametrize("noise", ["group", "image"])
def test_noise_is_measured_from_the_same_files(stack, tmp_path, monkeypatch, noise):
    model = SMLClusterer(**OPTIONS, noise=noise, cache_folder=tmp_path).fit(stack)
    monkeypatch.undo()
    assert_same_fit(model, SMLClusterer(**OPTIONS, noise=noise).fit(stack))


def test_processes_share_the_files(stack, in_memory, tmp_path):
    with joblib.parallel_config("loky"):
        assert_same_fit(SMLClusterer(**OPTIONS, cache_folder=tmp_path, n_jobs=2).fit(stack), in_memory)
    assert len(list(tmp_path.rglob("*.features"))) == 3


def test_prediction_writes_nothing_and_a_saved_model_reads_on_or_does_without(stack, in_memory, tmp_path):
    folder = tmp_path / "features"
    fitted = SMLClusterer(**OPTIONS, cache_folder=folder).fit(stack)
    before = sorted(folder.rglob("*"))
    np.testing.assert_array_equal(fitted.predict(stack[:50]), in_memory.predict(stack[:50]))
    assert sorted(folder.rglob("*")) == before
    save_model(fitted, tmp_path / "model.npz")
    model = load_model(tmp_path / "model.npz")
    np.testing.assert_array_equal(model.predict(stack), in_memory.labels_)
    folder.rename(tmp_path / "elsewhere")
    np.testing.assert_array_equal(model.predict(stack), in_memory.labels_)


def test_vectors_need_no_files(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(60, 5))
    SMLClusterer((2, 2), max_iter=3, cache_folder=tmp_path).fit(vectors).predict(vectors)
    assert not list(tmp_path.iterdir())


def test_what_is_no_path_is_refused(stack):
    with pytest.raises(TypeError, match=r"'cache_folder' .* is True, expected the path of a folder"):
        SMLClusterer(cache_folder=True).fit(stack)
